"""The fan-out with the extension module and without it, side by side on real sockets: no difference can be seen.

Both get the same publications and replies, and their clients read, stop and leave at the same moments. After each step,
each client must have received the same bytes, as many must be queued for it, and it must be closed or not on both.
"""

import asyncio
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.native.direct_sender import DirectSender
from snorky.gateway.delivery.write_queue import Batch, WriteQueue
from snorky.gateway.errors import CloseCode
from tests.support.extension import extension_built, skip_without_ring
from tests.support.fakes.fake_wire import JSON
from tests.support.scenarios.fan_out_rig import Source

pytestmark = pytest.mark.needs("gcc", "Python.h")

CLIENTS = 4
SEND_BUFFER_BYTES = 4_608  # the least that Linux gives
HIGH_WATER_BYTES = 20_000
OUTBOX_MAX_BYTES = 60_000
CLOSE_FRAME = b"<close>"

_clients = st.integers(0, CLIENTS - 1)
_sizes = st.sampled_from([10, 100, 3_000, 9_000, 30_000])
_STEPS = st.one_of(
    st.tuples(st.just("publish"), st.sets(_clients, min_size=1), _sizes),
    st.tuples(st.just("publish"), st.just(set(range(CLIENTS))), _sizes),
    st.tuples(st.just("reply"), _clients, _sizes),
    st.tuples(st.just("read"), _clients, st.sampled_from([1, 2_000, 1 << 20])),
    st.tuples(st.just("tick")),
    st.tuples(st.just("close"), _clients),
    st.tuples(st.just("leave"), _clients),
    st.tuples(st.just("unsubscribe"), _clients),
)


