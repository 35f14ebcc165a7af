#!/usr/bin/python
"""Explains one setting of a host: the thin Ansible face of hosttune.explain."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_explain
short_description: Everything that is known of one setting of a host
version_added: "0.1.0"
description:
  - Judges a declared setting on all its planes and says what it was before the suite first touched it, from
    the ledger on the host.
  - Asks the same as M(host_settings) in check mode, and like it touches nothing. The callback
    hosttune_summary prints the answer and keeps it in C(reports/RUN/explain.json).
options:
  setting:
    description: V(NAME), or V(KIND NAME) where several kinds have the name. An unknown one is refused.
    type: str
    required: true
  owners:
    description: "All settings of the host: owner, kind, name, value."
    type: dict
    required: true
  notes:
    description: "Why, risk, unit, source and origin of settings: kind, name, then a dict of text."
    type: dict
    default: {}
  packages:
    description: Debian packages by owner; settings of missing ones cannot be judged yet.
    type: dict
    default: {}
  origins:
    description:
      - "From which line of the inventory or of a role's defaults a value comes: kind, name, then variable,
        file, line and inputs (filter C(origins)). Passed through."
    type: dict
    default: {}
  root:
    description: Another root folder, for tests. Commands of the host are not run below it.
    type: path
    default: /
attributes:
  check_mode:
    support: full
    description: Nothing is ever changed.
author: hosttune
"""

EXAMPLES = r"""
- name: Why is it so
  host_explain:
    setting: vm.swappiness
    owners: "{{ settings_owners }}"
    notes: "{{ settings_notes }}"
    packages: "{{ settings_packages }}"
"""

RETURN = r"""
explained:
  description: The settings of that name, one for each kind that has it.
  returned: success
  type: list
  elements: dict
  contains:
    desired:
      description: >-
        As the system prints it. The other planes, verdict, needs and reason are as in M(host_settings).
      type: str
    notes:
      description: Why, risk, unit, source and origin.
      type: dict
    was:
      description: What it was before the suite first touched it. Null if it never did.
      type: dict
    origin:
      description: What O(origins) says of it.
      type: dict
"""

import platform

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.hosttune import demand, engine, explain
from ansible.module_utils.hosttune.model import Refusal
from ansible.module_utils.hosttune.system import System


class _Module(AnsibleModule):
    """The options hold secrets inside, which no_log of a whole option cannot single out."""

    def _log_invocation(self) -> None:
        self.log("Invoked")

    def _load_params(self) -> None:
        # Before options are validated: what refuses a call shows the call.
        super()._load_params()
        self.no_log_values.update(demand.secrets(self.params))


def main() -> None:
    module = _Module(
        argument_spec={
            "setting": {"type": "str", "required": True},
            "owners": {"type": "dict", "required": True},
            "notes": {"type": "dict", "default": {}},
            "packages": {"type": "dict", "default": {}},
            "origins": {"type": "dict", "default": {}},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    options = module.params
    host = platform.node()
    request = engine.Request(owners=options["owners"], notes=options["notes"], packages=options["packages"])
    try:
        found = explain.explain(System(options["root"]), request, options["setting"])
    except Refusal as refusal:
        module.fail_json(msg=f"{host}: {refusal}", thing=refusal.thing, remedy=refusal.remedy)
    except OSError as error:
        module.fail_json(msg=f"{host}: {error.filename or 'the host'}: {error.strerror}. Nothing was changed")
    for one in found:
        one["origin"] = options["origins"].get(one["kind"], {}).get(one["name"], {})
    module.exit_json(changed=False, explained=found)


if __name__ == "__main__":
    main()
