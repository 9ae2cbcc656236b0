# cython: language_level=3, boundscheck=False, wraparound=False
"""FUSE over io_uring: the loop of one thread that serves one of the kernel's queues through a ring of its own.

The kernel has a queue for each CPU, and puts a request into the queue of the CPU on which it was made. A thread offers
the queue one entry: 288 bytes for headers and a buffer for the payload. COMMIT_AND_FETCH answers the request in the
entry and offers it again, so that a request costs one system call, and the thread that waits for it can be on the very
CPU where the caller goes to sleep. Of several entries the kernel takes the one that was offered last: the thread that
ran last, whose caches are warm.

One thread, one ring, one entry: while a handler is busy its thread has nothing in the kernel that a request could be
given to, so that none gets stuck behind it; the queue's other threads take the others.

Layout of the area (see transports.uring): the entry's headers at its beginning, the payload behind its first page. The
handler wants a request in one piece: header and argument, 168 bytes at most, are copied to where the payload begins.

Numbers of linux/io_uring.h and linux/fuse.h are written out, since this is also built against headers older than the
kernel it will run on.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EBUSY, ECONNABORTED, EINTR, EIO, ENODEV, ENOTCONN, errno
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset
from posix.mman cimport MAP_FAILED, MAP_POPULATE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.time cimport nanosleep, timespec
from posix.types cimport off_t
from posix.unistd cimport close, write

import logging
import os

from transfuse.errors import RemoteProtocolError
from transfuse.wire.encode import RangeReply

cdef extern from "errno.h" nogil:
    enum:
        ECANCELED

cdef extern from "unistd.h" nogil:
    ssize_t pread(int fd, void *buf, size_t count, off_t offset)

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <unistd.h>
    #include <sys/syscall.h>

    /* The same on every architecture since Linux 5.1 but alpha, whose header has them. */
    #ifndef SYS_io_uring_setup
    #define SYS_io_uring_setup 425
    #define SYS_io_uring_enter 426
    #define SYS_io_uring_register 427
    #endif

    static inline int ring_setup(unsigned entries, void *parameters)
    {
        return (int)syscall(SYS_io_uring_setup, entries, parameters);
    }

    static inline int ring_enter(int fd, unsigned submit, unsigned wait_for, unsigned flags)
    {
        return (int)syscall(SYS_io_uring_enter, fd, submit, wait_for, flags, (void *)0, (size_t)0);
    }

    static inline int ring_register(int fd, unsigned what, void *argument, unsigned count)
    {
        return (int)syscall(SYS_io_uring_register, fd, what, argument, count);
    }

    /* The kernel is another CPU that reads and writes these words: what lies behind them must be ordered with them. */
    static inline uint32_t load_acquire(const uint32_t *word)
    {
        return __atomic_load_n(word, __ATOMIC_ACQUIRE);
    }

    static inline void store_release(uint32_t *word, uint32_t value)
    {
        __atomic_store_n(word, value, __ATOMIC_RELEASE);
    }
    """
    int ring_setup(unsigned entries, void *parameters)
    int ring_enter(int fd, unsigned submit, unsigned wait_for, unsigned flags)
    int ring_register(int fd, unsigned what, void *argument, unsigned count)
    uint32_t load_acquire(const uint32_t *word)
    void store_release(uint32_t *word, uint32_t value)

log = logging.getLogger("transfuse.transports")

