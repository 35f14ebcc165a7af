"""The kinds: how each family of settings is read, persisted, activated and undone.

Imported one by one and only when a call needs them: a drift check of sysctls must not pay for PostgreSQL.
The import statements are literal, since Ansible ships to the host what it finds written as an import.
"""

from __future__ import annotations

from ..model import Refusal, shown
from ..system import System
from .base import Kind, did_you_mean

#: Kinds in the order in which they are activated; undone in the opposite one. A module comes before its
#: sysctl, fs.nr_open (sysctl) before nofile (limit, unit), files before the units that read them.
ORDER = (
    "module",
    "boot",
    "sysctl",
    "sysfs",
    "hugepages",
    "block",
    "nic",
    "irq",
    "mount",
    "limit",
    "file",
    "manager",
    "unit",
    "postgres",
    "redis",
    "service",
)

#: Kinds whose live plane follows from their files and one reload; the others write each value.
RELOADING = frozenset({"boot", "limit", "file", "manager", "unit", "postgres"})


def load(name: str, system: System) -> Kind:
    """The kind called `name`; raises Refusal for a name that is none."""
    if name == "module":
        from .module import ModuleKind

        return ModuleKind(system)
    if name == "boot":
        from .boot import BootKind

        return BootKind(system)
    if name == "sysctl":
        from .sysctl import SysctlKind

        return SysctlKind(system)
    if name == "sysfs":
        from .sysfs import SysfsKind

        return SysfsKind(system)
    if name == "hugepages":
        from .hugepages import HugepagesKind

        return HugepagesKind(system)
    if name == "block":
        from .block import BlockKind

        return BlockKind(system)
    if name == "nic":
        from .nic import NicKind

        return NicKind(system)
    if name == "irq":
        from .irq import IrqKind

        return IrqKind(system)
    if name == "mount":
        from .mount import MountKind

        return MountKind(system)
    if name == "limit":
        from .limit import LimitKind

        return LimitKind(system)
    if name == "file":
        from .file import FileKind

        return FileKind(system)
    if name == "manager":
        from .manager import ManagerKind

        return ManagerKind(system)
    if name == "unit":
        from .unit import UnitKind

        return UnitKind(system)
    if name == "postgres":
        from .postgres import PostgresKind

        return PostgresKind(system)
    if name == "redis":
        from .redis import RedisKind

        return RedisKind(system)
    if name == "service":
        from .service import ServiceKind

        return ServiceKind(system)
    raise unknown(name)


def unknown(name: object, where: str = "") -> Refusal:
    """What is said of a name that is no kind's."""
    return Refusal(
        f"{where and f'{shown(name)}: '}no such kind of setting",
        thing=where or shown(name),
        remedy=did_you_mean(shown(name), ORDER) or f"Kinds are {', '.join(ORDER)}",
    )
