"""SIGKILL at every write boundary: what is left converges, and can be undone to the first day.

A child process does the work and kills itself before the Nth call that writes; N goes up until the work ends
by itself. Before the Nth call is after the one before it, so that both sides of each are seen.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback

import pytest
from fake_host import FakeHost, as_root
from hosttune import store

FIRST = {
    "kernel": {
        "sysctl": {
            "net.core.somaxconn": "4096",
            "vm.swappiness": "10",
            "net.ipv4.tcp_rmem": "4096 131072 16777216",
        }
    },
    "app": {
        "file": {
            "/etc/app/app.conf": {"content": "tuned\n", "mode": "0644"},
            "/etc/app/deep/er/new.conf": {"content": "new\n"},
            "/etc/app/password": {"content": "hunter2-of-the-exchange", "mode": "0600", "secret": True},
        },
        "sysctl": {"net.ipv4.tcp_syncookies": "0"},
        "limit": {"trader/hard/nofile": "65536"},
    },
}
#: The next release: one value changed, one setting dropped, one owner gone, one come.
SECOND = {
    "kernel": {"sysctl": {"net.core.somaxconn": "8192", "vm.swappiness": "10"}},
    "desk": {
        "file": {"/etc/app/app.conf": {"content": "tuned again\n"}, "/etc/desk/a.conf": {"content": "a\n"}},
        "limit": {"trader/hard/nofile": "1024"},
    },
}
#: Each write on the controller's Python; on the others, which run the same code, some.
EVERY = 7 if os.environ.get("HOSTTUNE_ENGINE_ONLY") else 1
#: Calls that change what is on disk; System.write_value and System.run come beside them.
WRITING = ("open", "mkdir", "chmod", "fchown", "fchmod", "fsync", "rename", "unlink", "rmdir")


def kill_at(number):
    """Makes this process kill itself before its call `number` that writes."""
    count = 0

    def wrapped(real, counts=lambda *_args: True):
        def call(*args, **options):
            nonlocal count
            if counts(*args):
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    for name in WRITING:
        creates = (lambda _path, flags, *_more: flags & os.O_CREAT) if name == "open" else lambda *_args: True
        setattr(os, name, wrapped(getattr(os, name), creates))
    FakeHost.write_value = wrapped(FakeHost.write_value)
    FakeHost.run = wrapped(FakeHost.run)


def killed(number, work):
    """Whether `work`, done in a child that is to die before its write `number`, was cut off."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            kill_at(number)
            work()
            status = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    _pid, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed, though nothing stopped it"
    return False


def pristine(host):
    """All below /etc and the live values, with nothing of ours beside them."""
    return {
        name: (*entry[:3], entry[3].split() if isinstance(entry[3], bytes) else entry[3])
        for name, entry in host.snapshot().items()
    }


def converges(host, owners):
    done = host.apply(owners)
    assert not done.failures
    assert {one.verdict for one in done.settings} == {"in_sync"}
    assert not host.apply(owners).changed


def undoes(host, before):
    done = host.apply({}, present=False)
    assert not done.failures
    assert not done.aside, "what a killed run wrote itself was taken for somebody's edit"
    assert pristine(host) == before
    assert not store.Ledger(host).settings
    assert not store.Ledger(host).files
    assert not store.Ledger(host).folders


APPLY_FIRST = (None, lambda host: host.apply(FIRST))
APPLY_SECOND = (FIRST, lambda host: host.apply(SECOND))
UNDO = (FIRST, lambda host: host.apply({}, present=False))


@pytest.mark.parametrize(
    ("work", "then"),
    [
        (APPLY_FIRST, FIRST),
        (APPLY_FIRST, None),
        (APPLY_SECOND, SECOND),
        (APPLY_SECOND, None),
        (UNDO, FIRST),
        (UNDO, None),
    ],
    ids=[
        "first run, then run again",
        "first run, then undo",
        "next release, then run again",
        "next release, then undo",
        "undo, then run again",
        "undo, then undo again",
    ],
)
def test_killed_at_any_write_nothing_is_lost(tmp_path, monkeypatch, capsys, work, then):
    as_root(monkeypatch)
    start, action = work
    template = FakeHost(tmp_path / "template")
    before = pristine(template)
    if start is not None:
        template.apply(start)
    number, cuts = 0, 0
    while True:
        number += EVERY
        folder = tmp_path / str(number)
        shutil.copytree(template.folder, folder, symlinks=True)
        host = FakeHost.at(folder)
        if not killed(number, lambda host=host: action(host)):
            break
        try:
            if then is not None:
                converges(host, then)
            undoes(host, before)
        except BaseException:
            print(f"killed before write {number}", file=sys.stderr)
            raise
        shutil.rmtree(folder)
        cuts += 1
    with capsys.disabled():
        print(f"\n  killed at {cuts} of {number - 1} writes", end="")
    assert number > 20, "the work made fewer writes than it must"
