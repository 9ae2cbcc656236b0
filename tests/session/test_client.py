"""The client's state machine against literal bytes and against the server's own session."""

from __future__ import annotations

import errno
import struct

import pytest

from transfuse.errors import LocalProtocolError, RemoteProtocolError
from transfuse.session.client import (
    ABSENT,
    DEFAULT_FLAGS,
    MAX_IN_FLIGHT,
    BadNotification,
    BadReply,
    ClientSession,
    Credentials,
    Pending,
    Reply,
)
from transfuse.session.events import Event
from transfuse.wire import flags as f
from transfuse.wire.layout import ByteOrder, WireStruct
from transfuse.wire.opcodes import NotifyCode, Opcode
from transfuse.wire.structs import Attr, AttrOut, EntryOut, InitOut, LseekOut, OpenOut, WriteOut

ORDERS: list[ByteOrder] = ["<", ">"]


def answer(order: str, unique: int, *parts: WireStruct | bytes, error: int = 0) -> bytes:
    body = b"".join(part if isinstance(part, bytes) else part.encode("<" if order == "<" else ">") for part in parts)
    return struct.pack(order + "IiQ", 16 + len(body), -error, unique) + body


def connected(order: ByteOrder = "<", minor: int = 45, **init: int) -> ClientSession:
    session = ClientSession(order=order, minor=minor)
    pending = session.init()
    fields = {
        "major": 7,
        "minor": 45,
        "flags": DEFAULT_FLAGS & 0xFFFF_FFFF | f.FUSE_INIT_EXT,
        "flags2": DEFAULT_FLAGS >> 32,
        "max_write": 1 << 20,
        "max_pages": 256,
    }
    session.receive(answer(order, pending.unique, InitOut(**(fields | init))))
    return session


def joined(pending: Pending) -> bytes:
    return b"".join(pending.message)


# -- INIT -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_init_is_104_bytes_since_7_36(order: ByteOrder) -> None:
    message = joined(ClientSession(order=order, minor=36).init())
    # len, opcode 26, unique 2, nodeid 0, uid gid pid 0, no extensions; then major, minor, readahead, flags, flags2
    assert struct.unpack_from(order + "IIQQIIIHH", message) == (104, 26, 2, 0, 0, 0, 0, 0, 0)
    assert struct.unpack_from(order + "II", message, 40) == (7, 36)


@pytest.mark.parametrize("order", ORDERS)
def test_init_is_56_bytes_before_7_36(order: ByteOrder) -> None:
    assert len(joined(ClientSession(order=order, minor=35).init())) == 56


def test_flags_newer_than_the_minor_are_not_offered() -> None:
    assert not ClientSession(minor=27).offered & f.FUSE_MAX_PAGES
    assert ClientSession(minor=28).offered & f.FUSE_MAX_PAGES


def test_a_minor_below_27_is_refused_here() -> None:
    with pytest.raises(ValueError, match="minor=26"):
        ClientSession(minor=26)


def test_the_lower_minor_is_agreed() -> None:
    connection = connected_to(31, ours=40).connection
    assert connection is not None and connection.minor == 31


def connected_to(minor: int, ours: int = 45) -> ClientSession:
    session = ClientSession(minor=ours)
    pending = session.init()
    session.receive(answer("<", pending.unique, InitOut(major=7, minor=minor, max_write=4096)))
    return session


def test_an_answer_in_a_lower_major_leaves_the_session_new_for_another_init() -> None:
    session = ClientSession(major=8)
    session.receive(answer("<", session.init().unique, InitOut(major=7, minor=45)))
    assert session.connection is None
    again = session.init()
    assert struct.unpack_from("<I", joined(again), 40) == (7,)
    session.receive(answer("<", again.unique, InitOut(major=7, minor=45)))
    assert session.connection is not None


@pytest.mark.parametrize("major", [6, 8, 0])
def test_a_major_we_do_not_speak_is_refused(major: int) -> None:
    session = ClientSession()
    with pytest.raises(RemoteProtocolError, match=rf"init_out.major at offset 16: {major}"):
        session.receive(answer("<", session.init().unique, InitOut(major=major, minor=45)))


