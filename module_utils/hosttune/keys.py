"""The host's own key: digests of secrets are keyed with it, so that a digest tells nothing elsewhere."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets

from . import atomic
from .model import FileImage
from .system import System

PATH = "/var/lib/hosttune/key"
#: How the digest of a secret begins.
KEYED = "hmac-sha256:"

_in_memory: dict[str, bytes] = {}


def host_key(system: System) -> bytes:
    """The key, 32 bytes; until `keep` stored one (check mode, first run) one for this process only."""
    path = system.path(PATH)
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return _in_memory.setdefault(path, secrets.token_bytes(32))


def digest(system: System, content: bytes) -> str:
    """The digest of a secret, which cannot be compared with that of a guess without the key."""
    return KEYED + hmac.new(host_key(system), content, hashlib.sha256).hexdigest()


def keep(system: System) -> None:
    """Stores the key that this process uses, where none is stored yet."""
    path = system.path(PATH)
    if not os.path.exists(path):
        atomic.write(path, FileImage(host_key(system), 0o600))
