"""Kind postgres: parameters of PostgreSQL clusters, the Debian way.

Name: VERSION/CLUSTER/NAME, such as `15/main/shared_buffers`. The server itself is asked, with one psql per
cluster as the OS user postgres over its socket:

- live: pg_settings, as SHOW prints it.
- persisted: pg_file_settings, every definition in the order the server reads it, postgresql.auto.conf (ALTER
  SYSTEM) last; the last one wins, and an option on the server's command line wins over all of them.

Equality knows units: `4GB` and `524288` of 8 kB pages are the same. Our file is conf.d/60-hosttune-OWNER.conf
of the cluster; it becomes live by a reload. Nothing is restarted here: parameters of context postmaster wait
(`needs: restart`). A value that the server would refuse, at a reload or at its next start, is refused before
anything is written, and what it then still says against our lines is a failure.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..model import Change, Definition, Planes, Refusal, Setting, squeeze
from ..system import System
from .base import Kind, did_you_mean

CONF = "/etc/postgresql"
#: A reload is a signal: the server reads its files a moment later.
RELOAD_SECONDS = 5.0
COMMAND_LINE = "command line of the server"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*\Z")
#: psql separates fields and rows by these, which no value holds.
_FIELD, _ROW = "\x1f", "\x1e"
_RESULT = f"{_ROW}|\n(?=[SF]{_FIELD})"
#: Bytes and microseconds of the units of config.sgml; pages are the server's, 8 kB on Debian.
_BYTES = {
    "B": 1,
    "kB": 1024,
    "MB": 1024**2,
    "GB": 1024**3,
    "TB": 1024**4,
    "8kB": 8192,
    "16kB": 16384,
    "32kB": 32768,
}
_MICROSECONDS = {
    "us": 1,
    "ms": 1000,
    "s": 10**6,
    "min": 60 * 10**6,
    "h": 3600 * 10**6,
    "d": 86400 * 10**6,
}
_NUMBER = re.compile(
    r"\s*([+-]?(?:0[xX][0-9a-fA-F]+|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?))\s*([A-Za-z]*)\s*\Z"
)
#: The value that leaves the choice to the server, which then shows what it chose.
_CHOSEN_BY_SERVER = {
    "wal_buffers": "-1",
    "commit_timestamp_buffers": "0",
    "subtransaction_buffers": "0",
    "transaction_buffers": "0",
}
#: Enum values that are another name of one that SHOW prints.
_ENUM_ALIASES = {("wal_compression", "on"): "pglz", ("log_min_messages", "debug"): "debug2"}
#: What pg_file_settings says of every line that waits for a restart, besides real errors.
_WAITS = "setting could not be applied"
#: Where a session gets a value that is not the server's own.
_OF_SESSION = ("database", "user", "database user", "client", "session")

#: The parameters come first: what a session sets for itself it would then see instead of the server's own.
_QUERY = """\
SELECT 'S', name, setting, coalesce(unit, ''), context, vartype, source, coalesce(min_val, ''),
       coalesce(max_val, ''), array_to_string(enumvals, ','), pending_restart,
       coalesce(current_setting(name, true), '')