cdef enum:
    # linux/io_uring.h
    SETUP_CQSIZE = 1 << 3
    SETUP_R_DISABLED = 1 << 6
    SETUP_SQE128 = 1 << 10
    SETUP_SINGLE_ISSUER = 1 << 12
    SETUP_DEFER_TASKRUN = 1 << 13
    ENTER_GETEVENTS = 1
    REGISTER_FILES = 2
    REGISTER_ENABLE_RINGS = 12
    OP_URING_CMD = 46
    SQE_FIXED_FILE = 1
    MAP_SQ = 0
    MAP_CQ = 0x8000000
    MAP_SQES = 0x10000000
    SQE_SIZE = 128
    CQE_SIZE = 16
    # linux/fuse.h: fuse_uring_cmd, fuse_uring_req_header, fuse_uring_ent_in_out
    CMD_REGISTER = 1
    CMD_COMMIT_AND_FETCH = 2
    OP_IN_AT = 128
    OP_IN_ROOM = 128
    COMMIT_ID_AT = 256 + 8
    PAYLOAD_SIZE_AT = 256 + 16
    HEADERS = 288
    IN_HEADER = 40
    OUT_HEADER = 16
    NOTIFY_REPLY = 41
    NOTIFY_RETRIEVE = 5
    NO_QUEUE = 0xffff
    # ours
    IOVEC_AT = 512
    LEAST_PAGE = 4096
    SUBMISSIONS = 2
    COMPLETIONS = 4

cdef uint64_t KICK = <uint64_t> 1 << 61
"""Numbers of our own NOTIFY_RETRIEVEs: far from the kernel's, which count from 2 and share a table with them."""
cdef uint64_t kicks = 0


cdef struct RingOffsets:
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, reserved
    uint64_t user_address

cdef struct CompletionOffsets:
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, reserved
    uint64_t user_address

cdef struct Parameters:
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd
    uint32_t reserved[3]
    RingOffsets sq_off
    CompletionOffsets cq_off

cdef struct Submission:
    uint8_t opcode, flags
    uint16_t priority
    int32_t fd
    uint32_t command
    uint32_t padding
    uint64_t address
    uint32_t length
    uint32_t command_flags
    uint64_t user_data
    uint64_t unused[1]
    # the command area of 80 bytes: struct fuse_uring_cmd_req
    uint64_t request_flags
    uint64_t commit_id
    uint16_t queue

cdef struct Completion:
    uint64_t user_data
    int32_t result
    uint32_t flags

cdef struct Span:
    void *base
    size_t length

cdef struct RetrieveNotice:
    uint32_t length
    int32_t code
    uint64_t zero
    uint64_t unique
    uint64_t nodeid
    uint64_t offset
    uint32_t size
    uint32_t padding


cdef void _pause() noexcept nogil:
    cdef timespec span
    span.tv_sec = 0
    span.tv_nsec = 1000000
    nanosleep(&span, NULL)


cdef inline bint _gone(int number) noexcept nogil:
    return number == ENOTCONN or number == ECONNABORTED or number == ENODEV or number == ECANCELED


