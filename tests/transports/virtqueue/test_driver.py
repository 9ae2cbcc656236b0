"""The driver's side alone: batches of a device that keeps order, and requests that cannot be."""

from __future__ import annotations

import struct

import pytest

from transfuse.transports.virtqueue.layout import (
    DESC_AVAIL,
    DESC_USED,
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_VERSION_1,
)
from transports.virtqueue.rings import KINDS, Rings


@pytest.mark.parametrize("features", KINDS)
def test_one_used_entry_may_stand_for_a_batch(arena, features):
    """IN_ORDER: a device may name only the last request of a batch; the others then were filled whole."""
    rings = Rings(arena, features | F_IN_ORDER, 8)
    at = arena.room(8)
    for n in range(4):
        assert rings.driver.add([(at, 8)], [(at, 8)] if n else [], n)
    rings.driver.publish()
    chains = [rings.device.pop() for _ in range(4)]
    if rings.packed:
        arena.write(rings.areas[0] + 8, struct.pack("<IHH", 5, chains[2].head, DESC_AVAIL | DESC_USED))
    else:
        arena.write(rings.areas[2] + 2, struct.pack("<HII", 3, chains[2].head, 5))
    assert [rings.driver.take_used() for _ in range(4)] == [(0, 0), (1, 8), (2, 5), None]
    slot = 5 if rings.packed else 3
    if rings.packed:
        arena.write(rings.areas[0] + 16 * slot + 8, struct.pack("<IHH", 1, chains[3].head, DESC_AVAIL | DESC_USED))
    else:
        arena.write(rings.areas[2] + 2, struct.pack("<H", 4))
        arena.write(rings.areas[2] + 4 + 8 * slot, struct.pack("<II", chains[3].head, 1))
    assert rings.driver.take_used() == (3, 1)
    assert rings.driver.free == 8


@pytest.mark.parametrize("features", KINDS)
def test_a_request_that_can_never_fit_is_refused(arena, features):
    rings = Rings(arena, features | F_INDIRECT_DESC, 4, table_entries=6)
    at = arena.room(8)
    assert rings.driver.add([(at, 8)] * 6, [], "indirect")
    for segments in ([], [(at, 8)] * 7):
        with pytest.raises(ValueError, match="segments"):
            rings.driver.add(segments, [], None)
    assert rings.driver.free == 3


@pytest.mark.parametrize("features", KINDS)
def test_without_tables_each_segment_takes_an_entry(arena, features):
    rings = Rings(arena, features | F_INDIRECT_DESC, 8, table_entries=0)
    at = arena.room(8)
    assert rings.driver.add([(at, 8)] * 3, [(at, 8)] * 4, "direct")
    assert rings.driver.free == 1
    rings.driver.publish()
    chain = rings.device.pop()
    assert (chain.readable, chain.writable) == (24, 32)


@pytest.mark.parametrize("features", KINDS)
def test_the_device_is_kicked_for_what_was_published(arena, features):
    rings = Rings(arena, features, 8)
    at = arena.room(8)
    assert not rings.driver.needs_kick()
    rings.driver.add([(at, 8)], [], 1)
    rings.driver.publish()
    assert rings.driver.needs_kick()
    assert not rings.driver.needs_kick()


def test_a_packed_queue_begins_with_nothing_under_way(arena):
    with pytest.raises(ValueError, match="cannot begin"):
        Rings(arena, F_VERSION_1 | F_RING_PACKED, 8, base=0x8001_8000)


@pytest.mark.parametrize("features", KINDS)
def test_any_object_can_be_a_token_and_is_let_go(arena, features):
    class Token:
        alive = 0

        def __init__(self) -> None:
            Token.alive += 1

        def __del__(self) -> None:
            Token.alive -= 1

    rings = Rings(arena, features | F_EVENT_IDX, 8)
    at = arena.room(8)
    rings.driver.add([(at, 8)], [], Token())
    rings.driver.add([(at, 8)], [], None)
    rings.driver.add([(at, 8)], [], Token())
    rings.driver.publish()
    assert Token.alive == 2
    for _ in range(2):
        rings.device.push(rings.device.pop(), 0)
        rings.driver.take_used()
    assert Token.alive == 1
    rings.driver = None
    assert Token.alive == 0
