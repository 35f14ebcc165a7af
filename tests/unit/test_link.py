"""The unit that sets again what drivers lose: when it looks, what it sets, and whom it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_host import as_root
from hosttune import link, lock, store
from hosttune.link_events import LOST, Event
from hosttune.model import Refusal
from irq_host import IrqHost

ROOT = Path(__file__).resolve().parents[2]
ASKED = {"interrupts": {"irq": {"enp0s3/0": "2", "enp0s3/1": "3", "ens4/0": "2-3"}}}
UP = [Event("link", "enp0s3", "up")]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A converged host."""
    as_root(monkeypatch)
    host = IrqHost(tmp_path)
    assert host.apply(ASKED, disruption_allowed="moves").failures == []
    host.live_writes.clear()
    return host


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def said():
    return []


@pytest.fixture
def keeper(host, said, clock):
    return link.Link(host, lambda level, text: said.append((level, text)), clock)


def move(host, irq, cpus="0-3"):
    host.put(f"/proc/irq/{irq}/smp_affinity_list", f"{cpus}\n")


def test_what_is_right_is_neither_written_nor_locked(host, keeper, said, monkeypatch):
    monkeypatch.setattr(lock, "hold", lambda *_args: pytest.fail("took the lock"))
    before = host.snapshot(times=True)
    keeper.look(UP)
    assert host.snapshot(times=True) == before
    assert host.live_writes == said == []


def test_only_what_differs_is_set_again_and_said_with_its_cause(host, keeper, said):
    move(host, 26)
    move(host, 24, "1")  # of queue `other`, which nobody asked for
    keeper.look([*UP, *UP, Event("ethtool", "enp0s3", "channels changed")])
    assert host.live_writes == ["/proc/irq/26/smp_affinity_list"]
    assert said == [
        (
            5,
            "irq enp0s3/0: virtio2-input.0=2 virtio2-output.0=0-3 -> 2 "
            "(after: enp0s3 up, enp0s3 channels changed)",
        )
    ]
    assert keeper.wakes()[0] is None


def test_other_numbers_after_a_driver_was_loaded_anew(host, keeper, said):
    """The queue keeps its name, whatever numbers its interrupts have now."""
    text = host.text("/proc/interrupts")
    for old, new in ((29, 51), (30, 52), (31, 53)):
        (host.folder / f"proc/irq/{old}").rename(host.folder / f"proc/irq/{new}")
        text = text.replace(f"  {old}:", f"  {new}:")
        folder = host.folder / "sys/devices/pci0000:00/0000:00:04.0/msi_irqs"
        (folder / str(old)).rename(folder / str(new))
        move(host, new)
    host.put("/proc/interrupts", text)
    keeper.look([Event("net", "ens4", "add")])
    assert [host.cpus(irq) for irq in (51, 52, 53)] == ["2-3", "2-3", "0-3"]


def test_a_run_that_holds_the_lock_is_waited_for(host, keeper, monkeypatch):
    """What that run has set by then is not written again."""
    waits = threading.Event()
    sleep = lock.time.sleep
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: (waits.set(), sleep(seconds)))
    move(host, 25)
    move(host, 27)
    with lock.hold(host.path(lock.PATH), "run 7"):
        looking = threading.Thread(target=keeper.look, args=(UP,))
        looking.start()
        assert waits.wait(60)
        assert host.live_writes == []
        move(host, 27, "3")
    looking.join(60)
    assert host.live_writes == ["/proc/irq/25/smp_affinity_list"]


def test_a_run_that_never_ends_is_said_and_it_is_tried_again(host, keeper, said, monkeypatch):
    monkeypatch.setattr(link, "LOCK_WAIT_SECONDS", 0.0)
    move(host, 25)
    with lock.hold(host.path(lock.PATH), "run 7 of alice"):
        keeper.look(UP)
    assert host.live_writes == []
    assert "run 7 of alice" in said[0][1]
    assert keeper.wakes() == (link.AGAIN_SECONDS, link.AGAIN)
    keeper.look([link.AGAIN])
    assert host.cpus(25) == "2"
    assert keeper.wakes()[0] is None


def test_it_does_not_loop_against_another_master(host, keeper, said, clock, monkeypatch):
    monkeypatch.setattr("hosttune.foreign_programs.running", lambda *_args: ["irqbalance.service"])
    for _ in range(20):
        move(host, 25)
        keeper.look(UP)
        clock.now += 1
    assert len(host.live_writes) == link.FIGHT_CORRECTIONS
    assert [level for level, _text in said] == [5] * 5 + [4]
    assert said[-1][1] == (
        "irq enp0s3/0: was set 5 times within 60 s and is virtio2-input.0=0-3 virtio2-output.0=2 again: left "
        "alone for 60 s. irqbalance.service sets it too"
    )
    # The others are not left alone with it.
    move(host, 28)
    keeper.look(UP)
    assert host.cpus(28) == "3"


