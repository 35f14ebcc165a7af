"""docs/settings.md says what the roles declare, and every declared setting has its note."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hosttune import kinds, plan

ROOT = Path(__file__).parents[2]
#: What a note may hold; unit_from tells the engine that a unit comes as a file of the same call.
NOTE = {"why", "risk", "source", "unit", "from", "class", "unit_from"}


def settings_doc(*words):
    return subprocess.run(
        [ROOT / "tools/settings-doc", *words], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def said():
    ended = settings_doc("--json")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture(scope="module")
def settings(said):
    return {
        (kind, name): entry
        for by_kind in said["declared"].values()
        for kind, names in by_kind.items()
        for name, entry in names.items()
    }


def test_the_page_is_current():
    ended = settings_doc("--check")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_declared_setting_says_why_its_risk_and_its_source(settings):
    missing = {
        key: [word for word in ("why", "risk", "source") if not entry["note"].get(word)]
        for key, entry in settings.items()
    }
    assert {key: words for key, words in missing.items() if words} == {}


def test_a_note_holds_text_under_known_words_only(settings):
    strange = {
        key: dict(entry["note"].items())
        for key, entry in settings.items()
        if set(entry["note"]) - NOTE or not all(isinstance(text, str) for text in entry["note"].values())
    }
    assert strange == {}


def test_no_note_is_of_a_setting_that_no_role_declares(said):
    assert said["strangers"] == []


def test_every_class_is_one_of_the_five_and_a_note_names_it_only_where_the_kind_cannot(settings):
    assert {entry["class"] for entry in settings.values()} <= set(plan.CLASSES)
    assert {kind for (kind, _name), entry in settings.items() if "class" in entry["note"]} <= {"postgres"}


def test_the_example_host_declares_every_role_and_what_variants_bring(said, settings):
    roles = {path.parent.parent.name for path in ROOT.glob("roles/*/defaults/main.yml")}
    assert set(said["declared"]) == {
        role
        for role in roles
        if f"{role}_settings:" in (ROOT / f"roles/{role}/defaults/main.yml").read_text()
    }
    assert {kind for kind, _name in settings} <= set(kinds.ORDER)
    swappiness = settings["sysctl", "vm.swappiness"]
    assert (swappiness["value"], swappiness["variants"]) == ("10", {})
    assert swappiness["note"]["from"] == "profile guide: kernel_sysctl_guide"
    busy = settings["sysctl", "net.core.busy_poll"]
    assert (busy["value"], busy["variants"]) == (None, {"kernel_profile: low_latency": "50"})


def test_each_setting_has_its_row_and_no_secret_is_in_the_page(said, settings):
    page = (ROOT / "docs/settings.md").read_text()
    for role in said["declared"]:
        assert f"\n## {role}\n" in page
    rows = [
        line for line in page.splitlines() if line.startswith(tuple(f"| {kind} `" for kind in kinds.ORDER))
    ]
    assert len(rows) == len(settings)
    assert all(len(row.replace(r"\|", "").split("|")) == 10 for row in rows)
    secret = [row for row in rows if ", secret |" in row]
    assert any("/etc/orchestrator/redis-password" in row for row in secret)
