"""The configuration files and values of PostgreSQL as the engine reads them, against a server."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosttune import pgconf, pgvalues
from hosttune.kinds.postgres import Cluster
from hosttune.pgconf import Line
from hosttune.pgvalues import Parameter
from hosttune.system import System

TREES, VALUES, VALUES_AT_START = 300, 4000, 300
BASE = "/var/tmp/hosttune-pg"  # noqa: S108 - on a test host
#: Errors that only a server can know.
OF_THE_SERVER = ("setting could not be applied", "unrecognized configuration parameter")

#: Names with texts that the server takes.
GOOD = {
    "work_mem": ["64", "8MB", "'9 MB'", "'0.5GB'", "0x100", "'010MB'", "12MB"],
    "maintenance_work_mem": ["64MB", "65536", "'1GB'"],
    "sort_mem": ["5MB", "777"],
    "lock_timeout": ["5s", "'5 min'", "300000", "0"],
    "random_page_cost": ["1.1", "4", "1.5e0", "'2.25'"],
    "seq_page_cost": [".5", "1.", "'1e1'"],
    "checkpoint_timeout": ["15min", "'900s'", "1h"],
    "jit": ["on", "off", "yes", "'f'", "TRUE", "0"],
    "log_min_messages": ["warning", "'ERROR'", "debug"],
    "log_line_prefix": ["'%m [%p] '", "'it''s \\'\\\\ x'", "'\\101\\tb#c'", "'a, b,c '", "plain", "''"],
    "search_path": ["a", "'a, \"$user\"'", "'public'"],
    "TimeZone": ["UTC", "'europe/berlin'", "Etc/UTC", "'Asia/Tokyo'"],
    "max_connections": ["100", "50", "100", "100"],
    "hosttune.tree": ["1", "'two words'", "true", "a-b.c:d/e"],
    "hosttune.größe": ["1"],
}
#: Whole lines that the server refuses, some of them though a person might write them.
BAD = [
    "work_mem = 8 MB",
    "work_mem = 0.5GB",
    "work_mem = 'open",
    "work_mem == 8MB",
    "work_mem =",
    "work_mem",
    "= 8MB",
    "work_mem = 8MB extra",
    "work_mem = 1kB",
    "work_mem = lots",
    "work_mem = 8M",
    "work_mem = '30 TB'",
    "jit = maybe",
    "log_min_messages = loud",
    "max_connections = many",
    "max_connections = 0",
    "-- SELECT 1",
    "; a comment elsewhere",
    "nosuch = 1",
    "work_memory = 8MB",
    "a.b.c = 1",
    "hosttune.$x = 1",
    "segment_size = 1GB",
    "include 'missing.conf'",
    "include_dir = 'missing.d'",
    "include ''",
    "include_dir '  '",
    "include 'etc'",
    "include 'postgresql.conf'",
]


class Generator:
    """A random tree: postgresql.conf, what it includes, conf.d and postgresql.auto.conf."""

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)  # noqa: S311
        self.tree: dict[str, str | None] = {}
        self.faulty = self.random.random() < 0.4

    def cased(self, name: str) -> str:
        return self.random.choice([name, name, name, name.upper(), name.title(), name.lower()])

    def setting(self) -> str:
        name = self.random.choice(list(GOOD))
        between = self.random.choice([" = ", "=", " ", "\t=  "])
        if "." in name or name != "TimeZone":
            between = between.replace("=  ", "= ")
        after = self.random.choice(["", "", "  ", " # why", "\t#'", "\r", " #"])
        before = self.random.choice(["", "", " ", "\t"])
        return f"{before}{self.cased(name)}{between}{self.random.choice(GOOD[name])}{after}"

    def text(self, includes: list[str]) -> str:
        lines = [self.setting() for _ in range(self.random.randint(0, 5))]
        lines += self.random.choices(["", "# nothing", "#work_mem = 1GB", "   "], k=self.random.randint(0, 2))
        lines += includes
        if self.faulty and self.random.random() < 0.3:
            lines.append(self.random.choice(BAD))
        self.random.shuffle(lines)
        end = self.random.choice(["\n", "\n", "\n", "\r\n"])
        return end.join(lines) + self.random.choice(["\n", "\n", ""])

    def make(self) -> dict[str, str | None]:
        pick = self.random
        includes = []
        for name in pick.sample(["a.conf", "b.conf", "sub/c.conf"], pick.randint(0, 2)):
            nested = [self.directive("include_if_exists", pick.choice(["missing.conf", "../etc/d.conf"]))]
            self.tree[f"etc/{name}"] = self.text(nested if pick.random() < 0.4 else [])
            includes.append(self.directive(pick.choice(["include", "include_if_exists"]), name))
        if pick.random() < 0.3:
            self.tree["etc/d.conf"] = self.text([])
        if pick.random() < 0.1:
            self.deep(pick.randint(8, 12))
            includes.append("include 'deep0.conf'")
        if pick.random() < 0.9:
            folder = pick.choice(["conf.d", "conf.d/", f"{BASE}/etc/conf.d"])
            includes.append(self.directive("include_dir", folder))
        names = ["01-a.conf", "10-b.conf", "9-c.conf", "B.conf", "a.conf", "ä.conf", "_.conf", "a-b.conf"]
        ignored = [".hidden.conf", "a.conf.bak", "a.config", ".conf", "readme", "a.CONF"]
        for name in pick.sample(names, pick.randint(0, 5)) + pick.sample(ignored, pick.randint(0, 2)):
            self.tree[f"etc/conf.d/{name}"] = self.text([])
        if pick.random() < 0.2:
            self.tree["etc/conf.d/folder.conf/x.conf"] = self.text([])
        if self.faulty and pick.random() < 0.1:
            self.tree["etc/conf.d/gone.conf"] = None
        if pick.random() < 0.6:
            self.tree["data/postgresql.auto.conf"] = self.text([])
        self.tree["etc/postgresql.conf"] = self.text(includes)
        return self.tree

    def directive(self, name: str, value: str) -> str:
        return f"{self.cased(name)}{self.random.choice([' = ', ' '])}'{value}'"

    def deep(self, levels: int) -> None:
        for level in range(levels):
            following = [f"include 'deep{level + 1}.conf'"] if level + 1 < levels else []
            self.tree[f"etc/deep{level}.conf"] = self.text(following)


@pytest.fixture(scope="module")
def trees() -> list[dict[str, str | None]]:
    return [Generator(number).make() for number in range(TREES)]


@pytest.fixture(scope="module")
def oracle(machine: Any) -> Any:
    """Asks a throw-away server (postgres_oracle.py states the shapes)."""
    program = (Path(__file__).parent / "postgres_oracle.py").read_text()
    return lambda **asked: machine.python(program, asked)


@pytest.fixture(scope="module")
def said(oracle: Any, trees: list[dict[str, str | None]]) -> dict[str, Any]:
    """What the server says of all trees."""
    return oracle(trees=trees)


@pytest.fixture(scope="module")
def roots(trees: list[dict[str, str | None]], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same trees here, each below a root of its own."""
    found = []
    for number, tree in enumerate(trees):
        root = tmp_path_factory.mktemp(f"tree{number}")
        (root / f"{BASE}/etc/conf.d".lstrip("/")).mkdir(parents=True)
        for path, text in tree.items():
            full = root / f"{BASE}/{path}".lstrip("/")
            full.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                full.symlink_to("/nonexistent")
            else:
                full.write_bytes(text.encode())
        found.append(root)
    return found


