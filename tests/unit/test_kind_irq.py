"""Kind irq: the CPUs of a device's queue, whatever numbers its interrupts have today."""

from __future__ import annotations

import pytest
from fake_host import as_root
from hosttune import conflicts, cpulist, drift, irqs, isolation
from hosttune.kinds.irq import MANAGED, IrqKind, _apart, _together
from hosttune.model import Change, Refusal, Setting
from hypothesis import given, settings
from hypothesis import strategies as st
from irq_host import UNIT, IrqHost


def wish(name, value):
    return Setting("interrupts", "irq", name, value)


@pytest.fixture
def host(tmp_path, monkeypatch):
    as_root(monkeypatch)
    return IrqHost(tmp_path)


def verdicts(report):
    return {one.setting.name: one.verdict for one in report.settings}


ASKED = {"interrupts": {"irq": {"enp0s3/0": "2", "enp0s3/1": "3", "ens4/0": "2-3", "ens4/other": "0"}}}


# names and values


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ens4", "0", "is no DEVICE/QUEUE"),
        ("ens4/00", "0", "is no DEVICE/QUEUE"),
        ("ens4/rx-0", "0", "is no DEVICE/QUEUE"),
        ("33/0", "0", "this host has no device 33"),
        ("ens5/0", "0", "Did you mean ens4?"),
        ("veth1/0", "0", "this host has no device veth1"),
        ("ens4/0", "4", "Online are 0-3"),
        ("ens4/0", "0-1,9", "CPU 9 is not online"),
        ("ens4/0", "", "has no CPU"),
        ("default", "8", "Online are 0-3"),
    ],
)
def test_refuses(host, name, value, says):
    with pytest.raises(Refusal) as caught:
        IrqKind(host).check([wish(name, value)], {})
    assert says in str(caught.value)
    assert f"irq {name}" in str(caught.value)


@pytest.mark.parametrize("value", ["all", "3-1", "f", "0x3", "1;2"])
def test_refuses_what_is_no_list(host, value):
    with pytest.raises(Refusal, match="Give a list of CPUs"):
        IrqKind(host).text("ens4/0", value)


def test_names_that_are_right(host):
    names = ("ens4/0", "ens4/17", "nvme0/1", "0000:00:1a.0/0", "enp7s0np0/other", "default")
    IrqKind(host).check([wish(name, "1-2") for name in names], {})


CPUS = st.sets(st.integers(0, 200), min_size=1, max_size=12)


@settings(deadline=None)
@given(CPUS, st.randoms())
def test_lists_are_equal_as_sets(tmp_path_factory, cpus, random):
    kind = IrqKind(IrqHost.at(tmp_path_factory.getbasetemp()))
    spelled = [str(cpu) for cpu in cpus] + [f"{min(cpus)}-{min(cpus)}"]
    random.shuffle(spelled)
    assert kind.same("ens4/0", cpulist.format(cpus), ",".join(spelled))
    assert kind.text("ens4/0", ",".join(spelled)) == cpulist.format(cpus)
    assert not kind.same("ens4/0", cpulist.format(cpus), cpulist.format(cpus ^ {7}) or "201")


# planes


def test_all_interrupts_of_a_queue_are_one_setting(host):
    planes = IrqKind(host).read(["enp0s3/0", "nvme0/0", "nvme0/1", "ens4/7", "default"])
    assert planes["enp0s3/0"].live == "0-3"
    assert planes["nvme0/0"].live == "0-3"
    assert planes["nvme0/1"].unsupported == MANAGED
    assert planes["ens4/7"].unsupported == "ens4 has no queue 7 now: it has 0 and other"
    assert planes["default"].live == "0-3"


def test_the_default_of_a_machine_that_may_have_more_cpus(host):
    host.put("/proc/irq/default_smp_affinity", "ffffffff,ffffffff\n")
    assert IrqKind(host).read(["default"])["default"].live == "0-7"
    host.put("/proc/irq/default_smp_affinity", "00000000,00000009\n")
    assert IrqKind(host).read(["default"])["default"].live == "0,3"


def test_interrupts_that_differ_are_each_named(host):
    host.put("/proc/irq/26/smp_affinity_list", "1\n")
    live = IrqKind(host).read(["enp0s3/0"])["enp0s3/0"].live
    assert live == "virtio2-input.0=0-3 virtio2-output.0=1"
    IrqKind(host).activate([Change("enp0s3/0", "2")], [])
    assert (host.cpus(25), host.cpus(26), host.cpus(27)) == ("2", "2", "0-3")
    IrqKind(host).activate([Change("enp0s3/0", live, undo=True)], [])
    assert (host.cpus(25), host.cpus(26)) == ("0-3", "1")


@settings(deadline=None)
@given(st.lists(st.sampled_from(["0", "1-2", "0-3"]), min_size=1, max_size=5))
def test_what_is_told_apart_is_put_together_again(lists):
    """Also where two interrupts have one name (virtio-scsi's request queues)."""
    names = ["virtio3-request", "virtio3-request", "virtio3-event", "eth0 (queue 1)", "virtio3-control"]
    mine = [
        irqs.Irq(number, "0000:00:01.0", "other", name, cpus, cpus, False)
        for number, (name, cpus) in enumerate(zip(names, lists))
    ]
    assert [(one, one.cpus) for one in mine] == _apart(mine, _together(mine))


