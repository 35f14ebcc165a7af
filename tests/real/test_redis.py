"""Kind redis against real servers: its reading of redis.conf beside CONFIG GET, and the whole walk."""

from __future__ import annotations

import json
import textwrap

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# The reader of redis.conf against the server itself. One program on the host starts a server for each tree of
# files, on a socket of its own, and says where the two differ.

ORACLE = r"""
import json, os, shutil, subprocess, sys, tempfile, time
from hosttune import redisconf, redisvalues
from hosttune.resp import Connection
from hosttune.system import System

top = tempfile.mkdtemp(prefix="redis-oracle-")

def server(argv, socket):
    started = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=top, text=True)
    while started.poll() is None:
        try:
            Connection(socket).close()
            break
        except OSError:
            time.sleep(0.002)
    return started

def differences(place, tree):
    folder = f"{top}/{place}"
    os.makedirs(f"{folder}/conf.d")
    for name, text in tree["files"].items():
        with open(f"{folder}/{name}", "wb") as stream:
            stream.write(text.replace("FOLDER", folder).encode("latin-1"))
    socket = f"{folder}/socket"
    arguments = [*tree["arguments"], "--port", "0", "--unixsocket", socket, "--logfile", ""]
    file = f"{folder}/redis.conf"
    ours = redisconf.read(System(), file, arguments, top)
    process = server(["redis-server", file, *arguments], socket)
    try:
        if process.poll() is not None:
            said = process.stdout.read()
            return [] if ours.broken else [f"starts for us, not for the server: {said[-400:]}"]
        if ours.broken:
            return [f"starts for the server, not for us: {ours.broken}"]
        started.append(place)
        names = sorted(ours.definitions)
        with Connection(socket) as connection:
            replies = connection.ask(*[("CONFIG", "GET", name) for name in names])
        found = []
        for name, reply in zip(names, replies):
            wanted = ours.value(name)
            if len(reply) != 2 or not redisvalues.same(name, wanted, reply[1]):
                found.append(f"{name}: we say {wanted!r}, the server {reply!r}")
            elif not redisvalues.same(name, reply[1], wanted):
                found.append(f"{name}: same only one way round")
        return found
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)

trees = json.load(sys.stdin)
started = []
found = [(tree, said) for place, tree in enumerate(trees) for said in [differences(place, tree)] if said]
shutil.rmtree(top)
json.dump({"cases": len(trees), "started": len(started), "wrong": found[:3]}, sys.stdout)
"""

