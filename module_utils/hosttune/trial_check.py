"""After a trial boot: is this host what it shall be? Only then its command line is made permanent."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from . import cmdline, drift, engine, grubenv, lock, trial
from .cmdline import Word, normal, to_values
from .model import CONFIRMED, Refusal
from .shell_source import Unfollowed
from .store import Manifest
from .system import System
from .verdicts import BAD

#: Kinds whose settings say which services this host is for.
_SERVING = ("service", "unit", "postgres", "redis")


def standing(system: System) -> tuple[trial.Record | None, str]:
    """The trial of this host and how it stands ("" without one); raises Refusal and OSError."""
    record = trial.load(system)
    if record is None:
        return None, ""
    return record, trial.standing(system, record, grubenv.read(system), trial.live_words(system))


def verify(system: System, wait_seconds: float = 0.0) -> list[str]:
    """What speaks against the boot that runs for its trial, asked again until nothing does or time is up.

    A host that has just come up is still starting what it shall have.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        record = trial.load(system)
        if record is None:
            return ["there is no trial"]
        problems = [*_of_line(system, record), *_of_settings(system), *_of_services(system, record)]
        problems += _of_network(system, record)
        if not problems or time.monotonic() >= deadline:
            return problems
        time.sleep(5)


def confirm(system: System, run: Mapping[str, Any], wait_seconds: float = 60.0) -> None:
    """Makes the line of this boot, which was verified, the line of all boots. Raises Refusal.

    What is asked for is what the manifest holds; kind boot refuses a menu with any other line than the tried.
    """
    with _held(system, wait_seconds):
        record = trial.load(system)
        if record is None:
            raise Refusal("there is no trial", thing="trial boot", remedy="Nothing is to be confirmed")
        record.state = trial.VERIFIED
        trial.save(system, record)
    manifest = Manifest(system)
    owners = {
        owner: {"boot": {name: _asked(entry["value"]) for name, entry in by_kind["boot"].items()}}
        for owner, by_kind in manifest.owners.items()
        if "boot" in by_kind
    }
    notes = {
        name: entry.get("notes", {})
        for by_kind in manifest.owners.values()
        for name, entry in by_kind.get("boot", {}).items()
    }
    request = engine.Request(
        owners,
        partial=True,
        kinds=("boot",),
        boot_trial=CONFIRMED,
        judge_only=True,
        notes={"boot": notes},
        run=run,
        lock_wait_seconds=wait_seconds,
    )
    report = engine.converge(system, request)
    if report.failures:
        raise Refusal(
            "; ".join(report.failures), thing="trial boot", remedy="The line of all boots is the old one"
        )


def retry(system: System, wait_seconds: float = 60.0) -> None:
    """Forgets that a trial failed, and arms it once more for the next boot. Raises Refusal and OSError."""
    with _held(system, wait_seconds):
        record, now = standing(system)
        if record is None or now not in (trial.FAILED, trial.LOST):
            raise Refusal(
                f"no trial has failed here, it is {now or 'none'}", thing="trial boot", remedy="Run tune.yml"
            )
        trial.disarm(system)
        try:
            trial.arm(system, record.confirm)
        except Unfollowed as why:
            raise Refusal(str(why), thing="trial boot", remedy="Run tune.yml") from why


def fail(system: System, reason: str, wait_seconds: float = 60.0) -> None:
    """Remembers why the trial failed: the next boot has the old line, and this one is not tried again."""
    with _held(system, wait_seconds):
        record = trial.load(system)
        if record is not None:
            trial.fail(system, record, reason)


def clean(system: System, wait_seconds: float = 60.0) -> bool:
    """Removes what a run that was cut short left of a trial that nothing waits for any more."""
    if trial.overlay(system):
        return False
    with _held(system, wait_seconds):
        trial.disarm(system)
    return True


def _held(system: System, wait_seconds: float) -> Any:
    return lock.hold(system.path(lock.PATH), "hosttune-trial", wait_seconds)


