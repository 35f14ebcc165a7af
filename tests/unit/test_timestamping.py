"""What a NIC's driver says of its stamps, with `ethtool -T` as the oracle in molecule/metal/time.yml."""

from __future__ import annotations

from hosttune import timestamping, topology
from hypothesis import given
from hypothesis import strategies as st

TX, TX_SOFTWARE, RX, RX_SOFTWARE, SOFTWARE, RAW = 1, 2, 4, 8, 16, 64
FILTER_NONE, FILTER_ALL, FILTER_PTP, FILTER_NTP = 1 << 0, 1 << 1, 1 << 12, 1 << 15


def test_all_three_stamps_and_a_filter_for_ntp_are_needed():
    hardware = TX | RX | RAW
    assert timestamping.usable(hardware | TX_SOFTWARE | RX_SOFTWARE | SOFTWARE, FILTER_NONE | FILTER_ALL)
    assert timestamping.usable(hardware, FILTER_NTP)
    assert not timestamping.usable(hardware, FILTER_NONE | FILTER_PTP)
    assert not timestamping.usable(TX_SOFTWARE | RX_SOFTWARE | SOFTWARE, FILTER_ALL)


@given(st.integers(0, 2**18 - 1), st.integers(0, 2**16 - 1))
def test_one_flag_less_and_it_is_not_usable(flags, filters):
    wanted = all(flags & one for one in (TX, RX, RAW)) and any(
        filters & one for one in (FILTER_ALL, FILTER_NTP)
    )
    assert timestamping.usable(flags, filters) is wanted


def test_the_loopback_stamps_nothing_and_a_missing_nic_says_nothing():
    assert timestamping.hardware("lo") is False
    assert timestamping.hardware("no-such-nic") is None


def test_another_machine_is_not_asked(tmp_path):
    nic = tmp_path / "sys/class/net/lo1"
    (nic / "device").mkdir(parents=True)
    (nic / "ifindex").write_text("1\n")
    assert [one["hw_timestamp"] for one in topology.read(str(tmp_path))["net"]] == [None]
