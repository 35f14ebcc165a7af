"""Which command lines of linuxptp steer the system clock (phc2sys(8) and ptp4l(8) of 3.1)."""

from __future__ import annotations

import pytest
from hosttune import ptp

FILES = {
    "/etc/linuxptp/ptp4l.conf": "[global]\n# time_stamping software\ntime_stamping\t\thardware\n",
    "/soft.conf": "[global]\ntime_stamping software\n",
    "/free.conf": "[global]\ntime_stamping software\nfree_running 1\n",
}


def read(path: str) -> str:
    try:
        return FILES[path]
    except KeyError:
        raise FileNotFoundError(path) from None


@pytest.mark.parametrize(
    ("command", "steers"),
    [
        ("/usr/sbin/phc2sys -w -s eth0", True),
        ("/usr/sbin/phc2sys -w -s eth0 -c CLOCK_REALTIME", True),
        ("/usr/sbin/phc2sys -s CLOCK_REALTIME -c eth0 -O 37", False),
        ("/usr/sbin/phc2sys -s eth0 -c /dev/ptp1", False),
        ("/usr/sbin/phc2sys -a", False),
        ("/usr/sbin/phc2sys -a -r", True),
        ("/usr/sbin/phc2sys -arr --step_threshold=1", True),
        ("/usr/sbin/phc2sys -s eth0 -E ntpshm -M 1", False),
        ("-/usr/sbin/ptp4l -f /etc/linuxptp/ptp4l.conf -i eth0", False),
        ("/usr/sbin/ptp4l -i eth0 -m", False),
        ("/usr/sbin/ptp4l -S -i eth0", True),
        ("/usr/sbin/ptp4l -f /soft.conf -i eth0", True),
        ("/usr/sbin/ptp4l -H -f /soft.conf -i eth0", False),
        ("/usr/sbin/ptp4l -f /free.conf -i eth0", False),
        ("/usr/sbin/ptp4l -f /gone.conf -i eth0", True),
        ("/usr/sbin/phc2sys -Z", True),
        ("/usr/sbin/phc2sys 'unclosed", True),
        ("", True),
    ],
)
def test_who_steers(command, steers):
    assert ptp.steers(command, read) is steers