def test_an_interrupt_that_has_not_moved_yet_is_told(host):
    host.put("/proc/irq/25/smp_affinity_list", "2\n")
    host.put("/proc/irq/26/smp_affinity_list", "2\n")
    planes = IrqKind(host).read(["enp0s3/0"])["enp0s3/0"]
    assert planes.live == "2"
    assert planes.note == "virtio2-input.0 fires on CPU 1 until its next interrupt"


def test_a_nic_that_is_down_is_set_when_it_comes_up(host):
    host.put("/sys/class/net/ens4/flags", "0x1002\n")
    planes = IrqKind(host).read(["ens4/5"])["ens4/5"]
    assert not planes.has_live
    assert "when it comes up" in planes.note


def test_unreadable_is_unknown(host):
    (host.folder / "proc/irq/25/smp_affinity_list").unlink()
    assert "IRQ" not in IrqKind(host).read(["enp0s3/0"])["enp0s3/0"].unknown
    assert IrqKind(host).read(["enp0s3/0"])["enp0s3/0"].unknown.endswith("cannot be read")


def test_a_container_reads_and_never_sets(host):
    host.put("/run/systemd/container", "systemd-nspawn\n")
    kind = IrqKind(host)
    kind.check([wish("eth7/0", "99")], {})
    assert kind.read(["ens4/0"])["ens4/0"].unsupported == "kernel shared with the machine"


# through the engine


def test_apply_again_and_undo(host):
    host.put("/proc/irq/30/smp_affinity_list", "1\n")
    told = host.apply(ASKED, disruption_allowed="moves", check=True)
    assert host.live_writes == []
    report = host.apply(ASKED, disruption_allowed="moves")
    assert report.failures == []
    assert set(verdicts(report).values()) == {"in_sync"}
    assert {one.then.verdict for one in told.settings} == {"in_sync"}
    assert [host.cpus(irq) for irq in (25, 26, 27, 28, 29, 30, 31, 24)] == [
        "2",
        "2",
        "3",
        "3",
        "2-3",
        "2-3",
        "0",
        "0-3",
    ]
    assert {one.disruption for one in report.settings} == {"moves"}
    writes = list(host.live_writes)
    assert not host.apply(ASKED, disruption_allowed="moves").changed
    assert host.live_writes == writes
    assert drift.check(IrqHost.again(host)).exit_status == 0
    report = host.apply({}, present=False)
    assert report.failures == []
    assert [host.cpus(irq) for irq in range(24, 32)] == ["0-3"] * 6 + ["1", "0-3"]


def test_what_is_right_is_not_written(host):
    host.put("/proc/irq/25/smp_affinity_list", "2\n")
    asked = {"interrupts": {"irq": {"enp0s3/0": "2"}}}
    host.apply(asked, disruption_allowed="moves")
    assert host.live_writes == ["/proc/irq/26/smp_affinity_list"]
    assert [one.disruption for one in host.apply(asked).settings] == ["silent"]


def test_moving_waits_for_its_switch(host):
    report = host.apply(ASKED)
    assert set(verdicts(report).values()) == {"pending_window"}
    assert host.live_writes == []


def test_without_the_unit_the_next_boot_undoes_it(host):
    host.played["enabled"] = "disabled"
    report = host.apply(ASKED, disruption_allowed="moves")
    assert set(verdicts(report).values()) == {"boot_bomb"}
    assert all(f"{UNIT}, which sets it again at boot, is disabled" in one.reason for one in report.settings)
    host.played["enabled"] = ""
    found = drift.check(IrqHost.again(host))
    assert found.exit_status == 1
    assert "is not there" in found.settings[0]["reason"]


def test_an_interrupt_that_only_a_write_shows_to_be_managed(host):
    host.played["refuses"] = (29,)
    report = host.apply(ASKED, disruption_allowed="moves")
    assert report.failures[0] == f"irq ens4/0: ens4-rx-0 (IRQ 29): {MANAGED}"
    assert verdicts(report)["enp0s3/0"] == "in_sync"
    assert verdicts(report)["ens4/0"] == "live_drift"


def test_the_default_for_interrupts_made_later(host):
    report = host.apply({"interrupts": {"irq": {"default": "0-1"}}}, disruption_allowed="moves")
    assert verdicts(report) == {"default": "in_sync"}
    assert host.text("/proc/irq/default_smp_affinity") == "3\n"
    host.apply({}, present=False)
    assert host.text("/proc/irq/default_smp_affinity") == "f\n"


@pytest.mark.parametrize(
    ("isolated", "boot", "says"),
    [
        ("", {}, []),
        ("2-3", {}, ["enp0s3/0 = 2", "enp0s3/1 = 3", "ens4/0 = 2-3"]),
        ("", {"isolcpus": "managed_irq,domain,3"}, ["enp0s3/1 = 3", "ens4/0 = 2-3"]),
        ("", {"nohz_full": "3"}, ["enp0s3/1 = 3", "ens4/0 = 2-3"]),
        ("", {"isolcpus": "1-N"}, []),
    ],
)
def test_interrupts_on_isolated_cpus_are_said(host, monkeypatch, isolated, boot, says):
    monkeypatch.setattr(isolation, "check", lambda _settings, _system: [])  # test_isolation.py asks that
    host.put("/sys/devices/system/cpu/isolated", f"{isolated}\n")
    wanted = [wish(name, value) for name, value in ASKED["interrupts"]["irq"].items()]
    wanted += [Setting("cpu", "boot", name, value) for name, value in boot.items()]
    told = conflicts.check(wanted, host)
    assert [one.partition(" has interrupts fire on isolated CPUs")[0] for one in told] == [
        f"irq {one}" for one in says
    ]
