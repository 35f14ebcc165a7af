"""The trial boot against GRUB's own programs: grub-mkconfig, its scripts in /etc/grub.d, grub-editenv.

Debian's packages are unpacked, and their scripts are pointed at a root of our own; what only a machine can
answer (grub-probe) is played.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hosttune import grub, grubenv, isolation, trial
from hosttune.kinds.boot import BootKind
from hosttune.system import Ran, System
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle_trees import Comparison, absent, cases
from trial_host import TrialHost

TOOL = Path(__file__).parents[2] / "tools/unpacked-program"
EDITENV = Comparison("grub-editenv")
LINE = Comparison("grub-mkconfig (trial)")
PROBE = """#!/bin/sh
case "$*" in
*--target=device*) echo /dev/sda1 ;;
*--target=fs_uuid*) echo 8cfc3bb5-d867-450f-bcc1-b7036bc7a48f ;;
*--target=fs*) echo ext2 ;;
*--target=partmap*) echo gpt ;;
esac
"""


def unpacked(package, program):
    found = subprocess.run([str(TOOL), package, program], capture_output=True, text=True, check=False)
    if found.returncode:
        absent(found.stderr)
    return Path(found.stdout.strip()) / os.path.basename(program)


@pytest.fixture(scope="module")
def editenv():
    return unpacked("grub-common", "usr/bin/grub-editenv")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A root with GRUB's scripts, which look nowhere else."""
    root = tmp_path_factory.mktemp("grub")
    common = unpacked("grub-common", "usr/bin/grub-script-check").parents[2]
    for source, place in (
        (common / "usr/sbin/grub-mkconfig", "usr/sbin/grub-mkconfig"),
        (common / "usr/share/grub/grub-mkconfig_lib", "usr/share/grub/grub-mkconfig_lib"),
        *(
            (common / f"etc/grub.d/{name}", f"etc/grub.d/{name}")
            for name in ("00_header", "10_linux", "41_custom")
        ),
    ):
        target = root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text().replace('"/usr', f'"{root}/usr').replace('"/etc"', f'"{root}/etc"')
        target.write_text(text.replace(" /boot/", f" {root}/boot/"))
        target.chmod(0o755)
    (root / "usr/bin").mkdir()
    for name in ("grub-script-check", "grub-editenv", "grub-file", "grub-mkrelpath"):
        (root / f"usr/bin/{name}").symlink_to(common / f"usr/bin/{name}")
    (root / "usr/sbin/grub-probe").write_text(PROBE)
    (root / "usr/sbin/grub-probe").chmod(0o755)
    return root


class RealHost(TrialHost):
    """A host whose update-grub is GRUB's own grub-mkconfig."""

    programs: Path

    def __init__(self, root, programs):
        self.programs = programs
        System.__init__(self, str(root))
        self.folder = root
        for version in ("6.1.0-1", "6.1.0-2"):
            self.put(f"/boot/vmlinuz-{version}-amd64", "kernel")
            self.put(f"/boot/initrd.img-{version}-amd64", "initrd")
        self.put(grub.MENU, "")
        super().__init__(root)

    def update(self, path=None):
        """Runs grub-mkconfig on this host's /etc/default and /boot."""
        for name in ("default", "boot"):
            link = self.programs / ("etc/default" if name == "default" else "boot")
            if link.is_symlink():
                link.unlink()
            link.symlink_to(self.path("/etc/default" if name == "default" else "/boot"))
        target = self.path(path or grub.MENU)
        script = f"{shlex.quote(str(self.programs))}/usr/sbin/grub-mkconfig -o {shlex.quote(target)}"
        environment = {"PATH": os.environ["PATH"], "LANG": "C", "DPKG_MAINTSCRIPT_NAME": ""}
        ended = subprocess.run(
            ["sh", "-c", script], capture_output=True, text=True, env=environment, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended

    def run(self, *argv, stdin="", timeout=120.0):
        if argv[0] == "grub-script-check":
            program = self.programs / "usr/bin/grub-script-check"
            ended = subprocess.run([program, argv[1]], capture_output=True, text=True, check=False)
            return Ran(ended.returncode, ended.stdout, ended.stderr)
        return super().run(*argv, stdin=stdin, timeout=timeout)

    def again(self):
        found = super().again()
        found.programs = self.programs
        return found


@pytest.fixture(autouse=True)
def as_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda *_args: None)
    # A host of files alone has no CPUs: which ones may be isolated is asked in test_isolation.py.
    monkeypatch.setattr(isolation, "check", lambda _settings, _system: [])


