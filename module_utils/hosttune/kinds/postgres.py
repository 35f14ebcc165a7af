"""Kind postgres: parameters of PostgreSQL clusters, the Debian way.

Name: VERSION/CLUSTER/NAME, such as `15/main/shared_buffers`. The server itself is asked, with one psql per
cluster as the OS user postgres over its socket:

- persisted: pg_file_settings, every definition in the order the server reads it, postgresql.auto.conf (ALTER
  SYSTEM) last; the last one wins. Around the files stand the environment of the server (below them) and its
  command line (above). What the server would not read at its next start (a line it cannot read, a name or a
  value it does not take, in whatever file) makes all of it void: `broken`. The files of a server that cannot
  be asked are read as it would read them (pgconf).
- live: pg_settings, as SHOW prints it; where ALTER ROLE or ALTER DATABASE decide for the orchestrator's
  sessions, what those get, and the statement is the winning definition. What they decide for anybody else is
  in `partly`: named, and the verdict is `shadowed`.

Equality knows units: `4GB` and `524288` of 8 kB pages are the same. Our file is conf.d/60-hosttune-OWNER.conf
of the cluster; it becomes live by a reload. Nothing is restarted here: parameters of context postmaster wait
(`needs: restart`). A value that the server would refuse, at a reload or at its next start, is refused before
anything is written, and what it then still says against our lines is a failure.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import pgconf, pgvalues
from ..model import Change, Definition, Planes, Refusal, Setting, squeeze
from ..pgconf import Line
from ..pgvalues import Parameter
from ..system import System
from .base import Kind, did_you_mean

CONF = "/etc/postgresql"
#: A reload is a signal: the server reads its files a moment later.
RELOAD_SECONDS = 5.0
#: Where ALTER SYSTEM writes, in the data directory.
AUTO_CONF = "/postgresql.auto.conf"
COMMAND_LINE = "command line of the server"
ENVIRONMENT = "environment of the server"
#: Where the orchestrator's unit and configuration name its OS user, which is its role, and its database.
ORCHESTRATOR_UNIT = "/etc/systemd/system/orchestrator.service"
ORCHESTRATOR_ENVIRONMENT = "/etc/orchestrator/orchestrator.env"

#: A name as the files take it: one dot at most.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?\Z")
#: psql separates fields and rows by these, which no value holds.
_FIELD, _ROW = "\x1f", "\x1e"
_RESULT = f"{_ROW}|\n(?=[SFPO]{_FIELD})"
#: The value that leaves the choice to the server, which then shows what it chose.
_CHOSEN_BY_SERVER = {
    "wal_buffers": "-1",
    "commit_timestamp_buffers": "0",
    "subtransaction_buffers": "0",
    "transaction_buffers": "0",
}
#: What pg_file_settings says of a value that is refused, and of one that only waits for a restart.
_NOT_APPLIED = "setting could not be applied"
#: And, naming no line, of a parameter that the files named at the server's start and name no more.
_GONE = "cannot be changed without restarting the server"
#: Where our own session gets a value that is not the server's own.
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
SELECT 'P', name, current_setting(name, true)
FROM pg_file_settings WHERE name LIKE '%.%' AND current_setting(name, true) IS NOT NULL;
SELECT 'O', coalesce(rolname, ''), coalesce(datname, ''), split_part(one, '=', 1),
       substr(one, strpos(one, '=') + 1)
FROM pg_db_role_setting LEFT JOIN pg_roles ON pg_roles.oid = setrole
     LEFT JOIN pg_database ON pg_database.oid = setdatabase, unnest(setconfig) one
ORDER BY 2, 3, 4;
"""


@dataclass(frozen=True)
class Override:
    """One setting of pg_db_role_setting; an empty role or database means all of them."""

    role: str
    database: str
    name: str
    value: str

    @property
    def statement(self) -> str:
        """What made it."""
        if self.role and self.database:
            return f"ALTER ROLE {self.role} IN DATABASE {self.database} SET"
        if self.role or not self.database:
            return f"ALTER ROLE {self.role or 'ALL'} SET"
        return f"ALTER DATABASE {self.database} SET"

    @property
    def rank(self) -> int:
        """The higher wins in a session for which several hold."""
        return 2 * bool(self.role) + bool(self.database)


