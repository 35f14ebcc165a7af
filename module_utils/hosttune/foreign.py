"""Foreign owners: programs and files that fight for our settings, found before anything is touched.

Each finding names the program or file, its Debian package, the settings it affects and what is done about it:

- refuse: the call stops here, with the three choices as remedy;
- take_over: it becomes settings of the owner `foreign` in the same call (kinds service and file), so that
  ledger, check mode, drift and undo hold for it too;
- leave: the settings it affects are left to it, out of this call's wanted set;
- none: it is said and nothing follows.

How heavy a finding weighs decides what is done where the operator decided nothing (DEFAULTS): a `fight`
overwrites our settings; a `guard` would restart our servers whenever updates come; a `warning` may touch our
settings one day; what is `overridden` is beaten by ours. Findings are made as if the suite had taken nothing
over: what it holds stays held until the decision or the settings change.
"""

from __future__ import annotations

import fnmatch
import grp
import os
import pwd
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import foreign_files, tuned
from .kinds.base import did_you_mean
from .kinds.sysctl import to_path
from .kinds.sysfs import short
from .model import MANAGED_BY, FileImage, Planes, Refusal, Setting
from .observe import Observer
from .store import Ledger
from .system import System
from .systemd import Systemd, fragment

#: The owner of what is taken over.
OWNER = "foreign"
DECISIONS = ("refuse", "take_over", "leave")
DEFAULTS = {"fight": "refuse", "guard": "take_over", "warning": "none", "overridden": "none"}

APT_GUARD = "/etc/apt/apt.conf.d/60-hosttune-foreign"
NEEDRESTART_GUARD = "/etc/needrestart/conf.d/60-hosttune-foreign.conf"
CLOUD_INIT_OFF = "/etc/cloud/cloud-init.disabled"
#: Servers that come as several packages: the start of a unit's name and of the packages' names.
_SERVERS = ("postgresql", "redis", "valkey", "pgbouncer")
_BOOTING = frozenset({"enabled", "enabled-runtime", "linked", "linked-runtime", "alias"})
_RUNNING = frozenset({"active", "activating", "reloading"})


@dataclass(frozen=True)
class Program:
    """One program known to fight. `claims`: (kind, pattern of names) it moves however it is configured."""

    name: str
    package: str
    why: str
    weight: str = "fight"
    units: tuple[str, ...] = ()
    #: a file without which it is not there, where units do not tell
    probe: str = ""
    claims: tuple[tuple[str, str], ...] = ()
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
        claims=(
            ("irq", "*"),
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
        claims=(("nic", "*"), ("boot", "*")),
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
    Program("kernel", "", "the next boot brings another kernel", weight="warning"),
)
_BY_NAME = {program.name: program for program in PROGRAMS}


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
    #: what taking it over makes of it; none: that cannot be
    settings: list[Setting] = field(default_factory=list)

    @property
    def remedy(self) -> str:
        """What the operator can do, with the line to write."""
        if self.decision == "take_over":
            return self.taking_over
        choices = [f"take_over ({self.taking_over}; undo gives it back)"] if self.settings else []
        choices += ["leave (these settings are left to it)", "refuse"]
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


class ForeignRefusal(Refusal):
    """Foreign owners that nobody has decided about, with all that was found."""

    def __init__(self, refused: Sequence[Finding], findings: Sequence[Finding]) -> None:
        self.findings = list(findings)
        super().__init__(
            "fights for settings of this call: " + "; ".join(map(str, refused))
            if len(refused) == 1
            else "fight for settings of this call: " + "; ".join(map(str, refused)),
            thing=" and ".join(one.owner for one in refused),
            remedy="Decide for each: " + "; ".join(one.remedy for one in refused) + ". Nothing was touched",
        )


@dataclass
class Settled:
    """What a call shall do once foreign owners are decided about."""

    wanted: list[Setting]
    findings: list[Finding]
    left: list[dict[str, str]]


