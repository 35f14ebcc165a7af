"""The machines that reader and planner are tried on, and how many of each were.

`tests/topologies` holds our own, made up with the oddities of real ones. Real ones (20, with truths published
by other tools) lie in `shared/topologies` beside the checkout: their licences keep them out of here, and the
tests of them run where they are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
OWN = sorted((REPO / "tests/topologies").glob("*.json"))
RECORDED = sorted((REPO.parent / "shared/topologies/machines").glob("*.json"))
ALL = [pytest.param(path, id=path.stem) for path in [*OWN, *RECORDED]]


def load(path):
    """A machine, by its file or by the name of one of our own."""
    path = path if isinstance(path, Path) else REPO / "tests/topologies" / f"{path}.json"
    return json.loads(path.read_text())


@dataclass
class Tally:
    """What reader and planner were tried on in this run, by what was tried."""

    own: dict[str, set] = field(default_factory=dict)
    recorded: dict[str, set] = field(default_factory=dict)
    random: int = 0
    plans: int = 0
    refusals: int = 0

    def saw(self, what, path):
        (self.own if path in OWN else self.recorded).setdefault(what, set()).add(path)

    def lines(self):
        found = []
        for what in sorted({*self.own, *self.recorded}):
            own, recorded = len(self.own.get(what, ())), len(self.recorded.get(what, ()))
            here = "" if RECORDED else " (shared/topologies is not beside this checkout)"
            synthetic = f"{own} synthetic, " if own else ""
            found.append(f"machines {what}: {synthetic}{recorded} real{here}")
        if self.random:
            found.append(
                f"random topologies: {self.random}; plans judged by the oracle: {self.plans},"
                f" refusals: {self.refusals}"
            )
        return found


TALLY = Tally()
