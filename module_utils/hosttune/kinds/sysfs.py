"""Kind sysfs: attributes below /sys, and the `w` lines of tmpfiles.d that set them at boot.

Names are paths below /sys (kernel/mm/transparent_hugepage/enabled). An attribute that shows its choices
(`always madvise [never]`) has the bracketed one as its value.

Persisted truth is computed as systemd-tmpfiles computes it. Files come by base name over the folders below,
the first folder masking the later ones. Then, unlike in sysctl.d, the FIRST line for a path wins: a later
line with the same path is ignored, unless it is the very same or both are `w+`. Lines are applied path by
path in the order in which each path was first named, a path with globs being a path of its own: a later glob
is therefore written over an earlier literal path. `f+` lines are applied before all `w` lines.
Source: systemd-tmpfiles 252 itself, which the unit tests ask.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..model import Change, Definition, Planes, Refusal, Setting, squeeze
from ..system import KERNEL_SHARED, System
from .base import Kind, did_you_mean, ordered_files
from .sysctl import mask

FOLDERS = (
    "/etc/tmpfiles.d",
    "/run/tmpfiles.d",
    "/usr/local/lib/tmpfiles.d",
    "/usr/lib/tmpfiles.d",
    "/lib/tmpfiles.d",
)

#: Real attributes that not every host has, by the start of their path: absence is no mistake in the name.
CONDITIONAL = (
    ("kernel/mm/transparent_hugepage", "the kernel was built without CONFIG_TRANSPARENT_HUGEPAGE"),
    ("kernel/mm/ksm", "the kernel was built without CONFIG_KSM"),
    ("kernel/mm/lru_gen", "the kernel was built without CONFIG_LRU_GEN"),
    ("kernel/mm/numa", "the kernel was built without NUMA memory tiers"),
    ("kernel/mm/hugepages", "the kernel has no huge pages of this size"),
    ("bus/workqueue/devices/writeback", "the kernel does not show its writeback workqueue"),
    ("devices/virtual/workqueue", "the kernel does not show this workqueue"),
    ("devices/system/cpu/intel_pstate", "the CPUs are not driven by intel_pstate"),
    ("devices/system/cpu/amd_pstate", "the CPUs are not driven by amd-pstate"),
    ("devices/system/cpu/cpufreq", "no frequency driver: a virtual machine, or the firmware scales"),
    ("devices/system/cpu/cpuidle", "no idle driver"),
    ("devices/system/cpu/smt", "the kernel was built without SMT control"),
    ("devices/system/clocksource", "the kernel does not show its clock sources"),
    ("devices/system/machinecheck", "the kernel was built without machine checks"),
    ("firmware/acpi/platform_profile", "the firmware offers no platform profile"),
)
_CPU_CONDITIONAL = re.compile(r"devices/system/cpu/cpu\d+/(cpufreq|cpuidle|power)(/|\Z)")

#: Attributes whose choices stand in a neighbour: (base name, neighbour).
CHOICES_BESIDE = {
    "scaling_governor": "scaling_available_governors",
    "energy_performance_preference": "energy_performance_available_preferences",
    "current_clocksource": "available_clocksource",
    "current_governor": "available_governors",
    "platform_profile": "platform_profile_choices",
}

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@+,=\-]*\Z")
_CHOSEN = re.compile(r"(?:^| )\[([^\]]*)\](?: |$)")
#: Types of tmpfiles.d that write to an existing file; those that share the paths of `w` and own them; and
#: those that share its paths only.
_WRITING, _OWNING, _PLACING = "wfF", "xXrRe", "zZtThHaAm"
_NUMBER = re.compile(r"-?(0+|[1-9][0-9]*)\Z")
#: What a boolean module parameter takes (kstrtobool); it shows Y or N.
_TRUE, _FALSE = frozenset({"y", "1", "t", "on"}), frozenset({"n", "0", "f", "of", "off"})
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|[0-7]{3}|.)")
_ESCAPED = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "s": " ", "t": "\t", "v": "\v"}


def short(name: str) -> str:
    """The path below /sys of a name with or without a leading /sys/."""
    return name.removeprefix("/sys/")


def choices(text: str) -> list[str]:
    """The words of an attribute that brackets the chosen one; none of an attribute that does not."""
    return [word.strip("[]") for word in text.split()] if _CHOSEN.search(text) else []


def chosen(text: str) -> str:
    """The bracketed word of an attribute that shows choices, else the whole text."""
    found = _CHOSEN.search(text)
    return found.group(1) if found else text


class SysfsKind(Kind):
    """See the module's docstring."""

    name = "sysfs"

    # names and values

    def canonical(self, name: str) -> str:
        return short(name)

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        seen: dict[str, Setting] = {}
        for setting in settings:
            path = short(setting.name)
            if not _NAME.match(path) or os.path.normpath(path) != path or path.startswith(".."):
                raise Refusal(
                    "is no path below /sys",
                    thing=str(setting),
                    remedy="Give one attribute, such as kernel/mm/transparent_hugepage/enabled",
                )
            other = seen.setdefault(path, setting)
            if other is not setting:
                raise Refusal(f"is the same as {other.name}", thing=str(setting), remedy="Name it once")
            if not setting.value:
                raise Refusal("has no value", thing=str(setting), remedy="Give one, or leave the name out")
            self._check_exists(setting, path, packages)

    def _check_exists(self, setting: Setting, path: str, packages: Mapping[str, Sequence[str]]) -> None:
        real = self.system.path(f"/sys/{path}")
        if os.path.isdir(real):
            raise Refusal(
                "is a folder",
                thing=str(setting),
                remedy=f"Name an attribute in it: {', '.join(self.system.names(f'/sys/{path}')[:8])}",
            )
        if os.path.lexists(real):
            self._check_value(setting, path)
            return
        if self.system.container or _absent(path):
            return  # `read` says why it is unsupported
        if setting.notes.get("module") or packages.get(setting.owner):
            return  # what brings it comes with this run
        # The first folder that is not there is where the name went wrong.
        known, rest = "", path.split("/")
        while self.system.exists(f"/sys/{known}{rest[0]}"):
            known += f"{rest.pop(0)}/"
        near = [f"{known}{leaf}" for leaf in self.system.names(f"/sys/{known}")]
        raise Refusal(
            f"this host has no /sys/{known}{rest[0]}",
            thing=str(setting),
            remedy=did_you_mean(f"{known}{rest[0]}", near)
            or "Check the name, or name the module that brings it in its note",
        )

    def _check_value(self, setting: Setting, path: str) -> None:
        """One of the choices where the kernel shows them, a number where it shows one."""
        try:
            live = self.system.read_value(f"/sys/{path}")
        except OSError:
            return  # `read` says why it is unknown
        offered = choices(live)
        beside = CHOICES_BESIDE.get(os.path.basename(path))
        if not offered and beside:
            try:
                offered = self.system.read_value(f"/sys/{os.path.dirname(path)}/{beside}").split()
            except OSError:
                return
        if _is_mask(path):
            try:
                mask(setting.value)
            except ValueError:
                raise Refusal(
                    f"'{setting.value}' is no CPU mask",
                    thing=str(setting),
                    remedy="Give one in hex, such as f for CPUs 0 to 3",
                ) from None
        if _is_boolean(path, live) and _boolean(setting.value) is None:
            raise Refusal(f"'{setting.value}' is no boolean", thing=str(setting), remedy="Give Y or N")
        if offered and setting.value not in offered:
            raise Refusal(
                f"'{setting.value}' is not offered by the kernel",
                thing=str(setting),
                remedy=f"Choose one of {', '.join(offered)}",
            )
        # pm_qos_resume_latency_us reads 0 for "no limit" and takes n/a for "none at all".
        takes_text = _is_mask(path) or "pm_qos" in path
        is_number = re.match(r"-?[0-9]+\Z", setting.value)
        if _NUMBER.match(live) and not is_number and not takes_text:
            raise Refusal(
                f"'{setting.value}' is not of its type: the kernel shows {live}",
                thing=str(setting),
                remedy="Give a whole number",
            )
        if not _NUMBER.match(setting.value) and _NUMBER.match(live) and not takes_text:
            raise Refusal(
                f"'{setting.value}' has a leading zero, with which many attributes read it as octal",
                thing=str(setting),
                remedy="Write the number without it",
            )

    def same(self, name: str, wanted: str, found: str) -> bool:
        if wanted == found:
            return True
        if _is_mask(short(name)):
            try:
                return mask(wanted) == mask(found)
            except ValueError:
                return False
        if short(name).startswith("module/") and self._shows_boolean(short(name)):
            one, other = _boolean(wanted), _boolean(found)
            return one is not None and one == other
        return bool(_NUMBER.match(wanted) and _NUMBER.match(found)) and int(wanted) == int(found)

    def _shows_boolean(self, path: str) -> bool:
        try:
            return _is_boolean(path, self.system.read_value(f"/sys/{path}"))
        except OSError:
            return False

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        lines = Tmpfiles(self.system)
        return {name: self._read_one(short(name), lines) for name in names}

    def _read_one(self, path: str, lines: Tmpfiles) -> Planes:
        planes = Planes(definitions=lines.definitions(f"/sys/{path}"))
        if self.system.container:
            planes.unsupported = KERNEL_SHARED
        try:
            planes.live = chosen(self.system.read_value(f"/sys/{path}"))
        except (FileNotFoundError, NotADirectoryError):
            reason = _absent(path) or "this host has no such attribute"
            planes.unsupported = planes.unsupported or f"{reason}: no /sys/{path}"
            return planes
        except OSError as error:
            if not planes.unsupported:
                planes.unknown = f"/sys/{path}: {error.strerror}"
            return planes
        if not os.stat(self.system.path(f"/sys/{path}")).st_mode & 0o200:
            planes.unsupported = planes.unsupported or f"/sys/{path} is read-only on this kernel"
        return planes

    # persistence

    def managed_file(self, owner: str, name: str) -> str:
        return f"/etc/tmpfiles.d/60-hosttune-{owner}.conf"

    def body(self, settings: Sequence[Setting]) -> str:
        return "".join(
            f"w /sys/{short(setting.name)} - - - - {_escape(setting.value)}\n" for setting in settings
        )

    # the live plane

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        failed = {}
        for change in changes:
            try:
                self.system.write_value(f"/sys/{short(change.name)}", change.value)
            except OSError as error:
                failed[change.name] = f"the kernel refused '{change.value}': {error.strerror}"
        return failed


