"""Both sides of a queue together: traffic of every kind, wake-ups, and the life of a device queue."""

from __future__ import annotations

import os
import threading
import time

import pytest

from transfuse.errors import QueueStopped, RingError
from transfuse.transports.virtqueue.layout import (
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_VERSION_1,
    packed_base,
)
from transports.virtqueue.rings import FEATURES, GUEST, KINDS, Rings
from transports.virtqueue.traffic import Traffic

REQUEST = b"0123456789"


def one_request(rings, token="token", room=20):
    """A request of two segments each way, published."""
    arena = rings.arena
    first, second, third, fourth = (arena.room(n, 1) for n in (4, 6, room // 2, room - room // 2))
    arena.write(first, REQUEST[:4])
    arena.write(second, REQUEST[4:])
    assert rings.driver.add([(first, 4), (second, 6)], [(third, room // 2), (fourth, room - room // 2)], token)
    rings.driver.publish()


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 64, 255])
def test_every_request_is_answered_and_no_wake_up_is_lost(arena, rng, features, size):
    if not features & F_RING_PACKED and size & (size - 1):
        pytest.skip("a split queue's size is a power of two")
    most = min(size, 20) if not features & F_INDIRECT_DESC else 20
    if size == 1 and not features & F_INDIRECT_DESC:
        most = 1
    traffic = Traffic(Rings(arena, features, size), rng, most)
    traffic.run(400)
    if features & F_IN_ORDER:
        assert traffic.order == sorted(traffic.order)


@pytest.mark.parametrize("features", FEATURES)
def test_the_largest_queue_works(make_arena, rng, features):
    rings = Rings(make_arena(1 << 26), features, 32768, table_entries=4)
    Traffic(rings, rng, 4, max_length=40).run(300)


@pytest.mark.parametrize("features", FEATURES)
def test_indices_wrap_around(arena, rng, features):
    size = 4
    if features & F_RING_PACKED:
        rings = Rings(arena, features, size, base=packed_base(3, 0, 3, 0))
    else:
        rings = Rings(arena, features, size, base=0xFFFE)
    Traffic(rings, rng, 4).run(50)


def test_a_split_queue_carries_more_requests_than_its_index_counts(arena, rng):
    rings = Rings(arena, F_VERSION_1 | F_EVENT_IDX, 256)
    at = arena.room(8)
    done = 0
    while done < 70_000:
        while rings.driver.add([(at, 8)], [], done):
            pass
        rings.driver.publish()
        while (chain := rings.device.pop()) is not None:
            assert rings.device.push(chain, 0)
        while rings.driver.take_used() is not None:
            done += 1
    assert rings.device.base == done % 65536


@pytest.mark.parametrize("features", KINDS)
def test_a_chain_is_what_the_driver_put_there(arena, features):
    rings = Rings(arena, features, 8)
    one_request(rings)
    chain = rings.device.pop()
    assert (chain.readable, chain.writable) == (10, 20)
    assert chain.gather(0, 10) == REQUEST
    assert rings.device.pop() is None
    assert rings.device.in_flight == 1
    chain.write(3, b"abcdefghijk")
    assert rings.device.push(chain, 14)
    assert rings.device.in_flight == 0
    assert rings.driver.take_used() == ("token", 14)
    assert rings.driver.take_used() is None


@pytest.mark.parametrize("features", KINDS)
def test_nothing_is_seen_before_it_is_published(arena, features):
    rings = Rings(arena, features, 8)
    at = arena.room(8)
    assert rings.driver.add([(at, 8)], [], 1)
    assert rings.driver.add([(at, 8)], [], 2)
    assert rings.device.pop() is None
    rings.driver.publish()
    assert rings.device.pop() is not None
    assert rings.device.pop() is not None
    assert rings.device.pop() is None


@pytest.mark.parametrize("features", KINDS)
def test_a_full_queue_takes_no_more_until_something_is_done(arena, features):
    rings = Rings(arena, features, 4)
    at = arena.room(8)
    assert all(rings.driver.add([(at, 8)], [], n) for n in range(4))
    assert rings.driver.free == 0
    assert not rings.driver.add([(at, 8)], [], 4)
    rings.driver.publish()
    rings.device.push(rings.device.pop(), 0)
    assert rings.driver.take_used() == (0, 0)
    assert rings.driver.add([(at, 8)], [], 4)


@pytest.mark.parametrize("features", KINDS)
def test_answers_wait_for_their_turn_in_order(arena, features):
    rings = Rings(arena, features | F_IN_ORDER, 8)
    at = arena.room(8)
    for n in range(3):
        rings.driver.add([(at, 8)], [], n)
    rings.driver.publish()
    chains = [rings.device.pop() for _ in range(3)]
    assert rings.device.push(chains[2], 0)
    assert rings.device.push(chains[1], 0)
    assert rings.driver.take_used() is None
    assert rings.device.push(chains[0], 0)
    assert [rings.driver.take_used() for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize("features", KINDS)
def test_the_driver_is_told_once_for_what_was_pushed(arena, features):
    rings = Rings(arena, features, 8)
    one_request(rings)
    assert not rings.device.should_notify()
    rings.device.push(rings.device.pop(), 0)
    assert rings.device.should_notify()
    assert not rings.device.should_notify()


@pytest.mark.parametrize("features", KINDS)
def test_arm_sees_a_request_that_came_before(arena, features):
    rings = Rings(arena, features, 8)
    assert rings.device.arm() is False
    one_request(rings)
    assert rings.device.arm() is True
    chain = rings.device.pop()
    assert rings.device.arm() is False
    rings.device.push(chain, 0)
    assert rings.driver.arm() is True
    rings.driver.take_used()
    assert rings.driver.arm() is False


@pytest.mark.parametrize("features", KINDS)
def test_a_new_device_goes_on_where_the_last_one_stopped(arena, rng, features):
    rings = Rings(arena, features, 4)
    traffic = Traffic(rings, rng, 3)
    for _ in range(20):
        traffic.run(7)
        assert rings.device.stop(1)
        rings.attach(base=rings.device.base)
        traffic.device_awake = True


# -- stopping


@pytest.mark.parametrize("features", KINDS)
def test_a_stopped_queue_writes_nothing(arena, tmp_path, features):
    rings = Rings(arena, features, 8)
    one_request(rings)
    chain = rings.device.pop()
    assert rings.device.stop(1)
    before = arena.bytes[:]
    assert rings.device.push(chain, 0) is False
    with pytest.raises(QueueStopped):
        chain.write(0, b"abc")
    (tmp_path / "file").write_bytes(b"x" * 20)
    with (tmp_path / "file").open("rb") as file, pytest.raises(QueueStopped):
        chain.pread(file.fileno(), 0, 0, 20)
    assert rings.device.arm() is False
    assert rings.device.pop() is None
    assert not rings.device.should_notify()
    assert arena.bytes[:] == before


@pytest.mark.parametrize("features", KINDS)
def test_stop_waits_for_a_write_that_is_under_way(arena, features):
    rings = Rings(arena, features, 8)
    one_request(rings)
    rings.device.begin_writing()
    try:
        assert rings.device.stop(0.01) is False
        waiting = threading.Thread(target=rings.device.stop)
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
    finally:
        rings.device.end_writing()
    waiting.join(5)
    assert not waiting.is_alive()


@pytest.mark.parametrize("features", KINDS)
def test_drain_waits_for_answers_from_other_threads(arena, features):
    rings = Rings(arena, features, 8)
    assert rings.device.drain(0)
    one_request(rings)
    chain = rings.device.pop()
    assert rings.device.drain(0.01) is False
    later = threading.Timer(0.05, rings.device.push, (chain, 5))
    later.start()
    started = time.monotonic()
    assert rings.device.drain(10) is True
    assert time.monotonic() - started < 5
    later.join()
    assert rings.driver.take_used() == ("token", 5)


# -- what is refused


@pytest.mark.parametrize(
    ("features", "size"),
    [
        (F_VERSION_1, 0),
        (F_VERSION_1, 3),
        (F_VERSION_1, 65536),
        (F_VERSION_1 | F_RING_PACKED, 0),
        (F_VERSION_1 | F_RING_PACKED, 32769),
    ],
)
def test_queues_of_impossible_size_are_refused(arena, features, size):
    with pytest.raises(RingError, match="entries"):
        Rings(arena, features, size, driver=False, areas=(arena.room(16),) * 3)


@pytest.mark.parametrize("features", KINDS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_areas_that_are_not_aligned_are_refused(arena, features, which):
    rings = Rings(arena, features, 8)
    users = list(rings.users)
    users[which] += 1
    with pytest.raises(RingError, match="multiple"):
        type(rings.device)(arena.memory, 8, *users, features, rings.base)


@pytest.mark.parametrize("features", KINDS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_areas_outside_the_memory_are_refused(arena, features, which):
    rings = Rings(arena, features, 8)
    users = list(rings.users)
    for users[which] in (0, arena.user(arena.size) - 16, 2**64 - 16, 2**64 + 16):
        with pytest.raises(RingError, match="address"):
            type(rings.device)(arena.memory, 8, *users, features, rings.base)


def test_a_base_beyond_the_ring_is_refused(arena):
    for base in (packed_base(8, 1, 0, 1), packed_base(0, 1, 8, 1)):
        with pytest.raises(RingError, match="begins"):
            Rings(arena, F_VERSION_1 | F_RING_PACKED, 8, base=base, driver=False)
    with pytest.raises(RingError, match="begins"):
        Rings(arena, F_VERSION_1, 8, base=0x1_0000, driver=False)


@pytest.mark.parametrize("features", KINDS)
def test_rings_may_be_named_by_guest_addresses(arena, features):
    rings = Rings(arena, features, 8, device=False)
    device = (arena.form.PackedDevice if rings.packed else arena.form.SplitDevice)(
        arena.memory, 8, *rings.areas, features, rings.base, guest_physical=True
    )
    one_request(rings)
    assert device.pop().gather(0, 10) == REQUEST


@pytest.mark.parametrize("features", KINDS)
def test_other_memory_is_used_from_the_next_request_on(arena, features):
    rings = Rings(arena, features, 8)
    one_request(rings)
    old = rings.device.pop()
    form = arena.form
    more = form.Region(0x1000, 0x1000, 4096, arena.fd, 4096)
    rings.device.set_memory(form.GuestMemory([*arena.memory.regions, more]))
    arena.bytes[4096:4100] = b"here"
    assert rings.driver.add([(0x1000, 4)], [], "new")
    rings.driver.publish()
    assert rings.device.pop().gather(0, 4) == b"here"
    assert old.gather(0, 10) == REQUEST
    with pytest.raises(RingError, match="address"):
        rings.device.set_memory(form.GuestMemory([more]))
    with pytest.raises(RingError, match="address"):
        rings.device.pop()


@pytest.mark.parametrize("features", KINDS)
def test_more_is_written_than_the_room_is_our_own_mistake(arena, features):
    rings = Rings(arena, features, 8)
    one_request(rings)
    chain = rings.device.pop()
    for length in (-1, 21):
        with pytest.raises(ValueError, match="room"):
            rings.device.push(chain, length)
    assert rings.device.push(chain, 20)


# -- the dirty log


def dirty_pages(fd):
    return {8 * i + bit for i, byte in enumerate(os.pread(fd, 1 << 16, 0)) for bit in range(8) if byte >> bit & 1}


@pytest.mark.parametrize("features", KINDS)
@pytest.mark.parametrize("rings_too", [False, True])
def test_pages_that_were_written_are_in_the_log(arena, features, rings_too, tmp_path):
    rings = Rings(arena, features, 8)
    source = arena.room(8)
    target = arena.room(5 * 4096, 4096)
    first = target // 4096
    ring_pages = {at // 4096 for at in (rings.areas[0] if rings.packed else rings.areas[2],)}
    fd = os.memfd_create("log", os.MFD_CLOEXEC)
    os.ftruncate(fd, (GUEST + arena.size) // 4096 // 8)
    try:
        log = arena.form.DirtyLog(arena.form.Mapping(fd, 0, (GUEST + arena.size) // 4096 // 8))
        segments = [(target + 4090, 12), (target + 3 * 4096, 2 * 4096)]
        for n, (wrote, expected) in enumerate(
            [
                (0, set()),
                (6, {first}),
                (7, {first, first + 1}),
                (13, {first, first + 1, first + 3}),
                (12 + 4097, {first, first + 1, first + 3, first + 4}),
            ]
        ):
            os.pwrite(fd, bytes(1 << 16), 0)
            rings.device.set_log(None, False)
            assert rings.driver.add([(source, 8)], segments, n)
            rings.driver.publish()
            chain = rings.device.pop()  # before the log begins: it counts all the same
            rings.device.set_log(log, rings_too)
            assert rings.device.push(chain, wrote)
            assert dirty_pages(fd) == expected | (ring_pages if rings_too else set())
            rings.driver.take_used()
        os.pwrite(fd, bytes(1 << 16), 0)
        assert rings.driver.add([(source, 8)], segments, None)
        rings.driver.publish()
        chain = rings.device.pop()
        with (tmp_path / "file").open("wb+") as file:
            file.write(b"x" * 100)
            file.flush()
            assert chain.pread(file.fileno(), 0, 0, 12) == 12
        rings.device.push(chain, 0)  # as after an error: what was written before it counts
        assert dirty_pages(fd) == {first, first + 1} | (ring_pages if rings_too else set())
        rings.driver.take_used()
        os.pwrite(fd, bytes(1 << 16), 0)
        rings.device.arm()
        assert dirty_pages(fd) == ({rings.areas[2] // 4096} if rings_too else set())
        os.pwrite(fd, bytes(1 << 16), 0)
        rings.device.set_log(None, False)
        assert rings.driver.add([(source, 8)], segments, None)
        rings.driver.publish()
        rings.device.push(rings.device.pop(), 100)
        assert dirty_pages(fd) == set()
        del log
    finally:
        os.close(fd)
