"""The table of operations: numbers, completeness, and what a reader of the table relies on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from transfuse.wire.opcodes import (
    MAX_OPCODE,
    NOTIFICATIONS,
    OPERATIONS,
    NotifyCode,
    Opcode,
    Operation,
    opcode_name,
)

NUMBERS = (
    "LOOKUP 1 FORGET 2 GETATTR 3 SETATTR 4 READLINK 5 SYMLINK 6 MKNOD 8 MKDIR 9 UNLINK 10 RMDIR 11 RENAME 12 LINK 13 "
    "OPEN 14 READ 15 WRITE 16 STATFS 17 RELEASE 18 FSYNC 20 SETXATTR 21 GETXATTR 22 LISTXATTR 23 REMOVEXATTR 24 "
    "FLUSH 25 INIT 26 OPENDIR 27 READDIR 28 RELEASEDIR 29 FSYNCDIR 30 GETLK 31 SETLK 32 SETLKW 33 ACCESS 34 CREATE 35 "
    "INTERRUPT 36 BMAP 37 DESTROY 38 IOCTL 39 POLL 40 NOTIFY_REPLY 41 BATCH_FORGET 42 FALLOCATE 43 READDIRPLUS 44 "
    "RENAME2 45 LSEEK 46 COPY_FILE_RANGE 47 SETUPMAPPING 48 REMOVEMAPPING 49 SYNCFS 50 TMPFILE 51 STATX 52 "
    "COPY_FILE_RANGE_64 53 CUSE_INIT 4096"
).split()
EXPECTED = {name: int(number) for name, number in zip(NUMBERS[::2], NUMBERS[1::2], strict=True)}
NOTIFY = "POLL 1 INVAL_INODE 2 INVAL_ENTRY 3 STORE 4 RETRIEVE 5 DELETE 6 RESEND 7 INC_EPOCH 8 PRUNE 9".split()

# Whole request lengths of Linux 6.18 for names of one letter: header 40, structure, names with NUL, payload of 0.
LENGTHS = {
    "LOOKUP": 42,
    "FORGET": 48,
    "GETATTR": 56,
    "SETATTR": 128,
    "READLINK": 40,
    "SYMLINK": 44,
    "MKNOD": 58,
    "MKDIR": 50,
    "RENAME": 52,
    "RENAME2": 60,
    "LINK": 50,
    "OPEN": 48,
    "READ": 80,
    "WRITE": 80,
    "RELEASE": 64,
    "CREATE": 58,
    "INIT": 104,
    "SETLK": 88,
    "BATCH_FORGET": 48,
    "STATX": 64,
    "COPY_FILE_RANGE_64": 96,
    "DESTROY": 40,
}


def test_opcodes_are_the_protocols() -> None:
    assert {opcode.name: int(opcode) for opcode in Opcode} == EXPECTED


def test_notify_codes_are_the_protocols() -> None:
    expected = {name: int(number) for name, number in zip(NOTIFY[::2], NOTIFY[1::2], strict=True)}
    assert {code.name: int(code) for code in NotifyCode} == expected


def test_every_opcode_and_notification_has_a_row() -> None:
    assert set(OPERATIONS) == {int(opcode) for opcode in Opcode}
    assert set(NOTIFICATIONS) == {int(code) for code in NotifyCode}


def test_max_opcode_ends_the_dense_part() -> None:
    assert max(opcode for opcode in OPERATIONS if opcode < 4096) == MAX_OPCODE


def test_rows_without_reply_declare_none() -> None:
    silent = {row.name for row in OPERATIONS.values() if not row.replies}
    assert silent == {"FORGET", "BATCH_FORGET", "INTERRUPT", "NOTIFY_REPLY"}
    assert not any(row.reply or row.reply_data for row in OPERATIONS.values() if not row.replies)


def test_extensions_are_possible_on_creating_operations_only() -> None:
    assert {row.name for row in OPERATIONS.values() if row.extensions} == {
        "SYMLINK",
        "MKNOD",
        "MKDIR",
        "CREATE",
        "TMPFILE",
    }


@pytest.mark.parametrize("name", LENGTHS)
def test_request_length_is_what_linux_sends(name: str) -> None:
    row: Operation = OPERATIONS[Opcode[name]]
    structure = row.request.SIZE if row.request is not None else 0
    assert 40 + structure + 2 * row.names == LENGTHS[name]


def test_name_of_an_unknown_opcode_is_its_number() -> None:
    assert opcode_name(99) == "opcode 99"
    assert opcode_name(1) == "LOOKUP"


@pytest.mark.needs("gcc")
def test_numbers_agree_with_the_installed_header(tmp_path: Path) -> None:
    header = Path("/usr/include/linux/fuse.h")
    if not header.exists():
        pytest.skip("needs <linux/fuse.h>: not found")
    text = header.read_text()
    ours = {f"FUSE_{name}": number for name, number in EXPECTED.items() if name != "CUSE_INIT"}
    ours |= {f"FUSE_NOTIFY_{code.name}": int(code) for code in NotifyCode}
    ours["CUSE_INIT"] = 4096
    have = {name: number for name, number in ours.items() if re.search(rf"^\s*{name}\s*=", text, re.M)}
    source = tmp_path / "numbers.c"
    source.write_text(
        "#include <stdio.h>\n#include <stdint.h>\n#include <linux/fuse.h>\nint main(void) {\n"
        + "\n".join(f'printf("%s %d\\n", "{name}", (int){name});' for name in have)
        + "\nreturn 0; }\n"
    )
    subprocess.run(["gcc", "-o", tmp_path / "numbers", source], check=True, timeout=60)
    output = subprocess.run([tmp_path / "numbers"], check=True, capture_output=True, text=True, timeout=10).stdout
    assert {line.split()[0]: int(line.split()[1]) for line in output.splitlines()} == have
    assert len(have) > 50
