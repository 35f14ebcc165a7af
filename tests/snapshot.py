#!/usr/bin/python3
"""Everything below /etc and the live values of a host, as JSON: the difference of two runs is what stayed.

Read with the system's own tools and plain file access, never with the engine. Types, modes, owners, link
targets and contents count; times do not.
"""

import hashlib
import json
import os
import stat
import subprocess
import sys

# What moves by itself, on every host.
VOLATILE = (
    "fs.dentry-state", "fs.file-nr", "fs.inode-nr", "fs.inode-state", "fs.aio-nr", "fs.quota.",
    "fs.binfmt_misc.",
    "kernel.ns_last_pid", "kernel.random.", "kernel.pty.nr", "kernel.tainted", "kernel.sched_domain",
    "net.netfilter.nf_conntrack_count", "net.ipv4.tcp_fastopen_key", "net.ipv6.conf.all.stable_secret",
    "vm.stat_refresh", "kernel.perf_event_max_sample_rate", "net.ipv4.neigh.", "net.ipv6.neigh.",
    "kernel.threads-max", "user.",
    # Drawn or computed anew by every boot.
    "net.core.netdev_rss_key", "vm.user_reserve_kbytes", "vm.admin_reserve_kbytes",
)  # fmt: skip
UNIT_PROPERTIES = (
    "LimitNOFILE,LimitNOFILESoft,TasksMax,CPUAffinity,NUMAPolicy,NUMAMask,UnitFileState,OOMScoreAdjust"
)


def tree(top):
    found = {}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            state = os.lstat(path)
            entry = [stat.filemode(state.st_mode), state.st_uid, state.st_gid]
            if stat.S_ISLNK(state.st_mode):
                entry.append(os.readlink(path))
            elif stat.S_ISREG(state.st_mode):
                with open(path, "rb") as stream:
                    entry.append(hashlib.sha256(stream.read()).hexdigest())
            found[path] = entry
    return found


def said(*argv):
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def sysctls():
    lines = [line.partition(" = ") for line in said("sysctl", "-a").splitlines()]
    return {key: " ".join(value.split()) for key, _, value in lines if key and not key.startswith(VOLATILE)}


def read(path):
    try:
        with open(path) as stream:
            return stream.read().strip()
    except OSError as error:
        return f"error: {error.strerror}"


def queues():
    found = {}
    for disk in sorted(os.listdir("/sys/block")):
        for name in ("scheduler", "read_ahead_kb", "nr_requests", "rq_affinity"):
            path = f"/sys/block/{disk}/queue/{name}"
            if os.path.exists(path):
                found[path] = read(path)
    return found


def live():
    units = ("postgresql@15-main.service", "redis-server.service", "cron.service", "ssh.service")
    return {
        "sysctl": sysctls(),
        "queue": queues(),
        "thp": {name: read("/sys/kernel/mm/transparent_hugepage/" + name) for name in ("enabled", "defrag")},
        "mount": said("findmnt", "--noheadings", "--raw", "-o", "TARGET,OPTIONS", "-t", "ext4,xfs,overlay"),
        "units": {unit: said("systemctl", "show", "-p", UNIT_PROPERTIES, unit) for unit in units},
        "manager": said("systemctl", "show", "-p", "DefaultLimitNOFILE,DefaultTasksMax,RuntimeWatchdogUSec"),
        "enabled": [
            line
            for line in said("systemctl", "list-unit-files", "--no-legend", "--plain").splitlines()
            if ".scope " not in line  # a session of somebody who is logged in
        ],
    }


def flat(value, path=""):
    if isinstance(value, dict):
        for key in value:
            yield from flat(value[key], f"{path}/{key}" if not str(key).startswith("/") else path + key)
    else:
        yield path, value


def differences(before, after):
    first, second = dict(flat(before)), dict(flat(after))
    for path in sorted(set(first) | set(second)):
        if first.get(path) != second.get(path):
            yield "{}: was {}, is {}".format(path, first.get(path, "absent"), second.get(path, "absent"))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        with open(sys.argv[1]) as one, open(sys.argv[2]) as other:
            left = list(differences(json.load(one), json.load(other)))
        print("\n".join(left) or "no difference")
        sys.exit(1 if left else 0)
    json.dump({"etc": tree("/etc"), "live": live()}, sys.stdout, indent=1, sort_keys=True)
