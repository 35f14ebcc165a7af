"""What the suite keeps on a host: the ledger (what was) and the manifest (what shall be).

Both are JSON with a schema number, replaced whole and synced, readable by root (ledger) or by everyone
(manifest: it holds no secret, only keyed digests). Their schemas are published in docs/schemas.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from typing import Any

from . import atomic
from .model import FileImage, Refusal
from .system import System

LEDGER = "/var/lib/hosttune/ledger.json"
MANIFEST = "/etc/hosttune/manifest.json"
SCHEMA = 1


def load_json(system: System, path: str, what: str) -> dict[str, Any] | None:
    """The object in `path`, None where there is no file; raises Refusal for anything else than ours."""
    try:
        text = system.read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refusal(f"cannot be read: {error.strerror}", thing=path, remedy="Run as root") from error
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Refusal(
            f"the {what} is not JSON ({error})",
            thing=path,
            remedy=f"Restore it from a backup of this host; without the {what} nothing is touched",
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("schema"), int):
        raise Refusal(
            f"the {what} names no schema", thing=path, remedy="Restore it from a backup of this host"
        )
    if found["schema"] > SCHEMA:
        raise Refusal(
            f"the {what} has schema {found['schema']}, this release knows up to {SCHEMA}",
            thing=path,
            remedy="Run the release of the suite that wrote it, or a newer one",
        )
    return found


def save_json(system: System, path: str, content: dict[str, Any], mode: int, folder_mode: int) -> None:
    """Replaces `path`; its folder is made where it is missing."""
    real = system.path(path)
    atomic.make_folders(os.path.dirname(real), folder_mode)
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True) + "\n"
    atomic.write(real, FileImage(text.encode(), mode, os.getuid(), os.getgid()))


class Ledger:
    """What each setting and each file was before it was first touched.

    settings: kind -> name -> {owner, live, persisted, verdict, run}
    files: path -> {kind, owner, written, original: null | {content, mode, uid, gid}}
    folders: those that we made, outermost first
    """

    def __init__(self, system: System) -> None:
        self.system = system
        found = load_json(system, LEDGER, "ledger") or {}
        self.settings: dict[str, dict[str, dict[str, Any]]] = found.get("settings", {})
        self.files: dict[str, dict[str, Any]] = found.get("files", {})
        self.folders: list[str] = found.get("folders", [])

    def save(self) -> None:
        content = {"schema": SCHEMA, "settings": self.settings, "files": self.files, "folders": self.folders}
        save_json(self.system, LEDGER, content, 0o600, 0o700)

    def entry(self, kind: str, name: str) -> dict[str, Any] | None:
        return self.settings.get(kind, {}).get(name)

    def note_setting(self, kind: str, name: str, entry: dict[str, Any]) -> None:
        self.settings.setdefault(kind, {})[name] = entry

    def forget_setting(self, kind: str, name: str) -> None:
        self.settings.get(kind, {}).pop(name, None)
        if not self.settings.get(kind):
            self.settings.pop(kind, None)

    def note_file(self, path: str, kind: str, owner: str, original: FileImage | None) -> None:
        """Keeps the original of a file, once: what stands there later is ours."""
        if path not in self.files:
            kept = None if original is None else _pack(original)
            self.files[path] = {"kind": kind, "owner": owner, "original": kept, "written": None}

    def original(self, path: str) -> FileImage | None:
        kept = self.files[path]["original"]
        return None if kept is None else _unpack(kept)

    def owners(self) -> set[str]:
        found = {entry["owner"] for names in self.settings.values() for entry in names.values()}
        return found | {entry["owner"] for entry in self.files.values()}


class Manifest:
    """The desired settings a host was last converged to.

    owners: owner -> kind -> name -> {value, options?, notes}
    """

    def __init__(self, system: System) -> None:
        self.system = system
        found = load_json(system, MANIFEST, "manifest")
        self.exists = found is not None
        self.owners: dict[str, dict[str, dict[str, dict[str, Any]]]] = (found or {}).get("owners", {})
        self.run: dict[str, Any] = (found or {}).get("run", {})
        if not _is_owners(self.owners):
            raise Refusal(
                "the manifest is not of the form owner, kind, name, value",
                thing=MANIFEST,
                remedy="Restore it from a backup of this host",
            )
        #: whether it is as we wrote it
        self.intact = found is None or found.get("digest") == self.digest

    @property
    def digest(self) -> str:
        """sha256 over the settings; who converged when is not part of it."""
        canonical = json.dumps(self.owners, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self) -> None:
        content = {"schema": SCHEMA, "digest": self.digest, "run": self.run, "owners": self.owners}
        save_json(self.system, MANIFEST, content, 0o644, 0o755)

    def remove(self) -> None:
        """Undone to the end: the file goes, and its folder where nothing else is in it."""
        real = self.system.path(MANIFEST)
        atomic.remove(real)
        folder = os.path.dirname(real)
        if os.path.isdir(folder) and not os.listdir(folder):
            os.rmdir(folder)
            atomic.sync_folder(os.path.dirname(folder))


def _is_owners(owners: Any) -> bool:
    """Whether this is owner -> kind -> name -> {value, ...} down to the values' type."""
    return (
        isinstance(owners, dict)
        and all(isinstance(kinds, dict) for kinds in owners.values())
        and all(isinstance(names, dict) for kinds in owners.values() for names in kinds.values())
        and all(
            isinstance(entry, dict) and isinstance(entry.get("value"), str)
            for kinds in owners.values()
            for names in kinds.values()
            for entry in names.values()
        )
    )


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _pack(image: FileImage) -> dict[str, Any]:
    return {
        "content": base64.b64encode(image.content).decode(),
        "mode": f"{image.mode:04o}",
        "uid": image.uid,
        "gid": image.gid,
    }


def _unpack(kept: dict[str, Any]) -> FileImage:
    return FileImage(base64.b64decode(kept["content"]), int(kept["mode"], 8), kept["uid"], kept["gid"])
