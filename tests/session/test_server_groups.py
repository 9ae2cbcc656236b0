"""Supplementary groups of the caller: sent with the request, or asked of the transport."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

from session.peers import Peer, Tree
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Entry
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode


def extension(order: str, *gids: int) -> bytes:
    raw = struct.pack(f"{order}I{len(gids)}I", len(gids), *gids)
    raw += bytes(-len(raw) % 8)
    return struct.pack(order + "II", 8 + len(raw), 32) + raw


def security(order: str) -> bytes:
    # size 32, one context: secctx {size 9, padding}, "selinux\0", value padded to 8
    return struct.pack(order + "IIII", 40, 1, 9, 0) + b"security.selinux"[:8] + b"label\0\0\0" + bytes(8)


class Making(Tree):
    def mkdir(self, req: Request, parent: int, name: bytes, mode: int, umask: int) -> Entry:
        self.calls.append((name, req.groups))
        return Entry(Attr.directory(9))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda o: extension(o, 1001), (1001,)),
        (lambda o: extension(o, 1001, 1002), (1001, 1002)),
        (lambda o: security(o) + extension(o, 1001), (1001,)),
        (lambda o: extension(o, 1001) + security(o), (1001,)),
    ],
)
def test_groups_sent_with_the_request_are_the_callers(order: str, make: Any, expected: tuple[int, ...]) -> None:
    peer = Peer(Making(), order=order)
    assert peer.ask(Opcode.MKDIR, w.MkdirIn(), b"x\0", extensions=make(order)).errno == 0
    assert peer.fs.calls == [(b"x", expected)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("known", "expected"), [((5, 6), (5, 6)), ((), (100,))])
def test_groups_not_sent_are_asked_of_the_transport(known: tuple[int, ...], expected: tuple[int, ...]) -> None:
    peer = Peer(Making())
    peer.host.groups = known
    peer.ask(Opcode.MKDIR, w.MkdirIn(), b"x\0", gid=100)
    assert peer.fs.calls == [(b"x", expected)]  # type: ignore[attr-defined]


def test_security_context_alone_does_not_hide_the_transports_groups() -> None:
    peer = Peer(Making())
    peer.host.groups = (5,)
    assert peer.ask(Opcode.MKDIR, w.MkdirIn(), b"x\0", extensions=security("<")).errno == 0
    assert peer.fs.calls == [(b"x", (5,))]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "records",
    [
        struct.pack("<II", 0, 32),
        struct.pack("<II", 16, 32),
        struct.pack("<IIII", 16, 32, 9, 0),
        struct.pack("<II", 8, 99),
    ],
)
def test_records_that_lie_are_refused_before_the_call(records: bytes) -> None:
    peer = Peer(Making())
    assert peer.ask(Opcode.MKDIR, w.MkdirIn(), b"x\0", extensions=records).errno == errno.EINVAL
    assert peer.fs.calls == []  # type: ignore[attr-defined]


def test_extensions_are_no_part_of_the_name() -> None:
    peer = Peer(Making())
    peer.ask(Opcode.MKDIR, w.MkdirIn(), b"name\0", extensions=extension("<", 1))
    assert peer.fs.calls[0][0] == b"name"  # type: ignore[attr-defined]
