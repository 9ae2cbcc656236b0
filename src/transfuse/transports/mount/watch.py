"""auto_unmount: a tiny process that outlives a killed server and clears its mount.

fusermount3 has the same thing built in, but asks as root whether the mount is dead. The kernel answers root with EACCES
unless allow_other was given (measured: Debian's 3.14.0 on Linux 6.18), so it clears nothing for ordinary users. Hence
this one is used for every way of mounting.

Started as `python -I -S watch.py PATH` (PATH for whoever reads ps), so it imports nothing of its package. Order of
events:

1. The parent (which may have threads: it only execs) starts it with one end of a socket pair as standard input and no
   other descriptor; the first message on it says what to watch.
2. It leaves the parent's session, directory and family (it forks once more, so the parent has no child to wait for),
   blocks all signals, and writes its pid.
3. It waits. "q" on the socket: the mount was ended in an orderly way, exit. EOF: the last process that held the other
   end is gone. Every end is close-on-exec, so only forks of the server that run its own code count.
4. After EOF: if what shows at PATH is still that very connection (device number) and answers ENOTCONN, it is detached
   (MNT_DETACH; by fusermount3, without the privilege). If a process still serves the connection, it answers,
   and is left alone. While the kernel is still closing the server's device the question simply waits.

A FUSE mount without allow_other answers its owner only, so the question is asked under the mount's user_id,
through a descriptor, because that user may be unable to walk to the mount point.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

__all__ = ["Watcher", "start_watcher"]

START_TIMEOUT_S = 20.0  # an interpreter on a loaded machine; it takes 0.03 s on an idle one
MAX_QUESTIONS = 8  # a connection that is being torn down says ECONNABORTED first, then ENOTCONN
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
ORDERLY_END = b"q"
MAX_MESSAGE = 16384  # two paths of PATH_MAX and three numbers


class Watcher:
    """The parent's end. `pid` is the process that watches."""

    __slots__ = ("_socket", "pid")

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self._socket = sock
        self.pid = pid

    def release(self) -> None:
        """Send the watcher home: the mount has ended, or need not be watched any more."""
        try:
            self._socket.send(ORDERLY_END, socket.MSG_NOSIGNAL)
        except OSError:
            pass  # it is gone already
        self._socket.close()


def start_watcher(mountpoint: bytes, dev: int, user_id: int, group_id: int, helper: str | None) -> Watcher:
    """Watch the FUSE mount with st_dev `dev` at `mountpoint`; `helper` is fusermount3, where that must do it.

    Raises OSError when the process can't be started.
    """
    if not sys.executable:
        raise OSError(errno.ENOENT, "no Python interpreter is known to start the auto_unmount process with")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            words = [*(b"%d" % n for n in (dev, user_id, group_id)), os.fsencode(helper or ""), mountpoint]
            ours.send(b"\0".join(words))
            command: list[str | bytes] = [sys.executable, "-I", "-S", __file__, mountpoint]
            process = subprocess.Popen(
                command,
                stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                cwd="/", env={}, close_fds=True,
            )  # fmt: skip
        try:
            ours.settimeout(START_TIMEOUT_S)
            said = ours.recv(32)
        except OSError:
            process.kill()
            raise
        finally:
            process.wait()  # it forks and ends at once
        if not said.isdigit():
            raise OSError(errno.ECHILD, "the auto_unmount process ended before it was ready")
        ours.settimeout(None)
    except BaseException:
        ours.close()
        raise
    return Watcher(ours, int(said))


# ---- the watching process


def _shows_there(path: bytes, dev: int) -> bool:
    """Whether the uppermost mount at `path` is the FUSE connection `dev` (read from proc, nobody is asked)."""
    rows = []
    with open("/proc/self/mountinfo", "rb") as f:
        for line in f:
            front, _, back = line.partition(b" - ")
            fields = front.split(b" ")
            plain = fields[4]
            for code in (b"\\040", b"\\011", b"\\012", b"\\134"):  # all that the kernel escapes here; '\\' last
                plain = plain.replace(code, bytes([int(code[1:], 8)]))
            if plain == path:
                rows.append((fields[0], fields[1], fields[2], back.split(b" ")[0]))
    covered = {row[1] for row in rows}
    top = [row for row in rows if row[0] not in covered]
    if not top:
        return False
    major, _, minor = top[-1][2].partition(b":")
    return top[-1][3].startswith(b"fuse") and os.makedev(int(major), int(minor)) == dev


def _is_dead(path: bytes, user_id: int, group_id: int) -> bool:
    """Whether the mount at `path` has no server any more. Waits while it neither answers nor is closed."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        for _ in range(MAX_QUESTIONS):
            code = _as_user(lambda: _statfs_error(fd), user_id, group_id)
            if code != errno.ECONNABORTED:
                return code == errno.ENOTCONN
        return False
    finally:
        os.close(fd)


def _statfs_error(fd: int) -> int:
    try:
        os.statvfs(fd)
    except OSError as e:
        return e.errno or errno.EIO
    return 0


def _as_user(question: Callable[[], int], user_id: int, group_id: int) -> int:
    """The question's answer (0 to 255), asked by a child with these ids where they are not ours."""
    if (user_id, group_id) == (os.getuid(), os.getgid()):
        return question()
    pid = os.fork()
    if pid == 0:
        answer = errno.EPERM
        try:
            os.setresgid(group_id, group_id, group_id)
            os.setresuid(user_id, user_id, user_id)
            answer = question()
        finally:
            os._exit(answer)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _detach(path: bytes, helper: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.umount2(ctypes.c_char_p(path), ctypes.c_int(MNT_DETACH | UMOUNT_NOFOLLOW))
    if failed and ctypes.get_errno() == errno.EPERM and helper:
        os.execve(helper, [helper, b"-u", b"-q", b"-z", b"--", path], {})


def watch(fd: int) -> None:
    """The life of the watching process; `fd` is its end of the socket pair."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    with socket.socket(fileno=fd) as sock:
        words = sock.recv(MAX_MESSAGE).split(b"\0")
        sock.send(str(os.getpid()).encode())
        try:
            said = sock.recv(1)
        except OSError:
            said = b""
    dev, user_id, group_id = map(int, words[:3])
    helper, path = words[3:]
    if not said and _shows_there(path, dev) and _is_dead(path, user_id, group_id) and _shows_there(path, dev):
        _detach(path, helper)


if __name__ == "__main__":
    watch(0)
