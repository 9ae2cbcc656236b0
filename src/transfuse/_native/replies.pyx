# cython: language_level=3, boundscheck=False, wraparound=False
"""The replies that metadata work consists of, attr_out and entry_out (alone or before open_out), packed in C.

The plain form is session.replies.attr_values with a struct.Struct: some 1.2 µs a reply, most of it divmod and building
the argument tuple; here 0.3. Layouts are those of wire.structs.AttrOut and EntryOut, which a test compares.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #define SWAP64(x) __builtin_bswap64(x)
    #define SWAP32(x) __builtin_bswap32(x)
    #define HOST_IS_BIG (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__)
    """
    uint64_t SWAP64(uint64_t x) noexcept nogil
    uint32_t SWAP32(uint32_t x) noexcept nogil
    bint HOST_IS_BIG

cdef int64_t NS = 1000000000


cdef inline void put64(char *at, uint64_t value, bint swap) noexcept:
    if swap:
        value = SWAP64(value)
    memcpy(at, &value, 8)


cdef inline void put32(char *at, uint32_t value, bint swap) noexcept:
    if swap:
        value = SWAP32(value)
    memcpy(at, &value, 4)


cdef int put_time(char *seconds_at, char *nsec_at, object time_ns, bint swap) except -1:
    cdef int overflow = 0
    cdef int64_t value = PyLong_AsLongLongAndOverflow(time_ns, &overflow)
    cdef int64_t seconds, rest
    if overflow:  # before 1677 or after 2262: 64 bits of nanoseconds end there, 64 bits of seconds do not
        later, left = divmod(time_ns, NS)
        seconds, rest = later, left
    else:
        seconds = value // NS
        rest = value - seconds * NS
        if rest < 0:
            seconds -= 1
            rest += NS
    put64(seconds_at, <uint64_t> seconds, swap)
    put32(nsec_at, <uint32_t> rest, swap)
    return 0


cdef int put_attr(char *at, object a, bint swap) except -1:
    """struct fuse_attr, 88 bytes. OverflowError when a value does not fit, as struct.pack would raise its own error."""
    cdef uint64_t rdev = a.rdev
    cdef uint64_t major, minor
    put64(at, a.ino, swap)
    put64(at + 8, a.size, swap)
    put64(at + 16, a.blocks, swap)
    put_time(at + 24, at + 48, a.atime_ns, swap)
    put_time(at + 32, at + 52, a.mtime_ns, swap)
    put_time(at + 40, at + 56, a.ctime_ns, swap)
    put32(at + 60, a.mode, swap)
    put32(at + 64, a.nlink, swap)
    put32(at + 68, a.uid, swap)
    put32(at + 72, a.gid, swap)
    if rdev:
        major = (rdev >> 8) & 0xFFF | (rdev >> 32) & ~<uint64_t> 0xFFF
        minor = rdev & 0xFF | (rdev >> 12) & ~<uint64_t> 0xFF
        rdev = minor & 0xFF | (major << 8) & 0xFFF00 | (minor & 0xFFF00) << 12
    put32(at + 76, <uint32_t> rdev, swap)
    put32(at + 80, a.blksize, swap)
    put32(at + 84, a.flags, swap)
    return 0


cdef inline bint _swap(str order):
    return (order == ">") != HOST_IS_BIG


cdef inline void put_header(char *at, uint32_t size, uint64_t unique, bint swap) noexcept:
    put32(at, size, swap)
    put32(at + 4, 0, swap)
    put64(at + 8, unique, swap)


def attr_reply(str order, uint64_t unique, uint64_t valid, uint32_t valid_nsec, attr):
    """out_header and attr_out, 120 bytes."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, 120)
    cdef char *at = PyBytes_AS_STRING(out)
    cdef bint swap = _swap(order)
    put_header(at, 120, unique, swap)
    put64(at + 16, valid, swap)
    put32(at + 24, valid_nsec, swap)
    put32(at + 28, 0, swap)
    put_attr(at + 32, attr, swap)
    return out


cdef int put_entry(
    char *at, object entry, uint64_t valid, uint32_t valid_nsec, uint64_t attr_valid, uint32_t attr_nsec, bint swap
) except -1:
    """struct fuse_entry_out, 128 bytes, of an entry that has attributes."""
    put64(at, entry.nodeid, swap)
    put64(at + 8, entry.generation, swap)
    put64(at + 16, valid, swap)
    put64(at + 24, attr_valid, swap)
    put32(at + 32, valid_nsec, swap)
    put32(at + 36, attr_nsec, swap)
    return put_attr(at + 40, entry.attr, swap)


def entry_reply(
    str order, uint64_t unique, uint64_t valid, uint32_t valid_nsec, uint64_t attr_valid, uint32_t attr_nsec, entry
):
    """out_header and entry_out, 144 bytes."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, 144)
    cdef char *at = PyBytes_AS_STRING(out)
    cdef bint swap = _swap(order)
    put_header(at, 144, unique, swap)
    put_entry(at + 16, entry, valid, valid_nsec, attr_valid, attr_nsec, swap)
    return out


def create_reply(
    str order,
    uint64_t unique,
    uint64_t valid,
    uint32_t valid_nsec,
    uint64_t attr_valid,
    uint32_t attr_nsec,
    entry,
    uint64_t fh,
    uint32_t open_flags,
    int32_t backing_id,
):
    """out_header, entry_out and open_out, 160 bytes."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, 160)
    cdef char *at = PyBytes_AS_STRING(out)
    cdef bint swap = _swap(order)
    put_header(at, 160, unique, swap)
    put_entry(at + 16, entry, valid, valid_nsec, attr_valid, attr_nsec, swap)
    put64(at + 144, fh, swap)
    put32(at + 152, open_flags, swap)
    put32(at + 156, <uint32_t> backing_id, swap)
    return out


def entry_into(
    bytearray out,
    Py_ssize_t offset,
    str order,
    uint64_t valid,
    uint32_t valid_nsec,
    uint64_t attr_valid,
    uint32_t attr_nsec,
    entry,
):
    """entry_out at `offset` of a listing."""
    if offset < 0 or offset + 128 > len(out):
        raise IndexError(f"entry at {offset} of {len(out)} bytes")
    put_entry(<char *> out + offset, entry, valid, valid_nsec, attr_valid, attr_nsec, _swap(order))
