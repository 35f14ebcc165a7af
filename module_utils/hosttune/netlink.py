"""Network interfaces as the kernel lists them (rtnetlink), and what its ethtool family knows of them.

Asks only; what is set is set by `ethtool_set`. Raises OSError. Source: rtnetlink(7), the kernel's
Documentation/networking/ethtool-netlink.rst.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

#: NETLINK_GENERIC, which Python's socket does not name.
_GENERIC_NETLINK = 16
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_GET_LINK, _NEW_LINK = 18, 16
_GENERIC_CONTROL, _GET_FAMILY = 16, 3
_GET_COALESCE = 19
_NESTED = 0x8000
#: Attribute types carry two flags above them.
_TYPE_MASK = 0x3FFF
#: Attributes of a link (linux/if_link.h).
MTU, QUEUE_LENGTH = 4, 13
_NAME, _LINK_INFO, _EXT_MASK, _MIN_MTU, _MAX_MTU, _PROPERTIES, _ALT_NAME = 3, 18, 29, 50, 51, 52, 53
_NUMBERS = (MTU, QUEUE_LENGTH, _MIN_MTU, _MAX_MTU)
_WITHOUT_STATISTICS = 8


@dataclass(frozen=True)
class Link:
    """One network interface. `kind` is empty of hardware; an mtu of 0 is no limit."""

    name: str
    index: int
    flags: int
    kind: str = ""
    altnames: tuple[str, ...] = ()
    mtu: int = 0
    queue_length: int = 0
    least_mtu: int = 0
    most_mtu: int = 0

    @property
    def loopback(self) -> bool:
        return bool(self.flags & 0x8)


def links() -> list[Link]:
    """Every interface of this network namespace."""
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(
        _EXT_MASK, struct.pack("=I", _WITHOUT_STATISTICS)
    )
    found = []
    for kind, answer in exchange(socket.NETLINK_ROUTE, _GET_LINK, _DUMP, body):
        if kind == _NEW_LINK:
            _family, _type, index, flags, _change = struct.unpack_from("=BxHiII", answer)
            about = dict(attributes(answer[16:]))
            inner = dict(attributes(about.get(_LINK_INFO, b"")))
            altnames = [
                _text(value) for one, value in attributes(about.get(_PROPERTIES, b"")) if one == _ALT_NAME
            ]
            found.append(
                Link(
                    _text(about[_NAME]),
                    index,
                    flags,
                    _text(inner.get(1, b"")),
                    tuple(altnames),
                    *(struct.unpack("=I", about.get(one, bytes(4)))[0] for one in _NUMBERS),
                )
            )
    return found


def coalescing(name: str) -> frozenset[int] | None:
    """The places in struct ethtool_coalesce (0 is rx_coalesce_usecs) that an interface's driver knows.

    None where the kernel has no ethtool family to ask; raises OSError for a driver that knows none.
    """
    family = _ethtool_family()
    if family is None:
        return None
    header = attribute(1 | _NESTED, attribute(2, name.encode() + b"\0"))
    found: set[int] = set()
    for kind, answer in exchange(_GENERIC_NETLINK, family, 0, _generic(_GET_COALESCE, header)):
        if kind == family:
            # What the driver does not know is left out unless it is not zero.
            found |= {one - 2 for one, _value in attributes(answer[4:]) if 2 <= one <= 23}
    return frozenset(found)


def _ethtool_family() -> int | None:
    asked = _generic(_GET_FAMILY, attribute(2, b"ethtool\0"))
    try:
        answers = exchange(_GENERIC_NETLINK, _GENERIC_CONTROL, 0, asked)
        for _kind, answer in answers:
            return int(struct.unpack_from("=H", dict(attributes(answer[4:]))[1])[0])
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EPROTONOSUPPORT):
            raise
    return None


def exchange(protocol: int, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
    """The kernel's answers (type, body) to one request."""
    found: list[tuple[int, bytes]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as wire:
        wire.bind((0, 0))
        wire.sendall(struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | flags, 1, 0) + body)
        while True:
            for answered, inner in messages(wire.recv(1 << 20)):
                if answered == _ERROR:
                    number = -struct.unpack_from("=i", inner)[0]
                    if number:
                        raise OSError(number, os.strerror(number))
                    return found
                if answered == _DONE:
                    return found
                found.append((answered, inner))
            if not flags & _DUMP:
                return found


def _generic(command: int, body: bytes) -> bytes:
    return struct.pack("=BBH", command, 1, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each netlink message in a datagram; what is cut off is left out."""
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if length < 16 or at + length > len(data):
            return
        yield kind, data[at + 16 : at + length]
        at += length + 3 & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each attribute; what is cut off is left out."""
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            return
        yield kind & _TYPE_MASK, data[at + 4 : at + length]
        at += length + 3 & ~3


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "surrogateescape")
