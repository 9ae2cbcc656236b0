"""Rings that no driver makes: the queue breaks, and nothing else does."""

from __future__ import annotations

import struct

import pytest

from transfuse.errors import RingError
from transfuse.transports.virtqueue import layout
from transfuse.transports.virtqueue.layout import (
    DESC_AVAIL,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_VERSION_1,
)
from transports.virtqueue.rings import FEATURES, GUEST, KINDS, USER, Rings

SIZE = 8
INDIRECT = [
    pytest.param(F_VERSION_1 | F_INDIRECT_DESC, id="split"),
    pytest.param(F_VERSION_1 | F_INDIRECT_DESC | F_RING_PACKED, id="packed"),
]


def refused(rings, match):
    """The next pop breaks the queue for good; a new one over a clean ring works."""
    with pytest.raises(RingError, match=match):
        rings.device.pop()
    with pytest.raises(RingError, match=match):
        rings.device.pop()
    assert rings.device.broken is not None
    assert rings.device.arm() is False
    again = Rings(rings.arena, rings.features, SIZE)
    at = rings.arena.room(8)
    assert again.driver.add([(at, 8)], [(at, 8)], 1)
    again.driver.publish()
    assert again.device.push(again.device.pop(), 8)
    assert again.driver.take_used() == (1, 8)


# -- segments


@pytest.mark.parametrize("features", KINDS)
@pytest.mark.parametrize(
    ("address", "length"),
    [
        (0, 16),
        (GUEST - 1, 16),
        (GUEST + (1 << 22) - 8, 16),
        (GUEST + (1 << 22), 1),
        (2**64 - 8, 16),
        (GUEST, 2**32 - 1),
        (USER, 16),
    ],
)
@pytest.mark.parametrize("flags", [0, DESC_WRITE])
def test_a_segment_outside_the_memory(arena, features, address, length, flags):
    rings = Rings(arena, features, SIZE)
    rings.chain([(arena.room(8), 8, 0), (address, length, flags)])
    refused(rings, "no memory at guest address")


@pytest.mark.parametrize("features", KINDS)
def test_a_segment_of_no_bytes(arena, features):
    rings = Rings(arena, features, SIZE)
    rings.chain([(arena.room(8), 0, 0)])
    refused(rings, "no bytes")


@pytest.mark.parametrize("features", KINDS)
def test_a_readable_segment_behind_a_writable_one(arena, features):
    at = arena.room(8)
    rings = Rings(arena, features, SIZE)
    rings.chain([(at, 8, 0), (at, 8, DESC_WRITE), (at, 8, 0)])
    refused(rings, "readable descriptor after a writable one")


@pytest.mark.parametrize("features", KINDS)
def test_a_chain_without_end(arena, features):
    rings = Rings(arena, features, SIZE)
    at = arena.room(8)
    for slot in range(SIZE):
        rings.describe(slot, at, 8, DESC_NEXT | DESC_AVAIL * rings.packed, (slot + 1) % SIZE)
    if not rings.packed:
        rings.offer(3)
    refused(rings, "does not end|descriptors under way")


def test_a_chain_of_more_than_4_gib(make_arena, form):
    arena = make_arena(1 << 23)
    rings = Rings(arena, F_VERSION_1 | F_INDIRECT_DESC, SIZE, table_entries=0)
    table = rings.table([(GUEST, 1 << 23, DESC_NEXT * (i < 599), i + 1) for i in range(600)])
    rings.chain([(table, 16 * 600, DESC_INDIRECT)])
    refused(rings, "4294967296 bytes")


# -- indirect tables


@pytest.mark.parametrize("features", KINDS)
def test_an_indirect_table_that_was_not_agreed_on(arena, features):
    rings = Rings(arena, features, SIZE)
    table = rings.table([(arena.room(8), 8, 0, 0)])
    rings.chain([(table, 16, DESC_INDIRECT)])
    refused(rings, "not agreed on")


@pytest.mark.parametrize("features", INDIRECT)
@pytest.mark.parametrize("length", [0, 1, 15, 17, 16 * 32769, 2**32 - 16, 2**32 - 1])
def test_an_indirect_table_of_odd_size(arena, features, length):
    rings = Rings(arena, features, SIZE)
    table = rings.table([(arena.room(8), 8, 0, 0)])
    rings.chain([(table, length, DESC_INDIRECT)])
    refused(rings, "indirect table of")


@pytest.mark.parametrize("features", INDIRECT)
def test_an_indirect_table_outside_the_memory(arena, features):
    rings = Rings(arena, features, SIZE)
    rings.chain([(GUEST + arena.size - 16, 32, DESC_INDIRECT)])
    refused(rings, "no memory at guest address")


@pytest.mark.parametrize("features", INDIRECT)
def test_an_indirect_descriptor_with_a_next_one(arena, features):
    rings = Rings(arena, features, SIZE)
    table = rings.table([(arena.room(8), 8, 0, 0)])
    rings.chain([(table, 16, DESC_INDIRECT | DESC_NEXT), (table, 16, 0)])
    refused(rings, "with a next one")


