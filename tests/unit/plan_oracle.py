"""What must hold of every CPU plan, worked out from topology and request alone.

Nothing of the planner is used here, not even its reading of CPU lists. `complaints` says what is wrong with a
plan; `must_refuse` whether a request can be met at all.
"""

from __future__ import annotations

import math
import re

PARTS = ("housekeeping", "irq", "postgres", "redis", "orchestrator", "reserved")
SERVICES = ("orchestrator", "postgres", "redis", "irq")


def members(text):
    """The CPUs of a kernel list."""
    found = set()
    for part in filter(None, (text or "").split(",")):
        low, _, high = part.partition("-")
        found |= set(range(int(low), int(high or low) + 1))
    return found


def of_mask(mask):
    """The CPUs of a comma-grouped mask; None where it is not grouped as the kernel groups."""
    if not re.fullmatch(r"[0-9a-f]{1,8}(,[0-9a-f]{8})*", mask):
        return None
    number = int(mask.replace(",", ""), 16)
    return {bit for bit in range(number.bit_length()) if number >> bit & 1}


class View:
    """A topology as the oracle sees it: usable CPUs, their cores and nodes."""

    def __init__(self, topology):
        cpus = {cpu["id"]: cpu for cpu in topology["cpus"] if cpu["online"]}
        allowed = members(topology.get("usable_cpus"))
        if allowed & set(cpus):
            cpus = {cpu: entry for cpu, entry in cpus.items() if cpu in allowed}
        self.cpus, self.online = cpus, set(cpus)
        self.nodes = {node["id"]: node for node in topology["nodes"]}
        self.order = [node["id"] for node in topology["nodes"]]
        by_list = {cpu: node["id"] for node in topology["nodes"] for cpu in members(node["cpus"])}
        self.node_of = {}
        for cpu, entry in cpus.items():
            node = by_list.get(cpu) if entry["node"] is None else entry["node"]
            self.node_of[cpu] = node if node in self.nodes else None
        groups = []
        for cpu, entry in cpus.items():  # sets that overlap are one core
            group = (members(entry["siblings"]) & self.online) | {cpu}
            touching = [other for other in groups if other & group]
            groups = [other for other in groups if not other & group] + [group.union(*touching)]
        self.cores = sorted(map(frozenset, groups), key=min)
        self.node_of_core = {}
        for core in self.cores:
            nodes = {self.node_of[cpu] for cpu in core}
            self.node_of_core[core] = nodes.pop() if len(nodes) == 1 else None
        self.with_cores = {node for node in self.node_of_core.values() if node is not None}
        self.numa = bool(self.with_cores)
        self.hybrid, self.fast = self._kinds(len(cpus) == len(topology["cpus"]))

    def _kinds(self, whole):
        for key in ("capacity", "max_khz"):
            strength = {core: self.cpus[min(core)].get(key) for core in self.cores}
            if all(strength.values()) and min(strength.values()) < 0.85 * max(strength.values()):
                best = max(strength.values())
                return True, {core for core in self.cores if strength[core] >= 0.85 * best}
        sizes = {len(core) for core in self.cores}
        if whole and len(sizes) > 1:
            return True, {core for core in self.cores if len(core) == max(sizes)}
        return False, set(self.cores)

    def least_housekeeping(self):
        """Cores that must serve housekeeping: the boot CPU's, those in no node, one on every node."""
        boot = next(core for core in self.cores if min(self.online) in core)
        strays = {core for core in self.cores if self.numa and self.node_of_core[core] is None}
        served = {self.node_of_core[core] for core in {boot, *strays}}
        return len({boot, *strays}) + len(self.with_cores - served)

    def nearest_memory(self, node):
        """Ids of the nodes with memory that are nearest to a node."""
        if self.nodes[node]["mem_kib"]:
            return {node}
        table = self.nodes[node].get("distances") or []
        far = {}
        for column, other in enumerate(self.order):
            if self.nodes[other]["mem_kib"]:
                far[other] = table[column] if column < len(table) else 255
        return {other for other in far if far[other] == min(far.values())}

    def cores_in(self, cpus):
        return {core for core in self.cores if core & cpus}


def asked_cores(request, name, view):
    """How many cores are asked for; None: not said."""
    size = request.get(name)
    if size in (None, ""):
        return None
    if isinstance(size, str) and size.endswith("%"):
        size = float(size[:-1]) / 100
    if isinstance(size, float):
        return max(1, math.floor(size * len(view.cores)))
    return int(size)


