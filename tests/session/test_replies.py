"""Values into reply bytes, and the values that no reply can be made of."""

from __future__ import annotations

import errno
import math
import os
import struct
from typing import Any

import pytest

from session.peers import Reply
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Entry, Features, FileRange, IoctlResult, Lock, Opened, Statfs
from transfuse.session.negotiate import Connection
from transfuse.session.replies import MAX_TIMEOUT_S, Replies, split_timeout
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.encode import RangeReply


def make(order: str = "<", **features: Any) -> Replies:
    return Replies(Connection(order=order, features=Features(**features)))


def asked(argument: object = None) -> Request:
    req = Request(unique=42)
    req.argument = argument
    return req


FULL = Attr(
    5,
    0o100644,
    size=1000,
    nlink=2,
    uid=3,
    gid=4,
    atime_ns=1_000_000_001,
    mtime_ns=-1,
    ctime_ns=2_000_000_000,
    blocks=8,
    blksize=512,
    rdev=os.makedev(8, 1),
    flags=1,
    btime_ns=7_000_000_009,
)


# -- timeouts


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, (0, 0)),
        (-1, (0, 0)),
        (1, (1, 0)),
        (0.5, (0, 500_000_000)),
        (1e-9, (0, 1)),
        (math.nextafter(1, 0), (0, 999_999_999)),
        (math.inf, (MAX_TIMEOUT_S, 0)),
        (1e12, (MAX_TIMEOUT_S, 0)),
    ],
)
def test_timeout_is_split(seconds: float, expected: tuple[int, int]) -> None:
    assert split_timeout(seconds) == expected


def test_no_timeout_means_the_filesystems_default() -> None:
    entry = Reply(make(entry_timeout_s=3, attr_timeout_s=4).entry(asked(), Entry(Attr.file(2)))).struct(w.EntryOut)
    assert (entry.entry_valid, entry.attr_valid) == (3, 4)


def test_own_timeouts_win() -> None:
    value = Entry(Attr.file(2, timeout_s=0.25), timeout_s=0)
    entry = Reply(make(entry_timeout_s=3, attr_timeout_s=4).entry(asked(), value)).struct(w.EntryOut)
    assert (entry.entry_valid, entry.entry_valid_nsec) == (0, 0)
    assert (entry.attr_valid, entry.attr_valid_nsec) == (0, 250_000_000)


# -- attributes and entries


@pytest.mark.parametrize("order", "<>")
def test_attributes(order: str) -> None:
    out = Reply(make(order).attr(asked(), FULL), order).struct(w.AttrOut)
    a = out.attr
    assert (a.ino, a.size, a.blocks, a.mode, a.nlink, a.uid, a.gid) == (5, 1000, 8, 0o100644, 2, 3, 4)
    assert (a.atime, a.atimensec, a.mtime, a.mtimensec, a.ctime) == (1, 1, -1, 999_999_999, 2)
    assert (a.blksize, a.rdev, a.flags) == (512, 0x801, 1)
    assert out.attr_valid == 1


@pytest.mark.parametrize("order", "<>")
def test_entry(order: str) -> None:
    value = Entry(FULL, nodeid=9, generation=7)
    out = Reply(make(order).entry(asked(), value), order).struct(w.EntryOut)
    assert (out.nodeid, out.generation, out.attr.ino) == (9, 7, 5)


@pytest.mark.parametrize("seconds", [10**11, -(10**11), 2**63 - 1, -(2**63)])
def test_times_that_64_bits_of_nanoseconds_do_not_hold(seconds: int) -> None:
    attr = Attr.file(2, mtime_ns=seconds * 10**9 + 7)
    for out in (
        Reply(make().attr(asked(), attr)).struct(w.AttrOut),
        Reply(make().entry(asked(), Entry(attr))).struct(w.EntryOut),
    ):
        assert (out.attr.mtime, out.attr.mtimensec) == (seconds, 7)


def test_blocks_follow_from_the_size() -> None:
    assert Reply(make().attr(asked(), Attr.file(2, size=513))).struct(w.AttrOut).attr.blocks == 2


@pytest.mark.parametrize(
    ("timeout", "default", "expected"),
    [(None, 0, None), (0, 5, None), (None, 5, 5), (2, 0, 2)],
)
def test_negative_entry_is_enoent_unless_it_may_be_remembered(
    timeout: float | None, default: float, expected: int | None
) -> None:
    reply = Reply(make(negative_timeout_s=default).entry(asked(), Entry.negative(timeout)))
    if expected is None:
        assert reply.errno == errno.ENOENT
    else:
        out = reply.struct(w.EntryOut)
        assert (out.nodeid, out.entry_valid, out.attr_valid) == (0, expected, 0)


