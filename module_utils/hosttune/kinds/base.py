"""What every kind can do. The engine knows kinds through this class only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from ..model import MANAGED_BY, Call, Change, Definition, FileImage, Planes, Setting, as_text
from ..system import System

#: How the names of the files begin that the suite makes.
_OURS = "60-hosttune-"


class Kind:
    """One family of settings on one host.

    Subclasses read in batches (one command for all their names), never raise for a single unreadable
    setting (they answer Planes(unknown=reason)), and write nothing outside `activate`: files are rendered
    here and written by the engine, which keeps their originals.
    """

    #: as in the inventory
    name: ClassVar[str]
    #: what making one of these live does to a running host (model.DISRUPTIONS)
    disruption: ClassVar[str] = "silent"
    #: kind boot: how a new line comes in, one of model.BOOT_TRIALS or CONFIRMED
    trial: str = "none"

    def __init__(self, system: System) -> None:
        self.system = system

    # names and values

    def text(self, name: str, value: Any) -> str:
        """The value from the inventory as the system would print it; raises Refusal."""
        return as_text(self.name, name, value)

    def canonical(self, name: str) -> str:
        """One spelling for all that name the same setting."""
        return name

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        """Refuses names and values that cannot be; raises Refusal. `packages`: owner -> still missing ones.

        Called before anything is touched. A name that only a missing package will bring is no mistake.
        """

    def target(self, name: str, asked: str, baseline: str | None) -> str:
        """The value to converge to, given what was live before the suite first touched it.

        Differs from `asked` where lowering harms (raise-only).
        """
        return asked

    def same(self, name: str, wanted: str, found: str) -> bool:
        """Whether two texts are the same value in this kind's units."""
        return wanted == found

    def recall(self, setting: Setting) -> None:
        """Learns what the manifest keeps of a setting beside its value (`setting.asked`)."""

    def options(self, setting: Setting) -> dict[str, Any] | None:
        """What the manifest shall keep of a setting beside its value."""
        return None

    def clamps(self, name: str, wanted: str, found: str) -> str:
        """Why the kernel may well take `found` instead of `wanted` (rounding); empty where it may not."""
        return ""

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        """The planes of each name."""
        raise NotImplementedError

    def disruption_of(self, name: str, wanted: str, planes: Planes) -> str:
        """What making `wanted` live does to the host as it is now: one of model.DISRUPTIONS."""
        return {"restart": "restarts", "reboot": "reboots"}.get(planes.needs, self.disruption)

    def foretell(self, setting: Setting, planes: Planes, call: Call) -> Planes:
        """The planes after `call`, which sets this setting (or gives it back): what check mode says.

        Exact in what tells a pending verdict from a good one, and in `needs`.
        """
        then = replace(planes, definitions=self._definitions_after(setting, planes, call), stale=False)
        shall = then.winner.value if then.winner and not call.undo else setting.value
        if then.has_live and not then.waits and self.reaches(setting.name, planes):
            then.live = shall
        if then.needs == "reload" or (then.live is not None and self.same(setting.name, shall, then.live)):
            then.needs = "none"
        return then

    def _definitions_after(self, setting: Setting, planes: Planes, call: Call) -> list[Definition]:
        """The definitions once ours says what is asked for, or nothing."""
        ours = self.managed_file(setting.owner, setting.name) or ""
        others = [one for one in planes.definitions if one.file != ours and not self._leaves(one.file, call)]
        if call.undo:
            return others
        later = [one for one in others if ours and self.outranks(one.file, ours)]
        return [*(one for one in others if one not in later), Definition(setting.value, ours), *later]

    def _leaves(self, file: str, call: Call) -> bool:
        """Whether a file of ours says nothing of this setting after the call: it had another owner."""
        return file in call.files and os.path.basename(file).startswith(_OURS)

    def outranks(self, file: str, ours: str) -> bool:
        """Whether what `file` says wins over what our file says, which may not be there yet."""
        return os.path.dirname(file).endswith(".d") and os.path.basename(file) > os.path.basename(ours)

    # persistence

    def managed_file(self, owner: str, name: str) -> str | None:
        """The file in which we persist this setting of this owner; None where the kind has none."""
        return None

    def render(self, owner: str, settings: Sequence[Setting]) -> dict[str, FileImage]:
        """The managed files of `owner` that persist `settings` (all of the owner's of this kind)."""
        by_file: dict[str, list[Setting]] = {}
        for setting in settings:
            path = self.managed_file(owner, setting.name)
            if path is not None:
                by_file.setdefault(path, []).append(setting)
        return {
            path: FileImage(
                (self.header(owner) + self.body(sorted(found, key=lambda one: one.name))).encode()
            )
            for path, found in by_file.items()
        }

    def header(self, owner: str) -> str:
        return f"# {MANAGED_BY}, role {owner}: changes made here are found as drift and replaced.\n"

    def body(self, settings: Sequence[Setting]) -> str:
        """The lines of one managed file."""
        raise NotImplementedError

    def edits(
        self,
        settings: Sequence[Setting],
        undone: Mapping[str, Mapping[str, Any]],
        before: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, FileImage]:
        """Files the suite shares with others (fstab), as they shall be.

        `undone` and `before` map names, of settings given back and of those kept, to their ledger entries.
        """
        return {}

    # what an earlier call asked for, where a value is a list and the next call's is shorter

    def note(self, setting: Setting, planes: Planes, entry: dict[str, Any]) -> None:
        """Notes in a setting's ledger entry what has to be taken back once it is no longer asked for."""

    def leftover(self, setting: Setting, planes: Planes, entry: Mapping[str, Any]) -> bool:
        """Whether something stands, live or on disk, that only an earlier call asked for."""
        return False

    def live_value(self, setting: Setting, planes: Planes, entry: Mapping[str, Any]) -> str | None:
        """The live value to write where the setting's own does not take a leftover back, else None."""
        return None

    # the live plane

    def coupled(self, name: str) -> dict[str, str]:
        """Live values of other names that writing this one changes: undo has to give those back instead."""
        return {}

    def reaches(self, name: str, planes: Planes) -> bool:
        """Whether another value becomes live in this call, without a restart or a reboot."""
        return planes.needs in ("none", "reload")

    def shown(self, planes: Planes) -> str | None:
        """What a diff of live values shows of a setting; `outcome` is in the same words."""
        return planes.live

    def outcome(self, changes: Sequence[Change]) -> dict[str, str]:
        """The live values that `activate` brings about by name, also of names nobody asked for."""
        return {change.name: change.value for change in changes}

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        """Makes values live. `files` are the managed files of this kind just written or removed.

        Returns name -> why it failed, for those that did.
        """
        return {}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy that names the nearest known names, empty where none is near."""
    import difflib  # here: who makes no mistake does not pay for it

    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.7)
    return f"Did you mean {' or '.join(near)}?" if near else ""


def ordered_files(system: System, folders: Sequence[str], suffix: str) -> list[str]:
    """Files as systemd reads them: by base name over all folders, the first folder masks the later ones.

    A link to /dev/null (or an empty file, which then defines nothing) masks the name; so does a folder or a
    link to nothing, which the caller then cannot read. Hidden files are none. Source: sysctl.d(5) and
    systemd's conf-files.c.
    """
    chosen: dict[str, str] = {}
    for folder in folders:
        for name in system.names(folder):
            if name.endswith(suffix) and not name.startswith(".") and name not in chosen:
                chosen[name] = f"{folder}/{name}"
    found = []
    for name in sorted(chosen, key=os.fsencode):
        real = system.path(chosen[name])
        if os.path.islink(real) and os.readlink(real) == "/dev/null":
            continue
        found.append(chosen[name])
    return found
