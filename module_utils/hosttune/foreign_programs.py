"""Programs known to fight for settings, to disturb them or to restart our servers, and what each does.

The table says what holds however a program is configured; a method reads what depends on its configuration.
"""

from __future__ import annotations

import contextlib
import fnmatch
import grp
import os
import pwd
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import dpkg, ptp, tuned
from .kinds.sysctl import to_path
from .kinds.sysfs import short
from .model import MANAGED_BY, Planes, Setting
from .observe import Observer
from .store import Ledger
from .system import System
from .systemd import Systemd, dropins, expand, fragment, is_template, read_assignments

#: The owner of what is taken over.
OWNER = "foreign"
APT_GUARD = "/etc/apt/apt.conf.d/60-hosttune-foreign"
NEEDRESTART_GUARD = "/etc/needrestart/conf.d/60-hosttune-foreign.conf"
CLOUD_INIT_OFF = "/etc/cloud/cloud-init.disabled"
#: Servers that come as several packages: the start of a unit's name and of the packages' names.
_SERVERS = ("postgresql", "redis", "valkey", "pgbouncer")
_BOOTING = frozenset({"enabled", "enabled-runtime", "linked", "linked-runtime", "alias"})
_RUNNING = frozenset({"active", "activating", "reloading"})


#: What the suite writes where it takes a program over without stopping it.
GUARDS = (APT_GUARD, NEEDRESTART_GUARD, CLOUD_INIT_OFF)


@dataclass(frozen=True)
class Program:
    """One program known to fight.

    `claims`: (kind, pattern of names) whose values it sets however it is configured; `disturbs`: those that
    it makes worthless without setting them.
    """

    name: str
    package: str
    why: str
    weight: str = "fight"
    units: tuple[str, ...] = ()
    #: a file without which it is not there, where units do not tell
    probe: str = ""
    claims: tuple[tuple[str, str], ...] = ()
    disturbs: tuple[tuple[str, str], ...] = ()
    #: what its units are made when it is taken over; empty: it is never stopped
    stopped: str = ""
    #: what taking over does, and what undo or the operator has to know
    taking_over: str = ""


_GOVERNORS = (
    ("sysfs", "devices/system/cpu/*cpufreq/*"),
    ("sysfs", "devices/system/cpu/*/energy_performance_preference"),
    ("sysfs", "devices/system/cpu/intel_pstate/*"),
    ("sysfs", "devices/system/cpu/amd_pstate/*"),
    ("sysfs", "firmware/acpi/platform_profile"),
)
#: What a second discipline of the system clock is up against.
_CHRONY = (("service", "chrony.service"), ("unit", "chrony.service/*"), ("file", "/etc/chrony/*"))
PROGRAMS = (
    Program(
        "tuned",
        "tuned",
        "applies its profile at every start and profile switch, and its own originals when it stops",
        units=("tuned.service",),
        stopped="disabled inactive",
        taking_over="stopped and disabled",
    ),
    Program(
        "irqbalance",
        "irqbalance",
        "moves interrupts every ten seconds, onto isolated and pinned CPUs too",
        units=("irqbalance.service",),
        claims=(("irq", "*"),),
        disturbs=(
            ("boot", "isolcpus"),
            ("boot", "nohz_full"),
            ("boot", "irqaffinity"),
            ("unit", "*/CPUAffinity"),
            ("manager", "CPUAffinity"),
        ),
        stopped="disabled inactive",
        taking_over="stopped and disabled; interrupts stay where they are then",
    ),
    Program(
        "power-profiles-daemon",
        "power-profiles-daemon",
        "sets governor and energy preference at every profile switch",
        units=("power-profiles-daemon.service",),
        claims=_GOVERNORS,
        stopped="masked inactive",
        taking_over="stopped and masked, since a call on the bus would start it again",
    ),
    Program(
        "cpupower",
        "linux-cpupower",
        "sets the governor at boot",
        units=("cpupower.service", "cpufrequtils.service"),
        claims=_GOVERNORS,
        stopped="disabled inactive",
        taking_over="disabled",
    ),
    Program(
        "NetworkManager",
        "network-manager",
        "sets offloads, rings and coalescing of [ethtool] whenever a connection comes up",
        units=("NetworkManager.service",),
    ),
    Program(
        "cloud-init",
        "cloud-init",
        "renders network configuration and its own lines of fstab at boot",
        weight="warning",
        units=("cloud-init.service", "cloud-init-local.service", "cloud-config.service"),
        disturbs=(("nic", "*"), ("boot", "*")),
        taking_over=f"switched off by {CLOUD_INIT_OFF}; what it rendered stays",
    ),
    Program(
        "unattended-upgrades",
        "unattended-upgrades",
        "upgrades and so restarts these servers at a random time of the day",
        weight="guard",
        units=("apt-daily-upgrade.timer",),
        probe="/usr/bin/unattended-upgrade",
        taking_over=f"{APT_GUARD} keeps their packages out of it: upgrade them yourself in the closed market",
    ),
    Program(
        "needrestart",
        "needrestart",
        "restarts what uses a replaced library after any run of apt",
        weight="guard",
        probe="/usr/sbin/needrestart",
        taking_over=f"{NEEDRESTART_GUARD} has it leave them alone: restart them in the closed market",
    ),
    Program(
        "apt-daily",
        "apt",
        "downloads and unpacks at a random time of the day",
        weight="overridden",
        units=("apt-daily.timer", "apt-daily-upgrade.timer"),
        stopped="disabled inactive",
        taking_over="timers stopped and disabled: nothing is updated by itself any more",
    ),
    Program(
        "systemd-timesyncd",
        "systemd-timesyncd",
        "steers the system clock beside chronyd",
        weight="guard",
        units=("systemd-timesyncd.service",),
        claims=_CHRONY,
        stopped="masked inactive",
        taking_over="stopped and masked: one program steers the clock",
    ),
    *(
        Program(
            name,
            package,
            "steers the system clock beside chronyd",
            units=(unit,),
            claims=_CHRONY,
            stopped="disabled inactive",
            taking_over="stopped and disabled: one program steers the clock",
        )
        for name, package, unit in (
            ("ntp", "ntp", "ntp.service"),
            ("ntpsec", "ntpsec", "ntpsec.service"),
            ("openntpd", "openntpd", "openntpd.service"),
            ("timemaster", "linuxptp", "timemaster.service"),
            ("phc2sys", "linuxptp", "phc2sys@.service"),
            ("ptp4l", "linuxptp", "ptp4l@.service"),
        )
    ),
    Program("kernel", "", "the next boot brings another kernel", weight="warning"),
)
BY_NAME = {program.name: program for program in PROGRAMS}


