"""One bridge and one /24 per lab, one network namespace per container; no route or filter is changed.

There is no way out of the bridge: hosts install packages from the repository inside their image, so
neither forwarding nor address translation is needed on the machine.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from pathlib import Path

from lab.errors import LabError
from lab.processes import run
from lab.state import Host, Lab, load_all

SLOTS = 200
# Names of links, bridges and control groups carry the slot, which is one machine's, whoever's cache it is.
MACHINE_LOCK = Path("/run/lock/hosttune-lab.lock")


def bridge(slot: int) -> str:
    return f"htb{slot}"


def subnet(slot: int) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(f"10.213.{slot}.0/24")


def address(slot: int, index: int) -> str:
    return str(subnet(slot)[index + 10])


def free_slot() -> int:
    """The first slot no lab, link or route of this machine uses. Call it with MACHINE_LOCK held."""
    taken = {lab.slot for lab in load_all()}
    links = {link["ifname"] for link in json.loads(run("ip", "-j", "link"))}
    routed = _routed_networks()
    for slot in range(SLOTS):
        clash = any(subnet(slot).overlaps(network) for network in routed)
        if slot not in taken and bridge(slot) not in links and tap(slot, 0) not in links and not clash:
            return slot
    raise LabError("no free 10.213.N.0/24 network is left: remove labs (`python -m lab status` lists them)")


def _routed_networks() -> list[ipaddress.IPv4Network]:
    found = []
    for route in json.loads(run("ip", "-j", "-4", "route", "show", "table", "main") or "[]"):
        if route["dst"] != "default":
            found.append(ipaddress.IPv4Network(route["dst"]))
    return found


def make_bridge(slot: int) -> None:
    run("ip", "link", "add", bridge(slot), "type", "bridge")
    run("ip", "address", "add", f"{subnet(slot)[1]}/24", "dev", bridge(slot))
    run("ip", "link", "set", bridge(slot), "up")


def veth(slot: int, index: int) -> str:
    return f"htv{slot}.{index}"


def tap(slot: int, index: int) -> str:
    return f"htt{slot}.{index}"


def make_namespace(path: Path, slot: int, index: int, host: Host) -> None:
    """A network namespace pinned to a file of ours (not below /run/netns, whose mount would stay behind)."""
    path.touch()
    run("unshare", f"--net={path}", "true")
    run("ip", "link", "add", veth(slot, index), "type", "veth", "peer", "name", "eth0", "netns", path)
    run("ip", "link", "set", veth(slot, index), "master", bridge(slot), "up")
    commands = f"link set lo up\nlink set eth0 up\naddress add {host.address}/24 dev eth0\n"
    run("nsenter", f"--net={path}", "ip", "-batch", "-", input_text=commands)


def make_tap(slot: int, index: int) -> None:
    name = tap(slot, index)
    run("ip", "tuntap", "add", "dev", name, "mode", "tap", "multi_queue")
    run("ip", "link", "set", name, "up")


def remove_links(lab: Lab) -> None:
    for index in range(len(lab.hosts)):
        for name in (veth(lab.slot, index), tap(lab.slot, index)):
            if Path("/sys/class/net", name).exists():
                run("ip", "link", "delete", name, check=False)
    if Path("/sys/class/net", bridge(lab.slot)).exists():
        run("ip", "link", "delete", bridge(lab.slot))


def free_port(taken: set[int]) -> int:
    """A loopback port no lab has been given and nothing listens on."""
    for port in range(42200, 42999):
        if port in taken:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise LabError("no loopback port between 42200 and 42999 is free")
