"""Kind postgres against answers of PostgreSQL 15.18 on Debian 12, recorded with the kind's own query."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosttune import verdicts
from hosttune.kinds import postgres
from hosttune.kinds.postgres import PostgresKind, quote
from hosttune.model import Change, Refusal, Setting
from hosttune.pgvalues import Parameter, canonical
from hosttune.system import Ran, System
from hypothesis import given
from hypothesis import strategies as st

#: name|setting|unit|context|vartype|source|min|max|enumvals|pending_restart|SHOW
SETTINGS = """\
checkpoint_timeout|300|s|sighup|integer|default|30|86400||f|5min
huge_pages|try||postmaster|enum|default|||off,on,try|f|try
jit|on||user|bool|default||||f|on
lc_messages|C.UTF-8||superuser|string|configuration file||||f|C.UTF-8
log_line_prefix|%m [%p] %q%u@%d ||sighup|string|configuration file||||f|%m [%p] %q%u@%d 
log_min_messages|warning||superuser|enum|default|||debug5,debug2,info,warning|f|warning
max_connections|100||postmaster|integer|configuration file|1|262143||f|100
max_wal_senders|10||postmaster|integer|default|0|262143||f|10
max_wal_size|1024|MB|sighup|integer|configuration file|2|2147483647||f|1GB
min_wal_size|80|MB|sighup|integer|configuration file|2|2147483647||f|80MB
random_page_cost|4||user|real|default|0|1.79769e+308||f|4
search_path|"$user", public||user|string|default||||f|"$user", public
segment_size|131072|8kB|internal|integer|default|131072|131072||f|1GB
shared_buffers|16384|8kB|postmaster|integer|configuration file|16|1073741823||f|128MB
shared_preload_libraries|||postmaster|string|default||||f|
statement_timeout|0|ms|user|integer|default|0|2147483647||f|0
superuser_reserved_connections|3||postmaster|integer|default|0|262143||f|3
synchronous_commit|on||user|enum|default|||local,remote_write,remote_apply,on,off|f|on
TimeZone|Etc/UTC||user|string|configuration file||||f|Etc/UTC
unix_socket_permissions|0777||postmaster|integer|default|0|511||f|0777
vacuum_cost_delay|0|ms|user|real|default|0|100||f|0
wal_buffers|512|8kB|postmaster|integer|default|-1|262143||f|4MB
wal_compression|off||superuser|enum|default|||pglz,lz4,zstd,on,off|f|off
wal_level|replica||postmaster|enum|default|||minimal,replica,logical|f|replica
wal_segment_size|16777216|B|internal|integer|default|1048576|1073741824||f|16MB
work_mem|4096|kB|user|integer|default|64|2147483647||f|4MB
"""  # noqa: W291 - recorded
MAIN = "/etc/postgresql/15/main/postgresql.conf"
OURS = "/etc/postgresql/15/main/conf.d/60-hosttune-postgres.conf"
AUTO = "/var/lib/postgresql/15/main/postgresql.auto.conf"
WAITS = "setting could not be applied"
#: sourcefile|sourceline|name|setting|applied|error, by seqno
LINES = f"""\
{MAIN}|65|max_connections|100|f|
{MAIN}|127|shared_buffers|128MB|f|
{MAIN}|559|log_line_prefix|%m [%p] %q%u@%d |f|
{MAIN}|713|timezone|Etc/UTC|f|
"""
CONF = """\
data_directory = '/var/lib/postgresql/15/main'\t\t# use data in another directory
port = 5432
include_dir = 'conf.d'\t\t\t# include files ending in '.conf' from
"""
PID = (
    "55\n/var/lib/postgresql/15/main\n1795415791\n5433\n/var/run/postgresql\nlocalhost\n      145 0\nready\n"
)


class FakeServer(System):
    """A host with one cluster that says `settings` and `lines`; each reload is answered by `on_reload`."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.settings = {line.split("|")[0]: line.split("|") for line in SETTINGS.splitlines()}
        self.lines = [line.split("|") for line in LINES.splitlines()]
        #: name|value of dotted names without a library; role|database|name|value of pg_db_role_setting
        self.custom: list[list[str]] = []
        self.overrides: list[list[str]] = []
        self.calls: list[tuple[str, ...]] = []
        self.error = ""
        self.on_reload = lambda: None
        program = "/usr/lib/postgresql/15/bin/postgres"
        for name, text in ((MAIN, CONF), (program, ""), ("/var/lib/postgresql/15/main/postmaster.pid", PID)):
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True)
            path.write_text(text)

    def change(self, name: str, **columns: str) -> None:
        order = [
            "name",
            "setting",
            "unit",
            "context",
            "vartype",
            "source",
            "low",
            "high",
            "words",
            "pending",
            "shown",
        ]
        for column, value in columns.items():
            self.settings[name][order.index(column)] = value

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        self.calls.append(argv)
        assert argv[:6] == ("runuser", "-u", "postgres", "--", "env", "-i")
        assert "-p5433" in argv, "the port of the server that runs, not of the file"
        assert "-h/var/run/postgresql" in argv
        if self.error:
            return Ran(2, "", self.error)
        if "pg_reload_conf" in stdin:
            self.on_reload()
            return Ran(0, "t\n", "")
        # Nothing may be set in the session before it has read the server's own values.
        assert stdin.index("FROM pg_settings") < stdin.index("SET lc_messages")
        results = (
            ("S", self.settings.values()),
            ("F", self.lines),
            ("P", self.custom),
            ("O", self.overrides),
        )
        shown = ["\x1e".join("\x1f".join([mark, *row]) for row in rows) for mark, rows in results]
        return Ran(0, "".join(f"{one}\n" for one in shown if one), "")


