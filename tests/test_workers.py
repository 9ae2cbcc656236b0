"""The worker pool: one reader, more while handlers wait, fewer again."""

from __future__ import annotations

import queue
import threading
import time

import pytest

from transfuse.transports.base import serve_channel
from transfuse.workers import ASLEEP, WorkerPool


class QueueChannel:
    """A channel over a queue; None ends it."""

    def __init__(self, requests: queue.Queue) -> None:
        self.requests = requests
        self.served = 0
        self.closed = False

    def receive(self):
        got = self.requests.get()
        if got is None:
            self.requests.put(None)
            return None
        return got, 0, len(got)

    def send(self, message) -> bool:
        self.served += 1
        return True

    def serve(self, handle, undelivered, worker) -> None:
        serve_channel(self, handle, undelivered, worker)

    def close(self) -> None:
        self.closed = True


class QueueTransport:
    """Hands out channels that share one queue."""

    def __init__(self, limit: int = 100) -> None:
        self.requests: queue.Queue = queue.Queue()
        self.limit = limit
        self.channels: list[QueueChannel] = []

    def open_channel(self):
        if len(self.channels) >= self.limit:
            raise OSError(24, "no more channels")
        self.channels.append(QueueChannel(self.requests))
        return self.channels[-1]


def make_pool(transport, handle, max_workers: int = 8):
    events: list[str] = []
    pool = WorkerPool(
        transport,
        handle,
        lambda *_: None,
        max_workers,
        handshake=lambda channel: None,
        on_gone=lambda: events.append("gone"),
        on_finished=lambda: events.append("finished"),
    )
    pool.start()
    pool.watch()
    return pool, events


def end(transport, pool) -> None:
    transport.requests.put(None)
    pool.close(10)


def wait_for(condition, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def test_quick_requests_are_served_by_one_worker():
    transport = QueueTransport()
    pool, _ = make_pool(transport, lambda *_: b"done")
    for _ in range(2000):
        transport.requests.put(b"x")
    wait_for(lambda: transport.channels[0].served == 2000)
    assert len(pool.workers) == 1
    end(transport, pool)


def test_a_held_up_worker_is_joined_by_another():
    transport = QueueTransport()
    gate = threading.Event()
    pool, _ = make_pool(transport, lambda buffer, *_: gate.wait(10) and b"done" if buffer == b"slow" else b"done")
    transport.requests.put(b"slow")
    transport.requests.put(b"quick")
    wait_for(lambda: sum(channel.served for channel in transport.channels) == 1)
    gate.set()
    wait_for(lambda: sum(channel.served for channel in transport.channels) == 2)
    end(transport, pool)


def test_workers_never_exceed_the_limit():
    transport = QueueTransport()
    gate = threading.Event()
    pool, _ = make_pool(transport, lambda *_: gate.wait(10) and b"done", max_workers=3)
    for _ in range(10):
        transport.requests.put(b"slow")
    wait_for(lambda: len(pool.workers) == 3)
    time.sleep(0.05)
    assert len(pool.workers) == 3
    gate.set()
    end(transport, pool)


def test_a_transport_without_further_channels_keeps_one_worker():
    transport = QueueTransport(limit=1)
    gate = threading.Event()
    pool, _ = make_pool(transport, lambda *_: gate.wait(10) and b"done")
    transport.requests.put(b"slow")
    time.sleep(0.05)
    assert len(pool.workers) == 1
    gate.set()
    end(transport, pool)


def test_workers_that_are_not_needed_are_parked_and_called_back():
    transport = QueueTransport()
    gate = threading.Event()

    def handle(buffer, *_):
        if buffer == b"slow":
            gate.wait(10)
        return b"done"

    pool, _ = make_pool(transport, handle)
    transport.requests.put(b"slow")
    wait_for(lambda: pool.active == 2)
    gate.set()
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            transport.requests.put(b"quick")
            time.sleep(0.001)

    feeder = threading.Thread(target=keep_busy)
    feeder.start()
    try:
        wait_for(lambda: pool.active == 1)
        gate.clear()
        transport.requests.put(b"slow")
        wait_for(lambda: pool.active == 2)
        assert len(pool.workers) == 2, "the parked worker is used again, no third one is made"
    finally:
        gate.set()
        stop.set()
        feeder.join()
    end(transport, pool)


def test_the_monitor_sleeps_when_idle_and_the_next_request_wakes_it():
    transport = QueueTransport()
    gate = threading.Event()
    pool, _ = make_pool(transport, lambda buffer, *_: gate.wait(10) and b"" if buffer == b"slow" else b"done")
    wait_for(lambda: pool.counters[ASLEEP] == 1)
    transport.requests.put(b"slow")
    wait_for(lambda: len(pool.workers) == 2)
    gate.set()
    end(transport, pool)


def test_the_end_is_reported_once_and_after_the_last_worker():
    transport = QueueTransport()
    gate = threading.Event()
    pool, events = make_pool(transport, lambda *_: gate.wait(10) and b"done")
    transport.requests.put(b"slow")
    wait_for(lambda: len(pool.workers) == 2)
    transport.requests.put(None)
    wait_for(lambda: events == ["gone"])
    gate.set()
    wait_for(lambda: events == ["gone", "finished"])
    pool.close(10)
    assert events == ["gone", "finished"]
    assert all(channel.closed for channel in transport.channels)


@pytest.mark.parametrize("error", [RuntimeError("bug"), OSError(5, "io")])
def test_a_worker_that_fails_ends_the_connection(error, caplog):
    transport = QueueTransport()

    def handle(*_):
        raise error

    pool, events = make_pool(transport, handle)
    transport.requests.put(b"x")
    wait_for(lambda: "finished" in events)
    pool.close(10)
    assert "a worker failed" in caplog.text
