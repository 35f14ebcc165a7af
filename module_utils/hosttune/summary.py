"""What a run found and did, in lines: verdicts by role, changes, services; hosts that are alike share theirs.

`Result` is what the module host_settings returned for one host.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .plan import change_text, changes

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

Result = Mapping[str, Any]


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
    """What the call changed, before and after."""
    return [change_text(one) for one in changes(result, {})]


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
    own = [one for one in services if one["verdict"] != "unsupported"]
    asked = [one for one in own if "active" in one["desired"].split()]
    up = [one["name"] for one in asked if "active" in str(one.get("live")).split()]
    down = [one["name"] for one in asked if one["name"] not in up]
    words = ([f"up: {', '.join(up)}"] if up else []) + ([f"NOT up: {', '.join(down)}"] if down else [])
    return ["; ".join(words)] if words else []
