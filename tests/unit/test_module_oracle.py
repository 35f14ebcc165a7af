"""Kind module against systemd-modules-load and modprobe: random trees, in a root with empty modules.

systemd-modules-load logs what it loads, which no kernel takes; modprobe -n -v -b says whether it would load a
module, run a command in its place, or do nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import hosttune.kinds.module as ours
import pytest
from hosttune.system import System
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle_trees import FOLDER, Comparison, Link, absent, cases, clear, jail, mostly, need, need_root, put

LOADING = Comparison("module, systemd-modules-load")
DENYING = Comparison("module, modprobe")
RELEASE = "6.1.0-test"
MODULES = ("hta", "ht_b", "htc")
FOLDERS = ("etc", "run", "usr/local/lib", "usr/lib/modules-load.d", "usr/lib/modprobe.d", "proc")

names = st.sampled_from(["hta", "hta", "ht_b", "ht-b", "htc", "htd", "HTA"])
loads = mostly(
    st.builds(
        "{}{}{}".format, st.sampled_from(["", "", " ", "\t"]), names, st.sampled_from(["", "", " ", "\r"])
    ),
    st.sampled_from(["# hta", "; hta", "", "hta option=1", "hta # x", "#", "hta htc", "-hta"]),
    of=4,
)
denials = mostly(
    st.builds(
        "{}{} {}{}".format,
        st.sampled_from(["", "", "", " ", "\t"]),
        st.sampled_from(["blacklist", "blacklist", "install", "install", "install", "remove"]),
        st.sampled_from(["hta", "hta", "ht_b", "ht-b", "htc", "ht*", "ht?", "*", "h[st]a"]),
        st.sampled_from(
            [
                *(
                    "",
                    " /bin/false",
                    " /bin/false",
                    " /bin/true",
                    " /usr/bin/true",
                    "\t/bin/false # no",
                    " false",
                ),
                *(" /sbin/modprobe --ignore-install x", " /bin/true && echo", " \\\n /bin/false"),
            ]
        ),
    ),
    st.sampled_from(
        [
            *(
                "# blacklist hta",
                "",
                "blacklist",
                "blacklist \\\nhta",
                "blacklist hta \\",
                "#\\\nblacklist htc",
            ),
            *("options hta x=1", "options htc x=1", "softdep hta pre: nothing"),
        ]
    ),
    of=6,
)
contents = {"modules-load.d": loads, "modprobe.d": denials}
odd = st.sampled_from([FOLDER, Link("/dev/null"), Link("missing"), b""])


def folder_of(kind):
    """Files of one of the two families: place -> lines."""
    places = st.builds(
        f"{{}}{kind}/{{}}".format,
        st.sampled_from(["etc/", "etc/", "run/", "usr/local/lib/", "usr/lib/"]),
        st.sampled_from(
            ["60-hosttune-a.conf", "60-hosttune-a.conf", "a.conf", "99-z.conf", ".h.conf", "x.txt"]
        ),
    )
    files = st.lists(contents[kind], min_size=1, max_size=4)
    return st.dictionaries(places, mostly(files, odd) if kind == "modules-load.d" else files, max_size=3)


words = st.sampled_from(
    [
        *(
            "quiet",
            "modules_load=hta,ht-b",
            "modules-load=htc",
            "modprobe.blacklist=hta",
            "modprobe.blacklist=ht-b,htc",
        ),
        *("rd.modules_load=hta", "modules_load=", "modprobe.blacklist="),
    ]
)
trees = st.tuples(
    folder_of("modules-load.d"),
    folder_of("modprobe.d"),
    st.lists(words, max_size=2),
    st.none() | st.lists(loads, max_size=2),
)


def tree_of(drawn):
    of_loads, of_denials, command_line, modules = drawn
    tree = {"proc/cmdline": " ".join(["ro", *command_line]).encode() + b"\n"}
    for path, content in {**of_loads, **of_denials}.items():
        tree[path] = "\n".join([*content, ""]).encode() if isinstance(content, list) else content
    if modules is not None:  # Debian's link
        tree["etc/modules"] = "\n".join([*modules, ""]).encode()
        tree["etc/modules-load.d/modules.conf"] = Link("../modules")
    return tree


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    need_root("modules are loaded as systemd loads them only in a root of its own")
    loader = need(
        "systemd-modules-load", "/usr/lib/systemd/systemd-modules-load", "/lib/systemd/systemd-modules-load"
    )
    tool = Path(__file__).parents[2] / "tools/unpacked-program"
    found = subprocess.run([str(tool), "kmod", "bin/kmod"], capture_output=True, text=True, check=False)
    if found.returncode:
        absent(found.stderr)
    kmod = f"{found.stdout.strip()}/kmod"
    folder = jail(tmp_path_factory.mktemp("jail"), loader, kmod)
    for name in ("modprobe", "depmod"):
        shutil.copy(kmod, folder / name)  # it asks its own name what to do
    (folder / "lib").mkdir(exist_ok=True)
    (folder / "lib/modprobe.d").symlink_to("../usr/lib/modprobe.d")
    put(folder, {f"lib/modules/{RELEASE}/kernel/{name}.ko": b"" for name in ("hta", "ht-b", "htc")})
    # It complains of empty modules and lists them all the same.
    subprocess.run(["chroot", str(folder), "/depmod", RELEASE], capture_output=True, check=False, timeout=60)
    assert "hta.ko:" in (folder / f"lib/modules/{RELEASE}/modules.dep").read_text()
    return folder, loader


def materialise(folder, tree) -> None:
    clear(folder, FOLDERS)
    put(folder, tree)


def truth(root, tree):
    """Module -> the files that load it; and module -> what modprobe would do, None where it would load it."""
    folder, loader = root
    materialise(folder, tree)
    environment = {"SYSTEMD_LOG_LEVEL": "debug", "SYSTEMD_LOG_TARGET": "console", "SYSTEMD_PROC_CMDLINE": ""}
    environment["SYSTEMD_PROC_CMDLINE"] = tree["proc/cmdline"].decode().strip()
    argv = ["chroot", str(folder), loader]
    said = subprocess.run(
        argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60
    )
    file, loading = ours.CMDLINE, {module: [] for module in MODULES}
    for line in said.stderr.split("\n"):
        word, _colon, rest = line.partition(": ")
        if word == "apply":
            file = rest
        elif word == "Loading module" and ours.normal(rest) in loading:
            loading[ours.normal(rest)].append(file)
    denied = {}
    for module in MODULES:
        argv = ["chroot", str(folder), "/modprobe", "-S", RELEASE, "-n", "-v", "-b", module]
        ended = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        lines = [
            line
            for line in ended.stdout.split("\n")
            if not line.startswith("insmod") or module in ours.normal(line)
        ]
        text = "\n".join(lines).strip()
        denied[module] = None if text.startswith("insmod") else text.removeprefix("install ").strip()
    return loading, denied


def wrong_loads(folder, loading) -> list[str]:
    read = ours.ModuleKind(System(str(folder))).read(MODULES)
    wrong = []
    for module, files in loading.items():
        found = [one.file for one in read[module].definitions if one.value == "loaded"]
        if sorted(found) != sorted(files):
            wrong.append(f"{module} is loaded by {found}, systemd-modules-load says {files}")
    return wrong


def wrong_denials(folder, denied) -> list[str]:
    read = ours.ModuleKind(System(str(folder))).read(MODULES)
    wrong = []
    for module, does in denied.items():
        found = [one for one in read[module].definitions if one.value == "unloaded"]
        prevented = does is not None and (
            not does or bool(re.match(r"((/usr)?/bin/)?(true|false)\s*(#.*)?(x=1 *)*$", does))
        )
        if bool(found) != prevented:
            wrong.append(f"{module} is denied by {found}, modprobe would do {does!r}")
    return wrong


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


@settings(max_examples=cases(300), deadline=None, suppress_health_check=SLOW)
@given(trees)
def test_what_is_loaded_and_denied_at_boot(root, drawn):
    loading, denied = truth(root, tree_of(drawn))
    LOADING.agree(wrong_loads(root[0], loading))
    DENYING.agree(wrong_denials(root[0], denied))


@pytest.fixture(scope="module")
def answered(root):
    found = []

    @settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=SLOW)
    @given(trees)
    def ask(drawn):
        tree = tree_of(drawn)
        found.append((tree, *truth(root, tree)))

    ask()
    return found


ordered_files = ours.ordered_files


def without_masks(system, folders, suffix):
    return [
        f"{folder}/{name}"
        for folder in folders[:-1]
        for name in system.names(folder)
        if name.endswith(suffix)
    ]


def any_install(configured, module):
    return [
        (rest, file, number)
        for word, name, rest, file, number in configured
        if word == "install" and rest and fnmatchcase(module, ours.normal(name))
    ][::-1]


FAULTS = {
    "masks ignored": (LOADING, (ours, "ordered_files", without_masks)),
    "a dash is no underscore": (LOADING, (ours, "normal", lambda name: name)),
    "the command line does not count": (LOADING, (ours.ModuleKind, "_command_line", lambda self: [])),
    "the last install line wins": (DENYING, (ours.ModuleKind, "_installs", staticmethod(any_install))),
    "no install line denies": (DENYING, (ours, "_NO_INSTALL", re.compile("(?!)"))),
    "modprobe.d in one folder": (DENYING, (ours, "DENY_FOLDERS", ("/etc/modprobe.d",))),
    "whatever begins with true does nothing": (
        DENYING,
        (ours, "_NO_INSTALL", re.compile("(/usr)?(/bin/)?(true|false)")),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees_a_fault_of_ours(fault, answered, tmp_path, monkeypatch):
    comparison, patch = FAULTS[fault]
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/modprobe.d").symlink_to("../usr/lib/modprobe.d")

    def trial(number):
        tree, loading, denied = answered[number]
        materialise(tmp_path, tree)
        return wrong_loads(tmp_path, loading) if comparison is LOADING else wrong_denials(tmp_path, denied)

    monkeypatch.setattr(*patch)
    comparison.catches(fault, trial, len(answered))
