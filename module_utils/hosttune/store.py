"""What the suite keeps on a host: the ledger (what was) and the manifest (what shall be).

Both are JSON with a schema number, replaced whole and synced, readable by root (ledger) or by everyone
(manifest: it holds no secret, only keyed digests). Their schemas are published in docs/schemas.

Nothing can bring the ledger back once it is lost, so it stands twice, each copy sealed by the chain of the
runs that wrote it. The manifest is what the next run writes anyway.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from . import atomic
from .model import FileImage, Refusal
from .system import System

LEDGER = "/var/lib/hosttune/ledger.json"
LEDGER_COPY = "/var/lib/hosttune/ledger.copy.json"
MANIFEST = "/etc/hosttune/manifest.json"
SCHEMA = 1
#: Links of the ledger's chain that are kept: who wrote it last, and before that.
CHAIN_LINKS = 50


class Damaged(Refusal):
    """A file of ours that is cut, empty, edited or no JSON; one of a newer release is a plain Refusal."""


def load_json(system: System, path: str, what: str) -> dict[str, Any] | None:
    """The object in `path`, None where there is no file.

    Raises Damaged for anything else than ours, Refusal where it cannot be read or a newer release wrote it.
    """
    try:
        text = system.read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refusal(f"cannot be read: {error.strerror}", thing=path, remedy="Run as root") from error
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Damaged(
            f"the {what} is not JSON ({error})",
            thing=path,
            remedy=f"Restore it from a backup of this host; without the {what} nothing is touched",
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("schema"), int):
        raise Damaged(
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

    settings: kind -> name -> {owner, live, persisted, verdict, run, undo_failed?}
    files: path -> {kind, owner, written: [digest], original: null | {content, mode, uid, gid}, open?}, `open`
        from before it is written until what is to read it has done so
    folders: those that we made, outermost first
    chain: {sequence, run, digest} of each run that wrote it, the newest last; a digest is over the one before
    it and all of the above, so that a ledger that was cut or edited is known as such
    """

    def __init__(self, system: System) -> None:
        self.system = system
        #: what is wrong with the first copy, where the second one is used instead
        self.damage = ""
        found = self._load()
        self.settings: dict[str, dict[str, dict[str, Any]]] = found.get("settings", {})
        self.files: dict[str, dict[str, Any]] = found.get("files", {})
        for entry in self.files.values():
            if not isinstance(entry["written"], list):  # as the first release wrote it
                entry["written"] = [entry["written"]] if entry["written"] else []
        self.folders: list[str] = found.get("folders", [])
        self.chain: list[dict[str, Any]] = found.get("chain", [])

    def _load(self) -> dict[str, Any]:
        """The first copy that is whole. The second is written first: it is never older than the first."""
        try:
            found = _sealed(load_json(self.system, LEDGER, "ledger"), LEDGER)
            if found is not None:
                return found
            self.damage = f"{LEDGER} is missing"
        except Damaged as damage:
            self.damage = str(damage)
        try:
            found = _sealed(load_json(self.system, LEDGER_COPY, "ledger's copy"), LEDGER_COPY)
        except Damaged as damage:
            raise Damaged(
                f"{self.damage or 'missing'}; its copy is no better ({damage.message})",
                thing=LEDGER,
                remedy="Restore either from a backup of this host; without a ledger nothing is touched",
            ) from damage
        if found is None:
            if self.damage.endswith("is missing"):
                self.damage = ""  # a host that was never touched
                return {}
            raise Damaged(self.damage)
        return found

    def save(self, run: dict[str, Any] | None = None) -> None:
        """Writes both copies; `run` is who does it."""
        body = {"settings": self.settings, "files": self.files, "folders": self.folders}
        last: dict[str, Any] = self.chain[-1] if self.chain else {"sequence": 0, "digest": ""}
        link: dict[str, Any] = {"sequence": last["sequence"] + 1, "run": dict(run or {})}
        link["digest"] = _link_digest(last["digest"], link, body)
        self.chain = [*self.chain, link][-CHAIN_LINKS:]
        content = {"schema": SCHEMA, **body, "chain": self.chain}
        if self.damage and self.system.exists(LEDGER):
            os.rename(self.system.path(LEDGER), self.system.path(f"{LEDGER}.damaged"))
        self.damage = ""
        for path in (LEDGER_COPY, LEDGER):
            save_json(self.system, path, content, 0o600, 0o700)

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
            self.files[path] = {"kind": kind, "owner": owner, "original": kept, "written": []}

    def intend(self, path: str, owner: str, digest: str) -> None:
        """Says what is about to be written; what was written before stays known until `settle`."""
        entry = self.files[path]
        entry["owner"] = owner
        entry["written"] = [*(one for one in entry["written"] if one != digest), digest][-2:]
        entry["open"] = True

    def settle(self, path: str) -> None:
        """Says that what was intended stands, and was read by those who have to."""
        entry = self.files[path]
        entry["written"] = entry["written"][-1:]
        entry.pop("open", None)

    def original(self, path: str) -> FileImage | None:
        kept = self.files[path]["original"]
        return None if kept is None else _unpack(kept)

    def owners(self) -> set[str]:
        found = {entry["owner"] for names in self.settings.values() for entry in names.values()}
        return found | {entry["owner"] for entry in self.files.values()}


