# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The device's side of split and of packed virtqueues in C: what the two kinds do their own way.

The plain form, which says what each thing is for, is transports.virtqueue.split and packed. What both kinds have in
common, and how this form differs from the plain one, is in virtqueue.pyx. Methods marked noexcept run with the queue's
mutex held.
"""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from transfuse.errors import RingError

from transfuse._native.virtqueue cimport (
    AVAIL,
    BAD_INFLIGHT,
    BITS,
    ENDLESS,
    EVENT_DESC,
    EVENT_DISABLE,
    EVENT_ENABLE,
    INDEX_AHEAD,
    INDIRECT,
    MAX_SEGMENTS,
    NESTED,
    NEXT,
    NO_INFLIGHT_ENTRY,
    NO_INTERRUPT,
    NO_NOTIFY,
    OUTSIDE_TABLE,
    TOO_MANY_DESCRIPTORS,
    TOO_MANY_REQUESTS,
    TOO_MANY_SEGMENTS,
    USED,
    WRAP,
    WRITE,
    Chain,
    DeviceQueue,
    acquire16,
    copy_desc,
    note16,
    note32,
    note64,
    note8,
    note_positions,
    noted16,
    packed_event,
    passed,
    pointer_of,
    raw_desc,
    relaxed16,
    release16,
    set16,
    set32,
)


@cython.final
cdef class SplitDevice(DeviceQueue):
    """The device's side of a split queue."""

    cdef uint16_t next
    cdef uint16_t used_idx
    cdef uint16_t *again_heads

    def __init__(
        self,
        memory,
        size,
        desc,
        driver_area,
        device_area,
        features,
        base,
        *,
        inflight=None,
        log=None,
        log_rings=False,
        guest_physical=False,
    ):
        self.begin(
            memory, size, desc, driver_area, device_area, features, base, inflight, log, log_rings, guest_physical
        )

    def __dealloc__(self):
        free(self.again_heads)

    cdef int start(self, base, inflight) except -1:
        cdef uint32_t i
        if not 0 <= base <= 0xFFFF:
            raise RingError(f"split queue begins at {base}, an index has 16 bits")
        self.next = base
        self.used_idx = acquire16(self.at.device + 2)
        if inflight is None:
            return 0
        from transfuse.transports.virtqueue.inflight import SplitInflight

        notes = SplitInflight(inflight, self.size)
        fresh = notes.fresh
        heads = notes.recover(self.used_idx)
        self.keep_notes(inflight)
        self.counter = notes.counter
        if not fresh:
            self.next = <uint16_t> (self.used_idx + len(heads))
        self.again_heads = <uint16_t *> malloc(2 * len(heads) + 1)
        if self.again_heads == NULL:
            raise MemoryError
        for i, head in enumerate(reversed(heads)):
            self.again_heads[i] = head
        self.again = len(heads)
        return 0

    cdef object base_value(self):
        return self.next

    cdef bint available(self) noexcept nogil:
        return acquire16(self.at.driver + 2) != self.next

    cdef int take(self, Chain chain) noexcept:
        cdef uint16_t count, head
        if self.again:
            if self.walk(chain, self.again_heads[self.again - 1]) < 0:
                return -1
            self.again -= 1
            return 1
        count = acquire16(self.at.driver + 2) - self.next
        if not count:
            return 0
        if count > self.size:
            return self.fail(INDEX_AHEAD, count, self.size)
        if self.flying >= self.size:
            return self.fail(TOO_MANY_REQUESTS, self.size, 0)
        head = relaxed16(self.at.driver + 4 + 2 * <size_t> (self.next & (self.size - 1)))
        if self.walk(chain, head) < 0:
            return -1
        self.next += 1
        if self.notes != NULL:
            note64(self.notes + 16 + 16 * <size_t> head + 8, self.counter)
            self.counter += 1
            note8(self.notes + 16 + 16 * <size_t> head, 1)
        return 1

    cdef int walk(self, Chain chain, uint32_t head) noexcept:
        """Collect the segments of the chain that begins with `head`."""
        cdef raw_desc d
        cdef char *table = self.at.desc
        cdef uint64_t table_at = 0
        cdef uint32_t entries = self.size, left = self.size, at = head
        cdef bint indirect = False
        chain.head = head
        while True:
            if at >= entries:
                return self.fail(OUTSIDE_TABLE, at, entries)
            if self.table_desc(table, table_at, at, &d) < 0:
                return -1
            if d.third & INDIRECT:
                if indirect:
                    return self.fail(NESTED, 0, 0)
                indirect = True
                if self.table(&d, d.third, &table) < 0:
                    return -1
                table_at = d.addr
                left = entries = d.len // 16
                at = 0
                continue
            if not left:
                return self.fail(ENDLESS, entries, 0)
            left -= 1
            if self.add(chain, d.addr, d.len, d.third & WRITE) < 0:
                return -1
            if not d.third & NEXT:
                return 0
            at = d.fourth

    cdef int publish(self, uint32_t head, uint32_t slots, int entry, uint32_t written) noexcept nogil:
        cdef uint32_t slot = self.used_idx & (self.size - 1)
        cdef char *used = self.at.device + 4 + 8 * <size_t> slot
        cdef uint8_t *notes = self.notes
        set32(used, head)
        set32(used + 4, written)
        if notes != NULL:
            note16(notes + 16 + 16 * <size_t> head + 6, noted16(notes + 12))
            note16(notes + 12, head)
        self.used_idx += 1
        release16(self.at.device + 2, self.used_idx)
        if notes != NULL:
            note8(notes + 16 + 16 * <size_t> head, 0)
            note16(notes + 14, self.used_idx)
        if self.log_rings:
            self.mark(self.at.device_at + 4 + 8 * slot, 8)
            self.mark(self.at.device_at + 2, 2)
        return 1

    cdef bint call_wanted(self, uint32_t pushed) noexcept nogil:
        cdef uint16_t event
        if not self.event_idx:
            return not relaxed16(self.at.driver) & NO_INTERRUPT
        if pushed > 0xFFFF:
            return True
        event = relaxed16(self.at.driver + 4 + 2 * <size_t> self.size)
        return passed(event, self.used_idx, self.used_idx - <uint16_t> pushed)

    cdef void kicks_on(self) noexcept nogil:
        cdef size_t where = 4 + 8 * <size_t> self.size if self.event_idx else 0
        set16(self.at.device + where, self.next if self.event_idx else 0)
        if self.log_rings:
            self.mark(self.at.device_at + where, 2)

    cdef void kicks_off(self) noexcept nogil:
        set16(self.at.device, NO_NOTIFY)
        if self.log_rings:
            self.mark(self.at.device_at, 2)





