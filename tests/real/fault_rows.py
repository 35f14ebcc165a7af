"""The rows of test_faults.py: settings of each kind on a test host, and where they live there.

Runs on a test host, beside faults.py.
"""

# ruff: noqa: RUF012 - a row is a class of constants

from __future__ import annotations

import os
import re
import shutil
import subprocess

NOISE = "/etc/systemd/system/htf-noise.service"
MOUNTED = "/mnt/htf"
ATTRIBUTE = "kernel/mm/transparent_hugepage/khugepaged/pages_to_scan"


def said_by(*argv, user=None, check=True):
    ended = subprocess.run(
        argv,
        check=check,
        capture_output=True,
        text=True,
        user=user,
        cwd="/",
        env={**os.environ, "LC_ALL": "C"},
    )
    return ended.stdout.strip()


def sql(command):
    return said_by("psql", "-XAtc", command, user="postgres")


class Row:
    """Settings of one kind, and where they live. Regular expressions match from the start."""

    #: what a run asks for
    values: dict = {}
    #: values that whoever owns the knob refuses
    refused: dict = {}
    #: below it lie the files this kind writes
    folder = "/etc"
    #: what is read to know how things are: paths, and commands
    reads = r"\Z."
    reading = r"\Z."
    #: commands that make values live
    activating = r"\Z."
    #: what is sent to a server to make values live
    sending = rb"\Z."
    #: whether it makes them live by writing to /proc or /sys
    writes_values = False
    #: what a full disk has no more of: blocks, or inodes for a kind that makes links
    full_of = "blocks"
    #: the verdicts of a converged host
    good = frozenset({"in_sync"})
    #: of a kind with nothing to write where the kernel is the machine's: a command, and what it says of that
    shown_by: tuple = ()
    #: fault -> a command, and what it says of why the fault cannot befall this kind
    lacks: dict = {}
    own_kernel = False
    #: killed at each write; else at some, since a run of it takes long
    every_write = False

    def __init__(self, kind):
        self.kind = kind

    @property
    def files(self):
        """The paths that are opened to make its files."""
        return re.escape(self.folder) + "/"

    @property
    def owners(self):
        return {"desk": {self.kind: self.values}}

    @property
    def activated(self):
        """Values that take a command to be live."""
        return self.values

    def set_up(self):
        """Brings what the settings are of."""

    def tear_down(self):
        """Takes it away again."""

    def live(self):
        """What the system's own tools say of it."""
        return ""

    def revert(self):
        """Another program sets it back."""

    def stop_reverting(self):
        """That program is taken off the host."""


class Sysctl(Row):
    values = {"net.ipv4.tcp_max_syn_backlog": "4321", "net.ipv4.ip_default_ttl": "63"}
    refused = {"net.ipv4.ip_default_ttl": "999"}
    folder = "/etc/sysctl.d"
    reads = r"/proc/sys/net/ipv4/(tcp_max|ip_default)"
    writes_values = every_write = True

    def live(self):
        return said_by("sysctl", *self.values)

    def set_up(self):
        self.was = said_by("sysctl", "-n", "net.ipv4.tcp_max_syn_backlog")

    def revert(self):
        said_by("sysctl", "-w", f"net.ipv4.tcp_max_syn_backlog={self.was}")


class Sysfs(Row):
    """A file mounted over the attribute: /sys is read-only in a container, and that stays so."""

    values = {ATTRIBUTE: "1234"}
    refused = {ATTRIBUTE: "on"}
    folder = "/etc/tmpfiles.d"
    reads = rf"/sys/{ATTRIBUTE}\Z"
    writes_values = every_write = own_kernel = True

    def set_up(self):
        with open("/run/htf-attribute", "w") as stream:
            stream.write("4096\n")
        said_by("mount", "--bind", "/run/htf-attribute", f"/sys/{ATTRIBUTE}")

    def tear_down(self):
        said_by("umount", f"/sys/{ATTRIBUTE}")
        os.unlink("/run/htf-attribute")

    def live(self):
        return said_by("cat", f"/sys/{ATTRIBUTE}")

    def revert(self):
        with open("/run/htf-attribute", "w") as stream:
            stream.write("4096\n")


