"""FUSE over io_uring: requests arrive on the CPU of whoever made them (Linux 6.14, module parameter fuse.enable_uring).

The kernel keeps a queue for each possible CPU. `UringDevFuse` is a /dev/fuse transport with these queues beside its
first channel, which still carries INIT, FORGET and INTERRUPT by read(), and notifications by write(). A queue is served
by a few threads that are bound to its CPU, each with a ring and one entry (transfuse._native.uring): the caller goes to
sleep and the very same CPU goes on with the server, instead of waking another one up. The kernel prefers the entry that
was offered last, so that one thread does the work unless it is held up. The price: threads, and 1 MiB of address space
for each (memory only as far as payloads were that large).

The number of threads is fixed, for an entry that is registered later gets nothing of what waits in the queue already.
Only a thread whose answer comes later, from elsewhere, has another stand in for it: it may wait for minutes (a lock),
and perhaps for a request in the same queue.

Order of events: the rings are made before INIT is answered, so that OVER_IO_URING is agreed to only if they are there.
Once INIT is answered `start_queues` has them registered; until every queue has an entry the kernel lets requests wait.
If it refuses one it sends everything by read() again (fs/fuse/dev_uring.c, fuse_uring_cmd: io_uring = 0), which the
first channel carries as it would without. At the unmount the kernel gives all entries back (ENOTCONN).

`obstacle` says why a machine does not have it. There is no plain form: a ring is memory that two CPUs write, and Python
has no barriers.
"""

from __future__ import annotations

import logging
import mmap
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transfuse.transports.base import Handler
from transfuse.transports.dev_fuse import DevFuse
from transfuse.wire.encode import Message

try:
    from transfuse._native import uring as _uring
except ImportError:
    _uring = None  # type: ignore[assignment]  # the plain form

__all__ = ["PARAMETER", "UringChannel", "UringDevFuse", "obstacle"]

log = logging.getLogger("transfuse.transports")

PARAMETER = Path("/sys/module/fuse/parameters/enable_uring")
POSSIBLE = Path("/sys/devices/system/cpu/possible")
ONLINE = Path("/sys/devices/system/cpu/online")

MAX_QUEUES = 256
"""Most possible CPUs: each takes threads, rings and areas."""
THREADS_PER_QUEUE = 4
"""Least threads of a queue: so many requests made on one CPU can be held up before the next has to wait."""
MAX_STAND_INS = 512
"""Most threads that stand in for others: as many as the executor has for calls that wait."""
READY_TIMEOUT_S = 10.0
"""How long the kernel may take to accept all entries: some milliseconds, after the mount is complete."""
PAGE = 4096
PAYLOAD_ROOM = 256 * mmap.PAGESIZE
"""Bytes for the payload of a request: Linux demands max_pages, of which 256 are agreed to."""


def cpus(path: Path) -> set[int]:
    """The CPUs in a list such as "0-3,8"."""
    found: set[int] = set()
    for part in path.read_text().strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def obstacle() -> str | None:
    """Why requests can't come over io_uring here; None if they can."""
    if _uring is None:
        return "only the compiled form has it"
    try:
        on = PARAMETER.read_text().strip() in ("Y", "1")
    except OSError:
        return "this kernel does not have it"
    if not on:
        return "it is switched off"
    try:
        possible, online = cpus(POSSIBLE), cpus(ONLINE)
    except (OSError, ValueError) as error:
        return f"the CPUs are not known: {error}"
    if possible != set(range(len(possible))) or len(possible) > MAX_QUEUES:
        return f"{len(possible)} possible CPUs up to {max(possible)}; {MAX_QUEUES} without gaps is the most"
    if not online <= os.sched_getaffinity(0):
        return "this process may not run on every CPU"
    try:
        _uring.Ring().close()
    except OSError as error:
        return f"this process may not use io_uring: {error.strerror}"
    return None


