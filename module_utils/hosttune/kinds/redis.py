"""Kind redis: directives of Redis servers, the Debian way.

Name: INSTANCE/NAME, such as `server/maxmemory`. INSTANCE `server` is redis-server.service, another one is
redis-server@INSTANCE.service; each reads the file that its command line names (Debian: /etc/redis/redis.conf
and /etc/redis/redis-INSTANCE.conf).

- live: CONFIG GET, all names of an instance in one round trip.
- persisted: the file as the server reads it (redisconf.py), its command line last.

Our file is /etc/redis/60-hosttune-OWNER.conf (60-hosttune-OWNER@INSTANCE.conf), which one `include` line at
the end of the server's own file names. Nothing else of that file is touched, and the line moves to the end
again when somebody (CONFIG REWRITE, say) has written one of our names below it. What the server takes while
it runs is set with CONFIG SET; the rest waits (`needs: restart`), and nothing is restarted here.

A server whose default user is off is asked as the user that /etc/hosttune/redis-INSTANCE.login names: one
line, `USER PASSWORD`, for root only; the user needs +config|get and +config|set. The password goes to a
socket of the file system only, and only where the unit's own main process listens.
"""

from __future__ import annotations

import grp
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import atomic, redisconf, redisvalues
from ..model import Change, Definition, FileImage, Planes, Refusal, Setting, octal_in_quotes
from ..redisconf import Configuration
from ..resp import Address, Connection, ReplyError
from ..system import System
from ..systemd import Systemd
from .base import Kind, did_you_mean

FOLDER = "/etc/redis"
LOGIN = "/etc/hosttune/redis-{}.login"
GROUP = "redis"

_INSTANCE = re.compile(r"[A-Za-z0-9_.:-]+\Z")
_NAME = re.compile(r"[a-z][a-z0-9_.-]*\Z")
_PROPERTIES = ("LoadState", "ActiveState", "MainPID", "ExecMainStartTimestamp", "ExecStart")
#: Lines of redis.conf that CONFIG GET does not know, and where they belong.
_NO_SETTINGS = {
    "include": "Write what it includes as settings",
    "user": "Write an ACL file as a secret setting of kind file, and name it in aclfile",
    "rename-command": "Take the command from the users in an ACL file instead",
    "loadmodule": "Write it into the server's own file: it cannot be read back",
    "sentinel": "Sentinel is another server",
}


@dataclass
class Server:
    """One instance as systemd, its files and (where it runs and answers) the server itself tell."""

    instance: str
    unit: str
    #: why there is no such server at all
    absent: str = ""
    file: str = ""
    configuration: Configuration = field(default_factory=Configuration)
    pid: int = 0
    started: float = 0.0
    #: of the names asked; a name that the server does not know is not in it
    live: dict[str, str] = field(default_factory=dict)
    #: why a running server could not be asked
    silent: str = ""
    #: it answers, and wants a user or a password that we do not have
    refuses: bool = False
    #: the file that was changed after the server had started, where that is why it refuses
    outdated: str = ""


