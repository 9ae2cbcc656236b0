from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.runs import environment
from transfuse.cli.daemon import Ready, StopSignals, notify_service_manager, run_service, set_up_logging
from transfuse.cli.errors import CommandError

IN_BACKGROUND = """
import os, sys, time
from transfuse.cli.daemon import in_background
def work(ready):
    {body}
code = in_background(work)
print("parent", code, flush=True)
sys.exit(code)
"""


def background(body: str, limit_s: float = 20.0) -> subprocess.CompletedProcess[str]:
    program = IN_BACKGROUND.format(body=body.replace("\n", "\n    "))
    words = [sys.executable, "-c", program]
    return subprocess.run(words, capture_output=True, text=True, timeout=limit_s, env=environment())


# -- the background --


def test_parent_returns_when_the_child_is_ready_and_not_before(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    started = time.monotonic()
    done = background(
        f"time.sleep(0.5)\nopen({str(mark)!r}, 'w').close()\nready.announce('x', {{}})\ntime.sleep(3)\nreturn 0"
    )
    assert done.returncode == 0 and done.stdout == "parent 0\n"
    assert mark.exists()
    # The output pipe was at its end long before the child's: it let go of the caller's streams.
    assert time.monotonic() - started < 3


def test_code_of_a_child_that_fails_is_the_parents() -> None:
    done = background("print('trouble', file=sys.stderr)\nreturn 32")
    assert (done.returncode, done.stderr) == (32, "trouble\n")


def test_child_that_is_killed_is_a_system_error() -> None:
    assert background("os.kill(os.getpid(), 9)").returncode == 2


def test_child_leaves_session_and_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    background(f"open({str(out)!r}, 'w').write(f'{{os.getsid(0) == os.getpid()}} {{os.getcwd()}}')\nreturn 0")
    assert out.read_text() == "True /"


def test_interrupt_while_waiting_ends_the_child(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    body = f"open({str(mark)!r}, 'w').write(str(os.getpid()))\n    time.sleep(30)\n    return 0"
    process = subprocess.Popen([sys.executable, "-c", IN_BACKGROUND.format(body=body)], env=environment())
    while not mark.exists() or not mark.read_text():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


# -- the service manager --


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


def test_service_manager_is_told(manager: socket.socket) -> None:
    assert notify_service_manager("READY=1", {"NOTIFY_SOCKET": manager.getsockname()})
    assert manager.recv(100) == b"READY=1"


def test_abstract_socket_of_the_service_manager() -> None:
    name = f"transfuse-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        assert notify_service_manager("READY=1", {"NOTIFY_SOCKET": "@" + name})
        assert sock.recv(100) == b"READY=1"


@pytest.mark.parametrize("value", [None, "", "relative", "/no/such/socket"])
def test_no_service_manager_is_no_trouble(value: str | None) -> None:
    assert not notify_service_manager("READY=1", {} if value is None else {"NOTIFY_SOCKET": value})


# -- signals --


def later(number: int, delay_s: float = 0.1) -> threading.Thread:
    thread = threading.Timer(delay_s, os.kill, (os.getpid(), number))
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_wait(number: int) -> None:
    with StopSignals().caught() as signals:
        thread = later(number)
        assert signals.wait(lambda: threading.Event().wait(10)) is True
        assert signals.number == number
        thread.join()


def test_wait_ends_by_itself() -> None:
    with StopSignals().caught() as signals:
        assert signals.wait(lambda: None) is False


def test_signal_before_the_wait_is_remembered() -> None:
    with StopSignals().caught() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.wait(lambda: pytest.fail("waited all the same")) is True


def test_second_signal_before_the_wait_breaks_off() -> None:
    with StopSignals().caught():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals().caught():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


# -- the log --


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.getLogger("transfuse")
    before = (list(logger.handlers), logger.level, logger.propagate)
    logger.handlers = []
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.level, logger.propagate = before[0], before[1], before[2]
    logger.setLevel(before[1])


def test_log_file_is_appended_to(tmp_path: Path, log: logging.Logger) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    set_up_logging(debug=False, log_file=str(path), background=True)
    log.info("something")
    assert path.read_text().startswith("before\n") and "INFO transfuse: something" in path.read_text()


def test_log_file_that_can_not_be_written_is_one_line(log: logging.Logger) -> None:
    with pytest.raises(CommandError, match="--log-file /no/such/dir/log: No such file"):
        set_up_logging(debug=False, log_file="/no/such/dir/log", background=True)


def test_foreground_shows_warnings_only_unless_debugging(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging(debug=False, log_file=None, background=False)
    log.info("small")
    log.warning("big")
    assert capsys.readouterr().err == "transfuse: big\n"
    set_up_logging(debug=True, log_file=None, background=False)
    log.debug("small")
    assert capsys.readouterr().err == "transfuse: transfuse: small\n"


# -- a service --


def test_service_that_can_not_be_made_is_one_line_and_its_code(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    def make() -> int:
        raise CommandError("it", "is broken", "mend it", 7)

    def serve(made: int, ready: Ready) -> int:
        pytest.fail("served all the same")

    assert run_service(make, serve, background=False, debug=False, log_file=None, failed=32) == 7
    assert capsys.readouterr().err == "transfuse: it: is broken; mend it\n"


def test_service_gets_what_was_made_and_gives_its_code(log: logging.Logger) -> None:
    def serve(made: str, ready: Ready) -> int:
        return len(made)

    assert run_service(lambda: "made", serve, background=False, debug=False, log_file=None, failed=32) == 4


SERVICE = """
import os, sys
from pathlib import Path
from transfuse.cli.daemon import run_service
def serve(made, ready):
    Path(made, "seen").write_text(f"{made} {os.getcwd()}")
    return 0
sys.exit(run_service(os.getcwd, serve, background=True, debug=False, log_file="log", failed=32))
"""


def test_service_in_the_background_is_made_where_the_caller_stands_and_serves_in_the_root(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SERVICE]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, env=environment(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "seen").read_text() == f"{tmp_path} /"
    assert (tmp_path / "log").exists()