cdef class Ring:
    """An io_uring for one entry. Made by any thread; belongs to the one that calls `serve` with it. OSError: there is
    no io_uring for this process (ENOSYS, EPERM by seccomp or sysctl), or no descriptor, or no memory."""

    cdef int fd
    cdef char *sq
    cdef char *cq
    cdef char *sqes
    cdef size_t sq_size, cq_size, sqes_size
    cdef uint32_t *sq_head
    cdef uint32_t *sq_tail
    cdef uint32_t *sq_array
    cdef uint32_t *cq_head
    cdef uint32_t *cq_tail
    cdef Completion *cqes
    cdef uint32_t sq_mask, cq_mask

    def __cinit__(self):
        self.fd = -1

    def __init__(self):
        cdef Parameters p
        if self.fd >= 0:
            raise ValueError("made already")
        memset(&p, 0, sizeof(p))
        p.flags = SETUP_SQE128 | SETUP_CQSIZE | SETUP_R_DISABLED | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN
        p.cq_entries = COMPLETIONS
        self.fd = ring_setup(SUBMISSIONS, &p)
        if self.fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.sq_size = p.sq_off.array + 4 * p.sq_entries
        self.cq_size = p.cq_off.cqes + CQE_SIZE * p.cq_entries
        self.sqes_size = SQE_SIZE * p.sq_entries
        self.sq = self._map(self.sq_size, MAP_SQ)
        self.cq = self._map(self.cq_size, MAP_CQ)
        self.sqes = self._map(self.sqes_size, MAP_SQES)
        self.sq_head = <uint32_t *> (self.sq + p.sq_off.head)
        self.sq_tail = <uint32_t *> (self.sq + p.sq_off.tail)
        self.sq_mask = (<uint32_t *> (self.sq + p.sq_off.ring_mask))[0]
        self.sq_array = <uint32_t *> (self.sq + p.sq_off.array)
        self.cq_head = <uint32_t *> (self.cq + p.cq_off.head)
        self.cq_tail = <uint32_t *> (self.cq + p.cq_off.tail)
        self.cq_mask = (<uint32_t *> (self.cq + p.cq_off.ring_mask))[0]
        self.cqes = <Completion *> (self.cq + p.cq_off.cqes)

    def close(self):
        """Give everything back; what is still in the kernel is cancelled."""
        if self.sq != NULL:
            munmap(self.sq, self.sq_size)
        if self.cq != NULL:
            munmap(self.cq, self.cq_size)
        if self.sqes != NULL:
            munmap(self.sqes, self.sqes_size)
        self.sq = self.cq = self.sqes = NULL
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1

    def __dealloc__(self):
        self.close()

    cdef char *_map(self, size_t size, off_t what) except NULL:
        cdef void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, self.fd, what)
        if place == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        return <char *> place

    cdef int _begin(self, int device) except -1:
        """Make the calling thread the one that submits, and `device` fixed file 0."""
        if self.fd < 0:
            raise ValueError("the ring is closed")
        if ring_register(self.fd, REGISTER_ENABLE_RINGS, NULL, 0) < 0:
            raise OSError(errno, os.strerror(errno))
        if ring_register(self.fd, REGISTER_FILES, &device, 1) < 0:
            raise OSError(errno, os.strerror(errno))
        return 0

    cdef void _prepare(self, uint32_t command, uint16_t queue, uint64_t commit_id, void *spans) noexcept nogil:
        """Put one command into the submission queue, which has room: there is never more than one."""
        cdef uint32_t tail = self.sq_tail[0]
        cdef uint32_t index = tail & self.sq_mask
        cdef Submission *entry = <Submission *> (self.sqes + SQE_SIZE * index)
        memset(entry, 0, SQE_SIZE)
        entry.opcode = OP_URING_CMD
        entry.flags = SQE_FIXED_FILE
        entry.command = command
        entry.queue = queue
        entry.commit_id = commit_id
        if spans != NULL:
            entry.address = <uint64_t> spans
            entry.length = 2
        self.sq_array[index] = index
        store_release(self.sq_tail, tail + 1)

    cdef int _submit(self) noexcept nogil:
        """Hand over what was prepared, without waiting: 0 or an errno."""
        cdef int count
        while True:
            count = ring_enter(self.fd, self.sq_tail[0] - load_acquire(self.sq_head), 0, ENTER_GETEVENTS)
            if count >= 0:
                return 0
            if errno != EINTR:
                return errno

    cdef bint _failed(self) noexcept:
        """Is there a completion that says no?"""
        cdef uint32_t head = self.cq_head[0]
        return head != load_acquire(self.cq_tail) and self.cqes[head & self.cq_mask].result < 0

    cdef int _exchange(self, int *result) noexcept nogil:
        """Hand over what was prepared and wait for a completion, whose result goes to `result`: 0 or an errno."""
        cdef uint32_t head = self.cq_head[0]
        cdef int count
        while True:
            count = ring_enter(self.fd, self.sq_tail[0] - load_acquire(self.sq_head), 1, ENTER_GETEVENTS)
            if head != load_acquire(self.cq_tail):
                result[0] = self.cqes[head & self.cq_mask].result
                store_release(self.cq_head, head + 1)
                return 0
            if count < 0 and errno != EINTR:
                if errno != EAGAIN and errno != EBUSY:
                    return errno
                _pause()  # no memory for the request: it goes on when there is some


