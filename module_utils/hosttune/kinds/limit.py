"""Kind limit: resource limits of login sessions, as pam_limits sets them.

Name: DOMAIN/TYPE/ITEM, such as `trading-orchestrator/hard/nofile`; TYPE is soft, hard or - (both). There is
no live plane: a session has what pam_limits read when it began, and services never see these files (their
limits are kind unit). Persisted truth is computed as pam_limits does (limits.conf(5)): limits.conf of
/etc/security, then limits.d/*.conf in the order of their bytes; of one domain the last line wins; a line
`DOMAIN -` takes every limit from the domain. Lines of other domains that may also hold for a user (a group,
`*`) are weaker than the user's own and not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..model import Definition, Planes, Refusal, Setting
from .base import Kind, did_you_mean

MAIN = "/etc/security/limits.conf"
FOLDER = "/etc/security/limits.d"
TYPES = ("soft", "hard", "-")
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


class LimitKind(Kind):
    name = "limit"

    # names and values

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        for setting in settings:
            domain, kind, item = _split(setting)
            if not domain or re.search(r"[\s#]", domain):
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
        if not re.match(r"[+-]?\d+\Z", value):
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
                fields = line.partition("#")[0].split()
                if fields:
                    lines.append((file, number, fields))
        found = {}
        for name in names:
            planes = Planes(has_live=False, unknown=unreadable)
            if not unreadable:
                planes.definitions = _definitions(name, lines)
                planes.note = "holds for sessions opened from now on"
            found[name] = planes
        return found

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


def _definitions(name: str, lines: Sequence[tuple[str, int, list[str]]]) -> list[Definition]:
    """Every line that gives this limit its value, in reading order, the winner last."""
    domain, kind, item = name.rsplit("/", 2)
    found: list[Definition] = []
    soft = hard = ""
    for file, number, fields in lines:
        if fields[0] != domain:
            continue
        if len(fields) == 2 and fields[1] == "-":
            # pam_limits stops here and sets nothing for this domain, whatever was read before.
            found.append(Definition(NO_LIMITS, file, number))
            return found
        # pam_limits reads four words with sscanf(3) and does not see what follows them.
        if len(fields) < 4 or fields[2].lower() != item:
            continue
        type_, value = fields[1].lower(), fields[3].lower()
        if type_ not in TYPES or (kind != "-" and type_ not in (kind, "-")):
            continue
        soft = value if type_ in ("soft", "-") else soft
        hard = value if type_ in ("hard", "-") else hard
        if kind == "-":
            value = soft if soft == hard else f"{soft or 'unset'}:{hard or 'unset'}"
        found.append(Definition(value, file, number))
    return found


def _canonical(item: str, text: str) -> int | str:
    """The value as a number, -1 for unlimited; text that is no number stays text."""
    text = text.lower()
    if item not in _SIGNED and text in UNLIMITED:
        return -1
    return int(text) if re.match(r"[+-]?\d+\Z", text) else text


def _more(soft: str, hard: str) -> bool:
    one, other = _canonical("", soft), _canonical("", hard)
    if not isinstance(one, int) or not isinstance(other, int) or other == -1:
        return False
    return one == -1 or one > other
