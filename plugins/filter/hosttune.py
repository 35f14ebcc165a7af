"""The engine's pure functions as filters, for what is decided on the controller."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# The engine is a plain package: on hosts it arrives as ansible.module_utils.hosttune, here by path.
_MODULE_UTILS = str(Path(__file__).resolve().parents[2] / "module_utils")
if _MODULE_UTILS not in sys.path:
    sys.path.insert(0, _MODULE_UTILS)

from hosttune import cpulist, cpuplan, sizing  # noqa: E402 - after the path is set
from hosttune.model import Refusal  # noqa: E402

DOCUMENTATION = r"""
name: hosttune
short_description: Plans and sizes, computed on the controller
description:
  - >-
    V(topology | cpu_plan(request)) plans a machine, V(topology | cpu_plan_picture(plan)) draws the plan.
  - >-
    V(topology | memory_budget(...)) divides a host's memory; it takes the fact host_topology or a number of
    bytes, and the options host_memory_limit, system, orchestrator, redis and huge_pages_of_others.
  - >-
    V(bytes | postgres_sizing(cpus=4, disk_class='nvme', connections=100, ...)) and
    V(bytes | redis_sizing(persistence='aof', ...)) give a value, formula and reason by name.
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
    return cpuplan.picture(topology, plan)


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


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "cpu_plan": cpu_plan,
            "cpu_plan_picture": cpu_plan_picture,
            "memory_budget": memory_budget,
            "postgres_sizing": postgres_sizing,
            "redis_sizing": redis_sizing,
        }
