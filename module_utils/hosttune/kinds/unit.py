"""Kind unit: directives of systemd units, as drop-ins.

Name: UNIT/SECTION/DIRECTIVE, such as `redis-server.service/Service/LimitNOFILE`; UNIT may be an instance or a
template. Planes:

- persisted: the unit file and all its drop-ins in systemd's order, those of templates, of prefixes and of
  the whole type too. The last assignment wins; where assignments accumulate, an empty one clears the earlier
  ones, and so our file begins such a directive with an empty assignment: what it says is all there is.
  Dependencies cannot be cleared: ours are added, and right when they are among the others.
- live: what the manager has loaded, from `systemctl show`. A directive without a comparable property is live
  as the files say, unless systemd says that it needs a daemon-reload. Templates have no live plane.
- process: what the running main process has (/proc/PID). A directive that is taken at the start of the
  process and that /proc does not show is compared by time: a file newer than the process was not read by it.
  That can ask for one restart too many, when another directive of the same file changed; never for too few.
  Of a template it is that of the first running instance which has another value, named with it.

Written files become live by one `systemctl daemon-reload`. Nothing is restarted here.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..model import Call, Change, Planes, Refusal, Setting, octal_in_quotes, squeeze
from ..system import System
from ..systemd import (
    Assignment,
    Systemd,
    boolean,
    cpu_set,
    dropins,
    expand,
    fragment,
    integer,
    is_masked,
    is_template,
    limit,
    limit_text,
    nanoseconds,
    near_units,
    or_list,
    read_assignments,
    size,
    template_of,
)
from .base import Kind, did_you_mean
from .manager import agrees, check_present, definitions, memory_policy, words

#: The section that is a unit type's own.
SECTIONS = {
    "service": "Service",
    "socket": "Socket",
    "mount": "Mount",
    "automount": "Automount",
    "swap": "Swap",
    "timer": "Timer",
    "path": "Path",
    "slice": "Slice",
    "scope": "Scope",
    "target": "",
    "device": "",
}
_PROGRAMS = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")

#: /proc/PID/limits calls them so.
_LIMIT_LINES = {
    "CPU": "Max cpu time",
    "FSIZE": "Max file size",
    "DATA": "Max data size",
    "STACK": "Max stack size",
    "CORE": "Max core file size",
    "RSS": "Max resident set",
    "NPROC": "Max processes",
    "NOFILE": "Max open files",
    "MEMLOCK": "Max locked memory",
    "AS": "Max address space",
    "LOCKS": "Max file locks",
    "SIGPENDING": "Max pending signals",
    "MSGQUEUE": "Max msgqueue size",
    "NICE": "Max nice priority",
    "RTPRIO": "Max realtime priority",
    "RTTIME": "Max realtime timeout",
}


_CPU_SETS = words(
    "CPUAffinity NUMAMask AllowedCPUs StartupAllowedCPUs AllowedMemoryNodes StartupAllowedMemoryNodes"
)
_SIZES = words(
    "MemoryMin MemoryLow MemoryHigh MemoryMax MemorySwapMax MemoryLimit DefaultMemoryMin "
    "DefaultMemoryLow TasksMax"
)
_NUMBERS = words(
    "Nice OOMScoreAdjust CPUSchedulingPriority IOSchedulingPriority StartLimitBurst LogRateLimitBurst "
    "CPUWeight StartupCPUWeight IOWeight StartupIOWeight FileDescriptorStoreMax Backlog"
)
_BOOLEANS = words(
    "CPUSchedulingResetOnFork NoNewPrivileges LockPersonality RemainAfterExit PrivateTmp PrivateDevices "
    "PrivateNetwork PrivateUsers PrivateIPC PrivateMounts ProtectClock ProtectControlGroups "
    "ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables "
    "MemoryDenyWriteExecute RestrictRealtime RestrictSUIDSGID RemoveIPC SendSIGKILL SendSIGHUP "
    "CPUAccounting MemoryAccounting TasksAccounting IOAccounting IPAccounting IgnoreSIGPIPE "
    "GuessMainPID RefuseManualStart RefuseManualStop StopWhenUnneeded Persistent WakeSystem DynamicUser"
)
#: One word of these.
_CHOICES = {
    "NUMAPolicy": words("default preferred bind interleave local"),
    "Restart": words("no always on-success on-failure on-abnormal on-watchdog on-abort"),
    "Type": words("simple exec forking oneshot dbus notify notify-reload idle"),
    "KillMode": words("control-group process mixed none"),
    "OOMPolicy": words("continue stop kill"),
    "ProtectSystem": words("full strict"),
    "ProtectHome": words("read-only tmpfs"),
}
_PLAIN = words("User Group Slice Description") | frozenset(_CHOICES)
#: Directives whose specifiers (%i) systemd expands before it shows the value.
_EXPANDED = words(
    "Description User Group Slice CPUAffinity AllowedCPUs StartupAllowedCPUs AllowedMemoryNodes"
)
#: An empty assignment gives these their default again. Of the others with one value, systemd 252 refuses it.
_RESET_BY_EMPTY = words(
    "Description User Group NUMAPolicy Nice OOMScoreAdjust KillMode CPUSchedulingPolicy IOSchedulingClass "
    "IOSchedulingPriority CPUQuota CPUWeight StartupCPUWeight IOWeight StartupIOWeight TasksMax MemoryMin "
    "MemoryLow MemoryHigh MemoryMax MemorySwapMax MemoryLimit DefaultMemoryMin DefaultMemoryLow"
)
_SIGNALS = words("KillSignal RestartKillSignal FinalKillSignal WatchdogSignal")
#: `systemctl show` prints these as numbers (ioprio.h, sched.h).
_NAMED = {
    "CPUSchedulingPolicy": {"other": 0, "fifo": 1, "rr": 2, "batch": 3, "idle": 5},
    "IOSchedulingClass": {"none": 0, "realtime": 1, "best-effort": 2, "idle": 3},
}
#: systemd only warns in its log of a number outside and then keeps what it had.
_RANGES = {
    "Nice": (-20, 19),
    "OOMScoreAdjust": (-1000, 1000),
    "CPUSchedulingPriority": (0, 99),
    "IOSchedulingPriority": (0, 7),
    "IOSchedulingClass": (0, 7),
    **dict.fromkeys(("CPUWeight", "StartupCPUWeight", "IOWeight", "StartupIOWeight"), (1, 10000)),
}
_COREDUMP_BITS = (
    "private-anonymous",
    "shared-anonymous",
    "private-file-backed",
    "shared-file-backed",
    "elf-headers",
    "private-huge",
    "shared-huge",
    "private-dax",
    "shared-dax",
)
_COREDUMP_DEFAULT = 0x33
#: Time spans whose zero means "no limit" (config_parse_service_timeout and parse_sec_fix_0 of 252).
_ZERO_IS_INFINITY = words(
    "TimeoutStartSec TimeoutStopSec TimeoutAbortSec TimeoutSec JobTimeoutSec JobRunningTimeoutSec"
)
#: Time spans that are no property with the name of the directive.
_SPAN_WITHOUT_PROPERTY = words(
    "TimeoutSec OnActiveSec OnBootSec OnStartupSec OnUnitActiveSec OnUnitInactiveSec"
)

#: Assignments of these are added to the earlier ones and cannot be taken back (systemd.unit(5)).
ADDED = words(
    "After Before Wants Requires Requisite BindsTo PartOf Upholds Conflicts OnFailure OnSuccess "
    "PropagatesReloadTo ReloadPropagatedFrom PropagatesStopTo StopPropagatedFrom JoinsNamespaceOf "
    "RequiresMountsFor"
)
#: Assignments of these are added to the earlier ones; an empty one clears them.
CLEARED = words(
    "CPUAffinity NUMAMask AllowedCPUs StartupAllowedCPUs AllowedMemoryNodes StartupAllowedMemoryNodes "
    "Environment EnvironmentFile PassEnvironment UnsetEnvironment ExecCondition ExecStartPre ExecStart "
    "ExecStartPost ExecReload ExecStop ExecStopPost SupplementaryGroups CapabilityBoundingSet "
    "AmbientCapabilities SystemCallFilter SystemCallArchitectures SystemCallLog RestrictAddressFamilies "
    "RestrictNamespaces RestrictFileSystems ReadWritePaths ReadOnlyPaths InaccessiblePaths ExecPaths "
    "NoExecPaths BindPaths BindReadOnlyPaths TemporaryFileSystem ExtensionImages ExtensionDirectories "
    "RuntimeDirectory StateDirectory CacheDirectory LogsDirectory ConfigurationDirectory LoadCredential "
    "LoadCredentialEncrypted SetCredential LogExtraFields DeviceAllow IODeviceWeight IOReadBandwidthMax "
    "IOWriteBandwidthMax IOReadIOPSMax IOWriteIOPSMax IODeviceLatencyTargetSec IPAddressAllow "
    "IPAddressDeny SocketBindAllow SocketBindDeny SuccessExitStatus RestartPreventExitStatus "
    "RestartForceExitStatus Documentation CoredumpFilter OnCalendar OnActiveSec OnBootSec OnStartupSec "
    "OnUnitActiveSec OnUnitInactiveSec ListenStream ListenDatagram ListenFIFO PathExists PathChanged "
    "PathModified DirectoryNotEmpty ConditionPathExists ConditionPathIsDirectory "
    "ConditionVirtualization AssertPathExists"
)
#: Taken by a process when it starts and shown nowhere in /proc: compared by the age of the file.
_AT_START = words(
    "Environment EnvironmentFile PassEnvironment UnsetEnvironment ExecStart ExecStartPre User Group "
    "SupplementaryGroups DynamicUser WorkingDirectory RootDirectory RootImage StandardInput "
    "StandardOutput StandardError CapabilityBoundingSet AmbientCapabilities SystemCallFilter "
    "SystemCallArchitectures RestrictAddressFamilies RestrictNamespaces RestrictRealtime "
    "RestrictSUIDSGID RestrictFileSystems ReadWritePaths ReadOnlyPaths InaccessiblePaths ExecPaths "
    "NoExecPaths BindPaths BindReadOnlyPaths TemporaryFileSystem RuntimeDirectory StateDirectory "
    "CacheDirectory LogsDirectory ConfigurationDirectory LoadCredential SetCredential PrivateTmp "
    "PrivateDevices PrivateNetwork PrivateUsers PrivateIPC PrivateMounts ProtectClock "
    "ProtectControlGroups ProtectHome ProtectHostname ProtectKernelLogs ProtectKernelModules "
    "ProtectKernelTunables ProtectProc ProcSubset ProtectSystem LockPersonality MemoryDenyWriteExecute "
    "IOSchedulingClass IOSchedulingPriority Type WatchdogSec Slice Delegate"
)
#: Lines of other names that set a directive as well: shorthands, and where older systemd had them.
_ALSO_SET_BY = {
    "TimeoutStartSec": (("Service", "TimeoutSec"),),
    "TimeoutStopSec": (("Service", "TimeoutSec"),),
    "StartLimitBurst": (("Service", "StartLimitBurst"),),
    "StartLimitIntervalSec": (("Service", "StartLimitInterval"), ("Unit", "StartLimitInterval")),
}
_CAP_SYS_NICE = 23
_CAP_SYS_RESOURCE = 24
_ALWAYS_SHOWN = (
    "LoadState",
    "LoadError",
    "FragmentPath",
    "DropInPaths",
    "Names",
    "NeedDaemonReload",
    "MainPID",
    "ExecMainStartTimestamp",
)


def properties(directive: str) -> tuple[str, ...]:
    """The properties in which `systemctl show` prints a directive, none where they cannot be compared."""
    if directive.startswith("Limit") and directive[5:] in _LIMIT_LINES:
        return (f"{directive}Soft", directive)
    if directive == "CPUQuota":
        return ("CPUQuotaPerSecUSec",)
    if directive == "TimerSlackNSec":
        return (directive,)
    if directive.endswith("Sec") and directive not in _SPAN_WITHOUT_PROPERTY | CLEARED:
        return (f"{directive[:-3]}USec",)
    if directive.startswith("Startup") and directive in _CPU_SETS:
        return ()  # systemctl 252 prints these as raw bytes
    one_to_one = _CPU_SETS | _SIZES | _NUMBERS | _BOOLEANS | _PLAIN | _SIGNALS
    if directive in one_to_one or directive in _NAMED or directive in ("UMask", "CoredumpFilter"):
        return (directive,)
    return ()


class UnitKind(Kind):
    name = "unit"

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.systemd = Systemd(system)
        #: units whose own file comes with the same call
        self._coming: set[str] = set()
        #: what runs with a setting, by its name: several processes of a template
        self._running: dict[str, list[_Process]] = {}

    # names and values

    def text(self, name: str, value: Any) -> str:
        directive = name.rpartition("/")[2]
        if (directive == "UMask" or directive.endswith("Mode")) and isinstance(value, (int, float)):
            raise octal_in_quotes(self.name, name, value)
        return super().text(name, value)

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        known = self._directives()
        shown = self._shown({split(one.name)[0] for one in settings if one.name.count("/") == 2}, ())
        for setting in settings:
            if setting.name.count("/") != 2:
                raise Refusal(
                    "is no name of a unit's directive",
                    thing=str(setting),
                    remedy="Names are UNIT/SECTION/DIRECTIVE: redis-server.service/Service/LimitNOFILE",
                )
            unit, section, directive = split(setting.name)
            self._check_place(setting, unit, section, directive, known)
            self._check_exists(setting, unit, shown.get(unit, {}), packages)
            self._check_value(setting, directive)

    def _check_place(
        self, setting: Setting, unit: str, section: str, directive: str, known: Mapping[str, frozenset[str]]
    ) -> None:
        type_ = unit.rpartition(".")[2]
        if "." not in unit or type_ not in SECTIONS:
            raise Refusal(
                f"'{unit}' is no name of a unit",
                thing=str(setting),
                remedy=f"Write it with its type: {unit}.service",
            )
        allowed = ["Unit"] + ([SECTIONS[type_]] if SECTIONS[type_] else [])
        if section not in allowed:
            raise Refusal(
                f"a drop-in of a {type_} has no section [{section}]",
                thing=str(setting),
                remedy=did_you_mean(section, allowed) or f"Sections are {' and '.join(allowed)}",
            )
        if section in known and directive not in known[section]:
            elsewhere = [one for one in allowed if directive in known.get(one, ())]
            raise Refusal(
                f"systemd knows no {directive} in section [{section}]",
                thing=str(setting),
                remedy=f"It belongs to section [{elsewhere[0]}]"
                if elsewhere
                else did_you_mean(directive, known[section]) or "See systemd.directives(7)",
            )

    def _check_exists(
        self, setting: Setting, unit: str, shown: Mapping[str, str], packages: Mapping[str, Sequence[str]]
    ) -> None:
        if setting.notes.get("unit_from") == "file":
            self._coming.add(unit)
            return
        if fragment(self.system, unit) is None and shown.get("LoadState", "not-found") == "not-found":
            if packages.get(setting.owner):
                return
            raise Refusal(
                f"there is no unit {unit}",
                thing=str(setting),
                remedy=or_list(near_units(self.system, unit))
                or "Install what brings it first, or correct the name",
            )
        target = shown.get("Id", unit)
        if target != unit and not is_template(unit):
            raise Refusal(
                f"{unit} is another name of {target}",
                thing=str(setting),
                remedy=f"Name {target}: under two names a setting could have two owners",
            )

    def _check_value(self, setting: Setting, directive: str) -> None:
        value = setting.value
        if not value and directive not in CLEARED:
            raise Refusal("has no value", thing=str(setting), remedy="Give one, or leave the name out")
        if value.endswith("%") and directive in _SIZES:
            raise Refusal(
                "a percentage cannot be compared with the number that systemd shows",
                thing=str(setting),
                remedy="Give a number" if directive == "TasksMax" else "Give a size, such as 512M",
            )
        try:
            _canonical(directive, value)
        except ValueError as error:
            choices = sorted(_NAMED[directive]) if directive in _NAMED else []
            raise Refusal(
                f"'{value}' is no value of {directive} ({error})",
                thing=str(setting),
                remedy=f"Values are {', '.join(choices)}" if choices else "See systemd.directives(7)",
            ) from error
        if not takes(directive, value):
            within = _RANGES.get(directive)
            raise Refusal(
                f"{value} is out of range" if within else f"systemd takes no '{value}'",
                thing=str(setting),
                remedy=f"Give {within[0]} to {within[1]}" if within else "See systemd.directives(7)",
            )
        if directive in _CPU_SETS:
            check_present(self.system, setting, directive)

    def _directives(self) -> dict[str, frozenset[str]]:
        """Section -> the directives that this systemd knows there; empty where it does not say."""
        for program in _PROGRAMS:
            ended = self.system.run(program, "--dump-configuration-items")
            if ended.ok:
                found: dict[str, set[str]] = {}
                section: set[str] = set()
                for line in ended.out.split("\n"):
                    if line.startswith("["):
                        section = found.setdefault(line.strip("[]"), set())
                    elif "=" in line:
                        section.add(line.partition("=")[0])
                return {name: frozenset(names) for name, names in found.items()}
        return {}

    def same(self, name: str, wanted: str, found: str) -> bool:
        unit, _section, directive = split(name)
        if directive in ADDED:
            return set(wanted.split()) <= set(found.split())
        if directive in _EXPANDED:
            wanted = expand(wanted, unit) if wanted != found else wanted
        try:
            return _canonical(directive, wanted) == _canonical(directive, found)
        except ValueError:
            return wanted == found

    # planes

    def _shown(self, units: Iterable[str], extra: Iterable[str]) -> dict[str, dict[str, str]]:
        """What systemd shows of units; templates, which it cannot show, are left out. Never raises."""
        try:
            return self.systemd.show(
                [unit for unit in units if not is_template(unit)], (*_ALWAYS_SHOWN, *sorted(set(extra)))
            )
        except OSError as error:
            self._silent = str(error.strerror)
            return {}

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        self._silent = ""
        self._running = {name: found for name, found in self._running.items() if name not in names}
        by_unit: dict[str, list[str]] = {}
        for name in names:
            by_unit.setdefault(split(name)[0], []).append(name)
        wanted = {one for name in names for one in properties(split(name)[2])}
        shown = self._shown(by_unit, wanted)
        instances = self._instances([unit for unit in by_unit if is_template(unit)], wanted)
        found: dict[str, Planes] = {}
        for unit, mine in by_unit.items():
            found.update(self._read_unit(unit, mine, shown.get(unit, {})))
            for instance, about in instances.items():
                if template_of(instance) == unit:
                    self._read_instance(instance, about, {name: found[name] for name in mine})
        return found

    def _instances(self, templates: Sequence[str], extra: Iterable[str]) -> dict[str, dict[str, str]]:
        """What systemd shows of the running instances of templates. Never raises."""
        try:
            shown = self.systemd.instances(templates, (*_ALWAYS_SHOWN, *sorted(set(extra))))
        except OSError as error:
            self._silent = str(error.strerror)
            return {}
        return {unit: about for unit, about in shown.items() if about.get("MainPID", "0") != "0"}

    def _read_instance(self, instance: str, shown: Mapping[str, str], of: Mapping[str, Planes]) -> None:
        """Tells the templates' planes what a running instance has, where the template decides that."""
        own = {_of_unit(name, instance): name for name in of}
        for mine, planes in self._read_unit(instance, list(own), shown).items():
            name = own[mine]
            running = self._running.pop(mine, [])
            if of[name].unknown or of[name].unsupported or not running:
                continue
            self._running[name] = [*self._running.get(name, []), *running]
            if planes.needs == "restart" and _place(planes) == _place(of[name]):
                _blame(of[name], planes, instance)

    def _read_unit(self, unit: str, names: Sequence[str], shown: Mapping[str, str]) -> dict[str, Planes]:
        file = fragment(self.system, unit)
        problem = self._problem(unit, file, shown)
        if problem:
            return {name: Planes(unknown=problem) for name in names}
        if (file and is_masked(self.system, file)) or shown.get("LoadState") == "masked":
            return {name: Planes(unsupported=f"{unit} is masked") for name in names}
        aliases = [name for name in self.systemd.listed(shown.get("Names", "")) if name != unit]
        try:
            lines = read_assignments(
                self.system, [*([file] if file else []), *dropins(self.system, unit, aliases)]
            )
        except OSError as error:
            return {name: Planes(unknown=f"{error.filename}: {error.strerror}") for name in names}
        return {name: self._read_one(name, lines, shown) for name in names}

    def _problem(self, unit: str, file: str | None, shown: Mapping[str, str]) -> str:
        """Why nothing can be said of a unit; empty where something can."""
        if self._silent:
            return self._silent
        if file is None and shown.get("LoadState", "not-found") == "not-found" and unit not in self._coming:
            return f"unit {unit} does not exist"
        if shown.get("LoadState") in ("error", "bad-setting"):
            return f"systemd cannot load {unit}: {shown.get('LoadError', '') or shown['LoadState']}"
        return ""

    def _read_one(self, name: str, lines: Sequence[Assignment], shown: Mapping[str, str]) -> Planes:
        unit, section, directive = split(name)
        planes = Planes()
        mine = [
            replace(one, value=expand(one.value, unit) if directive in _EXPANDED else one.value)
            for one in lines
            if (one.section, one.name) in ((section, directive), *_ALSO_SET_BY.get(directive, ()))
        ]
        planes.definitions = definitions(
            [one for one in mine if takes(directive, one.value)], directive in CLEARED | ADDED
        )
        if is_template(unit):
            planes.has_live = False
            planes.note = "a template runs nothing itself: its instances show what is live"
            return planes
        if shown.get("LoadState", "not-found") == "not-found":
            planes.needs = "reload"
            return planes  # its file is there or comes, and systemd has not read it yet
        needed = properties(directive)
        if needed and all(one in shown for one in needed):
            planes.live = squeeze(
                limit_text(*(shown[one] for one in needed)) if len(needed) == 2 else shown[needed[0]]
            )
            if directive in _NAMED:
                planes.live = next(
                    (word for word, number in _NAMED[directive].items() if str(number) == planes.live),
                    planes.live,
                )
        loaded = shown.get("NeedDaemonReload") != "yes"
        percent = planes.winner is not None and planes.winner.value.endswith("%") and directive in _SIZES
        idle = directive == "WatchdogSec" and shown.get("MainPID", "0") == "0"
        # What systemd shows cannot be compared: the share of the machine's memory or tasks as a number, and
        # no watchdog while nothing runs.
        if loaded and (planes.live is None or percent or idle):
            planes.live = planes.winner.value if planes.winner else planes.live or ""
        if not agrees(self, name, planes):
            planes.needs = "reload"
        if section == "Service" and shown.get("MainPID", "0") != "0":
            started = self.systemd.seconds(shown.get("ExecMainStartTimestamp", ""))
            process = _Process(unit, shown["MainPID"], started, planes)
            self._running[name] = [process]
            # What is loaded and still not live (WatchdogSec) waits for the restart as well.
            self._compare(name, planes, process, shown.get("NeedDaemonReload") != "yes")
        return planes

    def foretell(self, setting: Setting, planes: Planes, call: Call) -> Planes:
        then = super().foretell(setting, planes, call)
        then.process = None
        if setting.name in self._running:
            then.needs = "none"
        for process in self._running.get(setting.name, []):
            if process.unit in call.stops:
                continue
            if not is_template(split(setting.name)[0]):
                then.note = ""
                self._compare(setting.name, then, process, True, call.files)
                continue
            its = replace(
                super().foretell(setting, process.planes, call), needs="none", process=None, note=""
            )
            if call.undo:
                its.live = its.winner.value if its.winner else None
            self._compare(_of_unit(setting.name, process.unit), its, process, True, call.files)
            if its.winner is None:
                its.needs = "restart"  # which default it then has is not known before
            if its.needs == "restart" and _place(its) == _place(then):
                _blame(then, its, process.unit)
        return then

    def _compare(
        self,
        name: str,
        planes: Planes,
        process: _Process,
        loaded: bool,
        written: Collection[str] = (),
    ) -> None:
        """Sets what a running process has and whether it needs a restart; `written` files will be newer."""
        directive = split(name)[2]
        winner = planes.winner
        newer = winner is not None and (
            winner.file in written or self._is_newer(winner.file, process.started)
        )
        try:
            found = self._of_process(directive, process.pid, planes.live or "")
        except (OSError, ValueError, IndexError):
            return  # it ended meanwhile, or this kernel does not show it
        if found is None:
            if directive in _AT_START and newer and winner is not None:
                planes.process = f"what {winner.file} held before {process.unit} started"
                planes.needs = "restart" if loaded else "reload"
            return
        if planes.live is None or self.same(name, planes.live, found):
            planes.process = found
            return
        if directive == "CPUAffinity" and self._narrowed(planes.live, found, process.pid):
            planes.process = planes.live
            planes.note = f"the cgroup and the CPUs online leave it {found}"
            return
        if self.system.container and not newer and self._beyond_reach(directive, found, planes.live):
            # A container without CAP_SYS_RESOURCE may not raise; systemd then takes what it gets, in silence.
            planes.note = f"the process has {found}: this container's capabilities allow no more"
            return
        planes.process = found
        if loaded:
            planes.needs = "restart"

    def _is_newer(self, file: str, started: float | None) -> bool:
        """Whether a file came after a process, which then has not read it."""
        if started is None:
            return False
        try:
            return os.stat(self.system.path(file)).st_mtime > started
        except OSError:
            return True

    def _beyond_reach(self, directive: str, found: str, wanted: str) -> bool:
        """Whether systemd may well have been unable to give a process more than what is `found`.

        Resource limits go up to PID 1's own without a capability, and anything goes the easy way; of
        directives about which nothing is known here it may be so.
        """
        if directive.startswith("Limit"):
            own = self._limit_of("/proc/1", _LIMIT_LINES[directive[5:]])
            (_, has), (_, hard) = limit(directive[5:], found), limit(directive[5:], wanted)
            if own is None or has is None or has != limit(directive[5:], own)[1]:
                return False
            return not self._capable(_CAP_SYS_RESOURCE) and (hard is None or hard > has)
        if directive == "OOMScoreAdjust":
            return int(wanted) < int(found) and not self._capable(_CAP_SYS_RESOURCE)
        if directive == "Nice":
            return int(wanted) < int(found) and not self._capable(_CAP_SYS_NICE)
        return True

    def _capable(self, capability: int) -> bool:
        """Whether PID 1 has a capability (its bit, capability.h)."""
        try:
            return bool(int(self._status_of("/proc/1", "CapEff") or "0", 16) >> capability & 1)
        except OSError:
            return False

    def _of_process(self, directive: str, pid: str, live: str) -> str | None:
        """What a process has, in the words of the directive; None where /proc does not show it."""
        folder = f"/proc/{pid}"
        if directive.startswith("Limit") and directive[5:] in _LIMIT_LINES:
            return self._limit_of(folder, _LIMIT_LINES[directive[5:]])
        if directive == "CPUAffinity":
            return self._status_of(folder, "Cpus_allowed_list")
        if directive == "NoNewPrivileges":
            return {"0": "no", "1": "yes"}.get(self._status_of(folder, "NoNewPrivs") or "")
        if directive == "UMask":
            return self._status_of(folder, "Umask")
        if directive == "OOMScoreAdjust":
            return self.system.read_value(f"{folder}/oom_score_adj")
        if directive == "TimerSlackNSec":
            return self.system.read_value(f"{folder}/timerslack_ns")
        if directive == "CoredumpFilter":
            return f"0x{self.system.read_value(f'{folder}/coredump_filter')}"
        if directive in ("Nice", "CPUSchedulingPolicy", "CPUSchedulingPriority"):
            # proc(5): fields are counted from 1, and the second one may hold blanks and brackets.
            fields = self.system.read(f"{folder}/stat").rpartition(")")[2].split()
            number = fields[
                {"Nice": 19, "CPUSchedulingPriority": 40, "CPUSchedulingPolicy": 41}[directive] - 3
            ]
            if directive == "CPUSchedulingPolicy":
                return next(
                    (word for word, value in _NAMED[directive].items() if str(value) == number), number
                )
            return number
        if directive in ("NUMAPolicy", "NUMAMask"):
            return memory_policy(self.system, pid)[0 if directive == "NUMAPolicy" else 1]
        if directive == "Environment":
            return self._environment_of(folder, live)
        return None

    def _environment_of(self, folder: str, live: str) -> str:
        """`live` where the process began with just these variables, else what it has of their names."""
        environ = self.system.read(f"{folder}/environ").split("\0")
        wanted = dict(word.partition("=")[::2] for word in shlex.split(live))
        has = dict(entry.partition("=")[::2] for entry in environ if "=" in entry)
        if all(has.get(name) == value for name, value in wanted.items()):
            return live
        return " ".join(shlex.quote(f"{name}={has[name]}") for name in wanted if name in has)

    def _status_of(self, folder: str, key: str) -> str | None:
        for line in self.system.read(f"{folder}/status").split("\n"):
            if line.startswith(f"{key}:"):
                return line.partition(":")[2].strip()
        return None

    def _limit_of(self, folder: str, label: str) -> str | None:
        for line in self.system.read(f"{folder}/limits").split("\n"):
            if line.startswith(label):
                soft, hard = line[len(label) :].split()[:2]
                return limit_text(*(one.replace("unlimited", "infinity") for one in (soft, hard)))
        return None

    def _narrowed(self, wanted: str, found: str, pid: str) -> bool:
        """Whether a process runs on fewer CPUs only since its cpuset or the machine leaves it no others."""
        try:
            allowed = cpu_set(self.system.read_value("/sys/devices/system/cpu/online"))
            for line in self.system.read(f"/proc/{pid}/cgroup").split():
                number, controllers, path = line.split(":", 2)
                place = ""
                if number == "0":
                    place = f"/sys/fs/cgroup{path}/cpuset.cpus.effective"
                elif controllers == "cpuset":
                    place = f"/sys/fs/cgroup/cpuset{path}/cpuset.effective_cpus"
                if place and self.system.exists(place):
                    allowed &= cpu_set(self.system.read_value(place))
            return cpu_set(found) == cpu_set(wanted) & allowed
        except (OSError, ValueError):
            return False

    # persistence

    def managed_file(self, owner: str, name: str) -> str:
        return f"/etc/systemd/system/{split(name)[0]}.d/60-hosttune-{owner}.conf"

    def body(self, settings: Sequence[Setting]) -> str:
        lines: list[str] = []
        section = ""
        for setting in settings:
            _unit, own, directive = split(setting.name)
            if own != section:
                section = own
                lines.append(f"[{section}]")
            if directive in CLEARED:
                lines.append(f"{directive}=")
            if setting.value or directive not in CLEARED:
                lines.append(f"{directive}={setting.value}")
        return "\n".join(lines) + "\n"

    # the live plane

    def reaches(self, name: str, planes: Planes) -> bool:
        """What is loaded follows the files; a restart is what the process may wait for."""
        return super().reaches(name, planes) or agrees(self, name, planes)

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        """One daemon-reload for all files; the processes that run are left alone."""
        touched = list(files)
        if not changes and not touched:
            return {}
        ended = self.system.run("systemctl", "daemon-reload")
        if ended.ok:
            return {}
        why = f"systemctl daemon-reload: {ended.err.strip() or ended.status}"
        return {change.name: why for change in changes} or {touched[0] if touched else "": why}


