"""Whose rights and whose umask a thread acts with while it makes a file.

Linux keeps the filesystem ids (setfsuid, setfsgid) and supplementary groups per thread, and gives a thread a umask of
its own after unshare(CLONE_FS). So the kernel itself makes a file as it would have for the caller: owner, group in
setgid directories, quota, default ACLs and umask need no imitation, and nothing has to be corrected afterwards.

A worker thread is unshared at its first use here (its working directory is its own from then on), and then keeps the
last umask and filesystem gid, so that the usual case costs no call for them (each costs 2 µs). The main thread is left
alone: there the process's umask is set and put back, and so is the gid. The uid is always put back, and nothing is
touched when the caller is who the server is, or when it may not switch.

Dropping the filesystem uid from 0 also drops the file capabilities, CAP_FSETID among them: `without_fsetid` uses that
to have the kernel clear setuid and setgid bits on behalf of an ordinary caller.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from transfuse.filesystems.hostdir import syscalls
from transfuse.fs.request import Request

__all__ = ["Credentials"]

T = TypeVar("T")

NO_ID = 0xFFFF_FFFF
"""A uid or gid that the peer's kernel could not express; also "leave alone" of setfsuid(2)."""
NOBODY = 65534
S_ISGID, S_IXGRP = 0o2000, 0o010
SET_ID_BITS = 0o6000
FULL_MAP = [0, 0, NO_ID]


class _Thread(threading.local):
    """What this thread was set to."""

    umask = -1
    gid = -1
    """The filesystem gid, if it is not known to be the server's."""
    private = False


class Credentials:
    """The server's own identity, and how to act as somebody else."""

    def __init__(self) -> None:
        self.uid = os.geteuid()
        self.gid = os.getegid()
        self.groups = tuple(os.getgroups())
        self.can_switch = self._can_switch()
        """The server may take on the identity of its callers."""
        self._verify = self.can_switch and not _whole_id_range()
        self._thread = _Thread()
        self._umask_lock = threading.Lock()

    def _can_switch(self) -> bool:
        if self.uid != 0:
            return False
        syscalls.set_fs_gid(NOBODY)
        syscalls.set_fs_uid(NOBODY)
        gid, uid = syscalls.set_fs_gid(self.gid), syscalls.set_fs_uid(self.uid)
        return gid == NOBODY and uid == NOBODY

    def suit(self, req: Request, umask: int) -> bool:
        """Would make() change nothing on this thread?"""
        thread = self._thread
        return thread.umask == umask and (
            not self.can_switch or (req.uid == self.uid and req.gid == self.gid and thread.gid < 0)
        )

    def make(self, req: Request, umask: int, mode: int, call: Callable[[], T]) -> T:
        """call() with identity and umask of the caller (-1: any umask will do). `mode` is that of the file to be made.

        The caller's supplementary groups, which may cost a look into /proc, are asked for only when they can matter:
        when access was refused without them, or when a setgid bit is asked for.
        """
        thread = self._thread
        if umask >= 0 and thread.umask != umask and not self._set_umask(thread, umask):
            return self._with_shared_umask(req, umask, mode, call)
        if not self.can_switch:
            return call()
        if req.uid == self.uid and req.gid == self.gid:
            if thread.gid >= 0:
                self._reset_gid(thread)
            return call()
        return self._switched(req, mode, call)

    def _reset_gid(self, thread: _Thread) -> None:
        syscalls.set_fs_gid(self.gid)
        thread.gid = -1

    def _set_umask(self, thread: _Thread, umask: int) -> bool:
        """Set this thread's own umask; False when it has none."""
        if not thread.private:
            if threading.get_native_id() == os.getpid() or not syscalls.unshare_fs():
                return False
            thread.private = True
        os.umask(umask)
        thread.umask = umask
        return True

    def _with_shared_umask(self, req: Request, umask: int, mode: int, call: Callable[[], T]) -> T:
        with self._umask_lock:
            before = os.umask(umask)
            try:
                if req.uid == self.uid and req.gid == self.gid or not self.can_switch:
                    return call()
                return self._switched(req, mode, call)
            finally:
                os.umask(before)

    def _switched(self, req: Request, mode: int, call: Callable[[], T]) -> T:
        uid, gid = req.uid, req.gid
        if uid >= NO_ID or gid >= NO_ID:
            raise OSError(errno.EOVERFLOW, "the caller has no uid or gid here")
        if mode & S_ISGID and uid:
            return self._as(uid, gid, req.groups, call)
        thread = self._thread
        try:
            if thread.gid != gid:
                syscalls.set_fs_gid(gid)
                thread.gid = gid
            syscalls.set_fs_uid(uid)
            if self._verify:
                self._check_switched(uid, gid)
            return call()
        except PermissionError:
            if uid == 0:
                raise
        finally:
            syscalls.set_fs_uid(self.uid)
            if not thread.private:
                self._reset_gid(thread)
        return self._as(uid, gid, req.groups, call)

    def _as(self, uid: int, gid: int, groups: tuple[int, ...], call: Callable[[], T]) -> T:
        try:
            syscalls.set_thread_groups(groups)
            syscalls.set_fs_gid(gid)
            syscalls.set_fs_uid(uid)
            if self._verify:
                self._check_switched(uid, gid)
            return call()
        finally:
            syscalls.set_fs_uid(self.uid)
            self._reset_gid(self._thread)
            syscalls.set_thread_groups(self.groups)

    def _check_switched(self, uid: int, gid: int) -> None:
        # In a user namespace an id that is not mapped is ignored without an error; the file would be root's.
        if syscalls.set_fs_uid(NO_ID) != uid or syscalls.set_fs_gid(NO_ID) != gid:
            raise OSError(errno.EOVERFLOW, f"uid {uid} or gid {gid} has no meaning in the server's user namespace")

    def without_fsetid(self, req: Request, mode: int, call: Callable[[], T]) -> T:
        """call() without CAP_FSETID: writing to or truncating an open file of `mode` then clears setuid and setgid."""
        if not self.can_switch or not mode & SET_ID_BITS:
            return call()
        if mode & (S_ISGID | S_IXGRP) == S_ISGID:
            # Here setgid goes only if the caller is outside the file's group (fs/attr.c, setattr_should_drop_sgid).
            return self._as(req.uid or NOBODY, req.gid, req.groups, call)
        syscalls.set_fs_uid(NOBODY)
        try:
            return call()
        finally:
            syscalls.set_fs_uid(self.uid)


def _whole_id_range() -> bool:
    try:
        for name in ("/proc/self/uid_map", "/proc/self/gid_map"):
            with open(name) as file:
                if [int(word) for word in file.readline().split()] != FULL_MAP:
                    return False
    except OSError:
        return False
    return True
