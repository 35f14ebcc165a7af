"""Tests that need a booted host: a real systemd, udev, PostgreSQL and Redis. `tools/real-tests` boots one.

The host is asked through its own tools over SSH; the engine runs there as a copy below /opt/hosttune-test.
Tests share the host: each takes the fixture `host`, which hands it over without a trace of the suite, and
gives back what it changed beside that.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
VARIABLE = "HOSTTUNE_REAL_INVENTORY"
BASE = "/opt/hosttune-test"


class Machine:
    """A booted test host."""

    def __init__(self, name: str, about: dict[str, Any]) -> None:
        self.name = name
        self.driver: str = about["lab_driver"]
        # Short: a path over 104 characters breaks ControlPersist.
        control = f"{tempfile.mkdtemp(prefix='htr-')}/%C"
        self.ssh = [
            *("ssh", "-F", "none", *shlex.split(about["ansible_ssh_common_args"])),
            *("-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ControlMaster=auto"),
            *("-o", "ControlPersist=60", "-o", f"ControlPath={control}"),
            *("-i", about["ansible_ssh_private_key_file"], "-p", str(about["ansible_port"])),
            f"{about['ansible_user']}@{about['ansible_host']}",
        ]

    def try_run(
        self, script: str, stdin: str | bytes = b"", timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """What a bash script on the host ended with."""
        ended = subprocess.run(
            [*self.ssh, f"bash -euo pipefail -c {shlex.quote(script)}"],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            check=False,
            timeout=timeout,
        )
        return subprocess.CompletedProcess(
            script,
            ended.returncode,
            ended.stdout.decode(errors="replace"),
            ended.stderr.decode(errors="replace"),
        )

    def run(self, script: str, stdin: str | bytes = b"", timeout: float = 300) -> str:
        """What a bash script on the host printed; it has to succeed."""
        ended = self.try_run(script, stdin, timeout)
        assert ended.returncode == 0, (
            f"{script}\nexit status {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        )
        return ended.stdout

    def put(self, files: dict[str, str | bytes], mode: int = 0o644) -> None:
        """Files by absolute path, all in one transfer; missing folders are made."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for path, content in files.items():
                raw = content.encode() if isinstance(content, str) else content
                about = tarfile.TarInfo(path.lstrip("/"))
                about.size, about.mode = len(raw), mode
                archive.addfile(about, io.BytesIO(raw))
        self.run("tar --extract --no-overwrite-dir --directory /", packed.getvalue())

    def install_engine(self) -> None:
        sources = ROOT / "module_utils/hosttune"
        files: dict[str, str | bytes] = {
            f"{BASE}/hosttune/{path.relative_to(sources)}": path.read_bytes()
            for path in sources.rglob("*.py")
        }
        files[f"{BASE}/driver.py"] = (Path(__file__).parent / "driver.py").read_bytes()
        self.put(files)

    def python(self, program: str, data: Any = None, timeout: float = 300) -> Any:
        """Runs a Python program with the engine to import on the host: JSON in, its JSON output back."""
        self.put({f"{BASE}/program.py": program})
        return json.loads(self.run(f"cd {BASE}; exec python3 -B program.py", json.dumps(data), timeout))

    def converge(self, owners: dict[str, Any], **options: Any) -> dict[str, Any]:
        """One host_settings call (options of engine.Request); see driver.py for the shape of the answer."""
        request = json.dumps({"owners": owners, **options})
        return json.loads(self.run(f"cd {BASE}; exec python3 -B driver.py converge", request))

    def undo(self, owners: dict[str, Any] | None = None) -> dict[str, Any]:
        return self.converge(owners or {}, present=False)

    def drift(self, **options: Any) -> dict[str, Any]:
        return json.loads(self.run(f"cd {BASE}; exec python3 -B driver.py drift", json.dumps(options)))

    def verdicts(self, found: dict[str, Any]) -> dict[str, str]:
        """Setting name -> verdict of an answer of `converge` or `drift`."""
        return {one["name"]: one["verdict"] for one in found["settings"]}


def _machine(driver: str) -> Machine:
    path = os.environ.get(VARIABLE)
    if not path:
        raise pytest.UsageError(f"{VARIABLE} names no inventory: run tools/real-tests, which boots a host")
    hosts = yaml.safe_load(Path(path).read_text())["trading"]["hosts"]
    for name, about in hosts.items():
        if about["lab_driver"] == driver:
            return Machine(name, about)
    raise pytest.UsageError(f"{path} has no {driver} host")


def play(
    folder: Path, options: dict[str, Any], *flags: str, keep: bool = False, **more: str
) -> subprocess.CompletedProcess[str]:
    """One host_settings task through Ansible itself; the options are in a file, never on a command line."""
    playbook = folder / "play.yml"
    playbook.touch(0o600)
    tasks = [{"host_settings": options}]
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", **more}
    if keep:
        environment |= {"ANSIBLE_KEEP_REMOTE_FILES": "1", "ANSIBLE_PIPELINING": "0"}
    return subprocess.run(
        [str(ROOT / ".venv/bin/ansible-playbook"), "-i", os.environ[VARIABLE], str(playbook), *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="session")
def machine() -> Machine:
    """The shared container host with the engine on it, as earlier tests left it."""
    found = _machine("container")
    found.install_engine()
    return found


@pytest.fixture
def host(machine: Machine) -> Machine:
    """The shared host without a trace of the suite, before and after the test."""
    _wipe(machine)
    yield machine
    _wipe(machine)


def _wipe(machine: Machine) -> None:
    found = machine.undo()
    assert not found.get("refused") and not found["failures"], found
    machine.run("rm -rf /etc/hosttune /var/lib/hosttune")
