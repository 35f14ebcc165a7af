"""The lab's records: what a killed run leaves has to be found again, and nobody else's process killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from lab import container, inventory, state
from lab.errors import LabError
from lab.processes import Recorded, run_contained, start_time, tail
from lab.state import FILES, Host, Lab


@pytest.fixture(autouse=True)
def lab_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTTUNE_LAB_DIR", str(tmp_path / "lab"))
    return tmp_path / "lab"


@pytest.fixture
def lab(lab_dir):
    hosts = [Host("x-c1", "10.213.4.10", 22), Host("x-m1", "127.0.0.1", 42200)]
    made = Lab("x", "container", "container-0", slot=4, hosts=hosts)
    made.save()
    return made


def test_a_lab_is_read_back_as_it_was_written(lab):
    assert state.load("x") == lab
    assert state.find("x-m1") == lab
    assert state.load("y") is None
    (lab.folder / "lab.json").write_text("")
    assert state.load("x") is None
    assert state.prefixes() == ["x"]


def test_an_unknown_host_is_refused_with_the_known_ones(lab):
    with pytest.raises(LabError, match="no lab host is named x-c9: there are x-c1, x-m1"):
        state.find("x-c9")


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("HOSTTUNE_LAB_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert state.lab_dir() == tmp_path / "hosttune"


def test_a_lock_is_seen_while_it_is_held(lab_dir):
    path = lab_dir / "run" / "x.lock"
    assert not state.held(path)
    with state.locked(path, "nobody"):
        assert state.held(path)
    assert not state.held(path)


def test_under_sudo_the_cache_belongs_to_who_called(lab_dir, monkeypatch):
    given = []
    monkeypatch.setattr(state, "give_to_user", given.append)
    monkeypatch.setenv("HOSTTUNE_LAB_DIR", str(lab_dir / "a" / "b"))
    state.make_lab_dir()
    state.make_lab_dir()
    assert given == [lab_dir, lab_dir / "a", lab_dir / "a" / "b"]


def test_a_process_is_known_by_pid_and_start_time(tmp_path):
    record = tmp_path / "host.pid"
    process = subprocess.Popen([FILES / "record.sh", record, "sleep", "60"])
    try:
        deadline = time.monotonic() + 5
        while not record.exists() or not record.read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        known = Recorded(record)
        assert known.pid() == process.pid
        # The same PID with another start time is another process, and gets no signal.
        record.write_text(f"{process.pid} {start_time(process.pid) - 1}\n")
        assert not known.alive()
        known.signal(signal.SIGKILL)
        time.sleep(0.1)
        assert process.poll() is None
        record.write_text(f"{process.pid} {start_time(process.pid)}\n")
        known.signal(signal.SIGKILL)
        assert process.wait(5) == -signal.SIGKILL
        assert known.wait(1)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("text", ["", "12", "no numbers", "999999999 1"])
def test_a_record_that_means_nothing_is_a_process_that_is_gone(tmp_path, text):
    record = tmp_path / "host.pid"
    record.write_text(text)
    assert Recorded(record).pid() is None
    assert Recorded(tmp_path / "absent").pid() is None


def test_the_supervisor_starts_again_after_a_reboot_and_only_then(tmp_path):
    (tmp_path / "cgroups").write_text("")
    script = 'echo boot >>"$0"; [ "$(wc -l <"$0")" -lt 3 ] && exit 133; exit 0'
    boots = tmp_path / "boots"
    subprocess.run([FILES / "supervise.sh", tmp_path, "sh", "-c", script, boots], check=True, timeout=20)
    assert boots.read_text() == "boot\n" * 3
    assert len((tmp_path / "host.pid").read_text().split()) == 2
    (tmp_path / "stop").touch()
    subprocess.run([FILES / "supervise.sh", tmp_path, "sh", "-c", script, boots], check=True, timeout=20)
    assert boots.read_text() == "boot\n" * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_a_build_dies_with_the_run_that_started_it(tmp_path):
    started = tmp_path / "started"
    code = (
        "import sys; from pathlib import Path; from lab.processes import run_contained;"
        "script = 'sleep 77 & touch $0; sleep 77';"
        "run_contained(['sh', '-c', script, sys.argv[1]], Path(sys.argv[2]))"
    )
    builder = subprocess.Popen([sys.executable, "-c", code, started, tmp_path / "log"], cwd=state.REPOSITORY)
    deadline = time.monotonic() + 10
    while not started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = _descendants(builder.pid)
    assert len(children) >= 3
    builder.kill()
    builder.wait()
    deadline = time.monotonic() + 5
    while any(start_time(pid) is not None for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _descendants(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(word) for word in file.read().split()]
    return children + [grandchild for child in children for grandchild in _descendants(child)]


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_a_failed_build_step_says_its_last_words(tmp_path):
    with pytest.raises(LabError, match="ended with status 3: no such mirror"):
        run_contained(["sh", "-c", "echo no such mirror; exit 3"], tmp_path / "log")


def test_console_output_is_readable(tmp_path):
    log = tmp_path / "console.log"
    assert tail(log) == "no output"
    log.write_bytes(b"\x1b[2J[\x1b[0;32m  OK  \x1b[0m] Started \x1b[0;1;39mssh\x1b[0m.\r\n\n  second\n")
    assert tail(log) == "[  OK  ] Started ssh. | second"


def test_mounts_are_found_below_a_lab_only(tmp_path):
    line = "31 22 0:27 / {} rw - tmpfs tmpfs rw\n"
    points = [tmp_path / "x/x-c1/layer", tmp_path / "x/x-c1/my\\040root", tmp_path / "xy/layer", "/proc"]
    text = "".join(line.format(point) for point in points)
    assert container.mounts_below(tmp_path / "x", text) == [
        str(tmp_path / "x/x-c1/layer"),
        str(tmp_path / "x/x-c1/my root"),
    ]


def test_the_inventory_holds_all_ssh_needs(lab, lab_dir, tmp_path):
    path = tmp_path / "hosts.yml"
    inventory.write(lab, path, "trading")
    hosts = yaml.safe_load(path.read_text())["trading"]["hosts"]
    assert list(hosts) == ["x-c1", "x-m1"]
    first = hosts["x-m1"]
    assert (first["ansible_host"], first["ansible_port"]) == ("127.0.0.1", 42200)
    assert first["ansible_user"] == "root"
    assert first["ansible_python_interpreter"] == "/usr/bin/python3"
    assert f"UserKnownHostsFile={lab_dir}/run/x/known_hosts" in first["ansible_ssh_common_args"]
    assert "StrictHostKeyChecking=yes" in first["ansible_ssh_common_args"]


def test_an_unchanged_inventory_is_not_written_again(lab, tmp_path):
    path = tmp_path / "hosts.yml"
    inventory.write(lab, path, "trading")
    os.utime(path, (1, 1))
    inventory.write(lab, path, "trading")
    assert path.stat().st_mtime == 1


def test_only_the_labs_own_inventory_is_removed(lab, tmp_path):
    path = tmp_path / "hosts.yml"
    inventory.write(lab, path, "trading")
    inventory.remove(path, "other")
    assert path.exists()
    inventory.remove(path, "x")
    assert not path.exists()
    path.write_text("trading:\n")
    inventory.remove(path, "x")
    assert path.exists()
