"""Kind manager against systemd itself: random trees of system.conf.d, each loaded by a real daemon-reexec."""

from __future__ import annotations

import random

import pytest
from planting import PLANTING, REMOVAL, seed
from test_unit_oracle import span

TREES = 60
FOLDERS = ("/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd")
CONFIGS = ["10-a.conf", "20-b.conf", "20-B.conf", "5-x.conf", "60-hosttune-r.conf", "zz.conf"]
MAIN = "/etc/systemd/system.conf"


class Values:
    """Fresh values in random spellings; `printed` maps (directive, text) to what `systemctl show` says."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.count = chance, chance.randrange(100, 200)
        self.printed: dict[str, dict[str, str]] = {}

    def line(self, name: str) -> str:
        dice = self.chance.randrange(24)
        if dice < 4:
            value = ""
        elif dice < 7:
            value = self.chance.choice(["nonsense", "-3.x", "9:3"])
        else:
            self.count += 1
            value, shown = self.value(name, self.count)
            self.printed[f"{name}={value}"] = shown
        blank = self.chance.choice(["", " ", "\t"])
        return f"{blank}{name}{blank}={blank}{value}{blank}"

    def value(self, name: str, number: int) -> tuple[str, dict[str, str]]:
        if name == "DefaultLimitMEMLOCK":
            return f"{number}K", {name: str(number << 10), f"{name}Soft": str(number << 10)}
        if name.startswith("DefaultLimit"):
            if self.chance.random() < 0.5:
                return str(number), {name: str(number), f"{name}Soft": str(number)}
            return f"{number}:{number + 500}", {name: str(number + 500), f"{name}Soft": str(number)}
        if name == "TimerSlackNSec":
            return self.chance.choice([str(number), f"{number}us"]), {}
        if name.endswith("Sec"):
            text = self.chance.choice([str(number), f"{number}s", f"{number * 1000}ms", span(number)])
            return text, {f"{name[:-3]}USec": span(number)}
        if name.endswith("Accounting"):
            word = self.chance.choice(["yes", "no", "1", "off"])
            return word, {name: "yes" if word in ("yes", "1") else "no"}
        if name == "DefaultOOMPolicy":
            word = self.chance.choice(["kill", "continue"])
            return word, {name: word}
        text = (
            self.chance.choice([str(number), hex(number)])
            if name == "DefaultStartLimitBurst"
            else str(number)
        )
        return text, {name: str(number)}


DIRECTIVES = (
    *("DefaultLimitNOFILE", "DefaultLimitNPROC", "DefaultLimitMEMLOCK", "DefaultLimitCORE"),
    *("DefaultTimeoutStartSec", "DefaultTimeoutStopSec", "DefaultRestartSec", "DefaultStartLimitIntervalSec"),
    *("DefaultDeviceTimeoutSec", "DefaultTimerAccuracySec", "DefaultTasksMax", "DefaultStartLimitBurst"),
    *("DefaultOOMScoreAdjust", "DefaultMemoryAccounting", "DefaultTasksAccounting", "DefaultOOMPolicy"),
)


def tree(chance: random.Random) -> tuple[list[list[str]], dict[str, dict[str, str]]]:
    """The entries of one tree, and how each of its assignments would be shown."""
    values = Values(chance)
    names = chance.sample(DIRECTIVES, 10)
    entries: dict[str, list[str]] = {}

    def text() -> str:
        lines = [] if chance.random() < 0.1 else ["[Manager]"]
        for _ in range(chance.randrange(2, 12)):
            lines += chance.choice(
                [[], [], [], [], ["# DefaultTasksMax=1"], ["[Other]", "DefaultTasksMax=2", "[Manager]"]]
            )
            lines.append(values.line(chance.choice(names)))
        return "\n".join(lines) + chance.choice(["", "\n", "\\", "\\\n# DefaultTasksMax=3"])

    for folder in FOLDERS:
        if chance.random() < 0.4:
            entries[f"{folder}/system.conf"] = ["file", text()]
    for _ in range(chance.randrange(1, 9)):
        path = f"{chance.choice(FOLDERS)}/system.conf.d/{chance.choice(CONFIGS)}"
        dice = chance.randrange(12)
        if dice == 0:
            entries.setdefault(path, ["link", "/dev/null"])
        elif dice == 1:
            entries.setdefault(path, ["file", ""])
        elif dice == 2:
            entries.setdefault(path.replace("conf.d/", "conf.d/."), ["file", text()])
        elif dice == 3:
            entries.setdefault(f"{path}~", ["file", text()])
        else:
            entries.setdefault(path, ["file", text()])
    return [[path, how, content] for path, (how, content) in sorted(entries.items())], values.printed


#: A wrong resolver each; the comparison has to catch every one.
FAULTS = {
    "": "",
    "vendor beats admin": "manager.FOLDERS = (manager.FOLDERS[0], *reversed(manager.FOLDERS))[1:]",
    "no mask by name": """
def wrong(system, folders, suffix):
    found = [f"{folder}/{name}" for folder in folders for name in system.names(folder)]
    return sorted((one for one in found if one.endswith(suffix)), key=os.path.basename)
manager.ordered_files = wrong""",
    "order by folder, not by name": """
