"""A directory of this machine as a PathFilesystem: what the adapter is tried with."""

from __future__ import annotations

import ctypes
import os

from transfuse.fs.path import PathFilesystem
from transfuse.fs.values import Attr, AttrChanges, Opened, Statfs

libc = ctypes.CDLL(None, use_errno=True)
libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class HostPaths(PathFilesystem):
    def __init__(self, root, inode_numbers=True):
        self.root = str(root)
        self.inode_numbers = inode_numbers
        self.open_fds = set()

    def at(self, path):
        return self.root + path

    def _opened(self, fd):
        self.open_fds.add(fd)
        return Opened(fd)

    def getattr(self, req, path, fh):
        st = os.fstat(fh) if fh else os.lstat(self.at(path))
        return Attr.from_stat(st, None if self.inode_numbers else 0)

    def setattr(self, req, path, changes: AttrChanges, fh):
        where = fh if fh else self.at(path)
        follow = {} if fh else {"follow_symlinks": False}
        if changes.size is not None:
            os.truncate(where, changes.size)
        if changes.uid is not None or changes.gid is not None:
            ids = [-1 if n is None else n for n in (changes.uid, changes.gid)]
            os.chown(where, *ids, **follow)
        if changes.mode is not None:
            os.chmod(where, changes.mode)
        if changes.atime_now and changes.mtime_now:
            os.utime(where, **follow)
        elif changes.atime_ns is not None and changes.mtime_ns is not None:
            os.utime(where, ns=(changes.atime_ns, changes.mtime_ns), **follow)

    def listdir(self, req, path):
        return os.listdir(self.at(path))

    def readlink(self, req, path):
        return os.readlink(self.at(path))

    def mkdir(self, req, path, mode, umask):
        os.mkdir(self.at(path), mode)

    def mknod(self, req, path, mode, rdev, umask):
        os.mknod(self.at(path), mode, rdev)

    def symlink(self, req, path, target):
        os.symlink(target, self.at(path))

    def link(self, req, path, newpath, fh):
        if fh:
            # os.link() asks for AT_SYMLINK_FOLLOW only with a dir_fd.
            check(libc.linkat(-100, b"/proc/self/fd/%d" % fh, -100, os.fsencode(self.at(newpath)), 0x400))
        else:
            os.link(self.at(path), self.at(newpath), follow_symlinks=False)

    def unlink(self, req, path):
        os.unlink(self.at(path))

    def rmdir(self, req, path):
        os.rmdir(self.at(path))

    def rename(self, req, path, newpath, flags):
        check(libc.renameat2(-100, os.fsencode(self.at(path)), -100, os.fsencode(self.at(newpath)), flags))

    def open(self, req, path, flags):
        return self._opened(os.open(self.at(path), flags | os.O_NOFOLLOW))

    def create(self, req, path, mode, umask, flags):
        return self._opened(os.open(self.at(path), flags | os.O_CREAT | os.O_NOFOLLOW, mode))

    def tmpfile(self, req, path, mode, umask, flags):
        return self._opened(os.open(self.at(path), flags | os.O_TMPFILE, mode))

    def read(self, req, path, fh, size, offset):
        return os.pread(fh, size, offset)

    def write(self, req, path, fh, data, offset, flags):
        return os.pwrite(fh, data, offset)

    def release(self, req, path, fh, flags, lock_owner, flock_unlock):
        self.open_fds.remove(fh)
        os.close(fh)

    def fsync(self, req, path, fh, datasync):
        os.fsync(fh)

    def fallocate(self, req, path, fh, mode, offset, length):
        check(libc.fallocate(fh, mode, offset, length))

    def lseek(self, req, path, fh, offset, whence):
        return os.lseek(fh, offset, whence)

    def copy_file_range(self, req, path_in, fh_in, offset_in, path_out, fh_out, offset_out, length, flags):
        return os.copy_file_range(fh_in, fh_out, length, offset_in, offset_out)

    def getxattr(self, req, path, name):
        return os.getxattr(self.at(path), name, follow_symlinks=False)

    def setxattr(self, req, path, name, value, flags, kill_sgid):
        os.setxattr(self.at(path), name, value, flags, follow_symlinks=False)

    def listxattr(self, req, path):
        return os.listxattr(self.at(path), follow_symlinks=False)

    def removexattr(self, req, path, name):
        os.removexattr(self.at(path), name, follow_symlinks=False)

    def access(self, req, path, mask):
        os.stat(self.at(path), follow_symlinks=False)

    def statfs(self, req, path):
        st = os.statvfs(self.at(path))
        return Statfs(st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, st.f_bsize, st.f_namemax)