@pytest.fixture
def server(tmp_path: Path) -> FakeServer:
    return FakeServer(tmp_path)


def setting(kind: PostgresKind, name: str, value: str, owner: str = "postgres") -> Setting:
    name = f"15/main/{name}"
    return Setting(owner, "postgres", name, kind.text(name, value))


def verdict(kind: PostgresKind, name: str, wanted: str) -> tuple[str, str]:
    name = f"15/main/{name}"
    return verdicts.judge(
        wanted,
        kind.read([name])[name],
        lambda a, b: kind.same(name, a, b),
        kind.managed_file("postgres", name),
    )


# planes


def test_live_is_what_show_prints_and_persisted_names_every_line(server: FakeServer) -> None:
    server.lines += [[OURS, "2", "shared_buffers", "2GB", "f", "setting could not be applied"]]
    server.change("shared_buffers", pending="t")
    kind = PostgresKind(server)
    planes = kind.read(["15/main/shared_buffers", "15/main/timezone"])
    buffers = planes["15/main/shared_buffers"]
    assert buffers.live == "128MB"
    assert [(one.value, one.file, one.line) for one in buffers.definitions] == [
        ("128MB", MAIN, 127),
        ("2GB", OURS, 2),
    ]
    assert buffers.needs == "restart"
    assert verdict(kind, "shared_buffers", "2GB")[0] == "pending_restart"
    # names are read without regard to case: pg_settings has TimeZone, the file timezone
    assert planes["15/main/timezone"].live == "Etc/UTC"
    assert len(planes["15/main/timezone"].definitions) == 1


def test_one_psql_for_all_parameters_of_a_cluster(server: FakeServer) -> None:
    PostgresKind(server).read([f"15/main/{name}" for name in server.settings])
    assert len(server.calls) == 1


def test_alter_system_is_found_and_named(server: FakeServer) -> None:
    server.lines += [[OURS, "2", "work_mem", "8MB", "f", ""], [AUTO, "3", "work_mem", "9MB", "t", ""]]
    server.change("work_mem", setting="9216", shown="9MB")
    found, reason = verdict(PostgresKind(server), "work_mem", "8MB")
    assert found == "drift"
    assert f"{AUTO}:3 says 9MB" in reason


def test_an_option_on_the_servers_command_line_wins(server: FakeServer) -> None:
    server.lines += [[OURS, "2", "work_mem", "8MB", "f", ""]]
    server.change("work_mem", setting="4096", shown="4MB", source="command line")
    found, reason = verdict(PostgresKind(server), "work_mem", "8MB")
    assert found == "drift"
    assert "command line" in reason


