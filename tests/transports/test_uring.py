"""FUSE over io_uring: which machines have it, and real mounts whose requests come that way."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from interop.io_uring import switched
from interop.kernel import later
from session.peers import eventually
from transfuse import Entry, mount
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.session.server import ServerSession
from transfuse.transports import uring
from transfuse.wire import flags as f
from transfuse.wire.opcodes import Opcode
from transports.device_files import BIG, Files

# ---- which machines have it


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine that has everything, made of files; `machine(name, text)` changes one of them."""
    if uring._uring is None:
        pytest.skip("the plain form runs, which does not have it")
    for name, text in {"PARAMETER": "Y\n", "POSSIBLE": "0-1\n", "ONLINE": "0-1\n"}.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(uring, name, tmp_path / name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    return lambda name, text: (tmp_path / name).write_text(text)


def test_list_of_cpus_has_ranges_and_single_ones(tmp_path):
    (tmp_path / "list").write_text("0-3,8,10-11\n")
    assert uring.cpus(tmp_path / "list") == {0, 1, 2, 3, 8, 10, 11}


def test_machine_with_everything_has_no_obstacle(machine):
    assert uring.obstacle() is None


def test_plain_form_does_not_have_it(monkeypatch):
    monkeypatch.setattr(uring, "_uring", None)
    assert uring.obstacle() == "only the compiled form has it"


def test_kernel_without_the_parameter_does_not_have_it(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(uring, "PARAMETER", tmp_path / "missing")
    assert uring.obstacle() == "this kernel does not have it"


def test_parameter_may_be_off(machine):
    machine("PARAMETER", "N\n")
    assert uring.obstacle() == "it is switched off"


@pytest.mark.parametrize("possible", ["0-1,4-5\n", "0-256\n"])
def test_cpus_with_gaps_or_too_many_are_an_obstacle(machine, possible):
    machine("POSSIBLE", possible)
    assert "possible CPUs" in uring.obstacle()


def test_process_that_may_not_run_everywhere_does_not_have_it(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert uring.obstacle() == "this process may not run on every CPU"


def test_process_without_io_uring_does_not_have_it(machine, monkeypatch):
    def refused():
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(uring._uring, "Ring", refused)
    assert uring.obstacle() == "this process may not use io_uring: Operation not permitted"


# ---- mounts

real = [pytest.mark.interop, pytest.mark.needs("root", "/dev/fuse"), pytest.mark.timeout(60)]


@pytest.fixture
def switched_on():
    with switched(True):
        yield


@pytest.fixture
def place(tmp_path, switched_on):
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


@pytest.fixture
def files(tmp_path, place):
    source = tmp_path / "source"
    source.write_bytes(BIG)
    fd = os.open(source, os.O_RDONLY)
    write_only = os.open(source, os.O_WRONLY)
    filesystem = Files(fd, write_only)
    with mount(filesystem, place, io_uring=True) as mounted:
        yield filesystem, place, mounted
        filesystem.gate.set()
    os.close(fd)
    os.close(write_only)


def here(cpu: int, call):
    """Run `call` on a thread that is bound to `cpu`, and wait for it."""
    thread, result = there(cpu, call)
    thread.join(20)
    assert not thread.is_alive()
    return result[0]


def there(cpu: int, call):
    """Begin to run `call` on a thread that is bound to `cpu`."""

    def bound():
        os.sched_setaffinity(0, {cpu})
        return call()

    return later(bound)


def read_file(path: Path, size: int = 10) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(size)


def queue_threads(mounted) -> list[threading.Thread]:
    return [channel.thread for channel in mounted.server.transport._channels]


class TestRequests:
    pytestmark = real

    def test_it_is_agreed(self, files):
        _, _, mounted = files
        assert mounted.connection.has(f.FUSE_OVER_IO_URING)

    def test_request_is_served_on_the_cpu_it_was_made_on(self, files):
        filesystem, place, _ = files
        for cpu in sorted(os.sched_getaffinity(0)):
            filesystem.cpus.clear()
            here(cpu, lambda: os.stat(place))
            assert filesystem.cpus == [({cpu}, f"transfuse-queue-{cpu}")]

    def test_one_thread_of_a_queue_serves_while_none_is_held_up(self, files):
        _, place, mounted = files
        seen = set()
        mounted.server.filesystem.lookup = lambda *args: seen.add(threading.get_ident()) or Entry.negative(0.0)

        def look():
            for number in range(300):
                assert not os.path.exists(place / f"missing-{number}")

        here(0, look)
        assert len(seen) <= 2, "300 lookups, one after the other"

    @pytest.mark.parametrize("name", ["bytes", "range"])
    def test_reads_of_all_sizes_arrive_whole(self, files, name):
        _, place, _ = files
        with open(place / name, "rb", buffering=0) as file:
            for size in (1, 511, 512, 4096, 4097, 1 << 20):
                assert os.pread(file.fileno(), size, 3) == BIG[3 : 3 + size]

    def test_a_range_that_cannot_be_read_is_an_error(self, files):
        _, place, _ = files
        with pytest.raises(OSError) as caught:
            read_file(place / "broken")
        assert caught.value.errno == errno.EBADF

    @pytest.mark.parametrize(
        "answer", [bytes(16 + (1 << 20) + 1), b"short", [bytes(16), bytes(1 << 21)], [b"short"], []]
    )
    def test_an_answer_that_does_not_fit_is_an_io_error(self, place, answer, monkeypatch, caplog):
        """The session makes none; what it makes goes to memory that the kernel reads."""
        handle = ServerSession.handle

        def broken(self, buffer, start, end, channel):
            opcode, nodeid = struct.unpack_from("=4xI8xQ", buffer, start)
            return answer if (opcode, nodeid) == (Opcode.READ, 8) else handle(self, buffer, start, end, channel)

        monkeypatch.setattr(ServerSession, "handle", broken)
        with mount(Files(0), place, io_uring=True):
            with pytest.raises(OSError) as caught:
                read_file(place / "huge")
            assert caught.value.errno == errno.EIO
            assert read_file(place / "small") == b"tiny"
        assert "an answer dropped" in caplog.text

    def test_a_bug_is_an_io_error_and_the_mount_lives_on(self, files):
        _, place, _ = files
        with pytest.raises(OSError) as caught:
            read_file(place / "buggy")
        assert caught.value.errno == errno.EIO
        assert read_file(place / "small") == b"tiny"

    @pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 1 << 20])
    def test_a_write_arrives_in_one_piece(self, files, size):
        filesystem, place, _ = files
        with open(place / "small", "r+b", buffering=0) as file:
            assert file.write(BIG[3 : 3 + size]) == size
        assert filesystem.written[2] == BIG[3 : 3 + size]

    @pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 255])
    def test_names_of_all_lengths_arrive(self, place, length):
        one, two = "a" * length, "b" * length
        with mount(MemoryFilesystem(), place, io_uring=True) as mounted:
            assert mounted.connection.has(f.FUSE_OVER_IO_URING)
            (place / one).mkdir()
            (place / one).rename(place / two)
            (place / one).symlink_to(two * 3)
            os.setxattr(place / two, "user." + "n" * (min(length, 250)), b"v" * length)
            assert sorted(os.listdir(place)) == [one, two]
            assert os.readlink(place / one) == two * 3
            assert os.getxattr(place / two, "user." + "n" * (min(length, 250))) == b"v" * length

    def test_pages_of_the_kernel_can_be_asked_for(self, place):
        """RETRIEVE's answer is a request, too, and takes its number from us."""
        with mount(MemoryFilesystem(), place, ["default_permissions"], io_uring=True) as mounted:
            (place / "file").write_bytes(b"0123456789")
            with open(place / "file", "rb") as file:
                assert file.read() == b"0123456789"
                for _ in range(5):
                    future = mounted.notify.retrieve(os.fstat(file.fileno()).st_ino, 2, 100)
                    assert future.result(10).startswith(b"23456789")


