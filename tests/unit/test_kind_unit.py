"""Kind unit: files in systemd's order, `systemctl show` of systemd 252 and /proc as recorded on Debian 12."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import pytest
from hosttune import systemd, verdicts
from hosttune.kinds.unit import UnitKind, properties
from hosttune.model import Call, Change, Definition, Planes, Refusal, Setting
from hosttune.system import Ran, System
from hypothesis import given
from hypothesis import strategies as st

#: `systemctl show` of a running unit, recorded; the start is 2026-11-23 06:39:25.5 UTC.
SHOWN = {
    "Id": "kt-a-b@x.service",
    "Names": "kt-a-b@x.service",
    "LoadState": "loaded",
    "LoadError": "",
    "FragmentPath": "/etc/systemd/system/kt-a-b@.service",
    "DropInPaths": "",
    "NeedDaemonReload": "no",
    "MainPID": "244",
    "ExecMainStartTimestamp": "Mon 2026-11-23 06:39:25.500000 UTC",
    "LimitNOFILE": "2000",
    "LimitNOFILESoft": "1000",
    "LimitMEMLOCK": "67108864",
    "LimitMEMLOCKSoft": "67108864",
    "LimitCPU": "20",
    "LimitCPUSoft": "10",
    "LimitRTTIME": "5000",
    "LimitRTTIMESoft": "5000",
    "LimitNICE": "15",
    "LimitNICESoft": "15",
    "CPUAffinity": "0-1",
    "NUMAPolicy": "preferred",
    "NUMAMask": "0",
    "TasksMax": "96364",
    "MemoryHigh": "1073741824",
    "MemorySwapMax": "0",
    "Nice": "-5",
    "OOMScoreAdjust": "-300",
    "CPUSchedulingPolicy": "3",
    "CPUQuotaPerSecUSec": "1.500000s",
    "CPUWeight": "200",
    "IOSchedulingClass": "2",
    "TimeoutStartUSec": "30s",
    "TimeoutStopUSec": "infinity",
    "RestartUSec": "500ms",
    "WatchdogUSec": "0",
    "TimerSlackNSec": "1000",
    "CoredumpFilter": "0x11",
    "UMask": "0027",
    "KillSignal": "2",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
}
STARTED = 1795415965.5
#: The same unit's file: directive -> value as it was asked for.
ASKED = {
    "LimitNOFILE": "1000:2000",
    "LimitMEMLOCK": "64M",
    "LimitCPU": "10s:20s",
    "LimitRTTIME": "5ms",
    "LimitNICE": "+5",
    "CPUAffinity": "0 1",
    "NUMAPolicy": "preferred",
    "NUMAMask": "0",
    "MemoryHigh": "1G",
    "MemorySwapMax": "0",
    "Nice": "-5",
    "OOMScoreAdjust": "-300",
    "CPUSchedulingPolicy": "batch",
    "CPUQuota": "150%",
    "CPUWeight": "200",
    "IOSchedulingClass": "best-effort",
    "TimeoutStartSec": "30",
    "TimeoutStopSec": "0",
    "RestartSec": "500ms",
    "WatchdogSec": "0",
    "TimerSlackNSec": "1us",
    "CoredumpFilter": "private-anonymous elf-headers",
    "UMask": "0027",
    "KillSignal": "SIGINT",
    "NoNewPrivileges": "1",
    "ProtectSystem": "strict",
}
LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              10                   20                   seconds   
Max processes             96364                96364                processes 
Max open files            1000                 2000                 files     
Max address space         unlimited            unlimited            bytes     
"""  # noqa: W291 - recorded
STAT = (
    "244 (my (odd) name) S 1 244 244 0 -1 4194560 407 0 2 0 0 0 0 0 15 -5 1 0 133814 2990080 391 "
    "18446744073709551615 1 2 3 0 0 0 0 4096 0 1 0 0 17 0 0 3 0 0 0 1 2 3 4 5 6 7 0"
)
ITEMS = """\
[Unit]
Description=STRING
After=UNIT [...]
StartLimitIntervalSec=SECONDS

[Service]
CPUAffinity=CPUAFFINITY
CPUSchedulingPolicy=CPUSCHEDPOLICY
Environment=ENVIRON
LimitNOFILE=LIMIT
LimitNPROC=LIMIT
MemoryMax=LIMIT
Nice=NICE
NUMAMask=OTHER
OOMScoreAdjust=OOMSCOREADJUST
TimeoutStartSec=SECONDS
"""
UNIT = "kt-a-b@x.service"


