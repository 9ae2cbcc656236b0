"""What the peer knows, taken over by another server of the same directory, or of one with the same names."""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transfuse.filesystems.hostdir import HostDirectory
from transfuse.filesystems.hostdir import state as module
from transfuse.filesystems.hostdir.state import EPOCH_SHIFT, MAX_EPOCH

Served = Any
Make = Callable[..., Any]


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


def tree(served: Served) -> None:
    (served.path / "d" / "e").mkdir(parents=True)
    (served.path / "a").write_text("alpha")
    (served.path / "d" / "b").write_text("beta")
    (served.path / "d" / "e" / "c").write_text("gamma")
    for path in served.path.rglob("*"):
        os.chown(path, served.path.stat().st_uid, served.path.stat().st_gid)


@pytest.fixture
def first(served: Served) -> Served:
    tree(served)
    return served


def walk(served: Served, path: str) -> int:
    node = 1
    for name in path.split("/"):
        node = served.look(name, node)
    return node


def hand_on(served: Served, make: Make, portable: bool = False, path: Path | None = None, **options: Any) -> Served:
    """Another server that goes on, after this one is gone."""
    pieces = list(served.fs.export_state(portable))
    served.fs.close()
    other = make(**options)
    if path is not None:
        other.path = path
    other.fs.renumber(1)
    other.fs.import_state(pieces, portable)
    return other


@pytest.mark.parametrize("portable", [False, True])
def test_nodes_and_open_files_go_on(first: Served, make: Make, portable: bool) -> None:
    nodes = {path: walk(first, path) for path in ("a", "d", "d/b", "d/e", "d/e/c")}
    fh = first.open(nodes["d/b"], os.O_RDWR)
    listing = first.fs.opendir(first.req, nodes["d"], 0).fh
    second = hand_on(first, make, portable)
    assert second.read(fh) == b"beta"
    assert second.fs.write(second.req, nodes["d/b"], fh, b"BETA", 0, 0) == 4
    assert {entry.name for entry in second.fs.readdir(second.req, nodes["d"], listing, 0)} >= {b"b", b"e"}
    for path, node in nodes.items():
        assert second.fs.getattr(second.req, node, None).size == (second.path / path).stat().st_size
    assert walk(second, "d/e/c") == nodes["d/e/c"]


def test_lookups_are_counted_on(first: Served, make: Make) -> None:
    node = first.look("a")
    first.look("a")
    second = hand_on(first, make)
    second.fs.forget(second.req, node, 1)
    assert second.fs.getattr(second.req, node, None).size == 5
    second.fs.forget(second.req, node, 1)
    assert errno_of(lambda: second.fs.getattr(second.req, node, None)) == errno.ESTALE


def test_numbers_of_a_later_server_are_larger(first: Served, make: Make) -> None:
    node = first.look("a")
    fh = first.open(node)
    second = hand_on(first, make)
    assert second.look("d") > 1 << EPOCH_SHIFT > node
    assert second.open(node) > 1 << EPOCH_SHIFT > fh


def test_without_an_epoch_it_counts_on(first: Served, make: Make) -> None:
    nodes = [first.look(name) for name in ("a", "d")]
    fh = first.open(nodes[0])
    pieces = list(first.fs.export_state(False))
    first.fs.close()
    second = make()
    second.fs.import_state(pieces, False)
    assert second.look("b", nodes[1]) > max(nodes)
    assert second.open(nodes[0]) > fh


def test_numbers_of_the_last_epoch_fit(make: Make) -> None:
    served = make()
    (served.path / "a").write_text("x")
    served.fs.renumber(MAX_EPOCH)
    assert MAX_EPOCH << EPOCH_SHIFT < served.look("a") < 1 << 64
    with pytest.raises(ValueError, match="epoch"):
        served.fs.renumber(MAX_EPOCH + 1)


def test_a_file_that_was_replaced_meanwhile_is_stale(first: Served, make: Make) -> None:
    node = first.look("a")
    pieces = list(first.fs.export_state(False))
    first.fs.close()
    (first.path / "other").write_text("other")
    os.rename(first.path / "other", first.path / "a")
    second = make()
    second.fs.renumber(1)
    second.fs.import_state(pieces, False)
    assert errno_of(lambda: second.fs.getattr(second.req, node, None)) == errno.ESTALE


