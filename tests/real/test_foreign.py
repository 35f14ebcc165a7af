"""Foreign owners on a real host: the packages themselves, and the system's own tools as judge."""

from __future__ import annotations

import pytest

PACKAGES = "tuned irqbalance unattended-upgrades needrestart"
TCP_RMEM = {"kernel": {"sysctl": {"net.ipv4.tcp_rmem": "4096 131072 25165824"}}}
SERVERS = {
    "limits": {
        "unit": {
            "redis-server.service/Service/TasksMax": "512",
            "postgresql@.service/Service/TasksMax": "4096",
        }
    }
}
#: What lies below the folders that taking over may write to, with mode, owner and content.
STATE = (
    "cd /etc && find sysctl.d apt/apt.conf.d needrestart systemd/system -printf '%p %M %u %g %l\\n' | sort; "
    "find sysctl.d apt/apt.conf.d needrestart -type f -exec sha256sum {} + | sort"
)


@pytest.fixture(scope="module")
def packaged(machine):
    """The host with the foreign packages, and without them again."""
    was = machine.run("sysctl net.ipv4.tcp_rmem net.ipv4.tcp_wmem")
    machine.run(f"DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends {PACKAGES}")
    yield machine
    machine.run(f"DEBIAN_FRONTEND=noninteractive apt-get purge -qq -y --auto-remove {PACKAGES}")
    machine.run("sysctl -q -p -", was)


@pytest.fixture
def tuned(packaged, host):
    host.run("systemctl enable --now tuned && tuned-adm profile network-throughput")
    return host


def finding(found, owner):
    mine = [one for one in found["foreign"] if one["owner"] == owner]
    assert len(mine) == 1, found
    return mine[0]


def test_tuned_is_named_refused_taken_over_and_given_back(tuned):
    host = tuned
    before, live = host.run(STATE), host.run("sysctl -n net.ipv4.tcp_rmem")
    version = host.run("dpkg-query --show --showformat='${Version}' tuned")
    for check in (True, False):
        refused = host.converge(TCP_RMEM, check=check)
        said = finding(refused, "tuned")
        assert said["package"] == f"tuned {version}"
        assert (said["unit"], said["state"], said["decision"]) == (
            "tuned.service",
            "enabled active",
            "refuse",
        )
        assert said["affects"] == ["sysctl net.ipv4.tcp_rmem"]
        file, line = said["file"].rsplit(":", 1)
        assert "tcp_rmem" in host.run(f"sed -n {line}p {file}")
        assert "settings_foreign" in refused["remedy"]
    assert host.run(STATE) == before
    decisions = {"tuned": "take_over"}
    plan = host.converge(TCP_RMEM, foreign=decisions, check=True)
    assert host.run("systemctl is-active tuned").strip() == "active"
    done = host.converge(TCP_RMEM, foreign=decisions)
    assert not done["failures"]
    assert (plan["diff"], plan["foreign"]) == (done["diff"], done["foreign"])
    assert host.try_run("systemctl is-active tuned").stdout.strip() == "inactive"
    assert host.try_run("systemctl is-enabled tuned").stdout.strip() == "disabled"
    assert host.run("sysctl -n net.ipv4.tcp_rmem").split() == ["4096", "131072", "25165824"]
    assert set(host.verdicts(host.drift()).values()) == {"in_sync"}
    assert not host.converge(TCP_RMEM, foreign=decisions)["changed"]
    host.run("systemctl enable --now tuned 2>/dev/null")
    assert host.verdicts(host.drift())["tuned.service"] == "drift"
    assert host.converge(TCP_RMEM, foreign=decisions)["changed"]
    assert set(host.verdicts(host.drift()).values()) == {"in_sync"}
    assert not host.undo()["failures"]
    assert host.run("systemctl is-active tuned").strip() == "active"
    assert host.run("systemctl is-enabled tuned").strip() == "enabled"
    assert host.run(STATE) == before
    assert host.run("sysctl -n net.ipv4.tcp_rmem") == live
    # Nor does TuneD give our value back when it stops.
    host.run("systemctl stop tuned")
    assert host.run("sysctl -n net.ipv4.tcp_rmem").split()[2] != "25165824"


def test_what_tuned_gives_back_when_it_stops_is_mended_in_the_same_call(tuned):
    """A value that TuneD had set to ours is right before and wrong after it stops."""
    owners = {
        "kernel": {
            "sysctl": {"net.ipv4.tcp_rmem": "4096 87380 16777216", "net.ipv4.tcp_wmem": "4096 16384 8388608"}
        }
    }
    assert tuned.run("sysctl -n net.ipv4.tcp_rmem").split() == ["4096", "87380", "16777216"]
    done = tuned.converge(owners, foreign={"tuned": "take_over"})
    assert not done["failures"]
    assert set(tuned.verdicts(done).values()) == {"in_sync"}
    assert not tuned.converge(owners, foreign={"tuned": "take_over"})["changed"]