class Hugepages(Row):
    """Files mounted over a node's pool, as over the attribute of sysfs."""

    POOL = "/sys/devices/system/node/node0/hugepages/hugepages-2048kB"

    values = {"0/2048kB": "3"}
    refused = {"0/2048kB": "many"}
    folder = "/etc/tmpfiles.d"
    reads = rf"{POOL}/nr_hugepages\Z"
    writes_values = every_write = own_kernel = True

    def set_up(self):
        os.makedirs("/run/htf-pool")
        for count in ("nr", "surplus"):
            with open(f"/run/htf-pool/{count}_hugepages", "w") as stream:
                stream.write("0\n")
        said_by("mount", "--bind", "/run/htf-pool", self.POOL)

    def tear_down(self):
        said_by("umount", self.POOL)
        shutil.rmtree("/run/htf-pool")

    def live(self):
        return said_by("cat", f"{self.POOL}/nr_hugepages")

    def revert(self):
        with open("/run/htf-pool/nr_hugepages", "w") as stream:
            stream.write("0\n")


class Mount(Row):
    """A tmpfs of the host's own, which a container may mount again with other options."""

    values = {MOUNTED: "noatime"}
    refused = {MOUNTED: "mode=banana"}
    files = r"/etc/\.fstab"
    reads = r"/proc/self/mountinfo\Z"
    activating = r"mount\Z"
    own_kernel = True

    def set_up(self):
        os.makedirs(MOUNTED)
        with open("/etc/fstab", "a") as stream:
            stream.write(f"tmpfs {MOUNTED} tmpfs size=1m 0 0\n")
        said_by("mount", MOUNTED)

    def tear_down(self):
        said_by("umount", MOUNTED)
        os.rmdir(MOUNTED)
        said_by("sed", "-i", f"\\|{MOUNTED}|d", "/etc/fstab")

    def live(self):
        return said_by("findmnt", "-no", "OPTIONS", MOUNTED)

    def revert(self):
        said_by("mount", "--options-mode=ignore", "-o", "remount,strictatime", MOUNTED)


class Limit(Row):
    values = {"redis/hard/nofile": "65536"}
    refused = {"redis/hard/nofile": "many"}
    folder = "/etc/security/limits.d"
    reads = r"/etc/security/limits"
    lacks = {
        "EACCES, EIO, EINVAL making it live": ("grep -c 'def activate' hosttune/kinds/limit.py", "0"),
    }
    every_write = True

    def revert(self):
        with open("/etc/security/limits.d/60-hosttune-desk.conf", "w") as stream:
            stream.write("redis hard nofile 1024\n")


class File(Row):
    values = {
        "/etc/htf/a.conf": {"content": "tuned\n", "mode": "0644"},
        "/etc/htf/deep/er/b.conf": {"content": "new\n"},
    }
    refused = {"/etc/htf/a.conf": {"content": "tuned\n", "mode": "0999"}}
    folder = "/etc/htf"
    reads = r"/etc/htf/a"
    activated = {"/etc/htf/a.conf": {"content": "tuned\n", "reload": "postgresql@15-main.service"}}
    activating = r"systemctl reload"
    every_write = True

    def set_up(self):
        os.mkdir("/etc/htf")
        with open("/etc/htf/a.conf", "w") as stream:
            stream.write("as the vendor ships it\n")
        os.chmod("/etc/htf/a.conf", 0o640)

    def tear_down(self):
        shutil.rmtree("/etc/htf")

    def revert(self):
        with open("/etc/htf/a.conf", "w") as stream:
            stream.write("as the vendor ships it\n")


class Manager(Row):
    values = {"DefaultTasksMax": "3000"}
    refused = {"DefaultTasksMax": "many"}
    folder = "/etc/systemd"
    reading = r"systemctl\Z"
    activating = r"systemctl daemon-re"

    def live(self):
        return said_by("systemctl", "show", "-p", "DefaultTasksMax")

    def revert(self):
        os.unlink("/etc/systemd/system.conf.d/60-hosttune-desk.conf")
        said_by("systemctl", "daemon-reload")


