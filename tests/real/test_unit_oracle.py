"""Kind unit against systemd itself: random trees of unit files and drop-ins, `systemctl show` as the oracle.

Every line of a tree has a value of its own (as far as the directive has so many), so that the value which
systemd shows names the line that won.
"""

from __future__ import annotations

import random
import shlex

import pytest
from planting import Planted, seed

TREES = 300  # in each of two batches
FOLDERS = (
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
)
#: What is planted here, a generator of ours copies to the folder of generators at each daemon-reload.
GENERATED = {
    "/run/htx-generator/generator": "/run/systemd/generator",
    "/run/htx-generator/generator.early": "/run/systemd/generator.early",
    "/run/htx-generator/generator.late": "/run/systemd/generator.late",
}
GENERATOR = """#!/bin/sh
cp -rP /run/htx-generator/generator/. "$1"
cp -rP /run/htx-generator/generator.early/. "$2"
cp -rP /run/htx-generator/generator.late/. "$3"
"""
CONFIGS = ["10-a.conf", "20-b.conf", "20-B.conf", "5-x.conf", "60-hosttune-r.conf", "zz.conf", "ä.conf"]

SIGNALS = {"SIGINT": 2, "SIGQUIT": 3, "SIGUSR1": 10, "SIGUSR2": 12, "SIGHUP": 1, "SIGCONT": 18}


def span(seconds: int) -> str:
    """How systemd prints a time span."""
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            parts.append(f"{seconds // length}{unit}")
            seconds %= length
    return " ".join(parts) or "0"


def ranges(cpus: set[int]) -> str:
    """How systemd prints a set of CPUs."""
    found = []
    for one in sorted(cpus):
        if found and found[-1][1] == one - 1:
            found[-1][1] = one
        else:
            found.append([one, one])
    return " ".join(str(low) if low == high else f"{low}-{high}" for low, high in found)


