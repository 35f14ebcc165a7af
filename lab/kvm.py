"""Whether KVM really works here, found out in seconds. A readable /dev/kvm proves nothing: on some
machines (nested virtualisation) it opens, and guests then hang or crawl."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from lab import tools
from lab.state import boot_id, lab_dir, write_atomically

DEVICE = Path("/dev/kvm")
SECONDS = 4.0
# Real-mode code: write K to the serial port, write 0x10 to the isa-debug-exit device, halt.
BOOT_SECTOR = bytes.fromhex("b04b baf803 ee  b010 baf400 ee  f4 ebfd")
EXIT_STATUS = 0x10 << 1 | 1


def accel(name: str) -> list[str]:
    """QEMU's words for kvm or tcg, with a processor model that shows SMT siblings to the guest."""
    if name == "kvm":
        amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
        return ["-accel", "kvm", "-cpu", "host,topoext=on" if amd else "host"]
    # QEMU emulates the topology leaves of Intel processors, and not AMD's topology extension.
    return ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,vendor=GenuineIntel"]


def _verdict() -> Path:
    return lab_dir() / "kvm.json"


def works() -> tuple[bool, str]:
    """(does it work, why not), remembered until this machine restarts."""
    try:
        known = json.loads(_verdict().read_text())
        if known["boot"] == boot_id():
            return bool(known["works"]), str(known["reason"])
    except (OSError, ValueError, KeyError):
        pass
    reason = _probe()
    remember(reason)
    return not reason, reason


def remember(reason: str) -> None:
    """Keep a verdict for this boot; an empty reason means that it works."""
    write_atomically(_verdict(), json.dumps({"boot": boot_id(), "works": not reason, "reason": reason}))


def _probe() -> str:
    """Why KVM does not work; empty when a guest came up."""
    if not DEVICE.exists():
        return f"there is no {DEVICE}"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"{DEVICE} may not be opened"
    tools.ensure(tools.PROBE)
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder, "boot-sector")
        disk.write_bytes(BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa")
        drive = ["-drive", f"file={disk},format=raw,if=ide", "-boot", "c", "-device", "isa-debug-exit"]
        problem = _run_guest(["-machine", "pc", *drive], EXIT_STATUS)
    if problem:
        return problem
    for kernel in sorted(Path("/boot").glob("vmlinuz-*"), reverse=True):
        # A kernel without a root file system panics, and panic=-1 then ends the guest: it came up.
        panic = ["-kernel", str(kernel), "-append", "console=ttyS0 panic=-1", "-no-reboot"]
        return _run_guest(["-machine", "q35", *panic], 0)
    return ""


def _run_guest(words: list[str], expected: int) -> str:
    common = [*accel("kvm"), "-m", "256", "-display", "none", "-nodefaults"]
    started = time.monotonic()
    try:
        words = ["qemu-system-x86_64", *common, *words]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"a guest did not come up within {SECONDS:.0f} s"
    if done.returncode != expected:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        return f"a guest ended with status {done.returncode} after {time.monotonic() - started:.1f} s: {last}"
    return ""
