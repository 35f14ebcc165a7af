"""Foreign owners: found before anything is touched, decided about, and given back."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fake_host import FakeHost, as_root
from hosttune import dpkg, foreign, foreign_files, foreign_programs, tuned
from hosttune.model import Definition, Planes, Refusal, Setting
from hosttune.observe import Observer
from hosttune.store import Ledger
from hosttune.system import Ran
from hypothesis import given, settings
from hypothesis import strategies as st

SWAPPINESS = {"kernel": {"sysctl": {"vm.swappiness": "10"}}}
SERVERS = {"numa": {"unit": {"redis-server.service/Service/TasksMax": "512"}}}
BELOW = ("etc", "proc", "usr")


class Host(FakeHost):
    """A small host with a service manager that remembers: unit -> [UnitFileState, ActiveState]."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.units: dict[str, list[str]] = {}
        self.told: list[str] = []
        #: what a command does to live values, and what stood there when it came
        self.effects: dict[str, dict[str, str]] = {}
        self.seen: dict[str, dict[str, str]] = {}
        self.put("/var/lib/dpkg/status", "")

    @classmethod
    def again(cls, other):
        found = super().again(other)
        found.units, found.told = other.units, other.told
        found.effects, found.seen = other.effects, other.seen
        return found

    def unit(self, name: str, boot: str = "enabled", run: str = "active") -> None:
        self.put(f"/usr/lib/systemd/system/{name}", "[Service]\nExecStart=/bin/true\n")
        self.units[name] = [boot, run]

    def package(self, name: str, version: str, *files: str) -> None:
        status = self.text("/var/lib/dpkg/status")
        self.put(
            "/var/lib/dpkg/status",
            f"{status}Package: {name}\nStatus: install ok installed\nVersion: {version}\n\n",
        )
        self.put(f"/var/lib/dpkg/info/{name}.list", "/.\n" + "".join(f"{file}\n" for file in files))

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        if argv[0] != "systemctl" or "--" not in argv:
            return Ran(0, "", "") if argv[:2] == ("systemctl", "daemon-reload") else super().run(*argv)
        names = argv[argv.index("--") + 1 :]
        if argv[1] == "show":
            return Ran(0, "\n".join(self._block(name) for name in names), "")
        if argv[1] == "is-enabled":
            known = [self.units[name][0] for name in names if name in self.units]
            return Ran(len(names) - len(known), "".join(f"{state}\n" for state in known), "")
        verb, name = argv[1], names[0]
        self.told.append(f"{verb} {name}")
        for path, value in self.effects.get(f"{verb} {name}", {}).items():
            self.seen.setdefault(f"{verb} {name}", {})[path] = self.text(f"/proc/sys/{path}")
            self.put(f"/proc/sys/{path}", value)
        state = self.units[name]
        boot = {"enable": "enabled", "disable": "disabled", "mask": "masked", "unmask": "disabled"}.get(verb)
        run = {"start": "active", "stop": "inactive"}.get(verb)
        self.units[name] = [boot or state[0], run or state[1]]
        return Ran(0, "", "")

    def _block(self, name: str) -> str:
        boot, run = self.units.get(name, ["", "inactive"])
        load = "loaded" if name in self.units else "not-found"
        return (
            f"Id={name}\nNames={name}\nLoadState={load}\nActiveState={run}\nUnitFileState={boot}\nMainPID=0\n"
            f"FragmentPath=/usr/lib/systemd/system/{name}\nNeedDaemonReload=no\nTasksMax=512\n"
        )


@pytest.fixture
def host(tmp_path, monkeypatch):
    as_root(monkeypatch)
    return Host(tmp_path)


def finding(report, owner):
    found = [one for one in report.foreign if one["owner"] == owner]
    assert len(found) == 1, report.foreign
    return found[0]


def in_everything(host):
    return host.snapshot(times=True, below=("etc", "proc", "usr", "var/lib/hosttune"))


def with_tuned(host, text="[sysctl]\nvm.swappiness=3\n", profile="desk"):
    host.unit("tuned.service")
    host.package("tuned", "2.20.0-1", "/usr/lib/systemd/system/tuned.service")
    host.put("/etc/tuned/active_profile", f"{profile}\n")
    host.put(f"/usr/lib/tuned/{profile}/tuned.conf", text)


# files


def test_a_file_that_wins_is_refused_with_all_an_operator_needs(host):
    host.put("/etc/sysctl.d/zz-vendor.conf", "net.core.somaxconn = 1\nvm.swappiness = 30\n")
    host.package("vendor", "1.2-3", "/etc/sysctl.d/zz-vendor.conf")
    before = host.snapshot(times=True, below=("etc", "proc", "var"))
    for check in (True, False):
        with pytest.raises(foreign.ForeignRefusal) as caught:
            host.apply(SWAPPINESS, check=check)
        said = str(caught.value)
        for word in (
            "/etc/sysctl.d/zz-vendor.conf",
            "vendor 1.2-3",
            "line 2",
            "vm.swappiness = 30",
            "take_over",
            "leave",
            "refuse",
        ):
            assert word in said
        assert "somaxconn" not in said
        assert caught.value.findings[-1].as_dict()["weight"] == "fight"
    after = host.snapshot(times=True, below=("etc", "proc", "var"))
    for found in (before, after):
        for name in (
            "var/lib",
            "var/lib/.",
            "var/lib/hosttune",
            "var/lib/hosttune/lock",
            "var/lib/hosttune/.",
        ):
            found.pop(name, None)
    assert after == before


