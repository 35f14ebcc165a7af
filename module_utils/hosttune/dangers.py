"""Demands that would harm the host however right they are in themselves, found before anything is touched.

What needs something else that is missing (a watchdog, an isolated CPU, a limit of memory) is a Refusal that
names it; what lowers the host's defences needs somebody who answers for it (`accepted` in its note, see
`accepted`); what is merely unwise is a warning. Undo is never refused here.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence

from . import cpulist, watchdog
from .kinds.sysctl import dotted
from .model import Refusal, Setting, is_one_line, shown
from .system import System
from .systemd import dropins, fragment, integer, nanoseconds, read_assignments, size

#: The least and (in percent of MemTotal) the most of vm.min_free_kbytes (admin-guide/sysctl/vm.rst).
_MIN_FREE_KIB, _MIN_FREE_PERCENT = 1024, 3
#: Most of a node's free memory that a service bound to it may count on, in percent.
_NODE_PERCENT = 80
#: Read-ahead above this, in KiB, reads what random queries of a database throw away.
_OLTP_READ_AHEAD = 512

_EVERY_MITIGATION = "every defence against other programs on the same CPU"
_MITIGATION = "a defence against other programs on the same CPU"
_SWITCHES = (
    "spectre_v2", "spec_store_bypass_disable", "l1tf", "mds", "tsx_async_abort", "mmio_stale_data",
    "retbleed", "srbds", "gather_data_sampling", "pti",
)  # fmt: skip
_FLAGS = ("nospectre_v1", "nospectre_v2", "nospec_store_bypass_disable", "nopti")
#: What lowers the host's defences: (kind, name) -> the values that do, and what falls.
_DEFENCES: dict[tuple[str, str], tuple[str, str]] = {
    ("boot", "mitigations"): (r"(.*,)?off(,.*)?", _EVERY_MITIGATION),
    **{("boot", name): ("off", _MITIGATION) for name in _SWITCHES},
    **{("boot", name): (".*", _MITIGATION) for name in _FLAGS},
    ("boot", "audit"): ("0|off", "the record of who did what"),
    ("boot", "init_on_alloc"): ("0|off|[nN]", "the cleaning of memory that is given out"),
    ("boot", "init_on_free"): ("0|off|[nN]", "the cleaning of memory that is given back"),
    ("boot", "nokaslr"): (".*", "the random place of the kernel"),
    ("boot", "norandmaps"): (".*", "the random places of programs"),
    ("boot", "nosmep"): (".*", "a defence of the kernel against programs"),
    ("boot", "nosmap"): (".*", "a defence of the kernel against programs"),
    ("sysctl", "kernel.randomize_va_space"): ("[01]", "the random places of programs"),
}


def check(
    settings: Sequence[Setting], wanted: Sequence[Setting], system: System, now: datetime.datetime
) -> list[str]:
    """Raises Refusal for the first danger; returns warnings.

    `settings` are all of the host, `wanted` those of this call: none of the others is refused here.
    """
    asked = {(one.kind, dotted(one.name) if one.kind == "sysctl" else one.name): one for one in settings}
    for setting in wanted:
        _defence(setting, now)
        _never_killed(setting, asked, system)
        _bound_memory(setting, asked, system)
    _zone_reclaim(asked, settings, system)
    _min_free(asked, system)
    _warning_before_reset(asked)
    return [*_realtime(asked, system), *_no_kdump(asked, system), *_read_ahead(settings)]


# defences

_WHO = "Give ticket, owner and expires"


def accepted(setting: str, acceptance: object) -> str:
    """What a note says of somebody who answers for a setting; raises Refusal for what does not say enough.

    `acceptance` has ticket, owner and expires: a date such as 2027-03-31, the last day on which it holds.
    """
    thing = f"settings_risk_acceptance of {setting}"
    if not isinstance(acceptance, Mapping):
        raise Refusal("is no dict", thing=thing, remedy=_WHO)
    for field in ("ticket", "owner"):
        text = acceptance.get(field)
        if not isinstance(text, str) or not text.strip() or not is_one_line(text):
            raise Refusal(f"has no {field}", thing=thing, remedy=_WHO)
    expires = str(acceptance.get("expires", ""))
    if _day(expires) is None:
        raise Refusal(f"expires at '{shown(expires)}'", thing=thing, remedy="Give a date such as 2027-03-31")
    return f"until {expires} by {acceptance['owner']} ({acceptance['ticket']})"


def _day(text: str) -> datetime.date | None:
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        return None


def _defence(setting: Setting, now: datetime.datetime) -> None:
    name = dotted(setting.name) if setting.kind == "sysctl" else setting.name.replace("-", "_")
    values, falls = _DEFENCES.get((setting.kind, name), (r"(?!)", ""))
    if not re.match(rf"(?:{values})\Z", setting.value):
        return
    remedy = (
        f"Leave it out, or answer for it: settings_risk_acceptance: {{'{setting}': "
        "{ticket: ..., owner: ..., expires: YYYY-MM-DD}}"
    )
    said = setting.notes.get("accepted", "")
    until = _day(said[len("until ") :].partition(" ")[0])
    if until is not None and now.date() <= until:
        return
    why = "nobody answers for that" if until is None else f"that was accepted {said} only"
    raise Refusal(
        f"'{setting.value}' ({setting.owner}) takes away {falls}, and {why}",
        thing=str(setting),
        remedy=remedy,
    )


# memory


def _never_killed(setting: Setting, asked: Mapping[tuple[str, str], Setting], system: System) -> None:
    """A program that the OOM killer never takes, and that may grow, takes the host down instead."""
    unit, _slash, directive = setting.name.partition("/Service/")
    if setting.kind != "unit" or directive != "OOMScoreAdjust" or _number(setting.value) != -1000:
        return
    if _memory_max(unit, asked, system) is None:
        raise Refusal(
            f"is -1000 ({setting.owner}), and {unit} has no MemoryMax: when it leaks, the kernel kills all "
            "others and then hangs",
            thing=str(setting),
            remedy=f"Ask for {unit}/Service/MemoryMax too, or for -999",
        )


def _memory_max(unit: str, asked: Mapping[tuple[str, str], Setting], system: System) -> int | None:
    """MemoryMax of a unit in bytes, as asked or else as its files say; None where there is none."""
    setting = asked.get(("unit", f"{unit}/Service/MemoryMax"))
    found = setting.value if setting else ""
    if setting is None:
        file = fragment(system, unit)
        try:
            lines = read_assignments(system, [*([file] if file else []), *dropins(system, unit)])
        except OSError:
            return None
        for one in lines:
            if (one.section, one.name) == ("Service", "MemoryMax"):
                found = one.value
    try:
        return size(found)
    except ValueError:
        return None  # a share in percent, or nothing


def _bound_memory(setting: Setting, asked: Mapping[tuple[str, str], Setting], system: System) -> None:
    """Memory bound to nodes ends in the OOM killer while other nodes have plenty."""
    unit, _slash, directive = setting.name.partition("/Service/")
    if setting.kind != "unit" or directive != "NUMAPolicy" or setting.value != "bind":
        return
    mask = asked.get(("unit", f"{unit}/Service/NUMAMask"))
    try:
        nodes = cpulist.parse(mask.value.replace(" ", ",")) if mask else set()
    except ValueError:
        return  # `all`, and what kind unit refuses
    free = sum(_node_bytes(system, node) for node in nodes)
    budget = _memory_max(unit, asked, system)
    if nodes and not free:
        raise Refusal(
            f"binds {unit} to node {mask.value if mask else ''}, which has no memory beside huge pages",
            thing=str(setting),
            remedy="Ask for preferred, or for a node with memory (playbooks/cpu_plan.yml shows them)",
        )
    if budget is not None and budget >= free * _NODE_PERCENT // 100 > 0:
        raise Refusal(
            f"binds {unit} with MemoryMax {budget >> 20} MiB to node {mask.value if mask else ''}, which has "
            f"{free >> 20} MiB beside huge pages: a service may count on {_NODE_PERCENT} % of that",
            thing=str(setting),
            remedy="Ask for preferred, or lower MemoryMax",
        )


def _node_bytes(system: System, node: int) -> int:
    """A node's memory without its huge pages, in bytes; 0 where there is none."""
    folder = f"/sys/devices/system/node/node{node}"
    try:
        total = re.search(r"MemTotal:\s*(\d+) kB", system.read(f"{folder}/meminfo"))
    except OSError:
        return 0
    found = int(total[1]) * 1024 if total else 0
    for pool in system.names(f"{folder}/hugepages"):
        try:
            pages = int(system.read_value(f"{folder}/hugepages/{pool}/nr_hugepages"))
        except (OSError, ValueError):
            continue
        found -= pages * int(re.sub(r"\D", "", pool)) * 1024
    return max(found, 0)


