"""Foreign owners: programs and files that fight for our settings, found before anything is touched.

Each finding names the program or file, its Debian package, the settings it affects and what is done about it:

- refuse: the call stops here, with the three choices as remedy;
- take_over: it becomes settings of the owner `foreign` in the same call (kinds service and file), so that
  ledger, check mode, drift and undo hold for it too;
- leave: the settings it affects are left to it, out of this call's wanted set;
- none: it is said and nothing follows.

How heavy a finding weighs decides what is done where the operator decided nothing (DEFAULTS): a `fight`
overwrites our settings; a `guard` would restart our servers whenever updates come, or steer the clock that
the suite gives to chrony; a `warning` may touch our settings one day; what is `overridden` is beaten by ours.
Findings are made as if the suite had taken nothing over: what it holds stays held until the decision or the
settings change.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import dpkg, foreign_files, waivers
from .foreign_programs import BY_NAME, GUARDS, OWNER, Finding, Programs, held, written
from .kinds.base import did_you_mean
from .model import FileImage, Planes, Refusal, Setting
from .observe import Observer
from .store import Ledger

DECISIONS = ("refuse", "take_over", "leave")
DEFAULTS = {"fight": "refuse", "guard": "take_over", "warning": "none", "overridden": "none"}


class ForeignRefusal(Refusal):
    """Foreign owners that nobody has decided about, with all that was found."""

    def __init__(self, refused: Sequence[Finding], findings: Sequence[Finding]) -> None:
        self.findings = list(findings)
        super().__init__(
            "these fight for settings of this call: " + "; ".join(map(str, refused)),
            thing="foreign owners",
            remedy="Decide for each: " + "; ".join(one.remedy for one in refused) + ". Nothing was touched",
        )


@dataclass
class Settled:
    """What a call shall do once foreign owners are decided about."""

    wanted: list[Setting]
    findings: list[Finding]
    left: list[dict[str, str]]


def check_decisions(decisions: Mapping[str, Any]) -> dict[str, str]:
    """The operator's decisions; raises Refusal for a name or word that is none."""
    for name, word in decisions.items():
        thing = f"settings_foreign {name}"
        if word not in DECISIONS:
            raise Refusal(f"'{word}' is no decision", thing=thing, remedy=f"Use {', '.join(DECISIONS)}")
        if name not in BY_NAME and not name.startswith("/"):
            raise Refusal(
                "is no owner the suite knows",
                thing=thing,
                remedy=did_you_mean(name, BY_NAME)
                or f"Name {', '.join(BY_NAME)}, or a file by its whole path",
            )
    return {str(name): str(word) for name, word in decisions.items()}


def settle(
    observer: Observer,
    ledger: Ledger,
    wanted: Sequence[Setting],
    others: Sequence[Setting],
    planes: Mapping[tuple[str, str], Planes],
    decisions: Mapping[str, Any] | None,
) -> Settled:
    """Finds the foreign owners of all settings of this host and decides about each.

    `others` are settings outside this call: nothing of theirs is refused or left, and what is held for them
    stays. `decisions` None (an undo): nothing new is taken over. Raises ForeignRefusal.
    """
    if not wanted and not others:
        return Settled([], [], [])
    return _Survey(observer, ledger, wanted, others, planes, decisions).settled()


