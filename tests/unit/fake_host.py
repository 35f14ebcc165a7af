"""A small host in a folder: real files, no commands, and every write of a live value on record."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hosttune.engine import Request, converge
from hosttune.system import Ran, System

LIVE = {
    "net/core/somaxconn": "128",
    "net/ipv4/tcp_syncookies": "1",
    "net/ipv4/tcp_rmem": "4096\t131072\t6291456",
    "vm/swappiness": "60",
    "fs/nr_open": "1048576",
    "kernel/hostname": "fake",
    "kernel/random/boot_id": "11111111-2222-3333-4444-555555555555",
}


class FakeHost(System):
    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.folder = root
        self.live_writes: list[str] = []
        for name, value in LIVE.items():
            self.put(f"/proc/sys/{name}", value + "\n")
        self.put("/proc/1/environ", "")
        self.put("/etc/sysctl.d/10-vendor.conf", "vm.swappiness = 60\n")
        self.put("/etc/app/app.conf", "as the vendor ships it\n", 0o640)
        (root / "etc/app/link").symlink_to("app.conf")
        (root / "var/lib").mkdir(parents=True)

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        real = Path(self.path(path))
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_text(text)
        real.chmod(mode)

    def text(self, path: str) -> str:
        return Path(self.path(path)).read_text()

    def write_value(self, path: str, value: str) -> None:
        self.live_writes.append(path)
        super().write_value(path, value)

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        return Ran(127, "", f"{argv[0]}: command not found")

    def apply(self, owners, **more):
        quick = {"lock_wait_seconds": 0.3, "settle_seconds": 0.0}
        return converge(FakeHost.again(self), Request(owners=owners, **{**quick, **more}))

    @classmethod
    def at(cls, folder: Path) -> FakeHost:
        """A host that stands in `folder` already."""
        found = cls.__new__(cls)
        System.__init__(found, str(folder))
        found.folder, found.live_writes = folder, []
        return found

    @classmethod
    def again(cls, other: FakeHost) -> FakeHost:
        """The same folder as a new process sees it; writes stay on the same record."""
        found = cls.__new__(cls)
        System.__init__(found, other.root)
        found.folder, found.live_writes = other.folder, other.live_writes
        return found

    def snapshot(self, times: bool = False, below: tuple[str, ...] = ("etc", "proc")) -> dict[str, tuple]:
        """Names, types, modes, owners, link targets and contents; with mtimes where asked."""
        found: dict[str, tuple] = {}
        for top in below:
            for folder, folders, files in os.walk(self.folder / top):
                for name in [*folders, *files, "."]:
                    path = os.path.join(folder, name)
                    about = os.lstat(path)
                    content: object = None
                    if stat.S_ISLNK(about.st_mode):
                        content = os.readlink(path)
                    elif stat.S_ISREG(about.st_mode):
                        content = Path(path).read_bytes()
                    entry = (stat.filemode(about.st_mode), about.st_uid, about.st_gid, content)
                    found[os.path.relpath(path, self.folder)] = (
                        (*entry, about.st_mtime_ns) if times else entry
                    )
        return found


def as_root(monkeypatch) -> None:
    """Lets an ordinary user walk a folder of his own as root walks a host."""
    if os.geteuid() != 0:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(os, "fchown", lambda *_args: None)
