"""How the planes of a setting stand to each other, in one word."""

from __future__ import annotations

from typing import Callable

from .model import Planes

#: In this order the first that fits is the verdict.
VERDICTS = (
    "unknown",
    "unsupported",
    "drift",
    "live_drift",
    "boot_bomb",
    "pending_reboot",
    "pending_restart",
    "pending_window",
    "clamped",
    "shadowed",
    "in_sync",
    "waived",
)
#: A host with only these is as desired; `unsupported` is said, and is nobody's fault.
GOOD = frozenset({"in_sync", "shadowed", "clamped", "unsupported"})
PENDING = frozenset({"pending_reboot", "pending_restart", "pending_window"})
BAD = frozenset({"unknown", "drift", "live_drift", "boot_bomb"})


def judge(
    desired: str,
    planes: Planes,
    same: Callable[[str, str], bool],
    managed_file: str | None,
    clamped_to: str | None = None,
) -> tuple[str, str]:
    """The verdict and its reason, with what the planes' note says beside it.

    `same(desired, found)` is the kind's unit-aware equality; `managed_file` is the file we would write, None
    where the kind has none; `clamped_to` is the value the kernel is known to take instead of `desired`.
    """
    verdict, reason = _judge(desired, planes, same, managed_file, clamped_to)
    return verdict, "; ".join(text for text in (reason, planes.note) if text)


def _judge(
    desired: str,
    planes: Planes,
    same: Callable[[str, str], bool],
    managed_file: str | None,
    clamped_to: str | None,
) -> tuple[str, str]:
    if planes.unknown:
        return "unknown", planes.unknown
    if planes.unsupported:
        return "unsupported", planes.unsupported
    winner = planes.winner
    live_right = not planes.has_live or (planes.live is not None and same(desired, planes.live))
    clamped = not live_right and clamped_to is not None and planes.live == clamped_to
    persisted_right = not planes.broken and (
        not planes.has_persisted or (winner is not None and same(desired, winner.value))
    )
    place = f"{winner.file}:{winner.line}" if winner and winner.line else winner.file if winner else ""
    where = planes.broken or planes.where
    where = where or (f"{place} says {winner.value}" if winner else "nothing on disk says so")
    if not live_right and not clamped:
        live = "absent" if planes.live is None else planes.live
        if not persisted_right and planes.trial:
            return "pending_reboot", f"live is {live}; {planes.trial}"
        if not persisted_right:
            return "drift", f"live is {live}; {where}"
        if planes.needs == "reboot":
            return "pending_reboot", f"live is {live} until the next boot"
        if planes.needs == "restart":
            return "pending_restart", f"live is {live} until the service restarts"
        if planes.waits:
            return "pending_window", f"live is {live}: {planes.waits}"
        return "live_drift", f"live is {live}, though {where}"
    if not persisted_right and not planes.has_live:
        return "drift", where
    if not persisted_right:
        return "boot_bomb", f"live is right, but {where}: the next boot or restart undoes it"
    if planes.process is not None and not same(desired, planes.process):
        return "pending_restart", f"the running process still has {planes.process}"
    if clamped:
        return "clamped", f"the kernel took {planes.live} instead of {desired}"
    if managed_file is not None and winner is not None and winner.file != managed_file:
        return "shadowed", f"right, but decided by {place}, not by {managed_file}"
    astray = [one for one in planes.partly if not same(desired, one.value)]
    if astray:
        return "shadowed", "right, but " + ", ".join(f"{one.file} says {one.value}" for one in astray)
    return "in_sync", ""
