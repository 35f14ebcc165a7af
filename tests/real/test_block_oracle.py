"""Kind block against udev itself: random trees of rules, `udevadm test` as the oracle.

`udevadm test` of systemd 252 really writes attributes; the host is a container whose /sys is read-only, so
that the kernel refuses each write, and udev's log says which rule would have written what. The test makes
sure of that first.
"""

from __future__ import annotations

import random

from planting import PLANTING, REMOVAL, seed

TREES = 200
DISKS = ("vda", "loop0")
FOLDERS = ("/etc/udev/rules.d", "/run/udev/rules.d", "/usr/local/lib/udev/rules.d", "/usr/lib/udev/rules.d")
NAMES = (
    "10-htx-a.rules",
    "55-htx-b.rules",
    "60-htx-C.rules",
    "60-htx-c.rules",
    "60-hosttune-htx.rules",
    "zz-htx.rules",
)
ATTRIBUTES = ("queue/nr_requests", "queue/read_ahead_kb", "queue/iosched/none")
#: Some fit, some do not, some are no matches at all.
MATCHES = (
    'ACTION=="add|change"',
    'ACTION=="add"',
    'ACTION!="remove"',
    'ACTION=="change"',
    'KERNEL=="vda"',
    'KERNEL=="loop[0-9]"',
    'KERNEL=="loop[^0]"',
    'KERNEL=="vd*|sd*"',
    'KERNEL!="loop*"',
    'SUBSYSTEM=="block"',
    'SUBSYSTEM!="block"',
    'ENV{DEVTYPE}=="disk"',
    'ENV{DEVTYPE}=="partition"',
    'ENV{DEVNAME}=="/dev/vd?"',
    'ENV{HTX}=="1"',
    'ENV{HTX}!="1"',
    'ENV{HTX_FOREIGN}=="1"',
    'ATTR{queue/rotational}=="0"',
    'ATTR{queue/rotational}=="1"',
    'ATTR{queue/rotational}!="0"',
    'ATTR{queue/nosuch}!="x"',
    'ATTR{queue/scheduler}=="*none*"',
    'ATTR{size}=="?*"',
    'ATTRS{queue/rotational}=="[01]"',
    'ATTRS{vendor}=="0x*"',
    'ATTRS{vendor}=="0x*", ATTRS{size}=="?*"',
    'SUBSYSTEMS=="virtio"',
    'SUBSYSTEMS=="pci", DRIVERS=="virtio-pci"',
    'SUBSYSTEMS!="pci"',
    'KERNELS=="loop*"',
    'DRIVERS=="virtio_blk"',
    'DEVPATH=="*/virtual/*"',
    'DEVPATH!="*/virtual/*"',
    'TEST=="queue/nr_requests"',
    'TEST!="queue/nr_requests"',
    'PROGRAM=="/bin/true"',
)
BROKEN = (
    'KERNEL="vda"',
    'NOSUCH=="x"',
    'KERNEL=="vda',
    "KERNEL==vda",
    'ATTR=="x"',
    'ACTION:="add"',
    'TEST="x"',
)


