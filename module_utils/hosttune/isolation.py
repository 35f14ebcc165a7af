"""CPUs that the kernel shall leave alone, and the boot parameters that go with them: what is refused and why.

    check(settings, system) -> warnings

Isolated are the CPUs of `isolcpus` and `nohz_full` (kind boot) and of the slice that is made a cpuset
partition (unit isolated.slice/Slice/AllowedCPUs). A machine that isolates the boot CPU, half a core, or all
of a node's CPUs works worse than one that isolates none, and the kernel says so in its log at most. All of it
is a Refusal before anything is touched. Judged over all owners of a call, only where something is isolated or
one of the other parameters is asked for. Sources: admin-guide/kernel-parameters.txt, cgroup-v2.rst,
timers/no_hz.rst, admin-guide/pm/cpuidle.rst.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import cpulist, topology
from .cmdline import normal, to_values
from .model import Refusal, Setting
from .system import System
from .systemd import cpu_set

#: The slice whose CPUs a cpuset partition takes off the others. Directly below the root: up to Linux 6.6 a
#: partition's parent must be one itself, and `a-b.slice` would stand below `a.slice`.
SLICE = "isolated.slice"
CPUS_OF_SLICE = ("unit", f"{SLICE}/Slice/AllowedCPUs")

#: Words of isolcpus= before its CPUs.
_FLAGS = frozenset({"nohz", "domain", "managed_irq"})
#: What the kernel must have been built with, by parameter; else it reads the word and does nothing.
_BUILT_WITH = {
    "isolcpus": "CONFIG_CPU_ISOLATION",
    "nohz_full": "CONFIG_NO_HZ_FULL",
    "rcu_nocbs": "CONFIG_RCU_NOCB_CPU",
}
#: Directives that give CPUs to what a unit runs.
_CLAIMS = ("CPUAffinity", "AllowedCPUs")
_REMEDY = "Take the CPUs of the plan: playbooks/cpu_plan.yml draws it"


def check(settings: Sequence[Setting], system: System) -> list[str]:
    """Raises Refusal for the first demand that cannot be; returns what is merely unwise."""
    boot = {normal(one.name): one for one in settings if one.kind == "boot"}
    if system.container:
        return []  # the kernel is another's: nothing of this is written
    isolated = _isolated(settings, boot)
    warnings: list[str] = []
    if isolated or "irqaffinity" in boot:
        machine = _Machine(system)
        for setting, cpus in isolated:
            machine.check(setting, cpus)
        everything = set().union(*(cpus for _setting, cpus in isolated))
        _check_irqs(boot.get("irqaffinity"), everything, machine)
        if isolated:
            _check_manager(settings, everything)
            _check_use(settings, isolated, everything, machine)
            _check_twice(isolated)
    if any(setting.key == CPUS_OF_SLICE for setting, _cpus in isolated):
        _check_cgroups(settings, system)
    warnings += _check_config(boot, system)
    _check_clock(boot, system)
    return [*warnings, *_check_idle(boot, system), *_check_latency(settings)]


def _isolated(
    settings: Sequence[Setting], boot: Mapping[str, Setting]
) -> list[tuple[Setting, frozenset[int]]]:
    found = []
    for name in ("isolcpus", "nohz_full"):
        if name in boot:
            found.append((boot[name], _cpus_of_words(boot[name])))
    for setting in settings:
        if setting.key == CPUS_OF_SLICE:
            found.append((setting, _cpus(setting, setting.value)))
    return found


def _cpus_of_words(setting: Setting) -> frozenset[int]:
    """All CPUs that a parameter names, without the flags before them."""
    cpus: frozenset[int] = frozenset()
    for value in to_values(setting.value):
        words = (value or "").split(",")
        while words and words[0] in _FLAGS:
            words.pop(0)
        cpus |= _cpus(setting, ",".join(words))
    return cpus


def _cpus(setting: Setting, text: str) -> frozenset[int]:
    try:
        found = cpulist.parse(text.replace(" ", ","))
    except ValueError as error:
        raise Refusal(str(error), thing=str(setting), remedy="Give CPUs such as 2-3,8") from None
    if not found:
        raise Refusal("names no CPU", thing=str(setting), remedy="Give CPUs such as 2-3,8")
    return frozenset(found)


class _Machine:
    """What of the topology decides which CPUs may be isolated."""

    def __init__(self, system: System) -> None:
        found: Mapping[str, Any] = topology.read(system.root)
        cpus = [cpu for cpu in found["cpus"] if cpu["online"]]
        self.online = frozenset(cpu["id"] for cpu in cpus)
        #: CPU 0 where it is online: it takes what nobody else does, and cannot be without its tick
        self.boot_cpu = min(self.online, default=0)
        self.cores = {
            frozenset(cpulist.parse(cpu["siblings"] or str(cpu["id"]))) & self.online for cpu in cpus
        }
        self.nodes = {
            node["id"]: frozenset(cpulist.parse(node["cpus"] or "")) & self.online for node in found["nodes"]
        }

    def check(self, setting: Setting, isolated: frozenset[int]) -> None:
        missing = isolated - self.online
        if missing:
            raise Refusal(
                f"CPU {cpulist.format(missing)} is not online on this host, whose CPUs are "
                f"{cpulist.format(self.online)}",
                thing=str(setting),
                remedy=_REMEDY,
            )
        if self.boot_cpu in isolated:
            raise Refusal(
                f"isolates CPU {self.boot_cpu}, the boot CPU, which keeps the time for all others",
                thing=str(setting),
                remedy=f"Leave out CPU {self.boot_cpu} and its core's others",
            )
        for core in sorted(self.cores, key=min):
            if core & isolated and core - isolated:
                raise Refusal(
                    f"isolates CPU {cpulist.format(core & isolated)} and not "
                    f"{cpulist.format(core - isolated)}, the other thread of its core: that one's work would "
                    "run beside it",
                    thing=str(setting),
                    remedy="Isolate both or none",
                )
        for node, cpus in self.nodes.items():
            if cpus and not cpus - isolated:
                raise Refusal(
                    f"leaves node {node} no CPU for interrupts, kernel threads and everybody else's work",
                    thing=str(setting),
                    remedy=f"Leave out one core of {cpulist.format(cpus)}",
                )
        left, least = self.online - isolated, max(2, sum(1 for cpus in self.nodes.values() if cpus))
        if len(left) < least:
            raise Refusal(
                f"leaves CPU {cpulist.format(left)} for all the rest, and {least} are the least",
                thing=str(setting),
                remedy="Isolate fewer",
            )


def _check_irqs(setting: Setting | None, isolated: set[int], machine: _Machine) -> None:
    if setting is None:
        return
    cpus = _cpus_of_words(setting)
    if not cpus & machine.online:
        raise Refusal(
            f"none of CPU {cpulist.format(cpus)} is online on this host",
            thing=str(setting),
            remedy=f"Name some of {cpulist.format(machine.online)}",
        )
    if cpus & isolated:
        raise Refusal(
            f"sends interrupts to CPU {cpulist.format(cpus & isolated)}, which is isolated",
            thing=str(setting),
            remedy=f"Leave it out, such as {cpulist.format(machine.online - isolated)}",
        )


def _check_manager(settings: Sequence[Setting], isolated: set[int]) -> None:
    for setting in settings:
        if setting.key == ("manager", "CPUAffinity"):
            try:
                both = set(cpu_set(setting.value)) & isolated
            except ValueError:
                continue  # "numa", or what kind manager refuses
            if both:
                raise Refusal(
                    f"lets every service without a CPUAffinity of its own run on CPU {cpulist.format(both)}, "
                    "which is isolated",
                    thing=str(setting),
                    remedy="Leave it out",
                )


def _check_use(
    settings: Sequence[Setting],
    isolated: Sequence[tuple[Setting, frozenset[int]]],
    everything: set[int],
    machine: _Machine,
) -> None:
    """Each isolated core belongs to one unit; its other threads may stay idle."""
    claims: dict[str, set[int]] = {}
    for setting in settings:
        unit, _, directive = setting.name.rpartition("/")
        if setting.kind == "unit" and directive in _CLAIMS and setting.key != CPUS_OF_SLICE:
            # With both directives a unit runs on the CPUs that are in both.
            try:
                cpus = set(cpu_set(setting.value))
            except ValueError:
                continue  # "numa", or what kind unit refuses
            name = unit.partition("/")[0]
            claims[name] = claims[name] & cpus if name in claims else cpus
    by = isolated[0][0]
    for core in sorted(machine.cores, key=min):
        if not core & everything:
            continue
        users = sorted(unit for unit, cpus in claims.items() if cpus & core)
        if len(users) > 1:
            raise Refusal(
                f"isolates CPU {cpulist.format(core)} for {' and '.join(users)} together: nothing moves one "
                "out of the other's way there",
                thing=str(by),
                remedy="Give the core to one of them, in numa_request or in their CPUAffinity",
            )
        if not users:
            raise Refusal(
                f"isolates CPU {cpulist.format(core)}, and no unit of this call runs there: what is not "
                "placed on it by name never comes there",
                thing=str(by),
                remedy="Give it to a unit (CPUAffinity, role numa), or isolate it no more",
            )


def _check_twice(isolated: Sequence[tuple[Setting, frozenset[int]]]) -> None:
    """A partition of CPUs that the command line isolated already is invalid (cpuset.c)."""
    of_slice = next((found for found in isolated if found[0].key == CPUS_OF_SLICE), None)
    of_boot = next((found for found in isolated if normal(found[0].name) == "isolcpus"), None)
    if of_slice and of_boot and of_slice[1] & of_boot[1]:
        raise Refusal(
            f"isolates CPU {cpulist.format(of_slice[1] & of_boot[1])}, as {of_boot[0]} ({of_boot[0].owner}) "
            "does from the boot on",
            thing=str(of_slice[0]),
            remedy="Choose one way: isolation_method boot or cpuset",
        )


def _check_cgroups(settings: Sequence[Setting], system: System) -> None:
    try:
        offered = system.read_value("/sys/fs/cgroup/cgroup.controllers").split()
    except OSError:
        offered = []
    if "cpuset" not in offered:
        setting = next(one for one in settings if one.key == CPUS_OF_SLICE)
        raise Refusal(
            "this host has no cpuset controller of cgroup v2, which makes partitions",
            thing=str(setting),
            remedy="Use isolation_method boot, or boot with systemd.unified_cgroup_hierarchy=1",
        )


def _check_config(boot: Mapping[str, Setting], system: System) -> Iterator[str]:
    asked = {name: boot[name] for name in _BUILT_WITH if name in boot}
    if not asked:
        return
    built = _config(system)
    if built is None:
        yield (
            f"{', '.join(map(str, asked.values()))}: whether this kernel can do that is not known, for "
            "neither /boot/config-RELEASE nor /proc/config.gz can be read"
        )
        return
    for name, setting in asked.items():
        if f"{_BUILT_WITH[name]}=y" not in built:
            raise Refusal(
                f"this kernel was built without {_BUILT_WITH[name]}, and would do nothing of it",
                thing=str(setting),
                remedy="Install a kernel that has it (Debian's have), or leave it out",
            )


def _config(system: System) -> frozenset[str] | None:
    """The lines of the running kernel's build configuration; None where it is not told."""
    try:
        release = system.read_value("/proc/sys/kernel/osrelease")
        return frozenset(system.read(f"/boot/config-{release}").splitlines())
    except OSError:
        pass
    try:
        with gzip.open(system.path("/proc/config.gz"), "rt", encoding="utf-8") as stream:
            return frozenset(stream.read().splitlines())
    except OSError:
        return None


