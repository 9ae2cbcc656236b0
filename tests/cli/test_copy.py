from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from transfuse import Attr, DirEntry, Entry, Filesystem, Opened
from transfuse.cli.copy import Copier, _filled
from transfuse.cli.links import LinkTable
from transfuse.cli.sides import Local, Remote, Side
from transfuse.client import Client
from transfuse.filesystems.hostdir import HostDirectory
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.path import PathFilesystem
from transfuse.fs.shared import Shared
from transfuse.server import Server
from transfuse.transports.memory import MemoryTransport
from transfuse.transports.stream import StreamClientTransport, StreamListener


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


# -- everything as it is: over every kind of side ---------------------------------------------------------------------

SIZE = 3_000_000
Ends = tuple[Side, str]


def names_of(end: Ends, name: str) -> str:
    return f"{end[1]}/{name}"


@contextmanager
def end_of(kind: str, folder: Path) -> Iterator[Ends]:
    """A side of this kind and the directory of it to work in."""
    folder.mkdir()
    if kind == "local":
        yield Local(), str(folder)
    elif kind == "memory":
        with client_of(MemoryFilesystem()) as client:
            yield Remote(client), ""
    elif kind == "directory":
        directory = HostDirectory(folder)
        with client_of(directory) as client:
            yield Remote(client), ""
        directory.close()
    else:
        shared = Shared(MemoryFilesystem())
        listener = StreamListener(folder / "sock", lambda t: Server(shared.view(), t).start())
        with listener, Client(StreamClientTransport.connect(folder / "sock")) as client:
            yield Remote(client), ""


def write(end: Ends, name: str, data: bytes = b"", mode: int = 0o644) -> None:
    with end[0].open_raw(names_of(end, name), os.O_RDWR | os.O_CREAT, mode) as file:
        file.write(data)


ACL_FOR_7 = bytes.fromhex(  # version 2; then tag, permissions and id of each entry: 8 bytes
    "02000000 01000600ffffffff 0200040007000000 04000400ffffffff 10000400ffffffff 20000000ffffffff"
)
ACL = "system.posix_acl_access"


def plant(end: Ends) -> None:
    """/t: files with several names in several directories, a sparse one, attributes, ACLs, odd modes and times."""
    side = end[0]
    for directory in ("t", "t/a", "t/b"):
        side.mkdir(names_of(end, directory), 0o755)
    write(end, "t/a/one", os.urandom(SIZE))
    side.link(names_of(end, "t/a/one"), names_of(end, "t/b/two"))
    side.link(names_of(end, "t/a/one"), names_of(end, "t/three"))
    write(end, "t/a/single", b"single")
    side.symlink("one", names_of(end, "t/a/link"))
    side.link(names_of(end, "t/a/link"), names_of(end, "t/b/link2"))
    side.mknod(names_of(end, "t/a/fifo"), stat.S_IFIFO | 0o600, 0)
    side.link(names_of(end, "t/a/fifo"), names_of(end, "t/b/fifo2"))
    with side.open_raw(names_of(end, "t/holes"), os.O_RDWR | os.O_CREAT, 0o600) as file:
        file.seek(8 << 20)
        file.write(b"middle")
        file.truncate(32 << 20)
    side.setxattr(names_of(end, "t/a/one"), "user.colour", b"blue\0green", False)
    side.setxattr(names_of(end, "t/a"), "user.of-a-directory", b"", False)
    side.chmod(names_of(end, "t/a/single"), 0o400)
    write(end, "t/b/acl", b"x")
    side.setxattr(names_of(end, "t/b/acl"), ACL, ACL_FOR_7, False)
    side.chmod(names_of(end, "t/three"), 0o640)
    if os.geteuid() == 0:
        side.lchown(names_of(end, "t/a/single"), 7, 8)
        side.lchown(names_of(end, "t/a/link"), 7, 8)
    for name in ("t/a/one", "t/a/link", "t/b/acl", "t/a"):
        side.utime_ns(names_of(end, name), 1_000_000_001, 2_000_000_002)


def harvest(end: Ends, top: str) -> dict[str, object]:
    """name -> all that must survive, with the names of one file in one group."""
    side = end[0]
    found: dict[str, object] = {}
    groups: dict[int, set[str]] = {}
    waiting = [top]
    while waiting:
        name = waiting.pop()
        path = names_of(end, name)
        st = side.lstat(path)
        content: object = None
        if stat.S_ISDIR(st.st_mode):
            waiting += [f"{name}/{inside}" for inside in side.names(path)]
        elif stat.S_ISLNK(st.st_mode):
            content = side.readlink(path)
        elif stat.S_ISREG(st.st_mode):
            with side.open_raw(path, os.O_RDONLY, 0) as file:
                content = hash(file.readall())
        attributes = {key: side.getxattr(path, key, False) for key in side.listxattr(path, False)}
        nlink = None if stat.S_ISDIR(st.st_mode) else st.st_nlink
        short = name.removeprefix(top)
        group = groups.setdefault(st.st_ino, set())
        group.add(short)
        found[short] = (st.st_mode, nlink, st.st_uid, st.st_gid, st.st_mtime_ns, content, attributes, group)
    return found


