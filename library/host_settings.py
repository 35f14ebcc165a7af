#!/usr/bin/python
"""Converges a host's settings: the thin Ansible face of hosttune.engine."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_settings
short_description: Read, judge, apply and undo the settings of a host
version_added: "0.1.0"
description:
  - Brings kernel parameters, modules, sysfs values, disk queues, mount options, limits, units, files,
    services and server parameters of one host to their desired values, in one call whatever their number.
  - A call states the whole set of each owner it names. What the host's manifest or ledger holds of that owner
    and the call does not name is undone.
  - Every value is read back. Originals are kept in a ledger on the host before the first write.
options:
  owner:
    description:
      - The role that manages the settings given as one dict a kind. Implies O(partial=true).
      - Mutually exclusive with O(owners).
    type: str
  owners:
    description:
      - "All settings of the host: owner, kind, name, value."
      - With O(state=absent) only the owners' names count, within O(kinds); without any, everything is
        undone.
    type: dict
  partial:
    description:
      - The call speaks for the owners it names only.
      - Others keep what they have, and conflicts with them are refused.
    type: bool
    default: false
  state:
    description: V(present) converges; V(absent) gives back what was there before, from the ledger.
    type: str
    choices: [present, absent]
    default: present
  sysctl:
    description: Kernel parameters by dotted name; slash form where an interface name has dots.
    type: dict
  module:
    description: Kernel modules by name, V(loaded) or V(unloaded).
    type: dict
  boot:
    description:
      - "Parameters of the kernel's command line (GRUB) by name: a quoted value, V(true) for a bare flag, or a
        list of these where the parameter is repeated."
      - C(hugepages) has one value for each size in C(hugepagesz), and may have one more, first, for the
        default size.
      - They are in force after the next boot; nothing here reboots.
    type: dict
  sysfs:
    description: Values of files below /sys by path.
    type: dict
  hugepages:
    description:
      - Persistent huge pages by NODE/SIZE, such as C(0/2048kB), as a count of pages.
      - Pages of 1 GiB come with the next boot, those of other sizes at once.
    type: dict
  block:
    description: Disk queue attributes by DEVICE_OR_CLASS/ATTR; classes are nvme, ssd, rotational and virtio.
    type: dict
  nic:
    description:
      - "Settings of network interfaces by IFACE/GROUP/KEY; an alternative name of the interface will do.
        Groups and keys are those of ethtool: C(ring) (-G), C(channels) (-L), C(coalesce) (-C), C(pause) (-A)
        and C(features) (-K); C(link) has C(mtu), C(txqueuelen), C(gro_flush_timeout),
        C(napi_defer_hard_irqs) and C(threaded); C(queue) has attributes of one queue, such as
        eth0/queue/tx-0.xps_cpus (a mask in hex)."
      - Switches are V(on) or V(off), in quotes.
      - "Persisted as a drop-in of the .link file that decides over the interface where that file is its own,
        else by C(hosttune-link.service) from the manifest. Rings, channels, flow control, the MTU and most
        features reset the interface: see O(disruption_allowed)."
    type: dict
  irq:
    description:
      - "CPU lists by DEVICE/QUEUE, such as C(ens4/0: 2-3): the CPUs on which the queue's interrupts fire.
        QUEUE is the number in the IRQ's name, or C(other) for the device's IRQs of no queue."
      - C(default) is what IRQs get that are made later (C(/proc/irq/default_smp_affinity)).
    type: dict
  mount:
    description: Mount options by mount point, as a comma-separated list of those that must be in force.
    type: dict
  limit:
    description: Limits of login sessions (pam_limits) by DOMAIN/TYPE/ITEM.
    type: dict
  file:
    description:
      - "Whole files by path: a dict of C(content), C(mode) (quoted), C(owner), C(group), C(secret) (its
        mode must leave others nothing), and C(reload) or C(restart) (units)."
    type: dict
  manager:
    description: Directives of systemd's own configuration (system.conf.d) by name.
    type: dict
  unit:
    description: Directives of units by UNIT/SECTION/DIRECTIVE, written as drop-ins.
    type: dict
  postgres:
    description: Server parameters by CLUSTER/NAME, such as 15/main/work_mem.
    type: dict
  redis:
    description:
      - Directives of Redis servers by INSTANCE/NAME, such as server/maxmemory. C(server) is
        redis-server.service, another one redis-server@INSTANCE.service.
      - Where the default user is off, /etc/hosttune/redis-INSTANCE.login holds C(USER PASSWORD) of a user
        with C(+config|get +config|set), for root only. It is never shown.
    type: dict
  service:
    description: "States of units as words: enabled, disabled, masked, active, inactive."
    type: dict
  kinds:
    description: Of O(state=absent), these kinds only; empty means all.
    type: list
    elements: str
    default: []
  disruption_allowed:
    description:
      - The greatest disruption that may be caused now by making values live. What would cause a greater
        one is persisted, is left as it runs, and its verdict is C(pending_window).
      - V(silent) disturbs nothing, V(moves) moves threads or interrupts, V(resets) resets a NIC, V(restarts)
        stops or restarts a service, V(reboots) reboots. Restarts of servers and reboots are tasks of the
        roles.
    type: str
    choices: [silent, moves, resets, restarts, reboots]
    default: silent
  boot_trial:
    description:
      - How a change of the kernel's command line comes in. With V(none) it is the line of all boots at once.
      - With V(host) or V(controller) the next boot alone tries it, with C(panic=10), and its verdict is
        C(pending_reboot) until then; after a panic, a reset or a power cut the old line boots.
      - It becomes permanent once C(hosttune-trial) on the host has found all as it shall be, with
        V(controller) only by C(hosttune-trial confirm). See docs/operations.md, "Reboots".
      - Refused where GRUB could not write its environment block (LVM, RAID, btrfs, ZFS, ...).
      - What is given back, with O(state=absent) or by an owner without boot settings, is permanent at once:
        it is the line from before the suite.
    type: str
    choices: [none, host, controller]
    default: none
  notes:
    description: "Why, risk and source of settings: kind, name, then a dict of text. Kept in the manifest."
    type: dict
    default: {}
  packages:
    description:
      - Debian packages by owner. While one is missing, check mode says C(unknown, after installing it) of the
        settings that it brings.
    type: dict
    default: {}
  run:
    description: Who runs this, recorded in manifest and ledger (id, commit, operator).
    type: dict
    default: {}
  foreign:
    description:
      - "What to do about programs and files that fight for settings of this call: name of the program or path
        of the file, then V(refuse), V(take_over) (undo gives it back) or V(leave) (it keeps the settings)."
      - A fight that nobody decided about is refused before anything is touched.
      - What would restart servers with updates is guarded unless decided otherwise. See docs/operations.md.
    type: dict
    default: {}
  topology_fingerprint:
    description: Fingerprint of the C(host_topology) fact from which the values were computed.
    type: str
    default: ""
  lock_wait_seconds:
    description: How long to wait for another run on this host before refusing.
    type: float
    default: 60
  root:
    description: Another root folder, for tests. Commands of the host are not run below it.
    type: path
    default: /
attributes:
  check_mode:
    support: full
    description: Says exactly what an apply would change, and writes nothing.
  diff_mode:
    support: full
    description: Files and live values; secret files are named, never shown.
author: hosttune
"""

