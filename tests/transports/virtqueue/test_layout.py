"""Numbers of the rings."""

from __future__ import annotations

import sys

import pytest

from transfuse.errors import RingError
from transfuse.transports.virtqueue import layout


def test_areas_have_the_sizes_of_the_specification():
    assert layout.area_sizes(256, packed=False) == (4096, 6 + 2 * 256, 6 + 8 * 256)
    assert layout.area_sizes(3, packed=True) == (48, 4, 4)


def test_split_queues_have_powers_of_two_packed_ones_any_size():
    for size in (1, 2, 1024, 32768):
        layout.check_size(size, packed=False)
    for size in (1, 3, 32767, 32768):
        layout.check_size(size, packed=True)
    for size, packed in ((0, False), (3, False), (65536, False), (0, True), (32769, True), (-1, True)):
        with pytest.raises(RingError, match="entries"):
            layout.check_size(size, packed)


@pytest.mark.parametrize(
    ("event", "new", "old", "wanted"),
    [
        (5, 6, 5, True),  # the event is the first of those passed
        (5, 9, 4, True),
        (5, 5, 4, False),  # not reached
        (5, 9, 6, False),  # behind
        (0xFFFF, 0, 0xFFFF, True),  # around the end of 16 bits
        (0, 1, 0xFFFE, True),
        (1, 1, 0xFFFE, False),
    ],
)
def test_an_event_is_wanted_when_the_index_passes_it(event, new, old, wanted):
    assert layout.need_event(event, new, old) is wanted


def test_the_base_of_a_packed_queue_holds_two_positions_with_their_wrap_counters():
    assert layout.packed_base(0, 1, 0, 1) == 0x8000_8000  # as QEMU begins
    assert layout.split_packed_base(layout.packed_base(5, 0, 7, 1)) == (5, 0, 7, 1)


def test_swapping_is_its_own_reverse():
    assert layout.le16(layout.le16(0x1234)) == 0x1234
    assert layout.le32(layout.le32(0x12345678)) == 0x12345678
    assert layout.le16(1).to_bytes(2, sys.byteorder) == b"\1\0"
    assert layout.le32(1).to_bytes(4, sys.byteorder) == b"\1\0\0\0"