SPELLED = st.sampled_from
DIRECTIVES = {
    "maxmemory": SPELLED(["0", "1gb", "1g", "100mb", "100M", "64kb", "64k", "1073741824", "5GB", "12b"]),
    "maxmemory-policy": SPELLED(["allkeys-lru", "AllKeys-LFU", "noeviction"]),
    "maxmemory-clients": SPELLED(["0", "5%", "100%", "1gb", "101%", "-5%"]),
    "timeout": SPELLED(["0", "60", "-1", "007", "1k", "2147483648"]),
    "hz": SPELLED(["0", "1", "10", "501", "100000"]),
    "tcp-backlog": SPELLED(["128", "4096"]),
    "databases": SPELLED(["1", "16", "0"]),
    "unixsocketperm": SPELLED(["700", "0770", "0", "999", "1777"]),
    "appendonly": SPELLED(["no", "NO", "maybe"]),
    "activerehashing": SPELLED(["yes", "Yes", "no", "1"]),
    "list-max-listpack-size": SPELLED(["-2", "128", "-0", "+5"]),
    "slowlog-log-slower-than": SPELLED(["-1", "1000", "-2"]),
    "save": SPELLED(['""', "3600 1", "3600 1 300 100", '"60 1000"', "3600", "0 1", "''", "60 -1", ""]),
    "client-output-buffer-limit": SPELLED(
        [
            "normal 64mb 16mb 60",
            "replica 256mb 64mb 60",
            "slave 1g 1m 0",
            '"normal 1 1 1 pubsub 2kb 1k 5"',
            "pubsub 32mb 8mb",
            "nobody 1 1 1",
            "NORMAL 0 0 0 replica 1mb 1mb 1",
            "master 1 1 1",
        ]
    ),
    "bind": SPELLED(["127.0.0.1", "127.0.0.1 -::1", '"127.0.0.1 -::1"', '""', "* -::*"]),
    "notify-keyspace-events": SPELLED(['""', "KEA", "Ex", "g$lshzxetd", "AKEmn", "Q", "Kg$n"]),
    "oom-score-adj": SPELLED(["no", "yes", "relative", "absolute", "maybe"]),
    "oom-score-adj-values": SPELLED(["0 200 800", '"1 2 3"', "1 2", "0 0 2001"]),
    "latency-tracking-info-percentiles": SPELLED(["50 99 99.9", '""', '"50 99.123"', "101", "abc"]),
    "shutdown-on-sigterm": SPELLED(["default", "save now", '"nosave force"', "save nosave", "soon"]),
    "proc-title-template": SPELLED(['"{title} {listen-addr}"', "'{title} x'", "{nothing}", r'"\x7btitle}x"']),
    "replicaof": SPELLED(["no one", "127.0.0.1 6390", "127.0.0.1", "127.0.0.1 99999"]),
    "slave-priority": SPELLED(["100", "0"]),
    "replica-priority": SPELLED(["7"]),
    "hash-max-ziplist-entries": SPELLED(["128"]),
    "lua-time-limit": SPELLED(["1000"]),
    "lua-replicate-commands": SPELLED(["yes", "a b"]),
    "dbfilename": SPELLED(["d.rdb", '"two words.rdb"', r'"d\"q.rdb"', "'i\\'s.rdb'", '"a"b', "a/b"]),
    "dir": SPELLED(["FOLDER", "FOLDER/conf.d", "FOLDER/nothing", "FOLDER/./conf.d/.."]),
    "user": SPELLED(["alice on nopass ~* +@all", "bob off"]),
    "aclfile": SPELLED(['""', "FOLDER/users.acl"]),
    "rename-command": SPELLED(['FLUSHALL ""', "KEYS k"]),
    "include": SPELLED(
        ["FOLDER/a.conf", "FOLDER/conf.d/*.conf", "FOLDER/conf.d/[ab]*.conf", "b.conf", "FOLDER/no*.conf",
         "FOLDER/conf.d/?.conf", "FOLDER/nothing.conf", "FOLDER/conf.d"]
    ),
    "no-such-thing": SPELLED(["1"]),
}  # fmt: skip
#: Faults are rare: most trees shall start.
RARE = frozenset({"no-such-thing", "rename-command", "user", "aclfile", "dir", "include", "replicaof"})


@st.composite
def lines(draw, includes=True):
    """One line of a file, mostly one that the server takes."""
    usual = sorted(set(DIRECTIVES) - RARE)
    name = draw(SPELLED(usual * 8 + sorted(RARE - {"include"}) + ["include"] * (12 if includes else 0)))
    value = draw(DIRECTIVES[name])
    spelling = draw(SPELLED(["{} {}"] * 12 + ["  {}\t{}  ", "{} {}\r", '"{}" {}', "# {} {}"]))
    name = draw(SPELLED([name] * 6 + [name.upper()]))
    return spelling.format(name, value)


@st.composite
def trees(draw):
    """A redis.conf with what it includes, and a command line."""

    def text(most, includes):
        found = draw(st.lists(lines(includes), max_size=most))
        return "\n".join(found) + draw(SPELLED(["\n"] * 4 + [""]))

    files = {"redis.conf": text(8, includes=True), "users.acl": ""}
    files["a.conf"] = text(4, includes=False)
    files["b.conf"] = text(3, includes=False)
    for name in ("a.conf", "b.conf", ".hidden.conf", "z.txt"):
        files[f"conf.d/{name}"] = text(2, includes=False)
    arguments = draw(
        SPELLED(
            [[]] * 5
            + [
                ["--supervised", "no"],
                ["--maxmemory", "7mb", "--save"],
                ["--save", "--hz", "20"],
                ["--save", ""],
                ["--save", "60", "1", "--timeout 9"],
                ["--client-output-buffer-limit", "pubsub", "1", "2", "3"],
                ["--bind", "127.0.0.1", "-::1"],
            ]
        )
    )
    return {"files": files, "arguments": arguments}


