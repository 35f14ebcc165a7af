"""Who runs where: from a topology and a request to disjoint sets of CPUs with reasons.

    plan(topology, request) -> plan

A plan is a dict. For each of housekeeping, irq, postgres, redis, orchestrator, reserved and isolated it holds

    cpus       kernel list ("0-3,8"); "" where the set is empty
    node       the NUMA node its memory should come from: the node of its CPUs where that has memory, else the
               nearest that has; None where its CPUs span nodes or nothing is known of NUMA
    reason     one sentence
    shares     None, or for a service too small to stand alone the name of the set it lives in
    runs_on    the CPUs it runs on: its own, or those of the set it shares
    mask       `runs_on` as comma-grouped hex mask
    cpu_nodes  ids of the nodes `runs_on` lies in

and beside them `partitioned`, `policy`, `smt`, `online` (list), `boot_cpu`, `notes` (list of sentences) and
`fingerprint` (of the topology it was made from).

What always holds in a partitioned plan (the tests take these as their oracle):

- housekeeping, irq, postgres, redis, orchestrator and reserved are disjoint, and together exactly the CPUs
  that are online (in a container: that the container may use);
- isolated is within orchestrator and reserved, and never splits the threads of a core;
- housekeeping holds the boot CPU and a whole core on every node that has CPUs, and at least 2 CPUs where they
  can be had;
- the same input gives the same plan: nothing here depends on link states, order of dicts or time.

Where cores go: housekeeping first, for it is what cannot be done without. The orchestrator next to its NIC,
on performance cores and within one L3 where it fits (for latency it takes no more unasked); Redis beside it,
PostgreSQL on the node of its disk; IRQs on the NIC's node. Cores nobody asked for serve housekeeping:
isolating or hiding them would waste them.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import cpulist
from . import topology as topologies
from .model import Refusal

Plan = dict[str, Any]

POLICIES = ("balanced", "latency")
#: Sets that together are the online CPUs.
PARTS = ("housekeeping", "irq", "postgres", "redis", "orchestrator", "reserved")
#: Parts that run something, in the order in which they choose their cores.
SERVICES = ("orchestrator", "postgres", "redis", "irq")
#: Where a service lives that gets no cores of its own.
HOSTS = {
    "irq": "housekeeping",
    "redis": "postgres",
    "postgres": "housekeeping",
    "orchestrator": "housekeeping",
}

#: On so few CPUs every set would be one thread wide: splitting them costs more than it gives.
UNDIVIDED_CPUS = 4
#: Of so many cores one serves housekeeping, unless it is asked for elsewhere: kernel threads, exporters and
#: backups of a large machine are more than one core's work.
_CORES_A_HELPER = 16
#: Cores of a node that stay for orchestrator and PostgreSQL where others get any unasked.
_KEPT = 3
#: Caches of fewer cores bound nothing: virtual machines show an L3 for each CPU.
_WORTHY_L3 = 4
#: A core this much weaker than the strongest is an efficiency core (favoured cores differ by less).
_WEAK = 0.85


# --- the request ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What is asked for: counts of cores, or shares of all cores; None: let the planner choose."""

    policy: str = "balanced"
    smt: str = "share"
    nic: str = ""
    disk: str = ""
    sizes: Mapping[str, int | float | None] = field(default_factory=dict)

    @classmethod
    def parse(cls, asked: Mapping[str, Any] | None) -> Request:
        """Reads {policy, smt, nic, disk, and cores of orchestrator, postgres, redis, irq, housekeeping}.

        Cores are a whole number (4, "4") or a share ("25%", 0.25). 0 says: no cores of its own.
        """
        asked = dict(asked or {})
        sized = ("housekeeping", *SERVICES)
        known = ("policy", "smt", "nic", "disk", *sized)
        for name in asked:
            if name not in known:
                raise Refusal(
                    f"no such part of a request{_did_you_mean(str(name), known)}",
                    thing=f"cpu_plan {name}",
                    remedy=f"It takes {', '.join(known)}",
                )
        policy = _one_of("policy", asked.get("policy") or "balanced", POLICIES)
        smt = _one_of(
            "smt", asked.get("smt") or ("idle" if policy == "latency" else "share"), ("share", "idle")
        )
        return cls(
            policy=policy,
            smt=smt,
            nic=str(asked.get("nic") or ""),
            disk=str(asked.get("disk") or "").replace("/dev/", "", 1),
            sizes={name: _size(name, asked.get(name)) for name in sized},
        )

    def cores(self, name: str, total: int) -> int | None:
        """How many cores of `total` are asked for `name`; None: not said."""
        size = self.sizes.get(name)
        if isinstance(size, float):
            return max(1, math.floor(size * total))
        return size


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _one_of(name: str, value: object, choices: Sequence[str]) -> str:
    if value not in choices:
        raise Refusal(
            f"is {value!r}{_did_you_mean(str(value), choices)}",
            thing=f"cpu_plan {name}",
            remedy=f"Use one of {', '.join(choices)}",
        )
    return str(value)


