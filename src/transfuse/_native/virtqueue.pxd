from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from transfuse._native.guestmem cimport DirtyLog, GuestMemory

cdef extern from "pthread.h":
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass

cdef extern from "sys/uio.h":
    ctypedef struct iovec "struct iovec":
        char *iov_base
        size_t iov_len

cdef extern from *:
    """
    struct raw_desc { uint64_t addr; uint32_t len; uint16_t third, fourth; };
    """
    ctypedef struct raw_desc "struct raw_desc":
        uint64_t addr
        uint32_t len
        uint16_t third
        uint16_t fourth

cdef enum:
    INLINE_PIECES = 12

cdef struct early:
    uint32_t head
    uint32_t slots
    uint32_t written
    int entry
    bint ready

cdef struct areas:
    char *desc
    char *driver
    char *device
    uint64_t desc_at
    uint64_t device_at

cdef class Chain:
    cdef readonly DeviceQueue queue
    cdef GuestMemory memory
    cdef readonly uint32_t head
    cdef readonly bint done
    cdef readonly uint64_t readable
    cdef readonly uint64_t writable
    cdef uint64_t touched
    cdef uint64_t sequence
    cdef uint32_t slots
    cdef uint32_t segments
    cdef int entry
    cdef int inputs
    cdef int outputs
    cdef int room
    cdef iovec *parts
    cdef uint64_t *places
    cdef iovec few_parts[INLINE_PIECES]
    cdef uint64_t few_places[INLINE_PIECES]
    cdef int grow(self) noexcept
    cdef void read_bytes(self, char *to, uint64_t offset, uint64_t length) noexcept nogil
    cdef int write_bytes(self, const char *source, uint64_t offset, uint64_t length) noexcept nogil
    cdef ssize_t fetch(self, int fd, int64_t offset, uint64_t skip, uint64_t length) noexcept nogil
    cdef ssize_t store(self, int fd, int64_t offset, uint64_t skip, uint64_t length) noexcept nogil

cdef class DeviceQueue:
    cdef readonly uint32_t size
    cdef readonly uint64_t features
    cdef readonly GuestMemory memory
    cdef public object answer
    cdef object why
    cdef DirtyLog log
    cdef uint8_t *log_bits
    cdef uint64_t log_bytes
    cdef bint log_rings
    cdef bint packed, indirect, event_idx, in_order, guest_physical
    cdef object addresses
    cdef areas at
    cdef pthread_mutex_t lock
    cdef pthread_cond_t changed
    cdef bint locked
    cdef int halted
    cdef int64_t writing
    cdef uint32_t flying
    cdef bint armed
    cdef uint32_t pushed
    cdef uint64_t popped
    cdef uint64_t next_out
    cdef early *waiting
    cdef object inflight
    cdef uint8_t *notes
    cdef uint64_t counter
    cdef uint32_t again
    cdef unsigned long faults
    cdef int error
    cdef uint64_t error_a
    cdef uint64_t error_b
    cdef int begin(self, memory, size, desc, driver_area, device_area, features, base, inflight, log, log_rings, guest_physical) except -1
    cdef int find_areas(self, GuestMemory memory, areas *found) except -1
    cdef Chain pop_chain(self)
    cdef int push_chain(self, Chain chain, uint32_t written, bint ask) noexcept nogil
    cdef bint notify_wanted(self) noexcept nogil
    cdef bint wants_call(self) noexcept nogil
    cdef bint arm_kicks(self) noexcept nogil
    cdef int enter(self) noexcept nogil
    cdef void leave(self) noexcept nogil
    cdef int fail(self, int error, uint64_t a, uint64_t b) noexcept nogil
    cdef object breaks(self)
    cdef int add(self, Chain chain, uint64_t address, uint32_t length, bint writable) noexcept
    cdef int table(self, raw_desc *d, uint16_t flags, char **found) noexcept
    cdef int table_desc(self, char *table, uint64_t address, uint32_t index, raw_desc *d) noexcept
    cdef void mark(self, uint64_t address, uint64_t length) noexcept nogil
    cdef int check_memory(self) except -1
    cdef int start(self, base, inflight) except -1
    cdef object base_value(self)
    cdef bint available(self) noexcept nogil
    cdef int take(self, Chain chain) noexcept
    cdef int publish(self, uint32_t head, uint32_t slots, int entry, uint32_t written) noexcept nogil
    cdef bint call_wanted(self, uint32_t pushed) noexcept nogil
    cdef void kicks_on(self) noexcept nogil
    cdef void kicks_off(self) noexcept nogil
