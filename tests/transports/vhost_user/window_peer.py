"""The front-end's end of the back-end channel, as a thread with a book of what is mapped."""

from __future__ import annotations

import fcntl
import os
import socket
import threading

from transfuse.transports.vhost_user.messages import BACKEND_REQUESTS, REPLY, U64, BackendRequest, decode_request
from transfuse.transports.vhost_user.socket import MessageSocket
from transfuse.transports.vhost_user.upcalls import BackendChannel


class WindowPeer:
    """Maps and unmaps as QEMU does: never over something, only whole mappings and, if `strict`, no byte that the file
    does not have, and nothing that is open for reading only. `mapped` is (at, length) → (inode, offset, writable);
    `calls` are the requests in order."""

    def __init__(self, strict: bool = False, acknowledged: bool = True) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.channel = BackendChannel(MessageSocket(ours), acknowledged)
        self.sock = MessageSocket(theirs)
        self.strict = strict
        self.mapped: dict[tuple[int, int], tuple[int, int, bool]] = {}
        self.calls: list[tuple[str, int, int]] = []
        self.answers = threading.Event()
        """Cleared: requests are not answered."""
        self.answers.set()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (message := self.sock.receive()) is not None:
            row = BACKEND_REQUESTS[message.request]
            body = decode_request(row, message.payload, len(message.fds))
            failed = self._do(BackendRequest(message.request), body, message.fds)
            message.fds.close()
            self.answers.wait(20)
            if message.need_reply:
                try:
                    self.sock.send(message.request, U64(value=int(failed)).encode(), flags=REPLY)
                except ConnectionError:
                    return

    def _do(self, request: BackendRequest, body, fds) -> bool:
        if request == BackendRequest.CONFIG_CHANGE_MSG:
            return False
        self.calls.append((request.name, body.shm_offset, body.length))
        key = (body.shm_offset, body.length)
        if request == BackendRequest.SHMEM_UNMAP:
            return self.mapped.pop(key, None) is None
        fd = fds.take()
        try:
            status = os.fstat(fd)
            reading = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        finally:
            os.close(fd)
        end = body.shm_offset + body.length
        if any(at < end and body.shm_offset < at + length for at, length in self.mapped):
            return True
        if self.strict and (reading or body.fd_offset + body.length > status.st_size):
            return True
        self.mapped[key] = (status.st_ino, body.fd_offset, bool(body.flags))
        return False

    def close(self) -> None:
        self.answers.set()
        self.channel.close()
        self.sock.close()
        self.thread.join(10)
