"""Bad input: every case has its message and remedy, in check mode and in apply, and nothing is touched."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from fake_host import FullHost, as_root
from fake_nics import Kernel, e1000e
from hosttune import kinds
from hosttune.model import Refusal, shown
from hosttune.system import Ran
from oracle_trees import BAD_INPUT
from test_kind_block import disk
from test_kind_postgres import FakeServer

LONG = "a" * 300
CONTROL = "is a control character"


class Host(FullHost):
    """The full host with disks, a server of each kind, and the directives that its systemd knows."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.played["postgres"] = FakeServer(root)
        disk(root, "nvme0n1", "[none] mq-deadline kyber")
        disk(root, "sda", "none [mq-deadline]")
        for path, text in {
            "/etc/redis/redis.conf": "port 6379\n",
            "/usr/bin/redis-server": "a program without further directives",
            "/proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/a ro quiet\n",
            "/proc/sys/kernel/watchdog_cpumask": "0\n",
            "/proc/sys/kernel/watchdog": "1\n",
            "/proc/sys/vm/dirty_background_bytes": "8192\n",
            "/proc/sys/vm/dirty_background_ratio": "0\n",
            "/proc/sys/vm/overcommit_memory": "0\n",
            "/proc/sys/vm/overcommit_ratio": "50\n",
            "/proc/sys/vm/overcommit_kbytes": "0\n",
            "/sys/class/net/eth0/queues/rx-0/rps_cpus": "00\n",
            "/sys/module/kvm/parameters/halt_poll_ns": "200000\n",
            "/sys/module/kvm/parameters/nx_huge_pages": "Y\n",
            "/sys/devices/system/cpu/present": "0-3\n",
            "/sys/class/watchdog/watchdog0/identity": "i6300ESB timer\n",
            "/sys/class/watchdog/watchdog0/max_timeout": "60\n",
            "/proc/sys/vm/min_free_kbytes": "67584\n",
            "/proc/sys/kernel/sched_rt_runtime_us": "950000\n",
            "/sys/devices/system/cpu/online": "0-3\n",
            "/proc/interrupts": "     CPU0\n 40:  1  PCI-MSI 0-edge      nvme0q0\n",
            "/proc/irq/40/smp_affinity_list": "0-3\n",
            "/lib/modules/6.1.0-fake/modules.builtin": "kernel/fs/ext4/ext4.ko\n",
            "/lib/modules/6.1.0-fake/modules.alias": "alias tcp-bbr-alias tcp_bbr\n",
            "/proc/meminfo": "MemTotal: 10000000 kB\nHugepagesize: 2048 kB\n",
            "/sys/devices/system/node/online": "0-1\n",
            "/sys/devices/system/node/node0/meminfo": "Node 0 MemTotal: 131072 kB\n",
            "/sys/devices/system/node/node1/meminfo": "Node 1 MemTotal: 0 kB\n",
            "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "0\n",
            **{
                f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/{count}_hugepages": "0\n"
                for node in (0, 1)
                for count in ("nr", "surplus")
            },
            "/usr/lib/systemd/system/worker@.service": "[Service]\nExecStart=/bin/app\n",
        }.items():
            self.put(path, text)

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        if argv[0] == "runuser":
            return self.played["postgres"].run(*argv, stdin=stdin, timeout=timeout)
        if argv[-1] == "--dump-configuration-items":
            return Ran(0, "[Unit]\nAfter=\n[Service]\nLimitNOFILE=\nTasksMax=\nUMask=\nNice=\n", "")
        if argv[:2] == ("systemctl", "show") and argv[-1] == "redis-server.service":
            text = "ExecStart={ path=/x ; argv[]=/x /etc/redis/redis.conf ; ignore_errors=no ; }"
            return Ran(0, f"Id={argv[-1]}\nLoadState=loaded\nActiveState=inactive\nMainPID=0\n{text}\n", "")
        return super().run(*argv, stdin=stdin, timeout=timeout)


class Case(NamedTuple):
    """A request and what its message says beside naming the thing."""

    name: str
    thing: str
    parts: tuple[str, ...]
    owners: Any
    more: dict[str, Any] = {}  # noqa: RUF012 - read only

    def __str__(self) -> str:
        return self.name


def of(kind: str, *rows: tuple[Any, ...]) -> list[Case]:
    """Cases of one setting each: what is wrong, name, value, parts of the message."""
    return [
        Case(
            f"{kind}: {wrong}",
            f"{kind} {shown(name)}".strip()[:80],
            tuple(parts),
            {"role": {kind: {name: value}}},
        )
        for wrong, name, value, *parts in rows
    ]


