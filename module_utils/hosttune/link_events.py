"""What the kernel tells of NICs and CPUs that come, go and change, from its netlink sockets.

Three of them, with the standard library alone:

- NETLINK_ROUTE, group RTMGRP_LINK: links that come, go, are renamed, set up or down, win or lose carrier,
  and everything else that drivers make their queues anew for (MTU);
- NETLINK_KOBJECT_UEVENT, the kernel's own group: devices and CPUs that are plugged in or brought online;
- NETLINK_GENERIC, family `ethtool`, group `monitor`: rings, channels, coalescing, features that anybody
  changed, by whichever interface.

Messages are parsed from bytes by functions of their own. Sources: rtnetlink(7), netlink(7),
Documentation/networking/ethtool-netlink.rst and genetlink's controller, include/uapi/linux.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .netlink import attribute, attributes, messages

_ROUTE, _KOBJECT_UEVENT, _GENERIC = 0, 15, 16
_RTMGRP_LINK, _KERNEL_UEVENTS = 1, 1
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_RTM_NEWLINK, _RTM_DELLINK, _IFLA_IFNAME = 16, 17, 3
_IFF_UP, _IFF_LOWER_UP = 1, 0x10000
_NLMSG_ERROR, _NLM_F_REQUEST, _GENL_ID_CTRL = 2, 1, 16
_CTRL_GETFAMILY, _FAMILY_ID, _FAMILY_NAME, _MCAST_GROUPS, _GROUP_NAME, _GROUP_ID = 3, 1, 2, 7, 1, 2
_HEADER_NAME = 2

#: Notifications of ethtool netlink that tell of settings (ETHTOOL_MSG_*_NTF, from the kernel).
ETHTOOL_CHANGES = {
    3: "link information",
    5: "link modes",
    10: "wake on LAN",
    13: "features",
    15: "private flags",
    17: "rings",
    19: "channels",
    21: "coalescing",
    23: "pause",
    25: "EEE",
    31: "FEC",
}
#: What uevents can bring interrupts, queues or CPUs back, and by which action.
_SUBSYSTEMS = frozenset({"net", "cpu", "pci", "nvme", "virtio"})
_ACTIONS = frozenset({"add", "bind", "move", "online", "offline", "remove"})


@dataclass(frozen=True)
class Event:
    """One thing that the kernel told."""

    #: link, ethtool or net: of one NIC; device: CPUs, buses and disks; lost: the kernel dropped messages
    source: str
    #: NIC, cpu5, PCI address or nvme0
    device: str
    what: str

    def __str__(self) -> str:
        return f"{self.device} {self.what}".strip()


LOST = Event("lost", "", "events were lost")

# parsing


def _name(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "replace")


def link_events(data: bytes) -> Iterator[Event]:
    """The events of a datagram of NETLINK_ROUTE."""
    for kind, payload in messages(data):
        if kind not in (_RTM_NEWLINK, _RTM_DELLINK) or len(payload) < 16:
            continue
        (flags,) = struct.unpack_from("=I", payload, 8)
        name = next((_name(value) for one, value in attributes(payload[16:]) if one == _IFLA_IFNAME), "")
        if kind == _RTM_DELLINK:
            yield Event("link", name, "gone")
        elif not flags & _IFF_UP:
            yield Event("link", name, "down")
        else:
            yield Event("link", name, "up" if flags & _IFF_LOWER_UP else "without carrier")


def device_events(data: bytes) -> Iterator[Event]:
    """The event of a datagram of the kernel's uevents, if it can bring interrupts, queues or CPUs."""
    head, *pairs = data.split(b"\0")
    if b"@" not in head:
        return  # udev's own form
    about = dict(pair.decode("utf-8", "replace").partition("=")[::2] for pair in pairs if b"=" in pair)
    subsystem, action = about.get("SUBSYSTEM", ""), about.get("ACTION", "")
    if subsystem in _SUBSYSTEMS and action in _ACTIONS:
        last = about.get("DEVPATH", "").rpartition("/")[2]
        nic = about.get("INTERFACE", "") if subsystem == "net" else ""
        yield Event("net" if nic else "device", nic or last, action)


