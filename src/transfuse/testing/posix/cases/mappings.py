"""mmap(2): private and shared mappings, msync, the end of the file, agreement with read and write."""

from __future__ import annotations

import errno
import faulthandler
import mmap
import os
import resource
import signal

from transfuse.testing.posix.env import Env, Other, check, equal, get, needs, opened, put, refused
from transfuse.testing.posix.needs import Need

_PAGE = mmap.PAGESIZE
_RW = mmap.PROT_READ | mmap.PROT_WRITE


def case_private_reads(env: Env) -> None:
    """A private mapping shows the file."""
    data = os.urandom(3 * _PAGE + 100)
    put("f", data)
    with opened("f", os.O_RDONLY) as fd, mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as view:
        equal(view[:] == data, True, "the mapping is the content")


def case_private_writes_stay_private(env: Env) -> None:
    """The file doesn't change."""
    put("f", b"x" * 100)
    with opened("f", os.O_RDONLY) as fd, mmap.mmap(fd, 0, mmap.MAP_PRIVATE, _RW) as view:
        view[:5] = b"yyyyy"
    equal(get("f"), b"x" * 100, "content")


@needs(Need.MMAP_SHARED)
def case_shared_writes_reach_the_file(env: Env) -> None:
    """By read, without msync; after msync and unmapping too."""
    put("f", b"x" * 2 * _PAGE)
    with opened("f", os.O_RDWR) as fd:
        with mmap.mmap(fd, 2 * _PAGE, mmap.MAP_SHARED, _RW) as view:
            view[10:15] = b"first"
            equal(os.pread(fd, 5, 10), b"first", "read without msync")
            view[_PAGE : _PAGE + 6] = b"second"
            view.flush()
            equal(get("f")[_PAGE : _PAGE + 6], b"second", "read after msync")
        equal(os.pread(fd, 5, 10), b"first", "read after munmap")


@needs(Need.MMAP_SHARED)
def case_writes_are_seen_in_the_mapping(env: Env) -> None:
    """write changes a shared mapping at once, in another process too."""
    put("f", b"x" * _PAGE)
    with opened("f", os.O_RDWR) as fd, mmap.mmap(fd, _PAGE, mmap.MAP_SHARED, _RW) as view:
        equal(view[0:1], b"x", "before")
        os.pwrite(fd, b"new", 0)
        equal(view[:3], b"new", "after a write here")
        env.spawn(lambda _other: _overwrite(b"far")).result()
        equal(view[:3], b"far", "after a write in another process")


def _overwrite(data: bytes) -> None:
    with opened("f", os.O_WRONLY) as fd:
        os.pwrite(fd, data, 0)


@needs(Need.MMAP_SHARED)
def case_shared_between_processes(env: Env) -> None:
    """Two processes, each with its own mapping, see each other's bytes."""
    put("f", bytes(_PAGE))

    def answer(other: Other) -> bytes:
        with opened("f", os.O_RDWR) as there, mmap.mmap(there, _PAGE, mmap.MAP_SHARED, _RW) as view:
            other.ready()
            other.wait()
            seen = bytes(view[:4])
            view[4:8] = b"pong"
        return seen

    child = env.spawn(answer)
    with opened("f", os.O_RDWR) as fd, mmap.mmap(fd, _PAGE, mmap.MAP_SHARED, _RW) as view:
        child.wait_ready()
        view[:4] = b"ping"
        child.go()
        equal(child.result(), b"ping", "what the other saw")
        equal(view[4:8], b"pong", "what it answered")


@needs(Need.MMAP_SHARED)
def case_survives_unlink_and_close(env: Env) -> None:
    """A mapping lives without descriptor and name."""
    put("f", b"x" * _PAGE)
    with opened("f", os.O_RDWR) as fd:
        view = mmap.mmap(fd, _PAGE, mmap.MAP_SHARED, _RW)
    os.unlink("f")
    view[:3] = b"abc"
    view.flush()
    equal(view[:4], b"abcx", "mapping")
    view.close()


