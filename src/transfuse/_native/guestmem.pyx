# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Guest memory in C: mappings that survive the truncation of their file, address look-up, the dirty log.

The plain form, which says what each thing is for, is transports.virtqueue.memory; names, behaviour and errors are the
same, and the same tests run on both. What is different:

- A SIGBUS handler maps zeros over a region whose file was truncated, and marks it broken. It passes other addresses on
  to the handler that was there before; one that is installed after ours is put behind ours when the next region is
  mapped, and gets all of them until then.
- The log's bits are set by an atomic "or".
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.types cimport off_t

import mmap
import os
import stat

from transfuse.errors import RingError

cdef extern from *:
    """
    #include <errno.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/mman.h>

    static inline void set_bits(uint8_t *at, uint8_t bits) { __atomic_fetch_or(at, bits, __ATOMIC_SEQ_CST); }

    /* ---- SIGBUS */

    #define GUARDS 4096

    struct guard { uintptr_t start; size_t size; int broken; };
    static struct guard guards[GUARDS];
    static unsigned long guard_faults;
    static struct sigaction guard_before;
    static int guard_passing;

    static void guard_handler(int sig, siginfo_t *info, void *context) {
        int kept = errno;
        if (info->si_code > 0) {
            uintptr_t at = (uintptr_t) info->si_addr;
            for (int i = 0; i < GUARDS; i++) {
                uintptr_t start = __atomic_load_n(&guards[i].start, __ATOMIC_ACQUIRE);
                if (!start || at < start || at - start >= guards[i].size) continue;
                if (mmap((void *) start, guards[i].size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED) break;
                __atomic_store_n(&guards[i].broken, 1, __ATOMIC_SEQ_CST);
                __atomic_fetch_add(&guard_faults, 1, __ATOMIC_SEQ_CST);
                errno = kept;
                return;
            }
        }
        /* Not ours. A handler that raises SIGBUS again (faulthandler does) must not come back here for ever. */
        if (__atomic_exchange_n(&guard_passing, 1, __ATOMIC_SEQ_CST) || guard_before.sa_handler == SIG_DFL
            || guard_before.sa_handler == SIG_IGN) {
            signal(sig, SIG_DFL);
            if (info->si_code <= 0) raise(sig);
        } else {
            if (guard_before.sa_flags & SA_SIGINFO) guard_before.sa_sigaction(sig, info, context);
            else guard_before.sa_handler(sig);
            __atomic_store_n(&guard_passing, 0, __ATOMIC_SEQ_CST);
        }
        errno = kept;
    }

    /* Called with the interpreter lock. Whoever installed a handler after us is passed on to from now on. */
    static int guard_add(void *start, size_t size) {
        struct sigaction now, ours;
        if (sigaction(SIGBUS, NULL, &now)) return -1;
        if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != guard_handler) {
            memset(&ours, 0, sizeof ours);
            sigemptyset(&ours.sa_mask);
            ours.sa_sigaction = guard_handler;
            ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
            guard_before = now;
            if (sigaction(SIGBUS, &ours, NULL)) return -1;
        }
        for (int i = 0; i < GUARDS; i++) {
            if (guards[i].start) continue;
            guards[i].size = size;
            guards[i].broken = 0;
            __atomic_store_n(&guards[i].start, (uintptr_t) start, __ATOMIC_RELEASE);
            return i;
        }
        errno = ENOMEM;
        return -1;
    }
    static void guard_remove(int i) { __atomic_store_n(&guards[i].start, 0, __ATOMIC_RELEASE); }
    static int guard_broken(int i) { return __atomic_load_n(&guards[i].broken, __ATOMIC_SEQ_CST); }
    static unsigned long guard_count(void) { return __atomic_load_n(&guard_faults, __ATOMIC_RELAXED); }
    """
    void set_bits(uint8_t *at, uint8_t bits) noexcept nogil
    int guard_add(void *start, size_t size)
    void guard_remove(int i)
    int guard_broken(int i) noexcept nogil
    unsigned long guard_count() noexcept nogil

    void *c_mmap "mmap"(void *at, size_t size, int protection, int flags, int fd, off_t offset) noexcept nogil
    int c_munmap "munmap"(void *at, size_t size) noexcept nogil
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void *MAP_FAILED

cdef enum:
    MAX_REGIONS = 512
    LOG_PAGE = 4096

_END = 1 << 64


