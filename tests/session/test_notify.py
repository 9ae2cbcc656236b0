"""Notifications: their bytes, what is refused before it is sent, and the books of RETRIEVE."""

from __future__ import annotations

import errno
import struct
from concurrent.futures import CancelledError
from typing import Any

import pytest

from session.peers import ALL_FLAGS, Peer, Tree
from transfuse.errors import LocalProtocolError
from transfuse.session import notify as module
from transfuse.session.notify import Notifier
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.opcodes import NOTIFICATIONS, NotifyCode, Opcode


def connected(order: str = "<", **more: Any) -> tuple[Peer, Notifier]:
    peer = Peer(Tree(), order=order, **more)
    assert peer.session.notify is not None
    return peer, peer.session.notify


def sent(peer: Peer) -> tuple[int, bytes]:
    """Code and body of the one notification."""
    (raw,) = peer.host.notified
    length, code, unique = struct.unpack_from(peer.order + "IiQ", raw)
    assert (length, unique) == (len(raw), 0)
    return code, raw[16:]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("call", "code", "body", "tail"),
    [
        (lambda n: n.poll(9), NotifyCode.POLL, w.NotifyPollWakeupOut(kh=9), b""),
        (lambda n: n.inval_inode(2), NotifyCode.INVAL_INODE, w.NotifyInvalInodeOut(ino=2), b""),
        (
            lambda n: n.inval_inode(2, -1, 5),
            NotifyCode.INVAL_INODE,
            w.NotifyInvalInodeOut(ino=2, off=-1, len=5),
            b"",
        ),
        (
            lambda n: n.inval_entry(1, b"ab"),
            NotifyCode.INVAL_ENTRY,
            w.NotifyInvalEntryOut(parent=1, namelen=2),
            b"ab\0",
        ),
        (
            lambda n: n.inval_entry(1, b"ab", expire_only=True),
            NotifyCode.INVAL_ENTRY,
            w.NotifyInvalEntryOut(parent=1, namelen=2, flags=1),
            b"ab\0",
        ),
        (
            lambda n: n.delete(1, 2, b"ab"),
            NotifyCode.DELETE,
            w.NotifyDeleteOut(parent=1, child=2, namelen=2),
            b"ab\0",
        ),
        (
            lambda n: n.store(2, 4096, b"data"),
            NotifyCode.STORE,
            w.NotifyStoreOut(nodeid=2, offset=4096, size=4),
            b"data",
        ),
        (lambda n: n.resend(), NotifyCode.RESEND, None, b""),
        (lambda n: n.inc_epoch(), NotifyCode.INC_EPOCH, None, b""),
    ],
)
def test_bytes(order: str, call: Any, code: NotifyCode, body: Any, tail: bytes) -> None:
    peer, notifier = connected(order)
    assert call(notifier) is True
    assert sent(peer) == (code, (body.encode(order) if body is not None else b"") + tail)


@pytest.mark.parametrize("order", "<>")
def test_prune_lists_nodes(order: str) -> None:
    peer, notifier = connected(order)
    notifier.prune([2, 1 << 40])
    code, body = sent(peer)
    assert code == NotifyCode.PRUNE
    assert body == struct.pack(order + "IIQQQ", 2, 0, 0, 2, 1 << 40)


def test_what_the_peer_does_not_know_is_false() -> None:
    peer, notifier = connected()
    peer.host.notify_error = FileNotFoundError(errno.ENOENT, "no such node")
    assert notifier.inval_inode(2) is False


def test_other_failures_are_raised() -> None:
    peer, notifier = connected()
    peer.host.notify_error = OSError(errno.ENOTEMPTY, "not empty")
    with pytest.raises(OSError, match="not empty"):
        notifier.delete(1, 3, b"sub")


@pytest.mark.parametrize(
    ("call", "since"),
    [
        (lambda n: n.delete(1, 2, b"x"), 18),
        (lambda n: n.inc_epoch(), 44),
        (lambda n: n.prune([2]), 45),
    ],
)
def test_what_an_older_peer_does_not_have_is_refused(call: Any, since: int) -> None:
    if since > 27:
        peer, notifier = connected(minor=since - 1)
        with pytest.raises(LocalProtocolError, match=rf"needs 7\.{since}"):
            call(notifier)
        assert peer.host.notified == []
    peer, notifier = connected(minor=max(since, 27))
    assert call(notifier) is True


def test_minors_of_notifications() -> None:
    assert {code: row.since for code, row in NOTIFICATIONS.items()} == {
        1: 11,
        2: 12,
        3: 12,
        4: 15,
        5: 15,
        6: 18,
        7: 40,
        8: 44,
        9: 45,
    }


