"""Hosts in a folder: real files, at most a few played commands, and every write of a live value on record."""

from __future__ import annotations

import datetime
import os
import shutil
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
        self.commands: list[str] = []
        self.played: dict[str, dict] = {}
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
        return converge(type(self).again(self), Request(owners=owners, **{**quick, **more}))

    @classmethod
    def at(cls, folder: Path) -> FakeHost:
        """A host that stands in `folder` already."""
        found = cls.__new__(cls)
        System.__init__(found, str(folder))
        found.folder, found.live_writes = folder, []
        found.commands, found.played = [], {}
        return found

    @classmethod
    def again(cls, other: FakeHost) -> FakeHost:
        """The same host as a new process sees it; writes stay on the same record."""
        found = cls.__new__(cls)
        System.__init__(found, other.root)
        found.folder, found.live_writes = other.folder, other.live_writes
        found.commands, found.played = other.commands, other.played
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


PAIRS = {
    "vm/dirty_bytes": "vm/dirty_ratio",
    "vm/dirty_ratio": "vm/dirty_bytes",
    "vm/dirty_background_bytes": "vm/dirty_background_ratio",
    "vm/dirty_background_ratio": "vm/dirty_background_bytes",
}
#: Values that systemd has where no file says anything.
DEFAULTS = {
    "manager": {"DefaultTasksMax": "4915", "DefaultLimitNOFILE": "1024:524288"},
    "app.service": {
        **{"LimitNOFILE": "1024:524288", "TasksMax": "4915", "OOMScoreAdjust": "0", "WorkingDirectory": ""}
    },
    "work@a.service": {"LimitNOFILE": "1024:524288", "OOMScoreAdjust": "0"},
}
#: Unit -> its main process while it runs.
PIDS = {"app.service": "4242", "work@a.service": "4343"}
_FLAGS = ("noatime", "relatime", "nosuid", "nodev", "noexec", "nodiratime")


