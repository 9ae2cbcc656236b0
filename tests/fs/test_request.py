"""Who asks: groups, and being interrupted."""

from __future__ import annotations

import errno
import threading
import time

import pytest

from transfuse.fs.request import Request


def test_fields_are_the_headers() -> None:
    req = Request(1, 2, 3, 4, 5, 6)
    assert (req.unique, req.opcode, req.nodeid, req.uid, req.gid, req.pid) == (1, 2, 3, 4, 5, 6)


def test_groups_of_nobody_in_particular_are_the_one() -> None:
    assert Request(gid=5).groups == (5,)


def test_groups_are_resolved_by_process_and_once() -> None:
    asked: list[int] = []

    def resolve(pid: int) -> tuple[int, ...]:
        asked.append(pid)
        return (7, 8)

    req = Request(gid=5, pid=99)
    req._resolve_groups = resolve
    assert (req.groups, req.groups) == ((7, 8), (7, 8))
    assert asked == [99]


def test_groups_of_process_0_are_not_resolved() -> None:
    req = Request(gid=5, pid=0)
    req._resolve_groups = lambda pid: pytest.fail("asked")
    assert req.groups == (5,)


def test_groups_that_came_with_the_request_are_not_resolved() -> None:
    req = Request(gid=5, pid=99)
    req._groups = (1,)
    req._resolve_groups = lambda pid: pytest.fail("asked")
    assert req.groups == (1,)


def test_interrupt_marks_and_calls_back() -> None:
    req, called = Request(), threading.Event()
    req.on_interrupt(called.set)
    assert not req.interrupted
    req.interrupt()
    assert req.interrupted
    assert called.is_set()


def test_callback_set_after_the_interrupt_is_called_at_once() -> None:
    req, called = Request(), threading.Event()
    req.interrupt()
    req.on_interrupt(called.set)
    assert called.is_set()


def test_callback_taken_away_is_not_called() -> None:
    req = Request()
    req.on_interrupt(lambda: pytest.fail("called"))
    req.on_interrupt(None)
    req.interrupt()


def test_wait_ends_with_its_time() -> None:
    before = time.monotonic()
    Request().wait_interrupted(0.02)
    assert time.monotonic() - before >= 0.019


def test_wait_ends_with_the_interrupt() -> None:
    req = Request()
    timer = threading.Timer(0.02, req.interrupt)
    timer.start()
    with pytest.raises(InterruptedError) as caught:
        req.wait_interrupted(10)
    assert caught.value.errno == errno.EINTR
    timer.join()


def test_wait_of_an_interrupted_request_does_not_begin() -> None:
    req = Request()
    req.interrupt()
    before = time.monotonic()
    with pytest.raises(InterruptedError):
        req.wait_interrupted(10)
    assert time.monotonic() - before < 1


def test_request_says_who_it_is() -> None:
    assert repr(Request(1, 2, 3, 4, 5, 6)) == "Request(unique=1, opcode=2, uid=4, gid=5, pid=6)"