def _size(name: str, value: object) -> int | float | None:
    if value is None or value == "":
        return None
    text = str(value).strip()
    if not isinstance(value, bool):
        if re.fullmatch(r"\d+", text):
            return int(text)
        share = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text)
        number = float(share.group(1)) / 100 if share else float(text) if _is_fraction(text) else 0.0
        if 0 < number < 1:
            return number
    raise Refusal(
        f"{value!r} is no number of cores",
        thing=f"cpu_plan {name}",
        remedy='Give whole cores (4), or a share of all cores between 0 and 100 % ("25%")',
    )


def _is_fraction(text: str) -> bool:
    return re.fullmatch(r"0?\.\d+", text) is not None


# --- the machine ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Core:
    """The online threads of one physical core. `node` is None where the kernel gives it none."""

    cpus: tuple[int, ...]
    node: int | None
    l3: int | None
    fast: bool


class Machine:
    """A topology seen as cores on nodes; whatever is inconsistent in it is settled here, once."""

    def __init__(self, topology: Mapping[str, Any]) -> None:
        self.topology = topology
        entries = {cpu["id"]: cpu for cpu in topology.get("cpus", []) if cpu.get("online", True)}
        if topology.get("usable_cpus"):
            usable = cpulist.parse(topology["usable_cpus"])
            entries = {cpu: entry for cpu, entry in entries.items() if cpu in usable} or entries
        if not entries:
            raise Refusal("has no online CPUs", thing="topology", remedy="Read it again with host_topology")
        self.pci = {device["address"]: device for device in topology.get("pci", [])}
        self.online = set(entries)
        self.boot_cpu = min(self.online)
        self.nodes = sorted(topology.get("nodes", []), key=lambda node: int(node["id"]))
        self._order = [node["id"] for node in topology.get("nodes", [])]
        self._distances = {node["id"]: node.get("distances") or [] for node in self.nodes}
        node_of = {cpu: node["id"] for node in self.nodes for cpu in cpulist.parse(node.get("cpus") or "")}

        for cpu, entry in entries.items():
            said = node_of.get(cpu) if entry.get("node") is None else entry["node"]
            if said in self._order:  # a CPU can outlive its node: that is offline then
                node_of[cpu] = said
            else:
                node_of.pop(cpu, None)

        def node_of_core(cpus: Iterable[int]) -> int | None:
            found = {node_of.get(cpu) for cpu in cpus}
            return found.pop() if len(found) == 1 else None  # half in a node, or in two, is in none

        self._node_of = node_of
        groups = _cores(entries)
        placed = [node_of_core(cpus) for cpus in groups]
        #: False where no core is in any node: all of them then count as one node, with id None
        self.numa = any(node is not None for node in placed)
        whole = len(entries) == len(topology.get("cpus", []))
        fast = _fast_cores(groups, entries, whole)
        self.hybrid = not all(fast)
        self.cores = [
            Core(cpus, node, entries[cpus[0]].get("l3_group"), is_fast)
            for cpus, node, is_fast in zip(groups, placed, fast)
        ]
        ids = {core.node for core in self.cores if core.node is not None}
        self.core_nodes: list[int | None] = [*sorted(ids)] if self.numa else [None]

    def memory_kib(self, node: int | None) -> int:
        return next((one.get("mem_kib") or 0 for one in self.nodes if one["id"] == node), 0)

    def distance(self, here: int | None, there: int | None) -> tuple[int, int]:
        """How far a node is, as sorting key; without a distance table the nearest number is the nearest."""
        if here is None or there is None:
            return (0, 0)
        table = self._distances.get(here, [])
        column = self._order.index(there) if there in self._order else len(table)
        return (table[column] if column < len(table) else 10 if here == there else 255, abs(here - there))

    def by_distance(self, here: int | None, nodes: Iterable[int | None]) -> list[int | None]:
        return sorted(nodes, key=lambda node: (*self.distance(here, node), -1 if node is None else node))

    def memory_node(self, node: int | None) -> int | None:
        """Where memory for CPUs of `node` should come from: never a node without memory."""
        with_memory: list[int | None] = [one["id"] for one in self.nodes if one.get("mem_kib")]
        if node is None or not with_memory:
            return None
        return node if node in with_memory else self.by_distance(node, with_memory)[0]

    def nodes_of(self, cpus: set[int]) -> list[int | None]:
        """The nodes of a set of CPUs, sorted; None stands for "in no node"."""
        found = {self._node_of.get(cpu) for cpu in cpus}
        return sorted(found, key=lambda node: -1 if node is None else node)


