"""hosttune-drift: what it finds, since when, and what its exit status says."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import pytest
from fake_host import FakeHost, as_root
from hosttune import cli, drift, lock, store, verdicts
from hosttune.drift import exit_status
from hosttune.report import prometheus, table

ROOT = Path(__file__).parents[2]
OWNERS = {
    "kernel": {"sysctl": {"net.core.somaxconn": "4096", "vm.swappiness": "10"}},
    "app": {"file": {"/etc/app/app.conf": {"content": "tuned\n"}}},
}


@pytest.fixture
def host(tmp_path, monkeypatch):
    as_root(monkeypatch)
    found = FakeHost(tmp_path)
    assert not found.apply(OWNERS, run={"id": "r1", "commit": "c1", "operator": "o"}).failures
    return found


def found(host, name, **options):
    report = drift.check(FakeHost.again(host), **options)
    assert not report.error
    return next(entry for entry in report.settings if entry["name"] == name)


def keep(host):
    """As the command does: this report is the next one's past."""
    report = drift.check(FakeHost.again(host))
    host.put(drift.PATH, json.dumps(report.as_dict()))
    return report


def schema(name):
    return jsonschema.Draft202012Validator(json.loads((ROOT / f"docs/schemas/{name}.json").read_text()))


def test_a_host_as_converged_is_in_sync(host):
    report = drift.check(FakeHost.again(host))
    assert report.exit_status == 0
    assert report.counts() == {"in_sync": 3}
    assert report.manifest["run"]["id"] == "r1"


def test_a_manual_write_is_live_drift(host):
    host.put("/proc/sys/net/core/somaxconn", "128\n")
    entry = found(host, "net.core.somaxconn")
    assert entry["verdict"] == "live_drift"
    assert entry["live"] == "128"
    assert drift.check(FakeHost.again(host)).exit_status == 1


def test_an_edited_file_is_drift(host):
    host.put("/etc/app/app.conf", "mine\n")
    entry = found(host, "/etc/app/app.conf")
    assert entry["verdict"] == "drift"
    assert entry["reason"].startswith("/etc/app/app.conf says sha256:")


def test_a_foreign_file_that_wins_is_a_boot_bomb_with_file_and_line(host):
    host.put("/etc/sysctl.d/90-vendor.conf", "# vendor\nnet.core.somaxconn = 256\n")
    entry = found(host, "net.core.somaxconn")
    assert entry["verdict"] == "boot_bomb"
    assert entry["persisted"]["file"] == "/etc/sysctl.d/90-vendor.conf"
    assert entry["persisted"]["line"] == 2
    assert [one["file"] for one in entry["persisted"]["overridden"]] == [
        "/etc/sysctl.d/60-hosttune-kernel.conf"
    ]


def test_a_foreign_file_with_the_same_value_is_shadowed_and_no_drift(host):
    host.put("/etc/sysctl.d/90-vendor.conf", "net.core.somaxconn = 4096\n")
    assert found(host, "net.core.somaxconn")["verdict"] == "shadowed"
    assert drift.check(FakeHost.again(host)).exit_status == 0


def test_what_cannot_be_read_is_unknown_and_worse_than_drift(host):
    host.put("/proc/sys/vm/swappiness", "60\n")
    os.unlink(host.path("/proc/sys/net/core/somaxconn"))
    os.mkdir(host.path("/proc/sys/net/core/somaxconn"))
    report = drift.check(FakeHost.again(host))
    assert report.counts() == {"in_sync": 1, "live_drift": 1, "unknown": 1}
    assert report.exit_status == 2


def test_a_tool_without_an_answer_makes_its_settings_unknown_and_hides_no_other(host, monkeypatch):
    from hosttune.kinds.file import FileKind

    def silent(_self, _names):
        raise OSError(5, "systemctl show: no answer")

    monkeypatch.setattr(FileKind, "read", silent)
    report = drift.check(FakeHost.again(host))
    assert report.counts() == {"in_sync": 2, "unknown": 1}
    assert "no answer" in next(one["reason"] for one in report.settings if one["verdict"] == "unknown")