def test_a_file_of_etc_is_taken_over_line_by_line_and_given_back(host):
    text = "# ours by hand\nvm.swappiness = 30\nkernel.hostname = x\nvm.swappiness=31"
    host.put("/etc/sysctl.d/zz-vendor.conf", text, 0o640)
    before = host.snapshot(below=BELOW)
    decisions = {"/etc/sysctl.d/zz-vendor.conf": "take_over"}
    said = host.apply(SWAPPINESS, foreign=decisions, check=True)
    assert host.snapshot(below=BELOW) == before
    done = host.apply(SWAPPINESS, foreign=decisions)
    assert said.diff == done.diff
    assert said.foreign == done.foreign
    assert said.manifest_digest == done.manifest_digest
    assert host.text("/etc/sysctl.d/zz-vendor.conf") == (
        "# ours by hand\n# hosttune took over: vm.swappiness = 30\n"
        "kernel.hostname = x\n# hosttune took over: vm.swappiness=31"
    )
    assert {one.verdict for one in done.settings} == {"in_sync"}
    stood = in_everything(host)
    again = host.apply(SWAPPINESS, foreign=decisions)
    stood.pop("var/lib/hosttune/lock")
    now = in_everything(host)
    now.pop("var/lib/hosttune/lock")
    assert now == stood
    assert not again.changed
    assert finding(again, "/etc/sysctl.d/zz-vendor.conf")["decision"] == "take_over"
    assert not host.apply({}, present=False).failures
    assert host.snapshot(below=BELOW) == before


def test_a_file_of_a_package_is_masked_by_a_copy_that_follows_the_package(host):
    host.put("/usr/lib/sysctl.d/99-vendor.conf", "vm.swappiness = 30\nkernel.hostname = a\n")
    before = host.snapshot(below=BELOW)
    decisions = {"/usr/lib/sysctl.d/99-vendor.conf": "take_over"}
    done = host.apply(SWAPPINESS, foreign=decisions)
    mask = host.text("/etc/sysctl.d/99-vendor.conf").split("\n", 1)
    assert "Managed by hosttune" in mask[0]
    assert "/usr/lib/sysctl.d/99-vendor.conf" in mask[0]
    assert mask[1] == "# hosttune took over: vm.swappiness = 30\nkernel.hostname = a\n"
    assert {one.verdict for one in done.settings} == {"in_sync"}
    assert not host.apply(SWAPPINESS, foreign=decisions).changed
    host.put("/usr/lib/sysctl.d/99-vendor.conf", "vm.swappiness = 40\nkernel.hostname = b\n")
    assert host.apply(SWAPPINESS, foreign=decisions).changed
    assert host.text("/etc/sysctl.d/99-vendor.conf").endswith("= 40\nkernel.hostname = b\n")
    host.put("/usr/lib/sysctl.d/99-vendor.conf", "vm.swappiness = 30\nkernel.hostname = a\n")
    host.apply({}, present=False)
    assert host.snapshot(below=BELOW) == before


def test_a_package_that_goes_takes_its_mask_along(host):
    host.put("/usr/lib/sysctl.d/99-vendor.conf", "vm.swappiness = 30\n")
    decisions = {"/usr/lib/sysctl.d/99-vendor.conf": "take_over"}
    host.apply(SWAPPINESS, foreign=decisions)
    (host.folder / "usr/lib/sysctl.d/99-vendor.conf").unlink()
    host.apply(SWAPPINESS, foreign=decisions)
    assert not (host.folder / "etc/sysctl.d/99-vendor.conf").exists()


def test_a_link_is_followed_to_the_file_that_holds_the_line(host):
    host.put("/etc/sysctl.conf", "vm.swappiness = 30\n")
    (host.folder / "etc/sysctl.d/99-sysctl.conf").symlink_to("../sysctl.conf")
    before = host.snapshot(below=BELOW)
    for name in ("/etc/sysctl.conf", "/etc/sysctl.d/99-sysctl.conf"):
        done = host.apply(SWAPPINESS, foreign={name: "take_over"})
        assert {one.verdict for one in done.settings} == {"in_sync"}
        assert host.text("/etc/sysctl.conf") == "# hosttune took over: vm.swappiness = 30\n"
        assert (host.folder / "etc/sysctl.d/99-sysctl.conf").is_symlink()
        host.apply({}, present=False)
        assert host.snapshot(below=BELOW) == before


def test_what_ours_overrides_is_said_and_stops_nothing(host):
    done = host.apply(SWAPPINESS)
    said = finding(done, "/etc/sysctl.d/10-vendor.conf")
    assert (said["weight"], said["decision"]) == ("overridden", "none")
    assert said["affects"] == ["sysctl vm.swappiness"]
    assert {one.verdict for one in done.settings} == {"in_sync"}


