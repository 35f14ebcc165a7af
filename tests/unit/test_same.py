"""Unit-aware equality: two texts are one value where the kernel makes one of them, and never else."""

from __future__ import annotations

import pytest
from fake_host import FullHost, as_root
from hosttune import cpulist
from hosttune.kinds.block import BlockKind
from hosttune.kinds.limit import LimitKind
from hosttune.kinds.mount import MountKind
from hosttune.kinds.sysctl import SysctlKind
from hosttune.kinds.sysfs import SysfsKind
from hosttune.system import System
from hypothesis import given
from hypothesis import strategies as st

NUMBER = st.integers(-(2**63), 2**64 - 1)
CPUS = st.sets(st.integers(0, 200))
RPS = "class/net/eth0/queues/rx-0/rps_cpus"
DEFRAG = "kernel/mm/ksm/run"
BOOLEAN = "module/kvm/parameters/nx_huge_pages"
INTEGER = "module/kvm/parameters/halt_poll_ns"
CHOICE = "kernel/mm/transparent_hugepage/enabled"


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    root = tmp_path_factory.mktemp("same")
    for name, text in {BOOLEAN: "Y\n", INTEGER: "1\n"}.items():
        (root / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys" / name).write_text(text)
    return System(str(root))


def kernel_number(text: str) -> int | None:
    """strtoul(3) with base 0 after an optional minus, as proc_get_long() of kernel/sysctl.c; None: EINVAL."""
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    if not digits[:1].isascii() or not digits[:1].isdigit():
        return None
    base = 16 if digits[:2].lower() == "0x" else 8 if digits[0] == "0" else 10
    digits = digits[2:] if base == 16 else digits
    allowed = "0123456789abcdef"[:base]
    if not digits or set(digits.lower()) - set(allowed):
        return None
    return sign * int(digits, base)


SPELLED = st.one_of(
    NUMBER.map(str),
    NUMBER.map(lambda one: f"{'-' if one < 0 else ''}0x{abs(one):X}"),
    NUMBER.map(lambda one: f"{'-' if one < 0 else ''}0{abs(one):o}"),
    st.integers(0, 20).map(str),
    st.integers(0, 20).map(lambda one: f"0{one}"),
    st.text("0178xXbo_+-aF\u0661", min_size=1, max_size=4),
)


@given(one=SPELLED, other=SPELLED)
def test_sysctl_numbers_are_as_the_kernel_reads_them(system, one, other):
    left, right = kernel_number(one), kernel_number(other)
    expected = one == other or (left is not None and left == right)
    kind = SysctlKind(system)
    assert kind.same("vm.swappiness", one, other) is expected
    assert kind.same("vm.swappiness", other, one) is expected


@given(fields=st.lists(NUMBER, min_size=1, max_size=5), gap=st.sampled_from([" ", "\t", "  ", "\t "]))
def test_sysctl_fields_are_the_same_whatever_parts_them(system, fields, gap):
    kind = SysctlKind(system)
    text = " ".join(map(str, fields))
    assert kind.same("net.ipv4.tcp_rmem", text, gap.join(map(str, fields)))
    assert not kind.same("net.ipv4.tcp_rmem", text, f"{text} 1")


@pytest.mark.parametrize("name", ["kernel.core_pattern", "kernel/hostname", "net.core.default_qdisc"])
def test_sysctl_text_is_no_number(system, name):
    assert not SysctlKind(system).same(name, "010", "8")
    assert SysctlKind(system).same(name, "010", "010")


def ranges(cpus: set[int], wide: bool) -> str:
    return ",".join(map(str, sorted(cpus))) if wide else cpulist.format(cpus)


@given(one=CPUS, other=CPUS, wide=st.booleans())
def test_sysctl_lists(system, one, other, wide):
    kind = SysctlKind(system)
    for name in ("kernel.watchdog_cpumask", "net.ipv4.ip_local_reserved_ports"):
        assert kind.same(name, ranges(one, wide), ranges(one, False))
        assert kind.same(name, ranges(one, wide), ranges(other, False)) is (one == other)
        # The kernel knows no strides and no blanks here.
        assert not kind.same(name, "0-6:1/2", "0,2,4,6")


def test_sysctl_sets_and_masks(system):
    kind = SysctlKind(system)
    assert kind.same("net.ipv4.tcp_allowed_congestion_control", "reno cubic", "cubic reno")
    assert not kind.same("net.ipv4.tcp_available_congestion_control", "reno cubic", "cubic reno")
    assert kind.same("net.core.rps_default_mask", "10", "00000010")
    assert not kind.same("net.core.rps_default_mask", "10", "16")
    assert not kind.same("net.core.rps_default_mask", "0x10", "10")


def mask(cpus: set[int], width: int) -> str:
    return cpulist.to_hex_mask(cpus, width)


@given(one=CPUS, other=CPUS, width=st.integers(0, 256))
def test_sysfs_masks_are_hex_of_any_width_and_never_lists(system, one, other, width):
    kind = SysfsKind(system)
    for name in (RPS, f"/sys/{RPS}", "devices/virtual/workqueue/cpumask"):
        assert kind.same(name, mask(one, 0), mask(one, width).upper())
        assert kind.same(name, mask(one, width), mask(other, 0)) is (one == other)
        assert not kind.same(name, f"0x{mask(one, 0)}", mask(one, 0))
    assert not kind.same(RPS, "0-3", "f")
    # Elsewhere a mask is a text as any other.
    assert not kind.same("devices/system/cpu/nohz_full", "f", "0000000f")


@given(one=st.integers(-100, 100), other=st.integers(-100, 100))
def test_sysfs_numbers(system, one, other):
    kind = SysfsKind(system)
    assert kind.same(DEFRAG, str(one), str(other)) is (one == other)
    # What begins with a zero is octal to one attribute and decimal to another.
    assert not kind.same(DEFRAG, f"0{abs(one) + 8}", str(abs(one) + 8))
    assert not kind.same(DEFRAG, hex(one), str(one))


@pytest.mark.parametrize("one", ["Y", "y", "1", "on", "t"])
@pytest.mark.parametrize("other", ["N", "n", "0", "off", "f"])
def test_boolean_module_parameters(system, one, other):
    kind = SysfsKind(system)
    assert kind.same(BOOLEAN, one, "Y")
    assert kind.same(BOOLEAN, "Y", one)
    assert kind.same(f"/sys/{BOOLEAN}", other, "N")
    assert not kind.same(BOOLEAN, one, other)
    assert not kind.same(BOOLEAN, "2", one)
    assert not kind.same(INTEGER, "Y", "1")


def test_sysfs_choices_are_the_bracketed_word(tmp_path):
    host = FullHost(tmp_path)
    for text, chosen in {
        "[always] madvise never": "always",
        "always madvise [never]": "never",
        "always [madvise] never": "madvise",
    }.items():
        host.put(f"/sys/{CHOICE}", f"{text}\n")
        kind = SysfsKind(host)
        live = kind.read([CHOICE])[CHOICE].live
        for word in ("always", "madvise", "never"):
            assert kind.same(CHOICE, word, live) is (word == chosen)
    host.put("/sys/block/sda/queue/scheduler", "[none] mq-deadline\n")
    kind = BlockKind(host)
    live = kind.read(["sda/scheduler"])["sda/scheduler"].live
    assert kind.same("sda/scheduler", "none", live)
    assert not kind.same("sda/scheduler", "mq-deadline", live)


WORDS = "0,00,1,01,-1,10,0x10,16,f,0f,Y,N,on,noatime,commit=5,unlimited,none,kyber,[none],64m,1 2,"
TEXTS = st.sampled_from(WORDS.split(","))


@given(one=TEXTS, other=TEXTS)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (SysctlKind, "vm.swappiness"),
        (SysctlKind, "kernel.watchdog_cpumask"),
        (SysctlKind, "kernel.core_pattern"),
        (SysfsKind, RPS),
        (SysfsKind, DEFRAG),
        (SysfsKind, BOOLEAN),
        (BlockKind, "sda/nr_requests"),
        (BlockKind, "sda/scheduler"),
        (LimitKind, "trader/hard/nproc"),
        (LimitKind, "trader/hard/nice"),
    ],
    ids=lambda one: getattr(one, "name", one),
)
def test_equality_is_reflexive_and_symmetric(system, kind, name, one, other):
    found = kind(system)
    assert found.same(name, one, one)
    assert found.same(name, one, other) is found.same(name, other, one)


