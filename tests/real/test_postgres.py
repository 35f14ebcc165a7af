"""Kind postgres on a real server: its planes and verdicts against what sessions of that server get."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

CLUSTER = "15/probe"
ETC, DATA = f"/etc/postgresql/{CLUSTER}", f"/var/lib/postgresql/{CLUSTER}"
OURS = f"{ETC}/conf.d/60-hosttune-postgres.conf"
HAND = f"{ETC}/conf.d/99-hand.conf"
AUTO = f"{DATA}/postgresql.auto.conf"
PG_CTL = f"runuser -u postgres -- /usr/lib/postgresql/15/bin/pg_ctl -w -D {ETC}"
UNIT, ENVIRONMENT = "/etc/systemd/system/orchestrator.service", "/etc/orchestrator/orchestrator.env"


class Probe:
    """A cluster of its own beside Debian's."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def sql(self, text: str) -> str:
        # Not Debian's wrapper, which reads the cluster's files and gives up at a line that it cannot read.
        psql = "/usr/lib/postgresql/15/bin/psql -XAtq -v ON_ERROR_STOP=1"
        return self.host.run(f"cd /; runuser -u postgres -- {psql} -p 5499 postgres", text).strip()

    def start(self, options: str = "") -> None:
        given = f"-o {json.dumps(options)}" if options else ""
        self.host.run(f"pg_ctlcluster --skip-systemctl-redirect 15 probe start {given}")

    def stop(self) -> None:
        # pg_ctlcluster gives up at a line of the files that it cannot read.
        pid = f"{DATA}/postmaster.pid"
        self.host.run(f"kill -INT $(head -1 {pid}); while [ -e {pid} ]; do sleep 0.05; done")

    def starts(self) -> bool:
        """Whether the server comes up with its files as they are."""
        self.stop()
        return self.host.try_run("pg_ctlcluster --skip-systemctl-redirect 15 probe start").returncode == 0

    def reload(self, shown: str = "") -> None:
        """A reload that is through: the server's log says what came of it."""
        log = "/var/log/postgresql/postgresql-15-probe.log"
        count = int(self.host.run(f"grep -c {json.dumps(shown)} {log} || true")) if shown else 0
        self.sql("SELECT pg_reload_conf()")
        for _ in range(100):
            if not shown or int(self.host.run(f"grep -c {json.dumps(shown)} {log} || true")) > count:
                return
            time.sleep(0.05)
        raise AssertionError(self.host.run(f"tail {log}"))

    def converge(self, values: dict[str, str], **options: Any) -> dict[str, Any]:
        named = {f"{CLUSTER}/{name}": value for name, value in values.items()}
        return self.host.converge({"postgres": {"postgres": named}}, **options)

    def judged(self, found: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        """Settings of an answer (by default of the drift check) by their last part."""
        answer = found or self.host.drift()
        return {one["name"].rpartition("/")[2]: one for one in answer["settings"]}

    def verdict(self, name: str) -> tuple[str, str]:
        one = self.judged()[name]
        return one["verdict"], one["reason"]


@pytest.fixture(scope="module")
def cluster(machine: Any) -> Iterator[None]:
    machine.run("pg_createcluster -p 5499 --start-conf manual 15 probe")
    machine.run(
        f"cp -a {ETC} /root/probe-etc; cp {DATA}/postgresql.auto.conf /root/probe-auto;"
        "pg_ctlcluster --skip-systemctl-redirect 15 probe start"
    )
    yield
    machine.run("pg_dropcluster --stop 15 probe; rm -rf /root/probe-etc /root/probe-auto")


@pytest.fixture
def probe(cluster: None, host: Any) -> Iterator[Probe]:
    """The cluster as it was made, running, before the test and after it."""
    found = Probe(host)
    yield found
    host.run(
        f"rm -rf {UNIT} /etc/orchestrator {ETC}/conf.d/*; cp -a /root/probe-etc/. {ETC}/;"
        f"cat /root/probe-auto > {AUTO};"
        "pg_ctlcluster --skip-systemctl-redirect -m fast 15 probe stop || true;"
        "pg_ctlcluster --skip-systemctl-redirect 15 probe start"
    )
    found.sql(
        "ALTER ROLE ALL RESET ALL; ALTER ROLE postgres RESET ALL; ALTER DATABASE postgres RESET ALL;"
        "DROP DATABASE IF EXISTS trading;\nDROP ROLE IF EXISTS trader;\nDROP ROLE IF EXISTS clerk;"
    )


def trading(probe: Probe) -> None:
    """An orchestrator on the host: its role, its database, and the files that name them."""
    probe.sql("CREATE ROLE trader LOGIN;\nCREATE ROLE clerk LOGIN;")
    probe.sql("CREATE DATABASE trading OWNER trader")
    probe.host.put(
        {
            UNIT: "[Service]\nUser=trader\nExecStart=/bin/true\n",
            ENVIRONMENT: 'A=b\nORCHESTRATOR_DATABASE="host=/var/run/postgresql dbname=trading"\n',
        }
    )


def test_values_arrive_or_wait_and_undo_gives_them_back(probe: Probe) -> None:
    before = probe.sql("SHOW work_mem; SHOW max_worker_processes; SHOW checkpoint_timeout")
    wanted = {
        "work_mem": "30.1MB",
        "checkpoint_timeout": "900",
        "max_worker_processes": "12",
        "log_line_prefix": "it's %m ",
        "hosttune.tree": "oak",
    }
    found = probe.converge(wanted)
    assert not found["failures"], found
    verdicts = {name: one["verdict"] for name, one in probe.judged(found).items()}
    assert verdicts == {**dict.fromkeys(wanted, "in_sync"), "max_worker_processes": "pending_restart"}
    assert probe.sql("SHOW log_line_prefix; SHOW hosttune.tree; SHOW checkpoint_timeout") == (
        "it's %m \noak\n15min"
    )
    assert not probe.converge(wanted)["changed"]
    assert probe.starts()
    assert probe.verdict("max_worker_processes") == ("in_sync", "")
    # Undo: the server says of a value that no file names any more that it waits; nothing is broken by it.
    assert not probe.converge({"work_mem": "9MB"})["failures"]
    assert probe.verdict("work_mem") == ("in_sync", "")
    assert not probe.host.undo()["failures"]
    assert probe.starts()
    assert probe.sql("SHOW work_mem; SHOW max_worker_processes; SHOW checkpoint_timeout") == before


def test_every_definition_is_listed_and_alter_system_is_named(probe: Probe) -> None:
    probe.host.put({f"{ETC}/conf.d/10-first.conf": "WORK_MEM 5MB\nsort_mem = 6MB\n"})
    assert not probe.converge({"work_mem": "8MB", "checkpoint_timeout": "10min"})["failures"]
    found = probe.judged()["work_mem"]
    assert found["verdict"] == "in_sync"
    assert found["persisted"] == {
        "value": "8MB",
        "file": OURS,
        "line": 3,
        "overridden": [
            {"value": "5MB", "file": f"{ETC}/conf.d/10-first.conf", "line": 1},
            {"value": "6MB", "file": f"{ETC}/conf.d/10-first.conf", "line": 2},
        ],
    }
    probe.sql("ALTER SYSTEM SET work_mem = '9MB'")
    assert probe.verdict("work_mem") == (
        "boot_bomb",
        f"live is right, but {AUTO}:3 says 9MB: the next boot or restart undoes it; the server has not read "
        "its files since they changed: a reload brings what they say, SELECT pg_reload_conf()",
    )
    found = probe.converge({"work_mem": "8MB", "checkpoint_timeout": "10min"})
    probe.reload()
    failed = probe.converge({"work_mem": "8MB", "checkpoint_timeout": "10min"})["failures"]
    assert any(f"{AUTO}:3 decides; take it back with ALTER SYSTEM RESET work_mem" in one for one in failed)
    assert probe.verdict("work_mem") == ("drift", f"live is 9MB; {AUTO}:3 says 9MB")
    # postgresql.auto.conf edited by hand, in the value that we ask for and not read yet
    probe.host.run(f"echo \"work_mem = '8192'\" >> {AUTO}")
    found = probe.judged()["work_mem"]
    assert (found["verdict"], found["persisted"]["line"]) == ("live_drift", 4)
    assert "has not read its files since they changed" in found["reason"]
    probe.reload("received SIGHUP")
    assert probe.verdict("work_mem") == ("shadowed", f"right, but decided by {AUTO}:4, not by {OURS}")
    probe.sql("ALTER SYSTEM RESET work_mem; SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-- a comment elsewhere", "says: syntax error"),
        ("nosuch = 1", "says: unrecognized configuration parameter nosuch"),
        ("include 'gone.conf'", "says: could not open file"),
        ("work_mem = 1kB", "sets work_mem to a value that the server does not take"),
        ("max_connections = many", "sets max_connections to a value that the server does not take"),
        ("timezone = 'No/Where'", "sets timezone to a value that the server does not take"),
    ],
)
def test_a_bad_line_anywhere_makes_what_is_persisted_void(probe: Probe, line: str, said: str) -> None:
    wanted = {"lock_timeout": "7s", "max_worker_processes": "8"}
    assert not probe.converge(wanted)["failures"]
    probe.host.put({HAND: f"# by hand\n{line}\nlock_timeout = 8s\n"})
    probe.reload("contains errors")
    for name, one in probe.judged().items():
        verdict, reason = one["verdict"], one["reason"]
        # The server takes nothing where it cannot read a line, and all but the bad value where it can.
        whole = "sets" not in said
        assert verdict == ("boot_bomb" if whole or name != "lock_timeout" else "drift"), (name, reason)
        assert f"{HAND}:2 {said}" in reason
        assert "would not start" in reason
    assert probe.sql("SHOW lock_timeout") == ("7s" if whole else "8s")
    if whole:
        failed = probe.converge({**wanted, "lock_timeout": "9s"})["failures"]
        assert any(f"stays 7s: {HAND}:2 {said}" in one for one in failed), failed
    assert not probe.starts()
    # and with the server down, the files are read all the same
    found = probe.judged()["lock_timeout"]
    assert (found["verdict"], found["reason"]) == ("unknown", f"cluster {CLUSTER} is not running")
    assert found["persisted"]["file"] in (HAND, OURS)
    probe.host.run(f"rm {HAND}")
    probe.start()
    found = probe.converge(wanted)
    assert not found["failures"]
    assert {one["verdict"] for one in found["settings"]} == {"in_sync"}


