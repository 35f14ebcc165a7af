"""What a network interface's driver says of it, asked through the kernel's ethtool requests.

Reads only; `ethtool_set` writes. Groups of numbers are structs of 32-bit words: those of rings and channels
begin with the maxima. Names of keys are those that `ethtool -G`, `-L`, `-C`, `-A` and `-K` take.
"""

from __future__ import annotations

import array
import errno
import fcntl
import fnmatch
import os
import socket
import struct
from dataclasses import dataclass

from . import netlink

_SIOCETHTOOL = 0x8946
_GET_DRIVER, _GET_STRINGS, _GET_PERMANENT, _GET_COUNTS, _GET_FEATURES = 0x03, 0x1B, 0x20, 0x37, 0x3A
_FEATURE_STRINGS = 4
_STRING = 32


@dataclass(frozen=True)
class Group:
    """Numbers that the kernel reads and writes together."""

    name: str
    get: int
    set: int
    keys: tuple[str, ...]
    #: whether as many maxima stand before the values
    maxima: bool = False
    #: keys that are on or off
    switches: frozenset[str] = frozenset()


GROUPS = {
    group.name: group
    for group in (
        Group("ring", 0x10, 0x11, ("rx", "rx-mini", "rx-jumbo", "tx"), maxima=True),
        Group("channels", 0x3C, 0x3D, ("rx", "tx", "other", "combined"), maxima=True),
        Group(
            "coalesce",
            0x0E,
            0x0F,
            (
                *("rx-usecs", "rx-frames", "rx-usecs-irq", "rx-frames-irq"),
                *("tx-usecs", "tx-frames", "tx-usecs-irq", "tx-frames-irq"),
                *("stats-block-usecs", "adaptive-rx", "adaptive-tx"),
                *("pkt-rate-low", "rx-usecs-low", "rx-frames-low", "tx-usecs-low", "tx-frames-low"),
                *("pkt-rate-high", "rx-usecs-high", "rx-frames-high", "tx-usecs-high", "tx-frames-high"),
                "sample-interval",
            ),
            switches=frozenset({"adaptive-rx", "adaptive-tx"}),
        ),
        Group("pause", 0x12, 0x13, ("autoneg", "rx", "tx"), switches=frozenset({"autoneg", "rx", "tx"})),
    )
}

#: Features by the short names of `ethtool -K`: the long name that `ethtool -k` prints, and the kernel's own
#: ones that they stand for together.
ALIASES = {
    "rx": ("rx-checksumming", "rx-checksum"),
    "tx": ("tx-checksumming", "tx-checksum-*"),
    "sg": ("scatter-gather", "tx-scatter-gather*"),
    "tso": ("tcp-segmentation-offload", "tx-tcp*-segmentation"),
    "gso": ("generic-segmentation-offload", "tx-generic-segmentation"),
    "gro": ("generic-receive-offload", "rx-gro"),
    "lro": ("large-receive-offload", "rx-lro"),
    "rxvlan": ("rx-vlan-offload", "rx-vlan-hw-parse"),
    "txvlan": ("tx-vlan-offload", "tx-vlan-hw-insert"),
    "ntuple": ("ntuple-filters", "rx-ntuple-filter"),
    "rxhash": ("receive-hashing", "rx-hashing"),
}
_SHORT = {
    **{long: short for short, (long, _pattern) in ALIASES.items()},
    **{pattern: short for short, (_long, pattern) in ALIASES.items() if "*" not in pattern},
}


@dataclass(frozen=True)
class Numbers:
    """One group of an interface: its words as the kernel gave them, and what its keys are."""

    group: Group
    words: tuple[int, ...]
    #: keys that the driver knows
    known: frozenset[str]

    def place(self, key: str) -> int:
        """Where a key's value stands in `words`."""
        return self.group.keys.index(key) + (len(self.group.keys) if self.group.maxima else 0)

    def text(self, key: str) -> str:
        number = self.words[self.place(key)]
        return ("on" if number else "off") if key in self.group.switches else str(number)

    def maximum(self, key: str) -> int | None:
        """The largest value that the device takes, None where it does not say."""
        return self.words[self.group.keys.index(key)] if self.group.maxima else None


@dataclass(frozen=True)
class Feature:
    """One of the kernel's features of an interface."""

    place: int
    active: bool
    changeable: bool


