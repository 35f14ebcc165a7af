"""Throw-away test hosts for this repository: real systemd in containers, real kernels in virtual machines.

`python -m lab up` boots hosts and writes an inventory; `python -m lab down` leaves nothing behind.
The machine that runs it is never tuned: containers get a read-only /proc/sys, machines their own kernel.
"""
