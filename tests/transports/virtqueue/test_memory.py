"""Guest memory: what is found where, and what is refused."""

from __future__ import annotations

import os
import socket

import pytest

from transfuse.errors import RingError

PAGE = 4096


@pytest.fixture
def file(tmp_path):
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, 16 * PAGE)
    for page in range(16):
        os.pwrite(fd, bytes([page]) * PAGE, page * PAGE)
    yield fd
    os.close(fd)


def test_an_address_leads_to_the_bytes_of_the_file(form, file):
    memory = form.GuestMemory(
        [
            form.Region(0x10000, 0x7000_0000, 4 * PAGE, file, 2 * PAGE),
            form.Region(0x40000, 0x1000, PAGE, file, 9 * PAGE),
        ]
    )
    assert [bytes(piece) for piece in memory.at(0x10000 + PAGE - 1, 2)] == [b"\x02\x03"]
    assert bytes(memory.at_user(0x7000_0000 + 3 * PAGE, 1)) == b"\x05"
    assert bytes(memory.at_guest(0x40FFF, 1)) == b"\x09"
    assert memory.guest_of_user(0x1010) == 0x40010
    assert memory.at(0x10000, 0) == []
    memory.at_guest(0x40000, 3)[:] = b"new"
    assert os.pread(file, 4, 9 * PAGE) == b"new\x09"


def test_the_fd_may_be_closed_once_it_is_mapped(form, file):
    other = os.dup(file)
    memory = form.GuestMemory([form.Region(0, 0, PAGE, other, 0)])
    os.close(other)
    assert bytes(memory.at_guest(0, 1)) == b"\0"


def test_a_region_may_begin_anywhere_in_a_page_of_the_file(form, file):
    region = form.Region(0, 0, 100, file, PAGE - 50)
    assert bytes(region.view) == bytes(50) + b"\x01" * 50
    assert region.size == 100


def test_bytes_across_regions_come_in_pieces(form, file):
    memory = form.GuestMemory(
        [
            form.Region(0x2000, 0x8000, PAGE, file, 5 * PAGE),
            form.Region(0x1000, 0x2000, PAGE, file, 1 * PAGE),
            form.Region(0x3000, 0x4000, PAGE, file, 7 * PAGE),
        ]
    )
    pieces = memory.at(0x1FFE, PAGE + 4)
    assert [len(piece) for piece in pieces] == [2, PAGE, 2]
    assert b"".join(pieces) == b"\1\1" + b"\5" * PAGE + b"\7\7"
    with pytest.raises(RingError, match="one region"):
        memory.at_guest(0x1FFE, 4)
    with pytest.raises(RingError, match="one region"):
        memory.at_user(0x2FFE, 4)


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (0, 1),
        (0xFFF, 2),
        (0x2000, 1),
        (0x1FFF, 2),
        (0x1000, 2**32 - 1),
        (2**64 - 1, 1),
        (2**64 - 8, 16),
        (0x1000, 2**63),
    ],
)
def test_addresses_outside_are_refused(form, file, address, length):
    memory = form.GuestMemory([form.Region(0x1000, 0x1000, PAGE, file, 0)])
    for look in (memory.at, memory.at_guest, memory.at_user):
        with pytest.raises(RingError, match="address"):
            look(address, length)


def test_the_last_byte_of_the_address_space_may_be_memory(form, file):
    memory = form.GuestMemory([form.Region(2**64 - PAGE, 2**64 - PAGE, PAGE, file, 3 * PAGE)])
    assert bytes(memory.at_guest(2**64 - 1, 1)) == b"\3"
    with pytest.raises(RingError, match="address"):
        memory.at(2**64 - 1, 2)


@pytest.mark.parametrize(
    ("guest", "user", "size", "offset"),
    [
        (0, 0, 0, 0),
        (0, 0, 17 * PAGE, 0),
        (0, 0, PAGE, 16 * PAGE),
        (0, 0, 1, 2**63),
        (0, 0, 2**64 - 1, 1),
        (2**64 - PAGE, 0, PAGE + 1, 0),
        (0, 2**64 - PAGE, PAGE + 1, 0),
    ],
)
def test_impossible_regions_are_refused(form, file, guest, user, size, offset):
    with pytest.raises(RingError):
        form.Region(guest, user, size, file, offset)


def test_only_regular_files_are_memory(form):
    left, right = socket.socketpair()
    with left, right, pytest.raises(RingError, match="not a regular one"):
        form.Region(0, 0, PAGE, left.fileno(), 0)


def test_a_file_that_cannot_be_mapped_is_an_os_error(form, tmp_path):
    (tmp_path / "file").write_bytes(bytes(PAGE))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.raises(PermissionError):
            form.Region(0, 0, PAGE, fd, 0)
    finally:
        os.close(fd)


def test_overlapping_regions_are_refused(form, file):
    first = form.Region(0x1000, 0x1000, 2 * PAGE, file, 0)
    for guest, user in ((0x2000, 0x9000), (0x9000, 0x2000), (0x1000, 0x1000)):
        with pytest.raises(RingError, match="overlap"):
            form.GuestMemory([first, form.Region(guest, user, PAGE, file, 0)])
    form.GuestMemory([first, form.Region(0x3000, 0x3000, PAGE, file, 0)])


def test_the_number_of_regions_is_bounded(form, file):
    from transfuse.transports.virtqueue.memory import MAX_REGIONS

    region = form.Region(0, 0, PAGE, file, 0)
    with pytest.raises(RingError, match="at most"):
        form.GuestMemory([region] * (MAX_REGIONS + 1))


def test_a_region_is_unmapped_when_nobody_holds_it(form, file):
    name = "memfd:guest (deleted)"
    memory = form.GuestMemory([form.Region(0, 0, PAGE, file, 0)])
    piece = memory.at_guest(0, 1)
    del memory
    assert mapped(name) == 1
    del piece
    assert mapped(name) == 0


def mapped(name):
    with open("/proc/self/maps") as maps:
        return sum(name in line for line in maps)


# -- the dirty log


def test_each_page_that_was_written_has_its_bit(form):
    fd = os.memfd_create("log", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4096)
    log = form.DirtyLog(form.Mapping(fd, 0, 4096))
    log.mark(0, 1)
    log.mark(3 * PAGE - 1, 2)
    log.mark(9 * PAGE, PAGE)
    log.mark(12 * PAGE, 0)
    assert os.pread(fd, 3, 0) == bytes([0b0000_1101, 0b0000_0010, 0])
    log.mark(8 * 4096 * PAGE - 1, 100)
    log.mark(2**64 - 1, 2**32)
    assert os.pread(fd, 1, 4095) == b"\x80"
    os.close(fd)


def test_the_log_of_the_compiled_form_may_be_shared(form):
    assert form.DirtyLog.ATOMIC is (form.name == "compiled")
