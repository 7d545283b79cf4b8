"""RespConnection.read_now: bytes are processed once and in order; the transport finds the end of the connection."""

import asyncio
import os
import select
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from snorky.gateway.redis.connection.resp import ConnectionLost, Gets, RespConnection
from tests.support.scenarios.site import on_both_loops, until


@dataclass
class Line:
    """A connection to a server that only sends what a test says. replies: what was processed, in order."""

    connection: RespConnection
    server: socket.socket
    replies: list[object] = field(default_factory=list)

    def consume(self, gets: Gets) -> None:
        while (reply := gets()) is not False:
            self.replies.append(reply)

    def send(self, data: bytes) -> None:
        """Send, and wait until it has arrived, without running the loop."""
        self.server.sendall(data)
        self.await_bytes()

    def await_bytes(self) -> None:
        fd = cast(asyncio.Transport, self.connection._transport).get_extra_info("socket").fileno()
        assert select.select([fd], [], [], 30.0)[0]


@asynccontextmanager
async def line() -> AsyncIterator[Line]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        _, connection = await asyncio.get_running_loop().create_connection(RespConnection, *listening.getsockname())
        server, _ = listening.accept()
    with server:
        made = Line(connection, server)
        connection.consume = made.consume
        yield made
        connection.close(ConnectionLost("the test has ended"))
        await connection.wait_closed()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@on_both_loops
async def test_what_has_arrived_is_processed_at_once_and_only_once() -> None:
    async with line() as each:
        each.send(b"+1\r\n+2\r\n+")
        each.connection.read_now()
        assert each.replies == [b"1", b"2"]
        each.connection.read_now()  # nothing has arrived
        each.send(b"3\r\n")
        await until(lambda: len(each.replies) == 3)  # by the loop
        each.send(b"+4\r\n")
        each.connection.read_now()
        assert each.replies == [b"1", b"2", b"3", b"4"]


@on_both_loops
async def test_nothing_is_read_while_paused() -> None:
    async with line() as each:
        each.connection.pause()
        each.send(b"+1\r\n")
        each.connection.read_now()
        assert each.replies == []
        each.connection.resume()
        each.connection.read_now()
        assert each.replies == [b"1"]


@on_both_loops
async def test_a_read_within_a_read_would_change_the_order() -> None:
    async with line() as each:

        def consume(gets: Gets) -> None:
            while (reply := gets()) is not False:
                if reply == b"1":
                    each.send(b"+3\r\n")
                    each.connection.read_now()
                each.replies.append(reply)

        each.connection.consume = consume
        each.send(b"+1\r\n+2\r\n")
        each.connection.read_now()
        await until(lambda: len(each.replies) == 3)
        assert each.replies == [b"1", b"2", b"3"]


@on_both_loops
@pytest.mark.parametrize("is_reset", [False, True])
async def test_the_transport_finds_the_end_and_no_descriptor_is_left(*, is_reset: bool) -> None:
    async with line():
        pass  # the loop opens descriptors of its own with its first connection
    before = descriptors()
    async with line() as each:
        lost: list[ConnectionLost] = []
        each.connection.on_lost = lost.append
        each.send(b"+1\r\n")
        each.connection.read_now()
        if is_reset:
            each.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        each.server.close()
        each.await_bytes()
        for _ in range(3):
            each.connection.read_now()
        assert lost == [] and each.connection.is_open
        await until(lambda: lost)
        each.connection.read_now()
        assert each.replies == [b"1"]
    await until(lambda: descriptors() == before)


@on_both_loops
async def test_an_error_of_ours_ends_the_connection_and_is_not_raised_to_the_client() -> None:
    async with line() as each:
        lost: list[ConnectionLost] = []
        reports: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reports.append(context))

        def fail(_gets: Gets) -> None:
            raise LookupError("a fault")

        each.connection.consume, each.connection.on_lost = fail, lost.append
        each.send(b"+1\r\n")
        each.connection.read_now()
        assert [str(error) for error in lost] == ["a reply was not processed: LookupError('a fault')"]
        assert [type(report["exception"]) for report in reports] == [LookupError]


@on_both_loops
async def test_a_closing_transport_is_left_alone() -> None:
    async with line() as each:
        assert each.connection._transport is not None
        each.connection._transport.abort()
        each.connection.read_now()
        assert each.connection.is_open  # `connection_lost` comes in the next iteration
        assert each.connection._own_fd == -1, "the number may belong to another socket already"
        lost: list[ConnectionLost] = []
        each.connection.on_lost = lost.append
        await until(lambda: lost)


@on_both_loops
async def test_without_a_free_descriptor_only_the_loop_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "dup", refuse)
    async with line() as each:
        each.send(b"+1\r\n")
        each.connection.read_now()
        assert each.replies == []
        await until(lambda: each.replies)


async def test_bytes_of_tls_are_not_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        extra: dict[str, Any] = {"socket": ours, "sslcontext": object()}
        connection = RespConnection()
        connection.connection_made(
            cast(asyncio.BaseTransport, SimpleNamespace(get_extra_info=extra.get, is_closing=lambda: False))
        )
        theirs.sendall(b"+1\r\n")
        connection.read_now()
        assert ours.recv(100) == b"+1\r\n"
