"""The form in which mount(8) calls: `transfuse SOURCE DIR -o options`, turned into the arguments of `mount`.

`mount -t fuse.transfuse SOURCE DIR` runs /sbin/mount.fuse (package fuse3), which runs `transfuse SOURCE DIR -o
OPTIONS,dev,suid` by a shell; fstab goes the same way. A link /sbin/mount.transfuse to this program is called directly
by mount(8), with its own short flags: -s ignores unknown options, -f does everything but mount, -n and -v change
nothing, -r and -w stand for ro and rw, -t and -N name what is known or done already (mount(8), "external helpers").
"""

from __future__ import annotations

import getopt
import os
from collections.abc import Collection, Sequence

from transfuse.cli.errors import USAGE, CommandError

__all__ = ["as_mount", "is_call", "is_helper_name"]

_FLAGS = "sfnvrwho:t:N:"


def is_helper_name(program: str) -> bool:
    """Was this program called as mount.SOMETHING?"""
    return os.path.basename(program).startswith("mount.")


def is_call(arguments: Sequence[str], command_names: Collection[str]) -> bool:
    """Is this mount(8)'s form: two words that are not flags, the first of them no command?"""
    if not arguments or arguments[0].startswith("-") or arguments[0] in command_names:
        return False
    try:
        _, words = getopt.gnu_getopt(list(arguments), _FLAGS)
    except getopt.GetoptError:
        return len([word for word in arguments[:2] if not word.startswith("-")]) == 2
    return len(words) >= 2


def as_mount(arguments: Sequence[str]) -> list[str]:
    """The same as arguments of the `mount` command. CommandError for flags that mount(8) does not pass."""
    try:
        flags, words = getopt.gnu_getopt(list(arguments), _FLAGS)
    except getopt.GetoptError as error:
        raise CommandError(
            "", f"{error} in mount(8)'s form", "its other options are given by `transfuse mount`", USAGE
        ) from error
    if len(words) != 2:
        raise CommandError(
            "", f"mount(8)'s form is SOURCE DIR -o OPTIONS, not {' '.join(words) or 'nothing'}", code=USAGE
        )
    result = ["mount", "--called-by-mount"]
    plain = {"-s": ["--sloppy"], "-f": ["--fake"], "-r": ["-o", "ro"], "-w": ["-o", "rw"], "-h": ["--help"]}
    for flag, value in flags:
        if flag == "-o":
            result.append(f"-o{value}")
        else:
            result += plain.get(flag, [])
    return [*result, "--", *words]
