"""The steps in both forms, opening by O_PATH and directly, and the view of a source that makes the latter safe."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from transfuse.filesystems.hostdir import HostDirectory, syscalls
from transfuse.filesystems.hostdir.steps import PlainSteps, Steps, make_steps
from transfuse.filesystems.hostdir.syscalls import Key

MakeSteps = Callable[[bool], Steps]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture(params=["compiled", "plain"])
def forms(request: pytest.FixtureRequest, tree: int) -> MakeSteps:
    """Steps that open directly or not."""
    device = os.fstat(tree).st_dev
    if request.param == "plain":
        return lambda direct: PlainSteps(syscalls.make_plain_probe(device), direct)
    pytest.importorskip("transfuse._native.probe", reason="the plain form runs")
    return lambda direct: make_steps(syscalls.make_probe(device), direct)


@pytest.fixture(params=[False, True], ids=["by O_PATH", "direct"])
def steps(forms: MakeSteps, request: pytest.FixtureRequest) -> Steps:
    return forms(request.param)


@pytest.fixture
def no_fd_is_left(tree: int) -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def key_of(tree: int, name: bytes) -> Key:
    found = syscalls.make_plain_probe(os.fstat(tree).st_dev)(tree, name)
    assert found is not None
    return found[1]


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


# ---- grasp, remove, create


@pytest.mark.parametrize("name", [b"file", b"link", b"dir", b"fifo", b"socket"])
def test_grasp_is_an_o_path_fd_and_what_it_leads_to(tree: int, steps: Steps, name: bytes) -> None:
    fd, attr, key = steps.grasp(tree, name)
    try:
        assert key == key_of(tree, name)
        assert attr.mode == os.fstat(fd).st_mode and attr.ino == os.fstat(fd).st_ino
        assert errno_of(lambda: os.read(fd, 1)) == errno.EBADF
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_grasp_of_a_missing_name_is_enoent(tree: int, steps: Steps, no_fd_is_left: None) -> None:
    assert errno_of(lambda: steps.grasp(tree, b"missing")) == errno.ENOENT


def test_remove_leaves_hold_of_what_it_removed(tree: int, steps: Steps) -> None:
    key = key_of(tree, b"file")
    fd, attr, removed = steps.remove(tree, b"file", False)
    try:
        assert removed == key and attr.nlink == 1  # as it was right before
        assert os.fstat(fd).st_nlink == 0 and "file" not in os.listdir(tree)
    finally:
        os.close(fd)


def test_remove_of_a_directory(tree: int, steps: Steps) -> None:
    fd, attr, _ = steps.remove(tree, b"dir", True)
    os.close(fd)
    assert stat.S_ISDIR(attr.mode) and "dir" not in os.listdir(tree)


@pytest.mark.parametrize(
    ("name", "directory", "number"),
    [
        (b"missing", False, errno.ENOENT),
        (b"dir", False, errno.EISDIR),
        (b"file", True, errno.ENOTDIR),
        (b"x" * 256, False, errno.ENAMETOOLONG),
    ],
)
def test_remove_that_fails_removes_nothing(
    tree: int, steps: Steps, name: bytes, directory: bool, number: int, no_fd_is_left: None
) -> None:
    before = sorted(os.listdir(tree))
    assert errno_of(lambda: steps.remove(tree, name, directory)) == number
    assert sorted(os.listdir(tree)) == before


def test_create_is_an_open_file_and_what_it_leads_to(tree: int, steps: Steps) -> None:
    fd, attr, key = steps.create(tree, b"new", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        assert os.write(fd, b"x") == 1
        assert key == key_of(tree, b"new") and stat.S_IMODE(attr.mode) == 0o640 and attr.size == 0
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_create_of_an_existing_name_is_eexist(tree: int, steps: Steps, no_fd_is_left: None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    assert errno_of(lambda: steps.create(tree, b"file", flags, 0o600)) == errno.EEXIST


# ---- open


def test_open_gives_a_real_fd_of_the_same_inode(tree: int, steps: Steps) -> None:
    opened = steps.open(tree, b"file", key_of(tree, b"file"), os.O_RDONLY)
    assert opened is not None
    fd, attr = opened
    try:
        assert os.read(fd, 10) == b"abc" and attr.size == 3
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_open_for_appending_appends(tree: int, steps: Steps) -> None:
    opened = steps.open(tree, b"file", key_of(tree, b"file"), os.O_WRONLY | os.O_APPEND)
    assert opened is not None
    os.pwrite(opened[0], b"d", 0)
    os.close(opened[0])
    with open(os.open("file", os.O_RDONLY, dir_fd=tree), "rb") as file:
        assert file.read() == b"abcd"


@pytest.mark.parametrize("name", [b"other", b"missing", b"link", b"dir", b"socket", b"fifo"])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_open_of_what_is_not_the_file_any_more_is_none(
    tree: int, steps: Steps, name: bytes, flags: int, no_fd_is_left: None
) -> None:
    assert steps.open(tree, name, key_of(tree, b"file"), flags) is None  # a fifo would wait for the other side


def test_open_by_o_path_does_not_touch_a_fifo(tree: int, forms: MakeSteps) -> None:
    # A writer that waits in open(2) is let through as soon as anybody opens the fifo for reading.
    def write() -> None:
        os.close(os.open("fifo", os.O_WRONLY, dir_fd=tree))

    writer = threading.Thread(target=write)
    writer.start()
    assert forms(False).open(tree, b"fifo", key_of(tree, b"file"), os.O_RDONLY) is None
    writer.join(0.2)
    assert writer.is_alive()
    os.close(os.open("fifo", os.O_RDONLY | os.O_NONBLOCK, dir_fd=tree))
    writer.join(10)


def test_open_of_an_fd_that_is_no_directory_is_none(tree: int, steps: Steps) -> None:
    with open(os.open("file", os.O_RDONLY, dir_fd=tree)) as file:
        assert steps.open(file.fileno(), b"file", 1, os.O_RDONLY) is None


# ---- the view


@pytest.mark.needs("root")
def test_no_device_can_be_opened_in_a_view(tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    plain = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    view = syscalls.open_view(plain)
    if view is None:
        pytest.skip("no mounts can be made here")
    try:
        assert os.path.samestat(os.fstat(view), os.fstat(plain))
        os.close(os.open("null", os.O_RDONLY, dir_fd=plain))
        assert errno_of(lambda: os.open("null", os.O_RDONLY, dir_fd=view)) == errno.EACCES
        (tmp_path / "made").touch()
        os.close(os.open("made", os.O_RDWR, dir_fd=view))
    finally:
        os.close(view)
        os.close(plain)


@pytest.mark.needs("user")
def test_no_view_without_privileges(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            fd = os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY)
            os.setuid(65534)
            before = len(os.listdir("/proc/self/fd"))
            status = 0 if syscalls.open_view(fd) is None and len(os.listdir("/proc/self/fd")) == before else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.needs("root")
@pytest.mark.parametrize(("cache", "direct"), [("always", True), ("auto", False), ("never", False)])
def test_files_are_opened_directly_where_nothing_else_can_be(tmp_path: Path, cache: str, direct: bool) -> None:
    fs = HostDirectory(tmp_path, cache=cache)
    try:
        assert fs.steps.direct is direct
        # What the step relies on: a device in the source cannot be opened by way of it.
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        opens = errno_of(lambda: os.open("null", os.O_RDONLY, dir_fd=fs.root.fd)) if direct else None
        assert opens == (errno.EACCES if direct else None)
    finally:
        fs.close()
