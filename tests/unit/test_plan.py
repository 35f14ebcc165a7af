"""What a plan says, as data and as lines: from results as host_settings returns them."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from fake_host import FakeHost, as_root
from hosttune import plan, verdicts
from hypothesis import given
from hypothesis import strategies as st

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/plan.json").read_text())
VALID = jsonschema.Draft202012Validator(SCHEMA)
RUN = {"run_id": "r1", "commit": "c", "operator": "o"}
NOTES = {"sysctl": {"vm.swappiness": {"why": "w", "risk": "the OOM killer comes earlier", "source": "s"}}}


def entry(kind="sysctl", name="vm.swappiness", live="60", persisted=None, desired="10", **more):
    return {
        "owner": "kernel",
        "kind": kind,
        "name": name,
        "desired": desired,
        "live": live,
        "persisted": {"value": persisted, "file": None, "line": None, "overridden": []},
        "before": {"live": live, "persisted": persisted, "verdict": more.get("verdict", "drift")},
        "verdict": "drift",
        "changed": True,
        "needs": "none",
        "disruption": "silent",
        "reason": "because",
        **more,
    }


def waits(kind="sysctl", name="vm.swappiness", needs="restart", disruption="restarts"):
    about = {"owner": "kernel", "kind": kind, "name": name, "reason": "because"}
    return {**about, "needs": needs, "disruption": disruption}


def of(*entries, undone=(), notes=NOTES, pending=()):
    result = {"settings": list(entries), "undone": list(undone), "pending": list(pending)}
    return plan.of_host(result, notes)


def document(**hosts):
    return plan.document(hosts, run=RUN, unreachable=["u2", "u1"], failed={"bad": "no python3"})


def test_a_change_says_from_what_to_what_its_class_needs_and_risk():
    (change,) = of(entry(disruption="moves", needs="reload"))["changes"]
    assert change == {
        "owner": "kernel",
        "kind": "sysctl",
        "name": "vm.swappiness",
        "from": "60",
        "to": "10",
        "live": True,
        "given_back": False,
        "class": "moves",
        "needs": "reload",
        "risk": "the OOM killer comes earlier",
    }
    assert plan.change_text(change) == "kernel: sysctl vm.swappiness: 60 -> 10"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (entry(live=None), "not set -> 10"),
        (entry(live=None, persisted="30"), "30 -> 10"),
        (entry(live=""), "(empty) -> 10"),
        (entry(live="10", verdict="boot_bomb"), "10 -> 10 (to be kept at the next boot)"),
        (entry(live="10 ms", verdict="boot_bomb"), "10 ms -> 10 (to be kept at the next boot)"),
        (entry(live="x" * 500), "x" * 57 + "... -> 10"),
    ],
)
def test_the_text_of_a_change(found, text):
    assert plan.change_text(of(found)["changes"][0]) == f"kernel: sysctl vm.swappiness: {text}"


def test_the_planes_of_a_service_stand_side_by_side():
    found = entry("service", "x.service", "inactive", "disabled", "enabled active")
    text = plan.change_text(of(found)["changes"][0])
    assert text == "kernel: service x.service: disabled inactive -> enabled active"


@pytest.mark.parametrize(
    ("was", "shall", "text"),
    [
        (None, "sha256:a 0644 root:root", "absent -> written"),
        ("sha256:a 0644 root:root", "sha256:b 0644 root:root", "other content"),
        ("sha256:a 0644 root:root", "sha256:a 0600 root:root", "0644 root:root -> 0600 root:root"),
        (
            "sha256:a 0644 root:root",
            "sha256:b 0600 root:root",
            "other content, 0644 root:root -> 0600 root:root",
        ),
        ("hmac-sha256:ab 0600 root:root", "hmac-sha256:cd 0600 root:root", "written anew"),
    ],
)
def test_of_a_file_only_what_happens_to_it_is_said(was, shall, text):
    found = of(entry("file", "/etc/app.conf", None, was, shall))
    assert plan.change_text(found["changes"][0]) == f"kernel: file /etc/app.conf: {text}"
    assert "hmac" not in json.dumps(found), "not even the keyed digest of a secret is told"


def test_what_nobody_asks_for_any_more_is_given_back():
    undone = [
        {
            **{"owner": "old", "kind": "irq", "name": "a/0", "live": "7", "persisted": None},
            **{"disruption": "moves", "from": {"live": "2", "persisted": None}},
        },
        {
            **{"owner": "old", "kind": "file", "name": "/etc/x", "live": None, "persisted": None},
            "from": {"live": None, "persisted": "hmac-sha256:ab 0600 root:root"},
        },
        {
            **{"owner": "old", "kind": "service", "name": "x.service", "live": "active"},
            **{"persisted": "enabled", "from": {"live": "inactive", "persisted": "masked"}},
        },
    ]
    found = of(undone=undone)
    assert [plan.change_text(one) for one in found["changes"]] == [
        "old: irq a/0: 2 -> 7 (given back)",
        "old: file /etc/x: given back -> as it was",
        "old: service x.service: masked inactive -> enabled active (given back)",
    ]
    assert [one["from"] for one in found["changes"]] == ["2", "(secret) 0600 root:root", "masked inactive"]
    assert found["worst"] == "moves"


def test_what_waits_is_what_the_result_says_is_pending():
    found = of(
        entry(name="a", needs="restart", disruption="restarts"),
        entry(name="e"),
        entry(name="d", needs="restart", changed=False, verdict="in_sync"),
        pending=[
            waits(name="a"),
            waits(name="b", needs="reboot", disruption="reboots"),
            waits("nic", "f", needs="none", disruption="resets"),
        ],
    )
    assert found["waiting"] == {"restart": ["sysctl a"], "reboot": ["sysctl b"], "window": ["nic f"]}
    assert found["worst"] == "reboots", "the class of what waits counts too"
    assert [change["name"] for change in found["changes"]] == ["a", "e"]


def test_hosts_with_the_same_plan_share_one_table_and_quiet_ones_one_line():
    busy = of(
        entry(needs="restart", disruption="restarts"),
        entry(name="p", changed=False, verdict="unknown", reason="after installing x"),
        entry(name="q", changed=False, verdict="unknown", reason="after installing x"),
        pending=[waits()],
    )
    quiet = of(entry(changed=False, verdict="in_sync"))
    lines = plan.lines(
        {f"q{number}": quiet for number in range(12)} | {"h2": busy, "h1": busy, "h3": of(entry())}
    )
    assert lines == [
        "2 hosts: h1, h2",
        "  CHANGE                                  CLASS     NEEDS    RISK",
        "  kernel: sysctl vm.swappiness: 60 -> 10  restarts  restart  the OOM killer comes earlier",
        "  cannot be said yet: kernel: 2 settings: after installing x",
        "  worst class: restarts; needs a restart: sysctl vm.swappiness",
        "",
        "h3",
        "  CHANGE                                  CLASS   NEEDS  RISK",
        "  kernel: sysctl vm.swappiness: 60 -> 10  silent  -      the OOM killer comes earlier",
        "  worst class: silent; nothing needs a restart or reboot",
        "",
        "12 hosts: q0, q1, q10, q11, q2, q3, q4, q5 and 4 more: nothing to change",
    ]


def test_a_host_that_could_not_be_planned_is_in_the_document():
    found = document(h1=of(entry()))
    VALID.validate(found)
    assert found["failed"] == {"bad": "no python3"}
    assert found["unreachable"] == ["u1", "u2"]
    assert found["hosts"]["h1"]["worst"] == "silent"


TEXT = st.text(max_size=20)
ENTRIES = st.builds(
    entry,
    kind=st.sampled_from(["sysctl", "file", "service", "postgres"]),
    name=TEXT,
    live=st.none() | TEXT,
    persisted=st.none() | TEXT,
    desired=TEXT,
    verdict=st.sampled_from(verdicts.VERDICTS),
    changed=st.booleans(),
    needs=st.sampled_from(["none", "reload", "restart", "reboot"]),
    disruption=st.sampled_from(plan.CLASSES),
)


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(ENTRIES, max_size=6), max_size=6))
def test_every_plan_fits_the_schema_and_its_worst_class_bounds_its_changes(hosts):
    plans = {host: of(*entries) for host, entries in hosts.items()}
    VALID.validate(document(**plans))
    for host, found in plans.items():
        assert len(found["changes"]) == sum(one["changed"] for one in hosts[host])
        for change in found["changes"]:
            assert plan.CLASSES.index(change["class"]) <= plan.CLASSES.index(found["worst"])
        if not found["changes"] and not any(found["waiting"].values()):
            assert found["worst"] is None
    lines = plan.lines(plans)
    assert all(line.isprintable() for line in lines)
    # No line begins at the margin but a host's or that of hosts which are alike.
    alike = {json.dumps(found, sort_keys=True) for found in plans.values()}
    assert sum(line != "" and not line.startswith(" ") for line in lines) == len(alike)


def test_the_plan_of_a_host_is_what_a_run_then_changes(tmp_path, monkeypatch):
    as_root(monkeypatch)
    host = FakeHost(tmp_path)
    owners = {"kernel": {"sysctl": {"vm.swappiness": "10", "net.core.somaxconn": "128"}}}
    report = host.apply(owners, check=True)
    found = plan.of_host(
        {"settings": [one.as_dict() for one in report.settings], "undone": report.undone}, {}
    )
    texts = [plan.change_text(one) for one in found["changes"]]
    assert texts == [
        "kernel: sysctl vm.swappiness: 60 -> 10",
        "kernel: sysctl net.core.somaxconn: 128 -> 128 (to be kept at the next boot)",
    ]
    VALID.validate(document(fake=found))
    host.apply(owners)
    again = host.apply(owners, check=True)
    assert of(*(one.as_dict() for one in again.settings))["changes"] == []