class FakeSystem(System):
    def __init__(self, root: Path, shown: dict[str, dict[str, str]] | None = None) -> None:
        super().__init__(str(root))
        self.shown = {UNIT: dict(SHOWN)} if shown is None else shown
        self.calls: list[tuple[str, ...]] = []
        self.silent = False
        self.__dict__["container"] = ""

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        self.calls.append(argv)
        if argv[-1] == "--dump-configuration-items":
            return Ran(0, ITEMS, "")
        if argv == ("systemctl", "daemon-reload"):
            return Ran(1, "", "Access denied") if self.silent else Ran(0, "", "")
        if self.silent:
            return Ran(1, "", "Failed to connect to bus: Host is down")
        units = argv[argv.index("--") + 1 :]
        assert not any(systemd.is_template(unit) for unit in units), "systemctl show fails on a template"
        asked = argv[3].removeprefix("--property=").split(",")
        missing = {"LoadState": "not-found", "NeedDaemonReload": "no", "MainPID": "0"}
        blocks = []
        for unit in units:
            found = self.shown.get(unit, {"Id": unit, "Names": unit, **missing})
            blocks.append(
                "".join(f"{name}={found[name]}\n" for name in dict.fromkeys(asked) if name in found)
            )
        return Ran(0, "\n".join(blocks), "")


def write(root: Path, files: dict[str, str], age: float = STARTED - 100) -> None:
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (age, age))


def process(root: Path, **changed: str) -> None:
    files = {
        "limits": LIMITS,
        "stat": STAT,
        "status": "Name:\tx\nUmask:\t0027\nNoNewPrivs:\t1\nCpus_allowed_list:\t0-1\n",
        "oom_score_adj": "-300\n",
        "timerslack_ns": "1000\n",
        "coredump_filter": "00000011\n",
        "numa_maps": "55947940b000 prefer:0 file=/usr/bin/sleep mapped=2 N0=2 kernelpagesize_kB=4\n",
        "environ": "PATH=/bin\0A=1 2\0B=3\0",
        "cgroup": "3:cpuset:/\n0::/foo.slice/kt-a-b@x.service\n",
        **changed,
    }
    write(root, {f"/proc/244/{name}": text for name, text in files.items()})


def unit_file(values: dict[str, str]) -> dict[str, str]:
    text = "[Service]\n" + "".join(f"{name}={value}\n" for name, value in values.items())
    return {"/etc/systemd/system/kt-a-b@.service": text}


def name_of(directive: str, section: str = "Service", unit: str = UNIT) -> str:
    return f"{unit}/{section}/{directive}"


def setting(name: str, value: str, **notes: str) -> Setting:
    return Setting("numa", "unit", name, value, notes=notes)


def judged(kind: UnitKind, name: str, wanted: str, planes: Planes) -> tuple[str, str]:
    return verdicts.judge(wanted, planes, lambda a, b: kind.same(name, a, b), kind.managed_file("numa", name))


# the order of files


def test_drop_ins_of_an_instance_as_systemd_252_lists_them(tmp_path: Path) -> None:
    folders = {
        "/etc/systemd/system/kt-a-b@.service.d": "20-kt_a_b__service_d.conf",
        "/etc/systemd/system/kt-a-b@x.service.d": "20-kt_a_b_x_service_d.conf",
        "/run/systemd/system/kt-a-.service.d": "20-kt_a__service_d.conf",
        "/etc/systemd/system/kt-a-@.service.d": "20-kt_a___service_d.conf",
        "/etc/systemd/system/kt-@x.service.d": "20-kt__x_service_d.conf",
        "/etc/systemd/system/kt-.service.d": "20-kt__service_d.conf",
        "/etc/systemd/system/service.d": "20-service_d.conf",
    }
    write(tmp_path, {f"{folder}/{name}": "[Unit]\n" for folder, name in folders.items()})
    write(tmp_path, {f"{folder}/10-same.conf": "[Unit]\n" for folder in folders})
    write(
        tmp_path,
        {
            "/etc/systemd/system/kt-a-b@x.service.d/README": "",
            "/etc/systemd/system/kt-a.service.d/x.conf": "",
        },
    )
    system = System(str(tmp_path))
    # DropInPaths of the real thing; which of the seven 10-same.conf it takes was seen by removing one by one
    later = [
        "/etc/systemd/system/kt-.service.d/20-kt__service_d.conf",
        "/etc/systemd/system/kt-@x.service.d/20-kt__x_service_d.conf",
        "/etc/systemd/system/kt-a-@.service.d/20-kt_a___service_d.conf",
        "/run/systemd/system/kt-a-.service.d/20-kt_a__service_d.conf",
        "/etc/systemd/system/kt-a-b@.service.d/20-kt_a_b__service_d.conf",
        "/etc/systemd/system/kt-a-b@x.service.d/20-kt_a_b_x_service_d.conf",
        "/etc/systemd/system/service.d/20-service_d.conf",
    ]
    for first in ("kt-a-b@x", "kt-a-b@", "kt-"):
        same = f"/etc/systemd/system/{first}.service.d/10-same.conf"
        assert systemd.dropins(system, UNIT) == [same, *later]
        (tmp_path / same.lstrip("/")).unlink()


