"""What the roles hugepages, isolation and power ask of a machine is what the engine takes of it.

The roles' own defaults are resolved by Ansible, for our topologies and the recorded ones.
"""

import importlib.util
import json
import struct
import subprocess

import pytest
from hosttune import conflicts, cpulist, cpuplan, kinds, sizing, topology
from hosttune.model import Refusal, Setting
from hosttune.system import System
from hypothesis import given
from hypothesis import strategies as st
from machines import ALL, REPO
from test_topology import build

spec = importlib.util.spec_from_file_location("settings_doc", REPO / "tools/settings_doc.py")
settings_doc = importlib.util.module_from_spec(spec)
spec.loader.exec_module(settings_doc)

ROLES = ["kernel", "numa", "hugepages", "isolation", "power", "postgres", "redis", "orchestrator"]
LOW_LATENCY = {
    "numa_request": {"policy": "latency"},
    "hugepages_profile": "low_latency",
    "isolation_profile": "low_latency",
    "power_profile": "low_latency",
}


@pytest.fixture(scope="module")
def loader():
    settings_doc.init_plugin_loader()
    return settings_doc.DataLoader()


def resolve(loader, machine, **variables):
    """role -> kind -> name -> {value, note} of the roles that place things on a machine (host_topology)."""
    online = [cpu["id"] for cpu in machine["cpus"] if cpu["online"]]
    fact = {"usable_cpus": cpulist.format(online), "fingerprint": "x", "container": False, **machine}
    fact.setdefault("memory_limit_bytes", machine["mem_total_kib"] * 1024)
    everything = {
        **settings_doc.role_variables(loader),
        "ansible_facts": {"host_topology": fact},
        "inventory_hostname": "example",
        "ansible_run_tags": ["all"],
        "ansible_skip_tags": [],
        "settings_roles": ROLES,
        **variables,
    }
    templar = settings_doc.Templar(loader, variables=everything)
    found = {}
    for role in ("numa", "hugepages", "isolation", "power"):
        declared, notes = (templar.template(everything[f"{role}_{what}"]) for what in ("settings", "notes"))
        found[role] = {
            kind: {
                name: {"value": value, "note": dict(notes.get(kind, {}).get(name, {}))}
                for name, value in names.items()
            }
            for kind, names in declared.items()
        }
    found["postgres"] = templar.template(everything["postgres_wanted"])
    return found


def settings_of(declared, *roles):
    return [
        Setting(role, kind, name, one["value"], notes=one["note"])
        for role in roles
        for kind, names in declared[role].items()
        for name, one in names.items()
    ]


def with_memory(machine):
    """A recorded machine; some records tell nothing of memory, and get 16 GiB a node."""
    if not machine["mem_total_kib"]:
        for node in machine["nodes"]:
            node["mem_kib"] = node["mem_kib"] or 16 << 20
        machine["mem_total_kib"] = sum(node["mem_kib"] for node in machine["nodes"]) or 16 << 20
    return machine


def load(name):
    return json.loads((REPO / f"tests/topologies/{name}.json").read_text())


def test_by_default_nothing_is_asked_for(loader):
    declared = resolve(loader, load("epyc-192-nps4"))
    for role in ("hugepages", "isolation", "power"):
        assert not any(declared[role].values()), role


