from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from transfuse.filesystems.hostdir import syscalls

AS_USER = False


@pytest.fixture
def fd(source: Path):
    (source / "file").write_bytes(b"abc")
    (source / "link").symlink_to("file")
    number = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
    yield number
    os.close(number)


@pytest.fixture
def path_fd(fd: int):
    number = os.open("file", os.O_PATH, dir_fd=fd)
    yield number
    os.close(number)


def test_probe_agrees_with_os_stat(fd: int) -> None:
    attr, _ = syscalls.make_probe(os.fstat(fd).st_dev)(fd, b"file") or pytest.fail("missing")
    st = os.stat("file", dir_fd=fd)
    assert (attr.ino, attr.mode, attr.size, attr.nlink, attr.uid, attr.gid) == (
        st.st_ino, st.st_mode, st.st_size, st.st_nlink, st.st_uid, st.st_gid,
    )  # fmt: skip
    assert (attr.atime_ns, attr.mtime_ns, attr.ctime_ns) == (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)
    assert (attr.blocks, attr.blksize, attr.rdev) == (st.st_blocks, st.st_blksize, st.st_rdev)


def test_probe_of_missing_name_is_none(fd: int) -> None:
    assert syscalls.make_probe(os.fstat(fd).st_dev)(fd, b"none") is None


def test_probe_of_overlong_name_is_enametoolong(fd: int) -> None:
    with pytest.raises(OSError) as caught:
        syscalls.make_probe(os.fstat(fd).st_dev)(fd, b"x" * 256)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_probe_does_not_follow_a_symlink(fd: int) -> None:
    attr, _ = syscalls.make_probe(os.fstat(fd).st_dev)(fd, b"link") or pytest.fail("missing")
    assert stat.S_ISLNK(attr.mode)


def test_probe_tells_a_device_number() -> None:
    fd = os.open("/dev", os.O_PATH)
    try:
        attr, _ = syscalls.make_probe(os.fstat(fd).st_dev)(fd, b"null") or pytest.fail("missing")
    finally:
        os.close(fd)
    assert attr.rdev == os.makedev(1, 3)


def test_identity_on_another_device_differs_and_so_does_the_inode_number(fd: int) -> None:
    here = syscalls.make_probe(os.fstat(fd).st_dev)(fd, b"file") or pytest.fail("missing")
    there = syscalls.make_probe(os.fstat(fd).st_dev + 1)(fd, b"file") or pytest.fail("missing")
    assert here[1] != there[1]
    assert here[0].ino != there[0].ino


def test_times_of_a_path_fd_are_set_and_omitted(fd: int, path_fd: int) -> None:
    before = os.fstat(path_fd)
    syscalls.set_times(path_fd, syscalls.timespec(None, False), syscalls.timespec(-1, False))
    after = os.fstat(path_fd)
    assert (after.st_atime_ns, after.st_mtime_ns) == (before.st_atime_ns, -1)


def test_mode_of_a_path_fd_is_set(path_fd: int) -> None:
    syscalls.chmod_fd(path_fd, 0o751)
    assert os.fstat(path_fd).st_mode & 0o7777 == 0o751


def test_mode_is_set_where_the_kernel_has_no_fchmodat2(path_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "SYS_FCHMODAT2", 4095)
    syscalls.chmod_fd(path_fd, 0o711)
    assert os.fstat(path_fd).st_mode & 0o7777 == 0o711


def test_reopen_of_a_path_fd_reads(path_fd: int) -> None:
    fd = syscalls.reopen(path_fd, os.O_RDONLY)
    try:
        assert os.read(fd, 10) == b"abc"
    finally:
        os.close(fd)


def test_link_names_a_nameless_file(source: Path, fd: int) -> None:
    nameless = os.open(b".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=fd)
    try:
        syscalls.link_fd(nameless, fd, b"named")
    finally:
        os.close(nameless)
    assert (source / "named").exists()


@pytest.mark.needs("root")
def test_file_handle_leads_back_to_the_file(fd: int) -> None:
    handle = syscalls.take_handle(fd, b"file")
    assert handle is not None
    again = syscalls.open_handle(fd, handle, os.O_PATH)
    try:
        assert os.path.sameopenfile(again, again) and os.fstat(again).st_ino == os.stat("file", dir_fd=fd).st_ino
    finally:
        os.close(again)


@pytest.mark.needs("root")
def test_file_handle_of_a_removed_file_is_stale(fd: int) -> None:
    handle = syscalls.take_handle(fd, b"file")
    assert handle is not None
    os.unlink("file", dir_fd=fd)
    with pytest.raises(OSError) as caught:
        syscalls.open_handle(fd, handle, os.O_PATH)
    assert caught.value.errno == errno.ESTALE


def test_rename_without_replacing_is_refused_by_a_name_that_exists(fd: int) -> None:
    with pytest.raises(FileExistsError):
        syscalls.rename(fd, b"file", fd, b"link", 1)


def test_fallocate_extends(source: Path) -> None:
    with open(source / "file", "wb") as file:
        syscalls.fallocate(file.fileno(), 0, 0, 4096)
    assert (source / "file").stat().st_size == 4096


def test_listing_has_every_name_once_and_ends(source: Path, fd: int) -> None:
    for number in range(3000):
        (source / f"n{number}").touch()
    found = []
    while entries := syscalls.list_directory(fd):
        found += [entry.name for entry in entries]
    assert sorted(found) == sorted([b".", b"..", b"file", b"link", *(b"n%d" % n for n in range(3000))])


def test_listing_tells_types_and_goes_on_at_a_cookie(fd: int) -> None:
    entries = syscalls.list_directory(fd)
    assert {e.name: e.kind for e in entries} == {b".": 4, b"..": 4, b"file": 8, b"link": 10}
    os.lseek(fd, entries[1].cookie, os.SEEK_SET)
    assert [e.name for e in syscalls.list_directory(fd)] == [e.name for e in entries[2:]]


def test_listing_of_a_file_is_enotdir(source: Path) -> None:
    with open(source / "plain", "wb") as file, pytest.raises(NotADirectoryError):
        syscalls.list_directory(file.fileno())
