"""Kind nic against the system's own tools: `ethtool` for live values, udev's net_setup_link for .link files.

`udevadm test-builtin net_setup_link` of systemd 252 really applies what the file says, so that both the file
that decides and the values it brings are seen. It is done to interfaces made for the test, in namespaces of
their own: the host may not change those of its network namespace.
"""

from __future__ import annotations

import random

from planting import PLANTING, REMOVAL, seed

TREES = 700
FOLDERS = (
    *("/etc/systemd/network", "/run/systemd/network"),
    *("/usr/local/lib/systemd/network", "/usr/lib/systemd/network"),
)
NAMES = (
    *("05-htx-a.link", "10-htx-b.link", "10-htx-C.link", "50-htx.link", "73-htx.link"),
    *("99-default.link", "zz-htx.link", "60-hosttune-htx.link"),
)
DROPINS = ("10-htx.conf", "50-htx.conf", "60-hosttune-htx.conf", "zz-htx.conf")
#: A pair of veths and a bridge, with addresses that are theirs alone.
MATCHES = (
    *("MACAddress=02:00:00:00:00:0a", "MACAddress=02-00-00-00-00-0A", "MACAddress=nonsense", "MACAddress="),
    *("MACAddress=0200.0000.000b 02:00:00:00:00:0a", "MACAddress=02:00:00:00:00:0b"),
    *("PermanentMACAddress=00:00:00:00:00:00", "PermanentMACAddress=02:00:00:00:00:0a"),
    *(
        "OriginalName=*",
        "OriginalName=*",
        "OriginalName=htx*",
        "OriginalName=!htxv",
        "OriginalName=htxd htxv",
    ),
    *('OriginalName="htxv"', "OriginalName=a-name-that-is-too-long", "OriginalName=", "OriginalName=h\\txv"),
    *("OriginalName=htxv all", "OriginalName=!htxd htxv", "OriginalName=[^h]*", "OriginalName=[!x]tx?"),
    *("Path=pci-*", "Path=!pci-*", "Driver=veth", "Driver=!dummy", "Driver=[vd]*", 'Driver="veth" dummy'),
    *("Driver='veth", "Driver=dummy 'veth", "Driver=ve\\th", "Driver=", "Type=ether", "Type=!ether"),
    *(
        "Type=eth?r wlan",
        "Type=bridge",
        "Kind=veth",
        "Kind=!veth",
        "Kind=*",
        "Kind=bridge",
        "Property=INTERFACE=htxv",
    ),
    *("Property=!INTERFACE=htxv", "Property=IFINDEX=*", "Property=NOSUCH=*", "Property=bad", "Property="),
    *('Property="INTERFACE=htx[vd]"', "Property=INTERFACE=htxv IFINDEX=0", "Host=*", "Host=!*-C1"),
    *("Host=NOSUCH", "Host=*-C?", "Host=", "Virtualization=yes", "Virtualization=container"),
    *("Virtualization=vm", "Virtualization=systemd-nspawn", "Virtualization=!container", "Virtualization=no"),
    *("KernelVersion=>=4", "KernelVersion=[4-9].*", "KernelVersion=<3.1", "KernelVersion=!>=4"),
    *("KernelVersion=> 3.2", "KernelVersion=>=4 <4.1", "KernelVersion==1", "KernelCommandLine=nosuch"),
    *("KernelCommandLine=!nosuch", "Credential=x", "Credential=!x", "Architecture=native"),
    *("Architecture=nosuch", "Architecture=!arm64", "Firmware=uefi", "Firmware=!uefi", "Firmware=nosuch"),
    *("Nosuch=1", "kind=veth", "no equals sign", "=veth"),
)
SWITCHES = (
    *("GenericReceiveOffload", "GenericSegmentationOffload", "TCPSegmentationOffload"),
    *("TCP6SegmentationOffload", "ReceiveVLANCTAGHardwareAcceleration", "ReceiveChecksumOffload"),
)
VALUES = {
    **{name: ("yes", "no", "off", "ON", "", "nonsense", "1") for name in SWITCHES},
    **dict.fromkeys(("RxChannels", "TxChannels"), ("1", "2", "3", "max", "", "0", "0x2", "-1", "x")),
    "MTUBytes": ("1400", "1K", "1500", "", "x", "0x500", "1000 400"),
    "TransmitQueueLength": ("500", "0", "0x100", "010", "-1", "", "4294967295", "x"),
    "RxBufferSize": ("max", "512"),
    "Nosuch": ("1",),
    "Description": ("a\\", "b"),
}
#: Directive -> group and key of ours that say the same.
KEYS = {
    "GenericReceiveOffload": ("features", "gro"),
    "GenericSegmentationOffload": ("features", "gso"),
    "TCPSegmentationOffload": ("features", "tx-tcp-segmentation"),
    "TCP6SegmentationOffload": ("features", "tx-tcp6-segmentation"),
    "ReceiveVLANCTAGHardwareAcceleration": ("features", "rxvlan"),
    "ReceiveChecksumOffload": ("features", "rx"),
    "RxChannels": ("channels", "rx"),
    "TxChannels": ("channels", "tx"),
    "MTUBytes": ("link", "mtu"),
    "TransmitQueueLength": ("link", "txqueuelen"),
}