def test_the_same_value_elsewhere_is_no_fight(host):
    host.put("/etc/sysctl.d/zz-vendor.conf", "vm.swappiness = 10\n")
    done = host.apply(SWAPPINESS)
    assert finding(done, "/etc/sysctl.d/zz-vendor.conf")["weight"] == "overridden"
    assert [one.verdict for one in done.settings] == ["shadowed"]


def test_left_settings_are_given_back_and_judged_by_nobody(host):
    owners = {"kernel": {"sysctl": {"vm.swappiness": "10", "net.core.somaxconn": "4096"}}}
    host.apply(owners)
    host.put("/etc/sysctl.d/zz-vendor.conf", "vm.swappiness = 30\n")
    decisions = {"/etc/sysctl.d/zz-vendor.conf": "leave"}
    done = host.apply(owners, foreign=decisions)
    assert [one.setting.name for one in done.settings] == ["net.core.somaxconn"]
    assert done.left == [
        {
            "owner": "kernel",
            "kind": "sysctl",
            "name": "vm.swappiness",
            "desired": "10",
            "left": "/etc/sysctl.d/zz-vendor.conf has it",
        }
    ]
    assert host.text("/proc/sys/vm/swappiness") == "60\n"
    assert "swappiness" not in host.text("/etc/sysctl.d/60-hosttune-kernel.conf")
    assert "swappiness" not in host.text("/etc/hosttune/manifest.json")
    assert not host.apply(owners, foreign=decisions).changed


def test_the_decision_can_change_its_mind(host):
    host.put("/etc/sysctl.d/zz-vendor.conf", "vm.swappiness = 30\n")
    name = "/etc/sysctl.d/zz-vendor.conf"
    host.apply(SWAPPINESS, foreign={name: "take_over"})
    done = host.apply(SWAPPINESS, foreign={name: "leave"})
    assert host.text(name) == "vm.swappiness = 30\n"
    assert done.settings == []
    host.apply(SWAPPINESS, foreign={name: "take_over"})
    with pytest.raises(foreign.ForeignRefusal):
        host.apply(SWAPPINESS)


def test_what_nobody_asks_for_any_more_is_given_back(host):
    host.put("/etc/sysctl.d/zz-vendor.conf", "vm.swappiness = 30\nnet.core.somaxconn = 9\n")
    name = "/etc/sysctl.d/zz-vendor.conf"
    both = {"kernel": {"sysctl": {"vm.swappiness": "10", "net.core.somaxconn": "4096"}}}
    host.apply(both, foreign={name: "take_over"})
    assert host.text(name).count("# hosttune took over: ") == 2
    host.apply(SWAPPINESS, foreign={name: "take_over"})
    assert host.text(name) == "# hosttune took over: vm.swappiness = 30\nnet.core.somaxconn = 9\n"
    host.apply({"kernel": {"sysctl": {"kernel.hostname": "fake"}}}, foreign={name: "take_over"})
    assert host.text(name) == "vm.swappiness = 30\nnet.core.somaxconn = 9\n"


def test_a_part_of_the_host_leaves_what_is_held_for_the_others(host):
    name = "/etc/sysctl.d/zz-vendor.conf"
    host.put(name, "vm.swappiness = 30\n")
    owners = {**SWAPPINESS, "net": {"sysctl": {"net.core.somaxconn": "4096"}}}
    host.apply(owners, foreign={name: "take_over"})
    more = {"net": {"sysctl": {"net.core.somaxconn": "8192"}}}
    host.apply(more, partial=True, foreign={name: "take_over"})
    assert host.text(name).startswith("# hosttune took over: ")
    host.apply({"net": {"sysctl": {"net.core.somaxconn": "8193"}}}, partial=True)  # says nothing of the file
    assert host.text(name).startswith("# hosttune took over: ")
    host.apply(more, partial=True)
    assert not host.apply({**SWAPPINESS, **more}, foreign={name: "take_over"}).changed
    assert not host.apply({"net": {}}, present=False).failures
    assert host.text(name).startswith("# hosttune took over: ")
    assert not host.apply({"kernel": {}}, present=False).failures
    assert host.text(name) == "vm.swappiness = 30\n"
    assert not (host.folder / "etc/hosttune/manifest.json").exists()


def test_another_part_of_the_host_is_not_refused_for_this_one(host):
    host.apply({**SWAPPINESS, "net": {"sysctl": {"net.core.somaxconn": "4096"}}})
    host.put("/etc/sysctl.d/zz-vendor.conf", "vm.swappiness = 30\n")
    done = host.apply({"net": {"sysctl": {"net.core.somaxconn": "8192"}}}, partial=True)
    assert [one.verdict for one in done.settings] == ["in_sync"]
    with pytest.raises(foreign.ForeignRefusal):
        host.apply(SWAPPINESS, partial=True)


