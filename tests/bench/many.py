"""250 settings over all kinds that need no server, fixed here, for the bench's ten hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_INTERFACES = ("all", "default", "lo", "eth0")
#: Of each interface, at values that change nothing on a host that forwards no packets.
_OF_INTERFACE = {
    "accept_local": "0",
    "accept_redirects": "0",
    "accept_source_route": "0",
    "arp_accept": "0",
    "arp_announce": "0",
    "arp_filter": "0",
    "arp_ignore": "0",
    "arp_notify": "0",
    "bc_forwarding": "0",
    "bootp_relay": "0",
    "log_martians": "1",
    "proxy_arp": "0",
    "route_localnet": "0",
    "rp_filter": "2",
    "secure_redirects": "0",
    "send_redirects": "0",
    "src_valid_mark": "0",
}
#: Units that do not run: their values need no restart.
_UNITS = ("apt-daily", "apt-daily-upgrade", "dpkg-db-backup", "e2scrub_all", "fstrim", "logrotate", "quotaon")
_DIRECTIVES = {
    "Nice": "10",
    "TasksMax": "512",
    "LimitNOFILE": "4096:8192",
    "OOMScoreAdjust": "500",
    "CPUWeight": "20",
    "TimeoutStopSec": "30s",
}


def settings() -> dict[str, Any]:
    """Kind -> name -> value."""
    own = yaml.safe_load((Path(__file__).parent / "sysctls.yml").read_text())["bench_sysctls"]
    sysctl = dict(own)
    for interface in _INTERFACES:
        sysctl |= {f"net.ipv4.conf.{interface}.{leaf}": value for leaf, value in _OF_INTERFACE.items()}
    found: dict[str, Any] = {
        "sysctl": {**sysctl, "vm.swappiness": "10", "vm.dirty_bytes": "536870912", "fs.nr_open": "1048576"},
        "module": {"tcp_bbr": "loaded", "sch_fq": "loaded"},
        "sysfs": {f"kernel/mm/transparent_hugepage/{leaf}": "madvise" for leaf in ("enabled", "defrag")},
        "block": {f"{name}/scheduler": "none" for name in ("nvme", "virtio")},
        "mount": {"/": ["noatime"]},
        "limit": {
            f"bench{user}/{bound}/{item}": "4096"
            for user in range(10)
            for bound in ("soft", "hard")
            for item in ("nofile", "nproc", "memlock")
        },
        "manager": {"DefaultLimitNOFILE": "1024:524288", "DefaultTasksMax": "4096"},
        "unit": {
            f"{unit}.service/Service/{directive}": value
            for unit in _UNITS
            for directive, value in _DIRECTIVES.items()
        },
        "service": {f"{unit}.timer": "enabled" for unit in ("apt-daily", "fstrim")},
    }
    files = 250 - sum(len(names) for names in found.values())
    found["file"] = {f"/etc/bench/{number}.conf": {"content": f"{number}\n"} for number in range(files)}
    return found
