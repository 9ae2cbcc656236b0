"""Two processes, one memory: what memory ordering and wake-ups are for.

The child serves the device's side, this process drives. Every request carries bytes that differ from those of the
slot's last use, and so does its answer: whoever reads too early finds the old ones. A side sleeps on its eventfd as
soon as arm() allows it, so a kick or call that is left out wrongly stops everything.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import struct
import traceback

import pytest

from transfuse.transports.virtqueue.layout import F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1
from transports.virtqueue.rings import Arena, Rings, form_named

REQUESTS = 1500
WORDS = 6

KINDS = [
    pytest.param(F_VERSION_1 | packed | rest, id=f"{'packed' if packed else 'split'}-{name}")
    for packed, (name, rest) in itertools.product(
        (0, F_RING_PACKED),
        (
            ("plain", 0),
            ("event", F_EVENT_IDX),
            ("event-indirect", F_EVENT_IDX | F_INDIRECT_DESC),
            ("event-ordered", F_EVENT_IDX | F_IN_ORDER),
            ("ordered", F_IN_ORDER),
        ),
    )
]


def wait(fd):
    """Sleep until told."""
    assert select.select([fd], [], [], 20)[0], "never told"
    os.eventfd_read(fd)


def serve(device, kick, call, rng):
    """The device: answers each request with its words plus one, sometimes several at once, sometimes out of turn."""
    held = []
    served = 0
    buffer = bytearray(8 * WORDS)
    while served < REQUESTS:
        chain = device.pop()
        if chain is not None:
            held.append(chain)
        while held and (chain is None or rng.randrange(3)):
            one = held.pop(rng.randrange(len(held)))
            one.copy_in(buffer, 0, 0, len(buffer))
            words = struct.unpack(f"<{WORDS}Q", buffer)
            assert len(set(words)) == 1, f"half a request: {words}"
            one.write(0, struct.pack(f"<{WORDS}Q", *[words[0] + 1] * WORDS))
            device.push(one, 8 * WORDS)
            served += 1
            if not rng.randrange(4) and device.should_notify():
                os.eventfd_write(call, 1)
        if chain is None:
            if device.should_notify():
                os.eventfd_write(call, 1)
            if served < REQUESTS and not device.arm():
                wait(kick)
    if device.should_notify():
        os.eventfd_write(call, 1)


@pytest.mark.parametrize("features", KINDS)
@pytest.mark.parametrize("size", [4, 64])
@pytest.mark.parametrize(("ours", "theirs"), [("compiled", "compiled"), ("plain", "compiled"), ("compiled", "plain")])
def test_no_request_is_lost_torn_or_left_asleep(features, size, ours, theirs, rng):
    form, other = form_named(ours), form_named(theirs)
    arena = Arena(form, 1 << 20)
    kick, call = (os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2))
    rings = Rings(arena, features, size, device=False, table_entries=4)
    slots = [(arena.room(16, 1), arena.room(32, 1), arena.room(8 * WORDS, 1)) for _ in range(size)]
    child = os.fork()
    if not child:
        status = 1
        try:
            arena.form = other
            arena.memory = Arena(other, arena.size, os.dup(arena.fd)).memory
            serve(rings.attach(), kick, call, rng)
            status = 0
        except BaseException:  # noqa: BLE001  a child of a test must not go on as a second pytest
            traceback.print_exc()
        finally:
            os._exit(status)
    try:
        free = list(range(size))
        sent = done = 0
        driver = rings.driver
        while done < REQUESTS:
            while free and sent < REQUESTS:
                first, second, third = slots[free[-1]]
                data = struct.pack("<Q", sent) * WORDS
                arena.write(first, data[:16])
                arena.write(second, data[16:])
                if not driver.add([(first, 16), (second, 32)], [(third, 8 * WORDS)], (sent, free[-1])):
                    break
                free.pop()
                sent += 1
                if not sent % 7:
                    driver.publish()
            driver.publish()
            if driver.needs_kick():
                os.eventfd_write(kick, 1)
            while (got := driver.take_used()) is not None:
                (number, slot), written = got
                assert written == 8 * WORDS
                assert arena.read(slots[slot][2], written) == struct.pack("<Q", number + 1) * WORDS
                free.append(slot)
                done += 1
            if done < sent and not driver.arm():
                wait(call)
        _, status = os.waitpid(child, 0)
        child = 0
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        rings.driver = driver = None
        arena.close()
        os.close(kick)
        os.close(call)
