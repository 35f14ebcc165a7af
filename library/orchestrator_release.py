#!/usr/bin/python
"""Deploys releases of a service: the thin Ansible face of hosttune.release."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: orchestrator_release
short_description: Deploy a release with proof before the switch and automatic return
version_added: "0.1.0"
description:
  - Builds a release from an artefact in its final path, migrates, starts it as a candidate on a socket of its
    own, and moves C(current) to it only when it is healthy there. Then restarts the service, watches it, and
    returns to the last good release by itself when it does not stay healthy.
  - Works below O(root), and on units that are there already. Never writes below C(/etc).
  - A run that was cut off at any instant leaves the old or the new release serving, whole; the next run
    completes it.
options:
  state:
    description:
      - V(present) makes O(release) serve. If it does already, nothing is done.
      - V(rolled_back) returns to the previous release, or to O(release). A second run goes no further back.
      - V(absent) removes O(release) from the disk, unless it serves or is the one to return to.
    type: str
    choices: [present, rolled_back, absent]
    default: present
  release:
    description: ID of the release. Needed for V(present) and V(absent).
    type: str
    default: ""
    aliases: [id]
  artefact:
    description: The tar.gz on the host, as C(orchestrator/build.py) makes it. Needed for V(present).
    type: path
    default: ""
    aliases: [src]
  sha256:
    description: What the artefact must have. Needed for V(present).
    type: str
    default: ""
  root:
    description: Folder of the releases.
    type: path
    default: /opt/orchestrator
  program:
    description: Name of the Python package to run, and of its launcher in C(bin/).
    type: str
    default: orchestrator
  keep:
    description: Releases to keep on disk. The serving one and the one to return to are kept whatever it says.
    type: int
    default: 5
  service:
    description: Unit that serves C(current).
    type: str
    default: orchestrator.service
  candidate_unit:
    description: Unit of the candidate; C({id}) stands for the release.
    type: str
    default: "orchestrator-candidate@{id}.service"
  migrate_unit:
    description: Oneshot unit started before the candidate; it must succeed. Empty: nothing to migrate.
    type: str
    default: "orchestrator-migrate@{id}.service"
  restart_allowed:
    description:
      - If V(false), a release that would interrupt a serving one is built, proved, and waits (RV(pending)).
      - The first release on a host interrupts nobody and does not need it.
    type: bool
    default: true
  redeploy:
    description:
      - An operator's rollback left a release for a reason, so the next run does not deploy it again by itself
        (RV(pending)) unless this is V(true).
    type: bool
    default: false
  health:
    description: How a release shows that it is well.
    type: dict
    default: {}
    suboptions:
      url:
        description: Address of the service, C(http://host:port) or C(unix:/path).
        type: str
        default: http://127.0.0.1:8000
      candidate:
        description: Address of the candidate; C({id}) stands for the release.
        type: str
        default: "unix:/run/orchestrator-candidate/{id}/api.sock"
      live_path:
        description: Must answer 200; a C(release) in its JSON must be the expected one.
        type: str
        default: /health
      ready_path:
        description: Must answer 200 too.
        type: str
        default: /ready
      timeout:
        description: Seconds until a started release must be well.
        type: float
        default: 30
      watch:
        description: Seconds it must then stay so after the switch.
        type: float
        default: 10
  python:
    description: Interpreter that makes the environment. The artefact must be built for its version.
    type: path
    default: /usr/bin/python3
  holder:
    description: Who runs this; what a second run at the same time is told.
    type: str
    default: ""
  lock_wait_seconds:
    description: How long to wait for another run on this host before refusing.
    type: float
    default: 60
attributes:
  check_mode:
    support: full
    description: Says what would serve and what would be removed. The artefact need not be on the host yet.
  diff_mode:
    support: full
    description: What C(current) names before and after.
author: hosttune
"""

EXAMPLES = r"""
- name: Deploy
  orchestrator_release:
    release: 0.1.0-47749a6427e7
    artefact: /var/cache/orchestrator/orchestrator-0.1.0-47749a6427e7.tar.gz
    sha256: 47749a6427e7cd27cc9b135fb626f71aaae57f51a14b14573a7db602d283748e

- name: Return to the previous release
  orchestrator_release:
    state: rolled_back

- name: Return to a release by name
  orchestrator_release:
    state: rolled_back
    release: 0.1.0-4eda8ffe3872
"""