class RedisKind(Kind):
    name = "redis"

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.systemd = Systemd(system)
        self._servers: dict[str, Server] = {}
        #: what this call asks for, so that a plan can say which values will need a restart
        self._asked: dict[str, str] = {}
        #: as they were first read: a run that replaces them still talks to a server that knows the old ones
        self._logins: dict[str, list[str]] = {}

    # names and values

    def text(self, name: str, value: Any) -> str:
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            value = " ".join(value)
        if isinstance(value, str) and "\n" in value:
            raise Refusal("holds a line break", thing=f"redis {name}", remedy="Write it on one line")
        if redisvalues.directive(split(name)[1]).form == "octal" and isinstance(value, (int, float)):
            raise octal_in_quotes(self.name, name, value)
        self._asked[name] = super().text(name, value)
        return self._asked[name]

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        for setting in settings:
            _check_name(setting)
        coming = {split(one.name)[0] for one in settings if packages.get(one.owner)}
        for instance, mine in _by_instance(settings).items():
            server = self._ask(instance, [split(one.name)[1] for one in mine])
            if server.absent:
                if instance not in coming:
                    raise Refusal(server.absent, thing=str(mine[0]), remedy=self._which_servers())
                continue
            self._check_known(server, mine)
            self._check_start(server, mine[0])

    def _which_servers(self) -> str:
        found = [name for name in self.system.names(FOLDER) if re.match(r"redis(-.+)?\.conf\Z", name)]
        instances = [name[6:-5] or "server" for name in found]
        return f"It has {', '.join(instances)}" if found else "Install redis-server first"

    def _check_known(self, server: Server, settings: Sequence[Setting]) -> None:
        for setting in settings:
            name = split(setting.name)[1]
            unknown = False
            if server.pid and not server.silent:
                unknown = name not in server.live
            elif "." not in name:
                known = redisvalues.DIRECTIVES.get(redisvalues.known_as(name))
                unknown = (known is None or known.later) and not redisconf.is_in_program(self.system, name)
            if unknown:
                near = [known for known in redisvalues.DIRECTIVES if known != name]
                raise Refusal(
                    f"this server has no directive {name}",
                    thing=str(setting),
                    remedy=did_you_mean(name, near) or "See CONFIG GET '*'",
                )

    def _check_start(self, server: Server, setting: Setting) -> None:
        """A server that would not start for a reason that is not ours to mend."""
        broken = server.configuration.broken
        ours = f"{FOLDER}/60-hosttune-"
        if broken is not None and not broken.file.startswith(ours) and ours not in broken.why:
            raise Refusal(
                f"{server.unit} would not start: {broken}", thing=str(setting), remedy="Mend that line first"
            )

    def same(self, name: str, wanted: str, found: str) -> bool:
        return redisvalues.same(split(name)[1], wanted, found)

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        by_instance: dict[str, list[str]] = {}
        for name in names:
            by_instance.setdefault(split(name)[0], []).append(split(name)[1])
        for instance, mine in by_instance.items():
            self._servers[instance] = self._ask(instance, mine)
        return {name: self._read_one(name) for name in names}

    def _read_one(self, name: str) -> Planes:
        instance, directive = split(name)
        server = self._servers[instance]
        if server.absent:
            return Planes(unknown=server.absent)
        broken = server.configuration.broken
        planes = Planes(
            definitions=list(server.configuration.definitions.get(redisvalues.known_as(directive), []))
        )
        if broken is not None:
            planes.definitions.append(Definition(f"(no start: {broken.why})", broken.file, broken.line))
        if not server.pid:
            planes.has_live = False
            planes.note = f"{server.unit} is not running"
        elif server.outdated:
            planes.has_live = False
            planes.process = f"what it had before {server.outdated} was written, and tells it to nobody"
            planes.needs = "restart"
        elif server.silent:
            planes.unknown = server.silent
        elif directive not in server.live:
            planes.unsupported = f"this server has no directive {directive}"
        else:
            planes.live = server.live[directive]
            winner = planes.winner
            shall = [self._asked[name]] if name in self._asked else []
            shall += [winner.value] if winner else []
            waits = not shall or not all(self.same(name, one, planes.live) for one in shall)
            if waits and self._fixed(server, directive):
                planes.needs = "restart"
        return planes

    def _fixed(self, server: Server, name: str) -> bool:
        """Whether only a restart brings another value."""
        what = redisvalues.directive(name)
        allowed = server.live.get("enable-protected-configs", "no")
        return what.fixed or (what.protected and allowed == "no")

    def _ask(self, instance: str, names: Iterable[str]) -> Server:
        """Everything of one instance; raises OSError where systemd gives no answer."""
        unit = "redis-server.service" if instance == "server" else f"redis-server@{instance}.service"
        server = Server(instance, unit)
        shown = self.systemd.show([unit], _PROPERTIES)[unit]
        argv = _argv(shown.get("ExecStart", ""))
        if shown.get("LoadState") != "loaded" or not argv:
            server.absent = f"this host has no {unit}"
            return server
        server.file = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else ""
        if not server.file or not self.system.exists(server.file):
            server.absent = f"{unit} has no configuration file {server.file}".rstrip()
            return server
        server.configuration = redisconf.read(self.system, server.file, argv[2:])
        if shown.get("ActiveState") in ("active", "reloading", "deactivating"):
            server.pid = int(shown.get("MainPID") or 0)
            server.started = self.systemd.seconds(shown.get("ExecMainStartTimestamp", "")) or 0.0
        if server.pid:
            self._ask_live(server, list(names))
        return server

    def _ask_live(self, server: Server, names: Sequence[str]) -> None:
        wanted = list(dict.fromkeys([*names, "enable-protected-configs"]))
        replies = self._talk(server, [("CONFIG", "GET", name) for name in wanted])
        if isinstance(replies, str):
            server.silent = replies
            server.outdated = self._newer(server) if server.refuses else ""
            return
        for name, reply in zip(wanted, replies):
            if isinstance(reply, ReplyError):
                server.silent = f"{server.unit} does not tell {name}: {reply}"
            elif len(reply) == 2:
                server.live[name] = reply[1]

    def _newer(self, server: Server) -> str:
        """A file that decides who may ask the server and that it has not read yet."""
        files = [*server.configuration.files, LOGIN.format(server.instance)]
        acl = server.configuration.value("aclfile")
        for file in [*files, acl] if acl else files:
            try:
                if os.stat(self.system.path(file)).st_mtime > server.started:
                    return file
            except OSError:
                continue
        return ""

    def _talk(self, server: Server, commands: Sequence[Sequence[str]]) -> list[Any] | str:
        """The server's replies to these commands, or why there are none."""
        problems = []
        for address in self._addresses(server):
            try:
                with Connection(address) as connection:
                    replies = self._talk_over(connection, server, commands)
            except OSError as error:
                problems.append(f"{_shown(address)}: {error.strerror or error}")
                continue
            if not isinstance(replies, str):
                return replies
            problems.append(f"{_shown(address)}: {replies}")
        return f"{server.unit} cannot be asked ({'; '.join(problems) or 'it listens nowhere'})"

    def _addresses(self, server: Server) -> list[Address]:
        folder = "/run/redis" if server.instance == "server" else f"/run/redis-{server.instance}"
        sockets = [server.configuration.value("unixsocket") or "", f"{folder}/redis-server.sock"]
        paths = [path for path in dict.fromkeys(sockets) if path and self.system.exists(path)]
        found: list[Address] = [self.system.path(path) for path in paths]
        port = int(server.configuration.value("port") or 6379)
        return [*found, ("127.0.0.1", port)] if port else found

    def _talk_over(
        self, connection: Connection, server: Server, commands: Sequence[Sequence[str]]
    ) -> list[Any] | str:
        if isinstance(connection.address, str):
            if connection.peer_pid != server.pid:
                return f"process {connection.peer_pid} listens there, not {server.unit}"
            # Refused while the server knows no such user yet, as Debian installs it: then it asks nobody.
            login = self._login(server.instance)
            first: list[str] = ["AUTH", *login] if login else ["PING"]
        else:
            # Whoever is faster may listen on a port: it is asked who it is, and is told no password.
            first = ["INFO", "server"]
        replies = connection.ask(first, *commands)
        for reply in replies[1:]:
            if isinstance(reply, ReplyError) and str(reply).startswith(("NOAUTH", "NOPERM", "WRONGPASS")):
                server.refuses = True
                return f"{reply} ({LOGIN.format(server.instance)} is to hold a user and its password)"
        if first[0] == "INFO" and f"process_id:{server.pid}\r\n" not in str(replies[0]):
            return f"another process than {server.unit} listens there"
        return replies[1:]

    def _login(self, instance: str) -> list[str]:
        """User and password, none where nobody left one."""
        if instance not in self._logins:
            try:
                words = self.system.read(LOGIN.format(instance)).split()
            except OSError:
                words = []
            self._logins[instance] = words if len(words) == 2 else []
        return self._logins[instance]

    # persistence

    def managed_file(self, owner: str, name: str) -> str:
        instance = split(name)[0]
        return f"{FOLDER}/60-hosttune-{owner}{'' if instance == 'server' else f'@{instance}'}.conf"

    def render(self, owner: str, settings: Sequence[Setting]) -> dict[str, FileImage]:
        group = grp.getgrnam(GROUP).gr_gid
        return {
            path: FileImage(image.content, 0o640, 0, group)
            for path, image in super().render(owner, settings).items()
        }

    def body(self, settings: Sequence[Setting]) -> str:
        return "".join(map(_written, settings))

    def edits(
        self,
        settings: Sequence[Setting],
        undone: Mapping[str, Mapping[str, Any]],
        before: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, FileImage]:
        """The servers' own files with an `include` line for each owner that has settings."""
        wanted: dict[str, dict[str, set[str]]] = {}
        for setting in settings:
            instance, name = split(setting.name)
            path = self.managed_file(setting.owner, setting.name)
            wanted.setdefault(instance, {}).setdefault(path, set()).add(redisvalues.known_as(name))
        gone: dict[str, set[str]] = {}
        for name, was in undone.items():
            gone.setdefault(split(name)[0], set()).add(self.managed_file(str(was["owner"]), name))
        found = {}
        for instance in {*wanted, *gone}:
            server = self._servers[instance]
            image = None if server.absent else atomic.read_image(self.system.path(server.file))
            # Of a server that could not be asked the files stay as they are, and so must the lines.
            if image is None or (server.silent and not server.outdated):
                continue
            text = image.content.decode("latin-1")
            mine = wanted.get(instance, {})
            for path in sorted(gone.get(instance, set()) - set(mine)):
                text = without_include(text, path)
            for path in sorted(mine):
                text = with_include(text, path, mine[path])
            found[server.file] = FileImage(text.encode("latin-1"), image.mode, image.uid, image.gid)
        return found

    # the live plane

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        """CONFIG SET of what the running server takes; each is read back at once.

        On undo that is the last time it can be: the user that may ask goes with the suite's other files.
        """
        by_instance: dict[str, list[Change]] = {}
        for change in changes:
            by_instance.setdefault(split(change.name)[0], []).append(change)
        for instance, server in self._servers.items():
            if server.outdated:
                by_instance.setdefault(instance, []).extend(self._late(server))
        failed: dict[str, str] = {}
        for instance, mine in by_instance.items():
            server = self._servers[instance]
            if not server.pid or not mine:
                continue
            mine = [change for change in mine if not self._fixed(server, split(change.name)[1])]
            commands: list[tuple[str, ...]] = []
            for change in mine:
                name = split(change.name)[1]
                commands += [("CONFIG", "SET", name, change.value), ("CONFIG", "GET", name)]
            replies = self._talk(server, commands)
            if isinstance(replies, str):
                failed.update({change.name: replies for change in mine})
                continue
            for change, said, found in zip(mine, replies[::2], replies[1::2]):
                if isinstance(said, ReplyError):
                    failed[change.name] = str(said)
                elif change.undo and (not isinstance(found, list) or found[1:] != [change.value]):
                    failed[change.name] = f"was '{change.value}' before, reads back '{found}'"
        return failed

    def _late(self, server: Server) -> list[Change]:
        """What a server lacks that can be asked only now: its login was given back, and is written again."""
        self._logins.pop(server.instance, None)
        names = [name for name in self._asked if split(name)[0] == server.instance]
        again = self._servers[server.instance] = self._ask(server.instance, [split(one)[1] for one in names])
        return [
            Change(name, self._asked[name])
            for name in names
            if split(name)[1] in again.live
            and not self.same(name, self._asked[name], again.live[split(name)[1]])
        ]