@pytest.mark.parametrize("path", ALL)
def test_low_latency_is_what_the_engine_takes(loader, path, tmp_path):
    machine = with_memory(json.loads(path.read_text()))
    try:
        plan = cpuplan.plan(machine, {"policy": "latency"})
    except Refusal as refusal:
        with pytest.raises(Exception, match=r"cpu_plan|CPUs") as caught:
            resolve(loader, machine, **LOW_LATENCY)
        assert refusal.message[:20] in str(caught.value)
        return
    declared = resolve(loader, machine, **LOW_LATENCY)
    boot = {name: one["value"] for name, one in declared["isolation"]["boot"].items()}
    assert cpulist.parse(boot["nohz_full"]) == cpulist.parse(plan["isolated"]["cpus"])
    assert boot["isolcpus"] == f"managed_irq,domain,{plan['isolated']['cpus']}"
    assert boot["irqaffinity"] == plan["housekeeping"]["cpus"]
    assert declared["isolation"]["manager"]["CPUAffinity"]["value"] == plan["housekeeping"]["cpus"]
    for one in declared["isolation"]["sysfs"].values():
        assert cpulist.from_mask(one["value"]) == cpulist.parse(plan["housekeeping"]["cpus"])
    for role in ("hugepages", "isolation", "power"):
        for kind, names in declared[role].items():
            for name, one in names.items():
                assert {"why", "risk", "source"} <= set(one["note"]), (role, kind, name)
    # The engine, on that machine.
    build(tmp_path, machine)
    (tmp_path / "boot").mkdir()
    (tmp_path / "proc/sys/kernel").mkdir(parents=True, exist_ok=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.1.0-fake\n")
    built = "CONFIG_CPU_ISOLATION=y\nCONFIG_NO_HZ_FULL=y\nCONFIG_RCU_NOCB_CPU=y\n"
    (tmp_path / "boot/config-6.1.0-fake").write_text(built)
    system = System(str(tmp_path))
    system.container = ""
    wanted = settings_of(declared, "numa", "hugepages", "isolation", "power")
    assert conflicts.check(wanted, system) == []
    kinds.load("boot", system).check([one for one in wanted if one.kind == "boot"], {})
    # What is reserved fits each node, and is what the formula says.
    pools = {name: int(one["value"]) for name, one in declared["hugepages"]["hugepages"].items()}
    values = declared["postgres"]
    assert sum(pools.values()) == sizing.huge_pages(values["shared_buffers"], int(values["max_connections"]))
    memory = {node["id"]: node["mem_kib"] for node in machine["nodes"]} or {0: machine["mem_total_kib"]}
    for name, count in pools.items():
        assert 0 < count * 2048 <= memory[int(name.split("/")[0])] * 60 // 100
    if plan["partitioned"] and plan["postgres"]["node"] is not None:
        assert f"{plan['postgres']['node']}/2048kB" in pools


def test_the_cpuset_way(loader):
    machine = load("epyc-192-nps4")
    declared = resolve(loader, machine, **LOW_LATENCY, isolation_method="cpuset")["isolation"]
    plan = cpuplan.plan(machine, {"policy": "latency"})
    assert not declared["boot"]
    assert declared["unit"]["isolated.slice/Slice/AllowedCPUs"]["value"] == plan["isolated"]["cpus"]
    own = cpulist.parse(declared["unit"]["orchestrator.service/Service/AllowedCPUs"]["value"])
    assert own <= cpulist.parse(plan["isolated"]["cpus"])
    assert declared["service"] == {
        "hosttune-cpuset@isolated.service": {
            "value": "enabled active",
            "note": declared["service"]["hosttune-cpuset@isolated.service"]["note"],
        }
    }
    assert declared["service"]["hosttune-cpuset@isolated.service"]["note"]["unit_from"] == "file"


def test_isolation_without_a_plan_that_isolates_says_what_to_ask_for(loader):
    with pytest.raises(Exception, match="asks for policy balanced; ask for latency"):
        resolve(loader, load("epyc-192-nps4"), isolation_method="boot")


def test_pages_of_a_gigabyte_and_of_others(loader):
    declared = resolve(
        loader,
        load("epyc-192-nps4"),
        hugepages_1g={"0": "2", "1": "2"},
        hugepages_others={"0/2048kB": "64", "3/2048kB": "8"},
    )["hugepages"]
    assert {name: one["value"] for name, one in declared["hugepages"].items()} == {
        **{"0/1048576kB": "2", "1/1048576kB": "2"},
        **{"0/2048kB": "64", "3/2048kB": "8"},
    }
    assert {name: one["value"] for name, one in declared["boot"].items()} == {
        "hugepagesz": "1G",
        "hugepages": "0:2,1:2",
    }


@pytest.mark.parametrize(
    ("driver", "leaves"),
    [
        ("intel_pstate", ["energy_performance_preference", "scaling_governor", "energy_perf_bias"]),
        ("amd-pstate-epp", ["energy_performance_preference", "scaling_governor"]),
        ("acpi-cpufreq", ["scaling_governor"]),
    ],
)
def test_power_asks_for_what_the_driver_has(loader, driver, leaves, tmp_path):
    machine = {**load("hybrid"), "cpufreq_driver": driver, "cpuidle_driver": "intel_idle"}
    declared = resolve(loader, machine, **LOW_LATENCY, power_isolated_latency_us="n/a")["power"]
    online = [cpu["id"] for cpu in machine["cpus"] if cpu["online"]]
    for number in online:
        mine = [name.split("/")[-1] for name in declared["sysfs"] if f"/cpu{number}/" in name]
        assert [one for one in mine if one != "pm_qos_resume_latency_us"] == leaves
    isolated = cpulist.parse(cpuplan.plan(machine, {"policy": "latency"})["isolated"]["cpus"])
    slept = {name.split("/")[3] for name in declared["sysfs"] if name.endswith("pm_qos_resume_latency_us")}
    assert slept == {f"cpu{number}" for number in isolated}
    assert list(declared["service"]) == ["hosttune-dma-latency@3.service"]
    # A recorded tree of such a CPU takes them, and what it lacks is unsupported and no failure.
    choices = {
        "energy_performance_preference": (
            "balance_performance",
            "default performance balance_performance power",
        ),
        "scaling_governor": ("powersave", "performance powersave"),
    }
    for number in online[:-1]:
        folder = tmp_path / f"sys/devices/system/cpu/cpu{number}"
        (folder / "cpufreq").mkdir(parents=True)
        (folder / "power").mkdir()
        for leaf, (value, offered) in choices.items():
            beside = "energy_performance_available_preferences"
            (folder / "cpufreq" / leaf).write_text(f"{value}\n")
            beside = "scaling_available_governors" if leaf == "scaling_governor" else beside
            (folder / "cpufreq" / beside).write_text(f"{offered} \n")
        (folder / "power/energy_perf_bias").write_text("6\n")
        (folder / "power/pm_qos_resume_latency_us").write_text("0\n")
    kind = kinds.load("sysfs", System(str(tmp_path)))
    wanted = [one for one in settings_of({"power": declared}, "power") if one.kind == "sysfs"]
    kind.check(wanted, {})
    planes = kind.read([one.name for one in wanted])
    last = f"/cpu{online[-1]}/"
    for one in wanted:
        lacks = last in one.name or "/cpu/cpu" not in f"/{one.name}"
        assert bool(planes[one.name].unsupported) == lacks, one.name
        assert planes[one.name].unknown == ""


def test_a_virtual_machine_is_asked_for_nothing(loader):
    machine = {**load("no-numa"), "cpufreq_driver": None, "cpuidle_driver": "none", "virtualization": "kvm"}
    declared = resolve(loader, machine, power_profile="low_latency")["power"]
    assert not any(declared.values())


def test_this_machine_resolves(loader):
    resolve(loader, topology.read(), power_profile="low_latency")


nodes = st.lists(
    st.tuples(st.integers(0, 64), st.lists(st.integers(10, 40), min_size=4, max_size=4)),
    min_size=1,
    max_size=4,
)


@given(st.integers(0, 40000), nodes, st.one_of(st.none(), st.integers(0, 3)))
def test_pages_lie_on_their_node_and_fit(pages, machine, node):
    rows = [
        {"id": at, "mem_kib": gib << 20, "distances": far[: len(machine)]}
        for at, (gib, far) in enumerate(machine)
    ]
    room = {row["id"]: row["mem_kib"] * 60 // 100 // 2048 for row in rows}
    try:
        found = sizing.huge_pages_by_node(pages, 2 << 20, rows, node)
    except Refusal:
        assert pages > sum(room.values()) or (node is not None and node >= len(rows))
        return
    assert sum(found.values()) == pages
    assert all(0 < count <= room[one] for one, count in found.items())
    if node is not None:
        # Nothing lies far away while there is room nearer.
        assert found.get(node, 0) == min(pages, room[node])
        near = rows[node]["distances"]
        for one in found:
            for other in room:
                if other != node and near[other] < near[one] and one != node:
                    assert found.get(other, 0) == room[other]
    else:
        # Alike: nobody has less than another but for want of room, or for a page that cannot be cut.
        for one, count in room.items():
            if found.get(one, 0) < count:
                assert found.get(one, 0) >= max(found.values(), default=0) - 1


def script_of(unit, directive, instance, **paths):
    """The shell script of a unit's directive as systemd hands it to sh, with other places for its files."""
    text = unit.replace("\\\n", "")
    line = next(line for line in text.splitlines() if line.startswith(f"{directive}="))
    script = line.partition("'")[2].rpartition("'")[0]
    for what, means in (("$$", "$"), ("%i", instance), ("%%", "%"), *paths.items()):
        script = script.replace(what, str(means))
    return script


def units_of(loader, role):
    variables = settings_doc.role_variables(loader)
    return variables[f"{role}_service"]


@pytest.mark.parametrize(
    ("asked", "effective", "says"),
    [
        ("2-3", "2-3", ""),
        ("2-3", "2", "reads isolated, with CPUs 2 of 2-3"),
        ("", "0-7", "with CPUs 0-7 of "),
    ],
)
def test_the_partition_is_read_back(loader, tmp_path, asked, effective, says):
    (tmp_path / "cpuset.cpus").write_text(f"{asked}\n")
    (tmp_path / "cpuset.cpus.effective").write_text(f"{effective}\n")
    (tmp_path / "cpuset.cpus.partition").write_text("member\n")
    place = {"/sys/fs/cgroup/isolated.slice": tmp_path}
    script = script_of(units_of(loader, "isolation"), "ExecStart", "isolated", **place)
    ended = subprocess.run(
        ["/bin/sh", "-euc", script], capture_output=True, text=True, check=False, timeout=30
    )
    assert (ended.returncode, says in ended.stderr) == (1 if says else 0, True)
    state = (tmp_path / "cpuset.cpus.partition").read_text().strip()
    assert state == ("member" if says else "isolated")
    script = script_of(units_of(loader, "isolation"), "ExecStop", "isolated", **place)
    subprocess.run(["/bin/sh", "-euc", script], check=True, timeout=30)
    assert (tmp_path / "cpuset.cpus.partition").read_text() == "member\n"


def test_a_group_that_is_not_there_is_a_failure(loader, tmp_path):
    place = {"/sys/fs/cgroup/isolated.slice": tmp_path / "none"}
    script = script_of(units_of(loader, "isolation"), "ExecStart", "root", **place)
    assert subprocess.run(
        ["/bin/sh", "-euc", script], capture_output=True, check=False, timeout=30
    ).returncode


@pytest.mark.parametrize(("held", "status"), [(3, 0), (0, 0), (2000000000, 1)])
def test_the_limit_of_latency_is_written_as_the_kernel_takes_it_and_read_back(loader, tmp_path, held, status):
    device = tmp_path / "device"
    device.touch()
    unit, place = units_of(loader, "power"), {"/dev/cpu_dma_latency": device, "sleep infinity": "true"}
    subprocess.run(["/bin/sh", "-euc", script_of(unit, "ExecStart", "3", **place)], check=True, timeout=30)
    # Not four bytes, which it would take for a binary number.
    assert device.read_bytes() == b"0x00000003"
    device.write_bytes(struct.pack("=i", held))
    script = script_of(unit, "ExecStartPost", "3", **{**place, "sleep 0.2": "true"})
    ended = subprocess.run(
        ["/bin/sh", "-euc", script], capture_output=True, text=True, check=False, timeout=30
    )
    assert (ended.returncode, "reads" in ended.stderr) == (status, bool(status))
