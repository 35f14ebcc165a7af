"""Kind block: queue attributes of disks, by class of disk or by name, persisted as udev rules.

Names are DEVICE/ATTR (sda/scheduler) or CLASS/ATTR (ssd/scheduler). A class is matched inside the rule, so
that a disk which appears later gets the value too; a setting of one disk beats that of its class. The live
value of a class is the one that all its disks share, or `sda=none sdb=mq-deadline` where they differ.

Rules of classes go to 60-hosttune-OWNER.rules; those of single disks to 60-hosttune-zz-OWNER.rules, which
udev reads after the classes of every owner. Within a file the scheduler comes first: changing it resets
nr_requests and brings the attributes below iosched/.

Persisted truth walks all rules as udev does (udev(7)): files by base name with masking, lines in order, GOTO
followed, for the events `add` and `change`; the last assignment that matches wins, since udev writes each at
once. A match on what only udev knows at the event (PROGRAM, properties that other files or imports bring)
leaves a rule undecided: it counts as not matching and is named in the note where it would assign.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..model import Change, Definition, Planes, Refusal, Setting, squeeze
from ..system import KERNEL_SHARED, System
from .base import Kind, did_you_mean, ordered_files
from .manager import words
from .module import Kernel
from .sysfs import choices, chosen

RULES_FOLDERS = (
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/local/lib/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
)

#: Attributes below queue/ that may be set (Documentation/ABI/stable/sysfs-block), and iosched/*.
ATTRIBUTES = (
    "scheduler",
    "add_random",
    "io_timeout",
    "iostats",
    "max_sectors_kb",
    "nomerges",
    "nr_requests",
    "read_ahead_kb",
    "rq_affinity",
    "wbt_lat_usec",
)
#: Attributes that are never written, and why.
FORBIDDEN = {
    "write_cache": "it does not change the disk's cache, it only makes the kernel drop flushes: data is lost",
    "rotational": "it decides the disk's class",
}

#: Modules that bring a scheduler: the kernel offers it only once it is loaded, but loads it when asked.
SCHEDULER_MODULES = {"mq-deadline": "mq_deadline", "bfq": "bfq", "kyber": "kyber_iosched"}

#: What these take (block/blk-sysfs.c); the other numbers are 0 or more.
_RANGES = {"add_random": (0, 1), "iostats": (0, 1), "nomerges": (0, 2), "rq_affinity": (0, 2)}
_NO_FEWER = {"wbt_lat_usec": -1}
_LARGEST = 2**32 - 1

_DEVICE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*\Z")
_IOSCHED = re.compile(r"iosched/[a-z_]+\Z")
_PER_DISK = re.compile(r"[^ =]+=\S*( [^ =]+=\S*)*\Z")
_NUMBER = re.compile(r"-?[0-9]+\Z")
_WORD = re.compile(r"[a-z0-9-]+\Z")
_OURS = "/etc/udev/rules.d/60-hosttune-"


@dataclass(frozen=True)
class DiskClass:
    """Disks that are tuned alike: by kernel name, and by what the disk says of itself."""

    kernel: str
    rotational: str = ""
    #: a name such a disk would have, for reading the rules where there is none yet
    example: str = ""

    def match(self) -> str:
        text = f'KERNEL=="{self.kernel}"'
        return f'{text}, ATTR{{queue/rotational}}=="{self.rotational}"' if self.rotational else text


CLASSES = {
    "nvme": DiskClass("nvme[0-9]*n[0-9]*", example="nvme99n1"),
    "ssd": DiskClass("sd[a-z]*", "0", "sdzz"),
    "rotational": DiskClass("sd[a-z]*", "1", "sdzz"),
    "virtio": DiskClass("vd[a-z]*", example="vdzz"),
}


class BlockKind(Kind):
    """See the module's docstring."""

    name = "block"

    def __init__(self, system: System) -> None:
        super().__init__(system)
        #: names that this call asks for, those that the manifest holds, and those that were read: what is
        #: read without being asked for is being undone, what is known without being read stays as it is
        self._asked: set[str] = set()
        self._known: set[str] = set()
        self._read: set[str] = set()
        self._kernel = Kernel(system)

    # names and values

    def recall(self, setting: Setting) -> None:
        self._known.add(setting.name)

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        names = {setting.name for setting in settings}
        self._asked |= names
        for setting in settings:
            target, _slash, attribute = setting.name.partition("/")
            if not _DEVICE.match(target) or not attribute:
                raise Refusal(
                    "is no DEVICE/ATTRIBUTE or CLASS/ATTRIBUTE",
                    thing=str(setting),
                    remedy=f"Such as nvme/scheduler; classes are {', '.join(CLASSES)}",
                )
            if attribute in FORBIDDEN:
                raise Refusal(
                    f"must not be set: {FORBIDDEN[attribute]}", thing=str(setting), remedy="Leave it out"
                )
            if attribute not in ATTRIBUTES and not _IOSCHED.match(attribute):
                raise Refusal(
                    f"{attribute} is no attribute of a disk's queue that can be tuned",
                    thing=str(setting),
                    remedy=did_you_mean(attribute, ATTRIBUTES)
                    or f"Choose one of {', '.join(ATTRIBUTES)} or iosched/NAME",
                )
            self._check_value(setting, attribute)
            if target not in CLASSES and target not in self._disks():
                disks = self._disks()
                raise Refusal(
                    f"missing disk: this host has no {target}",
                    thing=str(setting),
                    remedy=" ".join(
                        part
                        for part in (
                            did_you_mean(target, [*disks, *CLASSES]),
                            f"Its disks are {', '.join(disks) or 'none'}; classes are {', '.join(CLASSES)}",
                        )
                        if part
                    ),
                )
            if not self.system.container:
                self._check_scheduler(setting, target, attribute, names)
                self._check_depth(setting, target, attribute, names)

    @staticmethod
    def _check_value(setting: Setting, attribute: str) -> None:
        if _IOSCHED.match(attribute):
            pattern, remedy = _WORD, "Give one number or word"
        elif attribute == "scheduler":
            pattern, remedy = _WORD, "Give one word, such as none or mq-deadline"
        else:
            pattern, remedy = _NUMBER, "Give a whole number"
        if not pattern.match(setting.value):
            raise Refusal(f"'{setting.value}' is not of its type", thing=str(setting), remedy=remedy)
        if pattern is _NUMBER:
            low, high = _RANGES.get(attribute, (_NO_FEWER.get(attribute, 0), _LARGEST))
            if not low <= int(setting.value) <= high:
                raise Refusal(
                    f"{setting.value} is out of range", thing=str(setting), remedy=f"Give {low} to {high}"
                )

    def _check_depth(self, setting: Setting, target: str, attribute: str, names: set[str]) -> None:
        """Without a scheduler a queue has no more requests than the disk has tags."""
        if attribute != "nr_requests" or f"{target}/scheduler" in names:
            return
        for disk in self._members(target):
            if target in CLASSES and {f"{disk}/nr_requests", f"{disk}/scheduler"} & names:
                continue
            try:
                scheduler = chosen(self.system.read_value(_path(disk, "scheduler")))
                tags = int(self.system.read_value(f"/sys/block/{disk}/mq/0/nr_tags"))
            except (OSError, ValueError):
                continue  # the kernel's own refusal will be reported
            if scheduler == "none" and int(setting.value) > tags:
                raise Refusal(
                    f"disk {disk} has {tags} tags and no scheduler, so no queue of {setting.value} requests",
                    thing=str(setting),
                    remedy=f"Ask for at most {tags}",
                )

    def _check_scheduler(self, setting: Setting, target: str, attribute: str, names: set[str]) -> None:
        if attribute != "scheduler":
            return
        for disk in self._members(target):
            if target in CLASSES and f"{disk}/scheduler" in names:
                continue
            try:
                text = self.system.read_value(_path(disk, "scheduler"))
            except OSError:
                continue  # `read` says why it is unknown
            offered = choices(text)
            if offered:
                loadable = self._kernel.loadable()
                offered += [
                    name
                    for name, module in SCHEDULER_MODULES.items()
                    if module in loadable and name not in offered
                ]
            else:
                offered = [text]  # a disk without queues of its own: device mapper, md
            if setting.value not in offered:
                raise Refusal(
                    f"disk {disk} does not offer '{setting.value}'",
                    thing=str(setting),
                    remedy=f"{disk} offers {', '.join(offered)}; a disk that differs can be set on its own",
                )

    def same(self, name: str, wanted: str, found: str) -> bool:
        if wanted == found:
            return True
        return bool(_NUMBER.match(wanted) and _NUMBER.match(found)) and int(wanted) == int(found)

    def clamps(self, name: str, wanted: str, found: str) -> str:
        if not (_NUMBER.match(wanted) and _NUMBER.match(found)):
            return ""
        asked, took = int(wanted), int(found)
        if name.endswith("/read_ahead_kb") and 0 <= asked - took < os.sysconf("SC_PAGESIZE") // 1024:
            return f"the kernel rounds {asked} KiB down to whole pages: {took}"
        if name.endswith("/nr_requests") and asked < took == 4:
            return "4 requests are the least that the kernel takes"
        return ""

    # disks

    def _disks(self) -> list[str]:
        """The disks of this host; hidden ones (paths of a multipath NVMe) have no queue of their own."""
        found = []
        for name in self.system.names("/sys/block"):
            try:
                hidden = self.system.read_value(f"/sys/block/{name}/hidden") == "1"
            except OSError:
                hidden = False
            if not hidden:
                found.append(name)
        return found

    def _members(self, target: str) -> list[str]:
        """The disks that a class or a disk's name stands for now."""
        if target not in CLASSES:
            return [target] if target in self._disks() else []
        wanted = CLASSES[target]
        found = []
        for disk in self._disks():
            if not fnmatch.fnmatchcase(disk, wanted.kernel):
                continue
            if wanted.rotational:
                try:
                    if self.system.read_value(_path(disk, "rotational")) != wanted.rotational:
                        continue
                except OSError:
                    continue
            found.append(disk)
        return found

    def _alone(self, attribute: str, names: Iterable[str]) -> set[str]:
        """Disks whose attribute is set on their own, not by their class."""
        return {
            disk
            for disk, _slash, rest in (name.partition("/") for name in names)
            if rest == attribute and disk not in CLASSES
        }

    def _own_rules(self) -> set[str]:
        """The names DISK/ATTR and CLASS/ATTR that our rules on disk set."""
        classes = {(known.kernel, known.rotational): name for name, known in CLASSES.items()}
        found = set()
        for name in self.system.names("/etc/udev/rules.d"):
            if name.startswith("60-hosttune-") and name.endswith(".rules"):
                for rule in parse_rules(self.system, f"/etc/udev/rules.d/{name}"):
                    matched = {(one.key, one.attribute): one.value for one in rule.tokens if one.matches}
                    kernel = matched.get(("KERNEL", ""), "")
                    target = classes.get((kernel, matched.get(("ATTR", "queue/rotational"), "")), kernel)
                    for token in rule.tokens:
                        if token.key == "ATTR" and not token.matches:
                            found.add(f"{target}/{token.attribute.removeprefix('queue/')}")
        return found

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        self._read |= set(names)
        rules = [
            (file, parse_rules(self.system, file))
            for file in ordered_files(self.system, RULES_FOLDERS, ".rules")
        ]
        wanted = self._wanted()
        return {name: self._read_one(name, rules, wanted) for name in names}

    def _wanted(self) -> set[str]:
        """The names that shall stand after this call, as far as this kind was told."""
        if self._asked:
            return self._asked | (self._known - self._read)
        # Nobody asked (drift, a read-back): then the manifest tells, or the rules that stand on disk.
        return self._known or self._own_rules() or self._read

    def _read_one(self, name: str, rules: Sequence[tuple[str, list[Rule]]], wanted: set[str]) -> Planes:
        target, _slash, attribute = name.partition("/")
        planes = Planes()
        if self.system.container:
            planes.unsupported = KERNEL_SHARED
        members = self._members(target)
        if target in CLASSES:
            alone = self._alone(attribute, wanted if name in wanted else self._read)
            members = [disk for disk in members if disk not in alone]
            if alone & set(self._members(target)):
                planes.note = f"without {', '.join(sorted(alone))}, set on their own"
        self._persisted(planes, target, attribute, members, rules)
        if target not in CLASSES and not members:
            planes.unsupported = planes.unsupported or f"this host has no disk {target}"
            return planes
        if not members:
            planes.has_live = False
            planes.note = f"no disk of class {target} now" + (f" ({planes.note})" if planes.note else "")
            return planes
        if name not in wanted and target not in CLASSES:
            in_charge = [
                one
                for one in wanted
                if one.partition("/")[2] == attribute and target in self._members(one.partition("/")[0])
            ]
            if in_charge:
                # Its own setting is being undone, and its class decides from now on.
                planes.has_live = False
                planes.note = f"{in_charge[0]} decides"
                return planes
        found: dict[str, str] = {}
        for disk in members:
            try:
                found[disk] = chosen(self.system.read_value(_path(disk, attribute)))
            except (FileNotFoundError, NotADirectoryError):
                if not attribute.startswith("iosched/"):
                    planes.unsupported = planes.unsupported or f"disk {disk} has no queue/{attribute}"
                    return planes
                found[disk] = ""
            except OSError as error:
                if attribute == "wbt_lat_usec" and error.errno == 22:
                    planes.unsupported = planes.unsupported or f"disk {disk} does not throttle writeback"
                elif not planes.unsupported:
                    planes.unknown = f"{_path(disk, attribute)}: {error.strerror}"
                return planes
        planes.live = _together(found)
        if not planes.live:
            planes.live = None
            planes.note = f"the scheduler of {', '.join(members)} has no {attribute}"
        return planes

    def _persisted(
        self,
        planes: Planes,
        target: str,
        attribute: str,
        members: Sequence[str],
        rules: Sequence[tuple[str, list[Rule]]],
    ) -> None:
        """Definitions as a disk of this class would meet them, then the disks that meet others."""
        devices = [Device(self.system, disk) for disk in members]
        if target in CLASSES:
            known = CLASSES[target]
            devices.insert(0, Device(self.system, known.example, {"queue/rotational": known.rotational}))
        elif not devices:
            devices = [Device(self.system, target)]
        undecided: dict[str, None] = {}
        met: dict[str, list[Definition]] = {}
        for index, device in enumerate(devices):
            definitions, doubts = walk(rules, device, f"queue/{attribute}")
            if index == 0:
                planes.definitions = list(definitions)
            if index or target not in CLASSES:
                met[device.kernel] = definitions
            undecided.update(dict.fromkeys(doubts))
        values = {disk: found[-1].value if found else "" for disk, found in met.items()}
        general = planes.definitions[-1].value if planes.definitions else ""
        others = [disk for disk, value in values.items() if value != general]
        if target in CLASSES and others:
            deciding = met[others[0]][-1:] or planes.definitions[-1:]
            planes.definitions.append(Definition(_together(values), deciding[0].file, deciding[0].line))
        if undecided:
            said = f"not judged, since they match on what only udev knows: {', '.join(undecided)}"
            planes.note = f"{planes.note}; {said}" if planes.note else said

    # persistence

    def managed_file(self, owner: str, name: str) -> str:
        return f"{_OURS}{'' if name.partition('/')[0] in CLASSES else 'zz-'}{owner}.rules"

    def body(self, settings: Sequence[Setting]) -> str:
        lines = []
        for setting in sorted(settings, key=lambda one: _rank(one.name)):
            target, _slash, attribute = setting.name.partition("/")
            which = CLASSES[target].match() if target in CLASSES else f'KERNEL=="{target}"'
            lines.append(
                f'ACTION=="add|change", SUBSYSTEM=="block", ENV{{DEVTYPE}}=="disk", {which}, '
                f'ATTR{{queue/{attribute}}}="{setting.value}"\n'
            )
        return "".join(lines)

    # the live plane

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        failed: dict[str, list[str]] = {}
        undone = {change.name for change in changes if change.undo} | self._read
        for change in sorted(changes, key=lambda one: _rank(one.name)):
            target, _slash, attribute = change.name.partition("/")
            if _PER_DISK.match(change.value):
                pairs = [tuple(part.split("=", 1)) for part in change.value.split()]
                values = {disk: value for disk, value in pairs if disk in self._members(disk)}
            else:
                values = {disk: change.value for disk in self._members(target)}
            if target in CLASSES:
                alone = self._alone(attribute, undone if change.undo else self._wanted())
                values = {disk: value for disk, value in values.items() if disk not in alone}
            for disk, value in values.items():
                why = self._write(disk, attribute, value)
                if why:
                    failed.setdefault(change.name, []).append(why)
        return {name: "; ".join(reasons) for name, reasons in failed.items()}

    def _write(self, disk: str, attribute: str, value: str) -> str:
        """Sets one attribute of one disk unless it has that value; says why it could not."""
        path = _path(disk, attribute)
        try:
            if self.same("", value, chosen(self.system.read_value(path))):
                return ""
        except OSError:
            pass  # the write says what is wrong
        if not value:
            return ""  # an attribute of a scheduler that this disk did not have
        try:
            self.system.write_value(path, value)
        except OSError as error:
            return f"the kernel refused '{value}' for disk {disk}: {error.strerror}"
        return ""


