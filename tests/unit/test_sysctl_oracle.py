"""Kind sysctl against systemd-sysctl itself: random trees of sysctl.d, in a root of their own.

It has no option for a root, so it runs in one with nothing but itself, its libraries and a /proc/sys of plain
files. Every line gives a value of its own, so that a value in force names the line that it came from; what
was overridden comes from its debug log.
"""

from __future__ import annotations

import os
import re
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import hosttune.kinds.sysctl as ours
import pytest
from hosttune.kinds.base import ordered_files
from hosttune.model import squeeze
from hosttune.system import System
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracle_trees import FOLDER, Comparison, Link, cases, clear, jail, mostly, need, need_root, put

COMPARISON = Comparison("sysctl, systemd-sysctl")
KEYS = ("vm/one", "vm/two", "vm/on^", "net/eth0.1/rp", "net/eth0/rp", "net/all/rp", "one")
FOLDERS = ("etc", "run", "usr/local", "usr/lib/sysctl.d", "lib/sysctl.d")
_LOGGED = re.compile(rb"Overwriting earlier assignment of (.*) at '/(.*):(\d+)'\.$")

#: `{}` is where a line's own value goes.
_PREFIXES = ("", "", "", "", "-", " ", "- ", "\t-", "--")
_LITERAL = (
    *("vm.one", "vm/one", "vm.one", "vm/one", "vm.two", "net.all.rp", "net.eth0/1.rp", "net/eth0.1/rp"),
    *("net.eth0.1.rp", "net/eth0/rp", "net.eth0.rp", "one", "/vm/one", "vm//one", "vm..one", "./vm/one"),
    *("/proc/sys/vm/one", "proc.sys.vm.one", "vm/./one", "vm/one/", "vm.none", ".vm.one", "VM.one", "vm.on^"),
    *("vm/../vm/one", "vm.one\xa0", "vm.one\x0b", "net/eth0/1/rp"),
)
_GLOBS = (
    *("vm.*", "vm/*", "vm.?ne", "vm/[ot]*", "vm.[!t]*", "vm/on[^e]", "net.*.rp", "net/*/rp", "*.one", "*"),
    *("net.eth0*.rp", "net/eth0?1/rp", "net.eth0/*.rp", "*/*/rp", "vm/\\one", "vm/o\\*", "vm.none*", "vm/[o"),
    *("/vm/*", "vm//*", "vm./*", "net/[a-e]*/rp"),
)
_VALUES = (
    "{}.....",
    "{}.....",
    " {}.....",
    "\t{}..... ",
    "= {}...",
    "{} # no",
    "{} ; x;",
    "{}  \xff\xff\xff",
    "x  y{}.",
)
_LINES = [
    *(
        f"{prefix}{key}{blank}={value}"
        for prefix in _PREFIXES
        for key in (*_LITERAL, *_LITERAL, *_GLOBS)
        for blank in ("", " ")
        for value in _VALUES
    ),
]
_OTHERS = [
    *(f"-{key}" for key in (*_LITERAL, *_GLOBS)),
    *("- vm.one", " -vm/one ", "-vm.one ", "-\tnet.all.rp", "-", "-=1", "=7", "", "vm.one", "# vm.one=9"),
    *(
        "; vm.one=9",
        "  # x",
        "vm.one\\",
        "vm.one=\\",
        "\xff",
        "vm.one = \xa0",
        "vm/one \xa0= {}.....",
        "vm.one=\0{}.....",
    ),
    *("# vm.one=1\rvm.two={}.....", "# x\0vm.two={}.....", "\x0cvm.one={}.....", "\ufeffvm.one={}....."),
]
lines = mostly(st.sampled_from(_LINES), st.sampled_from(_OTHERS), of=5)
files = st.tuples(
    st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\n\n"]),
    st.booleans(),
    st.lists(lines, min_size=1, max_size=5),
)
odd = st.sampled_from([FOLDER, Link("/dev/null"), Link("missing"), Link("a.conf"), Link("../other"), b""])
places = st.builds(
    "{}sysctl.d/{}".format,
    st.sampled_from(["etc/", "etc/", "run/", "usr/local/lib/", "usr/lib/", "lib/"]),
    st.sampled_from(
        [
            *(
                "60-hosttune-a.conf",
                "60-hosttune-a.conf",
                "99-z.conf",
                "10-b.conf",
                "50-default.conf",
                "a.conf",
            ),
            *(
                "B.conf",
                "\xe9.conf",
                "readme",
                "a.conf.bak",
                ".hidden.conf",
                "9.conf",
                "a-b.conf",
                "a.b.conf",
            ),
        ]
    ),
)
#: Debian 12 has etc/sysctl.d/99-sysctl.conf as a link to this one; Debian 13 has none, and nothing reads it.
classic = st.tuples(st.booleans(), files)
trees = st.tuples(st.dictionaries(places, mostly(files, odd), min_size=1, max_size=5), st.none() | classic)


