"""A request's segments: copies, and file data without copies."""

from __future__ import annotations

import errno
import os

import pytest

from transfuse.transports.virtqueue.layout import F_INDIRECT_DESC, F_VERSION_1
from transports.virtqueue.rings import Rings


@pytest.fixture
def request_of(arena):
    """Makes a chain of segments with the given lengths; their guest addresses come with it."""
    rings = Rings(arena, F_VERSION_1 | F_INDIRECT_DESC, 4, table_entries=1024)

    def make(readable: list[bytes], writable: list[int]):
        ins = [(arena.room(len(data), 1), len(data)) for data in readable]
        outs = [(arena.room(length + 1, 1), length) for length in writable]
        for (address, _), data in zip(ins, readable, strict=True):
            arena.write(address, data)
        assert rings.driver.add(ins, outs, None)
        rings.driver.publish()
        make.filled = lambda: b"".join(arena.read(address, length) for address, length in outs)
        return rings.device.pop()

    yield make
    make.__dict__.clear()
    rings.driver = rings.device = None  # which hold the memory


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_readable_bytes_are_copied_from_any_place(request_of):
    chain = request_of([b"abc", b"defg", b"h"], [])
    for start in range(9):
        for end in range(start, 9):
            buffer = bytearray(b"." * 12)
            chain.copy_in(buffer, 2, start, end - start)
            assert buffer == b".." + b"abcdefgh"[start:end] + b"." * (10 - end + start)
            assert chain.gather(start, end - start) == b"abcdefgh"[start:end]


@pytest.mark.parametrize(
    ("at", "offset", "length"), [(0, 0, 9), (0, 8, 1), (0, -1, 1), (0, 0, -1), (5, 0, 8), (-1, 0, 1)]
)
def test_copying_beyond_either_end_is_refused(request_of, at, offset, length):
    chain = request_of([b"abc", b"defg", b"h"], [])
    with pytest.raises(ValueError, match="bytes"):
        chain.copy_in(bytearray(12), at, offset, length)
    if at == 0:
        with pytest.raises(ValueError, match="bytes"):
            chain.gather(offset, length)


def test_writable_bytes_are_filled_at_any_place(request_of):
    chain = request_of([b"x"], [3, 4, 1])
    expected = bytearray(8)
    for start in range(9):
        for end in range(start, 9):
            data = bytes(range(16 * start + end, 16 * start + 2 * end - start))
            expected[start:end] = data
            chain.write(start, memoryview(data))
            assert request_of.filled() == expected


@pytest.mark.parametrize(("offset", "length"), [(0, 9), (8, 1), (-1, 1), (9, 0)])
def test_writing_beyond_the_room_is_refused(request_of, offset, length):
    chain = request_of([b"x"], [3, 4, 1])
    with pytest.raises(ValueError, match="bytes"):
        chain.write(offset, bytes(length))
    assert request_of.filled() == bytes(8)


def test_bytes_of_a_file_go_to_their_segments(request_of, file, rng):
    data = rng.randbytes(5000)
    os.write(file, data)
    chain = request_of([b"x"], [16, 1000, 1, 3000, 500])
    assert chain.pread(file, 7, 16, 4501) == 4501
    assert request_of.filled() == bytes(16) + data[7:4508]
    assert chain.pread(file, 0, 20, 0) == 0
    assert chain.pread(file, 4990, 3, 100) == 10
    assert request_of.filled()[3:13] == data[4990:]
    assert chain.pread(file, 6000, 3, 100) == 0


def test_bytes_of_segments_go_to_their_file(request_of, file, rng):
    data = rng.randbytes(4580)
    chain = request_of([data[:80], data[80:1000], data[1000:1001], data[1001:]], [16])
    assert chain.pwrite(file, 3, 80, 4500) == 4500
    assert os.pread(file, 5000, 0) == bytes(3) + data[80:]
    assert chain.pwrite(file, 0, 1000, 2) == 2
    assert os.pread(file, 2, 0) == data[1000:1002]


@pytest.mark.parametrize("call", ["pread", "pwrite"])
def test_transfers_beyond_the_segments_are_refused(request_of, file, call):
    chain = request_of([b"abcdefgh"], [8])
    for skip, length in ((0, 9), (8, 1), (-1, 3), (0, -1)):
        with pytest.raises(ValueError, match="bytes"):
            getattr(chain, call)(file, 0, skip, length)


def test_a_transfer_that_fails_is_an_os_error(request_of, file):
    chain = request_of([b"abcdefgh"], [8])
    for call, fd, offset, number in (
        (chain.pread, -1, 0, errno.EBADF),
        (chain.pwrite, -1, 0, errno.EBADF),
        (chain.pread, file, -1, errno.EINVAL),
        (chain.pwrite, file, 2**63, errno.EINVAL),
        (chain.pread, file, 2**64 - 1, errno.EINVAL),
    ):
        with pytest.raises(OSError) as caught:
            call(fd, offset, 0, 8)
        assert caught.value.errno == number


def test_the_largest_chain_is_transferred(request_of, file, rng):
    data = rng.randbytes(1023 * 16)
    os.write(file, data)
    chain = request_of([b"x"], [16] * 1023)
    assert chain.pread(file, 0, 0, len(data)) == len(data)
    assert request_of.filled() == data


def test_more_segments_than_a_system_call_takes_are_transferred_in_several(make_arena, form, file, rng):
    """A segment across regions counts once for the driver and twice for the system call."""
    arena = make_arena(1 << 22)
    base = arena.memory.regions[0]
    size = 16
    pairs = 700
    fd = os.memfd_create("more", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4096)
    left = form.Region(0x10000, 0x10000, 2048, fd, 0)
    right = form.Region(0x10800, 0x10800, 2048, fd, 2048)
    os.close(fd)
    arena.memory = form.GuestMemory([base, left, right])
    rings = Rings(arena, F_VERSION_1 | F_INDIRECT_DESC, 4, table_entries=1024)
    assert rings.driver.add([(0x10800 - size // 2, size)] * pairs, [], None)
    rings.driver.publish()
    chain = rings.device.pop()
    left.view[2048 - size // 2 :] = b"left half"[: size // 2]
    right.view[: size // 2] = b"right half"[: size // 2]
    assert chain.pwrite(file, 0, 0, size * pairs) == size * pairs
    assert os.pread(file, size * pairs + 1, 0) == b"left halright ha" * pairs


def test_an_answer_goes_to_whoever_serves_the_queue(request_of):
    chain = request_of([b"x"], [8])
    chain.queue.answer = lambda to, message: to is chain and message == b"hello"
    assert chain.send(b"hello") is True
    assert chain.send(b"bye") is False


def test_an_answer_nobody_sends_is_our_own_mistake(request_of):
    with pytest.raises(RuntimeError, match="nobody serves"):
        request_of([b"x"], [8]).send(b"hello")
