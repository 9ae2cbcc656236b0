"""Open files as Python sees them."""

from __future__ import annotations

import errno
import io
import os
import threading
import time
from typing import Any

import pytest

from transfuse.client import Client
from transfuse.client.files import parse_mode
from transfuse.fs.values import Attr, Opened
from transfuse.testing import ScriptedPeer
from transfuse.wire import flags as f
from transfuse.wire.opcodes import Opcode


def number(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(OSError) as caught:
        call(*args, **kwargs)
    return errno.errorcode[caught.value.errno or 0]


def test_files_over_every_wire(fs_client: Client) -> None:
    c = fs_client
    data = os.urandom(300_000)
    with c.open("/f", "wb") as file:
        assert isinstance(file, io.BufferedWriter)
        file.write(data)
    with c.open("/f", "rb") as file:
        assert isinstance(file, io.BufferedReader)
        assert file.read(10) == data[:10]
        file.seek(-10, os.SEEK_END)
        assert file.read() == data[-10:]
    with c.open("/f", "r+b") as file:
        file.seek(5)
        file.write(b"HELLO")
        file.seek(0)
        assert file.read(12) == data[:5] + b"HELLO" + data[10:12]
    with c.open("/f", "ab", buffering=0) as file:
        assert isinstance(file, io.RawIOBase)
        file.write(b"tail")
        assert file.tell() == len(data) + 4
    with c.open("/t", "w") as file:
        file.write("zeile\näöü\n")
    with c.open("/t") as file:
        assert list(file) == ["zeile\n", "äöü\n"]
    assert number(c.open, "/t", "x") == "EEXIST"
    assert c.read_text("/t") == "zeile\näöü\n"


def test_raw_file_is_what_io_expects(mem: Client) -> None:
    with mem.open_raw("/f", os.O_RDWR | os.O_CREAT) as raw:
        assert raw.readable() and raw.writable() and raw.seekable()
        assert raw.write(b"0123456789") == 10
        assert raw.seek(2) == 2 and raw.read(3) == b"234" and raw.tell() == 5
        assert raw.seek(1, os.SEEK_CUR) == 6 and raw.readall() == b"6789"
        assert raw.read(1) == b""
        assert raw.truncate(4) == 4 and raw.seek(0, os.SEEK_END) == 4
        assert raw.stat().st_size == 4
        raw.fsync()
        raw.flush()
    with pytest.raises(ValueError, match="closed"):
        raw.read(1)
    raw.close()


def test_a_hole_reads_as_zeros(mem: Client) -> None:
    with mem.open_raw("/f", os.O_RDWR | os.O_CREAT) as raw:
        raw.seek(5)
        raw.write(b"x")
        raw.seek(0)
        assert raw.readall() == b"\0\0\0\0\0x"


def test_reading_a_file_opened_for_writing_is_unsupported(mem: Client) -> None:
    with mem.open_raw("/f", os.O_WRONLY | os.O_CREAT) as raw, pytest.raises(io.UnsupportedOperation):
        raw.read(1)
    with mem.open_raw("/f") as raw, pytest.raises(io.UnsupportedOperation):
        raw.write(b"x")
    with mem.open_raw("/f") as raw, pytest.raises(io.UnsupportedOperation):
        raw.truncate(0)


def test_appending_goes_to_the_end_whoever_moved_it(mem: Client) -> None:
    with mem.open_raw("/f", os.O_WRONLY | os.O_CREAT | os.O_APPEND) as a:
        a.write(b"one")
        with mem.open_raw("/f", os.O_WRONLY | os.O_APPEND) as b:
            b.write(b"two")
        a.seek(0)
        a.write(b"three")
    assert mem.read_bytes("/f") == b"onetwothree"


@pytest.mark.parametrize(
    ("path", "flags", "expected"),
    [
        ("/d", os.O_WRONLY, "EISDIR"),
        ("/d", os.O_RDONLY | os.O_CREAT, "EISDIR"),
        ("/new/", os.O_WRONLY | os.O_CREAT, "EISDIR"),
        ("/", os.O_WRONLY | os.O_CREAT, "EISDIR"),
        ("/f/", os.O_RDONLY, "ENOTDIR"),
        ("/f", os.O_RDONLY | os.O_DIRECTORY, "ENOTDIR"),
        ("/l", os.O_RDONLY | os.O_NOFOLLOW, "ELOOP"),
        ("/l", os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, "ELOOP"),
        ("/l", os.O_WRONLY | os.O_CREAT | os.O_EXCL, "EEXIST"),
        ("/loop", os.O_WRONLY | os.O_CREAT, "ELOOP"),
        ("/nope", os.O_RDONLY, "ENOENT"),
        ("/p", os.O_RDONLY, "ENXIO"),
        ("/f", os.O_RDWR | os.O_TMPFILE, "ENOTDIR"),
        ("/d", os.O_RDONLY | os.O_TMPFILE, "EINVAL"),
    ],
)
def test_what_can_not_be_opened(mem: Client, path: str, flags: int, expected: str) -> None:
    mem.mkdir("/d")
    mem.write_bytes("/f", b"")
    mem.symlink("f", "/l")
    mem.symlink("loop", "/loop")
    mem.mkfifo("/p")
    assert number(mem.open_file, path, flags) == expected


def test_creating_through_a_dangling_link_makes_its_target(mem: Client) -> None:
    mem.mkdir("/d")
    mem.symlink("d/real", "/l")
    mem.symlink("../l", "/d/l2")
    mem.write_bytes("/d/l2", b"x")
    assert mem.read_bytes("/d/real") == b"x"


def test_a_temporary_file_gets_its_name_later(mem: Client) -> None:
    with mem.open_raw("/", os.O_RDWR | os.O_TMPFILE, 0o600) as raw:
        raw.write(b"x")
        assert mem.listdir("/") == []
        mem.link_file(raw, "/named")
    assert mem.read_bytes("/named") == b"x"


def test_an_unlinked_open_file_lives_on(mem: Client) -> None:
    mem.write_bytes("/f", b"data")
    with mem.open_raw("/f") as raw:
        mem.unlink("/f")
        assert not mem.exists("/f") and raw.readall() == b"data" and raw.stat().st_nlink == 0


def test_large_writes_and_reads_are_cut_to_what_was_agreed() -> None:
    with ScriptedPeer(max_write=8192, max_pages=2) as peer, Client(peer) as client:
        peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5))
        peer.expect(Opcode.OPEN).reply_open(fh=7)
        file = client.open_file("/a", os.O_RDWR)
        for offset, size in ((10, 8192), (8202, 8192), (16394, 3616)):
            peer.expect(Opcode.WRITE, fh=7, offset=offset, size=size).reply(size.to_bytes(8, "little"))
        assert file.pwrite(bytes(20_000), 10) == 20_000
        for size in (8192, 100):
            peer.expect(Opcode.READ, fh=7, size=8192).reply(bytes(size))
        assert len(file.pread(20_000, 0)) == 8292
        peer.expect(Opcode.FLUSH, fh=7).reply()
        peer.expect(Opcode.RELEASE, fh=7).reply()
        file.close()


