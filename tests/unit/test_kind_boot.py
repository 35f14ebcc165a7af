"""Kind boot: the kernel command line, from the menu that GRUB reads and the files that it is made from."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hosttune import cmdline, dangers, engine, grub, grubenv, isolation
from hosttune.cmdline import to_values
from hosttune.kinds.boot import BootKind, effective
from hosttune.model import Refusal, Setting
from hosttune.shell_source import Unfollowed
from hosttune.system import Ran, System
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

ROOT = "root=UUID=8cfc3bb5-d867-450f-bcc1-b7036bc7a48f"
DEFAULT = """
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="DEFAULT"
fi
"""
MINE = "/etc/default/grub.d/60-hosttune-cpu.cfg"


def entry(title, name, line, indent=""):
    return (
        f"{indent}menuentry '{title}' --class debian --class os $menuentry_id_option '{name}' {{\n"
        f"{indent}\tload_video\n"
        f"{indent}\tif [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi\n"
        f"{indent}\tif [ x$feature_platform_search_hint = xy ]; then\n{indent}\t  search --set=root x\n"
        f"{indent}\telse\n{indent}\t  search --set=root y\n{indent}\tfi\n"
        f"{indent}\tlinux\t{line}\n{indent}\tinitrd\t/boot/initrd.img\n{indent}}}\n"
    )


def menu(arguments, default="0", recovery="", kernels=("6.1.0-2", "6.1.0-1")):
    """A grub.cfg as Debian's templates lay it out."""
    text = DEFAULT.replace("DEFAULT", default)
    text += "function load_video {\n  if [ x$all = xy ]; then\n    insmod all_video\n  fi\n}\n"
    text += entry(
        "Debian GNU/Linux", "gnulinux-simple-x", f"/boot/vmlinuz-{kernels[0]} {ROOT} ro {arguments}"
    )
    text += "submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-x' {\n"
    for kernel in kernels:
        for kind, words in (("advanced", arguments), ("recovery", f"single {recovery}")):
            title = f"Debian GNU/Linux, with Linux {kernel}{' (recovery mode)' * (kind == 'recovery')}"
            line = f"/boot/vmlinuz-{kernel} {ROOT} ro {words}"
            text += entry(title, f"gnulinux-{kernel}-{kind}-x", line, "\t")
    return text + "}\n"


class Host(System):
    """A fake root whose update-grub is played by sh itself and the menu above."""

    def __init__(self, root):
        super().__init__(str(root))
        self.folder, self.ran, self.answer = root, [], Ran(0, "", "")
        self.put("/proc/cmdline", f"BOOT_IMAGE=/boot/vmlinuz-6.1.0-2 {ROOT} ro quiet\n")
        self.put("/proc/1/environ", "")
        self.put("/usr/sbin/update-grub", "")
        self.put("/etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX=""\n')
        self.put("/var/lib/.keep", "")
        (root / "bin").mkdir()
        (root / "bin/sh").symlink_to("dash")
        self.made = menu
        self.update()

    def put(self, path, text):
        target = self.folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def sourced(self):
        files = " ".join(shlex.quote(self.path(file)) for file in grub.source_files(self))
        script = f'set -e; for f in {files}; do . "$f"; done; '
        script += 'printf %s "$GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT"'
        return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout

    def update(self, path=None):
        self.put(path or grub.MENU, self.made(self.sourced()))

    def boot(self):
        """What the next boot makes of /proc/cmdline."""
        chosen = grub.read_menu(self).default.linux[0][1]
        self.put("/proc/cmdline", "BOOT_IMAGE=" + " ".join(map(grub.loader_text, chosen)) + "\n")

    def run(self, *argv, stdin="", timeout=120.0):
        if argv[0] == "env":
            self.language = argv[argv.index("update-grub") - 1]
            argv = argv[argv.index("update-grub") :]
        self.ran.append(argv)
        if argv[0] == "update-grub" and self.answer.ok:
            self.update(argv[2].removeprefix(str(self.folder)))
        return self.answer


@pytest.fixture
def host(tmp_path, monkeypatch):
    # A host of files alone has no CPUs: which ones may be isolated is asked in test_isolation.py.
    monkeypatch.setattr(isolation, "check", lambda _settings, _system: [])
    # Who answers for a lowered defence is asked in test_dangers.py.
    monkeypatch.setattr(dangers, "check", lambda _all, _wanted, _system, _now: [])
    return Host(tmp_path)


@pytest.fixture
def as_root(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)


def wish(name, value, kind=None, owner="cpu"):
    return Setting(owner, "boot", name, (kind or BootKind(System("/nowhere"))).text(name, value))


def converge(host, check=False, **parameters):
    owners = {"cpu": {"boot": parameters}} if parameters else {}
    report = engine.converge(host, engine.Request(owners=owners, check=check, present=bool(parameters)))
    return report, {one.setting.name: one for one in report.settings}


# values


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2-3", "2-3"),
        (True, "true"),
        ("true", '"true"'),
        ("", '""'),
        ("a b", '"a b"'),
        ("(x)", '"(x)"'),
        (16, "16"),
        (["tty0", "ttyS0,115200"], "tty0 ttyS0,115200"),
        ([True, "true", "a b", ""], 'true "true" "a b" ""'),
    ],
)
def test_the_text_of_a_value(value, text):
    kind = BootKind(System("/nowhere"))
    assert kind.text("x", value) == text
    values = value if isinstance(value, list) else [value]
    assert to_values(text) == [None if one is True else str(one) for one in values]


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("mitigations", False, "leave it out"),
        ("isolcpus", True, "quotes"),
        ("intel_iommu", [True], "quotes"),
        ("x", None, "no value"),
        ("x", [], "empty"),
        ("x", {"a": 1}, "dict"),
        ("x", ["a", "a"], "twice"),
        ("x", ["a", False], "false"),
        ("x", "a\nb", "line break"),
        ("x", 'a"b', "quote"),
        ("x", "a'b", "quote"),
        ("x", "a\\b", "backslash"),
        ("x", "a${b}", "backslash"),
        ("x", "\u00e4", "ASCII"),
    ],
)
def test_values_that_cannot_be(name, value, why):
    with pytest.raises(Refusal, match=why):
        BootKind(System("/nowhere")).text(name, value)


