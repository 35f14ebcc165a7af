"""Machines as firmware and kernels describe them, drawn at random: oddities of real ones in all combinations.

A seed gives a machine and a request, always the same. Nothing here is the planner's.
"""

from __future__ import annotations

import random

from plan_oracle import members

#: Sizes in CPUs: mostly small, where odd cases are dense, and now and then beyond 64 and 1,024.
SIZES = (*[2, 3, 4, 5, 6, 8, 9, 12, 16, 24, 32, 48] * 20, *[64, 96, 128, 200] * 6, 256, 512, 1100, 1400)


def listed(cpus):
    """A kernel list, not in its shortest form: readers must take any."""
    return ",".join(map(str, sorted(cpus)))


def machine(seed):
    """A topology in the form of topology.read."""
    draw = random.Random(seed)  # noqa: S311 - machines, not secrets
    often = draw.choice((0.0, 0.15, 0.5))

    def odd(share=1.0):
        return draw.random() < often * share

    threads = draw.choice((1, 1, 2, 2, 2, 4))
    count = max(1, draw.choice(SIZES) // threads)
    packages = draw.choice((1, 1, 2, 2, 4))
    dies = draw.choice((1, 1, 2))
    node_count = min(draw.choice((1, 1, 2, 2, 3, 4, 8)), max(1, count))
    ids = sorted(draw.sample(range(node_count + (7 if odd() else 0)), node_count))
    adjacent, interleaved, gap = draw.random() < 0.4, draw.random() < 0.3, 7 if odd(0.6) else 0
    l3_size = draw.choice((0, 1, 2, 3, 4, 8, 16, 1000))
    weak_from = draw.randrange(count + 1) if odd(0.7) else count
    by_clock, weak_threads = draw.random() < 0.5, draw.random() < 0.5

    # cores with their place; a node may span packages, a package nodes
    cores = []
    for index in range(count):
        node = ids[index % node_count if interleaved else index * node_count // count]
        own = 1 if weak_threads and index >= weak_from else threads
        cores.append({"index": index, "node": node, "threads": own, "strong": index < weak_from})
    number, numbers = 0, {}
    rounds = range(threads)
    order = (
        [(core, turn) for core in cores for turn in rounds]
        if adjacent
        else [(core, turn) for turn in rounds for core in cores]
    )
    for core, turn in order:
        if turn < core["threads"]:
            numbers.setdefault(core["index"], []).append(number)
            number += 1 if not gap or draw.random() > 0.2 else gap
    offline = {cpu for own in numbers.values() for cpu in own if odd(0.25)}
    if draw.random() < 0.1:
        offline.add(0)
    everything = {cpu for own in numbers.values() for cpu in own}
    if offline >= everything:
        offline = set()

    numa = draw.random() > 0.1
    gone = {node for node in ids if odd(0.15)} if len(ids) > 1 else set()  # nodes that are offline
    if gone == set(ids):
        gone = set()
    cpus, place = [], {}
    for core in cores:
        index, own = core["index"], numbers[core["index"]]
        online = sorted(set(own) - offline)
        package = core["node"] % packages if draw.random() < 0.9 else index % packages
        for cpu in own:
            said = core["node"] if numa and not odd(0.06) else None
            entry = {
                "id": cpu,
                "online": cpu not in offline,
                "node": said,
                "package": -1 if odd(0.2) else package,
                "die": draw.choice((-1, None, 0)) if odd(0.3) else index % dies,
                "core": index * draw.choice((1, 1, 4)) if not odd(0.1) else -1,
                # now and then a thread that denies its core
                "siblings": listed([cpu] if odd(0.05) else online) if cpu in online else None,
                "l3_group": None,
            }
            if weak_from < count:
                strength = 1.0 if core["strong"] else 0.5
                entry["max_khz" if by_clock else "capacity"] = int(
                    strength * (4_000_000 if by_clock else 1024)
                )
            place[cpu] = said
            cpus.append(entry)
    _caches(cpus, cores, numbers, offline, l3_size)
    cpus.sort(key=lambda entry: entry["id"])

    nodes = []
    for node in [*ids, *(range(20, 22) if odd(0.5) else ())] if numa else ():
        if node in gone:
            continue
        own = {entry["id"] for entry in cpus if place[entry["id"]] == node and entry["online"]}
        memory = draw.choice((0, 4 << 20, 64 << 20, 64 << 20)) if odd() else 64 << 20
        nodes.append({"id": node, "cpus": listed(own), "mem_kib": memory})
    there = [node["id"] for node in nodes]
    for row, node in enumerate(nodes):
        node["distances"] = [
            10 if row == column else 11 + (abs(row - column) * 7 + (row ^ column)) % 40
            for column in range(len(there))
        ]
    if odd(0.2):
        for node in nodes:
            node["distances"] = []
    found = {
        "arch": "x86_64", "model": f"random {seed}", "numa_known": numa, "mem_total_kib": 64 << 20,
        "cpus": cpus, "nodes": nodes, "l3": [], **_devices(draw, there, cpus),
    }  # fmt: skip
    if draw.random() < 0.12:  # a container with a cpuset, which cuts cores and nodes
        usable = {cpu for cpu in everything - offline if draw.random() < 0.6}
        found.update(container=True, usable_from="cpuset", usable_cpus=listed(usable))
    return found


def _caches(cpus, cores, numbers, offline, size):
    if not size:
        return
    groups = {}
    for core in cores:
        groups.setdefault((core["node"], core["index"] // size), []).extend(numbers[core["index"]])
    lowest = {}
    for own in groups.values():
        online = [cpu for cpu in own if cpu not in offline]
        lowest.update({cpu: min(online) for cpu in online})
    for entry in cpus:
        entry["l3_group"] = lowest.get(entry["id"])


def _devices(draw, nodes, cpus):
    """NICs and disks: on nodes, unknown (-1), known by their CPUs only, virtual, pulled in and out."""
    kinds = {"net": ("eth{}", "nic"), "block": ("nvme{}n1", "nvme")}
    found = {"net": [], "block": [], "pci": []}
    online = [entry["id"] for entry in cpus if entry["online"]]
    for key, (name, kind) in kinds.items():
        for number in range(draw.choice((0, 1, 1, 2, 5))):
            node = draw.choice((-1, *nodes)) if nodes else -1
            address = f"0000:{draw.randrange(16, 256):02x}:00.{number}"
            pci = {"address": address, "kind": kind, "numa_node": node, "local_cpus": None}
            if draw.random() < 0.2:
                pci["local_cpus"] = listed(draw.sample(online, draw.randint(1, len(online))))
            found["pci"].append(pci)
            entry = {"name": name.format(number), "pci": draw.choice((None, address)), "numa_node": node}
            if draw.random() < 0.1:
                entry["virtual" if key == "net" else "removable"] = True
            found[key].append(entry)
    return found


def request(seed, topology):
    """What is asked of such a machine: mostly possible, often not."""
    draw = random.Random(-1 - seed)  # noqa: S311
    cores = max(1, len({cpu["siblings"] for cpu in topology["cpus"] if cpu["siblings"]}))

    def size():
        return draw.choice(
            (
                0,
                1,
                1,
                2,
                3,
                draw.randint(0, cores + 2),
                str(draw.randint(0, 6)),
                "10%",
                "30%",
                "50%",
                0.25,
                "",
            )
        )

    asked = {}
    if draw.random() < 0.5:
        asked["policy"] = draw.choice(("latency", "latency", "balanced"))
    if draw.random() < 0.3:
        asked["smt"] = draw.choice(("share", "idle"))
    for name in ("orchestrator", "postgres", "redis", "irq", "housekeeping"):
        if draw.random() < 0.25:
            asked[name] = size()
    for kind, key in (("nic", "net"), ("disk", "block")):
        names = [one["name"] for one in topology[key]]
        if draw.random() < 0.5 and names:
            asked[kind] = draw.choice(names)
        elif draw.random() < 0.03:
            asked[kind] = "eth99"
    return asked


def usable(topology):
    """How many CPUs a machine has to give."""
    online = {cpu["id"] for cpu in topology["cpus"] if cpu["online"]}
    return len(members(topology.get("usable_cpus")) & online or online)
