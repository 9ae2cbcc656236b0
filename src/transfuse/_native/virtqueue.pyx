# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Virtqueues in C: chains, and both sides of both kinds of rings.

The plain form, which says what each thing is for, is the modules of transports.virtqueue (chain, device, driver, split,
packed); names, behaviour and errors are the same, and the same tests run on both. What is different:

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
from libc.string cimport memcpy, memset
from posix.time cimport timespec
from posix.types cimport off_t

from transfuse._native.guestmem cimport DirtyLog, GuestMemory, failure, memory_faults

from transfuse.errors import QueueStopped, RingError

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/uio.h>
    #include <time.h>

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

