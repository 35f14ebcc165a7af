"""Kind hugepages: pools by node, what a boot makes of them, and a kernel that has only so much memory."""

import os
import subprocess

import hosttune.kinds.hugepages as ours
import pytest
from fake_host import FakeHost
from hosttune import conflicts
from hosttune.kinds.hugepages import HugepagesKind, Pool, Step, parse
from hosttune.kinds.sysfs import Tmpfiles
from hosttune.model import Change, Definition, Refusal, Setting
from hosttune.system import System
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle_trees import Comparison, cases, clear, need, put

COMPARISON = Comparison("hugepages, systemd-tmpfiles")
GIB = 1 << 20  # in kB
NODE = "/sys/devices/system/node/node{}/hugepages/hugepages-{}kB"
TOTAL = "/sys/kernel/mm/hugepages/hugepages-{}kB"


class Kernel(System):
    """A machine in a folder whose pools behave as set_max_huge_pages() makes them.

    `free` is what each node can give, in kB; `used` the pages that programs hold, by (node, size).
    """

    def __init__(self, root, memory, sizes=(2048, GIB), numa=True, old=True):
        super().__init__(str(root))
        self.memory, self.sizes, self.numa, self.old = memory, sizes, numa, old
        self.free = dict(memory)
        self.nr = {(node, size): 0 for node in memory for size in sizes}
        self.surplus = dict.fromkeys(self.nr, 0)
        self.used = dict.fromkeys(self.nr, 0)
        self.compacted, self.after_compaction, self.writes = [], {}, []
        if numa:
            self.put("/sys/devices/system/node/online", ",".join(map(str, memory)))
            for node in memory:
                self.put(f"/sys/devices/system/node/node{node}/compact", "")
        self.put("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda1 quiet\n")
        self.put("/proc/sys/vm/nr_hugepages", "0\n")
        self.show()

    def put(self, path, text):
        real = self.path(path)
        os.makedirs(os.path.dirname(real), exist_ok=True)
        with open(real, "w", encoding="utf-8") as stream:
            stream.write(text)

    def folder(self, node, size):
        return NODE.format(node, size) if self.numa else TOTAL.format(size)

    def show(self):
        for (node, size), count in self.nr.items():
            self.put(f"{self.folder(node, size)}/nr_hugepages", f"{count}\n")
            self.put(f"{self.folder(node, size)}/surplus_hugepages", f"{self.surplus[node, size]}\n")
        for size in self.sizes:
            total = sum(count for (_node, one), count in self.nr.items() if one == size)
            self.put(f"{TOTAL.format(size)}/nr_hugepages", f"{total}\n")
        for node, memory in self.memory.items():
            text = f"Node {node} MemTotal: {memory} kB\nNode {node} MemFree: {self.free[node]} kB\n"
            if self.numa:
                self.put(f"/sys/devices/system/node/node{node}/meminfo", text)
        whole = f"MemTotal: {sum(self.memory.values())} kB\nMemFree: {sum(self.free.values())} kB\n"
        self.put("/proc/meminfo", f"{whole}HugePages_Total: 0\nHugepagesize: {self.sizes[0]} kB\n")

    def write_value(self, path, value):
        self.writes.append((path, value))
        if path.endswith("/compact"):
            node = int(path.rsplit("/", 2)[1].removeprefix("node"))
            self.compacted.append(node)
            self.free[node] += self.after_compaction.pop(node, 0)
            return
        for key in self.nr:
            if path == f"{self.folder(*key)}/nr_hugepages":
                self.set_pool(key, int(value))
                self.show()
                return
        raise FileNotFoundError(2, "No such file or directory", path)

    def set_pool(self, key, count):
        node, size = key
        others = [one for one in self.nr if one[1] == size and one != key]
        if self.old:  # counts the surplus of other nodes too
            count += sum(self.surplus[one] for one in others)
        while self.surplus[key] and count > self.nr[key] - self.surplus[key]:
            self.surplus[key] -= 1
        while self.nr[key] - self.surplus[key] < count and self.free[node] >= size:
            self.nr[key] += 1
            self.free[node] -= size
        while self.nr[key] - self.surplus[key] > count and self.nr[key] > self.used[key]:
            self.nr[key] -= 1
            self.free[node] += size
        while self.nr[key] - self.surplus[key] > count:
            self.surplus[key] += 1


