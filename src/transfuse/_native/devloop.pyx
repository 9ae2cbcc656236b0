# cython: language_level=3, boundscheck=False, wraparound=False
"""The loop of one /dev/fuse worker in C: read a request, call the session, write what it answers.

The plain form is transports.base.serve_channel over DevFuseChannel.receive and send, and transports.spin, which says
when it looks for the next request instead of sleeping. This one does the same without building argument tuples and
memoryviews around each system call, and keeps the interpreter lock over the write of a small reply: such a write never
sleeps, and giving the lock away for a microsecond makes workers trade it back and forth.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EBADF, ECONNABORTED, EINTR, EINVAL, ENODEV, ENOENT, ENOTCONN, errno
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy
from posix.fcntl cimport F_SETFL, O_NONBLOCK, fcntl
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.types cimport off_t
from posix.unistd cimport read, write

import logging
import os

from transfuse.errors import RemoteProtocolError
from transfuse.wire.encode import RangeReply

cdef extern from "sched.h" nogil:
    int sched_yield()

cdef extern from "unistd.h" nogil:
    ssize_t pread(int fd, void *buf, size_t count, off_t offset)

log = logging.getLogger("transfuse.transports")

cdef enum:
    SMALL_REPLY = 4096
    HEADER = 16


cdef struct Spin:
    int64_t enough, soon_ns, gap_ns, lost_ns, window_ns, busy_ns  # transports.spin.NUMBERS
    int64_t quick, busy_until, lost, window
    bint looking


cdef inline int64_t _now() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t> now.tv_sec * 1000000000 + now.tv_nsec


cdef inline void _look(int fd, Spin *state, bint on) noexcept nogil:
    if on != state.looking:
        state.looking = on
        fcntl(fd, F_SETFL, O_NONBLOCK if on else 0)


cdef ssize_t _read(int fd, void *base, size_t room, Spin *state) noexcept nogil:
    """transports.spin.Spin.read."""
    cdef int64_t began = _now(), before = began, now
    cdef ssize_t count
    if state.quick < state.enough or began < state.busy_until:
        _look(fd, state, False)
        count = read(fd, base, room)
        state.quick = state.quick + 1 if _now() - began < state.soon_ns else 0
        return count
    _look(fd, state, True)
    while True:
        count = read(fd, base, room)
        if count >= 0 or errno != EAGAIN:
            return count
        sched_yield()
        now = _now()
        if now - before > state.gap_ns:
            if now - state.window > state.window_ns:
                state.window = now
                state.lost = 0
            state.lost += now - before
            if state.lost > state.lost_ns:
                state.busy_until = now + state.busy_ns
        before = now
        if now - began > state.soon_ns or now < state.busy_until:
            state.quick = 0
            _look(fd, state, False)
            return read(fd, base, room)


cdef inline bint _gone(int number) noexcept:
    return number == ENODEV or number == ECONNABORTED or number == ENOTCONN or number == EBADF


cdef int _written(ssize_t count, int number) except -1:
    """0: the reply was taken (or refused as malformed, which is logged); 1: the peer does not wait for it."""
    if count >= 0:
        return 0
    if number == ENOENT or _gone(number):
        return 1
    if number == EINVAL:
        log.error("the kernel refused a reply; the request ended with EIO")
        return 0
    log.error("the kernel refused a reply (%s); the request ended with EIO", os.strerror(number))
    return 0


cdef int _send_bytes(int fd, bytes message) except -1:
    cdef char *data = PyBytes_AS_STRING(message)
    cdef size_t size = PyBytes_GET_SIZE(message)
    cdef ssize_t count
    if size <= SMALL_REPLY:
        count = write(fd, data, size)
    else:
        with nogil:
            count = write(fd, data, size)
    return _written(count, errno)


cdef int _send_range(int fd, object message, char *area, size_t page, size_t room) except -1:
    """`area` has room for `room` bytes behind its first `page`, right before which the header goes."""
    cdef int source = message.fd
    cdef off_t offset = message.offset
    cdef size_t length = message.length
    cdef ssize_t count
    cdef int number
    cdef bytes header
    if length > room:
        length = room
    with nogil:
        count = pread(source, area + page, length, offset)
        number = errno
    if count < 0:
        return _send_bytes(fd, message.error(number))
    header = message.header(count)
    memcpy(area + page - HEADER, PyBytes_AS_STRING(header), HEADER)
    length = count + HEADER
    with nogil:
        count = write(fd, area + page - HEADER, length)
        number = errno
    return _written(count, number)


def serve(channel, int fd, area, size_t start, size_t room, reply_area, size_t page, handle, undelivered, worker,
          looks):
    """Carry requests from `fd` until it is unmounted.

    Requests are read to area[start:start + room]; the data of range replies to reply_area behind its first `page` bytes.
    `worker` is a transports.base.Worker. `looks`: the numbers of transports.spin, or None: it sleeps.
    """
    cdef Py_buffer request_view, reply_view
    cdef uint64_t[::1] counters = worker.counters
    cdef Py_ssize_t step = worker.step_at, park = worker.park_at
    cdef char *base
    cdef char *reply_base
    cdef size_t reply_room
    cdef ssize_t count
    cdef int number, lost
    cdef Spin state
    cdef bint spins = looks is not None
    state.quick = state.busy_until = state.lost = state.window = state.looking = 0
    if spins:
        (state.enough, state.soon_ns, state.gap_ns, state.lost_ns, state.window_ns, state.busy_ns) = looks
    PyObject_GetBuffer(area, &request_view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        PyObject_GetBuffer(reply_area, &reply_view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            base = <char *> request_view.buf + start
            reply_base = <char *> reply_view.buf
            reply_room = reply_view.len - page
            if start + room > <size_t> request_view.len:
                raise ValueError("the request area is too small")
            while True:
                with nogil:
                    count = _read(fd, base, room, &state) if spins else read(fd, base, room)
                    number = errno
                if count < 0:
                    if _gone(number):
                        return
                    if number == ENOENT or number == EINTR or number == EAGAIN:
                        continue
                    raise OSError(number, os.strerror(number))
                if count == 0:
                    return
                counters[step] += 1
                if counters[0]:
                    worker.wake()
                try:
                    message = handle(area, start, start + count, channel)
                except RemoteProtocolError as error:
                    log.error("message dropped: %s", error)
                    message = None
                lost = 0
                if message is None:
                    pass
                elif type(message) is bytes:
                    lost = _send_bytes(fd, <bytes> message)
                elif type(message) is RangeReply:
                    lost = _send_range(fd, message, reply_base, page, reply_room)
                else:
                    lost = not channel.send(message)
                if lost:
                    undelivered(area, start, message)
                counters[step] += 1
                if counters[park] and not worker.park():
                    return
        finally:
            PyBuffer_Release(&reply_view)
    finally:
        PyBuffer_Release(&request_view)
