"""The Ansible inventory of a lab: hosts by name, with everything SSH needs to know about them."""

from __future__ import annotations

import json
from pathlib import Path

from lab import ssh
from lab.state import REPOSITORY, Lab, folder, give_to_user, write_atomically

MARK = "# Written by `python -m lab up`, removed by `python -m lab down`. Lab: "
DEFAULT = REPOSITORY / "inventories" / "lab" / "hosts.yml"


def default_path(prefix: str) -> Path:
    """The embedded inventory for the default lab; another prefix keeps its own beside its state."""
    return DEFAULT if prefix == "lab" else folder(prefix) / "hosts.yml"


def render(lab: Lab, group: str) -> str:
    """YAML by hand: the values are plain scalars, and JSON's quoting is YAML's too."""
    # On each host, not on the group: two labs' inventories can then be used side by side.
    variables = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(ssh.client_key()),
        "ansible_ssh_common_args": " ".join(ssh.options(lab)),
        "ansible_python_interpreter": "/usr/bin/python3",
        "lab_driver": lab.driver,
    }
    lines = [f"{MARK}{lab.prefix}", f"{group}:", "  hosts:"]
    for host in lab.hosts:
        own = {"ansible_host": host.address, "ansible_port": host.port, **variables}
        lines += [f"    {host.name}:"]
        lines += [f"      {name}: {json.dumps(value)}" for name, value in own.items()]
    return "\n".join(["---", *lines]) + "\n"


def write(lab: Lab, path: Path, group: str) -> None:
    text = render(lab, group)
    if not path.exists() or path.read_text() != text:
        write_atomically(path, text)
        give_to_user(path)


def remove(path: Path, prefix: str) -> None:
    """Remove the inventory if it is this lab's: an operator's own file of that name stays."""
    if path.exists() and f"{MARK}{prefix}\n" in path.read_text():
        path.unlink()