def test_limits_and_tmpfiles_are_read_by_their_own_rules(host):
    """limits.d: the last line wins; tmpfiles.d: the first does."""
    host.put("/sys/kernel/mm/ksm/run", "0\n")
    host.put("/etc/tmpfiles.d/10-early.conf", "w /sys/kernel/mm/ksm/run - - - - 1\n")
    host.put("/etc/tmpfiles.d/90-late.conf", "w /sys/kernel/mm/ksm/run - - - - 0\n")
    host.put("/etc/security/limits.conf", "trader hard nofile 5\n")
    host.put("/etc/security/limits.d/90-late.conf", "trader hard nofile 6\n")
    owners = {"x": {"sysfs": {"kernel/mm/ksm/run": "2"}, "limit": {"trader/hard/nofile": "65536"}}}
    with pytest.raises(foreign.ForeignRefusal) as caught:
        host.apply(owners)
    refused = {one.owner for one in caught.value.findings if one.decision == "refuse"}
    assert refused == {"/etc/tmpfiles.d/10-early.conf", "/etc/security/limits.d/90-late.conf"}
    before = host.snapshot(below=BELOW)
    done = host.apply(owners, foreign=dict.fromkeys(refused, "take_over"))
    assert {one.verdict for one in done.settings} == {"in_sync"}
    host.apply({}, present=False)
    now = host.snapshot(below=BELOW)
    assert now == before


def test_drop_ins_and_denied_modules(host):
    host.unit("redis-server.service")
    host.put("/usr/lib/systemd/system/redis-server.service.d/90-x.conf", "[Service]\nTasksMax=\\\n  9\n")
    host.put("/etc/modprobe.d/deny.conf", "blacklist tcp_bbr\noptions tcp_bbr x=1\n")
    host.put("/proc/sys/kernel/osrelease", "6.1\n")
    host.put("/lib/modules/6.1/modules.dep", "kernel/a/tcp_bbr.ko:\n")
    host.put("/sys/module/tcp_bbr/refcnt", "0\n")
    before = host.snapshot(below=BELOW)
    owners = {**SERVERS, "kernel": {"module": {"tcp_bbr": "loaded"}}}
    files = ("/usr/lib/systemd/system/redis-server.service.d/90-x.conf", "/etc/modprobe.d/deny.conf")
    with pytest.raises(foreign.ForeignRefusal) as caught:
        host.apply(owners)
    assert {one.owner for one in caught.value.findings if one.decision == "refuse"} == set(files)
    done = host.apply(owners, foreign=dict.fromkeys(files, "take_over"))
    assert not done.failures
    mark = "# hosttune took over: "
    assert host.text("/etc/modprobe.d/deny.conf") == f"{mark}blacklist tcp_bbr\noptions tcp_bbr x=1\n"
    masked = host.text("/etc/systemd/system/redis-server.service.d/90-x.conf").split("\n", 1)[1]
    assert masked == f"[Service]\n{mark}TasksMax=\\\n{mark}  9\n"
    assert {one.verdict for one in done.settings} == {"in_sync"}
    assert not host.apply(owners, foreign=dict.fromkeys(files, "take_over")).changed
    host.apply({}, present=False)
    assert host.snapshot(below=BELOW) == before


def test_rules_of_udev(host):
    """The last rule that matches wins, and a rule is one thing however many lines it has."""
    disk = "/sys/block/sda/queue"
    for name, value in (("scheduler", "[none] mq-deadline"), ("rotational", "0"), ("nr_requests", "256")):
        host.put(f"{disk}/{name}", f"{value}\n")
    host.put("/proc/sys/kernel/osrelease", "6.1\n")
    early = 'KERNEL=="sda", ATTR{queue/scheduler}="none"\n'
    late = '# vendor\nKERNEL=="sd[a-z]", \\\n  ATTR{queue/scheduler}="none"\nKERNEL=="sdq", GOTO="end"\n'
    host.put("/usr/lib/udev/rules.d/40-early.rules", early)
    host.put("/usr/lib/udev/rules.d/99-late.rules", late)
    before = host.snapshot(below=BELOW)
    owners = {"io_scheduler": {"block": {"sda/scheduler": "mq-deadline"}}}
    with pytest.raises(foreign.ForeignRefusal) as caught:
        host.apply(owners)
    refused = [one.owner for one in caught.value.findings if one.decision == "refuse"]
    assert refused == ["/usr/lib/udev/rules.d/99-late.rules"]
    done = host.apply(owners, foreign={refused[0]: "take_over"})
    assert not [one for one in done.settings if one.verdict in ("boot_bomb", "drift")]
    mark = "# hosttune took over: "
    marked = late.replace('KERNEL=="sd[', f'{mark}KERNEL=="sd[').replace("  ATTR", f"{mark}  ATTR")
    assert host.text("/etc/udev/rules.d/99-late.rules").split("\n", 1)[1] == marked
    assert finding(done, "/usr/lib/udev/rules.d/40-early.rules")["weight"] == "overridden"
    host.apply({}, present=False)
    assert host.snapshot(below=BELOW) == before


def test_a_fight_that_somebody_answers_for_stops_nothing(host):
    host.put("/etc/sysctl.d/zz-vendor.conf", "vm.swappiness = 30\n")
    waiver = {
        "kind": "sysctl",
        "name": "vm.*",
        "owner": "ops",
        "reason": "vendor asks for it",
        "ticket": "OPS-1",
        "expires": "2999-01-01T00:00:00Z",
    }
    host.put("/etc/hosttune/waivers.json", json.dumps({"schema": 1, "waivers": [waiver]}))
    done = host.apply(SWAPPINESS)
    assert [one.verdict for one in done.settings] == ["waived"]
    assert "waived" in finding(done, "/etc/sysctl.d/zz-vendor.conf")["reason"]
    waiver["expires"] = "2020-01-01T00:00:00Z"
    host.put("/etc/hosttune/waivers.json", json.dumps({"schema": 1, "waivers": [waiver]}))
    with pytest.raises(foreign.ForeignRefusal):
        host.apply(SWAPPINESS)


