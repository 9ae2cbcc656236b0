from __future__ import annotations

import contextlib
import errno
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.runs import LIMIT_S, SOURCES, command, environment, foreground, is_mounted, run
from transfuse.cli.mount import effective_options
from transfuse.cli.options import read_settings
from transfuse.cli.sources import Source
from transfuse.client import Client
from transfuse.transports.mount import attach, parse_options
from transfuse.transports.mount.umount import umount
from transfuse.transports.stream import StreamClientTransport

kernel = pytest.mark.needs("root", "/dev/fuse")
interop = pytest.mark.interop
DIRECTORY = Source("/srv", "path", "/srv")
PYTHON = Source("python:a:B", "python", "a:B")


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder with a folder "mount" in it, which ordinary users can reach; pytest's own are root's alone."""
    with tempfile.TemporaryDirectory(prefix="transfuse-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        place = folder / "mount"
        place.mkdir()
        yield folder
        while is_mounted(place):
            umount(place, lazy=True)


# -- defaults --


def test_root_s_mount_of_a_directory_is_like_a_bind_mount() -> None:
    options = effective_options(read_settings([]), DIRECTORY, root=True)
    assert options.default_permissions and options.allow_other
    assert (options.source, options.subtype) == ("/srv", "transfuse")


def test_ordinary_user_s_mount_is_for_that_user() -> None:
    options = effective_options(read_settings([]), DIRECTORY, root=False)
    assert options.default_permissions and not options.allow_other


def test_a_class_decides_for_itself() -> None:
    options = effective_options(read_settings([]), PYTHON, root=True)
    assert not options.default_permissions and not options.allow_other


@pytest.mark.parametrize("option", ["no_allow_other", "allow_root"])
def test_root_s_mount_can_be_kept_to_root(option: str) -> None:
    assert not effective_options(read_settings([option]), DIRECTORY, root=True).allow_other


def test_permissions_can_be_left_to_the_source() -> None:
    options = effective_options(read_settings(["no_default_permissions"]), DIRECTORY, root=True)
    assert not options.default_permissions


def test_given_names_are_kept() -> None:
    options = effective_options(read_settings(["fsname=x,subtype=y"]), DIRECTORY, root=True)
    assert (options.source, options.subtype) == ("x", "y")


# -- refusals, with the exit codes of mount(8) --


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["{data}"], "mount: DIR is missing"),
        (["{data}", "{place}", "-o", "cahce=auto"], "option cahce=auto: is not known; did you mean cache?"),
        (["{data}", "{place}", "--cache", "sometimes"], "option cache=sometimes: takes never, auto or always"),
        (["{data}", "{place}", "-o", "max_read=x"], "option max_read=x: takes a decimal number"),
        (["/no/such", "{place}"], "/no/such: no such directory"),
        (["{data}", "--fd", "x"], "--fd x: takes the number of an open descriptor"),
        (["{data}", "/dev/fd/3", "--fd", "4"], "are two descriptors"),
        (["{data}", "{place}", "--fd", "4", "-o", "fd=5"], "differ"),
        (["{data}", "{place}", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_words_are_one_line_and_1(words: list[str], text: str, data: Path, place: Path) -> None:
    done = run("mount", *(word.format(data=data, place=place) for word in words))
    assert done.returncode == 1
    assert text in done.stderr and done.stderr.count("\n") == 1


@interop
@kernel
@pytest.mark.parametrize("mode", [[], ["-f"]])
def test_mount_that_fails_is_one_line_and_32(mode: list[str], data: Path, tmp_path: Path) -> None:
    done = run("mount", data, tmp_path / "none", *mode)
    assert done.returncode == 32
    assert done.stderr == (
        f"transfuse: {tmp_path}/none: look at the mount point: No such file or directory; "
        f"make it first: mkdir {tmp_path}/none\n"
    )


@interop
@kernel
def test_mount_point_with_something_in_it_is_refused_unless_asked_for(data: Path, place: Path) -> None:
    (place / "x").write_text("")
    done = run("mount", data, place)
    assert done.returncode == 32 and "nonempty" in done.stderr
    with foreground(data, place, "--nonempty"):
        assert "a.txt" in os.listdir(place)


@interop
@kernel
def test_descriptor_that_is_not_open_is_one_line(data: Path) -> None:
    done = run("mount", data, "/dev/fd/77")
    assert done.returncode == 32 and "use descriptor 77: Bad file descriptor" in done.stderr


# -- foreground --


@interop
@kernel
def test_foreground_prints_one_line_when_it_answers(data: Path, place: Path) -> None:
    with foreground(data, place) as (_, line):
        assert line.startswith(f"{data} mounted on {place} (fsmount, FUSE 7.")
        assert line.rstrip().endswith((", passthrough, compiled)", ", passthrough, plain)"))
        assert (place / "a.txt").read_text() == "first\n"
        (place / "new").write_text("through")
        assert (data / "new").read_text() == "through"


@interop
@kernel
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_unmounts_and_ends_with_0(number: int, data: Path, place: Path) -> None:
    with foreground(data, place) as (process, _):
        process.send_signal(number)
        assert process.wait(10) == 0
        assert not is_mounted(place)
        assert process.stderr is not None and process.stderr.read() == ""


@interop
@kernel
def test_signal_unmounts_also_when_a_file_is_open(data: Path, place: Path) -> None:
    with foreground(data, place) as (process, _):
        fd = os.open(place / "a.txt", os.O_RDONLY)
        try:
            process.terminate()
            assert process.wait(20) == 0
            assert not is_mounted(place)
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)  # FLUSH has nobody to go to: ENOTCONN


@interop
@kernel
def test_unmounted_from_outside_ends_with_0(data: Path, place: Path) -> None:
    with foreground(data, place) as (process, _):
        subprocess.run(["umount", place], check=True, timeout=20)
        assert process.wait(10) == 0


@interop
@kernel
def test_service_manager_is_told_when_it_answers(data: Path, place: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        with foreground(data, place, env=environment(NOTIFY_SOCKET=str(tmp_path / "notify"))):
            assert manager.recv(500).startswith(b"READY=1\nSTATUS=")


@interop
@kernel
def test_options_reach_the_kernel_the_source_and_the_program(data: Path, place: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["--read-only", "--cache", "never", "--no-passthrough", "--workers", "2", "-o", "noexec,max_read=8192"]
    with foreground(data, place, *words, "--method", "mount", "--log-file", log, "--debug") as (_, line):
        assert "(mount, " in line and "no passthrough" in line
        with open("/proc/self/mountinfo") as table:
            (row,) = [row for row in table if row.split()[4] == str(place)]
        assert "noexec" in row and "max_read=8192" in row and row.split()[5].startswith("ro")
        with pytest.raises(OSError, match="Read-only"):
            (place / "x").write_text("")
    assert log.exists()


@interop
@kernel
def test_class_is_mounted_with_its_arguments(place: Path, tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(
        "from transfuse.fs.tree import TreeFilesystem\n"
        "class Hello(TreeFilesystem):\n"
        "    def __init__(self, greeting: str = 'Hello'):\n"
        "        super().__init__({'hello.txt': greeting + ', world!\\n'})\n"
    )
    with foreground(f"python:{tmp_path}/hello.py:Hello", place, "-o", "greeting=Servus"):
        assert (place / "hello.txt").read_text() == "Servus, world!\n"


@interop
@kernel
def test_allow_root_keeps_others_out(public: Path) -> None:
    place = public / "mount"
    with foreground("memory:", place, "-o", "allow_root,user_id=1234,no_default_permissions,entry_timeout=0"):
        (place / "file").write_text("")
        assert [stat_as(uid, place / "file") for uid in (0, 1234, 4321)] == [0, 0, errno.EACCES]


def stat_as(uid: int, path: Path) -> int:
    """errno of stat(2) by another user, 0 when it works."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            os.setresuid(uid, uid, uid)
            os.stat(path)
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@interop
@kernel
def test_debug_shows_every_request(data: Path, place: Path) -> None:
    with foreground(data, place, "--debug") as (process, _):
        (place / "a.txt").read_text()
        process.terminate()
        assert process.stderr is not None
        log = process.stderr.read()
    assert "INIT nodeid 0" in log and 'LOOKUP nodeid 1 "a.txt"' in log and "RELEASE" in log


