"""Packed queues: what lies where, and who is told of what."""

from __future__ import annotations

import struct

import pytest

from transfuse.transports.virtqueue.layout import F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1, packed_base
from transports.virtqueue.rings import GUEST, Rings

PACKED = F_VERSION_1 | F_RING_PACKED


def test_a_request_is_laid_out_as_the_specification_says(arena):
    rings = Rings(arena, PACKED, 3)
    first, second = arena.room(16), arena.room(32)
    assert rings.driver.add([(first, 16)], [(second, 32)], None)
    rings.driver.publish()
    ring, driver, device = rings.areas
    assert arena.read(ring, 48) == (
        struct.pack("<Q", first)  # addr
        + b"\x10\0\0\0"  # len
        + b"\0\0"  # id
        + b"\x81\0"  # flags: AVAIL, NEXT
        + struct.pack("<Q", second)
        + b"\x20\0\0\0"
        + b"\0\0"
        + b"\x82\0"  # AVAIL, WRITE
        + bytes(16)
    )
    rings.device.push(rings.device.pop(), 7)
    assert arena.read(ring + 8, 8) == b"\x07\0\0\0\0\0\x82\x80"  # len, id, AVAIL and USED, WRITE
    assert rings.driver.take_used() == (None, 7)
    # Two slots on: the third of the first pass, then the first of the second, where the bits mean the opposite.
    assert rings.driver.add([(first, 16)], [(second, 32)], None)
    rings.driver.publish()
    assert arena.read(ring + 32 + 14, 2) == b"\x81\0"
    assert arena.read(ring + 14, 2) == b"\x02\x80"
    rings.device.push(rings.device.pop(), 0)
    assert arena.read(ring + 32 + 14, 2) == b"\x80\x80"
    assert rings.device.base == packed_base(1, 0, 1, 0)


def test_an_indirect_request_takes_one_descriptor(arena):
    rings = Rings(arena, PACKED | F_INDIRECT_DESC, 4, table_entries=4)
    first, second = arena.room(16), arena.room(32)
    assert rings.driver.add([(first, 16)], [(second, 32)], None)
    rings.driver.publish()
    assert rings.driver.free == 3
    assert arena.read(rings.areas[0], 16) == struct.pack("<QIHH", rings.tables, 32, 0, 0x84)  # AVAIL, INDIRECT
    assert arena.read(rings.tables, 32) == struct.pack("<QIHHQIHH", first, 16, 0, 0, second, 32, 0, 2)


def test_event_structures_hold_position_and_wrap_counter(arena):
    rings = Rings(arena, PACKED | F_EVENT_IDX, 4)
    _, driver, device = rings.areas
    run(rings, 1)
    rings.device.arm()
    rings.driver.arm()
    assert arena.read(driver, 4) == arena.read(device, 4) == b"\x01\x80\x02\0"  # slot 1, wrap 1, DESC
    run(rings, 3)
    rings.device.arm()
    rings.driver.arm()
    assert arena.read(driver, 4) == arena.read(device, 4) == b"\0\0\x02\0"  # slot 0, wrap 0


def test_event_structures_without_event_idx_say_yes_or_no(arena):
    rings = Rings(arena, PACKED, 4)
    _, driver, device = rings.areas
    run(rings, 1)
    assert arena.read(driver, 4) == arena.read(device, 4) == b"\0\0\x01\0"  # DISABLE
    rings.device.arm()
    rings.driver.arm()
    assert arena.read(driver, 4) == arena.read(device, 4) == b"\0\0\0\0"


def run(rings, count):
    """`count` requests there, all answered: was a kick wanted, was a call?"""
    for _ in range(count):
        assert rings.driver.add([(GUEST, 8)], [], None)
    rings.driver.publish()
    kick = rings.driver.needs_kick()
    for _ in range(count):
        rings.device.push(rings.device.pop(), 0)
    call = rings.device.should_notify()
    while rings.driver.take_used() is not None:
        pass
    return kick, call


@pytest.mark.parametrize("size", [7, 8, 100])
@pytest.mark.parametrize("start", [0, 4, 6])
@pytest.mark.parametrize("event", [0, F_EVENT_IDX])
def test_a_side_that_did_not_ask_is_left_alone(arena, size, start, event):
    """The plain form cannot know, and always tells."""
    rings = Rings(arena, PACKED | event, size, base=packed_base(start, 1, start, 1))
    always = arena.form.name == "plain"
    rings.device.arm()
    assert run(rings, 2) == (True, True)
    assert run(rings, 2) == (always, always)
    rings.device.arm()
    assert run(rings, 2) == (True, always)
    rings.driver.arm()
    assert run(rings, 2) == (always, True)
    assert run(rings, size) == ((True, True) if event else (always, always))  # so many pass any position
