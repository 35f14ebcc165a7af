"""A new kernel command line is booted once, and is permanent only after that boot was verified.

What waits for its trial stands beside the permanent file, as `60-hosttune-OWNER.cfg.trial`, which
grub-mkconfig does not read. `arm` renders today's default entry with the line that would follow, in
/boot/grub/custom.cfg, and names it in grubenv as `next_entry`. GRUB itself takes that name back, on disk,
before it starts the kernel: a panic (the trial line has panic=10), a reset by a watchdog and a power cycle
all boot the old line, which stood untouched. The menu's entries are not made anew, so no other hand's edit
below /etc/default comes in with a trial.

The word `hosttune.trial=ID` on the line says which trial a boot is; the kernel passes over a parameter of a
module that it does not have. ID is a digest of the line: the same line is the same trial, and one that failed
is not tried again by itself. Sources: GRUB 2.06, util/grub.d/00_header.in and 41_custom.in, grub-reboot(8).
"""

from __future__ import annotations

import array
import errno
import fcntl
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from . import atomic, cmdline, grub, grubenv
from .cmdline import Word, normal
from .model import MANAGED_BY, FileImage, Refusal
from .shell_source import Unfollowed
from .store import load_json, save_json, sha256
from .system import System

RECORD = "/var/lib/hosttune/trial.json"
SCHEMA = 1
ENTRY = "hosttune-trial"
WORD = "hosttune.trial"
SUFFIX = ".trial"
#: Seconds after which a kernel that panics starts anew, and Debian's initramfs that finds no root does so.
PANIC = "10"
#: COMMAND_LINE_SIZE of x86 and arm64 is 2048 with its end: what is longer, the kernel cuts without a word.
LONGEST_LINE = 2047

#: What a trial can be, see `standing`.
ARMING, ARMED, RUNNING, LOST, UNARMED, VERIFIED, FAILED = (
    "arming", "armed", "running", "lost", "unarmed", "verified", "failed",
)  # fmt: skip

#: File systems whose files keep their blocks, so that GRUB can write one by them.
_IN_PLACE = frozenset({"ext2", "ext3", "ext4", "vfat", "xfs"})
#: chattr(1): a file that is compressed, encrypted, lies in its inode, or may not be written
_FLAGS = {0x4: "compressed", 0x800: "encrypted", 0x10000000: "kept in its inode", 0x10: "immutable"}
_FS_IOC_GETFLAGS = 0x80086601
#: Words that 10_linux writes by itself, before those of the sources.
_OF_10_LINUX = frozenset({"root", "ro", "rootflags"})
_BY_HAND = "Or bring the line in at once, at a console: settings_boot_trial: none"


