"""What a run found and did, as a table a person reads and as a report a program reads."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.plugins.callback import CallbackBase

# The engine is a plain package: on hosts it arrives as ansible.module_utils.hosttune, here by path.
_MODULE_UTILS = str(Path(__file__).resolve().parents[2] / "module_utils")
if _MODULE_UTILS not in sys.path:
    sys.path.insert(0, _MODULE_UTILS)

from hosttune import plan, report  # noqa: E402 - after the path is set
from hosttune.summary import alike, change_lines, foreign_lines, service_lines, verdict_table  # noqa: E402
from hosttune.verdicts import BAD  # noqa: E402

DOCUMENTATION = r"""
name: hosttune_summary
type: aggregate
short_description: Table of settings, services, pending changes, validation and releases at the end of a run
description:
  - Looks at results of the modules host_settings, host_explain, host_validation and orchestrator_release.
  - Writes C(reports/RUN/settings.json) beside C(ansible.cfg), in check mode C(plan.json) too, and
    C(explain.json) of host_explain. The modules keep secrets out of their results.
  - Names the run (E(HOSTTUNE_RUN_ID), E(HOSTTUNE_COMMIT), E(HOSTTUNE_OPERATOR)) where nobody has, so that
    hosts and reports record the same name.
requirements:
  - enabled by C(callbacks_enabled) in ansible.cfg
