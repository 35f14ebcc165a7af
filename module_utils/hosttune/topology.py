"""The machine as data: CPUs, cores, caches, NUMA nodes, memory, disks and NICs, read from /sys and /proc.

`read` gives one JSON-able dict. Sets of CPUs are kernel lists ("0-3,8"), sizes say their unit in their name,
and None stands for what the machine does not say. Its keys:

    arch, model, kernel        text or None
    microcode                  as /proc/cpuinfo has its revision, all of them where packages differ, or None
    firmware                   {vendor, version, date, machine}, each text or None; machine is maker, product
    numa_known                 False where the kernel has no NUMA information; `nodes` is then empty
    mem_total_kib              MemTotal
    memory                     {total_bytes, cgroup_limit_bytes, cgroup_limit_from, hugepages}
    memory_limit_bytes         what sizing may count on: the least of MemTotal and every cgroup limit above
    cgroup_version             1, 2 or None
    container, container_manager, virtualization
                               bool, text, text ("" where none)
    usable_cpus, usable_from   the CPUs this host may run on, and who says so: online, cpuset or affinity
    cpu_masks                  {possible, present, online, offline, isolated, smt_control, kernel_max}
    cpus[]                     {id, online, node, package, die, core, siblings, l3_group} and where known
                               cluster, capacity, max_khz. `siblings` is a list with itself, None when
                               offline; `l3_group` the lowest CPU that shares the L3; a core id is unique
                               only within package and die
    nodes[]                    {id, cpus, mem_kib, distances, hugepages}; distances follow the order of nodes
    l3[]                       {group, cpus, size_kib}
    pci[]                      {address, class, kind (nic, nvme, other), numa_node, local_cpus, id, driver};
                               bridges and system devices are only counted, in pci_omitted
    net[]                      {name, virtual, pci, driver, numa_node, rx_queues, tx_queues, operstate, mtu,
                               speed_mbps, hw_timestamp}; the loopback is left out. `hw_timestamp`: whether
                               NTP packets are stamped in hardware; None of virtual NICs, of another machine
    block[]                    {name, class, rotational, removable, pci, numa_node, sectors, queue};
                               `class` is nvme, ssd, rotational or virtio; loop, ram, zram, dm, md, sr and
                               fd are left out
    irqs[]                     {irq, device, queue, action, cpus, effective, managed}, see `irqs`; those of no
                               device (timer, serial port) are left out
    cpufreq_driver, cpuidle_driver
    fingerprint                see `fingerprint`

Sources: Documentation/admin-guide/cputopology.rst, Documentation/ABI/stable/sysfs-devices-node and
Documentation/ABI/testing/sysfs-devices-system-cpu of the kernel; cgroup-v2.rst for the limits.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from . import cpulist

Topology = dict[str, Any]

_PCI_ADDRESS = re.compile(r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]$")

# Whole disks only. nvme0c0n1 is a hidden path of a multipath namespace, mmcblk0boot0 a boot partition.
_DISK = re.compile(r"^(nvme\d+n\d+|sd[a-z]+|hd[a-z]+|vd[a-z]+|xvd[a-z]+|mmcblk\d+)$")

# Base classes left out of `pci`: memory controllers, bridges, system peripherals.
_PCI_OMITTED = ("0x05", "0x06", "0x08")

# A limit this large is the kernel's way to say "none" (cgroup v1 prints 2^63 rounded down to a page).
_NO_LIMIT = 1 << 60


# --- small readers -------------------------------------------------------------------------------------


def _text(path: Path) -> str | None:
    """A file's text without its ends' blanks, None where there is no such file or the kernel refuses it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # absent, or the attribute is not meant for this device (EINVAL, EIO)
        return None


def _int(path: Path) -> int | None:
    text = _text(path)
    try:
        return int(text, 0) if text else None
    except ValueError:
        return None


def _cpus(path: Path) -> set[int] | None:
    text = _text(path)
    try:
        return None if text is None else cpulist.parse(text)
    except ValueError:
        return None


def _known(number: int | None) -> int | None:
    """Topology ids the firmware does not know are -1."""
    return None if number is None or number < 0 else number


