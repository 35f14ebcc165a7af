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
