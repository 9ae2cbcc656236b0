"""connect(): its wires, and what it finds at the end."""

from __future__ import annotations

import errno
from typing import Any, Literal

import pytest

from transfuse.client import Client
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Entry
from transfuse.testing import connect
from transfuse.wire.layout import ByteOrder


class Buggy(Filesystem):
    def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
        if name == b"bug":
            raise ZeroDivisionError("a bug")
        raise FileNotFoundError(errno.ENOENT, name)

    def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
        return Attr.directory(1)


@pytest.mark.parametrize("over", ["memory", "stream"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("minor", [27, 31, 36, 41, 45])
def test_every_wire_order_and_minor(over: Literal["memory", "stream"], order: ByteOrder, minor: int) -> None:
    with connect(MemoryFilesystem(), over=over, order=order, minor=minor) as client:
        assert (client.connection.order, client.connection.minor) == (order, minor)
        client.write_bytes("/f", b"data")
        assert client.read_bytes("/f") == b"data"


def test_an_unknown_wire_is_named() -> None:
    wire: Any = "pigeon"
    with pytest.raises(ValueError, match="over='pigeon'"), connect(MemoryFilesystem(), over=wire):
        pass


def test_a_bug_of_the_filesystem_is_raised_at_the_end() -> None:
    seen = []
    with pytest.raises(ZeroDivisionError, match="a bug"), connect(Buggy()) as client:
        with pytest.raises(OSError) as caught:
            client.stat("/bug")
        seen.append(caught.value.errno)
    assert seen == [errno.EIO]


def test_a_bug_is_raised_rather_than_the_eio_it_became() -> None:
    with pytest.raises(ZeroDivisionError) as caught, connect(Buggy()) as client:
        client.stat("/bug")
    assert isinstance(caught.value.__cause__, OSError)


def test_an_error_of_the_test_itself_goes_through() -> None:
    with pytest.raises(KeyError), connect(Buggy()):
        raise KeyError("test")


def test_a_file_left_open_is_reported() -> None:
    kept = []
    with pytest.raises(AssertionError, match="still open"), connect(MemoryFilesystem()) as client:
        client.write_bytes("/f", b"")
        kept.append(client.open_file("/f"))


def test_a_lookup_not_given_back_is_reported() -> None:
    with pytest.raises(AssertionError, match="lookups of nodeid"), connect(MemoryFilesystem()) as client:
        client.write_bytes("/f", b"")
        node = client.cache.node(client.nodeid("/f"))
        assert node is not None
        node.nlookup -= 1


def test_books_may_be_left_out() -> None:
    kept = []
    with connect(MemoryFilesystem(), books=False) as client:
        client.write_bytes("/f", b"")
        kept.append(client.open_file("/f"))


def test_who_asks_may_be_chosen() -> None:
    with connect(MemoryFilesystem(), uid=0) as client:
        client.chmod("/", 0o1777)
        client.as_user(5, 6).write_bytes("/f", b"")
        st = client.stat("/f")
        assert (st.st_uid, st.st_gid) == (5, 6)


def test_server_and_counts_are_at_hand() -> None:
    with connect(MemoryFilesystem()) as client:
        client.statvfs()
        assert client.counts["STATFS"] == 1  # type: ignore[attr-defined]
        assert client.server.connection is not None  # type: ignore[attr-defined]
        assert isinstance(client, Client)