_VALUES = st.sampled_from(["10", "30", "60"])
_LINES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["vm.swappiness", "net.core.somaxconn", "kernel/hostname"]), _VALUES).map(
            " = ".join
        ),
        st.sampled_from(["", "# a comment", "; another"]),
    ),
    max_size=5,
).map("\n".join)
_FILES = st.dictionaries(
    st.tuples(
        st.sampled_from(["/etc/sysctl.d", "/usr/lib/sysctl.d", "/run/sysctl.d"]),
        st.sampled_from(["10-a.conf", "60-hosttune-z.conf", "70-b.conf", "99-c.conf", "zz.conf"]),
    ).map("/".join),
    _LINES,
    max_size=6,
)


def winners(host):
    """sysctl.d(5) in a few lines: base names, the first folder masks, the last assignment wins."""
    chosen = {}
    for folder in ("etc/sysctl.d", "run/sysctl.d", "usr/lib/sysctl.d"):
        for path in sorted((host.folder / folder).glob("*.conf")):
            chosen.setdefault(path.name, path)
    found = {}
    for name in sorted(chosen):
        for line in chosen[name].read_text().split("\n"):
            key, equals, value = line.partition("=")
            if equals and not line.startswith(("#", ";")):
                found[key.strip().replace("/", ".")] = value.strip()
    return found


@settings(max_examples=60, deadline=None)
@given(files=_FILES)
def test_whatever_lies_in_sysctl_d_ours_win_at_the_next_boot_and_all_comes_back(files):
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        as_root(patch)
        host = Host(Path(folder))
        for path, text in files.items():
            host.put(path, text)
        before = host.snapshot(below=("etc", "usr", "run"))
        untouched = {key: value for key, value in winners(host).items() if key == "kernel.hostname"}
        wanted = {"vm.swappiness": "10", "net.core.somaxconn": "4096"}
        decisions = dict.fromkeys(files, "take_over")
        done = host.apply({"kernel": {"sysctl": wanted}}, foreign=decisions)
        assert not done.failures
        assert winners(host) == {**untouched, **wanted}
        assert not host.apply({"kernel": {"sysctl": wanted}}, foreign=decisions).changed
        assert not host.apply({}, present=False).failures
        assert host.snapshot(below=("etc", "usr", "run")) == before


def test_a_file_with_other_bytes_than_utf8_is_left_to_a_hand(host):
    path = host.folder / "etc/sysctl.d/zz-latin.conf"
    path.write_bytes(b"# gr\xfc\xdfe\nvm.swappiness = 30\n")
    with pytest.raises(Refusal, match="cannot be taken over"):
        host.apply(SWAPPINESS, foreign={"/etc/sysctl.d/zz-latin.conf": "take_over"})
    assert path.read_bytes() == b"# gr\xfc\xdfe\nvm.swappiness = 30\n"


def test_a_view_cannot_be_written_through(host):
    with pytest.raises(PermissionError):
        foreign_files.View(host).write_value("/proc/sys/vm/swappiness", "1")
    assert host.text("/proc/sys/vm/swappiness") == "60\n"


# programs


def test_tuned_is_refused_with_package_unit_profile_and_setting(host):
    with_tuned(host)
    with pytest.raises(foreign.ForeignRefusal) as caught:
        host.apply(SWAPPINESS)
    said = str(caught.value)
    for word in ("tuned 2.20.0-1", "tuned.service enabled active", "desk/tuned.conf:2", "vm.swappiness"):
        assert word in said
    assert host.told == []


def test_tuned_is_taken_over_and_given_back(host):
    with_tuned(host)
    before, units = host.snapshot(below=BELOW), dict(host.units)
    said = host.apply(SWAPPINESS, foreign={"tuned": "take_over"}, check=True)
    assert host.units == units
    done = host.apply(SWAPPINESS, foreign={"tuned": "take_over"})
    assert said.diff == done.diff
    assert said.foreign == done.foreign
    assert host.units["tuned.service"] == ["disabled", "inactive"]
    assert {one.verdict for one in done.settings} == {"in_sync"}
    told = list(host.told)
    again = host.apply(SWAPPINESS, foreign={"tuned": "take_over"})
    assert not again.changed
    assert host.told == told
    held = finding(again, "tuned")
    assert (held["decision"], held["state"]) == ("take_over", "enabled active")
    assert not host.apply({}, present=False).failures
    assert host.units == units
    assert host.snapshot(below=BELOW) == before


def test_left_to_tuned(host):
    with_tuned(host)
    owners = {"kernel": {"sysctl": {"vm.swappiness": "10", "net.core.somaxconn": "4096"}}}
    done = host.apply(owners, foreign={"tuned": "leave"})
    assert [one.setting.name for one in done.settings] == ["net.core.somaxconn"]
    assert [one["left"] for one in done.left] == ["tuned has it"]


