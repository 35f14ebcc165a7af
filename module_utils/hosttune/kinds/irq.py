"""Kind irq: the CPUs on which the interrupts of a device's queue fire (/proc/irq/N/smp_affinity_list).

Names are DEVICE/QUEUE (ens4/0, nvme0/0, ens4/other) as `irqs` forms them, never an IRQ's number; one setting
covers all IRQs of that queue. `default` is /proc/irq/default_smp_affinity: what an IRQ gets that is made from
now on, by a driver that is loaded or a device that is plugged in. What is made before user space runs is the
business of boot/irqaffinity.

Values are CPU lists ("2-3,8") and equal as sets. The live value of IRQs that differ names each by its action:
`virtio2-input.0=2 virtio2-output.0=0-7`. An IRQ whose CPUs the kernel chooses itself is `unsupported`; where
neither its files nor its name tell that, the refused write does.

No file persists an affinity, and drivers make their IRQs anew without an event of udev: hosttune-link.service
sets them again from the manifest (see `keeper`).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import cpulist, irqs, keeper
from ..model import Call, Change, FileImage, Planes, Refusal, Setting
from ..system import KERNEL_SHARED, System
from .base import Kind, did_you_mean

DEFAULT = "default"
MANAGED = (
    "the kernel manages this IRQ itself (managed affinity; isolcpus=managed_irq keeps it off isolated CPUs)"
)
_FOLDER = "/proc/irq"
_DEFAULT_FILE = f"{_FOLDER}/default_smp_affinity"
_NAME = re.compile(r"[^\s/=,]+/(0|[1-9][0-9]*|other)\Z")


class IrqKind(Kind):
    """See the module's docstring."""

    name = "irq"
    disruption = "moves"

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._keeper = keeper.Keeper(system)

    # names and values

    def text(self, name: str, value: Any) -> str:
        text = super().text(name, value)
        try:
            return cpulist.format(cpulist.parse(text))
        except ValueError as error:
            raise Refusal(
                str(error), thing=f"irq {name}", remedy="Give a list of CPUs, such as 2-3,8"
            ) from None

    def recall(self, setting: Setting) -> None:
        self._keeper.recall(setting)

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        known = self._devices() if settings else []
        online = self._cpus("online")
        for setting in settings:
            if setting.name != DEFAULT:
                self._check_name(setting, known)
            wanted = cpulist.parse(setting.value)
            if not wanted:
                raise Refusal("has no CPU", thing=str(setting), remedy="Give a list of CPUs, such as 2-3,8")
            missing = wanted - online
            if online and missing and not self.system.container:
                raise Refusal(
                    f"CPU {cpulist.format(missing)} is not online",
                    thing=str(setting),
                    remedy=f"Online are {cpulist.format(online)}",
                )

    def _check_name(self, setting: Setting, known: Sequence[str]) -> None:
        if not _NAME.match(setting.name):
            raise Refusal(
                "is no DEVICE/QUEUE",
                thing=str(setting),
                remedy=f"Such as ens4/0 or ens4/other; {DEFAULT} is what new IRQs get",
            )
        device = setting.name.partition("/")[0]
        if device not in known and not self.system.container:
            raise Refusal(
                f"this host has no device {device} with IRQs of its own",
                thing=str(setting),
                remedy=did_you_mean(device, known) or f"It has {', '.join(known) or 'none'}",
            )

    def same(self, name: str, wanted: str, found: str) -> bool:
        try:
            return cpulist.parse(wanted) == cpulist.parse(found)
        except ValueError:
            return wanted == found

    def disruption_of(self, name: str, wanted: str, planes: Planes) -> str:
        moves = planes.has_live and planes.live is not None and not self.same(name, wanted, planes.live)
        return self.disruption if moves else "silent"

    # the machine

    def _devices(self) -> list[str]:
        """Devices that have IRQs, or would have if they were up."""
        handled = [one.device for one in irqs.read(self.system.root) if one.device]
        nics = [
            nic
            for nic in self.system.names("/sys/class/net")
            if self.system.exists(f"/sys/class/net/{nic}/device")
        ]
        return sorted({*handled, *nics})

    def _cpus(self, which: str) -> set[int]:
        """The online, possible or isolated CPUs; empty where the kernel does not say."""
        try:
            return cpulist.parse(self.system.read_value(f"/sys/devices/system/cpu/{which}"))
        except (OSError, ValueError):
            return set()

    def _is_down(self, device: str) -> bool:
        """Whether this is a NIC that is not up: many drivers have no IRQ then."""
        try:
            return not int(self.system.read_value(f"/sys/class/net/{device}/flags"), 16) & 1
        except (OSError, ValueError):
            return False

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        found = irqs.read(self.system.root)
        planes = {
            name: self._read_default() if name == DEFAULT else self._read_one(name, found) for name in names
        }
        for name, one in planes.items():
            self._keeper.persist(one, name)
            if self.system.container:
                one.unsupported = KERNEL_SHARED
        return planes

    def _read_default(self) -> Planes:
        try:
            cpus = cpulist.from_mask(self.system.read_value(_DEFAULT_FILE))
        except OSError as error:
            return Planes(unknown=f"{_DEFAULT_FILE}: {error.strerror}")
        # All ones stand for every CPU, also for those that this machine cannot have.
        return Planes(live=cpulist.format(cpus & (self._cpus("possible") or cpus)))

    def _read_one(self, name: str, everything: Sequence[irqs.Irq]) -> Planes:
        device = name.partition("/")[0]
        mine = [one for one in everything if f"{one.device}/{one.queue}" == name]
        free = [one for one in mine if not one.managed]
        if mine and not free:
            return Planes(live=_together(mine), unsupported=MANAGED)
        if not free and self._is_down(device):
            return Planes(has_live=False, note=f"{device} is down and has no such IRQ: set when it comes up")
        if not free:
            queues = _queues(one.queue for one in everything if one.device == device)
            return Planes(
                unsupported=f"{device} has no queue {name.partition('/')[2]} now: it has {queues}"
                if queues
                else f"this host has no device {device} with IRQs of its own"
            )
        hidden = [one for one in free if one.cpus is None]
        if hidden:
            return Planes(unknown=f"{_FOLDER}/{hidden[0].irq}/smp_affinity_list cannot be read")
        return Planes(live=_together(free), note="; ".join(_astray(free)))

    # persistence: the manifest, from which the unit sets it again

    def managed_file(self, owner: str, name: str) -> str:
        return keeper.FILE

    def foretell(self, setting: Setting, planes: Planes, call: Call) -> Planes:
        then = super().foretell(setting, planes, call)
        then.where = ""  # the role that asks for such settings brings the unit
        return then

    def render(self, owner: str, settings: Sequence[Setting]) -> dict[str, FileImage]:
        return {}

    # the live plane

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        found = irqs.read(self.system.root)
        failed = {}
        for change in changes:
            if change.name == DEFAULT:
                why = self._write(_DEFAULT_FILE, cpulist.to_hex_mask(cpulist.parse(change.value)))
            else:
                mine = [one for one in found if f"{one.device}/{one.queue}" == change.name]
                why = self._set([one for one in mine if not one.managed], change.value)
            if why:
                failed[change.name] = why
        return failed

    def _set(self, mine: Sequence[irqs.Irq], value: str) -> str:
        """Sets the IRQs that differ from `value`, a list or what `_together` gave; says why it could not."""
        reasons = []
        for one, cpus in _apart(mine, value):
            if not self.same("", cpus, one.cpus or ""):
                why = self._write(f"{_FOLDER}/{one.irq}/smp_affinity_list", cpus)
                reasons += [f"{one.action} (IRQ {one.irq}): {why}"] if why else []
        return "; ".join(reasons)

    def _write(self, path: str, value: str) -> str:
        try:
            self.system.write_value(path, value)
        except OSError as error:
            if error.errno in (errno.EIO, errno.EPERM):
                return MANAGED
            if error.errno == errno.EINVAL:
                return f"the kernel refused '{value}': none of these CPUs is online"
            return f"the kernel refused '{value}': {error.strerror}"
        return ""


