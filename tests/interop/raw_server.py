"""The smallest thing that keeps a FUSE mount alive: an empty root that answers stat, statfs and ls; ENOSYS to the rest.

Made of literal struct formats (linux/fuse.h, little use of anything else) so that tests of mounting do not depend on
transfuse's own server. As a program, `raw_server.py DIR OPTIONS METHOD [sync]` mounts, says so in one line of JSON,
serves until its standard input ends, unmounts, and says that too.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import struct
import sys
import threading

IN_HEADER, OUT_HEADER = struct.Struct("=IIQQIIIHH"), struct.Struct("=IiQ")
GETATTR, STATFS, INIT, OPENDIR, READDIR, RELEASEDIR = 3, 17, 26, 27, 28, 29
NO_REPLY = {2, 36, 42}  # FORGET, INTERRUPT, BATCH_FORGET
SYNC_INIT = 0xE503  # _IO(229, 3)
BUFFER = 1 << 17


def attr_out(mode: int) -> bytes:
    now = [0] * 3 + [0] * 3
    return struct.pack("=QII6Q10I", 0, 0, 0, 1, 0, 0, *now[:3], *now[3:], mode, 2, os.getuid(), os.getgid(), 0, 4096, 0)


def serve(
    fd: int, mode: int = stat.S_IFDIR | 0o755, init_error: int = 0, answered: threading.Event | None = None
) -> None:
    """Until the mount ends (ENODEV), or INIT was refused."""
    while True:
        try:
            request = os.read(fd, BUFFER)
        except OSError as e:
            if e.errno == errno.ENODEV:
                return
            if e.errno in {errno.ENOENT, errno.EINTR, errno.ECONNABORTED}:
                continue
            raise
        _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
        code, body = errno.ENOSYS, b""
        if opcode == INIT:
            major, minor = struct.unpack_from("=II", request, IN_HEADER.size)
            code, body = init_error, struct.pack("=4I2H2I2H2IH11H", major, minor, 4096, 0, 12, 9, 4096, 1, *[0] * 16)
        elif opcode == GETATTR:
            code, body = 0, attr_out(mode)
        elif opcode == STATFS:
            code, body = 0, struct.pack("=5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0)
        elif opcode in {OPENDIR, READDIR, RELEASEDIR}:
            code, body = 0, bytes(16) if opcode == OPENDIR else b""
        elif opcode in NO_REPLY:
            continue
        body = b"" if code else body
        try:
            os.write(fd, OUT_HEADER.pack(OUT_HEADER.size + len(body), -code, unique) + body)
        except OSError as e:
            if e.errno not in {errno.ENOENT, errno.ENODEV}:
                raise
        if opcode == INIT and answered is not None:
            answered.set()
        if opcode == INIT and init_error:
            return


def start(fd: int, **how: object) -> threading.Thread:
    thread = threading.Thread(target=serve, args=(fd,), kwargs=how, name=f"raw server {fd}", daemon=True)
    thread.start()
    return thread


def main(mountpoint: str, option_string: str, method: str, sync: str = "") -> int:
    from transfuse.transports import mount

    def before_mount(fd: int) -> None:
        if sync:
            fcntl.ioctl(fd, SYNC_INIT)
            start(fd)

    try:
        options = mount.parse_options([option_string])
        mounted = mount.open_and_attach(mountpoint, options, method, before_mount)  # type: ignore[arg-type]
    except mount.MountError as e:
        print(
            json.dumps({"error": str(e), "step": e.step, "errno": e.errno, "text": e.text, "hint": e.hint}), flush=True
        )
        return 32
    if not sync:
        start(mounted.device_fd)
    row = mounted.row
    about = {
        "pid": os.getpid(), "method": mounted.method, "dev": mounted.dev, "st_dev": os.stat(mountpoint).st_dev,
        "mountpoint": os.fsdecode(mounted.mountpoint), "mode": os.stat(mountpoint).st_mode,
        "fstype": row.fstype.decode(), "source": row.source.decode(), "options": row.options.decode(),
        "super_options": row.super_options.decode(), "keeper": getattr(mounted.keeper, "pid", None),
    }  # fmt: skip
    print(json.dumps(about), flush=True)
    sys.stdin.read()
    mounted.umount()
    print(json.dumps({"unmounted": not mounted.is_mounted()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