def test_drop_ins_of_an_alias_count_too(tmp_path: Path) -> None:
    write(tmp_path, {"/etc/systemd/system/redis.service.d/x.conf": ""})
    system = System(str(tmp_path))
    assert systemd.dropins(system, "redis-server.service") == []
    assert systemd.dropins(system, "redis-server.service", ["redis.service"]) == [
        "/etc/systemd/system/redis.service.d/x.conf"
    ]


def test_an_instances_own_file_beats_its_template_in_a_stronger_folder(tmp_path: Path) -> None:
    system = System(str(tmp_path))
    write(tmp_path, {"/etc/systemd/system/a@.service": "x", "/usr/lib/systemd/system/a@own.service": "x"})
    assert systemd.fragment(system, "a@own.service") == "/usr/lib/systemd/system/a@own.service"
    assert systemd.fragment(system, "a@b.service") == "/etc/systemd/system/a@.service"
    assert systemd.fragment(system, "b.service") is None


def test_folders_that_are_one_are_read_once(tmp_path: Path) -> None:
    write(tmp_path, {"/usr/lib/systemd/system/a.service": "x"})
    (tmp_path / "lib").symlink_to("usr/lib")
    folders = systemd.unit_folders(System(str(tmp_path)))
    assert "/usr/lib/systemd/system" in folders
    assert "/lib/systemd/system" not in folders


def test_assignments_as_the_parser_of_systemd_reads_them() -> None:
    text = (
        "; c\n[Unit]\nDescription=a \\\n# comment inside\n  b \\\n; another\n  c\n[Service]\n"
        " ExecStart = /bin/sleep \\\n   inf\nEnvironment=C=\\\\\nNice=3\nno assignment\n[Foo]\nNice=9\n"
    )
    found = [
        (one.section, one.name, " ".join(one.value.split()), one.line)
        for one in systemd.assignments(text, "f")
    ]
    assert found == [
        ("Unit", "Description", "a b c", 3),
        ("Service", "ExecStart", "/bin/sleep inf", 9),
        ("Service", "Environment", "C=\\\\", 11),
        ("Service", "Nice", "3", 12),
        ("Foo", "Nice", "9", 15),
    ]


# values