@pytest.mark.parametrize(
    "name",
    ["root", "init", "rdinit", "initrd", "BOOT_IMAGE", "ro", "single", "systemd.unit", "--", "-", "", "1",
     "a b", "a=b", "x$y", "isolcpu", "transparent_hugepages", "hugepagesize", "nohz-ful"],
)  # fmt: skip
def test_names_that_cannot_be(host, name):
    kind = BootKind(host)
    with pytest.raises(Refusal):
        kind.check([Setting("cpu", "boot", name, "x")], {})


@pytest.mark.parametrize(
    "name", ["isolcpus", "nohz-full", "8250.nr_uarts", "nvme_core.default_ps_max_latency_us", "noapic"]
)
def test_names_that_can_be(host, name):
    BootKind(host).check([Setting("cpu", "boot", name, "x")], {})


def test_one_parameter_is_named_once(host):
    with pytest.raises(Refusal, match="same parameter as nohz_full"):
        BootKind(host).check([wish("nohz_full", "2"), wish("nohz-full", "2")], {})


@pytest.mark.parametrize(
    ("sizes", "pages"), [(["1G", "2M"], ["1"]), ("2M", ["1", "2", "3"]), (None, ["1", "2"])]
)
def test_pages_that_fit_no_sizes(host, sizes, pages):
    asked = [wish("hugepages", pages)] + ([wish("hugepagesz", sizes)] if sizes else [])
    with pytest.raises(Refusal, match="sizes in hugepagesz"):
        BootKind(host).check(asked, {})


# the kernel's own splitting


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('a b=c  d="e f"', [("a", None), ("b", "c"), ("d", "e f")]),
        ('"a=b c" "d e" =x', [("a", "b c"), ("d e", None), ("=x", None)]),
        ('a= b="" "c="', [("a", ""), ("b", ""), ("c", "")]),
        ('a=b"c d"e f', [("a", 'b"c d"e'), ("f", None)]),
        ('a="b c', [("a", "b c")]),
    ],
)
def test_the_kernel_splits_words(text, words):
    found = cmdline.split(text, [("f", 1)] * len(text))
    assert [(word.name, word.value) for word in found] == words


def test_the_kernel_stops_at_two_dashes():
    found = cmdline.split("a -- b", [("f", 1)] * 6)
    assert [word.name for word in found if not word.for_init] == ["a"]


