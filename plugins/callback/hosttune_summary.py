"""What a run found and did, as a table a person reads and as a report a program reads."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: hosttune_summary
type: aggregate
short_description: Table of settings, services, pending changes, validation and releases at the end of a run
description:
  - Looks at results of the modules host_settings, host_validation and orchestrator_release only.
  - Writes C(reports/RUN/settings.json) beside C(ansible.cfg). The modules keep secrets out of their results.
  - Names the run (E(HOSTTUNE_RUN_ID), E(HOSTTUNE_COMMIT), E(HOSTTUNE_OPERATOR)) where nobody has, so that
    hosts and reports record the same name.
requirements:
  - enabled by C(callbacks_enabled) in ansible.cfg
"""

MODULES = ("host_settings", "host_validation", "orchestrator_release")

#: Columns of the table of settings, in this order; verdicts that nobody has are left out.
VERDICTS = (
    "in_sync",
    "shadowed",
    "clamped",
    "unsupported",
    "waived",
    "pending_restart",
    "pending_reboot",
    "pending_window",
    "boot_bomb",
    "live_drift",
    "drift",
    "unknown",
)
BAD = ("boot_bomb", "live_drift", "drift", "unknown")
#: Lines of one kind shown in full; the report has all.
MOST_LINES = 12

Result = Mapping[str, Any]


def name_the_run(root: Path) -> dict[str, str]:
    """Run id, commit and operator, put into the environment where they are not yet."""
    found = {
        "HOSTTUNE_RUN_ID": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{os.getpid()}",
        "HOSTTUNE_OPERATOR": os.environ.get("SUDO_USER") or getpass.getuser(),
    }
    if "HOSTTUNE_COMMIT" not in os.environ:
        found["HOSTTUNE_COMMIT"] = _commit(root)
    for name, value in found.items():
        os.environ.setdefault(name, value)
    return {name: os.environ[f"HOSTTUNE_{name.upper()}"] for name in ("run_id", "commit", "operator")}


def _commit(root: Path) -> str:
    try:
        ended = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout.strip()


