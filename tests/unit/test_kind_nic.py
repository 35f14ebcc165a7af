"""Kind nic on interfaces in memory: what is read, what one call sets, what the next boot will give."""

from __future__ import annotations

import pytest
from fake_nics import Kernel, NicHost, e1000e, virtio
from hosttune import drift, ethtool, keeper, links
from hosttune.kinds import nic
from hosttune.model import Refusal
from hosttune.store import MANIFEST
from hosttune.system import System

OWN = "/etc/systemd/network/10-feed.link"
DROPIN = f"{OWN}.d/60-hosttune-net.conf"
DEFAULT = "/usr/lib/systemd/network/99-default.link"


@pytest.fixture
def kernel(monkeypatch):
    found = Kernel(feed0=e1000e(altnames=("enp1s0",)), ens2=virtio(address="02:00:00:00:00:02"))
    monkeypatch.setattr(nic, "Ethtool", found.tool)
    return found


@pytest.fixture
def host(tmp_path, kernel):
    found = NicHost(tmp_path)
    for name, device in kernel.devices.items():
        found.interface(name, device)
    found.put(DEFAULT, "[Match]\nOriginalName=*\n\n[Link]\nNamePolicy=keep kernel\n")
    found.put(OWN, "[Match]\nPermanentMACAddress=02:00:00:00:00:01\n\n[Link]\nName=feed0\n")
    return found


def apply(host, values, **more):
    more.setdefault("disruption_allowed", "resets")
    return host.apply({"net": {"nic": values}}, **more)


def verdicts(report):
    return {one.setting.name: one.verdict for one in report.settings}


def one(report):
    (found,) = report.settings
    return found


def test_keys_of_one_group_are_one_request_with_the_other_fields_as_they_are(host, kernel):
    kernel.devices["feed0"].groups["coalesce"] = {"rx-usecs": 3, "rx-frames": 7, "adaptive-rx": 1}
    found = apply(
        host,
        {
            "feed0/ring/rx": "4096",
            "feed0/ring/tx": "1024",
            "feed0/coalesce/rx-usecs": "0",
            "feed0/coalesce/adaptive-rx": "off",
            "feed0/features/gro": "off",
            "feed0/features/rxhash": "off",
        },
    )
    assert not found.failures
    assert set(verdicts(found).values()) == {"in_sync"}
    assert [entry[:2] for entry in kernel.sets] == [
        ("feed0", "ring"),
        ("feed0", "features"),
        ("feed0", "coalesce"),
    ]
    coalesce = kernel.sets[2][2]
    assert (coalesce["rx-usecs"], coalesce["rx-frames"], coalesce["adaptive-rx"]) == (0, 7, 0)
    kernel.sets.clear()
    again = apply(
        host,
        {
            "feed0/ring/rx": "2048",
            "feed0/ring/tx": "1024",
            "feed0/coalesce/rx-usecs": "0",
            "feed0/coalesce/adaptive-rx": "off",
            "feed0/features/gro": "off",
            "feed0/features/rxhash": "off",
        },
    )
    assert not again.failures
    assert kernel.sets == [("feed0", "ring", {"rx": 2048, "rx-mini": 0, "rx-jumbo": 0, "tx": 1024})]


def test_a_second_run_sets_and_writes_nothing(host, kernel):
    values = {"feed0/ring/rx": "512", "ens2/channels/combined": "2", "feed0/queue/rx-0.rps_cpus": "3"}
    host.put("/sys/class/net/feed0/queues/rx-0/rps_cpus", "0\n")
    assert apply(host, values).changed
    before, kernel.sets = host.snapshot(times=True, below=("etc", "sys")), []
    again = apply(host, values)
    assert not again.changed and not kernel.sets
    assert not any(one.changed for one in again.settings)
    assert host.snapshot(times=True, below=("etc", "sys")) == before


