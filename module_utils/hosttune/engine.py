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

from . import atomic, conflicts, keys, kinds, lock, store, topology
from .model import DISRUPTIONS, Change, FileImage, Planes, Refusal, Setting
from .observe import Judged, Observer, recall, retarget
from .system import System, updates
from .verdicts import GOOD

#: what is asked of the host: owner -> kind -> name -> value
Owners = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass
class Request:
    """What a call of host_settings asks for (see its documentation)."""

    owners: Owners
    present: bool = True
    partial: bool = False
    #: of `present: False`: these kinds only; empty: all
    kinds: Sequence[str] = ()
    #: disruptions up to this one (model.DISRUPTIONS) are allowed now
    disruption_allowed: str = "silent"
    check: bool = False
    notes: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    packages: Mapping[str, Sequence[str]] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    topology_fingerprint: str = ""
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

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for judged in self.settings:
            found[judged.verdict] = found.get(judged.verdict, 0) + 1
        return found

    def pending(self) -> list[dict[str, str]]:
        return [
            {
                "owner": judged.setting.owner,
                "kind": judged.setting.kind,
                "name": judged.setting.name,
                "needs": judged.planes.needs,
                "disruption": judged.disruption,
                "reason": judged.reason,
            }
            for judged in self.settings
            if (judged.waived_verdict or judged.verdict).startswith("pending_")
        ]


def converge(system: System, request: Request) -> Report:
    """Brings the host to what `request` asks for, or (check) says what that would change.

    Raises Refusal before anything is touched. What failed while it was done is in `Report.failures`.
    """
    if request.disruption_allowed not in DISRUPTIONS:
        raise Refusal(
            f"'{request.disruption_allowed}' is no class of disruption",
            thing="disruption_allowed",
            remedy=f"Classes are {', '.join(DISRUPTIONS)}",
        )
    if request.check:
        return _Run(system, request).walk()
    if os.geteuid() != 0:
        raise Refusal(
            "settings can be changed by root only", thing="host_settings", remedy="Use become: true"
        )
    folder = os.path.dirname(lock.PATH)
    locked = system.read_only_mount(folder)
    if locked:
        raise Refusal("cannot be written", thing=locked, remedy="Mount it read-write: the ledger lies there")
    atomic.make_folders(system.path(folder), 0o700)
    holder = f"run {request.run.get('id', '?')} of {request.run.get('operator', '?')}, process {os.getpid()}"
    with lock.hold(system.path(lock.PATH), holder, request.lock_wait_seconds):
        return _Run(system, request).walk()


