"""Waivers: all fields, an instant in UTC, and nothing after it."""

from __future__ import annotations

import datetime
import json

import pytest
from fake_host import FakeHost
from hosttune import waivers
from hosttune.model import Refusal

WAIVER = {
    "kind": "sysctl",
    "name": "net.core.*",
    "owner": "ann",
    "reason": "measured",
    "ticket": "T-1",
    "expires": "2026-12-31T23:59:59Z",
}
END = datetime.datetime(2026, 12, 31, 23, 59, 59, tzinfo=datetime.timezone.utc)


def load(tmp_path, *found):
    host = FakeHost(tmp_path)
    host.put(waivers.PATH, json.dumps({"schema": 1, "waivers": list(found)}))
    return waivers.load(host)


def test_no_file_is_no_waiver(tmp_path):
    assert waivers.load(FakeHost(tmp_path)) == []


@pytest.mark.parametrize("field", waivers.FIELDS)
def test_every_field_is_needed(tmp_path, field):
    with pytest.raises(Refusal, match=rf"has no {field}"):
        load(tmp_path, {**WAIVER, field: ""})


@pytest.mark.parametrize(
    "expires",
    ["2026-12-31", "2026-12-31T23:59:59", "2026-12-31T23:59:59+01:00", "2026-13-01T00:00:00Z", "never"],
)
def test_an_expiry_is_an_instant_in_utc(tmp_path, expires):
    with pytest.raises(Refusal, match="Write an instant in UTC"):
        load(tmp_path, {**WAIVER, "expires": expires})


def test_it_covers_until_its_instant_and_not_at_it(tmp_path):
    found = load(tmp_path, WAIVER)
    second = datetime.timedelta(seconds=1)
    assert waivers.covering(found, "sysctl", "net.core.somaxconn", END - second) == WAIVER
    assert waivers.covering(found, "sysctl", "net.core.somaxconn", END) is None


def test_it_covers_its_kind_and_names_alone(tmp_path):
    found = load(tmp_path, WAIVER)
    now = END - datetime.timedelta(days=1)
    assert waivers.covering(found, "sysfs", "net.core.somaxconn", now) is None
    assert waivers.covering(found, "sysctl", "vm.swappiness", now) is None


def test_an_expired_one_does_not_hide_one_that_holds(tmp_path):
    old = {**WAIVER, "expires": "2020-01-01T00:00:00Z"}
    found = load(tmp_path, old, WAIVER)
    assert waivers.covering(found, "sysctl", "net.core.a", END - datetime.timedelta(days=1)) == WAIVER
