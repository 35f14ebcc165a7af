#!/usr/bin/python
"""Thin: judges the host's manifest with the engine's reading half, and returns the report."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_drift
short_description: Tells whether a host still is as it was converged
description:
  - Recalls what the host was last converged to (C(/etc/hosttune/manifest.json)), reads every plane of each
    setting, and judges. Changes nothing. It is what C(hosttune-drift) does on the host itself.
  - On the controller, C(HOST.json) (docs/schemas/drift.json) and C(HOST.xml) (JUnit) are written into
    O(reports), and the task fails with a table where anything drifted or could not be judged.
options:
  grace_hours:
    description: How long a setting may wait for its restart, reboot or closed market before that is drift.
    type: float
    default: 24
  reports:
    description: Folder of reports on the controller; C(reports/drift) of the suite when left out.
    type: path
    default: ""
  root:
    description: Another root folder, for tests.
    type: path
    default: /
attributes:
  check_mode:
    support: full
    description: Nothing is changed in any mode.
author: hosttune
"""

EXAMPLES = r"""
- name: Judge
  host_drift:
"""

RETURN = r"""
exit_status:
  description: 0 as desired, 1 drift, 2 something could not be judged, 3 nothing worse than waived.
  returned: always
  type: int
counts:
  description: Number of settings by verdict.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.hosttune import drift
from ansible.module_utils.hosttune.system import System


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "grace_hours": {"type": "float", "default": 24.0},
            "reports": {"type": "path", "default": ""},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    found = drift.check(System(module.params["root"]), module.params["grace_hours"] * 3600)
    module.exit_json(changed=False, report=found.as_dict())


if __name__ == "__main__":
    main()
