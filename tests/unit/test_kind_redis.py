"""Kind redis: names, values, files and what is said to a server; tests/real compares it with a real one."""

from __future__ import annotations

import grp
import os
import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from hosttune import redisconf, redisvalues, verdicts
from hosttune.kinds import redis as module
from hosttune.kinds.redis import RedisKind
from hosttune.model import Change, Refusal, Setting
from hosttune.resp import Connection, ReplyError
from hosttune.system import Ran, System
from hypothesis import given
from hypothesis import strategies as st

CONF = "/etc/redis/redis.conf"
OURS = "/etc/redis/60-hosttune-redis.conf"
DEBIAN = "port 6379\nunixsocket /run/redis/redis-server.sock\nmaxmemory 1mb\n"


class FakeServer:
    """Answers AUTH, PING, INFO and CONFIG as Redis does, on a socket of the file system."""

    def __init__(self, values: dict[str, str], login: str = "") -> None:
        self.values, self.login = values, login
        self.fixed = {"databases"}
        self.heard: list[list[str]] = []

    def answer(self, words: list[str], state: dict[str, bool]) -> bytes:
        self.heard.append(words)
        if words[0] == "AUTH":
            state["in"] = words[1:] == ["hosttune", self.login]
            return b"+OK\r\n" if state["in"] else b"-WRONGPASS invalid username-password pair\r\n"
        if self.login and not state.get("in"):
            return b"-NOAUTH Authentication required.\r\n"
        if words[:2] == ["CONFIG", "GET"]:
            found = [words[2], self.values[words[2]]] if words[2] in self.values else []
            return b"*%d\r\n" % len(found) + b"".join(
                b"$%d\r\n%s\r\n" % (len(one), one.encode()) for one in found
            )
        if words[:2] == ["CONFIG", "SET"]:
            if words[2] in self.fixed:
                return b"-ERR CONFIG SET failed - can't set immutable config\r\n"
            self.values[words[2]] = words[3]
            return b"+OK\r\n"
        return b"+PONG\r\n"

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _address = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as stream:
                state: dict[str, bool] = {}
                while True:
                    head = stream.readline()
                    if not head:
                        break
                    words = []
                    for _word in range(int(head[1:])):
                        size = int(stream.readline()[1:])
                        words.append(stream.read(size + 2)[:-2].decode())
                    stream.write(self.answer(words, state))
                    stream.flush()


@contextmanager
def listening(path: Path, server: FakeServer):
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=server.serve, args=(listener,), daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


class FakeSystem(System):
    """A folder, and a systemctl that shows one unit; `pid` 0: it does not run."""

    def __init__(self, root: Path, pid: int = 0, arguments: str = "--supervised systemd") -> None:
        super().__init__(str(root))
        self.pid, self.arguments = pid, arguments
        self.started = "Fri 2100-01-15 08:00:00.000000 UTC"

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        assert argv[:2] == ("systemctl", "show"), argv
        unit = argv[-1]
        file = CONF if unit == "redis-server.service" else f"/etc/redis/redis-{unit[13:-8]}.conf"
        state = "active" if self.pid else "inactive"
        return Ran(
            0,
            f"Id={unit}\nLoadState=loaded\nActiveState={state}\nMainPID={self.pid}\n"
            f"ExecMainStartTimestamp={self.started}\n"
            f"ExecStart={{ path=/usr/bin/redis-server ; argv[]=/usr/bin/redis-server {file} {self.arguments}"
            " ; ignore_errors=no ; start_time=[n/a] }\n",
            "",
        )


def write(root: Path, files: dict[str, str]) -> None:
    for path, content in files.items():
        real = root / path.lstrip("/")
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_text(content)


def setting(name: str, value: str, owner: str = "redis") -> Setting:
    return Setting(owner, "redis", f"server/{name}" if "/" not in name else name, value)


def judge(kind: RedisKind, one: Setting) -> tuple[str, str]:
    planes = kind.read([one.name])[one.name]
    return verdicts.judge(
        one.value,
        planes,
        lambda wanted, found: kind.same(one.name, wanted, found),
        kind.managed_file(one.owner, one.name),
    )


@pytest.fixture
def short(tmp_path_factory, monkeypatch):
    """A folder whose sockets' paths are short enough, and a group redis."""
    monkeypatch.setattr(grp, "getgrnam", lambda name: SimpleNamespace(gr_gid=os.getgid()))
    folder = tmp_path_factory.mktemp("r")
    write(folder, {CONF: DEBIAN})
    return folder


