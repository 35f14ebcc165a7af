"""What dpkg knows, read from its own database: no process for what a file says."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .system import System


def versions(system: System, packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    try:
        status = "\n" + system.read("/var/lib/dpkg/status")
    except OSError:
        return {}
    found = {}
    for package in set(packages):
        start = status.find(f"\nPackage: {package}\n")
        block = status[start : status.find("\n\n", start)] if start >= 0 else ""
        version = re.search(r"^Version: (\S+)", block, re.MULTILINE)
        if version and "\nStatus: install ok installed" in block:
            found[package] = version[1]
    return found


def packages_of(system: System, paths: Iterable[str]) -> dict[str, str]:
    """Path -> the package it belongs to, as `dpkg -S` says it, in one walk over dpkg's lists."""
    forms: dict[str, str] = {}
    for path in paths:
        # dpkg knows files by the path they came with, on either side of the link /lib -> /usr/lib.
        other = path[len("/usr") :] if path.startswith("/usr/") else f"/usr{path}"
        forms[f"\n{path}\n"] = forms[f"\n{other}\n"] = path
    found: dict[str, str] = {}
    folder = "/var/lib/dpkg/info"
    for name in system.names(folder) if forms else []:
        if name.endswith(".list"):
            text = system.read(f"{folder}/{name}")
            for form, path in forms.items():
                if form in text:
                    found[path] = name[: -len(".list")].partition(":")[0]
    return found
