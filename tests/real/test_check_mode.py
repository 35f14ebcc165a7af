"""Check mode on a real host: by the kernel's own witness it writes nothing, and it says what apply does."""

from __future__ import annotations

import json
import os
import random
import re

import pytest
from conftest import BASE, play

TRACED = (
    "open,openat,openat2,creat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,chmod,fchmod,"
    "fchmodat,chown,fchown,lchown,fchownat,truncate,ftruncate,link,linkat,symlink,symlinkat,mknod,mknodat,"
    "utimensat,utime,utimes,futimesat,setxattr,lsetxattr,fsetxattr,removexattr,mount,umount2,pivot_root,"
    "sethostname,kill,init_module,finit_module,delete_module,reboot,swapon,execve"
)
_WRITING = re.compile(r"\b(O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND|O_TMPFILE)\b")
#: What check mode may run: questions only.
_QUESTIONS = (
    r"systemctl (show|is-enabled) ",
    r"\S*/systemd --dump-configuration-items",
    r"(env -i .*)?\S*psql ",
    r"\S*(runuser|setpriv|su) .*psql ",
    r"\S*python3\S* ",
    r"\S*(perl|ps|bash -c|sh -c) .*",
)
#: A module's own temporary folder, and Python's try whether /tmp can be written.
MODULES_OWN = r"(/dev/(null|tty)\Z|/tmp/ansible_|/tmp/\w{8}\Z|/root/\.ansible/tmp)"
EVERY_KIND = {
    "kernel": {
        "sysctl": {"net.ipv4.tcp_max_syn_backlog": "8192", "net.ipv4.tcp_fin_timeout": "17"},
        "sysfs": {"kernel/mm/transparent_hugepage/enabled": "madvise"},
        "module": {"tcp_bbr": "loaded"},
        "mount": {"/": "noatime"},
        "block": {"ssd/scheduler": "none"},
    },
    "limits": {
        "limit": {"redis/hard/nofile": "4096"},
        "unit": {"redis-server.service/Service/LimitNOFILE": "65536"},
        "manager": {"DefaultTasksMax": "12345"},
    },
    "app": {
        "file": {
            "/etc/hosttune-check/plain.conf": {"content": "plain\n"},
            "/etc/hosttune-check/password": {"content": "a-secret", "mode": "0600", "secret": True},
        },
        "service": {"cron.service": "disabled inactive"},
    },
    "postgres": {"postgres": {"15/main/work_mem": "8MB"}},
}


def trace(machine, command: str, stdin: str = "") -> tuple[list[str], str]:
    """The traced calls that succeeded while `command` and what it started ran on the host; its output."""
    folder = machine.run("mktemp -d /tmp/hosttune-trace-XXXXXX").strip()
    try:
        said = machine.run(f"strace -f -qq -y -s 300 -o {folder}/calls -e trace={TRACED} {command}", stdin)
        calls = machine.run(f"cat {folder}/calls").splitlines()
    finally:
        machine.run(f"rm -rf {folder}")
    whole = _joined(calls)
    return [line for line in whole if not re.search(r" = -1 E[A-Z]+ ", line) and "(" in line], said


def _joined(lines: list[str]) -> list[str]:
    """Calls that strace split where another process came between, as one line again."""
    found: list[str] = []
    open_calls: dict[str, str] = {}
    for line in lines:
        pid, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            open_calls[pid] = call.removesuffix("<unfinished ...>")
        elif call.startswith("<... "):
            found.append(open_calls.pop(pid, "") + call.partition("resumed>")[2])
        else:
            found.append(call)
    return found


def written(calls: list[str], allowed: str) -> list[str]:
    """The calls that change something elsewhere than `allowed` (a pattern of paths)."""
    found = []
    for call in calls:
        name = call.partition("(")[0]
        if name == "execve":
            continue
        if name.startswith("open") and not _WRITING.search(call):
            continue
        paths = re.findall(r'"([^"]*)"', call) or re.findall(r"<([^>]*)>", call)
        folders = re.findall(r"<([^>]*)>", call)
        whole = [path if path.startswith("/") or not folders else f"{folders[0]}/{path}" for path in paths]
        if not whole or not all(re.match(allowed, path) for path in whole):
            found.append(call)
    return found


def started(calls: list[str]) -> list[str]:
    """The command lines that were executed, the traced one first."""
    return [
        " ".join(re.findall(r'"((?:[^"\\]|\\.)*)"', call.partition("[")[2].partition("]")[0]))
        for call in calls
        if call.startswith("execve(")
    ]


@pytest.fixture(autouse=True)
def strace(host):
    """Brings strace before a test remembers what stands on the host."""
    host.run("command -v strace >/dev/null || apt-get install -qq -y strace >/dev/null")


