"""Kind mount: options in force, the option field of fstab, and a real remount."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from fake_host import FakeHost, as_root
from hosttune.engine import Request, converge
from hosttune.kinds.mount import (
    Line,
    Mounted,
    MountKind,
    contradict,
    in_force,
    merged,
    remount_options,
    split,
)
from hosttune.model import Change, FileImage, Refusal, Setting
from hosttune.system import Ran, System
from hypothesis import example, given, settings
from hypothesis import strategies as st

MOUNTINFO = """\
36 25 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
40 36 8:2 / /data\\040x rw,nosuid,noatime shared:2 - ext4 /dev/sda2 rw,lazytime,commit=30
41 36 8:3 / /ro ro,relatime - xfs /dev/sda3 rw,attr2
42 36 8:4 / /ro rw,relatime - xfs /dev/sda4 rw,attr2,inode64
43 36 8:5 / /broken rw,relatime - ext4 /dev/sda5 ro
44 36 8:6 / /feed rw,noatime - xfs /dev/sda6 rw,sync,lazytime,allocsize=65536k
45 36 8:7 / /scratch rw,nosuid,nodev - tmpfs tmpfs rw,size=1024k
"""
FSTAB = (
    b"# /etc/fstab: \xff static\n"
    b"UUID=1 / ext4 errors=remount-ro 0 1\n"
    b"  UUID=2\t/data\\040x   ext4\tdefaults,relatime \t0  2 # mine\n"
    b"UUID=3 none swap sw 0 0\n"
    b"UUID=4 /feed xfs noatime,allocsize=64m\n"
    b"UUID=9 /feed xfs defaults 0 0\n"
    b"UUID=5 /broken ext4 defaults 0 0"
)


class Host(System):
    def __init__(self, root):
        super().__init__(str(root))
        self.ran = []
        self.answer = Ran(0, "", "")

    def run(self, *argv, stdin="", timeout=120.0):
        self.ran.append(argv)
        return self.answer


@pytest.fixture
def host(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(MOUNTINFO)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/fstab").write_bytes(FSTAB)
    (tmp_path / "etc/fstab").chmod(0o640)
    return Host(tmp_path)


def wish(name, value):
    return Setting("postgres", "mount", name, value)


def test_a_list_and_a_text_are_the_same(host):
    kind = MountKind(host)
    assert (
        kind.text("/", ["noatime", "lazytime"]) == kind.text("/", "noatime, lazytime") == "noatime,lazytime"
    )
    with pytest.raises(Refusal, match="boolean"):
        kind.text("/", True)


@pytest.mark.skipif(not shutil.which("findmnt"), reason="needs findmnt as oracle")
@pytest.mark.parametrize("point", ["/", "/data x", "/ro", "/broken", "/feed", "/scratch"])
def test_live_is_what_findmnt_shows(host, point):
    argv = ["findmnt", "--kernel", "-F", host.path("/proc/self/mountinfo"), "-n", "-o", "OPTIONS", point]
    ended = subprocess.run(argv, capture_output=True, text=True, check=True)
    # Of two mounts on one point findmnt lists both; the last one covers the other.
    assert MountKind(host).read([point])[point].live == ended.stdout.split()[-1]


def test_persisted_is_the_first_line_of_fstab(host):
    found = MountKind(host).read(["/feed", "/data x", "/ro"])
    where = [(one.value, one.file, one.line) for one in found["/feed"].definitions]
    assert where == [("defaults", "/etc/fstab", 6), ("noatime,allocsize=64m", "/etc/fstab", 5)]
    assert found["/data x"].winner.value == "defaults,relatime"
    assert found["/ro"].winner is None


def test_a_point_that_is_not_mounted_has_no_live_value(host):
    planes = MountKind(host).read(["/gone"])["/gone"]
    assert (planes.live, planes.has_live) == (None, True)


def test_unreadable_mountinfo_is_unknown(host, tmp_path):
    (tmp_path / "proc/self/mountinfo").unlink()
    assert "mountinfo" in MountKind(host).read(["/"])["/"].unknown


@pytest.mark.parametrize(
    ("wanted", "found", "same"),
    [
        ("noatime", "rw,noatime", True),
        ("noatime", "rw,relatime", False),
        ("noatime", "rw", False),
        ("noatime", "noatime,relatime", False),  # which of the two wins hangs on the mount program
        ("nodiratime", "rw,noatime", True),
        ("nodiratime", "rw,relatime", False),
        ("diratime", "rw,noatime", False),
        ("diratime", "rw,relatime", True),
        ("atime", "rw,relatime", True),
        ("atime", "rw,noatime", False),
        ("relatime", "defaults", False),
        ("lazytime,noatime", "rw,noatime,lazytime", True),
        ("lazytime", "rw,noatime", False),
        ("nolazytime", "rw,noatime", True),
        ("exec", "rw,noexec", False),
        ("exec", "rw", True),
        ("nosuid", "rw", False),
        ("rw", "ro,noatime", False),
        ("rw", "defaults", True),
        ("async", "rw,sync", False),
        ("commit=30", "rw,commit=30", True),
        ("commit=30", "rw", False),
        ("commit=5", "rw", True),
        ("commit=5", "rw,commit=30", False),
        ("allocsize=64m", "rw,allocsize=65536k", True),
        ("allocsize=64m", "rw,allocsize=64k", False),
        ("barrier", "rw,nobarrier", False),
        ("barrier=1", "rw", True),
    ],
)
def test_same_means_in_force(host, wanted, found, same):
    assert MountKind(host).same("/", wanted, found) is same


option = st.sampled_from(
    [
        *(
            "noatime",
            "relatime",
            "atime",
            "nodiratime",
            "diratime",
            "lazytime",
            "nolazytime",
            "nosuid",
            "suid",
        ),
        *(
            "nodev",
            "dev",
            "noexec",
            "exec",
            "ro",
            "rw",
            "sync",
            "async",
            "commit=5",
            "commit=30",
            "data=ordered",
        ),
        *("discard", "nodiscard", "errors=remount-ro", "nofail", "defaults"),
    ]
)


@given(st.lists(option, max_size=6), st.lists(option, min_size=1, max_size=4))
def test_merging_puts_in_force_what_is_wanted_and_keeps_the_rest(options, wanted):
    if any(contradict(one, other) for one in wanted for other in wanted):
        return
    found = merged(options, wanted)
    assert all(in_force(one, found) for one in wanted if one not in ("nofail", "defaults"))
    assert merged(found, wanted) == found
    untouched = [one for one in options if not any(contradict(one, other) for other in wanted)]
    assert found[: len(untouched)] == untouched


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("/gone", "noatime", "no mount point"),
        ("/fed", "noatime", "Did you mean /feed"),
        ("/scratch", "noatime", "no line with options in /etc/fstab"),
        ("data", "noatime", "absolute path"),
        ("/feed/", "noatime", "absolute path"),
        ("/", "nobarrier", "power cut"),
        ("/", "noatime,barrier=0", "power cut"),
        ("/", "data=writeback", "power cut"),
        ("/", "noatime,relatime", "contradicts"),
        ("/", "strictatime", "noatime or relatime"),
        ("/", "nofail", "never in force"),
        ("/", "x-systemd.automount", "never in force"),
        ("/", "", "names no option"),
        ("/", "noatime;rm", "no mount option"),
    ],
)
def test_refuses(host, name, value, says):
    with pytest.raises(Refusal, match=says):
        MountKind(host).check([wish(name, value)], {})


def test_takes_what_is_mounted_from_fstab(host):
    MountKind(host).check([wish("/", "noatime"), wish("/data x", "noatime,lazytime")], {})


def test_a_container_leaves_mounts_to_the_machine(host, tmp_path):
    (tmp_path / "run/systemd").mkdir(parents=True)
    (tmp_path / "run/systemd/container").write_text("systemd-nspawn\n")
    kind = MountKind(host)
    kind.check([wish("/nowhere", "noatime")], {})
    assert kind.read(["/"])["/"].unsupported.startswith("kernel shared with the machine")
    with pytest.raises(Refusal):
        kind.check([wish("/", "nobarrier")], {})


def test_fstab_is_edited_in_the_option_field_only(host):
    kind = MountKind(host)
    ((path, image),) = kind.edits(
        [wish("/data x", "noatime"), wish("/feed", "lazytime,noatime")], {}, {}
    ).items()
    assert path == "/etc/fstab"
    owner = os.stat(host.path("/etc/fstab"))
    expected = FSTAB.replace(b"defaults,relatime", b"defaults,noatime").replace(
        b"noatime,allocsize=64m", b"noatime,allocsize=64m,lazytime"
    )
    assert image == FileImage(expected, 0o640, owner.st_uid, owner.st_gid)
    assert kind.managed_file("postgres", "/feed") == "/etc/fstab"
    assert kind.render("postgres", [wish("/feed", "noatime")]) == {}


def test_what_is_right_is_not_edited(host):
    ((_path, image),) = MountKind(host).edits([wish("/feed", "noatime")], {}, {}).items()
    assert image.content == FSTAB


def test_undo_gives_the_field_back_byte_for_byte(host, tmp_path):
    kind = MountKind(host)
    wanted = [wish("/data x", "noatime,lazytime"), wish("/feed", "lazytime")]
    before = {
        name: {"live": planes.live, "persisted": planes.persisted_dict()}
        for name, planes in kind.read([one.name for one in wanted]).items()
    }
    edited = kind.edits(wanted, {}, {})["/etc/fstab"].content
    assert edited != FSTAB
    (tmp_path / "etc/fstab").write_bytes(edited + b"\nUUID=7 /new ext4 defaults 0 0\n")
    content = kind.edits([], before, {})["/etc/fstab"].content
    assert content == FSTAB + b"\nUUID=7 /new ext4 defaults 0 0\n"  # what others wrote since stays


def test_without_fstab_there_is_nothing_to_edit(host, tmp_path):
    (tmp_path / "etc/fstab").unlink()
    assert MountKind(host).edits([], {"/": {"persisted": {"value": "defaults"}}}, {}) == {}


@given(st.text(alphabet=" \t#/\\abc,=\r", max_size=30))
def test_any_line_survives_parsing(text):
    line = Line(1, text)
    assert line.replaced(line.options) == text


def test_activation_names_flags_that_a_remount_would_clear(host):
    kind = MountKind(host)
    assert kind.activate([Change("/data x", "noatime,nodev"), Change("/broken", "noatime")], []) == {}
    start = ("mount", "--options-mode=ignore", "-o")
    assert host.ran == [
        (*start, "remount,rw,nosuid,noatime,lazytime,nodev", "--", "/data x"),
        # Its filesystem went read-only by itself: tuning must not make it writable again.
        (*start, "remount,ro,noatime", "--", "/broken"),
    ]


def test_undo_takes_back_what_was_added(host):
    now = Mounted("/x", ("rw", "nosuid", "noatime"), ("rw", "lazytime", "commit=30", "errors=remount-ro"))
    assert remount_options(now, split("rw,relatime,errors=remount-ro"), exact=True) == [
        "rw",
        "suid",
        "atime",
        "nolazytime",
        "commit=5",
        "relatime",
    ]


def test_a_failed_remount_is_told_with_what_mount_said(host):
    host.answer = Ran(32, "", "mount: /feed: mount point is busy.\n")
    failed = MountKind(host).activate([Change("/feed", "noexec"), Change("/gone", "noatime")], [])
    assert "mount point is busy" in failed["/feed"]
    assert "no longer mounted" in failed["/gone"]


def test_systemd_learns_of_an_edited_fstab(host, tmp_path):
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    MountKind(host).activate([], ["/etc/fstab"])
    assert host.ran == [("systemctl", "daemon-reload")]


REAL = """
import subprocess, sys
from hosttune.kinds.mount import MountKind
from hosttune.model import Change
from hosttune.system import System
point = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nosuid", "none", point], check=True)
kind = MountKind(System("/"))
before = kind.read([point])[point].live
assert kind.activate([Change(point, "noatime,lazytime,nodev")], []) == {}
during = kind.read([point])[point].live
assert kind.activate([Change(point, before, undo=True)], []) == {}
print(before, during, kind.read([point])[point].live)
"""


def test_a_real_remount_there_and_back(tmp_path):
    """In a mount namespace of its own, so that the machine's mounts stay as they are."""
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a mount namespace")
    here = Path(__file__).parents[2] / "module_utils"
    ended = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", REAL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(here)},
    )
    assert ended.returncode == 0, ended.stderr
    before, during, after = ended.stdout.split()
    assert set(split(during)) >= {"noatime", "lazytime", "nodev", "nosuid"}
    assert before == after
    assert "noatime" not in before


