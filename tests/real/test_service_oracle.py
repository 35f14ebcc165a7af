"""Kind service against systemctl itself: random links, `systemctl --root=/ is-enabled` as the oracle.

With --root systemctl reads the folders itself and asks no manager: what it says is what the next boot finds.
"""

from __future__ import annotations

import random
import re

import pytest
from planting import Planted, seed

UNITS = 150  # in each of two batches
FOLDERS = ("/usr/lib/systemd/system", "/usr/local/lib/systemd/system", "/etc/systemd/system")
LINKS = ("/etc/systemd/system", "/run/systemd/system")
INSTALL = (
    "",
    "[Install]\nWantedBy=multi-user.target\n",
    "[Install]\nRequiredBy=htx-other.target\n",
    "[Install]\nAlias=htx-ALIAS.service\n",
    "[Install]\nAlso=htx-also.service\n",
    "[Install]\nWantedBy=multi-user.target\nAlias=htx-ALIAS.service\n",
)


class Batch:
    """Units, those that run, and links and masks that somebody makes while they run."""

    def __init__(self, chance: random.Random) -> None:
        files: dict[str, list[str]] = {}
        links: dict[str, list[str]] = {}
        self.units, self.running = [], []
        service = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
        files["/usr/lib/systemd/system/htx-also.service"] = ["file", service]
        for number in range(UNITS):
            folder, stem = chance.choice(FOLDERS), f"htx-{number}"
            is_instance = chance.random() < 0.25
            unit = f"{stem}@x.service" if is_instance else f"{stem}.service"
            path = f"{folder}/{stem}@.service" if is_instance else f"{folder}/{unit}"
            install = chance.choice(INSTALL).replace("ALIAS", f"{number}-alias")
            if is_instance and "WantedBy" in install and chance.random() < 0.3:
                install += "DefaultInstance=x\n"
            files[path] = ["file", service + install]
            self.units.append(unit)
            if chance.random() < 0.5:
                self.running.append(unit)
            for _ in range(chance.choice([0, 1, 1, 2])):
                where = chance.choice(LINKS)
                target = chance.choice(["multi-user.target.wants", "htx-other.target.requires"])
                alias = f"htx-{number}-alias.service"
                dice = chance.randrange(6)
                if dice == 0 and f"{where}/{unit}" not in files:
                    links.setdefault(f"{where}/{unit}", ["link", "/dev/null"])
                elif dice == 1 and f"{where}/{unit}" not in files:
                    links.setdefault(f"{where}/{unit}", ["file", ""])
                elif dice == 2 and not is_instance:
                    links.setdefault(f"{where}/{alias}", ["link", path])
                else:
                    links.setdefault(f"{where}/{target}/{unit}", ["link", path])
        self.files = [[path, *rest] for path, rest in sorted(files.items())]
        self.links = [[path, *rest] for path, rest in sorted(links.items())]


#: A wrong reader each; the comparison has to catch every one.
FAULTS = {
    "": "",
    "what the manager remembers": """
from hosttune.systemd import Systemd
def wrong(self, units):
    return {unit: found["UnitFileState"] for unit, found in self.show(units, ["UnitFileState"]).items()}
Systemd.enablement = wrong""",
    "for this boot is for ever": """
right = Systemd.enablement
Systemd.enablement = lambda self, units: {
    unit: state.replace("-runtime", "") for unit, state in right(self, units).items()}""",
    "answers in another order": """
right = Systemd.enablement
def wrong(self, units):
    found = right(self, units)
    return dict(zip(found, reversed(list(found.values()))))
Systemd.enablement = wrong""",
}
READ = """
import json, os, subprocess, sys
sys.path.insert(0, ".")
from hosttune.kinds import service
from hosttune.system import System
from hosttune.systemd import Systemd
asked = json.load(sys.stdin)
answer = {"theirs": {}, "ours": {}}
for unit in asked["units"]:
    said = subprocess.run(["systemctl", "--root=/", "is-enabled", unit], capture_output=True, text=True)
    answer["theirs"][unit] = said.stdout.strip()
for name, fault in asked["faults"].items():
    right = Systemd.enablement
    exec(fault)
    read = service.ServiceKind(System()).read(asked["units"])
    Systemd.enablement = right
    answer["ours"][name] = {
        unit: [one.winner.value, one.winner.file] if one.winner else ["", one.unknown]
        for unit, one in read.items()
    }
shown = subprocess.run(["systemctl", "show", "--property=FragmentPath", "--", *asked["units"]],
                       capture_output=True, text=True, check=True).stdout.split("\\n\\n")
answer["files"] = {unit: one.strip().partition("=")[2] for unit, one in zip(asked["units"], shown)}
json.dump(answer, sys.stdout)
"""


@pytest.fixture
def reloaded(host):
    yield host
    host.run("systemctl stop 'htx-*.service'; systemctl daemon-reload; systemctl reset-failed")


def test_random_links_are_judged_as_the_next_boot_finds_them(reloaded, capsys):
    number = seed()
    chance = random.Random(number)  # noqa: S311
    wrong: dict[str, list[str]] = {name: [] for name in FAULTS}
    compared, states = 0, set()
    for _ in range(2):
        batch = Batch(chance)
        with Planted(reloaded, batch.files):
            reloaded.run(f"systemctl daemon-reload; systemctl start {' '.join(batch.running)}")
            asked = {"units": batch.units, "faults": FAULTS}
            # Everybody has been asked once: what the manager remembers is what it was before the links came.
            reloaded.python(READ, asked)
            with Planted(reloaded, batch.links):
                found = reloaded.python(READ, asked)
                reloaded.run("systemctl daemon-reload")
                after = reloaded.python(READ, {"units": batch.units, "faults": {"": ""}})
            reloaded.run("systemctl stop 'htx-*.service'")
        for unit, state in found["theirs"].items():
            compared += 1
            states.add(state)
            for fault, read in found["ours"].items():
                if read[unit][0] != state:
                    wrong[fault].append(f"{unit}: ours {read[unit]}, is-enabled {state}")
            if after["ours"][""][unit][0] != state:
                wrong[""].append(f"{unit} after a reload: ours {after['ours'][''][unit]}, is-enabled {state}")
            file = re.sub("^/lib/", "/usr/lib/", after["files"][unit])
            ours = re.sub("^/lib/", "/usr/lib/", after["ours"][""][unit][1])
            if ours != file:
                wrong[""].append(f"{unit}: ours is decided by {ours}, systemd by {file}")
    caught = {fault: len(said) for fault, said in wrong.items() if fault}
    said = f"{compared} units, {len(wrong[''])} disagreements, seed {number}; faults caught: {caught}"
    with capsys.disabled():
        print(f"\nservice: {said}")
    assert not wrong[""], "\n".join(wrong[""][:20])
    assert compared == 2 * UNITS and len(states) >= 6
    assert all(caught.values()), caught