@given(
    st.lists(
        st.tuples(st.integers(0, 999), st.sampled_from(["us", "ms", "s", "min", "h", "d", "w"])), min_size=1
    )
)
def test_time_spans_add_up(parts: list[tuple[int, str]]) -> None:
    micro = {
        "us": 1,
        "ms": 10**3,
        "s": 10**6,
        "min": 6 * 10**7,
        "h": 36 * 10**8,
        "d": 864 * 10**8,
        "w": 6048 * 10**8,
    }
    expected = sum(number * micro[unit] for number, unit in parts) * 1000
    assert systemd.nanoseconds(" ".join(f"{number}{unit}" for number, unit in parts)) == expected
    assert systemd.nanoseconds("".join(f"{number} {unit}" for number, unit in parts)) == expected


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from("KMGT"))
def test_sizes_are_to_the_base_of_1024(whole: int, thousandths: int, letter: str) -> None:
    exact = (whole + Fraction(thousandths, 1000)) * 1024 ** ("KMGT".index(letter) + 1)
    assert systemd.size(f"{whole}.{thousandths:03}{letter}") == int(exact)
    assert systemd.size(str(whole)) == systemd.size(f"{whole}B") == whole


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_limits_are_pairs(one: int, other: int) -> None:
    soft, hard = sorted((one, other))
    assert systemd.limit("NOFILE", systemd.limit_text(str(soft), str(hard))) == (soft, hard)
    assert systemd.limit("NOFILE", f"{hard}") == (hard, hard)
    assert systemd.limit("NOFILE", f"{soft}:infinity") == (soft, None)
    if soft != hard:
        with pytest.raises(ValueError, match="above the hard"):
            systemd.limit("NOFILE", f"{hard}:{soft}")


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (systemd.nanoseconds, ""),
        (systemd.nanoseconds, "5 parsecs"),
        (systemd.nanoseconds, "-5"),
        (systemd.nanoseconds, "1s x"),
        (systemd.size, "1KB"),
        (systemd.size, "G"),
        (systemd.size, "-1"),
        (systemd.boolean, "maybe"),
        (systemd.cpu_set, "3-1"),
    ],
)
def test_what_is_no_value_raises(function: object, text: str) -> None:
    with pytest.raises(ValueError, match="no "):
        function(text)  # type: ignore[operator]


@pytest.mark.parametrize("text", ["64K", "100 : 200", "100:", ":100", "-5", "08", "1.5"])
def test_counts_that_systemd_252_does_not_take(text: str) -> None:
    with pytest.raises(ValueError, match="'"):
        systemd.limit("NOFILE", text)


# planes


def test_every_recorded_property_is_what_was_asked_for(tmp_path: Path) -> None:
    write(tmp_path, unit_file(ASKED))
    process(tmp_path)
    kind = UnitKind(FakeSystem(tmp_path))
    names = [name_of(directive) for directive in ASKED]
    planes = kind.read(names)
    for directive, value in ASKED.items():
        name = name_of(directive)
        assert properties(directive), directive
        assert judged(kind, name, value, planes[name])[0] == "shadowed", (directive, planes[name])
        assert planes[name].needs == "none", directive
        # and the equality is not one that takes everything
        assert not kind.same(name, "1", "7"), directive
    assert {
        directive: planes[name_of(directive)].process
        for directive in (
            "LimitNOFILE",
            "CPUSchedulingPolicy",
            "Nice",
            "OOMScoreAdjust",
            "NUMAPolicy",
            "NUMAMask",
        )
    } == {
        "LimitNOFILE": "1000:2000",
        "CPUSchedulingPolicy": "batch",
        "Nice": "-5",
        "OOMScoreAdjust": "-300",
        "NUMAPolicy": "preferred",
        "NUMAMask": "0",
    }


def test_one_question_for_all_units(tmp_path: Path) -> None:
    write(tmp_path, unit_file(ASKED))
    write(tmp_path, {"/usr/lib/systemd/system/b.service": "[Service]\nNice=1\n"})
    system = FakeSystem(tmp_path)
    UnitKind(system).read([name_of("Nice"), name_of("LimitNOFILE"), name_of("Nice", unit="b.service")])
    assert len(system.calls) == 1


@pytest.mark.parametrize(
    ("directive", "value", "files"),
    [
        ("LimitNOFILE", "1500:1900", {"limits": LIMITS.replace("1000 ", "1001 ")}),
        ("CPUAffinity", "0-1", {"status": "Cpus_allowed_list:\t1\n"}),
        ("OOMScoreAdjust", "-300", {"oom_score_adj": "0\n"}),
        ("Nice", "-5", {"stat": STAT.replace(" 15 -5 ", " 20 0 ")}),
        ("NUMAPolicy", "preferred", {"numa_maps": "55947940b000 default file=/usr/bin/sleep\n"}),
    ],
)
def test_a_process_with_other_values_waits_for_its_restart(
    tmp_path: Path, directive: str, value: str, files: dict[str, str]
) -> None:
    ours = f"/etc/systemd/system/{UNIT}.d/60-hosttune-numa.conf"
    shown = dict(SHOWN)
    if directive == "LimitNOFILE":
        shown.update(LimitNOFILE="1900", LimitNOFILESoft="1500")
    write(tmp_path, unit_file({}))
    write(tmp_path, {ours: f"[Service]\n{directive}={value}\n", "/sys/devices/system/cpu/online": "0-1\n"})
    process(tmp_path, **files)
    kind = UnitKind(FakeSystem(tmp_path, {UNIT: shown}))
    name = name_of(directive)
    planes = kind.read([name])[name]
    assert judged(kind, name, value, planes)[0] == "pending_restart"
    assert planes.needs == "restart"


