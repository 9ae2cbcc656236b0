"""A backing file with something around its registration."""

from __future__ import annotations

from collections.abc import Callable

from transfuse.fs.backing import BackingFile


def test_backing_file_is_its_fd() -> None:
    assert BackingFile(7, lambda register, fd: 0) == 7


def test_registration_happens_inside_around() -> None:
    seen: list[object] = []

    def around(register: Callable[[int], int], fd: int) -> int:
        seen.append("before")
        found = register(fd)
        seen.append("after")
        return found

    def register(fd: int) -> int:
        seen.append((type(fd), fd))
        return 41

    assert BackingFile(7, around).registering(register) == 41
    assert seen == ["before", (int, 7), "after"]