"""

MODULES = ("host_settings", "host_explain", "host_validation", "orchestrator_release")

#: Lines of one kind shown in full; the report has all.
MOST_LINES = 12

Result = Mapping[str, Any]


def name_the_run(root: Path) -> dict[str, str]:
    """Run id, commit and operator, put into the environment where they are not yet."""
    found = {
        "HOSTTUNE_RUN_ID": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{os.getpid()}",
        "HOSTTUNE_OPERATOR": os.environ.get("SUDO_USER") or getpass.getuser(),
    }
    if "HOSTTUNE_COMMIT" not in os.environ:
        found["HOSTTUNE_COMMIT"] = _commit(root)
    for name, value in found.items():
        os.environ.setdefault(name, value)
    return {name: os.environ[f"HOSTTUNE_{name.upper()}"] for name in ("run_id", "commit", "operator")}


def _commit(root: Path) -> str:
    try:
        ended = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout.strip()


class CallbackModule(CallbackBase):
    """Collects while the run goes on, prints at its end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "hosttune_summary"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(C.CONFIG_FILE).parent if C.CONFIG_FILE else Path.cwd()
        self.run = name_the_run(self.root)
        self.playbook = ""
        #: module -> host -> its last result
        self.results: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in MODULES}
        #: what host_settings changed in all its calls of this run, by host
        self.changes: dict[str, list[str]] = {}
        #: what check mode says that a run would change, by host
        self.plans: dict[str, dict[str, Any]] = {}
        self.checked = False

    # collecting

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self.playbook = Path(playbook._file_name).name

    def v2_runner_on_ok(self, result: Any) -> None:
        self._collect(result, failed=False)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._collect(result, failed=True)

    def _collect(self, result: Any, *, failed: bool) -> None:
        module = str(result.task.action).rsplit(".", 1)[-1]
        if module not in self.results:
            return
        host = result.host.name
        found = {**result.result, "task_failed": failed}
        for internal in ("invocation", "diff", "ansible_facts"):
            found.pop(internal, None)
        self.results[module][host] = found
        checked = bool(result.task_fields.get("check_mode"))
        self.checked = self.checked or checked
        if module == "host_settings":
            self.changes.setdefault(host, []).extend(change_lines(found))
            if checked and not failed:
                self.plans[host] = plan.of_host(found, result.task_fields["args"].get("notes") or {})

    # telling

    def v2_playbook_on_stats(self, stats: Any) -> None:
        if not any(self.results.values()) and not stats.dark:
            return
        error, warning = C.COLOR_ERROR, C.COLOR_WARN
        settings = self.results["host_settings"]
        self._head()
        self._lines(verdict_table(settings))
        self._explained()
        if self.checked:
            self._list("Would change", plan.lines(self.plans), short=False)
        else:
            self._list("Changed", alike({host: self.changes.get(host, []) for host in settings}))
            self._list("Services", alike({host: service_lines(one) for host, one in settings.items()}))
            self._list("Wrong", alike({host: self._wrong(one) for host, one in settings.items()}), error)
            pending = alike({host: self._pending(one) for host, one in settings.items()})
            self._list("Pending", pending, warning)
        foreign = alike({host: foreign_lines(one) for host, one in settings.items()})
        self._list("Foreign owners", foreign, warning)
        self._list("Failed", alike({host: self._failures(host) for host in self._hosts()}), error)
        moved = [host for host, one in settings.items() if one.get("topology_matches") is False]
        self._list("No longer the machine the values were computed for", moved, error)
        checked = self.results["host_validation"].items()
        self._list("Validation", [self._validation(host, one) for host, one in sorted(checked)])
        released = self.results["orchestrator_release"].items()
        self._list("Releases", [self._release(host, one) for host, one in sorted(released)])
        self._list("Unreachable", sorted(stats.dark), C.COLOR_UNREACHABLE)
        self._list("Report", self._reports(sorted(stats.dark), sorted(stats.failures)))

    def _hosts(self) -> list[str]:
        return sorted({host for found in self.results.values() for host in found})

    def _wrong(self, result: Result) -> list[str]:
        return [
            f"{one['owner']}: {one['kind']} {one['name']} is {one['verdict']}: {one['reason']}"
            for one in result.get("settings") or []
            if one["verdict"] in BAD
        ]

    def _pending(self, result: Result) -> list[str]:
        return [
            f"{one['owner']}: {one['kind']} {one['name']} waits for a {one['needs']}: {one['reason']}"
            for one in result.get("pending") or []
        ]

    def _failures(self, host: str) -> list[str]:
        return [
            f"{module}: {found[host].get('msg', 'no message')}"
            for module, found in self.results.items()
            if host in found and found[host]["task_failed"]
        ]

    def _validation(self, host: str, result: Result) -> str:
        counts = result.get("counts") or {
            name: result[name] for name in ("passed", "failed", "skipped") if name in result
        }
        said = ", ".join(f"{count} {name}" for name, count in counts.items() if not isinstance(count, bool))
        where = result.get("junit") or result.get("report") or ""
        return f"{host}: {said}{f'  ({where})' if where else ''}"

    def _release(self, host: str, result: Result) -> str:
        now, before = result.get("current") or result.get("release") or "?", result.get("previous")
        return f"{host}: {now}{f', before it {before}' if before else ''}"

    # printing

    def _head(self) -> None:
        mode = " (check mode: nothing was touched)" if self.checked else ""
        commit = f", commit {self.run['commit']}" if self.run["commit"] else ""
        self._display.banner(f"HOSTTUNE {self.playbook}: run {self.run['run_id']}{commit}{mode}")

    def _lines(self, lines: Iterable[str], color: str | None = None) -> None:
        for line in lines:
            self._display.display(line, color=color)

    def _list(self, title: str, lines: list[str], color: str | None = None, *, short: bool = True) -> None:
        if not lines:
            return
        self._display.display("")
        self._display.display(title, color=color)
        shown = lines[:MOST_LINES] if short else lines
        self._lines((f"  {line}".rstrip() for line in shown), color)
        if len(lines) > len(shown):
            self._display.display(f"  and {len(lines) - len(shown)} more, in the report")

    def _explained(self) -> None:
        """What host_explain answered; hosts with the same answer share it."""
        hosts_of: dict[str, list[str]] = {}
        for host, found in sorted(self.results["host_explain"].items()):
            for one in found.get("explained") or []:
                text = report.explanation(one, one["notes"], one["was"], one["origin"])
                hosts_of.setdefault(text, []).append(host)
        for text, hosts in hosts_of.items():
            self._list(plan.who(hosts), text.splitlines(), short=False)

    def _reports(self, unreachable: list[str], failed: list[str]) -> list[str]:
        """Writes what this run has to tell, and says where it is."""
        told = {"run": self.run, "unreachable": unreachable}
        why = {
            host: "; ".join(self._failures(host)) or "failed before its settings were read" for host in failed
        }
        settings = {
            "schema": 1,
            "playbook": self.playbook,
            "check_mode": self.checked,
            **self.run,
            "unreachable": unreachable,
            "failed": failed,
            "changes": self.changes,
            **{module: found for module, found in self.results.items() if found},
        }
        written = []
        if self.results["host_explain"]:
            explained = {
                host: found.get("explained") or [] for host, found in self.results["host_explain"].items()
            }
            content = {"schema": 1, **told, "hosts": explained, "failed": why}
            return [self._write("explain.json", content)]
        if self.plans:
            written.append(self._write("plan.json", plan.document(self.plans, failed=why, **told)))
        return [self._write("settings.json", settings), *written]

    def _write(self, name: str, content: Mapping[str, Any]) -> str:
        path = self.root / "reports" / self.run["run_id"] / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
        except OSError as error:
            return f"could not be written to {path}: {error.strerror}"
        return str(path.relative_to(self.root))