def test_the_link_file_that_is_its_own_gets_a_drop_in_that_names_nothing(host, kernel):
    before = host.snapshot()
    found = apply(
        host,
        {
            "feed0/ring/rx": "4096",
            "feed0/coalesce/rx-usecs": "20",
            "feed0/features/tso": "off",
            "feed0/pause/rx": "off",
            "feed0/link/txqueuelen": "500",
        },
    )
    assert host.text(DROPIN).splitlines()[1:] == [
        "[Link]",
        "RxCoalesceSec=20us",
        "TCPSegmentationOffload=no",
        "TCP6SegmentationOffload=no",
        "TransmitQueueLength=500",
        "RxFlowControl=no",
        "RxBufferSize=4096",
    ]
    assert {one.planes.winner.file for one in found.settings} == {DROPIN}
    assert set(verdicts(found).values()) == {"in_sync"}
    undone = host.apply({}, present=False)
    assert not undone.failures
    assert kernel.devices["feed0"].groups["ring"]["rx"] == 256
    assert kernel.devices["feed0"].groups["pause"]["rx"] == 1
    assert kernel.devices["feed0"].queue_length == 1000
    assert all(kernel.devices["feed0"].features[name] for name in ("tx-tcp-segmentation", "rx-gro"))
    assert host.snapshot() == before


def test_no_drop_in_can_name_an_interface():
    assert not set(links.DIRECTIVES) & links.NAMING


def test_a_file_that_decides_over_others_too_gets_none(host, kernel):
    found = one(apply(host, {"ens2/coalesce/rx-usecs": "8"}))
    assert found.verdict == "in_sync"
    assert found.planes.persisted_dict() == {
        "value": "8",
        "file": MANIFEST,
        "line": 0,
        "overridden": [],
    }
    assert not host.exists(f"{DEFAULT}.d") and not host.exists("/etc/systemd/network/99-default.link.d")


def test_a_file_of_two_interfaces_is_nobodys_own(host, kernel):
    host.put(OWN, "[Match]\nMACAddress=02:00:00:00:00:01 02:00:00:00:00:02\n")
    assert one(apply(host, {"feed0/ring/rx": "512"})).planes.winner.file == MANIFEST


def test_without_the_unit_nothing_is_persisted(host, kernel):
    host.kept = type(host).kept
    NicHost.kept = "disabled"
    try:
        found = one(apply(host, {"ens2/coalesce/rx-usecs": "8"}))
        assert (found.verdict, found.planes.winner) == ("boot_bomb", None)
        assert keeper.UNIT in found.reason and "disabled" in found.reason
        again = apply(host, {"ens2/coalesce/rx-usecs": "8"})
        assert not again.changed and not one(again).changed and one(again).verdict == "boot_bomb"
        checked = drift.check(NicHost.again(host))
        assert [entry["verdict"] for entry in checked.settings] == ["boot_bomb"]
    finally:
        NicHost.kept = "enabled"
    checked = drift.check(NicHost.again(host))
    assert [entry["verdict"] for entry in checked.settings] == ["in_sync"]


def test_another_hands_drop_in_is_named(host, kernel):
    apply(host, {"feed0/ring/rx": "512"})
    later = f"{OWN}.d/90-admin.conf"
    host.put(later, "[Link]\nRxBufferSize=max\n")
    found = one(apply(host, {"feed0/ring/rx": "512"}))
    # The unit sets it right again after udev set what the later file says.
    assert (found.verdict, found.planes.winner.file) == ("shadowed", MANIFEST)
    assert [(over.value, over.file) for over in found.planes.overridden] == [("512", DROPIN), ("4096", later)]
    NicHost.kept = "disabled"
    try:
        found = one(apply(host, {"feed0/ring/rx": "512"}))
        assert (found.verdict, found.planes.winner.value) == ("boot_bomb", "4096")
    finally:
        NicHost.kept = "enabled"


def test_a_value_that_the_driver_rounds_is_clamped_and_not_written_again(host, kernel):
    kernel.devices["feed0"].step = 8
    found = apply(host, {"feed0/ring/rx": "500"})
    assert not found.failures
    assert one(found).verdict == "clamped" and "504 descriptors instead of 500" in one(found).reason
    kernel.sets.clear()
    again = apply(host, {"feed0/ring/rx": "500"})
    assert (one(again).verdict, again.changed, kernel.sets) == ("clamped", False, [])


