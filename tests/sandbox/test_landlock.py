"""Landlock by itself."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sandbox.inside import found_inside
from transfuse.sandbox import linux
from transfuse.sandbox.landlock import EXECUTE, REFER, TRUNCATE, WRITE, handled, what_is_denied

here = pytest.mark.skipif(linux.landlock_abi() == 0, reason="the kernel has no Landlock")


def test_an_older_kernel_is_asked_for_what_it_has() -> None:
    assert handled(1) == 0x1FFF
    assert handled(2) == 0x3FFF
    assert handled(3) == 0x7FFF == EXECUTE | WRITE
    assert handled(5) == handled(7) == 0xFFFF
    assert not handled(1) & (REFER | TRUNCATE)
    assert what_is_denied(1) == ("files",)
    assert what_is_denied(6) == ("files", "TCP", "abstract sockets", "signals")


@here
def test_everything_inside_a_writable_directory_works_and_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "s" / "d").mkdir(parents=True)
    body = """
from transfuse.sandbox import landlock
os.chdir(given["at"])
linux_abi = landlock.linux.landlock_abi()
landlock.linux.set_no_new_privs()
landlock.restrict([landlock.Opening("s", landlock.WRITE), landlock.Opening("absent", landlock.READ)], linux_abi)
attempt("make", lambda: os.close(os.open("s/a", os.O_CREAT | os.O_RDWR)))
attempt("truncate", lambda: os.truncate("s/a", 5))
attempt("rename across", lambda: os.rename("s/a", "s/d/a"))
attempt("link across", lambda: os.link("s/d/a", "s/b"))
attempt("fifo", lambda: os.mkfifo("s/f"))
attempt("symlink", lambda: os.symlink("x", "s/l"))
attempt("directory", lambda: os.mkdir("s/e"))
attempt("remove", lambda: (os.unlink("s/f"), os.rmdir("s/e"), os.listdir("s"))[3:] or None)
fd = os.open("s/d/a", os.O_RDONLY)
os.unlink("s/d/a")
attempt("unlinked", lambda: os.open("/proc/self/fd/%d" % fd, os.O_RDWR))
attempt("outside", lambda: os.open("out", os.O_CREAT | os.O_RDWR))
attempt("list", lambda: os.listdir(".") and None)
attempt("move out", lambda: os.rename("s/b", "b"))
"""
    found = found_inside(body, wanted={"sandbox": "none", "seccomp": "none"}, at=str(tmp_path))
    denied = {"outside", "list", "move out"}
    assert {name for name, what in found.items() if what != "done"} == denied
    assert {found[name] for name in denied} <= {errno.EACCES, errno.EXDEV}