@dataclass(frozen=True)
class _Process:
    """A running main process: of which unit, with the unit's planes as they were read."""

    unit: str
    pid: str
    #: seconds since the epoch
    started: float | None
    planes: Planes


def _of_unit(name: str, unit: str) -> str:
    """The same directive of another unit."""
    return "/".join((unit, *split(name)[1:]))


def _place(planes: Planes) -> tuple[str, int] | None:
    """Where the definition stands that decides."""
    winner = planes.winner
    return (winner.file, winner.line) if winner else None


def _blame(template: Planes, instance: Planes, unit: str) -> None:
    """Says of a template what the first of its instances has that must restart."""
    if template.process is None:
        found = instance.process or "another value"
        template.process = found if unit in found else f"{found} in {unit}"
        template.needs = "restart"


def split(name: str) -> tuple[str, str, str]:
    """UNIT, SECTION and DIRECTIVE of a name."""
    unit, section, directive = name.split("/")
    return unit, section, directive


def _signal(text: str) -> int:
    """The number of a signal called SIGINT, INT or 2."""
    if text.isdigit() and 1 <= int(text) <= 64:
        return int(text)
    name = text if text.startswith("SIG") else f"SIG{text}"
    try:
        return int(signal.Signals[name])
    except KeyError:
        raise ValueError(f"'{text}' is no signal") from None


