"""The memory filesystem as a whole: the conformance suite over every transport, and what it offers."""

from __future__ import annotations

from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.testing import conformance


class TestMemoryConforms(conformance.ReadWrite):
    transports = ("direct", "memory", "stream", "virtio", "dev_fuse")

    def make_filesystem(self, tmp_path):
        return MemoryFilesystem(size_bytes=64 << 20)
