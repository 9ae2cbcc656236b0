"""The bytes of one file, with holes: a table of 4 KiB pages, where a page that is missing reads as zeros.

A page is immutable `bytes` when it was written whole and a `bytearray` once it was changed in part. `UNWRITTEN`, always
the same object, is a page that fallocate() reserved: it counts as allocated and reads as zeros, but SEEK_DATA passes
over it, as on ext4 and tmpfs. A file of 1 TiB with one byte in it costs one page.

Whoever owns the file says with `charge` whether there is room: it is called with the number of pages about to be added
(negative: freed) and raises ENOSPC. The size is changed only after that went well.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

__all__ = ["PAGE", "UNWRITTEN", "SparseBytes"]

PAGE = 4096
UNWRITTEN = bytes(PAGE)

Buffer = bytes | bytearray | memoryview


class SparseBytes:
    """The content of a regular file."""

    __slots__ = ("_charge", "_data_pages", "pages", "size")

    def __init__(self, charge: Callable[[int], None]) -> None:
        self.size = 0
        self.pages: dict[int, bytes | bytearray] = {}
        self._charge = charge
        self._data_pages: list[int] | None = None
        """Sorted numbers of the written pages, for seeking; None after the set of them changed."""

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`."""
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        first, skip = divmod(offset, PAGE)
        last = (end - 1) // PAGE
        get = self.pages.get
        if first == last:
            return bytes(get(first, UNWRITTEN)[skip : skip + end - offset])
        parts = [get(number, UNWRITTEN) for number in range(first, last + 1)]
        if skip:
            parts[0] = parts[0][skip:]
        rest = end - last * PAGE
        if rest != PAGE:
            parts[-1] = parts[-1][:rest]
        return b"".join(parts)

    def write(self, data: Buffer, offset: int) -> None:
        """Put `data` at `offset`, growing the file as needed; all of it or, without room, nothing."""
        count = len(data)
        if not count:
            return
        pages = self.pages
        end = offset + count
        first, skip = divmod(offset, PAGE)
        last = (end - 1) // PAGE
        missing = sum(number not in pages for number in range(first, last + 1)) if first != last else first not in pages
        if missing:
            self._charge(int(missing))
            self._data_pages = None
        view = memoryview(data)
        if first == last:
            self._patch(first, skip, view)
        else:
            at = PAGE - skip
            if skip:
                self._patch(first, skip, view[:at])
            else:
                self._fill(first, bytes(view[:at]))
            for number in range(first + 1, last):
                self._fill(number, bytes(view[at : at + PAGE]))
                at += PAGE
            self._patch(last, 0, view[at:])
        if end > self.size:
            self.size = end

    def _fill(self, number: int, page: bytes) -> None:
        if self.pages.get(number) is UNWRITTEN:
            self._data_pages = None
        self.pages[number] = page

    def _patch(self, number: int, skip: int, view: memoryview) -> None:
        if len(view) == PAGE:
            self._fill(number, bytes(view))
            return
        page = self.pages.get(number, UNWRITTEN)
        if page.__class__ is bytes:
            if page is UNWRITTEN:
                self._data_pages = None
            page = self.pages[number] = bytearray(page)
        page[skip : skip + len(view)] = view  # type: ignore[index]  # bytes became a bytearray just above

    def truncate(self, size: int) -> None:
        """Cut or extend to `size` bytes; what is added is a hole."""
        if size <= self.size:  # also what was reserved beyond the end
            keep, rest = divmod(size, PAGE)
            if rest:
                self._zero_part(keep, rest, PAGE)
                keep += 1
            self._drop_from(keep)
        self.size = size

    def _drop_from(self, first: int) -> None:
        gone = [number for number in self.pages if number >= first]
        for number in gone:
            del self.pages[number]
        if gone:
            self._data_pages = None
            self._charge(-len(gone))

    def _zero_part(self, number: int, start: int, end: int) -> None:
        page = self.pages.get(number)
        if page is not None and page is not UNWRITTEN and start < end:
            self._patch(number, start, memoryview(UNWRITTEN)[: end - start])

    def punch(self, offset: int, length: int) -> None:
        """Make a hole: whole pages are freed, parts of pages zeroed. The size stays."""
        first, last = self._whole_pages(offset, length)
        if first >= last:
            return
        inside = range(first, last) if last - first < len(self.pages) else [n for n in self.pages if first <= n < last]
        freed = sum(self.pages.pop(number, None) is not None for number in inside)
        if freed:
            self._data_pages = None
            self._charge(-freed)

    def _whole_pages(self, offset: int, length: int) -> tuple[int, int]:
        """Zero the parts of pages at both ends and return the range of whole ones between."""
        end = offset + length
        first, skip = divmod(offset, PAGE)
        last, rest = divmod(end, PAGE)
        if first == last:
            self._zero_part(first, skip, rest)
            return 0, 0
        if skip:
            self._zero_part(first, skip, PAGE)
            first += 1
        if rest:
            self._zero_part(last, 0, rest)
        return first, last

    def allocate(self, offset: int, length: int, *, zero: bool, keep_size: bool, max_pages: int) -> None:
        """Reserve pages for a range, zeroing it first if `zero`. More than `max_pages` missing ones are ENOSPC."""
        end = offset + length
        if zero:
            self.punch(offset, length)
        first, last = offset // PAGE, (end - 1) // PAGE
        if last - first >= max_pages + len(self.pages):
            self._charge(last - first + 1 - len(self.pages))
        missing = [number for number in range(first, last + 1) if number not in self.pages]
        if missing:
            self._charge(len(missing))
            for number in missing:
                self.pages[number] = UNWRITTEN
        if not keep_size and end > self.size:
            self.size = end

    def seek_data(self, offset: int) -> int | None:
        """Where data is at or after `offset`; None when there is only a hole up to the end, or `offset` is beyond."""
        if offset >= self.size:
            return None
        numbers = self._sorted_data()
        at = bisect_left(numbers, offset // PAGE)
        if at == len(numbers) or numbers[at] * PAGE >= self.size:
            return None
        return max(offset, numbers[at] * PAGE)

    def seek_hole(self, offset: int) -> int | None:
        """Where a hole is at or after `offset` (the end of the file is one); None when `offset` is beyond the end."""
        if offset >= self.size:
            return None
        number = offset // PAGE
        pages = self.pages
        while pages.get(number, UNWRITTEN) is not UNWRITTEN:
            number += 1
        return min(max(offset, number * PAGE), self.size)

    def _sorted_data(self) -> list[int]:
        if self._data_pages is None:
            self._data_pages = sorted(number for number, page in self.pages.items() if page is not UNWRITTEN)
        return self._data_pages

    def free(self) -> None:
        """Give all pages back."""
        self._drop_from(0)
        self.size = 0
