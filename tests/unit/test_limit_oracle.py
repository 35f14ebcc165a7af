"""Kind limit against pam_limits itself: random files, and the limits of a session that it opens.

A helper in a mount namespace of its own has its files bound over /etc/security, /etc/passwd and /etc/group;
for each tree it forks, opens a session through libpam and tells the limits that this process now has. Every
line gives a number of its own, so that a limit in force names its line.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace

import hosttune.kinds.limit as ours
import pytest
from hosttune.system import System
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracle_trees import Comparison, absent, cases, clear, mostly, need, need_root, put

COMPARISON = Comparison("limit, pam_limits")

USERS = """\
root:x:0:0:root:/root:/bin/sh
trader:x:1001:1001::/:/bin/sh
other:x:1002:1001::/:/bin/sh
"""
GROUPS = "root:x:0:trader\ntrader:x:1001:\nops:x:2000:trader,root\nelse:x:2001:other\n"

HELPER = """
import ctypes, json, os, resource, subprocess, sys
root = sys.argv[1]
for name in ("security", "passwd", "group"):
    subprocess.run(["mount", "--bind", f"{root}/etc/{name}", f"/etc/{name}"], check=True)
pam = ctypes.CDLL("libpam.so.0")
class Conversation(ctypes.Structure):
    _fields_ = [("function", ctypes.c_void_p), ("data", ctypes.c_void_p)]
