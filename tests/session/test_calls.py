"""Requests into method calls: what each method is given, and what is refused before it is called."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

from session.peers import ALL_FLAGS, Peer, Tree, valid_requests
from transfuse.fs.base import OPERATION_NAMES
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, AttrChanges, Entry, Features, Lock, Opened, Statfs
from transfuse.session.calls import MAX_COPY_32, MAX_OFFSET, MAX_XATTR, decode_rdev
from transfuse.session.replies import encode_rdev
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode

ANSWERS: dict[str, Any] = {
    "lookup": Entry(Attr.file(2)),
    "symlink": Entry(Attr.symlink(4, 3)),
    "mknod": Entry(Attr.file(4)),
    "mkdir": Entry(Attr.directory(4)),
    "link": Entry(Attr.file(2, nlink=2)),
    "readlink": b"target",
    "getattr": Attr.file(2),
    "statx": Attr.file(2),
    "setattr": Attr.file(2),
    "getxattr": b"value",
    "listxattr": [b"user.a"],
    "statfs": Statfs(),
    "open": Opened(5),
    "create": (Entry(Attr.file(4)), Opened(5)),
    "tmpfile": (Entry(Attr.file(4)), Opened(5)),
    "read": b"data",
    "write": 4,
    "lseek": 0,
    "copy_file_range": 0,
    "ioctl": 0,
    "poll": 0,
    "bmap": 0,
    "opendir": Opened(5),
    "readdir": [],
}


class Recorder(Tree):
    """Has every operation, and keeps what each was called with."""

    features = Features(dont_mask=True)


def _recording(name: str) -> Callable[..., Any]:
    def method(self: Recorder, req: Request, *args: Any) -> Any:
        self.requests.append(req)
        self.calls.append((name, *(bytes(arg) if isinstance(arg, memoryview) else arg for arg in args)))
        return ANSWERS.get(name)

    return method


for _name in OPERATION_NAMES:
    setattr(Recorder, _name, _recording(_name))


def called(opcode: int, body: Any = b"", *tail: bytes, flags: int = ALL_FLAGS, order: str = "<", **header: Any) -> Any:
    """The one call that a request turns into."""
    peer = Peer(Recorder(), order=order, flags=flags)
    reply = peer.ask(opcode, body, *tail, **header)
    assert reply.errno == 0, os.strerror(reply.errno)
    assert peer.bugs == []
    (call,) = peer.fs.calls  # type: ignore[attr-defined]
    return call


def refused(opcode: int, body: Any = b"", *tail: bytes, flags: int = ALL_FLAGS, **header: Any) -> int:
    """The errno of a request that reaches no method."""
    peer = Peer(Recorder(), flags=flags)
    number = peer.ask(opcode, body, *tail, **header).errno
    assert peer.fs.calls == []  # type: ignore[attr-defined]
    assert peer.bugs == []
    return number


BIG = 0xFFFF_FFFF_FFFF_FFF0


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("opcode", "body", "tail", "call"),
    [
        (Opcode.LOOKUP, b"", b"x\0", ("lookup", 9, b"x")),
        (Opcode.SYMLINK, b"", b"x\0to\0", ("symlink", 9, b"x", b"to")),
        (Opcode.MKNOD, w.MknodIn(mode=0o100600, rdev=0, umask=0o22), b"x\0", ("mknod", 9, b"x", 0o100600, 0, 0o22)),
        (Opcode.MKDIR, w.MkdirIn(mode=0o700, umask=0o77), b"x\0", ("mkdir", 9, b"x", 0o700, 0o77)),
        (Opcode.UNLINK, b"", b"x\0", ("unlink", 9, b"x")),
        (Opcode.RMDIR, b"", b"x\0", ("rmdir", 9, b"x")),
        (Opcode.RENAME, w.RenameIn(newdir=3), b"a\0b\0", ("rename", 9, b"a", 3, b"b", 0)),
        (Opcode.RENAME2, w.Rename2In(newdir=3, flags=2), b"a\0b\0", ("rename", 9, b"a", 3, b"b", 2)),
        (Opcode.LINK, w.LinkIn(oldnodeid=2), b"x\0", ("link", 2, 9, b"x")),
        (Opcode.READLINK, b"", b"", ("readlink", 9)),
        (Opcode.GETATTR, w.GetattrIn(fh=7), b"", ("getattr", 9, None)),
        (Opcode.GETATTR, w.GetattrIn(getattr_flags=1, fh=7), b"", ("getattr", 9, 7)),
        (Opcode.STATX, w.StatxIn(getattr_flags=1, fh=7, sx_flags=2, sx_mask=0xFFF), b"", ("statx", 9, 7, 2, 0xFFF)),
        (Opcode.ACCESS, w.AccessIn(mask=6), b"", ("access", 9, 6)),
        (Opcode.GETXATTR, w.GetxattrIn(size=64), b"user.a\0", ("getxattr", 9, b"user.a")),
        (Opcode.LISTXATTR, w.GetxattrIn(size=64), b"", ("listxattr", 9)),
        (Opcode.SETXATTR, w.SetxattrIn(size=2, flags=1), b"user.a\0\0v", ("setxattr", 9, b"user.a", b"\0v", 1, False)),
        (
            Opcode.SETXATTR,
            w.SetxattrIn(size=0, setxattr_flags=1),
            b"user.a\0",
            ("setxattr", 9, b"user.a", b"", 0, True),
        ),
        (Opcode.REMOVEXATTR, b"", b"user.a\0", ("removexattr", 9, b"user.a")),
        (Opcode.STATFS, b"", b"", ("statfs", 9)),
        (Opcode.OPEN, w.OpenIn(flags=0o1002), b"", ("open", 9, 0o1002)),
        (
            Opcode.CREATE,
            w.CreateIn(flags=0o102, mode=0o100600, umask=0o22),
            b"x\0",
            ("create", 9, b"x", 0o100600, 0o22, 0o102),
        ),
        (Opcode.TMPFILE, w.CreateIn(flags=2, mode=0o100600), b"/\0", ("tmpfile", 9, 0o100600, 0, 2)),
        (Opcode.READ, w.ReadIn(fh=5, offset=3, size=4), b"", ("read", 9, 5, 4, 3)),
        (
            Opcode.WRITE,
            w.WriteIn(fh=5, offset=3, size=4, write_flags=4, flags=1),
            b"da\0a",
            ("write", 9, 5, b"da\0a", 3, 4),
        ),
        (Opcode.FLUSH, w.FlushIn(fh=5, lock_owner=BIG), b"", ("flush", 9, 5, BIG)),
        (Opcode.FSYNC, w.FsyncIn(fh=5, fsync_flags=1), b"", ("fsync", 9, 5, True)),
        (Opcode.FSYNCDIR, w.FsyncIn(fh=5), b"", ("fsyncdir", 9, 5, False)),
        (Opcode.FALLOCATE, w.FallocateIn(fh=5, offset=1, length=2, mode=3), b"", ("fallocate", 9, 5, 3, 1, 2)),
        (Opcode.LSEEK, w.LseekIn(fh=5, offset=6, whence=4), b"", ("lseek", 9, 5, 6, 4)),
        (
            Opcode.COPY_FILE_RANGE_64,
            w.CopyFileRangeIn(fh_in=1, off_in=2, nodeid_out=3, fh_out=4, off_out=5, len=1 << 40),
            b"",
            ("copy_file_range", 9, 1, 2, 3, 4, 5, 1 << 40, 0),
        ),
        (
            Opcode.IOCTL,
            w.IoctlIn(fh=5, flags=16, cmd=0x1234, arg=BIG, in_size=2, out_size=8),
            b"in",
            ("ioctl", 9, 5, 0x1234, BIG, b"in", 8, 16),
        ),
        (Opcode.POLL, w.PollIn(fh=5, kh=6, flags=1, events=3), b"", ("poll", 9, 5, 3, 6)),
        (Opcode.POLL, w.PollIn(fh=5, kh=6, flags=0, events=3), b"", ("poll", 9, 5, 3, None)),
        (Opcode.BMAP, w.BmapIn(block=5, blocksize=512), b"", ("bmap", 9, 5, 512)),
        (
            Opcode.GETLK,
            w.LkIn(fh=5, owner=BIG, lk=w.FileLock(start=1, end=9, type=1, pid=3)),
            b"",
            ("getlk", 9, 5, BIG, Lock(1, 1, 9, 3)),
        ),
        (
            Opcode.SETLK,
            w.LkIn(fh=5, owner=BIG, lk=w.FileLock(start=0, end=MAX_OFFSET, type=2)),
            b"",
            ("setlk", 9, 5, BIG, Lock(2, 0, MAX_OFFSET, 0), False),
        ),
        (
            Opcode.SETLK,
            w.LkIn(fh=5, owner=BIG, lk=w.FileLock(end=MAX_OFFSET, type=1), lk_flags=1),
            b"",
            ("flock", 9, 5, BIG, 1, False),
        ),
        (Opcode.OPENDIR, w.OpenIn(flags=0o200000), b"", ("opendir", 9, 0o200000)),
        (Opcode.READDIR, w.ReadIn(fh=5, offset=0, size=512), b"", ("readdir", 9, 5, 0)),
        (Opcode.RELEASEDIR, w.ReleaseIn(fh=5, flags=1), b"", ("releasedir", 9, 5, 1)),
        (
            Opcode.RELEASE,
            w.ReleaseIn(fh=5, flags=2, release_flags=2, lock_owner=BIG),
            b"",
            ("release", 9, 5, 2, BIG, True),
        ),
        (Opcode.SYNCFS, w.SyncfsIn(), b"", ("syncfs", 9)),
    ],
    ids=lambda value: value.name if isinstance(value, Opcode) else None,
)
def test_request_becomes_this_call(order: str, opcode: Opcode, body: Any, tail: bytes, call: tuple[Any, ...]) -> None:
    assert called(opcode, body, tail, order=order, nodeid=9) == call


def test_every_operation_is_reached_by_some_request() -> None:
    peer = Peer(Recorder())
    for opcode, body in valid_requests("<"):
        _, raw = peer.build(opcode, body)
        peer.give(raw)
    assert {call[0] for call in peer.fs.calls} == OPERATION_NAMES - {"flock", "map"}  # type: ignore[attr-defined]
    assert peer.bugs == []


def test_caller_is_passed_on() -> None:
    peer = Peer(Recorder())
    peer.ask(Opcode.UNLINK, b"x\0", uid=1, gid=2, pid=3, nodeid=9)
    req = peer.fs.requests[0]  # type: ignore[attr-defined]
    assert (req.uid, req.gid, req.pid, req.nodeid, req.opcode) == (1, 2, 3, 9, Opcode.UNLINK)


# -- attributes to change


def changes(valid: int, **values: int) -> AttrChanges:
    changed: AttrChanges = called(Opcode.SETATTR, w.SetattrIn(valid=valid, **values))[2]
    return changed


@pytest.mark.parametrize(
    ("valid", "values", "expected"),
    [
        (0, {"mode": 0o777, "size": 5}, {}),
        (f.FATTR_MODE, {"mode": 0o106755}, {"mode": 0o6755}),
        (f.FATTR_UID | f.FATTR_GID, {"uid": 5, "gid": 6}, {"uid": 5, "gid": 6}),
        (f.FATTR_UID, {"uid": 0xFFFFFFFF}, {"uid": 0xFFFFFFFF}),
        (f.FATTR_SIZE, {"size": 1 << 40}, {"size": 1 << 40}),
        (f.FATTR_ATIME, {"atime": 1, "atimensec": 5}, {"atime_ns": 1_000_000_005}),
        (f.FATTR_MTIME, {"mtime": 2**64 - 1, "mtimensec": 5}, {"mtime_ns": -999_999_995}),
        (f.FATTR_CTIME, {"ctime": 3}, {"ctime_ns": 3_000_000_000}),
        (f.FATTR_ATIME | f.FATTR_ATIME_NOW, {"atime": 1}, {"atime_now": True}),
        (f.FATTR_MTIME | f.FATTR_MTIME_NOW, {"mtime": 1}, {"mtime_now": True}),
        (f.FATTR_LOCKOWNER, {"lock_owner": BIG}, {"lock_owner": BIG}),
        (f.FATTR_KILL_SUIDGID, {}, {"kill_suidgid": True}),
    ],
)
def test_only_valid_attributes_change(valid: int, values: dict[str, int], expected: dict[str, Any]) -> None:
    assert changes(valid, **values) == AttrChanges(**expected)


def test_handle_of_setattr_is_passed_on_when_given() -> None:
    assert called(Opcode.SETATTR, w.SetattrIn(valid=f.FATTR_FH, fh=7))[3] == 7
    assert called(Opcode.SETATTR, w.SetattrIn(fh=7))[3] is None


@pytest.mark.parametrize("field", ["atimensec", "mtimensec", "ctimensec"])
def test_more_nanoseconds_than_a_second_has_are_refused(field: str) -> None:
    valid = f.FATTR_ATIME | f.FATTR_MTIME | f.FATTR_CTIME
    assert refused(Opcode.SETATTR, w.SetattrIn(valid=valid, **{field: 1_000_000_000})) == errno.EINVAL


# -- what depends on the connection


@pytest.mark.parametrize(("flags", "expected"), [(ALL_FLAGS, 0o22), (ALL_FLAGS & ~f.FUSE_DONT_MASK, 0)])
def test_umask_is_zero_where_the_peer_has_applied_it(flags: int, expected: int) -> None:
    assert called(Opcode.MKDIR, w.MkdirIn(mode=0o755, umask=0o22), b"x\0", flags=flags)[-1] == expected


def test_setxattr_of_a_peer_without_the_long_structure() -> None:
    flags = ALL_FLAGS & ~f.FUSE_SETXATTR_EXT
    assert called(Opcode.SETXATTR, struct.pack("<II", 3, 2), b"user.a\0abc", flags=flags) == (
        "setxattr",
        1,
        b"user.a",
        b"abc",
        2,
        False,
    )


@pytest.mark.parametrize("name", [b".", b".."])
def test_dots_are_looked_up_only_for_export(name: bytes) -> None:
    class Exporting(Recorder):
        features = Features(export_support=True)

    assert refused(Opcode.LOOKUP, name + b"\0") == errno.EINVAL
    peer = Peer(Exporting())
    assert peer.ask(Opcode.LOOKUP, name + b"\0", nodeid=3).errno == 0
    assert peer.fs.calls == [("lookup", 3, name)]  # type: ignore[attr-defined]


# -- names


NAMED: list[tuple[Opcode, Any, bytes]] = [
    (Opcode.LOOKUP, b"", b"%s\0"),
    (Opcode.SYMLINK, b"", b"%s\0target\0"),
    (Opcode.MKNOD, w.MknodIn(), b"%s\0"),
    (Opcode.MKDIR, w.MkdirIn(), b"%s\0"),
    (Opcode.UNLINK, b"", b"%s\0"),
    (Opcode.RMDIR, b"", b"%s\0"),
    (Opcode.RENAME, w.RenameIn(), b"%s\0ok\0"),
    (Opcode.RENAME, w.RenameIn(), b"ok\0%s\0"),
    (Opcode.RENAME2, w.Rename2In(), b"%s\0ok\0"),
    (Opcode.RENAME2, w.Rename2In(), b"ok\0%s\0"),
    (Opcode.LINK, w.LinkIn(), b"%s\0"),
    (Opcode.CREATE, w.CreateIn(), b"%s\0"),
]


@pytest.mark.parametrize(("opcode", "body", "tail"), NAMED)
@pytest.mark.parametrize("name", [b"a/b", b"/", b"", b".", b"..", b"../../etc/passwd"])
def test_name_that_leaves_its_directory_is_refused(opcode: Opcode, body: Any, tail: bytes, name: bytes) -> None:
    assert refused(opcode, body, tail % name) == errno.EINVAL


@pytest.mark.parametrize(("opcode", "body", "tail"), NAMED)
def test_name_beyond_every_limit_is_enametoolong(opcode: Opcode, body: Any, tail: bytes) -> None:
    assert refused(opcode, body, tail % (b"x" * 4096)) == errno.ENAMETOOLONG


@pytest.mark.parametrize(("opcode", "body", "tail"), NAMED)
def test_unterminated_name_is_refused(opcode: Opcode, body: Any, tail: bytes) -> None:
    assert refused(opcode, body, (tail % b"name")[:-1]) == errno.EINVAL


@pytest.mark.parametrize(("opcode", "body", "tail"), NAMED)
def test_bytes_behind_the_name_are_refused(opcode: Opcode, body: Any, tail: bytes) -> None:
    assert refused(opcode, body, (tail % b"name") + b"x\0") == errno.EINVAL


def test_symlink_target_may_be_any_path() -> None:
    assert called(Opcode.SYMLINK, b"", b"x\0../../a/b\0")[-1] == b"../../a/b"


@pytest.mark.parametrize("name", [b"", b"user." + b"x" * 251])
def test_attribute_name_of_no_or_too_many_bytes_is_erange(name: bytes) -> None:
    assert refused(Opcode.REMOVEXATTR, name + b"\0") == errno.ERANGE
    assert refused(Opcode.GETXATTR, w.GetxattrIn(size=9), name + b"\0") == errno.ERANGE
    assert refused(Opcode.SETXATTR, w.SetxattrIn(), name + b"\0") == errno.ERANGE


def test_attribute_value_beyond_linux_limit_is_e2big() -> None:
    assert refused(Opcode.SETXATTR, w.SetxattrIn(size=MAX_XATTR + 1), b"a\0" + bytes(MAX_XATTR + 1)) == errno.E2BIG


# -- lengths and offsets


@pytest.mark.parametrize("size", [0, 3, 5, 0xFFFFFFFF])
def test_write_that_lies_about_its_size_is_refused(size: int) -> None:
    assert refused(Opcode.WRITE, w.WriteIn(size=size), b"data") == errno.EINVAL


@pytest.mark.parametrize("size", [0, 3, 5, 0xFFFFFFFF])
def test_ioctl_that_lies_about_its_input_is_refused(size: int) -> None:
    assert refused(Opcode.IOCTL, w.IoctlIn(in_size=size, out_size=0), b"data") == errno.EINVAL


def test_ioctl_that_wants_more_than_a_message_holds_is_refused() -> None:
    assert refused(Opcode.IOCTL, w.IoctlIn(out_size=(1 << 20) + 1)) == errno.EINVAL


def test_read_beyond_what_was_agreed_is_refused() -> None:
    assert refused(Opcode.READ, w.ReadIn(size=(1 << 20) + 1)) == errno.EINVAL


@pytest.mark.parametrize(
    ("opcode", "body", "tail"),
    [
        (Opcode.READ, w.ReadIn(offset=1 << 63, size=1), b""),
        (Opcode.WRITE, w.WriteIn(offset=1 << 63, size=1), b"x"),
        (Opcode.WRITE, w.WriteIn(offset=MAX_OFFSET, size=1), b"x"),
        (Opcode.SETATTR, w.SetattrIn(valid=f.FATTR_SIZE, size=1 << 63), b""),
        (Opcode.LSEEK, w.LseekIn(offset=1 << 63, whence=3), b""),
        (Opcode.FALLOCATE, w.FallocateIn(offset=1 << 63, length=1), b""),
        (Opcode.FALLOCATE, w.FallocateIn(offset=1, length=MAX_OFFSET), b""),
        (Opcode.COPY_FILE_RANGE_64, w.CopyFileRangeIn(off_in=1 << 63), b""),
        (Opcode.COPY_FILE_RANGE_64, w.CopyFileRangeIn(off_out=1, len=MAX_OFFSET), b""),
    ],
)
def test_offset_beyond_the_largest_file_is_refused(opcode: Opcode, body: Any, tail: bytes) -> None:
    assert refused(opcode, body, tail) == errno.EINVAL


def test_copy_whose_answer_has_32_bits_is_cut_to_whole_pages() -> None:
    assert called(Opcode.COPY_FILE_RANGE, w.CopyFileRangeIn(len=1 << 40))[7] == MAX_COPY_32


@pytest.mark.parametrize("opcode", [Opcode.GETLK, Opcode.SETLK, Opcode.SETLKW])
@pytest.mark.parametrize(
    "lock",
    [
        w.FileLock(type=3, end=1),
        w.FileLock(type=0xFFFFFFFF, end=1),
        w.FileLock(start=2, end=1),
        w.FileLock(start=1 << 63, end=1 << 63),
    ],
)
def test_impossible_lock_is_refused(opcode: Opcode, lock: w.FileLock) -> None:
    assert refused(opcode, w.LkIn(lk=lock)) == errno.EINVAL


def test_lock_to_the_end_of_everything_ends_at_the_largest_offset() -> None:
    assert called(Opcode.SETLK, w.LkIn(lk=w.FileLock(type=1, end=2**64 - 1)))[4].end == Lock.MAX_END


# -- device numbers


@pytest.mark.parametrize(("major", "minor"), [(0, 0), (1, 3), (8, 0), (259, 1), (4095, 0xFFFFF), (5, 256), (0, 255)])
def test_device_numbers_survive_the_wire(major: int, minor: int) -> None:
    device = os.makedev(major, minor)
    assert decode_rdev(encode_rdev(device)) == device


def test_device_number_of_literal_value() -> None:
    # new_encode_dev(259, 0x12345): low byte of minor, major << 8, rest of minor << 12
    assert encode_rdev(os.makedev(259, 0x12345)) == 0x45 | 259 << 8 | 0x12300 << 12


def test_mknod_gets_an_os_device_number() -> None:
    raw = encode_rdev(os.makedev(259, 300))
    assert called(Opcode.MKNOD, w.MknodIn(mode=0o60600, rdev=raw), b"x\0")[4] == os.makedev(259, 300)