def test_a_check_writes_nothing(host):
    host.put("/proc/sys/net/core/somaxconn", "128\n")
    before = host.snapshot(times=True, below=("etc", "proc", "var"))
    drift.check(FakeHost.again(host))
    cli.main(["--root", host.root, "--no-write"])
    cli.main(["--root", host.root, "--explain", "net.core.somaxconn"])
    assert host.snapshot(times=True, below=("etc", "proc", "var")) == before


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "this host has no manifest"),
        ("{", "is not JSON"),
        ('{"schema": 9}', "this release knows up to 1"),
        ('{"schema": 1, "owners": []}', "not of the form"),
        ('{"schema": 1, "owners": {"kernel": {"sysctl": {"a.b": {"value": 7}}}}}', "not of the form"),
        ('{"schema": 1, "owners": {"kernel": {"sysctl": {}}}}', "digest does not fit"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_one_message_and_exit_2(host, capsys, content, told):
    if content is None:
        os.unlink(host.path(store.MANIFEST))
    else:
        host.put(store.MANIFEST, content)
    assert cli.main(["--root", host.root]) == 2
    said = capsys.readouterr().out
    assert told in said
    assert len(said.splitlines()) == 1
    kept = json.loads(host.text(drift.PATH))
    assert kept["exit_status"] == 2
    assert told in kept["error"]
    assert schema("drift").is_valid(kept)


def test_a_manifest_changed_by_hand_is_not_trusted(host):
    manifest = json.loads(host.text(store.MANIFEST))
    manifest["owners"]["kernel"]["sysctl"]["vm.swappiness"]["value"] = "60"
    host.put(store.MANIFEST, json.dumps(manifest))
    host.put("/proc/sys/vm/swappiness", "60\n")
    report = drift.check(FakeHost.again(host))
    assert "another hand" in report.error
    assert report.exit_status == 2


def test_a_wrong_waiver_file_is_one_message_and_exit_2(host, capsys):
    host.put("/etc/hosttune/waivers.json", '{"schema": 1, "waivers": [{"kind": "sysctl"}]}')
    assert cli.main(["--root", host.root, "--no-write"]) == 2
    assert "has no name, owner, reason, ticket, expires" in capsys.readouterr().out


def test_a_crash_is_never_taken_for_drift(host, monkeypatch, capsys):
    def broken(*_args, **_options):
        raise KeyError("a bug")

    monkeypatch.setattr(drift, "check", broken)
    assert cli.main(["--root", host.root, "--no-write"]) == 2
    assert "a bug" in capsys.readouterr().err


def waive(host, expires, kind="sysctl", name="net.core.*"):
    waiver = {"kind": kind, "name": name, "owner": "ann", "reason": "test", "ticket": "T-1"}
    content = {"schema": 1, "waivers": [{**waiver, "expires": expires}]}
    assert schema("waivers").is_valid(content)
    host.put("/etc/hosttune/waivers.json", json.dumps(content))


def test_a_waived_drift_keeps_its_verdict_and_is_exit_3(host):
    host.put("/proc/sys/net/core/somaxconn", "128\n")
    waive(host, "2999-01-01T00:00:00Z")
    entry = found(host, "net.core.somaxconn")
    assert (entry["verdict"], entry["waived_verdict"]) == ("waived", "live_drift")
    assert "T-1" in entry["reason"]
    assert drift.check(FakeHost.again(host)).exit_status == 3


def test_an_expired_waiver_covers_nothing(host):
    host.put("/proc/sys/net/core/somaxconn", "128\n")
    waive(host, "2020-01-01T00:00:00Z")
    assert found(host, "net.core.somaxconn")["verdict"] == "live_drift"


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        (["in_sync", "shadowed", "clamped", "unsupported"], 0),
        (["in_sync", "pending_reboot"], 0),
        (["waived", "in_sync"], 3),
        (["waived", "drift"], 1),
        (["waived", "unknown"], 2),
        (["drift", "unknown"], 2),
        (["live_drift"], 1),
        (["boot_bomb"], 1),
    ],
)
def test_exit_status(settings, status):
    assert exit_status([{"verdict": verdict} for verdict in settings]) == status


def test_a_pending_one_that_is_overdue_is_drift():
    assert exit_status([{"verdict": "pending_restart", "overdue": False}]) == 0
    assert exit_status([{"verdict": "pending_restart", "overdue": True}, {"verdict": "waived"}]) == 1


NOW = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=datetime.timezone.utc)


