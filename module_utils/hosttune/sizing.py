"""What memory and CPUs mean for PostgreSQL and Redis: values with their formulas and reasons.

    memory_budget(total_bytes, ...) -> {total, system, orchestrator, redis, postgres: {bytes, value, ...}}
    postgres(total_bytes, cpus, ...) -> {parameter: {value, formula, reason}}
    redis(share_bytes, ...) -> {directive: {value, formula, reason}}
    connection_budget, postgres_memory_need -> the arithmetic behind preflight checks

Values are text as the server prints them: PostgreSQL in the largest unit that divides exactly ("20164kB",
"512MB"), Redis in bytes, as CONFIG GET does. Sizes given may be bytes or text with a unit ("1536MB", "2GiB";
units are powers of 1024 as in both servers); a share may also be a part of the whole ("12.5%").

The PostgreSQL rules are pgtune's (le0pard/pgtune, MIT, configurationSlice.js); `corrected=False` reproduces
its output exactly. `corrected=True`, the default, departs from it where it would harm a server; each
departure says so in its reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Union

from .model import Refusal
from .topology import stable_bytes

Size = Union[int, str]
Sized = dict[str, dict[str, Any]]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

WORKLOADS = ("web", "oltp", "dw", "desktop", "mixed")
#: pgtune's word for a class of disk of host_topology
DISKS = {
    "nvme": "nvme",
    "ssd": "ssd",
    "virtio": "ssd",
    "rotational": "hdd",
    "hdd": "hdd",
    "san": "san",
}
DATABASE_SIZES = ("less_ram", "mid_ram", "greater_ram")

#: Least memory PostgreSQL is sized for; below it nothing useful runs beside its fixed needs.
POSTGRES_LEAST = 128 * MIB

_UNITS = {"": 1, "b": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1 << 40}


def parse_size(value: Size, name: str = "size", whole: int = 0) -> int:
    """Bytes of a size: a number of bytes, or text with a unit, or with `whole` a share such as "12.5%"."""
    text = str(value).strip().lower()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[kmgt]?i?b?)", text)
    if isinstance(value, bool) or match is None or (match[2] == "%" and not whole):
        raise Refusal(
            f"{value!r} is no size",
            thing=name,
            remedy='Give bytes or a unit ("512MB", "2GB")' + (', or a share ("12.5%")' if whole else ""),
        )
    if match[2] == "%":
        return int(whole * float(match[1]) / 100)
    return int(float(match[1]) * _UNITS[match[2].rstrip("b").rstrip("i")])


def text_size(size: int) -> str:
    """Bytes for people, rounded down to what needs no more than 4 digits: "832 MiB", "62.5 GiB"."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit * (10 if unit != GIB else 1):
            return f"{size / unit:.4g} {name}"
    return f"{size} bytes"


def postgres_size(kib: int) -> str:
    """KiB as PostgreSQL prints them: the largest unit that divides exactly."""
    for unit, name in ((1 << 20, "GB"), (1 << 10, "MB")):
        if kib >= unit and kib % unit == 0:
            return f"{kib // unit}{name}"
    return f"{kib}kB"


def _entry(value: object, formula: str, reason: str) -> dict[str, Any]:
    return {"value": str(value), "formula": formula, "reason": reason}


# --- the host's memory ---------------------------------------------------------------------------------


