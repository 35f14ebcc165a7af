"""Releases of a service on one host: build, prove, switch, watch, return, forget.

Layout below the root:

    releases/ID/   app/ venv/ bin/PROGRAM release.json requirements.txt; `.building` while it is not whole
    current        symlink to releases/ID, the release that serves
    shared/        what outlives releases
    state.json     the journal: what was verified, what was there before, a switch under way
    .lock          held by the one run that works here

A release is built in its final path, because a virtual environment's scripts name it. It is proved beside the
serving one, on a socket of its own, before `current` moves; and watched after, with the way back open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import tarfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import IO, Any, Callable, Protocol
from urllib.parse import urlsplit

from . import atomic
from .lock import hold
from .model import FileImage, Refusal
from .system import System

SCHEMA = 1
#: a folder's name and a systemd unit's instance
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
#: entries of the journal's history
HISTORY = 50
#: seconds one probe may take
PROBE_TIMEOUT = 3.0
#: failed probes in a row that end the watch: one can be a scheduler's hiccup
PROBES_LOST = 3
#: a release unpacked, with its environment, is about this many times its artefact
UNPACKED_FACTOR = 8


class ReleaseError(Exception):
    """A release could not be built, proved or kept. What serves now is in `outcome`."""

    def __init__(self, message: str, log: list[str] | None = None) -> None:
        super().__init__(message)
        self.log = log or []
        self.outcome: Outcome | None = None


@dataclass(frozen=True)
class Health:
    """How a release shows that it is well: 200 on both paths, each naming the release if it names any."""

    url: str = "http://127.0.0.1:8000"
    #: the candidate's address, `{id}` stands for the release; `unix:/path` or `http://host:port`
    candidate: str = "unix:/run/orchestrator-candidate/{id}/api.sock"
    live_path: str = "/health"
    ready_path: str = "/ready"
    #: seconds until it must be well, and seconds it must then stay so
    timeout: float = 30.0
    watch: float = 10.0


@dataclass(frozen=True)
class Request:
    """What is asked of this host."""

    state: str  # present, rolled_back, absent
    release: str = ""
    artefact: str = ""
    sha256: str = ""
    root: str = "/opt/orchestrator"
    program: str = "orchestrator"
    keep: int = 5
    service: str = "orchestrator.service"
    candidate_unit: str = "orchestrator-candidate@{id}.service"
    #: started once before the candidate, must succeed; empty: nothing to migrate
    migrate_unit: str = "orchestrator-migrate@{id}.service"
    health: Health = field(default_factory=Health)
    #: false: a new release is built and proved, but a serving one is not restarted
    restart_allowed: bool = True
    #: true: also the release that an operator's rollback left may serve again
    redeploy: bool = False
    python: str = "/usr/bin/python3"
    holder: str = ""
    lock_wait: float = 60.0
    check: bool = False


@dataclass
class Outcome:
    """What was done, and what stands now (in check mode: would be done, would stand)."""

    changed: bool = False
    release: str | None = None
    previous: str | None = None
    releases: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    rolled_back: bool = False
    pending: str = ""
    message: str = ""
    steps: list[str] = field(default_factory=list)
    diff: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "kept": self.releases}


@dataclass
class Journal:
    """state.json. Written before and after every step that a crash must not hide."""

    #: the good release that served before the present one; rollback goes there
    previous: str | None = None
    #: the release an explicit rollback left; while it is set, a second rollback goes no further
    rolled_back_from: str | None = None
    #: {"from": ID or None, "to": ID} from before `current` moves until the new release is found good
    switching: dict[str, str | None] | None = None
    #: complete releases in the order they were built
    built: list[str] = field(default_factory=list)
    #: releases whose candidate was found good
    verified: list[str] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, str]] = field(default_factory=list)

    def note(self, event: str, release: str, reason: str = "") -> None:
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.history = [*self.history, {"at": at, "event": event, "release": release, "reason": reason}][
            -HISTORY:
        ]

    def forget(self, release: str) -> None:
        self.built = [one for one in self.built if one != release]
        self.verified = [one for one in self.verified if one != release]
        self.sha256.pop(release, None)
        if self.previous == release:
            self.previous = None


class Services(Protocol):
    """The service manager, as far as a deployment needs it."""

    def state(self, unit: str) -> tuple[str, str]:
        """(LoadState, ActiveState) as systemd words them."""

    def start(self, unit: str) -> None:
        """Raises ReleaseError."""

    def restart(self, unit: str) -> None:
        """Raises ReleaseError."""

    def stop(self, unit: str) -> None:
        """Stops it and forgets its failure; fine if it does not run. Raises ReleaseError."""

    def log(self, unit: str, lines: int = 20) -> list[str]:
        """The last lines that the unit's newest start wrote."""


