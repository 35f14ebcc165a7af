"""What a run in check mode would change, as data (docs/schemas/plan.json) and as a table for people.

Made on the controller from what host_settings returns. A change says from what to what, the class of its
disruption, what it takes to be in force, and the risk that the setting's note names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .model import DISRUPTIONS
from .report import columns, visible

SCHEMA = 1

#: What a change does to a running host, from harmless to worst (rule 12 of the engine).
CLASSES = DISRUPTIONS

#: Verdicts with which the running value is right already: what changes is what the next boot gives.
_LIVE_RIGHT = frozenset({"boot_bomb", "shadowed", "in_sync"})
_VALUE_WIDTH = 60

Notes = Mapping[str, Mapping[str, Mapping[str, str]]]


def of_host(result: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    """One host's plan: worst (a class, null where nothing changes), changes, waiting, unjudged.

    `result` is what host_settings returned in check mode, `notes` is kind -> name -> why, risk, source.
    `waiting` maps restart, reboot and window (the closed market) to the settings that are in force only after
    one, whether this run would change them or they wait already.
    """
    changing = changes(result, notes)
    pending = result.get("pending") or []
    waiting: dict[str, list[str]] = {"restart": [], "reboot": [], "window": []}
    for one in pending:
        what = one["needs"] if one["needs"] in waiting else "window"
        waiting[what].append(f"{one['kind']} {one['name']}")
    classes = [change["class"] for change in changing] + [one["disruption"] for one in pending]
    return {
        "worst": max(classes, key=DISRUPTIONS.index) if classes else None,
        "changes": changing,
        "waiting": waiting,
        "unjudged": [
            {key: one[key] for key in ("owner", "kind", "name", "reason")}
            for one in result.get("settings") or []
            if one["verdict"] == "unknown"
        ],
    }


def changes(result: Mapping[str, Any], notes: Notes) -> list[dict[str, Any]]:
    """What host_settings changed, or in check mode would change, and what it gave back."""
    found = [_change(one, notes) for one in result.get("settings") or [] if one.get("changed")]
    return found + [_given_back(one) for one in result.get("undone") or []]


def _change(one: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    before = one.get("before") or {}
    was = _stands(one["kind"], before)
    return {
        "owner": one["owner"],
        "kind": one["kind"],
        "name": one["name"],
        "from": _masked(was),
        "to": _masked(one["desired"]),
        "live": before.get("verdict") not in _LIVE_RIGHT and was != one["desired"],
        "given_back": False,
        "class": one["disruption"],
        "needs": one["needs"],
        "risk": notes.get(one["kind"], {}).get(one["name"], {}).get("risk"),
    }


def _stands(kind: str, planes: Mapping[str, Any]) -> str | None:
    """The live value, or the persisted one where there is no other."""
    found = [planes.get("live"), planes.get("persisted")]
    if kind == "service":  # its planes are words that stand side by side
        return " ".join(str(plane) for plane in reversed(found) if plane is not None) or None
    return next((plane for plane in found if plane is not None), None)


def _given_back(one: Mapping[str, Any]) -> dict[str, Any]:
    """A setting that nobody asks for any more; the ledger says what it was."""
    now = one["from"]
    found, shall = _stands(one["kind"], now), _stands(one["kind"], one)
    return {
        "owner": one["owner"],
        "kind": one["kind"],
        "name": one["name"],
        "from": _masked(found),
        "to": _masked(shall),
        "live": now["live"] is None or now["live"] != one["live"],
        "given_back": True,
        "class": str(one.get("disruption", "silent")),
        "needs": one.get("needs", "none"),
        "risk": None,
    }


def _masked(value: str | None) -> str | None:
    """A secret file is named only: not even its keyed digest is told."""
    return None if value is None else re.sub(r"\Ahmac-sha256:[0-9a-f]+", "(secret)", value)


def change_text(change: Mapping[str, Any]) -> str:
    """`role: kind name: from -> to`; of files only what happens to them, since their content is a digest."""
    head = f"{change['owner']}: {change['kind']} {change['name']}"
    if change["given_back"]:
        if change["kind"] == "file":
            return f"{head}: given back -> as it was"
        return f"{head}: {_short(change['from'])} -> {_short(change['to'])} (given back)"
    if change["kind"] == "file":
        return f"{head}: {_file_change(change['from'], change['to'])}"
    kept = "" if change["live"] else " (to be kept at the next boot)"
    return f"{head}: {_short(change['from'])} -> {_short(change['to'])}{kept}"


def _file_change(was: str | None, shall: str) -> str:
    if was is None:
        return "absent -> written"
    (content, *mode), (new_content, *new_mode) = was.split(" ", 1), shall.split(" ", 1)
    words = ["other content"] if content != new_content else []
    words += [f"{' '.join(mode)} -> {' '.join(new_mode)}"] if mode != new_mode else []
    return ", ".join(words) or "written anew"


def lines(plans: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The plans of all hosts for people: hosts with the same plan share one table."""
    alike: dict[str, list[str]] = {}
    for host in sorted(plans):
        alike.setdefault(json.dumps(plans[host], sort_keys=True), []).append(host)
    found: list[str] = []
    # What needs no look goes last.
    for hosts in sorted(alike.values(), key=lambda same: not _eventful(plans[same[0]])):
        found += [*([""] if found else []), *_table(hosts, plans[hosts[0]])]
    return found


