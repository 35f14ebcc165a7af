"""The planner: what must hold of every plan, on random machines, on our own odd ones and on recorded ones."""

import json
import time
from pathlib import Path

import pytest
from hosttune import cpulist, cpuplan
from hosttune.model import Refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

REPO = Path(__file__).resolve().parents[2]
OWN = sorted((REPO / "tests/topologies").glob("*.json"))
#: Recorded machines whose licences keep them out of this repository; their tests run where they are.
RECORDED = sorted((REPO.parent / "shared/topologies/machines").glob("*.json"))
MACHINES = [pytest.param(path, id=path.stem) for path in [*OWN, *RECORDED]]

PARTS = ("housekeeping", "irq", "postgres", "redis", "orchestrator", "reserved")
SERVICES = ("irq", "postgres", "redis", "orchestrator")
REQUESTS = [
    {},
    {"policy": "latency"},
    {"policy": "latency", "smt": "share"},
    {"smt": "idle"},
    {"orchestrator": 1, "postgres": 1, "redis": 0, "irq": 0},
    {"policy": "latency", "orchestrator": "25%", "postgres": "20%", "housekeeping": "10%"},
    {"orchestrator": "50%", "irq": 1},
    {"postgres": 0, "redis": 0},
]


def load(name):
    return json.loads((REPO / "tests/topologies" / f"{name}.json").read_text())


def check(topology, plan):
    """Everything that always holds, worked out from the topology alone."""
    sets = {name: cpulist.parse(plan[name]["cpus"]) for name in (*PARTS, "isolated")}
    cpus = {cpu["id"]: cpu for cpu in topology["cpus"] if cpu["online"]}
    if topology.get("usable_cpus"):
        usable = cpulist.parse(topology["usable_cpus"])
        cpus = {cpu: entry for cpu, entry in cpus.items() if cpu in usable}
    online, memory = set(cpus), {node["id"]: node["mem_kib"] for node in topology["nodes"]}

    for name in (*PARTS, "isolated"):
        entry = plan[name]
        assert entry["reason"]
        assert cpulist.format(sets[name]) == entry["cpus"]
        assert cpulist.from_mask(entry["mask"]) == cpulist.parse(entry["runs_on"])
        assert entry["node"] is None or memory[entry["node"]] > 0, "memory bound to a node without memory"
    if not plan["partitioned"]:
        assert plan["policy"] == "balanced"
        assert not sets["isolated"] and not sets["reserved"]
        assert all(sets[name] == online for name in (*SERVICES, "housekeeping"))
        return

    assert len(online) > 4
    assert sum(len(sets[name]) for name in PARTS) == len(online), "the sets overlap or leave CPUs out"
    assert set().union(*(sets[name] for name in PARTS)) == online
    assert sets["isolated"] <= sets["orchestrator"] | sets["reserved"]
    assert bool(sets["isolated"]) == (plan["policy"] == "latency")
    for cpu, entry in cpus.items():
        core = cpulist.parse(entry["siblings"]) & online
        assert core <= sets["isolated"] or not core & sets["isolated"], f"core of CPU {cpu} is split"
        for name in ("housekeeping", "irq", "postgres", "redis"):
            assert core <= sets[name] or not core & sets[name]
    assert min(online) in sets["housekeeping"]
    nodes_with_cpus = {entry["node"] for entry in cpus.values()} & set(memory)
    for node in nodes_with_cpus:
        assert any(entry["node"] == node and cpu in sets["housekeeping"] for cpu, entry in cpus.items())
    if nodes_with_cpus:
        in_no_node = {cpu for cpu, entry in cpus.items() if entry["node"] not in memory}
        assert in_no_node <= sets["housekeeping"]
    for name in SERVICES:
        shares = plan[name]["shares"]
        assert bool(sets[name]) == (shares is None)
        runs_on = sets[name] if shares is None else sets[shares]
        assert runs_on and cpulist.parse(plan[name]["runs_on"]) == runs_on


