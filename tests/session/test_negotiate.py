"""INIT as a function: each rule of what is agreed to, over minors and over what peer, filesystem and transport have."""

from __future__ import annotations

import errno
from dataclasses import fields, replace

import pytest

from transfuse.errors import RemoteProtocolError
from transfuse.fs.base import OPERATION_NAMES
from transfuse.fs.values import Features
from transfuse.session.negotiate import RULES, Connection, Limits, negotiate
from transfuse.wire import flags as f
from transfuse.wire.structs import InitIn, InitOut

ALL = sum(f.INIT_NAMES)
EVERYTHING = replace(
    Features(), **{field.name: True for field in fields(Features) if isinstance(getattr(Features(), field.name), bool)}
)
"""Every wish a filesystem can have (write-back wins over passthrough, explicit over automatic invalidation)."""
KERNEL = Limits(passthrough=True, default_permissions=True)


def init(
    flags: int = ALL,
    minor: int = 45,
    features: Features | None = None,
    operations: frozenset[str] = OPERATION_NAMES,
    limits: Limits = KERNEL,
    major: int = 7,
    readahead: int = 1 << 17,
    order: str = "<",
) -> tuple[InitOut, Connection]:
    offer = InitIn(
        major=major, minor=minor, max_readahead=readahead, flags=flags & 0xFFFFFFFF, flags2=flags >> 32
    )
    return negotiate(offer, order, operations, Features() if features is None else features, limits)


def agreed(**arguments: object) -> int:
    reply, connection = init(**arguments)  # type: ignore[arg-type]
    flags = reply.flags | reply.flags2 << 32
    assert flags == connection.flags
    return flags


# -- versions


@pytest.mark.parametrize("minor", range(27, 46))
def test_connection_speaks_the_peers_minor(minor: int) -> None:
    reply, connection = init(minor=minor)
    assert (reply.major, reply.minor) == (7, 45)
    assert (connection.minor, connection.peer_minor) == (minor, minor)


@pytest.mark.parametrize("minor", [46, 99, 0xFFFFFFFF])
def test_connection_with_a_newer_peer_speaks_our_minor(minor: int) -> None:
    reply, connection = init(minor=minor)
    assert (reply.minor, connection.minor, connection.peer_minor) == (45, 45, minor)


@pytest.mark.parametrize(("major", "minor"), [(7, 26), (7, 0), (6, 45), (0, 0)])
def test_older_peers_are_refused_with_eproto(major: int, minor: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"{major}\.{minor}; 7\.27 is the oldest") as caught:
        init(major=major, minor=minor)
    assert caught.value.errno == errno.EPROTO


@pytest.mark.parametrize("major", [8, 0xFFFFFFFF])
def test_newer_major_is_answered_with_our_version_alone(major: int) -> None:
    reply, connection = init(major=major, minor=0)
    assert reply == InitOut(major=7, minor=45)
    assert connection.minor == 0


@pytest.mark.parametrize("order", "<>")
def test_byte_order_belongs_to_the_connection(order: str) -> None:
    assert init(order=order)[1].order == order


# -- flags


@pytest.mark.parametrize("bit", f.INIT_NAMES.values())
def test_nothing_is_agreed_that_was_not_offered(bit: str) -> None:
    value = next(flag for flag, name in f.INIT_NAMES.items() if name == bit)
    assert not agreed(flags=ALL & ~value, features=EVERYTHING) & value


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f.INIT_NAMES[rule.bit])
def test_flag_is_agreed_where_everybody_has_it(rule: object) -> None:
    bit = rule.bit  # type: ignore[attr-defined]
    features = EVERYTHING
    if bit == f.FUSE_AUTO_INVAL_DATA:
        features = replace(features, explicit_inval_data=False)
    assert agreed(features=features) & bit


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule.feature], ids=lambda rule: f.INIT_NAMES[rule.bit]
)
def test_flag_is_off_without_the_wish(rule: object) -> None:
    features = replace(EVERYTHING, **{rule.feature: False})  # type: ignore[attr-defined]
    assert not agreed(features=features) & rule.bit  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("bit", "method"),
    [(rule.bit, method) for rule in RULES for method in sorted(rule.needs)]
    + [(f.FUSE_DO_READDIRPLUS, "readdir"), (f.FUSE_DO_READDIRPLUS, "lookup"), (f.FUSE_PASSTHROUGH, "open")],
    ids=lambda value: f.INIT_NAMES[value] if isinstance(value, int) else value,
)
def test_flag_is_off_without_the_method(bit: int, method: str) -> None:
    features = replace(EVERYTHING, writeback_cache=bit == f.FUSE_WRITEBACK_CACHE, no_open=False)
    assert agreed(features=features) & bit
    assert not agreed(features=features, operations=OPERATION_NAMES - {method}) & bit


