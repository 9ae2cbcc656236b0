"""A device that dies: its successor serves exactly the requests again that were under way, oldest first."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import time

import pytest

from transfuse.errors import RingError
from transfuse.transports.virtqueue import inflight as region
from transfuse.transports.virtqueue.inflight import Inflight
from transfuse.transports.virtqueue.layout import F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED
from transports.virtqueue.rings import GUEST, KINDS, Arena, Rings, form_named


@contextlib.contextmanager
def part_of(form, size, packed):
    """One queue's part of a new region."""
    fd, total = region.create(1, size, packed)
    try:
        yield Inflight(form.Mapping(fd, 0, total), 1, size, packed).queue(0)
    finally:
        os.close(fd)


def add(rings, token, segments=1, room=0):
    """A request whose readable bytes are its token."""
    at = rings.arena.room(8)
    rings.arena.write(at, struct.pack("<Q", token))
    each = 8 // segments
    pieces = [(at + i * each, each) for i in range(segments)]
    assert rings.driver.add(pieces, [(rings.arena.room(room), room)] if room else [], token)
    rings.driver.publish()


def token_of(chain):
    return struct.unpack("<Q", chain.gather(0, 8))[0]


def pop_all(device):
    chains = []
    while (chain := device.pop()) is not None:
        chains.append(chain)
    return chains


@pytest.mark.parametrize("features", KINDS)
@pytest.mark.parametrize("extra", [0, F_EVENT_IDX | F_INDIRECT_DESC, F_IN_ORDER])
def test_requests_under_way_come_again_in_the_order_they_came(arena, form, features, extra):
    features |= extra
    with part_of(form, 16, bool(features & F_RING_PACKED)) as part:
        rings = Rings(arena, features, 16, inflight=part)
        for token in range(6):
            add(rings, token, 1 + token % 2, room=8)
        chains = [rings.device.pop() for _ in range(5)]
        for token in (0, 3, 1) if not extra & F_IN_ORDER else (0, 1):
            assert rings.device.push(chains[token], token)
        device = rings.attach(inflight=part)
        expected = [2, 4, 5] if not extra & F_IN_ORDER else [2, 3, 4, 5]
        again = pop_all(device)
        assert [token_of(chain) for chain in again] == expected
        assert [chain.writable for chain in again] == [8] * len(expected)
        for chain in reversed(again):
            assert device.push(chain, 8)
        done = []
        while (got := rings.driver.take_used()) is not None:
            done.append(got[0])
        assert sorted(done) == list(range(6))
        add(rings, 100)
        assert [token_of(chain) for chain in pop_all(device)] == [100]
        del part, chains, again, chain


@pytest.mark.parametrize("features", KINDS)
def test_nothing_comes_again_after_a_clean_stop(arena, form, features):
    with part_of(form, 4, bool(features & F_RING_PACKED)) as part:
        rings = Rings(arena, features, 4, inflight=part)
        for token in range(9):
            add(rings, token, 2)
            chain = rings.device.pop()
            rings.device.push(chain, 0)
            rings.driver.take_used()
            rings.device.stop()
            rings.attach(base=rings.device.base, inflight=part)
            assert rings.device.pop() is None
        del part


@pytest.mark.parametrize("features", KINDS)
def test_a_device_without_work_waits_after_requests_that_come_again(arena, form, features):
    with part_of(form, 4, bool(features & F_RING_PACKED)) as part:
        rings = Rings(arena, features, 4, inflight=part)
        add(rings, 7)
        rings.device.pop()
        device = rings.attach(inflight=part)
        assert device.arm() is True
        assert token_of(device.pop()) == 7
        assert device.arm() is False
        del part


# -- a crash after any step


