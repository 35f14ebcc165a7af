"""Kind sysfs: what the kernel shows, and what tmpfiles.d will set at the next boot."""

import os
import subprocess
from dataclasses import replace

import hosttune.kinds.sysfs as ours
import pytest
from hosttune.kinds.sysfs import SysfsKind, Tmpfiles, braces, choices, chosen
from hosttune.model import Change, Refusal, Setting
from hosttune.system import System
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracle_trees import Comparison, cases, clear, need, put

COMPARISON = Comparison("sysfs, systemd-tmpfiles")
THP = "kernel/mm/transparent_hugepage/enabled"


def tree(root, files):
    for path, content in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
    return System(str(root))


def wish(name, value, **notes):
    return Setting("redis", "sysfs", name, value, notes=notes)


@pytest.fixture
def host(tmp_path):
    return tree(
        tmp_path,
        {
            f"/sys/{THP}": "always madvise [never]\n",
            "/sys/kernel/mm/transparent_hugepage/khugepaged/defrag": "1\n",
            "/sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
            "/sys/devices/system/cpu/cpufreq/policy0/scaling_available_governors": "performance schedutil \n",
            "/sys/bus/workqueue/devices/writeback/cpumask": "00000000,000000ff\n",
        },
    )


def test_the_bracketed_choice_is_the_value(host):
    planes = SysfsKind(host).read([THP, f"/sys/{THP}"])
    assert planes[THP].live == "never"
    assert planes[f"/sys/{THP}"].live == "never"
    assert choices("always madvise [never]") == ["always", "madvise", "never"]
    assert choices("12") == []
    assert chosen("[none]") == "none"
    assert chosen("a[b]c") == "a[b]c"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (THP, "nevr", "always, madvise, never"),
        ("kernel/mm/transparent_hugepage/khugepaged/defrag", "yes", "whole number"),
        ("devices/system/cpu/cpufreq/policy0/scaling_governor", "ondemand", "performance, schedutil"),
        ("kernel/mm/transparent_hugepages/enabled", "never", "Did you mean kernel/mm/transparent_hugepage?"),
        ("kernel/mm/transparent_hugepage", "never", "enabled"),
        ("kernel/mm/../mm/x", "never", "no path below"),
        ("kernel/mm/transparent_hugepage/*", "never", "no path below"),
    ],
)
def test_refuses(host, name, value, says):
    with pytest.raises(Refusal, match=r".") as caught:
        SysfsKind(host).check([wish(name, value)], {})
    assert says in str(caught.value)
    assert name in str(caught.value)


def test_refuses_two_spellings_of_one_attribute(host):
    with pytest.raises(Refusal, match="same as"):
        SysfsKind(host).check([wish(THP, "never"), wish(f"/sys/{THP}", "madvise")], {})


def test_an_absent_feature_is_unsupported_and_no_mistake(tmp_path):
    system = tree(tmp_path, {"/sys/kernel/mm/x": ""})
    kind = SysfsKind(system)
    kind.check([wish(THP, "never")], {})
    assert "CONFIG_TRANSPARENT_HUGEPAGE" in kind.read([THP])[THP].unsupported


def test_a_container_reads_and_never_sets(host, tmp_path):
    tree(tmp_path, {"/run/systemd/container": "systemd-nspawn\n"})
    kind = SysfsKind(host)
    kind.check([wish("kernel/no/such", "1")], {})
    planes = kind.read([THP])[THP]
    assert planes.live == "never"
    assert planes.unsupported == "kernel shared with the machine"


def test_read_only_attributes_are_unsupported(host):
    os.chmod(host.path(f"/sys/{THP}"), 0o444)
    assert "read-only" in SysfsKind(host).read([THP])[THP].unsupported


def test_same_knows_numbers_and_masks(host):
    kind = SysfsKind(host)
    mask = "bus/workqueue/devices/writeback/cpumask"
    assert kind.same(mask, "ff", "00000000,000000ff")
    assert not kind.same(mask, "fe", "00000000,000000ff")
    assert kind.same("x/defrag", "0", "00")
    assert not kind.same("x/defrag", "ff", "0ff")