class Tree:
    """One random tree of .link files and drop-ins."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        #: few, so that drop-ins speak of what their file does
        self.directives = chance.sample(sorted(VALUES), 4)
        found: dict[str, list[str]] = {}
        for _ in range(chance.randrange(1, 6)):
            name = chance.choice(NAMES)
            self.add(found, f"{chance.choice(FOLDERS)}/{name}", chance.random() < 0.85)
            for _ in range(chance.choice([0, 1, 1, 2])):
                dropin = f"{chance.choice(FOLDERS)}/{name}.d/{chance.choice(DROPINS)}"
                self.add(found, dropin, chance.random() < 0.25)
        found.pop("/usr/lib/systemd/network/99-default.link", None)  # that one stands there
        self.entries = [[path, how, content] for path, (how, content) in sorted(found.items())]

    def add(self, found: dict[str, list[str]], path: str, matches: bool) -> None:
        dice = self.chance.randrange(16)
        if dice == 0:
            found.setdefault(path, ["link", "/dev/null"])
        elif dice == 1:
            found.setdefault(path, ["file", ""])
        elif dice == 2:
            found.setdefault(f"{path}.bak", ["file", self.text(matches)])
        else:
            found.setdefault(path, ["file", self.text(matches)])

    def text(self, matches: bool) -> str:
        chance = self.chance
        lines = []
        if matches:
            lines.append("[Match]")
            lines += chance.sample(MATCHES, chance.choice([1, 1, 1, 2, 3]))
        lines.append(chance.choice(["[Link]"] * 8 + ["[link]", "[X-Other]"]))
        for name in chance.sample(self.directives, chance.choice([1, 2, 3, 4])):
            lines.append(f"{name}={chance.choice(VALUES[name])}")
        if chance.random() < 0.1:
            lines.insert(
                chance.randrange(len(lines)), chance.choice(["[Broken", "# [Broken", "; x", "[Match]"])
            )
        return "\n".join(lines) + chance.choice(["\n", ""])


#: A wrong resolver each; the comparison has to catch every one.
FAULTS = {
    "": "",
    "vendor beats admin": "links.FOLDERS = tuple(reversed(links.FOLDERS[:4]))",
    "no mask by name": """
right = links.ordered_files
links.ordered_files = lambda system, folders, suffix: sorted(
    (path for folder in folders[:4] for path in right(system, [folder], suffix)), key=os.path.basename)""",
    "order by folder, not by name": """
right = links.ordered_files
def wrong(system, folders, suffix):
    rank = {folder: -at for at, folder in enumerate(folders)}
    return sorted(right(system, folders, suffix), key=lambda one: rank[os.path.dirname(one)])
links.ordered_files = wrong""",
    "no drop-ins": """
right = links.ordered_files
links.ordered_files = lambda *words: right(*words) if words[2] == ".link" else []""",
    "the last match wins": """
right = links.winner
links.winner = lambda files, nic, machine: right(list(reversed(files)), nic, machine)""",
    "an empty [Match] fits all": "links.LinkFile.matches_nothing = False",
    "no conditions": "links.LinkFile._fits_condition = staticmethod(lambda *words: True)",
    "no negation": """