@pytest.mark.parametrize("features", INDIRECT)
def test_an_indirect_table_in_another(arena, features):
    rings = Rings(arena, features, SIZE)
    inner = rings.table([(arena.room(8), 8, 0, 0)])
    table = rings.table([(inner, 16, DESC_INDIRECT, 0)])
    rings.chain([(table, 16, DESC_INDIRECT)])
    refused(rings, "in an indirect table")


@pytest.mark.parametrize("features", INDIRECT)
def test_an_indirect_table_behind_other_segments_is_allowed(arena, features):
    rings = Rings(arena, features, SIZE)
    first, second = arena.room(8), arena.room(8)
    arena.write(first, b"firstlysecondly!"[:8])
    arena.write(second, b"secondly")
    table = rings.table([(second, 8, DESC_NEXT, 1), (first, 4, DESC_WRITE, 0)])
    rings.chain([(first, 8, 0), (table, 32, DESC_INDIRECT | DESC_WRITE)])
    chain = rings.device.pop()
    assert chain.gather(0, chain.readable) == b"firstlyssecondly"
    assert chain.writable == 4


def test_an_indirect_table_with_a_loop_or_a_next_outside(arena):
    at = arena.room(8)
    for following, match in ((0, "does not end"), (2, "descriptor 2"), (65535, "descriptor 65535")):
        rings = Rings(arena, F_VERSION_1 | F_INDIRECT_DESC, SIZE)
        table = rings.table([(at, 8, DESC_NEXT, 1), (at, 8, DESC_NEXT, following)])
        rings.chain([(table, 32, DESC_INDIRECT)])
        refused(rings, match)


@pytest.mark.parametrize("features", INDIRECT)
def test_a_huge_table_of_more_segments_than_are_taken(arena, features):
    rings = Rings(arena, features, SIZE, table_entries=0)
    at = arena.room(8)
    table = rings.table([(at, 8, DESC_NEXT, (i + 1) & 0xFFFF) for i in range(32768)])
    rings.chain([(table, 16 * 32768, DESC_INDIRECT)])
    refused(rings, "more than 1024 segments")


@pytest.mark.parametrize("features", INDIRECT)
def test_the_largest_request_and_one_that_is_larger(arena, features):
    at = arena.room(8)
    for count in (1024, 1025):
        rings = Rings(arena, features, SIZE, table_entries=0)
        table = rings.table([(at, 8, DESC_NEXT * (i < count - 1), i + 1) for i in range(count)])
        rings.chain([(table, 16 * count, DESC_INDIRECT)])
        if count == 1024:
            assert rings.device.pop().readable == 8 * 1024
        else:
            refused(rings, "more than 1024 segments")


@pytest.mark.parametrize("features", INDIRECT)
def test_a_table_across_two_regions_is_read(make_arena, form, features):
    arena = make_arena()
    size = arena.size // 2
    halves = [form.Region(GUEST + i * size, USER + 2 * i * size, size, arena.fd, i * size) for i in range(2)]
    arena.memory = form.GuestMemory(halves)
    rings = Rings(arena, features, SIZE, table_entries=0, driver=False)
    at = arena.room(8)
    arena.write(at, b"abcdefgh")
    entries = [(at, 1, DESC_NEXT, 1), (at + 1, 1, DESC_NEXT, 2), (at + 2, 1, DESC_WRITE, 0)]
    first = rings.table(entries)
    data = arena.read(first, 48)
    table = GUEST + size - 24  # the second entry lies in both
    arena.write(table, data)
    rings.chain([(table, 48, DESC_INDIRECT)])
    chain = rings.device.pop()
    assert chain.gather(0, 2) == b"ab"
    assert chain.writable == 1


# -- more than fits


@pytest.mark.parametrize("features", KINDS)
def test_more_requests_under_way_than_the_ring_holds(arena, features):
    rings = Rings(arena, features, SIZE)
    at = arena.room(8)
    for n in range(SIZE):
        rings.describe(n, at, 8, DESC_AVAIL * rings.packed, n)
    if not rings.packed:
        rings.offer(*range(SIZE))
    for _ in range(SIZE):
        assert rings.device.pop() is not None
    assert rings.device.in_flight == SIZE
    for n in range(SIZE):  # as if they had all been given back
        rings.describe(n, at, 8, layout.DESC_USED * rings.packed, n)
    if not rings.packed:
        rings.offer(0)
    refused(rings, f"more than {SIZE} ")


# -- everything at once


