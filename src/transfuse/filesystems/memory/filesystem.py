"""The memory filesystem put together of its parts."""

from __future__ import annotations

from transfuse.filesystems.memory.attributes import Attributes
from transfuse.filesystems.memory.files import Files
from transfuse.filesystems.memory.names import Names

__all__ = ["MemoryFilesystem"]


class MemoryFilesystem(Names, Attributes, Files):
    """A POSIX filesystem in memory.

    `size_bytes` and `max_inodes` bound it (ENOSPC beyond). `clock` returns nanoseconds since 1970 and is the only way
    time gets in. `check_permissions`: check modes, ACLs and owners by the request's identity, for peers that don't do
    it themselves (a kernel does). `features` replaces what it would negotiate: POSIX ACLs, HANDLE_KILLPRIV_V2, export
    by handle, and that cached data are dropped by notification only, which is right for one peer at a time.

        with transfuse.mount(MemoryFilesystem(size_bytes=64 << 20), "/mnt/scratch"): ...
    """

    def operations(self) -> frozenset[str]:
        """All but bmap (there is no device), and access() only where permissions are checked here."""
        found = super().operations()
        return found if self.check_permissions else found - {"access"}