def _numbered(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    """The entries PREFIX<number> of a folder, by number."""
    found = []
    for name in _names(folder):
        tail = name[len(prefix) :] if name.startswith(prefix) else ""
        if tail.isdigit():
            found.append((int(tail), folder / name))
    return sorted(found)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _driver(device: Path) -> str | None:
    link = device / "driver"
    return link.resolve().name if link.is_symlink() else None


# --- CPUs ----------------------------------------------------------------------------------------------


def _siblings(topology: Path, names: tuple[str, ...]) -> set[int] | None:
    """The first of these sets that is there; older kernels have the masks only."""
    for name in names:
        cpus = _cpus(topology / f"{name}_list")
        if cpus:
            return cpus
        mask = _text(topology / name)
        if mask:
            try:
                return cpulist.from_mask(mask)
            except ValueError:
                continue
    return None


def _l3(cpu: Path) -> tuple[set[int] | None, int | None]:
    """The CPUs that share this CPU's L3, and its size in KiB."""
    for _, index in _numbered(cpu / "cache", "index"):
        if _int(index / "level") == 3 and _text(index / "type") != "Instruction":
            shared = _siblings(index, ("shared_cpu", "shared_cpu_map"))
            size = _text(index / "size") or ""
            return shared, int(size[:-1]) if re.fullmatch(r"\d+K", size) else None
    return None, None


def _packages(cpus: list[dict[str, Any]], cores_of: dict[int, set[int]], x86: bool) -> None:
    """Puts `package` right where the raw id is absent, or contradicts core_siblings off x86.

    ARM and RISC-V firmware without PPTT gives ids that repeat or number clusters; core_siblings is then the
    truth, its sets numbered in order.
    """
    by_id: dict[Any, set[int]] = {}
    for cpu in cpus:
        if cpu["online"]:
            by_id.setdefault(cpu["package"], set()).add(cpu["id"])
    missing = None in by_id
    contradicted = not x86 and any(
        cores_of.get(cpu["id"], by_id.get(cpu["package"])) != by_id.get(cpu["package"])
        for cpu in cpus
        if cpu["online"]
    )
    if not cores_of or not (missing or contradicted):
        return
    sets = sorted({min(members) for members in cores_of.values()})
    for cpu in cpus:
        members = cores_of.get(cpu["id"])
        if members:
            cpu["package"] = sets.index(min(members))


def _read_cpus(root: Path, nodes: list[dict[str, Any]], x86: bool) -> dict[str, Any]:
    base = root / "sys/devices/system/cpu"
    masks = {}
    for name in ("possible", "present", "online", "offline", "isolated", "nohz_full", "kernel_max"):
        text = _text(base / name)
        if text is not None:
            masks[name] = text
    smt = _text(base / "smt/control")
    if smt is not None:
        masks["smt_control"] = smt

    node_of = {cpu: node["id"] for node in nodes for cpu in cpulist.parse(node["cpus"])}
    online = _cpus(base / "online")
    cpus: list[dict[str, Any]] = []
    cores_of: dict[int, set[int]] = {}
    groups: dict[int, dict[str, Any]] = {}
    for number, folder in _numbered(base, "cpu"):
        topology = folder / "topology"
        # cpu0 often has no `online` file: it cannot go offline
        is_online = number in online if online is not None else _int(folder / "online") != 0
        cpu: dict[str, Any] = {
            "id": number,
            "online": is_online,
            "node": node_of.get(number),
            "package": _known(_int(topology / "physical_package_id")),
            "die": _int(topology / "die_id"),
            "core": _int(topology / "core_id"),
            "siblings": None,
            "l3_group": None,
        }
        extras = {
            "cluster": _known(_int(topology / "cluster_id")),  # 65535 is -1 in 16 bits: not known
            "capacity": _int(folder / "cpu_capacity"),
            "max_khz": _int(folder / "cpufreq/cpuinfo_max_freq"),
        }
        cpu.update({key: value for key, value in extras.items() if value not in (None, 65535)})
        if is_online:
            siblings = _siblings(topology, ("core_cpus", "thread_siblings")) or {number}
            cpu["siblings"] = cpulist.format(siblings)
            cores_of[number] = _siblings(topology, ("package_cpus", "core_siblings")) or set()
            shared, size = _l3(folder)
            if shared:
                cpu["l3_group"] = min(shared)
                groups[min(shared)] = {"group": min(shared), "cpus": cpulist.format(shared), "size_kib": size}
        cpus.append(cpu)
    _packages(cpus, {number: members for number, members in cores_of.items() if members}, x86)
    return {"cpu_masks": masks, "cpus": cpus, "l3": [groups[group] for group in sorted(groups)]}


# --- memory --------------------------------------------------------------------------------------------


def _meminfo(text: str) -> dict[str, int]:
    """Numbers of a meminfo file, KiB where it says kB; node files put "Node 0 " before each name."""
    numbers = {}
    for line in text.splitlines():
        name, _, rest = re.sub(r"^Node \d+ ", "", line).partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            numbers[name.strip()] = int(words[0])
    return numbers


def _hugepages(folder: Path) -> dict[str, int]:
    """Pages reserved by page size, {"2048kB": 1061}."""
    pages = {}
    for name in _names(folder):
        count = _int(folder / name / "nr_hugepages")
        if name.startswith("hugepages-") and count is not None:
            pages[name[len("hugepages-") :]] = count
    return pages


def _read_nodes(root: Path) -> list[dict[str, Any]]:
    nodes = []
    for number, folder in _numbered(root / "sys/devices/system/node", "node"):
        distances = (_text(folder / "distance") or "").split()
        cpus = _siblings(folder, ("cpu", "cpumap")) or set()
        nodes.append(
            {
                "id": number,
                "cpus": cpulist.format(cpus),
                "mem_kib": _meminfo(_text(folder / "meminfo") or "").get("MemTotal", 0),
                "distances": [int(word) for word in distances if word.isdigit()],
                "hugepages": _hugepages(folder / "hugepages"),
            }
        )
    return nodes


def _cgroup_folders(root: Path, controller: str) -> tuple[int | None, list[Path]]:
    """The cgroup version that holds a controller, and our cgroup's folder with all above it, lowest first.

    It is PID 1's cgroup, not ours: a limit on the login session that runs this says nothing of the services,
    a limit above PID 1 holds for everything here. In a container without a cgroup namespace the path is the
    machine's and its head is not visible here, so the longest tail that exists counts.
    """
    lines = (_text(root / "proc/1/cgroup") or _text(root / "proc/self/cgroup") or "").splitlines()
    base = root / "sys/fs/cgroup"
    version: int | None = None
    mount, path = base, "/"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, where = rest.partition(":")
        if controller in controllers.split(","):
            folder = next((base / name for name in (controller, controllers) if (base / name).is_dir()), None)
            if folder is not None:
                version, mount, path = 1, folder, where
                break
        if not controllers:
            unified = (base, base / "unified")
            holder = next((one for one in unified if (one / "cgroup.controllers").exists()), None)
            if holder is not None and controller in (_text(holder / "cgroup.controllers") or "").split():
                version, mount, path = 2, holder, where
    if version is None:
        return None, []
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for skipped in range(len(parts) + 1):
        tail = parts[skipped:]
        if mount.joinpath(*tail).is_dir():
            break
    return version, [mount.joinpath(*tail[:depth]) for depth in range(len(tail), -1, -1)]


def _cgroup_version(root: Path) -> int | None:
    base = root / "sys/fs/cgroup"
    if (base / "cgroup.controllers").exists():
        return 2
    return 1 if _names(base) else None


def _memory_limit(root: Path) -> tuple[int | None, str]:
    """The least cgroup memory limit in bytes, None where there is none, and the file that sets it."""
    version, folders = _cgroup_folders(root, "memory")
    # memory.high throttles rather than kills, but a server sized above it crawls: it limits sizing as well
    names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
    least: int | None = None
    source = ""
    for folder in folders:
        for name in names:
            limit = _int(folder / name)
            if limit is not None and 0 < limit < _NO_LIMIT and (least is None or limit < least):
                least, source = limit, "/" + str((folder / name).relative_to(root))
    return least, source


def _read_memory(root: Path) -> dict[str, Any]:
    info = _meminfo(_text(root / "proc/meminfo") or "")
    total_kib = info.get("MemTotal")
    total = total_kib * 1024 if total_kib is not None else None
    limit, source = _memory_limit(root)
    return {
        "mem_total_kib": total_kib,
        "memory": {
            "total_bytes": total,
            "cgroup_limit_bytes": limit,
            "cgroup_limit_from": source,
            "hugepages": _hugepages(root / "sys/kernel/mm/hugepages"),
        },
        "memory_limit_bytes": min((one for one in (total, limit) if one is not None), default=None),
    }


def stable_bytes(number: int) -> int:
    """A memory size without the noise: rounded down to a power of two of about 1 to 2 % of it.

    MemTotal moves by some MiB from one kernel to the next. A value computed from the exact number would move
    with it, and restart PostgreSQL after every kernel update for nothing.
    """
    step = 1 << max(number.bit_length() - 7, 0)
    return number // step * step


# --- container and virtual machine -----------------------------------------------------------------------


def _container(root: Path) -> str:
    """The container manager's name, "" on a machine with its own kernel (as systemd-detect-virt finds it)."""
    name = _text(root / "run/systemd/container")
    if name:
        return name
    for entry in (_text(root / "proc/1/environ") or "").split("\0"):
        if entry.startswith("container="):
            return entry[len("container=") :] or "other"
    if (root / ".dockerenv").exists():
        return "docker"
    return "podman" if (root / "run/.containerenv").exists() else ""


_HYPERVISORS = {
    "qemu": "qemu",
    "kvm": "kvm",
    "vmware": "vmware",
    "virtualbox": "oracle",
    "innotek": "oracle",
    "xen": "xen",
    "microsoft corporation": "microsoft",
    "amazon ec2": "amazon",
    "google compute engine": "google",
    "bochs": "bochs",
    "parallels": "parallels",
}


def _virtualization(root: Path, cpuinfo: str) -> str:
    """The hypervisor's name, "vm" where only the CPU tells that there is one, "" on bare metal."""
    hypervisor = _text(root / "sys/hypervisor/type")
    if hypervisor:
        return hypervisor
    under_one = re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE) is not None
    dmi = root / "sys/class/dmi/id"
    said = " ".join(_text(dmi / name) or "" for name in ("sys_vendor", "product_name", "bios_vendor")).lower()
    for word, name in _HYPERVISORS.items():
        # Microsoft and Amazon also build metal: their names count only with the CPU's own word for it
        if word in said and (under_one or name in ("qemu", "kvm", "vmware", "oracle", "bochs")):
            return name
    if (root / "proc/device-tree/hypervisor/compatible").exists():
        return "vm"
    return "vm" if under_one else ""


