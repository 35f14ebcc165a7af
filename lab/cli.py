"""`python -m lab`: the command line."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lab import inventory, labs, machine, state, tools
from lab.errors import LabError
from lab.processes import say

NEEDS_ROOT = ("up", "down", "reboot", "power-cut", "image", "deps")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="boot hosts and write an inventory; keeps what is already healthy")
    _driver(up)
    up.add_argument("--count", type=int, default=1, help="how many hosts (default 1)")
    up.add_argument("--group", default="trading", help="the inventory group (default trading)")
    _prefix(up)
    _inventory(up)

    down = commands.add_parser("down", help="remove hosts and everything they used")
    down.add_argument("--all", action="store_true", help="every lab, whatever its prefix")
    _prefix(down)
    _inventory(down)

    commands.add_parser("status", help="list all hosts and how they are")
    reboot = commands.add_parser("reboot", help="reboot a host and wait for it")
    reboot.add_argument("host")
    cut = commands.add_parser("power-cut", help="kill a host without warning, start it again, wait for it")
    cut.add_argument("host")
    execute = commands.add_parser("exec", help="run a command on a host: exec HOST -- COMMAND")
    execute.add_argument("host")
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    image = commands.add_parser("image", help="build images only")
    _driver(image)
    deps = commands.add_parser("deps", help="install the Debian packages the lab needs on this machine")
    deps.add_argument("--driver", choices=("auto", "container", "metal"), default="auto")
    commands.add_parser("snapshot-machine", help="print this machine's own kernel settings as JSON")
    return top


def _driver(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--driver",
        choices=("auto", "container", "metal"),
        default=os.environ.get("LAB") or "auto",
        help="auto takes metal where KVM works, else container (default: $LAB, else auto)",
    )
    command.add_argument(
        "--baked", action="store_true", help="hosts have PostgreSQL and Redis installed, not started"
    )


def _prefix(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prefix", default="lab", type=_name, help="names the lab and its hosts")


def _inventory(command: argparse.ArgumentParser) -> None:
    command.add_argument("--inventory", type=Path, help="the inventory file (inventories/lab/hosts.yml)")


def _name(text: str) -> str:
    """Host names are made of it, so it has to be short and plain."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: take small letters, digits and dashes, at most 31")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = parser().parse_args(words)
    try:
        return act(asked, words)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; `python -m lab down` or the next `up` removes what is left", file=sys.stderr)
        return 130


def act(asked: argparse.Namespace, words: list[str]) -> int:
    if asked.command in NEEDS_ROOT:
        tools.become_root(words)
        state.make_lab_dir()
    if asked.command in ("up", "down"):
        path = (asked.inventory or inventory.default_path(asked.prefix)).absolute()
    if asked.command == "up":
        if asked.count < 1:
            raise LabError("--count must be at least 1")
        labs.up(labs.Wish(asked.prefix, asked.driver, asked.count, asked.baked, path, asked.group))
    elif asked.command == "down" and asked.all:
        labs.down_all()
    elif asked.command == "down":
        labs.down(asked.prefix, path)
    elif asked.command == "status":
        return labs.status()
    elif asked.command in ("reboot", "power-cut"):
        labs.reboot(asked.host, power_cut=asked.command == "power-cut")
    elif asked.command == "exec":
        labs.run_inside(asked.host, asked.words[asked.words[:1] == ["--"] :])
    elif asked.command == "image":
        labs.build_image(asked.driver, asked.baked)
    elif asked.command == "deps":
        tools.ensure({"auto": {**tools.CONTAINER, **tools.METAL}, **labs.TOOLS}[asked.driver])
        say("everything the lab needs is installed")
    elif asked.command == "snapshot-machine":
        print(json.dumps(machine.snapshot(), indent=1))
    return 0
