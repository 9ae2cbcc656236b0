"""fusermount3, the setuid helper of libfuse: mounts and unmounts for users who may not.

The helper opens /dev/fuse itself, mounts, and sends the descriptor over a socket whose number it finds in _FUSE_COMMFD
(SCM_RIGHTS). Its own auto_unmount is not used, see watch.py. Source: libfuse util/fusermount.c, lib/mount.c.

The helper is looked for in fixed places, not along PATH, and gets an environment of our making.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess

from .errors import MountError

__all__ = ["find_fusermount", "mount_by_helper", "umount_by_helper", "user_allow_other"]

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


def mount_by_helper(mountpoint: bytes, options: str) -> int:
    """Mount with the helper's option string `options`, and return the /dev/fuse descriptor (close-on-exec).

    It is mounted already: INIT is waiting in it. Raises MountError with what the helper said.
    """
    program = _program()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            process = subprocess.Popen(
                ["fusermount3", "-o", options, "--", mountpoint],
                executable=program, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                cwd="/", env={**ENVIRONMENT, "_FUSE_COMMFD": str(theirs.fileno())},
                close_fds=True, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        try:
            ours.settimeout(HELPER_TIMEOUT_S)
            fds: list[int] = []
            try:
                _, fds, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
            except TimeoutError:
                process.kill()
            except ConnectionError:
                pass  # it ended with something unread: its own words follow
            if not fds:
                raise _refusal(process, mountpoint, "fusermount3")
        finally:
            _end(process)
    return fds[0]


def _refusal(process: subprocess.Popen[bytes], mountpoint: bytes, step: str) -> MountError:
    """The helper's last words as an error. It has no exit codes to tell reasons apart, so the errno is a reading."""
    assert process.stderr is not None
    said = process.stderr.read(MAX_TEXT).decode("utf-8", "replace")
    text = "; ".join(line.removeprefix("fusermount3: ") for line in said.splitlines())
    reasons = [errno.EBUSY, errno.ENOENT, errno.ENODEV, errno.EACCES, errno.EPERM, errno.ENOTCONN, errno.EINVAL]
    code = next((n for n in reasons if os.strerror(n) in text), errno.EPERM)
    return MountError(code, step, where=mountpoint, text=text or "it ended without a word", hint=_hint(text, code))


# Words of util/fusermount.c -> what to do about it.
HINTS = {
    "failed to open /dev/fuse": "the helper opens it as you: chmod 0666 /dev/fuse, as distributions have it",
    "no write access to mountpoint": "an ordinary user can mount only on what is theirs",
    "not owned by user": "an ordinary user can mount only on what is theirs",
    "mounting over filesystem type": "choose a mount point on an ordinary filesystem",
    "user_allow_other": f"put the line user_allow_other into {FUSE_CONF}",
    "too many FUSE filesystems": f"raise mount_max in {FUSE_CONF}, or unmount some",
    "fuse device not found": "load the kernel module (modprobe fuse); in a container, pass the device in",
}


def _hint(text: str, code: int) -> str:
    for words, hint in HINTS.items():
        if words in text:
            return hint
    if code == errno.EPERM:
        return "is fusermount3 setuid root, and new privileges allowed? Otherwise be root or use `unshare -Urm`"
    return ""


def umount_by_helper(mountpoint: bytes, *, lazy: bool) -> None:
    """fusermount3 -u [-z]: for mounts of the calling user. Raises MountError with what the helper said."""
    program = _program()
    process = subprocess.Popen(
        ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint],
        executable=program, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/",
        env=ENVIRONMENT,
    )  # fmt: skip
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
