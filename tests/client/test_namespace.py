"""Making, removing and renaming names; what the client checks itself, and what it asks."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

import pytest

from transfuse.client import Client, Credentials
from transfuse.client.namespace import RENAME_EXCHANGE, RENAME_NOREPLACE
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.values import Attr
from transfuse.testing import ScriptedPeer, connect
from transfuse.wire import flags as f
from transfuse.wire.opcodes import Opcode


def number(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(OSError) as caught:
        call(*args, **kwargs)
    return errno.errorcode[caught.value.errno or 0]


def test_names_over_every_wire(fs_client: Client) -> None:
    c = fs_client
    c.makedirs("/a/b/c")
    c.makedirs("/a/b/c", exist_ok=True)
    assert number(c.makedirs, "/a/b/c") == "EEXIST"
    c.write_bytes("/a/f", b"x")
    c.link("/a/f", "/a/g")
    assert c.stat("/a/f").st_nlink == 2
    c.symlink("../f", "/a/b/s")
    assert c.readlink("/a/b/s") == "../f" and c.readlink(b"/a/b/s") == b"../f"
    assert c.read_bytes("/a/b/s") == b"x"
    c.rename("/a/g", "/h")
    assert c.exists("/h") and not c.exists("/a/g")
    c.replace("/h", "/a/f")
    c.mkfifo("/p", 0o600)
    c.mknod("/dev", stat.S_IFCHR | 0o600, os.makedev(259, 70_000))
    assert c.stat("/dev").st_rdev == os.makedev(259, 70_000)
    for name in ("/p", "/dev", "/a/b/s", "/a/f"):
        c.unlink(name)
    c.rmdir("/a/b/c")
    assert sorted(c.listdir("/")) == ["a", "h"] or sorted(c.listdir("/")) == ["a"]


@pytest.fixture
def tree(mem: Client) -> Client:
    mem.makedirs("/d/sub")
    mem.mkdir("/empty")
    mem.write_bytes("/file", b"file")
    mem.write_bytes("/other", b"other")
    mem.symlink("file", "/link")
    return mem


@pytest.mark.parametrize(
    ("call", "args", "expected"),
    [
        ("mkdir", ("/d",), "EEXIST"),
        ("mkdir", ("/",), "EEXIST"),
        ("mkdir", ("/d/.",), "EEXIST"),
        ("mkdir", ("/d/..",), "EEXIST"),
        ("mkdir", ("/link",), "EEXIST"),
        ("mkdir", ("/nope/x",), "ENOENT"),
        ("mkdir", ("/file/x",), "ENOTDIR"),
        ("mknod", ("/new/",), "ENOENT"),
        ("mknod", ("/new", stat.S_IFDIR), "EPERM"),
        ("symlink", ("x", "/new/"), "ENOENT"),
        ("symlink", ("x", "/file"), "EEXIST"),
        ("symlink", ("", "/new"), "ENOENT"),
        ("link", ("/d", "/new"), "EPERM"),
        ("link", ("/file", "/other"), "EEXIST"),
        ("link", ("/nope", "/new"), "ENOENT"),
        ("unlink", ("/d",), "EISDIR"),
        ("unlink", ("/",), "EISDIR"),
        ("unlink", ("/d/",), "EISDIR"),
        ("unlink", ("/file/",), "ENOTDIR"),
        ("unlink", ("/nope",), "ENOENT"),
        ("rmdir", ("/file",), "ENOTDIR"),
        ("rmdir", ("/link",), "ENOTDIR"),
        ("rmdir", ("/",), "EBUSY"),
        ("rmdir", ("/d/.",), "EINVAL"),
        ("rmdir", ("/d/sub/..",), "ENOTEMPTY"),
        ("rmdir", ("/d",), "ENOTEMPTY"),
        ("readlink", ("/file",), "EINVAL"),
        ("rename", ("/nope", "/x"), "ENOENT"),
        ("rename", ("/d", "/d/sub/x"), "EINVAL"),
        ("rename", ("/d/sub", "/d"), "ENOTEMPTY"),
        ("rename", ("/d", "/file"), "ENOTDIR"),
        ("rename", ("/file", "/empty"), "EISDIR"),
        ("rename", ("/file/", "/x"), "ENOTDIR"),
        ("rename", ("/file", "/x/"), "ENOTDIR"),
        ("rename", ("/empty", "/d"), "ENOTEMPTY"),
        ("rename", ("/d/.", "/x"), "EBUSY"),
        ("rename", ("/d", "/"), "EBUSY"),
    ],
)
def test_what_can_not_be_done(tree: Client, call: str, args: tuple[Any, ...], expected: str) -> None:
    assert number(getattr(tree, call), *args) == expected


def test_mkdir_may_end_in_a_slash(mem: Client) -> None:
    mem.mkdir("/new/")
    assert mem.isdir("/new")


def test_noreplace_and_exchange(tree: Client) -> None:
    assert number(tree.rename, "/file", "/other", flags=RENAME_NOREPLACE) == "EEXIST"
    assert number(tree.rename, "/file", "/nope", flags=RENAME_EXCHANGE) == "ENOENT"
    assert number(tree.rename, "/file", "/x", flags=64) == "EINVAL"
    assert number(tree.rename, "/file", "/x", flags=3) == "EINVAL"
    tree.rename("/file", "/d", flags=RENAME_EXCHANGE)
    assert tree.isdir("/file/sub") and tree.read_bytes("/d") == b"file"


def test_renaming_onto_another_name_of_the_same_file_does_nothing(tree: Client) -> None:
    tree.link("/file", "/same")
    tree.counts.take()  # type: ignore[attr-defined]
    tree.rename("/file", "/same")
    assert tree.counts["RENAME"] == 0  # type: ignore[attr-defined]
    assert tree.exists("/file") and tree.exists("/same")


def test_a_renamed_name_is_still_remembered_under_its_new_one(tree: Client) -> None:
    tree.rename("/file", "/new")
    tree.counts.take()  # type: ignore[attr-defined]
    assert tree.nodeid("/new")
    assert tree.counts.total == 0  # type: ignore[attr-defined]
    assert not tree.exists("/file")


def test_a_file_replaced_by_rename_lives_on_while_it_is_open(tree: Client) -> None:
    with tree.open_raw("/other") as raw:
        tree.rename("/file", "/other")
        assert raw.readall() == b"other" and tree.read_bytes("/other") == b"file"


def test_a_name_is_looked_up_before_it_is_made(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"d").reply_error(errno.ENOENT)
    peer.expect(Opcode.MKDIR, nodeid=1, name=b"d", mode=0o777, umask=0o022).reply_entry(Attr.directory(5))
    client.mkdir("/d")


def test_a_remembered_missing_name_is_made_without_a_lookup(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"d").reply_error(errno.ENOENT, entry_timeout_s=60)
    assert not client.exists("/d")
    peer.expect(Opcode.MKDIR, name=b"d").reply_entry(Attr.directory(5), entry_timeout_s=60, attr_timeout_s=60)
    client.mkdir("/d")
    assert client.isdir("/d")


def test_a_remembered_name_is_asked_for_again_before_it_is_made(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"d").reply_entry(Attr.file(5), entry_timeout_s=60)
    assert client.exists("/d")
    peer.expect(Opcode.LOOKUP, name=b"d").reply_error(errno.ENOENT)
    peer.expect(Opcode.MKDIR, name=b"d").reply_entry(Attr.directory(6))
    client.mkdir("/d")


def test_losing_the_race_to_make_a_name_forgets_that_it_is_missing(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"d").reply_error(errno.ENOENT, entry_timeout_s=60)
    peer.expect(Opcode.MKDIR, name=b"d").reply_error(errno.EEXIST)
    assert number(client.mkdir, "/d") == "EEXIST"
    peer.expect(Opcode.LOOKUP, name=b"d").reply_entry(Attr.directory(5))
    assert client.nodeid("/d") == 5


def test_without_dont_mask_the_client_applies_the_umask() -> None:
    with ScriptedPeer(flags=0) as peer, Client(peer, creds=Credentials(umask=0o027)) as client:
        peer.expect(Opcode.LOOKUP, name=b"d").reply_error(errno.ENOENT)
        peer.expect(Opcode.MKDIR, name=b"d", mode=0o750).reply_entry(Attr.directory(5))
        client.mkdir("/d", 0o777)


def test_plain_renames_use_the_old_request_and_flags_the_new_one(peer: ScriptedPeer, client: Client) -> None:
    for _ in range(2):
        peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5))
        peer.expect(Opcode.LOOKUP, name=b"b").reply_error(errno.ENOENT)
        if len(peer.script) == 2:
            peer.expect(Opcode.RENAME, nodeid=1, newdir=1, names=(b"a", b"b")).reply()
    peer.expect(Opcode.RENAME2, nodeid=1, newdir=1, flags=1, names=(b"a", b"b")).reply()
    client.rename("/a", "/b")
    client.rename("/a", "/b", flags=RENAME_NOREPLACE)


def test_enosys_to_link_is_eperm_for_ever(peer: ScriptedPeer, client: Client) -> None:
    for answer in (Opcode.LINK, None):
        peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5))
        peer.expect(Opcode.LOOKUP, name=b"b").reply_error(errno.ENOENT)
        if answer is not None:
            peer.expect(answer).reply_error(errno.ENOSYS)
        assert number(client.link, "/a", "/b") == "EPERM"


def test_the_parents_group_goes_along_if_the_user_is_in_it(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.GETATTR, nodeid=1).reply_attr(Attr.directory(1, gid=7), attr_timeout_s=60)
    client.stat("/")
    seen: list[bytes] = []
    send = peer.send

    def watch(message: list[Any]) -> None:
        seen.append(b"".join(message))
        send(message)

    client.exchange.transport.send = watch  # type: ignore[method-assign]
    peer.expect(Opcode.LOOKUP, name=b"d").reply_error(errno.ENOENT)
    peer.expect(Opcode.MKDIR, name=b"d").reply_entry(Attr.directory(5))
    client.mkdir("/d")
    # supp_groups: size 16, type 32, one group, 7; announced as two times eight bytes
    assert seen[-1][-16:] == b"\x10\0\0\0\x20\0\0\0\1\0\0\0\7\0\0\0" and seen[-1][36] == 2


def test_servers_get_the_group_through_the_extension() -> None:
    with connect(MemoryFilesystem(), uid=0) as client:
        assert client.connection.has(f.FUSE_CREATE_SUPP_GROUP)
        client.mkdir("/d", 0o2777)
        client.chmod("/d", 0o2777)
        client.chown("/d", 0, 50)
        client.chmod("/d", 0o2777)
        client.stat("/d")
        client.as_user(5, 6, (50,)).write_bytes("/d/f", b"")
        assert client.stat("/d/f").st_gid == 50
