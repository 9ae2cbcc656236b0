from __future__ import annotations

import errno
import gc
import os
import random
import resource
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from transfuse.filesystems.hostdir import HostDirectory
from transfuse.fs.values import Features

Served = Any
Make = Callable[..., Any]


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


def test_source_that_is_a_file_is_enotdir(source: Path) -> None:
    (source / "a").touch()
    assert errno_of(lambda: HostDirectory(source / "a")) == errno.ENOTDIR


def test_source_may_be_bytes_or_an_fd_that_stays_the_callers(source: Path) -> None:
    (source / "a").touch()
    fd = os.open(source, os.O_PATH)
    for form in (os.fsencode(source), fd):
        fs = HostDirectory(form)
        assert b"a" in {e.name for e in fs.readdir(None, 1, fs.opendir(None, 1, 0).fh, 0)}  # type: ignore[arg-type]
        fs.close()
    os.close(fd)


def test_unknown_cache_mode_is_refused(source: Path) -> None:
    with pytest.raises(ValueError, match="sometimes"):
        HostDirectory(source, cache="sometimes")


@pytest.mark.parametrize(("cache", "timeout", "negative"), [("never", 0, 0), ("auto", 1, 0), ("always", 86400, 86400)])
def test_cache_mode_sets_the_timeouts(make: Make, cache: str, timeout: float, negative: float) -> None:
    features: Features = make(cache=cache).fs.features
    assert features.entry_timeout_s == features.attr_timeout_s == timeout
    assert features.negative_timeout_s == negative


def test_timeouts_are_set_one_by_one(make: Make) -> None:
    features = make(entry_timeout_s=5, attr_timeout_s=6, negative_timeout_s=7).fs.features
    assert (features.entry_timeout_s, features.attr_timeout_s, features.negative_timeout_s) == (5, 6, 7)


def test_writeback_excludes_passthrough(make: Make) -> None:
    features = make(writeback=True).fs.features
    assert features.writeback_cache and not features.passthrough


def test_lookup_tells_what_lstat_tells(served: Served) -> None:
    (served.path / "a").write_text("hello")
    entry, st = served.fs.lookup(served.req, 1, b"a"), os.lstat(served.path / "a")
    assert (entry.attr.ino, entry.attr.mode, entry.attr.size, entry.attr.mtime_ns) == (
        st.st_ino, st.st_mode, st.st_size, st.st_mtime_ns,
    )  # fmt: skip


def test_lookup_of_missing_name_is_a_negative_entry(served: Served) -> None:
    entry = served.fs.lookup(served.req, 1, b"none")
    assert (entry.nodeid, entry.attr, entry.timeout_s) == (0, None, None)


def test_lookup_in_a_file_is_enotdir(served: Served) -> None:
    (served.path / "a").touch()
    node = served.look("a")
    assert errno_of(lambda: served.look("b", node)) == errno.ENOTDIR


def test_lookup_of_a_long_name_is_enametoolong(served: Served) -> None:
    assert errno_of(lambda: served.look("x" * 256)) == errno.ENAMETOOLONG


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", "d/../.."])
def test_lookup_of_what_is_no_name_is_einval(served: Served, name: str) -> None:
    (served.path / "d").mkdir()
    assert errno_of(lambda: served.look(name)) == errno.EINVAL


@pytest.mark.parametrize("nodeid", [0, 2, 99, 1 << 63])
def test_unknown_nodeid_is_estale(served: Served, nodeid: int) -> None:
    fs, req = served.fs, served.req
    calls: list[Callable[[], object]] = [
        lambda: fs.lookup(req, nodeid, b"a"),
        lambda: fs.getattr(req, nodeid, None),
        lambda: fs.open(req, nodeid, 0),
        lambda: fs.opendir(req, nodeid, 0),
        lambda: fs.mkdir(req, nodeid, b"a", 0o755, 0),
        lambda: fs.unlink(req, nodeid, b"a"),
        lambda: fs.getxattr(req, nodeid, b"user.a"),
        lambda: fs.statfs(req, nodeid),
        lambda: fs.link(req, nodeid, 1, b"x"),
    ]
    assert [errno_of(call) for call in calls] == [errno.ESTALE] * len(calls)


def test_a_hard_link_is_one_node(served: Served) -> None:
    (served.path / "a").touch()
    os.link(served.path / "a", served.path / "b")
    assert served.look("a") == served.look("b")