right = links._fits_list
links._fits_list = lambda patterns, text: right([one.lstrip("!") for one in patterns], text)""",
    "lists replace": """
right = links.LinkFile._extend
def wrong(self, key, value):
    self.lists.pop(key, None)
    right(self, key, value)
links.LinkFile._extend = wrong""",
    "an empty value says nothing": """
right = links.LinkFile.said
def wrong(self, directive):
    kept = self._link
    self._link = {name: [one for one in lines if one.value] for name, lines in kept.items()}
    try:
        return right(self, directive)
    finally:
        self._link = kept
links.LinkFile.said = wrong""",
    "a broken header ends the reading": """
right = links.assignments
links.assignments = lambda text, file, whole: right(text, file)""",
    "the first assignment counts": """
right = links.LinkFile.said
links.LinkFile.said = lambda self, directive: right(self, directive)[:1]""",
}

PROGRAM = (
    REMOVAL
    + PLANTING
    + """
import re, subprocess
if "--inside" not in sys.argv:
    inside = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c",
              'mount -t sysfs none /sys && exec "$@"', "sh", sys.executable, *sys.argv, "--inside"]
    os.execvp(inside[0], inside)
sys.path.insert(0, ".")
from hosttune import ethtool, ethtool_set, links
from hosttune.kinds import nic
from hosttune.system import System
asked = json.load(sys.stdin)
NICS = ("htxv", "htxd")
host, tool = System(), ethtool.Ethtool()

def sh(*words):
    ended = subprocess.run(words, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{words}: {ended.stderr}")
    return ended.stdout

def live(name):
    found, seen = {}, nic.Live(tool, host)
    for directive, (group, key) in asked["keys"].items():
        try:
            found[directive] = seen.value(name, group, key)
        except (nic.Absent, nic.Fixed):
            pass
    return found

def put(name, values):
    kind = nic.NicKind(host)
    failed = kind._set({f"{name}/{'/'.join(asked['keys'][one])}": value for one, value in values.items()})
    if failed:
        raise SystemExit(str(failed))

def oracle(name):
    said = sh("udevadm", "test-builtin", "net_setup_link", f"/sys/class/net/{name}")
    file = re.search(r"^ID_NET_LINK_FILE=(.*)$", said, re.M)
    return file[1] if file else None

def resolve(fault):
    saved = dict(vars(links))
    methods = dict(vars(links.LinkFile))
    try:
        exec(fault, globals())
        files = links.load(host)
        machine = links.Machine(host)
        known = links.nics(host, tool)
        found = {}
        for name in NICS:
            file, doubts = links.winner(files, known[name], machine)
            values = {}
            for directive, (group, key) in asked["keys"].items():
                said = file and nic._definitions(file, group, key, nic.Live(tool, host), name)
                if said:
                    values[directive] = said[-1].value
            found[name] = {"file": file and file.file, "values": values, "doubts": doubts}
        return found
    finally:
        vars(links).update(saved)
        for name, value in methods.items():
            if vars(links.LinkFile).get(name) is not value:
                setattr(links.LinkFile, name, value)

answer = []
sh("ip", "link", "add", "htxv", "address", "02:00:00:00:00:0a", "numrxqueues", "2", "numtxqueues", "2",
   "type", "veth", "peer", "name", "htxw")
sh("ip", "link", "add", "htxd", "address", "02:00:00:00:00:0b", "type", "bridge")
before = {name: live(name) for name in NICS}
for entries in asked["trees"]:
    made = plant(entries)
    try:
        ours = {name: resolve(one) for name, one in asked["faults"].items()}
        theirs = {}
        for name in NICS:
            file = oracle(name)
            theirs[name] = {"file": file, "values": live(name)}
            put(name, {one: value for one, value in before[name].items()
                       if theirs[name]["values"][one] != value})
        answer.append({"theirs": theirs, "ours": ours})
    finally:
        remove(made)
json.dump({"before": before, "answer": answer}, sys.stdout)
"""
)


def differs(before, theirs, ours) -> str:
    """Why what ours says of an interface is not what udev did to it; empty where it is."""
    if theirs["file"] != ours["file"]:
        return f"udev takes {theirs['file']}, ours {ours['file']}"
    shall = {one: ours["values"].get(one, value) for one, value in before.items()}
    wrong = [
        f"{one} is {theirs['values'][one]}, ours says {shall[one]}"
        for one in shall
        if theirs["values"][one] != shall[one]
    ]
    return "; ".join(wrong)


def test_the_file_that_decides_and_its_values_are_those_of_udev(host, capsys):
    number = seed()
    chance = random.Random(number)  # noqa: S311
    trees = [Tree(chance) for _ in range(TREES)]
    asked = {"trees": [one.entries for one in trees], "keys": KEYS, "faults": FAULTS}
    found = host.python(PROGRAM, asked, timeout=570)
    wrong: dict[str, list[str]] = {name: [] for name in FAULTS}
    brought = ours_wins = 0
    for tree, one in zip(trees, found["answer"]):
        for name, theirs in one["theirs"].items():
            for fault, ours in one["ours"].items():
                why = differs(found["before"][name], theirs, ours[name])
                if why:
                    wrong[fault].append(f"{name}: {why}; {tree.entries}")
            ours_wins += theirs["file"] is not None and "htx" in theirs["file"]
            brought += len(one["ours"][""][name]["values"])
    caught = {fault: len(said) for fault, said in wrong.items() if fault}
    said = f"{len(trees)} trees, {ours_wins} files of theirs that decide, {brought} values"
    with capsys.disabled():
        print(f"\nnic: {said}, {len(wrong[''])} disagreements, seed {number}; faults caught: {caught}")
    assert not wrong[""], "\n".join(wrong[""][:5])
    assert len(found["answer"]) == TREES and ours_wins > TREES / 4 and brought > TREES / 2
    assert all(caught.values()), caught


#: Reads every group of every interface with ours, changes what can be changed, reads again; in between the
#: texts of `ethtool`. `apply` is one of the engine's calls.
READER = """
import json, os, subprocess, sys
if "--inside" not in sys.argv:
    inside = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c",
              'mount -t sysfs none /sys && exec "$@"', "sh", sys.executable, *sys.argv, "--inside"]
    os.execvp(inside[0], inside)
