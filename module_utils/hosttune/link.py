"""The command `hosttune-link`: sets again what drivers lose, whenever the kernel tells of a reason to look.

A link that comes up, a change of channels, a driver that is loaded anew, a NIC or a CPU that is plugged in:
after each of these interrupts and queues are as the driver makes them, and no file is read that could say
otherwise. This unit waits for such events, sleeps meanwhile, judges the kept settings of the host's manifest
through their own kinds, and sets only what differs. It needs no engine and changes no file.

It is a keeper: what somebody else sets of these settings is set back at the next event, on purpose or not.
`systemctl stop hosttune-link` is the switch. A setting that needs to be set again FIGHT_CORRECTIONS times
within FIGHT_SECONDS has another master: it is left alone for a while, and that one is named where known.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import kinds, lock
from .link_events import Event, Listener
from .model import Change, Refusal, Setting
from .observe import Judged, Observer, recall
from .store import MANIFEST, Ledger, Manifest
from .system import Ran, System

#: Kinds that are kept, as far as this release has them.
KEPT = tuple(kind for kind in kinds.ORDER if kind in ("nic", "irq"))
#: Of kind sysfs the queues of NICs: XPS and RPS.
_QUEUE_FILE = re.compile(r"(?:/sys/)?class/net/([^/]+)/queues/")

#: Events come in heaps: it is looked when none came for this long, at the latest after the longer one.
QUIET_SECONDS, LONGEST_SECONDS = 0.2, 1.0
#: What could not be set is tried again after this, so many times; then at the next event.
AGAIN_SECONDS, TRIES = 1.0, 5
FIGHT_CORRECTIONS, FIGHT_SECONDS = 5, 60.0
#: How long a fight is left alone, twice as long each time it goes on.
REST_SECONDS, LONGEST_REST_SECONDS = 60.0, 3600.0
LOCK_WAIT_SECONDS = 600.0

NOTICE, WARNING = 5, 4
START = Event("start", "", "this unit started")
REST_ENDED = Event("rest", "", "a fight was left alone for a while")
AGAIN = Event("again", "", "something could not be set")

Key = tuple[str, str]


class Fights:
    """Which settings are left alone since something else sets them as often as we do."""

    def __init__(self) -> None:
        self._times: dict[Key, list[float]] = {}
        #: until when each is left alone, and how long that rest is
        self._rests: dict[Key, tuple[float, float]] = {}

    def resting(self, key: Key, now: float) -> bool:
        return now < self._rests.get(key, (0.0, 0.0))[0]

    def wakes(self, now: float) -> float | None:
        """Seconds until the next rest ends."""
        return min((until - now for until, _rest in self._rests.values() if until > now), default=None)

    def begins(self, key: Key, now: float) -> float:
        """Notes that a setting is wrong again; how many seconds it is left alone from now on, or 0.0."""
        times = [one for one in self._times.get(key, []) if now - one < FIGHT_SECONDS]
        self._times[key] = [*times, now]
        rested = self._rests.get(key, (0.0, 0.0))[1]
        if len(times) < FIGHT_CORRECTIONS:
            return 0.0
        rest = min(rested * 2 or REST_SECONDS, LONGEST_REST_SECONDS)
        self._rests[key] = (now + rest, rest)
        self._times[key] = []
        return rest

    def refused(self, key: Key) -> None:
        """Takes the last `begins` back: the kernel refused it, which is no other master's doing."""
        self._times[key] = self._times[key][:-1]

    def right(self, key: Key, now: float) -> None:
        """Notes that a setting is as it shall be: with no correction lately, a fight is over."""
        if not any(now - one < FIGHT_SECONDS for one in self._times.get(key, [])):
            self._times.pop(key, None)
            if not self.resting(key, now):
                self._rests.pop(key, None)


class _Unit(System):
    """The host as this unit sees it: it runs, so nobody needs to be asked whether it is enabled."""

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        if argv[:2] == ("systemctl", "is-enabled"):
            return Ran(0, "enabled\n", "")
        return super().run(*argv, stdin=stdin, timeout=timeout)