@dataclass
class Finding:
    """One foreign owner on this host."""

    owner: str
    weight: str
    affects: list[tuple[str, str]]
    reason: str
    package: str = ""
    file: str = ""
    unit: str = ""
    state: str = ""
    decision: str = ""
    taking_over: str = ""
    #: those of the affected settings whose value is not its own: they stay ours where it is left alone
    disturbs: set[tuple[str, str]] = field(default_factory=set)
    #: what taking it over makes of it; none: that cannot be
    settings: list[Setting] = field(default_factory=list)

    @property
    def remedy(self) -> str:
        """What the operator can do, with the line to write."""
        if self.decision == "take_over":
            return self.taking_over
        choices = [f"take_over ({self.taking_over}; undo gives it back)"] if self.settings else []
        kept = set(self.affects) <= self.disturbs
        choices += ["leave (it goes on)" if kept else "leave (these settings are left to it)", "refuse"]
        return f"settings_foreign: {{{self.owner}: ...}} with {', '.join(choices[:-1])} or {choices[-1]}"

    @property
    def names(self) -> list[str]:
        return [f"{kind} {name}" for kind, name in self.affects]

    def as_dict(self) -> dict[str, Any]:
        return {
            "owner": self.owner,
            "package": self.package,
            "file": self.file,
            "unit": self.unit,
            "state": self.state,
            "weight": self.weight,
            "affects": self.names,
            "decision": self.decision,
            "reason": self.reason,
            "remedy": self.remedy,
        }

    def __str__(self) -> str:
        about = [
            f"package {self.package}" if self.package else "of no package",
            f"{self.unit} {self.state}".strip(),
        ]
        about += [self.file] if self.file != self.owner else []
        said = "; ".join(part for part in about if part)
        return f"{self.owner} ({said}) {self.reason}: {', '.join(self.names)}"