# values


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        ("maxmemory", "1gb", "1073741824", True),
        ("maxmemory", "1g", "1gb", False),
        ("maxmemory", "1G", "1000000000", True),
        ("maxmemory-clients", "5%", "5%", True),
        ("maxmemory-clients", "5%", "5", False),
        ("appendonly", "YES", "yes", True),
        ("timeout", "0", "-0", False),
        ("unixsocketperm", "0770", "770", True),
        ("save", "3600 1  300 100", "3600 1 300 100", True),
        ("save", "", "3600 1", False),
        ("bind", "127.0.0.1 -::1", "127.0.0.1 -::1", True),
        ("bind", "-::1 127.0.0.1", "127.0.0.1 -::1", False),
        (
            "client-output-buffer-limit",
            "replica 1mb 1kb 1",
            "normal 0 0 0 slave 1048576 1024 1 pubsub 1 1 1",
            True,
        ),
        ("client-output-buffer-limit", "normal 1 0 0", "normal 0 0 0 slave 1 1 1 pubsub 1 1 1", False),
        ("notify-keyspace-events", "KEA", "AKE", True),
        ("oom-score-adj", "yes", "relative", True),
        ("shutdown-on-sigterm", "now force", "force now", True),
        ("slave-priority", "100", "100", True),
        ("some.module", "a  b", "a b", True),
    ],
)
def test_values_are_compared_in_their_own_units(name, one, other, same):
    assert redisvalues.same(name, one, other) is same


@given(st.integers(0, 2**40), st.sampled_from(["", "b", "k", "kb", "m", "mb", "g", "gb"]))
def test_a_size_in_any_unit_is_its_bytes(number, unit):
    factor = {"k": 1000, "m": 1000**2, "g": 1000**3}.get(unit[:1], 1)
    factor = {1000: 1024, 1000**2: 1024**2, 1000**3: 1024**3}.get(factor, 1) if unit[1:] else factor
    assert redisvalues.memory(f"{number}{unit.upper()}") == number * factor


# files


@given(st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])), min_size=1))
def test_quoted_words_are_read_back(words):
    line = " ".join(map(redisconf.quote, words))
    assert "\n" not in line
    assert redisconf.split(line.encode().decode("latin-1")) == words


@pytest.mark.parametrize("text", ['a "b', "a 'b", 'a "b"c', "a 'b'c", '"'])
def test_quotes_that_do_not_end_are_no_words(text):
    assert redisconf.split(text) is None


def test_the_last_definition_wins_and_all_are_named(tmp_path):
    write(
        tmp_path,
        {
            CONF: "# hz 9\nMAXMEMORY 1mb\ninclude /etc/redis/d/*.conf\nsave 60 1\nslave-priority 5\n",
            "/etc/redis/d/b.conf": "maxmemory 3mb\nsave 1 2",
            "/etc/redis/d/a.conf": 'save ""\nmaxmemory 2mb\n',
            "/etc/redis/d/.c.conf": "maxmemory 4mb\n",
        },
    )
    found = redisconf.read(System(str(tmp_path)), CONF, ["--hz", "20", "--supervised", "systemd"])
    assert found.broken is None
    assert [(one.value, one.file, one.line) for one in found.definitions["maxmemory"]] == [
        ("1mb", CONF, 2),
        ("2mb", "/etc/redis/d/a.conf", 2),
        ("3mb", "/etc/redis/d/b.conf", 1),
    ]
    assert [one.value for one in found.definitions["save"]] == ["", "1 2", "1 2 60 1"]
    assert found.value("replica-priority") == found.value("slave-priority") == "5"
    assert [(one.value, one.file) for one in found.definitions["hz"]] == [("20", redisconf.COMMAND_LINE)]


def test_limits_of_clients_add_up_by_class(tmp_path):
    write(
        tmp_path,
        {CONF: "client-output-buffer-limit normal 1mb 0 0\nclient-output-buffer-limit pubsub 1 1 1\n"},
    )
    found = redisconf.read(System(str(tmp_path)), CONF).value("client-output-buffer-limit")
    assert found == "normal 1048576 0 0 slave 268435456 67108864 60 pubsub 1 1 1"


