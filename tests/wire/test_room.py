"""The most an answer can take, by every kind of request and in both byte orders."""

from __future__ import annotations

import pytest

from transfuse.errors import LocalProtocolError
from transfuse.wire import structs as w
from transfuse.wire.encode import encode_request
from transfuse.wire.layout import ByteOrder
from transfuse.wire.opcodes import OPERATIONS, Opcode
from transfuse.wire.room import room_for_reply

ORDERS: tuple[ByteOrder, ...] = ("<", ">")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("opcode", "body", "size"),
    [
        (Opcode.LOOKUP, b"name\0", 16 + 128),
        (Opcode.GETATTR, bytes(16), 16 + 104),
        (Opcode.UNLINK, b"name\0", 16),
        (Opcode.READLINK, b"", 16 + 4096),
        (Opcode.STATX, bytes(24), 16 + 288),
        (Opcode.CREATE, bytes(16) + b"name\0", 16 + 128 + 16),
        (Opcode.FORGET, bytes(8), 0),
        (Opcode.BATCH_FORGET, bytes(8), 0),
        (Opcode.INTERRUPT, bytes(8), 0),
    ],
)
def test_fixed_answers(order: ByteOrder, opcode: Opcode, body: bytes, size: int) -> None:
    room = room_for_reply(encode_request(order, opcode, 6, 1, 0, 0, 0, body))
    assert room == (order, opcode, 6, size)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("opcode", [Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS])
def test_reads_say_how_much_they_want(order: ByteOrder, opcode: Opcode) -> None:
    body = w.ReadIn(fh=1, offset=0, size=70000).encode(order)
    assert room_for_reply(encode_request(order, opcode, 2, 1, 0, 0, 0, body)).size == 16 + 70000


@pytest.mark.parametrize("wanted", [0, 1, 7])
def test_a_small_read_gets_no_more_room_than_it_wants(wanted: int) -> None:
    """virtiofsd in C fills what there is."""
    body = w.ReadIn(size=wanted).encode("<")
    assert room_for_reply(encode_request("<", Opcode.READ, 2, 1, 0, 0, 0, body)).size == 16 + wanted


@pytest.mark.parametrize("order", ORDERS)
def test_an_attribute_of_unknown_size_is_answered_by_its_size(order: ByteOrder) -> None:
    body = w.GetxattrIn(size=0).encode(order) + b"user.x\0"
    assert room_for_reply(encode_request(order, Opcode.GETXATTR, 2, 1, 0, 0, 0, body)).size == 16 + 8
    body = w.GetxattrIn(size=65536).encode(order) + b"user.x\0"
    assert room_for_reply(encode_request(order, Opcode.GETXATTR, 2, 1, 0, 0, 0, body)).size == 16 + 65536


@pytest.mark.parametrize("order", ORDERS)
def test_an_ioctl_has_its_structure_and_what_it_copies_out(order: ByteOrder) -> None:
    body = w.IoctlIn(cmd=1, out_size=28).encode(order)
    assert room_for_reply(encode_request(order, Opcode.IOCTL, 2, 1, 0, 0, 0, body)).size == 16 + 16 + 28


def test_a_payload_in_a_buffer_of_its_own_counts_as_part_of_the_request() -> None:
    message = encode_request("<", Opcode.WRITE, 2, 1, 0, 0, 0, w.WriteIn(size=5).encode("<"), b"hello")
    assert len(message) == 2
    assert room_for_reply(message).size == 16 + 8


@pytest.mark.parametrize("opcode", sorted(OPERATIONS))
def test_every_operation_has_room_for_its_structures(opcode: int) -> None:
    row = OPERATIONS[opcode]
    body = bytes(row.request.SIZE if row.request is not None else 0)
    size = room_for_reply(encode_request("<", opcode, 2, 1, 0, 0, 0, body)).size
    assert size >= (16 + sum(part.SIZE for part in row.reply) if row.replies else 0)


def test_a_message_that_is_not_as_long_as_it_says_is_refused() -> None:
    message = encode_request("<", Opcode.GETATTR, 2, 1, 0, 0, 0, bytes(16))
    with pytest.raises(LocalProtocolError, match="says that it has"):
        room_for_reply([*message, b"more"])
