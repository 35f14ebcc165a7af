"""The kernel's command line as words, split as the kernel does it (lib/cmdline.c, next_arg).

And the text of a parameter's values, as settings of kind boot have it (kinds/boot.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .model import squeeze

#: where a word was written: file and line
Origin = tuple[str, int]

_PART = re.compile(r'"([^"]*)"(?= |\Z)|([^ ]+)')
_BLANKS = " \t\n\v\f\r"


@dataclass(frozen=True)
class Word:
    """One parameter: its name, its value (None: a bare flag) and where it was written."""

    name: str
    value: str | None
    origin: Origin
    #: `--`, which ends the kernel's parameters, or after it: the rest is init's
    for_init: bool = False


def same_name(one: str, other: str) -> bool:
    """Dash and underscore are one letter in a parameter's name (kernel/params.c, parameq)."""
    return normal(one) == normal(other)


def normal(name: str) -> str:
    return name.replace("-", "_")


def split(text: str, origins: Sequence[Origin]) -> list[Word]:
    """The words of a command line; `origins` says of each character where it was written."""
    found: list[Word] = []
    for_init = False
    at, end = 0, len(text)
    while True:
        while at < end and text[at] in _BLANKS:
            at += 1
        if at == end:
            return found
        start, quoted = at, text[at] == '"'
        at += quoted
        first, in_quotes, equals = at, quoted, 0
        while at < end and (in_quotes or text[at] not in _BLANKS):
            if text[at] == "=" and not equals and at > first:
                equals = at
            if text[at] == '"':
                in_quotes = not in_quotes
            at += 1
        last = at
        value = None
        if equals:
            value = text[equals + 1 : last]
            if value.startswith('"'):
                value = value[1:]
                if last - 1 > equals and text[last - 1] == '"':
                    value = value[:-1]
            elif quoted and value.endswith('"'):
                value = value[:-1]
        name = text[first : equals or last]
        if quoted and not equals and name.endswith('"'):
            name = name[:-1]
        for_init = for_init or (name == "--" and value is None)
        found.append(Word(name, value, origins[start], for_init))


def one_text(value: str | None) -> str:
    """One value as text; None is a bare flag."""
    if value is None:
        return "true"
    value = squeeze(value)
    return f'"{value}"' if value in ("", "true") or " " in value or value[0] == "(" else value


def to_values(text: str) -> list[str | None]:
    """The values of a text that one_text() made."""
    found: list[str | None] = []
    for quoted, plain in _PART.findall(text):
        found.append(None if plain == "true" else plain or quoted)
    return found
