"""The command `hosttune-trial`: the boot that tries a new kernel command line, from the host's side.

verify   after each boot: judges the boot that is a trial, and makes its line permanent where the host has the
         last word
confirm  the controller's word: verifies once more, then makes the line permanent
retry    forgets that a trial failed: the next boot tries the line again
status   how the trial stands, as JSON

Exit status: 0 nothing is wrong, 1 the trial failed, 2 it could not be judged, or not done what was asked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from . import trial, trial_check
from .model import Refusal
from .shell_source import Unfollowed
from .system import System


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    system = System(asked.root)
    try:
        return int(_VERBS[asked.verb](system, asked))
    except (Refusal, Unfollowed) as why:
        print(f"hosttune-trial: {why}", file=sys.stderr)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"hosttune-trial: {where}{error.strerror}. Run as root", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hosttune-trial", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=tuple(_VERBS))
    parser.add_argument(
        "--wait-seconds", type=float, default=0.0, help="how long services may take to come up (default 0)"
    )
    parser.add_argument(
        "--reboot-on-failure", action="store_true", help="verify: go back to the old line at once"
    )
    parser.add_argument("--run", default="hosttune-trial", help="whose word it is, for the ledger")
    parser.add_argument("--root", default="/", help="another root folder, for tests")
    return parser


def _verify(system: System, asked: argparse.Namespace) -> int:
    record, now = trial_check.standing(system)
    if record is None:
        print("no trial")
    elif trial_check.clean(system):
        print("what was tried was given back")
    elif now == trial.ARMED:
        print("the next boot is the trial")
    elif now == trial.UNARMED:
        print("the trial is not armed: the run that began it was cut short; run it again")
    elif now == trial.VERIFIED:
        return _make_permanent(system, asked)
    elif now == trial.RUNNING:
        return _judge(system, asked, record.confirm == "host")
    else:
        return _failed(system, record, now)
    return 0


def _confirm(system: System, asked: argparse.Namespace) -> int:
    record, now = trial_check.standing(system)
    if record is not None and now == trial.VERIFIED:
        return _make_permanent(system, asked)
    if record is not None and now == trial.RUNNING:
        return _judge(system, asked, True)
    if record is not None and now in (trial.LOST, trial.FAILED):
        return _failed(system, record, now)
    raise Refusal(f"this boot is no trial ({now or 'none'})", thing="trial boot")


def _judge(system: System, asked: argparse.Namespace, last_word: bool) -> int:
    problems = trial_check.verify(system, asked.wait_seconds)
    if problems:
        reason = "; ".join(problems)
        trial_check.fail(system, reason)
        print(f"the trial boot failed: {reason}", file=sys.stderr)
        if asked.reboot_on_failure:
            system.run("systemctl", "--no-block", "reboot")
        return 1
    if not last_word:
        print("the trial boot is good, and waits for the controller's word")
        return 0
    return _make_permanent(system, asked)


def _make_permanent(system: System, asked: argparse.Namespace) -> int:
    trial_check.confirm(system, {"id": asked.run, "operator": "hosttune-trial"})
    print("the trial boot is good: its line is that of all boots now")
    return 0


def _failed(system: System, record: trial.Record, now: str) -> int:
    reason = trial.failure(record, now)
    if now == trial.LOST:
        trial_check.fail(system, reason)
    print(f"the trial boot failed: {reason}", file=sys.stderr)
    return 1


def _retry(system: System, asked: argparse.Namespace) -> int:
    trial_check.retry(system)
    print("the next boot is the trial")
    return 0


def _status(system: System, asked: argparse.Namespace) -> int:
    record, now = trial_check.standing(system)
    found = {"state": now or "none", "reason": ""}
    if record is not None:
        found.update(id=record.id, line=record.line, confirm=record.confirm)
        if now in (trial.FAILED, trial.LOST):
            found["reason"] = trial.failure(record, now)
    print(json.dumps(found, sort_keys=True))
    return 0


_VERBS = {"verify": _verify, "confirm": _confirm, "retry": _retry, "status": _status}