def test_what_alter_role_decides_for_the_orchestrator_is_drift(probe: Probe) -> None:
    trading(probe)
    wanted = {"lock_timeout": "7s"}
    assert not probe.converge(wanted)["failures"]
    for statement, gets in (
        ("ALTER ROLE trader SET", "1s"),
        ("ALTER DATABASE trading SET", "2s"),
        ("ALTER ROLE trader IN DATABASE trading SET", "3s"),
        ("ALTER ROLE ALL SET", "4s"),
    ):
        probe.sql(f"{statement} lock_timeout = '{gets}'")
        assert session_of_trader(probe, "lock_timeout") == gets
        verdict, reason = probe.verdict("lock_timeout")
        assert verdict == "drift", statement
        assert reason == f"live is {gets}; {statement} says {gets}"
        failed = probe.converge(wanted)["failures"]
        assert any(f"take it back with {statement[:-3]}RESET lock_timeout" in one for one in failed), failed
        probe.sql(f"{statement[:-3]}RESET lock_timeout")
        assert probe.verdict("lock_timeout") == ("in_sync", "")
    # The most special one wins, as in the session; one that says what we ask for is right, decided elsewhere.
    probe.sql(
        "ALTER ROLE trader SET lock_timeout = '1s'; ALTER DATABASE trading SET lock_timeout = '2s';"
        "ALTER ROLE trader IN DATABASE trading SET lock_timeout = 7000;"
        "ALTER ROLE ALL SET lock_timeout = '4s'"
    )
    assert session_of_trader(probe, "lock_timeout") == "7s"
    found = probe.judged()["lock_timeout"]
    assert found["verdict"] == "shadowed"
    assert "ALTER ROLE trader IN DATABASE trading SET" in found["reason"]
    assert [one["file"] for one in found["persisted"]["overridden"]][-3:] == [
        "ALTER ROLE ALL SET",
        "ALTER DATABASE trading SET",
        "ALTER ROLE trader SET",
    ]


