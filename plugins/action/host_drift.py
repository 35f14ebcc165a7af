"""The controller's half of host_drift: keeps the report and fails on drift (library/host_drift.py)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# The engine is a plain package: on hosts it arrives as ansible.module_utils.hosttune, here by path.
_ROOT = Path(__file__).resolve().parents[2]
_MODULE_UTILS = str(_ROOT / "module_utils")
if _MODULE_UTILS not in sys.path:
    sys.path.insert(0, _MODULE_UTILS)

from hosttune import drift, report  # noqa: E402 - after the path is set


class ActionModule(ActionBase):
    """Runs the module, writes its report here, and passes on what matters: the parent handles every host."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        variables = task_vars or {}
        found: dict[str, Any] = super().run(tmp, variables)
        answer = self._execute_module(task_vars=variables)
        if "report" not in answer:
            return {**found, **answer}
        host = variables["inventory_hostname"]
        judged = drift.of_dict({**answer["report"], "host": host})
        self._keep(host, judged)
        found.update(
            changed=False,
            exit_status=judged.exit_status,
            counts=judged.counts(),
            msg=report.summary(judged),
        )
        if judged.exit_status in (1, 2):
            found.update(failed=True, msg=report.table(judged))
        else:
            self._display.display(report.table(judged).rstrip())
        return found

    def _keep(self, host: str, judged: drift.DriftReport) -> None:
        folder = self._task.args.get("reports") or str(_ROOT / "reports" / "drift")
        try:
            os.makedirs(folder, exist_ok=True)
            for suffix, text in (("json", report.as_json(judged)), ("xml", report.junit(judged))):
                path = os.path.join(folder, f"{host}.{suffix}")
                with open(f"{path}.new", "w", encoding="utf-8") as stream:
                    stream.write(text)
                os.replace(f"{path}.new", path)
        except OSError as error:
            raise AnsibleActionFail(f"{error.filename}: {error.strerror}") from error