def test_fewer_cpus_than_asked_are_no_drift_where_the_cpuset_leaves_no_others(tmp_path: Path) -> None:
    write(tmp_path, unit_file({"CPUAffinity": "0-1"}))
    write(
        tmp_path,
        {
            "/sys/devices/system/cpu/online": "0-3\n",
            "/sys/fs/cgroup/foo.slice/kt-a-b@x.service/cpuset.cpus.effective": "1-3\n",
        },
    )
    process(tmp_path, status="Cpus_allowed_list:\t1\n")
    name = name_of("CPUAffinity")
    planes = UnitKind(FakeSystem(tmp_path)).read([name])[name]
    assert planes.process == "0-1"
    assert "leave it 1" in planes.note


def test_a_container_that_may_not_raise_says_so_and_waits_for_nothing(tmp_path: Path) -> None:
    write(tmp_path, unit_file({"OOMScoreAdjust": "-300"}))
    process(tmp_path, oom_score_adj="0\n")
    system = FakeSystem(tmp_path)
    name = name_of("OOMScoreAdjust")
    assert UnitKind(system).read([name])[name].process == "0"
    system.__dict__["container"] = "systemd-nspawn"
    planes = UnitKind(system).read([name])[name]
    assert planes.process is None
    assert "the process has 0" in planes.note
    # a file newer than the process is another matter: the restart is still to come
    write(tmp_path, unit_file({"OOMScoreAdjust": "-300"}), age=STARTED + 1)
    assert UnitKind(system).read([name])[name].needs == "restart"


def test_what_a_container_may_not_raise_still_restarts_for_another_value(tmp_path: Path) -> None:
    write(tmp_path, unit_file({"OOMScoreAdjust": "-300"}))
    process(tmp_path, oom_score_adj="0\n")
    system = FakeSystem(tmp_path)
    system.__dict__["container"] = "systemd-nspawn"
    kind, name = UnitKind(system), name_of("OOMScoreAdjust")
    planes = kind.read([name])[name]
    assert planes.process is None
    wish = setting(name, "-200")
    ours = kind.managed_file("numa", name)
    then = kind.foretell(wish, planes, Call(frozenset([ours])))
    assert (then.process, then.needs) == ("0", "restart")
    assert judged(kind, name, "-200", then)[0] == "pending_restart"
    assert kind.foretell(wish, planes, Call(frozenset([ours]), stops=frozenset([UNIT]))).needs == "none"


def test_a_container_gives_what_it_has_itself(tmp_path: Path) -> None:
    # A limit below PID 1's own needs no capability: a process without it began before the file said so.
    name = name_of("LimitNOFILE")
    write(tmp_path, unit_file({"LimitNOFILE": "700:800"}))
    shown = {**SHOWN, "LimitNOFILESoft": "700", "LimitNOFILE": "800"}
    system = FakeSystem(tmp_path, {UNIT: shown})
    system.__dict__["container"] = "systemd-nspawn"
    line = "Max open files            {0}                {1}                files     \n"
    process(tmp_path, limits=line.format(100, 500))
    write(tmp_path, {"/proc/1/limits": line.format(5000, 5000), "/proc/1/status": "CapEff:\tfcecafff\n"})
    planes = UnitKind(system).read([name])[name]
    assert (planes.process, planes.needs) == ("100:500", "restart")
    write(tmp_path, {"/proc/1/limits": line.format(500, 500)})
    planes = UnitKind(system).read([name])[name]
    assert planes.process is None and "the process has 100:500" in planes.note
    write(tmp_path, {"/proc/1/status": "CapEff:\tffffffff\n"})
    assert UnitKind(system).read([name])[name].process == "100:500"


