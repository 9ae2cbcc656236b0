"""A session as bytes, and another one that goes on from them."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from session.peers import Peer, Tree
from transfuse.fs.values import Features
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode


class Kept(Tree):
    """A tree whose lookups can be handed on."""

    keeps_state = True

    def __init__(self) -> None:
        super().__init__()
        self.destroyed_times = 0
        self.portable: bool | None = None

    def export_state(self, portable: bool) -> Iterable[bytes]:
        self.portable = portable
        for nodeid, count in self.lookups.items():
            yield b"%d %d\n" % (nodeid, count)
        yield bytes(3 << 20)

    def import_state(self, state: Iterable[bytes], portable: bool) -> None:
        self.portable = portable
        text = b"".join(state).rstrip(b"\0").decode()
        self.lookups = {int(nodeid): int(count) for nodeid, count in (line.split() for line in text.splitlines())}

    def destroyed(self) -> None:
        self.destroyed_times += 1


def kept(order: str = "<") -> Peer:
    peer = Peer(Kept(), order=order)
    peer.ask(Opcode.LOOKUP, b"hello.txt\0")
    return peer


def fresh(fs: Tree | None = None, order: str = "<") -> Peer:
    return Peer(fs or Kept(), init=False, order=order)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("portable", [False, True])
def test_another_session_goes_on(order: str, portable: bool) -> None:
    first = kept(order)
    pieces = list(first.session.export_state(portable))
    second = fresh(order=order)
    second.session.import_state(pieces)
    assert second.session.connection is not None
    assert second.session.connection.order == order
    assert second.fs.lookups == {2: 1}
    assert second.fs.portable is portable
    assert second.ask(Opcode.GETATTR, w.GetattrIn(), nodeid=2).struct(w.AttrOut).attr.size == 14


def test_pieces_may_be_cut_anywhere(request: pytest.FixtureRequest) -> None:
    raw = b"".join(kept().session.export_state(False))
    rng = random.Random(request.config.option.seed)
    cuts = sorted(rng.randrange(len(raw)) for _ in range(20))
    second = fresh()
    second.session.import_state(raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) if a < b)
    assert second.fs.lookups == {2: 1}


def test_what_was_agreed_can_be_kept_alone() -> None:
    pieces = list(kept().session.export_state(False, with_filesystem=False))
    second = fresh()
    second.session.import_state(pieces)
    assert second.fs.lookups == {}
    assert second.ask(Opcode.LOOKUP, b"hello.txt\0").errno == 0


def test_a_filesystem_that_keeps_no_state_is_gone_on_with_as_new() -> None:
    second = fresh()
    second.session.import_state(Peer(Tree()).session.export_state(False))
    assert second.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


def test_a_filesystem_that_keeps_no_state_cannot_take_any() -> None:
    second = fresh(Tree())
    with pytest.raises(ValueError, match="cannot take over"):
        second.session.import_state(kept().session.export_state(False))
    assert second.session.connection is None


def test_before_init_and_after_the_end_there_is_nobody_to_go_on_for() -> None:
    ended = kept()
    ended.session.end()
    for peer in (fresh(), ended):
        second = fresh()
        assert not second.session.import_state(peer.session.export_state(False))
        assert second.session.connection is None
        assert second.fs.destroyed_times == 0
        second.init()
        assert second.ask(Opcode.LOOKUP, b"hello.txt\0").errno == 0


def test_another_agreement_is_refused_with_its_differences() -> None:
    first = kept()
    fs = Kept()
    fs.features = Features(max_write=1 << 16)
    second = fresh(fs)
    with pytest.raises(ValueError, match="max_write 0x10000, was 0x100000"):
        second.session.import_state(first.session.export_state(False))
    assert second.session.connection is None
    assert fs.destroyed_times == 1  # what was imported is dropped


def test_timeouts_and_read_ahead_may_differ() -> None:
    fs = Kept()
    fs.features = Features(entry_timeout_s=9, max_readahead=4096, max_background=7)
    second = fresh(fs)
    second.session.import_state(kept().session.export_state(False))
    assert second.session.connection is not None


def test_a_session_that_serves_somebody_is_not_replaced() -> None:
    pieces = list(kept().session.export_state(False))
    second = kept()
    with pytest.raises(ValueError, match="already"):
        second.session.import_state(pieces)
    assert second.fs.destroyed_times == 0
    second.session.end()
    second.session.import_state(pieces)
    assert not second.session.ended


def test_damage_is_found_wherever_it_is(request: pytest.FixtureRequest) -> None:
    first = kept()
    raw = bytearray(b"".join(first.session.export_state(False)))
    rng = random.Random(request.config.option.seed)
    for at in [0, 8, 12, 20, 100, len(raw) - 1, len(raw) - 5, *(rng.randrange(len(raw)) for _ in range(20))]:
        damaged = bytearray(raw)
        damaged[at] ^= 1 << rng.randrange(8)
        second = fresh()
        with pytest.raises(ValueError):
            second.session.import_state([bytes(damaged)])
        assert second.session.connection is None


@pytest.mark.parametrize("size", [0, 10, 24, 150, 1000])
def test_a_state_that_ends_early_is_refused(size: int) -> None:
    raw = b"".join(kept().session.export_state(False))
    with pytest.raises(ValueError, match="too early"):
        fresh().session.import_state([raw[:size]])


def test_a_second_init_after_going_on_starts_over() -> None:
    second = Peer(Kept(), init=False)
    second.session.reinit = True
    second.session.import_state(kept().session.export_state(False))
    second.init()
    assert second.fs.destroyed_times == 1
    assert second.session.connection is not None
    assert second.session.connection.has(f.FUSE_BIG_WRITES)
