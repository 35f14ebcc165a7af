"""Demands that contradict each other, found over all owners before anything is touched.

What cannot be had together is a Refusal that names both sides; what can, and serves nobody, is a warning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Callable

from . import cpulist, isolation
from .kinds.sysctl import ZEROING_PAIRS, dotted
from .model import Refusal, Setting
from .system import System

#: Why two roles ask different values of one key, where both have their reason.
_BOTH_RIGHT = {
    (
        "sysctl",
        "vm.overcommit_memory",
    ): "Redis asks 1 for its fork, PostgreSQL's manual 2. With both on a host "
    "take 1 and keep PostgreSQL from the OOM killer with OOMScoreAdjust",
}
#: The smaller one, the greater one: the kernel takes half of the greater where they are the wrong way round.
_BACKGROUND = (
    ("vm.dirty_background_bytes", "vm.dirty_bytes"),
    ("vm.dirty_background_ratio", "vm.dirty_ratio"),
)
#: Descriptors that Redis keeps for itself beside its clients (CONFIG_MIN_RESERVED_FDS).
_REDIS_RESERVED = 32


def check(
    settings: Sequence[Setting],
    system: System,
    canonical: Callable[[str, str], str] = lambda _kind, name: name,
) -> list[str]:
    """Raises Refusal for the first contradiction; returns what is merely unwise.

    `canonical(kind, name)` is the one spelling of a name (Kind.canonical).
    """
    asked = _by_key(settings, canonical)
    for pair in ZEROING_PAIRS:
        _zeroing(asked, *pair)
    for pair in _BACKGROUND:
        _background(asked, *pair)
    _queues(asked)
    _open_files(settings, asked, system)
    _soft_above_hard(settings)
    _strict_overcommit(settings, asked, system)
    _huge_pages(settings)
    return [
        *isolation.check(settings, system),
        *_backlogs(settings, asked, system),
        *_redis_clients(settings),
        *_tasks(settings, asked, system),
        *_interrupts(settings, asked, system),
    ]


def _by_key(
    settings: Sequence[Setting], canonical: Callable[[str, str], str]
) -> dict[tuple[str, str], Setting]:
    """Settings by kind and name, sysctls by the dotted one; two spellings within a role are the kind's."""
    found: dict[tuple[str, str], Setting] = {}
    for setting in settings:
        name = canonical(setting.kind, setting.name)
        key = (setting.kind, dotted(name) if setting.kind == "sysctl" else name)
        other = found.setdefault(key, setting)
        if (other.key == setting.key and other is not setting) or other.owner != setting.owner:
            raise Refusal(
                f"has two owners: {other.owner} ('{other.value}') and {setting.owner} ('{setting.value}')"
                + (f", who writes {setting.name}" if setting.name != other.name else ""),
                thing=str(other),
                remedy=_BOTH_RIGHT.get(key, "Leave it to one of them"),
            )
    return found


def _number(asked: Mapping[tuple[str, str], Setting], system: System, name: str) -> int | None:
    """What a sysctl will be: as asked, else as it is; None where that is no number or not to be read."""
    setting = asked.get(("sysctl", name))
    try:
        if setting is not None and not (system.container and not name.startswith("net.")):
            return int(setting.value)
        return int(system.read_value("/proc/sys/" + name.replace(".", "/")))
    except (OSError, ValueError):
        return None


def _zeroing(asked: Mapping[tuple[str, str], Setting], one: str, other: str) -> None:
    first, second = asked.get(("sysctl", one)), asked.get(("sysctl", other))
    if first and second and first.value != "0" and second.value != "0":
        raise Refusal(
            f"is {first.value} ({first.owner}) beside {other} = {second.value} ({second.owner}): "
            "writing one sets the other to zero",
            thing=f"sysctl {one}",
            remedy="Ask for one of the two",
        )


def _background(asked: Mapping[tuple[str, str], Setting], lower: str, upper: str) -> None:
    first, second = asked.get(("sysctl", lower)), asked.get(("sysctl", upper))
    if not (first and second and first.value.isdigit() and second.value.isdigit()):
        return
    if int(second.value) and int(first.value) >= int(second.value):
        raise Refusal(
            f"is {first.value} ({first.owner}), not below {upper} = {second.value} ({second.owner}): the "
            "kernel would take half of that one without a word (mm/page-writeback.c)",
            thing=f"sysctl {lower}",
            remedy=f"Ask for less than {second.value}",
        )


