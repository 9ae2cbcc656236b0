"""The protocol against the kernel that defines it: each feature of a connection exercised on a real mount."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from interop.counting import Counting, child
from session.peers import eventually
from transfuse.fs.request import Request
from transfuse.fs.values import Entry, FileRange, Opened
from transfuse.server import Mount, mount
from transfuse.session.server import ServerSession
from transfuse.transports.dev_fuse import DevFuse, DevFuseChannel
from transfuse.wire import flags as f
from transfuse.wire.opcodes import opcode_name

pytestmark = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse"), pytest.mark.timeout(60)]

LONG = {"entry_timeout_s": 3600.0, "attr_timeout_s": 3600.0}
CONNECTIONS = Path("/sys/fs/fuse/connections")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


@contextmanager
def mounted(fs: Any, place: Path, *options: str, **more: Any) -> Iterator[Mount]:
    """A mount that is gone afterwards, come what may."""
    made = mount(fs, place, options, **more)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts requests by opcode as they arrive, those without a method included."""
    counted: Counter[str] = Counter()
    original = ServerSession.handle

    def handle(self: ServerSession, buffer: Any, start: int, end: int, channel: Any) -> Any:
        counted[opcode_name(int.from_bytes(buffer[start + 4 : start + 8], sys.byteorder))] += 1
        return original(self, buffer, start, end, channel)

    monkeypatch.setattr(ServerSession, "handle", handle)
    return counted


@pytest.fixture
def control() -> Path:
    """The control filesystem, mounted if it is not."""
    if not os.path.ismount(CONNECTIONS):
        subprocess.run(["mount", "-t", "fusectl", "fusectl", CONNECTIONS], check=True, timeout=10)
    return CONNECTIONS


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("2")


def later(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run `call` on a thread; its result or exception is in the list once the thread has ended."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(call())
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result


# -- lookups and forgets


def test_every_lookup_is_forgotten(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place):
        for number in range(50):
            (place / f"file{number}").write_bytes(b"x")
        (place / "dir").mkdir()
        os.link(place / "file0", place / "dir" / "other")
        os.listdir(place / "dir")
        assert sum(fs.lookups.values()) >= 51

        def all_forgotten() -> bool:
            drop_caches()
            return not any(fs.lookups.values())

        eventually(all_forgotten)


def test_forgets_come_in_batches(place: Path, wire: Counter[str]) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place):
        for number in range(200):
            (place / f"file{number}").write_bytes(b"x")

        def all_forgotten() -> bool:
            drop_caches()
            return not any(fs.lookups.values())

        eventually(all_forgotten)
        assert wire["BATCH_FORGET"] >= 1


def test_open_file_is_not_forgotten(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place):
        with (place / "file").open("wb") as held:
            nodeid = os.fstat(held.fileno()).st_ino
            drop_caches()
            assert fs.lookups[nodeid] == 1
            os.unlink(place / "file")
            held.write(b"still here")
            held.flush()
            assert os.fstat(held.fileno()).st_size == 10
        eventually(lambda: fs.lookups[nodeid] == 0)


# -- interrupts

READ_WITH_ALARM = """
import os, signal, sys
def alarm(*_): raise TimeoutError
signal.signal(signal.SIGALRM, alarm)
fd = os.open(sys.argv[1], os.O_RDONLY)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    os.read(fd, 100)
except TimeoutError:
    print("interrupted")
"""


def test_slow_read_is_interrupted_by_a_signal(place: Path, wire: Counter[str]) -> None:
    fs = Counting(**LONG)
    ended: list[str] = []

    def slow(inner: Any, req: Request, *args: Any) -> bytes:
        try:
            req.wait_interrupted(20)
        except InterruptedError:
            ended.append("EINTR")
            raise
        return b""

    fs.answer["open"] = lambda inner, req, nodeid, flags: Opened(inner(req, nodeid, flags).fh, direct_io=True)
    with mounted(fs, place):
        (place / "file").write_bytes(b"x" * 100)
        fs.answer["read"] = slow
        before = time.monotonic()
        assert child(READ_WITH_ALARM, place / "file") == "interrupted"
        assert time.monotonic() - before < 10
        assert ended == ["EINTR"]
        assert wire["INTERRUPT"] >= 1
        assert fs.requests["READ"].interrupted


