"""Kind mount: options in force on a mount point that /etc/fstab mounts.

A value is an option list (`noatime,lazytime`) and means: these are in force, whatever else is. Live is what
/proc/self/mountinfo shows, put together as findmnt(8) does; persisted is the option field of the first line
of /etc/fstab for the mount point (systemd-fstab-generator ignores a second one). Only that field is edited.

Options that weaken what survives a power cut are refused, and so are those that only mount(8) or systemd
read (nofail, x-systemd.*): they are never in force, so nothing could be checked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import atomic
from ..model import Change, Definition, FileImage, Planes, Refusal, Setting, squeeze
from ..system import KERNEL_SHARED
from .base import Kind, did_you_mean

FSTAB = "/etc/fstab"
MOUNTINFO = "/proc/self/mountinfo"

#: Options that lose data which a program was told is safe, or show another file's old blocks.
UNSAFE = frozenset(
    {
        "nobarrier",
        "barrier=0",
        "barrier=none",
        "data=writeback",
        "journal_async_commit",
        "noload",
        "norecovery",
    }
)
#: Read by mount(8), systemd or fsck only.
USERSPACE = frozenset(
    {"defaults", "auto", "noauto", "nofail", "user", "nouser", "users", "owner", "group", "_netdev", "loop"}
)
_USERSPACE_START = ("x-", "X-", "comment=", "uhelper=", "helper=")

_ATIME = frozenset({"noatime", "relatime", "strictatime"})
#: In force where nothing says otherwise; the kernel does not print them.
_SILENT = {
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "diratime": "nodiratime",
    "symfollow": "nosymfollow",
    "async": "sync",
    "nolazytime": "lazytime",
    "atime": "noatime",
    "rw": "ro",
    "nodiscard": "discard",
}
#: Of one filesystem's options with a value: the value in force where nothing is printed.
_SILENT_VALUES = {"commit": "5", "data": "ordered", "barrier": "1"}
#: Flags that a remount clears unless they are named again: of the mount, and of the superblock (SB_RMT_MASK).
_FLAGS = _ATIME | {"nosuid", "nodev", "noexec", "nodiratime", "nosymfollow"}
_SUPER_FLAGS = frozenset({"sync", "dirsync", "lazytime", "mand"})

_OPTION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@%+-]*(=[A-Za-z0-9_.:/@%+-]+)?\Z")
_OCTAL = re.compile(r"\\([0-7]{3})")
_SIZE = re.compile(r"(\d+)([kmgKMG]?)\Z")
#: source, mount point, type, then the option field, then the rest of a line of fstab
_LINE = re.compile(
    r"(?P<before>[ \t]*(?!#)\S+[ \t]+(?P<point>\S+)[ \t]+\S+[ \t]+)(?P<options>\S+)(?P<after>.*)\Z", re.DOTALL
)


def split(text: str) -> list[str]:
    """The options of a list, empty ones left out."""
    return [option.strip() for option in text.split(",") if option.strip()]


def _value(option: str) -> tuple[str, str]:
    """An option's key and value; a size as its number of bytes, since the kernel prints 64m as 65536k."""
    key, _equals, value = option.partition("=")
    size = _SIZE.match(value)
    if size and size.group(2):
        value = str(int(size.group(1)) << {"k": 10, "m": 20, "g": 30}[size.group(2).lower()])
    return key, value


def contradict(one: str, other: str) -> bool:
    """Whether two options cannot both be in force."""
    if one == other:
        return False
    if (one in _ATIME and other in _ATIME) or {one, other} == {"diratime", "noatime"}:
        return True
    for option, opposite in ((one, other), (other, one)):
        if _SILENT.get(option) == opposite or opposite == f"no{option}":
            return True
    (key, value), (other_key, other_value) = _value(one), _value(other)
    return key == other_key and "=" in one and "=" in other and value != other_value


def in_force(option: str, found: Sequence[str]) -> bool:
    """Whether a list of options (of mountinfo or of fstab) puts this one in force."""
    if any(contradict(option, other) for other in found):
        return False
    if option in found or _value(option) in [_value(other) for other in found]:
        return True
    if option == "nodiratime":
        return "noatime" in found  # mount(8): noatime implies nodiratime
    key, value = _value(option)
    return option in _SILENT or option == "barrier" or _SILENT_VALUES.get(key) == value


