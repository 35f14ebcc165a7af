"""The filters that say where a value was written, and never the value of a secret."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from ansible._internal._datatag._tags import Origin
from ansible.parsing.vault import VaultedValue

ROOT = Path(__file__).parents[2]
VARIABLES = """---
kernel_sysctl_guide:
  vm.swappiness: "10"
kernel_dirty_bytes: 7
"""


@pytest.fixture(scope="module")
def filters():
    spec = importlib.util.spec_from_file_location("hosttune_filters", ROOT / "plugins/filter/hosttune.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def written(tmp_path, filters, monkeypatch):
    """Values as Ansible loads them from a role below a project."""
    monkeypatch.setattr(filters, "_PROJECT", str(tmp_path))
    path = tmp_path / "roles/kernel/defaults/main.yml"
    path.parent.mkdir(parents=True)
    path.write_text(VARIABLES)

    def at(line, value, file=path):
        return Origin(path=str(file), line_num=line, col_num=1).tag(value)

    return at


def test_a_value_names_the_variable_it_was_written_in(filters, written, tmp_path):
    inventory = tmp_path / "inventories/x/group_vars/all.yml"
    inventory.parent.mkdir(parents=True)
    inventory.write_text("kernel_sysctl_extra:\n  a.b: '1'\n")
    owners = {"kernel": {"sysctl": {"vm.swappiness": written(3, "10"), "a.b": written(2, "1", inventory)}}}
    notes = {"sysctl": {"a.b": {"why": "w", "from": "what the role would have computed"}}}
    assert filters.with_origins(notes, owners) == {
        "sysctl": {
            "vm.swappiness": {"from": "profile guide: kernel_sysctl_guide"},
            "a.b": {"why": "w", "from": "kernel_sysctl_extra"},
        }
    }
    assert notes == {"sysctl": {"a.b": {"why": "w", "from": "what the role would have computed"}}}


def test_a_role_s_own_word_holds_where_the_role_decided_or_nobody_knows(filters, written):
    owners = {"kernel": {"sysctl": {"vm.swappiness": written(3, "10"), "computed": "7"}}}
    notes = {"sysctl": {name: {"from": "a formula"} for name in ("vm.swappiness", "computed")}}
    assert filters.with_origins(notes, owners) == notes


def test_inputs_are_resolved_where_they_are_variables(filters, written):
    owners = {"kernel": {"sysctl": {"vm.dirty_bytes": "14"}}}
    notes = {"sysctl": {"vm.dirty_bytes": {"from": "twice kernel_dirty_bytes, not no_such_thing"}}}
    context = {"kernel_dirty_bytes": written(4, "7")}
    found = filters.origins(context, owners, notes, "vm.dirty_bytes")
    assert found == {
        "sysctl": {
            "vm.dirty_bytes": {
                "variable": None,
                "file": None,
                "line": None,
                "inputs": [
                    {
                        "name": "kernel_dirty_bytes",
                        "value": "7",
                        "variable": "kernel_dirty_bytes",
                        "file": "roles/kernel/defaults/main.yml",
                        "line": 4,
                    }
                ],
            }
        }
    }
    assert filters.origins(context, owners, notes, "vm.dirty_byte") == {}


def test_nothing_from_a_vault_and_no_file_s_content_is_told(filters):
    secret = "hunter2-of-the-exchange"  # noqa: S105 - looked for in what is said
    vaulted = VaultedValue(ciphertext="$ANSIBLE_VAULT;").tag(secret)
    owners = {"app": {"sysctl": {"a.b": "1"}, "file": {"/etc/pw": {"content": secret, "secret": True}}}}
    said = "of app_one, app_two, app_three, app_password and app_text"
    notes = {"sysctl": {"a.b": {"from": said}}, "file": {"/etc/pw": {"from": said}}}
    context = {
        "app_one": vaulted,
        "app_two": {"deep": [vaulted]},
        "app_three": "3",
        "app_password": secret,
    }
    found = filters.origins(context, owners, notes, "a.b")["sysctl"]["a.b"]["inputs"]
    assert [(one["name"], one["value"]) for one in found] == [
        ("app_one", "(from a vault)"),
        ("app_two", "(from a vault)"),
        ("app_three", "3"),
    ]
    assert filters.origins(context, owners, notes, "/etc/pw")["file"]["/etc/pw"]["inputs"] == []
