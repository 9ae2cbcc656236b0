from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from transfuse.filesystems.hostdir.files import PASSTHROUGH_READ_BYTES
from transfuse.fs.request import Request
from transfuse.fs.values import Features, Lock

Served = Any
Make = Callable[..., Any]
USER = 65534
KILL = 4
GETFLAGS, SETFLAGS, FSGETXATTR = 0x80086601, 0x40086602, 0x801C581F
NODUMP, IMMUTABLE, APPEND_ONLY = 0x40, 0x10, 0x20


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


@pytest.fixture
def text(served: Served) -> Served:
    """A file `a` with "hello"."""
    (served.path / "a").write_text("hello")
    served.hand_over()
    return served


# ---- opening


def test_open_reads_what_is_there(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node)
    assert (text.read(fh), text.read(fh, 2, 1), text.read(fh, 10, 99)) == (b"hello", b"el", b"")
    text.release(node, fh)


def test_open_truncates(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node, os.O_WRONLY | os.O_TRUNC)
    assert text.size(node) == 0
    text.release(node, fh)


@pytest.mark.needs("root")
def test_open_for_reading_truncates_for_a_user(text: Served) -> None:
    node = text.look("a")
    fh = text.fs.open(Request(uid=USER, gid=USER), node, os.O_RDONLY | os.O_TRUNC).fh
    assert text.size(node) == 0
    text.release(node, fh)


@pytest.mark.needs("root")
def test_open_that_truncates_for_a_user_clears_setuid(text: Served) -> None:
    (text.path / "a").chmod(0o6777)
    node = text.look("a")
    fh = text.fs.open(Request(uid=USER, gid=USER), node, os.O_WRONLY | os.O_TRUNC).fh
    assert (text.size(node), text.fs.getattr(text.req, node, None).mode & 0o7777) == (0, 0o777)
    text.release(node, fh)


def test_open_of_a_directory_is_eisdir(served: Served) -> None:
    assert errno_of(lambda: served.open(1)) == errno.EISDIR


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_open_of_a_fifo_does_not_open_it(served: Served, flags: int) -> None:
    os.mkfifo(served.path / "fifo")
    node = served.look("fifo")
    assert errno_of(lambda: served.open(node, flags)) == errno.ENXIO


def test_appending_ignores_the_offset(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node, os.O_WRONLY | os.O_APPEND)
    text.write(node, fh, b"!", 0)
    assert (text.path / "a").read_text() == "hello!"
    text.release(node, fh)


def test_a_page_written_back_keeps_its_place_in_a_file_open_for_appending(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node, os.O_RDWR | os.O_APPEND)
    assert text.fs.write(text.req, node, fh, b"J", 0, 1) == 1
    assert text.fs.write(text.req, node, fh, b"!", 0, 0) == 1
    assert (text.path / "a").read_text() == "Jello!"
    text.release(node, fh)


@pytest.mark.needs("root")
def test_writeback_opens_an_append_only_file(make: Make) -> None:
    served = make(writeback=True)
    entry, opened = served.create("a")
    flags = struct.unpack("I", served.fs.ioctl(served.req, entry.nodeid, opened.fh, GETFLAGS, 0, b"", 4, 0))[0]
    try:
        served.fs.ioctl(served.req, entry.nodeid, opened.fh, SETFLAGS, 0, struct.pack("I", flags | APPEND_ONLY), 0, 0)
        fh = served.open(entry.nodeid, os.O_WRONLY | os.O_APPEND)
        assert served.fs.write(served.req, entry.nodeid, fh, b"abc", 0, 1) == 3
        assert served.fs.write(served.req, entry.nodeid, fh, b"abcde", 0, 1) == 5
        assert (served.path / "a").read_bytes() == b"abcde"
        served.release(entry.nodeid, fh)
    finally:
        served.fs.ioctl(served.req, entry.nodeid, opened.fh, SETFLAGS, 0, struct.pack("I", flags), 0, 0)
    served.release(entry.nodeid, opened.fh)