def _path(disk: str, attribute: str) -> str:
    return f"/sys/block/{disk}/queue/{attribute}"


def _together(values: Mapping[str, str]) -> str:
    """One value where all disks share it, else `sda=none sdb=mq-deadline`."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return " ".join(f"{disk}={value}" for disk, value in sorted(values.items()))


def _rank(name: str) -> tuple[bool, str, bool, bool, str]:
    """Classes before disks; within one the scheduler first, what it brings last."""
    target, _slash, attribute = name.partition("/")
    brought = attribute.startswith("iosched/")
    return (target not in CLASSES, target, attribute != "scheduler", brought, attribute)


# udev rules

_TOKEN = re.compile(
    r"\s*,?\s*(?P<key>[A-Z_]+)(?:\{(?P<attribute>[^}]*)\})?\s*(?P<op>==|!=|\+=|-=|:=|=)\s*"
    r'(?P<how>[ei]*)"(?P<value>(?:[^"\\]|\\.)*)"'
)


@dataclass(frozen=True)
class Token:
    key: str
    attribute: str
    op: str
    value: str

    @property
    def matches(self) -> bool:
        return self.op in ("==", "!=")


@dataclass(frozen=True)
class Rule:
    """One line of a rules file, continuation lines joined."""

    tokens: tuple[Token, ...]
    line: int

    def get(self, key: str) -> str:
        """The value of an assignment such as GOTO or LABEL, empty where the rule has none."""
        return next((token.value for token in self.tokens if token.key == key and not token.matches), "")


@dataclass
class Device:
    """What a rule can be matched against: a disk that is here, or (`known`) one that might appear."""

    system: System
    kernel: str
    known: Mapping[str, str] | None = None
    _cache: dict[str, str | None] = field(default_factory=dict)

    @functools.cached_property
    def folders(self) -> list[str]:
        """The folders of the device and its parents in /sys/devices, the nearest first; none if unknown."""
        if self.known is not None or not self.system.exists(f"/sys/block/{self.kernel}"):
            return []
        real = os.path.realpath(self.system.path(f"/sys/block/{self.kernel}"))
        devices = os.path.realpath(self.system.path("/sys/devices"))
        found = []
        while real.startswith(f"{devices}/"):
            if os.path.exists(f"{real}/uevent"):
                found.append(real)
            real = os.path.dirname(real)
        return found

    @property
    def devpath(self) -> str | None:
        devices = os.path.realpath(self.system.path("/sys/devices"))
        return f"/devices{self.folders[0].removeprefix(devices)}" if self.folders else None

    def attribute(self, name: str) -> str | None:
        """An attribute's text, None where there is none or it cannot be known (a disk that might appear)."""
        if self.known is not None:
            return self.known.get(name) or None
        if name not in self._cache:
            self._cache[name] = _attribute(self.system.path(f"/sys/block/{self.kernel}"), name)
        return self._cache[name]

    def matches(self, token: Token) -> bool | None:
        """Whether an ATTR match fits; one of an attribute that the disk does not have never does."""
        text = self.attribute(token.attribute)
        if text is None:
            return None if self.known is not None else False
        return _fits_pattern(token, text)

    def has_parent(self, tokens: Sequence[Token]) -> bool | None:
        """Whether the device or one of its parents fits all of these; None where its parents are unknown."""
        if not self.folders:
            return None
        return any(all(_fits_parent(token, folder) for token in tokens) for folder in self.folders)