# Not shrunk: the answer names the trees that differ, and each batch takes seconds.
@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(st.lists(trees(), min_size=60, max_size=60))
def test_a_start_takes_what_we_read(machine, batch):
    said = machine.python(ORACLE, batch)
    assert said["cases"] == len(batch)
    assert said["started"] > len(batch) / 4, "too few trees that a server takes"
    assert said["wrong"] == [], json.dumps(said["wrong"], indent=1)


# the whole walk

SOCKET = "/run/redis/redis-server.sock"
LOGIN = "/etc/hosttune/redis-server.login"
PASSWORD = "correct-horse-battery-staple"  # noqa: S105 - of a test host
OURS = "/etc/redis/60-hosttune-redis.conf"
CONF = "/etc/redis/redis.conf"
WANTED = {
    "server/maxmemory": "64mb",
    "server/maxmemory-policy": "allkeys-lru",
    "server/save": "",
    "server/client-output-buffer-limit": ["normal 64mb 16mb 60"],
    "server/databases": "8",
    "server/unixsocket": SOCKET,
    "server/unixsocketperm": "770",
}
FIXED = {"server/databases", "server/unixsocket", "server/unixsocketperm"}


def owners(password: str = "", **more: str):
    """What the role redis would ask for, with its users where a password is given."""
    found = {
        "redis": {**WANTED, **{f"server/{name.replace('_', '-')}": value for name, value in more.items()}}
    }
    if password:
        found["redis"]["server/aclfile"] = "/etc/redis/users.acl"
        users = (
            f"user default off\nuser hosttune on >{password} resetchannels -@all +config|get +config|set\n"
        )
        acl = {"content": users, "mode": "0640", "owner": "redis", "group": "redis", "secret": True}
        login = {"content": f"hosttune {password}\n", "mode": "0600", "secret": True}
        found["file"] = {"/etc/redis/users.acl": {**acl, "restart": "redis-server.service"}, LOGIN: login}
    return {"redis": found}


@pytest.fixture
def redis(host):
    """The host with its Redis as Debian starts it, and so again afterwards."""
    host.run("systemctl start redis-server; cp -a /etc/redis /var/tmp/redis-before")
    yield host
    host.undo()
    host.run(
        "rm -rf /etc/redis; mv /var/tmp/redis-before /etc/redis; "
        "systemctl reset-failed redis-server; systemctl restart redis-server; rm -f /etc/hosttune/*.login"
    )


def config(host, name: str) -> str:
    """A directive as the server itself tells it."""
    return host.run(f"redis-cli --raw config get {name}").split("\n")[1]


def snapshot(host) -> str:
    return host.run(
        "cd /etc; { find redis hosttune -printf '%p %y %m %U:%G\\n' 2>/dev/null || true; } | sort; "
        "find redis -type f | sort | xargs sha256sum",
    )


def pid(host) -> str:
    return host.run("systemctl show -p MainPID redis-server")