def test_a_symlink_is_not_followed(served: Served) -> None:
    (served.path / "out").symlink_to("/etc")
    node = served.look("out")
    assert errno_of(lambda: served.look("passwd", node)) == errno.ENOTDIR
    assert errno_of(lambda: served.fs.opendir(served.req, node, 0)) == errno.ENOTDIR


def test_a_forgotten_node_is_estale(served: Served) -> None:
    (served.path / "a").touch()
    node = served.look("a")
    served.look("a")
    served.fs.forget(served.req, node, 2)
    assert errno_of(lambda: served.size(node)) == errno.ESTALE


def test_a_file_renamed_on_the_host_is_found_again(served: Served) -> None:
    (served.path / "a").write_text("abc")
    node = served.look("a")
    (served.path / "a").rename(served.path / "b")
    assert served.size(node) == 3


def test_a_directory_renamed_on_the_host_is_found_again(served: Served) -> None:
    (served.path / "d").mkdir()
    (served.path / "d" / "a").write_text("abc")
    node = served.look("d")
    (served.path / "d").rename(served.path / "e")
    assert served.size(served.look("a", node)) == 3


@pytest.mark.needs("root")
def test_a_directory_moved_elsewhere_on_the_host_is_found_again(served: Served) -> None:
    (served.path / "d").mkdir()
    (served.path / "x").mkdir()
    (served.path / "d" / "a").write_text("abc")
    node = served.look("d")
    (served.path / "d").rename(served.path / "x" / "e")
    assert served.size(served.look("a", node)) == 3


def test_an_open_file_moved_elsewhere_on_the_host_stays_usable(served: Served) -> None:
    (served.path / "x").mkdir()
    entry, opened = served.create("a")
    (served.path / "a").rename(served.path / "x" / "b")
    served.write(entry.nodeid, opened.fh, b"abc")
    assert served.size(entry.nodeid) == 3
    served.release(entry.nodeid, opened.fh)


def test_a_file_put_in_place_of_another_is_not_taken_for_it(served: Served) -> None:
    (served.path / "a").write_text("old")
    node = served.look("a")
    (served.path / "new").write_text("newer")
    (served.path / "new").rename(served.path / "a")
    assert errno_of(lambda: served.size(node)) == errno.ESTALE
    assert errno_of(lambda: served.open(node)) == errno.ESTALE
    assert served.look("a") != node


def test_a_symlink_put_in_place_of_a_directory_leads_nowhere(served: Served) -> None:
    (served.path / "d").mkdir()
    node = served.look("d")
    (served.path / "d").rmdir()
    (served.path / "d").symlink_to("/etc")
    assert errno_of(lambda: served.look("passwd", node)) in (errno.ESTALE, errno.ENOTDIR)


@pytest.mark.needs("root")
def test_a_directory_moved_out_does_not_lead_out(served: Served) -> None:
    (served.path / "d" / "e").mkdir(parents=True)
    d = served.look("d")
    e = served.look("e", d)
    served.names(e)
    outside = served.path.parent / (served.path.name + "-outside")
    (served.path / "d" / "e").rename(outside)
    try:
        assert errno_of(lambda: served.look("..", e)) == errno.EINVAL
        assert served.names(e) == [b".", b".."]
    finally:
        shutil.rmtree(outside)


def move_to_another_directory(served: Served, name: str) -> None:
    """As a process of the host would."""
    (served.path / "elsewhere").mkdir()
    (served.path / name).rename(served.path / "elsewhere" / Path(name).name)


def without_handles(served: Served) -> Served:
    """As every server is that may not open file handles."""
    served.fs.nodes.handles = served.fs.nodes.keep_handles = False
    return served


def test_a_file_moved_by_the_host_is_stale_until_it_is_looked_up_again(served: Served) -> None:
    (served.path / "a").write_text("text")
    node = served.look("a")
    move_to_another_directory(served, "a")
    for call in (lambda: served.size(node), lambda: served.open(node)):
        assert errno_of(call) == errno.ESTALE
    assert served.look("a", served.look("elsewhere")) == node
    assert served.size(node) == 4


def test_an_open_file_moved_by_the_host_goes_on_whichever_handle_is_closed_first(served: Served) -> None:
    (served.path / "a").write_text("text")
    node = served.look("a")
    first, second = served.open(node), served.open(node)
    served.release(node, first)
    move_to_another_directory(served, "a")
    assert served.size(node) == 4
    third = served.open(node)
    served.release(node, second)
    assert served.size(node) == 4
    served.release(node, third)
    assert errno_of(lambda: served.size(node)) == errno.ESTALE


