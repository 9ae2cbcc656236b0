# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The driver's side of virtqueues in C.

The plain form, which says what each thing is for, is transports.virtqueue.driver with split and packed; names, behaviour
and errors are the same, and the same tests run on both. Kicks that the device does not want are really left out here
(see virtqueue.pyx on memory ordering).
"""

cimport cython
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from transfuse.errors import RingError

from transfuse._native.guestmem cimport GuestMemory
from transfuse._native.virtqueue cimport (
    AVAIL,
    BITS,
    EVENT_DESC,
    EVENT_DISABLE,
    EVENT_ENABLE,
    INDIRECT,
    NEXT,
    NO_INTERRUPT,
    NO_NOTIFY,
    USED,
    WRAP,
    WRITE,
    acquire16,
    area_sizes,
    areas,
    check_size,
    full_fence,
    packed_event,
    passed,
    pointer_of,
    put_desc,
    relaxed16,
    relaxed32,
    release16,
    set16,
)

cdef uint64_t F_INDIRECT_DESC = 1 << 28
cdef uint64_t F_EVENT_IDX = 1 << 29
cdef uint64_t F_IN_ORDER = 1ULL << 35


cdef struct flight:
    uint32_t count  # entries of the ring, 0: not under way
    uint64_t room


cdef class DriverQueue:
    """The driver's side of one queue; SplitDriver and PackedDriver are the two kinds."""

    cdef readonly GuestMemory memory
    cdef readonly uint32_t size
    cdef readonly uint64_t features
    cdef readonly uint32_t free
    cdef object why
    cdef bint packed, event_idx, in_order, armed
    cdef uint32_t added  # not published yet: requests (split), ring slots (packed)
    cdef uint32_t shown  # published since needs_kick() was asked
    cdef areas at
    cdef char *tables
    cdef uint64_t tables_at
    cdef uint32_t table_entries
    cdef list tokens
    cdef flight *under
    cdef uint32_t flying
    cdef uint16_t *order  # heads in the order they were added, a ring
    cdef uint32_t order_first
    cdef bint batch
    cdef uint32_t batch_head
    cdef uint32_t batch_written

    def __cinit__(self, *arguments, **options):
        self.armed = True

    def __init__(
        self,
        GuestMemory memory not None,
        size,
        desc,
        driver_area,
        device_area,
        features,
        base=None,
        *,
        tables=None,
        table_entries=0,
        guest_physical=False,
    ):
        cdef int i
        cdef char *hosts[3]
        if self.size:
            raise ValueError("a queue is made once")
        check_size(size, self.packed)
        self.memory = memory
        for i, (address, length) in enumerate(zip((desc, driver_area, device_area), area_sizes(size, self.packed))):
            view = memory.at_guest(address, length) if guest_physical else memory.at_user(address, length)
            hosts[i] = pointer_of(view)
            if <uintptr_t> hosts[i] % (16 if not i else 4 if i == 2 or self.packed else 2):
                raise RingError(f"area at {address:#x} is not aligned")
        self.at.desc, self.at.driver, self.at.device = hosts[0], hosts[1], hosts[2]
        self.features = features
        self.event_idx = bool(self.features & F_EVENT_IDX)
        self.in_order = bool(self.features & F_IN_ORDER)
        if tables is not None and table_entries > 0 and self.features & F_INDIRECT_DESC:
            self.tables = pointer_of(memory.at_guest(tables, size * table_entries * 16))
            self.tables_at = tables
            self.table_entries = table_entries
        self.under = <flight *> calloc(size, sizeof(flight))
        self.order = <uint16_t *> calloc(size, sizeof(uint16_t))
        if self.under == NULL or self.order == NULL:
            raise MemoryError
        self.size = self.free = size
        self.tokens = [None] * size
        self.start(base)

    def __dealloc__(self):
        free(self.under)
        free(self.order)

    @property
    def broken(self):
        """What the device did wrong."""
        return self.why

    def add(self, readable, writable, token):
        """Put a request into the ring: the device reads `readable` and fills `writable`. False: no room at the moment.
        ValueError if it has no segment, or more than the ring can ever hold."""
        cdef uint32_t ins = len(readable), count = ins + <uint32_t> len(writable), needed
        cdef bint indirect
        cdef int head
        cdef uint64_t room = 0
        if not count:
            raise ValueError("a request of no segments")
        indirect = 1 < count <= self.table_entries
        if count > self.size and not indirect:
            raise ValueError(f"a request of {count} segments in a queue of {self.size}")
        needed = 1 if indirect else count
        if needed > self.free:
            return False
        head = self.place(readable, writable, indirect, count, &room)
        self.tokens[head] = token
        self.under[head].count = needed
        self.under[head].room = room
        self.order[(self.order_first + self.flying) % self.size] = head
        self.flying += 1
        self.free -= needed
        return True

    def publish(self):
        """Show the device all requests that were added."""
        if self.added:
            self.show()
            self.shown += self.added
            self.added = 0

    def needs_kick(self):
        """Whether the device wants to be told of what was published since this was asked last."""
        cdef uint32_t shown = self.shown
        if not shown:
            return False
        self.shown = 0
        full_fence()
        return self.kick_wanted(shown)

    def take_used(self):
        """The token of a request that is done and the number of bytes written, None if there is none. Calls are off
        from now on until `arm`. RingError: the queue is broken."""
        cdef uint32_t head, written, first
        cdef flight *under
        if self.why is not None:
            raise RingError(self.why)
        if not self.flying or not self.used_waits():
            return None
        if self.batch:
            head, written = self.batch_head, self.batch_written
        else:
            self.read_used(&head, &written)
        if self.ahead() > self.flying:
            raise self.breaks(f"used index is {self.ahead()} ahead with {self.flying} requests under way")
        if head >= self.size or not self.under[head].count:
            raise self.breaks(f"used id {head} is not under way")
        under = &self.under[head]
        if written > under.room:
            raise self.breaks(f"used length {written} of a request with room for {under.room}")
        if self.in_order:
            # One used entry may stand for a batch; those before the one it names were filled whole.
            first = self.order[self.order_first]
            self.batch = first != head
            if self.batch:
                self.batch_head, self.batch_written = head, written
                head = first
                under = &self.under[head]
                written = under.room
        self.order_first = (self.order_first + 1) % self.size
        self.flying -= 1
        if self.armed:
            self.armed = False
            if not self.event_idx:
                self.calls_off()
        self.free += under.count
        self.release(head, under.count)
        under.count = 0
        token = self.tokens[head]
        self.tokens[head] = None
        return token, written

    def arm(self):
        """Ask the device for a call when it is done with the next request. True: one is done already, do not sleep."""
        if self.why is not None:
            return False
        self.armed = True
        self.calls_on()
        full_fence()
        return self.flying > 0 and self.used_waits()

    cdef object breaks(self, why):
        self.why = why
        return RingError(why)

    cdef int start(self, base) except -1:
        raise TypeError("a driver queue is split or packed")

    cdef int place(self, readable, writable, bint indirect, uint32_t count, uint64_t *room) except -1:
        raise NotImplementedError

    cdef void show(self) noexcept:
        pass

    cdef bint kick_wanted(self, uint32_t shown) noexcept:
        return True

    cdef bint used_waits(self) noexcept:
        return False

    cdef uint32_t ahead(self) noexcept:
        return 0

    cdef void read_used(self, uint32_t *head, uint32_t *written) noexcept:
        pass

    cdef void release(self, uint32_t head, uint32_t count) noexcept:
        pass

    cdef void calls_on(self) noexcept:
        pass

    cdef void calls_off(self) noexcept:
        pass