def _usable(root: Path, online: set[int], container: bool) -> tuple[set[int], str]:
    """The CPUs this host may run on.

    On a machine of its own that is every online CPU: an affinity or cpuset found there is tuning (isolcpus,
    CPUAffinity=, our own plan), and a plan made from what an earlier plan left over would shrink at every
    run. In a container /sys shows the machine's CPUs, and the cpuset the container was given is the truth.
    """
    if not container:
        return online, "online"
    version, folders = _cgroup_folders(root, "cpuset")
    names = ("cpuset.cpus.effective",) if version == 2 else ("cpuset.effective_cpus", "cpuset.cpus")
    for folder in reversed(folders):  # the top first: below it systemd's own slices may be narrower
        for name in names:
            cpus = (_cpus(folder / name) or set()) & online
            if cpus:
                return cpus, "cpuset"
    if root == Path("/") and hasattr(os, "sched_getaffinity"):
        cpus = set(os.sched_getaffinity(0)) & online
        if cpus:
            return cpus, "affinity"
    return online, "online"


# --- devices -------------------------------------------------------------------------------------------


def _place(device: Path) -> tuple[str | None, int]:
    """A device's nearest PCI address and NUMA node (-1: not known), from it and the devices above it."""
    try:
        here = device.resolve()
    except (OSError, RuntimeError):
        return None, -1
    for folder in (here, *here.parents):
        if folder.name == "sys":
            break
        if _PCI_ADDRESS.match(folder.name):
            return folder.name, _int_or(folder / "numa_node", -1)
    return None, _int_or(here / "numa_node", -1)


