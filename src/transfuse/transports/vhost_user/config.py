"""What a virtio-fs device is before anybody talks to it: configuration space, feature bits, numbers of queues.

Device 26 of virtio 1.3, section 5.11. Queue 0 is hiprio (FORGET and the like), requests go to queues 1 and up; the
notification queue that would be number 1 exists only with VIRTIO_FS_F_NOTIFICATION, which no driver knows, so it is
never offered.
"""

# The annotations of structures are read by wire.layout, where pad(4) and chars(36) are calls and not types.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

from transfuse.transports.vhost_user.messages import MAX_CONFIG, ProtocolFeature
from transfuse.transports.virtqueue.layout import (
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_RING_RESET,
    F_VERSION_1,
)
from transfuse.wire.layout import WireStruct, chars, u32

__all__ = [
    "DEVICE_ID",
    "F_LOG_ALL",
    "F_PROTOCOL_FEATURES",
    "HIPRIO",
    "MAX_QUEUES",
    "MAX_TAG",
    "VirtioFsConfig",
    "check_tag",
    "config_space",
    "feature_names",
    "protocol_features",
    "virtio_features",
]

DEVICE_ID = 26
HIPRIO = 0
"""Index of the queue for requests that must not wait behind others."""
MAX_TAG = 36
"""Bytes of a tag; one of exactly 36 has no NUL."""
MAX_QUEUES = 64
"""Most request queues. Linux uses at most one for each CPU; ring indices on the wire have 8 bits."""

F_LOG_ALL = 1 << 26
"""VHOST_F_LOG_ALL: every write to the guest's memory is marked in the dirty log."""
F_PROTOCOL_FEATURES = 1 << 30
"""VHOST_USER_F_PROTOCOL_FEATURES: the messages 15 and 16 may be used, and rings are enabled one by one."""

_NAMES = {
    F_LOG_ALL: "LOG_ALL",
    F_INDIRECT_DESC: "INDIRECT_DESC",
    F_EVENT_IDX: "EVENT_IDX",
    F_PROTOCOL_FEATURES: "PROTOCOL_FEATURES",
    F_VERSION_1: "VERSION_1",
    F_RING_PACKED: "RING_PACKED",
    F_IN_ORDER: "IN_ORDER",
    F_RING_RESET: "RING_RESET",
}


class VirtioFsConfig(WireStruct, order="<"):
    """struct virtio_fs_config, 44 bytes."""

    tag: chars(36)
    num_request_queues: u32
    notify_buf_size: u32
    """Has a meaning only with VIRTIO_FS_F_NOTIFICATION."""


def check_tag(tag: str) -> bytes:
    """The tag as it goes into the configuration space; ValueError for what Linux would not take: an empty one, one of
    more than 36 bytes, one with a newline."""
    raw = tag.encode()
    if not 0 < len(raw) <= MAX_TAG or b"\n" in raw or b"\0" in raw:
        raise ValueError(f"tag {tag!r}: 1 to {MAX_TAG} bytes without newlines belong")
    return raw


def config_space(tag: bytes, request_queues: int) -> bytes:
    """The configuration space, padded with zeros to the most a front-end can ask for. Where the front-end has a tag of
    its own (QEMU's vhost-user-fs has), it does not ask."""
    config = VirtioFsConfig(tag=tag.ljust(MAX_TAG, b"\0"), num_request_queues=request_queues)
    return config.encode().ljust(MAX_CONFIG, b"\0")


def virtio_features(*, log: bool, in_order: bool = False) -> int:
    """The feature bits of the device.

    `log`: writes to the guest's memory can be marked while others mark theirs. `in_order`: replies leave in the order
    of their requests. A driver that is offered this takes it, and one slow request then holds up all behind it, so it
    is not offered unless asked for.
    """
    features = F_PROTOCOL_FEATURES | F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX | F_RING_PACKED | F_RING_RESET
    if log:
        features |= F_LOG_ALL
    if in_order:
        features |= F_IN_ORDER
    return features


def protocol_features(*, tag: bool, log: bool, window: bool, device_state: bool) -> int:
    """The protocol features of the back-end. `tag`: there is one to be asked for; `log`: as above; `window`: there is a
    DAX window; `device_state`: what the peer holds can be saved and loaded."""
    offered = [
        ProtocolFeature.MQ,
        ProtocolFeature.REPLY_ACK,
        ProtocolFeature.BACKEND_REQ,
        ProtocolFeature.BACKEND_SEND_FD,
        ProtocolFeature.INFLIGHT_SHMFD,
        ProtocolFeature.RESET_DEVICE,
        ProtocolFeature.CONFIGURE_MEM_SLOTS,
        ProtocolFeature.STATUS,
    ]
    if log:
        offered.append(ProtocolFeature.LOG_SHMFD)
    if tag:
        offered.append(ProtocolFeature.CONFIG)
    if window:
        offered.append(ProtocolFeature.SHMEM)
    if device_state:
        offered.append(ProtocolFeature.DEVICE_STATE)
    return sum(feature.bit for feature in offered)


def feature_names(features: int) -> str:
    """Names of virtio feature bits, for logs."""
    return " ".join(_NAMES.get(1 << bit, f"bit{bit}") for bit in range(64) if features >> bit & 1) or "none"