def test_signals_at_any_moment_never_lose_an_interrupt(place: Path) -> None:
    """INTERRUPT may overtake its request on another worker's device; a lost one would hang the reader."""
    code = READ_WITH_ALARM.replace('0.2', 'float(sys.argv[2])')
    fs = Counting(**LONG)
    fs.answer["open"] = lambda inner, req, nodeid, flags: Opened(inner(req, nodeid, flags).fh, direct_io=True)

    def slow(inner: Any, req: Request, *args: Any) -> bytes:
        req.wait_interrupted(20)
        return b""

    with mounted(fs, place):
        (place / "file").write_bytes(b"x" * 100)
        fs.answer["read"] = slow
        for turn in range(12):
            assert child(code, place / "file", str(0.00005 + turn * 0.0002), limit_s=10) == "interrupted"


LOCK_WITH_ALARM = """
import fcntl, os, signal, sys
def alarm(*_): raise TimeoutError
signal.signal(signal.SIGALRM, alarm)
fd = os.open(sys.argv[1], os.O_RDWR)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    fcntl.lockf(fd, fcntl.LOCK_EX)
except TimeoutError:
    print("interrupted")
"""
HOLD_LOCK = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_waiting_lock_is_interrupted_by_a_signal_and_given_when_free(place: Path, wire: Counter[str]) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        assert made.connection.has(f.FUSE_POSIX_LOCKS)
        (place / "file").write_bytes(b"x")
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD_LOCK, str(place / "file")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            assert child(LOCK_WITH_ALARM, place / "file") == "interrupted"
            assert wire["SETLKW"] == 2
            assert wire["INTERRUPT"] >= 1
            waiting, result = later(lambda: lock_once(place / "file"))
            eventually(lambda: wire["SETLKW"] == 3)
        finally:
            holder.communicate(timeout=10)
        waiting.join(10)
        assert result == [None]
        eventually(lambda: made.server.session.inflight == {})


def lock_once(path: Path) -> None:
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)


# -- abort


def test_abort_through_the_control_filesystem(place: Path, control: Path) -> None:
    fs = Counting()
    entered, go = threading.Event(), threading.Event()

    def hold(inner: Any, req: Request, *args: Any) -> Any:
        entered.set()
        go.wait(10)
        return inner(req, *args)

    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"x")
        fs.answer["statfs"] = hold
        waiting, result = later(lambda: os.statvfs(place))
        assert entered.wait(5)
        (control / str(made.mounted.connection) / "abort").write_text("1")
        waiting.join(5)
        go.set()
        assert isinstance(result[0], OSError)
        assert result[0].errno == errno.ECONNABORTED
        with pytest.raises(OSError) as caught:
            os.stat(place / "file")
        assert caught.value.errno == errno.ENOTCONN
        assert made.wait(10)
        assert fs.gone.wait(5)


def test_reply_after_an_abort_is_taken_back(place: Path, control: Path) -> None:
    fs = Counting()
    entered, go, released = threading.Event(), threading.Event(), threading.Event()

    def hold(inner: Any, req: Request, *args: Any) -> Any:
        entered.set()
        go.wait(10)
        return inner(req, *args)

    def release(inner: Any, req: Request, *args: Any) -> Any:
        released.set()
        return inner(req, *args)

    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"x")
        fs.answer.update(open=hold, release=release)
        waiting, result = later(lambda: (place / "file").open("rb"))
        assert entered.wait(5)
        (control / str(made.mounted.connection) / "abort").write_text("1")
        waiting.join(5)
        assert isinstance(result[0], OSError)
        go.set()
        assert released.wait(5)


# -- background limits