def _absent(path: str) -> str:
    """Why a real attribute may be missing on a sound host; empty where nothing explains it."""
    for start, reason in CONDITIONAL:
        if path == start or path.startswith(f"{start}/"):
            return reason
    found = _CPU_CONDITIONAL.match(path)
    return f"this CPU has no {found.group(1)} here" if found else ""


def _is_mask(path: str) -> bool:
    """Whether an attribute is a CPU mask in hex, which the kernel pads as it likes."""
    leaf = os.path.basename(path)
    return leaf in ("cpumask", "rps_cpus", "xps_cpus", "xps_rxqs") or leaf.endswith("_cpumask")


def _is_boolean(path: str, live: str) -> bool:
    """Whether an attribute is a boolean parameter of a module: one that is a number shows 1 or 0."""
    return path.startswith("module/") and "/parameters/" in path and live in ("Y", "N")


def _boolean(text: str) -> bool | None:
    """What kstrtobool() makes of a word."""
    word = text.lower()
    return True if word in _TRUE else False if word in _FALSE else None


def _escape(value: str) -> str:
    """A value as tmpfiles.d takes it: it unescapes backslashes and expands percent signs."""
    return value.replace("\\", "\\\\").replace("%", "%%")


# tmpfiles.d


@dataclass
class Line:
    """A line of tmpfiles.d that writes, that owns its path so that later lines for it are ignored, or that
    only fixes when its path has its turn.

    `value` is None where it holds what only systemd can expand.
    """

    path: str
    append: bool
    early: bool
    writes: bool
    owns: bool
    value: str | None
    #: all fields after the path, which make two lines the very same
    fields: tuple[str, ...]
    definition: Definition


