"""The structures of FUSE 7.45, one class per C struct of <linux/fuse.h>: fields in header order with its names.

Times in Attr are signed here (the header says uint64_t; Linux reads them into a signed time64_t, so a file from 1960
comes as a value that is negative as i64). Flexible array members (dirent names, group lists) follow their structure and
are not part of it.
"""

# The annotations are read by layout, where pad(4) and chars(128) are calls and not types.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

from transfuse.wire.layout import WireStruct, chars, i32, i64, pad, since, u16, u32, u64

__all__ = [
    "AccessIn",
    "Attr",
    "AttrOut",
    "BackingMap",
    "BatchForgetIn",
    "BmapIn",
    "BmapOut",
    "CopyFileRangeIn",
    "CopyFileRangeOut",
    "CreateIn",
    "CuseInitIn",
    "CuseInitOut",
    "Dirent",
    "Direntplus",
    "EntryOut",
    "ExtHeader",
    "FallocateIn",
    "FileLock",
    "FlushIn",
    "ForgetIn",
    "ForgetOne",
    "FsyncIn",
    "GetattrIn",
    "GetxattrIn",
    "GetxattrOut",
    "InHeader",
    "InitIn",
    "InitOut",
    "InterruptIn",
    "IoctlIn",
    "IoctlIovec",
    "IoctlOut",
    "Kstatfs",
    "LinkIn",
    "LkIn",
    "LkOut",
    "LseekIn",
    "LseekOut",
    "MkdirIn",
    "MknodIn",
    "NotifyDeleteOut",
    "NotifyInvalEntryOut",
    "NotifyInvalInodeOut",
    "NotifyPollWakeupOut",
    "NotifyPruneOut",
    "NotifyRetrieveIn",
    "NotifyRetrieveOut",
    "NotifyStoreOut",
    "OpenIn",
    "OpenOut",
    "OutHeader",
    "PollIn",
    "PollOut",
    "ReadIn",
    "ReleaseIn",
    "RemovemappingIn",
    "RemovemappingOne",
    "Rename2In",
    "RenameIn",
    "Secctx",
    "SecctxHeader",
    "SetattrIn",
    "SetupmappingIn",
    "SetxattrIn",
    "StatfsOut",
    "Statx",
    "StatxIn",
    "StatxOut",
    "SuppGroups",
    "SxTime",
    "SyncfsIn",
    "UringCmdReq",
    "UringEntInOut",
    "UringReqHeader",
    "WriteIn",
    "WriteOut",
]


class Attr(WireStruct):
    """struct fuse_attr, 88 bytes."""

    ino: u64
    size: u64
    blocks: u64
    atime: i64
    mtime: i64
    ctime: i64
    atimensec: u32
    mtimensec: u32
    ctimensec: u32
    mode: u32
    nlink: u32
    uid: u32
    gid: u32
    rdev: u32
    blksize: u32
    flags: u32


class SxTime(WireStruct):
    """struct fuse_sx_time, 16 bytes."""

    tv_sec: i64
    tv_nsec: u32
    reserved: pad(4)


class Statx(WireStruct):
    """struct fuse_statx, 256 bytes."""

    mask: u32
    blksize: u32
    attributes: u64
    nlink: u32
    uid: u32
    gid: u32
    mode: u16
    spare0: pad(2)
    ino: u64
    size: u64
    blocks: u64
    attributes_mask: u64
    atime: SxTime
    btime: SxTime
    ctime: SxTime
    mtime: SxTime
    rdev_major: u32
    rdev_minor: u32
    dev_major: u32
    dev_minor: u32
    spare2: pad(112)


class Kstatfs(WireStruct):
    """struct fuse_kstatfs, 80 bytes."""

    blocks: u64
    bfree: u64
    bavail: u64
    files: u64
    ffree: u64
    bsize: u32
    namelen: u32
    frsize: u32
    padding: pad(4)
    spare: pad(24)


class FileLock(WireStruct):
    """struct fuse_file_lock, 24 bytes."""

    start: u64
    end: u64
    type: u32
    pid: u32