FROM pg_settings;
SET lc_messages = 'C';
SELECT 'F', sourcefile, sourceline, name, coalesce(setting, ''), applied, coalesce(error, '')
FROM pg_file_settings ORDER BY seqno;
"""


@dataclass(frozen=True)
class Parameter:
    """A row of pg_settings; `setting` in units of `unit`, `shown` as SHOW prints it."""

    name: str
    setting: str
    unit: str
    context: str
    vartype: str
    source: str
    low: str
    high: str
    words: tuple[str, ...]
    pending: bool
    shown: str


@dataclass(frozen=True)
class Line:
    """A row of pg_file_settings."""

    file: str
    line: int
    name: str
    value: str
    applied: bool
    error: str


@dataclass
class Cluster:
    """What one server says; `problem` where it says nothing."""

    problem: str = ""
    parameters: dict[str, Parameter] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)


class PostgresKind(Kind):
    name = "postgres"

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._clusters: dict[str, Cluster] = {}
        #: the text as the inventory has it: blanks at its end count (log_line_prefix)
        self._raw: dict[str, str] = {}
        #: what this call asks for, so that a plan can say which values will need a restart
        self._asked: dict[str, str] = {}

    # names and values

    def text(self, name: str, value: Any) -> str:
        text = super().text(name, value)
        if isinstance(value, str):
            if "\n" in value:
                raise Refusal("holds a line break", thing=f"postgres {name}", remedy="Write it on one line")
            self._raw[name] = value
        self._asked[name] = text
        return text

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        by_cluster: dict[str, list[Setting]] = {}
        for setting in settings:
            parts = setting.name.split("/")
            if len(parts) != 3 or not all(parts):
                raise Refusal(
                    "is no name of a parameter",
                    thing=str(setting),
                    remedy="Names are VERSION/CLUSTER/NAME, such as 15/main/shared_buffers",
                )
            if not _NAME.match(parts[2]):
                raise Refusal(f"'{parts[2]}' is no name of a parameter", thing=str(setting))
            by_cluster.setdefault(split(setting.name)[0], []).append(setting)
        for cluster, mine in by_cluster.items():
            if not self.system.exists(f"{CONF}/{cluster}/postgresql.conf"):
                lacking = [one for one in mine if not packages.get(one.owner)]
                if lacking:
                    raise Refusal(
                        f"this host has no cluster {cluster}",
                        thing=str(lacking[0]),
                        remedy=self._which_clusters(),
                    )
                continue
            self._check_include(cluster, mine[0])
            said = self._ask(cluster)
            if not said.problem:
                for setting in mine:
                    _check_parameter(setting, split(setting.name)[1], said)
                    if not packages.get(setting.owner):
                        self._check_libraries(setting, cluster)
                _check_together(mine, said)

    def _which_clusters(self) -> str:
        found = [
            f"{version}/{name}"
            for version in self.system.names(CONF)
            for name in self.system.names(f"{CONF}/{version}")
            if self.system.exists(f"{CONF}/{version}/{name}/postgresql.conf")
        ]
        return f"It has {', '.join(found)}" if found else "Install PostgreSQL first"

    def _check_include(self, cluster: str, setting: Setting) -> None:
        """Our file would stand beside a server that never reads it."""
        file = f"{CONF}/{cluster}/postgresql.conf"
        try:
            text = self.system.read(file)
        except OSError:
            return  # the server may tell more than we may read
        if not re.search(
            r"^\s*include_dir\s*=?\s*'(?:conf\.d|" + re.escape(f"{CONF}/{cluster}/conf.d") + ")/?'",
            text,
            re.M,
        ):
            raise Refusal(
                f"{file} does not include conf.d",
                thing=str(setting),
                remedy="Add the line include_dir = 'conf.d', as Debian ships it",
            )

    def _check_libraries(self, setting: Setting, cluster: str) -> None:
        """A preloaded library that is not there stops the next start."""
        if not split(setting.name)[1].lower().endswith("_preload_libraries"):
            return
        folder = f"/usr/lib/postgresql/{cluster.partition('/')[0]}/lib"
        present = [name[:-3] for name in self.system.names(folder) if name.endswith(".so")]
        for word in setting.value.split(","):
            library = word.strip().strip('"').removesuffix(".so")
            if library and present and "/" not in library and library not in present:
                raise Refusal(
                    f"there is no library {library} in {folder}: the server would not start",
                    thing=str(setting),
                    remedy=did_you_mean(library, present) or "Install the package that brings it",
                )

    def same(self, name: str, wanted: str, found: str) -> bool:
        cluster, parameter = split(name)
        known = self._clusters.get(cluster, Cluster()).parameters.get(parameter.lower())
        if known is None:
            return squeeze(wanted) == squeeze(found)
        try:
            return canonical(known, wanted) == canonical(known, found)
        except ValueError:
            return squeeze(wanted) == squeeze(found)

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        clusters = {split(name)[0] for name in names}
        for cluster in clusters:
            self._clusters[cluster] = self._ask(cluster)
        return {name: self._read_one(name) for name in names}

    def _read_one(self, name: str) -> Planes:
        cluster, parameter = split(name)
        said = self._clusters[cluster]
        if said.problem:
            return Planes(unknown=said.problem)
        planes = Planes()
        key = parameter.lower()
        planes.definitions = [
            Definition(squeeze(one.value), one.file, one.line)
            for one in said.lines
            if one.name.lower() == key
        ]
        known = said.parameters.get(key)
        if known is None:
            # An extension's parameter: it appears when the library is loaded, at a restart or by a session.
            planes.needs = "restart"
            return planes
        if known.source in _OF_SESSION:
            planes.unknown = (
                f"the role or the database postgres has an own value, {known.shown} ({known.source}), "
                f"which hides the server's: ALTER ROLE postgres RESET {parameter}, or ALTER DATABASE"
            )
            return planes
        planes.live = squeeze(known.shown)
        winner = planes.winner
        chosen = _CHOSEN_BY_SERVER.get(key)
        if chosen is not None and winner is not None and winner.value == chosen and not known.pending:
            planes.live, planes.note = chosen, f"the server chose {known.shown}"
        if known.source in ("command line", "environment variable"):
            planes.definitions.append(Definition(planes.live, COMMAND_LINE))
        winner = planes.winner
        shall = self._asked.get(name, winner.value if winner else planes.live)
        waits = winner is not None and not self.same(name, winner.value, planes.live)
        if known.pending or waits or not self.same(name, shall, planes.live):
            planes.needs = "restart" if known.context == "postmaster" else "reload"
        return planes

    def _ask(self, cluster: str) -> Cluster:
        """Everything a server says of its parameters, in one command; what is wrong stands in `problem`."""
        folder = f"{CONF}/{cluster}"
        if not self.system.exists(f"{folder}/postgresql.conf"):
            return Cluster(f"cluster {cluster} does not exist")
        ended = self._psql(cluster, _QUERY)
        found = Cluster(ended) if isinstance(ended, str) else _parse(ended)
        self._clusters[cluster] = found
        return found

    def _psql(self, cluster: str, sql: str) -> list[list[str]] | str:
        """Rows of fields of a script run as the superuser postgres, or why there are none."""
        address = self._address(cluster)
        if isinstance(address, str):
            return address
        port, socket_folder = address
        version = cluster.partition("/")[0]
        program = f"/usr/lib/postgresql/{version}/bin/psql"
        if not self.system.exists(program):
            program = "psql"
        ended = self.system.run(
            "runuser",
            "-u",
            "postgres",
            "--",
            # PGHOST, PGOPTIONS and the like of whoever runs us must not choose the server or its settings
            "env",
            "-i",
            "LC_ALL=C",
            "PATH=/usr/bin:/bin",
            "PGCONNECT_TIMEOUT=5",
            program,
            "-XAtqw",
            f"-F{_FIELD}",
            f"-R{_ROW}",
            "-vON_ERROR_STOP=1",
            f"-h{socket_folder}",
            f"-p{port}",
            "-dpostgres",
            "-f-",
            stdin=sql,
            timeout=30.0,
        )
        if not ended.ok:
            lines = [line for line in ended.err.strip().split("\n") if line]
            return f"cluster {cluster} does not answer: {squeeze(lines[0]) if lines else ended.status}"
        # psql ends a result with a line break, not with its separator of rows.
        return [row.rstrip("\n").split(_FIELD) for row in re.split(_RESULT, ended.out) if row.strip("\n")]

    def _address(self, cluster: str) -> tuple[str, str] | str:
        """Port and socket folder of a running server, from its postmaster.pid (lines 4 and 5)."""
        data = f"/var/lib/postgresql/{cluster}"
        try:
            text = self.system.read(f"{CONF}/{cluster}/postgresql.conf")
        except OSError as error:
            return f"{CONF}/{cluster}/postgresql.conf: {error.strerror}"
        for line in text.split("\n"):
            found = re.match(r"\s*data_directory\s*=?\s*'([^']+)'", line)
            if found:
                data = found[1]
        try:
            lines = self.system.read(f"{data}/postmaster.pid").split("\n")
            return lines[3].strip(), lines[4].strip()
        except FileNotFoundError:
            return f"cluster {cluster} is not running"
        except (OSError, IndexError) as error:
            return f"{data}/postmaster.pid cannot be read: {error}"

    # persistence

    def managed_file(self, owner: str, name: str) -> str:
        return f"{CONF}/{split(name)[0]}/conf.d/60-hosttune-{owner}.conf"

    def body(self, settings: Sequence[Setting]) -> str:
        return "".join(f"{split(one.name)[1]} = {quote(self._written(one))}\n" for one in settings)

    def _written(self, setting: Setting) -> str:
        raw = self._raw.get(setting.name, setting.value)
        return raw if squeeze(raw) == setting.value else setting.value

    # the live plane

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        """A reload of each cluster touched, and the wait until it shows; never a restart."""
        by_cluster: dict[str, tuple[list[Change], set[str]]] = {}
        for change in changes:
            by_cluster.setdefault(split(change.name)[0], ([], set()))[0].append(change)
        for file in files:
            cluster = "/".join(file[len(CONF) + 1 :].split("/")[:2])
            by_cluster.setdefault(cluster, ([], set()))[1].add(file)
        failed: dict[str, str] = {}
        for cluster, (mine, written) in by_cluster.items():
            failed.update(self._reload(cluster, mine, written))
        return failed

    def _reload(self, cluster: str, changes: Sequence[Change], files: set[str]) -> dict[str, str]:
        everything = [change.name for change in changes] or [cluster]
        asked = self._psql(cluster, "SELECT pg_reload_conf();")
        if isinstance(asked, str):
            return dict.fromkeys(everything, asked)
        end = time.monotonic() + RELOAD_SECONDS
        while True:
            said = self._ask(cluster)
            if said.problem:
                return dict.fromkeys(everything, said.problem)
            late = [change for change in changes if not self._arrived(change, said)]
            errors = _errors(said, cluster, files)
            # What another file decides will not arrive, however long one waits.
            coming = [change for change in late if self._persisted(change, said)]
            if not coming or errors or time.monotonic() > end:
                break
            time.sleep(0.1)
        for change in late:
            errors.setdefault(change.name, self._why_late(change, said))
        return errors

    def _arrived(self, change: Change, said: Cluster) -> bool:
        known = said.parameters.get(split(change.name)[1].lower())
        if known is None or known.context == "postmaster":
            return True  # only a restart brings it
        chosen = _CHOSEN_BY_SERVER.get(known.name)
        return change.value == chosen or self.same(change.name, change.value, known.shown)

    def _persisted(self, change: Change, said: Cluster) -> bool:
        """Whether the files give this value, or leave it to the server's default."""
        parameter = split(change.name)[1].lower()
        lines = [one for one in said.lines if one.name.lower() == parameter]
        return not lines or self.same(change.name, change.value, lines[-1].value)

    def _why_late(self, change: Change, said: Cluster) -> str:
        parameter = split(change.name)[1]
        lines = [one for one in said.lines if one.name.lower() == parameter.lower()]
        shown = said.parameters[parameter.lower()].shown
        if lines and lines[-1].file.endswith("/postgresql.auto.conf"):
            return (
                f"stays {shown}: {lines[-1].file}:{lines[-1].line} decides; take it back with "
                f"ALTER SYSTEM RESET {parameter}"
            )
        blocking = [one for one in said.lines if one.error and one.error != _WAITS]
        if blocking:
            one = blocking[0]
            return f"stays {shown}: the server takes no change while {one.file}:{one.line} says: {one.error}"
        if lines:
            return f"stays {shown}: {lines[-1].file}:{lines[-1].line} decides"
        return f"stays {shown} {RELOAD_SECONDS:.0f} s after the reload"


