"""Runs on a test host: every fault of test_faults.py that needs no controller, one kind after the other.

usage: faults.py table|set-up|state|slow|finish|tear-down < REQUEST
Requests and answers are JSON; each request names kinds. `table` answers KIND -> FAULT -> {"outcome": TEXT} or
{"wrong": TRACEBACK}; the others are the parts of a run of these kinds together whose connection is cut.

Each engine call is a child process: what a fault patches or kills is gone with it. A cell ends the same
way whatever the fault was: the next run converges, the one after changes nothing, undo gives back what was.
"""

from __future__ import annotations

import builtins
import contextlib
import datetime
import errno
import functools
import io
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import traceback

sys.dont_write_bytecode = True

from fault_rows import ROWS, Together, said_by  # noqa: E402
from hosttune import cli, drift, engine, store, waivers  # noqa: E402
from hosttune.model import Refusal  # noqa: E402
from hosttune.system import System  # noqa: E402

CONVERGES = "converges"
REFUSED = "refused, untouched"
SAID = "said, converges after"
STATE = "/var/lib/hosttune"


class Host(System):
    """The host; `own_kernel` lets the kinds work that leave a shared kernel alone."""

    own_kernel = False

    @functools.cached_property
    def container(self):
        return "" if Host.own_kernel else "systemd-nspawn"


# a call of the engine in a process of its own