EXAMPLES = r"""
- name: One role's settings
  host_settings:
    owner: kernel
    sysctl:
      vm.swappiness: "10"
      net.core.rmem_max: "16777216"
    sysfs:
      kernel/mm/transparent_hugepage/enabled: never

- name: The whole host, all owners in one call
  host_settings:
    owners:
      kernel: "{{ kernel_settings }}"
      limits: "{{ limits_settings }}"

- name: Give back all that role kernel changed
  host_settings:
    owner: kernel
    state: absent
"""

RETURN = r"""
settings:
  description:
    - Every setting of the call with its planes and verdict at the end of the run (check mode, now).
    - C(needs) is what it takes at the end of the run until the value is in force, C(disruption) the class of
      what the change and that do to the host. Check mode says both as the run would.
  returned: always
  type: list
  elements: dict
  sample:
    - owner: kernel
      kind: sysctl
      name: vm.swappiness
      desired: "10"
      live: "10"
      persisted: {value: "10", file: /etc/sysctl.d/60-hosttune-kernel.conf, line: 2, overridden: []}
      before: {live: "60", persisted: null, verdict: drift}
      verdict: in_sync
      changed: true
      needs: none
      disruption: silent
      reason: ""
counts:
  description: Number of settings by verdict.
  returned: always
  type: dict
  sample: {in_sync: 41, unsupported: 3}
pending:
  description:
    - Settings that wait for a restart, a reboot or the closed market.
    - In check mode also those that would at the end of the run.
  returned: always
  type: list
  elements: dict
undone:
  description:
    - Settings given back, with the values that were there before, those that stood at the start of this call
      (C(from), a dict with C(live) and C(persisted)) and what they still need.
  returned: always
  type: list
  elements: dict
failures:
  description: What could not be done or read; not empty means the task failed.
  returned: always
  type: list
  elements: str
foreign:
  description: Programs and files that define, overwrite or would restart what this call manages.
  returned: always, also with a refusal that they cause
  type: list
  elements: dict
  sample:
    - owner: tuned
      package: tuned 2.20.0-1
      file: /usr/lib/tuned/throughput-performance/tuned.conf:63
      unit: tuned.service
      state: enabled active
      weight: fight
      affects: [sysctl vm.dirty_ratio]
      decision: take_over
      reason: applies its profile at every start and profile switch, and its own originals when it stops
      remedy: stopped and disabled
left:
  description: Settings of the call that were left to a foreign owner.
  returned: always
  type: list
  elements: dict
aside:
  description: Files that somebody edited since and that undo kept aside.
  returned: always
  type: list
  elements: str
warnings:
  description: What the operator should know though nothing failed, such as a damaged ledger.
  returned: when there is something
  type: list
  elements: str
manifest_digest:
  description: sha256 over the desired settings.
  returned: always
  type: str
topology_matches:
  description: Whether the host still is the machine of O(topology_fingerprint).
  returned: always
  type: bool
"""

