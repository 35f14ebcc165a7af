"""The machine that is read and written: a root folder, its commands, and what kind of machine it is."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .model import squeeze

#: Why a key of a container's kernel is read and never written.
KERNEL_SHARED = "kernel shared with the machine"


#: What of a machine an update changes, and where it stands; microcode is in /proc/cpuinfo.
_UPDATED = {"kernel": "/proc/sys/kernel/osrelease", "firmware": "/sys/class/dmi/id/bios_version"}


def updates(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Sentences about what of System.machine is another one than `then`."""
    return [
        f"the {name} is {now[name]} and was {then[name]} when this host was converged: converge it again"
        for name in sorted(now)
        if then.get(name, now[name]) != now[name]
    ]


@dataclass(frozen=True)
class Ran:
    """A command that ended: its exit status (126: cannot be run, 127: no such command), and what it said."""

    status: int
    out: str
    err: str

    @property
    def ok(self) -> bool:
        return self.status == 0


class System:
    """All access of the engine to the host. Paths given to it start with '/', below `root`."""

    def __init__(self, root: str = "/") -> None:
        self.root = os.path.normpath(root)

    def path(self, path: str) -> str:
        """Where `path` of the host lies for us."""
        return path if self.root == "/" else self.root + path

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.path(path))

    def read(self, path: str) -> str:
        """The text of a file; raises OSError. Bytes that are no UTF-8 survive a round trip."""
        with open(self.path(path), encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()

    def read_value(self, path: str) -> str:
        """The text of a file of /proc or /sys with runs of blanks as one space; raises OSError."""
        return squeeze(self.read(path))

    def write_value(self, path: str, value: str) -> None:
        """Writes a file of /proc or /sys in one write(2), as the kernel wants it; raises OSError."""
        handle = os.open(self.path(path), os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(handle, value.encode("utf-8", "surrogateescape") + b"\n")
        finally:
            os.close(handle)

    def names(self, folder: str) -> list[str]:
        """The sorted names in a folder, none where it is missing."""
        try:
            return sorted(os.listdir(self.path(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        """Runs a command of the host in the C locale, never through a shell."""
        import subprocess  # here: a check of kernel settings alone runs nothing

        environment = {**os.environ, "LC_ALL": "C", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
        environment["PATH"] = f"/usr/sbin:/sbin:{environment.get('PATH', '/usr/bin:/bin')}"
        try:
            ended = subprocess.run(
                argv,
                input=stdin,
                env=environment,
                capture_output=True,
                timeout=timeout,
                encoding="utf-8",
                errors="surrogateescape",
                check=False,
            )
        except FileNotFoundError:
            return Ran(127, "", f"{argv[0]}: command not found")
        except OSError as error:
            return Ran(126, "", f"{argv[0]}: {error.strerror}")
        except subprocess.TimeoutExpired:
            return Ran(124, "", f"{argv[0]}: gave no answer within {timeout:.0f} s")
        return Ran(ended.returncode, ended.stdout, ended.stderr)

    @functools.cached_property
    def container(self) -> str:
        """The container manager's name, empty on a machine with its own kernel."""
        try:
            return self.read("/run/systemd/container").strip()
        except OSError:
            pass
        try:
            environ = self.read("/proc/1/environ").split("\0")
        except OSError:
            environ = []
        for entry in environ:
            if entry.startswith("container="):
                return entry.partition("=")[2]
        return "docker" if self.exists("/.dockerenv") else ""

    @functools.cached_property
    def boot_id(self) -> str:
        try:
            return self.read_value("/proc/sys/kernel/random/boot_id")
        except OSError:
            return ""

    @functools.cached_property
    def machine(self) -> dict[str, str]:
        """What an update changes under a tuned host: its kernel's release, firmware and microcode."""
        found = {}
        for name, path in _UPDATED.items():
            try:
                found[name] = self.read_value(path)
            except OSError:
                continue  # no DMI: a container, a virtual machine, another architecture
        try:
            for line in self.read("/proc/cpuinfo").splitlines():
                if line.startswith("microcode"):
                    found["microcode"] = line.partition(":")[2].strip()
                    break
        except OSError:
            pass
        return found

    def missing_packages(self, names: Sequence[str]) -> list[str]:
        """Which of these Debian packages are not installed, read from dpkg's own database."""
        wanted = set(names)
        if not wanted:
            return []
        try:
            status = self.read("/var/lib/dpkg/status")
        except OSError:
            return list(names)
        for block in status.split("\n\n"):
            if "\nStatus: install ok installed" in block:
                wanted.discard(block.partition("\n")[0].removeprefix("Package: "))
        return [name for name in names if name in wanted]

    def read_only_mount(self, path: str) -> str | None:
        """The nearest existing folder of `path` where nothing can be written, None where it can."""
        probe = self.path(path)
        while not os.path.isdir(probe):
            probe = os.path.dirname(probe)
        flags = os.statvfs(probe).f_flag
        return probe if flags & os.ST_RDONLY or not os.access(probe, os.W_OK) else None
