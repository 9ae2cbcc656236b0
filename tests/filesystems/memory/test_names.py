"""What the conformance suite does not ask of names."""

from __future__ import annotations

import errno
import os
import stat
import threading

import pytest

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.request import Request
from transfuse.testing.direct import DirectVolume

REQ = Request()
WHITEOUT, EXCHANGE, NOREPLACE = 4, 2, 1


def fails(number):
    return pytest.raises(OSError, match=rf"^\[Errno {number}\]")


@pytest.fixture
def fs():
    return MemoryFilesystem()


@pytest.fixture
def volume(fs):
    return DirectVolume(fs)


def test_dot_and_dotdot_are_looked_up_of_any_node(fs, volume):
    volume.mkdir("/d")
    volume.mkdir("/d/e")
    e = volume.stat("/d/e").ino
    assert fs.lookup(REQ, e, b"..").attr.ino == volume.stat("/d").ino
    assert fs.lookup(REQ, e, b".").attr.ino == e
    assert fs.lookup(REQ, 1, b"..").attr.ino == 1


def test_dotdot_follows_a_rename(fs, volume):
    volume.mkdir("/a")
    volume.mkdir("/b")
    volume.mkdir("/a/d")
    volume.rename("/a/d", "/b/d")
    assert fs.lookup(REQ, volume.stat("/b/d").ino, b"..").attr.ino == volume.stat("/b").ino


def test_a_whiteout_is_left_behind(volume):
    volume.write_bytes("/a", b"x")
    volume.rename("/a", "/b", WHITEOUT)
    st = volume.stat("/a")
    assert stat.S_ISCHR(st.mode) and st.rdev == 0 and volume.read_bytes("/b") == b"x"


@pytest.mark.parametrize("flags", [8, EXCHANGE | NOREPLACE, EXCHANGE | WHITEOUT])
def test_flags_that_make_no_sense_are_einval(fs, volume, flags):
    volume.write_bytes("/a", b"")
    volume.write_bytes("/b", b"")
    with fails(errno.EINVAL):
        fs.rename(REQ, 1, b"a", 1, b"b", flags)


def test_an_exchange_counts_subdirectories_right(volume):
    volume.mkdir("/a")
    volume.mkdir("/b")
    volume.mkdir("/a/d")
    volume.write_bytes("/b/f", b"")
    volume.rename("/a/d", "/b/f", EXCHANGE)
    assert (volume.stat("/a").nlink, volume.stat("/b").nlink) == (2, 3)


def test_an_exchange_with_an_ancestor_is_einval(volume):
    volume.mkdir("/a")
    volume.mkdir("/a/b")
    with fails(errno.EINVAL):
        volume.rename("/a", "/a/b", EXCHANGE)
    with fails(errno.EINVAL):
        volume.rename("/a/b", "/a", EXCHANGE)


def test_a_rename_over_an_ancestor_is_enotempty(volume):
    volume.mkdir("/a")
    volume.mkdir("/a/b")
    with fails(errno.ENOTEMPTY):
        volume.rename("/a/b", "/a")


def test_a_name_that_is_renamed_over_keeps_its_place(volume):
    for name in "abc":
        volume.write_bytes(f"/{name}", b"")
    volume.write_bytes("/z", b"")
    volume.rename("/z", "/b")
    assert volume.listdir("/") == ["a", "b", "c"]


def test_nothing_is_made_in_a_removed_directory(fs, volume):
    volume.mkdir("/d")
    nodeid = fs.lookup(REQ, 1, b"d").nodeid
    volume.rmdir("/d")
    for make in (
        lambda: fs.mkdir(REQ, nodeid, b"x", 0o755, 0),
        lambda: fs.create(REQ, nodeid, b"x", 0o644, 0, os.O_RDWR),
        lambda: fs.tmpfile(REQ, nodeid, 0o644, 0, os.O_RDWR),
    ):
        with fails(errno.ENOENT):
            make()


def test_a_removed_directory_that_is_open_lists_nothing(fs, volume):
    volume.mkdir("/d")
    nodeid = volume.stat("/d").ino
    fh = fs.opendir(REQ, nodeid, 0).fh
    volume.rmdir("/d")
    assert [entry.name for entry in fs.readdir(REQ, nodeid, fh, 0)] == [b".", b".."]
    fs.releasedir(REQ, nodeid, fh, 0)
    with fails(errno.ESTALE):
        fs.getattr(REQ, nodeid, None)


def test_a_name_added_while_listing_comes_with_the_next_listing(fs, volume):
    for name in ("/a", "/b"):
        volume.write_bytes(name, b"")
    fh = fs.opendir(REQ, 1, 0).fh
    begin = list(fs.readdir(REQ, 1, fh, 0))[:3]
    volume.rename("/a", "/c")
    assert [entry.name for entry in fs.readdir(REQ, 1, fh, begin[-1].cookie)] == [b"b"]
    assert [entry.name for entry in fs.readdir(REQ, 1, fh, 0)] == [b".", b"..", b"b", b"c"]


def test_an_exclusive_tmpfile_never_gets_a_name(volume):
    with volume.tmpfile("/", os.O_RDWR | os.O_EXCL) as file, fails(errno.ENOENT):
        volume.link_open(file, "/f")


def test_an_unlinked_file_never_gets_a_name_again(volume):
    with volume.open("/f", os.O_CREAT | os.O_RDWR) as file:
        volume.unlink("/f")
        with fails(errno.ENOENT):
            volume.link_open(file, "/g")


def test_a_link_target_of_path_max_is_enametoolong(volume):
    with fails(errno.ENAMETOOLONG):
        volume.symlink("t" * 4096, "/l")


def test_mknod_without_a_type_is_a_regular_file(volume):
    volume.mknod("/f", 0o640)
    assert volume.stat("/f").mode == stat.S_IFREG | 0o640


def test_a_file_has_at_most_65000_names(fs, volume):
    volume.write_bytes("/f", b"")
    fs._inodes[volume.stat("/f").ino].nlink = 65_000
    with fails(errno.EMLINK):
        volume.link("/f", "/g")


def test_100000_names_are_listed_in_pieces(volume, fs):
    for number in range(100_000):
        fs.forget(REQ, fs.mknod(REQ, 1, b"%d" % number, stat.S_IFREG, 0, 0).nodeid, 1)
    assert volume.listdir("/") == [str(number) for number in range(100_000)]


def test_threads_that_move_one_name_lose_nothing(volume):
    volume.mkdir("/a")
    volume.mkdir("/b")
    volume.write_bytes("/a/f", b"")

    def move(source, target):
        for _ in range(300):
            try:
                volume.rename(f"/{source}/f", f"/{target}/f")
            except FileNotFoundError:
                pass

    threads = [threading.Thread(target=move, args=pair) for pair in (("a", "b"), ("b", "a")) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(volume.listdir("/a") + volume.listdir("/b")) == ["f"]
