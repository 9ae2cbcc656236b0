"""Conformance cases for any Filesystem, over any transport: inherit, and say what to try.

    from transfuse.testing import conformance

    class TestMyFs(conformance.ReadWrite):             # an empty filesystem, written to by the cases
        def make_filesystem(self, tmp_path):
            return MyFs(tmp_path)

    class TestMyArchive(conformance.ReadOnly):         # what it holds is compared with expected()
        def make_filesystem(self, tmp_path):
            return MyArchive("tests/sample.zip")

        def expected(self):
            return {"README": b"hello\n", "src": {"main.c": b"..."}}

`transports` picks from "direct", "memory", "stream", "virtio" and "dev_fuse" (a kernel mount: skipped where that is not
possible). Cases that need an operation which the filesystem does not have are skipped with the reason; `unsupported`
names cases to skip for another reason. Needs pytest.
"""

from __future__ import annotations

import pytest

_CASES = ("attributes", "data", "names", "reading", "readwrite", "suite")
pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in _CASES))

from transfuse.testing.conformance.reading import ReadOnly  # noqa: E402  after its asserts are taken care of
from transfuse.testing.conformance.readwrite import ReadWrite  # noqa: E402

__all__ = ["ReadOnly", "ReadWrite"]
