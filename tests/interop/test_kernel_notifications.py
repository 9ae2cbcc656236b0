"""Every notification, sent to a real kernel."""

from __future__ import annotations

import errno
import os
import select
import threading
from pathlib import Path
from typing import Any

import pytest

from interop.counting import Counting
from interop.kernel import LONG, later, mounted
from session.peers import eventually
from transfuse.fs.request import Request
from transfuse.fs.values import Opened
from transfuse.server import mount
from transfuse.wire import flags as f

pytestmark = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse"), pytest.mark.timeout(60)]


def test_inval_inode_drops_cached_data(place: Path) -> None:
    fs = Counting(auto_inval_data=False, **LONG)
    text = [b"old!"]
    fs.answer["open"] = lambda inner, req, nodeid, flags: Opened(inner(req, nodeid, flags).fh, keep_cache=True)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"....")
        nodeid = os.stat(place / "file").st_ino
        fs.answer["read"] = lambda inner, req, nodeid, fh, size, offset: text[0][offset : offset + size]
        made.notify.inval_inode(nodeid)
        assert (place / "file").read_bytes() == b"old!"
        text[0] = b"new!"
        assert (place / "file").read_bytes() == b"old!"
        assert made.notify.inval_inode(nodeid) is True
        assert (place / "file").read_bytes() == b"new!"


def test_inval_inode_with_negative_offset_drops_attributes_only(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"....")
        (place / "file").read_bytes()
        nodeid = os.stat(place / "file").st_ino
        fs.seen.clear()
        os.stat(place / "file")
        assert fs.count("GETATTR") == 0
        made.notify.inval_inode(nodeid, -1)
        os.stat(place / "file")
        assert fs.count("GETATTR") == 1


def test_notification_of_an_unknown_node_is_false(place: Path) -> None:
    with mounted(Counting(), place) as made:
        assert made.notify.inval_inode(999_999) is False
        assert made.notify.inval_entry(999_999, b"x") is False
        assert made.notify.inval_entry(1, b"never-seen") is False
        assert made.notify.delete(1, 5, b"never-seen") is False
        with pytest.raises(FileNotFoundError):
            made.notify.retrieve(999_999, 0, 10)


@pytest.mark.parametrize("expire_only", [False, True])
def test_inval_entry_makes_the_kernel_look_again(place: Path, expire_only: bool) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"x")
        os.stat(place / "file")
        fs.seen.clear()
        os.stat(place / "file")
        assert fs.count("LOOKUP") == 0
        assert made.notify.inval_entry(1, b"file", expire_only=expire_only) is True
        os.stat(place / "file")
        assert fs.count("LOOKUP") == 1


def test_delete_of_a_directory_in_use_is_enotempty(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        (place / "dir").mkdir()
        nodeid = os.stat(place / "dir").st_ino
        with (place / "dir" / "file").open("wb"):
            with pytest.raises(OSError) as caught:
                made.notify.delete(1, nodeid, b"dir")
            assert caught.value.errno == errno.ENOTEMPTY


@pytest.mark.parametrize("right", [True, False], ids=["the child", "another child"])
def test_delete_drops_a_name(place: Path, right: bool) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"x")
        nodeid = os.stat(place / "file").st_ino
        assert made.notify.delete(1, nodeid if right else nodeid + 1000, b"file") is right
        fs.seen.clear()
        os.stat(place / "file")  # the filesystem still has it, the kernel had to ask
        assert fs.count("LOOKUP") == 1


def test_stored_data_is_read_without_a_request(place: Path) -> None:
    fs = Counting(auto_inval_data=False, **LONG)
    fs.answer["open"] = lambda inner, req, nodeid, flags: Opened(inner(req, nodeid, flags).fh, keep_cache=True)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(bytes(8192))
        nodeid = os.stat(place / "file").st_ino
        assert made.notify.store(nodeid, 0, b"s" * 8192) is True
        fs.seen.clear()
        assert (place / "file").read_bytes() == b"s" * 8192
        assert fs.count("READ") == 0


