"""Random traffic through a pair of rings, with what must hold at every step."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from transports.virtqueue.rings import Rings


class Traffic:
    """A driver that sends requests of random shape, a device that answers each with bytes made from what it read.

    Both sides sleep as real ones do: a side that found nothing and armed acts again only once it was told, or if arm()
    said that something waits. If ever both sleep while a request is under way, a wake-up was lost.
    """

    def __init__(self, rings: Rings, rng: random.Random, max_segments: int, max_length: int = 300) -> None:
        self.rings = rings
        self.rng = rng
        self.max_segments = max_segments
        self.max_length = max_length
        self.sent = 0
        self.done = 0
        self.bodies: dict[int, tuple[bytes, list[tuple[int, int]], list[tuple[int, int]]]] = {}
        self.held: deque[Any] = deque()
        self.device_awake = True
        self.driver_awake = True
        self.free: dict[int, list[int]] = {}
        self.order: list[int] = []
        """Tokens as they came back."""

    def run(self, count: int) -> None:
        """`count` requests there and back."""
        goal = self.done + count
        while self.done < goal:
            moves = []
            if self.driver_awake:
                moves.append(self.drive)
            if self.device_awake:
                moves.append(self.serve)
            elif self.held:
                moves.append(self.answer_late)
            assert moves, f"both sides sleep with {self.sent - self.done} requests under way"
            self.rng.choice(moves)(goal)

    # -- driver -------------------------------------------------------------------------------------------------------

    def _segments(self, least: int, most: int) -> list[tuple[int, int]]:
        found = []
        for _ in range(self.rng.randint(least, most)):
            length = self.rng.randint(1, self.max_length)
            kept = self.free.setdefault(length, [])
            found.append((kept.pop() if kept else self.rings.arena.room(length, 1), length))
        return found

    def drive(self, goal: int) -> None:
        driver, rng = self.rings.driver, self.rng
        while (got := driver.take_used()) is not None:
            self._finished(*got)
        for _ in range(rng.randint(0, 2 * self.rings.size + 1)):
            if self.sent == goal:
                break
            readable = self._segments(1, self.max_segments // 2 or 1)
            writable = self._segments(0, self.max_segments - len(readable))
            body = rng.randbytes(sum(n for _, n in readable))
            at = 0
            for address, length in readable:
                self.rings.arena.write(address, body[at : at + length])
                at += length
            token = self.sent
            if not driver.add(readable, writable, token):
                self._recycle(readable + writable)
                break
            self.bodies[token] = (body, readable, writable)
            self.sent += 1
        driver.publish()
        if driver.needs_kick():
            self.device_awake = True
        if self.bodies and not rng.randrange(3):
            self.driver_awake = driver.arm()

    def _recycle(self, segments: list[tuple[int, int]]) -> None:
        for address, length in segments:
            self.free[length].append(address)

    def _finished(self, token: int, written: int) -> None:
        body, readable, writable = self.bodies.pop(token)
        got = b"".join(self.rings.arena.read(a, n) for a, n in writable)
        assert got[:written] == answer(body, len(got))[:written]
        assert written == len(answer(body, len(got)))
        self._recycle(readable + writable)
        self.done += 1
        self.order.append(token)

    # -- device -------------------------------------------------------------------------------------------------------

    def serve(self, goal: int) -> None:
        device, rng = self.rings.device, self.rng
        for _ in range(rng.randint(1, 8)):
            chain = device.pop()
            if chain is None:
                self.device_awake = device.arm()
                break
            self.held.append(chain)
            while self.held and rng.randrange(3):
                self._answer()
        if device.should_notify():
            self.driver_awake = True

    def answer_late(self, goal: int) -> None:
        self._answer()
        if self.rings.device.should_notify():
            self.driver_awake = True

    def _answer(self) -> None:
        self.held.rotate(self.rng.randrange(len(self.held)))
        chain = self.held.pop()
        body = bytearray(chain.readable)
        chain.copy_in(body, 0, 0, chain.readable)
        assert chain.gather(0, chain.readable) == body
        reply = answer(bytes(body), chain.writable)
        cut = self.rng.randint(0, len(reply))
        chain.write(cut, reply[cut:])
        chain.write(0, reply[:cut])
        assert self.rings.device.push(chain, len(reply))
        assert not self.rings.device.push(chain, len(reply))


def answer(body: bytes, room: int) -> bytes:
    """What the device writes for `body`: as much of it, reversed, as there is room."""
    return body[::-1][:room]