class Values:
    """Fresh values of directives in random spellings, and how `systemctl show` prints each.

    `printed` maps (directive, the text as reported) to the properties, or for lists of CPUs to the set.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.count = chance, chance.randrange(100, 200)
        self.printed: dict[tuple[str, str], dict[str, str]] = {}

    def fresh(self) -> int:
        self.count += 1
        return self.count

    def line(self, directive: str) -> str:
        """An assignment; one in six resets, one in eight is none that systemd takes."""
        dice = self.chance.randrange(24)
        if dice < 4:
            value = ""
        elif dice < 7 and directive in INVALID:
            value = self.chance.choice(INVALID[directive])
        else:
            value, shown = getattr(self, directive)()
            if directive == "TimeoutStopSec" and self.chance.random() < 0.2:
                directive, both = "TimeoutSec", shown["TimeoutStopUSec"]
                self.printed["TimeoutStopSec", " ".join(value.split())] = {"TimeoutStopUSec": both}
            self.printed[directive, " ".join(value.split())] = shown
        blanks = ["", " ", "\t", "  "]
        before, after, around = (self.chance.choice(blanks) for _ in range(3))
        if value and " " in value and self.chance.random() < 0.3:
            comment = self.chance.choice(["", "# between\n", "  ; between\n"])
            value = value.replace(" ", f" \\\n{comment}", 1)
        return f"{before}{directive}{around}={after}{value}{around}"

    def number(self, number: int) -> str:
        return self.chance.choice([str(number), str(number), hex(number), f"+{number}"])

    def LimitNOFILE(self):
        number = self.fresh()
        if self.chance.random() < 0.5:
            return str(number), {"LimitNOFILESoft": str(number), "LimitNOFILE": str(number)}
        hard = self.chance.choice([str(number + 1000), "infinity"])
        return f"{number}:{hard}", {"LimitNOFILESoft": str(number), "LimitNOFILE": hard}

    def LimitMEMLOCK(self):
        number = self.fresh()
        shown = str(number * 1024)
        return self.chance.choice([f"{number}K", shown]), {"LimitMEMLOCKSoft": shown, "LimitMEMLOCK": shown}

    def LimitRTTIME(self):
        number = self.fresh()
        shown = str(number * 1000)
        return self.chance.choice([f"{number}ms", shown]), {"LimitRTTIMESoft": shown, "LimitRTTIME": shown}

    def TasksMax(self):
        number = self.fresh()
        return str(number), {"TasksMax": str(number)}

    def MemoryMax(self):
        number = self.fresh()
        text = self.chance.choice(
            [f"{number}M", f"{number * 1024}K", str(number << 20), f"{number} M", f"{number}.0M"]
        )
        return text, {"MemoryMax": str(number << 20)}

    def CPUWeight(self):
        number = self.fresh()
        return self.number(number), {"CPUWeight": str(number)}

    def IOWeight(self):
        number = self.fresh()
        return self.number(number), {"IOWeight": str(number)}

    def CPUQuota(self):
        number = self.fresh()
        shown = f"{number / 100:.6f}s" if number % 100 else span(number // 100)
        return f"{number}%", {"CPUQuotaPerSecUSec": shown}

    def Nice(self):
        number = self.chance.randrange(-20, 20)
        return str(number), {"Nice": str(number)}

    def OOMScoreAdjust(self):
        number = self.fresh() % 1000 * self.chance.choice([1, -1])
        return str(number), {"OOMScoreAdjust": str(number)}

    def LimitNPROC(self):
        number = self.fresh()
        return self.number(number), {"LimitNPROCSoft": str(number), "LimitNPROC": str(number)}

    def _seconds(self, property_: str):
        number = self.fresh()
        text = self.chance.choice([str(number), f"{number}s", f"{number * 1000}ms", span(number)])
        return text, {property_: span(number)}

    def TimeoutStopSec(self):
        return self._seconds("TimeoutStopUSec")

    def RestartSec(self):
        return self._seconds("RestartUSec")

    def StartLimitIntervalSec(self):
        return self._seconds("StartLimitIntervalUSec")

    def StartLimitBurst(self):
        number = self.fresh()
        return self.number(number), {"StartLimitBurst": str(number)}

    def Restart(self):
        word = self.chance.choice(
            ["always", "on-failure", "on-success", "on-abnormal", "on-abort", "on-watchdog"]
        )
        return word, {"Restart": word}

    def KillSignal(self):
        name, number = self.chance.choice(list(SIGNALS.items()))
        return self.chance.choice([name, name[3:], str(number)]), {"KillSignal": str(number)}

    def UMask(self):
        number = self.chance.randrange(0o777)
        return f"{number:o}", {"UMask": f"{number:04o}"}

    def NoNewPrivileges(self):
        word = self.chance.choice(["yes", "no", "ON", "0", "t", "False"])
        return word, {"NoNewPrivileges": "yes" if word in ("yes", "ON", "t") else "no"}

    def ProtectSystem(self):
        word = self.chance.choice(["yes", "full", "strict", "1", "off"])
        return word, {"ProtectSystem": {"1": "yes", "off": "no"}.get(word, word)}

    def NUMAPolicy(self):
        word = self.chance.choice(["bind", "preferred", "interleave", "local"])
        return word, {"NUMAPolicy": word}

    def IOSchedulingClass(self):
        word, number = self.chance.choice(
            [("idle", "3"), ("best-effort", "2"), ("realtime", "1"), ("3", "3")]
        )
        return word, {"IOSchedulingClass": number}

    def _cpus(self, property_: str, most: int):
        text, cpus = [], set()
        for _ in range(self.chance.randrange(1, 4)):
            low = self.chance.randrange(most)
            high = low + self.chance.randrange(3)
            cpus |= set(range(low, high + 1))
            text.append(str(low) if low == high else f"{low}-{high}")
        return self.chance.choice([" ", ",", ", "]).join(text), {property_: " ".join(map(str, sorted(cpus)))}

    def CPUAffinity(self):
        return self._cpus("CPUAffinity", 120)

    def AllowedCPUs(self):
        return self._cpus("AllowedCPUs", 120)

    def NUMAMask(self):
        return self._cpus("NUMAMask", 60)

    def CoredumpFilter(self):
        number = 1 << self.chance.randrange(9)
        return f"{number:x}", {"CoredumpFilter": f"0x{number:x}"}

    def Description(self):
        number = self.fresh()
        return f"{number} of  %n", {"Description": f"{number} of UNIT"}


INVALID = {
    "LimitNOFILE": ["many", "9:3", "5 : 6", "-1", "1K"],
    "LimitMEMLOCK": ["1Z", "much"],
    "LimitNPROC": ["-5", "08", "1.5"],
    "TasksMax": ["0", "5K", "some"],
    "MemoryMax": ["12Q", "big"],
    "CPUWeight": ["0", "10001", "heavy"],
    "IOWeight": ["0", "10001", "idle"],
    "CPUQuota": ["0%", "20", "x%"],
    "Nice": ["20", "-21", "nice"],
    "OOMScoreAdjust": ["1001", "-1001", "x"],
    "TimeoutStopSec": ["soon", "5 parsecs"],
    "RestartSec": ["soon"],
    "StartLimitIntervalSec": ["soon"],
    "StartLimitBurst": ["-1", "x"],
    "Restart": ["maybe", "Always"],
    "KillSignal": ["SIGNOT", "999"],
    "UMask": ["99", "x", "0o22"],
    "NoNewPrivileges": ["maybe"],
    "ProtectSystem": ["half"],
    "NUMAPolicy": ["near"],
    "IOSchedulingClass": ["9", "best"],
    "CPUAffinity": ["x", "5-"],
    "AllowedCPUs": ["x"],
    "NUMAMask": ["x"],
}
UNIT_DIRECTIVES = ("StartLimitIntervalSec", "StartLimitBurst", "Description")
DIRECTIVES = tuple(name for name in vars(Values) if name[0].isupper())
SETS = ("CPUAffinity", "AllowedCPUs", "NUMAMask")
#: A type-wide drop-in holds for the host's own services too: only what reaches no process that runs.
HARMLESS = (
    "LimitNOFILE",
    "TimeoutStopSec",
    "RestartSec",
    "StartLimitBurst",
    "CPUAffinity",
    "UMask",
    "OOMScoreAdjust",
)
PROPERTIES = {
    **{one: (one,) for one in DIRECTIVES},
    **{one: (f"{one}Soft", one) for one in DIRECTIVES if one.startswith("Limit")},
    **{one: (f"{one[:-3]}USec",) for one in DIRECTIVES if one.endswith("Sec")},
    "CPUQuota": ("CPUQuotaPerSecUSec",),
}


def section_of(directive: str) -> str:
    return "Unit" if directive in UNIT_DIRECTIVES else "Service"


class Batch:
    """Random trees of units called htx-...; `entries` go to the host, `units` are asked about."""

    def __init__(self, chance: random.Random, trees: int) -> None:
        self.chance, self.values = chance, Values(chance)
        self.entries: dict[str, tuple[str, str]] = {}
        self.units: dict[str, list[str]] = {}
        self.folders = (*FOLDERS, *GENERATED)
        self.add("/etc/systemd/system-generators/htx-generator", "file", GENERATOR)
        for folder in GENERATED:
            self.add(f"{folder}/htx-seed.service", "file", self.text(["Nice"], True))
        self.add("/usr/lib/systemd/system/htx-plain@.service", "file", self.text([], True))
        for _ in range(3):
            self.dropin("service", HARMLESS)
        for number in range(trees):
            self.tree(number)

    def add(self, path: str, how: str, content: str) -> None:
        self.entries.setdefault(path, (how, content))

    def text(self, directives, whole: bool = False) -> str:
        """The text of a fragment (`whole`) or a drop-in with up to eight assignments of `directives`."""
        chance = self.chance
        lines = ["[Service]\nExecStart=/bin/true"] if whole else []
        section = "Service" if whole else ""
        for _ in range(chance.randrange(1, 8) if directives else 0):
            directive = chance.choice(directives)
            own = section_of(directive)
            dice = chance.randrange(20)
            if dice == 0:
                lines.append(
                    chance.choice(["# LimitNOFILE=1", "  ; Nice=1", "", "no assignment", "[X-Other]"])
                )
                section = "" if lines[-1] == "[X-Other]" else section
            elif dice == 1:
                lines.append(self.values.line(directive) if not section else "")  # in no section: ignored
            if own != section:
                lines.append(f"{chance.choice(['', ' '])}[{own}]")
                section = own
            lines.append(self.values.line(directive))
        ending = chance.choice(["", "\n", "\n", "\n"])
        text = "\n".join(lines) + ending
        if chance.random() < 0.05:
            text = text.replace("\n", "\r\n")
        return "\ufeff" + text if chance.random() < 0.05 else text

    def dropin(self, name: str, directives) -> None:
        """A drop-in, a mask or what looks like one below NAME.d."""
        folder = f"{self.chance.choice(self.folders)}/{name}.d"
        base = self.chance.choice(CONFIGS)
        dice = self.chance.randrange(24)
        if folder in self.entries or any(path.startswith(f"{folder}/{base}/") for path in self.entries):
            return  # a link to a folder, or a folder called as a drop-in
        if dice == 0:
            self.add(f"{folder}/{base}", "link", "/dev/null")
        elif dice == 1:
            self.add(f"{folder}/{base}", "file", "")
        elif dice == 2:
            self.add(f"{folder}/{base}", "link", "/run/htx-nowhere")
        elif dice == 3:
            self.add(f"{folder}/.{base}", "file", self.text(directives))
        elif dice == 4:
            self.add(f"{folder}/{base}~", "file", self.text(directives))
        elif dice == 5 and f"{folder}/{base}" not in self.entries:
            self.add(f"{folder}/{base}/inside", "file", "a folder says nothing and masks its name")
        elif dice == 6:
            path = f"/opt/htx/{len(self.entries)}.conf"
            self.add(path, "file", self.text(directives))
            self.add(f"{folder}/{base}", "link", path)
        elif dice == 7 and not any(path.startswith(folder + "/") for path in self.entries):
            self.add(f"/opt/htx/{len(self.entries)}.d/{base}", "file", self.text(directives))
            self.add(folder, "link", f"/opt/htx/{len(self.entries) - 1}.d")
        else:
            self.add(f"{folder}/{base}", "file", self.text(directives))

    def tree(self, number: int) -> None:
        chance = self.chance
        directives = chance.sample(DIRECTIVES, chance.randrange(2, 6))
        stem = f"htx-{number}" + "".join(
            chance.choice(["-a", "-b", "c", "-", r"\x2d", "_"]) for _ in range(3)
        )
        folder = chance.choice(self.folders)
        names = []
        if chance.random() < 0.4:
            template, unit = f"{stem}@.service", f"{stem}@{chance.choice(['x', 'in-st', 'a.b', '7'])}.service"
            self.add(f"{folder}/{template}", "file", self.text(directives, True))
            if chance.random() < 0.2:
                self.add(f"{chance.choice(self.folders)}/{unit}", "file", self.text(directives, True))
            names += [template]
        else:
            unit = f"{stem}.service"
            self.add(f"{folder}/{unit}", "file", self.text(directives, True))
            if chance.random() < 0.2:
                alias = f"htx-{number}-al-ias.service"
                self.add(f"/etc/systemd/system/{alias}", "link", f"{GENERATED.get(folder, folder)}/{unit}")
                names += [alias]
        for _ in range(chance.randrange(2)):
            dice = chance.randrange(8)
            weak = chance.choice(self.folders)
            if dice == 0:
                self.add(f"{weak}/{unit}", "link", "/dev/null")
            elif dice == 1:
                self.add(f"{weak}/{unit}", "file", "")
            elif dice == 2:
                self.add(f"/opt/htx/{unit}", "file", self.text(directives, True))
                self.add(f"{weak}/{unit}", "link", f"/opt/htx/{unit}")
            else:
                self.add(f"{weak}/{unit}", "file", self.text(directives, True))
        prefix = unit.partition("@")[0].removesuffix(".service")
        for at, letter in enumerate(prefix):
            if letter == "-" and at > 3:
                names += [f"{prefix[: at + 1]}.service"]
                if "@" in unit:
                    names += [f"{prefix[: at + 1]}@{unit.partition('@')[2]}", f"{prefix[: at + 1]}@.service"]
        for _ in range(chance.randrange(1, 7)):
            self.dropin(chance.choice([unit, unit, *names]), directives)
        self.units[unit] = directives


RESOLVE = """
import json, os, sys
sys.path.insert(0, ".")
from hosttune import systemd
from hosttune.kinds import base, manager, unit
from hosttune.system import System
asked = json.load(sys.stdin)
exec(asked["fault"])
host = System()
kind = unit.UnitKind(host)
names = [f"{one}/{section}/{word}" for one, words in asked["units"].items() for section, word in words]
read = kind.read(names)
answer = {"names": {}, "files": {}}
def place(path):
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
for name, planes in read.items():
    winner = planes.winner
    text = ""
    if winner and winner.line:
        with open(winner.file, errors="surrogateescape") as stream:
            text = stream.read().split("\\n")[winner.line - 1]
    answer["names"][name] = {
        "problem": planes.unknown or planes.unsupported,
        "needs": planes.needs,
        "live": planes.live,
        "definitions": [[one.value, place(one.file), one.line] for one in planes.definitions],
        "text": text,
    }
