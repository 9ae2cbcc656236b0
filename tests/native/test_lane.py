"""What is particular to the compiled lane; what it shares with the plain one is tested in transports/virtqueue."""

from __future__ import annotations

import errno
import gc
import os
import weakref

import pytest

from transfuse.transports.virtqueue.layout import F_VERSION_1
from transfuse.wire.encode import RangeReply, RangeWrite
from transports.virtqueue.rings import Arena, Rings, form_named

native = pytest.importorskip("transfuse._native.lane", reason="the plain form runs")


@pytest.fixture
def arena():
    arena = Arena(form_named("compiled"), 1 << 22)
    yield arena
    arena.close()


def chain_of(rings, readable=100, room=64):
    at = rings.arena.room(readable + room)
    assert rings.driver.add([(at, readable)], [(at + readable, room)], None)
    rings.driver.publish()
    return rings.device.pop()


@pytest.mark.parametrize("order", ["<", ">"])
def test_headers_are_those_of_the_plain_form(arena, order):
    """Error and data headers that C packs, against struct's."""
    rings = Rings(arena, F_VERSION_1, 8)
    lane = native.Lane(rings.device, 4096)
    fd = os.memfd_create("data", os.MFD_CLOEXEC)
    os.write(fd, b"0123456789")
    target = os.memfd_create("target", os.MFD_CLOEXEC)
    for unique in (0, 1, 2**63 + 5, 2**64 - 1):
        for message, expected in (
            (reply := RangeReply(unique, order, fd, 2, 30), reply.header(8) + b"23456789"),
            (RangeReply(unique, order, fd, 2**64 - 1, 30), reply.error(errno.EINVAL)),
            (RangeReply(unique, order, -1, 0, 30), reply.error(errno.EBADF)),
            (RangeReply(unique, order, fd, 0, 49), reply.error(errno.EIO)),
            (write := RangeWrite(unique, order, target, 20, 20), write.written(20)),
            (RangeWrite(unique, order, target, 2**64 - 1, 20), write.error(errno.EINVAL)),
            (RangeWrite(unique, order, target, 20, 21), write.error(errno.EIO)),
        ):
            chain = chain_of(rings)
            lane.put(chain, message)
            _, written = rings.driver.take_used()
            at = rings.arena._top - 64
            assert rings.arena.bytes[at : at + written] == expected
    lane.close()
    os.close(fd)
    os.close(target)


def test_a_lane_lets_go_of_everything(arena):
    """Fds and memory, without a collection where close() was called, with one where it was not."""
    before = len(os.listdir("/proc/self/fd"))
    rings = Rings(arena, F_VERSION_1, 8)
    lane = native.Lane(rings.device, 4096)
    assert len(os.listdir("/proc/self/fd")) == before + 3
    lane.close()
    assert len(os.listdir("/proc/self/fd")) == before
    lane = native.Lane(rings.device, 4096)
    region = weakref.ref(arena.memory.regions[0])
    del lane, rings
    arena.memory = None
    gc.collect()
    assert region() is None
    assert len(os.listdir("/proc/self/fd")) == before
