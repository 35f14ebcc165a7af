"""Kind sysctl: names, definitions, raise-only, activation. The order of sysctl.d: test_sysctl_oracle.py."""

import os

import pytest
from hosttune.kinds.sysctl import SysctlKind, to_name, to_path
from hosttune.model import Change, Refusal, Setting
from hosttune.system import System


def tree(root, files):
    for path, content in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)


@pytest.fixture
def host(tmp_path):
    tree(
        tmp_path,
        {
            "/proc/sys/vm/swappiness": "60\n",
            "/proc/sys/vm/dirty_ratio": "20\n",
            "/proc/sys/vm/dirty_bytes": "0\n",
            "/proc/sys/fs/nr_open": "1048576\n",
            "/proc/sys/net/ipv4/tcp_rmem": "4096\t131072\t6291456\n",
            "/proc/sys/net/ipv4/tcp_congestion_control": "cubic\n",
            "/proc/sys/net/ipv4/conf/eth0.100/rp_filter": "0\n",
        },
    )
    return System(str(tmp_path))


def wish(name, value, **notes):
    return Setting("kernel", "sysctl", name, value, notes=notes)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("vm.swappiness", "vm/swappiness"),
        ("net/ipv4/conf/eth0.100/rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
    ],
)
def test_names_and_paths(name, path):
    assert to_path(name) == path
    assert to_path(to_name(path)) == path


def test_live_values_have_single_blanks(host):
    found = SysctlKind(host).read(["net.ipv4.tcp_rmem", "net.ipv4.conf.eth0/100.rp_filter"])
    assert found["net.ipv4.tcp_rmem"].live == "4096 131072 6291456"
    assert found["net.ipv4.conf.eth0/100.rp_filter"].live == "0"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("vm.swappines", "10", "Did you mean vm.swappiness"),
        ("vmm.swappiness", "10", "Did you mean vm.swappiness"),
        ("vm.swappiness", "low", "whole number"),
        ("vm.swappiness", "10 20", "2 fields"),
        ("net.ipv4.tcp_rmem", "4096 1", "Give 3 whole numbers"),
        ("vm.*", "1", "no sysctl name"),
        ("vm..swappiness", "1", "no sysctl name"),
    ],
)
def test_refuses(host, name, value, says):
    with pytest.raises(Refusal) as caught:
        SysctlKind(host).check([wish(name, value)], {})
    assert says in str(caught.value)
    assert name in str(caught.value)


def test_refuses_two_spellings_of_one_key(host):
    with pytest.raises(Refusal, match="same key"):
        SysctlKind(host).check([wish("vm.swappiness", "1"), wish("vm/swappiness", "2")], {})


def test_a_key_that_a_module_brings_is_no_mistake(host):
    with pytest.raises(Refusal):
        SysctlKind(host).check([wish("net.netfilter.nf_conntrack_max", "1")], {})
    SysctlKind(host).check([wish("net.netfilter.nf_conntrack_max", "1", module="nf_conntrack")], {})


def test_text_refuses_what_yaml_made_of_off(host):
    with pytest.raises(Refusal, match="quotes"):
        SysctlKind(host).text("kernel.x", False)


def test_absent_conditional_keys_are_unsupported_with_their_reason(host):
    kind = SysctlKind(host)
    kind.check([wish("vm.zone_reclaim_mode", "0")], {})
    assert "CONFIG_NUMA" in kind.read(["vm.zone_reclaim_mode"])["vm.zone_reclaim_mode"].unsupported


def test_a_container_owns_its_network_only(host, tmp_path):
    tree(tmp_path, {"/run/systemd/container": "systemd-nspawn\n"})
    names = ["vm.swappiness", "net.ipv4.tcp_congestion_control", "net.core.default_qdisc"]
    found = SysctlKind(System(host.root)).read(names)
    assert found["vm.swappiness"].unsupported == "kernel shared with the machine"
    assert found["vm.swappiness"].live == "60"
    assert found["net.ipv4.tcp_congestion_control"].unsupported == ""
    assert "network namespace" in found["net.core.default_qdisc"].unsupported
    tree(tmp_path, {"/proc/sys/net/core/dev_weight": "64\n"})
    again = SysctlKind(System(host.root)).read(names)
    assert "network namespace shared" in again["net.ipv4.tcp_congestion_control"].unsupported


def test_read_only_keys_are_unsupported(host):
    os.chmod(host.path("/proc/sys/vm/swappiness"), 0o444)
    assert "read-only" in SysctlKind(host).read(["vm.swappiness"])["vm.swappiness"].unsupported


@pytest.mark.parametrize(
    ("name", "asked", "baseline", "target"),
    [
        ("fs.file-max", "100", "9223372036854775807", "9223372036854775807"),
        ("fs.file-max", "200", "100", "200"),
        ("net.ipv4.tcp_rmem", "4096 1 99999999", "8192 131072 6291456", "4096 131072 99999999"),
        ("vm.swappiness", "10", "60", "10"),
        ("fs.file-max", "100", None, "100"),
        ("net.ipv4.tcp_rmem", "1 2 3", "1 2", "1 2 3"),
    ],
)
def test_raise_only(host, name, asked, baseline, target):
    assert SysctlKind(host).target(name, asked, baseline) == target


