"""Files that are replaced whole: after a crash there is the old one or the new one, never a part."""

from __future__ import annotations

import errno
import os
import stat

from .model import FileImage


def read_image(path: str) -> FileImage | None:
    """The regular file at `path`; None where nothing stands there.

    Raises OSError, also (EISDIR, EINVAL) where something other than a regular file stands there.
    """
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(found.st_mode):
        raise OSError(22, "is not a regular file", path)
    with open(path, "rb") as stream:
        content = stream.read()
    return FileImage(content, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def sync_folder(path: str) -> None:
    """Makes a rename or an unlink in this folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folders(path: str, mode: int = 0o755) -> list[str]:
    """Creates `path` and what is missing above it; returns what was created, outermost first."""
    missing = []
    probe = path
    while not os.path.isdir(probe):
        missing.append(probe)
        probe = os.path.dirname(probe)
    for folder in reversed(missing):
        os.mkdir(folder, mode)
        os.chmod(folder, mode)  # the umask must not decide
        sync_folder(os.path.dirname(folder))
    return missing[::-1]


def _beside(path: str) -> str:
    """Where a new version of `path` is written; no program reads a name like it as configuration."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.hosttune-new")


def write(path: str, image: FileImage) -> None:
    """Replaces `path` by `image`: written beside it, synced, renamed over it, the folder synced.

    Raises OSError that names a file.
    """
    temporary = _beside(path)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(image.content)
            os.fchown(stream.fileno(), image.uid, image.gid)
            os.fchmod(stream.fileno(), image.mode)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, path)
    except BaseException as fault:
        if isinstance(fault, OSError) and fault.filename is None:
            fault.filename = path  # a full disk is told of an open file, which has no name
        # Also on a signal: a half-written neighbour would be read by programs that read the whole folder.
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
    sync_folder(os.path.dirname(path))


def remove_folder(path: str) -> None:
    """Removes an empty folder, durably. One with something in it stays, and so does a mount point."""
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY):
            return
        raise
    sync_folder(os.path.dirname(path))


def remove(path: str) -> None:
    """Unlinks `path`, durably; nothing there is fine."""
    _unlink(path, _beside(path))


def sweep(path: str) -> None:
    """Removes what a run that was killed left beside `path`."""
    _unlink(_beside(path))


def _unlink(*paths: str) -> None:
    found = [one for one in paths if os.path.lexists(one)]
    for one in found:
        os.unlink(one)
    if found:
        sync_folder(os.path.dirname(paths[0]))
