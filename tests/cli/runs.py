"""Running the command: in this process where it only looks, as a process of its own where it mounts or daemonises."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import transfuse
from transfuse.cli.main import main

LIMIT_S = 30.0
ACTIVATE = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""What a service manager does with a socket for the Python that it starts: python -c ACTIVATE FD ARGUMENTS..."""
SOURCES = str(Path(transfuse.__file__).parents[1])


@dataclass
class Said:
    """What a run in this process came to."""

    code: int
    out: str
    err: str


class Cli:
    """main() with the captured output."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> Said:
        self._capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = self._capsys.readouterr()
        return Said(code, out, err)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "transfuse", *map(str, words)]


def environment(**extra: str) -> dict[str, str]:
    """The environment of a process that runs this tree's sources."""
    return {**os.environ, "PYTHONPATH": SOURCES, "TERM": "dumb", **extra}


def run(*words: object, env: dict[str, str] | None = None, **rest: object) -> subprocess.CompletedProcess[str]:
    """The command as a process, to its end."""
    return subprocess.run(
        command(*words), capture_output=True, text=True, timeout=LIMIT_S, env=env or environment(), **rest
    )  # type: ignore[call-overload, no-any-return]


def is_mounted(place: Path) -> bool:
    with open("/proc/self/mountinfo") as table:
        return any(line.split()[4] == str(place) for line in table)


def wait_until(what: object, limit_s: float = 10.0) -> bool:
    deadline = time.monotonic() + limit_s
    while not what():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def foreground(
    *words: object, env: dict[str, str] | None = None
) -> AbstractContextManager[tuple[subprocess.Popen[str], str]]:
    """`transfuse mount ... -f`: the process and its line. It is ended at the end if it still runs."""
    return started("mount", *words, "-f", env=env)


@contextmanager
def started(*words: object, env: dict[str, str] | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command that says one line when it is ready: the process and its line. It is ended at the end if it runs."""
    process = subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env or environment(),
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"{words[0]} did not start: {process.stderr.read()}")
        yield process, line
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(LIMIT_S)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
