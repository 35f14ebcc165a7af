#!/usr/bin/env python3
"""A CPU plan of a large machine; then whole commands against `ansible -m ping`, in turn within each round, on
ten container hosts.

Prints each command's seconds (minimum, median, maximum) and its ratio to ping round by round, so that a drift
of the machine's own speed does not show as a difference. The ten hosts share this machine's CPUs: what a host
computes weighs more here than in a fleet.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import many
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "module_utils"))
from hosttune import cpuplan  # noqa: E402 - after the path is set

INVENTORY = ROOT / ".cache/bench/hosts.yml"
BENCH = ROOT / "tests/bench"
HOSTS = 10
#: The largest machine of tests/topologies.
LARGE = ROOT / "tests/topologies/epyc-512-nps4.json"


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
#: pyinfra's own environment, made when the bench first runs.
PYINFRA_VENV = ROOT / ".cache/pyinfra"
PYINFRA = [
    str(PYINFRA_VENV / "bin/pyinfra"),
    *("--dry", "--yes", "--parallel", str(HOSTS)),
    str(INVENTORY.with_name("pyinfra_hosts.py")),
    str(BENCH / "pyinfra_sysctls.py"),
]
#: The same 29 sysctls, on hosts where they stand already.
SYSCTLS = {
    "ping": PING,
    "29 sysctls, one host_settings call": ONE_CALL,
    "29 sysctls, pyinfra's dry run": PYINFRA,
    "29 sysctls, loop of ansible.posix.sysctl": LOOP,
}
MANY = json.dumps({"owners": {"bench": many.settings()}})
AD_HOC = [".venv/bin/ansible", "-i", str(INVENTORY), "--forks", str(HOSTS), "--become", "trading"]
#: Settings of all kinds that need no server, where they stand already.
OF_ALL_KINDS = {
    "ping": PING,
    "250 settings, one host_settings call (1.25)": [*AD_HOC, "-m", "host_settings", "-a", MANY],
}
#: On a host: hosttune-drift with 250 kernel settings against an interpreter that does nothing.
ON_HOST = """
import os, statistics, subprocess, sys, time
def seconds(*argv):
    began = time.perf_counter()
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=False)
    return time.perf_counter() - began
pairs = []
for turn in range(25):
    bare = seconds("/usr/bin/python3", "-I", "-S", "-c", "pass")
    pairs.append((bare, seconds("/usr/local/bin/hosttune-drift", "--no-write")))
pairs = pairs[3:]
ratios = sorted(check / bare for bare, check in pairs)
print(f"bare {1000 * min(one for one, _ in pairs):.1f} ms, hosttune-drift "
      f"{1000 * min(other for _, other in pairs):.1f} ms at best; ratio "
      f"{ratios[0]:.1f} / {statistics.median(ratios):.1f} / {ratios[-1]:.1f}")
"""


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
    plan_large()
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
        pyinfra()
        seconds = rounds(SYSCTLS, asked.rounds)
        report(seconds)
        _ping, one, dry, loop = seconds.values()
        print(f"the loop takes {spread(loop, one)} times as long as the one call (goal: at least 12)")
        print(f"pyinfra's dry run takes {spread(dry, one)} times as long as the one call (goal: not below 1)")
        timed(OF_ALL_KINDS["250 settings, one host_settings call (1.25)"])
        report(rounds(OF_ALL_KINDS, asked.rounds))
        on_host(lab)
    finally:
        if not asked.keep:
            subprocess.run([*lab, "down", *where], check=True)


def plan_large() -> None:
    """A CPU plan of a large machine, best of five for each policy."""
    topology = json.loads(LARGE.read_text())
    for policy in cpuplan.POLICIES:
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            plan = cpuplan.plan(topology, {"policy": policy})
            seconds.append(time.perf_counter() - began)
        assert plan["partitioned"], plan["notes"]
        count = len(topology["cpus"])
        print(
            f"CPU plan of {count} CPUs, {policy}: {min(seconds):.3f} s, best of 5 (goal: under 1)", flush=True
        )


def spread(slow: list[float], fast: list[float]) -> str:
    """Minimum, median and maximum of the ratio, round by round."""
    pairs = [one / other for one, other in zip(slow, fast, strict=True)]
    return f"{min(pairs):.2f} / {statistics.median(pairs):.2f} / {max(pairs):.2f}"


def pyinfra() -> None:
    """Its environment, its inventory (it reads Python), and the sysctls set once."""
    lock = ROOT / "requirements/bench.txt"
    if not (PYINFRA_VENV / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PYINFRA_VENV)], check=True)
        pip = [str(PYINFRA_VENV / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "-r", str(lock)], check=True, stderr=subprocess.DEVNULL)
        (PYINFRA_VENV / ".installed").touch()
    hosts = yaml.safe_load(INVENTORY.read_text())["trading"]["hosts"]
    known = (
        next(iter(hosts.values()))["ansible_ssh_common_args"].partition("UserKnownHostsFile=")[2].split()[0]
    )
    lines = [
        (about["ansible_host"], {"ssh_port": about["ansible_port"], "ssh_user": "root",
         "ssh_key": about["ansible_ssh_private_key_file"], "ssh_known_hosts_file": known})
        for about in hosts.values()
    ]  # fmt: skip
    Path(PYINFRA[-2]).write_text(f"trading = {lines!r}\n")


def on_host(lab: list[str]) -> None:
    """hosttune-drift on one host with 250 kernel parameters of its own network."""
    host = next(iter(yaml.safe_load(INVENTORY.read_text())["trading"]["hosts"]))
    listed = subprocess.run(
        [*lab, "exec", host, "--", "sysctl", "-a", "--pattern", "^net.ipv4."],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    keys = {}
    for line in listed.splitlines():
        name, _, value = line.partition(" = ")
        if value.isdigit() and ".neigh." not in name and "mc_forwarding" not in name:
            keys[name] = value
    assert len(keys) >= 250, f"{host} has {len(keys)} parameters"
    asked = json.dumps({"owners": {"bench": {"sysctl": dict(list(keys.items())[:250])}}})
    limited = [*AD_HOC, "--limit", host, "-m", "host_settings", "-a"]
    timed([*limited, asked])
    print("hosttune-drift on a host, 250 kernel settings (goal: at most 8): ", end="", flush=True)
    subprocess.run([*lab, "exec", host, "--", "python3", "-c", shlex.quote(ON_HOST)], check=True)


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
    print(f"\n{'':44} {'seconds min/median/max':>24} {'ratio to ping':>22}")
    for name, found in seconds.items():
        ratios = [one / ping for one, ping in zip(found, seconds["ping"], strict=True)]
        times = f"{min(found):.2f} / {statistics.median(found):.2f} / {max(found):.2f}"
        ratio = f"{min(ratios):.2f} / {statistics.median(ratios):.2f} / {max(ratios):.2f}"
        print(f"{name:44} {times:>24} {ratio:>22}")


if __name__ == "__main__":
    main()