def _attribute(folder: str, name: str) -> str | None:
    """An attribute below /sys without blanks at its end, a link's last part, None where it cannot be read."""
    path = f"{folder}/{name}"
    try:
        if os.path.islink(path):
            return os.path.basename(os.readlink(path))
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read().rstrip()
    except OSError:
        return None


def _fits_parent(token: Token, folder: str) -> bool:
    text: str | None = os.path.basename(folder)
    if token.key == "ATTRS":
        text = _attribute(folder, token.attribute)
        return text is not None and _fits_pattern(token, text)
    if token.key in ("SUBSYSTEMS", "DRIVERS"):
        text = _attribute(folder, "subsystem" if token.key == "SUBSYSTEMS" else "driver") or ""
    return _fits_pattern(token, text or "")


def parse_rules(system: System, file: str) -> list[Rule]:
    """The rules of a file, none of one that never speaks of a queue; lines that udev refuses are left out."""
    try:
        whole = system.read(file)
    except OSError:
        return []
    if "queue/" not in whole:
        return []  # a GOTO stays within its file: most files need no parsing
    lines = whole.split("\n")
    rules = []
    pending, start = "", 0
    for number, line in enumerate(lines, 1):
        text = line.lstrip()
        if text.startswith("#"):
            continue  # also between continued lines
        start = start or number
        if text.endswith("\\"):
            pending += text[:-1]
            continue
        tokens = _tokens(pending + text)
        if tokens:
            rules.append(Rule(tokens, start))
        pending, start = "", 0
    return rules