def _coredump(text: str) -> int:
    if text == "default":
        return _COREDUMP_DEFAULT
    bits = 0
    for word in text.split():
        if word == "all":
            bits = (1 << len(_COREDUMP_BITS)) - 1
        elif word == "default":
            bits |= _COREDUMP_DEFAULT
        elif word in _COREDUMP_BITS:
            bits |= 1 << _COREDUMP_BITS.index(word)
        else:
            bits |= int(word, 16)
    return bits


def takes(directive: str, value: str) -> bool:
    """Whether systemd takes this assignment; of one that it does not it only warns in its log."""
    if not value:
        one_value = bool(properties(directive)) and directive not in CLEARED | ADDED
        return not one_value or directive in _RESET_BY_EMPTY
    if value.endswith("%") and directive in _SIZES:
        return True
    try:
        found = _canonical(directive, value)
    except ValueError:
        return False
    if directive in _RANGES and isinstance(found, int):
        low, high = _RANGES[directive]
        return low <= found <= high
    if directive in ("TasksMax", "MemoryMax", "MemoryHigh", "StartLimitBurst", "LogRateLimitBurst"):
        return found is None or (
            isinstance(found, int) and found >= (0 if directive.endswith("Burst") else 1)
        )
    if directive == "CPUQuota":
        return value.endswith("%") and found != 0
    return True


