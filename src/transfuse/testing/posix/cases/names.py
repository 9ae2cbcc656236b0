"""Names are bytes: everything but '/' and NUL, 1 to 255 bytes."""

from __future__ import annotations

import errno
import os

from transfuse.testing.posix.env import Env, check, equal, get, opened, put, refused


def case_every_byte(env: Env) -> None:
    """A file for each of the 254 possible bytes, listed and opened by it."""
    wanted = [bytes([byte]) + b"x" for byte in range(1, 256) if byte != ord("/")]
    for name in wanted:
        put(name, name)
    equal(sorted(os.listdir(b".")), sorted(wanted), "names")
    for name in wanted:
        equal(get(name), name, f"content of {name!r}")


def case_single_bytes(env: Env) -> None:
    """Names of one byte ('.' excepted)."""
    wanted = sorted(bytes([byte]) for byte in range(1, 256) if byte not in b"/.")
    for name in wanted:
        os.mkdir(name)
    equal(sorted(os.listdir(b".")), wanted, "names")


def case_invalid_utf8(env: Env) -> None:
    """Bytes that are no UTF-8: lone continuation, cut sequence, surrogate, overlong."""
    for name in (b"\x80", b"a\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xff\xfe\xfd", b"\xf4\x90\x80\x80"):
        put(name, b"x")
        equal(os.stat(name).st_size, 1, f"size of {name!r}")
        os.rename(name, name + b"2")
        os.unlink(name + b"2")
    equal(os.listdir(b"."), [], "names")


def case_normal_forms_differ(env: Env) -> None:
    """Composed and decomposed letters, upper and lower case are different names."""
    names = ["\u00e9", "e\u0301", "A", "a", "\ufb01", "fi", "\u2126", "\u03a9"]
    for index, name in enumerate(names):
        put(name, b"%d" % index)
    equal(len(os.listdir(".")), len(names), "number of names")
    for index, name in enumerate(names):
        equal(get(name), b"%d" % index, f"content of {name!r}")


def case_255_bytes_work_and_256_do_not(env: Env) -> None:
    """f_namemax is the limit, for bytes, in every call that makes a name."""
    longest = os.statvfs(".").f_namemax
    name = b"\xc3\xa9" * (longest // 2) + b"n" * (longest % 2)
    put(name, b"x")
    equal((get(name), os.listdir(b".")), (b"x", [name]), "content and names")
    os.rename(name, b"m" * longest)
    os.link(b"m" * longest, b"l" * longest)
    os.symlink(b"t", b"s" * longest)
    os.mkdir(b"d" * longest)
    refused(errno.ENAMETOOLONG, put, b"n" * (longest + 1))
    refused(errno.ENAMETOOLONG, os.rename, b"m" * longest, b"n" * (longest + 1))


def case_dots(env: Env) -> None:
    """Three dots and more, leading and trailing dots and spaces are ordinary."""
    for name in ("...", "....", ".hidden", "trailing.", " lead", "trail ", "..a", "a..", "-rf", "*", "~", "\\", "con"):
        put(name, name.encode())
    for name in os.listdir("."):
        equal(get(name), name.encode(), f"content of {name!r}")
    equal(len(os.listdir(".")), 13, "number of names")


def case_newlines_and_control_characters(env: Env) -> None:
    """What shells dislike."""
    for name in ("a\nb", "\t", "\x01\x02", "\x7f", "\x1b[31m"):
        put(name)
    equal(len(os.listdir(".")), 5, "number of names")


def case_names_of_fuse_hidden_style(env: Env) -> None:
    """Names that servers like to use for themselves are ordinary to the user."""
    names = [".fuse_hidden0000000100000001", ".nfs0000", ".Trash", ".xattr", "lost+found"]
    for name in names:
        put(name)
    equal(sorted(os.listdir(".")), sorted(names), "names")


def case_repeated_slashes_and_dots(env: Env) -> None:
    """d//./../d/f is d/f."""
    os.mkdir("d")
    put("d/f", b"x")
    equal(get("d//.///../d/./f"), b"x", "content")


def case_prefixes_are_different_names(env: Env) -> None:
    """n, nn, nnn … each its own file."""
    for length in range(1, 101):
        put("n" * length, b"%d" % length)
    for length in (1, 2, 50, 99, 100):
        equal(get("n" * length), b"%d" % length, "content")
    os.unlink("nn")
    refused(errno.ENOENT, os.stat, "nn")
    equal(len(os.listdir(".")), 99, "number of names")


def case_relative_to_descriptor(env: Env) -> None:
    """*at calls find names below the descriptor, also after a rename of the directory."""
    os.makedirs("d/e")
    with opened("d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rename("d", "moved")
        os.mkdir("e/f", dir_fd=fd)
        check(os.path.isdir("moved/e/f"), "the directory is elsewhere")
        os.rename("e/f", "g", src_dir_fd=fd, dst_dir_fd=fd)
        equal(os.stat("g", dir_fd=fd).st_ino, os.stat("moved/g").st_ino, "inode")
        os.rmdir("g", dir_fd=fd)
        refused(errno.ENOENT, os.stat, "g", dir_fd=fd)


def case_file_descriptor_as_directory_is_enotdir(env: Env) -> None:
    """An *at call relative to a file."""
    put("f")
    with opened("f", os.O_RDONLY) as fd:
        refused(errno.ENOTDIR, os.stat, "x", dir_fd=fd)