def must_refuse(topology, request):
    """A part of the text that refuses, "" where the request must be met, None where either is right."""
    view = View(topology)
    for kind, key in (("nic", "net"), ("disk", "block")):
        if request.get(kind) and request[kind] not in [one["name"] for one in topology[key]]:
            return f"no {'NIC' if kind == 'nic' else 'disk'} {request[kind]}"
    latency = request.get("policy") == "latency"
    if len(view.online) <= 4:
        return f"the machine has {len(view.online)} CPU" if latency else ""
    sizes = {name: asked_cores(request, name, view) for name in SERVICES}
    house, least, total = (
        asked_cores(request, "housekeeping", view),
        view.least_housekeeping(),
        len(view.cores),
    )
    if house is not None and house < least:
        return f"{house} core"
    none_left = "all needed for housekeeping"
    if total == least:
        return none_left if latency or any(sizes.values()) else ""
    kept = min(total, house or least)
    wanted = sum(size or 0 for size in sizes.values()) + (sizes["orchestrator"] is None)
    if kept == total:
        return none_left if latency or any(sizes.values()) else ""
    if wanted > total - kept:
        return f"{wanted} core"
    if house is None and wanted > total - kept - 1:
        return None  # the second core that makes two CPUs for housekeeping may be what is short
    if latency and sizes["orchestrator"] == 0:
        return "0 cores asked"
    return ""


def complaints(topology, request, plan):
    """What of a plan does not hold, in words."""
    return [text for text in _complaints(View(topology), topology, request, plan) if text]


def _complaints(view, topology, request, plan):
    sets = {name: members(plan[name]["cpus"]) for name in (*PARTS, "isolated")}
    latency = request.get("policy") == "latency"
    yield from _entries(view, sets, plan)
    if not plan["partitioned"]:
        yield latency and "the latency policy divides nothing"
        yield (sets["isolated"] or sets["reserved"]) and "something is isolated on an undivided machine"
        for name in (*SERVICES, "housekeeping"):
            yield sets[name] != view.online and f"{name} is not on all CPUs of an undivided machine"
        small = len(view.online) <= 4 or len(view.cores) <= max(
            view.least_housekeeping(), asked_cores(request, "housekeeping", view) or 0
        )
        yield not small and "a machine that could be divided is not"
        return
    yield len(view.online) <= 4 and "4 CPUs or fewer are divided"
    yield sum(len(sets[name]) for name in PARTS) != len(view.online) and "sets overlap or leave CPUs out"
    yield set().union(*(sets[name] for name in PARTS)) != view.online and "the sets are not the online CPUs"
    yield sets["isolated"] - sets["orchestrator"] - sets["reserved"] and "isolated beyond the orchestrator"
    yield bool(sets["isolated"]) != latency and "isolated does not go with the policy"
    idle = (request.get("smt") or ("idle" if latency else "share")) == "idle"
    pair = sets["orchestrator"] | sets["reserved"]
    for core in view.cores:
        for name, cpus in (("isolated", sets["isolated"]), ("orchestrator and reserved", pair)):
            yield 0 < len(core & cpus) < len(core) and f"core {sorted(core)} is split by {name}"
        for name in ("housekeeping", "irq", "postgres", "redis"):
            yield 0 < len(core & sets[name]) < len(core) and f"core {sorted(core)} is split by {name}"
        if core & pair:
            working = len(core & sets["orchestrator"])
            yield working != (1 if idle else len(core)) and f"core {sorted(core)}: {working} threads work"
    yield from _housekeeping(view, request, sets, plan)
    yield from _services(view, request, sets, plan)
    yield from _orchestrator_home(view, topology, request, sets)
    yield from _postgres_home(view, topology, request, sets)
    yield from _caches(view, sets)
    yield from _strong_cores(view, sets)


def _entries(view, sets, plan):
    for name in (*PARTS, "isolated"):
        entry = plan[name]
        yield not entry["reason"] and f"{name} has no reason"
        yield not sets[name] <= view.online and f"{name} uses CPUs that are not online"
        runs_on = members(entry["runs_on"])
        yield of_mask(entry["mask"]) != runs_on and f"the mask of {name} is not {entry['runs_on']}"
        nodes = {view.node_of[cpu] for cpu in runs_on & view.online}
        yield sorted(entry["cpu_nodes"]) != sorted(nodes - {None}) and f"cpu_nodes of {name} are wrong"
        with_memory = any(node["mem_kib"] for node in view.nodes.values())
        if len(nodes) == 1 and None not in nodes and with_memory:
            right = view.nearest_memory(next(iter(nodes)))
            yield entry["node"] not in right and f"memory of {name} from node {entry['node']}, not {right}"
        else:
            yield entry["node"] is not None and f"{name} spans nodes or knows none and has memory of one"


