from __future__ import annotations

import stat

import pytest

from transfuse.filesystems.memory.inode import Inode


@pytest.fixture
def directory():
    inode = Inode(1, stat.S_IFDIR | 0o755, 0, 0, 0)
    inode.children = {}
    return inode


def names(directory, after=0):
    return [child.name for child in directory.listing(after, directory.next_cookie)]


def fill(directory, count):
    for number in range(count):
        directory.add(b"%d" % number, Inode(number + 2, stat.S_IFREG, 0, 0, 0))


def test_names_are_listed_in_the_order_they_came(directory):
    fill(directory, 3)
    assert names(directory) == [b"0", b"1", b"2"]


def test_a_listing_goes_on_after_a_cookie(directory):
    fill(directory, 10)
    cookie = directory.children[b"4"].cookie
    assert names(directory, cookie) == [b"5", b"6", b"7", b"8", b"9"]


def test_removing_what_was_listed_skips_and_repeats_nothing(directory):
    fill(directory, 1000)
    seen, cookie = [], 0
    while True:
        part = [child for child, _ in zip(directory.listing(cookie, directory.next_cookie), range(7), strict=False)]
        if not part:
            break
        seen += [child.name for child in part]
        cookie = part[-1].cookie
        for child in part:
            directory.remove(child.name)
    assert seen == [b"%d" % number for number in range(1000)] and not directory.children


def test_dead_names_do_not_pile_up(directory):
    for number in range(5000):
        directory.add(b"x", Inode(number, stat.S_IFREG, 0, 0, 0))
        directory.remove(b"x")
    assert len(directory.order) < 100


def test_a_listing_under_way_survives_the_sweep(directory):
    fill(directory, 200)
    listing = directory.listing(0, directory.next_cookie)
    first = next(listing).name
    for number in range(150):
        directory.remove(b"%d" % number)
    assert first == b"0" and [child.name for child in listing] == [b"%d" % number for number in range(150, 200)]


def test_a_listing_stops_at_its_end_whatever_is_added(directory):
    fill(directory, 3)
    listing = directory.listing(0, directory.next_cookie)
    first = next(listing).name
    directory.add(b"new", Inode(9, stat.S_IFREG, 0, 0, 0))
    assert first == b"0" and [child.name for child in listing] == [b"1", b"2"]


def test_a_name_that_comes_back_has_another_cookie(directory):
    fill(directory, 1)
    first = directory.children[b"0"].cookie
    directory.remove(b"0")
    fill(directory, 1)
    assert directory.children[b"0"].cookie > first


@pytest.mark.parametrize(
    ("mode", "in_group", "after"),
    [
        (0o6755, True, 0o755),
        (0o2745, True, 0o2745),  # setgid without group execute: mandatory locking, for who is in the group
        (0o2745, False, 0o745),
        (0o755, True, 0o755),
    ],
)
def test_killing_privileges(mode, in_group, after):
    inode = Inode(2, stat.S_IFREG | mode, 0, 0, 0)
    inode.kill_suidgid(in_group)
    assert stat.S_IMODE(inode.mode) == after


def test_directories_keep_setgid(directory):
    directory.mode |= stat.S_ISGID
    directory.kill_suidgid()
    assert directory.mode & stat.S_ISGID


def test_statx_shows_birth_and_attributes():
    inode = Inode(2, stat.S_IFREG, 0, 0, 77)
    inode.flags = 0x10
    attr = inode.statx()
    assert (attr.btime_ns, attr.attributes, attr.attributes_mask) == (77, 0x10, 0x70)
