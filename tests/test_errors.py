"""Who is to blame: the exceptions."""

from __future__ import annotations

import errno

import pytest

from transfuse.errors import FilesystemCorrupted, LocalProtocolError, ProtocolError, RemoteProtocolError


def test_remote_errors_answer_einval_unless_told_otherwise() -> None:
    assert RemoteProtocolError("too short").errno == errno.EINVAL
    assert RemoteProtocolError("too old", errno.EPROTO).errno == errno.EPROTO


def test_protocol_errors_are_no_os_errors() -> None:
    # An `except OSError` around a filesystem call must not swallow the peer's mistake.
    assert not issubclass(ProtocolError, OSError)
    assert issubclass(RemoteProtocolError, ProtocolError)
    assert issubclass(LocalProtocolError, ProtocolError)


def test_text_is_kept() -> None:
    assert str(RemoteProtocolError("in_header.len at offset 0")) == "in_header.len at offset 0"


def test_corruption_is_an_os_error_with_euclean() -> None:
    with pytest.raises(OSError, match="superblock") as caught:
        raise FilesystemCorrupted("superblock at 0x400: magic 0x0, expected 0xef53")
    assert caught.value.errno == errno.EUCLEAN
