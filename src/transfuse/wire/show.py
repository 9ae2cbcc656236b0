"""One line of text for any message, for logs and traces: driven by the OPERATIONS table and the tables of flags.

    #42 LOOKUP nodeid 1 "hello.txt" uid 1000
    #42 -> entry nodeid 2 gen 0 ttl 1 s REG 0644 14 bytes ino 2
    notify INVAL_ENTRY parent 1 namelen 9 "hello.txt"

What these functions get may be anything: a message that is cut short or makes no sense is shown as far as it goes, and
nothing is raised. Fields that are zero are left out, except those that place or size something. No line is longer than
MAX_LINE, whatever a peer puts into a name.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

from transfuse.errors import RemoteProtocolError
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.decode import IN_HEADER, IN_HEADER_SIZE, OUT_HEADER, OUT_HEADER_SIZE, byte_order_of_init
from transfuse.wire.encode import Message, RangeReply
from transfuse.wire.layout import Buffer, ByteOrder, WireStruct
from transfuse.wire.opcodes import NOTIFICATIONS, OPERATIONS, Opcode, opcode_name

__all__ = ["show_message", "show_reply", "show_request", "traced"]

MAX_LINE = 500
"""Most characters of one line."""
MAX_SHOWN_NAME = 80
"""Most bytes of one name that are shown."""
MAX_SHOWN_ITEMS = 4
"""Most entries of a listing or a batch that are shown; the rest is counted."""

_KINDS = {1: "FIFO", 2: "CHR", 4: "DIR", 6: "BLK", 8: "REG", 10: "LNK", 12: "SOCK"}
_LOCKS = {0: "RDLCK", 1: "WRLCK", 2: "UNLCK"}
_ALWAYS = frozenset({"fh", "offset", "size", "nlookup", "start", "end", "newdir", "count", "whence"})
_OCTAL = frozenset({"mode", "umask"})
_O_NAMES = {
    1: "WRONLY",
    2: "RDWR",
    0o100: "CREAT",
    0o200: "EXCL",
    0o1000: "TRUNC",
    0o2000: "APPEND",
    0o4000: "NONBLOCK",
    0o10000: "DSYNC",
    0o40000: "DIRECT",
    0o100000: "LARGEFILE",
    0o200000: "DIRECTORY",
    0o400000: "NOFOLLOW",
    0o1000000: "NOATIME",
    0o2000000: "CLOEXEC",
    0o4000000: "SYNC",
}
"""open(2) flags in their asm-generic values; another architecture's show as what they are numerically."""

_FLAG_FIELDS: dict[tuple[type[WireStruct], str], dict[int, str]] = {
    (w.OpenIn, "flags"): _O_NAMES,
    (w.OpenIn, "open_flags"): f.OPEN_KILL_NAMES,
    (w.CreateIn, "flags"): _O_NAMES,
    (w.CreateIn, "open_flags"): f.OPEN_KILL_NAMES,
    (w.ReadIn, "flags"): _O_NAMES,
    (w.ReadIn, "read_flags"): f.READ_NAMES,
    (w.WriteIn, "flags"): _O_NAMES,
    (w.WriteIn, "write_flags"): f.WRITE_NAMES,
    (w.ReleaseIn, "flags"): _O_NAMES,
    (w.ReleaseIn, "release_flags"): f.RELEASE_NAMES,
    (w.OpenOut, "open_flags"): f.FOPEN_NAMES,
    (w.GetattrIn, "getattr_flags"): f.GETATTR_NAMES,
    (w.StatxIn, "getattr_flags"): f.GETATTR_NAMES,
    (w.SetattrIn, "valid"): f.FATTR_NAMES,
    (w.SetxattrIn, "setxattr_flags"): f.SETXATTR_NAMES,
    (w.FsyncIn, "fsync_flags"): f.FSYNC_NAMES,
    (w.LkIn, "lk_flags"): f.LK_NAMES,
    (w.IoctlIn, "flags"): f.IOCTL_NAMES,
    (w.IoctlOut, "flags"): f.IOCTL_NAMES,
    (w.PollIn, "flags"): f.POLL_NAMES,
    (w.SetupmappingIn, "flags"): f.SETUPMAPPING_NAMES,
    (w.NotifyInvalEntryOut, "flags"): f.INVAL_ENTRY_NAMES,
}