class _Run:
    """One walk over one host."""

    def __init__(self, system: System, request: Request) -> None:
        self.system = system
        self.request = request
        self.observer = Observer(system, tolerant=True)
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
        #: files that this run has replaced
        self.written: set[str] = set()
        #: kinds that failed to make a value or a file live
        self.not_activated: set[str] = set()

    def walk(self) -> Report:
        recall(self.observer, self.manifest.owners)  # also of what this call undoes
        wanted = self._wanted()
        undone = self._undone(wanted)
        self._check(wanted)
        keys_read = [setting.key for setting in wanted] + [
            key for key in undone if key not in {one.key for one in wanted}
        ]
        planes = self.observer.read(keys_read)
        wanted = [self._aim(setting, planes[setting.key]) for setting in wanted]
        for setting in wanted:
            self._hold_back(setting, planes[setting.key])
        judged = [self._judge(setting, planes[setting.key]) for setting in wanted]
        self._record_before(judged)
        supported = [one.setting for one in judged if not one.planes.unsupported and not one.planes.unknown]
        files, removed = self._files(supported, undone, planes)
        changes = self._changes(supported, planes)
        undo_changes = self._undo_changes(undone, planes)
        self._mark(judged, changes)
        self._describe(files, removed, changes, undo_changes, judged, undone)
        new_manifest = self._next_manifest(wanted)
        manifest_differs = (
            new_manifest.digest != self.manifest.digest
            or self.manifest.exists != bool(new_manifest.owners)
            or not self.manifest.intact
            or bool(new_manifest.owners and self.manifest.machine != self.system.machine)
        )
        self.report.changed = bool(files or removed or changes or undo_changes or undone or manifest_differs)
        fingerprint = self.request.topology_fingerprint
        self.report.topology_matches = not fingerprint or fingerprint == topology.read_fingerprint(
            self.system.root
        )
        if self.request.check:
            self.report.settings = judged
            self.report.manifest_digest = new_manifest.digest
            return self.report
        for path in self.ledger.files:
            atomic.clear(self.system.path(path))
        if self.report.changed:
            self._refuse_unwritable(list(files) + list(removed))
            self._write_ledger(judged, files, undone)
            self._apply(files, removed, changes, undo_changes)
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
            return of_owner and (not self.request.kinds or kind in self.request.kinds)
        return not self.request.partial or owner in self.request.owners

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
        self.report.warnings += conflicts.check([*wanted, *self._others()], self.system)
        for kind_name, settings in self.observer.by_kind(wanted).items():
            self.observer.kind(kind_name).check(settings, self.missing)

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
        if (
            planes.unknown
            or planes.unsupported
            or not planes.has_live
            or planes.needs in ("restart", "reboot")
        ):
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
        shall: dict[str, tuple[str, str, FileImage]] = {}
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
            for path, image in self.observer.kind(kind_name).edits(mine, by_kind.get(kind_name, {})).items():
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
            clamped_to = (self.ledger.entry(*setting.key) or {}).get("clamped_to")
            if live_wrong and clamped_to is not None and now.live == clamped_to:
                live_wrong = False
            winner = now.winner
            persisted_wrong = now.has_persisted and (
                winner is None or not kind.same(setting.name, setting.value, winner.value)
            )
            without_file = kind.managed_file(setting.owner, setting.name) is None and persisted_wrong
            sets_live = live_wrong and now.needs in ("none", "reload") and not now.waits
            if sets_live or without_file:
                change = Change(setting.name, setting.value, setting.asked, persist_only=bool(now.waits))
                found.setdefault(setting.kind, []).append(change)
        return found

    def _undo_changes(
        self, undone: Mapping[tuple[str, str], Mapping[str, Any]], planes: Mapping[tuple[str, str], Planes]
    ) -> dict[str, list[Change]]:
        found: dict[str, list[Change]] = {}
        for (kind_name, name), entry in undone.items():
            now = planes[kind_name, name]
            if now.unsupported or now.unknown or entry["live"] is None or not now.has_live:
                continue
            winner = now.winner
            persisted = winner.value if winner else None
            without_file = self.observer.kind(kind_name).managed_file(entry["owner"], name) is None
            if now.live != entry["live"] or (without_file and persisted != entry["persisted"]["value"]):
                found.setdefault(kind_name, []).append(Change(name, entry["live"], entry, undo=True))
        return found

    def _mark(self, judged: Sequence[Judged], changes: Mapping[str, Sequence[Change]]) -> None:
        """Which settings this call changes: on disk in the file that is ours, or live."""
        for one in judged:
            setting, kind = one.setting, self.observer.kind(one.setting.kind)
            if one.planes.unsupported or one.planes.unknown:
                continue
            ours = kind.managed_file(setting.owner, setting.name)
            if ours is not None and one.planes.has_persisted:
                written = [found for found in one.planes.definitions if found.file == ours]
                one.changed = not written or not kind.same(setting.name, setting.value, written[-1].value)
            if any(change.name == setting.name for change in changes.get(setting.kind, [])):
                one.changed = True

    def _describe(
        self,
        files: Mapping[str, tuple[str, str, FileImage]],
        removed: Mapping[str, str],
        changes: Mapping[str, Sequence[Change]],
        undo_changes: Mapping[str, Sequence[Change]],
        judged: Sequence[Judged],
        undone: Mapping[tuple[str, str], Mapping[str, Any]],
    ) -> None:
        """The diff: files and live values, before and after; a secret file is named only."""
        images: list[tuple[str, FileImage | None]] = [(path, found[2]) for path, found in files.items()]
        images += [(path, self.ledger.original(path)) for path in removed]
        for path, image in sorted(images, key=lambda found: found[0]):
            now = self._on_disk(path)
            secret = (image is not None and image.secret) or self._is_secret(path)
            self.report.diff.append(
                {
                    "before_header": path,
                    "after_header": path,
                    "before": "(secret)\n" if secret and now else _show(now),
                    "after": "(another secret)\n" if secret and image else _show(image),
                }
            )
        live = {one.setting.key: one.planes.live for one in judged}
        for kind_name in kinds.ORDER:
            both = [*changes.get(kind_name, []), *undo_changes.get(kind_name, [])]
            if both:
                before = {change.name: live.get((kind_name, change.name)) for change in both}
                for change in undo_changes.get(kind_name, []):
                    before[change.name] = self.observer.kind(kind_name).read([change.name])[change.name].live
                self.report.diff.append(
                    {
                        "before_header": f"live {kind_name}",
                        "after_header": f"live {kind_name}",
                        "before": "".join(
                            f"{name} = {'(absent)' if value is None else value}\n"
                            for name, value in before.items()
                        ),
                        "after": "".join(f"{change.name} = {change.value}\n" for change in both),
                    }
                )
        self.report.undone = [
            {
                "owner": entry["owner"],
                "kind": kind_name,
                "name": name,
                "live": entry["live"],
                "persisted": entry["persisted"]["value"],
            }
            for (kind_name, name), entry in undone.items()
        ]

    def _is_secret(self, path: str) -> bool:
        return bool((self.ledger.entry("file", path) or {}).get("secret"))

    # changing it

    def _refuse_unwritable(self, paths: Sequence[str]) -> None:
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
                if one.setting.asked and one.setting.asked.get("secret"):
                    entry["secret"] = True
                coupled = self.observer.kind(one.setting.kind).coupled(one.setting.name)
                if coupled:
                    entry["coupled"] = coupled
                self.ledger.note_setting(*one.setting.key, entry)
            entry["owner"] = one.setting.owner
        for path, (kind_name, owner, image) in files.items():
            self.ledger.note_file(path, kind_name, owner, self._on_disk(path))
            self.ledger.intend(path, owner, store.sha256(image.content))
            folder = os.path.dirname(path)
            while not os.path.isdir(self.system.path(folder)):
                if folder not in self.ledger.folders:
                    self.ledger.folders.append(folder)
                folder = os.path.dirname(folder)
        self.ledger.folders.sort()
        self.ledger.save(run)
        keys.keep(self.system)

    def _apply(
        self,
        files: Mapping[str, tuple[str, str, FileImage]],
        removed: Mapping[str, str],
        changes: Mapping[str, Sequence[Change]],
        undo_changes: Mapping[str, Sequence[Change]],
    ) -> None:
        # What a kind undoes by hand goes first: a service cannot be disabled once its unit file is gone.
        for kind_name in reversed(kinds.ORDER):
            if kind_name in undo_changes and kind_name not in kinds.RELOADING:
                self._activate(kind_name, undo_changes[kind_name], [])
        for path, (_kind, _owner, image) in files.items():
            real = self.system.path(path)
            atomic.make_folders(os.path.dirname(real))
            atomic.write(real, image)
            self.written.add(path)
        for path in removed:
            self._give_back(path)
        touched: dict[str, list[str]] = {}
        for path, found in files.items():
            touched.setdefault(found[0], []).append(path)
        for path, kind_name in removed.items():
            touched.setdefault(kind_name, []).append(path)
        for kind_name in kinds.ORDER:
            todo = list(changes.get(kind_name, []))
            if kind_name in kinds.RELOADING:
                todo += undo_changes.get(kind_name, [])
            if todo or kind_name in touched:
                self._activate(kind_name, todo, touched.get(kind_name, []))

    def _activate(self, kind_name: str, changes: Sequence[Change], files: Sequence[str]) -> None:
        for name, why in self.observer.kind(kind_name).activate(changes, files).items():
            self.report.failures.append(f"{kind_name} {name}: {why}")
            self.not_activated.add(kind_name)

    def _give_back(self, path: str) -> None:
        """Puts the original of a file back; what somebody made of ours since is kept aside, not lost."""
        real = self.system.path(path)
        entry, original, now = self.ledger.files[path], self.ledger.original(path), self._on_disk(path)
        if now is not None and store.sha256(now.content) not in entry["written"] and now != original:
            aside = f"/var/lib/hosttune/aside{path}"
            atomic.make_folders(os.path.dirname(self.system.path(aside)), 0o700)
            atomic.write(self.system.path(aside), replace(now, mode=0o600))
            self.report.aside.append(f"{path} was edited since: that version is kept as {aside}")
        if original is None:
            atomic.remove(real)
        else:
            atomic.write(real, original)
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
            after.append(again)
            tried = any(change.name == one.setting.name for change in changes.get(one.setting.kind, []))
            if tried and again.verdict in ("drift", "live_drift"):
                kind = self.observer.kind(one.setting.kind)
                why = kind.clamps(one.setting.name, one.setting.value, now.live or "")
                entry = self.ledger.entry(*one.setting.key)
                if why and entry is not None:
                    entry["clamped_to"] = now.live
                    after[-1] = self._judge(one.setting, now)
                    after[-1].changed, after[-1].before, after[-1].reason = one.changed, one.before, why
                else:
                    self.report.failures.append(
                        f"{one.setting}: wrote '{one.setting.value}', reads back '{now.live}'"
                    )
        for (kind_name, name), was in undone.items():
            now = planes[kind_name, name]
            stays = was["live"] is not None and now.has_live and now.live != was["live"]
            if stays and not now.unsupported and now.needs == "none":
                self.report.failures.append(
                    f"{kind_name} {name}: was '{was['live']}' before, still reads '{now.live}' after undo"
                )
            else:
                self.ledger.forget_setting(kind_name, name)
        shared = {name for name, entry in self.ledger.files.items() if not entry["owner"]}
        for path in shared:
            if not self.ledger.settings.get(self.ledger.files[path]["kind"]):
                del self.ledger.files[path]
        for path, file in self.ledger.files.items():
            # What a killed run left of owners beyond this call is not settled by it.
            ours = path in self.written or self._scope(file["owner"], file["kind"])
            if ours and file["kind"] not in self.not_activated:
                self.ledger.settle(path)
        self.ledger.save({**self.request.run, "time": _utc_now()})
        return after

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
    again = Observer(observer.system, tolerant=True)
    for setting in settings:
        again.kind(setting.kind).recall(setting)
    return again


def _plain(image: FileImage) -> FileImage:
    return replace(image, secret=False)


def _show(image: FileImage | None) -> str:
    if image is None:
        return ""
    text = image.content.decode("utf-8", "replace")
    return f"mode {image.mode:04o} owner {image.uid}:{image.gid}\n{text}"


def _utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
