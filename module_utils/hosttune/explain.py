"""One declared setting with all that is known of it: planes, verdict, why, and what it was before the suite.

Judged as playbooks/plan.yml judges it, against what the roles declare now; `hosttune-drift --explain` asks
the manifest instead. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import asking, engine, store
from .system import System


def explain(system: System, request: engine.Request, asked: str) -> list[dict[str, Any]]:
    """A judged setting each, with `notes` and `was`: the ledger's entry, null where it was never touched.

    `request` is the whole host's, as for a plan; raises Refusal.
    """
    meant = asking.find(
        (
            (kind, name)
            for kinds in request.owners.values()
            for kind, names in kinds.items()
            for name in names
        ),
        asked,
        "is declared for this host",
        "docs/settings.md lists them all; setting='KIND NAME' names one of several",
    )
    report = engine.converge(system, replace(request, check=True, judge_only=True))
    ledger = store.Ledger(system)
    found = []
    for judged in report.settings:
        if judged.setting.key in meant:
            was = ledger.entry(*judged.setting.key)
            found.append({**judged.as_dict(), "notes": judged.setting.notes, "was": _was(was)})
    return found


def _was(entry: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {key: entry[key] for key in ("live", "persisted", "verdict", "run") if key in entry}
