"""What people see: sizes, times, modes, names, tables, progress. Plain text, or `rich` where it is installed.

Nothing here knows a filesystem. Names arrive as str with surrogate escapes and leave as the same bytes when standard
output is not a terminal; on a terminal control characters are escaped, since a file's name may hold anything.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

__all__ = [
    "columns",
    "human",
    "kind_of",
    "mode_text",
    "plural",
    "progress",
    "shown",
    "table",
    "time_text",
    "write_json",
]

PROGRESS_INTERVAL_S = 0.1
"""How often the plain progress line is rewritten."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def human(size: float) -> str:
    """Bytes with three significant digits at most: 812 B, 1.5 KiB, 23 MiB."""
    value = float(size)
    for unit in _UNITS:
        if abs(value) < 1023.5 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 9.95 else f"{value:.1f} {unit}"


def plural(count: int, one: str, many: str = "") -> str:
    """1 file, 2 files, 3 directories."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def kind_of(mode: int) -> str:
    """The file type in words."""
    return _KINDS.get(stat.S_IFMT(mode), f"type {stat.S_IFMT(mode):#o}")


def mode_text(mode: int) -> str:
    """drwxr-xr-x"""
    return stat.filemode(mode)


def time_text(time_ns: int, *, exact: bool = False) -> str:
    """A local time: to the minute, or to the nanosecond with its zone. Times outside the calendar stay numbers."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    try:
        local = time.localtime(seconds)
    except (OverflowError, OSError, ValueError):
        return f"@{seconds}"
    if exact:
        return time.strftime("%Y-%m-%d %H:%M:%S", local) + f".{rest:09d} " + time.strftime("%z", local)
    return time.strftime("%Y-%m-%d %H:%M", local)


def shown(name: str, out: IO[str] | None = None) -> str:
    """`name` as it may be printed: unchanged into a pipe or file, with control characters escaped on a terminal."""
    stream = sys.stdout if out is None else out
    if name.isprintable() or not stream.isatty():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def write_json(value: Any) -> None:
    """`value` as indented JSON on standard output. Bytes that are no UTF-8 are escaped as lone surrogates (\\udcXX)."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def columns(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> Iterator[str]:
    """Lines with the columns of `rows` aligned; those numbered in `right` to the right. The last is not padded."""
    if not rows:
        return
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        if len(row) - 1 not in right:
            cells[-1] = row[-1]
        yield "  ".join(cells).rstrip(" ") if not row[-1] else "  ".join(cells)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], marks: dict[str, str] | None = None) -> None:
    """Print a table. `marks` gives cells of the first column a colour (rich's names), where there are colours."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            pass
        else:
            grid = Table(box=None, pad_edge=False, header_style="bold")
            for title in header:
                grid.add_column(title, overflow="fold")
            for row in rows:
                first = Text(row[0], style=(marks or {}).get(row[0], ""))
                grid.add_row(first, *(Text(cell) for cell in row[1:]))
            Console().print(grid)
            return
    for line in columns([header, *rows]):
        print(line)


Advance = Callable[[int], None]


@contextmanager
def progress(title: str, total: int, wanted: bool | None = None) -> Iterator[Advance]:
    """A progress bar on standard error while the block runs; call the given function with each number of bytes done.

    `wanted` None: on a terminal only. The bar is taken away at the end; what was done is the command's to say.
    """
    stream = sys.stderr
    if not (stream.isatty() if wanted is None else wanted):
        yield lambda count: None
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
    except ImportError:
        with _plain_progress(title, total, stream) as advance:
            yield advance
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _plain_progress(title: str, total: int, stream: IO[str]) -> Iterator[Advance]:
    done = 0
    last = 0.0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last < PROGRESS_INTERVAL_S:
            return
        last = now
        share = 100 * done // total if total else 100
        try:
            width = os.get_terminal_size(stream.fileno()).columns
        except (OSError, ValueError):
            width = 80
        line = f"{title}  {share:3d}%  {human(done)} of {human(total)}"
        stream.write("\r" + line[: width - 1].ljust(width - 1))
        stream.flush()

    try:
        yield advance
    finally:
        if last:
            stream.write("\r\x1b[K")
            stream.flush()