def _together(mine: Sequence[irqs.Irq]) -> str:
    """The CPUs that all these IRQs have, else each with its own."""
    lists = [one.cpus or "" for one in mine]
    if len({frozenset(cpulist.parse(text)) for text in lists}) == 1:
        return lists[0]
    return " ".join(f"{_word(one)}={one.cpus}" for one in mine)


def _apart(mine: Sequence[irqs.Irq], value: str) -> list[tuple[irqs.Irq, str]]:
    """Each IRQ with the CPUs that a text of `_together` has for it; IRQs that it does not name stay out."""
    if "=" not in value:
        return [(one, value) for one in mine]
    lists: dict[str, list[str]] = {}
    for pair in value.split():
        word, _equals, cpus = pair.rpartition("=")
        lists.setdefault(word, []).append(cpus)
    return [(one, lists[_word(one)].pop(0)) for one in mine if lists.get(_word(one))]


def _word(one: irqs.Irq) -> str:
    return one.action.replace(" ", "_")


def _astray(mine: Sequence[irqs.Irq]) -> list[str]:
    """IRQs that fire outside the CPUs they are set to: they move when they fire next."""
    found = []
    for one in mine:
        outside = cpulist.parse(one.effective or "") - cpulist.parse(one.cpus or "")
        if outside:
            found.append(f"{one.action} fires on CPU {cpulist.format(outside)} until its next interrupt")
    return found


def _queues(queues: Iterable[str]) -> str:
    known = set(queues)
    numbers = cpulist.format(int(one) for one in known if one != irqs.OTHER)
    return " and ".join([numbers] * bool(numbers) + [irqs.OTHER] * (irqs.OTHER in known))
