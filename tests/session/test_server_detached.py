"""WRITEs whose payload stays with the transport, second INITs, and what the transport is told."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from session.peers import Peer, Reply, Tree
from transfuse.fs.values import MAP_CACHED, MAP_WRITE, FileRange
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.encode import RangeWrite
from transfuse.wire.opcodes import Opcode

PAYLOAD = b"payload of a write"


class Payload:
    """The channel of a request whose payload lies elsewhere."""

    def __init__(self, whole: bytes) -> None:
        self.whole = whole
        self.copied = 0
        self.sent: list[Any] = []

    def send(self, message: Any) -> bool:
        self.sent.append(message)
        return True

    def copy_in(self, buffer: Any, at: int, offset: int, length: int) -> None:
        self.copied += length
        buffer[at : at + length] = self.whole[offset : offset + length]


class Files(Tree):
    """Knows where its bytes belong, unless told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.place: Any = FileRange(42, 1000, len(PAYLOAD), self)
        self.mapped: list[tuple[Any, ...]] = []
        self.written: list[tuple[Any, ...]] = []

    def map(self, req, nodeid, fh, offset, length, intent):
        self.mapped.append((nodeid, fh, offset, length, intent))
        if isinstance(self.place, Exception):
            raise self.place
        return self.place

    def write(self, req, nodeid, fh, data, offset, flags):
        self.written.append((nodeid, fh, bytes(data), offset, flags))
        return len(data)


def detached(peer: Peer, body: w.WriteIn, payload: bytes = PAYLOAD, **header: Any) -> tuple[Any, Payload]:
    """The session's answer to a WRITE of which it gets the first 80 bytes."""
    _, raw = peer.build(Opcode.WRITE, body, payload, nodeid=2, **header)
    channel = Payload(raw)
    buffer = bytearray(b"##" + raw[:80] + b"\xee" * 40)
    return peer.session.handle_detached(buffer, 2, 82, channel, len(raw) - 80), channel


def body(**values: Any) -> w.WriteIn:
    return w.WriteIn(**{"fh": 5, "offset": 100, "size": len(PAYLOAD), **values})


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_payload_goes_where_the_filesystem_says(order: str) -> None:
    peer = Peer(Files(), order=order)
    answer, channel = detached(peer, body())
    assert isinstance(answer, RangeWrite)
    assert (answer.fd, answer.offset, answer.length, answer.owner) == (42, 1000, len(PAYLOAD), peer.fs)
    assert peer.fs.mapped == [(2, 5, 100, len(PAYLOAD), MAP_WRITE)]
    assert channel.copied == 0
    assert Reply(answer.written(7), order).struct(w.WriteOut).size == 7
    assert Reply(answer.error(errno.ENOSPC), order).errno == errno.ENOSPC


def test_a_cached_page_is_told_apart() -> None:
    peer = Peer(Files())
    detached(peer, body(write_flags=f.FUSE_WRITE_CACHE))
    assert peer.fs.mapped[0][4] == MAP_WRITE | MAP_CACHED


@pytest.mark.parametrize("place", [None, FileRange(42, 0, 3)], ids=["none", "too short"])
def test_without_a_place_the_bytes_are_written(place: Any) -> None:
    peer = Peer(Files())
    peer.fs.place = place
    answer, channel = detached(peer, body())
    assert Reply(answer).struct(w.WriteOut).size == len(PAYLOAD)
    assert peer.fs.written == [(2, 5, PAYLOAD, 100, 0)]
    assert channel.copied == len(PAYLOAD)


def test_a_write_that_clears_set_id_bits_is_the_filesystems() -> None:
    peer = Peer(Files())
    detached(peer, body(write_flags=f.FUSE_WRITE_KILL_SUIDGID))
    assert peer.fs.mapped == []
    assert peer.fs.written[0][4] == f.FUSE_WRITE_KILL_SUIDGID


