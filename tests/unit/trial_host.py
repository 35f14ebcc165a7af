"""A host with a GRUB that can be played: it arms, boots, panics and loses its power as a real one does."""

from __future__ import annotations

import shutil

from hosttune import grub, grubenv, trial
from hosttune.engine import Request, converge
from hosttune.model import Refusal
from hosttune.system import Ran, System
from test_kind_boot import ROOT, Host, entry, menu

HEADER = """
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
"""
CUSTOM = """
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
elif [ -z "${config_directory}" -a -f  $prefix/custom.cfg ]; then
  source $prefix/custom.cfg
fi
"""
EMPTY = grubenv.SIGNATURE + "#" * (1024 - len(grubenv.SIGNATURE))
OWNERS = {"cpu": {"boot": {"isolcpus": "2-3", "skew_tick": "1"}}}
#: the sources' line by what stands in them
SOURCED: dict[tuple, str] = {}
#: what hosttune-trial asks for beside its own files
UNITS = {"ssh.service": "active", "app.service": "active"}


class TrialHost(Host):
    """`boots()` is GRUB: it takes next_entry and empties it before the kernel has the line."""

    def __init__(self, root):
        self.number = 0
        super().__init__(root)
        self.units = dict(UNITS)
        self.put(grubenv.PATH, EMPTY)
        self.put("/proc/self/mountinfo", "1 0 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n")
        (root / "sys/devices/sda/sda1").mkdir(parents=True)
        (root / "sys/devices/sda/sda1/partition").write_text("1\n")
        (root / "sys/dev/block").mkdir(parents=True)
        (root / "sys/dev/block/8:1").symlink_to("../../devices/sda/sda1")
        default = ["eth0", "00000000", "0102000A", "3", "0", "0", "0", "00000000", "0", "0", "0"]
        self.put("/proc/net/route", "Iface\tDestination\n" + "\t".join(default) + "\n")
        self.put("/proc/sys/kernel/hostname", "fake\n")
        self.made = self.menu
        self.update()
        self.boots()

    def sourced(self):
        """As a shell has it; asked once for each state of the files."""
        state = tuple((file, self.read(file)) for file in grub.source_files(self))
        if state not in SOURCED:
            SOURCED[state] = super().sourced()
        return SOURCED[state]

    def menu(self, line):
        """A grub.cfg as grub-mkconfig makes it of these sources."""
        saved = "GRUB_DEFAULT=saved" in "".join(self.read(file) for file in grub.source_files(self))
        return HEADER + menu(line, "${saved_entry}" if saved else "0") + CUSTOM

    def run(self, *argv, stdin="", timeout=120.0):
        if argv[0] == "systemctl":
            if argv[1] == "is-active":
                return Ran(0 if self.units.get(argv[-1]) == "active" else 3, "", "")
            shown = [
                f"Id={name}\nLoadState=loaded\nUnitFileState=enabled\nActiveState={self.units[name]}\nType=simple\n"
                for name in argv[argv.index("--") + 1 :]
                if name in self.units
            ]
            return Ran(0, "\n".join(shown), "")
        return super().run(*argv, stdin=stdin, timeout=timeout)

    @classmethod
    def at(cls, folder):
        """The host that stands in a folder, as a new process sees it."""
        found = cls.__new__(cls)
        System.__init__(found, str(folder))
        found.folder, found.ran, found.answer = folder, [], Ran(0, "", "")
        found.number, found.units, found.made = 0, dict(UNITS), found.menu
        return found

    def again(self):
        found = type(self).at(self.folder)
        found.units, found.number, found.ran = self.units, self.number, self.ran
        return found

    def copy(self, folder):
        shutil.copytree(self.folder, folder, symlinks=True)
        return type(self).at(folder)

    def boots(self, writes=True):
        """The next boot, as GRUB's menu and grubenv have it; returns the line that the kernel gets."""
        chosen = grub.read_menu(self).default.linux[0][1]
        if writes and grubenv.read(self).get("next_entry"):
            grubenv.write(self, {"next_entry": ""})
        self.number = int(self.read("/number")) + 1 if self.exists("/number") else 1
        self.put("/number", str(self.number))
        self.put("/proc/sys/kernel/random/boot_id", f"boot-{self.number}\n")
        self.__dict__.pop("boot_id", None)
        line = " ".join(map(grub.loader_text, chosen[1:]))
        self.put("/proc/cmdline", f"BOOT_IMAGE={chosen[0]} {line}\n")
        return line

    def apply(self, owners=None, mode="host", **more):
        """One call of host_settings."""
        owners = OWNERS if owners is None else owners
        report = converge(
            self.again(), Request(owners, boot_trial=mode, lock_wait_seconds=0.3, settle_seconds=0.0, **more)
        )
        return report, {one.setting.name: one for one in report.settings}

    def state(self):
        record = trial.load(self)
        if record is None:
            return ""
        return trial.standing(self.again(), record, grubenv.read(self), trial.live_words(self))


__all__ = ["OWNERS", "ROOT", "Refusal", "TrialHost", "entry"]
