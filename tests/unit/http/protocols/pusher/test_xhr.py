"""Pusher's sessions without a WebSocket, with receivers that keep their frames: the opening, the end, pings, sizes."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp.test_utils import make_mocked_request

from snorky.gateway.config.limits import Limits
from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.errors import CloseCode
from snorky.gateway.http.protocols.pusher.codes import ErrorCode, close_code_of
from snorky.gateway.http.protocols.pusher.xhr import (
    RESPONSE_MAX_CHARS,
    TIMING,
    PusherSession,
    PusherXHRHandler,
)
from snorky.gateway.http.sockjs.binding import Binding, Who, who_asks
from snorky.gateway.http.sockjs.transports import XhrStreaming
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.node import Node
from snorky.gateway.sdk.registry import ServiceRegistry
from snorky.gateway.testing.broker import LoopbackBroker
from snorky.services.pubsub import PubSubService

APP = PusherApp("shop", "shop-key", "0123456789abcdef0123456789abcdef")
Make = Callable[..., PusherSession]


class Receiver:
    """A response. frames: what it got."""

    def __init__(self, *, is_streaming: bool = True) -> None:
        self.is_streaming = is_streaming
        self.frames: list[str] = []
        self.is_ended = False
        self.on_drained: Callable[[], None] = lambda: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_finished: Callable[[], None] | None = None

    def send(self, frame: bytes) -> None:
        assert not self.is_ended
        self.frames.append(frame.decode())

    def end(self) -> None:
        self.is_ended = True
        if self.on_finished is not None:
            self.on_finished()

    def buffered_bytes(self) -> int:
        return 0

    def is_gone(self) -> bool:
        return False

    @property
    def chars(self) -> int:
        """The length of the response in a browser."""
        text = XhrStreaming().prelude().decode() + "".join(f"{frame}\n" for frame in self.frames)
        return len(text.encode("utf-16-le")) // 2


@asynccontextmanager
async def sessions(limits: Limits | None = None) -> AsyncIterator[Make]:
    """Make sessions of one node: app = None, fault = (code, text) as for PusherSession."""
    node = Node(LoopbackBroker(), limits=limits, node_id="n0000000000ab")
    registry = ServiceRegistry([PubSubService()])
    node.attach(registry)
    await node.start()
    endpoint = WebSocketHandler(registry).endpoint
    made: list[PusherSession] = []

    def make(app: PusherApp | None = APP, fault: tuple[ErrorCode, str] | None = None) -> PusherSession:
        of_session = (node, registry, TIMING, lambda: 0.0, "127.0.0.1", Binding(Who("", "")))
        session = PusherSession(*of_session, endpoint=endpoint, app=app, fault=fault)
        if not session.connection.is_closed:
            node.connect(session.connection, registry)
        made.append(session)
        return session

    try:
        yield make
    finally:
        for session in made:
            session.abort()
        await node.stop()


def events_of(receiver: Receiver) -> list[dict[str, str]]:
    return [json.loads(text) for frame in receiver.frames if frame[0] == "a" for text in json.loads(frame[1:])]


async def test_client_learns_its_id_behind_the_open_frame() -> None:
    async with sessions() as make:
        stream = Receiver()
        make().attach(stream)
        assert stream.frames[0] == "o" and not stream.is_ended
        (event,) = events_of(stream)
        assert event["event"] == "pusher:connection_established"
        assert json.loads(event["data"]) == {"socket_id": "171.1", "activity_timeout": 120}


async def test_poll_gets_one_frame_and_the_next_one_the_rest() -> None:
    async with sessions() as make:
        session = make()
        first, second, third = (Receiver(is_streaming=False) for _ in range(3))
        session.attach(first)
        assert (first.frames, first.is_ended) == (["o"], True)
        session.attach(second)
        assert [each["event"] for each in events_of(second)] == ["pusher:connection_established"] and second.is_ended
        session.attach(third)
        assert not third.frames and not third.is_ended, "the id is sent once"


@pytest.mark.parametrize("is_streaming", [True, False])
async def test_end_before_the_opening_comes_behind_the_open_frame(is_streaming: bool) -> None:
    async with sessions() as make:
        for session, end in (
            (make(None, (ErrorCode.NO_SUCH_APP, "There is no app")), 'c[4001,"There is no app"]'),
            (make(APP, (ErrorCode.NO_PROTOCOL, "None")), 'c[4008,"None"]'),
            (refused := make(), 'c[4009,"Bad token"]'),
        ):
            if session is refused:
                session.connection.close(CloseCode.BAD_TOKEN, "Bad token")
            receiver = Receiver(is_streaming=is_streaming)
            session.attach(receiver)
            assert (receiver.frames, receiver.is_ended) == (["o", end], True)
            again = Receiver(is_streaming=is_streaming)
            session.attach(again)
            assert again.frames == [end]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (CloseCode.GOING_AWAY, 4200),
        (CloseCode.SLOW_CONSUMER, 4100),
        (CloseCode.REVOKED, 4009),
        (CloseCode.TOO_LARGE, 1009),
    ],
)
async def test_close_codes_are_those_of_the_protocol(code: CloseCode, told: int) -> None:
    async with sessions() as make:
        session, stream = make(), Receiver()
        session.attach(stream)
        session.connection.close(code, "why")
        assert stream.frames[-1] == f'c[{told},"why"]' and stream.is_ended


async def test_client_that_aborted_a_response_may_come_back_at_once() -> None:
    async with sessions() as make:
        session, stream, next_one = make(), Receiver(), Receiver()
        session.attach(stream)
        stream.on_lost()
        session.attach(next_one)
        assert next_one.frames == ['c[4200,"Connection interrupted"]'], "1002 would count as a fault of the transport"


async def test_empty_array_is_answered_once_and_only_to_a_receiver() -> None:
    async with sessions() as make:
        session, stream = make(), Receiver()
        await session.receive([])
        session.attach(stream)
        assert "a[]" not in stream.frames, "nothing is queued for it"
        await session.receive([])
        assert stream.frames.count("a[]") == 1
        await session.receive([json.dumps({"event": "pusher:ping", "data": {}})])
        assert (stream.frames.count("a[]"), events_of(stream)[-1]["event"]) == (1, "pusher:pong")


async def test_empty_arrays_are_limited() -> None:
    async with sessions(Limits(frames_per_s=1.0)) as make:
        session, stream = make(), Receiver()
        session.attach(stream)
        for _ in range(20):
            await session.receive([])
        assert stream.frames[-1].startswith(f"c[{close_code_of(CloseCode.LIMIT)},") and stream.is_ended


@pytest.mark.parametrize("text", ["x", "é", "€\u2028", "😀", '"\\'])
@pytest.mark.parametrize("size", [70, 6_000])
async def test_response_ends_with_the_first_frame_after_which_clients_read_no_more(text: str, size: int) -> None:
    async with sessions() as make:
        session = make()
        connection = session.connection
        for _ in range(3):
            stream, before = Receiver(), Receiver()
            session.attach(stream)
            while not stream.is_ended:
                connection.write(connection.dialect.frame(json.dumps(text * size, ensure_ascii=False).encode() * 2))
            assert stream.chars > RESPONSE_MAX_CHARS
            before.frames = stream.frames[:-1]
            assert before.chars <= RESPONSE_MAX_CHARS


def test_sending_requests_have_the_credential_of_receiving_ones() -> None:
    path = "/pusher/app/shop-key/7/abcdefgh"
    requests = [
        make_mocked_request("POST", f"{path}/{each}", headers={"Cookie": "who=ann"})
        for each in ("xhr?protocol=7&client=js&version=8.4.0&t=1&n=1", "xhr_send?t=2&n=2", "xhr_send?t=2&n=2&user=bob")
    ]
    about = {"takes_tokens": False, "has_hook": True, "varying_query": PusherXHRHandler.varying_query}
    receiving, sending, other = (who_asks(each, "id", "127.0.0.1", **about).credential for each in requests)
    assert receiving == sending != other
