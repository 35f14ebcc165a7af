"""Planes to one word: the first that fits, in the order of the glossary."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hosttune.model import Definition, Planes
from hosttune.verdicts import BAD, GOOD, PENDING, VERDICTS, judge

OURS = "/etc/sysctl.d/60-hosttune-kernel.conf"


def said(planes, clamped_to=None, managed=OURS):
    return judge("10", planes, lambda wanted, found: wanted == found, managed, clamped_to)


def written(value, file=OURS, line=1):
    return [Definition(value, file, line)]


@pytest.mark.parametrize(
    ("planes", "verdict"),
    [
        (Planes(live="10", definitions=written("10")), "in_sync"),
        (Planes(live="60", definitions=written("60")), "drift"),
        (Planes(live="60"), "drift"),
        (Planes(), "drift"),
        (Planes(live="60", definitions=written("10")), "live_drift"),
        (Planes(live=None, definitions=written("10")), "live_drift"),
        (Planes(live="10", definitions=written("60")), "boot_bomb"),
        (Planes(live="10"), "boot_bomb"),
        (Planes(live="60", definitions=written("10"), needs="reboot"), "pending_reboot"),
        (Planes(live="60", definitions=written("10"), needs="restart"), "pending_restart"),
        (Planes(live="60", definitions=written("60"), needs="reboot"), "drift"),
        (Planes(live="10", definitions=written("10"), process="60"), "pending_restart"),
        (Planes(live="10", definitions=written("10", "/etc/sysctl.d/99.conf")), "shadowed"),
        (Planes(live="10", definitions=written("10"), broken="unreadable"), "boot_bomb"),
        (Planes(live="60", definitions=written("10"), broken="unreadable"), "drift"),
        (Planes(live="10", definitions=written("10"), partly=written("60", "of one user")), "shadowed"),
        (Planes(live="10", definitions=written("10"), partly=written("10", "of one user")), "in_sync"),
        (Planes(has_live=False, definitions=written("10")), "in_sync"),
        (Planes(has_live=False, definitions=written("60")), "drift"),
        (Planes(has_live=False), "drift"),
        (Planes(live="10", has_persisted=False), "in_sync"),
        (Planes(live="60", has_persisted=False), "live_drift"),
        (Planes(live="10", definitions=written("10"), unknown="EIO"), "unknown"),
        (Planes(live="10", definitions=written("10"), unsupported="no such knob"), "unsupported"),
        (Planes(unknown="EIO", unsupported="no such knob"), "unknown"),
    ],
)
def test_the_first_that_fits(planes, verdict):
    found, reason = said(planes)
    assert found == verdict
    assert found == "in_sync" or reason


def test_clamped_only_where_the_kernel_took_just_that_value():
    planes = Planes(live="12", definitions=written("10"))
    assert said(planes, clamped_to="12") == ("clamped", "the kernel took 12 instead of 10")
    assert said(planes, clamped_to="13")[0] == "live_drift"
    assert said(Planes(live="12", definitions=written("60")), clamped_to="12")[0] == "boot_bomb"


def test_the_last_definition_wins_and_is_named():
    both = [*written("10"), *written("60", "/etc/sysctl.d/99.conf", 7)]
    assert said(Planes(live="10", definitions=both))[1].startswith(
        "live is right, but /etc/sysctl.d/99.conf:7 says 60"
    )


def test_a_file_that_is_one_value_as_a_whole_has_no_line():
    assert said(Planes(has_live=False, definitions=written("60", "/etc/a", 0)))[1] == "/etc/a says 60"


def test_a_kind_without_a_file_of_ours_is_never_shadowed():
    assert said(Planes(live="10", definitions=written("10", "/elsewhere")), managed=None)[0] == "in_sync"


def test_every_verdict_is_good_bad_pending_or_waived():
    assert [*sorted(GOOD | BAD | PENDING), "waived"] == [*sorted(set(VERDICTS) - {"waived"}), "waived"]
    assert not GOOD & BAD
    assert not PENDING & (GOOD | BAD)


@pytest.mark.parametrize(
    "planes",
    [
        Planes(live="10", definitions=written("10")),
        Planes(live="60", definitions=written("60")),
        Planes(live="60", definitions=written("10"), needs="reboot"),
        Planes(live="10", definitions=written("60")),
        Planes(unknown="no answer"),
        Planes(unsupported="no such key"),
        Planes(live="10", definitions=written("10"), process="60"),
        Planes(live="10", definitions=written("10", "/etc/sysctl.d/99.conf")),
    ],
)
def test_a_note_is_said_beside_every_verdict_and_changes_none(planes):
    verdict, reason = said(planes)
    noted = said(replace(planes, note="other kernels' entries lack it"))
    assert noted == (verdict, "; ".join(one for one in (reason, "other kernels' entries lack it") if one))
