"""How open files share a backing file with the kernel: what the first open decides, and when it is given back."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from session.peers import Peer, Tree
from transfuse.fs.backing import BackingFile
from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Entry, Features, Opened
from transfuse.session.negotiate import Limits
from transfuse.session.passthrough import PassthroughTable
from transfuse.wire import flags as f
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode


class Backed(Tree):
    """Each open gives the next of `opens`."""

    features = Features(passthrough=True)

    def __init__(self, *opens: Opened) -> None:
        super().__init__()
        self.opens = list(opens)

    def open(self, req: Request, nodeid: int, flags: int) -> Opened:
        return self.opens.pop(0)

    def create(self, req: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> tuple[Entry, Opened]:
        self.lookups[2] = self.lookups.get(2, 0) + 1
        return Entry(Attr.file(2)), self.opens.pop(0)

    def release(self, req: Request, nodeid: int, fh: int, flags: int, lock_owner: int, flock_unlock: bool) -> None:
        self.calls.append(("release", nodeid, fh))


def backed(*opens: Opened, passthrough: bool = True) -> Peer:
    return Peer(Backed(*opens), limits=Limits(passthrough=passthrough))


def close(peer: Peer, nodeid: int = 2, fh: int = 0) -> None:
    assert peer.ask(Opcode.RELEASE, w.ReleaseIn(fh=fh), nodeid=nodeid).errno == 0


def test_open_with_a_backing_file() -> None:
    peer = backed(Opened(5, backing_fd=33))
    out = peer.open()
    assert (out.fh, out.open_flags, out.backing_id) == (5, f.FOPEN_PASSTHROUGH, 1)
    assert peer.host.backing == {1: 33}


def test_open_without_a_backing_file() -> None:
    peer = backed(Opened(5, keep_cache=True))
    out = peer.open()
    assert (out.open_flags, out.backing_id) == (f.FOPEN_KEEP_CACHE, 0)


def test_backing_file_is_not_used_where_passthrough_was_not_agreed() -> None:
    peer = backed(Opened(5, backing_fd=33, keep_cache=True), passthrough=False)
    out = peer.open()
    assert (out.open_flags, out.backing_id) == (f.FOPEN_KEEP_CACHE, 0)
    assert peer.host.backing == {}


def test_flags_that_linux_refuses_beside_passthrough_are_left_out() -> None:
    opened = Opened(
        5,
        backing_fd=33,
        keep_cache=True,
        cache_dir=True,
        nonseekable=True,
        noflush=True,
        direct_io=True,
        parallel_direct_writes=True,
    )
    assert backed(opened).open().open_flags == (f.FOPEN_PASSTHROUGH | f.FOPEN_NOFLUSH | f.FOPEN_PARALLEL_DIRECT_WRITES)


def test_direct_io_does_not_send_data_of_a_backed_open_to_the_server() -> None:
    peer = backed(Opened(5, backing_fd=33, direct_io=True))
    assert peer.open().open_flags == f.FOPEN_PASSTHROUGH


def test_every_open_of_a_node_shares_one_id() -> None:
    peer = backed(Opened(5, backing_fd=33), Opened(6, backing_fd=34))
    assert [peer.open().backing_id for _ in range(2)] == [1, 1]
    assert peer.host.backing == {1: 33}


def test_id_is_given_back_after_the_last_release() -> None:
    peer = backed(Opened(5, backing_fd=33), Opened(6, backing_fd=33))
    peer.open()
    peer.open()
    close(peer)
    assert peer.host.backing == {1: 33}
    close(peer)
    assert peer.host.backing == {}


def test_next_open_after_the_last_release_chooses_anew() -> None:
    peer = backed(Opened(5), Opened(6, backing_fd=33))
    assert peer.open().backing_id == 0
    close(peer)
    assert peer.open().backing_id == 1


def test_cached_open_first_makes_the_next_cached_too() -> None:
    # A passthrough open now would be ETXTBSY in the kernel, and EIO for the application.
    peer = backed(Opened(5), Opened(6, backing_fd=33))
    peer.open()
    out = peer.open()
    assert (out.open_flags & f.FOPEN_PASSTHROUGH, out.backing_id) == (0, 0)
    assert peer.host.backing == {}


def test_passthrough_open_first_makes_the_next_passthrough_too() -> None:
    peer = backed(Opened(5, backing_fd=33), Opened(6, direct_io=True))
    peer.open()
    out = peer.open()
    assert (out.open_flags, out.backing_id) == (f.FOPEN_PASSTHROUGH | f.FOPEN_DIRECT_IO, 1)


@pytest.mark.parametrize("number", [errno.ELOOP, errno.EPERM, errno.EINVAL, errno.EBADF])
def test_file_that_the_kernel_does_not_take_goes_through_the_server(number: int) -> None:
    peer = backed(Opened(5, backing_fd=33, keep_cache=True))
    peer.host.backing_error = OSError(number, "no")
    out = peer.open()
    assert (out.open_flags, out.backing_id) == (f.FOPEN_KEEP_CACHE, 0)
    assert peer.session.passthrough.refused == 1


def test_create_counts_for_the_made_node() -> None:
    peer = backed(Opened(5, backing_fd=33))
    reply = peer.ask(Opcode.CREATE, w.CreateIn(), b"x\0")
    assert reply.struct(w.OpenOut, w.EntryOut.SIZE).backing_id == 1
    close(peer)
    assert peer.host.backing == {}


def test_reply_that_cannot_be_made_counts_for_nothing() -> None:
    peer = backed(Opened(1 << 70, backing_fd=33), Opened(1 << 70, backing_fd=33))
    assert peer.ask(Opcode.OPEN, w.OpenIn(), nodeid=2).errno == errno.EIO
    assert peer.ask(Opcode.CREATE, w.CreateIn(), b"x\0").errno == errno.EIO
    assert len(peer.bugs) == 2
    assert peer.host.backing == {}


@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.CREATE])
def test_open_that_the_peer_did_not_wait_for_is_undone(opcode: Opcode) -> None:
    peer = backed(Opened(5, backing_fd=33))
    body = w.OpenIn().encode("<") if opcode == Opcode.OPEN else w.CreateIn().encode("<") + b"x\0"
    _, raw = peer.build(opcode, body, nodeid=2 if opcode == Opcode.OPEN else 1)
    message = peer.give(raw)
    assert message is not None
    peer.session.undelivered(raw, 0, message)
    assert peer.host.backing == {}
    assert peer.fs.calls == [("release", 2, 5)]  # type: ignore[attr-defined]
    assert peer.fs.lookups.get(2, 0) == 0  # type: ignore[attr-defined]


def test_end_of_the_connection_gives_everything_back() -> None:
    peer = backed(Opened(5, backing_fd=33), Opened(6, backing_fd=34))
    peer.open(2)
    peer.open(3)
    peer.session.end()
    assert peer.host.backing == {}


def test_release_of_what_is_not_open_is_nothing() -> None:
    table = PassthroughTable(lambda fd: 1, lambda backing_id: pytest.fail("given back"))
    table.released(2)
    table.opened(2, None)
    table.released(2)
    table.released(2)


def test_backing_file_with_something_around_it_is_registered_inside() -> None:
    seen: list[str] = []

    def around(register: Callable[[int], int], fd: int) -> int:
        seen.append("before")
        return register(fd)

    def register(fd: int) -> int:
        seen.append(f"register {fd}")
        return 9

    table = PassthroughTable(register, lambda backing_id: None)
    assert table.opened(2, BackingFile(33, around)) == 9
    assert seen == ["before", "register 33"]
