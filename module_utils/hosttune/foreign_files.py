"""Lines of other hands that define our settings: which win, and how their files look without them.

Who wins is asked of the kinds themselves: they read a view of the host in which our files stand and the lines
that the suite took over are in force again, then once more without the lines that won, until ours do. What is
left out in the end is what has to go, and that it suffices has been seen by the same eyes.

A line is taken over by putting MARK before it. A file in /etc is changed in place; one that a package keeps
below /usr/lib (or a program below /run) is masked the native way, by a copy of the same name below /etc.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from . import kinds
from .kinds.base import Kind
from .model import MANAGED_BY, Definition, FileImage, Planes, Setting
from .system import Ran, System

#: Kinds whose definitions stand one a line in files that anybody may add to.
KINDS = ("module", "sysctl", "sysfs", "hugepages", "block", "limit", "manager", "unit")
MARK = "# hosttune took over: "
_COPY = f"# {MANAGED_BY}: a copy that masks "
_FOLDERS = ("/run/", "/usr/local/lib/", "/usr/lib/", "/lib/")
#: Below /run, and yet nothing in /etc takes their place: they are stronger, or a generator makes them again.
_STRONGER = ("/run/systemd/transient/", "/run/systemd/generator", "/run/systemd/system.control/")
#: More rounds than files can hide behind each other.
_MOST_ROUNDS = 50


@dataclass
class Found:
    """A foreign file with lines that define our settings."""

    file: str
    #: where its place in /etc is, empty where there is none
    target: str = ""
    #: settings whose value it would decide, with what it says
    wins: dict[tuple[str, str], Definition] = field(default_factory=dict)
    #: settings that it defines in vain
    loses: dict[tuple[str, str], Definition] = field(default_factory=dict)


class View(System):
    """The host with some files otherwise. Nothing can be written through it."""

    def __init__(self, base: System) -> None:
        super().__init__(base.root)
        self.base = base
        self.files: dict[str, str] = {}

    def read(self, path: str) -> str:
        real = self.real(path)
        if real in self.files:
            return self.files[real]
        text = self.base.read(path)
        if text.startswith(_COPY):
            masked = self.masked(text)
            return self.base.read(masked) if self.base.exists(masked) else ""
        if MARK in text:
            return "\n".join(_unmarked(line) for line in text.split("\n"))
        return text

    def exists(self, path: str) -> bool:
        return self.real(path) in self.files or self.base.exists(path)

    def names(self, folder: str) -> list[str]:
        real = self.real(folder)
        more = {os.path.basename(path) for path in self.files if os.path.dirname(path) == real}
        return sorted({*self.base.names(folder), *more})

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        return self.base.run(*argv, stdin=stdin, timeout=timeout)

    def write_value(self, path: str, value: str) -> None:
        raise PermissionError(1, "a view is only read", path)

    def real(self, path: str) -> str:
        """The path with links followed, below the root folder."""
        if self.root == "/":
            return os.path.realpath(path)
        real = os.path.realpath(self.path(path))
        root = os.path.realpath(self.root)
        return real[len(root) :] if real.startswith(root + "/") else path

    @staticmethod
    def masked(text: str) -> str:
        """The file that a masking copy of ours stands for."""
        return text.partition("\n")[0][len(_COPY) :].partition(" ")[0]

    def origin(self, file: str) -> str:
        """The file itself, or the one that our copy masks."""
        try:
            text = self.files.get(self.real(file)) or self.base.read(file)
        except OSError:
            return file
        return self.masked(text) if text.startswith(_COPY) else file

    def called(self, file: str, names: frozenset[str]) -> bool:
        """Whether one of these paths means this file: its own, the one it links to, or the one it masks."""
        return bool(names) and bool({file, self.real(file), self.origin(file)} & names)

    def target(self, file: str) -> str:
        """The path in /etc at which the lines of `file` can be taken out; empty where there is none."""
        real = self.real(file)
        if real.startswith("/etc/"):
            return real
        if file.startswith(_STRONGER):
            return ""
        for folder in _FOLDERS:
            if file.startswith(folder):
                return self.real("/etc/" + file[len(folder) :])
        return ""

    def take_out(self, file: str, lines: Sequence[int]) -> bool:
        """Marks these lines (counted from 1), continued ones to their end; False where that cannot be."""
        target = self.target(file)
        if not target:
            return False
        rows = self.read(file).split("\n")
        for number in lines:
            at = number - 1
            while at < len(rows):
                if not rows[at].startswith(MARK):
                    rows[at] = MARK + rows[at]
                if not rows[at].endswith("\\"):
                    break
                at += 1
        text = "\n".join(rows)
        origin = self.origin(file)
        if origin != target and not origin.startswith("/etc/") and not text.startswith(_COPY):
            text = f"{_COPY}{origin} without the lines that fight for settings of the suite.\n{text}"
        self.files[target] = text
        return True


def _unmarked(line: str) -> str:
    return line[len(MARK) :] if line.startswith(MARK) else line


def survey(
    system: System,
    settings: Sequence[Setting],
    planes: Mapping[tuple[str, str], Planes],
    files: Mapping[str, FileImage],
    ours: frozenset[str],
    asked: frozenset[str],
    held: bool,
) -> tuple[list[Found], View]:
    """The foreign files that define these settings, and the view in which none of them wins.

    `files` are ours as they shall be, `ours` the paths of all our files, `asked` files the operator speaks of
    by name (all their lines count), `held`: whether some lines are taken over already.
    """
    view = View(system)
    found: dict[str, Found] = {}
    by_kind: dict[str, list[Setting]] = {}
    for setting in settings:
        if setting.kind in KINDS:
            by_kind.setdefault(setting.kind, []).append(setting)
    for name, mine in by_kind.items():
        kind = kinds.load(name, system)
        if held or any(_open(view, kind, one, planes[one.key], ours, asked) for one in mine):
            for path, image in files.items():
                view.files.setdefault(view.real(path), image.content.decode("utf-8", "surrogateescape"))
            _outcome(view, name, mine, ours, asked, found)
        else:
            for setting in mine:
                for definition in planes[setting.key].definitions:
                    _note(view, found, setting, definition, ours, wins=False)
    return [found[file] for file in sorted(found)], view


def _open(
    view: View,
    kind: Kind,
    setting: Setting,
    planes: Planes,
    ours: frozenset[str],
    asked: frozenset[str],
) -> bool:
    """Whether it takes a look at the view to say who wins."""
    files = {one.file for one in planes.definitions}
    winner = planes.winner
    if winner is None or not files - ours:
        return False
    lost = winner.file not in ours and not kind.same(setting.name, setting.value, winner.value)
    return lost or not files & ours or any(view.called(file, asked) for file in files)


def _outcome(
    view: View,
    name: str,
    settings: Sequence[Setting],
    ours: frozenset[str],
    asked: frozenset[str],
    found: dict[str, Found],
) -> None:
    stuck: set[tuple[str, str]] = set()
    first = True
    for _round in range(_MOST_ROUNDS):
        kind = kinds.load(name, view)
        for setting in settings:
            kind.recall(setting)
        planes = kind.read([setting.name for setting in settings])
        out: dict[str, dict[int, list[tuple[str, str]]]] = {}
        for setting in settings:
            now = planes[setting.name]
            winner = now.winner
            if winner is None or now.unknown or now.unsupported or setting.key in stuck:
                continue
            lost = [one for one in now.definitions if first and view.called(one.file, asked - ours)]
            if winner.file not in ours and not kind.same(setting.name, setting.value, winner.value):
                lost.append(winner)
            for one in lost:
                _note(view, found, setting, one, ours, wins=True)
                out.setdefault(one.file, {}).setdefault(one.line, []).append(setting.key)
            if first:
                for one in now.definitions:
                    _note(view, found, setting, one, ours, wins=False)
        first = False
        if not out:
            return
        for file, lines in out.items():
            if not view.take_out(file, sorted(lines)):
                stuck.update(key for keys in lines.values() for key in keys)


def _note(
    view: View,
    found: dict[str, Found],
    setting: Setting,
    definition: Definition,
    ours: frozenset[str],
    *,
    wins: bool,
) -> None:
    if not definition.file or definition.file in ours:
        return
    if setting.kind == "unit" and not os.path.dirname(definition.file).endswith(".d"):
        return  # the unit file itself: what drop-ins are there to override
    file = view.origin(definition.file)
    one = found.setdefault(file, Found(file, view.target(definition.file)))
    if wins:
        one.wins[setting.key] = definition
        one.loses.pop(setting.key, None)
    elif setting.key not in one.wins:
        one.loses[setting.key] = definition
