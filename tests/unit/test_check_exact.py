"""What check mode says is what the apply then does, setting by setting; and only the difference is done.

Hosts in any state: foreign files, edits of ours, interrupted earlier runs, other settings before. What an
apply did is seen from outside, from the files and live values before and after it, not from what the engine
says of itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from fake_host import PAIRS, FullHost, as_root
from hosttune import atomic, kinds, store
from hosttune.model import Refusal
from hosttune.verdicts import GOOD, PENDING
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

OWNERS = ("kernel", "app")
ALL = ("etc", "proc", "sys", "run", "var", "usr", "lib")
SECRET = "marker-of-the-exchange"  # noqa: S105 - looked for in every diff

#: kind -> name -> values that may be asked for
POOL: dict[str, dict[str, list]] = {
    "sysctl": {
        "net.core.somaxconn": ["64", "4096", "8192"],
        "net.ipv4.tcp_rmem": ["4096 87380 16777216", "4096 200000 4194304"],
        "net.ipv4.tcp_syncookies": ["0", "1"],
        "vm.swappiness": ["10", "20", "60"],
        "kernel.numa_balancing": ["0", "1"],
        "vm.dirty_ratio": ["0", "10", "20"],
        "vm.dirty_bytes": ["0", "1048576", "2097152"],
        "vm.dirty_background_ratio": ["5", "10"],
        "vm.dirty_background_bytes": ["0", "4194304"],
    },
    "sysfs": {
        "kernel/mm/transparent_hugepage/enabled": ["always", "madvise", "never"],
        "kernel/mm/ksm/run": ["0", "1"],
    },
    "module": {"tcp_bbr": ["loaded", "unloaded"], "floppy": ["loaded", "unloaded"]},
    "mount": {"/data": ["noatime", "noatime,lazytime", "nosuid"]},
    "limit": {"app/hard/nofile": ["1024", "4096"], "app/soft/nofile": ["512", "1024"]},
    "file": {
        "/etc/app/app.conf": [{"content": one} for one in ("as the vendor ships it\n", "tuned\n", "other\n")],
        "/etc/app/deep/new.conf": [
            {"content": "new\n"},
            {"content": "new\n", "mode": "0600"},
            {"content": "new\n", "restart": "app.service"},
            {"content": "newer\n", "restart": "app.service"},
        ],
        "/etc/app/password": [
            {"content": SECRET + one, "mode": "0600", "secret": True} for one in ("", "-2")
        ],
    },
    "manager": {"DefaultTasksMax": ["1000", "4915"], "DefaultLimitNOFILE": ["2048:4096"]},
    "unit": {
        "app.service/Service/LimitNOFILE": ["1024:524288", "65536"],
        "app.service/Service/TasksMax": ["100", "200"],
        "app.service/Service/OOMScoreAdjust": ["-100"],
        "app.service/Service/WorkingDirectory": ["/srv", "/opt"],
        "work@.service/Service/LimitNOFILE": ["1024:524288", "65536"],
    },
    "service": {"app.service": ["enabled", "disabled", "enabled active", "inactive"]},
}
#: systemd shows no property of it: what it has loaded cannot be told, only what a process was started with.
UNSHOWN = ("unit", "app.service/Service/WorkingDirectory")
NAMES = [(kind, name) for kind, names in POOL.items() for name in names]


@st.composite
def desired(draw):
    """owner -> kind -> name -> value, each setting with one owner."""
    found: dict[str, dict] = {}
    for kind, name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=9)):
        owner = draw(st.sampled_from(OWNERS))
        value = draw(st.sampled_from(POOL[kind][name]))
        found.setdefault(owner, {}).setdefault(kind, {})[name] = value
    return found


@st.composite
def requests(draw):
    owners = draw(desired())
    how = draw(st.sampled_from(["whole", "whole", "whole", "partial", "absent"]))
    if how == "absent":
        return {"owners": {one: {} for one in draw(st.sets(st.sampled_from(OWNERS)))}, "present": False}
    return {"owners": owners, "partial": how == "partial"}


def _live(path: str, *values: str):
    return st.sampled_from(values).map(lambda value: ("put", path, value + "\n", None))


def _file(path: str, *texts: str, modes=(None,)):
    return st.tuples(st.just("put"), st.just(path), st.sampled_from(texts), st.sampled_from(modes))


#: What somebody else did to the host.
HANDS = st.one_of(
    _live("/proc/sys/net/core/somaxconn", "32", "65535"),
    _live("/proc/sys/net/ipv4/tcp_rmem", "8192 300000 33554432", "4096 1000 2000"),
    _live("/proc/sys/vm/swappiness", "10", "33"),
    _live("/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]"),
    _file("/etc/sysctl.d/zz-other.conf", "vm.swappiness = 33\n", "net.core.somaxconn=4096\n"),
    _file("/etc/sysctl.d/60-hosttune-kernel.conf", "# gone\n", "vm.swappiness = 10\n", modes=(None, 0o600)),
    _file("/etc/app/app.conf", "edited\n", "tuned\n", modes=(None, 0o600)),
    _file("/etc/app/password", "edited-secret", modes=(0o600,)),
    _file("/etc/security/limits.d/99-other.conf", "app hard nofile 77\n"),
    _file("/etc/security/limits.conf", "app - nofile 4096\n"),
    _file("/etc/tmpfiles.d/10-other.conf", "w /sys/kernel/mm/ksm/run - - - - 1\n"),
    _file("/etc/modules-load.d/other.conf", "tcp_bbr\n"),
    _file("/etc/modprobe.d/other.conf", "blacklist floppy\n"),
    _file("/etc/fstab", "/dev/b /data ext4 noatime 0 2\n", "/dev/b /data ext4 lazytime,nosuid 0 2\n/x /y\n"),
    _file("/etc/systemd/system/app.service.d/99-other.conf", "[Service]\nTasksMax=300\n"),
    _file("/etc/systemd/system.conf.d/10-other.conf", "[Manager]\nDefaultTasksMax=1000\n"),
    st.sampled_from([
        ("remove", "/etc/sysctl.d/60-hosttune-kernel.conf"),
        ("remove", "/etc/app/app.conf"),
        ("remove", "/proc/sys/kernel/numa_balancing"),
        ("unreadable", "/proc/sys/vm/swappiness"),
        ("chmod", "/etc/sysctl.d/60-hosttune-app.conf", 0o600),
        ("chmod", "/proc/sys/vm/swappiness", 0o444),
        ("chmod", "/proc/sys/vm/dirty_ratio", 0o444),
        ("dirty", "vm/dirty_bytes", "8192"),
        ("dirty", "vm/dirty_ratio", "30"),
        ("load",),
        ("systemctl", "enable"),
        ("systemctl", "start"),
        ("systemctl", "start"),
        ("systemctl", "stop"),
        ("systemctl", "restart"),
        ("systemctl", "mask"),
    ]),
)  # fmt: skip

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("hand"), HANDS),
        st.tuples(st.just("run"), requests()),
        st.tuples(st.just("cut"), requests(), st.integers(1, 12)),
    ),
    max_size=5,
)


class PowerCutError(BaseException):
    """Nothing catches it, as nothing catches the power going."""


def by_hand(host: FullHost, what: tuple) -> None:
    """Does to the host what somebody else would."""
    if what[0] == "put":
        _word, path, text, mode = what
        if not path.startswith("/proc") or os.path.isfile(host.path(path)):
            old = os.lstat(host.path(path)).st_mode & 0o7777 if host.exists(path) else 0o644
            host.put(path, text, old if mode is None else mode)
        if path.startswith("/etc/systemd"):
            host._load()
    elif what[0] == "remove" and host.exists(what[1]):
        os.unlink(host.path(what[1]))
    elif what[0] == "chmod" and host.exists(what[1]):
        os.chmod(host.path(what[1]), what[2])
    elif what[0] == "unreadable" and os.path.isfile(host.path(what[1])):
        os.unlink(host.path(what[1]))
        os.mkdir(host.path(what[1]))
    elif what[0] == "dirty":
        host.write_value(f"/proc/sys/{what[1]}", what[2])
    elif what[0] == "load":
        host._load()
    elif what[0] == "systemctl":
        host._control(what[1], "app.service")


def happen(host: FullHost, event: tuple, patch) -> None:
    """One step of the host's past; what is refused has not happened."""
    if event[0] == "hand":
        by_hand(host, event[1])
        return
    left = event[2] if event[0] == "cut" else None

    def counted(real):
        def write(*args):
            nonlocal left
            if left is not None:
                left -= 1
                if left < 0:
                    raise PowerCutError
            return real(*args)

        return write

    with patch.context() as patched:
        patched.setattr(atomic, "write", counted(atomic.write))
        patched.setattr(FullHost, "write_value", counted(FullHost.write_value))
        with contextlib.suppress(Refusal, PowerCutError):
            host.apply(**event[1])