def test_what_the_driver_lost_with_its_queues_is_set_again(host, kernel):
    kernel.devices["ens2"].lost = {"coalesce": {"rx-usecs": 0}}
    values = {"ens2/coalesce/rx-usecs": "8", "ens2/channels/combined": "4"}
    apply(host, values)
    kernel.sets.clear()
    found = apply(host, {**values, "ens2/channels/combined": "2"})
    assert set(verdicts(found).values()) == {"in_sync"} and not found.failures
    assert [entry[1] for entry in kernel.sets] == ["channels", "coalesce"]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("feed0/channels/combined", "1", "e1000e has no channels to set"),
        ("feed0/coalesce/adaptive-rx", "off", "e1000e does not have coalesce adaptive-rx"),
        ("ens2/ring/rx-jumbo", "0", "virtio_net does not have ring rx-jumbo"),
        ("ens2/pause/rx", "off", "virtio_net has no pause to set"),
        ("feed0/features/lro", "on", "e1000e has lro fixed to off"),
        ("feed0/queue/rx-0.rps_cpus", "1", "feed0 has no /sys/class/net/feed0/queues/rx-0/rps_cpus"),
    ],
)
def test_what_the_driver_does_not_have_is_unsupported(host, kernel, name, value, reason):
    found = apply(host, {name: value, "feed0/ring/rx": "512"})
    judged = {entry.setting.name: entry for entry in found.settings}
    if "rx-jumbo" in name:
        assert judged[name].verdict == "unsupported"
    assert (judged[name].verdict, judged[name].reason) == ("unsupported", reason)
    assert judged["feed0/ring/rx"].verdict == "in_sync" and not found.failures


def test_what_is_fixed_as_it_shall_be_is_in_sync(host, kernel):
    found = one(apply(host, {"feed0/features/lro": "off"}))
    assert (found.verdict, kernel.sets) == ("in_sync", [])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"feed1/ring/rx": "512"}, "no network interface feed1. Did you mean feed0"),
        ({"enp1s1/ring/rx": "512"}, "Did you mean enp1s0"),
        ({"feed0/rings/rx": "512"}, "Did you mean ring"),
        ({"feed0/ring/rxx": "512"}, "Did you mean rx"),
        ({"feed0/coalesce/rx-usec": "5"}, "Did you mean rx-usecs"),
        ({"feed0/features/gro2": "off"}, "Did you mean gro"),
        ({"feed0/ring/rx": "4097"}, "4097 is out of range. feed0 (e1000e) takes 1 to 4096"),
        ({"feed0/ring/rx": "0"}, "takes 1 to 4096"),
        ({"ens2/channels/combined": "5"}, "takes 0 to 4"),
        ({"feed0/link/mtu": "9217"}, "takes 68 to 9216"),
        ({"feed0/features/gro": False}, 'Put it in quotes in the inventory, as the system prints it: "on"'),
        ({"feed0/features/gro": "yes"}, "neither on nor off"),
        ({"feed0/pause/rx": "1"}, "neither on nor off"),
        ({"feed0/coalesce/rx-usecs": "20us"}, "Give a whole number"),
        ({"feed0/queue/tx-0.rps_cpus": "1"}, "Did you mean xps_cpus"),
        ({"feed0/queue/tx-0.xps_cpus": "0-3"}, "Give one in hex"),
        ({"feed0": "1"}, "IFACE/GROUP/KEY"),
        ({"feed0/ring/rx": "512", "enp1s0/ring/rx": "512"}, "is the same as"),
        ({"feed0/features/gro": "on", "feed0/features/rx-gro": "on"}, "is the same as"),
    ],
)
def test_bad_input_is_refused_before_anything_is_touched(host, kernel, values, said):
    before = host.snapshot()
    with pytest.raises(Refusal) as refused:
        apply(host, values)
    assert said in str(refused.value)
    assert not kernel.sets and host.snapshot() == before