#: Keys that only match; an assignment to one makes udev refuse the whole line.
_MATCH_ONLY = words(
    "ACTION DEVPATH KERNEL SUBSYSTEM DRIVER KERNELS SUBSYSTEMS DRIVERS ATTRS TAGS TEST RESULT"
)
_KEYS = _MATCH_ONLY | words(
    "SYMLINK NAME ENV CONST TAG ATTR SYSCTL PROGRAM IMPORT OPTIONS OWNER GROUP MODE SECLABEL RUN GOTO LABEL"
)
#: Keys that need their {attribute}.
_WITH_ATTRIBUTE = frozenset({"ENV", "ATTR", "ATTRS", "SYSCTL", "IMPORT", "CONST"})


def _tokens(text: str) -> tuple[Token, ...]:
    """The tokens of a rule, none where udev refuses the line."""
    found = []
    at = 0
    text = text.rstrip().rstrip(",")
    while at < len(text):
        one = _TOKEN.match(text, at)
        if not one:
            return ()
        # Only \" is an escape in a plain string (udev(7)).
        value = one["value"].replace('\\"', '"')
        token = Token(one["key"], one["attribute"] or "", one["op"], value)
        if not _is_valid(token):
            return ()
        found.append(token)
        at = one.end()
    return tuple(found)


