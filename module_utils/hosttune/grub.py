"""What GRUB will give the kernel: the menu entry of the next boot, and what the next update-grub would write.

Two things say it. `/boot/grub/grub.cfg` is what the next boot reads: here the entry is found that it will
take (default, saved_entry and next_entry of grubenv, submenus), and its `linux` line. The files below
/etc/default are what that is made from at the next update of a kernel: GRUB_CMDLINE_LINUX and
GRUB_CMDLINE_LINUX_DEFAULT, as grub-mkconfig sources them (/etc/default/grub, then grub.d/*.cfg by name) and
10_linux joins them. Sources: GRUB 2.06, grub-mkconfig(8), grub-core/script/yylex.l, grub-core/lib/cmdline.c.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from . import cmdline, grubenv
from .cmdline import Origin, Word
from .shell_source import Traced, Unfollowed, Variables, follow
from .system import System

MENU = "/boot/grub/grub.cfg"
CUSTOM = "/boot/grub/custom.cfg"
SOURCE = "/etc/default/grub"
SOURCES = "/etc/default/grub.d"
#: in the order in which 10_linux joins them
VARIABLES = ("GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT")

#: What grub-mkconfig has set before it sources the files.
_PRESET = re.compile(
    r"GRUB_(DEVICE(_UUID|_PARTUUID|_BOOT|_BOOT_UUID)?|DISABLE_OS_PROBER|FS|EARLY_INITRD_LINUX_STOCK)\Z"
)
_REFERENCE = re.compile(r"\$(?:([A-Za-z_]\w*|\d+|[?#*@])|\{([A-Za-z_]\w*|\d+|[?#*@])\})", re.ASCII)


# the menu


@dataclass
class Entry:
    """One menu entry or submenu."""

    title: str
    id: str
    submenu: bool
    #: stands in a branch: whether the menu has it is decided at boot
    conditional: bool
    line: int
    #: the line of its closing brace
    end: int = 0
    entries: list[Entry] = field(default_factory=list)
    #: the words of its `linux` commands, each with its line
    linux: list[tuple[int, list[str]]] = field(default_factory=list)

    @property
    def recovery(self) -> bool:
        return "-recovery-" in self.id or self.title.endswith("(recovery mode)")

    @property
    def kernel(self) -> str:
        return self.linux[0][1][0] if self.linux and self.linux[0][1] else ""

    def words(self, file: str) -> list[Word]:
        """What its kernel gets; raises Unfollowed."""
        if len(self.linux) != 1 or not self.kernel:
            what = "starts no Linux kernel by itself" if not self.linux else "has several linux commands"
            raise Unfollowed(f"{file}:{self.line}: the entry '{self.title}' {what}")
        line, words = self.linux[0]
        text = " ".join(loader_text(word) for word in words[1:])
        return cmdline.split(text, [(file, line)] * len(text))


@dataclass
class Menu:
    """A grub.cfg with its custom.cfg: the entries, and the one that the next boot takes."""

    file: str
    entries: list[Entry]
    default: Entry
    #: the one that boots take when no one-time choice (next_entry) stands any more
    lasting: Entry

    def all(self) -> list[Entry]:
        """Every entry, those of submenus too."""
        found: list[Entry] = []
        todo = list(self.entries)
        while todo:
            entry = todo.pop(0)
            found.append(entry)
            todo[:0] = entry.entries
        return [entry for entry in found if not entry.submenu]


def read_menu(system: System, file: str = MENU) -> Menu:
    """Reads a grub.cfg; raises OSError, and Unfollowed where the entry of the next boot cannot be told."""
    text = system.read(file)
    entries, defaults = _parse(text, file)
    environment = grubenv.read(system)
    custom = system.read(CUSTOM) if system.exists(CUSTOM) else ""
    if re.search(r"^\s*(set\s+)?default=", custom, re.MULTILINE):
        raise Unfollowed(f"{CUSTOM} sets a default entry of its own")
    if custom and sources_custom(text):
        entries += _parse(custom, CUSTOM)[0]
    chosen = _default(file, defaults, environment)
    later = _default(file, defaults, {**environment, "next_entry": ""})
    return Menu(file, entries, _find(file, entries, chosen), _find(file, entries, later))


def find(menu: Menu, name: str) -> Entry:
    """The entry that a boot with this default takes; raises Unfollowed."""
    return _find(menu.file, menu.entries, name)


def sources_custom(text: str) -> bool:
    """Whether a grub.cfg reads custom.cfg, as 41_custom has it do."""
    return re.search(r"^\s*source\s+\S*/custom\.cfg$", text, re.MULTILINE) is not None


def split_words(text: str) -> list[tuple[str, int]]:
    """A command of a GRUB script as words, each with the place where it begins; raises ValueError.

    A reference to a variable stays, as ${NAME}: only GRUB knows its value.
    """
    found: list[tuple[str, int]] = []
    at = 0
    while at < len(text):
        if text[at] in " \t":
            at += 1
            continue
        if text[at] == "#":
            break
        start, word = at, ""
        while at < len(text) and text[at] not in " \t":
            char = text[at]
            if char == "'":
                end = text.find("'", at + 1)
                if end < 0:
                    raise ValueError("a quote that is never closed")
                word += text[at + 1 : end]
                at = end + 1
            elif char == '"':
                part, at = _double_quoted(text, at + 1)
                word += part
            elif char == "\\":
                if at + 1 == len(text):
                    raise ValueError("a backslash at the end")
                word += text[at + 1 : at + 2]
                at += 2
            elif char in "{}|&;<>\n":
                raise ValueError(f"a bare '{char}'" if char != "\n" else "a line break")
            elif char == "$":
                part, at = _reference(text, at)
                word += part
            else:
                word += char
                at += 1
        found.append((word, start))
    return found


def _double_quoted(text: str, at: int) -> tuple[str, int]:
    found = ""
    while at < len(text) and text[at] != '"':
        if text[at] == "\\" and text[at + 1 : at + 2] in ("$", "\\", '"', "\n"):
            found += text[at + 1].replace("\n", "")
            at += 2
        elif text[at] == "$":
            part, at = _reference(text, at)
            found += part
        else:
            found += text[at]
            at += 1
    if at >= len(text):
        raise ValueError("a quote that is never closed")
    return found, at + 1


def _reference(text: str, at: int) -> tuple[str, int]:
    match = _REFERENCE.match(text, at)
    if not match:
        raise ValueError("a bare '$'")
    return f"${{{match[1] or match[2]}}}", match.end()


def loader_text(word: str) -> str:
    """How GRUB's loader writes one word on the kernel's command line."""
    text = re.sub(r"(\\x[0-9a-fA-F]{2})|([\\'\"])", lambda found: found[1] or "\\" + found[2], word)
    return f'"{text}"' if " " in word else text


def _parse(text: str, file: str) -> tuple[list[Entry], list[tuple[int, str]]]:
    """The tree of entries, and the values that `default` is set to outside of them, each with its line."""
    top: list[Entry] = []
    defaults: list[tuple[int, str]] = []
    blocks: list[Entry | None] = []  # None: a function
    branches = 0
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        inside = next((entry for entry in reversed(blocks) if entry is not None), None)
        opening = re.match(r"(menuentry|submenu)\s", line)
        if line.startswith("blscfg"):
            raise Unfollowed(f"{file}:{number}: entries come from blscfg, not from this file")
        if opening:
            entry = _entry(line, opening[1] == "submenu", bool(branches), number, file)
            (inside.entries if inside else top).append(entry)
            blocks.append(entry)
        elif re.match(r"function\s.*\{$", line):
            blocks.append(None)
        elif line == "}":
            if not blocks:
                raise Unfollowed(f"{file}:{number}: a '}}' that closes nothing")
            closed = blocks.pop()
            if closed is not None:
                closed.end = number
        elif re.match(r"(linux|linux16|linuxefi)\s", line) and inside is not None and not inside.submenu:
            try:
                words = [word for word, _start in split_words(line)]
            except ValueError as error:
                raise Unfollowed(f"{file}:{number}: {error}") from error
            inside.linux.append((number, words[1:]))
        else:
            commands = [command.strip() for command in line.split(";")]
            branches += sum(command.startswith("if ") for command in commands)
            branches -= commands.count("fi")
            if not blocks:
                for command in commands:
                    found = re.match(r"(?:then\s+)?(?:set\s+)?default=(.*)", command)
                    if found:
                        defaults.append((number, found[1]))
    if blocks or branches:
        raise Unfollowed(f"{file}: its blocks and branches do not close")
    return top, defaults


def _entry(line: str, submenu: bool, conditional: bool, number: int, file: str) -> Entry:
    try:
        words = [word for word, _start in split_words(line.rstrip("{").rstrip())]
    except ValueError as error:
        raise Unfollowed(f"{file}:{number}: {error}") from error
    name = ""
    for option, value in zip(words[2:], words[3:]):
        if option in ("--id", "${menuentry_id_option}"):
            name = value
    return Entry(words[1] if len(words) > 1 else "", name, submenu, conditional, number)


def _default(file: str, defaults: Sequence[tuple[int, str]], environment: dict[str, str]) -> str:
    """What the next boot takes as the name, title or number of its entry."""
    if environment.get("next_entry") and any("next_entry" in value for _line, value in defaults):
        return environment["next_entry"]
    values = []
    for number, text in defaults:
        try:
            words = split_words(text)
        except ValueError as error:
            raise Unfollowed(f"{file}:{number}: {error}") from error
        value = words[0][0] if words else ""
        if "next_entry" in value:
            continue
        if value == "${saved_entry}":
            value = environment.get("saved_entry", "")
        elif "$" in value:
            raise Unfollowed(f"{file}:{number}: the default entry is {value}, which only GRUB knows")
        if value not in values:
            values.append(value)
    if len(values) > 1:
        raise Unfollowed(f"{file}: GRUB decides at boot between the default entries {', '.join(values)}")
    return values[0] if values else "0"


def _find(file: str, entries: Sequence[Entry], chosen: str) -> Entry:
    """The entry that `SUBMENU>ENTRY` names, each by number, title or id; the first where it names none."""
    if not entries:
        raise Unfollowed(f"{file}: it has no menu entry")
    first, rest = _first_part(chosen)
    found = None
    if re.match(r"\d", first):
        index = int(re.match(r"\d+", first)[0])  # type: ignore[index]
        if any(entry.conditional for entry in entries[:index]):
            raise Unfollowed(f"{file}: whether entry {index} is the default one is decided at boot")
        found = entries[index] if index < len(entries) else None
    if found is None:
        found = next((entry for entry in entries if first and first in (entry.title, entry.id)), entries[0])
    if found.conditional:
        raise Unfollowed(f"{file}:{found.line}: whether the menu has '{found.title}' is decided at boot")
    return _find(file, found.entries, rest) if found.submenu else found


def _first_part(chosen: str) -> tuple[str, str]:
    """Splits at the first single '>'; a doubled one stands for itself."""
    first, mark, rest = chosen.replace(">>", "\0").partition(">")
    return first.replace("\0", ">"), rest.replace("\0", ">>") if mark else ""


# the sources


@dataclass
class Wanted:
    """What the next update-grub would write on the kernel's line."""

    words: list[Word]
    #: words that were given once, each with the later assignment that dropped it
    dropped: list[tuple[Word, Origin]]
    #: the words as 10_linux writes them into grub.cfg
    text: str = ""