def split(name: str) -> tuple[str, str]:
    """Instance and directive of a name."""
    instance, _, directive = name.partition("/")
    return instance, directive


def _by_instance(settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    found: dict[str, list[Setting]] = {}
    for setting in settings:
        found.setdefault(split(setting.name)[0], []).append(setting)
    return found


def _argv(shown: str) -> list[str]:
    """The arguments in systemctl's form of ExecStart; one that holds a blank cannot be told from two."""
    found = re.search(r"argv\[\]=(.*?) ; ignore_errors=", shown)
    return found[1].split(" ") if found else []


def _shown(address: Address) -> str:
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"


def _check_name(setting: Setting) -> None:
    """Refuses what is wrong whatever the host: names that are none, secrets, values of another form."""
    instance, name = split(setting.name)
    if not _INSTANCE.match(instance) or not _NAME.match(name):
        raise Refusal(
            "is no name of a directive",
            thing=str(setting),
            remedy="Names are INSTANCE/NAME in small letters, such as server/maxmemory",
        )
    if name in redisvalues.SECRET:
        raise Refusal(
            "is a secret, which every reader of files and manifest would see",
            thing=str(setting),
            remedy="Give users their passwords in an ACL file: a setting of kind file with secret: true",
        )
    if name in _NO_SETTINGS:
        raise Refusal("is no setting", thing=str(setting), remedy=_NO_SETTINGS[name])
    if name in redisvalues.OLD_NAMES:
        raise Refusal(
            "is an old name", thing=str(setting), remedy=f"Name {instance}/{redisvalues.OLD_NAMES[name]}"
        )
    try:
        redisvalues.canonical(redisvalues.directive(name), setting.value)
    except ValueError as error:
        raise Refusal(
            f"{setting.value}: {error}", thing=str(setting), remedy="Give a value that Redis takes"
        ) from None


def _written(setting: Setting) -> str:
    """The lines that give a directive this value, whatever the lines before them gave."""
    name = split(setting.name)[1]
    if redisvalues.directive(name).form in redisvalues.SEVERAL:
        words = setting.value.split() or [""]
    else:
        words = [setting.value]
    # Lines of `save` add up; an empty one takes back those before it.
    first = 'save ""\n' if name == "save" and words != [""] else ""
    return f"{first}{' '.join([name, *map(redisconf.quote, words)])}\n"


def _include(path: str) -> str:
    return f"include {path}"


def without_include(text: str, path: str) -> str:
    """A file without the line that includes `path`, byte for byte what it was before with_include()."""
    line = _include(path)
    if text == line:
        return ""
    if text.endswith(f"\n{line}"):
        return text[: -len(line) - 1]
    kept = [one for one in text.splitlines(keepends=True) if one != f"{line}\n"]
    return "".join(kept)


def with_include(text: str, path: str, names: set[str]) -> str:
    """A file that includes `path` below every line that defines one of `names`."""
    below = _below(text, path)
    if below is not None and not any(_decides(line, names) for line in below):
        return text
    text = without_include(text, path)
    # A file that does not end with a line break does not do so afterwards either: so undo can tell.
    return f"{text}{_include(path)}\n" if not text or text.endswith("\n") else f"{text}\n{_include(path)}"


def _below(text: str, path: str) -> list[str] | None:
    """The lines below the one that includes `path`, None where there is no such line."""
    lines = text.split("\n")
    return lines[lines.index(_include(path)) + 1 :] if _include(path) in lines else None


def _decides(line: str, names: set[str]) -> bool:
    """Whether a line may define one of `names`: by itself, or by a file that is not ours."""
    words = line.split()
    if not words or words[0].startswith("#"):
        return False
    name = redisvalues.known_as(words[0].strip("\"'"))
    return name in names or (name == "include" and f"{FOLDER}/60-hosttune-" not in line)