def dated(verdict, before, boot="boot-2", desired="10", grace=24 * 3600.0):
    """One setting judged now, after a report that said `before`."""
    report = drift.DriftReport("h", NOW.strftime("%Y-%m-%dT%H:%M:%SZ"), boot)
    report.settings = [{"kind": "sysctl", "name": "a", "desired": desired, "verdict": verdict}]
    previous = {("sysctl", "a"): {"kind": "sysctl", "name": "a", "desired": "10", **before}} if before else {}
    drift._date(report, previous, NOW, grace)
    return report.settings[0]


HOUR_AGO = {"since": "2026-11-23T11:00:00Z", "since_boot": "boot-2"}
DAYS_AGO = {"since": "2026-11-20T12:00:00Z", "since_boot": "boot-2"}


def test_since_is_carried_over_while_the_verdict_stays():
    assert dated("live_drift", {"verdict": "live_drift", **HOUR_AGO})["since"] == HOUR_AGO["since"]
    assert dated("drift", {"verdict": "live_drift", **HOUR_AGO})["since"] == "2026-11-23T12:00:00Z"
    assert dated("live_drift", {})["since"] == "2026-11-23T12:00:00Z"
    assert "since" not in dated("in_sync", {"verdict": "live_drift", **HOUR_AGO})


def test_since_begins_anew_for_another_desired_value():
    again = dated("live_drift", {"verdict": "live_drift", **HOUR_AGO}, desired="20")
    assert again["since"] == "2026-11-23T12:00:00Z"


def test_what_a_boot_ends_is_dated_within_that_boot():
    before = {"since": "2026-11-23T11:00:00Z", "since_boot": "boot-1"}
    assert dated("live_drift", {"verdict": "live_drift", **before})["since"] == "2026-11-23T12:00:00Z"
    assert dated("drift", {"verdict": "drift", **before})["since"] == "2026-11-23T11:00:00Z"


def test_since_goes_on_under_a_waiver():
    again = dated("drift", {"verdict": "waived", "waived_verdict": "drift", **HOUR_AGO})
    assert again["since"] == HOUR_AGO["since"]


def test_a_clock_that_was_set_back_dates_nothing_into_the_future():
    before = {"verdict": "drift", "since": "2030-01-01T00:00:00Z", "since_boot": "boot-2"}
    assert dated("drift", before)["since"] == "2026-11-23T12:00:00Z"


def test_pending_within_its_grace_and_beyond():
    assert dated("pending_restart", {"verdict": "pending_restart", **HOUR_AGO})["overdue"] is False
    assert dated("pending_restart", {"verdict": "pending_restart", **DAYS_AGO})["overdue"] is True
    assert dated("pending_restart", {"verdict": "pending_restart", **HOUR_AGO}, grace=60)["overdue"] is True


def test_pending_reboot_that_has_seen_a_boot_is_overdue_at_once():
    before = {"verdict": "pending_reboot", "since": HOUR_AGO["since"], "since_boot": "boot-1"}
    assert dated("pending_reboot", before)["overdue"] is True
    assert dated("pending_reboot", {"verdict": "pending_reboot", **HOUR_AGO})["overdue"] is False


@pytest.mark.parametrize("before", ["", "{", '{"schema": 7}', '{"schema": 1, "settings": [3, {"kind": 1}]}'])
def test_a_last_report_that_cannot_be_used_costs_the_dates_only(host, before):
    host.put("/proc/sys/net/core/somaxconn", "128\n")
    host.put(drift.PATH, before)
    assert found(host, "net.core.somaxconn")["since"].endswith("Z")


def test_the_command_keeps_report_and_textfile(host, capsys):
    host.put("/proc/sys/net/core/somaxconn", "128\n")
    assert cli.main(["--root", host.root]) == 1
    assert "live_drift" in capsys.readouterr().out
    first = json.loads(host.text(drift.PATH))
    schema("drift").validate(first)
    assert "hosttune_drift_exit_status 1" in host.text("/var/lib/hosttune/hosttune-drift.prom")
    cli.main(["--root", host.root])
    second = json.loads(host.text(drift.PATH))
    assert [one.get("since") for one in second["settings"]] == [one.get("since") for one in first["settings"]]
    os.makedirs(host.path("/var/lib/prometheus/node-exporter"))
    cli.main(["--root", host.root])
    assert host.text("/var/lib/prometheus/node-exporter/hosttune-drift.prom").startswith("# HELP")


def test_the_command_waits_for_a_run_that_changes_the_host(host, monkeypatch, capsys):
    monkeypatch.setattr(cli, "LOCK_WAIT_SECONDS", 0.3)
    with lock.hold(host.path(lock.PATH), "run 7 of alice"):
        assert cli.main(["--root", host.root]) == 2
    assert "run 7 of alice" in capsys.readouterr().err


