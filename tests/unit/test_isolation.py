"""What isolates CPUs is refused where it would harm: rules against an oracle, on every machine."""

import gzip
import json

import pytest
from hosttune import conflicts, cpulist, cpuplan, isolation
from hosttune.cpuplan import Machine
from hosttune.model import Refusal, Setting
from hosttune.system import System
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machines import ALL
from oracle_trees import cases
from test_topology import build

BUILT = "CONFIG_CPU_ISOLATION=y\nCONFIG_NO_HZ_FULL=y\nCONFIG_RCU_NOCB_CPU=y\n"
TSC = "flags : fpu constant_tsc nonstop_tsc"
CLOCK = "/sys/devices/system/clocksource/clocksource0"


def tree(root, files):
    for path, content in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)


def cpu(number, node, siblings, online=True):
    return {
        **{"id": number, "node": node, "core": number, "package": node, "die": 0, "l3_group": None},
        **{"siblings": siblings if online else None, "online": online},
    }


#: Two nodes with two cores of two threads each; CPU 8 is offline.
SMALL = {
    **{"arch": "x86_64", "model": "small", "kernel": "6.1.0", "numa_known": True, "mem_total_kib": 4 << 20},
    **{"l3": [], "pci": [], "net": [], "block": []},
    "cpus": [
        *(cpu(number, number // 4, f"{number // 2 * 2}-{number // 2 * 2 + 1}") for number in range(8)),
        cpu(8, 1, None, online=False),
    ],
    "nodes": [
        {"id": 0, "cpus": "0-3", "mem_kib": 2 << 20, "distances": [10, 20]},
        {"id": 1, "cpus": "4-7", "mem_kib": 2 << 20, "distances": [20, 10]},
    ],
}


@pytest.fixture
def host(tmp_path):
    build(tmp_path, SMALL)
    tree(
        tmp_path,
        {
            "/proc/sys/kernel/osrelease": "6.1.0-fake\n",
            "/boot/config-6.1.0-fake": f"# Linux\n{BUILT}",
            "/proc/cpuinfo": f"processor : 0\n{TSC}\n",
            f"{CLOCK}/current_clocksource": "tsc\n",
            f"{CLOCK}/available_clocksource": "tsc hpet acpi_pm\n",
            "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory\n",
            "/sys/devices/system/cpu/cpu0/cpuidle/state0/name": "POLL\n",
        },
    )
    return System(str(tmp_path))


def boot(name, value, owner="isolation"):
    return Setting(owner, "boot", name, value)


def unit(name, value, owner="numa"):
    return Setting(owner, "unit", name, value)


def trader(cpus, directive="CPUAffinity"):
    return unit(f"trader.service/Service/{directive}", cpus)


SLICE = "isolated.slice/Slice/AllowedCPUs"


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ([boot("isolcpus", "domain,2-9"), trader("2-9")], "CPU 8-9 is not online"),
        ([boot("isolcpus", "domain"), trader("2")], "names no CPU"),
        ([boot("isolcpus", "2-x"), trader("2")], "no CPU list"),
        ([boot("nohz_full", "0-3"), trader("0-3")], "isolates CPU 0, the boot CPU"),
        ([boot("isolcpus", "managed_irq,domain,3"), trader("3")], "isolates CPU 3 and not 2"),
        ([boot("isolcpus", "4-7"), trader("4-7")], "leaves node 1 no CPU"),
        ([boot("isolcpus", "2-3")], "isolates CPU 2-3, and no unit of this call runs there"),
        ([boot("isolcpus", "2-3,6-7"), trader("2-3")], "isolates CPU 6-7, and no unit"),
        ([boot("isolcpus", "2-3"), trader("2"), unit("b.service/Service/AllowedCPUs", "3")], "b.service and"),
        ([boot("irqaffinity", "8")], "none of CPU 8 is online"),
        ([boot("irqaffinity", "0-2"), boot("isolcpus", "2-3"), trader("2-3")], "interrupts to CPU 2, which"),
        (
            [boot("isolcpus", "2-3"), trader("2-3"), Setting("x", "manager", "CPUAffinity", "0-2")],
            "run on CPU 2, which is isolated",
        ),
        (
            [boot("isolcpus", "2-3"), unit(SLICE, "2-3"), trader("2-3")],
            "isolates CPU 2-3, as boot isolcpus (isolation) does",
        ),
        ([unit(SLICE, "3"), trader("3")], "the other thread of its core"),
    ],
)
def test_refuses(host, wanted, says):
    with pytest.raises(Refusal) as caught:
        isolation.check(wanted, host)
    assert says in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "wanted",
    [
        [],
        [boot("isolcpus", "managed_irq,domain,2-3"), boot("nohz_full", "2-3"), trader("2-3")],
        [boot("isolcpus", "2-3"), boot("rcu_nocbs", "true"), trader("2")],
        [unit(SLICE, "2-3"), boot("nohz_full", "2-3"), trader("2", "AllowedCPUs"), trader("0-3")],
        [boot("isolcpus", "2-3,6-7"), trader("2,6"), boot("irqaffinity", "0-1")],
        [boot("isolcpus", "2-3"), trader("2-3"), unit("b.service/Service/CPUAffinity", "numa")],
        [boot("tsc", "reliable"), boot("clocksource", "tsc")],
    ],
)
def test_takes(host, wanted):
    assert isolation.check(wanted, host) == []
    assert conflicts.check(wanted, host) == []