def test_a_server_older_than_7_27_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match=r"7\.19"):
        connected_to(19)


def test_bits_that_were_not_offered_are_not_agreed() -> None:
    session = connected(flags2=f.FUSE_PASSTHROUGH >> 32)
    assert session.connection is not None and not session.connection.has(f.FUSE_PASSTHROUGH)


def test_the_second_flags_word_counts_only_with_init_ext() -> None:
    session = connected(flags=f.FUSE_BIG_WRITES)
    assert session.connection is not None and not session.connection.has(f.FUSE_HAS_RESEND)


def test_max_write_is_at_least_a_page_and_at_most_our_own() -> None:
    small, big = connected(max_write=1).connection, connected(max_write=1 << 31).connection
    assert small is not None and small.max_write == 4096
    assert big is not None and big.max_write == 1 << 20


@pytest.mark.parametrize("size", [0, 7, 23, 25, 63, 65])
def test_an_init_reply_of_another_length_is_refused(size: int) -> None:
    session = ClientSession()
    with pytest.raises(BadReply, match=f"{size} bytes"):
        session.receive(answer("<", session.init().unique, bytes(size)))


# -- requests ---------------------------------------------------------------------------------------------------------


def test_request_before_init_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError, match="before INIT"):
        ClientSession().request(Opcode.GETATTR, 1, (0, 0))


@pytest.mark.parametrize("order", ORDERS)
def test_lookup_in_bytes(order: ByteOrder) -> None:
    session = connected(order)
    pending = session.request(Opcode.LOOKUP, 1, (), (b"ab",), creds=Credentials(1000, 100, 42))
    # header 40 bytes with uid 1000, gid 100, pid 42; then the name and its NUL
    assert joined(pending) == struct.pack(order + "IIQQIIIHH", 43, 1, pending.unique, 1, 1000, 100, 42, 0, 0) + b"ab\0"


def test_uniques_are_even_and_step_by_two() -> None:
    session = connected()
    uniques = [session.request(Opcode.GETATTR, 1, (0, 0)).unique for _ in range(3)]
    assert uniques == [4, 6, 8]


def test_interrupt_is_numbered_one_above_its_request() -> None:
    session = connected()
    pending = session.request(Opcode.READ, 5, (1, 0, 10, 0, 0, 0))
    message = session.interrupt(pending)
    assert message is not None
    unique = pending.unique
    assert struct.unpack("<IIQQIIIHHQ", b"".join(message)) == (48, 36, unique | 1, 5, 0, 0, 0, 0, 0, unique)


def test_setxattr_is_short_without_setxattr_ext() -> None:
    session = connected(flags=0)
    pending = session.request(Opcode.SETXATTR, 1, (3, 0, 0), (b"user.a",), b"abc")
    assert joined(pending)[40:] == struct.pack("<II", 3, 0) + b"user.a\0abc"


def test_an_operation_newer_than_agreed_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError, match=r"STATX needs 7\.39"):
        connected_to(38).request(Opcode.STATX, 1, (0, 0, 0, 0))


def test_a_name_with_nul_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError, match="contains NUL"):
        connected().request(Opcode.LOOKUP, 1, (), (b"a\0b",))


def test_a_value_that_does_not_fit_its_field_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError, match="GETATTR"):
        connected().request(Opcode.GETATTR, 1, (0, -1))


def test_a_single_forget_is_no_batch() -> None:
    (message,) = connected().forget([(7, 3)])
    assert struct.unpack_from("<IIQQ", b"".join(message))[1::2] == (2, 7)
    assert b"".join(message)[40:] == struct.pack("<Q", 3)


@pytest.mark.parametrize("order", ORDERS)
def test_several_forgets_are_one_batch(order: ByteOrder) -> None:
    (message,) = connected(order).forget([(7, 3), (8, 1)])
    assert struct.unpack_from(order + "II", b"".join(message))[1] == 42
    # count and padding, then nodeid and nlookup of each
    assert b"".join(message)[40:] == struct.pack(order + "IIQQQQ", 2, 0, 7, 3, 8, 1)