def session_of_trader(probe: Probe, name: str) -> str:
    """What a session of the orchestrator's role in its database gets."""
    probe.host.run(f"sed -i '1i local trading trader trust' {ETC}/pg_hba.conf")
    probe.sql("SELECT pg_reload_conf()")
    for _ in range(50):
        found = probe.host.try_run(f"psql -XAtqw -p 5499 -U trader trading -c 'SHOW {name}'")
        if found.returncode == 0:
            break
    probe.host.run(f"sed -i 1d {ETC}/pg_hba.conf")
    return found.stdout.strip()


def test_what_alter_role_decides_for_others_is_named(probe: Probe) -> None:
    trading(probe)
    assert not probe.converge({"lock_timeout": "7s"})["failures"]
    probe.sql("ALTER ROLE clerk SET lock_timeout = 7000")
    assert probe.verdict("lock_timeout") == ("in_sync", "")
    probe.sql(
        "ALTER ROLE clerk SET lock_timeout = '1min';"
        "ALTER ROLE trader IN DATABASE postgres SET lock_timeout = 5"
    )
    assert probe.verdict("lock_timeout") == (
        "shadowed",
        "right, but ALTER ROLE clerk SET says 1min, ALTER ROLE trader IN DATABASE postgres SET says 5",
    )
    # our own session's value is nobody's
    probe.sql("ALTER ROLE postgres SET lock_timeout = '9s'")
    verdict, reason = probe.verdict("lock_timeout")
    assert verdict == "unknown"
    assert "ALTER ROLE postgres RESET lock_timeout" in reason


