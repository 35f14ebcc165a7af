"""The walk over one host: what is said is what is done, once, and it can all be given back."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from fake_host import FakeHost, FullHost, as_root
from hosttune import drift, engine, kinds, lock, plan, store, waivers
from hosttune.kinds.sysctl import SysctlKind
from hosttune.model import Refusal
from hosttune.system import Ran, System

SECRET = "hunter2-of-the-exchange"  # noqa: S105 - looked for in every output
OWNERS = {
    "kernel": {
        "sysctl": {
            "net.core.somaxconn": "4096",
            "vm.swappiness": "10",
            "net.ipv4.tcp_rmem": "4096 87380 16777216",
        }
    },
    "app": {
        "file": {
            "/etc/app/app.conf": {"content": "tuned\n", "mode": "0644"},
            "/etc/app/deep/er/new.conf": {"content": "new\n"},
            "/etc/app/password": {"content": SECRET, "mode": "0600", "secret": True},
        },
        "sysctl": {"net.ipv4.tcp_syncookies": "1"},
    },
}


@pytest.fixture
def host(tmp_path, monkeypatch):
    as_root(monkeypatch)
    return FakeHost(tmp_path)


def verdicts(report):
    return {(one.setting.kind, one.setting.name): one.verdict for one in report.settings}


def marks(report):
    return {one.setting.name: one.changed for one in report.settings}


def test_check_says_what_apply_does_and_writes_nothing(host):
    before = host.snapshot(times=True, below=("etc", "proc", "var"))
    said = host.apply(OWNERS, check=True)
    assert host.snapshot(times=True, below=("etc", "proc", "var")) == before
    assert host.live_writes == []
    done = host.apply(OWNERS)
    assert not done.failures
    assert said.changed
    assert done.changed
    assert said.diff == done.diff
    assert marks(said) == marks(done)
    assert {name for name, changed in marks(done).items() if not changed} == set()
    assert said.manifest_digest == done.manifest_digest


def test_everything_is_in_sync_after_one_run(host):
    done = host.apply(OWNERS)
    assert set(verdicts(done).values()) == {"in_sync"}
    assert host.text("/proc/sys/net/core/somaxconn") == "4096\n"
    assert host.text("/etc/sysctl.d/60-hosttune-kernel.conf").startswith("# Managed by hosttune, role kernel")
    assert host.text("/etc/app/app.conf") == "tuned\n"


def test_a_foreign_file_that_wins_is_said_and_named(host):
    host.apply(OWNERS)
    host.put("/etc/sysctl.d/zz-vendor.conf", "vm.swappiness = 30\n")
    found = drift.check(FakeHost.again(host)).settings
    wrong = next(one for one in found if one["name"] == "vm.swappiness")
    assert wrong["verdict"] == "boot_bomb"
    assert "/etc/sysctl.d/zz-vendor.conf:1 says 30" in wrong["reason"]


def test_a_second_run_changes_nothing_at_all(host):
    host.apply(OWNERS)
    writes = len(host.live_writes)
    before = host.snapshot(times=True, below=("etc", "proc", "var/lib/hosttune"))
    again = host.apply(OWNERS)
    after = host.snapshot(times=True, below=("etc", "proc", "var/lib/hosttune"))
    for found in (before, after):
        found.pop("var/lib/hosttune/lock")  # names its last holder
    assert after == before
    assert not again.changed
    assert again.diff == []
    assert len(host.live_writes) == writes
    assert not any(marks(again).values())


def test_one_changed_setting_is_one_write(host):
    host.apply(OWNERS)
    host.live_writes.clear()
    untouched = host.snapshot(times=True)
    changed = {**OWNERS, "kernel": {"sysctl": {**OWNERS["kernel"]["sysctl"], "vm.swappiness": "20"}}}
    done = host.apply(changed)
    assert host.live_writes == ["/proc/sys/vm/swappiness"]
    assert [name for name, was in marks(done).items() if was] == ["vm.swappiness"]
    differing = {name for name, was in host.snapshot(times=True).items() if untouched.get(name) != was}
    assert differing - {"etc/sysctl.d/.", "etc/sysctl.d", "etc/hosttune/.", "etc/hosttune"} == {
        "etc/sysctl.d/60-hosttune-kernel.conf",
        "etc/hosttune/manifest.json",
        "proc/sys/vm/swappiness",
    }


def test_undo_gives_all_back_byte_for_byte(host):
    before = host.snapshot()
    host.apply(OWNERS)
    assert host.snapshot() != before
    undone = host.apply({}, present=False)
    assert not undone.failures
    assert {one["name"] for one in undone.undone} == {
        name for kinds in OWNERS.values() for names in kinds.values() for name in names
    }
    after = host.snapshot()
    # A write to /proc ends with a line break and parts fields by blanks; the kernel keeps neither.
    assert {name: [*entry[:3], squeezed(entry[3])] for name, entry in after.items()} == {
        name: [*entry[:3], squeezed(entry[3])] for name, entry in before.items()
    }
    assert {name: entry for name, entry in after.items() if name.startswith("etc")} == {
        name: entry for name, entry in before.items() if name.startswith("etc")
    }
    assert not store.Ledger(host).settings
    assert not host.apply({}, present=False).changed


def squeezed(content):
    return content.split() if isinstance(content, bytes) else content


def test_a_name_left_out_is_undone_alone(host):
    host.apply(OWNERS)
    fewer = {**OWNERS, "kernel": {"sysctl": {"net.core.somaxconn": "4096"}}}
    done = host.apply(fewer)
    assert {one["name"] for one in done.undone} == {"vm.swappiness", "net.ipv4.tcp_rmem"}
    assert host.text("/proc/sys/vm/swappiness") == "60\n"
    assert host.text("/proc/sys/net/core/somaxconn") == "4096\n"
    assert "swappiness" not in host.text("/etc/sysctl.d/60-hosttune-kernel.conf")


def test_a_partial_call_leaves_other_owners_alone(host):
    host.apply(OWNERS)
    done = host.apply({"kernel": {"sysctl": {"vm.swappiness": "10"}}}, partial=True)
    assert {one["owner"] for one in done.undone} == {"kernel"}
    assert host.text("/etc/app/app.conf") == "tuned\n"
    assert set(store.Manifest(host).owners) == {"kernel", "app"}


def test_undo_keeps_aside_what_somebody_made_of_our_file(host):
    host.apply(OWNERS)
    host.put("/etc/app/app.conf", "an operator's own words\n")
    undone = host.apply({}, present=False)
    assert host.text("/etc/app/app.conf") == "as the vendor ships it\n"
    assert host.text("/var/lib/hosttune/aside/etc/app/app.conf") == "an operator's own words\n"
    assert "/etc/app/app.conf" in undone.aside[0]


def test_raise_only_keeps_what_is_higher_and_says_so(host):
    host.put("/proc/sys/net/core/somaxconn", "65535\n")
    done = host.apply(OWNERS)
    kept = next(one for one in done.settings if one.setting.name == "net.core.somaxconn")
    assert kept.setting.value == "65535"
    assert kept.reason == "raise-only: 4096 was asked for, this host had 65535"
    assert "/proc/sys/net/core/somaxconn" not in host.live_writes
    fields = next(one for one in done.settings if one.setting.name == "net.ipv4.tcp_rmem")
    assert fields.setting.value == "4096 131072 16777216"


def test_no_output_and_no_public_file_tells_a_secret(host):
    for check in (True, False, False):
        report = host.apply(OWNERS, check=check)
        told = json.dumps([one.as_dict() for one in report.settings]) + json.dumps(report.diff)
        assert SECRET not in told + repr(report.undone) + repr(report.failures)
    changed = {**OWNERS["app"]["file"]["/etc/app/password"], "content": "another"}
    report = host.apply({"app": {"file": {"/etc/app/password": changed}}})
    assert SECRET not in json.dumps(report.diff)
    assert [one["after"] for one in report.diff if one["after_header"] == "/etc/app/password"] == [
        "(another secret)\n"
    ]
    kept = host.text(store.MANIFEST)
    assert "another" not in kept
    assert "hmac-sha256:" in kept
    undone = host.apply({}, present=False)
    assert "another\n" not in json.dumps(undone.diff)


def run_module(host, monkeypatch, **options):
    """What library/host_settings.py prints and logs."""
    import hosttune

    # Only where the controller's environment is: the engine's tests run on every Python of managed hosts.
    basic = pytest.importorskip("ansible.module_utils.basic")
    patch_module_args = pytest.importorskip("ansible.module_utils.testing").patch_module_args

    for name in [name for name in sys.modules if name.split(".")[0] == "hosttune"]:
        monkeypatch.setitem(sys.modules, f"ansible.module_utils.{name}", sys.modules[name])
    monkeypatch.setattr(basic, "hosttune", hosttune, raising=False)
    path = Path(__file__).parents[2] / "library" / "host_settings.py"
    scope = {"__name__": "host_settings"}
    exec(compile(path.read_text(), str(path), "exec"), scope)  # noqa: S102 - the module's own source
    logged: list[str] = []
    monkeypatch.setattr(basic.AnsibleModule, "log", lambda _self, msg, **more: logged.append(f"{msg}{more}"))
    monkeypatch.setitem(scope, "System", lambda _root: FakeHost.again(host))
    said = io.StringIO()
    with patch_module_args(options), redirect_stdout(said), pytest.raises(SystemExit):
        scope["main"]()
    return json.loads(said.getvalue()), said.getvalue() + "".join(logged)


def test_the_module_tells_no_secret_in_result_invocation_or_journal(host, monkeypatch):
    result, everything = run_module(host, monkeypatch, owners=OWNERS)
    assert result["changed"] is True
    assert SECRET not in everything
    assert "somaxconn" in json.dumps(result["invocation"])


def test_the_module_names_host_thing_and_remedy(host, monkeypatch):
    result, _all = run_module(host, monkeypatch, owner="kernel", sysctl={"net.core.somaxcon": "1"})
    assert result["failed"]
    assert "sysctl net.core.somaxcon" in result["msg"]
    assert "Did you mean net.core.somaxconn" in result["remedy"]


def test_no_kind_is_loaded_that_nobody_asks_for(host, monkeypatch):
    loaded = set()
    load = kinds.load
    monkeypatch.setattr(kinds, "load", lambda name, system: loaded.add(name) or load(name, system))
    host.apply({"kernel": {"sysctl": {"net.core.somaxconn": "4096"}}})
    assert "sysctl" in loaded
    assert loaded.isdisjoint({"block", "boot", "mount", "postgres", "redis", "unit"})


def test_the_engine_alone_brings_the_code_of_no_kind_that_is_seldom_asked_for():
    told = "import sys; from hosttune import demand, engine; print(*sys.modules)"
    path = {**os.environ, "PYTHONPATH": str(Path(engine.__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", told], env=path, capture_output=True, text=True, check=True)
    seldom = {"grub", "irqs", "kinds.boot", "kinds.postgres", "shell_source", "timestamping", "trial"}
    assert not {f"hosttune.{name}" for name in seldom} & set(ran.stdout.split())


def test_a_second_run_is_told_who_holds_the_lock(host):
    host.apply(OWNERS)
    with (
        lock.hold(host.path(lock.PATH), "run 7 of alice, process 1"),
        pytest.raises(Refusal, match="run 7 of alice"),
    ):
        host.apply({"kernel": {"sysctl": {"vm.swappiness": "1"}}})
    assert host.text("/proc/sys/vm/swappiness") == "10\n"


def test_check_does_not_wait_for_the_lock(host):
    host.apply(OWNERS)
    with lock.hold(host.path(lock.PATH), "run 7 of alice, process 1"):
        assert not host.apply(OWNERS, check=True).changed


@pytest.mark.parametrize("path", ["/etc/sysctl.d", "/var/lib"])
def test_a_read_only_folder_is_named_and_nothing_is_touched(host, monkeypatch, path):
    before = host.snapshot(times=True, below=("etc", "proc", "var"))
    real = os.statvfs

    class ReadOnly:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr(os, "statvfs", lambda one: ReadOnly if one == host.path(path) else real(one))
    with pytest.raises(Refusal, match="read-write") as refusal:
        host.apply(OWNERS)
    assert path in str(refusal.value)
    after = host.snapshot(times=True, below=("etc", "proc"))
    assert after == {name: was for name, was in before.items() if not name.startswith("var")}
    assert host.live_writes == []


DAMAGES = {
    "cut": ('{"schema": 1, "settings": {"sysctl": {"vm.sw', "is not JSON"),
    "empty": ("", "is not JSON"),
    "a list": ("[]", "names no schema"),
    "without a schema": ('{"settings": {}}', "names no schema"),
}
NEWER = '{"schema": 2, "settings": {}}'


@pytest.mark.parametrize(("content", "told"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_ledger_costs_nothing_since_it_stands_twice(host, content, told):
    before = host.snapshot()
    host.apply(OWNERS)
    host.put(store.LEDGER, content)
    again = host.apply(OWNERS)
    assert not again.changed
    assert told in again.warnings[0]
    undone = host.apply({}, present=False)
    assert told in undone.warnings[0]
    assert host.text(f"{store.LEDGER}.damaged") == content
    assert {name: squeezed(entry[3]) for name, entry in host.snapshot().items()} == {
        name: squeezed(entry[3]) for name, entry in before.items()
    }


def test_a_lost_ledger_comes_back_from_its_copy(host):
    host.apply(OWNERS)
    os.unlink(host.path(store.LEDGER))
    assert "is missing" in host.apply({}, present=False).warnings[0]
    assert host.text("/etc/app/app.conf") == "as the vendor ships it\n"


def test_an_edited_ledger_is_not_believed(host):
    host.apply(OWNERS)
    edited = host.text(store.LEDGER).replace('"live": "60"', '"live": "66"')
    assert edited != host.text(store.LEDGER)
    host.put(store.LEDGER, edited)
    undone = host.apply({}, present=False)
    assert "changed by another hand" in undone.warnings[0]
    assert host.text("/proc/sys/vm/swappiness") == "60\n"


def test_without_any_ledger_that_can_be_used_nothing_is_touched(host):
    host.apply(OWNERS)
    host.put(store.LEDGER, "")
    host.put(store.LEDGER_COPY, "{")
    before = host.snapshot(times=True)
    writes = len(host.live_writes)
    for wanted in ({}, {"present": False}):
        with pytest.raises(Refusal, match=r"ledger.json: .* Restore either from a backup"):
            host.apply({}, **wanted)
    assert host.snapshot(times=True) == before
    assert len(host.live_writes) == writes


@pytest.mark.parametrize("path", [store.LEDGER, store.MANIFEST, waivers.PATH])
def test_what_a_newer_release_wrote_is_left_to_it(host, path):
    host.apply(OWNERS)
    host.put(path, NEWER)
    before = host.snapshot(times=True)
    with pytest.raises(Refusal, match="this release knows up to 1") as refusal:
        host.apply(OWNERS)
    assert path in str(refusal.value)
    assert host.snapshot(times=True) == before


@pytest.mark.parametrize(("content", "told"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_manifest_is_written_anew_by_a_run_over_all_roles_alone(host, content, told):
    host.apply(OWNERS)
    whole = host.text(store.MANIFEST)
    host.put(store.MANIFEST, content)
    with pytest.raises(Refusal, match=told):
        host.apply({"kernel": OWNERS["kernel"]}, partial=True)
    assert host.text(store.MANIFEST) == content
    again = host.apply(OWNERS)
    assert told in again.warnings[0]
    assert json.loads(host.text(store.MANIFEST))["owners"] == json.loads(whole)["owners"]
    host.put(store.MANIFEST, content)
    assert not host.apply({}, present=False).failures
    assert not host.exists(store.MANIFEST)


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 1, "waivers": [{"kind": "sysctl"}]}'])
def test_waivers_that_cannot_be_used_waive_nothing(host, content):
    host.put(waivers.PATH, content)
    done = host.apply(OWNERS)
    assert "Nothing is waived" in done.warnings[0]
    assert set(verdicts(done).values()) == {"in_sync"}


def test_undo_of_one_kind_leaves_the_others(host):
    host.apply(OWNERS)
    undone = host.apply({}, present=False, kinds=["sysctl"])
    assert {one["kind"] for one in undone.undone} == {"sysctl"}
    assert host.text("/proc/sys/vm/swappiness") == "60\n"
    assert not host.exists("/etc/sysctl.d/60-hosttune-kernel.conf")
    assert host.text("/etc/app/app.conf") == "tuned\n"
    assert {kind for kinds in store.Manifest(host).owners.values() for kind in kinds} == {"file"}


def test_undo_of_one_kind_of_one_owner(host):
    host.apply(OWNERS)
    undone = host.apply({"app": {}}, present=False, kinds=["sysctl"])
    assert [(one["owner"], one["name"]) for one in undone.undone] == [("app", "net.ipv4.tcp_syncookies")]
    assert host.text("/proc/sys/vm/swappiness") == "10\n"


def test_releases_that_add_and_drop_settings_and_roles_are_undone_to_the_first_day(host):
    before = host.snapshot()
    host.apply(OWNERS)
    second = {
        "kernel": {"sysctl": {"vm.swappiness": "5", "net.core.somaxconn": "8192"}},
        "extra": {
            "sysctl": {"net.ipv4.tcp_syncookies": "0"},
            "file": {"/etc/app/x.conf": {"content": "x\n"}},
        },
    }
    host.apply(second)
    third = {"extra": {"sysctl": {"vm.swappiness": "7"}, "file": {"/etc/app/app.conf": {"content": "3\n"}}}}
    host.apply(third)
    assert host.text("/proc/sys/net/core/somaxconn") == "128\n"
    assert host.text("/proc/sys/net/ipv4/tcp_syncookies") == "1\n"
    assert not host.apply({}, present=False).failures
    assert {name: (*entry[:3], squeezed(entry[3])) for name, entry in host.snapshot().items()} == {
        name: (*entry[:3], squeezed(entry[3])) for name, entry in before.items()
    }


def test_a_value_that_another_program_sets_back_is_a_failure_that_says_so(host, monkeypatch):
    monkeypatch.setattr(engine.time, "sleep", lambda _seconds: host.put("/proc/sys/vm/swappiness", "60\n"))
    done = host.apply({"kernel": {"sysctl": {"vm.swappiness": "10"}}}, settle_seconds=1.0)
    assert done.failures == [
        "sysctl vm.swappiness: took '10' and reads '60' 1 s later: another program sets it. "
        "Stop that one, or leave the setting to it"
    ]


def test_two_owners_of_one_setting_are_refused_untouched(host):
    before = host.snapshot()
    with pytest.raises(Refusal, match=r"has two owners: kernel .* and other"):
        host.apply({**OWNERS, "other": {"sysctl": {"vm.swappiness": "1"}}})
    assert host.snapshot() == before


def test_a_conflict_with_another_run_of_part_of_the_roles_is_refused(host):
    host.apply(OWNERS)
    with pytest.raises(Refusal, match="two owners"):
        host.apply({"other": {"sysctl": {"vm.swappiness": "1"}}}, partial=True)


def test_what_cannot_be_read_is_unknown_and_fails_after_the_rest_is_done(host):
    os.mkdir(host.path("/proc/sys/net/ipv4/tcp_odd"))
    done = host.apply({"kernel": {"sysctl": {"net.ipv4.tcp_odd": "1", "vm.swappiness": "10"}}})
    assert verdicts(done)["sysctl", "net.ipv4.tcp_odd"] == "unknown"
    assert any("net.ipv4.tcp_odd is unknown" in failure for failure in done.failures)
    assert host.text("/proc/sys/vm/swappiness") == "10\n"


def test_check_mode_says_which_package_is_still_to_come(host):
    os.mkdir(host.path("/proc/sys/net/ipv4/tcp_odd"))
    said = host.apply(
        {"kernel": {"sysctl": {"net.ipv4.tcp_odd": "1"}}}, check=True, packages={"kernel": ["odd-tools"]}
    )
    assert said.settings[0].reason == "after installing odd-tools"


def test_another_machine_than_the_values_were_computed_for_is_said(host, monkeypatch):
    monkeypatch.setattr(engine.topology, "read_fingerprint", lambda _root: "this-machine")
    assert host.apply(OWNERS, check=True, topology_fingerprint="this-machine").topology_matches
    assert not host.apply(OWNERS, check=True, topology_fingerprint="that-machine").topology_matches


def test_a_write_that_did_not_take_is_an_error_with_both_values(host, monkeypatch):
    monkeypatch.setattr(FakeHost, "write_value", lambda *_args: None)
    done = host.apply({"kernel": {"sysctl": {"net.core.somaxconn": "4096"}}})
    assert done.failures == ["sysctl net.core.somaxconn: wrote '4096', reads back '128'"]


def test_a_container_s_kernel_is_read_and_never_written(host):
    host.put("/run/systemd/container", "systemd-nspawn\n")
    done = host.apply(OWNERS)
    assert verdicts(done)["sysctl", "vm.swappiness"] == "unsupported"
    assert "/proc/sys/vm/swappiness" not in host.live_writes
    assert "swappiness" not in host.text("/etc/sysctl.d/60-hosttune-kernel.conf")


def test_an_ordinary_user_is_refused(host, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Refusal, match="root only"):
        host.apply(OWNERS)


def test_a_line_of_ours_stays_while_its_key_cannot_be_judged(host):
    host.apply(OWNERS)
    lines = host.text("/etc/sysctl.d/60-hosttune-kernel.conf")
    os.chmod(host.path("/proc/sys/vm/swappiness"), 0o444)
    assert not host.apply(OWNERS, check=True).changed
    host.put("/proc/sys/net/core/somaxconn", "1\n")
    done = host.apply(OWNERS)
    assert verdicts(done)["sysctl", "vm.swappiness"] == "unsupported"
    assert host.text("/etc/sysctl.d/60-hosttune-kernel.conf") == lines
    os.chmod(host.path("/proc/sys/vm/swappiness"), 0o644)
    assert not host.apply(OWNERS).changed


def test_undo_takes_our_file_away_also_where_one_of_its_keys_is_gone(host):
    host.apply(OWNERS)
    os.unlink(host.path("/proc/sys/vm/swappiness"))
    host.apply({}, present=False)
    assert not host.exists("/etc/sysctl.d/60-hosttune-kernel.conf")


def test_a_file_that_moves_to_another_owner_is_undone_with_that_one(host):
    file = {"/etc/app/app.conf": {"content": "tuned\n"}}
    host.apply({"app": {"file": file}})
    assert host.apply({"other": {"file": file}}).diff == []
    host.apply({"app": {}}, present=False)
    assert host.text("/etc/app/app.conf") == "tuned\n"
    host.apply({"other": {}}, present=False)
    assert host.text("/etc/app/app.conf") == "as the vendor ships it\n"


def test_what_the_kernel_took_instead_of_one_value_is_not_held_against_another(host, monkeypatch):
    write = FakeHost.write_value
    monkeypatch.setattr(
        FakeHost, "write_value", lambda self, path, value: write(self, path, str(int(value) // 10 * 10))
    )
    monkeypatch.setattr(SysctlKind, "clamps", lambda *_args: "tens only")
    done = host.apply({"kernel": {"sysctl": {"vm.swappiness": "15"}}})
    assert verdicts(done)["sysctl", "vm.swappiness"] == "clamped"
    assert not host.apply({"kernel": {"sysctl": {"vm.swappiness": "15"}}}).changed
    host.live_writes.clear()
    done = host.apply({"kernel": {"sysctl": {"vm.swappiness": "35"}}})
    assert host.text("/proc/sys/vm/swappiness") == "30\n"
    assert verdicts(done)["sysctl", "vm.swappiness"] == "clamped"
    assert len(host.live_writes) == 1


def test_another_spelling_of_a_name_is_the_same_setting(host):
    host.apply({"kernel": {"sysctl": {"vm.swappiness": "10"}}})
    host.live_writes.clear()
    done = host.apply({"kernel": {"sysctl": {"vm/swappiness": "10"}}})
    assert verdicts(done) == {("sysctl", "vm/swappiness"): "in_sync"}
    assert (done.undone, host.live_writes) == ([], [])
    assert host.text("/etc/sysctl.d/60-hosttune-kernel.conf").endswith("\nvm/swappiness = 10\n")
    assert not host.apply({"kernel": {"sysctl": {"vm/swappiness": "10"}}}).changed
    host.apply({}, present=False)
    assert host.text("/proc/sys/vm/swappiness") == "60\n"
    assert not host.exists("/etc/sysctl.d/60-hosttune-kernel.conf")


def test_keys_that_zero_each_other_are_undone_to_what_was_before_both(tmp_path, monkeypatch):
    as_root(monkeypatch)
    ratio, in_bytes = "vm.dirty_ratio", "vm.dirty_bytes"
    steps = [{ratio: "10"}, {in_bytes: "1048576"}, {ratio: "30"}, {ratio: "10", in_bytes: "0"}]
    for number, order in enumerate(itertools.permutations(steps, 3)):
        host = FullHost(tmp_path / str(number))
        for wanted in order:
            host.live_writes.clear()
            done = host.apply({"kernel": {"sysctl": wanted}})
            assert not done.failures, order
            assert len(host.live_writes) <= 1, order
            assert {name: host.text(f"/proc/sys/vm/{name[3:]}").strip() for name in wanted} == wanted, order
        host.apply({}, present=False)
        assert host.text("/proc/sys/vm/dirty_ratio") == "20\n", order
        assert host.text("/proc/sys/vm/dirty_bytes") == "0\n", order


def test_what_a_killed_run_left_beside_a_file_goes_with_the_next_run(host):
    host.apply(OWNERS)
    left = Path(host.path("/etc/app/.app.conf.hosttune-new"))
    left.write_text("half")
    assert not host.apply(OWNERS, check=True).changed
    assert left.exists()
    assert not host.apply(OWNERS).changed
    assert not left.exists()


def reloading(monkeypatch):
    """Plays systemctl: what was reloaded, and (one entry) the exit status of a reload."""
    ran, status = [], [0]

    def run(self, *argv, stdin="", timeout=120.0):
        if argv[1] != "reload":
            return Ran(1, "", "no bus")
        ran.append(argv[2])
        return Ran(status[0], "", "no bus" if status[0] else "")

    monkeypatch.setattr(FakeHost, "run", run)
    return ran, status


def test_a_file_that_its_program_could_not_read_is_given_to_it_again(host, monkeypatch):
    ran, status = reloading(monkeypatch)
    owners = {"app": {"file": {"/etc/app/app.conf": {"content": "tuned\n", "reload": "app.service"}}}}
    status[0] = 1
    assert "no bus" in host.apply(owners).failures[0]
    assert host.text("/etc/app/app.conf") == "tuned\n"
    status[0] = 0
    host.apply(owners)
    assert ran == ["app.service"] * 2
    assert not host.apply(owners, check=True).changed
    host.apply(owners)
    assert len(ran) == 2


def test_a_run_of_another_role_does_not_settle_what_a_failed_one_left(host, monkeypatch):
    ran, status = reloading(monkeypatch)
    app = {"app": {"file": {"/etc/app/app.conf": {"content": "tuned\n", "reload": "app.service"}}}}
    desk = {"desk": {"file": {"/etc/desk.conf": {"content": "a\n"}}}}
    status[0] = 1
    host.apply(app)
    status[0] = 0
    host.apply(desk, partial=True)
    host.apply({**app, **desk})
    assert ran == ["app.service"] * 2


# what is said before it is done


def test_a_failed_activation_of_an_undo_is_tried_again(host, tmp_path, monkeypatch):
    full = FullHost(tmp_path / "full")
    full.played["services"]["app.service"]["ActiveState"] = "active"
    limit = "app.service/Service/LimitNOFILE"
    config = {"/etc/app/app.conf": {"content": "tuned\n", "reload": "app.service"}}
    full.apply(
        {"app": {"unit": {limit: "65536"}, "file": config}, "kernel": {"sysctl": {"vm.swappiness": "10"}}}
    )
    real = FullHost.run

    def broken(self, *argv, **more):
        if argv[:2] in (("systemctl", "daemon-reload"), ("systemctl", "reload")):
            return Ran(1, "", "no bus")
        return real(self, *argv, **more)

    with monkeypatch.context() as patched:
        patched.setattr(FullHost, "run", broken)
        first = full.apply({}, present=False)
    assert sorted(line.partition(":")[0] for line in first.failures) == [
        f"file {next(iter(config))}",
        f"unit {limit}",
    ]
    kept = store.Ledger(full).settings
    assert {kind: list(names) for kind, names in kept.items()} == {"unit": [limit], "file": list(config)}

    full.commands.clear()
    said = full.apply({}, present=False, check=True)
    assert said.changed
    second = full.apply({}, present=False)
    assert second.failures == []
    # The first: the unit's drop-in went, and systemd shall reload it as it stands.
    reload = "systemctl reload app.service"
    assert full.commands == ["systemctl daemon-reload", reload, "systemctl daemon-reload"]
    assert full.played["app.service"]["LimitNOFILE"] == "1024:524288"
    assert not store.Ledger(full).settings
    assert not full.apply({}, present=False).changed


@pytest.mark.parametrize("folder", ["/etc/sysctl.d", "/etc/hosttune", "/var/lib/hosttune"])
def test_check_mode_refuses_what_the_apply_refuses_for_a_read_only_folder(host, monkeypatch, folder):
    owners = {"kernel": {"sysctl": {"vm.swappiness": "10"}}}
    real = System.read_only_mount
    monkeypatch.setattr(
        System,
        "read_only_mount",
        lambda self, path: folder if path == folder else real(self, path),
    )
    before = host.snapshot(times=True, below=("etc", "proc", "var"))
    with pytest.raises(Refusal, match=f"{folder}: cannot be written") as said:
        host.apply(owners, check=True)
    assert host.snapshot(times=True, below=("etc", "proc", "var")) == before
    with pytest.raises(Refusal) as done:
        host.apply(owners)
    assert str(said.value) == str(done.value)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert host.apply(owners, check=True).changed, "what an ordinary user may write says nothing of root"


def test_an_undone_key_that_is_read_only_by_now_is_named(host):
    owners = {"kernel": {"sysctl": {"vm.swappiness": "10", "net.core.somaxconn": "4096"}}}
    host.apply(owners)
    os.chmod(host.path("/proc/sys/vm/swappiness"), 0o444)
    for check in (True, False):
        (warning,) = host.apply({}, present=False, check=check).warnings
        assert warning.startswith(
            "sysctl vm.swappiness: was '60' before, and stays '10' until the next boot: "
        )
        assert "read-only" in warning
    assert not store.Ledger(host).settings
    assert not host.exists("/etc/sysctl.d/60-hosttune-kernel.conf")


def test_two_owners_of_one_key_in_two_spellings_are_refused(host):
    host.apply({"kernel": {"sysctl": {"vm/swappiness": "10"}}}, partial=True)
    other = {"app": {"sysctl": {"vm.swappiness": "20"}}}
    for more in ({"check": True}, {}):
        with pytest.raises(
            Refusal, match=r"has two owners: app \('20'\) and kernel .*, who writes vm/swappiness"
        ):
            host.apply(other, partial=True, **more)
    assert host.text("/proc/sys/vm/swappiness") == "10\n"
    moved = {"app": other["app"], "kernel": {}}
    assert verdicts(host.apply(moved, partial=True)) == {("sysctl", "vm.swappiness"): "in_sync"}


def test_what_is_given_back_says_what_stood_there(host):
    host.apply(OWNERS)
    given = {one["name"]: one for one in host.apply({}, present=False, check=True).undone}
    assert given["vm.swappiness"]["from"] == {"live": "10", "persisted": "10"}
    assert (given["vm.swappiness"]["live"], given["vm.swappiness"]["persisted"]) == ("60", "60")
    assert given["/etc/app/app.conf"]["from"]["persisted"].startswith("sha256:")
    assert given["/etc/app/password"]["from"]["persisted"].startswith("hmac-sha256:")


LIMIT, INSTANCES = "app.service/Service/LimitNOFILE", "work@.service/Service/LimitNOFILE"
RESTARTED = {"content": "new\n", "restart": "app.service"}


@pytest.mark.parametrize(
    ("kind", "name", "first", "then"),
    [
        ("unit", LIMIT, "2048", "65536"),
        ("unit", "app.service/Service/WorkingDirectory", "/srv", "/opt"),
        ("unit", INSTANCES, "2048", "65536"),
        ("file", "/etc/app/new.conf", RESTARTED, {**RESTARTED, "content": "newer\n"}),
    ],
)
def test_a_running_process_that_will_need_a_restart_is_foretold(host, tmp_path, kind, name, first, then):
    full = FullHost(tmp_path / "full")
    for unit in ("app.service", "work@a.service"):
        full._control("restart", unit)
    for value in (first, then):
        owners = {"app": {kind: {name: value}}}
        said, done = full.apply(owners, check=True), full.apply(owners)
        (one,) = [judged.as_dict() for judged in said.settings]
        assert (one["needs"], one["disruption"]) == ("restart", "restarts")
        assert said.pending() == done.pending() != []
        assert [judged.verdict for judged in done.settings] == ["pending_restart"]
        told = plan.of_host({"settings": [one], "undone": [], "pending": said.pending()}, {})
        assert told["waiting"]["restart"] == [f"{kind} {name}"]
        assert (told["worst"], told["changes"][0]["class"], told["changes"][0]["needs"]) == (
            *("restarts", "restarts"),
            "restart",
        )
        for unit in ("app.service", "work@a.service"):
            full._control("restart", unit)
        assert set(verdicts(full.apply(owners)).values()) == {"in_sync"}
    said, done = full.apply({}, present=False, check=True), full.apply({}, present=False)
    assert said.undone == done.undone
    assert [one["needs"] for one in done.undone] == ["restart" if "Working" not in name else "none"]
    if "@" in name:
        full.apply(owners)
        full._control("restart", "work@a.service")
        full.apply({"app": {kind: {name: first}}})
        (waits,) = full.apply({"app": {kind: {name: first}}}).pending()
        assert waits["reason"].startswith("the running process still has 65536 in work@a.service")


def test_what_does_not_run_or_stops_in_the_same_call_waits_for_nothing(host, tmp_path):
    full = FullHost(tmp_path / "full")
    files = {"/etc/app/new.conf": RESTARTED}
    for runs in (False, True):
        full._control("start" if runs else "stop", "app.service")
        owners = {"app": {"unit": {LIMIT: str(2048 + runs)}, "file": files}}
        if runs:
            owners["app"]["service"] = {"app.service": "inactive"}
        said = full.apply(owners, check=True, disruption_allowed="restarts")
        done = full.apply(owners, disruption_allowed="restarts")
        assert said.pending() == done.pending() == []
        files["/etc/app/new.conf"] = {**RESTARTED, "content": "newer\n"}