cdef int _kick(int device, uint64_t nodeid) except -1:
    """Have a request put into the queue of this CPU: RETRIEVE of nothing, which comes back as a NOTIFY_REPLY.

    The kernel gives a newly registered entry what comes later, not what waits already (Linux 6.18, fs/fuse/dev_uring.c:
    fuse_uring_do_register); what waits is fetched by whoever commits next. `nodeid` must be a file that the kernel
    knows. If it does not want to, the next request does the same.
    """
    global kicks
    cdef RetrieveNotice notice
    memset(&notice, 0, sizeof(notice))
    kicks += 2  # even: an odd number is the INTERRUPT of the one before
    notice.length = sizeof(notice)
    notice.code = NOTIFY_RETRIEVE
    notice.unique = KICK + kicks
    notice.nodeid = nodeid
    if write(device, &notice, sizeof(notice)) < 0:
        log.debug("node %d: no retrieve: %s", nodeid, os.strerror(errno))
    return 0


cdef class _Entry:
    """The area of one entry, and how a reply gets into it."""

    cdef char *base
    cdef size_t page, room

    cdef int answer(self, message) except -1:
        """Lay the reply into the entry: out_header apart from what follows."""
        cdef size_t size
        if type(message) is bytes:
            size = PyBytes_GET_SIZE(message)
            if OUT_HEADER <= size <= OUT_HEADER + self.room:
                memcpy(self.base, PyBytes_AS_STRING(message), OUT_HEADER)
                memcpy(self.base + self.page, PyBytes_AS_STRING(message) + OUT_HEADER, size - OUT_HEADER)
                self.size(size - OUT_HEADER)
                return 0
        elif type(message) is RangeReply:
            return self.answer_range(message)
        else:
            return self.answer_parts(message)
        raise ValueError(f"a reply of {size} bytes, at most {OUT_HEADER + self.room}")

    cdef void size(self, size_t size) noexcept:
        (<uint32_t *> (self.base + PAYLOAD_SIZE_AT))[0] = <uint32_t> size

    cdef int answer_range(self, message) except -1:
        cdef int source = message.fd
        cdef off_t offset = message.offset
        cdef size_t length = message.length
        cdef ssize_t count
        cdef int number
        if length > self.room:
            length = self.room
        with nogil:
            count = pread(source, self.base + self.page, length, offset)
            number = errno
        if count < 0:
            return self.answer(message.error(number))
        memcpy(self.base, PyBytes_AS_STRING(message.header(count)), OUT_HEADER)
        self.size(count)
        return 0

    cdef int answer_parts(self, message) except -1:
        """The first part holds the header, at least."""
        cdef Py_buffer view
        cdef size_t used = 0, skip = OUT_HEADER
        for part in message:
            PyObject_GetBuffer(part, &view, PyBUF_SIMPLE)
            try:
                if <size_t> view.len < skip or used + view.len - skip > self.room:
                    raise ValueError(f"a reply with a part of {view.len} bytes after {used}, {self.room} is the most")
                if skip:
                    memcpy(self.base, view.buf, OUT_HEADER)
                # A part may be the request's own bytes.
                memmove(self.base + self.page + used, <char *> view.buf + skip, view.len - skip)
                used += view.len - skip
                skip = 0
            finally:
                PyBuffer_Release(&view)
        if skip:
            raise ValueError("a reply without a header")
        self.size(used)
        return 0

    cdef void refuse(self, uint64_t unique, int number) noexcept:
        """An answer without a body."""
        (<uint32_t *> self.base)[0] = OUT_HEADER
        (<int32_t *> (self.base + 4))[0] = -number
        (<uint64_t *> (self.base + 8))[0] = unique
        self.size(0)


