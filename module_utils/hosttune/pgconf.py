"""The configuration files of a PostgreSQL server, read as the server reads them.

postgresql.conf with include, include_if_exists and include_dir where they stand, then postgresql.auto.conf;
of lines with one name the last wins. The result is what pg_file_settings shows, for a server that cannot be
asked, and what has to be known before one can: its data directory. What only the server knows (which names
exist, which values it takes) is not judged here. Source: guc-file.l and conffiles.c of PostgreSQL 13 to 18.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from .system import System

#: CONF_FILE_MAX_DEPTH
MAX_DEPTH = 10
#: Old names that the server still takes; they hold where it has no parameter of that name.
OLD_NAMES = {
    "sort_mem": "work_mem",
    "vacuum_mem": "maintenance_work_mem",
    "force_parallel_mode": "debug_parallel_query",
    "ssl_ecdh_curve": "ssl_groups",
}

#: The lexer's tokens: the longest match counts, of equal ones the first. Bytes above 127 are letters: these
#: sets say what is none, since compiling those that name all of Unicode costs half the time of a check.
_LETTER = r"[^\x00-@\[-^`{-\x7f]"
_LETTER_OR_DIGIT = r"[^\x00-/:-@\[-^`{-\x7f]"
_ID = f"{_LETTER}{_LETTER_OR_DIGIT}*"
_TOKENS = [
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("blank", r"[ \t\r]+"),
        ("comment", r"#.*"),
        ("id", _ID),
        ("qualified", rf"{_ID}\.{_ID}"),
        ("string", r"'(?:[^'\\\n]|\\.|'')*'"),
        ("unquoted", rf"{_LETTER}(?:{_LETTER_OR_DIGIT}|[-._:/])*"),
        ("integer", r"[-+]?(?:[0-9]+|0x[0-9a-fA-F]+)[a-zA-Z]*"),
        ("integer", r"[-+]?0x[0-9a-fA-F]+[a-zA-Z]*"),
        ("real", r"[-+]?[0-9]*\.[0-9]*(?:[Ee][-+]?[0-9]+)?"),
        ("equals", r"="),
        ("error", r"."),
    )
]
_VALUES = ("id", "string", "integer", "real", "unquoted")
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)|''", re.S)
_CONTROL = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


@dataclass(frozen=True)
class Line:
    """A row of pg_file_settings: a line that sets `name`, or (no name) one that cannot be read."""

    file: str
    line: int
    name: str
    value: str
    applied: bool = False
    error: str = ""


@dataclass
class Files:
    """Every line in the order the server reads them, and the folders of include_dir among them."""

    lines: list[Line] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    data_directory: str = ""


def resolve(system: System, path: str, data_directory: str) -> Files:
    """The lines of a cluster with this postgresql.conf.

    `data_directory` is where postgresql.auto.conf lies unless the files name another. After a line that
    cannot be read the rest of its file is left out, and postgresql.auto.conf, as pg_file_settings does.
    Raises PermissionError where we may not read what the server may.
    """
    reader = _Reader(system)
    readable = reader.file(path, None, 0, strict=True, depth=0)
    found = reader.found
    named = definitions(found.lines, "data_directory")
    found.data_directory = named[-1].value if named else data_directory
    if readable:
        reader.file(
            os.path.join(found.data_directory, "postgresql.auto.conf"), None, 0, strict=False, depth=0
        )
    return found


def definitions(lines: Iterable[Line], name: str) -> list[Line]:
    """The lines that set this parameter, under whatever case and old name; the last one wins."""
    name = name.lower()
    return [one for one in lines if one.name.lower() == name or OLD_NAMES.get(one.name.lower()) == name]


class _Reader:
    def __init__(self, system: System) -> None:
        self.system = system
        self.found = Files()

    def _fails(self, file: str | None, line: int, error: str) -> bool:
        self.found.lines.append(Line(file or "", line, "", "", error=error))
        return False

    def file(self, name: str, caller: str | None, at: int, *, strict: bool, depth: int) -> bool:
        """Reads one file; whether all of it could be read."""
        if not name.strip(" \t\r\n"):
            return self._fails(caller, at, "empty configuration file name")
        if depth > MAX_DEPTH:
            return self._fails(caller, at, "nesting depth exceeded")
        path = _absolute(name, caller)
        if path == caller:
            return self._fails(caller, at, f'configuration file recursion in "{path}"')
        try:
            # Not as text: a carriage return is a blank to the server and ends no line.
            with open(self.system.path(path), "rb") as stream:
                text = stream.read().decode("utf-8", "surrogateescape")
        except IsADirectoryError:
            return self._fails(path, 1, "input in flex scanner failed")
        except PermissionError:
            raise
        except OSError:
            return not strict or self._fails(caller, at, f'could not open file "{path}"')
        return self._lines(path, text, depth)

    def _lines(self, path: str, text: str, depth: int) -> bool:
        readable = True
        rows = text.split("\n")
        for number, row in enumerate(rows, 1):
            tokens = _tokens(row)
            if not tokens:
                continue
            name, value, rest = _statement(tokens)
            if rest is not None:
                # An end of file in place of a value counts to the line before: so the server numbers it.
                early = not rest and number == len(rows)
                return self._fails(path, number - early, "syntax error")
            if name.lower() == "include_dir":
                readable &= self.folder(value, path, number, depth + 1)
            elif name.lower() in ("include", "include_if_exists"):
                strict = name.lower() == "include"
                readable &= self.file(value, path, number, strict=strict, depth=depth + 1)
            else:
                self.found.lines.append(Line(path, number, name, value))
        return readable

    def folder(self, name: str, caller: str, at: int, depth: int) -> bool:
        """Files *.conf of a folder in the order of their bytes, hidden ones left out."""
        if not name.strip(" \t\r\n"):
            return self._fails(caller, at, "empty configuration directory name")
        path = _absolute(name, caller)
        self.found.folders.append(os.path.normpath(path))
        try:
            names = os.listdir(self.system.path(path))
        except PermissionError:
            raise
        except OSError:
            return self._fails(caller, at, f'could not open directory "{path}"')
        files = [os.path.normpath(f"{path}/{one}") for one in names if _counts(one)]
        for one in files:
            if not os.path.exists(self.system.path(one)):
                return self._fails(caller, at, f'could not stat file "{one}"')
        files = [one for one in files if not os.path.isdir(self.system.path(one))]
        return all(
            self.file(one, caller, at, strict=True, depth=depth) for one in sorted(files, key=os.fsencode)
        )


def _counts(name: str) -> bool:
    """Whether include_dir reads a file of this name."""
    return name.endswith(".conf") and not name.startswith(".")


def _absolute(name: str, caller: str | None) -> str:
    """A name in an include, relative to the file that holds it."""
    if name.startswith("/") or caller is None:
        return name
    return os.path.normpath(f"{os.path.dirname(caller)}/{name}")


def _tokens(row: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(row):
        best, kind = 0, ""
        for one, pattern in _TOKENS:
            match = pattern.match(row, at)
            if match and match.end() - at > best:
                best, kind = match.end() - at, one
        if kind not in ("blank", "comment"):
            found.append((kind, row[at : at + best]))
        at += best
    return found


def _statement(tokens: list[tuple[str, str]]) -> tuple[str, str, list[tuple[str, str]] | None]:
    """Name and value of a line and None, or the tokens from the one on that should not be there."""
    if tokens[0][0] not in ("id", "qualified"):
        return "", "", tokens
    rest = tokens[1:]
    if rest and rest[0][0] == "equals":
        rest = rest[1:]
    if not rest or rest[0][0] not in _VALUES:
        return "", "", rest
    if rest[1:]:
        return "", "", rest[1:]
    kind, text = rest[0]
    return tokens[0][1], _unquote(text) if kind == "string" else text, None


def _unquote(text: str) -> str:
    """The value within quotes: doubled quotes, C escapes and octal bytes."""

    def one(match: re.Match[bytes]) -> bytes:
        escaped = match[1]
        if escaped is None:
            return b"'"
        if escaped[:1] in b"01234567":
            return bytes([int(escaped, 8) & 255])
        return _CONTROL.get(escaped, escaped)

    raw = text[1:-1].encode("utf-8", "surrogateescape")
    return _ESCAPE.sub(one, raw).decode("utf-8", "surrogateescape")
