"""Mounts made and ended on the real kernel, by root, by an ordinary user, and in a user namespace.

The server behind them is raw_server.py, which knows nothing of transfuse but the mount package. Ordinary users run in
a mount namespace of their own where /dev/fuse is a node that is open to all, with a copy of the package they can read.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from interop import raw_server
from transfuse.transports import mount
from transfuse.transports.mount import MountError, mountinfo, open_and_attach, parse_options, syscalls

pytestmark = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse")]
HERE = Path(__file__).parent
SOURCE = Path(mount.__file__).parents[2]
DIRECT = ["fsmount", "mount"]
METHODS = [*DIRECT, pytest.param("fusermount3", marks=pytest.mark.needs("fusermount3"))]
NOBODY = 65534
TIMEOUT_S = 30


def eventually(question: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 15
    while not question() and time.monotonic() < deadline:
        time.sleep(0.02)
    return question()


def row_at(path: Path) -> mountinfo.Mount | None:
    return mountinfo.top_mount(mountinfo.mounts(), os.fsencode(path))


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "a point, with \\ in it"
    folder.mkdir()
    yield folder
    for _ in range(4):  # whatever a failed test left stacked there
        if row_at(folder) is None:
            break
        subprocess.run(["umount", "-l", folder], check=False, timeout=20)


class Served:
    """A mount with the raw server behind it, in this process."""

    def __init__(self, path: Path, options: str = "", method: str = "auto", mode: int = stat.S_IFDIR | 0o755) -> None:
        self.mounted = open_and_attach(path, parse_options([options]), method)  # type: ignore[arg-type]
        self.thread = raw_server.start(self.mounted.device_fd, mode=mode)

    def __enter__(self) -> mount.Mounted:
        return self.mounted

    def __exit__(self, *_: object) -> None:
        self.mounted.umount(lazy=True)
        self.thread.join(TIMEOUT_S)
        os.close(self.mounted.device_fd)


class Program:
    """raw_server.py as a process; `said` is its first line."""

    def __init__(self, command: list[str | Path], path: Path, options: str = "", method: str = "auto") -> None:
        self.process = subprocess.Popen(
            [*command, path, options, method],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.said: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")
        self.last: dict[str, Any] = {}

    def end(self) -> int:
        """Close its input, which makes it unmount and end."""
        out, _ = self.process.communicate(timeout=TIMEOUT_S)
        self.last = json.loads(out) if out.strip() else {}
        return self.process.returncode

    def kill(self) -> None:
        """kill -9, and its mount may stay."""
        os.kill(self.said.get("pid", self.process.pid), 9)
        self.process.communicate(timeout=TIMEOUT_S)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=TIMEOUT_S)


def as_root(path: Path, *arguments: str) -> Program:
    return Program([sys.executable, HERE / "raw_server.py"], path, *arguments)


# ---- three ways to mount


@pytest.mark.parametrize("method", METHODS)
def test_mount_answers_and_ends(point: Path, method: str) -> None:
    with Served(point, method=method) as mounted:
        assert mounted.method == method
        assert mounted.is_mounted()
        assert stat.S_ISDIR(os.stat(point).st_mode)
        assert os.stat(point).st_dev == mounted.dev == os.makedev(0, mounted.connection)
        mounted.umount()
        assert not mounted.is_mounted()
        mounted.umount()
    assert row_at(point) is None


def test_auto_is_fsmount_for_root(point: Path) -> None:
    with Served(point) as mounted:
        assert mounted.method == "fsmount"


def test_a_source_longer_than_fsconfig_takes_is_shown_whole(point: Path) -> None:
    with Served(point, "fsname=" + "x" * 300) as mounted:
        assert mounted.method == "mount"
        assert mounted.row.source == b"x" * 300


@pytest.mark.parametrize("method", METHODS)
def test_options_arrive_in_the_kernel(point: Path, method: str) -> None:
    options = r"ro,noexec,noatime,max_read=5000,allow_other,default_permissions,subtype=x.y,fsname=a\,b c\054\\"
    with Served(point, options, method) as mounted:
        row = mounted.row
        assert (row.fstype, row.source) == (b"fuse.x.y", b"a,b c,\\")
        assert row.options == b"ro,nosuid,nodev,noexec,noatime"
        assert row.super_options == b"ro,user_id=0,group_id=0,default_permissions,allow_other,max_read=5000"


@pytest.mark.parametrize("method", METHODS)
def test_max_read_below_4096_becomes_4096(point: Path, method: str) -> None:
    with Served(point, "max_read=1", method) as mounted:
        assert mounted.row.super_options.endswith(b"max_read=4096")


@pytest.mark.parametrize("method", DIRECT)
def test_options_the_helper_lacks_arrive_in_direct_mounts(point: Path, method: str) -> None:
    options = "suid,dev,strictatime,nodiratime,nosymfollow,sync,dirsync,lazytime,user_id=7,group_id=8"
    with Served(point, options, method) as mounted:
        assert set(mounted.row.options.split(b",")) == {b"rw", b"nodiratime", b"nosymfollow"}
        assert mounted.row.super_options == b"rw,sync,dirsync,lazytime,user_id=7,group_id=8"


@pytest.mark.parametrize("method", METHODS)
def test_mount_on_a_file(tmp_path: Path, method: str) -> None:
    place = tmp_path / "file"
    place.touch()
    with Served(place, method=method, mode=stat.S_IFREG | 0o644):
        assert stat.S_ISREG(os.stat(place).st_mode)
        assert os.stat(place).st_dev != os.stat(tmp_path).st_dev


@pytest.mark.parametrize("method", METHODS)
def test_mount_point_may_be_a_link(tmp_path: Path, point: Path, method: str) -> None:
    (tmp_path / "link").symlink_to(point)
    with Served(tmp_path / "link", method=method) as mounted:
        assert mounted.mountpoint == os.fsencode(point)


@pytest.mark.parametrize("method", METHODS)
def test_mount_point_name_that_is_no_utf8(tmp_path: Path, method: str) -> None:
    place = os.fsencode(tmp_path) + b"/\xff\n\\040"
    os.mkdir(place)
    with Served(Path(os.fsdecode(place)), method=method) as mounted:
        assert mounted.mountpoint == place
        assert mounted.is_mounted()


def test_several_mounts_in_one_process_end_one_by_one(tmp_path: Path) -> None:
    places = [tmp_path / str(n) for n in range(3)]
    for place in places:
        place.mkdir()
    with Served(places[0]) as a, Served(places[1]) as b, Served(places[2]) as c:
        assert len({a.dev, b.dev, c.dev}) == 3
        b.umount()
        assert [m.is_mounted() for m in (a, b, c)] == [True, False, True]


def test_mount_over_a_living_mount_shows_the_upper_one(point: Path) -> None:
    with Served(point) as lower, Served(point) as upper:
        assert os.stat(point).st_dev == upper.dev
        with pytest.raises(MountError, match="another mount covers it"):
            lower.umount()
        upper.umount()
        assert os.stat(point).st_dev == lower.dev


def test_the_same_connection_mounts_twice(tmp_path: Path, point: Path) -> None:
    with Served(point) as first:
        os.stat(point)  # INIT is done
        (tmp_path / "second").mkdir()
        second = mount.attach(first.device_fd, tmp_path / "second", parse_options([]))
        assert second.dev == first.dev
        second.umount()
        assert first.is_mounted()


def test_fd_option_names_the_device_to_use(point: Path) -> None:
    fd = mount.open_device()
    with Served(point, f"fd={fd}") as mounted:
        assert mounted.device_fd == fd


# ---- SYNC_INIT


def sync_init(fd: int) -> None:
    try:
        fcntl.ioctl(fd, raw_server.SYNC_INIT)
    except OSError as e:
        pytest.skip(f"this kernel has no FUSE_DEV_IOC_SYNC_INIT ({e.strerror}); it came with Linux 6.18")


@pytest.mark.parametrize("method", DIRECT)
def test_with_sync_init_the_mount_returns_after_init(point: Path, method: str) -> None:
    answered = threading.Event()
    threads = []

    def before_mount(fd: int) -> None:
        sync_init(fd)
        threads.append(raw_server.start(fd, answered=answered))

    mounted = open_and_attach(point, parse_options([]), method, before_mount)  # type: ignore[arg-type]
    assert answered.is_set()
    mounted.umount()
    threads[0].join(TIMEOUT_S)
    os.close(mounted.device_fd)


@pytest.mark.parametrize("method", DIRECT)
def test_with_sync_init_a_refusal_fails_the_mount(point: Path, method: str) -> None:
    fds = []

    def before_mount(fd: int) -> None:
        sync_init(fd)
        fds.append(fd)
        raw_server.start(fd, init_error=errno.EPROTO)

    with pytest.raises(MountError, match="before it had answered INIT") as caught:
        open_and_attach(point, parse_options([]), method, before_mount)  # type: ignore[arg-type]
    os.close(fds[0])
    assert caught.value.errno == errno.ENOTCONN
    assert row_at(point) is None


# ---- refusals


@pytest.mark.parametrize("text", ["fd=9999", "fd=0"])
def test_fd_option_that_is_no_device_is_refused(point: Path, text: str) -> None:
    with pytest.raises(MountError) as caught, open(os.devnull) as null:
        at_zero = os.dup(0)
        os.dup2(null.fileno(), 0)
        try:
            open_and_attach(point, parse_options([text]), "fsmount")
        finally:
            os.dup2(at_zero, 0)
            os.close(at_zero)
    assert caught.value.step == f"use descriptor {text[3:]}"
    assert caught.value.errno == (errno.EBADF if text == "fd=9999" else errno.EINVAL)


@pytest.mark.parametrize("method", METHODS)
def test_dead_mount_in_the_place_names_the_way_out(point: Path, method: str) -> None:
    dead = open_and_attach(point, parse_options([]), method)  # type: ignore[arg-type]
    os.close(dead.device_fd)
    with pytest.raises(MountError, match="transfuse umount .* clears it") as caught:
        open_and_attach(point, parse_options([]))
    assert caught.value.errno == errno.ENOTCONN
    mount.umount(point)
    assert row_at(point) is None


# ---- ending


def test_open_files_make_umount_busy_and_lazy_helps(point: Path) -> None:
    with Served(point) as mounted:
        fd = os.open(point, os.O_PATH)
        try:
            with pytest.raises(MountError, match="--lazy") as caught:
                mounted.umount()
            assert caught.value.errno == errno.EBUSY
            mounted.umount(lazy=True)
        finally:
            os.close(fd)
        assert not mounted.is_mounted()


@pytest.mark.needs("fusermount3")
def test_helper_says_busy(point: Path) -> None:
    with Served(point, method="fusermount3"):
        fd = os.open(point, os.O_PATH)
        try:
            with pytest.raises(MountError, match="failed to unmount") as caught:
                mount.fusermount.umount_by_helper(os.fsencode(point), lazy=False)
            assert caught.value.errno == errno.EBUSY
        finally:
            os.close(fd)
        mount.fusermount.umount_by_helper(os.fsencode(point), lazy=True)
        assert row_at(point) is None


def test_umount_takes_a_hanging_mount(point: Path) -> None:
    mounted = open_and_attach(point, parse_options([]))  # nobody ever reads the device
    mount.umount(point)
    assert not mounted.is_mounted()
    os.close(mounted.device_fd)


def test_force_ends_requests_that_wait_for_the_server(point: Path) -> None:
    mounted = open_and_attach(point, parse_options([]))
    with subprocess.Popen(["stat", "-f", point], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as waiting:
        assert eventually(lambda: b"fuse" in Path(f"/proc/{waiting.pid}/wchan").read_bytes())
        mount.umount(point, lazy=True, force=True)
        _, words = waiting.communicate(timeout=TIMEOUT_S)
    assert waiting.returncode != 0 and words
    assert not mounted.is_mounted()
    os.close(mounted.device_fd)


@pytest.fixture
def fusectl(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "fusectl"
    folder.mkdir()
    syscalls.mount(b"none", os.fsencode(folder), b"fusectl", 0, None)
    yield folder
    syscalls.umount2(os.fsencode(folder), syscalls.MNT_DETACH)


def test_abort_leaves_a_dead_mount_that_umount_clears(point: Path, fusectl: Path) -> None:
    with Served(point) as mounted:
        os.stat(point)
        mounted.abort()
        with pytest.raises(OSError) as caught:
            os.listdir(point)
        assert caught.value.errno in {errno.ENOTCONN, errno.ECONNABORTED}
        assert mounted.is_mounted()
        mounted.umount()
        assert not mounted.is_mounted()
        with pytest.raises(MountError, match="the connection has ended") as gone:
            mounted.abort()
        assert gone.value.errno == errno.ENOENT


def test_remount_changes_what_it_can(point: Path) -> None:
    with Served(point, "max_read=8192") as mounted:
        os.stat(point)
        outcome = mounted.remount(parse_options(["ro,noexec,max_read=8192"]))
        assert (outcome.changes, outcome.ignored) == (("read_only", "noexec"), ("max_read",))
        row = row_at(point)
        assert row is not None
        assert (row.options, row.super_options) == (
            b"ro,nosuid,nodev,noexec,relatime", b"ro,user_id=0,group_id=0,max_read=8192",
        )  # fmt: skip
        with pytest.raises(mount.MountOptionError, match="can't be changed by a remount"):
            mounted.remount(parse_options(["allow_other"]))
        assert mounted.is_mounted()


@pytest.mark.parametrize(("name", "value"), [("max_read", "8192"), ("allow_other", None), ("user_id", "0")])
def test_reconfigure_is_refused_in_the_kernels_words(point: Path, name: str, value: str | None) -> None:
    with Served(point), syscalls.FsContext.pick(os.fsencode(point)) as context:
        with pytest.raises(MountError, match="No changes allowed in reconfigure") as caught:
            context.set_flag(name) if value is None else context.set_string(name, value)
    assert (caught.value.errno, caught.value.step) == (errno.EINVAL, f"fsconfig {name}")


def test_reconfigure_of_generic_flags_works(point: Path) -> None:
    with Served(point), syscalls.FsContext.pick(os.fsencode(point)) as context:
        os.stat(point)
        context.set_flag("ro")
        context.reconfigure()
        row = row_at(point)
        assert row is not None and row.super_options.startswith(b"ro,")


# ---- the server is killed


@pytest.mark.parametrize("method", METHODS)
def test_killed_server_leaves_a_mount_that_umount_clears(point: Path, method: str) -> None:
    with as_root(point, "", method) as program:
        program.kill()
    with pytest.raises(OSError) as caught:
        os.stat(point)
    assert caught.value.errno == errno.ENOTCONN
    mount.umount(point)
    assert row_at(point) is None


@pytest.mark.parametrize("method", METHODS)
def test_auto_unmount_clears_after_a_killed_server(point: Path, method: str) -> None:
    with as_root(point, "auto_unmount", method) as program:
        program.kill()
    assert eventually(lambda: row_at(point) is None)


def test_auto_unmount_of_a_mount_that_belongs_to_another_user(point: Path) -> None:
    mounted = open_and_attach(point, parse_options([f"auto_unmount,user_id={NOBODY},group_id={NOBODY}"]))
    keeper = mounted.keeper
    assert isinstance(keeper, mount.watch.Watcher)
    keeper._socket.close()  # as if this process had died
    mounted.keeper = None
    os.close(mounted.device_fd)
    assert eventually(lambda: row_at(point) is None)


def test_auto_unmount_leaves_what_was_mounted_over_it(point: Path) -> None:
    with as_root(point, "auto_unmount", "fsmount") as program:
        syscalls.mount(b"none", os.fsencode(point), b"tmpfs", 0, None)
        program.kill()
        assert eventually(lambda: not Path(f"/proc/{program.said['keeper']}").exists())
    row = row_at(point)
    assert row is not None and row.fstype == b"tmpfs"


def test_auto_unmount_leaves_a_connection_that_another_process_serves(point: Path) -> None:
    mounted = open_and_attach(point, parse_options(["auto_unmount"]))
    thread = raw_server.start(mounted.device_fd)
    keeper = mounted.keeper
    assert isinstance(keeper, mount.watch.Watcher)
    keeper._socket.close()  # the server's first process ends, this one goes on
    mounted.keeper = None
    assert eventually(lambda: not Path(f"/proc/{keeper.pid}").exists())
    assert mounted.is_mounted()
    mounted.umount()
    thread.join(TIMEOUT_S)
    os.close(mounted.device_fd)


@pytest.mark.parametrize("method", METHODS)
def test_auto_unmount_process_ends_with_an_orderly_unmount(point: Path, method: str) -> None:
    with as_root(point, "auto_unmount", method) as program:
        assert program.end() == 0
        assert program.last == {"unmounted": True}
        keeper = program.said["keeper"]
        assert eventually(lambda: not Path(f"/proc/{keeper}").exists())


# ---- ordinary users


class User:
    """Commands of an ordinary user: `place` is theirs, `command` runs raw_server.py as them."""

    def __init__(self, base: Path, python: str) -> None:
        self.base = base
        self.python = python
        self.place = base / "point"
        self.place.mkdir()
        os.chown(self.place, NOBODY, NOBODY)

    def command(self, *wrapper: str) -> list[str | Path]:
        """Root's command line that becomes the user, in a mount namespace with its own node over /dev/fuse."""
        bind = f"mount --bind '{self.base}/fuse' /dev/fuse && "
        become = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups"
        # The copy has no compiled modules, which TRANSFUSE_NATIVE=require would refuse.
        script = f'{bind}export TRANSFUSE_NATIVE=0 PYTHONPATH="{self.base}" && exec {become} "$@"'
        return ["unshare", "-m", "sh", "-c", script, "sh", *wrapper, self.python, self.base / "raw_server.py"]