class Tmpfiles:
    """The lines of a host's tmpfiles.d that write to files below /sys, parsed once."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._applied: list[Line] = []
        self._ignored: list[Line] = []
        groups: dict[tuple[bool, str], list[Line]] = {}
        for file in ordered_files(system, FOLDERS, ".conf"):
            try:
                texts = system.read(file).split("\n")
            except OSError:
                continue
            for number, text in enumerate(texts, 1):
                line = parse(text, file, number)
                if line is None or not line.path.startswith("/sys/"):
                    continue
                group = groups.setdefault((line.early, line.path), [])
                fits = all(
                    (one.append and line.append) or (one.value, one.fields) == (line.value, line.fields)
                    for one in group
                    if one.owns and line.owns
                )
                if fits:
                    group.append(line)
                elif line.writes:
                    self._ignored.append(line)
        for early in (True, False):
            for (is_early, _path), group in groups.items():
                if is_early == early:
                    self._applied += [line for line in group if line.writes]
        self._targets: dict[str, set[str]] = {}

    def definitions(self, path: str) -> list[Definition]:
        """Every line that names `path`, the one that decides last."""
        real = os.path.realpath(self.system.path(path))
        applied = [line for line in self._applied if real in self._real(line, path, real)]
        if not applied:
            return []  # an ignored line decides nothing, also where an `x` line is why
        ignored = [line for line in self._ignored if real in self._real(line, path, real)]
        return [line.definition for line in (*ignored, *applied)]

    def written(self, paths: Sequence[str]) -> list[tuple[str, Definition]]:
        """Every write to one of these paths, as (path, line), in the order in which they are made."""
        real = {path: os.path.realpath(self.system.path(path)) for path in paths}
        return [
            (path, line.definition)
            for line in self._applied
            for path in paths
            if real[path] in self._real(line, path, real[path])
        ]

    def _real(self, line: Line, path: str, real: str) -> set[str]:
        """The files that a line writes to, links followed (most of /sys/class and /sys/block are links)."""
        if line.path == path:
            return {real}  # also where it is missing now
        if line.early and any(char in line.path for char in "*?["):
            return set()  # `f` lines know no globs
        if line.path not in self._targets:
            patterns = [line.path] if line.early else braces(line.path)
            self._targets[line.path] = {
                os.path.realpath(one)
                for pattern in patterns
                for one in glob.glob(glob.escape(self.system.path("")) + pattern)
            }
        return self._targets[line.path]


def parse(text: str, file: str, number: int) -> Line | None:
    """One line of tmpfiles.d; None where it has no say in an existing file, or systemd refuses it."""
    text = text.strip()
    if not text or text[0] not in _WRITING + _OWNING + _PLACING:
        return None
    fields, rest = _words(text, 6)
    kind, path, mode = [*fields, "", "", ""][:3]
    modifiers = kind[1:]
    if len(fields) < 2 or set(modifiers) - set("!+-=~^$?") or modifiers.count("+") > 1:
        return None
    append = "+" in modifiers
    if kind[0] == "f" and not append:
        return None  # creates a missing file only
    if mode not in ("", "-") and not re.match(r"[~:]*[0-7]{1,4}\Z", mode):
        return None
    writes = kind[0] in _WRITING
    if writes and rest in ("", "-"):
        return None
    # Only lines that write resolve escapes and specifiers; others are compared as they stand.
    resolved = _expand(_unescape(rest)) if writes else rest
    value = None if set("~^") & set(modifiers) else resolved
    expanded = _expand(path)
    if expanded is None or not expanded.startswith("/"):
        return None
    parts = [part for part in expanded.split("/") if part not in ("", ".")]
    if ".." in parts:
        return None
    return Line(
        path="/" + "/".join(parts),
        append=append,
        early=kind[0] in "fF",
        writes=writes,
        owns=writes or kind[0] in _OWNING,
        value=value,
        fields=(*(field or "-" for field in fields[2:]), rest if value is None else ""),
        definition=Definition(squeeze(rest if value is None else value), file, number),
    )


def _words(text: str, count: int) -> tuple[list[str], str]:
    """The first `count` words, quotes and backslashes resolved, and what follows them as it stands."""
    words: list[str] = []
    at = 0
    while len(words) < count:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            break
        word, quote = "", ""
        while at < len(text) and (quote or not text[at].isspace()):
            char = text[at]
            if char == "\\":
                at += 1  # the next character stands for itself; only values know \\x41
                word += text[at : at + 1]
            elif char == quote:
                quote = ""
            elif not quote and char in "\"'":
                quote = char
            else:
                word += char
            at += 1
        words.append(word)
    return words, text[at:].strip()


def _unescape(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        code = found.group(1)
        if code[0] == "x":
            return chr(int(code[1:], 16))
        if len(code) == 3:
            return chr(int(code, 8))
        return _ESCAPED.get(code, code)

    return _ESCAPE.sub(one, text)


def _expand(text: str) -> str | None:
    """A text with `%%` resolved; None where it holds another specifier."""
    if re.search(r"%(?!%)", text.replace("%%", "")):
        return None
    return text.replace("%%", "%")


def braces(pattern: str) -> list[str]:
    """The patterns that a pattern with {a,b} stands for (GLOB_BRACE of glob(3))."""
    start = pattern.find("{")
    end = pattern.find("}", start)
    if start < 0 or end < 0:
        return [pattern]
    return [
        whole
        for part in pattern[start + 1 : end].split(",")
        for whole in braces(f"{pattern[:start]}{part}{pattern[end + 1 :]}")
    ]