def test_a_file_that_was_renamed_in_its_directory_is_found(first: Served, make: Make) -> None:
    node = first.look("a")
    pieces = list(first.fs.export_state(False))
    first.fs.close()
    os.rename(first.path / "a", first.path / "z")
    second = make()
    second.fs.import_state(pieces, False)
    assert second.fs.getattr(second.req, node, None).size == 5


def test_a_removed_file_that_was_open_is_stale(first: Served, make: Make) -> None:
    node = first.look("a")
    fh = first.open(node)
    first.fs.unlink(first.req, 1, b"a")
    second = hand_on(first, make)
    assert errno_of(lambda: second.fs.getattr(second.req, node, fh)) == errno.ESTALE
    assert errno_of(lambda: second.read(fh)) == errno.EBADF
    second.fs.forget(second.req, node, 1)


def test_a_directory_the_peer_forgot_still_leads_to_its_files(first: Served, make: Make) -> None:
    directory = first.look("d")
    node = first.look("b", directory)
    first.fs.forget(first.req, directory, 1)
    for portable in (False, True):
        second = hand_on(first, make, portable)
        assert second.fs.getattr(second.req, node, None).size == 4
        first = second


def test_open_flags_go_on_and_truncation_does_not(first: Served, make: Make) -> None:
    node = first.look("a")
    fh = first.open(node, os.O_WRONLY | os.O_APPEND)
    second = hand_on(first, make)
    assert (second.path / "a").read_text() == "alpha"
    second.fs.write(second.req, node, fh, b"!", 0, 0)
    assert (second.path / "a").read_text() == "alpha!"


@pytest.mark.parametrize("portable", [False, True])
def test_hard_links_stay_one_node(first: Served, make: Make, portable: bool) -> None:
    os.link(first.path / "a", first.path / "d" / "a2")
    node = first.look("a")
    assert walk(first, "d/a2") == node
    second = hand_on(first, make, portable)
    assert second.look("a") == node
    assert walk(second, "d/a2") == node


def test_symbolic_links_go_on(first: Served, make: Make) -> None:
    os.symlink("a", first.path / "l")
    node = first.look("l")
    second = hand_on(first, make, portable=True)
    assert second.fs.readlink(second.req, node) == b"a"


@pytest.mark.needs("root")
def test_another_machine_has_other_inodes(first: Served, make: Make, tmp_path: Path) -> None:
    nodes = {path: walk(first, path) for path in ("a", "d/b", "d/e/c")}
    fh = first.open(nodes["d/e/c"])
    copy = Path(shutil.copytree(first.path, tmp_path / "copy"))
    (copy / "d" / "b").unlink()
    (copy / "d" / "b").mkdir()
    second = hand_on(first, make, True, copy)
    assert second.read(fh) == b"gamma"
    assert second.fs.getattr(second.req, nodes["a"], None).size == 5
    assert errno_of(lambda: second.fs.getattr(second.req, nodes["d/b"], None)) == errno.ESTALE  # it is no file there


@pytest.mark.needs("root")
def test_a_name_that_is_missing_elsewhere_is_stale_and_can_be_forgotten(
    first: Served, make: Make, tmp_path: Path
) -> None:
    node = walk(first, "d/e/c")
    copy = Path(shutil.copytree(first.path, tmp_path / "copy"))
    shutil.rmtree(copy / "d")
    second = hand_on(first, make, True, copy)
    assert errno_of(lambda: second.fs.getattr(second.req, node, None)) == errno.ESTALE
    second.fs.forget(second.req, node, 1)
    assert node not in second.fs.nodes.by_id


@pytest.mark.needs("root")
def test_a_step_of_another_machine_does_not_go_through_a_link(first: Served, make: Make, tmp_path: Path) -> None:
    node = walk(first, "d/b")
    copy = Path(shutil.copytree(first.path, tmp_path / "copy"))
    secret = tmp_path / "secret"
    shutil.move(copy / "d", secret)
    os.symlink(secret, copy / "d")
    second = hand_on(first, make, True, copy)
    assert errno_of(lambda: second.fs.getattr(second.req, node, None)) == errno.ESTALE


