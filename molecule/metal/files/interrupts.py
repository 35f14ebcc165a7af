#!/usr/bin/python3
"""Asks the kernel itself where interrupts fire; runs on the host, without the engine.

interrupts.py wait PLAN SECONDS     until every interrupt has its CPUs; prints how long it took
interrupts.py scatter PLAN CPUS     sets them all to other CPUs, as a hand or another program would
interrupts.py fires PLAN NIC        where they fire under load; 1 if on other CPUs than planned, or not at all

PLAN is JSON: the action's name in /proc/interrupts -> CPU list.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time


def rows() -> dict[str, tuple[int, dict[int, int]]]:
    """Action -> (number, count by CPU)."""
    with open("/proc/interrupts") as stream:
        cpus = [int(word[3:]) for word in stream.readline().split()]
        lines = [line.split() for line in stream]
    return {
        words[-1]: (int(words[0][:-1]), dict(zip(cpus, map(int, words[1:]))))
        for words in lines
        if words[0][:-1].isdigit() and len(words) > len(cpus) + 2
    }


def cpus_of(text: str) -> set[int]:
    found = set()
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return found


def astray(plan: dict[str, str]) -> dict[str, str]:
    """Interrupts that have other CPUs than planned, and planned ones that are not there."""
    there, found = rows(), {}
    for action, cpus in plan.items():
        has = "absent"
        if action in there:
            try:
                with open(f"/proc/irq/{there[action][0]}/smp_affinity_list") as stream:
                    has = stream.read().strip()
            except FileNotFoundError:
                pass  # freed since
        if has == "absent" or cpus_of(has) != cpus_of(cpus):
            found[action] = has
    return found


def wait(plan: dict[str, str], seconds: float) -> int:
    begun = time.monotonic()
    wrong = astray(plan)
    while wrong and time.monotonic() < begun + seconds:
        time.sleep(0.02)
        wrong = astray(plan)
    print(f"as planned after {time.monotonic() - begun:.2f} s" if not wrong else f"not as planned: {wrong}")
    return int(bool(wrong))


def scatter(plan: dict[str, str], cpus: str) -> int:
    there = rows()
    for action in plan:
        with open(f"/proc/irq/{there[action][0]}/smp_affinity_list", "w") as stream:
            stream.write(cpus)
    return 0


def load(nic: str) -> None:
    """Packets out, and answers in: the gateway of the e1000e's network answers to ARP only."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        for _ in range(20):
            subprocess.run(["ip", "neighbour", "flush", "dev", nic], check=True)
            for _ in range(50):
                made.sendto(b"load", ("10.0.3.2", 9))
                time.sleep(0.002)


def fires(plan: dict[str, str], nic: str) -> int:
    before = rows()
    load(nic)
    after = rows()
    status = 0
    for action, cpus in plan.items():
        was = before[action][1]
        counts = {
            cpu: count - was.get(cpu, 0) for cpu, count in after[action][1].items() if count != was.get(cpu)
        }
        print(f"{action}: planned {cpus}, fired by CPU {counts}")
        # The first one after a move may still come where it was.
        elsewhere = sum(count for cpu, count in counts.items() if cpu not in cpus_of(cpus))
        if not counts or elsewhere > 1:
            status = 1
    return status


asked, planned, last = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
if asked == "wait":
    sys.exit(wait(planned, float(last)))
sys.exit({"scatter": scatter, "fires": fires}[asked](planned, last))
