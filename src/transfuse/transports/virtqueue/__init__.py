"""Virtqueues, both sides, over memory that is shared with the other side. Knows nothing of vhost-user.

Memory, chains, queues and lanes exist twice: in plain Python (the modules of this package) and compiled
(transfuse._native.virtqueue), with the same names and behaviour. The objects of one form do not work with those of the
other, so whoever uses them imports from here, and gets one form.
"""

from __future__ import annotations

from transfuse.transports.virtqueue.chain import Chain
from transfuse.transports.virtqueue.device import DeviceQueue
from transfuse.transports.virtqueue.driver import DriverQueue
from transfuse.transports.virtqueue.lane import Lane
from transfuse.transports.virtqueue.memory import DirtyLog, GuestMemory, Mapping, Region
from transfuse.transports.virtqueue.packed import PackedDevice, PackedDriver
from transfuse.transports.virtqueue.split import SplitDevice, SplitDriver

__all__ = [
    "Chain",
    "DeviceQueue",
    "DirtyLog",
    "DriverQueue",
    "GuestMemory",
    "Lane",
    "Mapping",
    "PackedDevice",
    "PackedDriver",
    "Region",
    "SplitDevice",
    "SplitDriver",
]