def in_child(work, prepare=None):
    """What `work` returns in a child process; {"killed": true} where SIGKILL ended that."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(ours)
            if prepare:
                prepare()
            answer = json.dumps(work()).encode()
            with os.fdopen(theirs, "wb") as stream:
                stream.write(answer)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        answer = stream.read()
    _pid, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return {"killed": True}
    assert os.WEXITSTATUS(status) == 0, "the engine ended with a traceback"
    return json.loads(answer)


def call(row, prepare=None, values=None, **options):
    """One call of the engine as host_settings makes it. `spoke`: it refused, failed or warned."""
    request = {
        "owners": {"desk": {row.kind: values}} if values else row.owners,
        "disruption_allowed": "restarts",
        "settle_seconds": 0.0,
        "lock_wait_seconds": 0.2,
        "run": {"id": "htf", "operator": "ann"},
        **options,
    }

    def work():
        try:
            report = engine.converge(Host(), engine.Request(**request))
        except (Refusal, OSError) as error:  # what host_settings ends with
            named = isinstance(error, Refusal) or error.filename
            return {"ended": f"{type(error).__name__}: {error}", "spoke": str(error), "named": bool(named)}
        return {
            "changed": report.changed,
            "failures": report.failures,
            "warnings": report.warnings,
            "aside": report.aside,
            "verdicts": {one.setting.name: one.verdict for one in report.settings},
            "spoke": "; ".join(report.failures + report.warnings + report.aside),
        }

    return in_child(work, prepare)


def checked(prepare=None):
    """Exit status and words of hosttune-drift."""

    def work():
        cli.System = lambda _root: Host()
        cli.LOCK_WAIT_SECONDS = 0.2
        words = io.StringIO()
        with contextlib.redirect_stderr(words), contextlib.redirect_stdout(words):
            status = cli.main([])
        return [status, words.getvalue()]

    return in_child(work, prepare)


def state(row):
    """All below /etc as it stands, and the live values."""
    found = {"live": row.live()}
    for folder, folders, files in os.walk("/etc"):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            about = os.lstat(path)
            entry = [stat.filemode(about.st_mode), about.st_uid, about.st_gid]
            if stat.S_ISLNK(about.st_mode):
                entry.append(os.readlink(path))
            elif stat.S_ISREG(about.st_mode):
                with open(path, "rb") as stream:
                    entry.append(store.sha256(stream.read()))
            found[path] = entry
    return found


def differences(before, now):
    return {
        key: (before.get(key), now.get(key)) for key in {*before, *now} if before.get(key) != now.get(key)
    }


def converges(row):
    found = call(row)
    assert not found.get("failures", ["ended"]), f"the next run: {found}"
    assert row.good.issuperset(found["verdicts"].values()), f"the next run: {found}"
    again = call(row)
    assert again.get("changed") is False, f"the run after changed something: {again}"
    return found


def undoes(row, before):
    found = call(row, owners={}, present=False)
    assert not found.get("failures", ["ended"]) and not found["aside"], f"undo: {found}"
    assert not differences(before, state(row)), f"undo left {differences(before, state(row))}"
    ledger = store.Ledger(Host())
    assert not ledger.settings and not ledger.files and not ledger.folders, (
        "undo left something in the ledger"
    )


def ends(row, before, found):
    """The outcome of a run under a fault that is over now; asserts all that has to hold after it."""
    assert not found.get("killed")
    untouched = not differences(before, state(row))
    if found.get("ended"):
        assert found["named"], f"says not where: {found}"
    outcome = CONVERGES
    if found["spoke"]:
        outcome = REFUSED if untouched else SAID
    converges(row)
    undoes(row, before)
    return outcome


def one_outcome(outcomes):
    return " or ".join(sorted(set(outcomes)))


# SIGKILL

#: Calls that change what is on disk; write_value and run of System and what is sent come beside them.
WRITING = ("open", "mkdir", "chmod", "fchown", "fchmod", "fsync", "rename", "unlink", "rmdir")


def at_each_write(do):
    """Calls `do(name)` before every call of this process that writes."""

    def wrapped(name, real, counts=lambda *_args: True):
        def calling(*args, **options):
            if counts(*args):
                do(name)
            return real(*args, **options)

        return calling

    for name in WRITING:
        creates = (lambda _path, flags, *_more: flags & os.O_CREAT) if name == "open" else lambda *_args: True
        setattr(os, name, wrapped(name, getattr(os, name), creates))
    Host.write_value = wrapped("write_value", Host.write_value)
    Host.run = wrapped("run", Host.run)
    socket.socket.sendall = wrapped("sendall", socket.socket.sendall)


def writes_of(work):
    """The names of the writing calls that `work` makes, in order."""
    ours, theirs = os.pipe()
    names = []

    def prepare():
        at_each_write(lambda name: os.write(theirs, name.encode() + b"\n"))

    found = work(prepare)
    os.close(theirs)
    with os.fdopen(ours) as stream:
        names = stream.read().split()
    assert not found.get("failures", ["ended"]), found
    return names


def kill_before(number):
    def prepare():
        left = [number]

        def count(_name):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        at_each_write(count)

    return prepare


def boundaries(row, names):
    """Numbers of the writes to be killed before: all, or the first, the last, and both sides of renames."""
    last = len(names)
    if row.every_write:
        return list(range(1, last + 1))
    renames = [at + 1 for at, name in enumerate(names) if name in ("rename", "run")]
    some = renames[:: max(1, len(renames) // 5)]
    return sorted({1, last, *some, *(at + 1 for at in some if at < last)})


def killed(row, before):
    applying = writes_of(lambda prepare: call(row, prepare))
    undoing = writes_of(lambda prepare: call(row, prepare, owners={}, present=False))
    wipe()
    for number in boundaries(row, applying):
        assert call(row, kill_before(number)) == {"killed": True}, number
        if number % 2:
            converges(row)
        undoes(row, before)
        wipe()
    for number in boundaries(row, undoing)[:: 3 if row.every_write else 4]:
        call(row)
        assert call(row, kill_before(number), owners={}, present=False) == {"killed": True}, number
        undoes(row, before)
        wipe()
    return CONVERGES


# disks


@contextlib.contextmanager
def small_disk(folder):
    """A small file system with what stands in `folder`, mounted over it; yields what fills and frees it."""
    os.makedirs(folder, exist_ok=True)
    beside = "/run/htf-disk"
    os.makedirs(beside)
    said_by("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", beside)
    said_by("cp", "-a", f"{folder}/.", beside)
    about = os.stat(folder)
    os.chmod(beside, stat.S_IMODE(about.st_mode))
    said_by("mount", "--bind", beside, folder)
    said_by("umount", beside)
    os.rmdir(beside)
    filler = f"{folder}/.htf-filler"

    def fill(of="blocks"):
        if of == "inodes":
            used = os.statvfs(folder)
            said_by("mount", "-o", f"remount,nr_inodes={used.f_files - used.f_ffree}", folder)
            return
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as stream:
            while stream.write(b"x" * 4096):
                pass
        assert os.statvfs(folder).f_bfree == 0

    def free():
        said_by("mount", "-o", "remount,nr_inodes=100000", folder)
        if os.path.exists(filler):
            os.unlink(filler)

    try:
        yield fill, free
    finally:
        said_by("umount", folder)


@contextlib.contextmanager
def read_only(folder):
    os.makedirs(folder, exist_ok=True)
    said_by("mount", "--bind", folder, folder)
    said_by("mount", "-o", "remount,bind,ro", folder)
    try:
        yield
    finally:
        said_by("umount", folder)


def full(row, before, folder, of="blocks"):
    with small_disk(folder) as (fill, free):
        before = state(row)
        fill(of)
        found = call(row)
        free()
        assert found["spoke"], f"a full disk was not said: {found}"
        return ends(row, before, found)


def full_files(row, before):
    return full(row, before, row.folder, row.full_of)


def full_state(row, before):
    return full(row, before, STATE)


def full_manifest(row, before):
    try:
        return full(row, before, "/etc/hosttune")
    finally:
        os.rmdir("/etc/hosttune")


def locked(row, before, folder):
    with read_only(folder):
        before = state(row)
        found = call(row)
        assert found["spoke"], f"a read-only file system was not said: {found}"
    return before, found


def read_only_files(row, before):
    before, found = locked(row, before, row.folder)
    return ends(row, before, found)


def read_only_state(row, before):
    outcomes = []
    for folder in (STATE, "/etc/hosttune"):
        made = not os.path.exists(folder)
        at, found = locked(row, before, folder)
        if made:
            os.rmdir(folder)
        outcomes.append(ends(row, before if made else at, found))
    return one_outcome(outcomes)


# errors of system calls


def failing(number, path=r"\Z.", command=r"\Z.", values=False, creating=False, sending=rb"\Z."):
    """Makes these calls of this process fail: opening the paths (to read, or `creating`), running the
    commands, writing values, sending what matches to a server."""

    def fault(what):
        return OSError(number, os.strerror(number), what)

    def prepare():
        real_open, real_os_open = builtins.open, os.open
        real_run, real_write, real_send = subprocess.run, Host.write_value, socket.socket.sendall

        def hit(name, makes):
            return isinstance(name, str) and re.match(path, name) and makes == creating

        def opens(name, mode="r", *more, **options):
            if hit(name, "w" in mode):
                raise fault(name)
            return real_open(name, mode, *more, **options)

        def os_opens(name, flags, *more, **options):
            if hit(name, bool(flags & os.O_CREAT)):
                raise fault(name)
            return real_os_open(name, flags, *more, **options)

        def runs(argv, *more, **options):
            line = " ".join([*argv, options.get("input", "")])
            if re.match(command, argv[0]) or re.match(command, line, re.DOTALL):
                raise fault(argv[0])
            return real_run(argv, *more, **options)

        def writes(self, name, value):
            if values:
                raise fault(name)
            return real_write(self, name, value)

        def sends(self, data):
            if re.match(sending, data, re.DOTALL):
                raise fault(self.getpeername())
            return real_send(self, data)

        builtins.open, os.open = opens, os_opens
        subprocess.run, Host.write_value, socket.socket.sendall = runs, writes, sends

    return prepare


def fails(numbers, fault, row, before):
    """A run under each of these errors; `fault(row, number)` is what brings it about."""
    outcomes = []
    for number in numbers:
        found = call(row, fault(row, number), row.activated if fault is making_it_live else row.values)
        assert found["spoke"], f"{errno.errorcode[number]} was not said: {found}"
        outcomes.append(ends(row, before, found))
    return one_outcome(outcomes)


def reading(row, number):
    return failing(number, row.reads, row.reading)


def making_its_file(row, number):
    return failing(number, row.files, creating=True)


def making_it_live(row, number):
    return failing(number, command=row.activating, values=row.writes_values, sending=row.sending)


def value_refused(row, before):
    """A value that the kernel or the server takes for invalid."""
    found = call(row, values={**row.values, **row.refused})
    assert found["spoke"], f"an invalid value was not said: {found}"
    return ends(row, before, found)


# others on the same host


def reverts(row, before):
    """A quarter of a second after it was set, another program sets it back."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            deadline = time.monotonic() + 20
            while not differences_of_run(before, row) and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.25)
            row.revert()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    try:
        found = call(row, settle_seconds=1.0)
    finally:
        _pid, status = os.waitpid(child, 0)
    assert status == 0, "nothing reverted it"
    drifts, words = checked()
    assert found["spoke"] or drifts == 1, f"nobody noticed: {found} {words}"
    row.stop_reverting()
    found["spoke"] = found["spoke"] or words
    return ends(row, before, found)