class Unit(Row):
    values = {"redis-server.service/Service/TasksMax": "512"}
    refused = {"redis-server.service/Service/TasksMax": "many"}
    folder = "/etc/systemd/system"
    reading = r"systemctl\Z"
    activating = r"systemctl daemon-re"

    def live(self):
        return said_by("systemctl", "show", "-p", "TasksMax", "redis-server.service")

    def revert(self):
        said_by("systemctl", "set-property", "--runtime", "redis-server.service", "TasksMax=99")

    def stop_reverting(self):
        shutil.rmtree("/run/systemd/system.control/redis-server.service.d")
        said_by("systemctl", "daemon-reload")


class Postgres(Row):
    values = {"15/main/work_mem": "8MB"}
    refused = {"15/main/work_mem": "1kB"}
    folder = "/etc/postgresql"
    reading = r"(runuser|setpriv|su|psql)\Z"
    activating = r".*pg_reload_conf"

    def live(self):
        return sql("SELECT setting, sourcefile FROM pg_settings WHERE name = 'work_mem'")

    def revert(self):
        sql("ALTER SYSTEM SET work_mem = '5MB'")
        sql("SELECT pg_reload_conf()")

    def stop_reverting(self):
        sql("ALTER SYSTEM RESET work_mem")
        sql("SELECT pg_reload_conf()")


class Redis(Row):
    values = {"server/maxclients": "3000"}
    refused = {"server/maxclients": "many"}
    folder = "/etc/redis"
    reads = r"/etc/redis/redis.conf\Z"
    sending = rb".*CONFIG\r\n\$3\r\nSET"

    def live(self):
        return said_by("redis-cli", "config", "get", "maxclients")

    def revert(self):
        said_by("redis-cli", "config", "set", "maxclients", "10000")


class Service(Row):
    values = {"htf-noise.service": "enabled active"}
    refused = {"htf-noise.service": "enabled resting"}
    folder = "/etc/systemd/system"
    reading = r"systemctl\Z"
    activating = r"systemctl (enable|start)"
    lacks = {
        "EACCES, EIO, EINVAL making its file": ("grep -c 'def render' hosttune/kinds/service.py", "0"),
    }
    full_of = "inodes"

    def set_up(self):
        with open(NOISE, "w") as stream:
            stream.write("[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n")
        said_by("systemctl", "daemon-reload")

    def tear_down(self):
        os.unlink(NOISE)
        said_by("systemctl", "daemon-reload")

    def live(self):
        return said_by("systemctl", "show", "-p", "ActiveState,UnitFileState", "htf-noise.service")

    def revert(self):
        said_by("systemctl", "stop", "htf-noise.service")


class Shared(Row):
    """A kind that has nothing to write on a host whose kernel is the machine's; its state is kept all the
    same. `shown_by` are a command and what it says."""

    good = frozenset({"unsupported"})

    def __init__(self, kind, values, shown_by):
        super().__init__(kind)
        self.values, self.shown_by = values, shown_by


class Together(Row):
    """The settings of several rows in one call."""

    def __init__(self, rows):
        super().__init__("all")
        self.rows = rows
        self.good = frozenset().union(*(row.good for row in rows))

    @property
    def owners(self):
        return {"desk": {row.kind: row.values for row in self.rows}}

    def live(self):
        return [row.live() for row in self.rows]


ROWS = {
    "module": Shared(
        "module", {"dummy": "loaded"}, ("modprobe dummy", "not found in directory /lib/modules")
    ),
    "boot": Shared("boot", {"mitigations": "auto"}, ("ls /boot/grub/grub.cfg", "No such file")),
    "sysctl": Sysctl("sysctl"),
    "sysfs": Sysfs("sysfs"),
    "hugepages": Hugepages("hugepages"),
    "block": Shared("block", {"ssd/read_ahead_kb": "256"}, ("touch /sys/block", "Read-only file system")),
    "nic": Shared(
        "nic", {"eth0/features/gro": "off"}, ("ethtool -K eth0 gro off", "Operation not permitted")
    ),
    "irq": Shared("irq", {"default": "0"}, ("touch /proc/irq/default_smp_affinity", "Read-only file system")),
    "mount": Mount("mount"),
    "limit": Limit("limit"),
    "file": File("file"),
    "manager": Manager("manager"),
    "unit": Unit("unit"),
    "postgres": Postgres("postgres"),
    "redis": Redis("redis"),
    "service": Service("service"),
}
