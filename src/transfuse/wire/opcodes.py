"""The operations of FUSE as one table, which decoder, dispatcher, printer, client and docs all read.

A row says what a request carries after its header (a structure, then names, then payload), what the reply carries, and
since which minor it exists. Opcodes are plain integers on the hot path; `Opcode` gives them names where people read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from transfuse.wire import structs
from transfuse.wire.layout import WireStruct

__all__ = [
    "MAX_OPCODE",
    "NOTIFICATIONS",
    "OPERATIONS",
    "Notification",
    "NotifyCode",
    "Opcode",
    "Operation",
    "opcode_name",
]


class Opcode(IntEnum):
    """Request numbers; 7, 19 and 54 upwards are free in mainline."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53
    CUSE_INIT = 4096


class NotifyCode(IntEnum):
    """Codes of messages from server to client, sent as out_header.error with unique 0."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8
    PRUNE = 9


MAX_OPCODE = 53
"""Largest opcode of the dense part of the table."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What one request and its reply look like on the wire."""

    opcode: Opcode
    request: type[WireStruct] | None = None
    """Structure after the header."""
    reply: tuple[type[WireStruct], ...] = ()
    """Structures of a successful reply, in order."""
    names: int = 0
    """NUL-terminated strings after the structure."""
    payload: bool = False
    """Bytes after structure and names; their number is in the structure (or, for forgets, its count)."""
    reply_data: bool = False
    """The reply ends in (or is) bytes of variable length."""
    replies: bool = True
    """False: the peer waits for no answer."""
    since: int = 0
    """Protocol minor that introduced the operation; 0 means before 7.9."""
    extensions: bool = False
    """May carry extension records (security contexts, supplementary groups) behind everything else."""

    @property
    def name(self) -> str:
        """The opcode's name without prefix."""
        return self.opcode.name


