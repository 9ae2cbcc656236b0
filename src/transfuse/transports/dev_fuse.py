"""The kernel's own wire: /dev/fuse, one request per read, one reply per write.

Each worker has a channel: the first uses the mount's fd, the others clones of it (FUSE_DEV_IOC_CLONE), so that each has
its own list of requests under way in the kernel (a reply must be written to the fd its request was read from). How the
fd came to be (a mount, an inherited fd) is not this module's affair.

The receive buffer is laid out so that a WRITE's payload begins on a page: header and write_in are 80 bytes, so requests
are read to 80 bytes before the second page. A READ's data is fetched to a page boundary likewise, with the reply header
right before it, and leaves by one write.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import select
import struct
import threading

from transfuse.transports.base import Channel, Handler, Received, Undelivered, Worker, serve_channel
from transfuse.transports.spin import NUMBERS, Spin
from transfuse.wire import flags as f
from transfuse.wire.encode import Message, RangeReply
from transfuse.wire.layout import Buffer

try:
    from transfuse._native import devloop as _devloop
except ImportError:
    _devloop = None  # type: ignore[assignment]  # the plain form: serve_channel

__all__ = ["DevFuse", "DevFuseChannel", "sync_init"]

log = logging.getLogger("transfuse.transports")

PAGE = 4096
MAX_WRITE = 1 << 20
"""Largest payload: 256 pages, Linux's default fs.fuse.max_pages_limit."""
_START = PAGE - 80
_ROOM = 80 + MAX_WRITE
_REPLY_START = PAGE - 16

_GONE = (errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN, errno.EBADF)


def sync_init(fd: int) -> bool:
    """Ask for INIT during mount (FUSE_DEV_IOC_SYNC_INIT, since Linux v6.18): a mount then fails if the server does.
    Returns False where the kernel does not know it. The server must be reading before the mount is made."""
    try:
        fcntl.ioctl(fd, f.FUSE_DEV_IOC_SYNC_INIT)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ENOSYS):
            return False
        raise
    return True


class DevFuseChannel:
    """One fd of the connection, read by one worker."""

    def __init__(self, fd: int, wake_fd: int | None, owned: bool) -> None:
        self.fd = fd
        self._owned = owned
        self._wake_fd = wake_fd
        self._area = mmap.mmap(-1, _START + _ROOM + PAGE)
        self._room = memoryview(self._area)[_START : _START + _ROOM]
        self._poll: select.poll | None = None
        if wake_fd is not None:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
            self._poll.register(wake_fd, select.POLLIN)
        # One reader looks; those that help it while it is held up sleep.
        self._spin = None if owned or wake_fd is not None else Spin(fd)
        self._reply_area: mmap.mmap | None = None
        self._thread = 0

    def receive(self) -> Received | None:
        """Read one request."""
        self._thread = threading.get_ident()
        while True:
            if self._poll is not None:
                ready = self._poll.poll()
                if any(fd == self._wake_fd for fd, _ in ready):
                    return None
            try:
                count = self._spin.read((self._room,)) if self._spin else os.readv(self.fd, (self._room,))
            except OSError as error:
                if error.errno in _GONE:
                    return None
                # ENOENT: the request was interrupted while we picked it up. EAGAIN: another worker got it. ENOMEM: the
                # kernel has answered the request itself, with EIO (fs/fuse/dev.c, fuse_dev_do_read).
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN, errno.ENOMEM):
                    continue
                raise
            if count == 0:
                return None
            return self._area, _START, _START + count  # type: ignore[return-value]  # an mmap is a buffer, too

    def send(self, message: Message) -> bool:
        """Write one reply."""
        try:
            if isinstance(message, bytes):
                os.write(self.fd, message)
            elif isinstance(message, RangeReply):
                self._send_range(message)
            else:
                os.writev(self.fd, message)
        except OSError as error:
            if error.errno == errno.ENOENT or error.errno in _GONE:
                return False
            # Whatever else it is, the kernel has ended the request with EIO (fs/fuse/dev.c, fuse_dev_do_write), and
            # this worker has others to serve.
            log.error("the kernel refused a reply (%s); the request ended with EIO", error)
        return True

    def _send_range(self, message: RangeReply) -> None:
        # A late reply comes from another thread, which must not share the area.
        own = threading.get_ident() == self._thread
        area = self._reply_area if own else None
        if area is None:
            area = mmap.mmap(-1, PAGE + MAX_WRITE)
            if own:
                self._reply_area = area
        with memoryview(area) as view:
            try:
                count = os.preadv(message.fd, (view[PAGE : PAGE + min(message.length, MAX_WRITE)],), message.offset)
            except OSError as error:
                os.write(self.fd, message.error(error.errno or errno.EIO))
                return
            view[_REPLY_START:PAGE] = message.header(count)
            os.write(self.fd, view[_REPLY_START : PAGE + count])

    def serve(self, handle: Handler, undelivered: Undelivered, worker: Worker) -> None:
        """Carry requests until the file system is unmounted."""
        if _devloop is None or self._poll is not None:
            serve_channel(self, handle, undelivered, worker)
            return
        self._thread = threading.get_ident()
        reply_area = self._reply_area = mmap.mmap(-1, PAGE + MAX_WRITE)
        _devloop.serve(
            self, self.fd, self._area, _START, _ROOM, reply_area, PAGE,
            handle, undelivered, worker, None if self._spin is None else NUMBERS,
        )  # fmt: skip

    def close(self) -> None:
        """Close a clone; the connection's own fd is the transport's. A reply that comes later still goes nowhere,
        and not to whatever has the fd's number by then."""
        fd, self.fd = self.fd, -1
        if self._owned:
            os.close(fd)
            self._owned = False