def wish(name, value, owner="hugepages"):
    return Setting(owner, "hugepages", name, value)


@pytest.fixture
def kernel(tmp_path):
    return Kernel(tmp_path, {0: 16 * GIB, 1: 16 * GIB})


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("0/2048kB", "0/2048kB"),
        ("0/2M", "0/2048kB"),
        ("0/2MB", "0/2048kB"),
        ("1/2MiB", "1/2048kB"),
        ("1/1G", "1/1048576kB"),
        ("3/1048576kB", "3/1048576kB"),
        ("64k", "64k"),
        ("0/2048", "0/2048"),
        ("x/2M", "x/2M"),
    ],
)
def test_sizes_have_one_spelling(kernel, name, means):
    assert HugepagesKind(kernel).canonical(name) == means


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("0/2048", "1", "such as 0/2048kB"),
        ("2/2048kB", "1", "Its nodes are 0, 1"),
        ("0/4M", "1", "0/2048kB"),
        ("0/2048kB", "-1", "no count of pages"),
        ("0/2048kB", "1e3", "no count of pages"),
        ("0/2048kB", "8000", "8000 pages of 2048 kB are 15.62 GiB, and node 0 has 16 GiB"),
        ("0/1G", "13", "13 pages of 1048576 kB"),
    ],
)
def test_refuses_before_anything_is_touched(kernel, name, value, says):
    with pytest.raises(Refusal) as caught:
        HugepagesKind(kernel).check([wish(name, value)], {})
    assert says in str(caught.value)
    assert not kernel.writes


def test_refuses_two_spellings_of_one_pool(kernel):
    with pytest.raises(Refusal, match="same as 0/2M"):
        HugepagesKind(kernel).check([wish("0/2M", "1"), wish("0/2048kB", "1")], {})


def test_all_pools_of_a_node_count_against_its_memory(kernel):
    kind = HugepagesKind(kernel)
    kind.check([wish("0/2M", "3000"), wish("1/2M", "6000")], {})
    kernel.set_pool((0, GIB), 10)
    kernel.show()
    with pytest.raises(Refusal, match="10 pages of 1048576 kB that stand already") as caught:
        kind.check([wish("0/2M", "3000")], {})
    # What the remedy says is granted is granted, and one page more is not.
    most = int(str(caught.value).split("Ask for ")[1].split()[0]) // 2048
    kind.check([wish("0/2M", str(most))], {})
    with pytest.raises(Refusal):
        kind.check([wish("0/2M", str(most + 1))], {})


def test_a_pool_above_the_bound_may_stay_and_shrink(kernel):
    kernel.set_pool((0, 2048), 7500)
    kernel.show()
    HugepagesKind(kernel).check([wish("0/2M", "7400")], {})


def test_a_node_without_memory_takes_none(tmp_path):
    kind = HugepagesKind(Kernel(tmp_path, {0: GIB, 1: 0}))
    with pytest.raises(Refusal, match="node 1 has no memory"):
        kind.check([wish("1/2M", "1")], {})


def test_the_pool_is_what_stays_reserved(kernel):
    kernel.set_pool((0, 2048), 100)
    kernel.used[0, 2048] = 60
    kernel.set_pool((0, 2048), 40)
    kernel.show()
    planes = HugepagesKind(kernel).read(["0/2M"])["0/2M"]
    assert planes.live == "40"
    assert planes.note.startswith("20 more pages are in use")


def test_a_kernel_without_numa_has_node_0(tmp_path):
    kernel = Kernel(tmp_path, {0: 4 * GIB}, numa=False)
    kind = HugepagesKind(kernel)
    assert kind.activate([Change("0/2M", "8")], []) == {}
    (image,) = kind.render("hugepages", [wish("0/2M", "8")]).values()
    assert f"w {TOTAL.format(2048)}/nr_hugepages - - - - 8\n" in image.content.decode()
    kernel.put(kind.managed_file("hugepages", "0/2M"), image.content.decode())
    planes = kind.read(["0/2M"])["0/2M"]
    assert (planes.live, planes.winner.value) == ("8", "8")


