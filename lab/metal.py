"""Metal hosts: QEMU virtual machines with their own kernel, disks, NUMA nodes and boot loader."""

from __future__ import annotations

from lab.errors import LabError
from lab.state import Host, Lab


def prepare(lab: Lab) -> None:
    raise LabError("metal is being built")


def start(lab: Lab, host: Host) -> None:
    raise LabError("metal is being built")


def boot(lab: Lab, host: Host) -> None:
    raise LabError("metal is being built")


def alive(lab: Lab, host: Host) -> bool:
    return False


def stop(lab: Lab, host: Host, *, power_cut: bool = False) -> None:
    pass