def opened(peer: ScriptedPeer, client: Client, open_flags: int = 0, flags: int = os.O_RDWR) -> Any:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5), entry_timeout_s=60)
    peer.expect(Opcode.OPEN, nodeid=5).reply_open(7, open_flags)
    return client.open_raw("/a", flags)


def closing(peer: ScriptedPeer, flush: bool = True) -> None:
    if flush:
        peer.expect(Opcode.FLUSH, fh=7).reply()
    peer.expect(Opcode.RELEASE, fh=7).reply()


def test_a_short_write_is_returned_and_nothing_at_all_is_eio(peer: ScriptedPeer, client: Client) -> None:
    with opened(peer, client) as raw:
        peer.expect(Opcode.WRITE).reply((3).to_bytes(8, "little"))
        assert raw.write(b"12345") == 3
        peer.expect(Opcode.WRITE, offset=3).reply(bytes(8))
        assert number(raw.write, b"45") == "EIO"
        closing(peer)


def test_the_error_of_flush_reaches_close_and_the_file_is_released(peer: ScriptedPeer, client: Client) -> None:
    raw = opened(peer, client)
    peer.expect(Opcode.FLUSH).reply_error(errno.ENOSPC)
    peer.expect(Opcode.RELEASE, fh=7).reply()
    assert number(raw.close) == "ENOSPC"
    assert raw.closed


