"""The extension module: which sockets it uses, what it reports, and that it works without the GIL."""

import asyncio
import gc
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.extension import extension, skip_without_ring
from tests.support.scenarios.site import on_both_loops, until

pytestmark = pytest.mark.needs("gcc", "Python.h")
SendMany = Callable[..., Any]


@pytest.fixture(params=["send", "io_uring"])
def send_many(request: pytest.FixtureRequest) -> Any:
    """The function, and the method of a ring."""
    if request.param == "send":
        return extension().send_many
    skip_without_ring()
    return extension().Ring().send_many


class StubTransport:
    """The answers that a transport gives. on_ask: called with each question."""

    def __init__(self, closing: object = False, buffered: object = 0) -> None:
        self.closing, self.buffered = closing, buffered
        self.on_ask: Callable[[], object] = lambda: None

    def is_closing(self) -> object:
        self.on_ask()
        return self._answer(self.closing)

    def get_write_buffer_size(self) -> object:
        return self._answer(self.buffered)

    @staticmethod
    def _answer(value: object) -> object:
        if isinstance(value, BaseException):
            raise value
        return value


class Ends:
    """The two ends of a connection: ours, without waiting, and the client's."""

    def __init__(self) -> None:
        self.ours, self.client = socket.socketpair()
        self.ours.setblocking(False)
        self.client.setblocking(False)
        self.transport = StubTransport()

    def direct(self) -> Any:
        return extension().Direct(self.ours.fileno(), self.transport)

    def got(self) -> bytes:
        found = b""
        while True:
            try:
                data = self.client.recv(1 << 20)
            except BlockingIOError:
                return found
            if not data:
                return found
            found += data


@contextmanager
def pairs(count: int) -> Iterator[list[Ends]]:
    made = [Ends() for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.ours.close()
            each.client.close()


def test_all_sockets_get_all_bytes_and_nothing_is_reported(send_many: SendMany) -> None:
    with pairs(5) as ends:
        assert send_many([each.direct() for each in ends], b"frame") == []
        assert [each.got() for each in ends] == [b"frame"] * 5


@pytest.mark.parametrize(
    ("closing", "buffered"),
    [(True, 0), (1, 0), (False, 1), (False, 70_000), (RuntimeError("gone"), 0), (False, RuntimeError("gone"))],
    ids=["closing", "closing-int", "one-byte", "full", "raises", "raises-size"],
)
def test_a_socket_is_left_to_its_transport_unless_that_would_write_at_once(
    send_many: SendMany, closing: object, buffered: object
) -> None:
    with pairs(3) as ends:
        ends[1].transport = StubTransport(closing, buffered)
        assert send_many([each.direct() for each in ends], b"frame") == [(1, 0)]
        assert [each.got() for each in ends] == [b"frame", b"", b"frame"]


def test_without_a_socket_to_use_nothing_is_sent_and_the_caller_knows(send_many: SendMany) -> None:
    with pairs(1) as ends:
        ends[0].transport.buffered = 1
        assert send_many([None, ends[0].direct(), None], b"frame") is None
        assert send_many([], b"frame") is None
        assert ends[0].got() == b""


def test_what_a_socket_does_not_take_is_reported_with_the_number_of_bytes(send_many: SendMany) -> None:
    with pairs(4) as ends:
        for each in ends:
            each.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_608)
        while True:  # this one is full
            try:
                ends[1].ours.send(bytes(1 << 16))
            except BlockingIOError:
                break
        filled = len(ends[1].got())
        assert filled  # and now read again
        ends[3].client.close()  # EPIPE
        data = bytes(range(256)) * 4_096
        targets = [ends[0].direct(), None, ends[2].direct(), ends[3].direct()]
        found = dict(send_many(targets, data))
        assert found[1] == found[3] == 0
        for index in (0, 2):
            assert 0 < found[index] < len(data)
            assert ends[index].got() == data[: found[index]]


def test_a_full_socket_takes_nothing(send_many: SendMany) -> None:
    with pairs(2) as ends:
        ends[0].ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_608)
        with pytest.raises(BlockingIOError):
            while True:
                ends[0].ours.send(bytes(1 << 16))
        assert send_many([each.direct() for each in ends], b"frame") == [(0, 0)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()], ids=["interrupt", "exit"])
def test_an_interrupt_stops_everything_before_the_first_byte(send_many: SendMany, error: BaseException) -> None:
    with pairs(2) as ends:
        ends[1].transport.closing = error
        with pytest.raises(type(error)):
            send_many([each.direct() for each in ends], b"frame")
        assert [each.got() for each in ends] == [b"", b""]


def test_wrong_arguments_are_refused(send_many: SendMany) -> None:
    Direct = extension().Direct
    for wrong in ((), ([],), ([], "text"), ((), b"x"), ([1], b"x"), ([], b"x", 1)):
        with pytest.raises(TypeError):
            send_many(*wrong)
    with pytest.raises(TypeError):
        Direct("1", StubTransport())
    with pytest.raises(AttributeError):
        Direct(1, object())
    with pytest.raises(TypeError):
        Direct.name = "x"