def _is_valid(token: Token) -> bool:
    if token.key not in _KEYS or (token.key in _WITH_ATTRIBUTE and not token.attribute):
        return False
    if token.key in ("GOTO", "LABEL"):
        return token.op == "="
    if token.matches:
        return token.key not in ("OPTIONS", "OWNER", "GROUP", "MODE", "SECLABEL", "RUN")
    if token.key in _MATCH_ONLY:
        return False
    return token.op != "-=" or token.key in ("SYMLINK", "TAG")


def walk(
    rules: Sequence[tuple[str, list[Rule]]], device: Device, attribute: str
) -> tuple[list[Definition], list[str]]:
    """Assignments to a device's attribute in the order of the rules, and the places that stay undecided."""
    found: dict[tuple[int, int, int], Definition] = {}
    doubts: dict[str, None] = {}
    for action in ("add", "change"):
        for index, (file, lines) in enumerate(rules):
            # Properties that rules of this file gave: an import between may bring others.
            properties: dict[str, str | None] = {}
            skipping, doubtful = "", set[str]()
            for place, rule in enumerate(lines):
                label = rule.get("LABEL")
                doubtful.discard(label)
                if skipping and label != skipping:
                    continue
                skipping = ""
                fits = _fits(rule, device, action, properties)
                if any(token.key == "IMPORT" for token in rule.tokens) and fits is not False:
                    properties.clear()
                if fits is False:
                    continue
                certain = fits is True and not doubtful
                for at, token in enumerate(rule.tokens):
                    if token.key == "ENV" and not token.matches:
                        plain = token.op == "=" and not set("$%") & set(token.value)
                        properties[token.attribute] = token.value if certain and plain else None
                    if not _assigns(token, attribute):
                        continue
                    if not certain or token.key != "ATTR" or set("$%") & set(token.value):
                        doubts[f"{file}:{rule.line}"] = None
                    else:
                        found[index, rule.line, at] = Definition(squeeze(token.value), file, rule.line)
                goto = rule.get("GOTO")
                if goto and all(one.get("LABEL") != goto for one in lines[place + 1 :]):
                    continue  # udev looks ahead only, and ignores one that leads nowhere
                if goto and fits:
                    skipping = goto
                elif goto:
                    doubtful.add(goto)
    return [found[place] for place in sorted(found)], list(doubts)


