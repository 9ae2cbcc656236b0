"""How every system call that takes a path treats a bad one (path_resolution(7)).

The cases are made from two tables: calls that take a path, and ways in which a path can be bad. Each pair is one case,
`<call>_<way>`. Calls that create their last component are given a name that is free, the others one that exists.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from transfuse.testing.posix import calls
from transfuse.testing.posix.env import ALICE, Env, make_directory, needs, put, refused, try_open
from transfuse.testing.posix.needs import Need

PathCall = Callable[[str], object]


def _rename_from(path: str) -> None:
    os.rename(path, "target")


def _rename_to(path: str) -> None:
    os.rename("file", path)


def _link_from(path: str) -> None:
    os.link(path, "target")


def _link_to(path: str) -> None:
    os.link("file", path)


def _symlink_at(path: str) -> None:
    os.symlink("file", path)


def _open_create(path: str) -> None:
    try_open(path, os.O_CREAT | os.O_WRONLY)


def _open_read(path: str) -> None:
    try_open(path, os.O_RDONLY)


def _utimens(path: str) -> None:
    os.utime(path, (1, 1))


# name: (call, whether it follows a symbolic link in the last component)
_ON_EXISTING: dict[str, tuple[PathCall, bool]] = {
    "open": (_open_read, True),
    "stat": (os.stat, True),
    "lstat": (os.lstat, False),
    "access": (lambda path: calls.access(path, os.R_OK), True),
    "chmod": (lambda path: os.chmod(path, 0o600), True),
    "chown": (lambda path: os.chown(path, -1, -1), True),
    "lchown": (lambda path: os.lchown(path, -1, -1), False),
    "truncate": (lambda path: os.truncate(path, 3), True),
    "utimens": (_utimens, True),
    "unlink": (os.unlink, False),
    "rename_from": (_rename_from, False),
    "link_from": (_link_from, False),
    "statvfs": (os.statvfs, True),
    "listxattr": (os.listxattr, True),
    "execve": (lambda path: os.execv(path, ["program"]), True),
}
_ON_DIRECTORY: dict[str, tuple[PathCall, bool]] = {
    "rmdir": (os.rmdir, False),
    "chdir": (os.chdir, True),
    "listdir": (os.listdir, True),
}
_ON_FREE: dict[str, tuple[PathCall, bool]] = {
    "create": (_open_create, True),
    "mkdir": (os.mkdir, False),
    "mkfifo": (os.mkfifo, False),
    "mknod": (lambda path: os.mknod(path, stat.S_IFREG | 0o644), False),
    "symlink": (_symlink_at, False),
    "link_to": (_link_to, False),
    "rename_to": (_rename_to, False),
}
_EXISTING = {**_ON_EXISTING, **_ON_DIRECTORY}
_ALL = {**_EXISTING, **_ON_FREE}


def _add(name: str, about: str, body: Callable[[Env], None], *needed: Need) -> None:
    def case(env: Env) -> None:
        put("file", b"data")
        body(env)

    case.__doc__ = about
    case.__name__ = case.__qualname__ = f"case_{name}"
    globals()[case.__name__] = needs(*needed)(case)


def _missing_directory(call: PathCall) -> Callable[[Env], None]:
    return lambda env: refused(errno.ENOENT, call, "missing/name")


def _missing_name(call: PathCall) -> Callable[[Env], None]:
    return lambda env: refused(errno.ENOENT, call, "missing")


def _empty(call: PathCall) -> Callable[[Env], None]:
    return lambda env: refused(errno.ENOENT, call, "")


def _file_in_prefix(call: PathCall) -> Callable[[Env], None]:
    return lambda env: refused(errno.ENOTDIR, call, "file/name")


def _long_component(call: PathCall) -> Callable[[Env], None]:
    def body(_env: Env) -> None:
        longest = os.statvfs(".").f_namemax
        refused(errno.ENAMETOOLONG, call, "n" * (longest + 1))
        refused(errno.ENAMETOOLONG, call, "n" * (longest + 1) + "/name")

    return body


def _long_path(call: PathCall) -> Callable[[Env], None]:
    # PATH_MAX is 4096 with the terminating NUL: "./././…" of 4096 bytes is one byte too long
    return lambda env: refused(errno.ENAMETOOLONG, call, "./" * 2046 + "file")


def _longest_path(call: PathCall) -> Callable[[Env], None]:
    def body(_env: Env) -> None:
        path = "." + "/" * 4090 + "file"
        call(path)

    return body


def _loop(call: PathCall) -> Callable[[Env], None]:
    def body(_env: Env) -> None:
        os.symlink("b", "a")
        os.symlink("a", "b")
        refused(errno.ELOOP, call, "a/name")

    return body


def _loop_at_end(call: PathCall) -> Callable[[Env], None]:
    def body(_env: Env) -> None:
        os.symlink("self", "self")
        refused(errno.ELOOP, call, "self")

    return body


def _closed_directory(call: PathCall) -> Callable[[Env], None]:
    def body(env: Env) -> None:
        make_directory("closed", 0o755)
        put("closed/name", mode=0o777)
        os.chmod("closed", 0o600)
        os.chmod(".", 0o777)
        os.chmod("file", 0o666)
        env.as_user(*ALICE).refused(errno.EACCES, call, "closed/name")

    return body


def _unwritable_directory(call: PathCall) -> Callable[[Env], None]:
    def body(env: Env) -> None:
        os.chmod(".", 0o777)
        os.chown("file", *ALICE)
        make_directory("plain", 0o755)
        env.as_user(*ALICE).refused(errno.EACCES, call, "plain/name")

    return body


def _through_link(call: PathCall) -> Callable[[Env], None]:
    def body(_env: Env) -> None:
        os.mkdir("real")
        os.symlink("real", "way")
        call("way/name")

    return body


for _name, (_call, _follows) in _ALL.items():
    _add(
        f"{_name}_missing_directory_is_enoent", "A missing directory in the path is ENOENT.", _missing_directory(_call)
    )
    _add(f"{_name}_empty_path_is_enoent", "The empty path is ENOENT.", _empty(_call))
    _add(f"{_name}_file_as_directory_is_enotdir", "A file used as a directory is ENOTDIR.", _file_in_prefix(_call))
    _add(
        f"{_name}_long_component_is_enametoolong", "A component over f_namemax is ENAMETOOLONG.", _long_component(_call)
    )
    _add(f"{_name}_long_path_is_enametoolong", "A path of 4096 bytes is ENAMETOOLONG.", _long_path(_call))
    _add(f"{_name}_link_loop_is_eloop", "A loop of symbolic links is ELOOP.", _loop(_call), Need.SYMLINK)
    if _follows:
        _add(f"{_name}_link_to_itself_is_eloop", "A link to itself is ELOOP.", _loop_at_end(_call), Need.SYMLINK)
    _add(
        f"{_name}_needs_search_permission",
        "No x on a directory of the path is EACCES.",
        _closed_directory(_call),
        Need.USERS,
    )
for _name, (_call, _follows) in _EXISTING.items():
    _add(f"{_name}_missing_name_is_enoent", "A missing last component is ENOENT.", _missing_name(_call))
for _name in ("open", "stat", "lstat", "access", "chmod", "truncate", "utimens", "statvfs", "unlink"):
    _add(f"{_name}_of_4095_bytes_works", "The longest path works.", _longest_path(_ALL[_name][0]))
for _name, (_call, _follows) in _ON_FREE.items():
    _add(
        f"{_name}_needs_write_permission",
        "Creating in a directory without w is EACCES.",
        _unwritable_directory(_call),
        Need.USERS,
    )
    _add(
        f"{_name}_works_through_a_link_to_a_directory",
        "A link in the middle of a path is followed.",
        _through_link(_call),
        Need.SYMLINK,
    )
