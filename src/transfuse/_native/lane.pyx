# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The loop between a device queue and a FUSE session in C.

The plain form, which says what everything is for, is transports.virtqueue.lane; names, behaviour and errors are the same,
and the same tests run on both. Here a request costs no Python object but its chain until the session is called, replies
are put into the driver's memory without one, and the interpreter lock is given away only to sleep, to move file data,
and to copy what is large: giving it away costs more than most requests.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, EINVAL, EIO, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport close, write

import logging
import mmap

from transfuse.errors import RemoteProtocolError, RingError
from transfuse.wire.encode import RangeReply, RangeWrite

from transfuse._native.guestmem cimport failure
from transfuse._native.virtqueue cimport HOST_IS_BIG, Chain, DeviceQueue

from transfuse._native.virtqueue import no_answer

cdef extern from *:
    """
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    """
    uint32_t SWAP32 "__builtin_bswap32"(uint32_t x) noexcept nogil
    uint64_t SWAP64 "__builtin_bswap64"(uint64_t x) noexcept nogil

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        int fd
    ctypedef struct epoll_event "struct epoll_event":
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int count, int timeout_ms)
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLLIN
        EPOLLET

cdef extern from "sys/eventfd.h" nogil:
    int eventfd(unsigned int start, int flags)
    int eventfd_read(int fd, uint64_t *value)
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK

log = logging.getLogger("transfuse.transports")

cdef enum:
    IN_HEADER = 40
    OUT_HEADER = 16
    WRITE_HEAD = 80
    WRITE_OUT = 24
    POLL_MS = 1
    LARGE = 1 << 16

cdef enum:
    OP_FORGET = 2
    OP_WRITE = 16
    OP_INTERRUPT = 36
    OP_NOTIFY_REPLY = 41
    OP_BATCH_FORGET = 42


cdef inline bint is_opcode(uint32_t raw, uint32_t number) noexcept:
    """In either byte order: no opcode is another one swapped."""
    return raw == number or raw == SWAP32(number)


cdef inline void put_header(char *at, object order, uint32_t size, int32_t error, object unique):
    """An out_header."""
    cdef uint64_t number = unique
    cdef uint32_t code = <uint32_t> error
    if (order == ">") != HOST_IS_BIG:
        size, code, number = SWAP32(size), SWAP32(code), SWAP64(number)
    memcpy(at, &size, 4)
    memcpy(at + 4, &code, 4)
    memcpy(at + 8, &number, 8)


