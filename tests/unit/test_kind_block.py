"""Kind block: queue attributes by class and by disk, and what udev's rules make of them."""

import pytest
from hosttune.kinds.block import BlockKind, Device, parse_rules, walk
from hosttune.model import Change, Refusal, Setting
from hosttune.system import System

OURS = "/etc/udev/rules.d/60-hosttune-io_scheduler.rules"
OURS_DISKS = "/etc/udev/rules.d/60-hosttune-zz-io_scheduler.rules"


def tree(root, files):
    for path, content in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)


def disk(root, name, scheduler="[none] mq-deadline", rotational="0", **attributes):
    values = {"scheduler": scheduler, "rotational": rotational, "read_ahead_kb": "128", "nr_requests": "256"}
    values.update(attributes)
    tree(root, {f"/sys/block/{name}/queue/{key}": f"{value}\n" for key, value in values.items()})


@pytest.fixture
def host(tmp_path):
    disk(tmp_path, "nvme0n1", "[none] mq-deadline kyber")
    disk(tmp_path, "nvme0c0n1", "none")
    tree(tmp_path, {"/sys/block/nvme0c0n1/hidden": "1\n", "/proc/sys/kernel/osrelease": "6.1\n"})
    disk(tmp_path, "sda", "none [mq-deadline]")
    disk(tmp_path, "sdb", "none [mq-deadline]", rotational="1")
    disk(tmp_path, "sdc", "[none] mq-deadline")
    disk(tmp_path, "dm-0", "none")
    return System(str(tmp_path))


def wish(name, value, owner="io_scheduler"):
    return Setting(owner, "block", name, value)


def declare(system, **values):
    """A kind that was asked for these, as the engine asks: text() for each, then check()."""
    kind = BlockKind(system)
    wanted = [
        wish(name.replace("__", "/"), kind.text(name.replace("__", "/"), value))
        for name, value in values.items()
    ]
    kind.check(wanted, {})
    return kind, wanted


def persist(root, kind, wanted):
    tree(root, {path: image.content.decode() for path, image in kind.render("io_scheduler", wanted).items()})


def queue(system, name, attribute="scheduler"):
    return system.read(f"/sys/block/{name}/queue/{attribute}").partition("\n")[0]


def test_live_of_a_class_and_of_a_disk(host):
    found = BlockKind(host).read(
        ["nvme/scheduler", "rotational/scheduler", "sdc/scheduler", "dm-0/scheduler"]
    )
    assert {name: planes.live for name, planes in found.items()} == {
        "nvme/scheduler": "none",
        "rotational/scheduler": "mq-deadline",
        "sdc/scheduler": "none",
        "dm-0/scheduler": "none",
    }
    assert BlockKind(host).read(["ssd/scheduler"])["ssd/scheduler"].live == "sda=mq-deadline sdc=none"


def test_a_disk_that_is_set_on_its_own_is_no_business_of_its_class(host):
    kind, _wanted = declare(host, ssd__scheduler="none", sda__scheduler="mq-deadline")
    found = kind.read(["ssd/scheduler", "sda/scheduler"])
    assert found["ssd/scheduler"].live == "none"
    assert "sda" in found["ssd/scheduler"].note
    assert found["sda/scheduler"].live == "mq-deadline"


def test_a_class_without_disks_has_no_live_plane_but_a_persisted_one(host, tmp_path):
    kind, wanted = declare(host, virtio__scheduler="none")
    assert kind.read(["virtio/scheduler"])["virtio/scheduler"].winner is None
    persist(tmp_path, kind, wanted)
    planes = kind.read(["virtio/scheduler"])["virtio/scheduler"]
    assert (planes.has_live, planes.live, planes.unsupported) == (False, None, "")
    assert "no disk of class virtio" in planes.note
    assert (planes.winner.value, planes.winner.file, planes.winner.line) == ("none", OURS, 2)


