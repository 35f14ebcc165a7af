"""Values of a host, asked of its own tools: one command for all names of a kind, nothing of the engine."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from typing import Any

import pytest

#: Floors: the host may have more.
AT_LEAST = {
    "fs.file-max", "fs.nr_open", "fs.aio-max-nr", "kernel.pid_max", "kernel.threads-max", "vm.max_map_count",
    "net.core.rmem_max", "net.core.wmem_max", "net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip
#: The first field of these is not a floor.
BUFFERS = {"net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"}
#: What a container has of its own beside its network.
OWN_IN_CONTAINER = {"sysctl", "file", "limit", "manager", "unit", "service", "postgres", "redis"}
ULIMIT = {
    "nofile": "n", "nproc": "u", "memlock": "l", "stack": "s", "core": "c", "rtprio": "r", "nice": "e",
    "as": "v", "data": "d", "fsize": "f", "sigpending": "i", "msgqueue": "q", "locks": "x", "cpu": "t",
}  # fmt: skip
#: As /proc/PID/limits calls them.
PROC_LIMITS = {
    "LimitNOFILE": "Max open files", "LimitNPROC": "Max processes", "LimitMEMLOCK": "Max locked memory",
    "LimitCORE": "Max core file size", "LimitSTACK": "Max stack size", "LimitRTPRIO": "Max realtime priority",
    "LimitNICE": "Max nice priority", "LimitAS": "Max address space",
}  # fmt: skip


class Reader:
    """What one host says. `check` compares one declared setting with it and fails with both values."""

    def __init__(self, host: Any, declared: Iterable[Any]) -> None:
        self.host = host
        self.declared = list(declared)
        self._root = host.run("id -u").stdout.strip() == "0"
        self._readings: dict[str, dict[str, Any]] = {}

    # asking

    def run(self, script: str, *, fails: bool = False) -> str:
        """What a shell script says as root; its failure fails the test unless it may."""
        shell = f"LC_ALL=C PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin; export LC_ALL PATH; {script}"
        ended = self.host.run(f"{'' if self._root else 'sudo -n '}sh -c {shlex.quote(shell)}")
        if ended.rc != 0 and not fails:
            pytest.fail(
                f"`{script[:200]}` ended with {ended.rc}: {ended.stderr.strip()[:500]}", pytrace=False
            )
        return str(ended.stdout)

    def names(self, kind: str) -> list[str]:
        return [one.name for one in self.declared if one.kind == kind]

    def reading(self, kind: str) -> dict[str, Any]:
        if kind not in self._readings:
            self._readings[kind] = getattr(self, f"_read_{kind}")()
        return self._readings[kind]

    @functools.cached_property
    def container(self) -> bool:
        return self.run("systemd-detect-virt --container", fails=True).strip() not in ("none", "")

    @functools.cached_property
    def network_is_own(self) -> bool:
        """This key lives in the machine's own network namespace only: who sees it shares that one."""
        said = self.run("test -e /proc/sys/net/core/dev_weight && echo shared || echo own")
        return not self.container or said.strip() == "own"

    # checking

    def check(self, setting: Any) -> None:
        check = getattr(self, f"_check_{setting.kind}", None)
        if check is None:
            pytest.fail(f"tests/host has no independent check of the kind {setting.kind}", pytrace=False)
        if self.container and setting.kind not in OWN_IN_CONTAINER:
            not_own("a container shares the machine's kernel and disks")
        check(setting.name, setting.value)

    # kernel

    def _read_sysctl(self) -> dict[str, Any]:
        lines = "; ".join(
            f"printf '%s\\t' {shlex.quote(name)}; "
            f"stat -c %a {shlex.quote(_proc_sys(name))} 2>&1 | tr '\\n' '\\t'; "
            f"sysctl -n -- {shlex.quote(name)} 2>/dev/null | tr '\\n' ' '; echo"
            for name in self.names("sysctl")
        )
        found = {}
        for line in self.run(lines, fails=True).splitlines():
            name, mode, value = line.split("\t", 2)
            found[name] = (mode, squeeze(value))
        return found

    def _check_sysctl(self, name: str, wanted: str) -> None:
        mode, found = self.reading("sysctl")[name]
        if self.container:
            if not re.match(r"net[./]", name):
                not_own("a container shares the machine's kernel")
            if not self.network_is_own:
                not_own("this container shares the machine's network")
            if not mode.isdigit() or not int(mode, 8) & 0o200:
                not_own("this key belongs to the machine's own network")
            if name == "net.ipv4.tcp_congestion_control" and found != wanted:
                allowed = self.run("sysctl -n net.ipv4.tcp_allowed_congestion_control").split()
                if wanted not in allowed:
                    not_own(f"the machine lets a container choose from {' '.join(allowed)} only")
        assert mode.isdigit(), f"this kernel has no {name}: {mode}"
        wanted = squeeze(wanted)
        if name not in AT_LEAST:
            assert found == wanted
            return
        pairs = list(zip(found.split(), wanted.split(), strict=True))
        for index, (has, least) in enumerate(pairs):
            floor = not (name in BUFFERS and index == 0)
            assert int(has) >= int(least) if floor else has == least, f"{found}, not at least {wanted}"

    def _read_module(self) -> dict[str, Any]:
        lines = "; ".join(
            f"if test -d /sys/module/{shlex.quote(name.replace('-', '_'))} || "
            f"modinfo -n {shlex.quote(name)} 2>/dev/null | grep -q builtin; "
            "then echo loaded; else echo unloaded; fi"
            for name in self.names("module")
        )
        return dict(zip(self.names("module"), self.run(lines).split(), strict=True))

    def _check_module(self, name: str, wanted: str) -> None:
        assert self.reading("module")[name] == wanted

    def _read_boot(self) -> dict[str, Any]:
        """The words of the running kernel, of each entry of the menu, and of what sh makes of its sources."""
        fragments = '"$x"; done; printf "%s" "$GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT"'
        sources = f". /etc/default/grub; for x in /etc/default/grub.d/*.cfg; do test ! -e $x || . {fragments}"
        menu = "/boot/grub/grub.cfg"
        lines = self.run(rf"grub-script-check {menu} && grep -E '^\s*linux\s' {menu}")
        entries = [shlex.split(line) for line in lines.splitlines()]
        found: dict[str, Any] = {
            f"entry {number}, {words[1]}": words
            for number, words in enumerate(entries)
            if not {"single", "recovery"} & set(words)
        }
        found["the next update-grub"] = shlex.split(self.run(f"sh -c {shlex.quote(sources)}"))
        found["now"] = shlex.split(self.run("cat /proc/cmdline"))
        return found

    def _check_boot(self, name: str, wanted: Any) -> None:
        values = wanted if isinstance(wanted, list) else [wanted]
        expected = [name if value is True else f"{name}={squeeze(str(value))}" for value in values]
        for plane, words in self.reading("boot").items():
            found = [word for word in words if word.split("=")[0].replace("-", "_") == name.replace("-", "_")]
            if plane == "now" and found[-len(expected) :] != expected:
                pytest.skip(f"waits for the next boot: the kernel has {' '.join(found) or 'nothing of it'}")
            assert found[-len(expected) :] == expected, f"{plane}: {' '.join(found) or 'nothing of it'}"

    def _read_sysfs(self) -> dict[str, Any]:
        return self._cat({name: f"/sys/{name}" for name in self.names("sysfs")})

    def _cat(self, paths: dict[str, str]) -> dict[str, Any]:
        """Files of one line, by key."""
        lines = "; ".join(
            f"printf '%s\\t' {shlex.quote(key)}; cat {shlex.quote(path)} 2>/dev/null | tr '\\n' ' '; echo"
            for key, path in paths.items()
        )
        pairs = (line.split("\t", 1) for line in self.run(lines).splitlines())
        return {key: squeeze(value) for key, value in pairs}

    def _check_sysfs(self, name: str, wanted: str) -> None:
        found = chosen(self.reading("sysfs")[name])
        if not found and name.startswith(("devices/system/cpu/", "firmware/")):
            pytest.skip(f"this host's CPUs or firmware have no {name}")
        if name.endswith("cpumask"):
            found, wanted = (f"{int(mask.replace(',', ''), 16):x}" for mask in (found, wanted))
        assert found == wanted

    def _read_hugepages(self) -> dict[str, Any]:
        """All the pages of each node's pool, and those of them that go when they are released."""
        paths = {}
        for name in self.names("hugepages"):
            node, size = name.split("/")
            number, unit = re.fullmatch(r"(\d+)([kKmMgG])i?[bB]?", size).groups()
            kb = int(number) * {"k": 1, "m": 1024, "g": 1048576}[unit.lower()]
            for count in ("nr", "surplus"):
                folder = f"/sys/devices/system/node/node{node}/hugepages/hugepages-{kb}kB"
                paths[f"{name} {count}"] = f"{folder}/{count}_hugepages"
        return self._cat(paths)

    def _check_hugepages(self, name: str, wanted: str) -> None:
        found = self.reading("hugepages")
        assert int(found[f"{name} nr"]) - int(found[f"{name} surplus"]) == int(wanted)

    def _read_block(self) -> dict[str, Any]:
        """Disks by class, with what lsblk says and the queue attributes that it does not know."""
        said = self.run("lsblk --nodeps --pairs --output NAME,TYPE,ROTA,SCHED,RA")
        disks = [dict(re.findall(r'(\w+)="([^"]*)"', line)) for line in said.splitlines()]
        disks = [disk for disk in disks if disk["TYPE"] == "disk" and not disk["NAME"].startswith("zram")]
        attributes = {name.rsplit("/", 1)[1] for name in self.names("block")}
        others = {
            f"{disk['NAME']}/{attribute}": f"/sys/block/{disk['NAME']}/queue/{attribute}"
            for disk in disks
            for attribute in attributes - {"scheduler", "read_ahead_kb"}
        }
        found: dict[str, Any] = self._cat(others) if others else {}
        by_class: dict[str, list[str]] = {}
        for disk in disks:
            name = disk["NAME"]
            found[f"{name}/scheduler"], found[f"{name}/read_ahead_kb"] = disk["SCHED"], disk["RA"]
            kind = "rotational" if disk["ROTA"] == "1" else "ssd"
            for prefix, special in (("nvme", "nvme"), ("vd", "virtio")):
                kind = special if name.startswith(prefix) else kind
            by_class.setdefault(kind, []).append(name)
            by_class[name] = [name]
        found["disks"] = by_class
        return found

    def _check_block(self, name: str, wanted: str) -> None:
        found = self.reading("block")
        which, attribute = name.rsplit("/", 1)
        named = {one.rsplit("/", 1)[0] for one in self.names("block") if one.endswith(f"/{attribute}")}
        disks = [disk for disk in found["disks"].get(which, []) if disk == which or disk not in named]
        if not disks and which in ("nvme", "ssd", "rotational", "virtio"):
            pytest.skip(f"this host has no {which} disk")
        assert {disk: found[f"{disk}/{attribute}"] for disk in disks or [which]} == dict.fromkeys(
            disks or [which], wanted
        )

    def _read_mount(self) -> dict[str, Any]:
        now = json.loads(self.run("findmnt --json --list --output TARGET,OPTIONS"))
        boot = json.loads(
            self.run("findmnt --fstab --json --list --output TARGET,OPTIONS", fails=True) or "{}"
        )
        return {
            plane: {one["target"]: set(one["options"].split(",")) for one in said.get("filesystems", [])}
            for plane, said in (("now", now), ("boot", boot))
        }

    def _check_mount(self, name: str, wanted: str) -> None:
        for plane, mounts in self.reading("mount").items():
            assert name in mounts, f"{plane}: nothing is mounted on {name}"
            missing = {option for option in wanted.split(",") if option != "defaults"} - mounts[name]
            assert not missing, f"{plane}: {name} has {','.join(sorted(mounts[name]))}"

    # limits, files, units

    def _read_limit(self) -> dict[str, Any]:
        """Of a real login session: only that shows what PAM makes of the files."""
        script = ""
        for name in self.names("limit"):
            domain, kind, item = name.split("/")
            user = shlex.quote(domain)
            if domain == "*":
                user = "nobody"
            elif domain.startswith("@"):
                user = f"$(getent group {shlex.quote(domain[1:])} | cut -d: -f4 | cut -d, -f1)"
            for flag in {"soft": "S", "hard": "H", "-": "HS"}[kind]:
                command = shlex.quote(f"ulimit -{flag} -{ULIMIT[item]}")
                script += f"printf '%s\\t' {shlex.quote(name)}; "
                script += f"su -s /bin/bash {user} -c {command} || echo failed; "
        found: dict[str, Any] = {}
        for line in self.run(script).splitlines():
            name, _tab, value = line.partition("\t")
            found.setdefault(name, []).append(value)
        return found

    @functools.cached_property
    def _ceilings(self) -> dict[str, int]:
        """Hard limits that this host's first process has and may not raise: they are the container's own."""
        if not self.container:
            return {}
        status, _blank, limits = self.run("grep CapEff /proc/1/status; echo; cat /proc/1/limits").partition(
            "\n\n"
        )
        may_raise = int(status.split()[1], 16) >> 24 & 1  # CAP_SYS_RESOURCE
        rows = {line[:26].strip(): line[26:].split()[1] for line in limits.splitlines()[1:]}
        return {} if may_raise else {label: int(hard) for label, hard in rows.items() if hard.isdigit()}

    def _within_container(self, label: str, *wanted: str) -> None:
        ceiling = self._ceilings.get(label)
        if ceiling is not None and any(
            one == "infinity" or int(one) > ceiling for one in map(_infinite, wanted)
        ):
            not_own(f"the container is held to {label.lower()} {ceiling}")

    def _check_limit(self, name: str, wanted: str) -> None:
        self._within_container(PROC_LIMITS.get(f"Limit{name.rsplit('/', 1)[1].upper()}", ""), wanted)
        found = [_infinite(value) for value in self.reading("limit")[name]]
        assert set(found) == {_infinite(wanted)}, f"a session has {', '.join(found)}"

    def _read_file(self) -> dict[str, Any]:
        paths = " ".join(map(shlex.quote, self.names("file")))
        said = self.run(
            f"stat --printf '%n\\t%a %U:%G\\n' {paths} 2>/dev/null; echo; sha256sum {paths} 2>/dev/null",
            fails=True,
        )
        stats, _blank, sums = said.partition("\n\n") if "\n\n" in said else ("", "", said)
        found = dict(line.split("\t") for line in stats.splitlines())
        digests = {line[66:]: line[:64] for line in sums.strip().splitlines()}
        return {path: (mode, digests.get(path)) for path, mode in found.items()}

    def _check_file(self, name: str, wanted: dict[str, Any]) -> None:
        assert name in self.reading("file"), f"there is no {name}"
        mode, digest = self.reading("file")[name]
        owner = f"{wanted.get('owner', 'root')}:{wanted.get('group', 'root')}"
        assert mode == f"{int(wanted.get('mode', '0644'), 8):o} {owner}"
        if not wanted.get("secret"):
            assert digest == hashlib.sha256(wanted["content"].encode()).hexdigest(), "another content"

    def _read_manager(self) -> dict[str, Any]:
        return _properties(self.run("systemctl show"))

    @functools.cached_property
    def watchdog(self) -> str:
        """The identity of the first hardware watchdog, empty where there is none."""
        said = self.run("cat /sys/class/watchdog/watchdog0/identity", fails=True).strip()
        return "" if self.container or said == "Software Watchdog" else said

    def _check_manager(self, name: str, wanted: str) -> None:
        if "Watchdog" in name and not self.watchdog:
            not_own("it has no hardware watchdog")
        _check_property(self.reading("manager"), name, wanted, "")

    @functools.cached_property
    def _instances(self) -> dict[str, list[str]]:
        """The units that a declared name stands for: a template stands for its loaded instances."""
        units = sorted({name.split("/")[0] for name in self.names("unit")})
        found = {unit: [unit] for unit in units if "@." not in unit}
        templates = [unit for unit in units if "@." in unit]
        if templates:
            patterns = " ".join(shlex.quote(unit.replace("@.", "@*.")) for unit in templates)
            said = self.run(f"systemctl list-units --all --plain --no-legend {patterns}")
            loaded = [line.split()[0] for line in said.splitlines()]
            for unit in templates:
                stem, suffix = unit.split("@.")
                found[unit] = [
                    one for one in loaded if one.startswith(f"{stem}@") and one.endswith(f".{suffix}")
                ]
        return found

    def _read_unit(self) -> dict[str, Any]:
        units = sorted({one for instances in self._instances.values() for one in instances})
        if not units:
            return {}
        words = " ".join(map(shlex.quote, units))
        blocks = self.run(f"systemctl show -- {words}").strip().split("\n\n")
        found: dict[str, Any] = {unit: _properties(text) for unit, text in zip(units, blocks, strict=True)}
        for unit in units:
            found[unit]["files"] = ""
        texts = "; ".join(f"echo '#unit {unit}'; systemctl cat -- {shlex.quote(unit)}" for unit in units)
        for part in self.run(texts, fails=True).split("#unit ")[1:]:
            unit, _newline, text = part.partition("\n")
            found[unit]["files"] = text
        pids = {unit: found[unit].get("MainPID", "0") for unit in units}
        running = {unit: pid for unit, pid in pids.items() if pid != "0"}
        script = "; ".join(f"echo '#unit {unit}'; cat /proc/{pid}/limits" for unit, pid in running.items())
        for part in self.run(script, fails=True).split("#unit ")[1:] if running else []:
            unit, _newline, text = part.partition("\n")
            found[unit]["proc_limits"] = {
                line[:26].strip(): line[26:].split()[:2] for line in text.splitlines()[1:]
            }
        return found

    def _check_unit(self, name: str, wanted: Any) -> None:
        unit, _section, directive = name.split("/", 2)
        instances = self._instances[unit]
        assert instances, f"no instance of {unit} is loaded"
        for instance in instances:
            found = self.reading("unit")[instance]
            assert found.get("LoadState") == "loaded", f"{instance} is {found.get('LoadState')}"
            _check_property(found, directive, wanted, found["files"])

    def check_process_limit(self, name: str, wanted: str) -> None:
        """What the running process has, soft and hard."""
        unit, _section, directive = name.split("/", 2)
        running = [
            one for one in self._instances[unit] if self.reading("unit")[one].get("MainPID", "0") != "0"
        ]
        if not running:
            pytest.skip(f"no process of {unit} runs")
        soft, _colon, hard = wanted.partition(":")
        self._within_container(PROC_LIMITS[directive], soft, hard or soft)
        for instance in running:
            found = self.reading("unit")[instance]["proc_limits"][PROC_LIMITS[directive]]
            assert [_infinite(one) for one in found] == [_infinite(soft), _infinite(hard or soft)]

    def _read_service(self) -> dict[str, Any]:
        words = " ".join(map(shlex.quote, self.names("service")))
        enabled = self.run(
            f"for u in {words}; do systemctl is-enabled -- $u 2>/dev/null || true; done", fails=True
        )
        active = self.run(f"systemctl is-active -- {words}", fails=True)
        answers = zip(enabled.splitlines(), active.splitlines(), strict=True)
        return dict(zip(self.names("service"), answers, strict=True))

    def _check_service(self, name: str, wanted: str) -> None:
        found = self.reading("service")[name]
        if self.container and "active" in wanted.split() and found[1] == "inactive":
            said = self.run(f"systemctl status --lines=0 --no-pager -- {shlex.quote(name)}", fails=True)
            unmet = re.search(r"(Condition(Capability|Virtualization)=\S+) was not met", said)
            if unmet:
                not_own(f"systemd does not start {name} in a container: {unmet[1]}")
        assert set(wanted.split()) <= set(found), f"{name} is {' '.join(found)}"

    # databases

    def _read_postgres(self) -> dict[str, Any]:
        """Cluster -> parameter -> (setting, unit, pending_restart), as the server itself sees it."""
        found: dict[str, Any] = {}
        for cluster in {name.rsplit("/", 1)[0] for name in self.names("postgres")}:
            version, name = cluster.split("/")
            query = "SELECT name, setting, coalesce(unit, ''), pending_restart FROM pg_settings"
            said = self.run(
                f"cd /; runuser -u postgres -- psql --cluster {shlex.quote(f'{version}/{name}')} "
                f"-XAt -F '|' -c {shlex.quote(query)} postgres"
            )
            rows = (line.split("|") for line in said.splitlines())
            found[cluster] = {row[0]: ("|".join(row[1:-2]), row[-2], row[-1]) for row in rows if len(row) > 3}
        return found

    def _check_postgres(self, name: str, wanted: str) -> None:
        cluster, parameter = name.rsplit("/", 1)
        found, unit, pending = self.reading("postgres")[cluster][parameter]
        assert pending == "f", "the server waits for a restart to take its configured value"
        assert postgres_value(wanted, unit) == postgres_value(f"{found}", unit, bare=True), (
            f"{found} {unit}".strip()
        )

    def _read_redis(self) -> dict[str, Any]:
        """Instance -> directive -> value as CONFIG GET prints it, asked by the suite's own user."""
        found: dict[str, Any] = {}
        for instance in {name.split("/")[0] for name in self.names("redis")}:
            folder = "/run/redis" if instance == "server" else f"/run/redis-{instance}"
            declared = {
                one.name: one.value
                for one in self.declared
                if one.kind == "redis" and "/unixsocket" in one.name
            }
            socket = declared.get(f"{instance}/unixsocket", f"{folder}/redis-server.sock")
            names = [one.split("/")[1] for one in self.names("redis") if one.startswith(f"{instance}/")]
            # redis-cli prints name and value on a line each.
            asked = "; ".join(f"$ask {shlex.quote(name)}" for name in names)
            said = self.run(
                f"read -r user REDISCLI_AUTH < /etc/hosttune/redis-{shlex.quote(instance)}.login; "
                f"export REDISCLI_AUTH; "
                f'ask="redis-cli -s {shlex.quote(socket)} --no-auth-warning --user $user --raw config get"; '
                f"{asked}"
            )
            lines = said.split("\n")
            found[instance] = dict(zip(lines[0::2], lines[1::2], strict=False))
        return found

    def _check_redis(self, name: str, wanted: Any) -> None:
        instance, directive = name.split("/")
        found = self.reading("redis")[instance]
        assert directive in found, f"the server has no {directive}"
        wanted = " ".join(wanted) if isinstance(wanted, list) else str(wanted)
        assert redis_value(found[directive]) == redis_value(wanted), found[directive]