def _cores(entries: Mapping[int, Mapping[str, Any]]) -> list[tuple[int, ...]]:
    """Sibling sets, by lowest CPU. Sets that overlap are one: a core one of its threads denies is a core."""
    core_of: dict[int, set[int]] = {cpu: {cpu} for cpu in entries}
    for cpu, entry in entries.items():
        for sibling in cpulist.parse(entry.get("siblings") or ""):
            if sibling in core_of and core_of[sibling] is not core_of[cpu]:
                core_of[cpu] |= core_of[sibling]
                for member in core_of[cpu]:
                    core_of[member] = core_of[cpu]
    return sorted({tuple(sorted(core)) for core in core_of.values()})


def _fast_cores(
    cores: Sequence[tuple[int, ...]], entries: Mapping[int, Mapping[str, Any]], whole: bool
) -> list[bool]:
    """Which cores are performance cores; all of them unless the machine is a hybrid.

    By capacity, else by highest clock. Where a machine tells neither, one whose cores differ in threads is a
    hybrid too, if it is `whole`: offline CPUs and a container's cpuset cut cores as well.
    """
    for key in ("capacity", "max_khz"):
        strengths = [entries[core[0]].get(key) for core in cores]
        known = [strength for strength in strengths if strength]
        if len(known) == len(strengths) and min(known) < _WEAK * max(known):
            return [strength >= _WEAK * max(known) for strength in known]
    threads = [len(core) for core in cores]
    if not whole or min(threads) == max(threads):
        return [True] * len(cores)
    return [count == max(threads) for count in threads]


# --- devices to nodes ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """The node with CPUs nearest to a device (None: not known), why, and what an operator should know."""

    node: int | None
    why: str = ""
    note: str = ""


def _device_place(machine: Machine, kind: str, name: str) -> Place:
    """Where a device is. `kind` is nic or disk; a name that does not exist is refused.

    Without a name the node with most such devices counts, never link state or speed, which would move the
    plan when a cable is pulled.
    """
    label, devices, of_pci = _devices(machine.topology, kind)
    if name:
        found = _named(machine, kind, name)
        node = _node_of(machine, found)
        if len(machine.core_nodes) > 1 and node is None:
            return Place(None, f"{label} {name} does not say its node")
        return _nearest(machine, node, f"{label} {name} is on node {node}")
    nodes = [_node_of(machine, one) for one in devices]
    if of_pci and all(node is None for node in nodes):
        label = "PCI NIC" if kind == "nic" else "NVMe controller"
        nodes = [_node_of(machine, one) for one in of_pci]
    counts = Counter(node for node in nodes if node is not None)
    if not counts:
        return _nearest(machine, None, "")
    node = min(counts, key=lambda one: (-counts[one], one))
    if len(nodes) == 1:
        return _nearest(machine, node, f"the only {label} is on node {node}")
    if len(counts) == 1:
        which = f"all {label}s are" if counts[node] == len(nodes) else f"of the {label}s only those"
        rest = "" if counts[node] == len(nodes) else " say where they are"
        return _nearest(machine, node, f"{which} on node {node}{rest}")
    where = cpulist.format(counts)
    most = list(counts.values()).count(counts[node]) == 1
    why = f"most {label}s are on node {node}" if most else f"as many {label}s are on node {node} as on others"
    place = _nearest(machine, node, why)
    note = f"{label}s are on nodes {where} and none was named: say with `{kind}` which one matters"
    return Place(place.node, place.why, note if len(machine.core_nodes) > 1 else "")