sys.path.insert(0, ".")
from hosttune import ethtool
from hosttune.kinds import nic
from hosttune.system import System
asked = json.load(sys.stdin)
host, tool = System(), ethtool.Ethtool()

def look():
    found = {}
    seen = nic.Live(tool, host)
    for name in seen.links():
        mine = found[name] = {}
        for group, flag in asked["flags"].items():
            keys = sorted(seen.features(name)) if group == "features" else ethtool.GROUPS[group].keys
            keys = [*keys, *ethtool.ALIASES] if group == "features" else keys
            values = {}
            for key in keys:
                try:
                    values[key] = seen.value(name, group, key)
                except nic.Fixed as fixed:
                    values[key] = f"{fixed} [fixed]"
                except nic.Absent:
                    values[key] = "n/a"
            ended = subprocess.run(["ethtool", flag, name], capture_output=True, text=True)
            mine[group] = {"ours": values, "theirs": ended.stdout, "status": ended.returncode,
                           "maxima": {key: seen.numbers(name, group).maximum(key) for key in keys}
                           if group in ("ring", "channels") and ended.returncode == 0 else {}}
    return found

subprocess.run(["sh", "-ec", asked["make"]], check=True)
answer = [look()]
kind = nic.NicKind(host)
for values in asked["set"]:
    failed = kind._set(values)
    answer.append({"failed": failed, "after": look()})