# the host as seen from outside


def live_values(host: FullHost) -> dict[tuple[str, str], str | None]:
    """Every live value of the pool, read without the engine."""
    found: dict[tuple[str, str], str | None] = {}
    for kind, name in NAMES:
        if kind in ("sysctl", "sysfs"):
            path = f"/proc/sys/{name.replace('.', '/')}" if kind == "sysctl" else f"/sys/{name}"
            text = " ".join(host.text(path).split()) if os.path.isfile(host.path(path)) else None
            chosen = re.search(r"\[(.*?)\]", text or "")
            found[kind, name] = chosen.group(1) if chosen else text
        elif kind == "module":
            found[kind, name] = "loaded" if host.exists(f"/sys/module/{name}") else "unloaded"
        elif kind == "mount":
            row = next(
                row for row in host.text("/proc/self/mountinfo").split("\n") if f" {name} " in row
            ).split()
            found[kind, name] = ",".join(dict.fromkeys([*row[5].split(","), *row[-1].split(",")]))
        elif kind == "service":
            found[kind, name] = " ".join(host.played["services"][name].values())
        elif kind in ("manager", "unit"):
            unit, _, directive = name.rpartition("/Service/")
            if "@." not in unit and (kind, name) != UNSHOWN:  # a template has nothing live
                found[kind, name] = host.played[unit or "manager"][directive]
    return found