class EntryOut(WireStruct):
    """struct fuse_entry_out, 128 bytes."""

    nodeid: u64
    generation: u64
    entry_valid: u64
    attr_valid: u64
    entry_valid_nsec: u32
    attr_valid_nsec: u32
    attr: Attr


class ForgetIn(WireStruct):
    """struct fuse_forget_in, 8 bytes."""

    nlookup: u64


class ForgetOne(WireStruct):
    """struct fuse_forget_one, 16 bytes."""

    nodeid: u64
    nlookup: u64


class BatchForgetIn(WireStruct):
    """struct fuse_batch_forget_in, 8 bytes."""

    count: u32
    dummy: pad(4)


class GetattrIn(WireStruct):
    """struct fuse_getattr_in, 16 bytes."""

    getattr_flags: u32
    dummy: pad(4)
    fh: u64


class AttrOut(WireStruct):
    """struct fuse_attr_out, 104 bytes."""

    attr_valid: u64
    attr_valid_nsec: u32
    dummy: pad(4)
    attr: Attr


class StatxIn(WireStruct):
    """struct fuse_statx_in, 24 bytes."""

    getattr_flags: u32
    reserved: pad(4)
    fh: u64
    sx_flags: u32
    sx_mask: u32


class StatxOut(WireStruct):
    """struct fuse_statx_out, 288 bytes."""

    attr_valid: u64
    attr_valid_nsec: u32
    flags: u32
    spare: pad(16)
    stat: Statx


class MknodIn(WireStruct):
    """struct fuse_mknod_in, 16 bytes."""

    mode: u32
    rdev: u32
    umask: u32
    padding: pad(4)


class MkdirIn(WireStruct):
    """struct fuse_mkdir_in, 8 bytes."""

    mode: u32
    umask: u32


class RenameIn(WireStruct):
    """struct fuse_rename_in, 8 bytes."""

    newdir: u64


class Rename2In(WireStruct):
    """struct fuse_rename2_in, 16 bytes."""

    newdir: u64
    flags: u32
    padding: pad(4)


class LinkIn(WireStruct):
    """struct fuse_link_in, 8 bytes."""

    oldnodeid: u64


class SetattrIn(WireStruct):
    """struct fuse_setattr_in, 88 bytes."""

    valid: u32
    padding: pad(4)
    fh: u64
    size: u64
    lock_owner: u64
    atime: u64
    mtime: u64
    ctime: u64
    atimensec: u32
    mtimensec: u32
    ctimensec: u32
    mode: u32
    unused4: pad(4)
    uid: u32
    gid: u32
    unused5: pad(4)


class OpenIn(WireStruct):
    """struct fuse_open_in, 8 bytes."""

    flags: u32
    open_flags: u32


class CreateIn(WireStruct):
    """struct fuse_create_in, 16 bytes."""

    flags: u32
    mode: u32
    umask: u32
    open_flags: u32


class OpenOut(WireStruct):
    """struct fuse_open_out, 16 bytes."""

    fh: u64
    open_flags: u32
    backing_id: i32


class ReleaseIn(WireStruct):
    """struct fuse_release_in, 24 bytes."""

    fh: u64
    flags: u32
    release_flags: u32
    lock_owner: u64


class FlushIn(WireStruct):
    """struct fuse_flush_in, 24 bytes."""

    fh: u64
    unused: pad(4)
    padding: pad(4)
    lock_owner: u64


class ReadIn(WireStruct):
    """struct fuse_read_in, 40 bytes."""

    fh: u64
    offset: u64
    size: u32
    read_flags: u32
    lock_owner: u64
    flags: u32
    padding: pad(4)


class WriteIn(WireStruct):
    """struct fuse_write_in, 40 bytes."""

    fh: u64
    offset: u64
    size: u32
    write_flags: u32
    lock_owner: u64
    flags: u32
    padding: pad(4)


class WriteOut(WireStruct):
    """struct fuse_write_out, 8 bytes."""

    size: u32
    padding: pad(4)


class StatfsOut(WireStruct):
    """struct fuse_statfs_out, 80 bytes."""

    st: Kstatfs


class FsyncIn(WireStruct):
    """struct fuse_fsync_in, 16 bytes."""

    fh: u64
    fsync_flags: u32
    padding: pad(4)