def test_every_word_counts_where_the_kernel_adds_them_up():
    text = "console=tty0 x=1 console=ttyS0 x=2 console=tty0"
    words = cmdline.split(text, [("f", 1)] * len(text))
    assert effective("console", words, True) == ["ttyS0", "tty0"]
    assert effective("x", words, False) == ["2"]


@pytest.mark.parametrize(
    ("line", "sizes", "pages"),
    [
        ("hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=512", "1G 2M", "4 512"),
        ("hugepagesz=1G hugepagesz=2M hugepages=4 hugepages=512", "1G 2M", "(none) 4"),
        ("hugepages=9 hugepagesz=1G hugepages=4", "1G", "9 4"),
        ("hugepages=4 hugepagesz=1G hugepages=512 hugepagesz=2M", "1G 2M", "4 512 (none)"),
        ("hugepagesz=1G hugepages=4 hugepagesz=1G hugepages=8", "1G", "4"),
        ("hugepages=4", "", "4"),
        ("hugepagesz=1G", "1G", ""),
    ],
)
def test_pages_belong_to_the_size_before_them(line, sizes, pages):
    words = cmdline.split(line, [("f", 1)] * len(line))
    assert " ".join(effective("hugepagesz", words, True)) == sizes
    assert " ".join(effective("hugepages", words, True)) == pages


# what is written comes back


_value = st.one_of(
    st.just(True),
    st.text("ab1 ,=:;#$`*?{}|&<>()!%@~-", max_size=8)
    .map(lambda text: " ".join(text.split()))
    .filter(lambda text: "${" not in text),
)
_names = st.sampled_from(["alpha", "beta.x", "console", "dyndbg", "isolcpus_"])
_values = st.one_of(
    _value, st.lists(_value, min_size=1, max_size=3, unique_by=lambda one: (one is True, str(one)))
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(_names, _values, min_size=1))
@example({"dyndbg": "file a.c +p; line 5"})
def test_what_is_written_is_what_the_kernel_gets(tmp_path_factory, parameters):
    host = Host(tmp_path_factory.mktemp("host"))
    kind = BootKind(host)
    asked = [wish(name, value, kind) for name, value in parameters.items()]
    for path, image in kind.render("cpu", asked).items():
        host.put(path, image.content.decode())
    assert kind.activate([], [MINE]) == {}
    host.boot()
    for setting in asked:
        planes = kind.read([setting.name])[setting.name]
        assert planes.winner is not None, planes
        assert (planes.live, planes.winner.value) == (setting.value, setting.value)
        assert planes.winner.file == MINE
        line = host.read(MINE).split("\n")[planes.winner.line - 1]
        assert setting.name in line


def test_pages_are_written_beside_their_size(host):
    kind = BootKind(host)
    asked = [wish("hugepages", ["9", "4", "512"], kind), wish("hugepagesz", ["1G", "2M"], kind)]
    kind.check(asked, {})
    (image,) = kind.render("cpu", asked).values()
    words = [line.split("} ")[1].rstrip('"') for line in image.content.decode().split("\n") if "} " in line]
    assert words == ["hugepages=9", "hugepagesz=1G", "hugepages=4", "hugepagesz=2M", "hugepages=512"]


# the menu


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a 'b  c'd \"e f\"  # no", ["a", "b  cd", "e f"]),
        ('a\\ b "c\\$d\\"\\n" $e ${f}g "$h" \'$i\'', ["a b", 'c$d"\\n', "${e}", "${f}g", "${h}", "$i"]),
        ("a#b x=#", ["a#b", "x=#"]),
    ],
)
def test_grub_splits_words(text, words):
    assert [word for word, _start in grub.split_words(text)] == words


@pytest.mark.parametrize("text", ["a;b", "a{b", "'a", '"a', "a$", "a|b", "a\nb", "${a", "a\\"])
def test_what_grub_takes_for_more_than_words(text):
    with pytest.raises(ValueError):
        grub.split_words(text)


