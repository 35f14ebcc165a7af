"""Kind nic: rings, channels, coalescing, offloads, flow control, queues and the link of a network interface.

Names are IFACE/GROUP/KEY; an alternative name of the interface will do. Groups and keys are ethtool's: `ring`
(-G), `channels` (-L), `coalesce` (-C), `pause` (-A), `features` (-K: by short name, by the long one that -k
prints, or by the kernel's); `link` has mtu, txqueuelen, gro_flush_timeout, napi_defer_hard_irqs and threaded;
`queue` has the attributes of one queue, such as eth0/queue/tx-0.xps_cpus (a mask in hex).

Live values are asked of the driver; what changes in one group of one interface is set by one request. After
one that made the queues anew, what this call asks for of the same interface is looked at once more.

Persisted where the .link file that decides over the interface today is its own: as a drop-in of that file,
which names nothing. Everything else is kept by hosttune-link.service (`keeper`): a drop-in of a file that
decides over others too (99-default.link) would set those as well, and a [Match] cannot be narrowed by one.
docs/architecture.md has the reasons.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from .. import ethtool, keeper, links
from ..ethtool import GROUPS, Ethtool
from ..model import Call, Change, Definition, FileImage, Planes, Refusal, Setting
from ..netlink import Link
from ..system import KERNEL_SHARED, System
from .base import Kind, did_you_mean
from .sysctl import mask

#: Attributes below /sys/class/net/IFACE and those of a queue.
LINK_FILES = ("gro_flush_timeout", "napi_defer_hard_irqs", "threaded")
LINK_KEYS = ("mtu", "txqueuelen", *LINK_FILES)
QUEUE_KEYS = {"rx": ("rps_cpus", "rps_flow_cnt"), "tx": ("xps_cpus", "xps_rxqs")}
ALL_GROUPS = (*GROUPS, "features", "link", "queue")
#: Features that the kernel turns on and off by itself; for others the driver may start the interface anew.
_SOFTWARE = frozenset(
    {"gro", "gso", "rx-gro-list", "rx-udp-gro-forwarding", "tx-nocache-copy", "tx-gso-list"}
)
#: Drivers that start the interface anew for another way of coalescing.
_RESETTING = frozenset({"ixgbe", "mlx5_core"})
#: In the order in which they are set: each may lose what stands behind it.
_ORDER = ("channels", "ring", "pause", "features", "coalesce", "link", "queue")
_CAP_NET_ADMIN = 12
#: The first systemd whose .link files are read here.
_LEAST_UDEV = 252

_QUEUE = re.compile(r"(?:rx|tx)-\d+\Z")
_NUMBER = re.compile(r"(0|[1-9][0-9]*)\Z")
_DROPIN = "60-hosttune-"


class NicKind(Kind):
    """See the module's docstring."""

    name = "nic"

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.tool = Ethtool(system.root)
        self.keeper = keeper.Keeper(system)
        #: what this call asks for; what the manifest holds, or will
        self._asked: dict[str, str] = {}
        self._known: dict[str, str] = {}
        self._winners: dict[str, tuple[links.LinkFile | None, list[str]]] = {}

    # names and values

    def recall(self, setting: Setting) -> None:
        self.keeper.recall(setting)
        self._known[setting.name] = setting.value

    def canonical(self, name: str) -> str:
        interface, group, key = _split(name)
        return f"{self._interface(interface) or interface}/{group}/{key}"

    @functools.cached_property
    def _links(self) -> dict[str, Link]:
        try:
            return self.tool.links()
        except OSError:
            return {}

    def _interface(self, name: str) -> str | None:
        """The interface that a name or an alternative name stands for."""
        if name in self._links:
            return name
        return next((link.name for link in self._links.values() if name in link.altnames), None)

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        seen: dict[str, Setting] = {}
        live = Live(self.tool, self.system)
        for setting in settings:
            interface, group, key = _split(setting.name)
            if not interface or not key:
                raise Refusal(
                    "is no IFACE/GROUP/KEY", thing=str(setting), remedy="Such as eth0/coalesce/rx-usecs"
                )
            if group not in ALL_GROUPS:
                raise Refusal(
                    f"{group} is no group of settings of an interface",
                    thing=str(setting),
                    remedy=did_you_mean(group, ALL_GROUPS) or f"Groups are {', '.join(ALL_GROUPS)}",
                )
            real = self._interface(interface)
            if real is None:
                self._refuse_missing(setting, interface)
            self._check_key(setting, live, str(real), group, key)
            self._check_value(setting, live, str(real), group, key)
            other = seen.setdefault(self.canonical(setting.name), setting)
            if other is not setting:
                raise Refusal(f"is the same as {other.name}", thing=str(setting), remedy="Name it once")
            self._asked[setting.name] = setting.value

    def _refuse_missing(self, setting: Setting, interface: str) -> None:
        try:
            there = self.tool.links()
        except OSError as error:
            raise Refusal(
                f"the kernel does not list its interfaces: {error.strerror}",
                thing=str(setting),
                remedy="Leave the setting out",
            ) from error
        names = [name for link in there.values() for name in (link.name, *link.altnames)]
        near = did_you_mean(interface, names)
        shown = f"Its interfaces are {', '.join(sorted(there)) or 'none'}"
        raise Refusal(
            f"this host has no network interface {interface}",
            thing=str(setting),
            remedy=f"{near} {shown}" if near else shown,
        )

    @staticmethod
    def _check_key(setting: Setting, live: Live, interface: str, group: str, key: str) -> None:
        if group == "features":
            try:
                known = live.features(interface)
            except OSError:
                return  # `read` says why
            names = [*ethtool.ALIASES, *(long for long, _pattern in ethtool.ALIASES.values()), *known]
            if known and not ethtool.members(known, key):
                raise Refusal(
                    f"the kernel has no feature {setting.name.partition('/features/')[2]}",
                    thing=str(setting),
                    remedy=did_you_mean(key, names) or "`ethtool -k IFACE` lists them",
                )
            return
        if group == "queue":
            queue, _dot, attribute = key.partition(".")
            known_here = QUEUE_KEYS.get(queue[:2], ())
            if not _QUEUE.match(queue) or attribute not in known_here:
                raise Refusal(
                    f"{key} is no attribute of a queue",
                    thing=str(setting),
                    remedy=did_you_mean(attribute, known_here)
                    or "Such as rx-0.rps_cpus, rx-0.rps_flow_cnt, tx-0.xps_cpus or tx-0.xps_rxqs",
                )
            there = live.queues(interface)
            if there and queue not in there:
                raise Refusal(
                    f"{interface} has no queue {queue}",
                    thing=str(setting),
                    remedy=f"Its queues are {', '.join(there)}",
                )
            return
        keys = LINK_KEYS if group == "link" else GROUPS[group].keys
        if key not in keys:
            raise Refusal(
                f"{group} has no key {key}",
                thing=str(setting),
                remedy=did_you_mean(key, keys) or f"Keys are {', '.join(keys)}",
            )

    def _check_value(self, setting: Setting, live: Live, interface: str, group: str, key: str) -> None:
        value = setting.value
        if _is_switch(group, key):
            if value not in ("on", "off"):
                raise Refusal(
                    f"'{value}' is neither on nor off",
                    thing=str(setting),
                    remedy='Write "on" or "off", in quotes',
                )
            return
        if group == "queue" and not key.endswith("rps_flow_cnt"):
            try:
                mask(value)
            except ValueError:
                raise Refusal(
                    f"'{value}' is no mask",
                    thing=str(setting),
                    remedy="Give one in hex, such as f for 0 to 3",
                ) from None
            return
        if not _NUMBER.match(value) or int(value) >= 2**32:
            raise Refusal(f"'{value}' is not of its type", thing=str(setting), remedy="Give a whole number")
        least, most = self._range(live, interface, group, key)
        if int(value) < least or (most is not None and int(value) > most):
            raise Refusal(
                f"{value} is out of range",
                thing=str(setting),
                remedy=f"{interface} ({live.driver(interface)}) takes {least} to {most}"
                if most is not None
                else f"Give {least} or more",
            )

    def _range(self, live: Live, interface: str, group: str, key: str) -> tuple[int, int | None]:
        """The least and the largest value that the device takes; None is no limit that it would tell."""
        if group in ("ring", "channels"):
            try:
                found = live.numbers(interface, group)
            except OSError:
                return 0, None
            if key in found.known:
                return int(group == "ring"), found.maximum(key)
            return 0, None  # what the driver does not have is `unsupported`, not out of range
        if key == "mtu":
            link = self._links[interface]
            return link.least_mtu, link.most_mtu or None
        if key == "threaded":
            return 0, 1
        return 0, None

    def same(self, name: str, wanted: str, found: str) -> bool:
        if wanted == found:
            return True
        _interface, group, key = _split(name)
        if group == "queue" and not key.endswith("rps_flow_cnt"):
            try:
                return mask(wanted) == mask(found)
            except ValueError:
                return False
        return bool(_NUMBER.match(wanted) and _NUMBER.match(found)) and int(wanted) == int(found)

    def clamps(self, name: str, wanted: str, found: str) -> str:
        if not (_NUMBER.match(wanted) and _NUMBER.match(found)):
            return ""
        interface, group, _key = _split(name)
        asked, took = int(wanted), int(found)
        if group == "ring" and took >= asked // 2 and took:
            return f"the driver of {interface} takes rings in steps: {took} descriptors instead of {asked}"
        if group == "coalesce" and abs(asked - took) <= max(2, asked // 8):
            return f"the driver of {interface} counts in steps: {took} instead of {asked}"
        if name.endswith(".rps_flow_cnt") and asked < took < 2 * asked:
            return f"the kernel takes powers of two: {took} instead of {asked}"
        return ""

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        live = Live(self.tool, self.system)
        return {name: self._read_one(name, live) for name in names}

    def _read_one(self, name: str, live: Live) -> Planes:
        planes = Planes()
        asked_for, group, key = _split(name)
        try:
            there = live.links()
        except OSError as error:
            planes.unknown = f"the kernel does not list its interfaces: {error.strerror}"
            return planes
        interface = self._interface(asked_for)
        if interface is None or interface not in there:
            planes.unsupported = f"this host has no network interface {asked_for} now"
            return planes
        if self.system.container:
            planes.unsupported = self._not_its_own(there)
        try:
            planes.live = live.value(interface, group, key)
        except Absent as absent:
            planes.unsupported = planes.unsupported or str(absent)
            return planes
        except Fixed as fixed:
            planes.live = str(fixed)
            wanted = self._asked.get(name, self._known.get(name))
            if wanted == planes.live:
                planes.has_persisted = False  # there is nothing that could change it
            else:
                planes.unsupported = f"{live.driver(interface)} has {key} fixed to {fixed}"
            return planes
        except OSError as error:
            if not planes.unsupported:
                planes.unknown = f"{interface}: {error.strerror}"
            return planes
        self._persisted(planes, name, interface, live)
        self._say_the_way_in(planes, name, interface)
        return planes

    def _not_its_own(self, there: Mapping[str, Link]) -> str:
        """Why a container's interfaces are not its own to set, empty where they are."""
        if any(self.system.exists(f"/sys/class/net/{name}/device") for name in there):
            return KERNEL_SHARED  # it sees hardware: the network namespace is the machine's
        for line in self.system.read("/proc/1/status").splitlines():
            if line.startswith("CapBnd:") and not int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1:
                return "this container may not set network interfaces: it lacks CAP_NET_ADMIN"
        return ""

    def _say_the_way_in(self, planes: Planes, name: str, interface: str) -> None:
        """Says of what is to be set by a reset that the host is reached through it."""
        wanted = self._asked.get(name, self._known.get(name))
        if wanted is None or planes.live is None or self.same(name, wanted, planes.live):
            return
        if self.disruption_of(name, wanted, planes) == "resets" and interface in self._default_routes:
            planes.note = f"{interface} is the way of this host's default route: it is cut while that happens"

    @functools.cached_property
    def _default_routes(self) -> frozenset[str]:
        try:
            rows = self.system.read("/proc/net/route").splitlines()[1:]
        except OSError:
            return frozenset()
        return frozenset(row.split()[0] for row in rows if row.split()[1:2] == ["00000000"])

    def _persisted(self, planes: Planes, name: str, interface: str, live: Live) -> None:
        """What udev's file says at the next boot, and then what the unit makes of it."""
        _asked_for, group, key = _split(name)
        file, doubts = self._winner(interface)
        if doubts:
            planes.note = f"udev alone knows whether {', '.join(doubts)} is for it"
        if file is not None:
            planes.definitions = _definitions(file, group, key, live, interface)
        winner = planes.winner
        kept = self.keeper.value(name)
        if kept is None or (winner is not None and self.same(name, kept, winner.value)):
            return  # the unit has nothing to do
        self.keeper.persist(planes, name)

    @functools.cached_property
    def _files(self) -> list[links.LinkFile]:
        """The .link files that udev reads, none where no udevd of this host does."""
        if self.system.container:
            return []
        said = self.system.run("udevadm", "--version")
        version = re.match(r"\d+", said.out)
        if not said.ok or version is None or int(version[0]) < _LEAST_UDEV:
            return []
        return links.load(self.system)

    @functools.cached_property
    def _nics(self) -> dict[str, links.Nic]:
        return links.nics(self.system, self.tool)

    @functools.cached_property
    def _machine(self) -> links.Machine:
        return links.Machine(self.system)

    def _winner(self, interface: str) -> tuple[links.LinkFile | None, list[str]]:
        """See links.winner()."""
        if interface not in self._winners:
            known = self._files and interface in self._nics
            self._winners[interface] = (
                links.winner(self._files, self._nics[interface], self._machine) if known else (None, [])
            )
        return self._winners[interface]

    # persistence

    def managed_file(self, owner: str, name: str) -> str:
        file = self._own_file(name)
        if file is None:
            return keeper.FILE
        return f"/etc/systemd/network/{os.path.basename(file.file)}.d/{_DROPIN}{owner}.conf"

    def _own_file(self, name: str) -> links.LinkFile | None:
        """The .link file that can hold a setting: it decides over this interface and over no other."""
        asked_for, group, key = _split(name)
        interface = self._interface(asked_for)
        if interface is None or not links.directives(group, key):
            return None
        if self._asked.get(name, self._known.get(name)) == "0" and (
            group in ("ring", "channels") or key in ("stats-block-usecs", "sample-interval")
        ):
            return None  # a .link file takes 0 for no value there
        file, doubts = self._winner(interface)
        if file is None or doubts or not file.names_hardware:
            return None
        others = [one for one in self._nics if one != interface and self._winner(one)[0] is file]
        return None if others else file

    def render(self, owner: str, settings: Sequence[Setting]) -> dict[str, FileImage]:
        return super().render(
            owner, [one for one in settings if self.managed_file(owner, one.name) != keeper.FILE]
        )

    def body(self, settings: Sequence[Setting]) -> str:
        lines: list[str] = []
        for setting in settings:
            _interface, group, key = _split(setting.name)
            lines += links.write(group, key, setting.value)
        assert not {line.partition("=")[0] for line in lines} & links.NAMING  # noqa: S101
        return "\n".join(["[Link]", *dict.fromkeys(lines), ""])

    def outranks(self, file: str, ours: str) -> bool:
        return file != keeper.FILE and ours != keeper.FILE and super().outranks(file, ours)

    def foretell(self, setting: Setting, planes: Planes, call: Call) -> Planes:
        then = super().foretell(setting, planes, call)
        then.where = ""  # the role that asks for such settings brings the unit
        return then

    # the live plane

    def disruption_of(self, name: str, wanted: str, planes: Planes) -> str:
        asked_for, group, key = _split(name)
        if group in ("ring", "channels", "pause") or key == "mtu":
            return "resets"
        if group == "features":
            return "silent" if key in _SOFTWARE else "resets"
        if group == "coalesce":
            interface = self._interface(asked_for)
            return (
                "resets"
                if interface and Live(self.tool, self.system).driver(interface) in _RESETTING
                else "silent"
            )
        return "moves" if group == "queue" else "silent"

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        todo = {change.name: change.value for change in changes if not change.persist_only}
        # Queues that are made anew, or a driver that starts anew, may lose what else was set before.
        started = {_split(name)[0] for name in todo if _split(name)[1] in ("channels", "ring", "features")}
        beside = [name for name in self._asked if name not in todo and _split(name)[0] in started]
        right = self._as_asked(beside)
        failed = self._set(todo)
        lost = set(right) - set(self._as_asked(right))
        return {**self._set({name: self._asked[name] for name in lost}), **failed}

    def _as_asked(self, names: Sequence[str]) -> list[str]:
        """Those of these names whose live value is the one asked for."""
        found = self.read(names)
        return [
            name
            for name in names
            if found[name].live is not None and self.same(name, self._asked[name], str(found[name].live))
        ]

    def _set(self, values: Mapping[str, str]) -> dict[str, str]:
        """Sets live values, one request a group of an interface; returns name -> why it failed."""
        together: dict[tuple[int, str, str], dict[str, str]] = {}
        for name in values:
            asked_for, group, key = _split(name)
            interface = self._interface(asked_for) or asked_for
            together.setdefault((_ORDER.index(group), interface, group), {})[key] = name
        failed: dict[str, str] = {}
        for (_rank, interface, group), names in sorted(together.items()):
            wanted = {key: values[name] for key, name in names.items()}
            failed.update({names[key]: why for key, why in self._write(interface, group, wanted).items()})
        return failed

    def _write(self, interface: str, group: str, values: Mapping[str, str]) -> dict[str, str]:
        """Sets values of one group; returns key -> why it failed."""
        from .. import ethtool_set

        if group in GROUPS or group == "features":
            try:
                if group == "features":
                    ethtool_set.features(self.tool, interface, values)
                else:
                    ethtool_set.numbers(self.tool, interface, GROUPS[group], values)
            except OSError as error:
                driver = Live(self.tool, self.system).driver(interface)
                said = ", ".join(f"{key} {value}" for key, value in sorted(values.items()))
                return dict.fromkeys(values, f"{driver} refused {group} {said}: {error.strerror}")
            return {}
        failed = {}
        for key, value in values.items():
            try:
                if key in ethtool_set.LINK:
                    ethtool_set.link(self.tool, interface, key, int(value))
                else:
                    self.system.write_value(_path(interface, group, key), value)
            except OSError as error:
                failed[key] = f"the kernel refused '{value}': {error.strerror}"
        return failed


class Absent(Exception):
    """The interface has no such setting; the text says why."""


class Fixed(Exception):
    """The driver has a feature fixed; the text is its value."""


class Live:
    """The live values of this host's interfaces, each asked for once."""

    def __init__(self, tool: Ethtool, system: System) -> None:
        self.tool, self.system = tool, system
        self._links: dict[str, Link] | None = None
        self._numbers: dict[tuple[str, str], ethtool.Numbers] = {}
        self._features: dict[str, dict[str, ethtool.Feature]] = {}
        self._drivers: dict[str, str] = {}

    def links(self) -> dict[str, Link]:
        if self._links is None:
            self._links = self.tool.links()
        return self._links

    def numbers(self, interface: str, group: str) -> ethtool.Numbers:
        place = (interface, group)
        if place not in self._numbers:
            self._numbers[place] = self.tool.numbers(interface, GROUPS[group])
        return self._numbers[place]

    def features(self, interface: str) -> dict[str, ethtool.Feature]:
        if interface not in self._features:
            self._features[interface] = self.tool.features(interface)
        return self._features[interface]

    def driver(self, interface: str) -> str:
        """The driver's name, or what stands for it where it tells none."""
        if interface not in self._drivers:
            try:
                self._drivers[interface] = self.tool.driver(interface)
            except OSError:
                self._drivers[interface] = "the driver"
        return self._drivers[interface]

    def queues(self, interface: str) -> list[str]:
        return self.system.names(f"/sys/class/net/{interface}/queues")

    def value(self, interface: str, group: str, key: str) -> str:
        """A live value; raises Absent, Fixed or OSError."""
        if group == "features":
            found = ethtool.members(self.features(interface), key)
            if not found:
                raise Absent(f"this kernel has no feature {key}")
            value = "on" if any(one.active for one in found.values()) else "off"
            if not any(one.changeable for one in found.values()):
                raise Fixed(value)
            return value
        if group in GROUPS:
            try:
                numbers = self.numbers(interface, group)
            except OSError as error:
                if error.errno in (95, 22):  # EOPNOTSUPP, EINVAL
                    raise Absent(f"{self.driver(interface)} has no {group} to set") from error
                raise
            if key not in numbers.known:
                raise Absent(f"{self.driver(interface)} does not have {group} {key}")
            return numbers.text(key)
        if group == "link" and key in ("mtu", "txqueuelen"):
            link = self.links()[interface]
            return str(link.mtu if key == "mtu" else link.queue_length)
        path = _path(interface, group, key)
        try:
            text = self.system.read_value(path)
        except FileNotFoundError:
            raise Absent(f"{interface} has no {path}") from None
        except OSError as error:
            if error.errno == 2 or (group == "queue" and error.errno in (22, 95)):
                raise Absent(f"{interface} has one queue only: {path} says nothing") from error
            raise
        if os.statvfs(self.system.path(path)).f_flag & os.ST_RDONLY:
            raise Absent(f"{path} cannot be written here: /sys is read-only")
        return text


def _definitions(file: links.LinkFile, group: str, key: str, live: Live, interface: str) -> list[Definition]:
    """What a .link file says of a key; of one that needs two directives where they agree."""
    said = [file.said(directive) for directive in links.directives(group, key)]
    if not said or not all(said) or len({one[-1][1] for one in said}) > 1:
        return []
    most: int | None = None
    if group in ("ring", "channels"):
        with contextlib.suppress(OSError):
            most = live.numbers(interface, group).maximum(key)
    found = []
    for line, value in said[-1]:
        # udev sets the device's maximum for `max` and for what is above it.
        number = str(most) if most is not None and (value == "0" or int(value) > most) else value
        found.append(Definition(number, line.file, line.line))
    return found


def _split(name: str) -> tuple[str, str, str]:
    """Interface, group and key of a name; a feature by its short name."""
    interface, _, rest = name.partition("/")
    group, _, key = rest.partition("/")
    return interface, group, ethtool.short_feature(key) if group == "features" else key


def _is_switch(group: str, key: str) -> bool:
    return group == "features" or (group in GROUPS and key in GROUPS[group].switches)


def _path(interface: str, group: str, key: str) -> str:
    """Where /sys holds an attribute of the link or of a queue."""
    if group == "queue":
        queue, _dot, attribute = key.partition(".")
        return f"/sys/class/net/{interface}/queues/{queue}/{attribute}"
    return f"/sys/class/net/{interface}/{key}"
