"""A server that lies: replies cut short, lengthened, with bits and whole fields changed, 120,000 in all.

Whatever comes, a call of the client ends with a result or one of three kinds of error, soon; nothing is left waiting
and no table grows beyond its bound. The seed is in the header of the run.
"""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable

import pytest

from transfuse.client import Client
from transfuse.errors import ProtocolError, RemoteProtocolError
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.server import Server
from transfuse.session.answers import parse_direntplus, parse_dirents, parse_names
from transfuse.session.client import BadReply, ClientSession, Reply
from transfuse.session.events import Event, decode_notification
from transfuse.transports.base import ClientTransport
from transfuse.transports.memory import MemoryTransport
from transfuse.wire.layout import Buffer, ByteOrder
from transfuse.wire.opcodes import NOTIFICATIONS, OPERATIONS, Opcode
from transfuse.wire.structs import Direntplus, InitOut

SESSION_REPLIES = 60_000
DIRECTORY_REPLIES = 20_000
NOTIFICATION_MESSAGES = 20_000
CLIENT_REPLIES = 20_000
INTERESTING = (0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 63, (1 << 64) - 1)


def spoil(rng: random.Random, message: bytes, fix_length: bool) -> bytes:
    """The message with something wrong in it, or not."""
    data = bytearray(message)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        match rng.randrange(6):
            case 0 if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1 if len(data) > 16:
                del data[rng.randrange(16, len(data)) :]
            case 2:
                data += rng.randbytes(rng.choice((1, 7, 8, 24, 100)))
            case 3 if len(data) >= 8:
                at = rng.randrange(0, len(data) - 7, 4)
                struct.pack_into("<Q", data, at, rng.choice(INTERESTING))
            case 4 if len(data) >= 4:
                at = rng.randrange(0, len(data) - 3, 4)
                struct.pack_into("<I", data, at, rng.choice(INTERESTING) & 0xFFFFFFFF)
            case 5 if data:
                del data[: rng.randrange(len(data))]
    if fix_length and len(data) >= 4:
        struct.pack_into("<I", data, 0, len(data))
    return bytes(data)


def connected() -> ClientSession:
    session = ClientSession()
    pending = session.init()
    body = InitOut(major=7, minor=45, flags=0xFFFFFFFF, flags2=0xFFFFFFFF, max_write=1 << 20, max_pages=256).encode("<")
    session.receive(struct.pack("<IiQ", 16 + len(body), 0, pending.unique) + body)
    return session


def args_of(opcode: int) -> tuple[int, ...]:
    request = OPERATIONS[opcode].request
    return (64,) * (request.WIDTH if request is not None else 0)


def test_replies_at_the_session(rng: random.Random) -> None:
    opcodes = [
        opcode
        for opcode, row in OPERATIONS.items()
        if row.replies and opcode not in (Opcode.INIT, Opcode.CUSE_INIT, Opcode.NOTIFY_REPLY)
    ]
    session = connected()
    outcomes = {"reply": 0, "error": 0, "refused": 0}
    for _ in range(SESSION_REPLIES):
        opcode = rng.choice(opcodes)
        row = OPERATIONS[opcode]
        session._absent.clear()
        pending = session.request(opcode, 1, args_of(opcode), (b"n",) * row.names)
        body = rng.randbytes(sum(part.SIZE for part in row.reply) + (rng.randrange(80) if row.reply_data else 0))
        whole = struct.pack("<IiQ", 16 + len(body), 0, pending.unique) + body
        try:
            got = session.receive(spoil(rng, whole, fix_length=rng.random() < 0.7))
        except RemoteProtocolError:
            outcomes["refused"] += 1
        else:
            if isinstance(got, Reply):
                outcomes["error" if got.error else "reply"] += 1
        session.in_flight.clear()
    assert all(outcomes.values()), outcomes