def test_a_value_of_the_session_is_not_the_servers(server: FakeServer) -> None:
    server.change("statement_timeout", setting="77", shown="77ms", source="user")
    found, reason = verdict(PostgresKind(server), "statement_timeout", "0")
    assert found == "unknown"
    assert "ALTER ROLE postgres RESET statement_timeout" in reason


def test_a_value_the_server_chooses_is_the_one_asked(server: FakeServer) -> None:
    server.lines += [[OURS, "2", "wal_buffers", "-1", "t", ""]]
    kind = PostgresKind(server)
    assert verdict(kind, "wal_buffers", "-1") == ("in_sync", "the server chose 4MB")
    assert verdict(kind, "wal_buffers", "16MB")[0] == "drift"


def test_what_a_change_will_need_is_known_before_it_is_made(server: FakeServer) -> None:
    kind = PostgresKind(server)
    for name, value, needs in (
        ("shared_buffers", "2GB", "restart"),
        ("max_connections", "100", "none"),
        ("work_mem", "8MB", "reload"),
        ("jit", "on", "none"),
    ):
        one = setting(kind, name, value)
        assert kind.read([one.name])[one.name].needs == needs, name


def test_an_extensions_parameter_is_there_after_a_restart(server: FakeServer) -> None:
    server.lines += [
        [OURS, "2", "pg_stat_statements.max", "5000", "t", ""],
        [OURS, "3", "shared_preload_libraries", "auto_explain, pg_stat_statements", "f", WAITS],
    ]
    server.custom += [["pg_stat_statements.max", "5000"]]
    kind = PostgresKind(server)
    kind.check([setting(kind, "pg_stat_statements.max", "5000")], {})
    assert verdict(kind, "pg_stat_statements.max", "5000")[0] == "pending_restart"


def test_servers_that_cannot_be_asked_are_unknown(server: FakeServer, tmp_path: Path) -> None:
    kind = PostgresKind(server)
    server.error = 'psql: error: FATAL:  role "postgres" does not exist\n'
    assert verdict(kind, "jit", "on") == (
        "unknown",
        'cluster 15/main does not answer: psql: error: FATAL: role "postgres" does not exist',
    )
    (tmp_path / "var/lib/postgresql/15/main/postmaster.pid").unlink()
    assert verdict(kind, "jit", "on") == ("unknown", "cluster 15/main is not running")
    assert kind.read(["16/main/jit"])["16/main/jit"].unknown == ("cluster 16/main does not exist")


# what stands beside the files


def trading(root: Path) -> None:
    for path, text in (
        (postgres.ORCHESTRATOR_UNIT, "[Service]\nUser=trader\n"),
        (postgres.ORCHESTRATOR_ENVIRONMENT, 'ORCHESTRATOR_DATABASE="host=/run dbname=trading"\n'),
    ):
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_the_most_special_override_of_the_orchestrator_decides(server: FakeServer, tmp_path: Path) -> None:
    trading(tmp_path)
    server.lines += [[OURS, "2", "work_mem", "8MB", "t", ""]]
    server.change("work_mem", setting="8192", shown="8MB")
    server.overrides += [
        ["trader", "trading", "work_mem", "3MB"],
        ["", "", "work_mem", "1MB"],
        ["trader", "", "sort_mem", "2MB"],
        ["clerk", "", "work_mem", "4MB"],
    ]
    kind = PostgresKind(server)
    assert verdict(kind, "work_mem", "8MB") == (
        "drift",
        "live is 3MB; ALTER ROLE trader IN DATABASE trading SET says 3MB",
    )
    planes = kind.read(["15/main/work_mem"])["15/main/work_mem"]
    assert [one.file for one in planes.definitions] == [
        OURS,
        "ALTER ROLE ALL SET",
        "ALTER ROLE trader SET",
        "ALTER ROLE trader IN DATABASE trading SET",
    ]
    assert [one.file for one in planes.partly] == ["ALTER ROLE clerk SET"]
    assert verdict(kind, "work_mem", "3072kB")[0] == "shadowed"
    assert "RESET work_mem" in kind.activate([Change("15/main/work_mem", "8MB")], [])["15/main/work_mem"]


