"""From where a value comes: the variable, file and line that Ansible remembers, in words."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from typing import Any, Optional, Union

#: variable, file and line; null where nobody knows
Place = dict[str, Optional[Union[str, int]]]

NOWHERE: Place = {"variable": None, "file": None, "line": None}

#: Dicts of values that are a profile: ROLE_KIND_PROFILE.
PROFILES = ("guide", "low_latency")


def place(path: str | None, line: int | None, description: str | None, project: str) -> Place:
    """A place that people read: files of the project by their path within it, `-e` by its name."""
    if path is None:
        return {"variable": None, "file": (description or "").strip("<>") or None, "line": None}
    inside = os.path.relpath(path, project)
    return {
        "variable": variable_at(path, line or 0),
        "file": path if inside.startswith("..") else inside,
        "line": line,
    }


def said(found: Mapping[str, Any]) -> str:
    """The variable in one phrase that holds until somebody moves the value; empty where nobody knows it."""
    variable = found["variable"]
    if not variable:
        return "the command line (-e)" if found["file"] and "-e" in str(found["file"]) else ""
    profile = next((one for one in PROFILES if variable.endswith(f"_{one}")), None)
    return f"profile {profile}: {variable}" if profile else str(variable)


def outside_roles(found: Mapping[str, Any]) -> bool:
    """Whether the inventory or the command line decided, not a role's own default."""
    return found["file"] is not None and not str(found["file"]).startswith("roles/")


def variable_at(path: str, line: int) -> str | None:
    """The variable of a YAML file of variables within which a line lies."""
    keys = [(at, name) for at, name in _variables(path) if at <= line]
    return keys[-1][1] if keys else None


@functools.cache
def _variables(path: str) -> tuple[tuple[int, str], ...]:
    """Line and name of every variable: the keys of the first column."""
    try:
        with open(path, encoding="utf-8") as stream:
            lines = stream.read().splitlines()
    except (OSError, UnicodeDecodeError):
        return ()  # an encrypted or generated source has no lines to show
    found = ((at, re.match(r"([A-Za-z_]\w*)\s*:", text)) for at, text in enumerate(lines, 1))
    return tuple((at, match[1]) for at, match in found if match)


def words(text: str) -> list[str]:
    """What may be names of variables in a phrase, each once; never those of secrets."""
    found = dict.fromkeys(re.findall(r"\b[a-z]\w*_\w+\b", text))
    return [word for word in found if not re.search("password|secret|token|key$", word)]


def text(value: Any) -> str:
    """A variable's value on one line."""
    if isinstance(value, str):
        return " ".join(value.split())
    return json.dumps(value, default=str)
