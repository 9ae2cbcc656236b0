"""What an author sees: skips with a reason, and failures for what was left behind. Runs pytest on small files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from transfuse.testing.conformance.suite import fails_with

SRC = Path(__file__).parents[3] / "src"
HEAD = """
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.tree import TreeFilesystem
from transfuse.testing import conformance
"""


def run_suite(tmp_path, text, *options):
    file = tmp_path / "test_it.py"
    file.write_text(HEAD + text)
    env = {**os.environ, "PYTHONPATH": str(SRC), "TRANSFUSE_REQUIRE": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [*command, str(file), *options], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100
    )
    return done.stdout


def test_a_sound_filesystem_passes(tmp_path):
    text = """
class TestTree(conformance.ReadOnly):
    transports = ("direct", "memory")
    def make_filesystem(self, tmp_path):
        return TreeFilesystem({"f": b"x"})
    def expected(self):
        return {"f": b"x"}
"""
    out = run_suite(tmp_path, text)
    assert " passed" in out and "failed" not in out and "error" not in out


def test_a_case_without_its_operation_is_skipped_with_the_reason(tmp_path):
    text = """
class NoLinks(MemoryFilesystem):
    def operations(self):
        return super().operations() - {"link"}

class TestIt(conformance.ReadWrite):
    transports = ("direct",)
    def make_filesystem(self, tmp_path):
        return NoLinks()
"""
    out = run_suite(tmp_path, text, "-k", "hard_link or link_of_a_directory")
    assert "2 skipped" in out and "the filesystem has no link()" in out


def test_unsupported_cases_are_skipped(tmp_path):
    text = """
class TestIt(conformance.ReadWrite):
    transports = ("direct",)
    unsupported = frozenset({"test_a_tmpfile_has_no_name"})
    def make_filesystem(self, tmp_path):
        return MemoryFilesystem()
"""
    assert "1 skipped" in run_suite(tmp_path, text, "-k", "tmpfile_has_no_name")


def test_without_make_filesystem_the_author_is_told(tmp_path):
    text = """
class TestIt(conformance.ReadOnly):
    transports = ("direct",)
"""
    assert "TestIt does not say what to try" in run_suite(tmp_path, text, "-k", "root_is_a_directory")


LEFTOVERS = {
    "raises": (
        """
class Bad(MemoryFilesystem):
    def getattr(self, req, nodeid, fh):
        raise ZeroDivisionError
""",
        "memory",
        "ZeroDivisionError",
    ),
    "fd": (
        """
import os
class Bad(MemoryFilesystem):
    def mkdir(self, req, parent, name, mode, umask):
        self.leak = os.open("/dev/null", os.O_RDONLY)
        return super().mkdir(req, parent, name, mode, umask)
""",
        "direct",
        "/dev/null) is still open",
    ),
}


@pytest.mark.parametrize("kind", sorted(LEFTOVERS))
def test_what_is_left_behind_fails_the_case(tmp_path, kind):
    defect, transport, said = LEFTOVERS[kind]
    text = (
        defect
        + f"""
class TestIt(conformance.ReadWrite):
    transports = ("{transport}",)
    def make_filesystem(self, tmp_path):
        return Bad()
"""
    )
    out = run_suite(tmp_path, text, "-k", "test_root_has_a_link_count")
    assert said in out and ("1 error" in out or "1 failed" in out)


def test_another_errno_is_not_taken_for_the_expected():
    with pytest.raises(AssertionError, match="EACCES, expected ENOENT or ENOTDIR"), fails_with(2, 20):
        raise PermissionError(13, "no")


def test_no_error_is_not_taken_for_the_expected():
    with pytest.raises(pytest.fail.Exception), fails_with(2):
        pass
