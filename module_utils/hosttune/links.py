"""The .link file that decides over a network interface, and what it says, as systemd-udevd 252 computes it.

Files are read in the order of their base names over all folders; the first one whose [Match] fits decides
alone, with its drop-ins (systemd.link(5), the sources of 252: link-config.c, net-condition.c, conf-parser.c).
Lists of a [Match] grow with each assignment, and an empty one begins anew; words behind a `!` must not fit.

An interface is matched as it will be when the next boot finds it: by the address of the hardware, and not by
a name that udev gave it. Where that is not known here (the kernel's name of an interface that was renamed, a
field of the firmware), the file that udev says it took last counts, and the doubt is said.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from . import netlink
from .ethtool import Ethtool
from .kinds.base import ordered_files
from .system import System
from .systemd import Assignment, assignments, boolean, integer, nanoseconds, size

FOLDERS = (
    "/etc/systemd/network",
    "/run/systemd/network",
    "/usr/local/lib/systemd/network",
    "/usr/lib/systemd/network",
    "/lib/systemd/network",
)
#: What the next boot names an interface by: a drop-in of ours never holds one of these.
NAMING = frozenset(
    {
        *("NamePolicy", "Name", "AlternativeName", "AlternativeNamesPolicy", "Alias"),
        *("MACAddress", "MACAddressPolicy"),
    }
)
_LISTS = ("MACAddress", "PermanentMACAddress", "OriginalName", "Path", "Driver", "Type", "Kind", "Property")
_CONDITIONS = (
    *("Host", "Virtualization", "KernelCommandLine", "KernelVersion", "Credential", "Architecture"),
    "Firmware",
)
_MOST = 2**32 - 1
_NO_VERSION = re.compile(r"\A[^a-zA-Z0-9~^.-]+")
_DIGITS, _LETTERS = re.compile("[0-9]*"), re.compile("[a-zA-Z]*")
_BLANKS = " \t\n\r"
_ESCAPES = {**{char: char for char in "\\\"'"}, "s": " ", "n": "\n", "t": "\t", "r": "\r", "a": "\a"}
_ARCHITECTURES = {
    **{"x86_64": "x86-64", "aarch64": "arm64", "ppc64le": "ppc64-le", "armv7l": "arm", "armv8l": "arm"},
    **{"i386": "x86", "i486": "x86", "i586": "x86", "i686": "x86"},
}
#: addr_assign_type of an address that somebody gave it since, name_assign_type of a name that udev gave it.
_SET_BY_SOMEBODY, _RENAMED = "3", "4"
#: Types of hardware by the kernel's number (linux/if_arp.h), for interfaces whose driver names none.
_TYPES = {
    **{"1": "ether", "32": "infiniband", "512": "ppp", "768": "tunnel", "769": "tunnel6", "772": "loopback"},
    **{"776": "sit", "778": "ipgre", "801": "ieee80211", "65534": "none"},
}
#: The names that the kernel gives to what udev renames later; which number is not known afterwards.
_KERNEL_NAMES = tuple(f"eth{number}" for number in range(10))


@dataclass(frozen=True)
class Nic:
    """What a [Match] can look at. `address` and `permanent` are bytes, empty where there is none."""

    name: str
    address: bytes = b""
    permanent: bytes = b""
    path: str | None = None
    driver: str | None = None
    type: str | None = None
    kind: str | None = None
    properties: dict[str, str] = field(default_factory=dict)
    #: udev gave it this name: what the kernel called it is not known
    renamed: bool = False
    loopback: bool = False
    #: the file that udev took at its last event (ID_NET_LINK_FILE)
    last: str = ""


class Machine:
    """What the conditions of a [Match] ask of the machine; None where that cannot be known here."""

    def __init__(self, system: System) -> None:
        self.system = system

    def fits(self, condition: str, text: str) -> bool | None:
        test: Callable[[str], bool | None] = {
            "Host": self._host,
            "Virtualization": self._virtualization,
            "KernelCommandLine": self._command_line,
            "KernelVersion": self._kernel,
            "Credential": lambda _name: False,  # systemd-udevd is given none
            "Architecture": self._architecture,
            "Firmware": self._firmware,
        }[condition]
        try:
            return test(text)
        except OSError:
            return None

    def _host(self, text: str) -> bool:
        if re.fullmatch(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
            return self.system.read_value("/etc/machine-id") == text.replace("-", "").lower()
        return fits(text.lower(), self.system.read_value("/proc/sys/kernel/hostname").lower())

    def _virtualization(self, text: str) -> bool | None:
        if text == "private-users":
            return self._detected("--private-users") == ""
        found = self._detected()
        if found is None:
            return None
        try:
            return boolean(text) == (found != "none")
        except ValueError:
            pass
        if text == "vm":
            return self._detected("--vm") != "none" and self._detected("--container") == "none"
        if text == "container":
            return self._detected("--container") != "none"
        return found != "none" and found == text

    def _detected(self, *more: str) -> str | None:
        ran = self.system.run("systemd-detect-virt", *more)
        if ran.status >= 124:
            return None
        if more == ("--private-users",):
            return "" if ran.ok else "no"
        return ran.out.strip()

    def _command_line(self, text: str) -> bool:
        found = self.system.read("/proc/1/cmdline" if self.system.container else "/proc/cmdline")
        line = found.replace("\0", " ")
        for word in _words(line, quotes=True, relaxed=True):
            if word == text or ("=" not in text and word.startswith(f"{text}=")):
                return True
        return False

    def _kernel(self, text: str) -> bool | None:
        release = self.system.read_value("/proc/sys/kernel/osrelease")
        try:
            wanted = list(_words(text, quotes=True))
        except ValueError:
            return None
        at = 0
        while at < len(wanted):
            operator = re.match(r"\$=|!\$=|<>|<=|>=|<|>|==|=|!=|", wanted[at])
            sign = operator[0] if operator else ""
            value = wanted[at][len(sign) :].strip()
            if not value and at == 0 and len(wanted) > 1:
                at += 1
                value = wanted[at]
            if not value:
                return None
            if not _compares(sign or "$=", release, value):
                return False
            at += 1
        return True

    def _architecture(self, text: str) -> bool:
        machine = os.uname().machine
        return text in ("native", _ARCHITECTURES.get(machine, machine))

    def _firmware(self, text: str) -> bool | None:
        if text == "uefi":
            return not self.system.container and self.system.exists("/sys/firmware/efi")
        if text == "device-tree":
            return self.system.exists("/sys/firmware/devicetree")
        return None if text.endswith(")") else False


class LinkFile:
    """One .link file with its drop-ins."""

    def __init__(self, file: str, lines: Sequence[Assignment]) -> None:
        self.file = file
        self.lists: dict[str, list[str]] = {}
        self.conditions: dict[str, str] = {}
        self._link: dict[str, list[Assignment]] = {}
        for line in lines:
            if line.section == "Link":
                self._link.setdefault(line.name, []).append(line)
            elif line.section == "Match" and line.name in _LISTS:
                self._extend(line.name, line.value)
            elif line.section == "Match" and line.name in _CONDITIONS:
                self.conditions.pop(line.name, None)
                if line.value:
                    self.conditions[line.name] = line.value

    def _extend(self, key: str, value: str) -> None:
        if not value:
            self.lists.pop(key, None)
            return
        addresses = key in ("MACAddress", "PermanentMACAddress")
        sign = "!" if value.startswith("!") and not addresses else ""
        words = _words(
            value[len(sign) :],
            quotes=key not in ("MACAddress", "PermanentMACAddress", "OriginalName"),
            keep_backslash=key in ("Path", "Driver", "Type", "Kind"),
            resolve=key == "Property",
        )
        try:
            for word in words:  # those before a broken quote count
                if addresses and address(word) is None:
                    continue
                if key == "OriginalName" and not _is_name(word):
                    continue
                if key == "Property" and not re.match(r"[A-Za-z_][A-Za-z0-9_]*=", word):
                    continue
                self.lists.setdefault(key, []).append(sign + word)
        except ValueError:
            pass

    @property
    def matches_nothing(self) -> bool:
        """Whether systemd ignores the file, since its [Match] is empty."""
        return not self.lists and not self.conditions

    @property
    def names_hardware(self) -> bool:
        """Whether the [Match] names one piece of hardware, not a sort of them."""
        if "MACAddress" in self.lists or "PermanentMACAddress" in self.lists:
            return True
        return any(
            named and not any(word.startswith("!") or set("*?[") & set(word) for word in named)
            for named in (self.lists.get("Path", []), self.lists.get("OriginalName", []))
        )

    def fits(self, nic: Nic, machine: Machine) -> bool | None:
        """Whether it is for this interface; None where that cannot be known here."""
        answers = [self._fits_condition(machine, name, text) for name, text in self.conditions.items()]
        for key, own in (("MACAddress", nic.address), ("PermanentMACAddress", nic.permanent)):
            if key in self.lists:
                answers.append(own in {address(word) for word in self.lists[key]})
        for key, text in (("Path", nic.path), ("Driver", nic.driver), ("Type", nic.type), ("Kind", nic.kind)):
            answers.append(_fits_list(self.lists.get(key, []), text))
        answers.append(self._fits_name(nic))
        for word in self.lists.get("Property", []):
            name, _, pattern = word.removeprefix("!").partition("=")
            own_value = nic.properties.get(name)
            answers.append((own_value is not None and fits(pattern, own_value)) != word.startswith("!"))
        if False in answers:
            return False
        return None if None in answers else True

    def _fits_name(self, nic: Nic) -> bool | None:
        patterns = self.lists.get("OriginalName", [])
        if not nic.renamed:
            return _fits_list(patterns, nic.name)
        answers = {_fits_list(patterns, name) for name in _KERNEL_NAMES}
        return answers.pop() if len(answers) == 1 else None

    @staticmethod
    def _fits_condition(machine: Machine, name: str, text: str) -> bool | None:
        answer = machine.fits(name, text.removeprefix("!"))
        return answer if answer is None else answer != text.startswith("!")

    def said(self, directive: str) -> list[tuple[Assignment, str]]:
        """What counts of a directive's assignments in order, with the value in the kernel's words.

        Counts and sizes are numbers (0 is the device's maximum), times microseconds, switches on or off. An
        empty one ends what was said before; what systemd cannot read says nothing.
        """
        found: list[tuple[Assignment, str]] = []
        for line in self._link.get(directive, []):
            if not line.value and directive != "MTUBytes":
                found = []
                continue
            try:
                found.append((line, DIRECTIVES[directive](line.value)))
            except ValueError:
                continue
        return found


def load(system: System) -> list[LinkFile]:
    """The .link files of a host in the order in which they are tried; raises OSError."""
    found = []
    for file in ordered_files(system, FOLDERS, ".link"):
        folders = [f"{folder}/{os.path.basename(file)}.d" for folder in FOLDERS]
        lines: list[Assignment] = []
        try:
            if not os.path.getsize(system.path(file)):
                continue
            for one in (file, *ordered_files(system, folders, ".conf")):
                lines += _read(system, one)
        except (ValueError, OSError):
            continue  # systemd leaves the whole file out, also where a drop-in is what it cannot read
        loaded = LinkFile(file, lines)
        if not loaded.matches_nothing:
            found.append(loaded)
    return found


def _read(system: System, file: str) -> list[Assignment]:
    """The assignments of a file; raises ValueError where systemd refuses it, OSError."""
    try:
        return list(assignments(system.read(file), file, whole=True))
    except FileNotFoundError:
        return []  # a link that leads nowhere


def winner(files: Sequence[LinkFile], nic: Nic, machine: Machine) -> tuple[LinkFile | None, list[str]]:
    """The file that decides over an interface, and the files of which that could not be said for certain."""
    doubts = []
    if nic.loopback:
        return None, []
    for file in files:
        answer = file.fits(nic, machine)
        if answer is None:
            doubts.append(file.file)
            answer = nic.last == file.file
        if answer:
            return file, doubts
    return None, doubts


def address(text: str) -> bytes | None:
    """The bytes of a hardware address as systemd reads one, None for text that is none."""
    if re.fullmatch(r"(\d{1,3}\.){3}\d{1,3}", text):
        octets = [int(part) for part in text.split(".")]
        return bytes(octets) if max(octets) < 256 else None
    for sign, digits in ((":", 2), ("-", 2), (".", 4)):
        parts = text.split(sign)
        if len(parts) > 1 and all(re.fullmatch(rf"[0-9a-fA-F]{{1,{digits}}}", part) for part in parts):
            found = b"".join(int(part, 16).to_bytes(digits // 2, "big") for part in parts)
            return found if len(found) in (4, 6, 16, 20) else None
    return None


def fits(pattern: str, text: str) -> bool:
    """fnmatch(3) without flags: Python's, with [^x] for [!x] and a backslash before a literal character."""
    plain = re.sub(r"\\(.)", lambda found: f"[{found[1]}]" if found[1] in "*?[" else found[1], pattern)
    return fnmatch.fnmatchcase(text, plain.replace("[^", "[!"))


def _fits_list(patterns: Sequence[str], text: str | None) -> bool:
    positive = [one for one in patterns if not one.startswith("!")]
    negative = [one[1:] for one in patterns if one.startswith("!")]
    if text is not None and any(fits(one, text) for one in negative):
        return False
    return not positive or (text is not None and any(fits(one, text) for one in positive))


def _is_name(word: str) -> bool:
    """Whether systemd takes it for an interface's name or a pattern of one (ifname_valid_full())."""
    if len(word) > 15 or word in (".", "..", "all", "default") or word.isdigit():
        return False
    return bool(word) and all(32 < ord(char) < 127 and char not in ":/%" for char in word)


def _words(
    text: str,
    quotes: bool = False,
    keep_backslash: bool = False,
    resolve: bool = False,
    relaxed: bool = False,
) -> Iterator[str]:
    """Words as extract_first_word() takes them off one by one; raises ValueError where it gives up."""
    at = 0
    while True:
        while at < len(text) and text[at] in _BLANKS:
            at += 1
        if at == len(text):
            return
        word, quote = "", ""
        while at < len(text) and (quote or text[at] not in _BLANKS):
            char = text[at]
            if char == "\\" and not keep_backslash:
                at += 1
                if at == len(text):
                    if not relaxed:
                        raise ValueError("a backslash at the end")
                    break
                if resolve and text[at] not in _ESCAPES:
                    raise ValueError(f"no escape: \\{text[at]}")
                word += _ESCAPES.get(text[at], text[at]) if resolve else text[at]
            elif quotes and quote == char:
                quote = ""
            elif quotes and not quote and char in "\"'":
                quote = char
            else:
                word += char
            at += 1
        if quote and not relaxed:
            raise ValueError("an open quote")
        yield word


def _compares(sign: str, release: str, value: str) -> bool:
    if sign in ("$=", "!$="):
        return fits(value, release) == (sign == "$=")
    if sign in ("=", "!="):
        return (release == value) == (sign == "=")
    order = compare_versions(release, value)
    return {
        **{"<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0},
        **{"==": order == 0, "<>": order != 0},
    }[sign]


def compare_versions(one: str, other: str) -> int:
    """-1, 0 or 1 as strverscmp_improved() of systemd orders two versions."""
    while True:
        one, other = (_NO_VERSION.sub("", text) for text in (one, other))
        for sign in "~-^.":
            if sign == "-" and not (one and other):
                return (one > other) - (one < other)
            here = one[:1] == sign, other[:1] == sign
            if any(here):
                if not all(here):
                    return -1 if here[0] else 1
                one, other = one[1:], other[1:]
                break
        else:
            number = one[0].isdigit() or other[0].isdigit()
            part = _DIGITS if number else _LETTERS
            mine, theirs = (found[0] for found in (part.match(one), part.match(other)) if found)
            one, other = one[len(mine) :], other[len(theirs) :]
            order = (mine > theirs) - (mine < theirs)
            if number:
                order = (int(mine or 0) > int(theirs or 0)) - (int(mine or 0) < int(theirs or 0))
            if order:
                return order


# interfaces


def nics(system: System, tool: Ethtool) -> dict[str, Nic]:
    """Every interface as the next boot will find it; raises OSError."""
    return {name: _nic(system, tool, link) for name, link in tool.links().items()}


def _nic(system: System, tool: Ethtool, link: netlink.Link) -> Nic:
    folder = f"/sys/class/net/{link.name}"
    properties = {"INTERFACE": link.name, "IFINDEX": str(link.index), "SUBSYSTEM": "net"}
    for file, start in ((f"{folder}/uevent", ""), (f"/run/udev/data/n{link.index}", "E:")):
        for line in _lines(system, file):
            if line.startswith(start) and "=" in line:
                name, _, value = line[len(start) :].partition("=")
                properties[name] = value
    own = bytes.fromhex(_value(system, f"{folder}/address").replace(":", ""))
    permanent = driver = None
    try:
        permanent = tool.permanent_address(link.name)
        driver = tool.driver(link.name)
    except OSError:
        pass  # an interface without a driver to ask, such as lo
    if _value(system, f"{folder}/addr_assign_type") == _SET_BY_SOMEBODY and permanent and any(permanent):
        own = permanent
    hardware = _value(system, f"{folder}/type")
    return Nic(
        link.name,
        own,
        permanent or b"",
        properties.get("ID_PATH"),
        driver or None,
        properties.get("DEVTYPE") or _TYPES.get(hardware),
        link.kind or None,
        properties,
        _value(system, f"{folder}/name_assign_type") == _RENAMED,
        link.loopback,
        properties.get("ID_NET_LINK_FILE", ""),
    )


def _lines(system: System, file: str) -> list[str]:
    try:
        return system.read(file).splitlines()
    except OSError:
        return []


def _value(system: System, file: str) -> str:
    try:
        return system.read_value(file)
    except OSError:
        return ""  # of an interface that has none (EINVAL), or another network namespace's /sys


# values of [Link]; each raises ValueError for what systemd cannot read


def _number(text: str, least: int = 0, most: int = _MOST) -> str:
    found = integer(text)
    if not least <= found <= most:
        raise ValueError(f"'{text}' is out of range")
    return str(found)


def _count(text: str) -> str:
    return "0" if text == "max" else _number(text, 1)


def _microseconds(text: str, least: int = 0, unit: int = 1000) -> str:
    found = nanoseconds(text)
    if found is None or found // 1000 > _MOST or found // 1000 < least:
        raise ValueError(f"'{text}' is out of range")
    return str(-(-(found // 1000 * 1000) // unit))


def _switch(text: str) -> str:
    return "on" if boolean(text) else "off"


def _bytes(text: str) -> str:
    found = size(text)
    if found is None or found > _MOST:
        raise ValueError(f"'{text}' is out of range")
    return str(found)


_KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    "ring": {
        "rx": ("RxBufferSize",),
        "rx-mini": ("RxMiniBufferSize",),
        "rx-jumbo": ("RxJumboBufferSize",),
        "tx": ("TxBufferSize",),
    },
    "channels": {
        "rx": ("RxChannels",),
        "tx": ("TxChannels",),
        "other": ("OtherChannels",),
        "combined": ("CombinedChannels",),
    },
    "coalesce": {
        "rx-usecs": ("RxCoalesceSec",),
        "rx-frames": ("RxMaxCoalescedFrames",),
        "rx-usecs-irq": ("RxCoalesceIrqSec",),
        "rx-frames-irq": ("RxMaxCoalescedIrqFrames",),
        "tx-usecs": ("TxCoalesceSec",),
        "tx-frames": ("TxMaxCoalescedFrames",),
        "tx-usecs-irq": ("TxCoalesceIrqSec",),
        "tx-frames-irq": ("TxMaxCoalescedIrqFrames",),
        "stats-block-usecs": ("StatisticsBlockCoalesceSec",),
        "adaptive-rx": ("UseAdaptiveRxCoalesce",),
        "adaptive-tx": ("UseAdaptiveTxCoalesce",),
        "pkt-rate-low": ("CoalescePacketRateLow",),
        "rx-usecs-low": ("RxCoalesceLowSec",),
        "rx-frames-low": ("RxMaxCoalescedLowFrames",),
        "tx-usecs-low": ("TxCoalesceLowSec",),
        "tx-frames-low": ("TxMaxCoalescedLowFrames",),
        "pkt-rate-high": ("CoalescePacketRateHigh",),
        "rx-usecs-high": ("RxCoalesceHighSec",),
        "rx-frames-high": ("RxMaxCoalescedHighFrames",),
        "tx-usecs-high": ("TxCoalesceHighSec",),
        "tx-frames-high": ("TxMaxCoalescedHighFrames",),
        "sample-interval": ("CoalescePacketRateSampleIntervalSec",),
    },
    "features": {
        "rx": ("ReceiveChecksumOffload",),
        "tx": ("TransmitChecksumOffload",),
        "gso": ("GenericSegmentationOffload",),
        "tso": ("TCPSegmentationOffload", "TCP6SegmentationOffload"),
        "tx-tcp-segmentation": ("TCPSegmentationOffload",),
        "tx-tcp6-segmentation": ("TCP6SegmentationOffload",),
        "gro": ("GenericReceiveOffload",),
        "rx-gro-hw": ("GenericReceiveOffloadHardware",),
        "lro": ("LargeReceiveOffload",),
        "rxvlan": ("ReceiveVLANCTAGHardwareAcceleration",),
        "txvlan": ("TransmitVLANCTAGHardwareAcceleration",),
        "rx-vlan-filter": ("ReceiveVLANCTAGFilter",),
        "tx-vlan-stag-hw-insert": ("TransmitVLANSTAGHardwareAcceleration",),
        "ntuple": ("NTupleFilter",),
    },
    "pause": {
        "autoneg": ("AutoNegotiationFlowControl",),
        "rx": ("RxFlowControl",),
        "tx": ("TxFlowControl",),
    },
    "link": {"txqueuelen": ("TransmitQueueLength",), "mtu": ("MTUBytes",)},
}


def _reader(group: str, key: str) -> Callable[[str], str]:
    """How systemd reads the value of a group's key."""
    if group in ("ring", "channels"):
        return _count
    if group in ("features", "pause") or key.startswith("adaptive-"):
        return _switch
    if key == "mtu":
        return _bytes
    if key == "txqueuelen":
        return functools.partial(_number, most=_MOST - 1)
    if key == "sample-interval":
        return functools.partial(_microseconds, least=1, unit=10**9)
    if "usecs" in key:
        return functools.partial(_microseconds, least=int(key == "stats-block-usecs"))
    return _number


#: Directive of [Link] -> how systemd reads its value.
DIRECTIVES: dict[str, Callable[[str], str]] = {
    directive: _reader(group, key)
    for group, keys in _KEYS.items()
    for key, directives in keys.items()
    for directive in directives
}


def directives(group: str, key: str) -> tuple[str, ...]:
    """The directives of [Link] that together set a key; none where systemd 252 has none for it."""
    return _KEYS.get(group, {}).get(key, ())


def write(group: str, key: str, value: str) -> list[str]:
    """The lines of [Link] that say a value."""
    text = {"on": "yes", "off": "no"}.get(value, value)
    unit = "s" if key == "sample-interval" else "us" if "usecs" in key else ""
    return [f"{directive}={text}{unit}" for directive in directives(group, key)]