@pytest.mark.parametrize(
    ("text", "why", "line"),
    [
        ('hz 10\nmaxmemory "1gb\n', "quotes", 2),
        ("include /etc/redis/none.conf\n", "cannot be read", 1),
        ("maxmemory 1tb\n", "is no size", 1),
        ("maxmemory\n", "0 values", 1),
        (f"include {CONF}\n", "includes itself", 1),
        ("aclfile /etc/redis/users.acl\nuser alice on\n", "beside an aclfile", 2),
        ("dir /nowhere\n", "no folder", 1),
    ],
)
def test_what_keeps_a_server_from_starting_is_found(tmp_path, text, why, line):
    write(tmp_path, {CONF: text})
    broken = redisconf.read(System(str(tmp_path)), CONF).broken
    assert broken is not None and why in broken.why
    assert (broken.file, broken.line) == (CONF, line)


@given(st.text(st.sampled_from("ab #\n")), st.lists(st.sampled_from("xyz"), unique=True, min_size=1))
def test_an_include_line_goes_without_a_trace(text, owners):
    paths = [f"/etc/redis/60-hosttune-{owner}.conf" for owner in owners]
    edited = text
    for path in paths:
        edited = module.with_include(edited, path, {"maxmemory"})
        assert module.with_include(edited, path, {"maxmemory"}) == edited
    for path in paths:
        edited = module.without_include(edited, path)
    assert edited == text


def test_the_include_line_moves_below_what_overrides_it():
    text = module.with_include("maxmemory 1mb\n", OURS, {"maxmemory"})
    assert text == f"maxmemory 1mb\ninclude {OURS}\n"
    assert module.with_include(text + "hz 20\n", OURS, {"maxmemory"}) == text + "hz 20\n"
    moved = module.with_include(text + "maxmemory 2mb\n", OURS, {"maxmemory"})
    assert moved == f"maxmemory 1mb\nmaxmemory 2mb\ninclude {OURS}\n"


# the kind


def test_persisted_by_our_file_read_back_from_a_stopped_server(short):
    kind = RedisKind(FakeSystem(short))
    wanted = {
        "maxmemory": "64mb",
        "save": "60 1",
        "proc-title-template": 'x "{port}"',
        "bind": "127.0.0.1 -::1",
    }
    settings = [setting(name, kind.text(f"server/{name}", value)) for name, value in wanted.items()]
    kind.check(settings, {})
    assert {judge(kind, one)[0] for one in settings} == {"drift"}
    ((path, image),) = kind.render("redis", settings).items()
    assert (path, image.mode, image.uid) == (OURS, 0o640, 0)
    write(short, {path: image.content.decode()})
    for file, edited in kind.edits(settings, {}, {}).items():
        write(short, {file: edited.content.decode()})
    assert (short / CONF[1:]).read_text() == f"{DEBIAN}include {OURS}\n"
    for one in settings:
        assert judge(kind, one) == ("in_sync", "redis-server.service is not running")
    assert kind.read(["server/maxmemory"])["server/maxmemory"].overridden[0].value == "1mb"
    undone = {one.name: {"owner": "redis"} for one in settings}
    assert kind.edits([], undone, {})[CONF].content.decode() == DEBIAN
    (short / OURS[1:]).unlink()
    assert "no start" in kind.read(["server/maxmemory"])["server/maxmemory"].winner.value
    kind.check(settings, {})  # our own missing file is ours to mend


def test_a_running_server_is_asked_and_set(short):
    server = FakeServer(
        {"maxmemory": "1048576", "databases": "16", "enable-protected-configs": "no", "dir": "/"}
    )
    with listening(short / "run/redis/redis-server.sock", server):
        kind = RedisKind(FakeSystem(short, os.getpid()))
        for name, value in (("maxmemory", "2mb"), ("databases", "8"), ("dir", "/x")):
            kind.text(f"server/{name}", value)
        planes = kind.read(["server/maxmemory", "server/databases", "server/dir", "server/nothing"])
        assert (planes["server/maxmemory"].live, planes["server/maxmemory"].needs) == ("1048576", "none")
        assert planes["server/databases"].needs == planes["server/dir"].needs == "restart"
        assert planes["server/nothing"].unsupported
        with pytest.raises(Refusal, match="Did you mean maxmemory"):
            kind.check([setting("maxmemry", "1gb")], {})
        changes = [Change("server/maxmemory", "2mb"), Change("server/databases", "8")]
        assert kind.activate(changes, []) == {}
        assert server.values["maxmemory"] == "2mb"
        assert ["CONFIG", "SET", "databases", "8"] not in server.heard