class _Survey:
    def __init__(
        self,
        observer: Observer,
        ledger: Ledger,
        wanted: Sequence[Setting],
        others: Sequence[Setting],
        planes: Mapping[tuple[str, str], Planes],
        decisions: Mapping[str, Any] | None,
    ) -> None:
        self.system, self.observer, self.ledger = observer.system, observer, ledger
        self.decisions = None if decisions is None else check_decisions(decisions)
        self.wanted = list(wanted)
        self.mine = {setting.key for setting in wanted}
        self.planes = {**planes, **observer.read([one.key for one in others if one.key not in planes])}
        everyone = [*wanted, *others]
        self.roles = {setting.key for setting in everyone}
        #: settings of this host that can be fought for
        self.settings = [one for one in everyone if not self.planes[one.key].unsupported]

    def settled(self) -> Settled:
        programs = [
            self._decided(one)
            for one in Programs(self.observer, self.ledger, self.settings, self.planes, self.roles).findings()
        ]
        left = self._left(programs)
        remaining = [one for one in self.settings if one.key not in left]
        files = [self._decided(one) for one in self._files(remaining)]
        left.update(self._left(files))
        findings = [*programs, *files]
        for one in findings:
            if one.decision != "leave" and one.affects:
                one.affects = [key for key in one.affects if key not in left]
                if not one.affects:
                    one.decision = "none"
        self._name_packages(findings)
        refused = [one for one in findings if one.decision == "refuse" and self.mine & set(one.affects)]
        if refused:
            raise ForeignRefusal(refused, findings)
        taken = {
            setting.key: setting
            for one in findings
            if one.decision == "take_over"
            for setting in one.settings
        }
        return Settled(
            [one for one in self.wanted if one.key not in left] + list(taken.values()),
            findings,
            [
                {
                    "owner": one.owner,
                    "kind": one.kind,
                    "name": one.name,
                    "desired": one.value,
                    "left": f"{left[one.key]} has it",
                }
                for one in self.wanted
                if one.key in left
            ],
        )

    # deciding

    def _decided(self, finding: Finding) -> Finding:
        holds = any(held(self.ledger, *setting.key) for setting in finding.settings)
        if self.decisions is None:
            finding.decision = "take_over" if holds else "none"
            return finding
        said = [self.decisions[name] for name in self._called(finding) if name in self.decisions]
        finding.decision = said[0] if said else DEFAULTS[finding.weight]
        if not said and holds and not self.mine & set(finding.affects):
            finding.decision = "take_over"  # held for settings that this call does not speak of
        elif not said and finding.weight == "fight" and all(map(self._waived, finding.affects)):
            finding.decision = "none"  # somebody answers for the outcome
            finding.reason += "; waived"
        if finding.decision == "take_over" and not finding.settings:
            if not said:
                finding.decision = "none"
                return finding
            raise Refusal(
                "cannot be taken over from here",
                thing=str(finding),
                remedy=f"Change it by hand, or decide otherwise: {finding.remedy}",
            )
        return finding

    def _waived(self, key: tuple[str, str]) -> bool:
        return waivers.covering(self.observer.waivers, *key, self.observer.now) is not None

    def _called(self, finding: Finding) -> list[str]:
        real = foreign_files.View(self.system).real(finding.owner) if finding.owner.startswith("/") else ""
        return [name for name in (finding.owner, real) if name]

    def _left(self, findings: Iterable[Finding]) -> dict[tuple[str, str], str]:
        return {
            key: one.owner
            for one in findings
            if one.decision == "leave"
            for key in one.affects
            if key not in one.disturbs
        }

    # files

    def _files(self, settings: Sequence[Setting]) -> list[Finding]:
        candidates = [
            one for one in settings if one.kind in foreign_files.KINDS and not self.planes[one.key].unknown
        ]
        if not candidates:
            return []
        images: dict[str, FileImage] = {}
        for kind_name, mine in self.observer.by_kind(candidates).items():
            kind = self.observer.kind(kind_name)
            for owner in sorted({one.owner for one in mine}):
                images.update(kind.render(owner, [one for one in mine if one.owner == owner]))
        kept = [path for path, entry in self.ledger.files.items() if entry["owner"] == OWNER]
        ours = {path for path, entry in self.ledger.files.items() if entry["owner"] != OWNER} | set(images)
        ours |= {name for kind, name in self.roles if kind == "file"}
        asked = {name for name in self.decisions or {} if name.startswith("/")}
        found, view = foreign_files.survey(
            self.system,
            candidates,
            self.planes,
            images,
            frozenset(ours),
            frozenset(asked),
            any(path not in GUARDS for path in kept),
        )
        findings = []
        for one in found:
            if one.loses:
                findings.append(
                    Finding(
                        one.file,
                        "overridden",
                        list(one.loses),
                        "defines what the suite overrides",
                        file=one.file,
                    )
                )
            if one.wins:
                findings.append(self._file(one, view))
        return findings

    def _file(self, found: foreign_files.Found, view: foreign_files.View) -> Finding:
        says = ", ".join(f"{name} = {one.value}" for (_kind, name), one in found.wins.items())
        lines = sorted({one.line for one in found.wins.values() if one.line})
        finding = Finding(
            found.file,
            "fight",
            list(found.wins),
            f"decides over the suite's own files (line {', '.join(map(str, lines))}: {says})"
            if lines
            else f"decides over the suite's own files ({says})",
            file=found.file,
            taking_over=f"those lines are commented out in {found.target}"
            if found.target == view.real(found.file)
            else f"{found.target} masks it, a copy without those lines",
        )
        text = view.files.get(found.target)
        if text is not None and ("file", found.target) not in self.roles:
            about = os.stat(
                self.system.path(found.target if self.system.exists(found.target) else found.file)
            )
            try:
                text.encode()
                finding.settings = [written(self.observer, found.target, text, finding, about)]
            except (UnicodeEncodeError, KeyError):
                # Kind file holds neither; without settings it cannot be taken over.
                finding.reason += "; it has bytes that are no UTF-8 or an owner without a name"
        return finding

    def _name_packages(self, findings: Sequence[Finding]) -> None:
        of_files = dpkg.packages_of(self.system, [one.file for one in findings if one.owner.startswith("/")])
        for one in findings:
            one.package = of_files.get(one.file, one.package)
        versions = dpkg.versions(self.system, [one.package for one in findings])
        for one in findings:
            one.package = f"{one.package} {versions.get(one.package, '')}".strip()


def claimed(owners: Mapping[str, Any], present: bool, partial: bool) -> Mapping[str, Any]:
    """The owners of a call with our own among them: what is held is always decided about anew."""
    if owners and (partial or not present):
        return {**owners, OWNER: owners.get(OWNER, {})}
    return owners
