"""Where a filesystem is tried: called directly, behind a client over some transport, or mounted by the kernel.

`place` builds it up and, at the end, takes it down; the books are kept meanwhile (see ledger.py). No pytest needed.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from transfuse.client import Client
from transfuse.fs.base import Filesystem
from transfuse.fs.path import PathFilesystem
from transfuse.fs.request import Request
from transfuse.server import Server, mount
from transfuse.session.server import log_bug
from transfuse.testing.client_volume import ClientVolume
from transfuse.testing.connecting import Wire, wire_pair
from transfuse.testing.direct import DirectVolume
from transfuse.testing.ledger import Ledger
from transfuse.testing.volume import OsVolume, Volume

__all__ = ["TRANSPORTS", "Place", "place", "why_not"]

TRANSPORTS = ("direct", "memory", "stream", "virtio", "dev_fuse")
SETTLE_S = 2.0
"""How long FORGETs and RELEASEs may take to arrive once everything is closed."""
MOUNT_OPTIONS = ("default_permissions", "allow_other")


class Place:
    """A filesystem where it can be tried: its `volume`, its `ledger`, and bugs that came up."""

    def __init__(self, volume: Volume, ledger: Ledger, transport: str, bugs: list[BaseException]) -> None:
        self.volume = volume
        self.ledger = ledger
        self.transport = transport
        self.bugs = bugs
        """Exceptions that are no OSError, and so no answer."""


def why_not(transport: str) -> str | None:
    """Why this transport can't be used here; None if it can."""
    if transport != "dev_fuse":
        return None
    if os.geteuid() != 0:
        return "needs root to mount"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"needs /dev/fuse: {error.strerror}"
    return None


@contextmanager
def place(
    transport: str, filesystem: Filesystem | PathFilesystem, folder: Path, mount_options: Sequence[str] = MOUNT_OPTIONS
) -> Iterator[Place]:
    """`filesystem` over `transport`; `folder` is where a mount point or a socket may be made.

    The umask is 0 meanwhile: volumes say exactly which mode they mean.
    """
    ledger = Ledger(filesystem)
    bugs: list[BaseException] = []

    def on_bug(req: Request, error: BaseException) -> None:
        bugs.append(error)
        log_bug(req, error)  # what the case sees is EIO: the log says why

    umask = os.umask(0)
    try:
        with _VOLUMES[transport](ledger, folder, on_bug, mount_options) as volume:
            yield Place(volume, ledger, transport, bugs)
    finally:
        os.umask(umask)


OnBug = Callable[[Request, BaseException], None]


@contextmanager
def _direct(ledger: Ledger, folder: Path, on_bug: OnBug, options: Sequence[str]) -> Iterator[Volume]:
    yield DirectVolume(ledger)
    ledger.destroyed()


def _settle(pending: Callable[[], int]) -> None:
    """Wait, not for ever, for what the peer has sent and nobody answers: it may be overtaken by the end."""
    deadline = time.monotonic() + SETTLE_S
    while pending() and time.monotonic() < deadline:
        time.sleep(0.002)


def _give_back(client: Client, ledger: Ledger) -> None:
    """Have the client forget all nodes; those in tracebacks of expected exceptions need the collector first."""
    gc.collect()
    client.drop_caches()
    _settle(ledger.held_lookups)


def _client_over(wire: Wire) -> Callable[..., AbstractContextManager[Volume]]:
    @contextmanager
    def client_over(ledger: Ledger, folder: Path, on_bug: OnBug, options: Sequence[str]) -> Iterator[Volume]:
        ours, theirs = wire_pair(wire)
        with Server(ledger, ours, on_bug=on_bug), Client(theirs) as client:
            yield ClientVolume(client)
            _give_back(client, ledger)

    return client_over


@contextmanager
def _dev_fuse(ledger: Ledger, folder: Path, on_bug: OnBug, options: Sequence[str]) -> Iterator[Volume]:
    mountpoint = tempfile.mkdtemp(prefix="mnt-", dir=folder)
    try:
        with mount(ledger, mountpoint, options, on_bug=on_bug):
            yield OsVolume(mountpoint)
            # close(2) does not wait for RELEASE, and what is on its way when Linux unmounts is dropped.
            _settle(ledger.open_handles)
    finally:
        os.rmdir(mountpoint)


_VOLUMES = {
    "direct": _direct,
    "memory": _client_over("memory"),
    "stream": _client_over("stream"),
    "virtio": _client_over("virtio"),
    "dev_fuse": _dev_fuse,
}
