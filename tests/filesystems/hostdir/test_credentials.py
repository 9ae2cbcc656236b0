from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transfuse.filesystems.hostdir.credentials import Credentials
from transfuse.fs.request import Request

USER = 65534
GROUP = 4242
InThread = Callable[[Callable[[], Any]], Any]


def thread_ids() -> list[str]:
    with open(f"/proc/self/task/{threading.get_native_id()}/status") as file:
        return [line for line in file if line.startswith(("Uid", "Gid", "Groups", "CapEff"))]


def touch(path: Path, mode: int = 0o666) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


@pytest.fixture
def stranger() -> Request:
    return Request(uid=USER, gid=USER)


@pytest.mark.needs("root")
def test_a_file_is_made_as_the_caller(source: Path, stranger: Request) -> None:
    source.chmod(0o777)
    Credentials().make(stranger, 0, 0o644, lambda: touch(source / "a"))
    st = (source / "a").stat()
    assert (st.st_uid, st.st_gid) == (USER, USER)


@pytest.mark.needs("root")
def test_the_thread_is_itself_again_afterwards(source: Path, stranger: Request, in_thread: InThread) -> None:
    def check() -> None:
        credentials, me = Credentials(), Request()
        before = thread_ids()
        credentials.make(stranger, 0, 0, lambda: None)
        assert [line.split()[:4] for line in thread_ids()] == [line.split()[:4] for line in before]
        assert credentials.make(me, 0, 0, thread_ids) == before

    in_thread(check)


@pytest.mark.needs("root")
def test_credentials_suit_a_caller_for_whom_nothing_has_to_be_set(stranger: Request, in_thread: InThread) -> None:
    def check() -> list[bool]:
        credentials, me = Credentials(), Request()
        found = [credentials.suit(me, 0o22)]
        credentials.make(me, 0o22, 0, lambda: None)
        found += [credentials.suit(me, 0o22), credentials.suit(me, 0o77), credentials.suit(stranger, 0o22)]
        credentials.make(stranger, 0o22, 0, lambda: None)  # leaves its gid behind
        found.append(credentials.suit(me, 0o22))
        return found

    assert in_thread(check) == [False, True, False, False, False]


@pytest.mark.needs("root")
def test_the_thread_is_itself_again_after_an_error(stranger: Request, in_thread: InThread) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "no room")

    def check() -> None:
        before = thread_ids()
        credentials, me = Credentials(), Request()
        with pytest.raises(OSError, match="no room"):
            credentials.make(stranger, 0, 0, fail)
        assert credentials.make(me, 0, 0, thread_ids) == before

    in_thread(check)


@pytest.mark.needs("root")
def test_the_main_thread_is_itself_again_at_once(stranger: Request) -> None:
    before = thread_ids()
    Credentials().make(stranger, 0o077, 0, lambda: None)
    assert thread_ids() == before


@pytest.mark.needs("root")
def test_the_group_is_that_of_each_caller(source: Path, in_thread: InThread) -> None:
    source.chmod(0o777)
    credentials = Credentials()

    def three() -> None:
        for name, uid, gid in (("a", USER, USER), ("b", USER, GROUP), ("c", 0, 0), ("d", 0, GROUP), ("e", 0, 0)):
            credentials.make(Request(uid=uid, gid=gid), 0, 0, lambda name=name: touch(source / name))

    in_thread(three)
    assert [(source / name).stat().st_gid for name in "abcde"] == [USER, GROUP, 0, GROUP, 0]


@pytest.mark.needs("root")
def test_other_threads_keep_their_identity(stranger: Request) -> None:
    waiting, go = threading.Event(), threading.Event()
    seen: list[list[str]] = []

    def other() -> None:
        waiting.set()
        go.wait(10)
        seen.append(thread_ids())

    thread = threading.Thread(target=other)
    thread.start()
    waiting.wait(10)

    def switched() -> None:
        go.set()
        thread.join(10)

    Credentials().make(stranger, 0, 0, switched)
    assert "Uid:\t0\t0\t0\t0\n" in seen[0]


@pytest.mark.needs("root")
def test_refusal_is_the_callers(source: Path, stranger: Request) -> None:
    source.chmod(0o755)
    with pytest.raises(PermissionError):
        Credentials().make(stranger, 0, 0o644, lambda: touch(source / "a"))


