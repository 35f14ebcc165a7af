"""Kind file: a whole rendered file.

Value in the inventory: {content, mode: "0644", owner: root, group: root, secret: false, reload: UNIT,
restart: UNIT}. As text, on every plane, it is `sha256:DIGEST MODE OWNER:GROUP`; of a secret one the digest is
keyed with a key that never leaves the host, so that nobody can try passwords against it.
`reload` names a unit that is reloaded when the file changed, if it runs; `restart` one that reads the file at
its start only: until it has restarted the setting is `pending_restart`.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .. import atomic, keys
from ..model import Call, Change, Definition, FileImage, Planes, Refusal, Setting, shown
from ..systemd import Systemd
from .base import Kind

#: Names of users and groups (useradd(8) of Debian), and of units.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]*[$]?\Z")
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+\.(service|socket|timer|path|target|mount)\Z")

#: ActiveState of a unit that does not run.
_STOPPED = ("inactive", "failed")

OPTIONS = {"content", "mode", "owner", "group", "secret", "reload", "restart"}


class FileKind(Kind):
    name = "file"

    def __init__(self, system: Any) -> None:
        super().__init__(system)
        self.systemd = Systemd(system)
        self._asked: dict[str, dict[str, Any]] = {}
        #: when each running unit that reads a file at its start did so, in seconds since the epoch
        self._started: dict[str, float] = {}
        #: files that the manifest knows as secret, whatever is asked of them now
        self._were_secret: set[str] = set()

    def text(self, name: str, value: Any) -> str:
        thing = f"file {name}"
        if not isinstance(value, dict) or not isinstance(value.get("content"), str):
            raise Refusal(
                "has no content", thing=thing, remedy="Give a dict with content, mode, owner and group"
            )
        unknown = set(value) - OPTIONS
        if unknown:
            raise Refusal(
                f"has no option {', '.join(sorted(unknown))}",
                thing=thing,
                remedy=f"Options are {', '.join(sorted(OPTIONS))}",
            )
        mode = value.get("mode", "0644")
        if not isinstance(mode, str) or not re.match(r"0?[0-7]{3,4}\Z", mode):
            raise Refusal(
                f"the mode {mode!r} is no octal text",
                thing=thing,
                remedy='Write it in quotes, such as "0644"',
            )
        self._check_options(thing, value)
        if not name.startswith("/") or name.startswith("//") or os.path.normpath(name) != name:
            raise Refusal(
                "is no absolute path",
                thing=thing,
                remedy="Give the whole path, without '..' and double slashes",
            )
        if value.get("secret") and int(mode, 8) & 0o007:
            raise Refusal(
                f"is secret, and mode {mode} leaves it to everybody",
                thing=thing,
                remedy='Give a mode that ends in 0, such as "0600", or "0640" with a group',
            )
        self._asked[name] = value
        digest = self._digest(name, _encoded(thing, value["content"]))
        return f"{digest} {int(mode, 8):04o} {value.get('owner', 'root')}:{value.get('group', 'root')}"

    @staticmethod
    def _check_options(thing: str, value: Mapping[str, Any]) -> None:
        if not isinstance(value.get("secret", False), bool):
            raise Refusal(
                f"secret is '{shown(value['secret'])}'",
                thing=thing,
                remedy="Say true or false, without quotes",
            )
        for option, what in (("owner", "user"), ("group", "group")):
            name = value.get(option, "root")
            if not isinstance(name, str) or not _NAME.match(name):
                raise Refusal(
                    f"{option} '{shown(name)}' is no name of a {what}",
                    thing=thing,
                    remedy='Give the name, not the number: "root"',
                )
        for option in ("reload", "restart"):
            unit = value.get(option, "")
            if not isinstance(unit, str) or (unit and not _UNIT.match(unit)):
                raise Refusal(
                    f"{option} '{shown(unit)}' is no name of a unit",
                    thing=thing,
                    remedy=f"Write it with its type: {unit}.service"
                    if isinstance(unit, str) and _NAME.match(unit)
                    else "Give one unit with its type, such as ssh.service",
                )

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        for setting in settings:
            self._check_place(setting)
            value = setting.asked if isinstance(setting.asked, dict) else {}
            for look_up, name, what in (
                (pwd.getpwnam, value.get("owner"), "user"),
                (grp.getgrnam, value.get("group"), "group"),
            ):
                if name and not packages.get(setting.owner):
                    try:
                        look_up(name)
                    except KeyError:
                        raise Refusal(
                            f"there is no {what} {name}",
                            thing=str(setting),
                            remedy=f"Make the {what} first, or name another",
                        ) from None

    def _check_place(self, setting: Setting) -> None:
        if os.path.isdir(self.system.path(setting.name)):
            raise Refusal("is a folder", thing=str(setting), remedy="Name the file in it")
        folder = os.path.dirname(setting.name)
        while not os.path.lexists(self.system.path(folder)):
            folder = os.path.dirname(folder)
        if not os.path.isdir(self.system.path(folder)):
            raise Refusal(f"{folder} is no folder", thing=str(setting), remedy="Correct the path")

    def _digest(self, name: str, content: bytes) -> str:
        asked = self._asked.get(name, {})
        if asked.get("secret"):
            return keys.digest(self.system, content)
        return "sha256:" + hashlib.sha256(content).hexdigest()

    def _digest_there(self, name: str, content: bytes) -> str:
        """The digest of what stands at a path; keyed too where it may be the secret that the file held."""
        asked = self._asked.get(name, {}).get("content")
        if name in self._were_secret and (asked is None or asked.encode() != content):
            return keys.digest(self.system, content)
        return self._digest(name, content)

    def recall(self, setting: Setting) -> None:
        self._asked[setting.name] = dict(setting.asked or {})
        if self._asked[setting.name].get("secret"):
            self._were_secret.add(setting.name)

    def options(self, setting: Setting) -> dict[str, Any] | None:
        asked = self._asked.get(setting.name, {})
        return {key: asked[key] for key in ("secret", "reload", "restart") if asked.get(key)} or None

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        units: Mapping[str, Mapping[str, str]] = {}
        silent = ""
        try:
            units = self.systemd.show(
                {unit for name in names for unit in self._restarts(name)},
                ("ActiveState", "ExecMainStartTimestamp"),
            )
        except OSError as error:
            silent = error.strerror or str(error)
        for unit, about in units.items():
            started = self.systemd.seconds(about.get("ExecMainStartTimestamp", ""))
            self._started.pop(unit, None)
            if about.get("ActiveState") == "active" and started is not None:
                self._started[unit] = started
        found = {name: self._read_one(name) for name in names}
        for name, planes in found.items():
            if silent and self._restarts(name):
                planes.unknown = planes.unknown or silent
        return found

    def _restarts(self, name: str) -> list[str]:
        unit = self._asked.get(name, {}).get("restart")
        return [unit] if unit else []

    def _read_one(self, name: str) -> Planes:
        planes = Planes(has_live=False)
        planes.unknown = self._stranger(name)
        try:
            image = atomic.read_image(self.system.path(name))
        except OSError as error:
            planes.unknown = f"{name}: {error.strerror}"
            return planes
        if image is None:
            return planes
        digest = self._digest_there(name, image.content)
        text = f"{digest} {image.mode:04o} {_user(image.uid)}:{_group(image.gid)}"
        planes.definitions = [Definition(text, name)]
        for unit in self._restarts(name):
            started = self._started.get(unit)
            if started is not None:
                newer = os.stat(self.system.path(name)).st_mtime > started
                planes.process = _older(name, unit) if newer else text
                planes.needs = "restart" if newer else "none"
        return planes

    def foretell(self, setting: Setting, planes: Planes, call: Call) -> Planes:
        then = super().foretell(setting, planes, call)
        running = [
            unit for unit in self._restarts(setting.name) if unit in self._started and unit not in call.stops
        ]
        if setting.name not in call.files and running:
            return then
        process = _older(setting.name, running[0]) if running else None
        return replace(then, process=process, needs="restart" if running else "none")

    def _stranger(self, name: str) -> str:
        """Whether a file shall belong to somebody whom only a package that is still missing will bring."""
        asked = self._asked.get(name, {})
        try:
            pwd.getpwnam(asked.get("owner", "root"))
            grp.getgrnam(asked.get("group", "root"))
        except KeyError:
            return f"there is no {asked.get('owner', 'root')}:{asked.get('group', 'root')} yet"
        return ""

    # persistence

    def managed_file(self, owner: str, name: str) -> str:
        return name

    def render(self, owner: str, settings: Sequence[Setting]) -> dict[str, FileImage]:
        return {setting.name: image for setting in settings for image in [self._image(setting)] if image}

    def _image(self, setting: Setting) -> FileImage | None:
        value = setting.asked
        if not isinstance(value, dict) or "content" not in value:
            return None  # known from a manifest only: it is judged, never written
        return FileImage(
            value["content"].encode(),
            int(value.get("mode", "0644"), 8),
            pwd.getpwnam(value.get("owner", "root")).pw_uid,
            grp.getgrnam(value.get("group", "root")).gr_gid,
            secret=bool(value.get("secret")),
        )

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        failed = {}
        files = list(files)
        readers = {path: unit for path in files for unit in [self._asked.get(path, {}).get("reload")] if unit}
        try:
            shown = self.systemd.show(readers.values(), ("ActiveState", "NeedDaemonReload", "CanReload"))
        except OSError:
            shown = {}  # the reload says why
        # What does not run has nothing to forget: it reads the file when it starts.
        running = {
            unit for unit in readers.values() if shown.get(unit, {}).get("ActiveState") not in _STOPPED
        }
        # What lets a unit reload may go with the file it shall forget, or come with the one it shall read.
        gone = {unit for path, unit in readers.items() if not self.system.exists(path)}
        done = {unit: self._reload(unit) for unit in sorted(gone & running)}
        # NeedDaemonReload does not tell of a unit's first drop-in.
        stale = any(
            about.get("NeedDaemonReload") == "yes"
            or (about.get("CanReload") == "no" and not unit.endswith(".socket"))
            for unit, about in shown.items()
        )
        if stale or any(path.startswith("/etc/systemd/system/") for path in files):
            ended = self.system.run("systemctl", "daemon-reload")
            if not ended.ok:
                failed.update(dict.fromkeys(files, f"systemctl daemon-reload: {ended.err.strip()}"))
        done.update({unit: self._reload(unit) for unit in sorted(running - gone)})
        failed.update({path: done[unit] for path, unit in readers.items() if done.get(unit)})
        return failed

    def _reload(self, unit: str) -> str:
        """Why a unit could not be reloaded, empty where it was."""
        verb = "try-reload-or-restart" if unit.endswith(".socket") else "reload"
        ended = self.system.run("systemctl", verb, unit)
        return "" if ended.ok else f"systemctl reload {unit}: {ended.err.strip()}"


def _encoded(thing: str, content: str) -> bytes:
    """The bytes of a file; what cannot be encoded is not quoted, it may be part of a secret."""
    try:
        return content.encode()
    except UnicodeEncodeError as error:
        raise Refusal(
            f"character {error.start + 1} cannot be written as UTF-8",
            thing=thing,
            remedy="Correct the content in the inventory",
        ) from None


def _older(name: str, unit: str) -> str:
    """The process plane of a unit that runs with what a file was before."""
    return f"what {name} held before {unit} started"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
