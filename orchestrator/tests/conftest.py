"""The service as users meet it: its own process on a unix socket, real PostgreSQL and Redis beside it.

Needs the packages postgresql and redis-server; everything runs in a temporary folder on unix sockets.
"""

from __future__ import annotations

import getpass
import hashlib
import http.client
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]
LOCK = PROJECT.parent / "requirements" / "orchestrator.txt"
REDIS_PASSWORD = "s3cret-of-the-cache"  # noqa: S105 -- of a server that lives as long as the tests


def run(*words: str | Path, **options: Any) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def app_python() -> Path:
    """A Python that has exactly the locked dependencies; made once a lock."""
    digest = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:12]
    home = PROJECT.parent / ".cache" / "orchestrator-venv" / digest
    if not home.exists():
        shutil.rmtree(part := home.with_suffix(".part"), ignore_errors=True)
        run(sys.executable, "-m", "venv", part)
        run(part / "bin/python", "-m", "pip", "install", "-q", "--require-hashes", "-r", LOCK)
        part.rename(home)  # only bin/python is used, which finds its prefix wherever it stands
    return home / "bin/python"


@dataclass
class Servers:
    """A PostgreSQL and a Redis that can be stopped and started again."""

    folder: Path
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def database(self) -> str:
        return f"host={self.folder} dbname=postgres"

    def start(self, name: str) -> None:
        if name == "postgres":
            binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
            settings = ["fsync=off", "listen_addresses=", f"unix_socket_directories={self.folder}"]
            words = [binaries / "postgres", "-D", self.folder / "data", *(f"-c{one}" for one in settings)]
        else:
            words = ["redis-server", self.folder / "redis.conf"]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                list(map(str, words)), stdout=log, stderr=log, user=_unprivileged()
            )
        wait_for(lambda: self._answers(name), f"{name} to answer, see {self.folder}/{name}.log")

    def stop(self, name: str) -> None:
        process = self.processes.pop(name)
        process.terminate() if name == "redis" else process.send_signal(2)  # 2: fast, not waiting for clients
        process.wait(30)

    def _answers(self, name: str) -> bool:
        if name == "postgres":
            done = subprocess.run(
                ["psql", "-qAtX", "-c", "select 1", self.database], capture_output=True, timeout=10
            )
            return done.returncode == 0
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.folder / "redis.sock")) == 0

    def sql(self, statement: str, database: str = "") -> str:
        words = ["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statement, database or self.database]
        return run(*words).strip()


def _unprivileged() -> str:
    """Who runs the servers: PostgreSQL refuses root."""
    return "postgres" if os.geteuid() == 0 else getpass.getuser()


def wait_for(condition: Any, what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    missing = [] if binaries else ["postgresql"]
    missing += [] if shutil.which("redis-server") else ["redis-server"]
    if missing:
        pytest.fail(
            f"these tests need the packages {', '.join(missing)}: apt-get install {' '.join(missing)}"
        )
    # Not pytest's own folder: its path is too long for a unix socket, and closed to the servers' user.
    folder = Path(tempfile.mkdtemp(prefix="orch-"))
    owner = pwd.getpwnam(_unprivileged())
    os.chown(folder, owner.pw_uid, owner.pw_gid)
    folder.chmod(0o755)
    me = getpass.getuser()
    run(
        binaries[-1] / "initdb",
        *("-D", folder / "data", "-U", me, "--auth-local=peer", "--auth-host=reject", "--no-sync"),
        user=_unprivileged(),
        cwd=folder,
    )
    digest = hashlib.sha256(REDIS_PASSWORD.encode()).hexdigest()
    (folder / "redis.conf").write_text(
        f"port 0\nunixsocket {folder}/redis.sock\nunixsocketperm 777\nsave ''\ndir {folder}\n"
        f"user default off\nuser orchestrator on #{digest} ~quote:* +@all -@dangerous\n"
    )
    (folder / "redis-password").write_text(REDIS_PASSWORD + "\n")
    found = Servers(folder, {})
    try:
        found.start("postgres")
        found.start("redis")
        yield found
    finally:
        for name in list(found.processes):
            found.stop(name)
        shutil.rmtree(folder)


@dataclass
class Answer:
    status: int
    body: Any


@dataclass
class Api:
    """The running service."""

    path: Path
    process: subprocess.Popen[bytes]
    log: Path

    def call(self, method: str, target: str, body: Any = None, raw: bytes | None = None) -> Answer:
        connection = http.client.HTTPConnection("localhost", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(str(self.path))
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, target, data)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return Answer(response.status, json.loads(content) if is_json else content.decode())

    def get(self, target: str) -> Answer:
        return self.call("GET", target)

    def order(self, client_order_id: str, **changes: Any) -> Answer:
        body = {"symbol": "AAPL", "side": "buy", "quantity": 3, "client_order_id": client_order_id, **changes}
        return self.call("POST", "/api/v1/orders", body)


@dataclass
class App:
    """How to run the service's commands on a database of its own."""

    python: Path
    servers: Servers
    database: str
    folder: Path

    def environment(self, **changes: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(PROJECT),
            "ORCHESTRATOR_DATABASE": self.database,
            "ORCHESTRATOR_REDIS_SOCKET": f"{self.servers.folder}/redis.sock",
            "ORCHESTRATOR_REDIS_USER": "orchestrator",
            "ORCHESTRATOR_REDIS_PASSWORD_FILE": f"{self.servers.folder}/redis-password",
            "ORCHESTRATOR_RELEASE": "test-release",
            **changes,
        }

    def command(self, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), "-m", "orchestrator", *words],
            env=self.environment(**changes),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def sql(self, statement: str) -> str:
        return self.servers.sql(statement, self.database)

    @contextmanager
    def serve(self, **changes: str) -> Iterator[Api]:
        path, log = self.folder / "api.sock", self.folder / "api.log"
        environment = self.environment(ORCHESTRATOR_LISTEN=f"unix:{path}", **changes)
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [str(self.python), "-m", "orchestrator", "serve"],
                env=environment,
                stdout=stream,
                stderr=stream,
            )
        try:
            wait_for(lambda: path.exists() or process.poll() is not None, "the service to listen")
            assert process.poll() is None, log.read_text()
            yield Api(path, process, log)
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def app(app_python: Path, servers: Servers, request: pytest.FixtureRequest) -> Iterator[App]:
    """A fresh, unmigrated database for each test module."""
    name = request.module.__name__.rpartition(".")[2]
    servers.sql(f"CREATE DATABASE {name}")
    folder = servers.folder / name
    folder.mkdir()
    yield App(app_python, servers, f"host={servers.folder} dbname={name}", folder)
    servers.sql(f"DROP DATABASE {name} WITH (FORCE)")
