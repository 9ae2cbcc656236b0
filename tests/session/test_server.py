"""The session's state machine: INIT, lengths, several workers and connections, and the end."""

from __future__ import annotations

import errno
import struct
import sys
import threading
from typing import Any

import pytest

from session.peers import ALL_FLAGS, Inline, Later, Peer, Reply, Tree, dirents
from transfuse.errors import RemoteProtocolError
from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import DirEntry, Features
from transfuse.session.negotiate import Limits
from transfuse.session.server import ServerSession
from transfuse.transports.base import flatten
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.encode import encode_request
from transfuse.wire.opcodes import Opcode

# -- INIT


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("minor", [27, 31, 35, 36, 45, 46])
def test_connection_of_every_order_and_minor_serves(order: str, minor: int) -> None:
    peer = Peer(Tree(), order=order, minor=minor)
    entry = peer.ask(Opcode.LOOKUP, b"hello.txt\0").struct(w.EntryOut)
    assert (entry.nodeid, entry.attr.size) == (2, 14)
    assert peer.ask(Opcode.READ, w.ReadIn(offset=7, size=100), nodeid=2).body == b"world!\n"


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("minor", "structure"), [(31, 8), (33, 16)])
def test_setxattr_structure_of_older_peers_is_shorter(order: str, minor: int, structure: int) -> None:
    class Attributes(Tree):
        def setxattr(self, req: Request, nodeid: int, name: bytes, value: bytes, flags: int, kill_sgid: bool) -> None:
            self.calls.append((name, value, flags))

    peer = Peer(Attributes(), order=order, minor=minor)
    body = struct.pack(order + "II", 3, 1).ljust(structure, b"\0")
    assert peer.ask(Opcode.SETXATTR, body, b"user.a\0abc", nodeid=2).errno == 0
    assert peer.fs.calls == [(b"user.a", b"abc", 1)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("order", "<>")
def test_init_reply_of_literal_bytes(order: str) -> None:
    class Small(Tree):
        features = Features(max_write=1 << 17, max_readahead=1 << 16, max_background=7, congestion_threshold=5)

    reply = Peer(Small(), order=order, minor=31, flags=f.FUSE_ASYNC_READ | f.FUSE_MAX_PAGES).init_reply
    expected = struct.pack(
        order + "IiQ IIIIHHIIHHIIH 22x",
        80,  # len
        0,  # error
        2,  # unique
        7,  # major
        45,  # minor
        1 << 16,  # max_readahead
        f.FUSE_ASYNC_READ | f.FUSE_MAX_PAGES,
        7,  # max_background
        5,  # congestion_threshold
        1 << 17,  # max_write
        1,  # time_gran
        32,  # max_pages
        0,  # map_alignment
        0,  # flags2
        0,  # max_stack_depth
        0,  # request_timeout
    )
    assert reply.raw == expected


def test_nothing_is_served_before_init() -> None:
    peer = Peer(Tree(), init=False)
    assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == errno.EIO
    peer.tell(Opcode.FORGET, w.ForgetIn(nlookup=1))
    assert peer.fs.lookups == {}  # type: ignore[attr-defined]


def test_second_init_is_eio_and_changes_nothing() -> None:
    peer = Peer(Tree())
    connection = peer.session.connection
    assert peer.init().errno == errno.EIO
    assert peer.session.connection is connection
    assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


def test_second_init_in_the_other_order_is_not_taken_for_one() -> None:
    peer = Peer(Tree())
    peer.order = ">"
    _, raw = peer.build(Opcode.INIT, w.InitIn(major=7, minor=45), nodeid=0)
    message = peer.give(raw)
    assert message is not None
    assert Reply(message, "<").errno != 0 if len(flatten(message)) >= 16 else False
    peer.order = "<"
    assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0


def test_second_init_starts_over_where_that_is_allowed() -> None:
    class Life(Tree):
        def mounted(self, connection: Any) -> None:
            self.calls.append(("mounted", connection.order))

        def destroyed(self) -> None:
            self.calls.append(("destroyed",))

    peer = Peer(Life(), reinit=True)
    peer.order = ">"
    assert peer.init().errno == 0
    assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == 0
    assert peer.fs.calls == [("mounted", "<"), ("destroyed",), ("mounted", ">")]  # type: ignore[attr-defined]


def test_too_old_peer_is_refused_and_may_try_again() -> None:
    peer = Peer(Tree(), init=False)
    peer.minor = 26
    assert peer.init().errno == errno.EPROTO
    assert "7.26" in peer.session.refused
    peer.minor = 27
    assert peer.init().errno == 0
    assert peer.session.refused == ""


def test_newer_major_is_told_ours_and_sends_init_again() -> None:
    peer = Peer(Tree(), init=False)
    reply = peer.ask(Opcode.INIT, w.InitIn(major=8, minor=0), nodeid=0)
    assert (reply.struct(w.InitOut).major, reply.struct(w.InitOut).minor) == (7, 45)
    assert peer.session.connection is None
    assert peer.init().errno == 0


def test_mounted_that_fails_refuses_init() -> None:
    class Failing(Tree):
        def mounted(self, connection: Any) -> None:
            raise ZeroDivisionError("no")

    peer = Peer(Failing())
    assert peer.init_reply.errno == errno.EIO
    assert peer.session.connection is None
    assert peer.session.refused == "ZeroDivisionError: no"
    assert len(peer.bugs) == 1


def test_feature_that_does_not_fit_the_wire_refuses_init() -> None:
    class Huge(Tree):
        features = Features(max_background=1 << 20)

    peer = Peer(Huge())
    assert peer.init_reply.errno == errno.EIO
    assert len(peer.bugs) == 1


@pytest.mark.parametrize("cut", [40, 48, 55])
def test_short_init_is_refused(cut: int) -> None:
    peer = Peer(Tree(), init=False)
    body = w.InitIn(major=7, minor=45).encode("<")[: cut - 40]
    assert peer.ask(Opcode.INIT, body, nodeid=0).errno == errno.EINVAL


def test_filesystem_without_the_least_is_a_type_error() -> None:
    class Nothing(Filesystem):
        pass

    with pytest.raises(TypeError, match="Nothing has no getattr and no lookup"):
        Peer(Nothing())


@pytest.mark.parametrize("name", ["mounted", "destroyed", "operations"])
def test_life_of_the_connection_can_be_no_coroutine(name: str) -> None:
    async def method(self: Any, *args: Any) -> None: ...

    with pytest.raises(TypeError, match=rf"{name}\(\) can't be a coroutine"):
        Peer(type("Waiting", (Tree,), {name: method})())


# -- lengths


@pytest.mark.parametrize("size", [0, 1, 39])
def test_less_than_a_header_cannot_be_answered(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"request of {size} bytes"):
        Peer(Tree()).give(bytes(size))


def test_requests_are_read_where_they_lie() -> None:
    peer = Peer(Tree())
    _, raw = peer.build(Opcode.LOOKUP, b"hello.txt\0")
    message = peer.give(raw, before=17)
    assert message is not None
    assert Reply(message).struct(w.EntryOut).nodeid == 2


@pytest.mark.parametrize("delta", [-1, 1, 1000])
def test_header_that_lies_about_its_length_is_refused(delta: int) -> None:
    peer = Peer(Tree())
    _, raw = peer.build(Opcode.LOOKUP, b"hello.txt\0")
    message = peer.give(struct.pack("<I", len(raw) + delta) + raw[4:])
    assert message is not None
    assert Reply(message).errno == errno.EINVAL


def test_structure_that_is_cut_is_refused_by_name(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer(Tree())
    assert peer.ask(Opcode.GETATTR, bytes(15)).errno == errno.EINVAL
    assert "GETATTR of 55 bytes, at least 56 belong" in caplog.text
    assert peer.bugs == []


# -- the end


class Life(Tree):
    def destroyed(self) -> None:
        self.calls.append("destroyed")  # type: ignore[arg-type]


def test_destroy_ends_the_session_once() -> None:
    peer = Peer(Life())
    assert peer.ask(Opcode.DESTROY).errno == 0
    peer.session.end()
    assert peer.fs.calls == ["destroyed"]  # type: ignore[attr-defined]
    assert peer.session.ended


def test_nothing_is_served_after_destroy() -> None:
    peer = Peer(Life())
    peer.ask(Opcode.DESTROY)
    assert peer.ask(Opcode.GETATTR, w.GetattrIn()).errno == errno.EIO
    assert peer.ask(Opcode.DESTROY).errno == errno.EIO
    assert peer.init().errno == errno.EIO


def test_destroyed_that_fails_is_a_bug_and_destroy_is_answered() -> None:
    class Failing(Tree):
        def destroyed(self) -> None:
            raise ZeroDivisionError

    peer = Peer(Failing())
    assert peer.ask(Opcode.DESTROY).errno == 0
    assert len(peer.bugs) == 1


def test_end_before_init_tells_the_filesystem_nothing() -> None:
    peer = Peer(Life(), init=False)
    peer.session.end()
    assert peer.fs.calls == []  # type: ignore[attr-defined]


def test_end_is_told_once_even_from_many_threads() -> None:
    peer = Peer(Life())
    threads = [threading.Thread(target=peer.session.end) for _ in range(8)]
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(old)
    assert peer.fs.calls == ["destroyed"]  # type: ignore[attr-defined]


# -- resend


def test_resent_request_is_answered_under_its_marked_unique() -> None:
    peer = Peer(Tree())
    assert peer.ask(Opcode.GETATTR, w.GetattrIn(), unique=f.FUSE_UNIQUE_RESEND | 42).errno == 0


# -- several workers


def test_many_threads_use_one_session_at_a_time() -> None:
    fs = Tree()
    peer = Peer(fs)
    count, workers = 300, 4
    failures: list[object] = []

    def work(number: int) -> None:
        channel = Later()
        for turn in range(count):
            unique = (number << 32) + 2 * turn
            body = w.ReadIn(fh=number, size=4096).encode("<")
            raw = b"".join(encode_request("<", Opcode.READDIRPLUS, unique, 1, 0, 0, 0, body))
            message = peer.session.handle(raw, 0, len(raw), channel)
            if message is None or len(dirents(Reply(message).body, plus=True)) != 4:
                failures.append(message)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, workers + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert peer.session.inflight == {}


# -- one session, one filesystem, two connections


def test_two_sessions_of_one_filesystem_share_nothing() -> None:
    fs = Tree()
    little, big = Peer(fs), Peer(fs, order=">", minor=31, flags=ALL_FLAGS & ~f.FUSE_DONT_MASK)
    assert little.ask(Opcode.LOOKUP, b"hello.txt\0").struct(w.EntryOut).nodeid == 2
    assert big.ask(Opcode.LOOKUP, b"hello.txt\0").struct(w.EntryOut).nodeid == 2
    assert little.session.connection is not big.session.connection


def test_defaults_of_the_constructor_are_enough() -> None:
    class Silent:
        def register_backing(self, fd: int) -> int:
            raise OSError(errno.EPERM, "no kernel")

        def unregister_backing(self, backing_id: int) -> None: ...

        def notify(self, message: list[Any]) -> None: ...

        def groups_of(self, pid: int) -> tuple[int, ...]:
            return ()

    session = ServerSession(Tree(), Silent(), Inline())
    assert session.limits == Limits()
    assert session.connection is None
    assert DirEntry(b"x", 1).cookie == 0
