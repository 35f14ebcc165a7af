"""Kind module: loaded or not, now and at the next boot."""

import pytest
from hosttune.kinds.module import ModuleKind
from hosttune.model import Change, Refusal, Setting
from hosttune.system import Ran, System

RELEASE = "6.1.0-29-amd64"


def tree(root, files):
    for path, content in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)


class Host(System):
    """A fake root whose modprobe is played: name -> what it says and whether it works."""

    def __init__(self, root):
        super().__init__(str(root))
        self.ran = []
        self.answer = Ran(0, "", "")

    def run(self, *argv, stdin="", timeout=120.0):
        self.ran.append(argv)
        return self.answer


@pytest.fixture
def host(tmp_path):
    tree(
        tmp_path,
        {
            "/proc/sys/kernel/osrelease": f"{RELEASE}\n",
            f"/lib/modules/{RELEASE}/modules.dep": "kernel/net/ipv4/tcp_bbr.ko.xz: kernel/x.ko\n"
            "kernel/drivers/watchdog/softdog.ko:\nkernel/net/sched/sch_fq.ko:\nkernel/a/snd-pcm.ko:\n",
            f"/lib/modules/{RELEASE}/modules.builtin": "kernel/net/ipv4/tcp_cubic.ko\nkernel/fs/ext4.ko\n",
            f"/lib/modules/{RELEASE}/modules.alias": "# x\nalias tcp-congestion-bbr tcp_bbr\n",
            "/sys/module/softdog/refcnt": "0\n",
            "/proc/cmdline": "ro quiet\n",
        },
    )
    return Host(tmp_path)


def wish(name, value="loaded", owner="kernel"):
    return Setting(owner, "module", name, value)


def test_live(host, tmp_path):
    tree(tmp_path, {"/sys/module/snd_pcm/refcnt": "1\n"})
    found = ModuleKind(host).read(["softdog", "tcp_bbr", "tcp-cubic", "snd-pcm"])
    assert {name: planes.live for name, planes in found.items()} == {
        "softdog": "loaded",
        "tcp_bbr": "unloaded",
        "tcp-cubic": "loaded",
        "snd-pcm": "loaded",
    }
    assert not found["tcp-cubic"].has_persisted
    assert "built into" in found["tcp-cubic"].note
    assert found["softdog"].has_persisted


def test_who_loads_and_who_denies(host, tmp_path):
    tree(
        tmp_path,
        {
            "/etc/modules": "# at boot\n\ntcp-bbr\n",
            "/etc/modules-load.d/60-hosttune-kernel.conf": "tcp_bbr\nsch_fq\n",
            "/usr/lib/modules-load.d/zz.conf": "; no\n  sch_fq  \n",
            "/usr/lib/modprobe.d/deny.conf": "# blacklist sch_fq\n"
            "blacklist \\\n softdog\ninstall snd-pcm /bin/false\n",
            "/proc/cmdline": "modprobe.blacklist=x,sch_fq,tcp-bbr modules_load=softdog",
        },
    )
    (tmp_path / "etc/modules-load.d/modules.conf").symlink_to("../modules")
    found = ModuleKind(host).read(["tcp_bbr", "sch_fq", "softdog", "snd_pcm"])
    where = {
        name: [(one.value, one.file, one.line) for one in planes.definitions]
        for name, planes in found.items()
    }
    assert where == {
        "tcp_bbr": [
            ("loaded", "/etc/modules-load.d/modules.conf", 3),
            ("loaded", "/etc/modules-load.d/60-hosttune-kernel.conf", 2 - 1),
        ],
        "sch_fq": [
            ("loaded", "/usr/lib/modules-load.d/zz.conf", 2),
            ("loaded", "/etc/modules-load.d/60-hosttune-kernel.conf", 2),
            ("unloaded", "/proc/cmdline", 1),
        ],
        "softdog": [
            ("loaded", "/proc/cmdline", 1),
            ("unloaded", "/usr/lib/modprobe.d/deny.conf", 2),
        ],
        "snd_pcm": [("unloaded", "/usr/lib/modprobe.d/deny.conf", 4)],
    }