def _int_or(path: Path, default: int) -> int:
    number = _int(path)
    return default if number is None else number


def _read_pci(root: Path) -> dict[str, Any]:
    devices, omitted = [], 0
    folder = root / "sys/bus/pci/devices"
    for address in _names(folder):
        device = folder / address
        code = _text(device / "class") or ""
        if code.startswith(_PCI_OMITTED):
            omitted += 1
            continue
        vendor, product = _text(device / "vendor") or "", _text(device / "device") or ""
        local = _cpus(device / "local_cpulist")
        entry: dict[str, Any] = {
            "address": address,
            "class": code,
            "kind": "nic" if code.startswith("0x02") else "nvme" if code.startswith("0x0108") else "other",
            "numa_node": _int_or(device / "numa_node", -1),
            "local_cpus": cpulist.format(local) if local is not None else None,
            "id": f"{vendor[2:]}:{product[2:]}",
            "driver": _driver(device),
        }
        if (device / "physfn").exists():
            entry["vf"] = True
        functions = _int(device / "sriov_numvfs")
        if functions is not None:
            entry["numvfs"] = functions
        devices.append(entry)
    return {"pci": devices, "pci_omitted": omitted}


def _read_net(root: Path) -> list[dict[str, Any]]:
    from . import timestamping  # as in `read`

    found = []
    folder = root / "sys/class/net"
    for name in _names(folder):
        nic = folder / name
        if name == "lo" or not (nic / "ifindex").exists():  # bonding_masters is a file among them
            continue
        device = nic / "device"
        pci, node = _place(device) if device.exists() else (None, -1)
        queues = _names(nic / "queues")
        found.append(
            {
                "name": name,
                "virtual": not device.exists(),
                "pci": pci,
                "driver": _driver(device),
                "numa_node": node,
                "rx_queues": sum(queue.startswith("rx-") for queue in queues),
                "tx_queues": sum(queue.startswith("tx-") for queue in queues),
                "operstate": _text(nic / "operstate"),
                "mtu": _int(nic / "mtu"),
                "speed_mbps": _int(nic / "speed"),
                "hw_timestamp": timestamping.hardware(name)
                if root == Path("/") and device.exists()
                else None,
            }
        )
    return found


