"""The deploy engine on real folders, with real processes that answer real HTTP. Only systemctl is played."""

from __future__ import annotations

import base64
import dataclasses
import errno
import fcntl
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosttune import release as engine
from hosttune.model import Refusal
from hosttune.release import Deployment, Health, Outcome, ReleaseError, Request
from hosttune.system import Ran, System

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"

#: A service that behaves as its artefact's `behave.json` and the file ILL beside its socket say.
SERVICE = """
import json, os, socketserver, sys, time

with open(os.path.join(os.path.dirname(__file__), "behave.json")) as stream:
    behave = json.load(stream)
release = behave.get("claims", os.environ["DEMO_RELEASE"])
listen = os.environ["DEMO_LISTEN"]
print("starting", release, flush=True)
if sys.argv[1:] == ["migrate"]:
    sys.exit(behave.get("migrate", 0))
if behave.get("dies"):
    sys.exit("demo: cannot find its configuration")

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        path = self.rfile.readline().split()[1]
        live = listen.endswith("live.sock")
        served = time.monotonic() - started
        ill = path == b"/ready" and (
            behave.get("ill") or live and (behave.get("ill_live") or served > behave.get("ill_after", 1e9))
        )
        body = json.dumps({"release": release, "database": "no answer" if ill else "ok"})
        self.wfile.write(f"HTTP/1.0 {503 if ill else 200} x\\r\\n\\r\\n{body}".encode())

started = time.monotonic()
socketserver.ThreadingUnixStreamServer(listen, Handler).serve_forever()
"""


class Unsynced(System):
    """The machine, without waiting for all that others write to its disk."""

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        return Ran(0, "", "") if argv[0] == "sync" else super().run(*argv, stdin=stdin, timeout=timeout)


class Played:
    """systemctl as far as the engine uses it: units are processes started from the releases' launchers."""

    def __init__(self, root: Path, sockets: Path) -> None:
        self.root, self.sockets = root, sockets
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.calls: list[str] = []
        self.loaded = True

    def _socket(self, unit: str) -> Path:
        return self.sockets / ("live.sock" if unit == "demo.service" else f"{unit}.sock")

    def state(self, unit: str) -> tuple[str, str]:
        process = self.processes.get(unit)
        active = "inactive" if process is None else "active" if process.poll() is None else "failed"
        return "loaded" if self.loaded else "not-found", active

    def start(self, unit: str) -> None:
        self.calls.append(f"start {unit}")
        name = unit.partition("@")[2].removesuffix(".service")
        launcher = self.root / ("releases/" + name if name else "current") / "bin/demo"
        words = [str(launcher), "migrate"] if unit.startswith("demo-migrate") else [str(launcher)]
        socket = self._socket(unit)
        socket.unlink(missing_ok=True)
        with (self.sockets / f"{unit}.log").open("wb") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, env={"DEMO_LISTEN": str(socket)})
        if unit.startswith("demo-migrate"):
            if process.wait(30):
                raise ReleaseError(f"systemctl start {unit}: failed", self.log(unit))
            return
        self.processes[unit] = process

    def restart(self, unit: str) -> None:
        self.stop(unit)
        self.start(unit)

    def stop(self, unit: str) -> None:
        process = self.processes.pop(unit, None)
        if process is not None:
            self.calls.append(f"stop {unit}")
            process.kill()
            process.wait()

    def log(self, unit: str, lines: int = 20) -> list[str]:
        return (self.sockets / f"{unit}.log").read_text().splitlines()[-lines:]


