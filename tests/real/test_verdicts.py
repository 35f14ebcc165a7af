"""Every verdict that a container host can produce, produced there, and gone with its cause.

The others (pending_reboot, and what vm.*, sysfs and disks say) need a kernel of one's own: molecule/metal.
"""

from __future__ import annotations

import datetime
import json

import pytest

KEY = "net.ipv4.tcp_max_syn_backlog"
OWNERS = {"kernel": {"sysctl": {KEY: "4321"}}}
OURS = "/etc/sysctl.d/60-hosttune-kernel.conf"


def entry(found, name=KEY):
    assert not found.get("error"), found
    return next(one for one in found["settings"] if one["name"] == name)


@pytest.fixture
def converged(host):
    assert entry(host.converge(OWNERS))["verdict"] == "in_sync"
    return host


def test_in_sync(converged):
    found = converged.drift()
    assert entry(found)["verdict"] == "in_sync"
    assert found["exit_status"] == 0
    assert converged.run(f"sysctl -n {KEY}").strip() == "4321"


def test_live_drift_heals_with_the_value(converged):
    converged.run(f"sysctl -qw {KEY}=77")
    found = converged.drift()
    assert (entry(found)["verdict"], found["exit_status"]) == ("live_drift", 1)
    assert entry(found)["live"] == "77"
    converged.run("/lib/systemd/systemd-sysctl")  # what a boot does
    assert entry(converged.drift())["verdict"] == "in_sync"


def test_boot_bomb_is_what_a_boot_would_undo(converged):
    converged.run(f"echo '{KEY} = 88' > /etc/sysctl.d/zz-vendor.conf")
    try:
        found = entry(converged.drift())
        assert found["verdict"] == "boot_bomb"
        assert found["persisted"] == {
            "value": "88",
            "file": "/etc/sysctl.d/zz-vendor.conf",
            "line": 1,
            "overridden": [{"value": "4321", "file": OURS, "line": 2}],
        }
        converged.run("/lib/systemd/systemd-sysctl")
        assert converged.run(f"sysctl -n {KEY}").strip() == "88", "the boot does not do what was foretold"
        assert entry(converged.drift())["verdict"] == "drift"
    finally:
        converged.run(f"rm /etc/sysctl.d/zz-vendor.conf; sysctl -qw {KEY}=4321")
    assert entry(converged.drift())["verdict"] == "in_sync"


def test_shadowed_is_right_by_another_hand(converged):
    converged.run(f"echo '{KEY} = 4321' > /etc/sysctl.d/zz-vendor.conf")
    try:
        found = converged.drift()
        assert (entry(found)["verdict"], found["exit_status"]) == ("shadowed", 0)
        assert "/etc/sysctl.d/zz-vendor.conf" in entry(found)["reason"]
    finally:
        converged.run("rm /etc/sysctl.d/zz-vendor.conf")


def test_unsupported_says_why(host):
    found = host.converge(
        {"kernel": {"sysctl": {"vm.swappiness": "10", "net.core.netdev_max_backlog": "1000"}}}
    )
    assert host.verdicts(found) == {
        "vm.swappiness": "unsupported",
        "net.core.netdev_max_backlog": "unsupported",
    }
    assert entry(found, "vm.swappiness")["reason"] == "kernel shared with the machine"
    assert "network namespace" in entry(found, "net.core.netdev_max_backlog")["reason"]


def test_unknown_when_the_system_s_tool_gives_no_answer(host):
    name = "redis-server.service/Service/TasksMax"
    owners = {"limits": {"unit": {name: "512"}}}
    host.converge(owners)
    host.run("mount --bind /bin/false /bin/systemctl")
    try:
        found = host.drift()
        assert (entry(found, name)["verdict"], found["exit_status"]) == ("unknown", 2)
    finally:
        host.run("umount /bin/systemctl")
    assert entry(host.drift(), name)["verdict"] != "unknown"


def test_pending_restart_until_the_service_restarts(host):
    name = "redis-server.service/Service/LimitNOFILE"
    found = entry(host.converge({"limits": {"unit": {name: "60000:524288"}}}), name)
    try:
        assert (found["verdict"], found["needs"], found["disruption"]) == (
            "pending_restart",
            "restart",
            "restarts",
        )
        pid = host.run("systemctl show --value -p MainPID redis-server").strip()
        assert "60000" not in host.run(f"grep 'open files' /proc/{pid}/limits")
        late = host.drift(grace_seconds=-1.0)
        assert (entry(late, name)["overdue"], late["exit_status"]) == (True, 1)
        host.run("systemctl restart redis-server")
        assert entry(host.drift(), name)["verdict"] == "in_sync"
    finally:
        host.undo()
        host.run("systemctl restart redis-server")


