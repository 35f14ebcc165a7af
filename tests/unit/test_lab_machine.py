"""What the lab asks of its machine, and what it makes: names, command lines, snapshots, refusals."""

import json

import pytest

from lab import cgroups, cli, kvm, labs, machine, metal, network, tools
from lab.errors import LabError
from lab.state import Host, Lab


@pytest.fixture(autouse=True)
def lab_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTTUNE_LAB_DIR", str(tmp_path / "lab"))
    monkeypatch.delenv("LAB", raising=False)
    return tmp_path / "lab"


def test_link_names_fit_the_kernels_15_characters():
    slot = network.SLOTS - 1
    for name in (network.bridge(slot), network.veth(slot, 99), network.tap(slot, 99)):
        assert len(name) <= 15


def test_addresses_of_two_labs_never_meet():
    assert network.address(0, 0) == "10.213.0.10"
    assert network.address(7, 9) == "10.213.7.19"


def test_a_slot_is_free_when_no_lab_link_or_route_has_it(monkeypatch):
    Lab("x", "metal", "image", slot=0).save()
    answers = {
        "link": [{"ifname": "lo"}, {"ifname": network.bridge(1)}],
        "route": [{"dst": "default"}, {"dst": "10.213.2.0/23"}, {"dst": "192.0.2.7"}],
    }
    monkeypatch.setattr(
        network, "run", lambda *words: json.dumps(answers["route" if "route" in words else "link"])
    )
    assert network.free_slot() == 4


def test_ports_given_to_other_labs_are_not_given_again():
    first = network.free_port(set())
    assert network.free_port({first}) > first


def test_hierarchies_of_a_hybrid_machine_and_of_a_unified_one():
    hybrid = (
        "30 1 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "31 1 0:27 / /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw\n"
        "32 1 0:28 / /proc rw - proc proc rw\n"
    )
    assert [(str(root), kind) for root, kind in cgroups.hierarchies(hybrid)] == [
        ("/sys/fs/cgroup/memory", "cgroup"),
        ("/sys/fs/cgroup/unified", "cgroup2"),
    ]
    unified = "25 1 0:22 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
    assert [kind for _, kind in cgroups.hierarchies(unified)] == ["cgroup2"]


def test_a_v1_cpuset_gets_its_cpus_before_a_process_joins(tmp_path, monkeypatch):
    root = tmp_path / "cpuset"
    group = root / "hosttune0-x"
    group.mkdir(parents=True)
    for name, text in (("cpuset.cpus", "0-1\n"), ("cpuset.mems", "0\n")):
        (root / name).write_text(text)
        (group / name).write_text("\n")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"30 1 0:26 / {root} rw - cgroup cgroup rw,cpuset\n")
    monkeypatch.setattr(cgroups, "MOUNTS", mounts)
    assert cgroups.make("hosttune0-x", 1) == [group]
    assert (group / "cpuset.cpus").read_text() == "0-1\n"


def test_the_machine_has_what_the_roles_act_on():
    words = " ".join(metal.machine(Host("x-m1", "127.0.0.1", 42200), "tcg", "htt0.0"))
    for part in (
        "sockets=2,cores=2,threads=2",
        "nodeid=1,cpus=4-7",
        "nvme,",
        "rotation_rate=1 ",
        "rotation_rate=7200",
        "e1000e",
        "mq=on",
        "i6300esb",
        "hostfwd=tcp:127.0.0.1:42200-10.0.2.15:22",
        "accel tcg",
    ):
        assert part in words
    assert "tap" not in " ".join(metal.machine(Host("x-m1", "127.0.0.1", 42200), "tcg", ""))


def test_no_kvm_device_means_no_kvm(monkeypatch):
    monkeypatch.setattr(kvm, "DEVICE", kvm.Path("/nonexistent/kvm"))
    assert kvm.works() == (False, "there is no /nonexistent/kvm")


