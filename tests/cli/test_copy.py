from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from transfuse import Attr, DirEntry, Entry, Filesystem, Opened
from transfuse.cli.copy import Copier, Local, Remote, join
from transfuse.client import Client
from transfuse.filesystems.hostdir import HostDirectory
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.path import PathFilesystem
from transfuse.server import Server
from transfuse.transports.memory import MemoryTransport


@contextmanager
def client_of(filesystem: Filesystem | PathFilesystem) -> Iterator[Client]:
    transport = MemoryTransport()
    with Server(filesystem, transport), Client(transport.client) as client:
        yield client


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[tuple[Remote, Path]]:
    """A side that is a client of a host directory, and that directory."""
    top = tmp_path / "remote"
    top.mkdir()
    directory = HostDirectory(top)
    with client_of(directory) as client:
        yield Remote(client), top
    directory.close()


class Failed(AssertionError):
    pass


def fail(path: str, error: OSError) -> None:
    raise Failed(f"{path}: {error}")


@pytest.mark.parametrize(
    ("directory", "name", "path"), [("/", "a", "/a"), ("/b", "a", "/b/a"), ("/b/", "a", "/b/a"), (".", "a", "./a")]
)
def test_join(directory: str, name: str, path: str) -> None:
    assert join(directory, name) == path


def tree(top: Path) -> dict[str, object]:
    """Relative path -> what must survive a copy with -rp."""
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        st = path.lstat()
        what: object = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(top))] = (st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, what)
    return found


def fill(top: Path) -> None:
    (top / "deep/er").mkdir(parents=True)
    (top / "deep/er/file").write_bytes(os.urandom(3_000_000))
    (top / "empty").write_text("")
    (top / "link").symlink_to("deep/er")
    os.mkfifo(top / "fifo")
    (top / "locked").mkdir()
    (top / "locked/in").write_text("in")
    os.chmod(top / "locked/in", 0o400)
    os.chmod(top / "locked", 0o500)
    os.utime(top / "deep", ns=(1, 1_000_000_007))
    if os.geteuid() == 0:
        os.chown(top / "empty", 7, 8)


def test_tree_out_of_a_source_keeps_everything(remote: tuple[Remote, Path], tmp_path: Path) -> None:
    fill(remote[1])
    Copier(remote[0], Local(), True, True, fail).copy("/", str(tmp_path / "out"))
    assert tree(tmp_path / "out") == tree(remote[1])


