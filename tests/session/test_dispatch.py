"""Which operations answer what, by what a filesystem has and by what was negotiated."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from session.peers import ALL_FLAGS, Peer, Tree, dirents, valid_requests
from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, DirEntry, Entry, Features, Opened
from transfuse.session.negotiate import Limits
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.opcodes import OPERATIONS, Opcode


class Bare(Filesystem):
    """Has what every filesystem must have, and nothing else."""

    def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
        raise FileNotFoundError(errno.ENOENT, name)

    def getattr(self, req: Request, nodeid: int, fh: int | None) -> Attr:
        return Attr.directory(nodeid)


SUCCEEDS_ANYWAY = {
    Opcode.STATFS,  # df must work
    Opcode.OPEN,  # files need no handle
    Opcode.RELEASE,
    Opcode.OPENDIR,
    Opcode.RELEASEDIR,
    Opcode.GETATTR,
}
NO_REPLY = {row.opcode for row in OPERATIONS.values() if not row.replies}


@pytest.mark.parametrize(
    "opcode",
    [Opcode(o) for o, _ in valid_requests("<") if o not in {*SUCCEEDS_ANYWAY, *NO_REPLY, Opcode.LOOKUP}],
    ids=lambda o: o.name,
)
def test_absent_operation_is_enosys(opcode: Opcode) -> None:
    peer = Peer(Bare())
    ((_, body),) = valid_requests("<", [opcode])
    assert peer.ask(opcode, body).errno == errno.ENOSYS
    assert peer.bugs == []


@pytest.mark.parametrize("opcode", sorted(SUCCEEDS_ANYWAY), ids=lambda o: o.name)
def test_operation_that_users_must_not_miss_succeeds_anyway(opcode: Opcode) -> None:
    ((_, body),) = valid_requests("<", [opcode])
    assert Peer(Bare()).ask(opcode, body).errno == 0


def test_forget_of_a_filesystem_without_it_is_nothing() -> None:
    peer = Peer(Bare())
    peer.tell(Opcode.FORGET, w.ForgetIn(nlookup=1), nodeid=2)
    peer.tell(Opcode.BATCH_FORGET, w.BatchForgetIn(count=1), w.ForgetOne(nodeid=2, nlookup=1).encode("<"))
    assert peer.bugs == []


@pytest.mark.parametrize("opcode", [7, 19, 54, 55, 99, 4095, 4096, 0xFFFFFFFF])
def test_opcode_that_is_none_is_enosys(opcode: int) -> None:
    assert Peer(Tree()).ask(opcode, bytes(16)).errno == errno.ENOSYS


@pytest.mark.parametrize("opcode", [Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING])
def test_dax_without_a_window_is_enosys(opcode: Opcode) -> None:
    ((_, body),) = valid_requests("<", [opcode])
    assert Peer(Tree()).ask(opcode, body).errno == errno.ENOSYS


# -- opens


class Opening(Tree):
    def open(self, req: Request, nodeid: int, flags: int) -> Opened:
        self.calls.append(("open", nodeid))
        return Opened(7, keep_cache=True, noflush=True)

    def release(self, req: Request, nodeid: int, fh: int, flags: int, lock_owner: int, flock_unlock: bool) -> None:
        self.calls.append(("release", nodeid, fh))


def test_open_reply_has_handle_and_flags() -> None:
    out = Peer(Opening()).open()
    assert (out.fh, out.open_flags) == (7, f.FOPEN_KEEP_CACHE | f.FOPEN_NOFLUSH)


@pytest.mark.parametrize(("flags", "number"), [(ALL_FLAGS, errno.ENOSYS), (ALL_FLAGS & ~f.FUSE_NO_OPEN_SUPPORT, 0)])
def test_open_is_enosys_only_where_no_open_was_agreed(flags: int, number: int) -> None:
    class NoOpen(Opening):
        features = Features(no_open=True)

    peer = Peer(NoOpen(), flags=flags)
    assert peer.ask(Opcode.OPEN, w.OpenIn(), nodeid=2).errno == number
    assert peer.fs.calls == ([] if number else [("open", 2)])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("flags", "number"), [(ALL_FLAGS, errno.ENOSYS), (ALL_FLAGS & ~f.FUSE_NO_OPENDIR_SUPPORT, 0)]
)
def test_opendir_is_enosys_only_where_no_opendir_was_agreed(flags: int, number: int) -> None:
    class NoOpendir(Tree):
        features = Features(no_opendir=True)

    assert Peer(NoOpendir(), flags=flags).ask(Opcode.OPENDIR, w.OpenIn()).errno == number


def test_directories_get_handles_of_their_own_where_the_filesystem_gives_none() -> None:
    peer = Peer(Tree())
    handles = {peer.ask(Opcode.OPENDIR, w.OpenIn()).struct(w.OpenOut).fh for _ in range(3)}
    assert len(handles) == 3


# -- locks


class WithLocks(Tree):
    def setlk(self, req: Request, nodeid: int, fh: int, owner: int, lock: Any, wait: bool) -> None:
        self.calls.append(("setlk", wait))


class WithFlock(Tree):
    def flock(self, req: Request, nodeid: int, fh: int, owner: int, kind: int, wait: bool) -> None:
        self.calls.append(("flock", wait))


@pytest.mark.parametrize(
    ("kind", "lk_flags", "number"),
    [(WithLocks, 0, 0), (WithLocks, 1, errno.ENOSYS), (WithFlock, 1, 0), (WithFlock, 0, errno.ENOSYS)],
)
def test_posix_and_bsd_locks_are_separate_operations(kind: type[Tree], lk_flags: int, number: int) -> None:
    peer = Peer(kind())
    body = w.LkIn(lk=w.FileLock(type=1, end=1), lk_flags=lk_flags)
    assert peer.ask(Opcode.SETLK, body).errno == number
    assert peer.bugs == []


@pytest.mark.parametrize(("kind", "bit"), [(WithFlock, f.FUSE_FLOCK_LOCKS)])
def test_lock_flags_follow_the_methods(kind: type[Tree], bit: int) -> None:
    connection = Peer(kind()).session.connection
    assert connection is not None
    assert connection.flags & (f.FUSE_POSIX_LOCKS | f.FUSE_FLOCK_LOCKS) == bit


# -- listings


def test_readdirplus_without_agreement_is_enosys() -> None:
    class Never(Tree):
        features = Features(readdirplus=False)

    assert Peer(Never()).ask(Opcode.READDIRPLUS, w.ReadIn(size=4096)).errno == errno.ENOSYS


def test_readdirplus_looks_up_what_it_lists() -> None:
    peer = Peer(Tree())
    reply = peer.ask(Opcode.READDIRPLUS, w.ReadIn(fh=1, size=4096))
    found = {name: entry.nodeid for entry, _, name, _ in dirents(reply.body, plus=True)}
    assert found == {b".": 0, b"..": 0, b"hello.txt": 2, b"sub": 3}
    assert peer.fs.lookups == {2: 1, 3: 1}  # type: ignore[attr-defined]


def test_readdirplus_counts_no_lookup_of_what_does_not_fit() -> None:
    peer = Peer(Tree())
    room = 2 * 160 + 168  # ".", "..", "hello.txt" (152 + 9, padded); "sub" is left out
    reply = peer.ask(Opcode.READDIRPLUS, w.ReadIn(fh=1, size=room))
    assert [name for _, _, name, _ in dirents(reply.body, plus=True)] == [b".", b"..", b"hello.txt"]
    assert peer.fs.lookups == {2: 1}  # type: ignore[attr-defined]


def test_readdirplus_gives_lookups_back_when_it_fails() -> None:
    class Failing(Tree):
        def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
            if name == b"sub":
                raise ZeroDivisionError
            return super().lookup(req, parent, name)

    peer = Peer(Failing())
    assert peer.ask(Opcode.READDIRPLUS, w.ReadIn(fh=1, size=4096)).errno == errno.EIO
    assert peer.fs.lookups == {2: 0}  # type: ignore[attr-defined]
    assert len(peer.bugs) == 1


def test_readdirplus_lists_what_cannot_be_looked_up_without_attributes() -> None:
    class Vanishing(Tree):
        def lookup(self, req: Request, parent: int, name: bytes) -> Entry:
            raise FileNotFoundError(errno.ENOENT, name)

    reply = Peer(Vanishing()).ask(Opcode.READDIRPLUS, w.ReadIn(fh=1, size=4096))
    records = dirents(reply.body, plus=True)
    assert [(name, entry.nodeid, kind) for entry, _, name, kind in records][2:] == [
        (b"hello.txt", 0, 8),
        (b"sub", 0, 4),
    ]


def test_listing_asked_for_with_a_huge_size_is_bounded() -> None:
    reply = Peer(Tree()).ask(Opcode.READDIR, w.ReadIn(fh=1, size=0xFFFFFFFF))
    assert reply.names() == [b".", b"..", b"hello.txt", b"sub"]


def test_coroutine_listing() -> None:
    class Later(Tree):
        async def readdir(self, req: Request, nodeid: int, fh: int, offset: int) -> list[DirEntry]:  # type: ignore[override]
            return [DirEntry(b"x", 2)]

    peer = Peer(Later())
    peer.tell(Opcode.READDIR, w.ReadIn(fh=1, size=4096))
    assert peer.channel.wait().names() == [b".", b"..", b"x"]


def test_coroutine_lookup_switches_readdirplus_off() -> None:
    class Later(Tree):
        async def lookup(self, req: Request, parent: int, name: bytes) -> Entry:  # type: ignore[override]
            return Entry(Attr.file(2))

    connection = Peer(Later()).session.connection
    assert connection is not None
    assert not connection.has(f.FUSE_DO_READDIRPLUS)


# -- allow_root


@pytest.mark.parametrize(("uid", "number"), [(1000, 0), (0, 0), (1001, errno.EACCES), (0xFFFFFFFF, errno.EACCES)])
def test_only_owner_and_root_may_in(uid: int, number: int) -> None:
    peer = Peer(Tree(), limits=Limits(owner=1000))
    assert peer.ask(Opcode.LOOKUP, b"hello.txt\0", uid=uid).errno == number
    assert peer.ask(Opcode.GETATTR, w.GetattrIn(), uid=uid).errno == number


def test_open_file_of_the_owner_serves_whoever_it_was_given_to() -> None:
    peer = Peer(Tree(), limits=Limits(owner=1000))
    assert peer.ask(Opcode.READ, w.ReadIn(size=5), nodeid=2, uid=1001).body == b"Hello"
    assert peer.ask(Opcode.RELEASE, w.ReleaseIn(), nodeid=2, uid=1001).errno == 0


def test_everybody_may_in_without_an_owner() -> None:
    assert Peer(Tree()).ask(Opcode.LOOKUP, b"hello.txt\0", uid=1001).errno == 0


class Seeking(Tree):
    features = Features(writeback_cache=True)

    def write(self, req: Request, nodeid: int, fh: int, data: object, offset: int, flags: int) -> int:
        return 0

    def lseek(self, req: Request, nodeid: int, fh: int, offset: int, whence: int) -> int:
        return offset


@pytest.mark.parametrize(("flags", "number"), [(ALL_FLAGS, errno.ENOSYS), (ALL_FLAGS & ~f.FUSE_WRITEBACK_CACHE, 0)])
def test_lseek_is_absent_where_the_peer_collects_writes(flags: int, number: int) -> None:
    assert Peer(Seeking(), flags=flags).ask(Opcode.LSEEK, w.LseekIn(whence=3)).errno == number