class Remounting(FakeHost):
    """A host whose mount(8) is played: it puts the flags of a remount in force as the kernel does."""

    AGAINST: ClassVar = {"atime": "noatime", "nolazytime": "lazytime", "dev": "nodev", "suid": "nosuid"}

    def run(self, *argv, stdin="", timeout=120.0):
        if argv[0] != "mount":
            return super().run(*argv, stdin=stdin, timeout=timeout)
        flags, of_super = {"rw"}, {"rw"}
        for option in argv[3].split(",")[1:]:
            group = of_super if option in ("lazytime", "nolazytime") else flags
            group.discard(self.AGAINST.get(option, ""))
            if option not in self.AGAINST and option not in ("rw", "ro"):
                group.discard({"noatime": "relatime", "relatime": "noatime"}.get(option, ""))
                group.add(option)
        if "noatime" not in flags:
            flags.add("relatime")
        self.put("/proc/self/mountinfo", mountinfo(flags, of_super))
        return Ran(0, "", "")


def mountinfo(flags, of_super):
    of_mount, of_super = ",".join(sorted(flags)), ",".join(sorted(of_super))
    return f"40 36 8:2 / /data {of_mount} shared:2 - ext4 /dev/sda2 {of_super}\n"


lists = st.lists(
    st.sampled_from(["noatime", "relatime", "lazytime", "nodev", "nosuid"]), unique=True, max_size=4
).filter(lambda found: not {"noatime", "relatime"} <= set(found))


