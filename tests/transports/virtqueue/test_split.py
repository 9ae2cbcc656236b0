"""Split queues: what lies where, who is told of what, and heads and indices that make no sense."""

from __future__ import annotations

import struct

import pytest

from transfuse.errors import RingError
from transfuse.transports.virtqueue.layout import DESC_NEXT, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1
from transports.virtqueue.rings import GUEST, Rings

SIZE = 8


def test_a_request_is_laid_out_as_the_specification_says(arena):
    rings = Rings(arena, F_VERSION_1, 4)
    first, second = arena.room(16), arena.room(32)
    assert rings.driver.add([(first, 16)], [(second, 32)], None)
    rings.driver.publish()
    desc, avail, used = rings.areas
    assert arena.read(desc, 32) == (
        struct.pack("<Q", first)  # addr
        + b"\x10\0\0\0"  # len
        + b"\x01\0"  # flags: NEXT
        + b"\x01\0"  # next
        + struct.pack("<Q", second)
        + b"\x20\0\0\0"
        + b"\x02\0"  # WRITE
        + b"\0\0"
    )
    assert arena.read(avail, 6) == b"\0\0\x01\0\0\0"  # flags, idx, ring[0]
    rings.device.push(rings.device.pop(), 7)
    assert arena.read(used, 12) == b"\x01\0\x01\0\0\0\0\0\x07\0\0\0"  # NO_NOTIFY, idx, id, len
    assert rings.device.arm() is False
    assert arena.read(used, 2) == b"\0\0"


def test_an_indirect_request_takes_one_descriptor(arena):
    rings = Rings(arena, F_VERSION_1 | F_INDIRECT_DESC, 4, table_entries=4)
    first, second = arena.room(16), arena.room(32)
    assert rings.driver.add([(first, 16)], [(second, 32)], None)
    assert rings.driver.free == 3
    # addr, len of 2 entries, INDIRECT, no next
    assert arena.read(rings.areas[0], 16) == struct.pack("<Q", rings.tables) + b"\x20\0\0\0\x04\0\0\0"
    assert arena.read(rings.tables, 32) == struct.pack("<QIHHQIHH", first, 16, 1, 1, second, 32, 2, 0)


def test_event_indices_stand_behind_the_rings(arena):
    rings = Rings(arena, F_VERSION_1 | F_EVENT_IDX, 4)
    at = arena.room(8)
    rings.driver.add([(at, 8)], [], None)
    rings.driver.publish()
    rings.device.push(rings.device.pop(), 0)
    rings.driver.take_used()
    rings.device.arm()
    rings.driver.arm()
    _, avail, used = rings.areas
    assert arena.read(avail + 4 + 2 * 4, 2) == b"\x01\0"  # used_event
    assert arena.read(used + 4 + 8 * 4, 2) == b"\x01\0"  # avail_event
    assert arena.read(avail, 2) == arena.read(used, 2) == b"\0\0"


def run(rings, count):
    """`count` requests there, all answered: was a kick wanted, was a call?"""
    at = GUEST
    for _ in range(count):
        assert rings.driver.add([(at, 8)], [], None)
    rings.driver.publish()
    kick = rings.driver.needs_kick()
    for _ in range(count):
        rings.device.push(rings.device.pop(), 0)
    call = rings.device.should_notify()
    while rings.driver.take_used() is not None:
        pass
    return kick, call


@pytest.mark.parametrize("base", [0, 65534])
@pytest.mark.parametrize("event", [0, F_EVENT_IDX])
def test_a_side_that_did_not_ask_is_left_alone(arena, base, event):
    """The plain form cannot know, and always tells."""
    rings = Rings(arena, F_VERSION_1 | event, SIZE, base=base)
    always = arena.form.name == "plain"
    assert run(rings, 3) == (True, True)
    assert run(rings, 3) == (always, always)
    rings.device.arm()
    assert run(rings, 3) == (True, always)
    rings.driver.arm()
    assert run(rings, 3) == (always, True)


# -- what makes no sense


def refused(rings, match):
    with pytest.raises(RingError, match=match):
        rings.device.pop()
    assert rings.device.broken is not None


@pytest.mark.parametrize("head", [SIZE, 65535])
def test_a_head_outside_the_table(arena, head):
    rings = Rings(arena, F_VERSION_1, SIZE)
    rings.offer(head)
    refused(rings, f"descriptor {head}")


@pytest.mark.parametrize("following", [SIZE, 65535])
def test_a_next_outside_the_table(arena, following):
    rings = Rings(arena, F_VERSION_1, SIZE)
    rings.describe(0, arena.room(8), 8, DESC_NEXT, following)
    rings.offer(0)
    refused(rings, f"descriptor {following}")


@pytest.mark.parametrize("index", [SIZE + 1, 32768, 65535])
def test_an_available_index_too_far_ahead(arena, index):
    rings = Rings(arena, F_VERSION_1, SIZE)
    arena.write(rings.areas[1] + 2, struct.pack("<H", index))
    refused(rings, f"{index} ahead")