def test_what_proc_does_not_show_is_compared_by_age(tmp_path: Path) -> None:
    name = name_of("WorkingDirectory")
    process(tmp_path)
    kind = UnitKind(FakeSystem(tmp_path))
    write(tmp_path, unit_file({"WorkingDirectory": "/srv", "MemoryHigh": "1G"}), age=STARTED - 1)
    assert kind.read([name])[name].process is None
    write(tmp_path, unit_file({"WorkingDirectory": "/srv", "MemoryHigh": "1G"}), age=STARTED + 1)
    planes = kind.read([name, name_of("MemoryHigh")])
    assert judged(kind, name, "/srv", planes[name])[0] == "pending_restart"
    assert planes[name].needs == "restart"
    # a cgroup's value is live with the daemon-reload
    assert planes[name_of("MemoryHigh")].process is None


def test_the_environment_is_read_from_the_process(tmp_path: Path) -> None:
    name = name_of("Environment")
    process(tmp_path)
    kind = UnitKind(FakeSystem(tmp_path))
    write(tmp_path, unit_file({"Environment": '"A=1 2" B=3'}), age=STARTED + 1)
    assert kind.read([name])[name].process == '"A=1 2" B=3'
    write(tmp_path, unit_file({"Environment": "B=4 D=1"}), age=STARTED + 1)
    planes = kind.read([name])[name]
    assert planes.process == "B=3"
    assert planes.needs == "restart"


def test_assignments_accumulate_and_an_empty_one_clears(tmp_path: Path) -> None:
    folder = f"/etc/systemd/system/{UNIT}.d"
    write(
        tmp_path,
        {
            "/etc/systemd/system/kt-a-b@.service": "[Service]\nCPUAffinity=7\nNice=1\nCPUAffinity=0\n",
            f"{folder}/60-hosttune-numa.conf": "[Service]\nCPUAffinity=\nCPUAffinity=1\nNice=2\n",
            f"{folder}/70-foreign.conf": "[Service]\nCPUAffinity=3\n[Unit]\nAfter=a.service\n",
            f"{folder}/80-foreign.conf": "[Unit]\nAfter=b.service\n",
        },
    )
    kind = UnitKind(FakeSystem(tmp_path))
    names = [name_of("CPUAffinity"), name_of("Nice"), name_of("After", "Unit")]
    planes = kind.read(names)
    assert [(one.value, Path(one.file).name, one.line) for one in planes[names[0]].definitions] == [
        ("7", "kt-a-b@.service", 2),
        ("0", "kt-a-b@.service", 4),
        ("1", "60-hosttune-numa.conf", 3),
        ("1 3", "70-foreign.conf", 2),
    ]
    assert [one.value for one in planes[names[1]].definitions] == ["1", "2"]
    winner = planes[names[2]].winner
    assert winner == Definition("a.service b.service", f"/etc/systemd/system/{UNIT}.d/80-foreign.conf", 2)
    assert kind.same(names[2], "b.service", winner.value)
    assert not kind.same(names[2], "c.service", winner.value)


def test_files_that_systemd_has_not_read_are_not_live(tmp_path: Path) -> None:
    write(tmp_path, unit_file({"WorkingDirectory": "/srv", "Nice": "3"}))
    kind = UnitKind(FakeSystem(tmp_path, {UNIT: {**SHOWN, "NeedDaemonReload": "yes", "MainPID": "0"}}))
    names = [name_of("WorkingDirectory"), name_of("Nice")]
    planes = kind.read(names)
    for name, value in zip(names, ("/srv", "3")):
        assert judged(kind, name, value, planes[name])[0] == "live_drift"
        assert planes[name].needs == "reload"


def test_what_systemd_has_not_loaded_needs_a_reload_before_a_restart(tmp_path: Path) -> None:
    write(tmp_path, unit_file({"Nice": "3", "WorkingDirectory": "/srv"}), age=STARTED + 1)
    process(tmp_path, stat=STAT.replace(" 15 -5 ", " 20 0 "))
    kind = UnitKind(FakeSystem(tmp_path, {UNIT: {**SHOWN, "NeedDaemonReload": "yes"}}))
    names = [name_of("Nice"), name_of("WorkingDirectory")]
    assert [kind.read(names)[name].needs for name in names] == ["reload", "reload"]


def test_a_template_has_files_only(tmp_path: Path) -> None:
    write(tmp_path, {"/usr/lib/systemd/system/postgresql@.service": "[Service]\nOOMScoreAdjust=-900\n"})
    system = FakeSystem(tmp_path, {})
    name = "postgresql@.service/Service/OOMScoreAdjust"
    kind = UnitKind(system)
    kind.check([setting(name, "-900")], {})
    planes = kind.read([name])[name]
    assert not planes.has_live
    assert judged(kind, name, "-900", planes)[0] == "shadowed"