def show_request(buffer: Buffer, order: ByteOrder = "<", start: int = 0, end: int | None = None) -> str:
    """One line for the request in buffer[start:end]. An INIT is recognised in either byte order."""
    data = bytes(memoryview(buffer)[start:end])
    if len(data) < IN_HEADER_SIZE:
        return _line([f"request of {len(data)} bytes without a whole header: {data.hex()}"])
    order = byte_order_of_init(data, 0, len(data)) or order
    length, opcode, unique, nodeid, uid, gid, pid, extlen = IN_HEADER[order].unpack_from(data)
    words = [f"#{unique} {opcode_name(opcode)} nodeid {nodeid}"]
    stop = max(IN_HEADER_SIZE, len(data) - 8 * extlen)
    row = OPERATIONS.get(opcode)
    if row is None:
        words.append(f"{stop - IN_HEADER_SIZE} bytes")
    else:
        at = IN_HEADER_SIZE
        if row.request is not None:
            at = _show_struct(words, row.request, data[:stop], at, order)
        for _ in range(row.names):
            at = _show_name(words, data[:stop], at)
        if opcode == Opcode.BATCH_FORGET:
            _show_forgets(words, data[at:stop], order)
        elif at < stop:
            words.append(f"{stop - at} bytes")
    if extlen:
        words.append(f"extensions {8 * extlen} bytes")
    words += [f"{name} {value}" for name, value in (("uid", uid), ("gid", gid), ("pid", pid)) if value]
    if length != len(data):
        words.append(f"(says {length} bytes, has {len(data)})")
    return _line(words)


def show_reply(message: Message, opcode: int | None = None, order: ByteOrder = "<") -> str:
    """One line for a reply to a request of `opcode` (None: not known), or for a notification."""
    if isinstance(message, RangeReply):
        return f"#{message.unique} -> up to {message.length} bytes of fd {message.fd} from {message.offset}"
    data = b"".join(message) if isinstance(message, list) else bytes(message)
    if len(data) < OUT_HEADER_SIZE:
        return _line([f"reply of {len(data)} bytes without a whole header: {data.hex()}"])
    length, error, unique = OUT_HEADER[order].unpack_from(data)
    if unique == 0:
        words = _notification(data, error, order)
    elif error:
        words = [f"#{unique} -> error {errno.errorcode.get(-error, error)}"]
        if len(data) > OUT_HEADER_SIZE:
            words.append(f"and {len(data) - OUT_HEADER_SIZE} bytes")
    else:
        words = [f"#{unique} ->"]
        _reply_body(words, data, opcode, order)
    if length != len(data):
        words.append(f"(says {length} bytes, has {len(data)})")
    return _line(words)


def show_message(message: Message, order: ByteOrder = "<") -> str:
    """One line for what a server sends by itself: a notification, or a reply whose request is not known."""
    return show_reply(message, None, order)


class _TracedChannel:
    """Shows the replies that come later than their requests return."""

    def __init__(self, channel: Any, show: Callable[[Message], str], log: Callable[[str], None]) -> None:
        self._channel, self._show, self._log = channel, show, log

    def send(self, message: Message) -> bool:
        taken = bool(self._channel.send(message))
        self._log(self._show(message) + ("" if taken else " (not wanted any more)"))
        return taken


Handle = Callable[[Buffer, int, int, Any], "Message | None"]


def traced(handle: Handle, log: Callable[[str], None]) -> Handle:
    """`handle` of a session with a line logged for each request and each reply; what `--debug` puts around it.

    The byte order is learnt from INIT, like the session does.
    """
    known: dict[str, ByteOrder] = {"order": "<"}

    def handle_and_log(buffer: Buffer, start: int, end: int, channel: Any) -> Message | None:
        opcode = None
        if end - start >= IN_HEADER_SIZE:
            known["order"] = byte_order_of_init(buffer, start, end) or known["order"]
            opcode = IN_HEADER[known["order"]].unpack_from(buffer, start)[1]
        order = known["order"]
        log(show_request(buffer, order, start, end))

        def show(message: Message) -> str:
            return show_reply(message, opcode, order)

        message = handle(buffer, start, end, _TracedChannel(channel, show, log))
        if message is not None:
            log(show(message))
        return message

    return handle_and_log


