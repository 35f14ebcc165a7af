"""What a host is expected to be: the roles' variables as Ansible resolved them, never what the engine wrote.

HOSTTUNE_EXPECTATIONS names a JSON file that the module host_validation writes (playbooks/validate.yml):
{"host": NAME, "urls": [URL], "settings": {OWNER: {KIND: {NAME: VALUE}}}}, secret files without their content.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.register_assert_rewrite("reading")

from reading import Reader  # noqa: E402 - its assertions shall tell both values

VARIABLE = "HOSTTUNE_EXPECTATIONS"


class Setting(NamedTuple):
    owner: str
    kind: str
    name: str
    value: Any

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def _expected() -> dict[str, Any]:
    path = os.environ.get(VARIABLE)
    if not path:
        raise pytest.UsageError(
            f"{VARIABLE} names no file: run playbooks/validate.yml, which writes one for each host"
        )
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


def _settings(expected: dict[str, Any]) -> list[Setting]:
    return [
        Setting(owner, kind, name, value)
        for owner, kinds in expected["settings"].items()
        for kind, names in kinds.items()
        for name, value in names.items()
    ]


def pytest_configure(config):
    config.addinivalue_line("markers", "owner(name): only where this role's settings are declared")
    config.expected = _expected()


def pytest_generate_tests(metafunc):
    expected = metafunc.config.expected
    settings = _settings(expected)
    if "process_limit" in metafunc.fixturenames:
        settings = [one for one in settings if one.kind == "unit" and "/Limit" in one.name]
        metafunc.parametrize("process_limit", settings, ids=str)
    elif "setting" in metafunc.fixturenames:
        metafunc.parametrize("setting", settings, ids=str)
    elif "url" in metafunc.fixturenames:
        metafunc.parametrize("url", expected.get("urls", []))


def pytest_collection_modifyitems(config, items):
    """A test with nothing to test is left out, so that `skipped` counts what this host could not show."""
    owners = config.expected["settings"]
    kept = []
    for item in items:
        marker = item.get_closest_marker("owner")
        callspec = getattr(item, "callspec", None)
        empty = callspec is not None and any(
            name in callspec.params and not isinstance(callspec.params[name], (tuple, str))
            for name in ("setting", "process_limit", "url")
        )
        if not empty and (marker is None or marker.args[0] in owners):
            kept.append(item)
    items[:] = kept


_readers: dict[str, Reader] = {}


@pytest.fixture
def declared(pytestconfig) -> list[Setting]:
    return _settings(pytestconfig.expected)


@pytest.fixture
def reader(host, declared) -> Reader:
    """One for each host and run: it asks for all names of a kind at once and remembers the answers."""
    name = str(host.backend.get_pytest_id())
    if name not in _readers:
        _readers[name] = Reader(host, declared)
    return _readers[name]