def test_units_of_which_nothing_can_be_said(tmp_path: Path) -> None:
    system = FakeSystem(tmp_path, {"bad.service": {"LoadState": "bad-setting", "LoadError": "no ExecStart="}})
    write(tmp_path, {"/etc/systemd/system/bad.service": "[Service]\n"})
    (tmp_path / "etc/systemd/system/off.service").symlink_to("/dev/null")
    kind = UnitKind(system)
    planes = kind.read([f"{unit}.service/Service/Nice" for unit in ("none", "bad", "off")])
    assert planes["none.service/Service/Nice"].unknown == "unit none.service does not exist"
    assert "no ExecStart=" in planes["bad.service/Service/Nice"].unknown
    assert planes["off.service/Service/Nice"].unsupported == "off.service is masked"
    system.silent = True
    assert "Host is down" in kind.read(["bad.service/Service/Nice"])["bad.service/Service/Nice"].unknown


def test_a_unit_whose_file_comes_with_the_call(tmp_path: Path) -> None:
    name = "orchestrator.service/Service/Nice"
    kind = UnitKind(FakeSystem(tmp_path, {}))
    kind.check([setting(name, "-5", unit_from="file")], {})
    planes = kind.read([name])[name]
    assert not planes.unknown
    assert planes.live is None


# files


def test_what_is_rendered_is_all_there_is(tmp_path: Path) -> None:
    write(tmp_path, unit_file({"Environment": "A=1", "CPUAffinity": "7", "Nice": "9"}))
    kind = UnitKind(FakeSystem(tmp_path))
    wanted = {
        name_of("After", "Unit"): "redis-server.service",
        name_of("Environment"): "B=2",
        name_of("CPUAffinity"): "0-1",
        name_of("Nice"): "-5",
    }
    rendered = kind.render("numa", [setting(name, value) for name, value in wanted.items()])
    path = f"/etc/systemd/system/{UNIT}.d/60-hosttune-numa.conf"
    assert list(rendered) == [path]
    assert rendered[path].content.decode().split("\n")[1:] == [
        "[Service]",
        "CPUAffinity=",
        "CPUAffinity=0-1",
        "Environment=",
        "Environment=B=2",
        "Nice=-5",
        "[Unit]",
        "After=redis-server.service",
        "",
    ]
    write(tmp_path, {path: rendered[path].content.decode()})
    for name, planes in kind.read(list(wanted)).items():
        assert planes.winner is not None
        assert (planes.winner.value, planes.winner.file) == (wanted[name], path)


def test_one_daemon_reload_and_never_a_restart(tmp_path: Path) -> None:
    system = FakeSystem(tmp_path)
    kind = UnitKind(system)
    assert kind.activate([], []) == {}
    assert system.calls == []
    assert kind.activate([Change(name_of("Nice"), "1"), Change(name_of("UMask"), "0022")], ["/a", "/b"]) == {}
    assert system.calls == [("systemctl", "daemon-reload")]
    system.silent = True
    assert "Access denied" in kind.activate([Change(name_of("Nice"), "1")], [])[name_of("Nice")]


# mistakes


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("redis-server/Service/Nice", "1", "redis-server.service"),
        ("redis-server.service/Nice", "1", "UNIT/SECTION/DIRECTIVE"),
        ("redis-servr.service/Service/Nice", "1", "Did you mean redis-server.service?"),
        ("redis.service/Service/Nice", "1", "Name redis-server.service"),
        ("redis-server.service/Servce/Nice", "1", "Did you mean Service?"),
        ("redis-server.service/Install/WantedBy", "a", "no section [Install]"),
        ("redis-server.service/Service/LimitNOFIL", "1", "Did you mean LimitNOFILE"),
        ("redis-server.service/Service/StartLimitIntervalSec", "1", "belongs to section [Unit]"),
        ("redis-server.service/Service/Nice", "-21", "Give -20 to 19"),
        ("redis-server.service/Service/Nice", "low", "no value of Nice"),
        ("redis-server.service/Service/Nice", "", "has no value"),
        ("redis-server.service/Service/CPUSchedulingPolicy", "rt", "batch, fifo, idle, other, rr"),
        ("redis-server.service/Service/MemoryMax", "50%", "percentage"),
        ("redis-server.service/Service/LimitNOFILE", "64K", "no whole number"),
        ("redis-server.service/Service/CPUAffinity", "0-9", "It has 0-3"),
        ("redis-server.service/Service/NUMAMask", "1", "NUMA nodes that this host does not have"),
        ("redis-server.service/Service/TimeoutStartSec", "soon", "no time span"),
    ],
)
def test_mistakes_are_refused_before_anything_is_touched(
    tmp_path: Path, name: str, value: str, said: str
) -> None:
    write(
        tmp_path,
        {
            "/usr/lib/systemd/system/redis-server.service": "[Service]\nAlias=redis.service\n",
            "/sys/devices/system/cpu/present": "0-3\n",
            "/sys/devices/system/node/possible": "0\n",
        },
    )
    shown = {"Id": "redis-server.service", "LoadState": "loaded"}
    system = FakeSystem(tmp_path, {"redis-server.service": shown, "redis.service": shown})
    with pytest.raises(Refusal) as refusal:
        UnitKind(system).check([setting(name, value)], {})
    assert said in str(refusal.value)
    assert str(refusal.value).startswith(f"unit {name}: ")


