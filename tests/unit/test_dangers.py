"""What would harm the host is refused with what is missing, untouched; undo never is."""

from __future__ import annotations

import datetime

import pytest
from fake_host import FullHost, as_root
from hosttune import dangers, isolation, sizing
from hosttune.model import Refusal, Setting
from hypothesis import given
from hypothesis import strategies as st

NODE = "/sys/devices/system/node/node"
GIB = 1 << 30
PAST, FUTURE = "2026-01-31", "2999-12-31"


@pytest.fixture
def host(tmp_path, monkeypatch):
    as_root(monkeypatch)
    # A host of files alone has no CPUs: which ones may be isolated is asked in test_isolation.py.
    monkeypatch.setattr(isolation, "check", lambda _settings, _system: [])
    found = FullHost(tmp_path)
    for name, value in {
        "vm/zone_reclaim_mode": "0",
        "vm/min_free_kbytes": "67584",
        "kernel/sched_rt_runtime_us": "950000",
        "kernel/randomize_va_space": "2",
    }.items():
        found.put(f"/proc/sys/{name}", value + "\n")
    found.put("/proc/meminfo", "MemTotal: 10000000 kB\n")
    found.put("/sys/devices/system/cpu/isolated", "\n")
    for node, kib in ((0, 4 << 20), (1, 4 << 20), (2, 0)):
        found.put(f"{NODE}{node}/meminfo", f"Node {node} MemTotal:       {kib} kB\n")
    found.put(f"{NODE}1/hugepages/hugepages-2048kB/nr_hugepages", "1536\n")
    found.put(f"{NODE}1/hugepages/hugepages-1048576kB/nr_hugepages", "0\n")
    return found


def unit(**directives: str) -> dict[str, dict[str, dict[str, str]]]:
    return {"app": {"unit": {f"app.service/Service/{name}": value for name, value in directives.items()}}}


def manager(**directives: str) -> dict[str, dict[str, dict[str, str]]]:
    return {"watchdog": {"manager": directives}}


def sysctl(name: str, value: str) -> dict[str, dict[str, dict[str, str]]]:
    return {"kernel": {"sysctl": {name: value}}}


RT = sysctl("kernel.sched_rt_runtime_us", "-1")
ISOLATED = {"boot": {"boot": {"isolcpus": "domain,2-3"}}}
REFUSED = {
    "never killed and without a bound": (
        unit(OOMScoreAdjust="-1000"),
        ("is -1000 (app), and app.service has no MemoryMax", "or for -999"),
    ),
    "never killed and bound by infinity": (
        unit(OOMScoreAdjust="-1000", MemoryMax="infinity"),
        ("app.service has no MemoryMax",),
    ),
    "more than a node has": (
        unit(NUMAPolicy="bind", NUMAMask="0", MemoryMax="3500M"),
        ("MemoryMax 3500 MiB to node 0, which has 4096 MiB beside huge pages", "80 %", "Ask for preferred"),
    ),
    "more than huge pages leave of a node": (
        unit(NUMAPolicy="bind", NUMAMask="1", MemoryMax="1G"),
        ("to node 1, which has 1024 MiB beside huge pages",),
    ),
    "a node without memory": (
        unit(NUMAPolicy="bind", NUMAMask="2"),
        ("binds app.service to node 2, which has no memory", "Ask for preferred"),
    ),
    "zone reclaim beside a database": (
        {**sysctl("vm.zone_reclaim_mode", "1"), "redis": {"redis": {"server/maxclients": "100"}}},
        ("is 1 (kernel) on a host with redis (redis)", "Ask for 0"),
    ),
    "too little kept free": (
        sysctl("vm.min_free_kbytes", "1024"),
        ("is 1024 (kernel)", "more than 1024 and at most 300000, 3 % of memory"),
    ),
    "too much kept free": (sysctl("vm/min_free_kbytes", "300001"), ("at most 300000",)),
    "no throttling and no CPU to spare": (RT, ("is -1 (kernel), and no CPU is isolated", "ask for 950000")),
    "no throttling and no watchdog": (
        {**RT, **ISOLATED, **manager(RuntimeWatchdogSec="off")},
        ("no hardware watchdog is armed", "role watchdog"),
    ),
    "a warning after the reset": (
        manager(RuntimeWatchdogSec="30s", RuntimeWatchdogPreSec="30s"),
        ("is 30s (watchdog) beside RuntimeWatchdogSec = 30s (watchdog)", "Ask for less"),
    ),
    "a warning without a reset": (
        manager(RuntimeWatchdogPreSec="10"),
        ("is 10 (watchdog) beside no RuntimeWatchdogSec",),
    ),
    "no random places": (
        sysctl("kernel.randomize_va_space", "0"),
        (
            "'0' (kernel) takes away the random places of programs, and nobody answers for that",
            "settings_risk_acceptance: {'sysctl kernel.randomize_va_space': {ticket: ...",
        ),
    ),
    **{
        f"{name}={value}": (
            {"boot": {"boot": {name: value}}},
            (f"'{value if value is not True else 'true'}' (boot) takes away", "nobody answers"),
        )
        for name, value in (
            ("mitigations", "off"),
            ("mitigations", "auto,off"),
            ("audit", "0"),
            ("init_on_alloc", "0"),
            ("nokaslr", True),
            ("pti", "off"),
        )
    },
}


