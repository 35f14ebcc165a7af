"""Kind module: a kernel module, `loaded` or `unloaded`.

Live is /sys/module, where a module that is built into the kernel counts as loaded. Persisted truth is what
systemd-modules-load(8) will do at the next boot: it loads what modules-load.d (through Debian's link also
/etc/modules) and `modules_load=` on the kernel command line name, unless modprobe.d or the command line
denies it: systemd applies kmod's deny list to these too, so a `blacklist` beats every wish to load. Before
it, initramfs-tools loads what /etc/initramfs-tools/modules names by modprobe(8), which no `blacklist` stops;
an `install NAME /bin/false` and the kernel's own `module_blacklist=` stop both. Where a newer kernel is
installed that does not have the module, the note says so.
Dash and underscore are the same letter in a module's name.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from ..model import Change, Definition, FileImage, Planes, Refusal, Setting
from ..system import KERNEL_SHARED, System
from .base import Kind, did_you_mean, ordered_files

LOAD_FOLDERS = (
    "/etc/modules-load.d",
    "/run/modules-load.d",
    "/usr/local/lib/modules-load.d",
    "/usr/lib/modules-load.d",
    "/lib/modules-load.d",
)
#: modprobe.d(5)
DENY_FOLDERS = (
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
)
MODULE_FOLDERS = ("/lib/modules", "/usr/lib/modules")
VALUES = ("loaded", "unloaded")
CMDLINE = "/proc/cmdline"
#: initramfs-tools(7); it is in force once update-initramfs(8) has run.
INITRAMFS = "/etc/initramfs-tools/modules"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\Z")
#: `install NAME /bin/false`: the common way of denying a module even to a modprobe by hand.
_NO_INSTALL = re.compile(r"((/usr)?/bin/)?(true|false)\s*(#.*)?\Z")


def normal(name: str) -> str:
    """A module's name as /sys/module has it."""
    return name.replace("-", "_")


def _version(release: str) -> list[tuple[int, int, str]]:
    """A key that puts 6.10 after 6.9."""
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in re.findall(r"\d+|[A-Za-z]+", release)
    ]


class Kernel:
    """What the running kernel can load, from the lists that depmod(8) wrote beside its modules."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._lists: dict[str, list[str]] = {}

    def _lines(self, name: str) -> list[str]:
        """The lines of a list of the running kernel, none where it is missing."""
        if name not in self._lists:
            self._lists[name] = self._read(self.release(), name)
        return self._lists[name]

    def release(self) -> str:
        """The running kernel's, empty where it is not told."""
        try:
            return self.system.read_value("/proc/sys/kernel/osrelease")
        except OSError:
            return ""

    def next_release(self) -> str:
        """The newest installed kernel where it is newer than the running one: the next boot takes it."""
        installed = [name for folder in MODULE_FOLDERS for name in self.system.names(folder)]
        newest = max(
            [name for name in installed if self._read(name, "modules.dep")], key=_version, default=""
        )
        running = self.release()
        return newest if running and _version(newest) > _version(running) else ""

    def missing_next(self, modules: Iterable[str]) -> dict[str, str]:
        """Of these modules those that the next kernel lacks, each with its release."""
        release = self.next_release()
        if not release:
            return {}
        lines = [*self._read(release, "modules.builtin"), *self._read(release, "modules.dep")]
        has = {self._module(line.partition(":")[0].strip()) for line in lines if line.strip()}
        return {module: release for module in modules if module not in has}

    def _read(self, release: str, name: str) -> list[str]:
        for folder in MODULE_FOLDERS:
            try:
                return self.system.read(f"{folder}/{release}/{name}").split("\n")
            except OSError:
                continue
        return []

    @staticmethod
    def _module(path: str) -> str:
        return normal(os.path.basename(path).partition(".ko")[0])

    def builtin(self) -> set[str]:
        """Modules that are part of the kernel itself."""
        return {self._module(line.strip()) for line in self._lines("modules.builtin") if line.strip()}

    def loadable(self) -> set[str]:
        """Modules that modprobe(8) can load."""
        return {self._module(line.partition(":")[0]) for line in self._lines("modules.dep") if ":" in line}

    def alias_of(self, name: str) -> str:
        """The module that a name stands for without being one; empty where it stands for none."""
        for line in self._lines("modules.alias"):
            words = line.split()
            if len(words) == 3 and words[0] == "alias" and normal(words[1]) == normal(name):
                return words[2]
        return ""

    def loaded(self, name: str) -> bool:
        return self.system.exists(f"/sys/module/{normal(name)}")