def test_rules_put_classes_before_disks_and_schedulers_first(host, tmp_path):
    kind = BlockKind(host)
    names = {
        "ssd/nr_requests": "64",
        "ssd/iosched/fifo_batch": "1",
        "ssd/scheduler": "mq-deadline",
        "rotational/scheduler": "mq-deadline",
        "sda/read_ahead_kb": "64",
        "sda/scheduler": "none",
    }
    wanted = [wish(name, kind.text(name, value)) for name, value in names.items()]
    kind.check(wanted, {})
    files = {path: image.content.decode() for path, image in kind.render("io_scheduler", wanted).items()}
    head = 'ACTION=="add|change", SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", '
    assert files[OURS].split("\n")[1:] == [
        head + 'KERNEL=="sd[a-z]*", ATTR{queue/rotational}=="1", ATTR{queue/scheduler}="mq-deadline"',
        head + 'KERNEL=="sd[a-z]*", ATTR{queue/rotational}=="0", ATTR{queue/scheduler}="mq-deadline"',
        head + 'KERNEL=="sd[a-z]*", ATTR{queue/rotational}=="0", ATTR{queue/nr_requests}="64"',
        head + 'KERNEL=="sd[a-z]*", ATTR{queue/rotational}=="0", ATTR{queue/iosched/fifo_batch}="1"',
        "",
    ]
    assert files[OURS_DISKS].split("\n")[1:] == [
        head + 'KERNEL=="sda", ATTR{queue/scheduler}="none"',
        head + 'KERNEL=="sda", ATTR{queue/read_ahead_kb}="64"',
        "",
    ]
    tree(tmp_path, files)
    for one in wanted:
        planes = kind.read([one.name])[one.name]
        assert (planes.winner.value, planes.winner.file) == (
            one.value,
            kind.managed_file("io_scheduler", one.name),
        )


def test_a_disk_beats_its_class_whatever_the_owners_are_called(host, tmp_path):
    kind = BlockKind(host)
    for one in (wish("ssd/scheduler", "none", "zebra"), wish("sda/scheduler", "mq-deadline", "ant")):
        tree(tmp_path, {p: i.content.decode() for p, i in kind.render(one.owner, [one]).items()})
    planes = kind.read(["sda/scheduler"])["sda/scheduler"]
    assert [one.value for one in planes.definitions] == ["none", "mq-deadline"]


def test_foreign_rules_that_come_later_win_and_are_named(host, tmp_path):
    kind, wanted = declare(host, ssd__scheduler="none", nvme__scheduler="none")
    persist(tmp_path, kind, wanted)
    foreign = "/usr/lib/udev/rules.d/90-vendor.rules"
    tree(tmp_path, {foreign: '# x\nKERNEL=="sda", SUBSYSTEM=="block", ATTR{queue/scheduler}="bfq"\n'})
    found = kind.read(["ssd/scheduler", "nvme/scheduler"])
    # The class as such is persisted by us; one disk of it meets another value.
    assert found["ssd/scheduler"].winner.as_dict() == {
        "value": "sda=bfq sdc=none",
        "file": foreign,
        "line": 2,
    }
    assert found["nvme/scheduler"].winner.value == "none"
    (tmp_path / "etc/udev/rules.d/90-vendor.rules").symlink_to("/dev/null")
    assert kind.read(["ssd/scheduler"])["ssd/scheduler"].winner.file == OURS


def test_rules_that_only_udev_can_judge_are_noted(host, tmp_path):
    foreign = "/etc/udev/rules.d/70-x.rules"
    tree(
        tmp_path,
        {
            foreign: 'ENV{ID_MODEL}=="Fast*", ATTR{queue/scheduler}="bfq"\n'
            'ENV{ID_MODEL}=="Fast*", ATTR{queue/nr_requests}="9"\n'
            'KERNEL=="sdb", RUN+="/bin/sh -c \'echo 1 > /sys/block/%k/queue/scheduler\'"\n'
        },
    )
    found = BlockKind(host).read(["sda/scheduler", "sdb/scheduler"])
    assert found["sda/scheduler"].winner is None
    assert found["sda/scheduler"].note.endswith(f"{foreign}:1")
    assert found["sdb/scheduler"].note.endswith(f"{foreign}:1, {foreign}:3")


