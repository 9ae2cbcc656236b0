"""What is particular to the compiled queues; what they share with the plain ones is tested in transports/virtqueue."""

from __future__ import annotations

import threading

import pytest

from transfuse.errors import RingError
from transfuse.transports import virtqueue
from transfuse.transports.virtqueue import layout
from transfuse.transports.virtqueue.layout import F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1
from transports.virtqueue.rings import Arena, Rings, form_named

native = pytest.importorskip("transfuse._native.virtqueue", reason="the plain form runs")


@pytest.fixture
def arena():
    arena = Arena(form_named("compiled"), 1 << 22)
    yield arena
    arena.close()


def test_both_forms_know_the_same_numbers():
    assert {name: getattr(layout, name) for name in native.LIMITS} == native.LIMITS


def test_the_package_gives_the_compiled_form():
    assert virtqueue.Chain is native.Chain
    assert {getattr(virtqueue, name).__module__.rpartition(".")[0] for name in virtqueue.__all__} == {
        "transfuse._native"
    }


def test_chains_and_queues_are_not_made_by_hand():
    for kind in (native.Chain, native.DeviceQueue):
        with pytest.raises(TypeError):
            kind()


def test_a_chain_belongs_to_one_queue(arena):
    first, second = (Rings(arena, F_VERSION_1, 4) for _ in range(2))
    at = arena.room(8)
    first.driver.add([(at, 8)], [(at, 8)], None)
    first.driver.publish()
    chain = first.device.pop()
    with pytest.raises(ValueError, match="another queue"):
        second.device.push(chain, 0)
    lane = arena.form.Lane(second.device, 4096)
    with pytest.raises(ValueError, match="another queue"):
        lane.put(chain, b"")
    lane.close()
    assert first.device.push(chain, 8)


def test_a_queue_is_set_up_once(arena):
    rings = Rings(arena, F_VERSION_1, 4)
    with pytest.raises(ValueError, match="once"):
        rings.device.__init__(arena.memory, 4, *rings.users, F_VERSION_1, 0)
    with pytest.raises(ValueError, match="once"):
        rings.driver.__init__(arena.memory, 4, *rings.users, F_VERSION_1)
    with pytest.raises(ValueError, match="does not change"):
        arena.memory.__init__([])
    with pytest.raises(ValueError, match="mapped already"):
        arena.memory.regions[0].__init__(0, 0, 4096, arena.fd, 0)


@pytest.mark.parametrize("features", [F_VERSION_1, F_VERSION_1 | F_RING_PACKED])
def test_a_ring_in_a_region_that_is_mapped_askew_is_refused(arena, features):
    """Its addresses are multiples of 16, but not where this host has it: loads there would not be atomic."""
    form = arena.form
    askew = form.Region(0x1_0000, 0x1_0000, 8192, arena.fd, 8)
    kind = form.PackedDevice if features & F_RING_PACKED else form.SplitDevice
    with pytest.raises(RingError, match="multiple of 16"):
        kind(form.GuestMemory([askew]), 8, 0x1_0000, 0x1_1000, 0x1_1800, features, 0)


@pytest.mark.parametrize("features", [F_VERSION_1, F_VERSION_1 | F_RING_PACKED])
def test_an_inflight_region_that_is_mapped_askew_is_refused(arena, features):
    """Its 64-bit words must be written by one store each, for a crash in between."""
    rings = Rings(arena, features, 4, device=False)
    with pytest.raises(RingError, match="multiple of 8"):
        rings.attach(inflight=memoryview(bytearray(4096))[4:])


@pytest.mark.parametrize("order", [0, F_IN_ORDER])
@pytest.mark.parametrize("kind", [0, F_RING_PACKED])
def test_threads_may_pop_and_push_together(arena, kind, order):
    """Four threads serve, one drives, all of one process: each request is answered once."""
    rings = Rings(arena, F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | kind | order, 64, table_entries=4)
    at = arena.room(8)
    total = 20_000
    stop = threading.Event()
    failures = []

    def serve():
        try:
            while not stop.is_set():
                chain = rings.device.pop()
                if chain is not None:
                    chain.write(0, b"answered")
                    assert rings.device.push(chain, 8)
                    rings.device.should_notify()
                elif not rings.device.arm():
                    stop.wait(0.0001)
        except BaseException as error:  # noqa: BLE001  shown by the main thread
            failures.append(error)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    done: list[int] = []
    sent = 0
    try:
        while len(done) < total and not failures:
            while sent < total and rings.driver.add([(at, 4), (at, 4)], [(at, 8)], sent):
                sent += 1
            rings.driver.publish()
            while (got := rings.driver.take_used()) is not None:
                assert got[1] == 8
                done.append(got[0])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert sorted(done) == list(range(total))
    if order:
        assert done == list(range(total))