class FullHost(FakeHost):
    """The small host with more of a real one: keys that zero each other, /sys, modules, a mount, and what of
    systemctl, modprobe and mount the engine uses. `played` is what systemd and its units have now;
    commands that change something are on record in `commands`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        for name, value in {
            "vm/dirty_ratio": "20",
            "vm/dirty_bytes": "0",
            "vm/dirty_background_ratio": "10",
            "vm/dirty_background_bytes": "0",
            "kernel/numa_balancing": "1",
            "kernel/osrelease": "6.1.0-fake",
        }.items():
            self.put(f"/proc/sys/{name}", value + "\n")
        self.put("/sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n")
        self.put("/sys/kernel/mm/ksm/run", "0\n")
        self.put("/lib/modules/6.1.0-fake/modules.dep", "kernel/net/tcp_bbr.ko:\nkernel/drivers/floppy.ko:\n")
        for module in ("floppy", "ext4"):
            (root / "sys/module" / module).mkdir(parents=True)
        self.put(
            "/etc/fstab", "# disks\n/dev/a / ext4 defaults 0 1\n/dev/b  /data  ext4  relatime,nosuid 0 2\n"
        )
        self.put(
            "/proc/self/mountinfo",
            "1 0 8:1 / / rw,relatime - ext4 /dev/a rw\n2 1 8:2 / /data rw,nosuid,relatime - ext4 /dev/b rw\n",
        )
        self.put("/usr/lib/systemd/system/app.service", "[Service]\nExecStart=/bin/app\nTasksMax=100\n")
        self.put("/usr/lib/systemd/system/work@.service", "[Service]\nLimitNOFILE=1024:524288\n")
        (root / "run/systemd/system").mkdir(parents=True)
        self.played["services"] = {
            "app.service": {"UnitFileState": "disabled", "ActiveState": "inactive"},
            "work@a.service": {"UnitFileState": "static", "ActiveState": "inactive"},
        }
        self.played["started"] = {}
        self._load()
        self._control("start", "work@a.service")

    # the kernel

    def write_value(self, path: str, value: str) -> None:
        key = path.removeprefix("/proc/sys/")
        if key.endswith("_bytes") and key in PAIRS and value == "0":
            self.live_writes.append(path)
            raise OSError(22, "Invalid argument", path)
        now = self.text(path)
        offered = now.replace("[", "").replace("]", "").split()
        if "[" in now:
            value = " ".join(f"[{one}]" if one == value else one for one in offered)
        super().write_value(path, value)
        if key in PAIRS and now.strip() != value:
            self.put(f"/proc/sys/{PAIRS[key]}", "0\n")

    # commands

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        if argv[:2] == ("systemctl", "show"):
            return self._show(argv[2:])
        if argv[0] not in ("systemctl", "modprobe", "mount"):
            return super().run(*argv)
        if argv[1] == "is-enabled":
            units = [self.played["services"].get(unit) for unit in argv[argv.index("--") + 1 :]]
            states = [unit["UnitFileState"] for unit in units if unit is not None]
            return Ran(len(units) - len(states), "".join(f"{state}\n" for state in states), "")
        self.commands.append(" ".join(argv))
        if argv[0] == "modprobe":
            os.rmdir(self.path(f"/sys/module/{argv[-1]}")) if "-r" in argv else os.mkdir(
                self.path(f"/sys/module/{argv[-1]}")
            )
        elif argv[0] == "mount":
            self._remount(argv[argv.index("-o") + 1].split(","), argv[-1])
        elif argv[1].startswith("daemon-re"):
            self._load()
        else:
            self._control(argv[1], argv[-1])
        return Ran(0, "", "")

    def _remount(self, options: list[str], point: str) -> None:
        """Flags that are not named are cleared, as mount(2) does."""
        flags = [one for one in options if one in _FLAGS]
        if not {"noatime", "relatime"} & set(flags):
            flags.append("relatime")
        lazy = "rw,lazytime" if "lazytime" in options else "rw"
        rows = self.text("/proc/self/mountinfo").split("\n")
        for number, row in enumerate(rows):
            fields = row.split(" ")
            if len(fields) > 4 and fields[4] == point:
                rows[number] = " ".join((*fields[:5], ",".join(("rw", *flags)), "- ext4 /dev/b", lazy))
        self.put("/proc/self/mountinfo", "\n".join(rows))

    def _control(self, verb: str, unit: str) -> None:
        states = {"enable": "enabled", "disable": "disabled", "mask": "masked", "unmask": "disabled"}
        runs = {"start": "active", "stop": "inactive"}
        if verb in states:
            self.played["services"][unit]["UnitFileState"] = states[verb]
        elif verb != "reload":
            if verb in ("stop", "restart") or self.played["services"][unit]["ActiveState"] == "inactive":
                self._end(unit)
                if verb != "stop":
                    self._begin(unit)
            self.played["services"][unit]["ActiveState"] = runs.get(verb, "active")

    def _end(self, unit: str) -> None:
        self.played["started"].pop(unit, None)
        shutil.rmtree(self.path(f"/proc/{PIDS[unit]}"), ignore_errors=True)

    def _begin(self, unit: str) -> None:
        """A main process with what is loaded now, older than every file that is written from now on."""
        loaded, folder = self.played[unit], f"/proc/{PIDS[unit]}"
        soft, colon, hard = loaded["LimitNOFILE"].partition(":")
        self.put(f"{folder}/limits", f"Max open files  {soft}  {hard if colon else soft}  files\n")
        self.put(f"{folder}/oom_score_adj", loaded["OOMScoreAdjust"] + "\n")
        began = self._tick()
        self._tick()
        moment = datetime.datetime.fromtimestamp(began // 1000 / 1e6, datetime.timezone.utc)
        self.played["started"][unit] = f"{moment:%a %Y-%m-%d %H:%M:%S.%f} UTC"

    def _tick(self) -> int:
        """A time of this file system (nanoseconds) that no file has yet."""
        clock = Path(self.root) / "clock"
        clock.touch()
        last = clock.stat().st_mtime_ns
        while clock.stat().st_mtime_ns == last:
            clock.touch()
        return clock.stat().st_mtime_ns

    def process(self, unit: str) -> dict[str, str]:
        """What the main process of a unit has; empty where none runs."""
        if unit not in self.played["started"]:
            return {}
        words = self.text(f"/proc/{PIDS[unit]}/limits").split()
        score = self.text(f"/proc/{PIDS[unit]}/oom_score_adj").strip()
        return {"LimitNOFILE": f"{words[3]}:{words[4]}", "OOMScoreAdjust": score}

    def _on_disk(self, what: str) -> dict[str, str]:
        names = dict.fromkeys((what, what.replace("@a.", "@.")))
        tops = ("/usr/lib/systemd/system", "/etc/systemd/system")
        folders = [f"{top}/{name}.d" for top in tops for name in names]
        files = [f"{tops[0]}/{list(names)[-1]}"]
        if what == "manager":
            folders, files = ["/etc/systemd/system.conf.d"], []
        dropins = {
            name: folder for folder in folders for name in self.names(folder) if name.endswith(".conf")
        }
        files += [f"{dropins[name]}/{name}" for name in sorted(dropins)]
        found = dict(DEFAULTS[what])
        for file in files:
            for line in self.text(file).splitlines():
                name, equals, value = line.partition("=")
                if equals and name in found:
                    found[name] = value
        return found

    def _load(self) -> None:
        for what in DEFAULTS:
            self.played[what] = self._on_disk(what)

    def _show(self, words: tuple[str, ...]) -> Ran:
        asked = next(word for word in words if word.startswith("--property=")).partition("=")[2].split(",")
        if "--" not in words:
            about = {"Version": "252", **_with_soft(self.played["manager"])}
            return Ran(0, "".join(f"{name}={about[name]}\n" for name in asked if name in about), "")
        blocks = []
        for unit in words[words.index("--") + 1 :]:
            unit = unit.replace("@*.", "@a.")
            about = {"Id": unit, "LoadState": "not-found", "ActiveState": "inactive", "UnitFileState": ""}
            if unit in PIDS:
                started = self.played["started"].get(unit, "")
                about |= {
                    "LoadState": "loaded",
                    "Names": unit,
                    "MainPID": PIDS[unit] if started else "0",
                    "ExecMainStartTimestamp": started,
                    **self.played["services"][unit],
                }
                about["NeedDaemonReload"] = "no" if self._on_disk(unit) == self.played[unit] else "yes"
                about |= _with_soft(self.played[unit])
            blocks.append("".join(f"{name}={about[name]}\n" for name in asked if name in about))
        return Ran(0, "\n".join(blocks), "")


def _with_soft(values: dict[str, str]) -> dict[str, str]:
    """Limits as two properties, as systemd shows them."""
    found = {}
    for name, value in values.items():
        soft, colon, hard = value.partition(":")
        if "Limit" in name:
            found[f"{name}Soft"], found[name] = soft, hard if colon else soft
        else:
            found[name] = value
    return found


def as_root(monkeypatch) -> None:
    """Lets an ordinary user walk a folder of his own as root walks a host."""
    if os.geteuid() != 0:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(os, "fchown", lambda *_args: None)
