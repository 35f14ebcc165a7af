"""Kind service: whether units start at boot and run now.

Name: UNIT. Value: words of `enabled`, `disabled` or `masked` (persisted: what `systemctl is-enabled` computes
from the links on disk) and of `active` or `inactive` (live: ActiveState); only what is asked is compared, so
`masked` says nothing of what runs. Nothing is written as a file: systemctl makes and removes the links.
Stopping a service that runs is a disruption of the class `restarts`; starting one, and what is done to timers
and sockets, is silent.

A unit that shall run and that systemd does not start on such a host (a condition on what the host is, such as
ConditionVirtualization=!container, was not met at the last try) is `unsupported`.
A unit that this host does not have is `absent` on disk and inactive: right where `disabled`, `inactive` or
`masked` is asked (what would be stopped cannot start), unless its name looks like a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..model import Change, Definition, Planes, Refusal, Setting
from ..system import System
from ..systemd import Systemd, fragment, is_template, mask_of, near_units, or_list
from .base import Kind, did_you_mean

BOOT_WORDS = frozenset({"enabled", "disabled", "masked"})
RUN_WORDS = frozenset({"active", "inactive"})
#: States of a unit that cannot be enabled: it has no [Install] section, or a generator made it.
_NOT_ENABLEABLE = frozenset({"static", "generated", "transient"})
#: What makes a unit have a state again that it had before we came.
_VERBS = {
    "enabled": ("enable",),
    "enabled-runtime": ("enable", "--runtime"),
    "disabled": ("disable",),
    "masked": ("mask",),
    "masked-runtime": ("mask", "--runtime"),
}
#: The UnitFileState of a unit that this host does not have.
ABSENT = "absent"
#: Starting it takes CPUs off everything that runs there (role isolation).
TAKES_CPUS = "hosttune-cpuset@"
_PROPERTIES = ("LoadState", "LoadError", "ActiveState", "UnitFileState", "FragmentPath", "ConditionResult")
#: A condition on what a host is, as `systemctl status` says of the last try; paths and the like may come yet.
_BARRED = re.compile(
    r"(Condition(?:Virtualization|Capability|Architecture|KernelVersion|Firmware|Security|CPUFeature)=.*) "
    r"was not met"
)


class ServiceKind(Kind):
    name = "service"

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self.systemd = Systemd(system)
        #: units that packages still bring: nothing can be said of them yet
        self._awaited: set[str] = set()
        #: units that shall run
        self._to_run: set[str] = set()

    # names and values

    def check(self, settings: Sequence[Setting], packages: Mapping[str, Sequence[str]]) -> None:
        try:
            shown = self.systemd.show(
                {one.name for one in settings if not is_template(one.name)}, _PROPERTIES
            )
        except OSError:
            shown = {}  # `read` says why
        for setting in settings:
            words = setting.value.split()
            self._check_words(setting, words)
            self.recall(setting)
            if "." not in setting.name:
                raise Refusal(
                    "is no name of a unit", thing=str(setting), remedy=f"Write {setting.name}.service"
                )
            if is_template(setting.name):
                raise Refusal(
                    "is a template, which cannot run",
                    thing=str(setting),
                    remedy="Name an instance: NAME@INSTANCE",
                )
            found = shown.get(setting.name)
            if found is None:
                continue
            if found["LoadState"] == "not-found" and fragment(self.system, setting.name) is None:
                self._check_missing(setting, words, packages)
            elif "enabled" in words and found.get("UnitFileState") in _NOT_ENABLEABLE:
                raise Refusal(
                    f"is {found['UnitFileState']}: it has no [Install] section, so it cannot be enabled",
                    thing=str(setting),
                    remedy="Enable the unit that starts it, or leave the word enabled out",
                )
            elif found.get("Id", setting.name) != setting.name:
                raise Refusal(
                    f"is another name of {found['Id']}", thing=str(setting), remedy=f"Name {found['Id']}"
                )

    def recall(self, setting: Setting) -> None:
        if "active" in setting.value.split():
            self._to_run.add(setting.name)

    def _check_words(self, setting: Setting, words: Sequence[str]) -> None:
        for word in words:
            if word not in BOOT_WORDS | RUN_WORDS:
                raise Refusal(
                    f"'{word}' is no state of a unit",
                    thing=str(setting),
                    remedy=did_you_mean(word, BOOT_WORDS | RUN_WORDS)
                    or f"States are {', '.join(sorted(BOOT_WORDS | RUN_WORDS))}",
                )
        for group in (BOOT_WORDS, RUN_WORDS):
            both = sorted(group & set(words))
            if len(both) > 1:
                raise Refusal(
                    f"cannot be {' and '.join(both)}", thing=str(setting), remedy="Ask for one of them"
                )
        if not words:
            raise Refusal("asks for no state", thing=str(setting), remedy='Such as "enabled active"')
        if "masked" in words and "active" in words:
            raise Refusal(
                "a masked unit cannot be started", thing=str(setting), remedy="Leave one of the words out"
            )

    def _check_missing(
        self, setting: Setting, words: Sequence[str], packages: Mapping[str, Sequence[str]]
    ) -> None:
        if setting.notes.get("unit_from") == "file":
            return
        if packages.get(setting.owner):
            self._awaited.add(setting.name)
            return
        near = or_list(near_units(self.system, setting.name))
        if "enabled" not in words and "active" not in words and not near:
            return
        raise Refusal(
            f"there is no unit {setting.name}",
            thing=str(setting),
            remedy=near or "Install what brings it first, or correct the name",
        )

    def disruption_of(self, name: str, wanted: str, planes: Planes) -> str:
        starts = "active" in wanted.split() and _plain(planes.live or "inactive") != "active"
        if starts and name.startswith(TAKES_CPUS):
            return "moves"
        stops = "inactive" in wanted.split() and _plain(planes.live or "inactive") != "inactive"
        return "restarts" if stops and name.endswith(".service") else "silent"

    def same(self, name: str, wanted: str, found: str) -> bool:
        """Whether what is found is what is asked; a word of the other plane says nothing."""
        asked = set(wanted.split())
        for word in found.split():
            group = RUN_WORDS if word in _RUNNING else BOOT_WORDS
            if word == ABSENT and asked & group <= {"disabled", "masked"}:
                continue
            if asked & group and _plain(word) not in asked:
                return False
        return True

    # planes

    def read(self, names: Sequence[str]) -> dict[str, Planes]:
        try:
            shown = self.systemd.show(names, _PROPERTIES)
        except OSError as error:
            return {name: Planes(unknown=str(error.strerror)) for name in names}
        states = self.systemd.enablement(
            name for name in names if shown[name].get("LoadState", "not-found") != "not-found"
        )
        generated = self._generated()
        return {name: self._read_one(name, shown[name], states.get(name, ""), generated) for name in names}

    def _read_one(self, name: str, shown: Mapping[str, str], state: str, generated: frozenset[str]) -> Planes:
        load = shown.get("LoadState", "not-found")
        if load == "not-found":
            if name in self._awaited:
                return Planes(unknown=f"unit {name} does not exist")
            return Planes("inactive", [Definition(ABSENT, "")], note=f"this host has no unit {name}")
        if load in ("error", "bad-setting"):
            return Planes(unknown=f"systemd cannot load {name}: {shown.get('LoadError') or load}")
        if state == "enabled-runtime" and name in generated:
            state = "enabled"  # a generator makes the link again at every boot
        file = shown.get("FragmentPath", "")
        if state.startswith("masked"):
            file = mask_of(self.system, name) or f"/etc/systemd/system/{name}"
        planes = Planes(live=shown.get("ActiveState"))
        if name in self._to_run and planes.live == "inactive" and shown.get("ConditionResult") == "no":
            planes.unsupported = self._barred(name)
        if state:
            planes.definitions = [Definition(state, file)]
        return planes

    def _barred(self, unit: str) -> str:
        """Why systemd would not start a unit on a host such as this, as it found when it last tried."""
        said = self.system.run("systemctl", "status", "--lines=0", "--no-pager", "--", unit)
        unmet = _BARRED.search(said.out)
        return f"systemd does not start it here: {unmet[1]} is not met" if unmet else ""

    def _generated(self) -> frozenset[str]:
        """Units that generators start at boot."""
        found: set[str] = set()
        for folder in (
            "/run/systemd/generator",
            "/run/systemd/generator.early",
            "/run/systemd/generator.late",
        ):
            for links in self.system.names(folder):
                if links.endswith((".wants", ".requires")):
                    found.update(self.system.names(f"{folder}/{links}"))
        return frozenset(found)

    # the live plane

    def shown(self, planes: Planes) -> str | None:
        return f"{planes.winner.value if planes.winner else 'static'} {planes.live or 'inactive'}"

    def outcome(self, changes: Sequence[Change]) -> dict[str, str]:
        now = self.read([change.name for change in changes])
        found = {}
        for change in changes:
            words = (self.shown(now[change.name]) or "").split()
            found[change.name] = " ".join(asked or word for asked, word in zip(_asked(change), words))
        return found

    def activate(self, changes: Sequence[Change], files: Iterable[str]) -> dict[str, str]:
        """What differs only: stops, then makes or removes the links, then starts."""
        if not changes:
            return {}
        now = self.read([change.name for change in changes])
        failed = {}
        # A unit file that came with this call must be what is started.
        stale = self.systemd.show([change.name for change in changes], ("NeedDaemonReload",))
        if any(shown.get("NeedDaemonReload") == "yes" for shown in stale.values()):
            self.system.run("systemctl", "daemon-reload")
        for change in changes:
            for words in self._commands(change, now[change.name]):
                ended = self.system.run("systemctl", *words, "--", change.name)
                if not ended.ok:
                    why = ended.err.strip() or f"exit status {ended.status}"
                    failed[change.name] = f"systemctl {' '.join(words)} {change.name}: {why}"
                    break
        return failed

    def _commands(self, change: Change, now: Planes) -> list[tuple[str, ...]]:
        boot, run = _asked(change)
        if change.persist_only:
            run = ""
        state = now.winner.value if now.winner else ""
        live = now.live or "inactive"
        commands: list[tuple[str, ...]] = []
        if run == "inactive" and not self.same(change.name, run, live):
            commands.append(("stop",))
        if boot == ABSENT and state not in ("", ABSENT):
            # Undone before its file goes: links to a file that is gone would stay for ever.
            commands.append(("unmask",) if state.startswith("masked") else ("disable",))
        elif boot and boot != state and not self.same(change.name, boot, state):
            if state.startswith("masked"):
                commands.append(("unmask", "--runtime") if state == "masked-runtime" else ("unmask",))
            if boot in _VERBS:
                commands.append(_VERBS[boot])
        if run == "active" and not self.same(change.name, run, live):
            commands.append(("start",))
        return commands


#: States of ActiveState.
_RUNNING = frozenset(
    {"active", "reloading", "refreshing", "inactive", "failed", "activating", "deactivating", "maintenance"}
)


def _plain(word: str) -> str:
    """A state as the inventory would say it: a unit that failed does not run, one that reloads does."""
    return {"failed": "inactive", "reloading": "active", "refreshing": "active"}.get(word, word)


def _asked(change: Change) -> tuple[str, str]:
    """What to make of boot and of running, empty where nothing is asked; of an undo, what was before."""
    words = change.value.split()
    boot = next((word for word in words if word in BOOT_WORDS), "")
    run = next((_plain(word) for word in words if _plain(word) in RUN_WORDS), "")
    if change.undo:
        before: Any = change.asked if isinstance(change.asked, Mapping) else {}
        boot = (before.get("persisted") or {}).get("value") or ""
    return boot, run
