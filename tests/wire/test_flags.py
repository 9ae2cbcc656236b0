"""Every flag and limit against FUSE 7.45's values, against the installed header, and the tables that print them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from transfuse.wire import flags
from transfuse.wire.flags import names

VALUES: dict[str, int] = {
    "FUSE_KERNEL_VERSION": 0x7,
    "FUSE_KERNEL_MINOR_VERSION": 0x2d,
    "FUSE_ROOT_ID": 0x1,
    "FOPEN_DIRECT_IO": 0x1,
    "FOPEN_CACHE_DIR": 0x8,
    "FOPEN_STREAM": 0x10,
    "FOPEN_NOFLUSH": 0x20,
    "FUSE_ASYNC_READ": 0x1,
    "FUSE_FILE_OPS": 0x4,
    "FUSE_BIG_WRITES": 0x20,
    "FUSE_DONT_MASK": 0x40,
    "FUSE_ASYNC_DIO": 0x8000,
    "FUSE_PARALLEL_DIROPS": 0x40000,
    "FUSE_POSIX_ACL": 0x100000,
    "FUSE_MAX_PAGES": 0x400000,
    "FUSE_SUBMOUNTS": 0x8000000,
    "FUSE_INIT_EXT": 0x40000000,
    "FUSE_HAS_RESEND": 0x8000000000,
    "FUSE_GETATTR_FH": 0x1,
    "FUSE_LK_FLOCK": 0x1,
    "FUSE_IOCTL_DIR": 0x10,
    "FUSE_IOCTL_MAX_IOV": 0x100,
    "FUSE_ATTR_SUBMOUNT": 0x1,
    "FUSE_ATTR_DAX": 0x2,
    "FUSE_EXPIRE_ONLY": 0x1,
    "FUSE_MIN_READ_BUFFER": 0x2000,
    "FUSE_NAME_OFFSET": 0x18,
    "FUSE_DEV_IOC_CLONE": 0x8004e500,
    "FUSE_DEV_IOC_BACKING_OPEN": 0x4010e501,
    "FUSE_DEV_IOC_BACKING_CLOSE": 0x4004e502,
    "FUSE_DEV_IOC_SYNC_INIT": 0xe503,
    "FATTR_MODE": 0x1,
    "FATTR_UID": 0x2,
    "FATTR_GID": 0x4,
    "FATTR_SIZE": 0x8,
    "FATTR_ATIME": 0x10,
    "FATTR_MTIME": 0x20,
    "FATTR_FH": 0x40,
    "FATTR_ATIME_NOW": 0x80,
    "FATTR_MTIME_NOW": 0x100,
    "FATTR_LOCKOWNER": 0x200,
    "FATTR_CTIME": 0x400,
    "FATTR_KILL_SUIDGID": 0x800,
    "FOPEN_KEEP_CACHE": 0x2,
    "FOPEN_NONSEEKABLE": 0x4,
    "FOPEN_PARALLEL_DIRECT_WRITES": 0x40,
    "FOPEN_PASSTHROUGH": 0x80,
    "FUSE_POSIX_LOCKS": 0x2,
    "FUSE_ATOMIC_O_TRUNC": 0x8,
    "FUSE_EXPORT_SUPPORT": 0x10,
    "FUSE_SPLICE_WRITE": 0x80,
    "FUSE_SPLICE_MOVE": 0x100,
    "FUSE_SPLICE_READ": 0x200,
    "FUSE_FLOCK_LOCKS": 0x400,
    "FUSE_HAS_IOCTL_DIR": 0x800,
    "FUSE_AUTO_INVAL_DATA": 0x1000,
    "FUSE_DO_READDIRPLUS": 0x2000,
    "FUSE_READDIRPLUS_AUTO": 0x4000,
    "FUSE_WRITEBACK_CACHE": 0x10000,
    "FUSE_NO_OPEN_SUPPORT": 0x20000,
    "FUSE_HANDLE_KILLPRIV": 0x80000,
    "FUSE_ABORT_ERROR": 0x200000,
    "FUSE_CACHE_SYMLINKS": 0x800000,
    "FUSE_NO_OPENDIR_SUPPORT": 0x1000000,
    "FUSE_EXPLICIT_INVAL_DATA": 0x2000000,
    "FUSE_MAP_ALIGNMENT": 0x4000000,
    "FUSE_HANDLE_KILLPRIV_V2": 0x10000000,
    "FUSE_SETXATTR_EXT": 0x20000000,
    "FUSE_INIT_RESERVED": 0x8000000000000000,
    "FUSE_SECURITY_CTX": 0x100000000,
    "FUSE_HAS_INODE_DAX": 0x200000000,
    "FUSE_CREATE_SUPP_GROUP": 0x400000000,
    "FUSE_HAS_EXPIRE_ONLY": 0x800000000,
    "FUSE_DIRECT_IO_ALLOW_MMAP": 0x1000000000,
    "FUSE_PASSTHROUGH": 0x2000000000,
    "FUSE_NO_EXPORT_SUPPORT": 0x4000000000,
    "FUSE_ALLOW_IDMAP": 0x10000000000,
    "FUSE_OVER_IO_URING": 0x20000000000,
    "FUSE_REQUEST_TIMEOUT": 0x40000000000,
    "FUSE_RELEASE_FLUSH": 0x1,
    "FUSE_RELEASE_FLOCK_UNLOCK": 0x2,
    "FUSE_WRITE_CACHE": 0x1,
    "FUSE_WRITE_LOCKOWNER": 0x2,
    "FUSE_WRITE_KILL_SUIDGID": 0x4,
    "FUSE_READ_LOCKOWNER": 0x2,
    "FUSE_IOCTL_COMPAT": 0x1,
    "FUSE_IOCTL_UNRESTRICTED": 0x2,
    "FUSE_IOCTL_RETRY": 0x4,
    "FUSE_IOCTL_32BIT": 0x8,
    "FUSE_IOCTL_COMPAT_X32": 0x20,
    "FUSE_POLL_SCHEDULE_NOTIFY": 0x1,
    "FUSE_FSYNC_FDATASYNC": 0x1,
    "FUSE_OPEN_KILL_SUIDGID": 0x1,
    "FUSE_SETXATTR_ACL_KILL_SGID": 0x1,
    "FUSE_UNIQUE_RESEND": 0x8000000000000000,
    "FUSE_INVALID_UIDGID": 0xffffffff,
    "FUSE_SETUPMAPPING_FLAG_WRITE": 0x1,
    "FUSE_SETUPMAPPING_FLAG_READ": 0x2,
    "FUSE_MAX_NR_SECCTX": 0x1f,
    "FUSE_EXT_GROUPS": 0x20,
    "FUSE_IO_URING_CMD_REGISTER": 0x1,
    "FUSE_IO_URING_CMD_COMMIT_AND_FETCH": 0x2,
}
"""Computed by gcc from the header of Linux 7.2 (FUSE_INIT_RESERVED is 1 << 31 there, in flags2)."""

TABLES = {name: value for name, value in vars(flags).items() if name.endswith("_NAMES")}


@pytest.mark.parametrize("name", VALUES)
def test_value(name: str) -> None:
    assert getattr(flags, name) == VALUES[name]


def test_every_constant_is_checked() -> None:
    own = {name for name in vars(flags) if re.match("F(USE|OPEN|ATTR)_", name) and not name.endswith("_NAMES")}
    assert own == set(VALUES)


@pytest.mark.needs("gcc")
def test_values_agree_with_the_installed_header(tmp_path: Path) -> None:
    header = Path("/usr/include/linux/fuse.h")
    if not header.exists():
        pytest.skip("needs <linux/fuse.h>: not found")
    have = set(re.findall(r"^#define\s+(F\w+)\s", header.read_text(), re.M))
    # FUSE_INIT_RESERVED is bit 31 of flags2 in the header; the minor version is the header's own.
    checked = sorted(have & set(VALUES) - {"FUSE_INIT_RESERVED", "FUSE_KERNEL_MINOR_VERSION"})
    source = tmp_path / "flags.c"
    source.write_text(
        "#include <stdio.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <sys/ioctl.h>\n"
        "#include <linux/fuse.h>\nint main(void) {\n"
        + "\n".join(f'printf("%s %llu\\n", "{name}", (unsigned long long)({name}));' for name in checked)
        + "\nreturn 0; }\n"
    )
    subprocess.run(["gcc", "-o", tmp_path / "flags", source], check=True, timeout=60)
    output = subprocess.run([tmp_path / "flags"], check=True, capture_output=True, text=True, timeout=10).stdout
    found = {line.split()[0]: int(line.split()[1]) for line in output.splitlines()}
    assert len(found) > 60
    assert found == {name: VALUES[name] for name in checked}


@pytest.mark.parametrize("table", TABLES)
def test_tables_name_single_bits(table: str) -> None:
    for bit, name in TABLES[table].items():
        assert bit & (bit - 1) == 0
        assert names(bit, TABLES[table]) == name


def test_init_bits_do_not_collide() -> None:
    assert len(flags.INIT_NAMES) == 42
    assert sum(flags.INIT_NAMES) == (1 << 43) - 1 - (1 << 31)


def test_names_of_nothing_is_zero() -> None:
    assert names(0, flags.FOPEN_NAMES) == "0"


def test_names_joins_known_bits_and_shows_the_rest_in_hexadecimal() -> None:
    assert names(flags.FOPEN_DIRECT_IO | flags.FOPEN_KEEP_CACHE | 0x4000, flags.FOPEN_NAMES) == (
        "DIRECT_IO|KEEP_CACHE|0x4000"
    )


def test_names_of_unknown_bits_only_is_hexadecimal() -> None:
    assert names(0x30000, flags.FOPEN_NAMES) == "0x30000"