json.dump(answer, sys.stdout)
"""
FLAGS = {"ring": "-g", "channels": "-l", "coalesce": "-c", "pause": "-a", "features": "-k"}
#: What ethtool calls our keys where it prints them.
LABELS = {
    **{"ring": {"rx": "RX", "rx-mini": "RX Mini", "rx-jumbo": "RX Jumbo", "tx": "TX"}},
    **{"channels": {"rx": "RX", "tx": "TX", "other": "Other", "combined": "Combined"}},
    **{"pause": {"autoneg": "Autonegotiate", "rx": "RX", "tx": "TX"}},
}


def printed(group: str, text: str) -> tuple[dict[str, str], dict[str, str]]:
    """What ethtool printed: values by our keys, and maxima."""
    found: dict[str, str] = {}
    maxima: dict[str, str] = {}
    into = found
    names = {label: key for key, label in LABELS.get(group, {}).items()}
    for line in text.splitlines()[1:]:
        if "maximums" in line:
            into = maxima
        elif line.startswith("Current hardware"):
            into = found
        elif group == "coalesce" and line.startswith("Adaptive"):
            words = line.replace(":", "").split()
            found["adaptive-rx"], found["adaptive-tx"] = words[2], words[4]
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip()
            into[names.get(name, name)] = value.strip()
    return found, maxima


def compare(seen) -> tuple[int, list[str]]:
    """How many values of ours were compared with ethtool's, and which differ."""
    compared, wrong = 0, []
    for name, groups in seen.items():
        for group, one in groups.items():
            theirs, maxima = printed(group, one["theirs"])
            for key, ours in one["ours"].items():
                said = theirs.get(key)
                if one["status"]:
                    said = "n/a"
                elif said is None:
                    continue  # a short name of a feature: its members stand there
                if group == "features":
                    said = said.replace(" [requested on]", "").replace(" [requested off]", "")
                compared += 1
                if ours != said:
                    wrong.append(f"{name} {group} {key}: ours {ours}, ethtool {said}")
            for key, most in one["maxima"].items():
                if maxima.get(key, "n/a") != (str(most) if most else "n/a"):
                    wrong.append(f"{name} {group} {key}: maximum {most}, ethtool {maxima.get(key)}")
    return compared, wrong


def test_live_values_are_those_that_ethtool_prints_before_and_after_a_change(host, capsys):
    asked = {
        "flags": FLAGS,
        "make": "ip link add htxv numrxqueues 4 numtxqueues 4 type veth peer name htxw;"
        "ip link add htxd type bridge; ip link set htxv up; ip link set htxw up",
        "set": [
            {"htxv/channels/rx": "3", "htxv/channels/tx": "2", "htxv/features/gro": "on"},
            {"htxv/features/tso": "off", "htxv/features/rxvlan": "off", "htxv/link/mtu": "1400"},
            {"htxd/features/tx-nocache-copy": "on", "htxv/features/tso": "on"},
            {"htxv/channels/rx": "9"},
        ],
    }
    answer = host.python(READER, asked)
    total, disagreements = 0, []
    for seen in (answer[0], *(one["after"] for one in answer[1:])):
        compared, wrong = compare(seen)
        total += compared
        disagreements += wrong
    with capsys.disabled():
        print(f"\nnic: {total} live values compared with ethtool, {len(disagreements)} disagreements")
    assert not disagreements, disagreements[:10]
    assert total > 500
    assert [one["failed"] for one in answer[1:4]] == [{}, {}, {}]
    assert "veth refused channels rx 9" in answer[4]["failed"]["htxv/channels/rx"]
    first, then = answer[0]["htxv"], answer[3]["after"]["htxv"]
    assert (first["channels"]["ours"]["rx"], then["channels"]["ours"]["rx"]) == ("4", "3")
    assert answer[2]["after"]["htxv"]["features"]["ours"]["tso"] == "off"
    assert then["features"]["ours"]["tso"] == "on"


def test_a_container_without_the_right_to_set_its_interfaces_is_told_so_and_left_alone(host):
    before = host.run("ethtool -k eth0")
    wanted = {"net": {"nic": {"eth0/features/gro": "off", "eth0/features/gso": "off"}}}
    found = host.converge(wanted, disruption_allowed="resets")
    assert not found["failures"], found
    assert {one["verdict"] for one in found["settings"]} == {"unsupported"}
    assert "CAP_NET_ADMIN" in found["settings"][0]["reason"]
    assert found["settings"][0]["live"] in ("on", "off")
    assert host.run("ethtool -k eth0") == before
    refused = host.converge({"net": {"nic": {"eth1/features/gro": "off"}}})
    assert "no network interface eth1" in refused["refused"] and "eth0" in refused["remedy"]
