#!/usr/bin/env python3
"""Whole commands against `ansible -m ping`, in turn within each round, on ten container hosts.

Prints each command's seconds (minimum, median, maximum) and its ratio to ping round by round, so that a drift
of the machine's own speed does not show as a difference.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
INVENTORY = ROOT / ".cache/bench/hosts.yml"
BENCH = ROOT / "tests/bench"
HOSTS = 10


PLAYBOOK = [".venv/bin/ansible-playbook", "-i", str(INVENTORY), "--forks", str(HOSTS)]
PING = [".venv/bin/ansible", "-i", str(INVENTORY), "--forks", str(HOSTS), "trading", "-m", "ping"]
ONE_CALL = [*PLAYBOOK, str(BENCH / "one_call.yml")]
LOOP = [*PLAYBOOK, str(BENCH / "loop.yml")]

ONE_WAVE = '{"rollout_waves": ["100%"]}'

#: Name -> command, on hosts that are converged, where nothing is left to do.
CONVERGED = {
    "ping": PING,
    "drift.yml (goal: at most 1.5)": [*PLAYBOOK, "playbooks/drift.yml"],
    "tune.yml, nothing to do (goal: at most 4)": [*PLAYBOOK, "playbooks/tune.yml"],
    "tune.yml, all hosts in one wave": [*PLAYBOOK, "playbooks/tune.yml", "-e", ONE_WAVE],
}
#: The same 29 sysctls, on hosts where they stand already.
SYSCTLS = {
    "ping": PING,
    "29 sysctls, one host_settings call": ONE_CALL,
    "29 sysctls, loop of ansible.posix.sysctl": LOOP,
}


def timed(command: list[str]) -> float:
    began = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    seconds = time.monotonic() - began
    if ended.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{ended.stdout[-4000:]}\n{ended.stderr[-2000:]}")
    return seconds


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--keep", action="store_true", help="leave the hosts running")
    asked = options.parse_args()
    os.chdir(ROOT)
    lab = [sys.executable, "-m", "lab"]
    where = ["--prefix", "bench", "--inventory", str(INVENTORY)]
    up = [*lab, "up", "--driver", "container", "--baked", "--count", str(HOSTS), *where]
    subprocess.run(up, check=True)
    link = INVENTORY.parent / "group_vars"
    if not link.is_symlink():
        link.symlink_to(ROOT / "inventories/lab/group_vars")
    try:
        print(f"converging {HOSTS} hosts once", flush=True)
        timed([*PLAYBOOK, "playbooks/site.yml", "-e", ONE_WAVE])
        report(rounds(CONVERGED, asked.rounds))
        timed([*PLAYBOOK, "playbooks/undo.yml"])
        timed(ONE_CALL)
        seconds = rounds(SYSCTLS, asked.rounds)
        report(seconds)
        _ping, one, loop = seconds.values()
        pairs = [slow / fast for slow, fast in zip(loop, one, strict=True)]
        spread = f"{min(pairs):.1f} / {statistics.median(pairs):.1f} / {max(pairs):.1f}"
        print(f"the loop takes {spread} times as long as the one call (goal: at least 12)")
    finally:
        if not asked.keep:
            subprocess.run([*lab, "down", *where], check=True)


def rounds(commands: dict[str, list[str]], number: int) -> dict[str, list[float]]:
    """The seconds of each command; the commands take turns, so that each round compares like with like."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for current in range(number):
        for name, command in commands.items():
            seconds[name].append(timed(command))
        shown = ", ".join(f"{name.partition(' (')[0]} {found[-1]:.1f} s" for name, found in seconds.items())
        print(f"round {current + 1} of {number}: {shown}", flush=True)
    return seconds


def report(seconds: dict[str, list[float]]) -> None:
    print(f"\n{'':42} {'seconds min/median/max':>24} {'ratio to ping':>22}")
    for name, found in seconds.items():
        ratios = [one / ping for one, ping in zip(found, seconds["ping"], strict=True)]
        spread = f"{min(found):.2f} / {statistics.median(found):.2f} / {max(found):.2f}"
        ratio = f"{min(ratios):.2f} / {statistics.median(ratios):.2f} / {max(ratios):.2f}"
        print(f"{name:42} {spread:>24} {ratio:>22}")


if __name__ == "__main__":
    main()
