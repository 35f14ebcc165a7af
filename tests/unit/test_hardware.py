"""Hosts that shall be alike: what of their hardware is compared, and how the one that differs is named."""

from __future__ import annotations

import copy

import pytest
from hosttune import hardware, topology
from hosttune.model import Refusal
from hypothesis import given
from hypothesis import strategies as st
from machines import load

SERVER = {
    **load("epyc-192-nps4"),
    "kernel": "6.1.0-37-amd64",
    "microcode": "0xa101148",
    "virtualization": "",
    "firmware": {"vendor": "Dell Inc.", "version": "2.5", "date": "01/13/2023", "machine": "Dell Inc. R7525"},
}


def fleet(count, **changes):
    """`count` alike hosts tr-01, tr-02, ...; `changes` is host -> function that alters its topology."""
    machines = {f"tr-{number:02}": copy.deepcopy(SERVER) for number in range(1, count + 1)}
    for name, change in changes.items():
        change(machines[name.replace("_", "-")])
    return {name: hardware.aspects(machine) for name, machine in machines.items()}


def test_alike_hosts_do_not_differ():
    assert hardware.differences(fleet(12)) == []
    assert hardware.differences(fleet(1)) == []
    assert hardware.differences({}) == []


def smt_off(machine):
    for cpu in machine["cpus"]:
        cpu["siblings"], cpu["online"] = (str(cpu["id"]), True) if cpu["id"] < 96 else (None, False)


def renumbered(machine):
    for cpu in machine["cpus"]:
        cpu["siblings"] = f"{cpu['id'] // 2 * 2},{cpu['id'] // 2 * 2 + 1}"


#: What somebody did to one host of twelve, and how it is told.
OUTLIERS = {
    "BIOS 2.3 of 11/02/2021 where the other 11 have 2.5 of 01/13/2023": lambda one: one["firmware"].update(
        version="2.3", date="11/02/2021"
    ),
    "BIOS vendor AMI where the other 11 have Dell Inc.": lambda one: one["firmware"].update(vendor="AMI"),
    "microcode 0xa101144 where the other 11 have 0xa101148": lambda one: one.update(microcode="0xa101144"),
    "kernel 6.1.0-35-amd64 where the other 11 have 6.1.0-37-amd64": lambda one: one.update(
        kernel="6.1.0-35-amd64"
    ),
    "CPU EPYC 7402 where the other 11 have synthetic": lambda one: one.update(model="EPYC 7402"),
    "memory 192 GiB where the other 11 have 384 GiB": lambda one: one.update(mem_total_kib=190 << 20),
    "CPUs 0-95 of 96 cores, packages 1, offline 96-191 where": smt_off,
    "CPU layout ": renumbered,
    "NIC ens2f0 absent where the other 11 have ice on node 3": lambda one: one["net"].pop(),
    "NIC ens1f0 ice on node 0 where the other 11 have ice on node 2": lambda one: one["net"][0].update(
        numa_node=0
    ),
    "NIC ens1f0 mlx5_core on node 2 where": lambda one: one["net"][0].update(driver="mlx5_core"),
    "disks 2 nvme on node 1, 1 ssd on node 3 where the other 11 have 2 nvme on node 1, 1 nvme on node 3": (
        lambda one: one["block"][2].update({"class": "ssd"})
    ),
    "NUMA nodes 0 (48 GiB), 1 (96 GiB)": lambda one: one["nodes"][0].update(mem_kib=47 << 20),
    "virtualization kvm where the other 11 have none": lambda one: one.update(virtualization="kvm"),
}


@pytest.mark.parametrize("told", OUTLIERS)
def test_the_outlier_is_named_with_what_differs(told):
    (said,) = hardware.differences(fleet(12, tr_07=OUTLIERS[told]))
    assert said.startswith(f"tr-07: {told}")