def test_walk_is_what_udev_does(tmp_path):
    # Recorded from `udevadm test --action=add` of systemd 252 on a virtio disk: what it wrote, in this order.
    tree(
        tmp_path,
        {
            "/x.rules": '# c\nACTION=="remove", GOTO="end"\nSUBSYSTEM=="block", \\\n'
            '  KERNEL=="vd[a-z]|xvd*", ATTR{queue/add_random}="0" , ATTR{queue/iostats}:="1"\n'
            'SUBSYSTEM=="block" KERNEL=="vda" ATTR{queue/rq_affinity}="2"\n'
            'SUBSYSTEM=="block", KERNEL=="vda", ATTR{queue/nomerges} = "2",\n'
            'ATTR{queue/rotational}=="7", ATTR{queue/nomerges}="1"\n'
            'TEST=="queue/scheduler", ATTR{queue/wbt_lat_usec}="0"\n'
            'KERNEL=="vda", GOTO="end"\nATTR{queue/wbt_lat_usec}="1"\nLABEL="end"\n'
            'KERNEL=="vda", ATTR{queue/max_sectors_kb}+="128"\n'
        },
    )
    disk(tmp_path, "vda", rotational="1")
    system = System(str(tmp_path))
    rules = [("/x.rules", parse_rules(system, "/x.rules"))]
    wrote = {"add_random": "0", "iostats": "1", "rq_affinity": "2", "nomerges": "2", "wbt_lat_usec": "0"}
    wrote["max_sectors_kb"] = "128"
    for attribute, value in wrote.items():
        definitions, doubts = walk(rules, Device(system, "vda"), f"queue/{attribute}")
        assert ([one.value for one in definitions], doubts) == ([value], []), attribute
    assert walk(rules, Device(system, "vda"), "queue/scheduler") == ([], [])


def test_a_goto_nobody_can_judge_leaves_what_it_may_skip_undecided(tmp_path):
    tree(
        tmp_path,
        {
            "/x.rules": 'ENV{X}=="1", GOTO="end"\nATTR{queue/nomerges}="1"\nLABEL="end"\n'
            'ATTR{queue/iostats}="0"\n'
        },
    )
    disk(tmp_path, "vda")
    system = System(str(tmp_path))
    rules = [("/x.rules", parse_rules(system, "/x.rules"))]
    assert walk(rules, Device(system, "vda"), "queue/nomerges") == ([], ["/x.rules:2"])
    assert walk(rules, Device(system, "vda"), "queue/iostats")[0][0].value == "0"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("sdz/scheduler", "none", "missing disk: this host has no sdz"),
        ("sdz/scheduler", "none", "Its disks are dm-0, nvme0n1, sda, sdb, sdc"),
        ("nvme0n2/scheduler", "none", "Did you mean nvme0n1"),
        ("ssd/scheduler", "kyber", "disk sda does not offer 'kyber'"),
        ("ssd/scheduler", "kyber", "none, mq-deadline"),
        ("dm-0/scheduler", "mq-deadline", "disk dm-0 does not offer"),
        ("ssd/schedular", "none", "Did you mean scheduler"),
        ("ssd/write_cache", "write back", "data is lost"),
        ("ssd/nr_requests", "many", "whole number"),
        ("ssd/scheduler", 'x"', "one word"),
        ("ssd", "none", "DEVICE/ATTRIBUTE"),
        ("../x/scheduler", "none", "DEVICE/ATTRIBUTE"),
    ],
)
def test_refuses(host, name, value, says):
    with pytest.raises(Refusal) as caught:
        BlockKind(host).check([wish(name, value)], {})
    assert says in str(caught.value)
    assert f"block {name}" in str(caught.value)


def test_a_scheduler_in_a_module_counts_as_offered(host, tmp_path):
    tree(tmp_path, {"/lib/modules/6.1/modules.dep": "kernel/block/kyber-iosched.ko:\n"})
    BlockKind(host).check([wish("ssd/scheduler", "kyber")], {})


def test_the_class_does_not_ask_of_a_disk_that_is_set_on_its_own(host, tmp_path):
    disk(tmp_path, "sdd", "none")
    with pytest.raises(Refusal, match="disk sdd"):
        BlockKind(host).check([wish("ssd/scheduler", "mq-deadline")], {})
    BlockKind(host).check([wish("ssd/scheduler", "mq-deadline"), wish("sdd/scheduler", "none")], {})