cdef unsigned long memory_faults() noexcept nogil:
    """How many regions have lost their file so far, in the whole process."""
    return guard_count()


cdef object failure(int number):
    return OSError(number, os.strerror(number))


# ---- memory ----------------------------------------------------------------------------------------------------------


cdef class Mapping:
    """`size` bytes of `fd` from `offset`, shared and writable. The fd may be closed afterwards.

    RingError when the file is too short, OSError when it cannot be mapped.
    """

    def __cinit__(self):
        self.guard = -1

    def __init__(self, fd, offset, size):
        self.map(fd, offset, size)

    cdef int map(self, fd, offset, size) except -1:
        cdef void *at
        cdef size_t length
        cdef off_t begin
        cdef int number
        if self.start != NULL:
            raise ValueError("it is mapped already")
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise RingError(f"memory in a file of type {stat.S_IFMT(status.st_mode):o}, not a regular one")
        if size <= 0 or offset < 0 or offset + size > status.st_size:
            raise RingError(f"{size} bytes of memory at offset {offset} of a file of {status.st_size} bytes")
        # A file on hugetlbfs is mapped in its own large pages only.
        page = os.fstatvfs(fd).f_bsize
        if page < mmap.PAGESIZE or page & (page - 1):
            page = mmap.PAGESIZE
        begin = offset - offset % page
        length = -(-(offset + size - begin) // page) * page
        if begin + length > status.st_size:
            length = -(-(status.st_size - begin) // mmap.PAGESIZE) * mmap.PAGESIZE
        at = c_mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, begin)
        if at == MAP_FAILED:
            raise failure(errno)
        self.start = <char *> at
        self.mapped = length
        self.data = self.start + <size_t> (offset - begin)
        self.size = size
        self.guard = guard_add(at, length)
        if self.guard < 0:
            raise failure(errno)
        return 0

    def __dealloc__(self):
        if self.guard >= 0:
            guard_remove(self.guard)
        if self.start != NULL:
            c_munmap(self.start, self.mapped)

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.start == NULL:
            raise BufferError("nothing is mapped")
        PyBuffer_FillInfo(view, self, self.data, self.size, 0, flags)

    @property
    def view(self):
        """All of it, as bytes."""
        return memoryview(self)

    @property
    def broken(self):
        """The file was truncated under us, and zeros took its place."""
        return self.guard >= 0 and bool(guard_broken(self.guard))


cdef class Region(Mapping):
    """One region of a driver's memory; `mmap_offset` is where it begins in the file."""

    def __init__(self, guest_address, user_address, size, fd, mmap_offset=0):
        for address in (guest_address, user_address):
            if address < 0 or size <= 0 or address + size > _END:
                raise RingError(f"region of {size} bytes at {address:#x}")
        self.map(fd, mmap_offset, size)
        self.guest_address = guest_address
        self.user_address = user_address


cdef class GuestMemory:
    """Regions that do not overlap, by either kind of address."""

    def __init__(self, regions=()):
        cdef Region region
        if self.guest != NULL:
            raise ValueError("a memory does not change")
        kept = tuple(regions)
        self.count = len(kept)
        if self.count > MAX_REGIONS:
            raise RingError(f"{self.count} regions of memory, at most {MAX_REGIONS} are taken")
        for region in kept:
            if region.start == NULL:
                raise ValueError("a region is not mapped")
        self.by_guest = sorted(kept, key=lambda region: region.guest_address)
        self.by_user = sorted(kept, key=lambda region: region.user_address)
        self.guest = <span *> calloc(2 * self.count + 1, sizeof(span))
        if self.guest == NULL:
            raise MemoryError
        self.user = self.guest + self.count
        self.regions = kept
        cdef int i
        for i in range(self.count):
            region = self.by_guest[i]
            self.guest[i].first, self.guest[i].size, self.guest[i].host = region.guest_address, region.size, region.data
            region = self.by_user[i]
            self.user[i].first, self.user[i].size, self.user[i].host = region.user_address, region.size, region.data
        for i in range(self.count - 1):
            check_apart(self.guest, i)
            check_apart(self.user, i)

    def __dealloc__(self):
        free(self.guest)

    @property
    def broken(self):
        """A region's file was truncated under us."""
        return self.is_broken()

    cdef bint is_broken(self):
        cdef Region region
        for region in self.regions:
            if guard_broken(region.guard):
                return True
        return False

    cdef char *guest_at(self, uint64_t address, uint64_t length) noexcept:
        """The bytes at a guest address if they lie in one region, else NULL."""
        cdef int i = find(self.guest, self.count, address)
        if i < 0 or length > self.guest[i].size - (address - self.guest[i].first):
            return NULL
        return self.guest[i].host + (address - self.guest[i].first)

    cdef uint64_t piece_at(self, uint64_t address, uint64_t length, char **host) noexcept:
        """How many of the bytes at a guest address lie in one region; 0: there is no memory."""
        cdef int i = find(self.guest, self.count, address)
        cdef uint64_t skip, left
        if i < 0:
            return 0
        skip = address - self.guest[i].first
        left = self.guest[i].size - skip
        host[0] = self.guest[i].host + skip
        return length if length < left else left

    def at(self, guest_address, length):
        """The bytes at a guest address: one piece for each region they lie in, none for no bytes."""
        cdef uint64_t address, left, size
        cdef char *host
        cdef int i
        pieces = []
        if not length:
            return pieces
        if not (0 <= guest_address < _END and 0 < length <= _END - guest_address):
            raise nothing_at(guest_address, length)
        address = guest_address
        left = length
        while left:
            i = find(self.guest, self.count, address)
            if i < 0:
                raise nothing_at(address, length)
            size = self.piece_at(address, left, &host)
            skip = address - self.guest[i].first
            pieces.append(memoryview(self.by_guest[i])[skip : skip + size])
            left -= size
            address += size
            if not address and left:
                raise nothing_at(0, length)
        return pieces

    def at_guest(self, guest_address, length):
        """The same where the bytes must lie in one region: a ring."""
        pieces = self.at(guest_address, length)
        if len(pieces) != 1:
            raise RingError(f"{length} bytes at guest address {guest_address:#x} are not in one region")
        return pieces[0]

    def at_user(self, user_address, length):
        """The bytes at a user address, which must lie in one region."""
        cdef int i = self.of_user(user_address)
        skip = user_address - self.user[i].first
        if length <= 0 or skip + length > self.user[i].size:
            raise RingError(f"{length} bytes at user address {user_address:#x} are not in one region")
        return memoryview(self.by_user[i])[skip : skip + length]

    def guest_of_user(self, user_address):
        """The guest address of a byte named by its user address."""
        cdef int i = self.of_user(user_address)
        return (<Region> self.by_user[i]).guest_address + (user_address - self.user[i].first)

    cdef int of_user(self, address) except -1:
        cdef int i = find(self.user, self.count, address) if 0 <= address < _END else -1
        if i < 0:
            raise RingError(f"no memory at user address {address:#x}")
        return i


cdef int check_apart(span *spans, int i) except -1:
    if spans[i].size > spans[i + 1].first - spans[i].first:
        raise RingError(
            f"regions of memory overlap: {spans[i].size} bytes at {spans[i].first:#x} and one at {spans[i + 1].first:#x}"
        )
    return 0


cdef int find(span *spans, int count, uint64_t address) noexcept:
    """Index of the span that `address` is in, -1 if in none."""
    cdef int low = 0, high = count, middle
    while low < high:
        middle = (low + high) >> 1
        if spans[middle].first <= address:
            low = middle + 1
        else:
            high = middle
    if not low or address - spans[low - 1].first >= spans[low - 1].size:
        return -1
    return low - 1


cdef object nothing_at(address, length):
    return RingError(f"no memory at guest address {address:#x} ({length} bytes were to be there)")


cdef void mark_pages(uint8_t *bits, uint64_t size, uint64_t address, uint64_t length) noexcept nogil:
    """Set the bits of `length` bytes at `address` in a log of `size` bytes."""
    cdef uint64_t page = address // LOG_PAGE, last = (address + length - 1) // LOG_PAGE, end = size * 8
    if address + length - 1 < address:
        last = end
    while page <= last and page < end:
        set_bits(bits + (page >> 3), <uint8_t> (1 << (page & 7)))
        page += 1


cdef class DirtyLog:
    """The bitmap in which a device notes what it wrote to guest memory while the guest is being migrated."""

    ATOMIC = True

    def __init__(self, Mapping mapping not None):
        self.mapping = mapping

    def mark(self, guest_address, length):
        """Note that `length` bytes were written. What lies beyond the log has no bit and is passed over."""
        if length > 0:
            mark_pages(<uint8_t *> self.mapping.data, self.mapping.size, guest_address, length)
