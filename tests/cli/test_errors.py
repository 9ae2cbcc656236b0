from __future__ import annotations

import errno

import pytest

from transfuse.cli.errors import (
    FAILED,
    INTERRUPTED,
    MOUNT_FAILED,
    SYSTEM_ERROR,
    USAGE,
    CommandError,
    describe,
    exit_code,
    one_line,
    report,
)
from transfuse.errors import RemoteProtocolError
from transfuse.transports.mount.errors import MountError, MountOptionError


def test_command_error_is_what_why_and_way_out() -> None:
    assert describe(CommandError("SOURCE", "is empty", "give one")) == "SOURCE: is empty; give one"


def test_os_error_names_its_file_and_reason() -> None:
    assert (
        describe(FileNotFoundError(errno.ENOENT, "No such file or directory", "/x")) == "/x: No such file or directory"
    )


def test_os_error_with_words_of_its_own_keeps_them() -> None:
    assert describe(OSError(errno.EIO, "the disk burns")) == f"the disk burns ({'Input/output error'})"


def test_two_file_names_are_both_told() -> None:
    assert describe(OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b")).startswith("/a -> /b: ")


def test_bug_is_told_as_one_and_names_the_way_to_see_more() -> None:
    assert describe(ZeroDivisionError("division")).startswith("internal error: ZeroDivisionError: division")
    assert "--debug" in describe(ZeroDivisionError("division"))


def test_broken_protocol_is_the_other_sides() -> None:
    assert describe(RemoteProtocolError("bad length")) == "the other side does not keep to the protocol: bad length"


def test_line_breaks_and_control_characters_stay_in_one_line() -> None:
    assert one_line("a\n b\x1b[31m\n") == "a; b\\x1b[31m"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandError("a", "b", code=7), 7),
        (MountOptionError("x", None, "is not known"), USAGE),
        (MountError(errno.EPERM, "mount"), MOUNT_FAILED),
        (OSError(errno.EMFILE, "too many"), SYSTEM_ERROR),
        (MemoryError(), SYSTEM_ERROR),
        (KeyboardInterrupt(), INTERRUPTED),
        (ConnectionError(errno.ENOTCONN, "gone"), MOUNT_FAILED),
    ],
)
def test_exit_codes_of_mount_are_those_of_mount8(error: BaseException, code: int) -> None:
    assert exit_code(error, MOUNT_FAILED) == code


def test_exit_code_of_other_commands_is_1() -> None:
    assert exit_code(OSError(errno.EMFILE, "too many"), FAILED) == FAILED


def test_report_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(OSError(errno.EACCES, "Permission denied", "/x"), failed=5, debug=False) == 5
    assert capsys.readouterr() == ("", "transfuse: /x: Permission denied\n")


def test_report_with_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    report(OSError(errno.EACCES, "Permission denied", "/x"), failed=5, debug=True)
    assert "PermissionError" in capsys.readouterr().err


def test_interrupt_needs_no_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(KeyboardInterrupt(), failed=1, debug=False) == INTERRUPTED
    assert capsys.readouterr().err == ""
