"""Kind sysctl: /proc/sys and sysctl.d.

Persisted truth is computed as systemd-sysctl computes it (sysctl.d(5)): files by base name over the folders
below, where the first folder masks the later ones; within that order the last assignment wins; a key with
globs counts only where no file names the key literally; `-key` alone takes a key out of later globs, and a
`-` before an assignment only means that a failure is ignored.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from .. import cpulist
from ..model import Change, Definition, Planes, Refusal, Setting, squeeze
from ..system import KERNEL_SHARED, System
from .base import Kind, did_you_mean, ordered_files

FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")

#: Lowering these harms: they are floors (catalogue D, "never-lower keys"). Value: which fields are raised.
RAISE_ONLY = {
    "fs.file-max": (0,),
    "fs.nr_open": (0,),
    "fs.aio-max-nr": (0,),
    "kernel.pid_max": (0,),
    "kernel.threads-max": (0,),
    "net.core.rmem_max": (0,),
    "net.core.wmem_max": (0,),
    "net.core.somaxconn": (0,),
    "net.ipv4.tcp_max_syn_backlog": (0,),
    "net.ipv4.tcp_rmem": (1, 2),
    "net.ipv4.tcp_wmem": (1, 2),
    "vm.max_map_count": (0,),
}

#: Writing one of a pair sets the other to zero (Documentation/admin-guide/sysctl/vm.rst).
ZEROING_PAIRS = (
    ("vm.dirty_ratio", "vm.dirty_bytes"),
    ("vm.dirty_background_ratio", "vm.dirty_background_bytes"),
    ("vm.overcommit_ratio", "vm.overcommit_kbytes"),
)
#: Of these the kernel refuses a zero: only their twin brings it (mm/page-writeback.c).
NO_ZERO = frozenset({"vm.dirty_bytes", "vm.dirty_background_bytes"})
#: Of the others a written zero does not zero the twin either where the value was zero before.
_ZERO_IS_NO_CHANGE = frozenset({"vm.dirty_ratio"})
#: Writing it writes the others too, and it shows whether any of them is on (kernel/watchdog.c).
WATCHDOG = "kernel.watchdog"
WATCHDOGS = frozenset({"kernel.nmi_watchdog", "kernel.soft_watchdog"})

TWINS = {**dict(ZEROING_PAIRS), **{second: first for first, second in ZEROING_PAIRS}}

#: Real keys that not every kernel has: absent ones are `unsupported`, not a mistake in the name.
CONDITIONAL = {
    "kernel.nmi_watchdog": "the kernel was built without the hard-lockup detector",
    "kernel.numa_balancing": "the kernel was built without CONFIG_NUMA_BALANCING",
    "kernel.sched_autogroup_enabled": "the kernel was built without CONFIG_SCHED_AUTOGROUP",
    "net.core.busy_poll": "the kernel was built without CONFIG_NET_RX_BUSY_POLL (as PREEMPT_RT ones are)",
    "net.core.busy_read": "the kernel was built without CONFIG_NET_RX_BUSY_POLL (as PREEMPT_RT ones are)",
    "net.core.default_qdisc": "only the machine's own network namespace has it",
    "net.core.netdev_budget": "only the machine's own network namespace has it",
    "net.core.netdev_budget_usecs": "only the machine's own network namespace has it",
    "net.core.netdev_max_backlog": "only the machine's own network namespace has it",
    "net.ipv4.tcp_rto_min_us": "only kernels from 6.11 have it",
    "vm.compaction_proactiveness": "the kernel was built without CONFIG_COMPACTION",
    "vm.hugetlb_shm_group": "the kernel was built without huge pages",
    "vm.zone_reclaim_mode": "the kernel was built without CONFIG_NUMA",
}

#: Bounds that the kernel itself has, where every supported one has the same.
RANGES = {
    "kernel.dmesg_restrict": (0, 1),
    "kernel.nmi_watchdog": (0, 1),
    "kernel.perf_cpu_time_max_percent": (0, 100),
    "kernel.sched_autogroup_enabled": (0, 1),
    "kernel.soft_watchdog": (0, 1),
    "kernel.watchdog": (0, 1),
    "kernel.watchdog_thresh": (0, 60),
    "vm.compaction_proactiveness": (0, 100),
    "vm.dirty_background_ratio": (0, 100),
    "vm.dirty_ratio": (0, 100),
    "vm.overcommit_memory": (0, 2),
    "vm.panic_on_oom": (0, 2),
    "vm.swappiness": (0, 200),
}
#: No key holds more bits.
_LARGEST = 2**64 - 1

#: Keys of text, also where it looks like a number.
_TEXTS = frozenset(
    {
        "kernel.core_pattern",
        "kernel.domainname",
        "kernel.hostname",
        "kernel.modprobe",
        "kernel.poweroff_cmd",
        "net.core.default_qdisc",
        "net.ipv4.tcp_congestion_control",
        "net.ipv4.tcp_fastopen_key",
    }
)
#: Lists of numbers and ranges, which the kernel prints in its own form (proc_do_large_bitmap).
_LISTS = frozenset({"kernel.watchdog_cpumask", "net.ipv4.ip_local_reserved_ports"})
#: CPU masks in hex, and words of which the order does not count.
_MASKS = frozenset({"net.core.flow_limit_cpu_bitmap", "net.core.rps_default_mask"})
_SETS = frozenset({"net.ipv4.tcp_allowed_congestion_control"})

#: A tick of the slowest kernel (CONFIG_HZ=100).
_LONGEST_TICK_MS = 10
#: What systemd strips from lines, keys and values; and the length of a line in bytes that it does not read.
BLANKS = " \t\n\r"
LONGEST_LINE = 1024 * 1024

CONGESTION_CONTROL = "net/ipv4/tcp_congestion_control"

_NUMBERS = re.compile(r"-?[0-9]+( -?[0-9]+)*\Z")
#: As proc_get_long() reads it: hex after 0x, octal after 0.
_NUMBER = re.compile(r"(-?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))\Z")
_LIST = re.compile(r"((0|[1-9][0-9]*)(-(0|[1-9][0-9]*))?(,(?=[0-9])|\Z))*\Z")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:@*?\-]*\Z")


def to_path(name: str) -> str:
    """The path below /proc/sys of a dotted or slashed key.

    As sysctl.d(5): where the first separator is a slash, slashes separate and dots are literal; where it is
    a dot, dots separate and a slash stands for a literal dot (net.ipv4.conf.eth0/100.rp_filter).
    """
    separators = [char for char in name if char in "./"]
    if separators and separators[0] == "/":
        return name
    return name.translate(str.maketrans("./", "/."))


def to_name(path: str) -> str:
    """The dotted key of a path below /proc/sys."""
    return path.translate(str.maketrans("./", "/."))


def dotted(name: str) -> str:
    """The dotted form of a key in either spelling, as the tables here have it."""
    return to_name(to_path(name))


def assignments(text: str) -> Iterator[tuple[int, str, str | None]]:
    """The lines of a file of sysctl.d that mean something: number, path, and value; None of a `-key` alone.

    As parse_file() of systemd-sysctl: a carriage return and a zero byte end a line too, and a line of a
    mebibyte ends the reading of the file.
    """
    for number, line in enumerate(text.replace("\0", "\n").split("\n"), 1):
        if len(line.encode("utf-8", "surrogateescape")) >= LONGEST_LINE:
            return
        line = line.strip(BLANKS)
        if not line or line[0] in "#;":
            continue
        key, equals, value = line.partition("=")
        dash = key.startswith("-")
        path = _canonical((key[1:] if dash else key).strip(BLANKS))
        if equals:
            yield number, path, value.strip(BLANKS)
        elif dash:
            yield number, path, None


def _canonical(key: str) -> str:
    """The path of a key of a file, which may begin with a slash or repeat its separators."""
    return "/".join(part for part in to_path(key).split("/") if part not in ("", "."))


def is_glob(path: str) -> bool:
    return any(char in path for char in "*?[")


class SysctlKind(Kind):
    name = "sysctl"

    def __init__(self, system: System) -> None:
        super().__init__(system)
        #: when systemd-sysctl writes a path (or what a glob stands for) at boot: a greater number is later
        self._turns: dict[str, int] = {}

    # names

    def _own(self, path: str) -> str:
        """Why a key of this path is not this host's own; empty where it is."""
        if not self.system.container:
            return ""
        if not path.startswith("net/"):
            return KERNEL_SHARED
        # This key exists in the machine's own network namespace only: seeing it means sharing that one.
        if self.system.exists("/proc/sys/net/core/dev_weight"):
            return "network namespace shared with the machine"
        return ""

    def canonical(self, name: str) -> str:
        return to_path(name)

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        seen: dict[str, Setting] = {}
        for setting in settings:
            other = seen.setdefault(to_path(setting.name), setting)
            if other is not setting:
                raise Refusal(f"is the same key as {other.name}", thing=str(setting), remedy="Name it once")
            if (
                not _NAME.match(setting.name)
                or ".." in setting.name
                or "*" in setting.name
                or "?" in setting.name
            ):
                raise Refusal(
                    "is no sysctl name", thing=str(setting), remedy="Names are dotted, such as vm.swappiness"
                )
            path = to_path(setting.name)
            below = [to_name(f"{path}/{leaf}") for leaf in self.system.names(f"/proc/sys/{path}")]
            if below:
                raise Refusal(
                    "is a folder", thing=str(setting), remedy=f"Name a key in it: {', '.join(below[:8])}"
                )
            if dotted(setting.name) == WATCHDOG:
                raise Refusal(
                    f"writes {' and '.join(sorted(WATCHDOGS))} and has no value of its own",
                    thing=str(setting),
                    remedy="Ask for these two",
                )
            if self.system.exists(f"/proc/sys/{path}") or dotted(setting.name) in CONDITIONAL:
                self._check_type(setting, path)
                self._check_zero(setting, path, settings)
                continue
            if setting.notes.get("module"):
                continue  # its module, which the same call loads, brings it
            folder = os.path.dirname(path)
            known = [to_name(f"{folder}/{leaf}") for leaf in self.system.names(f"/proc/sys/{folder}")]
            if not known:
                known = [
                    to_name(f"{top}/{leaf}")
                    for top in self._tops()
                    for leaf in self.system.names(f"/proc/sys/{top}")
                ]
            raise Refusal(
                "this kernel has no such sysctl",
                thing=str(setting),
                remedy=did_you_mean(setting.name, known)
                or "Check the name, or name the module that brings it in its note",
            )

    def _tops(self) -> list[str]:
        return ["vm", "kernel", "fs", "net/core", "net/ipv4", "net/ipv6"]

    def _check_type(self, setting: Setting, path: str) -> None:
        """A number where the kernel shows numbers, and as many as it shows."""
        try:
            live = self.system.read_value(f"/proc/sys/{path}")
        except OSError:
            return  # `read` says why it is unknown
        name = dotted(setting.name)
        if name in _LISTS or name in _MASKS:
            try:
                _in_form(name, setting.value)
            except ValueError:
                what, such = ("list", "0-3,8") if name in _LISTS else ("mask", "f for CPUs 0 to 3")
                what = "list of ports" if name.endswith("_ports") else f"CPU {what}"
                raise Refusal(
                    f"'{setting.value}' is no {what}", thing=str(setting), remedy=f"Give one such as {such}"
                ) from None
            return
        if name in _TEXTS or not _NUMBERS.match(live):
            return
        if not _NUMBERS.match(setting.value):
            raise Refusal(
                f"'{setting.value}' is not of its type: the kernel shows {live}",
                thing=str(setting),
                remedy="Give a whole number"
                if " " not in live
                else f"Give {len(live.split())} whole numbers",
            )
        if re.search(r"(?:\A|[ -])0[0-9]", setting.value):
            raise Refusal(
                f"'{setting.value}' has a leading zero, with which the kernel reads it as octal",
                thing=str(setting),
                remedy="Write the number without it",
            )
        if len(setting.value.split()) != len(live.split()):
            raise Refusal(
                f"'{setting.value}' has {len(setting.value.split())} fields, the kernel shows {live}",
                thing=str(setting),
                remedy=f"Give {len(live.split())} whole numbers",
            )
        low, high = RANGES.get(name, (-_LARGEST, _LARGEST))
        if not all(low <= int(one) <= high for one in setting.value.split()):
            raise Refusal(
                f"{setting.value} is out of range", thing=str(setting), remedy=f"Give {low} to {high}"
            )

    def _check_zero(self, setting: Setting, path: str, settings: Sequence[Setting]) -> None:
        """A zero that the kernel refuses, and that nothing in this call brings."""
        name = dotted(setting.name)
        if name not in NO_ZERO or setting.value != "0" or self._own(path):
            return
        if any(dotted(one.name) == TWINS[name] and one.value != "0" for one in settings):
            return
        try:
            live = self.system.read_value(f"/proc/sys/{path}")
        except OSError:
            return  # `read` says why it is unknown
        if live != "0":
            raise Refusal(
                f"is {live}, and the kernel refuses to write 0 there",
                thing=str(setting),
                remedy=f"Ask for {TWINS[name]}: writing that one sets this one to 0",
            )

    def target(self, name: str, asked: str, baseline: str | None) -> str:
        fields = RAISE_ONLY.get(dotted(name))
        if fields is None or baseline is None:
            return asked
        wanted, found = asked.split(), baseline.split()
        if len(wanted) != len(found):
            return asked
        for index in fields:
            if index < len(found) and int(found[index]) > int(wanted[index]):
                wanted[index] = found[index]
        return " ".join(wanted)

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        others = {name: _overwriting(dotted(name)) for name in names}
        try:
            persisted = self._persisted({to_path(name) for pair in others.items() for name in pair if name})
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}"
            return {name: Planes(unknown=reason) for name in names}
        found = {}
        for name, other in others.items():
            planes = found[name] = self._read_one(name, list(persisted[to_path(name)]))
            later = persisted[to_path(other)][-1:] if other else []
            if planes.winner is None or not later:
                continue
            value = later[0].value if other == WATCHDOG else "0"
            if self._turns[to_path(other)] < self._turns[to_path(name)] or planes.winner.value == value:
                continue
            if other == WATCHDOG or _zeroes(other, later[0].value):
                planes.definitions.append(replace(later[0], value=value))
                planes.where = (
                    f"{later[0].file}:{later[0].line} sets {other} after it, which sets it to {value}"
                )
        return found

    def _read_one(self, name: str, definitions: list[Definition]) -> Planes:
        path = to_path(name)
        planes = Planes(definitions=definitions)
        foreign = self._own(path)
        try:
            planes.live = self.system.read_value(f"/proc/sys/{path}")
        except FileNotFoundError:
            reason = foreign or CONDITIONAL.get(dotted(name), "this kernel has no such key")
            planes.unsupported = f"{reason}: no /proc/sys/{path}"
            if not foreign and self.system.container:
                planes.unsupported = f"no /proc/sys/{path} in this host's network namespace"
            return planes
        except OSError as error:
            planes.unknown = f"/proc/sys/{path}: {error.strerror}"
            return planes
        if foreign:
            planes.unsupported = foreign
        elif self.system.container and path == CONGESTION_CONTROL:
            planes.unsupported = self._restricted()
        elif not os.stat(self.system.path(f"/proc/sys/{path}")).st_mode & 0o200:
            planes.unsupported = f"/proc/sys/{path} is read-only on this kernel"
        return planes

    def _restricted(self) -> str:
        """A container may choose only among what the machine allows everybody (tcp_cong.c)."""
        try:
            folder = f"/proc/sys/{os.path.dirname(CONGESTION_CONTROL)}"
            allowed = self.system.read_value(f"{folder}/tcp_allowed_congestion_control")
            available = self.system.read_value(f"{folder}/tcp_available_congestion_control")
        except OSError:
            return ""
        missing = set(available.split()) - set(allowed.split())
        return f"the machine lets a container choose from {allowed} only" if missing else ""

    def _persisted(self, paths: set[str]) -> dict[str, list[Definition]]:
        """Every definition of each path in reading order, the winner last; raises OSError."""
        self._turns = turns = {}
        turn = 0
        literal: dict[str, list[Definition]] = {path: [] for path in paths}
        globs: dict[str, Definition] = {}
        excluded: set[str] = set()
        for file in ordered_files(self.system, FOLDERS, ".conf"):
            for number, path, value in assignments(self._text(file)):
                if value is None:
                    globs.pop(path, None)
                    if path in literal:
                        # Takes its place among the literal ones: no glob sets it, and no earlier line does.
                        literal[path] = []
                        excluded.add(path)
                    continue
                found = Definition(squeeze(value), file, number)
                turn += 1
                if is_glob(path):
                    if path in globs and globs[path].value != found.value:
                        # Another value takes the pattern to the end, the same one keeps its place.
                        del globs[path]
                    if globs.setdefault(path, found) is found:
                        turns[path] = turn
                elif path in literal:
                    if not literal[path] or literal[path][-1].value != found.value:
                        turns[path] = turn
                    literal[path].append(found)
                    excluded.discard(path)
        for path, definitions in literal.items():
            if not definitions and path not in excluded:
                for pattern, found in self._globbed(path, globs):
                    definitions.append(found)
                    turns[path] = turns[pattern]
        return literal

    def _text(self, file: str) -> str:
        """A file of sysctl.d; empty where systemd-sysctl skips it: a folder, or a link to nothing."""
        try:
            return self.system.read(file)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EISDIR, errno.ELOOP, errno.ENOTDIR):
                return ""
            raise

    def _globbed(self, path: str, globs: Mapping[str, Definition]) -> list[tuple[str, Definition]]:
        """The globs, with what they give, of a key that no line names: none where the kernel lacks it."""
        if not self.system.exists(f"/proc/sys/{path}"):
            return []
        return [one for one in globs.items() if _path_match(path, one[0])]

    def same(self, name: str, wanted: str, found: str) -> bool:
        if wanted == found:
            return True
        try:
            return _in_form(dotted(name), wanted) == _in_form(dotted(name), found)
        except ValueError:
            return False

    def clamps(self, name: str, wanted: str, found: str) -> str:
        if not (wanted.isdigit() and found.isdigit()):
            return ""
        asked, took = int(wanted), int(found)
        if name.endswith("_ms") and 0 <= took - asked < _LONGEST_TICK_MS:
            return f"the kernel counts this in its own ticks: {asked} ms become {took}"
        if name.startswith("vm.nr_hugepages") and took < asked:
            return f"the kernel found memory for {took} huge pages of {asked}; at boot there is more"
        return ""

    # persistence

    def managed_file(self, owner: str, name: str) -> str:
        return f"/etc/sysctl.d/60-hosttune-{owner}.conf"

    def body(self, settings: Sequence[Setting]) -> str:
        # In the order in which they are written at boot; a dash, since of some a zero is refused.
        lines = sorted(settings, key=lambda one: (_rank(one.name, one.value), one.name))
        return "".join(
            f"{'-' if dotted(one.name) in NO_ZERO and one.value == '0' else ''}{one.name} = {one.value}\n"
            for one in lines
        )

    # the live plane

    def coupled(self, name: str) -> dict[str, str]:
        """The twin, which writing this one sets to zero."""
        twin = TWINS.get(dotted(name), "")
        try:
            return {twin: self.system.read_value(f"/proc/sys/{to_path(twin)}")} if twin else {}
        except OSError:
            return {}  # a key without its twin zeroes nothing

    def outcome(self, changes: Sequence[Change]) -> dict[str, str]:
        found = {change.name: change.value for change in changes}
        for _change, name, value in _writes(changes):
            found[name] = value
            if value != "0":
                found.update(dict.fromkeys(self.coupled(name), "0"))
        return found

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        failed = {}
        for change, name, value in _writes(changes):
            try:
                self.system.write_value(f"/proc/sys/{to_path(name)}", value)
            except OSError as error:
                failed[change.name] = f"the kernel refused '{change.value}': {error.strerror}"
        return failed


