"""Waivers: deviations that somebody answers for, until a stated instant.

/etc/hosttune/waivers.json: {"schema": 1, "waivers": [WAIVER]}, where a waiver has kind, name, owner, reason,
ticket and expires; `expires` an instant in UTC such as 2026-12-31T23:59:59Z. `name` may hold shell globs.
"""

from __future__ import annotations

import datetime
import fnmatch
from typing import Any

from .store import Damaged, load_json
from .system import System

PATH = "/etc/hosttune/waivers.json"
FIELDS = ("kind", "name", "owner", "reason", "ticket", "expires")


def load(system: System) -> list[dict[str, Any]]:
    """The waivers of this host; raises Damaged for a file that is not as above."""
    found = load_json(system, PATH, "waiver file")
    waivers = (found or {}).get("waivers", [])
    if not isinstance(waivers, list) or not all(isinstance(waiver, dict) for waiver in waivers):
        raise Damaged("'waivers' is no list of waivers", thing=PATH, remedy="Write it as docs/drift.md shows")
    for waiver in waivers:
        missing = [field for field in FIELDS if not waiver.get(field)]
        if missing:
            raise Damaged(
                f"a waiver of {waiver.get('name', '?')} has no {', '.join(missing)}",
                thing=PATH,
                remedy="Give every waiver all fields",
            )
        expiry(waiver)
    return waivers


def expiry(waiver: dict[str, Any]) -> datetime.datetime:
    """The instant a waiver ends; raises Damaged for a text that is not one in UTC."""
    try:
        return datetime.datetime.strptime(waiver["expires"], "%Y-%m-%dT%H:%M:%SZ").replace(
            tzinfo=datetime.timezone.utc
        )
    except ValueError:
        raise Damaged(
            f"the waiver of {waiver['name']} expires at '{waiver['expires']}'",
            thing=PATH,
            remedy="Write an instant in UTC such as 2026-12-31T23:59:59Z",
        ) from None


def covering(
    waivers: list[dict[str, Any]], kind: str, name: str, now: datetime.datetime
) -> dict[str, Any] | None:
    """The unexpired waiver of this setting, if any."""
    for waiver in waivers:
        if waiver["kind"] == kind and fnmatch.fnmatchcase(name, waiver["name"]) and now < expiry(waiver):
            return waiver
    return None
