"""What a mount that can't be made or ended says: one line with the step, the reason and the way out.

`MountOptionError` is about what was asked for, before the kernel is involved. `MountError` is about a step that was
tried: it keeps the errno (it is an OSError), the kernel's or helper's own words, and what to do about it.
"""

from __future__ import annotations

import os

__all__ = ["MountError", "MountOptionError"]


class MountOptionError(ValueError):
    """A mount option that can't be used. `option`, `value` (None: it had none) and `takes`: what it takes instead."""

    def __init__(self, option: str, value: str | None, takes: str) -> None:
        self.option = option
        self.value = value
        self.takes = takes
        given = option if value is None else f"{option}={value}"
        super().__init__(f"option {_one_line(given)}: {takes}")


class MountError(OSError):
    """One step of mounting or unmounting failed.

    `step` names it ("open /dev/fuse", "fsconfig fd", "move_mount", "fusermount3"), `errno` is the kernel's, `text` is
    what the kernel or the helper said in its own words ("" if nothing), `where` is the mount point and `hint` says
    what to do about it.
    """

    def __init__(self, code: int, step: str, *, where: bytes = b"", text: str = "", hint: str = "") -> None:
        super().__init__(code, os.strerror(code))
        self.step = step
        self.where = where
        self.text = text
        self.hint = hint

    def __str__(self) -> str:
        reason = self.strerror or ""
        said = f"{reason} ({self.text})" if self.text else reason
        parts = [os.fsdecode(self.where)] if self.where else []
        line = ": ".join([*parts, self.step, said])
        return _one_line(f"{line}; {self.hint}" if self.hint else line)


def _one_line(text: str) -> str:
    """Control characters (a newline in a mount point's name, say) are shown as escapes."""
    shown = "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else ascii(c)[1:-1] for c in text)
    return shown.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
