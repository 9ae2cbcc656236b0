"""The archives a guest starts from: their bytes, and the order of modules."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from guests.initramfs import Cpio, load_order, merged, module_name, skeleton, tree


def test_file_is_a_header_of_13_fields_a_padded_name_and_padded_data() -> None:
    out = Cpio()
    out.file("init", b"hello", 0o755, mtime_s=0x1234)
    trailer = b"070701" + b"0" * 32 + b"00000001" + b"0" * 48 + b"0000000B" + b"0" * 8 + b"TRAILER!!!\0\0\0\0"
    assert bytes(out) == (
        b"070701"  # c_magic: newc, no checksums
        b"00000001"  # c_ino
        b"000081ED"  # c_mode: a regular file, 0755
        b"00000000" b"00000000"  # c_uid, c_gid
        b"00000001"  # c_nlink
        b"00001234"  # c_mtime
        b"00000005"  # c_filesize
        b"00000000" b"00000000" b"00000000" b"00000000"  # c_maj, c_min, c_rmaj, c_rmin
        b"00000005"  # c_namesize, with the NUL
        b"00000000"  # c_chksum
        b"init\0"
        b"\0"  # header and name are padded to 4 together: 110 + 5 + 1
        b"hello\0\0\0"
    ) + trailer  # fmt: skip


@pytest.mark.needs("cpio")
def test_cpio_unpacks_folders_files_and_links(tmp_path: Path) -> None:
    out = skeleton()
    out.file("opt/deep/er/file", b"x" * 1001, 0o751, mtime_s=1_500_000_000)
    out.link("opt/link", "deep/er/file")
    unpack = ["cpio", "--extract", "--quiet", "--make-directories", "--preserve-modification-time"]
    subprocess.run(unpack, input=bytes(out), cwd=tmp_path, check=True, timeout=20)
    file = tmp_path / "opt/link"
    assert file.read_bytes() == b"x" * 1001
    assert (file.stat().st_mode & 0o777, file.stat().st_mtime) == (0o751, 1_500_000_000)
    assert os.readlink(tmp_path / "bin") == "usr/bin" and (tmp_path / "usr/bin").is_dir()


def test_parents_are_made_once_and_before_what_they_hold() -> None:
    out = Cpio()
    out.file("a/b/one", b"1")
    out.file("a/b/two", b"2")
    data = bytes(out)
    assert data.count(b"a\0") == 1 and data.count(b"a/b\0") == 1
    assert data.index(b"a/b\0") < data.index(b"a/b/one\0") < data.index(b"a/b/two\0")


def test_tree_keeps_times_so_that_compiled_python_stays_valid(tmp_path: Path) -> None:
    source = tmp_path / "m.py"
    source.write_text("x = 1\n")
    os.utime(source, (1_000_000_000, 1_000_000_000))
    assert b"%08X" % 1_000_000_000 in bytes(tree(tmp_path, "opt", [source]))


def test_names_move_below_usr_as_debian_merged_them() -> None:
    assert [merged(name) for name in ("lib/x/y", "bin/sh", "lib64/ld.so", "etc/lib/x", "library")] == [
        "usr/lib/x/y", "usr/bin/sh", "usr/lib64/ld.so", "etc/lib/x", "library",
    ]  # fmt: skip


def _module(*needs: str) -> bytes:
    return b"\x7fELF...license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"


def test_modules_come_after_what_they_need_and_built_in_ones_not_at_all() -> None:
    modules = {
        "virtiofs": _module("fuse", "virtio-ring", "virtio"),
        "fuse": _module(),
        "virtio": _module("virtio_ring"),
        "virtio_ring": _module(),
        "unrelated": _module(),
    }
    assert load_order(["virtiofs"], modules, frozenset({"fuse"})) == ["virtio_ring", "virtio", "virtiofs"]


def test_module_that_is_missing_is_named_with_the_one_that_needs_it() -> None:
    with pytest.raises(LookupError, match=r"no module virtio_ring \(virtio needs it\)"):
        load_order(["virtio"], {"virtio": _module("virtio_ring")}, frozenset())


def test_modules_that_need_each_other_are_refused() -> None:
    with pytest.raises(LookupError, match="need each other: a b a"):
        load_order(["a"], {"a": _module("b"), "b": _module("a")}, frozenset())


def test_module_names_lose_their_folder_ending_and_dashes() -> None:
    assert module_name("kernel/drivers/virtio/virtio-pci.ko.xz") == "virtio_pci"
    assert module_name("fuse.ko") == "fuse"


def test_agent_is_a_script_that_a_shell_accepts() -> None:
    shell = shutil.which("dash") or shutil.which("sh")
    assert shell is not None
    subprocess.run([shell, "-n", Path(__file__).with_name("init.sh")], check=True, timeout=10)
