"""The options of `mount` and `serve`, in one table: each is a flag (`--entry-timeout 5`) and an -o option
(`entry_timeout=5`).

Flags are turned into -o strings and read together with those given by -o, so there is one reader and one set of
rules. What the kernel and mount(8) know is checked by `transports.mount.options`; of the rest, this table knows what
belongs to the program (threads, logs), what to mounting alone, and what to the source (caching, and a class's own
arguments). A name that nobody knows is refused with the nearest that exists.
"""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transfuse.cli.errors import USAGE, CommandError
from transfuse.transports.mount.options import MountOptions, parse_options, unknown_option

__all__ = [
    "MOUNT_FLAGS",
    "OPTIONS",
    "Option",
    "Settings",
    "add_flags",
    "add_source_flags",
    "read_settings",
    "refuse_extra",
    "refuse_mount_options",
]

MAX_TIMEOUT_S = 315_360_000.0
"""Ten years: as good as forever, and far from where the kernel's arithmetic could wrap."""
MAX_WORKERS = 256
"""More threads than that only fight for the interpreter."""

Value = bool | int | float | str


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_TIMEOUT_S:
        raise ValueError(f"takes seconds, 0 to {MAX_TIMEOUT_S:.0f}")
    return value


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_WORKERS:
        raise ValueError(f"takes a number of threads, 1 to {MAX_WORKERS}")
    return int(text)


def _path(text: str) -> str:
    if not text:
        raise ValueError("takes the path of a file")
    return text


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            near = difflib.get_close_matches(text, choices, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"takes {', '.join(choices[:-1])} or {choices[-1]}{meant}")
        return text

    return read


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `name` as behind -o; a flag takes no value. `owner` is "source", "program" (whatever it serves) or
    "mount"."""

    name: str
    owner: str
    help: str
    metavar: str = ""
    read: Callable[[str], Value] | None = None
    """Makes the value from its text (ValueError says what it takes); None: a flag."""
    short: str = ""

    @property
    def flag(self) -> str:
        """The long flag."""
        return "--" + self.name.replace("_", "-")


OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option("cache", "source", "how long the kernel may believe names, attributes and data: never, auto or always",
               "MODE", _one_of("never", "auto", "always")),
        Option("entry_timeout", "source", "how long a name is believed, in seconds", "S", _seconds),
        Option("attr_timeout", "source", "how long attributes are believed, in seconds", "S", _seconds),
        Option("negative_timeout", "source", "how long the absence of a name is believed, in seconds", "S", _seconds),
        Option("writeback", "source", "the kernel collects writes and sends them later (excludes passthrough)"),
        Option("no_passthrough", "source", "data goes through the server even where the kernel could move it itself"),
        Option("direct_io", "source", "reads and writes bypass the kernel's page cache"),
        Option("no_open", "source", "files are opened without a request: for many small files (needs cache=always)"),
        Option("workers", "program", "most threads that serve requests", "N", _workers),
        Option("method", "mount", "how to mount: auto (the first that works), fsmount, mount or fusermount3",
               "M", _one_of("auto", "fsmount", "mount", "fusermount3")),
        Option("io_uring", "program", "requests come by io_uring, where that is possible"),
        Option("no_allow_other", "mount", "for the owner of the mount only, also when root mounts a directory"),
        Option("no_default_permissions", "mount", "the kernel leaves permission checks to the filesystem"),
        Option("foreground", "mount", "stay in the foreground", short="-f"),
        Option("debug", "program", "log everything, and show tracebacks", short="-d"),
        Option("log_file", "program", "append the log to FILE", "FILE", _path),
    )
}  # fmt: skip

MOUNT_FLAGS: dict[str, tuple[str, str]] = {
    "--read-only": ("ro", "nothing can be changed"),
    "--allow-other": ("allow_other", "other users may use the mount (root's mounts of a directory do by default)"),
    "--default-permissions": ("default_permissions", "the kernel checks permissions by mode, owner and group"),
    "--auto-unmount": ("auto_unmount", "unmount when the server dies, however it dies"),
    "--nonempty": ("nonempty", "mount over a directory with something in it"),
}
"""Flags for the most used options of the kernel's side; the others are given with -o."""
_WITHOUT_MOUNT = ("ro",)


