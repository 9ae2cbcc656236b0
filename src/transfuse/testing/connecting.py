"""A client before a filesystem, over a wire of one's choice, and the questions a test should ask at its end.

    with connect(MyFilesystem()) as client:
        assert client.read_bytes("/hello.txt") == b"Hello, world!\n"

An exception in the filesystem that is no OSError would be EIO to the peer and a line in the log; here it is raised at
the end of the block. Also at the end: no request may be without an answer, no file may be left open, and every lookup
the client was given must have been given back (AssertionError lists what is wrong).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from transfuse.client import Client, Credentials
from transfuse.fs.base import Filesystem
from transfuse.fs.path import PathFilesystem
from transfuse.fs.request import Request
from transfuse.server import Server
from transfuse.session.client import DEFAULT_FLAGS
from transfuse.testing.counts import CountingTransport
from transfuse.testing.ledger import Ledger
from transfuse.transports.base import ClientTransport, ServerTransport
from transfuse.transports.memory import MemoryTransport
from transfuse.transports.stream import StreamClientTransport, StreamTransport
from transfuse.transports.vhost_user.backend import VhostUserTransport
from transfuse.transports.vhost_user.driver import VhostUserClientTransport
from transfuse.transports.vhost_user.socket import MessageSocket
from transfuse.wire.layout import ByteOrder

__all__ = ["Wire", "connect", "wire_pair"]

Wire = Literal["memory", "stream", "virtio"]
MAX_BUGS = 100
"""Most exceptions of a filesystem kept; the first is the one that is raised."""


def wire_pair(over: Wire) -> tuple[ServerTransport, ClientTransport]:
    """Both ends of a wire inside this process."""
    if over == "memory":
        memory = MemoryTransport()
        return memory, memory.client
    if over == "stream":
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return StreamTransport(ours), StreamClientTransport(theirs)
    if over == "virtio":
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return VhostUserTransport(ours, remote_locks=True), VhostUserClientTransport(MessageSocket(theirs))
    raise ValueError(f"over={over!r}: 'memory', 'stream' and 'virtio' are known")


@contextmanager
def connect(
    filesystem: Filesystem | PathFilesystem,
    *,
    over: Wire = "memory",
    order: ByteOrder = "<",
    minor: int = 45,
    clock: Callable[[], float] | None = None,
    creds: Credentials | None = None,
    uid: int | None = None,
    gid: int | None = None,
    groups: tuple[int, ...] = (),
    umask: int = 0o022,
    flags: int = DEFAULT_FLAGS,
    timeout_s: float | None = 30.0,
    workers: int = 4,
    books: bool = True,
) -> Iterator[Client]:
    """A connected client before `filesystem`.

    `clock` (seconds) drives the client's caches, by default the real one. `creds`, or `uid`, `gid`, `groups` and
    `umask`, say who asks. `books` False switches off the checks of handles and lookups at the end. `client.server`
    is the Server, `client.counts` counts requests by opcode name.
    """
    bugs: list[BaseException] = []

    def on_bug(req: Request, error: BaseException) -> None:
        if len(bugs) < MAX_BUGS:
            bugs.append(error)

    ledger = Ledger(filesystem) if books else None
    server_end, client_end = wire_pair(over)
    server = Server(ledger if ledger is not None else filesystem, server_end, workers=workers, on_bug=on_bug)
    counting = CountingTransport(client_end)
    if creds is None and uid is not None:
        creds = Credentials(uid, uid if gid is None else gid, os.getpid(), groups, umask)
    server.start()
    problems: list[str] = []
    try:
        client = _TestClient(
            counting,
            clock=clock or time.monotonic,
            creds=creds,
            minor=minor,
            order=order,
            flags=flags,
            timeout_s=timeout_s,
        )
        client.server = server
        client.counts = counting
        try:
            with client:
                yield client
                if not client.closed:
                    client.forget_all()
                    problems += [
                        f"request #{pending.unique} (opcode {pending.opcode}) has no answer"
                        for pending in client.exchange.session.in_flight.values()
                    ]
        except BaseException as error:
            if bugs:
                # What the test saw is most likely the EIO of this.
                raise bugs[0] from error
            raise
    finally:
        server.close()
    if bugs:
        raise bugs[0]
    if ledger is not None:
        problems += ledger.problems()
    if problems:
        raise AssertionError("at the end of the connection: " + "; ".join(problems))


class _TestClient(Client):
    """A client that knows the other side."""

    server: Server
    counts: CountingTransport