def differences_of_run(before, row):
    """Whether a run has got to its manifest or, before it, to the live value."""
    try:
        return row.live() != before["live"] or os.path.exists(store.MANIFEST)
    except subprocess.CalledProcessError:
        return False  # systemd gives no answer while it executes itself anew


def two_runs(row, before):
    """The second is told who holds the host, as is hosttune-drift; one that waits finds nothing to do."""
    said, says = os.pipe()
    told, tells = os.pipe()

    def stop_in_the_middle():
        renames = []

        def stop(name):
            renames.append(name)
            if renames.count("rename") == 1 and name == "rename":
                os.write(says, str(os.getpid()).encode())
                os.read(told, 1)

        at_each_write(stop)

    first = os.fork()
    if first == 0:
        os.close(said)
        os.close(tells)
        found = call(row, stop_in_the_middle, run={"id": "first", "operator": "ann"})
        os._exit(0 if not found.get("failures", ["ended"]) else 1)
    os.close(says)
    pid = os.read(said, 20).decode()
    middle = state(row)
    second = call(row)
    holder = f"run first of ann, process {pid}"
    assert holder in second["spoke"], second
    status, words = checked()
    assert status == 2 and holder in words, words
    assert not differences(middle, state(row))
    waiting = os.fork()
    if waiting == 0:
        os.close(tells)
        found = call(row, lock_wait_seconds=60.0)
        os._exit(0 if found.get("changed") is False else 1)
    os.close(tells)  # which lets the first go on
    os.close(told)
    os.close(said)
    assert os.waitpid(first, 0)[1] == 0
    assert os.waitpid(waiting, 0)[1] == 0
    converges(row)
    undoes(row, before)
    return REFUSED