@given(
    options=st.lists(st.sampled_from(["noatime", "lazytime", "nosuid", "commit=5", "size=64m"]), unique=True)
)
def test_mount_options_are_in_force_in_any_order_and_unit(system, options):
    kind = MountKind(system)
    there = ["rw", *reversed(options)]
    shown = ",".join(there).replace("size=64m", "size=65536k")
    assert kind.same("/data", ",".join(options), shown)


# keys that zero each other


OVERCOMMIT = {"vm/overcommit_ratio": "50", "vm/overcommit_kbytes": "0", "vm/overcommit_memory": "0"}
#: As mm/page-writeback.c and mm/util.c: who zeroes whom, who only where its own value changes.
ZEROES = {
    "vm/dirty_ratio": ("vm/dirty_bytes", True),
    "vm/dirty_bytes": ("vm/dirty_ratio", True),
    "vm/dirty_background_ratio": ("vm/dirty_background_bytes", False),
    "vm/dirty_background_bytes": ("vm/dirty_background_ratio", False),
    "vm/overcommit_ratio": ("vm/overcommit_kbytes", False),
    "vm/overcommit_kbytes": ("vm/overcommit_ratio", False),
}


class Coupled(FullHost):
    """A host whose kernel plays the pairs exactly, also for a written zero."""

    def write_value(self, path: str, value: str) -> None:
        key = path.removeprefix("/proc/sys/")
        if key not in ZEROES:
            return super().write_value(path, value)
        self.live_writes.append(path)
        if key.startswith("vm/dirty") and key.endswith("_bytes") and value == "0":
            raise OSError(22, "Invalid argument", path)
        twin, only_changed = ZEROES[key]
        if not only_changed or self.text(path).strip() != value:
            self.put(f"/proc/sys/{twin}", "0\n")
        self.put(path, f"{value}\n")
        return None

    def boot(self) -> None:
        """What systemd-sysctl does with the files that define these keys, in their order."""
        lines = [
            line.strip().lstrip("-")
            for file in sorted(self.names("/etc/sysctl.d"))
            for line in self.text(f"/etc/sysctl.d/{file}").splitlines()
            if "=" in line and not line.startswith("#")
        ]
        for line in lines:
            name, _equals, value = (part.strip() for part in line.partition("="))
            try:
                self.write_value("/proc/sys/" + name.replace(".", "/"), value)
            except OSError:
                continue

    def pairs(self) -> dict[str, str]:
        return {key: self.text(f"/proc/sys/{key}").strip() for key in ZEROES}


