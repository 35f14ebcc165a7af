"""A host is what its roles declare, asked of the system's own tools (reading.py), never of the engine."""

from __future__ import annotations

import json
import shlex

import pytest


def test_setting(reader, setting):
    reader.check(setting)


def test_process_limit(reader, process_limit):
    reader.check_process_limit(process_limit.name, process_limit.value)


def test_manifest_lists_exactly_what_is_declared(reader, declared):
    manifest = json.loads(reader.run("cat /etc/hosttune/manifest.json"))
    listed = {
        (owner, kind, name)
        for owner, kinds in manifest["owners"].items()
        for kind, names in kinds.items()
        for name in names
    }
    assert listed == {(one.owner, one.kind, one.name) for one in declared}


@pytest.mark.owner("drift")
def test_the_host_itself_finds_no_drift(reader):
    said = reader.run("hosttune-drift --no-write; echo status $?")
    # 3: nothing worse than what somebody answers for.
    assert said.splitlines()[-1] in ("status 0", "status 3"), said


@pytest.mark.owner("orchestrator")
def test_url_answers(reader, url):
    status = reader.run(
        f"curl --silent --output /dev/null --max-time 10 --write-out '%{{http_code}}' {shlex.quote(url)}",
        fails=True,
    )
    assert status == "200", f"{url} answers {status or 'nothing'}"


@pytest.mark.owner("redis")
def test_redis_started_without_a_warning(reader):
    if reader.container:
        pytest.skip("not this host's own: Redis warns of the machine's kernel")
    log = reader.run("cat /var/log/redis/redis-server.log")
    start = log.rfind("Redis is starting")
    assert start >= 0, "the log tells of no start"
    assert [line for line in log[start:].splitlines() if "warning" in line.lower()] == []


#: Whoever may steer the system clock, by unit and by program.
CLOCK_UNITS = (
    "chrony.service systemd-timesyncd.service ntp.service ntpsec.service openntpd.service timemaster.service "
    "'phc2sys@*'"
)
CLOCK_PROGRAMS = "chronyd|ntpd|systemd-timesyn|phc2sys|timemaster|openntpd"


@pytest.mark.owner("time")
def test_one_program_keeps_the_clock(reader):
    if reader.container:
        pytest.skip("not this host's own: a container's clock is the machine's")
    units = reader.run(f"systemctl list-units --state=active --plain --no-legend {CLOCK_UNITS}")
    assert [line.split()[0] for line in units.splitlines()] == ["chrony.service"]
    assert set(reader.run(f"ps -eo comm= | grep -E '^({CLOCK_PROGRAMS})' || true").split()) == {"chronyd"}


@pytest.mark.owner("time")
def test_chrony_reads_what_is_declared(reader, declared):
    """chronyd's own reading of its files, and the sources that it asks now."""
    if reader.container:
        pytest.skip("not this host's own: a container's clock is the machine's")
    words = reader.run("tr '\\0' '\\n' < /proc/$(pgrep -o -x chronyd)/cmdline").splitlines()
    assert "-f" in words, f"chronyd was started as {' '.join(words)}: it waits for its restart"
    lines = reader.run(f"chronyd -p -f {shlex.quote(words[words.index('-f') + 1])}").splitlines()
    steps = [line.split() for line in lines if line.startswith("makestep")]
    assert 1 <= int(steps[-1][2]) <= 3, "the clock may be stepped in the session"
    assert "Reference ID" in reader.run("chronyc tracking")
    sources = {
        line.split()[1]
        for one in declared
        if one.kind == "file" and one.name.endswith(".sources")
        for line in one.value["content"].splitlines()
        if line.startswith("server")
    }
    asked = {row.split(",")[2] for row in reader.run("chronyc -c -N sources -a").splitlines()}
    assert sources <= asked


@pytest.mark.owner("watchdog")
def test_the_watchdog_is_armed(reader, declared):
    if not reader.watchdog:
        pytest.skip("not this host's own: it has no hardware watchdog")
    runtime = {one.name: one.value for one in declared if one.kind == "manager"}["RuntimeWatchdogSec"]
    state = reader.run("cat /sys/class/watchdog/watchdog0/state").strip()
    assert state == ("inactive" if runtime in ("off", "0") else "active")
    assert f"Identity:      {reader.watchdog}" in reader.run("wdctl")