def test_background_limits_are_those_of_init_and_can_be_changed(place: Path, control: Path) -> None:
    with mounted(Counting(max_background=33, congestion_threshold=22), place) as made:
        folder = control / str(made.mounted.connection)
        assert (folder / "max_background").read_text() == "33\n"
        assert (folder / "congestion_threshold").read_text() == "22\n"
        assert (folder / "waiting").read_text() == "0\n"
        (folder / "max_background").write_text("5")
        (folder / "congestion_threshold").write_text("4")
        assert (folder / "max_background").read_text() == "5\n"
        assert (folder / "congestion_threshold").read_text() == "4\n"
        (place / "file").write_bytes(bytes(1 << 20))
        drop_caches()
        assert len((place / "file").read_bytes()) == 1 << 20


# -- several devices


def test_slow_requests_are_served_by_several_devices(place: Path) -> None:
    fs = Counting(attr_timeout_s=0.0)

    def slow(inner: Any, req: Request, *args: Any) -> Any:
        time.sleep(0.1)
        return inner(req, *args)

    with mounted(fs, place) as made:
        for number in range(4):
            (place / f"file{number}").write_bytes(b"x")
        fs.threads.clear()
        fs.answer["getattr"] = slow
        for _ in range(3):
            waiting = [later(lambda number=number: os.stat(place / f"file{number}").st_size) for number in range(4)]
            for thread, _ in waiting:
                thread.join(20)
            assert [result for _, result in waiting] == [[1]] * 4
        workers = made.server.pool.workers
        assert len(fs.threads) >= 3
        devices = {worker.channel.fd for worker in workers if isinstance(worker.channel, DevFuseChannel)}
        assert len(devices) == len(workers) >= 3
        assert {os.readlink(f"/proc/self/fd/{fd}") for fd in devices} == {"/dev/fuse"}


def test_one_worker_is_enough_for_everything_but_waiting(place: Path) -> None:
    fs = Counting()
    with mounted(fs, place, workers=1) as made:
        (place / "file").write_bytes(b"data")
        assert (place / "file").read_bytes() == b"data"
        assert len(made.server.pool.workers) == 1


# -- notifications


def test_inval_inode_drops_cached_data(place: Path) -> None:
    fs = Counting(auto_inval_data=False, **LONG)
    text = [b"old!"]
    fs.answer["open"] = lambda inner, req, nodeid, flags: Opened(inner(req, nodeid, flags).fh, keep_cache=True)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"....")
        nodeid = os.stat(place / "file").st_ino
        fs.answer["read"] = lambda inner, req, nodeid, fh, size, offset: text[0][offset : offset + size]
        made.notify.inval_inode(nodeid)
        assert (place / "file").read_bytes() == b"old!"
        text[0] = b"new!"
        assert (place / "file").read_bytes() == b"old!"
        assert made.notify.inval_inode(nodeid) is True
        assert (place / "file").read_bytes() == b"new!"


def test_inval_inode_with_negative_offset_drops_attributes_only(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"....")
        (place / "file").read_bytes()
        nodeid = os.stat(place / "file").st_ino
        fs.seen.clear()
        os.stat(place / "file")
        assert fs.count("GETATTR") == 0
        made.notify.inval_inode(nodeid, -1)
        os.stat(place / "file")
        assert fs.count("GETATTR") == 1


def test_notification_of_an_unknown_node_is_false(place: Path) -> None:
    with mounted(Counting(), place) as made:
        assert made.notify.inval_inode(999_999) is False
        assert made.notify.inval_entry(999_999, b"x") is False
        assert made.notify.inval_entry(1, b"never-seen") is False
        assert made.notify.delete(1, 5, b"never-seen") is False
        with pytest.raises(FileNotFoundError):
            made.notify.retrieve(999_999, 0, 10)


@pytest.mark.parametrize("expire_only", [False, True])
def test_inval_entry_makes_the_kernel_look_again(place: Path, expire_only: bool) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"x")
        os.stat(place / "file")
        fs.seen.clear()
        os.stat(place / "file")
        assert fs.count("LOOKUP") == 0
        assert made.notify.inval_entry(1, b"file", expire_only=expire_only) is True
        os.stat(place / "file")
        assert fs.count("LOOKUP") == 1