class Programs:
    """The programs of one host that affect these settings; `roles` are the keys that roles manage."""

    def __init__(
        self,
        observer: Observer,
        ledger: Ledger,
        settings: Sequence[Setting],
        planes: Mapping[tuple[str, str], Planes],
        roles: set[tuple[str, str]],
    ) -> None:
        self.system, self.observer, self.ledger = observer.system, observer, ledger
        self.settings, self.planes, self.roles = settings, planes, roles

    def findings(self) -> list[Finding]:
        present = {
            program.name: [unit for named in program.units for unit in self._present(named)]
            for program in PROGRAMS
        }
        states = self._states({unit for units in present.values() for unit in units})
        found = []
        for program in PROGRAMS:
            if program.probe and not self.system.exists(program.probe):
                continue
            running = {
                unit: states[unit]
                for unit in present[program.name]
                if ("service", unit) not in self.roles and _in_force(states[unit])
            }
            if program.units and not running:
                continue
            finding = self._finding(program)
            if finding is None:
                continue
            finding.unit, finding.state = " ".join(running), " ".join(dict.fromkeys(running.values()))
            if program.stopped:
                finding.settings = [
                    Setting(OWNER, "service", unit, program.stopped, None, _notes(program.name, finding))
                    for unit in running
                ]
            found.append(finding)
        return found

    def _present(self, unit: str) -> list[str]:
        """The unit where this host has it; of a template of linuxptp the instances that steer the clock."""
        if fragment(self.system, unit) is None:
            return []
        if not is_template(unit):
            return [unit]
        stem, _at, suffix = unit.partition("@")
        found = {
            name
            for folder in self.system.names("/etc/systemd/system")
            if folder.endswith((".wants", ".requires"))
            for name in self.system.names(f"/etc/systemd/system/{folder}")
            if name.startswith(f"{stem}@") and name.endswith(suffix)
        }
        with contextlib.suppress(OSError):  # those that start at boot are known from their links
            found.update(Systemd(self.system).instances([unit], ("ActiveState",)))
        found.update(name for name in self.ledger.settings.get("service", {}) if name.startswith(f"{stem}@"))
        return [name for name in sorted(found) if ptp.steers(self._command(name), self.system.read)]

    def _command(self, unit: str) -> str:
        """The last ExecStart= of a unit, its specifiers expanded."""
        file = fragment(self.system, unit)
        lines = read_assignments(self.system, [*([file] if file else []), *dropins(self.system, unit)])
        commands = [one.value for one in lines if (one.section, one.name) == ("Service", "ExecStart")]
        return expand(commands[-1], unit) if commands else ""

    def _states(self, units: Iterable[str]) -> dict[str, str]:
        """Unit -> its states on disk and now, of one that we hold those it had before."""
        states = {}
        ask = []
        for unit in sorted(units):
            entry = self.ledger.entry("service", unit)
            if entry is not None and held(self.ledger, "service", unit):
                states[unit] = (
                    f"{(entry['persisted'] or {}).get('value') or ''} {entry['live'] or ''}".strip()
                )
            else:
                ask.append(unit)
        try:
            shown = Systemd(self.system).show(ask, ("ActiveState", "UnitFileState"))
        except OSError:
            shown = {}
        for unit in ask:
            about = shown.get(unit)
            states[unit] = f"{about['UnitFileState']} {about['ActiveState']}".strip() if about else "unknown"
        return states

    def _finding(self, program: Program) -> Finding | None:
        """What the program does to settings of this host, None where it does nothing."""
        sets, disturbs = (
            [
                setting.key
                for setting in self.settings
                if any(setting.kind == kind and _fits(setting, pattern) for kind, pattern in claims)
            ]
            for claims in (program.claims, program.disturbs)
        )
        finding = Finding(
            program.name,
            program.weight,
            sets + disturbs,
            program.why,
            program.package,
            taking_over=program.taking_over,
            disturbs=set(disturbs),
        )
        if program.name == "tuned":
            return self._tuned(finding)
        if program.name == "NetworkManager":
            return self._network_manager(finding)
        if program.name == "cloud-init":
            return self._cloud_init(finding)
        if program.name == "unattended-upgrades":
            return self._unattended_upgrades(finding)
        if program.name == "needrestart":
            return self._needrestart(finding)
        if program.name == "kernel":
            return self._kernel(finding)
        return finding if finding.affects or program.weight == "overridden" else None

    def _tuned(self, finding: Finding) -> Finding | None:
        profiles = tuned.active(self.system)
        claims = tuned.claims(self.system, profiles or tuned.shipped(self.system))
        files: dict[str, None] = {}
        for setting in self.settings:
            mine = [one for one in claims if one.kind == setting.kind and _fits(setting, one.pattern)]
            # Where no profile is chosen yet any of them may come, else the last word counts.
            for claim in mine if not profiles else mine[-1:]:
                if not self._agrees(claim, setting):
                    finding.affects.append(setting.key)
                    files[f"{claim.file}:{claim.line}"] = None
                    break
        finding.file = next(iter(files), tuned.ACTIVE)
        said = (
            f"its profile is {' '.join(profiles)}" if profiles else "no profile is chosen: it will choose one"
        )
        if tuned.reapplies_sysctl(self.system):
            said += "; it reads /etc/sysctl.d over that, until it stops"
        finding.reason = f"{finding.reason} ({said})"
        if not finding.affects:
            finding.weight = "overridden"
            finding.reason += "; that sets nothing which is asked for here"
        return finding

    def _agrees(self, claim: tuned.Claim, setting: Setting) -> bool:
        if claim.value is None:
            return False
        if claim.floor:
            try:
                return int(claim.value) <= int(setting.value)
            except ValueError:
                return False
        return self.observer.kind(setting.kind).same(
            setting.name, setting.value, " ".join(claim.value.split())
        )

    def _network_manager(self, finding: Finding) -> Finding | None:
        for folder in ("/etc", "/run", "/usr/lib"):
            for name in self.system.names(f"{folder}/NetworkManager/system-connections"):
                path = f"{folder}/NetworkManager/system-connections/{name}"
                lines = read_assignments(self.system, [path])
                if not any(one.section == "ethtool" for one in lines):
                    continue
                named = [one.value for one in lines if one.name == "interface-name"]
                for setting in self.settings:
                    hit = setting.kind == "nic" and (not named or setting.name.startswith(f"{named[0]}/"))
                    if hit and setting.key not in finding.affects:
                        finding.affects.append(setting.key)
                        finding.file = path
        return finding if finding.affects else None

    def _cloud_init(self, finding: Finding) -> Finding | None:
        if self.system.exists(CLOUD_INIT_OFF) and not held(self.ledger, "file", CLOUD_INIT_OFF):
            return None
        for setting in self.settings:
            winner = self.planes[setting.key].winner
            if setting.kind == "mount" and winner and "comment=cloudconfig" in winner.value:
                finding.affects.append(setting.key)
                finding.weight, finding.file = "fight", winner.file
        if not finding.affects:
            return None
        if ("file", CLOUD_INIT_OFF) not in self.roles:
            finding.settings = [
                written(self.observer, CLOUD_INIT_OFF, f"# {MANAGED_BY}, role {OWNER}\n", finding)
            ]
        return finding

    def _servers(self, finding: Finding) -> list[str]:
        """The units of this host's servers, by their first word; their settings are affected."""
        stems = []
        for setting in self.settings:
            unit = setting.name.partition("/")[0]
            if setting.kind == "postgres":
                unit = "postgresql@.service"
            elif setting.kind == "redis":
                unit = "redis-server.service"
            elif setting.kind not in ("unit", "service"):
                continue
            asked_down = setting.kind == "service" and "active" not in setting.value.split()
            if not unit.endswith(".service") or asked_down:
                continue
            finding.affects.append(setting.key)
            finding.disturbs.add(setting.key)
            stems.append(unit.rpartition(".")[0].partition("@")[0])
        finding.affects.sort(key=lambda key: key[0] != "service")  # who reads three names reads servers
        return sorted(set(stems))

    def _unattended_upgrades(self, finding: Finding) -> Finding | None:
        patterns = []
        for stem in self._servers(finding):
            many = next((name for name in _SERVERS if stem.startswith(name)), None)
            if many:
                patterns.append(many)
                continue
            files = [
                path
                for unit in (stem, f"{stem}@")
                for path in [fragment(self.system, f"{unit}.service")]
                if path
            ]
            patterns += [
                f"{package}$" for package in dpkg.packages_of(self.system, files).values() if package
            ]
        if not patterns:
            return None
        listed = "".join(f'    "{one.partition(" ")[0]}";\n' for one in sorted(set(patterns)))
        finding.file = "/etc/apt/apt.conf.d/50unattended-upgrades"
        finding.settings = self._guard(
            APT_GUARD,
            f"// {MANAGED_BY}, role {OWNER}: changes made here are found as drift and replaced.\n"
            f"Unattended-Upgrade::Package-Blacklist {{\n{listed}}};\n"
            'Unattended-Upgrade::Automatic-Reboot "false";\n',
            finding,
        )
        return finding

    def _needrestart(self, finding: Finding) -> Finding | None:
        stems = self._servers(finding)
        if not stems:
            return None
        lines = "".join(
            f"$nrconf{{override_rc}}{{qr(^{re.escape(stem)}(\\@|\\.service$))}} = 0;\n" for stem in stems
        )
        finding.file = "/etc/needrestart/needrestart.conf"
        header = f"# {MANAGED_BY}, role {OWNER}: changes made here are found as drift and replaced.\n"
        finding.settings = self._guard(NEEDRESTART_GUARD, header + lines, finding)
        return finding

    def _guard(self, path: str, content: str, finding: Finding) -> list[Setting]:
        return [] if ("file", path) in self.roles else [written(self.observer, path, content, finding)]

    def _kernel(self, finding: Finding) -> Finding | None:
        if self.system.container:
            return None
        try:
            running = self.system.read_value("/proc/sys/kernel/osrelease")
        except OSError:
            return None
        installed = [
            name for name in self.system.names("/lib/modules") if self.system.exists(f"/boot/vmlinuz-{name}")
        ]
        newest = max(installed, key=_version, default="")
        if not newest or _version(newest) <= _version(running):
            return None
        finding.file, finding.package = f"/boot/vmlinuz-{newest}", f"linux-image-{newest}"
        known = _modules(self.system, newest)
        finding.affects = [
            setting.key
            for setting in self.settings
            if setting.kind == "module"
            and setting.value == "loaded"
            and setting.name.replace("-", "_") not in known
        ]
        finding.disturbs = set(finding.affects)
        finding.reason = f"the next boot brings {newest} instead of {running}"
        if finding.affects:
            finding.reason += ", which lacks"
        return finding