def test_the_probes_verdict_holds_until_the_machine_restarts(monkeypatch):
    probes = []
    monkeypatch.setattr(kvm, "_probe", lambda: probes.append(1) or "it hangs")
    assert kvm.works() == kvm.works() == (False, "it hangs")
    assert len(probes) == 1
    monkeypatch.setattr(kvm, "boot_id", lambda: "another boot")
    kvm.works()
    assert len(probes) == 2


def test_auto_takes_metal_only_where_kvm_works(monkeypatch, capsys):
    monkeypatch.setattr(kvm, "works", lambda: (True, ""))
    assert labs.choose_driver("auto") == "metal"
    monkeypatch.setattr(kvm, "works", lambda: (False, "there is no /dev/kvm"))
    assert labs.choose_driver("auto") == "container"
    (line,) = capsys.readouterr().out.splitlines()
    assert "LAB=metal" in line
    assert labs.choose_driver("metal") == "metal"
    with pytest.raises(LabError, match="LAB=cloud names no driver"):
        labs.choose_driver("cloud")


def test_the_snapshot_leaves_out_what_moves_by_itself(tmp_path):
    for name, text in (
        ("proc/sys/vm/swappiness", "60\n"),
        ("proc/sys/fs/file-nr", "1\t0\t9\n"),
        ("proc/sys/kernel/random/uuid", "x\n"),
        ("proc/sys/net/core/somaxconn", "4096\n"),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0\n"),
        ("sys/block/vda/queue/scheduler", "[none] mq-deadline\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = machine.snapshot(tmp_path)
    assert found["sysctl"] == {"vm.swappiness": "60"}
    assert list(found["hugepages"].values()) == ["0"]
    assert found["block"] == {"sys/block/vda/queue/scheduler": "[none] mq-deadline"}


def test_two_snapshots_of_this_machine_are_the_same():
    assert machine.snapshot()["sysctl"] == machine.snapshot()["sysctl"]


@pytest.mark.parametrize("prefix", ["", "Lab", "1lab", "a b", "../x", "x" * 32])
def test_a_prefix_that_cannot_name_a_host_is_refused(prefix, capsys):
    with pytest.raises(SystemExit):
        cli.main(["up", "--prefix", prefix])
    assert "small letters, digits and dashes" in capsys.readouterr().err


def test_without_root_and_sudo_there_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(tools.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(tools.shutil, "which", lambda *_, **__: None)
    assert cli.main(["up"]) == 1
    assert capsys.readouterr().err == (
        "lab: the lab needs root for mounts and namespaces, and there is no sudo: run it as root\n"
    )


def test_without_root_the_command_goes_through_sudo(monkeypatch, lab_dir):
    ran = []
    monkeypatch.setattr(tools.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(tools.shutil, "which", lambda *_, **__: "/usr/bin/sudo")
    monkeypatch.setattr(tools.os, "execvp", lambda _, words: ran.extend(words))
    tools.become_root(["up", "--count", "2"])
    assert ran[:2] == ["sudo", "env"]
    assert f"HOSTTUNE_LAB_DIR={lab_dir}" in ran
    assert ran[-5:] == ["-m", "lab", "up", "--count", "2"]


def test_another_architecture_is_refused(monkeypatch):
    monkeypatch.setattr(tools.platform, "machine", lambda: "aarch64")
    with pytest.raises(LabError, match="for x86_64 and this machine is aarch64"):
        tools.require_architecture()


def test_a_missing_tool_is_named_by_its_package(monkeypatch):
    monkeypatch.setattr(tools.shutil, "which", lambda name, **_: None if name.startswith("qemu") else name)
    assert tools.missing(tools.METAL) == ["qemu-system-x86", "qemu-utils"]
    assert tools.missing(tools.CONTAINER) == []
    with pytest.raises(LabError, match="this machine lacks"):
        monkeypatch.setattr(tools.shutil, "which", lambda *_, **__: None)
        tools.ensure(tools.METAL)
