"""What the kernel tells of links, devices and channels: recorded bytes, and a real network namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hosttune import link_events
from hosttune.link_events import Event
from hypothesis import given, settings
from hypothesis import strategies as st

HERE = Path(__file__).resolve().parent
#: Datagrams as Linux 6.18 sent them to a listener in a network namespace with a veth pair.
RECORDED = {
    name: bytes.fromhex(text)
    for name, text in json.loads((HERE / "recorded_netlink.json").read_text()).items()
}
FAMILY = RECORDED.pop("the controller on ethtool")


def parsed(name: str, data: bytes) -> list[Event]:
    if name.startswith("link"):
        return list(link_events.link_events(data))
    if name.startswith("uevent"):
        return list(link_events.device_events(data))
    return list(link_events.ethtool_events(data, 21))


def test_the_family_and_its_group():
    assert link_events.ethtool_family(FAMILY) == (21, 6)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded(name):
    assert [f"{name.partition(':')[0]}: {event}" for event in parsed(name, RECORDED[name])] == [name]


def test_all_kinds_of_messages_were_recorded():
    assert set(RECORDED) >= {
        *("link: va up", "link: va down", "link: va without carrier", "link: va gone"),
        *("uevent: va add", "uevent: va remove", "ethtool: va channels changed"),
    }


@settings(deadline=None)
@given(
    st.sampled_from(sorted(name for name in RECORDED if not name.startswith("uevent"))), st.integers(0, 2000)
)
def test_what_is_cut_off_is_no_event(name, length):
    data = RECORDED[name]
    assert parsed(name, data[:length]) == (parsed(name, data) if length >= len(data) else [])


@settings(deadline=None)
@given(st.sampled_from(sorted(RECORDED)), st.data())
def test_bytes_that_changed_are_no_fault(name, data):
    changed = bytearray(RECORDED[name])
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    parsed(name, bytes(changed))
    link_events.ethtool_family(bytes(changed))


def uevent(action: str, path: str, **about: str) -> bytes:
    pairs = {"ACTION": action, "DEVPATH": path, **about}
    return "\0".join([f"{action}@{path}", *(f"{name}={value}" for name, value in pairs.items()), ""]).encode()


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (uevent("online", "/devices/system/cpu/cpu5", SUBSYSTEM="cpu"), Event("device", "cpu5", "online")),
        (uevent("bind", "/devices/x/0000:00:04.0", SUBSYSTEM="pci"), Event("device", "0000:00:04.0", "bind")),
        (uevent("add", "/devices/x/nvme/nvme1", SUBSYSTEM="nvme"), Event("device", "nvme1", "add")),
        (uevent("add", "/devices/x/net/ens4/queues/rx-0", SUBSYSTEM="queues"), None),
        (uevent("change", "/devices/x/net/ens4", SUBSYSTEM="net", INTERFACE="ens4"), None),
        (uevent("add", "/devices/virtual/block/loop0", SUBSYSTEM="block"), None),
        (b"libudev\0" + uevent("add", "/devices/x/net/ens4", SUBSYSTEM="net", INTERFACE="ens4")[4:], None),
    ],
)  # fmt: skip
def test_which_devices_count(message, event):
    assert list(link_events.device_events(message)) == ([event] if event else [])


#: Runs in a namespace of its own: each step is waited for until the listener tells of it.
SCRIPT = """
import array, fcntl, json, socket, struct, subprocess, sys, time
from hosttune.link_events import Listener

def channels(nic, number):
    asked = array.array("B", struct.pack("=9I", 0x3D, 0, 0, 0, 0, number, 4, 0, 0))  # ETHTOOL_SCHANNELS
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        fcntl.ioctl(made, 0x8946, struct.pack("16sP", nic.encode(), asked.buffer_info()[0]))

def ip(*words):
    subprocess.run(["ip", "link", *words], check=True)

queues = ("numrxqueues", "4", "numtxqueues", "4")
steps = [
    (lambda: ip("add", "name", "near", *queues, "type", "veth", "peer", "name", "far", *queues), "near add"),
    (lambda: ip("set", "far", "up"), "far without carrier"),
    (lambda: ip("set", "near", "up"), "near up"),
    (lambda: ip("set", "far", "down"), "near without carrier"),
    (lambda: ip("set", "far", "up"), "near up"),
    (lambda: channels("near", 2), "near channels changed"),
    (lambda: ip("set", "near", "down"), "near down"),
    (lambda: ip("set", "near", "name", "other"), "other move"),
    (lambda: ip("delete", "other"), "other gone"),
]
listener = Listener()
assert not listener.without, listener.without
for step, wanted in steps:
    while listener.wait(0.0):
        pass
    step()
    told, end = [], time.monotonic() + 120
    while wanted not in told and time.monotonic() < end:
        told += [str(event) for event in listener.wait(1.0)]
    print(json.dumps([wanted, wanted in told]))
assert listener.wait(0.01) is not None
"""


def test_a_real_kernel_tells_of_carrier_channels_and_devices():
    """A veth pair in a network namespace that ends with its only process."""
    ended = subprocess.run(
        ["unshare", "--net", *(["--map-root-user"] if os.geteuid() else []), sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1] / "module_utils")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    steps = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(steps) == 9
    assert [wanted for wanted, came in steps if not came] == []