@pytest.mark.parametrize(("owners", "told"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("check", [True, False])
def test_dangers_are_refused_untouched(host, owners, told, check):
    before = host.snapshot(times=True)
    with pytest.raises(Refusal) as refusal:
        host.apply(owners, check=check)
    for words in told:
        assert words in str(refusal.value)
    assert host.snapshot(times=True) == before


def settings(owners):
    return [
        Setting(owner, kind, name, str(value))
        for owner, kinds in owners.items()
        for kind, names in kinds.items()
        for name, value in names.items()
    ]


def warnings(host, owners):
    asked = settings(owners)
    return dangers.check(asked, asked, host, datetime.datetime(2026, 11, 24))


ALLOWED = {
    "killed last but killed": unit(OOMScoreAdjust="-999"),
    "never killed and bound": unit(OOMScoreAdjust="-1000", MemoryMax="2G"),
    "fits its node": unit(NUMAPolicy="bind", NUMAMask="0", MemoryMax="3276M"),
    "preferred needs no room": unit(NUMAPolicy="preferred", NUMAMask="1", MemoryMax="3G"),
    "zone reclaim for nobody": sysctl("vm.zone_reclaim_mode", "1"),
    "zone reclaim off": {**sysctl("vm.zone_reclaim_mode", "0"), "redis": {"redis": {"server/port": "1"}}},
    "enough kept free": sysctl("vm.min_free_kbytes", "300000"),
    "throttled": sysctl("kernel.sched_rt_runtime_us", "950000"),
    "an early warning": manager(RuntimeWatchdogSec="1min", RuntimeWatchdogPreSec="10s"),
    "random places": sysctl("kernel.randomize_va_space", "2"),
    "mitigations on": {"boot": {"boot": {"mitigations": "auto,nosmt"}}},
    "memory cleaned": {"boot": {"boot": {"init_on_alloc": "1", "audit": "1"}}},
}


@pytest.mark.parametrize("owners", ALLOWED.values(), ids=ALLOWED)
def test_what_harms_nobody_is_not_even_said(host, owners):
    assert warnings(host, owners) == []


def test_a_limit_that_stands_in_the_unit_counts_where_none_is_asked(host):
    host.put("/etc/systemd/system/app.service.d/10-site.conf", "[Service]\nMemoryMax=2G\n")
    assert warnings(host, unit(OOMScoreAdjust="-1000")) == []


def test_no_throttling_with_all_it_needs_is_said_without_stalld_only(host):
    armed = {**RT, **ISOLATED, **manager(RuntimeWatchdogSec="30s")}
    assert ["without stalld" in line for line in warnings(host, armed)] == [True]
    assert warnings(host, {**armed, "rt": {"service": {"stalld.service": "enabled active"}}}) == []
    host.put("/sys/devices/system/cpu/isolated", "2-3\n")
    host.put("/sys/class/watchdog/watchdog0/state", "active\n")
    assert len(warnings(host, RT)) == 1


def test_what_is_merely_unwise_is_said(host):
    panic = manager(RuntimeWatchdogSec="30s", RuntimeWatchdogPreGovernor="panic")
    assert "no crash kernel is loaded" in warnings(host, panic)[0]
    host.put("/sys/kernel/kexec_crash_loaded", "1\n")
    assert warnings(host, panic) == []
    disks = {"io": {"block": {"ssd/read_ahead_kb": "4096"}}}
    assert warnings(host, disks) == []
    told = warnings(host, {**disks, "postgres": {"postgres": {"15/main/jit": "off"}}})
    assert "random reads throw most of it away. Ask for 512 or less" in told[0]


def test_a_container_is_not_told_of_the_machines_kernel(host):
    host.put("/run/systemd/container", "systemd-nspawn\n")
    for owners in (RT, sysctl("vm.min_free_kbytes", "1")):
        assert warnings(host, owners) == []


# who answers


def risky(host, until, **more):
    note = {"accepted": dangers.accepted("x", {"ticket": "R-1", "owner": "head of desk", "expires": until})}
    notes = {"sysctl": {"kernel.randomize_va_space": note}}
    return host.apply(sysctl("kernel.randomize_va_space", "1"), notes=notes, **more)


def test_somebody_answers_until_a_day_and_the_host_knows_who(host):
    assert not risky(host, FUTURE).failures
    assert "until 2999-12-31 by head of desk (R-1)" in host.text("/etc/hosttune/manifest.json")
    with pytest.raises(Refusal, match="was accepted until 2026-01-31 by head of desk"):
        risky(host, PAST)


def test_the_last_day_still_counts(host):
    note = {"accepted": f"until {PAST} by x (R-1)"}
    asked = [Setting("kernel", "sysctl", "kernel.randomize_va_space", "0", None, note)]
    assert dangers.check(asked, asked, host, datetime.datetime(2026, 1, 31, 23, 59)) == []
    with pytest.raises(Refusal):
        dangers.check(asked, asked, host, datetime.datetime(2026, 2, 1))


def test_what_ran_out_keeps_nobody_from_undoing_it_or_from_another_role(host, monkeypatch):
    risky(host, FUTURE)
    text = host.text("/etc/hosttune/manifest.json").replace(FUTURE, PAST)
    host.put("/etc/hosttune/manifest.json", text)
    assert not host.apply({"other": {"sysctl": {"vm.swappiness": "1"}}}, partial=True).failures
    assert not host.apply({"kernel": {}}, present=False).failures
    assert host.text("/proc/sys/kernel/randomize_va_space") == "2\n"


@pytest.mark.parametrize(
    ("who", "said"),
    [
        ("R-1", "is no dict"),
        ({"owner": "x", "expires": FUTURE}, "has no ticket"),
        ({"ticket": "R-1", "owner": " ", "expires": FUTURE}, "has no owner"),
        ({"ticket": "R-1", "owner": "x"}, "expires at ''"),
        ({"ticket": "R-1", "owner": "x", "expires": "next year"}, "expires at 'next year'"),
        ({"ticket": "R-1\n", "owner": "x", "expires": FUTURE}, "has no ticket"),
    ],
)
def test_who_answers_says_all_of_it(who, said):
    with pytest.raises(Refusal) as refusal:
        dangers.accepted("boot mitigations", who)
    assert str(refusal.value).startswith(f"settings_risk_acceptance of boot mitigations: {said}")


# a plan's memory


def node(number, gib, pages=0):
    return {"id": number, "mem_kib": gib << 20, "hugepages": {"2048kB": pages, "1048576kB": 0}}


def test_services_that_share_a_node_share_its_memory():
    plan = {"partitioned": True, "postgres": {"node": 0}, "redis": {"node": 0}, "orchestrator": {"node": 1}}
    topology = {"nodes": [node(0, 10), node(1, 10, 4096)]}
    assert sizing.numa_bind(topology, plan, {"postgres": 5 * GIB, "redis": 2 * GIB}) == []
    said = sizing.numa_bind(topology, plan, {"postgres": 5 * GIB, "redis": 4 * GIB, "orchestrator": 2 * GIB})
    assert said == [
        "node 0 takes 8 GiB of bound memory (80 % of what is beside its huge pages), and the budgets there "
        "are postgres 5 GiB, redis 4 GiB",
        "node 1 takes 1.6 GiB of bound memory (80 % of what is beside its huge pages), and the budgets there "
        "are orchestrator 2 GiB",
    ]
    assert sizing.numa_bind(topology, {**plan, "partitioned": False}, {"postgres": 50 * GIB}) == []


@given(st.lists(st.integers(0, 64), min_size=1, max_size=4), st.lists(st.integers(0, 64 * GIB), max_size=6))
def test_every_node_is_judged_by_its_own_sum(sizes, budgets):
    plan = {"partitioned": True}
    plan.update({f"s{index}": {"node": index % len(sizes)} for index in range(len(budgets))})
    told = sizing.numa_bind(
        {"nodes": [node(number, size) for number, size in enumerate(sizes)]},
        plan,
        {f"s{index}": budget for index, budget in enumerate(budgets)},
    )
    full = [
        number
        for number, size in enumerate(sizes)
        if budgets[number :: len(sizes)] and sum(budgets[number :: len(sizes)]) * 100 >= size * GIB * 80
    ]
    assert [int(line.split()[1]) for line in told] == full
