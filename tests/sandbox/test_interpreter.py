"""What Python needs to read."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest

import transfuse
from sandbox.inside import run_inside
from transfuse.sandbox.interpreter import paths


def test_there_is_the_library_and_this_package_but_nothing_of_anybody() -> None:
    found = paths()
    assert sysconfig.get_path("stdlib") in found
    assert str(Path(transfuse.__file__).parent) in found
    assert not {"/", "/home", "/root", "/etc", "/usr", os.getcwd()} & set(found)
    assert all(os.path.exists(path) for path in found) and len(set(found)) == len(found)


@pytest.mark.parametrize("sandbox", ["namespace", "landlock"])
@pytest.mark.needs("root")
def test_imports_tracebacks_and_logs_work_inside(sandbox: str) -> None:
    body = """
import asyncio, ctypes.util, decimal, email.mime.text, encodings.idna, hashlib, logging, sqlite3, ssl, zoneinfo
from transfuse.filesystems.memory import MemoryFilesystem
logging.basicConfig(format="%(asctime)s %(message)s")
asyncio.run(asyncio.sleep(0))
try:
    MemoryFilesystem(size_bytes="x")
except Exception:
    logging.exception("caught")
try:
    import json.decoder
    json.loads("{")
except ValueError:
    logging.exception("caught")
"""
    done = run_inside(body, wanted={"sandbox": sandbox})
    assert done.returncode == 0, done.stderr
    assert "obj, end = self.scan_once(s, idx)" in done.stderr  # a line of the library's source