def test_command_line_and_environment_of_the_server(probe: Probe) -> None:
    wanted = {"work_mem": "8MB", "datestyle": "iso, dmy", "wal_buffers": "-1"}
    assert not probe.converge(wanted)["failures"]
    probe.stop()
    probe.start("-c work_mem=9MB")
    assert probe.verdict("work_mem") == ("drift", "live is 9MB; command line of the server says 9MB")
    failed = probe.converge(wanted)["failures"]
    assert any("stays 9MB: the command line of the server decides" in one for one in failed), failed
    assert probe.verdict("datestyle") == ("in_sync", "")
    verdict, reason = probe.verdict("wal_buffers")
    assert (verdict, reason[:17]) == ("in_sync", "the server chose ")
    # The environment stands below the files: it decides only what they leave out.
    probe.stop()
    probe.host.run(
        f"sed -i '/^datestyle/d' {ETC}/postgresql.conf;echo \"PGDATESTYLE = 'SQL, DMY'\" >> {ETC}/environment"
    )
    probe.start()
    assert probe.verdict("datestyle") == ("in_sync", "")
    assert probe.sql("SHOW datestyle") == "ISO, DMY"
    probe.host.run(f"rm {OURS}")
    probe.reload("received SIGHUP")
    verdict, reason = probe.verdict("datestyle")
    assert verdict == "drift"
    assert reason == "live is SQL, DMY; environment of the server says SQL, DMY"


ASK = """
import json, sys
from hosttune.kinds.postgres import PostgresKind
from hosttune.system import System

class Counting(System):
    calls = []
    def run(self, *argv, **given):
        self.calls.append(argv)
        return super().run(*argv, **given)

system = Counting()
planes = PostgresKind(system).read(json.load(sys.stdin))
found = {name: [one.unknown, one.live, len(one.definitions)] for name, one in planes.items()}
json.dump([found, [" ".join(argv) for argv in system.calls]], sys.stdout)
"""


def test_one_command_for_a_cluster_and_nothing_of_it_in_argv(probe: Probe) -> None:
    probe.sql("ALTER SYSTEM SET primary_conninfo = 'host=a password=s3cret'")
    names = [f"{CLUSTER}/{name}" for name in ("work_mem", "jit", "port", "primary_conninfo")]
    found, calls = probe.host.python(ASK, names)
    assert found[f"{CLUSTER}/port"] == ["", "5499", 1]
    assert len(calls) == 1
    assert "s3cret" not in calls[0]
    refused = probe.converge({"primary_conninfo": "host=a password=s3cret"})["refused"]
    assert "passfile" in refused
    assert "s3cret" not in refused


