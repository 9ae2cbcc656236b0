"""Waiting for answers: timeouts, interruption, late answers, servers that vanish or lie."""

from __future__ import annotations

import errno
import signal
import struct
import threading
import time
from typing import Any

import pytest

from transfuse.client import Client, Credentials
from transfuse.client.exchange import FORGET_BATCH
from transfuse.errors import RemoteProtocolError
from transfuse.filesystems.memory import MemoryFilesystem
from transfuse.fs.values import Attr
from transfuse.quiet import BURST
from transfuse.testing import ScriptedPeer, connect
from transfuse.wire import structs as w
from transfuse.wire.opcodes import Opcode


def interrupted(peer: ScriptedPeer) -> list[int]:
    return [asked.args.unique for asked in peer.asked if isinstance(asked.args, w.InterruptIn)]


def expect_interrupt(peer: ScriptedPeer, error: int = errno.EINTR) -> None:
    """An INTERRUPT, upon which the interrupted request ends."""

    def end_it(scripted: ScriptedPeer, asked: Any) -> None:
        target = next(one for one in scripted.asked if one.unique == asked.args.unique)
        scripted.answer(target, b"", error)

    peer.expect(Opcode.INTERRUPT).then(end_it)


def test_a_request_that_takes_too_long_is_interrupted_and_times_out(peer: ScriptedPeer, client: Client) -> None:
    client.exchange.timeout_s = 0.05
    peer.expect(Opcode.STATFS).no_reply()
    expect_interrupt(peer)
    with pytest.raises(TimeoutError, match="STATFS: no answer within 0.05 s"):
        client.statvfs()
    assert len(interrupted(peer)) == 1
    assert not client.exchange.session.in_flight


def test_interrupt_is_repeated_while_the_server_does_not_know_the_request(peer: ScriptedPeer, client: Client) -> None:
    client.exchange.timeout_s = 0.01
    peer.expect(Opcode.STATFS).no_reply()
    peer.expect(Opcode.INTERRUPT).then(lambda scripted, asked: scripted.answer(asked, b"", errno.EAGAIN))
    expect_interrupt(peer)
    with pytest.raises(TimeoutError):
        client.statvfs()
    assert len(interrupted(peer)) == 2


def test_an_answer_that_comes_after_the_interrupt_is_used(peer: ScriptedPeer, client: Client) -> None:
    client.exchange.timeout_s = 0.01
    peer.expect(Opcode.STATFS).no_reply()

    def answer_after_all(scripted: ScriptedPeer, asked: Any) -> None:
        target = next(one for one in scripted.asked if one.unique == asked.args.unique)
        scripted.answer(target, w.StatfsOut(st=w.Kstatfs(bsize=512)).encode("<"))

    peer.expect(Opcode.INTERRUPT).then(answer_after_all)
    assert client.statvfs().f_bsize == 512


def test_a_server_that_ignores_interrupts_does_not_hold_the_caller(peer: ScriptedPeer, client: Client) -> None:
    client.exchange.timeout_s = 0.01
    peer.expect(Opcode.LOOKUP, name=b"a").no_reply()
    for _ in range(6):
        peer.expect(Opcode.INTERRUPT).no_reply()
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        client.stat("/a")
    assert time.monotonic() - begun < 3


def test_what_a_late_answer_brings_is_given_back(peer: ScriptedPeer, client: Client) -> None:
    client.exchange.timeout_s = 0.01
    client.exchange.session._absent.add(Opcode.INTERRUPT)
    peer.expect(Opcode.LOOKUP, name=b"a").no_reply()
    with pytest.raises(TimeoutError):
        client.stat("/a")
    late = peer.asked[-1]
    peer.answer(late, peer.entry(Attr.file(5)))
    client.exchange.flush_forgets()
    assert peer.forgotten == {5: 1}
    assert not client.exchange.session.in_flight


def test_a_file_that_was_opened_too_late_is_released(peer: ScriptedPeer, client: Client) -> None:
    client.exchange.session._absent.add(Opcode.INTERRUPT)
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5), entry_timeout_s=9)
    client.nodeid("/a")
    client.exchange.timeout_s = 0.01
    peer.expect(Opcode.OPEN, nodeid=5).no_reply()
    with pytest.raises(TimeoutError):
        client.open_file("/a")
    client.exchange.timeout_s = 5
    peer.answer(peer.asked[-1], w.OpenOut(fh=77).encode("<"))
    peer.expect(Opcode.RELEASE, nodeid=5, fh=77).reply()
    peer.expect(Opcode.STATFS).reply(w.StatfsOut())
    client.statvfs()


def test_all_waiting_calls_fail_when_the_server_hangs_up(peer: ScriptedPeer, client: Client) -> None:
    failures: list[BaseException] = []

    def ask(name: str) -> None:
        try:
            client.stat(name)
        except OSError as error:
            failures.append(error)

    threads = []
    for number in range(4):
        peer.expect(Opcode.LOOKUP).no_reply()
        threads.append(threading.Thread(target=ask, args=(f"/{number}",)))
        threads[-1].start()
        while len(peer.asked) < 2 + number:
            time.sleep(0.001)
    peer.hang_up()
    for thread in threads:
        thread.join(5)
    assert len(failures) == 4 and all(isinstance(error, ConnectionError) for error in failures)
    with pytest.raises(ConnectionError):
        client.stat("/later")