def split(name: str) -> tuple[str, str]:
    """CLUSTER (VERSION/NAME) and parameter of a name."""
    cluster, _, parameter = name.rpartition("/")
    return cluster, parameter


def quote(value: str) -> str:
    """The value as postgresql.conf takes it: quotes doubled, backslashes kept from being escapes."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _parse(rows: Sequence[Sequence[str]]) -> Cluster:
    found = Cluster()
    for row in rows:
        if row[0] == "S" and len(row) == 12:
            words = tuple(row[9].split(",")) if row[9] else ()
            found.parameters[row[1].lower()] = Parameter(
                name=row[1],
                setting=row[2],
                unit=row[3],
                context=row[4],
                vartype=row[5],
                source=row[6],
                low=row[7],
                high=row[8],
                words=words,
                pending=row[10] == "t",
                shown=row[11],
            )
        elif row[0] == "F" and len(row) == 7:
            found.lines.append(Line(row[1], int(row[2] or 0), row[3], row[4], row[5] == "t", row[6]))
    if not found.parameters:
        found.problem = "pg_settings came back empty"
    return found


def _errors(said: Cluster, cluster: str, files: set[str]) -> dict[str, str]:
    """What the server holds against lines of these files: name -> file, line and error."""
    found = {}
    for one in said.lines:
        if one.file not in files or not one.error:
            continue
        known = said.parameters.get(one.name.lower())
        if one.error == _WAITS and known is not None and known.context == "postmaster" and known.pending:
            continue
        found[f"{cluster}/{one.name}"] = f"{one.file}:{one.line}: {one.error}"
    return found


def _check_parameter(setting: Setting, parameter: str, said: Cluster) -> None:
    known = said.parameters.get(parameter.lower())
    if known is None:
        if "." in parameter:
            return  # an extension's: the server knows it once its library is loaded
        raise Refusal(
            f"this server has no parameter {parameter}",
            thing=str(setting),
            remedy=did_you_mean(parameter, said.parameters) or "See SHOW ALL",
        )
    if known.context == "internal":
        raise Refusal("cannot be set: it is fixed in the server", thing=str(setting), remedy="Leave it out")
    try:
        value = canonical(known, setting.value)
    except ValueError as error:
        raise Refusal(str(error), thing=str(setting), remedy=_allowed(known)) from error
    if known.vartype in ("integer", "real") and known.low and known.high and isinstance(value, float):
        scale = _scale(known.unit)
        if not float(known.low) * scale <= value <= float(known.high) * scale:
            raise Refusal(f"{setting.value} is out of range", thing=str(setting), remedy=_allowed(known))


def _allowed(known: Parameter) -> str:
    if known.vartype == "enum":
        return f"Values are {', '.join(known.words)}"
    if known.vartype == "bool":
        return "Values are on and off"
    unit = f" in units of {known.unit}" if known.unit else ""
    return f"Give {known.low} to {known.high}{unit}"


def _check_together(settings: Sequence[Setting], said: Cluster) -> None:
    """Values that are right one by one and stop the server's next start together (FATAL, measured)."""
    asked = {split(one.name)[1].lower(): one for one in settings}

    def number(name: str) -> float | None:
        known = said.parameters.get(name)
        if known is None:
            return None
        try:
            value = canonical(known, asked[name].value if name in asked else known.shown)
        except ValueError:
            return None
        return value if isinstance(value, float) else None

    def word(name: str) -> object:
        known = said.parameters.get(name)
        return (
            None if known is None else canonical(known, asked[name].value if name in asked else known.shown)
        )

    def refuse(names: Sequence[str], message: str, remedy: str) -> None:
        ours = [asked[name] for name in names if name in asked]
        if ours:
            raise Refusal(message, thing=str(ours[0]), remedy=remedy)

    connections = number("max_connections")
    kept = sum(number(name) or 0 for name in ("superuser_reserved_connections", "reserved_connections"))
    if connections is not None and kept >= connections:
        refuse(
            ("max_connections", "superuser_reserved_connections", "reserved_connections"),
            f"{kept:.0f} reserved connections leave none of {connections:.0f}: the server would not start",
            "Raise max_connections, or reserve fewer",
        )
    segment = number("wal_segment_size")
    for name in ("min_wal_size", "max_wal_size"):
        found = number(name)
        if segment and found is not None and found < 2 * segment:
            refuse(
                (name,),
                "is less than two WAL segments: the server would not start",
                f"Give {2 * segment / 2**20:.0f}MB or more",
            )
    if word("wal_level") == "minimal":
        if (number("max_wal_senders") or 0) > 0:
            refuse(
                ("wal_level", "max_wal_senders"),
                "wal_level = minimal beside max_wal_senders above 0: the server would not start",
                "Ask for wal_level replica, or for max_wal_senders 0",
            )
        if word("archive_mode") in ("on", "always"):
            refuse(
                ("wal_level", "archive_mode"),
                "wal_level = minimal beside archive_mode: the server would not start",
                "Ask for wal_level replica, or for archive_mode off",
            )