class Tree:
    """One random tree; every assignment has a value of its own."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.count = chance, 1000
        found: dict[str, list[str]] = {}
        for _ in range(chance.randrange(1, 7)):
            name = chance.choice(NAMES)
            path = f"{chance.choice(FOLDERS)}/{name}"
            dice = chance.randrange(14)
            if dice == 0:
                found.setdefault(path, ["link", "/dev/null"])
            elif dice == 1:
                found.setdefault(path, ["file", ""])
            elif dice == 2:
                found.setdefault(path.replace(name, f".{name}"), ["file", self.text()])
            elif dice == 3:
                found.setdefault(f"{path}.bak", ["file", self.text()])
            else:
                found.setdefault(path, ["file", self.text()])
        self.entries = [[path, how, content] for path, (how, content) in sorted(found.items())]

    def text(self) -> str:
        chance = self.chance
        lines = []
        for _ in range(chance.randrange(1, 9)):
            dice = chance.randrange(16)
            if dice == 0:
                lines.append('# KERNEL=="vda", ATTR{queue/nr_requests}="1"')
            elif dice == 1:
                lines.append(chance.choice(['LABEL="htx_end"', 'LABEL="htx_other"', ""]))
            elif dice == 2:
                lines.append(self.rule(["ENV{HTX}=" + chance.choice(['"1"', '"2"', '""'])]))
            elif dice in (3, 4):
                leading = chance.choice(["htx_end", "htx_other", "htx_nowhere"])
                lines.append(self.rule([f'GOTO="{leading}"'], most=1))
            else:
                lines.append(self.rule([self.assignment() for _ in range(chance.choice([1, 1, 2]))]))
        if chance.random() < 0.6:
            lines += ['LABEL="htx_end"', 'LABEL="htx_other"']
        return "\n".join(lines) + chance.choice(["\n", ""])

    def assignment(self) -> str:
        self.count += 1
        sign = self.chance.choice(["=", "=", "=", ":=", "+="])
        return f'ATTR{{{self.chance.choice(ATTRIBUTES)}}}{sign}"{self.count}"'

    def rule(self, what: list[str], most: int = 3) -> str:
        chance = self.chance
        matches = chance.sample(MATCHES, min(most, chance.choice([0, 1, 1, 2, 2, 3])))
        if chance.random() < 0.08:
            matches.append(chance.choice(BROKEN))
        if chance.random() < 0.1:
            what = [*what, f'LABEL="{chance.choice(["htx_end", "htx_other"])}"']
        parts = [*matches, *what]
        if chance.random() < 0.1:
            chance.shuffle(parts)
        comma = chance.choice([", ", ",", " , "])
        text = comma.join(parts)
        if chance.random() < 0.1:
            text = text.replace(comma, ",\\\n" + chance.choice(["", "  ", "# between\n"]), 1)
        return chance.choice(["", "", "  "]) + text + chance.choice(["", "", ",", "  "])


#: A wrong resolver each; the comparison has to catch every one.
FAULTS = {
    "": "",
    "vendor beats admin": "block.RULES_FOLDERS = tuple(reversed(block.RULES_FOLDERS))",
    "no mask by name": """
def wrong(system, folders, suffix):
    found = [f"{folder}/{name}" for folder in folders[:4] for name in system.names(folder)]
    return sorted((one for one in found if one.endswith(suffix)), key=os.path.basename)
block.ordered_files = wrong""",
    "order by folder, not by name": """
right = block.ordered_files
def wrong(system, folders, suffix):
    rank = {folder: -at for at, folder in enumerate(folders)}
    return sorted(right(system, folders, suffix), key=lambda one: rank[os.path.dirname(one)])
block.ordered_files = wrong""",
    "no GOTO": """
right = block.Rule.get
block.Rule.get = lambda self, key: "" if key == "GOTO" else right(self, key)""",
    "GOTO to nowhere skips the rest": """
right = block.parse_rules
nowhere = block.Rule((block.Token("LABEL", "", "=", "htx_nowhere"),), 9999)
block.parse_rules = lambda *words: [*right(*words), nowhere]""",
    "no conditions": "block._fits = lambda *words: True",
    "no parents": "block.Device.has_parent = lambda self, tokens: True",
    ":= is final": """
right = block.walk
def wrong(rules, device, attribute):
    found, doubts = right(rules, device, attribute)
    final = [at for at, one in enumerate(found) if ":=" in open(one.file).read()]
    return found[: final[0] + 1] if final else found, doubts
block.walk = wrong""",
    "broken lines count": "block._is_valid = lambda token: True",
}

PROGRAM = (
    REMOVAL
    + PLANTING
    + """
import re, subprocess
sys.path.insert(0, ".")
from hosttune.kinds import block
from hosttune.system import System
asked = json.load(sys.stdin)
LINE = re.compile(r"(\\S+): (/\\S+):(\\d+) ATTR '/sys/\\S+/(queue/\\S+)' writing '(.*)'$")

def oracle(disk):
    found = {}
    for action in ("add", "change"):
        command = ["udevadm", "test", f"--action={action}", f"/sys/block/{disk}"]
        said = subprocess.run(command, capture_output=True, text=True)
        for line in (said.stdout + said.stderr).splitlines():
            part = LINE.match(line)
            if part:
                found.setdefault(part[4], {}).setdefault(action, []).append([part[5], part[2]])
    return found

def real(path):
    return re.sub("^/lib/", "/usr/lib/", path)

