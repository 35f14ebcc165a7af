"""redis.conf as the server reads it: words, includes at their place, the command line last.

Source: loadServerConfig() and loadServerConfigFromString() of config.c, sdssplitargs() of sds.c and main() of
server.c, 7.0. A relative `include` counts from the working folder, which `dir` changes. Files that one
pattern matches are joined before they are cut into lines: a last line without an end runs into the next file.
"""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from . import redisvalues
from .model import Definition
from .system import System

COMMAND_LINE = "command line of the server"
PROGRAM = "/usr/bin/redis-server"

_BLANK, _END_OF_WORD = " \t\n\v\f\r", " \t\n\r"
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "a": "\a"}
#: What a file may say beside directives that CONFIG GET knows: least and most words.
_OTHERS = {
    "include": (2, 2),
    "rename-command": (3, 3),
    "user": (2, 1 << 16),
    "loadmodule": (2, 1 << 16),
    "list-max-ziplist-entries": (2, 2),
    "list-max-ziplist-value": (2, 2),
    "lua-replicate-commands": (2, 2),
}
#: Deeper nesting is a file that includes itself.
_DEEPEST = 64


class Broken(Exception):
    """What keeps the server from starting, and where it says so."""

    def __init__(self, why: str, file: str, line: int = 0) -> None:
        self.why, self.file, self.line = why, file, line
        super().__init__(f"{file}:{line}: {why}" if line else f"{file}: {why}")


@dataclass(frozen=True)
class Line:
    """One line that is neither blank nor a comment, as words; the first one in lower case."""

    words: tuple[str, ...]
    file: str
    line: int = 0


