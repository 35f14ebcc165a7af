"""The form of a call: that it says owner, kind, name and value, before anybody asks what they mean.

What a name or value means is each kind's business (Kind.text, Kind.check). Here is what no kind can take: a
list where names belong, a name that is no text, an owner that would leave its folder. And what of a call
nobody may see.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from . import kinds
from .kinds.base import did_you_mean
from .model import BOOT_TRIALS, CONFIRMED, DISRUPTIONS, Refusal, is_one_line, shown

#: An owner's name is part of the names of its files.
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
#: The longest name of a file, of a unit and of anything below /proc and /sys; and of a whole path, in bytes.
LONGEST_PART, LONGEST_NAME = 255, 4095

_FORM = "Give owner, kind, name, value, one below the other"


def check(
    owners: object,
    *,
    present: bool,
    partial: bool,
    kinds_of_undo: object,
    disruption_allowed: str,
    notes: object,
    packages: object,
    foreign: object,
    boot_trial: str = "none",
) -> None:
    """Raises Refusal for a call that has not the form of host_settings (see its documentation)."""
    if disruption_allowed not in DISRUPTIONS:
        raise Refusal(
            f"'{disruption_allowed}' is no class of disruption",
            thing="disruption_allowed",
            remedy=did_you_mean(str(disruption_allowed), DISRUPTIONS)
            or f"Classes are {', '.join(DISRUPTIONS)}",
        )
    if boot_trial not in (*BOOT_TRIALS, CONFIRMED):
        raise Refusal(
            f"'{boot_trial}' is no way to bring in a kernel command line",
            thing="boot_trial",
            remedy=f"Use {', '.join(BOOT_TRIALS)}",
        )
    _check_kinds(kinds_of_undo, present)
    for owner, by_kind in _mapping(owners, "owners", _FORM).items():
        if not isinstance(owner, str) or not _OWNER.match(owner):
            raise Refusal(
                "is no name of an owner, which is part of the names of its files",
                thing=f"owner '{shown(owner)[:80]}'",
                remedy="Name the role: letters, digits, dash and underscore, such as kernel",
            )
        if present:
            _check_owner(owner, by_kind)
    if present and partial and not owners:
        raise Refusal("names no owner", thing="owners", remedy="Name the roles that the call speaks for")
    for kind, names in _mapping(notes, "notes", "Give kind, name, then a dict of text").items():
        for note in _mapping(names, f"notes of {kind}", "Give a dict of text for each name").values():
            _mapping(note, f"notes of {kind}", "Give a dict of text for each name")
    for owner, wanted in _mapping(packages, "packages", "Give a list of packages for each owner").items():
        _strings(wanted, f"packages of {owner}", "Give a list of packages")
    _mapping(foreign, "settings_foreign", "Give a word for each name")


def _check_kinds(asked: object, present: bool) -> None:
    for kind in _strings(asked, "kinds", "Give a list of kinds"):
        if kind not in kinds.ORDER:
            raise kinds.unknown(kind, "kinds")
    if asked and present:
        raise Refusal(
            "are of state absent only: a call says all there is to say of its owners",
            thing="kinds",
            remedy="Leave them out, or undo these kinds with state absent",
        )


def _check_owner(owner: str, by_kind: object) -> None:
    for kind, names in _mapping(by_kind, f"owner {owner}", _FORM).items():
        if kind not in kinds.ORDER:
            raise kinds.unknown(kind, f"owner {owner}")
        for name in _mapping(names, f"owner {owner}, {kind}", "Give names with their values"):
            _check_name(kind, name)


def _check_name(kind: str, name: object) -> None:
    if not isinstance(name, str):
        raise Refusal(
            f"the name is {_type(name)}, and a name is text",
            thing=f"{kind} {shown(name)}",
            remedy="Put the name in quotes",
        )
    if not name:
        raise Refusal("a setting has an empty name", thing=kind, remedy="Name it, or leave it out")
    if not is_one_line(name):
        raise Refusal(
            "the name has a line break or another character that no name has",
            thing=f"{kind} {shown(name)[:200]}",
            remedy="Correct it in the inventory",
        )
    if len(name.encode()) > LONGEST_NAME or any(
        len(part.encode()) > LONGEST_PART for part in name.split("/")
    ):
        raise Refusal(
            "the name is too long",
            thing=f"{kind} {name[:100]}...",
            remedy=f"At most {LONGEST_PART} bytes between slashes, and {LONGEST_NAME} in all",
        )


def secrets(options: object) -> set[str]:
    """What nothing may show: the content of every secret file in a call, as it is and as JSON has it.

    A dict may come as JSON text, which Ansible reads as the dict. Never holds a blank text: hiding that would
    hide everything.
    """
    if isinstance(options, str) and options.lstrip().startswith("{"):
        try:
            options = json.loads(options)
        except ValueError:
            return set()
    if not isinstance(options, Mapping):
        return set()
    found = set[str]().union(*(secrets(inner) for inner in options.values()))
    content = str(options.get("content") or "")
    if options.get("secret") and content.strip():
        found |= {content, content.strip(), json.dumps(content)[1:-1]}
    return found


def _mapping(found: object, thing: str, remedy: str) -> Mapping[Any, Any]:
    if not isinstance(found, Mapping):
        raise Refusal(f"is {_type(found)}, and has to be a dict", thing=thing, remedy=remedy)
    return found


def _strings(found: object, thing: str, remedy: str) -> list[str]:
    if not isinstance(found, (list, tuple)):
        raise Refusal(f"is {_type(found)}, and has to be a list", thing=thing, remedy=remedy)
    for one in found:
        if not isinstance(one, str):
            raise Refusal(f"{shown(one)} is {_type(one)}, and has to be text", thing=thing, remedy=remedy)
    return list(found)


def _type(value: object) -> str:
    if value is None:
        return "null"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
