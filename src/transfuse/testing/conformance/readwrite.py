"""The suite for filesystems that can be written to: all cases, the reading ones on a tree that it makes itself."""

from __future__ import annotations

import stat
from collections.abc import Mapping

from transfuse.fs.tree import Symlink, Tree
from transfuse.testing.conformance.attributes import AttributeCases
from transfuse.testing.conformance.data import DataCases, pattern
from transfuse.testing.conformance.names import NameCases
from transfuse.testing.conformance.reading import ReadOnly
from transfuse.testing.conformance.suite import content, flatten, target
from transfuse.testing.volume import Volume

__all__ = ["ReadWrite"]


class ReadWrite(ReadOnly, NameCases, DataCases, AttributeCases):
    """Everything. make_filesystem() gives an empty filesystem."""

    def expected(self) -> Tree:
        """What populate() makes."""
        return {
            "greeting.txt": b"Hello, world!\n",
            "big.bin": pattern(300_000),
            "tree": {"deep": {"er": {"leaf": b"x"}}, "empty.d": {}, "link": Symlink("deep/er/leaf")},
            "\u00fcml\u00e4ut": "text",
        }

    def populate(self, volume: Volume) -> None:
        """Make expected(), as far as the filesystem can (no links where there are none)."""
        for path, value in flatten(self.expected()):
            if isinstance(value, Mapping):
                volume.mkdir(path)
            elif isinstance(value, Symlink):
                volume.symlink(target(value), path)
            else:
                volume.write_bytes(path, content(value))
        assert stat.S_ISDIR(volume.stat("/").mode)
