"""A CPU plan as text to look at: nodes, their L3 groups, each core with a letter per thread, who has what.

    node 1: 64.0 GiB, NIC ens1f0
      L3 8-12,24-28             HH  [O-] [O-]  RR   II

Each core is drawn by its threads: HH serves housekeeping, RR Redis. [OO] is an isolated core, O- one whose
second thread is left idle, * a CPU of a machine that is not divided. Where a group takes several rows, each
begins with its first CPU.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from . import cpulist
from .cpuplan import PARTS, Core, Machine, cpus_of

_LETTERS = {
    "housekeeping": "H",
    "irq": "I",
    "postgres": "P",
    "redis": "R",
    "orchestrator": "O",
    "reserved": "-",
}
_WIDTH = 110
#: Where the text of a set begins, below its CPUs.
_INDENT = " " * 16
#: The longest name of a group beside its row, and the longest list of CPUs above its rows (the sets below
#: the drawing have every CPU).
_BESIDE, _ABOVE = 20, 40


def picture(topology: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """The drawing of a plan that was made from this topology."""
    machine = Machine(topology)
    lines = [
        f"{topology.get('model') or 'unknown CPU'}: {len(machine.cores)} cores, {len(machine.online)} CPUs;"
        f" policy {made['policy']}" + ("" if made["partitioned"] else ", not partitioned")
    ]
    lines += _drawing(machine, made)
    offline = {cpu["id"] for cpu in topology.get("cpus", []) if not cpu.get("online", True)}
    if offline:
        lines.append(f"offline, not used: {cpulist.format(offline)}")
    unplaced = _devices(topology, None)
    if unplaced and len(machine.core_nodes) > 1:
        lines.append(f"do not say their node: {', '.join(unplaced)}")
    lines.append("")
    lines += _sets(made) if made["partitioned"] else _everywhere(made)
    for note in made.get("notes", []):
        lines += textwrap.wrap(f"note: {note}", _WIDTH, subsequent_indent="      ")
    return "\n".join(lines)


def _drawing(machine: Machine, made: Mapping[str, Any]) -> list[str]:
    letters = dict.fromkeys(machine.online, "*")
    if made["partitioned"]:
        for name in PARTS:
            letters.update(dict.fromkeys(cpulist.parse(made[name]["cpus"]), _LETTERS[name]))
    isolated = cpulist.parse(made["isolated"]["cpus"])

    def drawn(core: Core) -> str:
        inside = "".join(letters[cpu] for cpu in core.cpus)
        return f"[{inside}]" if isolated.issuperset(core.cpus) else f" {inside} "

    lines = []
    nodes: list[int | None] = [node["id"] for node in machine.nodes] if machine.numa else [None]
    if machine.numa and any(core.node is None for core in machine.cores):
        nodes.append(None)
    threads = max(len(core.cpus) for core in machine.cores)
    row_length = 16 if threads <= 2 else 8
    for node in nodes:
        cores = [core for core in machine.cores if core.node == node]
        lines.append(_node_line(machine, node, cores))
        for l3 in sorted({core.l3 for core in cores}, key=lambda group: -1 if group is None else group):
            group = [core for core in cores if core.l3 == l3]
            label = f"{'cores' if l3 is None else 'L3'} {_label(cpus_of(group))}"
            if len(group) <= row_length and len(label) <= _BESIDE:
                lines.append(f"  {label:<{_BESIDE}} {' '.join(map(drawn, group))}".rstrip())
                continue
            lines.append(f"  {label}")
            for start in range(0, len(group), row_length):
                row = group[start : start + row_length]
                lines.append(f"  {row[0].cpus[0]:>{_BESIDE - 1}}: {' '.join(map(drawn, row))}".rstrip())
    return lines


def _label(cpus: Iterable[int]) -> str:
    text = cpulist.format(cpus)
    if len(text) <= _ABOVE:
        return text
    return f"{text[: text.rindex(',', 0, _ABOVE)]},...,{text.rpartition(',')[2]}"


def _node_line(machine: Machine, node: int | None, cores: list[Core]) -> str:
    if node is None:
        return "in no node" if machine.numa else "one node (the machine says nothing of NUMA)"
    memory = machine.memory_kib(node)
    parts = [f"{memory / (1 << 20):.1f} GiB" if memory else "no memory"]
    if not cores:
        parts.append("no CPUs")
    return f"node {node}: {', '.join(parts + _devices(machine.topology, node))}"


def _devices(topology: Mapping[str, Any], node: int | None) -> list[str]:
    """ "NIC eth0 eth1" and "disk sda" of a node; None: those that do not say theirs."""
    parts = []
    for label, key in (("NIC", "net"), ("disk", "block")):
        names = []
        for one in topology.get(key, []):
            said = one.get("numa_node")
            known = None if said is None or said < 0 else said
            if known == node and not one.get("virtual"):
                names.append(str(one["name"]))
        if names:
            parts.append(f"{label} {' '.join(names)}")
    return parts


def _everywhere(made: Mapping[str, Any]) -> list[str]:
    return [f" * every service runs on {made['online']}", *_reason(made["orchestrator"]["reason"])]


def _sets(made: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in (*PARTS, "isolated"):
        entry, head = made[name], f"{_LETTERS.get(name, '[]'):>2} {name:<12} "
        if not entry["cpus"]:
            text = f"{'in ' + entry['shares'] if entry['shares'] else 'none'}: {entry['reason']}"
            lines += textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=_INDENT)
            continue
        cpus = _wrapped(entry["cpus"])
        if entry["node"] is not None and name not in ("reserved", "isolated"):
            cpus[-1] += f", memory of node {entry['node']}"
        lines += [head + cpus[0], *(_INDENT + line for line in cpus[1:]), *_reason(entry["reason"])]
    return lines


def _reason(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _wrapped(cpus: str) -> list[str]:
    """A CPU list in lines that each end at a comma."""
    lines = [""]
    for part in cpus.split(","):
        if len(lines[-1]) + len(part) > _WIDTH - len(_INDENT) - 4:
            lines.append("")
        lines[-1] += f"{part},"
    lines[-1] = lines[-1][:-1]
    return lines