@pytest.mark.parametrize(
    ("prepare", "name", "says"),
    [
        (lambda kernel: kernel.put("/run/systemd/container", "lxc"), "0/2M", "kernel shared"),
        (
            lambda kernel: subprocess.run(["rm", "-r", kernel.path("/sys")], check=True),
            "0/2M",
            "built without",
        ),
        (lambda kernel: None, "9/2M", "no node 9"),
        (lambda kernel: None, "0/64k", "no huge pages of this size"),
    ],
)
def test_unsupported_says_why(kernel, prepare, name, says):
    prepare(kernel)
    assert says in HugepagesKind(kernel).read([name])[name].unsupported


def test_what_is_short_is_tried_again_after_compaction_of_that_node(kernel):
    kernel.free[1] = 10 * 2048
    kernel.after_compaction[1] = 20 * 2048
    assert HugepagesKind(kernel).activate([Change("1/2M", "25")], []) == {}
    assert kernel.compacted == [1]


def test_what_stays_short_is_said_with_the_arithmetic(kernel):
    kernel.free[1] = 10 * 2048
    failed = HugepagesKind(kernel).activate([Change("1/2M", "25"), Change("0/2M", "5")], [])
    assert list(failed) == ["1/2M"]
    assert "asked 25 pages, got 10: 30 MiB are missing, and node 1 has 0 bytes free" in failed["1/2M"]
    assert "reboot" in failed["1/2M"]
    assert kernel.nr[0, 2048] == 5


def test_lowered_pools_on_two_nodes_in_use_end_as_asked(kernel):
    # Up to 6.13 the kernel adds the surplus of node 0 to what is asked of node 1.
    for node in (0, 1):
        kernel.set_pool((node, 2048), 100)
        kernel.used[node, 2048] = 70
    kind = HugepagesKind(kernel)
    assert kind.activate([Change("0/2M", "50"), Change("1/2M", "50")], []) == {}
    assert [kind.read([name])[name].live for name in ("0/2M", "1/2M")] == ["50", "50"]
    assert min(kernel.nr[0, 2048], kernel.nr[1, 2048]) == 70


def test_what_an_old_kernel_cannot_free_is_said(kernel):
    for node in (0, 1):
        kernel.set_pool((node, 2048), 10)
        kernel.used[node, 2048] = 5
    kernel.show()
    kind, nothing = HugepagesKind(kernel), [Change("0/2M", "0", undo=True), Change("1/2M", "0", undo=True)]
    assert "asked 0 pages, 5 stay" in kind.activate(nothing, [])["1/2M"]
    kernel.used = dict.fromkeys(kernel.used, 0)
    kernel.surplus[0, 2048] = kernel.nr[0, 2048] = 0  # its user is gone, and the kernel took them back
    kernel.show()
    assert kind.activate(nothing, []) == {}


def test_what_is_freed_comes_first(kernel):
    kernel.set_pool((0, GIB), 12)
    kernel.free[0] = 0
    changes = [Change("0/2M", "512"), Change("0/1G", "11")]
    assert HugepagesKind(kernel).activate(changes, []) == {}


def test_gigantic_pages_come_with_the_next_boot(kernel):
    kind = HugepagesKind(kernel)
    planes = kind.read(["0/1G", "0/2M"])
    assert (planes["0/1G"].needs, planes["0/2M"].needs) == ("reboot", "none")
    assert not kind.reaches("0/1G", planes["0/1G"])
    # Of a boot that asked for them already another one would bring no more.
    kernel.put("/proc/cmdline", "root=/dev/vda1 hugepagesz=1G hugepages=0:2,1:2\n")
    planes = kind.read(["0/1G"])["0/1G"]
    assert planes.needs == "none"
    assert (planes.winner.value, planes.winner.file) == ("2", "/proc/cmdline")
    kernel.free[0] = GIB
    assert "kernel's command line" in kind.activate([Change("0/1G", "2")], [])["0/1G"]


