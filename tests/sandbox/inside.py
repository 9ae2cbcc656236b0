"""Running a script in a contained process, as root or as an ordinary user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import transfuse

LIMIT_S = 60.0
USER = 65534
SOURCES = str(Path(transfuse.__file__).parents[1])
START = """
import ctypes, json, os, socket, sys
from transfuse.sandbox import Containment, Source, contain
given = json.loads(sys.argv[1])
wanted = Containment(sources=tuple(Source(*source) for source in given.pop("sources")), **given.pop("wanted"))
contained = contain(wanted, lambda where: [where(source.path) for source in wanted.sources])
report, places = contained.report, contained.value
found = {}
def attempt(name, call):
    try:
        value = call()
        found[name] = value if isinstance(value, str) else "done"
    except OSError as error:
        found[name] = error.errno
libc = ctypes.CDLL(None, use_errno=True)
def raw(number, *args):
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in args))
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
"""
END = """
print(json.dumps(found))
sys.stdout.flush()
"""


@cache
def user_python() -> str | None:
    """A Python that an ordinary user can run; the one that runs the tests may be in root's home."""
    for python in (sys.executable, "/usr/bin/python3"):
        if not os.path.exists(python):
            continue
        try:
            done = subprocess.run(
                [python, "-c", "import sys, transfuse; sys.exit(sys.version_info < (3, 11))"], cwd="/",
                user=USER, group=USER, extra_groups=(), env={"PYTHONPATH": SOURCES}, capture_output=True,
                timeout=LIMIT_S,
            )  # fmt: skip
        except PermissionError:
            continue
        if done.returncode == 0:
            return python
    return None


def run_inside(
    body: str, *, before: str = "", user: bool = False, sources: list[tuple[str, bool]] | None = None,
    wanted: dict[str, Any] | None = None, **given: object,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run `body` after contain(Containment(**wanted)), and `before` before it. `body` may use `attempt`, `raw`,
    `places`, `report` and `given`."""
    python = user_python() if user else sys.executable
    if python is None:
        pytest.skip("needs a Python that an ordinary user can run: not found")
    words = json.dumps({"sources": sources or [], "wanted": wanted or {}, **given})
    ids: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": ()} if user else {}
    return subprocess.run(
        [python, "-P", "-c", before + START + body + END, words], capture_output=True, text=True, timeout=LIMIT_S,
        cwd="/", env={"PYTHONPATH": SOURCES, "PATH": "/usr/bin:/bin"}, **ids,
    )  # fmt: skip


def found_inside(body: str, **rest: Any) -> dict[str, Any]:
    """What `attempt` found, by name: an errno, or what the call returned."""
    done = run_inside(body, **rest)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result