def in_our_file(host: FullHost, owner: str, kind: str, name: str):
    """What stands of a setting where its owner writes it; None where nothing does."""
    if kind == "service":
        return host.played["services"][name]["UnitFileState"]
    if kind == "file":
        image = atomic.read_image(host.path(name))
        return image and (image.content, image.mode, image.uid, image.gid)
    if kind == "mount":
        rows = [row.split() for row in host.text("/etc/fstab").split("\n")]
        return next((row[3] for row in rows if len(row) > 3 and row[1] == name), None)
    if kind == "module":
        return [
            (folder, line)
            for folder in ("modules-load.d", "modprobe.d")
            for line in _lines(host, f"/etc/{folder}/60-hosttune-{owner}.conf")
            if line.split()[-1:] == [name]
        ]
    path, pattern = {
        "sysctl": ("/etc/sysctl.d", rf"-?{re.escape(name)} *= *(.*)"),
        "sysfs": ("/etc/tmpfiles.d", rf"w /sys/{re.escape(name)} - - - - (.*)"),
        "limit": ("/etc/security/limits.d", rf"{re.escape(name.replace('/', ' '))} (.*)"),
        "manager": ("/etc/systemd/system.conf.d", rf"{name}=(.*)"),
        "unit": (f"/etc/systemd/system/{name.partition('/')[0]}.d", rf"{name.rpartition('/')[2]}=(.*)"),
    }[kind]
    found = [re.fullmatch(pattern, line) for line in _lines(host, f"{path}/60-hosttune-{owner}.conf")]
    return [one.group(1) for one in found if one]


def _lines(host: FullHost, path: str) -> list[str]:
    return host.text(path).splitlines() if host.exists(path) else []


def files_of(host: FullHost) -> dict[str, str]:
    """Files below /etc as a diff shows them, but the suite's own state."""
    found = {}
    for path, (type_, uid, gid, content) in host.snapshot(below=("etc",)).items():
        if type_[0] == "-" and not path.startswith("etc/hosttune/"):
            mode = os.lstat(host.folder / path).st_mode & 0o7777
            found[f"/{path}"] = f"mode {mode:04o} owner {uid}:{gid}\n{content.decode()}"
    return found


def flags(report) -> dict[tuple[str, str], bool]:
    return {one.setting.key: one.changed for one in report.settings}


