"""fusermount3, the setuid helper of libfuse: mounts and unmounts for users who may not.

The helper opens /dev/fuse itself, mounts, and sends the descriptor over a socket whose number it finds in _FUSE_COMMFD
(SCM_RIGHTS). With auto_unmount it then stays: it watches the socket, and when the last holder of the other end is gone
it unmounts what is dead. Without, it exits. Source: libfuse util/fusermount.c, lib/mount.c.

The helper is looked for in fixed places, not along PATH, and gets an environment of our making.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass

from .errors import MountError

__all__ = ["HelperMount", "find_fusermount", "mount_by_helper", "umount_by_helper", "user_allow_other"]

SEARCH = "/usr/bin:/bin:/usr/local/bin:/usr/sbin:/sbin:/run/wrappers/bin"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
HELPER_TIMEOUT_S = 60.0  # it mounts and exits; an autofs or network path below the mount point may take its time
END_TIMEOUT_S = 5.0
MAX_TEXT = 4096
FUSE_CONF = "/etc/fuse.conf"


def find_fusermount() -> str | None:
    """Path of fusermount3, or None. (The older fusermount of libfuse 2 is not looked for: both may be installed.)"""
    return shutil.which("fusermount3", path=SEARCH)


def user_allow_other(conf: str = FUSE_CONF) -> bool:
    """Whether /etc/fuse.conf lets ordinary users give allow_other; a missing or unreadable file does not."""
    try:
        with open(conf, encoding="utf-8", errors="replace") as f:
            return any(line.partition("#")[0].strip() == "user_allow_other" for line in f)
    except OSError:
        return False


@dataclass(slots=True)
class HelperMount:
    """What fusermount3 left behind: the device, and (auto_unmount) the helper itself with the socket it watches."""

    device_fd: int
    _socket: socket.socket | None
    _process: subprocess.Popen[bytes] | None

    def release(self) -> None:
        """Let a waiting helper go: with the mount ended it finds nothing to do and exits."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            _end(self._process)
            self._process = None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stderr is not None:
        process.stderr.close()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()  # permitted: its real user is ours
        process.wait()


def _program() -> str:
    program = find_fusermount()
    if program is None:
        raise MountError(
            errno.ENOENT,
            "fusermount3",
            text="not installed, and this process may not mount without it",
            hint="install it (Debian, Ubuntu: apt-get install fuse3), be root, or use `unshare -Urm`",
        )
    return program


def mount_by_helper(mountpoint: bytes, options: str, *, stays: bool) -> HelperMount:
    """Mount with the helper's option string `options`; `stays` says that auto_unmount is among them.

    The device descriptor is close-on-exec and mounted already: INIT is waiting in it. Raises MountError with what the
    helper said.
    """
    program = _program()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    process: subprocess.Popen[bytes] | None = None
    fds: list[int] = []
    try:
        with theirs:
            process = subprocess.Popen(
                [program, "-o", options, "--", mountpoint],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/",
                env={**ENVIRONMENT, "_FUSE_COMMFD": str(theirs.fileno())}, close_fds=True, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        ours.settimeout(HELPER_TIMEOUT_S)
        try:
            _, fds, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            process.kill()
        except ConnectionError:
            pass  # it ended with something unread: its own words follow
        if not fds:
            raise _refusal(process, mountpoint, "fusermount3")
        if not stays:
            ours.close()
            _end(process)
            return HelperMount(fds[0], None, None)
        assert process.stderr is not None
        process.stderr.close()
        ours.settimeout(None)
        return HelperMount(fds[0], ours, process)
    except BaseException:
        ours.close()
        for fd in fds:
            os.close(fd)
        if process is not None:
            _end(process)
        raise


def _refusal(process: subprocess.Popen[bytes], mountpoint: bytes, step: str) -> MountError:
    """The helper's last words as an error. It has no exit codes to tell reasons apart, so the errno is a reading."""
    assert process.stderr is not None
    said = process.stderr.read(MAX_TEXT).decode("utf-8", "replace")
    text = "; ".join(line.removeprefix("fusermount3: ").removeprefix("fusermount: ") for line in said.splitlines())
    reasons = [errno.EBUSY, errno.ENOENT, errno.ENODEV, errno.EACCES, errno.EPERM, errno.ENOTCONN, errno.EINVAL]
    code = next((n for n in reasons if os.strerror(n) in text), errno.EPERM)
    return MountError(code, step, where=mountpoint, text=text or "it ended without a word", hint=_hint(text, code))


def _hint(text: str, code: int) -> str:
    if "no write access to mountpoint" in text or "not the owner" in text:
        return "an ordinary user can mount only on what is theirs"
    if "user_allow_other" in text:
        return f"put the line user_allow_other into {FUSE_CONF}"
    if "mount_max" in text or "too many FUSE" in text:
        return f"raise mount_max in {FUSE_CONF}, or unmount some"
    if "modprobe" in text or "fuse device not found" in text:
        return "load the kernel module (modprobe fuse); in a container, pass the device in"
    if code == errno.EPERM:
        return "is fusermount3 setuid root, and new privileges allowed? Otherwise be root or use `unshare -Urm`"
    return ""


def umount_by_helper(mountpoint: bytes, *, lazy: bool) -> None:
    """fusermount3 -u [-z]: for mounts of the calling user. Raises MountError with what the helper said."""
    program = _program()
    command: list[str | bytes] = [program, "-u", *(["-z"] if lazy else []), "--", mountpoint]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/", env=ENVIRONMENT
    )
    try:
        status = process.wait(HELPER_TIMEOUT_S)
        if status:
            raise _refusal(process, mountpoint, "fusermount3 -u")
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise MountError(errno.ETIMEDOUT, "fusermount3 -u", where=mountpoint) from None
    finally:
        assert process.stderr is not None
        process.stderr.close()
