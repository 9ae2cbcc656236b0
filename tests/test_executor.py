"""Threads for what blocks and one loop for coroutines: limits, and the end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
import time
from collections.abc import Iterator

import pytest

from transfuse import executor as module
from transfuse.executor import ThreadedExecutor


@pytest.fixture
def executor() -> Iterator[ThreadedExecutor]:
    made = ThreadedExecutor()
    yield made
    made.close()


def test_nothing_is_started_before_it_is_needed(executor: ThreadedExecutor) -> None:
    before = threading.active_count()
    assert executor._loop is None
    assert threading.active_count() == before


def test_blocking_call_runs_on_a_thread_of_its_own(executor: ThreadedExecutor) -> None:
    seen: list[int] = []
    done = threading.Event()
    executor.run_blocking(lambda: (seen.append(threading.get_ident()), done.set()))  # type: ignore[func-returns-value, arg-type]
    assert done.wait(5)
    assert seen != [threading.get_ident()]


def test_coroutines_share_one_thread(executor: ThreadedExecutor) -> None:
    seen: list[int] = []
    done = threading.Semaphore(0)

    async def note() -> None:
        await asyncio.sleep(0)
        seen.append(threading.get_ident())
        done.release()

    for _ in range(3):
        executor.run_coroutine(note())
    for _ in range(3):
        assert done.acquire(timeout=5)
    assert len(set(seen)) == 1


def test_blocked_threads_are_bounded(executor: ThreadedExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BLOCKING", 2)
    go = threading.Event()
    for _ in range(2):
        executor.run_blocking(lambda: (go.wait(5), None)[1])
    with pytest.raises(OSError, match="2 calls are blocked already") as caught:
        executor.run_blocking(lambda: None)
    assert caught.value.errno == errno.EAGAIN
    go.set()


def test_thread_that_is_done_makes_room(executor: ThreadedExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BLOCKING", 1)
    for _ in range(5):
        done = threading.Event()
        executor.run_blocking(done.set)
        assert done.wait(5)
        deadline = time.monotonic() + 5
        while executor._threads and time.monotonic() < deadline:
            time.sleep(0.001)
    assert not executor._threads


def test_system_without_threads_is_eagain(executor: ThreadedExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="can't start new thread") as caught:
        executor.run_blocking(lambda: None)
    assert caught.value.errno == errno.EAGAIN
    assert not executor._threads


def test_coroutines_are_bounded_before_the_loop_has_seen_them(
    executor: ThreadedExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_COROUTINES", 3)
    go = threading.Event()

    async def hold() -> None:
        while not go.is_set():
            await asyncio.sleep(0.001)

    for _ in range(3):
        executor.run_coroutine(hold())
    with pytest.raises(OSError, match="3 coroutines are under way already") as caught:
        executor.run_coroutine(hold())
    assert caught.value.errno == errno.EAGAIN
    go.set()
    deadline = time.monotonic() + 5
    while executor._coroutines and time.monotonic() < deadline:
        time.sleep(0.001)
    executor.run_coroutine(hold())


def test_coroutine_that_fails_is_logged(executor: ThreadedExecutor, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        executor.run_coroutine(fail())
        deadline = time.monotonic() + 5
        while executor._coroutines and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
    assert "ZeroDivisionError" in caplog.text


def test_close_cancels_coroutines() -> None:
    executor = ThreadedExecutor()
    started, ended = threading.Event(), threading.Event()

    async def wait() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    executor.run_coroutine(wait())
    assert started.wait(5)
    executor.close()
    assert ended.is_set()


def test_close_waits_for_blocked_calls() -> None:
    executor = ThreadedExecutor()
    done: list[int] = []
    executor.run_blocking(lambda: (time.sleep(0.05), done.append(1))[1])  # type: ignore[func-returns-value]
    executor.close()
    assert done == [1]


def test_close_gives_up_on_a_coroutine_that_will_not_end(caplog: pytest.LogCaptureFixture) -> None:
    executor = ThreadedExecutor()
    go, started = threading.Event(), threading.Event()

    async def stubborn() -> None:
        while not go.is_set():
            try:
                started.set()
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    executor.run_coroutine(stubborn())
    assert started.wait(5)
    executor.close(timeout_s=0.05)
    assert "did not end within 0.05 s" in caplog.text
    assert executor._loop is not None
    assert executor._loop.is_closed()
    for task in asyncio.all_tasks(executor._loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # as this test wanted it


def test_threads_are_not_bound_to_the_cpu_of_the_worker_that_starts_them() -> None:
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("this machine has one CPU")
    executor = ThreadedExecutor()
    seen: list[set[int]] = []
    done = threading.Semaphore(0)

    async def coroutine() -> None:
        seen.append(os.sched_getaffinity(0))
        done.release()

    def worker() -> None:
        os.sched_setaffinity(0, {min(cpus)})
        executor.run_blocking(lambda: (seen.append(os.sched_getaffinity(0)), done.release()))  # type: ignore[func-returns-value, arg-type]
        executor.run_coroutine(coroutine())

    thread = threading.Thread(target=worker)
    thread.start()
    thread.join()
    assert done.acquire(timeout=5) and done.acquire(timeout=5)
    executor.close()
    assert seen == [cpus, cpus]


def test_nothing_is_run_after_close() -> None:
    executor = ThreadedExecutor()
    executor.close()

    async def never() -> None: ...

    with pytest.raises(OSError, match="already"):
        executor.run_blocking(lambda: None)
    with pytest.raises(OSError, match="already"):
        executor.run_coroutine(never())


def test_close_twice_is_nothing() -> None:
    executor = ThreadedExecutor()
    executor.run_blocking(lambda: None)
    executor.close()
    executor.close()
