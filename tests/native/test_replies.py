"""The compiled attr_out and entry_out against the plain ones, byte for byte."""

from __future__ import annotations

import random
import stat

import pytest

from transfuse.fs.request import Request
from transfuse.fs.values import Attr, Entry
from transfuse.session import replies as plain
from transfuse.session.negotiate import Connection

native = pytest.importorskip("transfuse._native.replies", reason="the plain form runs")


def random_attr(rng: random.Random) -> Attr:
    attr = Attr(
        ino=rng.getrandbits(64),
        mode=stat.S_IFREG | rng.getrandbits(12),
        size=rng.getrandbits(63),
        nlink=rng.getrandbits(32),
        uid=rng.getrandbits(32),
        gid=rng.getrandbits(32),
        atime_ns=rng.randrange(-(2**62), 2**62),
        mtime_ns=rng.choice([0, -1, 1, 999_999_999, -1_000_000_000, 1_000_000_000]),
        ctime_ns=rng.randrange(-(2**40), 2**62),
        blocks=rng.getrandbits(60),
        blksize=rng.getrandbits(32),
        rdev=rng.choice([0, rng.getrandbits(20), (rng.getrandbits(12) << 8) | rng.getrandbits(8)]),
        flags=rng.getrandbits(2),
    )
    attr.timeout_s = rng.choice([None, 0, 0.25, 1e12, 3])
    return attr


@pytest.mark.parametrize("order", ["<", ">"])
def test_compiled_replies_equal_the_plain_ones(order, rng, monkeypatch):
    replies = plain.Replies(Connection(order=order))
    for _ in range(500):
        entry = Entry(random_attr(rng), nodeid=rng.getrandbits(63), generation=rng.getrandbits(32))
        req = Request(rng.getrandbits(64))
        compiled = replies.attr(req, entry.attr), replies.entry(req, entry)
        listing = bytearray(200)
        replies.entry_into(listing, 24, entry)
        with monkeypatch.context() as patch:
            patch.setattr(plain, "_native", None)
            assert compiled == (replies.attr(req, entry.attr), replies.entry(req, entry))
            by_struct = bytearray(200)
            replies.entry_into(by_struct, 24, entry)
        assert listing == by_struct


@pytest.mark.parametrize("field", ["size", "uid", "mode", "nlink", "blksize"])
def test_a_value_that_does_not_fit_is_refused(field):
    attr = Attr.file(2, size=1)
    setattr(attr, field, -1)
    with pytest.raises(OverflowError):
        native.attr_reply("<", 2, 0, 0, attr)


def test_an_entry_beyond_the_listing_is_refused():
    with pytest.raises(IndexError):
        native.entry_into(bytearray(128), 1, "<", 0, 0, 0, 0, Entry(Attr.file(2)))