class Host:
    """One host with a root folder, and how to deploy to it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "opt"
        self.sockets = Path(tempfile.mkdtemp(prefix="rel-"))  # pytest's paths are too long for sockets
        self.services = Played(self.root, self.sockets)
        self.health = Health(
            url=f"unix:{self.sockets}/live.sock",
            candidate=f"unix:{self.sockets}/demo-candidate@{{id}}.service.sock",
            timeout=5,
            watch=0.1,
        )
        self.extra: dict[str, Any] = {}

    def close(self) -> None:
        for unit in list(self.services.processes):
            self.services.stop(unit)
        shutil.rmtree(self.sockets)

    def request(self, **changes: Any) -> Request:
        basis = {
            "root": str(self.root),
            "program": "demo",
            "service": "demo.service",
            "candidate_unit": "demo-candidate@{id}.service",
            "migrate_unit": "demo-migrate@{id}.service",
            "health": self.health,
            "python": sys.executable,
            "lock_wait": 0.1,
        }
        return Request(**{**basis, **self.extra, **changes})

    def run(self, request: Request, build: Any = None) -> Outcome:
        system = System("/") if build is engine.install else Unsynced()
        return Deployment(
            request,
            system,
            self.services,
            build or quick_install,
            sleep=lambda seconds: time.sleep(seconds / 10),
        ).run()

    def deploy(self, name: str, behave: dict[str, Any] | None = None, **changes: Any) -> Outcome:
        artefact, digest = pack(self.folder, name, {"app/demo/behave.json": json.dumps(behave or {})})
        wanted = {"state": "present", "release": name, "artefact": artefact, "sha256": digest}
        return self.run(self.request(**{**wanted, **changes}))

    def roll_back(self, **changes: Any) -> Outcome:
        return self.run(self.request(**{"state": "rolled_back", **changes}))

    def serving(self) -> str:
        """Which release answers, asked over HTTP."""
        status, body = engine.get(self.health.url, "/health")
        assert status == 200
        return str(json.loads(body)["release"])

    def on_disk(self) -> list[str]:
        return sorted(os.listdir(self.root / "releases"))

    def journal(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / "state.json").read_text())
        return found


def pack(
    folder: Path, name: str, files: dict[str, str | bytes], about: dict[str, str] | None = None
) -> tuple[str, str]:
    """A release artefact; (path, sha256)."""
    basis: dict[str, str | bytes] = {
        "release.json": json.dumps({"python_version": HERE, "arch": platform.machine(), **(about or {})}),
        "requirements.txt": "",
        "app/demo/__init__.py": "",
        "app/demo/__main__.py": SERVICE,
    }
    path = folder / f"{name}.tar.gz"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for file_name, content in {**basis, **files}.items():
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(file_name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    path.write_bytes(gzip.compress(packed.getvalue(), mtime=0))  # the same contents are the same artefact
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


def quick_install(deployment: Deployment, folder: str, stream: Any) -> None:
    """As `install`, without the seconds that a virtual environment takes."""
    engine.unpack(stream, folder)
    (Path(folder) / "venv/bin").mkdir(parents=True)
    (Path(folder) / "venv/bin/python").symlink_to(sys.executable)
    engine.write_launcher(folder, deployment.request.program, deployment.request.release)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    # In memory where that is to be had: the engine syncs at every step, and the disk is not what is tested.
    memory = Path("/dev/shm")  # noqa: S108
    folder = Path(tempfile.mkdtemp(dir=memory)) if os.access(memory, os.W_OK) else tmp_path
    found = Host(folder)
    yield found
    found.close()
    shutil.rmtree(folder)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """inode and mtime of everything below: equal means nothing was touched."""
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
        if path.name != ".lock"
    }


# --- the good way


def test_the_first_release_serves(host: Host) -> None:
    outcome = host.deploy("1")
    assert (outcome.changed, outcome.release, outcome.previous) == (True, "1", None)
    assert host.serving() == "1"
    assert os.readlink(host.root / "current") == "releases/1"
    assert host.services.calls[:3] == [
        "start demo-migrate@1.service",
        "start demo-candidate@1.service",
        "stop demo-candidate@1.service",
    ]
    assert outcome.diff == {"before": "current: None\nreleases:\n", "after": "current: 1\nreleases:\n1\n"}


def test_a_second_run_does_nothing_at_all(host: Host) -> None:
    host.deploy("1")
    before, calls = snapshot(host.root), list(host.services.calls)
    outcome = host.deploy("1")
    assert (outcome.changed, outcome.release, outcome.steps, outcome.diff) == (False, "1", [], {})
    assert snapshot(host.root) == before
    assert host.services.calls == calls


def test_a_new_release_takes_over_and_the_old_one_is_the_way_back(host: Host) -> None:
    host.deploy("1")
    outcome = host.deploy("2")
    assert (outcome.release, outcome.previous, outcome.releases) == ("2", "1", ["1", "2"])
    assert host.serving() == "2"


def test_releases_are_readable_for_the_service_whatever_the_umask(host: Host) -> None:
    before = os.umask(0o077)
    try:
        host.deploy("1")
    finally:
        assert os.umask(before) == 0o077
    for path in [host.root, *(host.root / "releases").rglob("*")]:
        # __pycache__ is the played service's own, made as it ran
        if not path.is_symlink() and "__pycache__" not in path.parts:
            assert path.stat().st_mode & 0o044 == 0o044, path


def test_a_stopped_service_is_started_again(host: Host) -> None:
    host.deploy("1")
    host.services.stop("demo.service")
    assert host.deploy("1").changed
    assert host.serving() == "1"
    assert not host.deploy("1").changed


def test_the_environment_is_built_from_the_wheels_alone(host: Host) -> None:
    """The real thing once: venv, pip with hashes and no index, bytecode, launcher."""
    packed = io.BytesIO()
    files = {
        "tiny.py": b"WORD = 'from the wheel'\n",
        "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(packed, "w") as wheel:
        record = ""
        for name, content in files.items():
            wheel.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(content)}\n"
        wheel.writestr("tiny-1.0.dist-info/RECORD", record + "tiny-1.0.dist-info/RECORD,,\n")
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    contents: dict[str, str | bytes] = {
        "requirements.txt": f"tiny==1.0 --hash=sha256:{digest}\n",
        "wheels/tiny-1.0-py3-none-any.whl": packed.getvalue(),
        "app/demo/behave.json": "{}",
        "app/demo/__main__.py": "import tiny; assert tiny.WORD == 'from the wheel'\n" + SERVICE,
    }
    artefact, digest = pack(host.folder, "1", contents)
    request = host.request(state="present", release="1", artefact=artefact, sha256=digest)
    host.run(request, engine.install)
    assert host.serving() == "1"
    release = host.root / "releases/1"
    assert sorted(one.name for one in release.iterdir()) == [
        "app",
        "bin",
        "release.json",
        "requirements.txt",
        "venv",
    ]
    assert list((release / "app/demo/__pycache__").glob("*.pyc"))

    # A wheel that is not the locked one is refused by pip, and what serves does not notice.
    contents["requirements.txt"] = f"tiny==1.0 --hash=sha256:{'0' * 64}\n"
    artefact, digest = pack(host.folder, "2", contents)
    with pytest.raises(ReleaseError, match=r"release 2 could not be built \(wheels\)") as failure:
        host.run(host.request(state="present", release="2", artefact=artefact, sha256=digest), engine.install)
    assert "untouched" in str(failure.value)
    assert host.serving() == "1"


# --- what is refused, before anything is touched


def test_a_wrong_checksum_names_file_both_sums_and_remedy(host: Host) -> None:
    host.deploy("1")
    artefact, digest = pack(host.folder, "2", {"app/demo/behave.json": "{}"})
    before = snapshot(host.root)
    with pytest.raises(Refusal) as refusal:
        host.run(host.request(state="present", release="2", artefact=artefact, sha256="0" * 64))
    for part in (artefact, digest, "0" * 64, "nothing was unpacked", "Build the artefact again"):
        assert part in str(refusal.value)
    assert snapshot(host.root) == before
    assert host.serving() == "1"


@pytest.mark.parametrize(
    "name", ["../escape", "/etc/escape", "app/../../escape", "bin/demo", ".building", "venv/x"]
)
def test_an_artefact_that_writes_elsewhere_is_refused(host: Host, name: str) -> None:
    artefact, digest = pack(host.folder, "1", {name: "x"})
    with pytest.raises(Refusal, match=r"wants to write|is made on the host"):
        host.run(host.request(state="present", release="1", artefact=artefact, sha256=digest))
    assert host.on_disk() == []
    assert not list(host.folder.rglob("escape"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_an_artefact_with_links_or_devices_is_refused(host: Host, kind: bytes) -> None:
    path, _ = pack(host.folder, "1", {})
    with tarfile.open(path) as archive:
        files = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        odd = tarfile.TarInfo("app/odd")
        odd.type, odd.linkname = kind, "/etc/passwd"
        archive.addfile(odd)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    with pytest.raises(Refusal, match="no plain file"):
        host.run(host.request(state="present", release="1", artefact=path, sha256=digest))
    assert host.on_disk() == []


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00half of a gzip"])
def test_what_is_no_archive_is_refused(host: Host, content: bytes) -> None:
    path = host.folder / "x.tar.gz"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(Refusal, match="is no release"):
        host.run(host.request(state="present", release="1", artefact=str(path), sha256=digest))
    assert host.on_disk() == []


def test_an_artefact_cut_short_is_refused(host: Host) -> None:
    path, _ = pack(host.folder, "1", {"app/demo/big": os.urandom(200_000)})
    Path(path).write_bytes(Path(path).read_bytes()[:-50_000])
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    with pytest.raises(Refusal, match="is no release"):
        host.run(host.request(state="present", release="1", artefact=path, sha256=digest))
    assert host.on_disk() == []


def test_a_release_for_another_python_is_refused_with_the_remedy(host: Host) -> None:
    artefact, digest = pack(host.folder, "1", {}, {"python_version": "3.99"})
    with pytest.raises(Refusal, match=rf"built for Python 3\.99.*--python-version {HERE}"):
        host.run(host.request(state="present", release="1", artefact=artefact, sha256=digest))
    assert host.on_disk() == []


def test_too_little_room_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "UNPACKED_FACTOR", 1 << 50)
    with pytest.raises(Refusal, match="MiB free"):
        host.deploy("1")
    assert host.on_disk() == []


def test_without_its_unit_nothing_is_built(host: Host) -> None:
    host.services.loaded = False
    with pytest.raises(Refusal, match=r"demo.service: systemd says not-found.*site.yml"):
        host.deploy("1")
    assert host.on_disk() == []


def test_one_id_cannot_mean_two_artefacts(host: Host) -> None:
    host.deploy("1")
    with pytest.raises(Refusal, match="an ID of its own"):
        host.deploy("1", {"other": True})


@pytest.mark.parametrize(
    "changes",
    [
        {"release": "../x"},
        {"release": ".hidden"},
        {"release": ""},
        {"root": "/"},
        {"root": "opt"},
        {"keep": 0},
    ],
)
def test_a_senseless_request_is_refused(host: Host, changes: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        host.deploy("1", **changes)
    assert not host.root.exists()


@pytest.mark.parametrize("make", [lambda link: link.mkdir(), lambda link: link.symlink_to("/tmp")])  # noqa: S108
def test_a_current_that_is_not_ours_is_never_replaced(host: Host, make: Any) -> None:
    host.root.mkdir()
    make(host.root / "current")
    with pytest.raises(Refusal, match=r"current: (is not a symbolic link|points to)"):
        host.deploy("1")
    assert (host.root / "current").lstat()


def test_a_journal_of_a_newer_suite_is_not_guessed_at(host: Host) -> None:
    host.deploy("1")
    for content in ('{"schema": 2}', "{", "[]"):
        (host.root / "state.json").write_text(content)
        with pytest.raises(Refusal, match=r"state.json"):
            host.deploy("2")
    assert host.serving() == "1"


# --- releases that are not well


def test_a_release_that_never_gets_ready_does_not_switch(host: Host) -> None:
    host.deploy("1")
    host.health = dataclasses.replace(host.health, timeout=0.6)
    with pytest.raises(ReleaseError) as failure:
        host.deploy("2", {"ill": True})
    for part in ("release 2", "did not get healthy", "/ready: 503", "no answer", "1 still serves", "Remedy"):
        assert part in str(failure.value)
    assert failure.value.log == ["starting 2"]
    assert failure.value.outcome is not None
    assert (failure.value.outcome.release, failure.value.outcome.rolled_back) == ("1", False)
    assert host.serving() == "1"
    assert "demo-candidate@2.service" not in host.services.processes


def test_a_release_that_dies_is_told_with_its_last_words(host: Host) -> None:
    started = time.monotonic()
    with pytest.raises(
        ReleaseError, match=r"demo-candidate@1.service is failed.*no release serves"
    ) as failure:
        host.deploy("1", {"dies": True})
    assert time.monotonic() - started < host.health.timeout  # a dead process is not waited for
    assert "demo: cannot find its configuration" in failure.value.log
    assert not (host.root / "current").is_symlink()


def test_a_failed_migration_stops_before_the_candidate(host: Host) -> None:
    host.deploy("1")
    with pytest.raises(ReleaseError, match=r"release 2: the migration failed.*1 still serves"):
        host.deploy("2", {"migrate": 3})
    assert "start demo-candidate@2.service" not in host.services.calls
    assert host.serving() == "1"


def test_a_release_that_is_another_one_is_not_taken_for_it(host: Host) -> None:
    host.health = dataclasses.replace(host.health, timeout=0.4)
    with pytest.raises(ReleaseError, match="release 7 answers, not 2"):
        host.deploy("2", {"claims": "7"})


@pytest.mark.parametrize("behave", [{"ill_live": True}, {"ill_after": 0.2}])
def test_a_release_that_falls_ill_after_the_switch_is_left_again(host: Host, behave: dict[str, Any]) -> None:
    host.deploy("1")
    host.health = dataclasses.replace(host.health, timeout=1, watch=3)
    with pytest.raises(ReleaseError, match=r"release 2 did not stay healthy.*1 serves again") as failure:
        host.deploy("2", behave)
    assert failure.value.outcome is not None
    assert (failure.value.outcome.rolled_back, failure.value.outcome.release) == (True, "1")
    assert host.serving() == "1"
    assert os.readlink(host.root / "current") == "releases/1"
    assert (host.journal()["switching"], host.journal()["previous"]) == (None, None)


def test_a_first_release_that_falls_ill_leaves_nothing_serving(host: Host) -> None:
    host.health = dataclasses.replace(host.health, timeout=0.5)
    with pytest.raises(ReleaseError, match="none serves now"):
        host.deploy("1", {"ill_live": True})
    assert not os.path.lexists(host.root / "current")
    assert host.services.state("demo.service")[1] == "inactive"


def test_it_says_so_when_the_way_back_is_ill_too(host: Host) -> None:
    host.deploy("1")
    (host.root / "releases/1/app/demo/behave.json").write_text('{"ill": true}')
    host.health = dataclasses.replace(host.health, timeout=0.5)
    with pytest.raises(ReleaseError, match="IS NOT WELL EITHER"):
        host.deploy("2", {"ill_live": True})


def test_after_a_failure_the_mended_release_deploys(host: Host) -> None:
    host.deploy("1")
    host.health = dataclasses.replace(host.health, timeout=0.5)
    with pytest.raises(ReleaseError):
        host.deploy("2", {"ill": True})
    host.health = dataclasses.replace(host.health, timeout=5)
    assert host.deploy("3").previous == "1"
    assert host.serving() == "3"


# --- restart not allowed


def test_a_serving_release_is_not_interrupted_without_leave(host: Host) -> None:
    first = host.deploy("1", restart_allowed=False)
    assert (first.release, first.pending) == ("1", "")  # the first one interrupts nobody
    second = host.deploy("2", restart_allowed=False)
    assert (second.changed, second.release, second.pending) == (True, "1", "restart")
    assert "waits" in second.message
    before, calls = snapshot(host.root), list(host.services.calls)
    third = host.deploy("2", restart_allowed=False)
    assert (third.changed, third.pending) == (False, "restart")
    assert (snapshot(host.root), host.services.calls) == (before, calls)
    assert host.serving() == "1"
    assert host.deploy("2").release == "2"
    assert host.serving() == "2"


# --- going back


def test_rollback_returns_and_a_second_one_goes_no_further(host: Host) -> None:
    for name in "123":
        host.deploy(name)
    outcome = host.roll_back()
    assert (outcome.changed, outcome.rolled_back, outcome.release, outcome.previous) == (
        True,
        True,
        "2",
        None,
    )
    assert host.serving() == "2"
    calls = list(host.services.calls)
    again = host.roll_back()
    assert (again.changed, again.release) == (False, "2")
    assert "already back at 2 (from 3)" in again.message
    assert host.services.calls == calls
    assert "start demo-migrate@2.service" not in calls[calls.index("start demo-migrate@3.service") :]


def test_what_an_operator_left_does_not_come_back_by_itself(host: Host) -> None:
    host.deploy("1")
    host.deploy("2")
    host.roll_back()
    before = snapshot(host.root)
    outcome = host.deploy("2")
    assert (outcome.changed, outcome.pending, outcome.release) == (False, "redeploy", "1")
    assert "an operator went back from it to 1" in outcome.message
    assert snapshot(host.root) == before
    assert host.deploy("2", redeploy=True).release == "2"
    assert host.deploy("2").pending == ""


def test_rollback_to_a_named_release(host: Host) -> None:
    for name in "123":
        host.deploy(name)
    assert host.roll_back(release="1").release == "1"
    assert host.serving() == "1"
    assert not host.roll_back(release="1").changed
    assert host.deploy("4").previous == "1"
    assert host.roll_back().release == "1"


def test_rollback_without_a_previous_release_says_so(host: Host) -> None:
    with pytest.raises(Refusal, match="no release on this host"):
        host.roll_back()
    host.deploy("1")
    with pytest.raises(Refusal, match=r"no previous release.*On this host: 1"):
        host.roll_back()
    with pytest.raises(Refusal, match=r"release 9: is not on this host.*1"):
        host.roll_back(release="9")


def test_rollback_proves_the_old_release_before_it_switches(host: Host) -> None:
    host.deploy("1")
    host.deploy("2")
    (host.root / "releases/1/app/demo/behave.json").write_text('{"ill": true}')
    host.health = dataclasses.replace(host.health, timeout=0.5)
    with pytest.raises(ReleaseError, match=r"release 1.*2 still serves"):
        host.roll_back()
    assert host.serving() == "2"


# --- keeping few


def test_old_releases_go_but_never_the_serving_one_or_the_way_back(host: Host) -> None:
    for name in "1234":
        host.deploy(name, keep=2)
    assert host.on_disk() == ["3", "4"]
    host.extra = {"keep": 1}
    outcome = host.deploy("4")
    assert (outcome.changed, host.on_disk()) == (False, ["3", "4"])


def test_a_row_of_failures_does_not_push_good_releases_out(host: Host) -> None:
    for name in "123":
        host.deploy(name)
    host.health = dataclasses.replace(host.health, timeout=0.3)
    for name in "45":
        with pytest.raises(ReleaseError):
            host.deploy(name, {"dies": True})
    host.health = dataclasses.replace(host.health, timeout=5)
    outcome = host.deploy("6", keep=4)
    assert (outcome.removed, host.on_disk()) == (["4", "5"], ["1", "2", "3", "6"])


def test_rollback_far_back_protects_what_serves(host: Host) -> None:
    for name in "123":
        host.deploy(name)
    host.roll_back(release="1")
    outcome = host.deploy("4", keep=1)
    assert (outcome.removed, host.on_disk()) == (["2", "3"], ["1", "4"])


def test_fewer_to_keep_is_a_change_of_its_own(host: Host) -> None:
    for name in "123":
        host.deploy(name)
    predicted = host.deploy("3", keep=2, check=True)
    assert (predicted.changed, predicted.removed, host.on_disk()) == (True, ["1"], ["1", "2", "3"])
    outcome = host.deploy("3", keep=2)
    assert (outcome.changed, outcome.removed, host.on_disk()) == (True, ["1"], ["2", "3"])
    assert not host.deploy("3", keep=2).changed


def test_folders_that_are_not_ours_stay(host: Host) -> None:
    host.deploy("1")
    (host.root / "releases/notes").mkdir()
    (host.root / "releases/notes/kept").write_text("mine")
    host.deploy("2", keep=1)
    assert (host.root / "releases/notes/kept").exists()


def test_absent_removes_a_release_but_not_what_is_needed(host: Host) -> None:
    for name in "123":
        host.deploy(name)
    for name in ("3", "2"):
        with pytest.raises(Refusal, match="Switch to another one first"):
            host.run(host.request(state="absent", release=name))
    assert host.run(host.request(state="absent", release="1", check=True)).changed
    assert host.run(host.request(state="absent", release="1")).removed == ["1"]
    assert host.on_disk() == ["2", "3"]
    assert not host.run(host.request(state="absent", release="1")).changed


# --- check mode


def test_check_mode_predicts_and_touches_nothing(host: Host) -> None:
    fresh = host.deploy("1", check=True)
    assert (fresh.changed, fresh.release, host.root.exists()) == (True, "1", False)
    done = host.deploy("1")
    for name in ("changed", "release", "previous", "releases", "removed", "diff"):
        assert getattr(fresh, name) == getattr(done, name), name
    host.deploy("2")
    before, calls = snapshot(host.root), list(host.services.calls)
    predicted = host.deploy("3", keep=2, check=True)
    back = host.roll_back(check=True)
    idle = host.deploy("2", check=True)
    assert (snapshot(host.root), host.services.calls) == (before, calls)
    assert (back.changed, back.release, idle.changed, idle.release) == (True, "1", False, "2")
    done = host.deploy("3", keep=2)
    for name in ("changed", "release", "previous", "releases", "removed", "diff"):
        assert getattr(predicted, name) == getattr(done, name), name


def test_check_mode_needs_no_artefact_but_checks_the_one_it_has(host: Host) -> None:
    assert host.deploy("1", artefact="/nowhere", check=True).changed
    with pytest.raises(Refusal, match="sha256"):
        host.deploy("1", sha256="0" * 64, check=True)


# --- cut off at any instant


class PowerCut(BaseException):
    """Nothing may catch it."""


CUTS = [
    "mkdir",
    "marker",
    "half built",
    "built",
    "journal after build",
    "migrate",
    "candidate",
    "journal before the switch",
    "link",
    "restart",
    "journal after the switch",
]


@pytest.mark.parametrize("cut", CUTS)
def test_a_run_that_is_cut_off_anywhere_is_completed_by_the_next(
    host: Host, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    host.deploy("1")
    fell = []

    def fall(when: bool = True) -> None:
        if when and not fell:
            fell.append(cut)
            raise PowerCut

    with monkeypatch.context() as patch:
        save, point, serve = engine.Store.save, engine.Store.point_to, host.services.start
        saves: list[str] = []

        def cut_save(store: engine.Store) -> None:
            saves.append("journal")
            save_points = {
                1: "journal after build",
                3: "journal before the switch",
                4: "journal after the switch",
            }
            fall(save_points.get(len(saves)) == cut)
            save(store)

        def cut_point(store: engine.Store, release: str | None) -> None:
            point(store, release)
            fall(cut == "link")

        def cut_start(unit: str) -> None:
            serve(unit)
            fall(unit == {"migrate": "demo-migrate@2.service", "restart": "demo.service"}.get(cut))
            fall(cut == "candidate" and unit == "demo-candidate@2.service")

        def cut_install(deployment: Deployment, folder: str, stream: Any) -> None:
            if cut == "mkdir":
                os.unlink(Path(folder, ".building"))
            fall(cut in ("mkdir", "marker"))
            quick_install(deployment, folder, stream)
            if cut == "half built":
                os.unlink(Path(folder, "bin/demo"))
            fall(cut in ("half built", "built"))

        patch.setattr(engine.Store, "save", cut_save)
        patch.setattr(engine.Store, "point_to", cut_point)
        patch.setattr(host.services, "start", cut_start)
        artefact, digest = pack(host.folder, "2", {"app/demo/behave.json": "{}"})
        request = host.request(state="present", release="2", artefact=artefact, sha256=digest)
        with pytest.raises(PowerCut):
            host.run(request, cut_install)
    assert fell == [cut]
    current = os.readlink(host.root / "current")
    assert (host.root / current / "bin/demo").exists()

    # A power cut ends every process too; the boot starts what `current` names.
    for unit in list(host.services.processes):
        host.services.stop(unit)
    host.services.start("demo.service")
    outcome = host.run(request)
    assert (outcome.release, outcome.previous) == ("2", "1")
    assert host.serving() == "2"
    assert host.on_disk() == ["1", "2"]
    assert not host.run(request).changed
    assert host.roll_back().release == "1"


def test_after_a_cut_off_switch_an_ill_release_is_left_for_the_last_good_one(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.deploy("1")
    with monkeypatch.context() as patch:
        patch.setattr(Deployment, "_stays_well", lambda *_: (_ for _ in ()).throw(PowerCut()))
        with pytest.raises(PowerCut):
            host.deploy("2", {"ill_after": 1.0})
    host.health = dataclasses.replace(host.health, watch=4)
    with pytest.raises(ReleaseError, match="1 serves again"):
        host.deploy("2", {"ill_after": 1.0})
    assert host.serving() == "1"


def test_rollback_after_a_cut_off_switch_goes_to_the_last_good_one(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "12":
        host.deploy(name)
    with monkeypatch.context() as patch:
        patch.setattr(Deployment, "_stays_well", lambda *_: (_ for _ in ()).throw(PowerCut()))
        with pytest.raises(PowerCut):
            host.deploy("3")
    assert host.serving() == "3"
    assert host.roll_back().release == "2"
    assert host.serving() == "2"
    assert not host.roll_back().changed


def test_litter_of_other_interrupted_builds_goes(host: Host) -> None:
    (host.root / "releases/0/app").mkdir(parents=True)
    (host.root / "releases/0/.building").touch()
    (host.root / "releases/.trash-9/app").mkdir(parents=True)
    host.deploy("1")
    assert host.on_disk() == ["1"]


def test_two_at_once_do_not_interleave(host: Host) -> None:
    host.deploy("1")
    with (host.root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("alice on desk-7")
        lock.flush()
        before = snapshot(host.root)
        with pytest.raises(Refusal, match="alice on desk-7"):
            host.deploy("2")
        assert snapshot(host.root) == before


def test_a_full_disk_leaves_what_serves(host: Host) -> None:
    host.deploy("1")
    artefact, digest = pack(host.folder, "2", {"app/demo/behave.json": "{}"})
    request = host.request(state="present", release="2", artefact=artefact, sha256=digest)

    def full(deployment: Deployment, folder: str, stream: Any) -> None:
        engine.unpack(stream, folder)
        raise OSError(errno.ENOSPC, "No space left on device", folder)

    with pytest.raises(OSError, match="No space left"):
        host.run(request, full)
    assert host.serving() == "1"
    assert host.run(request).release == "2"
    assert host.on_disk() == ["1", "2"]


# --- talking to systemd


class Recorder(System):
    """Answers systemctl and journalctl from a list."""

    def __init__(self, active: str, fails: str = "") -> None:
        super().__init__("/")
        self.active, self.fails, self.said = active, fails, list[str]()

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        self.said.append(" ".join(argv))
        if argv[0] == "journalctl":
            return Ran(0, "one\ntwo\n", "")
        if argv[1] == "show":
            return Ran(0, f"LoadState=loaded\nActiveState={self.active}\nInvocationID=abc\n", "")
        return Ran(1, "", "Job failed.\nSee more") if argv[1] == self.fails else Ran(0, "", "")


def test_a_unit_that_failed_before_may_start_again() -> None:
    system = Recorder("failed")
    engine.SystemdServices(system).restart("x.service")
    assert [one for one in system.said if "show" not in one] == [
        "systemctl reset-failed x.service",
        "systemctl restart x.service",
    ]


def test_a_unit_that_is_not_running_is_not_stopped() -> None:
    system = Recorder("inactive")
    engine.SystemdServices(system).stop("x.service")
    assert [one for one in system.said if "show" not in one] == []


def test_a_start_that_fails_brings_the_log_of_that_start() -> None:
    system = Recorder("inactive", fails="start")
    with pytest.raises(ReleaseError, match=r"systemctl start x.service: Job failed.$") as failure:
        engine.SystemdServices(system).start("x.service")
    assert failure.value.log == ["one", "two"]
    assert "_SYSTEMD_INVOCATION_ID=abc + INVOCATION_ID=abc" in system.said[-1]