def check_decisions(decisions: Mapping[str, Any]) -> dict[str, str]:
    """The operator's decisions; raises Refusal for a name or word that is none."""
    for name, word in decisions.items():
        thing = f"settings_foreign {name}"
        if word not in DECISIONS:
            raise Refusal(f"'{word}' is no decision", thing=thing, remedy=f"Use {', '.join(DECISIONS)}")
        if name not in _BY_NAME and not name.startswith("/"):
            raise Refusal(
                "is no owner the suite knows",
                thing=thing,
                remedy=did_you_mean(name, _BY_NAME)
                or f"Name {', '.join(_BY_NAME)}, or a file by its whole path",
            )
    return {str(name): str(word) for name, word in decisions.items()}


def settle(
    observer: Observer,
    ledger: Ledger,
    wanted: Sequence[Setting],
    others: Sequence[Setting],
    planes: Mapping[tuple[str, str], Planes],
    decisions: Mapping[str, Any] | None,
) -> Settled:
    """Finds the foreign owners of all settings of this host and decides about each.

    `others` are settings outside this call: nothing of theirs is refused or left, and what is held for them
    stays. `decisions` None (an undo): nothing new is taken over. Raises ForeignRefusal.
    """
    if not wanted and not others:
        return Settled([], [], [])
    return _Survey(observer, ledger, wanted, others, planes, decisions).settled()