#: A name of each kind and a value that it takes.
GOOD: dict[str, tuple[str, Any]] = {
    "module": ("tcp_bbr", "loaded"),
    "boot": ("skew_tick", "1"),
    "sysctl": ("vm.swappiness", "10"),
    "sysfs": ("kernel/mm/transparent_hugepage/enabled", "never"),
    "hugepages": ("0/2048kB", "8"),
    "block": ("nvme/scheduler", "none"),
    "nic": ("eth0/features/gro", "off"),
    "irq": ("nvme0/0", "1-2"),
    "mount": ("/data", "noatime"),
    "limit": ("trader/hard/nofile", "1024"),
    "file": ("/etc/app/new.conf", {"content": "x"}),
    "manager": ("DefaultTasksMax", "100"),
    "unit": ("app.service/Service/TasksMax", "100"),
    "postgres": ("15/main/work_mem", "8MB"),
    "redis": ("server/maxmemory", "1gb"),
    "service": ("app.service", "enabled"),
}

TYPES = [
    case
    for kind, (name, _value) in GOOD.items()
    for case in of(
        kind,
        ("the boolean false", name, False, "content" if kind == "file" else "boolean false"),
        ("the boolean true", name, True, "content" if kind == "file" else "boolean true"),
        ("no value", name, None, "has no content" if kind == "file" else "has no value"),
        *(
            []
            if kind == "boot"
            else [("an empty value", name, "", *(["has no content"] if kind == "file" else []))]
        ),
        ("a list of lists", name, [["a"]], "has no content" if kind == "file" else "list"),
        (
            "a dict" if kind != "file" else "a dict without content",
            name,
            {"a": "b"},
            "has no content" if kind == "file" else "dict",
        ),
        (
            "a control character",
            name,
            {"content": "x", "owner": "ro\x07ot"} if kind == "file" else "1\x072",
            *([] if kind in ("file", "boot") else [CONTROL]),
        ),
        ("a zero byte", name, {"content": "x", "mode": "0644\0"} if kind == "file" else "1\0"),
    )
]
NAMES = [
    case
    for kind, (name, value) in GOOD.items()
    for case in of(
        kind,
        ("an empty name", "", value, "name"),
        ("a line break in the name", f"{name}\nx", value),
        ("a line break after the name", f"{name}\n", value),
        ("a control character in the name", f"{name}\x1b", value),
        *([] if kind == "file" else [("a blank in the name", f"{name} x", value)]),
        ("an overlong name", f"{name}{LONG}" if kind not in ("limit",) else f"{LONG}/{name}", value),
        ("a path that climbs", f"../../etc/{name}", value),
        ("a climb at the end", f"{name}/../../../etc/shadow", value),
        ("a name that is a number", 7, value),
        (
            "another kind's name",
            "/etc/x/../y" if kind == "file" else "/etc/passwd" if kind != "mount" else "vm.swappiness",
            value,
        ),
    )
]