def parameters(said: dict[str, Any]) -> dict[str, Parameter]:
    return {
        row[0].lower(): Parameter(*row[:8], words=tuple(row[8] or ()), pending=row[9], shown=row[10])
        for row in said["parameters"]
    }


def disagreements(said: dict[str, Any], roots: list[Path]) -> Iterator[str]:
    """Where the engine and the server read a tree differently."""
    known = parameters(said)
    for number, (root, answer) in enumerate(zip(roots, said["trees"])):
        files = pgconf.resolve(System(str(root)), f"{BASE}/etc/postgresql.conf", f"{BASE}/data")
        ours = [(one.file, one.line, one.name, one.value, one.error) for one in files.lines]
        theirs = [(*row[:4], "" if row[5] in OF_THE_SERVER else row[5]) for row in answer["rows"]]
        if ours != theirs:
            yield f"tree {number}: we read\n{ours}\nthe server\n{theirs}"
        cluster = Cluster(parameters=known, lines=[Line(*row) for row in answer["rows"]])
        if bool(cluster.broken) == answer["starts"]:
            yield f"tree {number}: broken is '{cluster.broken}', starts {answer['starts']}: {theirs}"
        if not answer["starts"]:
            continue
        for name, (setting, file, line) in answer["winners"].items():
            defined = pgconf.definitions(files.lines, name)
            if not defined or (defined[-1].file, defined[-1].line) != (file, line):
                yield f"tree {number}: {name} is decided by {file}:{line}, not by {defined[-1:]}"
            elif not pgvalues.same(known[name.lower()], defined[-1].value, setting):
                yield f"tree {number}: {name} is {setting}, not {defined[-1]}"
        for name in known:
            waits = known[name].context == "postmaster" or name in map(str.lower, answer["winners"])
            if pgconf.definitions(files.lines, name) and not waits:
                yield f"tree {number}: {name} is decided by no file"
        memory = pgconf.definitions(files.lines, "work_mem")
        if not pgvalues.same(known["work_mem"], memory[-1].value if memory else "4MB", answer["work_mem"]):
            yield f"tree {number}: postgres -C work_mem says {answer['work_mem']}, not {memory[-1:]}"


