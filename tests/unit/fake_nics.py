"""Network interfaces in memory that answer the requests of ethtool as the kernel does, struct by struct."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, field

from fake_host import FakeHost
from hosttune import keeper
from hosttune.ethtool import GROUPS, Ethtool
from hosttune.netlink import Link
from hosttune.system import Ran

_BY_REQUEST = {request: group for group in GROUPS.values() for request in (group.get, group.set)}


@dataclass
class Device:
    """One interface. Groups hold values by key; what is not there, the driver does not have."""

    driver: str = "e1000e"
    groups: dict[str, dict[str, int]] = field(default_factory=dict)
    maxima: dict[str, dict[str, int]] = field(default_factory=dict)
    #: name -> whether it is on; those in `fixed` cannot be changed
    features: dict[str, bool] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    altnames: tuple[str, ...] = ()
    address: str = "02:00:00:00:00:01"
    mtu: int = 1500
    queue_length: int = 1000
    #: rings are rounded up to a multiple of this
    step: int = 1
    #: what another number of channels sets back: group -> key -> value
    lost: dict[str, dict[str, int]] = field(default_factory=dict)


def e1000e(**more) -> Device:
    groups = {
        "ring": {"rx": 256, "tx": 256},
        "coalesce": {"rx-usecs": 3},
        "pause": {"autoneg": 1, "rx": 1, "tx": 1},
    }
    features = {
        **{"rx-gro": True, "tx-tcp-segmentation": True, "tx-tcp6-segmentation": True, "rx-hashing": True},
        **{"tx-generic-segmentation": True, "rx-lro": False, "rx-vlan-filter": True},
    }
    maxima = {"ring": {"rx": 4096, "tx": 4096}}
    fixed = frozenset({"rx-lro", "rx-vlan-filter"})
    return Device(**{"groups": groups, "maxima": maxima, "features": features, "fixed": fixed, **more})


def virtio(**more) -> Device:
    groups = {
        "ring": {"rx": 256, "tx": 256},
        "channels": {"combined": 4},
        "coalesce": {"rx-usecs": 0, "rx-frames": 1, "adaptive-rx": 0},
    }
    maxima = {"ring": {"rx": 256, "tx": 256}, "channels": {"combined": 4}}
    features = {"rx-gro": True, "rx-ntuple-filter": False}
    return Device(
        **{"driver": "virtio_net", "groups": groups, "maxima": maxima, "features": features, **more}
    )


class Kernel:
    """The interfaces of one fake host; `sets` has every request that changed something or tried to."""

    def __init__(self, **devices: Device) -> None:
        self.devices = devices
        self.sets: list[tuple] = []

    def tool(self, _root: str = "/") -> FakeEthtool:
        return FakeEthtool(self)


class FakeEthtool(Ethtool):
    def __init__(self, kernel: Kernel) -> None:
        super().__init__("/")
        self.kernel = kernel

    def links(self) -> dict[str, Link]:
        found = {"lo": Link("lo", 1, 0x9, mtu=65536, queue_length=1000)}
        for index, (name, one) in enumerate(self.kernel.devices.items(), 2):
            found[name] = Link(name, index, 1, "", one.altnames, one.mtu, one.queue_length, 68, 9216)
        return found

    def coalescing(self, interface: str) -> frozenset[int]:
        keys = GROUPS["coalesce"].keys
        return frozenset(keys.index(key) for key in self.kernel.devices[interface].groups["coalesce"])

    def route(self, kind: int, flags: int, body: bytes) -> None:
        index, attribute, value = (
            struct.unpack_from("=4xi", body)[0],
            *struct.unpack_from("=2xHI", body, 16),
        )
        name = next(link.name for link in self.links().values() if link.index == index)
        self.kernel.sets.append((name, "link", attribute, value))
        setattr(self.kernel.devices[name], {4: "mtu", 13: "queue_length"}[attribute], value)

    def exchange(self, interface: str, request: bytes) -> bytes:
        device = self.kernel.devices.get(interface)
        command = struct.unpack_from("=I", request)[0]
        if device is None:
            raise self.error(errno.EOPNOTSUPP if interface == "lo" else errno.ENODEV)
        if command == 0x03:
            return (struct.pack("=I", command) + device.driver.encode()).ljust(len(request), b"\0")
        if command == 0x20:
            return struct.pack("=II", command, 6) + bytes.fromhex(device.address.replace(":", "")) + bytes(26)
        if command in (0x37, 0x1B, 0x3A, 0x3B):
            return self._features(interface, device, command, request)
        return self._numbers(interface, device, command, request)

    @staticmethod
    def error(number: int) -> OSError:
        return OSError(number, os.strerror(number))

    def _features(self, interface: str, device: Device, command: int, request: bytes) -> bytes:
        names = list(device.features)
        if command == 0x37:
            return request[:16] + struct.pack("=I", len(names))
        if command == 0x1B:
            return request[:12] + b"".join(name.encode().ljust(32, b"\0") for name in names)
        if command == 0x3A:
            active = sum(device.features[name] << place for place, name in enumerate(names))
            available = sum((name not in device.fixed) << place for place, name in enumerate(names))
            return request[:8] + struct.pack("=IIII", available, active, active, 0)
        valid, requested = struct.unpack_from("=8xII", request)
        chosen = {name: bool(requested >> at & 1) for at, name in enumerate(names) if valid >> at & 1}
        self.kernel.sets.append((interface, "features", chosen))
        device.features.update(chosen)
        return request

    def _numbers(self, interface: str, device: Device, command: int, request: bytes) -> bytes:
        group = _BY_REQUEST[command]
        if group.name not in device.groups:
            raise self.error(errno.EOPNOTSUPP)
        now, most = device.groups[group.name], device.maxima.get(group.name, {})
        maxima = [most.get(key, 0) for key in group.keys] if group.maxima else []
        if command == group.get:
            return struct.pack(
                f"={1 + len(maxima) + len(group.keys)}I",
                command,
                *maxima,
                *(now.get(key, 0) for key in group.keys),
            )
        words = struct.unpack(f"={len(request) // 4}I", request)[1 + len(maxima) :]
        given = dict(zip(group.keys, words))
        self.kernel.sets.append((interface, group.name, given))
        if any(value and key not in now for key, value in given.items()):
            raise self.error(errno.EOPNOTSUPP)
        if any(value > most.get(key, value) for key, value in given.items()):
            raise self.error(errno.EINVAL)
        if group.name == "ring":
            given = {key: -(-value // device.step) * device.step for key, value in given.items()}
        if group.name == "channels" and given["combined"] != now["combined"]:
            for name, values in device.lost.items():
                device.groups[name].update(values)
        now.update({key: value for key, value in given.items() if key in now})
        return request


class NicHost(FakeHost):
    """The small host with udev 252, and with the unit that keeps what no file holds (`kept`)."""

    kept = "enabled"

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        if argv == ("udevadm", "--version"):
            return Ran(0, "252\n", "")
        if argv[:2] == ("systemctl", "is-enabled") and argv[-1] == keeper.UNIT:
            return Ran(int(self.kept != "enabled"), f"{self.kept}\n", "")
        return super().run(*argv)

    def interface(self, name: str, device: Device, assign_type: str = "3") -> None:
        """What /sys says of one."""
        for file, text in {
            "address": device.address,
            "addr_assign_type": "0",
            "name_assign_type": assign_type,
            "type": "1",
            "uevent": f"INTERFACE={name}",
        }.items():
            self.put(f"/sys/class/net/{name}/{file}", f"{text}\n")