def test_noflush_spares_the_flush(peer: ScriptedPeer, client: Client) -> None:
    raw = opened(peer, client, f.FOPEN_NOFLUSH)
    closing(peer, flush=False)
    raw.close()


def test_a_nonseekable_file_has_no_positions(peer: ScriptedPeer, client: Client) -> None:
    with opened(peer, client, f.FOPEN_NONSEEKABLE) as raw:
        assert not raw.seekable() and number(raw.seek, 0) == "ESPIPE"
        closing(peer)


def test_direct_io_tells_the_lock_owner(peer: ScriptedPeer, client: Client) -> None:
    with opened(peer, client, f.FOPEN_DIRECT_IO) as raw:
        owner = client.lock_owner
        peer.expect(Opcode.READ, read_flags=f.FUSE_READ_LOCKOWNER, lock_owner=owner).reply(b"x")
        raw.read(1)
        kill = f.FUSE_WRITE_KILL_SUIDGID
        peer.expect(Opcode.WRITE, write_flags=f.FUSE_WRITE_LOCKOWNER | kill, lock_owner=owner).reply(
            (1).to_bytes(8, "little")
        )
        raw.write(b"x")
        closing(peer)


def test_open_carries_no_creation_flags_and_o_largefile(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5))
    peer.expect(Opcode.OPEN, flags=os.O_WRONLY | os.O_TRUNC | 0o100000, open_flags=1).reply_open(7)
    raw = client.open_raw("/a", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY)
    closing(peer)
    raw.close()


def test_without_atomic_o_trunc_a_setattr_follows() -> None:
    with ScriptedPeer(flags=0) as peer, Client(peer) as client:
        peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5))
        peer.expect(Opcode.OPEN, flags=os.O_WRONLY | 0o100000).reply_open(7)
        peer.expect(Opcode.SETATTR, valid=f.FATTR_SIZE, size=0).reply_attr(Attr.file(5))
        raw = client.open_raw("/a", os.O_WRONLY | os.O_TRUNC)
        closing(peer)
        raw.close()


