"""What the lab needs from its machine: architecture, root, disk space and a few Debian packages."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lab.errors import LabError
from lab.processes import run, say
from lab.state import lab_dir

# command -> the Debian package that brings it
COMMON = {
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "dpkg-deb": "dpkg",
}
CONTAINER = {**COMMON, "systemd-nspawn": "systemd-container"}
METAL = {
    **COMMON,
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "sfdisk": "fdisk",
}
PROBE = {"qemu-system-x86_64": "qemu-system-x86"}


def require_architecture() -> None:
    machine = platform.machine()
    if machine != "x86_64":
        raise LabError(
            f"the lab's images are for x86_64 and this machine is {machine}: use real hosts instead"
        )


def require_space(folder: Path, gibibytes: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 2**30
    if free < gibibytes:
        raise LabError(
            f"{folder} has {free:.1f} GiB free and the image needs {gibibytes:g}: make room, "
            "or set HOSTTUNE_LAB_DIR to a folder on a larger disk"
        )


def become_root(arguments: Sequence[str]) -> None:
    """Start this command again through sudo unless it is root already. Does not return when it does."""
    if os.geteuid() == 0:
        return
    if not shutil.which("sudo"):
        raise LabError("the lab needs root for mounts and namespaces, and there is no sudo: run it as root")
    kept = [f"HOSTTUNE_LAB_DIR={lab_dir()}", f"LAB={os.environ.get('LAB', '')}"]  # sudo drops the environment
    _exec("sudo", "env", *kept, sys.executable, "-m", "lab", *arguments)


def _exec(*words: str) -> NoReturn:
    sys.stdout.flush()
    os.execvp(words[0], words)  # noqa: S606 - the point is to become that program, without a shell


def missing(tools: dict[str, str]) -> list[str]:
    """The packages that bring the tools which are not there."""
    # Not every user's PATH has the sbin folders, and root's through sudo may differ too.
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return sorted({package for tool, package in tools.items() if not shutil.which(tool, path=path)})


def ensure(tools: dict[str, str]) -> None:
    """Install what is missing with apt, or say in one sentence why that is impossible."""
    packages = missing(tools)
    if not packages:
        return
    names = " ".join(packages)
    if not shutil.which("apt-get"):
        raise LabError(f"this machine lacks {names}, and has no apt to install them: install them by hand")
    say(f"installing {names}")
    install = ["apt-get", "--yes", "--quiet", "--no-install-recommends", "install", *packages]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for attempt in ("as is", "after apt-get update"):
        if attempt != "as is":
            run("apt-get", "--quiet", "update", check=False)
        done = subprocess.run(install, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
    still = missing(tools)
    if still:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LabError(f"`apt-get install {' '.join(still)}` failed ({last}): install them by hand")