class TestHeldUp:
    pytestmark = real

    def test_a_request_that_waits_does_not_hold_up_others_of_its_cpu(self, files):
        filesystem, place, _ = files
        threads = [there(0, lambda: read_file(place / "slow"))[0] for _ in range(3)]
        for _ in threads:
            assert filesystem.waiting.acquire(timeout=10)
        assert here(0, lambda: read_file(place / "small")) == b"tiny"
        filesystem.gate.set()
        for thread in threads:
            thread.join(10)

    def test_more_requests_than_threads_wait_for_their_turn(self, tmp_path, place):
        filesystem = Files(0)
        with mount(filesystem, place, io_uring=True, workers=2) as mounted:
            count = uring.THREADS_PER_QUEUE + 3
            assert len(queue_threads(mounted)) == uring.THREADS_PER_QUEUE * len(uring.cpus(uring.POSSIBLE))
            slow = [there(0, lambda: read_file(place / "slow")) for _ in range(count)]
            for _ in range(uring.THREADS_PER_QUEUE):
                assert filesystem.waiting.acquire(timeout=10)
            assert not filesystem.waiting.acquire(timeout=0.2), "all threads of the queue are held up"
            other = max(os.sched_getaffinity(0))
            if other:
                assert here(other, lambda: read_file(place / "small")) == b"tiny"
            filesystem.gate.set()
            for thread, result in slow:
                thread.join(10)
                assert result == [b""]

    def test_a_lock_that_many_wait_for_on_one_cpu_is_given_back(self, place):
        """Waiting for a lock takes a thread each; without stand-ins UNLOCK would wait behind them for ever."""
        with mount(MemoryFilesystem(), place, io_uring=True, workers=2) as mounted:
            (place / "file").touch()
            before, waiting = len(queue_threads(mounted)), uring.THREADS_PER_QUEUE + 4
            holder = os.open(place / "file", os.O_RDWR)
            for _ in range(2):
                here(0, lambda: fcntl.flock(holder, fcntl.LOCK_EX))
                waiters = [there(0, lambda: take_and_give(place / "file")) for _ in range(waiting)]
                eventually(lambda: len(mounted.server.session.inflight) == waiting)
                here(0, lambda: os.listdir(place))
                here(0, lambda: fcntl.flock(holder, fcntl.LOCK_UN))
                for thread, result in waiters:
                    thread.join(20)
                    assert result == ["had it"]
            os.close(holder)
            # The second time round those of the first stand in.
            assert before < len(queue_threads(mounted)) <= before + waiting

    def test_answers_of_coroutines_come_later(self, place):
        class Later(Files):
            async def read(self, req, nodeid, fh, size, offset):
                return BIG[offset : offset + size]

        with mount(Later(0), place, io_uring=True) as mounted:
            assert mounted.connection.has(f.FUSE_OVER_IO_URING)
            jobs = [there(0, lambda: read_file(place / "bytes", 5000)) for _ in range(12)]
            for thread, result in jobs:
                thread.join(20)
                assert result == [BIG[:5000]]

    def test_a_killed_caller_interrupts_its_request(self, files):
        filesystem, place, mounted = files
        script = "import os, sys; os.read(os.open(sys.argv[1], os.O_RDONLY), 10)"
        reader = subprocess.Popen([sys.executable, "-c", script, str(place / "patient")])
        assert filesystem.waiting.acquire(timeout=10)
        request = next(iter(mounted.server.session.inflight.values()))
        reader.send_signal(signal.SIGKILL)
        reader.wait(10)
        assert request.interrupted