def _reply_body(words: list[str], data: bytes, opcode: int | None, order: ByteOrder) -> None:
    row = OPERATIONS.get(opcode) if opcode is not None else None
    at = OUT_HEADER_SIZE
    rest = len(data) - at
    if row is None:
        words.append(f"ok {rest} bytes" if rest else "ok")
        return
    if opcode in (Opcode.READDIR, Opcode.READDIRPLUS):
        _show_listing(words, data[at:], order, plus=opcode == Opcode.READDIRPLUS)
        return
    if opcode == Opcode.READLINK:
        words.append(_quoted(data[at:]))
        return
    for kind in row.reply:
        at = _show_struct(words, kind, data, at, order)
    if at < len(data) or (row.reply_data and not row.reply):
        words.append(f"{len(data) - at} bytes")
    elif not row.reply:
        words.append("ok")


def _notification(data: bytes, code: int, order: ByteOrder) -> list[str]:
    row = NOTIFICATIONS.get(code)
    if row is None:
        return [f"notify {code} {len(data) - OUT_HEADER_SIZE} bytes"]
    words = [f"notify {row.code.name}"]
    at = OUT_HEADER_SIZE
    if row.body is not None:
        at = _show_struct(words, row.body, data, at, order)
    for _ in range(row.names):
        at = _show_name(words, data, at)
    if at < len(data):
        words.append(f"{len(data) - at} bytes")
    return words


def _show_struct(words: list[str], kind: type[WireStruct], data: bytes, at: int, order: ByteOrder) -> int:
    """Add the structure at `at`; returns where it ends. What is too short is filled up with zeros, and said so."""
    size = kind.SIZE
    if kind is w.InitIn and len(data) - at < size:
        size = kind.size_at(0)
    raw = data[at : at + size]
    if len(raw) < size:
        words.append(f"(only {len(raw)} of {size} bytes)")
    try:
        value = kind.decode(raw.ljust(kind.SIZE, b"\0"), 0, order)
    except (RemoteProtocolError, struct.error) as error:  # cannot happen: the length is right
        words.append(f"({error})")
        return min(len(data), at + size)
    _SPECIAL.get(kind, _show_fields)(words, value)
    return min(len(data), at + size)


def _show_fields(words: list[str], value: WireStruct) -> None:
    kind = type(value)
    for name in kind.__slots__:  # type: ignore[attr-defined]
        got = getattr(value, name)
        if isinstance(got, WireStruct):
            _SPECIAL.get(type(got), _show_fields)(words, got)
        elif got or name in _ALWAYS:
            table = _FLAG_FIELDS.get((kind, name))
            if table is not None:
                words.append(f"{name} {f.names(got, table)}")
            elif isinstance(got, int):
                words.append(f"{name} {got:#o}" if name in _OCTAL else f"{name} {got}")
            else:
                words.append(f"{name} {got!r}")


def _show_attr(words: list[str], a: Any) -> None:
    words.append(f"{_KINDS.get(a.mode >> 12, f'type {a.mode >> 12}')} {a.mode & 0o7777:04o} {a.size} bytes ino {a.ino}")
    words += [f"{name} {got}" for name in ("uid", "gid") if (got := getattr(a, name))]


def _ttl(seconds: int, nanoseconds: int) -> str:
    return f"{seconds + nanoseconds / 1e9:g} s"


def _show_entry(words: list[str], e: Any) -> None:
    if not e.nodeid:
        words.append(f"negative ttl {_ttl(e.entry_valid, e.entry_valid_nsec)}")
        return
    words.append(f"entry nodeid {e.nodeid} gen {e.generation} ttl {_ttl(e.entry_valid, e.entry_valid_nsec)}")
    _show_attr(words, e.attr)