def _check_clock(boot: Mapping[str, Setting], system: System) -> None:
    """tsc=reliable takes the watchdog off the clock: only a clock that has proven itself may go without."""
    wanted = {"tsc": ("reliable", "nowatchdog"), "clocksource": ("tsc",)}
    for name, values in wanted.items():
        setting = boot.get(name)
        if setting is None or not set(to_values(setting.value)) & set(values):
            continue
        missing = {"constant_tsc", "nonstop_tsc"} - _flags(system)
        if missing:
            raise Refusal(
                f"this CPU lacks {' and '.join(sorted(missing))}: its counter changes speed or stops, and "
                "the time would be wrong",
                thing=str(setting),
                remedy="Leave it out",
            )
        leaf = "current" if name == "tsc" else "available"
        try:
            clocks = system.read_value(f"/sys/devices/system/clocksource/clocksource0/{leaf}_clocksource")
        except OSError:
            clocks = "(not told)"
        if "tsc" not in clocks.split():
            raise Refusal(
                f"the kernel's {leaf} clock source is {clocks}: it found the TSC unstable, or a hypervisor "
                "gives its own clock",
                thing=str(setting),
                remedy="Leave it out; journalctl -k -g TSC says what the kernel saw",
            )


def _check_idle(boot: Mapping[str, Setting], system: System) -> Iterator[str]:
    """What keeps CPUs awake heats them, and takes from their siblings and from other guests."""
    polls = boot.get("idle")
    if polls is not None and to_values(polls.value)[-1:] == ["poll"]:
        if "hypervisor" in _flags(system):
            raise Refusal(
                "this host is a virtual machine: polling takes the machine's CPUs from everybody",
                thing=str(polls),
                remedy="Leave it out; the hypervisor's own halt polling serves guests",
            )
        try:
            smt = system.read_value("/sys/devices/system/cpu/smt/active") == "1"
        except OSError:
            smt = False
        if smt:
            raise Refusal(
                "all CPUs poll, and each thread that does so takes half its core from the other one",
                thing=str(polls),
                remedy="Hold /dev/cpu_dma_latency instead (role power), or switch SMT off",
            )
        yield (
            f"{polls}: no CPU ever rests, so none gets more speed from others that do, and the machine runs "
            "hot. The role power limits C-states without that"
        )
    for name in ("intel_idle.max_cstate", "processor.max_cstate"):
        setting = boot.get(name)
        if setting is None:
            continue
        if setting.value == "0":
            what = "hands over to acpi_idle" if name.startswith("intel") else "means 1"
            yield f"{setting} = 0 does not keep CPUs in C0: it {what} (intel_idle.rst). Say 1"
        if not system.exists("/sys/devices/system/cpu/cpu0/cpuidle"):
            yield f"{setting}: this host has no idle states (a virtual machine?), so it does nothing"


def _check_latency(settings: Sequence[Setting]) -> Iterator[str]:
    for setting in settings:
        if setting.name.endswith("/pm_qos_resume_latency_us") and setting.value == "0":
            yield f"{setting} = 0 sets no limit at all: n/a tolerates no latency (sysfs-devices-power)"


def _flags(system: System) -> frozenset[str]:
    """The CPU's flags of /proc/cpuinfo; none where it cannot be read."""
    try:
        lines = system.read("/proc/cpuinfo").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").partition(":")[2].split())
