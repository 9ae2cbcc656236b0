"""When a reader looks instead of sleeping: the policy over a pipe and a clock of our own, and both forms on a mount."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading

import pytest

from interop.kernel import later
from transfuse import mount
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.transports import dev_fuse, spin
from transfuse.transports.spin import BUSY_NS, GAP_NS, LOST_NS, QUICK, SPIN_NS, WINDOW_NS, Spin

MS = 1_000_000


class World:
    """A pipe with a reader, and a clock that stands unless somebody yields or the reader sleeps."""

    def __init__(self, monkeypatch):
        self.now = 10 * WINDOW_NS
        self.out, self.into = os.pipe()
        self.spin = Spin(self.out)
        self.room = bytearray(16)
        self.on_yield = [1000]
        """What a sched_yield() takes, one after the other; the last one for ever."""
        self.yields = 0
        self.due: int | None = None
        """When the next request comes."""
        monkeypatch.setattr(spin.time, "monotonic_ns", lambda: self.now)
        monkeypatch.setattr(spin.os, "sched_yield", self._yield)
        self._readv = os.readv
        monkeypatch.setattr(spin.os, "readv", self._read)

    def close(self):
        os.close(self.out)
        os.close(self.into)

    def looks(self):
        return bool(fcntl.fcntl(self.out, fcntl.F_GETFL) & os.O_NONBLOCK)

    def _yield(self):
        self.yields += 1
        self.now += self.on_yield.pop(0) if len(self.on_yield) > 1 else self.on_yield[0]

    def _read(self, fd, room):
        assert self.due is not None, "nothing comes"
        if self.now < self.due:
            if self.looks():
                raise BlockingIOError
            self.now = self.due
        os.write(self.into, b"request")
        self.due = None
        return self._readv(fd, room)

    def request(self, after_ns=5000):
        """One request that comes so long after the last answer; True if the reader was awake when it came."""
        self.due = self.now + after_ns
        assert self.spin.read((self.room,)) == 7
        return self.looks()

    def quick_ones(self):
        for _ in range(QUICK):
            assert not self.request()


@pytest.fixture
def world(monkeypatch):
    made = World(monkeypatch)
    yield made
    made.close()


def test_first_requests_are_waited_for_asleep(world):
    world.quick_ones()
    assert world.yields == 0


def test_after_enough_quick_ones_it_looks(world):
    world.quick_ones()
    assert world.request()
    assert world.yields == 5


def test_a_slow_one_among_them_starts_the_count_again(world):
    for _ in range(QUICK - 1):
        world.request()
    assert not world.request(SPIN_NS + 1)
    world.quick_ones()
    assert world.request()


def test_what_does_not_come_in_time_is_waited_for_asleep(world):
    world.quick_ones()
    world.request()
    assert not world.request(MS)
    assert world.yields <= 5 + SPIN_NS // 1000 + 1, "it looked for SPIN_NS, not longer"
    world.quick_ones()
    assert world.request()


def test_others_who_need_the_cpu_end_it_for_a_while(world):
    world.quick_ones()
    world.on_yield = [3 * MS, 1000]
    assert not world.request(3 * MS + 1)
    yields = world.yields
    began = world.now
    while world.now - began < BUSY_NS - MS:
        assert not world.request()
    assert world.yields == yields
    world.now += 2 * MS
    assert world.request()


def test_short_turns_of_others_are_put_up_with(world):
    world.quick_ones()
    for _ in range(50):
        world.on_yield = [GAP_NS + 1, 1000]
        world.now += WINDOW_NS // 40
        assert world.request(GAP_NS + 2)


def test_many_short_turns_together_are_too_much(world):
    world.quick_ones()
    turns = 0
    world.on_yield = [GAP_NS + 1]
    while world.request(GAP_NS):
        turns += 1
        assert turns < 2 * LOST_NS // GAP_NS
    assert turns >= LOST_NS // (GAP_NS + 1) - 1


# ---- on a mount

ASK = """
import os, sys, time
end = time.monotonic() + float(sys.argv[2])
count = 0
while time.monotonic() < end:
    os.path.exists(f"{sys.argv[1]}/missing-{count}")
    count += 1
"""


@pytest.mark.interop
@pytest.mark.needs("root", "/dev/fuse")
@pytest.mark.parametrize("form", ["native", "plain"])
def test_reader_looks_while_a_client_asks_and_sleeps_when_it_is_gone(form, tmp_path, monkeypatch):
    """Other load can keep it from looking at all, so the numbers are made generous; that it stops is the point."""
    if form == "plain":
        monkeypatch.setattr(dev_fuse, "_devloop", None)
    elif dev_fuse._devloop is None:
        pytest.skip("the plain form runs")
    generous = {"SPIN_NS": 100 * MS, "GAP_NS": 1000 * MS}
    for name, value in generous.items():
        monkeypatch.setattr(spin, name, value)
    monkeypatch.setattr(dev_fuse, "NUMBERS", (QUICK, 100 * MS, 1000 * MS, LOST_NS, WINDOW_NS, BUSY_NS))

    def flags() -> int:
        return fcntl.fcntl(mounted.transport.fd, fcntl.F_GETFL)

    with mount(MemoryFilesystem(), tmp_path) as mounted:
        assert not flags() & os.O_NONBLOCK
        client = subprocess.Popen([sys.executable, "-c", ASK, str(tmp_path), "1"])
        seen = set()
        while client.poll() is None:
            seen.add(bool(flags() & os.O_NONBLOCK))
        assert True in seen, "it never looked"
        thread, _ = later(lambda: threading.Event().wait(0.5))
        thread.join()
        assert not flags() & os.O_NONBLOCK, "it still looks although nobody asks"
        assert os.listdir(tmp_path) == []
