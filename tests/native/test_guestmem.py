"""Memory whose file is truncated under us: the compiled form survives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

guestmem = pytest.importorskip("transfuse._native.guestmem", reason="the plain form runs")

PREPARE = """
import ctypes, mmap, os, signal, sys, threading
import transfuse
from transfuse.errors import RingError
from transfuse._native.guestmem import GuestMemory, Mapping, Region
from transfuse._native.virtdevice import SplitDevice
from transfuse._native.virtdriver import SplitDriver

PAGE = mmap.PAGESIZE
fd = os.memfd_create("guest")
os.ftruncate(fd, 16 * PAGE)
"""


def run(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    """`code` in a process of its own, which may die of what it does."""
    return subprocess.run(
        [sys.executable, "-c", PREPARE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def test_a_truncated_file_reads_as_zeros_and_breaks_the_queue():
    done = run("""
        region = Region(0, 0, 16 * PAGE, fd, 0)
        other = os.memfd_create("other")
        os.ftruncate(other, PAGE)
        apart = Region(1 << 40, 1 << 40, PAGE, other, 0)
        apart.view[0] = 7
        memory = GuestMemory([region, apart])
        driver = SplitDriver(memory, 8, 0, 4096, 8192, 1 << 32)
        device = SplitDevice(memory, 8, 0, 4096, 8192, 1 << 32, 0)
        region.view[5 * PAGE:5 * PAGE + 4] = b"data"
        for _ in range(2):
            assert driver.add([(5 * PAGE, 4)], [(6 * PAGE, 8)], None)
        driver.publish()
        chain = device.pop()
        assert not memory.broken
        os.ftruncate(fd, 0)
        assert chain.gather(0, 4) == bytes(4)
        assert memory.broken and region.broken and not apart.broken
        chain.write(0, b"nowhere!")
        try:
            device.pop()
        except RingError as error:
            assert "truncated" in str(error), error
        else:
            raise AssertionError("the queue goes on")
        assert device.broken
        assert apart.view[0] == 7
        try:
            SplitDevice(memory, 8, 0, 4096, 8192, 1 << 32, 0)
        except RingError:
            print("fine")
    """)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


def test_a_queue_of_other_memory_goes_on():
    done = run("""
        lost = Region(0, 0, 16 * PAGE, fd, 0)
        other = os.memfd_create("other")
        os.ftruncate(other, 16 * PAGE)
        memory = GuestMemory([Region(0, 0, 16 * PAGE, other, 0)])
        driver = SplitDriver(memory, 8, 0, 4096, 8192, 1 << 32)
        device = SplitDevice(memory, 8, 0, 4096, 8192, 1 << 32, 0)
        os.ftruncate(fd, 0)
        assert lost.view[0] == 0
        assert driver.add([(5 * PAGE, 4)], [], "token")
        driver.publish()
        assert device.push(device.pop(), 0)
        assert driver.take_used() == ("token", 0)
        print("fine")
    """)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


def test_a_system_call_into_truncated_memory_is_an_error():
    done = run("""
        region = Region(0, 0, 16 * PAGE, fd, 0)
        memory = GuestMemory([region])
        driver = SplitDriver(memory, 8, 0, 4096, 8192, 1 << 32)
        device = SplitDevice(memory, 8, 0, 4096, 8192, 1 << 32, 0)
        assert driver.add([(5 * PAGE, 4)], [(6 * PAGE, 8)], None)
        driver.publish()
        chain = device.pop()
        os.ftruncate(fd, 0)
        source = os.memfd_create("source")
        os.write(source, b"12345678")
        try:
            chain.pread(source, 0, 0, 8)
        except OSError as error:
            print(error.errno)
    """)
    assert (done.stdout, done.returncode) == ("14\n", 0), done.stderr  # EFAULT


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_that_fault_at_the_same_time_all_go_on(threads):
    done = run(f"""
        regions = []
        for n in range(4):
            file = os.memfd_create("guest")
            os.ftruncate(file, 64 * PAGE)
            regions.append((Region(0, 0, 64 * PAGE, file, 0), file))
        barrier = threading.Barrier({threads})

        def read():
            barrier.wait()
            for region, _ in regions:
                assert bytes(region.view) == bytes(64 * PAGE)

        for _, file in regions:
            os.ftruncate(file, 0)
        started = [threading.Thread(target=read) for _ in range({threads})]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        print([region.broken for region, _ in regions])
    """)
    assert (done.stdout, done.returncode) == ("[True, True, True, True]\n", 0), done.stderr


FOREIGN = """
    region = Region(0, 0, PAGE, fd, 0)
    file = os.memfd_create("foreign")
    os.ftruncate(file, PAGE)
    foreign = mmap.mmap(file, PAGE)
    os.ftruncate(file, 0)
    foreign[0]
    print("alive")
"""


def test_other_faults_kill_as_before():
    assert run(FOREIGN).returncode == -signal.SIGBUS


@pytest.mark.parametrize("when", ["before", "after", "between"])
def test_faulthandler_says_where_another_fault_was(when):
    enable = "import faulthandler; faulthandler.enable()\n"
    code = textwrap.dedent(FOREIGN)
    first, rest = code.strip().split("\n", 1)
    if when == "before":
        code = enable + code
    elif when == "after":
        code = "\n".join([first, enable, rest])
    else:
        code = "\n".join([first, enable, "second = Region(0, 0, PAGE, fd, 0)", rest])
    done = run(code)
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr


def test_a_handler_that_was_there_before_is_called_for_other_faults():
    done = run(f"""
        seen = []
        libc = ctypes.CDLL(None, use_errno=True)
        HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
        @HANDLER
        def handler(number):
            os.write(1, b"called\\n")
            os._exit(3)
        libc.signal.argtypes = [ctypes.c_int, HANDLER]
        libc.signal.restype = ctypes.c_void_p
        libc.signal({int(signal.SIGBUS)}, handler)
        {FOREIGN.strip().replace(chr(10), chr(10) + "    ")}
    """)
    assert (done.stdout, done.returncode) == ("called\n", 3), done.stderr


def test_a_signal_that_somebody_sent_kills_as_before():
    done = run("""
        region = Region(0, 0, PAGE, fd, 0)
        os.kill(os.getpid(), signal.SIGBUS)
        print("alive")
    """)
    assert done.returncode == -signal.SIGBUS


def test_a_region_that_is_gone_is_not_watched_any_more():
    done = run("""
        for _ in range(10000):  # more than there are places for regions
            Region(0, 0, PAGE, fd, 0)
        print("fine")
    """)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


def test_there_is_a_limit_to_regions_that_are_watched():
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4096)
    try:
        with pytest.raises(OSError, match="memory"):
            regions = [guestmem.Region(0, 0, 4096, fd, 0) for _ in range(5000)]
        assert guestmem.Region(0, 0, 4096, fd, 0).size == 4096
    finally:
        os.close(fd)
    assert "regions" not in locals()