def not_own(why: str) -> None:
    """Counted as skipped and said, never passed."""
    pytest.skip(f"not this host's own: {why}")


def squeeze(text: str) -> str:
    return " ".join(text.split())


def chosen(text: str) -> str:
    """The one in brackets of `always [madvise] never`."""
    brackets = re.search(r"\[([^\]]+)\]", text)
    return brackets.group(1) if brackets else text


def postgres_value(text: str, unit: str, bare: bool = False) -> object:
    """A parameter in bytes, milliseconds or as it stands; a bare number is in the parameter's own unit."""
    sizes = {"B": 1, "kB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}
    times = {"us": 0.001, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
    own = re.fullmatch(r"(\d*)(\w+)", unit)
    factor = 1.0
    if own:
        factor = float(own[1] or 1) * {**sizes, **times}[own[2]]
    parts = re.fullmatch(r"(-?[\d.]+)\s*([A-Za-z]*)", text)
    if not parts:
        words = {"true": "on", "yes": "on", "on": "on", "false": "off", "no": "off", "off": "off"}
        return words.get(text.lower()) or [one.strip(" \"'") for one in text.split(",")]
    number = float(parts[1])
    if bare or not parts[2]:
        # -1 and 0 switch off, whatever the unit.
        return number * factor if number > 0 else number
    return number * {**sizes, **times}[parts[2]]


def redis_value(text: str) -> list[str]:
    """The words of a directive, sizes in bytes (kb is 1024, k is 1000) and the replica class by one name."""
    sizes = {"k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}
    found = []
    for word in text.lower().split():
        size = re.fullmatch(r"(\d+)(k|kb|m|mb|g|gb)", word)
        found.append(str(int(size[1]) * sizes[size[2]]) if size else {"replica": "slave"}.get(word, word))
    return found


def _proc_sys(name: str) -> str:
    """As sysctl(8) reads a name: the first separator says which one separates."""
    first = re.search(r"[./]", name)
    if first and first.group() == ".":
        name = name.translate(str.maketrans("./", "/."))
    return f"/proc/sys/{name}"


def _infinite(text: str) -> str:
    return "infinity" if text in ("unlimited", "infinity", "-1") else text


def _properties(text: str) -> dict[str, Any]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _check_property(found: dict[str, Any], directive: str, wanted: Any, files: str) -> None:
    """A directive as `systemctl show` prints it, or else as the last line of the unit's files."""
    values = wanted if isinstance(wanted, list) else [str(wanted)]
    wanted = values[-1]
    if re.search("Limit[A-Z]+$", directive) and directive in found:
        soft, _colon, hard = wanted.partition(":")
        pair = [found[f"{directive}Soft"], found[directive]]
        assert [_infinite(one) for one in pair] == [_infinite(soft), _infinite(hard or soft)]
        return
    shown = found.get(directive, found.get(re.sub("Sec$", "USec", directive)))
    if shown is None:
        lines = re.findall(rf"^{re.escape(directive)}=(.*)$", files, re.MULTILINE)
        assert lines[-1:] == [wanted], f"{directive} is not in force"
        return
    command = re.search(r"argv\[\]=(.*?) ; ", shown) if directive.startswith("Exec") else None
    if command:
        assert command[1] == wanted.lstrip("-@:+!"), f"systemd runs {command[1]}"
        return
    assert _plain(shown) == _plain(wanted), f"systemd has {shown}"


def _plain(text: str) -> object:
    """CPU lists, sizes and switches in one form."""
    text = text.strip()
    if re.fullmatch(r"\d+(-\d+)?([ ,]+\d+(-\d+)?)*", text) and not text.isdigit():
        cpus: set[int] = set()
        for part in re.split(r"[ ,]+", text):
            first, _dash, last = part.partition("-")
            cpus |= set(range(int(first), int(last or first) + 1))
        return frozenset(cpus) if len(cpus) > 1 else str(min(cpus))
    size = re.fullmatch(r"(\d+)([KMGT])", text)
    if size:
        return str(int(size[1]) * 1024 ** ("KMGT".index(size[2]) + 1))
    return {"true": "yes", "on": "yes", "false": "no", "off": "no"}.get(text.lower(), text)
