#!/usr/bin/python
"""Plans which service runs on which CPUs; all logic is in module_utils/hosttune/cpuplan.py."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: cpu_plan
short_description: Divide a machine's CPUs among housekeeping, IRQs, PostgreSQL, Redis and the orchestrator
description:
  - Computes a plan from a topology and a request. Applies nothing and changes nothing.
  - >-
    In a partitioned plan the sets housekeeping, irq, postgres, redis, orchestrator and reserved are disjoint
    and together are exactly the online CPUs; isolated lies within orchestrator and reserved. The threads of a
    core are never split between isolated and not isolated, and housekeeping has the boot CPU and a core on
    every node.
  - On 4 CPUs or fewer the balanced policy divides nothing and the latency policy refuses.
  - The same input always gives the same plan; link states and the order of devices play no part.
options:
  topology:
    description: The fact C(host_topology) as M(host_topology) returns it.
    type: dict
  topology_file:
    description: A topology in the same form as a JSON file, on the host this module runs on.
    type: path
  request:
    description: What is wanted; all parts may be left out.
    type: dict
    default: {}
    suboptions:
      policy:
        description:
          - V(balanced) gives each service its own CPUs and isolates nothing.
          - V(latency) isolates the orchestrator's cores from the scheduler as well.
        type: str
        choices: [balanced, latency]
        default: balanced
      smt:
        description:
          - >-
            Whether the orchestrator uses all threads of its cores (V(share)) or one, the others left idle and
            listed as reserved (V(idle)). Left out, V(idle) for the latency policy, else V(share).
        type: str
        choices: [share, idle]
      orchestrator:
        description:
          - Cores for the trading orchestrator, a number or a share of all cores such as V(25%); V(0) for none
            of its own. Left out, what its node has left, for the latency policy no more than share an L3 of
            4 cores or more. The same form holds for the other services.
        type: raw
      postgres:
        description:
          - Cores for PostgreSQL. Left out, what its node has left, two fifths of it beside the orchestrator.
        type: raw
      redis:
        description:
          - >-
            Cores for Redis. Left out, enough for 2 CPUs where PostgreSQL beside it has as many, else it lives
            with postgres.
        type: raw
      irq:
        description: Cores for interrupts, on the NIC's node. Left out, 1 or 2 where there is room.
        type: raw
      housekeeping:
        description: >-
          Cores for all else. Never less than a core on every node and the boot CPU's. Left out, one core in
          16 on large machines, and what nobody asked for.
        type: raw
      nic:
        description: >-
          The NIC that trades, by name or PCI address; the orchestrator goes to its node. Left out, the node
          with most NICs counts, and a note says so where several nodes have some.
        type: str
      disk:
        description: The disk that holds the WAL, by name or PCI address; PostgreSQL goes to its node.
        type: str
author:
  - hosttune
attributes:
  check_mode:
    description: Changes nothing in any mode.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Read the machine
  host_topology:

- name: Plan it
  cpu_plan:
    topology: "{{ ansible_facts.host_topology }}"
    request:
      policy: latency
      nic: ens1f0
      disk: nvme0n1
      postgres: 4
      redis: 1
  register: planned

- name: Say where the orchestrator runs
  ansible.builtin.debug:
    msg: "{{ planned.cpu_plan.orchestrator.cpus }}: {{ planned.cpu_plan.orchestrator.reason }}"

- name: Plan a recorded machine
  cpu_plan:
    topology_file: machines/exchange-a7.json
  delegate_to: localhost
"""

RETURN = r"""
cpu_plan:
  description: >-
    The plan. Each of the sets housekeeping, irq, postgres, redis, orchestrator, reserved and isolated is a
    dictionary like C(orchestrator) here.
  returned: success
  type: dict
  contains:
    partitioned:
      description: Whether the CPUs are divided; if not, every service runs on all of them.
      type: bool
    policy:
      description: The policy planned for.
      type: str
    orchestrator:
      description: One set.
      type: dict
      contains:
        cpus:
          description: Kernel list, empty for an empty set.
          type: str
          sample: 2-7,10-15
        node:
          description: NUMA node its memory should come from, never one without memory; null if it spans some.
          type: int
        reason:
          description: Why these.
          type: str
        shares:
          description: For a service too small to stand alone the set it lives in, else null.
          type: str
        runs_on:
          description: The CPUs it runs on, its own or those of the set it shares.
          type: str
        mask:
          description: C(runs_on) as a comma-grouped hex mask.
          type: str
          sample: ff,00000000
        cpu_nodes:
          description: The nodes these CPUs lie in.
          type: list
          elements: int
    online:
      description: The CPUs planned for.
      type: str
    boot_cpu:
      description: The lowest of them.
      type: int
    notes:
      description: What an operator should know of it.
      type: list
      elements: str
    fingerprint:
      description: Of the topology it was made from.
      type: str
picture:
  description: The plan as text, each core with a letter per thread.
  returned: success
  type: str
"""

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.hosttune import cpupicture, cpuplan
from ansible.module_utils.hosttune.model import Refusal


def read_file(path: str) -> cpuplan.Plan:
    """The topology in a JSON file; Refusal says what is wrong with it."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(error.strerror or str(error), thing=path, remedy="Name a readable file") from error
    except ValueError as error:
        raise Refusal(f"is no JSON: {error}", thing=path, remedy="Write it with host_topology") from error
    if not isinstance(found, dict) or not isinstance(found.get("cpus"), list):
        raise Refusal("has no list of cpus", thing=path, remedy="Write it with host_topology")
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "topology": {"type": "dict"},
            "topology_file": {"type": "path"},
            # sizes are numbers or shares, and an unknown name gets a "did you mean": the planner checks them
            "request": {"type": "dict", "default": {}},
        },
        mutually_exclusive=[("topology", "topology_file")],
        required_one_of=[("topology", "topology_file")],
        supports_check_mode=True,
    )
    try:
        topology = module.params["topology"] or read_file(module.params["topology_file"])
        plan = cpuplan.plan(topology, module.params["request"])
        module.exit_json(changed=False, cpu_plan=plan, picture=cpupicture.picture(topology, plan))
    except Refusal as refusal:
        module.fail_json(msg=str(refusal))


if __name__ == "__main__":
    main()