@cython.final
cdef class SplitDriver(DriverQueue):
    """The driver's side of a split queue. `base` is the index that both rings begin with."""

    cdef uint16_t next
    cdef uint16_t seen
    cdef uint16_t head
    cdef uint16_t *links

    def __dealloc__(self):
        free(self.links)

    cdef int start(self, base) except -1:
        cdef uint32_t i
        self.links = <uint16_t *> malloc(2 * self.size)
        if self.links == NULL:
            raise MemoryError
        for i in range(self.size):
            self.links[i] = i + 1
        memset(self.at.desc, 0, 16 * self.size)
        memset(self.at.driver, 0, 6 + 2 * self.size)
        memset(self.at.device, 0, 6 + 8 * self.size)
        self.next = self.seen = base or 0
        set16(self.at.driver + 2, self.next)
        set16(self.at.device + 2, self.next)
        self.calls_on()
        return 0

    cdef uint16_t after(self, uint32_t at) noexcept:
        if self.in_order:
            return (at + 1) % self.size
        return self.links[at]

    cdef int place(self, readable, writable, bint indirect, uint32_t count, uint64_t *room) except -1:
        cdef uint16_t head = self.head, at = head, following
        cdef uint32_t i = 0
        cdef uint64_t address, total = 0
        cdef uint32_t length
        cdef uint16_t flags = 0
        cdef char *table = self.tables + 16 * <size_t> self.table_entries * head
        for segments in (readable, writable):
            for one, size in segments:
                address, length = one, size
                i += 1
                if indirect:
                    put_desc(table, address, length, flags | (NEXT if i < count else 0), i if i < count else 0)
                    table += 16
                else:
                    following = self.after(at)
                    put_desc(
                        self.at.desc + 16 * <size_t> at,
                        address,
                        length,
                        flags | (NEXT if i < count else 0),
                        following if i < count else 0,
                    )
                    at = following
                if flags:
                    total += length
            flags = WRITE
        if indirect:
            put_desc(
                self.at.desc + 16 * <size_t> head,
                self.tables_at + 16 * <uint64_t> self.table_entries * head,
                16 * count,
                INDIRECT,
                0,
            )
            at = self.after(head)
        self.head = at
        room[0] = total
        set16(self.at.driver + 4 + 2 * <size_t> (self.next & (self.size - 1)), head)
        self.next += 1
        self.added += 1
        return head

    cdef void show(self) noexcept:
        release16(self.at.driver + 2, self.next)

    cdef bint kick_wanted(self, uint32_t shown) noexcept:
        if not self.event_idx:
            return not relaxed16(self.at.device) & NO_NOTIFY
        if shown > 0xFFFF:
            return True
        return passed(
            relaxed16(self.at.device + 4 + 8 * <size_t> self.size), self.next, self.next - <uint16_t> shown
        )

    cdef bint used_waits(self) noexcept:
        return acquire16(self.at.device + 2) != self.seen

    cdef uint32_t ahead(self) noexcept:
        return <uint16_t> (acquire16(self.at.device + 2) - self.seen)

    cdef void read_used(self, uint32_t *head, uint32_t *written) noexcept:
        cdef char *used = self.at.device + 4 + 8 * <size_t> (self.seen & (self.size - 1))
        head[0] = relaxed32(used)
        written[0] = relaxed32(used + 4)

    cdef void release(self, uint32_t head, uint32_t count) noexcept:
        cdef uint16_t at = head
        cdef uint32_t i
        self.seen += 1
        if self.in_order:
            return
        for i in range(count - 1):
            at = self.links[at]
        self.links[at] = self.head
        self.head = head

    cdef void calls_on(self) noexcept:
        if self.event_idx:
            set16(self.at.driver + 4 + 2 * <size_t> self.size, self.seen)
        else:
            set16(self.at.driver, 0)

    cdef void calls_off(self) noexcept:
        set16(self.at.driver, NO_INTERRUPT)