def test_what_is_left_to_tuned_is_not_ours(tuned):
    owners = {"kernel": {"sysctl": {**TCP_RMEM["kernel"]["sysctl"], "net.ipv4.tcp_fin_timeout": "31"}}}
    done = tuned.converge(owners, foreign={"tuned": "leave"})
    assert list(host_names(done)) == ["net.ipv4.tcp_fin_timeout"]
    assert [(one["name"], one["left"]) for one in done["left"]] == [("net.ipv4.tcp_rmem", "tuned has it")]
    assert tuned.run("systemctl is-active tuned").strip() == "active"
    assert list(host_names(tuned.drift())) == ["net.ipv4.tcp_fin_timeout"]


def host_names(found):
    return [one["name"] for one in found["settings"]]


def test_profiles_say_what_tuned_itself_reads_from_them(packaged, host):
    """TuneD's own loader over every shipped profile against ours."""
    found = host.python(
        """
import json, sys
sys.path[:0] = ["/usr/lib/python3/dist-packages"]
import tuned.consts as consts
from tuned.profiles.factory import Factory
from tuned.profiles.loader import Loader
from tuned.profiles.locator import Locator
from tuned.profiles.merger import Merger
from tuned.profiles.variables import Variables
from tuned.utils.global_config import GlobalConfig
from hosttune import tuned as ours
from hosttune.system import System

locator = Locator(consts.LOAD_DIRECTORIES)
answer = {}
for name in locator.get_known_names():
    try:
        profile = Loader(locator, Factory(), Merger(), GlobalConfig(), Variables()).load([name])
    except Exception:
        continue
    theirs = {}
    for unit in profile.units.values():
        if unit.type == "sysctl" and unit.uname_regex is None and unit.enabled:
            theirs.update({key: " ".join(value.strip("\\"'").split()) for key, value in unit.options.items()})
    mine = {}
    for one in ours.claims(System(), [name]):
        if one.kind == "sysctl":
            text = None if one.value is None else " ".join(one.value.split())
            mine[one.pattern] = (">" if one.floor else "") + text if text is not None else None
    answer[name] = [theirs, mine]
json.dump(answer, sys.stdout)
"""
    )
    assert len(found) > 20
    assert found["network-throughput"][1]["net.ipv4.tcp_rmem"] == "4096 87380 16777216"
    for name, (theirs, mine) in found.items():
        assert set(theirs) <= set(mine), name
        known = {key: value for key, value in mine.items() if value is not None and key in theirs}
        assert known == {key: theirs[key] for key in known}, name


def test_systemd_sysctl_agrees_on_what_was_taken_over(host):
    """A file in /etc and one below /usr/lib that win: once they are taken over, systemd sets our value."""
    files = {
        "/etc/sysctl.d/zz-by-hand.conf": "\nnet.ipv4.tcp_fin_timeout = 77\nnet.ipv4.ip_default_ttl = 65\n",
        "/usr/lib/sysctl.d/99-vendor.conf": "net.ipv4.tcp_fin_timeout=66\nnet.ipv4.tcp_syn_retries = 4\n",
    }
    owners = {"kernel": {"sysctl": {"net.ipv4.tcp_fin_timeout": "31"}}}
    live = "sysctl -n net.ipv4.tcp_fin_timeout net.ipv4.ip_default_ttl net.ipv4.tcp_syn_retries"
    was = host.run(live).split()
    state = STATE + "; sha256sum /usr/lib/sysctl.d/*"
    host.put(files)
    try:
        before = host.run(state)
        refused = host.converge(owners)
        assert finding(refused, "/etc/sysctl.d/zz-by-hand.conf")["decision"] == "refuse"
        assert finding(refused, "/usr/lib/sysctl.d/99-vendor.conf")["weight"] == "fight"
        done = host.converge(owners, foreign=dict.fromkeys(files, "take_over"))
        assert not done["failures"]
        assert set(host.verdicts(done).values()) == {"in_sync"}
        host.run("/lib/systemd/systemd-sysctl")
        assert host.run(live).split() == ["31", "65", "4"]
        assert not host.converge(owners, foreign=dict.fromkeys(files, "take_over"))["changed"]
        assert not host.undo()["failures"]
        assert host.run(state) == before
        host.run("/lib/systemd/systemd-sysctl")
        assert host.run(live).split() == ["77", "65", "4"]
    finally:
        host.run(f"rm -f {' '.join(files)}")
        host.run(
            f"sysctl -q net.ipv4.tcp_fin_timeout={was[0]} net.ipv4.ip_default_ttl={was[1]} "
            f"net.ipv4.tcp_syn_retries={was[2]}"
        )


