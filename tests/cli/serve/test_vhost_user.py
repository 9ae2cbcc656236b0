"""`transfuse serve SOURCE vhost-user:SOCKET`: real processes behind a raw front-end."""

from __future__ import annotations

import argparse
import grp
import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.runs import LIMIT_S, Cli, command, environment, run, started
from transfuse.cli.errors import CommandError
from transfuse.cli.options import read_settings
from transfuse.cli.serve.kinds import add_kinds
from transfuse.cli.serve.vhost_user import add_flags, check, implied
from transfuse.wire import structs as w
from transports.vhost_user.raw_frontend import RawFrontend


@pytest.fixture
def sock(tmp_path: Path) -> Path:
    return tmp_path / "sock"


@contextmanager
def frontend_of(where: Path, **options: int) -> Iterator[RawFrontend]:
    frontend = RawFrontend(where, **options)
    try:
        frontend.handshake()
        frontend.begin()
        frontend.init()
        yield frontend
    finally:
        frontend.close()


def direct(frontend: RawFrontend, name: bytes) -> tuple[bytes, bytes]:
    """Two pages by O_DIRECT: as they were, and after the second was overwritten."""
    nodeid = frontend.lookup(name).struct(w.EntryOut).nodeid
    fh = frontend.open(nodeid, os.O_RDWR | os.O_DIRECT)

    def put_data_on_a_page(before: int) -> None:
        frontend.allocate(4096 - before, 4096)  # the next allocation begins where this ends, `before` bytes in front

    put_data_on_a_page(96)  # the request, and the header of the answer
    read = frontend.read(nodeid, fh, 8192).body
    put_data_on_a_page(80)
    assert frontend.write(nodeid, fh, b"w" * 4096, offset=4096).struct(w.WriteOut).size == 4096
    put_data_on_a_page(96)
    return read, frontend.read(nodeid, fh, 8192).body


def content(frontend: RawFrontend, name: bytes) -> bytes:
    nodeid = frontend.lookup(name).struct(w.EntryOut).nodeid
    return frontend.read(nodeid, frontend.open(nodeid, os.O_RDONLY), 4096).body


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_kinds(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["vhost-user:"], "ADDRESS vhost-user:: names no socket; write vhost-user:/path.sock"),
        (["vhost-user:/no/such/dir/s"], "vhost-user:/no/such/dir/s: No such file or directory"),
        (["vhost-user:" + "/x" * 60], "is longer than 107 bytes"),
        (["vhost-user:s", "--socket-path", "t"], "there are two addresses"),
        (["--socket-path", "s", "--fd", "9"], "options --socket-path and --fd: name two sockets"),
        (["--fd", "999"], "--fd 999: Bad file descriptor"),
        (["--fd", "0", "--socket-group", "root"], "option --socket-group: is for a socket that is made here"),
        (["--socket-path", "{sock}", "--queues", "0"], "takes a number of request queues, 1 to 64"),
        (["--socket-path", "{sock}", "--queues", "65"], "takes a number of request queues, 1 to 64"),
        (["--socket-path", "{sock}", "--dax", "3M"], "takes a size that is a multiple of 2M"),
        (["--socket-path", "{sock}", "--dax", "lots"], "takes a size that is a multiple of 2M"),
        (["--socket-path", "{sock}", "--tag", "x" * 37], "1 to 36 bytes without newlines"),
        (["--socket-path", "{sock}", "--socket-group", "no such"], "--socket-group no such: no such group"),
        (["--socket-path", "{sock}", "--state-file", "/no/dir/f"], "--state-file /no/dir/f: No such file or directory"),
        (["unix:{sock}", "--tag", "x"], "option --tag: is for vhost-user:SOCKET; leave it out with unix:SOCKET"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], text: str, data: Path, sock: Path, cli: Cli) -> None:
    said = cli("serve", data, *(word.format(sock=sock) for word in words))
    assert said.code == 1
    assert text in said.err and said.err.count("\n") == 1
    assert not sock.exists()


def test_a_descriptor_that_is_no_socket_is_refused(data: Path, cli: Cli) -> None:
    with open(data / "a.txt") as file:
        assert "is no socket" in cli("serve", data, "--fd", file.fileno()).err
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        assert "is another kind of socket" in cli("serve", data, "--fd", other.fileno()).err


def test_a_source_without_state_takes_no_state_file(sock: Path, tmp_path: Path) -> None:
    done = run("serve", "memory:", f"vhost-user:{sock}", "--state-file", tmp_path / "state")
    assert done.returncode == 1 and "memory: keeps no state" in done.stderr and done.stderr.count("\n") == 1
    assert not sock.exists()


def test_a_file_that_is_no_state_is_refused(sock: Path, data: Path) -> None:
    done = run("serve", data, f"vhost-user:{sock}", "--state-file", data / "a.txt")
    assert done.returncode == 1 and f"--state-file {data / 'a.txt'}: is no state of a server" in done.stderr
    assert (data / "a.txt").read_text() == "first\n"
    assert not sock.exists()