def _queues(asked: Mapping[tuple[str, str], Setting]) -> None:
    """An attribute of a NIC's queue is a file of /sys too: one that two kinds set has two masters."""
    for (kind, name), setting in asked.items():
        file = name.removeprefix("class/net/").replace("/queues/", "/queue/")
        interface, _, rest = file.partition("/queue/")
        other = asked.get(("nic", f"{interface}/queue/{rest.replace('/', '.')}"))
        if kind == "sysfs" and other is not None:
            raise Refusal(
                f"is {setting} ({setting.owner}) as well",
                thing=str(other),
                remedy="Leave it to kind nic, which keeps it when the queues are made anew",
            )


def _open_files(
    settings: Sequence[Setting], asked: Mapping[tuple[str, str], Setting], system: System
) -> None:
    """A hard nofile above fs.nr_open fails setrlimit(2) even for root, and with it logins and services."""
    try:
        ceiling = int(system.read_value("/proc/sys/fs/nr_open"))
    except (OSError, ValueError):
        return  # the limit is unknown here; the kernel's own refusal will be reported
    raised = asked.get(("sysctl", "fs.nr_open"))
    if raised is not None and raised.value.isdigit() and not system.container:
        ceiling = max(ceiling, int(raised.value))
    for setting in settings:
        leaf = setting.name.rsplit("/", 1)[-1]
        if setting.kind not in ("limit", "unit", "manager") or leaf not in (
            "nofile",
            "LimitNOFILE",
            "DefaultLimitNOFILE",
        ):
            continue
        hard = setting.value.rsplit(":", 1)[-1]
        if hard.isdigit() and int(hard) > ceiling:
            raise Refusal(
                f"is {hard}, above fs.nr_open = {ceiling}",
                thing=str(setting),
                remedy=f"Raise sysctl fs.nr_open, or ask for at most {ceiling}",
            )


def _soft_above_hard(settings: Sequence[Setting]) -> None:
    """pam_limits then sets neither as asked."""
    limits = {setting.name: setting for setting in settings if setting.kind == "limit"}
    for name, soft in limits.items():
        domain, _, rest = name.partition("/")
        word, _, item = rest.partition("/")
        hard = limits.get(f"{domain}/hard/{item}") if word == "soft" else None
        if hard is None or not hard.value.isdigit():
            continue
        if not soft.value.isdigit() or int(soft.value) > int(hard.value):
            raise Refusal(
                f"is {soft.value} ({soft.owner}), above the hard limit {hard.value} ({hard.owner})",
                thing=str(soft),
                remedy="Lower the soft limit, or raise the hard one",
            )