def test_an_override_of_somebody_else_is_named(server: FakeServer) -> None:
    server.lines += [[OURS, "2", "work_mem", "8MB", "t", ""]]
    server.change("work_mem", setting="8192", shown="8MB")
    server.overrides += [["trader", "", "work_mem", "8192"]]
    kind = PostgresKind(server)
    assert verdict(kind, "work_mem", "8MB") == ("in_sync", "")
    server.overrides += [["", "books", "work_mem", "4MB"]]
    assert verdict(kind, "work_mem", "8MB") == ("shadowed", "right, but ALTER DATABASE books SET says 4MB")


def test_the_environment_of_the_server_stands_below_its_files(server: FakeServer) -> None:
    server.change("search_path", source="environment variable", shown="a")
    kind = PostgresKind(server)
    assert verdict(kind, "search_path", "b") == (
        "drift",
        "live is a; environment of the server says a",
    )
    server.lines += [[OURS, "2", "search_path", "b", "t", ""]]
    found, reason = verdict(kind, "search_path", "b")
    assert found == "live_drift"
    assert "has not read its files" in reason


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([MAIN, "9", "", "", "f", "syntax error"], f"{MAIN}:9 says: syntax error, so the server takes no"),
        (
            [MAIN, "9", "jitt", "1", "f", "unrecognized configuration parameter"],
            "parameter jitt, so the server",
        ),
        ([MAIN, "9", "work_mem", "1kB", "f", WAITS], f"{MAIN}:9 sets work_mem to a value that"),
        ([MAIN, "9", "max_connections", "lots", "f", WAITS], f"{MAIN}:9 sets max_connections to a value"),
        ([MAIN, "9", "max_connections", "200", "f", WAITS], ""),
        # a parameter that no file names any more
        (["", "", "", "", "f", 'parameter "port" cannot be changed without restarting the server'], ""),
    ],
)
def test_one_line_can_void_all_that_is_persisted(server: FakeServer, row: list[str], said: str) -> None:
    server.lines += [[OURS, "2", "jit", "on", "f", ""], row]
    found, reason = verdict(PostgresKind(server), "jit", "on")
    assert found == ("boot_bomb" if said else "in_sync")
    assert said in reason


def test_a_custom_parameter_is_any_text(server: FakeServer) -> None:
    server.lines += [[OURS, "2", "firm.desk", "rates", "t", ""]]
    kind = PostgresKind(server)
    one = setting(kind, "firm.desk", "rates")
    assert kind.read([one.name])[one.name].needs == "reload"
    server.custom += [["firm.desk", "rates"]]
    assert verdict(kind, "firm.desk", "rates")[0] == "in_sync"


def test_the_files_of_a_server_that_is_down_are_read(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "var/lib/postgresql/15/main/postmaster.pid").unlink()
    (tmp_path / AUTO.lstrip("/")).write_text("Work_Mem = 9MB\n")
    ours = tmp_path / OURS.lstrip("/")
    ours.parent.mkdir()
    ours.write_text("# ours\nwork_mem = '8MB'\n")
    planes = PostgresKind(server).read(["15/main/work_mem"])["15/main/work_mem"]
    assert planes.unknown == "cluster 15/main is not running"
    assert [(one.value, one.file, one.line) for one in planes.definitions] == [
        ("8MB", OURS, 2),
        ("9MB", AUTO, 1),
    ]


# values


def parameter(unit: str, vartype: str = "integer") -> Parameter:
    return Parameter("x", "", unit, "user", vartype, "default", "", "", (), False, "")


@given(st.integers(0, 2**10), st.sampled_from(["kB", "MB", "GB"]), st.sampled_from(["8kB", "kB"]))
def test_sizes_in_any_unit_are_the_same(number: int, unit: str, base: str) -> None:
    known = parameter(base)
    size = number * {"kB": 1024, "MB": 1024**2, "GB": 1024**3}[unit]
    page = {"8kB": 8192, "kB": 1024}[base]
    pages = round(size / page)
    assert canonical(known, f"{number}{unit}") == canonical(known, f" {number} {unit} ") == float(pages)
    assert canonical(known, f"{number}{unit}") == canonical(known, str(pages))
    assert canonical(known, str(pages)) != canonical(known, str(pages + 1))


