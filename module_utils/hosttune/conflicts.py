"""Demands that contradict each other, found over all owners before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .kinds.sysctl import ZEROING_PAIRS
from .model import Refusal, Setting
from .system import System


def check(settings: Sequence[Setting], system: System) -> None:
    """Raises Refusal for the first contradiction."""
    by_key: dict[tuple[str, str], Setting] = {}
    for setting in settings:
        other = by_key.setdefault(setting.key, setting)
        if other is not setting:
            raise Refusal(
                f"has two owners: {other.owner} ('{other.value}') and {setting.owner} ('{setting.value}')",
                thing=str(setting),
                remedy="Leave it to one of them",
            )
    for pair in ZEROING_PAIRS:
        _zeroing(by_key, *pair)
    _open_files(settings, by_key, system)


def _zeroing(by_key: Mapping[tuple[str, str], Setting], one: str, other: str) -> None:
    first, second = by_key.get(("sysctl", one)), by_key.get(("sysctl", other))
    if first and second and first.value != "0" and second.value != "0":
        raise Refusal(
            f"is {first.value} ({first.owner}) beside {other} = {second.value} ({second.owner}): "
            "writing one sets the other to zero",
            thing=f"sysctl {one}",
            remedy="Ask for one of the two",
        )


def _open_files(
    settings: Sequence[Setting], by_key: Mapping[tuple[str, str], Setting], system: System
) -> None:
    """A hard nofile above fs.nr_open fails setrlimit(2) even for root, and with it logins and services."""
    try:
        ceiling = int(system.read_value("/proc/sys/fs/nr_open"))
    except (OSError, ValueError):
        return  # the limit is unknown here; the kernel's own refusal will be reported
    asked = by_key.get(("sysctl", "fs.nr_open"))
    if asked is not None and asked.value.isdigit() and not system.container:
        ceiling = max(ceiling, int(asked.value))
    for setting in settings:
        leaf = setting.name.rsplit("/", 1)[-1]
        if setting.kind not in ("limit", "unit", "manager") or leaf not in (
            "nofile",
            "LimitNOFILE",
            "DefaultLimitNOFILE",
        ):
            continue
        hard = setting.value.rsplit(":", 1)[-1]
        if hard.isdigit() and int(hard) > ceiling:
            raise Refusal(
                f"is {hard}, above fs.nr_open = {ceiling}",
                thing=str(setting),
                remedy=f"Raise sysctl fs.nr_open, or ask for at most {ceiling}",
            )
