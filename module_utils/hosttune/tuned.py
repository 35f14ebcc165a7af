"""What TuneD would set: its active profile with all it includes, read from its files as TuneD reads them.

Profiles are INI files; `[main] include=` names those that come first, and each later section of a name adds
to the earlier one. A section sets what its type (`type=`, else its name) stands for. What depends on a
variable, a function or the machine (`uname_regex`) has no value here: it may be anything.
Source: tuned 2.20, tuned/profiles/{loader,merger,locator}.py and its plugins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .system import System
from .systemd import Assignment, read_assignments

ACTIVE = "/etc/tuned/active_profile"
MAIN = "/etc/tuned/tuned-main.conf"
#: Where profiles are looked for, the strongest first (the two `profiles` folders since 2.23).
FOLDERS = ("/etc/tuned/profiles", "/etc/tuned", "/usr/lib/tuned/profiles", "/usr/lib/tuned")

#: Options of a section's type that set one of our names: type -> option -> (kind, pattern of names).
_OPTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "vm": {
        "transparent_hugepages": ("sysfs", "kernel/mm/transparent_hugepage/enabled"),
        "transparent_hugepage": ("sysfs", "kernel/mm/transparent_hugepage/enabled"),
        "transparent_hugepage.defrag": ("sysfs", "kernel/mm/transparent_hugepage/defrag"),
        "dirty_ratio": ("sysctl", "vm.dirty_ratio"),
        "dirty_bytes": ("sysctl", "vm.dirty_bytes"),
        "dirty_background_ratio": ("sysctl", "vm.dirty_background_ratio"),
        "dirty_background_bytes": ("sysctl", "vm.dirty_background_bytes"),
    },
    "disk": {"elevator": ("block", "*/scheduler"), "readahead": ("block", "*/read_ahead_kb")},
    "cpu": {
        "governor": ("sysfs", "devices/system/cpu/*/scaling_governor"),
        "energy_performance_preference": ("sysfs", "devices/system/cpu/*/energy_performance_preference"),
        "min_perf_pct": ("sysfs", "devices/system/cpu/intel_pstate/min_perf_pct"),
        "max_perf_pct": ("sysfs", "devices/system/cpu/intel_pstate/max_perf_pct"),
        "no_turbo": ("sysfs", "devices/system/cpu/intel_pstate/no_turbo"),
    },
    "systemd": {"cpu_affinity": ("manager", "CPUAffinity")},
    "net": dict.fromkeys(("features", "coalesce", "ring", "channels", "pause", "mtu"), ("nic", "*")),
    "scheduler": {"isolated_cores": ("irq", "*")},
}
#: Options of a section by which it may not hold on this machine, or not for all of it.
_CONDITIONS = frozenset({"uname_regex", "cpuinfo_regex", "devices", "devices_udev_regex"})


@dataclass(frozen=True)
class Claim:
    """One value that a profile sets: our kind, a pattern of names, None where the value is not known here.

    `floor`: the value is only raised to (TuneD's `>`).
    """

    kind: str
    pattern: str
    value: str | None
    file: str
    line: int
    floor: bool = False


def active(system: System) -> list[str]:
    """The names of the active profile, several where TuneD merges them; none where none is chosen yet."""
    try:
        return system.read(ACTIVE).split()
    except OSError:
        return []


def shipped(system: System) -> list[str]:
    """Every profile of this host."""
    found = {name for folder in FOLDERS for name in system.names(folder) if _file(system, name)}
    return sorted(found)


def reapplies_sysctl(system: System) -> bool:
    """Whether TuneD reads /etc/sysctl.d again over its profile (`reapply_sysctl`, its default is yes)."""
    try:
        text = system.read(MAIN)
    except OSError:
        return True
    found = re.findall(r"^\s*reapply_sysctl\s*=\s*(\S+)", text, re.MULTILINE)
    return not found or found[-1].lower() in ("1", "true", "yes", "y", "t")


def claims(system: System, profiles: Sequence[str]) -> list[Claim]:
    """What these profiles set, in the order in which the later one decides."""
    found: list[Claim] = []
    for name in profiles:
        found.extend(_claims_of(system, name, ()))
    return found


def _claims_of(system: System, name: str, above: tuple[str, ...]) -> Iterator[Claim]:
    file = _file(system, name)
    if not file or name in above:
        return
    options = read_assignments(system, [file])
    about: dict[str, dict[str, str]] = {}
    for one in options:
        about.setdefault(one.section, {})[one.name] = one.value
    if "include" in about.get("main", {}):
        yield from _included(system, about["main"]["include"], (*above, name))
    for one in options:
        section = about[one.section]
        if section.get("enabled", "1").lower() not in ("0", "false", "no"):
            yield from _claim(section.get("type", one.section), one, bool(_CONDITIONS & set(section)))


def _included(system: System, value: str, above: tuple[str, ...]) -> Iterator[Claim]:
    """What included profiles set; where a function chooses, all that it may choose, with values unknown."""
    if "${" not in value:
        for name in re.split(r"\s*[,;]\s*", value):
            yield from _claims_of(system, name, above)
        return
    known = shipped(system)
    for name in [word for word in re.findall(r"[\w.-]+", value) if word in known] or known:
        for claim in _claims_of(system, name, above):
            yield replace(claim, value=None)


def _claim(sort: str, one: Assignment, conditional: bool) -> Iterator[Claim]:
    option, value, file, line = one.name, one.value, one.file, one.line
    floor = value.startswith(">")
    plain = value.lstrip(">").strip().strip("\"'")
    known = None if conditional or "${" in value or value[:1] == "<" else plain
    if option in ("type", "enabled", "priority", "devices", "replace") or option.endswith("_regex"):
        return
    if sort == "sysctl":
        yield Claim("sysctl", option, known, file, line, floor)
    elif sort == "sysfs" and option.startswith("/sys/"):
        yield Claim("sysfs", option[len("/sys/") :], known, file, line)
    elif sort == "modules":
        yield Claim("module", option, None, file, line)
    elif sort in ("irqbalance", "irq"):
        yield Claim("irq", "*", None, file, line)
    elif sort == "bootloader" and option.startswith("cmdline"):
        for word in plain.lstrip("+-").split():
            yield Claim("boot", word.partition("=")[0], None, file, line)
    elif option in _OPTIONS.get(sort, {}):
        kind, pattern = _OPTIONS[sort][option]
        yield Claim(kind, pattern, known, file, line, floor)


def _file(system: System, name: str) -> str:
    return next(
        (path for folder in FOLDERS for path in [f"{folder}/{name}/tuned.conf"] if system.exists(path)), ""
    )