def _eventful(plan: Mapping[str, Any]) -> bool:
    return bool(plan["changes"] or plan["unjudged"] or any(plan["waiting"].values()))


def _table(hosts: Sequence[str], plan: Mapping[str, Any]) -> list[str]:
    if not _eventful(plan):
        return [f"{who(hosts)}: nothing to change"]
    found = [who(hosts)]
    if plan["changes"]:
        rows = [("CHANGE", "CLASS", "NEEDS", "RISK")]
        for change in plan["changes"]:
            needs = "-" if change["needs"] == "none" else change["needs"]
            rows.append((change_text(change), change["class"], needs, change["risk"] or "-"))
        found += [f"  {line}" for line in columns(rows)]
    unjudged: dict[tuple[str, str], int] = {}
    for one in plan["unjudged"]:
        key = (one["owner"], one["reason"])
        unjudged[key] = unjudged.get(key, 0) + 1
    found += [
        f"  cannot be said yet: {owner}: {count} settings: {reason}"
        for (owner, reason), count in unjudged.items()
    ]
    worst = f"worst class: {plan['worst']}" if plan["worst"] else "nothing to change"
    return [visible(line) for line in [*found, f"  {worst}; {_waiting(plan['waiting'])}"]]


def _waiting(waiting: Mapping[str, Sequence[str]]) -> str:
    said = {"restart": "needs a restart", "reboot": "needs a reboot", "window": "waits for the closed market"}
    words = [f"{said[what]}: {_few(names)}" for what, names in waiting.items() if names]
    return "; ".join(words) or "nothing needs a restart or reboot"


def _few(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def who(hosts: Sequence[str]) -> str:
    """One host by name; several by their number, the first ones named."""
    return hosts[0] if len(hosts) == 1 else f"{len(hosts)} hosts: {_few(hosts)}"


def _short(value: str | None) -> str:
    if not value:
        return "not set" if value is None else "(empty)"
    return value if len(value) <= _VALUE_WIDTH else value[: _VALUE_WIDTH - 3] + "..."


def document(
    plans: Mapping[str, Mapping[str, Any]],
    *,
    run: Mapping[str, Any],
    unreachable: Iterable[str],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """docs/schemas/plan.json. `failed` maps the hosts that could not be planned to why."""
    return {
        "schema": SCHEMA,
        "run": dict(run),
        "hosts": {host: plans[host] for host in sorted(plans)},
        "failed": dict(sorted(failed.items())),
        "unreachable": sorted(unreachable),
    }