def short_feature(name: str) -> str:
    """One name for all that name the same feature."""
    return _SHORT.get(name, name)


class Ethtool:
    """The interfaces of this machine; those of another root folder cannot be asked."""

    def __init__(self, root: str = "/") -> None:
        self.root = root

    def links(self) -> dict[str, netlink.Link]:
        self._only_here()
        return {link.name: link for link in netlink.links()}

    def exchange(self, interface: str, request: bytes) -> bytes:
        """One ethtool request: the struct that the kernel made of it; raises OSError."""
        self._only_here()
        struct_there = array.array("B", request)
        address, _length = struct_there.buffer_info()
        asked = struct.pack("16sP", _name(interface), address).ljust(40, b"\0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
            fcntl.ioctl(wire, _SIOCETHTOOL, asked)
        return struct_there.tobytes()

    def route(self, kind: int, flags: int, body: bytes) -> None:
        """One request of rtnetlink that is acknowledged; raises OSError."""
        self._only_here()
        netlink.exchange(socket.NETLINK_ROUTE, kind, flags, body)

    def coalescing(self, interface: str) -> frozenset[int] | None:
        """See netlink.coalescing()."""
        self._only_here()
        return netlink.coalescing(interface)

    def _only_here(self) -> None:
        if self.root != "/":
            raise OSError(errno.ENODEV, "network interfaces of another root folder cannot be asked")

    def driver(self, interface: str) -> str:
        """The driver's name; raises OSError where there is none to ask."""
        answer = self.exchange(interface, struct.pack("=I", _GET_DRIVER).ljust(196, b"\0"))
        return answer[4:36].split(b"\0")[0].decode("utf-8", "replace")

    def permanent_address(self, interface: str) -> bytes:
        """The hardware's own address, empty where it has none; raises OSError."""
        answer = self.exchange(interface, struct.pack("=II", _GET_PERMANENT, 32).ljust(40, b"\0"))
        size = struct.unpack_from("=4xI", answer)[0]
        return answer[8 : 8 + size]

    def numbers(self, interface: str, group: Group) -> Numbers:
        """A group's values; raises OSError (EOPNOTSUPP where the driver has none of it)."""
        count = 1 + len(group.keys) * (2 if group.maxima else 1)
        answer = self.exchange(interface, struct.pack(f"={count}I", group.get, *[0] * (count - 1)))
        words = struct.unpack(f"={count}I", answer)[1:]
        known = frozenset(group.keys)
        if group.maxima:
            known = frozenset(key for key, most in zip(group.keys, words) if most)
        elif group.name == "coalesce":
            places = self.coalescing(interface)
            if places is not None:
                known = frozenset(group.keys[place] for place in places if place < len(group.keys))
        return Numbers(group, words, known)

    def features(self, interface: str) -> dict[str, Feature]:
        """The kernel's features by its own names; raises OSError."""
        asked = struct.pack("=IIQI", _GET_COUNTS, 0, 1 << _FEATURE_STRINGS, 0)
        count = struct.unpack_from("=16xI", self.exchange(interface, asked))[0]
        head = struct.pack("=III", _GET_STRINGS, _FEATURE_STRINGS, count)
        strings = self.exchange(interface, head + bytes(count * _STRING))[12:]
        blocks = (count + 31) // 32
        asked = struct.pack("=II", _GET_FEATURES, blocks) + bytes(blocks * 16)
        bits = struct.unpack(f"={blocks * 4}I", self.exchange(interface, asked)[8:])
        found = {}
        for place in range(count):
            name = strings[place * _STRING : (place + 1) * _STRING].split(b"\0")[0].decode()
            if name:
                available, _requested, active, never = (
                    bool(word >> place % 32 & 1) for word in bits[place // 32 * 4 : place // 32 * 4 + 4]
                )
                found[name] = Feature(place, active, available and not never)
        return found


def members(features: dict[str, Feature], name: str) -> dict[str, Feature]:
    """The kernel's features that a name of `ethtool -K` stands for, none where it is no feature's."""
    pattern = ALIASES[name][1] if name in ALIASES else name
    return {one: feature for one, feature in features.items() if fnmatch.fnmatchcase(one, pattern)}


def _name(interface: str) -> bytes:
    raw = os.fsencode(interface)
    if len(raw) > 15:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    return raw