def test_pending_restart_of_a_parameter_that_postgresql_takes_at_start(host):
    found = entry(
        host.converge({"postgres": {"postgres": {"15/main/max_connections": "77"}}}),
        "15/main/max_connections",
    )
    assert (found["verdict"], found["disruption"]) == ("pending_restart", "restarts")
    sql = "SELECT pending_restart FROM pg_settings WHERE name = 'max_connections'"
    assert host.run(f'su postgres -c "psql -XAtc \\"{sql}\\""').strip() == "t"


def test_pending_window_until_its_disruption_is_allowed(host):
    host.put(
        {
            "/etc/systemd/system/htx-noise.service": "[Service]\nExecStart=/bin/sleep infinity\n"
            "[Install]\nWantedBy=multi-user.target\n"
        }
    )
    host.run("systemctl daemon-reload; systemctl enable --now htx-noise.service")
    owners = {"numa": {"service": {"htx-noise.service": "disabled inactive"}}}
    try:
        found = entry(host.converge(owners), "htx-noise.service")
        assert (found["verdict"], found["disruption"]) == ("pending_window", "restarts")
        assert host.run("systemctl is-active htx-noise; systemctl is-enabled htx-noise || true").split() == [
            "active",
            "disabled",
        ]
        assert entry(host.drift(), "htx-noise.service")["verdict"] == "pending_window"
        again = host.converge(owners)
        assert not again["changed"], again["settings"]
        found = entry(host.converge(owners, disruption_allowed="restarts"), "htx-noise.service")
        assert found["verdict"] == "in_sync"
        assert host.try_run("systemctl is-active htx-noise").stdout.strip() == "inactive"
        assert entry(host.drift(), "htx-noise.service")["verdict"] == "in_sync"
    finally:
        host.undo()
        host.run(
            "systemctl disable --now htx-noise.service; rm /etc/systemd/system/htx-noise.service; "
            "systemctl daemon-reload"
        )


def test_clamped_where_the_kernel_takes_another_value(host):
    name = "net.ipv4.neigh.lo.retrans_time_ms"
    was = host.run(f"sysctl -n {name}").strip()
    took = host.run(f"sysctl -qw {name}=1001; sysctl -n {name}; sysctl -qw {name}={was}").strip()
    assert took != "1001", "this kernel counts milliseconds: nothing is rounded"
    found = entry(host.converge({"kernel": {"sysctl": {name: "1001"}}}), name)
    assert (found["verdict"], found["live"]) == ("clamped", took)
    drift = host.drift()
    assert (entry(drift, name)["verdict"], drift["exit_status"]) == ("clamped", 0)
    assert not host.converge({"kernel": {"sysctl": {name: "1001"}}})["changed"]
    host.undo()
    assert host.run(f"sysctl -n {name}").strip() == was


def test_waived_while_somebody_answers_for_it(converged):
    def waive(expires):
        waiver = {"kind": "sysctl", "name": KEY, "owner": "ann", "reason": "trial", "ticket": "OPS-1"}
        converged.put(
            {
                "/etc/hosttune/waivers.json": json.dumps(
                    {"schema": 1, "waivers": [{**waiver, "expires": f"{expires:%Y-%m-%dT%H:%M:%SZ}"}]}
                )
            }
        )

    now = datetime.datetime.now(datetime.timezone.utc)
    converged.run(f"sysctl -qw {KEY}=77")
    waive(now + datetime.timedelta(days=1))
    found = converged.drift()
    assert (entry(found)["verdict"], entry(found)["waived_verdict"]) == ("waived", "live_drift")
    assert found["exit_status"] == 3
    waive(now - datetime.timedelta(seconds=1))
    found = converged.drift()
    assert (entry(found)["verdict"], found["exit_status"]) == ("live_drift", 1)


def test_what_systemd_does_not_start_in_a_container_is_unsupported_with_its_condition(host):
    unit = "hostile-clock.service"
    host.run(
        f"printf '[Unit]\\nConditionCapability=CAP_SYS_TIME\\n[Service]\\nExecStart=/bin/sleep infinity\\n"
        f"[Install]\\nWantedBy=multi-user.target\\n' "
        f"> /etc/systemd/system/{unit}; systemctl daemon-reload"
    )
    try:
        asked = {
            "time": {"service": {unit: "enabled active"}},
            "watchdog": {"manager": {"RuntimeWatchdogSec": "30s"}},
        }
        host.converge(asked)  # tries, and systemd remembers what was not met
        found = host.converge(asked)
        assert not found.get("changed"), found
        assert entry(found, unit)["verdict"] == "unsupported"
        assert "ConditionCapability=CAP_SYS_TIME is not met" in entry(found, unit)["reason"]
        assert entry(found, "RuntimeWatchdogSec")["verdict"] == "unsupported"
        assert "a container has no watchdog" in entry(found, "RuntimeWatchdogSec")["reason"]
        assert host.drift()["exit_status"] == 0
    finally:
        host.run(f"systemctl disable {unit}; rm /etc/systemd/system/{unit}; systemctl daemon-reload")
