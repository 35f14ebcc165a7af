"""Interrupts read from recorded lines and trees: which device and which queue each belongs to."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hosttune import cpulist, irqs, topology
from hosttune.model import Refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from irq_host import link, machine, pci, put

REPO = Path(__file__).resolve().parents[2]
RECORDED = sorted((REPO.parent / "shared/topologies/irqs").glob("*.json"))

#: Action as the driver names it (NIC ens1f0), and the queue it stands for.
ACTIONS = [
    ("e1000e", "ens1f0-rx-0", "0"),
    ("e1000e", "ens1f0-tx-0", "0"),
    ("e1000e, igb, igc, ixgbe: link", "ens1f0", "other"),
    ("igb", "ens1f0-TxRx-7", "7"),
    ("igc", "ens1f0-rx-2", "2"),
    ("ixgbe", "ens1f0-TxRx-63", "63"),
    ("iavf", "iavf-ens1f0-TxRx-3", "3"),
    ("iavf", "iavf-0000:3b:02.0:mbx", "other"),
    ("i40e", "i40e-ens1f0-TxRx-3", "3"),
    ("i40e", "i40e-0000:3b:00.0:misc", "other"),
    ("i40e", "i40e-0000:3b:00.0:fdir-TxRx-0", "other"),
    ("ice", "ice-ens1f0-TxRx-126", "126"),
    ("ice", "ice-0000:4b:00.0:misc", "other"),
    ("ice", "ice-0000:4b:00.0:ll_ts", "other"),
    ("ice", "ice-0000:4b:00.0:ctrl-TxRx-0", "other"),
    ("irdma", "irdma-0000:4b:00.0-CEQ-4", "other"),
    ("irdma", "irdma-0000:4b:00.0-AEQ", "other"),
    ("mlx4", "mlx4-3@0000:09:00.0", "3"),
    ("mlx4", "mlx4-comp-3@pci:0000:09:00.0", "3"),
    ("mlx4", "mlx4-async@pci:0000:09:00.0", "other"),
    ("mlx5", "mlx5_comp3@pci:0000:3b:00.0", "3"),
    ("mlx5", "mlx5_async0@pci:0000:3b:00.0", "other"),
    ("mlx5 before 4.20", "mlx5_comp12", "12"),
    ("mlx5 before 4.20", "mlx5_pages_eq", "other"),
    ("mlx5e of old", "ens1f0-5", "5"),
    ("bnxt", "ens1f0-TxRx-11", "11"),
    ("bnxt", "ens1f0-tx-1", "1"),
    ("bnx2x, qede", "ens1f0-fp-4", "4"),
    ("tg3", "ens1f0-txrx-0", "0"),
    ("cxgb4", "ens1f0-Rx3", "3"),
    ("cxgb4", "ens1f0-FWeventq", "other"),
    ("ena", "ens1f0-Tx-Rx-0", "0"),
    ("ena", "ena-mgmnt@pci:0000:00:05.0", "other"),
    ("gve", "gve-ntfy-blk9@pci:0000:00:04.0", "9"),
    ("gve", "gve-mgmnt@pci:0000:00:04.0", "other"),
    ("mana", "mana_q2@pci:7870:00:00.0", "2"),
    ("mana", "mana_hwc@pci:7870:00:00.0", "other"),
    ("sfc", "ens1f0-0", "0"),
    ("sfc", "ens1f0-rx-3", "3"),
    ("sfc", "ens1f0-xdp-2", "2"),
    ("sfc", "ens1f0-ptp", "other"),
    ("hns3", "hns3-0000:7d:00.0-TxRx-5", "5"),
    ("be2net", "ens1f0-q3", "3"),
    ("xen-netfront", "ens1f0-q1-tx", "1"),
    ("vmxnet3", "ens1f0-rxtx-2", "2"),
    ("vmxnet3", "ens1f0-event-4", "other"),
    ("virtio_net", "virtio2-input.0", "0"),
    ("virtio_net", "virtio2-output.3", "3"),
    ("virtio_net", "virtio2-config", "other"),
    ("virtio_net", "virtio2-virtqueues", "other"),
    ("virtio_blk", "virtio1-req.4", "4"),
    ("nvme", "nvme0q0", "0"),
    ("nvme", "nvme12q128", "128"),
    ("megaraid_sas", "megasas0-msix17", "17"),
    ("ahci", "ahci[0000:00:17.0]", "other"),
]


@pytest.mark.parametrize(
    ("action", "queue"), [pytest.param(name, queue, id=name) for _d, name, queue in ACTIONS]
)
def test_the_action_tells_the_queue(action, queue):
    assert irqs.queue_of(action, "ens1f0") == queue


_PREFIX = st.from_regex(r"(en[ops][0-9a-z]{1,6}|eth[0-9])", fullmatch=True)
_FORMS = st.sampled_from(
    [
        *("{nic}-TxRx-{n}", "i40e-{nic}-TxRx-{n}", "ice-{nic}-TxRx-{n}", "{nic}-rx-{n}", "{nic}-tx-{n}"),
        *("{nic}-Tx-Rx-{n}", "{nic}-{n}", "{nic}-fp-{n}", "{nic}-rxtx-{n}", "{nic}-q{n}-rx"),
        *("mlx5_comp{n}@pci:0000:3b:00.0", "virtio{n}-input.{n}", "nvme3q{n}"),
    ]
)


@settings(deadline=None)
@given(nic=_PREFIX, form=_FORMS, number=st.integers(0, 4096))
def test_whatever_the_nic_is_called_the_number_is_the_queue(nic, form, number):
    """Digits in a NIC's name, a driver's or an address are never taken for it."""
    assert irqs.queue_of(form.format(nic=nic, n=number), nic) == str(number)


# machines


def test_a_recorded_machine(tmp_path):
    found = irqs.read(str(machine(tmp_path)))
    assert {one.irq: f"{one.device}/{one.queue}" for one in found if one.irq != 11} == {
        0: "/other",
        4: "/other",
        24: "enp0s3/other",
        25: "enp0s3/0",
        26: "enp0s3/0",
        27: "enp0s3/1",
        28: "enp0s3/1",
        29: "ens4/0",
        30: "ens4/0",
        31: "ens4/other",
        32: "nvme0/0",
        33: "nvme0/1",
        34: "nvme0/2",
        35: "enp7s0np0/0",
        36: "enp7s0np0/other",
        37: "enp9s0/0",
    }
    assert [one.device for one in found if one.irq == 11] == ["0000:00:1a.0", "0000:00:1d.0"]
    assert [one.irq for one in found if one.managed] == [33, 34]
    assert next(one for one in found if one.irq == 26).as_dict() == {
        "irq": 26,
        "device": "enp0s3",
        "queue": "0",
        "action": "virtio2-output.0",
        "cpus": "0-3",
        "effective": "2",
        "managed": False,
    }


def test_without_interrupts_the_folders_of_the_handlers_tell(tmp_path):
    machine(tmp_path)
    text = (tmp_path / "proc/interrupts").read_text().splitlines()
    for line in text[1:-3]:
        number, action = line.split(":", 1)[0].strip(), line.rpartition("  ")[2]
        for handler in action.split(", "):
            (tmp_path / f"proc/irq/{number}/{handler}").mkdir()
    shown = irqs.read(str(tmp_path))
    (tmp_path / "proc/interrupts").unlink()
    assert irqs.read(str(tmp_path)) == shown


def test_the_mode_of_the_file_tells_that_an_irq_is_managed(tmp_path):
    """Since Linux 6.12, whatever the IRQ is called."""
    machine(tmp_path)
    (tmp_path / "proc/irq/26/smp_affinity_list").chmod(0o444)
    assert [one.irq for one in irqs.read(str(tmp_path)) if one.managed] == [26, 33, 34]


def test_an_nvme_with_one_vector_has_it_unmanaged(tmp_path):
    put(tmp_path, "/proc/interrupts", "   CPU0\n 40:  1  PCI-MSI 0-edge      nvme1q0, nvme1q1\n")
    put(tmp_path, "/proc/irq/40/smp_affinity_list", "0\n")
    assert [(one.device, one.queue, one.managed) for one in irqs.read(str(tmp_path))] == [
        ("nvme1", "0", False)
    ]


def test_two_ports_of_one_function_are_named_by_its_address(tmp_path):
    put(tmp_path, "/proc/interrupts", "   CPU0\n 40:  1  PCI-MSI 1-edge      mlx4-1@0000:09:00.0\n")
    device = pci(tmp_path, "0000:09:00.0", (40,))
    for nic in ("eno1", "eno1d1"):
        link(tmp_path, f"/sys/class/net/{nic}", f"{device}/net/{nic}")
        link(tmp_path, f"{device}/net/{nic}/device", device)
    assert [(one.device, one.queue) for one in irqs.read(str(tmp_path))] == [("0000:09:00.0", "1")]


def test_without_a_device_the_name_of_the_nic_counts(tmp_path):
    put(
        tmp_path,
        "/proc/interrupts",
        "   CPU0\n 70:  1   xen-dyn    -event     eth1-q0-tx\n 71:  1   xen-dyn    -event     eth1-q0-rx\n",
    )
    for nic in ("eth", "eth1"):
        link(tmp_path, f"/sys/class/net/{nic}", f"/sys/devices/vif-{nic}/net/{nic}")
        link(tmp_path, f"/sys/devices/vif-{nic}/net/{nic}/device", f"/sys/devices/vif-{nic}")
    assert [(one.device, one.queue) for one in irqs.read(str(tmp_path))] == [("eth1", "0")] * 2


def test_nothing_there_is_no_fault(tmp_path):
    assert irqs.read(str(tmp_path)) == []


def test_the_topology_has_them(tmp_path):
    machine(tmp_path)
    found = topology.read(str(tmp_path))["irqs"]
    assert {one["device"] for one in found} >= {"enp0s3", "ens4", "nvme0"}
    assert None not in {one["device"] for one in found}


def test_this_machine_as_its_kernel_lists_it():
    """Every IRQ with a handler, with the affinity that the kernel prints."""
    found = irqs.read()
    with_handler = {
        int(name)
        for name in os.listdir("/proc/irq")
        if name.isdigit() and any(one.is_dir() for one in Path("/proc/irq", name).iterdir())
    }
    assert {one.irq for one in found} == with_handler
    for one in found:
        shown = Path(f"/proc/irq/{one.irq}/smp_affinity_list").read_text().strip()
        assert one.cpus == shown
        mask = Path(f"/proc/irq/{one.irq}/smp_affinity").read_text()
        assert cpulist.parse(one.cpus) == cpulist.from_mask(mask)


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in RECORDED])
def test_real_machines_have_as_many_queues_as_vectors(path):
    """Tables of real servers: queues numbered from 0 without a gap, as many as vectors were published."""
    table = json.loads(path.read_text())["irqs"]
    about = json.loads((path.parent.parent / "machines" / path.name).read_text())
    names = [nic["name"] for nic in about["net"]]
    for device in about.get("irq_devices", []):
        name = device["device"]
        mine = [
            row[1] for row in table if row[1] == name or re.match(rf"(?:i40e-|ice-)?{name}(?:-|q)", row[1])
        ]
        nic = name if name in names else ""
        queues = {irqs.queue_of(action, nic) for action in mine}
        others = [action for action in mine if irqs.queue_of(action, nic) == irqs.OTHER]
        assert len(mine) - len(others) == device["vectors"]
        numbers = sorted(int(queue) for queue in queues - {irqs.OTHER})
        assert numbers == list(range(len(numbers)))
        assert len(others) <= 1


# the plan


def planned(irq: str = "", housekeeping: str = "0", partitioned: bool = True) -> dict:
    return {
        "partitioned": partitioned,
        "housekeeping": {"cpus": housekeeping, "runs_on": housekeeping},
        "irq": {"cpus": irq, "runs_on": irq or housekeeping},
    }


def about(*names: str) -> dict:
    """A topology with these DEVICE/QUEUE; a device in capitals is managed."""
    pairs = [name.split("/") for name in names]
    return {
        "net": [{"name": one, "virtual": False} for one in dict.fromkeys(device for device, _queue in pairs)]
        + [{"name": "veth0", "virtual": True}],
        "irqs": [
            {"device": device, "queue": queue, "managed": device.isupper()}
            for device, queue in [*pairs, ("nvme0", "1")]
        ],
    }


@settings(deadline=None)
@given(
    queues=st.lists(st.integers(0, 300), unique=True, min_size=1, max_size=40),
    cpus=st.sets(st.integers(1, 300), min_size=1, max_size=20),
)
def test_queues_go_round_the_cpus_for_interrupts(queues, cpus):
    topology_of = about("ens4/other", *(f"ens4/{queue}" for queue in queues))
    found = irqs.spread(topology_of, planned(cpulist.format(cpus)))
    assert found.pop("default") == found.pop("ens4/other") == "0"
    assert set(found) == {f"ens4/{queue}" for queue in queues}
    in_order = sorted(cpus)
    assert all(found[f"ens4/{queue}"] == str(in_order[queue % len(cpus)]) for queue in queues)
    # As even as can be, where queues are numbered without a gap.
    full = irqs.spread(about(*(f"ens4/{queue}" for queue in range(40))), planned(cpulist.format(cpus)))
    used = [sum(value == str(cpu) for name, value in full.items() if name != "default") for cpu in cpus]
    assert max(used) - min(used) <= 1


def test_which_nics_are_placed():
    topology_of = about("ens4/0", "ens5/0", "ENS6/0")
    assert set(irqs.spread(topology_of, planned("2-3"))) == {"default", "ens4/0", "ens5/0"}
    assert set(irqs.spread(topology_of, planned("2-3"), ["ens5"])) == {"default", "ens5/0"}
    assert irqs.spread(topology_of, planned(partitioned=False)) == {}
    with pytest.raises(Refusal, match=r"no NIC ens7\. Its NICs are ens4, ens5, ENS6"):
        irqs.spread(topology_of, planned("2-3"), ["ens7"])


def test_interrupts_without_cpus_of_their_own_share_those_of_housekeeping():
    assert irqs.spread(about("ens4/5"), planned(housekeeping="0,8")) == {"default": "0,8", "ens4/5": "8"}
