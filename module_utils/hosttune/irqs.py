"""Interrupts with their devices and queues, read from /proc/irq, /proc/interrupts and /sys of any root.

An IRQ's number changes with every boot, driver reload and change of channels. What stays is the device and,
in the name that its driver gave the IRQ (the action), the number of the queue. So an IRQ is named here as
DEVICE and QUEUE:

- DEVICE: the NIC's name where one NIC is behind the PCI function (or the virtio or platform device), nvmeN of
  a disk's controller, else the PCI address, also of a function that several NICs share. The name of the
  action counts only where the kernel links no device to the IRQ (Xen).
- QUEUE: the number that the action names: virtio2-input.0 and virtio2-output.0, ens3-rx-0,
  i40e-ens1f0-TxRx-0, mlx5_comp0@pci:..., nvme0q0. `other` is every IRQ whose action names no queue:
  configuration, events, link, firmware, RDMA. The only IRQ of a device serves all its queues, and is queue 0.

Sources: the drivers' request_irq() of e1000e, igb, igc, ixgbe, iavf, i40e, ice, mlx4, mlx5, bnxt, bnx2x, tg3,
ena, gve, sfc, virtio, vmxnet3, xen-netfront and nvme; kernel/irq/proc.c for the files and their modes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import cpulist
from .model import Refusal

OTHER = "other"

_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]\Z")
#: A port of another function's switch (SR-IOV representor): it has no IRQ of its own.
_REPRESENTOR = re.compile(r"(c\d+)?pf\d+(vf|sf)\d+\Z")

#: Where the number of a queue stands in an action. Before it comes the start, a NIC's or a driver's name with
#: its `-`; behind it the end, or the `@` before a PCI address.
_QUEUES = tuple(
    re.compile(pattern)
    for pattern in (
        # Most NICs; fdir and ctrl are flow steering of i40e and ice, xdp are sfc's queues of XDP_TX
        r"(?!.*:(?:fdir|ctrl)-)(?:.*-)?(?:txrx|tx-rx|rxtx|rx|tx|fp|xdp)-?(\d+)\Z",
        r"(?:.*-)?q(\d+)(?:-tx|-rx)?\Z",  # xen-netfront, be2net
        r"virtio\d+-(?:input|output|req)\.(\d+)\Z",
        r"mlx5_comp(\d+)(?:@.*)?\Z",
        r"mlx4-(?:comp-)?(\d+)@.*\Z",
        r"gve-ntfy-blk(\d+)@.*\Z",
        r"mana_q(\d+)@.*\Z",
        r"nvme\d+q(\d+)\Z",
        r"[a-z0-9_]+-msix(\d+)\Z",  # megaraid, mpt3sas
    )
)
#: Queues that their drivers have the kernel spread over all CPUs (PCI_IRQ_AFFINITY), where the mode of the
#: files does not tell: it does since Linux 6.12.
_SPREAD = re.compile(r"(?:nvme\d+q[1-9]\d*|virtio\d+-req\.\d+)\Z")
#: The rest of a line of /proc/interrupts that names no action: number in the chip, and how it is triggered.
_NO_ACTION = re.compile(r"\d*-[a-z-]+\Z|\d+(?: +(?:Edge|Level))?\Z")


@dataclass(frozen=True)
class Irq:
    """One IRQ of one device; an IRQ that devices share stands once for each."""

    irq: int
    #: "" where none is known (timer, serial port)
    device: str
    #: a number as text, or `other`
    queue: str
    #: several, joined by ", ", where handlers share the line
    action: str
    #: smp_affinity_list and effective_affinity_list as the kernel prints them; None: not readable, not there
    cpus: str | None
    effective: str | None
    #: the kernel chooses the CPUs itself and refuses another choice
    managed: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "irq": self.irq,
            "device": self.device or None,
            "queue": self.queue,
            "action": self.action,
            "cpus": self.cpus,
            "effective": self.effective,
            "managed": self.managed,
        }


def read(root: str = "/") -> list[Irq]:
    """All IRQs that somebody handles, by number. Never fails for what is missing."""
    base = "" if root == "/" else root
    actions = _actions(base)
    devices = Devices(base)
    found = []
    for number in sorted(actions):
        for device in devices.of(number, actions[number]):
            found.append(_irq(base, number, device, actions[number]))
    return _only_ones(found)


def queue_of(action: str, nic: str = "") -> str:
    """The queue that an action names, `other` where it names none; `nic` is the name of the NIC behind it."""
    # sfc and old mlx5: the NIC's name and the number alone
    plain = re.match(r"-(\d+)\Z", action[len(nic) :]) if nic and action.startswith(nic) else None
    if plain:
        return str(int(plain.group(1)))
    for pattern in _QUEUES:
        found = pattern.match(action.lower())
        if found:
            return str(int(found.group(1)))
    return OTHER


def _irq(base: str, number: int, device: str, action: str) -> Irq:
    folder = f"{base}/proc/irq/{number}"
    queues = {queue_of(one, device) for one in action.split(", ")}
    shared = len(queues) > 1  # nvme0q0 and nvme0q1 on the only vector
    return Irq(
        number,
        device,
        min(queues - {OTHER}, key=int, default=OTHER),
        action,
        _text(f"{folder}/smp_affinity_list"),
        _text(f"{folder}/effective_affinity_list"),
        _managed(folder, action, shared),
    )


def _managed(folder: str, action: str, shared: bool) -> bool:
    try:
        if not os.stat(f"{folder}/smp_affinity_list").st_mode & 0o200:
            return True
    except OSError:
        return False
    return bool(_SPREAD.match(action)) and not shared


def _only_ones(irqs: Sequence[Irq]) -> list[Irq]:
    """The only IRQ of a device serves its queues, whatever it is called: with MSI, or too few vectors."""
    counts: dict[str, int] = {}
    for one in irqs:
        counts[one.device] = counts.get(one.device, 0) + 1
    return [
        replace(one, queue="0") if one.device and one.queue == OTHER and counts[one.device] == 1 else one
        for one in irqs
    ]


# small readers


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return None


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _actions(base: str) -> dict[int, str]:
    """IRQ -> its handlers' names, from /proc/interrupts, else from the folders of /proc/irq."""
    text = _text(f"{base}/proc/interrupts")
    if text is None:
        found = {}
        for name in _names(f"{base}/proc/irq"):
            folder = f"{base}/proc/irq/{name}"
            handlers = [one for one in _names(folder) if os.path.isdir(f"{folder}/{one}")]
            if name.isdigit() and handlers:
                found[int(name)] = ", ".join(handlers)
        return found
    heading, *lines = text.splitlines() or [""]
    columns = len(heading.split())
    return dict(one for line in lines for one in _line(line, columns))


