#!/usr/bin/python
"""Thin: writes what a host is expected to be, runs tests/host against it, and counts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_validation
short_description: Tests a host with testinfra against what its roles declare
description:
  - Runs on the controller (C(delegate_to=localhost)). The settings as resolved for the host are written to
    C(.cache/validation/HOST.json), without the content of secret files, and C(tests/host) compares the host
    with them through the system's own tools.
  - The engine that wrote the settings takes no part.
  - "By hand, afterwards: C(HOSTTUNE_EXPECTATIONS=.cache/validation/HOST.json pytest tests/host
    --hosts=ansible://HOST)."
options:
  host:
    description: The host's name in the inventory.
    type: str
    required: true
  settings:
    description: "What is expected: owner, kind, name, value."
    type: dict
    required: true
  inventory:
    description: Inventories that name the host; what C(ansible.cfg) says when left out.
    type: list
    elements: str
    default: []
  urls:
    description: URLs that must answer 200 when asked from the host itself.
    type: list
    elements: str
    default: []
  project:
    description: Root folder of the suite; found from the working folder upwards when left out.
    type: path
    default: ""
  junit:
    description: JUnit report; C(reports/validation/HOST.xml) when left out.
    type: path
    default: ""
  timeout_seconds:
    description: How long the tests may take.
    type: int
    default: 300
attributes:
  check_mode:
    support: full
    description: Nothing on the host is changed in any mode.
author: hosttune
"""

EXAMPLES = r"""
- name: Validate
  host_validation:
    host: "{{ inventory_hostname }}"
    settings: "{{ settings_owners }}"
    inventory: "{{ ansible_inventory_sources }}"
  delegate_to: localhost
  become: false
"""

RETURN = r"""
counts:
  description:
    - Number of tests C(passed), C(failed) and C(skipped) (what this host does not have), and C(not_own), how
      many of the skipped are settings of the machine below a container.
    - One dict, since Ansible takes C(failed) and C(skipped) of a result for the state of the task.
  returned: always
  type: dict
  sample: {passed: 53, failed: 0, skipped: 20, not_own: 20}
failures:
  description: Name and message of each failed test.
  returned: always
  type: list
  elements: dict
junit:
  description: Path of the report.
  returned: always
  type: str
"""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from typing import Any

from ansible.module_utils.basic import AnsibleModule


class _Module(AnsibleModule):  # type: ignore[misc]
    """The controller's journal must not tell the content of secret files."""

    def _log_invocation(self) -> None:
        self.log(f"Validating {self.params['host']}")


def without_secrets(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with a note in place of the content of secret files."""
    return {
        owner: {
            kind: {
                name: {**value, "content": "(secret)"}
                if isinstance(value, dict) and value.get("secret")
                else value
                for name, value in names.items()
            }
            for kind, names in kinds.items()
        }
        for owner, kinds in settings.items()
    }


def find_project(start: str) -> str:
    """The nearest folder from `start` upwards that holds tests/host, empty where there is none."""
    folder = os.path.abspath(start)
    while not os.path.isfile(os.path.join(folder, "tests", "host", "conftest.py")):
        above = os.path.dirname(folder)
        if above == folder:
            return ""
        folder = above
    return folder


def results(junit: str) -> dict[str, Any]:
    """Counts and failures of a JUnit file."""
    cases = list(xml.parse(junit).getroot().iter("testcase"))  # noqa: S314 - pytest wrote it just now
    failures = []
    skipped = not_own = 0
    for case in cases:
        bad = case.find("failure")
        bad = case.find("error") if bad is None else bad
        if bad is not None:
            failures.append({"name": case.get("name"), "message": bad.get("message") or bad.text or ""})
        skip = case.find("skipped")
        if skip is not None:
            skipped += 1
            not_own += "not this host's own" in (skip.get("message") or "")
    counts = {
        "passed": len(cases) - len(failures) - skipped,
        "failed": len(failures),
        "skipped": skipped,
        "not_own": not_own,
    }
    return {"counts": counts, "failures": failures, "junit": junit}


def main() -> None:
    module = _Module(
        argument_spec={
            "host": {"type": "str", "required": True},
            "settings": {"type": "dict", "required": True},
            "inventory": {"type": "list", "elements": "str", "default": []},
            "urls": {"type": "list", "elements": "str", "default": []},
            "project": {"type": "path", "default": ""},
            "junit": {"type": "path", "default": ""},
            "timeout_seconds": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    options = module.params
    host = options["host"]
    # Neither what is returned nor what -vvv shows of the call may tell a secret.
    options["settings"] = without_secrets(options["settings"])
    project = options["project"] or find_project(os.getcwd())
    if not project:
        module.fail_json(msg="there is no tests/host here. Run from the repository's root, or give 'project'")
    expectations = os.path.join(project, ".cache", "validation", f"{host}.json")
    junit = options["junit"] or os.path.join(project, "reports", "validation", f"{host}.xml")
    for path in (expectations, junit):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.exists(path):
            os.unlink(path)
    with open(expectations, "w", encoding="utf-8") as stream:
        json.dump({"host": host, "urls": options["urls"], "settings": options["settings"]}, stream, indent=1)
    local = os.path.join(project, ".venv", "bin", "python")
    python = local if os.path.exists(local) else sys.executable
    environment = {
        **os.environ,
        "HOSTTUNE_EXPECTATIONS": expectations,
        # testinfra asks ansible-inventory how to reach the host
        "PATH": f"{os.path.dirname(python)}:{os.environ.get('PATH', '/usr/bin:/bin')}",
    }
    if options["inventory"]:
        environment["ANSIBLE_INVENTORY"] = ",".join(options["inventory"])
    command = [python, "-m", "pytest", "tests/host", f"--hosts=ansible://{host}", f"--junitxml={junit}"]
    command += ["-p", "no:cacheprovider", "--tb=short"]
    try:
        ended = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True,
            timeout=options["timeout_seconds"], check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        module.fail_json(msg=f"{host}: the tests gave no answer within {options['timeout_seconds']} s")
    if not os.path.exists(junit):
        module.fail_json(
            msg=f"{host}: the tests could not run: {(ended.stdout + ended.stderr).strip()[-2000:]}"
        )
    found = results(junit)
    counts = found["counts"]
    if counts["failed"] or ended.returncode != 0:
        told = "; ".join(f"{one['name']}: {one['message'].splitlines()[0]}" for one in found["failures"][:10])
        module.fail_json(
            msg=f"{host}: {counts['failed']} of {counts['passed'] + counts['failed']} tests failed: "
            f"{told or ended.stdout.strip()[-1000:]}. All are in {junit}",
            **found,
        )
    if not counts["passed"]:
        module.fail_json(msg=f"{host}: no test ran, so nothing is shown", **found)
    told = f"{counts['passed']} tests passed, {counts['skipped']} skipped"
    own = f", {counts['not_own']} of them not this host's own" if counts["not_own"] else ""
    module.exit_json(changed=False, msg=f"{host}: {told}{own}", **found)


if __name__ == "__main__":
    main()
