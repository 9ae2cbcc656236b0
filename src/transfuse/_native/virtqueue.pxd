from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

# Ring memory, numbers and types that the modules about virtqueues share; what they are is said in virtqueue.pyx.

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
    #include <stdint.h>
    #include <string.h>

    struct raw_desc { uint64_t addr; uint32_t len; uint16_t third, fourth; };

    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define HOST_IS_BIG 1
    #define LE16(x) __builtin_bswap16(x)
    #define LE32(x) __builtin_bswap32(x)
    #define LE64(x) __builtin_bswap64(x)
    #else
    #define HOST_IS_BIG 0
    #define LE16(x) (x)
    #define LE32(x) (x)
    #define LE64(x) (x)
    #endif

    /* ---- shared memory */

    static inline uint16_t acquire16(const void *at) {
        uint16_t v = __atomic_load_n((const uint16_t *) at, __ATOMIC_ACQUIRE);
        return LE16(v);
    }
    static inline uint16_t relaxed16(const void *at) {
        uint16_t v = __atomic_load_n((const uint16_t *) at, __ATOMIC_RELAXED);
        return LE16(v);
    }
    static inline uint32_t relaxed32(const void *at) {
        uint32_t v = __atomic_load_n((const uint32_t *) at, __ATOMIC_RELAXED);
        return LE32(v);
    }
    static inline void release16(void *at, uint16_t v) {
        __atomic_store_n((uint16_t *) at, (uint16_t) LE16(v), __ATOMIC_RELEASE);
        __asm__ __volatile__("" ::: "memory");  /* notes in the inflight region come after it */
    }
    static inline void set16(void *at, uint16_t v) {
        __atomic_store_n((uint16_t *) at, (uint16_t) LE16(v), __ATOMIC_RELAXED);
    }
    static inline void set32(void *at, uint32_t v) {
        __atomic_store_n((uint32_t *) at, (uint32_t) LE32(v), __ATOMIC_RELAXED);
    }
    static inline void full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

    /* The copy is what is checked and used: the compiler must not go back to the original for a field. */
    static inline void copy_desc(struct raw_desc *to, const void *from) {
        memcpy(to, from, 16);
        __asm__ __volatile__("" ::: "memory");
        to->addr = LE64(to->addr);
        to->len = LE32(to->len);
        to->third = LE16(to->third);
        to->fourth = LE16(to->fourth);
    }
    static inline void put_desc(void *to, uint64_t addr, uint32_t len, uint16_t third, uint16_t fourth) {
        struct raw_desc d = {LE64(addr), LE32(len), LE16(third), LE16(fourth)};
        memcpy(to, &d, 16);
    }

    /* ---- the inflight region: order matters to a successor of this process, not to another CPU */

    static inline void note8(void *at, uint8_t v) { *(volatile uint8_t *) at = v; }
    static inline void note16(void *at, uint16_t v) { *(volatile uint16_t *) at = v; }
    static inline uint16_t noted16(const void *at) { return *(const volatile uint16_t *) at; }
    static inline void note32(void *at, uint32_t v) { *(volatile uint32_t *) at = v; }
    static inline void note64(void *at, uint64_t v) { *(volatile uint64_t *) at = v; }
    static inline void note_positions(void *at, uint16_t used, uint16_t old_used, uint8_t wrap, uint8_t old_wrap) {
    #if HOST_IS_BIG
        uint64_t v = (uint64_t) used << 48 | (uint64_t) old_used << 32 | (uint64_t) wrap << 24 | (uint64_t) old_wrap << 16;
    #else
        uint64_t v = (uint64_t) used | (uint64_t) old_used << 16 | (uint64_t) wrap << 32 | (uint64_t) old_wrap << 40;
    #endif
        note64(at, v);
    }

    """
    ctypedef struct raw_desc "struct raw_desc":
        uint64_t addr
        uint32_t len
        uint16_t third
        uint16_t fourth
    bint HOST_IS_BIG
    uint16_t acquire16(const void *at) noexcept nogil
    uint16_t relaxed16(const void *at) noexcept nogil
    uint32_t relaxed32(const void *at) noexcept nogil
    void release16(void *at, uint16_t v) noexcept nogil
    void set16(void *at, uint16_t v) noexcept nogil
    void set32(void *at, uint32_t v) noexcept nogil
    void full_fence() noexcept nogil
    void copy_desc(raw_desc *to, const void *at) noexcept nogil
    void put_desc(void *to, uint64_t addr, uint32_t len, uint16_t third, uint16_t fourth) noexcept nogil
    void note8(void *at, uint8_t v) noexcept nogil
    void note16(void *at, uint16_t v) noexcept nogil
    uint16_t noted16(const void *at) noexcept nogil
    void note32(void *at, uint32_t v) noexcept nogil
    void note64(void *at, uint64_t v) noexcept nogil
    void note_positions(void *at, uint16_t used, uint16_t old_used, uint8_t wrap, uint8_t old_wrap) noexcept nogil

cdef enum:
    # layout.py, which a test compares
    NEXT = 1
    WRITE = 2
    INDIRECT = 4
    AVAIL = 1 << 7
    USED = 1 << 15
    BITS = AVAIL | USED
    NO_INTERRUPT = 1
    NO_NOTIFY = 1
    EVENT_ENABLE = 0
    EVENT_DISABLE = 1
    EVENT_DESC = 2
    WRAP = 1 << 15
    MAX_QUEUE_SIZE = 32768
    MAX_SEGMENTS = 1024
    MAX_PIECES = 2 * MAX_SEGMENTS
    MAX_TABLE_ENTRIES = 32768
    IOV_MAX = 1024
    LARGE_COPY = 1 << 16  # bytes above which a copy lets other threads run; below, giving the lock away costs more
    INLINE_PIECES = 12  # iovecs that need no malloc: header, arguments, a page or two, reply

cdef enum:
    # what a driver did wrong; `describe` has the words
    NO_MEMORY = 1
    EMPTY
    DISORDER
    TOO_MANY_SEGMENTS
    TOO_MANY_PIECES
    TOO_MANY_BYTES
    OUT_OF_HOST_MEMORY
    NOT_AGREED
    INDIRECT_NEXT
    BAD_TABLE
    NESTED
    OUTSIDE_TABLE
    ENDLESS
    INDEX_AHEAD
    TOO_MANY_REQUESTS
    TOO_MANY_DESCRIPTORS
    BAD_INFLIGHT
    NO_INFLIGHT_ENTRY

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
    cdef int keep_notes(self, inflight) except -1
    cdef int start(self, base, inflight) except -1
    cdef object base_value(self)
    cdef bint available(self) noexcept nogil
    cdef int take(self, Chain chain) noexcept
    cdef int publish(self, uint32_t head, uint32_t slots, int entry, uint32_t written) noexcept nogil
    cdef bint call_wanted(self, uint32_t pushed) noexcept nogil
    cdef void kicks_on(self) noexcept nogil
    cdef void kicks_off(self) noexcept nogil

cdef int check_size(size, bint packed) except -1
cdef tuple area_sizes(uint32_t size, bint packed)
cdef char *pointer_of(view) except NULL
cdef bint passed(uint16_t event, uint16_t new, uint16_t old) noexcept nogil
cdef bint packed_event(char *event, bint by_index, uint32_t at, bint wrap, uint32_t moved, uint32_t size) noexcept nogil
