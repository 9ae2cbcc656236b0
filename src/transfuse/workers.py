"""How many threads read requests: one, unless that one is held up.

Python runs one thread at a time, and Linux hands requests to waiting readers in turn, so that a second reader makes
each request wake a colder thread on the other CPU. Measured here: a forced GETATTR takes 9 µs with one reader, 17 with
four, and two clients together get no more done with two readers than with one. What more readers are for is a handler
that waits (a slow disk, a network, a lock): then nobody reads.

So a pool starts with one worker. A monitor looks at each worker's step counter every few milliseconds, while there is
work, and lets another worker read when all of them sit in a handler that waits: at once if the same request sat there
at the last look, after a few looks if different ones did but the process used little CPU. Workers that are not needed
any more are parked. When nothing happens the monitor sleeps too, and the next request wakes it.

`counters` is shared with the loop of each worker (transports.base.serve_channel, _native.devloop), which counts a step
before and after each request: odd means "in a handler".
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections.abc import Callable

from transfuse.transports.base import Channel, Handler, ServerTransport, Undelivered

__all__ = ["Worker", "WorkerPool"]

log = logging.getLogger("transfuse.server")

TICK_S = 0.004
"""Between two looks: how long a request may be held up by one that waits. A look costs some 15 µs."""
IDLE_TICKS = 25
"""Looks without any step after which the monitor sleeps."""
PRESSED_TICKS = 4
"""Looks in a row with every worker in a handler and little CPU used, after which another may read."""
CALM_TICKS = 50
"""Looks without need after which a worker is parked."""
CPU_BOUND = 0.6
"""Share of one CPU above which the process computes rather than waits, and another thread would not help."""

ASLEEP = 0
"""counters[ASLEEP] is 1 while the monitor sleeps."""


class Worker:
    """One thread with one channel."""

    __slots__ = ("channel", "counters", "number", "park_at", "parked", "pool", "resume", "step_at", "thread")

    def __init__(self, pool: WorkerPool, number: int, channel: Channel) -> None:
        self.pool = pool
        self.number = number
        self.channel = channel
        self.counters = pool.counters
        self.step_at = 1 + 2 * number
        self.park_at = 2 + 2 * number
        self.parked = False
        self.resume = threading.Event()
        self.thread = threading.Thread(target=pool.run, args=(self,), name=f"transfuse-worker-{number}", daemon=True)

    def wake(self) -> None:
        """Wake the monitor: there is work."""
        self.pool.wake_monitor()

    def park(self) -> bool:
        """Rest until needed; False when the pool is closing."""
        return self.pool.rest(self)


class WorkerPool:
    """The workers of one connection."""

    def __init__(
        self,
        transport: ServerTransport,
        handle: Handler,
        undelivered: Undelivered,
        max_workers: int,
        handshake: Callable[[Channel], None],
        on_gone: Callable[[], None],
        on_finished: Callable[[], None],
    ) -> None:
        self.transport = transport
        self.handle = handle
        self.undelivered = undelivered
        self.max_workers = max_workers
        self.handshake = handshake
        """Run by the first worker before anything else: serves INIT."""
        self.on_gone = on_gone
        """Called once when the first worker learns that the peer is gone."""
        self.on_finished = on_finished
        """Called once when the last worker has come home."""
        self.counters = array("Q", bytes(8 * (1 + 2 * max_workers)))
        self.workers: list[Worker] = []
        self.closing = False
        self._lock = threading.Lock()
        self._running = 0
        self._wake = threading.Event()
        self._monitor: threading.Thread | None = None

    def start(self) -> None:
        """Begin with one worker; a transport whose peer calls the handler itself has none."""
        channel = self.transport.open_channel()
        if channel is not None:
            self._add(channel)

    def watch(self) -> None:
        """Begin to adapt; once the connection is up, since only then further channels can be had."""
        if self.workers and self.max_workers > 1 and self._monitor is None:
            self._monitor = threading.Thread(target=self._look_after, name="transfuse-monitor", daemon=True)
            self._monitor.start()

    @property
    def active(self) -> int:
        """Workers that read or serve at the moment."""
        return sum(not worker.parked for worker in self.workers)

    def close(self, timeout_s: float) -> None:
        """Wait for the workers; the transport has been told to stop giving requests."""
        self._shut()
        me = threading.current_thread()
        threads = [worker.thread for worker in self.workers]
        for thread in [*threads, self._monitor]:
            if thread is not None and thread is not me:
                thread.join(timeout_s)
        for worker in self.workers:
            if not worker.thread.is_alive():
                worker.channel.close()

    # -- worker threads -----------------------------------------------------------------------------------------------

    def run(self, worker: Worker) -> None:
        """The life of a worker's thread."""
        try:
            if worker.number == 0:
                self.handshake(worker.channel)
            worker.channel.serve(self.handle, self.undelivered, worker)
        except Exception:
            log.exception("a worker failed")
        finally:
            first = self._shut()
            if first:
                self.on_gone()
            with self._lock:
                self._running -= 1
                last = self._running == 0
            if last:
                self.on_finished()

    def rest(self, worker: Worker) -> bool:
        """Park `worker` until it is resumed; False: go home."""
        with self._lock:
            if not self.counters[worker.park_at] or self.closing:
                return not self.closing
            worker.parked = True
            worker.resume.clear()
        worker.resume.wait()
        return not self.closing

    def _add(self, channel: Channel) -> None:
        # Started under the lock: close() must not meet a thread that cannot be joined yet.
        with self._lock:
            if self.closing:
                channel.close()
                return
            worker = Worker(self, len(self.workers), channel)
            worker.thread.start()
            self.workers.append(worker)
            self._running += 1

    def _shut(self) -> bool:
        """Send everybody home; True for the first to ask."""
        with self._lock:
            first = not self.closing
            self.closing = True
            for worker in self.workers:
                worker.resume.set()
        self._wake.set()
        return first

    # -- the monitor --------------------------------------------------------------------------------------------------

    def wake_monitor(self) -> None:
        """A worker found the monitor asleep."""
        self.counters[ASLEEP] = 0
        self._wake.set()

    def _look_after(self) -> None:
        last: list[int] = []
        idle = pressed = calm = 0
        cpu, clock = time.process_time(), time.monotonic()
        while not self.closing:
            time.sleep(TICK_S)
            active = [worker for worker in self.workers if not worker.parked]
            steps = [self.counters[worker.step_at] for worker in self.workers]
            in_handler = [worker for worker in active if steps[worker.number] & 1]
            stuck = [w for w in in_handler if w.number < len(last) and last[w.number] == steps[w.number]]
            if steps == last and not stuck:
                idle += 1
                if idle >= IDLE_TICKS:
                    self._sleep(steps)
                    idle = pressed = 0
                    cpu, clock = time.process_time(), time.monotonic()
                last = steps
                continue
            idle = 0
            now_cpu, now = time.process_time(), time.monotonic()
            load = (now_cpu - cpu) / max(now - clock, 1e-9)
            cpu, clock, last = now_cpu, now, steps
            waiting = len(in_handler) == len(active) and load < CPU_BOUND
            pressed = pressed + 1 if waiting else 0
            if len(stuck) == len(active) or pressed >= PRESSED_TICKS:
                pressed = calm = 0
                self._grow()
            elif len(active) > 1:
                calm = 0 if stuck or waiting else calm + 1
                if calm >= CALM_TICKS:
                    calm = 0
                    self.counters[active[-1].park_at] = 1

    def _sleep(self, steps: list[int]) -> None:
        """Rest until a request comes."""
        self._wake.clear()
        self.counters[ASLEEP] = 1
        # A request that came before the flag was seen has stepped a counter.
        if steps == [self.counters[worker.step_at] for worker in self.workers] and not self.closing:
            self._wake.wait()
        self.counters[ASLEEP] = 0

    def _grow(self) -> None:
        """Let one more worker read."""
        with self._lock:
            if self.closing:
                return
            for worker in self.workers:
                self.counters[worker.park_at] = 0
                if worker.parked:
                    worker.parked = False
                    worker.resume.set()
                    return
            if len(self.workers) >= self.max_workers:
                return
        try:
            channel = self.transport.open_channel()
        except OSError as error:
            log.info("no further worker: %s", error)
            return
        if channel is not None:
            self._add(channel)
