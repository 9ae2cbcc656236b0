"""What can go wrong, by who is to blame.

A filesystem reports trouble with OSError and an errno. `RemoteProtocolError` means that the peer broke the protocol,
`LocalProtocolError` that we were about to. `FilesystemCorrupted` is a source whose own structures contradict each
other.
"""

from __future__ import annotations

import errno

__all__ = [
    "FilesystemCorrupted",
    "LocalProtocolError",
    "ProtocolError",
    "QueueStopped",
    "RemoteProtocolError",
    "RingError",
]


class ProtocolError(Exception):
    """Base of both sides' mistakes."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow. The text names structure, field and offset.

    `errno` is what an error reply should carry when the message was whole enough to be answered.
    """

    def __init__(self, text: str, errno: int = errno.EINVAL) -> None:
        super().__init__(text)
        self.errno = errno


class RingError(RemoteProtocolError):
    """A virtqueue, or the memory it lies in, is not as the virtio specification allows. The queue is broken until it is
    set up anew."""


class LocalProtocolError(ProtocolError):
    """This side was asked to send something that the protocol, or what was negotiated, does not allow."""


class QueueStopped(LocalProtocolError):
    """The driver has taken its ring back: nothing of its memory may be written any more."""


class FilesystemCorrupted(OSError):
    """The source's own structures are wrong (EUCLEAN). The text names structure, field, offset, expected and found."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.EUCLEAN, text)
