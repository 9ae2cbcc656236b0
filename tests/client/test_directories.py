"""Listings, with and without attributes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

import transfuse.client.directories as directories
from transfuse.client import Client
from transfuse.errors import RemoteProtocolError
from transfuse.fs.values import Attr
from transfuse.session.client import DEFAULT_FLAGS
from transfuse.testing import ScriptedPeer
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode


def test_listings_over_every_wire(fs_client: Client) -> None:
    names = [f"file-{number:04}" for number in range(1500)]
    fs_client.mkdir("/d")
    for name in names:
        fs_client.mknod(f"/d/{name}", 0o600)
    fs_client.mkdir("/d/sub")
    fs_client.drop_caches()
    assert sorted(fs_client.listdir("/d")) == [*names, "sub"]
    with fs_client.scandir("/d") as entries:
        found = {entry.name: entry for entry in entries}
    assert sorted(found) == [*names, "sub"]
    assert found["sub"].is_dir() and not found["sub"].is_file()
    assert found[names[0]].is_file() and found[names[0]].path == "/d/" + names[0]
    assert found[names[0]].stat().st_ino == found[names[0]].inode() == fs_client.stat("/d/" + names[0]).st_ino


def test_bytes_in_bytes_out(mem: Client) -> None:
    mem.mkdir("/d")
    (entry,) = mem.scandir(b"/")
    assert entry.path == b"/d" and mem.listdir(b"/") == [b"d"]


def test_links_are_followed_when_asked(mem: Client) -> None:
    mem.mkdir("/d")
    mem.symlink("d", "/l")
    mem.symlink("nowhere", "/dangling")
    with mem.scandir("/") as found:
        entries = {entry.name: entry for entry in found}
    assert entries["l"].is_symlink() and entries["l"].is_dir() and not entries["l"].is_dir(follow_symlinks=False)
    assert not entries["dangling"].is_dir() and entries["dangling"].is_symlink()
    assert entries["l"].stat().st_mode & 0o170000 == 0o040000


def test_a_file_has_no_names(mem: Client) -> None:
    mem.write_bytes("/f", b"")
    with pytest.raises(NotADirectoryError):
        mem.listdir("/f")
    with pytest.raises(FileNotFoundError):
        mem.scandir("/nope")


def test_walk_as_os_walk(mem: Client) -> None:
    mem.makedirs("/a/b")
    mem.write_bytes("/a/f", b"")
    mem.symlink("/a", "/a/b/up")
    assert list(mem.walk("/a")) == [("/a", ["b"], ["f"]), ("/a/b", ["up"], [])]
    assert list(mem.walk("/a", topdown=False)) == [("/a/b", ["up"], []), ("/a", ["b"], ["f"])]
    for _, inside, _ in mem.walk("/"):
        inside.clear()  # nothing below is wanted


def test_walk_of_an_endless_tree_ends(mem: Client) -> None:
    mem.mkdir("/a")
    mem.symlink(".", "/a/again")
    errors: list[OSError] = []
    seen = sum(1 for _ in mem.walk("/", onerror=errors.append, followlinks=True))
    assert 40 <= seen < 100 and not errors


def test_a_directory_that_can_not_be_listed_is_handed_to_onerror(mem: Client) -> None:
    errors: list[OSError] = []
    assert list(mem.walk("/nope", onerror=errors.append)) == []
    assert [error.errno for error in errors] == [errno.ENOENT]


# -- against a script -------------------------------------------------------------------------------------------------


@pytest.fixture
def plus(clock: Any) -> Iterator[tuple[ScriptedPeer, Client]]:
    with ScriptedPeer(flags=DEFAULT_FLAGS) as peer, Client(peer, clock=clock) as client:
        yield peer, client


def released(peer: ScriptedPeer) -> None:
    peer.expect(Opcode.RELEASEDIR, fh=3).reply()


def test_a_plain_listing_goes_on_where_the_last_name_said(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.OPENDIR, nodeid=1).reply_open(3)
    peer.expect(Opcode.READDIR, fh=3, offset=0).reply_dirents((b".", 1, 1, 4), (b"a", 2, 77, 8))
    peer.expect(Opcode.READDIR, fh=3, offset=77).reply_dirents((b"b", 3, 5, 8))
    peer.expect(Opcode.READDIR, fh=3, offset=5).reply_dirents()
    released(peer)
    assert client.listdir("/") == ["a", "b"]


def test_entries_of_readdirplus_are_lookups(plus: Any) -> None:
    peer, client = plus
    peer.expect(Opcode.OPENDIR).reply_open(3)
    entry = peer.entry(Attr.file(5, size=9), entry_timeout_s=60, attr_timeout_s=60)
    peer.expect(Opcode.READDIRPLUS, offset=0).reply_direntplus((b".", bytes(128), 1), (b"a", entry, 2))
    peer.expect(Opcode.READDIR, offset=2).reply_dirents()
    released(peer)
    assert client.listdir("/") == ["a"]
    assert client.stat("/a").st_size == 9
    client.drop_caches()
    assert peer.forgotten == {5: 1}


def test_readdirplus_is_used_again_after_a_lookup_hit_an_entry_of_it(plus: Any) -> None:
    peer, client = plus
    peer.expect(Opcode.OPENDIR).reply_open(3)
    entry = peer.entry(Attr.file(5), entry_timeout_s=60, attr_timeout_s=60)
    peer.expect(Opcode.READDIRPLUS, offset=0).reply_direntplus((b"a", entry, 1))
    peer.expect(Opcode.READDIRPLUS, offset=1).reply_direntplus((b"b", entry, 2))
    peer.expect(Opcode.READDIR, offset=2).reply_dirents()
    released(peer)
    entries = client.scandir("/")
    next(entries)
    client.lookup(client.cache.root, b"a")
    assert [one.name for one in entries] == ["b"]


def test_without_auto_every_reading_has_attributes() -> None:
    flags = DEFAULT_FLAGS & ~f.FUSE_READDIRPLUS_AUTO
    with ScriptedPeer(flags=flags) as peer, Client(peer) as client:
        peer.expect(Opcode.OPENDIR).reply_open(3)
        peer.expect(Opcode.READDIRPLUS, offset=0).reply_direntplus((b"a", bytes(128), 1))
        peer.expect(Opcode.READDIRPLUS, offset=1).reply_direntplus()
        released(peer)
        assert client.listdir("/") == ["a"]


def test_an_entry_of_dot_is_given_back_at_once(plus: Any) -> None:
    peer, client = plus
    peer.expect(Opcode.OPENDIR).reply_open(3)
    peer.expect(Opcode.READDIRPLUS, offset=0).reply_direntplus((b"..", peer.entry(Attr.directory(9)), 1))
    peer.expect(Opcode.READDIR, offset=1).reply_dirents()
    released(peer)
    assert client.listdir("/") == []
    client.exchange.flush_forgets()
    assert peer.forgotten == {9: 1}


def test_a_wrong_record_is_refused_after_the_right_ones_were_taken(plus: Any) -> None:
    peer, client = plus
    entry = peer.entry(Attr.file(5), entry_timeout_s=60)
    peer.expect(Opcode.OPENDIR).reply_open(3)
    peer.expect(Opcode.READDIRPLUS).reply_direntplus((b"a", entry, 1), (b"x/y", entry, 2))
    released(peer)
    with pytest.raises(RemoteProtocolError, match="is not a name"):
        client.listdir("/")
    client.drop_caches()
    assert peer.forgotten == {5: 1}


def test_an_endless_listing_is_cut_off(peer: ScriptedPeer, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "MAX_ENTRIES", 5)
    peer.expect(Opcode.OPENDIR).reply_open(3)
    for position in range(6):
        peer.expect(Opcode.READDIR).reply_dirents((b"again", 2, position + 1, 8))
    released(peer)
    with pytest.raises(OSError) as caught:
        client.listdir("/")
    assert caught.value.errno == errno.EOVERFLOW


def test_a_listing_that_goes_round_is_eio(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.OPENDIR).reply_open(3)
    for offset in (0, 1):
        peer.expect(Opcode.READDIR, offset=offset).reply_dirents((b"again", 2, 1, 8))
    released(peer)
    with pytest.raises(OSError, match="position 1 came twice"):
        client.listdir("/")


def test_opendir_by_enosys_needs_no_requests_from_then_on(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.OPENDIR).reply_error(errno.ENOSYS)
    for _ in range(2):
        peer.expect(Opcode.READDIR, fh=0).reply_dirents()
        assert client.listdir("/") == []


def test_a_listing_left_early_is_released(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.OPENDIR).reply_open(3)
    peer.expect(Opcode.READDIR).reply_dirents((b"a", 2, 1, 8), (b"b", 2, 2, 8))
    with client.scandir("/") as entries:
        next(entries)
        released(peer)


def test_a_listing_dropped_without_close_is_released_with_the_next_request(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.OPENDIR).reply_open(3)
    entries = client.scandir("/")
    del entries
    released(peer)
    peer.expect(Opcode.LOOKUP).reply_error(errno.ENOENT)
    assert not client.exists("/x")


def test_a_directory_that_could_not_be_opened_is_not_released(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.OPENDIR).reply_error(errno.EACCES)
    with pytest.raises(PermissionError):
        client.listdir("/")
    peer.expect(Opcode.STATFS).reply(w.StatfsOut())
    client.statvfs("/")  # with it the release of what nobody closed would go out