def test_activation_writes_and_says_what_the_kernel_refused(host):
    failed = SysfsKind(host).activate([Change(THP, "madvise"), Change("kernel/mm/none", "1")], [])
    assert host.read(f"/sys/{THP}").startswith("madvise\n")
    assert list(failed) == ["kernel/mm/none"]
    assert "'1'" in failed["kernel/mm/none"]


def test_the_rendered_file_decides_what_the_parser_says(host, tmp_path):
    kind = SysfsKind(host)
    odd = "50% of \\x41"
    wanted = [wish(f"/sys/{THP}", "never"), wish("kernel/mm/transparent_hugepage/khugepaged/defrag", odd)]
    ((path, image),) = kind.render("redis", wanted).items()
    assert path == kind.managed_file("redis", THP) == "/etc/tmpfiles.d/60-hosttune-redis.conf"
    assert image.content.startswith(b"# Managed by hosttune")
    assert f"w /sys/{THP} - - - - never\n" in image.content.decode()
    tree(tmp_path, {path: image.content.decode()})
    for one in wanted:
        winner = kind.read([one.name])[one.name].winner
        assert (winner.value, winner.file) == (one.value, path)


def test_the_first_of_two_files_wins_and_the_other_is_named(host, tmp_path):
    tree(
        tmp_path,
        {
            "/etc/tmpfiles.d/60-hosttune-redis.conf": f"# x\nw /sys/{THP} - - - - never\n",
            "/usr/lib/tmpfiles.d/99-thp.conf": f"w /sys/{THP} - - - - always\n",
        },
    )
    planes = SysfsKind(host).read([THP])[THP]
    assert (planes.winner.value, planes.winner.line) == ("never", 2)
    assert [(one.value, one.file) for one in planes.overridden] == [
        ("always", "/usr/lib/tmpfiles.d/99-thp.conf")
    ]


def test_masked_files_say_nothing(host, tmp_path):
    tree(tmp_path, {"/usr/lib/tmpfiles.d/a.conf": f"w /sys/{THP} - - - - always\n"})
    assert SysfsKind(host).read([THP])[THP].winner
    (tmp_path / "etc/tmpfiles.d").mkdir(parents=True)
    (tmp_path / "etc/tmpfiles.d/a.conf").symlink_to("/dev/null")
    assert SysfsKind(host).read([THP])[THP].winner is None


def test_truncating_lines_come_before_all_others(host, tmp_path):
    # As systemd-tmpfiles 252 does it; a FIFO cannot be truncated, so the property below leaves them out.
    text = f"w /sys/{THP} - - - - never\nf+ /sys/{THP} - - - - always\nF /sys/{THP} - - - - madvise\n"
    tree(tmp_path, {"/etc/tmpfiles.d/a.conf": text})
    values = [one.value for one in SysfsKind(host).read([THP])[THP].definitions]
    assert values == ["madvise", "always", "never"]


def test_every_alternative_of_braces_counts(host, tmp_path):
    tree(tmp_path, {"/etc/tmpfiles.d/a.conf": f"w /sys/{{nothing,{THP}}} - - - - never\n"})
    assert SysfsKind(host).read([THP])[THP].winner.value == "never"


def test_braces():
    assert braces("/a{b,c}d{1,2}") == ["/abd1", "/abd2", "/acd1", "/acd2"]
    assert braces("/a{b") == ["/a{b"]


lines = st.builds(
    "{} {} {} - - - {}".format,
    st.sampled_from(["w", "w", "w", "w+", "w!", "w-", "w+!", "x", "z", "f", "q", "w%"]),
    st.sampled_from(
        [
            "/sys/a/x",
            "/sys/a/x",
            "/sys//a/x/",
            "/sys/a/./x",
            '"/sys/a/x"',
            "/sys/a/\\x78",
            "/sys/a/[x]",
            "/sys/?/x",
            "/sys/a/*",
            "/sys/{a,b}/x",
            "/sys/b/x",
            "/sys/a/../a/x",
            "/sys/link/x",
            "/sys/a/%%x",
        ]
    ),
    st.sampled_from(["-", "-", "0644", "0600", "99"]),
    st.sampled_from(["A;", "A;", "B;", "C  c;", '"D";', "%%;", "\\x45;", "-", ""]),
)
names = st.sampled_from(
    [
        "etc/tmpfiles.d/60-hosttune-a.conf",
        "run/tmpfiles.d/10-b.conf",
        "usr/lib/tmpfiles.d/60-hosttune-a.conf",
        "usr/lib/tmpfiles.d/thp.conf",
        "usr/local/lib/tmpfiles.d/70-c.conf",
        "etc/tmpfiles.d/readme.txt",
    ]
)