KINDS = ["local", "memory", "directory", "unix"]


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("origin", KINDS)
def test_an_archive_is_the_same_in_every_way(origin: str, to: str, tmp_path: Path) -> None:
    with end_of(origin, tmp_path / "from") as source, end_of(to, tmp_path / "to") as target:
        plant(source)
        copier = Copier(source[0], target[0], True, True, fail, xattrs=True, hard_links=True)
        total, seen = copier.total(names_of(source, "t")), [0]
        copier.advance = lambda count: seen.append(count)
        copier.copy(names_of(source, "t"), names_of(target, "copy"))
        assert (copier.lost, copier.linked, len(copier.links)) == ([], 4, 0)
        assert sum(seen) == total == 3 * SIZE + len("single") + (32 << 20) + 1
        assert harvest(target, "copy") == harvest(source, "t")
        st = target[0].lstat(names_of(target, "copy/holes"))
        assert st.st_size == 32 << 20 and st.st_blocks * 512 <= 1 << 20


def test_without_hard_links_each_name_is_a_file(tmp_path: Path) -> None:
    with end_of("memory", tmp_path / "from") as source, end_of("local", tmp_path / "to") as target:
        plant(source)
        Copier(source[0], target[0], True, True, fail).copy("/t", names_of(target, "copy"))
        for name in ("a/one", "b/two", "three"):
            assert (tmp_path / "to/copy" / name).stat().st_nlink == 1
        assert os.listxattr(tmp_path / "to/copy/a/one") == []


def test_names_given_one_by_one_stay_names_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    os.link(tmp_path / "a", tmp_path / "b")
    with client_of(MemoryFilesystem()) as memory:
        copier = Copier(Local(), Remote(memory), False, False, fail, hard_links=True)
        copier.copy(str(tmp_path / "a"), "/a")
        copier.copy(str(tmp_path / "a"), "/a")  # the same once more
        copier.copy(str(tmp_path / "b"), "/b")
        assert memory.nodeid("/a") == memory.nodeid("/b")
        assert memory.read_text("/a") == "text"


def test_a_second_archive_over_the_first_is_the_same(tmp_path: Path) -> None:
    with end_of("memory", tmp_path / "from") as source, end_of("local", tmp_path / "to") as target:
        plant(source)
        for _ in range(2):
            copier = Copier(source[0], target[0], True, True, fail, xattrs=True, hard_links=True)
            copier.copy("/t", names_of(target, "copy"))
        assert harvest(target, "copy") == harvest(source, "t")


def test_files_of_one_number_that_are_no_links_are_both_copied(tmp_path: Path) -> None:
    class OneNumber(MemoryFilesystem):
        """Says of every file that it is number 5 with two names."""

        def getattr(self, req, nodeid, fh):
            return self._same(super().getattr(req, nodeid, fh))

        def lookup(self, req, parent, name):
            entry = super().lookup(req, parent, name)
            return Entry(self._same(entry.attr), entry.nodeid)

        def _same(self, attr):
            if not stat.S_ISDIR(attr.mode):
                attr.ino, attr.nlink = 5, 2
            return attr

    with client_of(OneNumber()) as client:
        client.write_text("/a", "first")
        client.write_text("/b", "second")
        Copier(Remote(client), Local(), True, False, fail, hard_links=True).copy("/", str(tmp_path / "out"))
    assert (tmp_path / "out/a").read_text() == "first"
    assert (tmp_path / "out/b").read_text() == "second"


