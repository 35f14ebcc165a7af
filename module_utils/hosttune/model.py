"""The words of the engine as data: settings, planes, judgements and refusals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: What makes a persisted value the live one.
NEEDS = ("none", "reload", "restart", "reboot")

#: What making a value live does to a running host, the mildest first (DESIGN, rule 12).
DISRUPTIONS = ("silent", "moves", "resets", "restarts", "reboots")

#: How a change of the kernel's command line comes in: at once, or by a trial boot (trial.py) that the host
#: itself or the controller confirms; and what confirming it asks for.
BOOT_TRIALS = ("none", "host", "controller")
CONFIRMED = "confirmed"

#: Who manages the files we write; every managed file says so in its first line.
MANAGED_BY = "Managed by hosttune"


class Refusal(Exception):
    """Bad input or an impossible demand: the thing, what is wrong with it, and what to do.

    Raised before anything is touched; modules add the host's name.
    """

    def __init__(self, message: str, *, thing: str = "", remedy: str = "") -> None:
        self.message, self.thing, self.remedy = message, thing, remedy
        text = f"{thing}: {message}" if thing else message
        super().__init__(f"{text}. {remedy}" if remedy else text)


@dataclass(frozen=True)
class Setting:
    """One knob on one host. `value` is text as the system prints it, runs of blanks as one space."""

    owner: str
    kind: str
    name: str
    value: str
    #: what the inventory asked for, where the kind needs more than text (kind file: content, mode, ...)
    asked: Any = None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return (self.kind, self.name)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Definition:
    """One place that defines a setting's persisted value."""

    value: str
    file: str
    line: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {"value": self.value, "file": self.file, "line": self.line}


@dataclass
class Planes:
    """Where a value stands now.

    `definitions` are all persisted ones in the order the system reads them; the last one wins, unless the
    kind set `winner`. `live` and `process` are None where the kind has no such plane or nothing runs.
    """

    live: str | None = None
    definitions: list[Definition] = field(default_factory=list)
    process: str | None = None
    has_live: bool = True
    has_persisted: bool = True
    #: could not be read, with the reason; never counted as good
    unknown: str = ""
    #: this host has no such knob (or it is not its own), with the reason
    unsupported: str = ""
    #: why the next boot or restart will take none of the definitions (a file that cannot be read)
    broken: str = ""
    #: definitions that decide for some users of the setting only, whatever the host's own value is
    partly: list[Definition] = field(default_factory=list)
    #: what it takes until a persisted value is live
    needs: str = "none"
    #: why the live value is left as it is for now: the class of its disruption is not allowed
    waits: str = ""
    #: the value stands ready and is not what the next boot has: how its trial boot stands
    trial: str = ""
    #: what the next boot reads was not made yet from the files that say so: `activate` makes it
    stale: bool = False
    #: said of the persisted value instead of "FILE:LINE says VALUE"
    where: str = ""
    #: said beside the verdict whatever it is
    note: str = ""

    @property
    def winner(self) -> Definition | None:
        return self.definitions[-1] if self.definitions else None

    @property
    def overridden(self) -> list[Definition]:
        return self.definitions[:-1]

    def persisted_dict(self) -> dict[str, Any]:
        winner = self.winner
        return {
            "value": winner.value if winner else None,
            "file": winner.file if winner else None,
            "line": winner.line if winner else None,
            "overridden": [one.as_dict() for one in self.overridden],
        }


@dataclass(frozen=True)
class FileImage:
    """A whole file: what stands at a path, or shall."""

    content: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    secret: bool = False


@dataclass(frozen=True)
class Change:
    """One value to set that no file of ours sets: to the desired one, or (undo) to what was there before."""

    name: str
    value: str
    asked: Any = None
    undo: bool = False
    #: what runs is left as it is (its disruption is not allowed now), only the next boot's value is set
    persist_only: bool = False


def is_one_line(text: str) -> bool:
    """Whether a text has no control character and is whole: it can be written to any file as it stands."""
    return not any(ord(char) < 32 or 127 <= ord(char) < 160 or 0xD800 <= ord(char) < 0xE000 for char in text)


def shown(value: Any) -> str:
    """A value for a message: on one line, whatever is in it."""
    text = str(value)
    return text if is_one_line(text) else text.encode("unicode_escape", "backslashreplace").decode()


@dataclass(frozen=True)
class Call:
    """What a call is about to do, as far as it decides what a running process has afterwards."""

    #: files that it writes or gives back
    files: frozenset[str] = frozenset()
    #: services that it stops
    stops: frozenset[str] = frozenset()
    #: the setting is given back: nothing of ours says so any more, and its value is what is live then
    undo: bool = False


def squeeze(text: str) -> str:
    """Runs of blanks as one space, ends stripped: the form in which values are compared and reported."""
    return " ".join(text.split())


def octal_in_quotes(kind: str, name: str, value: Any) -> Refusal:
    """What is said of a number where octal text belongs: YAML has turned 0644 into 420 before we see it."""
    meant = f', such as "{value:04o}" if 0{value:o} stands there' if type(value) is int and value >= 0 else ""
    return Refusal(
        f"{value} is a number, and this takes octal text",
        thing=f"{kind} {name}",
        remedy=f"Put it in quotes in the inventory{meant}",
    )


def as_text(kind: str, name: str, value: Any) -> str:
    """The text of a value from the inventory.

    YAML has turned `off` into false before a module sees it, so a boolean where text belongs is a mistake
    that must not be guessed at.
    """
    if isinstance(value, bool):
        raise Refusal(
            f"the value is the boolean {str(value).lower()}, but this kind takes text",
            thing=f"{kind} {name}",
            remedy='Put it in quotes in the inventory, as the system prints it: "on", "off", "0", "1"',
        )
    if value is None:
        raise Refusal("has no value", thing=f"{kind} {name}", remedy="Give one, or leave the name out")
    if isinstance(value, (str, int, float)):
        text = str(value)
        for char in text:
            if char not in "\t\r\n" and not is_one_line(char):
                raise Refusal(
                    f"{shown(char)} in its value is a control character or half of one",
                    thing=f"{kind} {name}",
                    remedy="Correct it in the inventory",
                )
        return squeeze(text)
    raise Refusal(
        f"the value is a {type(value).__name__}, but this kind takes text",
        thing=f"{kind} {name}",
        remedy="Write one quoted value",
    )