def test_a_container_isolates_nothing_and_refuses_nothing(host, tmp_path):
    tree(tmp_path, {"/run/systemd/container": "lxc"})
    assert isolation.check([boot("isolcpus", "0-99"), boot("tsc", "reliable")], host) == []


def test_the_kernel_has_to_be_built_for_it(host, tmp_path):
    tree(tmp_path, {"/boot/config-6.1.0-fake": "CONFIG_CPU_ISOLATION=y\n# CONFIG_NO_HZ_FULL is not set\n"})
    isolation.check([boot("isolcpus", "2-3"), trader("2-3")], host)
    with pytest.raises(Refusal, match="built without CONFIG_NO_HZ_FULL"):
        isolation.check([boot("nohz_full", "2-3"), trader("2-3")], host)
    (tmp_path / "boot/config-6.1.0-fake").unlink()
    (warning,) = isolation.check([boot("nohz_full", "2-3"), trader("2-3")], host)
    assert "neither /boot/config-RELEASE nor /proc/config.gz" in warning
    with gzip.open(tmp_path / "proc/config.gz", "wt") as stream:
        stream.write(BUILT)
    assert isolation.check([boot("nohz_full", "2-3"), trader("2-3")], host) == []


def test_a_partition_takes_cgroup_v2(host, tmp_path):
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("cpu io memory\n")
    with pytest.raises(Refusal, match="no cpuset controller of cgroup v2"):
        isolation.check([unit(SLICE, "2-3"), trader("2-3")], host)


@pytest.mark.parametrize("missing", ["constant_tsc", "nonstop_tsc"])
@pytest.mark.parametrize(
    "wanted", [boot("tsc", "reliable"), boot("tsc", "nowatchdog"), boot("clocksource", "tsc")]
)
def test_a_clock_that_stops_is_not_trusted(host, tmp_path, missing, wanted):
    tree(tmp_path, {"/proc/cpuinfo": TSC.replace(missing, "")})
    with pytest.raises(Refusal, match=f"this CPU lacks {missing}"):
        isolation.check([wanted], host)


def test_a_clock_that_the_kernel_gave_up_is_not_trusted(host, tmp_path):
    tree(tmp_path, {f"{CLOCK}/current_clocksource": "hpet\n", f"{CLOCK}/available_clocksource": "hpet\n"})
    assert isolation.check([boot("tsc", "unstable")], host) == []
    with pytest.raises(Refusal, match="current clock source is hpet"):
        isolation.check([boot("tsc", "reliable")], host)
    with pytest.raises(Refusal, match="available clock source is hpet"):
        isolation.check([boot("clocksource", "tsc")], host)