class SystemdServices:
    """Services of the running systemd."""

    def __init__(self, system: System) -> None:
        self._system = system

    def state(self, unit: str) -> tuple[str, str]:
        shown = self._show(unit, "LoadState", "ActiveState")
        return shown.get("LoadState", ""), shown.get("ActiveState", "")

    def start(self, unit: str) -> None:
        self._act("start", unit)

    def restart(self, unit: str) -> None:
        self._act("restart", unit)

    def stop(self, unit: str) -> None:
        if self.state(unit)[1] not in ("inactive", "failed"):
            self._run("stop", unit)
        self._forget_failure(unit)

    def log(self, unit: str, lines: int = 20) -> list[str]:
        words = ["journalctl", "--no-pager", "--output=cat", f"--lines={lines}"]
        invocation = self._show(unit, "InvocationID").get("InvocationID", "")
        if invocation:  # what the unit wrote, and what systemd wrote about it
            words += [f"_SYSTEMD_INVOCATION_ID={invocation}", "+", f"INVOCATION_ID={invocation}"]
        else:
            words += ["--unit", unit]
        ended = self._system.run(*words)
        return (ended.out if ended.ok else ended.err).splitlines()

    def _act(self, verb: str, unit: str) -> None:
        self._forget_failure(unit)  # else a start limit that an earlier failure used up refuses this start
        self._run(verb, unit)

    def _run(self, verb: str, unit: str) -> None:
        # Long: a migration builds indexes of a large table, and waits for old transactions.
        ended = self._system.run("systemctl", verb, unit, timeout=3600)
        if not ended.ok:
            reason = (ended.err.strip().splitlines() or [f"exit status {ended.status}"])[0]
            raise ReleaseError(f"systemctl {verb} {unit}: {reason}", self.log(unit))

    def _forget_failure(self, unit: str) -> None:
        if self.state(unit)[1] == "failed":
            self._run("reset-failed", unit)

    def _show(self, unit: str, *names: str) -> dict[str, str]:
        ended = self._system.run("systemctl", "show", f"--property={','.join(names)}", "--", unit)
        if not ended.ok:
            raise ReleaseError(f"systemctl show {unit}: {ended.err.strip() or ended.status}")
        return dict(line.split("=", 1) for line in ended.out.splitlines() if "=" in line)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def get(address: str, path: str, timeout: float = PROBE_TIMEOUT) -> tuple[int, str]:
    """(status, body) of GET `path` at `unix:/socket` or `http://host:port`. Raises OSError."""
    connection: http.client.HTTPConnection
    if address.startswith("unix:"):
        connection = _UnixConnection(address[5:], timeout)
    else:
        parts = urlsplit(address)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(65536).decode("utf-8", "replace")
    except http.client.HTTPException as error:
        raise OSError(71, f"no HTTP answer: {error!r}") from error  # 71: EPROTO
    finally:
        connection.close()


def probe(health: Health, address: str, release: str) -> str:
    """Empty if the release at `address` is alive and ready, else why it is not."""
    for path in (health.live_path, health.ready_path):
        try:
            status, body = get(address, path)
        except OSError as error:
            return f"{path}: {error.strerror or error}"
        if status != 200:
            return f"{path}: {status} {body.strip()[:300]}"
        with contextlib.suppress(ValueError, AttributeError):  # a body that is no JSON object names nothing
            found = json.loads(body).get("release", release)
            if found != release:
                return f"{path}: release {found} answers, not {release}"
    return ""