@pytest.mark.parametrize(
    ("call", "bit"),
    [
        (lambda n: n.resend(), f.FUSE_HAS_RESEND),
        (lambda n: n.inval_entry(1, b"x", expire_only=True), f.FUSE_HAS_EXPIRE_ONLY),
    ],
)
def test_what_was_not_negotiated_is_refused(call: Any, bit: int) -> None:
    peer, notifier = connected(flags=ALL_FLAGS & ~bit)
    with pytest.raises(LocalProtocolError):
        call(notifier)
    assert peer.host.notified == []


def test_more_to_store_than_a_message_holds_is_refused() -> None:
    peer, notifier = connected()
    with pytest.raises(LocalProtocolError, match="1048577 bytes to store"):
        notifier.store(2, 0, bytes((1 << 20) + 1))
    assert peer.host.notified == []


def test_more_nodes_to_prune_than_the_limit_are_refused() -> None:
    with pytest.raises(LocalProtocolError, match="nodes to prune"):
        connected()[1].prune(range(module.MAX_PRUNE + 1))


# -- retrieve


def answer(peer: Peer, unique: int, data: bytes, offset: int = 0, size: int | None = None) -> None:
    body = w.NotifyRetrieveIn(offset=offset, size=len(data) if size is None else size)
    peer.tell(Opcode.NOTIFY_REPLY, body, data, unique=unique, nodeid=2)


@pytest.mark.parametrize("order", "<>")
def test_retrieve_and_its_answer(order: str) -> None:
    peer, notifier = connected(order)
    future = notifier.retrieve(2, 4096, 100)
    code, body = sent(peer)
    out = w.NotifyRetrieveOut.decode(body, 0, order)
    assert code == NotifyCode.RETRIEVE
    assert (out.nodeid, out.offset, out.size) == (2, 4096, 100)
    answer(peer, out.notify_unique, b"cached", 4096)
    assert future.result(0) == b"cached"
    assert notifier._retrieves == {}


def test_two_retrieves_are_told_apart() -> None:
    peer, notifier = connected()
    first, second = notifier.retrieve(2, 0, 1), notifier.retrieve(2, 0, 1)
    uniques = [w.NotifyRetrieveOut.decode(raw, 16).notify_unique for raw in peer.host.notified]
    answer(peer, uniques[1], b"2")
    assert second.result(0) == b"2"
    assert not first.done()


def test_retrieves_are_numbered_apart_from_the_requests_of_the_peer() -> None:
    """Over io_uring both are in one table of the kernel's; odd numbers are INTERRUPTs there."""
    peer, notifier = connected()
    for _ in range(3):
        notifier.retrieve(2, 0, 1)
    uniques = [w.NotifyRetrieveOut.decode(raw, 16).notify_unique for raw in peer.host.notified]
    assert len(set(uniques)) == 3
    assert all(unique % 2 == 0 and unique >= 1 << 62 for unique in uniques)


def test_retrieve_of_an_unknown_node_is_enoent() -> None:
    peer, notifier = connected()
    peer.host.notify_error = FileNotFoundError(errno.ENOENT, "no such node")
    with pytest.raises(FileNotFoundError):
        notifier.retrieve(99, 0, 1)
    assert notifier._retrieves == {}


def test_retrieve_of_an_impossible_size_leaves_nothing_behind() -> None:
    _, notifier = connected()
    with pytest.raises(struct.error):
        notifier.retrieve(2, 0, 1 << 40)
    assert notifier._retrieves == {}


def test_answer_that_nobody_asked_for_is_dropped() -> None:
    peer, _ = connected()
    answer(peer, 77, b"data")
    assert peer.bugs == []


def test_answer_shorter_than_it_says_is_dropped() -> None:
    peer, notifier = connected()
    future = notifier.retrieve(2, 0, 10)
    answer(peer, 1, b"data", size=10)
    assert not future.done()


def test_answer_to_a_cancelled_retrieve_is_dropped() -> None:
    peer, notifier = connected()
    future = notifier.retrieve(2, 0, 10)
    future.cancel()
    answer(peer, 1, b"data")
    with pytest.raises(CancelledError):
        future.result(0)


def test_retrieves_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RETRIEVES", 3)
    _, notifier = connected()
    for _ in range(3):
        notifier.retrieve(2, 0, 1)
    with pytest.raises(OSError, match="3 retrieves") as caught:
        notifier.retrieve(2, 0, 1)
    assert caught.value.errno == errno.EAGAIN


def test_end_of_the_connection_fails_what_waits() -> None:
    peer, notifier = connected()
    future, cancelled = notifier.retrieve(2, 0, 10), notifier.retrieve(2, 0, 10)
    cancelled.cancel()
    peer.session.end()
    with pytest.raises(ConnectionAbortedError):
        future.result(0)
