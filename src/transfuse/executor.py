"""Where requests go that must not hold up a worker: blocking calls get a thread each, coroutines one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["ThreadedExecutor"]

log = logging.getLogger("transfuse.executor")

MAX_BLOCKING = 512
"""Most threads waiting for locks at a time; a peer that wants more gets EAGAIN."""
MAX_COROUTINES = 10_000
"""Most coroutines under way; more get EAGAIN. Linux itself sends at most max_background plus one per waiting task."""


class ThreadedExecutor:
    """Starts threads and an event loop when they are first needed, and ends them in `close`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cpus = os.sched_getaffinity(0)
        self._threads: set[threading.Thread] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._coroutines = 0
        """Coroutines accepted and not done; counted before the loop has seen them."""
        self._closed = False

    def run_blocking(self, call: Callable[[], None]) -> None:
        """Run `call` on a new thread."""

        def run() -> None:
            self._go_anywhere()
            try:
                call()
            finally:
                self._threads.discard(threading.current_thread())

        with self._lock:
            if self._closed or len(self._threads) >= MAX_BLOCKING:
                raise OSError(errno.EAGAIN, f"{len(self._threads)} calls are blocked already")
            thread = threading.Thread(target=run, name="transfuse-blocking", daemon=True)
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more threads to give
            self._threads.discard(thread)
            raise OSError(errno.EAGAIN, str(error)) from error

    def run_coroutine(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Schedule `coroutine` on the event loop."""
        with self._lock:
            if self._closed or self._coroutines >= MAX_COROUTINES:
                coroutine.close()
                raise OSError(errno.EAGAIN, f"{self._coroutines} coroutines are under way already")
            self._coroutines += 1
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop_thread = threading.Thread(
                    target=self._run_loop, args=(self._loop,), name="transfuse-asyncio", daemon=True
                )
                self._loop_thread.start()
            loop = self._loop
        loop.call_soon_threadsafe(self._start, loop, coroutine)

    def _go_anywhere(self) -> None:
        """A thread is where its maker is, and workers may be bound to a CPU (transports.uring)."""
        if os.sched_getaffinity(0) != self._cpus:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self._cpus)

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._go_anywhere()
        loop.run_forever()

    def _start(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> None:
        task = loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        with self._lock:
            self._coroutines -= 1
        if not task.cancelled() and task.exception() is not None:
            log.error("a coroutine's answer could not be sent", exc_info=task.exception())

    def close(self, timeout_s: float = 5.0) -> None:
        """Cancel coroutines, stop the loop, and wait for blocked calls, which the session has interrupted."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._loop_thread
        if loop is not None and thread is not None:

            async def cancel_all() -> None:
                tasks = list(self._tasks)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

            try:
                asyncio.run_coroutine_threadsafe(cancel_all(), loop).result(timeout_s)
            except TimeoutError:
                log.warning("coroutines did not end within %s s of being cancelled", timeout_s)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout_s)
            if not thread.is_alive():
                loop.close()
        for blocked in list(self._threads):
            if blocked is not threading.current_thread():
                blocked.join(timeout_s)
