"""A host directory behind a real kernel mount: what shows only when the kernel's caches, locks and rules take part."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from transfuse.filesystems.hostdir import HostDirectory, syscalls
from transfuse.server import Mount, mount

pytestmark = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse"), pytest.mark.timeout(60)]

AS_USER = False
USER = 65534
GROUP = 4242
MODES: dict[str, dict[str, Any]] = {
    "auto": {},
    "no passthrough": {"passthrough": False},
    "never": {"cache": "never", "passthrough": False},
    "always": {"cache": "always", "passthrough": False},
    "no open": {"cache": "always", "no_open": True},
    "writeback": {"writeback": True},
}


class Mounted:
    def __init__(self, source: Path, point: Path, served: Mount) -> None:
        self.source = source
        self.point = point
        self.mount = served
        self.fs: Any = served.server.filesystem


@pytest.fixture(params=list(MODES))
def mounted(source: Path, request: pytest.FixtureRequest) -> Iterator[Mounted]:
    point = Path(tempfile.mkdtemp(prefix="transfuse-hostdir-point-"))
    source.chmod(0o777)
    fs = HostDirectory(source, **MODES[request.param])
    with mount(fs, point, ["allow_other", "default_permissions"]) as served:
        yield Mounted(source, point, served)
    fs.close()
    point.rmdir()


def as_user(script: str, *arguments: object, groups: tuple[int, ...] = ()) -> str:
    """Run a shell script as an ordinary user; its output."""
    command = ["sh", "-ec", script, "sh", *map(str, arguments)]
    done = subprocess.run(command, user=USER, group=USER, extra_groups=groups, cwd="/", capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_data_written_through_the_mount_is_on_the_host(mounted: Mounted) -> None:
    data = os.urandom(3_000_001)
    (mounted.point / "a").write_bytes(data)
    assert (mounted.source / "a").read_bytes() == data == (mounted.point / "a").read_bytes()


def test_a_tree_with_links_and_attributes_is_copied_whole(mounted: Mounted, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "d" / "e").mkdir(parents=True)
    (tree / "a").write_text("a")
    os.link(tree / "a", tree / "d" / "hard")
    (tree / "soft").symlink_to("d/e")
    os.mkfifo(tree / "fifo", 0o600)
    os.setxattr(tree / "a", "user.x", b"1")
    os.utime(tree / "d" / "e", ns=(1, 2))
    subprocess.run(["cp", "-a", tree, mounted.point], check=True, timeout=30)
    copy = mounted.point / "tree"
    assert (copy / "a").stat().st_ino == (copy / "d" / "hard").stat().st_ino and (copy / "a").stat().st_nlink == 2
    assert os.readlink(copy / "soft") == "d/e"
    assert os.getxattr(copy / "a", "user.x") == b"1"
    assert (copy / "d" / "e").stat().st_mtime_ns == 2


def test_shared_mapping_reaches_the_host(mounted: Mounted) -> None:
    # In a process of its own: a page fault keeps the interpreter's lock, which the server's threads here need.
    code = (
        "import mmap, os, sys\n"
        "with open(sys.argv[1], 'r+b') as file:\n"
        "    with mmap.mmap(file.fileno(), 8192) as mapped:\n"
        "        assert mapped[:3] == b'abc'\n"
        "        mapped[4096:4101] = b'hello'\n"
        "        mapped.flush()\n"
        "    os.fsync(file.fileno())\n"
    )
    (mounted.source / "a").write_bytes(b"abc" + bytes(8189))
    subprocess.run([sys.executable, "-c", code, str(mounted.point / "a")], check=True, timeout=30)
    assert (mounted.source / "a").read_bytes()[4096:4101] == b"hello"


def test_appending_from_two_open_files_loses_nothing(mounted: Mounted) -> None:
    with open(mounted.point / "a", "ab", buffering=0) as one, open(mounted.point / "a", "ab", buffering=0) as two:
        for number in range(50):
            (one if number % 2 else two).write(b"%02d\n" % number)
    assert (mounted.source / "a").read_bytes().split() == [b"%02d" % n for n in range(50)]


def test_a_user_makes_files_of_his_own(mounted: Mounted) -> None:
    as_user("umask 027; cd $1; echo x > f; mkdir d; ln -s f l", mounted.point)
    for name, mode in (("f", 0o640), ("d", 0o750), ("l", 0o777)):
        st = os.lstat(mounted.source / name)
        assert (st.st_uid, st.st_gid, st.st_mode & 0o777) == (USER, USER, mode), name


def test_a_users_supplementary_group_opens_a_directory(mounted: Mounted) -> None:
    (mounted.source / "g").mkdir()
    os.chown(mounted.source / "g", 0, GROUP)
    (mounted.source / "g").chmod(0o2770)
    as_user("cd $1/g; echo x > f; mkdir d", mounted.point, groups=(GROUP,))
    assert (mounted.source / "g" / "f").stat().st_gid == GROUP
    assert (mounted.source / "g" / "d").stat().st_mode & 0o2000


def test_a_user_without_the_right_is_refused(mounted: Mounted) -> None:
    (mounted.source / "d").mkdir(0o755)
    (mounted.source / "secret").write_text("s")
    (mounted.source / "secret").chmod(0o600)
    out = as_user("cd $1; touch d/x 2>&1 || :; cat secret 2>&1 || :; rm -f d 2>&1 || :", mounted.point)
    assert out.count("ermission denied") == 2


def test_writing_as_a_user_clears_setuid(mounted: Mounted) -> None:
    (mounted.point / "a").write_text("a")
    (mounted.point / "a").chmod(0o6777)
    as_user("echo more >> $1/a", mounted.point)
    assert (mounted.source / "a").stat().st_mode & 0o7777 == 0o777


def test_truncating_as_a_user_clears_setuid(mounted: Mounted) -> None:
    for name, script in (("t", "truncate -s 1 $1/t"), ("o", ": > $1/o")):
        (mounted.point / name).write_text("abc")
        (mounted.point / name).chmod(0o6777)
        as_user(script, mounted.point)
        assert (mounted.source / name).stat().st_mode & 0o7777 == 0o777


def test_sticky_directory_protects_others_files(mounted: Mounted) -> None:
    (mounted.source / "t").mkdir()
    (mounted.source / "t").chmod(0o1777)
    (mounted.source / "t" / "roots").touch()
    assert "not permitted" in as_user("rm -f $1/t/roots 2>&1 || :", mounted.point)


@pytest.mark.needs("setfacl")
def test_default_acl_is_inherited_instead_of_the_umask(mounted: Mounted) -> None:
    (mounted.point / "d").mkdir()
    subprocess.run(["setfacl", "-d", "-m", f"u:{GROUP}:rwx", mounted.point / "d"], check=True, timeout=30)
    old = os.umask(0o077)
    try:
        (mounted.point / "d" / "f").touch(0o666)
    finally:
        os.umask(old)
    assert (mounted.source / "d" / "f").stat().st_mode & 0o777 == 0o664


def test_an_unlinked_open_file_can_still_be_changed(mounted: Mounted) -> None:
    with open(mounted.point / "a", "w+b", buffering=0) as file:
        os.unlink(mounted.point / "a")
        file.write(b"abc")
        os.fchmod(file.fileno(), 0o640)
        os.setxattr(file.fileno(), "user.x", b"1")
        os.ftruncate(file.fileno(), 2)
        st = os.fstat(file.fileno())
        assert (st.st_size, st.st_mode & 0o777, st.st_nlink) == (2, 0o640, 0)
        assert os.pread(file.fileno(), 10, 0) == b"ab"


def test_a_removed_working_directory_can_be_looked_at(mounted: Mounted) -> None:
    (mounted.point / "d").mkdir()
    fd = os.open(mounted.point / "d", os.O_PATH)
    try:
        os.rmdir(mounted.point / "d")
        assert os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)


def test_a_file_without_a_name_gets_one(mounted: Mounted) -> None:
    fd = os.open(mounted.point, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        os.write(fd, b"abc")
        os.link(f"/proc/self/fd/{fd}", mounted.point / "named", src_dir_fd=fd, follow_symlinks=True)
    finally:
        os.close(fd)
    assert (mounted.source / "named").read_bytes() == b"abc"


def test_posix_locks_of_two_processes_exclude(mounted: Mounted) -> None:
    (mounted.point / "a").write_text("abc")
    code = (
        "import fcntl, sys\n"
        "f = open(sys.argv[1], 'r+b')\n"
        "try: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: sys.exit(7)\n"
    )
    command = [sys.executable, "-c", code, str(mounted.point / "a")]
    with open(mounted.point / "a", "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert subprocess.run(command, timeout=30).returncode == 7
    assert subprocess.run(command, timeout=30).returncode == 0


@pytest.mark.parametrize("kind", ["lockf", "flock"])
def test_a_process_that_waits_for_a_lock_can_be_killed(mounted: Mounted, kind: str) -> None:
    (mounted.point / "a").write_text("abc")
    code = f"import fcntl, sys; f = open(sys.argv[1], 'r+b'); print(flush=True); fcntl.{kind}(f, fcntl.LOCK_EX)"
    with open(mounted.point / "a", "r+b") as file:
        getattr(fcntl, kind)(file, fcntl.LOCK_EX)
        with subprocess.Popen(
            [sys.executable, "-c", code, str(mounted.point / "a")], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.2)
            assert process.poll() is None
            process.terminate()
            assert process.wait(10) == -15


@pytest.mark.parametrize("kind", ["lockf", "flock"])
def test_a_waiting_lock_is_got_when_it_is_free(mounted: Mounted, kind: str) -> None:
    (mounted.point / "a").write_text("abc")
    code = f"import fcntl, sys; f = open(sys.argv[1], 'r+b'); print(flush=True); fcntl.{kind}(f, fcntl.LOCK_EX)"
    with open(mounted.point / "a", "r+b") as file:
        getattr(fcntl, kind)(file, fcntl.LOCK_EX)
        with subprocess.Popen(
            [sys.executable, "-c", code, str(mounted.point / "a")], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.1)
            getattr(fcntl, kind)(file, fcntl.LOCK_UN)
            assert process.wait(10) == 0


def test_rename_flags(mounted: Mounted) -> None:
    (mounted.point / "a").write_text("a")
    (mounted.point / "b").write_text("bb")
    fd = os.open(mounted.point, os.O_PATH)
    try:
        with pytest.raises(FileExistsError):
            syscalls.rename(fd, b"a", fd, b"b", 1)
        syscalls.rename(fd, b"a", fd, b"b", 2)
    finally:
        os.close(fd)
    assert ((mounted.point / "a").read_text(), (mounted.point / "b").read_text()) == ("bb", "a")


def test_holes_and_copies(mounted: Mounted) -> None:
    with open(mounted.point / "a", "w+b", buffering=0) as one, open(mounted.point / "b", "w+b", buffering=0) as two:
        os.pwrite(one.fileno(), b"x", 1 << 20)
        os.fsync(one.fileno())
        # With write-back the kernel is not told of holes: it would not know which of them it is about to fill.
        assert os.lseek(one.fileno(), 0, os.SEEK_HOLE) == ((1 << 20) + 1 if mounted.fs.writeback else 0)
        os.posix_fallocate(one.fileno(), 0, 1 << 21)
        assert os.copy_file_range(one.fileno(), two.fileno(), 1 << 21, 0, 0) == 1 << 21
        assert os.pread(two.fileno(), 1, 1 << 20) == b"x"


def test_a_large_directory_is_listed_whole(mounted: Mounted) -> None:
    names = {f"file-with-a-longish-name-{number}" for number in range(3000)}
    for name in names:
        (mounted.source / name).touch()
    assert set(os.listdir(mounted.point)) == names
    with os.scandir(mounted.point) as entries:
        assert sum(entry.stat().st_size == 0 for entry in entries) == 3000


def test_a_large_directory_is_removed_whole(mounted: Mounted) -> None:
    (mounted.point / "d").mkdir()
    for number in range(1500):
        (mounted.source / "d" / f"n{number}").touch()
    shutil.rmtree(mounted.point / "d")
    assert os.listdir(mounted.source) == []


def test_nothing_is_left_when_all_is_closed(mounted: Mounted) -> None:
    for number in range(20):
        with open(mounted.point / f"f{number}", "w") as file:
            file.write("x")
        os.unlink(mounted.point / f"f{number}")
    deadline = time.monotonic() + 10
    while (mounted.fs.opened or len(mounted.fs.nodes.by_id) > 1) and time.monotonic() < deadline:
        time.sleep(0.05)  # RELEASE and FORGET come when the kernel likes
    assert not mounted.fs.opened and list(mounted.fs.nodes.by_id) == [1]


@pytest.mark.needs("chattr", "lsattr")
def test_lsattr_and_chattr_reach_the_host(mounted: Mounted) -> None:
    (mounted.point / "a").touch()
    subprocess.run(["chattr", "+d", mounted.point / "a"], check=True, timeout=30)
    flags = subprocess.run(
        ["lsattr", mounted.source / "a"], check=True, timeout=30, capture_output=True
    ).stdout.split()[0]
    assert b"d" in flags


def test_statvfs_is_the_hosts(mounted: Mounted) -> None:
    assert os.statvfs(mounted.point).f_blocks == os.statvfs(mounted.source).f_blocks


def test_names_too_long_are_refused(mounted: Mounted) -> None:
    with pytest.raises(OSError) as caught:
        (mounted.point / ("x" * 256)).touch()
    assert caught.value.errno == errno.ENAMETOOLONG


@pytest.fixture
def passthrough(source: Path) -> Iterator[Mounted]:
    point = Path(tempfile.mkdtemp(prefix="transfuse-hostdir-point-"))
    fs = HostDirectory(source)
    with mount(fs, point, ["allow_other", "default_permissions"]) as served:
        if not served.connection.features.passthrough:
            pytest.skip("this kernel does not take backing files")
        yield Mounted(source, point, served)
    fs.close()
    point.rmdir()


def test_passthrough_reads_and_writes_never_reach_the_server(
    passthrough: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []
    fs = passthrough.fs
    read: Callable[..., Any] = fs.read
    write: Callable[..., Any] = fs.write
    monkeypatch.setattr(fs, "read", lambda *a: (reached.append("read"), read(*a))[1])
    monkeypatch.setattr(fs, "write", lambda *a: (reached.append("write"), write(*a))[1])
    data = os.urandom(1 << 20)
    (passthrough.point / "a").write_bytes(data)
    assert (passthrough.point / "a").read_bytes() == data
    assert reached == []


def test_two_opens_of_one_file_agree_on_passthrough(passthrough: Mounted) -> None:
    (passthrough.source / "a").write_text("abc")
    with open(passthrough.point / "a", "rb") as one, open(passthrough.point / "a", "r+b", buffering=0) as two:
        two.write(b"xyz")
        assert one.read() == b"xyz"


def test_a_small_file_open_for_reading_sees_what_is_written_meanwhile_and_later(passthrough: Mounted) -> None:
    (passthrough.source / "a").write_bytes(b"one")
    with open(passthrough.point / "a", "rb", buffering=0) as reader:
        assert reader.read() == b"one"
        with open(passthrough.point / "a", "r+b", buffering=0) as writer:
            writer.write(b"two")
            assert os.pread(reader.fileno(), 3, 0) == b"two"
    for data in (b"six", b"ten"):
        with open(passthrough.point / "a", "r+b", buffering=0) as writer:
            writer.write(data)
        assert (passthrough.point / "a").read_bytes() == data


changed_by_others = pytest.mark.parametrize(
    "mounted", [mode for mode, options in MODES.items() if options.get("cache") != "always"], indirect=True
)
"""cache=always promises that nobody else changes the source."""


@pytest.fixture
def shared(mounted: Mounted) -> Mounted:
    """A mount of two directories and a file."""
    for name in ("a", "b"):
        (mounted.source / name).mkdir()
    (mounted.source / "a" / "f").write_text("text")
    return mounted


@changed_by_others
def test_what_the_host_moves_to_another_directory_is_found_by_its_new_name_only(shared: Mounted) -> None:
    """Also while the kernel still believes the old name: it looks again when it is told ESTALE."""
    assert (shared.point / "a" / "f").stat().st_size == 4
    (shared.source / "a" / "f").rename(shared.source / "b" / "g")
    with pytest.raises(FileNotFoundError):
        os.open(shared.point / "a" / "f", os.O_RDONLY)
    assert (shared.point / "b" / "g").read_text() == "text"


@changed_by_others
def test_a_file_that_the_host_moves_while_it_is_open_goes_on(shared: Mounted) -> None:
    with open(shared.point / "a" / "f", "rb") as first, open(shared.point / "a" / "f", "r+b", buffering=0) as file:
        first.close()
        (shared.source / "a" / "f").rename(shared.source / "b" / "g")
        time.sleep(1.1)  # attributes are asked for anew
        assert os.fstat(file.fileno()).st_size == 4 and file.read() == b"text"
        os.fchmod(file.fileno(), 0o600)
    assert (shared.source / "b" / "g").stat().st_mode & 0o777 == 0o600


@changed_by_others
def test_working_in_a_directory_that_the_host_moves_goes_on(shared: Mounted) -> None:
    (shared.source / "a" / "d").mkdir()
    fd = os.open(shared.point / "a" / "d", os.O_PATH)
    try:
        (shared.source / "a" / "d").rename(shared.source / "b" / "e")
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        assert os.stat("new", dir_fd=fd).st_size == 0
    finally:
        os.close(fd)
    assert (shared.source / "b" / "e" / "new").exists()


@changed_by_others
def test_an_o_path_fd_of_a_file_that_the_host_moves_is_stale_until_the_new_name_is_looked_up(shared: Mounted) -> None:
    fd = os.open(shared.point / "a" / "f", os.O_PATH)
    try:
        (shared.source / "a" / "f").rename(shared.source / "b" / "f")
        with pytest.raises(OSError) as caught:
            os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        assert caught.value.errno == errno.ESTALE
        (shared.point / "b" / "f").stat()
        assert Path(f"/proc/self/fd/{fd}").read_text() == "text"
    finally:
        os.close(fd)
