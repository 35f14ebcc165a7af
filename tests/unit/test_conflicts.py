"""Demands that contradict each other are refused with both sides and a remedy; unwise ones are said."""

from __future__ import annotations

import pytest
from fake_host import FakeHost, as_root
from hosttune import conflicts
from hosttune.model import Refusal, Setting

MEMORY = """MemTotal: 1000000 kB
SwapTotal: 0 kB
Committed_AS: 700000 kB
HugePages_Total: 0
Hugepagesize: 2048 kB
"""
KEYS = {
    "vm/overcommit_memory": "0",
    "vm/overcommit_ratio": "50",
    "vm/overcommit_kbytes": "0",
    "vm/dirty_ratio": "20",
    "vm/dirty_bytes": "0",
    "vm/dirty_background_ratio": "10",
    "vm/dirty_background_bytes": "0",
    "kernel/pid_max": "32768",
    "kernel/threads-max": "100000",
}


@pytest.fixture
def host(tmp_path, monkeypatch):
    as_root(monkeypatch)
    found = FakeHost(tmp_path)
    for name, value in KEYS.items():
        found.put(f"/proc/sys/{name}", value + "\n")
    found.put("/proc/meminfo", MEMORY)
    return found


REFUSED = {
    "two owners, each with its reason": (
        {
            "redis": {"sysctl": {"vm.overcommit_memory": "1"}},
            "postgres": {"sysctl": {"vm.overcommit_memory": "2"}},
        },
        ("redis ('1') and postgres ('2')", "OOMScoreAdjust"),
    ),
    "strict overcommit beside Redis": (
        {
            "kernel": {"sysctl": {"vm.overcommit_memory": "2"}},
            "redis": {"file": {"/etc/redis/x.conf": {"content": "x"}}},
        },
        ("on a host with Redis (redis: file /etc/redis/x.conf)", "OOMScoreAdjust"),
    ),
    "strict overcommit with too little to give": (
        {"kernel": {"sysctl": {"vm.overcommit_memory": "2"}}},
        ("allows 500000 kB by vm.overcommit_ratio", "700000 kB are given out", "Raise vm.overcommit_ratio"),
    ),
    "ratio beside bytes": (
        {"a": {"sysctl": {"vm.dirty_ratio": "10"}}, "b": {"sysctl": {"vm.dirty_bytes": "4194304"}}},
        ("is 10 (a) beside vm.dirty_bytes = 4194304 (b)", "Ask for one of the two"),
    ),
    "background not below": (
        {"kernel": {"sysctl": {"vm.dirty_background_ratio": "20", "vm.dirty_ratio": "20"}}},
        ("not below vm.dirty_ratio = 20 (kernel)", "less than 20"),
    ),
    "more files than the kernel lets anybody have": (
        {"limits": {"limit": {"trader/hard/nofile": "2097152"}}},
        ("above fs.nr_open = 1048576", "Raise sysctl fs.nr_open"),
    ),
    "soft above hard": (
        {
            "limits": {"limit": {"trader/soft/nofile": "2000"}},
            "other": {"limit": {"trader/hard/nofile": "1000"}},
        },
        ("is 2000 (limits), above the hard limit 1000 (other)", "Lower the soft limit"),
    ),
    "soft without an end": (
        {"limits": {"limit": {"trader/soft/nproc": "unlimited", "trader/hard/nproc": "1000"}}},
        ("is unlimited", "above the hard limit 1000"),
    ),
}


@pytest.mark.parametrize(("owners", "told"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("check", [True, False])
def test_contradictions_are_refused_untouched(host, owners, told, check):
    before = host.snapshot(times=True)
    with pytest.raises(Refusal) as refusal:
        host.apply(owners, check=check)
    for words in told:
        assert words in str(refusal.value)
    assert host.snapshot(times=True) == before
    assert host.live_writes == []


def test_strict_overcommit_with_enough_to_give_is_no_contradiction(host):
    owners = {"kernel": {"sysctl": {"vm.overcommit_memory": "2", "vm.overcommit_ratio": "80"}}}
    assert not host.apply(owners).failures


def test_a_raised_nr_open_of_the_same_call_counts(host):
    owners = {
        "limits": {"limit": {"x/hard/nofile": "2097152"}},
        "kernel": {"sysctl": {"fs.nr_open": "2097152"}},
    }
    host.apply(owners, check=True)


def test_what_is_merely_unwise_is_said(host):
    asked = [
        Setting("limits", "unit", "a.service/Service/TasksMax", "40000"),
        Setting("redis", "redis", "server/tcp-backlog", "511"),
        Setting("redis", "redis", "server/maxclients", "10000"),
        Setting("limits", "unit", "redis-server.service/Service/LimitNOFILE", "10000:65536"),
    ]
    told = conflicts.check(asked, host)
    assert [one.partition(" is ")[0] for one in told] == [
        "redis server/tcp-backlog",
        "redis server/maxclients",
        "unit a.service/Service/TasksMax",
    ]
    assert "net.core.somaxconn = 128 cuts it" in told[0]
    assert "leaves room for 9968" in told[1]
    assert "above kernel.pid_max = 32768" in told[2]