@needs(Need.MMAP_SHARED)
def case_tail_of_last_page_is_zero_and_not_written(env: Env) -> None:
    """Bytes behind the end in the last page read as zeros and don't make the file longer."""
    put("f", b"x" * 100)
    with opened("f", os.O_RDWR) as fd:
        with mmap.mmap(fd, 100, mmap.MAP_SHARED, _RW) as view:
            view[0] = ord("y")
            view.flush()
        equal(os.fstat(fd).st_size, 100, "size")
        os.ftruncate(fd, 200)
        equal(os.pread(fd, 200, 0), b"y" + b"x" * 99 + bytes(100), "content after growing")


def case_access_behind_the_end_is_sigbus(env: Env) -> None:
    """Truncating under a mapping: touching the lost page kills with SIGBUS."""
    put("f", b"x" * 3 * _PAGE)

    def touch(other: Other) -> None:
        faulthandler.disable()  # the signal is wanted, a report of it isn't
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with opened("f", os.O_RDONLY) as there:
            view = mmap.mmap(there, 3 * _PAGE, mmap.MAP_SHARED, mmap.PROT_READ)
            other.ready(view[2 * _PAGE])
            other.wait()
            other.ready(view[0])
            other.ready(view[2 * _PAGE])

    child = env.spawn(touch)
    equal(child.wait_ready(), ord("x"), "byte before")
    os.truncate("f", _PAGE)
    child.go()
    equal(child.wait_ready(), ord("x"), "byte of the page that stayed")
    equal(os.waitstatus_to_exitcode(child.status()), -signal.SIGBUS, "how the process ended")


@needs(Need.MMAP_SHARED)
def case_grows_with_the_file(env: Env) -> None:
    """Pages that come to exist by a later truncate can be touched."""
    put("f", b"x" * _PAGE)
    with opened("f", os.O_RDWR) as fd:
        os.ftruncate(fd, 4 * _PAGE)
        with mmap.mmap(fd, 4 * _PAGE, mmap.MAP_SHARED, _RW) as view:
            os.ftruncate(fd, _PAGE)
            os.ftruncate(fd, 4 * _PAGE)
            equal(view[2 * _PAGE : 2 * _PAGE + 4], bytes(4), "new bytes")
            view[3 * _PAGE] = 7
        equal(os.pread(fd, 1, 3 * _PAGE), b"\x07", "byte written through the mapping")


@needs(Need.MMAP_SHARED)
def case_write_moves_mtime(env: Env) -> None:
    """mtime and ctime move between the first store and the return of msync."""
    put("f", b"x" * _PAGE)

    def store() -> None:
        with opened("f", os.O_RDWR) as fd, mmap.mmap(fd, _PAGE, mmap.MAP_SHARED, _RW) as view:
            view[0] = ord("y")
            view.flush()
            os.fsync(fd)

    equal(env.changed(store, "f"), ["mc"], "times")


@needs(Need.MMAP_SHARED)
def case_shared_writing_needs_a_read_write_descriptor(env: Env) -> None:
    """EACCES on a read-only or write-only descriptor."""
    put("f", b"x" * _PAGE)
    with opened("f", os.O_RDONLY) as fd:
        refused(errno.EACCES, mmap.mmap, fd, _PAGE, mmap.MAP_SHARED, _RW)
    with opened("f", os.O_WRONLY) as fd:
        refused(errno.EACCES, mmap.mmap, fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_WRITE)


def case_directory_is_enodev(env: Env) -> None:
    """Directories can't be mapped."""
    with opened(".", os.O_RDONLY) as fd:
        refused((errno.ENODEV, errno.EACCES), mmap.mmap, fd, _PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ)


@needs(Need.MMAP_SHARED)
def case_offset(env: Env) -> None:
    """A mapping from the middle of a file."""
    put("f", b"".join(bytes([65 + index]) * _PAGE for index in range(8)))
    with opened("f", os.O_RDWR) as fd, mmap.mmap(fd, 2 * _PAGE, mmap.MAP_SHARED, _RW, offset=3 * _PAGE) as view:
        equal(view[0:1] + view[_PAGE : _PAGE + 1], b"DE", "bytes")
        view[_PAGE] = ord("!")
        equal(os.pread(fd, 1, 4 * _PAGE), b"!", "byte in the file")


