"""What has no file of its own that a boot reads: set again by hosttune-link.service from the manifest.

The kernel sends no event for a carrier change, a driver that was loaded anew or queues that were made anew,
and no file of systemd's says which CPU an interrupt goes to. So one small unit sets the settings of the kinds
nic and irq again, at boot and after each of those, and takes them from the manifest. Their persisted plane is
therefore what the manifest says, as long as that unit is enabled.

A kind that is kept this way holds one Keeper, passes its `recall` on to it, answers FILE as the managed file
of such a setting (and renders none: the engine writes the manifest), and calls `persist` when it reads.
"""

from __future__ import annotations

import functools

from .model import Definition, Planes, Setting
from .store import MANIFEST
from .system import System
from .systemd import Systemd

UNIT = "hosttune-link.service"
#: The file that holds what the unit sets: the managed file of a setting that is kept by it.
FILE = MANIFEST


class Keeper:
    """What the unit will set again of one kind's settings."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._values: dict[str, str] = {}

    def recall(self, setting: Setting) -> None:
        """Learns what the manifest says of a setting, or will say when this call is done."""
        self._values[setting.name] = setting.value

    def value(self, name: str) -> str | None:
        """What the manifest says of a setting, None where it says nothing."""
        return self._values.get(name)

    @functools.cached_property
    def absence(self) -> str:
        """Why the unit will not start at the next boot, empty where it will."""
        state = Systemd(self.system).enablement([UNIT])[UNIT]
        if state == "enabled":
            return ""
        return f"{UNIT}, which sets it again at boot, is {state or 'not there'}"

    def persist(self, planes: Planes, name: str) -> None:
        """Adds what the unit will make of a setting to its planes: it comes after all that udev does."""
        value = self.value(name)
        if value is None:
            return
        if self.absence:
            planes.where = self.absence
        else:
            planes.definitions.append(Definition(value, FILE))