def test_direct_io_flag_does_not_reach_the_host(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node, os.O_RDWR | os.O_DIRECT)
    assert text.write(node, fh, b"x", 1) == 1
    text.release(node, fh)


def test_a_released_handle_is_ebadf(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node)
    text.release(node, fh)
    assert errno_of(lambda: text.read(fh)) == errno.EBADF
    assert errno_of(lambda: text.release(node, fh)) == errno.EBADF


def test_unknown_handles_are_ebadf(served: Served) -> None:
    fs, req = served.fs, served.req
    lock = Lock(0, 0, 9)
    calls: list[Callable[[], object]] = [
        lambda: fs.read(req, 1, 77, 10, 0),
        lambda: fs.write(req, 1, 77, b"x", 0, 0),
        lambda: fs.fsync(req, 1, 77, False),
        lambda: fs.fallocate(req, 1, 77, 0, 0, 1),
        lambda: fs.lseek(req, 1, 77, 0, os.SEEK_DATA),
        lambda: fs.copy_file_range(req, 1, 77, 0, 1, 77, 0, 1, 0),
        lambda: fs.ioctl(req, 1, 77, GETFLAGS, 0, b"", 4, 0),
        lambda: fs.getlk(req, 1, 77, 1, lock),
        lambda: fs.setlk(req, 1, 77, 1, lock, False),
        lambda: fs.flock(req, 1, 77, 1, 0, False),
        lambda: fs.readdir(req, 1, 77, 0),
        lambda: fs.releasedir(req, 1, 77, 0),
        lambda: fs.fsyncdir(req, 1, 77, False),
        lambda: fs.release(req, 1, 77, 0, 0, False),
    ]
    assert [errno_of(call) for call in calls] == [errno.EBADF] * len(calls)


def test_a_directory_handle_is_no_file_handle(served: Served) -> None:
    fh = served.fs.opendir(served.req, 1, 0).fh
    assert errno_of(lambda: served.read(fh)) == errno.EBADF
    served.fs.releasedir(served.req, 1, fh, 0)


def test_writing_to_a_file_open_for_reading_is_ebadf(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node)
    assert errno_of(lambda: text.write(node, fh, b"x")) == errno.EBADF
    text.release(node, fh)


def test_every_open_file_costs_one_fd_and_release_gives_it_back(text: Served) -> None:
    node = text.look("a")
    text.release(node, text.open(node))
    before = len(os.listdir("/proc/self/fd"))
    fhs = [text.open(node) for _ in range(10)]
    assert len(os.listdir("/proc/self/fd")) == before + 10
    for fh in fhs:
        text.release(node, fh)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_failed_open_costs_no_fd(text: Served) -> None:
    node = text.look("a")
    (text.path / "a").unlink()
    before = len(os.listdir("/proc/self/fd"))
    assert errno_of(lambda: text.open(node)) == errno.ESTALE
    assert len(os.listdir("/proc/self/fd")) == before


# ---- creating


def test_create_makes_and_opens(served: Served) -> None:
    entry, opened = served.create("new", 0o640)
    assert entry.attr.mode & 0o7777 == 0o640
    served.write(entry.nodeid, opened.fh, b"abc")
    assert (served.path / "new").read_bytes() == b"abc"
    served.release(entry.nodeid, opened.fh)


def test_create_opens_what_appeared_meanwhile(text: Served) -> None:
    entry, opened = text.create("a")
    assert text.read(opened.fh) == b"hello"
    text.release(entry.nodeid, opened.fh)


def test_create_truncates_what_appeared_meanwhile(text: Served) -> None:
    entry, opened = text.create("a", flags=os.O_RDWR | os.O_TRUNC)
    assert text.read(opened.fh) == b""
    text.release(entry.nodeid, opened.fh)


def test_exclusive_create_of_a_name_that_exists_is_eexist(text: Served) -> None:
    assert errno_of(lambda: text.create("a", flags=os.O_RDWR | os.O_EXCL)) == errno.EEXIST