def test_a_missing_unit_waits_for_its_package(tmp_path: Path) -> None:
    kind = UnitKind(FakeSystem(tmp_path, {}))
    name = "redis-server.service/Service/Nice"
    kind.check([setting(name, "1")], {"numa": ["redis-server"]})
    assert "does not exist" in kind.read([name])[name].unknown
    with pytest.raises(Refusal, match=r"no unit redis-server\.service"):
        kind.check([setting(name, "1")], {"numa": []})


def test_what_systemd_refuses_says_nothing(tmp_path: Path) -> None:
    lines = (
        "[Service]\nLimitNOFILE=5:9\nLimitNOFILE=\nLimitNOFILE=9:5\nNice=3\nNice=20\nNice=\nTasksMax=0x10\n"
        "TasksMax=5K\nMemoryMax=1G 512M\nMemoryMax=512M 1G\nRestart=always\nRestart=maybe\n"
        "AllowedCPUs=%i\nAllowedCPUs=x\n[Unit]\nDescription=%p of %%\n"
    )
    write(
        tmp_path,
        {"/etc/systemd/system/kt@.service": lines, "/etc/systemd/system/kt@.service.d/.h.conf": lines},
    )
    kind = UnitKind(FakeSystem(tmp_path, {}))
    names = [
        name_of(one, "Unit" if one == "Description" else "Service", "kt@3.service")
        for one in ("LimitNOFILE", "Nice", "TasksMax", "MemoryMax", "Restart", "AllowedCPUs", "Description")
    ]
    found = kind.read(names)
    values = [[one.value for one in found[name].definitions] for name in names]
    assert values == [["5:9"], ["3", ""], ["0x10"], ["1G 512M"], ["always"], ["3"], ["kt of %"]]
    assert kind.same(names[2], "16", "0x10") and kind.same(names[6], "%p of %%", "kt of %")


def test_a_file_ends_its_last_line_and_a_broken_header_ends_the_file() -> None:
    def values(text: str) -> list[str]:
        return [one.value for one in systemd.assignments(text, "x")]

    assert values("[A]\na=1\\") == ["1"]
    assert values("[A]\na=1 \\\n# b") == ["1"]
    assert values("a=1\n[A]\nb=\u00a02\n[B\nc=3\n") == ["\u00a02"]


def test_shorthands_shares_and_what_only_a_running_service_shows(tmp_path: Path) -> None:
    write(
        tmp_path,
        unit_file({"TimeoutStopSec": "5", "TimeoutSec": "9", "MemoryMax": "50%", "WatchdogSec": "3"}),
    )
    shown = {
        **SHOWN,
        "TimeoutStopUSec": "9s",
        "MemoryMax": "805306368",
        "WatchdogUSec": "infinity",
        "MainPID": "0",
    }
    names = [name_of(one) for one in ("TimeoutStopSec", "MemoryMax", "WatchdogSec", "StartupAllowedCPUs")]
    planes = UnitKind(FakeSystem(tmp_path, {UNIT: shown})).read(names)
    assert [planes[name].live for name in names] == ["9s", "50%", "3", ""]
    assert [one.value for one in planes[names[0]].definitions] == ["5", "9"]
    assert {planes[name].needs for name in names} == {"none"}