_ENTRY = (structs.EntryOut,)
_O = Operation
OPERATIONS: dict[int, Operation] = {
    int(row.opcode): row
    for row in (
        _O(Opcode.LOOKUP, None, _ENTRY, names=1),
        _O(Opcode.FORGET, structs.ForgetIn, replies=False),
        _O(Opcode.GETATTR, structs.GetattrIn, (structs.AttrOut,)),
        _O(Opcode.SETATTR, structs.SetattrIn, (structs.AttrOut,)),
        _O(Opcode.READLINK, None, reply_data=True),
        _O(Opcode.SYMLINK, None, _ENTRY, names=2, extensions=True),
        _O(Opcode.MKNOD, structs.MknodIn, _ENTRY, names=1, extensions=True),
        _O(Opcode.MKDIR, structs.MkdirIn, _ENTRY, names=1, extensions=True),
        _O(Opcode.UNLINK, None, names=1),
        _O(Opcode.RMDIR, None, names=1),
        _O(Opcode.RENAME, structs.RenameIn, names=2),
        _O(Opcode.LINK, structs.LinkIn, _ENTRY, names=1),
        _O(Opcode.OPEN, structs.OpenIn, (structs.OpenOut,)),
        _O(Opcode.READ, structs.ReadIn, reply_data=True),
        _O(Opcode.WRITE, structs.WriteIn, (structs.WriteOut,), payload=True),
        _O(Opcode.STATFS, None, (structs.StatfsOut,)),
        _O(Opcode.RELEASE, structs.ReleaseIn),
        _O(Opcode.FSYNC, structs.FsyncIn),
        _O(Opcode.SETXATTR, structs.SetxattrIn, names=1, payload=True),
        _O(Opcode.GETXATTR, structs.GetxattrIn, names=1, reply_data=True),
        _O(Opcode.LISTXATTR, structs.GetxattrIn, reply_data=True),
        _O(Opcode.REMOVEXATTR, None, names=1),
        _O(Opcode.FLUSH, structs.FlushIn),
        _O(Opcode.INIT, structs.InitIn, (structs.InitOut,)),
        _O(Opcode.OPENDIR, structs.OpenIn, (structs.OpenOut,)),
        _O(Opcode.READDIR, structs.ReadIn, reply_data=True),
        _O(Opcode.RELEASEDIR, structs.ReleaseIn),
        _O(Opcode.FSYNCDIR, structs.FsyncIn),
        _O(Opcode.GETLK, structs.LkIn, (structs.LkOut,)),
        _O(Opcode.SETLK, structs.LkIn),
        _O(Opcode.SETLKW, structs.LkIn),
        _O(Opcode.ACCESS, structs.AccessIn),
        _O(Opcode.CREATE, structs.CreateIn, (structs.EntryOut, structs.OpenOut), names=1, extensions=True),
        _O(Opcode.INTERRUPT, structs.InterruptIn, replies=False),
        _O(Opcode.BMAP, structs.BmapIn, (structs.BmapOut,)),
        _O(Opcode.DESTROY, None),
        _O(Opcode.IOCTL, structs.IoctlIn, (structs.IoctlOut,), payload=True, reply_data=True, since=11),
        _O(Opcode.POLL, structs.PollIn, (structs.PollOut,), since=11),
        _O(Opcode.NOTIFY_REPLY, structs.NotifyRetrieveIn, payload=True, replies=False, since=15),
        _O(Opcode.BATCH_FORGET, structs.BatchForgetIn, payload=True, replies=False, since=16),
        _O(Opcode.FALLOCATE, structs.FallocateIn, since=19),
        _O(Opcode.READDIRPLUS, structs.ReadIn, reply_data=True, since=21),
        _O(Opcode.RENAME2, structs.Rename2In, names=2, since=23),
        _O(Opcode.LSEEK, structs.LseekIn, (structs.LseekOut,), since=24),
        _O(Opcode.COPY_FILE_RANGE, structs.CopyFileRangeIn, (structs.WriteOut,), since=28),
        _O(Opcode.SETUPMAPPING, structs.SetupmappingIn, since=31),
        _O(Opcode.REMOVEMAPPING, structs.RemovemappingIn, payload=True, since=31),
        _O(Opcode.SYNCFS, structs.SyncfsIn, since=34),
        _O(Opcode.TMPFILE, structs.CreateIn, (structs.EntryOut, structs.OpenOut), names=1, extensions=True, since=37),
        _O(Opcode.STATX, structs.StatxIn, (structs.StatxOut,), since=39),
        _O(Opcode.COPY_FILE_RANGE_64, structs.CopyFileRangeIn, (structs.CopyFileRangeOut,), since=45),
        _O(Opcode.CUSE_INIT, structs.CuseInitIn, (structs.CuseInitOut,), reply_data=True, since=12),
    )
}


@dataclass(frozen=True, slots=True)
class Notification:
    """What one notification looks like on the wire."""

    code: NotifyCode
    body: type[WireStruct] | None
    names: int = 0
    payload: bool = False
    since: int = 0


_N = Notification
NOTIFICATIONS: dict[int, Notification] = {
    int(row.code): row
    for row in (
        _N(NotifyCode.POLL, structs.NotifyPollWakeupOut, since=11),
        _N(NotifyCode.INVAL_INODE, structs.NotifyInvalInodeOut, since=12),
        _N(NotifyCode.INVAL_ENTRY, structs.NotifyInvalEntryOut, names=1, since=12),
        _N(NotifyCode.STORE, structs.NotifyStoreOut, payload=True, since=15),
        _N(NotifyCode.RETRIEVE, structs.NotifyRetrieveOut, since=15),
        _N(NotifyCode.DELETE, structs.NotifyDeleteOut, names=1, since=18),
        _N(NotifyCode.RESEND, None, since=40),
        _N(NotifyCode.INC_EPOCH, None, since=44),
        _N(NotifyCode.PRUNE, structs.NotifyPruneOut, payload=True, since=45),
    )
}


def opcode_name(opcode: int) -> str:
    """The name of an opcode, or "opcode 99" for one that is not known."""
    row = OPERATIONS.get(opcode)
    return row.opcode.name if row is not None else f"opcode {opcode}"
