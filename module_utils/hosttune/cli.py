"""The command `hosttune-drift`: how does this host stand to what it was converged to?

Exit status: 0 as desired, 1 drift, 2 something could not be read or recorded, 3 nothing worse than waived.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from . import asking, atomic, drift, lock, report
from .model import FileImage, Refusal
from .store import Ledger
from .system import System

#: A run that changes this host is waited for: what is half done is no drift.
LOCK_WAIT_SECONDS = 110.0
#: Where Debian's node exporter looks; without it the text lies beside the report.
TEXTFILE_FOLDERS = ("/var/lib/prometheus/node-exporter", "/var/lib/hosttune")
TEXTFILE = "hosttune-drift.prom"


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    system = System(asked.root)
    try:
        if asked.explain:
            return _explain(system, asked.explain, asked.grace_hours * 3600)
        if asked.no_write:
            return _show(drift.check(system, asked.grace_hours * 3600), asked.format)
        return _record(system, asked)
    except Refusal as refusal:
        print(f"hosttune-drift: {refusal}", file=sys.stderr)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"hosttune-drift: {where}{error.strerror}. Run as root", file=sys.stderr)
    except Exception:
        # Python would end with 1, which says drift.
        import traceback

        traceback.print_exc()
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hosttune-drift", description=__doc__)
    parser.add_argument("--format", choices=("table", "json", "junit", "prometheus"), default="table")
    parser.add_argument(
        "--explain",
        nargs="+",
        metavar="NAME",
        help="one setting with every plane: [KIND] NAME; records nothing",
    )
    parser.add_argument(
        "--grace-hours",
        type=float,
        default=drift.GRACE_SECONDS / 3600,
        help="how long a setting may be pending (default %(default)g)",
    )
    parser.add_argument("--no-write", action="store_true", help="print only, record nothing")
    parser.add_argument("--root", default="/", help="another root folder, for tests")
    return parser


def _show(found: drift.DriftReport, form: str) -> int:
    if form == "json":
        text = report.as_json(found)
    elif form == "junit":
        text = report.junit(found)
    elif form == "prometheus":
        text = report.prometheus(found, time.time())
    else:
        text = report.table(found)
    sys.stdout.write(text)
    return found.exit_status


def _record(system: System, asked: argparse.Namespace) -> int:
    """Checks, keeps the report and the textfile, and prints."""
    folder = system.path(os.path.dirname(drift.PATH))
    atomic.make_folders(folder, 0o700)
    with lock.hold(system.path(lock.PATH), f"hosttune-drift, process {os.getpid()}", LOCK_WAIT_SECONDS):
        found = drift.check(system, asked.grace_hours * 3600)
        status = _show(found, asked.format)
        _write(system.path(drift.PATH), report.as_json(found))
        textfile = next(one for one in TEXTFILE_FOLDERS if os.path.isdir(system.path(one)))
        _write(system.path(f"{textfile}/{TEXTFILE}"), report.prometheus(found, time.time()))
    return status


def _write(path: str, text: str) -> None:
    atomic.write(path, FileImage(text.encode(), 0o644, os.getuid(), os.getgid()))


def _explain(system: System, words: Sequence[str], grace_seconds: float) -> int:
    _manifest, settings, _observer = drift.recall_manifest(system)
    meant = asking.find(
        [one.key for one in settings], " ".join(words), "in this host's manifest", "Give [KIND] NAME"
    )
    checked = drift.check(system, grace_seconds, only=meant)
    if checked.error:
        raise Refusal(checked.error)
    ledger = Ledger(system)
    notes = {one.key: one.notes for one in settings}
    for entry in checked.settings:
        key = (entry["kind"], entry["name"])
        sys.stdout.write(report.explanation(entry, notes[key], ledger.entry(*key)))
    return checked.exit_status
