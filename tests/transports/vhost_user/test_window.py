"""The book of the DAX window against a front-end with QEMU's rules."""

from __future__ import annotations

import errno
import os
import random

import pytest

from transfuse.transports.vhost_user import window as module
from transfuse.transports.vhost_user.window import Window
from transports.vhost_user.window_peer import WindowPeer

PAGE = 4096
SIZE = 1 << 24


@pytest.fixture(params=[False, True], ids=["lenient", "strict"])
def strict(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def peer(strict: bool):
    peer = WindowPeer(strict)
    yield peer
    peer.close()


@pytest.fixture
def window(peer: WindowPeer) -> Window:
    window = Window(SIZE)
    window.channel = peer.channel
    return window


@pytest.fixture
def file():
    fd = os.memfd_create("file")
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


def test_a_range_is_mapped_and_taken_back(window: Window, peer: WindowPeer, file: int) -> None:
    window.map(file, 8 * PAGE, 4 * PAGE, 16 * PAGE, True, None)
    assert peer.mapped == {(16 * PAGE, 4 * PAGE): (os.fstat(file).st_ino, 8 * PAGE, True)}
    window.unmap(16 * PAGE, 4 * PAGE)
    assert peer.mapped == {}


def test_a_read_only_range_becomes_writable(window: Window, peer: WindowPeer, file: int) -> None:
    window.map(file, 0, 4 * PAGE, 0, False, None)
    window.map(file, 0, 4 * PAGE, 0, True, None)
    assert [writable for _, _, writable in peer.mapped.values()] == [True]


def test_what_sticks_out_of_a_new_mapping_stays(window: Window, peer: WindowPeer, file: int) -> None:
    inode = os.fstat(file).st_ino
    window.map(file, 0, 8 * PAGE, 0, False, None)
    window.map(file, 100 * PAGE, 2 * PAGE, 3 * PAGE, True, None)
    assert peer.mapped == {
        (0, 3 * PAGE): (inode, 0, False),
        (3 * PAGE, 2 * PAGE): (inode, 100 * PAGE, True),
        (5 * PAGE, 3 * PAGE): (inode, 5 * PAGE, False),
    }


def test_a_range_of_several_mappings_is_taken_back(window: Window, peer: WindowPeer, file: int) -> None:
    for i in range(4):
        window.map(file, 0, 2 * PAGE, 2 * i * PAGE, False, None)
    window.unmap(PAGE, 6 * PAGE)
    assert sorted(peer.mapped) == [(0, PAGE), (7 * PAGE, PAGE)]


def test_what_is_not_mapped_can_be_taken_back(window: Window, peer: WindowPeer) -> None:
    window.unmap(0, SIZE)
    assert peer.mapped == {}


def test_random_ranges_leave_what_a_page_table_has(
    window: Window, peer: WindowPeer, file: int, request: pytest.FixtureRequest
) -> None:
    rng = random.Random(request.config.option.seed)
    pages: dict[int, tuple[int, bool]] = {}
    for _ in range(120):
        at, count = rng.randrange(60), rng.randrange(1, 8)
        if rng.random() < 0.6:
            offset, writable = rng.randrange(100), rng.random() < 0.5
            window.map(file, offset * PAGE, count * PAGE, at * PAGE, writable, None)
            pages.update({at + i: (offset + i, writable) for i in range(count)})
        else:
            window.unmap(at * PAGE, count * PAGE)
            for i in range(count):
                pages.pop(at + i, None)
        seen = {
            at // PAGE + i: (offset // PAGE + i, writable)
            for (at, length), (_, offset, writable) in peer.mapped.items()
            for i in range(length // PAGE)
        }
        assert seen == pages


def test_the_end_of_a_file_is_mapped_where_the_front_end_does_it(
    window: Window, peer: WindowPeer, file: int, strict: bool
) -> None:
    os.ftruncate(file, 5 * PAGE + 100)
    window.map(file, 0, 512 * PAGE, 0, False, None)
    assert list(peer.mapped) == [(0, 5 * PAGE if strict else 512 * PAGE)]


def test_a_file_without_a_whole_page_cannot_be_mapped_by_a_strict_front_end(
    window: Window, peer: WindowPeer, file: int, strict: bool
) -> None:
    os.ftruncate(file, 100)
    if not strict:
        window.map(file, 0, 512 * PAGE, 0, False, None)
        return
    with pytest.raises(OSError, match="does not fill") as caught:
        window.map(file, 0, 512 * PAGE, 0, False, None)
    assert caught.value.errno == errno.ENXIO


def test_files_are_marked_only_for_lenient_front_ends(window: Window, strict: bool) -> None:
    assert window.suits(100) is not strict
    assert window.suits(1 << 21) is not strict


def test_files_are_opened_for_writing_where_the_front_end_maps_no_others(window: Window, strict: bool) -> None:
    assert window.needs_writable() is strict


def test_the_front_end_is_asked_once(window: Window, peer: WindowPeer, file: int) -> None:
    window.map(file, 0, PAGE, 0, False, None)
    asked = len(peer.calls)
    window.suits(1)
    window.needs_writable()
    window.map(file, 0, PAGE, 2 * PAGE, False, None)
    assert len(peer.calls) == asked + 1


def test_a_front_end_that_is_reset_has_forgotten_all(window: Window, peer: WindowPeer, file: int) -> None:
    window.map(file, 0, PAGE, 0, False, None)
    peer.mapped.clear()
    window.forget()
    window.map(file, 0, PAGE, 0, False, None)
    assert len(peer.mapped) == 1


def test_a_guest_that_starts_over_leaves_nothing_mapped(window: Window, peer: WindowPeer, file: int) -> None:
    for i in range(3):
        window.map(file, 0, PAGE, 2 * i * PAGE, False, None)
    window.clear()
    assert peer.mapped == {}
    window.channel = None
    window.clear()


def test_what_an_earlier_server_mapped_is_replaced_and_taken_back(window: Window, peer: WindowPeer, file: int) -> None:
    window.map(file, 0, 4 * PAGE, 0, False, None)
    window.map(file, 0, 4 * PAGE, 4 * PAGE, False, None)
    later = Window(SIZE)
    later.channel = peer.channel
    later.inherited = True
    later.map(file, 0, 4 * PAGE, 0, True, None)
    later.unmap(4 * PAGE, 4 * PAGE)
    assert [(at, writable) for (at, _), (_, _, writable) in peer.mapped.items()] == [(0, True)]
    later.unmap(8 * PAGE, 4 * PAGE)  # nothing is there
    assert later.suits(100) is not peer.strict


def test_a_smaller_mapping_takes_the_place_of_a_larger_one(
    window: Window, peer: WindowPeer, file: int, strict: bool
) -> None:
    window.map(file, 0, 8 * PAGE, 0, False, None)
    os.ftruncate(file, 2 * PAGE)
    window.map(file, 0, 8 * PAGE, 0, True, None)
    assert list(peer.mapped) == [(0, 2 * PAGE if strict else 8 * PAGE)]


def test_mappings_are_bounded(window: Window, file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MAPPINGS", 4)
    for i in range(4):
        window.map(file, 0, PAGE, 2 * i * PAGE, False, None)
    with pytest.raises(OSError, match="4 pieces") as caught:
        window.map(file, 0, PAGE, 100 * PAGE, False, None)
    assert caught.value.errno == errno.ENOSPC


def test_a_mapping_that_fails_leaves_what_was_there(
    window: Window, peer: WindowPeer, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    window.map(file, 0, 8 * PAGE, 0, False, None)
    before = {page for at, length in peer.mapped for page in range(at // PAGE, (at + length) // PAGE)}
    monkeypatch.setattr(module, "MAX_MAPPINGS", 0)
    with pytest.raises(OSError, match="0 pieces"):
        window.map(file, 0, 2 * PAGE, 3 * PAGE, True, None)
    assert {page for at, length in peer.mapped for page in range(at // PAGE, (at + length) // PAGE)} == before
    assert not any(writable for _, _, writable in peer.mapped.values())


def test_without_a_channel_nothing_is_mapped(file: int) -> None:
    window = Window(SIZE)
    with pytest.raises(OSError, match="channel"):
        window.map(file, 0, PAGE, 0, False, None)
    assert not window.suits(PAGE)
    assert not window.needs_writable()