@settings(max_examples=60, deadline=None)
@given(lists, lists.filter(bool), lists.filter(bool))
@example(["relatime"], ["noatime", "lazytime"], ["lazytime"])
@example([], ["noatime", "nosuid"], ["nosuid"])
@example(["noatime"], ["relatime"], ["lazytime"])
def test_an_option_that_is_no_longer_asked_for_goes(tmp_path_factory, before, first, then):
    """Asking for one list and then for another ends as the second alone would have, and undo as it began."""

    def begin():
        host = Remounting(tmp_path_factory.mktemp("host"))
        host.put("/etc/fstab", f"# x\n/dev/sda2 /data ext4 {','.join(before) or 'defaults'} 0 2\n")
        flags = {"rw", *(one for one in before if one != "lazytime")}
        if "noatime" not in flags:
            flags.add("relatime")
        host.put("/proc/self/mountinfo", mountinfo(flags, {"rw", *({"lazytime"} & set(before))}))
        return host

    def ask(host, options):
        mounts = {"postgres": {"mount": {"/data": ",".join(options)}}} if options else {}
        with pytest.MonkeyPatch.context() as patch:
            as_root(patch)
            report = converge(host, Request(owners=mounts))
        assert not report.failures
        return report

    def state(host):
        found = MountKind(host).read(["/data"])["/data"]
        return sorted(split(found.live)), sorted(split(found.winner.value))

    host, straight = begin(), begin()
    start = state(host)
    ask(host, first)
    report = ask(host, then)
    assert report.changed == (first != then)
    ask(straight, then)
    assert state(host) == state(straight)
    assert not ask(host, then).changed
    ask(host, [])
    assert state(host) == start


