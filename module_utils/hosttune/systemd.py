"""Questions to systemd, answered for many units in one command; its files and its values.

Files are found as systemd finds them (unit_file_find_dropin_paths() of 252, systemd.unit(5)) and read as its
conf-parser reads them. Values are reduced to what can be compared: `systemctl show` prints 1G as
`1073741824`, 90s as `1min 30s` and true as `yes`.
"""

from __future__ import annotations

import datetime
import difflib
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from . import cpulist
from .system import System

#: Folders of units and their drop-ins, the strongest first (systemd.unit(5)).
UNIT_FOLDERS = (
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
)


class Systemd:
    """The service manager of one host."""

    def __init__(self, system: System) -> None:
        self.system = system

    def show(self, units: Iterable[str], properties: Sequence[str]) -> dict[str, dict[str, str]]:
        """Unit -> property -> text, for units as asked; raises OSError where systemd gives no answer."""
        wanted = sorted(set(units))
        if not wanted:
            return {}
        # One block a unit, in the order asked: an alias answers with its target's Id.
        blocks = self._blocks(wanted, properties)
        if len(blocks) != len(wanted):
            raise OSError(5, f"systemctl show answered for {len(blocks)} of {len(wanted)} units")
        return dict(zip(wanted, blocks))

    def instances(self, templates: Iterable[str], properties: Sequence[str]) -> dict[str, dict[str, str]]:
        """Instance -> property -> text, of all instances of `templates` that systemd has; raises OSError."""
        patterns = [template.replace("@.", "@*.") for template in sorted(set(templates))]
        if not patterns:
            return {}
        return {block["Id"]: block for block in self._blocks(patterns, properties)}

    def _blocks(self, words: Sequence[str], properties: Sequence[str]) -> list[dict[str, str]]:
        """Property -> text of each unit that systemd answers for, names or patterns; raises OSError."""
        ended = self.system.run(
            "systemctl",
            "show",
            "--timestamp=us+utc",
            f"--property={','.join(('Id', *properties))}",
            "--",
            *words,
        )
        if not ended.ok:
            raise OSError(ended.status, f"systemctl show: {ended.err.strip() or ended.status}")
        return [
            dict(line.split("=", 1) for line in block.strip().split("\n") if "=" in line)
            for block in ended.out.split("\n\n")
            if block.strip()
        ]

    def manager(self, properties: Sequence[str]) -> dict[str, str]:
        """The manager's own properties; raises OSError."""
        ended = self.system.run("systemctl", "show", f"--property={','.join(properties)}")
        if not ended.ok:
            raise OSError(ended.status, f"systemctl show: {ended.err.strip() or ended.status}")
        return dict(line.split("=", 1) for line in ended.out.split("\n") if "=" in line)

    def enablement(self, units: Iterable[str]) -> dict[str, str]:
        """Unit -> what `systemctl is-enabled` says of it now, empty where it has no answer.

        UnitFileState of `show` is what a unit that runs had when systemd was first asked: links and masks
        that came later are not in it, and NeedDaemonReload does not tell of them.
        """
        wanted = sorted(set(units))
        said = self.system.run("systemctl", "is-enabled", "--", *wanted).out.split() if wanted else []
        if len(said) == len(wanted):
            return dict(zip(wanted, said))
        # It ends at the first unit that has no file.
        return {unit: self.system.run("systemctl", "is-enabled", "--", unit).out.strip() for unit in wanted}

    @staticmethod
    def listed(text: str) -> list[str]:
        """The words of a list as systemctl prints it: those with a backslash stand in quotes."""
        return shlex.split(text)

    @staticmethod
    def seconds(timestamp: str) -> float | None:
        """Seconds since the epoch of `Mon 2026-11-23 06:17:00.123456 UTC`; None of an empty one."""
        if not timestamp or timestamp == "n/a":
            return None
        _day, date, clock, _zone = timestamp.split()
        form = "%Y-%m-%d %H:%M:%S.%f" if "." in clock else "%Y-%m-%d %H:%M:%S"
        found = datetime.datetime.strptime(f"{date} {clock}", form)
        return found.replace(tzinfo=datetime.timezone.utc).timestamp()


# files


