"""The other end of a FUSE connection, as a library: it does what Linux does for a mount, without a kernel.

`Client` is the front door (module client). Below it: `exchange` sends and waits, `caches` believes what the server
allows to believe and gives lookups back, `walk` finds paths, `attrs` turns attributes into what os.stat() shows,
`openfile` and `files` are open files, `directories` are listings, `events` applies the server's notifications.
"""

from __future__ import annotations

from transfuse.client.attrs import StatxResult
from transfuse.client.client import Client
from transfuse.client.directories import DirEntry
from transfuse.client.files import RawFile
from transfuse.client.openfile import OpenFile
from transfuse.session.client import Credentials

__all__ = ["Client", "Credentials", "DirEntry", "OpenFile", "RawFile", "StatxResult"]