cdef class Lane:
    """A queue, its eventfds, and what its workers share."""

    cdef readonly DeviceQueue queue
    cdef readonly object room
    cdef readonly bint halted
    cdef object complain
    cdef object on_broken
    cdef bint broken
    cdef int kick
    cdef int call
    cdef int halt_fd
    cdef int nudge_fd
    cdef int poll_fd
    cdef int waiting

    def __cinit__(self, *arguments, **options):
        self.kick = self.call = self.halt_fd = self.nudge_fd = self.poll_fd = -1

    def __init__(
        self, DeviceQueue queue not None, room, *, kick=None, call=None, complain=log.warning, on_broken=None
    ):
        if self.queue is not None:
            raise ValueError("a lane is made once")
        self.queue = queue
        self.room = max(room, WRITE_HEAD)
        self.complain = complain
        self.on_broken = on_broken
        self.halt_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.nudge_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.poll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.halt_fd < 0 or self.nudge_fd < 0 or self.poll_fd < 0:
            raise failure(errno)
        self.watch(self.halt_fd, EPOLLIN)
        self.watch(self.nudge_fd, EPOLLIN | EPOLLET)
        self.set_kick(kick)
        self.set_call(call)
        queue.answer = self.answer

    def __dealloc__(self):
        self.close_fds()

    cdef int watch(self, int fd, uint32_t events) except -1:
        cdef epoll_event event
        event.events = events
        event.data.fd = fd
        if epoll_ctl(self.poll_fd, EPOLL_CTL_ADD, fd, &event):
            raise failure(errno)
        return 0

    cdef void close_fds(self) noexcept:
        for fd in (self.poll_fd, self.halt_fd, self.nudge_fd):
            if fd >= 0:
                close(fd)
        self.poll_fd = self.halt_fd = self.nudge_fd = self.kick = self.call = -1

    # -- the control thread's side

    def set_kick(self, fd):
        """Wait for kicks on another eventfd."""
        cdef epoll_event unused
        if self.kick >= 0:
            epoll_ctl(self.poll_fd, EPOLL_CTL_DEL, self.kick, &unused)
        self.kick = -1
        if fd is not None:
            self.watch(fd, EPOLLIN | EPOLLET)
            self.kick = fd
        signal_fd(self.nudge_fd)

    def set_call(self, fd):
        """Tell the driver by another eventfd; at once, since what was told by the old one, or was to be told by a
        device that died, may be lost."""
        self.call = -1 if fd is None else fd
        signal_fd(self.call)

    def halt(self):
        """Make every serve() return soon. Requests under way may still be answered."""
        self.halted = True
        signal_fd(self.halt_fd)

    def resume(self):
        """Allow serve() again."""
        cdef uint64_t value
        self.halted = False
        eventfd_read(self.halt_fd, &value)

    def stop(self, timeout_s=None):
        """Halt, and give the driver its ring back (DeviceQueue.stop)."""
        self.halt()
        return self.queue.stop(timeout_s)

    def close(self):
        """Free the lane's own fds; only when no worker serves any more."""
        self.queue.answer = no_answer
        self.close_fds()

    # -- workers

    def serve(self, handle, handle_detached, undelivered, worker):
        """Carry requests. Several workers may serve one lane. `handle_detached` None: WRITEs come whole as well."""
        cdef DeviceQueue queue = self.queue
        cdef Chain chain
        cdef uint64_t[::1] counters = worker.counters
        cdef Py_ssize_t step = worker.step_at, park = worker.park_at
        cdef Py_buffer view
        cdef size_t room
        cdef object message
        area = mmap.mmap(-1, self.room)
        PyObject_GetBuffer(area, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            room = view.len
            while True:
                if self.halted:
                    return "halted"
                try:
                    chain = queue.pop_chain()
                except RingError as error:
                    self.break_down(error)
                    return "broken"
                if chain is None:
                    self.sleep()
                    continue
                if self.waiting and queue.arm_kicks():
                    # Others watch the ring while this one is in a handler; and there is more already.
                    signal_fd(self.nudge_fd)
                counters[step] += 1
                if counters[0]:
                    worker.wake()
                message = self.carry(chain, area, <char *> view.buf, room, handle, handle_detached)
                if message is not None and not self.put(chain, message):
                    undelivered(area, 0, message)
                # Not kept while this worker sleeps: an answer may hold a file open, a chain its memory.
                chain = None
                message = None
                counters[step] += 1
                if counters[park] and not worker.park():
                    return "home"
        finally:
            PyBuffer_Release(&view)

    cdef object carry(self, Chain chain, area, char *base, size_t room, handle, handle_detached):
        """One request: what is to be answered. What is decided by its header is decided by our copy of it."""
        cdef uint64_t size = chain.readable
        cdef uint64_t head = size if size < WRITE_HEAD else WRITE_HEAD
        cdef uint32_t opcode
        cdef object message
        if size < IN_HEADER:
            return self.drop(chain, f"request of {size} bytes is shorter than its header")
        chain.read_bytes(base, 0, head)
        memcpy(&opcode, base + 4, 4)
        try:
            # Extension records would lie behind the payload.
            if (
                handle_detached is not None
                and head == WRITE_HEAD
                and is_opcode(opcode, OP_WRITE)
                and not base[36]
                and not base[37]
            ):
                message = handle_detached(area, 0, WRITE_HEAD, chain, size - WRITE_HEAD)
            elif size > room:
                return self.drop(chain, f"request of {size} bytes, at most {room} are taken")
            else:
                if size > LARGE:
                    with nogil:
                        chain.read_bytes(base + head, head, size - head)
                else:
                    chain.read_bytes(base + head, head, size - head)
                message = handle(area, 0, size, chain)
        except RemoteProtocolError as error:
            return self.drop(chain, str(error))
        if message is None and (
            chain.writable < OUT_HEADER
            or is_opcode(opcode, OP_FORGET)
            or is_opcode(opcode, OP_BATCH_FORGET)
            or is_opcode(opcode, OP_INTERRUPT)
            or is_opcode(opcode, OP_NOTIFY_REPLY)
        ):
            self.give(chain, 0)
        return message

    cdef object drop(self, Chain chain, why):
        self.complain("request dropped: %s", why)
        self.give(chain, 0)
        return None

    cdef bint give(self, Chain chain, uint32_t written):
        """Push, and tell the driver if it wants to know. False: the queue was stopped, or the chain given back before.

        The driver is told at once, not after a few more requests: the next handler may wait for long, and for something
        that only a peer does who has this answer. A driver that is awake has asked not to be told, so that this costs
        no more than a look at the ring.
        """
        cdef int result = self.queue.push_chain(chain, written, True)
        if result < 0:
            self.queue.breaks()
        elif result > 1:
            signal_fd(self.call)
        return result > 0

    def answer(self, Chain chain not None, message):
        """A late reply."""
        return self.put(chain, message)

    cpdef bint put(self, Chain chain, message) except -1:
        """Give `chain` back with `message` in it. False: nobody waits, or it did not fit and EIO went instead."""
        cdef char header[WRITE_OUT]
        cdef uint64_t size
        cdef const char *data
        if chain is None or chain.queue is not self.queue:
            raise ValueError("a chain of another queue")
        if chain.done:
            return False
        if type(message) is bytes:
            size = PyBytes_GET_SIZE(message)
            if size > chain.writable:
                return self.too_long(chain, size, error_of(message, size))
            data = PyBytes_AS_STRING(message)
            return self.send(chain, data, size, size)
        if type(message) is RangeReply:
            return self.put_range(chain, message)
        if type(message) is RangeWrite:
            size = message.length
            if WRITE_HEAD + size > chain.readable:
                return self.too_long(chain, WRITE_HEAD + size, message.error(EIO))
            return self.put(chain, self.store(chain, message))
        size = 0
        for part in message:
            size += len(part)
        if size > chain.writable:
            return self.too_long(chain, size, error_of(message[0], size))
        return self.put_parts(chain, message, size)

    cdef bint send(self, Chain chain, const char *data, uint64_t size, uint64_t filled):
        """Write the first `size` bytes of an answer, and give the chain back with `filled`."""
        cdef int result
        if size > LARGE:
            with nogil:
                result = chain.write_bytes(data, 0, size)
        else:
            result = chain.write_bytes(data, 0, size)
        return result == 0 and self.give(chain, filled)

    cdef bint put_parts(self, Chain chain, message, uint64_t size) except -1:
        cdef Py_buffer view
        cdef uint64_t at = 0
        cdef int result
        for part in message:
            PyObject_GetBuffer(part, &view, PyBUF_SIMPLE)
            if view.len > LARGE:
                with nogil:
                    result = chain.write_bytes(<char *> view.buf, at, view.len)
            else:
                result = chain.write_bytes(<char *> view.buf, at, view.len)
            at += view.len
            PyBuffer_Release(&view)
            if result < 0:
                return False
        return self.give(chain, size)

    cdef bint put_range(self, Chain chain, message) except -1:
        cdef char header[OUT_HEADER]
        cdef int fd
        cdef object offset_given
        cdef int64_t offset
        cdef uint64_t length
        cdef ssize_t count
        unique, order, file, offset_given, length_given, owner = message
        length = length_given
        if OUT_HEADER + length > chain.writable:
            return self.too_long(chain, OUT_HEADER + length, message.error(EIO))
        fd = file
        if not 0 <= offset_given < 1 << 63:
            count = -EINVAL
        else:
            offset = offset_given
            if self.queue.enter() < 0:
                return False
            with nogil:
                count = chain.fetch(fd, offset, OUT_HEADER, length)
                self.queue.leave()
        if count < 0:
            put_header(header, order, OUT_HEADER, count, unique)
            return self.send(chain, header, OUT_HEADER, OUT_HEADER)
        put_header(header, order, OUT_HEADER + count, 0, unique)
        return self.send(chain, header, OUT_HEADER, OUT_HEADER + count)

    cdef bytes store(self, Chain chain, message):
        """Do a RangeWrite: what to answer."""
        cdef int fd = message.fd
        cdef int64_t offset
        cdef uint64_t length = message.length
        cdef ssize_t count
        if not 0 <= message.offset < 1 << 63:
            return message.error(EINVAL)
        offset = message.offset
        with nogil:
            count = chain.store(fd, offset, WRITE_HEAD, length)
        return message.written(count) if count >= 0 else message.error(-count)

    cdef bint too_long(self, Chain chain, size, bytes reply) except -1:
        self.complain(
            "%d bytes do not fit a request of %d readable and %d writable bytes", size, chain.readable, chain.writable
        )
        if chain.writable < OUT_HEADER:
            self.give(chain, 0)
        else:
            self.send(chain, PyBytes_AS_STRING(reply), OUT_HEADER, OUT_HEADER)
        return False

    # -- eventfds

    def notify(self):
        """Tell the driver of what was pushed past the lane, if it wants to know."""
        if self.queue.notify_wanted():
            signal_fd(self.call)

    cdef int sleep(self) except -1:
        cdef epoll_event event
        cdef int result, number
        cdef int timeout = -1 if self.kick >= 0 else POLL_MS
        # Counted before the ring is armed: a worker that pops, which turns kicks off, must see who relies on them.
        self.waiting += 1
        if not self.queue.arm_kicks():
            with nogil:
                result = epoll_wait(self.poll_fd, &event, 1, timeout)
                number = errno
            self.waiting -= 1
            if result < 0:
                if number != EINTR:
                    raise failure(number)
                PyErr_CheckSignals()
        else:
            self.waiting -= 1
        return 0

    cdef int break_down(self, error) except -1:
        cdef bint first = not self.broken
        self.broken = True
        self.halted = True
        signal_fd(self.halt_fd)
        if first and self.on_broken is not None:
            self.on_broken(error)
        return 0


cdef void signal_fd(int fd) noexcept:
    """Add 1 to an eventfd. A counter that is full wakes as well."""
    cdef uint64_t one = 1
    if fd >= 0:
        write(fd, &one, 8)


cdef bytes error_of(first, uint64_t size):
    """The out_header of a reply of `size` bytes turned into that of EIO, in the byte order it has."""
    cdef char header[OUT_HEADER]
    cdef uint32_t length, error = <uint32_t> -EIO, mine = OUT_HEADER
    memcpy(header, PyBytes_AS_STRING(bytes(first)[:OUT_HEADER].ljust(OUT_HEADER)), OUT_HEADER)
    memcpy(&length, header, 4)
    if length != size:
        error, mine = SWAP32(error), SWAP32(mine)
    memcpy(header, &mine, 4)
    memcpy(header + 4, &error, 4)
    return header[:OUT_HEADER]
