from __future__ import annotations

import gc

import pytest

from transfuse.client import Client
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.server import Server
from transfuse.testing.client_volume import ClientVolume
from transfuse.testing.direct import DirectVolume
from transfuse.testing.ledger import Ledger
from transfuse.testing.model import ALL_OPERATIONS, RandomOperations
from transfuse.transports.memory import MemoryTransport


@pytest.mark.parametrize("exact_holes", [True, False])
def test_random_operations_through_client_and_server_change_nothing(rng, exact_holes):
    ledger = Ledger(MemoryFilesystem())
    transport = MemoryTransport()
    with Server(ledger, transport), Client(transport.client) as client:
        trial = ClientVolume(client)
        operations = [name for name in ALL_OPERATIONS if name != "access"]
        model = DirectVolume(MemoryFilesystem())
        RandomOperations(model, trial, rng, operations=operations, exact_holes=exact_holes).run(5000)
        gc.collect()
        client.drop_caches()
    assert ledger.problems() == [] and ledger.requests > 5000


def test_an_identity_is_that_of_the_requests():
    fs = MemoryFilesystem(root_mode=0o777)
    transport = MemoryTransport()
    with Server(fs, transport), Client(transport.client) as client:
        volume = ClientVolume(client)
        with volume.identity(1001, 1002):
            volume.write_bytes("/f", b"")
        volume.write_bytes("/g", b"")
    direct = DirectVolume(fs)
    assert (direct.stat("/f").uid, direct.stat("/f").gid, direct.stat("/g").uid) == (1001, 1002, 0)
