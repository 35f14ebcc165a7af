"""What the commands do, the same for both drivers: up, down, reboot, status."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lab import cgroups, container, disks, images, inventory, kvm, metal, network, ssh, state, tools
from lab.errors import LabError
from lab.processes import say, tail
from lab.state import Host, Lab, locked


class Driver(Protocol):
    """A way of making hosts (the modules container and metal)."""

    def prepare(self, lab: Lab) -> None: ...
    def start(self, lab: Lab, host: Host) -> None: ...
    def boot(self, lab: Lab, host: Host) -> None: ...
    def settled(self, lab: Lab, host: Host) -> None: ...
    def alive(self, lab: Lab, host: Host) -> bool: ...
    def ended(self, lab: Lab, host: Host) -> bool: ...
    def stop(self, lab: Lab, host: Host, *, power_cut: bool = False) -> None: ...


DRIVERS: dict[str, Driver] = {"container": container, "metal": metal}
TOOLS = {"container": tools.CONTAINER, "metal": tools.METAL}


class GuestHangs(LabError):
    """KVM passed its probe and does not run a real kernel after all."""


@dataclass(frozen=True)
class Wish:
    """What `up` was asked for."""

    prefix: str
    driver: str  # auto, container or metal
    count: int
    baked: bool
    inventory: Path
    group: str


def up(wish: Wish) -> None:
    tools.require_architecture()
    with locked(state.prefix_lock(wish.prefix), f"another run that works on the lab {wish.prefix}"):
        lab = state.load(wish.prefix)
        if lab:
            reason = _why_not_kept(lab, wish)
            if reason is None:
                say(f"lab {wish.prefix} is already up: {_names(lab)} ({lab.driver}); nothing to do")
                _write_inventory(lab, wish)
                return
            say(f"lab {wish.prefix}: {reason}; removing it first")
            _take_down(lab)
        _clear(state.folder(wish.prefix))
        try:
            lab = _plan_and_make(wish)
        except GuestHangs as problem:
            say(f"{problem}: starting again without KVM")
            lab = _plan_and_make(wish)
        _write_inventory(lab, wish)
        say(f"lab {wish.prefix} is up: {_names(lab)}; inventory: {wish.inventory}")


def _plan_and_make(wish: Wish) -> Lab:
    lab = _plan(wish)
    try:
        _make(lab)
    except KeyboardInterrupt:
        say(f"interrupted: removing lab {wish.prefix}")
        _take_down(lab)
        raise
    except GuestHangs:
        _take_down(lab)
        raise
    return lab


def _write_inventory(lab: Lab, wish: Wish) -> None:
    if lab.inventory != str(wish.inventory):
        lab.inventory = str(wish.inventory)
        lab.save()
    inventory.write(lab, wish.inventory, wish.group)


def _why_not_kept(lab: Lab, wish: Wish) -> str | None:
    """None when the lab that stands is the one asked for and every host answers."""
    if not lab.complete:
        return "an earlier `up` was interrupted or failed"
    if lab.boot != state.boot_id():
        return "this machine was restarted since"
    if wish.driver not in ("auto", lab.driver) or wish.count != len(lab.hosts) or wish.baked != lab.baked:
        return f"it has {len(lab.hosts)} {lab.driver} host(s){' with servers baked in' if lab.baked else ''}"
    if lab.image != _image_key(lab.driver, lab.baked):
        return "its image is out of date"
    for host in lab.hosts:
        if not DRIVERS[lab.driver].alive(lab, host):
            return f"{host.name} does not run any more"
        if ssh.ask(lab, host, "true") is None:
            return f"{host.name} does not answer over SSH"
    return None


def _image_key(driver: str, baked: bool) -> str:
    if driver == "metal":
        return disks.metal_key(baked)
    return images.baked_key() if baked else images.container_key()


def _names(lab: Lab) -> str:
    return ", ".join(host.name for host in lab.hosts)


def _plan(wish: Wish) -> Lab:
    """Decide everything, build the image, then reserve a slot and ports by writing the lab down."""
    driver = choose_driver(wish.driver)
    tools.ensure(TOOLS[driver])
    lab = Lab(wish.prefix, driver, _image_key(driver, wish.baked), wish.baked, boot=state.boot_id())
    DRIVERS[driver].prepare(lab)
    ssh.client_key()
    with locked(network.MACHINE_LOCK, "another lab that is being started"):
        lab.slot = network.free_slot()
        taken = {host.port for other in state.load_all() for host in other.hosts}
        for index in range(wish.count):
            name = f"{wish.prefix}-{driver[0]}{index + 1}"
            if driver == "container":
                lab.hosts.append(Host(name, network.address(lab.slot, index), 22))
            else:
                lab.hosts.append(Host(name, "127.0.0.1", network.free_port(taken)))
                taken.add(lab.hosts[-1].port)
        lab.save()
        if driver == "container":
            network.make_bridge(lab.slot)
    return lab


def choose_driver(asked: str) -> str:
    if asked in DRIVERS:
        return asked
    if asked != "auto":
        raise LabError(f"LAB={asked} names no driver: take auto, container or metal")
    works, reason = kvm.works()
    if works:
        return "metal"
    say(f"KVM does not work here ({reason}), so the lab uses a container: {container.LIMITS}")
    return "container"


def _make(lab: Lab) -> None:
    driver = DRIVERS[lab.driver]
    started = time.monotonic()
    ssh.known_hosts(lab).write_text("")
    for host in lab.hosts:
        say(f"starting {host.name} ({lab.driver})")
        driver.start(lab, host)
    for host in lab.hosts:
        wait_until_up(lab, host)
    for path in (lab.folder, ssh.known_hosts(lab)):
        state.give_to_user(path)
    lab.complete = True
    lab.save()
    say(f"{len(lab.hosts)} host(s) up after {time.monotonic() - started:.1f} s")


def wait_until_up(lab: Lab, host: Host, before_boot_id: str = "") -> None:
    """Wait until systemd has settled and a key login works; under a new boot id after a reboot."""
    patience = 90 if lab.driver == "container" else 420
    started = time.monotonic()
    spoken = started
    question = "cat /proc/sys/kernel/random/boot_id; timeout 60 systemctl is-system-running --wait"
    while True:
        answer = (ssh.ask(lab, host, question, timeout=90) or "").split()
        waited = time.monotonic() - started
        if len(answer) == 2 and answer[0] != before_boot_id and answer[1] in ("running", "degraded"):
            break
        if DRIVERS[lab.driver].ended(lab, host):
            raise LabError(f"{host.name} ended without being told to: {tail(console(lab, host))}")
        if lab.accel == "kvm" and waited > 20 and not _kernel_spoke(console(lab, host)):
            kvm.remember("a guest kernel hung")
            raise GuestHangs(f"{host.name}: its kernel does not come up under KVM")
        if waited > patience:
            log = console(lab, host)
            word = f"systemd says {answer[-1]}" if answer else "SSH does not answer"
            end = f"{tail(log, 3)} (all of it: {log})"
            raise LabError(f"{host.name} is not up after {waited:.0f} s, {word}: {end}")
        if time.monotonic() - spoken > 10:
            spoken = time.monotonic()
            say(f"  {host.name}: {waited:.0f} s, {tail(console(lab, host), 1)[:90]}")
        time.sleep(0.2)
    DRIVERS[lab.driver].settled(lab, host)
    say(f"  {host.name} is {answer[1]} after {waited:.1f} s")
    if answer[1] == "degraded":
        failed = ssh.ask(lab, host, "systemctl --failed --plain --no-legend | cut -d' ' -f1") or ""
        say(f"  {host.name} failed units: {', '.join(failed.split()) or 'none any more'}")


def _kernel_spoke(log: Path) -> bool:
    return log.exists() and "Linux version" in log.read_text(errors="replace")


def console(lab: Lab, host: Host) -> Path:
    return lab.host_folder(host) / "console.log"


def down(prefix: str, inventory_path: Path) -> None:
    with locked(state.prefix_lock(prefix), f"another run that works on the lab {prefix}"):
        lab = state.load(prefix)
        if lab is None and not state.folder(prefix).exists():
            say(f"lab {prefix} is not up; nothing to do")
            return
        if lab:
            _take_down(lab)
        else:
            _clear(state.folder(prefix))
        for path in {inventory_path, Path(lab.inventory) if lab and lab.inventory else inventory_path}:
            inventory.remove(path, prefix)
        say(f"lab {prefix} is down")


def down_all() -> None:
    prefixes = state.prefixes()
    if not prefixes:
        say("no lab is up; nothing to do")
    for prefix in prefixes:
        down(prefix, inventory.default_path(prefix))


def _take_down(lab: Lab) -> None:
    """Remove whatever of the lab exists; each step allows for its thing to be missing."""
    driver = DRIVERS[lab.driver]
    if lab.boot == state.boot_id():  # else a restart of the machine has removed all but the files
        for host in lab.hosts:
            driver.stop(lab, host)
        container.unmount_below(lab.folder)
        with locked(network.MACHINE_LOCK, "another lab that is being started"):
            network.remove_links(lab)
        for host in lab.hosts:
            left = cgroups.remains(cgroups.name(lab.slot, host.name))
            if left:
                raise LabError(f"{host.name}: control group {left[0]} cannot be removed")
    for host in lab.hosts:
        _clear(lab.host_folder(host))
    _clear(lab.folder)  # last, with the record of what there is to clean


def _clear(folder: Path) -> None:
    if container.mounts_below(folder, cgroups.MOUNTS.read_text()):
        raise LabError(f"something below {folder} is still mounted: unmount it and try again")
    if folder.exists():
        shutil.rmtree(folder)


def reboot(name: str, *, power_cut: bool) -> None:
    """Restart a host, cleanly or as a power cut would, and wait until it is up again."""
    lab = state.find(name)
    host = lab.host(name)
    driver = DRIVERS[lab.driver]
    with locked(state.prefix_lock(lab.prefix), f"another run that works on the lab {lab.prefix}"):
        before = ssh.ask(lab, host, "cat /proc/sys/kernel/random/boot_id") or ""
        if power_cut:
            say(f"{name}: power cut")
            driver.stop(lab, host, power_cut=True)
            driver.boot(lab, host)
        else:
            say(f"{name}: reboot")
            if ssh.ask(lab, host, "systemctl reboot") is None and not before:
                raise LabError(f"{name} does not answer over SSH: try `python -m lab power-cut {name}`")
        wait_until_up(lab, host, before)


def status() -> int:
    labs = state.load_all()
    if not labs:
        say("no lab is up")
    bad = 0
    for lab in labs:
        for host in lab.hosts:
            answer = None
            if lab.boot == state.boot_id():
                answer = ssh.ask(lab, host, "systemctl is-system-running")
            bad += answer is None
            words = answer or "does not answer"
            kind = f"{lab.driver}{' ' + lab.accel if lab.accel else ''}{' baked' if lab.baked else ''}"
            busy = state.held(state.prefix_lock(lab.prefix))
            half = "" if lab.complete else " (coming up)" if busy else " (an interrupted up)"
            say(f"{host.name:16} {kind:18} {host.address}:{host.port:<6} {words}{half}")
    return 1 if bad else 0


def build_image(driver: str, baked: bool) -> None:
    tools.require_architecture()
    driver = choose_driver(driver)
    tools.ensure(TOOLS[driver])
    lab = Lab("", driver, "", baked)
    DRIVERS[driver].prepare(lab)
    say(f"image {_image_key(driver, baked)} is ready")


def run_inside(name: str, words: list[str]) -> None:
    """Become an ssh to the host."""
    lab = state.find(name)
    command = [*ssh.command(lab, lab.host(name)), *words]
    os.execvp(command[0], command)  # noqa: S606 - become ssh, without a shell