@cython.final
cdef class PackedDevice(DeviceQueue):
    """The device's side of a packed queue."""

    cdef uint32_t pos
    cdef uint32_t used
    cdef bint wrap
    cdef bint used_wrap
    cdef uint32_t out  # ring slots of chains under way
    cdef raw_desc *found  # the slots of the chain that is being taken
    cdef raw_desc *again_slots
    cdef uint32_t *again_counts
    cdef int *again_entries
    cdef uint32_t again_at

    def __init__(
        self,
        memory,
        size,
        desc,
        driver_area,
        device_area,
        features,
        base,
        *,
        inflight=None,
        log=None,
        log_rings=False,
        guest_physical=False,
    ):
        self.packed = True
        self.begin(
            memory, size, desc, driver_area, device_area, features, base, inflight, log, log_rings, guest_physical
        )

    def __dealloc__(self):
        free(self.found)
        free(self.again_slots)
        free(self.again_counts)
        free(self.again_entries)

    cdef int start(self, base, inflight) except -1:
        cdef uint32_t i
        cdef size_t total = 0
        if not 0 <= base <= 0xFFFFFFFF:
            raise RingError(f"packed queue begins at {base}, which has more than 32 bits")
        self.pos, self.wrap = base & 0x7FFF, base >> 15 & 1
        self.used, self.used_wrap = base >> 16 & 0x7FFF, base >> 31 & 1
        if self.pos >= self.size or self.used >= self.size:
            raise RingError(f"packed queue of {self.size} entries begins at {self.pos} and {self.used}")
        self.found = <raw_desc *> malloc(sizeof(raw_desc) * MAX_SEGMENTS)
        if self.found == NULL:
            raise MemoryError
        if inflight is None:
            return 0
        from transfuse.transports.virtqueue.inflight import PackedInflight

        notes = PackedInflight(inflight, self.size)
        fresh = notes.fresh
        self.used, self.used_wrap, entries = notes.recover(self.used, self.used_wrap, self.flags_at)
        self.keep_notes(inflight)
        self.counter = notes.counter
        if fresh:
            return 0
        chains = [notes.descriptors(entry) for entry in entries]
        slots = sum(map(len, chains))
        if slots > self.size:
            raise RingError(f"inflight region: {slots} slots under way in a queue of {self.size}")
        self.pos, self.wrap = self.used, self.used_wrap
        self.move(&self.pos, &self.wrap, slots)
        self.again_slots = <raw_desc *> malloc(sizeof(raw_desc) * slots + 1)
        self.again_counts = <uint32_t *> malloc(sizeof(uint32_t) * len(chains) + 1)
        self.again_entries = <int *> malloc(sizeof(int) * len(chains) + 1)
        if self.again_slots == NULL or self.again_counts == NULL or self.again_entries == NULL:
            raise MemoryError
        for i, chain in enumerate(chains):
            self.again_counts[i] = len(chain)
            self.again_entries[i] = entries[i]
            for address, length, buffer_id, flags in chain:
                self.again_slots[total].addr, self.again_slots[total].len = address, length
                self.again_slots[total].third, self.again_slots[total].fourth = buffer_id, flags
                total += 1
        self.again = len(chains)
        return 0

    def flags_at(self, slot):
        """The flags of a slot of the ring."""
        if not 0 <= slot < self.size:
            raise IndexError(slot)
        return acquire16(self.at.desc + 16 * <size_t> slot + 14)

    cdef object base_value(self):
        return self.pos | self.wrap << 15 | self.used << 16 | <uint32_t> self.used_wrap << 31

    cdef void move(self, uint32_t *at, bint *wrap, uint32_t slots) noexcept nogil:
        at[0] += slots
        if at[0] >= self.size:
            at[0] -= self.size
            wrap[0] = not wrap[0]

    cdef bint available(self) noexcept nogil:
        return acquire16(self.at.desc + 16 * <size_t> self.pos + 14) & BITS == (AVAIL if self.wrap else USED)

    cdef int take(self, Chain chain) noexcept:
        cdef uint16_t flags
        cdef uint32_t at, count = 0
        cdef raw_desc *d
        cdef int entry
        if self.again:
            return self.take_again(chain)
        flags = acquire16(self.at.desc + 16 * <size_t> self.pos + 14)
        if flags & BITS != (AVAIL if self.wrap else USED):
            return 0
        at = self.pos
        while True:
            if self.out + count >= self.size:
                return self.fail(TOO_MANY_DESCRIPTORS, self.size, 0)
            if count == MAX_SEGMENTS:
                return self.fail(TOO_MANY_SEGMENTS, 0, 0)
            d = &self.found[count]
            copy_desc(d, self.at.desc + 16 * <size_t> at)
            if not count:
                d.fourth = flags
            count += 1
            at = at + 1 if at + 1 < self.size else 0
            if not d.fourth & NEXT:
                break
        if self.collect(chain, self.found, count) < 0:
            return -1
        if self.notes != NULL:
            entry = self.note_taken(count)
            if entry < 0:
                return -1
            chain.entry = entry
        self.move(&self.pos, &self.wrap, count)
        self.out += count
        return 1

    cdef int take_again(self, Chain chain) noexcept:
        cdef uint32_t number = self.again_at, before = 0, i
        for i in range(number):
            before += self.again_counts[i]
        if self.collect(chain, self.again_slots + before, self.again_counts[number]) < 0:
            return -1
        chain.entry = self.again_entries[number]
        self.out += chain.slots
        self.again_at += 1
        self.again -= 1
        return 1

    cdef int collect(self, Chain chain, raw_desc *found, uint32_t count) noexcept:
        """The segments of a chain of `count` slots."""
        cdef raw_desc inner
        cdef char *table
        cdef uint32_t i, k
        chain.head = found[count - 1].third
        chain.slots = count
        for i in range(count):
            if not found[i].fourth & INDIRECT:
                if self.add(chain, found[i].addr, found[i].len, found[i].fourth & WRITE) < 0:
                    return -1
                continue
            if self.table(&found[i], found[i].fourth, &table) < 0:
                return -1
            for k in range(found[i].len // 16):
                if self.table_desc(table, found[i].addr, k, &inner) < 0:
                    return -1
                if inner.fourth & INDIRECT:
                    return self.fail(NESTED, 0, 0)
                if self.add(chain, inner.addr, inner.len, inner.fourth & WRITE) < 0:
                    return -1
        return 0

    cdef int note_taken(self, uint32_t count) noexcept nogil:
        """PackedInflight.take for the slots in `found`."""
        cdef uint8_t *notes = self.notes
        cdef uint32_t entry = noted16(notes + 14), at = entry, i
        cdef uint8_t *first
        cdef uint8_t *here
        for i in range(count):
            if at >= self.size:
                return self.fail(NO_INFLIGHT_ENTRY, 0, 0)
            first = notes + 32 + 32 * <size_t> entry
            here = notes + 32 + 32 * <size_t> at
            if not i:
                note16(first + 6, 0)
                note64(first + 8, self.counter)
                self.counter += 1
                note8(first, 1)
            if i == count - 1:
                note16(first + 4, at)
            note16(first + 6, i + 1)
            note64(here + 24, self.found[i].addr)
            note32(here + 20, self.found[i].len)
            note16(here + 18, self.found[i].fourth)
            note16(here + 16, self.found[i].third)
            at = noted16(here + 2)
            note16(notes + 12, at)
        note16(notes + 14, at)
        return entry

    cdef int publish(self, uint32_t head, uint32_t slots, int entry, uint32_t written) noexcept nogil:
        cdef uint32_t slot = self.used, last
        cdef bint wrap = self.used_wrap
        cdef char *d = self.at.desc + 16 * <size_t> slot
        cdef uint8_t *notes = self.notes
        if notes != NULL:
            last = noted16(notes + 32 + 32 * <size_t> entry + 4)
            if last >= self.size:
                return self.fail(BAD_INFLIGHT, last, self.size)
            note16(notes + 32 + 32 * <size_t> last + 2, noted16(notes + 12))
            note16(notes + 12, entry)
        self.move(&self.used, &self.used_wrap, slots)
        if notes != NULL:
            note_positions(notes + 16, self.used, slot, self.used_wrap, wrap)
        set32(d + 8, written)
        set16(d + 12, head)
        release16(d + 14, (BITS if wrap else 0) | (WRITE if written else 0))
        self.out -= slots
        if notes != NULL:
            note8(notes + 32 + 32 * <size_t> entry, 0)
            note16(notes + 14, noted16(notes + 12))
            note_positions(notes + 16, self.used, self.used, self.used_wrap, self.used_wrap)
        if self.log_rings:
            self.mark(self.at.desc_at + 16 * slot, 16)
        return 1

    cdef bint call_wanted(self, uint32_t pushed) noexcept nogil:
        return packed_event(self.at.driver, self.event_idx, self.used, self.used_wrap, pushed, self.size)

    cdef void kicks_on(self) noexcept nogil:
        if self.event_idx:
            set16(self.at.device, self.pos | (WRAP if self.wrap else 0))
            release16(self.at.device + 2, EVENT_DESC)
        else:
            set16(self.at.device + 2, EVENT_ENABLE)
        if self.log_rings:
            self.mark(self.at.device_at, 4)

    cdef void kicks_off(self) noexcept nogil:
        set16(self.at.device + 2, EVENT_DISABLE)
        if self.log_rings:
            self.mark(self.at.device_at, 4)