def _strict_overcommit(
    settings: Sequence[Setting], asked: Mapping[tuple[str, str], Setting], system: System
) -> None:
    """vm.overcommit_memory = 2: Redis cannot fork, and nothing may have more than CommitLimit."""
    setting = asked.get(("sysctl", "vm.overcommit_memory"))
    if setting is None or setting.value != "2" or system.container:
        return
    redis = next((one for one in settings if _of_redis(one)), None)
    if redis is not None:
        raise Refusal(
            f"is 2 ({setting.owner}) on a host with Redis ({redis.owner}: {redis}): its fork for a snapshot "
            "needs as much memory again, which 2 refuses",
            thing=str(setting),
            remedy=_BOTH_RIGHT[setting.key],
        )
    memory = _meminfo(system)
    ratio, kbytes = (_number(asked, system, f"vm.overcommit_{word}") or 0 for word in ("ratio", "kbytes"))
    if not memory or not (ratio or kbytes):
        return
    huge = memory.get("HugePages_Total", 0) * memory.get("Hugepagesize", 0)
    allowed = (kbytes or (memory["MemTotal"] - huge) * ratio // 100) + memory.get("SwapTotal", 0)
    if allowed < memory.get("Committed_AS", 0):
        raise Refusal(
            f"is 2 ({setting.owner}), which allows {allowed} kB by vm.overcommit_"
            f"{'kbytes' if kbytes else 'ratio'} and swap, and {memory['Committed_AS']} kB are given out "
            "already: the next fork on this host would fail",
            thing=str(setting),
            remedy="Raise vm.overcommit_ratio, add swap, or ask for 0",
        )


def _huge_pages(settings: Sequence[Setting]) -> None:
    """One pool, set a node at a time and by its total: whichever is written last takes the other back."""
    pool = next((one for one in settings if one.kind == "hugepages"), None)
    if pool is None:
        return
    for setting in settings:
        leaf = dotted(setting.name) if setting.kind == "sysctl" else setting.name.rsplit("/", 1)[-1]
        if (setting.kind == "sysctl" and leaf in ("vm.nr_hugepages", "vm.nr_hugepages_mempolicy")) or (
            setting.kind == "sysfs" and leaf.startswith("nr_hugepages")
        ):
            raise Refusal(
                f"sets the pools ({setting.owner}) that {pool} ({pool.owner}) sets by node",
                thing=str(setting),
                remedy="Leave it out: kind hugepages sets each node's pool",
            )


def _of_redis(setting: Setting) -> bool:
    return setting.kind == "redis" or setting.name.startswith(("redis-server", "/etc/redis/"))


def _meminfo(system: System) -> dict[str, int]:
    """/proc/meminfo, in kB or counts; empty where it cannot be read."""
    try:
        lines = system.read("/proc/meminfo").splitlines()
    except OSError:
        return {}
    return {line.partition(":")[0]: int(line.partition(":")[2].split()[0]) for line in lines if ":" in line}


def _backlogs(
    settings: Sequence[Setting], asked: Mapping[tuple[str, str], Setting], system: System
) -> Iterator[str]:
    ceiling = _number(asked, system, "net.core.somaxconn")
    for setting in settings:
        if setting.kind != "redis" or not setting.name.endswith("/tcp-backlog"):
            continue
        if ceiling is not None and setting.value.isdigit() and int(setting.value) > ceiling:
            yield (
                f"{setting} is {setting.value}, and net.core.somaxconn = {ceiling} cuts it to that without "
                "a word. Raise that one, or ask for less"
            )


def _redis_clients(settings: Sequence[Setting]) -> Iterator[str]:
    for setting in settings:
        instance, _, name = setting.name.partition("/")
        if setting.kind != "redis" or name != "maxclients" or not setting.value.isdigit():
            continue
        unit = "redis-server.service" if instance == "server" else f"redis-server@{instance}.service"
        limit = next(
            (one for one in settings if one.key == ("unit", f"{unit}/Service/LimitNOFILE")),
            None,
        )
        soft = limit.value.partition(":")[0] if limit else ""
        if soft.isdigit() and int(soft) < int(setting.value) + _REDIS_RESERVED:
            yield (
                f"{setting} is {setting.value}, and {limit} = {soft} leaves room for "
                f"{int(soft) - _REDIS_RESERVED}. Raise the limit, or ask for fewer clients"
            )


def _tasks(
    settings: Sequence[Setting], asked: Mapping[tuple[str, str], Setting], system: System
) -> Iterator[str]:
    ceilings = {name: _number(asked, system, f"kernel.{name}") for name in ("pid_max", "threads-max")}
    for setting in settings:
        if setting.kind != "unit" or not setting.name.endswith("/TasksMax") or not setting.value.isdigit():
            continue
        for name, ceiling in ceilings.items():
            if ceiling is not None and int(setting.value) > ceiling:
                yield (
                    f"{setting} is {setting.value}, above kernel.{name} = {ceiling}, which the whole host "
                    "shares. Raise that one, or ask for less"
                )


def _interrupts(
    settings: Sequence[Setting], asked: Mapping[tuple[str, str], Setting], system: System
) -> Iterator[str]:
    """Interrupts on CPUs that are isolated now, or will be from the next boot on."""
    texts = [asked[key].value for key in (("boot", "isolcpus"), ("boot", "nohz_full")) if key in asked]
    with contextlib.suppress(OSError):  # a kernel without isolation
        texts.append(system.read_value("/sys/devices/system/cpu/isolated"))
    isolated: set[int] = set()
    for text in texts:
        # isolcpus=managed_irq,domain,2-7 begins with what it isolates from.
        numbers = ",".join(part for part in text.split(",") if part[:1].isdigit())
        try:
            isolated |= cpulist.parse(numbers)
        except ValueError:
            continue  # 2-N: only the kernel knows
    for setting in settings:
        if setting.kind == "irq":
            disturbed = cpulist.parse(setting.value) & isolated
            if disturbed:
                yield (
                    f"{setting} = {setting.value} has interrupts fire on isolated CPUs "
                    f"({cpulist.format(disturbed)}). Give it CPUs for interrupts or housekeeping"
                )