class UringChannel:
    """One entry of one queue, and the thread that serves it."""

    def __init__(self, transport: UringDevFuse, number: int, kick: int = 0) -> None:
        assert _uring is not None
        self.number = number
        self._transport = transport
        self._kick = kick
        self._ring = _uring.Ring()
        try:
            self._area = mmap.mmap(-1, PAGE + PAYLOAD_ROOM)
        except OSError:
            self._ring.close()
            raise
        self._late: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.settled = threading.Event()
        """The kernel has accepted the entry, or there will be none."""
        self.registered = False
        self.thread: threading.Thread | None = None

    def start(self, handle: Handler) -> None:
        """Begin to serve on a thread of its own."""
        self.thread = threading.Thread(
            target=self._run, args=(handle,), name=f"transfuse-queue-{self.number}", daemon=True
        )
        self.thread.start()

    def _run(self, handle: Handler) -> None:
        assert _uring is not None
        try:
            os.sched_setaffinity(0, {self.number})
        except OSError as error:  # a CPU that is offline makes no requests
            log.debug("queue %d: not on its CPU: %s", self.number, error)
        try:
            _uring.serve(
                self._ring, self._transport.fd, self.number, self._ready, self._kick,
                self, self._area, PAGE, PAYLOAD_ROOM, handle,
            )  # fmt: skip
        except OSError as error:
            log.warning("queue %d of io_uring: %s", self.number, error.strerror)
        except Exception:
            log.exception("queue %d of io_uring: a thread failed", self.number)
        finally:
            self.settled.set()
            self._transport.came_home()

    def _ready(self) -> None:
        self.registered = True
        self.settled.set()

    def send(self, message: Message) -> bool:
        """The answer to the request that the thread waits with: there is one at a time."""
        self._late.put(message)
        return True

    def late(self, nodeid: int) -> Message:
        """Wait for an answer from another thread, to a request about `nodeid`."""
        with self._transport.stand_in(self.number, nodeid):
            return self._late.get()

    def close(self) -> None:
        """The kernel lets go of the entry. Only before start(): the thread does it in the end."""
        self._ring.close()


class UringDevFuse(DevFuse):
    """A connection to the kernel over the fd of a mount, and rings. OSError: they can't be had.

    `threads`: how many requests may be held up together, over all queues; each has THREADS_PER_QUEUE at least.
    """

    def __init__(self, fd: int, threads: int) -> None:
        super().__init__(fd)
        numbers = sorted(cpus(POSSIBLE))
        each = max(THREADS_PER_QUEUE, -(-threads // len(numbers)))
        self._lock = threading.Lock()
        self._channels: list[UringChannel] = []
        self._handle: Handler | None = None
        self._finished: Callable[[], None] | None = None
        self._running = 0
        self._late = dict.fromkeys(numbers, 0)
        """Threads whose answer comes later, by queue."""
        self._stand_ins = dict.fromkeys(numbers, 0)
        """Threads that were added for them; they stay."""
        try:
            for number in numbers * each:
                self._channels.append(UringChannel(self, number))
        except OSError:
            self._close_unused()
            raise

    def start_queues(self, handle: Handler, finished: Callable[[], None]) -> None:
        """Serve the queues, whose use INIT has agreed on; returns when the kernel has accepted the entries or not.
        `finished` is called once when the last thread has come home."""
        self._handle, self._finished, self._running = handle, finished, len(self._channels)
        first = list(self._channels)
        for channel in first:
            channel.start(handle)
        deadline = time.monotonic() + READY_TIMEOUT_S
        for channel in first:
            channel.settled.wait(max(0.0, deadline - time.monotonic()))
        without = set(self._late) - {channel.number for channel in first if channel.registered}
        if without and any(channel.thread.is_alive() for channel in first if channel.thread is not None):
            log.warning("io_uring: no entry for the queues %s; requests come by read()", sorted(without))
            assert _uring is not None
            _uring.give_up(self.fd)

    def stop_queues(self, timeout_s: float) -> bool:
        """Wait for the threads, each so long; the file system is unmounted. False: one is still in a request."""
        with self._lock:
            threads = [channel.thread for channel in self._channels if channel.thread is not None]
        for thread in threads:
            thread.join(timeout_s)
        return not any(thread.is_alive() for thread in threads)

    @contextmanager
    def stand_in(self, number: int, nodeid: int) -> Iterator[None]:
        """While a thread of queue `number` waits for an answer to a request about `nodeid`, another is in its place."""
        with self._lock:
            self._late[number] += 1
            standing = self._stand_ins
            short = standing[number] < self._late[number] and sum(standing.values()) < MAX_STAND_INS
            if short:
                standing[number] += 1
                self._running += 1
        if short:
            self._add(number, nodeid)
        try:
            yield
        finally:
            with self._lock:
                self._late[number] -= 1

    def _add(self, number: int, nodeid: int) -> None:
        assert self._handle is not None
        try:
            channel = UringChannel(self, number, kick=nodeid)
            try:
                channel.start(self._handle)
            except RuntimeError:
                channel.close()
                raise
        except (OSError, RuntimeError) as error:
            log.warning("queue %d: nobody stands in for a request that waits: %s", number, error)
            with self._lock:
                self._stand_ins[number] -= 1
                self._running -= 1  # not the last: somebody waits here
            return
        with self._lock:
            self._channels.append(channel)

    def came_home(self) -> None:
        """A thread has ended."""
        with self._lock:
            self._running -= 1
            last = self._running == 0
        if last and self._finished is not None:
            self._finished()

    def dispose(self) -> None:
        """Close the fds; only when no thread uses them any more."""
        self._close_unused()
        super().dispose()

    def _close_unused(self) -> None:
        for channel in self._channels:
            if channel.thread is None:
                channel.close()
