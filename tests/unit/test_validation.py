"""The testinfra suite against a host of fake tools: what is right passes, each wrong value fails by name."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECRET = "hunter2-of-the-exchange"  # noqa: S105 - looked for in every output
MANIFEST_OF = "/etc/hosttune/manifest.json"

TOOLS = {
    "id": "echo 0",
    "systemd-detect-virt": 'echo "$FAKE_VIRT"',
    "stat": """
if [ "$1" = -c ]; then echo 644; else printf '/etc/app.conf\\t644 root:root\\n/etc/pw\\t600 app:app\\n'; fi
""",
    "sysctl": """
case "$3" in
  vm.swappiness) echo 10;;
  net.core.somaxconn) echo 65535;;
  *tcp_rmem) echo 4096 131072 6291456;;
esac
""",
    "sha256sum": "echo 'c5bcb9557418c3d74af102d82f8fc7291c5e951af7934a25af3791b8247190c4  /etc/app.conf'",
    "modinfo": "echo '(builtin)'",
    "lsblk": (
        'echo \'NAME="nvme0n1" TYPE="disk" ROTA="0" SCHED="none" RA="128"\'; '
        'echo \'NAME="sda" TYPE="disk" ROTA="1" SCHED="mq-deadline" RA="128"\'; '
        'echo \'NAME="sda1" TYPE="part" ROTA="1" SCHED="bfq" RA="1"\''
    ),
    "findmnt": 'echo \'{"filesystems": [{"target": "/data", "options": "rw,noatime"}]}\'',
    "su": "echo 65536",
    "runuser": "echo 'work_mem|4096|kB|f'; echo 'jit|off||f'; echo 'shared_buffers|16384|8kB|t'",
    "curl": "printf 200",
    "hosttune-drift": 'echo "0 settings"; exit $FAKE_DRIFT',
    "systemctl": """
case "$1 $2" in
  "show ") echo DefaultTasksMax=4096;;
  "show --") printf 'Id=app.service\\nLoadState=loaded\\nMainPID=%s\\n' $PPID
     printf 'LimitNOFILE=524288\\nLimitNOFILESoft=65536\\nCPUAffinity=0-3 8\\nTimeoutStopUSec=30s\\n';;
  "cat --") printf '[Service]\\nPrivateTmp=no\\nPrivateTmp=yes\\n';;
  "is-enabled --") echo enabled;;
  "is-active --") echo active;;
esac
""",
    "cat": f"""
