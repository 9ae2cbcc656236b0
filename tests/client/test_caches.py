"""What is believed and for how long, seen in the requests that a scripted server gets; and the cache by itself."""

from __future__ import annotations

import errno
import gc
from typing import Any

import pytest

from transfuse.client import Client
from transfuse.client.caches import Cache
from transfuse.errors import RemoteProtocolError
from transfuse.fs.values import Attr
from transfuse.testing import ScriptedPeer
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode

FILE = Attr.file(5, size=3)


def entry(nodeid: int, mode: int = 0o100644, generation: int = 0, size: int = 0) -> tuple[Any, ...]:
    attr = w.Attr(ino=nodeid, mode=mode, size=size)
    return w.EntryOut(nodeid=nodeid, generation=generation, entry_valid=1, attr_valid=1, attr=attr).values()


@pytest.fixture
def cache(clock: Any) -> Cache:
    return Cache(clock, max_names=3)


# -- timeouts ---------------------------------------------------------------------------------------------------------


def test_names_and_attributes_are_believed_for_their_timeouts(peer: ScriptedPeer, client: Client, clock: Any) -> None:
    peer.expect(Opcode.LOOKUP, nodeid=1, name=b"a").reply_entry(FILE, entry_timeout_s=10, attr_timeout_s=5)
    assert client.stat("/a").st_size == 3
    clock.advance(4.99)
    assert client.stat("/a").st_size == 3
    clock.advance(0.02)
    peer.expect(Opcode.GETATTR, nodeid=5).reply_attr(Attr.file(5, size=4), attr_timeout_s=100)
    assert client.stat("/a").st_size == 4
    clock.advance(5)
    peer.expect(Opcode.LOOKUP, nodeid=1, name=b"a").reply_entry(FILE, entry_timeout_s=10, attr_timeout_s=5)
    assert client.stat("/a").st_size == 3


def test_a_name_with_timeout_0_is_looked_up_each_time(peer: ScriptedPeer, client: Client) -> None:
    for _ in range(2):
        peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(FILE, entry_timeout_s=0, attr_timeout_s=5)
        client.stat("/a")