def test_explain_tells_planes_notes_and_what_was_before(tmp_path, monkeypatch, capsys):
    as_root(monkeypatch)
    host = FakeHost(tmp_path)
    host.apply(OWNERS, notes={"sysctl": {"vm.swappiness": {"why": "keeps services in memory"}}})
    host.put("/etc/sysctl.d/90-vendor.conf", "vm.swappiness = 30\n")
    assert cli.main(["--root", host.root, "--explain", "sysctl", "vm.swappiness"]) == 1
    said = capsys.readouterr().out
    for words in (
        "boot_bomb",
        "30  (/etc/sysctl.d/90-vendor.conf:1)",
        "10  (/etc/sysctl.d/60-hosttune-kernel.conf:3)",
        "keeps services in memory",
        "live 60, persisted 60",
    ):
        assert words in said
    assert cli.main(["--root", host.root, "--explain", "vm.swapiness"]) == 2
    assert "Did you mean vm.swappiness" in capsys.readouterr().err


def test_what_the_engine_writes_fits_the_published_schemas(host):
    schema("manifest").validate(json.loads(host.text(store.MANIFEST)))
    schema("ledger").validate(json.loads(host.text(store.LEDGER)))
    keep(host)
    schema("drift").validate(json.loads(host.text(drift.PATH)))
    known = json.loads((ROOT / "docs/schemas/drift.json").read_text())["$defs"]["setting"]["properties"]
    assert set(known["verdict"]["enum"]) == set(verdicts.VERDICTS)


def test_the_command_is_one_file_the_same_each_time_without_the_engine_that_writes(host, tmp_path):
    builder = [sys.executable, str(ROOT / "tools/build_zipapp.py")]
    targets = [tmp_path / "one" / "a", tmp_path / "two" / "b"]
    for target in targets:
        subprocess.run([*builder, str(target)], check=True, capture_output=True)
    assert targets[0].read_bytes() == targets[1].read_bytes()
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(targets[0])], check=True, capture_output=True, text=True
    ).stdout
    assert "hosttune/kinds/postgres.py" in listed
    assert "hosttune/engine.py" not in listed
    again = subprocess.run([*builder, str(targets[0])], check=True, capture_output=True, text=True).stdout
    assert again.startswith("unchanged")
    compiler = [sys.executable, "-I", str(ROOT / "tools/compile_zipapp.py"), str(targets[0])]
    fast = tmp_path / "fast"
    assert (
        subprocess.run([*compiler, str(fast)], check=True, capture_output=True, text=True).stdout == "built\n"
    )
    again = subprocess.run([*compiler, str(fast)], check=True, capture_output=True, text=True).stdout
    assert again == "unchanged\n"
    # It is the byte code that runs: it does without its sources.
    bare = tmp_path / "bare"
    with zipfile.ZipFile(fast) as whole, zipfile.ZipFile(bare, "w") as part:
        for name in whole.namelist():
            if name.endswith(".pyc"):
                part.writestr(name, whole.read(name))
    # Isolated and from another folder: nothing of the checkout is on its path.
    host.put("/proc/sys/net/core/somaxconn", "128\n")
    ended = subprocess.run(
        [sys.executable, "-I", str(bare), "--root", host.root, "--no-write", "--format", "json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert json.loads(ended.stdout)["counts"] == {"in_sync": 2, "live_drift": 1}


def test_another_kernel_than_it_was_converged_on_is_said_until_the_next_run(host):
    host.put("/proc/sys/kernel/osrelease", "6.1.0-27-amd64\n")
    assert host.apply(OWNERS).changed
    assert not host.apply(OWNERS).changed
    assert drift.check(FakeHost.again(host)).warnings == []
    host.put("/proc/sys/kernel/osrelease", "6.1.0-28-amd64\n")
    told = (
        "the kernel is 6.1.0-28-amd64 and was 6.1.0-27-amd64 when this host was converged: converge it again"
    )
    report = drift.check(FakeHost.again(host))
    assert report.warnings == [told]
    assert f"warning: {told}" in table(report)
    assert "hosttune_drift_machine_updates 1" in prometheus(report, 0.0)
    assert host.apply(OWNERS, check=True).warnings == [told]
    host.apply(OWNERS)
    assert drift.check(FakeHost.again(host)).warnings == []