def _line(line: str, columns: int) -> Iterable[tuple[int, str]]:
    """IRQ and action of one line of /proc/interrupts: number, counts, chip, number in the chip, action.

    The chip's name may hold blanks (`Hyper-V PCIe MSI`); two blanks stand before the action.
    """
    number, _colon, rest = line.partition(":")
    words = rest.split(None, columns)
    if not number.strip().isdigit() or len(words) <= columns:
        return []
    _head, blanks, action = words[-1].rpartition("  ")
    action = action.strip()
    if not blanks or not action or _NO_ACTION.match(action):
        return []
    return [(int(number), action)]


# devices


class Devices:
    """Which device an IRQ belongs to, from one walk over /sys."""

    def __init__(self, base: str) -> None:
        self._base = base
        #: PCI address -> its NICs (or its NVMe controller); other devices of a bus by their name
        self._by_place: dict[str, list[str]] = {}
        self._nics: list[str] = []
        for name in _names(f"{base}/sys/class/net"):
            device = f"{base}/sys/class/net/{name}/device"
            port = _text(f"{base}/sys/class/net/{name}/phys_port_name") or ""
            if os.path.isdir(device):
                self._nics.append(name)
                if not _REPRESENTOR.match(port):
                    self._place(device, name)
        for name in _names(f"{base}/sys/class/nvme"):
            self._place(f"{base}/sys/class/nvme/{name}/device", name)
        self._by_irq: dict[int, list[str]] = {}
        self._virtio = {
            name: self._pci_of(f"{base}/sys/bus/virtio/devices/{name}")
            for name in _names(f"{base}/sys/bus/virtio/devices")
        }
        self._walk_pci()

    def _place(self, device: str, name: str) -> None:
        """Notes a NIC or controller at its PCI function, and at the device itself (virtio2, vif-0)."""
        here = os.path.realpath(device)
        for place in dict.fromkeys((self._pci_of(device), os.path.basename(here))):
            if place and name not in self._by_place.setdefault(place, []):
                self._by_place[place].append(name)

    @staticmethod
    def _pci_of(path: str) -> str:
        """The nearest PCI address among a device and those above it, "" where there is none."""
        parts = os.path.realpath(path).split("/")
        return next((part for part in reversed(parts) if _PCI_ADDRESS.match(part)), "")

    def _walk_pci(self) -> None:
        folder = f"{self._base}/sys/bus/pci/devices"
        for address in _names(folder):
            vectors = [name for name in _names(f"{folder}/{address}/msi_irqs") if name.isdigit()]
            if not vectors and os.path.lexists(f"{folder}/{address}/driver"):
                vectors = [_text(f"{folder}/{address}/irq") or "0"]  # a line that others may share
            for vector in vectors:
                if vector.isdigit() and vector != "0":
                    self._by_irq.setdefault(int(vector), []).append(address)

    def of(self, irq: int, action: str) -> list[str]:
        """The devices of an IRQ, [""] where none is known."""
        addresses = self._by_irq.get(irq, [])
        if addresses:
            return [self._name(address) for address in addresses]
        first = action.partition(", ")[0]
        virtio = re.match(r"virtio\d+", first)
        if virtio and virtio.group(0) in self._virtio:
            return [self._name(self._virtio[virtio.group(0)] or virtio.group(0))]
        nvme = re.match(r"(nvme\d+)q\d+\Z", first)
        if nvme:
            return [nvme.group(1)]
        named = [nic for nic in self._nics if first == nic or first.startswith(f"{nic}-")]
        return [max(named, key=len, default="")]

    def _name(self, place: str) -> str:
        names = self._by_place.get(place, [])
        return names[0] if len(names) == 1 else place


