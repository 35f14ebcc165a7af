"""The lines at the end of a run, from results as host_settings returns them."""

from __future__ import annotations

from hosttune import summary, verdicts


def one(owner, verdict, kind="sysctl", name="a.b", **more):
    return {"owner": owner, "kind": kind, "name": name, "verdict": verdict, **more}


def test_every_verdict_has_a_column():
    assert sorted(summary.VERDICTS) == sorted(verdicts.VERDICTS)


def test_hosts_that_look_alike_share_their_lines_and_empty_columns_are_left_out():
    same = {"settings": [one("kernel", "in_sync"), one("kernel", "drift"), one("redis", "in_sync")]}
    other = {"settings": [one("kernel", "in_sync")]}
    assert summary.verdict_table({"h2": same, "h1": same, "h3": other, "h4": {"msg": "refused"}}) == [
        "host    role    settings  in_sync  drift",
        "h1, h2  kernel         2        1      1",
        "        redis          1        1",
        "h3      kernel         1        1",
    ]
    assert summary.verdict_table({"h1": {}}) == []


def test_a_line_of_several_hosts_is_said_once_with_its_hosts():
    assert summary.alike({"h1": ["a"]}) == ["a"]
    everybody = {f"h{number}": ["a"] for number in range(5)}
    assert summary.alike({**everybody, "h5": ["a", "b"]}) == ["a  (all hosts)", "b  (h5)"]
    assert summary.alike({**everybody, "x": []}) == ["a  (h0 and 4 more)"]


def test_services_asked_to_run_are_up_or_not():
    services = [
        one("redis", "in_sync", "service", "r.service", desired="enabled active", live="active"),
        one("app", "drift", "service", "a.service", desired="enabled active", live="inactive"),
        one("app", "in_sync", "service", "b.service", desired="enabled", live="inactive"),
        one("time", "unsupported", "service", "c.service", desired="enabled active", live="inactive"),
    ]
    assert summary.service_lines({"settings": services}) == ["up: r.service; NOT up: a.service"]
    assert summary.service_lines({"settings": services[2:]}) == []


def test_a_run_says_what_it_changed_and_gave_back():
    changed = one(
        "kernel",
        "in_sync",
        changed=True,
        needs="none",
        disruption="silent",
        desired="10",
        live="10",
        before={"live": "60", "persisted": None, "verdict": "drift"},
    )
    undone = {"owner": "old", "kind": "sysctl", "name": "c.d", "live": None, "persisted": None}
    undone["from"] = {"live": "5", "persisted": None}
    assert summary.change_lines({"settings": [changed, one("kernel", "in_sync")], "undone": [undone]}) == [
        "kernel: sysctl a.b: 60 -> 10",
        "old: sysctl c.d: 5 -> not set (given back)",
    ]
