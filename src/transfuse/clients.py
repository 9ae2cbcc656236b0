"""From the name of a server, or a filesystem, to a connected client.

    with transfuse.connect("vhost-user:/run/vm.sock") as client:
        print(client.listdir("/"))

A server is named by the wire it listens on: `unix:/path.sock` (transports.stream) or `vhost-user:/path.sock` (any
virtio-fs server: ours, virtiofsd). Anything else is served here, in this process, for this client alone: a directory by
its path, or a filesystem object.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any

from transfuse.client import Client
from transfuse.fs.base import Filesystem
from transfuse.fs.path import PathFilesystem
from transfuse.server import Server
from transfuse.transports.base import ClientTransport
from transfuse.transports.memory import MemoryTransport

__all__ = ["SERVERS", "OwnClient", "connect", "open_wire"]

SERVERS = ("unix", "vhost-user")
"""Kinds of servers: what stands before the colon."""


def open_wire(kind: str, path: str | os.PathLike[str], **options: Any) -> ClientTransport:
    """A wire to the server of that kind at `path`. `vhost-user` takes queues, size, packed and reconnect_s (see
    VhostUserClientTransport). OSError when nobody listens there."""
    if kind == "unix":
        from transfuse.transports.stream import StreamClientTransport

        return StreamClientTransport.connect(path, **options)
    if kind == "vhost-user":
        from transfuse.transports.vhost_user.driver import VhostUserClientTransport

        return VhostUserClientTransport(os.fspath(path), **options)
    raise ValueError(f"{kind!r} is none of {', '.join(SERVERS)}")


class OwnClient(Client):
    """A client with a server of its own, which ends with it."""

    _server: Server | None = None
    _at_end: Callable[[], None] | None = None

    def close(self) -> None:
        """End the connection, and the server."""
        super().close()
        if self._is_view:
            return
        server, self._server = self._server, None
        if server is not None:
            server.close()
            if self._at_end is not None:
                self._at_end()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def connect(
    what: str | os.PathLike[str] | Filesystem | PathFilesystem, *, wire: dict[str, Any] | None = None, **options: Any
) -> Client:
    """A connected client of a server ("unix:/path.sock", "vhost-user:/path.sock"), of a directory, or of a filesystem.

    `options` are the client's (creds, timeout_s, ...), `wire` those of the wire to a server. Close it, or use it as a
    context manager. OSError when the server or the directory can't be had, RemoteProtocolError when it is no server
    for us.
    """
    if isinstance(what, str) and not os.path.exists(what):
        kind, colon, path = what.partition(":")
        if colon and kind in SERVERS:
            transport = open_wire(kind, path, **(wire or {}))
            return Client(transport, **options).connect()
    if wire:
        raise TypeError("wire= is for servers: there is no wire to what is served here")
    if not isinstance(what, Filesystem | PathFilesystem):
        from transfuse.filesystems.hostdir import HostDirectory

        directory = HostDirectory(what)
        return _serve_here(directory, options, directory.close)
    return _serve_here(what, options, None)


def _serve_here(
    filesystem: Filesystem | PathFilesystem, options: dict[str, Any], at_end: Callable[[], None] | None
) -> Client:
    memory = MemoryTransport()
    server = Server(filesystem, memory).start()
    try:
        client = OwnClient(memory.client, **options)
        client._server, client._at_end = server, at_end
        client.connect()
        return client
    except BaseException:
        server.close()
        if at_end is not None:
            at_end()
        raise
