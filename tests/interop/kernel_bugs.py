"""Programs that once broke kernels, run harmlessly: `kernel_bugs.py aio|aio-umount|remount DIR`.

aio: IOCB_CMD_POLL on a freshly mounted /dev/fuse descriptor (a lock taken with interrupts on, Linux 4.19 to 5.3).
remount: mount(2), then MS_REMOUNT with the full option string (NULL pointer in fuse_parse_param, Linux 5.3 -next).
They run in a process of their own, so that a hang is the test's timeout and not the end of the test run.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import sys
import threading

from raw_server import start  # beside this file

from transfuse.transports.mount import open_and_attach, parse_options, syscalls

libc = ctypes.CDLL(None, use_errno=True)
# io_setup, io_destroy, io_getevents, io_submit
AIO_CALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2), "riscv64": (0, 1, 4, 2)}
IOCB_CMD_POLL = 5
WAIT_S = 10


def call(number: int, *args: object) -> int:
    result = int(libc.syscall(ctypes.c_long(number), *args))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Poller:
    """One aio context; `submit` asks for one poll, `event` waits for its answer (a poll mask)."""

    def __init__(self) -> None:
        self.setup, self.destroy, self.getevents, self.submit_nr = AIO_CALLS[os.uname().machine]
        self.context = ctypes.c_ulong(0)
        call(self.setup, ctypes.c_uint(1), ctypes.byref(self.context))

    def submit(self, fd: int) -> None:
        key_and_flags = b"\0" * 8
        self.iocb = ctypes.create_string_buffer(
            struct.pack("=Q8sHhIQQqQII", 7, key_and_flags, IOCB_CMD_POLL, 0, fd, select.POLLIN, 0, 0, 0, 0, 0), 64
        )
        pointer = ctypes.c_void_p(ctypes.addressof(self.iocb))
        assert call(self.submit_nr, self.context, ctypes.c_long(1), ctypes.byref(pointer)) == 1

    def event(self) -> int | None:
        out = ctypes.create_string_buffer(32)
        timeout = struct.pack("=qq", WAIT_S, 0)
        got = call(self.getevents, self.context, ctypes.c_long(1), ctypes.c_long(1), out, ctypes.c_char_p(timeout))
        if not got:
            return None
        data, _, result, _ = struct.unpack("=QQqq", out.raw)
        assert data == 7
        return int(result)

    def end(self) -> None:
        call(self.destroy, self.context)


def aio(folder: str) -> None:
    mounted = open_and_attach(folder, parse_options([]), "mount")
    poller = Poller()
    poller.submit(mounted.device_fd)  # INIT is waiting: readable at once
    assert poller.event() == select.POLLIN, "INIT must make the device readable"
    server = start(mounted.device_fd)
    os.statvfs(folder)
    mounted.umount()
    server.join(WAIT_S)
    poller.end()


def aio_umount(folder: str) -> None:
    mounted = open_and_attach(folder, parse_options([]), "mount")
    poller = Poller()
    os.read(mounted.device_fd, 1 << 17)  # INIT, never answered
    poller.submit(mounted.device_fd)  # nothing to read: stays queued
    threading.Timer(0.2, mounted.umount).start()
    mask = poller.event()
    assert mask is not None and mask & select.POLLERR, f"the end of the mount must wake the poll, got {mask}"
    poller.end()


def remount(folder: str) -> None:
    fd = os.open("/dev/fuse", os.O_RDWR)
    opts = f"fd={fd},rootmode=040000,user_id=0,group_id=0".encode()
    target = os.fsencode(folder)
    syscalls.mount(b"foo", target, b"fuse.foo", 0, opts)
    syscalls.mount(b"foo", target, b"fuse.foo", 32, opts)  # MS_REMOUNT
    syscalls.umount2(target, 0)
    os.close(fd)


if __name__ == "__main__":
    {"aio": aio, "aio-umount": aio_umount, "remount": remount}[sys.argv[1]](sys.argv[2])
    print("ok")
