"""Cases about the content of files: reading, writing, truncating, holes, copies, locks."""

from __future__ import annotations

import errno
import os
import threading
import time

from transfuse.testing.conformance.suite import Conformance, fails_with, needs
from transfuse.testing.volume import LOCK_EXCLUSIVE, LOCK_NONE, LOCK_SHARED, Volume

__all__ = ["DataCases"]

MIB = 1 << 20
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
SEEK_DATA, SEEK_HOLE = 3, 4
RELEASE_S = 5.0
"""How long a RELEASE, which nobody waits for, may take."""
NEW = os.O_CREAT | os.O_RDWR


def pattern(size: int) -> bytes:
    """Bytes that differ wherever they are."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


class DataCases(Conformance):
    """Operations on open files."""

    # -- writing -------------------------------------------------------------------------------------------------------

    @needs("create|mknod", "write", "read")
    def test_what_is_written_is_read(self, volume: Volume) -> None:
        volume.write_bytes("/f", b"hello")
        assert volume.read_bytes("/f") == b"hello" and volume.stat("/f").size == 5

    @needs("create|mknod", "write", "read")
    def test_three_mib_are_written_and_read(self, volume: Volume) -> None:
        data = pattern(3 * MIB + 17)
        volume.write_bytes("/f", data)
        assert volume.read_bytes("/f") == data

    @needs("create|mknod", "write", "read")
    def test_a_read_of_one_mib_is_whole(self, volume: Volume) -> None:
        volume.write_bytes("/f", pattern(2 * MIB))
        with volume.open("/f", os.O_RDONLY) as file:
            assert file.pread(MIB, 4097) == pattern(2 * MIB)[4097 : 4097 + MIB]

    @needs("create|mknod", "write", "read")
    def test_overwriting_the_middle(self, volume: Volume) -> None:
        data = bytearray(pattern(20_000))
        volume.write_bytes("/f", bytes(data))
        with volume.open("/f", os.O_RDWR) as file:
            file.pwrite(b"#" * 5000, 3000)
        data[3000:8000] = b"#" * 5000
        assert volume.read_bytes("/f") == data

    @needs("create|mknod", "write", "read")
    def test_writing_beyond_the_end_leaves_zeros(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as file:
            file.pwrite(b"a", 0)
            file.pwrite(b"b", 10_000)
            assert file.pread(20_000, 0) == b"a" + bytes(9_999) + b"b"

    @needs("create|mknod", "write", "read")
    def test_two_handles_see_each_others_writes(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as first, volume.open("/f", os.O_RDWR) as second:
            first.pwrite(b"one", 0)
            second.pwrite(b"two", 3)
            assert first.pread(10, 0) == second.pread(10, 0) == b"onetwo"

    @needs("create|mknod", "write", "read")
    def test_appending_goes_to_the_end(self, volume: Volume) -> None:
        volume.write_bytes("/f", b"start-")
        with volume.open("/f", os.O_WRONLY | os.O_APPEND) as file:
            file.pwrite(b"a", 0)
            file.pwrite(b"b", 0)
        assert volume.read_bytes("/f") == b"start-ab"

    @needs("create|mknod", "write")
    def test_writing_to_a_file_opened_for_reading_is_ebadf(self, volume: Volume) -> None:
        volume.write_bytes("/f", b"x")
        with volume.open("/f", os.O_RDONLY) as file, fails_with(errno.EBADF):
            file.pwrite(b"y", 0)

    @needs("create|mknod", "write", "read")
    def test_reading_a_file_opened_for_writing_is_ebadf(self, volume: Volume) -> None:
        volume.write_bytes("/f", b"x")
        with volume.open("/f", os.O_WRONLY) as file, fails_with(errno.EBADF):
            file.pread(1, 0)

    @needs("mkdir")
    def test_opening_a_directory_for_writing_is_eisdir(self, volume: Volume) -> None:
        volume.mkdir("/d")
        with fails_with(errno.EISDIR):
            volume.open("/d", os.O_WRONLY)

    @needs("create|mknod", "write", "fsync")
    def test_fsync_succeeds(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as file:
            file.pwrite(b"x", 0)
            file.fsync()
            file.fsync(datasync=True)
            assert file.stat().size == 1

    @needs("create|mknod", "write", "read")
    def test_threads_write_different_parts_of_a_file(self, volume: Volume) -> None:
        part = 65_536
        with volume.open("/f", NEW) as file:

            def write(number: int) -> None:
                file.pwrite(bytes([number]) * part, number * part)

            threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            found = file.pread(6 * part, 0)
        assert found == b"".join(bytes([number]) * part for number in range(6))

    @needs("create|mknod", "write", "read", "mkdir")
    def test_threads_make_files_in_one_directory(self, volume: Volume) -> None:
        volume.mkdir("/d")

        def make(number: int) -> None:
            for count in range(10):
                volume.write_bytes(f"/d/{number}-{count}", b"%d" % number)

        threads = [threading.Thread(target=make, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(volume.listdir("/d")) == 60

    # -- size ----------------------------------------------------------------------------------------------------------

    @needs("create|mknod", "write", "read")
    def test_opening_with_o_trunc_empties_the_file(self, volume: Volume) -> None:
        volume.write_bytes("/f", b"long content")
        with volume.open("/f", os.O_RDWR | os.O_TRUNC) as file:
            assert file.stat().size == 0 and file.pread(10, 0) == b""

    @needs("create|mknod", "write", "setattr", "read")
    def test_truncate_cuts(self, volume: Volume) -> None:
        volume.write_bytes("/f", pattern(10_000))
        volume.truncate("/f", 4_999)
        assert volume.read_bytes("/f") == pattern(10_000)[:4_999]

    @needs("create|mknod", "write", "setattr", "read")
    def test_truncate_extends_with_zeros(self, volume: Volume) -> None:
        volume.write_bytes("/f", b"abc")
        volume.truncate("/f", 9_000)
        assert volume.read_bytes("/f") == b"abc" + bytes(8_997)

    @needs("create|mknod", "write", "setattr", "read")
    def test_what_was_cut_does_not_come_back(self, volume: Volume) -> None:
        volume.write_bytes("/f", b"x" * 9_000)
        volume.truncate("/f", 100)
        volume.truncate("/f", 9_000)
        assert volume.read_bytes("/f") == b"x" * 100 + bytes(8_900)

    @needs("create|mknod", "write", "setattr", "read")
    def test_ftruncate_by_an_open_handle(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as file:
            file.pwrite(b"0123456789", 0)
            file.truncate(4)
            assert file.stat().size == 4 and file.pread(10, 0) == b"0123"

    @needs("create|mknod", "write", "setattr", "unlink")
    def test_ftruncate_of_an_unlinked_file(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as file:
            file.pwrite(b"0123456789", 0)
            volume.unlink("/f")
            file.truncate(4)
            assert file.stat().size == 4

    @needs("setattr", "mkdir")
    def test_truncate_of_a_directory_is_eisdir(self, volume: Volume) -> None:
        volume.mkdir("/d")
        with fails_with(errno.EISDIR):
            volume.truncate("/d", 0)

    # -- holes ---------------------------------------------------------------------------------------------------------

    @needs("create|mknod", "fallocate", "write")
    def test_fallocate_extends_the_file(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as file:
            file.allocate(0, 0, 10_000)
            assert file.stat().size == 10_000

    @needs("create|mknod", "fallocate", "write")
    def test_fallocate_keeps_the_size_if_asked(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as file:
            file.pwrite(b"abc", 0)
            file.allocate(KEEP_SIZE, 0, 10_000)
            assert file.stat().size == 3

    @needs("create|mknod", "fallocate", "write", "read")
    def test_a_punched_hole_reads_as_zeros(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as file:
            file.pwrite(b"x" * 20_000, 0)
            file.allocate(KEEP_SIZE | PUNCH_HOLE, 5_000, 10_000)
            assert file.pread(20_000, 0) == b"x" * 5_000 + bytes(10_000) + b"x" * 5_000

    @needs("create|mknod", "fallocate", "write", "read")
    def test_a_zeroed_range_reads_as_zeros(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as file:
            file.pwrite(b"x" * 10_000, 0)
            try:
                file.allocate(ZERO_RANGE, 100, 5_000)
            except OSError as error:
                assert error.errno == errno.EOPNOTSUPP  # tmpfs can't, and what is on it neither
            else:
                assert file.pread(10_000, 0) == b"x" * 100 + bytes(5_000) + b"x" * 4_900

    @needs("create|mknod", "fallocate", "write")
    def test_fallocate_of_nothing_is_einval(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as file, fails_with(errno.EINVAL):
            file.allocate(0, 0, 0)

    @needs("create|mknod", "lseek", "write")
    def test_data_and_holes_are_found(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as file:
            file.pwrite(b"x", 1 * MIB)
            size = 2 * MIB
            file.truncate(size)
            data = file.seek(0, SEEK_DATA)
            hole = file.seek(data, SEEK_HOLE)
            assert 0 <= data <= MIB < hole <= size

    @needs("create|mknod", "lseek", "write")
    def test_the_end_is_a_hole(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as file:
            file.pwrite(b"x" * 100, 0)
            assert file.seek(0, SEEK_HOLE) == 100

    @needs("create|mknod", "lseek", "write")
    def test_seeking_data_beyond_the_end_is_enxio(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as file, fails_with(errno.ENXIO):
            file.seek(10, SEEK_DATA)

    # -- copies --------------------------------------------------------------------------------------------------------

    @needs("create|mknod", "copy_file_range", "write", "read")
    def test_copy_between_files(self, volume: Volume) -> None:
        data = pattern(50_000)
        volume.write_bytes("/a", data)
        with volume.open("/a", os.O_RDONLY) as source, volume.open("/b", NEW) as target:
            done = 0
            while done < 40_000:
                count = source.copy_to(target, 5_000 + done, 100 + done, 40_000 - done)
                assert count > 0
                done += count
        assert volume.read_bytes("/b") == bytes(100) + data[5_000:45_000]

    @needs("create|mknod", "copy_file_range", "write")
    def test_copy_from_beyond_the_end_is_nothing(self, volume: Volume) -> None:
        volume.write_bytes("/a", b"abc")
        with volume.open("/a", os.O_RDONLY) as source, volume.open("/b", NEW) as target:
            assert source.copy_to(target, 10, 0, 100) == 0

    # -- locks ---------------------------------------------------------------------------------------------------------

    @needs("create|mknod", "write", "setlk")
    def test_an_exclusive_lock_keeps_others_out(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as first, volume.open("/f", os.O_RDWR) as second:
            first.lock(LOCK_EXCLUSIVE, 0, 10)
            with fails_with(errno.EAGAIN, errno.EACCES):
                second.lock(LOCK_EXCLUSIVE, 5, 10)

    @needs("create|mknod", "write", "setlk")
    def test_shared_locks_overlap(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as first, volume.open("/f", os.O_RDWR) as second:
            first.lock(LOCK_SHARED, 0, 10)
            second.lock(LOCK_SHARED, 5, 10)
            with fails_with(errno.EAGAIN, errno.EACCES):
                second.lock(LOCK_EXCLUSIVE, 0, 1)

    @needs("create|mknod", "write", "setlk")
    def test_locks_of_other_ranges_do_not_meet(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as first, volume.open("/f", os.O_RDWR) as second:
            first.lock(LOCK_EXCLUSIVE, 0, 10)
            second.lock(LOCK_EXCLUSIVE, 10, 10)
            with fails_with(errno.EAGAIN, errno.EACCES):
                first.lock(LOCK_EXCLUSIVE, 15, 1)

    @needs("create|mknod", "write", "setlk", "getlk")
    def test_the_lock_in_the_way_is_shown(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as first, volume.open("/f", os.O_RDWR) as second:
            first.lock(LOCK_EXCLUSIVE, 100, 50)
            assert second.lock_in_the_way(LOCK_SHARED, 0, 0) == (LOCK_EXCLUSIVE, 100, 50)
            assert second.lock_in_the_way(LOCK_SHARED, 0, 100) is None

    @needs("create|mknod", "write", "setlk", "getlk")
    def test_unlocking_the_middle_splits_a_lock(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as first, volume.open("/f", os.O_RDWR) as second:
            first.lock(LOCK_EXCLUSIVE, 0, 30)
            first.lock(LOCK_NONE, 10, 10)
            second.lock(LOCK_EXCLUSIVE, 10, 10)
            second.lock(LOCK_NONE, 10, 10)
            assert second.lock_in_the_way(LOCK_EXCLUSIVE, 0, 0) == (LOCK_EXCLUSIVE, 0, 10)
            assert second.lock_in_the_way(LOCK_EXCLUSIVE, 15, 0) == (LOCK_EXCLUSIVE, 20, 10)

    @needs("create|mknod", "write", "setlk", "flush|release")
    def test_closing_drops_the_locks(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as second:
            first = volume.open("/f", os.O_RDWR)
            first.lock(LOCK_EXCLUSIVE, 0, 0)
            first.close()
            self._soon(lambda: second.lock(LOCK_EXCLUSIVE, 0, 0))

    @needs("create|mknod", "write", "setlk")
    def test_waiting_for_a_lock_ends_when_it_is_free(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as first, volume.open("/f", os.O_RDWR) as second:
            first.lock(LOCK_EXCLUSIVE, 0, 10)
            order: list[str] = []

            def wait() -> None:
                second.lock(LOCK_EXCLUSIVE, 0, 10, wait=True)
                order.append("second has it")

            thread = threading.Thread(target=wait)
            thread.start()
            time.sleep(0.05)
            order.append("first lets go")
            first.lock(LOCK_NONE, 0, 10)
            thread.join(30)
            assert order == ["first lets go", "second has it"]

    @needs("create|mknod", "write", "flock")
    def test_an_exclusive_flock_keeps_others_out(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as first, volume.open("/f", os.O_RDWR) as second:
            first.flock(LOCK_EXCLUSIVE)
            with fails_with(errno.EAGAIN):
                second.flock(LOCK_SHARED)
            first.flock(LOCK_NONE)
            second.flock(LOCK_SHARED)

    @needs("create|mknod", "write", "flock", "release")
    def test_closing_drops_the_flock(self, volume: Volume) -> None:
        with volume.open("/f", NEW) as second:
            first = volume.open("/f", os.O_RDWR)
            first.flock(LOCK_EXCLUSIVE)
            first.close()
            self._soon(lambda: second.flock(LOCK_EXCLUSIVE))

    @staticmethod
    def _soon(lock: object) -> None:
        """Nobody waits for RELEASE: its effects may come a moment later."""
        assert callable(lock)
        deadline = time.monotonic() + RELEASE_S
        while True:
            try:
                lock()
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return