def test_delete_of_a_directory_in_use_is_enotempty(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        (place / "dir").mkdir()
        nodeid = os.stat(place / "dir").st_ino
        with (place / "dir" / "file").open("wb"):
            with pytest.raises(OSError) as caught:
                made.notify.delete(1, nodeid, b"dir")
            assert caught.value.errno == errno.ENOTEMPTY


@pytest.mark.parametrize("right", [True, False], ids=["the child", "another child"])
def test_delete_drops_a_name(place: Path, right: bool) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"x")
        nodeid = os.stat(place / "file").st_ino
        assert made.notify.delete(1, nodeid if right else nodeid + 1000, b"file") is right
        fs.seen.clear()
        os.stat(place / "file")  # the filesystem still has it, the kernel had to ask
        assert fs.count("LOOKUP") == 1


def test_stored_data_is_read_without_a_request(place: Path) -> None:
    fs = Counting(auto_inval_data=False, **LONG)
    fs.answer["open"] = lambda inner, req, nodeid, flags: Opened(inner(req, nodeid, flags).fh, keep_cache=True)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(bytes(8192))
        nodeid = os.stat(place / "file").st_ino
        assert made.notify.store(nodeid, 0, b"s" * 8192) is True
        fs.seen.clear()
        assert (place / "file").read_bytes() == b"s" * 8192
        assert fs.count("READ") == 0


def test_stored_data_beyond_the_known_end_is_read_without_a_request(place: Path) -> None:
    fs = Counting(auto_inval_data=False, **LONG)
    fs.answer["open"] = lambda inner, req, nodeid, flags: Opened(inner(req, nodeid, flags).fh, keep_cache=True)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"x")
        nodeid = os.stat(place / "file").st_ino
        inner: Any = fs.inner  # the file grows behind the kernel's back
        fh = inner.open(Request(), nodeid, os.O_RDWR).fh
        inner.write(Request(), nodeid, fh, b"y" * 99, 1, 0)
        made.notify.store(nodeid, 0, b"x" + b"y" * 99)
        fs.seen.clear()
        assert (place / "file").read_bytes() == b"x" + b"y" * 99
        assert fs.count("READ") == 0
        inner.release(Request(), nodeid, fh, 0, 0, False)


def test_retrieve_gives_what_is_cached(place: Path) -> None:
    fs = Counting(auto_inval_data=False, **LONG)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"0123456789" * 1000)
        (place / "file").read_bytes()
        nodeid = os.stat(place / "file").st_ino
        assert made.notify.retrieve(nodeid, 5, 10).result(5) == b"5678901234"
        made.notify.inval_inode(nodeid)
        assert made.notify.retrieve(nodeid, 5, 10).result(5) == b""


def test_largest_retrieve_fits_a_request(place: Path) -> None:
    fs = Counting(auto_inval_data=False, **LONG)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"r" * (2 << 20))
        (place / "file").read_bytes()
        nodeid = os.stat(place / "file").st_ino
        assert made.notify.retrieve(nodeid, 0, 2 << 20).result(5) == b"r" * (1 << 20)


def test_poll_is_woken(place: Path) -> None:
    fs = Counting(**LONG)
    ready: list[int] = [0]
    handles: list[int | None] = []

    def poll(inner: Any, req: Request, nodeid: int, fh: int, events: int, handle: int | None) -> int:
        handles.append(handle)
        return ready[0] & events

    fs.answer["poll"] = poll
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"x")
        with (place / "file").open("rb") as file:
            poller = select.poll()
            poller.register(file, select.POLLIN)
            assert poller.poll(0) == []
            waiting, result = later(lambda: poller.poll(10_000))
            eventually(lambda: any(handles))
            ready[0] = select.POLLIN
            assert made.notify.poll(next(handle for handle in handles if handle)) is True
            waiting.join(5)
            assert result == [[(file.fileno(), select.POLLIN)]]