@pytest.mark.parametrize(
    ("text", "fights"),
    [
        ("[sysctl]\nvm.swappiness=10\n", False),
        ("[sysctl]\nvm.swappiness = >5\n", False),
        ("[sysctl]\nvm.swappiness=>50\n", True),
        ("[sysctl]\nvm.swappiness=${x}\n", True),
        ("[mine]\ntype=sysctl\nvm.swappiness=1\n", True),
        ("[sysctl]\nenabled=0\nvm.swappiness=1\n", False),
        ("[sysctl]\nnet.core.somaxconn=1\n", False),
        ("[main]\ninclude=base\n", True),
        ("[main]\ninclude=base\n[sysctl]\nvm.swappiness=10\n", False),
        ("[main]\ninclude=desk\n", False),
        ("[main]\ninclude=${f:virt_check:base:desk}\n", True),
        ("[main]\ninclude=${name}\n", True),
        ("[sysctl.arm]\ntype=sysctl\nuname_regex=aarch64\nvm.swappiness=10\n", True),
    ],
)
def test_what_a_profile_of_tuned_sets(host, text, fights):
    with_tuned(host, text)
    host.put("/usr/lib/tuned/base/tuned.conf", "[sysctl]\nvm.swappiness=1\n")
    if fights:
        with pytest.raises(foreign.ForeignRefusal):
            host.apply(SWAPPINESS)
    else:
        assert finding(host.apply(SWAPPINESS), "tuned")["weight"] == "overridden"


def test_a_tuned_without_a_profile_may_choose_any(host):
    with_tuned(host)
    (host.folder / "etc/tuned/active_profile").write_text("")
    host.put("/usr/lib/tuned/other/tuned.conf", "[sysctl]\nvm.swappiness=10\n")
    assert tuned.shipped(host) == ["desk", "other"]
    with pytest.raises(foreign.ForeignRefusal, match="no profile is chosen"):
        host.apply(SWAPPINESS)


def test_a_program_that_neither_runs_nor_starts_fights_nobody(host):
    with_tuned(host)
    host.units["tuned.service"] = ["disabled", "inactive"]
    assert [one for one in host.apply(SWAPPINESS).foreign if one["owner"] == "tuned"] == []


def test_a_state_that_cannot_be_read_counts_as_acting(host, monkeypatch):
    with_tuned(host)
    monkeypatch.setattr(Host, "run", FakeHost.run)
    with pytest.raises(foreign.ForeignRefusal, match=r"tuned\.service unknown"):
        host.apply(SWAPPINESS)


def test_a_role_that_manages_the_program_has_decided(host):
    with_tuned(host)
    owners = {**SWAPPINESS, "mine": {"service": {"tuned.service": "disabled inactive"}}}
    host.apply(SWAPPINESS, foreign={"tuned": "take_over"})
    done = host.apply(owners)
    assert [one for one in done.foreign if one["owner"] == "tuned"] == []
    assert host.units["tuned.service"] == ["disabled", "inactive"]
    assert not host.apply(owners).changed


def test_irqbalance_fights_pinned_cpus_only(host):
    host.unit("irqbalance.service")
    host.unit("redis-server.service")
    assert [one for one in host.apply(SWAPPINESS).foreign if one["owner"] == "irqbalance"] == []
    pinned = {"numa": {"unit": {"redis-server.service/Service/CPUAffinity": "1"}}}
    with pytest.raises(foreign.ForeignRefusal, match="irqbalance"):
        host.apply({**SWAPPINESS, **pinned})


def test_servers_are_guarded_from_updates_without_a_word_of_the_operator(host):
    host.unit("redis-server.service")
    host.unit("apt-daily-upgrade.timer")
    host.put("/usr/bin/unattended-upgrade", "")
    host.put("/usr/sbin/needrestart", "")
    host.put("/etc/needrestart/needrestart.conf", "")
    host.package("unattended-upgrades", "2.9", "/usr/bin/unattended-upgrade")
    before = host.snapshot(below=BELOW)
    done = host.apply(SERVERS)
    guard = finding(done, "unattended-upgrades")
    assert (guard["weight"], guard["decision"]) == ("guard", "take_over")
    assert guard["package"] == "unattended-upgrades 2.9"
    assert '"redis";' in host.text(foreign_programs.APT_GUARD)
    assert "qr(^redis\\-server(\\@|\\.service$))} = 0;" in host.text(foreign_programs.NEEDRESTART_GUARD)
    assert host.units["apt-daily-upgrade.timer"] == ["enabled", "active"]
    assert not host.apply(SERVERS).changed
    host.apply({}, present=False)
    assert host.snapshot(below=BELOW) == before
    with pytest.raises(foreign.ForeignRefusal, match="unattended-upgrades"):
        host.apply(SERVERS, foreign={"unattended-upgrades": "refuse"})