def plan_or_refusal(topology, request):
    """A plan that holds what it must, or None where the planner refuses with a remedy."""
    try:
        plan = cpuplan.plan(topology, request)
    except Refusal as refusal:
        assert refusal.thing and refusal.message and refusal.remedy
        return None
    check(topology, plan)
    assert cpuplan.plan(topology, request) == plan
    drawn = cpuplan.picture(topology, plan)
    assert "?" not in drawn
    return plan


@st.composite
def topologies(draw):
    """Machines as firmware describes them: gaps, interleaving, offline CPUs, nodes without this or that."""
    node_count = draw(st.integers(1, 5))
    ids = sorted(draw(st.sets(st.integers(0, 12), min_size=node_count, max_size=node_count)))
    threads = draw(st.sampled_from([1, 1, 2, 2, 4]))
    cores = [draw(st.integers(0, 10)) for _ in ids]
    total = sum(cores) * threads
    if total == 0:
        cores[0], total = 1, threads
    gap = draw(st.sampled_from([0, 0, 3]))
    places = [(node, core) for node, count in zip(ids, cores) for core in range(count)]
    if draw(st.booleans()):  # CPU numbers go round the nodes
        places.sort(key=lambda place: (place[1], place[0]))
    adjacent = draw(st.booleans())
    numa = draw(st.integers(0, 9)) > 0
    offline_every = draw(st.sampled_from([0, 0, 0, 3, 7]))
    nodeless_from = draw(st.sampled_from([10_000, 10_000, total // 2, 0]))
    l3_size = draw(st.sampled_from([0, 2, 4, 100]))
    weak_from = draw(st.sampled_from([10_000, 10_000, len(places) // 2]))

    cpus, siblings_of = [], {}
    for index, (node, core) in enumerate(places):
        for thread in range(threads):
            number = index * threads + thread if adjacent else index + thread * len(places)
            number += gap * (number // 8)
            siblings_of.setdefault(index, set()).add(number)
            entry = {"id": number, "index": index, "node": node, "package": 0, "die": 0, "core": core}
            entry["capacity"] = 500 if index >= weak_from else 1024
            if not numa or number >= nodeless_from:
                entry["node"] = None
            cpus.append(entry)
    cpus.sort(key=lambda entry: entry["id"])
    for position, entry in enumerate(cpus):
        entry["online"] = not (offline_every and position % offline_every == offline_every - 1)
    online = {entry["id"] for entry in cpus if entry["online"]}
    for entry in cpus:
        index = entry.pop("index")
        entry["siblings"] = cpulist.format(siblings_of[index] & online) if entry["online"] else None
        entry["l3_group"] = None
        if l3_size:
            same = [one for one, place in enumerate(places) if place[0] == places[index][0]]
            group = same.index(index) // l3_size
            members = [one for one in same if same.index(one) // l3_size == group]
            entry["l3_group"] = min(min(siblings_of[one]) for one in members)
    nodes = []
    for row, node in enumerate(ids if numa else []):
        nodes.append(
            {
                "id": node,
                "cpus": cpulist.format(
                    entry["id"] for entry in cpus if entry["node"] == node and entry["online"]
                ),
                "mem_kib": draw(st.sampled_from([0, 4 << 20, 64 << 20, 64 << 20])),
                "distances": [
                    10 if row == column else 10 + 7 * abs(row - column) for column in range(len(ids))
                ],
            }
        )
    devices = draw(st.lists(st.sampled_from([-1, *ids]), max_size=3))
    return {
        "cpus": cpus,
        "nodes": nodes,
        "numa_known": numa,
        "mem_total_kib": 64 << 20,
        "l3": [],
        "pci": [],
        "net": [{"name": f"eth{index}", "numa_node": node} for index, node in enumerate(devices)],
        "block": [{"name": f"nvme{index}n1", "numa_node": node} for index, node in enumerate(devices)],
    }


sizes = st.one_of(
    st.none(), st.integers(0, 12), st.sampled_from(["10%", "25%", "50%", 0.2, "3"]), st.just(""), st.none()
)
requests = st.fixed_dictionaries(
    {},
    optional={
        "policy": st.sampled_from(["balanced", "latency"]),
        "smt": st.sampled_from(["share", "idle"]),
        "orchestrator": sizes,
        "postgres": sizes,
        "redis": sizes,
        "irq": sizes,
        "housekeeping": sizes,
        "nic": st.sampled_from(["", "eth0"]),
        "disk": st.sampled_from(["", "nvme0n1"]),
    },
)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(topologies(), requests)
def test_plans_of_random_machines_hold(topology, request_):
    plan_or_refusal(topology, request_)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(topologies())
def test_the_balanced_policy_alone_is_never_refused(topology):
    if any(cpu["online"] for cpu in topology["cpus"]):
        assert plan_or_refusal(topology, {}) is not None


@pytest.mark.parametrize("path", MACHINES)
def test_plans_of_machines_hold(path):
    topology = json.loads(path.read_text())
    plans = [plan_or_refusal(topology, request) for request in REQUESTS]
    assert plans[0] is not None


def test_machines_are_there(capsys):
    with capsys.disabled():
        print(f"\n  planned on {len(OWN)} synthetic and {len(RECORDED)} recorded machines")
    assert len(OWN) >= 12


@pytest.mark.parametrize("name", ["two-cpus", "four-cpus-smt", "container-of-a-server"])
def test_up_to_four_cpus_are_not_divided(name):
    plan = cpuplan.plan(load(name), {"orchestrator": 2})
    assert plan["partitioned"] is False
    assert plan["orchestrator"]["cpus"] == plan["housekeeping"]["cpus"] == plan["online"]
    with pytest.raises(Refusal, match="CPUs are too few"):
        cpuplan.plan(load(name), {"policy": "latency"})


def test_a_container_is_planned_within_its_cpuset():
    assert cpuplan.plan(load("container-of-a-server"))["online"] == "2-3,10-11"


def test_latency_isolates_whole_cores_and_leaves_siblings_idle():
    plan = cpuplan.plan(load("epyc-192-nps4"), {"policy": "latency", "orchestrator": 4, "nic": "ens1f0"})
    assert plan["orchestrator"]["cpus"] == "49-52"  # the L3 group housekeeping has broken already
    assert plan["reserved"]["cpus"] == "145-148"
    assert plan["isolated"]["cpus"] == "49-52,145-148"
    assert plan["isolated"]["mask"] == cpulist.to_hex_mask([*range(49, 53), *range(145, 149)])
    assert (plan["orchestrator"]["node"], plan["postgres"]["node"]) == (2, 1)


def test_sets_stay_within_one_l3_where_they_fit():
    topology = load("epyc-192-nps4")
    groups = {cpu["id"]: cpu["l3_group"] for cpu in topology["cpus"]}
    plan = cpuplan.plan(topology, {"orchestrator": 8, "postgres": 8, "nic": "ens1f0", "disk": "nvme2n1"})
    for name in ("orchestrator", "postgres"):
        assert len({groups[cpu] for cpu in cpulist.parse(plan[name]["cpus"])}) == 1
    assert plan["postgres"]["node"] == 3


def test_a_partition_stands_for_its_disk():
    assert cpuplan.plan(load("epyc-192-nps4"), {"disk": "/dev/nvme2n1p1"})["postgres"]["node"] == 3


def test_memory_comes_from_the_nearest_node_that_has_some():
    plan = cpuplan.plan(load("memoryless-node"), {"nic": "eth0"})
    assert set(plan["orchestrator"]["cpu_nodes"]) == {1}
    assert plan["orchestrator"]["node"] == 2


def test_a_nic_on_a_node_without_cpus_counts_for_the_nearest():
    plan = cpuplan.plan(load("cpuless-node"), {"nic": "cxl0"})
    assert plan["orchestrator"]["cpu_nodes"] == [4]
    assert "no CPUs" in plan["orchestrator"]["reason"]


@pytest.mark.parametrize(("name", "cpus"), [("hybrid", "2-7"), ("hybrid-arm", "6-7")])
def test_performance_cores_go_to_the_orchestrator(name, cpus):
    plan = cpuplan.plan(load(name))
    assert plan["orchestrator"]["cpus"] == cpus


def test_cpus_in_no_node_join_housekeeping_with_a_reason():
    plan = cpuplan.plan(load("cpus-in-no-node"))
    assert {6, 7} <= cpulist.parse(plan["housekeeping"]["cpus"])
    assert "in no node" in plan["housekeeping"]["reason"]


def test_a_machine_that_is_all_housekeeping():
    topology = load("node-of-one-core")
    assert cpuplan.plan(topology)["partitioned"] is False
    with pytest.raises(Refusal, match="all 4 cores are needed for housekeeping"):
        cpuplan.plan(topology, {"policy": "latency"})


def test_cores_nobody_asked_for_serve_housekeeping():
    plan = cpuplan.plan(load("smt4-power"), {"orchestrator": 1, "postgres": 1, "redis": 0, "irq": 0})
    assert len(cpulist.parse(plan["housekeeping"]["cpus"])) == 64 - 8
    assert any("nobody asked for" in note for note in plan["notes"])
    assert (plan["redis"]["shares"], plan["redis"]["runs_on"]) == ("postgres", plan["postgres"]["cpus"])
    assert plan["irq"]["shares"] == "housekeeping"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"orchestrator": 20, "postgres": 20}, "40 cores wanted (orchestrator 20, postgres 20), but only 15"),
        ({"policy": "fast"}, "Use one of balanced, latency"),
        ({"orchestratr": 1}, "did you mean orchestrator?"),
        ({"redis": True}, "True is no number of cores"),
        ({"redis": -1}, "-1 is no number of cores"),
        ({"redis": "150%"}, "no number of cores"),
        ({"housekeeping": 0}, "1 are the least"),
        ({"nic": "eth9"}, "there is no NIC eth9"),
        ({"disk": "sdz"}, "there is no disk sdz"),
        ({"policy": "latency", "orchestrator": 0}, "the latency policy isolates the orchestrator's cores"),
    ],
)
def test_refusals_say_what_is_short(request_, words):
    threads = [
        {"id": cpu, "online": True, "node": 0, "package": 0, "die": 0, "core": cpu, "siblings": str(cpu)}
        for cpu in range(17)
    ]
    nodes = [{"id": 0, "cpus": "0-16", "mem_kib": 1 << 20, "distances": [10]}]
    with pytest.raises(Refusal) as caught:
        cpuplan.plan({"cpus": threads, "nodes": nodes}, request_)
    assert words in str(caught.value)


def test_no_cpus_is_a_refusal():
    with pytest.raises(Refusal, match="no online CPUs"):
        cpuplan.plan({"cpus": [], "nodes": []})


def test_the_picture_names_every_set():
    topology = load("epyc-192-nps4")
    drawn = cpuplan.picture(topology, cpuplan.plan(topology, {"policy": "latency"}))
    assert "node 2: 96.0 GiB, NIC ens1f0" in drawn
    assert "[O-]" in drawn
    for name in (*PARTS, "isolated"):
        assert f" {name} " in drawn


def test_512_cpus_are_planned_within_a_second():
    cpus = [
        {
            "id": cpu,
            "online": True,
            "node": cpu % 256 // 32,
            "package": cpu % 256 // 128,
            "die": 0,
            "core": cpu % 256,
            "siblings": f"{cpu % 256},{cpu % 256 + 256}",
            "l3_group": cpu % 256 // 8 * 8,
        }
        for cpu in range(512)
    ]
    nodes = [
        {
            "id": node,
            "cpus": cpulist.format(cpu["id"] for cpu in cpus if cpu["node"] == node),
            "mem_kib": 96 << 20,
            "distances": [10 if node == other else 21 for other in range(8)],
        }
        for node in range(8)
    ]
    topology = {"cpus": cpus, "nodes": nodes}
    start = time.perf_counter()
    plan = cpuplan.plan(topology, {"policy": "latency"})
    assert time.perf_counter() - start < 1
    check(topology, plan)
