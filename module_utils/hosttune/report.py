"""A drift report in the forms that people and machines read: table, JSON, JUnit, Prometheus text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .drift import DriftReport
from .verdicts import BAD, PENDING, VERDICTS

#: What one host may cost Prometheus: the details beyond are counted, worst verdicts first.
MAX_DETAIL_SERIES = 80

_VALUE_WIDTH = 40


def as_json(report: DriftReport) -> str:
    """docs/schemas/drift.json; one line a setting, so that two reports can be compared with diff."""
    content = report.as_dict()
    settings = content.pop("settings")
    head = json.dumps(content, indent=1, ensure_ascii=True)
    lines = ",\n".join("  " + json.dumps(one, ensure_ascii=True) for one in settings)
    body = f"[\n{lines}\n ]" if settings else "[]"
    return f'{head[:-2]},\n "settings": {body}\n}}\n'


def summary(report: DriftReport) -> str:
    """One line: how the host stands."""
    if report.error:
        return f"{report.host}: could not be checked: {report.error}"
    counts = ", ".join(f"{count} {verdict}" for verdict, count in report.counts().items())
    overdue = sum(1 for entry in report.settings if entry.get("overdue"))
    late = f"; {overdue} pending longer than allowed" if overdue else ""
    return f"{report.host}: {len(report.settings)} settings: {counts}{late}"


def table(report: DriftReport) -> str:
    """What is not in sync, worst first, then what this host does not have, then the summary."""
    rows = [one for one in _worst_first(report.settings) if one["verdict"] not in ("in_sync", "unsupported")]
    lines = []
    if rows:
        head = ("VERDICT", "SETTING", "OWNER", "DESIRED", "LIVE", "PERSISTED", "SINCE", "REASON")
        cells = [
            (
                entry["verdict"] + (" (overdue)" if entry.get("overdue") else ""),
                f"{entry['kind']} {entry['name']}",
                entry["owner"],
                _short(entry["desired"]),
                _short(entry["live"]),
                _short(entry["persisted"]["value"]),
                entry.get("since", ""),
                entry["reason"],
            )
            for entry in rows
        ]
        lines = [*columns([head, *cells]), ""]
    unsupported = [one["reason"] for one in report.settings if one["verdict"] == "unsupported"]
    lines += [f"unsupported: {unsupported.count(why)} ({why})" for why in dict.fromkeys(unsupported)]
    lines += [f"warning: {warning}" for warning in report.warnings]
    return "\n".join([*lines, summary(report)]) + "\n"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned lines; the last column runs free. What a terminal would obey is shown as `?`."""
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]).rstrip()
        for row in rows
    ]


def explanation(
    entry: Mapping[str, Any],
    notes: Mapping[str, str],
    was: Mapping[str, Any] | None,
    origin: Mapping[str, Any] | None = None,
) -> str:
    """One setting with every plane, where its value comes from, why, and what it was before the suite came.

    `origin`, known on the controller only, is {variable, file, line, inputs: [{name, value, file, line}]}.
    """
    persisted = entry["persisted"]
    lines = [f"{entry['kind']} {entry['name']} (role {entry['owner']})"]

    def say(word: str, text: Any) -> None:
        lines.append(f"  {word:<10} {visible(str(text))}")

    since = f" since {entry['since']}" if entry.get("since") else ""
    say("verdict", entry["verdict"] + since + (f": {entry['reason']}" if entry["reason"] else ""))
    say("desired", entry["desired"] + (f"  ({notes['unit']})" if notes.get("unit") else ""))
    if notes.get("from"):
        say("from", notes["from"])
    for text in _origin(origin or {}):
        say("", text)
    if entry["live"] is not None:
        say("live", entry["live"])
    if entry.get("process") is not None:
        say("process", entry["process"])
    if persisted["file"]:
        say("persisted", f"{persisted['value']}  ({_place(persisted)})")
    for other in persisted["overridden"]:
        say("overridden", f"{other['value']}  ({_place(other)})")
    if entry["needs"] != "none":
        say("needs", entry["needs"])
    # What the note says of the server holds always; of what is in force already the kind says silent.
    say("class", notes.get("class") or entry.get("disruption", "silent"))
    for word in ("why", "risk", "source"):
        if notes.get(word):
            say(word, notes[word])
    if was is not None:
        before = was.get("persisted") or {}
        say(
            "was before", f"live {_or_nothing(was.get('live'))}, persisted {_or_nothing(before.get('value'))}"
        )
    return "\n".join(lines) + "\n"


def _origin(origin: Mapping[str, Any]) -> list[str]:
    """The line of the inventory or of a role's defaults that decided, then what it was computed from."""
    found = []
    if origin.get("line"):
        variable = f"{origin['variable']} in " if origin.get("variable") else ""
        found.append(f"{variable}{_place(origin)}")
    for one in origin.get("inputs", []):
        where = f"  ({_place(one)})" if one["file"] else ""  # none where a lookup or a task made it
        found.append(f"{one['name']} = {_short(one['value'])}{where}")
    return found


