"""One run at a time on a host, and the second one is told who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from .model import Refusal

#: Held by whoever changes this host's settings, and by the check while it reads them.
PATH = "/var/lib/hosttune/lock"


@contextlib.contextmanager
def hold(path: str, holder: str, wait_seconds: float = 60.0) -> Iterator[None]:
    """Holds the lock at `path`; `holder` is what another run is told.

    Waits up to `wait_seconds`, then raises Refusal with the holder's own words. The kernel releases the lock
    when the process ends, however it ends; the file stays and means nothing by itself.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    other = os.pread(handle, 500, 0).decode(errors="replace").strip() or "an unnamed run"
                    raise Refusal(
                        f"another run has worked on this host for {wait_seconds:.0f} s: {other}",
                        thing="lock",
                        remedy="Wait for it to end and run again",
                    ) from None
                time.sleep(0.2)
        os.ftruncate(handle, 0)
        try:
            os.pwrite(handle, holder.encode(), 0)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error
        yield
    finally:
        os.close(handle)
