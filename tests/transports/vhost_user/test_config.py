"""What the device says of itself."""

from __future__ import annotations

import pytest

from transfuse.transports.vhost_user import config
from transfuse.transports.vhost_user.messages import ProtocolFeature
from transfuse.transports.virtqueue.layout import F_IN_ORDER, F_VERSION_1


def test_configuration_space_in_bytes() -> None:
    raw = config.config_space(b"share", 3)
    assert raw[:36] == b"share" + bytes(31)  # tag
    assert raw[36:40] == b"\3\0\0\0"  # num_request_queues, little-endian on any host
    assert raw[40:] == bytes(216)  # notify_buf_size, and nothing


def test_configuration_space_is_44_bytes() -> None:
    assert config.VirtioFsConfig.SIZE == 44


def test_longest_tag_has_no_nul() -> None:
    tag = config.check_tag("x" * 36)
    assert config.config_space(tag, 1)[:37] == b"x" * 36 + b"\1"


@pytest.mark.parametrize("tag", ["", "x" * 37, "ä" * 19, "two\nlines", "nul\0"])
def test_tags_that_linux_would_not_take_are_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="tag"):
        config.check_tag(tag)


def test_in_order_and_logging_are_offered_only_on_demand() -> None:
    plain = config.virtio_features(log=False)
    assert plain & F_VERSION_1
    assert plain & config.F_PROTOCOL_FEATURES
    assert not plain & (F_IN_ORDER | config.F_LOG_ALL)
    assert config.virtio_features(log=True, in_order=True) ^ plain == F_IN_ORDER | config.F_LOG_ALL


def offered(**wanted: bool) -> set[ProtocolFeature]:
    given = {"tag": False, "log": False, "window": False, "device_state": False, **wanted}
    bits = config.protocol_features(**given)
    return {feature for feature in ProtocolFeature if bits & feature.bit}


NEVER = {
    ProtocolFeature.XEN_MMAP,
    ProtocolFeature.GPA_ADDRESSES,
    ProtocolFeature.INBAND_NOTIFICATIONS,
    ProtocolFeature.PAGEFAULT,
    ProtocolFeature.GET_VRING_BASE_INFLIGHT,
    ProtocolFeature.CROSS_ENDIAN,
}


def test_what_is_not_done_is_never_offered() -> None:
    assert not offered(tag=True, log=True, window=True, device_state=True) & NEVER


@pytest.mark.parametrize(
    ("wanted", "feature"),
    [
        ("tag", ProtocolFeature.CONFIG),
        ("log", ProtocolFeature.LOG_SHMFD),
        ("window", ProtocolFeature.SHMEM),
        ("device_state", ProtocolFeature.DEVICE_STATE),
    ],
)
def test_protocol_features_that_depend(wanted: str, feature: ProtocolFeature) -> None:
    assert offered(**{wanted: True}) - offered() == {feature}


def test_features_have_names() -> None:
    assert config.feature_names(F_VERSION_1 | 1 << 28 | 1 << 33) == "INDIRECT_DESC VERSION_1 bit33"
    assert config.feature_names(0) == "none"