def test_a_transport_that_shortens_the_list_meanwhile_breaks_nothing(send_many: SendMany) -> None:
    with pairs(3) as ends:
        targets = [each.direct() for each in ends]
        ends[0].transport.on_ask = targets.clear
        with pytest.raises(IndexError):
            send_many(targets, b"frame")
        assert [each.got() for each in ends] == [b""] * 3


def test_a_cycle_through_a_transport_is_collected() -> None:
    with pairs(1) as ends:
        transport = ends[0].transport
        transport.direct = ends[0].direct()  # type: ignore[attr-defined]
        gone = weakref.ref(transport)
        ends[0].transport = StubTransport()
        del transport
        gc.collect()
        assert gone() is None


def test_references_are_balanced(send_many: SendMany) -> None:
    with pairs(3) as ends:
        ends[1].transport.buffered = 1
        targets, data = [*(each.direct() for each in ends), None], b"frame" * 100
        counted = [data, *targets[:-1], *(each.transport for each in ends)]
        before, nothing = [sys.getrefcount(each) for each in counted], sys.getrefcount(None)
        for _ in range(1_000):
            send_many(targets, data)
            assert len(ends[0].got()) == len(data)
            ends[2].got()
        assert [sys.getrefcount(each) for each in counted] == before
        assert abs(sys.getrefcount(None) - nothing) < 500


def test_other_threads_run_during_the_sends(send_many: SendMany) -> None:
    count, is_over = 0, threading.Event()

    def run() -> None:
        nonlocal count
        while not is_over.is_set():
            count += 1
            time.sleep(0)  # releases the GIL; the test itself never does

    interval_s = sys.getswitchinterval()
    thread = threading.Thread(target=run)
    with pairs(50) as ends:
        targets, data = [each.direct() for each in ends], bytes(1 << 16)
        thread.start()
        try:
            while not count:
                time.sleep(0)
            sys.setswitchinterval(1_000)
            before = count
            for _ in range(10_000):
                send_many(targets, data)
                if count > before:
                    break
            assert count > before
        finally:
            sys.setswitchinterval(interval_s)
            is_over.set()
            thread.join()


@on_both_loops
async def test_a_transport_is_asked_by_its_own_methods(send_many: SendMany) -> None:
    """With bytes in the buffer of a real transport, the module does not overtake them."""
    with pairs(1) as ends:
        ends[0].ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_608)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_unix_connection(asyncio.Protocol, sock=ends[0].ours)
        direct = extension().Direct(ends[0].ours.fileno(), transport)
        assert send_many([direct], b"1") == []
        transport.write(bytes(1 << 20))
        assert transport.get_write_buffer_size() > 0
        assert send_many([direct], b"2") is None
        transport.abort()
        assert send_many([direct], b"3") is None
        await until(lambda: not transport.get_write_buffer_size())
        assert set(ends[0].got()) == {0, ord("1")}


# -- io_uring ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ring() -> Any:
    skip_without_ring()
    return extension().Ring()


def test_more_sends_than_a_ring_has_places_are_all_done(ring: Any) -> None:
    with pairs(1_100) as ends:  # it has 1,024
        ends[5].transport.buffered = 1
        assert ring.send_many([each.direct() for each in ends], b"frame") == [(5, 0)]
        ends[5].transport.buffered = 0
        assert ring.send_many([each.direct() for each in ends], b"again") == []
        assert [each.got() for each in ends] == [b"again" if index == 5 else b"frameagain" for index in range(1_100)]


def test_a_ring_is_for_the_process_that_made_it(ring: Any) -> None:
    with pairs(1) as ends:
        targets = [ends[0].direct()]
        child = os.fork()
        if not child:
            try:
                ring.send_many(targets, b"child")
            except RuntimeError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert ring.send_many(targets, b"parent") == []
        assert ends[0].got() == b"parent"


def test_a_ring_is_for_one_thread_at_a_time(ring: Any) -> None:
    refused = threading.Event()

    def run() -> None:
        with pairs(50) as ends:
            targets, data = [each.direct() for each in ends], bytes(1 << 16)
            for _ in range(10_000):
                try:
                    ring.send_many(targets, data)
                except RuntimeError:
                    refused.set()
                if refused.is_set():
                    return

    threads = [threading.Thread(target=run) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert refused.is_set()
    with pairs(1) as ends:
        assert ring.send_many([ends[0].direct()], b"frame") == []


def test_rings_give_back_their_descriptors_and_memory() -> None:
    skip_without_ring()
    before = len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("io_uring")
    for _ in range(100):
        extension().Ring()
    assert (len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("io_uring")) == before
