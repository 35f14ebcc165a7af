"""Processes, known by PID and start time: a PID alone may belong to somebody else by now."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError

# What terminals act on and readers stumble over: colours, cursor movement, carriage returns.
ESCAPES = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]|\x1b[A-Z=>]|\r|[\x00-\x08]")


def say(message: str) -> None:
    print(message, flush=True)


def run(*command: str | Path, check: bool = True, input_text: str | None = None) -> str:
    """Run a command to its end and return what it printed; a failure carries the command's own last words."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, input=input_text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LabError(f"{words[0]} is missing: run `python -m lab deps`") from None
    if check and done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-6:]
        raise LabError(f"`{' '.join(words)}` ended with status {done.returncode}: " + " | ".join(last))
    return done.stdout


def run_contained(command: Sequence[str | Path], log: Path, timeout: float | None = None) -> None:
    """Run a build step that dies wholly with us, whatever it started and mounted.

    It is the first process of its own PID namespace and has its own mounts; `setpriv --pdeathsig` carries
    even a kill -9 of this process to it, and the kernel takes down the rest.
    """
    wrapper = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
    words = [*wrapper, "--mount-proc", "--", *map(str, command)]
    with log.open("ab") as out:
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False, timeout=timeout
            )
        except FileNotFoundError:
            raise LabError("setpriv is missing: run `python -m lab deps`") from None
        except subprocess.TimeoutExpired:
            raise LabError(f"`{command[0]}` did not end within {timeout:.0f} s, see {log}") from None
    if done.returncode:
        raise LabError(f"`{command[0]}` ended with status {done.returncode}: {tail(log)} (all of it: {log})")


def tail(log: Path, lines: int = 6) -> str:
    if not log.exists():
        return "no output"
    text = ESCAPES.sub("", log.read_text(errors="replace"))
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])


def spawn(command: Sequence[str | Path], log: Path, cwd: Path = Path("/")) -> None:
    """Start a process that outlives us. It writes its own PID record, so no kill of us can lose it."""
    with log.open("ab") as out:
        subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd=cwd,
        )


def start_time(pid: int) -> int | None:
    """When PID started, in clock ticks since boot; None when there is no such process or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


class Recorded:
    """A process that wrote `PID START` into a file (see files/*.sh) before it became what it is."""

    def __init__(self, record: Path) -> None:
        self.record = record

    def pid(self) -> int | None:
        """The PID, if that very process still runs."""
        try:
            pid, started = map(int, self.record.read_text().split())
        except (OSError, ValueError):
            return None
        return pid if start_time(pid) == started else None

    def alive(self) -> bool:
        return self.pid() is not None

    def ended(self) -> bool:
        """It was there and is gone; one that has not written its record yet did not end."""
        return self.record.exists() and self.record.read_text().endswith("\n") and not self.alive()

    def signal(self, number: signal.Signals) -> None:
        pid = self.pid()
        if pid is None:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            # The descriptor pins the process; asked again, the record cannot mean another one now.
            if self.pid() == pid:
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)

    def wait(self, seconds: float) -> bool:
        """True once the process is gone, False when it outlives the time."""
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True