def grid(rows: Iterable[Iterable[object]]) -> list[str]:
    """Rows as aligned lines: the first column to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column and (cell.isdigit() or not cell) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in cells
    ]


def names(hosts: list[str]) -> str:
    """Hosts in a few words: all of them up to three, else the first and how many."""
    return ", ".join(hosts) if len(hosts) <= 3 else f"{hosts[0]} and {len(hosts) - 1} more"


def verdict_table(hosts: Mapping[str, Result]) -> list[str]:
    """Settings by role, a column a verdict; hosts that look alike share their lines."""
    counted: dict[str, dict[str, Counter[str]]] = {}
    for host, result in sorted(hosts.items()):
        for one in result.get("settings") or []:
            counted.setdefault(host, {}).setdefault(one["owner"], Counter())[one["verdict"]] += 1
    if not counted:
        return []
    like: dict[str, list[str]] = {}
    for host, by_owner in counted.items():
        like.setdefault(json.dumps(by_owner), []).append(host)
    columns = [
        name
        for name in VERDICTS
        if any(counts[name] for found in counted.values() for counts in found.values())
    ]
    rows: list[list[object]] = [["host", "role", "settings", *columns]]
    for same in like.values():
        for row, (owner, counts) in enumerate(counted[same[0]].items()):
            cells = [counts[name] or "" for name in columns]
            rows.append(["" if row else names(same), owner, sum(counts.values()), *cells])
    return grid(rows)


def alike(lines: Mapping[str, list[str]]) -> list[str]:
    """Lines of several hosts, each said once with the hosts it is of."""
    hosts_of: dict[str, list[str]] = {}
    for host, said in lines.items():
        for line in said:
            hosts_of.setdefault(line, []).append(host)
    everybody = len(lines)
    found = []
    for line, hosts in hosts_of.items():
        if everybody == 1 or len(hosts) == everybody:
            found.append(line if everybody == 1 else f"{line}  (all hosts)")
        else:
            found.append(f"{line}  ({names(hosts)})")
    return found


def change_lines(result: Result) -> list[str]:
    """What the call changed or (check mode) would change, before and after."""
    found = []
    for one in result.get("settings") or []:
        if one.get("changed"):
            before = one.get("before") or {}
            planes = [before.get("live"), before.get("persisted")]
            if one["kind"] == "service":  # its planes are words that stand side by side
                planes = [" ".join(str(plane) for plane in reversed(planes) if plane is not None)]
            was = next((plane for plane in planes if plane is not None), None)
            if one["kind"] == "file":
                found.append(f"{one['owner']}: file {one['name']}")
                continue
            same = "" if was != one["desired"] else " (to be kept at the next boot)"
            was_text = "not set" if was is None else was
            found.append(f"{one['owner']}: {one['kind']} {one['name']}: {was_text} -> {one['desired']}{same}")
    for one in result.get("undone") or []:
        given = one.get("live") if one.get("live") is not None else one.get("persisted")
        shown = "not set" if given is None else "as it was" if one["kind"] == "file" else given
        found.append(f"{one['owner']}: {one['kind']} {one['name']} given back: {shown}")
    return found


def unknown_lines(result: Result) -> list[str]:
    """What check mode could not judge, counted by role and reason."""
    counted = Counter(
        (one["owner"], one["reason"]) for one in result.get("settings") or [] if one["verdict"] == "unknown"
    )
    return [f"{owner}: {count} settings: {reason}" for (owner, reason), count in counted.items()]


def foreign_lines(result: Result) -> list[str]:
    """Foreign owners that something was decided about or that may come to fight, and what they were left."""
    found = []
    for one in result.get("foreign") or []:
        if one["decision"] == "none" and one["weight"] != "warning":
            continue
        package = f" ({one['package']})" if one["package"] else ""
        more = f" and {len(one['affects']) - 3} more" if one["affects"][3:] else ""
        affects = f" [{', '.join(one['affects'][:3])}{more}]" if one["affects"] else ""
        found.append(f"{one['owner']}{package}: {one['decision']}: {one['reason']}{affects}. {one['remedy']}")
    found += [
        f"{one['owner']}: {one['kind']} {one['name']}: {one['left']}" for one in result.get("left") or []
    ]
    return found


def service_lines(result: Result) -> list[str]:
    """Services that were asked to run, and which of them do."""
    services = [one for one in result.get("settings") or [] if one["kind"] == "service"]
    asked = [one for one in services if "active" in one["desired"].split()]
    up = [one["name"] for one in asked if "active" in str(one.get("live")).split()]
    down = [one["name"] for one in asked if one["name"] not in up]
    words = ([f"up: {', '.join(up)}"] if up else []) + ([f"NOT up: {', '.join(down)}"] if down else [])
    return ["; ".join(words)] if words else []


class CallbackModule(CallbackBase):
    """Collects while the run goes on, prints at its end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "hosttune_summary"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(C.CONFIG_FILE).parent if C.CONFIG_FILE else Path.cwd()
        self.run = name_the_run(self.root)
        self.playbook = ""
        #: module -> host -> its last result
        self.results: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in MODULES}
        #: what host_settings changed in all its calls of this run, by host
        self.changes: dict[str, list[str]] = {}
        self.checked = False

    # collecting

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self.playbook = Path(playbook._file_name).name

    def v2_runner_on_ok(self, result: Any) -> None:
        self._collect(result, failed=False)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._collect(result, failed=True)

    def _collect(self, result: Any, *, failed: bool) -> None:
        module = str(result.task.action).rsplit(".", 1)[-1]
        if module not in self.results:
            return
        host = result.host.name
        found = {**result.result, "task_failed": failed}
        for internal in ("invocation", "diff", "ansible_facts"):
            found.pop(internal, None)
        self.results[module][host] = found
        if module == "host_settings":
            self.checked = self.checked or bool(result.task_fields.get("check_mode"))
            self.changes.setdefault(host, []).extend(change_lines(found))

    # telling

    def v2_playbook_on_stats(self, stats: Any) -> None:
        if not any(self.results.values()) and not stats.dark:
            return
        error, warning = C.COLOR_ERROR, C.COLOR_WARN
        settings = self.results["host_settings"]
        self._head()
        self._lines(verdict_table(settings))
        changes = alike({host: self.changes.get(host, []) for host in settings})
        self._list("Would change" if self.checked else "Changed", changes, short=not self.checked)
        if self.checked:
            self._list(
                "Cannot be said yet", alike({host: unknown_lines(one) for host, one in settings.items()})
            )
        else:
            self._list("Services", alike({host: service_lines(one) for host, one in settings.items()}))
        foreign = alike({host: foreign_lines(one) for host, one in settings.items()})
        self._list("Foreign owners", foreign, warning)
        self._list("Wrong", alike({host: self._wrong(one) for host, one in settings.items()}), error)
        self._list("Pending", alike({host: self._pending(one) for host, one in settings.items()}), warning)
        self._list("Failed", alike({host: self._failures(host) for host in self._hosts()}), error)
        moved = [host for host, one in settings.items() if one.get("topology_matches") is False]
        self._list("No longer the machine the values were computed for", moved, error)
        checked = self.results["host_validation"].items()
        self._list("Validation", [self._validation(host, one) for host, one in sorted(checked)])
        released = self.results["orchestrator_release"].items()
        self._list("Releases", [self._release(host, one) for host, one in sorted(released)])
        self._list("Unreachable", sorted(stats.dark), C.COLOR_UNREACHABLE)
        self._list("Report", [self._write(sorted(stats.dark), sorted(stats.failures))])

    def _hosts(self) -> list[str]:
        return sorted({host for found in self.results.values() for host in found})

    def _wrong(self, result: Result) -> list[str]:
        if self.checked:
            return []
        return [
            f"{one['owner']}: {one['kind']} {one['name']} is {one['verdict']}: {one['reason']}"
            for one in result.get("settings") or []
            if one["verdict"] in BAD
        ]

    def _pending(self, result: Result) -> list[str]:
        return [
            f"{one['owner']}: {one['kind']} {one['name']} waits for a {one['needs']}: {one['reason']}"
            for one in result.get("pending") or []
        ]

    def _failures(self, host: str) -> list[str]:
        return [
            f"{module}: {found[host].get('msg', 'no message')}"
            for module, found in self.results.items()
            if host in found and found[host]["task_failed"]
        ]

    def _validation(self, host: str, result: Result) -> str:
        counts = result.get("counts") or {
            name: result[name] for name in ("passed", "failed", "skipped") if name in result
        }
        said = ", ".join(f"{count} {name}" for name, count in counts.items() if not isinstance(count, bool))
        where = result.get("junit") or result.get("report") or ""
        return f"{host}: {said}{f'  ({where})' if where else ''}"

    def _release(self, host: str, result: Result) -> str:
        now, before = result.get("current") or result.get("release") or "?", result.get("previous")
        return f"{host}: {now}{f', before it {before}' if before else ''}"

    # printing

    def _head(self) -> None:
        mode = " (check mode: nothing was touched)" if self.checked else ""
        commit = f", commit {self.run['commit']}" if self.run["commit"] else ""
        self._display.banner(f"HOSTTUNE {self.playbook}: run {self.run['run_id']}{commit}{mode}")

    def _lines(self, lines: Iterable[str], color: str | None = None) -> None:
        for line in lines:
            self._display.display(line, color=color)

    def _list(self, title: str, lines: list[str], color: str | None = None, *, short: bool = True) -> None:
        if not lines:
            return
        self._display.display("")
        self._display.display(title, color=color)
        shown = lines[:MOST_LINES] if short else lines
        self._lines((f"  {line}" for line in shown), color)
        if len(lines) > len(shown):
            self._display.display(f"  and {len(lines) - len(shown)} more, in the report")

    def _write(self, unreachable: list[str], failed: list[str]) -> str:
        folder = self.root / "reports" / self.run["run_id"]
        report = {
            "schema": 1,
            "playbook": self.playbook,
            "check_mode": self.checked,
            **self.run,
            "unreachable": unreachable,
            "failed": failed,
            "changes": self.changes,
            **{module: found for module, found in self.results.items() if found},
        }
        path = folder / "settings.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
        except OSError as error:
            return f"could not be written to {path}: {error.strerror}"
        return str(path.relative_to(self.root))