class ModuleKind(Kind):
    """See the module's docstring. `loaded` is persisted in modules-load.d, `unloaded` in modprobe.d."""

    name = "module"

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.kernel = Kernel(system)
        #: what is asked for: the two values live in different files, and managed_file() is not told which
        self._asked: dict[str, str] = {}

    def text(self, name: str, value: object) -> str:
        found = super().text(name, value)
        if found not in VALUES:
            raise Refusal(
                f"'{found}' is no state of a module",
                thing=f"module {name}",
                remedy="Say loaded or unloaded",
            )
        self._asked[name] = found
        return found

    def recall(self, setting: Setting) -> None:
        self._asked[setting.name] = setting.value

    def canonical(self, name: str) -> str:
        return normal(name)

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        seen: dict[str, Setting] = {}
        for setting in settings:
            if not _NAME.match(setting.name):
                raise Refusal(
                    "is no module's name", thing=str(setting), remedy="Give the name alone, such as tcp_bbr"
                )
            other = seen.setdefault(normal(setting.name), setting)
            if other is not setting:
                raise Refusal(
                    f"is the same module as {other.name}",
                    thing=str(setting),
                    remedy="Dash and underscore are one letter here: name the module once",
                )
            self._check_known(setting, packages)

    def _check_known(self, setting: Setting, packages: Mapping[str, Sequence[str]]) -> None:
        builtin = self.kernel.builtin()
        if normal(setting.name) in builtin:
            if setting.value == "unloaded" and not self.system.container:
                raise Refusal(
                    "is built into this kernel and cannot be unloaded",
                    thing=str(setting),
                    remedy="Leave it out, or disable it on the kernel command line",
                )
            return
        if self.kernel.loaded(setting.name) or packages.get(setting.owner):
            return
        loadable = self.kernel.loadable()
        if normal(setting.name) in loadable:
            return
        if self.system.container and not loadable:
            return  # the machine's module folder is not ours to see: `read` answers unsupported
        alias = self.kernel.alias_of(setting.name)
        if alias:
            raise Refusal(
                f"is an alias of {alias}", thing=str(setting), remedy=f"Name the module itself: {alias}"
            )
        if not loadable and not builtin:
            raise Refusal(
                "is not loaded, and the running kernel has no folder of modules",
                thing=str(setting),
                remedy="Install the modules of the running kernel, or reboot into the one that is installed",
            )
        raise Refusal(
            "the running kernel has no such module",
            thing=str(setting),
            remedy=did_you_mean(normal(setting.name), loadable | builtin) or "Check the name with modinfo",
        )

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        builtin = self.kernel.builtin()
        persisted = self._persisted({normal(name) for name in names})
        missing = {} if self.system.container else self.kernel.missing_next(persisted)
        found = {}
        for name in names:
            module = normal(name)
            planes = Planes(
                live="loaded" if module in builtin or self.kernel.loaded(name) else "unloaded",
                definitions=persisted[module],
            )
            if module in missing:
                planes.note = f"kernel {missing[module]}, which is installed and newer, has no such module"
            if self.system.container:
                planes.unsupported = KERNEL_SHARED
            elif module in builtin:
                planes.definitions = []
                planes.has_persisted = False
                planes.note = "built into this kernel"
            found[name] = planes
        return found

    def _persisted(self, modules: set[str]) -> dict[str, list[Definition]]:
        """Who loads and who denies each module at boot, the stronger after the weaker.

        Among equals the order decides nothing, whoever names the module is enough: our own file is last.
        """
        found = {}
        command_line = self._command_line()
        loads = [
            (normal(line), file, number)
            for file in ordered_files(self.system, LOAD_FOLDERS, ".conf")
            for number, line in _lines(self.system, file)
            if line[0] not in "#;"
        ]
        loads += [(normal(name), CMDLINE, 1) for name in _listed(command_line, "modules_load")]
        early = [
            (normal(line.split()[0]), INITRAMFS, number)
            for number, line in _lines(self.system, INITRAMFS)
            if line[0] != "#"
        ]
        configured = self._configured()
        for module in modules:
            blacklisted = [
                (file, number)
                for word, name, _rest, file, number in configured
                if word == "blacklist" and normal(name) == module
            ]
            blacklisted += [
                (CMDLINE, 1) for name in _listed(command_line, "modprobe.blacklist") if name == module
            ]
            never = [
                (file, number)
                for command, file, number in self._installs(configured, module)[:1]
                if _NO_INSTALL.match(command)
            ]
            never += [(CMDLINE, 1) for name in _listed(command_line, "module_blacklist") if name == module]
            found[module] = [
                *_definitions("loaded", [place[1:] for place in loads if place[0] == module]),
                *_definitions("unloaded", blacklisted),
                *_definitions("loaded", [place[1:] for place in early if place[0] == module]),
                *_definitions("unloaded", never),
            ]
        return found

    def _configured(self) -> list[tuple[str, str, str, str, int]]:
        """The lines of modprobe.d in reading order: command, name, the rest, file and line."""
        found = []
        for file in ordered_files(self.system, DENY_FOLDERS, ".conf"):
            for number, line in _lines(self.system, file, continued=True):
                words = line.split(None, 2)
                if len(words) > 1:
                    found.append((words[0], words[1], words[2] if len(words) > 2 else "", file, number))
        return found

    @staticmethod
    def _installs(
        configured: Sequence[tuple[str, str, str, str, int]], module: str
    ) -> list[tuple[str, str, int]]:
        """The `install` lines that fit a module; kmod runs the first one's command."""
        return [
            (rest, file, number)
            for word, name, rest, file, number in configured
            if word == "install" and rest and fnmatch.fnmatchcase(module, normal(name))
        ]

    def _command_line(self) -> list[tuple[str, str]]:
        try:
            words = self.system.read(CMDLINE).split()
        except OSError:
            return []
        pairs = (word.partition("=") for word in words)
        return [(key.replace("-", "_"), value) for key, _equals, value in pairs]

    # persistence

    @staticmethod
    def _file(owner: str, value: str) -> str:
        folder = "/etc/modules-load.d" if value == "loaded" else "/etc/modprobe.d"
        return f"{folder}/60-hosttune-{owner}.conf"

    def managed_file(self, owner: str, name: str) -> str:
        value = self._asked.get(name)
        if value is None:
            # Nobody said what is wanted (an undo, a read-back): then what stands on disk tells.
            denied = self._file(owner, "unloaded")
            lines = _lines(self.system, denied)
            value = "unloaded" if any(_is_deny_line(line, name) for _number, line in lines) else "loaded"
        return self._file(owner, value)

    def render(self, owner: str, settings: Sequence[Setting]) -> dict[str, FileImage]:
        found = {}
        for value in VALUES:
            mine = sorted((one for one in settings if one.value == value), key=lambda one: one.name)
            if mine:
                found[self._file(owner, value)] = FileImage((self.header(owner) + self.body(mine)).encode())
        return found

    def body(self, settings: Sequence[Setting]) -> str:
        return "".join(
            f"{setting.name}\n" if setting.value == "loaded" else f"blacklist {setting.name}\n"
            for setting in settings
        )

    # the live plane

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        failed = {}
        for change in changes:
            if change.value == "loaded":
                ended = self.system.run("modprobe", "--", change.name)
            else:
                ended = self.system.run("modprobe", "-r", "--", change.name)
            if ended.ok:
                continue
            said = ended.err.strip() or f"modprobe ended with status {ended.status}"
            if change.value == "unloaded":
                if not self.kernel.loaded(change.name):
                    continue
                said = f"stays loaded until the next boot{self._users(change.name)}: {said}"
            failed[change.name] = said
        return failed

    def _users(self, name: str) -> str:
        """Why a module cannot be unloaded, as far as the kernel tells."""
        folder = f"/sys/module/{normal(name)}"
        holders = self.system.names(f"{folder}/holders")
        if holders:
            return f", in use by {', '.join(holders)}"
        try:
            count = self.system.read_value(f"{folder}/refcnt")
        except OSError:
            return ""
        return f", in use {count} times" if count != "0" else ""