@given(st.integers(0, 20), st.sampled_from(["ms", "s", "min", "h", "d"]), st.sampled_from(["ms", "s", "min"]))
def test_times_in_any_unit_are_the_same(number: int, unit: str, base: str) -> None:
    known = parameter(base)
    micro = {"ms": 10**3, "s": 10**6, "min": 6 * 10**7, "h": 36 * 10**8, "d": 864 * 10**8}
    expected = round(number * micro[unit] / micro[base])
    assert canonical(known, f"{number}{unit}") == canonical(known, str(expected))


@pytest.mark.parametrize(
    ("name", "wanted", "found"),
    [
        ("shared_buffers", "16384", "128MB"),
        ("work_mem", "0.5GB", "512MB"),
        ("checkpoint_timeout", "900", "15min"),
        ("vacuum_cost_delay", "0.5", "500us"),
        ("random_page_cost", "1.10", "1.1"),
        ("unix_socket_permissions", "0777", "511"),
        ("jit", "yes", "on"),
        ("jit", "F", "off"),
        ("synchronous_commit", "true", "on"),
        ("wal_compression", "on", "pglz"),
        ("wal_compression", "LZ4", "lz4"),
        ("search_path", "a,b", "a, b"),
        ("TimeZone", "etc/utc", "Etc/UTC"),
        ("work_mem", "30.1MB", "30822kB"),
        ("random_page_cost", "1.23456789", "1.23457"),
        ("wal_level", "hot_standby", "replica"),
        ("log_line_prefix", "%m ", "%m"),
    ],
)
def test_what_show_prints_is_what_was_asked(server: FakeServer, name: str, wanted: str, found: str) -> None:
    kind = PostgresKind(server)
    kind.read([f"15/main/{name}"])
    assert kind.same(f"15/main/{name}", wanted, found)
    # and the equality is not one that takes everything
    assert not kind.same(f"15/main/{name}", "7", found)
    assert not kind.same(f"15/main/{name}", "on" if found == "off" else "off", found)


def test_quoting_survives_the_servers_reading(server: FakeServer) -> None:
    kind = PostgresKind(server)
    rendered = kind.render(
        "postgres", [setting(kind, "log_line_prefix", "it's %m "), setting(kind, "work_mem", "8MB")]
    )
    assert list(rendered) == [OURS]
    assert rendered[OURS].content.decode().split("\n")[1:] == [
        "log_line_prefix = 'it''s %m '",  # the blank at its end counts and is kept
        "work_mem = '8MB'",
        "",
    ]
    assert quote("") == "''"
    assert quote("a\\b") == "'a\\\\b'"


# mistakes


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("a.b.c", "1", "is no name of a parameter"),
        ("sort_mem", "1MB", "Ask for work_mem"),
        ("shared_bufers", "1GB", "Did you mean shared_buffers?"),
        ("shared_buffers", "100kB", "Give 16 to 1073741823 in units of 8kB"),
        ("work_mem", "8M", "units here are B, kB, MB, GB, TB"),
        ("work_mem", "8", "out of range"),
        ("work_mem", "lots", "no number"),
        ("checkpoint_timeout", "2d", "out of range"),
        ("max_connections", "8 MB", "this parameter has none"),
        ("wal_compression", "lz5", "Values are pglz, lz4, zstd, on, off"),
        ("jit", "maybe", "Values are on and off"),
        ("segment_size", "1GB", "fixed in the server"),
        ("max_connections", "3", "the server would not start"),
        ("wal_level", "minimal", "the server would not start"),
        ("min_wal_size", "16MB", "Give 32MB or more"),
        ("shared_preload_libraries", "pg_stat_statments", "Did you mean pg_stat_statements?"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    server: FakeServer, tmp_path: Path, name: str, value: str, said: str
) -> None:
    libraries = tmp_path / "usr/lib/postgresql/15/lib"
    libraries.mkdir(parents=True)
    (libraries / "pg_stat_statements.so").touch()
    kind = PostgresKind(server)
    with pytest.raises(Refusal) as refusal:
        kind.check([setting(kind, name, value)], {})
    assert said in str(refusal.value)
    assert f"15/main/{name}" in str(refusal.value)


