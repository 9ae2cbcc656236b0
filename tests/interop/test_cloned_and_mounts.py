"""Mounts beside each other, on each other and at the end of their process; invalidation from inside of requests.

Several independent mounts, allow_root, signals and killed servers are in test_mount_real.py and tests/cli.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from transfuse.filesystems.hostdir import HostDirectory
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.server import mount

pytestmark = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse"), pytest.mark.timeout(60)]

LIMIT_S = 30
ROUNDS = 200
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_NODUMP_FL = 0x40
SERVE = """
import sys
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.server import mount
mounted = mount(MemoryFilesystem(), sys.argv[1])
open(sys.argv[1] + "/file", "w").close()
"""


def mounted_at(place: Path) -> bool:
    with open("/proc/self/mountinfo") as table:
        return any(line.split()[4] == str(place) for line in table)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mount").mkdir()
    return tmp_path / "mount"


@pytest.mark.parametrize(
    ("last", "status"), [("", 0), ("sys.exit(3)", 3), ("raise SystemError", 1)], ids=["end", "exit", "exception"]
)
def test_interpreter_that_exits_leaves_no_mount(place: Path, last: str, status: int) -> None:
    done = subprocess.run([sys.executable, "-c", SERVE + last, place], timeout=LIMIT_S, stderr=subprocess.DEVNULL)
    left = mounted_at(place)
    if left:
        subprocess.run(["umount", "-l", place], check=True, timeout=LIMIT_S)
    assert (done.returncode, left) == (status, False)


def test_mount_serves_what_another_mount_of_its_process_holds(tmp_path: Path, place: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    with mount(MemoryFilesystem(), below):
        (below / "file").write_bytes(b"far away")
        with mount(HostDirectory(below), place):
            assert (place / "file").read_bytes() == b"far away"
            (place / "new").write_bytes(b"back")
            assert (below / "new").read_bytes() == b"back"


def flags_of(fd: int) -> int:
    found: int = struct.unpack_from("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))[0]
    return found


@pytest.mark.parametrize("kind", ["hostdir", "memory"])
def test_flags_set_from_many_threads_move_ctime_and_nothing_hangs(kind: str, tmp_path: Path, place: Path) -> None:
    """The invalidation is sent from inside the request, while others ask for, write and list the same inode."""
    (tmp_path / "source").mkdir()
    filesystem = HostDirectory(tmp_path / "source") if kind == "hostdir" else MemoryFilesystem()
    with mount(filesystem, place):
        file = place / "file"
        file.write_bytes(b"x")
        before = file.stat().st_ctime_ns

        def set_flags() -> None:
            fd = os.open(file, os.O_RDONLY)
            try:
                flags = flags_of(fd)
                for round_ in range(ROUNDS):
                    wanted = flags ^ (FS_NODUMP_FL if round_ % 2 else 0)
                    fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I4x", wanted))
            finally:
                os.close(fd)

        def write() -> None:
            for _ in range(ROUNDS):
                file.write_bytes(b"y" * 5000)

        def look() -> None:
            for _ in range(ROUNDS):
                file.stat()
                os.listdir(place)

        with ThreadPoolExecutor(6) as pool:
            for done in [pool.submit(work) for work in (set_flags, write, look) * 2]:
                done.result(LIMIT_S)
        middle = file.stat().st_ctime_ns
        assert middle > before
        fd = os.open(file, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I4x", flags_of(fd) ^ FS_NODUMP_FL))
            assert os.fstat(fd).st_ctime_ns > middle
        finally:
            os.close(fd)


def test_passthrough_write_of_a_user_clears_bits_set_while_the_file_was_open(tmp_path: Path, place: Path) -> None:
    """The kernel writes with the rights the backing file was registered with: the user's."""
    (tmp_path / "source").mkdir()
    with mount(HostDirectory(tmp_path / "source"), place, ["allow_other", "suid"]) as mounted:
        assert mounted.connection.features.passthrough
        os.chmod(place, 0o777)
        # The way to the mount, and to the interpreter, may be closed to others; so it becomes a user in the mount.
        child = (
            "import os, sys; os.setgroups([]); os.setgid(54331); os.setuid(54321); os.umask(0); "
            "fd = os.open('file', os.O_RDWR | os.O_CREAT, 0o755); os.fchmod(fd, 0o6755); "
            "os.write(fd, b'x'); sys.exit(os.fstat(fd).st_mode >> 9 & 7)"
        )
        done = subprocess.run([sys.executable, "-c", child], cwd=place, timeout=LIMIT_S)
        assert done.returncode == 0
        assert stat.S_IMODE((tmp_path / "source" / "file").stat().st_mode) == 0o755
