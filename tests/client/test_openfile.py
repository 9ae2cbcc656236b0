"""What carries an fh beyond reading and writing."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from transfuse.client import Client, OpenFile
from transfuse.client.openfile import SEEK_DATA, SEEK_HOLE
from transfuse.fs.values import Attr
from transfuse.testing import ScriptedPeer
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode


def number(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(OSError) as caught:
        call(*args, **kwargs)
    return errno.errorcode[caught.value.errno or 0]


@pytest.fixture
def file(mem: Client) -> Any:
    opened = mem.open_file("/f", os.O_RDWR | os.O_CREAT)
    yield opened
    opened.close()


def scripted(peer: ScriptedPeer, client: Client, size: int = 100) -> OpenFile:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5, size=size), entry_timeout_s=60, attr_timeout_s=60)
    peer.expect(Opcode.OPEN, nodeid=5).reply_open(7)
    return client.open_file("/a", os.O_RDWR)


def done(peer: ScriptedPeer, file: OpenFile) -> None:
    peer.expect(Opcode.FLUSH, fh=7).reply()
    peer.expect(Opcode.RELEASE, fh=7).reply()
    file.close()


def test_pread_and_pwrite_at_offsets(file: OpenFile) -> None:
    assert file.pwrite(b"hello", 3) == 5
    assert file.pread(100, 0) == b"\0\0\0hello" and file.pread(2, 4) == b"el" and file.pread(5, 100) == b""
    assert file.append(b"!") == (1, 8)
    assert file.size() == 9


def test_attributes_of_an_open_file(file: OpenFile) -> None:
    file.ftruncate(10)
    file.fchmod(0o604)
    file.fchown(3, 4)
    file.futime((1, None))
    file.futime((None, 2))
    st = file.fstat()
    assert (st.st_size, st.st_mode, st.st_uid, st.st_gid) == (10, 0o100604, 3, 4)
    assert (st.st_atime_ns, st.st_mtime_ns) == (1, 2)


def test_holes_and_data(file: OpenFile) -> None:
    file.pwrite(b"x", 1 << 20)
    data = file.seek_data(0, SEEK_DATA)
    assert 0 < data <= 1 << 20
    assert file.seek_data(0, SEEK_HOLE) == 0
    assert number(file.seek_data, 2 << 20, SEEK_DATA) == "ENXIO"


def test_a_server_without_lseek_has_only_data(peer: ScriptedPeer, client: Client) -> None:
    file = scripted(peer, client)
    peer.expect(Opcode.LSEEK, fh=7, offset=10, whence=3).reply_error(errno.ENOSYS)
    assert file.seek_data(10, SEEK_DATA) == 10
    assert file.seek_data(10, SEEK_HOLE) == 100
    assert number(file.seek_data, 100, SEEK_DATA) == "ENXIO"
    done(peer, file)


def test_fallocate(file: OpenFile) -> None:
    file.fallocate(0, 0, 100)
    assert file.size() == 100
    file.pwrite(b"x" * 100, 0)
    file.fallocate(3, 10, 5)  # KEEP_SIZE | PUNCH_HOLE
    assert file.pread(20, 5) == b"xxxxx\0\0\0\0\0xxxxxxxxxx"
    assert number(file.fallocate, 8, 0, 4096) == "ENOTSUP"
    assert number(file.fallocate, 0, 0, 0) == "EINVAL"


def test_fallocate_by_a_server_that_can_not_is_eopnotsupp_for_ever(peer: ScriptedPeer, client: Client) -> None:
    file = scripted(peer, client)
    peer.expect(Opcode.FALLOCATE).reply_error(errno.ENOSYS)
    for _ in range(2):
        assert number(file.fallocate, 0, 0, 1) == "ENOTSUP"
    done(peer, file)


def test_fsync_is_a_success_where_there_is_none(peer: ScriptedPeer, client: Client) -> None:
    file = scripted(peer, client)
    peer.expect(Opcode.FSYNC, fh=7, fsync_flags=1).reply_error(errno.ENOSYS)
    file.fsync(datasync=True)
    file.fsync()
    done(peer, file)


def test_copies_are_asked_for_in_64_bits_then_in_32_then_done_here(peer: ScriptedPeer, client: Client) -> None:
    file = scripted(peer, client)
    peer.expect(Opcode.LOOKUP, name=b"b").reply_entry(Attr.file(6))
    peer.expect(Opcode.OPEN, nodeid=6).reply_open(8)
    target = client.open_file("/b", os.O_WRONLY)
    wanted = {"fh_in": 7, "nodeid_out": 6, "fh_out": 8}
    peer.expect(Opcode.COPY_FILE_RANGE_64, len=1 << 40, **wanted).reply(w.CopyFileRangeOut(bytes_copied=1 << 33))
    assert file.copy_range(0, target, 0, 1 << 40) == 1 << 33
    peer.expect(Opcode.COPY_FILE_RANGE_64).reply_error(errno.ENOSYS)
    peer.expect(Opcode.COPY_FILE_RANGE, len=0xFFFF_F000, **wanted).reply(w.WriteOut(size=10))
    assert file.copy_range(0, target, 0, 1 << 40) == 10
    peer.expect(Opcode.COPY_FILE_RANGE).reply_error(errno.ENOSYS)
    peer.expect(Opcode.READ, offset=0, size=3).reply(b"abc")
    peer.expect(Opcode.WRITE, offset=50, payload=b"abc").reply(w.WriteOut(size=3))
    assert file.copy_range(0, target, 50, 3) == 3
    peer.expect(Opcode.FLUSH, fh=8).reply()
    peer.expect(Opcode.RELEASE, fh=8).reply()
    target.close()
    done(peer, file)


def test_copies_over_every_wire(fs_client: Client) -> None:
    fs_client.write_bytes("/a", b"0123456789")
    with fs_client.open_raw("/a") as src, fs_client.open_raw("/b", os.O_RDWR | os.O_CREAT) as dst:
        assert fs_client.copy_file_range(src, dst, 4) == 4
        assert fs_client.copy_file_range(src, dst, 100) == 6
        assert fs_client.copy_file_range(src, dst, 100) == 0
        assert fs_client.copy_file_range(src, dst, 2, 0, 20) == 2
        assert (src.tell(), dst.tell()) == (10, 10)
    assert fs_client.read_bytes("/b") == b"0123456789" + bytes(10) + b"01"


def test_overlapping_copies_are_refused(file: OpenFile) -> None:
    file.pwrite(bytes(100), 0)
    assert number(file.copy_range, 0, file, 50, 60) == "EINVAL"


def test_ioctl(peer: ScriptedPeer, client: Client) -> None:
    file = scripted(peer, client)
    peer.expect(Opcode.IOCTL, fh=7, cmd=0x1234, arg=9, in_size=3, out_size=8, payload=b"abc").reply(
        w.IoctlOut(result=5), b"out"
    )
    assert file.ioctl(0x1234, b"abc", 8, 9) == (5, b"out")
    peer.expect(Opcode.IOCTL).reply(w.IoctlOut(result=-errno.EPERM))
    assert number(file.ioctl, 1) == "EPERM"
    peer.expect(Opcode.IOCTL).reply_error(errno.ENOSYS)
    assert number(file.ioctl, 1) == "ENOTTY"
    done(peer, file)


def test_a_directory_may_be_opened_and_synced(mem: Client) -> None:
    file = mem.open_file("/", os.O_RDONLY | os.O_DIRECTORY)
    file.fsync()
    assert file.fstat().st_mode & 0o170000 == 0o040000
    assert number(file.pread, 1, 0) == "EISDIR"
    file.close()
    mem.syncfs()


def test_a_closed_file_is_ebadf(mem: Client) -> None:
    file = mem.open_file("/f", os.O_RDWR | os.O_CREAT)
    file.close()
    for call in (lambda: file.pread(1, 0), lambda: file.pwrite(b"", 0), file.fstat, file.fsync, file.flush):
        assert number(call) == "EBADF"


def test_offsets_beyond_every_file_are_refused(file: OpenFile) -> None:
    assert number(file.pwrite, b"x", (1 << 63) - 1) == "EFBIG"
    assert number(file.pread, 1, -1) == "EINVAL"
    assert number(file.fallocate, 0, (1 << 63) - 1, 1) == "EFBIG"
