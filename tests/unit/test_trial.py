"""The trial boot: the line of all boots is the old one until a boot with the new one was verified."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
from hosttune import drift, grub, grubenv, isolation, trial, trial_check, trial_cli
from hosttune.kinds import boot
from hosttune.model import Refusal
from hosttune.system import Ran
from test_faults import EVERY, killed
from trial_host import EMPTY, OWNERS, TrialHost

FILE = "/etc/default/grub.d/60-hosttune-cpu.cfg"
WAITING = f"{FILE}.trial"
OTHER = {"cpu": {"boot": {"isolcpus": "2", "skew_tick": "1"}}}


@pytest.fixture(autouse=True)
def as_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda *_args: None)
    # A host of files alone has no CPUs: which ones may be isolated is asked in test_isolation.py.
    monkeypatch.setattr(isolation, "check", lambda _settings, _system: [])


@pytest.fixture
def host(tmp_path):
    return TrialHost(tmp_path / "host")


@pytest.fixture
def command(monkeypatch, capsys):
    """`hosttune-trial` on a host: its exit status and what it said."""

    def call(host, *words):
        monkeypatch.setattr(trial_cli, "System", lambda _root: host.again())
        status = trial_cli.main(words)
        said = capsys.readouterr()
        return status, said.out + said.err

    return call


def state_of(host):
    """All that a trial may change, byte for byte."""
    found = {
        path: host.read(path)
        for path in (grub.MENU, grub.CUSTOM, grubenv.PATH, trial.RECORD)
        if host.exists(path)
    }
    return {**found, **{name: host.read(f"{grub.SOURCES}/{name}") for name in host.names(grub.SOURCES)}}


def verdicts(found):
    return {one.verdict for one in found.values()}


# the good way


def test_a_good_line_is_tried_verified_and_permanent(host, command):
    before, old = state_of(host), host.boots()
    report, found = host.apply()
    assert (report.failures, verdicts(found)) == ([], {"pending_reboot"})
    assert "it waits for its trial boot" in found["isolcpus"].reason
    assert [one["needs"] for one in report.pending()] == ["reboot", "reboot"]
    assert (
        grub.read_menu(host).lasting.linux[0][1]
        == grub.read_menu(TrialHost.at(host.folder)).lasting.linux[0][1]
    )
    report, found = host.apply()
    assert (report.changed, any(one.changed for one in found.values())) == (False, False)

    line = host.boots()
    assert line.startswith(old.replace(" quiet", " isolcpus=2-3 skew_tick=1 quiet panic=10 hosttune.trial="))
    report, found = host.apply()
    assert (report.changed, verdicts(found)) == (False, {"boot_bomb"})
    assert "this boot is its trial, and is not confirmed yet" in found["isolcpus"].reason

    assert command(host, "verify") == (0, "the trial boot is good: its line is that of all boots now\n")
    assert host.state() == ""
    assert not host.exists(WAITING)
    report, found = host.apply()
    assert (report.changed, verdicts(found)) == (False, {"in_sync"})
    assert host.boots() == old.replace(" quiet", " isolcpus=2-3 skew_tick=1 quiet")
    assert drift.check(host.again()).counts() == {"in_sync": 2}
    assert command(host, "verify") == (0, "no trial\n")

    report, _found = host.apply({}, "none", present=False)
    assert (report.failures, state_of(host)) == ([], before)
    assert host.boots() == old


def test_check_mode_says_it_and_writes_nothing(host):
    before = host.read(grub.MENU), host.read(grubenv.PATH)
    report, found = host.apply(check=True)
    assert {one.then.verdict for one in found.values()} == {"pending_reboot"}
    assert report.changed
    assert (host.read(grub.MENU), host.read(grubenv.PATH)) == before
    assert host.names(grub.SOURCES) == []
    _report, after = host.apply()
    assert {name: one.then.reason for name, one in found.items()} == {
        name: one.reason for name, one in after.items()
    }


def test_the_controller_has_the_last_word(host, command):
    host.apply(mode="controller")
    host.boots()
    assert command(host, "verify") == (0, "the trial boot is good, and waits for the controller's word\n")
    assert json.loads(command(host, "status")[1])["state"] == "running"
    assert command(host, "confirm")[0] == 0
    _report, found = host.apply(mode="controller")
    assert verdicts(found) == {"in_sync"}


def test_nothing_is_confirmed_that_was_not_booted(host, command):
    assert command(host, "confirm")[0] == 2
    host.apply()
    assert command(host, "confirm")[0] == 2
    assert command(host, "verify") == (0, "the next boot is the trial\n")
    assert host.state() == trial.ARMED


def test_a_change_goes_by_a_trial_and_what_stays_is_not_touched(host, command):
    host.apply()
    host.boots()
    command(host, "verify")
    old = host.boots()
    _report, found = host.apply(OTHER)
    assert (found["isolcpus"].verdict, found["skew_tick"].verdict) == ("pending_reboot", "in_sync")
    assert not host.apply(OTHER)[0].changed
    assert "isolcpus=2 " in host.boots()
    assert host.boots() == old, "the second boot after arming has the old line"


def test_a_parameter_that_is_dropped_goes_by_a_trial(host, command):
    host.apply()
    host.boots()
    command(host, "verify")
    less = {"cpu": {"boot": {"isolcpus": "2-3"}}}
    report, _found = host.apply(less)
    assert (report.failures, [one["name"] for one in report.undone]) == ([], ["skew_tick"])
    assert not host.apply(less)[0].changed
    assert "skew_tick" not in host.boots()
    assert command(host, "verify")[0] == 0
    assert "skew_tick" not in host.boots()
    assert verdicts(host.apply(less)[1]) == {"in_sync"}


def test_a_line_that_runs_already_needs_no_trial(host):
    host.put("/proc/cmdline", host.read("/proc/cmdline").replace(" quiet", " isolcpus=2-3 skew_tick=1 quiet"))
    report, found = host.apply()
    assert (report.failures, verdicts(found), host.state()) == ([], {"in_sync"}, "")


def test_asked_for_the_old_line_again_nothing_is_armed(host):
    host.apply({"cpu": {"boot": {"isolcpus": "2"}}}, "none")
    before, old = state_of(host), host.boots()
    assert before == state_of(host)
    host.apply(OWNERS)
    host.apply({"cpu": {"boot": {"isolcpus": "2"}}})
    assert (host.state(), host.exists(WAITING), host.exists(grub.CUSTOM)) == ("", False, False)
    assert host.boots() == old


def test_an_undo_takes_an_armed_trial_back(host):
    before, old = state_of(host), host.boots()
    host.apply()
    report, _found = host.apply({}, "none", present=False)
    assert (report.failures, state_of(host), host.boots()) == ([], before, old)


def test_two_owners_share_one_trial(host, command):
    host.apply({"cpu": {"boot": {"isolcpus": "2-3"}}, "numa": {"boot": {"skew_tick": "1"}}})
    line = host.boots()
    assert "isolcpus=2-3 skew_tick=1" in line
    assert command(host, "verify")[0] == 0
    assert "isolcpus=2-3 skew_tick=1" in host.boots()
    assert not host.exists(f"{grub.SOURCES}/60-hosttune-numa.cfg.trial")


@pytest.mark.parametrize(
    ("asked", "added"),
    [({}, " panic=10"), ({"panic": "30"}, ""), ({"panic": "-1"}, ""), ({"panic": "0"}, " panic=10")],
)
def test_every_trial_ends_by_itself_in_a_panic(host, asked, added):
    host.apply({"cpu": {"boot": {"isolcpus": "2-3", **asked}}})
    assert host.boots().partition(" quiet")[2].startswith(f"{added} hosttune.trial=")


# the bad way


def test_a_trial_that_never_came_back_is_remembered(host, command):
    old = host.boots()
    host.apply()
    assert host.boots() != old
    assert host.boots() == old
    report, found = host.apply()
    assert (report.changed, verdicts(found), host.state()) == (False, {"pending_reboot"}, trial.LOST)
    assert "the trial boot failed: the host came up again without it" in found["isolcpus"].reason
    assert found["isolcpus"].planes.persisted_dict()["value"] == boot.ABSENT
    status, said = command(host, "verify")
    assert (status, host.state()) == (1, trial.FAILED)
    assert "panicked" in said
    for _again in range(2):
        report, found = host.apply()
        assert (report.changed, verdicts(found), host.boots()) == (False, {"pending_reboot"}, old)
    assert not host.exists(grub.CUSTOM)
    # what waits for a boot and has seen one is overdue
    assert drift.check(host.again()).counts() == {"pending_reboot": 2}


def test_a_failed_line_is_tried_again_when_it_changes_or_is_cleared(host, command):
    host.apply()
    host.boots()
    host.boots()
    command(host, "verify")
    assert command(host, "retry") == (0, "the next boot is the trial\n")
    assert "isolcpus=2-3" in host.boots()
    host.boots()
    command(host, "verify")
    host.apply(OTHER)
    assert host.state() == trial.ARMED
    assert "isolcpus=2 " in host.boots()
    assert command(host, "retry")[0] == 2, "nothing has failed"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda host: host.units.update({"ssh.service": "failed"}), "ssh.service is failed"),
        (lambda host: host.units.update({"app.service": "inactive"}), "app.service is inactive"),
        (lambda host: host.put("/proc/net/route", "Iface\n"), "no default route through eth0"),
        (lambda host: host.put("/proc/sys/vm/swappiness", "61\n"), "sysctl vm.swappiness is live_drift"),
        (lambda host: host.put("/etc/hosttune/manifest.json", "{}"), "manifest"),
        (
            lambda host: host.put("/proc/cmdline", host.read("/proc/cmdline").replace("isolcpus=2-3 ", "")),
            "/proc/cmdline is not the line that is tried",
        ),
        (
            lambda host: grubenv.write(host, {"next_entry": trial.ENTRY}),
            "GRUB has not taken next_entry out of /boot/grub/grubenv",
        ),
    ],
)
def test_a_trial_that_came_up_wrong_fails_and_the_next_boot_is_the_old(host, command, harm, said):
    host.put("/proc/sys/vm/swappiness", "60\n")
    host.put("/usr/lib/systemd/system/app.service", "[Service]\nExecStart=/bin/app\n")
    old = host.boots()
    host.apply({**OWNERS, "kernel": {"sysctl": {"vm.swappiness": "10"}}})
    manifest = json.loads(host.read("/etc/hosttune/manifest.json"))
    host.boots()
    harm(host)
    if "app.service" in said:
        manifest["owners"]["limits"] = {"unit": {"app.service/Service/TasksMax": {"value": "9", "notes": {}}}}
        host.put("/etc/hosttune/manifest.json", json.dumps(manifest))
    status, answer = command(host, "verify")
    assert (status, host.state()) == (1, trial.FAILED)
    assert said in answer
    _report, found = host.apply(OWNERS) if "manifest" in said else host.apply(
        {**OWNERS, "kernel": {"sysctl": {"vm.swappiness": "10"}}}
    )  # fmt: skip
    assert found["skew_tick"].verdict == "boot_bomb"
    assert f"the trial boot failed: {trial.load(host).reason}" in found["skew_tick"].reason
    assert host.boots() == old


def test_a_service_that_comes_up_late_is_waited_for(host, monkeypatch):
    host.apply()
    host.boots()
    host.units["ssh.service"] = "activating"
    monkeypatch.setattr("time.sleep", lambda _seconds: host.units.update({"ssh.service": "active"}))
    assert trial_check.verify(host.again(), 60.0) == []


def test_what_becomes_permanent_is_what_was_tried(host, command):
    old = host.boots()
    host.apply()
    host.boots()
    host.put("/etc/default/grub.d/70-later.cfg", 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX quirk=1"\n')
    status, said = command(host, "verify")
    assert status == 2
    assert "it would make another line permanent than the one that was tried" in said
    assert "quirk=1" in said
    assert host.boots() == old


def test_a_boot_past_grub_uses_no_trial_up(host):
    host.apply()
    host.put("/proc/sys/kernel/random/boot_id", "by-kexec\n")
    assert host.state() == trial.ARMED
    assert not host.apply()[0].changed
    assert "hosttune.trial=" in host.boots()


def test_a_failed_update_grub_arms_nothing(host):
    old = host.boots()
    host.answer = Ran(1, "", "no space left\n")
    again = host.again
    host.again = lambda: _with_answer(again(), host.answer)
    report, _found = host.apply()
    assert "no space left" in report.failures[0]
    assert host.boots() == old
    host.answer = Ran(0, "", "")
    report, found = host.apply()
    assert (report.failures, verdicts(found), host.state()) == ([], {"pending_reboot"}, trial.ARMED)


def _with_answer(host, answer):
    host.answer = answer
    return host


# where it is refused


def mounted(kind, device="8:1", options="rw,relatime", more="rw"):
    row = f"2 1 {device} / /boot {options} - {kind} /dev/x {more}\n"
    row = f"1 0 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n{row}"
    return lambda host: host.put("/proc/self/mountinfo", row)


def layered(layer):
    def change(host):
        (host.folder / f"sys/devices/virtual/x/{layer}").mkdir(parents=True)
        (host.folder / "sys/dev/block/9:9").symlink_to("../../devices/virtual/x")
        mounted("ext4", "9:9")(host)

    return change


def menu_without(text):
    return lambda host: host.put(grub.MENU, host.read(grub.MENU).replace(text, ""))


def with_default(text, environment=()):
    def change(host):
        host.put("/etc/default/grub", host.read("/etc/default/grub") + f"GRUB_DEFAULT={text}\n")
        grubenv.write(host, dict(environment))

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda host: os.unlink(host.path(grubenv.PATH)), "is missing"),
        (lambda host: host.put(grubenv.PATH, "nonsense"), "is no GRUB environment block"),
        (lambda host: host.put(grubenv.PATH, grubenv.SIGNATURE + "#"), "has no room"),
        (lambda host: _link(host), "is no regular file"),
        (lambda host: _holes(host), "has holes"),
        (mounted("btrfs", "0:30"), r"/boot/grub \(btrfs on /boot\): GRUB cannot write"),
        (mounted("zfs", "0:30"), "GRUB cannot write its grubenv on this file system"),
        (mounted("f2fs"), "GRUB cannot write its grubenv on this file system"),
        (mounted("ext4", options="ro"), "is mounted read-only"),
        (mounted("ext4", more="rw,data=journal"), "data=journal"),
        (mounted("ext4", "8:99"), "block device 8:99 is not in /sys"),
        (layered("dm"), "device mapper"),
        (layered("md"), "a RAID of the kernel"),
        (layered("bcache"), "bcache"),
        (menu_without("   save_env next_entry\n"), "takes next_entry for one boot"),
        (menu_without("source"), "does not read /boot/grub/custom.cfg"),
        (lambda host: host.put(grub.CUSTOM, "menuentry 'mine' {\n}\n"), "is somebody's"),
        (lambda host: grubenv.write(host, {"next_entry": "1"}), "somebody else's grub-reboot"),
        (with_default("1"), "says 1"),
        (with_default("0", {"saved_entry": "1>2"}.items()), "saved_entry=1>2"),
    ],
)
def test_a_host_whose_grub_could_not_take_a_trial_back_is_refused(host, change, why):
    change(host)
    before = state_of(host) if host.exists(grub.MENU) else {}
    for check in (True, False):
        with pytest.raises(Refusal, match=why):
            host.apply(check=check)
    assert state_of(host) == before
    report, _found = host.apply(mode="none")
    assert report.failures == []


def _link(host):
    os.rename(host.path(grubenv.PATH), host.path("/boot/grub/elsewhere"))
    os.symlink("elsewhere", host.path(grubenv.PATH))


def _holes(host):
    with open(host.path(grubenv.PATH), "r+b") as stream:
        stream.truncate(0)
        stream.write(EMPTY.encode())
        stream.truncate(1 << 20)
        stream.seek((1 << 20) - 1)
        stream.write(b"#")
    text = host.read(grubenv.PATH)
    assert "\0" in text


def test_a_default_that_a_later_file_sets_is_refused(host):
    host.put("/etc/default/grub.d/70-cloud.cfg", "GRUB_DEFAULT=0\n")
    with pytest.raises(Refusal, match=r"70-cloud\.cfg:1 says 0 after our files"):
        host.apply()


def test_a_saved_default_of_the_hosts_own_stays_as_it_is(host):
    host.put("/etc/default/grub", host.read("/etc/default/grub") + "GRUB_DEFAULT=saved\n")
    host.update()
    grubenv.write(host, {"saved_entry": "gnulinux-advanced-x>gnulinux-6.1.0-1-advanced-x"})
    menu, old = host.read(grub.MENU), host.boots()
    host.apply()
    assert host.read(grub.MENU) == menu
    assert not host.exists(FILE)
    assert "vmlinuz-6.1.0-1" in host.read("/proc/cmdline")
    assert host.boots().startswith(old.replace(" quiet", " isolcpus=2-3"))
    assert "vmlinuz-6.1.0-1" in host.read("/proc/cmdline"), "the kernel that boots by default is tried"


def test_a_menu_that_is_older_than_its_sources_arms_nothing(host):
    old = host.boots()
    host.put("/etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="loud"\n')
    report, _found = host.apply()
    assert "line of all boots" in report.failures[0]
    assert host.boots() == old


def test_a_host_that_is_as_it_shall_be_is_never_refused(host):
    host.apply(mode="none")
    host.boots()
    mounted("btrfs", "0:30")(host)
    report, found = host.apply()
    assert (report.changed, verdicts(found)) == (False, {"in_sync"})


# a crash at every write


def line_of(host):
    """What the next boot would have, and what the one after it, with no word said in between."""
    folder = host.folder.with_name(f"{host.folder.name}-boots")
    copy = host.copy(folder)
    first = copy.boots()
    second = copy.boots()
    shutil.rmtree(folder)
    return first, second


def armed(host):
    host.apply()


def running(host):
    host.apply()
    host.boots()


def permanent(host):
    running(host)
    judge(host)
    host.boots()


def nothing(_host):
    """A host that was never touched."""


def judge(host):
    trial_check.confirm(host.again(), {"id": "test"})


@pytest.mark.parametrize(
    ("start", "work", "may_last"),
    [
        (nothing, lambda host: host.apply(), False),
        (armed, lambda host: host.apply(OTHER), False),
        (running, judge, True),
        (armed, lambda host: host.apply({}, "none", present=False), False),
        (permanent, lambda host: host.apply(OTHER), False),
        (permanent, lambda host: host.apply({}, "none", present=False), True),
    ],
    ids=["arm", "arm another", "confirm", "undo an armed one", "arm beside a permanent one", "undo"],
)
def test_killed_at_any_write_the_old_line_boots_or_the_tried_one(tmp_path, capsys, start, work, may_last):
    template = TrialHost(tmp_path / "template")
    pristine, first_line = state_of(template), template.boots()
    start(template)
    old = grub.read_menu(template).lasting.linux[0][1]
    old_line = " ".join(map(grub.loader_text, old[1:]))
    whole = template.copy(tmp_path / "whole")
    work(whole)
    new_line = line_of(whole)[1]
    number = cuts = 0
    while True:
        number += EVERY
        host = template.copy(tmp_path / str(number))
        if not killed(number, lambda host=host: work(host)):
            break
        cuts += 1
        try:
            first, second = line_of(host)
            assert first == old_line or " hosttune.trial=" in first or (may_last and first == new_line)
            assert second == old_line or (may_last and second == new_line)
            assert " hosttune.trial=" not in second
            undone = host.copy(tmp_path / f"{number}-undone")
            report, _found = undone.apply({}, "none", present=False)
            assert report.failures == []
            after = state_of(undone)
            assert {name for name in {*after, *pristine} if after.get(name) != pristine.get(name)} == set()
            assert undone.boots() == first_line
            converges(host)
        except BaseException:
            print(f"killed before write {number}", file=sys.stderr)
            raise
        shutil.rmtree(host.folder)
        shutil.rmtree(undone.folder)
    with capsys.disabled():
        print(f"\n  killed at {cuts} of {number - 1} writes", end="")
    assert number > 10


def converges(host):
    """The next run, its trial and its verification bring the line that is asked for."""
    for _again in range(3):
        report, found = host.apply()
        assert report.failures == []
        if verdicts(found) == {"in_sync"} and host.state() == "":
            break
        if host.state() == trial.ARMED:
            host.boots()
        assert host.state() in (trial.RUNNING, trial.VERIFIED)
        if host.state() == trial.RUNNING:
            assert trial_check.verify(host.again()) == []
        judge(host)
    assert verdicts(host.apply()[1]) == {"in_sync"}
    assert "isolcpus=2-3 skew_tick=1 quiet" in host.boots()
    assert "hosttune.trial" not in host.read("/proc/cmdline")


def test_a_block_without_room_stays_as_it_is(host):
    with pytest.raises(OSError, match="has no room"):
        grubenv.write(host, {"next_entry": "x" * 1024})
    assert host.read(grubenv.PATH) == EMPTY
