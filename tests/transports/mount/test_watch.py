"""The watching process without a mount: how it starts, what it holds, when it ends. With mounts: interop."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from transfuse.transports.mount.watch import Watcher, _is_dead, _shows_there, start_watcher


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_end(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def start(tmp_path: Path) -> Watcher:
    return start_watcher(os.fsencode(tmp_path), 0, os.getuid(), os.getgid(), None)


def test_watcher_holds_nothing_of_its_parents(tmp_path: Path) -> None:
    extra = os.open("/dev/zero", os.O_RDONLY)
    os.set_inheritable(extra, True)
    watcher = start(tmp_path)
    try:
        folder = Path(f"/proc/{watcher.pid}/fd")
        held = sorted(os.readlink(folder / name) for name in os.listdir(folder))
        assert held[:2] == ["/dev/null"] * 2
        assert len(held) == 3 and held[2].startswith("socket:")
        assert os.readlink(f"/proc/{watcher.pid}/cwd") == "/"
        assert os.getsid(watcher.pid) != os.getsid(0)
    finally:
        watcher.release()
        os.close(extra)
    assert wait_for_end(watcher.pid)


def test_watcher_ignores_signals_that_can_be_blocked(tmp_path: Path) -> None:
    watcher = start(tmp_path)
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(watcher.pid, number)
        time.sleep(0.1)
        assert alive(watcher.pid)
    finally:
        watcher.release()
    assert wait_for_end(watcher.pid)


def test_watcher_starts_from_a_process_with_threads(tmp_path: Path) -> None:
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        watcher = start(tmp_path)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    watcher.release()
    assert wait_for_end(watcher.pid)


def test_watcher_is_nobodys_child(tmp_path: Path) -> None:
    watcher = start(tmp_path)
    with pytest.raises(ChildProcessError):
        os.waitpid(watcher.pid, os.WNOHANG)
    watcher.release()
    assert wait_for_end(watcher.pid)


def test_release_twice_is_harmless(tmp_path: Path) -> None:
    watcher = start(tmp_path)
    watcher.release()
    watcher.release()
    assert wait_for_end(watcher.pid)


def test_an_interpreter_that_does_not_start_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("/bin/false", ""):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(OSError):
            start(tmp_path)


def test_a_filesystem_that_is_not_fuse_does_not_count() -> None:
    assert not _shows_there(b"/proc", os.stat("/proc").st_dev)
    assert not _shows_there(b"/no/such", 0)


def test_a_living_filesystem_is_not_dead() -> None:
    assert not _is_dead(b"/proc", os.getuid(), os.getgid())
