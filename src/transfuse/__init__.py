"""transfuse: filesystems in user space, across every boundary.

Both ends of the FUSE protocol, and every wire between. What a filesystem author needs, and whoever mounts or serves
one, is here, and `connect` for whoever reads one; the client is `transfuse.client`, test equipment is
`transfuse.testing`.
"""

from __future__ import annotations

from transfuse._native import loader as _loader

COMPILED = _loader.install()
"""Names of the modules that run in compiled form; empty in the plain form."""

# The loader comes first: it decides in which form everything below is imported.
from transfuse.clients import connect  # noqa: E402
from transfuse.errors import (  # noqa: E402
    FilesystemCorrupted,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
)
from transfuse.fs.base import Filesystem  # noqa: E402
from transfuse.fs.path import PathFilesystem  # noqa: E402
from transfuse.fs.request import Request  # noqa: E402
from transfuse.fs.tree import TreeFilesystem  # noqa: E402
from transfuse.fs.values import (  # noqa: E402
    ROOT_ID,
    Attr,
    AttrChanges,
    DirEntry,
    Entry,
    Features,
    FileRange,
    IoctlResult,
    Lock,
    Opened,
    Statfs,
)
from transfuse.server import Mount, Server, mount  # noqa: E402

__all__ = [
    "COMPILED",
    "ROOT_ID",
    "Attr",
    "AttrChanges",
    "DirEntry",
    "Entry",
    "Features",
    "FileRange",
    "Filesystem",
    "FilesystemCorrupted",
    "IoctlResult",
    "LocalProtocolError",
    "Lock",
    "Mount",
    "Opened",
    "PathFilesystem",
    "ProtocolError",
    "RemoteProtocolError",
    "Request",
    "Server",
    "Statfs",
    "TreeFilesystem",
    "connect",
    "mount",
]

__version__ = "0.1.0.dev0"
