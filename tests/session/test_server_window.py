"""The DAX window: what INIT says of it, mappings, and which files are marked for it."""

from __future__ import annotations

import errno
import stat
from typing import Any

import pytest

from session.peers import ALL_FLAGS, Peer, Tree
from transfuse.fs.values import MAP_READ, MAP_SHARED, MAP_WRITE, Attr, FileRange
from transfuse.session.negotiate import Limits
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode

WINDOW = 1 << 30
GRANULE = 1 << 21
FORMER = 2**64 - 1
"""The fh of Linux's SETUPMAPPING."""


class Files(Tree):
    def __init__(self) -> None:
        super().__init__()
        self.mapped: list[tuple[Any, ...]] = []
        self.place: Any = FileRange(42, 0, GRANULE)

    def map(self, req, nodeid, fh, offset, length, intent):
        self.mapped.append((nodeid, fh, offset, length, intent))
        if isinstance(self.place, Exception):
            raise self.place
        return self.place


def windowed(fs: Tree | None = None, *, flags: int = ALL_FLAGS, suits: Any = lambda size: True, **limits: Any) -> Peer:
    peer = Peer(fs or Files(), flags=flags, limits=Limits(window=WINDOW, **limits), init=False)
    calls: list[tuple[Any, ...]] = []
    peer.host.calls = calls  # type: ignore[attr-defined]
    peer.host.window_map = lambda *args: calls.append(("map", *args))  # type: ignore[attr-defined]
    peer.host.window_unmap = lambda *args: calls.append(("unmap", *args))  # type: ignore[attr-defined]
    peer.host.window_suits = suits  # type: ignore[attr-defined]
    peer.host.window_needs_writable = lambda: False  # type: ignore[attr-defined]
    peer.init_reply = peer.init()
    return peer


def setup(peer: Peer, **values: Any) -> int:
    body = w.SetupmappingIn(**{"fh": FORMER, "foffset": 0, "len": GRANULE, "flags": 2, "moffset": 0, **values})
    return peer.ask(Opcode.SETUPMAPPING, body, nodeid=2).errno


def remove(peer: Peer, *ranges: tuple[int, int], count: int | None = None) -> int:
    body = w.RemovemappingIn(count=len(ranges) if count is None else count)
    tail = b"".join(w.RemovemappingOne(moffset=at, len=length).encode(peer.order) for at, length in ranges)
    return peer.ask(Opcode.REMOVEMAPPING, body, tail, nodeid=0).errno


def test_init_says_what_mappings_are_aligned_to() -> None:
    out = windowed().init_reply.struct(w.InitOut)
    assert out.map_alignment == 12
    assert out.flags & f.FUSE_MAP_ALIGNMENT
    assert out.flags2 & f.FUSE_HAS_INODE_DAX >> 32


def test_without_a_window_nothing_is_said_and_mappings_do_not_exist() -> None:
    peer = Peer(Files())
    out = peer.init_reply.struct(w.InitOut)
    assert not out.flags & f.FUSE_MAP_ALIGNMENT
    assert not out.flags2 & f.FUSE_HAS_INODE_DAX >> 32
    assert setup(peer) == remove(peer, (0, GRANULE)) == errno.ENOSYS


def test_a_filesystem_without_places_has_no_mappings() -> None:
    peer = windowed(Tree())
    assert not peer.init_reply.struct(w.InitOut).flags & f.FUSE_MAP_ALIGNMENT
    assert setup(peer) == errno.ENOSYS


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("flags", "intent"), [(2, MAP_READ), (3, MAP_READ | MAP_WRITE)])
def test_a_mapping_is_handed_to_the_transport(order: str, flags: int, intent: int) -> None:
    peer = windowed()
    peer.order = order
    if order == ">":
        peer.session.reinit = True
        peer.init()
    assert setup(peer, foffset=GRANULE, flags=flags, moffset=3 * GRANULE) == 0
    assert peer.fs.mapped == [(2, None, GRANULE, GRANULE, intent | MAP_SHARED)]
    assert peer.host.calls == [("map", 42, 0, GRANULE, 3 * GRANULE, bool(flags & 1), None)]


def test_a_file_is_opened_for_writing_if_the_peer_wants_that_and_it_may_be() -> None:
    peer = windowed()
    peer.host.window_needs_writable = lambda: True  # type: ignore[attr-defined]
    assert setup(peer, flags=2) == 0
    assert peer.fs.mapped[0][4] == MAP_READ | MAP_WRITE | MAP_SHARED
    assert peer.host.calls[0][5] is False  # the guest may only read

    class Reading(Files):
        def map(self, req, nodeid, fh, offset, length, intent):
            if intent & MAP_WRITE:
                raise OSError(errno.EROFS, "read-only")
            return super().map(req, nodeid, fh, offset, length, intent)

    peer = windowed(Reading())
    peer.host.window_needs_writable = lambda: True  # type: ignore[attr-defined]
    assert setup(peer, flags=2) == 0
    assert setup(peer, flags=3) == errno.EROFS