def test_a_fight_is_looked_at_again_and_rests_longer_each_time(host, keeper, said, clock):
    rests = []
    for _ in range(400):
        move(host, 25)
        keeper.look(UP)
        seconds, why = keeper.wakes()
        if seconds is None:
            clock.now += 1
        else:
            assert why is link.REST_ENDED
            rests.append(round(seconds))
            clock.now += seconds
    assert rests[:8] == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    # It stays right after the rest: that was it.
    keeper.look([link.REST_ENDED])
    clock.now += 61
    keeper.look(UP)
    for _ in range(6):
        move(host, 25)
        keeper.look(UP)
    assert round(keeper.wakes()[0]) == 60


def test_links_that_flap_slowly_are_no_fight(host, keeper, said, clock):
    for _ in range(30):
        move(host, 25)
        keeper.look(UP)
        clock.now += 15
    assert [level for level, _text in said] == [5] * 30


def rest_of(keeper, clock):
    """Has it try again as often as it wants to; how often that is."""
    tries = 0
    while keeper.wakes()[1] is link.AGAIN:
        clock.now += keeper.wakes()[0]
        keeper.look([link.AGAIN])
        tries += 1
    return tries


def test_what_could_not_be_set_is_said_once_and_tried_a_few_times(host, keeper, said, clock):
    host.played["refuses"] = (25,)
    move(host, 25)
    keeper.look(UP)
    assert rest_of(keeper, clock) == link.TRIES
    assert [level for level, _text in said] == [4]
    assert "the kernel manages this IRQ itself" in said[0][1]
    assert len(host.live_writes) == link.TRIES + 1
    assert keeper.wakes()[0] is None


def test_a_cpu_that_is_away_is_no_fight(host, keeper, said, clock):
    """Its interrupts wait for it, and have it again at once when it is back."""
    host.put("/sys/devices/system/cpu/online", "0-1,3\n")
    move(host, 25)
    move(host, 26)
    for _ in range(10):
        keeper.look(UP)
        rest_of(keeper, clock)
    assert [level for level, _text in said] == [4]
    assert "none of these CPUs is online" in said[0][1]
    host.put("/sys/devices/system/cpu/online", "0-3\n")
    keeper.look([Event("device", "cpu2", "online")])
    assert host.cpus(25) == host.cpus(26) == "2"
    assert said[1] == (5, "irq enp0s3/0: 0-3 -> 2 (after: cpu2 online)")


def test_what_is_waived_is_left_alone(host, keeper):
    waiver = {"kind": "irq", "name": "enp0s3/0", "reason": "a trial", "owner": "alice", "ticket": "OPS-1"}
    document = {"schema": 1, "waivers": [{**waiver, "expires": "2099-01-01T00:00:00Z"}]}
    host.put("/etc/hosttune/waivers.json", json.dumps(document))
    move(host, 25)
    move(host, 27)
    keeper.look(UP)
    assert host.live_writes == ["/proc/irq/27/smp_affinity_list"]


def test_what_waits_for_the_closed_market_waits_until_a_boot(tmp_path, monkeypatch, said):
    as_root(monkeypatch)
    host = IrqHost(tmp_path)
    host.apply(ASKED)
    keeper = link.Link(host, lambda level, text: said.append(text))
    keeper.look(UP)
    assert host.live_writes == []
    host.put("/proc/stat", "cpu 1\nbtime 99999999999\n")
    keeper = link.Link(host, lambda level, text: said.append(text))
    keeper.look([link.START])
    assert host.cpus(25) == "2"


def test_queues_of_nics_are_kept_as_well(host, keeper, said):
    path = "/sys/class/net/ens4/queues/tx-0/xps_cpus"
    host.put(path, "0\n")
    asked = {"network": {"sysfs": {"class/net/ens4/queues/tx-0/xps_cpus": "c", "kernel/mm/ksm/run": "0"}}}
    host.put("/sys/kernel/mm/ksm/run", "0\n")
    host.apply({**ASKED, **asked}, disruption_allowed="moves")
    host.put(path, "0\n")
    host.put("/sys/kernel/mm/ksm/run", "1\n")
    keeper.look([Event("ethtool", "ens4", "channels changed")])
    assert host.text(path) == "c\n"
    assert host.text("/sys/kernel/mm/ksm/run") == "1\n"
    assert len(said) == 1