RETURN = r"""
release:
  description: The release that serves at the end (check mode, that would serve). Null if none does.
  returned: always
  type: str
previous:
  description: The release that a rollback would return to. Null if there is none.
  returned: always
  type: str
releases:
  description: Whole releases on disk, oldest build first.
  returned: always
  type: list
  elements: str
kept:
  description: The same as RV(releases).
  returned: always
  type: list
  elements: str
removed:
  description: Releases removed because more than O(keep) were there.
  returned: always
  type: list
  elements: str
rolled_back:
  description: Whether this run returned to an earlier release, as asked or because the new one was ill.
  returned: always
  type: bool
pending:
  description: >-
    V(restart) if a proved release waits for O(restart_allowed), V(redeploy) if one waits for O(redeploy),
    else empty.
  returned: always
  type: str
steps:
  description: What was done, in order.
  returned: always
  type: list
  elements: str
  sample: [built 0.1.0-47749a6427e7, migrated, candidate 0.1.0-47749a6427e7 healthy]
message:
  description: The outcome in one sentence.
  returned: always
  type: str
log:
  description: The failed release's last log lines.
  returned: on failure
  type: list
  elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.hosttune import release
from ansible.module_utils.hosttune.model import Refusal
from ansible.module_utils.hosttune.system import System

HEALTH = {
    "url": {"type": "str", "default": "http://127.0.0.1:8000"},
    "candidate": {"type": "str", "default": "unix:/run/orchestrator-candidate/{id}/api.sock"},
    "live_path": {"type": "str", "default": "/health"},
    "ready_path": {"type": "str", "default": "/ready"},
    "timeout": {"type": "float", "default": 30.0},
    "watch": {"type": "float", "default": 10.0},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "rolled_back", "absent"], "default": "present"},
            "release": {"type": "str", "default": "", "aliases": ["id"]},
            "artefact": {"type": "path", "default": "", "aliases": ["src"]},
            "sha256": {"type": "str", "default": ""},
            "root": {"type": "path", "default": "/opt/orchestrator"},
            "program": {"type": "str", "default": "orchestrator"},
            "keep": {"type": "int", "default": 5},
            "service": {"type": "str", "default": "orchestrator.service"},
            "candidate_unit": {"type": "str", "default": "orchestrator-candidate@{id}.service"},
            "migrate_unit": {"type": "str", "default": "orchestrator-migrate@{id}.service"},
            "restart_allowed": {"type": "bool", "default": True},
            "redeploy": {"type": "bool", "default": False},
            "health": {"type": "dict", "default": {}, "options": HEALTH, "apply_defaults": True},
            "python": {"type": "path", "default": "/usr/bin/python3"},
            "holder": {"type": "str", "default": ""},
            "lock_wait_seconds": {"type": "float", "default": 60.0},
        },
        required_if=[
            ("state", "present", ["release", "artefact", "sha256"]),
            ("state", "absent", ["release"]),
        ],
        supports_check_mode=True,
    )
    options = module.params
    system = System("/")
    request = release.Request(
        health=release.Health(**options.pop("health")),
        lock_wait=options.pop("lock_wait_seconds"),
        check=module.check_mode,
        **{name: value for name, value in options.items() if name not in ("id", "src")},
    )
    host = os.uname().nodename
    try:
        outcome = release.Deployment(request, system, release.SystemdServices(system)).run()
    except Refusal as refusal:
        module.fail_json(msg=f"{host}: {refusal}", thing=refusal.thing, remedy=refusal.remedy)
    except release.ReleaseError as error:
        done = error.outcome.as_dict() if error.outcome else {}
        said = f"\nIts last log lines:\n{os.linesep.join(error.log)}" if error.log else ""
        module.fail_json(**{**done, "msg": f"{host}: {error}{said}", "log": error.log})
    except OSError as error:
        module.fail_json(
            msg=f"{host}: {error.filename or request.root}: {error.strerror}. "
            "What serves is whole; mend the cause and run again"
        )
    module.exit_json(**outcome.as_dict())


if __name__ == "__main__":
    main()
