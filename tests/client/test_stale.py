"""ESTALE on the way to a file: every name is asked for again, once, and the second answer counts."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from transfuse.client import Client
from transfuse.filesystems.hostdir import HostDirectory
from transfuse.fs.values import Attr
from transfuse.testing import ScriptedPeer, connect
from transfuse.testing.scripted import Asked
from transfuse.wire.opcodes import Opcode

LONG = {"entry_timeout_s": 1000, "attr_timeout_s": 0}


def names(peer: ScriptedPeer) -> list[tuple[str, bytes]]:
    return [(Opcode(asked.opcode).name, b"/".join(asked.names)) for asked in peer.asked]


def know(peer: ScriptedPeer, client: Client) -> None:
    """Have /d (2) and /d/f (3) remembered."""
    peer.expect(Opcode.LOOKUP, name=b"d").reply_entry(Attr.directory(2), **LONG)
    peer.expect(Opcode.LOOKUP, nodeid=2, name=b"f").reply_entry(Attr.file(3, 5), **LONG)
    assert client.exists("/d/f")
    peer.asked.clear()


def ways(peer: ScriptedPeer, node: int = 4) -> None:
    """The two names are asked for again; "f" is another file now."""
    peer.expect(Opcode.LOOKUP, nodeid=1, name=b"d").reply_entry(Attr.directory(2), **LONG)
    peer.expect(Opcode.LOOKUP, nodeid=2, name=b"f").reply_entry(Attr.file(node, 7), **LONG)


def test_a_file_replaced_behind_the_server_is_found_again(peer: ScriptedPeer, client: Client) -> None:
    know(peer, client)
    peer.expect(Opcode.GETATTR, nodeid=3).reply_error(errno.ESTALE)
    ways(peer)
    peer.expect(Opcode.GETATTR, nodeid=4).reply_attr(Attr.file(4, 7))
    st = client.stat("/d/f")
    assert (st.st_ino, st.st_size) == (4, 7)


def test_names_are_believed_again_afterwards(peer: ScriptedPeer, client: Client) -> None:
    know(peer, client)
    peer.expect(Opcode.GETATTR, nodeid=3).reply_error(errno.ESTALE)
    ways(peer)
    peer.expect(Opcode.GETATTR, nodeid=4).reply_attr(Attr.file(4, 7))
    client.stat("/d/f")
    peer.expect(Opcode.GETATTR, nodeid=4).reply_attr(Attr.file(4, 7))
    client.stat("/d/f")


def test_the_second_estale_is_the_answer(peer: ScriptedPeer, client: Client) -> None:
    know(peer, client)
    peer.expect(Opcode.GETATTR, nodeid=3).reply_error(errno.ESTALE)
    ways(peer, 3)
    peer.expect(Opcode.GETATTR, nodeid=3).reply_error(errno.ESTALE)
    with pytest.raises(OSError) as caught:
        client.stat("/d/f")
    assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, "/d/f")


def test_a_directory_that_is_stale_on_the_way_is_looked_up_from_the_root(peer: ScriptedPeer, client: Client) -> None:
    know(peer, client)
    peer.expect(Opcode.LOOKUP, nodeid=2, name=b"g").reply_error(errno.ESTALE)
    peer.expect(Opcode.LOOKUP, nodeid=1, name=b"d").reply_entry(Attr.directory(8), **LONG)
    peer.expect(Opcode.LOOKUP, nodeid=8, name=b"g").reply_entry(Attr.file(9, 1), **LONG)
    assert client.nodeid("/d/g") == 9


def test_a_name_that_is_gone_is_enoent_and_not_estale(peer: ScriptedPeer, client: Client) -> None:
    know(peer, client)
    peer.expect(Opcode.GETATTR, nodeid=3).reply_error(errno.ESTALE)
    peer.expect(Opcode.LOOKUP, nodeid=1, name=b"d").reply_error(errno.ENOENT)
    with pytest.raises(FileNotFoundError):
        client.stat("/d/f")


def test_links_on_the_way_are_asked_for_again_too(peer: ScriptedPeer, client: Client) -> None:
    know(peer, client)
    peer.expect(Opcode.LOOKUP, name=b"l").reply_entry(Attr.symlink(5, 3), **LONG)
    peer.expect(Opcode.READLINK, nodeid=5).reply(b"d/f")
    peer.expect(Opcode.GETATTR, nodeid=3).reply_error(errno.ESTALE)
    peer.expect(Opcode.LOOKUP, nodeid=1, name=b"l").reply_entry(Attr.symlink(6, 3), **LONG)
    peer.expect(Opcode.READLINK, nodeid=6).reply(b"d/f")
    ways(peer)
    peer.expect(Opcode.GETATTR, nodeid=4).reply_attr(Attr.file(4, 7))
    assert client.stat("/l").st_ino == 4


def test_the_root_itself_can_be_stale(peer: ScriptedPeer, client: Client) -> None:
    for _ in range(2):
        peer.expect(Opcode.GETATTR, nodeid=1).reply_error(errno.ESTALE)
    with pytest.raises(OSError) as caught:
        client.stat("/")
    assert caught.value.errno == errno.ESTALE


def test_a_server_that_knows_nothing_is_asked_a_bounded_number_of_times(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"d").reply_error(errno.ESTALE)
    peer.expect(Opcode.LOOKUP, name=b"d").reply_error(errno.ESTALE)
    assert not client.exists("/d")
    assert names(peer)[1:] == [("LOOKUP", b"d")] * 2


CALLS: dict[str, tuple[Opcode, int, Callable[[Client], Any]]] = {
    "lstat": (Opcode.GETATTR, 3, lambda c: c.lstat("/d/f")),
    "statx": (Opcode.STATX, 3, lambda c: c.statx("/d/f")),
    "chmod": (Opcode.SETATTR, 3, lambda c: c.chmod("/d/f", 0o600)),
    "utime": (Opcode.SETATTR, 3, lambda c: c.utime("/d/f")),
    "truncate": (Opcode.SETATTR, 3, lambda c: c.truncate("/d/f", 3)),
    "statvfs": (Opcode.STATFS, 3, lambda c: c.statvfs("/d/f")),
    "getxattr": (Opcode.GETXATTR, 3, lambda c: c.getxattr("/d/f", "user.a")),
    "setxattr": (Opcode.SETXATTR, 3, lambda c: c.setxattr("/d/f", "user.a", b"x")),
    "listxattr": (Opcode.LISTXATTR, 3, lambda c: c.listxattr("/d/f")),
    "removexattr": (Opcode.REMOVEXATTR, 3, lambda c: c.removexattr("/d/f", "user.a")),
    "access": (Opcode.ACCESS, 3, lambda c: c.access("/d/f", os.R_OK)),
    "open": (Opcode.OPEN, 3, lambda c: c.open_file("/d/f")),
    "unlink": (Opcode.UNLINK, 2, lambda c: c.unlink("/d/f")),
    "listdir": (Opcode.OPENDIR, 2, lambda c: c.listdir("/d")),
    "mkdir": (Opcode.MKDIR, 2, lambda c: c.mkdir("/d/new")),
    "symlink": (Opcode.SYMLINK, 2, lambda c: c.symlink("to", "/d/new")),
    "link": (Opcode.LINK, 2, lambda c: c.link("/d/f", "/d/new")),
    "rename": (Opcode.RENAME, 2, lambda c: c.rename("/d/f", "/d/new")),
    "create": (Opcode.CREATE, 2, lambda c: c.open_file("/d/new", os.O_CREAT | os.O_WRONLY)),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_every_call_by_path_is_made_twice_and_no_more(peer: ScriptedPeer, client: Client, name: str) -> None:
    """The server answers every name, and ESTALE whenever the call itself comes."""
    opcode, nodeid, call = CALLS[name]
    know(peer, client)
    client.name_max = 255
    calls: list[str] = []

    def serve(scripted: ScriptedPeer, asked: Asked) -> None:
        calls.append(Opcode(asked.opcode).name)
        if asked.opcode == opcode:
            scripted.answer(asked, error=errno.ESTALE)
        elif asked.opcode != Opcode.LOOKUP or asked.names == (b"new",):
            scripted.answer(asked, error=errno.ENOENT if asked.opcode == Opcode.LOOKUP else errno.ENOSYS)
        else:
            attr = Attr.directory(2) if asked.names == (b"d",) else Attr.file(3, 5)
            scripted.answer(asked, scripted.entry(attr, **LONG))

    original = peer.send

    def send(message: Any) -> None:
        asked = peer._decode(b"".join(message))
        if asked.opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.DESTROY):
            original(message)
        else:
            serve(peer, asked)

    peer.send = send  # type: ignore[method-assign]
    if name == "access":
        assert call(client) is False
    else:
        with pytest.raises(OSError) as caught:
            call(client)
        assert caught.value.errno == errno.ESTALE
    assert calls.count(opcode.name) == 2
    again = calls[calls.index(opcode.name) + 1 :]
    assert "LOOKUP" in again  # the names were not believed the second time
    assert len(calls) < 12


def test_an_open_file_is_not_opened_again(peer: ScriptedPeer, client: Client) -> None:
    know(peer, client)
    peer.expect(Opcode.OPEN, nodeid=3).reply_open(7)
    peer.expect(Opcode.READ, nodeid=3).reply_error(errno.ESTALE)
    peer.expect(Opcode.FLUSH).reply()
    peer.expect(Opcode.RELEASE).reply()
    with client.open_raw("/d/f") as file, pytest.raises(OSError) as caught:
        file.read(5)
    assert caught.value.errno == errno.ESTALE


def test_what_was_opened_at_the_second_try_belongs_to_the_client_itself(peer: ScriptedPeer, client: Client) -> None:
    know(peer, client)
    peer.expect(Opcode.OPEN, nodeid=3).reply_error(errno.ESTALE)
    ways(peer)
    peer.expect(Opcode.OPEN, nodeid=4).reply_open(7)
    peer.expect(Opcode.FLUSH, nodeid=4, lock_owner=client.lock_owner).reply()
    peer.expect(Opcode.RELEASE, nodeid=4).reply()
    file = client.open_file("/d/f")
    assert file.client is client
    file.close()


def test_a_listed_name_that_became_stale_is_found_again(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.OPENDIR).reply_open(1)
    peer.expect(Opcode.READDIR).reply_dirents((b"f", 3, 1, 8))
    peer.expect(Opcode.READDIR).reply()
    peer.expect(Opcode.RELEASEDIR).reply()
    (entry,) = client.scandir("/")
    peer.expect(Opcode.LOOKUP, name=b"f").reply_entry(Attr.file(3, 5), **LONG)
    peer.expect(Opcode.GETATTR, nodeid=3).reply_error(errno.ESTALE)
    peer.expect(Opcode.LOOKUP, name=b"f").reply_entry(Attr.file(4, 7), **LONG)
    peer.expect(Opcode.GETATTR, nodeid=4).reply_attr(Attr.file(4, 7))
    assert entry.stat().st_ino == 4


# -- a host directory whose files are moved on the host ----------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path) -> Iterator[tuple[Client, Path]]:
    """A client of a host directory that has no file handles, as an ordinary user's has none, and hardly any room for
    open ones; names are believed for long, attributes not at all."""
    top = tmp_path / "top"
    (top / "a").mkdir(parents=True)
    (top / "b").mkdir()
    (top / "a/file").write_text("first")
    (top / "many").mkdir()
    for number in range(20):
        (top / f"many/{number}").write_text("")
    directory = HostDirectory(top, entry_timeout_s=3600, attr_timeout_s=0, max_held=1)
    directory.nodes.handles = directory.nodes.keep_handles = False
    with connect(directory, uid=os.geteuid()) as client:
        yield client, top
    directory.close()


def crowd_out(client: Client) -> None:
    """Have the server let go of the fds it holds."""
    for number in range(20):
        client.stat(f"/many/{number}")


def test_a_file_moved_to_another_directory_is_missing_here_and_found_there(host: tuple[Client, Path]) -> None:
    client, top = host
    inode = client.stat("/a/file").st_ino
    crowd_out(client)
    shutil.move(top / "a/file", top / "b/file")
    with pytest.raises(FileNotFoundError):
        client.stat("/a/file")
    assert client.stat("/b/file").st_ino == inode
    assert client.read_text("/b/file") == "first"


def test_a_directory_moved_away_is_missing_and_found_at_its_new_place(host: tuple[Client, Path]) -> None:
    client, top = host
    client.stat("/a/file")
    crowd_out(client)
    (top / "a").rename(top / "b/a")
    with pytest.raises(FileNotFoundError):
        client.listdir("/a")
    assert client.listdir("/b/a") == ["file"]
    assert client.read_text("/b/a/file") == "first"


@pytest.mark.parametrize("call", ["stat", "read_text", "chmod", "access"])
def test_a_file_replaced_by_another_is_the_other(host: tuple[Client, Path], call: str) -> None:
    client, top = host
    client.stat("/a/file")
    crowd_out(client)
    (top / "b/new").write_text("second one")
    (top / "a/file").rename(top / "b/old")
    (top / "b/new").rename(top / "a/file")
    match call:
        case "stat":
            assert client.stat("/a/file").st_size == len("second one")
        case "read_text":
            assert client.read_text("/a/file") == "second one"
        case "chmod":
            client.chmod("/a/file", 0o604)
            assert (top / "a/file").stat().st_mode & 0o777 == 0o604
            assert (top / "b/old").stat().st_mode & 0o777 != 0o604
        case "access":
            assert client.access("/a/file", os.R_OK)


def test_a_directory_replaced_by_another_is_listed_and_written_into(host: tuple[Client, Path]) -> None:
    client, top = host
    client.stat("/a/file")
    crowd_out(client)
    (top / "a").rename(top / "b/old")
    (top / "a").mkdir()
    (top / "a/other").write_text("x")
    assert client.listdir("/a") == ["other"]
    client.write_text("/a/made", "y")
    client.rename("/a/other", "/a/renamed")
    assert sorted(os.listdir(top / "a")) == ["made", "renamed"]
