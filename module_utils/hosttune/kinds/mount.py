"""Kind mount: options in force on a mount point that /etc/fstab mounts.

A value is an option list (`noatime,lazytime`) and means: these are in force, whatever else is. Live is what
/proc/self/mountinfo shows, put together as findmnt(8) does; persisted is the option field of the first line
of /etc/fstab for the mount point (systemd-fstab-generator ignores a second one), unless a mount unit stronger
than the generated one, or a drop-in with Options=, decides. Only the option field of fstab is edited. An
option that we added and that is no longer asked for goes, and what it had replaced comes back.

Options that weaken what survives a power cut are refused, and so are those that only mount(8) or systemd
read (nofail, x-systemd.*): they are never in force, so nothing could be checked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import atomic, systemd
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
#: Where systemd-fstab-generator(8) puts its units; and what systemd-remount-fs(8) remounts as fstab says.
GENERATED = "/run/systemd/generator"
REMOUNTED = frozenset({"/", "/usr"})
#: A masked mount unit: nothing is mounted at the next boot.
MASKED = "masked"
#: Types of fstab that are no filesystems.
NOT_MOUNTED = frozenset({"swap"})
_WORD = re.compile(r"[^ \t]+")
#: The escapes of fstab that getmntent(3) knows.
_FSTAB_ESCAPE = re.compile(r"\\(040|011|012|134|\\)")


def _is_comment(word: str) -> bool:
    """Whether the first word of a line makes it a comment; a # within a line is a character as any other."""
    return word.startswith("#")


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
    """A line of fstab, as getmntent(3) reads it; `point` is empty of one that mounts nothing."""

    number: int
    text: str

    @property
    def _words(self) -> list[re.Match[str]]:
        return list(_WORD.finditer(self.text))

    @property
    def point(self) -> str:
        words = [word.group() for word in self._words[:3]]
        if len(words) < 2 or _is_comment(words[0]) or (words[2:] and words[2] in NOT_MOUNTED):
            return ""
        point = _FSTAB_ESCAPE.sub(_unescaped, words[1])
        parts = [part for part in point.split("/") if part not in ("", ".")]
        # systemd makes no unit of a path that climbs
        return "/" + "/".join(parts) if point.startswith("/") and ".." not in parts else ""

    @property
    def options(self) -> str:
        """The option field, empty where the line ends before it: then the defaults hold."""
        words = self._words
        return words[3].group() if len(words) > 3 else ""

    def replaced(self, options: str) -> str:
        """The line with another option field, everything else byte for byte."""
        words = self._words
        if len(words) > 3:
            start, end = words[3].span()
            if not options:
                return self.text[: words[2].end()] + self.text[end:]
            return self.text[:start] + options + self.text[end:]
        if len(words) < 2 or not options:
            return self.text
        end = words[-1].end()
        missing = f" {options}" if len(words) == 3 else f" auto {options}"
        return self.text[:end] + missing + self.text[end:]


def _unescaped(found: re.Match[str]) -> str:
    code = found.group(1)
    return code if code == "\\" else chr(int(code, 8))


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


def _left(wanted: Sequence[str], entry: Mapping[str, Any], found: str | None, plane: str) -> list[str]:
    """The options of `found` that we added, that are no longer wanted, and that were not there before us."""
    before = split((_field_before(entry) if plane == "persisted" else entry.get("live")) or "")
    now = split(found or "")
    return [
        option
        for option in entry.get("added", ())
        if option in now
        and option not in wanted
        and not in_force(option, before)
        and not any(contradict(option, other) for other in wanted)
        and not (option == "nodiratime" and "noatime" in wanted)
    ]


def _restored(left: Sequence[str], entry: Mapping[str, Any]) -> list[str]:
    """What a remount must name to end the options left over: their opposites, and what they had replaced."""
    before = split(str(entry.get("live") or ""))
    replaced = [one for one in before if any(contradict(one, option) for option in left)]
    return [*_taken_back(left, before), *replaced]


def _without(options: Sequence[str], wanted: Sequence[str], entry: Mapping[str, Any]) -> list[str]:
    """An option field without what only an earlier call asked for, and with what that had replaced."""
    left = _left(wanted, entry, ",".join(options), "persisted")
    kept = [option for option in options if option not in left]
    for place, option in enumerate(split(_field_before(entry) or "")):
        if option not in kept and any(contradict(option, other) for other in left):
            kept.insert(place, option)
    return kept


def _field_before(entry: Mapping[str, Any]) -> str | None:
    """The option field of fstab as a ledger entry keeps it; None where fstab had no line."""
    persisted = entry.get("persisted") or {}
    found = [one for one in (*persisted.get("overridden", ()), persisted) if one.get("file") == FSTAB]
    return str(found[-1]["value"]) if found else None