def test_in_flight_requests_are_bounded() -> None:
    session = connected()
    for _ in range(MAX_IN_FLIGHT):
        session.request(Opcode.GETATTR, 1, (0, 0))
    with pytest.raises(OSError) as caught:
        session.request(Opcode.GETATTR, 1, (0, 0))
    assert caught.value.errno == errno.EAGAIN


def test_resend_repeats_what_is_in_flight_with_the_mark() -> None:
    session = connected()
    pending = session.request(Opcode.GETATTR, 1, (0, 0))
    (message,) = session.resend()
    assert struct.unpack_from("<Q", message[0], 8) == (pending.unique | 1 << 63,)
    reply = session.receive(answer("<", pending.unique | 1 << 63, AttrOut(attr=Attr(ino=1, mode=0o40755))))
    assert isinstance(reply, Reply) and reply.pending is pending


def test_after_a_resend_a_second_answer_is_dropped() -> None:
    session = connected()
    pending = session.request(Opcode.GETATTR, 1, (0, 0))
    session.resend()
    message = answer("<", pending.unique, AttrOut(attr=Attr(ino=1, mode=0o40755)))
    assert session.receive(message) is not None
    assert session.receive(message) is None


# -- replies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_values_come_flat_in_header_order(order: ByteOrder) -> None:
    session = connected(order)
    pending = session.request(Opcode.OPEN, 2, (0, 0))
    reply = session.receive(answer(order, pending.unique, OpenOut(fh=9, open_flags=2, backing_id=-1)))
    assert isinstance(reply, Reply) and reply.values == (9, 2, -1)
    assert not session.in_flight


@pytest.mark.parametrize("size", range(16))
def test_a_reply_shorter_than_its_header_is_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"reply of {size} bytes"):
        connected().receive(bytes(size))


def test_a_reply_that_lies_about_its_length_is_refused() -> None:
    session = connected()
    pending = session.request(Opcode.UNLINK, 1, (), (b"a",))
    with pytest.raises(RemoteProtocolError, match="out_header.len at offset 0 says 17"):
        session.receive(struct.pack("<IiQ", 17, 0, pending.unique))


def test_a_reply_to_nothing_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="1000 is no request"):
        connected().receive(answer("<", 1000))


@pytest.mark.parametrize("error", [1, 2**31 - 1, -512, -(2**31)])
def test_an_error_out_of_range_is_a_bad_reply(error: int) -> None:
    session = connected()
    pending = session.request(Opcode.UNLINK, 1, (), (b"a",))
    with pytest.raises(BadReply, match="out_header.error at offset 4") as caught:
        session.receive(struct.pack("<IiQ", 16, error, pending.unique))
    assert caught.value.pending is pending and not session.in_flight


def test_an_error_with_a_body_is_a_bad_reply() -> None:
    session = connected()
    pending = session.request(Opcode.UNLINK, 1, (), (b"a",))
    with pytest.raises(BadReply, match="24 bytes where 16"):
        session.receive(answer("<", pending.unique, bytes(8), error=2))


@pytest.mark.parametrize("size", [0, 127, 129])
def test_a_fixed_reply_of_another_length_is_a_bad_reply(size: int) -> None:
    session = connected()
    pending = session.request(Opcode.LOOKUP, 1, (), (b"a",))
    with pytest.raises(BadReply, match=f"{16 + size} bytes where 144"):
        session.receive(answer("<", pending.unique, bytes(size)))