class _Survey:
    def __init__(
        self,
        observer: Observer,
        ledger: Ledger,
        wanted: Sequence[Setting],
        others: Sequence[Setting],
        planes: Mapping[tuple[str, str], Planes],
        decisions: Mapping[str, Any] | None,
    ) -> None:
        self.system, self.observer, self.ledger = observer.system, observer, ledger
        self.decisions = None if decisions is None else check_decisions(decisions)
        self.wanted = list(wanted)
        self.mine = {setting.key for setting in wanted}
        self.planes = {**planes, **observer.read([one.key for one in others if one.key not in planes])}
        everyone = [*wanted, *others]
        self.roles = {setting.key for setting in everyone}
        #: settings of this host that can be fought for
        self.settings = [one for one in everyone if not self.planes[one.key].unsupported]

    def settled(self) -> Settled:
        programs = [self._decided(one) for one in self._programs()]
        left = self._left(programs)
        remaining = [one for one in self.settings if one.key not in left]
        files = [self._decided(one) for one in self._files(remaining)]
        left.update(self._left(files))
        findings = [*programs, *files]
        for one in findings:
            if one.decision != "leave" and one.affects:
                one.affects = [key for key in one.affects if key not in left]
                if not one.affects:
                    one.decision = "none"
        self._name_packages(findings)
        refused = [one for one in findings if one.decision == "refuse" and self.mine & set(one.affects)]
        if refused:
            raise ForeignRefusal(refused, findings)
        taken = {
            setting.key: setting
            for one in findings
            if one.decision == "take_over"
            for setting in one.settings
        }
        return Settled(
            [one for one in self.wanted if one.key not in left] + list(taken.values()),
            findings,
            [
                {
                    "owner": one.owner,
                    "kind": one.kind,
                    "name": one.name,
                    "desired": one.value,
                    "left": f"{left[one.key]} has it",
                }
                for one in self.wanted
                if one.key in left
            ],
        )

    # deciding

    def _decided(self, finding: Finding) -> Finding:
        held = any(self._held(*setting.key) for setting in finding.settings)
        if self.decisions is None:
            finding.decision = "take_over" if held else "none"
            return finding
        said = [self.decisions[name] for name in self._called(finding) if name in self.decisions]
        finding.decision = said[0] if said else DEFAULTS[finding.weight]
        if finding.decision == "take_over" and not finding.settings:
            if not said:
                finding.decision = "none"
                return finding
            raise Refusal(
                "cannot be taken over from here",
                thing=str(finding),
                remedy=f"Change it by hand, or decide otherwise: {finding.remedy}",
            )
        return finding

    def _called(self, finding: Finding) -> list[str]:
        real = foreign_files.View(self.system).real(finding.owner) if finding.owner.startswith("/") else ""
        return [name for name in (finding.owner, real) if name]

    def _left(self, findings: Iterable[Finding]) -> dict[tuple[str, str], str]:
        return {key: one.owner for one in findings if one.decision == "leave" for key in one.affects}

    def _held(self, kind: str, name: str) -> bool:
        entry = self.ledger.entry(kind, name)
        return entry is not None and entry["owner"] == OWNER

    # programs

    def _programs(self) -> list[Finding]:
        present = {
            program.name: [unit for unit in program.units if fragment(self.system, unit)]
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

    def _states(self, units: Iterable[str]) -> dict[str, str]:
        """Unit -> its states on disk and now, of one that we hold those it had before."""
        states = {}
        ask = []
        for unit in sorted(units):
            entry = self.ledger.entry("service", unit)
            if entry is not None and entry["owner"] == OWNER:
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
        affects = [
            setting.key
            for setting in self.settings
            if any(setting.kind == kind and _fits(setting, pattern) for kind, pattern in program.claims)
        ]
        finding = Finding(
            program.name,
            program.weight,
            affects,
            program.why,
            program.package,
            taking_over=program.taking_over,
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
        return finding if affects or program.weight == "overridden" else None

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
                text = self.system.read(path)
                if not re.search(r"^\[ethtool\]\s*\n(?:\s*[#\n].*\n)*[^\[\s#]", text, re.MULTILINE):
                    continue
                named = re.search(r"^interface-name=(\S+)", text, re.MULTILINE)
                for setting in self.settings:
                    hit = setting.kind == "nic" and (not named or setting.name.startswith(f"{named[1]}/"))
                    if hit and setting.key not in finding.affects:
                        finding.affects.append(setting.key)
                        finding.file = path
        return finding if finding.affects else None

    def _cloud_init(self, finding: Finding) -> Finding | None:
        if self.system.exists(CLOUD_INIT_OFF) and not self._held("file", CLOUD_INIT_OFF):
            return None
        for setting in self.settings:
            winner = self.planes[setting.key].winner
            if setting.kind == "mount" and winner and "comment=cloudconfig" in winner.value:
                finding.affects.append(setting.key)
                finding.weight, finding.file = "fight", winner.file
        if not finding.affects:
            return None
        if ("file", CLOUD_INIT_OFF) not in self.roles:
            finding.settings = [self._written(CLOUD_INIT_OFF, f"# {MANAGED_BY}, role {OWNER}\n", finding)]
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
            stems.append(unit.rpartition(".")[0].partition("@")[0])
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
            patterns += [f"{package}$" for package in packages_of(self.system, files).values() if package]
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
        return [] if ("file", path) in self.roles else [self._written(path, content, finding)]

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
        finding.reason = f"the next boot brings {newest} instead of {running}"
        if finding.affects:
            finding.reason += ", which lacks"
        return finding

    # files

    def _files(self, settings: Sequence[Setting]) -> list[Finding]:
        candidates = [
            one for one in settings if one.kind in foreign_files.KINDS and not self.planes[one.key].unknown
        ]
        if not candidates:
            return []
        images: dict[str, FileImage] = {}
        for kind_name, mine in self.observer.by_kind(candidates).items():
            kind = self.observer.kind(kind_name)
            for owner in sorted({one.owner for one in mine}):
                images.update(kind.render(owner, [one for one in mine if one.owner == owner]))
        held = [path for path, entry in self.ledger.files.items() if entry["owner"] == OWNER]
        ours = {path for path, entry in self.ledger.files.items() if entry["owner"] != OWNER} | set(images)
        ours |= {name for kind, name in self.roles if kind == "file"}
        asked = {name for name in self.decisions or {} if name.startswith("/")}
        found, view = foreign_files.survey(
            self.system,
            candidates,
            self.planes,
            images,
            frozenset(ours),
            frozenset(asked),
            any(path not in (APT_GUARD, NEEDRESTART_GUARD, CLOUD_INIT_OFF) for path in held),
        )
        findings = []
        for one in found:
            if one.loses:
                findings.append(
                    Finding(
                        one.file,
                        "overridden",
                        list(one.loses),
                        "defines what the suite overrides",
                        file=one.file,
                    )
                )
            if one.wins:
                findings.append(self._file(one, view))
        return findings

    def _file(self, found: foreign_files.Found, view: foreign_files.View) -> Finding:
        says = ", ".join(f"{name} = {one.value}" for (_kind, name), one in found.wins.items())
        lines = sorted({one.line for one in found.wins.values() if one.line})
        finding = Finding(
            found.file,
            "fight",
            list(found.wins),
            f"decides over the suite's own files (line {', '.join(map(str, lines))}: {says})"
            if lines
            else f"decides over the suite's own files ({says})",
            file=found.file,
            taking_over=f"those lines are commented out in {found.target}"
            if found.target == view.real(found.file)
            else f"{found.target} masks it, a copy without those lines",
        )
        text = view.files.get(found.target)
        if text is not None and ("file", found.target) not in self.roles:
            try:
                text.encode()
            except UnicodeEncodeError:
                return finding  # bytes that are no UTF-8 cannot be kept as the content of kind file
            about = os.stat(
                self.system.path(found.target if self.system.exists(found.target) else found.file)
            )
            finding.settings = [self._written(found.target, text, finding, about)]
        return finding

    def _written(
        self, path: str, content: str, finding: Finding, about: os.stat_result | None = None
    ) -> Setting:
        """A file of the owner `foreign`, with the mode and owner that `about` has."""
        asked = {"content": content}
        if about is not None:
            asked["mode"] = f"{about.st_mode & 0o7777:04o}"
            asked["owner"] = pwd.getpwuid(about.st_uid).pw_name
            asked["group"] = grp.getgrgid(about.st_gid).gr_name
        text = self.observer.kind("file").text(path, asked)
        return Setting(OWNER, "file", path, text, asked, _notes(finding.owner, finding))

    def _name_packages(self, findings: Sequence[Finding]) -> None:
        versions = _versions(self.system) if findings else {}
        of_files = packages_of(self.system, [one.file for one in findings if one.owner.startswith("/")])
        for one in findings:
            name = of_files.get(one.file, "") if one.owner.startswith("/") else one.package
            one.package = f"{name} {versions.get(name, '')}".strip()


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


def _versions(system: System) -> dict[str, str]:
    """Version of each installed package, from dpkg's own database."""
    try:
        status = system.read("/var/lib/dpkg/status")
    except OSError:
        return {}
    found = {}
    for block in status.split("\n\n"):
        if "\nStatus: install ok installed" in block:
            version = re.search(r"^Version: (\S+)", block, re.MULTILINE)
            found[block.partition("\n")[0][len("Package: ") :]] = version[1] if version else ""
    return found


def packages_of(system: System, paths: Iterable[str]) -> dict[str, str]:
    """Path -> the package it belongs to, as `dpkg -S` says it, in one walk over dpkg's lists."""
    forms: dict[str, str] = {}
    for path in paths:
        forms[path] = path
        # dpkg knows files by the path they came with, on either side of the link /lib -> /usr/lib.
        forms[path[len("/usr") :] if path.startswith("/usr/lib/") else f"/usr{path}"] = path
    found: dict[str, str] = {}
    if not forms:
        return found
    folder = "/var/lib/dpkg/info"
    for name in system.names(folder):
        if not name.endswith(".list"):
            continue
        lines = set(system.read(f"{folder}/{name}").split("\n"))
        for form in lines & set(forms):
            found[forms[form]] = name[: -len(".list")].partition(":")[0]
    return found


def claimed(owners: Mapping[str, Any], present: bool, partial: bool) -> Mapping[str, Any]:
    """The owners of a call with our own among them: what is held is always decided about anew."""
    if owners and (partial or not present):
        return {**owners, OWNER: owners.get(OWNER, {})}
    return owners