def test_a_manifest_of_another_hand_sets_nothing_and_a_new_one_counts(host, keeper, said):
    good = host.text(store.MANIFEST)
    move(host, 25)
    for text, says in ((good.replace('"value": "2"', '"value": "0"'), "another hand"), ("{", "is not JSON")):
        host.put(store.MANIFEST, text)
        keeper.look(UP)
        keeper.look(UP)
        assert says in said[-1][1]
    assert len(said) == 2
    assert host.live_writes == []
    host.put(store.MANIFEST, good)
    keeper.look(UP)
    assert host.cpus(25) == "2"


def test_a_ledger_that_cannot_be_used_is_said(host, keeper, said):
    for path in (store.LEDGER, store.LEDGER_COPY):
        host.put(path, "{")
    move(host, 25)
    keeper.look(UP)
    assert host.live_writes == []
    assert "is not JSON" in said[0][1]


def test_a_host_without_a_manifest_keeps_nothing(tmp_path, said):
    keeper = link.Link(IrqHost(tmp_path), lambda level, text: said.append(text))
    keeper.look([link.START])
    assert said == []
    assert keeper.concerned([*UP, LOST]) == []


@pytest.mark.parametrize(
    ("event", "counts"),
    [
        (Event("link", "ens4", "up"), True),
        (Event("link", "veth7", "up"), False),
        (Event("ethtool", "enp0s3", "rings changed"), True),
        (Event("ethtool", "enp9s0", "rings changed"), False),
        (Event("net", "ens4", "add"), True),
        (Event("net", "docker0", "add"), False),
        (Event("device", "cpu3", "online"), True),
        (Event("device", "0000:00:04.0", "bind"), True),
        (LOST, True),
    ],
    ids=str,
)
def test_which_events_concern_it(keeper, event, counts):
    assert keeper.concerned([event]) == ([event] if counts else [])


class Told:
    """A listener that plays heaps of events; it ends the unit when there are no more."""

    class Over(Exception):
        pass

    def __init__(self, *heaps):
        self.heaps, self.waited = list(heaps), []

    def wait(self, seconds):
        self.waited.append(seconds)
        if not self.heaps:
            raise Told.Over
        return self.heaps.pop(0)


def test_a_heap_of_events_is_one_look(host, keeper, monkeypatch):
    looks = []
    monkeypatch.setattr(keeper, "look", looks.append)
    veth = [Event("link", "veth7", "up")]
    channels = [Event("ethtool", "enp0s3", "channels changed")]
    quiet = [[]] * 3
    listener = Told(veth, UP, veth, channels, UP)
    monkeypatch.setattr(link, "QUIET_SECONDS", 60.0)
    monkeypatch.setattr(link, "LONGEST_SECONDS", 120.0)
    with pytest.raises(Told.Over):
        link.keep(listener, keeper)
    assert looks == [[link.START]]  # the heap was still growing
    assert all(seconds is None or seconds <= 60.0 for seconds in listener.waited)
    monkeypatch.setattr(link, "QUIET_SECONDS", 0.0)
    listener = Told(veth, UP + channels, *quiet, UP)
    looks.clear()
    with pytest.raises(Told.Over):
        link.keep(listener, keeper)
    assert looks == [[link.START], UP + channels, UP]


def test_it_looks_again_without_an_event_where_something_is_left_to_do(host, keeper, monkeypatch):
    looks = []
    wakes = iter([(0.0, link.AGAIN), (0.0, link.REST_ENDED), (None, link.REST_ENDED)])
    monkeypatch.setattr(keeper, "look", looks.append)
    monkeypatch.setattr(keeper, "wakes", lambda: next(wakes))
    with pytest.raises(Told.Over):
        link.keep(Told(), keeper)
    assert looks == [[link.START], [link.AGAIN], [link.REST_ENDED]]


def test_the_command_is_one_file_without_the_engine(host, tmp_path):
    builder = [sys.executable, str(ROOT / "tools/build_zipapp.py")]
    listed = {}
    for module in ("cli", "link"):
        target = tmp_path / "built" / module
        subprocess.run([*builder, str(target), module], check=True, capture_output=True)
        listed[module] = subprocess.run(
            [sys.executable, "-m", "zipfile", "-l", str(target)], check=True, capture_output=True, text=True
        ).stdout
    assert "hosttune/kinds/irq.py" in listed["link"]
    assert "hosttune/engine.py" not in listed["link"]
    assert "hosttune/link.py" not in listed["cli"]
    ended = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "built/link"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "systemctl stop hosttune-link" in ended.stdout


def test_refusals_are_no_surprise(host, keeper, monkeypatch):
    """Whatever a reader refuses is said; the unit goes on."""

    def refuse(*_args):
        raise Refusal("cannot be read", thing="x")

    monkeypatch.setattr(keeper, "_wrong", refuse)
    keeper.look(UP)
    assert keeper.wakes()[1] is link.AGAIN