def test_create_over_a_symlink_does_not_follow_it(served: Served) -> None:
    outside = served.path.parent / (served.path.name + "-outside")
    (served.path / "l").symlink_to(outside)
    assert errno_of(lambda: served.create("l")) is not None
    assert not outside.exists()


@pytest.mark.needs("root")
def test_create_does_not_open_for_a_user_what_root_may_read(text: Served) -> None:
    (text.path / "a").chmod(0o600)
    text.path.chmod(0o777)
    req = Request(uid=USER, gid=USER)
    assert errno_of(lambda: text.fs.create(req, 1, b"a", 0o644, 0, os.O_RDONLY)) == errno.EACCES
    assert list(text.fs.nodes.by_id) == [1]


def test_create_with_a_mode_that_forbids_writing_is_writable(served: Served) -> None:
    entry, opened = served.create("new", 0o400)
    assert served.write(entry.nodeid, opened.fh, b"abc") == 3
    served.release(entry.nodeid, opened.fh)


def test_tmpfile_has_no_name_until_it_is_linked(served: Served) -> None:
    entry, opened = served.fs.tmpfile(served.req, 1, 0o600, 0, os.O_RDWR)
    served.write(entry.nodeid, opened.fh, b"abc")
    assert os.listdir(served.path) == [] and served.size(entry.nodeid) == 3
    linked = served.fs.link(served.req, entry.nodeid, 1, b"named")
    assert linked.nodeid == entry.nodeid
    served.release(entry.nodeid, opened.fh)
    assert (served.path / "named").read_bytes() == b"abc" and served.size(entry.nodeid) == 3


def test_tmpfile_stays_known_after_its_last_close(served: Served) -> None:
    entry, opened = served.fs.tmpfile(served.req, 1, 0o600, 0, os.O_RDWR)
    served.release(entry.nodeid, opened.fh)
    assert served.fs.getattr(served.req, entry.nodeid, None).nlink == 0


def test_exclusive_tmpfile_cannot_be_linked(served: Served) -> None:
    entry, opened = served.fs.tmpfile(served.req, 1, 0o600, 0, os.O_RDWR | os.O_EXCL)
    assert errno_of(lambda: served.fs.link(served.req, entry.nodeid, 1, b"x")) == errno.ENOENT
    served.release(entry.nodeid, opened.fh)


# ---- what the peer may cache


def test_a_backing_file_is_offered(text: Served) -> None:
    node = text.look("a")
    opened = text.fs.open(text.req, node, os.O_RDWR)
    assert os.fstat(opened.backing_fd).st_ino == (text.path / "a").stat().st_ino
    text.release(node, opened.fh)


@pytest.mark.parametrize(("size", "offered"), [(PASSTHROUGH_READ_BYTES, True), (PASSTHROUGH_READ_BYTES - 1, False)])
def test_a_file_opened_for_reading_is_offered_from_a_size_on(text: Served, size: int, offered: bool) -> None:
    os.truncate(text.path / "a", size)
    node = text.look("a")
    opened = text.fs.open(text.req, node, os.O_RDONLY)
    assert (opened.backing_fd is not None) == offered
    text.release(node, opened.fh)


def test_open_of_a_replaced_name_is_not_the_new_file(text: Served) -> None:
    node = text.look("a")
    (text.path / "b").write_text("other")
    os.rename(text.path / "b", text.path / "a")
    assert errno_of(lambda: text.fs.open(text.req, node, os.O_RDONLY)) == errno.ESTALE


@pytest.mark.parametrize("options", [{"passthrough": False}, {"writeback": True}, {"direct_io": True}])
def test_no_backing_file_is_offered(make: Make, options: dict[str, bool]) -> None:
    served = make(**options)
    (served.path / "a").touch()
    node = served.look("a")
    opened = served.fs.open(served.req, node, os.O_RDWR)
    assert opened.backing_fd is None
    served.release(node, opened.fh)


