"""From desired settings to a converged host: the one way in which the suite changes anything.

lock - names and conflicts - read - judge - ledger - persist - activate - read back - manifest.
In check mode the walk stops before the ledger and says what would change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import atomic, conflicts, dangers, demand, foreign, keys, kinds, lock, store, topology
from .foreign_programs import OWNER as FOREIGN
from .model import CONFIRMED, DISRUPTIONS, NEEDS, Call, Change, FileImage, Planes, Refusal, Setting
from .observe import Judged, Observer, recall, retarget
from .system import System, updates
from .verdicts import GOOD

#: what is asked of the host: owner -> kind -> name -> value
Owners = Mapping[str, Mapping[str, Mapping[str, Any]]]


#: Where undo keeps what somebody made of a file of ours.
ASIDE = "/var/lib/hosttune/aside"


@dataclass
class Request:
    """What a call of host_settings asks for (see its documentation)."""

    owners: Owners
    present: bool = True
    partial: bool = False
    #: of `present: False`: these kinds only; empty: all
    kinds: Sequence[str] = ()
    #: how a change of the kernel's command line comes in (model.BOOT_TRIALS); CONFIRMED: its trial was good,
    #: and the call speaks for `kinds` of the owners alone
    boot_trial: str = "none"
    #: disruptions up to this one (model.DISRUPTIONS) are allowed now
    disruption_allowed: str = "silent"
    check: bool = False
    notes: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    packages: Mapping[str, Sequence[str]] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    topology_fingerprint: str = ""
    #: what to do about foreign owners: name or file -> refuse, take_over or leave
    foreign: Mapping[str, str] = field(default_factory=dict)
    #: nothing is decided about foreign owners: what stands is told as it is, where one would be refused too
    judge_only: bool = False
    lock_wait_seconds: float = 60.0
    #: how long after a change it is read once more: what another program sets back shows by then
    settle_seconds: float = 1.5


@dataclass
class Report:
    """What a call found and did."""

    settings: list[Judged] = field(default_factory=list)
    changed: bool = False
    undone: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)
    aside: list[str] = field(default_factory=list)
    #: what the operator should know though nothing failed
    warnings: list[str] = field(default_factory=list)
    manifest_digest: str = ""
    topology_matches: bool = True
    foreign: list[dict[str, Any]] = field(default_factory=list)
    #: settings that were left to a foreign owner
    left: list[dict[str, str]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for judged in self.settings:
            found[judged.verdict] = found.get(judged.verdict, 0) + 1
        return found

    def pending(self) -> list[dict[str, str]]:
        """What waits at the end of the run; in check mode also what would wait then."""
        return [
            {
                "owner": judged.setting.owner,
                "kind": judged.setting.kind,
                "name": judged.setting.name,
                "needs": _waits_for(judged),
                "disruption": judged.disruption,
                "reason": judged.reason,
            }
            for judged in (one.then or one for one in self.settings)
            if (judged.waived_verdict or judged.verdict).startswith("pending_")
        ]


def converge(system: System, request: Request) -> Report:
    """Brings the host to what `request` asks for, or (check) says what that would change.

    Raises Refusal before anything is touched. What failed while it was done is in `Report.failures`.
    """
    demand.check(
        request.owners,
        present=request.present,
        partial=request.partial,
        kinds_of_undo=() if request.boot_trial == CONFIRMED else request.kinds,
        boot_trial=request.boot_trial,
        disruption_allowed=request.disruption_allowed,
        notes=request.notes,
        packages=request.packages,
        foreign=request.foreign,
    )
    if os.geteuid() != 0:
        if request.check:
            return _Run(system, request).walk()  # to look takes no root
        raise Refusal(
            "settings can be changed by root only", thing="host_settings", remedy="Use become: true"
        )
    folder = os.path.dirname(lock.PATH)
    locked = system.read_only_mount(folder)
    if locked:
        raise Refusal("cannot be written", thing=locked, remedy="Mount it read-write: the ledger lies there")
    if request.check:
        return _Run(system, request).walk()
    atomic.make_folders(system.path(folder), 0o700)
    holder = f"run {request.run.get('id', '?')} of {request.run.get('operator', '?')}, process {os.getpid()}"
    with lock.hold(system.path(lock.PATH), holder, request.lock_wait_seconds):
        return _Run(system, request).walk()


class _Run:
    """One walk over one host."""

    def __init__(self, system: System, request: Request) -> None:
        self.system = system
        owners = foreign.claimed(request.owners, request.present, request.partial)
        self.request = replace(request, owners=owners)
        self.observer = Observer(system, tolerant=True, boot_trial=request.boot_trial)
        self.ledger = store.Ledger(system)
        # A call that speaks for the whole host writes the manifest anew; any other needs what it says.
        whole = not request.kinds and (not request.partial if request.present else not request.owners)
        self.manifest = store.Manifest(system, tolerant=whole)
        self.missing = {owner: system.missing_packages(names) for owner, names in request.packages.items()}
        self.report = Report()
        if self.ledger.damage:
            self.report.warnings.append(f"{self.ledger.damage}. Its second copy is whole and was used")
        if self.manifest.damage:
            self.report.warnings.append(f"{self.manifest.damage}. This run writes it anew")
        self.report.warnings += self.observer.warnings
        if request.check:
            self.report.warnings += updates(self.manifest.machine, system.machine)
        #: why a value other than the one asked for is aimed at
        self.aimed: dict[tuple[str, str], str] = {}
        #: why what runs is left as it is for now
        self.waiting: dict[tuple[str, str], str] = {}
        self.wanted_keys: set[tuple[str, str]] = set()
        #: names that `activate` said it failed for, by kind: of settings, or of files
        self.failed: dict[str, set[str]] = {}
        #: every file that shall stand, also those that do already: path -> kind, owner, image
        self.shall: dict[str, tuple[str, str, FileImage]] = {}
        #: files that this run has replaced
        self.written: set[str] = set()

    def walk(self) -> Report:
        for kind_name, names in self.ledger.settings.items():
            for name, entry in names.items():
                if "undo_failed" in entry:
                    setting = Setting(entry["owner"], kind_name, name, "", entry["undo_failed"])
                    self.observer.kind(kind_name).recall(setting)
        recall(self.observer, self.manifest.owners)  # also of what this call undoes
        wanted = self._wanted()
        self._respell(wanted)
        undone = self._undone(wanted)
        self._check(wanted)
        keys_read = [setting.key for setting in wanted] + [
            key for key in undone if key not in {one.key for one in wanted}
        ]
        planes = self.observer.read(keys_read)
        wanted = [self._aim(setting, planes[setting.key]) for setting in wanted]
        if not self.request.judge_only:
            wanted, undone = self._settle_foreign(wanted, planes)
        self.wanted_keys = {one.key for one in wanted}
        self._forget_clamps(wanted)
        for setting in wanted:
            self._hold_back(setting, planes[setting.key])
        judged = [self._judge(setting, planes[setting.key]) for setting in wanted]
        self._record_before(judged)
        supported = [one.setting for one in judged if not one.planes.unsupported and not one.planes.unknown]
        files, removed = self._files([*supported, *self._held(judged)], undone, planes)
        changes = self._changes(supported, planes)
        undo_changes = self._undo_changes(undone, planes)
        self._mark(judged, changes)
        self._describe(files, removed, changes, undo_changes, planes, undone)
        call = Call(frozenset([*files, *removed]), _stopped(changes, undo_changes))
        self._foretell(judged, call)
        self._foretell_undone(undone, planes, replace(call, undo=True))
        new_manifest = self._next_manifest(wanted)
        manifest_differs = (
            new_manifest.digest != self.manifest.digest
            or self.manifest.exists != bool(new_manifest.owners)
            or not self.manifest.intact
            or bool(new_manifest.owners and self.manifest.machine != self.system.machine)
        )
        # A file that a run which was cut short never wrote is the ledger's business, and no change.
        back = [path for path in removed if self._on_disk(path) != self.ledger.original(path)]
        self.report.changed = bool(files or back or changes or undo_changes or undone or manifest_differs)
        fingerprint = self.request.topology_fingerprint
        self.report.topology_matches = not fingerprint or fingerprint == topology.read_fingerprint(
            self.system.root
        )
        if self.report.changed or removed:
            self._refuse_unwritable(list(files) + list(removed))
        if self.request.check:
            self.report.settings = judged
            self.report.manifest_digest = new_manifest.digest
            return self.report
        for path in self.ledger.files:
            atomic.sweep(self.system.path(path))
        if self.report.changed or removed:
            self._write_ledger(judged, files, undone)
            changes = self._stop_foreign(supported, changes)
            self._apply(files, removed, changes, undo_changes, undone)
            judged = self._read_back(judged, changes, undone)
            self._look_again(judged, changes)
        elif any(self.ledger.entry(*one.setting.key) is None for one in judged if one.setting in supported):
            self._write_ledger(judged, files, undone)
        for one in judged:
            if one.verdict == "unknown":
                self.report.failures.append(f"{one.setting} is unknown: {one.reason}")
        if manifest_differs and new_manifest.owners:
            new_manifest.run = {**self.request.run, "time": _utc_now()}
            new_manifest.machine = self.system.machine
            new_manifest.save()
        elif not new_manifest.owners:
            new_manifest.remove()  # also what a run that was killed left of it
        self.report.settings = judged
        self.report.manifest_digest = new_manifest.digest
        return self.report

    # what is asked

    def _scope(self, owner: str, kind: str) -> bool:
        """Whether this call says all there is to say of an owner's settings of a kind."""
        if not self.request.present:
            of_owner = not self.request.owners or owner in self.request.owners
        else:
            of_owner = not self.request.partial or owner in self.request.owners
        return of_owner and (not self.request.kinds or kind in self.request.kinds)

    def _outside(self) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
        """What the manifest holds beyond this call's scope."""
        found = {
            owner: {kind: names for kind, names in by_kind.items() if not self._scope(owner, kind)}
            for owner, by_kind in self.manifest.owners.items()
        }
        return {owner: by_kind for owner, by_kind in found.items() if by_kind}

    def _wanted(self) -> list[Setting]:
        if not self.request.present:
            return []
        found = []
        for owner, by_kind in self.request.owners.items():
            for kind_name, names in by_kind.items():
                kind = self.observer.kind(kind_name)
                notes = self.request.notes.get(kind_name, {})
                for name, value in names.items():
                    asked = value if isinstance(value, dict) else None
                    found.append(
                        Setting(
                            owner, kind_name, name, kind.text(name, value), asked, dict(notes.get(name, {}))
                        )
                    )
        return found

    def _respell(self, wanted: Sequence[Setting]) -> None:
        """A setting that is asked for in another spelling is the same one: its ledger entry goes along."""
        for kind_name, names in self.ledger.settings.items():
            kind = self.observer.kind(kind_name)
            asked = {kind.canonical(one.name): one.name for one in wanted if one.kind == kind_name}
            for name in list(names):
                new = asked.get(kind.canonical(name), name)
                if new not in names and self._scope(names[name]["owner"], kind_name):
                    names[new] = names.pop(name)

    def _undone(self, wanted: Sequence[Setting]) -> dict[tuple[str, str], dict[str, Any]]:
        """Ledger entries of owners in scope that nobody asks for any more."""
        keep = {setting.key for setting in wanted}
        return {
            (kind, name): entry
            for kind, names in self.ledger.settings.items()
            for name, entry in names.items()
            if self._scope(entry["owner"], kind) and (kind, name) not in keep
        }

    def _others(self) -> list[Setting]:
        """What this host was last converged to beyond this call's scope."""
        return recall(self.observer, self._outside())

    def _check(self, wanted: Sequence[Setting]) -> None:
        if not wanted:
            return  # what is only given back is never refused for what stays
        everything = [*wanted, *self._others()]
        self.report.warnings += conflicts.check(
            everything, self.system, lambda kind, name: self.observer.kind(kind).canonical(name)
        )
        self.report.warnings += dangers.check(everything, wanted, self.system, self.observer.now)
        for kind_name, settings in self.observer.by_kind(wanted).items():
            self.observer.kind(kind_name).check(settings, self.missing)

    def _settle_foreign(
        self, wanted: list[Setting], planes: dict[tuple[str, str], Planes]
    ) -> tuple[list[Setting], dict[tuple[str, str], dict[str, Any]]]:
        """What is wanted and undone once foreign owners are decided about; `planes` gains what that reads."""
        decisions = self.request.foreign if self.request.present else None
        settled = foreign.settle(self.observer, self.ledger, wanted, self._others(), planes, decisions)
        self.report.foreign = [one.as_dict() for one in settled.findings]
        self.report.left = settled.left
        taken = [one for one in settled.wanted if one.owner == FOREIGN]
        if taken:
            self._check(taken)
        undone = self._undone(settled.wanted)
        needed = [one.key for one in taken] + list(undone)
        planes.update(self.observer.read([key for key in needed if key not in planes]))
        return settled.wanted, undone

    def _aim(self, setting: Setting, planes: Planes) -> Setting:
        entry = self.ledger.entry(*setting.key)
        baseline = entry["live"] if entry else planes.live
        aimed = retarget(self.observer.kind(setting.kind), setting, baseline)
        if aimed is not setting:
            planes.note = f"raise-only: {setting.value} was asked for, this host had {baseline}"
            self.aimed[setting.key] = planes.note
        return aimed

    def _hold_back(self, setting: Setting, planes: Planes) -> None:
        """Marks what could be made live at once and would disturb the host more than is allowed now."""
        kind = self.observer.kind(setting.kind)
        if planes.unknown or planes.unsupported or not planes.has_live:
            return
        # These have a switch of their own: to take over a program is the leave to stop it.
        if planes.needs in ("restart", "reboot") or setting.owner == FOREIGN:
            return
        if planes.live is not None and kind.same(setting.name, setting.value, planes.live):
            return
        disruption = kind.disruption_of(setting.name, setting.value, planes)
        if DISRUPTIONS.index(disruption) > DISRUPTIONS.index(self.request.disruption_allowed):
            planes.waits = f"what it does to the host ({disruption}) is above disruption_allowed"
            self.waiting[setting.key] = planes.waits

    def _judge(self, setting: Setting, planes: Planes) -> Judged:
        missing = self.missing.get(setting.owner)
        if planes.unknown and missing and self.request.check:
            planes.unknown = f"after installing {', '.join(missing)}"
        entry = self.ledger.entry(*setting.key) or {}
        return self.observer.judge(setting, planes, entry.get("clamped_to"))

    def _forget_clamps(self, wanted: Sequence[Setting]) -> None:
        """What the kernel took instead of another value says nothing of the one that is asked for now."""
        for setting in wanted:
            converged = (
                self.manifest.owners.get(setting.owner, {}).get(setting.kind, {}).get(setting.name, {})
            )
            entry = self.ledger.entry(*setting.key)
            if entry is not None and converged.get("value") != setting.value:
                entry.pop("clamped_to", None)

    def _record_before(self, judged: Sequence[Judged]) -> None:
        """`before` is what stood at the start of this call."""
        for one in judged:
            winner = one.planes.winner
            one.before = {
                "live": one.planes.live,
                "persisted": winner.value if winner else None,
                "verdict": one.verdict,
            }

    # what would change

    def _files(
        self,
        supported: Sequence[Setting],
        undone: Mapping[tuple[str, str], Mapping[str, Any]],
        planes: Mapping[tuple[str, str], Planes],
    ) -> tuple[dict[str, tuple[str, str, FileImage]], dict[str, str]]:
        """Files to write (path -> kind, owner, image) and to give back (path -> kind), if they differ."""
        shall = self.shall
        for kind_name, settings in self.observer.by_kind(supported).items():
            kind = self.observer.kind(kind_name)
            for owner in sorted({setting.owner for setting in settings}):
                for path, image in kind.render(
                    owner, [one for one in settings if one.owner == owner]
                ).items():
                    shall[path] = (kind_name, owner, image)
        by_kind: dict[str, dict[str, Mapping[str, Any]]] = {}
        for (kind_name, name), entry in undone.items():
            by_kind.setdefault(kind_name, {})[name] = entry
        shared: set[str] = set()
        for kind_name in {*by_kind, *(setting.kind for setting in supported)}:
            mine = [setting for setting in supported if setting.kind == kind_name]
            undone_here, before = by_kind.get(kind_name, {}), self.ledger.settings.get(kind_name, {})
            for path, image in self.observer.kind(kind_name).edits(mine, undone_here, before).items():
                shall[path] = (kind_name, "", image)
                shared.add(path)
        removed = {
            path: entry["kind"]
            for path, entry in self.ledger.files.items()
            if entry["owner"]
            and self._scope(entry["owner"], entry["kind"])
            and path not in shall
            and not self._unreadable(path, planes)
        }
        differing = {
            path: found
            for path, found in shall.items()
            if self._on_disk(path) != _plain(found[2]) or self._unread(path, found[0])
        }
        return differing, removed

    def _held(self, judged: Sequence[Judged]) -> list[Setting]:
        """Settings that cannot be judged this time, with the value of our file: it stays there."""
        found = []
        for one in judged:
            setting, planes = one.setting, one.planes
            ours = self.observer.kind(setting.kind).managed_file(setting.owner, setting.name)
            lines = [line for line in planes.definitions if line.file == ours]
            if (planes.unknown or planes.unsupported) and lines and ours != setting.name:
                found.append(replace(setting, value=lines[-1].value))
        return found

    def _unread(self, path: str, kind_name: str) -> bool:
        """Whether a run wrote a file, and was killed or failed before the program that reads it did so."""
        return kind_name in kinds.RELOADING and bool(self.ledger.files.get(path, {}).get("open"))

    def _unreadable(self, path: str, planes: Mapping[tuple[str, str], Planes]) -> bool:
        """Whether a file is only missing from the plan because its settings could not be read this time."""
        entry = self.ledger.files[path]
        return any(
            found.unknown or found.unsupported
            for (kind, name), found in planes.items()
            if kind == entry["kind"]
            and (kind, name) in self.wanted_keys
            and (self.ledger.entry(kind, name) or {}).get("owner") == entry["owner"]
            and self.observer.kind(kind).managed_file(entry["owner"], name) == path
        )

    def _on_disk(self, path: str) -> FileImage | None:
        try:
            return atomic.read_image(self.system.path(path))
        except OSError as error:
            raise Refusal(
                f"cannot be read: {error.strerror}", thing=path, remedy="It must be a regular file or absent"
            ) from error

    def _changes(
        self, supported: Sequence[Setting], planes: Mapping[tuple[str, str], Planes]
    ) -> dict[str, list[Change]]:
        """Live values to set, by kind."""
        found: dict[str, list[Change]] = {}
        for setting in supported:
            kind, now = self.observer.kind(setting.kind), planes[setting.key]
            live_wrong = now.has_live and (
                now.live is None or not kind.same(setting.name, setting.value, now.live)
            )
            entry = self.ledger.entry(*setting.key) or {}
            clamped_to = entry.get("clamped_to")
            if live_wrong and clamped_to is not None and now.live == clamped_to:
                live_wrong = False
            value = kind.live_value(setting, now, entry)
            live_wrong = live_wrong or value is not None
            winner = now.winner
            persisted_wrong = now.has_persisted and (
                winner is None or not kind.same(setting.name, setting.value, winner.value)
            )
            without_file = kind.managed_file(setting.owner, setting.name) is None and persisted_wrong
            sets_live = live_wrong and kind.reaches(setting.name, now) and not now.waits
            if sets_live or without_file or now.stale:
                asked = setting.value if value is None else value
                change = Change(setting.name, asked, setting.asked, persist_only=bool(now.waits))
                found.setdefault(setting.kind, []).append(change)
        return found

    def _undo_changes(
        self, undone: Mapping[tuple[str, str], Mapping[str, Any]], planes: Mapping[tuple[str, str], Planes]
    ) -> dict[str, list[Change]]:
        found: dict[str, list[Change]] = {}
        for (kind_name, name), entry in undone.items():
            now = planes[kind_name, name]
            if now.unsupported or now.unknown:
                if now.unsupported and now.live is not None and entry["live"] not in (None, now.live):
                    # No run could do more: what stands on disk is given back, and the next boot reads that.
                    self.report.warnings.append(
                        f"{kind_name} {name}: was '{entry['live']}' before, and stays '{now.live}' until the "
                        f"next boot: {now.unsupported}"
                    )
                continue
            if now.stale:
                found.setdefault(kind_name, []).append(Change(name, entry["live"] or "", entry, undo=True))
            if now.stale or entry["live"] is None or not now.has_live:
                continue
            if self._is_superseded(kind_name, entry):
                continue
            kind, winner = self.observer.kind(kind_name), now.winner
            persisted = winner.value if winner else None
            without_file = kind.managed_file(entry["owner"], name) is None
            back = self._without_ours(kind_name, name, entry, now)
            if (now.live != back and kind.reaches(name, now)) or (
                without_file and persisted != entry["persisted"]["value"]
            ):
                found.setdefault(kind_name, []).append(Change(name, back, entry, undo=True))
        return found

    def _without_ours(self, kind_name: str, name: str, entry: Mapping[str, Any], now: Planes) -> str:
        """The live value once our file is gone: what was before, unless a file that came since decides."""
        before = str(entry["live"])
        if kind_name not in kinds.RELOADING:
            return before
        kind = self.observer.kind(kind_name)
        theirs = [one for one in now.definitions if one.file not in self.ledger.files]
        if not theirs or theirs[-1].value == entry["persisted"]["value"]:
            return before
        return before if kind.same(name, theirs[-1].value, before) else theirs[-1].value

    def _is_superseded(self, kind_name: str, entry: Mapping[str, Any]) -> bool:
        """Whether a twin is asked for, with which the value that was before cannot stand."""
        return any((kind_name, twin) in self.wanted_keys for twin in entry.get("coupled", ()))

    def _mark(self, judged: Sequence[Judged], changes: Mapping[str, Sequence[Change]]) -> None:
        """Which settings this call changes: on disk in the file that is ours, or live."""
        for one in judged:
            setting, kind = one.setting, self.observer.kind(one.setting.kind)
            if one.planes.unsupported or one.planes.unknown:
                continue
            ours = kind.managed_file(setting.owner, setting.name)
            if ours == store.MANIFEST:
                # Kept by the unit that reads it (keeper): whether that is enabled is no change of this.
                kept = self.manifest.owners.get(setting.owner, {}).get(setting.kind, {})
                one.changed = kept.get(setting.name, {}).get("value") != setting.value
            elif ours is not None and one.planes.has_persisted:
                written = [found for found in one.planes.definitions if found.file == ours]
                one.changed = not written or not kind.same(setting.name, setting.value, written[-1].value)
            if any(change.name == setting.name for change in changes.get(setting.kind, [])):
                one.changed = True
            if kind.leftover(setting, one.planes, self.ledger.entry(*setting.key) or {}):
                one.changed = True

    def _foretell(self, judged: Sequence[Judged], call: Call) -> None:
        """How each setting that this call touches will be judged, and what getting there does to the host."""
        for one in judged:
            if one.planes.unsupported or one.planes.unknown:
                continue
            kind = self.observer.kind(one.setting.kind)
            written = kind.managed_file(one.setting.owner, one.setting.name) in call.files
            if not (one.changed or written):
                continue
            then = self._judge(one.setting, kind.foretell(one.setting, one.planes, call))
            one.disruption = then.disruption = max(one.disruption, then.disruption, key=DISRUPTIONS.index)
            if self.request.check:
                one.then = then

    def _foretell_undone(
        self,
        undone: Mapping[tuple[str, str], Mapping[str, Any]],
        planes: Mapping[tuple[str, str], Planes],
        call: Call,
    ) -> None:
        """What each setting that is given back will still need."""
        for given in self.report.undone:
            kind_name, name = given["kind"], given["name"]
            now, was, kind = planes[kind_name, name], undone[kind_name, name], self.observer.kind(kind_name)
            if not (now.unknown or now.unsupported):
                back = "" if was["live"] is None else self._without_ours(kind_name, name, was, now)
                then = kind.foretell(Setting(was["owner"], kind_name, name, back), now, call)
                given["needs"] = self._still_needs(given, then)

    def _still_needs(self, given: Mapping[str, Any], then: Planes) -> str:
        """What a setting that was given back needs until the value of before is in force."""
        kind, name, value = self.observer.kind(given["kind"]), given["name"], given["live"]
        if then.unknown or then.unsupported:
            return "none"
        runs = then.process is None or value is None or kind.same(name, value, then.process)
        return "none" if then.has_live and then.live == value and runs else then.needs

    def _describe(
        self,
        files: Mapping[str, tuple[str, str, FileImage]],
        removed: Mapping[str, str],
        changes: Mapping[str, Sequence[Change]],
        undo_changes: Mapping[str, Sequence[Change]],
        planes: Mapping[tuple[str, str], Planes],
        undone: Mapping[tuple[str, str], Mapping[str, Any]],
    ) -> None:
        """The diff: files and live values, before and after; a secret file is named only."""
        images: list[tuple[str, FileImage | None]] = [(path, found[2]) for path, found in files.items()]
        images += [(path, self.ledger.original(path)) for path in removed]
        for path, image in sorted(images, key=lambda found: found[0]):
            now = self._on_disk(path)
            if path in removed and self._is_edited(path, now):
                self.report.aside.append(f"{path} was edited since: that version is kept as {ASIDE}{path}")
            if now == (image and _plain(image)):
                continue
            secret = (image is not None and image.secret) or self._is_secret(path)
            self.report.diff.append(
                {
                    "before_header": path,
                    "after_header": path,
                    "before": "(secret)\n" if secret and now else _show(now),
                    "after": "(another secret)\n" if secret and image else _show(image),
                }
            )
        for kind_name in kinds.ORDER:
            if kind_name not in undo_changes and kind_name not in changes:
                continue  # and nothing of that kind's code is loaded, which a host pays for in every call
            kind = self.observer.kind(kind_name)
            after = kind.outcome(undo_changes.get(kind_name, [])) if kind_name in undo_changes else {}
            after.update(kind.outcome(changes.get(kind_name, [])) if kind_name in changes else {})
            unread = [name for name in after if (kind_name, name) not in planes]
            more = kind.read(unread) if unread else {}
            before = {name: kind.shown(planes.get((kind_name, name)) or more[name]) for name in after}
            after = {name: value for name, value in after.items() if value != before[name]}
            if after:
                self.report.diff.append(
                    {
                        "before_header": f"live {kind_name}",
                        "after_header": f"live {kind_name}",
                        "before": "".join(
                            f"{name} = {'(absent)' if before[name] is None else before[name]}\n"
                            for name in after
                        ),
                        "after": "".join(f"{name} = {value}\n" for name, value in after.items()),
                    }
                )
        self.report.undone = [
            {
                "owner": entry["owner"],
                "kind": kind_name,
                "name": name,
                "live": entry["live"],
                "persisted": entry["persisted"]["value"],
                "from": {"live": now.live, "persisted": now.winner.value if now.winner else None},
                "needs": "none",
            }
            for (kind_name, name), entry in undone.items()
            for now in [planes[kind_name, name]]
        ]

    def _is_secret(self, path: str) -> bool:
        """Whether a file is a secret or was one: what stands there may still be the one it held."""
        if (self.ledger.entry("file", path) or {}).get("secret"):
            return True
        return any(
            (by_kind.get("file", {}).get(path, {}).get("options") or {}).get("secret")
            for by_kind in self.manifest.owners.values()
        )

    def _written(self, image: FileImage, path: str) -> str:
        """The digest by which we know what we wrote; of a secret a keyed one."""
        secret = image.secret or self._is_secret(path)
        return keys.digest(self.system, image.content) if secret else store.sha256(image.content)

    def _is_edited(self, path: str, now: FileImage | None) -> bool:
        """Whether somebody made something else of our file than it was before us."""
        if now is None or now == self.ledger.original(path):
            return False
        known = {store.sha256(now.content), keys.digest(self.system, now.content)}
        return known.isdisjoint(self.ledger.files[path]["written"])

    # changing it

    def _refuse_unwritable(self, paths: Sequence[str]) -> None:
        if os.geteuid() != 0:
            return  # only check mode comes here, and what another user may write says nothing of root
        for path in [*paths, store.MANIFEST]:
            blocked = self.system.read_only_mount(os.path.dirname(path))
            if blocked:
                raise Refusal(
                    f"cannot be written, so {path} cannot",
                    thing=blocked,
                    remedy="Mount it read-write and run again; nothing was changed",
                )

    def _write_ledger(
        self,
        judged: Sequence[Judged],
        files: Mapping[str, tuple[str, str, FileImage]],
        undone: Mapping[tuple[str, str], Any],
    ) -> None:
        """Originals of all that this call touches, on disk before the first write."""
        run = {**self.request.run, "time": _utc_now()}
        for one in judged:
            if one.planes.unsupported or one.planes.unknown:
                continue
            entry = self.ledger.entry(*one.setting.key)
            if entry is None:
                entry = {
                    "live": one.planes.live,
                    "persisted": one.planes.persisted_dict(),
                    "verdict": one.verdict,
                    "run": run,
                }
                self._note_coupled(one.setting, entry)
                self.ledger.note_setting(*one.setting.key, entry)
            entry["owner"] = one.setting.owner
            entry.pop("undo_failed", None)
            self.observer.kind(one.setting.kind).note(one.setting, one.planes, entry)
            if one.setting.asked and one.setting.asked.get("secret"):
                entry["secret"] = True
        for path, (kind_name, owner, _image) in files.items():
            self.ledger.note_file(path, kind_name, owner, self._on_disk(path))
        for path, (_kind_name, owner, image) in self.shall.items():
            if path in files:
                self.ledger.intend(path, owner, self._written(image, path))
            elif path in self.ledger.files:
                # It stands as it shall, but its owner may be another now.
                self.ledger.files[path].update(owner=owner, written=[self._written(image, path)])
            folder = os.path.dirname(path)
            while not os.path.isdir(self.system.path(folder)):
                if folder not in self.ledger.folders:
                    self.ledger.folders.append(folder)
                folder = os.path.dirname(folder)
        self.ledger.folders.sort()
        keys.keep(self.system)  # first: the ledger holds digests that it keyed
        self.ledger.save(run)

    def _note_coupled(self, setting: Setting, entry: dict[str, Any]) -> None:
        """What was live of a setting and its twin before us, also where we changed the twin earlier."""
        for name, value in self.observer.kind(setting.kind).coupled(setting.name).items():
            twin = self.ledger.entry(setting.kind, name)
            entry["coupled"] = {name: twin["live"] if twin else value}
            if twin and setting.name in twin.get("coupled", {}):
                entry["live"] = twin["coupled"][setting.name]

    def _apply(
        self,
        files: Mapping[str, tuple[str, str, FileImage]],
        removed: Mapping[str, str],
        changes: Mapping[str, Sequence[Change]],
        undo_changes: Mapping[str, Sequence[Change]],
        undone: Mapping[tuple[str, str], Mapping[str, Any]],
    ) -> None:
        # A foreign service starts last: TuneD would remember our values as those to give back when it stops.
        started = self._of_foreign(undo_changes)
        undo_changes = {
            kind_name: [change for change in found if change not in started]
            for kind_name, found in undo_changes.items()
        }
        # What a kind undoes by hand goes first: a service cannot be disabled once its unit file is gone.
        for kind_name in reversed(kinds.ORDER):
            if kind_name in undo_changes and kind_name not in kinds.RELOADING:
                self._activate(kind_name, undo_changes[kind_name], [])
        for path, (_kind, _owner, image) in files.items():
            if self._on_disk(path) != _plain(image):  # else it stands, and was not read yet
                real = self.system.path(path)
                atomic.make_folders(os.path.dirname(real))
                atomic.write(real, image)
            self.written.add(path)
        # A file that is as it was before us (a run that was cut short, another hand) takes no reload.
        back = [path for path in removed if self._on_disk(path) != self.ledger.original(path)]
        for path in removed:
            self._give_back(path)
        touched: dict[str, list[str]] = {}
        for path, found in files.items():
            touched.setdefault(found[0], []).append(path)
        for path in back:
            touched.setdefault(removed[path], []).append(path)
        for (kind_name, name), was in undone.items():
            place = self.observer.kind(kind_name).managed_file(was["owner"], name)
            if "undo_failed" in was and place and place not in touched.setdefault(kind_name, []):
                touched[kind_name].append(place)  # its file is back, what runs has not taken it up
        for kind_name in kinds.ORDER:
            todo = list(changes.get(kind_name, []))
            if kind_name in kinds.RELOADING:
                todo += undo_changes.get(kind_name, [])
            if todo or kind_name in touched:
                self._activate(kind_name, todo, touched.get(kind_name, []))
        self._activate("service", started, [])

    def _of_foreign(self, changes: Mapping[str, Sequence[Change]]) -> list[Change]:
        """Changes of the services of foreign owners."""
        return [
            change
            for change in changes.get("service", [])
            if (self.ledger.entry("service", change.name) or {}).get("owner") == FOREIGN
        ]

    def _stop_foreign(
        self, supported: Sequence[Setting], changes: dict[str, list[Change]]
    ) -> dict[str, list[Change]]:
        """Stops foreign services before all else, since TuneD puts its own originals over our values then.

        Returns what is to be changed after that.
        """
        stopped = self._of_foreign(changes)
        if not stopped:
            return changes
        self._activate("service", stopped, [])
        planes = _fresh(self.observer, supported).read([setting.key for setting in supported])
        return self._changes(supported, planes)

    def _activate(self, kind_name: str, changes: Sequence[Change], files: Sequence[str]) -> None:
        for name, why in self.observer.kind(kind_name).activate(changes, files).items():
            self.report.failures.append(f"{kind_name} {name}: {why}")
            self.failed.setdefault(kind_name, set()).add(name)

    def _has_failed(self, kind_name: str, owner: str, name: str) -> bool:
        """Whether `activate` failed for a setting, by its name or by that of its file."""
        failed = self.failed.get(kind_name, set())
        return bool(failed & {name, self.observer.kind(kind_name).managed_file(owner, name)})

    def _give_back(self, path: str) -> None:
        """Puts the original of a file back; what somebody made of ours since is kept aside, not lost."""
        real = self.system.path(path)
        original, now = self.ledger.original(path), self._on_disk(path)
        if now is not None and self._is_edited(path, now):
            aside = f"{ASIDE}{path}"
            atomic.make_folders(os.path.dirname(self.system.path(aside)), 0o700)
            atomic.write(self.system.path(aside), replace(now, mode=0o600))
        if original is None:
            atomic.remove(real)
        elif now != original:
            atomic.write(real, original)
        else:
            atomic.sweep(real)
        del self.ledger.files[path]
        for folder in sorted(self.ledger.folders, reverse=True):
            if path.startswith(folder + "/"):
                inside = self.system.path(folder)
                atomic.remove_folder(inside)
                if not os.path.isdir(inside):
                    self.ledger.folders.remove(folder)

    def _read_back(
        self,
        judged: Sequence[Judged],
        changes: Mapping[str, Sequence[Change]],
        undone: Mapping[tuple[str, str], Mapping[str, Any]],
    ) -> list[Judged]:
        """Judges again what now stands, and settles the ledger with it."""
        self.observer = _fresh(self.observer, [one.setting for one in judged])
        planes = self.observer.read([one.setting.key for one in judged] + list(undone))
        after = []
        for one in judged:
            now = planes[one.setting.key]
            now.note = self.aimed.get(one.setting.key, now.note)
            now.waits = self.waiting.get(one.setting.key, "")
            again = self._judge(one.setting, now)
            again.changed, again.before = one.changed, one.before
            if one.changed:
                again.disruption = max(one.disruption, again.disruption, key=DISRUPTIONS.index)
            after.append(again)
            entry = self.ledger.entry(*one.setting.key)
            if entry is not None and not now.unknown and not now.unsupported:
                self.observer.kind(one.setting.kind).note(one.setting, now, entry)
            tried = any(change.name == one.setting.name for change in changes.get(one.setting.kind, []))
            if tried and again.verdict in ("drift", "live_drift"):
                kind = self.observer.kind(one.setting.kind)
                why = kind.clamps(one.setting.name, one.setting.value, now.live or "")
                if why and entry is not None:
                    entry["clamped_to"] = now.live
                    after[-1] = replace(
                        self._judge(one.setting, now),
                        changed=one.changed,
                        before=one.before,
                        reason=why,
                        disruption=again.disruption,
                    )
                else:
                    self.report.failures.append(
                        f"{one.setting}: wrote '{one.setting.value}', reads back '{now.live}'"
                    )
        for (kind_name, name), was in undone.items():
            if self._has_failed(kind_name, was["owner"], name):
                # What the manifest kept of it beside its value (which unit to reload) is needed once more.
                known = self.manifest.owners.get(was["owner"], {}).get(kind_name, {}).get(name, {})
                options = was.get("undo_failed") or known.get("options") or {}
                self.ledger.settings[kind_name][name]["undo_failed"] = options
            elif self._is_given_back(kind_name, name, was, planes[kind_name, name]):
                self.ledger.forget_setting(kind_name, name)
        for given in self.report.undone:
            now = planes[given["kind"], given["name"]]
            # What ran with a file that is gone again can be told before only.
            foretold = "none" if now.has_live else given["needs"]
            given["needs"] = max(foretold, self._still_needs(given, now), key=NEEDS.index)
        shared = {name for name, entry in self.ledger.files.items() if not entry["owner"]}
        for path in shared:
            if not self.ledger.settings.get(self.ledger.files[path]["kind"]):
                del self.ledger.files[path]
        for path, file in self.ledger.files.items():
            # What a killed run left of owners beyond this call is not settled by it.
            ours = path in self.written or self._scope(file["owner"], file["kind"])
            if ours and file["kind"] not in self.failed:
                self.ledger.settle(path)
        self.ledger.save({**self.request.run, "time": _utc_now()})
        return after

    def _is_given_back(self, kind_name: str, name: str, was: Mapping[str, Any], now: Planes) -> bool:
        """Whether undo has done its part for a setting; says why where the old value is not back."""
        if now.stale and not now.unknown and not now.unsupported:
            self.report.failures.append(f"{kind_name} {name}: was removed, but {now.where}")
            return False
        if was["live"] is None or not now.has_live or now.live == was["live"]:
            return True
        if now.unsupported or now.needs != "none" or self._is_superseded(kind_name, was):
            return True
        if now.live is None and kind_name != "file":
            return True  # its unit or key went with its package
        winner = now.winner
        if winner is not None and self.observer.kind(kind_name).same(name, winner.value, now.live or ""):
            self.report.warnings.append(
                f"{kind_name} {name}: was '{was['live']}' before, and is '{now.live}': {winner.file} says so"
            )
            return True
        self.report.failures.append(
            f"{kind_name} {name}: was '{was['live']}' before, still reads '{now.live}' after undo"
        )
        return False

    def _look_again(self, judged: Sequence[Judged], changes: Mapping[str, Sequence[Change]]) -> None:
        """A value that took and is another one soon after has a second master."""
        changed = {(kind, change.name) for kind, found in changes.items() for change in found}
        right = [one for one in judged if one.setting.key in changed and one.verdict in GOOD]
        if not right or self.request.settle_seconds <= 0:
            return
        time.sleep(self.request.settle_seconds)
        planes = _fresh(self.observer, [one.setting for one in right]).read(
            [one.setting.key for one in right]
        )
        for one in right:
            now = planes[one.setting.key]
            if one.planes.has_live and now.live != one.planes.live:
                self.report.failures.append(
                    f"{one.setting}: took '{one.planes.live}' and reads '{now.live}' "
                    f"{self.request.settle_seconds:g} s later: another program sets it. "
                    "Stop that one, or leave the setting to it"
                )

    def _next_manifest(self, wanted: Sequence[Setting]) -> store.Manifest:
        following = store.Manifest(self.system, tolerant=True)
        following.owners = self._outside()
        for setting in wanted:
            entry: dict[str, Any] = {"value": setting.value, "notes": setting.notes}
            if setting.key in self.waiting:
                entry["waits"] = self.waiting[setting.key]
            options = self.observer.kind(setting.kind).options(setting)
            if options:
                entry["options"] = options
            following.owners.setdefault(setting.owner, {}).setdefault(setting.kind, {})[setting.name] = entry
        return following


def _fresh(observer: Observer, settings: Sequence[Setting]) -> Observer:
    """An observer that remembers nothing it has read, only what was asked."""
    again = Observer(observer.system, tolerant=True, boot_trial=observer.boot_trial)
    for setting in settings:
        again.kind(setting.kind).recall(setting)
    return again


def _stopped(*changes: Mapping[str, Sequence[Change]]) -> frozenset[str]:
    """The services that these changes stop."""
    return frozenset(
        change.name
        for found in changes
        for change in found.get("service", ())
        if not change.persist_only and "inactive" in change.value.split()
    )


def _waits_for(judged: Judged) -> str:
    """What a pending setting waits for; of the closed market what it takes then."""
    word = (judged.waived_verdict or judged.verdict)[len("pending_") :]
    return word if word in NEEDS else judged.planes.needs


def _plain(image: FileImage) -> FileImage:
    return replace(image, secret=False)


def _show(image: FileImage | None) -> str:
    if image is None:
        return ""
    text = image.content.decode("utf-8", "replace")
    return f"mode {image.mode:04o} owner {image.uid}:{image.gid}\n{text}"


def _utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
