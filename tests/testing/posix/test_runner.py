"""The runner of the POSIX cases: it passes where the native kernel answers, and it fails when a case does."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from transfuse.testing.posix import Case, Env, Need, Skip, Suite, User, all_cases
from transfuse.testing.posix.env import Other, equal, put, refused


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return Suite(str(tmp_path_factory.mktemp("posix")))


def _case(function: object, *needs: Need) -> Case:
    assert callable(function)
    return Case("own", "case", "a case of the test", needs, function)


@pytest.fixture
def memory_directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
        yield place


@pytest.mark.interop
def test_native_memory_filesystem_passes_every_case(memory_directory: str) -> None:
    failures = [
        f"{outcome.case.id}: {outcome.message}"
        for outcome in Suite(memory_directory).run(all_cases())
        if outcome.status == "fail"
    ]
    assert failures == []
    assert os.listdir(memory_directory) == []


@pytest.mark.soak
def test_native_disk_filesystem_passes_every_case(suite: Suite) -> None:
    failures = [f"{each.case.id}: {each.message}" for each in suite.run(all_cases()) if each.status == "fail"]
    assert failures == []


@pytest.mark.interop
@pytest.mark.needs("user")
def test_native_filesystem_passes_as_ordinary_user(memory_directory: str) -> None:
    as_user = Suite(memory_directory, User(54321, 54331))
    assert Need.ROOT in as_user.missing
    assert Need.ORDINARY not in as_user.missing
    failures = [f"{each.case.id}: {each.message}" for each in as_user.run(all_cases()) if each.status == "fail"]
    assert failures == []


def test_there_are_at_least_700_cases_with_different_names() -> None:
    names = [case.id for case in all_cases()]
    assert len(names) == len(set(names)) >= 700


def test_every_case_says_what_it_asserts() -> None:
    assert [case.id for case in all_cases() if not case.about] == []


def test_pattern_selects_by_id() -> None:
    assert {case.group for case in all_cases("flock.")} == {"flock"}


def test_failing_check_is_a_failure_with_both_values(suite: Suite) -> None:
    outcome = suite.run_case(_case(lambda env: equal(1, 2, "the number")))
    assert (outcome.status, outcome.message) == ("fail", "the number: expected 2, found 1")


def test_wrong_errno_is_a_failure(suite: Suite) -> None:
    outcome = suite.run_case(_case(lambda env: refused(errno.EEXIST, os.rmdir, "missing")))
    assert (outcome.status, outcome.message) == ("fail", "rmdir('missing'): expected EEXIST, found ENOENT")


def test_success_where_a_refusal_was_due_is_a_failure(suite: Suite) -> None:
    outcome = suite.run_case(_case(lambda env: refused(errno.EEXIST, os.mkdir, "new")))
    assert outcome.status == "fail"
    assert "but it succeeded" in outcome.message


def test_unexpected_error_is_a_failure_with_its_place(suite: Suite) -> None:
    outcome = suite.run_case(_case(lambda env: os.rmdir("missing")))
    assert outcome.status == "fail"
    assert "ENOENT" in outcome.message
    assert "test_runner.py" in outcome.message


def test_defect_of_a_case_is_a_failure(suite: Suite) -> None:
    outcome = suite.run_case(_case(lambda env: 1 // 0))
    assert outcome.status == "fail"
    assert "ZeroDivisionError" in outcome.message


def test_death_of_the_process_is_a_failure(suite: Suite) -> None:
    outcome = suite.run_case(_case(lambda env: os.kill(os.getpid(), 9)))
    assert (outcome.status, outcome.message) == ("fail", "the process of the case died")


def test_case_that_hangs_is_ended(suite: Suite) -> None:
    start = time.monotonic()
    outcome = suite.run_case(_case(lambda env: time.sleep(60)), timeout_s=0.3)
    assert outcome.status == "fail"
    assert "hangs" in outcome.message
    assert time.monotonic() - start < 10


def test_processes_a_case_leaves_behind_are_ended(suite: Suite, tmp_path: Path) -> None:
    def leave(env: Env) -> None:
        child = env.spawn(lambda other: time.sleep(60))
        (tmp_path / "pid").write_text(str(child.pid))

    suite.run_case(_case(leave))
    pid = int((tmp_path / "pid").read_text())
    limit = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < limit:
        time.sleep(0.01)
    state = Path(f"/proc/{pid}/stat").read_text().split()[2] if os.path.exists(f"/proc/{pid}") else "gone"
    assert state in ("gone", "Z")


def test_unmet_need_is_a_skip_with_the_reason(suite: Suite) -> None:
    missing = next(iter(suite.missing))
    outcome = suite.run_case(_case(lambda env: 1 // 0, missing))
    assert outcome.status == "skip"
    assert suite.missing[missing] in outcome.message


def test_case_may_skip_itself(suite: Suite) -> None:
    def decline(env: Env) -> None:
        raise Skip("not here")

    outcome = suite.run_case(_case(decline))
    assert (outcome.status, outcome.message) == ("skip", "not here")


def test_case_has_an_empty_directory_of_its_own(suite: Suite) -> None:
    def look(env: Env) -> None:
        equal((os.listdir("."), os.getcwd()), ([], env.directory), "names and directory")
        put("left-behind")
        os.mkdir("closed", 0o000)

    assert [suite.run_case(_case(look)).message for _ in range(2)] == ["", ""]
    assert os.listdir(suite.root) == []


def test_error_of_a_spawned_process_reaches_the_case(suite: Suite) -> None:
    def fail(_other: Other) -> None:
        raise FileNotFoundError(errno.ENOENT, "over there")

    outcome = suite.run_case(_case(lambda env: refused(errno.ENOENT, env.spawn(fail).result)))
    assert (outcome.status, outcome.message) == ("pass", "")


@pytest.mark.needs("user")
def test_as_user_runs_with_those_credentials(suite: Suite) -> None:
    def ask(env: Env) -> None:
        answer = env.as_user(54321, 54331, (7, 8))(lambda: (os.getuid(), os.getgid(), sorted(os.getgroups())))
        equal(answer, (54321, 54331, [7, 8]), "credentials")
        equal(os.getuid(), 0, "our own uid")

    outcome = suite.run_case(_case(ask))
    assert (outcome.status, outcome.message) == ("pass", "")