for one in asked["units"]:
    shown = asked["names"][one]
    first = systemd.fragment(host, one)
    found = systemd.dropins(host, one, [alias for alias in shown if alias != one])
    answer["files"][one] = [place(path) for path in ([first] if first else []) + found]
json.dump(answer, sys.stdout)
"""
SHOW = """
import json, os, shlex, subprocess, sys
asked = json.load(sys.stdin)
command = ["systemctl", "show", "--property=" + ",".join(asked["properties"]), "--", *asked["units"]]
blocks = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\\n\\n")
def place(path):
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
answer = {}
for name, block in zip(asked["units"], blocks):
    shown = dict(line.split("=", 1) for line in block.strip().split("\\n"))
    answer[name] = shown
    files = [shown["FragmentPath"], *shlex.split(shown["DropInPaths"])]
    shown["files"] = [place(one) for one in files if one]
json.dump(answer, sys.stdout)
"""
FACTS = ("Id", "Names", "LoadState", "FragmentPath", "DropInPaths", "NeedDaemonReload")

#: A wrong resolver each; the comparison has to catch every one.
FAULTS = {
    "vendor beats admin": "systemd.UNIT_FOLDERS = tuple(reversed(systemd.UNIT_FOLDERS))",
    "no mask by name": """
right = systemd.dropins
def wrong(system, unit, aliases=()):
    found = right(system, unit, aliases)
    places = [f"{folder}/{name}.d" for name in systemd.dropin_names(unit)
              for folder in systemd.unit_folders(system)]
    others = [f"{folder}/{os.path.basename(one)}" for one in found for folder in places]
    others = [one for one in others if one not in found and system.exists(one)]
    return sorted([*found, *others], key=os.path.basename)