def merged(options: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """`options` with what contradicts `wanted` taken out and what it lacks put at its end."""
    kept = [option for option in options if not any(contradict(option, other) for other in wanted)]
    return kept + [option for option in wanted if not in_force(option, kept)]


def _plain(text: str) -> str:
    """A field of mountinfo or fstab with its octal escapes resolved (a blank is \\040)."""
    return _OCTAL.sub(lambda found: chr(int(found.group(1), 8)), text)


@dataclass(frozen=True)
class Line:
    """A line of fstab; `point` is empty of one that mounts nothing or has no option field."""

    number: int
    text: str

    @property
    def _fields(self) -> re.Match[str] | None:
        return _LINE.match(self.text)

    @property
    def point(self) -> str:
        fields = self._fields
        point = _plain(fields["point"]) if fields else ""
        return os.path.normpath(point) if point.startswith("/") else ""

    @property
    def options(self) -> str:
        fields = self._fields
        return fields["options"] if fields else ""

    def replaced(self, options: str) -> str:
        """The line with another option field, everything else byte for byte."""
        fields = self._fields
        return f"{fields['before']}{options}{fields['after']}" if fields else self.text


@dataclass(frozen=True)
class Mounted:
    """A mount as the kernel shows it: flags of this mount, flags and options of its filesystem."""

    point: str
    flags: tuple[str, ...]
    super_options: tuple[str, ...]

    @property
    def text(self) -> str:
        """All options, as findmnt(8) prints them: read-only where one of the two is."""
        mode = "ro" if "ro" in (*self.flags, *self.super_options) else "rw"
        rest = dict.fromkeys(one for one in (*self.flags, *self.super_options) if one not in ("rw", "ro"))
        return ",".join((mode, *rest))


def remount_options(now: Mounted, options: Sequence[str], exact: bool) -> list[str]:
    """What a remount must be told so that `options` are in force and nothing else changes.

    `exact`: `options` are all there shall be (what was live before), so what is in force beyond them is taken
    back. Options of the filesystem that stay as they are need not be named, and some could not be.
    """
    current = split(now.text)
    if exact:
        named = [one for one in options if one in _FLAGS | _SUPER_FLAGS or one not in current]
        return [
            *_mode(options),
            *_taken_back(current, options),
            *(one for one in named if one not in ("rw", "ro")),
        ]
    kept = [one for one in current if one in _FLAGS | _SUPER_FLAGS]
    kept = [one for one in kept if not any(contradict(one, other) for other in options)]
    return [*dict.fromkeys([*(() if _mode(options) else _mode(current)), *kept, *options])]


def _mode(options: Sequence[str]) -> list[str]:
    return [one for one in options if one in ("rw", "ro")][:1]


def _taken_back(current: Sequence[str], options: Sequence[str]) -> list[str]:
    """The options that end what is in force now and shall not be."""
    opposites = {loud: silent for silent, loud in _SILENT.items()}
    keys = {_value(option)[0] for option in options}
    found = []
    for one in current:
        key = _value(one)[0]
        if one in options or one in ("rw", "ro"):
            continue
        if one in opposites:
            found.append(opposites[one])
        elif "=" in one and key not in keys and key in _SILENT_VALUES:
            found.append(f"{key}={_SILENT_VALUES[key]}")
    return found


class MountKind(Kind):
    """See the module's docstring."""

    name = "mount"

    # names and values

    def text(self, name: str, value: Any) -> str:
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            value = ",".join(value)
        return ",".join(split(super().text(name, value)))

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        if not settings:
            return
        mounts, lines = self._mounts(), self._fstab()
        for setting in settings:
            if not setting.name.startswith("/") or os.path.normpath(setting.name) != setting.name:
                raise Refusal("is no mount point", thing=str(setting), remedy="Give its absolute path")
            self._check_options(setting)
            if self.system.container:
                continue  # the machine mounts it: `read` answers unsupported
            if setting.name not in mounts:
                raise Refusal(
                    "is no mount point on this host",
                    thing=str(setting),
                    remedy=did_you_mean(setting.name, mounts)
                    or "Mount it first, or name the folder that is mounted",
                )
            if not any(line.point == setting.name for line in lines):
                raise Refusal(
                    f"has no line with options in {FSTAB}",
                    thing=str(setting),
                    remedy=f"Add one to {FSTAB}; what another tool mounts is configured there",
                )

    @staticmethod
    def _check_options(setting: Setting) -> None:
        options = split(setting.value)
        if not options:
            raise Refusal("names no option", thing=str(setting), remedy="Such as noatime, or leave it out")
        for option in options:
            if not _OPTION.match(option):
                raise Refusal(
                    f"'{option}' is no mount option", thing=str(setting), remedy="Such as noatime,lazytime"
                )
            if option in UNSAFE:
                raise Refusal(
                    f"{option} would lose or expose data at a power cut",
                    thing=str(setting),
                    remedy="Leave it out: no speed is worth it",
                )
            if option == "strictatime":
                raise Refusal(
                    "strictatime writes an inode at each read",
                    thing=str(setting),
                    remedy="Use noatime or relatime",
                )
            if option in USERSPACE or option.startswith(_USERSPACE_START):
                raise Refusal(
                    f"{option} is read by mount and systemd only and is never in force",
                    thing=str(setting),
                    remedy=f"Write it to {FSTAB} where the disk is set up",
                )
            for other in options:
                if contradict(option, other):
                    raise Refusal(f"{option} contradicts {other}", thing=str(setting), remedy="Leave one out")

    def same(self, name: str, wanted: str, found: str) -> bool:
        return all(in_force(option, split(found)) for option in split(wanted))

    # planes

    def _mounts(self) -> dict[str, Mounted]:
        """What is mounted, by mount point; of several on one point the last, which covers the others."""
        found = {}
        for line in self.system.read(MOUNTINFO).split("\n"):
            left, _dash, right = line.partition(" - ")
            fields, after = left.split(" "), right.split(" ")
            if len(fields) >= 6 and len(after) >= 3:
                point = _plain(fields[4])
                found[point] = Mounted(point, tuple(fields[5].split(",")), tuple(split(_plain(after[2]))))
        return found

    def _fstab(self) -> list[Line]:
        try:
            text = self.system.read(FSTAB)
        except OSError:
            return []
        return [line for line in map(Line, range(1, text.count("\n") + 2), text.split("\n")) if line.point]

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        try:
            mounts = self._mounts()
        except OSError as error:
            return {name: Planes(unknown=f"{MOUNTINFO}: {error.strerror}") for name in names}
        lines = self._fstab()
        found = {}
        for name in names:
            # The first line for a mount point decides, so it comes last here.
            mine = [line for line in lines if line.point == name][::-1]
            planes = Planes(definitions=[Definition(squeeze(one.options), FSTAB, one.number) for one in mine])
            if name in mounts:
                planes.live = mounts[name].text
            else:
                planes.note = "not mounted now"
            if self.system.container:
                planes.unsupported = f"{KERNEL_SHARED}, which mounts what a container sees"
            found[name] = planes
        return found

    # persistence

    def managed_file(self, owner: str, name: str) -> str:
        return FSTAB

    def render(self, owner: str, settings: Sequence[Setting]) -> dict[str, FileImage]:
        return {}  # the file is shared: see edits()

    def edits(
        self, settings: Sequence[Setting], undone: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, FileImage]:
        image = atomic.read_image(self.system.path(FSTAB))
        if image is None:
            return {}
        shall = {name: str(was["persisted"]["value"] or "") for name, was in undone.items()}
        wanted = {setting.name: split(setting.value) for setting in settings}
        rows = image.content.decode("utf-8", "surrogateescape").split("\n")
        for number, row in enumerate(rows, 1):
            line = Line(number, row)
            if line.point in wanted:
                options = wanted.pop(line.point)
                if not all(in_force(option, split(line.options)) for option in options):
                    rows[number - 1] = line.replaced(",".join(merged(split(line.options), options)))
            elif shall.get(line.point):
                rows[number - 1] = line.replaced(shall.pop(line.point))
        content = "\n".join(rows).encode("utf-8", "surrogateescape")
        return {FSTAB: FileImage(content, image.mode, image.uid, image.gid)}

    # the live plane

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        failed = {}
        mounts = self._mounts()
        for change in changes:
            now = mounts.get(change.name)
            if now is None:
                failed[change.name] = "is no longer mounted"
                continue
            options = remount_options(now, split(change.value), exact=change.undo)
            # What fstab says must not be mixed in: on undo it still holds the options that go.
            ended = self.system.run(
                "mount", "--options-mode=ignore", "-o", ",".join(("remount", *options)), "--", change.name
            )
            if not ended.ok:
                failed[change.name] = f"remount with {','.join(options)} failed: {squeeze(ended.err)}"
        if FSTAB in files and self.system.exists("/run/systemd/system"):
            # Else a mount unit that is restarted would still use the options of the old file.
            ended = self.system.run("systemctl", "daemon-reload")
            if not ended.ok:
                failed.update(
                    {change.name: f"systemctl daemon-reload: {squeeze(ended.err)}" for change in changes}
                )
        return failed
