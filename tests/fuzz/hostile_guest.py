"""A guest and a front-end that do everything wrong, before a real server process: `HostileGuest.rings(n)` and
`messages(n)`. Everything is drawn from one seeded Random, so a run can be repeated.

What is watched: the process lives and answers in time; its memory and fds do not grow; nothing outside the served
directory is read or written; afterwards a well-behaved guest on a fresh connection is served as ever.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transfuse.transports.vhost_user import config
from transfuse.transports.vhost_user.messages import (
    FRONTEND_REQUESTS,
    HEADER_SIZE,
    NEED_REPLY,
    U64,
    FrontendRequest,
    VringState,
)
from transfuse.transports.virtqueue.layout import area_sizes
from transfuse.wire import structs as w
from transfuse.wire.opcodes import OPERATIONS, Opcode
from transports.vhost_user.raw_frontend import GUEST_BASE, MEMORY, RawFrontend

ANSWER_LIMIT_S = 20.0
CHECK_EVERY = 2000
"""Cases between two looks at the process."""
GROWTH_LIMIT_KB = 96 << 10
FD_LIMIT = 64
"""fds the server may have more than at the start: those of the connection, and of files that a mad guest left open are
given back with the next INIT."""
NASTY = (0, 1, 2, 15, 16, 39, 40, 79, 80, 4095, 4096, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40,
         (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
NAMES = (b"..", b".", b"", b"/", b"../outside", b"../outside/secret", b"/etc/passwd", b"a/../../outside/secret", b"x",
         b"d", b"link", b"n" * 255, b"n" * 256, b"n" * 4096, b"\xff\xfe", b"..\0secret")  # fmt: skip
SECRET = b"what no guest may see"


class HostileGuest:
    """One server process (`transfuse serve FOLDER vhost-user:...`) and what is done to it."""

    def __init__(self, folder: Path, seed: str, *, packed: bool = False, native: str | None = None) -> None:
        self.rng = random.Random(seed)
        self.packed = packed
        self.share = folder / "share"
        self.outside = folder / "outside"
        for path in (self.share, self.share / "d", self.outside):
            path.mkdir()
        (self.share / "x").write_bytes(b"data" * 1000)
        (self.outside / "secret").write_bytes(SECRET)
        (self.share / "link").symlink_to("../outside/secret")
        (self.share / "dirlink").symlink_to("../outside")
        self.before = self._outside()
        self.socket = folder / "fs.sock"
        self.log = (folder / "log").open("w+")
        env = dict(os.environ) if native is None else {**os.environ, "TRANSFUSE_NATIVE": native}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "transfuse", "serve", str(self.share), f"vhost-user:{self.socket}", "--queues", "2"],
            stdout=self.log, stderr=self.log, env=env,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._listens():
            assert self.process.poll() is None, self._log()
            assert time.monotonic() < deadline, self._log()
            time.sleep(0.02)
        self.good_guest()
        self.memory_kb, self.fds = self._memory_kb(), self._fds()

    # -- what is watched ----------------------------------------------------------------------------------------------

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(str(self.socket))
            return True
        return False

    def _log(self) -> str:
        self.log.seek(0)
        return self.log.read()[-2000:]

    def _outside(self) -> Any:
        return sorted(
            (path.name, path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes())
            for path in self.outside.iterdir()
        )

    def _memory_kb(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
        raise AssertionError("no RssAnon")

    def _fds(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def check(self) -> None:
        """The process lives, has not grown, and the outside is as it was."""
        assert self.process.poll() is None, self._log()
        grown = self._memory_kb() - self.memory_kb
        assert grown < GROWTH_LIMIT_KB, f"{grown} KiB more than at the start"
        more = self._fds() - self.fds
        assert more < FD_LIMIT, f"{more} fds more than at the start"
        assert self._outside() == self.before

    def good_guest(self) -> None:
        """A well-behaved guest on a fresh connection."""
        (self.share / "stays").write_bytes(b"data" * 1000)  # whatever the other did to it, which was its right
        with RawFrontend(self.socket, packed=self.packed) as guest:
            guest.handshake()
            guest.begin()
            guest.init()
            nodeid = guest.lookup(b"stays").struct(w.EntryOut).nodeid
            fh = guest.open(nodeid, os.O_RDONLY)
            assert guest.read(nodeid, fh, 5000).body == b"data" * 1000
            guest.forget(nodeid)

    def close(self) -> None:
        """End the server, which must take SIGTERM as ever."""
        try:
            if self.process.poll() is None:
                self.process.terminate()
                assert self.process.wait(20) == 0, self._log()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.log.close()

    # -- rings --------------------------------------------------------------------------------------------------------

    def rings(self, cases: int) -> int:
        """Spoilt requests, chains and rings; how many times a ring was broken by it."""
        rng = self.rng
        broken = done = 0
        checked = 0
        while done < cases:
            with RawFrontend(self.socket, queues=2, size=16, packed=self.packed) as guest:
                guest.handshake()
                guest.begin()
                guest.init()
                for _ in range(min(cases - done, rng.choice((50, 400, 2000)))):
                    done += 1
                    if not self._spoil(guest, rng.choice((1, 1, 1, 2, 0))):
                        broken += 1
                        break
            if done - checked >= CHECK_EVERY:
                checked = done
                self.check()
        self._settle()
        return broken

    def _settle(self) -> None:
        deadline = time.monotonic() + ANSWER_LIMIT_S
        while True:
            try:
                self.good_guest()
                break
            except (AssertionError, ConnectionError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        self.check()

    def _spoil(self, guest: RawFrontend, ring: int) -> bool:
        """One case; False when the ring is broken now."""
        rng = self.rng
        guest._free = GUEST_BASE + (MEMORY >> 1)  # room is used over and over
        action: Callable[[], None] = rng.choices(
            (
                lambda: self._request(guest, ring),
                lambda: self._chain(guest, ring),
                lambda: self._index(guest, ring),
                lambda: self._scribble(guest, ring),
            ),
            (60, 25, 5, 10),
        )[0]
        try:
            action()
        except (AssertionError, ValueError):
            return False  # the ring is full of what never comes back, or the request has more segments than the ring
        return self._collect(guest, ring)

    def _collect(self, guest: RawFrontend, ring: int) -> bool:
        one = guest.rings[ring]
        deadline = time.monotonic() + ANSWER_LIMIT_S
        while True:
            try:
                os.eventfd_read(one.err)
                return False
            except BlockingIOError:
                pass  # it is not broken
            try:
                used = one.driver.take_used()
            except Exception:  # noqa: BLE001  what we wrote into our own ring is not what we put there
                return False
            if used is not None:
                return True
            if one.driver.free == guest.size or one.driver.arm():
                return True
            ready, _, _ = select.select([one.call, one.err], [], [], 0.02)
            if one.call in ready:
                os.eventfd_read(one.call)
            if not ready and self._silent(guest):
                return False
            assert time.monotonic() < deadline, "no answer, and the ring is not broken"

    def _silent(self, guest: RawFrontend) -> bool:
        """No answer, because the rings are not what we hold them for any more: does the control side still answer?"""
        guest.call(FrontendRequest.GET_FEATURES)
        return True

    def _body(self) -> tuple[int, bytes]:
        rng = self.rng
        opcode = int(rng.choice(tuple(OPERATIONS))) if rng.random() < 0.95 else rng.choice((0, 7, 54, 4095, 1 << 31))
        row = OPERATIONS.get(opcode)
        size = row.request.SIZE if row is not None and row.request is not None else rng.choice((0, 8, 40))
        words = [rng.choice(NASTY) if rng.random() < 0.4 else rng.randrange(8) for _ in range(-(-size // 4))]
        body = b"".join(struct.pack("<I", word & 0xFFFFFFFF) for word in words)[:size]
        names = row.names if row is not None else 1
        body += b"".join(rng.choice(NAMES) + (b"\0" if rng.random() < 0.9 else b"") for _ in range(names))
        if opcode in (Opcode.DESTROY,) and rng.random() < 0.9:
            opcode = int(Opcode.LOOKUP)
        return opcode, body + rng.randbytes(rng.choice((0, 0, 0, 7, 300)))

    def _raw(self, guest: RawFrontend) -> bytes:
        rng = self.rng
        opcode, body = self._body()
        raw = bytearray(guest.build(opcode, None, body, nodeid=rng.choice((1, 1, 1, 2, 3, rng.choice(NASTY)))))
        for _ in range(rng.choice((0, 0, 1, 3))):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.2:
            del raw[rng.randrange(1, len(raw)) :]
        return bytes(raw)

    def _request(self, guest: RawFrontend, ring: int) -> None:
        rng = self.rng
        room = rng.choice((0, 1, 15, 16, 100, 4096, 200_000))
        guest.submit(self._raw(guest), room, ring, 4096 if room > 100 else rng.choice((0, 0, 40, 4096)))

    def _chain(self, guest: RawFrontend, ring: int) -> None:
        """Segments anywhere, of any length."""
        rng = self.rng
        at = guest.allocate(4096)
        guest.poke(at, self._raw(guest)[:4096])
        segments: list[list[tuple[int, int]]] = [[(at, rng.choice((40, 80, 100, 4096)))], []]
        for _ in range(rng.choice((0, 1, 2, 5))):
            where = rng.choice(
                (at, GUEST_BASE, GUEST_BASE + MEMORY - 1, GUEST_BASE + MEMORY, rng.choice(NASTY), rng.getrandbits(64))
            )
            segments[rng.randrange(2)].append((where, rng.choice(NASTY[1:16]) & 0xFFFFFFFF or 1))
        try:
            added = guest.rings[ring].driver.add(segments[0], segments[1], (0, at, 0))
        except (ValueError, OverflowError):
            return  # more segments than the ring has entries, or an address of more than 64 bits
        assert added
        guest.kick(ring)

    def _index(self, guest: RawFrontend, ring: int) -> None:
        """The driver's index, or a head, is anything."""
        rng = self.rng
        areas = guest.rings[ring].areas
        where = rng.choice((areas[1] + 2, areas[1], areas[1] + 4 + 2 * rng.randrange(16)))
        guest.poke(where, struct.pack("<H", rng.choice(NASTY) & 0xFFFF))
        os.eventfd_write(guest.rings[ring].kick, 1)

    def _scribble(self, guest: RawFrontend, ring: int) -> None:
        """Descriptors, indirect tables and the event areas are overwritten while they are in use."""
        rng = self.rng
        one = guest.rings[ring]
        guest.submit(self._raw(guest), 4096, ring, 16)
        sizes = area_sizes(guest.size, self.packed)
        for _ in range(rng.choice((1, 3, 10))):
            area = rng.randrange(3)
            at = one.areas[area] + rng.randrange(sizes[area])
            length = min(rng.choice((1, 2, 4, 8)), one.areas[area] + sizes[area] - at)
            guest.poke(at, rng.choice((rng.randbytes(length), b"\xff" * length, bytes(length))))
        os.eventfd_write(one.kick, 1)

    # -- messages -----------------------------------------------------------------------------------------------------

    def messages(self, cases: int) -> None:
        """Control messages and fds at random, in any order, from connections that come and go."""
        rng = self.rng
        done = checked = 0
        while done < cases:
            fds = self._some_fds()
            try:
                with RawFrontend(self.socket, queues=2, size=16, packed=self.packed) as guest:
                    guest.sock._sock.settimeout(ANSWER_LIMIT_S)
                    if rng.random() < 0.6:
                        guest.handshake()
                        if rng.random() < 0.6:
                            guest.begin()
                    for _ in range(min(cases - done, rng.randrange(1, 60))):
                        done += 1
                        self._message(guest, fds)
            except (ConnectionError, BrokenPipeError, AssertionError, TimeoutError):
                done += 1  # it hung up, as it may
            finally:
                for fd in fds:
                    os.close(fd)
            if done - checked >= CHECK_EVERY:
                checked = done
                self.check()
        self._settle()

    def _some_fds(self) -> list[int]:
        memory = os.memfd_create("hostile", os.MFD_CLOEXEC)
        os.ftruncate(memory, self.rng.choice((0, 4096, 1 << 20)))
        reading, writing = os.pipe()
        ours, theirs = socket.socketpair()
        return [memory, reading, writing, ours.detach(), theirs.detach(), os.open("/dev/null", os.O_RDWR),
                os.eventfd(0), os.open("/", os.O_RDONLY)]  # fmt: skip

    def _message(self, guest: RawFrontend, fds: list[int]) -> None:
        rng = self.rng
        request = int(rng.choice(tuple(FRONTEND_REQUESTS))) if rng.random() < 0.95 else rng.randrange(60)
        row = FRONTEND_REQUESTS.get(request)
        size = row.body.SIZE if row is not None and row.body is not None else 0
        if rng.random() < 0.1:
            size = rng.choice((0, 1, 7, 300, 4096))
        values = [rng.choice(NASTY) if rng.random() < 0.5 else rng.randrange(4) for _ in range(-(-size // 4))]
        payload = b"".join(struct.pack("<I", value & 0xFFFFFFFF) for value in values)[:size]
        if request == FrontendRequest.SET_VRING_ENABLE and rng.random() < 0.5:
            payload = VringState(index=rng.randrange(3), num=rng.randrange(2)).encode()
        if request == FrontendRequest.SET_FEATURES and rng.random() < 0.5:
            payload = U64(value=guest.features | config.F_PROTOCOL_FEATURES).encode()
        sent = [rng.choice(fds) for _ in range(rng.choice((0, 0, 1, 1, 2, 8, 12)))]
        flags = rng.choice((0, 0, NEED_REPLY, NEED_REPLY, 4, 0x80))
        if rng.random() < 0.03:
            raw = struct.pack("=III", request, 1 | flags, rng.choice(NASTY) & 0xFFFFFFFF) + rng.randbytes(20)
            guest.sock._sock.sendall(raw[: rng.randrange(1, HEADER_SIZE + 20)])
            return
        try:
            guest.sock.send(request, payload, sent, flags)
        except OSError as error:
            if error.errno not in (errno.ETOOMANYREFS, errno.EINVAL):
                raise
        while guest.sock.readable(0):
            message = guest.sock.receive()
            if message is None:
                raise ConnectionResetError
            message.fds.close()