@pytest.mark.parametrize(
    ("bit", "since"),
    [
        (f.FUSE_EXPLICIT_INVAL_DATA, 30),
        (f.FUSE_NO_OPENDIR_SUPPORT, 29),
        (f.FUSE_MAX_PAGES, 28),
        (f.FUSE_CACHE_SYMLINKS, 28),
        (f.FUSE_SUBMOUNTS, 32),
        (f.FUSE_HANDLE_KILLPRIV_V2, 33),
        (f.FUSE_SETXATTR_EXT, 33),
        (f.FUSE_INIT_EXT, 36),
        (f.FUSE_CREATE_SUPP_GROUP, 38),
        (f.FUSE_HAS_EXPIRE_ONLY, 38),
        (f.FUSE_DIRECT_IO_ALLOW_MMAP, 39),
        (f.FUSE_HAS_RESEND, 40),
        (f.FUSE_PASSTHROUGH, 40),
        (f.FUSE_ALLOW_IDMAP, 41),
        (f.FUSE_REQUEST_TIMEOUT, 43),
    ],
    ids=lambda value: f.INIT_NAMES.get(value, str(value)),
)
def test_flag_is_off_for_a_minor_that_does_not_have_it(bit: int, since: int) -> None:
    features = replace(EVERYTHING, writeback_cache=False, no_open=False, request_timeout_s=60)
    assert agreed(features=features, minor=since) & bit
    assert not agreed(features=features, minor=since - 1) & bit


def test_flags2_is_not_read_without_init_ext() -> None:
    flags = agreed(flags=ALL & ~f.FUSE_INIT_EXT, features=EVERYTHING)
    assert flags >> 32 == 0


def test_init_ext_is_answered_where_it_was_offered() -> None:
    assert agreed(flags=f.FUSE_INIT_EXT) == f.FUSE_INIT_EXT
    assert not agreed(flags=0)


def test_reserved_bit_is_never_answered() -> None:
    assert not agreed(flags=ALL | f.FUSE_INIT_RESERVED, features=EVERYTHING) & f.FUSE_INIT_RESERVED


def test_bits_that_nobody_knows_are_not_answered() -> None:
    assert not agreed(flags=ALL | 0xFFFFF << 43, features=EVERYTHING) >> 43


@pytest.mark.parametrize(
    "bit",
    [
        f.FUSE_SECURITY_CTX,
        f.FUSE_OVER_IO_URING,
        f.FUSE_MAP_ALIGNMENT,
        f.FUSE_HAS_INODE_DAX,
        f.FUSE_HANDLE_KILLPRIV,
        f.FUSE_NO_EXPORT_SUPPORT,
    ],
    ids=lambda bit: f.INIT_NAMES[bit],
)
def test_what_is_not_implemented_is_not_agreed(bit: int) -> None:
    assert not agreed(features=EVERYTHING) & bit


# -- flags that exclude one another


def test_passthrough_is_off_with_writeback() -> None:
    both = replace(Features(), passthrough=True, writeback_cache=True)
    flags = agreed(features=both)
    assert flags & f.FUSE_WRITEBACK_CACHE
    assert not flags & f.FUSE_PASSTHROUGH


def test_passthrough_stays_where_writeback_was_not_offered() -> None:
    both = replace(Features(), passthrough=True, writeback_cache=True)
    assert agreed(features=both, flags=ALL & ~f.FUSE_WRITEBACK_CACHE) & f.FUSE_PASSTHROUGH