def test_activation_writes_only_what_differs(host):
    kind, _wanted = declare(host, ssd__scheduler="none")
    kind.read(["ssd/scheduler"])
    assert kind.activate([Change("ssd/scheduler", "none")], []) == {}
    assert queue(host, "sda") == "none"
    assert queue(host, "sdc") == "[none] mq-deadline"  # untouched: it had the value
    assert queue(host, "sdb") == "none [mq-deadline]"  # of another class


def test_activation_says_which_disk_refused(host, tmp_path):
    (tmp_path / "sys/block/sda/queue/nr_requests").unlink()
    failed = BlockKind(host).activate([Change("ssd/nr_requests", "64")], [])
    assert "disk sda" in failed["ssd/nr_requests"]
    assert queue(host, "sdc", "nr_requests") == "64"


def test_undo_gives_each_disk_what_it_had(host):
    kind = BlockKind(host)
    kind.activate([Change("ssd/scheduler", "sda=none sdc=mq-deadline sdx=none", undo=True)], [])
    assert (queue(host, "sda"), queue(host, "sdc")) == ("none", "mq-deadline")


def test_undo_of_class_and_disk_together(host, tmp_path, monkeypatch):
    # Both were declared in one run: the class's value before is that of the other disks alone.
    kind, _wanted = declare(host, nvme__scheduler="none")  # what stays
    found = kind.read(["nvme/scheduler", "ssd/scheduler", "sda/scheduler"])
    assert (found["ssd/scheduler"].live, found["sda/scheduler"].live) == ("none", "mq-deadline")
    written = []
    write = System.write_value
    monkeypatch.setattr(
        System, "write_value", lambda self, path, value: (written.append(value), write(self, path, value))
    )
    changes = [Change("ssd/scheduler", "none", undo=True), Change("sda/scheduler", "kyber", undo=True)]
    kind.activate(changes, [])
    assert (queue(host, "sda"), queue(host, "sdc")) == ("kyber", "[none] mq-deadline")
    assert written == ["kyber"]  # and never the class's value on the way


def test_a_disk_whose_own_setting_goes_falls_back_to_its_class(host, tmp_path):
    kind, wanted = declare(host, ssd__scheduler="none", sda__scheduler="mq-deadline")
    persist(tmp_path, kind, wanted)
    again, _wanted = declare(host, ssd__scheduler="none")
    for one in wanted:
        again.recall(one)  # the manifest still holds both
    found = again.read(["ssd/scheduler", "sda/scheduler"])  # the engine reads what it undoes, too
    assert found["ssd/scheduler"].live == "sda=mq-deadline sdc=none"
    assert not found["sda/scheduler"].has_live
    again.read(["ssd/scheduler"])  # reading fewer names later forgets nothing
    assert again.activate([Change("ssd/scheduler", "none")], []) == {}
    assert queue(host, "sda") == "none"


def test_read_back_by_a_kind_that_was_told_nothing(host, tmp_path):
    kind, wanted = declare(host, ssd__scheduler="none", sda__scheduler="mq-deadline")
    persist(tmp_path, kind, wanted)
    found = BlockKind(host).read(["ssd/scheduler", "sda/scheduler"])
    assert (found["ssd/scheduler"].live, found["sda/scheduler"].live) == ("none", "mq-deadline")


def test_what_other_owners_set_stays_theirs_in_a_partial_call(host):
    kind, _wanted = declare(host, ssd__scheduler="none")
    kind.recall(wish("sda/scheduler", "mq-deadline", "other"))
    assert kind.read(["ssd/scheduler"])["ssd/scheduler"].live == "none"
    kind.activate([Change("ssd/scheduler", "none")], [])
    assert queue(host, "sda") == "none [mq-deadline]"


def test_drift_knows_from_the_manifest_what_is_set_on_its_own(host):
    kind = BlockKind(host)
    for one in (wish("ssd/scheduler", "none"), wish("sda/scheduler", "mq-deadline")):
        kind.recall(one)
    assert kind.read(["ssd/scheduler", "sda/scheduler"])["ssd/scheduler"].live == "none"