def test_resent_request_is_answered_once(place: Path) -> None:
    fs = Counting()
    uniques: list[int] = []
    first, go = threading.Event(), threading.Event()

    def statfs(inner: Any, req: Request, *args: Any) -> Any:
        uniques.append(req.unique)
        if not req.unique & f.FUSE_UNIQUE_RESEND:
            first.set()
            go.wait(10)
        return inner(req, *args)

    fs.answer["statfs"] = statfs
    with mounted(fs, place) as made:
        assert made.connection.has(f.FUSE_HAS_RESEND)
        waiting, result = later(lambda: os.statvfs(place).f_namemax)
        assert first.wait(5)
        made.notify.resend()
        waiting.join(5)
        assert result == [255]
        go.set()
        assert uniques[1] == uniques[0] | f.FUSE_UNIQUE_RESEND
        eventually(lambda: made.server.session.inflight == {})
        assert os.statvfs(place).f_namemax == 255


def test_inc_epoch_makes_every_name_stale(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        if made.connection.minor < 44:
            pytest.skip(f"the kernel speaks 7.{made.connection.minor}; INC_EPOCH is 7.44")
        for name in "ab":
            (place / name).write_bytes(b"x")
        fs.seen.clear()
        made.notify.inc_epoch()
        for name in "ab":
            os.stat(place / name)
        assert fs.count("LOOKUP") == 2


def test_prune_has_unused_nodes_forgotten(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        if made.connection.minor < 45:
            pytest.skip(f"the kernel speaks 7.{made.connection.minor}; PRUNE is 7.45")
        nodes = []
        for name in "ab":
            (place / name).write_bytes(b"x")
            nodes.append(os.stat(place / name).st_ino)
        made.notify.prune([nodes[0], 999_999])
        eventually(lambda: fs.lookups[nodes[0]] == 0)
        assert fs.lookups[nodes[1]] > 0


def test_notification_after_the_end_is_an_error_and_goes_nowhere(place: Path) -> None:
    made = mount(Counting(), place)
    notifier = made.notify
    made.close()
    with pytest.raises(OSError) as caught:
        notifier.inval_inode(1)
    assert caught.value.errno == errno.EBADF


# -- opens


def test_no_open_spares_open_and_release(place: Path, wire: Counter[str]) -> None:
    fs = Counting(no_open=True, **LONG)
    # Handles are 0 then, which the memory filesystem does not know.
    fs.answer["read"] = lambda inner, req, nodeid, fh, size, offset: b"data"[offset : offset + size]
    fs.answer["flush"] = lambda inner, req, nodeid, fh, lock_owner: None
    with mounted(fs, place) as made:
        assert made.connection.features.no_open
        (place / "file").write_bytes(b"data")
        for _ in range(3):
            assert (place / "file").read_bytes() == b"data"
        assert wire["OPEN"] <= 1  # the one that was told ENOSYS
        assert wire["RELEASE"] <= 1


def test_no_opendir_spares_opendir_and_releasedir(place: Path, wire: Counter[str]) -> None:
    with mounted(Counting(no_opendir=True, **LONG), place) as made:
        assert made.connection.features.no_opendir
        for number in range(300):
            (place / f"file{number}").touch()
        for _ in range(3):
            assert len(os.listdir(place)) == 300
        assert wire["OPENDIR"] == 1
        assert wire["RELEASEDIR"] == 0


def test_open_with_atomic_truncation(place: Path, wire: Counter[str]) -> None:
    with mounted(Counting(**LONG), place):
        (place / "file").write_bytes(b"data")
        wire.clear()
        (place / "file").open("wb").close()
        assert wire["SETATTR"] == 0
        assert os.stat(place / "file").st_size == 0


# -- listings


@pytest.mark.parametrize(
    ("wish", "listing", "again"),
    [(None, "READDIRPLUS", "READDIR"), (True, "READDIRPLUS", "READDIRPLUS"), (False, "READDIR", "READDIR")],
    ids=["auto", "always", "never"],
)
def test_readdirplus(place: Path, wire: Counter[str], wish: bool | None, listing: str, again: str) -> None:
    with mounted(Counting(readdirplus=wish, **LONG), place):
        for number in range(200):
            (place / f"file{number}").touch()
        drop_caches()
        wire.clear()
        names = os.listdir(place)
        assert len(names) == 200
        assert wire[listing] >= 1
        assert wire[again] >= 1
        other = {"READDIR", "READDIRPLUS"} - {listing, again}
        assert not any(wire[name] for name in other)
        wire.clear()
        for name in names:
            os.stat(place / name)
        if wish is True:
            assert wire["LOOKUP"] == 0
        elif wish is False:
            assert wire["LOOKUP"] == 200


def test_large_directory_is_listed_whole(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        inner: Any = fs.inner
        req = Request()
        for number in range(20_000):
            inner.mknod(req, 1, b"a-name-of-some-length-%06d" % number, 0o100644, 0, 0)
        made.notify.inval_inode(1)
        names = os.listdir(place)
        assert len(names) == len(set(names)) == 20_000


# -- data


def test_requests_of_a_megabyte(place: Path) -> None:
    fs = Counting(**LONG)
    fs.answer["open"] = lambda inner, req, nodeid, flags: Opened(inner(req, nodeid, flags).fh, direct_io=True)
    data = mmap.mmap(-1, 1 << 20)  # page-aligned: else it lies on 257 pages, and a request has 256
    data[:] = os.urandom(1 << 20)
    with mounted(fs, place) as made:
        assert made.connection.max_write == 1 << 20
        (place / "file").touch()
        fd = os.open(place / "file", os.O_RDWR)
        try:
            assert os.write(fd, data) == 1 << 20
            assert len(fs.arguments["WRITE"][2]) == 1 << 20
            back = mmap.mmap(-1, 1 << 20)
            assert os.preadv(fd, [back], 0) == 1 << 20
            assert back[:] == data[:]
            assert fs.arguments["READ"][2] == 1 << 20
        finally:
            os.close(fd)


def test_file_ranges_are_fetched_by_the_transport(place: Path, tmp_path: Path) -> None:
    fs = Counting(**LONG)
    data = os.urandom(300_001)
    (tmp_path / "backing").write_bytes(data)
    backing = os.open(tmp_path / "backing", os.O_RDONLY)
    fs.answer["read"] = lambda inner, req, nodeid, fh, size, offset: FileRange(backing, offset, size)
    try:
        with mounted(fs, place):
            (place / "file").write_bytes(bytes(len(data)))
            with (place / "file").open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert (place / "file").read_bytes() == data
    finally:
        os.close(backing)


def test_file_range_that_cannot_be_read_is_its_error(place: Path) -> None:
    fs = Counting(**LONG)
    fs.answer["read"] = lambda inner, req, nodeid, fh, size, offset: FileRange(1_000_000, offset, size)
    with mounted(fs, place):
        (place / "file").write_bytes(bytes(10))
        os.truncate(place / "file", 5000)
        with (place / "file").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with pytest.raises(OSError) as caught:
                file.read()
        assert caught.value.errno == errno.EBADF or caught.value.errno == errno.EIO


def test_writeback_gathers_small_writes(place: Path) -> None:
    fs = Counting(writeback_cache=True, **LONG)
    with mounted(fs, place) as made:
        assert made.connection.features.writeback_cache
        with (place / "file").open("wb", buffering=0) as file:
            for _ in range(1000):
                file.write(b"x")
        assert fs.count("WRITE") < 10
        assert fs.arguments["WRITE"][4] & f.FUSE_WRITE_CACHE
        assert (place / "file").read_bytes() == b"x" * 1000


def test_write_through_sends_each_write(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place):
        with (place / "file").open("wb", buffering=0) as file:
            for _ in range(20):
                file.write(b"x")
        assert fs.count("WRITE") == 20


MAP_SHARED = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    with mmap.mmap(fd, 4096, mmap.MAP_SHARED) as area:
        print(area[:4].decode())
        area[:4] = b"back"
        area.flush()
except OSError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("allowed", [False, True])
def test_shared_mapping_of_a_direct_io_file(place: Path, allowed: bool) -> None:
    fs = Counting(direct_io_allow_mmap=allowed, **LONG)
    fs.answer["open"] = lambda inner, req, nodeid, flags: Opened(inner(req, nodeid, flags).fh, direct_io=True)
    with mounted(fs, place):
        (place / "file").write_bytes(b"data" + bytes(4092))
        said = child(MAP_SHARED, place / "file")
        assert said == ("data" if allowed else str(errno.ENODEV))
        assert (place / "file").read_bytes()[:4] == (b"back" if allowed else b"data")


# -- passthrough


class Passing(Counting):
    """Every file's bytes are those of one file outside; `backed` says whether the next open offers it."""

    def __init__(self, backing: int) -> None:
        super().__init__(passthrough=True, **LONG)
        self.backed = True
        self.answer["open"] = lambda inner, req, nodeid, flags: Opened(
            inner(req, nodeid, flags).fh, backing_fd=backing if self.backed else None
        )
        self.answer["read"] = lambda inner, req, nodeid, fh, size, offset: os.pread(backing, size, offset)


@pytest.fixture
def passing(place: Path, tmp_path: Path) -> Iterator[tuple[Passing, Mount]]:
    # On tmpfs or the like: /tmp may itself be stacked too deep.
    data = b"passed through" * 1000
    path = tmp_path / "backing"
    path.write_bytes(data)
    backing = os.open(path, os.O_RDWR)
    fs = Passing(backing)
    try:
        with mounted(fs, place) as made:
            if not made.connection.has(f.FUSE_PASSTHROUGH):
                pytest.skip("the kernel has no passthrough (CONFIG_FUSE_PASSTHROUGH, since 6.9)")
            (place / "file").touch()
            os.truncate(place / "file", len(data))
            yield fs, made
    finally:
        os.close(backing)


def test_passthrough_reads_and_writes_without_requests(passing: tuple[Passing, Mount], place: Path) -> None:
    fs, made = passing
    fs.seen.clear()
    with (place / "file").open("r+b", buffering=0) as file:
        assert file.read(14) == b"passed through"
        file.seek(0)
        file.write(b"PASSED")
        assert len(made.server.session.passthrough._nodes) == 1
    assert fs.count("READ") == fs.count("WRITE") == 0
    assert (place.parent / "backing").read_bytes()[:14] == b"PASSED through"
    eventually(lambda: not made.server.session.passthrough._nodes)
    assert made.server.session.passthrough.refused == 0


def test_cached_open_first_then_one_with_a_backing_file(passing: tuple[Passing, Mount], place: Path) -> None:
    fs, made = passing
    fs.backed = False
    with (place / "file").open("rb", buffering=0) as cached:
        assert cached.read(6) == b"passed"
        fs.backed = True
        with (place / "file").open("rb", buffering=0) as second:
            assert second.read(6) == b"passed"
    eventually(lambda: not made.server.session.passthrough._nodes)
    fs.seen.clear()
    with (place / "file").open("rb", buffering=0) as third:
        assert third.read(6) == b"passed"
    assert fs.count("READ") == 0


def test_backed_open_first_then_one_without(passing: tuple[Passing, Mount], place: Path) -> None:
    fs, made = passing
    with (place / "file").open("rb", buffering=0) as backed:
        fs.backed = False
        fs.seen.clear()
        with (place / "file").open("rb", buffering=0) as second:
            assert second.read(6) == b"passed"
        assert backed.read(6) == b"passed"
    assert fs.count("READ") == 0
    eventually(lambda: not made.server.session.passthrough._nodes)


def test_many_openers_at_once_never_see_an_error(passing: tuple[Passing, Mount], place: Path) -> None:
    fs, made = passing
    failures: list[object] = []

    def work(number: int) -> None:
        for turn in range(60):
            fs.backed = (number + turn) % 3 > 0
            try:
                with (place / "file").open("rb", buffering=0) as file:
                    if file.read(6) != b"passed":
                        failures.append("data")
            except OSError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    eventually(lambda: not made.server.session.passthrough._nodes)


def test_mapped_passthrough_file(passing: tuple[Passing, Mount], place: Path) -> None:
    fs, _ = passing
    assert child(MAP_SHARED, place / "file") == "pass"
    assert fs.count("READ") == 0
    assert (place.parent / "backing").read_bytes()[:4] == b"back"


def test_file_the_kernel_will_not_take_goes_through_the_server(place: Path) -> None:
    reading, writing = os.pipe()  # not a regular file: EINVAL
    fs = Passing(reading)
    del fs.answer["read"]
    try:
        with mounted(fs, place) as made:
            if not made.connection.has(f.FUSE_PASSTHROUGH):
                pytest.skip("the kernel has no passthrough (CONFIG_FUSE_PASSTHROUGH, since 6.9)")
            fs.backed = False
            (place / "file").write_bytes(b"data")
            eventually(lambda: not made.server.session.passthrough._nodes)
            fs.backed = True
            assert (place / "file").read_bytes() == b"data"
            assert made.server.session.passthrough.refused == 1
    finally:
        os.close(reading)
        os.close(writing)


def test_passthrough_is_not_agreed_with_writeback(place: Path) -> None:
    with mounted(Counting(passthrough=True, writeback_cache=True), place) as made:
        assert made.connection.features.writeback_cache
        assert not made.connection.features.passthrough
        (place / "file").write_bytes(b"data")


# -- what the kernel remembers


@pytest.mark.parametrize(
    ("method", "opcode", "use"),
    [
        ("fsync", "FSYNC", os.fsync),
        ("getxattr", "GETXATTR", lambda fd: pytest.raises(OSError, os.getxattr, fd, "user.a")),
        ("lseek", "LSEEK", lambda fd: os.lseek(fd, 0, os.SEEK_HOLE)),
        ("fallocate", "FALLOCATE", lambda fd: ctypes.CDLL(None).fallocate(fd, 0, 0, 10)),  # glibc's posix_ emulates
        ("statx", "STATX", None),
    ],
)
def test_missing_operation_is_asked_for_once(
    place: Path, wire: Counter[str], method: str, opcode: str, use: Any
) -> None:
    with mounted(Counting(without=frozenset({method}), attr_timeout_s=0.0), place):
        (place / "file").write_bytes(b"data")
        if use is None:
            for _ in range(2):
                subprocess.run(["stat", "-c", "%W", place / "file"], check=True, timeout=10, capture_output=True)
        else:
            with (place / "file").open("r+b") as file:
                for _ in range(3):
                    use(file.fileno())
        assert wire[opcode] == 1


def test_missing_flush_is_asked_for_once(place: Path, wire: Counter[str]) -> None:
    with mounted(Counting(without=frozenset({"flush"})), place):
        for _ in range(3):
            (place / "file").write_bytes(b"data")
        assert wire["FLUSH"] == 1


def test_missing_create_is_mknod_and_open(place: Path, wire: Counter[str]) -> None:
    with mounted(Counting(without=frozenset({"create"})), place):
        for name in "ab":
            (place / name).write_bytes(b"data")
        assert (wire["CREATE"], wire["MKNOD"]) == (1, 2)


# -- failures


def test_exception_of_a_filesystem_is_eio_and_the_mount_lives_on(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_entry_with_a_node_of_its_own_is_the_same_file_after_rename(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place):
        (place / "a").write_bytes(b"data")
        before = os.stat(place / "a").st_ino
        os.rename(place / "a", place / "b")
        assert os.stat(place / "b").st_ino == before
        assert (place / "b").read_bytes() == b"data"


def test_negative_entries_are_remembered_only_where_allowed(place: Path) -> None:
    fs = Counting(negative_timeout_s=3600.0)
    fs.answer["lookup"] = lambda inner, req, parent, name: Entry.negative()
    with mounted(fs, place):
        fs.seen.clear()
        for _ in range(3):
            assert not (place / "missing").exists()
        assert fs.count("LOOKUP") == 1
    fs = Counting()
    with mounted(fs, place):
        fs.seen.clear()
        for _ in range(3):
            assert not (place / "missing").exists()
        assert fs.count("LOOKUP") == 3