import platform

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.hosttune import demand, engine, kinds
from ansible.module_utils.hosttune.foreign import ForeignRefusal
from ansible.module_utils.hosttune.model import BOOT_TRIALS, DISRUPTIONS, Refusal
from ansible.module_utils.hosttune.system import System


class _Module(AnsibleModule):
    """An AnsibleModule that tells the content of secret files to nobody: no journal, no result, no -vvv."""

    def _log_invocation(self) -> None:
        # The options hold secrets inside, which no_log of a whole option cannot single out.
        self.log("Invoked")

    def _load_params(self) -> None:
        # Before options are validated: what refuses a call shows the call.
        super()._load_params()
        self.no_log_values.update(demand.secrets(self.params))


def main() -> None:
    module = _Module(
        argument_spec={
            "owner": {"type": "str"},
            "owners": {"type": "dict"},
            "partial": {"type": "bool", "default": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "kinds": {"type": "list", "elements": "str", "default": []},
            "disruption_allowed": {"type": "str", "choices": list(DISRUPTIONS), "default": "silent"},
            "boot_trial": {"type": "str", "choices": list(BOOT_TRIALS), "default": "none"},
            "notes": {"type": "dict", "default": {}},
            "packages": {"type": "dict", "default": {}},
            "run": {"type": "dict", "default": {}},
            "foreign": {"type": "dict", "default": {}},
            "topology_fingerprint": {"type": "str", "default": ""},
            "lock_wait_seconds": {"type": "float", "default": 60.0},
            "root": {"type": "path", "default": "/"},
            **{kind: {"type": "dict"} for kind in kinds.ORDER},
        },
        mutually_exclusive=[("owner", "owners")],
        supports_check_mode=True,
    )
    options = module.params
    host = platform.node()
    present = options["state"] == "present"
    by_kind = {kind: options[kind] for kind in kinds.ORDER if options[kind]}
    owners = options["owners"] or {}
    if options["owner"]:
        owners = {options["owner"]: by_kind}
    elif by_kind:
        module.fail_json(
            msg=f"{', '.join(by_kind)}: settings without an owner. Name the role in 'owner', or use 'owners'"
        )
    elif present and options["owners"] is None:
        module.fail_json(msg="nothing is asked for. Give 'owner' with settings, or 'owners'")
    try:
        report = engine.converge(
            System(options["root"]),
            engine.Request(
                owners=owners,
                present=present,
                partial=options["partial"] or bool(options["owner"]),
                kinds=options["kinds"],
                disruption_allowed=options["disruption_allowed"],
                boot_trial=options["boot_trial"],
                check=module.check_mode,
                notes=options["notes"],
                packages=options["packages"],
                run=options["run"],
                foreign=options["foreign"],
                topology_fingerprint=options["topology_fingerprint"],
                lock_wait_seconds=options["lock_wait_seconds"],
            ),
        )
    except Refusal as refusal:
        found = [one.as_dict() for one in refusal.findings] if isinstance(refusal, ForeignRefusal) else []
        module.fail_json(msg=f"{host}: {refusal}", thing=refusal.thing, remedy=refusal.remedy, foreign=found)
    except OSError as error:
        module.fail_json(
            msg=f"{host}: {error.filename or 'the host'}: {error.strerror}. "
            "What was changed so far is in the ledger; mend the cause and run again, or undo"
        )
    for warning in report.warnings:
        module.warn(f"{host}: {warning}")
    result = {
        "changed": report.changed,
        "settings": [judged.as_dict() for judged in report.settings],
        "counts": report.counts(),
        "pending": report.pending(),
        "undone": report.undone,
        "foreign": report.foreign,
        "left": report.left,
        "failures": report.failures,
        "aside": report.aside,
        "manifest_digest": report.manifest_digest,
        "topology_matches": report.topology_matches,
        "diff": report.diff,
    }
    if report.failures and not module.check_mode:
        module.fail_json(msg=f"{host}: {'; '.join(report.failures)}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