class Server(asyncio.Protocol):
    """Our end of one client's connection: the transport of a Connection, as a WebSocket is."""

    transport_name = "test"

    def __init__(self, sender: DirectSender, serial: int) -> None:
        self._sender, self._serial = sender, serial
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self.write = self.transport.write
        self.connection = Connection(self, JSON, node_id="n", serial=self._serial, outbox_max_bytes=OUTBOX_MAX_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.connection.mark_closed()

    def eof_received(self) -> None:
        self.connection.mark_closed()

    def pause_writing(self) -> None:
        self.connection.pause()

    def resume_writing(self) -> None:
        self.connection.resume()

    def make_direct(self) -> Any:
        return self._sender.direct_of(self.transport)

    def buffered_bytes(self) -> int:
        return int(self.transport.get_write_buffer_size())

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""

    def close(self, code: int, reason: str) -> None:
        self.transport.write(CLOSE_FRAME)
        self.transport.close()


class Rig:
    """One fan-out with its clients."""

    def __init__(self, sender: DirectSender, chunk: int) -> None:
        self._sender = sender
        self.source = Source()
        self.queue = WriteQueue(self.source, chunk=chunk, on_done=lambda: None, send_many=sender.send_many)
        self.servers: list[Server] = []
        self.sockets: list[socket.socket] = []
        self.got = [b""] * CLIENTS
        self.group: dict[Connection, int] = {}

    async def open(self) -> None:
        for serial in range(CLIENTS):
            ours, client = socket.socketpair()
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            client.setblocking(False)
            server = Server(self._sender, serial)
            await asyncio.get_running_loop().create_unix_connection(lambda each=server: each, sock=ours)  # type: ignore[misc]
            if serial % 2:  # the others at their first delivery
                assert server.connection.open_direct() == (self._sender.path != "python")
            self.servers.append(server)
            self.sockets.append(client)
            self.group[server.connection] = serial + 1

    def publish(self, chosen: set[int], data: bytes) -> None:
        wanted = tuple(each.connection for each in self.servers if each.connection._serial in chosen)
        connections = tuple(each for each in wanted if each in self.group and not each.is_closed)
        self.queue.line_up(Batch({JSON: self.group}, JSON, connections, data, CLIENTS))
        self.queue.run()

    def read(self, index: int, most: int) -> bool:
        try:
            data = self.sockets[index].recv(most)
        except OSError:  # nothing is there, or the client has left
            return False
        self.got[index] += data
        return bool(data)

    def do(self, step: tuple[Any, ...], data: bytes) -> None:
        match step:
            case ("publish", chosen, _):
                self.publish(chosen, data)
            case ("reply", index, _):
                self.servers[index].connection.write_reply(data)
            case ("read", index, most):
                self.read(index, most)
            case ("close", index):
                self.servers[index].connection.close(CloseCode.GOING_AWAY)
            case ("leave", index):
                self.sockets[index].close()
            case ("unsubscribe", index):
                self.group.pop(self.servers[index].connection, None)

    @property
    def state(self) -> list[tuple[bool, int, bool, bytes]]:
        """Of each client: whether it is closed, how much is queued for it and whether here, and its received bytes."""
        return [
            (server.connection.is_closed, server.connection.pending_bytes, server.connection._outbox is None, got)
            for server, got in zip(self.servers, self.got, strict=True)
        ]

    def close(self) -> None:
        for server, client in zip(self.servers, self.sockets, strict=True):
            if not server.is_lost:
                server.transport.abort()
            client.close()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def message(number: int, step: tuple[Any, ...]) -> bytes:
    return b"<%s %d %s>" % (step[0].encode(), number, bytes([97 + number % 26]) * step[2])


async def compare(setting: str, steps: Sequence[tuple[Any, ...]], chunk: int) -> None:
    with extension_built():
        rigs = [Rig(DirectSender(setting), chunk), Rig(DirectSender("off"), chunk)]
    native, plain = rigs
    try:
        for rig in rigs:
            await rig.open()
        await turns()
        for number, step in enumerate(steps):
            data = message(number, step) if step[0] in ("publish", "reply") else b""
            for rig in rigs:
                rig.do(step, data)
            if step[0] == "tick":
                await turns()
            assert native.state == plain.state, (number, step)
        idle = 0
        while idle < 3:  # read everything that is still to come
            await turns()
            for rig in rigs:
                idle = 0 if any([rig.read(index, 1 << 20) for index in range(CLIENTS)]) else idle + 1
            if not idle:
                continue
        assert native.state == plain.state
        for index, got in enumerate(native.got):
            assert_sound(got, index, steps)
    finally:
        for rig in rigs:
            rig.close()
        await turns()


def assert_sound(got: bytes, index: int, steps: Sequence[tuple[Any, ...]]) -> None:
    """A client got its own messages, whole, once and in order; the last may be cut off. Replies may pass chunks."""
    rest, numbers = got.removesuffix(CLOSE_FRAME), {b"publish": [-1], b"reply": [-1]}
    while match := re.match(rb"<(\w+) (\d+) \w+>", rest):
        kind, number = match[1], int(match[2])
        step = steps[number]
        assert match[0] == message(number, step) and index in (step[1] if kind == b"publish" else [step[1]])
        assert number > numbers[kind][-1]
        numbers[kind].append(number)
        rest = rest[match.end() :]
    last = [message(number, step) for number, step in enumerate(steps) if step[0] in ("publish", "reply")]
    assert not rest or any(each.startswith(rest) for each in last), rest[:60]


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("setting", ["auto", "send"], ids=["io_uring", "send"])
@settings(max_examples=150, deadline=None, report_multiple_bugs=False)
@example(steps=[("publish", {0, 1}, 30_000), ("publish", {0, 1}, 10), ("read", 0, 1 << 20), ("tick",)], chunk=1_000)
@given(steps=st.lists(_STEPS, max_size=40), chunk=st.sampled_from([2, 3, 1_000]))
def test_both_paths_do_the_same(
    new_loop: Callable[[], asyncio.AbstractEventLoop], setting: str, steps: list[tuple[Any, ...]], chunk: int
) -> None:
    if setting == "auto":
        skip_without_ring()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(compare(setting, steps, chunk))
