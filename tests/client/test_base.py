"""Looking up and attributes below the paths."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from transfuse.client import Client
from transfuse.client.base import new_owner
from transfuse.fs.values import Attr
from transfuse.session.client import DEFAULT_FLAGS
from transfuse.testing import ScriptedPeer
from transfuse.wire import flags as f
from transfuse.wire.opcodes import Opcode


def test_link_targets_are_remembered_with_cache_symlinks(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"l").reply_entry(Attr.symlink(5, 6), entry_timeout_s=60, attr_timeout_s=60)
    peer.expect(Opcode.READLINK, nodeid=5).reply(b"target")
    for _ in range(2):
        assert client.readlink("/l") == "target"


def test_a_link_whose_attributes_changed_is_read_again(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"l").reply_entry(Attr.symlink(5, 6), entry_timeout_s=60)
    peer.expect(Opcode.READLINK, nodeid=5).reply(b"target")
    client.readlink("/l")
    peer.expect(Opcode.GETATTR, nodeid=5).reply_attr(Attr.symlink(5, 3))
    client.lstat("/l")
    peer.expect(Opcode.READLINK, nodeid=5).reply(b"new")
    assert client.readlink("/l") == "new"


def test_link_targets_are_read_each_time_without_cache_symlinks() -> None:
    flags = DEFAULT_FLAGS & ~(f.FUSE_CACHE_SYMLINKS | f.FUSE_DO_READDIRPLUS)
    with ScriptedPeer(flags=flags) as peer, Client(peer) as client:
        peer.expect(Opcode.LOOKUP, name=b"l").reply_entry(Attr.symlink(5, 6), entry_timeout_s=60)
        for target in (b"one", b"two"):
            peer.expect(Opcode.READLINK, nodeid=5).reply(target)
            assert client.readlink("/l") == target.decode()


def test_names_are_limited_by_what_was_agreed() -> None:
    with ScriptedPeer(max_pages=1) as peer, Client(peer) as client:
        assert client.name_max == 1024
    with ScriptedPeer(max_pages=2) as peer, Client(peer) as client:
        assert client.name_max == 4095


def test_getattr_of_an_open_file_carries_its_fh(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5))
    peer.expect(Opcode.OPEN).reply_open(7)
    file = client.open_file("/a")
    peer.expect(Opcode.GETATTR, nodeid=5, getattr_flags=1, fh=7).reply_attr(Attr.file(5), attr_timeout_s=60)
    file.fstat()
    peer.expect(Opcode.FLUSH).reply_error(errno.ENOSYS)
    peer.expect(Opcode.RELEASE).reply()
    file.close()


def test_an_error_of_lookup_is_raised_with_the_name(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_error(errno.EACCES)
    with pytest.raises(PermissionError) as caught:
        client.stat("/a")
    assert caught.value.filename == b"a"


def test_lock_owners_are_never_the_same() -> None:
    owners: list[Any] = [new_owner() for _ in range(1000)]
    assert len(set(owners)) == 1000 and 0 not in owners and max(owners) < 1 << 64