@dataclass
class Record:
    """What is kept of a trial from its arming to its end (docs/schemas/trial.json)."""

    id: str
    state: str
    #: the boot in which it was armed
    boot_id: str
    #: who has the last word, `host` or `controller`
    confirm: str
    #: the line that is tried, without the words of the trial itself
    line: str
    #: why it failed
    reason: str = ""
    #: what grubenv had as next_entry before
    next_entry: str | None = None
    #: what has to be there again: {"routes": [interface], "units": [name]}
    expects: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A line to be tried: its id, its words as the kernel gets them, and the menu entry that boots it."""

    id: str
    words: str
    entry: str


# the record


def load(system: System) -> Record | None:
    """What is known of a trial; raises Refusal for a record that cannot be used."""
    found = load_json(system, RECORD, "record of the trial boot")
    if found is None:
        return None
    try:
        return Record(**{name: found[name] for name in Record.__dataclass_fields__})
    except KeyError as error:
        raise Refusal(
            f"the record of the trial boot has no {error}",
            thing=RECORD,
            remedy="Remove it: the next run begins a new trial",
        ) from error


def save(system: System, record: Record) -> None:
    save_json(system, RECORD, {"schema": SCHEMA, **vars(record)}, 0o644, 0o700)


def standing(system: System, record: Record, environment: Mapping[str, str], live: Sequence[Word]) -> str:
    """How a trial stands now: armed, running, lost (its boot is over), unarmed, verified or failed."""
    if record.state in (VERIFIED, FAILED):
        return record.state
    runs = live_id(live) == record.id
    same_boot = record.boot_id == system.boot_id
    if environment.get("next_entry") == ENTRY and (same_boot or not runs):
        return ARMED  # a boot that did not come through GRUB (kexec) has used nothing up
    if runs and not same_boot:
        return RUNNING
    return LOST if record.state == ARMED and not same_boot else UNARMED


def live_id(live: Sequence[Word]) -> str:
    """The trial that this boot is, empty where it is none."""
    return next((word.value or "" for word in reversed(live) if word.name == WORD), "")


def failure(record: Record, now: str) -> str:
    """Why a trial that ended badly did."""
    if now == LOST:
        return (
            "the host came up again without it: that boot panicked, hung or lost its power, or another entry "
            "was chosen"
        )
    return record.reason


# what is tried


def overlay(system: System) -> dict[str, tuple[str, str]]:
    """The permanent files that a trial would replace: path -> where their next text stands, the text."""
    found = {}
    for name in system.names(grub.SOURCES):
        if name.startswith("60-hosttune-") and name.endswith(f".cfg{SUFFIX}"):
            path = f"{grub.SOURCES}/{name}"
            found[path[: -len(SUFFIX)]] = (path, grub.read_text(system, path))
    return found


def compose(system: System, menu: grub.Menu, instead: grub.Instead) -> Line:
    """The trial of today's default entry with what `instead` makes of its line.

    Raises OSError, and Unfollowed where the line cannot be told or tried: also where the entry is not what
    today's sources make, for then another line than the tried one would become permanent.
    """
    entry = menu.lasting
    entry.words(menu.file)  # says what it lacks to be a kernel's entry
    lines = system.read(menu.file).split("\n")
    number = entry.linux[0][0]
    raw = lines[number - 1].strip()
    words = grub.split_words(raw)
    now = [word for word, _at in grub.split_words(grub.read_wanted(system).text)]
    first = len(words) - len(now)
    own = all(word.partition("=")[0] in _OF_10_LINUX for word, _at in words[2 : max(first, 2)])
    if first < 2 or not own or [word for word, _at in words[first:]] != now:
        raise Unfollowed(
            f"{menu.file}:{number}, which boots by default, is not what {grub.SOURCE} and {grub.SOURCES} "
            "make. Run update-grub, look at that line, and reboot first"
        )
    wanted = grub.read_wanted(system, instead)
    begin = raw[: words[first][1]] if now else raw
    raw = f"{begin.rstrip()} {wanted.text.strip()}".rstrip()
    kernel = [grub.loader_text(word) for word, _at in grub.split_words(raw)[2:]]
    if "--" in kernel:
        raise Unfollowed("the line has --, after which no word is the kernel's: a trial cannot add its own")
    ident = sha256(" ".join(kernel).encode("utf-8", "surrogateescape"))[:12]
    added = [*_panic(wanted.words), f"{WORD}={ident}"]
    long = len(" ".join([f"BOOT_IMAGE={entry.kernel}", *kernel, *added]))
    if long > LONGEST_LINE:
        raise Unfollowed(f"the command line is {long} characters long, the kernel cuts it at {LONGEST_LINE}")
    body = [
        "\t" + " ".join([raw, *added]) if at == number else line
        for at, line in enumerate(lines[entry.line : entry.end - 1], entry.line + 1)
        if line.strip() != "savedefault"  # chosen by hand once, it would be the default of all later boots
    ]
    return Line(ident, " ".join(kernel), "\n".join([_header(lines[entry.line - 1]), *body, "}", ""]))


def _panic(words: Sequence[Word]) -> list[str]:
    """What the line lacks so that a panic ends in a reset."""
    asked = [word.value or "" for word in words if word.name == "panic"]
    return [] if asked and re.match(r"-?[1-9]\d*\Z", asked[-1]) else [f"panic={PANIC}"]


def _header(line: str) -> str:
    """The first line of a menu entry, with the trial's title and id."""
    text = line.strip().rstrip("{").rstrip()
    words = grub.split_words(text)
    raw = [text[at:end].rstrip() for (_, at), (_, end) in zip(words, [*words[1:], ("", len(text))])]
    kept, skip = [raw[0], "'hosttune trial'"], False
    for word, (value, _at) in zip(raw[2:], words[2:]):
        if skip or value in ("--id", "${menuentry_id_option}"):
            skip = not skip
            continue
        kept.append(word)
    return " ".join([*kept, "$menuentry_id_option", f"'{ENTRY}'", "{"])


def live_words(system: System) -> list[Word]:
    """The words that this kernel was booted with; raises OSError."""
    text = system.read("/proc/cmdline")
    return cmdline.split(text, [("/proc/cmdline", 1)] * len(text))


