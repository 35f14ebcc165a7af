#!/usr/bin/python3
"""Gives a zipapp byte code of the Python that runs this: `python3 compile_zipapp.py SOURCE TARGET`.

Runs on the managed host. The sources stay beside the byte code: another Python than this one takes them, only
slower. A target that has these sources and this Python's byte code stays; prints `built` or `unchanged`.
"""

import importlib.util
import io
import os
import py_compile
import sys
import tempfile
import zipfile

EPOCH = (1980, 1, 1, 0, 0, 0)


def compiled(source: bytes, name: str, folder: str) -> bytes:
    """The content of a .pyc that is taken without a look at its source; `name` stands in tracebacks."""
    path = os.path.join(folder, "source.py")
    with open(path, "wb") as stream:
        stream.write(source)
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(path, f"{path}c", dfile=name, doraise=True, invalidation_mode=unchecked)
    with open(f"{path}c", "rb") as stream:
        return stream.read()


def stands(target: str, shebang: bytes, sources: "dict[str, bytes]") -> bool:
    """Whether `target` holds these sources with byte code of this Python.

    Byte code itself is not compared: some Pythons write it a little differently each time.
    """
    if not os.path.exists(target):
        return False
    with open(target, "rb") as stream:
        if stream.readline() != shebang:
            return False
    with zipfile.ZipFile(target) as found:
        names = set(found.namelist())
        return names == {*sources, *(f"{name}c" for name in sources)} and all(
            found.read(name) == content and found.read(f"{name}c")[:4] == importlib.util.MAGIC_NUMBER
            for name, content in sources.items()
        )


def build(source: str, target: str) -> bool:
    """Replaces `target` if it differs; says whether it did."""
    with open(source, "rb") as stream:
        shebang = stream.readline()
    with zipfile.ZipFile(source) as old:
        sources = {entry.filename: old.read(entry) for entry in old.infolist()}
    if stands(target, shebang, sources):
        return False
    packed = io.BytesIO()
    packed.write(shebang)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(packed, "a", zipfile.ZIP_STORED) as new:
        for filename, content in sources.items():
            byte_code = compiled(content, f"{os.path.basename(target)}/{filename}", folder)
            for name, data in ((f"{filename}c", byte_code), (filename, content)):
                about = zipfile.ZipInfo(name, EPOCH)
                about.external_attr = 0o644 << 16
                new.writestr(about, data)
    temporary = f"{os.path.dirname(target)}/.{os.path.basename(target)}.{os.getpid()}"
    with open(temporary, "wb") as stream:
        stream.write(packed.getvalue())
        os.fchmod(stream.fileno(), 0o755)
        os.fsync(stream.fileno())
    os.rename(temporary, target)
    return True


if __name__ == "__main__":
    print("built" if build(*sys.argv[1:3]) else "unchanged")
