"""Files that are open but have no name any more."""

from __future__ import annotations

import mmap
import os
import stat

from transfuse.testing.posix.env import Env, Other, check, equal, needs, opened, put, read_all
from transfuse.testing.posix.needs import Need


def case_read_and_write(env: Env) -> None:
    """Both go on, and the name is free."""
    put("f", b"before")
    with opened("f", os.O_RDWR) as fd:
        os.unlink("f")
        equal(read_all(fd), b"before", "content")
        os.write(fd, b" after")
        equal((os.pread(fd, 100, 0), os.listdir(".")), (b"before after", []), "content and names")


def case_fstat_shows_no_links(env: Env) -> None:
    """st_nlink is 0; size, mode and inode number stay right."""
    put("f", b"12345", 0o640)
    ino = os.stat("f").st_ino
    with opened("f", os.O_RDWR) as fd:
        os.unlink("f")
        found = os.fstat(fd)
        equal((found.st_nlink, found.st_size, stat.S_IMODE(found.st_mode), found.st_ino), (0, 5, 0o640, ino), "stat")


def case_attributes_can_be_set(env: Env) -> None:
    """fchmod, futimens, ftruncate, fchown to oneself after the unlink."""
    put("f", b"12345")
    with opened("f", os.O_RDWR) as fd:
        os.unlink("f")
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 2)
        os.fchown(fd, os.geteuid(), os.getegid())
        os.utime(fd, ns=(10**18, 10**18))
        found = os.fstat(fd)
        equal((stat.S_IMODE(found.st_mode), found.st_size, found.st_mtime_ns), (0o600, 2, 10**18), "stat")


def case_new_file_of_the_same_name_is_another(env: Env) -> None:
    """Old descriptor and new name don't mix."""
    put("f", b"old")
    with opened("f", os.O_RDWR) as old:
        os.unlink("f")
        put("f", b"new")
        with opened("f", os.O_RDWR) as new:
            os.pwrite(old, b"OLD", 0)
            equal((os.pread(old, 3, 0), os.pread(new, 3, 0)), (b"OLD", b"new"), "contents")
            check(not os.path.samestat(os.fstat(old), os.fstat(new)), "the two files have one inode")


def case_several_descriptors(env: Env) -> None:
    """All see the same file until the last closes."""
    put("f")
    with opened("f", os.O_RDWR) as one, opened("f", os.O_RDWR) as two:
        os.unlink("f")
        os.write(one, b"shared")
        equal(os.read(two, 10), b"shared", "content")
        copy = os.dup(one)
        os.close(copy)
        os.write(two, b"!")
        equal(os.pread(one, 10, 0), b"shared!", "content after a close")


def case_opened_again_through_proc(env: Env) -> None:
    """/proc/self/fd gives a new description of the nameless file."""
    put("f", b"data")
    with opened("f", os.O_RDONLY) as fd:
        os.unlink("f")
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as again:
            os.write(again, b"DA")
        equal(os.read(fd, 10), b"DAta", "content")


def case_another_process_keeps_it(env: Env) -> None:
    """Unlinked here, still open there."""

    def hold(other: Other) -> bytes:
        with opened("f", os.O_RDWR) as there:
            other.ready()
            other.wait()
            os.pwrite(there, b"+", 4)
            return read_all(there)

    put("f", b"data")
    child = env.spawn(hold)
    child.wait_ready()
    os.unlink("f")
    child.go()
    equal(child.result(), b"data+", "content there")


def case_replaced_by_rename(env: Env) -> None:
    """The file that lost its name to a rename works like an unlinked one."""
    put("f", b"old")
    put("g", b"new")
    with opened("f", os.O_RDWR) as fd:
        os.rename("g", "f")
        os.write(fd, b"OLD more")
        os.ftruncate(fd, 5)
        equal((os.pread(fd, 10, 0), os.fstat(fd).st_nlink), (b"OLD m", 0), "content and links")


def case_directory_can_go_before_the_file_is_closed(env: Env) -> None:
    """rmdir works when only an open, unlinked file was in it."""
    os.mkdir("d")
    put("d/f", b"x")
    with opened("d/f", os.O_RDWR) as fd:
        os.unlink("d/f")
        equal(os.listdir("d"), [], "names")
        os.rmdir("d")
        os.write(fd, b"still here")
        equal(os.fstat(fd).st_size, 10, "size")


def case_100_at_once(env: Env) -> None:
    """Each keeps its own content; no names appear."""
    fds = []
    for index in range(100):
        put("f", b"%03d" % index)
        fds.append(os.open("f", os.O_RDWR))
        os.unlink("f")
    equal(os.listdir("."), [], "names")
    equal([os.pread(fd, 3, 0) for fd in fds], [b"%03d" % index for index in range(100)], "contents")
    for fd in fds:
        os.close(fd)


def case_large_write_after_unlink(env: Env) -> None:
    """A temporary file as programs make them: create, unlink, write much, map, read."""
    with opened("f", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600) as fd:
        os.unlink("f")
        for index in range(64):
            os.write(fd, bytes([index]) * 65_536)
        with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as view:
            equal((len(view), view[63 * 65_536], view[0]), (64 * 65_536, 63, 0), "size and bytes")
        os.fsync(fd)


@needs(Need.USER_XATTR)
def case_extended_attributes(env: Env) -> None:
    """By descriptor after the unlink."""
    put("f")
    with opened("f", os.O_RDWR) as fd:
        os.setxattr(fd, "user.a", b"1")
        os.unlink("f")
        equal(os.getxattr(fd, "user.a"), b"1", "value")
        os.setxattr(fd, "user.b", b"2")
        equal(os.getxattr(fd, "user.b"), b"2", "new value")


def case_ctime_moves_on_unlink(env: Env) -> None:
    """Losing the last name is a change of the inode."""
    put("f")
    with opened("f", os.O_RDONLY) as fd:
        before = os.fstat(fd).st_ctime_ns
        env.tick()
        os.unlink("f")
        check(os.fstat(fd).st_ctime_ns > before, "ctime did not move")