def test_check_mode_opens_nothing_for_writing(host):
    marker = host.run("mktemp /tmp/hosttune-marker-XXXXXX").strip()
    request = json.dumps({"owners": EVERY_KIND, "check": True})
    command = f"python3 -B {BASE}/driver.py converge"
    calls, said = trace(host, command, request)
    answer = json.loads(said)
    assert answer.get("changed"), answer
    assert {one["kind"] for one in answer["settings"]} == {
        kind for kinds in EVERY_KIND.values() for kind in kinds
    }
    assert not [one for one in answer["settings"] if one["verdict"] == "unknown"]
    assert written(calls, r"/dev/(null|tty)\Z") == []
    asked = [line for line in started(calls) if not any(re.match(one, line) for one in _QUESTIONS)]
    assert asked == []
    newer = host.run(
        f"find / -xdev \\( -newer {marker} -o -cnewer {marker} \\) -not -type d "
        r"-not -path '/run/*' -not -path '/dev/*' -not -path '/tmp/*' -not -path '/var/log/*' "
        r"-not -path '/var/lib/postgresql/*' -not -path '/var/lib/redis/*'"
    )
    assert newer == ""
    assert host.try_run("ls -d /etc/hosttune /var/lib/hosttune").returncode
    host.run(f"rm {marker}")

    # The same witness sees an apply write.
    some = {"kernel": {"sysctl": EVERY_KIND["kernel"]["sysctl"]}}
    calls, _said = trace(host, command, json.dumps({"owners": some}))
    seen = "\n".join(written(calls, r"/dev/null\Z"))
    for path in (
        "/etc/sysctl.d/60-hosttune-kernel.conf",
        "/proc/sys/net/ipv4/tcp_fin_timeout",
        "manifest.json",
    ):
        assert path in seen