def test_what_a_host_lacks_is_unsupported(host):
    found = BlockKind(host).read(["ssd/wbt_lat_usec", "sdy/scheduler"])
    assert "no queue/wbt_lat_usec" in found["ssd/wbt_lat_usec"].unsupported
    assert "no disk sdy" in found["sdy/scheduler"].unsupported


def test_a_container_reads_and_never_sets_but_still_knows_its_disks(host, tmp_path):
    tree(tmp_path, {"/run/systemd/container": "systemd-nspawn\n"})
    kind = BlockKind(host)
    kind.check([wish("ssd/scheduler", "kyber")], {})
    planes = kind.read(["nvme/scheduler"])["nvme/scheduler"]
    assert (planes.live, planes.unsupported) == ("none", "kernel shared with the machine")
    with pytest.raises(Refusal, match="missing disk"):
        kind.check([wish("sdz/scheduler", "none")], {})


@pytest.mark.parametrize(
    ("name", "wanted", "found", "clamped"),
    [
        ("ssd/read_ahead_kb", "130", "128", True),
        ("ssd/read_ahead_kb", "140", "128", False),
        ("ssd/nr_requests", "1", "4", True),
        ("ssd/nr_requests", "64", "32", False),
        ("ssd/scheduler", "none", "bfq", False),
    ],
)
def test_clamps(host, name, wanted, found, clamped):
    assert bool(BlockKind(host).clamps(name, wanted, found)) is clamped


def test_parents_properties_and_what_udev_refuses(tmp_path):
    device = tmp_path / "sys/devices/pci0/virtio1/block/vda"
    tree(
        tmp_path,
        {
            "sys/devices/pci0/vendor": "0x1af4\n",
            "sys/devices/pci0/uevent": "",
            "sys/devices/pci0/virtio1/uevent": "",
            "sys/devices/pci0/virtio1/block/vda/uevent": "",
            "sys/devices/pci0/virtio1/block/vda/size": "8\n",
            "etc/udev/rules.d/a.rules": (
                'ATTRS{vendor}=="0x1*", KERNELS=="pci0", ATTR{queue/x}="1"\n'
                'ATTRS{vendor}=="0x1*", ATTRS{size}=="8", ATTR{queue/x}="2"\n'  # never the same parent
                'KERNEL=="vd[^b]", ENV{MINE}="yes"\n'
                'ENV{MINE}=="yes", ATTR{queue/x}="3"\n'
                'ENV{MINE}=="no", ATTR{queue/x}="4"\n'
                'KERNEL="vda", ATTR{queue/x}="5"\n'
                'GOTO="nowhere"\n'
                'ATTR{queue/nosuch}!="y", ATTR{queue/x}="6"\n'
                'DEVPATH=="/devices/pci0/*", ATTR{queue/x}="7"\n'
                'ENV{ELSEWHERE}=="yes", ATTR{queue/x}="8"\n'
            ),
        },
    )
    (tmp_path / "sys/block").mkdir(parents=True)
    (tmp_path / "sys/block/vda").symlink_to(device)
    system = System(str(tmp_path))
    file = "/etc/udev/rules.d/a.rules"
    found, doubts = walk([(file, parse_rules(system, file))], Device(system, "vda"), "queue/x")
    assert [one.value for one in found] == ["1", "3", "7"]
    assert doubts == [f"{file}:10"]


def test_a_queue_without_a_scheduler_is_no_deeper_than_the_disk_has_tags(tmp_path, host):
    tree(tmp_path, {"/sys/block/nvme0n1/mq/0/nr_tags": "1023\n", "/sys/block/sda/mq/0/nr_tags": "64\n"})
    for name in ("nvme__nr_requests", "nvme0n1__nr_requests"):
        declare(host, **{name: "1023"})
        with pytest.raises(Refusal, match="disk nvme0n1 has 1023 tags and no scheduler"):
            declare(host, **{name: "1024"})
    # With a scheduler, one that comes with the same call too, the kernel keeps a queue of its own.
    declare(host, sda__nr_requests="256")
    declare(host, nvme__nr_requests="2048", nvme__scheduler="mq-deadline")
    declare(host, nvme__nr_requests="2048", nvme0n1__nr_requests="512")