@dataclass(frozen=True)
class Assignment:
    """One `Name=value` line of a unit or configuration file; `line` is where it begins, counted from 1."""

    section: str
    name: str
    value: str
    file: str
    line: int


#: What systemd takes for blanks; Python's strip() would take more.
_BLANKS = " \t\n\r"


def assignments(text: str, file: str, whole: bool = False) -> Iterator[Assignment]:
    """The assignments of a file in order as systemd's config_parse() reads them.

    Those in no section never count, and what follows a broken section header is not read; `whole`: one
    raises ValueError, since nothing of the file counts then.
    """
    section = ""
    for start, line in _joined(text.removeprefix("\ufeff")):
        if line.startswith("["):
            if not line.endswith("]"):
                if whole:
                    raise ValueError(f"{file}:{start}: broken section header")
                return
            section = line[1:-1]
        elif section and "=" in line:
            name, _, value = line.partition("=")
            yield Assignment(section, name.strip(_BLANKS), value.strip(_BLANKS), file, start)


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their number, continued ones joined and stripped."""
    held, start = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        # A comment between continued lines is dropped and does not end the continuation.
        if line.lstrip(_BLANKS)[:1] in ("#", ";"):
            continue
        if not held:
            start = number
        if (len(line) - len(line.rstrip("\\"))) % 2:
            held += line[:-1] + " "
            continue
        yield start, (held + line).strip(_BLANKS)
        held = ""
    if held:
        yield start, held.strip(_BLANKS)  # the file ends with a backslash or a comment


def read_assignments(system: System, files: Iterable[str]) -> list[Assignment]:
    """The assignments of these files in order; raises OSError where one is there and cannot be read."""
    found: list[Assignment] = []
    for file in files:
        try:
            found.extend(assignments(system.read(file), file))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
    return found


def unit_folders(system: System) -> list[str]:
    """UNIT_FOLDERS, each real folder once: where /lib is a link to /usr/lib they are the same."""
    seen: set[str] = set()
    found = []
    for folder in UNIT_FOLDERS:
        real = os.path.realpath(system.path(folder))
        if real not in seen:
            seen.add(real)
            found.append(folder)
    return found


def is_template(unit: str) -> bool:
    """Whether this is `name@.service`, which no one can start or ask about."""
    return unit.partition("@")[2].startswith(".")


def template_of(unit: str) -> str:
    """`name@.service` of `name@instance.service`; the unit itself where it is no instance."""
    stem, _, suffix = unit.rpartition(".")
    prefix, at, _instance = stem.partition("@")
    return f"{prefix}@.{suffix}" if at else unit


def dropin_names(unit: str) -> list[str]:
    """The names whose `.d` folders hold drop-ins of `unit`, the most specific first; the type-wide one not.

    An instance has those of its template, and every name those of its prefixes; a template's prefixes have no
    @. foo-bar@x.service has foo-bar@x.service, foo-bar@.service, foo-.service, foo-@x.service, foo-@.service
    (systemd's unit_file_find_dirs(); the order is that seen with systemd 252).
    """
    found = [unit]
    template = template_of(unit)
    if template != unit:
        found += dropin_names(template)
    stem, _, suffix = unit.rpartition(".")
    prefix, _, instance = stem.partition("@")
    shorter = prefix[:-1] if prefix.endswith("-") else prefix
    if "-" in shorter:
        head = shorter[: shorter.rindex("-") + 1]
        found += dropin_names(f"{head}@{instance}.{suffix}" if instance else f"{head}.{suffix}")
    return list(dict.fromkeys(found))


def fragment(system: System, unit: str) -> str | None:
    """The unit file that systemd reads for `unit`, its template's where an instance has none of its own."""
    folders = unit_folders(system)
    for name in dict.fromkeys((unit, template_of(unit))):
        for folder in folders:
            if system.exists(f"{folder}/{name}"):
                return f"{folder}/{name}"
    return None


def near_units(system: System, unit: str) -> list[str]:
    """The names of units of the same type that `unit` may be a slip of the pen of, the nearest first."""
    stem, _, suffix = unit.rpartition(".")
    stems = {
        name.rpartition(".")[0]
        for folder in unit_folders(system)
        for name in system.names(folder)
        if name.endswith(f".{suffix}")
    }
    return [f"{near}.{suffix}" for near in difflib.get_close_matches(stem, stems, n=3, cutoff=0.75)]


def expand(text: str, unit: str) -> str:
    """The specifiers of a unit's name and of systemd's folders (systemd.unit(5)); others stay."""
    stem, _, _suffix = unit.rpartition(".")
    prefix, _, instance = stem.partition("@")
    last = prefix.rpartition("-")[2]
    known = {
        **{
            "n": unit,
            "N": stem,
            "p": prefix,
            "P": _unescape(prefix),
            "i": instance,
            "I": _unescape(instance),
        },
        **{"j": last, "J": _unescape(last), "%": "%", "t": "/run", "S": "/var/lib", "C": "/var/cache"},
        **{"L": "/var/log", "E": "/etc", "h": "/root", "u": "root", "U": "0"},
    }
    return re.sub("%(.)", lambda part: known.get(part[1], part[0]), text)


def _unescape(text: str) -> str:
    """What systemd-escape(1) made a part of a unit's name from."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda part: chr(int(part[1], 16)), text.replace("-", "/"))


def or_list(names: Sequence[str]) -> str:
    """A remedy that names them, empty for none."""
    return f"Did you mean {' or '.join(names)}?" if names else ""


def mask_of(system: System, unit: str) -> str | None:
    """The file that masks a unit; None where none does."""
    paths = [f"{folder}/{unit}" for folder in unit_folders(system)]
    return next((path for path in paths if system.exists(path) and is_masked(system, path)), None)


def escape_path(path: str) -> str:
    """The name of a path in a unit's name (unit_name_path_escape(), `systemd-escape --path`)."""
    inner = "/".join(part for part in path.split("/") if part)
    if not inner:
        return "-"
    return "".join(
        "-"
        if char == "/"
        else char
        if char.isascii() and (char.isalnum() or char in ":_" or (char == "." and place))
        else "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
        for place, char in enumerate(inner)
    )


def is_masked(system: System, path: str) -> bool:
    """Whether this file masks its name: a link to /dev/null, or empty (systemd.unit(5))."""
    real = system.path(path)
    if os.path.islink(real) and os.readlink(real) == "/dev/null":
        return True
    return os.path.isfile(real) and os.path.getsize(real) == 0


def dropins(system: System, unit: str, aliases: Sequence[str] = ()) -> list[str]:
    """The drop-ins of `unit` in reading order: by base name, of two with one name the stronger folder's.

    `aliases` are the unit's other names, whose drop-ins count too.
    """
    folders = unit_folders(system)
    ordered = [
        f"{folder}/{name}.d" for one in (unit, *aliases) for folder in folders for name in dropin_names(one)
    ]
    ordered += [f"{folder}/{unit.rpartition('.')[2]}.d" for folder in folders]
    chosen: dict[str, str] = {}
    for folder in dict.fromkeys(ordered):
        for name in system.names(folder):
            if name.endswith(".conf") and not name.startswith("."):
                chosen.setdefault(name, f"{folder}/{name}")
    # A masked one (empty, or a link to /dev/null) stays in the list, as in DropInPaths: it says nothing.
    return [chosen[name] for name in sorted(chosen)]


# values; each raises ValueError for text that is none

_TRUE = frozenset({"1", "yes", "y", "true", "t", "on"})
_FALSE = frozenset({"0", "no", "n", "false", "f", "off"})
#: Nanoseconds of each unit of systemd.time(7); a month is 30.44 days and a year 365.25.
_SPANS = {
    **dict.fromkeys(("ns", "nsec"), 1),
    **dict.fromkeys(("us", "usec", "µs", "μs"), 10**3),
    **dict.fromkeys(("ms", "msec"), 10**6),
    **dict.fromkeys(("s", "sec", "second", "seconds"), 10**9),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60 * 10**9),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600 * 10**9),
    **dict.fromkeys(("d", "day", "days"), 86400 * 10**9),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86400 * 10**9),
    **dict.fromkeys(("M", "month", "months"), 2629800 * 10**9),
    **dict.fromkeys(("y", "year", "years"), 31557600 * 10**9),
}
_SPAN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-zµμ]*)")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([BKMGTPE]?)")
_SIZES = {"": 1, "B": 1, **{letter: 1024 ** (power + 1) for power, letter in enumerate("KMGTPE")}}