# -- background --


@interop
@kernel
def test_background_returns_when_it_answers(data: Path, place: Path) -> None:
    done = run("mount", data, place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (place / "a.txt").read_text() == "first\n"
    assert run("umount", place).returncode == 0


@interop
@kernel
def test_relative_paths_mean_the_directory_it_was_started_in(data: Path, place: Path, tmp_path: Path) -> None:
    done = run("mount", "data", "mount", "--log-file", "log", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert os.listdir(place) != [] and (tmp_path / "log").exists()
    assert run("umount", "mount", cwd=tmp_path).returncode == 0


# -- descriptors --


@contextlib.contextmanager
def device_on(place: Path) -> Iterator[int]:
    """A /dev/fuse descriptor that is mounted on `place`."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    mounted = attach(fd, place, parse_options(["allow_other"]))
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
        mounted.umount(lazy=True)


@interop
@kernel
@pytest.mark.parametrize("words", [["{data}", "/dev/fd/{fd}"], ["mount", "{data}", "--fd", "{fd}"]])
def test_descriptor_that_is_mounted_already_is_served(words: list[str], data: Path, place: Path) -> None:
    with device_on(place) as fd:
        done = run(*(word.format(data=data, fd=fd) for word in words), pass_fds=[fd])
        assert (done.returncode, done.stderr) == (0, "")
        os.close(fd)
        assert (place / "a.txt").read_text() == "first\n"


@interop
@kernel
def test_read_only_is_kept_on_a_mount_that_is_not_ours(data: Path, place: Path) -> None:
    with device_on(place) as fd:
        assert run(data, f"/dev/fd/{fd}", "-o", "ro", pass_fds=[fd]).returncode == 0
        os.close(fd)
        with pytest.raises(OSError, match="Read-only"):
            (place / "new").write_text("")


@interop
@kernel
def test_dev_fuse_descriptor_is_mounted_on_dir(data: Path, place: Path) -> None:
    fd = os.open("/dev/fuse", os.O_RDWR)
    try:
        assert run("mount", data, place, "--fd", fd, pass_fds=[fd]).returncode == 0
    finally:
        os.close(fd)
    assert (place / "a.txt").read_text() == "first\n"
    assert run("umount", place).returncode == 0


def test_socket_is_served(data: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        command("mount", data, "--fd", theirs.fileno(), "-f"), pass_fds=[theirs.fileno()], env=environment(),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    theirs.close()
    with Client(StreamClientTransport(ours)) as client:
        assert client.read_text("/a.txt") == "first\n"
    assert process.wait(20) == 0


# -- mount(8) --


@pytest.fixture
def private(tmp_path: Path) -> Iterator[list[str]]:
    """A private mount namespace in which `transfuse` is where mount(8) looks for it; words to put before a script."""
    program = tmp_path / "bin" / "transfuse"
    program.parent.mkdir()
    python = f"PYTHONPATH={shlex.quote(SOURCES)} exec {shlex.quote(sys.executable)}"
    program.write_text(f'#!/bin/sh\n{python} -m transfuse "$@"\n')
    program.chmod(0o755)
    script = f"mount --bind {shlex.quote(str(program.parent))} /usr/local/bin && . /dev/stdin"
    yield ["unshare", "-m", "sh", "-c", script]


def script(words: list[str], text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, input=text, capture_output=True, text=True, timeout=2 * LIMIT_S)


mount8 = pytest.mark.needs("root", "/dev/fuse", "mount.fuse3", "unshare")


@interop
@mount8
def test_mount8_mounts_with_all_it_passes_on(private: list[str], data: Path, place: Path) -> None:
    done = script(
        private,
        f"""
        mount -t fuse.transfuse -o ro,cache=always,x-own=1,_netdev,noauto,user,nofail {data} {place} || exit 9
        grep {place} /proc/mounts
        cat {place}/a.txt
        touch {place}/x
        umount {place}
        """,
    )
    row, content = done.stdout.splitlines()
    assert row.startswith(f"{data} {place} fuse.transfuse ro,")
    assert content == "first"
    assert "Read-only" in done.stderr
    assert done.returncode == 0


@interop
@mount8
def test_mount8_reads_fstab(private: list[str], data: Path, place: Path, tmp_path: Path) -> None:
    (tmp_path / "fstab").write_text(f"{data} {place} fuse.transfuse rw,cache=never,nofail,x-systemd.automount 0 0\n")
    done = script(private, f"mount -T {tmp_path}/fstab {place} && ls {place} && umount {place}")
    assert (done.returncode, done.stdout.split()) == (0, ["a.txt", "link", "sub"])


@interop
@mount8
def test_mount8_gets_our_line_and_our_code(private: list[str], data: Path, place: Path) -> None:
    done = script(private, f"mount -t fuse.transfuse -o bogus {data} {place}")
    assert done.returncode == 1
    assert "transfuse: option bogus: is not known" in done.stderr


@interop
@mount8
def test_mount8_remounts(private: list[str], data: Path, place: Path) -> None:
    done = script(
        private,
        f"""
        mount -t fuse.transfuse {data} {place} || exit 9
        mount -o remount,ro {place} || exit 8
        touch {place}/x && exit 7
        mount -o remount,rw,noexec {place} || exit 6
        touch {place}/x || exit 5
        grep {place} /proc/mounts
        mount -o remount,max_read=8192 {place}; echo $?
        mount -o remount,bogus {place}; echo $?
        umount {place}
        """,
    )
    assert done.returncode == 0, done.stderr
    row, *codes = done.stdout.splitlines()
    assert "noexec" in row and codes == ["1", "1"]
    assert "max_read=8192: can't be changed by a remount" in done.stderr
    assert "option bogus: is not known" in done.stderr


@interop
@mount8
def test_mount_fuse3_drops_privileges_and_hands_over_a_descriptor(private: list[str], data: Path, place: Path) -> None:
    """-o drop_privileges: mount.fuse3 opens and mounts, and starts us with /dev/fd/N as mount point."""
    done = script(
        private, f"mount -t fuse.transfuse -o drop_privileges {data} {place} && cat {place}/a.txt; umount {place}"
    )
    assert done.stdout == "first\n", done.stderr


@interop
@kernel
def test_flags_of_mount8_s_own_form(data: Path, place: Path) -> None:
    assert run(data, place, "-f", "-o", "rw").returncode == 0
    assert not is_mounted(place)
    assert run(data, place, "-f", "-o", "bogus").returncode == 1
    assert run(data, place, "-sn", "-o", "bogus").returncode == 0
    assert is_mounted(place)
    assert run("umount", place).returncode == 0


# -- ordinary users --


@interop
@pytest.mark.needs("root", "/dev/fuse", "user", "fusermount3", "unshare")
def test_ordinary_user_mounts_by_fusermount3(public: Path) -> None:
    place = public / "mount"
    os.chown(place, 65534, 65534)
    # /dev/fuse may be root's alone here: in a private namespace it is everybody's, as on most machines.
    device = public / "dev" / "fuse"
    device.parent.mkdir()
    # Everything is imported before the change of user: the interpreter may be where that user can't read.
    program = (
        "import os, sys\n"
        "import transfuse.cli.main, transfuse.server, transfuse.filesystems.memory\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "sys.exit(transfuse.cli.main.main(['mount', 'memory:', sys.argv[1], '-f']))\n"
    )
    script = (
        f"mount -t tmpfs none {device.parent} && mknod -m 666 {device} c 10 229 && "
        f'mount --bind {device} /dev/fuse && exec "$@"'
    )
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", program, str(place)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        assert "(fusermount3, FUSE 7." in line, process.stderr.read()
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