def test_a_queue_that_kind_sysfs_sets_too_is_refused(host, kernel):
    for path in ("class/net/feed0/queues/rx-0/rps_cpus", "/sys/class/net/feed0/queues/rx-0/rps_cpus"):
        host.put("/sys/class/net/feed0/queues/rx-0/rps_cpus", "0\n")
        with pytest.raises(Refusal, match=r"nic feed0/queue/rx-0.rps_cpus: is sysfs .*Leave it to kind nic"):
            host.apply({"net": {"nic": {"feed0/queue/rx-0.rps_cpus": "3"}}, "numa": {"sysfs": {path: "3"}}})
    assert host.live_writes == []


def test_an_alternative_name_is_the_same_interface(host, kernel):
    found = one(apply(host, {"enp1s0/ring/rx": "512"}))
    assert (found.verdict, found.planes.winner.file) == ("in_sync", DROPIN)
    kernel.sets.clear()
    again = apply(host, {"feed0/ring/rx": "512"})
    assert not kernel.sets and not again.failures
    host.apply({}, present=False)
    assert kernel.devices["feed0"].groups["ring"]["rx"] == 256


def test_a_reset_waits_for_its_switch_and_what_is_silent_does_not(host, kernel):
    values = {"feed0/ring/rx": "512", "feed0/features/gro": "off"}
    found = apply(host, values, disruption_allowed="silent")
    assert verdicts(found) == {"feed0/ring/rx": "pending_window", "feed0/features/gro": "in_sync"}
    assert [entry[1] for entry in kernel.sets] == ["features"]
    assert "RxBufferSize=512" in host.text(DROPIN)
    assert verdicts(apply(host, values)) == {"feed0/ring/rx": "in_sync", "feed0/features/gro": "in_sync"}


def test_check_mode_says_what_the_call_will_do(host, kernel):
    values = {"feed0/ring/rx": "512", "ens2/channels/combined": "2", "ens2/coalesce/rx-usecs": "8"}
    before = host.snapshot()
    checked = apply(host, values, check=True, disruption_allowed="silent")
    assert host.snapshot() == before and not kernel.sets
    done = apply(host, values, disruption_allowed="silent")
    assert checked.pending() == done.pending()
    assert {one.setting.name: one.changed for one in checked.settings} == {
        one.setting.name: one.changed for one in done.settings
    }
    assert {entry["disruption"] for entry in done.pending()} == {"resets"}


def test_the_way_in_is_said_where_a_reset_would_cut_it(host, kernel):
    host.put("/proc/net/route", "Iface\tDestination\tGateway\nens2\t00000000\t0101A8C0\nfeed0\t0001A8C0\t0\n")
    found = apply(
        host, {"ens2/channels/combined": "2", "feed0/ring/rx": "512"}, check=True, disruption_allowed="silent"
    )
    reasons = {entry.setting.name: entry.reason for entry in found.settings}
    assert "ens2 is the way of this host's default route" in reasons["ens2/channels/combined"]
    assert "default route" not in reasons["feed0/ring/rx"]


def test_the_kernels_refusal_is_told_with_the_drivers_name(host, kernel):
    kernel.devices["feed0"].maxima["ring"]["tx"] = 64  # below what it has
    found = apply(host, {"feed0/ring/rx": "512"})
    assert "e1000e refused ring rx 512: Invalid argument" in found.failures[0]


def test_a_drifted_value_is_found_by_the_drift_check(host, kernel):
    apply(host, {"feed0/ring/rx": "512", "ens2/coalesce/rx-usecs": "8"})
    kernel.devices["ens2"].groups["coalesce"]["rx-usecs"] = 0
    kernel.devices["feed0"].groups["ring"]["rx"] = 64
    found = {entry["name"]: entry for entry in drift.check(NicHost.again(host)).settings}
    assert {name: entry["verdict"] for name, entry in found.items()} == {
        "feed0/ring/rx": "live_drift",
        "ens2/coalesce/rx-usecs": "live_drift",
    }
    del kernel.devices["ens2"]
    found = {entry["name"]: entry for entry in drift.check(NicHost.again(host)).settings}
    assert found["ens2/coalesce/rx-usecs"]["verdict"] == "unsupported"