def _assigns(token: Token, attribute: str) -> bool:
    """Whether a token sets the attribute, or runs something that speaks of it."""
    if token.matches:
        return False
    if token.key == "ATTR":
        return token.attribute == attribute
    return token.key in ("RUN", "SYSCTL") and attribute in token.value


#: Matches against the device or one of its parents, all of a rule against the same one.
_PARENTS = frozenset({"KERNELS", "SUBSYSTEMS", "DRIVERS", "ATTRS"})


def _fits(rule: Rule, device: Device, action: str, properties: Mapping[str, str | None]) -> bool | None:
    """Whether all matches of a rule fit; None where that hangs on what cannot be known here."""
    verdict: bool | None = True
    parents = [token for token in rule.tokens if token.key in _PARENTS]
    if parents:
        verdict = device.has_parent(parents)
    for token in rule.tokens:
        if verdict is False:
            return False
        if token.key not in _PARENTS and (token.matches or token.key in ("PROGRAM", "IMPORT", "TEST")):
            one = _match(token, device, action, properties)
            verdict = verdict if one is True else one
            if one is False:
                return False
    return verdict


def _match(token: Token, device: Device, action: str, properties: Mapping[str, str | None]) -> bool | None:
    if token.key == "ATTR":
        return device.matches(token)
    known: dict[tuple[str, str], str | None] = {
        ("ACTION", ""): action,
        ("KERNEL", ""): device.kernel,
        ("SUBSYSTEM", ""): "block",
        ("DEVPATH", ""): device.devpath,
        ("ENV", "ACTION"): action,
        ("ENV", "DEVTYPE"): "disk",
        ("ENV", "DEVNAME"): f"/dev/{device.kernel}",
        ("ENV", "SUBSYSTEM"): "block",
    }
    text = known.get((token.key, token.attribute))
    if token.key == "ENV" and text is None:
        text = properties.get(token.attribute)
    if token.key == "TEST" and device.known is None and not token.value.startswith("/"):
        return device.system.exists(f"/sys/block/{device.kernel}/{token.value}") == (token.op == "==")
    return None if text is None else _fits_pattern(token, text)


def _fits_pattern(token: Token, text: str) -> bool:
    # fnmatch(3) takes [^x] for [!x] as well
    patterns = token.value.replace("[^", "[!").split("|")
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns) == (token.op == "==")