ITEMS = json.loads(sys.argv[2])
confdir = f"{root}/pam".encode()
print("ready", flush=True)
for line in sys.stdin:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
        handle = ctypes.c_void_p()
        conversation = Conversation()
        begun = pam.pam_start_confdir(
            b"hosttune", line.strip().encode(), ctypes.byref(conversation), confdir, ctypes.byref(handle)
        )
        status = begun or pam.pam_open_session(handle, 0)
        found = {item: resource.getrlimit(number) for item, number in ITEMS.items()}
        os.write(theirs, json.dumps({"status": status, "limits": found}).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as stream:
        print(stream.read(), flush=True)
    os.waitpid(child, 0)
"""

#: item -> what its number is multiplied with (limits.conf(5): KB and minutes)
ITEMS = {"nproc": 1, "core": 1024, "cpu": 60, "sigpending": 1}
NUMBERS = {item: getattr(resource, f"RLIMIT_{item.upper()}") for item in ITEMS}
INFINITY = resource.RLIM_INFINITY
#: CAP_SYS_RESOURCE, bit 24: without it pam_limits can only lower.
CAN_RAISE = any(
    line.startswith("CapEff:") and int(line.split()[1], 16) >> 24 & 1
    for line in open("/proc/self/status")  # noqa: SIM115
)

domains = st.sampled_from(
    [
        *(
            "trader",
            "trader",
            "trader",
            "root",
            "other",
            "*",
            "*",
            "@ops",
            "@trader",
            "@else",
            "@root",
            "Trader",
        ),
        *("1001:", ":1001", "1000:1001", "1002:", "0:", ":0", "1001:1001", "999:1000", "2000:1000", "@:2000"),
        *("@2000:2001", "@1001:", "@3000:", "%ops", "%", "*:", "a:b", "1001", "@", "0:99999", "@0:"),
    ]
)
values = st.sampled_from(
    ["{}", "{}", "{}", "{}", "{}", "unlimited", "-1", "Infinity", "{}x", "x", "{} junk", "", "-", "+{}"]
)
lines = mostly(
    st.builds(
        "{}{} {}{}{} {}{}".format,
        st.sampled_from(["", "", "", " ", "\t", "#"]),
        domains,
        st.sampled_from(["soft", "hard", "-", "SOFT", "Hard", "both"]),
        st.sampled_from([" ", "\t", "  "]),
        st.sampled_from([*ITEMS, *8 * ["nproc"], "NPROC", "nprocs"]),
        values,
        st.sampled_from(["", "", " ", "# x", " # x", "\r", "\x0b"]),
    ),
    st.builds("{} -{}".format, domains, st.sampled_from(["", " ", " # x", " nproc"])),
    st.sampled_from(["", "# x", "trader", "trader hard nproc", "-", "trader - nproc", "\xff hard nproc {}"]),
    of=20,
)
files = st.lists(lines, min_size=2, max_size=6)
places = st.sampled_from(
    [
        *("limits.conf", "limits.d/a.conf", "limits.d/Z.conf", "limits.d/60-hosttune.conf"),
        *("limits.d/90-x.conf", "limits.d/.h.conf", "limits.d/readme"),
    ]
)
trees = st.dictionaries(places, files, min_size=1, max_size=4)


def tree_of(drawn):
    """The drawn files; their numbers count down, so that a later soft limit is below an earlier hard one."""
    count, tree = 0, {"etc/security/limits.conf": b""}
    for path, texts in sorted(drawn.items()):
        made = []
        for text in texts:
            count += 1
            made.append(text.replace("{}", str(900 + count * 7 % 97)))
        tree[f"etc/security/{path}"] = ("\n".join(made) + "\n").encode("latin-1")
    return tree


def materialise(root, tree) -> None:
    """The files of a tree; the folder itself stays, for it is bound over /etc/security."""
    clear(root, ["etc/security/limits.d"])
    put(root, tree)


class Pam:
    """The helper process and its root."""

    def __init__(self, root) -> None:
        self.root = root
        put(
            root,
            {
                "etc/passwd": USERS.encode(),
                "etc/group": GROUPS.encode(),
                "etc/security/limits.conf": b"",
                "pam/hosttune": b"session required pam_limits.so\n",
            },
        )
        argv = ["unshare", "-m", sys.executable, "-c", HELPER, str(root), json.dumps(NUMBERS)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            absent("pam_limits opens no session in a mount namespace here")

    def ask(self, user):
        self.process.stdin.write(f"{user}\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        assert found["status"] == 0, found
        return {item: tuple(limits) for item, limits in found["limits"].items()}


@pytest.fixture(scope="module")
def pam(tmp_path_factory):
    need_root("limits are read as pam_limits reads them only where a session can be opened")
    need("a mount namespace", "unshare")
    found = Pam(tmp_path_factory.mktemp("pam"))
    yield found
    found.process.stdin.close()
    found.process.wait(timeout=60)


def truth(pam, tree):
    materialise(pam.root, tree)
    return {user: pam.ask(user) for user in ("trader", "root")}


def disagreements(root, answer) -> list[str]:
    kind = ours.LimitKind(System(str(root)))
    wrong = []
    for user, limits in answer.items():
        for item, theirs in limits.items():
            names = [f"{user}/{type_}/{item}" for type_ in ("soft", "hard", "-")]
            read = kind.read(names)
            before = resource.getrlimit(NUMBERS[item])
            soft, hard = (_number(item, read[name].winner, now) for name, now in zip(names, before))
            soft = min(soft, hard, key=_order)
            if not CAN_RAISE and _order(hard) > _order(before[1]):
                soft, hard = before  # the kernel refused pam_limits both
            if (soft, hard) != theirs:
                wrong.append(f"{user} {item}: we say {(soft, hard)}, pam_limits set {theirs}")
    return wrong


def _order(limit):
    return 1 << 70 if limit == INFINITY else limit


def _number(item, winner, before):
    if winner is None or winner.value == ours.NO_LIMITS:
        return before
    number = ours._canonical(item, winner.value)
    return INFINITY if number == -1 else number * ITEMS[item]


@settings(max_examples=cases(500), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees)
@example({"limits.conf": ["trader soft nproc {}", "* - nproc {}"]})
@example({"limits.conf": ["trader hard nproc {}", "1001: hard nproc {}"]})
def test_a_session_has_the_limits_that_we_say(pam, drawn):
    answer = truth(pam, tree_of(drawn))
    COMPARISON.agree(disagreements(pam.root, answer))


@pytest.fixture(scope="module")
def answered(pam):
    found = []

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(trees)
    def ask(drawn):
        tree = tree_of(drawn)
        found.append((tree, truth(pam, tree)))

    ask()
    return found


rank = ours._Subject.rank
definitions = ours._definitions


def only_the_name(self, domain, takes_all=False):
    return ours.USER if domain == self.domain else None


def all_as_strong(self, domain, takes_all=False):
    found = rank(self, domain, takes_all)
    return None if found is None else ours.USER


def as_any_user(self, domain, takes_all=False):
    return rank(replace(self, uid=99) if self.uid == 0 else self, domain, takes_all)


FAULTS = {
    "lines of others do not count": (ours._Subject, "rank", only_the_name),
    "order alone decides": (ours._Subject, "rank", all_as_strong),
    "root is a user as any other": (ours._Subject, "rank", as_any_user),
    "the first line wins": (ours, "_definitions", lambda *asked: definitions(*asked)[::-1]),
    "a range is no user": (ours, "_in_range", lambda text, number: False),
    "a dash is one side": (ours, "BOTH", ("soft",)),
    "limits.d is not read": (ours.LimitKind, "_files", lambda self: [ours.MAIN]),
    "files in the order of the alphabet": (
        ours.LimitKind,
        "_files",
        lambda self: [ours.MAIN, *sorted(files_of(self)[1:], key=str.lower)],
    ),
}
files_of = ours.LimitKind._files


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees_a_fault_of_ours(fault, answered, tmp_path, monkeypatch):
    monkeypatch.setattr(*FAULTS[fault])
    put(tmp_path, {"etc/passwd": USERS.encode(), "etc/group": GROUPS.encode()})

    def trial(number):
        tree, answer = answered[number]
        materialise(tmp_path, tree)
        return disagreements(tmp_path, answer)

    COMPARISON.catches(fault, trial, len(answered))