def _devices(
    topology: Mapping[str, Any], kind: str
) -> tuple[str, list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """What to call such devices, the physical ones, and the PCI devices behind them."""
    label, key, pci_kind = ("NIC", "net", "nic") if kind == "nic" else ("disk", "block", "nvme")
    devices = [one for one in topology.get(key, []) if not (one.get("virtual") or one.get("removable"))]
    of_pci = [one for one in topology.get("pci", []) if one.get("kind") == pci_kind and not one.get("vf")]
    return label, devices or of_pci, of_pci


def _named(machine: Machine, kind: str, name: str) -> Mapping[str, Any]:
    """The device of this name or PCI address; a partition stands for its disk."""
    topology = machine.topology
    label, _, of_pci = _devices(topology, kind)
    devices = topology.get("net" if kind == "nic" else "block", [])
    found = next((one for one in devices if one.get("name") == name), None) or machine.pci.get(name)
    if found is None and kind == "disk":
        found = next((one for one in devices if re.fullmatch(re.escape(one["name"]) + r"p?\d+", name)), None)
    if found is None:
        known = [str(one["name"]) for one in devices] + [str(one["address"]) for one in of_pci]
        raise Refusal(
            f"there is no {label} {name}{_did_you_mean(name, known)}",
            thing=f"cpu_plan {kind}",
            remedy=f"It has {', '.join(known) or 'none'}; leave {kind} out to let the planner choose",
        )
    return dict(found)


def _node_of(machine: Machine, device: Mapping[str, Any]) -> int | None:
    for one in (device, machine.pci.get(device.get("pci") or "", {})):
        node = one.get("numa_node")
        if node is not None and node >= 0:
            return int(node)
        # old firmware says -1 for the node and still names the CPUs that are near
        near = machine.nodes_of(cpulist.parse(one.get("local_cpus") or "") & machine.online)
        if len(near) == 1 and near[0] is not None:
            return near[0]
    return None


def _nearest(machine: Machine, node: int | None, why: str) -> Place:
    """The nearest node with CPUs; on a machine with one such node there is nothing to say."""
    if len(machine.core_nodes) < 2:
        return Place(machine.core_nodes[0])
    if node is None or node in machine.core_nodes:
        return Place(node, why)
    nearest = machine.by_distance(node, machine.core_nodes)[0]
    return Place(nearest, f"{why}, which has no CPUs; node {nearest} is the nearest that has")


# --- the plan ------------------------------------------------------------------------------------------


def plan(topology: Mapping[str, Any], request: Mapping[str, Any] | None = None) -> Plan:
    """The plan for a topology (as topology.read gives it) and a request (see Request.parse).

    Raises Refusal where the request cannot be met, saying what is short.
    """
    asked = Request.parse(request)
    machine = Machine(topology)
    nic = _device_place(machine, "nic", asked.nic)
    disk = _device_place(machine, "disk", asked.disk)
    if len(machine.online) <= UNDIVIDED_CPUS:
        has, least = _count(len(machine.online), "CPU"), UNDIVIDED_CPUS + 1
        if asked.policy == "latency":
            raise Refusal(
                f"the machine has {has}, the latency policy needs {least} or more: isolating any of so few"
                " would leave too little for the rest",
                thing="cpu_plan policy latency",
                remedy="Use policy balanced, or a machine with more cores",
            )
        return _undivided(machine, asked, f"{has}, too few to divide ({least} is the least)")

    housekeeping, spare, why_housekeeping = _housekeeping(machine, asked)
    if not spare:
        has = _count(len(machine.cores), "core")
        why = f"{has}, all needed for housekeeping ({', '.join(why_housekeeping)})"
        if asked.policy == "latency" or any(asked.cores(name, 1) for name in SERVICES):
            raise Refusal(
                f"the machine has {why}; none is left to give",
                thing=f"cpu_plan policy {asked.policy}",
                remedy="Use policy balanced without sizes, or a machine with more cores on each node",
            )
        return _undivided(machine, asked, why)

    layout = _Layout(machine, asked, spare, nic, disk)
    layout.settle()
    chosen = layout.choose()
    more = chosen.pop("housekeeping")
    if more:
        why_housekeeping.append(f"{_count(len(more), 'core')} more, one of {_CORES_A_HELPER} in all")
        housekeeping += more
    left_over = layout.left_over()
    if left_over:
        why_housekeeping.append(f"{_count(len(left_over), 'core')} nobody asked for")
    layout.why["housekeeping"] = ", ".join(why_housekeeping)
    notes = [place.note for place in (nic, disk) if place.note]
    return _assemble(machine, asked, housekeeping, left_over, chosen, layout, notes)


def _housekeeping(machine: Machine, asked: Request) -> tuple[list[Core], list[Core], list[str]]:
    """The cores housekeeping must have or asked for, the rest, and why these."""
    boot = next(core for core in machine.cores if machine.boot_cpu in core.cpus)
    stray = [core for core in machine.cores if machine.numa and core.node is None]
    keep = [core for core in machine.cores if core is boot or core in stray]
    spare = [core for core in machine.cores if core not in keep]
    why = [f"the core of boot CPU {machine.boot_cpu}"]

    def take(candidates: list[Core]) -> None:
        # efficiency cores first: housekeeping is what they are good for
        core = min(candidates, key=lambda one: (one.fast, one.cpus))
        keep.append(core)
        spare.remove(core)

    for node in machine.core_nodes:
        if not any(core.node == node for core in keep):
            take([core for core in spare if core.node == node])
    if len(machine.core_nodes) > 1:
        why.append(f"a core on each of {len(machine.core_nodes)} nodes")
    if stray:
        why.append(f"CPUs {cpulist.format(cpus_of(stray))}, which are in no node")
    wanted = asked.cores("housekeeping", len(machine.cores))
    # one thread for all interrupts, kernel threads and shells would make each wait for the others
    if wanted is None and len(cpus_of(keep)) < 2 and len(spare) > 2:
        take([core for core in spare if core.node == keep[0].node] or spare)
        why.append("1 core beside it, for one thread would make all wait")
    if wanted is not None and wanted < len(keep):
        raise Refusal(
            f"{_count(wanted, 'core')} asked, but {len(keep)} are the least here: {', '.join(why)}",
            thing="cpu_plan housekeeping",
            remedy=f"Ask for {len(keep)} or more, or leave it out",
        )
    least = len(keep)
    while wanted is not None and len(keep) < wanted and spare:
        by_node = {node: [core for core in spare if core.node == node] for node in machine.core_nodes}
        take(max(by_node.values(), key=len))
    if len(keep) > least:
        why.append(f"{_count(len(keep) - least, 'core')} more asked for")
    return keep, spare, why


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


class _Layout:
    """How many cores of which node each service gets, and then which."""

    def __init__(
        self,
        machine: Machine,
        asked: Request,
        spare: list[Core],
        nic: Place,
        disk: Place,
    ) -> None:
        self.machine, self.asked = machine, asked
        self.spare = {node: [core for core in spare if core.node == node] for node in machine.core_nodes}
        self.left = {node: len(cores) for node, cores in self.spare.items()}
        self.takes: dict[str, dict[int | None, int]] = {name: {} for name in ("housekeeping", *SERVICES)}
        self.home: dict[str, int | None] = {}
        self.why: dict[str, str] = {}
        self._homes(nic, disk)

    def _homes(self, nic: Place, disk: Place) -> None:
        """The node each service should be on."""
        machine, several = self.machine, len(self.machine.core_nodes) > 1
        nic_node, nic_why = nic.node, nic.why
        disk_node, disk_why = disk.node, disk.why
        with_room = [node for node, count in self.left.items() if count]

        def richest(node: int | None) -> tuple[bool, int, int]:
            fast = sum(core.fast for core in self.spare[node])
            return (machine.memory_kib(node) > 0, fast, 0 if node is None else -node)

        def with_room_near(node: int | None) -> tuple[int | None, str]:
            if self.left.get(node):
                return node, ""
            near = machine.by_distance(node, with_room)[0]
            return near, f"; node {node} has no core beside housekeeping, node {near} is the nearest that has"

        known_nic = nic_node is not None or not several
        orchestrator, moved = with_room_near(nic_node) if known_nic else (max(with_room, key=richest), "")
        if several and not known_nic:
            moved = f"{nic_why + ', ' if nic_why else ''}node {orchestrator} has most to give"
        self.home["orchestrator"], self.why["orchestrator"] = (
            orchestrator,
            (nic_why if known_nic else "") + moved,
        )

        self.home["irq"] = nic_node if known_nic else orchestrator
        self.why["irq"] = nic_why
        self.home["redis"], self.why["redis"] = orchestrator, "beside the orchestrator" if several else ""

        # a guessed disk is no reason to crowd the orchestrator's node, a named one is
        known_disk = disk_node is not None and (bool(self.asked.disk) or disk_node != orchestrator)
        others: list[int | None] = [node for node in with_room if node != orchestrator]
        if known_disk or not several:
            postgres, moved = with_room_near(disk_node)
            self.why["postgres"] = disk_why + moved
        elif others:
            roomy = [node for node in others if machine.memory_kib(node)] or others
            postgres = machine.by_distance(orchestrator, roomy)[0]
            self.why["postgres"] = "away from the orchestrator's cores; no disk was named"
            if self.asked.disk:
                self.why["postgres"] = f"{disk_why}, away from the orchestrator's cores"
        else:
            postgres, self.why["postgres"] = orchestrator, "no other node has room"
        self.home["postgres"] = postgres

    def _take(self, name: str, count: int) -> None:
        """Counts cores to a service: of its own node first, then of the nearest."""
        for node in self.machine.by_distance(self.home[name], self.left):
            part = min(count, self.left[node])
            if part:
                self.left[node] -= part
                self.takes[name][node] = self.takes[name].get(node, 0) + part
                count -= part

    def settle(self) -> None:
        """Sizes every service: those asked for first, then what is usual out of what is left."""
        total = len(self.machine.cores)
        sizes = {name: self.asked.cores(name, total) for name in SERVICES}
        self._check(sizes, total)
        for name in SERVICES:
            self._take(name, sizes[name] or 0)
        chooses = sizes["orchestrator"] is None
        home = self.home["orchestrator"]
        if chooses and not self.left[home]:  # its node was given away: the nearest with a core left
            home = self.home["orchestrator"] = next(
                node for node in self.machine.by_distance(home, self.left) if self.left[node]
            )
            self.why["orchestrator"] += f"; the cores of its node were asked for by others, so node {home}"

        self._help_housekeeping()
        if sizes["irq"] is None:
            near = sum(core.node == self.home["irq"] for core in self.machine.cores)
            usual = min(2, math.ceil(near / 10)) if total >= 8 else 0
            if self.left.get(self.home["irq"], 0) >= usual + _KEPT:
                self._take("irq", usual)
        if sizes["redis"] is None:
            # 2 CPUs: the child that saves must not share the event loop's
            home = self.home["redis"]
            usual = math.ceil(2 / min((len(core.cpus) for core in self.spare[home]), default=1))
            beside = chooses and sizes["postgres"] is None and home == self.home["postgres"]
            # PostgreSQL, which then shares the node, is not to get less than the cache
            enough = not beside or self._postgres_beside(home, self.left[home] - usual) >= usual
            if self.left[home] >= usual + _KEPT and enough:
                self._take("redis", usual)
        if sizes["postgres"] is None:
            self._take("postgres", self._usual_postgres(chooses))
        if chooses:
            self._take("orchestrator", self._usual_orchestrator())

    def _help_housekeeping(self) -> None:
        """Its usual part of a large machine, of the fullest nodes, unless unwanted nodes give it anyway."""
        if self.asked.sizes.get("housekeeping") is not None:
            return
        total, spare = len(self.machine.cores), sum(map(len, self.spare.values()))
        missing = math.ceil(total / _CORES_A_HELPER) - (total - spare)
        homes = {self.home["orchestrator"], self.home["postgres"], self.home["redis"]}
        missing -= sum(room for node, room in self.left.items() if node not in homes)
        for _ in range(missing):
            node = max(self.left, key=lambda one: (self.left[one], one != self.home["orchestrator"]))
            if self.left[node] <= _KEPT:
                return
            self.left[node] -= 1
            self.takes["housekeeping"][node] = self.takes["housekeeping"].get(node, 0) + 1

    def _check(self, sizes: Mapping[str, int | None], total: int) -> None:
        room = sum(self.left.values())
        wanted = {name: size for name, size in sizes.items() if size}
        least = sum(wanted.values()) + (1 if sizes["orchestrator"] is None else 0)
        if least > room:
            parts = [f"{name} {size}" for name, size in wanted.items()]
            parts += ["orchestrator at least 1"] if sizes["orchestrator"] is None else []
            raise Refusal(
                f"{_count(least, 'core')} wanted ({', '.join(parts)}), but only {_count(room, 'core')} can be"
                f" given: {total} in all, {total - room} for housekeeping",
                thing="cpu_plan",
                remedy=f"Ask for {room} or fewer in all; 0 lets a service share",
            )
        if self.asked.policy == "latency" and sizes["orchestrator"] == 0:
            raise Refusal(
                "0 cores asked, but the latency policy isolates the orchestrator's cores",
                thing="cpu_plan orchestrator",
                remedy="Ask for 1 core or more, or use policy balanced",
            )

    def _usual_postgres(self, orchestrator_chooses: bool) -> int:
        """All that is left on its node; two fifths where the orchestrator takes from the same."""

        def room_on(node: int | None) -> int:
            held = 1 if orchestrator_chooses and node == self.home["orchestrator"] else 0
            return self.left[node] - held

        home = self.home["postgres"]
        if room_on(home) < 1:
            others = [node for node in self.machine.by_distance(home, self.left) if room_on(node) > 0]
            if not others:
                return 0
            home = self.home["postgres"] = others[0]
            self.why["postgres"] += f"; its node has no core left, node {home} is the nearest that has"
        room = self.left[home]
        if not orchestrator_chooses or home != self.home["orchestrator"]:
            return room
        return self._postgres_beside(home, room)

    def _postgres_beside(self, node: int | None, room: int) -> int:
        """PostgreSQL's part of `room` cores of a node where the orchestrator takes the rest."""
        if self.machine.hybrid:
            weak = room - sum(core.fast for core in self.spare[node])
            return min(max(weak, 1), room - 1)
        return max(room * 2 // 5, room - self._cache_bound(node), 1)

    def _cache_bound(self, node: int | None) -> int:
        """The most cores the orchestrator takes unasked: for latency, as many as share an L3 of some size."""
        sizes = Counter(core.l3 for core in self.spare[node] if core.l3 is not None)
        largest = max(sizes.values(), default=0)
        bound = self.asked.policy == "latency" and largest >= _WORTHY_L3
        return largest if bound else len(self.spare[node])

    def _usual_orchestrator(self) -> int:
        """All that is left on its node, within its bound; of a hybrid no more than the performance cores."""
        home = self.home["orchestrator"]
        fast = sum(core.fast for core in self.spare[home])
        room = min(self.left[home], fast) if self.machine.hybrid and fast else self.left[home]
        bound = self._cache_bound(home)
        if bound < room:
            self.why["orchestrator"] += "; as many as share a cache, a size gives it more"
        return min(room, bound)

    def choose(self) -> dict[str, list[Core]]:
        """The cores themselves: each in turn takes what suits it best on the nodes it was given."""
        chosen: dict[str, list[Core]] = {}
        for name, takes in self.takes.items():
            chosen[name] = []
            for node, count in takes.items():
                if name == "housekeeping":  # beside its other cores, which are the first
                    cores = sorted(self.spare[node], key=lambda core: (core.fast, core.cpus))[:count]
                else:
                    cores = _suited(self.spare[node], count, fast_first=name != "irq")
                self.spare[node] = [core for core in self.spare[node] if core not in cores]
                chosen[name] += cores
        return chosen

    def left_over(self) -> list[Core]:
        return [core for cores in self.spare.values() for core in cores]


def _suited(cores: Sequence[Core], count: int, fast_first: bool) -> list[Core]:
    """`count` of these cores: of one kind and within one L3 where that is possible.

    The smallest L3 group that is large enough, so that large ones stay whole; else the largest groups.
    """
    kind = [core for core in cores if core.fast is fast_first]
    if kind and len(kind) != len(cores):
        best = _suited(kind, min(count, len(kind)), fast_first)
        rest = [core for core in cores if core not in kind]
        return best + (_suited(rest, count - len(best), fast_first) if count > len(best) else [])
    groups: dict[int | None, list[Core]] = {}
    for core in sorted(cores, key=lambda one: one.cpus):
        groups.setdefault(core.l3, []).append(core)
    chosen: list[Core] = []
    while len(chosen) < count:
        missing = count - len(chosen)
        enough = [group for group in groups.values() if len(group) >= missing]
        if enough:
            best = min(enough, key=lambda group: (len(group), group[0].cpus))
        else:
            best = min(groups.values(), key=lambda group: (-len(group), group[0].cpus))
        chosen += best[:missing]
        groups = {l3: group for l3, group in groups.items() if group is not best}
    return chosen


# --- the plan as data ----------------------------------------------------------------------------------


def _entry(
    machine: Machine, own: set[int], reason: str, shares: str | None, runs_on: set[int]
) -> dict[str, Any]:
    nodes = machine.nodes_of(runs_on)
    return {
        "cpus": cpulist.format(own),
        "node": machine.memory_node(nodes[0]) if len(nodes) == 1 else None,
        "reason": reason,
        "shares": shares,
        "runs_on": cpulist.format(runs_on),
        "mask": cpulist.to_hex_mask(runs_on),
        "cpu_nodes": [node for node in nodes if node is not None],
    }


def _head(machine: Machine, asked: Request, partitioned: bool, notes: list[str]) -> Plan:
    return {
        "partitioned": partitioned,
        "policy": asked.policy,
        "smt": asked.smt,
        "online": cpulist.format(machine.online),
        "boot_cpu": machine.boot_cpu,
        "notes": notes,
        "fingerprint": topologies.fingerprint(dict(machine.topology)),
    }


def _undivided(machine: Machine, asked: Request, why: str) -> Plan:
    """Every service on every CPU."""
    notes = [f"{name}: the size asked for has no effect" for name, size in asked.sizes.items() if size]
    result = _head(machine, asked, False, notes)
    for name in PARTS:
        everywhere = set() if name == "reserved" else machine.online
        reason = "nothing is kept idle" if name == "reserved" else f"all CPUs: {why}"
        result[name] = _entry(machine, everywhere, reason, None, everywhere)
    result["isolated"] = _entry(machine, set(), f"nothing is isolated: {why}", None, set())
    return result


def cpus_of(cores: Iterable[Core]) -> set[int]:
    """The CPUs of some cores."""
    return {cpu for core in cores for cpu in core.cpus}


def _assemble(
    machine: Machine,
    asked: Request,
    housekeeping: list[Core],
    left_over: list[Core],
    chosen: Mapping[str, list[Core]],
    layout: _Layout,
    notes: list[str],
) -> Plan:
    own = {name: cpus_of(cores) for name, cores in chosen.items()}
    own["housekeeping"] = cpus_of(housekeeping) | cpus_of(left_over)
    own["reserved"] = set()
    if asked.smt == "idle":
        working = {core.cpus[0] for core in chosen["orchestrator"]}
        own["reserved"], own["orchestrator"] = own["orchestrator"] - working, working
    isolated = own["orchestrator"] | own["reserved"] if asked.policy == "latency" else set()

    reasons = {name: _why_here(machine, name, cores, layout) for name, cores in chosen.items() if cores}
    reasons["housekeeping"] = layout.why["housekeeping"]
    reasons["reserved"] = (
        "siblings of the orchestrator's threads, left idle so that each has its core for itself"
        if own["reserved"]
        else "nothing is kept idle"
    )
    if left_over:
        notes.append(
            f"{_count(len(left_over), 'core')}{_on_nodes(machine, left_over)} nobody asked for: housekeeping"
            " has them; a size for orchestrator, postgres or redis puts them to use"
        )
    if isolated and machine.topology.get("container"):
        notes.append("a container: its kernel is the machine's, where alone CPUs can be isolated")
    if machine.topology.get("usable_from", "online") != "online":
        notes.append(f"a container: planned within the CPUs it may use, {cpulist.format(machine.online)}")
    result = _head(machine, asked, True, notes)
    for name in PARTS:
        host = name
        while not own[host] and host in HOSTS:
            host = HOSTS[host]
        shares = host if host != name else None
        if shares:
            asked_none = asked.sizes.get(name) == 0
            why = "no cores asked for it" if asked_none else "too few cores for a set of its own"
            reasons[name] = f"{why}: it lives in {shares}"
        result[name] = _entry(machine, own[name], reasons[name], shares, own[host])
    result["isolated"] = _entry(
        machine,
        isolated,
        "the orchestrator's cores, whole: the scheduler moves nothing onto or off them, so pin its threads"
        if isolated
        else "the balanced policy isolates nothing",
        None,
        isolated,
    )
    return result


def _on_nodes(machine: Machine, cores: Iterable[Core]) -> str:
    """ " on node 2", " on nodes 0-1,3", or nothing where nothing is known of NUMA."""
    nodes = [node for node in machine.nodes_of(cpus_of(cores)) if node is not None]
    return f" on node{'' if len(nodes) == 1 else 's'} {cpulist.format(nodes)}" if nodes else ""


def _why_here(machine: Machine, name: str, cores: list[Core], layout: _Layout) -> str:
    nodes = machine.nodes_of(cpus_of(cores))
    text = _count(len(cores), "core")
    if machine.hybrid:
        fast = sum(core.fast for core in cores)
        text += f" ({fast} performance, {len(cores) - fast} efficiency)"
    text += _on_nodes(machine, cores)
    if layout.why[name]:
        text += f": {layout.why[name]}"
    if len(nodes) > 1:
        text += "; one node has too few, so the nearest give the rest"
    groups = {core.l3 for core in cores}
    if None not in groups:
        text += "; one L3" if len(groups) == 1 else f"; {len(groups)} L3 groups"
    if len(nodes) == 1 and nodes[0] is not None:
        memory = machine.memory_node(nodes[0])
        if memory is not None and memory != nodes[0]:
            text += f"; node {nodes[0]} has no memory, that of node {memory} is the nearest"
    return text
