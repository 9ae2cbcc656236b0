"""Mount options, checked before the kernel is asked.

`parse_options` takes what was given with -o and sorts it into four kinds: parameters of the kernel's FUSE client
(`max_read`, `allow_other`, ...), flags that any mount has (`ro`, `noexec`, ...), options that only user space knows
(`auto_unmount`, and those that mount(8) and fstab pass on, like `noauto` or `x-systemd.automount`), and the rest, which
belongs to the filesystem. The kernel's rules are those of fuse_parse_param() in fs/fuse/inode.c:

* a parameter takes exactly what the table `TAKES` says; a flag takes no value; a number is plain decimal. (The kernel
  reads 010 as octal; here a leading zero is refused instead of guessed at.) `rootmode` is octal.
* `source`/`fsname`, `subtype` and `fd` given twice are refused. Other parameters, and flags with an opposite (ro/rw;
  atime, noatime, relatime and strictatime are one group), may be repeated: the last one counts, as with mount(8).
* `allow_other` and `allow_root` exclude each other. With `allow_root` the kernel is given allow_other, and the server
  must refuse everyone but root and the owner.
* `blksize` belongs to the block-device flavour (fuseblk), `mand` is gone from Linux: both are refused.
* nosuid and nodev are on unless `suid` or `dev` is asked for, as with every FUSE mount.

Options are separated by commas. A backslash makes the next character ordinary (`fsname=a\\,b`), and `\\054` is a
character by its three octal digits, both as in libfuse (lib/fuse_opt.c).

A subtype shows as the type `fuse.SUBTYPE`. It is part of a program's name (/sbin/mount.fuse.SUBTYPE) and of a
comma-separated list (mount -t), so it may hold neither '/' nor ',' nor blanks nor control characters.

Strings are str with surrogateescape; this module does no I/O.
"""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .errors import MountOptionError

__all__ = ["MountOptions", "Remount", "check_remount", "parse_options", "unknown_option"]

U32_MAX = 0xFFFFFFFF
MAX_ID = U32_MAX - 1  # (uid_t)-1 is no user: make_kuid() refuses it
MIN_READ = 4096  # fuse_fill_super_common(): fc->max_read = max(4096, max_read)
MAX_SUBTYPE = 250  # fsconfig(2) takes strings of at most 255 bytes; "fuse." comes before it for mount(2)
MAX_SOURCE = 4095  # mount(2) copies PATH_MAX bytes of it

TAKES = {
    "fd": "a decimal file descriptor of /dev/fuse, 0 to 2147483647",
    "rootmode": "an octal mode with a file type, such as 40000 (directory) or 100000 (regular file)",
    "user_id": f"a decimal user id, 0 to {MAX_ID}",
    "group_id": f"a decimal group id, 0 to {MAX_ID}",
    "max_read": f"a decimal number of bytes, 0 to {U32_MAX} (below {MIN_READ} counts as {MIN_READ})",
    "source": f"a name of 1 to {MAX_SOURCE} bytes",
    "fsname": f"a name of 1 to {MAX_SOURCE} bytes",
    "subtype": f"a name of 1 to {MAX_SUBTYPE} bytes without '/', ',', blanks and control characters",
}
# Flag -> (field of MountOptions, value).
FLAGS: dict[str, tuple[str, bool | str]] = {
    "default_permissions": ("default_permissions", True),
    "allow_other": ("allow_other", True),
    "allow_root": ("allow_root", True),
    "auto_unmount": ("auto_unmount", True),
    "nonempty": ("nonempty", True),
    "remount": ("remount", True),
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "nosuid": ("nosuid", True),
    "suid": ("nosuid", False),
    "nodev": ("nodev", True),
    "dev": ("nodev", False),
    "noexec": ("noexec", True),
    "exec": ("noexec", False),
    "noatime": ("atime", "noatime"),
    "relatime": ("atime", "relatime"),
    "strictatime": ("atime", "strictatime"),
    "nodiratime": ("nodiratime", True),
    "diratime": ("nodiratime", False),
    "sync": ("sync", True),
    "async": ("sync", False),
    "dirsync": ("dirsync", True),
    "lazytime": ("lazytime", True),
    "nolazytime": ("lazytime", False),
    "nosymfollow": ("nosymfollow", True),
    "symfollow": ("nosymfollow", False),
}
# These only take one setting back; what is left is the kernel's default, relatime.
ATIME_OFF = {"atime": "noatime", "nostrictatime": "strictatime", "norelatime": "relatime"}
# What mount(8) and fstab(5) act on themselves and pass on all the same: accepted, kept in `accepted`, no effect.
FOR_MOUNT8 = frozenset(
    "auto noauto user nouser users nousers owner noowner group nogroup _netdev nofail defaults "
    "loud silent nomand noiversion".split()
)
FOR_MOUNT8_VALUED = ("comment=", "user=", "helper=", "uhelper=")
FOR_MOUNT8_PREFIXES = ("x-", "X-")
REFUSED = {
    "blksize": "is for block-device mounts (type fuseblk) only; the kernel refuses it for type fuse",
    "mand": "mandatory locking is gone from Linux, and FUSE refuses it",
}