@pytest.mark.parametrize("below", [False, True])
def test_an_open_directory_moved_by_the_host_goes_on_when_its_fd_was_given_up(make: Make, below: bool) -> None:
    """Also if it is a directory above that moved."""
    served = without_handles(make(max_held=16))
    (served.path / "d" / "e").mkdir(parents=True)
    (served.path / "d" / "e" / "f").write_text("text")
    node = served.look("d")
    if below:
        node = served.look("e", node)
    fh = served.fs.opendir(served.req, node, 0).fh
    assert served.fs.nodes.make_room()
    move_to_another_directory(served, "d")
    assert served.fs.getattr(served.req, node, None).mode >> 12 == 4
    assert served.size(served.look("f", node if below else served.look("e", node))) == 4
    served.fs.releasedir(served.req, node, fh, 0)


def test_a_directory_moved_by_the_host_that_is_not_open_is_stale_once_its_fd_was_given_up(make: Make) -> None:
    served = without_handles(make(max_held=16))
    (served.path / "d").mkdir()
    node = served.look("d")
    served.missing("x", node)
    move_to_another_directory(served, "d")
    assert served.missing("x", node)
    assert served.fs.nodes.make_room()
    assert errno_of(lambda: served.look("x", node)) == errno.ESTALE


@pytest.mark.needs("root")
def test_swapping_a_directory_for_a_symlink_never_shows_the_outside(served: Served) -> None:
    """The classical race, many times over: no lookup may ever reach the symlink's target."""
    outside = served.path.parent / (served.path.name + "-outside")
    outside.mkdir()
    (outside / "secret").write_text("secret")
    d, spare = served.path / "d", served.path / "spare"
    d.mkdir()
    (d / "plain").write_text("x")
    spare.symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        aside = served.path / "aside"
        while not stop.is_set():
            d.rename(aside)
            spare.rename(d)
            d.rename(spare)
            aside.rename(d)

    thread = threading.Thread(target=swap)
    thread.start()
    found = []
    try:
        for _ in range(50_000):
            if len(found) >= 100:
                break
            entry = served.fs.lookup(served.req, 1, b"d")
            if entry.nodeid:
                try:
                    found.append(served.fs.lookup(served.req, entry.nodeid, b"secret").nodeid)
                except OSError as error:
                    assert error.errno in (errno.ENOTDIR, errno.ESTALE)
                served.fs.forget(served.req, entry.nodeid, 1)
    finally:
        stop.set()
        thread.join()
        shutil.rmtree(outside)
    assert found and not any(found)


def test_a_deep_tree_needs_no_recursion_and_few_fds(make: Make) -> None:
    served = make(max_held=16, cache="always")
    depth = 1500
    fd = os.open(served.path, os.O_PATH)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    node = 1
    for _ in range(depth):
        node = served.look("d", node)
    assert len(served.fs.nodes.held) <= 16
    assert served.fs.getattr(served.req, node, None).mode
    served.fs.close()
    fd = os.open(served.path, os.O_PATH)
    for _ in range(depth - 1):  # shutil.rmtree would recurse: lift the rest up by one, drop what held it
        os.rename("d/d", "inner", src_dir_fd=fd, dst_dir_fd=fd)
        os.rmdir("d", dir_fd=fd)
        os.rename("inner", "d", src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)


def test_many_known_inodes_need_few_fds_and_little_memory(make: Make) -> None:
    served = make(max_held=50)
    count = 2000
    (served.path / "d").mkdir()
    for number in range(count):
        (served.path / "d" / f"n{number}").touch()
    directory = served.look("d")
    before = len(os.listdir("/proc/self/fd"))
    nodes = [served.look(f"n{number}", directory) for number in range(count)]
    random.Random(1).shuffle(nodes)
    for node in nodes:
        served.fs.getattr(served.req, node, None)
        served.fs.statfs(served.req, node)
    assert len(os.listdir("/proc/self/fd")) - before <= 51
    for node in nodes:
        served.fs.forget(served.req, node, 1)
    assert len(served.fs.nodes.by_id) == 2