systemd.dropins = unit.dropins = wrong""",
    "order by folder, not by name": """
right = systemd.dropins
def wrong(system, unit, aliases=()):
    folders = systemd.unit_folders(system)
    rank = {folder: -at for at, folder in enumerate(folders)}
    return sorted(right(system, unit, aliases), key=lambda one: rank[os.path.dirname(os.path.dirname(one))])
systemd.dropins = unit.dropins = wrong""",
    "no reset by an empty assignment": """
right = unit.definitions
def wrong(lines, *words, **options):
    return right([one for one in lines if one.value], *words, **options)
unit.definitions = wrong""",
    "no prefixes": "systemd.dropin_names = lambda unit: [*{unit: 1, systemd.template_of(unit): 1}]",
    "no instances": """
right = systemd.dropin_names
systemd.dropin_names = lambda unit: right(systemd.template_of(unit))""",
    "no templates": """
right = systemd.dropin_names
systemd.dropin_names = lambda unit: [one for one in right(unit) if "@." not in one]""",
    "no aliases": """
right = systemd.dropins
systemd.dropins = unit.dropins = lambda system, unit, aliases=(): right(system, unit)""",
    "what systemd refuses counts": "unit.takes = lambda directive, value: True",
}


class Oracle:
    """One batch on the host and what systemd says of it."""

    def __init__(self, machine, batch: Batch, defaults: dict[str, dict[str, str]]) -> None:
        self.machine, self.batch, self.defaults = machine, batch, defaults
        wanted = sorted({one for names in PROPERTIES.values() for one in names})
        self.shown = machine.python(SHOW, {"properties": [*FACTS, *wanted], "units": list(batch.units)})

    def loaded(self) -> list[str]:
        return [unit for unit, shown in self.shown.items() if shown["LoadState"] == "loaded"]

    def disagreements(self, fault: str = "") -> list[str]:
        """What our resolver and systemd say differently, in words."""
        answer = self.machine.python(
            RESOLVE,
            {
                "fault": fault,
                "units": {one: [(section_of(word), word) for word in DIRECTIVES] for one in self.batch.units},
                "names": {one: shlex.split(shown["Names"]) for one, shown in self.shown.items()},
            },
        )
        found = []
        for unit, shown in self.shown.items():
            if shown["LoadState"] != "loaded":
                said = {answer["names"][f"{unit}/{section_of(one)}/{one}"]["problem"] for one in DIRECTIVES}
                if "" in said:
                    found.append(f"{unit} is {shown['LoadState']}, ours knows its values")
                continue
            if answer["files"][unit] != shown["files"]:
                found.append(f"{unit}: files {answer['files'][unit]}, systemd {shown['files']}")
            for directive in DIRECTIVES:
                ours = answer["names"][f"{unit}/{section_of(directive)}/{directive}"]
                why = ours["problem"] or self.differs(unit, directive, ours)
                if why:
                    found.append(f"{unit} {directive}: {why}; ours {ours}")
        return found

    def differs(self, unit: str, directive: str, ours) -> str:
        """Why what ours reports is not what systemd shows; empty where it is."""
        shown = {one: self.shown[unit][one] for one in PROPERTIES[directive]}
        definitions = ours["definitions"]
        if ours["needs"] != "none":
            return f"needs {ours['needs']}, systemd shows {shown}"
        if not definitions or not definitions[-1][0]:
            default = {one: self.defaults[one] for one in PROPERTIES[directive]}
            if directive == "Description":
                default = {"Description": unit}
            if directive == "NUMAPolicy" and self.shown[unit]["NUMAMask"]:
                default = {"NUMAPolicy": "preferred"}  # what a mask without a policy means
            return "" if shown == default else f"systemd shows {shown}, not the default {default}"
        value, file, _line = definitions[-1]
        if file not in self.shown[unit]["files"]:
            return f"{file} is none that systemd reads"
        if directive in SETS:
            return "" if cpus(value) == cpus(shown[directive]) else f"systemd shows {shown}"
        if directive == "CoredumpFilter":
            bits = 0
            for word in value.split():
                bits |= int(word, 16)
            return "" if bits == int(shown[directive], 16) else f"systemd shows {shown}"
        if directive == "Description":
            return "" if value == " ".join(shown[directive].split()) else f"systemd shows {shown}"
        expected = self.batch.values.printed.get((directive, value))
        if expected is None:
            return f"{value} is none that systemd takes; it shows {shown}"
        return "" if expected == shown else f"systemd shows {shown}, the winner would be {expected}"


def cpus(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.replace(",", " ").split():
        low, _, high = part.partition("-")
        found |= set(range(int(low), int(high or low) + 1))
    return found


@pytest.fixture
def reloaded(host):
    yield host
    host.run("rm -rf /run/htx-* ; systemctl daemon-reload; systemctl reset-failed")


def defaults_of(host) -> dict[str, str]:
    """The properties of a service that no file says anything of."""
    with Planted(
        host, [["/run/systemd/system/htx-plain.service", "file", "[Service]\nExecStart=/bin/true\n"]]
    ):
        host.run("systemctl daemon-reload")
        wanted = sorted({one for names in PROPERTIES.values() for one in names})
        return host.python(SHOW, {"properties": [*FACTS, *wanted], "units": ["htx-plain.service"]})[
            "htx-plain.service"
        ]


def plant(host, batch: Batch) -> Planted:
    entries = [[path, how, content] for path, (how, content) in sorted(batch.entries.items())]
    return Planted(host, entries)


def test_random_trees_of_units_are_read_as_systemd_reads_them(reloaded, capsys):
    number = seed()
    chance = random.Random(number)  # noqa: S311
    defaults = defaults_of(reloaded)
    compared, wrong, caught = 0, [], dict.fromkeys(FAULTS, 0)
    for repeated in (False, True):
        batch = Batch(chance, TREES)
        with plant(reloaded, batch):
            reloaded.run(
                "chmod 755 /etc/systemd/system-generators/htx-generator; systemctl daemon-reload", timeout=120
            )
            oracle = Oracle(reloaded, batch, defaults)
            compared += len(oracle.loaded())
            wrong += oracle.disagreements()
            for name, fault in FAULTS.items() if not repeated else ():
                caught[name] += len(oracle.disagreements(fault))
    with capsys.disabled():
        print(f"\nunit: {compared} trees, {len(wrong)} disagreements, seed {number}; faults caught: {caught}")
    assert not wrong, "\n".join(wrong[:20])
    assert compared >= 500
    assert all(caught.values()), caught


UNIT = "htx-live.service"
SERVICE = "[Service]\nExecStart=/bin/sleep 100000\nLimitNOFILE=1000:2000\nUMask=0022\n"
OURS = f"/etc/systemd/system/{UNIT}.d/60-hosttune-limits.conf"


@pytest.fixture
def running(host):
    """A service that runs with LimitNOFILE=1000:2000 of its vendor's file."""
    with Planted(host, [[f"/usr/lib/systemd/system/{UNIT}", "file", SERVICE]]):
        host.run(f"systemctl daemon-reload; systemctl start {UNIT}")
        yield host
        host.run(f"rm -f /etc/systemd/system/{UNIT}.d/99-htx.conf; systemctl daemon-reload")
        host.undo()
        host.run(f"systemctl stop {UNIT}")
    host.run("systemctl daemon-reload")