@needs(Need.MMAP_SHARED)
def case_into_a_hole(env: Env) -> None:
    """Stores into the middle of a sparse file."""
    with opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, 100 * _PAGE)
        with mmap.mmap(fd, 100 * _PAGE, mmap.MAP_SHARED, _RW) as view:
            view[50 * _PAGE : 50 * _PAGE + 4] = b"here"
            view.flush()
        os.fsync(fd)
        equal(os.pread(fd, 12, 50 * _PAGE - 4), bytes(4) + b"here" + bytes(4), "content")
        equal(os.fstat(fd).st_size, 100 * _PAGE, "size")


@needs(Need.MMAP_SHARED)
def case_of_an_appending_descriptor_stores_in_place(env: Env) -> None:
    """O_APPEND is for write only: what is stored through the mapping stays where it is, the size too."""
    put("f", b"x" * 3 * _PAGE)
    with opened("f", os.O_RDWR | os.O_APPEND) as fd:
        with mmap.mmap(fd, 3 * _PAGE, mmap.MAP_SHARED, _RW) as view:
            view[_PAGE : _PAGE + 5] = b"first"
            view.flush()
        os.fsync(fd)
        equal(os.fstat(fd).st_size, 3 * _PAGE, "size")
        os.write(fd, b"end")
    content = get("f")
    equal((content[_PAGE : _PAGE + 6], content[-4:], len(content)), (b"firstx", b"xend", 3 * _PAGE + 3), "content")


@needs(Need.MMAP_SHARED)
def case_buffer_of_a_write_to_the_same_file(env: Env) -> None:
    """write from a mapping of the same file (a deadlock in careless filesystems)."""
    put("f", b"a" * _PAGE + b"b" * _PAGE)
    with opened("f", os.O_RDWR) as fd, mmap.mmap(fd, 2 * _PAGE, mmap.MAP_SHARED, _RW) as view:
        os.pwrite(fd, memoryview(view)[_PAGE:], 0)
        equal(os.pread(fd, 2 * _PAGE, 0), b"b" * 2 * _PAGE, "content")


@needs(Need.MMAP_SHARED)
def case_many_pages_from_two_processes(env: Env) -> None:
    """Odd and even pages written by two processes: all arrive."""

    def store(parity: int) -> None:
        with opened("f", os.O_RDWR) as there, mmap.mmap(there, 200 * _PAGE, mmap.MAP_SHARED, _RW) as view:
            for page in range(parity, 200, 2):
                view[page * _PAGE : (page + 1) * _PAGE] = bytes([page]) * _PAGE
            view.flush()

    put("f", bytes(200 * _PAGE))
    children = [env.spawn(lambda _other: store(0)), env.spawn(lambda _other: store(1))]
    for child in children:
        child.result()
    equal(get("f") == b"".join(bytes([page]) * _PAGE for page in range(200)), True, "content is right")


def case_mapping_keeps_old_file_after_rename_over(env: Env) -> None:
    """The mapping belongs to the inode."""
    put("f", b"old" + bytes(_PAGE))
    put("g", b"new" + bytes(_PAGE))
    with opened("f", os.O_RDONLY) as fd, mmap.mmap(fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        os.rename("g", "f")
        equal((view[:3], get("f")[:3]), (b"old", b"new"), "mapping and file")


def case_executable_mapping(env: Env) -> None:
    """PROT_EXEC works unless the mount is noexec."""
    put("f", b"\xc3" * _PAGE)
    with opened("f", os.O_RDONLY) as fd:
        if env.meets(Need.EXEC):
            mmap.mmap(fd, _PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
        else:
            refused(errno.EPERM, mmap.mmap, fd, _PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
    check(os.stat("f").st_size == _PAGE, "size changed")
