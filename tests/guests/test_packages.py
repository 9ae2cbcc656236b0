"""The cache, and what is read out of apt's answers; nothing here uses a network."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from guests import packages
from guests.packages import Archive, Missing, members, prepared, unpack


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFUSE_GUESTS", str(tmp_path / "cache"))


def test_cache_is_what_the_environment_names_and_otherwise_below_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFUSE_GUESTS", "/somewhere")
    assert packages.cache() == Path(f"/somewhere/v{packages.FORMAT}")
    monkeypatch.delenv("TRANSFUSE_GUESTS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert packages.cache() == Path(f"/var/cache/me/transfuse/guests/v{packages.FORMAT}")


def test_what_is_prepared_once_is_not_made_again() -> None:
    made: list[Path] = []

    def make(to: Path) -> None:
        made.append(to)
        (to / "file").write_text("contents")

    assert (prepared("a/thing", make) / "file").read_text() == "contents"
    assert prepared("a/thing", make) == packages.cache() / "a" / "thing"
    assert len(made) == 1


def test_nothing_is_left_of_what_could_not_be_made() -> None:
    def make(to: Path) -> None:
        (to / "half").write_text("x")
        raise Missing("the network is missing")

    with pytest.raises(Missing):
        prepared("a/thing", make)
    assert list((packages.cache() / "a").iterdir()) == []


def _archive_that_says(answer: str, monkeypatch: pytest.MonkeyPatch) -> Archive:
    monkeypatch.setattr(Archive, "_apt", lambda *_: answer)
    return Archive("bookworm", "arm64")


def test_direct_dependencies_are_read_from_apt_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    said = """linux-image-cloud-arm64
  Depends: linux-image-6.1.0-50-cloud-arm64
  PreDepends: libc6
 |Depends: one-way
  Depends: <virtual-name>
  Recommends: firmware
"""
    archive = _archive_that_says(said, monkeypatch)
    assert archive.depends("linux-image-cloud-arm64") == ["linux-image-6.1.0-50-cloud-arm64", "libc6", "one-way"]


def test_closure_is_read_from_what_apt_would_download(monkeypatch: pytest.MonkeyPatch) -> None:
    said = """Building dependency tree...
'http://deb.debian.org/debian/pool/main/z/zlib/zlib1g_1.2.13_arm64.deb' zlib1g_1%3a1.2.13_arm64.deb 8 MD5Sum:6ba5
'http://deb.debian.org/debian/pool/main/x/x_1_all.deb' libpython3.11-minimal_3.11.2-6%2bdeb12u8_all.deb 9 MD5Sum:f
"""
    assert _archive_that_says(said, monkeypatch).closure(["python3"]) == ["zlib1g", "libpython3.11-minimal"]


def test_machine_without_apt_is_missing_something(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match="needs apt-get"), Archive("bookworm", "amd64"):
        pass


@pytest.mark.needs("apt-get", "dpkg-deb")
def test_archive_that_can_not_be_reached_is_missing_with_what_apt_said(monkeypatch: pytest.MonkeyPatch) -> None:
    if not packages.KEYRING.exists():
        pytest.skip(f"needs {packages.KEYRING}")
    monkeypatch.setattr(packages, "mirror", lambda: "http://127.0.0.1:1/debian")
    monkeypatch.setattr(packages, "RETRIES", 0)
    with pytest.raises(Missing, match="Debian bookworm amd64: apt-get update could not be done.*127.0.0.1"):
        Archive("bookworm", "amd64").__enter__()


@pytest.mark.needs("dpkg-deb")
def test_files_and_links_of_a_package_are_unpacked_without_installing_it(tmp_path: Path) -> None:
    content = tmp_path / "package"
    (content / "DEBIAN").mkdir(parents=True)
    (content / "DEBIAN/control").write_text(
        "Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: a thing\n"
    )
    (content / "usr/bin").mkdir(parents=True)
    (content / "usr/bin/thing").write_text("#!/bin/sh\n")
    (content / "usr/bin/thing").chmod(0o755)
    (content / "usr/bin/other").symlink_to("thing")
    (content / "usr/share/doc").mkdir(parents=True)
    (content / "usr/share/doc/README").write_text("no")
    deb = tmp_path / "thing.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", content, deb], check=True, capture_output=True)
    unpack([deb], tmp_path / "out", lambda name: name.startswith("usr/bin"))
    assert (tmp_path / "out/usr/bin/other").read_text() == "#!/bin/sh\n"
    assert (tmp_path / "out/usr/bin/thing").stat().st_mode & 0o777 == 0o755
    assert not (tmp_path / "out/usr/share").exists()
    assert {entry.name for entry, _ in members(deb)} >= {"usr/bin/thing", "usr/share/doc/README"}
