"""O_APPEND."""

from __future__ import annotations

import fcntl
import os

from transfuse.testing.posix.env import Env, check, equal, get, opened, put

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT


def case_always_writes_at_the_end(env: Env) -> None:
    """Whatever lseek said."""
    put("f", b"abc")
    with opened("f", os.O_RDWR | os.O_APPEND) as fd:
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"X")
        equal(os.lseek(fd, 0, os.SEEK_CUR), 4, "position")
        os.lseek(fd, 0, os.SEEK_SET)
        equal(os.read(fd, 2), b"ab", "read from the start")
        os.write(fd, b"Y")
    equal(get("f"), b"abcXY", "content")


def case_pwrite_appends_on_linux(env: Env) -> None:
    """pwrite ignores its offset under O_APPEND (a Linux bug kept for good)."""
    put("f", b"abc")
    with opened("f", os.O_WRONLY | os.O_APPEND) as fd:
        os.pwrite(fd, b"X", 0)
    equal(get("f"), b"abcX", "content")


def case_two_descriptors_alternate(env: Env) -> None:
    """Each write goes behind the other's."""
    with opened("f", _APPEND) as one, opened("f", _APPEND) as two:
        for index in range(100):
            os.write(one, b"a%02d" % index)
            os.write(two, b"b%02d" % index)
    equal(get("f"), b"".join(b"a%02db%02d" % (index, index) for index in range(100)), "content")


def case_two_processes_lose_nothing(env: Env) -> None:
    """Four processes append 250 lines of 100 bytes each: all lines are whole and there."""

    def write(letter: int) -> None:
        with opened("f", _APPEND) as fd:
            for index in range(250):
                os.write(fd, (b"%c%03d" % (letter, index)).ljust(99, b".") + b"\n")

    children = [
        env.spawn(lambda _other, letter=letter: write(letter))  # type: ignore[misc]
        for letter in b"abcd"
    ]
    for child in children:
        child.result()
    lines = get("f").split(b"\n")[:-1]
    equal(os.stat("f").st_size, 100_000, "size")
    equal(len(set(lines)), 1000, "different lines")
    check(all(len(line) == 99 for line in lines), "a line is broken")


def case_after_truncation_by_another(env: Env) -> None:
    """The end is where it is now."""
    put("f", b"x" * 1000)
    with opened("f", _APPEND) as fd:
        os.write(fd, b"1")
        os.truncate("f", 10)
        os.write(fd, b"2")
    equal(get("f"), b"x" * 10 + b"2", "content")


def case_growth_by_another_descriptor(env: Env) -> None:
    """An append goes behind what a plain descriptor wrote."""
    put("f", b"")
    with opened("f", _APPEND) as appending, opened("f", os.O_WRONLY) as plain:
        os.pwrite(plain, b"12345", 5)
        os.write(appending, b"end")
    equal(get("f"), bytes(5) + b"12345end", "content")


def case_flag_set_later(env: Env) -> None:
    """F_SETFL turns O_APPEND on and off."""
    put("f", b"abc")
    with opened("f", os.O_WRONLY) as fd:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.write(fd, b"D")
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        os.pwrite(fd, b"A", 0)
    equal(get("f"), b"AbcD", "content")


def case_appending_mode_of_the_io_module(env: Env) -> None:
    """open("ab") tells the right position."""
    put("f", b"12345")
    with open("f", "ab") as file:
        file.write(b"6")
        equal(file.tell(), 6, "position")