def planes_of(host, name):
    """The verdict of the drift check, and what stands where."""
    found = {one["name"]: one for one in host.drift()["settings"]}[name]
    return found["verdict"], found["live"], found["persisted"]["value"], found.get("process")


def test_what_is_on_disk_loaded_and_running_is_told_apart(running):
    host, name = running, f"{UNIT}/Service/LimitNOFILE"
    applied = host.converge({"limits": {"unit": {name: "1500:1800"}}})
    # Persisted and loaded; the process that runs still has what it began with.
    assert host.verdicts(applied) == {name: "pending_restart"}, applied
    assert planes_of(host, name) == ("pending_restart", "1500:1800", "1500:1800", "1000:2000")
    host.run(f"systemctl restart {UNIT}")
    assert planes_of(host, name) == ("in_sync", "1500:1800", "1500:1800", "1500:1800")

    # A stronger drop-in that nobody has loaded: right now, wrong from the next reload on.
    host.put({f"/etc/systemd/system/{UNIT}.d/99-htx.conf": "[Service]\nLimitNOFILE=1100:1200\n"})
    assert host.run(f"systemctl show --value -p NeedDaemonReload {UNIT}").strip() == "yes"
    assert planes_of(host, name) == ("boot_bomb", "1500:1800", "1100:1200", "1500:1800")
    host.run("systemctl daemon-reload")
    assert planes_of(host, name) == ("drift", "1100:1200", "1100:1200", "1500:1800")
    host.run(f"systemctl restart {UNIT}")
    assert planes_of(host, name) == ("drift", "1100:1200", "1100:1200", "1100:1200")

    # Gone from disk, still loaded: a reload heals what is live, the process waits for its restart.
    host.run(f"rm /etc/systemd/system/{UNIT}.d/99-htx.conf")
    assert planes_of(host, name) == ("live_drift", "1100:1200", "1500:1800", "1100:1200")
    host.run("systemctl daemon-reload")
    assert planes_of(host, name) == ("pending_restart", "1500:1800", "1500:1800", "1100:1200")

    # A changed process (prlimit) of a unit that is right.
    host.run(f"systemctl restart {UNIT}")
    host.run(f"prlimit --nofile=1400:1800 --pid $(systemctl show --value -p MainPID {UNIT})")
    assert planes_of(host, name) == ("pending_restart", "1500:1800", "1500:1800", "1400:1800")
    host.run(f"systemctl restart {UNIT}")

    # Our own file edited and not loaded, then mended by the next run.
    host.run(f"sed -i s/1500:1800/1600:1700/ {OURS}")
    assert planes_of(host, name)[:3] == ("boot_bomb", "1500:1800", "1600:1700")
    assert host.verdicts(host.converge({"limits": {"unit": {name: "1500:1800"}}})) == {name: "in_sync"}
    shown = host.run(f"systemctl show -p LimitNOFILE,LimitNOFILESoft {UNIT}").split()
    assert sorted(shown) == ["LimitNOFILE=1800", "LimitNOFILESoft=1500"]


def test_what_systemd_refuses_hides_nothing(running):
    """A later line that systemd refuses neither wins nor makes drift; one that resets does."""
    host, names = running, [f"{UNIT}/Service/LimitNOFILE", f"{UNIT}/Service/OOMScoreAdjust"]
    wanted = {names[0]: "1500:1800", names[1]: "123"}
    host.converge({"limits": {"unit": wanted}})
    host.run(f"systemctl restart {UNIT}")
    with Planted(
        host,
        [[f"/etc/systemd/system/{UNIT}.d/99-htx.conf", "file", "[Service]\nLimitNOFILE=\nOOMScoreAdjust=\n"]],
    ):
        host.run("systemctl daemon-reload")
        assert planes_of(host, names[0])[0] == "in_sync"
        assert planes_of(host, names[1]) == ("drift", "0", "", "123")
    host.run("systemctl daemon-reload")
    assert {planes_of(host, name)[0] for name in names} == {"in_sync"}