def _sealed(found: dict[str, Any] | None, path: str) -> dict[str, Any] | None:
    """A ledger as its last run left it; raises Damaged for one that fits its own chain no more."""
    if found is None or "chain" not in found:
        return found  # written before there was a chain
    body = {key: found.get(key) for key in ("settings", "files", "folders")}
    chain = found["chain"]
    remedy = "Restore it from a backup of this host; without the ledger nothing is touched"
    if not isinstance(chain, list) or not all(isinstance(link, dict) for link in chain) or not chain:
        raise Damaged("the ledger has no chain", thing=path, remedy=remedy)
    if any(after.get("sequence") != before.get("sequence", 0) + 1 for before, after in zip(chain, chain[1:])):
        raise Damaged("a link of the ledger's chain is missing", thing=path, remedy=remedy)
    before = chain[-2]["digest"] if len(chain) > 1 else ""
    if chain[-1].get("digest") != _link_digest(before, chain[-1], body):
        raise Damaged(
            "the ledger was changed by another hand: its digest does not fit", thing=path, remedy=remedy
        )
    return found


def _link_digest(before: str, link: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in link.items() if key != "digest"}
    text = json.dumps([before, plain, body], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(text.encode())


class Manifest:
    """The desired settings a host was last converged to.

    owners: owner -> kind -> name -> {value, options?, notes, waits?}
    """

    def __init__(self, system: System, tolerant: bool = False) -> None:
        """Raises Damaged for a file that cannot be used; `tolerant` takes it for none: see `damage`."""
        self.system = system
        #: what is wrong with the file
        self.damage = ""
        try:
            found = self._load()
        except Damaged as damage:
            if not tolerant:
                raise
            self.damage = str(damage)
            found = None
        self.exists = found is not None
        self.owners: dict[str, dict[str, dict[str, dict[str, Any]]]] = (found or {}).get("owners", {})
        self.run: dict[str, Any] = (found or {}).get("run", {})
        #: what it was converged on (System.machine)
        self.machine: dict[str, str] = (found or {}).get("machine", {})
        #: whether it is as we wrote it
        self.intact = not self.damage and (found is None or found.get("digest") == self.digest)

    def _load(self) -> dict[str, Any] | None:
        found = load_json(self.system, MANIFEST, "manifest")
        if found is not None and not _is_owners(found.get("owners", {})):
            raise Damaged(
                "the manifest is not of the form owner, kind, name, value",
                thing=MANIFEST,
                remedy="Restore it from a backup of this host",
            )
        return found

    @property
    def digest(self) -> str:
        """sha256 over the settings; who converged when is not part of it."""
        canonical = json.dumps(self.owners, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self) -> None:
        content = {
            "schema": SCHEMA,
            "digest": self.digest,
            "run": self.run,
            "machine": self.machine,
            "owners": self.owners,
        }
        save_json(self.system, MANIFEST, content, 0o644, 0o755)

    def remove(self) -> None:
        """Undone to the end: the file goes, and its folder where nothing else is in it."""
        real = self.system.path(MANIFEST)
        atomic.remove(real)
        atomic.remove_folder(os.path.dirname(real))


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
