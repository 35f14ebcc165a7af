"""Kind mount against systemd-fstab-generator: random tables, and the mount units that it makes of them.

Each line has an option of its own (`commit=N`), so that a unit's options name the line that they came from.
"""

from __future__ import annotations

import os
import re
import subprocess

import hosttune.kinds.mount as ours
import pytest
from hosttune import systemd
from hosttune.model import squeeze
from hosttune.system import System
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle_trees import Comparison, Link, cases, clear, jail, mostly, need, need_root, put

COMPARISON = Comparison("mount, systemd-fstab-generator")
GENERATOR = "/lib/systemd/system-generators/systemd-fstab-generator"
#: No folder of these is on any machine: the generator follows links of the machine that it runs on.
POINTS = (
    *("/hta", "/hta", "/hta", "/htb", "/hta/", "//hta", "/./hta", "/hta//x", "/ht\\040b", "/ht\\011c"),
    *(
        "/ht\\134d",
        "/ht\\\\d",
        "/ht\\043e",
        "/ht\\054e",
        "/htf%x",
        "/ht-g",
        "/.hth",
        "/hta#b",
        "/ht\xc3\xa9i",
    ),
    *("hta", "none", "/hta/../htb", "/htj/..", "\\057hta", "/ht\x0bk", "/ht:_.l"),
)
#: Every mount point of the lines above, plain.
PLAIN = (
    *("/hta", "/htb", "/hta/x", "/ht b", "/ht\tc", "/ht\\d", "/ht\\043e", "/ht#e", "/ht\\054e", "/ht,e"),
    *("/htf%x", "/ht-g", "/.hth", "/hta#b", "/ht\xe9i", "/ht\x0bk", "/ht:_.l"),
)
tails = st.sampled_from(
    [
        *3 * ["ext4 {}", "xfs noatime,{} 0 2", "auto {},nofail 0 0 # mine", "ext4\tnoauto,{},noatime\t0 0"],
        *("swap {}", "swap sw,{} 0 0", "swap\t{}"),
        *("ext4 {}\r", "ext4", "", "ext4 #{}", "ext4 {} 0 0 more words", "xfs x-systemd.x,{}  "),
    ]
)
entries = st.builds(
    "{}{}{}{}{}{}".format,
    st.sampled_from(["", "", "", "", " ", "\t", "#", " #"]),
    st.sampled_from(["/dev/sda1", "UUID=1", "LABEL=x", "tmpfs", "server:/x", "none", "/dev/a#b"]),
    st.sampled_from([" ", " ", "\t", " \t  "]),
    st.sampled_from(POINTS),
    st.sampled_from([" ", " ", "\t"]),
    tails,
)
tables = st.lists(
    mostly(entries, st.sampled_from(["", "# x", "\t", "x", "\x0b"])),
    min_size=1,
    max_size=7,
)


