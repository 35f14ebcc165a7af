"""One changed setting of sixty moves that one alone, seen by a sampler that never looks away."""

import json

#: Prints, once its standard input ends, every value that each key was seen with, in order.
SAMPLER = """
import json, sys, threading
paths = {name: "/proc/sys/" + name.replace(".", "/") for name in json.loads(sys.argv[1])}
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
seen = {name: [] for name in paths}
print("sampling", flush=True)
rounds = 0
while not ended.is_set() or not rounds:
    rounds += 1
    for name, path in paths.items():
        with open(path) as stream:
            value = " ".join(stream.read().split())
        if seen[name][-1:] != [value]:
            seen[name].append(value)
json.dump({"rounds": rounds, "seen": seen}, sys.stdout)
"""

CHANGED = "net.ipv4.tcp_max_syn_backlog"


def sixty(host):
    """Sixty numbers of this host's own network as they are, among them one to change."""
    found = {}
    for line in host.run(
        "find /proc/sys/net/ipv4 -maxdepth 1 -type f -perm 644 -printf 'net.ipv4.%f\\n' | sort | xargs sysctl"
    ).splitlines():
        name, _, value = line.partition(" = ")
        if value.isdigit():
            found[name] = value
    changed = found.pop(CHANGED)
    assert len(found) >= 59
    return {**dict(list(found.items())[:59]), CHANGED: changed}


def sampled(host, keys, converge):
    """What the sampler saw while `converge` ran on the host."""
    host.put(
        {"/opt/hosttune-test/sampler.py": SAMPLER, "/opt/hosttune-test/request.json": json.dumps(converge)}
    )
    said = host.run(
        "cd /opt/hosttune-test; rm -f gate; mkfifo gate; "
        f"python3 sampler.py '{json.dumps(list(keys))}' < gate > seen & sampler=$!; exec 3> gate; "
        "until grep -q sampling seen 2>/dev/null; do sleep 0.05; done; "
        "python3 -B driver.py converge < request.json > answer; exec 3>&-; wait $sampler; rm gate; "
        "tail -n +2 seen; echo; cat answer"
    )
    seen, _, answer = said.partition("\n")
    return json.loads(seen), json.loads(answer)


def test_a_sampler_sees_one_key_move_once(host):
    keys = sixty(host)
    assert not host.converge({"kernel": {"sysctl": keys}})["failures"]
    was, new = keys[CHANGED], str(int(keys[CHANGED]) + 1000)
    before = host.run("find /etc /var/lib/hosttune -type f -printf '%p %T@\\n'").splitlines()
    saw, answer = sampled(host, keys, {"owners": {"kernel": {"sysctl": {**keys, CHANGED: new}}}})
    assert saw["rounds"] > 20
    moved = {name: values for name, values in saw["seen"].items() if len(values) > 1}
    assert moved == {CHANGED: [was, new]}
    assert [one["name"] for one in answer["settings"] if one["changed"]] == [CHANGED]
    after = host.run("find /etc /var/lib/hosttune -type f -printf '%p %T@\\n'").splitlines()
    assert {line.split()[0] for line in set(after) - set(before)} == {
        "/etc/sysctl.d/60-hosttune-kernel.conf",
        "/etc/hosttune/manifest.json",
        "/var/lib/hosttune/ledger.json",
        "/var/lib/hosttune/ledger.copy.json",
        "/var/lib/hosttune/lock",
    }


def test_a_second_run_moves_nothing(host):
    keys = sixty(host)
    host.converge({"kernel": {"sysctl": keys}})
    times = "find /etc /var/lib/hosttune -type f ! -name lock -printf '%p %T@ %C@\\n'"
    before = host.run(times)
    saw, answer = sampled(host, keys, {"owners": {"kernel": {"sysctl": keys}}})
    assert all(len(values) == 1 for values in saw["seen"].values())
    assert not answer["changed"]
    assert host.run(times) == before


def test_undo_moves_each_key_once(host):
    keys = sixty(host)
    asked = {**keys, CHANGED: str(int(keys[CHANGED]) + 1000)}
    host.converge({"kernel": {"sysctl": asked}})
    saw, answer = sampled(host, keys, {"owners": {}, "present": False})
    assert not answer["failures"]
    moved = {name: values for name, values in saw["seen"].items() if len(values) > 1}
    assert moved == {CHANGED: [asked[CHANGED], keys[CHANGED]]}
