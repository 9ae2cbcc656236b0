"""A directory of this machine as a filesystem: complete pass-through.

    transfuse.mount(HostDirectory("/srv/data"), "/mnt")

`core` holds what is open and finds inodes again, `nodes` remembers them, `names`, `files` and `attributes` are the
operations, `credentials` is whose rights apply, `locks` and `handles` what hangs on open files, `state` writes all that
down for another server, `syscalls` has what the os module lacks.
"""

from __future__ import annotations

from transfuse.filesystems.hostdir.attributes import Attributes
from transfuse.filesystems.hostdir.core import CACHE_MODES, Core
from transfuse.filesystems.hostdir.files import Files
from transfuse.filesystems.hostdir.names import Names
from transfuse.filesystems.hostdir.state import State

__all__ = ["CACHE_MODES", "HostDirectory"]


class HostDirectory(Names, Files, Attributes, State):
    __doc__ = Core.__doc__