def test_a_filesystem_without_map_writes() -> None:
    class Plain(Tree):
        def write(self, req, nodeid, fh, data, offset, flags):
            self.calls.append(bytes(data))
            return len(data)

    peer = Peer(Plain())
    answer, _ = detached(peer, body())
    assert Reply(answer).struct(w.WriteOut).size == len(PAYLOAD)
    assert peer.fs.calls == [PAYLOAD]


def test_a_filesystem_with_a_write_of_its_own_is_not_passed_by() -> None:
    class Upper(Files):
        def write(self, req, nodeid, fh, data, offset, flags):
            return super().write(req, nodeid, fh, bytes(data).upper(), offset, flags)

    peer = Peer(Upper())
    detached(peer, body())
    assert peer.fs.mapped == []
    assert peer.fs.written[0][2] == PAYLOAD.upper()


def test_a_coroutine_writes_from_a_copy() -> None:
    class Later(Files):
        async def write(self, req, nodeid, fh, data, offset, flags):
            return Files.write(self, req, nodeid, fh, data, offset, flags)

    peer = Peer(Later())
    answer, channel = detached(peer, body())
    assert answer is None
    assert Reply(channel.sent[0]).struct(w.WriteOut).size == len(PAYLOAD)


def test_errors_of_map_are_the_writes() -> None:
    peer = Peer(Files())
    peer.fs.place = OSError(errno.EROFS, "read-only")
    assert Reply(detached(peer, body())[0]).errno == errno.EROFS
    peer.fs.place = RuntimeError("a bug")
    assert Reply(detached(peer, body())[0]).errno == errno.EIO
    assert len(peer.bugs) == 1


@pytest.mark.parametrize("wrong", [{"size": 3}, {"size": 2**32 - 1}, {"offset": 2**63 - 1}, {"offset": 2**64 - 1}])
def test_wrong_numbers_are_refused_as_ever(wrong: dict[str, int]) -> None:
    peer = Peer(Files())
    assert Reply(detached(peer, body(**wrong))[0]).errno == errno.EINVAL
    assert peer.fs.written == peer.fs.mapped == []


def test_a_payload_larger_than_any_is_not_gathered() -> None:
    peer = Peer(Files())
    _, raw = peer.build(Opcode.WRITE, body(size=1 << 32 - 1), b"", nodeid=2)
    channel = Payload(raw)
    answer = peer.session.handle_detached(bytearray(raw), 0, 80, channel, 3 << 30)
    assert Reply(answer).errno == errno.EINVAL
    assert channel.copied == 0
    assert peer.fs.written == peer.fs.mapped == []


def test_before_init_and_after_the_end_nothing_is_written() -> None:
    peer = Peer(Files(), init=False)
    assert Reply(detached(peer, body())[0]).errno == errno.EIO
    peer = Peer(Files())
    peer.session.end()
    assert Reply(detached(peer, body())[0]).errno == errno.EIO
    assert peer.fs.written == peer.fs.mapped == []


def test_the_transport_hears_of_begin_and_end() -> None:
    peer = Peer(Tree(), init=False, reinit=True)
    heard: list[str] = []
    peer.session.on_started = lambda: heard.append("started")
    peer.session.on_ended = lambda: heard.append("ended")
    peer.init()
    peer.init()
    peer.session.end()
    peer.session.end()
    assert heard == ["started", "ended", "started", "ended"]


def test_a_transport_may_refuse_waiting() -> None:
    class Locks(Tree):
        def flock(self, req, nodeid, fh, owner, kind, wait):
            if not wait:
                raise BlockingIOError(errno.EAGAIN, "taken")

    peer = Peer(Locks(), init=False)
    asked: list[Any] = []

    def may_wait(channel: Any) -> bool:
        asked.append(channel)
        return len(asked) > 1

    peer.session._may_wait = may_wait
    peer.init()
    lock = w.LkIn(fh=1, owner=7, lk=w.FileLock(start=0, end=9, type=1), lk_flags=f.FUSE_LK_FLOCK)
    assert peer.ask(Opcode.SETLKW, lock, nodeid=2).errno == errno.ENOLCK
    peer.tell(Opcode.SETLKW, lock, nodeid=2)
    assert peer.channel.wait().errno == 0
    assert asked == [peer.channel] * 2