def _scale(unit: str) -> float:
    """Bytes or microseconds of one `unit` of pg_settings, 1 where it has none."""
    return float(_BYTES.get(unit) or _MICROSECONDS.get(unit) or 1)


def canonical(known: Parameter, text: str) -> object:
    """What can be compared of a value: bytes, microseconds, a number, a boolean, a word; raises ValueError.

    Integers are rounded to a whole number of the parameter's unit, as the server does.
    """
    text = text.strip()
    if known.vartype == "bool":
        return _boolean(text)
    if known.vartype == "enum":
        return _enum(known, text)
    if known.vartype not in ("integer", "real"):
        # Lists (shared_preload_libraries, search_path) are read with or without blanks after the comma.
        return re.sub(r"\s*,\s*", ",", squeeze(text))
    found = _NUMBER.match(text)
    if found is None:
        raise ValueError(f"'{text}' is no number")
    digits, unit = found[1], found[2]
    if re.match(r"[+-]?0[xX]", digits):
        number = float(int(digits, 16))
    elif known.vartype == "integer" and re.match(r"[+-]?0[0-7]+\Z", digits):
        number = float(int(digits, 8))  # unix_socket_permissions; strtol(3) reads it so
    else:
        number = float(digits)
    scale = _scale(known.unit)
    if unit:
        table = _BYTES if known.unit in _BYTES else _MICROSECONDS if known.unit in _MICROSECONDS else {}
        if unit not in table or unit.startswith(("8", "16", "32")):
            units = [one for one in table if not one[0].isdigit()]
            raise ValueError(
                f"'{text}' has the unit '{unit}', units here are {', '.join(units)}"
                if units
                else f"'{text}' has a unit, but this parameter has none"
            )
        number *= table[unit] / scale
    if known.vartype == "integer":
        number = float(round(number))
    return number * scale


def _boolean(text: str) -> bool:
    """A boolean as parse_bool() of the server takes it: whole words or unambiguous beginnings of them."""
    word = text.lower()
    if word and ("true".startswith(word) or "yes".startswith(word) or word in ("on", "1")):
        return True
    if word and ("false".startswith(word) or "no".startswith(word) or word in ("of", "off", "0")):
        return False
    raise ValueError(f"'{text}' is no boolean")


def _enum(known: Parameter, text: str) -> str:
    word = text.lower()
    words = [one.lower() for one in known.words]
    if word not in words and "on" in words and "off" in words:
        # Enums that were booleans once still take every spelling, which pg_settings does not list.
        with contextlib.suppress(ValueError):
            word = "on" if _boolean(word) else "off"
    word = _ENUM_ALIASES.get((known.name, word), word)
    if word not in words:
        raise ValueError(f"'{text}' is none of its values")
    return word