def read_text(system: System, path: str) -> str:
    """A file as a shell reads it: a carriage return is a character like others."""
    with open(system.path(path), encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return stream.read()


def source_files(system: System) -> list[str]:
    """The files that grub-mkconfig sources, in order."""
    found = [SOURCE] if os.path.isfile(system.path(SOURCE)) else []
    found += [f"{SOURCES}/{name}" for name in system.names(SOURCES) if re.match(r"[^.].*\.cfg\Z", name, re.S)]
    return [file for file in found if os.path.exists(system.path(file))]


#: Sources that are read instead of what stands there: path -> where the text is written, the text.
Instead = Mapping[str, tuple[str, str]]


def read_variables(system: System, instead: Instead = MappingProxyType({})) -> Variables:
    """What the files make of their variables; raises OSError."""
    shell = os.path.basename(os.path.realpath(system.path("/bin/sh")))
    texts = {}
    for file in sorted({*source_files(system), *instead}):
        origin, text = instead.get(file) or (file, read_text(system, file))
        texts[origin] = text
    return follow(
        texts,
        lambda name: name.startswith("GRUB_") and not _PRESET.match(name),
        appending=shell.startswith("bash"),
    )


def read_wanted(system: System, instead: Instead = MappingProxyType({})) -> Wanted:
    """What the sources say; raises OSError and Unfollowed."""
    variables = read_variables(system, instead)
    line = variables.get(VARIABLES[0]) + Traced(" ", (("", 0),)) + variables.get(VARIABLES[1])
    words = _kernel_words(line)
    dropped: list[tuple[Word, Origin]] = []
    for name in VARIABLES:
        before: list[Word] = []
        for place, value in variables.history.get(name, []):
            try:
                now = _kernel_words(value)
            except Unfollowed:
                continue  # a value that no longer counts
            dropped += [(word, place) for word in before if word not in now]
            before = now
    return Wanted(words, dropped, line.text)


def _kernel_words(line: Traced) -> list[Word]:
    """The kernel's words of a text that 10_linux writes after `linux` into grub.cfg."""
    try:
        words = split_words(line.text)
    except ValueError as error:
        raise Unfollowed(f"{' and '.join(VARIABLES)} are no words to GRUB: {error}") from error
    text, origins = "", []
    for word, start in words:
        written = loader_text(word) + " "
        text += written
        origins += [line.origins[start]] * len(written)
    return cmdline.split(text, origins)