def boolean(text: str) -> bool:
    """A boolean in any spelling that systemd takes."""
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"'{text}' is no boolean")


def nanoseconds(text: str, bare: str = "s") -> int | None:
    """A time span ("1min 30s"), a number without a unit in units of `bare`; None is infinity."""
    if text.strip() == "infinity":
        return None
    total, at = Decimal(0), 0
    while at < len(text.rstrip()):
        part = _SPAN.match(text, at)
        if part is None or (part[2] or bare) not in _SPANS:
            raise ValueError(f"'{text}' is no time span such as 1min 30s")
        total += Decimal(part[1]) * _SPANS[part[2] or bare]
        at = part.end()
    if at == 0:
        raise ValueError("nothing is no time span")
    return int(total)


def size(text: str) -> int | None:
    """Bytes of a size with suffixes to the base of 1024 ("1.5G", "1G 512M"); None is infinity."""
    text = text.strip()
    if text == "infinity":
        return None
    total, at, before = Decimal(0), 0, 1 << 64
    while at < len(text):
        part = _SIZE.match(text, at)
        # Each part is in a smaller unit than the one before.
        if part is None or _SIZES[part[2]] >= before:
            raise ValueError(f"'{text}' is no size such as 512M")
        before = _SIZES[part[2]]
        total += Decimal(part[1]) * before
        at = part.end()
    if at == 0:
        raise ValueError("nothing is no size")
    return int(total)