@pytest.mark.parametrize(
    ("line", "size", "pools"),
    [
        ("hugepages=5", 2048, {0: 3, 1: 2}),
        ("hugepages=0:5,1:7", 2048, {0: 5, 1: 7}),
        ("hugepagesz=1G hugepages=1:3", GIB, {0: None, 1: 3}),
        ("hugepagesz=1G hugepages=1:3 hugepagesz=2M hugepages=8", 2048, {0: 4, 1: 4}),
        ("default_hugepagesz=1G hugepages=4", GIB, {0: 2, 1: 2}),
        ("default_hugepagesz=1G hugepages=4", 2048, {0: None, 1: None}),
        ("quiet -- hugepages=4", 2048, {0: None, 1: None}),
        ("hugepages=1:2,oops", 2048, {0: None, 1: 2}),
    ],
)
def test_the_command_line_gives_pools(kernel, line, size, pools):
    kernel.put("/proc/cmdline", f"root=/dev/vda1 {line}\n")
    names = [f"{node}/{size}kB" for node in pools]
    planes = HugepagesKind(kernel).read(names)
    found = [planes[name].winner.value if planes[name].winner else None for name in names]
    assert found == [None if count is None else str(count) for count in pools.values()]


def mine(kernel, pools):
    wanted = [wish(f"{node}/2048kB", str(count)) for node, count in pools.items()]
    for path, image in HugepagesKind(kernel).render("hugepages", wanted).items():
        kernel.put(path, image.content.decode())


def winners(kernel, *nodes):
    planes = HugepagesKind(kernel).read([f"{node}/2M" for node in nodes])
    return {name: (one.winner.value, one.winner.file) for name, one in planes.items()}


def test_ours_win_over_the_command_line(kernel):
    kernel.put("/proc/cmdline", "root=/dev/vda1 hugepages=512\n")
    mine(kernel, {0: 10, 1: 20})
    file = "/etc/tmpfiles.d/60-hosttune-hugepages-hugepages.conf"
    assert winners(kernel, 0, 1) == {"0/2M": ("10", file), "1/2M": ("20", file)}


def test_a_total_of_sysctl_d_wins_for_nothing_orders_it(kernel):
    mine(kernel, {0: 10, 1: 20})
    kernel.put("/etc/sysctl.d/90-pages.conf", "# by hand\nvm.nr_hugepages = 100\n")
    planes = HugepagesKind(kernel).read(["0/2M", "1/2M"])
    assert planes["0/2M"].winner == Definition("45", "/etc/sysctl.d/90-pages.conf", 2)
    assert planes["1/2M"].winner == Definition("55", "/etc/sysctl.d/90-pages.conf", 2)
    assert "vm.nr_hugepages = 100" in planes["0/2M"].where
    # One that is the sum of the nodes changes nothing, before or after.
    kernel.put("/etc/sysctl.d/90-pages.conf", "vm.nr_hugepages = 30\n")
    planes = HugepagesKind(kernel).read(["0/2M"])["0/2M"]
    assert (planes.winner.value, planes.where) == ("10", "")
    assert "/etc/sysctl.d/90-pages.conf" in [one.file for one in planes.overridden]


def test_a_total_of_sysctl_d_is_no_matter_of_another_size(kernel):
    kernel.put("/etc/sysctl.d/90-pages.conf", "vm.nr_hugepages = 100\n")
    assert HugepagesKind(kernel).read(["0/1G"])["0/1G"].winner is None


def test_a_later_total_of_tmpfiles_d_wins_and_an_earlier_one_does_not(kernel):
    mine(kernel, {0: 10, 1: 20})
    line = f"w {TOTAL.format(2048)}/nr_hugepages - - - - 8\n"
    kernel.put("/etc/tmpfiles.d/90-pages.conf", line)
    assert winners(kernel, 0, 1) == {
        "0/2M": ("0", "/etc/tmpfiles.d/90-pages.conf"),
        "1/2M": ("8", "/etc/tmpfiles.d/90-pages.conf"),
    }
    os.unlink(kernel.path("/etc/tmpfiles.d/90-pages.conf"))
    kernel.put("/etc/tmpfiles.d/10-pages.conf", line)
    assert winners(kernel, 0)["0/2M"][0] == "10"


def test_a_menu_that_cannot_be_followed_is_said_and_counted_for_nothing(kernel):
    kernel.put("/boot/grub/grub.cfg", 'set default="${unknown_thing}"\n')
    planes = HugepagesKind(kernel).read(["0/2M"])["0/2M"]
    assert planes.winner is None
    assert "next boot's command line is not known" in planes.note
    mine(kernel, {0: 10})
    assert winners(kernel, 0)["0/2M"][0] == "10"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("sysctl", "vm.nr_hugepages"),
        ("sysctl", "vm/nr_hugepages_mempolicy"),
        ("sysfs", "kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"),
    ],
)
def test_two_ways_to_one_pool_contradict(kernel, kind, name):
    with pytest.raises(Refusal, match="hugepages 0/2M"):
        conflicts.check([wish("0/2M", "1"), Setting("kernel", kind, name, "2")], kernel)
    assert conflicts.check([Setting("kernel", kind, name, "2")], kernel) == []


