"""GRUB's environment block: 1,024 bytes in which GRUB and the system leave each other notes.

`next_entry` is the entry of the next boot alone: grub.cfg takes it, and has GRUB write it empty before the
kernel starts. GRUB writes by the file's blocks, below every file system, so the file has to keep them: it is
written here in place and in one piece. grub-editenv cuts it to nothing first, and a power cut then loses
`saved_entry` too. The form is that of grub-core/lib/envblk.c, which tests compare with grub-editenv.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from .system import System

PATH = "/boot/grub/grubenv"
SIGNATURE = "# GRUB Environment Block\n"


def read(system: System) -> dict[str, str]:
    """The variables, none where there is no file; raises OSError."""
    try:
        text = system.read(PATH)
    except FileNotFoundError:
        return {}
    found = {}
    for line in _lines(text):
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[name] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
    return found


def write(system: System, values: Mapping[str, str | None]) -> None:
    """Sets variables, None takes one out; raises OSError, also (EINVAL) for what is no block of GRUB's."""
    real = system.path(PATH)
    handle = os.open(real, os.O_RDWR | os.O_NOFOLLOW)
    try:
        old = os.pread(handle, 1 << 16, 0).decode("utf-8", "surrogateescape")
        try:
            new = changed(old, values)
        except ValueError as error:
            raise OSError(22, str(error), real) from error
        if new != old:
            os.pwrite(handle, new.encode("utf-8", "surrogateescape"), 0)
            os.fsync(handle)
    finally:
        os.close(handle)


def changed(block: str, values: Mapping[str, str | None]) -> str:
    """The block with other values, as long as before; raises ValueError where that cannot be."""
    used = block.rstrip("#")
    if not block.startswith(SIGNATURE) or not used.endswith("\n"):
        raise ValueError("is no GRUB environment block")
    lines = _lines(used[len(SIGNATURE) :])
    for name, value in values.items():
        at = next((at for at, line in enumerate(lines) if line.startswith(f"{name}=")), len(lines))
        escaped = re.sub(r"([\\\n])", _escaped, value or "")
        lines[at : at + 1] = [] if value is None else [f"{name}={escaped}"]
    new = SIGNATURE + "".join(f"{line}\n" for line in lines)
    size = len(block.encode("utf-8", "surrogateescape"))
    room = size - len(new.encode("utf-8", "surrogateescape"))
    if room < 0:
        raise ValueError(f"has no room for {', '.join(values)}")
    return new + "#" * room


def _escaped(found: re.Match[str]) -> str:
    return "\\" + found[1]


def _lines(text: str) -> list[str]:
    """Lines without their ends; a line break after a backslash is part of a value."""
    found, open_line = [], ""
    for part in text.split("\n")[:-1]:
        line = open_line + part
        open_line = f"{line}\n" if (len(part) - len(part.rstrip("\\"))) % 2 else ""
        if not open_line:
            found.append(line)
    return found