class Link:
    """The kept settings of one host, looked at and set again."""

    def __init__(
        self, system: System, log: Callable[[int, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.system, self._log, self._clock = system, log, clock
        self._fights = Fights()
        #: what could not be set, and why; "" is the look itself
        self._failures: dict[str, str] = {}
        self._tries = 0
        self._stood: tuple[int, int] | None = None
        self._settings: list[Setting] = []

    # what is kept

    def settings(self) -> list[Setting]:
        """The kept settings of the manifest, which is read again when it was replaced."""
        try:
            about = os.stat(self.system.path(MANIFEST))
            stands = (about.st_ino, about.st_mtime_ns)
        except OSError:
            stands = (0, 0)
        if stands != self._stood:
            self._stood, owners = stands, {}
            self._fights = Fights()
            try:
                manifest = Manifest(self.system)
                if manifest.intact:
                    owners = self._kept(manifest)
                else:
                    self._log(WARNING, "the manifest was changed by another hand: nothing is set again")
            except Refusal as refusal:
                self._log(WARNING, f"{refusal}. Nothing is set again until then")
            self._settings = recall(Observer(self.system, tolerant=True), owners)
        return self._settings

    def _kept(self, manifest: Manifest) -> dict[str, Any]:
        """owner -> kind -> name -> entry, without what waits for the closed market or a boot."""
        booted = self._booted_since()
        return {
            owner: {
                kind: {
                    name: entry
                    for name, entry in names.items()
                    if (kind in KEPT or (kind == "sysfs" and _QUEUE_FILE.match(name)))
                    and (booted or not entry.get("waits"))
                }
                for kind, names in by_kind.items()
            }
            for owner, by_kind in manifest.owners.items()
        }

    def _booted_since(self) -> bool:
        """Whether the host has booted since it was converged: what waited then is in force from a boot on."""
        try:
            words = self.system.read("/proc/stat").split()
            booted = float(words[words.index("btime") + 1])
            return os.stat(self.system.path(MANIFEST)).st_mtime < booted
        except (OSError, ValueError):
            return False

    def concerned(self, events: Iterable[Event]) -> list[Event]:
        """The events that can have changed a kept setting."""
        kept = self.settings()
        # A NIC may be named by an alternative name; events have the other one.
        observer = Observer(self.system, tolerant=True)
        devices = {_device(one.name) for one in kept}
        devices |= {_device(observer.kind(one.kind).canonical(one.name)) for one in kept}
        return [
            event
            for event in events
            if devices and (event.source not in ("link", "ethtool", "net") or event.device in devices)
        ]

    # looking and setting

    def wakes(self) -> tuple[float | None, Event]:
        """Seconds after which to look without an event, and why."""
        if self._failures and self._tries < TRIES:
            return AGAIN_SECONDS, AGAIN
        return self._fights.wakes(self._clock()), REST_ENDED

    def look(self, events: Sequence[Event]) -> None:
        """Sets what differs. The lock is taken only for that: what is right needs none."""
        self._tries = self._tries + 1 if list(events) == [AGAIN] else 0
        holder = f"hosttune-link, process {os.getpid()}"
        try:
            if self._wrong(self.settings()):
                with lock.hold(self.system.path(lock.PATH), holder, LOCK_WAIT_SECONDS):
                    # What a run did meanwhile counts. NICs come first: they may make their interrupts anew.
                    for kind in kinds.ORDER:
                        mine = [one for one in self.settings() if one.kind == kind]
                        self._set(kind, self._wrong(mine, count=True), events)
            else:
                self._failures.clear()
            self._failures.pop("", None)
        except (Refusal, OSError) as error:
            self._fail("", f"nothing was set: {error}", events)

    def _fail(self, what: str, why: str, events: Sequence[Event]) -> None:
        """Notes what could not be done; says it where it is news."""
        if self._failures.get(what) != why:
            said = f"{what}: {why}" if what else why
            self._log(WARNING, f"{said} (after: {_after(events)})")
        self._failures[what] = why

    def _wrong(self, settings: Sequence[Setting], count: bool = False) -> list[Judged]:
        """Settings whose live value differs, without those that are waived, clamped or left alone.

        With `count` it is about to be set: that may begin a rest.
        """
        if not settings:
            return []
        observer, now = Observer(self.system, tolerant=True), self._clock()
        for setting in settings:
            observer.kind(setting.kind).recall(setting)
        planes = observer.read([one.key for one in settings])
        found = []
        for setting in settings:
            judged = observer.judge(setting, planes[setting.key])
            if judged.verdict in ("drift", "live_drift") and judged.planes.has_live:
                if not self._fights.resting(setting.key, now):
                    found.append(judged)
            else:
                self._fights.right(setting.key, now)
        if not found:
            return []
        clamped = Ledger(self.system).settings
        found = [
            one
            for one in found
            if one.planes.live is None
            or clamped.get(one.setting.kind, {}).get(one.setting.name, {}).get("clamped_to")
            != one.planes.live
        ]
        return [one for one in found if not self._rests(one, now)] if count else found

    def _rests(self, judged: Judged, now: float) -> bool:
        rest = self._fights.begins(judged.setting.key, now)
        if rest:
            self._log(
                WARNING,
                f"{judged.setting}: was set {FIGHT_CORRECTIONS} times within {FIGHT_SECONDS:.0f} s and is "
                f"{judged.planes.live} again: left alone for {rest:.0f} s. {self._master(judged.setting)}",
            )
        return bool(rest)

    def _master(self, setting: Setting) -> str:
        from . import foreign_programs  # here: most hosts never fight

        units = foreign_programs.running(self.system, setting)
        return f"{', '.join(units)} sets it too" if units else "Who sets it is not known"

    def _set(self, kind_name: str, wrong: Sequence[Judged], events: Sequence[Event]) -> None:
        if not wrong:
            return
        observer = Observer(self.system, tolerant=True)
        kind = observer.kind(kind_name)
        for one in wrong:
            kind.recall(one.setting)
        changes = [Change(one.setting.name, one.setting.value, one.setting.asked) for one in wrong]
        failed = kind.activate(changes, [])
        again = {one.setting.name: one for one in self._wrong([one.setting for one in wrong])}
        for one in wrong:
            name, was, wanted = one.setting.name, one.planes.live, one.setting.value
            if name in failed:
                self._fights.refused(one.setting.key)
                self._fail(str(one.setting), f"{was} could not be set to {wanted}: {failed[name]}", events)
            elif name in again:
                now = again[name].planes.live
                self._fail(str(one.setting), f"was set to {wanted} and reads {now} at once", events)
            else:
                self._failures.pop(str(one.setting), None)
                self._log(NOTICE, f"{one.setting}: {was} -> {wanted} (after: {_after(events)})")


def _device(name: str) -> str:
    """The device whose events can change a setting of this name."""
    of_queue = _QUEUE_FILE.match(name)
    return of_queue.group(1) if of_queue else name.partition("/")[0]


def _after(events: Sequence[Event]) -> str:
    return ", ".join(dict.fromkeys(map(str, events)))


def gather(listener: Listener, link: Link, first: Sequence[Event]) -> list[Event]:
    """The concerned events until it is quiet."""
    found = link.concerned(first)
    latest = time.monotonic() + LONGEST_SECONDS
    quiet = time.monotonic() + QUIET_SECONDS
    while found and time.monotonic() < min(quiet, latest):
        more = link.concerned(listener.wait(min(quiet, latest) - time.monotonic()))
        if more:
            found += more
            quiet = time.monotonic() + QUIET_SECONDS
    return found


def keep(listener: Listener, link: Link) -> None:
    """Looks now, after every event, and when something is to be looked at again; for ever."""
    events: list[Event] = [START]
    while True:
        link.look(events)
        seconds, why = link.wakes()
        until = None if seconds is None else time.monotonic() + seconds
        events = []
        while not events:
            left = None if until is None else until - time.monotonic()
            events = [why] if left is not None and left <= 0 else gather(listener, link, listener.wait(left))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="hosttune-link", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="/", help="another root folder, for tests")
    system = _Unit(parser.parse_args(arguments).root)
    try:
        listener = Listener()
        if listener.without:
            _say(WARNING, listener.without)
        # Before the first look: a run that starts this unit holds the lock until it has started.
        _tell_ready()
        keep(listener, Link(system, _say))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say(3, f"{where}{error.strerror}. Run as root")
    return 1


def _say(level: int, text: str) -> None:
    """A line for the journal, with its level as systemd takes it (sd-daemon(3))."""
    prefix = f"<{level}>" if "JOURNAL_STREAM" in os.environ else ""
    print(f"{prefix}{text}", file=sys.stderr, flush=True)


def _tell_ready() -> None:
    """Tells systemd that from now on no event is missed (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as told:
        told.connect("\0" + address[1:] if address.startswith("@") else address)
        told.send(b"READY=1")
