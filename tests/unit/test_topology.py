"""Reading a machine: this one against lscpu, and trees built from topologies against lscpu and themselves."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hosttune import cpulist, topology
from machines import ALL, RECORDED, REPO, TALLY, load

needs_lscpu = pytest.mark.skipif(not shutil.which("lscpu"), reason="lscpu is not here")


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def lscpu(*arguments):
    """Rows of lscpu -p=CPU,NODE,ONLINE: what another reader sees."""
    out = subprocess.run(
        ["lscpu", *arguments, "--all", "-p=CPU,NODE,ONLINE"], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(",") for line in out.splitlines() if not line.startswith("#")]
    return {int(cpu): (int(node) if node else None, online == "Y") for cpu, node, online in rows}


def build(root, machine):
    """The sysfs and procfs of a topology, as the kernel would show them."""
    x86 = machine["arch"] in ("x86_64", "i686")
    write(
        root,
        "proc/cpuinfo",
        f"model name : {machine['model']}\n" + ("flags : fpu sse2" if x86 else "Features : fp"),
    )
    write(root, "proc/meminfo", f"MemTotal:       {machine['mem_total_kib']} kB\nMemFree: 1 kB")
    base = "sys/devices/system"
    ids = [cpu["id"] for cpu in machine["cpus"]]
    online = [cpu["id"] for cpu in machine["cpus"] if cpu["online"]]
    write(root, f"{base}/cpu/possible", cpulist.format(ids))
    write(root, f"{base}/cpu/present", cpulist.format(ids))
    write(root, f"{base}/cpu/online", cpulist.format(online))
    sizes = {group["group"]: group for group in machine["l3"]}
    packages = {}
    for cpu in machine["cpus"]:
        if cpu["online"]:
            packages.setdefault(cpu["package"], []).append(cpu["id"])
    for cpu in machine["cpus"]:
        folder = f"{base}/cpu/cpu{cpu['id']}"
        (root / folder).mkdir(parents=True, exist_ok=True)
        if not cpu["online"]:
            continue
        for name, key in (("physical_package_id", "package"), ("die_id", "die"), ("core_id", "core")):
            if cpu[key] is not None:
                write(root, f"{folder}/topology/{name}", cpu[key])
        if "cluster" in cpu:
            write(root, f"{folder}/topology/cluster_id", cpu["cluster"])
        write(root, f"{folder}/topology/thread_siblings_list", cpu["siblings"])
        write(root, f"{folder}/topology/thread_siblings", cpulist.to_hex_mask(cpulist.parse(cpu["siblings"])))
        members = packages[cpu["package"]]
        write(root, f"{folder}/topology/core_siblings_list", cpulist.format(members))
        write(root, f"{folder}/topology/core_siblings", cpulist.to_hex_mask(members))
        if "capacity" in cpu:
            write(root, f"{folder}/cpu_capacity", cpu["capacity"])
        if "max_khz" in cpu:
            write(root, f"{folder}/cpufreq/cpuinfo_max_freq", cpu["max_khz"])
        if cpu["l3_group"] is not None:
            group = sizes[cpu["l3_group"]]
            cache = f"{folder}/cache/index3"
            write(root, f"{cache}/level", 3)
            write(root, f"{cache}/type", "Unified")
            write(root, f"{cache}/shared_cpu_list", group["cpus"])
            write(root, f"{cache}/shared_cpu_map", cpulist.to_hex_mask(cpulist.parse(group["cpus"])))
            if "size_kib" in group:
                write(root, f"{cache}/size", f"{group['size_kib']}K")
    for node in machine["nodes"]:
        folder = f"{base}/node/node{node['id']}"
        write(root, f"{folder}/cpulist", node["cpus"])
        write(root, f"{folder}/cpumap", cpulist.to_hex_mask(cpulist.parse(node["cpus"])))
        write(root, f"{folder}/distance", " ".join(map(str, node["distances"])))
        write(
            root,
            f"{folder}/meminfo",
            f"Node {node['id']} MemTotal:  {node['mem_kib']} kB\nNode 0 MemFree: 1 kB",
        )
    write(root, f"{base}/node/online", cpulist.format(node["id"] for node in machine["nodes"]))


@pytest.fixture
def tree(tmp_path):
    """A small bare machine: 2 CPUs, 2 GiB."""
    machine = json.loads((REPO / "tests/topologies/two-cpus.json").read_text())
    build(tmp_path, machine)
    return tmp_path


@needs_lscpu
def test_this_machine_is_as_lscpu_sees_it():
    seen = topology.read()
    rows = lscpu()
    assert {cpu["id"]: (cpu["node"], cpu["online"]) for cpu in seen["cpus"]} == rows
    online = {cpu for cpu, (_, is_online) in rows.items() if is_online}
    assert cpulist.parse(seen["usable_cpus"]) <= online
    assert os.sysconf("SC_NPROCESSORS_ONLN") == len(online)
    assert seen["kernel"] == os.uname().release
    assert seen["memory_limit_bytes"] <= seen["memory"]["total_bytes"]
    assert seen["fingerprint"] == topology.read_fingerprint()
    json.dumps(seen)


@pytest.mark.parametrize("path", ALL)
def test_trees_read_back(path, tmp_path):
    """What a tree says is what is read, and where lscpu can read the tree, it agrees."""
    machine = load(path)
    build(tmp_path, machine)
    seen = topology.read(str(tmp_path))
    in_nodes = {cpu for node in machine["nodes"] for cpu in cpulist.parse(node["cpus"])}
    for mine, theirs in zip(seen["cpus"], machine["cpus"]):
        wanted = {key: theirs[key] for key in ("id", "online", "node", "siblings")}
        if theirs["id"] not in in_nodes:
            wanted["node"] = None  # its node is offline
        if theirs["online"]:
            wanted.update({key: theirs[key] for key in ("die", "core", "l3_group")})
            wanted.update({key: theirs[key] for key in ("capacity", "max_khz") if key in theirs})
            if theirs["package"] is not None:
                wanted["package"] = theirs["package"]
        assert {key: mine.get(key) for key in wanted} == wanted
    assert len(seen["cpus"]) == len(machine["cpus"])
    for mine, theirs in zip(seen["nodes"], machine["nodes"]):
        assert {key: mine[key] for key in theirs if key in mine} == {
            key: theirs[key] for key in theirs if key in mine
        }
    assert len(seen["nodes"]) == len(machine["nodes"])
    assert [group["cpus"] for group in seen["l3"]] == [group["cpus"] for group in machine["l3"]]
    assert seen["numa_known"] == bool(machine["nodes"])
    if shutil.which("lscpu"):
        rows = lscpu("-s", str(tmp_path))
        assert {cpu["id"]: cpu["online"] for cpu in seen["cpus"]} == {
            cpu: row[1] for cpu, row in rows.items()
        }
        nodes = {cpu["id"]: cpu["node"] for cpu in seen["cpus"] if cpu["online"] and cpu["node"] is not None}
        assert nodes == {cpu: row[0] for cpu, row in rows.items() if row[1] and cpu in nodes}
    TALLY.saw("read back from a tree", path)


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in RECORDED])
def test_published_truths(path, tmp_path):
    """What other tools published of a machine is what is read of its tree."""
    machine = load(path)
    build(tmp_path, machine)
    seen = topology.read(str(tmp_path))
    truth, found = machine["expected"], [cpu for cpu in seen["cpus"] if cpu["online"]]
    online = {cpu["id"] for cpu in found}
    nodes = {str(node["id"]): cpulist.parse(node["cpus"]) for node in seen["nodes"]}
    for node, cpus in (truth.get("numa") or {}).items():
        if nodes.get(node):  # some tools count a node without CPUs to its neighbours
            assert cpulist.parse(cpus) & online == nodes[node] & online
    cores = {}
    for cpu in found:
        cores.setdefault(cpu["package"], set()).add(cpu["siblings"])
    threads = {len(cpulist.parse(siblings)) for own in cores.values() for siblings in own}
    if truth["sockets"] is not None:
        assert len(cores) == truth["sockets"]
        assert {len(own) for own in cores.values()} == several(truth["cores_per_socket"])
        assert threads == several(truth["threads_per_core"])
    TALLY.saw("read as their published truths say", path)


def several(number):
    """A published number, or the numbers of a machine whose parts differ."""
    return set(number) if isinstance(number, list) else {number}


def test_masks_where_lists_are_missing(tree):
    """Kernels before 2.6.26 have no *_list files."""
    for cpu in (0, 1):
        (tree / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").unlink()
        write(tree, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings", "3")
    assert topology.read(str(tree))["cpus"][0]["siblings"] == "0-1"


def test_packages_without_ids_are_numbered_by_core_siblings(tree):
    for cpu in (0, 1):
        write(tree, f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", -1)
        write(tree, f"sys/devices/system/cpu/cpu{cpu}/topology/core_siblings_list", cpu)
    assert [cpu["package"] for cpu in topology.read(str(tree))["cpus"]] == [0, 1]


def test_off_x86_core_siblings_correct_package_ids(tree):
    write(tree, "proc/cpuinfo", "Features : fp asimd")
    for cpu in (0, 1):
        write(tree, f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", 36 + cpu)
    assert [cpu["package"] for cpu in topology.read(str(tree))["cpus"]] == [0, 0]


def test_an_empty_root_is_no_error(tmp_path):
    seen = topology.read(str(tmp_path))
    assert (seen["cpus"], seen["nodes"], seen["memory_limit_bytes"]) == ([], [], None)
    assert seen["numa_known"] is False


GIB = 1 << 30


def test_memory_limits_of_cgroup_v2_count_from_every_level(tree):
    write(tree, "sys/fs/cgroup/cgroup.controllers", "cpuset cpu memory")
    write(tree, "proc/1/cgroup", "0::/machine/host/init.scope")
    write(tree, "sys/fs/cgroup/machine/host/init.scope/memory.max", "max")
    write(tree, "sys/fs/cgroup/machine/host/memory.max", GIB)
    write(tree, "sys/fs/cgroup/machine/memory.high", GIB // 2)
    seen = topology.read(str(tree))
    assert seen["memory_limit_bytes"] == GIB // 2
    assert seen["memory"]["cgroup_limit_from"] == "/sys/fs/cgroup/machine/memory.high"
    assert seen["memory"]["total_bytes"] == 2 * GIB
    assert seen["cgroup_version"] == 2


def test_memory_limits_of_cgroup_v1(tree):
    write(tree, "proc/1/cgroup", "5:cpu,cpuacct:/\n4:memory:/outside/host\n0::/")
    write(tree, "sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    write(tree, "sys/fs/cgroup/memory/host/memory.limit_in_bytes", 3 * GIB // 2)
    seen = topology.read(str(tree))
    assert (seen["cgroup_version"], seen["memory_limit_bytes"]) == (1, 3 * GIB // 2)


def test_hybrid_cgroups_have_memory_in_v1(tree):
    write(tree, "proc/1/cgroup", "4:memory:/host\n0::/host")
    write(tree, "sys/fs/cgroup/unified/cgroup.controllers", "")
    write(tree, "sys/fs/cgroup/memory/host/memory.limit_in_bytes", GIB)
    assert topology.read(str(tree))["memory_limit_bytes"] == GIB


def test_a_limit_above_memtotal_is_none(tree):
    write(tree, "sys/fs/cgroup/cgroup.controllers", "memory")
    write(tree, "proc/1/cgroup", "0::/")
    write(tree, "sys/fs/cgroup/memory.max", 64 * GIB)
    assert topology.read(str(tree))["memory_limit_bytes"] == 2 * GIB


def test_a_container_uses_its_cpuset(tree):
    write(tree, "run/systemd/container", "systemd-nspawn")
    write(tree, "proc/1/cgroup", "0::/init.scope")
    write(tree, "sys/fs/cgroup/cgroup.controllers", "cpuset memory")
    write(tree, "sys/fs/cgroup/cpuset.cpus.effective", "1")
    write(tree, "sys/fs/cgroup/init.scope/cpuset.cpus.effective", "0")
    seen = topology.read(str(tree))
    assert (seen["container"], seen["container_manager"]) == (True, "systemd-nspawn")
    assert (seen["usable_cpus"], seen["usable_from"]) == ("1", "cpuset")


def test_a_container_is_known_by_the_environment_of_pid_1(tree):
    write(tree, "proc/1/environ", "HOME=/\0container=lxc\0")
    assert topology.read(str(tree))["container_manager"] == "lxc"


def test_on_metal_a_cpuset_is_tuning_and_not_a_limit(tree):
    """A plan made from what the last plan left over would shrink at every run."""
    write(tree, "proc/1/cgroup", "0::/init.scope")
    write(tree, "sys/fs/cgroup/cgroup.controllers", "cpuset")
    write(tree, "sys/fs/cgroup/init.scope/cpuset.cpus.effective", "0")
    seen = topology.read(str(tree))
    assert (seen["container"], seen["usable_cpus"], seen["usable_from"]) == (False, "0-1", "online")


def device(root, path, **attributes):
    for name, value in attributes.items():
        write(root, f"sys/devices/{path}/{name}", value)
    (root / "sys/devices" / path).mkdir(parents=True, exist_ok=True)


def link(root, path, target):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to(os.path.relpath(root / target, file.parent))


def disk(root, name, where, rotational="0", **attributes):
    """A disk below a device, as /sys/block shows it."""
    device(root, f"{where}/block/{name}", size=2048, **attributes)
    write(root, f"sys/devices/{where}/block/{name}/queue/rotational", rotational)
    write(root, f"sys/devices/{where}/block/{name}/queue/scheduler", "[none] mq-deadline")
    if not (root / f"sys/devices/{where}/block/{name}/device").exists():
        link(root, f"sys/devices/{where}/block/{name}/device", f"sys/devices/{where}")
    link(root, f"sys/block/{name}", f"sys/devices/{where}/block/{name}")


@pytest.fixture
def furnished(tree):
    """A machine with one disk of each class, those that are left out, and NICs."""
    pci = "pci0000:40"
    device(tree, f"{pci}/0000:40:01.0/0000:41:00.0", numa_node=1, **{"class": "0x010802"})
    disk(tree, "nvme0n1", f"{pci}/0000:40:01.0/0000:41:00.0/nvme/nvme0")
    # a namespace seen over two paths hangs below a virtual subsystem
    device(tree, f"{pci}/0000:40:02.0", numa_node=0)
    device(tree, f"{pci}/0000:40:02.0/nvme/nvme1")
    link(
        tree,
        "sys/devices/virtual/nvme-subsystem/nvme-subsys1/nvme1",
        f"sys/devices/{pci}/0000:40:02.0/nvme/nvme1",
    )
    disk(tree, "nvme1n1", "virtual/nvme-subsystem/nvme-subsys1")
    disk(tree, "nvme1c1n1", f"{pci}/0000:40:02.0/nvme/nvme1")
    ahci = f"{pci}/0000:40:03.0/ata1/host0/target0:0:0"
    device(tree, f"{pci}/0000:40:03.0", numa_node=-1)
    disk(tree, "sda", f"{ahci}/0:0:0:0", "0")
    disk(tree, "sdb", f"{ahci}/0:0:0:1", "1")
    disk(tree, "sdc", f"{ahci}/0:0:0:2", "1", removable=1)
    disk(tree, "vda", f"{pci}/0000:40:04.0/virtio1", "1")
    for name in ("loop0", "ram0", "zram0", "dm-0", "md0", "sr0", "fd0", "nbd0"):
        disk(tree, name, f"virtual/{name}-parent")

    nic = f"{pci}/0000:40:05.0"
    device(
        tree, nic, numa_node=1, vendor="0x8086", device="0x1592", local_cpulist="0-1", **{"class": "0x020000"}
    )
    device(tree, f"{nic}/net/ens5", ifindex=2, operstate="up", mtu=1500, speed=25000)
    for queue in ("rx-0", "rx-1", "tx-0"):
        (tree / f"sys/devices/{nic}/net/ens5/queues/{queue}").mkdir(parents=True)
    link(tree, f"sys/devices/{nic}/net/ens5/device", f"sys/devices/{nic}")
    (tree / "sys/bus/pci/drivers/ice").mkdir(parents=True)
    link(tree, f"sys/devices/{nic}/driver", "sys/bus/pci/drivers/ice")
    link(tree, "sys/class/net/ens5", f"sys/devices/{nic}/net/ens5")
    for name in ("lo", "br0"):
        device(tree, f"virtual/net/{name}", ifindex=1)
        link(tree, f"sys/class/net/{name}", f"sys/devices/virtual/net/{name}")
    write(tree, "sys/class/net/bonding_masters", "")

    device(tree, f"{pci}/0000:40:00.0", **{"class": "0x060400"})
    for address in ("0000:40:00.0", "0000:40:05.0"):
        link(tree, f"sys/bus/pci/devices/{address}", f"sys/devices/{pci}/{address}")
    return tree


def test_disks_by_class(furnished):
    disks = {one["name"]: one for one in topology.read(str(furnished))["block"]}
    assert {name: one["class"] for name, one in disks.items()} == {
        "nvme0n1": "nvme",
        "nvme1n1": "nvme",
        "sda": "ssd",
        "sdb": "rotational",
        "sdc": "rotational",
        "vda": "virtio",
    }
    assert (disks["nvme0n1"]["pci"], disks["nvme0n1"]["numa_node"]) == ("0000:41:00.0", 1)
    assert (disks["nvme1n1"]["pci"], disks["nvme1n1"]["numa_node"]) == ("0000:40:02.0", 0)
    assert disks["sda"]["numa_node"] == -1
    assert disks["sdc"]["removable"] is True
    assert disks["sda"]["queue"] == {"scheduler": "[none] mq-deadline"}


def test_nics_and_pci(furnished):
    seen = topology.read(str(furnished))
    ens5, br0 = sorted(seen["net"], key=lambda nic: nic["virtual"])
    assert br0["name"] == "br0" and br0["virtual"]
    assert (ens5["pci"], ens5["driver"], ens5["numa_node"]) == ("0000:40:05.0", "ice", 1)
    assert (ens5["rx_queues"], ens5["tx_queues"], ens5["speed_mbps"]) == (2, 1, 25000)
    assert seen["pci_omitted"] == 1
    (nic,) = seen["pci"]
    assert (nic["kind"], nic["id"], nic["local_cpus"], nic["driver"]) == ("nic", "8086:1592", "0-1", "ice")


def test_the_fingerprint_survives_a_reboot(furnished):
    before = topology.read_fingerprint(str(furnished))
    write(furnished, "proc/sys/kernel/osrelease", "6.12.1")
    write(furnished, "proc/meminfo", f"MemTotal: {2 * 1024 * 1024 + 3000} kB")  # a kernel with other tables
    write(furnished, "sys/devices/pci0000:40/0000:40:05.0/net/ens5/operstate", "down")
    write(furnished, "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", 512)
    (furnished / "sys/block/sdc").unlink()  # a stick was pulled
    (furnished / "sys/class/net/br0").unlink()
    assert topology.read_fingerprint(str(furnished)) == before
    assert topology.read(str(furnished))["fingerprint"] == before


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sys/devices/system/cpu/online", "0"),
        ("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "0-1"),
        ("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal: 1048576 kB"),
        ("proc/meminfo", "MemTotal: 1048576 kB"),
        ("sys/devices/pci0000:40/0000:40:05.0/numa_node", "0"),
        (
            "sys/devices/pci0000:40/0000:40:03.0/ata1/host0/target0:0:0/0:0:0:0/block/sda/queue/rotational",
            "1",
        ),
    ],
)
def test_the_fingerprint_changes_with_the_machine(furnished, path, text):
    before = topology.read_fingerprint(str(furnished))
    write(furnished, path, text)
    assert topology.read_fingerprint(str(furnished)) != before


def test_it_runs_on_the_oldest_python():
    """Managed hosts may have 3.9; the whole of planning and sizing is run there, where it is installed."""
    # a shim of pyenv is found on PATH even where no such version is selected
    installed = [*Path.home().glob(".pyenv/versions/3.9.*/bin/python"), Path("/usr/bin/python3.9")]
    oldest = next((str(path) for path in installed if path.exists()), None)
    if oldest is None:
        pytest.skip("Python 3.9 is not here")
    code = (
        "from hosttune import cpupicture, cpuplan, sizing, topology; seen = topology.read();"
        "print(cpupicture.picture(seen, cpuplan.plan(seen)));"
        "print(sizing.postgres(sizing.memory_budget('8GB')['postgres']['bytes'], 2), sizing.redis('1GB'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO / "module_utils"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([oldest, "-c", code], check=True, env=environment, stdout=sys.stderr)