def test_stored_data_beyond_the_known_end_is_read_without_a_request(place: Path) -> None:
    fs = Counting(auto_inval_data=False, **LONG)
    fs.answer["open"] = lambda inner, req, nodeid, flags: Opened(inner(req, nodeid, flags).fh, keep_cache=True)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"x")
        nodeid = os.stat(place / "file").st_ino
        inner: Any = fs.inner  # the file grows behind the kernel's back
        fh = inner.open(Request(), nodeid, os.O_RDWR).fh
        inner.write(Request(), nodeid, fh, b"y" * 99, 1, 0)
        made.notify.store(nodeid, 0, b"x" + b"y" * 99)
        fs.seen.clear()
        assert (place / "file").read_bytes() == b"x" + b"y" * 99
        assert fs.count("READ") == 0
        inner.release(Request(), nodeid, fh, 0, 0, False)


def test_retrieve_gives_what_is_cached(place: Path) -> None:
    fs = Counting(auto_inval_data=False, **LONG)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"0123456789" * 1000)
        (place / "file").read_bytes()
        nodeid = os.stat(place / "file").st_ino
        assert made.notify.retrieve(nodeid, 5, 10).result(5) == b"5678901234"
        made.notify.inval_inode(nodeid)
        assert made.notify.retrieve(nodeid, 5, 10).result(5) == b""


def test_largest_retrieve_fits_a_request(place: Path) -> None:
    fs = Counting(auto_inval_data=False, **LONG)
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"r" * (2 << 20))
        (place / "file").read_bytes()
        nodeid = os.stat(place / "file").st_ino
        assert made.notify.retrieve(nodeid, 0, 2 << 20).result(5) == b"r" * (1 << 20)


def test_poll_is_woken(place: Path) -> None:
    fs = Counting(**LONG)
    ready: list[int] = [0]
    handles: list[int | None] = []

    def poll(inner: Any, req: Request, nodeid: int, fh: int, events: int, handle: int | None) -> int:
        handles.append(handle)
        return ready[0] & events

    fs.answer["poll"] = poll
    with mounted(fs, place) as made:
        (place / "file").write_bytes(b"x")
        with (place / "file").open("rb") as file:
            poller = select.poll()
            poller.register(file, select.POLLIN)
            assert poller.poll(0) == []
            waiting, result = later(lambda: poller.poll(10_000))
            eventually(lambda: any(handles))
            ready[0] = select.POLLIN
            assert made.notify.poll(next(handle for handle in handles if handle)) is True
            waiting.join(5)
            assert result == [[(file.fileno(), select.POLLIN)]]


def test_resent_request_is_answered_once(place: Path) -> None:
    fs = Counting()
    uniques: list[int] = []
    first, go = threading.Event(), threading.Event()

    def statfs(inner: Any, req: Request, *args: Any) -> Any:
        uniques.append(req.unique)
        if not req.unique & f.FUSE_UNIQUE_RESEND:
            first.set()
            go.wait(10)
        return inner(req, *args)

    fs.answer["statfs"] = statfs
    with mounted(fs, place) as made:
        assert made.connection.has(f.FUSE_HAS_RESEND)
        waiting, result = later(lambda: os.statvfs(place).f_namemax)
        assert first.wait(5)
        made.notify.resend()
        waiting.join(5)
        assert result == [255]
        go.set()
        assert uniques[1] == uniques[0] | f.FUSE_UNIQUE_RESEND
        eventually(lambda: made.server.session.inflight == {})
        assert os.statvfs(place).f_namemax == 255


def test_inc_epoch_makes_every_name_stale(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        if made.connection.minor < 44:
            pytest.skip(f"the kernel speaks 7.{made.connection.minor}; INC_EPOCH is 7.44")
        for name in "ab":
            (place / name).write_bytes(b"x")
        fs.seen.clear()
        made.notify.inc_epoch()
        for name in "ab":
            os.stat(place / name)
        assert fs.count("LOOKUP") == 2


def test_prune_has_unused_nodes_forgotten(place: Path) -> None:
    fs = Counting(**LONG)
    with mounted(fs, place) as made:
        if made.connection.minor < 45:
            pytest.skip(f"the kernel speaks 7.{made.connection.minor}; PRUNE is 7.45")
        nodes = []
        for name in "ab":
            (place / name).write_bytes(b"x")
            nodes.append(os.stat(place / name).st_ino)
        made.notify.prune([nodes[0], 999_999])
        eventually(lambda: fs.lookups[nodes[0]] == 0)
        assert fs.lookups[nodes[1]] > 0


def test_notification_after_the_end_is_an_error_and_goes_nowhere(place: Path) -> None:
    made = mount(Counting(), place)
    notifier = made.notify
    made.close()
    with pytest.raises(OSError) as caught:
        notifier.inval_inode(1)
    assert caught.value.errno == errno.EBADF