def held(ledger: Ledger, kind: str, name: str) -> bool:
    """Whether the suite has taken this over."""
    entry = ledger.entry(kind, name)
    return entry is not None and entry["owner"] == OWNER


def running(system: System, setting: Setting) -> list[str]:
    """The units of known programs that run now and set this setting however they are configured."""
    units = [
        unit
        for program in PROGRAMS
        if any(setting.kind == kind and _fits(setting, pattern) for kind, pattern in program.claims)
        for unit in program.units
        if fragment(system, unit)
    ]
    try:
        shown = Systemd(system).show(units, ("ActiveState",))
    except OSError:
        return []
    return [unit for unit in units if shown[unit]["ActiveState"] in _RUNNING]


def written(
    observer: Observer, path: str, content: str, finding: Finding, about: os.stat_result | None = None
) -> Setting:
    """A file of the owner `foreign`, with the mode and owner that `about` has."""
    asked = {"content": content}
    if about is not None:
        asked["mode"] = f"{about.st_mode & 0o7777:04o}"
        asked["owner"] = pwd.getpwuid(about.st_uid).pw_name
        asked["group"] = grp.getgrgid(about.st_gid).gr_name
    text = observer.kind("file").text(path, asked)
    return Setting(OWNER, "file", path, text, asked, _notes(finding.owner, finding))


