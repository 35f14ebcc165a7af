"""What orchestrator/build.py makes is what the deploy engine takes, and the same source makes the same."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hosttune import release as engine
from hosttune.model import Refusal
from hosttune.system import System

REPOSITORY = Path(__file__).parents[2]
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="build.py runs on the controller's Python (3.11) only"
)


@pytest.fixture(scope="module")
def build() -> Any:
    found = importlib.util.spec_from_file_location("orchestrator_build", REPOSITORY / "orchestrator/build.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def cache(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that has the wheels already: nothing is downloaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    digest = hashlib.sha256(build.LOCK.read_bytes()).hexdigest()[:16]
    wheels = tmp_path / "hosttune/wheels" / f"{digest}-{HERE}-{platform.machine()}"
    wheels.mkdir(parents=True)
    for name in ("b-1-py3-none-any.whl", "a-1-py3-none-any.whl"):
        (wheels / name).write_text(name)
    return tmp_path


def make(build: Any, **changes: Any) -> dict[str, str]:
    found: dict[str, str] = build.build(**{"python_version": HERE, "arch": platform.machine(), **changes})
    return found


def test_the_same_source_is_the_same_artefact_wherever_and_whenever(
    build: Any, cache: Path, tmp_path: Path
) -> None:
    first = make(build)
    for wheel in cache.rglob("*.whl"):
        wheel.touch()
    second = make(build, output=tmp_path / "elsewhere")
    assert (first["id"], first["sha256"]) == (second["id"], second["sha256"])
    assert Path(first["path"]).read_bytes() == Path(second["path"]).read_bytes()
    assert hashlib.sha256(Path(first["path"]).read_bytes()).hexdigest() == first["sha256"]
    assert first["id"] == f"{first['version']}-{first['sha256'][:12]}"
    assert engine.ID.fullmatch(first["id"])


def test_it_holds_source_lock_and_wheels_and_no_trace_of_its_maker(build: Any, cache: Path) -> None:
    with tarfile.open(make(build)["path"]) as archive:
        members = archive.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names)
    assert {
        "release.json",
        "requirements.txt",
        "app/orchestrator/__main__.py",
        "wheels/a-1-py3-none-any.whl",
    } <= set(names)
    assert not [name for name in names if "test" in name or "__pycache__" in name]
    assert {(one.uid, one.gid, one.uname, one.mtime, one.mode) for one in members} == {(0, 0, "", 0, 0o644)}


def test_another_source_is_another_release(
    build: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(build)
    changed = tmp_path / "orchestrator"
    (changed / "orchestrator").mkdir(parents=True)
    (changed / "orchestrator/__main__.py").write_text("print('other')\n")
    (changed / "pyproject.toml").write_bytes((build.HERE / "pyproject.toml").read_bytes())
    monkeypatch.setattr(build, "HERE", changed)
    assert make(build)["id"] != first["id"]


def test_the_engine_takes_it(build: Any, cache: Path, tmp_path: Path) -> None:
    made = make(build)
    request = engine.Request(
        state="present", artefact=made["path"], root=str(tmp_path), python=sys.executable
    )
    with open(made["path"], "rb") as stream:
        engine.check_artefact(System("/"), request, stream)
        stream.seek(0)
        engine.unpack(stream, str(tmp_path / "unpacked"))
    about = json.loads((tmp_path / "unpacked/release.json").read_text())
    assert about["python_version"] == HERE
    assert (tmp_path / "unpacked/app/orchestrator/app.py").read_bytes() == (
        REPOSITORY / "orchestrator/orchestrator/app.py"
    ).read_bytes()


def test_the_engine_refuses_one_for_another_machine(build: Any, cache: Path, tmp_path: Path) -> None:
    content = build.pack(
        {
            "release.json": json.dumps({"python_version": HERE, "arch": "s390x"}).encode(),
            "requirements.txt": b"",
        }
    )
    path = tmp_path / "x.tar.gz"
    path.write_bytes(content)
    request = engine.Request(state="present", artefact=str(path), root=str(tmp_path), python=sys.executable)
    with path.open("rb") as stream, pytest.raises(Refusal, match="is built for s390x"):
        engine.check_artefact(System("/"), request, stream)


def test_a_senseless_python_is_one_clear_line() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "orchestrator/build.py"), "--python-version", "three"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "must look like 3.11" in done.stderr
    assert "Traceback" not in done.stderr