@pytest.mark.parametrize(
    ("opcode", "args", "names", "too_much"),
    [
        (Opcode.READ, (1, 0, 10, 0, 0, 0), (), 11),
        (Opcode.READDIR, (1, 0, 64, 0, 0, 0), (), 65),
        (Opcode.GETXATTR, (10,), (b"user.a",), 11),
        (Opcode.LISTXATTR, (10,), (), 11),
        (Opcode.READLINK, (), (), 4096),
        (Opcode.IOCTL, (1, 0, 0, 0, 0, 8), (), 16 + 9),
    ],
)
def test_more_data_than_asked_for_is_a_bad_reply(
    opcode: Opcode, args: tuple[int, ...], names: tuple[bytes, ...], too_much: int
) -> None:
    session = connected()
    body = bytes(16) + b"x" * (too_much - 16) if opcode == Opcode.IOCTL else b"x" * too_much
    pending = session.request(opcode, 1, args, names)
    with pytest.raises(BadReply, match="were asked for"):
        session.receive(answer("<", pending.unique, body))
    pending = session.request(opcode, 1, args, names)
    assert isinstance(session.receive(answer("<", pending.unique, body[:-1])), Reply)


def test_a_write_of_more_than_was_sent_is_a_bad_reply() -> None:
    session = connected()
    pending = session.request(Opcode.WRITE, 1, (1, 0, 3, 0, 0, 0), payload=b"abc")
    with pytest.raises(BadReply, match="count at offset 16: 4 of 3"):
        session.receive(answer("<", pending.unique, WriteOut(size=4)))


def test_a_seek_beyond_every_file_is_a_bad_reply() -> None:
    session = connected()
    pending = session.request(Opcode.LSEEK, 1, (1, 0, 3))
    with pytest.raises(BadReply, match="lseek_out.offset"):
        session.receive(answer("<", pending.unique, LseekOut(offset=1 << 63)))


def test_a_link_target_with_nul_is_a_bad_reply() -> None:
    session = connected()
    pending = session.request(Opcode.READLINK, 2)
    with pytest.raises(BadReply, match="NUL after 1 bytes"):
        session.receive(answer("<", pending.unique, b"a\0b"))


def test_the_size_of_an_attribute_is_exactly_eight_bytes() -> None:
    session = connected()
    pending = session.request(Opcode.GETXATTR, 1, (0,), (b"user.a",))
    with pytest.raises(BadReply, match="getxattr_out at offset 16"):
        session.receive(answer("<", pending.unique, b"abc"))


def test_an_answer_to_interrupt_is_nothing_to_hand_on() -> None:
    session = connected()
    pending = session.request(Opcode.READ, 5, (1, 0, 10, 0, 0, 0))
    session.interrupt(pending)
    assert session.receive(answer("<", pending.unique | 1, error=errno.EAGAIN)) is None
    assert session.interrupt(pending) is not None


def test_enosys_to_interrupt_switches_interrupts_off() -> None:
    session = connected()
    pending = session.request(Opcode.READ, 5, (1, 0, 10, 0, 0, 0))
    session.interrupt(pending)
    session.receive(answer("<", pending.unique | 1, error=errno.ENOSYS))
    assert session.interrupt(pending) is None


def test_an_interrupt_answer_with_a_body_is_refused() -> None:
    session = connected()
    pending = session.request(Opcode.READ, 5, (1, 0, 10, 0, 0, 0))
    session.interrupt(pending)
    with pytest.raises(RemoteProtocolError, match="INTERRUPT"):
        session.receive(answer("<", pending.unique | 1, b"x" * 8))


def test_an_answer_to_an_interrupt_that_was_never_sent_is_refused() -> None:
    session = connected()
    pending = session.request(Opcode.READ, 5, (1, 0, 10, 0, 0, 0))
    with pytest.raises(RemoteProtocolError, match="no INTERRUPT of ours"):
        session.receive(answer("<", pending.unique | 1, error=errno.EAGAIN))


# -- ENOSYS -----------------------------------------------------------------------------------------------------------


def ask_without(session: ClientSession, opcode: Opcode, args: tuple[int, ...], names: tuple[bytes, ...]) -> int:
    pending = session.request(opcode, 1, args, names)
    reply = session.receive(answer("<", pending.unique, error=errno.ENOSYS))
    assert isinstance(reply, Reply)
    return reply.error


