"""What a shell makes of configuration files that are sourced: followed exactly, or not at all.

Assignments are followed with their quotes, references and line continuations; every character remembers the
file and line it was written on. Nothing is run: a value that only running would tell (command substitution, a
branch, a loop) is `Unfollowed` with the reason, and so is what is made from it. What may end or divert the
reading itself (exit, eval, another file sourced) leaves every value unfollowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .cmdline import Origin

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?)=")
_OPENING = {"if": "fi", "case": "esac", "do": "done", "{": "}"}
_RESERVED = {*_OPENING, *_OPENING.values(), "for", "while", "until", "then", "else", "elif", "!", "function"}
#: Commands that can end the reading or change a variable that no word of theirs names.
_DIVERTING = {
    "eval", ".", "source", "exit", "return", "exec", "set", "shift", "alias", "unalias", "trap", "readonly",
    "command", "builtin", "break", "continue", "shopt", "declare", "typeset", "let",
}  # fmt: skip
_HARMLESS = {":", "true", "echo"}


@dataclass(frozen=True)
class Traced:
    """A text, and for each of its characters where it was written."""

    text: str = ""
    origins: tuple[Origin, ...] = ()

    def __add__(self, other: Traced) -> Traced:
        return Traced(self.text + other.text, self.origins + other.origins)


class Unfollowed(Exception):
    """A value that cannot be known without running the files, and why."""


class _GaveUp(Exception):
    """The rest of the files cannot be followed."""


@dataclass
class Variables:
    """Variables after the files were read."""

    values: dict[str, Traced | Unfollowed] = field(default_factory=dict)
    #: every value that each variable was given, in order, each with the place of the assignment
    history: dict[str, list[tuple[Origin, Traced]]] = field(default_factory=dict)
    #: why nothing can be told
    lost: str = ""

    def get(self, name: str) -> Traced:
        """The value of a variable, empty where it has none; raises Unfollowed."""
        if self.lost:
            raise Unfollowed(self.lost)
        value = self.values.get(name, Traced())
        if isinstance(value, Unfollowed):
            raise value
        return value


def follow(
    files: Mapping[str, str], empty_at_start: Callable[[str], bool], appending: bool = False
) -> Variables:
    """Reads files (name -> text, in order) as one shell would that sources them.

    `empty_at_start` says of a variable that nobody assigned whether it is surely unset; `appending`: whether
    this shell knows `NAME+=` (bash does, dash takes it for a command).
    """
    variables = Variables()
    try:
        for file, text in files.items():
            _File(variables, file, text, empty_at_start, appending).read()
    except _GaveUp as gave_up:
        variables.lost = str(gave_up)
    return variables


class _File:
    """One walk over one file."""

    def __init__(
        self,
        variables: Variables,
        file: str,
        text: str,
        empty_at_start: Callable[[str], bool],
        appending: bool,
    ) -> None:
        self.variables, self.file, self.text = variables, file, text
        self.empty_at_start, self.appending = empty_at_start, appending
        self.at = 0

    def read(self) -> None:
        while self._skip_to_command():
            start = self.at
            words, ended_by = self._simple_command()
            command = next((word for word in words if not _ASSIGNMENT.match(word)), "")
            if command in _RESERVED or ended_by in ("&", "|", "(", ")", "<", ">"):
                self.at = start
                self._compound(start)
            else:
                self._evaluate(start, words, command)

    def _line(self, at: int) -> int:
        return self.text.count("\n", 0, at) + 1

    def _lose(self, at: int, why: str) -> _GaveUp:
        return _GaveUp(f"{self.file}:{self._line(at)}: {why}, which only running it would tell")

    # finding where commands begin and end

    def _skip_to_command(self) -> bool:
        """Moves to the next command; False at the end."""
        while self.at < len(self.text):
            char = self.text[self.at]
            if self.text.startswith("\\\n", self.at):
                self.at += 2
            elif char in " \t\n;":
                self.at += 1
            elif char == "#":
                self._skip_comment()
            else:
                return True
        return False

    def _skip_comment(self) -> None:
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end

    def _simple_command(self) -> tuple[list[str], str]:
        """The raw words up to the end of the command, and the character that ends it (empty: the file)."""
        words: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            if self.text.startswith("\\\n", self.at):
                self.at += 2
            elif char in " \t":
                self.at += 1
            elif char == "#":
                self._skip_comment()
            elif char in "\n;&|()<>":
                return words, char
            else:
                words.append(self._raw_word())
        return words, ""

    def _raw_word(self) -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in " \t\n;&|()<>":
            self._skip_one()
        return self.text[start : self.at]

    def _skip_one(self) -> None:
        """Moves over one character, quoted run or substitution."""
        text, start = self.text, self.at
        char = text[start]
        if char == "\\":
            self.at += 2
        elif char == "'":
            self.at = self._find("'", start + 1)
        elif char == '"':
            self.at += 1
            while self.at < len(text) and text[self.at] != '"':
                if text[self.at] == "'":
                    self.at += 1
                else:
                    self._skip_one()
            self.at += 1
        elif char == "`":
            self.at += 1
            while self.at < len(text) and text[self.at] != "`":
                self.at += 2 if text[self.at] == "\\" else 1
            self.at += 1
        elif text.startswith("$(", start):
            self.at += 2
            depth = 1
            while self.at < len(text) and depth:
                if text[self.at] == "#" and text[self.at - 1] in " \t\n;(":
                    raise self._lose(start, "a comment inside a command substitution")
                depth += {"(": 1, ")": -1}.get(text[self.at], 0)
                self._skip_one()
            if re.search(r"\bcase\b|<<", text[start : self.at]):
                raise self._lose(start, "a case or a here-document inside a command substitution")
        elif text.startswith("${", start):
            self.at += 2
            while self.at < len(text) and text[self.at] != "}":
                if text[self.at] == "'":
                    raise self._lose(start, "a quote inside ${...}")
                self._skip_one()
            self.at += 1
        else:
            self.at += 1
        if self.at > len(text):
            raise self._lose(start, "a quote or a bracket that is never closed")

    def _find(self, what: str, start: int) -> int:
        found = self.text.find(what, start)
        if found < 0:
            raise self._lose(start, "a quote that is never closed")
        return found + 1

    def _compound(self, start: int) -> None:
        """Moves over a branch, loop, group, function or list: what it names cannot be followed any more."""
        closers: list[str] = []
        command_next = True
        goes_on = False  # after an operator the list goes on in the next line
        while self.at < len(self.text):
            char = self.text[self.at]
            if self.text.startswith("\\\n", self.at):
                self.at += 2
            elif char in " \t":
                self.at += 1
            elif char == "#":
                self._skip_comment()
            elif self.text.startswith("<<", self.at):
                raise self._lose(self.at, "a here-document")
            elif char in "\n;":
                if not closers and not (goes_on and char == "\n") and not self._body_follows():
                    break
                self.at += 1
                command_next = True
            elif char == "(":
                closers.append(")")
                self.at += 1
                command_next = True
            elif char == ")":
                if closers and closers[-1] == ")":
                    closers.pop()
                elif not (closers and closers[-1] == "esac"):  # a pattern of case ends with a bare one
                    raise self._lose(self.at, "a bracket that was never opened")
                self.at += 1
                command_next = goes_on = True
            elif char in "&|":
                self.at += 1
                command_next = goes_on = True
            elif char in "<>":
                self.at += 1
            else:
                at = self.at
                word = self._raw_word()
                goes_on = False
                if not command_next:
                    continue
                if word in _DIVERTING:
                    raise self._lose(at, f"'{word}' in a branch or list")
                if closers and word == closers[-1]:
                    closers.pop()
                elif word in _OPENING:
                    closers.append(_OPENING[word])
                command_next = word in _RESERVED and word not in ("case", "for", "function")
                command_next = command_next or bool(_ASSIGNMENT.match(word))
        if closers:
            raise self._lose(start, f"a '{closers[-1]}' that never comes")
        why = Unfollowed(
            f"{self.file}:{self._line(start)}: a branch, loop or list, which only running it would tell"
        )
        for name in _NAME.findall(self.text[start : self.at]):
            self.variables.values[name] = why

    def _body_follows(self) -> bool:
        """Whether the body of a loop is still to come."""
        return bool(re.match(r"[ \t\n;]*do\b", self.text[self.at :]))

    # evaluating

    def _evaluate(self, start: int, words: list[str], command: str) -> None:
        end = self.at
        if not command:
            at = start
            for word in words:
                at = self.text.index(word, at)
                match = _ASSIGNMENT.match(word)
                if match:
                    self._assign(word, match, at)
                at += len(word)
        elif _ASSIGNMENT.match(words[0]):
            # NAME=value command: for this command only, unless it is one of the shell's own.
            self._lose_names(words, start)
        elif command in _DIVERTING:
            raise self._lose(start, f"'{command}'")
        elif command == "export":
            at = self.text.index("export", start) + len("export")
            for word in words[1:]:
                at = self.text.index(word, at)
                match = _ASSIGNMENT.match(word)
                quoted = match and re.fullmatch(r'"[^"]*"', word[match.end() :])
                if match and ("$" in word or "`" in word) and not quoted:
                    self._lose_names([word], at)  # whether this splits at blanks differs between shells
                elif match:
                    self._assign(word, match, at)
                elif not _NAME.fullmatch(word):
                    self._lose_names([word], at)
                at += len(word)
        elif command == "unset" and all(_NAME.fullmatch(word) for word in words[1:]):
            for name in words[1:]:
                self.variables.values[name] = Traced()
                self.variables.values[f"-{name}"] = Traced()
                self._remember(name, start, Traced())
        elif command not in _HARMLESS or any("${" in word or "$((" in word for word in words):
            self._lose_names(words, start)
        self.at = end

    def _lose_names(self, words: list[str], at: int) -> None:
        why = Unfollowed(f"{self.file}:{self._line(at)}: a command that only running would tell")
        for word in words:
            for name in _NAME.findall(word):
                self.variables.values[name] = why

    def _assign(self, word: str, match: re.Match[str], at: int) -> None:
        name = match[1]
        if match[2] and not self.appending:
            raise _GaveUp(
                f"{self.file}:{self._line(at)}: {name}+= is not known to /bin/sh, update-grub fails on it"
            )
        value: Traced | Unfollowed
        try:
            value = self._expand(match.end(), word, at)
            if match[2]:
                value = self._lookup(name, at) + value
        except Unfollowed as why:
            value = why
            if "$((" in word or re.search(r"\$\{[A-Za-z_][A-Za-z0-9_]*:?=", word):
                self._lose_names([word], at)  # these assign by themselves
        self.variables.values.pop(f"-{name}", None)
        self.variables.values[name] = value
        if isinstance(value, Traced):
            self._remember(name, at, value)

    def _remember(self, name: str, at: int, value: Traced) -> None:
        self.variables.history.setdefault(name, []).append(((self.file, self._line(at)), value))

    def _expand(self, begin: int, word: str, at: int) -> Traced:
        """The value that a raw word has from `begin` on; raises Unfollowed."""
        found = Traced()
        quoted = False
        index, tilde = begin, True
        while index < len(word):
            char = word[index]
            here = at + index
            was_tilde, tilde = tilde, False
            if char == '"':
                quoted = not quoted
                index += 1
            elif char == "'" and not quoted:
                end = word.index("'", index + 1)
                found += self._literal(word[index + 1 : end], here + 1)
                index = end + 1
            elif char == "\\":
                following = word[index + 1 : index + 2]
                if following == "\n":
                    pass
                elif not quoted or following in '$`"\\':
                    found += self._literal(following, here + 1)
                else:
                    found += self._literal(char + following, here)
                index += 2
            elif char == "`" or word.startswith("$(", index):
                raise self._unfollowed(here, "a command substitution")
            elif char == "$":
                value, index = self._reference(word, index, at)
                found += value
            elif char == "~" and not quoted and was_tilde:
                raise self._unfollowed(here, "a home folder")
            else:
                found += self._literal(char, here)
                tilde = char == ":" and not quoted
                index += 1
        return found

    def _reference(self, word: str, index: int, at: int) -> tuple[Traced, int]:
        """The value of the reference at `index`, and where it ends."""
        here = at + index
        name = _NAME.match(word, index + 1)
        if name:
            return self._lookup(name[0], here), name.end()
        braces = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-+])([^'\"\\`{}$~]*))?\}").match(word, index)
        if braces:
            value = self._lookup(braces[1], here)
            if braces[2]:
                filled = bool(value.text) if ":" in braces[2] else self._is_set(braces[1])
                instead = self._literal(braces[3], at + braces.start(3))
                if "+" in braces[2]:
                    value = instead if filled else Traced()
                else:
                    value = value if filled else instead
            return value, braces.end()
        # ${NAME:+$NAME }word, a common way of adding with one blank
        nested = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*):\+\$\{?\1\}?( *)\}").match(word, index)
        if nested:
            value = self._lookup(nested[1], here)
            return (value + self._literal(nested[2], here) if value.text else value), nested.end()
        after = word[index + 1 : index + 2]
        if after and (after in "{@*#?$!-" or after.isdigit()):
            raise self._unfollowed(here, f"'{word[index : index + 12]}'")
        return self._literal("$", here), index + 1

    def _lookup(self, name: str, at: int) -> Traced:
        if name not in self.variables.values and not self.empty_at_start(name):
            raise self._unfollowed(at, f"${name}, which comes from outside these files")
        value = self.variables.values.get(name, Traced())
        if isinstance(value, Unfollowed):
            raise value
        return value

    def _is_set(self, name: str) -> bool:
        return name in self.variables.values and f"-{name}" not in self.variables.values

    def _literal(self, text: str, at: int) -> Traced:
        line = self._line(at)
        origins = []
        for char in text:
            origins.append((self.file, line))
            line += char == "\n"
        return Traced(text, tuple(origins))

    def _unfollowed(self, at: int, what: str) -> Unfollowed:
        return Unfollowed(f"{self.file}:{self._line(at)}: {what}, which only running it would tell")