@pytest.mark.parametrize(("depth", "expected"), [(0, False), (1, True), (2, True), (3, False)])
def test_passthrough_needs_a_stack_depth_that_linux_takes(depth: int, expected: bool) -> None:
    reply, connection = init(features=replace(Features(), passthrough=True, max_stack_depth=depth))
    assert connection.has(f.FUSE_PASSTHROUGH) is expected
    assert reply.max_stack_depth == (depth if expected else 0)


def test_passthrough_needs_a_kernel() -> None:
    features = replace(Features(), passthrough=True)
    assert not agreed(features=features, limits=Limits()) & f.FUSE_PASSTHROUGH


def test_passthrough_is_off_with_no_open() -> None:
    assert not agreed(features=replace(Features(), passthrough=True, no_open=True)) & f.FUSE_PASSTHROUGH


def test_explicit_invalidation_excludes_automatic() -> None:
    flags = agreed(features=replace(Features(), explicit_inval_data=True))
    assert flags & f.FUSE_EXPLICIT_INVAL_DATA
    assert not flags & f.FUSE_AUTO_INVAL_DATA


def test_without_notifications_automatic_invalidation_stays() -> None:
    flags = agreed(features=replace(Features(), explicit_inval_data=True), limits=Limits(notify=False))
    assert not flags & f.FUSE_EXPLICIT_INVAL_DATA
    assert flags & f.FUSE_AUTO_INVAL_DATA


@pytest.mark.parametrize("bit", [f.FUSE_HAS_RESEND, f.FUSE_HAS_EXPIRE_ONLY], ids=lambda bit: f.INIT_NAMES[bit])
def test_notification_flags_need_notifications(bit: int) -> None:
    assert agreed() & bit
    assert not agreed(limits=Limits(notify=False)) & bit


def test_idmapped_mounts_need_default_permissions() -> None:
    # Otherwise Linux takes the whole INIT for bad, and every request fails with ECONNREFUSED.
    wish = replace(Features(), allow_idmap=True)
    assert agreed(features=wish) & f.FUSE_ALLOW_IDMAP
    assert not agreed(features=wish, limits=Limits()) & f.FUSE_ALLOW_IDMAP


def test_idmapped_mounts_are_off_where_only_the_owner_may_in() -> None:
    # Most requests of an idmapped connection have no caller (uid 2**32 - 1).
    wish = replace(Features(), allow_idmap=True)
    assert not agreed(features=wish, limits=Limits(default_permissions=True, owner=1000)) & f.FUSE_ALLOW_IDMAP


def test_posix_acl_implies_default_permissions_for_idmapped_mounts() -> None:
    assert agreed(features=replace(Features(), allow_idmap=True, posix_acl=True), limits=Limits()) & f.FUSE_ALLOW_IDMAP


@pytest.mark.parametrize(
    ("wish", "offered", "flags", "granted"),
    [
        (None, f.FUSE_DO_READDIRPLUS | f.FUSE_READDIRPLUS_AUTO, f.FUSE_DO_READDIRPLUS | f.FUSE_READDIRPLUS_AUTO, None),
        (None, f.FUSE_DO_READDIRPLUS, f.FUSE_DO_READDIRPLUS, True),
        (True, f.FUSE_DO_READDIRPLUS | f.FUSE_READDIRPLUS_AUTO, f.FUSE_DO_READDIRPLUS, True),
        (False, f.FUSE_DO_READDIRPLUS | f.FUSE_READDIRPLUS_AUTO, 0, False),
        (None, f.FUSE_READDIRPLUS_AUTO, 0, False),
        (True, 0, 0, False),
    ],
)
def test_readdirplus(wish: bool | None, offered: int, flags: int, granted: bool | None) -> None:
    features = replace(Features(), readdirplus=wish)
    _, connection = init(features=features, flags=offered)
    assert connection.flags & (f.FUSE_DO_READDIRPLUS | f.FUSE_READDIRPLUS_AUTO) == flags
    assert connection.features.readdirplus is granted