def _field(planes: Planes) -> str | None:
    """What fstab says of a mount point."""
    found = [one.value for one in planes.definitions if one.file == FSTAB]
    return found[-1] if found else None


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
            planes = Planes(definitions=self._definitions(name, lines))
            if name in mounts:
                planes.live = mounts[name].text
            else:
                planes.note = "not mounted now"
            if self.system.container:
                planes.unsupported = f"{KERNEL_SHARED}, which mounts what a container sees"
            found[name] = planes
        return found

    def _definitions(self, point: str, lines: Sequence[Line]) -> list[Definition]:
        """Who gives the options of a mount point at the next boot, the winner last.

        The first line of fstab decides, so it comes last of these. A mount unit of a folder before that of
        the generated ones is stronger, one of a later folder weaker; drop-ins change whichever wins.
        """
        mine = [line for line in lines if line.point == point][::-1]
        table = [Definition(squeeze(one.options), FSTAB, one.number) for one in mine]
        if point in REMOUNTED and table:
            return table
        unit = f"{systemd.escape_path(point)}.mount"
        weaker: list[Definition] = []
        stronger: list[Definition] = []
        folders = [one for one in systemd.unit_folders(self.system) if not one.startswith(GENERATED)]
        for folder in folders[::-1]:
            if self.system.exists(f"{folder}/{unit}"):
                strong = systemd.UNIT_FOLDERS.index(folder) < systemd.UNIT_FOLDERS.index(GENERATED)
                (stronger if strong else weaker).append(self._of_unit(f"{folder}/{unit}"))
        found = [*weaker, *table, *stronger]
        if not found or found[-1].value == MASKED:
            return found
        return found + self._options(systemd.dropins(self.system, unit))

    def _of_unit(self, file: str) -> Definition:
        """What a mount unit says; the defaults where it says nothing."""
        if systemd.is_masked(self.system, file):
            return Definition(MASKED, file)
        return (self._options([file]) or [Definition("", file)])[-1]

    def _options(self, files: Sequence[str]) -> list[Definition]:
        return [
            Definition(squeeze(one.value), one.file, one.line)
            for one in systemd.read_assignments(self.system, files)
            if (one.section, one.name) == ("Mount", "Options")
        ]

    # persistence

    def managed_file(self, owner: str, name: str) -> str:
        return FSTAB

    def render(self, owner: str, settings: Sequence[Setting]) -> dict[str, FileImage]:
        return {}  # the file is shared: see edits()

    def edits(
        self,
        settings: Sequence[Setting],
        undone: Mapping[str, Mapping[str, Any]],
        before: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, FileImage]:
        image = atomic.read_image(self.system.path(FSTAB))
        if image is None:
            return {}
        shall = {name: _field_before(was) for name, was in undone.items()}
        wanted = {setting.name: split(setting.value) for setting in settings}
        rows = image.content.decode("utf-8", "surrogateescape").split("\n")
        for number, row in enumerate(rows, 1):
            line = Line(number, row)
            if line.point in wanted:
                options = wanted.pop(line.point)
                kept = _without(split(line.options), options, before.get(line.point, {}))
                if kept != split(line.options) or not all(in_force(option, kept) for option in options):
                    rows[number - 1] = line.replaced(",".join(merged(kept, options)))
            elif shall.get(line.point) is not None:
                rows[number - 1] = line.replaced(shall.pop(line.point) or "")
        content = "\n".join(rows).encode("utf-8", "surrogateescape")
        return {FSTAB: FileImage(content, image.mode, image.uid, image.gid)}

    def note(self, setting: Setting, planes: Planes, entry: dict[str, Any]) -> None:
        wanted = split(setting.value)
        stay = [
            *_left(wanted, entry, planes.live, "live"),
            *_left(wanted, entry, _field(planes), "persisted"),
        ]
        entry["added"] = sorted({*wanted, *stay})

    def leftover(self, setting: Setting, planes: Planes, entry: Mapping[str, Any]) -> bool:
        wanted = split(setting.value)
        return bool(_left(wanted, entry, _field(planes), "persisted")) or bool(
            _restored(_left(wanted, entry, planes.live, "live"), entry)
        )

    def live_value(self, setting: Setting, planes: Planes, entry: Mapping[str, Any]) -> str | None:
        wanted = split(setting.value)
        back = _restored(_left(wanted, entry, planes.live, "live"), entry)
        if not back:
            return None  # nothing to take back, or nothing that a remount could
        return ",".join(dict.fromkeys([*wanted, *back]))

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