@pytest.mark.needs("root")
def test_supplementary_groups_give_access(source: Path, stranger: Request) -> None:
    source.chmod(0o770)
    os.chown(source, 0, GROUP)
    stranger._groups = (GROUP,)
    Credentials().make(stranger, 0, 0o644, lambda: touch(source / "a"))
    assert (source / "a").exists()


@pytest.mark.needs("root")
def test_groups_are_not_looked_up_where_they_do_not_matter(source: Path, stranger: Request) -> None:
    source.chmod(0o777)
    stranger.pid = 1
    stranger._resolve_groups = lambda pid: pytest.fail("looked up")
    Credentials().make(stranger, 0, 0o644, lambda: touch(source / "a"))
    assert (source / "a").exists()


@pytest.mark.needs("root")
def test_the_group_of_a_setgid_directory_is_inherited(source: Path, stranger: Request) -> None:
    os.chown(source, 0, GROUP)
    source.chmod(0o2777)
    Credentials().make(stranger, 0, 0o755, lambda: os.mkdir(source / "d", 0o755))
    st = (source / "d").stat()
    assert (st.st_gid, st.st_mode & 0o7777) == (GROUP, 0o2755)


@pytest.mark.needs("root")
def test_an_id_that_cannot_be_expressed_makes_no_file(source: Path) -> None:
    with pytest.raises(OSError) as caught:
        Credentials().make(Request(uid=0xFFFFFFFF, gid=0xFFFFFFFF), 0, 0, lambda: touch(source / "a"))
    assert caught.value.errno == errno.EOVERFLOW
    assert not (source / "a").exists()


@pytest.mark.needs("root")
def test_without_fsetid_a_write_clears_setuid(source: Path) -> None:
    touch(source / "a")
    (source / "a").chmod(0o6777)
    with open(source / "a", "wb", buffering=0) as file:
        Credentials().without_fsetid(Request(uid=USER), 0o6777, lambda: file.write(b"x"))
    assert (source / "a").stat().st_mode & 0o7777 == 0o777


@pytest.mark.needs("root")
@pytest.mark.parametrize(("groups", "left"), [((GROUP,), 0o2666), ((1,), 0o666)])
def test_setgid_without_group_execution_stays_for_members(source: Path, groups: tuple[int, ...], left: int) -> None:
    touch(source / "a")
    os.chown(source / "a", 0, GROUP)
    (source / "a").chmod(0o2666)
    req = Request(uid=USER, gid=USER)
    req._groups = groups
    with open(source / "a", "wb", buffering=0) as file:
        Credentials().without_fsetid(req, 0o2666, lambda: file.write(b"x"))
    assert (source / "a").stat().st_mode & 0o7777 == left


def test_umask_is_the_callers(source: Path, in_thread: InThread) -> None:
    req = Request(uid=os.geteuid(), gid=os.getegid())
    credentials = Credentials()
    in_thread(lambda: credentials.make(req, 0o027, 0o666, lambda: touch(source / "a")))
    credentials.make(req, 0o077, 0o666, lambda: touch(source / "b"))
    assert [(source / name).stat().st_mode & 0o777 for name in "ab"] == [0o640, 0o600]


def test_umask_of_the_process_stays(source: Path, in_thread: InThread) -> None:
    before = os.umask(0o022)
    try:
        req = Request(uid=os.geteuid(), gid=os.getegid())
        credentials = Credentials()
        in_thread(lambda: credentials.make(req, 0o077, 0, lambda: None))
        credentials.make(req, 0o077, 0, lambda: None)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_umask_is_that_of_each_request_on_one_thread(source: Path, in_thread: InThread) -> None:
    req = Request(uid=os.geteuid(), gid=os.getegid())
    credentials = Credentials()

    def two() -> None:
        credentials.make(req, 0o077, 0o666, lambda: touch(source / "a"))
        credentials.make(req, 0, 0o666, lambda: touch(source / "b"))

    in_thread(two)
    assert [(source / name).stat().st_mode & 0o777 for name in "ab"] == [0o600, 0o666]


def test_a_server_that_is_not_root_does_not_switch(source: Path, stranger: Request) -> None:
    credentials = Credentials()
    if os.geteuid():
        Credentials().make(stranger, 0, 0o644, lambda: touch(source / "a"))
    assert credentials.can_switch == (os.geteuid() == 0)