# What a remount by mount(2) changes, by field; every other parameter is accepted by the kernel and dropped.
REMOUNTABLE = ("read_only", "nosuid", "nodev", "noexec", "atime", "nodiratime", "nosymfollow", "sync", "lazytime")
FIXED = (
    "source", "subtype", "fd", "rootmode", "user_id", "group_id", "default_permissions", "allow_other", "allow_root",
    "max_read", "auto_unmount", "dirsync",
)  # fmt: skip


@dataclass(slots=True)
class MountOptions:
    """Checked options of one mount. None means: not given, chosen when the mount is made."""

    source: str | None = None
    """First column of /proc/mounts; `fsname` is the same thing under libfuse's name."""
    subtype: str | None = None
    fd: int | None = None
    """A /dev/fuse descriptor to use instead of opening one."""
    rootmode: int | None = None
    """Mode with the type bits of the root; None: the mount point's type."""
    user_id: int | None = None
    """Owner of the mount: without allow_other only this user gets in. None: the caller's real user id."""
    group_id: int | None = None
    default_permissions: bool = False
    allow_other: bool = False
    allow_root: bool = False
    """The kernel gets allow_other; the server must answer EACCES to all but root and the owner."""
    max_read: int | None = None
    """As given, in bytes; `effective_max_read` is what the kernel makes of it."""
    read_only: bool = False
    nosuid: bool = True
    nodev: bool = True
    noexec: bool = False
    atime: str = "relatime"
    """"relatime", "noatime" or "strictatime"."""
    nodiratime: bool = False
    sync: bool = False
    dirsync: bool = False
    lazytime: bool = False
    nosymfollow: bool = False
    auto_unmount: bool = False
    nonempty: bool = False
    """A mount point with something in it is all right."""
    remount: bool = False
    accepted: list[str] = field(default_factory=list)
    """What was meant for mount(8) itself, as given."""
    rest: list[tuple[str, str | None]] = field(default_factory=list)
    """Unknown here: the filesystem's own (name, value), in order, escapes removed. It refuses what it doesn't know
    with `unknown_option`."""

    @property
    def effective_max_read(self) -> int:
        """The longest READ the kernel sends as far as this option goes, in bytes."""
        return U32_MAX if self.max_read is None else max(MIN_READ, self.max_read)

    @property
    def fstype(self) -> str:
        """Type shown by /proc/mounts."""
        return f"fuse.{self.subtype}" if self.subtype else "fuse"

    @property
    def shown_source(self) -> str:
        """Source shown by /proc/mounts."""
        return self.source or self.subtype or "fuse"


def parse_options(strings: Iterable[str]) -> MountOptions:
    """Options from the values of any number of -o arguments.

    Raises MountOptionError for a value the option does not take, a missing or superfluous value, a repeated source,
    subtype or fd, and options that exclude each other. Does no I/O and asks nobody.
    """
    options = MountOptions()
    seen: dict[str, str] = {}
    for text in strings:
        for item in _split(text):
            _take(options, item, seen)
    if options.allow_other and options.allow_root:
        raise MountOptionError("allow_root", None, "excludes allow_other: give one of the two")
    return options


def unknown_option(name: str, value: str | None, known: Iterable[str] = ()) -> MountOptionError:
    """The error for an option that nobody knows, naming the closest of ours and of the filesystem's `known` ones."""
    names = [*TAKES, *FLAGS, *ATIME_OFF, *FOR_MOUNT8, *known]
    close = difflib.get_close_matches(name, names, n=1)
    return MountOptionError(name, value, f"is not known; did you mean {close[0]}?" if close else "is not known")


def _split(text: str) -> Iterator[str]:
    """Items between unescaped commas, escapes removed; empty ones (as in "a,,b") are dropped like the kernel does."""
    if "\0" in text:
        raise MountOptionError(text, None, "contains a NUL")
    item: list[str] = []
    i = 0
    while i < len(text):
        c = text[i]
        i += 1
        if c == ",":
            if item:
                yield _whole(item)
            item = []
        elif c != "\\":
            item.append(c)
        elif octal := re.compile(r"[0-3][0-7]{2}").match(text, i):
            code = int(octal[0], 8)
            if code == 0:
                raise MountOptionError(text, None, "contains an escaped NUL")
            item.append(bytes([code]).decode("utf-8", "surrogateescape"))
            i = octal.end()
        elif i < len(text):
            item.append(text[i])
            i += 1
        else:
            raise MountOptionError(text, None, "ends in a backslash, which escapes nothing; write it twice")
    if item:
        yield _whole(item)