def test_attributes_with_timeout_0_are_asked_for_after_the_lookup(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(FILE, entry_timeout_s=9)
    peer.expect(Opcode.GETATTR, nodeid=5, getattr_flags=0, fh=0).reply_attr(FILE)
    client.stat("/a")
    peer.expect(Opcode.GETATTR, nodeid=5).reply_attr(FILE)
    client.stat("/a")


def test_enoent_is_not_remembered(peer: ScriptedPeer, client: Client) -> None:
    for _ in range(2):
        peer.expect(Opcode.LOOKUP, name=b"a").reply_error(errno.ENOENT)
        assert not client.exists("/a")


def test_a_negative_entry_is_remembered_for_its_timeout(peer: ScriptedPeer, client: Client, clock: Any) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_error(errno.ENOENT, entry_timeout_s=5)
    for _ in range(3):
        assert not client.exists("/a")
    clock.advance(5)
    peer.expect(Opcode.LOOKUP, name=b"a").reply_error(errno.ENOENT)
    assert not client.exists("/a")


def test_a_name_that_is_gone_at_revalidation_is_gone(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(FILE)
    client.nodeid("/a")
    peer.expect(Opcode.LOOKUP, name=b"a").reply_error(errno.ENOENT)
    assert not client.exists("/a")
    client.exchange.flush_forgets()
    assert peer.forgotten == {5: 1}


def test_eintr_at_revalidation_reaches_the_caller_and_keeps_the_node(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(FILE)
    client.nodeid("/a")
    peer.expect(Opcode.LOOKUP, name=b"a").reply_error(errno.EINTR)
    with pytest.raises(InterruptedError):
        client.nodeid("/a")
    assert client.cache.node(5) is not None


def test_an_answer_that_was_overtaken_by_a_change_is_not_believed(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(FILE, entry_timeout_s=100, attr_timeout_s=0)
    node_id = client.nodeid("/a")
    node = client.cache.node(node_id)
    assert node is not None

    def change_meanwhile(scripted: ScriptedPeer, asked: Any) -> None:
        client.cache.invalidate_attr(node)
        body = w.AttrOut(attr_valid=100, attr=w.Attr(ino=5, mode=0o100644, size=99))
        scripted.answer(asked, body.encode(scripted.order))

    peer.expect(Opcode.GETATTR, nodeid=5).then(change_meanwhile)
    client.attributes(node)
    assert not client.cache.attr_is_valid(node)


# -- lookups ----------------------------------------------------------------------------------------------------------


def test_each_lookup_is_given_back_once_the_name_is_dropped(peer: ScriptedPeer, client: Client) -> None:
    for _ in range(3):
        peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(FILE)
        client.nodeid("/a")
    client.drop_caches()
    assert peer.forgotten == {5: 3}


def test_a_name_that_became_another_file_gives_the_old_one_back(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(FILE)
    client.nodeid("/a")
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(6))
    client.nodeid("/a")
    client.exchange.flush_forgets()
    assert peer.forgotten == {5: 1}


def test_an_open_file_keeps_its_node(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(FILE)
    peer.expect(Opcode.OPEN, nodeid=5).reply_open()
    file = client.open_file("/a")
    client.drop_caches()
    assert peer.forgotten == {}
    peer.expect(Opcode.FLUSH, nodeid=5).reply()
    peer.expect(Opcode.RELEASE, nodeid=5).reply()
    file.close()
    del file
    client.exchange.flush_forgets()
    assert peer.forgotten == {5: 1}


def test_an_entry_that_can_not_be_is_refused_and_given_back(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr(7, 0o644))
    with pytest.raises(RemoteProtocolError, match="no known file type"):
        client.stat("/a")
    client.exchange.flush_forgets()
    assert peer.forgotten == {7: 1}


def test_an_entry_that_is_the_root_is_refused(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.directory(1))
    with pytest.raises(RemoteProtocolError, match="entry_out.nodeid at offset 16: 1"):
        client.stat("/a")


def test_a_file_made_as_another_type_is_refused(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"d").reply_error(errno.ENOENT)
    peer.expect(Opcode.MKDIR, name=b"d").reply_entry(Attr.file(9))
    with pytest.raises(RemoteProtocolError, match="where type 0o40000 was made"):
        client.mkdir("/d")


# -- the cache by itself ----------------------------------------------------------------------------------------------


def test_names_are_bounded_and_the_longest_unused_goes_first(cache: Cache) -> None:
    for nodeid, name in ((2, b"a"), (3, b"b"), (4, b"c")):
        cache.remember(cache.root, name, cache.instantiate(entry(nodeid), 0), 100, 0)
    assert cache.find(cache.root, b"a") is not None
    cache.remember(cache.root, b"d", cache.instantiate(entry(5), 0), 100, 0)
    assert sorted(cache.root.names) == [b"a", b"c", b"d"]
    assert len(cache) == 3 and list(cache.forgets) == [(3, 1)]


def test_a_number_reused_with_another_generation_is_another_node(cache: Cache) -> None:
    old = cache.instantiate(entry(2, generation=1), 0)
    new = cache.instantiate(entry(2, generation=2), 0)
    assert new is not old and cache.node(2) is new
    del old
    assert list(cache.forgets) == [(2, 1)]


def test_a_number_reused_for_another_type_is_another_node(cache: Cache) -> None:
    old = cache.instantiate(entry(2), 0)
    assert cache.instantiate(entry(2, mode=0o40755), 0) is not old


def test_a_cached_name_keeps_its_directory_alive(cache: Cache) -> None:
    directory = cache.instantiate(entry(2, mode=0o40755), 0)
    cache.remember(directory, b"f", cache.instantiate(entry(3), 0), 100, 0)
    del directory
    gc.collect()
    assert cache.node(2) is not None
    cache.clear()
    gc.collect()
    assert cache.node(2) is None and sorted(cache.forgets) == [(2, 1), (3, 1)]


def test_a_new_epoch_ends_every_name(cache: Cache) -> None:
    cache.remember(cache.root, b"a", cache.instantiate(entry(2), 0), 100, 0)
    cache.epoch += 1
    assert cache.find(cache.root, b"a") is None


def test_surrender_gives_back_what_is_still_held(cache: Cache) -> None:
    held = cache.instantiate(entry(2), 0)
    cache.instantiate(entry(2), 0)
    cache.surrender()
    assert list(cache.forgets) == [(2, 2)]
    del held
    assert list(cache.forgets) == [(2, 2)]


def test_nanoseconds_beyond_a_second_count_as_one_less(cache: Cache, clock: Any) -> None:
    cache.remember(cache.root, b"a", None, 0, 0xFFFFFFFF)
    clock.advance(1)
    assert cache.find(cache.root, b"a") is None
