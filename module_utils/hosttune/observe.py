"""Reading and judging a host's settings, without a thought of changing them: apply and drift begin here."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import kinds, verdicts, waivers
from .kinds.base import Kind
from .model import DISRUPTIONS, Planes, Setting
from .store import Damaged
from .system import System


@dataclass
class Judged:
    """One setting with its planes and verdict, now (check, drift) or at the end of a run."""

    setting: Setting
    planes: Planes
    verdict: str
    reason: str
    changed: bool = False
    before: dict[str, Any] = field(default_factory=dict)
    waived_verdict: str | None = None
    #: what making it live does to the host (model.DISRUPTIONS)
    disruption: str = "silent"
    #: check mode: how it will be judged once the call has been made
    then: Judged | None = None

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "owner": self.setting.owner,
            "kind": self.setting.kind,
            "name": self.setting.name,
            "desired": self.setting.value,
            "live": self.planes.live,
            "persisted": self.planes.persisted_dict(),
            "before": self.before,
            "verdict": self.verdict,
            "changed": self.changed,
            "needs": (self.then or self).planes.needs,
            "disruption": self.disruption,
            "reason": self.reason,
        }
        if self.planes.process is not None:
            found["process"] = self.planes.process
        if self.waived_verdict is not None:
            found["waived_verdict"] = self.waived_verdict
        return found


class Observer:
    """Reads and judges settings of one host; each kind is loaded when first needed."""

    def __init__(self, system: System, tolerant: bool = False, boot_trial: str = "none") -> None:
        """Raises Refusal for waivers that cannot be used; `tolerant` waives nothing then and says so."""
        self.system = system
        self.boot_trial = boot_trial
        self.warnings: list[str] = []
        self.waivers: list[dict[str, Any]] = []
        try:
            self.waivers = waivers.load(system)
        except Damaged as damage:
            if not tolerant:
                raise
            self.warnings.append(f"{damage}. Nothing is waived")
        self.now = datetime.datetime.now(datetime.timezone.utc)
        self._kinds: dict[str, Kind] = {}

    def kind(self, name: str) -> Kind:
        if name not in self._kinds:
            self._kinds[name] = kinds.load(name, self.system)
            self._kinds[name].trial = self.boot_trial
        return self._kinds[name]

    def by_kind(self, settings: Sequence[Setting]) -> dict[str, list[Setting]]:
        """Settings by kind, in the order of activation."""
        found: dict[str, list[Setting]] = {}
        for setting in settings:
            self.kind(setting.kind)  # an unknown kind is refused here
            found.setdefault(setting.kind, []).append(setting)
        return {name: found[name] for name in kinds.ORDER if name in found}

    def read(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Planes]:
        """The planes of each (kind, name), one batch a kind."""
        names: dict[str, list[str]] = {}
        for kind, name in keys:
            names.setdefault(kind, []).append(name)
        found: dict[tuple[str, str], Planes] = {}
        for kind in names:
            try:
                planes = self.kind(kind).read(names[kind])
            except OSError as error:
                # One tool that gives no answer (systemctl, psql) must not hide the other kinds.
                planes = {name: Planes(unknown=error.strerror or str(error)) for name in names[kind]}
            for name in names[kind]:
                found[kind, name] = planes[name]
        return found

    def judge(self, setting: Setting, planes: Planes, clamped_to: str | None = None) -> Judged:
        kind = self.kind(setting.kind)
        verdict, reason = verdicts.judge(
            setting.value,
            planes,
            lambda wanted, found: kind.same(setting.name, wanted, found),
            kind.managed_file(setting.owner, setting.name),
            clamped_to,
        )
        disruption = kind.disruption_of(setting.name, setting.value, planes)
        least = {"pending_restart": "restarts", "pending_reboot": "reboots"}.get(verdict, "silent")
        disruption = max(disruption, least, key=DISRUPTIONS.index)
        judged = Judged(setting, planes, verdict, reason, disruption=disruption)
        waiver = None
        if verdict not in ("unknown", "in_sync"):
            waiver = waivers.covering(self.waivers, setting.kind, setting.name, self.now)
        if waiver:
            judged.verdict, judged.waived_verdict = "waived", verdict
            who = f"waived by {waiver['owner']} until {waiver['expires']} ({waiver['ticket']})"
            judged.reason = f"{reason}; {who}: {waiver['reason']}"
        return judged


def recall(
    observer: Observer, owners: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]
) -> list[Setting]:
    """The settings that a manifest lists."""
    found = []
    for owner, by_kind in owners.items():
        for kind, names in by_kind.items():
            for name, entry in names.items():
                setting = Setting(
                    owner, kind, name, entry["value"], entry.get("options"), entry.get("notes", {})
                )
                observer.kind(kind).recall(setting)
                found.append(setting)
    return found


def retarget(kind: Kind, setting: Setting, baseline: str | None) -> Setting:
    """The setting with the value to converge to (raise-only kinds keep what is higher)."""
    target = kind.target(setting.name, setting.value, baseline)
    return setting if target == setting.value else replace(setting, value=target)