def take_and_give(path: Path) -> str:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)
    return "had it"


class TestEnd:
    pytestmark = real

    def test_unmounting_brings_all_threads_home(self, place):
        mounted = mount(MemoryFilesystem(), place, io_uring=True)
        threads = queue_threads(mounted)
        assert all(thread.is_alive() for thread in threads)
        mounted.close()
        assert not any(thread.is_alive() for thread in threads)
        assert mounted.server.wait(0)

    def test_unmount_from_outside_ends_the_server(self, place):
        mounted = mount(MemoryFilesystem(), place, io_uring=True)
        subprocess.run(["umount", place], check=True, timeout=10)
        assert mounted.server.wait(10)
        mounted.close()

    def test_abort_fails_pending_requests_while_their_handler_runs(self, files):
        filesystem, place, mounted = files
        reader, result = there(0, lambda: read_file(place / "slow"))
        assert filesystem.waiting.acquire(timeout=10)
        closing = threading.Thread(target=mounted.close)
        closing.start()
        reader.join(10)
        assert not reader.is_alive() and isinstance(result[0], OSError)
        assert not filesystem.gate.is_set()
        filesystem.gate.set()
        closing.join(30)
        assert not closing.is_alive()

    def test_requests_that_wait_in_the_kernel_fail_at_an_abort(self, place):
        filesystem = Files(0)
        mounted = mount(filesystem, place, io_uring=True, workers=2)
        jobs = [there(0, lambda: read_file(place / "slow")) for _ in range(uring.THREADS_PER_QUEUE + 3)]
        for _ in range(uring.THREADS_PER_QUEUE):
            assert filesystem.waiting.acquire(timeout=10)
        closing = threading.Thread(target=mounted.close)
        closing.start()
        for thread, result in jobs:
            thread.join(10)
            assert isinstance(result[0], OSError)
        filesystem.gate.set()
        closing.join(30)
        assert not closing.is_alive()

    def test_a_killed_server_leaves_a_mount_that_says_so(self, place):
        server = subprocess.Popen(
            [sys.executable, "-m", "transfuse", "mount", "memory:", str(place), "--foreground", "-o", "io_uring"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            assert server.stdout is not None
            assert b"io_uring" in server.stdout.readline()
            (place / "file").write_bytes(b"x")
            server.kill()
            server.wait(10)
            with pytest.raises(OSError) as caught:
                os.stat(place / "other")
            assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        finally:
            server.kill()
            server.communicate(timeout=10)
            subprocess.run(["umount", place], check=True, timeout=10)


class TestFallingBack:
    pytestmark = real

    def test_entry_that_the_kernel_refuses_means_read(self, place, monkeypatch, caplog):
        monkeypatch.setattr(uring, "PAYLOAD_ROOM", 4096)
        with mount(Files(0), place, io_uring=True) as mounted:
            assert mounted.connection.has(f.FUSE_OVER_IO_URING), "agreed to before"
            assert read_file(place / "small") == b"tiny"
            eventually(lambda: not any(thread.is_alive() for thread in queue_threads(mounted)))
            assert read_file(place / "bytes") == BIG[:10]
        assert "of io_uring: Invalid argument" in caplog.text

    def test_queue_without_an_entry_means_read(self, place, monkeypatch, caplog):
        run = uring.UringChannel._run

        def no_first_queue(self, handle):
            if self.number == 0:
                self.settled.set()
                self._ring.close()
                self._transport.came_home()
            else:
                run(self, handle)

        monkeypatch.setattr(uring.UringChannel, "_run", no_first_queue)
        with mount(Files(0), place, io_uring=True):
            assert read_file(place / "small") == b"tiny"
            assert here(0, lambda: read_file(place / "bytes")) == BIG[:10]
        if len(uring.cpus(uring.POSSIBLE)) > 1:
            assert "no entry for the queues [0]" in caplog.text

    def test_too_few_descriptors_mean_read(self, place, monkeypatch, caplog):
        ring, made = uring._uring.Ring, []

        def few():
            if len(made) == 3:
                raise OSError(errno.EMFILE, "Too many open files")
            made.append(1)
            return ring()

        monkeypatch.setattr(uring._uring, "Ring", few)
        with mount(Files(0), place, io_uring=True) as mounted:
            assert not mounted.connection.has(f.FUSE_OVER_IO_URING)
            assert read_file(place / "small") == b"tiny"
        assert "requests come by read(): Too many open files" in caplog.text

    def test_one_worker_means_read(self, place, caplog):
        with mount(MemoryFilesystem(), place, workers=1, io_uring=True) as mounted:
            assert not mounted.connection.has(f.FUSE_OVER_IO_URING)
        assert "more than one worker" in caplog.text

    def test_kernel_that_has_it_switched_off_means_read(self, tmp_path, caplog):
        if uring._uring is None:
            pytest.skip("the plain form runs, which does not have it")
        (tmp_path / "mnt").mkdir()
        with switched(False), mount(MemoryFilesystem(), tmp_path / "mnt", io_uring=True) as mounted:
            assert not mounted.connection.has(f.FUSE_OVER_IO_URING)
        assert "it is switched off" in caplog.text

    def test_nobody_gets_it_unasked(self, place):
        with mount(MemoryFilesystem(), place) as mounted:
            assert not mounted.connection.has(f.FUSE_OVER_IO_URING)


class TestParallel:
    pytestmark = real

    def test_many_clients_at_a_time_lose_nothing(self, place):
        """Processes, each with files of its own, bound nowhere: the scheduler moves them between the queues."""
        script = """if True:
            import os, sys
            place, me = sys.argv[1], sys.argv[2]
            os.mkdir(f"{place}/{me}")
            for number in range(150):
                path = f"{place}/{me}/{number}"
                with open(path, "wb") as file:
                    file.write(path.encode() * 100)
                os.rename(path, path + "-moved")
                assert not os.path.exists(path)
            for number in range(150):
                path = f"{place}/{me}/{number}"
                with open(path + "-moved", "rb") as file:
                    assert file.read() == path.encode() * 100
                os.unlink(path + "-moved")
            os.rmdir(f"{place}/{me}")
        """
        with mount(MemoryFilesystem(), place, io_uring=True):
            clients = [subprocess.Popen([sys.executable, "-c", script, place, str(n)]) for n in range(8)]
            assert [client.wait(50) for client in clients] == [0] * 8
            assert os.listdir(place) == []

    def test_mounting_and_unmounting_in_a_row_leaves_nothing(self, place):
        began = time.monotonic()
        for number in range(20):
            with mount(MemoryFilesystem(), place, io_uring=True):
                (place / str(number)).mkdir()
            assert os.listdir(place) == []
        assert time.monotonic() - began < 50