def test_the_module_in_check_mode_writes_ansibles_own_folder_only(host, tmp_path):
    ended = play(tmp_path, {"owners": EVERY_KIND}, "--check", "--diff", keep=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    try:
        payload = host.run("ls -t /root/.ansible/tmp/*/AnsiballZ_host_settings.py").splitlines()[0]
        calls, said = trace(host, f"python3 {payload}")
        answer = json.loads(said)
        assert answer["changed"]
        assert answer["diff"]
        assert written(calls, MODULES_OWN) == []
        asked = [line for line in started(calls) if not any(re.match(one, line) for one in _QUESTIONS)]
        assert asked == []
        assert host.try_run("ls -d /etc/hosttune /var/lib/hosttune").returncode
    finally:
        host.run("rm -rf /root/.ansible/tmp")


# random states and wishes

SYSCTL = {
    "net.ipv4.tcp_max_syn_backlog": ["128", "4096", "9000"],  # raise-only
    "net.core.somaxconn": ["128", "5000", "65535"],  # raise-only
    "net.ipv4.tcp_fin_timeout": ["15", "30", "60"],
    "net.ipv4.tcp_keepalive_time": ["300", "600"],
    "net.ipv4.tcp_rmem": ["4096 87380 16777216", "4096 131072 6291456"],
}
UNIT = {
    "redis-server.service/Service/LimitNOFILE": ["65535", "65536:131072"],
    "redis-server.service/Service/TasksMax": ["400", "500"],
    "cron.service/Service/OOMScoreAdjust": ["-100", "0"],
}
POOL = {
    "sysctl": SYSCTL,
    "unit": UNIT,
    "limit": {"redis/hard/nofile": ["2048", "4096"], "redis/soft/nofile": ["1024"]},
    "file": {
        "/etc/hosttune-check/a.conf": [{"content": "one\n"}, {"content": "two\n", "mode": "0600"}],
        "/etc/hosttune-check/deep/b.conf": [{"content": "b\n", "owner": "redis", "group": "redis"}],
    },
}
FOLDERS = "/etc/sysctl.d /etc/security/limits.d /etc/systemd/system /etc/hosttune-check"
HANDS = [
    *(f"sysctl -qw '{name}={value}'" for name, values in SYSCTL.items() for value in values),
    "printf 'net.ipv4.tcp_fin_timeout = 33\\n' >/etc/sysctl.d/zz-other.conf",
    "printf 'net.core.somaxconn = 5000\\n' >/etc/sysctl.d/10-other.conf",
    "rm -f /etc/sysctl.d/60-hosttune-kernel.conf",
    "printf '# edited\\n' >/etc/sysctl.d/60-hosttune-app.conf",
    "printf 'redis hard nofile 77\\n' >/etc/security/limits.d/zz-other.conf",
    "mkdir -p /etc/hosttune-check; printf 'mine\\n' >/etc/hosttune-check/a.conf",
    "chmod 0640 /etc/hosttune-check/a.conf || true",
    "mkdir -p /etc/systemd/system/cron.service.d; printf '[Service]\\nOOMScoreAdjust=5\\n' "
    ">/etc/systemd/system/cron.service.d/zz-other.conf; systemctl daemon-reload",
]
CLEAN = (
    "rm -rf /etc/sysctl.d/*-other.conf /etc/security/limits.d/zz-other.conf /etc/hosttune-check "
    "/etc/systemd/system/cron.service.d; rm -f /etc/sysctl.d/60-hosttune-*; systemctl daemon-reload"
)

#: Runs on the host: each case from the state that the case before left, seen by the system's own tools.
PROGRAM = """
import json, os, subprocess, sys
sys.dont_write_bytecode = True
import driver

cases, names, units, folders = json.load(sys.stdin)

def ask(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout

def witness():
    live = {f"sysctl {one}": " ".join(ask("sysctl", "-n", one).split()) for one in names}
    for unit, name in units:
        asked = [f"{name}Soft", name] if name.startswith("Limit") else [name]
        shown = [ask("systemctl", "show", "-P", one, unit).strip() for one in asked]
        live[f"unit {unit}/Service/{name}"] = ":".join(dict.fromkeys(shown))
    files = {}
    for path in ask("find", *[one for one in folders if os.path.isdir(one)], "-type", "f").split("\\n"):
        if path:
            about = os.stat(path)
            shown = f"mode {about.st_mode & 0o7777:04o} owner {about.st_uid}:{about.st_gid}\\n"
            files[path] = [shown + ask("cat", path), about.st_mtime_ns, about.st_ino]
    return {"live": live, "files": files}

answers = []
for case in cases:
    for hand in case["hands"]:
        subprocess.run(["bash", "-c", hand], check=True)
    before = witness()
    said = driver.converge({**case["request"], "check": True})
    checked = witness()
    done = driver.converge(case["request"])
    after = witness()
    again = driver.converge({**case["request"], "check": True})
    driver.converge(case["request"])
    answers.append({"before": before, "said": said, "checked": checked, "done": done, "after": after,
                    "again": again, "second": witness()})
json.dump(answers, sys.stdout)
"""


def wish(chance: random.Random) -> dict:
    """A call of host_settings: whole, of a part of the owners, or an undo."""
    names = [(kind, name) for kind, found in POOL.items() for name in found]
    owners: dict = {}
    for kind, name in chance.sample(names, chance.randint(1, 8)):
        owner = chance.choice(["kernel", "app"])
        owners.setdefault(owner, {}).setdefault(kind, {})[name] = chance.choice(POOL[kind][name])
    how = chance.choice(["whole", "whole", "whole", "partial", "absent"])
    if how == "absent":
        return {"owners": {chance.choice(["kernel", "app"]): {}}, "present": False}
    return {"owners": owners, "partial": how == "partial"}


def flags(answer: dict) -> dict[tuple[str, str], bool]:
    return {(one["kind"], one["name"]): one["changed"] for one in answer["settings"]}


def test_what_check_says_is_what_a_real_host_then_shows(host):
    seed = int(os.environ.get("HOSTTUNE_REAL_SEED") or random.SystemRandom().randrange(10**6))
    print(f"HOSTTUNE_REAL_SEED={seed}")
    chance = random.Random(seed)  # noqa: S311 - cases, not keys
    cases = [
        {"hands": chance.sample(HANDS, chance.randint(0, 3)), "request": wish(chance)}
        for _number in range(24)
    ]
    units = [name.split("/Service/") for name in UNIT]
    kept = {name: host.run(f"sysctl -n {name}").strip() for name in SYSCTL}
    try:
        answers = host.python(PROGRAM, [cases, list(SYSCTL), units, FOLDERS.split()], timeout=600)
    finally:
        host.undo()
        host.run(CLEAN)
        host.run("; ".join(f"sysctl -qw '{name}={value}'" for name, value in kept.items()))
    assert len(answers) == len(cases)
    for case, answer in zip(cases, answers):
        judge(case, answer)
    assert any(answer["said"].get("changed") for answer in answers)
    assert any(answer["said"].get("undone") for answer in answers)


def judge(case: dict, answer: dict) -> None:
    said, done, before, after = (answer[one] for one in ("said", "done", "before", "after"))
    told = f"{case}\n{said}\n{done}"
    assert answer["checked"] == before, told
    if "refused" in said:
        assert done == said, told
        assert after == before, told
        return
    assert done["failures"] == [], told
    for one in ("changed", "diff", "undone", "aside"):
        assert said[one] == done[one], told
    assert flags(said) == flags(done), told
    assert [one["before"] for one in said["settings"]] == [one["before"] for one in done["settings"]], told

    files = {one["before_header"]: one for one in said["diff"] if one["before_header"].startswith("/")}
    moved = {
        path
        for path in {*before["files"], *after["files"]}
        if before["files"].get(path, [""])[0] != after["files"].get(path, [""])[0]
    }
    assert set(files) == moved, told
    for path, entry in files.items():
        assert entry["before"] == before["files"].get(path, [""])[0], told
        assert entry["after"] == after["files"].get(path, [""])[0], told
    # A file that is not named was not even replaced by itself.
    assert {path: found for path, found in before["files"].items() if path not in moved} == {
        path: found for path, found in after["files"].items() if path not in moved
    }, told

    live = {}
    for entry in said["diff"]:
        if entry["before_header"].startswith("live "):
            kind = entry["before_header"].removeprefix("live ")
            sides = [
                dict(row.split(" = ", 1) for row in entry[side].splitlines()) for side in ("before", "after")
            ]
            live.update({f"{kind} {name}": (sides[0][name], sides[1][name]) for name in sides[0]})
    assert live == {
        name: (was, after["live"][name]) for name, was in before["live"].items() if was != after["live"][name]
    }, told
    for one in said["settings"]:
        key = f"{one['kind']} {one['name']}"
        if key in live:
            assert one["changed"], told
    for one in done["settings"]:
        if one["kind"] in ("sysctl", "unit"):
            assert one["live"] == after["live"][f"{one['kind']} {one['name']}"], told

    assert not answer["again"]["changed"], told
    assert answer["again"]["diff"] == [], told
    assert answer["second"] == after, told


RUNNING = {
    "redis": {
        "unit": {"redis-server.service/Service/LimitNOFILE": "15000:18000"},
        "file": {
            "/etc/hosttune-check/users.acl": {"content": "# none\n", "restart": "redis-server.service"},
        },
    },
    "postgres": {"unit": {"postgresql@.service/Service/LimitNOFILE": "14000:16000"}},
}
SERVICES = ("redis-server.service", "postgresql@15-main.service")
UNITS = {("unit", name) for found in RUNNING.values() for name in found["unit"]}


def test_check_mode_foretells_the_restarts_that_running_services_then_wait_for(host):
    def soft_limits() -> list[str]:
        return [
            host.run(f"awk '/Max open files/ {{print $4}}' /proc/$(systemctl show -P MainPID {unit})/limits")
            for unit in SERVICES
        ]

    names = {(kind, name) for found in RUNNING.values() for kind, of in found.items() for name in of}
    host.run(f"systemctl restart {' '.join(SERVICES)}")
    try:
        old = soft_limits()
        said = host.converge(RUNNING, check=True)
        done = host.converge(RUNNING)
        assert done["failures"] == []
        assert said["pending"] == done["pending"]
        assert {(one["kind"], one["name"]) for one in done["pending"]} == names
        for found in (said, done):
            assert {(one["needs"], one["disruption"]) for one in found["settings"]} == {
                ("restart", "restarts")
            }
            assert {one["needs"] for one in found["pending"]} == {"restart"}
        assert soft_limits() == old
        template = next(one for one in done["pending"] if one["name"].startswith("postgresql@"))
        assert "in postgresql@15-main.service" in template["reason"]

        host.run(f"systemctl restart {' '.join(SERVICES)}")
        assert soft_limits() == ["15000\n", "14000\n"]
        assert set(host.verdicts(host.converge(RUNNING)).values()) == {"in_sync"}

        # On a converged host, one changed value and one that is given back.
        changed = {**RUNNING, "redis": {"unit": {next(iter(RUNNING["redis"]["unit"])): "13000:18000"}}}
        said, done = host.converge(changed, check=True), host.converge(changed)
        assert said["pending"] == done["pending"] != []
        assert said["undone"] == done["undone"] != []
        said, done = host.converge({}, present=False, check=True), host.converge({}, present=False)
        assert said["undone"] == done["undone"]
        assert {(one["kind"], one["name"]) for one in done["undone"] if one["needs"] == "restart"} == UNITS
    finally:
        host.undo()
        host.run(
            f"rm -rf /etc/hosttune-check; systemctl daemon-reload; systemctl restart {' '.join(SERVICES)}"
        )


@pytest.mark.parametrize("check", [True, False])
def test_the_module_says_what_the_engine_says(host, tmp_path, check):
    """Ansible's own --check and --diff show the plan of the engine, nothing more."""
    owners = {"kernel": {"sysctl": {"net.ipv4.tcp_fin_timeout": "17"}}}
    ended = play(tmp_path, {"owners": owners}, "--diff", *(["--check"] if check else []))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "+net.ipv4.tcp_fin_timeout = 17" in ended.stdout
    assert "changed=1" in ended.stdout
    assert (host.run("sysctl -n net.ipv4.tcp_fin_timeout").strip() == "17") is not check