def test_options_stand_for_the_address() -> None:
    assert implied(parsed("--socket-path", "a")) == "a"
    assert implied(parsed("--tag", "a")) is None
    ours, _ = socket.socketpair()
    with ours, _:
        args = parsed("--fd", str(ours.fileno()))
        assert check(implied(args) or "", args, read_settings([])) == f"fd={ours.fileno()}"


def test_a_path_that_looks_like_a_descriptor_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check("fd=3", parsed(), read_settings([])) == str(tmp_path / "fd=3")


def test_a_number_is_a_group() -> None:
    assert check("/s", parsed("--socket-group", "4"), read_settings([])) == "/s"
    with pytest.raises(CommandError, match="no such group"):
        check("/s", parsed("--socket-group", "4x"), read_settings([]))


def test_the_page_has_every_option() -> None:
    text = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    section = re.search(r"^## vhost-user:SOCKET\n(.*?)(?:^## |\Z)", text, re.S | re.M)
    assert section is not None
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    own = {action.option_strings[0] for action in parser._actions}
    assert set(re.findall(r"^\| `(--[a-z-]+)`", section[1], re.M)) == own | {"--require-acl"}


def test_it_serves_one_machine_after_the_other(data: Path, sock: Path) -> None:
    with started("serve", data, "--socket-path", sock, "--tag", "files", "--queues", "3") as (process, line):
        assert line.startswith(f"{data} served on vhost-user:{sock} (tag files, 3 queues, ")
        assert stat.S_IMODE(sock.stat().st_mode) == 0o600
        for _ in range(2):
            with frontend_of(sock, queues=3) as frontend:
                assert content(frontend, b"a.txt") == b"first\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
    assert not sock.exists()


def test_read_only_is_read_only(data: Path, sock: Path) -> None:
    with started("serve", data, f"vhost-user:{sock}", "--read-only"), frontend_of(sock) as frontend:
        assert content(frontend, b"a.txt") == b"first\n"
        nodeid = frontend.lookup(b"a.txt").struct(w.EntryOut).nodeid
        with pytest.raises(AssertionError, match="errno 30"):
            frontend.open(nodeid, os.O_RDWR)


def test_a_listening_socket_may_be_inherited(data: Path, sock: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(sock))
        listening.listen()
        words = command("serve", data, "--fd", listening.fileno())
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, env=environment(), pass_fds=[listening.fileno()]
        )
        try:
            assert process.stdout is not None
            assert f"served on vhost-user:socket {listening.fileno()} (1 queue, " in process.stdout.readline()
            with frontend_of(sock) as frontend:
                assert content(frontend, b"a.txt") == b"first\n"
        finally:
            process.terminate()
            assert process.wait(LIMIT_S) == 0
            process.communicate()
    assert sock.exists()


def test_once_ends_with_the_first_machine(data: Path, sock: Path) -> None:
    with started("serve", data, "--socket-path", sock, "--once") as (process, _):
        with frontend_of(sock) as frontend:
            assert content(frontend, b"a.txt") == b"first\n"
        assert process.wait(LIMIT_S) == 0


def test_a_guest_goes_on_with_the_next_server(data: Path, sock: Path, tmp_path: Path) -> None:
    words = ["serve", data, "--socket-path", sock, "--state-file", tmp_path / "state"]
    with started(*words), frontend_of(sock) as frontend:
        nodeid = frontend.lookup(b"a.txt").struct(w.EntryOut).nodeid
        fh = frontend.open(nodeid)
    with started(*words):
        frontend = RawFrontend(sock)
        try:
            frontend.handshake()
            frontend.begin()
            assert frontend.read(nodeid, fh, 100).body == b"first\n"
        finally:
            frontend.close()


def test_data_goes_by_o_direct_where_that_is_asked_for(data: Path, sock: Path) -> None:
    place = data / "pages"
    place.write_bytes(b"r" * 8192)
    try:
        os.close(os.open(place, os.O_RDWR | os.O_DIRECT))
    except OSError:
        pytest.skip(f"the filesystem of {data} has no O_DIRECT")
    with started("serve", data, "--socket-path", sock, "-o", "o_direct=yes"), frontend_of(sock) as frontend:
        assert direct(frontend, b"pages") == (b"r" * 8192, b"r" * 4096 + b"w" * 4096)


@pytest.mark.needs("root")
def test_a_group_may_be_let_in(data: Path, sock: Path) -> None:
    name = grp.getgrgid(1).gr_name
    with started("serve", data, "--socket-path", sock, "--socket-group", name):
        found = sock.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, 1)


def test_in_the_background_it_returns_when_it_can_be_used(data: Path, sock: Path, tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(LIMIT_S)
        env = environment(NOTIFY_SOCKET=str(tmp_path / "notify"))
        done = run("serve", data, "--socket-path", sock, "--background", "--once", env=env)
        assert done.returncode == 0, done.stderr
        assert listening.recv(4096).startswith(b"READY=1\n")
        with frontend_of(sock) as frontend:
            assert content(frontend, b"a.txt") == b"first\n"
        assert listening.recv(4096) == b"STOPPING=1"
