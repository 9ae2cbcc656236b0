"""The public conformance suite with our client before virtiofsd (the one in C, from Debian's qemu-system-common): the
same cases that our own server passes over the same wire. What differs is listed here, and in docs/virtiofsd.md.
"""

from __future__ import annotations

import gc
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from transfuse.client import Client
from transfuse.testing import conformance
from transfuse.testing.client_volume import ClientVolume
from transfuse.transports.vhost_user.driver import VhostUserClientTransport

VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
START_LIMIT_S = 20.0
LACKS = frozenset({"getlk", "setlk", "tmpfile", "ioctl", "poll", "bmap", "statx"})
"""Operations that this virtiofsd does not have."""
DIFFERENT: dict[str, str] = {}
"""Case → what virtiofsd does instead."""

pytestmark = [
    pytest.mark.interop,
    pytest.mark.needs("root"),
    pytest.mark.skipif(not VIRTIOFSD.exists(), reason=f"needs the program {VIRTIOFSD}: not found"),
]


def connected(path: Path) -> VhostUserClientTransport:
    """A wire to a server that may not listen yet."""
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            return VhostUserClientTransport(path)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


class TestVirtiofsdConforms(conformance.ReadWrite):
    @pytest.fixture
    def volume(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ClientVolume]:
        case = request.function
        different = DIFFERENT.get(case.__name__)
        if different is not None:
            pytest.skip(f"virtiofsd differs: {different}")
        for operation in getattr(case, "operations_needed", ()):
            if set(operation.split("|")) <= LACKS:
                pytest.skip(f"virtiofsd has no {operation}()")
        source = tmp_path / "source"
        source.mkdir()
        path = tmp_path / "fs.sock"
        words = [VIRTIOFSD, "-f", f"--socket-path={path}", "-o", f"source={source}", "-o", "sandbox=chroot,xattr,flock"]
        umask = os.umask(0)
        server = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        try:
            with Client(connected(path)) as client:
                volume = ClientVolume(client)
                self.populate(volume)
                yield volume
                gc.collect()
        finally:
            server.kill()  # one that nobody connected to heeds no SIGTERM
            server.wait(20)
            os.umask(umask)
