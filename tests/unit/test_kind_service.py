"""Kind service against a service manager that remembers what it was told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosttune.kinds.service import ServiceKind
from hosttune.model import Change, Refusal, Setting
from hosttune.system import Ran, System


class FakeSystem(System):
    """Answers as systemctl 252 does, for the units in `units`: unit -> [UnitFileState, ActiveState]."""

    def __init__(self, root: Path, units: dict[str, list[str]]) -> None:
        super().__init__(str(root))
        self.units = units
        self.aliases: dict[str, str] = {}
        self.stale: set[str] = set()
        self.refuses: set[str] = set()
        self.told: list[str] = []
        #: unit -> the condition that kept systemd from starting it
        self.unmet: dict[str, str] = {}
        folder = root / "usr/lib/systemd/system"
        folder.mkdir(parents=True, exist_ok=True)
        for unit in units:
            (folder / unit).write_text("[Service]\n")

    def run(self, *argv: str, stdin: str = "", timeout: float = 120.0) -> Ran:
        assert argv[0] == "systemctl"
        if argv[1] == "show":
            return Ran(0, "\n".join(self._block(unit) for unit in argv[argv.index("--") + 1 :]), "")
        if argv[1] == "status":
            unmet = self.unmet.get(argv[-1])
            return Ran(
                3, f"     Condition: start condition failed\n  └─ {unmet} was not met\n" if unmet else "", ""
            )
        if argv[1] == "is-enabled":
            asked = [self.aliases.get(unit, unit) for unit in argv[argv.index("--") + 1 :]]
            known = [self.units[unit][0] for unit in asked if unit in self.units]
            return Ran(len(asked) - len(known), "".join(f"{state}\n" for state in known if state), "")
        if argv[1] == "daemon-reload":
            self.stale.clear()
            self.told.append("daemon-reload")
            return Ran(0, "", "")
        words, unit = argv[1 : argv.index("--")], argv[-1]
        self.told.append(" ".join((*words, unit)))
        if words[0] in self.refuses:
            return Ran(1, "", f"Failed to {words[0]} {unit}: refused")
        state = self.units[unit]
        runtime = "-runtime" if "--runtime" in words else ""
        effects = {
            "enable": (f"enabled{runtime}", None),
            "disable": ("disabled", None),
            "mask": (f"masked{runtime}", None),
            "unmask": ("disabled", None),
            "start": (None, "active"),
            "stop": (None, "inactive"),
        }
        boot, run = effects[words[0]]
        self.units[unit] = [boot or state[0], run or state[1]]
        return Ran(0, "", "")

    def _block(self, unit: str) -> str:
        name = self.aliases.get(unit, unit)
        if name not in self.units:
            return f"Id={unit}\nLoadState=not-found\nActiveState=inactive\nUnitFileState=\nFragmentPath=\n"
        boot, run = self.units[name]
        return (
            f"Id={name}\nLoadState={'masked' if boot == 'masked' else 'loaded'}\nActiveState={run}\n"
            f"UnitFileState={boot}\nFragmentPath=/usr/lib/systemd/system/{name}\n"
            f"NeedDaemonReload={'yes' if name in self.stale else 'no'}\n"
            f"ConditionResult={'no' if name in self.unmet or run == 'inactive' else 'yes'}\n"
        )


def setting(name: str, value: str, **notes: str) -> Setting:
    return Setting("redis", "service", name, value, notes=notes)


def test_only_the_words_asked_are_compared(tmp_path: Path) -> None:
    kind = ServiceKind(FakeSystem(tmp_path, {}))
    assert kind.same("x", "enabled active", "active")
    assert kind.same("x", "enabled active", "enabled")
    assert not kind.same("x", "enabled active", "inactive")
    assert not kind.same("x", "enabled active", "disabled")
    assert kind.same("x", "disabled", "active")
    assert kind.same("x", "active", "masked")
    assert kind.same("x", "inactive", "failed")
    assert kind.same("x", "active", "reloading")
    assert not kind.same("x", "active", "activating")
    assert not kind.same("x", "enabled", "enabled-runtime")


def test_planes(tmp_path: Path) -> None:
    system = FakeSystem(tmp_path, {"a.service": ["enabled", "active"], "b.timer": ["masked", "failed"]})
    planes = ServiceKind(system).read(["a.service", "b.timer"])
    assert planes["a.service"].live == "active"
    assert [one.as_dict() for one in planes["a.service"].definitions] == [
        {"value": "enabled", "file": "/usr/lib/systemd/system/a.service", "line": 0}
    ]
    assert planes["b.timer"].definitions[0].file == "/etc/systemd/system/b.timer"


def test_a_link_that_a_generator_makes_at_every_boot_is_enabled(tmp_path: Path) -> None:
    # Debian's postgresql@15-main.service is enabled-runtime for ever
    name = "postgresql@15-main.service"
    system = FakeSystem(
        tmp_path, {name: ["enabled-runtime", "active"], "x.service": ["enabled-runtime", "active"]}
    )
    links = tmp_path / "run/systemd/generator/postgresql.service.wants"
    links.mkdir(parents=True)
    (links / name).symlink_to("/lib/systemd/system/postgresql@.service")
    planes = ServiceKind(system).read([name, "x.service"])
    assert [planes[one].definitions[0].value for one in (name, "x.service")] == ["enabled", "enabled-runtime"]


def test_activate_tells_only_what_differs_and_in_an_order_that_works(tmp_path: Path) -> None:
    system = FakeSystem(
        tmp_path,
        {
            "a.service": ["disabled", "inactive"],
            "b.timer": ["enabled", "active"],
            "c.service": ["masked", "inactive"],
            "d.service": ["enabled", "active"],
        },
    )
    kind = ServiceKind(system)
    wanted = {
        "a.service": "enabled active",
        "b.timer": "masked inactive",
        "c.service": "enabled active",
        "d.service": "enabled active",
    }
    assert kind.activate([Change(name, value) for name, value in wanted.items()], []) == {}
    assert system.told == [
        "enable a.service",
        "start a.service",
        "stop b.timer",
        "mask b.timer",
        "unmask c.service",
        "enable c.service",
        "start c.service",
    ]
    for name, planes in kind.read(list(wanted)).items():
        assert kind.same(name, wanted[name], str(planes.live))
        assert kind.same(name, wanted[name], planes.definitions[0].value)


@pytest.mark.parametrize("before", [["enabled", "active"], ["disabled", "inactive"], ["masked", "inactive"]])
@pytest.mark.parametrize(
    "asked", ["enabled active", "disabled inactive", "masked inactive", "masked", "active"]
)
def test_undo_brings_back_what_was(tmp_path: Path, before: list[str], asked: str) -> None:
    system = FakeSystem(tmp_path, {"a.service": list(before)})
    kind = ServiceKind(system)
    entry = {"live": before[1], "persisted": {"value": before[0]}}
    kind.activate([Change("a.service", asked)], [])
    assert kind.activate([Change("a.service", before[1], entry, undo=True)], []) == {}
    assert system.units["a.service"] == before


def test_a_unit_that_came_with_us_is_disabled_before_its_file_goes(tmp_path: Path) -> None:
    system = FakeSystem(tmp_path, {"a.service": ["enabled", "active"]})
    entry = {"live": "inactive", "persisted": {"value": "absent"}}
    ServiceKind(system).activate([Change("a.service", "inactive", entry, undo=True)], [])
    assert system.told == ["stop a.service", "disable a.service"]


def test_a_changed_unit_file_is_loaded_before_its_service_starts(tmp_path: Path) -> None:
    system = FakeSystem(tmp_path, {"a.service": ["enabled", "inactive"]})
    system.stale.add("a.service")
    ServiceKind(system).activate([Change("a.service", "active")], [])
    assert system.told == ["daemon-reload", "start a.service"]


def test_a_refused_command_is_a_failure_and_the_rest_of_that_unit_is_left(tmp_path: Path) -> None:
    system = FakeSystem(
        tmp_path, {"a.service": ["disabled", "inactive"], "b.service": ["enabled", "inactive"]}
    )
    system.refuses.add("enable")
    failed = ServiceKind(system).activate(
        [Change("a.service", "enabled active"), Change("b.service", "active")], []
    )
    assert failed == {"a.service": "systemctl enable a.service: Failed to enable a.service: refused"}
    assert system.told == ["enable a.service", "start b.service"]


def test_missing_units(tmp_path: Path) -> None:
    kind = ServiceKind(FakeSystem(tmp_path, {"redis-server.service": ["enabled", "active"]}))
    with pytest.raises(Refusal, match=r"Did you mean redis-server\.service"):
        kind.check([setting("redis-servr.service", "enabled")], {})
    with pytest.raises(Refusal, match="there is no unit"):
        kind.check([setting("thermald.service", "active")], {})
    # what is to be off is off where it is not installed, but a slip of the pen must not pass as that
    kind.check([setting("thermald.service", "disabled inactive")], {})
    planes = kind.read(["thermald.service"])["thermald.service"]
    assert kind.same("thermald.service", "disabled inactive", str(planes.live))
    assert kind.same("thermald.service", "disabled inactive", planes.definitions[0].value)
    assert not kind.same("thermald.service", "enabled", planes.definitions[0].value)
    with pytest.raises(Refusal, match="Did you mean"):
        kind.check([setting("redis-servr.service", "masked")], {})


def test_a_missing_package_makes_a_missing_unit_unknown(tmp_path: Path) -> None:
    kind = ServiceKind(FakeSystem(tmp_path, {}))
    kind.check([setting("redis-server.service", "enabled")], {"redis": ["redis-server"]})
    assert kind.read(["redis-server.service"])["redis-server.service"].unknown


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("a.service", "enabeld", "Did you mean enabled?"),
        ("a.service", "enabled masked", "cannot be enabled and masked"),
        ("a.service", "masked active", "cannot be started"),
        ("a.service", "", "asks for no state"),
        ("a", "enabled", "Write a.service"),
        ("a@.service", "enabled", "template"),
        ("s.service", "enabled", "no [Install] section"),
        ("alias.service", "active", "Name a.service"),
    ],
)
def test_mistakes_are_refused(tmp_path: Path, name: str, value: str, said: str) -> None:
    system = FakeSystem(tmp_path, {"a.service": ["enabled", "active"], "s.service": ["static", "active"]})
    system.aliases["alias.service"] = "a.service"
    with pytest.raises(Refusal) as refusal:
        ServiceKind(system).check([setting(name, value)], {})
    assert said in str(refusal.value)


def test_a_unit_that_comes_as_a_file_of_the_same_call_is_no_mistake(tmp_path: Path) -> None:
    kind = ServiceKind(FakeSystem(tmp_path, {}))
    kind.check([setting("orchestrator.service", "enabled active", unit_from="file")], {})
    planes = kind.read(["orchestrator.service"])["orchestrator.service"]
    assert not planes.unknown
    assert planes.live == "inactive"


def test_a_mask_is_named_by_its_own_file_and_the_links_on_disk_count(tmp_path: Path) -> None:
    system = FakeSystem(
        tmp_path, {"a.service": ["masked-runtime", "active"], "b.service": ["enabled", "active"]}
    )
    folder = tmp_path / "run/systemd/system"
    folder.mkdir(parents=True)
    (folder / "a.service").symlink_to("/dev/null")
    planes = ServiceKind(system).read(["a.service", "b.service", "gone.service"])
    found = [planes[name].definitions[0] for name in planes]
    assert [one.value for one in found] == ["masked-runtime", "enabled", "absent"]
    assert found[0].file == "/run/systemd/system/a.service"


def test_what_systemd_does_not_start_on_such_a_host_is_unsupported(tmp_path: Path) -> None:
    system = FakeSystem(
        tmp_path,
        {name: ["enabled", "inactive"] for name in ("a.service", "b.service", "c.service", "d.service")},
    )
    system.unmet = {
        "a.service": "ConditionCapability=CAP_SYS_TIME",
        "b.service": "ConditionVirtualization=!container",
        "c.service": "ConditionPathExists=/srv/later",
    }
    kind = ServiceKind(system)
    kind.check([setting("a.service", "enabled active"), setting("c.service", "active")], {})
    kind.recall(setting("d.service", "active"))
    kind.check([setting("b.service", "masked inactive")], {})
    planes = kind.read(list(system.units))
    reason = "systemd does not start it here: ConditionCapability=CAP_SYS_TIME is not met"
    assert planes["a.service"].unsupported == reason
    # What shall be off is off; a path may come, and who was never started has met nothing yet.
    assert [planes[name].unsupported for name in ("b.service", "c.service", "d.service")] == ["", "", ""]
