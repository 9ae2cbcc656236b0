"""Buffers lent and given back."""

from __future__ import annotations

import errno
import threading

import pytest

from transfuse.transports.vhost_user.buffers import SIZES, BufferPool, memory_needed

SMALL = ((16, 2), (64, 1))


def test_buffers_do_not_overlap_and_lie_inside() -> None:
    pool = BufferPool(1000)
    lent = [pool.take(size, 0) for size, count in SIZES for _ in range(count)]
    lent.sort()
    assert lent[0].at == 1000
    for one, following in zip(lent, lent[1:], strict=False):
        assert one.at + one.size <= following.at
    assert lent[-1].at + lent[-1].size == 1000 + memory_needed()


def test_the_largest_request_and_the_largest_answer_fit() -> None:
    assert SIZES[-1][0] >= (1 << 20) + (64 << 10) + 4096


def test_a_larger_one_serves_when_the_small_ones_are_lent() -> None:
    pool = BufferPool(0, SMALL)
    assert [pool.take(10, 0).size for _ in range(3)] == [16, 16, 64]


def test_what_never_fits_is_emsgsize() -> None:
    with pytest.raises(OSError, match="at most 64") as raised:
        BufferPool(0, SMALL).take(65, 0)
    assert raised.value.errno == errno.EMSGSIZE


def test_when_none_comes_back_in_time_the_server_is_taken_for_dead() -> None:
    pool = BufferPool(0, SMALL)
    pool.take(64, 0)
    with pytest.raises(ConnectionAbortedError):
        pool.take(64, 0.01)


def test_who_waits_gets_what_is_given_back() -> None:
    pool = BufferPool(0, SMALL)
    lent = pool.take(64, 0)
    got: list[int] = []
    waiter = threading.Thread(target=lambda: got.append(pool.take(60, 10).at))
    waiter.start()
    pool.give(lent)
    waiter.join(10)
    assert got == [lent.at]


def test_close_wakes_who_waits() -> None:
    pool = BufferPool(0, SMALL)
    pool.take(64, 0)
    why: list[BaseException] = []

    def wait() -> None:
        try:
            pool.take(60, 30)
        except ConnectionError as error:
            why.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    pool.close()
    waiter.join(10)
    assert not waiter.is_alive()
    assert [error.errno for error in why if isinstance(error, OSError)] == [errno.ENOTCONN]
