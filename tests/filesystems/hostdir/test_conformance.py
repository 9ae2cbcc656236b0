"""The public conformance suite over a host directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfuse.filesystems.hostdir import HostDirectory
from transfuse.testing import conformance


@pytest.mark.needs("root")
class TestHostDirectoryConforms(conformance.ReadWrite):
    """Whoever asks, files are made as root asks for them: as root."""

    transports = ("memory", "stream", "virtio", "dev_fuse")

    def make_filesystem(self, tmp_path: Path) -> HostDirectory:
        source = tmp_path / "source"
        source.mkdir()
        return HostDirectory(source)


@pytest.mark.needs("root")
class TestHostDirectoryWithoutOpenConforms(conformance.ReadWrite):
    """The peer opens files without a request."""

    transports = ("memory", "dev_fuse")

    def make_filesystem(self, tmp_path: Path) -> HostDirectory:
        source = tmp_path / "source"
        source.mkdir()
        return HostDirectory(source, cache="always", no_open=True)