def serve(Ring ring not None, int device, int queue, ready, uint64_t kick, channel, area, size_t page, size_t room,
          handle):
    """Carry requests of `queue` until the file system is unmounted.

    `area`: a page for the headers, `room` bytes for the payload behind it. `ready` is called once the entry is
    registered. `kick`: the nodeid of a file, whereupon what waits in the queue is fetched; 0: nothing can be waiting.
    `channel.late(nodeid)` waits for an answer that comes from another thread. Raises OSError when the kernel refuses
    the entry; requests then come by read() on all queues.
    """
    cdef Py_buffer view
    PyObject_GetBuffer(area, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        if <size_t> view.len < page + room or page < LEAST_PAGE:
            raise ValueError("the area is too small")
        ring._begin(device)
        _carry(ring, device, queue, ready, kick, channel, area, <char *> view.buf, page, room, handle)
    finally:
        # The kernel writes into the area as long as the entry is there.
        ring.close()
        PyBuffer_Release(&view)


def give_up(int device):
    """Make the kernel send all requests by read() again, by registering what it must refuse."""
    cdef Ring ring = Ring()
    cdef int result = 0
    try:
        ring._begin(device)
        ring._prepare(CMD_REGISTER, NO_QUEUE, 0, NULL)
        with nogil:
            ring._exchange(&result)
    finally:
        ring.close()


cdef int _carry(Ring ring, int device, int queue, ready, uint64_t kick, channel, area, char *base, size_t page,
                size_t room, handle) except -1:
    cdef Span *spans = <Span *> (base + IOVEC_AT)
    cdef _Entry entry = _Entry()
    cdef uint32_t command = CMD_REGISTER
    cdef uint64_t commit_id = 0, unique
    cdef uint32_t length, payload, argument, opcode
    cdef size_t start
    cdef int number, result = 0
    entry.base, entry.page, entry.room = base, page, room
    spans[0].base, spans[0].length = base, HEADERS
    spans[1].base, spans[1].length = base + page, room
    while True:
        if command == CMD_REGISTER:
            ring._prepare(command, queue, 0, spans)
            with nogil:
                number = ring._submit()
            if number == 0 and not ring._failed():
                if ready is not None:
                    ready()
                    ready = None
                if kick:
                    _kick(device, kick)
                    kick = 0
        else:
            ring._prepare(command, queue, commit_id, NULL)
        with nogil:
            number = ring._exchange(&result)
        if number:
            raise OSError(number, os.strerror(number))
        if result < 0:
            if _gone(-result):
                return 0
            if result == -EAGAIN or result == -EINTR:
                # Not connected quite yet: a mount with synchronous INIT goes on after the answer was written.
                with nogil:
                    _pause()
                continue
            if command == CMD_REGISTER:
                raise OSError(-result, os.strerror(-result))
            log.error("queue %d: the kernel does not know the request of an answer (%s)", queue, os.strerror(-result))
            command = CMD_REGISTER
            continue
        command = CMD_COMMIT_AND_FETCH
        length = (<uint32_t *> base)[0]
        opcode = (<uint32_t *> base)[1]
        unique = (<uint64_t *> base)[1]
        commit_id = (<uint64_t *> (base + COMMIT_ID_AT))[0]
        payload = (<uint32_t *> (base + PAYLOAD_SIZE_AT))[0]
        argument = length - IN_HEADER - payload
        if payload > room or length < IN_HEADER + payload or argument > OP_IN_ROOM:
            log.error("queue %d: a request of %d bytes with %d bytes of payload", queue, length, payload)
            entry.refuse(unique, EIO)
            continue
        if opcode == NOTIFY_REPLY and unique & KICK:
            entry.refuse(unique, 0)
            continue
        start = page - IN_HEADER - argument
        memcpy(base + start, base, IN_HEADER)
        memcpy(base + start + IN_HEADER, base + OP_IN_AT, argument)
        try:
            message = handle(area, start, page + payload, channel)
        except RemoteProtocolError as error:
            log.error("message dropped: %s", error)
            entry.refuse(unique, EIO)
            continue
        except Exception:
            # Nobody else would answer: an entry is this thread's alone.
            log.exception("a request failed outside the filesystem")
            entry.refuse(unique, EIO)
            continue
        if message is None:
            if opcode == NOTIFY_REPLY:
                entry.refuse(unique, 0)
                continue
            message = channel.late((<uint64_t *> (base + start))[2])
        try:
            entry.answer(message)
        except ValueError as error:
            log.error("an answer dropped: %s", error)
            entry.refuse(unique, EIO)
