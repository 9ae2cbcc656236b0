"""One line per message: what it says of ordinary ones, and that nothing makes it fail."""

from __future__ import annotations

import errno
import random
import struct

import pytest

from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.encode import RangeReply, encode_error, encode_request, message_struct, pack_dirent
from transfuse.wire.layout import WireStruct
from transfuse.wire.opcodes import NOTIFICATIONS, OPERATIONS, NotifyCode, Opcode
from transfuse.wire.show import MAX_LINE, show_message, show_reply, show_request, traced


def request(opcode: int, body: bytes = b"", order: str = "<", **who: int) -> bytes:
    return b"".join(
        encode_request(order, opcode, 42, 1, who.get("uid", 0), who.get("gid", 0), who.get("pid", 0), body)
    )


def reply(*parts: WireStruct, data: bytes = b"", order: str = "<") -> bytes:
    body = b"".join(part.encode(order) for part in parts) + data
    return message_struct(order).pack(16 + len(body), 0, 42) + body


FOUND = w.EntryOut(nodeid=2, entry_valid=1, attr_valid=1, attr=w.Attr(ino=2, size=14, mode=0o100644))


@pytest.mark.parametrize("order", "<>")
def test_lookup(order: str) -> None:
    raw = request(Opcode.LOOKUP, b"hello.txt\0", order, uid=1000)
    assert show_request(raw, order) == '#42 LOOKUP nodeid 1 "hello.txt" uid 1000'


@pytest.mark.parametrize("order", "<>")
def test_found_entry(order: str) -> None:
    assert show_reply(reply(FOUND, order=order), Opcode.LOOKUP, order) == (
        "#42 -> entry nodeid 2 gen 0 ttl 1 s REG 0644 14 bytes ino 2"
    )


def test_half_a_second_of_belief() -> None:
    entry = w.EntryOut(nodeid=2, entry_valid_nsec=500_000_000, attr=w.Attr(mode=0o40755))
    assert "ttl 0.5 s DIR 0755" in show_reply(reply(entry), Opcode.LOOKUP)


def test_negative_entry() -> None:
    assert show_reply(reply(w.EntryOut(entry_valid=3)), Opcode.LOOKUP) == "#42 -> negative ttl 3 s"


def test_error_by_name() -> None:
    assert show_reply(encode_error("<", 42, errno.ENOTEMPTY), Opcode.RMDIR) == "#42 -> error ENOTEMPTY"


def test_error_without_a_name_by_number() -> None:
    assert show_reply(message_struct("<").pack(16, -300, 42)) == "#42 -> error -300"


@pytest.mark.parametrize("order", "<>")
def test_init_is_recognised_in_either_order(order: str) -> None:
    flags = f.FUSE_INIT_EXT | f.FUSE_ASYNC_READ
    body = w.InitIn(major=7, minor=45, flags=flags, flags2=f.FUSE_PASSTHROUGH >> 32).encode(order)
    assert show_request(request(Opcode.INIT, body, order)) == (
        "#42 INIT nodeid 1 7.45 ASYNC_READ|INIT_EXT|PASSTHROUGH"
    )


def test_short_init_of_an_old_peer_is_whole() -> None:
    body = w.InitIn(major=7, minor=31).encode("<")[:16]
    assert show_request(request(Opcode.INIT, body)) == "#42 INIT nodeid 1 7.31 0"


@pytest.mark.parametrize(
    ("opcode", "body", "words"),
    [
        (Opcode.OPEN, w.OpenIn(flags=0o101002), "flags RDWR|TRUNC|LARGEFILE"),
        (Opcode.READ, w.ReadIn(fh=3, offset=4096, size=512), "fh 3 offset 4096 size 512"),
        (Opcode.SETATTR, w.SetattrIn(valid=f.FATTR_MODE, mode=0o600), "valid MODE fh 0 size 0 mode 0o600"),
        (Opcode.SETLK, w.LkIn(fh=1, lk=w.FileLock(type=1, end=9, pid=5)), "WRLCK 0..9 lock pid 5"),
        (Opcode.FORGET, w.ForgetIn(nlookup=3), "nlookup 3"),
        (Opcode.INTERRUPT, w.InterruptIn(unique=40), "unique 40"),
    ],
)
def test_structures(opcode: Opcode, body: WireStruct, words: str) -> None:
    assert words in show_request(request(opcode, body.encode("<")))


