#!/usr/bin/python3
"""Gives a zipapp byte code of the Python that runs this: `python3 compile_zipapp.py SOURCE TARGET`.

Runs on the managed host. The sources stay beside the byte code: another Python than this one takes them, only
slower. The same source and Python give the same bytes; prints `built` or `unchanged`.
"""

import io
import os
import py_compile
import sys
import tempfile
import zipfile

EPOCH = (1980, 1, 1, 0, 0, 0)


def compiled(source: bytes, name: str, folder: str) -> bytes:
    """The content of a .pyc that is taken without a look at its source."""
    path = os.path.join(folder, "source.py")
    with open(path, "wb") as stream:
        stream.write(source)
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(
        path, f"{path}c", dfile=f"hosttune-drift/{name}", doraise=True, invalidation_mode=unchecked
    )
    with open(f"{path}c", "rb") as stream:
        return stream.read()


def build(source: str, target: str) -> bool:
    """Replaces `target` if its bytes differ; says whether they did."""
    with open(source, "rb") as stream:
        shebang = stream.readline()
    packed = io.BytesIO()
    packed.write(shebang)
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(packed, "a", zipfile.ZIP_STORED) as new,
    ):
        for entry in old.infolist():
            content = old.read(entry)
            byte_code = compiled(content, entry.filename, folder)
            for name, data in ((f"{entry.filename}c", byte_code), (entry.filename, content)):
                about = zipfile.ZipInfo(name, EPOCH)
                about.external_attr = 0o644 << 16
                new.writestr(about, data)
    if os.path.exists(target):
        with open(target, "rb") as stream:
            if stream.read() == packed.getvalue():
                return False
    temporary = f"{os.path.dirname(target)}/.{os.path.basename(target)}.{os.getpid()}"
    with open(temporary, "wb") as stream:
        stream.write(packed.getvalue())
        os.fchmod(stream.fileno(), 0o755)
        os.fsync(stream.fileno())
    os.rename(temporary, target)
    return True


if __name__ == "__main__":
    print("built" if build(*sys.argv[1:3]) else "unchanged")