def test_debians_menu_takes_a_one_time_entry_whatever_its_default(tmp_path, programs):
    """Why GRUB_DEFAULT=saved is asked for all the same: docs/operations.md."""
    host = RealHost(tmp_path / "host", programs)
    text = host.read(grub.MENU)
    assert 'set default="0"' in text
    kind = BootKind(host)
    assert not kind._is_saved()
    trial.refuse_impossible(host, grub.read_menu(host))
    host.put("/etc/default/grub", "GRUB_DEFAULT=saved\n")
    host.update()
    assert kind._is_saved()


def test_a_whole_trial_with_grubs_own_menu(tmp_path, programs):
    host = RealHost(tmp_path / "host", programs)
    menu, old = host.read(grub.MENU), host.boots()
    report, found = host.apply()
    assert report.failures == []
    assert {one.verdict for one in found.values()} == {"pending_reboot"}
    tried = host.boots()
    assert tried.startswith(old.replace(" quiet", " isolcpus=2-3 skew_tick=1 quiet panic=10 hosttune.trial="))
    assert host.boots() == old
    report, _found = host.apply(mode="none")
    assert report.failures == []
    assert host.boots() == tried.partition(" panic=10")[0]
    host.apply({}, "none", present=False)
    assert host.read(grub.MENU) == menu


_value = st.text("ab1 ,=:;#$*?{}|&<>()!%@~-", min_size=1, max_size=8).map(lambda text: " ".join(text.split()))
_values = _value.filter(lambda text: text and "${" not in text)
_lines = st.sampled_from(["quiet", "", 'quiet splash=\\"a b\\"', "console=tty0 x='1 2'", "  a   b "])


@settings(max_examples=cases(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    line=_lines,
    more=_lines,
    values=st.dictionaries(st.sampled_from(["alpha", "console", "dyndbg"]), _values, min_size=1),
    default=st.sampled_from(["", "gnulinux-advanced-8cfc3bb5-d867-450f-bcc1-b7036bc7a48f>2"]),
)
def test_what_is_tried_is_what_grub_mkconfig_will_make(
    tmp_path_factory, programs, line, more, values, default
):
    host = RealHost(tmp_path_factory.mktemp("host"), programs)
    texts = [f'GRUB_CMDLINE_LINUX_DEFAULT="{line}"', f'GRUB_CMDLINE_LINUX="{more}"', "GRUB_DEFAULT=saved"]
    host.put("/etc/default/grub", "\n".join([*texts, "GRUB_SAVEDEFAULT=true", ""]))
    host.update()
    grubenv.write(host, {"saved_entry": default})
    host.boots()
    owners = {"cpu": {"boot": values}}
    report, _found = host.apply(owners)
    assert report.failures == []
    assert "savedefault" not in host.read(grub.CUSTOM)
    tried = host.boots()
    host.apply(owners, "none")
    lasting = host.boots()
    plain = tried.rpartition(" panic=10 hosttune.trial=")[0]
    LINE.agree([] if plain == lasting else [f"tried   {tried}\nlasting {lasting}"])


_text = st.text("ab=#\\ \n'\"$\u00e9", max_size=12)
_changes = st.lists(
    st.tuples(st.sampled_from(["next_entry", "saved_entry", "next", "x"]), st.none() | _text), max_size=8
)


@settings(max_examples=cases(100), deadline=None)
@given(_changes)
def test_the_block_is_what_grub_editenv_makes(editenv, tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("env")
    theirs, host = folder / "theirs", TrialHost.at(folder)
    subprocess.run([editenv, theirs, "create"], check=True)
    host.put(grubenv.PATH, theirs.read_text())
    about = os.stat(host.path(grubenv.PATH))
    for name, value in changes:
        words = ["unset", name] if value is None else ["set", f"{name}={value}"]
        subprocess.run([editenv, theirs, *words], check=True, capture_output=True)
        grubenv.write(host, {name: value})
    after = os.stat(host.path(grubenv.PATH))
    assert (after.st_ino, after.st_size) == (about.st_ino, 1024)
    ours = host.read(grubenv.PATH)
    EDITENV.agree(
        [] if ours == theirs.read_text() else [f"{changes}: {ours!r} is not {theirs.read_text()!r}"]
    )