def _show_attr_out(words: list[str], a: Any) -> None:
    words.append(f"attr ttl {_ttl(a.attr_valid, a.attr_valid_nsec)}")
    _show_attr(words, a.attr)


def _show_statx_out(words: list[str], a: Any) -> None:
    words.append(f"statx mask {a.stat.mask:#x} ttl {_ttl(a.attr_valid, a.attr_valid_nsec)}")
    _show_attr(words, a.stat)


def _show_lock(words: list[str], lock: Any) -> None:
    words.append(f"{_LOCKS.get(lock.type, f'type {lock.type}')} {lock.start}..{lock.end}")
    if lock.pid:
        words.append(f"lock pid {lock.pid}")


def _show_init(words: list[str], init: Any) -> None:
    flags = init.flags
    if flags & f.FUSE_INIT_EXT:
        flags |= init.flags2 << 32
    words.append(f"{init.major}.{init.minor}")
    for name in ("max_readahead", "max_write", "max_pages", "max_background", "max_stack_depth", "request_timeout"):
        if getattr(init, name, 0):
            words.append(f"{name} {getattr(init, name)}")
    words.append(f.names(flags, f.INIT_NAMES))


_SPECIAL: dict[type[WireStruct], Callable[[list[str], Any], None]] = {
    w.Attr: _show_attr,
    w.EntryOut: _show_entry,
    w.AttrOut: _show_attr_out,
    w.StatxOut: _show_statx_out,
    w.FileLock: _show_lock,
    w.InitIn: _show_init,
    w.InitOut: _show_init,
}


def _show_name(words: list[str], data: bytes, at: int) -> int:
    """Add the name at `at`; returns where the next one begins."""
    stop = data.find(0, at)
    if stop < 0:
        words.append(f"{_quoted(data[at:])} (not terminated)")
        return len(data)
    words.append(_quoted(data[at:stop]))
    return stop + 1


def _escaped(ch: str) -> str:
    if ch in '"\\':
        return "\\" + ch
    if "\udc80" <= ch <= "\udcff":
        return f"\\x{ord(ch) - 0xDC00:02x}"  # a byte that is no UTF-8
    return ch if ch.isprintable() else ch.encode("unicode_escape").decode()


def _quoted(name: bytes) -> str:
    text = "".join(map(_escaped, name[:MAX_SHOWN_NAME].decode("utf-8", "surrogateescape")))
    return f'"{text}"' if len(name) <= MAX_SHOWN_NAME else f'"{text}"… ({len(name)} bytes)'


def _show_forgets(words: list[str], data: bytes, order: ByteOrder) -> None:
    whole = data[: len(data) // w.ForgetOne.SIZE * w.ForgetOne.SIZE]
    pairs = list(w.ForgetOne.codec(order).iter_unpack(whole))
    words += [f"{nodeid}×{nlookup}" for nodeid, nlookup in pairs[:MAX_SHOWN_ITEMS]]
    if len(pairs) > MAX_SHOWN_ITEMS:
        words.append(f"and {len(pairs) - MAX_SHOWN_ITEMS} more")
    if len(whole) < len(data):
        words.append(f"{len(data) - len(whole)} bytes")


def _show_listing(words: list[str], data: bytes, order: ByteOrder, plus: bool) -> None:
    names: list[bytes] = []
    unpack = w.Dirent.codec(order).unpack_from
    head = w.EntryOut.SIZE if plus else 0
    at = 0
    while at + head + w.Dirent.SIZE <= len(data):
        namelen = unpack(data, at + head)[2]
        begin = at + head + w.Dirent.SIZE
        names.append(data[begin : begin + namelen])
        at = begin + namelen + (-namelen & 7)
    words.append(f"{len(names)} entries")
    words += [_quoted(name) for name in names[:MAX_SHOWN_ITEMS]]
    if len(names) > MAX_SHOWN_ITEMS:
        words.append("…")
    if at != len(data):
        words.append(f"(records end at {at} of {len(data)} bytes)")


def _line(words: list[str]) -> str:
    text = " ".join(words)
    return text if len(text) <= MAX_LINE else text[: MAX_LINE - 1] + "…"
