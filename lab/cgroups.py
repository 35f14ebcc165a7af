"""A control group of its own for every container, in every hierarchy the machine has.

Without it the systemds of several containers would share one tree and break each other. Where systemd
runs this machine it owns the tree, so each container asks it for a delegated scope; where it does not
(a CI runner), the groups are made by hand, in v1 hierarchies and v2 alike.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lab.processes import run

MOUNTS = Path("/proc/self/mountinfo")


def name(slot: int, host: str) -> str:
    return f"hosttune{slot}-{host}"


def systemd_runs() -> bool:
    """Whether systemd is this machine's PID 1 (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def scope(group: str, memory: int) -> list[str]:
    """The words that start a command in a scope of its own; the scope goes when its processes have gone."""
    limits = [f"--property=MemoryMax={memory}", "--property=Delegate=yes"]
    return ["systemd-run", "--quiet", "--scope", "--collect", f"--unit={group}.scope", *limits, "--"]


def hierarchies(mountinfo: str) -> list[tuple[Path, str]]:
    """(mount point, file system type) of every control group hierarchy."""
    found = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind = right.split()[0]
        if kind in ("cgroup", "cgroup2"):
            found[Path(left.split()[4])] = kind
    return sorted(found.items())


def make(group: str, memory: int) -> list[Path]:
    """Make the group in every hierarchy; returns the folders a process must join."""
    made = []
    for root, kind in hierarchies(MOUNTS.read_text()):
        folder = root / group
        if kind == "cgroup2":
            _share_controllers(root)
        folder.mkdir(exist_ok=True)
        for inherited in ("cpuset.cpus", "cpuset.mems"):
            # A v1 cpuset starts empty and takes no process until it has CPUs and memory.
            if kind == "cgroup" and (folder / inherited).exists():
                (folder / inherited).write_text((root / inherited).read_text())
        for limit in ("memory.limit_in_bytes", "memory.max"):
            if (folder / limit).exists():
                (folder / limit).write_text(str(memory))
        if (folder / "devices.deny").exists():
            # No disk of the machine can be opened from inside, not even through a node made with mknod.
            (folder / "devices.deny").write_text("b *:* rwm")
        made.append(folder)
    return made


def _share_controllers(root: Path) -> None:
    """Let groups below a v2 root have limits; where v1 hierarchies hold these controllers, there is nothing
    to share."""
    available = (root / "cgroup.controllers").read_text().split()
    for controller in ("cpu", "memory", "pids"):
        if controller in available:
            with contextlib.suppress(OSError):  # processes live in the root itself: then there is no limit
                (root / "cgroup.subtree_control").write_text(f"+{controller}")


def show_limit(nspawn: int, memory: int) -> None:
    """Set the limit once more on the group the container takes for its root: in a v2 hierarchy nspawn puts
    the container one level below the group that is limited, where it reads `max`."""
    own = Path(f"/proc/{nspawn}/cgroup").read_text().splitlines()
    path = next((line[3:] for line in own if line.startswith("0::")), "")
    for root, kind in hierarchies(MOUNTS.read_text()):
        limit = root / Path(path).parent.relative_to("/") / "payload" / "memory.max"
        if kind == "cgroup2" and path.endswith("/supervisor") and limit.exists():
            limit.write_text(str(memory))


def remove(group: str) -> None:
    """Remove the group everywhere, killing what is left inside: whatever lives there is the host's."""
    if systemd_runs():
        run("systemctl", "kill", "--signal=KILL", f"{group}.scope", check=False)
        _until(lambda: not scope_loaded(group), 30)
    for root, _ in hierarchies(MOUNTS.read_text()):
        _until(partial(_remove_tree, root / group), 5)


def scope_loaded(group: str) -> bool:
    """Whether systemd still knows the scope: it lets go of one a moment after its last process."""
    return run("systemctl", "show", "--property=LoadState", "--value", f"{group}.scope").strip() == "loaded"


def _until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)


def _remove_tree(folder: Path) -> bool:
    for path, _, _ in os.walk(folder, topdown=False):
        _kill_members(Path(path))
        with contextlib.suppress(OSError):  # still busy: the dead take a moment to leave
            Path(path).rmdir()
    return not folder.exists()


def _kill_members(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def remains(group: str) -> list[str]:
    left = [str(root / group) for root, _ in hierarchies(MOUNTS.read_text()) if (root / group).is_dir()]
    return left + ([f"{group}.scope"] if systemd_runs() and scope_loaded(group) else [])