def ethtool_events(data: bytes, family: int) -> Iterator[Event]:
    """The events of a datagram of the ethtool family."""
    for kind, payload in messages(data):
        if kind != family or len(payload) < 4 or payload[0] not in ETHTOOL_CHANGES:
            continue
        header = dict(attributes(payload[4:])).get(1, b"")
        name = _name(dict(attributes(header)).get(_HEADER_NAME, b""))
        yield Event("ethtool", name, f"{ETHTOOL_CHANGES[payload[0]]} changed")


def ethtool_family(data: bytes) -> tuple[int, int] | None:
    """Number of the family and of its group `monitor` from the controller's answer; None if it has none."""
    for kind, payload in messages(data):
        if kind != _GENL_ID_CTRL:
            continue
        about = dict(attributes(payload[4:]))
        groups = [dict(attributes(group)) for _index, group in attributes(about.get(_MCAST_GROUPS, b""))]
        for group in groups:
            if _name(group.get(_GROUP_NAME, b"")) == "monitor" and _FAMILY_ID in about:
                return (
                    struct.unpack("=H", about[_FAMILY_ID])[0],
                    struct.unpack("=I", group[_GROUP_ID])[0],
                )
    return None


def family_request(name: str) -> bytes:
    """The question to the controller: which number has this family?"""
    asked = attribute(_FAMILY_NAME, name.encode() + b"\0")
    payload = struct.pack("=BBH", _CTRL_GETFAMILY, 1, 0) + asked
    return struct.pack("=IHHII", 16 + len(payload), _GENL_ID_CTRL, _NLM_F_REQUEST, 1, 0) + payload


# listening


class Listener:
    """The three sockets; raises OSError where the kernel lets us have none.

    `without` says what this kernel cannot tell.
    """

    #: A storm of links (a switch that restarts) must fit in before we come to read.
    _BUFFER = 1 << 20

    def __init__(self) -> None:
        self.without = ""
        self._readers: dict[int, tuple[socket.socket, Callable[[bytes], Iterator[Event]]]] = {}
        self._poll = select.poll()
        self._add(self._socket(_ROUTE, _RTMGRP_LINK), link_events)
        self._add(self._socket(_KOBJECT_UEVENT, _KERNEL_UEVENTS), device_events)
        generic = self._socket(_GENERIC, 0)
        family = self._ethtool(generic)
        if family is None:
            generic.close()
            self.without = "this kernel tells nothing of changes of rings, channels and coalescing"
            return
        generic.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, family[1])
        self._add(generic, lambda data: ethtool_events(data, family[0]))

    def _socket(self, protocol: int, groups: int) -> socket.socket:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._BUFFER)
        made.bind((0, groups))
        return made

    def _add(self, made: socket.socket, parse: Callable[[bytes], Iterator[Event]]) -> None:
        made.setblocking(False)
        self._readers[made.fileno()] = (made, parse)
        self._poll.register(made, select.POLLIN)

    @staticmethod
    def _ethtool(generic: socket.socket) -> tuple[int, int] | None:
        generic.settimeout(2.0)
        try:
            generic.send(family_request("ethtool"))
            return ethtool_family(generic.recv(65536))
        except socket.timeout:
            return None

    def wait(self, seconds: float | None) -> list[Event]:
        """The events that stand ready, after at most `seconds` (None: however long it takes)."""
        found: list[Event] = []
        for handle, _mask in self._poll.poll(None if seconds is None else max(0, round(seconds * 1000))):
            made, parse = self._readers[handle]
            while True:
                try:
                    # One address is the kernel's, 0: nobody else can make us write.
                    data, (sender, _groups) = made.recvfrom(65536)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno != 105:  # ENOBUFS: more came than fits
                        raise
                    found.append(LOST)
                    continue
                if sender == 0:
                    found += parse(data)
        return found

    def close(self) -> None:
        for made, _parse in self._readers.values():
            made.close()