def test_values_at_run_time_drift_and_undo(redis):
    before, process, policy = snapshot(redis), pid(redis), config(redis, "maxmemory-policy")
    limits = config(redis, "client-output-buffer-limit")
    planned = redis.converge(owners(), check=True)
    assert set(redis.verdicts(planned).values()) == {"drift"}
    assert snapshot(redis) == before

    applied = redis.converge(owners())
    assert not applied["failures"], applied
    found = redis.verdicts(applied)
    assert {name for name, verdict in found.items() if verdict == "pending_restart"} == FIXED, applied
    assert {verdict for name, verdict in found.items() if name not in FIXED} == {"in_sync"}, applied
    assert (config(redis, "maxmemory"), config(redis, "maxmemory-policy")) == ("67108864", "allkeys-lru")
    assert config(redis, "client-output-buffer-limit").startswith(
        "normal 67108864 16777216 60 slave 268435456"
    )
    assert pid(redis) == process, "nothing may restart"
    assert redis.run(f"stat -c '%a %U:%G' {OURS}").strip() == "640 root:redis"
    applied_files = snapshot(redis)
    assert not redis.converge(owners())["changed"]

    redis.run("redis-cli config set maxmemory 32mb; redis-cli config set save '60 1'")
    drifted = redis.verdicts(redis.drift())
    assert (drifted["server/maxmemory"], drifted["server/save"]) == ("live_drift", "live_drift")
    redis.run(f"sed -i 's/^maxmemory-policy.*/maxmemory-policy noeviction/' {OURS}")
    assert redis.verdicts(redis.drift())["server/maxmemory-policy"] == "boot_bomb"
    mended = redis.converge(owners())
    assert {one["name"] for one in mended["settings"] if one["changed"]} == {
        "server/maxmemory",
        "server/save",
        "server/maxmemory-policy",
    }
    assert (config(redis, "maxmemory"), config(redis, "save")) == ("67108864", "")
    assert snapshot(redis) == applied_files

    undone = redis.undo()
    assert not undone["failures"], undone
    assert {one["name"] for one in undone["undone"] if one["needs"] == "restart"} == set()
    assert snapshot(redis) == before
    assert (config(redis, "maxmemory"), config(redis, "maxmemory-policy")) == ("0", policy)
    assert (config(redis, "save"), config(redis, "client-output-buffer-limit")) == (
        "3600 1 300 100 60 10000",
        limits,
    )


def test_values_of_the_start_wait_for_it(redis):
    before = snapshot(redis)
    redis.converge(owners())
    redis.run("systemctl restart redis-server")
    assert set(redis.verdicts(redis.drift()).values()) == {"in_sync"}
    assert config(redis, "databases") == "8"
    assert redis.run(f"stat -c %a {SOCKET}").strip() == "770"
    assert redis.verdicts(redis.converge(owners(databases="9")))["server/databases"] == "pending_restart"
    undone = redis.undo()
    assert not undone["failures"], undone
    waiting = {one["name"] for one in undone["undone"] if one["needs"] == "restart"}
    assert waiting == FIXED, undone
    assert snapshot(redis) == before
    redis.run("systemctl restart redis-server")
    assert (config(redis, "databases"), config(redis, "unixsocket")) == ("16", "")


def test_users_a_way_in_and_a_new_password(redis):
    before = snapshot(redis)
    applied = redis.converge(owners(PASSWORD))
    assert not applied["failures"], applied
    redis.run("systemctl restart redis-server")
    assert "NOAUTH" in redis.run("redis-cli config get maxmemory 2>&1 || true")
    found = redis.drift()
    assert set(redis.verdicts(found).values()) == {"in_sync"}, found
    changed = redis.converge(owners(PASSWORD, maxmemory="48mb"))
    assert redis.verdicts(changed)["server/maxmemory"] == "in_sync", changed

    # A new password: the server knows the old one until it restarts, and neither run may fail for that.
    other = PASSWORD[::-1]
    rotated = redis.converge(owners(other, maxmemory="40mb"))
    assert not rotated["failures"], rotated
    assert redis.verdicts(rotated)["server/maxmemory"] == "pending_restart"
    again = redis.converge(owners(other, maxmemory="40mb"))
    assert not again["failures"] and not again["changed"], again
    redis.run("systemctl restart redis-server")
    assert redis.verdicts(redis.converge(owners(other, maxmemory="40mb")))["server/maxmemory"] == "in_sync"

    # Without its login the suite cannot look, and says so.
    redis.run(f"mv {LOGIN} /root/login")
    blind = redis.drift()
    reason = next(one["reason"] for one in blind["settings"] if one["name"] == "server/maxmemory")
    assert redis.verdicts(blind)["server/maxmemory"] == "unknown" and LOGIN in reason, blind
    redis.run(f"mv /root/login {LOGIN}")

    told = json.dumps([applied, found, changed, rotated, again, blind]) + redis.run(
        "cat /etc/hosttune/manifest.json"
    )
    assert PASSWORD not in told and other not in told

    undone = redis.undo()
    assert not undone["failures"], undone
    assert {one["name"] for one in undone["undone"] if one["needs"] == "restart"} >= FIXED
    assert snapshot(redis) == before
    # Converged again before anybody restarted it: with a password it does not know it waits, else it answers.
    unknown = redis.converge(owners(PASSWORD, maxmemory="41mb"))
    assert not unknown["failures"], unknown
    assert redis.verdicts(unknown)["server/maxmemory"] == "pending_restart", unknown
    assert not redis.undo()["failures"]
    known = redis.converge(owners(other, maxmemory="42mb"))
    assert not known["failures"], known
    assert redis.verdicts(known)["server/maxmemory"] == "in_sync", known
    undone = redis.undo()
    assert {one["name"] for one in undone["undone"] if one["needs"] == "restart"} >= FIXED


