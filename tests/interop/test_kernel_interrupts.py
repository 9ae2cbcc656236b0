"""Interrupts, abort, limits and slow requests, on real mounts."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from interop.counting import Counting, child
from interop.kernel import LONG, drop_caches, later, mounted
from session.peers import eventually
from transfuse.fs.request import Request
from transfuse.fs.values import Opened
from transfuse.transports.dev_fuse import DevFuseChannel
from transfuse.wire import flags as f

pytestmark = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse"), pytest.mark.timeout(60)]

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
    code = READ_WITH_ALARM.replace("0.2", "float(sys.argv[2])")
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