def test_many_nodes_are_written_in_pieces(make: Make) -> None:
    served = make()
    for i in range(1500):
        (served.path / f"file-with-a-name-{i}").touch()
    served.hand_over()
    nodes = [served.look(f"file-with-a-name-{i}") for i in range(1500)]
    pieces = list(served.fs.export_state(False))
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= 1 << 16
    second = hand_on(served, make)
    assert all(second.fs.getattr(second.req, node, None).size == 0 for node in nodes[::100])
    assert len(second.fs.nodes.by_id) == 1501


def test_circles_of_stale_hints_end(first: Served, make: Make) -> None:
    first.fs.nodes.keep_handles = False  # as where file handles do not work
    d = first.look("d")
    e = first.look("e", d)
    nodes = first.fs.nodes
    nodes.by_id[d].parent, nodes.by_id[d].place = nodes.by_id[e], b"x"
    nodes.by_id[e].parent, nodes.by_id[e].place = nodes.by_id[d], b"e"
    second = hand_on(first, make)
    assert errno_of(lambda: second.fs.getattr(second.req, e, None)) == errno.ESTALE


# -- states that nobody wrote -----------------------------------------------------------------------------------------


def record(
    kind: int, nodeid: int, nlookup: int = 1, above: int = 1, place: bytes = b"a", key: bytes = b"\0" * 9
) -> bytes:
    head = struct.pack("<BQQQQHH", kind, nodeid, nlookup, above, 0, len(key), len(place))
    return head + key + place


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\1",
        b"\7" * 40,
        record(1, 2),  # without an end
        record(1, 0) + b"\0",
        record(1, 1) + b"\0",
        record(1, 2) + record(1, 2) + b"\0",
        record(1, 2, nlookup=0) + b"\0",
        record(1, (1 << 63) + 5, nlookup=1) + b"\0",
        record(1, 2, above=77) + b"\0",
        record(1, 2, above=0) + b"\0",
        record(1, 2, place=b"a/b") + b"\0",
        record(1, 2, place=b"..") + b"\0",
        record(1, 2, place=b"nul\0") + b"\0",
        record(1, 2, place=b"x" * 300) + b"\0",
        struct.pack("<BQQI", 3, 1, 99, 0) + b"\0",
        struct.pack("<BQQI", 3, 0, 1, 0) + b"\0",
        struct.pack("<BQQI", 3, 1, 1, os.O_CREAT) + b"\0",
        b"\0rest",
    ],
)
@pytest.mark.parametrize("portable", [False, True])
def test_nonsense_is_refused(tmp_path: Path, raw: bytes, portable: bool) -> None:
    filesystem = HostDirectory(tmp_path)
    with pytest.raises(ValueError):
        filesystem.import_state([raw] if raw else [], portable)
    filesystem.close()


@pytest.mark.needs("root")
def test_a_handle_from_elsewhere_opens_nothing(make: Make, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    fd = os.open(tmp_path, os.O_RDONLY)
    handle = module.take_handle(fd, b"secret")
    served = make()
    found = served.fs.probe(fd, b"secret")
    os.close(fd)
    assert found is not None
    if handle is None or isinstance(found[1], tuple):
        pytest.skip("not on one filesystem with file handles")
    key = found[1].to_bytes(24, "little")
    raw = record(2, 5, above=0, place=handle, key=key) + b"\0"
    with pytest.raises(ValueError, match="handle from elsewhere"):
        served.fs.import_state([raw], True)
    assert 5 not in served.fs.nodes.by_id


def test_random_damage_is_refused_or_harmless(first: Served, make: Make, request: pytest.FixtureRequest) -> None:
    walk(first, "d/e/c")
    first.open(first.look("a"))
    raw = b"".join(first.fs.export_state(True))
    rng = random.Random(request.config.option.seed)
    for _ in range(60):
        damaged = bytearray(raw)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        served = make()
        try:
            served.fs.import_state([bytes(damaged)], True)
        except ValueError:
            continue
        finally:
            nodes = list(served.fs.nodes.by_id)
            for node in nodes:
                try:
                    served.fs.getattr(served.req, node, None)
                except OSError:
                    pass
            served.fs.close()