@pytest.mark.needs("root")
def test_a_setuid_file_is_not_offered(text: Served) -> None:
    """Not for reading either: a later open for writing would share the backing file."""
    (text.path / "a").chmod(0o4755)
    os.truncate(text.path / "a", PASSTHROUGH_READ_BYTES)
    node = text.look("a")
    opened = [text.fs.open(text.req, node, flags) for flags in (os.O_RDONLY, os.O_WRONLY)]
    assert [o.backing_fd is None for o in opened] == [True, True]
    for o in opened:
        text.release(node, o.fh)


def test_cached_data_is_kept_only_if_the_file_did_not_change(make: Make) -> None:
    served = make(passthrough=False)
    (served.path / "a").write_text("1")
    node = served.look("a")

    def keeps() -> bool:
        opened = served.fs.open(served.req, node, os.O_RDONLY)
        served.release(node, opened.fh)
        return opened.keep_cache

    assert [keeps(), keeps()] == [False, True]
    (served.path / "a").write_text("22")
    assert [keeps(), keeps()] == [False, True]


def test_never_is_direct_io(make: Make) -> None:
    served = make(cache="never")
    entry, opened = served.create("a")
    assert opened.direct_io and served.fs.features.direct_io_allow_mmap
    served.release(entry.nodeid, opened.fh)


def test_always_keeps_data_listings_and_saves_flush(make: Make) -> None:
    served = make(cache="always")
    entry, opened = served.create("a")
    assert opened.keep_cache and opened.noflush
    served.release(entry.nodeid, opened.fh)
    listing = served.fs.opendir(served.req, 1, 0)
    assert listing.cache_dir and listing.keep_cache
    served.fs.releasedir(served.req, 1, listing.fh, 0)


def test_flush_is_asked_for_where_posix_locks_are_kept_here(text: Served) -> None:
    node = text.look("a")
    opened = text.fs.open(text.req, node, os.O_RDONLY)
    assert not opened.noflush
    text.release(node, opened.fh)


def test_writeback_can_read_what_was_opened_for_writing_and_does_not_append(make: Make) -> None:
    served = make(writeback=True)
    (served.path / "a").write_text("hello")
    node = served.look("a")
    fh = served.open(node, os.O_WRONLY | os.O_APPEND)
    assert served.read(fh) == b"hello"
    served.fs.write(served.req, node, fh, b"J", 0, 1)
    assert (served.path / "a").read_text() == "Jello"
    served.release(node, fh)


# ---- data


@pytest.mark.needs("root")
@pytest.mark.parametrize(("flags", "left"), [(KILL, 0o777), (0, 0o6777)])
def test_write_clears_setuid_when_told(text: Served, flags: int, left: int) -> None:
    (text.path / "a").chmod(0o6777)
    node = text.look("a")
    fh = text.open(node, os.O_WRONLY)
    text.fs.write(text.req, node, fh, b"x", 0, flags)
    assert (text.path / "a").stat().st_mode & 0o7777 == left
    text.release(node, fh)


def test_write_beyond_the_limit_is_efbig(served: Served) -> None:
    entry, opened = served.create("a")
    assert errno_of(lambda: served.write(entry.nodeid, opened.fh, b"x", (1 << 63) - 1)) in (errno.EFBIG, errno.EINVAL)
    served.release(entry.nodeid, opened.fh)


def test_fsync_of_files_and_directories(text: Served) -> None:
    node = text.look("a")
    fh, dh = text.open(node, os.O_WRONLY), text.fs.opendir(text.req, 1, 0).fh
    for datasync in (False, True):
        text.fs.fsync(text.req, node, fh, datasync)
        text.fs.fsyncdir(text.req, 1, dh, datasync)
    text.fs.syncfs(text.req, 1)
    text.release(node, fh)
    text.fs.releasedir(text.req, 1, dh, 0)


def test_fallocate_keeps_or_sets_the_size_and_punches(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node, os.O_RDWR)
    text.fs.fallocate(text.req, node, fh, 1, 0, 8192)
    assert text.size(node) == 5
    text.fs.fallocate(text.req, node, fh, 0, 0, 8192)
    assert text.size(node) == 8192
    text.fs.fallocate(text.req, node, fh, 3, 0, 4096)
    assert text.read(fh, 5) == bytes(5)
    text.release(node, fh)