# -- what the filesystem is told


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule.feature], ids=lambda rule: f.INIT_NAMES[rule.bit]
)
def test_wish_that_was_not_granted_is_false(rule: object) -> None:
    connection = init(features=EVERYTHING, flags=ALL & ~rule.bit)[1]  # type: ignore[attr-defined]
    assert getattr(connection.features, rule.feature) is False  # type: ignore[attr-defined]


def test_filesystems_own_features_are_left_alone() -> None:
    features = replace(EVERYTHING)
    init(features=features, flags=0)
    assert features == EVERYTHING


def test_passthrough_is_granted_only_if_agreed() -> None:
    wish = replace(Features(), passthrough=True)
    assert init(features=wish)[1].features.passthrough is True
    assert init(features=wish, minor=39)[1].features.passthrough is False


# -- sizes


@pytest.mark.parametrize(
    ("wish", "transport", "flags", "max_write", "max_pages"),
    [
        (1 << 20, 1 << 20, ALL, 1 << 20, 256),
        (1 << 24, 1 << 20, ALL, 1 << 20, 256),
        (1 << 20, 1 << 17, ALL, 1 << 17, 32),
        (4097, 1 << 20, ALL, 4097, 2),
        (0, 1 << 20, ALL, 4096, 1),
        (1 << 20, 1 << 20, ALL & ~f.FUSE_MAX_PAGES, 1 << 17, 0),
        (8192, 1 << 20, ALL & ~f.FUSE_MAX_PAGES, 8192, 0),
    ],
)
def test_write_and_page_limits(wish: int, transport: int, flags: int, max_write: int, max_pages: int) -> None:
    reply, connection = init(
        features=replace(Features(), max_write=wish), limits=Limits(max_write=transport), flags=flags
    )
    assert (reply.max_write, reply.max_pages) == (max_write, max_pages)
    assert connection.max_write == max_write


@pytest.mark.parametrize(("offered", "wish", "expected"), [(0, 1 << 20, 0), (1 << 17, 1 << 20, 1 << 17), (5, 3, 3)])
def test_readahead_is_the_smaller(offered: int, wish: int, expected: int) -> None:
    reply, connection = init(features=replace(Features(), max_readahead=wish), readahead=offered)
    assert reply.max_readahead == connection.max_readahead == expected


def test_background_limits_and_time_granularity_are_the_filesystems() -> None:
    features = replace(Features(), max_background=33, congestion_threshold=22, time_gran_ns=1000)
    reply = init(features=features)[0]
    assert (reply.max_background, reply.congestion_threshold, reply.time_gran) == (33, 22, 1000)


@pytest.mark.parametrize(("flags", "expected"), [(ALL, 60), (ALL & ~f.FUSE_REQUEST_TIMEOUT, 0)])
def test_request_timeout_needs_the_peer(flags: int, expected: int) -> None:
    reply, connection = init(features=replace(Features(), request_timeout_s=60), flags=flags)
    assert reply.request_timeout == connection.features.request_timeout_s == expected


@pytest.mark.parametrize(
    ("served", "flags", "minor", "expected"),
    [
        (True, ALL, 45, True),
        (False, ALL, 45, False),
        (True, ALL & ~f.FUSE_OVER_IO_URING, 45, False),
        (True, ALL, 41, False),
    ],
)
def test_io_uring_needs_the_peer_and_a_transport_that_serves_its_queues(
    served: bool, flags: int, minor: int, expected: bool
) -> None:
    connection = init(limits=Limits(io_uring=served), flags=flags, minor=minor)[1]
    assert connection.has(f.FUSE_OVER_IO_URING) is expected


def test_no_request_timeout_is_not_negotiated() -> None:
    assert not agreed() & f.FUSE_REQUEST_TIMEOUT


@pytest.mark.parametrize("order", "<>")
def test_reply_has_64_bytes_in_both_orders(order: str) -> None:
    assert len(init(minor=27)[0].encode(order)) == 64


def test_description_names_what_is_in_force() -> None:
    text = init(flags=f.FUSE_INIT_EXT | f.FUSE_MAX_PAGES, minor=40, order=">")[1].describe()
    assert text == "FUSE 7.40 (peer 7.40), big-endian, max_write 1048576, MAX_PAGES|INIT_EXT"