@dataclass
class Configuration:
    """What a start of the server would take: directive -> definitions in order, the last one in force.

    The value of each definition is what holds after its line: of directives that add up (save,
    client-output-buffer-limit) the sum so far. `broken` ends the reading.
    """

    definitions: dict[str, list[Definition]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    broken: Broken | None = None

    def value(self, name: str) -> str | None:
        found = self.definitions.get(redisvalues.known_as(name))
        return found[-1].value if found else None


def read(system: System, file: str, arguments: Sequence[str] = (), folder: str = "/") -> Configuration:
    """What the server started as `redis-server FILE ARGUMENTS` in this folder would take; never raises."""
    reader = _Reader(system, folder)
    found = Configuration(files=reader.files)
    users: Line | None = None
    limits, saved = dict(redisvalues.BUFFERS), ""
    try:
        for line in reader.lines(file, arguments, 0):
            name = redisvalues.known_as(line.words[0])
            users = line if name == "user" else users
            if name in _OTHERS or "." in name:
                continue
            value = _value(name, line)
            if name == "save":
                value = saved = f"{saved} {value}".strip() if value else ""
            elif name == "client-output-buffer-limit":
                limits.update(redisvalues.buffers(value))
                value = limits_text(limits)
            elif name == "dir":
                value = reader.enter(line)
            found.definitions.setdefault(name, []).append(Definition(value, line.file, line.line))
    except Broken as broken:
        found.broken = broken
        return found
    if users is not None and found.value("aclfile"):
        found.broken = Broken("declares a user beside an aclfile", users.file, users.line)
    return found


def limits_text(limits: dict[str, tuple[int, int, int]]) -> str:
    """client-output-buffer-limit as CONFIG GET prints it."""
    return " ".join(f"{name} {' '.join(map(str, limits[name]))}" for name in redisvalues.BUFFERS)


def _value(name: str, line: Line) -> str:
    """The value of a line on its own; raises Broken where the server would not take it."""
    what, words = redisvalues.directive(name), list(line.words[1:])
    if what.form in redisvalues.SEVERAL:
        if len(words) == 1 and words[0]:
            words = split(words[0]) or []
        value = " ".join(words)
    elif len(words) == 1 or (name not in redisvalues.DIRECTIVES and words):
        value = " ".join(words)
    else:
        raise Broken(f"{name} has {len(words)} values", line.file, line.line)
    try:
        redisvalues.canonical(what, value)
    except ValueError as error:
        raise Broken(f"{name}: {error}", line.file, line.line) from None
    return value


class _Reader:
    """Walks through a file and what it includes."""

    def __init__(self, system: System, folder: str) -> None:
        self.system, self.folder = system, folder
        self.files: list[str] = []

    def enter(self, line: Line) -> str:
        """chdir(2) as `dir` does it."""
        folder = os.path.normpath(os.path.join(self.folder, line.words[1]))
        if not os.path.isdir(self.system.path(folder)):
            raise Broken(f"there is no folder {folder}", line.file, line.line)
        if self.system.root == "/":
            folder = os.path.realpath(folder)
        self.folder = folder
        return folder

    def lines(
        self, name: str, arguments: Sequence[str], depth: int, by: Line | None = None
    ) -> Iterator[Line]:
        place = (by.file, by.line) if by else (name, 0)
        if depth > _DEEPEST:
            raise Broken("includes itself", *place)
        for text, file, number in self._physical(name, place):
            words = [] if text.lstrip(_END_OF_WORD).startswith("#") else split(text)
            if words is None:
                raise Broken("has quotes that do not end", file, number)
            if words:
                yield from self._line(Line((words[0].lower(), *words[1:]), file, number), depth)
        for option in options(arguments):
            yield from self._line(Line(option, COMMAND_LINE), depth)

    def _line(self, line: Line, depth: int) -> Iterator[Line]:
        name = line.words[0]
        least, most = _OTHERS.get(name, (1, 1 << 16))
        if not least <= len(line.words) <= most:
            raise Broken(f"{name} has {len(line.words) - 1} values", line.file, line.line)
        if name not in _OTHERS and "." not in name and not self._is_known(name):
            raise Broken(f"{name} is no directive of this server", line.file, line.line)
        yield line
        if name == "include":
            yield from self.lines(line.words[1], (), depth + 1, line)

    def _is_known(self, name: str) -> bool:
        """Whether the installed server knows a directive; a later one stands in its program as text."""
        known = redisvalues.DIRECTIVES.get(redisvalues.known_as(name))
        return (known is not None and not known.later) or is_in_program(self.system, name)

    def _physical(self, name: str, place: tuple[str, int]) -> Iterator[tuple[str, str, int]]:
        """(text, file, line) of what a name or pattern stands for."""
        held, start = "", ("", 0)
        for file in self._matching(name):
            for number, piece in enumerate(self._content(file, place).split("\n"), 1):
                if number > 1:
                    yield (held, *start)
                    held = ""
                if not held:
                    start = (file, number)
                held += piece
        yield (held, *start)

    def _matching(self, name: str) -> list[str]:
        path = os.path.join(self.folder, name)
        if not any(sign in name for sign in "*?["):
            return [path]
        real = self.system.path(path).replace("[^", "[!")
        cut = len(self.system.path("/")) - 1
        return sorted(found[cut:] for found in glob.glob(real))

    def _content(self, file: str, place: tuple[str, int]) -> str:
        self.files.append(file)
        try:
            with open(self.system.path(file), "rb") as stream:
                raw = stream.read()
        except IsADirectoryError:
            return ""
        except OSError as error:
            why = os.strerror(error.errno or errno.EIO)
            raise Broken(f"{file} cannot be read: {why}", *place) from None
        return raw.decode("latin-1")


def is_in_program(system: System, name: str) -> bool:
    """Whether the installed server's program holds this name; yes where it cannot be read."""
    try:
        with open(system.path(PROGRAM), "rb") as stream:
            return name.encode("utf-8", "surrogateescape") + b"\0" in stream.read()
    except OSError:
        return True


def options(arguments: Sequence[str]) -> list[tuple[str, ...]]:
    """The lines that a command line's arguments (after the file) add to it: `--port 1` is `port 1`."""
    found: list[list[str]] = []
    complete = True
    for place, argument in enumerate(arguments):
        following = arguments[place + 1 : place + 2]
        if argument == "-" and not following:
            continue  # standard input, which a service does not have
        if complete and argument.startswith("--"):
            words = split(argument[2:].encode("utf-8", "surrogateescape").decode("latin-1")) or [""]
            found.append([words[0].lower(), *words[1:]])
            complete = len(words) > 1
            if not complete and words[0].lower() == "save" and (not following or following[0][:2] == "--"):
                found[-1].append("")
                complete = True
        elif found:
            found[-1].append(argument)
            complete = True
    return [tuple(words) for words in found]


def split(text: str) -> list[str] | None:
    """The words of a line whose bytes stand as characters (latin-1); None where quotes do not end well."""
    found: list[str] = []
    place = 0
    text = text.strip(_END_OF_WORD)
    while True:
        while place < len(text) and text[place] in _BLANK:
            place += 1
        if place >= len(text):
            return found
        word, place = _word(text, place)
        if word is None:
            return None
        found.append(word.encode("latin-1").decode("utf-8", "surrogateescape"))


def _word(text: str, place: int) -> tuple[str | None, int]:
    """The word that begins at `place` and where it ends."""
    word, quote = "", ""
    while place < len(text):
        sign, rest = text[place], text[place + 1 : place + 4]
        if quote == '"' and sign == "\\" and rest[:1] == "x" and _is_hex(rest[1:3]):
            word += chr(int(rest[1:3], 16))
            place += 3
        elif quote == '"' and sign == "\\" and rest:
            word += _ESCAPES.get(rest[0], rest[0])
            place += 1
        elif quote == "'" and sign == "\\" and rest[:1] == "'":
            word += "'"
            place += 1
        elif quote and sign == quote:
            if rest and rest[0] not in _BLANK:
                return None, place
            return word, place + 1
        elif quote:
            word += sign
        elif sign in _END_OF_WORD:
            return word, place
        elif sign in "\"'":
            quote = sign
        else:
            word += sign
        place += 1
    return (None if quote else word), place


def _is_hex(text: str) -> bool:
    return len(text) == 2 and all(sign in "0123456789abcdefABCDEF" for sign in text)


def quote(word: str) -> str:
    """A word as redis.conf takes it."""
    if word and all(sign.isalnum() or sign in "-_./:%*@+,=" for sign in word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    for letter, sign in _ESCAPES.items():
        escaped = escaped.replace(sign, f"\\{letter}")
    return f'"{escaped}"'
