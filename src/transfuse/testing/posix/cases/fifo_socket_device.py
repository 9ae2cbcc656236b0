"""mknod(2): fifos with real data through them, sockets, devices."""

from __future__ import annotations

import errno
import os
import socket
import stat

from transfuse.testing.posix.env import ALICE, Env, Other, check, equal, mode_of, needs, opened, put, refused, try_open
from transfuse.testing.posix.needs import Need


@needs(Need.FIFO)
def case_fifo_is_made(env: Env) -> None:
    """Type, masked mode, size 0, one link."""
    os.umask(0o027)
    os.mkfifo("p", 0o666)
    found = os.lstat("p")
    equal((stat.S_ISFIFO(found.st_mode), mode_of("p"), found.st_size, found.st_nlink), (True, 0o640, 0, 1), "fifo")


@needs(Need.FIFO)
def case_fifo_carries_data(env: Env) -> None:
    """A megabyte from one process to another."""

    def write(_other: Other) -> None:
        with opened("p", os.O_WRONLY) as there:
            for _ in range(16):
                os.write(there, b"x" * 65_536)

    os.mkfifo("p")
    child = env.spawn(write)
    with opened("p", os.O_RDONLY) as fd:
        total = 0
        while part := os.read(fd, 1 << 20):
            total += len(part)
    child.result()
    equal((total, os.stat("p").st_size), (1 << 20, 0), "bytes through it, and its size")


@needs(Need.FIFO)
def case_fifo_open_rules(env: Env) -> None:
    """Non-blocking: reading succeeds, writing without a reader is ENXIO."""
    os.mkfifo("p")
    refused(errno.ENXIO, try_open, "p", os.O_WRONLY | os.O_NONBLOCK)
    with opened("p", os.O_RDONLY | os.O_NONBLOCK) as reader, opened("p", os.O_WRONLY | os.O_NONBLOCK) as writer:
        os.write(writer, b"now")
        equal(os.read(reader, 10), b"now", "data")


@needs(Need.FIFO)
def case_fifo_of_existing_name_is_eexist(env: Env) -> None:
    """Any existing name."""
    put("f")
    os.mkdir("d")
    for name in ("f", "d"):
        refused(errno.EEXIST, os.mkfifo, name)


@needs(Need.FIFO)
def case_fifo_is_not_seekable(env: Env) -> None:
    """ESPIPE."""
    os.mkfifo("p")
    with opened("p", os.O_RDWR) as fd:
        refused(errno.ESPIPE, os.lseek, fd, 0, os.SEEK_SET)


@needs(Need.FIFO)
def case_fifo_updates_parent_times(env: Env) -> None:
    """As every new name does."""
    os.mkdir("d")
    equal(env.changed(lambda: os.mkfifo("d/p"), "d"), ["mc"], "times")


@needs(Need.FIFO, Need.USERS)
def case_fifo_by_user(env: Env) -> None:
    """Users may make fifos; the mode is obeyed."""
    os.chmod(".", 0o777)
    env.as_user(*ALICE)(os.mkfifo, "p", 0o600)
    found = os.lstat("p")
    equal((found.st_uid, found.st_gid), tuple(ALICE), "owner")
    env.as_user(54322, 54332).refused(errno.EACCES, try_open, "p", os.O_RDWR)


@needs(Need.SOCKET)
def case_socket_binds_and_connects(env: Env) -> None:
    """A stream socket at a name: connect, send, answer."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        check(stat.S_ISSOCK(os.lstat("s").st_mode), "the node is no socket")
        server.listen()

        def talk(_other: Other) -> bytes:
            with socket.socket(socket.AF_UNIX) as there:
                there.connect("s")
                there.sendall(b"hello")
                return there.recv(10)

        child = env.spawn(talk)
        peer, _address = server.accept()
        with peer:
            equal(peer.recv(10), b"hello", "what was sent")
            peer.sendall(b"hi")
        equal(child.result(), b"hi", "the answer")


@needs(Need.SOCKET)
def case_socket_name_in_use(env: Env) -> None:
    """A second bind is EADDRINUSE; connecting without a listener ECONNREFUSED; opening ENXIO."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with socket.socket(socket.AF_UNIX) as second:
            refused(errno.EADDRINUSE, second.bind, "s")
            refused(errno.ECONNREFUSED, second.connect, "s")
    refused(errno.ENXIO, try_open, "s", os.O_RDWR)
    os.unlink("s")
    with socket.socket(socket.AF_UNIX) as again:
        again.bind("s")


@needs(Need.SOCKET)
def case_socket_is_reached_after_rename(env: Env) -> None:
    """The socket belongs to the inode, not the name."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("s")
        server.listen()
        os.rename("s", "t")
        client.connect("t")


@needs(Need.SOCKET)
def case_connecting_to_a_file_is_econnrefused(env: Env) -> None:
    """A regular file is no socket."""
    put("f")
    with socket.socket(socket.AF_UNIX) as client:
        refused(errno.ECONNREFUSED, client.connect, "f")


@needs(Need.DEVICE, Need.ROOT)
def case_device_works(env: Env) -> None:
    """A node for /dev/null and /dev/zero: numbers, type, and the device behind them."""
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod("zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    found = os.lstat("zero")
    equal((stat.S_ISCHR(found.st_mode), os.major(found.st_rdev), os.minor(found.st_rdev)), (True, 1, 5), "node")
    with opened("null", os.O_RDWR) as null, opened("zero", os.O_RDONLY) as zero:
        equal((os.write(null, b"gone"), os.read(null, 10), os.read(zero, 4)), (4, b"", bytes(4)), "data")


@needs(Need.DEVICE, Need.ROOT)
def case_large_device_numbers(env: Env) -> None:
    """12 bits of major, 20 of minor."""
    os.mknod("b", stat.S_IFBLK | 0o600, os.makedev(0xABC, 0xFEDCB))
    found = os.lstat("b").st_rdev
    equal((os.major(found), os.minor(found), stat.S_ISBLK(os.lstat("b").st_mode)), (0xABC, 0xFEDCB, True), "numbers")


@needs(Need.DEVICE, Need.USERS)
def case_device_by_user_is_eperm(env: Env) -> None:
    """mknod of devices takes CAP_MKNOD."""
    os.chmod(".", 0o777)
    env.as_user(*ALICE).refused(errno.EPERM, os.mknod, "n", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    check(not os.path.lexists("n"), "a node was made")


def case_mknod_makes_regular_files(env: Env) -> None:
    """S_IFREG and no type at all."""
    os.mknod("f", stat.S_IFREG | 0o640)
    os.mknod("g", 0o600)
    equal([stat.S_ISREG(os.stat(name).st_mode) for name in ("f", "g")], [True, True], "types")
    put("f", b"data")
    refused(errno.EEXIST, os.mknod, "f", stat.S_IFREG | 0o640)


def case_mknod_of_directory_is_refused(env: Env) -> None:
    """EPERM says Linux, EINVAL POSIX."""
    refused((errno.EPERM, errno.EINVAL), os.mknod, "d", stat.S_IFDIR | 0o755)


@needs(Need.FIFO)
def case_chmod_chown_rename_of_fifo(env: Env) -> None:
    """A fifo is an inode like others."""
    os.mkfifo("p")
    os.chmod("p", 0o610)
    os.utime("p", ns=(10**18, 10**18))
    os.rename("p", "q")
    found = os.lstat("q")
    equal((stat.S_IMODE(found.st_mode), found.st_mtime_ns), (0o610, 10**18), "mode and mtime")
