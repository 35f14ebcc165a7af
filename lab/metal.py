"""Metal hosts: QEMU virtual machines with a kernel, disks, NUMA nodes and a boot loader of their own.

The machine is made so that every role has something real to act on: 8 CPUs as 2 sockets with SMT in two
NUMA nodes, an NVMe, an SSD and a rotating disk beside the virtio root, an e1000e, a multi-queue
virtio-net, a watchdog. Kernel command lines, reboots and power cuts are real.
"""

from __future__ import annotations

import signal
import tarfile
from io import BytesIO
from pathlib import Path

from lab import kvm, network, ssh
from lab.disks import metal_image
from lab.errors import LabError
from lab.processes import Recorded, run, spawn
from lab.state import FILES, Host, Lab

MACHINE = "q35,sata=off,smbus=off"  # without the ports nothing is plugged into: they cost boot time
NODE_MEMORY = 1024  # MiB in each of the two NUMA nodes
DATA_DISK = 2 * 2**30
DATA_DISKS = ("nvme", "ssd", "hdd")
QUEUES = 4


def prepare(lab: Lab) -> None:
    """Build the image, and settle what runs the guests."""
    metal_image(lab.baked)
    lab.accel = "kvm" if kvm.works()[0] else "tcg"


def start(lab: Lab, host: Host) -> None:
    folder = lab.host_folder(host)
    folder.mkdir(parents=True)
    backing = ["-b", str(metal_image(lab.baked)), "-F", "qcow2"]
    run("qemu-img", "create", "-q", "-f", "qcow2", *backing, folder / "root.qcow2")
    for disk in DATA_DISKS:
        with (folder / f"{disk}.raw").open("wb") as file:
            file.truncate(DATA_DISK)  # sparse: takes no space until written
    _write_identity(lab, host)
    if Path("/dev/net/tun").exists():
        network.make_tap(lab.slot, lab.hosts.index(host))
    boot(lab, host)


def boot(lab: Lab, host: Host) -> None:
    """Switch the machine on."""
    folder = lab.host_folder(host)
    (folder / "host.pid").unlink(missing_ok=True)  # of a boot that ended
    tap = network.tap(lab.slot, lab.hosts.index(host))
    words = machine(host, lab.accel, tap if Path("/sys/class/net", tap).exists() else "")
    # In its own folder, so that every path is short: a UNIX socket's name may have 107 characters.
    spawn([FILES / "record.sh", "host.pid", *words], folder / "qemu.log", cwd=folder)


def machine(host: Host, accel: str, tap: str) -> list[str]:
    """The QEMU command line, with paths relative to the host's folder."""
    words = ["qemu-system-x86_64", "-name", host.name, "-machine", MACHINE, *kvm.accel(accel)]
    # A graphics card nobody looks at: GRUB hangs without one.
    words += ["-nodefaults", "-vga", "std", "-display", "none", "-m", str(2 * NODE_MEMORY)]
    words += ["-smp", "8,sockets=2,cores=2,threads=2"]
    for node in (0, 1):
        words += ["-object", f"memory-backend-ram,id=m{node},size={NODE_MEMORY}M"]
        words += ["-numa", f"node,nodeid={node},cpus={4 * node}-{4 * node + 3},memdev=m{node}"]
    words += ["-numa", "dist,src=0,dst=1,val=21"]
    words += ["-chardev", "file,id=console,path=console.log,append=on", "-serial", "chardev:console"]
    words += ["-qmp", "unix:qmp.sock,server=on,wait=off"]
    words += ["-fw_cfg", "name=opt/hosttune/identity,file=identity.tar"]
    words += ["-device", "virtio-rng-pci", "-device", "i6300esb", "-action", "watchdog=reset"]
    words += _disks() + _networks(host, tap)
    return words


def _disks() -> list[str]:
    words = ["-drive", "file=root.qcow2,if=none,id=root"]
    words += ["-device", "virtio-blk-pci,drive=root,serial=root,bootindex=0"]
    for disk in DATA_DISKS:
        words += ["-drive", f"file={disk}.raw,format=raw,if=none,id={disk}"]
    words += ["-device", "nvme,drive=nvme,serial=nvme,max_ioqpairs=4", "-device", "virtio-scsi-pci,id=scsi"]
    words += ["-device", "scsi-hd,bus=scsi.0,drive=ssd,serial=ssd,rotation_rate=1"]
    words += ["-device", "scsi-hd,bus=scsi.0,drive=hdd,serial=hdd,rotation_rate=7200"]
    return words


def _networks(host: Host, tap: str) -> list[str]:
    """SSH comes in over `management`; the other two are there to be tuned. None leads out (restrict=on)."""
    mac = "52:54:00:4c:41:0"  # each machine's networks are its own, so all machines can have the same
    forward = f"hostfwd=tcp:{host.address}:{host.port}-10.0.2.15:22"
    words = ["-netdev", f"user,id=management,restrict=on,net=10.0.2.0/24,{forward}"]
    words += ["-device", f"virtio-net-pci,netdev=management,mac={mac}1"]
    words += ["-netdev", "user,id=second,restrict=on,net=10.0.3.0/24"]
    words += ["-device", f"e1000e,netdev=second,mac={mac}2"]
    if tap:
        words += ["-netdev", f"tap,id=third,ifname={tap},script=no,downscript=no,queues={QUEUES}"]
        words += ["-device", f"virtio-net-pci,netdev=third,mac={mac}3,mq=on,vectors={2 * QUEUES + 2}"]
    return words


def _write_identity(lab: Lab, host: Host) -> None:
    """What is this host's alone, as an archive the guest unpacks at its first boot (lab-identity.service)."""
    folder = lab.host_folder(host)
    public = ssh.make_key(folder / "keys" / "ssh_host_ed25519_key", f"root@{host.name}")
    with ssh.known_hosts(lab).open("a") as known:
        known.write(ssh.known_hosts_line(host, public))
    files = {
        "etc/hostname": (0o644, host.name + "\n"),
        "etc/hosts": (0o644, f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n::1 localhost ip6-localhost\n"),
        "root/.ssh/authorized_keys": (0o600, ssh.client_key().with_suffix(".pub").read_text()),
        "etc/ssh/ssh_host_ed25519_key": (0o600, (folder / "keys" / "ssh_host_ed25519_key").read_text()),
        "etc/ssh/ssh_host_ed25519_key.pub": (0o644, public),
    }
    with tarfile.open(folder / "identity.tar", "w") as archive:
        for name, (mode, text) in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = mode, len(text.encode())
            archive.addfile(entry, BytesIO(text.encode()))
    (folder / "identity.tar").chmod(0o600)


def settled(lab: Lab, host: Host) -> None:
    """Nothing is left to do from outside."""


def alive(lab: Lab, host: Host) -> bool:
    return Recorded(lab.host_folder(host) / "host.pid").alive()


def ended(lab: Lab, host: Host) -> bool:
    return Recorded(lab.host_folder(host) / "host.pid").ended()


def stop(lab: Lab, host: Host, *, power_cut: bool = False) -> None:
    """Pull the plug; a throw-away machine needs no shutdown."""
    qemu = Recorded(lab.host_folder(host) / "host.pid")
    qemu.signal(signal.SIGKILL)
    if not qemu.wait(10):
        raise LabError(f"{host.name}: process {qemu.pid()} cannot be killed")
