"""The scripted server itself."""

from __future__ import annotations

import errno

import pytest

from transfuse.client import Client
from transfuse.fs.values import Attr
from transfuse.testing import ScriptedPeer
from transfuse.wire.layout import ByteOrder
from transfuse.wire.opcodes import Opcode


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_was_scripted_is_answered(order: ByteOrder) -> None:
    with ScriptedPeer(order=order) as peer, Client(peer, order=order) as client:
        peer.expect(Opcode.LOOKUP, nodeid=1, name=b"a").reply_entry(Attr.file(5, size=7), attr_timeout_s=1)
        assert client.stat("/a").st_size == 7


def test_the_negative_answer_of_the_documentation() -> None:
    peer = ScriptedPeer()
    peer.expect(Opcode.LOOKUP, name=b"a").reply_error(errno.ENOENT, entry_timeout_s=5)
    with Client(peer, clock=lambda: 0.0) as client:
        for _ in range(2):
            assert not client.exists("/a")
    peer.assert_exhausted()


def test_what_was_never_asked_is_reported() -> None:
    peer = ScriptedPeer()
    peer.expect(Opcode.LOOKUP, name=b"a").reply()
    with pytest.raises(AssertionError, match="LOOKUP .* was never asked"):
        peer.assert_exhausted()


def test_what_was_not_expected_fails_and_is_reported() -> None:
    peer = ScriptedPeer()
    with Client(peer) as client, pytest.raises(OSError):
        client.statvfs()
    with pytest.raises(AssertionError, match="STATFS"):
        peer.assert_exhausted()


def test_another_request_than_the_expected_is_reported() -> None:
    peer = ScriptedPeer()
    peer.expect(Opcode.LOOKUP, name=b"a").reply()
    with Client(peer) as client, pytest.raises(OSError):
        client.statvfs()
    with pytest.raises(AssertionError, match="came where LOOKUP was expected"):
        peer.assert_exhausted()


def test_another_field_than_the_expected_is_reported() -> None:
    peer = ScriptedPeer()
    peer.expect(Opcode.LOOKUP, name=b"a").reply()
    with Client(peer) as client, pytest.raises(OSError):
        client.stat("/b")
    with pytest.raises(AssertionError, match="name is b'b' where b'a' was expected"):
        peer.assert_exhausted()


def test_only_enoent_can_be_remembered() -> None:
    with pytest.raises(ValueError):
        ScriptedPeer().expect(Opcode.LOOKUP).reply_error(errno.EIO, entry_timeout_s=1)