def _zone_reclaim(
    asked: Mapping[tuple[str, str], Setting], settings: Sequence[Setting], system: System
) -> None:
    setting = asked.get(("sysctl", "vm.zone_reclaim_mode"))
    server = next((one for one in settings if one.kind in ("postgres", "redis")), None)
    if setting and server and _number(setting.value) not in (0, None) and not system.container:
        raise Refusal(
            f"is {setting.value} ({setting.owner}) on a host with {server.kind} ({server.owner}): the kernel "
            "would throw its page cache away rather than take memory of another node",
            thing=str(setting),
            remedy="Ask for 0",
        )


def _min_free(asked: Mapping[tuple[str, str], Setting], system: System) -> None:
    setting = asked.get(("sysctl", "vm.min_free_kbytes"))
    value = _number(setting.value) if setting else None
    if setting is None or value is None or system.container:
        return
    try:
        total = re.search(r"MemTotal:\s*(\d+)", system.read("/proc/meminfo"))
    except OSError:
        return  # the kernel's own refusal will be reported
    most = int(total[1]) * _MIN_FREE_PERCENT // 100 if total else value
    if not _MIN_FREE_KIB < value <= most:
        raise Refusal(
            f"is {setting.value} ({setting.owner}): too little breaks the kernel in small ways, too much "
            "ends in the OOM killer at once (admin-guide/sysctl/vm.rst)",
            thing=str(setting),
            remedy=f"Ask for more than {_MIN_FREE_KIB} and at most {most}, {_MIN_FREE_PERCENT} % of memory",
        )