def test_polling_is_refused_where_others_pay_for_it(host, tmp_path):
    (warning,) = isolation.check([boot("idle", "poll")], host)
    assert "runs hot" in warning
    tree(tmp_path, {"/sys/devices/system/cpu/smt/active": "1\n"})
    with pytest.raises(Refusal, match="takes half its core"):
        isolation.check([boot("idle", "poll")], host)
    tree(tmp_path, {"/proc/cpuinfo": f"{TSC} hypervisor\n"})
    with pytest.raises(Refusal, match="virtual machine"):
        isolation.check([boot("idle", "poll")], host)
    assert isolation.check([boot("idle", "nomwait")], host) == []


def test_a_c_state_of_zero_is_not_what_it_looks_like(host, tmp_path):
    assert isolation.check([boot("intel_idle.max_cstate", "1")], host) == []
    (warning,) = isolation.check([boot("intel_idle.max_cstate", "0")], host)
    assert "hands over to acpi_idle" in warning
    (warning,) = isolation.check([boot("processor.max_cstate", "0")], host)
    assert "means 1" in warning
    (tmp_path / "sys/devices/system/cpu/cpu0/cpuidle/state0/name").unlink()
    (tmp_path / "sys/devices/system/cpu/cpu0/cpuidle/state0").rmdir()
    (tmp_path / "sys/devices/system/cpu/cpu0/cpuidle").rmdir()
    (warning,) = isolation.check([boot("processor.max_cstate", "1")], host)
    assert "does nothing" in warning


def test_a_latency_of_zero_means_no_limit(host):
    name = "devices/system/cpu/cpu2/power/pm_qos_resume_latency_us"
    (warning,) = isolation.check([Setting("power", "sysfs", name, "0")], host)
    assert "n/a" in warning
    assert isolation.check([Setting("power", "sysfs", name, "n/a")], host) == []


# every machine


def judge(machine, isolated):
    """Whether a set may be isolated, from the topology alone."""
    online = {one["id"] for one in machine["cpus"] if one["online"]}
    if not isolated or not isolated <= online or min(online) in isolated:
        return False
    for one in machine["cpus"]:
        if one["online"] and one["siblings"]:
            core = cpulist.parse(one["siblings"]) & online
            if core & isolated not in (set(), core):
                return False
    nodes = [cpulist.parse(node["cpus"] or "") & online for node in machine["nodes"]]
    nodes = [cpus for cpus in nodes if cpus]
    return all(cpus - isolated for cpus in nodes) and len(online - isolated) >= max(2, len(nodes))


@pytest.mark.parametrize("path", ALL)
def test_every_machine_takes_its_plan_and_refuses_what_would_harm_it(path, tmp_path):
    machine = json.loads(path.read_text())
    build(tmp_path, machine)
    tree(tmp_path, {"/proc/sys/kernel/osrelease": "6.1.0-fake\n", "/boot/config-6.1.0-fake": BUILT})
    system = System(str(tmp_path))
    system.container = ""  # of the recorded container: what its machine would take
    online = sorted(Machine(machine).online)
    try:
        planned = cpulist.parse(cpuplan.plan(machine, {"policy": "latency"})["isolated"]["cpus"])
    except Refusal:
        planned = set()
    if planned:
        assert judge(machine, planned)
        wanted = [boot("isolcpus", f"domain,{cpulist.format(planned)}"), trader(cpulist.format(planned))]
        assert isolation.check(wanted, system) == []

    @settings(
        max_examples=cases(25), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(st.sets(st.sampled_from(online)), st.booleans())
    def tried(cpus, whole):
        if whole:  # complete cores, so that not every set fails for the same reason
            cores = [
                cpulist.parse(one["siblings"] or str(one["id"])) for one in machine["cpus"] if one["online"]
            ]
            cpus = set().union(*(core for core in cores if min(core) in cpus)) & set(online)
        if not cpus:
            return
        text = cpulist.format(cpus)
        try:
            isolation.check([boot("nohz_full", text), trader(text)], system)
        except Refusal as refusal:
            assert not judge(machine, cpus), refusal
        else:
            assert judge(machine, cpus)

    tried()
