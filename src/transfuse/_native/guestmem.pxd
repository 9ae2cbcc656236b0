from libc.stdint cimport uint8_t, uint64_t

cdef unsigned long memory_faults() noexcept nogil
cdef object failure(int number)
cdef void mark_pages(uint8_t *bits, uint64_t size, uint64_t address, uint64_t length) noexcept nogil

cdef class Mapping:
    cdef object __weakref__
    cdef char *start
    cdef size_t mapped
    cdef char *data
    cdef readonly uint64_t size
    cdef int guard
    cdef int map(self, fd, offset, size) except -1

cdef class Region(Mapping):
    cdef readonly uint64_t guest_address
    cdef readonly uint64_t user_address

cdef struct span:
    uint64_t first
    uint64_t size
    char *host

cdef class GuestMemory:
    cdef readonly tuple regions
    cdef list by_guest
    cdef list by_user
    cdef span *guest
    cdef span *user
    cdef int count
    cdef bint is_broken(self)
    cdef char *guest_at(self, uint64_t address, uint64_t length) noexcept
    cdef uint64_t piece_at(self, uint64_t address, uint64_t length, char **host) noexcept
    cdef int of_user(self, address) except -1

cdef class DirtyLog:
    cdef readonly Mapping mapping