def test_trees_are_read_as_the_server_reads_them(
    said: dict[str, Any], roots: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    starting = sum(answer["starts"] for answer in said["trees"])
    lines = sum(len(answer["rows"]) for answer in said["trees"])
    errors = {row[5].split(' "')[0] for answer in said["trees"] for row in answer["rows"]} - {""}
    with capsys.disabled():
        print(
            f"\n{len(roots)} trees with {lines} lines compared with pg_file_settings, {starting} of them "
            f"with postgres -C and a reload; {len(errors)} kinds of errors: {', '.join(sorted(errors))}"
        )
    assert len(roots) >= 200
    assert 0.4 * len(roots) < starting < 0.9 * len(roots)
    assert len(errors) >= 7
    wrong = list(disagreements(said, roots))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "fault", ["first wins", "auto.conf first", "reversed", "hidden", "case", "old names", "relative"]
)
def test_the_comparison_catches_a_wrong_reader(
    said: dict[str, Any], roots: list[Path], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    definitions, resolve = pgconf.definitions, pgconf.resolve

    def auto_conf_first(*arguments: Any) -> pgconf.Files:
        files = resolve(*arguments)
        files.lines.sort(key=lambda one: not one.file.endswith(".auto.conf"))
        return files

    if fault == "first wins":
        monkeypatch.setattr(pgconf, "definitions", lambda *given: definitions(*given)[::-1])
    elif fault == "auto.conf first":
        monkeypatch.setattr(pgconf, "resolve", auto_conf_first)
    elif fault == "reversed":
        monkeypatch.setattr(
            pgconf, "sorted", lambda names, key: sorted(names, key=key, reverse=True), raising=False
        )
    elif fault == "hidden":
        monkeypatch.setattr(pgconf, "_counts", lambda name: name.endswith(".conf"))
    elif fault == "case":
        monkeypatch.setattr(
            pgconf, "definitions", lambda lines, name: [one for one in lines if one.name == name]
        )
    elif fault == "old names":
        monkeypatch.setattr(pgconf, "OLD_NAMES", {})
    else:
        monkeypatch.setattr(pgconf, "_absolute", lambda name, caller: os.path.normpath(f"{BASE}/data/{name}"))
    assert list(disagreements(said, roots))


# values

#: What the server decides by more than the text: the system's limits, the socket, the session's state.
NOT_BY_TEXT = {
    "autovacuum_work_mem",  # a little is raised to 1MB
    "bonjour",  # not built in
    "effective_io_concurrency",
    "huge_page_size",
    "maintenance_io_concurrency",
    "max_stack_depth",
    "recovery_prefetch",
    "role",
    "seed",
    "session_replication_role",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "tcp_keepalives_count",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_user_timeout",
    "temp_buffers",
    "transaction_deferrable",
    "transaction_isolation",
    "transaction_read_only",
    "zero_damaged_pages",
}
UNITS = ["", "", "B", "kB", "MB", "GB", "TB", "us", "ms", "s", "min", "h", "d", "8kB", "M", "mb", "sec"]
WORDS = [
    "on",
    "off",
    "true",
    "t",
    "tr",
    "yes",
    "y",
    "1",
    "false",
    "fal",
    "no",
    "n",
    "0",
    "of",
    "o",
    "TRUE",
    "",
]
WORDS += ["debug", "archive", "hot_standby", "2", "maybe"]
STRINGS = {
    "TimeZone": ["UTC", "utc", "europe/berlin", "Europe/Berlin", "nowhere/land"],
    "DateStyle": ["iso, mdy", "ISO,MDY", "ISO, MDY"],
    "application_name": ["a,b", "a, b", "A"],
}


def number(pick: random.Random) -> str:
    digits = pick.choice(
        [
            str(pick.randint(0, 20)),
            str(pick.randint(0, 10**6)),
            str(pick.randint(0, 2**33)),
            f"{pick.uniform(0, 100):.{pick.randint(1, 7)}f}",
            f"{pick.randint(0, 300)}.5",
            f"{pick.randint(1, 9)}e{pick.randint(-3, 6)}",
            f"0{pick.randint(0, 99)}",
            hex(pick.randint(0, 5000)),
            f".{pick.randint(0, 999)}",
        ]
    )
    return pick.choice(["", "", "", "", "-", "+"]) + digits + pick.choice(["", "", " "])


def text_of(pick: random.Random, known: Parameter) -> str:
    if known.vartype in ("integer", "real"):
        return number(pick) + pick.choice(UNITS)
    word = pick.choice([*WORDS, *known.words])
    return pick.choice([word, word.upper(), word.title()])


def test_values_are_the_same_where_the_server_says_so(
    oracle: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    known = parameters(oracle())
    pick = random.Random(15)  # noqa: S311
    usable = [
        one for one in known.values()
        if one.vartype != "string" and one.context != "internal" and one.name not in NOT_BY_TEXT
    ]  # fmt: skip
    in_session = [one for one in usable if one.context in ("user", "superuser")]
    at_start = [one for one in usable if one.context in ("sighup", "postmaster")]
    cases = [(one.name, text_of(pick, one)) for one in pick.choices(in_session, k=VALUES)]
    cases += [(one.name, text_of(pick, one)) for one in pick.choices(at_start, k=VALUES_AT_START)]
    cases += [(one.name, word) for one in in_session if one.vartype == "enum" for word in WORDS]
    cases += [(name, text) for name, texts in STRINGS.items() for text in texts]
    answers = oracle(values=cases)["values"]
    wrong = []
    taken: dict[str, list[tuple[str, str]]] = {}
    for (name, text), answer in zip(cases, answers):
        one = known[name.lower()]
        try:
            pgvalues.check(one, text)
        except ValueError as error:
            if answer:
                wrong.append(f"{name} = '{text}' is taken as {answer}, we say: {error}")
            continue
        if not answer:
            if one.vartype != "string":
                wrong.append(f"{name} = '{text}' is refused, we take it as {pgvalues.canonical(one, text)}")
            continue
        taken.setdefault(name, []).append((text, answer[0]))
        wrong += [
            f"{name} = '{text}' reads back {shown}, which we take for another value"
            for shown in answer
            if shown is not None and not pgvalues.same(one, text, shown)
        ]
    pairs = 0
    for name, values in taken.items():
        for text, setting in values:
            for other, its in values:
                pairs += 1
                if (setting == its) != pgvalues.same(known[name.lower()], text, other):
                    wrong.append(f"{name}: '{text}' is {setting}, '{other}' is {its}")
    with capsys.disabled():
        print(
            f"\n{len(cases)} values of {len({name for name, _ in cases})} parameters, "
            f"{sum(map(len, taken.values()))} of them taken by the server; {pairs} pairs compared"
        )
    assert len(taken) > 150
    assert not wrong, "\n".join(wrong)