class SetxattrIn(WireStruct):
    """struct fuse_setxattr_in, 16 bytes."""

    size: u32
    flags: u32
    setxattr_flags: u32
    padding: pad(4)


class GetxattrIn(WireStruct):
    """struct fuse_getxattr_in, 8 bytes."""

    size: u32
    padding: pad(4)


class GetxattrOut(WireStruct):
    """struct fuse_getxattr_out, 8 bytes."""

    size: u32
    padding: pad(4)


class LkIn(WireStruct):
    """struct fuse_lk_in, 48 bytes."""

    fh: u64
    owner: u64
    lk: FileLock
    lk_flags: u32
    padding: pad(4)


class LkOut(WireStruct):
    """struct fuse_lk_out, 24 bytes."""

    lk: FileLock


class AccessIn(WireStruct):
    """struct fuse_access_in, 8 bytes."""

    mask: u32
    padding: pad(4)


class InitIn(WireStruct):
    """struct fuse_init_in, 64 bytes."""

    major: u32
    minor: u32
    max_readahead: u32
    flags: u32
    flags2: since(u32, 36)
    unused: since(pad(44), 36)


class InitOut(WireStruct):
    """struct fuse_init_out, 64 bytes."""

    major: u32
    minor: u32
    max_readahead: u32
    flags: u32
    max_background: u16
    congestion_threshold: u16
    max_write: u32
    time_gran: u32
    max_pages: u16
    map_alignment: u16
    flags2: u32
    max_stack_depth: u32
    request_timeout: u16
    unused: pad(22)


class CuseInitIn(WireStruct):
    """struct cuse_init_in, 16 bytes."""

    major: u32
    minor: u32
    unused: pad(4)
    flags: u32


class CuseInitOut(WireStruct):
    """struct cuse_init_out, 72 bytes."""

    major: u32
    minor: u32
    unused: pad(4)
    flags: u32
    max_read: u32
    max_write: u32
    dev_major: u32
    dev_minor: u32
    spare: pad(40)


class InterruptIn(WireStruct):
    """struct fuse_interrupt_in, 8 bytes."""

    unique: u64


class BmapIn(WireStruct):
    """struct fuse_bmap_in, 16 bytes."""

    block: u64
    blocksize: u32
    padding: pad(4)


class BmapOut(WireStruct):
    """struct fuse_bmap_out, 8 bytes."""

    block: u64


class IoctlIn(WireStruct):
    """struct fuse_ioctl_in, 32 bytes."""

    fh: u64
    flags: u32
    cmd: u32
    arg: u64
    in_size: u32
    out_size: u32


class IoctlIovec(WireStruct):
    """struct fuse_ioctl_iovec, 16 bytes."""

    base: u64
    len: u64


class IoctlOut(WireStruct):
    """struct fuse_ioctl_out, 16 bytes."""

    result: i32
    flags: u32
    in_iovs: u32
    out_iovs: u32


class PollIn(WireStruct):
    """struct fuse_poll_in, 24 bytes."""

    fh: u64
    kh: u64
    flags: u32
    events: u32


class PollOut(WireStruct):
    """struct fuse_poll_out, 8 bytes."""

    revents: u32
    padding: pad(4)


class NotifyPollWakeupOut(WireStruct):
    """struct fuse_notify_poll_wakeup_out, 8 bytes."""

    kh: u64


class FallocateIn(WireStruct):
    """struct fuse_fallocate_in, 32 bytes."""

    fh: u64
    offset: u64
    length: u64
    mode: u32
    padding: pad(4)


class InHeader(WireStruct):
    """struct fuse_in_header, 40 bytes."""

    len: u32
    opcode: u32
    unique: u64
    nodeid: u64
    uid: u32
    gid: u32
    pid: u32
    total_extlen: u16
    padding: pad(2)


class OutHeader(WireStruct):
    """struct fuse_out_header, 16 bytes."""

    len: u32
    error: i32
    unique: u64


class Dirent(WireStruct):
    """struct fuse_dirent, 24 bytes."""

    ino: u64
    off: u64
    namelen: u32
    type: u32