def runs_already(system: System, menu: grub.Menu, instead: grub.Instead) -> bool:
    """Whether this boot has the very line that `instead` makes: then it needs no trial.

    Raises OSError and Unfollowed.
    """
    then = grub.read_wanted(system, instead)
    base = menu.lasting.words(menu.file)
    own = list(itertools.takewhile(lambda word: word.name in _OF_10_LINUX, base))
    live = [word for word in live_words(system) if word.name != "BOOT_IMAGE"]
    return _plain(live) == _plain([*own, *then.words])


def _plain(words: Sequence[Word]) -> list[tuple[str, str | None]]:
    return [(normal(word.name), word.value) for word in words]


# arming


def arm(system: System, confirm: str) -> None:
    """Has the next boot, and only that one, try what waits for a trial.

    A line that failed, that runs for its trial, or that is verified is left as it stands. Raises OSError,
    Unfollowed and Refusal; the line of all other boots is the old one at every instant.
    """
    menu = grub.read_menu(system)
    refuse_impossible(system, menu)
    line = compose(system, menu, overlay(system))
    environment = grubenv.read(system)
    old = load(system)
    if old is not None and old.id == line.id:
        now = standing(system, old, environment, live_words(system))
        if now in (FAILED, LOST, RUNNING, VERIFIED):
            return
    before = old.next_entry if old is not None else environment.get("next_entry")
    record = Record(line.id, ARMING, system.boot_id, confirm, line.words, "", before, _expectations(system))
    text = f"# {MANAGED_BY}: the next boot tries this entry once; see {RECORD}.\n{line.entry}"
    save(system, record)  # first: it is what taking back begins with
    custom = system.path(grub.CUSTOM)
    atomic.write(custom, FileImage(text.encode("utf-8", "surrogateescape"), 0o600, os.getuid(), os.getgid()))
    ended = system.run("grub-script-check", custom)
    if not ended.ok:
        disarm(system)
        raise Unfollowed(f"the entry for it is no GRUB script: {(ended.err or ended.out).strip()}")
    grubenv.write(system, {"next_entry": ENTRY})
    if grub.read_menu(system).default.id != ENTRY:
        raise Unfollowed(f"{grub.MENU} does not take the entry of the trial, though {grubenv.PATH} names it")
    record.state = ARMED
    save(system, record)


def disarm(system: System) -> None:
    """Takes back all of a trial but what waits for it: the next boot has the line of all boots."""
    record = load(system)
    if record is None:
        return
    _take_back(system, record)
    atomic.remove(system.path(RECORD))


def fail(system: System, record: Record, reason: str) -> None:
    """Remembers that a trial failed: its line is not tried again until it changes or somebody clears this."""
    record.state, record.reason = FAILED, reason
    save(system, record)
    _take_back(system, record)


def _take_back(system: System, record: Record) -> None:
    if grubenv.read(system).get("next_entry", "") in ("", ENTRY):
        grubenv.write(system, {"next_entry": record.next_entry})
    if is_ours(system):
        atomic.remove(system.path(grub.CUSTOM))


def is_ours(system: System) -> bool:
    """Whether custom.cfg is the entry of a trial."""
    try:
        return system.read(grub.CUSTOM).startswith(f"# {MANAGED_BY}")
    except FileNotFoundError:
        return False


def _expectations(system: System) -> dict[str, list[str]]:
    """What a verified boot has to have again: the ways out, and who answers on SSH."""
    units = [unit for unit in ("ssh.service", "ssh.socket", "sshd.service") if is_active(system, unit)]
    return {"routes": default_routes(system), "units": units}


def is_active(system: System, unit: str) -> bool:
    return system.run("systemctl", "is-active", "--quiet", "--", unit).ok


def default_routes(system: System) -> list[str]:
    """The interfaces that a default route goes through."""
    found = set()
    for path, to, interface in (("/proc/net/route", 1, 0), ("/proc/net/ipv6_route", 0, 9)):
        try:
            rows = [line.split() for line in system.read(path).splitlines()]
        except FileNotFoundError:
            continue
        for row in rows:
            everywhere = len(row) > 9 and not row[to].strip("0") and (interface == 0 or row[1] == "00")
            if everywhere and row[interface] != "lo":
                found.add(row[interface])
    return sorted(found)


# where it is possible


