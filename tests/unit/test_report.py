"""The forms of a drift report, read back by those who read them."""

from __future__ import annotations

import json
import shutil
import subprocess
import xml.etree.ElementTree as xml

import pytest
from hosttune import report, verdicts
from hosttune.drift import DriftReport, of_dict
from prometheus_client.parser import text_string_to_metric_families

NASTY = 'a "quoted" \\ back\nslash \x07 ünï'


def entry(verdict, name="net.core.somaxconn", **more):
    return {
        "owner": "kernel",
        "kind": "sysctl",
        "name": name,
        "desired": "4096",
        "live": "128",
        "persisted": {"value": "128", "file": "/etc/x.conf", "line": 3, "overridden": []},
        "verdict": verdict,
        "needs": "none",
        "reason": f"because of {verdict}",
        **more,
    }


@pytest.fixture
def mixed():
    found = DriftReport("h1", "2026-11-23T12:00:00Z", "boot", manifest={"digest": "d" * 64, "run": {}})
    found.settings = [
        entry("in_sync", "a"),
        entry("drift", "b", since="2026-11-23T11:00:00Z"),
        entry("pending_restart", "c", overdue=True),
        entry("pending_reboot", "d", overdue=False),
        entry("waived", "e", waived_verdict="drift"),
        entry("unsupported", "f"),
        entry("unknown", NASTY),
    ]
    return found


@pytest.fixture
def broken():
    return DriftReport("h1", "2026-11-23T12:00:00Z", error="this host has no manifest")


def families(text):
    return {one.name: one for one in text_string_to_metric_families(text)}


def test_json_is_the_report_one_line_a_setting(mixed, broken):
    for found in (mixed, broken):
        text = report.as_json(found)
        assert json.loads(text) == found.as_dict()
        assert of_dict(json.loads(text)).as_dict() == found.as_dict()
    assert sum('"verdict"' in line for line in report.as_json(mixed).splitlines()) == 7


def test_the_table_shows_the_worst_first_and_leaves_out_what_is_in_sync(mixed):
    lines = report.table(mixed).splitlines()
    shown = [
        line.split()[0] for line in lines[1:] if line.startswith(("drift", "pending", "waived", "unknown"))
    ]
    assert shown == ["pending_restart", "drift", "unknown", "pending_reboot", "waived"]
    assert "pending_restart (overdue)" in lines[1]
    assert "unsupported: 1 (because of unsupported)" in lines
    assert lines[-1].startswith("h1: 7 settings: ")
    assert not any("sysctl a  " in line for line in lines)
    assert len(lines) == 9, "a line break within a name does not break the table"


def test_long_values_do_not_break_the_table(mixed):
    mixed.settings = [entry("drift", live="x" * 500)]
    assert max(map(len, report.table(mixed).splitlines())) < 200


def test_a_host_that_could_not_be_checked_is_one_line(broken):
    assert report.table(broken) == "h1: could not be checked: this host has no manifest\n"


def test_junit_counts_and_marks(mixed):
    suite = xml.fromstring(report.junit(mixed))  # noqa: S314 - made here
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "7",
        "failures": "2",
        "errors": "1",
        "skipped": "3",
    }
    marks = {case.get("name"): [child.tag for child in case] for case in suite}
    assert marks["a"] == []
    assert marks["b"] == ["failure"]
    assert marks["c"] == ["failure"]
    assert marks["d"] == ["skipped"]


def test_junit_of_a_host_that_could_not_be_checked_is_an_error(broken):
    suite = xml.fromstring(report.junit(broken))  # noqa: S314 - made here
    assert suite.get("errors") == "1"


def test_prometheus_text_is_read_as_written(mixed):
    found = families(report.prometheus(mixed, 1764000000.7))
    assert all(family.type == "gauge" and family.documentation for family in found.values())
    assert found["hosttune_drift_last_check_timestamp_seconds"].samples[0].value == 1764000000
    assert found["hosttune_drift_exit_status"].samples[0].value == 2
    assert found["hosttune_drift_manifest_info"].samples[0].labels == {"digest": "d" * 64}
    counts = {one.labels["verdict"]: one.value for one in found["hosttune_drift_settings"].samples}
    assert set(counts) == set(verdicts.VERDICTS)
    assert counts["drift"] == 1
    assert sum(counts.values()) == 7
    details = found["hosttune_drift_setting_verdict"].samples
    assert {one.labels["verdict"] for one in details} == {one["verdict"] for one in mixed.settings} - {
        "in_sync"
    }
    assert NASTY in {one.labels["name"] for one in details}
    assert all(one.timestamp is None for family in found.values() for one in family.samples)


def test_a_host_that_could_not_be_checked_shows_no_counts(broken):
    found = families(report.prometheus(broken, 1.0))
    assert found["hosttune_drift_exit_status"].samples[0].value == 2
    assert "hosttune_drift_settings" not in found


def test_a_host_costs_prometheus_at_most_a_hundred_series(mixed):
    mixed.settings = [entry("clamped", f"n{number}") for number in range(300)] + [entry("drift", "bad")]
    found = families(report.prometheus(mixed, 1.0))
    assert sum(len(family.samples) for family in found.values()) <= 100
    assert found["hosttune_drift_omitted_settings"].samples[0].value == 221
    assert "bad" in {one.labels["name"] for one in found["hosttune_drift_setting_verdict"].samples}


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (apt: prometheus)")
@pytest.mark.parametrize("which", ["mixed", "broken"])
def test_promtool_accepts_the_text(which, request):
    text = report.prometheus(request.getfixturevalue(which), 1764000000.0)
    ended = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


def test_every_verdict_has_its_place_in_the_order():
    assert sorted(report._ORDER) == sorted(verdicts.VERDICTS)
