# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Virtqueues in C: chains, and the device's side of both kinds of rings; virtdriver.pyx is the driver's.

The plain form, which says what each thing is for, is the modules of transports.virtqueue (chain, device, split, packed);
names, behaviour and errors are the same, and the same tests run on both. What is different:

- Ring indices and flags are read with acquire and written with release semantics, and a full fence lies between what is
  published and the reading of the other side's event index, so that notifications the other side does not want are
  really left out.
- A queue has a mutex. It is held with and without the interpreter lock, so whoever holds it must not need the latter,
  and allocates no Python object (the collector could run code that comes back here).
- Segments are iovecs in C; file data goes between them and files without the interpreter lock.
- Memory whose file was truncated breaks the queue at the next pop() (see guestmem.pyx).

What happens only when a queue starts, the recovery from an inflight region, is done by the plain code.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EINTR, EINVAL, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.time cimport timespec
from posix.types cimport off_t

from transfuse._native.guestmem cimport DirtyLog, GuestMemory, failure, mark_pages, memory_faults

from transfuse.errors import QueueStopped, RingError

cdef extern from *:
    """
    #include <pthread.h>
    #include <sys/uio.h>
    #include <time.h>

    /* ---- writers of a queue against stop() */

    static inline int64_t count_up(int64_t *at) { return __atomic_add_fetch(at, 1, __ATOMIC_SEQ_CST); }
    static inline int64_t count_down(int64_t *at) { return __atomic_sub_fetch(at, 1, __ATOMIC_SEQ_CST); }
    static inline int64_t count_of(int64_t *at) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
    static inline int flag_of(int *at) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
    static inline void set_flag(int *at) { __atomic_store_n(at, 1, __ATOMIC_SEQ_CST); }

    static int make_lock(pthread_mutex_t *lock, pthread_cond_t *changed) {
        pthread_condattr_t how;
        if (pthread_mutex_init(lock, NULL)) return -1;
        pthread_condattr_init(&how);
        pthread_condattr_setclock(&how, CLOCK_MONOTONIC);
        int failed = pthread_cond_init(changed, &how);
        pthread_condattr_destroy(&how);
        return failed ? -1 : 0;
    }
    """
    int64_t count_up(int64_t *at) noexcept nogil
    int64_t count_down(int64_t *at) noexcept nogil
    int64_t count_of(int64_t *at) noexcept nogil
    int flag_of(int *at) noexcept nogil
    void set_flag(int *at) noexcept nogil
    int make_lock(pthread_mutex_t *lock, pthread_cond_t *changed)
    int pthread_mutex_lock(pthread_mutex_t *lock) noexcept nogil
    int pthread_mutex_unlock(pthread_mutex_t *lock) noexcept nogil
    int pthread_mutex_destroy(pthread_mutex_t *lock) noexcept nogil
    int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock) noexcept nogil
    int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *lock, const timespec *until) noexcept nogil
    int pthread_cond_broadcast(pthread_cond_t *cond) noexcept nogil
    int pthread_cond_destroy(pthread_cond_t *cond) noexcept nogil
    int clock_gettime(int clock, timespec *now) noexcept nogil
    int CLOCK_MONOTONIC

    ssize_t preadv(int fd, const iovec *parts, int count, off_t offset) noexcept nogil
    ssize_t pwritev(int fd, const iovec *parts, int count, off_t offset) noexcept nogil

cdef uint64_t MAX_CHAIN_BYTES = 1 << 32
cdef uint64_t F_INDIRECT_DESC = 1 << 28
cdef uint64_t F_EVENT_IDX = 1 << 29
cdef uint64_t F_IN_ORDER = 1ULL << 35