def test_write_shows_how_much_and_not_what() -> None:
    line = show_request(request(Opcode.WRITE, w.WriteIn(fh=1, size=5).encode("<") + b"secret"[:5]))
    assert line == "#42 WRITE nodeid 1 fh 1 offset 0 size 5 5 bytes"


def test_rename_shows_both_names() -> None:
    line = show_request(request(Opcode.RENAME2, w.Rename2In(newdir=7, flags=1).encode("<") + b"a\0b\0"))
    assert line == '#42 RENAME2 nodeid 1 newdir 7 flags 1 "a" "b"'


def test_batch_forget_shows_the_first_and_counts_the_rest() -> None:
    pairs = b"".join(struct.pack("<QQ", n, 1) for n in range(2, 9))
    line = show_request(request(Opcode.BATCH_FORGET, w.BatchForgetIn(count=7).encode("<") + pairs))
    assert line == "#42 BATCH_FORGET nodeid 1 count 7 2×1 3×1 4×1 5×1 and 3 more"


def test_listing_shows_names() -> None:
    data = pack_dirent("<", 1, 1, 4, b".") + pack_dirent("<", 2, 2, 8, b"hello.txt")
    assert show_reply(reply(data=data), Opcode.READDIR) == '#42 -> 2 entries "." "hello.txt"'


def test_listing_with_attributes_shows_names() -> None:
    data = FOUND.encode("<") + pack_dirent("<", 2, 2, 8, b"hello.txt")
    assert show_reply(reply(data=data), Opcode.READDIRPLUS) == '#42 -> 1 entries "hello.txt"'


def test_data_is_counted() -> None:
    assert show_reply([reply()[:4] + bytes(12), b"x"], Opcode.READ).endswith("1 bytes (says 16 bytes, has 17)")
    assert show_reply(reply(data=b"abc"), Opcode.READ) == "#42 -> 3 bytes"
    assert show_reply(reply(), Opcode.READ) == "#42 -> 0 bytes"


def test_range_reply_names_its_file() -> None:
    assert show_reply(RangeReply(42, "<", 7, 100, 4096)) == "#42 -> up to 4096 bytes of fd 7 from 100"


def test_success_without_body() -> None:
    assert show_reply(reply(), Opcode.UNLINK) == "#42 -> ok"


def test_opened() -> None:
    opened = w.OpenOut(fh=5, open_flags=f.FOPEN_KEEP_CACHE | f.FOPEN_PASSTHROUGH, backing_id=2)
    assert show_reply(reply(opened), Opcode.OPEN) == "#42 -> fh 5 open_flags KEEP_CACHE|PASSTHROUGH backing_id 2"


def test_reply_to_an_unknown_request_is_counted() -> None:
    assert show_message(reply(FOUND)) == "#42 -> ok 128 bytes"


def test_notification() -> None:
    body = w.NotifyInvalEntryOut(parent=1, namelen=9, flags=f.FUSE_EXPIRE_ONLY).encode("<") + b"hello.txt\0"
    raw = message_struct("<").pack(16 + len(body), int(NotifyCode.INVAL_ENTRY), 0) + body
    assert show_reply(raw) == 'notify INVAL_ENTRY parent 1 namelen 9 flags EXPIRE_ONLY "hello.txt"'


def test_every_notification_has_a_line() -> None:
    for code, row in NOTIFICATIONS.items():
        body = row.body().encode("<") if row.body is not None else b""
        raw = message_struct("<").pack(16 + len(body), code, 0) + body
        assert show_reply(raw).startswith(f"notify {row.code.name}")


def test_every_operation_has_a_line_for_request_and_reply() -> None:
    for row in OPERATIONS.values():
        body = (row.request().encode("<") if row.request else b"") + b"n\0" * row.names
        line = show_request(request(row.opcode, body))
        assert line.startswith(f"#42 {row.name} ")
        assert "only" not in line
        assert "only" not in show_reply(reply(*(kind() for kind in row.reply)), row.opcode)


