"""A machine with interrupts in a folder: as its kernel lists them, and as it takes or refuses their CPUs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from fake_host import FakeHost
from hosttune import cpulist
from hosttune.system import Ran

UNIT = "hosttune-link.service"


def put(root: Path, path: str, text: str = "", mode: int = 0o644) -> None:
    real = root / path.lstrip("/")
    real.parent.mkdir(parents=True, exist_ok=True)
    real.write_text(text)
    real.chmod(mode)


def link(root: Path, path: str, target: str) -> None:
    real = root / path.lstrip("/")
    real.parent.mkdir(parents=True, exist_ok=True)
    (root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
    real.symlink_to(root / target.lstrip("/"))


def pci(root: Path, address: str, vectors=(), line: str = "0", driver: bool = True) -> str:
    device = f"/sys/devices/pci0000:00/{address}"
    link(root, f"/sys/bus/pci/devices/{address}", device)
    put(root, f"{device}/irq", f"{line}\n")
    for vector in vectors:
        put(root, f"{device}/msi_irqs/{vector}", "msix\n")
    if driver:
        link(root, f"{device}/driver", "/sys/bus/pci/drivers/some")
    return device


def machine(root: Path) -> Path:
    """A Debian 12 machine: virtio-net, e1000e, NVMe, a line that two devices share, ports of a switch."""
    lines = [
        "            CPU0       CPU1       CPU2       CPU3       ",
        "   0:         10          0          0          0   IO-APIC   2-edge      timer",
        "   4:          0          0        900          0   IO-APIC   4-edge      ttyS0",
        "  11:          0          7          0          0   IO-APIC  11-fasteoi   ehci_hcd, uhci_hcd",
        "  24:          0          0          0          0   PCI-MSI 32768-edge      virtio2-config",
        "  25:        311          0          0          0   PCI-MSI 32769-edge      virtio2-input.0",
        "  26:          0        205          0          0   PCI-MSI 32770-edge      virtio2-output.0",
        "  27:          0          0         12          0   PCI-MSI 32771-edge      virtio2-input.1",
        "  28:          0          0          0         13   PCI-MSI 32772-edge      virtio2-output.1",
        "  29:          1          0          0          0   PCI-MSI 49152-edge      ens4-rx-0",
        "  30:          0          1          0          0   PCI-MSI 49153-edge      ens4-tx-0",
        "  31:          0          0          2          0   PCI-MSI 49154-edge      ens4",
        "  32:          0         21          0          0   PCI-MSI 65536-edge      nvme0q0",
        "  33:         50          0          0          0   PCI-MSI 65537-edge      nvme0q1",
        "  34:          0         60          0          0   PCI-MSI 65538-edge      nvme0q2",
        "  35:          0          0          0          5  Hyper-V MSI 4-edge   mlx5_comp0@pci:0000:00:07.0",
        "  36:          0          0          0          0  Hyper-V MSI 5-edge  mlx5_async0@pci:0000:00:07.0",
        "  37:          8          0          0          0   PCI-MSI 131072-edge      enp9s0",
        "  38:          1          2          3          4   IO-APIC  38-fasteoi   ",
        " NMI:          0          0          0          0   Non-maskable interrupts",
        " ERR:          0",
    ]
    put(root, "/proc/interrupts", "\n".join(lines) + "\n")
    for number in (*range(0, 5, 4), 11, *range(24, 39)):
        put(root, f"/proc/irq/{number}/smp_affinity_list", "0-3\n")
        put(root, f"/proc/irq/{number}/effective_affinity_list", f"{number % 4}\n")
    put(root, "/proc/irq/default_smp_affinity", "f\n")
    device = pci(root, "0000:00:03.0", range(24, 29))
    link(root, "/sys/bus/virtio/devices/virtio2", f"{device}/virtio2")
    link(root, "/sys/class/net/enp0s3", f"{device}/virtio2/net/enp0s3")
    link(root, f"{device}/virtio2/net/enp0s3/device", f"{device}/virtio2")
    for nic, address, vectors in (
        ("ens4", "0000:00:04.0", (29, 30, 31)),
        ("enp7s0np0", "0000:00:07.0", (35, 36)),
        ("enp7s0pf0vf1", "0000:00:07.0", ()),
        ("enp9s0", "0000:00:09.0", (37,)),
    ):
        device = f"/sys/devices/pci0000:00/{address}" if not vectors else pci(root, address, vectors)
        link(root, f"/sys/class/net/{nic}", f"{device}/net/{nic}")
        link(root, f"{device}/net/{nic}/device", device)
        put(root, f"{device}/net/{nic}/phys_port_name", "pf0vf1\n" if "vf" in nic else "p0\n")
    device = pci(root, "0000:00:05.0", (32, 33, 34))
    link(root, "/sys/class/nvme/nvme0", f"{device}/nvme/nvme0")
    link(root, f"{device}/nvme/nvme0/device", device)
    for address in ("0000:00:1a.0", "0000:00:1d.0"):
        pci(root, address, line="11")
    pci(root, "0000:00:1e.0", line="11", driver=False)
    put(root, "/sys/class/net/bonding_masters", "\n")
    (root / "sys/class/net/veth1").mkdir()
    return root


class IrqHost(FakeHost):
    """The machine above with CPUs 0-3, all online.

    `played["enabled"]` is what `systemctl is-enabled` says of the unit that keeps IRQs, `played["refuses"]`
    are managed IRQs of which neither name nor file tells that.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        machine(root)
        for which, cpus in (("online", "0-3"), ("possible", "0-7"), ("isolated", "")):
            self.put(f"/sys/devices/system/cpu/{which}", f"{cpus}\n")
        for nic in ("enp0s3", "ens4", "enp7s0np0", "enp9s0"):
            self.put(f"/sys/class/net/{nic}/flags", "0x1003\n")
        self.put("/proc/stat", "cpu 1 2 3\nbtime 1000\n")
        self.played.update(enabled="enabled", refuses=())

    def write_value(self, path: str, value: str) -> None:
        number = path.split("/")[3] if path.startswith("/proc/irq/") else ""
        if number.isdigit():
            if not os.stat(self.path(path)).st_mode & 0o200 or int(number) in self.played["refuses"]:
                self.live_writes.append(path)
                raise OSError(errno.EIO, "Input/output error", path)
            cpus = cpulist.parse(value)
            if not cpus & cpulist.parse(self.text("/sys/devices/system/cpu/online")):
                raise OSError(errno.EINVAL, "Invalid argument", path)
            self.put(f"/proc/irq/{number}/effective_affinity_list", f"{min(cpus)}\n")
        super().write_value(path, value)

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        if argv[:2] == ("systemctl", "is-enabled"):
            state = self.played["enabled"]
            return Ran(0 if state == "enabled" else 1, f"{state}\n" if state else "", "")
        return super().run(*argv)

    def cpus(self, irq: int) -> str:
        return self.text(f"/proc/irq/{irq}/smp_affinity_list").strip()