def test_what_is_rendered_is_what_is_read_back(host, tmp_path):
    kind = ModuleKind(host)
    wanted = [wish("tcp_bbr"), wish("sch_fq"), wish("softdog", "unloaded")]
    for one in wanted:
        kind.text(one.name, one.value)
    files = kind.render("kernel", wanted)
    assert {path: image.content.decode().split("\n")[1:] for path, image in files.items()} == {
        "/etc/modules-load.d/60-hosttune-kernel.conf": ["sch_fq", "tcp_bbr", ""],
        "/etc/modprobe.d/60-hosttune-kernel.conf": ["blacklist softdog", ""],
    }
    tree(tmp_path, {path: image.content.decode() for path, image in files.items()})
    # A fresh kind was told nothing: what stands on disk must name the same file.
    for again in (kind, ModuleKind(host)):
        for one in wanted:
            winner = again.read([one.name])[one.name].winner
            assert (winner.value, winner.file) == (one.value, again.managed_file("kernel", one.name))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("tcp_bbrr", "loaded", "Did you mean tcp_bbr"),
        ("tcp-congestion-bbr", "loaded", "alias of tcp_bbr"),
        ("ext4", "unloaded", "built into"),
        ("../x", "loaded", "no module's name"),
        ("zzzzzz", "unloaded", "no such module"),
    ],
)
def test_refuses(host, name, value, says):
    with pytest.raises(Refusal, match=says):
        ModuleKind(host).check([wish(name, value)], {})


@pytest.mark.parametrize("name", ["tcp_bbr", "tcp-bbr", "ext4", "softdog", "snd_pcm"])
def test_takes_what_the_kernel_has(host, name):
    ModuleKind(host).check([wish(name)], {})


def test_refuses_one_module_twice_and_other_words(host):
    with pytest.raises(Refusal, match="same module"):
        ModuleKind(host).check([wish("tcp_bbr"), wish("tcp-bbr", owner="other")], {})
    with pytest.raises(Refusal, match="loaded or unloaded"):
        ModuleKind(host).text("tcp_bbr", "present")


def test_without_a_folder_of_modules_the_message_says_so(host, tmp_path):
    tree(tmp_path, {"/proc/sys/kernel/osrelease": "9.9\n"})
    with pytest.raises(Refusal, match="no folder of modules"):
        ModuleKind(host).check([wish("tcp_bbr")], {})
    ModuleKind(host).check([wish("softdog")], {})  # it is loaded, so it exists


def test_a_container_leaves_modules_to_the_machine(tmp_path):
    tree(tmp_path, {"/run/systemd/container": "lxc\n", "/proc/sys/kernel/osrelease": "6.1\n"})
    kind = ModuleKind(Host(tmp_path))
    kind.check([wish("tcp_bbr")], {})
    assert kind.read(["tcp_bbr"])["tcp_bbr"].unsupported == "kernel shared with the machine"


def test_activation(host):
    kind = ModuleKind(host)
    assert kind.activate([Change("tcp_bbr", "loaded"), Change("softdog", "unloaded", undo=True)], []) == {}
    assert host.ran == [("modprobe", "--", "tcp_bbr"), ("modprobe", "-r", "--", "softdog")]


def test_a_module_in_use_stays_and_says_by_whom(host, tmp_path):
    host.answer = Ran(1, "", "modprobe: FATAL: Module softdog is in use.\n")
    failed = ModuleKind(host).activate(
        [Change("softdog", "unloaded", undo=True), Change("tcp_bbr", "unloaded", undo=True)], []
    )
    assert list(failed) == ["softdog"]  # the other is not loaded: nothing to complain of
    assert "stays loaded until the next boot" in failed["softdog"]
    tree(tmp_path, {"/sys/module/softdog/holders/other/x": ""})
    assert "in use by other" in ModuleKind(host).activate([Change("softdog", "unloaded")], [])["softdog"]


def test_the_initramfs_loads_past_a_blacklist_but_not_past_an_install_line(host, tmp_path):
    tree(
        tmp_path,
        {
            "/etc/initramfs-tools/modules": "# at boot\nsch-fq\nsoftdog soft_margin=9\n",
            "/etc/modprobe.d/deny.conf": "blacklist sch_fq\nblacklist softdog\ninstall softdog /bin/false\n",
        },
    )
    found = ModuleKind(host).read(["sch_fq", "softdog"])
    assert [(one.value, one.line) for one in found["sch_fq"].definitions] == [("unloaded", 1), ("loaded", 2)]
    assert [(one.value, one.line) for one in found["softdog"].definitions] == [
        ("unloaded", 2),
        ("loaded", 3),
        ("unloaded", 3),
    ]


def test_a_newer_kernel_without_the_module_is_told(host, tmp_path):
    tree(tmp_path, {"/lib/modules/6.1.0-9-amd64/modules.dep": "", "/lib/modules/6.12.1/build/x": ""})
    assert ModuleKind(host).read(["sch_fq"])["sch_fq"].note == ""
    tree(
        tmp_path,
        {
            "/lib/modules/6.1.0-30-amd64/modules.dep": "kernel/net/ipv4/tcp_bbr.ko.xz:\n",
            "/lib/modules/6.1.0-30-amd64/modules.builtin": "kernel/a/snd-pcm.ko\n",
        },
    )
    found = ModuleKind(host).read(["sch_fq", "tcp_bbr", "snd_pcm"])
    assert "kernel 6.1.0-30-amd64" in found["sch_fq"].note
    assert found["tcp_bbr"].note == found["snd_pcm"].note == ""