def test_names_are_checked_against_the_servers_own(probe: Probe) -> None:
    for name, value, said in (
        ("work_men", "1MB", "Did you mean work_mem?"),
        ("sort_mem", "1MB", "Ask for work_mem"),
        ("WORK_MEM", "1kB", "Give 64 to 2147483647 in units of kB"),
        ("block_size", "8192", "fixed in the server"),
        ("a.b.c", "1", "is no name of a parameter"),
        ("pg_stat_statements.$", "1", "is no name of a parameter"),
    ):
        assert said in probe.converge({name: value})["refused"], name
    assert (
        "It has 15/main, 15/probe"
        in probe.host.converge({"postgres": {"postgres": {"15/prob/work_mem": "1MB"}}})["refused"]
    )


def test_servers_that_cannot_be_asked(probe: Probe) -> None:
    """Several clusters in one call, each with its own reason and never a traceback."""
    host, name = probe.host, f"{CLUSTER}/work_mem"

    def reason(asked: str = name) -> str:
        return host.python(ASK, [asked])[0][asked][0]

    both, calls = host.python(ASK, [name, "15/main/work_mem"])
    assert [one[1] for one in both.values()] == ["4MB", "4MB"]
    assert len(calls) == 2
    host.run("mv /run/postgresql/.s.PGSQL.5499 /run/postgresql/away")
    assert "No such file or directory" in reason()
    host.run("mv /run/postgresql/away /run/postgresql/.s.PGSQL.5499")
    pid = host.run(f"cat {DATA}/postmaster.pid")
    host.run(f"head -3 {DATA}/postmaster.pid > /root/pid")
    host.run(f"cat /root/pid > {DATA}/postmaster.pid; rm /root/pid")
    assert reason() == f"cluster {CLUSTER} is starting"
    host.run(f"cat > {DATA}/postmaster.pid", pid)
    assert reason() == ""
    # a server that was killed leaves its pid file
    host.run(f"kill -KILL $(head -1 {DATA}/postmaster.pid); sleep 0.5")
    assert reason().startswith(f"cluster {CLUSTER} does not answer: ")
    probe.start()
    # who may not become postgres gets no answer, and no traceback
    denied = host.run(
        "cd /opt/hosttune-test; setpriv --reuid=65534 --regid=65534 --clear-groups python3 -B program.py",
        json.dumps([name]),
    )
    assert "Permission denied" in json.loads(denied)[0][name][0]
    # a purged version leaves its configuration, and a version nobody installed leaves nothing
    host.run(f"mkdir -p /etc/postgresql/14/old; cp {ETC}/postgresql.conf /etc/postgresql/14/old/")
    host.run("sed -i 's:15/probe:14/old:' /etc/postgresql/14/old/postgresql.conf")
    assert reason("14/old/work_mem") == "cluster 14/old is not running, and PostgreSQL 14 is not installed"
    host.run("rm -r /etc/postgresql/14")
    assert reason("14/old/work_mem") == "cluster 14/old does not exist"
    # the data directory is where the last of the files says
    probe.stop()
    host.run(f"mv {DATA} /var/lib/postgresql/15/moved")
    host.put({f"{ETC}/conf.d/data.conf": "data_directory = '/var/lib/postgresql/15/moved'\n"})
    host.run(f"{PG_CTL} -l /dev/null start >/dev/null")
    assert reason() == ""
    host.run(f"{PG_CTL} -m fast stop >/dev/null")
    host.run(f"mv /var/lib/postgresql/15/moved {DATA}; rm {ETC}/conf.d/data.conf")
    assert reason() == f"cluster {CLUSTER} is not running"
    probe.start()
    # nothing listens on a socket
    probe.stop()
    host.put({f"{ETC}/conf.d/socket.conf": "unix_socket_directories = ''\n"})
    host.run(f"{PG_CTL} -l /dev/null start >/dev/null")
    assert reason() == f"cluster {CLUSTER} has no socket: its unix_socket_directories is empty"
    host.run(f"{PG_CTL} -m fast stop >/dev/null")
    host.run(f"rm {ETC}/conf.d/socket.conf")
    probe.start()
