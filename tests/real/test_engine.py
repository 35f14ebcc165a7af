"""The whole walk on a real host: apply, find, mend, undo."""


def test_apply_drift_and_undo(host):
    before = host.run("sysctl -n net.ipv4.tcp_max_syn_backlog").strip()
    owners = {"kernel": {"sysctl": {"net.ipv4.tcp_max_syn_backlog": "4321"}}}
    applied = host.converge(owners)
    assert host.verdicts(applied) == {"net.ipv4.tcp_max_syn_backlog": "in_sync"}, applied
    assert host.run("sysctl -n net.ipv4.tcp_max_syn_backlog").strip() == "4321"
    assert not host.converge(owners)["changed"]
    host.run("sysctl -qw net.ipv4.tcp_max_syn_backlog=77")
    assert host.verdicts(host.drift()) == {"net.ipv4.tcp_max_syn_backlog": "live_drift"}
    assert not host.undo()["failures"]
    assert host.run("sysctl -n net.ipv4.tcp_max_syn_backlog").strip() == before