def _disk_class(name: str, device: Path, rotational: bool | None) -> str:
    if name.startswith("nvme"):
        return "nvme"
    # a virtio-scsi disk is an sd like any other: what stands behind it, its rotational flag says
    if name.startswith(("vd", "xvd")) or _driver(device) == "virtio_blk":
        return "virtio"
    return "rotational" if rotational else "ssd"


def _read_block(root: Path) -> list[dict[str, Any]]:
    found = []
    folder = root / "sys/block"
    for name in _names(folder):
        if not _DISK.match(name):
            continue
        disk = folder / name
        device = disk / "device"
        pci, node = _place(device)
        if pci is None and name.startswith("nvme"):
            # a multipath namespace hangs below a virtual subsystem; its controllers are the PCI devices
            for _, controller in _numbered(device, "nvme"):
                pci, node = _place(controller)
                if pci:
                    break
        flag = _int(disk / "queue/rotational")
        rotational = None if flag is None else bool(flag)
        queue = {}
        for attribute in ("scheduler", "nr_requests", "read_ahead_kb"):
            text = _text(disk / "queue" / attribute)
            if text is not None:
                queue[attribute] = int(text) if text.isdigit() else text
        found.append(
            {
                "name": name,
                "class": _disk_class(name, device, rotational),
                "rotational": rotational,
                "removable": _int(disk / "removable") == 1,
                "pci": pci,
                "numa_node": node,
                "sectors": _int(disk / "size"),
                "queue": queue,
            }
        )
    return found


# --- the whole -----------------------------------------------------------------------------------------


def read(root: str = "/") -> Topology:
    """The machine below `root` ("/" for the one we run on), in the form of this module's docstring.

    Never fails for what is missing: a machine that hides a thing has None or an empty list there.
    """
    from . import irqs  # here: a call that only wants the fingerprint does not pay for it

    base = Path(root).resolve()
    topology = _read_core(base)
    cpu = base / "sys/devices/system/cpu"
    topology.update(_read_pci(base))
    topology["irqs"] = [one.as_dict() for one in irqs.read(str(base)) if one.device]
    topology["cpufreq_driver"] = _cpufreq_driver(cpu)
    topology["cpuidle_driver"] = _text(cpu / "cpuidle/current_driver")
    topology["fingerprint"] = fingerprint(topology)
    return topology