def test_a_hang_up_instead_of_an_answer_is_a_connection_error(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP).hang_up()
    with pytest.raises(ConnectionError, match="the server is gone"):
        client.stat("/a")


def test_a_bad_reply_fails_its_request_and_no_other(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply(b"too short")
    with pytest.raises(RemoteProtocolError, match="reply to LOOKUP"):
        client.stat("/a")
    peer.expect(Opcode.LOOKUP, name=b"b").reply_entry(Attr.file(6), attr_timeout_s=5)
    assert client.stat("/b").st_ino == 6


def test_a_message_that_belongs_to_no_request_ends_the_connection(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_raw(bytes(8))
    with pytest.raises(ConnectionAbortedError, match="shorter than its 16-byte header"):
        client.stat("/a")
    assert client.closed and peer.closed


def test_ctrl_c_in_a_waiting_call_interrupts_the_request(peer: ScriptedPeer, client: Client) -> None:
    def press(scripted: ScriptedPeer, asked: Any) -> None:
        # A signal to the waiting thread itself, as the terminal's would be.
        main = threading.main_thread().ident or 0
        threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()

    peer.expect(Opcode.LOOKUP, name=b"a").then(press)
    expect_interrupt(peer)
    with pytest.raises(KeyboardInterrupt):
        client.stat("/a")
    time.sleep(0.01)
    assert not client.exchange.session.in_flight


def test_forgets_go_out_in_batches(peer: ScriptedPeer, client: Client) -> None:
    for number in range(FORGET_BATCH + 1):
        client.cache.forgets.append((100 + number, 1))
    peer.expect(Opcode.STATFS).reply(w.StatfsOut())
    client.statvfs()
    batches = [asked for asked in peer.asked if asked.opcode == Opcode.BATCH_FORGET]
    assert len(batches) == 1 and len(peer.forgotten) == FORGET_BATCH + 1


def test_forgets_of_one_node_are_added_up(peer: ScriptedPeer, client: Client) -> None:
    client.cache.forgets.extend([(5, 1), (5, 2)])
    client.exchange.flush_forgets()
    assert [asked.opcode for asked in peer.asked[1:]] == [Opcode.FORGET] and peer.forgotten == {5: 3}


def test_close_sends_destroy_and_no_forgets(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a").reply_entry(Attr.file(5))
    client.nodeid("/a")
    client.close()
    assert peer.asked[-1].opcode == Opcode.DESTROY and peer.forgotten == {}
    client.close()


def test_a_server_that_refuses_init_is_a_connection_error() -> None:
    peer = ScriptedPeer()
    peer.expect(Opcode.INIT).reply_error(errno.EPROTO)
    with pytest.raises(ConnectionRefusedError, match="Protocol error"):
        Client(peer).connect()
    assert peer.closed


def test_a_server_that_never_agrees_on_a_major_is_given_up() -> None:
    peer = ScriptedPeer()
    client = Client(peer)
    client.exchange.session.major = 12
    for major in (11, 10, 9):
        peer.expect(Opcode.INIT).reply(w.InitOut(major=major, minor=45))
    with pytest.raises(ConnectionRefusedError, match="no protocol version"):
        client.connect()


def test_many_threads_share_one_connection() -> None:
    with connect(MemoryFilesystem(), over="stream", uid=0) as client:
        problems: list[str] = []

        def work(number: int) -> None:
            for step in range(30):
                path = f"/{number}-{step}"
                client.write_bytes(path, path.encode() * 100)
                if client.read_bytes(path) != path.encode() * 100:
                    problems.append(path)
                if step % 3 == 0:
                    client.unlink(path)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not problems and len(client.listdir("/")) == 8 * 20


def test_the_credentials_go_with_every_request(peer: ScriptedPeer, client: Client) -> None:
    peer.expect(Opcode.LOOKUP, name=b"a", uid=1000, gid=100, pid=42).reply_error(errno.ENOENT)
    client.exists("/a")
    peer.expect(Opcode.LOOKUP, name=b"a", uid=7, gid=8, pid=42).reply_error(errno.ENOENT)
    client.as_user(7, 8).exists("/a")


def test_a_view_closes_nothing(peer: ScriptedPeer, client: Client) -> None:
    client.as_user(7).close()
    assert not client.closed
    assert client.creds == Credentials(1000, 100, 42, (7,), 0o022)


def test_a_server_full_of_malformed_notifications_gets_a_few_lines(
    peer: ScriptedPeer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(500):
        with pytest.raises(OSError) as caught:
            peer.send_raw(struct.pack("<IiQ", 17, 2, 0) + b"x")
        assert caught.value.errno == errno.EINVAL
    client.close()
    assert len(caplog.messages) == BURST + 1
    assert caplog.messages[-1] == f"{500 - BURST} more malformed notifications were not logged"
