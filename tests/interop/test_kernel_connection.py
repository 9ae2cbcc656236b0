"""The life of a kernel's connection: INIT, failures, who the caller is, and the device itself."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interop.counting import Counting, child
from interop.kernel import LONG, later, mounted
from transfuse.fs.request import Request
from transfuse.fs.values import FileRange
from transfuse.server import mount
from transfuse.transports.dev_fuse import DevFuse
from transfuse.wire import flags as f

pytestmark = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse"), pytest.mark.timeout(60)]

# -- INIT


class Refusing(Counting):
    def mounted(self, connection: Any) -> None:
        raise PermissionError(errno.EACCES, "not today")


def test_mount_fails_at_once_when_the_filesystem_refuses(place: Path) -> None:
    bugs: list[BaseException] = []
    before = time.monotonic()
    with pytest.raises(OSError):
        mount(Refusing(), place, on_bug=lambda req, error: bugs.append(error))
    assert time.monotonic() - before < 10
    assert not os.path.ismount(place)
    assert [type(bug) for bug in bugs] == [PermissionError]


def test_request_timeout_is_negotiated(place: Path) -> None:
    with mounted(Counting(request_timeout_s=60), place) as made:
        if made.connection.minor < 43:
            pytest.skip(f"the kernel speaks 7.{made.connection.minor}; REQUEST_TIMEOUT is 7.43")
        assert made.connection.has(f.FUSE_REQUEST_TIMEOUT)
        assert made.connection.features.request_timeout_s == 60
        (place / "file").write_bytes(b"x")


@pytest.mark.parametrize("options", [(), ("default_permissions",)])
def test_idmap_is_agreed_only_where_the_kernel_takes_it(place: Path, options: tuple[str, ...]) -> None:
    with mounted(Counting(allow_idmap=True), place, *options) as made:
        assert made.connection.has(f.FUSE_ALLOW_IDMAP) is bool(options)
        (place / "file").write_bytes(b"x")  # a bad INIT would be ECONNREFUSED here


def test_every_wish_at_once_still_mounts(place: Path) -> None:
    wishes = (
        "writeback_cache passthrough posix_acl dont_mask atomic_o_trunc auto_inval_data explicit_inval_data "
        "cache_symlinks no_opendir parallel_dirops handle_killpriv_v2 export_support direct_io_allow_mmap "
        "submounts allow_idmap supplementary_groups async_read async_dio"
    )
    with mounted(Counting(readdirplus=True, **dict.fromkeys(wishes.split(), True)), place) as made:
        (place / "file").write_bytes(b"data")
        os.symlink("file", place / "link")
        assert (place / "link").read_bytes() == b"data"
        assert sorted(os.listdir(place)) == ["file", "link"]
        assert made.connection.features.writeback_cache


# -- failures


def test_exception_of_a_filesystem_is_eio_and_the_mount_lives_on(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    fs = Counting()

    def fail(inner: Any, req: Request, *args: Any) -> Any:
        raise ZeroDivisionError("a bug")

    with mounted(fs, place), caplog.at_level(logging.ERROR):
        (place / "file").write_bytes(b"data")
        for error in (ZeroDivisionError("a bug"), SystemExit(3), KeyError("x")):

            def fail(inner: Any, req: Request, *args: Any, error: BaseException = error) -> Any:
                raise error

            fs.answer["statfs"] = fail
            with pytest.raises(OSError) as caught:
                os.statvfs(place)
            assert caught.value.errno == errno.EIO
        assert (place / "file").read_bytes() == b"data"
    assert caplog.text.count("Traceback") >= 2
    assert "a bug" in caplog.text


def test_answer_of_the_wrong_kind_is_eio_and_the_mount_lives_on(place: Path) -> None:
    fs = Counting()
    bugs: list[BaseException] = []
    with mounted(fs, place, on_bug=lambda req, error: bugs.append(error)):
        (place / "file").write_bytes(b"data")
        for answer in (None, "text", b"x" * (1 << 21), FileRange(-1, 0, 1), FileRange(3, 1 << 70, 1)):
            fs.answer["read"] = lambda inner, req, *args, answer=answer: answer
            with (place / "file").open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                with pytest.raises(OSError) as caught:
                    file.read(4)
            assert caught.value.errno == errno.EIO
        del fs.answer["read"]
        assert (place / "file").read_bytes() == b"data"
    assert len(bugs) >= 5


SERVE = """
import sys, threading
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.server import mount
made = mount(MemoryFilesystem(), sys.argv[1])
print("mounted", flush=True)
made.wait()
"""


def test_killed_server_leaves_a_mount_that_says_so(place: Path) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(place)], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"mounted\n"
        (place / "file").write_bytes(b"data")
        server.kill()
        server.communicate(timeout=10)
        with pytest.raises(OSError) as caught:
            os.listdir(place)
        assert caught.value.errno == errno.ENOTCONN
    finally:
        server.kill()
        server.wait(10)
        subprocess.run(["umount", "-l", place], check=False, timeout=10)


def test_unmount_ends_a_server_that_waits(place: Path) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(place)], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"mounted\n"
        subprocess.run(["umount", place], check=True, timeout=10)
        server.communicate(timeout=10)
        assert server.returncode == 0
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait(10)


# -- the caller


@pytest.fixture
def public_place() -> Iterator[Path]:
    """A mount point that other users can reach."""
    base = Path(tempfile.mkdtemp(prefix="transfuse-", dir="/tmp"))
    base.chmod(0o755)
    (base / "mnt").mkdir()
    yield base / "mnt"
    (base / "mnt").rmdir()
    base.rmdir()


AS_SOMEBODY = """
import os, sys
os.setgroups([3001, 3002]); os.setgid(3000); os.setuid(3000)
os.mkdir(sys.argv[1])
os.stat(sys.argv[1])
"""


def test_supplementary_groups_reach_the_filesystem(public_place: Path) -> None:
    fs = Counting(attr_timeout_s=0.0)
    groups: dict[str, tuple[int, ...]] = {}

    def keep(inner: Any, req: Request, *args: Any) -> Any:
        groups["MKDIR"] = req.groups
        return inner(req, *args)

    fs.answer["mkdir"] = keep
    with mounted(fs, public_place, "allow_other") as made:
        os.chmod(public_place, 0o2777)
        os.chown(public_place, 0, 3002)
        assert made.connection.has(f.FUSE_CREATE_SUPP_GROUP)
        child(AS_SOMEBODY, public_place / "dir")
        req = fs.requests["MKDIR"]
        assert (req.uid, req.gid) == (3000, 3000)
        # With CREATE_SUPP_GROUP the kernel sends the one group that the parent directory has.
        assert groups["MKDIR"] == (3002,)


def test_supplementary_groups_are_read_from_proc_when_not_sent(public_place: Path) -> None:
    fs = Counting(supplementary_groups=False)
    groups: dict[str, tuple[int, ...]] = {}

    def keep(inner: Any, req: Request, *args: Any) -> Any:
        groups["MKDIR"] = req.groups
        return inner(req, *args)

    fs.answer["mkdir"] = keep
    with mounted(fs, public_place, "allow_other"):
        os.chmod(public_place, 0o777)
        child(AS_SOMEBODY, public_place / "dir")
    assert sorted(groups["MKDIR"]) == [3001, 3002]


# -- coroutines


def test_coroutines_serve_a_kernel_mount(place: Path) -> None:
    import asyncio

    fs = Counting(**LONG)

    async def statfs(inner: Any, req: Request, *args: Any) -> Any:
        await asyncio.sleep(0.01)
        return inner(req, *args)

    fs.answer["statfs"] = statfs
    with mounted(fs, place) as made:
        waiting = [later(lambda: os.statvfs(place).f_namemax) for _ in range(8)]
        for thread, result in waiting:
            thread.join(10)
            assert result == [255]
        assert made.server.session.inflight == {}


# -- the device itself


def test_clone_before_the_mount_is_an_error() -> None:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    transport = DevFuse(fd)
    try:
        transport.open_channel()
        with pytest.raises(OSError):
            transport.open_channel()
    finally:
        transport.dispose()
