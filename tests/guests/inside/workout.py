"""Runs in a guest: files on a mount are worked on in every way a file can be, and compared with a copy in memory.

    python3 workout.py file PATH --seed N --steps N [--largest BYTES]   random operations on one file
    python3 workout.py many DIRECTORY --seed N --count N                many files: made, renamed, linked, removed
    python3 workout.py parallel DIRECTORY --seed N --processes N        one file each, at once, each on a CPU of its own

The last line printed is JSON: what must be there afterwards, as the guest sees it. Whoever serves the directory
compares that with what is there. Exit status 1 and a sentence if the guest itself already finds a difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import random
import sys

DIRECT_ALIGNMENT = 4096


class Differ(Exception):
    """What was read is not what was written."""


class Shadow:
    """One open file and what it must contain."""

    def __init__(self, path: str, chance: random.Random, largest: int) -> None:
        self.path, self.chance, self.largest = path, chance, largest
        self.data = bytearray()
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self.direct = -1
        try:
            self.direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        except OSError as error:
            print(f"no O_DIRECT here: {error}")

    def close(self) -> None:
        os.close(self.fd)
        if self.direct >= 0:
            os.close(self.direct)

    def _put(self, offset: int, data: bytes) -> None:
        if offset + len(data) > len(self.data):
            self.data += bytes(offset + len(data) - len(self.data))
        self.data[offset : offset + len(data)] = data

    def _range(self) -> tuple[int, int]:
        length = self.chance.choice((1, 100, 4095, 4096, 4097, 16384, 65536, 131072, 200_001))
        return self.chance.randrange(max(1, self.largest - length)), length

    def write(self) -> None:
        offset, length = self._range()
        data = self.chance.randbytes(length)
        if os.pwrite(self.fd, data, offset) != length:
            raise Differ(f"pwrite of {length} at {offset} was short")
        self._put(offset, data)

    def writev(self) -> None:
        offset, _ = self._range()
        parts = [self.chance.randbytes(self.chance.choice((1, 511, 4096, 9000))) for _ in range(20)]
        if os.pwritev(self.fd, parts, offset) != sum(map(len, parts)):
            raise Differ(f"pwritev at {offset} was short")
        self._put(offset, b"".join(parts))

    def append(self) -> None:
        if len(self.data) > self.largest:
            return
        data = self.chance.randbytes(5000)
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)
        self._put(len(self.data), data)

    def write_direct(self) -> None:
        if self.direct < 0:
            return
        length = DIRECT_ALIGNMENT * self.chance.choice((1, 4, 32, 100))
        offset = self.chance.randrange(self.largest // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT
        with mmap.mmap(-1, length) as pages:  # aligned, as O_DIRECT wants it
            pages[:] = self.chance.randbytes(length)
            if os.pwritev(self.direct, [pages], offset) != length:
                raise Differ(f"direct write of {length} at {offset} was short")
            self._put(offset, pages[:])

    def read_direct(self) -> None:
        if self.direct < 0:
            return
        length = DIRECT_ALIGNMENT * self.chance.choice((1, 4, 32, 100))
        offset = self.chance.randrange(self.largest // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT
        with mmap.mmap(-1, length) as pages:
            count = os.preadv(self.direct, [pages], offset)
            self._same("direct read", offset, pages[:count], length)

    def write_mapped(self) -> None:
        if not self.data:
            return
        with mmap.mmap(self.fd, len(self.data)) as pages:
            for _ in range(5):
                offset = self.chance.randrange(len(self.data))
                data = self.chance.randbytes(min(3000, len(self.data) - offset))
                pages[offset : offset + len(data)] = data
                self._put(offset, data)
            if self.chance.random() < 0.5:
                pages.flush()

    def read_mapped(self) -> None:
        if not self.data:
            return
        with mmap.mmap(self.fd, len(self.data), prot=mmap.PROT_READ) as pages:
            offset = self.chance.randrange(len(self.data))
            self._same("mapping", offset, pages[offset : offset + 10_000], 10_000)

    def read(self) -> None:
        offset, length = self._range()
        self._same("read", offset, os.pread(self.fd, length, offset), length)

    def truncate(self) -> None:
        size = self.chance.randrange(self.largest)
        os.ftruncate(self.fd, size)
        self.data = self.data[:size] + bytes(max(0, size - len(self.data)))

    def allocate(self) -> None:
        offset, length = self._range()
        os.posix_fallocate(self.fd, offset, length)
        self._put(len(self.data), bytes(max(0, offset + length - len(self.data))))

    def sync(self) -> None:
        os.fsync(self.fd)

    def reopen(self) -> None:
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)

    def forget_pages(self) -> None:
        os.fsync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _same(self, how: str, offset: int, found: bytes, length: int) -> None:
        expected = bytes(self.data[offset : offset + length])
        if found != expected:
            at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), "the end")
            raise Differ(
                f"{how} of {length} bytes at {offset}: got {len(found)}, expected {len(expected)}; they differ at {at}"
            )

    def whole(self) -> None:
        size = os.fstat(self.fd).st_size
        if size != len(self.data):
            raise Differ(f"size is {size}, expected {len(self.data)}")
        offset = 0
        while offset < size:
            data = os.pread(self.fd, 1 << 20, offset)
            self._same("read", offset, data, 1 << 20)
            offset += len(data)


OPERATIONS = (
    Shadow.write, Shadow.write, Shadow.write, Shadow.writev, Shadow.append, Shadow.write_direct, Shadow.write_direct,
    Shadow.read_direct, Shadow.write_mapped, Shadow.read_mapped, Shadow.read, Shadow.read, Shadow.truncate,
    Shadow.allocate, Shadow.sync, Shadow.reopen, Shadow.forget_pages,
)  # fmt: skip


def one_file(path: str, seed: int, steps: int, largest: int) -> dict[str, object]:
    """Random operations on one file; its size and digest."""
    chance = random.Random(seed)
    shadow = Shadow(path, chance, largest)
    done: list[str] = []
    try:
        for _ in range(steps):
            operation = chance.choice(OPERATIONS)
            done.append(operation.__name__)
            operation(shadow)
        shadow.whole()
        os.fsync(shadow.fd)
    except Differ as error:
        raise Differ(f"{path}, seed {seed}, step {len(done)} ({' '.join(done[-12:])}): {error}") from None
    finally:
        shadow.close()
    return {"size": len(shadow.data), "sha256": hashlib.sha256(shadow.data).hexdigest()}


def many_files(directory: str, seed: int, count: int) -> dict[str, object]:
    """Files made, renamed, linked, removed; what each remaining name must contain."""
    chance = random.Random(seed)
    folders = [os.path.join(directory, f"d{number}") for number in range(10)]
    for folder in folders:
        os.mkdir(folder)
    there: dict[str, bytes] = {}
    for number in range(count):
        path = os.path.join(chance.choice(folders), f"file-{number}")
        there[path] = chance.randbytes(chance.choice((0, 1, 100, 5000)))
        with open(path, "wb", buffering=0) as file:
            file.write(there[path])
    for path in chance.sample(sorted(there), count // 4):
        new = os.path.join(chance.choice(folders), f"moved-{os.path.basename(path)}")
        os.rename(path, new)
        there[new] = there.pop(path)
    for path in chance.sample(sorted(there), count // 8):
        new = os.path.join(chance.choice(folders), f"link-{os.path.basename(path)}")
        os.link(path, new)
        there[new] = there[path]
    for path in chance.sample(sorted(there), count // 4):
        os.unlink(path)
        del there[path]
    found = {entry.path for folder in folders for entry in os.scandir(folder)}
    if found != set(there):
        raise Differ(f"missing {sorted(set(there) - found)[:5]}, too many {sorted(found - set(there))[:5]}")
    for path, data in there.items():
        if os.stat(path).st_size != len(data):
            raise Differ(f"{path}: size {os.stat(path).st_size}, expected {len(data)}")
        with open(path, "rb", buffering=0) as file:
            if file.read() != data:
                raise Differ(f"{path} does not contain what was written")
    return {os.path.relpath(path, directory): hashlib.sha256(data).hexdigest() for path, data in there.items()}


def parallel(directory: str, seed: int, processes: int, steps: int, largest: int) -> dict[str, object]:
    """`one_file` in several processes at once, each bound to a CPU, so that each uses the queue of that CPU."""
    cpus = sorted(os.sched_getaffinity(0))
    children = []
    for number in range(processes):
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.sched_setaffinity(0, {cpus[number % len(cpus)]})
                path = os.path.join(directory, f"parallel-{number}")
                os.write(write_end, json.dumps(one_file(path, seed + number, steps, largest)).encode())
                status = 0
            except (Differ, OSError) as error:
                os.write(write_end, str(error).encode()[:4000])
            finally:
                os._exit(status)
        os.close(write_end)
        children.append((pid, read_end, number))
    results: dict[str, object] = {}
    problems = []
    for pid, read_end, number in children:
        with open(read_end, "rb") as end:
            said = end.read()
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            problems.append(said.decode(errors="replace"))
        else:
            results[f"parallel-{number}"] = json.loads(said)
    if problems:
        raise Differ("; ".join(problems))
    return results


def main() -> int:
    """0: the guest found no difference; 1: it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("file", "many", "parallel"))
    parser.add_argument("path")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--largest", type=int, default=2_000_000)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--processes", type=int, default=4)
    options = parser.parse_args()
    try:
        if options.what == "file":
            result = one_file(options.path, options.seed, options.steps, options.largest)
        elif options.what == "many":
            result = many_files(options.path, options.seed, options.count)
        else:
            result = parallel(options.path, options.seed, options.processes, options.steps, options.largest)
    except Differ as error:
        print(error)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
