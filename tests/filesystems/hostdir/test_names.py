from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from transfuse.fs.request import Request

Served = Any
USER = 65534
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


@pytest.fixture
def two(served: Served) -> Served:
    """Files a ("A") and b ("B"), directory d."""
    (served.path / "a").write_text("A")
    (served.path / "b").write_text("BB")
    (served.path / "d").mkdir()
    served.hand_over()
    return served


def test_mkdir_makes_a_directory_with_that_mode(served: Served) -> None:
    entry = served.fs.mkdir(served.req, 1, b"d", 0o1750, 0o027)
    assert entry.attr.mode == stat.S_IFDIR | 0o1750
    assert served.look("d") == entry.nodeid


def test_mkdir_of_a_name_that_exists_is_eexist(two: Served) -> None:
    assert errno_of(lambda: two.mkdir("a")) == errno.EEXIST


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK])
def test_mknod_makes_that_kind(served: Served, kind: int) -> None:
    entry = served.fs.mknod(served.req, 1, b"n", kind | 0o640, 0, 0)
    assert entry.attr.mode == kind | 0o640


@pytest.mark.needs("root")
def test_mknod_makes_a_device(served: Served) -> None:
    entry = served.fs.mknod(served.req, 1, b"n", stat.S_IFCHR | 0o600, os.makedev(5, 7000), 0)
    assert entry.attr.rdev == os.lstat(served.path / "n").st_rdev == os.makedev(5, 7000)


def test_symlink_keeps_any_target(served: Served) -> None:
    entry = served.fs.symlink(served.req, 1, b"l", b"/nowhere/\xff")
    assert stat.S_ISLNK(entry.attr.mode)
    assert os.readlink(os.fsencode(served.path) + b"/l") == b"/nowhere/\xff"


def test_link_gives_the_same_node_another_name(two: Served) -> None:
    node = two.look("a")
    entry = two.fs.link(two.req, node, 1, b"again")
    assert (entry.nodeid, entry.attr.nlink) == (node, 2)


def test_link_of_a_symlink_links_the_symlink(served: Served) -> None:
    node = served.fs.symlink(served.req, 1, b"l", b"nowhere").nodeid
    entry = served.fs.link(served.req, node, 1, b"m")
    assert stat.S_ISLNK(entry.attr.mode)


def test_link_of_a_directory_is_eperm(two: Served) -> None:
    node = two.look("d")
    assert errno_of(lambda: two.fs.link(two.req, node, 1, b"x")) == errno.EPERM


def test_link_over_a_name_is_eexist(two: Served) -> None:
    node = two.look("a")
    assert errno_of(lambda: two.fs.link(two.req, node, 1, b"b")) == errno.EEXIST


def test_unlink_removes_the_name(two: Served) -> None:
    two.fs.unlink(two.req, 1, b"a")
    assert two.missing("a") and not (two.path / "a").exists()


@pytest.mark.parametrize(("name", "number"), [(b"d", errno.EISDIR), (b"none", errno.ENOENT)])
def test_unlink_refuses(two: Served, name: bytes, number: int) -> None:
    assert errno_of(lambda: two.fs.unlink(two.req, 1, name)) == number


def test_rmdir_refuses_what_is_full_or_no_directory(two: Served) -> None:
    (two.path / "d" / "x").touch()
    assert errno_of(lambda: two.fs.rmdir(two.req, 1, b"d")) == errno.ENOTEMPTY
    assert errno_of(lambda: two.fs.rmdir(two.req, 1, b"a")) == errno.ENOTDIR


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/etc/passwd", "d/../../x"])
def test_no_operation_takes_a_path(two: Served, name: str) -> None:
    fs, req, raw = two.fs, two.req, name.encode()
    node = two.look("a")
    calls: list[Callable[[], object]] = [
        lambda: fs.mkdir(req, 1, raw, 0o755, 0),
        lambda: fs.mknod(req, 1, raw, stat.S_IFREG, 0, 0),
        lambda: fs.symlink(req, 1, raw, b"x"),
        lambda: fs.create(req, 1, raw, 0o644, 0, os.O_RDWR),
        lambda: fs.unlink(req, 1, raw),
        lambda: fs.rmdir(req, 1, raw),
        lambda: fs.rename(req, 1, raw, 1, b"x", 0),
        lambda: fs.rename(req, 1, b"a", 1, raw, 0),
        lambda: fs.link(req, node, 1, raw),
    ]
    assert [errno_of(call) for call in calls] == [errno.EINVAL] * len(calls)


def test_an_unlinked_file_that_is_open_stays(two: Served) -> None:
    node = two.look("a")
    fh = two.open(node, os.O_RDWR)
    two.fs.unlink(two.req, 1, b"a")
    two.write(node, fh, b"xyz")
    assert two.read(fh) == b"xyz"
    assert two.fs.getattr(two.req, node, None).nlink == 0
    assert two.fs.getattr(two.req, node, fh).size == 3
    two.fs.setxattr(two.req, node, b"user.a", b"1", 0, False)
    two.release(node, fh)


def test_an_unlinked_file_that_is_known_stays_until_it_is_forgotten(two: Served) -> None:
    node = two.look("a")
    two.fs.unlink(two.req, 1, b"a")
    assert two.size(node) == 1
    before = len(os.listdir("/proc/self/fd"))
    two.fs.forget(two.req, node, 1)
    assert len(os.listdir("/proc/self/fd")) == before - 1
    assert errno_of(lambda: two.size(node)) == errno.ESTALE