def _cpufreq_driver(cpu: Path) -> str | None:
    """Of the first policy that is there: policy0 goes with an offline CPU 0."""
    policies = [policy for _, policy in _numbered(cpu / "cpufreq", "policy")]
    policies += [folder / "cpufreq" for _, folder in _numbered(cpu, "cpu")]  # kernels before 4.3
    return next(filter(None, (_text(policy / "scaling_driver") for policy in policies)), None)


def _firmware(base: Path) -> dict[str, str | None]:
    """What DMI says to everybody; serial numbers are not read. All None where there is no DMI."""
    dmi = base / "sys/class/dmi/id"
    maker, product = _text(dmi / "sys_vendor"), _text(dmi / "product_name")
    return {
        "vendor": _text(dmi / "bios_vendor") or None,
        "version": _text(dmi / "bios_version") or None,
        "date": _text(dmi / "bios_date") or None,
        "machine": " ".join(word for word in (maker, product) if word) or None,
    }


def _read_core(base: Path) -> Topology:
    """All that the fingerprint needs, and what comes with it at no cost."""
    cpuinfo = _text(base / "proc/cpuinfo") or ""
    model = re.search(r"^(?:model name|Model|cpu)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    x86 = re.search(r"^flags\s*:", cpuinfo, re.MULTILINE) is not None
    microcode = set(re.findall(r"^microcode\s*:\s*(\S+)", cpuinfo, re.MULTILINE))
    manager = _container(base)
    nodes = _read_nodes(base)
    topology: Topology = {
        "arch": os.uname().machine if base == Path("/") else "x86_64" if x86 else None,
        "model": model.group(1).strip() if model else None,
        "kernel": _text(base / "proc/sys/kernel/osrelease"),
        "microcode": ", ".join(sorted(microcode)) or None,
        "firmware": _firmware(base),
        "numa_known": bool(nodes),
        "cgroup_version": _cgroup_version(base),
        "container": bool(manager),
        "container_manager": manager,
        "virtualization": _virtualization(base, cpuinfo),
    }
    topology.update(_read_memory(base))
    topology.update(_read_cpus(base, nodes, x86))
    online = {cpu["id"] for cpu in topology["cpus"] if cpu["online"]}
    usable, source = _usable(base, online, bool(manager))
    topology.update(
        usable_cpus=cpulist.format(usable),
        usable_from=source,
        nodes=nodes,
        net=_read_net(base),
        block=_read_block(base),
    )
    return topology


def fingerprint(topology: Topology) -> str:
    """12 hex digits over what desired values are computed from; equal means: the same machine to us.

    Left out is what a reboot or a day may change for no reason of ours: kernel, free memory, link states,
    names of disks (sda and sdb swap), removable and virtual devices, reserved huge pages. Memory goes in
    rounded, see `stable_bytes`; of a node's memory in a container, which is the machine's and not ours to
    size from, only whether there is any. Works on any topology in JSON form, from `read` or from a file.
    """
    limit = topology.get("memory_limit_bytes") or (topology.get("mem_total_kib") or 0) * 1024
    wanted = ("id", "online", "node", "package", "die", "core", "siblings", "l3_group", "capacity", "max_khz")
    container = bool(topology.get("container"))

    def node_memory(node: dict[str, Any]) -> int:
        size = node.get("mem_kib") or 0
        return int(size > 0) if container else stable_bytes(size)

    facts = {
        "cpus": [{key: cpu.get(key) for key in wanted} for cpu in topology.get("cpus", [])],
        "usable": topology.get("usable_cpus"),
        "nodes": [
            [node["id"], node["cpus"], node_memory(node), node.get("distances")]
            for node in topology.get("nodes", [])
        ],
        "memory": stable_bytes(limit),
        "disks": sorted(
            Counter(
                f"{disk.get('class')} {disk.get('numa_node')}"
                for disk in topology.get("block", [])
                if not disk.get("removable")
            ).items()
        ),
        "nics": sorted(
            [nic["name"], nic.get("numa_node", -1)]
            for nic in topology.get("net", [])
            if not nic.get("virtual")
        ),
        "container": container,
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_fingerprint(root: str = "/") -> str:
    """`fingerprint` of the machine below `root`, without the PCI walk."""
    return fingerprint(_read_core(Path(root).resolve()))