def table(drawn) -> bytes:
    return "\n".join(line.replace("{}", f"commit={number:03d}") for number, line in enumerate(drawn)).encode(
        "latin-1"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fstab")


def materialise(folder, content: bytes) -> None:
    clear(folder, ["etc", "n"])
    put(folder, {"etc/fstab": content})


def truth(folder, content: bytes):
    """Mount point -> the options of the unit that the generator made of it."""
    generator = need("fstab is read as systemd reads it", GENERATOR, f"/usr{GENERATOR}")
    materialise(folder, content)
    os.mkdir(folder / "n")
    environment = {"SYSTEMD_FSTAB": str(folder / "etc/fstab"), "SYSTEMD_PROC_CMDLINE": ""}
    argv = [generator, *3 * [str(folder / "n")]]
    ended = subprocess.run(
        argv, env={**os.environ, **environment}, capture_output=True, check=False, timeout=60
    )
    assert ended.returncode in (0, 1), ended.stderr
    found = {}
    for unit in (folder / "n").glob("*.mount"):
        point = {systemd.escape_path(point): point for point in PLAIN}[unit.stem]
        options = re.search(rb"^Options=(.*)$", unit.read_bytes(), re.MULTILINE)
        found[point] = options.group(1).decode("utf-8", "replace").rstrip("\r") if options else ""
    return found


def disagreements(folder, answer) -> list[str]:
    kind = ours.MountKind(System(str(folder)))
    lines = kind.system.read("/etc/fstab").split("\n")
    wrong = []
    for point in PLAIN:
        (winner, *_others) = [*kind._definitions(point, kind._fstab())[::-1], None]
        found = None if winner is None else _own(winner.value)
        expected = _own(answer[point]) if point in answer else None
        if found != expected:
            wrong.append(f"{point} has {winner}, systemd-fstab-generator says {answer.get(point)}")
        elif found and found != f"commit={winner.line - 1:03d}":
            wrong.append(f"{point} comes from line {winner.line}: {lines[winner.line - 1]!r}")
    return wrong


def _own(options: str) -> str:
    """The option that names the line, empty where the line ended before its options."""
    found = re.search(r"commit=\d+", options)
    return found.group() if found else ""


@settings(max_examples=cases(500), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables)
def test_the_first_line_of_fstab_is_what_systemd_mounts(folder, drawn):
    answer = truth(folder, table(drawn))
    COMPARISON.agree(disagreements(folder, answer))


@pytest.fixture(scope="module")
def answered(folder):
    found = []

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(tables)
    def ask(drawn):
        found.append((table(drawn), truth(folder, table(drawn))))

    ask()
    return found


fstab = ours.MountKind._fstab


FAULTS = {
    "the last line wins": (ours.MountKind, "_fstab", lambda self: fstab(self)[::-1]),
    "comments count": (ours, "_is_comment", lambda word: False),
    "escapes stay": (ours, "_FSTAB_ESCAPE", re.compile("(?!)")),
    "every octal escape counts": (ours, "_FSTAB_ESCAPE", re.compile(r"\\([0-7]{3}|\\)")),
    "lines without options are none": (
        ours.MountKind,
        "_fstab",
        lambda self: [line for line in fstab(self) if line.options],
    ),
    "swap is mounted": (ours, "NOT_MOUNTED", frozenset()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees_a_fault_of_ours(fault, answered, tmp_path, monkeypatch):
    monkeypatch.setattr(*FAULTS[fault])

    def trial(number):
        content, answer = answered[number]
        materialise(tmp_path, content)
        return disagreements(tmp_path, answer)

    COMPARISON.catches(fault, trial, len(answered))


def test_a_path_becomes_the_name_that_systemd_escape_gives():
    escape = need("mount points are named as systemd names them", "systemd-escape")
    points = ["/", *PLAIN]
    said = subprocess.run([escape, "--path", "--", *points], capture_output=True, check=True).stdout
    assert [systemd.escape_path(point) for point in points] == said.decode().split()


# mount units beside fstab

UNITS = Comparison("mount, systemd's unit loader")
UNIT_POINTS = {"/hta": "hta.mount", "/htb": "htb.mount", "/ht b": "ht\\x20b.mount"}
unit_places = st.builds(
    "{}/{}".format,
    st.sampled_from(
        [
            *("etc/systemd/system", "etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system"),
            *("usr/local/lib/systemd/system", "run/systemd/transient", "etc/systemd/system.control"),
        ]
    ),
    st.sampled_from(
        [
            *(
                *UNIT_POINTS.values(),
                "hta.mount",
                "hta.mount.d/a.conf",
                "hta.mount.d/b.conf",
                "htb.mount.d/a.conf",
            ),
            *("ht\\x20b.mount.d/c.conf", "mount.d/m.conf", "hta.mount.d/x.txt"),
        ]
    ),
)
unit_texts = st.sampled_from(
    [
        *3 * ["[Mount]\nOptions={}\n"],
        *(
            "[Mount]\nOptions=x\nOptions={}\n",
            "[Mount]\n",
            "[Unit]\nOptions={}\n",
            "[Mount]\nOptions={},\\\n y\n",
        ),
        *("[Mount]\n# Options=z\nOptions = {}\n", "", "[Mount]\nOptions={}\nOptions=\n"),
    ]
)
unit_trees = st.tuples(
    st.dictionaries(unit_places, mostly(unit_texts, st.just(Link("/dev/null"))), max_size=5),
    st.lists(
        st.sampled_from(["/dev/x /hta ext4 {}", "/dev/x /htb xfs {}", "/dev/x /ht\\040b ext4 {}"]), max_size=4
    ),
)


def unit_tree(drawn):
    of_units, lines = drawn
    tree = {"etc/fstab": "\n".join(text.replace("{}", f"f{n}") for n, text in enumerate(lines)).encode()}
    points = {unit: point for point, unit in UNIT_POINTS.items()}
    for number, (path, text) in enumerate(sorted(of_units.items())):
        if isinstance(text, str):
            point = points.get(os.path.basename(path))
            head = f"[Mount]\nWhat=/dev/x\nWhere={point}\n" if point and text else ""
            text = (head + text.replace("{}", f"u{number}")).encode()
        tree[path] = text
    return tree


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    """A root with systemd-analyze, and the order in which it searches units, generated ones among them."""
    need_root("units are loaded as systemd loads them only in a root of their own")
    program = need("mount units are loaded as systemd loads them", "systemd-analyze")
    root = jail(tmp_path_factory.mktemp("units"), program)
    said = analyze(root, "--generators=yes")
    listed = said.partition("(higher priority first):\n")[2].split("\n")
    order = []
    for line in listed:
        if not line.startswith("\t"):
            break
        order.append(re.sub(r"^/tmp/systemd-temporary-[^/]*", "/run/systemd", line.strip()))
    assert "/run/systemd/generator" in order
    return root, ":".join(order)


def analyze(root, *options, path=""):
    environment = {"SYSTEMD_LOG_LEVEL": "debug", **({"SYSTEMD_UNIT_PATH": path} if path else {})}
    for folder in ("tmp", "etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    argv = ["chroot", str(root), "systemd-analyze", "verify", "--man=no", *options, *UNIT_POINTS.values()]
    ended = subprocess.run(
        argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60
    )
    return ended.stdout + ended.stderr


def loaded(loader, tree):
    """Mount point -> the options of the unit that systemd loads for it; none where it loads none."""
    root, path = loader
    clear(root, ["etc", "run", "usr/lib/systemd/system", "usr/local"])
    put(root, tree)
    generated = root / "run/systemd/generator"
    generated.mkdir(parents=True)
    generator = need("fstab is read as systemd reads it", GENERATOR, f"/usr{GENERATOR}")
    environment = {"SYSTEMD_FSTAB": str(root / "etc/fstab"), "SYSTEMD_PROC_CMDLINE": ""}
    argv = [generator, *3 * [str(generated)]]
    subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, check=False, timeout=60)
    found = {}
    for block in analyze(root, path=path).split("-> Unit ")[1:]:
        unit = block.partition(":\n")[0]
        options = re.search(r"^\t\tOptions: (.*)$", block, re.MULTILINE)
        points = [point for point, name in UNIT_POINTS.items() if name == unit]
        if points and "\t\tFragment Path:" in block:
            found[points[0]] = squeeze(options.group(1).replace("n/a", "")) if options else ""
    return found


def wrongly_loaded(root, found) -> list[str]:
    kind = ours.MountKind(System(str(root)))
    wrong = []
    for point in UNIT_POINTS:
        (winner, *_others) = [*kind._definitions(point, kind._fstab())[::-1], None]
        mine = None if winner is None or winner.value == ours.MASKED else winner.value
        if mine != found.get(point):
            wrong.append(f"{point} has {winner}, systemd loads {found.get(point)!r}")
    return wrong


@settings(max_examples=cases(200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(unit_trees)
def test_a_mount_has_the_options_of_the_unit_that_systemd_loads(loader, drawn):
    found = loaded(loader, unit_tree(drawn))
    UNITS.agree(wrongly_loaded(loader[0], found))


@pytest.fixture(scope="module")
def units_answered(loader):
    found = []

    @settings(max_examples=80, deadline=None, derandomize=True, database=None)
    @given(unit_trees)
    def ask(drawn):
        tree = unit_tree(drawn)
        found.append((tree, loaded(loader, tree)))

    ask()
    return found


definitions = ours.MountKind._definitions


def fstab_beats_all(self, point, lines):
    found = definitions(self, point, lines)
    return sorted(found, key=lambda one: one.file == ours.FSTAB)


def units_beat_fstab(self, point, lines):
    found = definitions(self, point, lines)
    return sorted(found, key=lambda one: one.file != ours.FSTAB)


UNIT_FAULTS = {
    "fstab beats every unit": (ours.MountKind, "_definitions", fstab_beats_all),
    "every unit beats fstab": (ours.MountKind, "_definitions", units_beat_fstab),
    "drop-ins do not count": (systemd, "dropins", lambda system, unit: []),
    "masks do not count": (systemd, "is_masked", lambda system, file: False),
    "blanks stay in names": (systemd, "escape_path", lambda path: path.strip("/").replace("/", "-")),
}


@pytest.mark.parametrize("fault", UNIT_FAULTS)
def test_the_unit_comparison_sees_a_fault_of_ours(fault, units_answered, tmp_path, monkeypatch):
    monkeypatch.setattr(*UNIT_FAULTS[fault])

    def trial(number):
        tree, found = units_answered[number]
        clear(tmp_path, ["etc", "run", "usr"])
        put(tmp_path, tree)
        return wrongly_loaded(tmp_path, found)

    UNITS.catches(fault, trial, len(units_answered))
