"""transfuse: filesystems in user space, across every boundary. Both ends of the FUSE protocol and every wire between."""

from __future__ import annotations

from transfuse._native import loader as _loader

COMPILED = _loader.install()
"""Names of the modules that run in compiled form; empty in the plain form."""

from transfuse.errors import FilesystemCorrupted, LocalProtocolError, ProtocolError, RemoteProtocolError
from transfuse.fs.base import Filesystem
from transfuse.fs.request import Request
from transfuse.fs.values import (
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
from transfuse.server import Mount, Server, mount

__version__ = "0.1.0"