def _canonical(directive: str, text: str) -> object:
    """What can be compared of a value; raises ValueError for text that is none of this directive."""
    if directive.startswith("Limit") and directive[5:] in _LIMIT_LINES:
        return limit(directive[5:], text)
    if directive == "CPUQuota":
        if text.endswith("%"):
            # percent of one CPU: systemd shows the microseconds of every second
            return round(float(text[:-1]) * 10_000_000)
        return nanoseconds(text)
    if directive == "TimerSlackNSec":
        return nanoseconds(text, "ns")
    if directive.endswith("Sec") and directive not in CLEARED:
        found = nanoseconds(text)
        return None if found == 0 and directive in _ZERO_IS_INFINITY else found
    if directive in _CPU_SETS:
        return text if text in ("numa", "all") else cpu_set(text)
    if directive == "TasksMax":
        return None if text == "infinity" else integer(text)
    if directive in _SIZES:
        return size(text)
    if directive in ("CPUWeight", "StartupCPUWeight") and text == "idle":
        return text
    if directive in _NUMBERS:
        return integer(text)
    if directive in _BOOLEANS:
        return boolean(text)
    if directive in _SIGNALS:
        return _signal(text)
    if directive in _NAMED:
        return _NAMED[directive][text] if text in _NAMED[directive] else int(text)
    if directive == "UMask":
        if not re.match(r"[0-7]+\Z", text):
            raise ValueError(f"'{text}' is no octal mode")
        return int(text, 8)
    if directive == "CoredumpFilter":
        return _coredump(text)
    if directive in _CHOICES:
        if directive.startswith("Protect"):
            try:
                return boolean(text)  # these take a boolean or a word
            except ValueError:
                pass
        word = "default" if directive == "NUMAPolicy" and text == "n/a" else text
        if word not in _CHOICES[directive]:
            raise ValueError(f"choose one of {', '.join(sorted(_CHOICES[directive]))}")
        return word
    return text
