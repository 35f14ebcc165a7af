"""Faults by kind and what comes of them, on a booted host: nothing is lost, the next run converges, undo
gives back exactly what was there. fault_rows.py has the kinds, faults.py what befalls them.

HOSTTUNE_WRITE_FAULTS=1 writes docs/faults.md, the table of what was found, instead of comparing it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import fault_rows
import faults
import pytest
from conftest import BASE, ROOT
from hosttune import kinds

DOCUMENT = ROOT / "docs/faults.md"
SSH_LOST = "SSH lost in mid-run"
NAMES = (*list(faults.FAULTS)[:1], SSH_LOST, *list(faults.FAULTS)[1:])
OUTCOMES = (faults.CONVERGES, faults.REFUSED, faults.SAID)


def test_every_kind_has_a_row():
    missing = [kind for kind in kinds.ORDER if kind not in faults.ROWS]
    assert not missing, f"write a row in tests/real/fault_rows.py (ROWS) for: {', '.join(missing)}"


@pytest.fixture(scope="module")
def there(machine):
    """The shared host with faults.py on it."""
    machine.put(
        {f"{BASE}/{Path(one).name}": Path(one).read_bytes() for one in (faults.__file__, fault_rows.__file__)}
    )
    return machine


def ask(machine, what, **request):
    ended = machine.try_run(f"cd {BASE}; exec python3 -B faults.py {what}", json.dumps(request), timeout=900)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout), ended.stderr


@pytest.fixture(scope="module")
def found(there):
    """kind -> fault -> what came of it."""
    rows = [kind for kind in kinds.ORDER if kind in faults.ROWS]
    cells, said = ask(there, "table", kinds=rows)
    for kind, outcome in ssh_lost(there, rows).items():
        cells[kind][SSH_LOST] = outcome
    for by_fault in cells.values():
        for cell in by_fault.values():
            if "wrong" in cell:
                cell["wrong"] += said[-3000:]
    return cells


def ssh_lost(machine, rows):
    """The connection of a run of all kinds dies: one ends with its terminal, another goes on."""
    outcomes = {}
    for own_kernel in (False, True):
        group = [kind for kind in rows if faults.ROWS[kind].own_kernel is own_kernel]
        for terminal in (True, False):
            cell = cut_connection(machine, group, terminal)
            for kind in group:
                if "wrong" not in outcomes.get(kind, {}):
                    outcomes[kind] = cell
    return outcomes


def cut_connection(machine, group, terminal):
    started = f"{BASE}/started"
    slowly = [*(word for word in machine.ssh[:-1]), "-o", "ControlMaster=no", "-o", "ControlPath=none"]
    ask(machine, "set-up", kinds=group)
    try:
        before, _said = ask(machine, "state", kinds=group)
        machine.put({f"{BASE}/request.json": json.dumps({"kinds": group, "started": started})})
        machine.run(f"rm -f {started}")
        client = subprocess.Popen(
            [*slowly, "-tt" if terminal else "-T", machine.ssh[-1],
             f"cd {BASE}; exec python3 -B faults.py slow < request.json"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            machine.run(f"timeout 60 sh -c 'until [ -e {started} ]; do sleep 0.05; done'")
            assert client.poll() is None, "the run ended before its connection was cut"
        finally:
            client.kill()
            client.wait()
        return ask(machine, "finish", kinds=group, before=before, ended=terminal)[0]
    finally:
        ask(machine, "tear-down", kinds=group)


@pytest.mark.parametrize("fault", NAMES)
@pytest.mark.parametrize("kind", [kind for kind in kinds.ORDER if kind in faults.ROWS])
def test_nothing_is_lost(found, kind, fault):
    cell = found[kind][fault]
    assert "wrong" not in cell, cell["wrong"]
    assert cell["outcome"] in OUTCOMES or cell["outcome"].startswith("not applicable: `")


def test_the_committed_table_is_what_was_found(found, capsys):
    text = document(found)
    with capsys.disabled():
        print(f"\n{text[text.index('| fault') :]}")
    if os.environ.get("HOSTTUNE_WRITE_FAULTS"):
        DOCUMENT.write_text(text)
    assert DOCUMENT.read_text() == text, "run it with HOSTTUNE_WRITE_FAULTS=1 and look at the difference"


def document(found):
    """docs/faults.md: the table with a line a fault and a column a kind."""
    kind_names = list(found)
    lines = [
        f"| fault | {' | '.join(kind_names)} |",
        f"|---|{'---|' * len(kind_names)}",
    ]
    for fault in NAMES:
        cells = [found[kind][fault].get("outcome", "**wrong**") for kind in kind_names]
        lines.append(f"| {fault} | {' | '.join(cells)} |")
    return HEAD + "\n".join(lines) + "\n"


HEAD = """\
# Faults

What comes of a run that a fault befalls, by kind of setting. Made by `tests/real/test_faults.py` on a booted
container host with its own systemd, PostgreSQL and Redis; the test fails when this page is no longer what it
finds (`HOSTTUNE_WRITE_FAULTS=1 tools/real-tests tests/real/test_faults.py` writes it). The power cut of a
machine in mid-run, with a kernel and disks of its own, is `molecule/metal/power_cut.yml`.

After each fault, whatever its outcome: the next run converges, the one after that changes nothing, and undo
gives back /etc byte for byte and every live value as the system's own tools print it, with nothing left in
the ledger.

| outcome | means |
|---|---|
| converges | nothing had to be said, or (killed, connection lost) nobody was left to say it |
| refused, untouched | the run ended with a message that names thing or file, and nothing was changed |
| said, converges after | the run, or hosttune-drift, says what is wrong; the rest is done |
| not applicable | with the command that shows it, and what it prints on that host |

- SIGKILL: before each call that writes, applying, and before some undoing; of kinds whose runs take long,
  before the first, the last and around renames and commands.
- SSH lost: a run of all kinds; one dies with its terminal, the next mends what it left; another goes on, and
  the next waits for it.
- Full: a small file system over the folder of the kind's files (over /etc for mount), filled up; read-only:
  the folder mounted so.
- Reads, makes, makes live: the error is what opening the file, writing the value or running the command ends
  with.
- Two runs at once: the outcome is that of the second one, told by name who holds the host, as hosttune-drift
  is; one that waits finds nothing to do. The clock jumps ten years ahead for one run and one check, and back.
- Set back a moment later: the run says so where there is a live value; of a file alone (limit, file)
  hosttune-drift does.
- Waivers that cannot be used waive nothing: a run says so and goes on, hosttune-drift ends with 2.
- mount and sysfs are let work as on a machine: a tmpfs of the host's own, a file mounted over the attribute.

"""
