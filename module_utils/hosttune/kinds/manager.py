"""Kind manager: the service manager's own configuration, section [Manager] of systemd-system.conf(5).

Name: DIRECTIVE, such as `DefaultTasksMax`. Live is the manager's property where systemd has one, for
CPUAffinity and the NUMA policy what PID 1 itself has; the other directives have no live plane. Files become
live by one `systemctl daemon-reexec`, which restarts no service; services that run keep the defaults they
began with. CPUAffinity and the NUMA policy are taken up at boot only (a manager that re-executes itself skips
that setup; seen with 252).
The watchdog is `unsupported` where there is none that hardware drives. Live of RuntimeWatchdogSec is what
the device has, not what systemd was told: one that another program holds is not armed, and some take another
timeout than asked. With `nowayout` it cannot be disarmed: what would close it waits for the next boot, since
the machine would be reset.
Persisted truth: /etc/systemd/system.conf (from systemd 256 on the first of the folders below), then the
drop-ins of all of them by base name; the last assignment wins, for CPUAffinity and other lists what has
accumulated since the last empty one. Assignments that systemd refuses say nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence

from .. import watchdog
from ..model import Change, Definition, Planes, Refusal, Setting, squeeze
from ..system import System
from ..systemd import (
    Assignment,
    Systemd,
    boolean,
    cpu_set,
    integer,
    limit,
    limit_text,
    nanoseconds,
    read_assignments,
)
from .base import Kind, did_you_mean, ordered_files

FOLDERS = ("/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd", "/lib/systemd")
#: The systemd that first reads its main file in every folder; cat-config of 252 shows them and is wrong.
MAIN_ANYWHERE = 256
#: How long the manager may take until it answers again after it has re-executed itself.
REEXEC_SECONDS = 15.0


def words(text: str) -> frozenset[str]:
    """The words of a text, for tables of directives that would otherwise be pages of quotes."""
    return frozenset(text.split())


_LIMITS = words(
    "CPU FSIZE DATA STACK CORE RSS NOFILE AS NPROC MEMLOCK LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME"
)
_SPANS = words(
    "RuntimeWatchdogSec RuntimeWatchdogPreSec RebootWatchdogSec KExecWatchdogSec DefaultTimerAccuracySec "
    "DefaultTimeoutStartSec DefaultTimeoutStopSec DefaultTimeoutAbortSec DefaultDeviceTimeoutSec "
    "DefaultRestartSec DefaultStartLimitIntervalSec"
)
_BOOLEANS = words(
    "DefaultCPUAccounting DefaultIOAccounting DefaultIPAccounting DefaultMemoryAccounting "
    "DefaultTasksAccounting"
)
_WORDS = words(
    "LogLevel CtrlAltDelBurstAction DefaultOOMPolicy DefaultStandardOutput DefaultStandardError "
    "DefaultStartLimitBurst DefaultOOMScoreAdjust"
)
#: One word of these.
_CHOICES = {
    "DefaultOOMPolicy": words("continue stop kill"),
    "LogLevel": words("emerg alert crit err warning notice info debug 0 1 2 3 4 5 6 7"),
    "NUMAPolicy": words("default preferred bind interleave local"),
}
#: Directives without a property in systemd 252, seen with `busctl introspect`.
_FILES_ONLY = words(
    "LogTarget LogColor LogLocation LogTime DumpCore ShowStatus CrashChangeVT CrashShell CrashReboot "
    "RuntimeWatchdogPreGovernor WatchdogDevice CapabilityBoundingSet NoNewPrivileges "
    "SystemCallArchitectures StatusUnitFormat DefaultEnvironment ManagerEnvironment DefaultSmackProcessLabel"
)
#: Assignments of these add to the earlier ones; an empty one clears them.
_ACCUMULATING = frozenset(
    {
        "CPUAffinity",
        "NUMAMask",
        "CapabilityBoundingSet",
        "SystemCallArchitectures",
        "DefaultEnvironment",
        "ManagerEnvironment",
    }
)
_CPU_SETS = frozenset({"CPUAffinity", "NUMAMask"})
_AT_BOOT = frozenset({"CPUAffinity", "NUMAPolicy", "NUMAMask"})

#: What needs a watchdog; those of them that need one which can warn before it resets.
_WATCHDOG = words(
    "RuntimeWatchdogSec RuntimeWatchdogPreSec RuntimeWatchdogPreGovernor RebootWatchdogSec KExecWatchdogSec "
    "WatchdogDevice"
)
_WARNING = words("RuntimeWatchdogPreSec RuntimeWatchdogPreGovernor")
_DEVICE = re.compile(r"/dev/watchdog\d*\Z")

#: Of the directives with one value, an empty assignment changes these; systemd 252 refuses it for the others.
_RESET_BY_EMPTY = frozenset({"DefaultTasksMax", "DefaultOOMScoreAdjust", "NUMAPolicy"})

#: Directive -> the properties that show it, none where systemd has none.
PROPERTIES: dict[str, tuple[str, ...]] = {
    **{f"DefaultLimit{one}": (f"DefaultLimit{one}Soft", f"DefaultLimit{one}") for one in _LIMITS},
    **{one: (one[:-3] + "USec",) for one in _SPANS},
    **{one: (one,) for one in (*_BOOLEANS, *_WORDS, "DefaultTasksMax", "TimerSlackNSec")},
    **{one: () for one in (*_FILES_ONLY, *_AT_BOOT)},
}


class ManagerKind(Kind):
    name = "manager"

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.systemd = Systemd(system)

    # names and values

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        for setting in settings:
            if setting.name not in PROPERTIES:
                raise Refusal(
                    "is no directive of section [Manager]",
                    thing=str(setting),
                    remedy=did_you_mean(setting.name, PROPERTIES) or "See systemd-system.conf(5)",
                )
            if not setting.value:
                raise Refusal("has no value", thing=str(setting), remedy="Give one, or leave the name out")
            if setting.name == "DefaultTasksMax" and setting.value.endswith("%"):
                raise Refusal(
                    "a percentage cannot be compared with the number that systemd shows",
                    thing=str(setting),
                    remedy="Give a number of tasks, or infinity",
                )
            try:
                _canonical(setting.name, setting.value)
            except ValueError as error:
                raise Refusal(str(error), thing=str(setting), remedy="See systemd-system.conf(5)") from error
            if setting.name == "DefaultOOMScoreAdjust" and not -1000 <= integer(setting.value) <= 1000:
                raise Refusal(
                    f"{setting.value} is out of range", thing=str(setting), remedy="Give -1000 to 1000"
                )
            if setting.name in _CPU_SETS:
                check_present(self.system, setting, setting.name)
        self._check_watchdog([one for one in settings if one.name in _WATCHDOG])

    def _check_watchdog(self, settings: Sequence[Setting]) -> None:
        """Refuses timeouts and governors that the driver does not have."""
        device = next((one.value for one in settings if one.name == "WatchdogDevice"), watchdog.DEVICE)
        found = watchdog.read(self.system, device)
        for setting in settings:
            if setting.name == "WatchdogDevice" and not _DEVICE.match(setting.value):
                raise Refusal(
                    f"'{setting.value}' is no watchdog",
                    thing=str(setting),
                    remedy="Give a device such as /dev/watchdog0",
                )
            if found is None:
                continue
            if setting.name == "RuntimeWatchdogPreGovernor" and found.governors:
                if setting.value not in found.governors:
                    raise Refusal(
                        f"this kernel has no governor '{setting.value}'",
                        thing=str(setting),
                        remedy=f"It has {' and '.join(found.governors)}; others are modules pretimeout_*",
                    )
            elif setting.name in ("RuntimeWatchdogSec", "RebootWatchdogSec", "KExecWatchdogSec"):
                seconds = _seconds(setting.name, setting.value)
                if seconds and not (found.least or 1) <= seconds <= (found.most or seconds):
                    raise Refusal(
                        f"'{setting.value}' is no timeout that {found.identity or device} takes",
                        thing=str(setting),
                        remedy=f"Give {found.least or 1} s to {found.most or 'any number of'} s",
                    )

    def clamps(self, name: str, wanted: str, found: str) -> str:
        if name == "RuntimeWatchdogSec" and _seconds(name, found):
            return f"the watchdog's driver took {found}, the nearest timeout that it has"
        return ""

    def same(self, name: str, wanted: str, found: str) -> bool:
        try:
            return _canonical(name, wanted) == _canonical(name, found)
        except ValueError:
            return wanted == found

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        unreadable = ""
        lines: list[Assignment] = []
        try:
            lines = read_assignments(self.system, self._files())
        except OSError as error:
            unreadable = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        properties = sorted({one for name in names for one in PROPERTIES.get(name, ())})
        shown: dict[str, str] = {}
        silent = ""
        if properties:
            try:
                shown = self.systemd.manager(properties)
            except OSError as error:
                silent = str(error.strerror)
        found = {}
        for name in names:
            planes = Planes(unknown=unreadable)
            planes.definitions = definitions(
                [
                    one
                    for one in lines
                    if (one.section, one.name) == ("Manager", name) and takes(name, one.value)
                ],
                name in _ACCUMULATING,
            )
            needed = PROPERTIES.get(name, ())
            if needed and silent:
                planes.unknown = planes.unknown or silent
            elif needed and any(one not in shown for one in needed):
                planes.unsupported = f"this systemd shows no {' and '.join(needed)}"
            elif needed:
                planes.live = (
                    limit_text(*(shown[one] for one in needed)) if len(needed) == 2 else shown[needed[0]]
                )
            elif name in _AT_BOOT:
                self._read_at_boot(name, planes)
            else:
                planes.has_live = False
                planes.note = "systemd shows no property of it: judged by its files"
            if name in _WATCHDOG and not planes.unknown:
                self._read_watchdog(name, planes, lines)
            if planes.has_live and not agrees(self, name, planes):
                planes.needs = "reboot" if name in _AT_BOOT else "reload"
            elif planes.has_live and name in _AT_BOOT and planes.winner is None:
                # Nothing says what the next boot gives: whatever is changed or taken back waits for it.
                planes.needs = "reboot"
            found[name] = planes
        return found

    def _read_watchdog(self, name: str, planes: Planes, lines: Sequence[Assignment]) -> None:
        found = self._watchdog(lines)
        device = found.device if found else _device(lines)
        planes.unsupported = planes.unsupported or watchdog.why_none(self.system, device, found)
        if found is None or planes.unsupported:
            return
        if name in _WARNING and not found.warns:
            planes.unsupported = f"{found.identity or device} gives no warning before it resets"
        if name != "RuntimeWatchdogSec" or planes.live is None:
            return
        told = _seconds(name, planes.live)
        if told and found.armed is False:
            planes.note = f"systemd was told {planes.live} and could not arm {device}: who holds it?"
            planes.live = "0"
        elif told and found.armed and found.timeout not in (None, told):
            planes.live = f"{found.timeout}s"

    def _watchdog(self, lines: Sequence[Assignment]) -> watchdog.Watchdog | None:
        return watchdog.read(self.system, _device(lines))

    def _read_at_boot(self, name: str, planes: Planes) -> None:
        if name != "CPUAffinity":
            try:
                planes.live = memory_policy(self.system, "1")[0 if name == "NUMAPolicy" else 1]
            except (OSError, IndexError):
                planes.unsupported = "this kernel shows no memory policies (it has no /proc/1/numa_maps)"
            return
        try:
            status = self.system.read("/proc/1/status")
        except OSError as error:
            planes.unknown = planes.unknown or f"/proc/1/status: {error.strerror}"
            return
        for line in status.split("\n"):
            if line.startswith("Cpus_allowed_list:"):
                planes.live = line.partition(":")[2].strip()

    def _files(self) -> list[str]:
        return self._main_file() + ordered_files(
            self.system, [f"{folder}/system.conf.d" for folder in FOLDERS], ".conf"
        )

    def _main_file(self) -> list[str]:
        """The one main file that systemd reads; before MAIN_ANYWHERE that in /etc or none."""
        found = [f"{folder}/system.conf" for folder in FOLDERS if self.system.exists(f"{folder}/system.conf")]
        if not found or found[0] == f"{FOLDERS[0]}/system.conf":
            return found[:1]
        version = re.match(r"\d+", self.systemd.manager(("Version",)).get("Version", ""))
        return found[:1] if version and int(version[0]) >= MAIN_ANYWHERE else []

    # persistence

    def managed_file(self, owner: str, name: str) -> str:
        return f"/etc/systemd/system.conf.d/60-hosttune-{owner}.conf"

    def body(self, settings: Sequence[Setting]) -> str:
        lines = ["[Manager]"]
        for setting in settings:
            if setting.name in _ACCUMULATING:
                lines.append(f"{setting.name}=")
            lines.append(f"{setting.name}={setting.value}")
        return "\n".join(lines) + "\n"

    # the live plane

    def reaches(self, name: str, planes: Planes) -> bool:
        return name not in _AT_BOOT and super().reaches(name, planes)

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        """One daemon-reexec; a daemon-reload would not take up TimerSlackNSec."""
        files = list(files)
        if not changes and not files:
            return {}
        resets = self._would_reset()
        if resets:
            return dict.fromkeys([change.name for change in changes] or files, resets)
        ended = self.system.run("systemctl", "daemon-reexec")
        # The answer may be lost with the process that gave it: what counts is that the new one speaks.
        end = time.monotonic() + REEXEC_SECONDS
        while True:
            try:
                self.systemd.manager(("Version",))
            except OSError as error:
                if time.monotonic() > end:
                    said = ended.err.strip() or error.strerror
                    why = f"systemd does not answer since its daemon-reexec: {said}"
                    return {change.name: why for change in changes} or {"": why}
                time.sleep(0.2)
            else:
                return {}

    def _would_reset(self) -> str:
        """Why systemd must not take up its files now: it would close a watchdog that cannot be disarmed."""
        lines = read_assignments(self.system, self._files())
        found = self._watchdog(lines)
        if found is None or not (found.armed and found.nowayout):
            return ""
        told = [one.value for one in lines if one.name == "RuntimeWatchdogSec" and takes(one.name, one.value)]
        if told and _seconds("RuntimeWatchdogSec", told[-1]):
            return ""
        return f"{found.device} has nowayout, so disarming it would reset this machine: the next boot does it"


def _device(lines: Sequence[Assignment]) -> str:
    """The watchdog that systemd opens."""
    named = [one.value for one in lines if (one.section, one.name) == ("Manager", "WatchdogDevice")]
    return (named and named[-1]) or watchdog.DEVICE


def _seconds(name: str, text: str) -> int:
    """A timeout of the watchdog in whole seconds, as systemd rounds it; 0 where it is off or none."""
    try:
        found = _canonical(name, text)
    except ValueError:
        return 0
    return -(-found // 10**9) if isinstance(found, int) else 0


def memory_policy(system: System, pid: str) -> tuple[str, str]:
    """The NUMA policy and its nodes of a process in systemd's words; raises OSError, IndexError.

    From its first mapping, which has no policy of its own. The rest of numa_maps is never read: the kernel
    would walk all pages of a database's shared memory.
    """
    with open(system.path(f"/proc/{pid}/numa_maps"), "rb", buffering=0) as stream:
        fields = stream.read(160).decode("ascii", "replace").split()
    policy, _, nodes = fields[1].partition(":")
    word = policy.partition("=")[0]
    return ("preferred" if word == "prefer" else word), nodes.partition("=")[0]


def agrees(kind: Kind, name: str, planes: Planes) -> bool:
    """Whether what is live is what the files say; where they say nothing or reset it, the default is live."""
    winner = planes.winner
    return (
        winner is None
        or not winner.value
        or (planes.live is not None and kind.same(name, winner.value, planes.live))
    )


def check_present(system: System, setting: Setting, directive: str) -> None:
    """Raises Refusal for CPUs or NUMA nodes that this host does not have."""
    if setting.value in ("numa", "all"):
        return
    what, file = ("CPUs", "/sys/devices/system/cpu/present")
    if directive.endswith(("Mask", "MemoryNodes")):
        what, file = ("NUMA nodes", "/sys/devices/system/node/possible")
    try:
        present = system.read_value(file)
        missing = cpu_set(setting.value) - cpu_set(present)
    except (OSError, ValueError):
        return  # nothing to compare with
    if missing:
        raise Refusal(
            f"'{setting.value}' names {what} that this host does not have",
            thing=str(setting),
            remedy=f"It has {present}",
        )


def definitions(lines: Sequence[Assignment], accumulating: bool) -> list[Definition]:
    """The assignments of one directive in reading order; the last one's value is what results of all.

    Where assignments accumulate, an empty one clears what came before: it is a definition only where nothing
    follows it.
    """
    found: list[Definition] = []
    held: list[str] = []
    for one in lines:
        value = squeeze(one.value)
        if accumulating:
            if found and not found[-1].value:
                found.pop()
            held = [*held, value] if value else []
        found.append(Definition(value, one.file, one.line))
    if accumulating and len(held) > 1:
        found[-1] = Definition(" ".join(held), found[-1].file, found[-1].line)
    return found


def takes(name: str, value: str) -> bool:
    """Whether systemd takes this assignment; of one that it does not it only warns in its log."""
    if not value:
        return name in _ACCUMULATING | _FILES_ONLY or name in _RESET_BY_EMPTY
    try:
        _canonical(name, value)
    except ValueError:
        return name == "DefaultTasksMax" and value.endswith("%")
    return True


def _canonical(name: str, text: str) -> object:
    """What can be compared of a value; raises ValueError for text that is none of this directive."""
    if name.startswith("DefaultLimit"):
        return limit(name[len("DefaultLimit") :], text)
    if name in _SPANS:
        if name.endswith(("WatchdogSec", "WatchdogPreSec")) and text.lower() in ("off", "default"):
            return 0 if text.lower() == "off" else "default"
        return nanoseconds(text)
    if name in _BOOLEANS:
        return boolean(text)
    if name in _CPU_SETS:
        return text if text in ("numa", "all") else cpu_set(text)
    if name == "DefaultTasksMax":
        return None if text == "infinity" else integer(text)
    if name == "TimerSlackNSec":
        return nanoseconds(text, "ns")
    if name in ("DefaultStartLimitBurst", "DefaultOOMScoreAdjust"):
        return integer(text)
    if name in _CHOICES and text.lower() not in _CHOICES[name]:
        raise ValueError(f"'{text}' is none of {', '.join(sorted(_CHOICES[name]))}")
    if name in _FILES_ONLY:
        return text
    return text.lower()
