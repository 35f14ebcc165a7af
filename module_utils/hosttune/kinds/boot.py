"""Kind boot: parameters of the kernel's command line, through GRUB.

A value's text is the parameter's values in order, separated by one blank, each as it stands after `=`: `2-3`,
`tty0 ttyS0`. A bare flag is `true`, as in the inventory. In double quotes stands what would be misread: a
value with blanks, an empty one, the value `true` itself, and one that begins with a bracket.

Most parameters take their last word. Of those in EVERY_WORD_COUNTS, and of those asked for as a list, every
word on the line is the value: the kernel adds them up, or takes the first. `hugepages` counts once after each
`hugepagesz`, so its text has one part a size, `(none)` for a size without, and what the kernel ignores is
left out. Dash and underscore are one letter; words after `--` are init's, not the kernel's.

Live is /proc/cmdline. Persisted is what the next boot will read from grub.cfg (see grub.py) and what the
files below /etc/default make of it at the next kernel update; both must say so. A change needs a reboot.

With a trial (`trial` is host or controller, see trial.py) a change of the line stands in a file beside the
permanent one, the next boot alone tries it, and confirming writes the permanent file. A line that this host
runs already needs none, and what is given back (a file's original) is the line from before the suite.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from .. import atomic, grub, grubenv, trial
from ..cmdline import Word, normal, one_text, to_values
from ..model import (
    BOOT_TRIALS,
    CONFIRMED,
    Call,
    Change,
    Definition,
    FileImage,
    Planes,
    Refusal,
    Setting,
)
from ..shell_source import Unfollowed
from ..system import KERNEL_SHARED, System
from ..trial import LONGEST_LINE
from .base import Kind

#: Not the last word decides: the kernel (or who reads its line) adds them up, or takes the first.
EVERY_WORD_COUNTS = frozenset(
    {
        "acpi_osi", "blkdevparts", "cgroup_disable", "console", "crashkernel", "default_hugepagesz",
        "dyndbg", "earlycon", "efi", "hugepages", "hugepagesz", "initcall_blacklist", "intel_iommu", "iommu",
        "isolcpus", "mce", "memmap", "modprobe.blacklist", "modules_load", "netconsole", "nohz_full", "pci",
        "systemd.mask", "systemd.setenv", "systemd.wants", "tsc", "video",
    }
)  # fmt: skip

#: Not ours: the boot loader, the installer and whoever repairs the host write these, and a wrong one is a
#: host that does not come up.
FORBIDDEN = frozenset(
    {
        "BOOT_IMAGE", "root", "rootflags", "rootfstype", "nfsroot", "ro", "rw", "init", "rdinit", "initrd",
        "noinitrd", "initrdmem", "break", "boot", "single", "S", "s", "emergency", "rescue", "recovery",
        "systemd.unit", "rd.systemd.unit", "rd.break",
    }
)  # fmt: skip

#: Parameters of tuning, so that a slip of the pen is found: the kernel takes any name and says nothing.
#: Those that are true need a value: `on` without quotes is the boolean true to YAML, not a bare flag.
KNOWN = {
    "amd_iommu": True, "amd_pstate": True, "audit": True, "clocksource": True, "cpuidle.off": True,
    "default_hugepagesz": True, "hugepages": True, "hugepagesz": True, "hugetlb_free_vmemmap": True,
    "idle": True, "init_on_alloc": True, "init_on_free": True, "intel_idle.max_cstate": True,
    "intel_iommu": True, "intel_pstate": True, "iommu": True, "irqaffinity": True, "isolcpus": True,
    "kthread_cpus": True, "maxcpus": True, "mce": False, "mitigations": True, "nohz": True, "nohz_full": True,
    "noapic": False, "nolapic": False, "nosmt": False,
    "nosoftlockup": False, "nowatchdog": False, "nr_cpus": True, "numa_balancing": True, "nmi_watchdog": True,
    "pcie_aspm": True, "pcie_aspm.policy": True, "preempt": True, "processor.max_cstate": True, "psi": True,
    "quiet": False, "randomize_kstack_offset": True, "rcu_nocb_poll": False, "rcu_nocbs": False,
    "skew_tick": True, "split_lock_detect": True, "threadirqs": False, "transparent_hugepage": True,
    "tsc": True, "workqueue.unbound_cpus": True,
}  # fmt: skip

#: What a trial needs: the default is the entry that `saved_entry` names, whatever stands beside it.
SAVED = "GRUB_DEFAULT=saved\n"

_NAME = re.compile(r"(?=.*[A-Za-z_])[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_PRINTABLE = re.compile(r"[ -~]*\Z")
#: what GRUB's script language takes as it stands
_PLAIN = re.compile(r"[A-Za-z0-9_./:,=@%+^~!-]+\Z")
ABSENT = "(absent)"
#: said of a value that the next boot has, and the one after it only if that is verified
WAITS = "it waits for its trial boot, and is permanent once that is verified"
CLEAR = "it is tried again when the line changes, or after `hosttune-trial retry`"
OLD_LINE = "the next boot has the old line"
_NO_PAGES = "(none)"


# the text of a value


def effective(name: str, words: Sequence[Word], as_list: bool) -> list[str]:
    """The texts of the values of a parameter that count, of all words on a line."""
    mine = [word for word in words if normal(word.name) == normal(name)]
    if normal(name) in ("hugepages", "hugepagesz"):
        pairs = page_pairs(words)
        if normal(name) == "hugepagesz":
            return [one_text(size) for size in pairs if size != ""]
        if not mine:
            return []
        return [_NO_PAGES if one is None else one for size, one in pairs.items() if size != "" or one]
    if not as_list:
        return [one_text(word.value) for word in mine[-1:]]
    texts = [one_text(word.value) for word in mine]
    # The same word twice does what the last of them does.
    return [text for at, text in enumerate(texts) if text not in texts[at + 1 :]]


def page_pairs(words: Sequence[Word]) -> dict[str | None, str | None]:
    """Pages by size in the order of the line, '' being the default size (mm/hugetlb.c).

    `hugepages` counts once after a `hugepagesz`; a size given twice keeps what it got first.
    """
    pairs: dict[str | None, str | None] = {"": None}
    size: str | None = ""
    open_for_pages = True
    for word in words:
        if normal(word.name) == "hugepagesz":
            size = word.value
            open_for_pages = size not in pairs
            pairs.setdefault(size, None)
        elif normal(word.name) == "hugepages" and open_for_pages:
            pairs[size] = one_text(word.value)
            open_for_pages = False
    return pairs


class BootKind(Kind):
    """See the module's docstring."""

    name = "boot"
    disruption: ClassVar[str] = "reboots"

    def __init__(self, system: System) -> None:
        super().__init__(system)
        #: what is asked for, as text, by normal name
        self._asked: dict[str, str] = {}
        #: names of this call, which are not undone by it
        self._wanted: set[str] = set()
        #: owners whose words are others than the permanent ones and have to be tried first
        self._trying: set[str] = set()
        #: the settings of theirs that differ: owner, name
        self._moving: set[tuple[str, str]] = set()

    # names and values

    def text(self, name: str, value: Any) -> str:
        thing = f"boot {name}"
        if isinstance(value, list):
            if not value:
                raise Refusal("its list is empty", thing=thing, remedy="Give values, or leave the name out")
            texts = [self._one(name, one) for one in value]
            if len(set(texts)) < len(texts) and normal(name) != "hugepages":
                raise Refusal("its list names a value twice", thing=thing, remedy="Name each value once")
        else:
            texts = [self._one(name, value)]
        self._asked[normal(name)] = " ".join(texts)
        return " ".join(texts)

    def _one(self, name: str, value: Any) -> str:
        thing = f"boot {name}"
        if value is True:
            if KNOWN.get(normal(name)):
                raise Refusal(
                    "takes a value, and the boolean true is a bare flag",
                    thing=thing,
                    remedy='Put the value in quotes: YAML turns on and yes into true, "on" stays a word',
                )
            return one_text(None)
        if value is False:
            raise Refusal(
                "the value is the boolean false",
                thing=thing,
                remedy='Write "off", "0" or "no" in quotes where the kernel shall read that word. To keep '
                f"the parameter off the line leave it out here, and remove who adds it: grep -rn {name} "
                f"{grub.SOURCE} {grub.SOURCES}",
            )
        if not isinstance(value, (str, int, float)):
            raise Refusal(
                "has no value" if value is None else f"a {type(value).__name__} is no value of it",
                thing=thing,
                remedy="Give a quoted value, true for a bare flag, or a list of these",
            )
        text = str(value)
        if not _PRINTABLE.match(text) or any(part in text for part in ('"', "'", "\\", "${")):
            raise Refusal(
                "the value has a line break, a quote, a backslash, a '${' or a letter beyond ASCII",
                thing=thing,
                remedy="GRUB and the kernel have no way to say it: the kernel knows no escape. A value with "
                "blanks needs no quotes of its own",
            )
        return one_text(text)

    def recall(self, setting: Setting) -> None:
        self._asked[normal(setting.name)] = setting.value

    def _as_list(self, name: str) -> bool:
        """Whether every word of this parameter counts, not the last one alone."""
        return normal(name) in EVERY_WORD_COUNTS or len(to_values(self._asked.get(normal(name), ""))) > 1

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        seen: dict[str, Setting] = {}
        for setting in settings:
            self._check_name(setting)
            other = seen.setdefault(normal(setting.name), setting)
            if other is not setting:
                raise Refusal(
                    f"is the same parameter as {other.name}",
                    thing=str(setting),
                    remedy="Dash and underscore are one letter here: name it once, with a list for repeats",
                )
        self._wanted = set(seen)
        self._check_pages(seen.get("hugepagesz"), seen.get("hugepages"))
        self._check_trial(settings)

    def _check_trial(self, settings: Sequence[Setting]) -> None:
        """Finds the owners whose settings need a trial; refuses where this host cannot have one."""
        self._trying, self._moving = set(), set()
        if self.trial not in BOOT_TRIALS[1:] or self._unsupported():
            return
        instead = {}
        for owner in sorted({setting.owner for setting in settings}):
            theirs = _sorted([one for one in settings if one.owner == owner])
            words, path = self.body(theirs), self._permanent(owner)
            standing = _without_head(self._standing(path))
            if words != standing:
                instead[path] = (path, words)
                self._trying.add(owner)
                lines = set(standing.splitlines())
                self._moving |= {
                    (owner, one.name) for one in theirs if not lines.issuperset(self.body([one]).splitlines())
                }
        if not instead:
            return
        try:
            menu = grub.read_menu(self.system)
            if trial.runs_already(self.system, menu, instead):
                self._trying, self._moving = set(), set()
                return
            trial.refuse_impossible(self.system, menu)
            self._check_default(menu)
        except (Unfollowed, OSError):
            self._trying, self._moving = set(), set()  # the settings are unknown, and nothing is written

    def _check_default(self, menu: grub.Menu) -> None:
        """That GRUB_DEFAULT is saved, or can be without another default entry; raises Refusal."""
        if self._stays_saved():
            return
        variables = grub.read_variables(self.system)
        places = [place for place, _value in variables.history.get("GRUB_DEFAULT", [])]
        where = f"{places[-1][0]}:{places[-1][1]}" if places else grub.SOURCE
        remedy = "Set GRUB_DEFAULT=saved there, choose the entry with grub-set-default, and run update-grub"
        default = variables.get("GRUB_DEFAULT").text or "0"
        last = places[-1][0] if places else ""
        if default != "saved" and last > self._permanent(min(self._trying)):
            raise Refusal(
                f"a trial boot needs GRUB_DEFAULT=saved, and {where} says {default} after our files",
                thing="boot",
                remedy=remedy,
            )
        chosen = grubenv.read(self.system).get("saved_entry", "")
        if default not in ("0", "saved") or (chosen and grub.find(menu, chosen) is not menu.lasting):
            raise Refusal(
                f"a trial boot needs GRUB_DEFAULT=saved; {where} says {default}, and with saved "
                f"another entry could be the default ({grubenv.PATH}: saved_entry={chosen})",
                thing="boot",
                remedy=remedy,
            )

    def _is_saved(self) -> bool:
        """Whether the menu's default is the saved entry."""
        text = self.system.read(grub.MENU)
        return re.search(r'^\s*set default="\$\{saved_entry\}"$', text, re.MULTILINE) is not None

    def _stays_saved(self) -> bool:
        """Whether the menu's default is the saved entry, now and once it is made anew."""
        return self._is_saved() and not self._is_left_saved()

    def _is_left_saved(self) -> bool:
        """Whether the menu still has the saved default that no source asks for any more."""
        try:
            default = grub.read_variables(self.system).get("GRUB_DEFAULT").text
        except Unfollowed:
            return False
        return default != "saved" and self._is_saved()

    def _check_name(self, setting: Setting) -> None:
        name = normal(setting.name)
        if not _NAME.match(setting.name):
            raise Refusal(
                "is no kernel parameter's name",
                thing=str(setting),
                remedy="Give the name alone, such as isolcpus or nvme_core.default_ps_max_latency_us",
            )
        if name in {normal(one) for one in FORBIDDEN}:
            raise Refusal(
                "decides whether this host comes up at all, and is not a setting",
                thing=str(setting),
                remedy=f"Leave it to the boot loader, or change it in {grub.SOURCE} by hand, at a console",
            )
        near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.9)
        if near and name not in KNOWN and "." not in name and not self._on_line(name):
            raise Refusal(
                "is no kernel parameter that is known here, and very near to one",
                thing=str(setting),
                remedy=f"Did you mean {near[0]}?",
            )

    def _on_line(self, name: str) -> bool:
        """Whether this kernel was started with a parameter of that name, which proves nothing but a wish."""
        try:
            return any(normal(word.name) == name for word in trial.live_words(self.system))
        except OSError:
            return False

    @staticmethod
    def _check_pages(sizes: Setting | None, pages: Setting | None) -> None:
        if pages is None:
            return
        number = len(to_values(pages.value))
        wanted = len(to_values(sizes.value)) if sizes else 0
        if sizes and sizes.owner != pages.owner:
            raise Refusal(
                f"belongs to {pages.owner}, but hugepagesz to {sizes.owner}",
                thing=str(pages),
                remedy="Let one role declare both: they stand side by side on the line",
            )
        if number not in (wanted, wanted + 1):
            raise Refusal(
                f"has {number} values for {wanted} sizes in hugepagesz",
                thing=str(pages),
                remedy='Give one for each size ("0" for none), and before them one for the default size',
            )

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        found = {name: Planes(needs="reboot") for name in names}
        live = self._live(found)
        unsupported = self._unsupported()
        if unsupported:
            for planes in found.values():
                planes.unsupported, planes.unknown = unsupported, ""
            return found
        try:
            menu = grub.read_menu(self.system)
            if menu.default.id == trial.ENTRY:
                menu = replace(menu, default=menu.lasting)
            booted = menu.default.words(menu.file)
        except OSError as error:
            return _unknown(found, f"{error.filename or grub.MENU}: {error.strerror}")
        except Unfollowed as why:
            return _unknown(found, str(why))
        try:
            wanted: grub.Wanted | str = grub.read_wanted(self.system)
        except OSError as error:
            wanted = f"{error.filename}: {error.strerror}"
        except Unfollowed as why:
            wanted = str(why)
        if isinstance(wanted, str):
            return _unknown(found, f"what the next update-grub will write cannot be told: {wanted}")
        for name, planes in found.items():
            self._persisted(name, planes, menu, booted, wanted)
            planes.note = self._note(name, menu, booted, live)
        try:
            self._on_trial(found, live)
        except OSError as error:
            return _unknown(found, f"{error.filename or grub.SOURCES}: {error.strerror}")
        except (Unfollowed, Refusal) as why:
            return _unknown(found, f"the trial boot: {why}")
        return found

    def _on_trial(self, found: Mapping[str, Planes], live: Sequence[Word]) -> None:
        """What a line that waits for its trial, or runs for it, makes of the planes.

        Raises OSError, Unfollowed and Refusal.
        """
        instead = trial.overlay(self.system)
        if not instead:
            # An undo that was cut short has given the files back, and left the menu or grubenv behind.
            left = self.system.exists(trial.RECORD) or self._is_left_saved()
            for name, planes in found.items():
                planes.stale = planes.stale or (left and normal(name) not in self._wanted)
            return
        tried = grub.read_wanted(self.system, instead)
        waiting = {origin for origin, _text in instead.values()}
        record = trial.load(self.system)
        now = trial.UNARMED
        if record is not None:
            now = trial.standing(self.system, record, grubenv.read(self.system), live)
        for name, planes in found.items():
            winner = planes.winner.value if planes.winner else ABSENT
            value = self._value(name, tried.words) or ABSENT
            if value == winner:
                continue
            definitions, where = self._sources(name, tried, self._value(name, tried.words), 0)
            ours = [one for one in definitions if one.file in waiting]
            if record is not None and now == trial.ARMED:
                old = [one for one in planes.definitions if one not in definitions]
                planes.definitions = [*old, *(definitions or [Definition(ABSENT, grub.CUSTOM)])]
                planes.where = where
                planes.note = _joined(WAITS, planes.note)
                continue
            if not planes.definitions:
                planes.definitions = [Definition(ABSENT, grub.MENU)]
            planes.definitions = [*ours, *planes.definitions]
            if record is None or now == trial.UNARMED:
                planes.stale = True
                planes.trial = "its trial boot is not armed: run this again"
            elif now in (trial.RUNNING, trial.VERIFIED):
                planes.note = _joined(planes.note, "this boot is its trial, and is not confirmed yet")
            else:
                planes.trial = f"the trial boot failed: {trial.failure(record, now)}; {CLEAR}"
                planes.note = _joined(planes.note, planes.trial)

    def _live(self, found: Mapping[str, Planes]) -> list[Word]:
        try:
            words = trial.live_words(self.system)
        except OSError as error:
            _unknown(found, f"/proc/cmdline: {error.strerror}")
            return []
        for name, planes in found.items():
            planes.live = self._value(name, words)
        return words

    def _unsupported(self) -> str:
        """Why this host's kernel gets no command line from a GRUB of its own; empty where it does."""
        system = self.system
        if system.container:
            return KERNEL_SHARED
        if not system.exists(grub.MENU):
            for folder in ("/boot", "/boot/efi", "/efi"):
                if system.exists(f"{folder}/loader/loader.conf"):
                    return f"booted by systemd-boot ({folder}/loader/loader.conf), not by GRUB"
            return f"not booted by GRUB: no {grub.MENU}"
        if not any(system.exists(f"{folder}/update-grub") for folder in ("/usr/sbin", "/sbin")):
            return f"{grub.MENU} is not made on this host: no update-grub"
        return ""

    def _persisted(
        self, name: str, planes: Planes, menu: grub.Menu, booted: Sequence[Word], wanted: grub.Wanted
    ) -> None:
        next_boot = self._value(name, booted)
        sourced = self._value(name, wanted.words)
        line = menu.default.linux[0][0]
        planes.definitions, planes.where = self._sources(name, wanted, sourced, line)
        if next_boot == sourced:
            return
        asked = self._asked.get(normal(name))
        # Where the sources are wrong, a new menu would only take from the next boot what it has.
        planes.stale = normal(name) not in self._wanted or sourced == asked
        in_menu = Definition(next_boot or ABSENT, grub.MENU, line)
        in_sources = planes.winner or Definition(ABSENT, grub.SOURCE)
        place = f"{in_sources.file}:{in_sources.line}" if in_sources.line else in_sources.file
        planes.where = (
            f"{grub.MENU}:{line}, which the next boot reads, says {in_menu.value}, and what the next "
            f"update-grub or kernel update makes it from says {in_sources.value} ({place})"
        )
        if planes.winner is None:
            planes.definitions = [in_sources]
        # The wrong one of the two has to win; where nothing is asked, what the next boot reads.
        planes.definitions.insert(0 if next_boot == asked else len(planes.definitions), in_menu)

    def _value(self, name: str, words: Sequence[Word]) -> str | None:
        """The text of a parameter's value on a line, None where the line has none."""
        kernels = [word for word in words if not word.for_init]
        return " ".join(effective(name, kernels, self._as_list(name))) or None

    def _sources(
        self, name: str, wanted: grub.Wanted, sourced: str | None, menu_line: int
    ) -> tuple[list[Definition], str]:
        """Who gives the parameter in the sources, the winner last, and what is to be said of it.

        Where every word counts, those of one file are one definition; where more than one file's add up to
        another value, that one comes last, as a value of the menu that no single file gives.
        """
        standing = [word for word in wanted.words if normal(word.name) == normal(name)]
        dropped = [(word, by) for word, by in wanted.dropped if normal(word.name) == normal(name)]
        found = [Definition(one_text(word.value), *word.origin) for word, _by in dropped]
        late = [word for word in standing if word.for_init]
        found += [Definition(one_text(word.value), *word.origin) for word in late]
        standing = [word for word in standing if not word.for_init]
        if not standing and late:
            end = next(word for word in wanted.words if word.name == "--").origin
            where = f"{end[0]}:{end[1]} has --, which ends the kernel's parameters, before it"
            return [*found, Definition(ABSENT, *end)], where
        if not standing and dropped:
            by = dropped[-1][1]
            return [*found, Definition(ABSENT, *by)], f"{by[0]}:{by[1]} assigns anew and drops it"
        if not self._as_list(name):
            return found + [Definition(one_text(word.value), *word.origin) for word in standing], ""
        parts: list[Definition] = []
        for word in standing:
            text = one_text(word.value)
            if parts and parts[-1].file == word.origin[0]:
                parts[-1] = replace(parts[-1], value=f"{parts[-1].value} {text}", line=word.origin[1])
            else:
                parts.append(Definition(text, *word.origin))
        if not parts or parts[-1].value == sourced:
            return found + parts, ""
        said = ", ".join(f"{part.file}:{part.line} says {part.value}" for part in parts)
        total = Definition(sourced or ABSENT, grub.MENU, menu_line)
        return [*found, *parts, total], f"every word of it counts: {said}"

    def _note(self, name: str, menu: grub.Menu, booted: Sequence[Word], live: Sequence[Word]) -> str:
        notes = []
        root = [word.value for word in booted if word.name == "root"]
        mine = self._value(name, booted)
        lacking = []
        for entry in menu.all():
            if entry.recovery or entry.id == trial.ENTRY or len(entry.linux) != 1:
                continue
            if entry.kernel in ("", menu.default.kernel):
                continue
            words = entry.words(menu.file)
            if [word.value for word in words if word.name == "root"] != root:
                continue  # another system's
            if self._value(name, words) != mine and entry.kernel not in lacking:
                lacking.append(entry.kernel)
        if lacking:
            notes.append(f"entries of other kernels say otherwise: {', '.join(lacking)}")
        if live and not any(word.name == "BOOT_IMAGE" for word in live):
            notes.append("this boot did not come from GRUB: its command line has no BOOT_IMAGE")
        return "; ".join(notes)

    def foretell(self, setting: Setting, planes: Planes, call: Call) -> Planes:
        """The line that this kernel was booted with stays, whatever is written."""
        then = replace(
            planes, definitions=self._definitions_after(setting, planes, call), stale=False, trial=""
        )
        moving = (setting.owner, setting.name) in self._moving
        if moving and not call.undo and WAITS not in then.note:
            then.note = _joined(WAITS, then.note)
        return then

    # persistence

    def managed_file(self, owner: str, name: str) -> str:
        return self._permanent(owner) + (trial.SUFFIX if (owner, name) in self._moving else "")

    @staticmethod
    def _permanent(owner: str) -> str:
        return f"{grub.SOURCES}/60-hosttune-{owner}.cfg"

    def _standing(self, path: str) -> str:
        try:
            return grub.read_text(self.system, path)
        except FileNotFoundError:
            return ""

    def render(self, owner: str, settings: Sequence[Setting]) -> dict[str, FileImage]:
        path = self._permanent(owner)
        words = self.body(_sorted(settings))
        if self.trial == "none":
            return {path: _image(self.header(owner) + words)}
        standing = self._standing(path)
        lasting = _without_head(standing)
        if words == lasting:
            return {path: _image(standing)}
        saved = SAVED if SAVED in standing or (owner in self._trying and not self._stays_saved()) else ""
        whole = self.header(owner) + saved + words
        if owner not in self._trying:
            return {path: _image(whole)}
        found = {path + trial.SUFFIX: _image(whole)}
        if standing or saved:
            found[path] = _image(standing if SAVED in standing else self.header(owner) + saved + lasting)
        return found

    def body(self, settings: Sequence[Setting]) -> str:
        values = {normal(setting.name): to_values(setting.value) for setting in settings}
        words: list[tuple[str, str | None]] = []
        for setting in settings:
            name = normal(setting.name)
            if name == "hugepages" and "hugepagesz" in values:
                continue
            if name == "hugepagesz":
                words += _interleaved(values[name], values.get("hugepages", []))
            else:
                words += [(setting.name, value) for value in values[name]]
        return "".join(f'{grub.VARIABLES[0]}="${{{grub.VARIABLES[0]}}} {_shell(*word)}"\n' for word in words)

    # the live plane

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        """Makes grub.cfg anew beside the old one, looks at it, and only then puts it in its place at once.

        update-grub by itself would write over the old one in pieces: a power cut then leaves half a menu.
        Then what waits for a trial is armed for the next boot; where nothing does, its traces are removed.
        """
        files = list(files)
        failed: dict[str, str] = {}
        undone = any(change.undo for change in changes) or self._is_left_saved()
        written = any(not file.endswith(trial.SUFFIX) for file in files)
        if written or undone or (changes and not self._trying):
            failed = self._make_menu()
        return failed or self._settle_trial()

    def _settle_trial(self) -> dict[str, str]:
        try:
            if trial.overlay(self.system):
                if not self._is_saved():
                    return {"trial boot": f"GRUB_DEFAULT=saved does not stand in {grub.MENU}; {OLD_LINE}"}
                record = trial.load(self.system)
                mode = self.trial if self.trial in BOOT_TRIALS[1:] else record.confirm if record else "host"
                trial.arm(self.system, mode)
            else:
                trial.disarm(self.system)
        except OSError as error:
            return {"trial boot": f"{error.filename or grub.MENU}: {error.strerror}; {OLD_LINE}"}
        except (Unfollowed, Refusal) as why:
            return {"trial boot": f"{why}; {OLD_LINE}"}
        return {}

    def _make_menu(self) -> dict[str, str]:
        real = os.path.realpath(self.system.path(grub.MENU))
        fresh = f"{real}.hosttune"
        try:
            why = self._generate(fresh) or self._install(fresh, real)
        finally:
            for path in (fresh, f"{fresh}.new"):
                if os.path.lexists(path):
                    os.unlink(path)
        return {"update-grub": f"{why}; the old {grub.MENU} was kept"} if why else {}

    def _generate(self, fresh: str) -> str:
        """Why no good menu could be made; empty where one stands in `fresh`."""
        # In the language of the menu that stands: grub-mkconfig asks LANG, and our caller may have another.
        words = ("-u", "LC_ALL", "-u", "LC_MESSAGES", "-u", "LANGUAGE", f"LANG={self._language()}")
        ended = self.system.run("env", *words, "update-grub", "-o", fresh, timeout=900.0)
        if not ended.ok:
            said = ended.err.strip().split("\n")[-3:]
            return f"ended with status {ended.status}: {' / '.join(said)}"
        ended = self.system.run("grub-script-check", fresh)
        if not ended.ok:
            return f"what it wrote is no GRUB script: {(ended.err or ended.out).strip()}"
        return ""

    def _language(self) -> str:
        """The locale in which the menu was made: `set lang=` of grub.cfg, C where it says none."""
        try:
            found = re.search(r"^\s*set lang=(\S+)$", self.system.read(grub.MENU), re.MULTILINE)
        except OSError:
            found = None
        return f"{found.group(1)}.UTF-8" if found else "C"

    def _install(self, fresh: str, real: str) -> str:
        """Puts the new menu in place; says why where it must not be."""
        image, old = atomic.read_image(fresh), atomic.read_image(real)
        if image is None or old is None:
            return f"{fresh if image is None else real} is gone"
        try:
            menu = grub.read_menu(self.system, fresh.removeprefix(self.system.path("")))
            words = menu.lasting.words(menu.file)
            if self._trying and _text(words) != _text(grub.read_menu(self.system).lasting.words(grub.MENU)):
                return "it would change the line of all boots, which is to be tried first"
            if self.trial == CONFIRMED:
                record = trial.load(self.system)
                made = " ".join(grub.loader_text(word) for word in menu.lasting.linux[0][1][1:])
                if record is None or made != record.line:
                    return f"it would make another line permanent than the one that was tried: {made}"
        except Unfollowed as found:
            return f"what it wrote cannot be followed: {found}"
        line = f"BOOT_IMAGE={' '.join(menu.lasting.linux[0][1])}"
        if len(line) > LONGEST_LINE:
            return f"the command line is {len(line)} characters long, the kernel cuts it at {LONGEST_LINE}"
        if not any(word.name == "root" for word in words):
            return f"its default entry '{menu.lasting.title}' names no root file system"
        if image.content != old.content:
            atomic.write(real, replace(old, content=image.content))
        return ""