def test_an_unlinked_file_stays_after_its_last_close(two: Served) -> None:
    node = two.look("a")
    fh = two.open(node)
    two.fs.unlink(two.req, 1, b"a")
    two.release(node, fh)
    assert two.size(node) == 1


def test_a_removed_directory_stays_until_it_is_forgotten(two: Served) -> None:
    node = two.look("d")
    two.fs.rmdir(two.req, 1, b"d")
    assert two.fs.getattr(two.req, node, None).nlink == 0
    assert two.missing("x", node)
    assert errno_of(lambda: two.mkdir("x", node)) == errno.ENOENT


def test_a_new_file_with_an_old_name_is_another_node(two: Served) -> None:
    node = two.look("a")
    two.fs.unlink(two.req, 1, b"a")
    entry, opened = two.create("a")
    assert entry.nodeid != node
    two.release(entry.nodeid, opened.fh)


def test_one_of_two_names_can_go(two: Served) -> None:
    node = two.look("a")
    two.fs.link(two.req, node, 1, b"again")
    two.fs.unlink(two.req, 1, b"again")
    assert two.size(node) == 1
    assert two.look("a") == node
    two.fs.unlink(two.req, 1, b"a")
    assert two.fs.getattr(two.req, node, None).nlink == 0


def test_rename_keeps_the_node(two: Served) -> None:
    node, d = two.look("a"), two.look("d")
    two.fs.rename(two.req, 1, b"a", d, b"z", 0)
    assert two.size(node) == 1 and two.look("z", d) == node and two.missing("a")


def test_rename_of_a_directory_keeps_what_is_below(make: Any) -> None:
    served = make(cache="always")  # hints only
    d = served.mkdir("d")
    (served.path / "d" / "x").write_text("abc")
    x = served.look("x", d)
    served.fs.rename(served.req, 1, b"d", 1, b"e", 0)
    assert served.size(x) == 3


def test_rename_over_an_open_file_keeps_the_open_one(two: Served) -> None:
    a, b = two.look("a"), two.look("b")
    fh = two.open(b)
    two.fs.rename(two.req, 1, b"a", 1, b"b", 0)
    assert two.read(fh) == b"BB"
    assert two.size(b) == 2 and two.size(a) == 1 and two.look("b") == a
    two.release(b, fh)


def test_rename_over_a_known_file_keeps_it_until_it_is_forgotten(two: Served) -> None:
    b = two.look("b")
    two.fs.rename(two.req, 1, b"a", 1, b"b", 0)
    assert two.fs.getattr(two.req, b, None).nlink == 0


def test_rename_between_two_names_of_one_file_leaves_both(two: Served) -> None:
    node = two.look("a")
    two.fs.link(two.req, node, 1, b"again")
    two.fs.rename(two.req, 1, b"a", 1, b"again", 0)
    assert two.look("a") == two.look("again") == node and two.size(node) == 1


def test_rename_without_replacing(two: Served) -> None:
    assert errno_of(lambda: two.fs.rename(two.req, 1, b"a", 1, b"b", NOREPLACE)) == errno.EEXIST
    two.fs.rename(two.req, 1, b"a", 1, b"c", NOREPLACE)
    assert two.missing("a")


def test_rename_with_exchange(two: Served) -> None:
    a, b = two.look("a"), two.look("b")
    two.fs.rename(two.req, 1, b"a", 1, b"b", EXCHANGE)
    assert (two.size(a), two.size(b)) == (1, 2)
    assert (two.look("a"), two.look("b")) == (b, a)


@pytest.mark.needs("root")
def test_rename_leaves_a_whiteout(two: Served) -> None:
    two.fs.rename(two.req, 1, b"a", 1, b"c", WHITEOUT)
    st = os.lstat(two.path / "a")
    assert stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


@pytest.mark.parametrize(
    ("name", "newname", "flags", "number"),
    [
        (b"none", b"c", 0, errno.ENOENT),
        (b"a", b"d", 0, errno.EISDIR),
        (b"d", b"a", 0, errno.ENOTDIR),
        (b"a", b"c", 8, errno.EINVAL),
        (b"a", b"none", EXCHANGE, errno.ENOENT),
    ],
)
def test_rename_refuses(two: Served, name: bytes, newname: bytes, flags: int, number: int) -> None:
    assert errno_of(lambda: two.fs.rename(two.req, 1, name, 1, newname, flags)) == number


def test_rename_of_a_directory_into_itself_is_einval(two: Served) -> None:
    d = two.look("d")
    assert errno_of(lambda: two.fs.rename(two.req, 1, b"d", d, b"e", 0)) == errno.EINVAL


@pytest.mark.needs("root")
@pytest.mark.parametrize("what", ["mkdir", "mknod", "symlink", "create", "tmpfile"])
def test_what_is_made_belongs_to_the_caller(served: Served, what: str) -> None:
    served.path.chmod(0o777)
    req = Request(uid=USER, gid=USER)
    fs = served.fs
    entry = {
        "mkdir": lambda: fs.mkdir(req, 1, b"n", 0o755, 0),
        "mknod": lambda: fs.mknod(req, 1, b"n", stat.S_IFIFO | 0o600, 0, 0),
        "symlink": lambda: fs.symlink(req, 1, b"n", b"x"),
        "create": lambda: fs.create(req, 1, b"n", 0o644, 0, os.O_RDWR)[0],
        "tmpfile": lambda: fs.tmpfile(req, 1, 0o600, 0, os.O_RDWR)[0],
    }[what]()
    assert (entry.attr.uid, entry.attr.gid) == (USER, USER)