def python_for_everybody() -> str:
    for python in ("/usr/bin/python3", sys.executable, getattr(sys, "_base_executable", "")):
        check = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", python, "-c"]
        try:
            found = subprocess.run(
                [*check, "import sys; sys.exit(sys.version_info < (3, 11))"], capture_output=True, timeout=30
            )
        except OSError:
            continue
        if python and not found.returncode:
            return python
    pytest.skip("needs a Python 3.11 or later that an ordinary user can run (this one is out of their reach)")


@pytest.fixture
def user() -> Iterator[User]:
    python = python_for_everybody()
    base = Path(tempfile.mkdtemp(prefix="transfuse-mount-"))
    try:
        base.chmod(0o755)
        os.mknod(base / "fuse", 0o666 | stat.S_IFCHR, os.makedev(10, 229))
        (base / "fuse").chmod(0o666)
        shutil.copytree(SOURCE, base / "transfuse", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        shutil.copy(HERE / "raw_server.py", base)
        subprocess.run(["chmod", "-R", "a+rX", base / "transfuse", base / "raw_server.py"], check=True, timeout=30)
        yield User(base, python)
    finally:
        shutil.rmtree(base)


@pytest.mark.needs("fusermount3", "unshare", "setpriv")
def test_user_mounts_by_the_helper_without_asking_for_it(user: User) -> None:
    with Program(user.command(), user.place, "fsname=mine") as program:
        said = program.said
        assert said["method"] == "fusermount3"
        assert said["super_options"] == f"rw,user_id={NOBODY},group_id={NOBODY}"
        assert said["options"] == "rw,nosuid,nodev,relatime"
        assert said["dev"] == said["st_dev"]
        assert program.end() == 0
        assert program.last == {"unmounted": True}


@pytest.mark.needs("fusermount3", "unshare", "setpriv")
def test_helper_that_may_not_open_the_device_is_explained(user: User) -> None:
    (user.base / "fuse").chmod(0o600)
    with Program(user.command(), user.place) as program:
        assert (program.said["step"], program.said["errno"]) == ("fusermount3", errno.EACCES)
        assert "chmod 0666 /dev/fuse" in program.said["hint"]


@pytest.mark.needs("fusermount3", "unshare", "setpriv")
def test_user_cannot_have_dev_and_suid(user: User) -> None:
    with Program(user.command(), user.place, "dev,suid") as program:
        assert program.said["options"] == "rw,nosuid,nodev,relatime"
        program.end()


@pytest.mark.needs("unshare", "setpriv")
@pytest.mark.parametrize(("method", "step"), [("fsmount", "fsopen"), ("mount", "mount")])
def test_user_without_privilege_gets_one_line_with_the_way_out(user: User, method: str, step: str) -> None:
    with Program(user.command(), user.place, "", method) as program:
        assert (program.said["step"], program.said["errno"]) == (step, errno.EPERM)
        assert "be root, use fusermount3 or `unshare -Urm`" in program.said["error"]
        assert program.end() == 32


@pytest.mark.needs("unshare", "setpriv")
def test_user_who_may_not_open_the_device_gets_one_line(user: User) -> None:
    (user.base / "fuse").chmod(0o600)
    with Program(user.command("unshare", "-Urm"), user.place) as program:
        assert (program.said["step"], program.said["errno"]) == ("open /dev/fuse", errno.EACCES)
        assert "chmod 0666 /dev/fuse" in program.said["hint"]


@pytest.mark.needs("fusermount3", "unshare", "setpriv")
@pytest.mark.parametrize("option", ["allow_other", "allow_root"])
def test_user_needs_user_allow_other(user: User, option: str) -> None:
    if mount.user_allow_other():
        pytest.skip("/etc/fuse.conf of this machine has user_allow_other")
    with Program(user.command(), user.place, option) as program:
        assert (program.said["step"], program.said["errno"]) == (option, errno.EPERM)
        assert "user_allow_other" in program.said["hint"] and "/etc/fuse.conf" in program.said["hint"]


@pytest.mark.needs("fusermount3", "unshare", "setpriv")
def test_user_cannot_mount_on_what_belongs_to_others(user: User) -> None:
    (user.base / "others").mkdir()
    with Program(user.command(), user.base / "others") as program:
        assert program.said["step"] == "fusermount3"
        assert program.said["errno"] in {errno.EPERM, errno.EACCES}
        assert "an ordinary user can mount only on what is theirs" in program.said["hint"]


@pytest.mark.needs("fusermount3", "unshare", "setpriv")
def test_user_umounts_a_dead_mount_of_theirs(user: User) -> None:
    script = (
        "import os, sys\n"
        "from transfuse.transports import mount\n"
        "m = mount.open_and_attach(sys.argv[1], mount.parse_options([]))\n"
        "os.close(m.device_fd)\n"
        "mount.umount(sys.argv[1])\n"
        "print(m.method, m.is_mounted())\n"
    )
    command = [*user.command()[:-1], "-c", script, user.place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.stdout, done.stderr) == ("fusermount3 False\n", "")


@pytest.mark.needs("fusermount3", "unshare", "setpriv")
def test_auto_unmount_clears_after_a_users_killed_server(user: User) -> None:
    with Program(user.command(), user.place, "auto_unmount") as program:
        pid = program.said["keeper"]
        namespace = os.open(f"/proc/{pid}/mountinfo", os.O_RDONLY)  # goes on showing that namespace
        try:
            shows = lambda: b"/point " in os.pread(namespace, 1 << 20, 0)  # noqa: E731
            assert shows()
            program.kill()
            assert eventually(lambda: not shows())
        finally:
            os.close(namespace)


@pytest.mark.needs("unshare", "setpriv")
@pytest.mark.parametrize(("method", "used"), [("auto", "fsmount"), ("fsmount", "fsmount"), ("mount", "mount")])
def test_user_namespace_mounts_directly(user: User, method: str, used: str) -> None:
    with Program(user.command("unshare", "-Urm"), user.place, "allow_other", method) as program:
        assert program.said["method"] == used
        assert program.said["super_options"].startswith("rw,user_id=0,group_id=0,")
        assert program.end() == 0
        assert program.last == {"unmounted": True}


@pytest.mark.needs("unshare", "setpriv")
def test_unmapped_user_id_is_refused_with_a_hint(user: User) -> None:
    with Program(user.command("unshare", "-Urm"), user.place, "user_id=5") as program:
        assert (program.said["step"], program.said["errno"]) == ("fsconfig user_id", errno.EINVAL)
        assert "Invalid uid '5'" in program.said["text"]
        assert "uid_map" in program.said["hint"]


@pytest.mark.needs("unshare", "setpriv")
def test_auto_unmount_works_inside_a_user_namespace(user: User) -> None:
    with Program(user.command("unshare", "-Urm"), user.place, "auto_unmount") as program:
        namespace = os.open(f"/proc/{program.said['keeper']}/mountinfo", os.O_RDONLY)
        try:
            program.kill()
            assert eventually(lambda: b"/point " not in os.pread(namespace, 1 << 20, 0))
        finally:
            os.close(namespace)


# ---- kernel bugs of the past


@pytest.fixture
def kernel_log() -> Iterator[Callable[[], list[str]]]:
    """Suspicious lines that the kernel has logged since the test began."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError as e:
        pytest.skip(f"needs /dev/kmsg: {e.strerror}")
    os.lseek(fd, 0, os.SEEK_END)

    def suspicious() -> list[str]:
        found = []
        while True:
            try:
                line = os.read(fd, 8192).decode("utf-8", "replace")
            except BrokenPipeError:  # the ring went past us; go on with what is there
                continue
            except BlockingIOError:
                return found
            if any(word in line for word in ("BUG", "WARNING", "Oops", "lockdep", "deadlock", "Call Trace")):
                found.append(line)

    yield suspicious
    os.close(fd)


@pytest.mark.parametrize("program", ["aio", "aio-umount", "remount"])
def test_kernel_bug_program_neither_hangs_nor_disturbs_the_kernel(
    point: Path, program: str, kernel_log: Callable[[], list[str]]
) -> None:
    done = subprocess.run(
        [sys.executable, HERE / "kernel_bugs.py", program, point],
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if "KeyError" in done.stderr and program != "remount":
        pytest.skip(f"the aio call numbers of {os.uname().machine} are not in kernel_bugs.py")
    assert (done.stdout, done.stderr) == ("ok\n", "")
    assert kernel_log() == []
    assert row_at(point) is None