def resolve(fault):
    saved, get, parent = dict(vars(block)), block.Rule.get, block.Device.has_parent
    try:
        exec(fault, globals())
        host = System()
        files = block.ordered_files(host, block.RULES_FOLDERS, ".rules")
        rules = [(file, block.parse_rules(host, file)) for file in files]
        found = {}
        for disk in asked["disks"]:
            for attribute in asked["attributes"]:
                definitions, doubts = block.walk(rules, block.Device(host, disk), attribute)
                found[f"{disk} {attribute}"] = {
                    "definitions": [[one.value, real(one.file)] for one in definitions],
                    "doubts": [real(one) for one in doubts],
                }
        return found
    finally:
        block.Rule.get, block.Device.has_parent = get, parent
        vars(block).update(saved)

before = {path for path in ("/run/udev", "/dev/disk", "/dev/block") if os.path.lexists(path)}
answer = []
os.makedirs("/run/udev/rules.d", exist_ok=True)
try:
    for entries in asked["trees"]:
        made = plant(entries)
        try:
            theirs = {disk: oracle(disk) for disk in asked["disks"]}
            ours = {name: resolve(one) for name, one in asked["faults"].items()}
            answer.append({"theirs": theirs, "ours": ours})
        finally:
            remove(made)
finally:
    for path in ("/run/udev", "/dev/disk", "/dev/block"):
        if path not in before:
            subprocess.run(["rm", "-rf", path])
json.dump(answer, sys.stdout)
"""
)


def differs(theirs: dict[str, list[list[str]]], ours, lines: dict[str, str]) -> str:
    """Why what ours reports is not what udev does; empty where it is. `lines` has undecided values."""
    written = [pair for action in ("add", "change") for pair in theirs.get(action, [])]
    missing = [pair for pair in written if pair not in ours["definitions"] and pair[0] not in lines]
    added = [pair for pair in ours["definitions"] if pair not in written]
    if missing or added:
        return f"udev writes {missing} beside ours, ours has {added} beside udev's"
    if not ours["doubts"] and written:
        last = max(written, key=lambda pair: ours["definitions"].index(pair))
        per_action = [theirs[action] for action in ("add", "change") if theirs.get(action)]
        if any([pair for pair in ours["definitions"] if pair in one] != one for one in per_action):
            return f"udev writes in the order {per_action}"
        if last != ours["definitions"][-1]:
            return f"udev ends with {last}"
    return ""


def undecided(entries, doubts: list[str]) -> dict[str, str]:
    """The values that stand in lines which our walk leaves undecided."""
    texts = {path: content.split("\n") for path, how, content in entries if how == "file"}
    found = {}
    for place in doubts:
        file, _, line = place.rpartition(":")
        at = int(line) - 1
        while True:
            text = texts[file][at]
            found.update({value: place for value in text.split('"') if value.isdigit()})
            at += 1
            if at >= len(texts[file]) or not (text.endswith("\\") or text.startswith("#")):
                break
    return found


def test_random_rules_are_walked_as_udev_walks_them(host, capsys):
    # Never against a /sys that can be written: udevadm test would set the queues of the machine's own disks.
    flags = host.run("findmnt --noheadings --output OPTIONS --target /sys/block/vda/queue").split(",")
    assert "ro" in flags, flags
    number = seed()
    chance = random.Random(number)  # noqa: S311
    trees = [Tree(chance) for _ in range(TREES)]
    asked = {
        "trees": [one.entries for one in trees],
        "disks": DISKS,
        "attributes": ATTRIBUTES,
        "faults": FAULTS,
    }
    answer = host.python(PROGRAM, asked, timeout=300)
    wrong: dict[str, list[str]] = {name: [] for name in FAULTS}
    decided = walked = 0
    for one, found in zip(trees, answer):
        for fault, ours in found["ours"].items():
            for name, mine in ours.items():
                disk, attribute = name.split()
                theirs = found["theirs"][disk].get(attribute, {})
                why = differs(theirs, mine, undecided(one.entries, mine["doubts"]))
                if why:
                    wrong[fault].append(f"{name}: {why}; udev {theirs}; ours {mine}; {one.entries}")
                if not fault and (theirs or mine["definitions"]):
                    walked += 1
                    decided += not mine["doubts"]
    caught = {fault: len(said) for fault, said in wrong.items() if fault}
    said = f"{len(trees)} trees, {walked} walks that write ({decided} without a doubt)"
    with capsys.disabled():
        print(f"\nblock: {said}, {len(wrong[''])} disagreements, seed {number}; faults caught: {caught}")
    assert not wrong[""], "\n".join(wrong[""][:10])
    assert len(answer) == TREES and decided > walked / 2
    assert all(caught.values()), caught
