"""The controller machine's own kernel settings, to prove that no lab ever changes them."""

from __future__ import annotations

import re
from pathlib import Path

# Counters and sizes the kernel moves by itself: they differ between two looks at an idle machine.
MOVING = re.compile(
    r"fs/(dentry-state|file-nr|inode-nr|inode-state|aio-nr|quota/|mqueue/)"
    r"|kernel/(random/|ns_last_pid$|pty/nr$|perf_event_max_sample_rate$|hung_task_detect_count$|tainted$|sched_domain/|keys/)"
    r"|vm/(stat_refresh|compact_memory|drop_caches)"
)


def snapshot(root: Path = Path("/")) -> dict[str, dict[str, str]]:
    """name -> value for sysctls (vm, fs, kernel), huge pages and block queues."""
    return {
        "sysctl": _sysctls(root / "proc/sys"),
        "hugepages": _values(root, "sys/kernel/mm", ("hugepages/*/nr_*", "transparent_hugepage/[des]*"))
        | _values(root, "sys/devices/system/node", ("node*/hugepages/*/nr_hugepages",)),
        "block": _values(root, "sys/block", ("*/queue/*",)),
    }


def _sysctls(root: Path) -> dict[str, str]:
    found = {}
    for top in ("vm", "fs", "kernel"):
        for path in sorted((root / top).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_file() and not MOVING.match(name):
                value = _read(path)
                if value is not None:
                    found[name.replace("/", ".")] = value
    return found


def _values(root: Path, below: str, patterns: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for pattern in patterns:
        for path in sorted((root / below).glob(pattern)):
            value = _read(path) if path.is_file() else None
            if value is not None:
                found[path.relative_to(root).as_posix()] = value
    return found


def _read(path: Path) -> str | None:
    try:
        return " ".join(path.read_text().split())
    except (OSError, UnicodeDecodeError):  # write-only, or not for this user
        return None