def test_lseek_finds_holes_and_data(served: Served) -> None:
    entry, opened = served.create("a")
    served.write(entry.nodeid, opened.fh, b"x", 1 << 20)
    fs, req = served.fs, served.req
    assert fs.lseek(req, entry.nodeid, opened.fh, 0, os.SEEK_HOLE) == 0
    assert 0 < fs.lseek(req, entry.nodeid, opened.fh, 0, os.SEEK_DATA) <= 1 << 20
    assert errno_of(lambda: fs.lseek(req, entry.nodeid, opened.fh, 1 << 30, os.SEEK_DATA)) == errno.ENXIO
    assert errno_of(lambda: fs.lseek(req, entry.nodeid, opened.fh, 0, os.SEEK_SET)) == errno.EINVAL
    served.release(entry.nodeid, opened.fh)


def test_copy_file_range_copies(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node)
    entry, opened = text.create("b")
    assert text.fs.copy_file_range(text.req, node, fh, 1, entry.nodeid, opened.fh, 2, 100, 0) == 4
    assert text.read(opened.fh) == b"\0\0ello"
    text.release(node, fh)
    text.release(entry.nodeid, opened.fh)


def test_ioctl_passes_file_attributes_and_nothing_else(served: Served) -> None:
    entry, opened = served.create("a")
    fs, req, fh = served.fs, served.req, opened.fh
    assert errno_of(lambda: fs.ioctl(req, entry.nodeid, fh, 0x5401, 0, b"", 60, 0)) == errno.ENOTTY
    flags = struct.unpack("I", fs.ioctl(req, entry.nodeid, fh, GETFLAGS, 0, b"", 4, 0))[0]
    assert fs.ioctl(req, entry.nodeid, fh, SETFLAGS, 0, struct.pack("I", flags | NODUMP), 0, 0) == 0
    assert struct.unpack("I", fs.ioctl(req, entry.nodeid, fh, GETFLAGS, 0, b"", 4, 0))[0] == flags | NODUMP
    assert len(fs.ioctl(req, entry.nodeid, fh, FSGETXATTR, 0, b"", 28, 0)) == 28
    served.release(entry.nodeid, fh)


@pytest.mark.needs("root")
def test_ioctl_lets_only_root_make_a_file_immutable(served: Served) -> None:
    entry, opened = served.create("a")
    req = Request(uid=USER, gid=USER)
    flags = struct.unpack("I", served.fs.ioctl(served.req, entry.nodeid, opened.fh, GETFLAGS, 0, b"", 4, 0))[0]
    data = struct.pack("I", flags | IMMUTABLE)
    assert errno_of(lambda: served.fs.ioctl(req, entry.nodeid, opened.fh, SETFLAGS, 0, data, 0, 0)) == errno.EPERM
    served.release(entry.nodeid, opened.fh)


def test_ioctl_with_too_little_data_is_einval(served: Served) -> None:
    entry, opened = served.create("a")
    assert (
        errno_of(lambda: served.fs.ioctl(served.req, entry.nodeid, opened.fh, SETFLAGS, 0, b"x", 0, 0)) == errno.EINVAL
    )
    served.release(entry.nodeid, opened.fh)


# ---- locks


def test_posix_locks_end_at_flush(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node, os.O_RDWR)
    text.fs.setlk(text.req, node, fh, 1, Lock(1, 0, 9), False)
    assert errno_of(lambda: text.fs.setlk(text.req, node, fh, 2, Lock(0, 0, 9), False)) == errno.EAGAIN
    assert text.fs.getlk(text.req, node, fh, 2, Lock(0, 0, 9)) is not None
    text.fs.flush(text.req, node, fh, 1)
    text.fs.setlk(text.req, node, fh, 2, Lock(1, 0, 9), False)
    text.release(node, fh)