def test_no_more_is_mapped_than_the_filesystem_has() -> None:
    peer = windowed()
    peer.fs.place = FileRange(42, 0, 4096)
    assert setup(peer) == 0
    assert peer.host.calls[0][3] == 4096


@pytest.mark.parametrize(
    "wrong",
    [
        {"moffset": WINDOW},
        {"moffset": WINDOW - 4096},
        {"moffset": 2**64 - 4096},
        {"moffset": 1},
        {"len": 0},
        {"len": 100},
        {"len": 2**64 - 4096},
        {"foffset": 100},
        {"foffset": 2**63},
    ],
    ids=str,
)
def test_a_mapping_outside_or_across_pages_is_refused(wrong: dict[str, int]) -> None:
    peer = windowed()
    assert setup(peer, **wrong) == errno.EINVAL
    assert peer.fs.mapped == peer.host.calls == []


def test_errors_of_a_mapping_reach_the_peer() -> None:
    peer = windowed()
    peer.fs.place = None
    assert setup(peer) == errno.ENODEV
    peer.fs.place = PermissionError(errno.EACCES, "no")
    assert setup(peer) == errno.EACCES

    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    peer.fs.place = FileRange(42, 0, GRANULE)
    peer.host.window_map = refuse  # type: ignore[attr-defined]
    assert setup(peer) == errno.ENOSPC


def test_mappings_are_taken_back_in_lists() -> None:
    peer = windowed()
    assert remove(peer, (0, GRANULE), (5 * GRANULE, 4096)) == 0
    assert peer.host.calls == [("unmap", 0, GRANULE), ("unmap", 5 * GRANULE, 4096)]


@pytest.mark.parametrize("count", [0, 2, 2**32 - 1])
def test_a_list_that_lies_about_its_length_is_refused(count: int) -> None:
    peer = windowed()
    assert remove(peer, (0, GRANULE), count=count) == errno.EINVAL
    assert peer.host.calls == []


def test_one_wrong_range_and_none_is_taken_back() -> None:
    peer = windowed()
    assert remove(peer, (0, GRANULE), (WINDOW, GRANULE)) == errno.EINVAL
    assert peer.host.calls == []


def test_suitable_regular_files_are_marked() -> None:
    peer = windowed(suits=lambda size: size == len(Tree.DATA))
    attr = peer.ask(Opcode.LOOKUP, b"hello.txt\0").struct(w.EntryOut).attr
    assert stat.S_ISREG(attr.mode)
    assert attr.flags == f.FUSE_ATTR_DAX
    assert peer.ask(Opcode.GETATTR, w.GetattrIn(), nodeid=2).struct(w.AttrOut).attr.flags == f.FUSE_ATTR_DAX
    assert peer.ask(Opcode.LOOKUP, b"sub\0").struct(w.EntryOut).attr.flags == 0
    assert peer.ask(Opcode.GETATTR, w.GetattrIn(), nodeid=1).struct(w.AttrOut).attr.flags == 0


def test_a_mark_is_taken_back_when_the_file_does_not_suit_any_more() -> None:
    shared = Attr.file(2, size=14)

    class Same(Files):
        def attr(self, nodeid: int) -> Attr:
            return shared if nodeid == 2 else super().attr(nodeid)

    sizes = {14}
    peer = windowed(Same(), suits=lambda size: size in sizes)
    assert peer.ask(Opcode.GETATTR, w.GetattrIn(), nodeid=2).struct(w.AttrOut).attr.flags == f.FUSE_ATTR_DAX
    sizes.clear()
    assert peer.ask(Opcode.GETATTR, w.GetattrIn(), nodeid=2).struct(w.AttrOut).attr.flags == 0


def test_files_are_marked_in_listings() -> None:
    from session.peers import dirents

    peer = windowed()
    fh = peer.ask(Opcode.OPENDIR, w.OpenIn(), nodeid=1).struct(w.OpenOut).fh
    body = peer.ask(Opcode.READDIRPLUS, w.ReadIn(fh=fh, size=4096), nodeid=1).body
    marks = {name: entry.attr.flags for entry, _, name, _ in dirents(body, plus=True) if entry.nodeid > 1}
    assert marks == {b"hello.txt": f.FUSE_ATTR_DAX, b"sub": 0}


def test_nothing_is_marked_for_a_peer_that_does_not_look() -> None:
    peer = windowed(flags=ALL_FLAGS & ~f.FUSE_HAS_INODE_DAX)
    assert peer.ask(Opcode.GETATTR, w.GetattrIn(), nodeid=2).struct(w.AttrOut).attr.flags == 0
    assert setup(peer) == 0