def test_systemd_agrees_on_a_drop_in_that_was_taken_over(host):
    path = "/usr/lib/systemd/system/redis-server.service.d/90-vendor.conf"
    owners = {"limits": {"unit": {"redis-server.service/Service/TasksMax": "512"}}}
    ask = "systemctl show --property=TasksMax,OOMScoreAdjust --value redis-server.service"
    host.put({path: "[Service]\nTasksMax=77\nOOMScoreAdjust=-77\n"})
    try:
        host.run("systemctl daemon-reload")
        assert host.run(ask).split() == ["77", "-77"]
        assert finding(host.converge(owners), path)["decision"] == "refuse"
        done = host.converge(owners, foreign={path: "take_over"})
        assert not done["failures"]
        assert host.run(ask).split() == ["512", "-77"]
        assert not host.converge(owners, foreign={path: "take_over"})["changed"]
        assert not host.undo()["failures"]
        assert host.run(ask).split() == ["77", "-77"]
    finally:
        host.run(f"rm -rf {path.rsplit('/', 1)[0]} && systemctl daemon-reload")


def test_servers_are_kept_out_of_updates(packaged, host):
    before = host.run(STATE)
    done = host.converge(SERVERS)
    assert not done["failures"]
    for owner in ("unattended-upgrades", "needrestart"):
        said = finding(done, owner)
        assert (said["weight"], said["decision"]) == ("guard", "take_over")
    dumped = host.run("apt-config dump")
    listed = [
        line for line in dumped.split("\n") if line.startswith("Unattended-Upgrade::Package-Blacklist::")
    ]
    assert [line.split('"')[1] for line in listed] == ["postgresql", "redis"]
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in dumped
    restarts = host.run(
        r"""perl -e '
our (%nrconf, $LOGPREF) = (); $nrconf{verbosity} = 0;
eval do { local(@ARGV, $/) = "/etc/needrestart/needrestart.conf"; <> }; die $@ if $@;
for my $rc (@ARGV) { my $yes = 1;
  for my $re (keys %{$nrconf{override_rc}}) { if ($rc =~ /$re/) { $yes = $nrconf{override_rc}->{$re}; last } }
  print "$rc $yes\n" }
' redis-server.service postgresql@15-main.service postgresql.service ssh.service redis-server-x.service"""
    )
    assert dict(line.split() for line in restarts.strip().split("\n")) == {
        "redis-server.service": "0",
        "postgresql@15-main.service": "0",
        "postgresql.service": "0",
        "ssh.service": "1",
        "redis-server-x.service": "1",
    }
    assert host.run("systemctl is-enabled apt-daily-upgrade.timer").strip() == "enabled"
    assert not host.converge(SERVERS)["changed"]
    assert not host.undo()["failures"]
    assert host.run(STATE) == before


def test_irqbalance_fights_pinned_cpus(packaged, host):
    host.run("systemctl enable irqbalance")
    owners = {"numa": {"unit": {"redis-server.service/Service/CPUAffinity": "0"}}}
    assert finding(host.converge(owners), "irqbalance")["decision"] == "refuse"
    done = host.converge(owners, foreign={"irqbalance": "take_over"})
    assert not done["failures"]
    assert host.try_run("systemctl is-enabled irqbalance").stdout.strip() == "disabled"
    assert not host.undo()["failures"]
    assert host.run("systemctl is-enabled irqbalance").strip() == "enabled"


def test_packages_are_named_as_dpkg_names_them(host):
    """One walk over dpkg's lists against `dpkg -S`, file by file."""
    folders = "/usr/lib/sysctl.d/* /lib/udev/rules.d/* /usr/lib/tmpfiles.d/*"
    paths = host.run(f"ls {folders} /etc/security/limits.conf /etc/fstab").split()
    found = host.python(
        """
import json, sys
from hosttune.dpkg import packages_of
from hosttune.system import System
json.dump(packages_of(System(), json.load(sys.stdin)), sys.stdout)
""",
        paths,
    )

    def merged(path):
        """/lib is a link to /usr/lib, and dpkg knows either name."""
        return path if path.startswith(("/usr/", "/etc/")) else f"/usr{path}"

    both = sorted({form for path in paths for form in (path, merged(path), merged(path)[len("/usr") :])})
    theirs = {}
    for line in host.try_run(f"dpkg -S {' '.join(both)} 2>/dev/null").stdout.strip().split("\n"):
        package, _colon, path = line.rpartition(": ")
        theirs[merged(path)] = package.partition(":")[0]
    assert found == {path: theirs[merged(path)] for path in paths if merged(path) in theirs}
    assert len(found) > 10
