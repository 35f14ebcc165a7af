"""Explaining a setting: which one is meant, all its planes, where its value comes from, what it was."""

from __future__ import annotations

import pytest
from fake_host import FakeHost, as_root
from hosttune import asking, explain, origin, report
from hosttune.engine import Request
from hosttune.model import Refusal

OWNERS = {
    "kernel": {"sysctl": {"vm.swappiness": "10", "net.core.somaxconn": "4096"}},
    "app": {"file": {"/etc/app/app.conf": {"content": "secret\n", "mode": "0600", "secret": True}}},
}
NOTES = {
    "sysctl": {
        "vm.swappiness": {
            "why": "keeps services in memory",
            "risk": "the OOM killer",
            "source": "guide",
            "unit": "weight",
            "from": "profile guide: kernel_sysctl_guide",
        }
    }
}
KNOWN = [("sysctl", "a.b"), ("sysfs", "a.b"), ("mount", "/mnt/with blank"), ("sysctl", "vm.swappiness")]


def find(asked):
    return asking.find(KNOWN, asked, "here", "Look there")


def test_a_name_means_every_kind_that_has_it_and_a_kind_narrows():
    assert find("a.b") == [("sysctl", "a.b"), ("sysfs", "a.b")]
    assert find("sysfs a.b") == [("sysfs", "a.b")]
    assert find(" sysctl   a.b ") == [("sysctl", "a.b")]
    assert find("/mnt/with blank") == find("mount /mnt/with blank") == [("mount", "/mnt/with blank")]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("vm.swapiness", "vm.swapiness: no such setting here. Did you mean vm.swappiness?"),
        ("sysctl vm.swapiness", "Did you mean sysctl vm.swappiness?"),
        ("mount a.b", "Look there"),
        ("", "setting: no such setting here. Look there"),
    ],
)
def test_an_unknown_name_is_refused_with_what_may_be_meant(asked, told):
    with pytest.raises(Refusal) as refused:
        find(asked)
    assert told in str(refused.value)


@pytest.fixture
def host(tmp_path, monkeypatch):
    as_root(monkeypatch)
    return FakeHost(tmp_path)


def explained(host, asked):
    request = Request(owners=OWNERS, notes=NOTES, lock_wait_seconds=0.3)
    return explain.explain(FakeHost.again(host), request, asked)


def test_every_plane_and_what_it_was_before_the_suite(host):
    (before,) = explained(host, "vm.swappiness")
    assert (before["verdict"], before["was"]) == ("drift", None)
    host.apply(OWNERS, notes=NOTES)
    host.put("/etc/sysctl.d/90-vendor.conf", "vm.swappiness = 30\n")
    (found,) = explained(host, "sysctl vm.swappiness")
    assert found["owner"] == "kernel"
    assert found["notes"] == NOTES["sysctl"]["vm.swappiness"]
    assert found["was"]["live"] == "60"
    place = {"variable": "kernel_sysctl_guide", "file": "roles/kernel/defaults/main.yml", "line": 41}
    source = {**place, "inputs": [{"name": "x_y", "value": "7", **place}]}
    said = report.explanation(found, found["notes"], found["was"], source).splitlines()
    assert said == [
        "sysctl vm.swappiness (role kernel)",
        f"  verdict    boot_bomb: {found['reason']}",
        "  desired    10  (weight)",
        "  from       profile guide: kernel_sysctl_guide",
        "             kernel_sysctl_guide in roles/kernel/defaults/main.yml:41",
        "             x_y = 7  (roles/kernel/defaults/main.yml:41)",
        "  live       10",
        "  persisted  30  (/etc/sysctl.d/90-vendor.conf:1)",
        "  overridden 60  (/etc/sysctl.d/10-vendor.conf:1)",
        "  overridden 10  (/etc/sysctl.d/60-hosttune-kernel.conf:3)",
        "  class      silent",
        "  why        keeps services in memory",
        "  risk       the OOM killer",
        "  source     guide",
        "  was before live 60, persisted 60",
    ]


def test_explaining_touches_nothing_and_tells_no_secret(host):
    host.apply(OWNERS)
    before = host.snapshot(times=True, below=("etc", "proc", "var"))
    (found,) = explained(host, "/etc/app/app.conf")
    assert "secret\n" not in repr(found)
    assert host.snapshot(times=True, below=("etc", "proc", "var")) == before


def test_an_undeclared_setting_is_refused_before_anything_is_read(host):
    with pytest.raises(Refusal, match=r"Did you mean net\.core\.somaxconn\?"):
        explained(host, "net.core.somaxcon")


VARIABLES = """---
# comment
role_one: 1

role_sysctl_guide:
  a.b: "1"
  # comment: with a colon
  c.d: "2"
role_extra: {}
"""


def test_a_line_of_a_file_of_variables_lies_within_a_variable(tmp_path):
    path = tmp_path / "main.yml"
    path.write_text(VARIABLES)
    within = [origin.variable_at(str(path), line) for line in range(1, 10)]
    guide = "role_sysctl_guide"
    assert within == [None, None, "role_one", "role_one", guide, guide, guide, guide, "role_extra"]
    assert origin.variable_at(str(tmp_path / "absent.yml"), 3) is None


def test_places_are_said_as_people_name_them(tmp_path):
    path = tmp_path / "roles/r/defaults/main.yml"
    path.parent.mkdir(parents=True)
    path.write_text(VARIABLES)
    inside = origin.place(str(path), 6, None, str(tmp_path))
    assert inside == {"variable": "role_sysctl_guide", "file": "roles/r/defaults/main.yml", "line": 6}
    assert origin.said(inside) == "profile guide: role_sysctl_guide"
    assert not origin.outside_roles(inside)
    elsewhere = origin.place("/srv/inventory/all.yml", 1, None, str(tmp_path))
    assert elsewhere["file"] == "/srv/inventory/all.yml"
    assert origin.outside_roles(elsewhere)
    asked = origin.place(None, None, "<CLI option '-e'>", str(tmp_path))
    assert origin.said(asked) == "the command line (-e)"
    assert origin.said(origin.NOWHERE) == ""


def test_words_that_may_be_variables_are_never_those_of_secrets():
    text = "kernel_dirty_bytes and 3 % of x_y, redis_orchestrator_password, vm.dirty_bytes, memory / 4"
    assert origin.words(text) == ["kernel_dirty_bytes", "x_y", "dirty_bytes"]