def files(tmp_path, found):
    for path, text in found.items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def test_a_mount_unit_of_the_host_beats_fstab_and_fstab_one_of_a_package(host, tmp_path):
    files(
        tmp_path,
        {
            "etc/systemd/system/data\\x20x.mount": "[Mount]\nOptions=nodev\nOptions=noexec,\\\n nodev\n",
            "usr/lib/systemd/system/feed.mount": "[Unit]\nOptions=x\n[Mount]\nWhat=/dev/x\n",
            "run/systemd/generator/feed.mount": "[Mount]\nOptions=stale\n",
        },
    )
    found = MountKind(host).read(["/data x", "/feed"])
    where = {name: [(one.value, one.file, one.line) for one in found[name].definitions] for name in found}
    assert where["/data x"] == [
        ("defaults,relatime", "/etc/fstab", 3),
        ("noexec, nodev", "/etc/systemd/system/data\\x20x.mount", 3),
    ]
    assert where["/feed"] == [
        ("", "/usr/lib/systemd/system/feed.mount", 0),
        ("defaults", "/etc/fstab", 6),
        ("noatime,allocsize=64m", "/etc/fstab", 5),
    ]


def test_a_drop_in_decides_and_a_mask_ends_it_but_the_root_is_remounted_as_fstab_says(host, tmp_path):
    text = "[Mount]\nOptions=nodev\n"
    files(tmp_path, {f"etc/systemd/system/{unit}.mount.d/a.conf": text for unit in ("feed", "-", "broken")})
    files(tmp_path, {"etc/systemd/system/-.mount": text})
    (tmp_path / "etc/systemd/system/broken.mount").symlink_to("/dev/null")
    found = MountKind(host).read(["/feed", "/", "/broken", "/nowhere"])
    winners = {
        name: planes.winner and (planes.winner.value, planes.winner.file) for name, planes in found.items()
    }
    assert winners == {
        "/feed": ("nodev", "/etc/systemd/system/feed.mount.d/a.conf"),
        "/": ("errors=remount-ro", "/etc/fstab"),
        "/broken": ("masked", "/etc/systemd/system/broken.mount"),
        "/nowhere": None,
    }


def test_a_line_that_ends_before_its_options_has_the_defaults_and_gets_them_back(host, tmp_path):
    short = b"/dev/x /feed xfs\n/dev/y /feed ext4 noatime\n"
    (tmp_path / "etc/fstab").write_bytes(short)
    kind = MountKind(host)
    planes = kind.read(["/feed"])["/feed"]
    assert (planes.winner.value, planes.winner.line) == ("", 1)
    edited = kind.edits([wish("/feed", "noatime")], {}, {})["/etc/fstab"].content
    assert edited == b"/dev/x /feed xfs noatime\n/dev/y /feed ext4 noatime\n"
    (tmp_path / "etc/fstab").write_bytes(edited)
    assert (
        kind.edits([], {"/feed": {"persisted": planes.persisted_dict()}}, {})["/etc/fstab"].content == short
    )