KINDS = [
    *of(
        "module",
        ("unknown, one near", "tcp_bbrr", "loaded", "Did you mean tcp_bbr?"),
        ("unknown, none near", "zzzzzzzz", "loaded", "no such module", "modinfo"),
        ("a state that is none", "tcp_bbr", "on", "'on' is no state", "loaded or unloaded"),
        ("a number", "tcp_bbr", 1, "'1' is no state"),
        ("an alias", "tcp_bbr_alias", "loaded", "is an alias of tcp_bbr", "Name the module itself"),
        ("built in, unloaded", "ext4", "unloaded", "built into this kernel"),
        ("a file of a module", "tcp_bbr.ko", "loaded", "Give the name alone"),
    ),
    *of(
        "boot",
        ("unknown, one near", "isolcpu", "2", "Did you mean isolcpus?"),
        ("a name with its value", "isolcpus=2", "3", "Give the name alone"),
        ("only digits", "123", "3", "Give the name alone"),
        ("a parameter that decides the boot", "root", "/dev/sda", "by hand, at a console"),
        ("on without quotes", "isolcpus", True, "takes a value", "quotes"),
        ("off without quotes", "nosmt", False, "the boolean false", "leave it out"),
        ("an empty list", "isolcpus", [], "its list is empty"),
        ("a value twice", "console", ["tty0", "tty0"], "names a value twice"),
        ("a null in a list", "console", ["tty0", None], "has no value"),
        ("a quote", "isolcpus", '2"', "a quote"),
        ("a shell's variable", "isolcpus", "${x}", "'${'"),
        ("beyond ASCII", "isolcpus", "2\u20133", "beyond ASCII"),
        ("pages without a size", "hugepages", ["1", "2"], "has 2 values for 0 sizes"),
    ),
    *of(
        "sysctl",
        ("unknown, one near", "vm.swappines", "1", "Did you mean vm.swappiness?"),
        ("unknown, another folder", "vmm.swappiness", "1", "Did you mean vm.swappiness?"),
        ("unknown, none near", "zz.qqqqqqq", "1", "no such sysctl", "the module that brings it"),
        ("a folder", "net.ipv4", "1", "is a folder", "net.ipv4.tcp_syncookies"),
        ("text for a number", "vm.swappiness", "low", "not of its type", "a whole number"),
        ("a fraction", "vm.swappiness", 1.5, "'1.5'", "a whole number"),
        ("hex", "vm.swappiness", "0x10", "'0x10'", "a whole number"),
        ("a leading zero", "vm.swappiness", "010", "octal", "without"),
        ("digits of another script", "vm.swappiness", "\u0661\u0660", "a whole number"),
        ("an underscore", "vm.swappiness", "1_0", "a whole number"),
        ("a plus", "vm.swappiness", "+10", "a whole number"),
        ("too many fields", "vm.swappiness", "10 20", "2 fields"),
        ("too few fields", "net.ipv4.tcp_rmem", "1 2", "Give 3 whole numbers"),
        ("above its range", "vm.swappiness", "201", "out of range", "Give 0 to 200"),
        ("below its range", "vm.dirty_ratio", "-1", "out of range", "Give 0 to 100"),
        ("no number has so many bits", "net.core.somaxconn", "18446744073709551616", "out of range"),
        ("a minus that is none", "net.core.somaxconn", "1-", "a whole number"),
        ("no list of CPUs", "kernel.watchdog_cpumask", "0-x", "no CPU list", "such as 0-3"),
        (
            "a zero that only its twin brings",
            "vm.dirty_background_bytes",
            "0",
            "the kernel refuses",
            "Ask for vm.dirty_background_ratio",
        ),
        (
            "one that writes others",
            "kernel.watchdog",
            "0",
            "kernel.nmi_watchdog and kernel.soft_watchdog",
            "these two",
        ),
        ("a star", "vm.*", "1", "no sysctl name", "dotted"),
        ("two dots", "vm..swappiness", "1", "no sysctl name"),
    ),
    *of(
        "sysfs",
        (
            "unknown, one near",
            "kernel/mm/transparent_hugepagee/enabled",
            "never",
            "Did you mean kernel/mm/transparent_hugepage",
        ),
        ("unknown, none near", "zzz/qqq", "1", "this host has no /sys/zzz", "Check the name"),
        ("a folder", "kernel/mm", "1", "is a folder", "transparent_hugepage"),
        ("below /etc", "/etc/passwd", "1", "no path below /sys"),
        ("a star", "kernel/mm/*/enabled", "1", "no path below /sys"),
        ("a choice that is none", "kernel/mm/transparent_hugepage/enabled", "on", "always, madvise, never"),
        ("brackets and all", "kernel/mm/transparent_hugepage/enabled", "[never]", "Choose one of always"),
        ("all choices", "kernel/mm/transparent_hugepage/enabled", "always madvise [never]", "Choose one of"),
        ("text for a number", "kernel/mm/ksm/run", "on", "not of its type", "a whole number"),
        ("a leading zero", "kernel/mm/ksm/run", "01", "octal", "without"),
        ("digits of another script", "kernel/mm/ksm/run", "\u0661", "a whole number"),
        ("a list for a mask", "class/net/eth0/queues/rx-0/rps_cpus", "0-3", "no CPU mask", "such as f"),
        ("no mask", "class/net/eth0/queues/rx-0/rps_cpus", "xyz", "no CPU mask"),
        ("a mask in 0x", "class/net/eth0/queues/rx-0/rps_cpus", "0xf", "no CPU mask"),
        ("no boolean", "module/kvm/parameters/nx_huge_pages", "maybe", "Y or N"),
    ),
    *of(
        "hugepages",
        ("no size", "0", "1", "no pool of huge pages", "such as 0/2048kB"),
        ("no node", "2048kB", "1", "no pool of huge pages"),
        ("a size without its unit", "0/2048", "1", "no pool of huge pages"),
        ("a folder's name", "node0/hugepages-2048kB", "1", "no pool of huge pages"),
        ("a star for all nodes", "*/2048kB", "1", "no pool of huge pages"),
        ("a node below none", "-1/2048kB", "1", "no pool of huge pages"),
        ("two dots", "../2048kB", "1", "no pool of huge pages"),
        ("a missing node", "2/2048kB", "1", "no node 2", "Its nodes are 0, 1"),
        ("a node without memory", "1/2048kB", "1", "node 1 has no memory", "Name a node that has: 0"),
        ("a size that the kernel lacks", "0/1G", "1", "no huge pages of 1048576 kB", "0/2048kB"),
        ("a size with a unit for a count", "0/2048kB", "16MB", "no count of pages", "a whole number"),
        ("below none", "0/2048kB", "-1", "no count of pages"),
        ("a part of a page", "0/2048kB", "1.5", "no count of pages"),
        ("counts by node", "0/2048kB", "0:8,1:8", "no count of pages"),
        ("digits of another script", "0/2048kB", "\u0661", "no count of pages"),
        ("more than the node's memory", "0/2048kB", "64", "64 pages of 2048 kB are 128 MiB", "Ask for"),
        ("more than can be spared", "0/2048kB", "60", "node 0 has 128 MiB: more than 80 % of it"),
    ),
    *of(
        "block",
        ("unknown attribute, one near", "sda/schedulr", "none", "Did you mean scheduler?"),
        ("unknown attribute, none near", "sda/zzzz", "none", "Choose one of scheduler"),
        ("unknown disk, one near", "sdb/scheduler", "none", "missing disk", "Its disks are nvme0n1, sda"),
        ("unknown class, one near", "nvm/scheduler", "none", "Did you mean nvme"),
        ("no attribute", "sda", "none", "is no DEVICE/ATTRIBUTE", "Such as nvme/scheduler"),
        ("a path", "/dev/sda/scheduler", "none", "is no DEVICE/ATTRIBUTE"),
        ("a dangerous one", "sda/write_cache", "write back", "must not be set", "data is lost"),
        ("text for a number", "sda/nr_requests", "many", "not of its type", "Give a whole number"),
        ("digits of another script", "sda/nr_requests", "\u0661", "Give a whole number"),
        ("no word", "sda/scheduler", "a b", "Give one word"),
        ("not offered", "sda/scheduler", "kyber2", "does not offer", "sda offers none, mq-deadline"),
        ("brackets and all", "sda/scheduler", "[none]", "Give one word"),
        ("below its range", "sda/nr_requests", "-1", "out of range"),
        ("above its range", "sda/rq_affinity", "3", "out of range", "Give 0 to 2"),
    ),
    *of(
        "nic",
        ("unknown interface", "eth1/ring/rx", "512", "Did you mean eth0?", "interfaces are eth0, lo"),
        ("unknown group", "eth0/rings/rx", "512", "Did you mean ring?"),
        ("unknown key", "eth0/ring/rxs", "512", "Did you mean rx?"),
        ("unknown feature", "eth0/features/groo", "on", "Did you mean gro?"),
        ("unknown attribute of a queue", "eth0/queue/rx-0.rps_cpu", "1", "Did you mean rps_cpus?"),
        ("no key", "eth0/ring", "512", "IFACE/GROUP/KEY"),
        ("above the device's maximum", "eth0/ring/rx", "4097", "eth0 (e1000e) takes 1 to 4096"),
        ("a ring of nothing", "eth0/ring/tx", "0", "takes 1 to 4096"),
        ("a word for a number", "eth0/coalesce/rx-usecs", "low", "whole number"),
        ("a number with a leading zero", "eth0/ring/rx", "0512", "whole number"),
        ("below zero", "eth0/coalesce/rx-usecs", "-1", "whole number"),
        ("beyond 32 bits", "eth0/coalesce/rx-usecs", "4294967296", "whole number"),
        ("a number for a switch", "eth0/pause/rx", "1", "neither on nor off"),
        ("yes for on", "eth0/features/gro", "yes", "neither on nor off"),
        ("a CPU list for a mask", "eth0/queue/rx-0.rps_cpus", "0-3", "in hex"),
        ("an MTU beyond the device's", "eth0/link/mtu", "9217", "takes 68 to 9216"),
    ),
    *of(
        "irq",
        ("an interrupt's number", "40", "1", "is no DEVICE/QUEUE", "Such as ens4/0"),
        ("a queue that is none", "nvme0/q1", "1", "is no DEVICE/QUEUE"),
        ("a leading zero", "nvme0/01", "1", "is no DEVICE/QUEUE"),
        ("unknown, one near", "nvme1/0", "1", "this host has no device nvme1", "Did you mean nvme0?"),
        ("unknown, none near", "ens7f1/0", "1", "this host has no device ens7f1", "It has nvme0"),
        ("an offline CPU", "nvme0/0", "3-5", "CPU 4-5 is not online", "Online are 0-3"),
        ("a CPU that no machine has", "nvme0/0", "99999999", "beyond", "Give a list of CPUs"),
        ("a mask", "nvme0/0", "0xf", "no CPU list", "such as 2-3,8"),
        ("backwards", "nvme0/0", "3-1", "runs backwards"),
        ("a word", "default", "all", "no CPU list"),
        ("offline CPUs for new ones", "default", "7", "CPU 7 is not online"),
    ),
    *of(
        "mount",
        ("unknown, one near", "/dat", "noatime", "Did you mean /data?"),
        ("unknown, none near", "/zzzzzz", "noatime", "Mount it first"),
        ("a relative path", "data", "noatime", "Give its absolute path"),
        ("another spelling", "/data/", "noatime", "is no mount point", "Give its absolute path"),
        ("a device", "/dev/b", "noatime", "is no mount point"),
        ("no option", "/data", ",", "names no option"),
        ("a blank in an option", "/data", "no atime", "is no mount option"),
        ("an unsafe one", "/data", "nobarrier", "would lose or expose data"),
        ("read by mount(8) only", "/data", "nofail", "never in force"),
        ("two that contradict", "/data", "noatime,relatime", "noatime contradicts relatime"),
        ("two values of one", "/data", "commit=5,commit=6", "commit=5 contradicts commit=6"),
    ),
    *of(
        "limit",
        ("unknown item, one near", "trader/hard/nofiles", "1", "Did you mean nofile?"),
        ("unknown item, none near", "trader/hard/zzzz", "1", "Items are as, core"),
        ("unknown type, one near", "trader/hrad/nofile", "1", "Did you mean hard?"),
        ("unknown type, none near", "trader/x/nofile", "1", "Types are soft, hard, -"),
        ("two parts", "trader/nofile", "1", "DOMAIN/TYPE/ITEM"),
        ("no domain", "/hard/nofile", "1", "is no domain", "a user, @group or *"),
        ("text for a number", "trader/hard/nproc", "many", "no whole number", "a number or unlimited"),
        ("digits of another script", "trader/hard/nproc", "\u0661", "no whole number"),
        ("unlimited files", "trader/hard/nofile", "unlimited", "could not be opened", "at most fs.nr_open"),
        ("above its range", "trader/hard/rtprio", "100", "out of range", "Give 0 to 99"),
        ("below its range", "trader/hard/nice", "-21", "out of range", "Give -20 to 19"),
        ("a fraction", "trader/hard/nproc", 1.5, "no whole number"),
    ),
    *of(
        "file",
        ("mode without quotes", "/etc/a", {"content": "x", "mode": 420}, "no octal text", '"0644"'),
        ("a mode that is none", "/etc/a", {"content": "x", "mode": "0888"}, "no octal text"),
        ("rwx", "/etc/a", {"content": "x", "mode": "rw-r--r--"}, "no octal text"),
        ("an unknown option", "/etc/a", {"content": "x", "contnet": "y"}, "has no option contnet", "Options"),
        ("content is a list", "/etc/a", {"content": ["x"]}, "has no content"),
        ("a relative path", "etc/a", {"content": "x"}, "no absolute path"),
        (
            "a climb in the middle",
            "/etc/../a",
            {"content": "x"},
            "no absolute path",
            "without '..'",
        ),
        ("a slash at the end", "/etc/a/", {"content": "x"}, "no absolute path"),
        ("two slashes", "/etc//a", {"content": "x"}, "no absolute path"),
        ("two slashes at the start", "//etc/a", {"content": "x"}, "no absolute path"),
        ("the root", "/", {"content": "x"}, "is a folder"),
        ("a folder", "/etc/app", {"content": "x"}, "is a folder"),
        ("below a file", "/etc/app/app.conf/x", {"content": "x"}, "/etc/app/app.conf is no folder"),
        ("a long path", "/etc" + "/abc" * 1100, {"content": "x"}, "is too long"),
        ("a secret for all", "/etc/a", {"content": "x", "secret": True}, "leaves it to everybody"),
        ("secret in words", "/etc/a", {"content": "x", "secret": "no"}, "secret", "true or false"),
        ("an unknown user", "/etc/a", {"content": "x", "owner": "nobodyy"}, "no user nobodyy", "Make the"),
        ("an unknown group", "/etc/a", {"content": "x", "group": "zz"}, "no group zz", "Make the"),
        ("the user's number", "/etc/a", {"content": "x", "owner": 0}, "is no name of a user"),
        ("a list of units", "/etc/a", {"content": "x", "reload": ["a.service"]}, "no name of a unit"),
        ("a unit without its type", "/etc/a", {"content": "x", "restart": "app"}, "app.service"),
        ("half a character", "/etc/a", {"content": "x\ud800"}, "cannot be written as UTF-8"),
    ),
    *of(
        "manager",
        ("unknown, one near", "DefaultTaskMax", "1", "Did you mean DefaultTasksMax?"),
        ("unknown, none near", "Zzzz", "1", "systemd-system.conf(5)"),
        ("another case", "defaulttasksmax", "1", "is no directive", "Did you mean DefaultTasksMax?"),
        ("a percentage", "DefaultTasksMax", "10%", "percentage", "a number of tasks"),
        ("text for a number", "DefaultTasksMax", "many", "'many' is no whole number"),
        ("text for a time", "DefaultTimeoutStopSec", "soon", "soon"),
        ("none of its words", "DefaultOOMPolicy", "die", "none of continue, kill, stop"),
        ("soft above hard", "DefaultLimitNOFILE", "20:10", "20"),
        ("no boolean", "DefaultCPUAccounting", "maybe", "maybe"),
        ("CPUs backwards", "CPUAffinity", "3-1", "runs backwards"),
        ("CPUs it has not", "CPUAffinity", "64", "CPUs that this host does not have", "It has 0-3"),
        ("above its range", "DefaultOOMScoreAdjust", "1001", "out of range", "Give -1000 to 1000"),
        (
            "a timeout the driver has not",
            "RuntimeWatchdogSec",
            "2min",
            "i6300ESB timer takes",
            "Give 1 s to 60 s",
        ),
        ("text for a timeout", "RuntimeWatchdogSec", "soon", "no time span"),
        ("no watchdog", "WatchdogDevice", "/dev/sda", "is no watchdog", "/dev/watchdog0"),
        (
            "a warning without a reset",
            "RuntimeWatchdogPreSec",
            "10s",
            "no RuntimeWatchdogSec",
            "Ask for less",
        ),
    ),
    *of(
        "boot",
        (
            "nobody answers for it",
            "mitigations",
            "off",
            "nobody answers for that",
            "settings_risk_acceptance",
        ),
    ),
    *of(
        "sysctl",
        ("too little kept free", "vm.min_free_kbytes", "512", "more than 1024 and at most 300000"),
        ("no bound on real time", "kernel.sched_rt_runtime_us", "-1", "no CPU is isolated", "950000"),
    ),
    *of(
        "unit",
        ("killed by nobody", "app.service/Service/OOMScoreAdjust", "-1000", "has no MemoryMax", "-999"),
    ),
    *of(
        "unit",
        ("unknown directive, one near", "app.service/Service/LimitNOFILES", "1", "Did you mean LimitNOFILE?"),
        ("unknown directive, none near", "app.service/Service/Zz", "1", "systemd.directives(7)"),
        ("another section's", "app.service/Service/After", "x.service", "It belongs to section [Unit]"),
        (
            "unknown unit, one near",
            "appp.service/Service/TasksMax",
            "1",
            "no unit appp.service",
            "app.service",
        ),
        ("unknown unit, none near", "zzz.service/Service/TasksMax", "1", "Install what brings it"),
        ("no type", "app/Service/TasksMax", "1", "is no name of a unit", "app.service"),
        ("a section that it has not", "app.service/Socket/Backlog", "1", "no section [Socket]"),
        ("two parts", "app.service/TasksMax", "1", "UNIT/SECTION/DIRECTIVE"),
        ("four parts", "app.service/Service/a/b", "1", "UNIT/SECTION/DIRECTIVE"),
        ("text for a number", "app.service/Service/TasksMax", "many", "is no value of TasksMax"),
        ("a percentage", "app.service/Service/TasksMax", "10%", "percentage", "Give a number"),
        ("out of range", "app.service/Service/Nice", "20", "out of range", "Give -20 to 19"),
        ("mode without quotes", "app.service/Service/UMask", 23, "octal", '"0027"'),
        ("a mode that is none", "app.service/Service/UMask", "0888", "octal"),
        ("above fs.nr_open", "app.service/Service/LimitNOFILE", "9999999", "above fs.nr_open", "at most"),
    ),
    *of(
        "postgres",
        ("unknown, one near", "15/main/work_memm", "1MB", "Did you mean work_mem?"),
        ("unknown, none near", "15/main/zzzz", "1", "no parameter zzzz", "See SHOW ALL"),
        ("unknown cluster", "16/main/work_mem", "1MB", "no cluster 16/main", "It has 15/main"),
        ("two parts", "main/work_mem", "1MB", "VERSION/CLUSTER/NAME"),
        ("no parameter's name", "15/main/work-mem", "1MB", "is no name of a parameter", "such as"),
        ("text for a number", "15/main/work_mem", "much", "'much' is no number", "Give 64 to"),
        ("a unit that is none", "15/main/work_mem", "1XB", "units here are", "Give 64"),
        ("a unit in the wrong case", "15/main/work_mem", "1mb", "units here are"),
        ("a time for a size", "15/main/work_mem", "1s", "units here are"),
        ("below its range", "15/main/work_mem", "1kB", "out of range", "Give 64 to"),
        ("above its range", "15/main/max_connections", "999999", "out of range"),
        ("none of its words", "15/main/wal_level", "full", "none of its values", "minimal"),
        ("no boolean", "15/main/jit", "maybe", "no boolean", "on and off"),
        ("a fixed one", "15/main/segment_size", "1GB", "fixed in the server"),
        ("two lines", "15/main/log_line_prefix", "a\nb", "holds a line break"),
        ("too little together with others", "15/main/min_wal_size", "31MB", "less than two WAL segments"),
    ),
    *of(
        "redis",
        ("unknown, one near", "server/maxmemry", "1gb", "Did you mean maxmemory?"),
        ("unknown, none near", "server/zzzz", "1", "no directive zzzz", "CONFIG GET"),
        ("unknown instance", "cache/maxmemory", "1gb", "no redis-server@cache.service", "It has server"),
        ("no instance", "maxmemory", "1gb", "INSTANCE/NAME"),
        ("capitals", "server/MaxMemory", "1gb", "in small letters"),
        ("an old name", "server/slave-priority", "1", "is an old name", "server/replica-priority"),
        ("a secret", "server/requirepass", "x", "is a secret", "ACL file"),
        ("no setting", "server/include", "/etc/x", "is no setting"),
        ("a unit that is none", "server/maxmemory", "1tb", "units are b, k, kb"),
        ("no boolean", "server/appendonly", "on", "neither yes nor no"),
        ("none of its words", "server/maxmemory-policy", "lru", "none of volatile-lru"),
        ("above its range", "server/io-threads", "999", "give 1 to 128"),
        ("text for a number", "server/hz", "fast", "no whole number"),
        ("mode without quotes", "server/unixsocketperm", 511, "octal", '"0777"'),
        ("a mode that is none", "server/unixsocketperm", "888", "no octal number"),
        ("two lines", "server/bind", "a\nb", "holds a line break"),
    ),
    *of(
        "service",
        ("unknown, one near", "appp.service", "enabled", "no unit appp.service", "app.service"),
        ("unknown, none near", "zzz.service", "enabled", "Install what brings it"),
        ("no type", "app", "enabled", "Write app.service"),
        ("a template", "worker@.service", "enabled", "cannot run", "Name an instance"),
        ("a state that is none, one near", "app.service", "enable", "Did you mean enabled"),
        ("a state that is none", "app.service", "on", "States are active"),
        ("two of boot", "app.service", "enabled disabled", "cannot be disabled and enabled"),
        ("two of now", "app.service", "active inactive", "cannot be active and inactive"),
        ("masked and active", "app.service", "masked active", "cannot be started"),
    ),
]