@pytest.mark.parametrize("value", [Entry.negative(5), Entry(Attr.file(0)), Entry(Attr.file(2), nodeid=0)])
def test_made_entry_must_have_a_node(value: Entry) -> None:
    with pytest.raises(ValueError, match="just made"):
        make().made(asked(), value)


@pytest.mark.parametrize("order", "<>")
def test_statx(order: str) -> None:
    out = Reply(make(order).statx(asked(), FULL), order).struct(w.StatxOut)
    s = out.stat
    assert (s.mask, s.mode, s.size, s.ino) == (0xFFF, 0o100644, 1000, 5)
    assert (s.btime.tv_sec, s.btime.tv_nsec, s.mtime.tv_sec, s.mtime.tv_nsec) == (7, 9, -1, 999_999_999)
    assert (s.rdev_major, s.rdev_minor) == (8, 1)


def test_statx_without_birth_time_does_not_claim_one() -> None:
    assert Reply(make().statx(asked(), Attr.file(2))).struct(w.StatxOut).stat.mask == 0x7FF


@pytest.mark.parametrize(
    "attr",
    [
        Attr.file(-1),
        Attr.file(1 << 64),
        Attr.file(2, size=-1, blocks=0),
        Attr.file(2, uid=1 << 32),
        Attr.file(2, nlink=-1),
        Attr.file(2, mtime_ns=1 << 100),
        Attr.file("2"),  # type: ignore[arg-type]
        Attr(2, None),  # type: ignore[arg-type]
    ],
)
def test_attributes_that_do_not_fit_the_wire_are_an_error(attr: Attr) -> None:
    for answer in (make().attr, make().statx):
        with pytest.raises((struct.error, TypeError, OverflowError)):
            answer(asked(), attr)
    with pytest.raises((struct.error, TypeError, OverflowError)):
        make().entry(asked(), Entry(attr, nodeid=2))


# -- opens


@pytest.mark.parametrize(
    ("name", "bit"),
    [
        ("direct_io", f.FOPEN_DIRECT_IO),
        ("keep_cache", f.FOPEN_KEEP_CACHE),
        ("noflush", f.FOPEN_NOFLUSH),
        ("cache_dir", f.FOPEN_CACHE_DIR),
        ("nonseekable", f.FOPEN_NONSEEKABLE),
        ("parallel_direct_writes", f.FOPEN_PARALLEL_DIRECT_WRITES),
    ],
)
def test_open_flags(name: str, bit: int) -> None:
    assert Replies.open_flags(Opened(**{name: True})) == bit
    assert Replies.open_flags(Opened()) == 0


@pytest.mark.parametrize("order", "<>")
def test_created_is_entry_and_open(order: str) -> None:
    reply = Reply(make(order).created(asked(), Entry(Attr.file(4)), 5, 2, 3), order)
    assert reply.struct(w.EntryOut).nodeid == 4
    opened = reply.struct(w.OpenOut, w.EntryOut.SIZE)
    assert (opened.fh, opened.open_flags, opened.backing_id) == (5, 2, 3)


# -- data


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4096])
@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_data_of_every_size_and_kind(size: int, wrap: type) -> None:
    data = os.urandom(size)
    assert Reply(make().data(asked(4096), wrap(data))).body == data


def test_wide_memoryview_is_counted_in_bytes() -> None:
    data = memoryview(bytes(range(16))).cast("I")
    assert Reply(make().data(asked(16), data)).body == bytes(range(16))


def test_large_data_is_not_copied_behind_its_header() -> None:
    data = bytes(4096)
    message = make().data(asked(4096), data)
    assert isinstance(message, list)
    assert message[1] is data


def test_more_data_than_asked_for_is_an_error() -> None:
    with pytest.raises(ValueError, match="5 bytes where 4 were asked for"):
        make().data(asked(4), b"12345")


@pytest.mark.parametrize("value", [None, "text", 5, 5.0, ["a"], [b"x" * 600], object()])
def test_what_is_no_buffer_is_no_data(value: object) -> None:
    with pytest.raises(TypeError):
        make().data(asked(4096), value)


def test_file_range_is_cut_to_what_was_asked_for() -> None:
    assert make().data(asked(100), FileRange(3, 7, 4096)) == RangeReply(42, "<", 3, 7, 100)
    assert make().data(asked(100), FileRange(3, 7, 50)) == RangeReply(42, "<", 3, 7, 50)


@pytest.mark.parametrize(
    "value",
    [
        FileRange(-1, 0, 1),
        FileRange(1 << 31, 0, 1),
        FileRange(3, -1, 1),
        FileRange(3, 1 << 63, 1),
        FileRange(3, 0, -1),
        FileRange("3", 0, 1),  # type: ignore[arg-type]
        FileRange(3, None, 1),  # type: ignore[arg-type]
    ],
)
def test_file_range_of_nowhere_is_an_error(value: FileRange) -> None:
    with pytest.raises((ValueError, TypeError)):
        make().data(asked(100), value)