class Crashes:
    """A plain device over a small ring. Each line of it that changes memory leaves a state that a crash could leave."""

    def __init__(self, features: int, size: int) -> None:
        self.form = form_named("plain")
        self.packed = bool(features & F_RING_PACKED)
        self.arena = Arena(self.form, 1 << 14)
        self.fd, self.total = region.create(1, size, self.packed)
        part = Inflight(self.form.Mapping(self.fd, 0, self.total), 1, size, self.packed).queue(0)
        self.rings = Rings(self.arena, features, size, inflight=part)
        self.states: list[tuple[bytes, bytes]] = []

    def close(self) -> None:
        self.rings.device = self.rings.driver = None
        self.arena.close()
        os.close(self.fd)

    def _note(self) -> None:
        state = self.arena.bytes[:], os.pread(self.fd, self.total, 0)
        if not self.states or self.states[-1] != state:
            self.states.append(state)

    def _trace(self, frame, event, arg):
        if "transports/virtqueue" not in frame.f_code.co_filename:
            return None
        self._note()
        return self._trace

    def watch(self, call, *arguments):
        """Make `call`, and keep every state that it goes through."""
        self.states.clear()
        sys.settrace(self._trace)
        try:
            return call(*arguments)
        finally:
            sys.settrace(None)
            self._note()

    def used_marker(self) -> slice:
        """Where the driver sees that the next request was given back."""
        if self.packed:
            start = self.rings.areas[0] - GUEST + 16 * self.rings.device._used + 14
        else:
            start = self.rings.areas[2] - GUEST + 2
        return slice(start, start + 2)

    def after(self, state: tuple[bytes, bytes]) -> list[int]:
        """The tokens that a new device serves, if the old one died in that state."""
        memory, noted = state
        arena = Arena(self.form, len(memory))
        arena.bytes[:] = memory
        fd = os.memfd_create("inflight", os.MFD_CLOEXEC)
        os.write(fd, noted)
        part = Inflight(self.form.Mapping(fd, 0, self.total), 1, self.rings.size, self.packed).queue(0)
        os.close(fd)
        rings = Rings(
            arena,
            self.rings.features,
            self.rings.size,
            areas=self.rings.areas,
            table_entries=0,
            driver=False,
            inflight=part,
        )
        found = [token_of(chain) for chain in pop_all(rings.device)]
        del rings
        arena.close()
        return found


@pytest.mark.parametrize("features", KINDS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_crash_after_any_step_loses_and_repeats_nothing(features, rng, size):
    if not features & F_RING_PACKED and size == 5:
        size = 8
    crashes = Crashes(features, size)
    rings = crashes.rings
    unfinished: list[int] = []
    held = []
    checked = 0
    for token in range(40):
        if len(held) < size and rings.driver.free > 1 or size == 1 and not held:
            crashes.arena._top = max(crashes.arena._top % 8192, 2048)
            add(rings, token, rng.randint(1, min(2, rings.driver.free)))
            unfinished.append(token)
            held.append(crashes.watch(rings.device.pop))
            for state in crashes.states:
                assert crashes.after(state) == unfinished
                checked += 1
        if held and (rng.randrange(3) or rings.driver.free < 2):
            chain = held.pop(rng.randrange(len(held)))
            given = token_of(chain)
            marker = crashes.used_marker()
            before = crashes.arena.bytes[marker]
            crashes.watch(rings.device.push, chain, 0)
            left = [token for token in unfinished if token != given]
            for state in crashes.states:
                seen = state[0][marker] != before
                assert crashes.after(state) == (left if seen else unfinished)
                checked += 1
            unfinished = left
            assert rings.driver.take_used() == (given, 0)
    assert checked > 100
    crashes.close()


@pytest.mark.parametrize("features", KINDS)
@pytest.mark.parametrize("extra", [0, F_EVENT_IDX | F_INDIRECT_DESC, F_IN_ORDER])
def test_a_device_killed_at_any_time_loses_and_repeats_nothing(make_arena, form, features, extra, rng):
    features |= extra
    packed = bool(features & F_RING_PACKED)
    size = 16
    for _ in range(8):
        arena = make_arena(1 << 16)
        with part_of(form, size, packed) as part:
            rings = Rings(arena, features, size, device=False, table_entries=4)
            places = [(arena.room(4), arena.room(4), arena.room(8)) for _ in range(size)]
            free = list(range(size))
            killed_at = time.monotonic() + rng.uniform(0, 0.02)
            child = os.fork()
            if child == 0:
                serve_for_ever(rings, part, rng)
            outstanding = {}
            count = 0
            while time.monotonic() < killed_at:
                while free and rings.driver.free >= 3:
                    place = free.pop()
                    arena.write(places[place][0], struct.pack("<I", count))
                    arena.write(places[place][1], struct.pack("<I", 0))
                    segments = [(address, 4) for address in places[place][:2]]
                    assert rings.driver.add(segments, [(places[place][2], 8)], (count, place))
                    outstanding[count] = place
                    count += 1
                rings.driver.publish()
                while (got := rings.driver.take_used()) is not None:
                    free.append(outstanding.pop(got[0][0]))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            while (got := rings.driver.take_used()) is not None:
                outstanding.pop(got[0][0])
            chains = pop_all(rings.attach(inflight=part))
            assert [token_of(chain) for chain in chains] == sorted(outstanding)
            for chain in chains:
                assert rings.device.push(chain, 0)
            for _ in chains:
                outstanding.pop(rings.driver.take_used()[0][0])
            assert not outstanding
            del part, chains
        rings.driver = rings.device = None


def serve_for_ever(rings, part, rng):
    """A child: answers in random order until it is killed."""
    try:
        device = rings.attach(inflight=part)
        held = []
        while True:
            chain = device.pop()
            if chain is not None:
                held.append(chain)
            if held and (chain is None or rng.randrange(2)):
                device.push(held.pop(rng.randrange(len(held))), 0)
    finally:
        os._exit(1)


# -- a region that makes no sense


def test_each_queue_has_its_part(form):
    for packed, each in ((False, 128), (True, 256)):
        fd, total = region.create(3, 7 if packed else 4, packed)
        assert region.queue_bytes(7 if packed else 4, packed) * 3 == total
        assert region.queue_bytes(7 if packed else 4, packed) == (256 if packed else 128)
        inflight = Inflight(form.Mapping(fd, 0, total), 3, 7 if packed else 4, packed)
        inflight.queue(2)[0] = 9
        assert os.pread(fd, 1, 2 * each) == b"\x09"
        with pytest.raises(RingError, match="no part"):
            inflight.queue(3)
        with pytest.raises(RingError, match="4 queues"):
            Inflight(form.Mapping(fd, 0, total), 4, 7 if packed else 4, packed)
        os.close(fd)


def test_a_region_never_shrinks():
    fd, total = region.create(1, 8, False)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, total - 1)
    os.close(fd)


