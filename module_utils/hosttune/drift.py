"""Judging a host against its manifest, without a thought of changing it.

The walk of `engine` up to the judgement: recall what the host was last converged to, read all planes, judge.
Nothing here or in what it imports calls the engine; the only thing written is the check's own report (cli).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .model import Refusal, Setting
from .observe import Observer, recall
from .store import Ledger, Manifest, load_json
from .system import System, updates
from .verdicts import BAD, PENDING

PATH = "/var/lib/hosttune/drift.json"
SCHEMA = 1
#: How long a setting may wait for its restart, reboot or window before that counts as drift.
GRACE_SECONDS = 24 * 3600.0

#: Verdicts that say something of this boot's values: a reboot ends them, and what follows is a new one.
_OF_THIS_BOOT = frozenset({"live_drift", "boot_bomb", "pending_restart", "clamped"})
_INSTANT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass
class DriftReport:
    """What a check found. `settings` holds one dict a setting, as in docs/schemas/drift.json."""

    host: str
    time: str
    boot_id: str = ""
    #: why nothing could be judged; empty where it could
    error: str = ""
    manifest: dict[str, Any] | None = None
    settings: list[dict[str, Any]] = field(default_factory=list)
    #: what the verdicts do not say: the machine under the settings is another one
    warnings: list[str] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """0 as desired, 1 drift, 2 something could not be read, 3 nothing worse than waived."""
        if self.error:
            return 2
        return exit_status(self.settings)

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for entry in self.settings:
            found[entry["verdict"]] = found.get(entry["verdict"], 0) + 1
        return dict(sorted(found.items()))

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "host": self.host,
            "time": self.time,
            "boot_id": self.boot_id,
            "exit_status": self.exit_status,
            "error": self.error or None,
            "manifest": self.manifest,
            "counts": self.counts(),
            "warnings": self.warnings,
            "settings": self.settings,
        }


def exit_status(settings: Iterable[Mapping[str, Any]]) -> int:
    """The exit status that these judged settings add up to."""
    settings = list(settings)
    if any(entry["verdict"] == "unknown" for entry in settings):
        return 2
    if any(entry["verdict"] in BAD or entry.get("overdue") for entry in settings):
        return 1
    return 3 if any(entry["verdict"] == "waived" for entry in settings) else 0


def check(
    system: System,
    grace_seconds: float = GRACE_SECONDS,
    only: Sequence[tuple[str, str]] | None = None,
) -> DriftReport:
    """Judges every setting of the host's manifest, or `only` these (kind, name).

    Never raises for what stands on the host: a manifest that cannot be used is the report's `error`.
    """
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    report = DriftReport(_host(system), now.strftime(_INSTANT), system.boot_id)
    try:
        manifest, settings, observer = recall_manifest(system)
        ledger = Ledger(system)
    except Refusal as refusal:
        report.error = str(refusal)
        return report
    report.manifest = {"digest": manifest.digest, "run": manifest.run}
    report.warnings = updates(manifest.machine, system.machine)
    if only is not None:
        settings = [setting for setting in settings if setting.key in only]
    planes = observer.read([setting.key for setting in settings])
    for setting in settings:
        planes[setting.key].waits = manifest.owners[setting.owner][setting.kind][setting.name].get(
            "waits", ""
        )
    judged = [
        observer.judge(
            setting, planes[setting.key], (ledger.entry(*setting.key) or {}).get("clamped_to")
        ).as_dict()
        for setting in settings
    ]
    report.settings = entries(judged)
    _date(report, _previous(system), now, grace_seconds)
    return report


def recall_manifest(system: System) -> tuple[Manifest, list[Setting], Observer]:
    """The manifest and its settings; raises Refusal where there is none that can be trusted."""
    manifest = Manifest(system)
    remedy = "Converge this host with playbooks/tune.yml"
    if not manifest.exists:
        raise Refusal("this host has no manifest", thing="drift", remedy=remedy)
    if not manifest.intact:
        raise Refusal(
            "the manifest was changed by another hand: its digest does not fit", thing="drift", remedy=remedy
        )
    observer = Observer(system)
    settings = recall(observer, manifest.owners)
    if not settings:
        raise Refusal("the manifest lists no setting", thing="drift", remedy=remedy)
    return manifest, settings, observer


def entries(judged: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Settings as a report holds them, without what a run that changes things would say of changes."""
    found = [{key: value for key, value in one.items() if key not in ("before", "changed")} for one in judged]
    return sorted(found, key=lambda entry: (entry["owner"], entry["kind"], entry["name"]))


def of_dict(content: Mapping[str, Any]) -> DriftReport:
    """A report from its JSON form."""
    return DriftReport(
        content["host"],
        content["time"],
        content["boot_id"],
        content["error"] or "",
        content["manifest"],
        list(content["settings"]),
        list(content["warnings"]),
    )


def _host(system: System) -> str:
    try:
        return system.read_value("/proc/sys/kernel/hostname")
    except OSError:
        return "unknown"


def _previous(system: System) -> dict[tuple[str, str], dict[str, Any]]:
    """The settings of the last report. One that cannot be used costs the dates, never the check."""
    try:
        found = load_json(system, PATH, "drift report") or {}
    except Refusal:
        return {}
    settings = found.get("settings")
    return {
        (entry.get("kind", ""), entry.get("name", "")): entry
        for entry in (settings if isinstance(settings, list) else [])
        if isinstance(entry, dict)
    }


def _date(
    report: DriftReport,
    previous: Mapping[tuple[str, str], Mapping[str, Any]],
    now: datetime.datetime,
    grace_seconds: float,
) -> None:
    """Since when each setting that is not in sync is so, and which pending ones have waited too long."""
    for entry in report.settings:
        if entry["verdict"] == "in_sync":
            continue
        before = previous.get((entry["kind"], entry["name"]), {})
        since, boot = report.time, report.boot_id
        if _continues(entry, before, report.boot_id) and _instant(before.get("since")):
            # A clock that was set back must not date anything into the future.
            since, boot = min(before["since"], report.time), before.get("since_boot", "")
        entry["since"], entry["since_boot"] = since, boot
        if entry["verdict"] in PENDING:
            started = _instant(since) or now
            waited = (now - started).total_seconds() > grace_seconds
            # What waits for a boot and has seen one is not waiting.
            entry["overdue"] = waited or (entry["verdict"] == "pending_reboot" and boot != report.boot_id)


def _continues(entry: Mapping[str, Any], before: Mapping[str, Any], boot_id: str) -> bool:
    verdict = entry.get("waived_verdict") or entry["verdict"]
    if (before.get("waived_verdict") or before.get("verdict")) != verdict:
        return False
    if before.get("desired") != entry["desired"]:
        return False
    return verdict not in _OF_THIS_BOOT or before.get("since_boot") == boot_id


def _instant(text: Any) -> datetime.datetime | None:
    try:
        return datetime.datetime.strptime(text, _INSTANT).replace(tzinfo=datetime.timezone.utc)
    except (TypeError, ValueError):
        return None