@pytest.mark.parametrize(
    ("default", "environment", "kernel"),
    [
        ("0", "", "simple"),
        ("1", "", "6.1.0-2-advanced"),
        ("1>2", "", "6.1.0-1-advanced"),
        ("gnulinux-advanced-x>gnulinux-6.1.0-1-advanced-x", "", "6.1.0-1-advanced"),
        (
            "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-1",
            "",
            "6.1.0-1-advanced",
        ),
        ("no such", "", "simple"),
        ("7", "", "simple"),
        ("${saved_entry}", "saved_entry=1>2\n", "6.1.0-1-advanced"),
        ("${saved_entry}", "", "simple"),
        ("0", "next_entry=1>1\n", "6.1.0-2-recovery"),
    ],
)
def test_the_entry_of_the_next_boot(host, default, environment, kernel):
    host.put(grub.MENU, menu("quiet", default))
    host.put(grubenv.PATH, f"# GRUB Environment Block\n{environment}####")
    assert kernel in grub.read_menu(host).default.id


def test_a_default_that_only_the_boot_decides(host):
    host.put(grub.MENU, menu("quiet", "${somewhere}"))
    with pytest.raises(Unfollowed, match="only GRUB knows"):
        grub.read_menu(host)
    assert "only GRUB knows" in BootKind(host).read(["quiet"])["quiet"].unknown


def test_other_kernels_that_lack_it_are_noted(host):
    text = menu("quiet isolcpus=2")
    first, second = text.split("vmlinuz-6.1.0-1 ", 1)
    host.put(grub.MENU, f"{first}vmlinuz-6.1.0-1 {second.replace(' isolcpus=2', '', 1)}")
    host.put("/etc/default/grub", 'GRUB_CMDLINE_LINUX="quiet isolcpus=2"\n')
    planes = BootKind(host).read(["isolcpus"])["isolcpus"]
    assert planes.note == "entries of other kernels say otherwise: /boot/vmlinuz-6.1.0-1"
    assert not planes.stale


# hosts


def test_a_container_has_the_machines_command_line(host):
    host.put("/run/systemd/container", "systemd-nspawn\n")
    planes = BootKind(host).read(["quiet"])["quiet"]
    assert (planes.live, planes.unsupported) == ("true", "kernel shared with the machine")


def test_hosts_without_grub(host):
    (host.folder / "boot/grub/grub.cfg").unlink()
    assert BootKind(host).read(["quiet"])["quiet"].unsupported == "not booted by GRUB: no /boot/grub/grub.cfg"
    host.put("/boot/efi/loader/loader.conf", "")
    assert "systemd-boot" in BootKind(host).read(["quiet"])["quiet"].unsupported


def test_sources_that_cannot_be_followed_are_unknown(host):
    host.put("/etc/default/grub.d/50-x.cfg", 'GRUB_CMDLINE_LINUX="$(cat /etc/more)"\n')
    assert "50-x.cfg:1: a command substitution" in BootKind(host).read(["quiet"])["quiet"].unknown


# the walk


def test_applied_booted_and_undone(host, as_root):
    before = host.read(grub.MENU)
    report, found = converge(host, isolcpus="2-3", nosmt=True, console=["tty0", "ttyS0"], mitigations="off")
    assert {one.verdict for one in found.values()} == {"pending_reboot"}
    assert (report.failures, report.changed) == ([], True)
    report, found = converge(host, isolcpus="2-3", nosmt=True, console=["tty0", "ttyS0"], mitigations="off")
    assert not report.changed
    assert not any(one.changed for one in found.values())
    host.boot()
    report, found = converge(host, isolcpus="2-3", nosmt=True, console=["tty0", "ttyS0"], mitigations="off")
    assert {one.verdict for one in found.values()} == {"in_sync"}
    report, _found = converge(host)
    assert report.failures == []
    assert host.read(grub.MENU) == before
    assert not host.exists(MINE)
    assert sorted(host.names("/boot/grub")) == ["grub.cfg"]
    ran = [argv[0] for argv in host.ran]
    assert ran == ["update-grub", "grub-script-check"] * 2


