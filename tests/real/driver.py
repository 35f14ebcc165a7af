"""Runs on a test host: one call of the engine as host_settings makes it, request and result as JSON.

usage: driver.py converge|drift < REQUEST
The engine is the copy beside this file (conftest.py puts both there).
"""

import json
import sys

sys.dont_write_bytecode = True

from hosttune import drift, engine  # noqa: E402
from hosttune.model import Refusal  # noqa: E402
from hosttune.system import System  # noqa: E402


def converge(request):
    """The result of host_settings, `refused` with the message where it refuses."""
    try:
        report = engine.converge(System(), engine.Request(**request))
    except Refusal as refusal:
        findings = [one.as_dict() for one in getattr(refusal, "findings", [])]
        return {
            "refused": str(refusal),
            "thing": refusal.thing,
            "remedy": refusal.remedy,
            "foreign": findings,
        }
    return {
        "changed": report.changed,
        "settings": [judged.as_dict() for judged in report.settings],
        "undone": report.undone,
        "failures": report.failures,
        "aside": report.aside,
        "diff": report.diff,
        "pending": report.pending(),
        "foreign": report.foreign,
        "left": report.left,
    }


def main():
    request = json.load(sys.stdin)
    found = converge(request) if sys.argv[1] == "converge" else drift.check(System(), **request).as_dict()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