class Store:
    """The folder with the releases and the journal."""

    def __init__(self, root: str, program: str) -> None:
        self.root, self.program = root, program
        self.folder = os.path.join(root, "releases")
        self.link = os.path.join(root, "current")
        self.journal = self._load()

    def path(self, release: str, *names: str) -> str:
        return os.path.join(self.folder, release, *names)

    def complete(self, release: str) -> bool:
        """Built to its end: the launcher is written last, and the marker goes after it."""
        return os.path.exists(self.path(release, "bin", self.program)) and not os.path.lexists(
            self.path(release, ".building")
        )

    def releases(self) -> list[str]:
        """The complete ones on disk, oldest build first."""
        found = {one for one in _names(self.folder) if not one.startswith(".") and self.complete(one)}
        known = [one for one in self.journal.built if one in found]
        return sorted(found - set(known)) + known

    def litter(self) -> list[str]:
        """What interrupted builds and removals left. Folders that are not ours are not in it."""
        return [
            one
            for one in _names(self.folder)
            if one.startswith(".trash-") or os.path.lexists(self.path(one, ".building"))
        ]

    def current(self) -> str | None:
        """The release that `current` names. Raises Refusal where that is not a link into releases/."""
        if not os.path.lexists(self.link):
            return None
        remedy = "Move it away; the next run makes the link"
        if not os.path.islink(self.link):
            raise Refusal(
                "is not a symbolic link, so it is not ours to replace", thing=self.link, remedy=remedy
            )
        folder, name = os.path.split(os.path.join(self.root, os.readlink(self.link)))
        if os.path.normpath(folder) != os.path.normpath(self.folder) or not ID.fullmatch(name):
            raise Refusal(
                f"points to {os.readlink(self.link)}, not to a release", thing=self.link, remedy=remedy
            )
        return name

    def point_to(self, release: str | None) -> None:
        """Moves `current` in one rename: at every instant it names a whole release. None: takes it away."""
        if release is None:
            atomic.remove(self.link)
            return
        fresh = os.path.join(self.root, ".current-new")
        atomic.remove(fresh)
        os.symlink(os.path.join("releases", release), fresh)
        os.replace(fresh, self.link)
        atomic.sync_folder(self.root)

    def remove(self, name: str) -> None:
        """Out of sight in one rename first: half a release must never look like a whole one."""
        trash = os.path.join(self.folder, name if name.startswith(".trash-") else f".trash-{name}")
        if not name.startswith(".trash-"):
            if os.path.lexists(trash):
                shutil.rmtree(trash)
            os.rename(self.path(name), trash)
            atomic.sync_folder(self.folder)
        shutil.rmtree(trash)

    def save(self) -> None:
        content = json.dumps({"schema": SCHEMA, **dataclasses.asdict(self.journal)}, indent=1) + "\n"
        image = FileImage(content.encode(), 0o644, os.geteuid(), os.getegid())
        atomic.write(os.path.join(self.root, "state.json"), image)

    def _load(self) -> Journal:
        path = os.path.join(self.root, "state.json")
        try:
            with open(path, encoding="utf-8") as stream:
                found = json.load(stream)
        except FileNotFoundError:
            return Journal()
        except ValueError as error:
            raise Refusal(
                f"cannot be read: {error}",
                thing=path,
                remedy="Move it away: releases on disk are found again",
            ) from error
        if not isinstance(found, dict) or found.pop("schema", None) != SCHEMA:
            raise Refusal(
                f"is not of schema {SCHEMA}",
                thing=path,
                remedy="A newer suite wrote it: deploy with that one, or move the file away",
            )
        names = {one.name for one in dataclasses.fields(Journal)}
        return Journal(**{name: value for name, value in found.items() if name in names})