def test_the_login_is_used_and_told_to_nobody(short):
    server = FakeServer({"maxmemory": "1"}, login="secret-word")
    one = setting("maxmemory", "1mb")
    with listening(short / "run/redis/redis-server.sock", server):
        system = FakeSystem(short, os.getpid())
        verdict, reason = judge(RedisKind(system), one)
        assert (verdict, "redis-server.login" in reason) == ("unknown", True)
        write(short, {"/etc/hosttune/redis-server.login": "hosttune secret-word\n"})
        assert judge(RedisKind(system), one)[0] == "live_drift"
        write(short, {"/etc/hosttune/redis-server.login": "hosttune another-word\n"})
        verdict, reason = judge(RedisKind(system), one)
        assert (verdict, "another-word" in reason) == ("unknown", False)
        # Written after the server had started: it waits for its restart.
        system.started = "Fri 2001-01-15 08:00:00.000000 UTC"
        verdict, reason = judge(RedisKind(system), one)
        assert (verdict, "another-word" in reason) == ("pending_restart", False)


def test_another_process_on_the_socket_is_told_nothing(short):
    server = FakeServer({"maxmemory": "1"}, login="secret-word")
    write(
        short,
        {"/etc/hosttune/redis-server.login": "hosttune secret-word\n", CONF: DEBIAN.replace("6379", "0")},
    )
    with listening(short / "run/redis/redis-server.sock", server):
        system = FakeSystem(short, 1)
        # However old it is: nobody was refused, so a restart is not what this waits for.
        system.started = "Fri 2001-01-15 08:00:00.000000 UTC"
        verdict, reason = judge(RedisKind(system), setting("maxmemory", "1mb"))
    assert (verdict, server.heard) == ("unknown", [])
    assert f"process {os.getpid()} listens there" in reason


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("/maxmemory", "1", "INSTANCE/NAME"),
        ("server/MaxMemory", "1", "INSTANCE/NAME"),
        ("server/requirepass", "x", "ACL file"),
        ("server/tls-key-file-pass", "x", "ACL file"),
        ("server/user", "alice on", "kind file"),
        ("server/include", "/x", "is no setting"),
        ("server/slave-priority", "1", "Name server/replica-priority"),
        ("server/timeout", "1k", "no whole number"),
        ("server/databases", "0", "out of range"),
        ("server/maxmemory-policy", "allkeys", "is none of"),
        ("server/save", '""', "SECONDS CHANGES"),
        ("other/hz", "10", "It has server"),
    ],
)
def test_refusals_name_the_remedy(short, name, value, message):
    kind = RedisKind(FakeSystem(short))
    with pytest.raises(Refusal, match=message):
        kind.check([setting(name, kind.text(name, value))], {})


def test_a_boolean_and_a_line_break_are_refused():
    kind = RedisKind(System("/nowhere"))
    with pytest.raises(Refusal, match="quotes"):
        kind.text("server/appendonly", False)
    with pytest.raises(Refusal, match="one line"):
        kind.text("server/bind", "a\nb")


def test_a_server_that_a_package_will_bring_is_no_mistake(tmp_path):
    kind = RedisKind(FakeSystem(tmp_path))
    kind.check([setting("maxmemory", "1mb")], {"redis": ["redis-server"]})
    assert kind.read(["server/maxmemory"])["server/maxmemory"].unknown
    with pytest.raises(Refusal, match="Install redis-server first"):
        kind.check([setting("maxmemory", "1mb")], {})


# the protocol


def test_what_is_no_redis_is_said(short):
    path = short / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def once() -> None:
            connection, _address = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")

        thread = threading.Thread(target=once)
        thread.start()
        with Connection(str(path)) as connection, pytest.raises(OSError, match="not Redis' protocol"):
            connection.ask(["PING"])
        thread.join()


def test_replies_come_in_order_and_errors_are_values(short):
    server = FakeServer({"hz": "10"})
    with listening(short / "s", server), Connection(str(short / "s")) as connection:
        replies = connection.ask(["PING"], ["CONFIG", "GET", "hz"], ["CONFIG", "SET", "databases", "1"])
        assert replies[:2] == ["PONG", ["hz", "10"]]
        assert isinstance(replies[2], ReplyError)
        assert connection.peer_pid == os.getpid()
