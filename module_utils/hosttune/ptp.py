"""Whether a program of linuxptp steers the system clock, by its command line (phc2sys(8), ptp4l(8) of 3.1).

A ptp4l that stamps in hardware steers the NIC's clock only, and so does a phc2sys that is told another clock:
beside them chronyd is right. What cannot be read counts as steering.
"""

from __future__ import annotations

import getopt
import os
import shlex
from collections.abc import Callable

_PHC2SYS = "arc:d:f:s:E:P:I:S:F:R:N:O:L:M:i:u:wn:xz:l:t:mqvh"
_PTP4L = "AEP246HSLf:i:p:sl:mqvht:"


def steers(command: str, read: Callable[[str], str]) -> bool:
    """Whether this ExecStart= steers the system clock; `read` gives the text of a file or raises OSError."""
    try:
        words = shlex.split(command)
        program = os.path.basename(words[0].lstrip("-@:+!"))
        # Long options are items of the configuration: what we look for, short ones say.
        short = [word for word in words[1:] if not word.startswith("--")]
        options, _rest = getopt.gnu_getopt(short, _PHC2SYS if program == "phc2sys" else _PTP4L)
    except (ValueError, IndexError, getopt.GetoptError):
        return True
    said = dict(options)
    if program == "phc2sys":
        if said.get("-E") == "ntpshm":
            return False  # hands its time to another program
        return "-r" in said if "-a" in said else said.get("-c", "CLOCK_REALTIME") == "CLOCK_REALTIME"
    if "-S" in said or "-H" in said or "-L" in said:
        return "-H" not in said
    return _software(said.get("-f", ""), read)


def _software(file: str, read: Callable[[str], str]) -> bool:
    """Whether ptp4l's configuration asks for stamps in software and lets it steer."""
    items = {"time_stamping": "hardware", "free_running": "0"}
    try:
        lines = read(file).splitlines() if file else []
    except OSError:
        return True
    for line in lines:
        words = line.split()
        if len(words) == 2 and words[0] in items:
            items[words[0]] = words[1]
    return items["time_stamping"] != "hardware" and items["free_running"] == "0"
