"""What `serve` puts around a source."""

from __future__ import annotations

import argparse
import errno
from typing import Any

import pytest

from transfuse.cli.errors import USAGE, CommandError
from transfuse.cli.serve.layers import Layers, add_flags, read_layers
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.acl import ACCESS_XATTR
from transfuse.fs.request import Request
from transfuse.fs.values import Features
from transfuse.testing.direct import DirectVolume


def layers(*words: str, read_only: bool = False) -> Layers:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read_layers(parser.parse_args(words), read_only=read_only)


def test_nothing_asked_for_is_nothing_around() -> None:
    fs = MemoryFilesystem()
    assert layers().around(fs) is fs


def test_ids_attributes_and_read_only_together() -> None:
    fs = MemoryFilesystem()
    words = ["--xattrmap", ":map::user.v.:", "--translate-uid", "map:0:1000:1", "--translate-gid", "map:0:2000:1"]
    seen = DirectVolume(layers(*words).around(fs))
    seen.write_bytes("/f", b"x")
    seen.setxattr("/f", "user.a", b"1")
    plain = DirectVolume(fs)
    assert plain.listxattr("/f") == ["user.v.user.a"]
    assert (plain.stat("/f").uid, plain.stat("/f").gid) == (1000, 2000)
    fixed = DirectVolume(layers(*words, read_only=True).around(fs))
    assert (fixed.stat("/f").uid, fixed.getxattr("/f", "user.a")) == (0, b"1")
    with pytest.raises(OSError) as caught:
        fixed.write_bytes("/f", b"y")
    assert caught.value.errno == errno.EROFS


def test_translated_ids_leave_no_acls() -> None:
    fs = layers("--translate-uid", "map:0:1000:1").around(MemoryFilesystem())
    assert not fs.features.posix_acl
    with pytest.raises(OSError) as caught:
        fs.getxattr(Request(), 1, ACCESS_XATTR)  # type: ignore[union-attr, arg-type, call-arg]
    assert caught.value.errno == errno.ENOTSUP


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--xattrmap", ":oops:"], "option --xattrmap: rule 1, character 2: type 'oops' is none of"),
        (["--xattrmap", ":ok:client:::"], "option --xattrmap: no rule decides all other names of the server"),
        (["--translate-uid", "map:0:0:0"], "option --translate-uid: map:0:0:0: 0 ids from 0"),
        (["--translate-gid", "guest:0:0:2", "--translate-gid", "guest:1:0:1"], "option --translate-gid: ids 0 to 1"),
    ],
)
def test_wrong_rules_are_named_with_their_option(words: list[str], error: str) -> None:
    with pytest.raises(CommandError) as caught:
        layers(*words)
    assert str(caught.value).startswith(error) and caught.value.code == USAGE


class Peer:
    """A connection that agreed on this much."""

    def __init__(self, posix_acl: bool) -> None:
        self.features = Features(posix_acl=posix_acl)
        self.order = "<"
        self.notify: Any = None


def test_a_peer_without_acls_is_refused_where_they_are_required() -> None:
    fs = layers("--require-acl").around(MemoryFilesystem())
    fs.mounted(Peer(True))
    with pytest.raises(OSError, match="does not support POSIX ACLs"):
        fs.mounted(Peer(False))


def test_required_acls_need_a_source_that_has_them() -> None:
    with pytest.raises(CommandError, match="option --require-acl: the source has no POSIX ACLs"):
        layers("--require-acl", "--xattrmap", ":map::user.:").around(MemoryFilesystem())


def test_capabilities_can_not_be_mapped_over_coroutines() -> None:
    class Later(MemoryFilesystem):
        async def removexattr(self, req: Request, nodeid: int, name: bytes) -> None:  # type: ignore[override]
            raise OSError(errno.ENODATA, "")

    with pytest.raises(CommandError, match="option --xattrmap: security.capability can't be mapped"):
        layers("--xattrmap", ":map::user.:").around(Later())