def integer(text: str) -> int:
    """A whole number as C reads it: 16, +16, 0x10, 0o20 or 020."""
    part = re.match(r"([+-]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|([1-9]\d*|0))\Z", text)
    if part is None:
        raise ValueError(f"'{text}' is no whole number")
    digits = ((part[2], 16), (part[3], 2), (part[4], 8), (part[5], 10))
    number = next(int(found, base) for found, base in digits if found)
    return -number if part[1] == "-" else number


def cpu_set(text: str) -> frozenset[int]:
    """CPUs (or NUMA nodes) as systemd takes them, apart by blanks or commas: "0-3 8"."""
    return frozenset(cpulist.parse(re.sub(r"[\s,]+", ",", text.strip())))


#: Resource limits that are sizes, and those that are times (unit of a bare number, its nanoseconds).
_LIMIT_SIZES = frozenset({"FSIZE", "DATA", "STACK", "CORE", "RSS", "AS", "MEMLOCK", "MSGQUEUE"})
_LIMIT_TIMES = {"CPU": ("s", 10**9), "RTTIME": ("us", 10**3)}


def _limit(resource: str, text: str) -> int | None:
    if text == "infinity":
        return None
    if text != text.strip():
        raise ValueError(f"'{text}' has blanks around it")
    if resource in _LIMIT_SIZES:
        return size(text)
    if resource in _LIMIT_TIMES:
        bare, unit = _LIMIT_TIMES[resource]
        found = nanoseconds(text, bare)
        return None if found is None else -(-found // unit)
    if resource == "NICE" and text[:1] in ("+", "-"):
        nice = int(text)
        if not -20 <= nice <= 19:
            raise ValueError(f"'{text}' is no nice level from -20 to 19")
        return 20 - nice
    if text.startswith("-"):
        raise ValueError(f"'{text}' is below zero")
    return integer(text)


def limit(resource: str, text: str) -> tuple[int | None, int | None]:
    """Soft and hard of a resource limit (RLIMIT_`resource`); one value is both, None is infinity."""
    soft_text, colon, hard_text = text.strip().partition(":")
    # Blanks beside the colon are no slip to forgive: systemd does not take them.
    soft = _limit(resource, soft_text)
    hard = _limit(resource, hard_text) if colon else soft
    if hard is not None and (soft is None or soft > hard):
        raise ValueError(f"'{text}' has a soft limit above the hard one")
    return soft, hard


def limit_text(soft: str, hard: str) -> str:
    """The text of a pair of limits: `soft:hard`, once where they are the same."""
    return soft if soft == hard else f"{soft}:{hard}"
