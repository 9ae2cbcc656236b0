# cython: language_level=3, boundscheck=False, wraparound=False
"""statx(2) straight into an Attr: the system call behind every lookup and getattr of a host directory.

The plain form is filesystems.hostdir.syscalls.make_probe, by ctypes and struct: 2.5 µs on tmpfs, of which the call itself
is 0.6; here 1.3. Same arguments, same results; tests compare the two.

Two steps that begin with a probe are here as well, each as one call: `grasp` (get hold of what a name leads to) and
`open` (open a name for real if it still leads to a known inode). Both answer None for anything out of the ordinary and
have had no effect then: the caller takes the plain way, which knows about retries and says what is wrong.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport ENOENT, errno
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from posix.unistd cimport close

import os

from transfuse.fs.values import Attr

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/stat.h>
    #include <sys/sysmacros.h>
    """

cdef extern from "sys/stat.h" nogil:
    struct statx_timestamp:
        int64_t tv_sec
        uint32_t tv_nsec

    struct statx_t "statx":
        uint32_t stx_mask
        uint32_t stx_blksize
        uint64_t stx_attributes
        uint32_t stx_nlink
        uint32_t stx_uid
        uint32_t stx_gid
        uint16_t stx_mode
        uint64_t stx_ino
        uint64_t stx_size
        uint64_t stx_blocks
        uint64_t stx_attributes_mask
        statx_timestamp stx_atime
        statx_timestamp stx_btime
        statx_timestamp stx_ctime
        statx_timestamp stx_mtime
        uint32_t stx_rdev_major
        uint32_t stx_rdev_minor
        uint32_t stx_dev_major
        uint32_t stx_dev_minor

    int statx(int dirfd, const char *path, int flags, unsigned int mask, statx_t *buffer)

cdef extern from "fcntl.h" nogil:
    int openat(int dirfd, const char *path, int flags, ...)
    enum:
        O_CLOEXEC
        O_NOFOLLOW

cdef enum:
    O_PATH = 0o10000000  # one number on every architecture that Python runs on, as in os.O_PATH
    PATH_ROOM = 32
    FLAGS = 0x100 | 0x800 | 0x1000  # AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH
    WANTED = 0xFFF  # STATX_BASIC_STATS | STATX_BTIME
    BTIME = 0x800
    KIND_SHIFT = 64
    BIRTH_SHIFT = 68

cdef int64_t NS = 1000000000
cdef object _new = Attr.__new__
cdef object _makedev = os.makedev
cdef object _Attr = Attr


cdef inline int64_t _ns(statx_timestamp *t) noexcept:
    return t.tv_sec * NS + t.tv_nsec


cdef class Probe:
    """probe(fd, name) → (Attr, identity), or None when there is no such name; see make_probe."""

    cdef uint32_t major, minor

    def __init__(self, uint32_t major, uint32_t minor):
        self.major = major
        self.minor = minor

    def __call__(self, int fd, bytes name):
        cdef statx_t st
        cdef const char *path = PyBytes_AS_STRING(name)
        cdef int result, number
        with nogil:
            result = statx(fd, path, FLAGS, WANTED, &st)
            number = errno
        if result:
            if number == ENOENT:
                return None
            raise OSError(number, os.strerror(number))
        return self.found(&st)

    cdef tuple found(self, statx_t *st):
        attr = _new(_Attr)
        attr.mode = st.stx_mode
        attr.size = st.stx_size
        attr.nlink = st.stx_nlink
        attr.uid = st.stx_uid
        attr.gid = st.stx_gid
        attr.atime_ns = _ns(&st.stx_atime)
        attr.mtime_ns = _ns(&st.stx_mtime)
        attr.ctime_ns = _ns(&st.stx_ctime)
        attr.blocks = st.stx_blocks
        attr.blksize = st.stx_blksize
        attr.rdev = _makedev(st.stx_rdev_major, st.stx_rdev_minor) if st.stx_rdev_major or st.stx_rdev_minor else 0
        attr.flags = 0
        attr.attributes = st.stx_attributes
        attr.attributes_mask = st.stx_attributes_mask
        attr.timeout_s = None
        if st.stx_mask & BTIME:
            born = _ns(&st.stx_btime)
            attr.btime_ns = born
        else:
            attr.btime_ns = None
            born = 0
        key = (<object> born) << BIRTH_SHIFT | (<object> (st.stx_mode >> 12)) << KIND_SHIFT | st.stx_ino
        if st.stx_dev_minor == self.minor and st.stx_dev_major == self.major:
            attr.ino = st.stx_ino
            return attr, key
        # Another filesystem is mounted inside: its numbers must not look like hard links of ours.
        dev = (<object> st.stx_dev_major) << 20 | st.stx_dev_minor
        attr.ino = ((<object> st.stx_ino) ^ dev << 40) & 0xFFFFFFFFFFFFFFFF
        return attr, (dev, key)

    def grasp(self, int fd, bytes name):
        """An O_PATH fd of `name` in directory `fd`, with the attributes and identity of what it leads to; or None."""
        cdef statx_t st
        cdef const char *path = PyBytes_AS_STRING(name)
        cdef int at, result
        with nogil:
            at = openat(fd, path, O_PATH | O_NOFOLLOW | O_CLOEXEC)
            result = -1 if at < 0 else statx(at, b"", FLAGS, WANTED, &st)
            if at >= 0 and result:
                close(at)
        if result:
            return None
        try:
            return at, self.found(&st)
        except BaseException:
            close(at)
            raise

    def open(self, int fd, bytes name, key, int flags, int fd_directory):
        """Open `name` in directory `fd` with `flags`, if it leads to the inode with identity `key`: (fd, Attr), or None.

        Never by the name itself, which may lead to a device by now, but by an O_PATH fd that was looked at first, through
        `fd_directory`: /proc/self/fd held open (-1: by its path, 1 µs slower).
        """
        cdef statx_t st
        cdef const char *path = PyBytes_AS_STRING(name)
        cdef char number[PATH_ROOM]
        cdef int at, result = -1
        cdef tuple found
        with nogil:
            at = openat(fd, path, O_PATH | O_NOFOLLOW | O_CLOEXEC)
            if at >= 0:
                result = statx(at, b"", FLAGS, WANTED, &st)
        if at < 0:
            return None
        try:
            if result:
                return None
            found = self.found(&st)
            if found[1] != key:
                return None
            if fd_directory >= 0:
                snprintf(number, PATH_ROOM, b"%d", at)
            else:
                snprintf(number, PATH_ROOM, b"/proc/self/fd/%d", at)
            with nogil:
                result = openat(fd_directory, number, flags | O_CLOEXEC)
            return None if result < 0 else (result, found[0])
        finally:
            close(at)