def test_listings(rng: random.Random) -> None:
    entry = Direntplus().encode("<")[:128]
    for _ in range(DIRECTORY_REPLIES):
        plus = rng.random() < 0.5
        data = b""
        for _ in range(rng.randrange(4)):
            name = bytes(rng.choices(b"abcdefgh", k=rng.randrange(1, 20)))
            record = (entry if plus else b"") + struct.pack("<QQII", 1, 2, len(name), 8) + name
            data += record.ljust((len(record) + 7) // 8 * 8, b"\0")
        data = spoil(rng, data, fix_length=False)
        order: ByteOrder = rng.choice(("<", ">"))
        try:
            records = list((parse_direntplus if plus else parse_dirents)(data, order))
            parse_names(data)
        except RemoteProtocolError:
            continue
        assert len(records) <= len(data) // 24 + 1
        assert all(record.name and b"/" not in record.name for record in records)


def test_notifications(rng: random.Random) -> None:
    for _ in range(NOTIFICATION_MESSAGES):
        row = NOTIFICATIONS[rng.choice(list(NOTIFICATIONS))]
        body = rng.randbytes(row.body.SIZE) if row.body is not None else b""
        body += b"name\0" * row.names
        message = struct.pack("<IiQ", 16 + len(body), row.code, 0) + body
        spoiled = spoil(rng, message, fix_length=True)
        if len(spoiled) < 16:
            continue
        code = struct.unpack_from("<i", spoiled, 4)[0]
        try:
            assert isinstance(decode_notification(code, spoiled, "<", 45), Event)
        except RemoteProtocolError:
            continue


class Liar:
    """A wire on which every so many replies are spoilt."""

    max_write = 1 << 20

    def __init__(self, inner: ClientTransport, rng: random.Random) -> None:
        self.inner = inner
        self.rng = rng
        self.spoilt = 0
        self.lying = False
        self.swallowed = False
        """A reply was made into a notification: its request can only end by its timeout."""

    def start(self, on_message: Callable[[Buffer], None], on_closed: Callable[[BaseException | None], None]) -> None:
        def pass_on(message: Buffer) -> None:
            if self.lying and self.rng.random() < 0.7:
                self.spoilt += 1
                # Mostly the header stays right, or no connection would live long enough to be lied to in detail.
                if self.rng.random() < 0.97:
                    body = spoil(self.rng, bytes(message[16:]), fix_length=False)
                    message = struct.pack("<I", 16 + len(body)) + bytes(message[4:16]) + body
                else:
                    message = spoil(self.rng, bytes(message), fix_length=True)
                    self.swallowed = self.swallowed or message[8:16] == bytes(8)
            on_message(message)

        self.inner.start(pass_on, on_closed)

    def send(self, message: list[Buffer]) -> None:
        self.inner.send(message)

    def close(self) -> None:
        self.inner.close()


def steps(client: Client, rng: random.Random) -> list[Callable[[], object]]:
    path = rng.choice(("/d", "/d/f", "/l", "/nope", "/d/g", "/"))
    return [
        lambda: client.stat(path),
        lambda: client.listdir("/d"),
        lambda: [entry.stat() for entry in client.scandir("/d")],
        lambda: client.read_bytes("/d/f"),
        lambda: client.write_bytes("/d/g", b"x" * 100),
        lambda: client.readlink("/l"),
        lambda: client.listxattr("/d/f"),
        lambda: client.getxattr("/d/f", "user.a"),
        lambda: client.statvfs(),
        lambda: client.statx(path),
        lambda: client.mkdir("/d/new"),
        lambda: client.rmdir("/d/new"),
        lambda: client.rename("/d/g", "/d/h"),
        lambda: client.unlink("/d/h"),
        lambda: client.link("/d/f", "/d/h"),
        lambda: client.chmod(path, 0o755),
        lambda: client.access(path, 4),
    ]


@pytest.mark.timeout(100)
def test_every_call_of_a_client_that_is_lied_to_ends(rng: random.Random) -> None:
    spoilt = connections = 0
    while spoilt < CLIENT_REPLIES:
        connections += 1
        transport = MemoryTransport()
        with Server(MemoryFilesystem(), transport) as server:
            liar = Liar(transport.client, rng)
            client = Client(liar, timeout_s=0.02, max_names=50)
            with client:
                client.mkdir("/d")
                client.write_bytes("/d/f", b"data" * 100)
                client.setxattr("/d/f", "user.a", b"1")
                client.symlink("d/f", "/l")
                liar.lying = True
                while not client.closed and liar.spoilt < 5000:
                    try:
                        rng.choice(steps(client, rng))()
                    except TimeoutError:
                        assert liar.swallowed
                        break
                    except (OSError, ProtocolError):
                        pass
                    assert len(client.cache) <= 50
                    assert not client.exchange.session.in_flight
                liar.lying = False
                assert client.cache.known_nodes <= 60 and len(client.cache.forgets) <= 1000
            assert server.session.inflight == {}
        spoilt += liar.spoilt
    assert connections > 1


def test_a_spoilt_reply_to_init_connects_or_fails(rng: random.Random) -> None:
    for _ in range(2000):
        session = ClientSession()
        pending = session.init()
        body = InitOut(major=7, minor=45, flags=0xFFFFFFFF, max_write=1 << 20).encode("<")
        message = struct.pack("<IiQ", 16 + len(body), 0, pending.unique) + body
        try:
            session.receive(spoil(rng, message, fix_length=True))
        except BadReply as error:
            assert error.errno == errno.EIO
        except RemoteProtocolError:
            continue
        if session.connection is not None:
            assert 4096 <= session.connection.max_write <= 1 << 20
            assert 1 <= session.connection.max_pages <= 256
