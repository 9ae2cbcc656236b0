from __future__ import annotations

import errno

from transfuse.transports.mount import MountError, MountOptionError


def test_mount_error_is_an_oserror_with_its_errno() -> None:
    error = MountError(errno.EBUSY, "umount2")
    assert isinstance(error, OSError)
    assert (error.errno, error.step, error.text, error.hint, error.where) == (errno.EBUSY, "umount2", "", "", b"")


def test_mount_error_says_place_step_reason_words_and_way_out() -> None:
    error = MountError(errno.EINVAL, "fsconfig fd", where=b"/mnt", text="e fuse: Bad value for 'fd'", hint="open it")
    assert str(error) == "/mnt: fsconfig fd: Invalid argument (e fuse: Bad value for 'fd'); open it"


def test_mount_error_is_one_line_whatever_the_mount_point_is_called() -> None:
    error = MountError(errno.ENOENT, "look", where=b"/a\nb\xff\x1b[0m", text="x\ry")
    assert str(error) == "/a\\nb\\xff\\x1b[0m: look: No such file or directory (x\\ry)"
    str(error).encode()


def test_option_error_is_a_value_error_on_one_line() -> None:
    error = MountOptionError("fsname", "a\nb", "takes less")
    assert isinstance(error, ValueError)
    assert str(error) == "option fsname=a\\nb: takes less"
