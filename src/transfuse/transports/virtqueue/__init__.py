"""Virtqueues, both sides, over memory that is shared with the other side. Knows nothing of vhost-user.

Memory, chains, queues and lanes exist twice: in plain Python (the modules of this package) and compiled
(transfuse._native.guestmem, virtqueue, virtdevice, virtdriver, lane), with the same names and behaviour. The objects of
one form do not work with those of the other, so whoever uses them imports them from here, and gets all of one form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transfuse.transports.virtqueue.chain import Chain
from transfuse.transports.virtqueue.device import DeviceQueue
from transfuse.transports.virtqueue.driver import DriverQueue
from transfuse.transports.virtqueue.lane import Lane
from transfuse.transports.virtqueue.memory import DirtyLog, GuestMemory, Mapping, Region
from transfuse.transports.virtqueue.packed import PackedDevice, PackedDriver
from transfuse.transports.virtqueue.split import SplitDevice, SplitDriver

if not TYPE_CHECKING:
    try:
        from transfuse._native import guestmem as _guestmem
        from transfuse._native import lane as _lane
        from transfuse._native import virtdevice as _virtdevice
        from transfuse._native import virtdriver as _virtdriver
        from transfuse._native import virtqueue as _virtqueue
    except ImportError:
        pass  # the plain form
    else:
        DirtyLog, GuestMemory = _guestmem.DirtyLog, _guestmem.GuestMemory
        Mapping, Region = _guestmem.Mapping, _guestmem.Region
        Chain, DeviceQueue = _virtqueue.Chain, _virtqueue.DeviceQueue
        PackedDevice, SplitDevice = _virtdevice.PackedDevice, _virtdevice.SplitDevice
        DriverQueue = _virtdriver.DriverQueue
        PackedDriver, SplitDriver = _virtdriver.PackedDriver, _virtdriver.SplitDriver
        Lane = _lane.Lane

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