# hangs


def _realtime(asked: Mapping[tuple[str, str], Setting], system: System) -> Iterator[str]:
    """Without throttling one busy real-time thread takes its CPU from everybody, the kernel too."""
    setting = asked.get(("sysctl", "kernel.sched_rt_runtime_us"))
    if setting is None or setting.value != "-1" or system.container:
        return
    if ("boot", "isolcpus") not in asked and not _isolated(system):
        raise Refusal(
            f"is -1 ({setting.owner}), and no CPU is isolated: a real-time thread that does not sleep takes "
            "a CPU that the host needs",
            thing=str(setting),
            remedy="Isolate the CPUs of the real-time threads (boot isolcpus), or ask for 950000",
        )
    armed = asked.get(("manager", "RuntimeWatchdogSec"))
    found = watchdog.read(system)
    if not (armed and _span(armed.value)) and not (found and found.armed):
        raise Refusal(
            f"is -1 ({setting.owner}), and no hardware watchdog is armed: nothing would bring a hung host "
            "back",
            thing=str(setting),
            remedy="Ask for manager RuntimeWatchdogSec too (role watchdog), or for 950000",
        )
    stalld = asked.get(("service", "stalld.service"))
    if not (stalld and "active" in stalld.value.split()):
        yield (
            f"{setting} is -1 ({setting.owner}) without stalld: kernel threads of an isolated CPU may "
            "starve. Pin every real-time thread to CPUs that nobody else needs"
        )


def _isolated(system: System) -> bool:
    try:
        return bool(system.read_value("/sys/devices/system/cpu/isolated"))
    except OSError:
        return False


def _warning_before_reset(asked: Mapping[tuple[str, str], Setting]) -> None:
    warning = asked.get(("manager", "RuntimeWatchdogPreSec"))
    reset = asked.get(("manager", "RuntimeWatchdogSec"))
    early, late = (_span(one.value) if one else 0 for one in (warning, reset))
    if warning and early and early >= late:
        said = f"RuntimeWatchdogSec = {reset.value} ({reset.owner})" if reset else "no RuntimeWatchdogSec"
        raise Refusal(
            f"is {warning.value} ({warning.owner}) beside {said}: the warning comes that long before the "
            "reset",
            thing=str(warning),
            remedy="Ask for less than RuntimeWatchdogSec",
        )


def _no_kdump(asked: Mapping[tuple[str, str], Setting], system: System) -> Iterator[str]:
    governor = asked.get(("manager", "RuntimeWatchdogPreGovernor"))
    if governor is None or governor.value != "panic" or system.container:
        return
    try:
        ready = system.read_value("/sys/kernel/kexec_crash_loaded") == "1"
    except OSError:
        ready = False
    if not ready:
        yield (
            f"{governor} is panic ({governor.owner}), and no crash kernel is loaded: the panic leaves no "
            "dump. Install kdump-tools, or leave the governor out"
        )


# disks


def _read_ahead(settings: Sequence[Setting]) -> Iterator[str]:
    database = next((one for one in settings if one.kind == "postgres"), None)
    for setting in settings:
        value = _number(setting.value) if setting.name.endswith("/read_ahead_kb") else None
        if setting.kind == "block" and database and value is not None and value > _OLTP_READ_AHEAD:
            yield (
                f"{setting} is {setting.value} ({setting.owner}) on a host with PostgreSQL "
                f"({database.owner}): random reads throw most of it away. Ask for {_OLTP_READ_AHEAD} or less"
            )


# numbers


def _number(text: str) -> int | None:
    try:
        return integer(text)
    except ValueError:
        return None


def _span(text: str) -> int:
    """A time span of systemd in nanoseconds; 0 where it is off or none."""
    try:
        return nanoseconds(text) or 0
    except ValueError:
        return 0