def _writes(changes: Sequence[Change]) -> list[tuple[Change, str, str]]:
    """What is written, in order: the change that it is for, key and value.

    The zero of a key whose twin is written is not: the twin brings it, and the kernel refuses some.
    """
    found = []
    brought = {TWINS[dotted(one.name)] for one in changes if dotted(one.name) in TWINS and one.value != "0"}
    for change in sorted(changes, key=lambda one: (_rank(one.name, one.value), one.name)):
        name = dotted(change.name)
        if change.value == "0" and name in brought:
            continue
        coupled = change.asked.get("coupled") if change.undo and change.value == "0" else None
        found.append(
            (change, *next(iter(coupled.items()))) if coupled else (change, change.name, change.value)
        )
    return found


def _rank(name: str, value: str) -> int:
    """What is written first: fs.nr_open, which bounds others.

    Of two keys that zero each other (vm.dirty_ratio, vm.dirty_bytes) the one not zero is written last.
    """
    if dotted(name) == "fs.nr_open":
        return 0
    return 2 if dotted(name) in TWINS and value != "0" else 1


def _overwriting(name: str) -> str:
    """The key that, written after this one, gives it another value; empty where there is none."""
    return WATCHDOG if name in WATCHDOGS else TWINS.get(name, "")


def _zeroes(name: str, value: str) -> bool:
    """Whether writing this value to a key of ZEROING_PAIRS, after its twin was written, zeroes the twin."""
    return _number(value) != 0 or name not in NO_ZERO | _ZERO_IS_NO_CHANGE


def _path_match(path: str, pattern: str) -> bool:
    """glob(3) over the folders of /proc/sys: a star does not cross a slash."""
    parts, wanted = path.split("/"), re.sub(r"\\(.)", r"[\1]", pattern).replace("[^", "[!").split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _in_form(name: str, text: str) -> object:
    """What can be compared of a value; raises ValueError for no list or mask where one belongs."""
    if name in _TEXTS:
        return text
    if name in _LISTS:
        if not _LIST.match(text):
            raise ValueError(text)
        return cpulist.parse(text)
    if name in _MASKS:
        return mask(text)
    return set(text.split()) if name in _SETS else [_number(one) for one in text.split()]


def mask(text: str) -> set[int]:
    """The CPUs of a hex mask as the kernel takes it, which knows no 0x there; raises ValueError."""
    if text[:2].lower() == "0x":
        raise ValueError(f"'{text}' is no CPU mask")
    return cpulist.from_mask(text)


def _number(text: str) -> object:
    """A number as the kernel reads it; what it does not read as one stays text."""
    found = _NUMBER.match(text)
    if found is None:
        return text
    minus, hexadecimal, octal, decimal = found.groups()
    number = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    return -number if minus else number
