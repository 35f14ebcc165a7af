"""Kind manager: system.conf and its drop-ins against recorded answers of systemd 252."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hosttune.kinds import manager
from hosttune.kinds.manager import ManagerKind
from hosttune.model import Change, Refusal, Setting
from hosttune.system import Ran, System

#: Lines of `systemctl show` of a Debian 12 container with the drop-in of DROPIN.
SHOWN = """\
DefaultLimitNOFILE=600000
DefaultLimitNOFILESoft=1024
DefaultMemoryAccounting=no
DefaultTasksMax=96364
DefaultTimeoutStartUSec=45s
DefaultTimeoutStopUSec=1min 30s
RebootWatchdogUSec=0
RuntimeWatchdogUSec=30s
TimerSlackNSec=1000
Version=252.39-1~deb12u2
"""
DROPIN = """\
[Manager]
RuntimeWatchdogSec=30s
CPUAffinity=0
CPUAffinity=1
DefaultLimitNOFILE=1024:600000
DefaultTimeoutStartSec=45
RebootWatchdogSec=off
TimerSlackNSec=1us
DefaultMemoryAccounting=no
"""


class FakeSystem(System):
    def __init__(self, root: Path, shown: str = SHOWN) -> None:
        super().__init__(str(root))
        self.shown = dict(line.split("=", 1) for line in shown.splitlines())
        self.calls: list[tuple[str, ...]] = []
        self.deaf = 0

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        self.calls.append(argv)
        if argv == ("systemctl", "daemon-reexec"):
            return Ran(1, "", "Connection reset by peer")
        assert argv[:2] == ("systemctl", "show")
        if self.deaf:
            self.deaf -= 1
            return Ran(1, "", "Failed to connect to bus")
        asked = argv[2].removeprefix("--property=").split(",")
        return Ran(0, "".join(f"{name}={self.shown[name]}\n" for name in asked if name in self.shown), "")


def write(root: Path, files: dict[str, str]) -> FakeSystem:
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return FakeSystem(root)


def device(name: str = "watchdog0", **attributes: object) -> dict[str, str]:
    """/sys/class/watchdog of a Debian 12 virtual machine with an i6300esb."""
    known = {"identity": "i6300ESB timer", "min_timeout": 1, "max_timeout": 2046, "nowayout": 0}
    known.update({"state": "inactive", "timeout": 30, "bootstatus": 0, **attributes})
    return {f"/sys/class/watchdog/{name}/{key}": f"{value}\n" for key, value in known.items()}


def test_live_persisted_and_what_it_takes(tmp_path: Path) -> None:
    system = write(
        tmp_path,
        {
            "/etc/systemd/system.conf.d/60-x.conf": DROPIN,
            "/proc/1/status": "Name:\tsystemd\nCpus_allowed_list:\t0-1\n",
            **device(state="active", timeout=30),
        },
    )
    kind = ManagerKind(system)
    names = [
        "RuntimeWatchdogSec",
        "CPUAffinity",
        "DefaultLimitNOFILE",
        "DefaultTimeoutStopSec",
        "TimerSlackNSec",
        "RebootWatchdogSec",
        "DefaultMemoryAccounting",
    ]
    planes = kind.read(names)
    assert {name: planes[name].live for name in names} == {
        "RuntimeWatchdogSec": "30s",
        "CPUAffinity": "0-1",
        "DefaultLimitNOFILE": "1024:600000",
        "DefaultTimeoutStopSec": "1min 30s",
        "TimerSlackNSec": "1000",
        "RebootWatchdogSec": "0",
        "DefaultMemoryAccounting": "no",
    }
    for name in names:
        winner = planes[name].winner
        if name == "DefaultTimeoutStopSec":
            assert winner is None
            continue
        assert winner is not None
        assert kind.same(name, winner.value, str(planes[name].live)), name
        assert planes[name].needs == "none", name
    # both lines count, and the value is reported at the later one
    assert [(one.value, one.line) for one in planes["CPUAffinity"].definitions] == [("0", 3), ("0 1", 4)]
    assert len(system.calls) == 1


def test_a_value_on_disk_that_is_not_live_needs_a_reload(tmp_path: Path) -> None:
    kind = ManagerKind(write(tmp_path, {"/etc/systemd/system.conf": "[Manager]\nRuntimeWatchdogSec=60\n"}))
    assert kind.read(["RuntimeWatchdogSec"])["RuntimeWatchdogSec"].needs == "reload"


def test_order_is_main_file_then_drop_ins_by_base_name_over_all_folders(tmp_path: Path) -> None:
    def text(value: int) -> str:
        return f"[Manager]\nDefaultTasksMax={value}\n[Other]\nDefaultTasksMax=9\n"

    kind = ManagerKind(
        write(
            tmp_path,
            {
                "/etc/systemd/system.conf": text(1),
                "/usr/lib/systemd/system.conf": text(2),
                "/etc/systemd/system.conf.d/60-b.conf": text(3),
                "/usr/lib/systemd/system.conf.d/60-b.conf": text(4),
                "/usr/lib/systemd/system.conf.d/10-a.conf": text(5),
                "/run/systemd/system.conf.d/70-c.conf": text(6),
                "/run/systemd/system.conf.d/80-masked.conf": text(7),
            },
        )
    )
    (tmp_path / "etc/systemd/system.conf.d/80-masked.conf").symlink_to("/dev/null")
    found = kind.read(["DefaultTasksMax"])["DefaultTasksMax"].definitions
    assert [one.value for one in found] == ["1", "5", "3", "6"]
    assert found[-1].file == "/run/systemd/system.conf.d/70-c.conf"


def test_directives_without_a_property_are_judged_by_their_files(tmp_path: Path) -> None:
    kind = ManagerKind(write(tmp_path, {"/etc/systemd/system.conf": "[Manager]\nLogTarget=journal\n"}))
    planes = kind.read(["LogTarget"])["LogTarget"]
    assert not planes.has_live
    assert planes.winner is not None
    assert planes.winner.value == "journal"


def test_affinity_and_memory_policy_are_those_of_pid_1_and_wait_for_a_boot(tmp_path: Path) -> None:
    # seen with 252: after daemon-reexec PID 1 still runs where it ran before
    system = write(
        tmp_path,
        {
            "/etc/systemd/system.conf": "[Manager]\nCPUAffinity=1\nNUMAPolicy=bind\n",
            "/proc/1/status": "Cpus_allowed_list:\t0-1\n",
            "/proc/1/numa_maps": "55d43a317000 bind:0 file=/usr/lib/systemd/systemd mapped=6 N0=6\n",
        },
    )
    kind = ManagerKind(system)
    planes = kind.read(["CPUAffinity", "NUMAPolicy", "NUMAMask"])
    assert (planes["CPUAffinity"].live, planes["CPUAffinity"].needs) == ("0-1", "reboot")
    assert (planes["NUMAPolicy"].live, planes["NUMAPolicy"].needs) == ("bind", "none")
    assert (planes["NUMAMask"].live, planes["NUMAMask"].needs) == ("0", "reboot")
    (tmp_path / "proc/1/numa_maps").unlink()
    assert "numa_maps" in kind.read(["NUMAPolicy"])["NUMAPolicy"].unsupported


def test_a_silent_systemd_is_unknown_and_a_missing_property_unsupported(tmp_path: Path) -> None:
    system = write(tmp_path, {})
    kind = ManagerKind(system)
    assert "DefaultRestartUSec" in kind.read(["DefaultRestartSec"])["DefaultRestartSec"].unsupported
    system.deaf = 1
    assert "Failed to connect" in kind.read(["DefaultTasksMax"])["DefaultTasksMax"].unknown


def test_rendered_lists_start_from_nothing(tmp_path: Path) -> None:
    system = write(tmp_path, {"/usr/lib/systemd/system.conf.d/10-a.conf": "[Manager]\nCPUAffinity=7\n"})
    kind = ManagerKind(system)
    wanted = [
        Setting("numa", "manager", "CPUAffinity", "0-1"),
        Setting("numa", "manager", "LogLevel", "info"),
    ]
    kind.check(wanted, {})
    rendered = kind.render("numa", wanted)
    path = "/etc/systemd/system.conf.d/60-hosttune-numa.conf"
    assert rendered[path].content.decode().split("\n")[1:] == [
        "[Manager]",
        "CPUAffinity=",
        "CPUAffinity=0-1",
        "LogLevel=info",
        "",
    ]
    write(tmp_path, {path: rendered[path].content.decode()})
    found = kind.read(["CPUAffinity"])["CPUAffinity"].definitions
    assert [one.value for one in found] == ["7", "0-1"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DefaultTaskMax", "5", "Did you mean DefaultTasksMax"),
        ("DefaultTasksMax", "15%", "percentage"),
        ("RuntimeWatchdogSec", "soon", "no time span"),
        ("DefaultLimitNOFILE", "64K", "no whole number"),
        ("DefaultLimitNOFILE", "9:5", "above the hard one"),
        ("DefaultCPUAccounting", "maybe", "no boolean"),
        ("CPUAffinity", "0-x", "no CPU list"),
        ("LogLevel", "", "has no value"),
    ],
)
def test_mistakes_are_refused(tmp_path: Path, name: str, value: str, said: str) -> None:
    with pytest.raises(Refusal) as refusal:
        ManagerKind(write(tmp_path, {})).check([Setting("o", "manager", name, value)], {})
    assert said in str(refusal.value)


def test_one_reexec_that_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager.time, "sleep", lambda _seconds: None)
    system = write(tmp_path, {})
    kind = ManagerKind(system)
    assert kind.activate([], []) == {}
    assert system.calls == []
    system.deaf = 2
    changes = [Change("DefaultTasksMax", "1"), Change("LogLevel", "info")]
    assert kind.activate(changes, ["/etc/systemd/system.conf.d/60-hosttune-o.conf"]) == {}
    assert [call[1] for call in system.calls] == ["daemon-reexec", "show", "show", "show"]


def test_a_manager_that_stays_silent_is_a_failure_of_every_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10000, 5))
    monkeypatch.setattr(manager.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(manager.time, "monotonic", lambda: next(clock))
    system = write(tmp_path, {})
    system.deaf = 1000
    failed: dict[str, Any] = ManagerKind(system).activate([Change("LogLevel", "info")], [])
    assert "does not answer" in failed["LogLevel"]


def test_before_256_only_etc_holds_the_main_file(tmp_path: Path) -> None:
    files = {"/usr/lib/systemd/system.conf": "[Manager]\nDefaultTasksMax=5\nDefaultTasksMax=x\n"}
    system = write(tmp_path, files)
    system.shown["Version"] = "252.39-1~deb12u2"
    assert ManagerKind(system).read(["DefaultTasksMax"])["DefaultTasksMax"].definitions == []
    system.shown["Version"] = "257.4-1"
    found = ManagerKind(system).read(["DefaultTasksMax"])["DefaultTasksMax"].definitions
    assert [one.value for one in found] == ["5"]


# the watchdog


def watchdog_host(root: Path, told: str = "30s", **attributes: object) -> FakeSystem:
    system = write(
        root, {"/etc/systemd/system.conf": f"[Manager]\nRuntimeWatchdogSec={told}\n", **device(**attributes)}
    )
    system.shown["RuntimeWatchdogUSec"] = told
    return system


@pytest.mark.parametrize(
    ("attributes", "live", "said"),
    [
        ({"state": "active"}, "30s", ""),
        ({"state": "active", "timeout": 29}, "29s", ""),
        ({"state": "inactive"}, "0", "could not arm /dev/watchdog0"),
    ],
)
def test_live_of_the_watchdog_is_what_the_device_has(tmp_path, attributes, live, said) -> None:
    planes = ManagerKind(watchdog_host(tmp_path, **attributes)).read(["RuntimeWatchdogSec"])[
        "RuntimeWatchdogSec"
    ]
    assert (planes.live, planes.unsupported) == (live, "")
    assert said in planes.note


def test_a_timeout_that_the_driver_rounds_may_be_clamped_and_one_that_is_off_may_not(tmp_path) -> None:
    kind = ManagerKind(watchdog_host(tmp_path))
    assert "took 29s" in kind.clamps("RuntimeWatchdogSec", "30s", "29s")
    assert kind.clamps("RuntimeWatchdogSec", "30s", "0") == ""


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "this host has no /dev/watchdog0: load its hardware's driver"),
        (device(identity="Software Watchdog"), "is softdog, which hangs with the kernel"),
        ({"/run/systemd/container": "lxc\n", **device()}, "a container has no watchdog"),
        (
            {"/etc/systemd/system.conf": "[Manager]\nWatchdogDevice=/dev/watchdog1\n", **device()},
            "this host has no /dev/watchdog1",
        ),
    ],
)
def test_a_host_without_a_hardware_watchdog_says_why(tmp_path, files, reason) -> None:
    found = ManagerKind(write(tmp_path, files)).read(
        ["RuntimeWatchdogSec", "RebootWatchdogSec", "DefaultTasksMax"]
    )
    assert reason in found["RuntimeWatchdogSec"].unsupported
    assert reason in found["RebootWatchdogSec"].unsupported
    assert found["DefaultTasksMax"].unsupported == ""


def test_a_driver_without_a_warning_supports_none(tmp_path) -> None:
    name = "RuntimeWatchdogPreGovernor"
    planes = ManagerKind(write(tmp_path, device())).read([name])[name]
    assert planes.unsupported == "i6300ESB timer gives no warning before it resets"
    able = write(tmp_path / "able", device(pretimeout=0))
    assert ManagerKind(able).read([name])[name].unsupported == ""


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RuntimeWatchdogSec", "1h", "'1h' is no timeout that i6300ESB timer takes. Give 1 s to 2046 s"),
        ("RebootWatchdogSec", "35min", "'35min' is no timeout that i6300ESB timer takes"),
        ("WatchdogDevice", "/dev/sda", "'/dev/sda' is no watchdog. Give a device such as /dev/watchdog0"),
        ("RuntimeWatchdogPreGovernor", "panik", "no governor 'panik'. It has noop and panic"),
    ],
)
def test_what_the_driver_does_not_have_is_refused(tmp_path, name, value, said) -> None:
    host = write(tmp_path, device(pretimeout_available_governors="noop panic"))
    with pytest.raises(Refusal, match=re.escape(said)):
        ManagerKind(host).check([Setting("a", "manager", name, value)], {})
    for fine in ("30s", "off", "2046"):
        ManagerKind(host).check([Setting("a", "manager", "RuntimeWatchdogSec", fine)], {})


def test_a_watchdog_that_cannot_be_disarmed_is_not_closed(tmp_path) -> None:
    armed = {"state": "active", "nowayout": 1}
    kept = watchdog_host(tmp_path / "kept", **armed)
    assert ManagerKind(kept).activate([Change("RuntimeWatchdogSec", "30s")], ["/x"]) == {}
    for told in ("off", ""):
        host = watchdog_host(tmp_path / f"off{told}", told, **armed)
        failed = ManagerKind(host).activate([Change("RuntimeWatchdogSec", "0", undo=True)], ["/x"])
        assert "would reset this machine" in failed["RuntimeWatchdogSec"]
        assert ("systemctl", "daemon-reexec") not in host.calls
    wayout = watchdog_host(tmp_path / "wayout", "off", state="active")
    assert ManagerKind(wayout).activate([Change("RuntimeWatchdogSec", "0", undo=True)], ["/x"]) == {}
    assert ("systemctl", "daemon-reexec") in wayout.calls
