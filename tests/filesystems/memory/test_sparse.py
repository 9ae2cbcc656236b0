from __future__ import annotations

import errno

import pytest

from transfuse.filesystems.memory.sparse import PAGE, SparseBytes

TIB = 1 << 40


class Account:
    def __init__(self, limit=1 << 20):
        self.used = 0
        self.limit = limit

    def __call__(self, count):
        if count > 0 and self.used + count > self.limit:
            raise OSError(errno.ENOSPC, "full")
        self.used += count


@pytest.fixture
def account():
    return Account()


@pytest.fixture
def data(account):
    return SparseBytes(account)


def test_a_terabyte_of_hole_costs_nothing(data, account):
    data.truncate(TIB)
    assert account.used == 0 and data.read(10, TIB - 5) == bytes(5)


def test_one_byte_at_a_terabyte_costs_one_page(data, account):
    data.write(b"x", TIB)
    assert account.used == 1 and data.size == TIB + 1 and data.read(3, TIB - 1) == b"\0x"


def test_reads_over_pages_and_holes(data):
    data.write(b"a" * PAGE, 0)
    data.write(b"b" * 10, 3 * PAGE - 5)
    assert data.read(4 * PAGE, PAGE - 2) == b"aa" + bytes(2 * PAGE - 5) + b"b" * 10


def test_a_cut_page_is_zeroed_beyond_the_cut(data):
    data.write(b"x" * PAGE, 0)
    data.truncate(10)
    data.truncate(PAGE)
    assert data.read(PAGE, 0) == b"x" * 10 + bytes(PAGE - 10)


def test_a_cut_frees_pages(data, account):
    data.write(bytes(10 * PAGE), 0)
    data.truncate(3 * PAGE + 1)
    assert account.used == 4


def test_a_whole_page_of_callers_memory_is_copied(data):
    buffer = bytearray(b"x" * PAGE)
    data.write(memoryview(buffer), 0)
    buffer[:] = bytes(PAGE)
    assert data.read(1, 0) == b"x"


def test_without_room_nothing_is_written(account, data):
    account.limit = 2
    data.write(b"x" * PAGE, 0)
    with pytest.raises(OSError):
        data.write(b"y" * 3 * PAGE, 0)
    assert data.read(PAGE, 0) == b"x" * PAGE and data.size == PAGE and account.used == 1


def test_punching_frees_whole_pages_and_zeroes_parts(data, account):
    data.write(b"x" * 4 * PAGE, 0)
    data.punch(PAGE - 1, 2 * PAGE + 2)
    assert account.used == 2
    assert data.read(4 * PAGE, 0) == b"x" * (PAGE - 1) + bytes(2 * PAGE + 2) + b"x" * (PAGE - 1)


def test_punching_within_a_page(data, account):
    data.write(b"x" * PAGE, 0)
    data.punch(10, 20)
    assert data.read(40, 0) == b"x" * 10 + bytes(20) + b"x" * 10 and account.used == 1


def test_punching_a_terabyte_takes_no_time(data, account):
    data.truncate(TIB)
    data.write(b"x", 5 * PAGE)
    data.punch(0, TIB)
    assert account.used == 0


def test_allocated_pages_count_and_read_as_zeros(data, account):
    data.allocate(0, 3 * PAGE, zero=False, keep_size=False, max_pages=100)
    assert account.used == 3 and data.size == 3 * PAGE and data.read(5, 0) == bytes(5)


def test_allocated_pages_are_no_data(data):
    data.allocate(0, 3 * PAGE, zero=False, keep_size=False, max_pages=100)
    data.write(b"x", PAGE)
    assert data.seek_data(0) == PAGE and data.seek_hole(PAGE) == 2 * PAGE


def test_allocating_keeps_what_is_there(data):
    data.write(b"x" * 10, 0)
    data.allocate(0, 2 * PAGE, zero=False, keep_size=True, max_pages=100)
    assert data.read(20, 0) == b"x" * 10


def test_zeroing_does_not_keep_what_is_there(data):
    data.write(b"x" * 10, 0)
    data.allocate(2, 3, zero=True, keep_size=True, max_pages=100)
    assert data.read(20, 0) == b"xx\0\0\0xxxxx"


def test_allocating_more_than_there_is_fails_at_once(account, data):
    account.limit = 100
    with pytest.raises(OSError) as caught:
        data.allocate(0, TIB, zero=False, keep_size=False, max_pages=100)
    assert caught.value.errno == errno.ENOSPC and data.size == 0 and account.used == 0


def test_what_was_reserved_beyond_the_end_goes_when_cut(data, account):
    data.write(b"x", 0)
    data.allocate(0, 4 * PAGE, zero=False, keep_size=True, max_pages=100)
    data.truncate(1)
    assert account.used == 1


@pytest.mark.parametrize(
    ("offset", "data_at", "hole_at"),
    [(0, 2 * PAGE, 0), (2 * PAGE + 5, 2 * PAGE + 5, 3 * PAGE), (3 * PAGE, None, 3 * PAGE), (5 * PAGE, None, None)],
)
def test_seeking(data, offset, data_at, hole_at):
    data.write(b"x", 2 * PAGE)
    data.truncate(5 * PAGE)
    assert (data.seek_data(offset), data.seek_hole(offset)) == (data_at, hole_at)


def test_the_last_hole_is_the_end(data):
    data.write(b"x" * 100, 0)
    assert data.seek_hole(0) == 100


def test_seeking_follows_later_writes(data):
    data.truncate(10 * PAGE)
    assert data.seek_data(0) is None
    data.write(b"x", 7 * PAGE)
    assert data.seek_data(0) == 7 * PAGE


def test_random_writes_cuts_and_holes_give_what_a_bytearray_gives(data, account, rng):
    model = bytearray()
    for _ in range(3000):
        offset, size = rng.randrange(5 * PAGE), rng.randrange(2 * PAGE)
        what = rng.randrange(4)
        if what == 0:
            data.truncate(offset)
            model = model[:offset].ljust(offset, b"\0")
        elif what == 1:
            data.punch(offset, size or 1)
            end = min(len(model), offset + (size or 1))
            if offset < end:
                model[offset:end] = bytes(end - offset)
        else:
            part = rng.randbytes(size)
            data.write(part, offset)
            if part:
                model = model.ljust(offset + size, b"\0")
                model[offset : offset + size] = part
        assert data.read(1 << 20, 0) == bytes(model) and account.used == len(data.pages)
    data.free()
    assert account.used == 0 and data.size == 0