def test_values_that_go_together_pass(server: FakeServer) -> None:
    kind = PostgresKind(server)
    wanted = {"wal_level": "minimal", "max_wal_senders": "0", "shared_buffers": "2GB", "min_wal_size": "32MB"}
    kind.check([setting(kind, name, value) for name, value in wanted.items()], {})


def test_missing_clusters_and_files_nobody_includes(server: FakeServer, tmp_path: Path) -> None:
    kind = PostgresKind(server)
    other = Setting("postgres", "postgres", "16/main/jit", "off")
    with pytest.raises(Refusal, match="It has 15/main"):
        kind.check([other], {})
    kind.check([other], {"postgres": ["postgresql-16"]})
    with pytest.raises(Refusal, match="VERSION/CLUSTER/NAME"):
        kind.check([Setting("postgres", "postgres", "jit", "off")], {})
    (tmp_path / MAIN.lstrip("/")).write_text(CONF.replace("include_dir", "#include_dir"))
    with pytest.raises(Refusal, match=r"does not include conf\.d"):
        kind.check([setting(kind, "jit", "off")], {})


# the live plane


def test_a_reload_is_waited_for(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            server.change("work_mem", setting="8192", shown="8MB")

    monkeypatch.setattr(postgres.time, "sleep", nap)
    server.lines += [
        [OURS, "2", "work_mem", "8MB", "t", ""],
        [OURS, "3", "shared_buffers", "2GB", "f", "setting could not be applied"],
    ]
    server.change("shared_buffers", pending="t")
    failed = PostgresKind(server).activate([Change("15/main/work_mem", "8MB")], [OURS])
    # what waits for a restart is no failure of a reload
    assert failed == {}
    assert len(naps) == 3


def test_nothing_to_do_asks_nobody(server: FakeServer) -> None:
    assert PostgresKind(server).activate([], []) == {}
    assert server.calls == []


def test_alter_system_is_not_waited_for_and_its_remedy_is_said(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres.time, "sleep", lambda _seconds: pytest.fail("waited for what cannot come"))
    server.lines += [[OURS, "2", "work_mem", "8MB", "f", ""], [AUTO, "3", "work_mem", "9MB", "t", ""]]
    server.change("work_mem", setting="9216", shown="9MB")
    failed = PostgresKind(server).activate([Change("15/main/work_mem", "8MB")], [OURS])
    assert f"{AUTO}:3 decides" in failed["15/main/work_mem"]
    assert "ALTER SYSTEM RESET work_mem" in failed["15/main/work_mem"]


def test_what_the_server_holds_against_our_lines_is_a_failure(server: FakeServer) -> None:
    def refuse() -> None:
        server.lines += [[OURS, "2", "jit", "off", "f", "invalid value for parameter"]]

    server.on_reload = refuse
    failed = PostgresKind(server).activate([], [OURS])
    assert failed == {"15/main/jit": f"{OURS}:2: invalid value for parameter"}


def test_a_bad_line_elsewhere_that_blocks_all_is_named(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(postgres.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(postgres.time, "monotonic", lambda: next(clock))
    server.lines += [
        [OURS, "2", "work_mem", "8MB", "f", ""],
        [
            "/etc/postgresql/15/main/conf.d/99-hand.conf",
            "1",
            "nosuch",
            "1",
            "f",
            "unrecognized configuration parameter",
        ],
    ]
    failed = PostgresKind(server).activate([Change("15/main/work_mem", "8MB")], [OURS])
    assert "99-hand.conf:1 says: unrecognized configuration parameter" in failed["15/main/work_mem"]


def test_a_server_that_went_away_fails_every_change(server: FakeServer) -> None:
    server.error = "connection refused"
    failed = PostgresKind(server).activate(
        [Change("15/main/jit", "off"), Change("15/main/work_mem", "8MB")], [OURS]
    )
    assert set(failed) == {"15/main/jit", "15/main/work_mem"}
    assert "connection refused" in failed["15/main/jit"]