trees = st.dictionaries(names, st.lists(lines, min_size=1, max_size=4), min_size=1, max_size=4)


def materialise(folder, files):
    clear(folder, ["etc", "run", "usr", "sys"])
    for path in ("sys/a", "sys/b"):
        os.makedirs(f"{folder}/{path}")
    os.symlink("a", f"{folder}/sys/link")
    # A FIFO in the attribute's place keeps every write in its order, as a regular file would not.
    os.mkfifo(f"{folder}/sys/a/x")
    put(folder, {path: ("\n".join(text) + "\n").encode() for path, text in files.items()})


def truth(folder, files):
    """What systemd-tmpfiles writes to /sys/a/x, in its order."""
    program = need("tmpfiles.d is read as systemd reads it", "systemd-tmpfiles")
    materialise(folder, files)
    reader = os.open(f"{folder}/sys/a/x", os.O_RDONLY | os.O_NONBLOCK)
    try:
        argv = [program, f"--root={folder}", "--create", "--boot"]
        subprocess.run(argv, capture_output=True, check=False, timeout=60)
        try:
            written = os.read(reader, 65536).decode()
        except BlockingIOError:
            written = ""
    finally:
        os.close(reader)
    return [" ".join(one.split()) for one in written.split(";") if one]


def disagreements(folder, writes):
    # "/sys/a/x" was read through the FIFO's own path, so links and globs must be followed here too.
    found = [one.value.rstrip(";") for one in Tmpfiles(System(str(folder))).definitions("/sys/a/x")]
    if found[len(found) - len(writes) :] == writes and bool(found) == bool(writes):
        return []
    return [f"we say {found}, systemd-tmpfiles wrote {writes}"]


SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tmpfiles")


@settings(max_examples=cases(400), deadline=None, suppress_health_check=SLOW)
@given(trees)
@example(
    {
        "etc/tmpfiles.d/60-hosttune-a.conf": ["w /sys/a/x - - - - %%;"],
        "run/tmpfiles.d/10-b.conf": ["x /sys/a/x - - - - %%;"],
    }
)
def test_persisted_truth_is_what_systemd_tmpfiles_writes(folder, files):
    writes = truth(folder, files)
    COMPARISON.agree(disagreements(folder, writes))


@pytest.fixture(scope="module")
def answered(folder):
    found = []

    @settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=SLOW)
    @given(trees)
    def ask(files):
        found.append((files, truth(folder, files)))

    ask()
    return found


parse = ours.parse
ordered_files = ours.ordered_files
definitions = Tmpfiles.definitions


def never_appends(text, file, number):
    line = parse(text, file, number)
    return line and replace(line, append=False)


def owns_nothing(text, file, number):
    line = parse(text, file, number)
    return line and replace(line, owns=False)


def without_masks(system, folders, suffix):
    found = [
        f"{folder}/{name}" for folder in folders for name in system.names(folder) if name.endswith(suffix)
    ]
    return sorted(found, key=os.path.basename)


FAULTS = {
    "masks ignored": (ours, "ordered_files", without_masks),
    "files from last to first": (ours, "ordered_files", lambda *asked: ordered_files(*asked)[::-1]),
    "the last line wins": (Tmpfiles, "definitions", lambda self, path: definitions(self, path)[::-1]),
    "w+ is w": (ours, "parse", never_appends),
    "every line counts": (ours, "parse", owns_nothing),
    "braces are letters": (ours, "braces", lambda pattern: [pattern]),
    "escapes stay": (ours, "_unescape", lambda text: text),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees_a_fault_of_ours(fault, answered, tmp_path, monkeypatch):
    monkeypatch.setattr(*FAULTS[fault])

    def trial(number):
        files, writes = answered[number]
        materialise(tmp_path, files)
        return disagreements(tmp_path, writes)

    COMPARISON.catches(fault, trial, len(answered))