def junit(report: DriftReport) -> str:
    """One test case a setting: drift fails, unknown is an error, what somebody answers for is skipped."""
    import xml.etree.ElementTree as xml  # here: no other form needs it

    suite = xml.Element(
        "testsuite", name="hosttune-drift", hostname=report.host, timestamp=report.time.rstrip("Z")
    )
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}

    def case(classname: str, name: str, tag: str, message: str) -> None:
        totals["tests"] += 1
        found = xml.SubElement(suite, "testcase", classname=_xml(classname), name=_xml(name))
        if tag:
            totals[{"failure": "failures", "error": "errors"}.get(tag, tag)] += 1
            xml.SubElement(found, tag, message=_xml(message))

    if report.error:
        case("hosttune", "check", "error", report.error)
    for entry in report.settings:
        verdict = entry["verdict"]
        tag = ""
        if verdict == "unknown":
            tag = "error"
        elif verdict in BAD or entry.get("overdue"):
            tag = "failure"
        elif verdict in PENDING or verdict in ("unsupported", "waived"):
            tag = "skipped"
        case(f"{entry['owner']}.{entry['kind']}", entry["name"], tag, f"{verdict}: {entry['reason']}")
    for word, number in totals.items():
        suite.set(word, str(number))
    return '<?xml version="1.0" encoding="utf-8"?>\n' + xml.tostring(suite, encoding="unicode") + "\n"


def prometheus(report: DriftReport, epoch_seconds: float) -> str:
    """The textfile for the node exporter. A host that could not be checked shows no verdicts at all."""
    lines: list[str] = []

    def gauge(name: str, what: str, samples: Sequence[tuple[Mapping[str, str], float]]) -> None:
        lines.append(f"# HELP hosttune_drift_{name} {what}")
        lines.append(f"# TYPE hosttune_drift_{name} gauge")
        for labels, value in samples:
            inside = ",".join(f'{label}="{_label(text)}"' for label, text in labels.items())
            lines.append(f"hosttune_drift_{name}{'{' + inside + '}' if inside else ''} {value:.15g}")

    gauge("last_check_timestamp_seconds", "When this host was last checked.", [({}, int(epoch_seconds))])
    gauge(
        "exit_status", "0 as desired, 1 drift, 2 could not be checked, 3 waived.", [({}, report.exit_status)]
    )
    gauge(
        "boot_info",
        "The boot whose values were judged; a boot removes this text.",
        [({"boot_id": report.boot_id}, 1)],
    )
    if report.manifest:
        gauge(
            "machine_updates",
            "Updates of kernel, firmware and microcode since this host was last converged.",
            [({}, len(report.warnings))],
        )
        gauge(
            "manifest_info",
            "What this host was last converged to.",
            [({"digest": report.manifest["digest"]}, 1)],
        )
    if not report.error:
        counts = report.counts()
        gauge(
            "settings",
            "Settings by verdict.",
            [({"verdict": verdict}, counts.get(verdict, 0)) for verdict in VERDICTS],
        )
        overdue = sum(1 for entry in report.settings if entry.get("overdue"))
        gauge("overdue_settings", "Settings that are pending longer than allowed.", [({}, overdue)])
        shown = [entry for entry in _worst_first(report.settings) if entry["verdict"] != "in_sync"]
        labels = ("owner", "kind", "name", "verdict")
        if shown:
            gauge(
                "setting_verdict",
                "Settings that are not in sync.",
                [({label: entry[label] for label in labels}, 1) for entry in shown[:MAX_DETAIL_SERIES]],
            )
        gauge(
            "omitted_settings",
            "Settings not in sync that have no sample of their own.",
            [({}, max(0, len(shown) - MAX_DETAIL_SERIES))],
        )
    return "\n".join(lines) + "\n"


#: Worst first: what counts as drift, what waits, what somebody answers for, what is merely said.
_ORDER = (
    "drift", "live_drift", "boot_bomb", "unknown", "pending_reboot", "pending_restart", "pending_window",
    "waived", "clamped", "shadowed", "unsupported", "in_sync",
)  # fmt: skip


def _worst_first(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(settings, key=lambda entry: (not entry.get("overdue"), _ORDER.index(entry["verdict"])))


def _place(where: Mapping[str, Any]) -> str:
    """File and line; a file that is one value as a whole has no line."""
    return f"{where['file']}:{where['line']}" if where["line"] else str(where["file"])


def visible(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)


def _or_nothing(value: str | None) -> str:
    return "nothing" if value is None else value


def _short(value: str | None) -> str:
    if value is None:
        return "-"
    return value if len(value) <= _VALUE_WIDTH else value[: _VALUE_WIDTH - 3] + "..."


def _label(text: str) -> str:
    return _printable(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _xml(text: str) -> str:
    """XML 1.0 has no way to write most control characters, not even escaped."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