def memory_budget(
    total_bytes: Size,
    host_memory_limit: Size | None = None,
    system: Size | None = None,
    orchestrator: Size | None = None,
    redis: Size | None = None,
    huge_pages_of_others: Size = 0,
) -> dict[str, dict[str, Any]]:
    """Divides the memory of a host that runs everything: what is PostgreSQL's is what the others leave.

    `total_bytes` is memory_limit_bytes of host_topology (MemTotal or the least cgroup limit);
    `host_memory_limit` lowers it further. `system`, `orchestrator`, `redis` and `huge_pages_of_others` are
    sizes or shares of the total; 0 for what does not run here. The total is first rounded down to what a
    kernel update does not change (topology.stable_bytes). Usual shares: system 10 % (256 MiB to 8 GiB),
    orchestrator 15 % (at least 256 MiB), Redis 12.5 % (at least 64 MiB).

    Returns {total, system, orchestrator, redis, postgres: {bytes, value, formula, reason}}; without huge
    pages of others the four parts add up to the total. Raises Refusal, with the arithmetic, when PostgreSQL
    would get less than 128 MiB.
    """
    given = parse_size(total_bytes, "memory total")
    limited = given
    if host_memory_limit not in (None, "", 0, "0"):
        limited = min(given, parse_size(host_memory_limit or 0, "host_memory_limit", whole=given))
    total = stable_bytes(limited)

    def part(name: str, asked: Size | None, usual: int, formula: str, reason: str) -> dict[str, Any]:
        if asked is None or asked == "":
            size = usual
        else:
            size = parse_size(asked, f"memory of {name}", whole=total)
            formula = f"as asked: {asked}"
        return {"bytes": size, "value": text_size(size), "formula": formula, "reason": reason}

    parts = {
        "system": part(
            "system",
            system,
            min(max(total // 10, 256 * MIB), 8 * GIB),
            "10 % of the total, 256 MiB to 8 GiB",
            "kernel, page tables, logging, monitoring, shells",
        ),
        "orchestrator": part(
            "orchestrator",
            orchestrator,
            max(total * 15 // 100, 256 * MIB),
            "15 % of the total, at least 256 MiB",
            "the trading orchestrator's processes",
        ),
        "redis": part(
            "redis",
            redis,
            max(total // 8, 64 * MIB),
            "12.5 % of the total, at least 64 MiB",
            "data, buffers, fragmentation and the copy made while saving",
        ),
    }
    others = parse_size(huge_pages_of_others or 0, "huge pages of others", whole=total)
    rest = total - sum(entry["bytes"] for entry in parts.values()) - others
    arithmetic = " - ".join(
        [f"{text_size(total)}"]
        + [f"{name} {entry['value']}" for name, entry in parts.items()]
        + ([f"huge pages of others {text_size(others)}"] if others else [])
    )
    if rest < POSTGRES_LEAST:
        raise Refusal(
            f"{arithmetic} leaves {text_size(rest) if rest > 0 else 'nothing'},"
            f" PostgreSQL needs {text_size(POSTGRES_LEAST)}",
            thing="no memory for PostgreSQL",
            remedy="Lower the other shares, or give the host more memory",
        )
    parts["postgres"] = {
        "bytes": rest,
        "value": text_size(rest),
        "formula": arithmetic,
        "reason": "shared buffers, backends, and the page cache its reads rely on",
    }
    whole = {
        "bytes": total,
        "value": text_size(total),
        "formula": f"least of {text_size(given)} and host_memory_limit, rounded down"
        if limited < given
        else f"{text_size(given)} rounded down",
        "reason": "rounded so that a kernel update, which moves MemTotal by some MiB, changes no value",
    }
    return {"total": whole, **parts}


# --- PostgreSQL ----------------------------------------------------------------------------------------


#: Most of a node's memory beside huge pages that services bound to it may count on, in percent.
NODE_PERCENT = 80


def numa_bind(topology: Mapping[str, Any], plan: Mapping[str, Any], budgets: Mapping[str, int]) -> list[str]:
    """Why services cannot be bound to the nodes a CPU plan gives them: a sentence a node, none where all fit.

    `budgets` is bytes by service. Bound memory that does not fit ends in the OOM killer of that node while
    others have plenty.
    """
    bound: dict[int, dict[str, int]] = {}
    for service, budget in budgets.items():
        node = (plan.get(service) or {}).get("node")
        if plan.get("partitioned") and node is not None:
            bound.setdefault(node, {})[service] = budget
    found = []
    for node in topology.get("nodes", []):
        asked = bound.get(node["id"], {})
        huge = sum(
            int(size[:-2]) * count for size, count in (node.get("hugepages") or {}).items()
        )  # "2048kB"
        most = max((node.get("mem_kib") or 0) - huge, 0) * 1024 * NODE_PERCENT // 100
        if sum(asked.values()) >= most and asked:
            names = ", ".join(f"{service} {text_size(budget)}" for service, budget in asked.items())
            found.append(
                f"node {node['id']} takes {text_size(most)} of bound memory ({NODE_PERCENT} % of what is "
                f"beside its huge pages), and the budgets there are {names}"
            )
    return found


def postgres(
    total_bytes: Size,
    cpus: int | None,
    disk_class: str = "ssd",
    connections: int | None = None,
    workload: str = "oltp",
    version: int = 15,
    reserved_bytes: Size = 0,
    db_size: str = "mid_ram",
    corrected: bool = True,
    shared_buffers: Size | None = None,
    wal_disk_bytes: Size | None = None,
    wal_compression: Sequence[str] = ("pglz", "on"),
    io_methods: Sequence[str] = ("sync", "worker"),
    huge_pages_managed: bool = False,
    least_worker_processes: int = 8,
) -> Sized:
    """PostgreSQL's parameters for a share of memory: {parameter: {value, formula, reason}}.

    `total_bytes` less `reserved_bytes` (what Redis, the orchestrator and the system take) is what it may use.
    `cpus` are those it may run on, None: not known. `disk_class` is a class of host_topology or san,
    `version` the major one. With `corrected`:

    - `shared_buffers` asked for is taken if it fits, else refused with the arithmetic;
    - `wal_disk_bytes`, the size of the WAL's file system, bounds max_wal_size at a quarter;
    - `wal_compression` and `io_methods` are what this build offers (enumvals of pg_settings): a method not
      built in is fatal at start. Debian's builds have lz4: pass ("pglz", "on", "lz4");
    - `huge_pages_managed` says that the pool of huge pages is reserved and verified by us;
    - `least_worker_processes` is what a standby must have because its primary has it.
    """
    _check_postgres(workload, disk_class, db_size, version, cpus)
    memory = parse_size(total_bytes, "memory total") - parse_size(reserved_bytes, "memory reserved")
    if corrected:
        memory = stable_bytes(max(memory, 0))
    if memory < POSTGRES_LEAST:
        raise Refusal(
            f"{text_size(parse_size(total_bytes))} less {text_size(parse_size(reserved_bytes))} reserved"
            f" leaves {text_size(memory) if memory > 0 else 'nothing'},"
            f" {text_size(POSTGRES_LEAST)} are the least",
            thing="no memory for PostgreSQL",
            remedy="Lower what is reserved for others, or give the host more memory",
        )
    rules = _PgTune(memory // KIB, cpus, DISKS[disk_class], connections, workload, version, db_size)
    values = rules.values(io_uring=not corrected or "io_uring" in io_methods)
    if not corrected:
        return values
    asked = (
        None if shared_buffers in (None, "") else parse_size(shared_buffers or 0, "shared_buffers", memory)
    )
    wal_disk = None if wal_disk_bytes in (None, "") else parse_size(wal_disk_bytes or 0, "wal_disk_bytes")
    return _corrected(
        rules, values, asked, wal_disk, wal_compression, huge_pages_managed, least_worker_processes
    )


def _check_postgres(workload: str, disk_class: str, db_size: str, version: int, cpus: int | None) -> None:
    for name, value, choices in (
        ("workload", workload, WORKLOADS),
        ("disk_class", disk_class, tuple(DISKS)),
        ("db_size", db_size, DATABASE_SIZES),
    ):
        if value not in choices:
            raise Refusal(
                f"is {value!r}", thing=f"postgres sizing {name}", remedy=f"Use one of {', '.join(choices)}"
            )
    if not 10 <= int(version) <= 30:
        raise Refusal(
            f"is {version}", thing="postgres sizing version", remedy="Give the major version, 10 up"
        )
    if cpus is not None and int(cpus) < 1:
        raise Refusal(f"is {cpus}", thing="postgres sizing cpus", remedy="Give 1 or more, or leave it out")


class _PgTune:
    """pgtune's rules. All arithmetic in KiB, rounded down at each step, as the original does."""

    def __init__(
        self,
        memory: int,
        cpus: int | None,
        disk: str,
        connections: int | None,
        workload: str,
        version: int,
        db_size: str,
    ) -> None:
        self.memory, self.cpus, self.disk = memory, int(cpus) if cpus is not None else None, disk
        self.workload, self.version, self.db_size = workload, int(version), db_size
        usual = {"web": 200, "oltp": 300, "dw": 40, "desktop": 20, "mixed": 100}[workload]
        self.connections = int(connections) if connections else usual
        self.connections_given = bool(connections)
        self.shared_buffers = memory // (16 if workload == "desktop" else 4)
        self.maintenance = min(memory // (8 if workload == "dw" else 16), 8 * GIB // KIB)
        #: max_worker_processes where pgtune sets it, else the server's default counts
        self.workers = self.cpus if self.cpus is not None and self.cpus >= 4 else None

    def work_mem(self, shared_buffers: int, workers: int) -> int:
        divisor = {"web": 1, "oltp": 1, "dw": 2, "mixed": 2, "desktop": 6}[self.workload]
        each = (self.memory - shared_buffers) / ((self.connections + workers) * 3)
        size = math.floor(each / divisor)
        size = {"less_ram": size * 13 // 10, "mid_ram": size, "greater_ram": size * 9 // 10}[self.db_size]
        return max(size, 4096)

    def wal_buffers(self, shared_buffers: int) -> int:
        size = min(3 * shared_buffers // 100, 16 * 1024)
        return max(16 * 1024 if size > 14 * 1024 else size, 32)

    def wal_sizes(self) -> tuple[int, int]:
        """min_wal_size and max_wal_size in MiB."""
        return {
            "web": (1024, 4096),
            "oltp": (2048, 8192),
            "dw": (4096, 16384),
            "desktop": (100, 2048),
            "mixed": (1024, 4096),
        }[self.workload]

    def values(self, io_uring: bool) -> Sized:
        dw, desktop = self.workload == "dw", self.workload == "desktop"
        pages = {"hdd": 2, "ssd": 200, "san": 300, "nvme": 1000}
        random_cost = "1.1" if self.db_size == "less_ram" or not (self.disk == "hdd" or dw) else "4"
        low, high = self.wal_sizes()
        out: Sized = {
            "max_connections": _entry(
                self.connections,
                "as asked" if self.connections_given else f"usual for {self.workload}",
                "each connection is a process with its own work_mem",
            ),
            "shared_buffers": _entry(
                postgres_size(self.shared_buffers),
                f"memory / {16 if desktop else 4}",
                "a quarter of memory is the manual's start; above 40 % it competes with the page cache",
            ),
            "effective_cache_size": _entry(
                postgres_size(self.memory // 4 if desktop else 3 * self.memory // 4),
                "memory / 4" if desktop else "3 * memory / 4",
                "a hint to the planner, allocates nothing",
            ),
            "maintenance_work_mem": _entry(
                postgres_size(self.maintenance),
                f"memory / {8 if dw else 16}, at most 8GB",
                "VACUUM and CREATE INDEX",
            ),
            "checkpoint_completion_target": _entry("0.9", "constant", "spreads checkpoint writes"),
            "wal_buffers": _entry(
                postgres_size(self.wal_buffers(self.shared_buffers)),
                "3 % of shared_buffers, 32kB to 16MB",
                "one WAL segment is enough",
            ),
            "default_statistics_target": _entry(500 if dw else 100, "dw 500, else 100", "planner statistics"),
            "random_page_cost": _entry(
                random_cost, "hdd or dw 4, else 1.1", "a seek costs little where nothing rotates"
            ),
            "effective_io_concurrency": _entry(
                pages[self.disk], f"{self.disk} {pages[self.disk]}", "reads the disk serves at once"
            ),
            "huge_pages": _entry(
                "try" if self.shared_buffers >= 2 * GIB // KIB else "off",
                "try from 2GB of shared_buffers",
                "fewer TLB misses and smaller page tables",
            ),
            "min_wal_size": _entry(
                postgres_size(low * 1024), f"usual for {self.workload}", "WAL kept for reuse"
            ),
            "max_wal_size": _entry(
                postgres_size(high * 1024), f"usual for {self.workload}", "checkpoints by time, not by size"
            ),
        }
        if self.maintenance >= 2 * GIB // KIB:
            out["autovacuum_work_mem"] = _entry("2GB", "2GB", "each autovacuum worker takes this much")
        if self.cpus is not None and self.cpus >= 16:
            out["autovacuum_max_workers"] = _entry(
                5 if self.cpus >= 32 else 4, "5 from 32 CPUs, 4 from 16", "more CPUs make more dead rows"
            )
        if self.version >= 12 and not (dw or desktop):
            out["jit"] = _entry("off", "constant", "compiling costs short queries more than it gives")
        out["wal_compression"] = _entry(
            "lz4" if self.version >= 15 else "on", "lz4 from 15, else on", "less WAL for little CPU"
        )
        if self.workers is not None:
            out.update(self._parallel(self.workers))
        out["work_mem"] = _entry(
            postgres_size(self.work_mem(self.shared_buffers, self.workers or 8)),
            "(memory - shared_buffers) / ((max_connections + max_worker_processes) * 3), by workload",
            "each sort or hash of each query may take this much",
        )
        if desktop:
            out["wal_level"] = _entry("minimal", "desktop", "no replica, no archive")
            out["max_wal_senders"] = _entry("0", "desktop", "wal_level minimal allows none")
        if self.version >= 18:
            out["io_method"] = _entry(
                "io_uring" if io_uring else "worker", "io_uring on Linux", "reads ahead"
            )
            workers = min(max((self.cpus or 0) // 4, 3), 32)
            if not io_uring and workers > 3:
                out["io_workers"] = _entry(workers, "cpus / 4, 3 to 32", "processes that read ahead")
        return out

    def _parallel(self, cpus: int) -> Sized:
        half = math.ceil(cpus / 2)
        gather = half if self.workload == "dw" else min(half, 4)
        out = {
            "max_worker_processes": _entry(cpus, "cpus", "one worker a CPU"),
            "max_parallel_workers_per_gather": _entry(gather, "cpus / 2, at most 4 but for dw", "per query"),
            "max_parallel_workers": _entry(cpus, "cpus", "all queries together"),
        }
        if self.version >= 11:
            out["max_parallel_maintenance_workers"] = _entry(
                min(half, 4), "cpus / 2, at most 4", "CREATE INDEX"
            )
        return out


def _corrected(
    rules: _PgTune,
    values: Sized,
    asked_buffers: int | None,
    wal_disk: int | None,
    wal_compression: Sequence[str],
    huge_pages_managed: bool,
    least_workers: int,
) -> Sized:
    """pgtune's values with what would harm a server put right."""
    # the server's default; fewer would take workers from logical replication and from extensions
    workers = max(8, rules.workers or 0, least_workers)
    if workers > 8 or rules.workers is not None:
        values["max_worker_processes"] = _entry(
            workers, "largest of 8, cpus and the primary's", "corrects pgtune, which goes below the default 8"
        )
    buffers = rules.shared_buffers
    if asked_buffers is not None:
        _check_buffers(rules, asked_buffers)
        buffers = _blocks(asked_buffers // KIB)
        values["shared_buffers"] = _entry(postgres_size(buffers), "as asked", "fits the memory it may use")
    values["wal_buffers"]["value"] = postgres_size(_blocks(rules.wal_buffers(buffers)))
    values["work_mem"]["value"] = postgres_size(rules.work_mem(buffers, workers))

    # before 17 VACUUM could not use more than 1 GB
    vacuum_most = 2 * GIB // KIB if rules.version >= 17 else GIB // KIB
    values["maintenance_work_mem"] = _entry(
        postgres_size(min(rules.maintenance, 2 * GIB // KIB)),
        "memory / 16 (dw / 8), at most 2GB",
        "corrects pgtune, whose 8GB each CREATE INDEX worker might take",
    )
    values["autovacuum_work_mem"] = _entry(
        postgres_size(min(rules.maintenance, vacuum_most)),
        "maintenance_work_mem, at most 1GB before 17, else 2GB",
        "each autovacuum worker takes this much",
    )
    values["huge_pages"] = (
        _entry("on", "the pool is managed", "a pool that is short then fails loudly")
        if huge_pages_managed
        else _entry("try", "the pool is not managed", "on would not start without a reserved pool")
    )
    if values["wal_compression"]["value"] not in wal_compression:
        values["wal_compression"] = _entry(
            "on", "lz4 only where the build offers it", "corrects pgtune: lz4 is fatal at start without it"
        )
    for name in ("wal_level", "max_wal_senders"):
        values.pop(name, None)  # desktop's: no replica, no archive, no point-in-time recovery
    if wal_disk is not None:
        _bound_wal(values, rules, wal_disk)
    return values


def _blocks(kib: int) -> int:
    """Whole 8 kB blocks, which is what the server keeps and prints of these sizes."""
    return kib // 8 * 8


def _bound_wal(values: Sized, rules: _PgTune, wal_disk: int) -> None:
    """max_wal_size within a quarter of the WAL's file system; whole segments of 16 MiB, at least two."""
    low, high = rules.wal_sizes()
    bounded = min(high, max(wal_disk // 4 // MIB // 16 * 16, 64))
    if bounded < high:
        formula = f"a quarter of {text_size(wal_disk)}"
        values["max_wal_size"] = _entry(
            postgres_size(bounded * 1024), formula, "corrects pgtune, which does not look at the disk"
        )
        values["min_wal_size"] = _entry(
            postgres_size(min(low, max(bounded // 4 // 16 * 16, 32)) * 1024),
            "a quarter of max_wal_size",
            "WAL kept for reuse",
        )


def _check_buffers(rules: _PgTune, asked: int) -> None:
    """Refuses shared_buffers beside which the backends do not fit; the usual quarter is always granted."""
    memory = rules.memory * KIB
    # a quarter of the connections at work at once, 10 MiB each beside its work_mem
    backends = rules.connections * 10 * MIB // 4
    upkeep = min(rules.maintenance * KIB, 2 * GIB)
    available = int((memory - backends - upkeep) / 1.025)  # 2.5 % more for buffer headers and locks
    usual = rules.shared_buffers * KIB
    if asked > max(available, usual):
        raise Refusal(
            f"asked {text_size(asked)}, available {text_size(max(available, 0))}: PostgreSQL may use"
            f" {text_size(memory)}, less {text_size(backends)} for {rules.connections} connections"
            f" and {text_size(upkeep)} maintenance_work_mem, over 1.025 for its bookkeeping",
            thing="no memory for the asked shared_buffers",
            remedy=f"Ask for at most {postgres_size(max(available, usual) // MIB * 1024)} (usual:"
            f" {postgres_size(rules.shared_buffers)}), or lower max_connections or the others' memory",
        )
    if asked < 128 * KIB:
        raise Refusal(
            f"asked {asked} bytes, PostgreSQL starts with 128kB or more",
            thing="shared_buffers",
            remedy='Did you forget the unit? Write "2GB"',
        )


def postgres_memory_need(
    shared_buffers: Size,
    max_connections: int,
    work_mem: Size,
    maintenance_work_mem: Size,
    autovacuum_work_mem: Size,
    autovacuum_max_workers: int = 3,
    hash_mem_multiplier: float = 2.0,
) -> dict[str, Any]:
    """What PostgreSQL may take at its busiest: {bytes, value, formula}.

    A quarter of the connections each run two nodes that fill work_mem, and every connection costs 10 MiB;
    `hash_mem_multiplier` is 2 from version 15, 1 before.
    """
    connection = parse_size(work_mem) * hash_mem_multiplier * 2 / 4 + 10 * MIB
    need = int(
        parse_size(shared_buffers) * 1.025
        + max_connections * connection
        + autovacuum_max_workers * parse_size(autovacuum_work_mem)
        + 2 * parse_size(maintenance_work_mem)
    )
    return {
        "bytes": need,
        "value": text_size(need),
        "formula": f"1.025 * shared_buffers {shared_buffers}"
        f" + {max_connections} connections * {text_size(int(connection))}"
        f" + {autovacuum_max_workers} autovacuum workers * {autovacuum_work_mem}"
        f" + 2 * {maintenance_work_mem}",
    }


def huge_pages(shared_buffers: Size, max_connections: int, page_bytes: int = 2 * MIB) -> int:
    """Pages for PostgreSQL's shared memory, where its own shared_memory_size_in_huge_pages cannot be asked.

    Never below what versions 15 to 18 were measured to need, from 512MB to 128GB and 100 to 500 connections.
    """
    pages = math.ceil(1.025 * parse_size(shared_buffers) / page_bytes)
    return pages + 20 + math.ceil(0.04 * max_connections)


#: Of a node's memory, the most that one server's huge pages take: its backends and the rest need some too.
HUGE_PERCENT = 60


def huge_pages_by_node(
    pages: int, page_bytes: int, nodes: Sequence[Mapping[str, Any]], node: int | None = None
) -> dict[int, int]:
    """Where huge pages lie: {node: count}, of the nodes that get some.

    `nodes` are those of host_topology. On `node` (nearest first where that has no memory or too little), or,
    where it is None, on all nodes alike. Raises Refusal, with the arithmetic, where they fit nowhere.
    """
    room = {one["id"]: one["mem_kib"] * KIB * HUGE_PERCENT // 100 // page_bytes for one in nodes}
    found: dict[int, int] = {}
    left = pages
    if node is not None:
        home = next((one for one in nodes if one["id"] == node), None)
        if home is None:
            known = ", ".join(str(one["id"]) for one in nodes)
            raise Refusal(f"there is no node {node}", thing="huge pages", remedy=f"Nodes are {known}")
        far = {one["id"]: home["distances"][at : at + 1] for at, one in enumerate(nodes)}
        for one in sorted(room, key=lambda one: (one != node, far[one], one)):
            found[one] = min(room[one], left)
            left -= found[one]
    else:
        # The smallest first: what one cannot take is shared by those after it.
        order = sorted(room, key=lambda one: (room[one], one))
        for at, one in enumerate(order):
            found[one] = min(room[one], left // (len(order) - at))
            left -= found[one]
    if left:
        raise Refusal(
            f"{pages} of {text_size(page_bytes)} are {text_size(pages * page_bytes)}, and {HUGE_PERCENT} % "
            f"of each node's memory are {text_size(sum(room.values()) * page_bytes)}",
            thing="no memory for the huge pages",
            remedy="Lower shared_buffers",
        )
    return {one: count for one, count in sorted(found.items()) if count}


# --- Redis ---------------------------------------------------------------------------------------------


def redis(
    share_bytes: Size,
    persistence: str = "aof",
    role: str = "state",
    version: Sequence[int] = (7, 0),
    cpus: int | None = None,
    maxmemory: Size | None = None,
) -> Sized:
    """Redis' directives for its share of memory: {directive: {value, formula, reason}}.

    `persistence` is aof, rdb or none: a saving child may copy every page it shares, so data may be half the
    share at most, and fragmentation takes a tenth. `role` is state (nothing may be lost: writes fail when
    full) or cache. `version` is (major, minor): a directive it does not know keeps Redis from starting.
    `cpus` are those Redis may run on. `maxmemory` asked for is taken if it fits, else refused with the
    arithmetic.
    """
    if persistence not in ("aof", "rdb", "none"):
        raise Refusal(f"is {persistence!r}", thing="redis sizing persistence", remedy="Use aof, rdb or none")
    if role not in ("state", "cache"):
        raise Refusal(f"is {role!r}", thing="redis sizing role", remedy="Use state or cache")
    share = stable_bytes(parse_size(share_bytes, "memory of redis"))
    saves = persistence != "none"
    # the child's copy of every page, or a tenth for replication buffers; a tenth of all for fragmentation
    growth = 1.1 * (2.0 if saves else 1.1)
    most = min(int(share / growth), share * 3 // 4)
    size = stable_bytes(most)
    formula = f"share {text_size(share)} / {growth:.2f}" + ("" if saves else ", at most 3/4 of it")
    if maxmemory not in (None, "", 0, "0"):
        size = parse_size(maxmemory or 0, "redis maxmemory", whole=share)
        if size > most:
            raise Refusal(
                f"asked {text_size(size)}, available {text_size(most)}: the share is {text_size(share)},"
                f" which {'a saving child may double' if saves else 'replication buffers'}"
                " and fragmentation fill up",
                thing="no memory for the asked redis maxmemory",
                remedy=f"Ask for at most {most // MIB}mb, or raise Redis' share of the host",
            )
        formula = f"as asked: {maxmemory}"
    if size < MIB:
        raise Refusal(
            f"a share of {text_size(share)} leaves {text_size(size)} for data",
            thing="no memory for redis",
            remedy="Give Redis 4MB or more",
        )
    out = {
        "maxmemory": _entry(size, formula, "without it Redis grows until the kernel kills something"),
        "maxmemory-policy": _entry(
            "noeviction" if role == "state" else "allkeys-lfu",
            f"role {role}",
            "a full store must say so, not forget" if role == "state" else "the least used goes first",
        ),
        "io-threads": _entry(
            1 if cpus is None or cpus < 8 else min(6, cpus - 2),
            "1 below 8 CPUs, else cpus - 2, at most 6",
            "one thread serves small commands best; more only where it has cores of its own",
        ),
    }
    if tuple(version) >= (7, 0):
        out["maxmemory-clients"] = _entry("5%", "5 % of maxmemory", "slow readers must not push out data")
    return out


def connection_budget(
    consumers: Mapping[str, int], max_connections: int, reserved: int = 3
) -> dict[str, Any]:
    """Whether every pool's connections fit: {wanted, usable, formula}; raises Refusal when they do not.

    `consumers` is {name: connections}; `reserved` superuser_reserved_connections and reserved_connections.
    """
    wanted, usable = sum(consumers.values()), max_connections - reserved
    parts = " + ".join(f"{name} {count}" for name, count in consumers.items())
    formula = f"{parts} = {wanted}, of {max_connections} - {reserved} reserved = {usable}"
    if wanted > usable:
        raise Refusal(
            formula,
            thing="too few connections",
            remedy=f"Raise max_connections to {wanted + reserved} or more, or make the pools smaller",
        )
    return {"wanted": wanted, "usable": usable, "formula": formula}