class DevFuse:
    """A connection to the kernel over the fd of a mount.

    `wakeable`: workers also wait for close(), at the price of one poll per request; for inherited fds, whose mount is
    somebody else's. An fd of our own mount needs none: unmounting ends every read.
    """

    max_write = MAX_WRITE
    can_pass_through = True
    can_notify = True

    def __init__(self, fd: int, *, wakeable: bool = False) -> None:
        self.fd = fd
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC) if wakeable else None
        self._closed = False
        self._first_given = False
        if wakeable:
            os.set_blocking(fd, False)

    def open_channel(self) -> Channel:
        """The first channel is the connection's own fd, further ones are clones (OSError before it is mounted)."""
        if not self._first_given:
            self._first_given = True
            return DevFuseChannel(self.fd, self._wake_fd, owned=False)
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | (os.O_NONBLOCK if self._wake_fd is not None else 0))
        try:
            fcntl.ioctl(fd, f.FUSE_DEV_IOC_CLONE, struct.pack("I", self.fd))
        except OSError:
            os.close(fd)
            raise
        return DevFuseChannel(fd, self._wake_fd, owned=True)

    def bind(self, handle: Handler, undelivered: Undelivered) -> None:
        """Channels carry everything."""

    def register_backing(self, fd: int) -> int:
        """FUSE_DEV_IOC_BACKING_OPEN: the kernel will open `fd`'s file itself for each passthrough open, under this
        process's credentials. EPERM without CAP_SYS_ADMIN, ELOOP when stacked too deep, EINVAL if not regular."""
        # A mutable buffer: for bytes fcntl.ioctl() returns the buffer instead of the call's result, which is the id.
        request = bytearray(struct.pack("=iIQ", fd, 0, 0))
        backing_id: int = fcntl.ioctl(self.fd, f.FUSE_DEV_IOC_BACKING_OPEN, request, True)
        return backing_id

    def unregister_backing(self, backing_id: int) -> None:
        """FUSE_DEV_IOC_BACKING_CLOSE; an unmounted connection has let go of it already."""
        try:
            fcntl.ioctl(self.fd, f.FUSE_DEV_IOC_BACKING_CLOSE, struct.pack("I", backing_id))
        except OSError as error:
            log.debug("backing id %d: %s", backing_id, error)

    def notify(self, message: list[Buffer]) -> None:
        """Write a notification; the kernel's answer is the errno (ENOENT: it does not know the node)."""
        os.writev(self.fd, message)

    def groups_of(self, pid: int) -> tuple[int, ...]:
        """The Groups line of /proc/PID/status."""
        try:
            with open(f"/proc/{pid}/status", "rb") as status:
                for line in status:
                    if line.startswith(b"Groups:"):
                        return tuple(int(word) for word in line[7:].split())
        except OSError:
            return ()
        return ()

    def close(self) -> None:
        """Wake all workers (of a wakeable connection) and, once they are gone, close the fd."""
        if self._closed:
            return
        self._closed = True
        if self._wake_fd is not None:
            os.eventfd_write(self._wake_fd, 1)

    def dispose(self) -> None:
        """Close the fds; only when no worker reads any more. Notifications fail with EBADF from then on."""
        fd, self.fd = self.fd, -1
        os.close(fd)
        if self._wake_fd is not None:
            os.close(self._wake_fd)
