"""`conflate` of a channel rule: slow clients get the newest message of each subject, and stay connected."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway import Limits
from snorky.gateway.config.rules.channel_rules import Rules
from snorky.gateway.connection.connection import Connection
from snorky.gateway.delivery.delivery_rules import DeliveryRules
from snorky.gateway.delivery.write_queue import Batch, NewestMessages, WriteQueue
from snorky.gateway.protocol.codec import encode_json
from snorky.services.pubsub import PubSubService
from tests.support.clients.raw_ws import RawClient
from tests.support.fakes.fake_wire import JSON, House, house, read_nothing, until
from tests.support.fakes.memory_cluster import town
from tests.support.scenarios.fan_out_rig import Source
from tests.support.scenarios.pubsub_calls import ask
from tests.support.scenarios.pubsub_rules import ask as ask_kept
from tests.support.scenarios.pubsub_rules import publish
from tests.support.scenarios.site import RunningSite, on_both_loops, running_site

RULES = [{"match": "prices", "conflate": "symbol"}, {"match": "state", "conflate": "*"}]
COUNT = 10_000
SMALL = Limits(outbox_max_bytes=100_000, send_buffer_bytes=16_384)


def price(number: int, symbol: Any, size: int = 0) -> dict[str, Any]:
    return {"symbol": symbol, "number": number, "more": "x" * size}


# -- what a message is about ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ({"symbol": "A", "x": 1}, {"symbol": "A"}, True),
        ({"symbol": "A"}, {"symbol": "B"}, False),
        ({"symbol": 1}, {"symbol": 1}, True),
        ({"symbol": 1}, {"symbol": "1"}, False),
        ({"symbol": 1}, {"symbol": True}, False),
        ({"symbol": 1}, {"symbol": 1.0}, True),
        ({"symbol": 1}, {"symbol": 1.5}, False),
    ],
)
def test_messages_are_about_the_value_of_the_field(one: Any, other: Any, are_same: bool) -> None:
    rules = DeliveryRules()
    rules.set_rules("pubsub", Rules.read(RULES))
    subject = rules.subject_of("pubsub:prices")
    assert subject is not None
    assert (subject(one) == subject(other)) is are_same
    assert subject(one) is not None


@pytest.mark.parametrize(
    "message", [{}, {"symbol": None}, {"symbol": [1]}, {"symbol": {"a": 1}}, ["symbol"], "symbol", 1]
)
def test_messages_without_a_value_replace_no_other(message: Any) -> None:
    rules = DeliveryRules()
    rules.set_rules("pubsub", Rules.read(RULES))
    subject = rules.subject_of("pubsub:prices")
    assert subject is not None and subject(message) is None


def test_channels_and_services_have_rules_of_their_own() -> None:
    rules = DeliveryRules()
    rules.set_rules("pubsub", Rules.read(RULES))
    assert rules.subject_of("pubsub:other") is None and rules.subject_of("chat:prices") is None
    prices, state = rules.subject_of("pubsub:prices"), rules.subject_of("pubsub:state")
    assert prices is not None and state is not None
    assert state({"symbol": "A"}) == state("anything") != prices({"symbol": "A"})
    rules.set_rules("pubsub", Rules.read([]))
    assert rules.subject_of("pubsub:prices") is None and not rules


# -- clients that do not read --------------------------------------------------------------------------------------


async def publish_prices(built: House, count: int, symbols: str, size: int = 0) -> None:
    """Publish this many prices of each symbol."""
    publisher = built.client()
    for number in range(count):
        for symbol in symbols:
            await ask(publisher, "publish", channel="prices", message=price(number, symbol, size))


async def test_a_client_that_does_not_read_gets_the_newest_of_each_subject() -> None:
    async with house(PubSubService(channels=RULES), limits=SMALL) as built:
        client = built.client()
        await ask(client, "subscribe", channel="prices")
        wire = read_nothing(client)
        client.connection.pause()
        await publish_prices(built, 100, "ABC", size=1000)
        await until(lambda: built.sample("snorky_deliveries_total") == 300)
        assert client.connection.pending_bytes < 5_000
        assert built.sample("snorky_conflated_deliveries_total") == 3 * 99
        wire.writes.clear()
        wire.connection = None
        client.connection.resume()
        assert [(each["message"]["symbol"], each["message"]["number"]) for each in client.messages] == [
            ("A", 99),
            ("B", 99),
            ("C", 99),
        ]
        assert not client.connection.is_closed


async def test_messages_of_one_read_are_reduced_before_they_are_queued() -> None:
    reduced = NewestMessages.of([b"A", None, b"A"], [b"1", b"2", b"3"])
    assert (reduced.messages, reduced.superseded) == ([(None, b"2"), (b"A", b"3")], 1)
    async with house(PubSubService(channels=RULES), limits=SMALL) as built:
        client = built.client()
        await ask(client, "subscribe", channel="prices")
        wire = read_nothing(client)
        client.connection.pause()
        wire.writes.clear()
        wire.connection = None
        read = [encode_json(price(number, symbol)) for number in range(100) for symbol in ("A", "B", None)]
        built.broker.bring(*(("pubsub:prices", each) for each in read))
        assert built.sample("snorky_conflated_deliveries_total") == 2 * 99
        client.connection.resume()
        numbers = [(each["message"]["symbol"], each["message"]["number"]) for each in client.messages]
        assert [number for symbol, number in numbers if symbol is None] == list(range(100))
        assert numbers[-3:] == [("A", 99), ("B", 99), (None, 99)]
        assert len(numbers) == 102


async def test_clients_that_do_not_read_share_the_chunks_of_the_loop() -> None:
    """A client that is behind costs as many writes as it has messages."""
    queue = WriteQueue(Source(), chunk=1000, on_done=lambda: None)
    held: list[int] = []

    class Behind:
        is_behind = True

        def hold_newest(self, messages: Sequence[Any]) -> int:
            held.append(len(messages))
            return 0

    connections: Any = tuple(Behind() for _ in range(100))
    batch = Batch({JSON: dict.fromkeys(connections, 1)}, JSON, connections, b"", 1)
    batch.newest = NewestMessages.of([b"%d" % number for number in range(99)], [b""] * 99)
    queue.line_up(batch)
    queue.run()
    assert held == [99] * 10
    await until(lambda: queue.is_idle)
    assert held == [99] * 100


@pytest.mark.parametrize("failing", ["close", "buffered_bytes"])
async def test_a_broken_transport_of_a_slow_client_disturbs_no_other(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(PubSubService(channels=RULES), limits=SMALL) as built:
        clients = [built.client() for _ in range(3)]
        for client in clients:
            await ask(client, "subscribe", channel="prices")
        read_nothing(clients[1])
        clients[1].connection.pause()

        def fail(*_: Any) -> int:
            raise OSError

        monkeypatch.setattr(clients[1].wire, failing, fail)
        with capture_logs():
            built.broker.bring(("pubsub:prices", encode_json(price(1, "A", 200_000))))
            built.broker.bring(("pubsub:prices", encode_json(price(2, "A"))))
            await until(lambda: [len(each.messages) for each in (clients[0], clients[2])] == [3, 3])


async def test_too_many_subjects_close_a_slow_client() -> None:
    async with house(PubSubService(channels=RULES), limits=SMALL) as built:
        client = built.client()
        await ask(client, "subscribe", channel="prices")
        read_nothing(client)
        client.connection.pause()
        publisher = built.client()
        for number in range(200):
            await ask(publisher, "publish", channel="prices", message=price(1, number, 1000))
        await until(lambda: client.connection.is_closed)


async def test_replies_and_messages_of_other_channels_stay_in_their_order() -> None:
    async with house(PubSubService(channels=RULES)) as built:
        client, publisher = built.client(), built.client()
        for channel in ("prices", "plain"):
            await ask(client, "subscribe", channel=channel)
        wire = read_nothing(client)
        client.connection.pause()
        wire.writes.clear()
        wire.connection = None
        for number, (channel, symbol) in enumerate([("plain", "A"), ("prices", "A"), ("plain", "A"), ("prices", "A")]):
            await ask(publisher, "publish", channel=channel, message=price(number, symbol))
        await until(lambda: built.sample("snorky_conflated_deliveries_total") == 1)
        client.connection.resume()
        assert [each["message"]["number"] for each in client.messages] == [0, 2, 3]


async def test_clients_that_recover_miss_nothing() -> None:
    def services() -> list[PubSubService]:
        return [PubSubService(channels=[{"match": "kept:a", "history": 100, "conflate": "*"}])]

    async with town(2, services) as nodes:
        client, publisher = nodes.client(0), nodes.client(1)
        await ask_kept(client, "subscribe", recover=True)
        client.connection.pause()
        await publish(publisher, *range(20))
        client.connection.resume()
        assert [each["offset"] for each in await client.notified(20)] == list(range(1, 21))


@asynccontextmanager
async def slow_subscriber(site: RunningSite, channel: str) -> AsyncIterator[tuple[RawClient, Connection]]:
    client = await site.subscriber(channel, receive_buffer_bytes=4096)
    try:
        yield client, site.connection
    finally:
        client.close()


@on_both_loops
async def test_a_slow_client_of_a_socket_is_not_closed_and_sees_each_subject_advance() -> None:
    """40 MB to a client that may be 100 KB behind, which reads some of it now and then."""
    async with (
        running_site(limits=SMALL, channels=RULES) as site,
        slow_subscriber(site, "prices") as (client, connection),
    ):
        newest, read = dict.fromkeys("ABCD", -1), 0

        async def read_one() -> None:
            nonlocal read
            message = (await client.message())["message"]["message"]
            read += 1
            assert message["number"] > newest[message["symbol"]], "a client that is behind never gets older values"
            newest[message["symbol"]] = message["number"]

        for number in range(COUNT):
            for symbol in "ABCD":
                site.bring(encode_json(price(number, symbol, 1000)), "prices")
            if number % 500 == 499:
                for _ in range(10):
                    await read_one()
        assert not connection.is_closed
        while set(newest.values()) != {COUNT - 1}:
            await read_one()
        assert read + site.sample("conflated_deliveries_total") == 4 * COUNT