@pytest.mark.parametrize("features", FEATURES)
def test_garbage_in_the_rings_breaks_the_queue_at_most(make_arena, rng, features):
    """Between any two steps of the device, bytes of the rings and tables change to what is likely to matter."""
    arena = make_arena(1 << 16)
    popped = broke = 0
    for _ in range(300):
        arena.clear()
        size = rng.choice([1, 2, 4, 8, 16])
        rings = Rings(arena, features, size, table_entries=4, driver=False)
        tables = arena.room(256)
        data = arena.room(64)
        for slot in range(size):
            rings.describe(slot, data, 16, 2 if slot & 1 else 0, 0)
        held = []
        try:
            for _ in range(40):
                tamper(rings, rng, tables, data)
                step = rng.randrange(4)
                if step < 2:
                    chain = rings.device.pop()
                    if chain is not None:
                        popped += 1
                        held.append(chain)
                        assert 0 < chain.readable + chain.writable <= 1 << 32
                        chain.gather(0, min(chain.readable, 100))
                elif step == 2 and held:
                    chain = held.pop(rng.randrange(len(held)))
                    # What a hostile driver calls writable may be its own rings.
                    chain.write(0, rng.randbytes(min(chain.writable, 32)))
                    rings.device.push(chain, min(chain.writable, rng.randrange(64)))
                    rings.device.should_notify()
                else:
                    rings.device.arm()
                assert rings.device.in_flight <= size
        except RingError:
            broke += 1
    assert popped > 100
    assert broke > 100


def tamper(rings, rng, tables, data):
    """A few descriptors, most of them good, and now and then an index that is not."""
    arena, size = rings.arena, rings.size
    for _ in range(rng.randrange(1, 4)):
        table = rng.random() < 0.3
        address, length, flags = data, rng.choice([1, 16, 64]), rng.choice([0, 0, 1, 2, 2, 3])
        following = rng.choice([0, 1, 2, 3, size - 1])
        if rng.random() < 0.2 and not table:
            address, length, flags = tables, rng.choice([16, 32, 64]), 4
        if rng.random() < 0.05:
            address = rng.choice([*rings.areas, tables, 0, GUEST + arena.size - 4, 2**64 - 4])
        if rng.random() < 0.05:
            length, flags, following = rng.choice([0, 15, 2**32 - 1]), rng.randrange(8), rng.choice([size, 65535])
        if rings.packed:
            if not table:
                flags |= rng.choice([DESC_AVAIL] * 4 + [layout.DESC_USED] * 2 + [0, DESC_AVAIL | layout.DESC_USED])
            raw = struct.pack("<QIHH", address, length, following, flags)
        else:
            raw = struct.pack("<QIHH", address, length, flags, following)
        arena.write(tables + 16 * rng.randrange(8) if table else rings.areas[0] + 16 * rng.randrange(size), raw)
    if not rings.packed and rng.random() < 0.5:
        rings.offer(rng.randrange(size) if rng.random() < 0.98 else size)
    if rng.random() < 0.02:
        arena.write(rings.areas[1], rng.randbytes(4))


# -- a device that lies to the driver


def under_way(arena, features, count=2):
    rings = Rings(arena, features, SIZE)
    at = arena.room(8)
    for n in range(count):
        assert rings.driver.add([(at, 8)], [(at, 8)], n)
    rings.driver.publish()
    return rings


@pytest.mark.parametrize("features", KINDS)
@pytest.mark.parametrize("order", [0, F_IN_ORDER])
@pytest.mark.parametrize("event", [0, F_EVENT_IDX])
@pytest.mark.parametrize(("which", "written", "match"), [(5, 0, "id 5"), (65535, 0, "id 65535"), (None, 9, "length 9")])
def test_the_driver_believes_no_lie(arena, features, order, event, which, written, match):
    rings = under_way(arena, features | order | event)
    chain = rings.device.pop()
    head = chain.head if which is None else which
    if rings.packed:
        arena.write(rings.areas[0] + 8, struct.pack("<IHH", written, head, DESC_AVAIL | layout.DESC_USED))
    else:
        arena.write(rings.areas[2] + 2, struct.pack("<HII", 1, head, written))
    for _ in range(2):
        with pytest.raises(RingError, match=match):
            rings.driver.take_used()
    assert rings.driver.arm() is False


def test_the_driver_refuses_a_used_index_too_far_ahead(arena):
    rings = under_way(arena, F_VERSION_1)
    arena.write(rings.areas[2] + 2, struct.pack("<H", 3))
    with pytest.raises(RingError, match="3 ahead"):
        rings.driver.take_used()


@pytest.mark.parametrize("features", KINDS)
def test_the_driver_does_not_take_the_same_request_twice(arena, features):
    rings = under_way(arena, features)
    chain = rings.device.pop()
    rings.device.push(chain, 8)
    assert rings.driver.take_used() == (0, 8)
    if rings.packed:
        arena.write(rings.areas[0] + 16 * 2 + 8, struct.pack("<IHH", 0, chain.head, DESC_AVAIL | layout.DESC_USED))
    else:
        arena.write(rings.areas[2] + 2, struct.pack("<HIIII", 2, chain.head, 8, chain.head, 8))
    with pytest.raises(RingError, match="not under way"):
        rings.driver.take_used()