def two(name: str, kind: str, one: Any, other: Any, *parts: str, value: Any = None) -> Case:
    """Two names of one thing, in one role."""
    values = value if value is not None else GOOD[kind][1]
    return Case(name, kind, parts, {"role": {kind: {one: values, other: values}}})


SPELLINGS = [
    two(
        "module: two spellings",
        "module",
        "tcp_bbr",
        "tcp-bbr",
        "is the same module as",
        "name the module once",
    ),
    two("boot: two spellings", "boot", "rcu_nocbs", "rcu-nocbs", "is the same parameter as", "name it once"),
    two("sysctl: two spellings", "sysctl", "vm.swappiness", "vm/swappiness", "is the same", "Name it once"),
    two(
        "sysfs: two spellings", "sysfs", *(f"{top}{GOOD['sysfs'][0]}" for top in ("", "/sys/")), "is the same"
    ),
    two("hugepages: two spellings", "hugepages", "0/2048kB", "0/2M", "is the same as", "Name it once"),
    two(
        "postgres: two spellings",
        "postgres",
        "15/main/work_mem",
        "15/main/Work_Mem",
        "is the same",
        "Name it",
    ),
    two("limit: a dash beside hard", "limit", "a/-/nofile", "a/hard/nofile", "set one by one", "alone"),
]
OWNERS = [
    Case(f"{kind}: two owners", f"{kind} {name}", ("two owners: a", "and b"), {
        "a": {kind: {name: value}}, "b": {kind: {name: value}}
    })
    for kind, (name, value) in GOOD.items()
]  # fmt: skip
SOUND = {"a": {"sysctl": {"vm.swappiness": "10"}}}
CALL = [
    Case("an unknown kind", "sysctls", ("no such kind", "Did you mean sysctl?"), {"a": {"sysctls": {}}}),
    Case("an unknown kind, none near", "zz", ("no such kind", "Kinds are module, boot"), {"a": {"zz": {}}}),
    Case("a kind that is a number", "7", ("no such kind",), {"a": {7: {}}}),
    Case("an unknown class of disruption", "disruption_allowed", ("'resets_nic'", "Did you mean resets"),
         SOUND, {"disruption_allowed": "resets_nic"}),
    Case("an unknown kind of an undo", "kinds", ("no such kind", "Did you mean sysctl?"), {},
         {"present": False, "kinds": ["sysctls"]}),
    Case("kinds as a text", "kinds", ("is a str", "a list"), {}, {"present": False, "kinds": "sysctl"}),
    Case("kinds without an undo", "kinds", ("state absent",), SOUND, {"kinds": ["sysctl"]}),
    Case("part of the roles, and none named", "owners", ("names no owner",), {}, {"partial": True}),
    Case("owners as a list", "owners", ("is a list", "owner, kind, name, value"), ["a"]),
    Case("owners as a text", "owners", ("is a str",), "a"),
    Case("no owners", "owners", ("is null",), None),
    Case("an owner's settings as a list", "owner a", ("is a list",), {"a": ["sysctl"]}),
    Case("an owner's settings as null", "owner a", ("is null",), {"a": None}),
    Case("a kind's names as a list", "owner a, sysctl", ("is a list",), {"a": {"sysctl": ["vm.swappiness"]}}),
    Case("a kind's names as null", "owner a, sysctl", ("is null",), {"a": {"sysctl": None}}),
    Case("a kind's names as a text", "owner a, sysctl", ("is a str",), {"a": {"sysctl": "vm.swappiness=1"}}),
    *(
        Case(f"an owner {about}", "owner", ("is no name of an owner", "such as kernel"), {
            name: {"sysctl": {"vm.swappiness": "1"}}
        })
        for about, name in {
            "that climbs": "../../etc/x", "with a slash": "a/b", "with a blank": "a b", "with a line break":
            "a\n", "without a name": "", "that is a number": 7, "that is overlong": LONG, "of dots": "..",
            "beyond ASCII": "k\u00e9rnel",
        }.items()
    ),
    Case("packages as a text", "packages", ("is a str", "a list"), SOUND, {"packages": {"a": "tuned"}}),
    Case("packages as a list", "packages", ("is a list",), SOUND, {"packages": ["tuned"]}),
    Case("notes as a list", "notes", ("is a list",), SOUND, {"notes": ["x"]}),
    Case("notes of a kind as a text", "notes", ("is a str",), SOUND, {"notes": {"sysctl": "x"}}),
    Case("a note as a text", "notes", ("is a str",), SOUND, {"notes": {"sysctl": {"vm.swappiness": "x"}}}),
    Case("a decision that is none", "settings_foreign tuned", ("'yes' is no decision", "take_over"), SOUND,
         {"foreign": {"tuned": "yes"}}),
    Case("a decision about nobody", "settings_foreign tunedd", ("Did you mean tuned?",), SOUND,
         {"foreign": {"tunedd": "leave"}}),
]  # fmt: skip
CASES = [*TYPES, *NAMES, *KINDS, *SPELLINGS, *OWNERS, *CALL]


