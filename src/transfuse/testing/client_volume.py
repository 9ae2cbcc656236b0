"""A volume seen through the client: whatever transport, server and filesystem are behind it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transfuse.client import Client
from transfuse.client.openfile import OpenFile as ClientOpenFile
from transfuse.testing.volume import OpenFile, Space, Stat, Volume

__all__ = ["ClientVolume"]

MAX_END = 0x7FFF_FFFF_FFFF_FFFF


def _stat(st: os.stat_result) -> Stat:
    return Stat(
        st.st_ino,
        st.st_mode,
        st.st_nlink,
        st.st_uid,
        st.st_gid,
        st.st_rdev,
        st.st_size,
        st.st_blocks,
        st.st_atime_ns,
        st.st_mtime_ns,
        st.st_ctime_ns,
    )


class ClientFile(OpenFile):
    """An open file of the client, opened by a view of its own, so that its POSIX locks are its own as well."""

    def __init__(self, file: ClientOpenFile, append: bool) -> None:
        self.file = file
        self._append = append

    def pread(self, size: int, offset: int) -> bytes:
        return self.file.pread(size, offset)

    def pwrite(self, data: bytes, offset: int) -> int:
        return self.file.append(data)[0] if self._append else self.file.pwrite(data, offset)

    def truncate(self, size: int) -> None:
        self.file.ftruncate(size)

    def stat(self) -> Stat:
        return _stat(self.file.fstat())

    def fsync(self, datasync: bool = False) -> None:
        self.file.fsync(datasync)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        self.file.fallocate(mode, offset, length)

    def seek(self, offset: int, whence: int) -> int:
        return self.file.seek_data(offset, whence)

    def copy_to(self, other: OpenFile, offset: int, other_offset: int, length: int) -> int:
        assert isinstance(other, ClientFile)
        return self.file.copy_range(offset, other.file, other_offset, length)

    def lock(self, kind: int, start: int, length: int, wait: bool = False) -> None:
        self.file.lock(kind, start, start + length - 1 if length else MAX_END, wait=wait)

    def lock_in_the_way(self, kind: int, start: int, length: int) -> tuple[int, int, int] | None:
        found = self.file.test_lock(kind, start, start + length - 1 if length else MAX_END)
        if found is None:
            return None
        return found.kind, found.start, 0 if found.end == MAX_END else found.end - found.start + 1

    def flock(self, kind: int, wait: bool = False) -> None:
        self.file.flock(kind, wait=wait)

    def ioctl(self, cmd: int, data: bytes) -> bytes:
        _, out = self.file.ioctl(cmd, data, len(data))
        return out or data

    def close(self) -> None:
        self.file.close()


class ClientVolume(Volume):
    """The volume of a connected client; umask 0."""

    def __init__(self, client: Client, uid: int = 0, gid: int = 0, groups: Sequence[int] = ()) -> None:
        self.connection = client
        self.client = client.as_user(uid, gid, tuple(groups), umask=0)

    @contextmanager
    def identity(self, uid: int, gid: int, groups: Sequence[int] = ()) -> Iterator[None]:
        """Not for use by several threads at a time."""
        before = self.client
        self.client = self.connection.as_user(uid, gid, tuple(groups), umask=0)
        try:
            yield
        finally:
            self.client = before

    def stat(self, path: str) -> Stat:
        return _stat(self.client.lstat(path))

    def scandir(self, path: str) -> list[tuple[str, int, int]]:
        with self.client.scandir(path) as entries:
            return [(entry.name, entry.inode(), 0) for entry in entries]

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        self.client.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        self.client.rmdir(path)

    def unlink(self, path: str) -> None:
        self.client.unlink(path)

    def rename(self, path: str, newpath: str, flags: int = 0) -> None:
        self.client.rename(path, newpath, flags=flags)

    def link(self, path: str, newpath: str) -> None:
        self.client.link(path, newpath, follow_symlinks=False)

    def symlink(self, target: str, path: str) -> None:
        self.client.symlink(target, path)

    def readlink(self, path: str) -> str:
        return os.fsdecode(self.client.readlink(path))

    def mknod(self, path: str, mode: int, rdev: int = 0) -> None:
        self.client.mknod(path, mode, rdev)

    def _owner(self) -> Client:
        creds = self.client.creds
        return self.connection.as_user(creds.uid, creds.gid, creds.groups, umask=0)

    def open(self, path: str, flags: int, mode: int = 0o644) -> OpenFile:
        if not flags & os.O_CREAT and self.client.islink(path):
            raise OSError(errno.ELOOP, "a symbolic link", path)
        file = self._owner().open_file(path, flags | os.O_NOFOLLOW, mode)
        return ClientFile(file, bool(flags & os.O_APPEND))

    def tmpfile(self, path: str, flags: int = os.O_RDWR, mode: int = 0o644) -> OpenFile:
        return ClientFile(self._owner().open_file(path, flags | os.O_TMPFILE, mode), False)

    def link_open(self, file: OpenFile, newpath: str) -> None:
        assert isinstance(file, ClientFile)
        self.client.link_file(file.file, newpath)

    def truncate(self, path: str, size: int) -> None:
        self.client.truncate(path, size)

    def chmod(self, path: str, mode: int) -> None:
        self.client.chmod(path, mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        self.client.chown(path, uid, gid, follow_symlinks=False)

    def utime(self, path: str, times_ns: tuple[int, int] | None) -> None:
        if times_ns is None:
            self.client.utime(path, follow_symlinks=False)
        else:
            self.client.utime(path, ns=times_ns, follow_symlinks=False)

    def access(self, path: str, mask: int) -> bool:
        return self.client.access(path, mask, follow_symlinks=False)

    def getxattr(self, path: str, name: str) -> bytes:
        return self.client.getxattr(path, name, follow_symlinks=False)

    def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        self.client.setxattr(path, name, value, flags, follow_symlinks=False)

    def listxattr(self, path: str) -> list[str]:
        return self.client.listxattr(path, follow_symlinks=False)

    def removexattr(self, path: str, name: str) -> None:
        self.client.removexattr(path, name, follow_symlinks=False)

    def statfs(self, path: str = "/") -> Space:
        st = self.client.statvfs(path)
        return Space(st.f_blocks, st.f_bfree, st.f_files, st.f_ffree, st.f_frsize, st.f_namemax)
