"""The registry: every message answered once, errors in PROTOCOL's shape, abuse closed, services isolated."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from snorky.gateway import (
    AlreadySubscribed,
    BrokerUnavailable,
    ConfigurationError,
    Connection,
    InvalidChannel,
    LimitExceeded,
    Limits,
    Node,
    NotSubscribed,
    Service,
    ServiceRegistry,
    SnorkyError,
    UnknownService,
    error_message,
)
from snorky.gateway.connection.rate_limiter import REFUSED_PER_BURST
from snorky.gateway.protocol.codec import Encoding, encode
from snorky.gateway.testing.broker import LoopbackBroker
from tests.support.fakes.fake_wire import JSON, MSGPACK, UNLIMITED, Client, House, house


class Raising(Service):
    """Raises the exception that it was made with, at once or after an await."""

    def __init__(self, name: str = "raising", error: Exception | None = None, *, is_late: bool = False) -> None:
        super().__init__(name)
        self.error = error
        self.is_late = is_late
        self.messages: list[Any] = []

    def on_message(self, connection: Connection, message: Any) -> Any:
        self.messages.append(message)
        if self.is_late:
            return self._late()
        if self.error is not None:
            raise self.error
        return None

    async def _late(self) -> None:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error


ERRORS: list[tuple[Exception, dict[str, Any]]] = [
    (AlreadySubscribed(), {"message": "Already subscribed", "code": "already_subscribed"}),
    (NotSubscribed(), {"message": "Not subscribed", "code": "not_subscribed"}),
    (LimitExceeded("x", "Too many x"), {"message": "Too many x", "code": "limit_exceeded"}),
    (InvalidChannel("Too long"), {"message": "Too long", "code": "invalid_channel"}),
    (UnknownService("x"), {"message": "Unknown service", "code": "unknown_service"}),
    (SnorkyError("Sorry"), {"message": "Sorry", "code": "internal"}),
    (
        BrokerUnavailable("secret"),
        {"message": "Temporarily unavailable", "code": "unavailable", "retryAfterMs": 1000},
    ),
    (SnorkyError("no file \udcff"), {"message": "no file ?", "code": "internal"}),
    (ValueError("secret"), {"message": "Internal error", "code": "internal"}),
    (KeyError("secret"), {"message": "Internal error", "code": "internal"}),
    (RecursionError("secret"), {"message": "Internal error", "code": "internal"}),
    (TimeoutError("secret"), {"message": "Internal error", "code": "internal"}),
]


@pytest.mark.parametrize("is_late", [False, True], ids=["plain", "coroutine"])
@pytest.mark.parametrize(("error", "answer"), ERRORS, ids=lambda each: type(each).__name__)
async def test_error_of_every_kind_is_answered_once(error: Exception, answer: dict[str, Any], is_late: bool) -> None:
    async with house(Raising(error=error, is_late=is_late)) as built:
        client = built.client()
        with capture_logs() as logs:
            client.send("raising", {"callId": [7]})
            await client.received(1)
            client.send("raising", "no object")
            await client.received(2)
        expected = {"type": "error", **answer}
        assert client.envelopes == [
            {"service": "raising", "message": {**expected, "callId": [7]}},
            {"service": "raising", "message": {**expected, "callId": None}},
        ]
        is_fault = not isinstance(error, SnorkyError)
        assert [entry["event"] for entry in logs] == ["service failed"] * 2 * is_fault
        assert all(entry["exc_info"] is error for entry in logs)


async def test_answer_none_is_no_answer() -> None:
    async with house(Raising()) as built:
        client = built.client()
        client.send("raising", {"callId": 1})
        assert client.envelopes == []


@pytest.mark.parametrize("dialect", [JSON, MSGPACK], ids=["json", "msgpack"])
@pytest.mark.parametrize(
    ("value", "service", "code"),
    [
        ([], "gateway", "invalid_envelope"),
        ({}, "gateway", "invalid_envelope"),
        ({"service": 1, "message": 2}, "gateway", "invalid_envelope"),
        ({"service": "Raising", "message": 2}, "gateway", "invalid_envelope"),
        ({"service": "", "message": 2}, "gateway", "invalid_envelope"),
        ({"message": {"callId": 1}}, "gateway", "invalid_envelope"),
        ({"service": "raising"}, "raising", "invalid_envelope"),
        ({"service": "nobody", "message": None}, "nobody", "unknown_service"),
        ({"service": "__class__", "message": None}, "__class__", "unknown_service"),
    ],
)
async def test_bad_envelope_is_answered_under_the_right_name(value: Any, service: str, code: str, dialect: Any) -> None:
    async with house(Raising()) as built:
        client = built.client(dialect)
        client.send_bytes(encode(value, dialect.encoding))
        (answer,) = client.envelopes
        assert answer["service"] == service
        assert answer["message"]["type"] == "error"
        assert answer["message"]["callId"] is None
        assert answer["message"]["code"] == code
        assert built.sample("snorky_client_errors_total", code=code) == 1


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 10_000, b'{"service":"a","message":1e999}'])
async def test_invalid_messages_are_answered_by_the_gateway(data: bytes) -> None:
    async with house(Raising()) as built:
        client = built.client()
        client.send_bytes(data)
        (answer,) = client.envelopes
        assert answer["service"] == "gateway"
        assert answer["message"]["code"] == "invalid_message"
        assert answer["message"]["callId"] is None


async def test_unknown_service_is_answered_with_its_name_and_the_call_id() -> None:
    async with house(Raising()) as built:
        client = built.client()
        client.send("nobody", {"command": "x", "callId": "c"})
        assert client.envelopes == [
            {
                "service": "nobody",
                "message": {"type": "error", "callId": "c", "message": "Unknown service", "code": "unknown_service"},
            }
        ]


@pytest.mark.parametrize("service", ["raising", "nobody"])
async def test_call_id_that_fills_a_whole_message_is_answered_with_it(service: str) -> None:
    """10,000 values are allowed in a message: with the rest of an answer around them they are more."""
    async with house(Raising(error=SnorkyError("Sorry"))) as built:
        client = built.client()
        client.send(service, {"callId": [0] * 9_996})
        (message,) = client.messages
        assert message["callId"] == [0] * 9_996
        assert message["type"] == "error"
        assert message["message"] in ("Sorry", "Unknown service")


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60))
def test_no_bytes_make_it_raise_and_all_are_answered_once(data: bytes) -> None:
    async def run() -> None:
        async with house(Raising(error=SnorkyError("Sorry"))) as built:
            for dialect in (JSON, MSGPACK):
                client = built.client(dialect)
                client.send_bytes(data)
                assert len(client.envelopes) == 1

    asyncio.run(run())


# -- abuse ------------------------------------------------------------------------------------------------------

BAD: list[Callable[[Client], None]] = [
    lambda client: client.send_bytes(b"nope"),
    lambda client: client.send_bytes(b"{}"),
    lambda client: client.send("nobody", 1),
    lambda client: client.send("raising", 1),
]


@pytest.mark.parametrize("send", BAD, ids=["no message", "no envelope", "unknown service", "refused by a service"])
async def test_too_much_bad_input_is_answered_and_then_closed_4509(send: Callable[[Client], None]) -> None:
    service = Raising(error=InvalidChannel("Too long"))
    async with house(service, limits=Limits(client_errors_per_minute=5)) as built:
        client, other = built.client(), built.client()
        for _ in range(5):
            send(client)
        assert len(client.messages) == 5
        assert not client.connection.is_closed
        send(client)
        assert client.wire.closes == [(4509, "Too much bad input")]
        send(client)
        assert len(client.messages) == 5
        assert len(client.wire.closes) == 1
        send(other)
        assert len(other.messages) == 1


async def test_refusals_of_a_service_are_no_bad_input() -> None:
    async with house(Raising(error=NotSubscribed()), limits=Limits(client_errors_per_minute=1)) as built:
        client = built.client()
        for _ in range(50):
            client.send("raising", 1)
        assert len(client.messages) == 50
        assert not client.connection.is_closed


async def test_too_many_messages_are_refused_with_a_time_and_then_closed_4510() -> None:
    limits = Limits(messages_per_s=0.001, messages_burst=3, client_errors_per_minute=2)
    borne = 3 * REFUSED_PER_BURST
    service = Raising()
    async with house(service, limits=limits) as built:
        client, other = built.client(), built.client()
        for number in range(5):
            client.send("raising", {"callId": number})
        assert len(service.messages) == 3
        assert [message["callId"] for message in client.messages] == [3, 4]
        for envelope in client.envelopes:
            message = envelope["message"]
            assert envelope["service"] == "raising"
            assert message["code"] == "rate_limited"
        assert [round(each["retryAfterMs"], -4) for each in client.messages] == [1_000_000, 2_000_000]
        for number in range(borne - 2):
            client.send("raising", {"callId": number})
        assert not client.connection.is_closed, "a client that is back with many channels is no attacker"
        client.send("raising", {"callId": 5})
        assert client.wire.closes == [(4510, "Too many messages")]
        assert built.sample("snorky_limit_hits_total", limit="messages_per_s") == borne + 1
        other.send("raising", 1)
        assert len(service.messages) == 4, "the limit is each connection's own"


# -- services ---------------------------------------------------------------------------------------------------


class Hooked(Raising):
    def on_connect(self, connection: Connection) -> None:
        self.messages.append("connect")
        if self.error is not None:
            raise self.error

    def on_disconnect(self, connection: Connection) -> None:
        self.messages.append("disconnect")
        if self.error is not None:
            raise self.error


async def test_service_that_fails_in_a_hook_does_not_keep_the_others_from_knowing() -> None:
    services = [Hooked("one"), Hooked("two", RuntimeError("broken")), Hooked("three")]
    async with house(*services) as built:
        with capture_logs() as logs:
            built.client().leave()
        assert [service.messages for service in services] == [["connect", "disconnect"]] * 3
        assert [(entry["event"], entry["service"]) for entry in logs] == [
            ("on_connect failed", "two"),
            ("on_disconnect failed", "two"),
        ]


async def test_disconnect_ends_subscriptions_before_services_are_notified() -> None:
    class Looking(Raising):
        def on_disconnect(self, connection: Connection) -> None:
            self.messages.append((connection.is_closed, set(connection.channels)))

    service = Looking()
    async with house(service) as built:
        client = built.client()
        await service.topics.subscribe(client.connection, "news")
        client.leave()
        assert service.messages == [(True, set())]


def test_two_services_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two services are named 'raising'"):
        ServiceRegistry([Raising(), Raising()])


def test_registry_belongs_to_one_node() -> None:
    registry = ServiceRegistry([Raising()])
    Node(LoopbackBroker()).attach(registry)
    with pytest.raises(ConfigurationError):
        Node(LoopbackBroker()).attach(registry)


def test_service_belongs_to_one_node_and_may_be_in_two_of_its_registries() -> None:
    service, node = Raising(), Node(LoopbackBroker())
    node.attach(ServiceRegistry([service]))
    node.attach(ServiceRegistry([service]))
    with pytest.raises(ConfigurationError, match="another node"):
        Node(LoopbackBroker()).attach(ServiceRegistry([service]))


def test_service_registered_later_is_on_the_node_too() -> None:
    built = House([])
    late = Raising()
    built.registry.register(late)
    assert late.cluster is built.node
    assert "raising" in built.registry
    assert built.registry["raising"] is late
    assert list(built.registry) == [late]
    with pytest.raises(UnknownService):
        built.registry["nobody"]


def test_registry_without_a_node_gives_an_error_with_a_remedy() -> None:
    with pytest.raises(ConfigurationError, match="attach"):
        _ = ServiceRegistry().cluster


def test_registries_of_one_node_do_not_see_each_others_services() -> None:
    built = House([Raising("public")])
    private = ServiceRegistry([Raising("private")])
    built.node.attach(private)
    client = Client(built.node, built.registry)
    client.send("private", {})
    assert client.messages[0]["message"] == "Unknown service"


def test_limits_of_a_registry_override_the_nodes() -> None:
    built = House([], limits=UNLIMITED)
    strict = ServiceRegistry([], limits=Limits(client_errors_per_minute=1))
    built.node.attach(strict)
    client = Client(built.node, strict)
    for _ in range(2):
        client.send_bytes(b"nope")
    assert client.connection.is_closed


def test_error_message_has_a_retry_time_only_where_waiting_helps() -> None:
    assert error_message(NotSubscribed(), 3) == {
        "type": "error", "callId": 3, "message": "Not subscribed", "code": "not_subscribed",
    }  # fmt: skip
    assert error_message(BrokerUnavailable())["retryAfterMs"] == 1000


def test_data_in_either_encoding_reaches_the_service_alike() -> None:
    service = Raising()
    built = House([service])
    for dialect in (JSON, MSGPACK):
        client = built.client(dialect)
        assert dialect.encoding in Encoding
        client.send("raising", {"a": [1, 2.5, None, True, "x"]})
    assert service.messages == [{"a": [1, 2.5, None, True, "x"]}] * 2