@pytest.mark.parametrize("features", KINDS)
@pytest.mark.parametrize(("offset", "value", "match"), [(8, 2, "version 2"), (10, 5, "5 entries")])
def test_a_region_of_another_kind_is_refused(arena, form, features, offset, value, match):
    with part_of(form, 4, bool(features & F_RING_PACKED)) as part:
        rings = Rings(arena, features, 4, inflight=part)
        part[offset : offset + 2] = value.to_bytes(2, sys.byteorder)
        with pytest.raises(RingError, match=match):
            rings.attach(inflight=part)
        with pytest.raises(RingError, match="bytes for a queue of 4"):
            rings.attach(inflight=part[:64])
        rings.driver = rings.device = None
        del part


@pytest.mark.parametrize("features", KINDS)
def test_nonsense_in_the_region_breaks_the_queue_at_most(make_arena, form, features, rng):
    arena = make_arena(1 << 16)
    packed = bool(features & F_RING_PACKED)
    outcomes = set()
    for _ in range(400):
        arena.clear()
        with part_of(form, 4, packed) as part:
            rings = Rings(arena, features, 4, inflight=part)
            for token in range(2):
                add(rings, token, 2)
            held = [rings.device.pop(), rings.device.pop()]
            rings.device.push(held[0], 0)
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(12, len(part) - 2)
                part[at : at + 2] = rng.choice([b"\0\0", b"\1\0", b"\2\0", b"\4\0", b"\xff\xff", rng.randbytes(2)])
            try:
                if rng.randrange(2):
                    rings.attach(inflight=part)
                    held = []
                for chain in held[1:]:
                    rings.device.push(chain, 0)
                for _ in range(6):
                    chain = rings.device.pop()
                    if chain is not None:
                        rings.device.push(chain, 0)
                outcomes.add("fine")
            except RingError:
                outcomes.add("refused")
            del part
    assert outcomes == {"fine", "refused"}