def _notes(owner: str, finding: Finding) -> dict[str, str]:
    return {"why": f"{owner} {finding.reason}", "risk": finding.taking_over, "source": "settings_foreign"}


def _in_force(state: str) -> bool:
    """Whether a unit in this state acts now or after a boot; one that tells nothing counts as acting."""
    words = set(state.split())
    return state == "unknown" or bool(words & _RUNNING) or bool(words & _BOOTING)


def _fits(setting: Setting, pattern: str) -> bool:
    name = setting.name
    if setting.kind == "sysctl":
        name, pattern = to_path(name), to_path(pattern)
    elif setting.kind == "sysfs":
        name = short(name)
    elif setting.kind == "module":
        name, pattern = name.replace("-", "_"), pattern.replace("-", "_")
    return fnmatch.fnmatchcase(name, pattern)


def _version(release: str) -> list[tuple[int, str]]:
    """Something to sort kernel releases by, numbers as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|[a-z]+", release)]


def _modules(system: System, release: str) -> set[str]:
    """The modules of an installed kernel, those that are built in too."""
    found = set()
    for name in ("modules.dep", "modules.builtin"):
        try:
            text = system.read(f"/lib/modules/{release}/{name}")
        except OSError:
            continue
        for line in text.split("\n"):
            leaf = os.path.basename(line.partition(":")[0]).partition(".ko")[0]
            found.add(leaf.replace("-", "_"))
    return found