def _sorted(settings: Sequence[Setting]) -> list[Setting]:
    return sorted(settings, key=lambda one: one.name)


def _image(text: str) -> FileImage:
    return FileImage(text.encode("utf-8", "surrogateescape"))


def _without_head(text: str) -> str:
    """The lines of a file of ours that add words."""
    return "".join(
        line for line in text.splitlines(keepends=True) if line != SAVED and not line.startswith("#")
    )


def _text(words: Sequence[Word]) -> list[tuple[str, str | None]]:
    return [(word.name, word.value) for word in words]


def _joined(*texts: str) -> str:
    return "; ".join(text for text in texts if text)


def _unknown(found: Mapping[str, Planes], why: str) -> dict[str, Planes]:
    for planes in found.values():
        planes.unknown = why
    return dict(found)


def _interleaved(sizes: Sequence[str | None], pages: Sequence[str | None]) -> list[tuple[str, str | None]]:
    """hugepagesz and hugepages as the kernel reads them: pages after their size, the default size's first."""
    words: list[tuple[str, str | None]] = []
    left = list(pages)
    if len(left) > len(sizes):
        words.append(("hugepages", left.pop(0)))
    for at, size in enumerate(sizes):
        words.append(("hugepagesz", size))
        if left:
            words.append(("hugepages", left[at]))
    return words


def _shell(name: str, value: str | None) -> str:
    """One parameter as GRUB's script has to read it, inside the shell's double quotes."""
    word = name if value is None else f"{name}={value}"
    if not _PLAIN.match(word):
        word = f"'{word}'"
    return word.replace("$", "\\$").replace("`", "\\`")