@dataclass
class Cluster:
    """What one server says; `problem` where it says nothing."""

    problem: str = ""
    parameters: dict[str, Parameter] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    #: dotted names that no loaded library knows: the server keeps any text for them
    custom: dict[str, str] = field(default_factory=dict)
    overrides: list[Override] = field(default_factory=list)

    def blocking(self) -> Line | None:
        """The line for which the server takes nothing from its files, at a reload or at a start."""
        return next((one for one in self.lines if one.error and one.error != _NOT_APPLIED), None)

    def refused(self, one: Line) -> bool:
        """Whether the server does not take this value, rather than take it at its next start."""
        if one.error != _NOT_APPLIED:
            return bool(one.error)
        known = self.parameters.get(pgconf.OLD_NAMES.get(one.name.lower(), one.name.lower()))
        if known is None or known.context != "postmaster":
            return True
        try:
            pgvalues.check(known, one.value)
        except ValueError:
            return True
        return False

    @property
    def broken(self) -> str:
        """Why the server would not start with its files as they are."""
        line = self.blocking()
        if line is not None:
            return (
                f"{line.file}:{line.line} says: {line.error}{line.name and f' {line.name}'}, so the server "
                "takes no change from its files and would not start with them"
            )
        line = next((one for one in self.lines if self.refused(one)), None)
        if line is not None:
            return (
                f"{line.file}:{line.line} sets {line.name} to a value that the server does not take: it "
                "would not start"
            )
        return ""