class Direntplus(WireStruct):
    """struct fuse_direntplus, 152 bytes."""

    entry_out: EntryOut
    dirent: Dirent


class NotifyInvalInodeOut(WireStruct):
    """struct fuse_notify_inval_inode_out, 24 bytes."""

    ino: u64
    off: i64
    len: i64


class NotifyInvalEntryOut(WireStruct):
    """struct fuse_notify_inval_entry_out, 16 bytes."""

    parent: u64
    namelen: u32
    flags: u32


class NotifyDeleteOut(WireStruct):
    """struct fuse_notify_delete_out, 24 bytes."""

    parent: u64
    child: u64
    namelen: u32
    padding: pad(4)


class NotifyStoreOut(WireStruct):
    """struct fuse_notify_store_out, 24 bytes."""

    nodeid: u64
    offset: u64
    size: u32
    padding: pad(4)


class NotifyRetrieveOut(WireStruct):
    """struct fuse_notify_retrieve_out, 32 bytes."""

    notify_unique: u64
    nodeid: u64
    offset: u64
    size: u32
    padding: pad(4)


class NotifyRetrieveIn(WireStruct):
    """struct fuse_notify_retrieve_in, 40 bytes."""

    dummy1: pad(8)
    offset: u64
    size: u32
    dummy2: pad(4)
    dummy3: pad(8)
    dummy4: pad(8)


class NotifyPruneOut(WireStruct):
    """struct fuse_notify_prune_out, 16 bytes."""

    count: u32
    padding: pad(4)
    spare: pad(8)


class BackingMap(WireStruct):
    """struct fuse_backing_map, 16 bytes."""

    fd: i32
    flags: u32
    padding: pad(8)


class LseekIn(WireStruct):
    """struct fuse_lseek_in, 24 bytes."""

    fh: u64
    offset: u64
    whence: u32
    padding: pad(4)


class LseekOut(WireStruct):
    """struct fuse_lseek_out, 8 bytes."""

    offset: u64


class CopyFileRangeIn(WireStruct):
    """struct fuse_copy_file_range_in, 56 bytes."""

    fh_in: u64
    off_in: u64
    nodeid_out: u64
    fh_out: u64
    off_out: u64
    len: u64
    flags: u64


class CopyFileRangeOut(WireStruct):
    """struct fuse_copy_file_range_out, 8 bytes."""

    bytes_copied: u64


class SetupmappingIn(WireStruct):
    """struct fuse_setupmapping_in, 40 bytes."""

    fh: u64
    foffset: u64
    len: u64
    flags: u64
    moffset: u64


class RemovemappingIn(WireStruct):
    """struct fuse_removemapping_in, 4 bytes."""

    count: u32


class RemovemappingOne(WireStruct):
    """struct fuse_removemapping_one, 16 bytes."""

    moffset: u64
    len: u64


class SyncfsIn(WireStruct):
    """struct fuse_syncfs_in, 8 bytes."""

    padding: pad(8)


class Secctx(WireStruct):
    """struct fuse_secctx, 8 bytes."""

    size: u32
    padding: pad(4)


class SecctxHeader(WireStruct):
    """struct fuse_secctx_header, 8 bytes."""

    size: u32
    nr_secctx: u32


class ExtHeader(WireStruct):
    """struct fuse_ext_header, 8 bytes."""

    size: u32
    type: u32


class SuppGroups(WireStruct):
    """struct fuse_supp_groups, 4 bytes."""

    nr_groups: u32


class UringEntInOut(WireStruct):
    """struct fuse_uring_ent_in_out, 32 bytes."""

    flags: u64
    commit_id: u64
    payload_sz: u32
    padding: pad(4)
    reserved: pad(8)


class UringReqHeader(WireStruct):
    """struct fuse_uring_req_header, 288 bytes."""

    in_out: chars(128)
    op_in: chars(128)
    ring_ent_in_out: UringEntInOut


class UringCmdReq(WireStruct):
    """struct fuse_uring_cmd_req, 24 bytes."""

    flags: u64
    commit_id: u64
    qid: u16
    padding: pad(6)