right = manager.ordered_files
def wrong(system, folders, suffix):
    rank = {folder: -at for at, folder in enumerate(folders)}
    return sorted(right(system, folders, suffix), key=lambda one: rank[os.path.dirname(one)])
manager.ordered_files = wrong""",
    "no drop-ins": "manager.ordered_files = lambda *words: []",
    "the main file last": """
manager.ManagerKind._files = lambda self: [
    *manager.ordered_files(self.system, [f"{one}/system.conf.d" for one in manager.FOLDERS], ".conf"),
    *self._main_file()]""",
    "the main file in any folder": "manager.MAIN_ANYWHERE = 1",
    "what systemd refuses counts": "manager.takes = lambda name, value: True",
}

PROGRAM = (
    REMOVAL
    + PLANTING
    + """
import subprocess, time
sys.path.insert(0, ".")
from hosttune.kinds import manager
from hosttune.system import System
asked = json.load(sys.stdin)
MAIN, ASIDE = asked["main"], asked["main"] + ".htx-aside"

def shown():
    subprocess.run(["systemctl", "daemon-reexec"], check=False, capture_output=True)
    end = time.monotonic() + 30
    while True:
        ended = subprocess.run(["systemctl", "show"], capture_output=True, text=True)
        if ended.returncode == 0:
            return dict(line.split("=", 1) for line in ended.stdout.splitlines() if "=" in line)
        if time.monotonic() > end:
            raise SystemExit(ended.stderr)
        time.sleep(0.1)

def resolve(fault):
    saved, reader = dict(vars(manager)), manager.ManagerKind._files
    try:
        exec(fault, globals())
        kind = manager.ManagerKind(System())
        read = kind.read(asked["names"])
        return {
            name: {"problem": one.unknown or one.unsupported, "needs": one.needs,
                   "definitions": [[it.value, it.file, it.line] for it in one.definitions]}
            for name, one in read.items()
        }
    finally:
        manager.ManagerKind._files = reader
        vars(manager).update(saved)

def order():
    command = ["systemd-analyze", "cat-config", "systemd/system.conf"]
    said = subprocess.run(command, capture_output=True, text=True)
    dropins = [line[2:] for line in said.stdout.splitlines() if line.startswith("# /") and ".conf.d/" in line]
    ours = [one for one in manager.ManagerKind(System())._files() if ".conf.d/" in one]
    return dropins, ours

os.rename(MAIN, ASIDE)
answer = []
try:
    made = plant([])
    defaults = shown()
    for entries in asked["trees"]:
        made = plant(entries)
        try:
            live = shown()
            faults = {name: resolve(one) for name, one in asked["faults"].items()}
            answer.append({"shown": live, "faults": faults, "order": order()})
        finally:
            remove(made)
finally:
    os.rename(ASIDE, MAIN)
    shown()
json.dump({"defaults": defaults, "trees": answer}, sys.stdout)
"""
)


def differs(name: str, ours, shown, defaults, printed) -> str:
    """Why what ours reports is not what systemd shows; empty where it is."""
    if ours["problem"] or ours["needs"] != "none":
        return ours["problem"] or f"needs {ours['needs']}"
    winner = ours["definitions"][-1][0] if ours["definitions"] else None
    if winner:
        expected = printed.get(f"{name}={winner}")
        if expected is None:
            return f"{winner} is none that systemd takes"
    elif winner == "":
        # Emptied: no limit of tasks, no adjustment.
        expected = {name: "infinity" if name == "DefaultTasksMax" else "0"}
    else:
        names = [name, f"{name}Soft"] if name.startswith("DefaultLimit") else [f"{name[:-3]}USec"]
        expected = {one: defaults[one] for one in names if one in defaults} or {name: defaults[name]}
    found = {one: shown.get(one) for one in expected}
    return "" if found == expected else f"systemd shows {found}, it would be {expected}"


@pytest.fixture
def reexecuted(host):
    yield host
    host.run("systemctl daemon-reexec")


def test_random_trees_of_the_manager_are_read_as_systemd_reads_them(reexecuted, capsys):
    number = seed()
    chance = random.Random(number)  # noqa: S311
    trees = [tree(chance) for _ in range(TREES)]
    asked = {"main": MAIN, "names": DIRECTIVES, "trees": [one for one, _ in trees], "faults": FAULTS}
    answer = reexecuted.python(PROGRAM, asked, timeout=300)
    wrong: dict[str, list[str]] = {name: [] for name in FAULTS}
    for (entries, printed), found in zip(trees, answer["trees"]):
        theirs, ours = found["order"]
        masked = {path for path, how, _content in entries if how == "link"}
        if [one for one in theirs if one not in masked] != ours:
            wrong[""].append(f"order {ours}, systemd-analyze {theirs}")
        for fault, read in found["faults"].items():
            for name in DIRECTIVES:
                why = differs(name, read[name], found["shown"], answer["defaults"], printed)
                if why:
                    wrong[fault].append(f"{name}: {why}; ours {read[name]}")
    caught = {fault: len(said) for fault, said in wrong.items() if fault}
    said = f"{len(trees)} trees, {len(wrong[''])} disagreements, seed {number}; faults caught: {caught}"
    with capsys.disabled():
        print(f"\nmanager: {said}")
    assert not wrong[""], "\n".join(wrong[""][:20])
    assert len(answer["trees"]) == TREES
    assert all(caught.values()), caught