LIMITS = {
    "DESC_NEXT": NEXT,
    "DESC_WRITE": WRITE,
    "DESC_INDIRECT": INDIRECT,
    "DESC_AVAIL": AVAIL,
    "DESC_USED": USED,
    "AVAIL_NO_INTERRUPT": NO_INTERRUPT,
    "USED_NO_NOTIFY": NO_NOTIFY,
    "EVENT_ENABLE": EVENT_ENABLE,
    "EVENT_DISABLE": EVENT_DISABLE,
    "EVENT_DESC": EVENT_DESC,
    "WRAP": WRAP,
    "MAX_QUEUE_SIZE": MAX_QUEUE_SIZE,
    "MAX_SEGMENTS": MAX_SEGMENTS,
    "MAX_PIECES": MAX_PIECES,
    "MAX_TABLE_ENTRIES": MAX_TABLE_ENTRIES,
    "MAX_CHAIN_BYTES": MAX_CHAIN_BYTES,
    "F_INDIRECT_DESC": F_INDIRECT_DESC,
    "F_EVENT_IDX": F_EVENT_IDX,
    "F_IN_ORDER": F_IN_ORDER,
}
"""The numbers of transports.virtqueue.layout as this module has them."""


cdef object describe(int error, uint64_t a, uint64_t b):
    """The text of a RingError; those of the plain form."""
    if error == NO_MEMORY:
        return f"no memory at guest address {a:#x} ({b} bytes were to be there)"
    if error == EMPTY:
        return f"descriptor of no bytes at {a:#x}"
    if error == DISORDER:
        return "readable descriptor after a writable one"
    if error == TOO_MANY_SEGMENTS:
        return f"chain of more than {MAX_SEGMENTS} segments"
    if error == TOO_MANY_PIECES:
        return f"chain in more than {MAX_PIECES} pieces of memory"
    if error == TOO_MANY_BYTES:
        return f"chain of more than {MAX_CHAIN_BYTES} bytes"
    if error == NOT_AGREED:
        return "indirect descriptor, which was not agreed on"
    if error == INDIRECT_NEXT:
        return "indirect descriptor with a next one"
    if error == BAD_TABLE:
        return f"indirect table of {a} bytes"
    if error == NESTED:
        return "indirect descriptor in an indirect table"
    if error == OUTSIDE_TABLE:
        return f"descriptor {a} in a table of {b}"
    if error == ENDLESS:
        return f"chain that does not end within a table of {a}"
    if error == INDEX_AHEAD:
        return f"available index is {a} ahead in a queue of {b}"
    if error == TOO_MANY_REQUESTS:
        return f"more than {a} requests under way"
    if error == TOO_MANY_DESCRIPTORS:
        return f"more than {a} descriptors under way"
    if error == BAD_INFLIGHT:
        return f"inflight region: entry {a} in a queue of {b}"
    if error == NO_INFLIGHT_ENTRY:
        return "inflight region: no free entry for what the ring holds"
    return "this host has no memory left for a request"


# ---- a request -------------------------------------------------------------------------------------------------------


