"""The engine's pure functions as filters, for what is decided on the controller."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible._internal._datatag._tags import Origin  # where a value was written: nothing public tells it
from ansible.errors import AnsibleFilterError
from ansible.parsing.vault import VaultedValue
from jinja2 import pass_context
from jinja2.runtime import Context

# The engine is a plain package: on hosts it arrives as ansible.module_utils.hosttune, here by path.
_PROJECT = str(Path(__file__).resolve().parents[2])
_MODULE_UTILS = f"{_PROJECT}/module_utils"
if _MODULE_UTILS not in sys.path:
    sys.path.insert(0, _MODULE_UTILS)

from hosttune import (  # noqa: E402 - after the path is set
    asking,
    cpulist,
    cpupicture,
    cpuplan,
    dangers,
    hardware,
    irqs,
    origin,
    sizing,
)
from hosttune.model import Refusal  # noqa: E402

DOCUMENTATION = r"""
name: hosttune
short_description: Plans and sizes, computed on the controller
description:
  - >-
    V(topology | cpu_plan(request)) plans a machine, V(topology | cpu_plan_picture(plan)) draws the plan;
    V(topology | interrupts_spread(plan, nics)) puts the queues of its NICs on the CPUs for interrupts;
    V(topology | numa_bind_refusals(plan, memory, services)) says whose memory does not fit its node.
  - >-
    V(topology | hardware_aspects) is what is compared of a host; V(hosts | unequal_hardware) says which hosts
    differ in what from those they shall be alike to, as refused and noted.
  - >-
    V(topology | memory_budget(...)) divides a host's memory; it takes the fact host_topology or a number of
    bytes, and the options host_memory_limit, system, orchestrator, redis and huge_pages_of_others.
  - >-
    V(owners | origins(notes, setting)) says from which line of the inventory or of a role's defaults the
    value of a setting comes, and resolves the variables that its note names;
    V(notes | with_origins(owners)) names the variable in the notes that name none;
    V(notes | with_acceptance(settings_risk_acceptance)) says in them who answers for a setting.
  - >-
    V(bytes | postgres_sizing(cpus=4, disk_class='nvme', connections=100, ...)) and
    V(bytes | redis_sizing(persistence='aof', ...)) give a value, formula and reason by name.
  - >-
    V(shared_buffers | postgres_huge_pages(max_connections, '2048kB')) counts huge pages and
    V(topology | huge_pages_by_node(pages, '2048kB', node)) places them; V('0-2' | cpu_numbers) is [0, 1, 2].
"""


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """A refusal, or an argument that does not fit, as the error Ansible shows, with the same words."""

    @functools.wraps(function)
    def wrapped(*args: object, **kwargs: object) -> object:
        try:
            return function(*args, **kwargs)
        except Refusal as refusal:
            raise AnsibleFilterError(str(refusal)) from refusal
        except (TypeError, ValueError) as error:
            raise AnsibleFilterError(f"{function.__name__}: {error}") from error

    return wrapped


@_told
def cpu_plan(topology: Mapping[str, Any], request: Mapping[str, Any] | None = None) -> cpuplan.Plan:
    """The plan of a machine: host_topology and a request to sets of CPUs, as module cpu_plan returns it."""
    return cpuplan.plan(topology, request)


@_told
def cpu_plan_picture(topology: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """A plan drawn as text, to print by lines."""
    return cpupicture.picture(topology, plan)


@_told
def hardware_aspects(topology: Mapping[str, Any]) -> dict[str, str]:
    """What of a host's hardware is compared with others', as texts by name."""
    return hardware.aspects(topology)


@_told
def unequal_hardware(hosts: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """{refused, noted} of {host: {alike, unequal, hardware}}: a sentence for each difference."""
    return hardware.compare(hosts)


@_told
def numa_bind_refusals(
    topology: Mapping[str, Any],
    plan: Mapping[str, Any],
    memory: Mapping[str, Mapping[str, Any]],
    services: list[str],
) -> list[str]:
    """Why services of a plan cannot be bound to their nodes, by what settings_memory gives them."""
    return sizing.numa_bind(topology, plan, {service: memory[service]["bytes"] for service in services})


@_told
def interrupts_spread(
    topology: Mapping[str, Any], plan: Mapping[str, Any], nics: list[str] | None = None
) -> dict[str, str]:
    """{DEVICE/QUEUE: CPU list} for the interrupts of a planned machine's NICs, of all where none is named."""
    return irqs.spread(topology, plan, nics or ())


@_told
def memory_budget(total: Mapping[str, Any] | int | str, **options: Any) -> dict[str, dict[str, Any]]:
    """{total, system, orchestrator, redis, postgres: {bytes, value, formula, reason}} of a host's memory."""
    return sizing.memory_budget(_memory(total), **options)


@_told
def postgres_sizing(total: Mapping[str, Any] | int | str, **options: Any) -> sizing.Sized:
    """{parameter: {value, formula, reason}} for PostgreSQL's memory.

    Of the fact host_topology it takes memory and CPUs; with `reserved_bytes` what others use is taken off.
    """
    if isinstance(total, Mapping):
        options.setdefault("cpus", len(cpulist.parse(str(total.get("usable_cpus") or ""))) or None)
    options.setdefault("cpus", None)
    return sizing.postgres(_memory(total), **options)


