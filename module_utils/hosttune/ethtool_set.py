"""Sets what `ethtool` reads: one request for all that changes in a group, since each may reset the driver."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from . import netlink
from .ethtool import Ethtool, Group, members

_SET_FEATURES = 0x3B
_SET_LINK, _ACKNOWLEDGE = 19, 0x4
#: Keys of the link that the kernel takes by netlink.
LINK = {"mtu": netlink.MTU, "txqueuelen": netlink.QUEUE_LENGTH}


def numbers(tool: Ethtool, interface: str, group: Group, values: Mapping[str, str]) -> bool:
    """Sets these keys, the others as they are; says whether there was anything to set. Raises OSError."""
    now = tool.numbers(interface, group)
    words = list(now.words)
    for key, value in values.items():
        words[now.place(key)] = int(value == "on") if key in group.switches else int(value)
    if tuple(words) == now.words:
        return False
    tool.exchange(interface, struct.pack(f"={1 + len(words)}I", group.set, *words))
    return True


def features(tool: Ethtool, interface: str, values: Mapping[str, str]) -> bool:
    """Turns features on or off by the names of `ethtool -K`; as `numbers`."""
    now = tool.features(interface)
    blocks = (max((one.place for one in now.values()), default=0)) // 32 + 1
    valid, requested = [0] * blocks, [0] * blocks
    for name, value in values.items():
        there = members(now, name)
        if value == ("on" if any(one.active for one in there.values()) else "off"):
            continue
        for one in there.values():
            if one.changeable:
                valid[one.place // 32] |= 1 << one.place % 32
                requested[one.place // 32] |= (value == "on") << one.place % 32
    if not any(valid):
        return False
    pairs = [word for pair in zip(valid, requested) for word in pair]
    tool.exchange(interface, struct.pack(f"={2 + 2 * blocks}I", _SET_FEATURES, blocks, *pairs))
    return True


def link(tool: Ethtool, interface: str, key: str, value: int) -> None:
    """Sets one of LINK of an interface; raises OSError."""
    body = struct.pack("=BxHiII", 0, 0, tool.links()[interface].index, 0, 0)
    body += netlink.attribute(LINK[key], struct.pack("=I", value))
    tool.route(_SET_LINK, _ACKNOWLEDGE, body)
