"""stat and its relatives, changes of attributes, extended attributes."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from transfuse.client import Client, Credentials
from transfuse.errors import RemoteProtocolError
from transfuse.fs.values import Attr
from transfuse.testing import ScriptedPeer
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode


def number(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(OSError) as caught:
        call(*args, **kwargs)
    return errno.errorcode[caught.value.errno or 0]


def test_attributes_over_every_wire(fs_client: Client) -> None:
    c = fs_client
    c.write_bytes("/f", b"12345")
    c.utime("/f", ns=(1_000_000_001, -1))
    st = c.stat("/f")
    assert (st.st_size, st.st_atime_ns, st.st_mtime_ns) == (5, 1_000_000_001, -1)
    c.utime("/f", (1.5, 2.5))
    assert c.stat("/f").st_mtime_ns == 2_500_000_000
    c.utime("/f")
    assert c.stat("/f").st_mtime_ns > 1_600_000_000 * 10**9
    c.chmod("/f", 0o640)
    c.chown("/f", 3, -1)
    c.chown("/f", -1, 4)
    st = c.stat("/f")
    assert (st.st_mode, st.st_uid, st.st_gid) == (0o100640, 3, 4)
    c.truncate("/f", 2)
    assert c.read_bytes("/f") == b"12"
    c.symlink("f", "/l")
    c.lchown("/l", 9, 9)
    assert c.lstat("/l").st_uid == 9 and c.stat("/l").st_uid == 3
    c.setxattr("/f", "user.a", b"value")
    assert c.getxattr("/f", "user.a") == b"value" and c.listxattr("/f") == ["user.a"]
    assert number(c.setxattr, "/f", "user.a", b"", os.XATTR_CREATE) == "EEXIST"
    c.removexattr("/f", b"user.a")
    assert number(c.getxattr, "/f", "user.a") == "ENODATA"
    assert c.statvfs("/f").f_namemax == 255
    assert c.access("/f", os.R_OK) and c.access("/f", os.F_OK)


def test_questions_about_paths(mem: Client) -> None:
    mem.mkdir("/d")
    mem.write_bytes("/f", b"")
    mem.symlink("nowhere", "/l")
    assert mem.isdir("/d") and not mem.isdir("/f") and not mem.isdir("/nope")
    assert mem.isfile("/f") and not mem.isfile("/d")
    assert mem.islink("/l") and not mem.islink("/f")
    assert mem.lexists("/l") and not mem.exists("/l") and not mem.exists("/f/x") and not mem.exists("a\0b")


def test_access_is_asked_of_the_server(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5), entry_timeout_s=60)
    peer.expect(Opcode.ACCESS, nodeid=5, mask=2, uid=1000).reply_error(errno.EACCES)
    assert not client.access("/a", os.W_OK)
    peer.expect(Opcode.ACCESS, nodeid=5, mask=4).reply()
    assert client.access("/a", os.R_OK)


def test_access_of_what_is_not_there_is_false(mem: Client) -> None:
    assert not mem.access("/nope", os.F_OK) and not mem.access("/nope", os.R_OK)


def test_questions_of_a_lost_connection_raise(peer: ScriptedPeer, client: Client) -> None:
    peer.hang_up()
    with pytest.raises(ConnectionError):
        client.exists("/a")


def test_a_server_without_access_allows_everything(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5), entry_timeout_s=60)
    peer.expect(Opcode.ACCESS, nodeid=5, mask=4).reply_error(errno.ENOSYS)
    assert client.access("/a", os.R_OK) and client.access("/a", os.W_OK)


def test_statx_has_the_birth_time_and_falls_back_where_there_is_none(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5, size=3), entry_timeout_s=60, attr_timeout_s=60)
    stat = w.Statx(mask=0xFFF, mode=0o100644, ino=5, size=3, btime=w.SxTime(tv_sec=-1, tv_nsec=5))
    peer.expect(Opcode.STATX, nodeid=5, sx_mask=0xFFF).reply(w.StatxOut(stat=stat))
    assert client.statx("/a").btime_ns == -999_999_995
    peer.expect(Opcode.STATX).reply_error(errno.ENOSYS)
    for _ in range(2):
        found = client.statx("/a")
        assert found.btime_ns is None and found.size == 3


def test_a_statx_that_can_not_be_is_refused(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5), entry_timeout_s=60)
    peer.expect(Opcode.STATX).reply(w.StatxOut(stat=w.Statx(mode=0o644)))
    with pytest.raises(RemoteProtocolError, match="statx_out.stat.mode"):
        client.statx("/a")


def test_a_file_that_became_a_directory_is_refused(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5))
    peer.expect(Opcode.GETATTR, nodeid=5).reply_attr(Attr.directory(5))
    with pytest.raises(RemoteProtocolError, match="node 5 of 0o100644 became 0o40755"):
        client.stat("/a")


def test_utime_now_is_the_servers_now(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5))
    valid = f.FATTR_ATIME | f.FATTR_ATIME_NOW | f.FATTR_MTIME | f.FATTR_MTIME_NOW
    peer.expect(Opcode.SETATTR, nodeid=5, valid=valid).reply_attr(Attr.file(5))
    client.utime("/a")


def test_times_before_1970_are_sent_as_negative_seconds(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5))
    expected = {"atime": (1 << 64) - 1, "atimensec": 999_999_999, "mtime": 0, "mtimensec": 1}
    peer.expect(Opcode.SETATTR, nodeid=5, **expected).reply_attr(Attr.file(5))
    client.utime("/a", ns=(-1, 1))


def test_a_link_has_no_mode_to_change(mem: Client) -> None:
    mem.symlink("x", "/l")
    assert number(mem.chmod, "/l", 0o600, follow_symlinks=False) == "ENOTSUP"


@pytest.mark.parametrize(("mode", "after"), [(0o106755, 0o100755), (0o102745, 0o102745)])
def test_chown_clears_set_id_bits_where_the_server_does_not(mode: int, after: int) -> None:
    with ScriptedPeer(flags=0) as peer, Client(peer, creds=Credentials(5, 5)) as client:
        attr = Attr(5, mode)
        peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(attr, attr_timeout_s=60)
        valid = f.FATTR_UID | (f.FATTR_MODE if after != mode else 0)
        peer.expect(Opcode.SETATTR, valid=valid, mode=after if after != mode else 0).reply_attr(Attr(5, after))
        client.chown("/a", 9, -1)


def test_truncation_by_a_user_tells_the_server_to_clear_set_id_bits(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5))
    peer.expect(Opcode.SETATTR, valid=f.FATTR_SIZE | f.FATTR_KILL_SUIDGID, size=1).reply_attr(Attr.file(5, 1))
    client.truncate("/a", 1)


def test_what_can_not_be_truncated(mem: Client) -> None:
    mem.mkfifo("/p")
    assert number(mem.truncate, "/", 0) == "EISDIR"
    assert number(mem.truncate, "/p", 0) == "EINVAL"
    assert number(mem.truncate, "/p", -1) == "EINVAL"


def test_limits_of_extended_attributes_are_checked_here(mem: Client) -> None:
    assert number(mem.setxattr, "/", "user." + "n" * 251, b"") == "ERANGE"
    assert number(mem.setxattr, "/", "user.a", bytes(65537)) == "E2BIG"
    with pytest.raises(ValueError):
        mem.getxattr("/", "user.\0")


def test_a_server_without_extended_attributes_is_asked_once(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.GETXATTR, nodeid=1).reply_error(errno.ENOSYS)
    for _ in range(2):
        assert number(client.getxattr, "/", "user.a") == "ENOTSUP"
