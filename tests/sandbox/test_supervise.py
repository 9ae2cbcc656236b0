"""The process that stays outside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.inside import LIMIT_S, SOURCES
from transfuse.sandbox.supervise import SocketFiles

START = """
import os, signal, sys, time, logging
from transfuse.sandbox import supervise
def told(text):
    print("told", repr(text), flush=True)
outside = supervise.fork(lambda: None, sys.argv[1:], told)
def ended(number, frame):
    os._exit(40 + number)
for number in supervise.FORWARDED:
    signal.signal(number, ended)
"""


@contextmanager
def supervised(body: str, *words: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", START + body, *map(str, words)], text=True, env={"PYTHONPATH": SOURCES},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=LIMIT_S)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on_and_the_exit_code_is_the_servers(number: signal.Signals) -> None:
    with supervised("print('up', flush=True)\ntime.sleep(60)") as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert end(process)[0] == 40 + number


def test_the_exit_code_is_the_servers() -> None:
    with supervised("os._exit(7)") as process:
        assert end(process) == (7, "", "")


def test_a_server_that_is_killed_is_said_with_the_reason() -> None:
    with supervised("os.kill(os.getpid(), signal.SIGSYS)") as process:
        code, _, err = end(process)
        assert code == 128 + signal.SIGSYS
        assert "it made a system call that it may not make; --seccomp log shows it" in err
    with supervised("os.kill(os.getpid(), signal.SIGKILL)") as process:
        code, _, err = end(process)
        assert code == 137 and "the server was killed by signal 9" in err


def test_the_server_is_killed_with_its_supervisor() -> None:
    with supervised("print('up', flush=True)\ntime.sleep(60)") as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        process.kill()
        assert process.stdout.read() == ""  # the end of the pipe, which the server holds too


def test_only_readiness_a_status_and_the_end_are_told_to_the_service_manager() -> None:
    body = """
outside.notify("READY=1\\nSTATUS=it serves\\nMAINPID=1")
outside.notify("STOPPING=1")
outside.notify("STOPPING=1\\nMAINPID=1")
outside.notify("READY=1\\nMAINPID=1")
outside._sock.send(b"X" * 4096)
outside._sock.send(b"N")
os._exit(0)
"""
    with supervised(body) as process:
        assert end(process)[:2] == (0, "told 'READY=1\\nSTATUS=it serves'\ntold 'STOPPING=1'\ntold 'READY=1'\n")


def test_it_lets_go_of_the_callers_streams() -> None:
    body = """
null = os.open(os.devnull, os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
outside.detach()
time.sleep(60)
"""
    with supervised(body) as process:
        assert process.stdout is not None and process.stdout.read() == ""
        assert process.poll() is None


def test_sockets_are_removed_and_what_took_their_place_is_not(tmp_path: Path) -> None:
    ours, replaced, file = tmp_path / "ours", tmp_path / "replaced", tmp_path / "file"
    file.write_text("")
    with socket.socket(socket.AF_UNIX) as a, socket.socket(socket.AF_UNIX) as b, socket.socket(socket.AF_UNIX) as c:
        a.bind(str(ours))
        b.bind(str(replaced))
        with supervised("print('up', flush=True)\ntime.sleep(60)", ours, replaced, file) as process:
            assert process.stdout is not None and process.stdout.readline() == "up\n"
            b.close()
            c.bind(str(tmp_path / "new"))
            os.rename(tmp_path / "new", replaced)
            process.terminate()
            end(process)
    assert (ours.exists(), replaced.exists(), file.exists()) == (False, True, True)


def test_socket_files_are_removed_once(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        files = SocketFiles([str(tmp_path / "s"), str(tmp_path / "absent")])
        files.remove()
        assert not (tmp_path / "s").exists()
        (tmp_path / "s").touch()
        files.remove()
        assert (tmp_path / "s").exists()
