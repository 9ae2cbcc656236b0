"""`transfuse serve SOURCE unix:SOCKET`: real processes at both ends."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.runs import LIMIT_S, Cli, environment, run, started, wait_until
from transfuse.cli.errors import CommandError
from transfuse.cli.options import read_settings
from transfuse.cli.serve.unix import check
from transfuse.client import Client
from transfuse.transports.stream import StreamClientTransport


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "sock"


@contextmanager
def client_of(sock: Path) -> Iterator[Client]:
    with Client(StreamClientTransport.connect(sock)) as client:
        yield client


# -- refusals --


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["{data}"], "serve: ADDRESS is missing; say where: unix:SOCKET, vhost-user:SOCKET"),
        (["{data}", "unix:"], "ADDRESS unix:: names no socket; write unix:/path.sock"),
        (["{data}", "unix:/no/such/dir/s"], "unix:/no/such/dir/s: No such file or directory"),
        (["{data}", "unix:{sock}", "--max-clients", "0"], "takes a number of clients, 1 to 1024"),
        (["{data}", "unix:{sock}", "--allow-other"], "unrecognized arguments: --allow-other"),
        (["{data}", "unix:{sock}", "-o", "method=auto"], "there are mount options in it"),
        (["{data}", "unix:{sock}", "-o", "fsname=x"], "there are mount options in it"),
        (["{data}", "unix:{sock}", "--writeback"], "option writeback: can't be with several clients"),
        (["{data}", "unix:{sock}", "-o", "cahce=auto"], "did you mean cache?"),
        (["/no/such", "unix:{sock}"], "/no/such: no such directory"),
        (["unix:{sock}", "unix:{sock}"], "is a server already"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], text: str, data: Path, sock: Path, cli: Cli) -> None:
    said = cli("serve", *(word.format(data=data, sock=sock) for word in words))
    assert said.code == 1
    assert text in said.err and said.err.count("\n") == 1
    assert not sock.exists()


def test_a_path_too_long_for_a_socket_is_refused() -> None:
    args, settings = argparse.Namespace(), read_settings([])
    assert check("/" + "x" * 106, args, settings) == "/" + "x" * 106
    with pytest.raises(CommandError, match="is longer than 107 bytes"):
        check("/" + "x" * 107, args, settings)


def test_a_relative_path_is_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check("s", argparse.Namespace(), read_settings([])) == str(tmp_path / "s")


def test_a_socket_in_use_is_one_line(data: Path, sock: Path) -> None:
    with started("serve", data, f"unix:{sock}"):
        done = run("serve", data, f"unix:{sock}")
        assert done.returncode == 1
        assert f"unix:{sock}: a server listens there" in done.stderr
        with client_of(sock) as client:
            assert client.exists("/a.txt")


def test_a_class_that_can_not_be_served_is_refused_before_anybody_connects(tmp_path: Path, sock: Path) -> None:
    (tmp_path / "poor.py").write_text("from transfuse import Filesystem\nclass Poor(Filesystem): pass\n")
    done = run("serve", f"python:{tmp_path}/poor.py:Poor", f"unix:{sock}")
    assert done.returncode == 1 and "Poor has no getattr and no lookup()" in done.stderr


# -- life --


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_removes_the_socket(number: signal.Signals, data: Path, sock: Path) -> None:
    with started("serve", data, f"unix:{sock}") as (process, line):
        assert line.startswith(f"{data} served on unix:{sock} (up to 64 clients, ")
        assert stat.S_IMODE(sock.stat().st_mode) == 0o600
        with client_of(sock) as client:
            assert client.read_text("/a.txt") == "first\n"
            process.send_signal(number)
            assert process.wait(LIMIT_S) == 0
            with pytest.raises(ConnectionError):
                client.statvfs()
        assert not sock.exists()
        assert process.stderr is not None and process.stderr.read() == ""


def test_it_ends_although_a_request_hangs(tmp_path: Path, sock: Path) -> None:
    (tmp_path / "slow.py").write_text(
        textwrap.dedent("""
            from transfuse.filesystems.memory import MemoryFilesystem
            class Slow(MemoryFilesystem):
                def statfs(self, req, nodeid):
                    print("asked", flush=True)
                    req.wait_interrupted(60)
        """)
    )
    with started("serve", f"python:{tmp_path}/slow.py:Slow", f"unix:{sock}") as (process, _):
        child = subprocess.Popen(
            [sys.executable, "-c", READ, str(sock), "statvfs"], stdout=subprocess.PIPE, text=True, env=environment()
        )
        assert child.stdout is not None and child.stdout.readline() == "up\n"
        assert process.stdout is not None and process.stdout.readline() == "asked\n"
        process.terminate()
        assert process.wait(8) == 0
        assert child.communicate(timeout=LIMIT_S)[0] == "ConnectionResetError\n"


def test_background_returns_when_it_can_be_used_and_relative_names_are_from_here(data: Path, tmp_path: Path) -> None:
    done = run("serve", "data", "unix:s", "--background", "--log-file", "log", "-d", cwd=tmp_path)
    try:
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        with client_of(tmp_path / "s") as client:
            assert client.read_text("/a.txt") == "first\n"
        assert "LOOKUP" in (tmp_path / "log").read_text()
    finally:
        pids = [
            int(pid)
            for pid in os.listdir("/proc")
            if pid.isdigit() and "unix:s\0--background\0--log-file" in command_line(pid) and standing_in(pid) == "/"
        ]
        if pids:
            os.kill(min(pids), signal.SIGTERM)
    assert len(pids) == 2  # the server, and before it the process that stays outside its sandbox
    assert wait_until(lambda: not (tmp_path / "s").exists())


def command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def standing_in(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def test_background_that_fails_says_so_and_returns_its_code(data: Path, tmp_path: Path) -> None:
    done = run("serve", data, "unix:/no/such/dir/s", "--background")
    assert done.returncode == 1 and done.stderr.startswith("transfuse: unix:/no/such/dir/s: No such file")


def test_background_without_a_place_for_its_log_says_so(data: Path, tmp_path: Path) -> None:
    done = run("serve", data, "unix:s", "--background", "--log-file", "/no/such/dir/log", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("transfuse: --log-file /no/such/dir/log: No such file")
    assert not (tmp_path / "s").exists()


def test_a_socket_left_by_a_killed_server_is_replaced(data: Path, sock: Path) -> None:
    with started("serve", data, f"unix:{sock}") as (process, _):
        process.kill()
        process.wait(LIMIT_S)
    assert sock.exists()
    with started("serve", data, f"unix:{sock}"), client_of(sock) as client:
        assert client.exists("/a.txt")


# -- what it serves --


def test_options_of_the_source_apply(sock: Path) -> None:
    with started("serve", "memory:", f"unix:{sock}", "-o", "size_bytes=64K,max_inodes=9"), client_of(sock) as client:
        assert client.statvfs("/").f_files == 9


def test_read_only_is_read_only(data: Path, sock: Path) -> None:
    with started("serve", data, f"unix:{sock}", "--read-only"), client_of(sock) as client:
        assert client.read_text("/a.txt") == "first\n"
        with pytest.raises(OSError, match="Read-only file system"):
            client.write_text("/new", "x")
    assert not (data / "new").exists()


def test_every_looking_command_reads_it(data: Path, sock: Path, tmp_path: Path) -> None:
    with started("serve", data, f"unix:{sock}"):
        assert run("ls", f"unix:{sock}").stdout.split() == ["a.txt", "link", "sub"]
        assert "b.bin" in run("tree", f"unix:{sock}").stdout
        assert run("cat", f"unix:{sock}", "a.txt").stdout == "first\n"
        assert "0640" in run("stat", f"unix:{sock}", "a.txt").stdout
        assert run("cp", "-a", "--from", f"unix:{sock}", "/", tmp_path / "copy").returncode == 0
        assert (tmp_path / "copy/sub/b.bin").read_bytes() == (data / "sub/b.bin").read_bytes()
        (tmp_path / "up").write_text("up")
        assert run("cp", "--to", f"unix:{sock}", tmp_path / "up", "sub").returncode == 0
        assert (data / "sub/up").read_text() == "up"


READ = """
import sys, time
from transfuse.client import Client
from transfuse.transports.stream import StreamClientTransport
with Client(StreamClientTransport.connect(sys.argv[1])) as client:
    print("up", flush=True)
    try:
        getattr(client, sys.argv[2])()
    except OSError as error:
        print(type(error).__name__, flush=True)
