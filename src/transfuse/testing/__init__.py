"""Equipment for testing filesystems and peers, with no kernel and no mount.

`connect` puts a client before a filesystem and watches both. `ScriptedPeer` is a server whose answers a test writes,
`CountingTransport` counts what a client asks, `Ledger` keeps a peer's books. Below: `conformance` and `posix`, suites
of cases for any filesystem and any mount.
"""

from __future__ import annotations

from transfuse.testing.connecting import connect
from transfuse.testing.counts import CountingTransport
from transfuse.testing.scripted import ScriptedPeer

__all__ = ["CountingTransport", "ScriptedPeer", "connect"]