def test_config_rewrite_below_our_line(redis):
    redis.converge(owners())
    redis.run("redis-cli config set maxmemory 16mb; redis-cli config rewrite")
    found = next(one for one in redis.drift()["settings"] if one["name"] == "server/maxmemory")
    assert (found["verdict"], found["persisted"]["file"]) == ("drift", CONF), found
    mended = redis.converge(owners())
    assert not mended["failures"], mended
    assert redis.verdicts(mended)["server/maxmemory"] == "in_sync", mended
    assert redis.run(f"tail -1 {CONF}") == f"include {OURS}\n"
    redis.run("systemctl restart redis-server")
    assert config(redis, "maxmemory") == "67108864"


def test_a_second_instance_and_a_stopped_server(redis):
    redis.run(
        textwrap.dedent("""
            cd /etc/redis
            socket=/run/redis-feed/redis-server.sock
            printf '%s\\n' 'port 0' "unixsocket $socket" 'dir /var/lib/redis' >redis-feed.conf
            printf '%s\\n%s' 'maxmemory 1mb' '# no line break at the end' >>redis-feed.conf
            chown redis:redis redis-feed.conf
            systemctl start redis-server@feed
        """)
    )
    try:
        before = snapshot(redis)
        wanted = {"redis": {"redis": {"feed/maxmemory": "5mb", "feed/hz": "20"}}}
        assert set(redis.verdicts(redis.converge(wanted)).values()) == {"in_sync"}
        ask = "redis-cli -s /run/redis-feed/redis-server.sock --raw config get"
        assert redis.run(f"{ask} maxmemory") == f"maxmemory\n{5 << 20}\n"
        redis.run("systemctl stop redis-server@feed")
        stopped = redis.drift()
        assert set(redis.verdicts(stopped).values()) == {"in_sync"}
        assert "redis-server@feed.service is not running" in stopped["settings"][0]["reason"]
        refused = redis.converge({"redis": {"redis": {"feed/maxmemry": "5mb"}}})
        assert "Did you mean maxmemory" in refused["refused"]
        redis.run("systemctl start redis-server@feed")
        assert redis.run(f"{ask} hz") == "hz\n20\n"
        assert not redis.undo()["failures"]
        assert snapshot(redis) == before
        assert redis.run(f"{ask} maxmemory") == f"maxmemory\n{1 << 20}\n"
    finally:
        redis.run("systemctl stop redis-server@feed")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("server/maxmemry", "1gb", "Did you mean maxmemory"),
        ("server/set-max-listpack-entries", "128", "no directive set-max-listpack-entries"),
        ("server/requirepass", "x", "ACL file"),
        ("server/maxmemory", "1tb", "is no size"),
        ("other/maxmemory", "1gb", "It has server"),
    ],
)
def test_refusals_touch_nothing(redis, name, value, message):
    before = snapshot(redis)
    assert message in redis.converge({"redis": {"redis": {name: value}}})["refused"]
    assert snapshot(redis) == before


def test_a_broken_file_is_not_made_worse(redis):
    redis.run(f"echo 'maxmemory \"1gb' >>{CONF}")
    assert "would not start" in redis.converge(owners())["refused"]
