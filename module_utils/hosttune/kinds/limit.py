"""Kind limit: resource limits of login sessions, as pam_limits sets them.

Name: DOMAIN/TYPE/ITEM, such as `trading-orchestrator/hard/nofile`; TYPE is soft, hard or - (both). There is
no live plane: a session has what pam_limits read when it began, and services never see these files (their
limits are kind unit). Persisted truth is computed as pam_limits does (limits.conf(5)): limits.conf of
/etc/security, then limits.d/*.conf in the order of their bytes. A line of the user, or of a range that holds
its id, beats one of a group, and that one of `*`, whatever the order; of equals the last wins; a line
`DOMAIN -` takes every limit from whom it names. Of a domain that is no user (a group, `*`) only its own lines
are looked at: a member may have stronger ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..model import Definition, Planes, Refusal, Setting
from .base import Kind, did_you_mean

MAIN = "/etc/security/limits.conf"
FOLDER = "/etc/security/limits.d"
TYPES = ("soft", "hard", "-")
#: what a dash sets, in this order
BOTH = ("soft", "hard")
#: Items of limits.conf(5) with their smallest and largest number; None has no bound.
ITEMS: dict[str, tuple[int | None, int | None]] = {
    "as": (0, None),
    "core": (0, None),
    "cpu": (0, None),
    "data": (0, None),
    "fsize": (0, None),
    "locks": (0, None),
    "maxlogins": (0, None),
    "maxsyslogins": (0, None),
    "memlock": (0, None),
    "msgqueue": (0, None),
    "nice": (-20, 19),
    "nofile": (0, None),
    "nonewprivs": (0, 1),
    "nproc": (0, None),
    "priority": (-20, 20),
    "rss": (0, None),
    "rtprio": (0, 99),
    "sigpending": (0, None),
    "stack": (0, None),
}
UNLIMITED = frozenset({"unlimited", "infinity", "-1"})
#: Numbers of which -1 is one, and which know no "unlimited".
_SIGNED = frozenset({"nice", "priority"})
#: Taken as a number only: unlimited is above fs.nr_open, and setrlimit(2) then fails the login.
_BOUNDED = frozenset({"nofile", "rtprio", "nonewprivs"}) | _SIGNED
#: What pam_limits holds against a whole domain, `DOMAIN -` without an item.
NO_LIMITS = "-"
#: How weak a line is, by whom it names.
USER, GROUP, DEFAULT = range(3)
#: What isspace(3) parts in the C locale.
_FIELD = re.compile(r"[^ \t\n\v\f\r]+")


class LimitKind(Kind):
    name = "limit"

    # names and values

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        for setting in settings:
            domain, kind, item = _split(setting)
            if not domain or re.search(r"[\s#]|\.\.", domain):
                raise Refusal(
                    f"'{domain}' is no domain",
                    thing=str(setting),
                    remedy="Give a user, @group or * (see limits.conf(5))",
                )
            if kind not in TYPES:
                raise Refusal(
                    f"'{kind}' is no type of limit",
                    thing=str(setting),
                    remedy=did_you_mean(kind, TYPES) or f"Types are {', '.join(TYPES)}",
                )
            if item not in ITEMS:
                raise Refusal(
                    f"'{item}' is no item of limits.conf",
                    thing=str(setting),
                    remedy=did_you_mean(item, ITEMS) or f"Items are {', '.join(sorted(ITEMS))}",
                )
            self._check_value(setting, item)
        self._check_pairs(settings)

    def _check_value(self, setting: Setting, item: str) -> None:
        value = setting.value.lower()
        if value in UNLIMITED and item not in _SIGNED:
            if item in _BOUNDED:
                raise Refusal(
                    f"cannot be {setting.value}: a session could not be opened",
                    thing=str(setting),
                    remedy="Give a number, for nofile at most fs.nr_open",
                )
            return
        if not re.match(r"[+-]?[0-9]+\Z", value):
            raise Refusal(
                f"'{setting.value}' is no whole number",
                thing=str(setting),
                remedy="Give a number" if item in _BOUNDED else "Give a number or unlimited",
            )
        low, high = ITEMS[item]
        if (low is not None and int(value) < low) or (high is not None and int(value) > high):
            raise Refusal(
                f"{setting.value} is out of range",
                thing=str(setting),
                remedy=f"Give {low} to {high}" if high is not None else f"Give {low} or more",
            )

    def _check_pairs(self, settings: Sequence[Setting]) -> None:
        """A soft limit above the hard one is lowered by pam_limits without a word."""
        by_place: dict[tuple[str, str], dict[str, Setting]] = {}
        for setting in settings:
            domain, kind, item = _split(setting)
            by_place.setdefault((domain, item), {})[kind] = setting
        for (_domain, item), found in by_place.items():
            if "-" in found and len(found) > 1:
                raise Refusal(
                    "sets soft and hard, which are also set one by one",
                    thing=str(found["-"]),
                    remedy="Ask for '-' alone, or for soft and hard",
                )
            soft, hard = found.get("soft"), found.get("hard")
            if soft and hard and item not in _SIGNED and _more(soft.value, hard.value):
                raise Refusal(
                    f"is {soft.value}, above the hard limit {hard.value}",
                    thing=str(soft),
                    remedy=f"Give at most {hard.value}, or raise the hard limit",
                )

    def same(self, name: str, wanted: str, found: str) -> bool:
        item = name.rsplit("/", 1)[-1]
        return _canonical(item, wanted) == _canonical(item, found)

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        unreadable = ""
        lines: list[tuple[str, int, list[str]]] = []
        for file in self._files():
            try:
                text = self.system.read(file)
            except FileNotFoundError:
                continue
            except OSError as error:
                unreadable = f"{file}: {error.strerror}"
                continue
            for number, line in enumerate(text.split("\n"), 1):
                fields = _FIELD.findall(line.partition("#")[0])
                if fields:
                    lines.append((file, number, fields))
        found = {}
        for name in names:
            planes = Planes(has_live=False, unknown=unreadable)
            if not unreadable:
                planes.definitions = _definitions(name, self._subject(name.rsplit("/", 2)[0]), lines)
                planes.note = "holds for sessions opened from now on"
            found[name] = planes
        return found

    def _subject(self, domain: str) -> _Subject:
        """What /etc/passwd and /etc/group say of a user; a name they do not have is only itself."""
        for entry in self._entries("/etc/passwd"):
            if entry[0] == domain and len(entry) > 3:
                gids, groups = {int(entry[3])}, set()
                for group in self._entries("/etc/group"):
                    if len(group) > 3 and (domain in group[3].split(",") or int(group[2]) in gids):
                        groups.add(group[0])
                        gids.add(int(group[2]))
                return _Subject(domain, int(entry[2]), int(entry[3]), frozenset(groups), frozenset(gids))
        return _Subject(domain)

    def _entries(self, file: str) -> list[list[str]]:
        try:
            lines = self.system.read(file).split("\n")
        except FileNotFoundError:
            return []
        return [line.split(":") for line in lines if line]

    def _files(self) -> list[str]:
        """The files pam_limits reads, in its order: that of glob(3) in the C locale, without hidden ones."""
        names = [name for name in self.system.names(FOLDER) if name.endswith(".conf") and name[0] != "."]
        return [
            MAIN,
            *(
                f"{FOLDER}/{name}"
                for name in sorted(names, key=lambda name: name.encode("utf-8", "surrogateescape"))
            ),
        ]

    # persistence

    def managed_file(self, owner: str, name: str) -> str:
        return f"{FOLDER}/60-hosttune-{owner}.conf"

    def body(self, settings: Sequence[Setting]) -> str:
        return "".join(f"{' '.join(_split(setting))} {setting.value}\n" for setting in settings)


def _split(setting: Setting) -> tuple[str, str, str]:
    # A domain may hold a slash (a winbind user), type and item never do.
    parts = setting.name.rsplit("/", 2)
    if len(parts) != 3:
        raise Refusal(
            "is no name of a limit",
            thing=str(setting),
            remedy="Names are DOMAIN/TYPE/ITEM, such as trading-orchestrator/hard/nofile",
        )
    return parts[0], parts[1], parts[2]


@dataclass(frozen=True)
class _Subject:
    """Whose limits are asked for: a user of this host, or just a domain as the files write it."""

    domain: str
    uid: int | None = None
    #: its primary group
    gid: int | None = None
    groups: frozenset[str] = frozenset()
    gids: frozenset[int] = frozenset()

    def rank(self, domain: str, takes_all: bool = False) -> int | None:
        """How weak a line of this domain is for the subject, 0 the strongest; None where it does not hold.

        `takes_all`: the line is `DOMAIN -`. A range of user ids is as strong as the user's name. As
        parse_config_file() of Debian's pam_limits, which spares root the limits of groups and of `*`, and so
        takes a range of groups for one of users there.
        """
        if domain == self.domain:
            return USER
        if self.domain[0] in "@%*" or ":" in self.domain:
            return None  # a group has no members to look at
        if self.uid == 0 and not takes_all:
            return USER if _in_range(domain.lstrip("@%"), 0) else None
        if domain.startswith("@"):
            return GROUP if self._in_group(domain[1:]) else None
        if domain == "*":
            return None if takes_all else DEFAULT
        return USER if self.uid is not None and _in_range(domain, self.uid) else None

    def _in_group(self, text: str) -> bool:
        if ":" not in text:
            return text in self.groups
        if text[0] == ":":
            return any(_in_range(text, gid) for gid in self.gids)
        return self.gid is not None and _in_range(text, self.gid)


def _in_range(text: str, number: int) -> bool:
    """Whether `MIN:MAX`, `MIN:` or `:EXACTLY` holds a number."""
    low, _colon, high = text.partition(":")
    if not re.match(r"\d*:\d*\Z", text) or text == ":":
        return False
    if not low:
        return number == int(high)
    return int(low) <= number and (not high or number <= int(high))


def _definitions(
    name: str, subject: _Subject, lines: Sequence[tuple[str, int, list[str]]]
) -> list[Definition]:
    """Every line that gives this limit its value, in the order of their strength, the winner last."""
    _domain, kind, item = name.rsplit("/", 2)
    weak: list[Definition] = []
    found: list[Definition] = []
    limits = {"soft": "", "hard": ""}
    ranks = {"soft": DEFAULT, "hard": DEFAULT}
    for file, number, fields in lines:
        takes_all = len(fields) == 2 and fields[1].startswith("-")
        rank = subject.rank(fields[0], takes_all)
        if rank is None:
            continue
        if takes_all:
            # pam_limits stops here and sets nothing for this domain, whatever was read before.
            found.append(Definition(NO_LIMITS, file, number))
            return weak + found
        # pam_limits reads four words with sscanf(3) and does not see what follows them.
        if len(fields) < 4 or fields[2].lower() != item:
            continue
        type_, value = fields[1].lower(), fields[3].lower()
        if value == "-" and item not in _SIGNED:
            value = "unlimited"
        if type_ not in TYPES or not _is_value(item, value):
            continue
        sides = BOTH if type_ == "-" else (type_,)
        taken = []
        for side in sides:
            if ranks[side] < rank:
                break  # of `-` the hard side is not reached where the soft one is stronger already
            limits[side], ranks[side] = value, rank
            taken.append(side)
        if kind != "-" and kind not in sides:
            continue
        shown = value
        if kind == "-":
            soft, hard = limits["soft"], limits["hard"]
            shown = soft if soft == hard else f"{soft or 'unset'}:{hard or 'unset'}"
        (found if kind in taken or (kind == "-" and taken) else weak).append(
            Definition(shown if taken else value, file, number)
        )
    return weak + found if found else []


def _is_value(item: str, text: str) -> bool:
    return (item not in _SIGNED and text in UNLIMITED) or bool(re.match(r"[+-]?\d", text))


def _canonical(item: str, text: str) -> int | str:
    """The value as a number, -1 for unlimited; text that is no number stays text."""
    text = text.lower()
    if item not in _SIGNED and text in UNLIMITED:
        return -1
    number = re.match(r"[+-]?\d+", text)  # strtoull(3) does not mind what follows
    return int(number.group()) if number else text


def _more(soft: str, hard: str) -> bool:
    one, other = _canonical("", soft), _canonical("", hard)
    if not isinstance(one, int) or not isinstance(other, int) or other == -1:
        return False
    return one == -1 or one > other