def test_tree_into_a_source_keeps_everything(remote: tuple[Remote, Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    fill(tmp_path / "in")
    Copier(Local(), remote[0], True, True, fail).copy(str(tmp_path / "in"), "/x")
    assert tree(remote[1] / "x") == tree(tmp_path / "in")


def test_tree_from_source_to_source(remote: tuple[Remote, Path], tmp_path: Path) -> None:
    fill(remote[1])
    with client_of(MemoryFilesystem()) as memory:
        Copier(remote[0], Remote(memory), True, True, fail).copy("/", "/x")
        Copier(Remote(memory), Local(), True, True, fail).copy("/x", str(tmp_path / "out"))
    assert tree(tmp_path / "out") == tree(remote[1])


@pytest.mark.parametrize("direction", ["out", "in"])
def test_holes_stay_holes(remote: tuple[Remote, Path], tmp_path: Path, direction: str) -> None:
    here, there = (remote[1], tmp_path) if direction == "out" else (tmp_path, remote[1])
    with open(here / "holes", "wb") as file:
        file.seek(8 << 20)
        file.write(b"middle")
        file.truncate(64 << 20)
    sides = (remote[0], Local()) if direction == "out" else (Local(), remote[0])
    names = ("/holes", str(tmp_path / "copy")) if direction == "out" else (str(tmp_path / "holes"), "/copy")
    copier = Copier(*sides, False, False, fail)
    seen = 0

    def advance(count: int) -> None:
        nonlocal seen
        seen += count

    copier.advance = advance
    copier.copy(*names)
    st = (there / "copy").stat()
    assert st.st_size == 64 << 20
    assert st.st_blocks * 512 < 4 << 20
    assert copier.written < 4 << 20
    assert seen == 64 << 20
    with open(there / "copy", "rb") as file:
        file.seek(8 << 20)
        assert file.read(7) == b"middle\0"


def test_directory_needs_r(remote: tuple[Remote, Path], tmp_path: Path) -> None:
    (remote[1] / "d").mkdir()
    with pytest.raises(Failed, match="give -r"):
        Copier(remote[0], Local(), False, False, fail).copy("/d", str(tmp_path / "d"))


def test_without_r_a_link_is_followed_and_with_r_copied(remote: tuple[Remote, Path], tmp_path: Path) -> None:
    (remote[1] / "file").write_text("x")
    (remote[1] / "link").symlink_to("file")
    Copier(remote[0], Local(), False, False, fail).copy("/link", str(tmp_path / "one"))
    Copier(remote[0], Local(), True, False, fail).copy("/link", str(tmp_path / "two"))
    assert not (tmp_path / "one").is_symlink() and (tmp_path / "one").read_text() == "x"
    assert os.readlink(tmp_path / "two") == "file"


def test_existing_file_is_overwritten_and_shortened(remote: tuple[Remote, Path], tmp_path: Path) -> None:
    (remote[1] / "file").write_text("new")
    (tmp_path / "file").write_text("something longer")
    Copier(remote[0], Local(), False, False, fail).copy("/file", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "new"


def test_setuid_is_not_copied_without_p(remote: tuple[Remote, Path], tmp_path: Path) -> None:
    (remote[1] / "file").write_text("x")
    os.chmod(remote[1] / "file", 0o4755)
    Copier(remote[0], Local(), False, False, fail).copy("/file", str(tmp_path / "file"))
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) & 0o7000 == 0


class Trap(Filesystem):
    """Lists a link and a directory of the same name, or a name that is a path."""

    def __init__(self, *names: bytes) -> None:
        self._names = names
        self._asked = 0

    def lookup(self, req, parent, name):
        if name == b"x":
            self._asked += 1
            return Entry(Attr.symlink(2, 9) if self._asked == 1 else Attr.directory(3), timeout_s=0)
        return Entry(Attr.file(4, size=5))

    def getattr(self, req, nodeid, fh):
        return {1: Attr.directory(1), 2: Attr.symlink(2, 9), 3: Attr.directory(3)}.get(nodeid) or Attr.file(4, size=5)

    def readdir(self, req, nodeid, fh, offset):
        names = self._names if nodeid == 1 else (b"evil",)
        return [DirEntry(name, 2 + place) for place, name in enumerate(names)]

    def readlink(self, req, nodeid):
        return b"../outside"[:9]

    def open(self, req, nodeid, flags):
        return Opened()

    def read(self, req, nodeid, fh, size, offset):
        return b"evil\n"[offset : offset + size]


def test_nothing_is_written_through_a_link_below_a_copied_directory(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "into").mkdir()
    (tmp_path / "into/x").symlink_to("../outside")
    trap = Trap(b"x")
    trap._asked = 1  # from now on "x" is a directory
    errors: list[str] = []
    with client_of(trap) as client:
        copier = Copier(Remote(client), Local(), True, False, lambda path, error: errors.append(path))
        copier.copy("/", str(tmp_path / "into"))
    assert list((tmp_path / "outside").iterdir()) == []
    assert errors == ["/x"]


def test_file_that_breaks_off_is_taken_away(tmp_path: Path) -> None:
    class Breaks(Trap):
        def getattr(self, req, nodeid, fh):
            return Attr.directory(1) if nodeid == 1 else Attr.file(4, size=5 << 20)

        def read(self, req, nodeid, fh, size, offset):
            if offset:
                raise OSError(5, "the disk burns")
            return bytes(size)

    errors: list[str] = []
    (tmp_path / "was-there").write_text("old")
    with client_of(Breaks(b"evil")) as client:
        copier = Copier(Remote(client), Local(), False, False, lambda path, error: errors.append(path))
        copier.copy("/evil", str(tmp_path / "evil"))
        copier.copy("/evil", str(tmp_path / "was-there"))
    assert errors == ["/evil", "/evil"]
    assert not (tmp_path / "evil").exists()
    assert (tmp_path / "was-there").exists()


def test_missing_file_is_reported_and_the_rest_goes_on(remote: tuple[Remote, Path], tmp_path: Path) -> None:
    errors: list[str] = []
    copier = Copier(remote[0], Local(), False, False, lambda path, error: errors.append(path))
    copier.copy("/none", str(tmp_path / "none"))
    assert errors == ["/none"]


def test_total_is_the_sum_of_sizes(remote: tuple[Remote, Path]) -> None:
    (remote[1] / "d").mkdir()
    (remote[1] / "d/a").write_bytes(b"x" * 1000)
    (remote[1] / "b").write_bytes(b"x" * 24)
    assert Copier(remote[0], Local(), recursive=True).total("/") == 1024
    assert Copier(remote[0], Local(), recursive=False).total("/b") == 24