#: Settings of a role that stand from an earlier call, as a call of another role alone names them.
STANDING = [
    ("sysctl", "net.core.somaxconn", "net/core/somaxconn", "4096"),
    ("module", "tcp_bbr", "tcp-bbr", "loaded"),
    ("sysfs", "kernel/mm/ksm/run", "/sys/kernel/mm/ksm/run", "0"),
]


@pytest.mark.parametrize(("kind", "name", "other", "value"), STANDING, ids=[row[0] for row in STANDING])
def test_two_owners_in_two_spellings_are_refused_also_over_two_calls(
    tmp_path, monkeypatch, kind, name, other, value
):
    as_root(monkeypatch)
    host = Host(tmp_path)
    host.apply({"a": {kind: {name: value}}})
    before = host.snapshot(times=True)
    with pytest.raises(Refusal, match=r"has two owners: b .* and a") as refusal:
        host.apply({"b": {kind: {other: value}}}, partial=True)
    assert refusal.value.remedy
    assert host.snapshot(times=True) == before


@pytest.fixture(autouse=True)
def interfaces(monkeypatch):
    monkeypatch.setattr("hosttune.kinds.nic.Ethtool", Kernel(eth0=e1000e()).tool)


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    return Host(tmp_path_factory.mktemp("host"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_has_its_message_and_nothing_is_touched(standing, monkeypatch, case):
    as_root(monkeypatch)
    below = ("etc", "proc", "sys", "lib", "usr", "run")
    before = standing.snapshot(times=True, below=below)
    for check in (True, False):
        with pytest.raises(Refusal) as refusal:
            standing.apply(case.owners, check=check, **case.more)
        told = str(refusal.value)
        assert case.thing in told
        assert refusal.value.thing, told
        assert refusal.value.remedy, told
        for part in case.parts:
            assert part in told
        assert not any(ord(one) < 32 or ord(one) == 127 for one in told), "what is shown is one clean line"
        assert len(told) < 1000, "a message is read by people"
    assert standing.snapshot(times=True, below=below) == before
    assert standing.live_writes == []
    assert standing.commands == []
    left = os.path.join(standing.folder, "var/lib/hosttune")
    assert set(os.listdir(left)) == {"lock"}
    BAD_INPUT.cases += 1


def test_the_good_ones_are_taken(tmp_path, monkeypatch):
    """Else a case could be refused for another reason than its own."""
    as_root(monkeypatch)
    monkeypatch.setattr("grp.getgrnam", lambda name: SimpleNamespace(gr_gid=os.getgid()))
    host = Host(tmp_path)
    for kind, (name, value) in GOOD.items():
        host.apply({"role": {kind: {name: value}}}, check=True)


def test_every_kind_has_its_cases():
    assert tuple(GOOD) == kinds.ORDER
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []
    few = {kind for kind in kinds.ORDER if sum(one.name.startswith(f"{kind}: ") for one in CASES) < 20}
    assert few == set()