class Host(FakeHost):
    """A host for the whole walk; a node has memory for 20 pages."""

    def pool(self, node, count=None):
        path = f"{NODE.format(node, 2048)}/nr_hugepages"
        if count is not None:
            self.put(path, f"{count}\n")
        return int(self.text(path))

    def write_value(self, path, value):
        most = str(min(int(value), 20)) if path.endswith("nr_hugepages") else value
        super().write_value(path, most)


def test_the_whole_walk_applies_finds_and_undoes(tmp_path):
    host = Host(tmp_path)
    host.put("/sys/devices/system/node/online", "0-1\n")
    host.put("/proc/meminfo", "MemTotal: 131072 kB\nHugepagesize: 2048 kB\n")
    host.put(f"{TOTAL.format(2048)}/nr_hugepages", "3\n")
    for node in (0, 1):
        host.put(f"/sys/devices/system/node/node{node}/meminfo", f"Node {node} MemTotal: 65536 kB\n")
        host.put(f"{NODE.format(node, 2048)}/surplus_hugepages", "0\n")
        host.pool(node, 3 * node)
    before = host.snapshot(below=("etc", "sys"))
    owners = {"pages": {"hugepages": {"0/2M": "8", "1/2048kB": "9"}}}
    report = host.apply(owners)
    assert [one.verdict for one in report.settings] == ["in_sync", "in_sync"], report.failures
    assert (host.pool(0), host.pool(1)) == (8, 9)
    assert not host.apply(owners).changed
    host.pool(0, 4)
    assert host.apply(owners, check=True).settings[0].verdict == "live_drift"
    # Another spelling is the same pool; too much is said, and the rest is done.
    report = host.apply({"pages": {"hugepages": {"0/2048kB": "25", "1/2048kB": "9"}}})
    assert [one.verdict for one in report.settings] == ["live_drift", "in_sync"]
    assert "asked 25 pages, got 20" in report.failures[0]
    assert not host.apply({}, present=False).failures
    assert host.snapshot(below=("etc", "sys")) == before


# what a boot makes of it: totals spread as the kernel spreads them


def reference(steps, nodes):
    """One page at a time, as the kernel's loops do it."""
    pool = dict.fromkeys(nodes, 0)
    for node, count in steps:
        if node is not None:
            pool[node] = count
            continue
        at = 0
        while sum(pool.values()) != count:
            one = nodes[at % len(nodes)]
            at += 1
            if sum(pool.values()) < count:
                pool[one] += 1
            elif pool[one]:
                pool[one] -= 1
    return pool


@settings(max_examples=cases(300), deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([None, 0, 1, 4]), st.integers(0, 40)), max_size=5),
    st.sampled_from([[0], [0, 1], [0, 1, 4]]),
)
def test_a_boot_ends_where_the_kernel_ends(steps, nodes):
    steps = [(node, count) for node, count in steps if node is None or node in nodes]
    pool, said = ours.boot(
        [Step(node, count, Definition(str(count), f"step {at}")) for at, (node, count) in enumerate(steps)],
        nodes,
    )
    assert {node: count or 0 for node, count in pool.items()} == reference(steps, nodes)
    for node in nodes:
        # Who is named last has said the value that stands.
        assert (pool[node] is None) == (not said[node])
        if said[node]:
            assert said[node][-1].value == str(pool[node])


# tmpfiles.d, over several paths