def _listed(command_line: Sequence[tuple[str, str]], key: str) -> list[str]:
    """The modules that a word of the kernel command line lists, as they are written.

    Neither kmod nor the kernel takes a dash in a deny list there for an underscore.
    """
    names = [name for word, value in command_line if word == key for name in value.split(",")]
    return list(dict.fromkeys(names))


def _definitions(value: str, places: Sequence[tuple[str, int]]) -> list[Definition]:
    ours_last = sorted(places, key=lambda place: "/60-hosttune-" in place[0])
    return [Definition(value, file, number) for file, number in ours_last]


def _lines(system: System, file: str, continued: bool = False) -> list[tuple[int, str]]:
    """The numbered lines of a configuration file that are not empty, stripped; none where it is missing.

    `continued`: a backslash at a line's end joins the next one to it, as in modprobe.d.
    """
    try:
        lines = system.read(file).split("\n")
    except OSError:
        return []
    found = []
    pending, start = "", 0
    for number, line in enumerate(lines, 1):
        start = start or number
        if continued and line.endswith("\\"):
            pending += line[:-1]
            continue
        whole = (pending + line).strip()
        if whole:
            found.append((start, whole))
        pending, start = "", 0
    if pending.strip():
        found.append((start, pending.strip()))
    return found


def _is_deny_line(line: str, name: str) -> bool:
    words = line.split()
    return len(words) == 2 and words[0] == "blacklist" and normal(words[1]) == normal(name)