def test_locks_of_an_open_file_end_at_its_release(text: Served) -> None:
    node = text.look("a")
    one, two = text.open(node, os.O_RDWR), text.open(node, os.O_RDWR)
    text.fs.setlk(text.req, node, one, 111, Lock(1, 0, 9), False)  # F_OFD_SETLK: an owner that no FLUSH names
    text.release(node, one)
    text.fs.setlk(text.req, node, two, 222, Lock(1, 0, 9), False)
    text.release(node, two)


def test_a_read_lock_on_a_file_the_server_may_only_read(text: Served) -> None:
    (text.path / "a").chmod(0o444)
    node = text.look("a")
    fh = text.open(node)
    text.fs.setlk(text.req, node, fh, 1, Lock(0, 0, 9), False)
    text.fs.flush(text.req, node, fh, 1)
    text.release(node, fh)


def test_a_waiting_posix_lock_ends_when_the_request_is_interrupted(text: Served) -> None:
    node = text.look("a")
    fh = text.open(node, os.O_RDWR)
    text.fs.setlk(text.req, node, fh, 1, Lock(1, 0, 9), False)
    req = Request()
    threading.Timer(0.1, req.interrupt).start()
    started = time.monotonic()
    assert errno_of(lambda: text.fs.setlk(req, node, fh, 2, Lock(1, 0, 9), True)) == errno.EINTR
    assert time.monotonic() - started < 5
    text.fs.flush(text.req, node, fh, 1)
    text.release(node, fh)


def test_flock_excludes_between_open_files_and_ends_at_release(text: Served) -> None:
    node = text.look("a")
    one, two = text.open(node), text.open(node)
    text.fs.flock(text.req, node, one, 1, 1, False)
    assert errno_of(lambda: text.fs.flock(text.req, node, two, 2, 0, False)) == errno.EAGAIN
    with open(text.path / "a") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    text.release(node, one)
    text.fs.flock(text.req, node, two, 2, 1, False)
    text.release(node, two)


def test_a_waiting_flock_is_taken_when_it_is_free(text: Served) -> None:
    node = text.look("a")
    one, two = text.open(node), text.open(node)
    text.fs.flock(text.req, node, one, 1, 1, False)
    timer = threading.Timer(0.1, lambda: text.fs.flock(text.req, node, one, 1, 2, False))
    timer.start()
    text.fs.flock(Request(), node, two, 2, 1, True)
    timer.join()
    text.release(node, one)
    text.release(node, two)


# ---- directories


def test_listing_has_dots_and_names_with_cookies(text: Served) -> None:
    (text.path / "d").mkdir()
    assert text.names() == [b".", b"..", b"a", b"d"]
    fh = text.fs.opendir(text.req, 1, 0).fh
    entries = text.fs.readdir(text.req, 1, fh, 0)
    assert {e.name: e.kind for e in entries} == {b".": 4, b"..": 4, b"a": 8, b"d": 4}
    assert all(entry.cookie for entry in entries)
    text.fs.releasedir(text.req, 1, fh, 0)


def test_opendir_of_a_file_is_enotdir(text: Served) -> None:
    node = text.look("a")
    assert errno_of(lambda: text.fs.opendir(text.req, node, 0)) == errno.ENOTDIR


def test_names_are_any_bytes(served: Served) -> None:
    name = bytes(set(range(1, 256)) - {ord("/")})
    os.close(os.open(os.fsencode(served.path) + b"/" + name[:255], os.O_CREAT | os.O_WRONLY))
    assert name[:255] in served.names()


def test_without_passthrough_granted_data_is_kept_if_unchanged(text: Served) -> None:
    text.fs.mounted(SimpleNamespace(features=Features(passthrough=False), notify=None))
    node = text.look("a")
    kept = []
    for _ in range(2):
        opened = text.fs.open(text.req, node, os.O_RDONLY)
        kept.append(opened.keep_cache)
        text.release(node, opened.fh)
    assert kept == [False, True]