def tree_of(drawn):
    """The drawn tree, each line with a value of its own of eight letters; now and then two share one.

    All are as long, since nothing truncates the plain file that is written twice.
    """
    count = 0
    tree = {"etc/other": b"vm.one=other000\n"}
    placed, old = drawn
    placed = dict(placed)
    if old is not None:
        linked, content = old
        placed["etc/sysctl.conf"] = content
        if linked:
            placed["etc/sysctl.d/99-sysctl.conf"] = Link("../sysctl.conf")
    for path, content in sorted(placed.items()):
        if not isinstance(content, tuple):
            tree[path] = content
            continue
        end, ended, texts = content
        made = []
        for text in texts:
            count += 1
            made.append(text.replace("{}", f"{count:03d}"))
        tree[path] = (end.join(made) + (end if ended else "")).encode("latin-1", "replace")
    return tree


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    need_root("sysctl.d is read as systemd-sysctl reads it only in a root of its own")
    binary = need("systemd-sysctl", "/usr/lib/systemd/systemd-sysctl", "/lib/systemd/systemd-sysctl")
    return jail(tmp_path_factory.mktemp("jail"), binary), binary


def materialise(folder: Path, tree) -> None:
    clear(folder, FOLDERS)
    for key in KEYS:
        path = f"{folder}/proc/sys/{key}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass
    put(folder, tree)


def truth(root, tree):
    """What systemd-sysctl makes of a tree: the value of each key, and which lines replaced another one."""
    folder, binary = root
    materialise(folder, tree)
    environment = {"SYSTEMD_LOG_LEVEL": "debug", "SYSTEMD_LOG_TARGET": "console"}
    ended = subprocess.run(
        ["chroot", str(folder), binary],
        capture_output=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert ended.returncode in (0, 1), ended.stderr
    replaced: dict[str, list[tuple[str, int]]] = {key: [] for key in KEYS}
    for line in ended.stderr.split(b"\n"):
        found = _LOGGED.search(line)
        if found:
            key, file, number = (one.decode("utf-8", "surrogateescape") for one in found.groups())
            replaced.setdefault(key, []).append((f"/{file}", int(number)))
    values = {}
    for key in KEYS:
        with open(f"{folder}/proc/sys/{key}", encoding="utf-8", errors="surrogateescape") as stream:
            values[key] = squeeze(stream.read())
    return values, replaced


def disagreements(folder: Path, answer) -> list[str]:
    """Where the resolver says something else of the tree below `folder` than `answer`."""
    values, replaced = answer
    kind = ours.SysctlKind(System(str(folder)))
    read = kind.read([ours.to_name(key) for key in KEYS])
    wrong = []
    for key in KEYS:
        planes = read[ours.to_name(key)]
        found = planes.winner.value if planes.winner else ""
        if found != values[key]:
            wrong.append(f"{key} is {found!r}, systemd-sysctl wrote {values[key]!r}")
        if not found:
            continue
        texts = {
            one.file: kind.system.read(one.file).replace("\0", "\n").split("\n") for one in planes.definitions
        }
        lines = [texts[one.file][one.line - 1] for one in planes.definitions]
        if any(one.value not in squeeze(line) for one, line in zip(planes.definitions, lines)):
            wrong.append(f"{key}: {planes.definitions} are not where they are said to be")
        if ours.is_glob(ours.to_path(lines[-1].partition("=")[0].strip(" -"))):
            continue  # the log names the pattern's replacements, not the key's
        wrong += overridden_wrongly(key, planes.definitions, replaced[key], kind)
    return wrong


def overridden_wrongly(key, definitions, logged, kind) -> list[str]:
    """Whether the lines that gave `key` its values are those that systemd-sysctl logged as replacing another.

    It logs neither the first line nor one that repeats the value; a `-key` starts the list anew.
    """
    excluding = [
        number
        for number, (file, line) in enumerate(logged)
        if "=" not in kind.system.read(file).replace("\0", "\n").split("\n")[line - 1]
    ]
    expected = logged[excluding[-1] + 1 :] if excluding else logged
    places = [
        (one.file, one.line)
        for before, one in zip([None, *definitions], definitions)
        if before is None or before.value != one.value
    ]
    fits = places == expected if excluding else places in (expected, [places[0], *expected])
    return [] if fits else [f"{key}: overridden {places}, systemd-sysctl logged {logged}"]


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


def conf(*texts):
    """A drawn tree of one file."""
    return {"etc/sysctl.d/a.conf": ("\n", True, list(texts))}, None


@settings(max_examples=cases(2000), deadline=None, suppress_health_check=SLOW)
@given(trees)
@example(conf("vm.*=1111", "vm/?ne=2222", "vm.*=1111"))
@example(conf("vm.*=1111", "vm/?ne=2222", "vm.*=3333"))
@example(conf("vm.*=1111", "-vm.*"))
@example(conf("vm.one=1111", "-vm.one", "vm.*=2222"))
@example(conf("vm.one=1111", "- vm.one"))
@example(conf("vm.one=1111", "#" + "x" * (ours.LONGEST_LINE - 2), "vm.two=2222"))
@example(conf("vm.one=1111", "#" + "x" * (ours.LONGEST_LINE - 1), "vm.two=2222"))
@example(conf("vm.one=1111", "vm.two=" + "\xff" * ours.LONGEST_LINE, "vm.one=2222"))
def test_persisted_truth_is_what_systemd_sysctl_writes(root, drawn):
    answer = truth(root, tree_of(drawn))
    COMPARISON.agree(disagreements(root[0], answer))


@pytest.fixture(scope="module")
def answered(root):
    """Trees with what systemd-sysctl makes of them, always the same ones."""
    found = []

    @settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=SLOW)
    @given(trees)
    def ask(drawn):
        tree = tree_of(drawn)
        found.append((tree, truth(root, tree)))

    ask()
    return found