# the plan


def spread(topology: Mapping[str, Any], plan: Mapping[str, Any], nics: Sequence[str] = ()) -> dict[str, str]:
    """DEVICE/QUEUE -> CPU list: what kind irq is asked for where `plan` (cpu_plan) divides the CPUs.

    Queue i of each NIC goes to the i-th of the CPUs for interrupts, round and round; its other IRQs, and
    those that are made later (`default`), to housekeeping. `nics`: those that matter; empty: all that are
    hardware. Nothing where nothing is divided. Raises Refusal for a NIC that this host does not have.
    """
    if not plan["partitioned"]:
        return {}
    hardware = [nic["name"] for nic in topology.get("net", []) if not nic.get("virtual")]
    queues: dict[str, set[str]] = {nic: set() for nic in nics or hardware}
    for one in topology.get("irqs", []):
        if one["device"] in queues and not one["managed"]:
            queues[one["device"]].add(one["queue"])
    for nic in nics:
        if nic not in hardware:
            raise Refusal(
                f"this host has no NIC {nic}",
                thing="interrupts",
                remedy=f"Its NICs are {', '.join(hardware) or 'none'}",
            )
    cpus = sorted(cpulist.parse(plan["irq"]["runs_on"]))
    housekeeping = str(plan["housekeeping"]["runs_on"])
    found = {"default": housekeeping}
    for nic, names in queues.items():
        for queue in sorted(names):
            cpu = housekeeping if queue == OTHER else str(cpus[int(queue) % len(cpus)])
            found[f"{nic}/{queue}"] = cpu
    return found
