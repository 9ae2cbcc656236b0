"""Listings: cookies of the filesystem's own, and listings that the session numbers and keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from session.peers import dirents
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, DirEntry, Entry
from transfuse.session import directories
from transfuse.session.directories import Listings, listed_nodes
from transfuse.session.negotiate import Connection
from transfuse.session.replies import Replies

REQ = Request()


class Source:
    """A directory whose listing is asked for, and how often."""

    def __init__(self, names: Iterable[bytes], cookies: bool = False) -> None:
        self.items = list(names)
        self.cookies = cookies
        self.asked: list[int] = []

    def readdir(self, req: Request, nodeid: int, fh: int, offset: int) -> Iterable[DirEntry]:
        self.asked.append(offset)
        if not self.cookies:
            return [DirEntry(name, 10 + place) for place, name in enumerate(self.items)]
        numbered = [DirEntry(name, 10, 0, 100 + place) for place, name in enumerate(self.items)]
        return iter(numbered[max(0, offset - 99) :])


def listings(order: str = "<") -> Listings:
    return Listings(Replies(Connection(order=order)))


def page(made: Listings, source: Source, offset: int, size: int = 4096, fh: int = 1) -> list[tuple[bytes, int]]:
    data = made.pack(made.entries(source.readdir, REQ, 1, fh, offset), size)
    return [(name, off) for _, off, name, _ in dirents(bytes(data))]


def whole(made: Listings, source: Source, size: int, fh: int = 1) -> list[bytes]:
    names, offset = [], 0
    for _ in range(10_000):
        got = page(made, source, offset, size, fh)
        if not got:
            return names
        names += [name for name, _ in got]
        offset = got[-1][1]
    raise AssertionError("the listing does not end")


NAMES = [b"n%03d" % n for n in range(100)]


@pytest.mark.parametrize("size", [32, 64, 100, 4096, 1 << 20])
@pytest.mark.parametrize("cookies", [False, True])
def test_every_name_is_listed_once_whatever_the_room(size: int, cookies: bool) -> None:
    expected = NAMES if cookies else [b".", b"..", *NAMES]
    assert whole(listings(), Source(NAMES, cookies), size) == expected


def test_listing_without_cookies_is_asked_for_once() -> None:
    source = Source(NAMES)
    whole(listings(), source, 64)
    assert source.asked == [0]


def test_listing_with_cookies_is_asked_for_at_each_offset() -> None:
    source = Source(NAMES[:3], cookies=True)
    whole(listings(), source, 32)
    assert source.asked == [0, 100, 101, 102]


def test_reading_from_the_start_asks_again() -> None:
    made, source = listings(), Source([b"a"])
    page(made, source, 0)
    source.items.append(b"b")
    assert [name for name, _ in page(made, source, 0)] == [b".", b"..", b"a", b"b"]


def test_a_change_under_way_does_not_shift_the_rest() -> None:
    made, source = listings(), Source([b"a", b"b", b"c"])
    first = page(made, source, 0, 96)
    source.items = [b"c"]
    assert page(made, source, first[-1][1]) == [(b"b", 4), (b"c", 5)]


def test_dots_are_not_added_twice() -> None:
    assert [name for name, _ in page(listings(), Source([b"..", b".", b"a"]), 0)] == [b"..", b".", b"a"]


def test_empty_directory_has_dots() -> None:
    assert whole(listings(), Source([]), 4096) == [b".", b".."]


def test_entries_that_the_filesystem_gives_out_again_are_numbered_again() -> None:
    same = [DirEntry(b"a", 2), DirEntry(b"b", 3)]
    made = listings()
    source = Source([])
    source.readdir = lambda req, nodeid, fh, offset: same  # type: ignore[method-assign]
    for _ in range(2):
        assert whole(made, source, 32) == [b".", b"..", b"a", b"b"]
    assert [entry.cookie for entry in same] == [0, 0]


def test_generator_is_a_listing() -> None:
    def generate(req: Request, nodeid: int, fh: int, offset: int) -> Iterator[DirEntry]:
        yield DirEntry(b"a", 2)
        yield DirEntry(b"b", 3)

    made = listings()
    data = made.pack(made.entries(generate, REQ, 1, 1, 0), 4096)
    assert [name for _, _, name, _ in dirents(bytes(data))] == [b".", b"..", b"a", b"b"]


def test_two_handles_have_listings_of_their_own() -> None:
    made, source = listings(), Source([b"a"])
    page(made, source, 0, 64, fh=1)
    source.items = [b"b"]
    page(made, source, 0, 64, fh=2)
    assert page(made, source, 2, fh=1) == [(b"a", 3)]
    assert page(made, source, 2, fh=2) == [(b"b", 3)]


@pytest.mark.parametrize("offset", [3, 4, 1 << 31, (1 << 64) - 1])
def test_offset_at_or_beyond_the_end_is_the_end(offset: int) -> None:
    made, source = listings(), Source([b"a"])
    page(made, source, 0)
    assert page(made, source, offset) == []


def test_offset_of_a_listing_that_was_dropped_is_read_again() -> None:
    made, source = listings(), Source([b"a", b"b"])
    page(made, source, 0, 96)
    made.drop(1, 1)
    assert page(made, source, 3) == [(b"b", 4)]
    assert source.asked == [0, 3]


def test_listing_ends_with_its_release() -> None:
    made, source = listings(), Source([b"a"])
    page(made, source, 0)
    made.drop(1, 1)
    assert made._kept == {}


def test_listing_of_handle_zero_ends_with_its_last_page() -> None:
    made, source = listings(), Source([b"a"])
    whole(made, source, 4096, fh=0)
    assert made._kept == {}


def test_listings_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "MAX_KEPT", 4)
    made, source = listings(), Source([b"a"])
    for fh in range(1, 20):
        page(made, source, 0, fh=fh)
    assert list(made._kept) == [(1, 16), (1, 17), (1, 18), (1, 19)]


@pytest.mark.parametrize("size", [0, 1, 23, 24])
def test_no_room_for_one_record_is_an_empty_page(size: int) -> None:
    assert page(listings(), Source([b"a"]), 0, size) == []


@pytest.mark.parametrize("order", "<>")
def test_records_are_padded_to_eight(order: str) -> None:
    made = listings(order)
    data = bytes(made.pack([DirEntry(b"abc", 5, 4, 9)], 4096))
    assert len(data) == 32
    assert dirents(data, order) == [(5, 9, b"abc", 4)]
    assert data[27:] == bytes(5)


def test_record_whose_padding_does_not_fit_is_left_out() -> None:
    # Linux takes it for one that is cut off, and a page without a whole record for the end of the directory.
    entries = [DirEntry(b"a", 5, 4, 9), DirEntry(b"b", 6, 4, 10)]
    assert [name for _, _, name, _ in dirents(bytes(listings().pack(entries, 32 + 31)))] == [b"a"]
    assert [name for _, _, name, _ in dirents(bytes(listings().pack(entries, 32 + 32)))] == [b"a", b"b"]


def test_entry_whose_padding_does_not_fit_is_not_looked_up() -> None:
    looked_up = []

    def lookup(req: Request, nodeid: int, name: bytes) -> Entry:
        looked_up.append(name)
        return Entry(Attr.file(2))

    entries = [DirEntry(b"a", 5, 4, 9), DirEntry(b"b", 6, 4, 10)]
    listings().pack_plus(entries, 160 + 159, lookup, REQ, 1)
    assert looked_up == [b"a"]


@pytest.mark.parametrize("order", "<>")
def test_nodes_of_a_listing_are_read_back(order: str) -> None:
    made = listings(order)
    entries = [DirEntry(b".", 1, 4, 1), DirEntry(b"a", 2, 8, 2), DirEntry(b"gone", 3, 8, 3), DirEntry(b"c", 4, 8, 4)]

    def lookup(req: Request, nodeid: int, name: bytes) -> Entry:
        if name == b"gone":
            raise FileNotFoundError
        return Entry(Attr.file(20 if name == b"a" else 40))

    data = made.pack_plus(entries, 4096, lookup, REQ, 1)
    assert list(listed_nodes(data, order)) == [20, 40]


@pytest.mark.parametrize("name", ["text", None, 5])
def test_name_that_is_no_bytes_is_an_error(name: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        listings().pack([DirEntry(name, 5, 4, 9)], 4096)  # type: ignore[arg-type]
