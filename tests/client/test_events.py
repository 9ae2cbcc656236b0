"""Notifications and what they do to what is believed."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from transfuse.client import Client
from transfuse.fs.values import Attr
from transfuse.testing import ScriptedPeer
from transfuse.wire import structs as w
from transfuse.wire.opcodes import NotifyCode, Opcode

FOREVER: dict[str, Any] = {"entry_timeout_s": 1e6, "attr_timeout_s": 1e6}


@pytest.fixture
def known(peer: ScriptedPeer, client: Client) -> ScriptedPeer:
    """A server whose file "a" (node 5) the client believes in for ever, and the root's attributes as well."""
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5), **FOREVER)
    peer.expect(Opcode.GETATTR, nodeid=1).reply_attr(Attr.directory(1), attr_timeout_s=1e6)
    client.stat("/a")
    client.stat("/")
    return peer


def refused(peer: ScriptedPeer, code: NotifyCode, *rest: Any) -> int | None:
    with pytest.raises(OSError) as caught:
        peer.notify(code, *rest)
    return caught.value.errno


def test_inval_inode_makes_attributes_stale(known: ScriptedPeer, client: Client) -> None:
    known.notify(NotifyCode.INVAL_INODE, w.NotifyInvalInodeOut(ino=5))
    known.expect(Opcode.GETATTR, nodeid=5).reply_attr(Attr.file(5, size=9))
    assert client.stat("/a").st_size == 9


def test_inval_inode_of_an_unknown_node_is_enoent(known: ScriptedPeer) -> None:
    assert refused(known, NotifyCode.INVAL_INODE, w.NotifyInvalInodeOut(ino=99)) == errno.ENOENT


def test_inval_entry_drops_the_name_and_gives_its_lookup_back(known: ScriptedPeer, client: Client) -> None:
    known.notify(NotifyCode.INVAL_ENTRY, w.NotifyInvalEntryOut(parent=1, namelen=1), b"a\0")
    client.exchange.flush_forgets()
    assert known.forgotten == {5: 1}


def test_inval_entry_makes_the_parents_attributes_stale(known: ScriptedPeer, client: Client) -> None:
    known.notify(NotifyCode.INVAL_ENTRY, w.NotifyInvalEntryOut(parent=1, namelen=1), b"a\0")
    known.expect(Opcode.GETATTR, nodeid=1).reply_attr(Attr.directory(1))
    client.stat("/")


def test_expire_only_keeps_the_node_and_asks_again(known: ScriptedPeer, client: Client) -> None:
    known.notify(NotifyCode.INVAL_ENTRY, w.NotifyInvalEntryOut(parent=1, namelen=1, flags=1), b"a\0")
    client.exchange.flush_forgets()
    assert known.forgotten == {}
    known.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5), **FOREVER)
    client.stat("/a")


def test_inval_entry_of_an_unknown_name_or_parent_is_enoent(known: ScriptedPeer) -> None:
    body = w.NotifyInvalEntryOut(parent=1, namelen=1)
    assert refused(known, NotifyCode.INVAL_ENTRY, body, b"b\0") == errno.ENOENT
    body = w.NotifyInvalEntryOut(parent=77, namelen=1)
    assert refused(known, NotifyCode.INVAL_ENTRY, body, b"a\0") == errno.ENOENT


def test_delete_drops_the_name_of_that_child_only(known: ScriptedPeer, client: Client) -> None:
    body = w.NotifyDeleteOut(parent=1, child=6, namelen=1)
    assert refused(known, NotifyCode.DELETE, body, b"a\0") == errno.ENOENT
    known.notify(NotifyCode.DELETE, w.NotifyDeleteOut(parent=1, child=5, namelen=1), b"a\0")
    known.expect(Opcode.LOOKUP, name=b"a").reply_error(errno.ENOENT)
    assert not client.exists("/a")


def test_delete_of_a_directory_with_known_names_is_enotempty(known: ScriptedPeer, client: Client) -> None:
    known.expect(Opcode.LOOKUP, name=b"d").reply_entry(Attr.directory(8), **FOREVER)
    known.expect(Opcode.LOOKUP, nodeid=8, name=b"x").reply_entry(Attr.file(9), **FOREVER)
    client.stat("/d/x")
    body = w.NotifyDeleteOut(parent=1, child=8, namelen=1)
    assert refused(known, NotifyCode.DELETE, body, b"d\0") == errno.ENOTEMPTY


def test_inc_epoch_ends_every_name(known: ScriptedPeer, client: Client) -> None:
    known.notify(NotifyCode.INC_EPOCH)
    known.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5), **FOREVER)
    client.stat("/a")


def test_prune_drops_names_of_unused_nodes(known: ScriptedPeer, client: Client) -> None:
    known.notify(NotifyCode.PRUNE, w.NotifyPruneOut(count=2), (5).to_bytes(8, "little") + (99).to_bytes(8, "little"))
    client.exchange.flush_forgets()
    assert known.forgotten == {5: 1}


def test_store_makes_attributes_stale(known: ScriptedPeer, client: Client) -> None:
    known.notify(NotifyCode.STORE, w.NotifyStoreOut(nodeid=5, offset=0, size=3), b"abc")
    known.expect(Opcode.GETATTR, nodeid=5).reply_attr(Attr.file(5, size=3))
    assert client.stat("/a").st_size == 3


def test_retrieve_is_answered_with_nothing(known: ScriptedPeer) -> None:
    known.expect(Opcode.NOTIFY_REPLY, nodeid=5, unique=123, offset=4096, size=0, payload=b"").no_reply()
    body = w.NotifyRetrieveOut(notify_unique=123, nodeid=5, offset=4096, size=100)
    known.notify(NotifyCode.RETRIEVE, body)


def test_resend_repeats_the_requests_without_an_answer(known: ScriptedPeer, client: Client) -> None:
    def ask_again(scripted: ScriptedPeer, asked: Any) -> None:
        scripted.notify(NotifyCode.RESEND)

    known.expect(Opcode.STATFS).then(ask_again)
    known.expect(Opcode.STATFS).reply(w.StatfsOut(st=w.Kstatfs(bsize=512)))
    assert client.statvfs().f_bsize == 512
    first, second = (asked.unique for asked in known.asked if asked.opcode == Opcode.STATFS)
    assert second == first | 1 << 63


def test_a_malformed_notification_is_einval_and_the_connection_lives(known: ScriptedPeer, client: Client) -> None:
    assert refused(known, NotifyCode.INVAL_INODE) == errno.EINVAL
    assert not client.closed


def test_poll_wakeups_are_taken_note_of(known: ScriptedPeer) -> None:
    known.notify(NotifyCode.POLL, w.NotifyPollWakeupOut(kh=1))
