"""The hardware watchdog as its driver shows it in /sys/class/watchdog (ABI/testing/sysfs-class-watchdog)."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .system import System

#: What systemd opens where WatchdogDevice= says nothing (systemd-system.conf(5)).
DEVICE = "/dev/watchdog0"
#: The identity of the driver softdog: a timer of the very kernel it shall watch.
_SOFT = "Software Watchdog"
_DRIVERS = "iTCO_wdt, sp5100_tco, ipmi_watchdog or i6300esb"


@dataclass(frozen=True)
class Watchdog:
    """One watchdog; times in seconds, None where the driver does not say."""

    device: str
    identity: str
    armed: bool | None
    timeout: int | None
    least: int | None
    #: the longest timeout that the driver takes; None: it names no limit
    most: int | None
    #: once armed it cannot be disarmed before the next boot
    nowayout: bool
    #: whether it can warn before it resets, and the governors that decide what then happens
    warns: bool
    governors: tuple[str, ...]


def read(system: System, device: str = DEVICE) -> Watchdog | None:
    """The watchdog behind a device file; None where this host has none there."""
    name = os.path.basename(device)
    folder = f"/sys/class/watchdog/{'watchdog0' if name == 'watchdog' else name}"
    if not system.exists(folder):
        return None

    def text(attribute: str) -> str:
        try:
            return system.read_value(f"{folder}/{attribute}")
        except OSError:
            return ""

    def seconds(attribute: str) -> int | None:
        found = text(attribute)
        return int(found) if found.isdigit() else None

    state = text("state")
    return Watchdog(
        device,
        text("identity"),
        state == "active" if state else None,
        seconds("timeout"),
        seconds("min_timeout"),
        seconds("max_timeout") or None,
        text("nowayout") == "1",
        system.exists(f"{folder}/pretimeout"),
        tuple(text("pretimeout_available_governors").split()),
    )


def why_none(system: System, device: str, found: Watchdog | None) -> str:
    """Why this host has no watchdog that systemd could arm; empty where it has one."""
    if system.container:
        return "a container has no watchdog: the machine's own watches over it"
    if found is None:
        return f"this host has no {device}: load its hardware's driver ({_DRIVERS}), or leave this out"
    if found.identity == _SOFT:
        return f"{device} is softdog, which hangs with the kernel it watches: load the hardware's driver"
    return ""