PATHS = [NODE.format(0, 2048), NODE.format(1, 2048), TOTAL.format(2048)]
lines = st.builds(
    "{} {} - - - - {}".format,
    st.sampled_from(["w", "w", "w", "w+", "w!", "x", "w-"]),
    st.sampled_from(
        [
            *(f"{path}/nr_hugepages" for path in PATHS),
            NODE.format("*", 2048) + "/nr_hugepages",
            NODE.format("[01]", "*") + "/nr_hugepages",
            TOTAL.format("*") + "/*",
        ]
    ),
    st.integers(100, 999),
)
names = st.sampled_from(
    [
        "etc/tmpfiles.d/60-hosttune-hugepages-a.conf",
        "run/tmpfiles.d/10-b.conf",
        "usr/lib/tmpfiles.d/60-hosttune-hugepages-a.conf",
        "usr/lib/tmpfiles.d/pages.conf",
    ]
)
trees = st.dictionaries(names, st.lists(lines, min_size=1, max_size=4), min_size=1, max_size=4)
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


def materialise(folder, files):
    """A tree whose three attributes are one FIFO, so that what is written to any of them keeps its order."""
    clear(folder, ["etc", "run", "usr", "sys"])
    for path in PATHS:
        os.makedirs(f"{folder}{path}")
    first = f"{folder}{PATHS[0]}/nr_hugepages"
    os.mkfifo(first)
    for path in PATHS[1:]:
        os.link(first, f"{folder}{path}/nr_hugepages")
    put(folder, {path: ("\n".join(text) + "\n").encode() for path, text in files.items()})


def truth(folder, files):
    program = need("tmpfiles.d is read as systemd reads it", "systemd-tmpfiles")
    materialise(folder, files)
    reader = os.open(f"{folder}{PATHS[0]}/nr_hugepages", os.O_RDONLY | os.O_NONBLOCK)
    try:
        argv = [program, f"--root={folder}", "--create", "--boot"]
        subprocess.run(argv, capture_output=True, check=False, timeout=60)
        try:
            written = os.read(reader, 65536).decode()
        except BlockingIOError:
            written = ""
    finally:
        os.close(reader)
    return ["".join(found) for found in zip(*[iter("".join(written.split()))] * 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hugepages")


def disagreements(folder, writes):
    paths = [f"{path}/nr_hugepages" for path in PATHS]
    found = [one.value for _path, one in Tmpfiles(System(str(folder))).written(paths)]
    return [] if found == writes else [f"we say {found}, systemd-tmpfiles wrote {writes}"]


@settings(max_examples=cases(200), deadline=None, suppress_health_check=SLOW)
@given(trees)
def test_what_is_written_to_several_pools_is_in_systemd_tmpfiles_order(folder, files):
    writes = truth(folder, files)
    COMPARISON.agree(disagreements(folder, writes))


def test_the_comparison_sees_a_fault_of_ours(folder, tmp_path, monkeypatch):
    answered = []

    @settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=SLOW)
    @given(trees)
    def ask(files):
        answered.append((files, truth(folder, files)))

    ask()
    written = Tmpfiles.written
    monkeypatch.setattr(Tmpfiles, "written", lambda self, paths: sorted(written(self, paths)[::-1], key=str))

    def trial(number):
        files, writes = answered[number]
        materialise(tmp_path, files)
        return disagreements(tmp_path, writes)

    COMPARISON.catches("paths by name, not by turn", trial, len(answered))


@settings(max_examples=cases(100), deadline=None, suppress_health_check=SLOW)
@given(
    st.dictionaries(st.sampled_from([0, 1]), st.integers(0, 60), min_size=1),
    st.dictionaries(st.sampled_from([0, 1]), st.integers(0, 40)),
    st.booleans(),
)
def test_a_pool_ends_as_asked_or_says_what_is_missing(tmp_path, asked, used, old):
    kernel = Kernel(tmp_path, {0: 50 * 2048, 1: 50 * 2048}, sizes=(2048,), old=old)
    for node, count in used.items():
        kernel.set_pool((node, 2048), count)
        kernel.used[node, 2048] = count
    kernel.show()
    kind = HugepagesKind(kernel)
    failed = kind.activate([Change(f"{node}/2M", str(count)) for node, count in asked.items()], [])
    for node, count in asked.items():
        live = int(kind.read([f"{node}/2M"])[f"{node}/2M"].live)
        assert (f"{node}/2M" in failed) == (live != count)
        assert live == min(count, 50) or (old and count < live and kernel.surplus[1 - node, 2048])
        assert kernel.nr[node, 2048] >= used.get(node, 0)


def test_a_name_is_a_node_and_a_size():
    assert parse("0/2M") == Pool(0, 2048)
    assert str(Pool(1, 2048)) == "1/2048kB"