def test_a_failing_update_keeps_the_menu_and_is_made_up_for(host, as_root):
    before = host.read(grub.MENU)
    host.answer = Ran(1, "", "/usr/sbin/grub-probe: error: no such disk.\n")
    report, found = converge(host, isolcpus="2-3")
    assert "no such disk" in report.failures[0]
    assert host.read(grub.MENU) == before
    assert found["isolcpus"].verdict == "drift"
    assert "which the next boot reads, says (absent)" in found["isolcpus"].reason
    host.answer = Ran(0, "", "")
    report, found = converge(host, isolcpus="2-3")
    assert (report.failures, found["isolcpus"].verdict) == ([], "pending_reboot")
    host.answer = Ran(1, "", "no space\n")
    report, _found = converge(host)
    assert any("was removed, but" in failure for failure in report.failures)
    host.answer = Ran(0, "", "")
    report, _found = converge(host)
    assert (report.failures, host.read(grub.MENU)) == ([], before)
    assert not converge(host)[0].changed


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda line: "set timeout=5\n", "no menu entry"),
        (lambda line: menu(line + " x" * 1200), "characters long"),
        (lambda line: menu(line).replace(ROOT, ""), "no root file system"),
    ],
)
def test_a_menu_that_would_not_boot_is_not_put_in_place(host, as_root, made, why):
    before = host.read(grub.MENU)
    host.made = made
    report, _found = converge(host, isolcpus="2-3")
    assert why in report.failures[0]
    assert host.read(grub.MENU) == before


def test_a_later_fragment_that_drops_ours(host, as_root):
    host.put("/etc/default/grub.d/70-cloud.cfg", '# cloud\nGRUB_CMDLINE_LINUX="console=ttyS0"\n')
    _report, found = converge(host, isolcpus="2-3")
    assert found["isolcpus"].verdict == "drift"
    assert "/etc/default/grub.d/70-cloud.cfg:2 assigns anew and drops it" in found["isolcpus"].reason
    assert found["isolcpus"].planes.persisted_dict()["overridden"] == [
        {"value": "2-3", "file": MINE, "line": 2}
    ]


def test_a_menu_that_a_kernel_update_would_change(host, as_root):
    converge(host, isolcpus="2-3")
    host.boot()
    host.put("/etc/default/grub.d/70-cloud.cfg", 'GRUB_CMDLINE_LINUX=""\n')
    ran = len(host.ran)
    _report, found = converge(host, isolcpus="2-3")
    assert found["isolcpus"].verdict == "boot_bomb"
    assert "makes it from says (absent) (/etc/default/grub.d/70-cloud.cfg:1)" in found["isolcpus"].reason
    assert len(host.ran) == ran, "a new menu would take from the next boot what it has"


def test_the_last_word_wins_and_is_named(host, as_root):
    host.put("/etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet mitigations=auto"\n')
    _report, found = converge(host, mitigations="off")
    assert (found["mitigations"].verdict, found["mitigations"].planes.winner.file) == (
        "drift",
        "/etc/default/grub",
    )
    host.put("/etc/default/grub", '\nGRUB_CMDLINE_LINUX_DEFAULT="quiet mitigations=off"\n')
    host.update()
    host.boot()
    _report, found = converge(host, mitigations="off")
    assert (found["mitigations"].verdict, found["mitigations"].planes.winner.line) == ("shadowed", 2)


def test_somebody_elses_word_of_a_parameter_that_takes_all(host, as_root):
    host.put("/etc/default/grub", 'GRUB_CMDLINE_LINUX="isolcpus=5"\n')
    _report, found = converge(host, isolcpus="2-3")
    assert found["isolcpus"].verdict == "drift"
    assert (
        f"every word of it counts: /etc/default/grub:1 says 5, {MINE}:2 says 2-3" in found["isolcpus"].reason
    )
    _report, found = converge(host, isolcpus="2-3")
    assert not found["isolcpus"].changed


def test_words_after_two_dashes_are_inits(host, as_root):
    host.put("/etc/default/grub", 'GRUB_CMDLINE_LINUX="-- single"\n')
    _report, found = converge(host, isolcpus="2-3")
    assert found["isolcpus"].verdict == "drift"
    assert "/etc/default/grub:1 has --" in found["isolcpus"].reason


def test_check_mode_writes_nothing(host):
    before = host.read(grub.MENU)
    report, found = converge(host, check=True, isolcpus="2-3")
    assert (report.changed, found["isolcpus"].changed, host.ran) == (True, True, [])
    assert (host.read(grub.MENU), host.exists(MINE)) == (before, False)


@pytest.mark.parametrize(
    ("said", "asked"), [("", "C"), ("  set lang=de_DE\n", "de_DE.UTF-8"), ("set lang=C\n", "C.UTF-8")]
)
def test_the_menu_keeps_its_language(host, as_root, said, asked):
    host.put(grub.MENU, said + host.read(grub.MENU))
    converge(host, isolcpus="2-3")
    assert host.language == f"LANG={asked}"