def test_same_is_numeric(host):
    kind = SysctlKind(host)
    assert kind.same("x", "0x10 1", "16 1")
    assert not kind.same("x", "1 2", "1 2 3")
    assert not kind.same("x", "fq", "fq_codel")


def test_what_is_rendered_is_what_is_read_back(host, tmp_path):
    kind = SysctlKind(host)
    wanted = [
        wish("vm.swappiness", "10"),
        wish("net.ipv4.tcp_rmem", "4096 87380 6291456"),
        wish("net.ipv4.conf.eth0/100.rp_filter", "1"),
        wish("net/ipv4/conf/eth0.100/rp_filter", "1"),
    ]
    ((path, image),) = kind.render("kernel", wanted).items()
    assert path == "/etc/sysctl.d/60-hosttune-kernel.conf"
    tree(tmp_path, {path: image.content.decode()})
    for one in wanted:
        winner = kind.read([one.name])[one.name].winner
        assert (winner.value, winner.file) == (one.value, path)


def test_definitions_name_file_and_line(host, tmp_path):
    tree(
        tmp_path,
        {
            "/usr/lib/sysctl.d/50-default.conf": "# x\n\nvm.swappiness = 30\n",
            "/etc/sysctl.d/60-hosttune-kernel.conf": "vm.swappiness = 10\n",
            "/etc/sysctl.d/99-sysctl.conf": "vm/swappiness=60\n",
            "/etc/sysctl.d/no.conf.bak": "vm.swappiness=1\n",
        },
    )
    planes = SysctlKind(host).read(["vm.swappiness"])["vm.swappiness"]
    assert planes.persisted_dict() == {
        "value": "60",
        "file": "/etc/sysctl.d/99-sysctl.conf",
        "line": 1,
        "overridden": [
            {"value": "30", "file": "/usr/lib/sysctl.d/50-default.conf", "line": 3},
            {"value": "10", "file": "/etc/sysctl.d/60-hosttune-kernel.conf", "line": 1},
        ],
    }


def test_activation_order_and_failure(host, monkeypatch):
    order = []
    write = System.write_value
    monkeypatch.setattr(
        System, "write_value", lambda self, path, value: (order.append(path), write(self, path, value))
    )
    names = ["vm.dirty_ratio", "vm.dirty_bytes", "net.ipv4.tcp_rmem", "fs.nr_open", "vm.nothing"]
    values = ["5", "0", "1 2 3", "2000000", "1"]
    failed = SysctlKind(host).activate([Change(*pair) for pair in zip(names, values)], [])
    assert order[0] == "/proc/sys/fs/nr_open"
    # The kernel refuses this zero; writing its twin brings it.
    assert "/proc/sys/vm/dirty_bytes" not in order
    assert "/proc/sys/vm/dirty_ratio" in order
    assert list(failed) == ["vm.nothing"]
    assert "No such file" in failed["vm.nothing"]


def test_undo_of_a_zero_gives_the_twin_back(tmp_path):
    """The kernel refuses 0 for vm.dirty_bytes: what brings it is the ratio that was in force."""
    folder = tmp_path / "proc/sys/vm"
    folder.mkdir(parents=True)
    (folder / "dirty_bytes").write_text("0\n")
    (folder / "dirty_ratio").write_text("20\n")
    kind = SysctlKind(System(str(tmp_path)))
    before = {"live": "0", "coupled": kind.coupled("vm.dirty_bytes")}
    assert before["coupled"] == {"vm.dirty_ratio": "20"}
    (folder / "dirty_bytes").write_text("4096\n")
    (folder / "dirty_ratio").write_text("0\n")
    assert kind.activate([Change("vm.dirty_bytes", "0", before, undo=True)], []) == {}
    assert (folder / "dirty_ratio").read_text() == "20\n"
    assert (folder / "dirty_bytes").read_text() == "4096\n"  # a real kernel zeroes it by itself
    assert kind.coupled("vm.swappiness") == {}


def test_a_loop_of_links_is_skipped_and_a_file_that_cannot_be_read_makes_unknown(host, tmp_path, monkeypatch):
    tree(tmp_path, {"/etc/sysctl.d/b.conf": "vm.swappiness = 10\n"})
    (tmp_path / "etc/sysctl.d/a.conf").symlink_to("a.conf")
    assert SysctlKind(host).read(["vm.swappiness"])["vm.swappiness"].winner.value == "10"

    def refuse(self, path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(System, "read", refuse)
    assert "Permission denied" in SysctlKind(host).read(["vm.swappiness"])["vm.swappiness"].unknown


def test_a_glob_gives_nothing_to_a_key_that_the_kernel_does_not_have(host, tmp_path):
    tree(tmp_path, {"/etc/sysctl.d/b.conf": "vm.* = 10\n"})
    kind = SysctlKind(host)
    assert kind.read(["vm.swappiness"])["vm.swappiness"].winner.value == "10"
    assert kind.read(["vm.zone_reclaim_mode"])["vm.zone_reclaim_mode"].winner is None