@pytest.mark.soak
@pytest.mark.parametrize("count", [1_000_000])
def test_a_million_inodes_cost_300_bytes_each(count: int, tmp_path: Path) -> None:
    base = Path("/dev/shm") / tmp_path.name
    base.mkdir()
    try:
        for start in range(0, count, 1000):
            (base / str(start)).mkdir()
            fd = os.open(base / str(start), os.O_PATH)
            for number in range(start, start + 1000):
                os.close(os.open(f"file{number:08d}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            os.close(fd)
        fs = HostDirectory(base)
        gc.collect()
        before = _resident_bytes()
        for start in range(0, count, 1000):
            parent = fs.lookup(None, 1, b"%d" % start).nodeid  # type: ignore[arg-type]
            for number in range(start, start + 1000):
                fs.lookup(None, parent, b"file%08d" % number)  # type: ignore[arg-type]
        gc.collect()
        assert (_resident_bytes() - before) / count <= 310
        assert len(os.listdir("/proc/self/fd")) <= 1100
        fs.close()
    finally:
        shutil.rmtree(base)


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_destroyed_closes_everything_but_the_source(served: Served) -> None:
    (served.path / "d").mkdir()
    served.look("d")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(5):
        served.create(f"f{number}")
    served.fs.opendir(served.req, served.look("d"), 0)
    served.fs.destroyed()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert served.names() == [b".", b"..", b"d", *(b"f%d" % n for n in range(5))]


def test_a_closed_host_directory_is_estale(served: Served) -> None:
    served.fs.close()
    assert errno_of(lambda: served.look("a")) == errno.ESTALE


def test_running_out_of_fds_gives_up_held_ones(make: Make) -> None:
    served = make(max_held=1000)
    for number in range(60):
        (served.path / f"d{number}").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    nodes = [served.look(f"d{number}") for number in range(60)]
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
    try:
        for node in nodes:
            assert served.missing("x", node)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_threads_that_meet_at_the_first_use_are_served_by_one_host_directory(served: Served) -> None:
    """On which the next test relies; it is about this folder's own equipment."""
    together = threading.Barrier(6)
    found: list[HostDirectory] = []

    def work() -> None:
        together.wait(30)
        found.append(served.fs)

    threads = [threading.Thread(target=work) for _ in range(6)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(before)
    assert len(found) == 6 and all(fs is found[0] for fs in found)


def test_threads_together_leave_the_counts_right(served: Served) -> None:
    for number in range(20):
        (served.path / f"n{number}").touch()
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(400):
                name = f"n{rng.randrange(20)}"
                node = served.look(name)
                fh = served.open(node)
                served.read(fh)
                served.size(node)
                served.release(node, fh)
                served.fs.forget(served.req, node, 1)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert list(served.fs.nodes.by_id) == [1] and not served.fs.opened and not served.fs.nodes.held


def test_renames_and_walks_at_once_lose_nothing(served: Served) -> None:
    """A walk through names that our own renames change must find every node, whatever hint was just wrong."""
    (served.path / "x").mkdir()
    (served.path / "y").mkdir()
    (served.path / "x" / "f").write_text("abc")
    parents = {name: served.look(name) for name in "xy"}
    node = served.look("f", parents["x"])
    stop = threading.Event()
    errors: list[BaseException] = []

    def move() -> None:
        try:
            while not stop.is_set():
                served.fs.rename(served.req, parents["x"], b"f", parents["y"], b"g", 0)
                served.fs.rename(served.req, parents["y"], b"g", parents["x"], b"f", 0)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        for _ in range(1000):
            fh = served.open(node)
            assert served.read(fh) == b"abc"
            served.release(node, fh)
            assert served.size(node) == 3
    finally:
        stop.set()
        thread.join()
    assert errors == []


def test_mounted_tells_whether_the_kernel_takes_backing_files(served: Served) -> None:
    served.fs.mounted(SimpleNamespace(features=Features(passthrough=False), notify=None))
    assert not served.fs.passed_through


def test_always_leaves_posix_locks_to_the_peer(make: Make) -> None:
    assert not {"getlk", "setlk"} & make(cache="always").fs.operations()
    assert {"getlk", "setlk"} <= make(cache="always", posix_locks=True).fs.operations()
    assert {"getlk", "setlk", "flock"} <= make().fs.operations()


def test_flock_can_be_left_to_the_peer(make: Make) -> None:
    assert "flock" not in make(flock=False).fs.operations()


def test_btime_is_known(served: Served) -> None:
    (served.path / "a").touch()
    attr = served.fs.statx(served.req, served.look("a"), None, 0, 0xFFF)
    assert attr.btime_ns is not None and abs(attr.btime_ns - attr.ctime_ns) < 10**9
