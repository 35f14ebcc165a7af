"""SSH to lab hosts: one client key for the cache, one host key per host, no question ever asked."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab.processes import run
from lab.state import Host, Lab, give_to_user, lab_dir


def client_key() -> Path:
    """The private key every lab host lets in as root."""
    private = lab_dir() / "ssh" / "id_ed25519"
    if not private.exists():
        make_key(private, "hosttune lab")
        for path in (private.parent, private, private.with_suffix(".pub")):
            give_to_user(path)
    return private


def make_key(private: Path, comment: str) -> str:
    """Make a key pair, replacing one of the same name; returns the public half."""
    private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    public = private.with_name(private.name + ".pub")
    private.unlink(missing_ok=True)
    public.unlink(missing_ok=True)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", private)
    return public.read_text()


def known_hosts(lab: Lab) -> Path:
    return lab.folder / "known_hosts"


def known_hosts_line(host: Host, public_key: str) -> str:
    where = host.address if host.port == 22 else f"[{host.address}]:{host.port}"
    return f"{where} {' '.join(public_key.split()[:2])}\n"


def options(lab: Lab) -> list[str]:
    """What Ansible's ssh needs too (ansible_ssh_common_args)."""
    return [
        *("-o", f"UserKnownHostsFile={known_hosts(lab)}"),
        *("-o", "GlobalKnownHostsFile=/dev/null"),
        *("-o", "StrictHostKeyChecking=yes"),
        *("-o", "IdentitiesOnly=yes"),
    ]


def command(lab: Lab, host: Host) -> list[str]:
    """The words before the remote command. -F none: the user's own ssh configuration has no say here."""
    target = ["-i", str(client_key()), "-p", str(host.port), f"root@{host.address}"]
    # An emulated machine needs seconds to say its first word; giving up on it early only costs it more.
    patience = 15 if lab.driver == "metal" else 5
    timing = ["-o", f"ConnectTimeout={patience}", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]
    return ["ssh", "-F", "none", *options(lab), *timing, *target]


def ask(lab: Lab, host: Host, words: str, timeout: float = 20) -> str | None:
    """What a remote command printed, whatever its status; None when the host could not be reached."""
    try:
        done = subprocess.run(
            [*command(lab, host), words], capture_output=True, text=True, check=False, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode == 255 else done.stdout.strip()