def clock_jumps(row, before):
    """Ten years ahead while a run and a check work, back again for the next."""
    ahead = 10 * 365 * 86400

    def years_ahead():
        real_time, real_gmtime = time.time, time.gmtime
        time.time = lambda: real_time() + ahead
        time.gmtime = lambda *given: real_gmtime(*(given or [real_time() + ahead]))

        class Then(datetime.datetime):
            @classmethod
            def now(cls, zone=None):
                return datetime.datetime.fromtimestamp(real_time() + ahead, zone)

        datetime.datetime = Then

    found = call(row, years_ahead)
    assert not found["spoke"], found
    good = 0
    assert checked(years_ahead)[0] == good
    year = time.gmtime().tm_year + 9
    with open(store.MANIFEST) as stream:
        assert int(json.load(stream)["run"]["time"][:4]) >= year, "the clock did not jump"
    for path in (store.MANIFEST, store.LEDGER, store.LEDGER_COPY, drift.PATH):
        os.utime(path, (time.time() + ahead, time.time() + ahead))
    status, words = checked()
    assert status == good, words
    with open(drift.PATH) as stream:
        report = json.load(stream)
    assert all(entry.get("since", report["time"]) <= report["time"] for entry in report["settings"]), report
    assert call(row)["changed"] is False
    undoes(row, before)
    return CONVERGES


# damaged state


