"""Whether hosts that shall be alike are: what of their hardware is compared, and who differs in what.

    aspects(topology) -> {"BIOS": "2.5.4 of 01/13/2023", "kernel": "6.1.0-37-amd64", "NIC ens1f0": ..., ...}

is a host's hardware fingerprint, in words, so that a difference can be told. It is about machines beside each
other, with firmware and kernel; that one machine changed since it was planned, `topology.fingerprint` tells,
which leaves both out.

    compare(hosts) -> {"refused": [text], "noted": [text]}

names in each set of hosts the outliers with what differs: "tr-07: BIOS 2.3 where the other 11 have 2.5".
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from . import cpulist
from .model import Refusal

CHOICES = ("refuse", "per_host")
_ABSENT = "absent"
_LAYOUT = "CPU layout"
#: Aspects that say in words what the digest of the layout says too.
_TOLD = ("CPUs", "NUMA nodes", "L3 caches")


# --- one host ------------------------------------------------------------------------------------------


def aspects(topology: Mapping[str, Any]) -> dict[str, str]:
    """What is compared of a host, each as a text; what a host does not say is "unknown"."""
    firmware = topology.get("firmware") or {}
    found = {
        "machine": firmware.get("machine"),
        "virtualization": topology.get("virtualization") or "none",
        "CPU": topology.get("model"),
        "microcode": topology.get("microcode"),
        "CPUs": _cpus(topology),
        "memory": _gib(topology.get("mem_total_kib")),
        "NUMA nodes": _nodes(topology),
        "L3 caches": _caches(topology),
        _LAYOUT: _layout(topology),
        "disks": _disks(topology),
        "BIOS vendor": firmware.get("vendor"),
        "BIOS": _of(firmware.get("version"), firmware.get("date")),
        "kernel": topology.get("kernel"),
    }
    pci = {device["address"]: device for device in topology.get("pci", [])}
    for nic in topology.get("net", []):
        if not nic.get("virtual"):
            device = pci.get(nic.get("pci"), {})
            words = (nic.get("driver"), device.get("id"), f"on {_node(nic.get('numa_node'))}")
            found[f"NIC {nic['name']}"] = " ".join(word for word in words if word)
    return {name: str(value or "unknown") for name, value in found.items()}


def _of(version: str | None, date: str | None) -> str | None:
    return f"{version} of {date}" if version and date else version


def _node(node: int | None) -> str:
    return "no known node" if node is None or node < 0 else f"node {node}"


def _gib(kib: int | None) -> str | None:
    """Memory as it was built in: what firmware and kernel keep for themselves differs from boot to boot.

    Rounded up to the eighth of a power of two, since they keep far less than an eighth.
    """
    if not kib:
        return None
    step = 1 << max((kib - 1).bit_length() - 4, 0)
    return f"{-(-kib // step) * step / (1 << 20):g} GiB"


def _cpus(topology: Mapping[str, Any]) -> str:
    online = [cpu for cpu in topology.get("cpus", []) if cpu.get("online", True)]
    packages, cores = {cpu.get("package") for cpu in online}, {cpu.get("siblings") for cpu in online}
    text = f"{cpulist.format(cpu['id'] for cpu in online)} of {len(cores)} cores, packages {len(packages)}"
    offline = {cpu["id"] for cpu in topology.get("cpus", []) if not cpu.get("online", True)}
    if offline:
        text += f", offline {cpulist.format(offline)}"
    if topology.get("usable_from", "online") != "online":
        text += f", {topology.get('usable_cpus')} for this host"
    return text


def _nodes(topology: Mapping[str, Any]) -> str:
    parts = [
        f"{node['id']} ({_gib(node.get('mem_kib')) or 'no memory'})" for node in topology.get("nodes", [])
    ]
    return ", ".join(parts) or "none"


def _caches(topology: Mapping[str, Any]) -> str:
    sizes = Counter(group.get("size_kib") or 0 for group in topology.get("l3", []))
    return ", ".join(f"{count} of {size} KiB" for size, count in sorted(sizes.items())) or "none"


def _layout(topology: Mapping[str, Any]) -> str:
    """A digest of which number stands where: two machines with as many of everything may number otherwise.

    Without the highest clocks: which cores reach them is each chip's own.
    """
    keys = ("id", "online", "node", "package", "die", "core", "siblings", "l3_group", "capacity")
    facts = [[cpu.get(key) for key in keys] for cpu in topology.get("cpus", [])]
    facts += [[node["id"], node.get("cpus"), node.get("distances")] for node in topology.get("nodes", [])]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]


def _disks(topology: Mapping[str, Any]) -> str:
    fixed = [disk for disk in topology.get("block", []) if not disk.get("removable")]
    counts = Counter(f"{disk.get('class')} on {_node(disk.get('numa_node'))}" for disk in fixed)
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "none"


# --- hosts beside each other ---------------------------------------------------------------------------


def compare(hosts: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """What differs within each set of hosts that shall be alike, to be refused or only noted.

    `hosts` is name -> {alike: the set's name, unequal: refuse or per_host, hardware: see `aspects`}. One host
    of a set that says refuse refuses for all.
    """
    sets: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, host in hosts.items():
        if host["unequal"] not in CHOICES:
            raise Refusal(
                f"is {host['unequal']!r}",
                thing=f"numa_unequal_hosts of {name}",
                remedy=f"Use one of {', '.join(CHOICES)}",
            )
        sets.setdefault(str(host["alike"]), {})[name] = host
    found: dict[str, list[str]] = {"refused": [], "noted": []}
    for alike, members in sorted(sets.items()):
        texts = differences({name: host["hardware"] for name, host in members.items()})
        refuses = any(host["unequal"] == "refuse" for host in members.values())
        found["refused" if refuses else "noted"] += [f"{alike}: {text}" for text in texts]
    return found


def differences(hosts: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Who differs in what from most of these hosts, a sentence each; empty where all are alike."""
    found = {}
    for aspect in dict.fromkeys(aspect for host in hosts.values() for aspect in host):
        values: dict[str, list[str]] = {}
        for name, host in hosts.items():
            values.setdefault(host.get(aspect, _ABSENT), []).append(name)
        if len(values) > 1:
            found[aspect] = _sentences(aspect, values)
    if any(aspect in found for aspect in _TOLD):
        found.pop(_LAYOUT, None)
    return [sentence for sentences in found.values() for sentence in sentences]


def _sentences(aspect: str, values: Mapping[str, list[str]]) -> list[str]:
    ranked = sorted(values.items(), key=lambda one: (-len(one[1]), min(one[1])))
    (usual, its), *others = ranked
    if len(others[0][1]) == len(its):  # nobody is the outlier
        return [f"{aspect}: " + "; ".join(f"{_listed(names)} with {value}" for value, names in ranked)]
    total = sum(len(names) for names in values.values())
    sentences = []
    for value, names in others:
        rest = total - len(names)
        most = f"the other {rest} have" if len(its) == rest else f"{len(its)} of {total} have"
        if len(its) == rest == 1:
            most = "the other one has"
        sentences.append(f"{_listed(names)}: {aspect} {value} where {most} {usual}")
    return sentences


def _listed(names: Iterable[str], shown: int = 8) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return ", ".join(ordered[:shown]) + more
