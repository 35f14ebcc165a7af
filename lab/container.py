"""Container hosts: systemd-nspawn with a real systemd, on a throw-away overlay, with one kernel for all.

Only /proc/sys/net is writable inside (SYSTEMD_NSPAWN_API_VFS_WRITABLE=network): vm.*, fs.*, kernel.*,
huge pages and disk schedulers are the machine's own and stay what they are.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

from lab import cgroups, network, ssh
from lab.errors import LabError
from lab.images import baked_layer, container_image
from lab.processes import Recorded, run, spawn
from lab.state import FILES, Host, Lab, write_atomically

MEMORY = 1536 * 2**20
# The upper layer lives in memory: fast, gone with the host, and independent of the cache's file system.
LAYER_SIZE = "3g"

LIMITS = (
    "a container shares this machine's kernel, so vm.*, fs.*, kernel.*, disks, CPUs and boot settings answer "
    "`unsupported` there; LAB=metal emulates a machine of its own (slower without KVM)"
)


def prepare(lab: Lab) -> None:
    """Build what a start needs, before anything is made that would have to be cleaned."""
    container_image()
    if lab.baked:
        baked_layer()


def start(lab: Lab, host: Host) -> None:
    """Make a fresh host and boot it. Its name and address are on record already."""
    index = lab.hosts.index(host)
    folder = lab.host_folder(host)
    folder.mkdir(parents=True)
    root = _mount_root(lab, folder)
    _give_identity(root, lab, host)
    network.make_namespace(folder / "net", lab.slot, index, host)
    boot(lab, host)


def boot(lab: Lab, host: Host) -> None:
    """Start the supervisor on what `start` made; also after a power cut."""
    folder = lab.host_folder(host)
    for old in ("stop", "supervisor.pid", "host.pid"):
        (folder / old).unlink(missing_ok=True)
    name = cgroups.name(lab.slot, host.name)
    groups = [] if cgroups.systemd_runs() else cgroups.make(name, MEMORY)
    write_atomically(folder / "cgroups", "".join(f"{group}\n" for group in groups))
    command: list[str | Path] = []
    if not groups:
        write_atomically(folder / "scope", f"{name}.scope\n")
        command += cgroups.scope(name, MEMORY)
    command += [
        *("env", "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network", "SYSTEMD_NSPAWN_LOCK=0"),
        *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--directory={folder / 'root'}"),
        *(f"--machine={host.name}", f"--network-namespace-path={folder / 'net'}", "--resolv-conf=off"),
        *("--timezone=off", "--link-journal=no", "--console=pipe", "--kill-signal=SIGRTMIN+3", "--boot"),
    ]
    spawn([FILES / "supervise.sh", folder, *command], folder / "console.log")


def _mount_root(lab: Lab, folder: Path) -> Path:
    layer, root = folder / "layer", folder / "root"
    layer.mkdir()
    root.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"mode=755,size={LAYER_SIZE}", f"hosttune-{folder.name}", layer)
    (layer / "upper").mkdir()
    (layer / "work").mkdir()
    lower = str(container_image())
    if lab.baked:
        lower = f"{baked_layer()}:{lower}"
    stack = f"lowerdir={lower},upperdir={layer}/upper,workdir={layer}/work,volatile"
    run("mount", "-t", "overlay", "-o", stack, f"hosttune-{folder.name}", root)
    return root


def _give_identity(root: Path, lab: Lab, host: Host) -> None:
    private = root / "etc/ssh/ssh_host_ed25519_key"
    public = ssh.make_key(private, f"root@{host.name}")
    with ssh.known_hosts(lab).open("a") as known:
        known.write(ssh.known_hosts_line(host, public))
    (root / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
    (root / "etc/hostname").write_text(host.name + "\n")
    (root / "etc/hosts").write_text(hosts_file(lab, host))
    authorized = root / "root/.ssh/authorized_keys"
    authorized.write_text(ssh.client_key().with_suffix(".pub").read_text())
    authorized.chmod(0o600)


def hosts_file(lab: Lab, host: Host) -> str:
    peers = [f"{one.address} {one.name}\n" for one in lab.hosts if one is not host]
    return f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n::1 localhost ip6-localhost\n" + "".join(peers)


def settled(lab: Lab, host: Host) -> None:
    """What can only be done once the guest runs."""
    pid = Recorded(lab.host_folder(host) / "host.pid").pid()
    if pid is not None:
        cgroups.show_limit(pid, MEMORY)


def alive(lab: Lab, host: Host) -> bool:
    return Recorded(lab.host_folder(host) / "host.pid").alive()


def ended(lab: Lab, host: Host) -> bool:
    return Recorded(lab.host_folder(host) / "supervisor.pid").ended()


def stop(lab: Lab, host: Host, *, power_cut: bool = False) -> None:
    """End the host's processes; its disk and network stay."""
    folder = lab.host_folder(host)
    if not folder.exists():
        return
    (folder / "stop").touch()
    supervisor, machine = Recorded(folder / "supervisor.pid"), Recorded(folder / "host.pid")
    if not power_cut:
        machine.signal(signal.SIGTERM)  # nspawn passes it on as "halt"
        machine.wait(10)
    machine.signal(signal.SIGKILL)
    if not machine.wait(5):
        raise LabError(f"{host.name}: process {machine.pid()} cannot be killed")
    if not supervisor.wait(2):
        supervisor.signal(signal.SIGKILL)
    # A killed nspawn leaves its guest running; that dies with its control groups.
    cgroups.remove(cgroups.name(lab.slot, host.name))


def unmount_below(folder: Path) -> None:
    """Unmount everything a lab mounted (overlays, tmpfs, namespace files), the newest first."""
    for _ in range(20):
        left = mounts_below(folder, Path("/proc/self/mountinfo").read_text())
        if not left:
            return
        for path in reversed(left):
            run("umount", path, check=False)
        time.sleep(0.1)
    for path in reversed(mounts_below(folder, Path("/proc/self/mountinfo").read_text())):
        # Somebody's shell stands in it: detach it now, the kernel frees it when they leave.
        run("umount", "--lazy", path)


def mounts_below(folder: Path, mountinfo: str) -> list[str]:
    inside = os.fspath(folder.resolve()) + "/"
    points = (line.split()[4].encode().decode("unicode_escape") for line in mountinfo.splitlines())
    return [point for point in points if point.startswith(inside)]
