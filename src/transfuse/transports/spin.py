"""Looking for the next request instead of sleeping, for as long as a client asks in quick succession.

A client that waits for each answer (find, git status, a build) sends its next request a few µs after it. A reader that
went to sleep in between has to be woken, mostly on another CPU than the client's: on an otherwise idle machine that is
a third of what a GETATTR takes, and its caches are cold. So when QUICK requests in a row came within SPIN_NS, the
reader looks for the next one (read() without waiting, sched_yield() between) for up to SPIN_NS, then sleeps again.

It must not take the CPU from anyone. sched_yield() lets others run at once; a look that then takes long tells that they
did, and as soon as LOST_NS of WINDOW_NS were lost to others there is no looking for BUSY_NS. So on a busy machine it
costs the share of a time slice in BUSY_NS, below 1 %.

This is the plain form, and what the loop in transfuse._native.devloop does in C, which is given the same NUMBERS.
Figures: docs/decisions/0009-looking-before-sleeping.md.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence

from transfuse.wire.layout import Buffer

__all__ = ["NUMBERS", "QUICK", "SPIN_NS", "Spin"]

QUICK = 16
"""Requests in a row that came soon, after which it is worth while."""
SPIN_NS = 50_000
"""What is soon, and how long to look. Waking up takes 10 to 40 µs, so that a look in vain costs about as much."""
GAP_NS = 20_000
"""A look takes 1 µs; one that takes longer than this was interrupted by somebody."""
LOST_NS, WINDOW_NS = 1_000_000, 100_000_000
"""Others' due: what their work may take of ours while we look. A time slice is 3 ms, a kernel thread's turn 20 µs."""
BUSY_NS = 500_000_000
"""How long to believe that the CPUs are needed."""
NUMBERS = (QUICK, SPIN_NS, GAP_NS, LOST_NS, WINDOW_NS, BUSY_NS)


class Spin:
    """Reads requests from one fd, whose O_NONBLOCK it owns."""

    __slots__ = ("_busy_until", "_fd", "_looking", "_lost", "_quick", "_window")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._quick = 0
        self._looking = False
        self._busy_until = 0
        self._lost = 0
        self._window = 0

    def read(self, room: Sequence[Buffer]) -> int:
        """os.readv() that may look for a while before it sleeps. Called again right after an answer was sent."""
        began = time.monotonic_ns()
        if self._quick < QUICK or began < self._busy_until:
            self._look(False)
            count = os.readv(self._fd, room)
            self._quick = self._quick + 1 if time.monotonic_ns() - began < SPIN_NS else 0
            return count
        self._look(True)
        before = began
        while True:
            try:
                return os.readv(self._fd, room)
            except BlockingIOError:
                pass
            os.sched_yield()
            now = time.monotonic_ns()
            if now - before > GAP_NS:
                self._interrupted(before, now)
            before = now
            if now - began > SPIN_NS or now < self._busy_until:
                self._quick = 0
                self._look(False)
                return os.readv(self._fd, room)

    def _interrupted(self, before: int, now: int) -> None:
        if now - self._window > WINDOW_NS:
            self._window, self._lost = now, 0
        self._lost += now - before
        if self._lost > LOST_NS:
            self._busy_until = now + BUSY_NS

    def _look(self, on: bool) -> None:
        if on != self._looking:
            self._looking = on
            fcntl.fcntl(self._fd, fcntl.F_SETFL, os.O_NONBLOCK if on else 0)