def test_a_containers_interfaces_are_set_where_they_are_its_own(host, kernel):
    host.put("/run/systemd/container", "lxc\n")
    host.put("/proc/1/status", "Name:\tinit\nCapBnd:\t000001ffffffffff\n")
    found = one(apply(host, {"feed0/ring/rx": "512"}))
    assert (found.verdict, found.planes.winner.file) == ("in_sync", MANIFEST)  # no udevd reads .link files
    host.put("/proc/1/status", "Name:\tinit\nCapBnd:\t00000000fcecafff\n")
    assert "CAP_NET_ADMIN" in one(apply(host, {"feed0/ring/rx": "600"})).reason
    host.put("/sys/class/net/feed0/device/vendor", "0x8086\n")
    found = one(apply(host, {"feed0/ring/rx": "600"}))
    assert (found.verdict, found.reason) == ("unsupported", "kernel shared with the machine")
    assert kernel.devices["feed0"].groups["ring"]["rx"] == 512


def test_interfaces_of_another_root_are_unknown(tmp_path):
    found = nic.NicKind(System(str(tmp_path))).read(["eth0/ring/rx"])["eth0/ring/rx"]
    assert "another root folder cannot be asked" in found.unknown


# .link files, beyond what tests/real compares with udev itself


def nics(host, kernel):
    return links.nics(host, kernel.tool())


def test_an_interface_that_udev_renamed_is_matched_by_what_the_kernel_will_call_it(host, kernel):
    host.interface("feed0", kernel.devices["feed0"], assign_type="4")
    machine = links.Machine(host)
    for pattern, expected in {"eth*": True, "*": True, "feed0": False, "!eth*": False, "eth0": None}.items():
        host.put(OWN, f"[Match]\nOriginalName={pattern}\n")
        assert links.load(host)[0].fits(nics(host, kernel)["feed0"], machine) is expected, pattern
    host.put(OWN, "[Match]\nOriginalName=eth0\n")
    found, doubts = links.winner(links.load(host), nics(host, kernel)["feed0"], machine)
    assert (found.file, doubts) == (DEFAULT, [OWN])
    host.put("/run/udev/data/n2", f"E:ID_NET_LINK_FILE={OWN}\n")
    found, doubts = links.winner(links.load(host), nics(host, kernel)["feed0"], machine)
    assert (found.file, doubts) == (OWN, [OWN])
    said = one(apply(host, {"feed0/ring/rx": "512"}, check=True))
    assert "udev alone knows" in said.reason


def test_an_address_that_somebody_gave_it_is_not_that_of_the_next_boot(host, kernel):
    host.put("/sys/class/net/feed0/address", "0a:00:00:00:00:09\n")
    host.put("/sys/class/net/feed0/addr_assign_type", "3\n")
    assert nics(host, kernel)["feed0"].address == bytes.fromhex("020000000001")


@pytest.mark.parametrize(
    ("one", "other", "order"),
    [
        *(("6.1.0", "6.1.0", 0), ("6.1", "6.10", -1), ("6.2", "6.10", -1), ("6.1~rc1", "6.1", -1)),
        *(("6.1.0-9-amd64", "6.1.0-27-amd64", -1), ("6.1", "6.1.0", -1), ("6.1a", "6.1b", -1)),
        *(("007", "7", 0), ("6.1-rc", "6.1.0", -1), ("6.1^x", "6.1.0", -1), ("", "1", -1)),
    ],
)
def test_versions_are_ordered_as_systemd_orders_them(one, other, order):
    assert links.compare_versions(one, other) == order
    assert links.compare_versions(other, one) == -order


def test_a_feature_has_one_name():
    assert [ethtool.short_feature(name) for name in ("rx-gro", "generic-receive-offload", "gro")] == [
        "gro"
    ] * 3