def told_live(report) -> dict[tuple[str, str], tuple[str, str]]:
    """(kind, name) -> value before and after, from the diff's entries of live values."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for entry in report.diff:
        if entry["before_header"].startswith("live "):
            kind = entry["before_header"].removeprefix("live ")
            sides = [
                dict(line.split(" = ", 1) for line in entry[side].splitlines())
                for side in ("before", "after")
            ]
            assert list(sides[0]) == list(sides[1])
            for name in sides[0]:
                found[kind, name] = (sides[0][name], sides[1][name])
    found.pop(UNSHOWN, None)
    return found


def judgements(report, failed) -> dict[tuple[str, str], tuple[str, str]]:
    """What each changed setting will need, and what the way there does to the host."""
    return {
        one.setting.key: (one.as_dict()["needs"], one.as_dict()["disruption"])
        for one in report.settings
        if one.changed and one.setting.key not in failed
    }


def waits(report, failed) -> dict[tuple[str, str], dict]:
    found = {(one["kind"], one["name"]): one for one in report.pending()}
    return {key: one for key, one in found.items() if key not in failed}


def seen(host: FullHost):
    return host.snapshot(times=True, below=ALL), live_values(host), files_of(host)


def without_lock(snapshot):
    """The lock names its last holder."""
    return {name: was for name, was in snapshot.items() if name != "var/lib/hosttune/lock"}


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patched:
        as_root(patched)
        patched.setattr(os, "fsync", lambda _handle: None)  # no power cut of this machine is tested here
        yield patched


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(past=EVENTS, request=requests())
def test_check_predicts_the_apply_and_only_the_difference_is_written(patch, past, request):
    folder = Path(tempfile.mkdtemp(prefix="hosttune-check-"))
    try:
        host = FullHost(folder)
        for event in past:
            happen(host, event, patch)
        judge(host, request)
    finally:
        shutil.rmtree(folder)


def judge(host: FullHost, request) -> None:
    ledger = {(kind, name) for kind, names in store.Ledger(host).settings.items() for name in names}
    # What a cut run wrote and systemd has not read yet is given to it again.
    unread = {file["kind"] for file in store.Ledger(host).files.values() if file.get("open")}
    before, live_before, files_before = seen(host)
    ours_before = {(owner, *key): in_our_file(host, owner, *key) for owner in OWNERS for key in NAMES}
    host.live_writes.clear()
    host.commands.clear()
    played = repr(host.played)
    try:
        said = host.apply(**request, check=True)
    except Refusal as refusal:
        with pytest.raises(Refusal, match=re.escape(str(refusal))):
            host.apply(**request)
        assert (
            without_lock(seen(host)[0]).items()
            >= {name: was for name, was in without_lock(before).items() if not name.startswith("var")}.items()
        )
        assert (host.live_writes, host.commands) == ([], [])
        return
    assert seen(host)[0] == before
    assert (host.live_writes, host.commands, repr(host.played)) == ([], [], played)

    done = host.apply(**request)
    after, live_after, files_after = seen(host)
    note(f"diff {said.diff}\nfailures {done.failures}\nwrites {host.live_writes}\ncommands {host.commands}")
    failed = {key for key in NAMES for line in done.failures if line.startswith(f"{key[0]} {key[1]}")}

    # one plan
    assert said.diff == done.diff
    assert said.undone == done.undone
    assert said.aside == done.aside
    assert said.changed == done.changed
    assert flags(said) == flags(done)
    assert [one.before for one in said.settings] == [one.before for one in done.settings]

    # files: said byte for byte
    told_files = {one["before_header"]: one for one in said.diff if one["before_header"].startswith("/")}
    assert set(told_files) == {
        path for path in {*files_before, *files_after} if files_before.get(path) != files_after.get(path)
    }
    for path, entry in told_files.items():
        if path == "/etc/app/password":
            assert (entry["before"], entry["after"]) == (
                "(secret)\n" if path in files_before else "",
                "(another secret)\n" if path in files_after else "",
            )
        else:
            assert entry["before"] == files_before.get(path, "")
            assert entry["after"] == files_after.get(path, "")
    assert SECRET not in repr(said.diff)

    # and no other was even replaced by itself
    others = {path.lstrip("/") for path in files_before} - {path.lstrip("/") for path in told_files}
    assert {path: before[path] for path in others} == {path: after.get(path) for path in others}

    # live values
    told = told_live(said)
    # Each reload also takes up what others left on disk for systemd to read: that is theirs.
    mine = {(one.setting.kind, one.setting.name) for one in said.settings}
    mine |= {(one["kind"], one["name"]) for one in said.undone}
    moved = {
        key
        for key in live_before
        if live_before[key] != live_after[key] and (key in mine or key[0] not in ("manager", "unit"))
    }
    assert set(told) - failed == moved - failed
    for key, (was, shall) in told.items():
        if key in failed:
            continue
        kind = kinds.load(key[0], host)
        assert kind.same(key[1], was, live_before[key] or ""), key
        assert kind.same(key[1], shall, live_after[key] or ""), key

    # settings
    for one in said.settings:
        key, owner = one.setting.key, one.setting.owner
        if key in failed or key == UNSHOWN:
            continue
        if key[0] == "sysctl" and one.setting.value == "0" and key[1].replace(".", "/") in PAIRS:
            continue  # a zero that our line of its twin brings stands already, whichever line says it
        at_place = ours_before[(owner, *key)] != in_our_file(host, owner, *key)
        assert one.changed == (at_place or key in moved), (key, owner)
        planes = (
            [one.before["persisted"], one.before["live"]] if key[0] == "service" else [one.before["live"]]
        )
        assert planes == [None] or " ".join(planes) == live_before[key], key
        assert planes != [None] or live_before.get(key) is None, key
    assert done.changed == bool(
        told_files
        or moved
        or failed
        or done.undone
        or any(flags(done).values())
        or _manifest(host) != before.get("etc/hosttune/manifest.json", (None,) * 4)[3]
    )
    gone = {(one["kind"], one["name"]) for one in said.undone}
    assert gone <= ledger
    assert not {key for key in gone - failed if store.Ledger(host).entry(*key)}

    # only the difference, each once
    written = [path.removeprefix("/proc/sys/").removeprefix("/sys/") for path in host.live_writes]
    assert len(written) == len(set(written)), written
    keys = {
        ("sysfs", one) if ("sysfs", one) in live_before else ("sysctl", one.replace("/", "."))
        for one in written
    }
    assert keys - failed <= moved
    twins = {("sysctl", PAIRS[one].replace("/", ".")) for one in written if one in PAIRS}
    assert {key for key in moved if key[0] in ("sysctl", "sysfs")} <= keys | twins
    single = [line for line in host.commands if "daemon-reload" not in line]
    assert len(single) == len(set(single)), single
    reexecuted = any("daemon-reexec" in line for line in single)
    of_manager = any(path.startswith("/etc/systemd/system.conf.d/") for path in told_files)
    of_manager = of_manager or any(key[0] == "manager" for key in moved | failed)
    assert reexecuted or not of_manager
    assert of_manager or "manager" in unread or not reexecuted

    # what is left to be done: restarts
    assert judgements(said, failed) == judgements(done, failed)
    assert waits(said, failed) == waits(done, failed)
    for one in done.settings:
        unit, _, directive = one.setting.name.rpartition("/Service/")
        has = host.process(unit.replace("@.", "@a.")) if one.setting.kind == "unit" else {}
        if directive in has and one.verdict in GOOD and one.setting.key not in failed:
            kind = kinds.load("unit", host)
            assert kind.same(one.setting.name, one.setting.value, has[directive]), one

    # what now stands is good, waits, or was said
    for one in done.settings:
        named = one.setting.key in failed
        other = one.planes.winner
        place = kinds.load(one.setting.kind, host).managed_file(owner := one.setting.owner, one.setting.name)
        foreign = other is not None and other.file != place and owner
        assert (
            one.verdict in GOOD | PENDING or named or (one.verdict in ("boot_bomb", "drift") and foreign)
        ), one
    if done.failures:
        return
    settled = without_lock(seen(host)[0])
    host.live_writes.clear()
    host.commands.clear()
    asked_again = host.apply(**request, check=True)
    assert (asked_again.changed, asked_again.diff) == (False, []), asked_again.diff
    assert not host.apply(**request).changed
    assert without_lock(seen(host)[0]) == settled
    assert (host.live_writes, host.commands) == ([], [])


def _manifest(host: FullHost) -> bytes | None:
    path = Path(host.path(store.MANIFEST))
    return path.read_bytes() if path.exists() else None