@pytest.fixture
def host(tmp_path, monkeypatch):
    as_root(monkeypatch)
    found = Coupled(tmp_path)
    for name, value in OVERCOMMIT.items():
        found.put(f"/proc/sys/{name}", f"{value}\n")
    return found


ASKED = {
    "overcommit in kilobytes": {"vm.overcommit_kbytes": "1000000"},
    "overcommit, both named": {"vm.overcommit_kbytes": "1000000", "vm.overcommit_ratio": "0"},
    "overcommit, the other way": {"vm.overcommit_kbytes": "0", "vm.overcommit_ratio": "80"},
    "a ratio of overcommit": {"vm.overcommit_ratio": "80"},
    "dirty bytes": {"vm.dirty_bytes": "4194304"},
    "dirty bytes, both named": {"vm.dirty_bytes": "4194304", "vm.dirty_ratio": "0"},
    "background bytes, both named": {
        "vm.dirty_background_bytes": "4194304",
        "vm.dirty_background_ratio": "0",
    },
    "in slashes": {"vm/dirty_bytes": "4194304", "vm/dirty_ratio": "0"},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_keys_that_zero_each_other_are_applied_booted_and_undone(host, asked):
    before = host.pairs()
    planned = host.apply({"kernel": {"sysctl": asked}}, check=True)
    assert host.pairs() == before
    report = host.apply({"kernel": {"sysctl": asked}})
    assert (report.failures, planned.failures) == ([], [])
    now = host.pairs()
    assert {name: now[name.replace(".", "/")] for name in asked} == asked
    assert {one.verdict for one in report.settings} == {"in_sync"}
    host.boot()
    assert host.pairs() == now, "the next boot gives the same"
    writes = len(host.live_writes)
    assert not host.apply({"kernel": {"sysctl": asked}}).changed
    assert len(host.live_writes) == writes
    assert host.apply({}, present=False).failures == []
    assert host.pairs() == before


@pytest.mark.parametrize(
    ("asked", "foreign", "right"),
    [
        ("vm.overcommit_kbytes = 1000000", "vm.overcommit_ratio = 50", False),
        ("vm.overcommit_kbytes = 1000000", "vm.overcommit_ratio = 0", False),
        ("vm.overcommit_kbytes = 1000000", "vm.over*_ratio = 50", False),
        ("vm.dirty_bytes = 4194304", "vm.dirty_ratio = 20", False),
        ("vm.dirty_bytes = 4194304", "vm.dirty_ratio = 0", True),
        ("vm.dirty_background_bytes = 4194304", "vm.dirty_background_ratio = 0", False),
        ("vm.dirty_ratio = 10", "vm.dirty_bytes = 0", True),
        ("kernel.nmi_watchdog = 0", "kernel.watchdog = 1", False),
        ("kernel.nmi_watchdog = 0", "kernel.watchdog = 0", True),
    ],
)
def test_a_later_file_that_writes_the_twin_is_seen(host, asked, foreign, right):
    for name in ("nmi_watchdog", "soft_watchdog", "watchdog"):
        host.put(f"/proc/sys/kernel/{name}", "1\n")
    name, _equals, value = asked.partition(" = ")
    host.apply({"kernel": {"sysctl": {name: value}}})
    host.put("/etc/sysctl.d/99-late.conf", f"{foreign}\n")
    kind = SysctlKind(host)
    planes = kind.read([name])[name]
    assert kind.same(name, value, planes.winner.value) is right
    if not right:
        assert planes.winner.file == "/etc/sysctl.d/99-late.conf"
        assert "99-late.conf:1 sets" in planes.where
