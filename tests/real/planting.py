"""Random trees of files for oracle tests: planted on the host in one go, and removed to the last folder.

A tree is a list of entries `[path, how, content]`; how is `file` or `link` (content is then its target).
"""

from __future__ import annotations

import os
import random

#: Functions of programs that run on the host: `plant(entries)` gives what `remove` takes away again.
REMOVAL = """
import json, os, sys
def remove(made):
    kept = []
    for path in reversed(made):
        if os.path.islink(path) or not os.path.isdir(path):
            if os.path.lexists(path):
                os.unlink(path)
        elif os.listdir(path):
            kept.append(path)
        else:
            os.rmdir(path)
    if kept:
        raise SystemExit(f"somebody else put something into {kept}")
"""
PLANTING = """
def plant(entries):
    made = []
    def folder(path):
        if not os.path.isdir(path):
            folder(os.path.dirname(path))
            os.mkdir(path)
            made.append(path)
    try:
        for path, how, content in entries:
            folder(os.path.dirname(path))
            if how == "link":
                os.symlink(content, path)
            else:
                with open(path, "x", newline="") as stream:
                    made.append(path)
                    stream.write(content)
            made.append(path)
    except BaseException:
        remove(made)
        raise
    return made
"""
PLANT = REMOVAL + PLANTING + "json.dump(plant(json.load(sys.stdin)), sys.stdout)"
REMOVE = (
    REMOVAL
    + """
remove(json.load(sys.stdin))
json.dump(None, sys.stdout)
"""
)


def seed() -> int:
    """The seed of this run: fixed in CI, else another one each time; HOSTTUNE_SEED repeats one."""
    fixed = os.environ.get("HOSTTUNE_SEED") or ("20260101" if os.environ.get("CI") else "")
    return int(fixed) if fixed else random.SystemRandom().randrange(10**9)


class Planted:
    """`with Planted(machine, entries): ...` has the tree on the host meanwhile."""

    def __init__(self, machine, entries):
        self.machine, self.entries = machine, entries

    def __enter__(self):
        self.made = self.machine.python(PLANT, self.entries)
        return self

    def __exit__(self, *_error):
        self.machine.python(REMOVE, self.made)
