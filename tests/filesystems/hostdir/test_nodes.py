from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from transfuse.filesystems.hostdir import syscalls
from transfuse.filesystems.hostdir.nodes import HeldFd, Node, NodeTable, default_bound
from transfuse.fs.values import Attr

AS_USER = False


class World:
    """A table over a directory of numbered files."""

    def __init__(self, source: Path, bound: int = 4, handles: bool = False) -> None:
        for number in range(8):
            (source / f"f{number}").touch()
        self.source = source
        self.root = HeldFd(os.open(source, os.O_RDONLY | os.O_DIRECTORY))
        self.probe = syscalls.make_probe(os.fstat(self.root.fd).st_dev)
        self.table = NodeTable(self.root, bound, handles, False)

    def seen(self, name: str) -> Node:
        attr, key = self.probe(self.root.fd, name.encode()) or pytest.fail("missing")
        return self.table.remember(attr, key, self.table.root, name.encode(), self.root.fd)

    def close(self) -> None:
        self.table.clear()
        self.table.root.ref = None
        del self.root

    def open(self, name: str) -> HeldFd:
        return HeldFd(os.open(self.source / name, os.O_PATH))


@pytest.fixture
def world(source: Path) -> Iterator[World]:
    world = World(source)
    yield world
    world.close()


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_a_hard_link_is_the_same_node(world: World) -> None:
    os.link(world.source / "f0", world.source / "g")
    assert world.seen("f0") is world.seen("g")


def test_a_node_lives_until_every_lookup_is_given_back(world: World) -> None:
    node = world.seen("f0")
    world.seen("f0")
    assert world.table.forget(node.nodeid, 1) is None
    assert world.table.forget(node.nodeid, 1) is node
    assert node.nodeid not in world.table.by_id and node.key not in world.table.by_key


def test_nodeids_are_not_used_twice(world: World) -> None:
    first = world.seen("f0").nodeid
    world.table.forget(first, 1)
    assert world.seen("f0").nodeid != first


def test_the_root_is_not_forgotten(world: World) -> None:
    assert world.table.forget(1, 1 << 40) is None
    assert 1 in world.table.by_id


def test_forgetting_an_unknown_node_does_nothing(world: World) -> None:
    assert world.table.forget(12345, 1) is None


def test_kind_is_the_file_type(world: World) -> None:
    assert (world.seen("f0").kind, world.table.root.kind) == (8, 4)


def test_held_fds_stay_within_the_bound(world: World) -> None:
    refs = [world.table.hold(world.seen(f"f{n}"), world.open(f"f{n}")) for n in range(8)]
    assert len(world.table.held) == 4
    assert sum(node.ref is not None for node in world.table.by_id.values()) == 5  # and the root
    assert all(is_open(ref.fd) for ref in refs), "an fd in use was closed by eviction"


def test_an_evicted_fd_is_closed_when_nobody_uses_it(world: World) -> None:
    for n in range(8):
        world.table.hold(world.seen(f"f{n}"), world.open(f"f{n}"))
    held = sum(
        1 for name in os.listdir("/proc/self/fd") if "/f" in _target(name) and str(world.source) in _target(name)
    )
    assert held == 4


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


def test_an_fd_used_since_the_last_pass_survives_one_that_was_not(world: World) -> None:
    nodes = [world.seen(f"f{n}") for n in range(5)]
    for n in range(4):
        world.table.hold(nodes[n], world.open(f"f{n}")).used = n == 0
    world.table.hold(nodes[4], world.open("f4"))
    assert nodes[0].ref is not None
    assert nodes[1].ref is None


@pytest.mark.needs("root")
def test_eviction_leaves_a_file_handle(source: Path) -> None:
    world = World(source, handles=True)
    nodes = [world.seen(f"f{n}") for n in range(8)]
    for n, node in enumerate(nodes):
        world.table.hold(node, world.open(f"f{n}"))
    gone = [node for node in nodes if node.ref is None]
    assert len(gone) == 4
    assert all(node.parent is None and node.place for node in gone)
    world.close()


def test_a_pinned_fd_is_not_evicted(world: World) -> None:
    node = world.seen("f0")
    world.table.pin(node, world.open("f0"), True)
    for n in range(1, 8):
        world.table.hold(world.seen(f"f{n}"), world.open(f"f{n}"))
    assert node.ref is not None


def test_pinned_fds_stay_within_the_bound(world: World) -> None:
    for n in range(8):
        world.table.pin(world.seen(f"f{n}"), world.open(f"f{n}"), True)
    assert len(world.table.pinned) == 4


def test_a_name_seen_again_makes_a_pinned_node_ordinary(world: World) -> None:
    node = world.seen("f0")
    world.table.pin(node, world.open("f0"), False)
    world.seen("f0")
    assert (node.place, len(world.table.pinned), list(world.table.held)) == (b"f0", 0, [node])


def test_a_removed_inode_is_not_found_by_its_old_identity(world: World) -> None:
    node = world.seen("f0")
    world.table.pin(node, world.open("f0"), True)
    assert node.key not in world.table.by_key and node.nodeid in world.table.by_id


def test_a_lent_fd_goes_when_the_file_is_closed(world: World) -> None:
    node, ref = world.seen("f0"), world.open("f0")
    world.table.lend(node, ref)
    assert node.ref is ref
    assert world.table.take_back(node, ref)
    assert node.ref is None


def test_the_last_way_to_a_node_is_not_taken_back(world: World) -> None:
    ref = world.open("f0")
    _, key = world.probe(ref.fd, b"") or pytest.fail("missing")
    node = world.table.add_nameless(key, ref)
    assert not world.table.take_back(node, ref)
    assert node.ref is ref


def test_making_room_gives_up_most_fds_and_keeps_the_bound(world: World) -> None:
    for n in range(4):
        world.table.hold(world.seen(f"f{n}"), world.open(f"f{n}"))
    assert world.table.make_room()
    assert (len(world.table.held), world.table.bound) == (1, 4)


def test_clear_leaves_the_root(world: World) -> None:
    world.table.hold(world.seen("f0"), world.open("f0"))
    world.table.clear()
    assert list(world.table.by_id) == [1] and world.table.root.ref is world.root and not world.table.held


def test_default_bound_is_within_its_limits() -> None:
    assert 16 <= default_bound() <= 1000


def test_identity_differs_by_time_of_birth(world: World) -> None:
    _, key = world.probe(world.root.fd, b"f0") or pytest.fail("missing")
    attr = Attr.file(1)
    older = world.table.remember(attr, key, world.table.root, b"f0", world.root.fd)
    newer = world.table.remember(attr, key + (1 << syscalls.BIRTH_SHIFT), world.table.root, b"f0", world.root.fd)
    assert older is not newer
