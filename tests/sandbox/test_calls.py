"""The tables of system calls, compared with the C compiler's headers."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from transfuse.sandbox.calls import ALLOWED, EXAMINED, REFUSED

ALL = {**ALLOWED, **REFUSED, **EXAMINED}
HEADERS = {0: "asm/unistd_64.h", 1: "asm-generic/unistd.h"}


def test_no_call_is_in_two_tables_and_no_number_is_two_calls() -> None:
    assert len(ALL) == len(ALLOWED) + len(REFUSED) + len(EXAMINED)
    for column in (0, 1):
        numbers = [row[column] for row in ALL.values() if row[column] is not None]
        assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("column", HEADERS)
def test_numbers_are_those_of_the_headers(column: int) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler: not found on PATH")
    words = [compiler, "-E", "-dM", "-D__BITS_PER_LONG=64", "-D__ARCH_WANT_RENAMEAT", "-D__ARCH_WANT_SET_GET_RLIMIT"]
    words += ["-D__ARCH_WANT_NEW_STAT", "-x", "c", "-"]
    done = subprocess.run(words, input=f"#include <{HEADERS[column]}>\n", text=True, capture_output=True, timeout=60)
    if done.returncode:
        pytest.skip(f"{HEADERS[column]} is not found here")
    text = done.stdout
    common = dict(re.findall(r"#define (__NR3264_\w+) (\d+)", text))
    named = re.findall(r"#define __NR_(\w+) (\w+)", text)
    header = {name: int(common.get(value, value)) for name, value in named if common.get(value, value).isdigit()}
    header.pop("syscalls", None)  # how many there are
    assert len(header) > 200
    ours = {name: row[column] for name, row in ALL.items()}
    assert {name: (number, header[name]) for name, number in ours.items() if header.get(name, number) != number} == {}
    newest = max(header.values())
    made_up = [name for name, number in ours.items() if number is not None and number <= newest and name not in header]
    assert made_up == []