def test_strange_names_stay_on_one_line() -> None:
    assert show_request(request(Opcode.LOOKUP, b'a"\n\x1b\xff\\\xc3\xa4\0')).endswith('"a\\"\\n\\x1b\\xff\\\\ä"')


def test_long_names_are_cut() -> None:
    line = show_request(request(Opcode.LOOKUP, b"x" * 4000 + b"\0"))
    assert line.endswith('x"… (4000 bytes)')
    assert len(line) < 150


def test_unterminated_name_is_said_to_be_so() -> None:
    assert show_request(request(Opcode.LOOKUP, b"abc")).endswith('"abc" (not terminated)')


def test_cut_structure_is_said_to_be_so() -> None:
    assert "(only 4 of 16 bytes)" in show_request(request(Opcode.GETATTR, bytes(4)))


def test_lying_length_is_said_to_be_so() -> None:
    raw = b"\xff\0\0\0" + request(Opcode.STATFS)[4:]
    assert show_request(raw).endswith("(says 255 bytes, has 40)")


@pytest.mark.parametrize("size", [0, 1, 15, 39])
def test_less_than_a_header(size: int) -> None:
    assert show_request(bytes(size)).startswith(f"request of {size} bytes")
    if size < 16:
        assert show_reply(bytes(size)).startswith(f"reply of {size} bytes")


def test_nothing_makes_it_fail(rng: random.Random) -> None:
    for _ in range(5_000):
        raw = bytearray(rng.randbytes(rng.randrange(400)))
        opcode = rng.choice([*OPERATIONS, rng.randrange(1 << 32)])
        order = rng.choice("<>")
        if len(raw) >= 16 and rng.random() < 0.9:
            raw[4:8] = opcode.to_bytes(4, "little" if order == "<" else "big")
        first = show_request(bytes(raw), order)
        if len(raw) >= 16 and rng.random() < 0.9:
            raw[4:8] = bytes(4)
        if len(raw) >= 16 and rng.random() < 0.3:
            raw[4:16] = rng.randrange(12).to_bytes(4, "little") + bytes(8)
        second = show_reply(bytes(raw), opcode, order)
        assert max(len(first), len(second)) <= MAX_LINE
        assert "\n" not in first + second


class Waiting:
    """A channel that keeps what it is sent."""

    def __init__(self, wanted: bool = True) -> None:
        self.sent: list[object] = []
        self.wanted = wanted

    def send(self, message: object) -> bool:
        self.sent.append(message)
        return self.wanted


@pytest.mark.parametrize("order", "<>")
def test_traced_logs_request_and_reply_and_changes_neither(order: str) -> None:
    lines: list[str] = []
    answer = reply(FOUND, order=order)
    handle = traced(lambda buffer, start, end, channel: answer, lines.append)
    raw = request(Opcode.INIT, w.InitIn(major=7, minor=45).encode(order), order)
    handle(raw, 0, len(raw), Waiting())
    raw = request(Opcode.LOOKUP, b"x\0", order)
    assert handle(b"..." + raw, 3, 3 + len(raw), Waiting()) is answer
    assert lines[2] == '#42 LOOKUP nodeid 1 "x"'
    assert lines[3].startswith("#42 -> entry nodeid 2")


def test_traced_logs_replies_that_come_later() -> None:
    lines: list[str] = []
    kept = []
    handle = traced(lambda buffer, start, end, channel: kept.append(channel), lines.append)
    raw = request(Opcode.LOOKUP, b"x\0")
    channel = Waiting()
    assert handle(raw, 0, len(raw), channel) is None
    assert kept[0].send(reply(FOUND)) is True
    assert channel.sent == [reply(FOUND)]
    assert lines[1].startswith("#42 -> entry nodeid 2")


def test_traced_says_when_a_late_reply_is_not_wanted() -> None:
    lines: list[str] = []
    kept = []
    handle = traced(lambda buffer, start, end, channel: kept.append(channel), lines.append)
    raw = request(Opcode.STATFS)
    handle(raw, 0, len(raw), Waiting(wanted=False))
    assert kept[0].send(encode_error("<", 42, errno.EINTR)) is False
    assert lines[1] == "#42 -> error EINTR (not wanted any more)"