def _housekeeping(view, request, sets, plan):
    house = sets["housekeeping"]
    yield min(view.online) not in house and "the boot CPU does not serve housekeeping"
    for node in view.with_cores:
        own = [core for core in view.cores if view.node_of_core[core] == node]
        yield not any(core <= house for core in own) and f"node {node} has no core for housekeeping"
    if view.numa:
        stray = {cpu for cpu in view.online if view.node_of[cpu] is None}
        yield stray - house and "CPUs in no node are not housekeeping's"
        yield stray and "in no node" not in plan["housekeeping"]["reason"] and "strays without a reason"
    wanted = asked_cores(request, "housekeeping", view)
    if wanted is not None:
        yield len(view.cores_in(house)) < wanted and "housekeeping has less than it asked for"
    elif not any(asked_cores(request, name, view) for name in SERVICES):
        yield len(view.cores_in(house)) < len(view.cores) // 16 and "housekeeping has less than a core in 16"
    if wanted is None and len(house) < 2:  # one thread is enough only where a second would leave too little
        yield len(view.cores) > 4 and "housekeeping is one thread"


def _services(view, request, sets, plan):
    allowed = {"irq": {"housekeeping"}, "redis": {"postgres", "housekeeping"}}
    for name in SERVICES:
        entry = plan[name]
        yield bool(sets[name]) != (entry["shares"] is None) and f"{name}: own set and shares contradict"
        host = entry["shares"] or name
        yield not sets.get(host) and f"{name} runs nowhere"
        yield members(entry["runs_on"]) != sets.get(host) and f"{name} does not run where it says"
        if entry["shares"]:
            yield host not in allowed.get(name, {"housekeeping"}) and f"{name} shares {host}"
            yield host not in entry["reason"] and f"{name} does not say where it lives"
        wanted = asked_cores(request, name, view)
        own = sets[name] | (sets["reserved"] if name == "orchestrator" else set())
        if wanted is not None:
            yield len(view.cores_in(own)) != wanted and f"{name} asked for {wanted} cores"
    yield (asked_cores(request, "orchestrator", view) != 0 and not sets["orchestrator"] and "no orchestrator")


def _device_node(view, topology, kind, name):
    """The node with cores nearest to a named device; several where they are as near, none where not known."""
    device = next((one for one in topology[kind] if one["name"] == name), None)
    node = device and device.get("numa_node")
    if node is None or node < 0 or node not in view.nodes:
        return set()
    if node in view.with_cores:
        return {node}
    table = view.nodes[node].get("distances") or []
    far = {other: table[view.order.index(other)] if table else 255 for other in view.with_cores}
    return {other for other in far if far[other] == min(far.values())}


def _spilled(view, request, sets, name, home):
    """Whether a service left its node although cores stood there that nobody had asked for."""
    if not sets[name] or len(home) != 1 or {view.node_of[cpu] for cpu in sets[name]} == home:
        return False
    own = [core for core in view.cores if view.node_of_core[core] in home]
    unasked = [other for other in SERVICES if other != name and asked_cores(request, other, view) is None]
    if name == "postgres" and "orchestrator" in unasked:
        unasked.remove("orchestrator")  # it may hold its node
    taken = [core for core in own if any(core & sets[other] for other in unasked)]
    return bool(taken)


def _orchestrator_home(view, topology, request, sets):
    home = _device_node(view, topology, "net", request.get("nic"))
    yield _spilled(view, request, sets, "orchestrator", home) and "the orchestrator is off its NIC's node"


def _postgres_home(view, topology, request, sets):
    home = _device_node(view, topology, "block", request.get("disk"))
    yield _spilled(view, request, sets, "postgres", home) and "PostgreSQL is off its disk's node"


def _caches(view, sets):
    """Within a node a service spans L3 groups only if none had room for it when it chose."""
    if view.hybrid:
        return
    later = {"orchestrator": ("orchestrator", "reserved", "postgres", "redis", "irq")}
    later["postgres"] = later["orchestrator"][2:]
    for name, users in later.items():
        cores = view.cores_in(sets[name])
        nodes = {view.node_of_core[core] for core in cores}
        groups = {view.cpus[min(core)]["l3_group"] for core in cores}
        if len(nodes) != 1 or len(groups) < 2:
            continue
        open_to_it = view.cores_in(set().union(*(sets[user] for user in users)))
        room = {}
        for core in open_to_it:
            if view.node_of_core[core] in nodes:
                group = view.cpus[min(core)]["l3_group"]
                room[group] = room.get(group, 0) + 1
        yield max(room.values()) >= len(cores) and f"{name} spans L3 groups and one had room"


def _strong_cores(view, sets):
    """On a hybrid no other service has a performance core on a node where the orchestrator has a weak one."""
    if not view.hybrid:
        return
    weak = {core for core in view.cores_in(sets["orchestrator"]) if core not in view.fast}
    nodes = {view.node_of_core[core] for core in weak}
    for name in ("postgres", "redis", "irq"):
        strong = view.cores_in(sets[name]) & view.fast
        wrong = any(view.node_of_core[core] in nodes for core in strong)
        yield wrong and f"{name} has a performance core and the orchestrator an efficiency core"