@cython.final
cdef class PackedDriver(DriverQueue):
    """The driver's side of a packed queue. `base` is as for PackedDevice, with nothing under way."""

    cdef uint32_t pos
    cdef uint32_t used
    cdef bint wrap
    cdef bint used_wrap
    cdef uint16_t *ids  # free buffer ids, a stack
    cdef uint32_t id_count
    cdef int64_t hidden  # slot of the first descriptor that is not published: the device sees none behind it
    cdef uint16_t hidden_flags

    def __cinit__(self, *arguments, **options):
        self.packed = True
        self.hidden = -1

    def __dealloc__(self):
        free(self.ids)

    cdef int start(self, base) except -1:
        cdef uint32_t i
        begin = 0x80008000 if base is None else base
        self.pos, self.wrap = begin & 0x7FFF, begin >> 15 & 1
        if self.pos >= self.size or begin >> 16 != begin & 0xFFFF:
            raise ValueError(f"a packed queue of {self.size} entries cannot begin at {begin:#x}")
        self.used, self.used_wrap = self.pos, self.wrap
        memset(self.at.desc, 0, 16 * self.size)
        memset(self.at.driver, 0, 4)
        memset(self.at.device, 0, 4)
        self.ids = <uint16_t *> malloc(2 * self.size)
        if self.ids == NULL:
            raise MemoryError
        self.id_count = self.size
        for i in range(self.size):
            # Flags of the pass that used the slot last.
            set16(self.at.desc + 16 * <size_t> i + 14, BITS if (self.wrap if i < self.pos else not self.wrap) else 0)
            self.ids[i] = self.size - 1 - i
        self.calls_on()
        return 0

    cdef int place(self, readable, writable, bint indirect, uint32_t count, uint64_t *room) except -1:
        cdef uint16_t buffer_id = self.ids[self.id_count - 1], flags = 0, head_flags = 0
        cdef uint32_t head = self.pos, at = head, i = 0, slots = 1 if indirect else count
        cdef bint wrap = self.wrap
        cdef uint64_t address, total = 0
        cdef uint32_t length
        cdef char *table = self.tables + 16 * <size_t> self.table_entries * buffer_id
        for segments in (readable, writable):
            for one, size in segments:
                address, length = one, size
                i += 1
                if indirect:
                    put_desc(table, address, length, 0, flags)
                    table += 16
                else:
                    self.put(at, address, length, buffer_id, flags | (NEXT if i < count else 0), wrap, i == 1, &head_flags)
                    at += 1
                    if at == self.size:
                        at = 0
                        wrap = not wrap
                if flags:
                    total += length
            flags = WRITE
        if indirect:
            address = self.tables_at + 16 * <uint64_t> self.table_entries * buffer_id
            self.put(head, address, 16 * count, buffer_id, INDIRECT, wrap, True, &head_flags)
            at += 1
            if at == self.size:
                at = 0
                wrap = not wrap
        self.pos, self.wrap = at, wrap
        room[0] = total
        self.id_count -= 1
        self.added += slots
        if self.hidden < 0:
            self.hidden, self.hidden_flags = head, head_flags
        else:
            set16(self.at.desc + 16 * <size_t> head + 14, head_flags)
        return buffer_id

    cdef void put(
        self,
        uint32_t at,
        uint64_t address,
        uint32_t length,
        uint16_t buffer_id,
        uint16_t flags,
        bint wrap,
        bint first,
        uint16_t *head_flags,
    ) noexcept:
        """One descriptor. The first one's flags, which make the chain available, are written later."""
        cdef char *d = self.at.desc + 16 * <size_t> at
        flags |= AVAIL if wrap else USED
        if first:
            head_flags[0] = flags
            flags = relaxed16(d + 14)
        put_desc(d, address, length, buffer_id, flags)

    cdef void show(self) noexcept:
        release16(self.at.desc + 16 * <size_t> self.hidden + 14, self.hidden_flags)
        self.hidden = -1

    cdef bint kick_wanted(self, uint32_t shown) noexcept:
        return packed_event(self.at.device, self.event_idx, self.pos, self.wrap, shown, self.size)

    cdef bint used_waits(self) noexcept:
        if self.batch:
            return True
        return acquire16(self.at.desc + 16 * <size_t> self.used + 14) & BITS == (BITS if self.used_wrap else 0)

    cdef void read_used(self, uint32_t *head, uint32_t *written) noexcept:
        cdef char *d = self.at.desc + 16 * <size_t> self.used
        written[0] = relaxed32(d + 8)
        head[0] = relaxed16(d + 12)

    cdef void release(self, uint32_t head, uint32_t count) noexcept:
        self.ids[self.id_count] = head
        self.id_count += 1
        self.used += count
        if self.used >= self.size:
            self.used -= self.size
            self.used_wrap = not self.used_wrap

    cdef void calls_on(self) noexcept:
        if self.event_idx:
            set16(self.at.driver, self.used | (WRAP if self.used_wrap else 0))
            release16(self.at.driver + 2, EVENT_DESC)
        else:
            set16(self.at.driver + 2, EVENT_ENABLE)

    cdef void calls_off(self) noexcept:
        set16(self.at.driver + 2, EVENT_DISABLE)
