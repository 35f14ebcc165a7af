#!/usr/bin/python
"""Reads the machine as data; all logic is in module_utils/hosttune/topology.py."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_topology
short_description: Read CPUs, NUMA nodes, memory, disks and NICs of a host as facts
description:
  - Reads /sys and /proc and returns the fact C(host_topology), which planning and sizing start from.
  - Changes nothing, needs no privileges for what it returns, and takes some milliseconds.
  - What a machine does not say is null or an empty list, never a failure.
options:
  root:
    description: Folder whose C(sys) and C(proc) are read; another than C(/) for recorded machines.
    type: path
    default: /
author:
  - hosttune
attributes:
  check_mode:
    description: Changes nothing in any mode.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
  facts:
    description: Returns C(ansible_facts).
    support: full
"""

EXAMPLES = r"""
- name: Read the machine
  host_topology:

- name: Say what it is
  ansible.builtin.debug:
    msg: >-
      {{ ansible_facts.host_topology.model }},
      {{ ansible_facts.host_topology.nodes | length }} NUMA nodes,
      {{ ansible_facts.host_topology.memory_limit_bytes // 1048576 }} MiB to size from

- name: Read a recorded machine
  host_topology:
    root: /srv/machines/exchange-a7
"""

RETURN = r"""
ansible_facts:
  description: The facts.
  returned: always
  type: dict
  contains:
    host_topology:
      description: The machine. CPU sets are kernel lists (V(0-3,8)), sizes say their unit in their name.
      type: dict
      contains:
        cpus:
          description:
            - One entry a CPU, offline ones too, with id, online, node, package, die, core, siblings and
              l3_group (the lowest CPU sharing the L3), and cluster, capacity and max_khz where known.
          type: list
          elements: dict
        nodes:
          description: NUMA nodes with id, cpus, mem_kib, distances (in the order of this list) and hugepages.
          type: list
          elements: dict
        numa_known:
          description: Whether the kernel says anything of NUMA; C(nodes) is empty where it does not.
          type: bool
        l3:
          description: L3 caches with group, cpus and size_kib.
          type: list
          elements: dict
        pci:
          description: PCI devices but bridges and system devices, with node (-1 if unknown), kind and driver.
          type: list
          elements: dict
        net:
          description: NICs with pci, driver, numa_node and queues; C(virtual) ones have no device.
          type: list
          elements: dict
        block:
          description: Whole disks with C(class) (nvme, ssd, rotational or virtio), pci, numa_node and queue.
          type: list
          elements: dict
        irqs:
          description:
            - IRQs of devices with irq, device (the NIC's name, nvme0, or a PCI address), queue (a number or
              V(other)), action, cpus, effective and managed (the kernel chooses the CPUs itself).
          type: list
          elements: dict
        memory_limit_bytes:
          description: What sizing may count on, the least of MemTotal and every cgroup memory limit above.
          type: int
        memory:
          description: total_bytes, cgroup_limit_bytes, cgroup_limit_from (the file) and hugepages.
          type: dict
        usable_cpus:
          description: CPUs this host may run on, in a container those of its cpuset; see C(usable_from).
          type: str
          sample: 0-3
        usable_from:
          description: Where C(usable_cpus) comes from, V(online), V(cpuset) or V(affinity).
          type: str
        container:
          description: Whether the kernel is shared with a machine around this host.
          type: bool
        container_manager:
          description: The container manager's name, empty on a machine of its own.
          type: str
          sample: systemd-nspawn
        virtualization:
          description: The hypervisor's name, empty on bare metal.
          type: str
          sample: kvm
        cgroup_version:
          description: 1 or 2.
          type: int
        kernel:
          description: Release of the running kernel.
          type: str
        model:
          description: The CPU's name.
          type: str
        arch:
          description: The machine's architecture.
          type: str
          sample: x86_64
        microcode:
          description: Its revision, all of them where packages differ, null where the kernel says none.
          type: str
          sample: "0xd0003b9"
        firmware:
          description: What DMI says, as vendor, version and date of the BIOS, and machine (maker, product).
          type: dict
          sample: {vendor: Dell Inc., version: 1.10.2, date: 03/24/2023, machine: Dell Inc. PowerEdge R650}
        cpu_masks:
          description: >-
            The kernel's own lists, as far as it has them (possible, present, online, offline, isolated,
            nohz_full, kernel_max), and smt_control.
          type: dict
        pci_omitted:
          description: How many bridges and system devices C(pci) leaves out.
          type: int
        cpufreq_driver:
          description: The driver that sets frequencies, null where the kernel sets none.
          type: str
          sample: intel_pstate
        cpuidle_driver:
          description: The driver of idle states.
          type: str
          sample: intel_idle
        mem_total_kib:
          description: MemTotal.
          type: int
        fingerprint:
          description:
            - Digest over what desired values are computed from. It stays the same over reboots and kernel
              updates and changes with CPUs, nodes, memory, disk classes and NICs.
          type: str
          sample: dd0dc7ee08e3
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.hosttune import topology


def main() -> None:
    module = AnsibleModule(
        argument_spec={"root": {"type": "path", "default": "/"}},
        supports_check_mode=True,
    )
    module.exit_json(changed=False, ansible_facts={"host_topology": topology.read(module.params["root"])})


if __name__ == "__main__":
    main()
