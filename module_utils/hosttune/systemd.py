"""Questions to systemd, answered for many units in one command."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence

from .system import System

#: Folders of units and their drop-ins, the strongest first (systemd.unit(5)).
UNIT_FOLDERS = (
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
)


class Systemd:
    """The service manager of one host."""

    def __init__(self, system: System) -> None:
        self.system = system

    def show(self, units: Iterable[str], properties: Sequence[str]) -> dict[str, dict[str, str]]:
        """Unit -> property -> text, for units as asked; raises OSError where systemd gives no answer."""
        wanted = sorted(set(units))
        if not wanted:
            return {}
        ended = self.system.run(
            "systemctl",
            "show",
            "--timestamp=us+utc",
            f"--property={','.join(('Id', *properties))}",
            "--",
            *wanted,
        )
        if not ended.ok:
            raise OSError(ended.status, f"systemctl show: {ended.err.strip() or ended.status}")
        # One block a unit, in the order asked: an alias answers with its target's Id.
        blocks = [block for block in ended.out.split("\n\n") if block.strip()]
        if len(blocks) != len(wanted):
            raise OSError(5, f"systemctl show answered for {len(blocks)} of {len(wanted)} units")
        return {
            unit: dict(line.split("=", 1) for line in block.strip().split("\n") if "=" in line)
            for unit, block in zip(wanted, blocks)
        }

    def manager(self, properties: Sequence[str]) -> dict[str, str]:
        """The manager's own properties; raises OSError."""
        ended = self.system.run("systemctl", "show", f"--property={','.join(properties)}")
        if not ended.ok:
            raise OSError(ended.status, f"systemctl show: {ended.err.strip() or ended.status}")
        return dict(line.split("=", 1) for line in ended.out.split("\n") if "=" in line)

    @staticmethod
    def seconds(timestamp: str) -> float | None:
        """Seconds since the epoch of `Mon 2026-11-23 06:17:00.123456 UTC`; None of an empty one."""
        if not timestamp or timestamp == "n/a":
            return None
        _day, date, clock, _zone = timestamp.split()
        form = "%Y-%m-%d %H:%M:%S.%f" if "." in clock else "%Y-%m-%d %H:%M:%S"
        found = datetime.datetime.strptime(f"{date} {clock}", form)
        return found.replace(tzinfo=datetime.timezone.utc).timestamp()
