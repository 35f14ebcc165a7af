"""Kind hugepages: the pool of huge pages of one size on one NUMA node, as a count of pages.

Names are NODE/SIZE (0/2048kB, sizes as sysfs spells them; 2M and 1G are other spellings). A kernel without
NUMA has node 0. The value is what stays reserved: nr_hugepages less the surplus pages, which
vm.nr_overcommit_hugepages allows or which are in use beyond a lowered pool; the kernel takes those back as
their users release them.

Persisted truth is what a boot comes to, by the three that set the pool, in this order:

1. the kernel's command line (hugepagesz=, hugepages=), which has all memory to choose from;
2. vm.nr_hugepages of sysctl.d, a total of the default size that the kernel spreads over the nodes;
3. `w` lines of tmpfiles.d, of a node's own file or of the total one. Ours are such lines.

Nothing orders systemd-sysctl.service and systemd-tmpfiles-setup.service (252), and every update of procps
runs sysctl again: where a total of sysctl.d would change what the lines of 3 made, it counts as the winner.
A total that is the very sum of the nodes changes nothing. Sources: mm/hugetlb.c (set_max_huge_pages,
hugepages_setup), admin-guide/mm/hugetlbpage.rst.

Pages of 1 GiB and more need a gigabyte in one piece, which a running kernel hardly ever has. They come with
the next boot: give them on the command line too (kind boot), where the kernel reserves them first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .. import cmdline, cpulist, grub
from ..model import Change, Definition, Planes, Refusal, Setting
from ..shell_source import Unfollowed
from ..sizing import text_size
from ..system import KERNEL_SHARED
from .base import Kind, did_you_mean
from .boot import page_pairs
from .sysctl import SysctlKind
from .sysfs import Tmpfiles

TOTALS = "/sys/kernel/mm/hugepages"
NODES = "/sys/devices/system/node"
#: The total of the default size, spread over the nodes.
SYSCTL = "vm.nr_hugepages"

#: Of a node's memory, the most that may be reserved: nothing else can use it, not even the page cache.
MOST_PERCENT = 80
#: From here on (1 GiB, in kB) a page is too large for a running kernel to find.
GIGANTIC_KB = 1 << 20

_NAME = re.compile(r"(\d+)/(\d+)([kKmMgG])(?:i?[bB])?\Z")
_KB = {"k": 1, "m": 1 << 10, "g": 1 << 20}
#: as memparse() reads it on the command line
_BOOT_SIZE = re.compile(r"(\d+)([kKmMgGtT]?)")
_BOOT_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


@dataclass(frozen=True)
class Pool:
    """A name taken apart: a node and a size of pages in kB."""

    node: int
    size: int

    def __str__(self) -> str:
        return f"{self.node}/{self.size}kB"


@dataclass(frozen=True)
class Step:
    """One thing that sets pools at boot: of a node, or (None) a total that the kernel spreads."""

    node: int | None
    count: int
    definition: Definition


def parse(name: str) -> Pool | None:
    """The pool that a name means; None for a text that is none."""
    found = _NAME.match(name)
    if found is None:
        return None
    node, number, unit = found.groups()
    return Pool(int(node), int(number) * _KB[unit.lower()])


def boot(
    steps: Sequence[Step], nodes: Sequence[int]
) -> tuple[dict[int, int | None], dict[int, list[Definition]]]:
    """What steps make of the pools of one size, in their order, and who had a say on each node.

    A total is spread over the nodes with memory one by one, and changes nothing where it is the sum already;
    the last definition of a node is the one that decides.
    """
    pool: dict[int, int | None] = dict.fromkeys(nodes)
    said: dict[int, list[Definition]] = {node: [] for node in nodes}
    for step in steps:
        if step.node is None:
            before = {node: pool[node] or 0 for node in nodes}
            after = _spread(before, step.count)
            for node in nodes:
                if after[node] != before[node] or pool[node] is None:
                    pool[node] = after[node]
                    said[node].append(_with_value(step.definition, after[node]))
                else:
                    said[node].insert(0, step.definition)
        elif step.node in pool:
            pool[step.node] = step.count
            said[step.node].append(step.definition)
    return pool, said


def _spread(pool: Mapping[int, int], total: int) -> dict[int, int]:
    """The pools once the kernel has added or freed pages one node after the other until they are `total`."""
    found = dict(pool)
    short = total - sum(found.values())
    while short:
        # Whole rounds at once; a node without pages cannot give any.
        able = [node for node in found if short > 0 or found[node]]
        each = abs(short) // len(able) or 1
        if short < 0:
            each = min(each, min(found[node] for node in able))
        for node in able[: abs(short)]:
            found[node] += each if short > 0 else -each
        short = total - sum(found.values())
    return found


def _with_value(definition: Definition, count: int) -> Definition:
    return Definition(str(count), definition.file, definition.line)


class HugepagesKind(Kind):
    """See the module's docstring."""

    name = "hugepages"

    # names and values

    def canonical(self, name: str) -> str:
        return str(parse(name) or name)

    def same(self, name: str, wanted: str, found: str) -> bool:
        return wanted == found or (wanted.isdigit() and found.isdigit() and int(wanted) == int(found))

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        asked: dict[Pool, Setting] = {}
        for setting in settings:
            pool = parse(setting.name)
            if pool is None:
                raise Refusal(
                    "is no pool of huge pages",
                    thing=str(setting),
                    remedy="Name a node and a size of pages, such as 0/2048kB",
                )
            other = asked.setdefault(pool, setting)
            if other is not setting:
                raise Refusal(f"is the same as {other.name}", thing=str(setting), remedy="Name it once")
            if not (setting.value.isascii() and setting.value.isdigit()):
                raise Refusal(
                    f"'{setting.value}' is no count of pages",
                    thing=str(setting),
                    remedy="Give a whole number, 0 for none",
                )
        if self.system.container or not self._sizes():
            return  # `read` says why it is unsupported
        for pool, setting in asked.items():
            self._check_pool(pool, setting)
        for node in sorted({pool.node for pool in asked}):
            self._check_memory(node, asked)

    def _check_pool(self, pool: Pool, setting: Setting) -> None:
        if pool.node not in self._nodes():
            raise Refusal(
                f"this host has no node {pool.node}",
                thing=str(setting),
                remedy=f"Its nodes are {', '.join(map(str, self._nodes()))}",
            )
        if pool.size not in self._sizes():
            offered = [f"{pool.node}/{size}kB" for size in self._sizes()]
            raise Refusal(
                f"the kernel has no huge pages of {pool.size} kB",
                thing=str(setting),
                remedy=did_you_mean(str(pool), offered) or f"Name one of {', '.join(offered)}",
            )
        if not self._memory(pool.node) and int(setting.value):
            with_memory = [node for node in self._nodes() if self._memory(node)]
            raise Refusal(
                f"node {pool.node} has no memory",
                thing=str(setting),
                remedy=f"Name a node that has: {', '.join(map(str, with_memory))}",
            )

    def _check_memory(self, node: int, asked: Mapping[Pool, Setting]) -> None:
        """All pools of a node, as they will be, within MOST_PERCENT of its memory, unless none grows."""
        parts, wanted, now = [], 0, 0
        for size in self._sizes():
            pool = Pool(node, size)
            live = self._live(pool) or 0
            count = int(asked[pool].value) if pool in asked else live
            wanted, now = wanted + count * size, now + live * size
            if count:
                parts.append(f"{count} pages of {size} kB" + ("" if pool in asked else " that stand already"))
        memory = self._memory(node)
        if wanted <= now or wanted * 100 <= memory * MOST_PERCENT:
            return
        setting = max(
            (one for pool, one in asked.items() if pool.node == node),
            key=lambda one: int(one.value) * (parse(one.name) or Pool(0, 0)).size,
        )
        raise Refusal(
            f"{' and '.join(parts)} are {text_size(wanted << 10)}, and node {node} has "
            f"{text_size(memory << 10)}: more than {MOST_PERCENT} % of it, and nothing but their users could "
            "have that memory",
            thing=str(setting),
            remedy=f"Ask for {memory * MOST_PERCENT // 100 - wanted + int(setting.value) * self._kb(setting)}"
            f" kB or less in pages of {self._kb(setting)} kB, or for some of them on another node",
        )

    @staticmethod
    def _kb(setting: Setting) -> int:
        pool = parse(setting.name)
        return pool.size if pool else 0

    # the machine

    def _sizes(self) -> list[int]:
        """The sizes of huge pages that the kernel offers, in kB."""
        found = [re.match(r"hugepages-(\d+)kB\Z", name) for name in self.system.names(TOTALS)]
        return sorted(int(one.group(1)) for one in found if one)

    def default_size(self) -> int:
        """The size that vm.nr_hugepages counts, in kB; 0 where it cannot be told."""
        return self._meminfo("/proc/meminfo").get("Hugepagesize", 0)

    def _has_numa(self) -> bool:
        return self.system.exists(f"{NODES}/online")

    def _nodes(self) -> list[int]:
        if not self._has_numa():
            return [0]
        try:
            return sorted(cpulist.parse(self.system.read(f"{NODES}/online")))
        except (OSError, ValueError):
            return []

    def _meminfo(self, path: str) -> dict[str, int]:
        """kB or counts by name, also of a node, whose lines begin with its number; empty if unreadable."""
        try:
            lines = self.system.read(path).splitlines()
        except OSError:
            return {}
        found = {}
        for line in lines:
            name, _, value = re.sub(r"^Node \d+ ", "", line).partition(":")
            if value.split():
                found[name.strip()] = int(value.split()[0])
        return found

    def _node_meminfo(self, node: int) -> dict[str, int]:
        return self._meminfo(f"{NODES}/node{node}/meminfo" if self._has_numa() else "/proc/meminfo")

    def _memory(self, node: int) -> int:
        """MemTotal of a node in kB."""
        return self._node_meminfo(node).get("MemTotal", 0)

    def _folder(self, pool: Pool) -> str:
        base = f"{NODES}/node{pool.node}/hugepages" if self._has_numa() else TOTALS
        return f"{base}/hugepages-{pool.size}kB"

    def _count(self, pool: Pool, what: str) -> int:
        return int(self.system.read_value(f"{self._folder(pool)}/{what}_hugepages"))

    def _live(self, pool: Pool) -> int | None:
        """The pages that stay reserved; None where there is no such pool."""
        try:
            return self._count(pool, "nr") - self._count(pool, "surplus")
        except (OSError, ValueError):
            return None

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        pools = {name: parse(name) for name in names}
        boots: dict[int, dict[int, Planes]] = {}
        for size in {pool.size for pool in pools.values() if pool}:
            boots[size] = self._persisted(size)
        return {
            name: self._read_one(pool, boots[pool.size].get(pool.node, Planes()))
            if pool
            else Planes(unsupported="no pool of huge pages")
            for name, pool in pools.items()
        }

    def _read_one(self, pool: Pool, planes: Planes) -> Planes:
        if self.system.container:
            planes.unsupported, planes.unknown = KERNEL_SHARED, ""
        folder = self._folder(pool)
        try:
            surplus = self._count(pool, "surplus")
            planes.live = str(self._count(pool, "nr") - surplus)
        except (FileNotFoundError, NotADirectoryError):
            sizes = self._sizes()
            why = f"the kernel has no huge pages of this size: no {folder}"
            if not sizes:
                why = f"the kernel was built without huge pages: no {TOTALS}"
            elif pool.node not in self._nodes():
                why = f"this host has no node {pool.node}"
            planes.unsupported, planes.unknown = planes.unsupported or why, ""
            return planes
        except (OSError, ValueError) as error:
            if not planes.unsupported:
                planes.unknown = f"{folder}: {getattr(error, 'strerror', None) or error}"
            return planes
        if surplus and not planes.unsupported:
            planes.note += "; " if planes.note else ""
            planes.note += (
                f"{surplus} more pages are in use beyond the pool (surplus); the kernel takes them back as "
                "they are released"
            )
        if pool.size >= GIGANTIC_KB and not self._was_booted_with(pool.size):
            planes.needs = "reboot"
        return planes

    def _was_booted_with(self, size: int) -> bool:
        """Whether this boot's command line asked for pages of this size: another boot would bring no more."""
        try:
            return any(step.count for step in self._of_line(self._booted(), size, "/proc/cmdline", 1))
        except OSError:
            return False

    def _persisted(self, size: int) -> dict[int, Planes]:
        """What a boot makes of each node's pool of a size."""
        nodes = [node for node in self._nodes() if self._memory(node)]
        first, unread = self._from_menu(size)
        sysctl = SysctlKind(self.system).read([SYSCTL])[SYSCTL]
        if sysctl.unknown:
            return {node: Planes(unknown=sysctl.unknown) for node in self._nodes()}
        totals = [_step(None, one) for one in sysctl.definitions] if size == self.default_size() else []
        sysctls = [one for one in totals if one][-1:]
        paths: dict[str, int | None] = {
            f"{self._folder(Pool(node, size))}/nr_hugepages": node for node in nodes if self._has_numa()
        }
        paths[f"{TOTALS}/hugepages-{size}kB/nr_hugepages"] = None if self._has_numa() else 0
        lines = Tmpfiles(self.system)
        written = lines.written(list(paths))
        tmpfiles = [one for one in (_step(paths[path], line) for path, line in written) if one]
        pool, said = boot([*first, *sysctls, *tmpfiles], nodes)
        reverse, said_then = boot([*first, *tmpfiles, *sysctls], nodes)
        ignored = {
            node: [one for one in lines.definitions(path) if (path, one) not in written]
            for path, node in paths.items()
            if node is not None
        }
        found = {}
        for node in nodes:
            planes = found[node] = Planes(definitions=[*ignored.get(node, []), *said[node]], note=unread)
            if pool[node] != reverse[node]:
                planes.definitions = [*ignored.get(node, []), *said_then[node]]
                by = planes.definitions[-1]
                planes.where = (
                    f"{by.file}:{by.line} spreads {SYSCTL} = {sysctls[0].count} over the nodes, {by.value} "
                    f"on node {node}: nothing orders it before what tmpfiles.d says, and it runs again with "
                    "updates"
                )
        return found

    def _from_menu(self, size: int) -> tuple[list[Step], str]:
        """What the next boot's command line reserves (this boot's where no GRUB gives it), or why not known.

        What is not known is not counted on: a line of tmpfiles.d decides after it anyway.
        """
        try:
            if not self.system.exists(grub.MENU):
                return self._of_line(self._booted(), size, "/proc/cmdline", 1), ""
            menu = grub.read_menu(self.system)
            words, line = menu.default.words(menu.file), menu.default.linux[0][0]
        except OSError as error:
            return [], f"the next boot's command line is not known: {error.filename}: {error.strerror}"
        except Unfollowed as why:
            return [], f"the next boot's command line is not known: {why}"
        return self._of_line(words, size, menu.file, line), ""

    def _booted(self) -> list[cmdline.Word]:
        text = self.system.read("/proc/cmdline")
        return cmdline.split(text, [("/proc/cmdline", 1)] * len(text))

    def _of_line(self, words: Sequence[cmdline.Word], size: int, file: str, line: int) -> list[Step]:
        mine = [word for word in words if not word.for_init]
        found: list[Step] = []
        for text, pages in page_pairs(mine).items():
            if pages is None or (_boot_kb(text) if text else self._boot_default(mine)) != size:
                continue
            found += _on_line(pages, Definition(pages, file, line))
        return found

    def _boot_default(self, words: Sequence[cmdline.Word]) -> int:
        """The default size, in kB, that a command line sets; where it sets none, this kernel's."""
        asked = [word.value for word in words if cmdline.same_name(word.name, "default_hugepagesz")]
        return _boot_kb(asked[-1]) if asked else self.default_size()

    # persistence

    def outranks(self, file: str, ours: str) -> bool:
        """What would win over ours is another's, and is refused or taken over before ours is written."""
        return False

    def managed_file(self, owner: str, name: str) -> str:
        return f"/etc/tmpfiles.d/60-hosttune-hugepages-{owner}.conf"

    def body(self, settings: Sequence[Setting]) -> str:
        return "".join(
            f"w {self._folder(pool)}/nr_hugepages - - - - {int(setting.value)}\n"
            for setting in settings
            for pool in [parse(setting.name)]
            if pool
        )

    # the live plane

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        failed = {}
        todo = [(change, parse(change.name)) for change in changes if not change.persist_only]
        # What is given up first may be what another size needs.
        for change, pool in sorted(todo, key=lambda one: self._grows(one[0], one[1])):
            try:
                why = self._set(pool, int(change.value)) if pool else ""
            except (OSError, ValueError) as error:
                why = f"the kernel refused '{change.value}': {getattr(error, 'strerror', None) or error}"
            if why:
                failed[change.name] = why
        return failed

    def _grows(self, change: Change, pool: Pool | None) -> int:
        return int(change.value) - (self._live(pool) or 0) if pool and change.value.isdigit() else 0

    def _set(self, pool: Pool, count: int) -> str:
        """Sets a pool; says why where the kernel did not come to the count."""
        if self._live(pool) == count:
            return ""
        got = self._write(pool, count)
        if got > count:
            # Up to 6.13 the kernel adds the surplus of other nodes to what is asked of this one.
            got = self._write(pool, max(count - (got - count), 0))
        if got < count:
            self._compact(pool.node)
            got = self._write(pool, count)
        if got == count:
            return ""
        if got > count:
            return (
                f"asked {count} pages, {got} stay: the kernel frees no more while other nodes have pages in "
                "use beyond their pool. Stop who uses them and run again"
            )
        memory = self._node_meminfo(pool.node)
        free = text_size(memory.get("MemFree", 0) << 10)
        need = text_size((count - got) * pool.size << 10)
        remedy = "reboot: memory is whole then, and tmpfiles.d asks again"
        if pool.size >= GIGANTIC_KB:
            remedy = f"ask for them on the kernel's command line (hugepagesz, hugepages={pool.node}:{count})"
        return (
            f"asked {count} pages, got {got}: {need} are missing, and node {pool.node} has {free} free, too "
            f"little of it in pieces of {pool.size} kB, also after compaction. To get them {remedy}, or ask "
            "for fewer"
        )

    def _write(self, pool: Pool, count: int) -> int:
        """The pages that stay reserved once the kernel was asked for `count`."""
        self.system.write_value(f"{self._folder(pool)}/nr_hugepages", str(count))
        return self._count(pool, "nr") - self._count(pool, "surplus")

    def _compact(self, node: int) -> None:
        """Has the kernel move used memory of this node together; the others are left in peace.

        One that offers no such file has tried what it can while it looked for the pages.
        """
        path = f"{NODES}/node{node}/compact" if self._has_numa() else "/proc/sys/vm/compact_memory"
        if os.path.exists(self.system.path(path)):
            self.system.write_value(path, "1")


def _step(node: int | None, definition: Definition) -> Step | None:
    """What a line of sysctl.d or tmpfiles.d sets; None where the kernel refuses its value."""
    text = definition.value
    return Step(node, int(text), definition) if text.isascii() and text.isdigit() else None


def _boot_kb(text: str | None) -> int:
    found = _BOOT_SIZE.match(text or "")
    return int(found.group(1)) << _BOOT_SHIFT[found.group(2).lower()] >> 10 if found else 0


def _on_line(text: str, definition: Definition) -> list[Step]:
    """The steps of one `hugepages=`: a total, or NODE:COUNT,NODE:COUNT up to where the kernel stops."""
    if text.isdigit():
        return [Step(None, int(text), definition)]
    found = []
    for part in text.split(","):
        node, colon, count = part.partition(":")
        if not (colon and node.isdigit() and count.isdigit()):
            break
        found.append(Step(int(node), int(count), _with_value(definition, int(count))))
    return found