def test_a_kernel_that_lacks_a_module_is_said(host):
    host.put("/proc/sys/kernel/osrelease", "6.1.0-9-amd64\n")
    for release, modules in (
        ("6.1.0-9-amd64", "kernel/a/tcp_bbr.ko:\n"),
        ("6.1.0-10-amd64", "kernel/a/x.ko:\n"),
    ):
        host.put(f"/boot/vmlinuz-{release}", "")
        host.put(f"/lib/modules/{release}/modules.dep", modules)
        host.put(f"/lib/modules/{release}/modules.builtin", "")
    host.put("/sys/module/tcp_bbr/refcnt", "0\n")
    owners = {"kernel": {"module": {"tcp_bbr": "loaded"}}}
    said = finding(host.apply(owners), "kernel")
    assert (said["weight"], said["decision"]) == ("warning", "none")
    assert said["affects"] == ["module tcp_bbr"]
    assert "6.1.0-10-amd64 instead of 6.1.0-9-amd64" in said["reason"]
    with pytest.raises(foreign.ForeignRefusal, match=r"6\.1\.0-10-amd64"):
        host.apply(owners, foreign={"kernel": "refuse"})


def test_a_program_that_gives_back_its_originals_when_it_stops_is_stopped_first(host):
    """TuneD does: vm.swappiness was 60 before it came. One value is right until it stops, one is not."""
    with_tuned(host, "[sysctl]\nvm.swappiness=10\nnet.core.somaxconn=2048\n")
    owners = {"kernel": {"sysctl": {"vm.swappiness": "10", "net.core.somaxconn": "4096"}}}
    host.put("/proc/sys/vm/swappiness", "10\n")
    host.put("/proc/sys/net/core/somaxconn", "2048\n")
    host.effects = {
        "stop tuned.service": {"vm/swappiness": "60\n", "net/core/somaxconn": "128\n"},
        "start tuned.service": {"vm/swappiness": "10\n", "net/core/somaxconn": "2048\n"},
    }
    done = host.apply(owners, foreign={"tuned": "take_over"})
    assert not done.failures
    assert host.text("/proc/sys/vm/swappiness") == "10\n"
    assert host.text("/proc/sys/net/core/somaxconn") == "4096\n"
    assert {one.verdict for one in done.settings} == {"in_sync"}
    host.live_writes.clear()
    assert not host.apply({}, present=False).failures
    assert host.text("/proc/sys/net/core/somaxconn") == "2048\n"
    assert host.told[-2:] == ["enable tuned.service", "start tuned.service"]
    # It saw its own value when it started, and will give back that one.
    assert host.seen["start tuned.service"]["net/core/somaxconn"] == "2048\n"


def test_what_only_disturbs_takes_no_setting_away(host):
    host.unit("irqbalance.service")
    host.unit("redis-server.service")
    host.put("/usr/sbin/needrestart", "")
    owners = {"numa": {"unit": {"redis-server.service/Service/CPUAffinity": "1"}}}
    done = host.apply(owners, foreign={"irqbalance": "leave", "needrestart": "leave"})
    assert [one.setting.name for one in done.settings] == ["redis-server.service/Service/CPUAffinity"]
    assert done.left == []
    assert host.units["irqbalance.service"] == ["enabled", "active"]
    assert "(it goes on)" in finding(done, "irqbalance")["remedy"]


GOVERNOR = "devices/system/cpu/cpu0/cpufreq/scaling_governor"


@pytest.mark.parametrize(
    ("owner", "unit", "state"),
    [
        ("power-profiles-daemon", "power-profiles-daemon.service", ["masked", "inactive"]),
        ("cpupower", "cpupower.service", ["disabled", "inactive"]),
    ],
)
def test_who_sets_the_governor(host, owner, unit, state):
    host.put(f"/sys/{GOVERNOR}", "powersave\n")
    host.unit(unit)
    wanted = {"numa": {"sysfs": {GOVERNOR: "performance"}}}
    with pytest.raises(foreign.ForeignRefusal, match=owner):
        host.apply(wanted)
    assert not host.apply(wanted, foreign={owner: "take_over"}).failures
    assert host.units[unit] == state
    assert not host.apply(wanted, foreign={owner: "take_over"}).changed
    assert not host.apply({}, present=False).failures
    assert host.units[unit] == ["enabled", "active"]


def settled(host, setting, planes=None, decisions=None):
    """Of kinds whose settings cannot be walked here: a host without them, or without their kind."""
    system = Host.again(host)
    return foreign.settle(
        Observer(system), Ledger(system), [setting], [], {setting.key: planes or Planes()}, decisions or {}
    )


def test_network_manager_fights_where_a_connection_has_ethtool_settings(host):
    host.unit("NetworkManager.service")
    path = "/etc/NetworkManager/system-connections/wired.nmconnection"
    ring = Setting("nic", "nic", "eth0/ring/rx", "512")
    host.put(
        path, "[connection]\ninterface-name=eth0\n\n[ethtool]\n# ring-rx=1\n\n[ipv4]\nmethod=auto\n", 0o600
    )
    assert settled(host, ring).findings == []
    host.put(path, "[connection]\ninterface-name=eth0\n\n[ethtool]\nring-rx=4096\n", 0o600)
    with pytest.raises(foreign.ForeignRefusal, match=r"wired\.nmconnection") as caught:
        settled(host, ring)
    assert "take_over" not in caught.value.remedy
    assert settled(host, ring, decisions={"NetworkManager": "leave"}).wanted == []
    with pytest.raises(Refusal, match="cannot be taken over"):
        settled(host, ring, decisions={"NetworkManager": "take_over"})
    other = Setting("nic", "nic", "eth1/ring/rx", "512")
    assert settled(host, other).findings == []