@dataclass(slots=True)
class Settings:
    """All options of one command, checked."""

    mount: MountOptions
    values: dict[str, Value] = field(default_factory=dict)
    """Options of OPTIONS that were given, by name."""
    extra: dict[str, str | None] = field(default_factory=dict)
    """Options that only the source can know, by name; None: given without a value."""

    def get(self, name: str, default: Any = None) -> Any:
        """The value of one of OPTIONS."""
        assert name in OPTIONS
        return self.values.get(name, default)

    def for_source(self) -> dict[str, Value]:
        """Those of `values` that are the source's to act on."""
        return {name: value for name, value in self.values.items() if OPTIONS[name].owner == "source"}


class _AsOption(argparse.Action):
    """Appends "name" or "name=value" to args.o, as if it had been given with -o."""

    def __init__(self, *args: Any, option: str, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.option = option

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        text = self.option
        if self.nargs != 0:
            escaped = str(values).replace("\\", "\\\\").replace(",", "\\,")
            text = f"{self.option}={escaped}"
        namespace.o = [*namespace.o, text]


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """-o for commands that look into a source without mounting it."""
    parser.add_argument(
        "-o", action="append", default=[], metavar="OPTION[,...]",
        help="options of the source: a Python class's own arguments, as name=value",
    )  # fmt: skip


def add_flags(parser: argparse.ArgumentParser, *, mount: bool = True) -> None:
    """-o and all flags of `mount`, or only those that do not need one."""
    parser.add_argument(
        "-o",
        action="append",
        default=[],
        metavar="OPTION[,...]",
        help="options of the kernel, of mount(8) and of the source; several at a time"
        if mount
        else "options of the source; several at a time",
    )
    for flag, (name, text) in MOUNT_FLAGS.items():
        if mount or name in _WITHOUT_MOUNT:
            parser.add_argument(flag, action=_AsOption, option=name, nargs=0, dest=argparse.SUPPRESS, help=text)
    for option in OPTIONS.values():
        if not mount and option.owner == "mount":
            continue
        flags = [option.short, option.flag] if option.short else [option.flag]
        if option.read is None:
            parser.add_argument(
                *flags, action=_AsOption, option=option.name, nargs=0, dest=argparse.SUPPRESS, help=option.help
            )
        else:
            parser.add_argument(
                *flags,
                action=_AsOption,
                option=option.name,
                metavar=option.metavar,
                dest=argparse.SUPPRESS,
                help=option.help,
            )


def read_settings(strings: Sequence[str], *, sloppy: bool = False) -> Settings:
    """Options from the values of all -o arguments (flags among them already).

    Raises MountOptionError for what the kernel would not take, CommandError for values that ours do not take. Options
    that nobody here knows come back in `extra`: the source knows whether they are its own (see `refuse_extra`).
    """
    parsed = parse_options(strings)
    settings = Settings(parsed)
    for name, text in parsed.rest:
        option = OPTIONS.get(name)
        if option is None:
            settings.extra[name] = text
        elif option.read is None:
            if text is not None:
                raise CommandError(f"option {name}={text}", "takes no value", f"give it as -o {name}", USAGE)
            settings.values[name] = True
        elif text is None:
            raise CommandError(f"option {name}", "needs a value", f"give it as -o {name}={option.metavar}", USAGE)
        else:
            try:
                settings.values[name] = option.read(text)
            except ValueError as error:
                raise CommandError(f"option {name}={text}", str(error), code=USAGE) from error
    for name in ("allow_other", "default_permissions"):
        if getattr(parsed, name) and settings.get(f"no_{name}"):
            raise CommandError(f"option no_{name}", f"excludes {name}", "give one of the two", USAGE)
    if sloppy:
        settings.extra.clear()
    return settings


def refuse_mount_options(
    settings: Settings, given: Sequence[str], owners: Iterable[str], *, read_only: bool = False
) -> None:
    """CommandError for options that have no meaning where nothing is mounted: all but those of `owners` and, if it may
    be `read_only`, ro."""
    kernel = replace(settings.mount, rest=[], read_only=settings.mount.read_only and not read_only)
    if kernel != parse_options([]) or any(OPTIONS[name].owner not in owners for name in settings.values):
        raise CommandError(
            f"-o {','.join(given)}", "there are mount options in it", "leave them out: nothing is mounted here", USAGE
        )


def refuse_extra(settings: Settings, known: Iterable[str] = ()) -> None:
    """MountOptionError for the first option that is not known to anybody; `known` are names the source takes."""
    for name, value in settings.extra.items():
        raise unknown_option(name, value, [*OPTIONS, *known])
