"""A virtio-fs server before a front-end that only measures: set up by the project's own control side, then the ring is
handed to a load generator in C, so that nothing of Python is in what is measured but the server."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transfuse.session.client import ClientSession, Pending, Reply
from transfuse.transports.vhost_user import frontend as control
from transfuse.transports.vhost_user.frontend import Frontend
from transfuse.wire.room import room_for_reply

ROOM = 192 << 20
PAGE = 4096
LOAD_TIMEOUT_S = 120


@dataclass
class Plan:
    """Prepared requests: where they lie, and what errno is right."""

    lines: list[str] = field(default_factory=list)


class Device:
    """One connection. `ask` is for setting up; after `load` only another `load` may follow."""

    def __init__(self, socket_path: str | os.PathLike[str], size: int = 256) -> None:
        self.frontend = Frontend(socket_path, size=size, room=ROOM)
        self.frontend.handshake()
        self.frontend.begin()
        self.session = ClientSession()
        self.ring = self.frontend.rings[1]
        self._free = self.frontend.room_at
        reply = self._exchange(self.session.init())
        if reply.error:
            raise ConnectionError(f"INIT: {os.strerror(reply.error)}")

    def allocate(self, size: int, alignment: int = 8) -> int:
        """Shared memory, by its guest address; never given back."""
        at = -(-self._free // alignment) * alignment
        self._free = at + size
        if self._free > self.frontend.room_at + ROOM:
            raise MemoryError("out of shared memory")
        return at

    def poke(self, at: int, data: bytes) -> None:
        """Put bytes there."""
        self.frontend.memory.at_guest(at, len(data))[:] = data

    def ask(self, opcode: int, nodeid: int, args: Sequence[int] = (), names: Sequence[bytes] = ()) -> Reply:
        """One request and its answer; OSError for an error."""
        reply = self._exchange(self.session.request(opcode, nodeid, args, names))
        if reply.error:
            raise OSError(reply.error, os.strerror(reply.error))
        return reply

    def _exchange(self, pending: Pending) -> Reply:
        message = b"".join(pending.message)
        room = room_for_reply(pending.message).size
        at, out = self.allocate(len(message)), self.allocate(room)
        self.poke(at, message)
        queue = self.ring.queue
        queue.add([(at, len(message))], [(out, room)], None)
        queue.publish()
        if queue.needs_kick():
            os.eventfd_write(self.ring.kick, 1)
        while (used := queue.take_used()) is None:
            if not queue.arm():
                select.select([self.ring.call], [], [], 20)
                try:
                    os.eventfd_read(self.ring.call)
                except BlockingIOError:
                    continue
        received = self.session.receive(bytes(self.frontend.memory.at_guest(out, used[1])))
        assert isinstance(received, Reply)
        return received

    def prepare(
        self, plan: Plan, opcode: int, nodeid: int, args: Sequence[int] = (), names: Sequence[bytes] = (),
        payload: bytes = b"", error: int = 0, *, pages: bool = True,
    ) -> None:  # fmt: skip
        """Add one request to the plan, laid out as Linux does: header and arguments in one piece, payload and data of
        the answer in pages."""
        pending = self.session.request(opcode, nodeid, args, names, payload)
        self.session.drop(pending)
        head = bytes(pending.message[0])
        room = room_for_reply(pending.message).size
        segments: list[tuple[int, int, int]] = []
        at = self.allocate(len(head))
        self.poke(at, head)
        segments.append((at, len(head), 0))
        if payload:
            place = self.allocate(len(payload), PAGE)
            self.poke(place, payload)
            segments += [(place + i, min(PAGE, len(payload) - i), 0) for i in range(0, len(payload), PAGE)]
        fixed = 16 if pages and room > PAGE else room
        reply = self.allocate(fixed)
        segments.append((reply, fixed, 1))
        if room > fixed:
            place = self.allocate(room - fixed, PAGE)
            segments += [(place + i, min(PAGE, room - fixed - i), 1) for i in range(0, room - fixed, PAGE)]
        table = self.allocate(16 * len(segments), 16)
        base = control.GUEST_BASE
        words = " ".join(f"{start - base}:{length}:{writable}" for start, length, writable in segments)
        plan.lines.append(f"request {reply - base} {error} {table - base} {len(segments)} {words}")

    def load(self, program: Path, plan: Plan, count: int, depth: int, *, polling: bool = False) -> tuple[int, int, int]:
        """Run the plan over and over: (requests, nanoseconds, kicks). RuntimeError if an answer was not as expected."""
        frontend, base = self.frontend, control.GUEST_BASE
        with tempfile.NamedTemporaryFile("w", suffix=".plan") as file:
            file.write(f"base {base}\n" + "\n".join(plan.lines) + "\n")
            file.flush()
            fds = (frontend._memory_fd, self.ring.kick, self.ring.call)
            words = (
                program, fds[0], frontend._memory_size, *(area - base for area in self.ring.areas), frontend.size,
                fds[1], fds[2], depth, count, int(polling), file.name,
            )  # fmt: skip
            done = subprocess.run(
                [str(word) for word in words],
                pass_fds=fds, capture_output=True, text=True, timeout=LOAD_TIMEOUT_S, check=False,
            )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f"the load generator ended with {done.returncode}")
        requests, nanoseconds, wrong, kicks = map(int, done.stdout.split())
        if wrong:
            raise RuntimeError(f"{wrong} of {requests} answers were wrong")
        return requests, nanoseconds, kicks

    def close(self) -> None:
        """Hang up, without a word: the rings are not ours any more."""
        self.frontend.close()
