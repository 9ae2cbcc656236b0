"""A socket from the service manager."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest

from cli.runs import ACTIVATE, LIMIT_S, environment
from transfuse.cli.systemd import activated_socket

ME = str(os.getpid())
TAKE = """
import os
from transfuse.cli.systemd import activated_socket
print(activated_socket(os.environ), os.get_inheritable(3))
"""


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": ME},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": ME, "LISTEN_FDS": "0"},
    ],
)
def test_nothing_came_for_this_process(variables: dict[str, str]) -> None:
    assert activated_socket(variables) is None


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"LISTEN_PID": ME, "LISTEN_FDS": "2"}, "2 sockets came, and only one can be served"),
        ({"LISTEN_PID": "x", "LISTEN_FDS": "1"}, "LISTEN_PID='x', LISTEN_FDS='1': numbers belong there"),
        ({"LISTEN_PID": ME, "LISTEN_FDS": "-1"}, "numbers belong there"),
    ],
)
def test_what_makes_no_sense_is_refused(variables: dict[str, str], error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        activated_socket(variables)


def test_the_socket_is_descriptor_3_and_no_childs() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mine:
        done = subprocess.run(
            [sys.executable, "-c", ACTIVATE, str(mine.fileno()), "-c", TAKE],
            capture_output=True, text=True, timeout=LIMIT_S, env=environment(), pass_fds=[mine.fileno()],
        )  # fmt: skip
    assert done.stdout == "3 False\n", done.stderr


def test_a_descriptor_that_is_not_there_is_an_error() -> None:
    program = TAKE.replace("print(", "os.closerange(3, 9); print(")
    words = [sys.executable, "-c", ACTIVATE, "1", "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, env=environment())
    assert "ValueError: there is no descriptor 3: Bad file descriptor" in done.stderr