def test_what_differs_for_no_reason_is_no_difference():
    def busy(machine):
        machine["mem_total_kib"] -= 5 << 20  # another crash kernel
        machine["net"][0].update(operstate="down", speed_mbps=-1)
        machine["net"].append({"name": "docker0", "virtual": True, "numa_node": -1})
        machine["block"].append({"name": "sdz", "class": "rotational", "removable": True, "numa_node": -1})
        machine["cpus"][3]["max_khz"] = 4_700_000

    assert hardware.differences(fleet(3, tr_02=busy)) == []


def test_several_outliers_and_no_majority():
    def kernel(machine):
        machine["kernel"] = "new"

    assert hardware.differences(fleet(5, tr_02=kernel, tr_04=kernel)) == [
        "tr-02, tr-04: kernel new where the other 3 have 6.1.0-37-amd64"
    ]
    assert hardware.differences(fleet(2, tr_02=kernel)) == [
        "kernel: tr-01 with 6.1.0-37-amd64; tr-02 with new"
    ]
    assert hardware.differences(fleet(4, tr_02=kernel, tr_03=lambda one: one.update(kernel="old"))) == [
        "tr-02: kernel new where 2 of 4 have 6.1.0-37-amd64",
        "tr-03: kernel old where 2 of 4 have 6.1.0-37-amd64",
    ]


@given(st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from("xyz"), min_size=1))
def test_every_host_off_the_majority_is_named(values):
    said = "\n".join(hardware.differences({name: {"kernel": value} for name, value in values.items()}))
    counts = {value: list(values.values()).count(value) for value in values.values()}
    top = max(counts.values())
    assert bool(said) == (len(counts) > 1)
    for name, value in values.items():
        if said and (counts[value] < top or list(counts.values()).count(top) > 1):
            assert name in said.replace("have", "").replace("where", "").replace("kernel", "")


def asked(hosts, unequal, alike="trading"):
    return {name: {"alike": alike, "unequal": unequal, "hardware": one} for name, one in hosts.items()}


def test_a_set_is_refused_or_noted_as_asked():
    hosts = fleet(3, tr_02=lambda one: one.update(kernel="new"))
    said = "trading: tr-02: kernel new where the other 2 have 6.1.0-37-amd64"
    assert hardware.compare(asked(hosts, "refuse")) == {"refused": [said], "noted": []}
    assert hardware.compare(asked(hosts, "per_host")) == {"refused": [], "noted": [said]}
    mixed = asked(hosts, "per_host")
    mixed["tr-03"]["unequal"] = "refuse"
    assert hardware.compare(mixed)["refused"] == [said]
    apart = {**asked(fleet(1), "refuse"), **asked({"tr-02": hosts["tr-02"]}, "refuse", "feed")}
    assert hardware.compare(apart) == {"refused": [], "noted": []}
    with pytest.raises(
        Refusal, match=r"numa_unequal_hosts of tr-01: is 'ignore'\. Use one of refuse, per_host"
    ):
        hardware.compare(asked(fleet(1), "ignore"))


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def test_firmware_and_microcode_are_read(tmp_path):
    for name, value in (("bios_vendor", "Dell Inc."), ("bios_version", "2.5"), ("bios_date", "01/13/2023"),
                        ("sys_vendor", "Dell Inc."), ("product_name", "PowerEdge R650")):  # fmt: skip
        write(tmp_path, f"sys/class/dmi/id/{name}", value)
    write(
        tmp_path,
        "proc/cpuinfo",
        "processor : 0\nmicrocode\t: 0xd0003b9\n\nprocessor : 1\nmicrocode\t: 0xd0003b1",
    )
    write(tmp_path, "sys/devices/system/cpu/cpufreq/policy1/scaling_driver", "intel_pstate")
    seen = topology.read(str(tmp_path))
    assert seen["firmware"] == {
        "vendor": "Dell Inc.", "version": "2.5", "date": "01/13/2023", "machine": "Dell Inc. PowerEdge R650",
    }  # fmt: skip
    assert seen["microcode"] == "0xd0003b1, 0xd0003b9"
    assert seen["cpufreq_driver"] == "intel_pstate"
    assert set(topology.read(str(tmp_path / "empty"))["firmware"].values()) == {None}