def test_written() -> None:
    assert Reply(make().written(asked(10), 10)).struct(w.WriteOut).size == 10


@pytest.mark.parametrize("value", [-1, 11, 1 << 40])
def test_more_written_than_sent_is_an_error(value: int) -> None:
    with pytest.raises(ValueError, match="of 10 bytes"):
        make().written(asked(10), value)


def test_copied_counts_in_32_or_64_bits() -> None:
    assert Reply(make().copied(asked(1 << 20), 5)).struct(w.WriteOut).size == 5
    assert Reply(make().copied_64(asked(1 << 40), 1 << 33)).struct(w.CopyFileRangeOut).bytes_copied == 1 << 33


@pytest.mark.parametrize("value", [-1, 11])
def test_more_copied_than_asked_for_is_an_error(value: int) -> None:
    for answer in (make().copied, make().copied_64):
        with pytest.raises(ValueError, match="of 10 bytes"):
            answer(asked(10), value)


def test_link_target_has_no_nul() -> None:
    assert Reply(make().link_target(asked(), b"../x")).body == b"../x"


@pytest.mark.parametrize(("length", "number"), [(4095, 0), (4096, errno.ENAMETOOLONG)])
def test_link_target_beyond_a_path_is_enametoolong(length: int, number: int) -> None:
    assert Reply(make().link_target(asked(), b"x" * length)).errno == number


# -- extended attributes


@pytest.mark.parametrize(
    ("room", "number", "body"),
    [
        (0, 0, b"\x05\0\0\0\0\0\0\0"),
        (4, errno.ERANGE, b""),
        (5, 0, b"value"),
        (100, 0, b"value"),
    ],
)
def test_xattr_by_room(room: int, number: int, body: bytes) -> None:
    reply = Reply(make().xattr(asked(room), b"value"))
    assert (reply.errno, reply.body) == (number, body)


def test_xattr_names_end_in_nul() -> None:
    assert Reply(make().xattr_names(asked(100), [b"user.a", b"user.b"])).body == b"user.a\0user.b\0"
    assert Reply(make().xattr_names(asked(0), [b"user.a"])).struct(w.GetxattrOut).size == 7
    assert Reply(make().xattr_names(asked(100), [])).body == b""


# -- the rest


@pytest.mark.parametrize("order", "<>")
def test_statfs(order: str) -> None:
    out = Reply(make(order).statfs(asked(), Statfs(1, 2, 3, 4, 5, 6, 7, 8)), order).struct(w.StatfsOut).st
    assert (out.blocks, out.bfree, out.bavail, out.files, out.ffree, out.bsize, out.namelen, out.frsize) == (
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
    )


def test_lock_in_the_way() -> None:
    lock = Reply(make().lock(asked(), Lock(1, 2, 3, 4))).struct(w.LkOut).lk
    assert (lock.start, lock.end, lock.type, lock.pid) == (2, 3, 1, 4)


def test_no_lock_in_the_way_is_the_asked_one_unlocked() -> None:
    lock = Reply(make().lock(asked(Lock(1, 2, 3, 4)), None)).struct(w.LkOut).lk
    assert (lock.start, lock.end, lock.type) == (2, 3, 2)


@pytest.mark.parametrize(
    ("value", "result", "data"),
    [(0, 0, b""), (-5, -5, b""), (b"out", 0, b"out"), (IoctlResult(3, b"x"), 3, b"x"), (bytearray(b"y"), 0, b"y")],
)
def test_ioctl(value: Any, result: int, data: bytes) -> None:
    reply = Reply(make().ioctl(asked(8), value))
    assert reply.struct(w.IoctlOut).result == result
    assert reply.body[16:] == data


def test_ioctl_with_more_than_there_is_room_for_is_an_error() -> None:
    with pytest.raises(ValueError, match="9 bytes where 8"):
        make().ioctl(asked(8), bytes(9))


@pytest.mark.parametrize("value", [None, "text", 1 << 40])
def test_ioctl_of_the_wrong_type_is_an_error(value: Any) -> None:
    with pytest.raises((TypeError, struct.error)):
        make().ioctl(asked(8), value)


def test_poll_bmap_and_lseek() -> None:
    assert Reply(make().poll(asked(), 5)).struct(w.PollOut).revents == 5
    assert Reply(make().bmap(asked(), 1 << 40)).struct(w.BmapOut).block == 1 << 40
    assert Reply(make().lseek(asked(), 1 << 40)).struct(w.LseekOut).offset == 1 << 40


def test_empty_reply_is_a_header() -> None:
    assert Reply(make().empty(asked())).length == 16
    assert make().nothing(asked()) is None
