"""A full read-write POSIX filesystem in memory: the reference model for tests, and a scratch mount.

state (inodes, accounts, permissions) <- names, attributes, files (the operations) <- filesystem (all of them). inode,
sparse and locks know no filesystem.
"""

from __future__ import annotations

from transfuse.filesystems.memory.filesystem import MemoryFilesystem

__all__ = ["MemoryFilesystem"]