def test_more_links_than_are_remembered_are_told_once_and_copied_all_the_same(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    for number in range(4):
        (tmp_path / f"a{number}").write_text(str(number))
        os.link(tmp_path / f"a{number}", tmp_path / f"b{number}")
    with client_of(MemoryFilesystem()) as memory:
        copier = Copier(
            Local(), Remote(memory), True, False, lambda path, error: told.append((path, str(error))),
            hard_links=True, links=LinkTable(bound=2),
        )  # fmt: skip
        copier.copy(str(tmp_path), "/x")
        assert [memory.read_text(f"/x/b{number}") for number in range(4)] == ["0", "1", "2", "3"]
        assert [memory.stat(f"/x/a{number}").st_nlink for number in range(4)] == [2, 2, 1, 1]
    assert [path for path, _ in told] == [str(tmp_path / "a2")]
    assert "2 files wait for their other names" in told[0][1]


def test_a_target_without_links_gets_copies_and_a_word_about_it(tmp_path: Path) -> None:
    class NoLinks(MemoryFilesystem):
        def operations(self):
            return super().operations() - {"link", "setxattr"}

    (tmp_path / "a").write_text("text")
    os.link(tmp_path / "a", tmp_path / "b")
    os.setxattr(tmp_path / "a", "user.a", b"x")
    with client_of(NoLinks()) as memory:
        copier = Copier(Local(), Remote(memory), True, False, fail, xattrs=True, hard_links=True)
        copier.copy(str(tmp_path), "/x")
        assert memory.read_text("/x/b") == "text"
    assert copier.lost_count == 3
    assert copier.lost[0] == "/x/a: user.a: Operation not supported"
    assert copier.lost[1] == "/x/b: as another name of /x/a: Operation not permitted"


@pytest.mark.needs("user")
def test_an_ordinary_user_s_archive_leaves_out_what_is_root_s(tmp_path: Path) -> None:
    with client_of(MemoryFilesystem(check_permissions=True)) as memory:
        root = memory.as_user(0)
        root.mkdir("/home", 0o777)
        root.chmod("/home", 0o777)
        (tmp_path / "f").write_text("x")
        os.chown(tmp_path / "f", 7, 8)
        os.chmod(tmp_path / "f", 0o4755)
        os.setxattr(tmp_path / "f", "trusted.a", b"x")
        os.setxattr(tmp_path / "f", "user.a", b"x")
        user = memory.as_user(1000, 1000)
        copier = Copier(Local(), Remote(user), True, True, fail, xattrs=True)
        copier.copy(str(tmp_path / "f"), "/home/f")
        st = root.stat("/home/f")
        assert (st.st_uid, stat.S_IMODE(st.st_mode)) == (1000, 0o755)
        assert "user.a" in root.listxattr("/home/f")
    assert copier.lost == []


def test_acls_that_a_copy_inherits_are_taken_off(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/f").write_text("x")
    with client_of(MemoryFilesystem()) as memory:
        memory.mkdir("/to")
        memory.setxattr("/to", "system.posix_acl_default", ACL_FOR_7)
        Copier(Local(), Remote(memory), True, True, fail, xattrs=True).copy(str(tmp_path / "in"), "/to/in")
        assert memory.listxattr("/to/in") == memory.listxattr("/to/in/f") == []
        assert memory.stat("/to/in/f").st_mode == (tmp_path / "in/f").stat().st_mode


def test_attributes_of_what_a_link_leads_to_are_copied_when_it_is_followed(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    os.setxattr(tmp_path / "f", "user.a", b"value")
    (tmp_path / "l").symlink_to("f")
    with client_of(MemoryFilesystem()) as memory:
        Copier(Local(), Remote(memory), False, False, fail, xattrs=True).copy(str(tmp_path / "l"), "/copy")
        assert memory.getxattr("/copy", "user.a") == b"value"


def test_a_read_only_file_gets_its_attributes_without_p(tmp_path: Path) -> None:
    with client_of(MemoryFilesystem()) as memory:
        memory.write_text("/f", "x")
        memory.setxattr("/f", "user.a", b"value")
        memory.chmod("/f", 0o400)
        Copier(Remote(memory), Local(), False, False, fail, xattrs=True).copy("/f", str(tmp_path / "f"))
    assert os.getxattr(tmp_path / "f", "user.a") == b"value"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o400


def test_a_sparse_file_stays_sparse_where_the_source_can_not_tell_of_holes(tmp_path: Path) -> None:
    class NoSeek(MemoryFilesystem):
        def operations(self):
            return super().operations() - {"lseek"}

    with client_of(NoSeek()) as memory:
        with memory.open_raw("/holes", os.O_RDWR | os.O_CREAT) as file:
            file.truncate(20 << 20)
            file.seek((10 << 20) + 5)
            file.write(b"middle")
        memory.write_bytes("/zeros", bytes(1 << 20))
        seen = [0]
        copier = Copier(Remote(memory), Local(), False, False, fail, advance=seen.append)
        copier.copy("/holes", str(tmp_path / "holes"))
        assert copier.written == 4096 and sum(seen) == 20 << 20
        copier.copy("/zeros", str(tmp_path / "zeros"))
        assert copier.written == 4096 + (1 << 20)  # zeros that were written are data
        st = (tmp_path / "holes").stat()
        assert st.st_size == 20 << 20 and st.st_blocks * 512 < 1 << 20
        assert (tmp_path / "holes").read_bytes() == memory.read_bytes("/holes")


def test_filled_runs() -> None:
    data = bytearray(10 * 4096 + 7)
    assert list(_filled(memoryview(data))) == []
    data[5] = data[4096] = data[9 * 4096] = data[-1] = 1
    assert list(_filled(memoryview(data))) == [(0, 2 * 4096), (9 * 4096, len(data))]
    assert list(_filled(memoryview(b"x"))) == [(0, 1)]