"""
WRITE = """
import sys
from transfuse.client import Client
from transfuse.transports.stream import StreamClientTransport
client = Client(StreamClientTransport.connect(sys.argv[1])).connect()
mine, other = sys.argv[2:4]
client.write_text(f"/{mine}", mine)
lost = client.open_raw(f"/{mine}-unlinked", 0o102)
client.unlink(f"/{mine}-unlinked")
lost.write(bytes(1 << 20))
lock = client.open_raw("/lock", 0o102)
print("ready", flush=True)
for line in sys.stdin:
    match line.split():
        case ["lock"]:
            try:
                lock.lockf(2 | 4)
                print("locked", flush=True)
            except OSError as error:
                print(type(error).__name__, flush=True)
        case ["read"]:
            print(client.read_text(f"/{other}"), flush=True)
        case ["wait"]:
            lock.lockf(2, timeout_s=20)
            print("locked", flush=True)
"""


class Other:
    """Another process with a client: one line in, one line out."""

    def __init__(self, sock: Path, mine: str, other: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(sock), mine, other],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        assert self.answer() == "ready"

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        print(word, file=self.process.stdin, flush=True)

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, word: str) -> str:
        self.say(word)
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=LIMIT_S)


@pytest.mark.parametrize("source", ["memory:", "directory"])
def test_two_client_processes_one_of_which_is_killed(source: str, tmp_path: Path, sock: Path) -> None:
    (tmp_path / "directory").mkdir()
    if source == "directory":
        source = str(tmp_path / "directory")
    others: list[Other] = []
    with started("serve", source, f"unix:{sock}") as (process, _), client_of(sock) as watching:
        try:
            one, two = Other(sock, "one", "two"), Other(sock, "two", "one")
            others += [one, two]
            assert (one.ask("read"), two.ask("read")) == ("two", "one")
            assert one.ask("lock") == "locked"
            assert two.ask("lock") == "BlockingIOError"
            held = watching.statvfs("/").f_bfree
            two.say("wait")
            one.process.kill()
            one.process.wait(LIMIT_S)
            # Its lock is free, its unlinked file is gone, and nobody else noticed.
            assert two.answer() == "locked"
            if source == "memory:":
                assert wait_until(lambda: watching.statvfs("/").f_bfree == held + 256)
            assert two.ask("read") == "one"
            with client_of(sock) as third:
                assert third.read_text("/two") == "two"
                with third.open_raw("/lock", os.O_RDWR) as file, pytest.raises(BlockingIOError):
                    file.lockf(2 | 4)
        finally:
            for other in others:
                other.end()
        assert process.poll() is None
        assert descriptors(process) < 40


def descriptors(process: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    server = children[0] if children else process.pid  # a contained one is the child of the process that was started
    return len(os.listdir(f"/proc/{server}/fd"))


def test_clients_that_come_and_go_leave_nothing_behind(data: Path, sock: Path) -> None:
    with started("serve", data, f"unix:{sock}", "--max-clients", "2") as (process, line):
        assert "(up to 2 clients, " in line
        with client_of(sock) as client:
            client.read_text("/a.txt")
        with client_of(sock):
            pass
        before = descriptors(process)
        for _ in range(20):
            other = Client(StreamClientTransport.connect(sock)).connect()
            file = other.open_raw("/a.txt")
            other.exchange.transport.close()  # as if killed
            file.file.is_open = False
            file.close()
            assert wait_until(lambda: can_connect(sock))
        assert descriptors(process) <= before + 2


def can_connect(sock: Path) -> bool:
    try:
        with client_of(sock) as client:
            return client.exists("/a.txt")
    except ConnectionError:
        return False


def test_one_client_too_many_is_turned_away(data: Path, sock: Path) -> None:
    with started("serve", data, f"unix:{sock}", "--max-clients", "1") as (process, _):
        with client_of(sock):
            done = run("ls", f"unix:{sock}")
            assert done.returncode == 1 and "the server hung up; its log says why" in done.stderr
        process.terminate()
        process.wait(LIMIT_S)
        assert process.stderr is not None
        assert "1 clients are connected already" in process.stderr.read()


def test_a_peer_that_talks_nonsense_disturbs_nobody(data: Path, sock: Path) -> None:
    with started("serve", data, f"unix:{sock}") as (process, _), client_of(sock) as client:
        for garbage in (b"x", bytes(40), b"\xff" * 4096, bytes(64)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
                peer.connect(str(sock))
                peer.settimeout(1)
                try:
                    for _ in range(50):
                        peer.send(garbage)
                        peer.recv(4096)
                except OSError:
                    pass
        assert client.read_text("/a.txt") == "first\n"
        process.terminate()
        process.wait(LIMIT_S)
        assert process.stderr is not None
        assert len(process.stderr.read().splitlines()) < 60


def test_a_class_with_coroutines_serves_several_clients(tmp_path: Path, sock: Path) -> None:
    (tmp_path / "later.py").write_text(
        textwrap.dedent("""
            import asyncio
            from transfuse.filesystems.memory import MemoryFilesystem
            class Later(MemoryFilesystem):
                def __init__(self):
                    super().__init__()
                    self._turn = asyncio.Lock()
                async def read(self, req, nodeid, fh, size, offset):
                    async with self._turn:
                        await asyncio.sleep(0)
                        return super().read(req, nodeid, fh, size, offset)
                async def release(self, req, nodeid, fh, flags, lock_owner, flock_unlock):
                    async with self._turn:
                        return super().release(req, nodeid, fh, flags, lock_owner, flock_unlock)
                def destroyed(self):
                    print("destroyed with", self.open_count(), "open", flush=True)
                    super().destroyed()
        """)
    )
    with started("serve", f"python:{tmp_path}/later.py:Later", f"unix:{sock}") as (process, _):
        with client_of(sock) as a, client_of(sock) as b:
            a.write_text("/f", "text")
            assert (a.read_text("/f"), b.read_text("/f")) == ("text", "text")
            left_open = b.open_raw("/f")
            b.exchange.transport.close()
        process.terminate()
        assert process.wait(LIMIT_S) == 0
        assert process.stdout is not None and process.stdout.read() == "destroyed with 0 open\n"
        left_open.file.is_open = False
        left_open.close()