@pytest.mark.parametrize(
    ("opcode", "args", "names"),
    [
        (Opcode.ACCESS, (4,), ()),
        (Opcode.FLUSH, (1, 0), ()),
        (Opcode.FSYNC, (1, 0), ()),
        (Opcode.GETXATTR, (10,), (b"a",)),
        (Opcode.RENAME2, (1, 1), (b"a", b"b")),
        (Opcode.LINK, (3,), (b"a",)),
        (Opcode.CREATE, (0, 0, 0, 0), (b"a",)),
        (Opcode.COPY_FILE_RANGE_64, (1, 0, 1, 1, 0, 1, 0), ()),
    ],
)
def test_enosys_is_remembered_with_the_kernels_errno(
    opcode: Opcode, args: tuple[int, ...], names: tuple[bytes, ...]
) -> None:
    session = connected()
    assert session.without(opcode) is None
    assert ask_without(session, opcode, args, names) == ABSENT[opcode]
    assert session.without(opcode) == ABSENT[opcode]


def test_enosys_to_mkdir_is_handed_on_and_not_remembered() -> None:
    session = connected()
    assert ask_without(session, Opcode.MKDIR, (0o755, 0), (b"a",)) == errno.ENOSYS
    assert session.without(Opcode.MKDIR) is None


def test_enosys_to_ioctl_is_enotty_and_not_remembered() -> None:
    session = connected()
    assert ask_without(session, Opcode.IOCTL, (1, 0, 0, 0, 0, 0), ()) == errno.ENOTTY
    assert session.without(Opcode.IOCTL) is None


def test_enosys_to_open_is_remembered_only_if_we_offered_to_do_without() -> None:
    session = connected()
    assert ask_without(session, Opcode.OPEN, (0, 0), ()) == errno.ENOSYS
    assert session.without(Opcode.OPEN) is not None
    plain = ClientSession(flags=0)
    plain.receive(answer("<", plain.init().unique, InitOut(major=7, minor=45)))
    ask_without(plain, Opcode.OPEN, (0, 0), ())
    assert plain.without(Opcode.OPEN) is None


def test_an_operation_the_minor_does_not_have_counts_as_absent() -> None:
    assert connected_to(27).without(Opcode.SYNCFS) == 0
    assert connected_to(27).without(Opcode.STATX) == errno.ENOSYS


# -- notifications ----------------------------------------------------------------------------------------------------


def test_a_message_with_unique_0_is_a_notification() -> None:
    event = connected().receive(struct.pack("<IiQ", 16, NotifyCode.INC_EPOCH, 0))
    assert event == Event(NotifyCode.INC_EPOCH)


def test_a_notification_before_init_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="before INIT"):
        ClientSession().receive(struct.pack("<IiQ", 16, NotifyCode.INC_EPOCH, 0))


def test_a_notification_newer_than_the_minor_is_refused() -> None:
    with pytest.raises(BadNotification, match=r"code 8 does not exist in 7\.43"):
        connected_to(43).receive(struct.pack("<IiQ", 16, NotifyCode.INC_EPOCH, 0))


def test_the_answer_to_retrieve_carries_its_number() -> None:
    session = connected()
    message = session.notify_reply(Event(NotifyCode.RETRIEVE, nodeid=5, unique=77), 4096, b"data")
    head = b"".join(message)
    assert struct.unpack_from("<IIQQ", head) == (40 + 40 + 4, 41, 77, 5)
    # dummy1, offset, size, dummy2, dummy3, dummy4, then the data
    assert head[40:] == struct.pack("<QQIIQQ", 0, 4096, 4, 0, 0, 0) + b"data"


def test_entry_of_lookup_is_128_bytes() -> None:
    session = connected()
    pending = session.request(Opcode.LOOKUP, 1, (), (b"a",))
    entry = EntryOut(nodeid=5, attr=Attr(ino=5, mode=0o100644))
    reply = session.receive(answer("<", pending.unique, entry))
    assert isinstance(reply, Reply) and reply.values[0] == 5 and reply.values[6 + 9] == 0o100644