class Deployment:
    """One run on one host."""

    def __init__(
        self,
        request: Request,
        system: System,
        services: Services,
        build: Callable[[Deployment, str, IO[bytes]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.request, self.system, self.services = request, system, services
        self._install = build or install
        self._clock, self._sleep = clock, sleep
        self.outcome = Outcome()
        self.store = Store(request.root, request.program)

    def run(self) -> Outcome:
        """Does what is asked.

        Raises Refusal (nothing was touched) or ReleaseError (its `outcome` says what serves).
        """
        request = self.request
        self._check_request()
        act = {"present": self._present, "rolled_back": self._roll_back, "absent": self._absent}[
            request.state
        ]
        if request.check:
            before = self._describe(self.store.current(), self.store.releases())
            act()
            return self._finish(before)
        for folder in (request.root, self.store.folder, os.path.join(request.root, "shared")):
            atomic.make_folders(folder)
        with hold(
            os.path.join(request.root, ".lock"), request.holder or f"process {os.getpid()}", request.lock_wait
        ):
            self.store = Store(request.root, request.program)  # as it is now that nobody else works here
            before = self._describe(self.store.current(), self.store.releases())
            try:
                act()
            except ReleaseError as error:
                error.outcome = self._finish(before)
                raise
            return self._finish(before)

    def _finish(self, before: str) -> Outcome:
        outcome = self.outcome
        if not self.request.check:
            outcome.release, outcome.previous = self.store.current(), self.store.journal.previous
            outcome.releases = self.store.releases()
        if outcome.changed:
            outcome.diff = {"before": before, "after": self._describe(outcome.release, outcome.releases)}
        return outcome

    @staticmethod
    def _describe(current: str | None, releases: list[str]) -> str:
        return "".join(f"{line}\n" for line in (f"current: {current}", "releases:", *releases))

    def _check_request(self) -> None:
        request = self.request
        if request.release and not ID.fullmatch(request.release):
            raise Refusal(f"does not have the form {ID.pattern}", thing=f"release {request.release!r}")
        if not os.path.isabs(request.root) or os.path.normpath(request.root) == "/":
            raise Refusal("must be an absolute folder of its own", thing=f"root {request.root}")
        if request.keep < 1:
            raise Refusal("must be at least 1", thing=f"keep {request.keep}")
        if request.state == "present":
            for name in ("release", "artefact", "sha256"):
                if not getattr(request, name):
                    raise Refusal("is needed for state present", thing=name)
        if request.state == "absent" and not request.release:
            raise Refusal("is needed for state absent", thing="release", remedy="Name the one to remove")

    # --- present

    def _present(self) -> None:
        request, store, journal = self.request, self.store, self.store.journal
        release, current, good = request.release, store.current(), self._last_good()
        known = journal.sha256.get(release)
        if known and known != request.sha256 and store.complete(release):
            raise Refusal(
                f"is here already, built from an artefact with sha256 {known}, not {request.sha256}",
                thing=f"release {release}",
                remedy="Give the new artefact an ID of its own",
            )
        whole = store.complete(release)
        serving = current is not None and self.services.state(request.service)[1] == "active"
        if current == release and whole and journal.switching is None and serving:
            self.outcome.message = f"release {release} serves already"
            self._prune(release, journal.previous)
            return
        # Only a serving release can be interrupted; the first one, or one that is down, interrupts nobody.
        if release == journal.rolled_back_from and current != release and not request.redeploy:
            self.outcome.pending = "redeploy"
            self._stand(
                f"release {release} waits: an operator went back from it to {current}. Deploy a mended one, "
                "or allow this one again (redeploy)"
            )
            return
        # A switch that was cut off is brought to its end: nobody knows what it left running.
        held = serving and not request.restart_allowed and journal.switching is None
        if held and whole and release in journal.verified and current != release:
            self._hold_back()
            self._prune(current, journal.previous, release)
            return
        if request.check:
            self._predict(good, held)
            return

        self._need_unit()
        if not whole:
            self._build()
        self._migrate(release)
        self._prove(release)
        if held:
            self._hold_back()
            self._prune(current, journal.previous, release)
            return
        self._switch(release, good if good != release else journal.previous)
        self._prune(release, journal.previous)

    def _hold_back(self) -> None:
        self.outcome.pending = "restart"
        self.outcome.message = (
            f"release {self.request.release} is built and found good, and waits: {self.request.service} "
            "serves and its restart is not allowed. Allow it (restart_allowed) in a window"
        )
        if self.request.check:
            self.outcome.release, self.outcome.previous = self.store.current(), self.store.journal.previous

    def _predict(self, good: str | None, held: bool) -> None:
        """Check mode: what the run would come to if the release is good."""
        request, store = self.request, self.store
        if os.path.exists(request.artefact):
            with open(request.artefact, "rb") as stream:
                self._check_sum(stream)
        self.outcome.changed = True
        if held:
            self._hold_back()
        else:
            self.outcome.release = request.release
            self.outcome.previous = good if good != request.release else store.journal.previous
            self.outcome.message = f"release {request.release} would be built, proved and switched to"
        built = [one for one in store.releases() if one != request.release] + [request.release]
        self._prune(self.outcome.release, self.outcome.previous, request.release, built=built)

    def _last_good(self) -> str | None:
        """What serves and was found good: of a switch that was cut off, the release it came from."""
        current, switching = self.store.current(), self.store.journal.switching
        if switching is not None and current == switching["to"]:
            return switching["from"]
        return current

    def _need_unit(self) -> None:
        """Before anything is built: there must be something to restart."""
        load = self.services.state(self.request.service)[0]
        if load == "loaded":
            return
        remedy = f"Unmask it: systemctl unmask {self.request.service}"
        if load == "not-found":
            remedy = "Apply the role's settings first: playbooks/site.yml or tune.yml write the unit"
        raise Refusal(f"systemd says {load}", thing=self.request.service, remedy=remedy)

    def _check_sum(self, stream: IO[bytes]) -> None:
        digest = hashlib.sha256()
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
        if digest.hexdigest() != self.request.sha256.lower():
            raise Refusal(
                f"has sha256 {digest.hexdigest()}, not {self.request.sha256} as asked; nothing was unpacked",
                thing=self.request.artefact,
                remedy="Build the artefact again, or copy it again: it is not the one that was meant",
            )

    def _build(self) -> None:
        request, store = self.request, self.store
        release = request.release
        try:
            stream = open(request.artefact, "rb")  # noqa: SIM115 -- closed by the with below
        except OSError as error:
            raise Refusal(
                f"cannot be read: {error.strerror}",
                thing=request.artefact,
                remedy="Copy it to the host first",
            ) from error
        with stream, _open_umask():
            self._check_sum(stream)
            stream.seek(0)
            check_artefact(self.system, request, stream)
            stream.seek(0)
            if os.path.lexists(store.path(release)):  # an interrupted build: nothing of it can be trusted
                store.remove(release)
            self.outcome.changed = True
            os.mkdir(store.path(release), 0o755)
            atomic.write(store.path(release, ".building"), FileImage(b"", 0o644, os.geteuid(), os.getegid()))
            self._install(self, store.path(release), stream)
        # One call for the thousands of files of an environment: only then may it look whole.
        synced = self.system.run("sync", "--file-system", store.path(release))
        if not synced.ok:
            raise ReleaseError(f"sync {store.path(release)}: {synced.err.strip()}")
        atomic.remove(store.path(release, ".building"))
        store.journal.forget(release)
        store.journal.built.append(release)
        store.journal.sha256[release] = request.sha256
        store.journal.note("built", release)
        store.save()
        self.outcome.steps.append(f"built {release}")

    def _migrate(self, release: str) -> None:
        unit = self.request.migrate_unit.format(id=release)
        if not unit:
            return
        try:
            self.services.start(unit)
        except ReleaseError as error:
            self._failed(release, f"the migration failed ({error})", error.log)
        self.outcome.steps.append("migrated")

    def _prove(self, release: str) -> None:
        """The gate before the switch: the release, as its own unit, on its own socket, must be well."""
        request = self.request
        unit = request.candidate_unit.format(id=release)
        self.outcome.changed = True  # a process was started, whatever comes of it
        try:
            self.services.stop(unit)  # left by a run that was cut off
            self.services.start(unit)
            reason = self._until_well(request.health.candidate.format(id=release), release, unit)
            log = self.services.log(unit) if reason else []
        except ReleaseError as error:
            reason, log = str(error), error.log
        finally:
            self.services.stop(unit)
        if reason:
            self._failed(release, f"its candidate did not get healthy: {reason}", log)
        if release not in self.store.journal.verified:
            self.store.journal.verified.append(release)
            self.store.journal.note("verified", release)
            self.store.save()
        self.outcome.steps.append(f"candidate {release} healthy")

    def _failed(self, release: str, reason: str, log: list[str]) -> None:
        """Ends a deployment before its switch."""
        self.store.journal.note("failed", release, reason)
        self.store.save()
        current = self.store.current()
        serving = f"{current} still serves" if current else "no release serves on this host yet"
        raise ReleaseError(
            f"release {release}: {reason}. {serving}. "
            "Remedy: mend the release or what it needs (the log says which), and deploy again; "
            f"the failed one stays in {self.store.path(release)} to be looked at",
            log,
        )

    def _until_well(self, address: str, release: str, unit: str) -> str:
        """Empty once the release is well, or why it was not within the time it has."""
        deadline = self._clock() + self.request.health.timeout
        while True:
            reason = probe(self.request.health, address, release)
            if not reason:
                return ""
            state = self.services.state(unit)[1]
            if state in ("failed", "inactive"):
                return f"{unit} is {state}; {reason}"
            if self._clock() >= deadline:
                return f"not within {self.request.health.timeout:g} s; {reason}"
            self._sleep(0.2)

    def _stays_well(self, release: str) -> str:
        """Watches the serving release; empty if it stayed well to the end."""
        request, lost = self.request, 0
        deadline = self._clock() + request.health.watch
        while self._clock() < deadline or lost:
            reason = probe(request.health, request.health.url, release)
            lost = lost + 1 if reason else 0
            state = self.services.state(request.service)[1]
            if state != "active":
                return f"{request.service} is {state}"
            if lost >= PROBES_LOST:
                return f"{lost} probes failed in a row; {reason}"
            self._sleep(min(1.0, max(0.05, request.health.watch / 10)))
        return ""

    def _serve(self, release: str, watch: bool) -> tuple[str, list[str]]:
        """Points `current` to the release and restarts; (why it is not well or empty, last log lines)."""
        request = self.request
        self.store.point_to(release)
        try:
            self.services.restart(request.service)
        except ReleaseError as error:
            return str(error), error.log
        reason = self._until_well(request.health.url, release, request.service)
        if not reason and watch:
            reason = self._stays_well(release)
        return reason, self.services.log(request.service) if reason else []

    def _switch(self, release: str, good: str | None, left: str | None = None) -> None:
        """Makes the release serve; returns to `good` if it does not stay well.

        `left` is the release that an explicit rollback leaves: it is never the one to return to.
        """
        store, journal = self.store, self.store.journal
        self.outcome.changed = True
        journal.switching = {"from": good, "to": release}
        store.save()
        reason, log = self._serve(release, watch=True)
        if not reason:
            # One save: a crash sees the switch under way or done, never half of it.
            journal.switching, journal.rolled_back_from = None, left
            journal.previous = None if left else good
            journal.note("serves", release, f"rolled back from {left}" if left else "")
            store.save()
            self.outcome.steps.append(f"{release} serves")
            self.outcome.message = f"release {release} serves"
            return
        back = self._return_to(good)
        journal.switching = None
        journal.verified = [one for one in journal.verified if one != release]
        journal.note("failed", release, reason)
        store.save()
        self.outcome.rolled_back = True
        raise ReleaseError(
            f"release {release} did not stay healthy after the switch: {reason}. {back}. "
            f"Remedy: mend the release, then deploy again; the failed one stays in {store.path(release)}",
            log,
        )

    def _return_to(self, good: str | None) -> str:
        """Automatic return; says in words what serves now."""
        if good is None:
            try:
                self.services.stop(self.request.service)
            finally:
                self.store.point_to(None)
            return "There was no release before it, so none serves now"
        reason, _log = self._serve(good, watch=False)
        if reason:
            return f"{good} was switched back to, but IS NOT WELL EITHER: {reason}"
        return f"{good} serves again"

    # --- rolled_back

    def _roll_back(self) -> None:
        request, store, journal = self.request, self.store, self.store.journal
        current = store.current()
        if current is None:
            raise Refusal(
                "there is no release on this host, so none to go back to",
                thing=request.root,
                remedy="Deploy one first: playbooks/site.yml",
            )
        cut_off = self._last_good() if journal.switching is not None else None
        if not request.release and journal.rolled_back_from and not cut_off:
            self._stand(
                f"already back at {current} (from {journal.rolled_back_from}); name a release to go elsewhere"
            )
            return
        target = request.release or (cut_off if cut_off != current else None) or journal.previous
        here = ", ".join(store.releases()) or "none"
        if not target:
            raise Refusal(
                f"there is no previous release to go back to from {current}. On this host: {here}",
                thing=request.root,
                remedy="Deploy another release, or name one of these (release)",
            )
        if target == current and journal.switching is None:
            self._stand(f"release {target} serves already")
            return
        if not store.complete(target):
            raise Refusal(
                f"is not on this host (or not whole). On this host: {here}",
                thing=f"release {target}",
                remedy="Name one of these, or deploy it",
            )
        if request.check:
            self.outcome.changed, self.outcome.release = True, target
            self.outcome.releases = store.releases()
            self.outcome.message = f"would return from {current} to {target}"
            return
        self._need_unit()
        self._prove(target)  # no migration: schemas only grow, so the older release works on the newer one
        self._switch(
            target, current if target != current else cut_off, left=current if target != current else None
        )
        self.outcome.rolled_back = True
        self.outcome.message = f"returned from {current} to {target}"

    def _stand(self, message: str) -> None:
        """Nothing to do."""
        self.outcome.message = message
        self.outcome.release, self.outcome.previous = self.store.current(), self.store.journal.previous
        self.outcome.releases = self.store.releases()

    # --- absent, and keeping few

    def _absent(self) -> None:
        request, store, journal = self.request, self.store, self.store.journal
        release = request.release
        protected = {store.current(): "serves", journal.previous: "is the one to return to"}
        if journal.switching is not None:
            protected[journal.switching["from"]] = "is the one to return to"
        if release in protected:
            raise Refusal(
                protected[release], thing=f"release {release}", remedy="Switch to another one first"
            )
        if os.path.lexists(store.path(release)):
            self.outcome.changed = True
            self.outcome.removed = [release]
            if not request.check:
                store.remove(release)
                journal.forget(release)
                journal.note("removed", release)
                store.save()
        self._stand(f"release {release} is not on this host")
        self.outcome.releases = [one for one in self.outcome.releases if one != release]

    def _prune(self, *protected: str | None, built: list[str] | None = None) -> None:
        """Removes litter and the oldest releases beyond `keep`, never a protected one."""
        store, outcome = self.store, self.outcome
        releases = store.releases() if built is None else built
        excess = max(0, len(releases) - self.request.keep)
        # Those that never were found good first, then by age: a row of failures must not push good ones out.
        doomed = sorted(
            (one for one in releases if one not in protected), key=lambda one: one in store.journal.verified
        )
        old = doomed[:excess]
        litter = [one for one in store.litter() if one not in (*protected, *old)]
        outcome.changed = outcome.changed or bool(old or litter)
        outcome.removed = old
        outcome.releases = [one for one in releases if one not in old]
        if self.request.check:
            if built is None:
                outcome.release, outcome.previous = store.current(), store.journal.previous
            return
        for one in [*litter, *old]:
            store.remove(one)
            store.journal.forget(one)
        if old:
            store.save()
            outcome.steps.append(f"removed {', '.join(old)}")


# --- building


def check_artefact(system: System, request: Request, stream: IO[bytes]) -> None:
    """Refuses, before anything is unpacked, an artefact that could write elsewhere or cannot run here."""
    try:
        with tarfile.open(fileobj=stream, mode="r:gz") as archive:
            members = archive.getmembers()
            for member in members:
                _check_member(member, request.artefact)
            names = {member.name for member in members}
            for name in ("release.json", "requirements.txt"):
                if name not in names:
                    raise Refusal(f"has no {name}: it is no release", thing=request.artefact)
            about_file = archive.extractfile("release.json")
            about = json.load(about_file) if about_file else {}
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise Refusal(f"is no release: {error}", thing=request.artefact, remedy="Build it again") from error
    asked = system.run(request.python, "-c", "import sys; print('%d.%d' % sys.version_info[:2], end='')")
    if not asked.ok:
        raise Refusal(f"does not run: {asked.err.strip()}", thing=request.python, remedy="Install python3")
    wanted = about.get("python_version") if isinstance(about, dict) else None
    if wanted != asked.out:
        raise Refusal(
            f"is built for Python {wanted}, this host's {request.python} is {asked.out}",
            thing=request.artefact,
            remedy=f"Build it with --python-version {asked.out}",
        )
    arch = about.get("arch", os.uname().machine)
    if arch != os.uname().machine:
        raise Refusal(f"is built for {arch}, this host is {os.uname().machine}", thing=request.artefact)
    need = os.fstat(stream.fileno()).st_size * UNPACKED_FACTOR
    space = os.statvfs(request.root)
    if space.f_bavail * space.f_frsize < need:
        free = space.f_bavail * space.f_frsize
        raise Refusal(
            f"has {free >> 20} MiB free, a release needs about {need >> 20} MiB",
            thing=request.root,
            remedy="Make room, or keep fewer releases",
        )


def _check_member(member: tarfile.TarInfo, artefact: str) -> None:
    """Plain files and folders below the release and nothing else: stricter than tarfile's own filters."""
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts or "\\" in member.name:
        raise Refusal(
            f"wants to write to {member.name!r}, outside its release", thing=artefact, remedy="Distrust it"
        )
    if not (member.isreg() or member.isdir()):
        raise Refusal(
            f"holds {member.name!r}, which is no plain file", thing=artefact, remedy="Build it again"
        )
    if parts[0] in (".building", "venv", "bin"):
        raise Refusal(
            f"holds {member.name!r}, which is made on the host", thing=artefact, remedy="Build it again"
        )


def unpack(stream: IO[bytes], folder: str) -> None:
    """Unpacks a checked artefact; modes and owners are ours, not the archive's."""
    with tarfile.open(fileobj=stream, mode="r:gz") as archive:
        for member in archive:
            path = os.path.join(folder, member.name)
            if member.isdir():
                os.makedirs(path, 0o755, exist_ok=True)
                continue
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            content = archive.extractfile(member)
            if content is None:
                raise ReleaseError(f"{member.name}: no content in the artefact")
            with open(path, "xb") as target:
                shutil.copyfileobj(content, target)


def install(deployment: Deployment, folder: str, stream: IO[bytes]) -> None:
    """Unpacks, makes the environment from the wheels alone, writes the launcher last."""
    request, system = deployment.request, deployment.system
    unpack(stream, folder)
    python = os.path.join(folder, "venv", "bin", "python")
    pip = [
        "env",
        "PIP_CONFIG_FILE=/dev/null",
        "PIP_DISABLE_PIP_VERSION_CHECK=1",
        python,
        "-m",
        "pip",
        "install",
    ]
    pip += [
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-cache-dir",
        "--require-hashes",
        "--only-binary",
        ":all:",
    ]
    pip += [
        "--find-links",
        os.path.join(folder, "wheels"),
        "--requirement",
        os.path.join(folder, "requirements.txt"),
    ]
    for what, words, remedy in (
        ("environment", [request.python, "-m", "venv", os.path.join(folder, "venv")], "install python3-venv"),
        ("wheels", pip, "build the artefact for this host's Python again"),
        # The service cannot write below the root, so what it imports must be compiled already.
        ("bytecode", [python, "-m", "compileall", "-q", os.path.join(folder, "app")], "mend the source"),
    ):
        ended = system.run(*words, timeout=900)
        if not ended.ok:
            said = (ended.err or ended.out).strip().splitlines()
            raise ReleaseError(
                f"release {request.release} could not be built ({what}): "
                f"{said[-1] if said else ended.status}. "
                f"What serves is untouched. Remedy: {remedy}",
                said[-20:],
            )
    shutil.rmtree(os.path.join(folder, "wheels"), ignore_errors=False)
    write_launcher(folder, request.program, request.release)


def write_launcher(folder: str, program: str, release: str) -> None:
    """`bin/PROGRAM`: names this release's own paths, so that two releases never mix while `current` moves."""
    lines = (
        f"#!{folder}/venv/bin/python -I",
        "import os, runpy, sys",
        f"sys.path.insert(0, {os.path.join(folder, 'app')!r})",
        f"os.environ[{program.upper().replace('-', '_') + '_RELEASE'!r}] = {release!r}",
        f"runpy.run_module({program!r}, run_name='__main__', alter_sys=True)",
    )
    os.makedirs(os.path.join(folder, "bin"), 0o755, exist_ok=True)
    image = FileImage(("\n".join(lines) + "\n").encode(), 0o755, os.geteuid(), os.getegid())
    atomic.write(os.path.join(folder, "bin", program), image)


@contextlib.contextmanager
def _open_umask() -> Iterator[None]:
    """The service's user must be able to read what a hardened root's umask would hide."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