@_told
def postgres_huge_pages(shared_buffers: int | str, connections: int | str, page_size: int | str) -> int:
    """The huge pages that PostgreSQL's shared memory takes, never fewer than it counts itself."""
    return sizing.huge_pages(shared_buffers, int(connections), sizing.parse_size(page_size, "page size"))


@_told
def huge_pages_by_node(
    topology: Mapping[str, Any], pages: int | str, page_size: int | str, node: int | None = None
) -> dict[int, int]:
    """Pages by node: on `node` and what does not fit there on the nearest, or (None) on all alike."""
    page_bytes = sizing.parse_size(page_size, "page size")
    nodes = topology["nodes"] or [{"id": 0, "mem_kib": topology["mem_total_kib"], "distances": [10]}]
    return sizing.huge_pages_by_node(int(pages), page_bytes, nodes, node)


@_told
def cpu_numbers(cpus: str) -> list[int]:
    """The CPUs of a kernel list one by one."""
    return sorted(cpulist.parse(cpus))


@_told
def redis_sizing(share: int | str, **options: Any) -> sizing.Sized:
    """{directive: {value, formula, reason}} for Redis' share of memory."""
    return sizing.redis(share, **options)


def _memory(total: Mapping[str, Any] | int | str) -> int | str:
    if not isinstance(total, Mapping):
        return total
    limit = total.get("memory_limit_bytes") or (total.get("mem_total_kib") or 0) * 1024
    if not limit:
        raise Refusal(
            "does not say its memory", thing="host_topology", remedy="Give a number of bytes instead"
        )
    return int(limit)


def _place(value: Any) -> origin.Place:
    tag = Origin.get_tag(value)
    if tag is None:
        return origin.NOWHERE
    return origin.place(tag.path, tag.line_num, tag.description, _PROJECT)


@_told
def with_origins(
    notes: Mapping[str, Mapping[str, Any]], owners: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The notes, each with the variable its value was written in where it does not say so itself (`from`)."""
    found = {kind: dict(of_kind) for kind, of_kind in notes.items()}
    for by_kind in owners.values():
        for kind, names in by_kind.items():
            for name, value in names.items():
                note, place = found.setdefault(kind, {}).get(name, {}), _place(_text_of(value))
                said = origin.said(place)
                # What a role says of its own default is not so where the inventory decided.
                if said and (not note.get("from") or origin.outside_roles(place)):
                    found[kind][name] = {**note, "from": said}
    return found


@_told
def with_acceptance(
    notes: Mapping[str, Mapping[str, Any]], acceptance: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The notes, each with who answers for its setting (`accepted`); `acceptance` is by "KIND NAME"."""
    found = {kind: dict(of_kind) for kind, of_kind in notes.items()}
    for setting, who in acceptance.items():
        kind, _blank, name = setting.partition(" ")
        note = found.setdefault(kind, {}).get(name, {})
        found[kind][name] = {**note, "accepted": dangers.accepted(setting, who)}
    return found


@pass_context
@_told
def origins(
    context: Context,
    owners: Mapping[str, Mapping[str, Any]],
    notes: Mapping[str, Mapping[str, Any]],
    setting: str,
) -> dict[str, dict[str, Any]]:
    """kind -> name -> {variable, file, line, inputs: [{name, value, variable, file, line}]} of a setting.

    Inputs are the variables that the note's `from` names. Files have none, and nothing from a vault is told.
    """
    values = {
        (kind, name): value
        for by_kind in owners.values()
        for kind, names in by_kind.items()
        for name, value in names.items()
    }
    found: dict[str, dict[str, Any]] = {}
    try:
        meant = asking.find(values, setting, "", "")
    except Refusal:
        return {}  # the module says it, with the host's name
    for kind, name in meant:
        place = _place(_text_of(values[kind, name]))
        words = origin.words(notes.get(kind, {}).get(name, {}).get("from", "")) if kind != "file" else []
        inputs = [
            {"name": word, "value": _told_value(context[word]), **_place(context[word])}
            for word in words
            if word in context and word != place["variable"]
        ]
        found.setdefault(kind, {})[name] = {**place, "inputs": inputs}
    return found


def _told_value(value: Any) -> str:
    return "(from a vault)" if _is_vaulted(value) else origin.text(value)


def _is_vaulted(value: Any) -> bool:
    """Whether this, or anything in it, was decrypted by ansible-vault."""
    if isinstance(value, Mapping):
        return any(_is_vaulted(one) for one in value.values())
    if isinstance(value, (list, tuple)):
        return any(_is_vaulted(one) for one in value)
    return bool(VaultedValue.is_tagged_on(value))


def _text_of(value: Any) -> Any:
    """Of a file, what stands in it."""
    return value.get("content") if isinstance(value, Mapping) else value


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "cpu_numbers": cpu_numbers,
            "cpu_plan": cpu_plan,
            "cpu_plan_picture": cpu_plan_picture,
            "hardware_aspects": hardware_aspects,
            "interrupts_spread": interrupts_spread,
            "huge_pages_by_node": huge_pages_by_node,
            "memory_budget": memory_budget,
            "numa_bind_refusals": numa_bind_refusals,
            "origins": origins,
            "postgres_huge_pages": postgres_huge_pages,
            "postgres_sizing": postgres_sizing,
            "redis_sizing": redis_sizing,
            "unequal_hardware": unequal_hardware,
            "with_acceptance": with_acceptance,
            "with_origins": with_origins,
        }