case "$1" in
  {MANIFEST_OF}) echo "$FAKE_MANIFEST";;
  /sys/kernel/mm/transparent_hugepage/enabled) echo 'always [madvise] never';;
  /proc/*/limits) printf '%-26s%-21s%-21s%s\\n' Limit Soft Hard Units 'Max open files' 65536 524288 files;;
  *) exec /bin/cat "$@";;
esac
""",
}

RIGHT = {
    "kernel": {
        "module": {"fake_builtin": "loaded"},
        "sysctl": {
            "vm.swappiness": "10",
            "net.core.somaxconn": "4096",
            "net.ipv4.tcp_rmem": "4096 87380 6291456",
        },
        "sysfs": {"kernel/mm/transparent_hugepage/enabled": "madvise"},
    },
    "io": {
        "block": {
            "nvme/scheduler": "none",
            "rotational/scheduler": "mq-deadline",
            "ssd/read_ahead_kb": "128",
        },
        "mount": {"/data": "noatime"},
    },
    "limits": {
        "limit": {"app/soft/nofile": "65536"},
        "manager": {"DefaultTasksMax": "4K"},
        "unit": {
            "app.service/Service/LimitNOFILE": "65536:524288",
            "app.service/Service/CPUAffinity": "0,1,2,3,8",
            "app.service/Service/TimeoutStopSec": "30s",
            "app.service/Service/PrivateTmp": "yes",
        },
    },
    "orchestrator": {
        "file": {
            "/etc/app.conf": {"content": "tuned\n"},
            "/etc/pw": {"content": SECRET, "mode": "0600", "owner": "app", "group": "app", "secret": True},
        },
        "service": {"app.service": "enabled active"},
    },
    "postgres": {"postgres": {"15/main/work_mem": "4MB", "15/main/jit": "off"}},
    "drift": {},
}

WRONG = {
    ("kernel", "module", "fake_builtin"): "unloaded",
    ("kernel", "sysctl", "vm.swappiness"): "11",
    ("kernel", "sysctl", "net.core.somaxconn"): "65536",
    ("kernel", "sysctl", "net.ipv4.tcp_rmem"): "4096 131073 6291456",
    ("kernel", "sysfs", "kernel/mm/transparent_hugepage/enabled"): "always",
    ("io", "block", "nvme/scheduler"): "kyber",
    ("io", "block", "rotational/scheduler"): "none",
    ("io", "mount", "/data"): "noatime,nodiratime",
    ("limits", "limit", "app/soft/nofile"): "1024",
    ("limits", "manager", "DefaultTasksMax"): "infinity",
    ("limits", "unit", "app.service/Service/LimitNOFILE"): "65536",
    ("limits", "unit", "app.service/Service/CPUAffinity"): "0-3",
    ("limits", "unit", "app.service/Service/TimeoutStopSec"): "31s",
    ("limits", "unit", "app.service/Service/PrivateTmp"): "no",
    ("orchestrator", "file", "/etc/app.conf"): {"content": "other\n"},
    ("orchestrator", "file", "/etc/pw"): {"content": SECRET, "mode": "0640", "secret": True},
    ("orchestrator", "service", "app.service"): "enabled inactive",
    ("postgres", "postgres", "15/main/work_mem"): "4kB",
    ("postgres", "postgres", "15/main/jit"): "on",
    ("postgres", "postgres", "15/main/shared_buffers"): "128MB",
    ("kernel", "hugepages", "0/2M"): "8",
}


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("host_validation", ROOT / "library/host_validation.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The suite and a host that is this process with other tools."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, script in TOOLS.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    (tmp_path / "hosts").write_text("fake ansible_connection=local\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_VIRT", "none")
    monkeypatch.setenv("FAKE_DRIFT", "0")
    monkeypatch.delenv("ANSIBLE_CONFIG", raising=False)
    return tmp_path


def manifest(settings):
    return json.dumps(
        {
            "owners": {
                owner: {kind: {name: {"value": ""} for name in names} for kind, names in kinds.items()}
                for owner, kinds in settings.items()
            }
        }
    )


def validate(module, project, monkeypatch, settings, listed=None, urls=("http://127.0.0.1:8000/health",)):
    """What the module returns, and everything it said and kept."""
    from ansible.module_utils.testing import patch_module_args

    monkeypatch.setenv("FAKE_MANIFEST", manifest(settings if listed is None else listed))
    logged: list[str] = []
    monkeypatch.setattr(module._Module, "log", lambda _self, msg, **more: logged.append(f"{msg}{more}"))
    options = {
        "host": "fake",
        "settings": settings,
        "inventory": [str(project / "hosts")],
        "project": str(project),
        "urls": list(urls),
    }
    said = io.StringIO()
    with patch_module_args(options), redirect_stdout(said), pytest.raises(SystemExit):
        module.main()
    kept = (project / ".cache/validation/fake.json").read_text()
    return json.loads(said.getvalue()), said.getvalue() + kept + "".join(logged)


def test_a_host_that_is_right_passes_and_no_secret_is_told(module, project, monkeypatch):
    result, everything = validate(module, project, monkeypatch, RIGHT)
    assert not result.get("failed"), result["msg"]
    settings = sum(len(names) for kinds in RIGHT.values() for names in kinds.values())
    # One disk class is not there; beside the settings: process limit, manifest, drift, url.
    assert result["counts"] == {"passed": settings - 1 + 4, "failed": 0, "skipped": 1, "not_own": 0}
    assert (project / "reports/validation/fake.xml").exists()
    assert SECRET not in everything


def test_each_wrong_value_fails_by_name(module, project, monkeypatch):
    settings = copy.deepcopy(RIGHT)
    for (owner, kind, name), value in WRONG.items():
        settings[owner].setdefault(kind, {})[name] = value
    monkeypatch.setenv("FAKE_DRIFT", "1")
    result, _everything = validate(
        module, project, monkeypatch, settings, listed=RIGHT, urls=["http://127.0.0.1:8000/ready"]
    )
    assert result["failed"]
    failed = " ".join(one["name"] for one in result["failures"])
    for _owner, kind, name in WRONG:
        assert f"[{kind} {name}-" in failed
    assert "test_process_limit[unit app.service/Service/LimitNOFILE" in failed
    assert "test_manifest_lists_exactly_what_is_declared" in failed
    assert "test_the_host_itself_finds_no_drift" in failed
    assert result["counts"]["failed"] == len(WRONG) + 3
    assert result["counts"]["passed"] == 1, "the url alone answers as it shall"
    assert result["msg"].startswith("fake: ")
    assert all(one["message"] for one in result["failures"])


def test_a_container_s_foreign_settings_are_counted_and_never_passed(module, project, monkeypatch):
    monkeypatch.setenv("FAKE_VIRT", "systemd-nspawn")
    settings = {"kernel": {"sysctl": {"vm.swappiness": "99"}}, "io": {"block": {"nvme/scheduler": "bfq"}}}
    result, _everything = validate(module, project, monkeypatch, settings, urls=())
    assert result["counts"] == {"passed": 1, "failed": 0, "skipped": 2, "not_own": 2}
    assert "2 of them not this host's own" in result["msg"]


def test_a_url_that_does_not_answer_fails(module, project, monkeypatch):
    (project / "tools/curl").write_text("#!/bin/sh\nprintf 503\nexit 22\n")
    result, _everything = validate(module, project, monkeypatch, {"orchestrator": {}})
    assert [one["message"] for one in result["failures"]] == [
        "AssertionError: http://127.0.0.1:8000/health answers 503\nassert '503' == '200'\n"
        "  \n  - 200\n  + 503"
    ]


def test_a_host_that_cannot_be_reached_is_a_failure(module, project, monkeypatch):
    (project / "hosts").write_text("fake ansible_host=127.0.0.1 ansible_port=1\n")
    result, _everything = validate(module, project, monkeypatch, RIGHT)
    assert result["failed"]


def test_without_secrets_keeps_all_but_the_content(module):
    kept = module.without_secrets(RIGHT)
    assert kept["orchestrator"]["file"]["/etc/pw"] == {
        **RIGHT["orchestrator"]["file"]["/etc/pw"],
        "content": "(secret)",
    }
    assert {owner: kinds for owner, kinds in kept.items() if owner != "orchestrator"} == {
        owner: kinds for owner, kinds in RIGHT.items() if owner != "orchestrator"
    }


def test_the_project_is_found_from_below_and_nowhere_else(module, tmp_path):
    assert module.find_project(str(ROOT / "roles")) == str(ROOT)
    assert module.find_project(str(tmp_path)) == ""


@pytest.mark.parametrize(
    ("one", "other", "unit", "same"),
    [
        ("4MB", "4096", "kB", True),
        ("4MB", "512", "8kB", True),
        ("4kB", "4", "MB", False),
        ("15min", "900", "s", True),
        ("100ms", "100", "ms", True),
        ("1.5GB", "1536", "MB", True),
        ("-1", "-1", "8kB", True),
        ("0", "0", "ms", True),
        ("on", "on", "", True),
        ("true", "on", "", True),
        ("off", "on", "", False),
        ("1.1", "1.1", "", True),
        ("a, b", "a,b", "", True),
    ],
)
def test_postgres_units(monkeypatch, one, other, unit, same):
    monkeypatch.syspath_prepend(str(ROOT / "tests/host"))
    from reading import postgres_value

    assert (postgres_value(one, unit) == postgres_value(other, unit, bare=True)) is same


@pytest.fixture
def boot_reader(monkeypatch):
    """The check of kind boot on a host that says these three things."""
    spec = importlib.util.spec_from_file_location("reading", ROOT / "tests/host/reading.py")
    reading = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reading)
    entry = (
        "\tlinux\t/boot/vmlinuz-1 root=/dev/vda ro quiet 'dyndbg=file a +p; line 5' isolcpus=2-3 console=tty0"
    )

    words = "quiet 'dyndbg=file a +p; line 5' isolcpus=2-3 console=tty0"
    entry = f"\tlinux\t/boot/vmlinuz-1 root=/dev/vda ro {words}"

    class Reader(reading.Reader):
        def __init__(self):
            self.declared, self._readings = [], {}
            self.said = {
                "/proc/cmdline": f"BOOT_IMAGE=/boot/vmlinuz-1 {words}\n".replace("'", '"'),
                "/boot/grub/grub.cfg": f"{entry}\n{entry.replace('isolcpus=2-3', 'single')}\n",
                "/etc/default/grub": words,
            }

        def run(self, script, *, fails=False):
            return next(text for path, text in self.said.items() if path in script)

    return Reader()


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("isolcpus", "2-3", True),
        ("quiet", True, True),
        ("dyndbg", "file a +p; line 5", True),
        ("console", ["tty0"], True),
        ("isolcpus", "2", False),
        ("quiet", "1", False),
        ("nosmt", True, False),
        ("console", ["ttyS0", "tty0"], False),
    ],
)
def test_the_command_line_is_asked_of_the_kernel_the_menu_and_its_sources(boot_reader, name, value, right):
    if right:
        boot_reader._check_boot(name, value)
    else:
        with pytest.raises(AssertionError):
            boot_reader._check_boot(name, value)


def test_a_command_line_that_waits_for_the_boot_is_not_passed(boot_reader):
    boot_reader.said = {**boot_reader.said, "/proc/cmdline": "quiet"}
    with pytest.raises(pytest.skip.Exception, match="waits for the next boot"):
        boot_reader._check_boot("isolcpus", "2-3")