def _asked(text: str) -> Any:
    """The value of a parameter as the inventory gives it, from its text."""
    values = [True if value is None else value for value in to_values(text)]
    return values if len(values) > 1 else values[0]


# what is looked at


def _of_line(system: System, record: trial.Record) -> list[str]:
    """Whether the kernel was started with the line that is tried, and whether that was for once."""
    problems = []
    live = trial.live_words(system)
    if trial.live_id(live) != record.id:
        problems.append("this boot is not the trial: /proc/cmdline does not name it")
    plain = [word for word in live if word.name not in ("BOOT_IMAGE", trial.WORD)]
    wanted = cmdline.split(record.line, [("", 0)] * len(record.line))
    if _words(plain)[: len(wanted)] != _words(wanted):
        problems.append(f"/proc/cmdline is not the line that is tried: {record.line}")
    if grubenv.read(system).get("next_entry") == trial.ENTRY and record.boot_id != system.boot_id:
        problems.append(
            f"GRUB has not taken next_entry out of {grubenv.PATH}: each boot would be a trial again"
        )
    if not trial.overlay(system):
        problems.append("nothing waits for a trial any more: the line was given back")
    return problems


def _words(words: list[Word]) -> list[tuple[str, str | None]]:
    return [(word.name, word.value) for word in words]


def _of_settings(system: System) -> list[str]:
    """Settings that are not as this host was converged; the line's are right live and wrong on disk."""
    report = drift.check(system)
    if report.error:
        return [report.error]
    found = []
    boots = 0
    for entry in report.settings:
        expected = ("boot_bomb",) if entry["kind"] == "boot" else ()
        boots += entry["kind"] == "boot"
        if entry["kind"] == "boot" and normal(entry["name"]) == "panic":
            continue  # the trial has one of its own
        if entry["verdict"] in BAD and entry["verdict"] not in expected:
            found.append(f"{entry['kind']} {entry['name']} is {entry['verdict']} ({entry['reason']})")
        elif entry["kind"] == "boot" and entry["verdict"] == "pending_reboot":
            found.append(f"boot {entry['name']} is not in force: {entry['reason']}")
    if not boots:
        found.append(
            "the manifest names no parameter of the line: the run that armed the trial was cut short"
        )
    return found


def _of_services(system: System, record: trial.Record) -> list[str]:
    """Services that were up before, or are enabled here and meant by a setting, and are not up."""
    asked = {*record.expects["units"], *_serving(system)}
    if not asked:
        return []
    names = "Id,LoadState,UnitFileState,ActiveState,Type"
    ended = system.run("systemctl", "show", f"--property={names}", "--", *sorted(asked))
    if not ended.ok:
        return [f"systemctl gives no answer: {(ended.err or ended.out).strip()}"]
    problems = []
    for block in ended.out.split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        name = unit.get("Id", "")
        due = name in record.expects["units"] or (
            unit.get("LoadState") == "loaded"
            and unit.get("UnitFileState", "").startswith("enabled")
            and unit.get("Type") != "oneshot"
        )
        if due and unit.get("ActiveState") != "active":
            problems.append(f"{name} is {unit.get('ActiveState') or 'not known to systemd'}")
    return problems


def _serving(system: System) -> list[str]:
    """The units that this host's settings are about; a template stands for its instances."""
    found = set()
    for by_kind in Manifest(system, tolerant=True).owners.values():
        for kind in _SERVING:
            for name in by_kind.get(kind, {}):
                first, _slash, rest = name.partition("/")
                if kind == "postgres":
                    first = f"postgresql@{first}-{rest.split('/')[0]}.service"
                elif kind == "redis":
                    first = "redis-server.service" if first == "server" else f"redis-server@{first}.service"
                found.add(first.replace("@.", "@*.") if "@." in first else first)
    return sorted(unit for unit in found if unit.endswith(".service") and "/" not in unit)


def _of_network(system: System, record: trial.Record) -> list[str]:
    now = trial.default_routes(system)
    return [
        f"there is no default route through {interface} any more"
        for interface in record.expects["routes"]
        if interface not in now
    ]
