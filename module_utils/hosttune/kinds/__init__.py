"""The kinds: how each family of settings is read, persisted, activated and undone.

Imported one by one and only when a call needs them: a drift check of sysctls must not pay for PostgreSQL.
The import statements are literal, since Ansible ships to the host what it finds written as an import.
"""

from __future__ import annotations

from ..model import Refusal
from ..system import System
from .base import Kind

#: Kinds in the order in which they are activated; undone in the opposite one. A module comes before its
#: sysctl, fs.nr_open (sysctl) before nofile (limit, unit), files before the units that read them.
ORDER = (
    "module",
    "sysctl",
    "sysfs",
    "block",
    "mount",
    "limit",
    "file",
    "manager",
    "unit",
    "postgres",
    "service",
)

#: Kinds whose live plane follows from their files and one reload; the others write each value.
RELOADING = frozenset({"limit", "file", "manager", "unit", "postgres"})


def load(name: str, system: System) -> Kind:
    """The kind called `name`; raises Refusal for a name that is none."""
    if name == "module":
        from .module import ModuleKind as found
    elif name == "sysctl":
        from .sysctl import SysctlKind as found
    elif name == "sysfs":
        from .sysfs import SysfsKind as found
    elif name == "block":
        from .block import BlockKind as found
    elif name == "mount":
        from .mount import MountKind as found
    elif name == "limit":
        from .limit import LimitKind as found
    elif name == "file":
        from .file import FileKind as found
    elif name == "manager":
        from .manager import ManagerKind as found
    elif name == "unit":
        from .unit import UnitKind as found
    elif name == "postgres":
        from .postgres import PostgresKind as found
    elif name == "service":
        from .service import ServiceKind as found
    else:
        raise Refusal("no such kind of setting", thing=name, remedy=f"Kinds are {', '.join(ORDER)}")
    return found(system)
