"""Builds a command: one file that runs on a managed host with nothing but its Python.

usage: build_zipapp.py TARGET [MODULE]

Holds what the module imports and no more: `cli` makes hosttune-drift, so the engine that writes settings is
not in it, `link` makes hosttune-link, `trial_cli` makes hosttune-trial. The same sources give the same bytes,
on whichever controller it is built.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "module_utils" / "hosttune"
SHEBANG = b"#!/usr/bin/python3 -IS\n"
MAIN = "import sys\n\nfrom hosttune.{} import main\n\nsys.exit(main())\n"
#: The oldest instant a ZIP file can state.
EPOCH = (1980, 1, 1, 0, 0, 0)


def imported(module: str) -> Iterator[str]:
    """Dotted names below hosttune that `module` may import, at its top and inside functions."""
    path = source(module)
    package = module.split(".") if path.name == "__init__.py" and module else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            dotted = ".".join(part for part in base if part)
            yield dotted
            for alias in node.names:
                name = f"{dotted}.{alias.name}" if dotted else alias.name
                if source(name).exists():
                    yield name


def source(module: str) -> Path:
    path = SOURCES.joinpath(*module.split(".")) if module else SOURCES
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def closure(start: str) -> list[Path]:
    """The files of `start`, of all it imports below hosttune, and of the packages they lie in."""
    found: set[str] = set()
    todo = ["", start]
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += imported(module)
            todo.append(module.rpartition(".")[0])
    return sorted(source(module) for module in found)


def build(target: Path, module: str) -> bool:
    """Replaces `target` if its bytes differ; says whether they did."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    contents = {"__main__.py": MAIN.format(module).encode()}
    for path in closure(module):
        contents[f"hosttune/{path.relative_to(SOURCES)}"] = path.read_bytes()
    with temporary.open("wb") as stream:
        stream.write(SHEBANG)
        # Stored, not deflated: another zlib would give other bytes.
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(contents):
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, contents[name])
    if target.exists() and target.read_bytes() == temporary.read_bytes():
        temporary.unlink()
        return False
    temporary.chmod(0o755)
    temporary.replace(target)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path)
    parser.add_argument("module", nargs="?", default="cli", choices=("cli", "link", "trial_cli"))
    asked = parser.parse_args()
    print("built" if build(asked.target, asked.module) else "unchanged", asked.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