def test_cloud_init_fights_for_its_own_lines_of_fstab(host):
    host.unit("cloud-init.service", run="inactive")
    mount = Setting("disks", "mount", "/data", "noatime")
    assert settled(host, mount, Planes(definitions=[Definition("defaults", "/etc/fstab", 1)])).findings == []
    its = Planes(definitions=[Definition("defaults,nofail,comment=cloudconfig", "/etc/fstab", 1)])
    with pytest.raises(foreign.ForeignRefusal, match="cloud-init"):
        settled(host, mount, its)
    done = settled(host, mount, its, {"cloud-init": "take_over"})
    assert [(one.kind, one.name) for one in done.wanted[1:]] == [("file", "/etc/cloud/cloud-init.disabled")]
    warned = settled(host, Setting("nic", "nic", "eth0/ring/rx", "512"))
    assert [(one.weight, one.decision) for one in warned.findings] == [("warning", "none")]
    host.put("/etc/cloud/cloud-init.disabled", "")
    assert settled(host, mount, its).findings == []


# decisions


@pytest.mark.parametrize(
    ("decisions", "remedy"),
    [
        ({"tunde": "leave"}, "Did you mean tuned"),
        ({"tuned": "stop"}, "take_over"),
        ({"tuned": True}, "refuse"),
    ],
)
def test_a_decision_that_is_none_is_refused(host, decisions, remedy):
    with pytest.raises(Refusal, match=remedy):
        host.apply(SWAPPINESS, foreign=decisions)


def test_packages_are_those_that_dpkg_lists(host):
    host.package("udev", "252", "/lib/udev/rules.d/60-block.rules")
    host.package("tuned", "2.20", "/usr/lib/tuned/x")
    paths = ["/usr/lib/udev/rules.d/60-block.rules", "/usr/lib/tuned/x", "/etc/none"]
    assert dpkg.packages_of(host, paths) == {paths[0]: "udev", paths[1]: "tuned"}


# clocks

CLOCK = {
    "time": {
        "file": {"/etc/chrony/60-hosttune-time.conf": {"content": "makestep 1.0 3\n"}},
        "service": {"chrony.service": "enabled active"},
    }
}


@pytest.fixture
def chrony(host):
    host.unit("chrony.service")
    return host


def template(host, name, command):
    host.put(f"/usr/lib/systemd/system/{name}", f"[Service]\nExecStart={command}\n")


@pytest.mark.parametrize("name", ["ntpsec", "ntp", "openntpd", "timemaster"])
def test_a_second_master_of_the_clock_is_refused_taken_over_or_left_the_clock(chrony, name):
    chrony.unit(f"{name}.service")
    with pytest.raises(foreign.ForeignRefusal, match=f"{name} .*steers the system clock beside chronyd"):
        chrony.apply(CLOCK)
    report = chrony.apply(CLOCK, foreign={name: "leave"})
    assert {(one["kind"], one["name"]) for one in report.left} == {
        ("file", "/etc/chrony/60-hosttune-time.conf"),
        ("service", "chrony.service"),
    }
    chrony.apply(CLOCK, foreign={name: "take_over"})
    assert chrony.units[f"{name}.service"] == ["disabled", "inactive"]
    chrony.apply({}, present=False)
    assert chrony.units[f"{name}.service"] == ["enabled", "active"]


def test_timesyncd_is_masked_before_chrony_runs_and_given_back(chrony):
    chrony.unit("systemd-timesyncd.service")
    chrony.units["chrony.service"] = ["enabled", "inactive"]
    assert not chrony.apply(CLOCK).failures
    assert chrony.units["systemd-timesyncd.service"] == ["masked", "inactive"]
    assert chrony.told.index("stop systemd-timesyncd.service") < chrony.told.index("start chrony.service")
    assert not chrony.apply(CLOCK).changed
    chrony.apply({}, present=False)
    assert chrony.units["systemd-timesyncd.service"] == ["enabled", "active"]


def test_no_clock_is_asked_for_and_nobody_is_told_of_clocks(host):
    for name in ("ntpsec.service", "systemd-timesyncd.service"):
        host.unit(name)
    known = {one["owner"] for one in host.apply(SWAPPINESS).foreign}
    assert known == {"/etc/sysctl.d/10-vendor.conf"}


def test_an_instance_that_starts_at_boot_and_steers_is_found_by_its_link(chrony):
    template(chrony, "phc2sys@.service", "/usr/sbin/phc2sys -w -s %I")
    assert chrony.apply(CLOCK).foreign == []
    link = Path(chrony.path("/etc/systemd/system/multi-user.target.wants/phc2sys@eth0.service"))
    link.parent.mkdir(parents=True)
    link.symlink_to("/usr/lib/systemd/system/phc2sys@.service")
    chrony.units["phc2sys@eth0.service"] = ["enabled", "inactive"]
    with pytest.raises(foreign.ForeignRefusal, match=r"phc2sys@eth0\.service enabled"):
        chrony.apply(CLOCK)
    chrony.put(
        "/etc/systemd/system/phc2sys@.service.d/a.conf",
        "[Service]\nExecStart=\nExecStart=/usr/sbin/phc2sys -a\n",
    )
    assert chrony.apply(CLOCK).foreign == []