def refuse_impossible(system: System, menu: grub.Menu) -> None:
    """Raises Refusal where GRUB could not take a trial back by itself, or would not see it; and OSError."""
    text = system.read(grub.MENU)
    if not re.search(r'^\s*set default="\$\{next_entry\}"\n(.*\n){0,2}?\s*save_env next_entry$', text, re.M):
        _refuse(grub.MENU, "has no code that takes next_entry for one boot", "Run update-grub")
    if not grub.sources_custom(text):
        remedy = "Restore /etc/grub.d/41_custom, and run update-grub"
        _refuse(grub.MENU, f"does not read {grub.CUSTOM}", remedy)
    if system.exists(grub.CUSTOM) and not is_ours(system):
        remedy = "Move its entries to /etc/grub.d/40_custom"
        _refuse(grub.CUSTOM, "is somebody's, and a trial needs it", remedy)
    _refuse_file(system)
    _refuse_disk(system)
    other = grubenv.read(system).get("next_entry", "")
    if other not in ("", ENTRY):
        _refuse(
            grubenv.PATH,
            f"the next boot is '{other}' by somebody else's grub-reboot",
            "Boot it, or grub-editenv - unset next_entry",
        )
    if menu.lasting.id == ENTRY:
        _refuse(grubenv.PATH, f"{ENTRY} is the entry of all boots", "grub-set-default another entry")


def _refuse(thing: str, why: str, remedy: str) -> None:
    raise Refusal(f"{why}: no trial boot is possible here", thing=thing, remedy=f"{remedy}. {_BY_HAND}")


def _refuse_file(system: System) -> None:
    """GRUB writes the file by its blocks: they have to be there, as they are read, and its own."""
    real, thing = system.path(grubenv.PATH), grubenv.PATH
    remedy = f"Make it anew: rm {thing}; grub-editenv {thing} create"
    if not os.path.lexists(real):
        _refuse(thing, "is missing", f"grub-editenv {thing} create")
    if os.path.islink(real) or not os.path.isfile(real):
        _refuse(thing, "is no regular file", remedy)
    about = os.stat(real)
    if about.st_blocks * 512 < about.st_size:
        _refuse(thing, "has holes, and GRUB cannot write it", remedy)
    try:
        with open(real, "rb") as stream:
            grubenv.changed(stream.read().decode("utf-8", "surrogateescape"), {"next_entry": ENTRY})
            flags = _flags(stream.fileno())
    except ValueError as error:
        _refuse(thing, str(error), remedy)
    for bit, word in _FLAGS.items():
        if flags & bit:
            _refuse(thing, f"is {word}, and GRUB cannot write it", remedy)


def _flags(handle: int) -> int:
    """The attributes of lsattr(1), none where the file system knows none."""
    found = array.array("l", [0])
    try:
        fcntl.ioctl(handle, _FS_IOC_GETFLAGS, found, True)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    return found[0]


def _refuse_disk(system: System) -> None:
    """GRUB writes to plain partitions only, and to file systems that leave a file's blocks where they are."""
    folder = os.path.dirname(grubenv.PATH)
    device, point, options, kind, more = _mounted(system, folder)
    thing = f"{folder} ({kind} on {point})"
    remedy = "Put /boot on an ext4 partition of its own"
    if kind not in _IN_PLACE:
        _refuse(thing, "GRUB cannot write its grubenv on this file system", remedy)
    if "data=journal" in (*options.split(","), *more.split(",")):
        _refuse(thing, "data=journal would write next_entry again after a crash", "Mount it data=ordered")
    if "ro" in options.split(","):
        _refuse(thing, "is mounted read-only", "Mount it read-write")
    place = os.path.realpath(system.path(f"/sys/dev/block/{device}"))
    if not os.path.isdir(place):
        _refuse(thing, f"its block device {device} is not in /sys", remedy)
    whole = os.path.dirname(place) if os.path.exists(f"{place}/partition") else place
    for layer, words in (
        ("dm", "the device mapper (LVM, encryption, multipath)"),
        ("md", "a RAID of the kernel"),
        ("bcache", "bcache"),
    ):
        if os.path.isdir(f"{whole}/{layer}"):
            _refuse(thing, f"lies on {words}, where GRUB cannot write", remedy)


def _mounted(system: System, path: str) -> tuple[str, str, str, str, str]:
    """Device, mount point, options, file system and its options of what `path` lies on; raises OSError."""
    best = ("", "", "", "", "")
    for row in system.read("/proc/self/mountinfo").splitlines():
        fields, _dash, after = row.partition(" - ")
        words, rest = fields.split(), after.split()
        if len(words) < 6 or len(rest) < 2:
            continue
        point = words[4]
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best[1]):
            best = (words[2], point, words[5], rest[0], rest[2] if len(rest) > 2 else "")
    return best