@cython.final
@cython.freelist(64)
cdef class Chain:
    """A request. Offsets count from the first byte of the part they are about, readable or writable."""

    def __cinit__(self):
        self.parts = self.few_parts
        self.places = self.few_places
        self.room = INLINE_PIECES
        self.slots = 1
        self.entry = -1

    def __init__(self):
        raise TypeError("chains are made by pop()")

    def __dealloc__(self):
        if self.parts != self.few_parts:
            free(self.parts)

    cdef int grow(self) noexcept:
        """Twice the room: the places lie behind the parts, in one allocation."""
        cdef int room = 4 * self.room
        cdef iovec *parts = <iovec *> malloc(room * (sizeof(iovec) + sizeof(uint64_t)))
        cdef uint64_t *places
        if parts == NULL:
            return -1
        places = <uint64_t *> (parts + room)
        memcpy(parts, self.parts, self.room * sizeof(iovec))
        memcpy(places, self.places, self.room * sizeof(uint64_t))
        if self.parts != self.few_parts:
            free(self.parts)
        self.parts, self.places, self.room = parts, places, room
        return 0

    cdef void read_bytes(self, char *to, uint64_t offset, uint64_t length) noexcept nogil:
        """Copy readable bytes, which are there."""
        cdef iovec *part = self.parts
        cdef size_t size
        while length:
            size = part.iov_len
            if offset >= size:
                offset -= size
            else:
                size -= offset
                if size > length:
                    size = length
                memcpy(to, part.iov_base + offset, size)
                to += size
                length -= size
                offset = 0
            part += 1

    cdef int write_bytes(self, const char *source, uint64_t offset, uint64_t length) noexcept nogil:
        """Copy into the writable part, where there is room; -1: the queue was stopped."""
        cdef iovec *part = self.parts + self.inputs
        cdef size_t size
        if self.queue.enter() < 0:
            return -1
        if offset + length > self.touched:
            self.touched = offset + length
        while length:
            size = part.iov_len
            if offset >= size:
                offset -= size
            else:
                size -= offset
                if size > length:
                    size = length
                memcpy(part.iov_base + offset, source, size)
                source += size
                length -= size
                offset = 0
            part += 1
        self.queue.leave()
        return 0

    cdef ssize_t fetch(self, int fd, int64_t offset, uint64_t skip, uint64_t length) noexcept nogil:
        """preadv; how many came, or a negative errno. The caller has called enter()."""
        if skip + length > self.touched:
            self.touched = skip + length
        return transfer(fd, offset, self.parts + self.inputs, skip, length, False)

    cdef ssize_t store(self, int fd, int64_t offset, uint64_t skip, uint64_t length) noexcept nogil:
        """pwritev; how many went, or a negative errno."""
        return transfer(fd, offset, self.parts, skip, length, True)

    def copy_in(self, buffer, at, offset, length):
        """Copy `length` readable bytes from `offset` into buffer[at:]. ValueError if there are not so many."""
        cdef Py_buffer target
        cdef uint64_t start, size
        cdef char *to
        if offset < 0 or length < 0 or offset + length > self.readable:
            raise ValueError(f"{length} bytes at {offset} of a chain with {self.readable} readable bytes")
        PyObject_GetBuffer(buffer, &target, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            if at < 0 or at + length > target.len:
                raise ValueError(f"{length} bytes into a buffer of {target.len} at {at}")
            to = <char *> target.buf + <size_t> at
            start, size = offset, length
            if size > LARGE_COPY:
                with nogil:
                    self.read_bytes(to, start, size)
            else:
                self.read_bytes(to, start, size)
        finally:
            PyBuffer_Release(&target)

    def gather(self, offset, length):
        """`length` readable bytes from `offset`."""
        cdef uint64_t start, size
        cdef char *to
        if offset < 0 or length < 0 or offset + length > self.readable:
            raise ValueError(f"{length} bytes at {offset} of a chain with {self.readable} readable bytes")
        start, size = offset, length
        made = PyBytes_FromStringAndSize(NULL, size)
        to = PyBytes_AS_STRING(made)
        if size > LARGE_COPY:
            with nogil:
                self.read_bytes(to, start, size)
        else:
            self.read_bytes(to, start, size)
        return made

    def write(self, offset, data):
        """Copy `data` into the writable part at `offset`. ValueError if it does not fit."""
        cdef Py_buffer source
        cdef uint64_t start, size
        cdef int result
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            size = source.len
            if offset < 0 or offset + size > self.writable:
                raise ValueError(f"{size} bytes at {offset} of a chain with {self.writable} writable bytes")
            start = offset
            if size > LARGE_COPY:
                with nogil:
                    result = self.write_bytes(<char *> source.buf, start, size)
            else:
                result = self.write_bytes(<char *> source.buf, start, size)
        finally:
            PyBuffer_Release(&source)
        if result < 0:
            raise stopped()

    def pread(self, fd, file_offset, skip, length):
        """Read `length` bytes of `fd` into the writable part behind its first `skip` bytes; how many came."""
        cdef int file = fd
        cdef int64_t offset = offset_of(file_offset)
        cdef uint64_t start, size
        cdef ssize_t count
        if skip < 0 or length < 0 or skip + length > self.writable:
            raise ValueError(f"{length} bytes at {skip} of a chain with {self.writable} writable bytes")
        start, size = skip, length
        if self.queue.enter() < 0:
            raise stopped()
        with nogil:
            count = self.fetch(file, offset, start, size)
            self.queue.leave()
        if count < 0:
            raise failure(-count)
        return count

    def pwrite(self, fd, file_offset, skip, length):
        """Write `length` readable bytes behind the first `skip` to `fd`; how many went."""
        cdef int file = fd
        cdef int64_t offset = offset_of(file_offset)
        cdef uint64_t start, size
        cdef ssize_t count
        if skip < 0 or length < 0 or skip + length > self.readable:
            raise ValueError(f"{length} bytes at {skip} of a chain with {self.readable} readable bytes")
        start, size = skip, length
        with nogil:
            count = self.store(file, offset, start, size)
        if count < 0:
            raise failure(-count)
        return count

    def send(self, message):
        """Answer the request, through whoever serves its queue (`DeviceQueue.answer`). False: nobody waits for it."""
        return self.queue.answer(self, message)


cdef object stopped():
    return QueueStopped("the driver has taken its ring back")


cdef int64_t offset_of(value) except -1:
    if not 0 <= value < 1 << 63:
        raise failure(EINVAL)
    return value


cdef ssize_t transfer(int fd, int64_t offset, iovec *part, uint64_t skip, uint64_t length, bint out) noexcept nogil:
    """Move `length` bytes between a file and what lies behind the first `skip` bytes of `part` and those that follow,
    until a call comes back short. Returns how many moved, or the first call's negative errno."""
    cdef iovec batch[IOV_MAX]
    cdef int count
    cdef size_t wanted, size
    cdef ssize_t got, done = 0
    while length:
        count = 0
        wanted = 0
        while length and count < IOV_MAX:
            size = part.iov_len
            if skip >= size:
                skip -= size
                part += 1
                continue
            size -= skip
            if size > length:
                size = length
            batch[count].iov_base = part.iov_base + skip
            batch[count].iov_len = size
            count += 1
            wanted += size
            length -= size
            skip = 0
            part += 1
        while True:
            got = pwritev(fd, batch, count, offset) if out else preadv(fd, batch, count, offset)
            if got >= 0 or errno != EINTR:
                break
        if got < 0:
            return done if done else -errno
        done += got
        offset += got
        if <size_t> got < wanted:
            break
    return done


# ---- what both kinds have in common: the device's side ---------------------------------------------------------------


def no_answer(chain, message):
    """Nobody serves the queue."""
    raise RuntimeError("nobody serves the queue of this chain")


cdef class DeviceQueue:
    """The device's side of one queue; SplitDevice and PackedDevice are the two kinds."""

    def __cinit__(self, *arguments, **options):
        if make_lock(&self.lock, &self.changed):
            raise MemoryError
        self.locked = True
        self.answer = no_answer
        self.armed = True

    def __init__(self):
        raise TypeError("a device queue is split or packed")

    def __dealloc__(self):
        if self.locked:
            pthread_mutex_destroy(&self.lock)
            pthread_cond_destroy(&self.changed)
        free(self.waiting)

    cdef int begin(
        self, memory, size, desc, driver_area, device_area, features, base, inflight, log, log_rings, guest_physical
    ) except -1:
        if self.size:
            raise ValueError("a queue is made once")
        check_size(size, self.packed)
        self.addresses = (desc, driver_area, device_area)
        for what, address, alignment in zip(
            ("desc", "driver", "device"), self.addresses, (16, 4, 4) if self.packed else (16, 2, 4)
        ):
            if address % alignment:
                raise RingError(f"{what} area at {address:#x}, not a multiple of {alignment}")
        self.size = size
        self.features = features
        self.indirect = bool(self.features & F_INDIRECT_DESC)
        self.event_idx = bool(self.features & F_EVENT_IDX)
        self.in_order = bool(self.features & F_IN_ORDER)
        self.guest_physical = guest_physical
        if self.in_order:
            self.waiting = <early *> calloc(self.size, sizeof(early))
            if self.waiting == NULL:
                raise MemoryError
        self.find_areas(memory, &self.at)
        self.memory = memory
        self.faults = memory_faults()
        if memory.broken:
            raise RingError("the file of the memory was truncated")
        self.set_log(log, log_rings)
        return self.start(base, inflight)

    cdef int find_areas(self, GuestMemory memory, areas *found) except -1:
        cdef char *hosts[3]
        cdef int i
        places = []
        for i, length in enumerate(area_sizes(self.size, self.packed)):
            address = self.addresses[i]
            view = memory.at_guest(address, length) if self.guest_physical else memory.at_user(address, length)
            places.append(address if self.guest_physical else memory.guest_of_user(address))
            hosts[i] = pointer_of(view)
            # Where this host has it must be aligned as well, or loads and stores would not be atomic.
            if <uintptr_t> hosts[i] % (16 if not i else 4 if i == 2 or self.packed else 2):
                raise RingError(f"area at {address:#x} in a region that is mapped to no multiple of 16")
        found.desc, found.driver, found.device = hosts[0], hosts[1], hosts[2]
        found.desc_at, found.device_at = places[0], places[2]
        return 0

    # -- requests

    def pop(self):
        """The next request, None if there is none at the moment or the queue was stopped. Kicks are off from now on
        until `arm`. RingError: the queue is broken."""
        return self.pop_chain()

    def push(self, Chain chain not None, written):
        """Give a request back with the first `written` bytes of its writable part filled. False, and nothing is done:
        the queue was stopped, or the request given back before."""
        cdef int result
        if not 0 <= written <= chain.writable or written > 0xFFFFFFFF:
            raise ValueError(f"{written} bytes written of a chain with room for {chain.writable}")
        if chain.queue is not self:
            raise ValueError("a chain of another queue")
        result = self.push_chain(chain, written, False)
        if result < 0:
            self.breaks()
        return result > 0

    def should_notify(self):
        """Whether the driver wants to be told of what was pushed since this was asked last."""
        return self.notify_wanted()

    def arm(self):
        """Ask the driver for a kick with its next request. True: one is there already, do not sleep."""
        if self.why is not None:
            return False
        return self.arm_kicks()

    @property
    def in_flight(self):
        """Chains popped and not pushed yet."""
        return self.flying

    @property
    def stopped(self):
        """The driver has its ring back."""
        return bool(flag_of(&self.halted))

    @property
    def broken(self):
        """What the driver did wrong."""
        return self.why

    @property
    def base(self):
        """What GET_VRING_BASE answers."""
        return self.base_value()

    cdef Chain pop_chain(self):
        cdef Chain chain
        cdef int code
        if flag_of(&self.halted):
            return None
        if self.why is not None:
            raise RingError(self.why)
        if memory_faults() != self.faults:
            self.check_memory()
        if not self.again and not self.available():
            return None
        # Made before the lock is taken: see above.
        chain = Chain.__new__(Chain)
        chain.queue = self
        chain.memory = self.memory
        pthread_mutex_lock(&self.lock)
        if flag_of(&self.halted):
            code = 0
        else:
            code = self.take(chain)
        if code > 0:
            if self.armed:
                self.armed = False
                if not self.event_idx:
                    self.kicks_off()
            self.flying += 1
            chain.sequence = self.popped
            self.popped += 1
        pthread_mutex_unlock(&self.lock)
        if code < 0:
            raise self.breaks()
        return chain if code else None

    cdef int push_chain(self, Chain chain, uint32_t written, bint ask) noexcept nogil:
        """1: given back; 0: not (any more); -1: the inflight region made no sense. 2: given back and, if that was
        asked, the driver wants to be told of what was pushed (`notify_wanted`)."""
        cdef early *turn
        cdef uint64_t left, size
        cdef int i, result = 1
        pthread_mutex_lock(&self.lock)
        if flag_of(&self.halted) or chain.done:
            pthread_mutex_unlock(&self.lock)
            return 0
        chain.done = True
        if self.log_bits != NULL:
            left = chain.touched if chain.touched > written else written
            for i in range(chain.inputs, chain.inputs + chain.outputs):
                if not left:
                    break
                size = chain.parts[i].iov_len
                if size > left:
                    size = left
                self.mark(chain.places[i], size)
                left -= size
        if not self.in_order:
            result = self.publish(chain.head, chain.slots, chain.entry, written)
            self.pushed += chain.slots
            self.flying -= 1
        else:
            turn = &self.waiting[chain.sequence % self.size]
            turn.head, turn.slots, turn.entry, turn.written = chain.head, chain.slots, chain.entry, written
            turn.ready = True
            while result > 0:
                turn = &self.waiting[self.next_out % self.size]
                if not turn.ready:
                    break
                turn.ready = False
                self.next_out += 1
                result = self.publish(turn.head, turn.slots, turn.entry, turn.written)
                self.pushed += turn.slots
                self.flying -= 1
        if not self.flying:
            pthread_cond_broadcast(&self.changed)
        if ask and result > 0 and self.wants_call():
            result = 2
        pthread_mutex_unlock(&self.lock)
        return result

    cdef bint notify_wanted(self) noexcept nogil:
        cdef bint wanted
        pthread_mutex_lock(&self.lock)
        wanted = not flag_of(&self.halted) and self.wants_call()
        pthread_mutex_unlock(&self.lock)
        return wanted

    cdef bint wants_call(self) noexcept nogil:
        """With the lock: does the driver want to be told of what was pushed since this was asked last?"""
        cdef uint32_t pushed = self.pushed
        self.pushed = 0
        if not pushed:
            return False
        full_fence()
        return self.call_wanted(pushed)

    cdef bint arm_kicks(self) noexcept nogil:
        cdef bint waits = False
        pthread_mutex_lock(&self.lock)
        if not flag_of(&self.halted):
            self.armed = True
            self.kicks_on()
            full_fence()
            waits = self.again > 0 or self.available()
        pthread_mutex_unlock(&self.lock)
        return waits

    # -- the life of the queue

    def stop(self, timeout_s=None):
        """From now on nothing of the driver's memory is written: push() returns False, what would write raises
        QueueStopped. Waits for writers that are at it; False if some still are after `timeout_s`."""
        cdef timespec until
        cdef bint bounded = deadline(timeout_s, &until)
        cdef bint done
        with nogil:
            pthread_mutex_lock(&self.lock)
            set_flag(&self.halted)
            pthread_cond_broadcast(&self.changed)
            while count_of(&self.writing):
                if not bounded:
                    pthread_cond_wait(&self.changed, &self.lock)
                elif pthread_cond_timedwait(&self.changed, &self.lock, &until):
                    break
            done = not count_of(&self.writing)
            pthread_mutex_unlock(&self.lock)
        return done

    def drain(self, timeout_s=None):
        """Wait until every popped request was pushed (or the queue stopped); False if that takes longer."""
        cdef timespec until
        cdef bint bounded = deadline(timeout_s, &until)
        cdef bint done
        with nogil:
            pthread_mutex_lock(&self.lock)
            while self.flying and not flag_of(&self.halted):
                if not bounded:
                    pthread_cond_wait(&self.changed, &self.lock)
                elif pthread_cond_timedwait(&self.changed, &self.lock, &until):
                    break
            done = not self.flying or flag_of(&self.halted)
            pthread_mutex_unlock(&self.lock)
        return done

    def set_memory(self, GuestMemory memory not None):
        """Use another memory from now on; requests under way keep theirs. RingError: the rings are not in it, and the
        queue is broken."""
        cdef areas found
        before = self.memory  # not to be let go under the lock
        try:
            self.find_areas(memory, &found)
        except RingError as error:
            self.why = str(error)
            raise
        pthread_mutex_lock(&self.lock)
        self.at = found
        self.memory = memory
        pthread_mutex_unlock(&self.lock)
        self.faults = 0 if memory.is_broken() else self.faults

    def set_log(self, DirtyLog log, rings):
        """Begin or end to note what is written: to the segments of requests and, if `rings`, to the rings."""
        cdef bint all_of_it = rings
        before = self.log
        pthread_mutex_lock(&self.lock)
        self.log = log
        if log is None:
            self.log_bits, self.log_bytes = NULL, 0
        else:
            self.log_bits, self.log_bytes = <uint8_t *> log.mapping.data, log.mapping.size
        self.log_rings = all_of_it and log is not None
        pthread_mutex_unlock(&self.lock)

    def begin_writing(self):
        """Between this and `end_writing`, stop() waits. QueueStopped after it."""
        if self.enter() < 0:
            raise stopped()

    def end_writing(self):
        """The reverse of `begin_writing`."""
        self.leave()

    cdef int enter(self) noexcept nogil:
        count_up(&self.writing)
        if flag_of(&self.halted):
            self.leave()
            return -1
        return 0

    cdef void leave(self) noexcept nogil:
        if not count_down(&self.writing) and flag_of(&self.halted):
            pthread_mutex_lock(&self.lock)
            pthread_cond_broadcast(&self.changed)
            pthread_mutex_unlock(&self.lock)

    cdef int fail(self, int error, uint64_t a, uint64_t b) noexcept nogil:
        self.error, self.error_a, self.error_b = error, a, b
        return -1

    cdef object breaks(self):
        """What failed, as the exception to raise; the queue is broken."""
        self.why = describe(self.error, self.error_a, self.error_b)
        return RingError(self.why)

    cdef int check_memory(self) except -1:
        """Some region of the process has lost its file: is it one of ours?"""
        cdef unsigned long faults = memory_faults()
        if self.memory.is_broken() or getattr(getattr(self.inflight, "obj", None), "broken", False):
            self.why = "the file of the memory was truncated"
            raise RingError(self.why)
        self.faults = faults
        return 0

    cdef int keep_notes(self, inflight) except -1:
        """Use a part of an inflight region from now on."""
        view = memoryview(inflight)
        cdef char *at = pointer_of(view)
        if <uintptr_t> at % 8:
            raise RingError("an inflight region that is mapped to no multiple of 8")
        self.inflight = view
        self.notes = <uint8_t *> at
        return 0

    cdef void mark(self, uint64_t address, uint64_t length) noexcept nogil:
        mark_pages(self.log_bits, self.log_bytes, address, length)

    # -- descriptors

    cdef int add(self, Chain chain, uint64_t address, uint32_t length, bint writable) noexcept:
        """One segment of `chain`."""
        cdef uint64_t left = length, size, at = address
        cdef char *host
        cdef int n
        chain.segments += 1
        if chain.segments > MAX_SEGMENTS:
            return self.fail(TOO_MANY_SEGMENTS, 0, 0)
        if not length:
            return self.fail(EMPTY, address, 0)
        if chain.outputs and not writable:
            return self.fail(DISORDER, 0, 0)
        while left:
            size = self.memory.piece_at(at, left, &host)
            if not size:
                return self.fail(NO_MEMORY, at, length)
            n = chain.inputs + chain.outputs
            if n == MAX_PIECES:
                return self.fail(TOO_MANY_PIECES, 0, 0)
            if n == chain.room and chain.grow() < 0:
                return self.fail(OUT_OF_HOST_MEMORY, 0, 0)
            chain.parts[n].iov_base = host
            chain.parts[n].iov_len = size
            chain.places[n] = at
            if writable:
                chain.outputs += 1
            else:
                chain.inputs += 1
            left -= size
            at += size
            if left and not at:
                return self.fail(NO_MEMORY, 0, length)
        if writable:
            chain.writable += length
        else:
            chain.readable += length
        if chain.readable + chain.writable > MAX_CHAIN_BYTES:
            return self.fail(TOO_MANY_BYTES, 0, 0)
        return 0

    cdef int table(self, raw_desc *d, uint16_t flags, char **found) noexcept:
        """The indirect table that a descriptor refers to: where this host has it, NULL if in pieces."""
        cdef uint64_t at = d.addr, left = d.len, size
        cdef char *host
        if not self.indirect:
            return self.fail(NOT_AGREED, 0, 0)
        if flags & NEXT:
            return self.fail(INDIRECT_NEXT, 0, 0)
        if not d.len or d.len % 16 or d.len > 16 * MAX_TABLE_ENTRIES:
            return self.fail(BAD_TABLE, d.len, 0)
        found[0] = self.memory.guest_at(d.addr, d.len)
        if found[0] != NULL:
            return 0
        while left:
            size = self.memory.piece_at(at, left, &host)
            if not size or (at + size == 0 and size < left):
                return self.fail(NO_MEMORY, at, d.len)
            at += size
            left -= size
        return 0

    cdef int table_desc(self, char *table, uint64_t address, uint32_t index, raw_desc *d) noexcept:
        """Read one descriptor of a table."""
        cdef char parts[16]
        cdef uint64_t at, size
        cdef char *host
        cdef int done = 0
        if table != NULL:
            copy_desc(d, table + 16 * <size_t> index)
            return 0
        at = address + 16 * <uint64_t> index
        while done < 16:
            size = self.memory.piece_at(at, 16 - done, &host)
            if not size:
                return self.fail(NO_MEMORY, at, 16)
            memcpy(parts + done, host, size)
            done += size
            at += size
        copy_desc(d, parts)
        return 0

    # -- what the two kinds do their own way

    cdef int start(self, base, inflight) except -1:
        raise NotImplementedError

    cdef object base_value(self):
        raise NotImplementedError

    cdef bint available(self) noexcept nogil:
        return False

    cdef int take(self, Chain chain) noexcept:
        return 0

    cdef int publish(self, uint32_t head, uint32_t slots, int entry, uint32_t written) noexcept nogil:
        return 0

    cdef bint call_wanted(self, uint32_t pushed) noexcept nogil:
        return False

    cdef void kicks_on(self) noexcept nogil:
        pass

    cdef void kicks_off(self) noexcept nogil:
        pass


cdef int check_size(size, bint packed) except -1:
    if not 0 < size <= MAX_QUEUE_SIZE or (not packed and size & (size - 1)):
        kind = "packed" if packed else "split"
        raise RingError(f"{kind} queue of {size} entries: 1 to {MAX_QUEUE_SIZE}{'' if packed else ', a power of two'}")
    return 0


cdef tuple area_sizes(uint32_t size, bint packed):
    return (16 * size, 4, 4) if packed else (16 * size, 6 + 2 * size, 6 + 8 * size)


cdef char *pointer_of(view) except NULL:
    """Where the bytes of a memoryview over a mapping are; the mapping is kept by whoever calls."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(view, &buffer, PyBUF_SIMPLE | PyBUF_WRITABLE)
    cdef char *at = <char *> buffer.buf
    PyBuffer_Release(&buffer)
    return at


cdef bint deadline(timeout_s, timespec *until) except? -1:
    """Whether a wait has an end, and when."""
    if timeout_s is None:
        return False
    cdef double seconds = max(0.0, min(timeout_s, 1e9))
    clock_gettime(CLOCK_MONOTONIC, until)
    until.tv_sec += <long> seconds
    until.tv_nsec += <long> ((seconds - <long> seconds) * 1e9)
    if until.tv_nsec >= 1000000000:
        until.tv_sec += 1
        until.tv_nsec -= 1000000000
    return True


cdef bint passed(uint16_t event, uint16_t new, uint16_t old) noexcept nogil:
    """Whether a 16-bit index that goes from `old` to `new` passes `event`."""
    return <uint16_t> (new - event - 1) < <uint16_t> (new - old)


cdef bint packed_event(char *event, bint by_index, uint32_t at, bint wrap, uint32_t moved, uint32_t size) noexcept nogil:
    """Whether the other side of a packed ring wants to be told of the `moved` slots before position `at`."""
    cdef uint16_t flags = relaxed16(event + 2)
    cdef uint16_t where
    cdef int64_t slot
    if flags == EVENT_DISABLE:
        return False
    if flags != EVENT_DESC or not by_index or moved >= size:
        return True
    where = relaxed16(event)
    slot = where & 0x7FFF
    if (where >> 15) != wrap:
        slot -= size
    return <int64_t> at - <int64_t> moved <= slot < <int64_t> at