def cut(text):
    return text[: len(text) // 2]


def newer(text):
    return json.dumps({**json.loads(text), "schema": 99})


USELESS = (cut, lambda _text: "", lambda _text: "schema: 1\n")
WAIVERS = json.dumps(
    {
        "schema": 1,
        "waivers": [
            {
                **{"kind": "sysctl", "name": "vm.*", "owner": "ann", "reason": "trial", "ticket": "OPS-1"},
                "expires": "2037-01-01T00:00:00Z",
            }
        ],
    }
)


def damaged(paths, damages, judged, row, before):
    """Each damage to `paths` of a converged host; `judged` is what hosttune-drift has to end with."""
    call(row)
    if paths == (waivers.PATH,):
        with open(waivers.PATH, "w") as stream:
            stream.write(WAIVERS)
    outcomes = []
    for damage in damages:
        kept = {}
        for path in paths:
            with open(path) as stream:
                kept[path] = stream.read()
            with open(path, "w") as stream:
                stream.write(damage(kept[path]))
        broken = state(row)
        status, words = checked()
        assert status == judged, words
        found = call(row)
        assert paths[0] in found["spoke"], f"the damage was not said: {found}"
        if found.get("ended"):
            assert not differences(broken, state(row)), "refused and touched"
            outcomes.append(REFUSED)
        else:
            assert not found["failures"], found
            outcomes.append(SAID)
        if found.get("ended") or paths == (waivers.PATH,):  # the operator's to mend
            for path, text in kept.items():
                with open(path, "w") as stream:
                    stream.write(text)
        converges(row)
        assert checked()[0] == 0, checked()
    if paths == (waivers.PATH,):
        os.unlink(waivers.PATH)
    undoes(row, before)
    return one_outcome(outcomes)


def damage(*paths, by, judged=2):
    return functools.partial(damaged, paths, by, judged)


ERRORS = (errno.EACCES, errno.EIO, errno.EINVAL)
#: In the order of the table.
FAULTS = {
    "SIGKILL before a write": killed,
    "its disk is full": full_files,
    "the ledger's disk is full": full_state,
    "the manifest's disk is full": full_manifest,
    "its folder is read-only": read_only_files,
    "ledger or manifest read-only": read_only_state,
    "EACCES, EIO where it reads": functools.partial(fails, (errno.EACCES, errno.EIO), reading),
    "EACCES, EIO, EINVAL making its file": functools.partial(fails, ERRORS, making_its_file),
    "EACCES, EIO, EINVAL making it live": functools.partial(fails, ERRORS, making_it_live),
    "a value that is not taken": value_refused,
    "set back a moment later": reverts,
    "two runs at once": two_runs,
    "the clock jumps": clock_jumps,
    "manifest cut, empty, no JSON": damage(store.MANIFEST, by=USELESS),
    "manifest of a newer schema": damage(store.MANIFEST, by=(newer,)),
    "ledger cut, empty, no JSON": damage(store.LEDGER, by=USELESS, judged=0),
    "ledger and copy damaged": damage(store.LEDGER, store.LEDGER_COPY, by=USELESS),
    "ledger of a newer schema": damage(store.LEDGER, by=(newer,)),
    "waivers cut, empty, no JSON": damage(waivers.PATH, by=USELESS),
    "waivers of a newer schema": damage(waivers.PATH, by=(newer,)),
}
#: What befalls a kind through what it reads and writes itself.
OF_ITS_OWN = (
    "its disk is full",
    "its folder is read-only",
    "EACCES, EIO where it reads",
    "EACCES, EIO, EINVAL making its file",
    "EACCES, EIO, EINVAL making it live",
    "a value that is not taken",
    "set back a moment later",
)


def wipe():
    shutil.rmtree("/etc/hosttune", ignore_errors=True)
    shutil.rmtree(STATE, ignore_errors=True)


def not_applicable(command, says):
    """Asserts that the command still says so."""
    argv = ["sh", "-c", f"cd {os.path.dirname(os.path.abspath(__file__))}; {command}"]
    ended = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    assert ended.returncode and says in ended.stdout + ended.stderr, f"{command}: {ended}"
    return f"not applicable: `{command}` says `{says}`"


def cell(row, name):
    """One cell of the table: {"outcome"} or {"wrong"}, and how long it took."""
    started = time.monotonic()
    wipe()
    try:
        shown_by = row.lacks.get(name) or (row.shown_by if name in OF_ITS_OWN else None)
        if shown_by:
            found = {"outcome": not_applicable(*shown_by)}
        else:
            os.makedirs(STATE, 0o700)
            found = {"outcome": FAULTS[name](row, state(row))}
    except BaseException:
        found = {"wrong": traceback.format_exc()}
        call(row, owners={}, present=False)
    wipe()
    return {**found, "seconds": round(time.monotonic() - started, 2)}


def table(asked):
    found = {}
    for kind in asked["kinds"]:
        row = ROWS[kind]
        Host.own_kernel = row.own_kernel
        row.set_up()
        try:
            found[kind] = {name: cell(row, name) for name in FAULTS if name in asked.get("faults", FAULTS)}
        finally:
            row.tear_down()
    return found


# a run whose connection is cut: test_faults.py does that from outside


def rows_of(asked):
    """The rows asked for as one; they have to agree on own_kernel."""
    rows = [ROWS[kind] for kind in asked["kinds"]]
    assert len({row.own_kernel for row in rows}) == 1
    Host.own_kernel = rows[0].own_kernel
    return Together(rows)


def set_up(asked):
    wipe()
    for row in rows_of(asked).rows:
        row.set_up()


def tear_down(asked):
    wipe()
    for row in rows_of(asked).rows:
        row.tear_down()


def slow(asked):
    """One call of the engine that, once its ledger is written, says so by a file and dawdles."""
    names = []

    def dawdle(name):
        names.append(name)
        if names.count("rename") > 3 and name in ("rename", "run", "write_value"):
            with open(asked["started"], "w"):
                time.sleep(0.3)

    return call(rows_of(asked), lambda: at_each_write(dawdle))


def finish(asked):
    """What comes of it: the next run waits for one that has not noticed, and mends one that was ended."""
    together = rows_of(asked)
    try:
        found = call(together, lock_wait_seconds=60.0)
        assert found.get("changed") is asked["ended"], found
        converges(together)
        undoes(together, asked["before"])
    except BaseException:
        return {"wrong": traceback.format_exc()}
    return {"outcome": CONVERGES}


COMMANDS = {
    "table": table,
    "set-up": set_up,
    "state": lambda asked: state(rows_of(asked)),
    "slow": slow,
    "finish": finish,
    "tear-down": tear_down,
}


def main():
    asked = json.load(sys.stdin)
    answer = sys.stdout
    sys.stdout = sys.stderr
    json.dump(COMMANDS[sys.argv[1]](asked), answer)


if __name__ == "__main__":
    main()