def _whole(parts: list[str]) -> str:
    """Octal escapes give one byte each; the bytes of one UTF-8 character come together here."""
    return "".join(parts).encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def _take(options: MountOptions, item: str, seen: dict[str, str]) -> None:
    name, equals, text = item.partition("=")
    value = text if equals else None
    if not name:
        raise MountOptionError(item, None, "has no name before the '='")
    if item in FOR_MOUNT8 or item.startswith(FOR_MOUNT8_VALUED) or name.startswith(FOR_MOUNT8_PREFIXES):
        options.accepted.append(item)
    elif name in REFUSED:
        raise MountOptionError(name, value, REFUSED[name])
    elif name in FLAGS or name in ATIME_OFF:
        if value is not None:
            raise MountOptionError(name, value, "takes no value")
        if name in ATIME_OFF:
            if options.atime == ATIME_OFF[name]:
                options.atime = "relatime"
        else:
            target, setting = FLAGS[name]
            setattr(options, target, setting)
    elif name in TAKES:
        _take_value(options, name, value, seen)
    else:
        options.rest.append((name, value))


def _take_value(options: MountOptions, name: str, value: str | None, seen: dict[str, str]) -> None:
    target = "source" if name == "fsname" else name
    if value is None:
        raise MountOptionError(name, None, f"needs a value: {TAKES[name]}")
    if target in {"source", "subtype", "fd"} and target in seen:
        raise MountOptionError(name, value, f"was given already ({seen[target]}); it may be given once")
    seen[target] = f"{name}={value}"
    if name == "fd":
        options.fd = _decimal(name, value, 0x7FFFFFFF)
    elif name in {"user_id", "group_id"}:
        setattr(options, name, _decimal(name, value, MAX_ID))
    elif name == "max_read":
        options.max_read = _decimal(name, value, U32_MAX)
    elif name == "rootmode":
        options.rootmode = _rootmode(value)
    elif name == "subtype":
        blank = any(c.isspace() or not (c.isprintable() or "\udc80" <= c <= "\udcff") for c in value)
        if not 0 < _bytes(value) <= MAX_SUBTYPE or blank or "/" in value or "," in value:
            raise MountOptionError(name, value, f"takes {TAKES[name]}")
        options.subtype = value
    else:
        if not 0 < _bytes(value) <= MAX_SOURCE:
            raise MountOptionError(name, value, f"takes {TAKES[name]}")
        options.source = value


def _bytes(value: str) -> int:
    return len(value.encode("utf-8", "surrogateescape"))


def _decimal(name: str, value: str, most: int) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,9}", value) or int(value) > most:
        raise MountOptionError(name, value, f"takes {TAKES[name]}")
    return int(value)


def _rootmode(value: str) -> int:
    mode = int(value, 8) if re.fullmatch(r"[0-7]{1,7}", value) else 0
    types = {stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}
    if mode > 0o177777 or stat.S_IFMT(mode) not in types:
        raise MountOptionError("rootmode", value, f"takes {TAKES['rootmode']}")
    return mode


@dataclass(slots=True)
class Remount:
    """What a remount would do: fields of MountOptions that change, and parameters given that the kernel will drop."""

    changes: tuple[str, ...]
    ignored: tuple[str, ...]


def check_remount(old: MountOptions, new: MountOptions) -> Remount:
    """What remounting with `new` does to a mount made with `old`.

    mount(2) with MS_REMOUNT accepts every FUSE parameter and drops it; it changes only ro, sync, lazytime and the
    flags of the mount (nosuid, nodev, noexec, atime, nodiratime, nosymfollow). A parameter of `new` that repeats the
    old value is therefore harmless and listed as ignored; one that would have to change raises MountOptionError,
    rather than seem to work. (fsconfig(2) refuses all of them, changed or not: "No changes allowed in reconfigure".)
    """
    ignored = []
    for name in FIXED:
        before, after = getattr(old, name), getattr(new, name)
        if after is None or after is False:
            continue  # not given: stays as it is
        if name == "source" and after == old.shown_source:
            before = after  # mount(8) repeats the source it read in /proc/mounts
        if name == "max_read" and old.max_read is not None and new.effective_max_read == old.effective_max_read:
            before = after
        if name in {"fd", "rootmode", "user_id", "group_id"} and before is None:
            before = after  # chosen when the mount was made; the kernel drops it
        if before != after:
            shown = None if after is True else f"{after:o}" if name == "rootmode" else str(after)
            raise MountOptionError(name, shown, "can't be changed by a remount; unmount and mount again")
        ignored.append(name)
    changes = tuple(name for name in REMOUNTABLE if getattr(old, name) != getattr(new, name))
    return Remount(changes, tuple(ignored))