def test_create_is_used_only_for_a_name_that_is_missing(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_error(errno.ENOENT)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | 0o100000
    body = peer.created(Attr.file(5), Opened(fh=7))
    peer.expect(Opcode.CREATE, name=b"a", flags=flags, mode=0o100640, umask=0o022).reply(body)
    raw = client.open_raw("/a", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    closing(peer)
    raw.close()


def test_a_server_without_create_gets_mknod_and_open_for_ever(peer: ScriptedPeer, client: Client) -> None:
    for name in (b"a", b"b"):
        peer.expect(Opcode.LOOKUP, name=name).reply_error(errno.ENOENT)
        if name == b"a":
            peer.expect(Opcode.CREATE, name=name).reply_error(errno.ENOSYS)
        peer.expect(Opcode.MKNOD, name=name, mode=0o100644).reply_entry(Attr.file(5), entry_timeout_s=60)
        peer.expect(Opcode.OPEN, nodeid=5).reply_open(7)
        raw = client.open_raw("/" + name.decode(), os.O_WRONLY | os.O_CREAT, 0o644)
        closing(peer)
        raw.close()


def test_a_created_file_of_another_type_is_released_and_forgotten(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_error(errno.ENOENT)
    peer.expect(Opcode.CREATE).reply(peer.created(Attr.directory(9), Opened(fh=7)))
    with pytest.raises(Exception, match="where type 0o100000 was made"):
        client.open_raw("/a", os.O_WRONLY | os.O_CREAT)
    peer.expect(Opcode.RELEASE, nodeid=9, fh=7).reply()
    peer.expect(Opcode.LOOKUP, name=b"b").reply_error(errno.ENOENT)
    client.exists("/b")
    client.exchange.flush_forgets()
    assert peer.forgotten == {9: 1}


def test_open_by_enosys_needs_no_requests_from_then_on(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5), entry_timeout_s=60)
    peer.expect(Opcode.OPEN).reply_error(errno.ENOSYS)
    peer.expect(Opcode.FLUSH, fh=0).reply_error(errno.ENOSYS)
    for _ in range(3):
        client.open_raw("/a").close()


def test_a_file_nobody_closed_is_released_with_the_next_request(peer: ScriptedPeer, client: Client) -> None:
    raw = opened(peer, client)
    with pytest.warns(ResourceWarning, match="unclosed file"):
        del raw
    peer.expect(Opcode.RELEASE, nodeid=5, fh=7).reply()
    peer.expect(Opcode.LOOKUP, name=b"b").reply_error(errno.ENOENT)
    client.exists("/b")


@pytest.mark.parametrize("mode", ["", "rw", "z", "rt+b", "r++", "bt"])
def test_modes_that_mean_nothing_are_refused(mode: str) -> None:
    with pytest.raises(ValueError):
        parse_mode(mode)


def test_text_needs_a_buffer_and_bytes_need_no_encoding(mem: Client) -> None:
    with pytest.raises(ValueError):
        mem.open("/f", "w", buffering=0)
    with pytest.raises(ValueError):
        mem.open("/f", "wb", encoding="utf-8")


# -- locks ------------------------------------------------------------------------------------------------------------

LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN = 1, 2, 4, 8


def test_locks_of_two_processes_over_every_wire(fs_client: Client) -> None:
    fs_client.write_bytes("/f", b"")
    other = fs_client.as_user(0)
    with fs_client.open_raw("/f", os.O_RDWR) as a, other.open_raw("/f", os.O_RDWR) as b:
        a.lockf(LOCK_EX, 10)
        assert number(b.lockf, LOCK_EX | LOCK_NB, 5) == "EAGAIN"
        b.lockf(LOCK_EX | LOCK_NB, 5, 10)
        found = b.getlk(LOCK_EX, 5)
        assert found is not None and (found.kind, found.start, found.end) == (1, 0, 9)
        threading.Timer(0.05, a.lockf, (LOCK_UN,)).start()
        b.lockf(LOCK_EX, 10, timeout_s=5)
        assert b.getlk(LOCK_SH, 10) is None
        b.flock(LOCK_SH)
        a.flock(LOCK_SH | LOCK_NB)
        assert number(a.flock, LOCK_EX | LOCK_NB) == "EAGAIN"


def test_a_lock_that_is_not_had_in_time_is_a_timeout_and_leaves_nothing(fs_client: Client) -> None:
    fs_client.write_bytes("/f", b"")
    other = fs_client.as_user(0)
    with fs_client.open_raw("/f", os.O_RDWR) as a, other.open_raw("/f", os.O_RDWR) as b:
        a.lockf(LOCK_EX)
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            b.lockf(LOCK_EX, timeout_s=0.05)
        assert time.monotonic() - begun < 1
        a.lockf(LOCK_UN)
        a.lockf(LOCK_EX | LOCK_NB)
        assert not fs_client.exchange.session.in_flight


def test_closing_any_file_ends_the_owners_posix_locks(mem: Client) -> None:
    mem.write_bytes("/f", b"")
    other = mem.as_user(0)
    with mem.open_raw("/f", os.O_RDWR) as a, other.open_raw("/f", os.O_RDWR) as b:
        a.lockf(LOCK_EX)
        mem.open_raw("/f").close()
        b.lockf(LOCK_EX | LOCK_NB)


def test_a_lock_on_the_wrong_kind_of_file_is_ebadf(mem: Client) -> None:
    mem.write_bytes("/f", b"")
    with mem.open_raw("/f") as raw:
        assert number(raw.lockf, LOCK_EX) == "EBADF"
        assert number(raw.lockf, 99) == "EINVAL"


def test_without_locks_negotiated_there_are_none() -> None:
    with ScriptedPeer(flags=0) as peer, Client(peer) as client:
        with opened(peer, client) as raw:
            assert number(raw.lockf, LOCK_EX) == "ENOLCK"
            closing(peer)