class PostgresKind(Kind):
    name = "postgres"

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._clusters: dict[str, Cluster] = {}
        self._data: dict[str, str] = {}
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

    def canonical(self, name: str) -> str:
        cluster, parameter = split(name)
        return f"{cluster}/{parameter.lower()}"

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        by_cluster: dict[str, list[Setting]] = {}
        seen: dict[str, Setting] = {}
        for setting in settings:
            parts = setting.name.split("/")
            if len(parts) != 3 or not all(parts):
                raise Refusal(
                    "is no name of a parameter",
                    thing=str(setting),
                    remedy="Names are VERSION/CLUSTER/NAME, such as 15/main/shared_buffers",
                )
            if not _NAME.match(parts[2]):
                raise Refusal(
                    f"'{parts[2]}' is no name of a parameter",
                    thing=str(setting),
                    remedy="Give letters, digits and underscores, such as shared_buffers",
                )
            other = seen.setdefault(self.canonical(setting.name), setting)
            if other is not setting:
                raise Refusal(f"is the same as {other.name}", thing=str(setting), remedy="Name it once")
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
        try:
            files = self._files(cluster)
        except OSError:
            return  # the server may tell more than we may read
        if f"{CONF}/{cluster}/conf.d" in files.folders or any(one.error for one in files.lines):
            return
        raise Refusal(
            f"{CONF}/{cluster}/postgresql.conf does not include conf.d",
            thing=str(setting),
            remedy="Add the line include_dir = 'conf.d', as Debian ships it",
        )

    def _files(self, cluster: str) -> pgconf.Files:
        """The cluster's files as we read them ourselves; raises OSError."""
        return pgconf.resolve(
            self.system, f"{CONF}/{cluster}/postgresql.conf", f"/var/lib/postgresql/{cluster}"
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
        return pgvalues.same(known, wanted, found)

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        clusters = {split(name)[0] for name in names}
        for cluster in clusters:
            self._clusters[cluster] = self._ask(cluster)
        return {name: self._read_one(name) for name in names}

    def _read_one(self, name: str) -> Planes:
        cluster, parameter = split(name)
        said = self._clusters[cluster]
        key = parameter.lower()
        planes = Planes(unknown=said.problem)
        planes.definitions = [
            Definition(squeeze(one.value), one.file, one.line) for one in pgconf.definitions(said.lines, key)
        ]
        if said.problem:
            return planes
        planes.broken = said.broken
        deciding, others = self._overrides(said, key)
        planes.partly = [Definition(squeeze(one.value), one.statement) for one in others]
        known = said.parameters.get(key)
        if known is None:
            self._read_custom(name, said, planes)
        else:
            self._read_known(name, known, planes)
        if deciding:
            # The sessions that trade get this, whatever the server's own value is.
            planes.definitions += [Definition(squeeze(one.value), one.statement) for one in deciding]
            planes.live, planes.unknown, planes.needs = squeeze(deciding[-1].value), "", "none"
            planes.note = ""
        return planes

    def _read_known(self, name: str, known: Parameter, planes: Planes) -> None:
        if known.source in _OF_SESSION:
            planes.unknown = (
                f"the role or the database postgres has an own value, {known.shown} ({known.source}), which "
                f"hides the server's: ALTER ROLE postgres RESET {known.name}, or ALTER DATABASE postgres"
            )
            return
        planes.live = squeeze(known.shown)
        winner = planes.winner
        chosen = _CHOSEN_BY_SERVER.get(known.name)
        if chosen is not None and winner is not None and winner.value == chosen and not known.pending:
            planes.live, planes.note = chosen, f"the server chose {known.shown}"
        if known.source == "command line":
            planes.definitions.append(Definition(planes.live, COMMAND_LINE))
        if known.source == "environment variable":
            planes.definitions.insert(0, Definition(planes.live, ENVIRONMENT))
        winner = planes.winner
        shall = self._asked.get(name, winner.value if winner else planes.live)
        waits = winner is not None and not self.same(name, winner.value, planes.live)
        if known.pending or waits or not self.same(name, shall, planes.live):
            planes.needs = "restart" if known.context == "postmaster" else "reload"
        if waits and planes.needs == "reload":
            planes.note = (
                "the server has not read its files since they changed: a reload brings what they say, "
                "SELECT pg_reload_conf()"
            )

    def _read_custom(self, name: str, said: Cluster, planes: Planes) -> None:
        """A dotted name that no loaded library knows; one whose library comes at the next start waits."""
        cluster, parameter = split(name)
        if self._comes_at_start(cluster, parameter, said):
            planes.needs = "restart"
            return
        planes.needs = "reload"
        found = said.custom.get(parameter.lower())
        if found is not None:
            planes.live = squeeze(found)
            planes.note = "no library of this server knows it: any text is taken"
            if planes.winner is not None and planes.winner.value == planes.live:
                planes.needs = "none"

    def _comes_at_start(self, cluster: str, parameter: str, said: Cluster) -> bool:
        lines = pgconf.definitions(said.lines, "shared_preload_libraries")
        preloaded = self._asked.get(f"{cluster}/shared_preload_libraries", lines[-1].value if lines else "")
        return parameter.partition(".")[0].lower() in re.split(r"[\s,\"']+", preloaded.lower())

    def _overrides(self, said: Cluster, key: str) -> tuple[list[Override], list[Override]]:
        """What ALTER ROLE and ALTER DATABASE decide for the orchestrator, the winner last, and for others."""
        named = [
            one
            for one in said.overrides
            if one.name.lower() == key or pgconf.OLD_NAMES.get(one.name.lower()) == key
        ]
        if not named:
            return [], []
        role, database = self._orchestrator()
        deciding = [one for one in named if one.role in ("", role) and one.database in ("", database)]
        others = [one for one in named if one not in deciding]
        return sorted(deciding, key=lambda one: one.rank), others

    def _orchestrator(self) -> tuple[str, str]:
        """Role and database of the orchestrator on this host, empty where there is none."""

        def found(path: str, pattern: str) -> str:
            try:
                match = re.search(pattern, self.system.read(path), re.M)
            except FileNotFoundError:
                return ""
            return match[1] if match else ""

        return (
            found(ORCHESTRATOR_UNIT, r"^User=(\S+)"),
            found(ORCHESTRATOR_ENVIRONMENT, r"^ORCHESTRATOR_DATABASE=.*\bdbname\s*=\s*'?([^\s'\"]+)"),
        )

    def _ask(self, cluster: str) -> Cluster:
        """Everything a server says of its parameters, in one command; what is wrong stands in `problem`."""
        if not self.system.exists(f"{CONF}/{cluster}/postgresql.conf"):
            return Cluster(f"cluster {cluster} does not exist")
        ended = self._psql(cluster, _QUERY)
        found = Cluster(ended) if isinstance(ended, str) else _parse(ended)
        if found.problem:
            try:
                found.lines = self._files(cluster).lines
            except OSError as error:
                found.problem += f" ({error.filename}: {error.strerror})"
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
        try:
            if cluster not in self._data:
                self._data[cluster] = self._files(cluster).data_directory
            path = f"{self._data[cluster]}/postmaster.pid"
            lines = self.system.read(path).split("\n")
        except FileNotFoundError:
            version = cluster.partition("/")[0]
            if not self.system.exists(f"/usr/lib/postgresql/{version}/bin/postgres"):
                return f"cluster {cluster} is not running, and PostgreSQL {version} is not installed"
            return f"cluster {cluster} is not running"
        except OSError as error:
            return f"cluster {cluster} cannot be found: {error.filename}: {error.strerror}"
        if len(lines) < 6:
            return f"cluster {cluster} is starting"
        if not lines[4].strip():
            return f"cluster {cluster} has no socket: its unix_socket_directories is empty"
        return lines[3].strip(), lines[4].strip()

    def outranks(self, file: str, ours: str) -> bool:
        """Statements, the command line and what ALTER SYSTEM wrote come after every file of conf.d."""
        return super().outranks(file, ours) or not file.startswith("/") or file.endswith(AUTO_CONF)

    # persistence

    def managed_file(self, owner: str, name: str) -> str:
        return f"{CONF}/{split(name)[0]}/conf.d/60-hosttune-{owner}.conf"

    def body(self, settings: Sequence[Setting]) -> str:
        return "".join(f"{split(one.name)[1]} = {quote(self._written(one))}\n" for one in settings)

    def _written(self, setting: Setting) -> str:
        cluster, parameter = split(setting.name)
        known = self._clusters.get(cluster, Cluster()).parameters.get(parameter.lower())
        raw = self._raw.get(setting.name, setting.value)
        # Blanks around a word or a boolean are no part of it, and the server would refuse them.
        text = known is None or known.vartype == "string"
        return raw if text and squeeze(raw) == setting.value else setting.value

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
            coming = [change for change in late if self._coming(change, said)]
            if not coming or errors or time.monotonic() > end:
                break
            time.sleep(0.1)
        for change in late:
            errors.setdefault(change.name, self._why_late(change, said))
        return errors

    def _arrived(self, change: Change, said: Cluster) -> bool:
        cluster, parameter = split(change.name)
        key = parameter.lower()
        if self._overrides(said, key)[0]:
            return False  # no reload brings it
        known = said.parameters.get(key)
        if known is None:
            return self._comes_at_start(cluster, parameter, said) or squeeze(
                said.custom.get(key, "")
            ) == squeeze(change.value)
        if known.context == "postmaster":
            return True  # only a restart brings it
        chosen = _CHOSEN_BY_SERVER.get(known.name)
        return change.value == chosen or self.same(change.name, change.value, known.shown)

    def _coming(self, change: Change, said: Cluster) -> bool:
        """Whether the files give this value, or leave it to the server's default."""
        key = split(change.name)[1].lower()
        lines = pgconf.definitions(said.lines, key)
        known = said.parameters.get(key)
        if self._overrides(said, key)[0] or (known is not None and known.source == "command line"):
            return False
        return not lines or self.same(change.name, change.value, lines[-1].value)

    def _why_late(self, change: Change, said: Cluster) -> str:
        parameter = split(change.name)[1]
        known = said.parameters.get(parameter.lower())
        stays = f"stays {known.shown if known else said.custom.get(parameter.lower(), 'absent')}"
        deciding = self._overrides(said, parameter.lower())[0]
        if deciding:
            reset = deciding[-1].statement.removesuffix("SET") + f"RESET {parameter}"
            return (
                f"{deciding[-1].statement} gives the orchestrator's sessions {squeeze(deciding[-1].value)}; "
                f"take it back with {reset}"
            )
        if known is not None and known.source == "command line":
            return f"{stays}: the {COMMAND_LINE} decides (pg_ctl.conf)"
        blocking = said.blocking()
        if blocking is not None:
            return f"{stays}: {said.broken}"
        lines = pgconf.definitions(said.lines, parameter)
        if lines and not self.same(change.name, change.value, lines[-1].value):
            last = lines[-1]
            remedy = ""
            if last.file.endswith(AUTO_CONF):
                remedy = f"; take it back with ALTER SYSTEM RESET {parameter}"
            return f"{stays}: {last.file}:{last.line} decides{remedy}"
        return f"{stays} {RELOAD_SECONDS:.0f} s after the reload"


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
        elif row[0] == "F" and len(row) == 7 and not (row[1] == "" and row[6].endswith(_GONE)):
            found.lines.append(Line(row[1], int(row[2] or 0), row[3], row[4], row[5] == "t", row[6]))
        elif row[0] == "P" and len(row) == 3 and row[1].lower() not in found.parameters:
            found.custom[row[1].lower()] = row[2]
        elif row[0] == "O" and len(row) == 5:
            found.overrides.append(Override(row[1], row[2], row[3], row[4]))
    if not found.parameters:
        found.problem = "pg_settings came back empty"
    return found


def _errors(said: Cluster, cluster: str, files: set[str]) -> dict[str, str]:
    """What the server holds against lines of these files: name -> file, line and error."""
    return {
        f"{cluster}/{one.name}": f"{one.file}:{one.line}: {one.error}"
        for one in said.lines
        if one.file in files and said.refused(one)
    }


def _check_parameter(setting: Setting, parameter: str, said: Cluster) -> None:
    known = said.parameters.get(parameter.lower())
    if known is None:
        new = pgconf.OLD_NAMES.get(parameter.lower())
        prefix = parameter.lower().rpartition(".")[0] + "."
        if new in said.parameters:
            raise Refusal("has a new name", thing=str(setting), remedy=f"Ask for {new}")
        if "." in parameter and not any(name.startswith(prefix) for name in said.parameters):
            return  # an extension's: the server knows it once its library is loaded
        raise Refusal(
            f"this server has no parameter {parameter}",
            thing=str(setting),
            remedy=did_you_mean(parameter.lower(), said.parameters) or "See SHOW ALL",
        )
    if known.context == "internal":
        raise Refusal("cannot be set: it is fixed in the server", thing=str(setting), remedy="Leave it out")
    if known.name == "primary_conninfo" and re.search(r"\bpassword\s*=", setting.value, re.I):
        raise Refusal(
            "holds a password, which every report would show",
            thing=str(setting),
            remedy="Put it into a file and name that with passfile=",
        )
    try:
        pgvalues.check(known, setting.value)
    except ValueError as error:
        raise Refusal(str(error), thing=str(setting), remedy=pgvalues.allowed(known)) from error


def _check_together(settings: Sequence[Setting], said: Cluster) -> None:
    """Values that are right one by one and stop the server's next start together (FATAL, measured)."""
    asked = {split(one.name)[1].lower(): one for one in settings}

    def value(name: str) -> object:
        known = said.parameters.get(name)
        if known is None:
            return None
        try:
            return pgvalues.canonical(known, asked[name].value if name in asked else known.shown)
        except ValueError:
            return None

    def number(name: str) -> float | None:
        found = value(name)
        return pgvalues.in_bytes(said.parameters[name], found) if isinstance(found, float) else None

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
    if value("wal_level") == "minimal":
        if (number("max_wal_senders") or 0) > 0:
            refuse(
                ("wal_level", "max_wal_senders"),
                "wal_level = minimal beside max_wal_senders above 0: the server would not start",
                "Ask for wal_level replica, or for max_wal_senders 0",
            )
        if value("archive_mode") in ("on", "always"):
            refuse(
                ("wal_level", "archive_mode"),
                "wal_level = minimal beside archive_mode: the server would not start",
                "Ask for wal_level replica, or for archive_mode off",
            )