def all_files(system, folders, suffix):
    return [
        f"{folder}/{name}" for folder in folders for name in system.names(folder) if name.endswith(suffix)
    ]


def without_masks(system, folders, suffix):
    return sorted(all_files(system, folders, suffix), key=os.path.basename)


def by_full_path(system, folders, suffix):
    return sorted(ordered_files(system, folders, suffix))


def hidden_too(system, folders, suffix):
    chosen = {os.path.basename(file): file for file in reversed(all_files(system, folders, suffix))}
    return [chosen[name] for name in sorted(chosen)]


def no_exclusions(text, right=ours.assignments):
    return (one for one in right(text) if one[2] is not None)


def dash_always_excludes(text):
    for number, line in enumerate(text.replace("\0", "\n").split("\n"), 1):
        for _one, path, value in ours_assignments(line):
            yield number, path, None if line.strip().startswith("-") else value


def python_blanks(text):
    for number, line in enumerate(text.split("\n"), 1):
        for _one, path, value in ours_assignments(line.strip()):
            yield number, path.strip(), value


ours_assignments = ours.assignments
persisted = ours.SysctlKind._persisted


def first_wins(self, paths):
    return {path: found[::-1] for path, found in persisted(self, paths).items()}


def globs_win(self, paths):
    found = persisted(self, paths)
    for file in ordered_files(self.system, ours.FOLDERS, ".conf"):
        for number, pattern, value in ours.assignments(self._text(file)):
            for path in found:
                if value is not None and ours.is_glob(pattern) and ours._path_match(path, pattern):
                    found[path].append(ours.Definition(squeeze(value), file, number))
    return found


def none_overridden(self, paths):
    return {path: found[-1:] for path, found in persisted(self, paths).items()}


FAULTS = {
    "masks ignored": (ours, "ordered_files", without_masks),
    "order by the full path": (ours, "ordered_files", by_full_path),
    "hidden files read": (ours, "ordered_files", hidden_too),
    "exclusions ignored": (ours, "assignments", no_exclusions),
    "a dash before an assignment excludes": (ours, "assignments", dash_always_excludes),
    "Python's idea of blanks": (ours, "assignments", python_blanks),
    "dots always separate": (ours, "to_path", lambda name: name.replace(".", "/")),
    "the first line wins": (ours.SysctlKind, "_persisted", first_wins),
    "a glob beats a literal key": (ours.SysctlKind, "_persisted", globs_win),
    "overridden lines forgotten": (ours.SysctlKind, "_persisted", none_overridden),
    "a star crosses slashes": (ours, "_path_match", lambda path, pattern: fnmatchcase(path, pattern)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees_a_fault_of_ours(fault, answered, tmp_path, monkeypatch):
    monkeypatch.setattr(*FAULTS[fault])

    def trial(number):
        tree, answer = answered[number]
        materialise(tmp_path, tree)
        return disagreements(tmp_path, answer)

    COMPARISON.catches(fault, trial, len(answered))
