"""The plan of each machine as a text that a person has read: tests/golden/cpu_plan/MACHINE.txt.

Each holds both policies without any further wish: the picture with sets and reasons, and the masks; or the
refusal's words. HOSTTUNE_WRITE_PLANS=1 writes the files instead of comparing: read the difference before you
commit it, as somebody who has to trade on that machine. Plans of real machines are compared where those are.
"""

from __future__ import annotations

import os
import textwrap

import pytest
from hosttune import cpupicture, cpuplan
from hosttune.model import Refusal
from machines import ALL, OWN, RECORDED, REPO, TALLY, load

GOLDEN = REPO / "tests/golden/cpu_plan"


def text(topology):
    """Both policies on one machine."""
    parts = []
    for policy in cpuplan.POLICIES:
        parts.append(f"==== policy {policy}")
        try:
            plan = cpuplan.plan(topology, {"policy": policy})
        except Refusal as refusal:
            parts += [*textwrap.wrap(f"refused: {refusal}", 110), ""]
            continue
        parts += [cpupicture.picture(topology, plan), "", "masks"]
        parts += [f"  {name:<12} {plan[name]['mask']}" for name in (*cpuplan.PARTS, "isolated")]
        parts.append("")
    return "\n".join(parts)


@pytest.mark.parametrize("path", ALL)
def test_the_plan_is_the_one_that_was_read(path):
    found, file = text(load(path)), GOLDEN / f"{path.stem}.txt"
    if os.environ.get("HOSTTUNE_WRITE_PLANS"):
        file.write_text(found)
    assert file.exists(), "write it with HOSTTUNE_WRITE_PLANS=1 and read it"
    assert file.read_text() == found, "write it with HOSTTUNE_WRITE_PLANS=1 and read the difference"
    TALLY.saw("planned as their golden file says", path)


def test_the_picture_in_the_documentation_is_one_of_them():
    _, _, rest = (REPO / "docs/cpu_plan.md").read_text().partition("```text\n")
    shown = rest.partition("\n```")[0]
    assert shown.startswith("Intel(R) Xeon(R) Platinum 8259CL")
    assert shown in (GOLDEN / "mpibind-g4dnmetal.txt").read_text()


def test_no_golden_file_is_left_over():
    """Every file is of a machine; where the real ones are not here, of 20 that are elsewhere."""
    names = {path.stem for path in GOLDEN.glob("*.txt")}
    if RECORDED:
        assert names == {path.stem for path in [*OWN, *RECORDED]}
    else:
        assert names >= {path.stem for path in OWN}
        assert len(names) == len(OWN) + 20
