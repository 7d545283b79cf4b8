"""Subscription tokens of snorky.client.aio.Client on two node processes: renewed, refused, expired, revoked."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from snorky.client import AsyncSnorkyBackend, Publication, SnorkyError, SnorkyHTTPTransport
from snorky.client.aio import Client, Message, Publisher, Recovered, Subscription
from snorky.client.tokens import Signer
from tests.support.processes.nodes import NodeProcess, RedisProcess
from tests.support.processes.proxy import FaultProxy
from tests.support.scenarios.tokens import SECRET

pytestmark = pytest.mark.needs("redis-server")

KEY = "the-key-of-the-backend-in-these-tests"
DEADLINE_S = 40
RULES = [
    {"match": "orders:*", "history": 1000, "allow_subscribe": "token"},
    {"match": "free", "allow_subscribe": "authenticated"},
]
SETTINGS = {
    "SNORKY_AUTH__HMAC_SECRET": SECRET,
    "SNORKY_AUTH__LEEWAY_S": "0",
    "SNORKY_PRIVATE__API_KEY": KEY,
    "SNORKY_SERVICES__AUTH__CLASS": "snorky.services.auth:AuthService",
    "SNORKY_SERVICES__PUBSUB__CLASS": "snorky.services.pubsub:PubSubService",
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(RULES),
}
SIGNER = Signer(hmac_secret=SECRET)


class Tokens:
    """The token function of ann. lifetime_s: of the next tokens. ids: of those that it has returned."""

    def __init__(self, lifetime_s: float) -> None:
        self.lifetime_s = lifetime_s
        self.ids: list[str] = []
        self.refused: Exception | None = None

    async def __call__(self, channel: Any) -> str:
        await asyncio.sleep(0)
        if self.refused is not None:
            raise self.refused
        self.ids.append(f"{channel} {len(self.ids)}")
        return SIGNER.subscription_token("ann", channel, expires_in_s=self.lifetime_s, token_id=self.ids[-1])


class Reader:
    """Reads a subscription until its end. error: the end."""

    def __init__(self, subscription: Subscription) -> None:
        self.events: list[Any] = []
        self.error: SnorkyError | None = None
        self._subscription = subscription
        self._changed = asyncio.Event()
        self.task = asyncio.ensure_future(self._read())

    @property
    def numbers(self) -> list[Any]:
        """The data of the messages."""
        return [event.data for event in self.events if isinstance(event, Message)]

    @property
    def was_whole(self) -> bool:
        """Whether no event reports a loss."""
        others = [event for event in self.events if not isinstance(event, Message)]
        return all(isinstance(event, Recovered) and event.is_recovered for event in others)

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not is_true():
                self._changed.clear()
                await self._changed.wait()

    async def _read(self) -> None:
        try:
            async for event in self._subscription:
                self.events.append(event)
                self._changed.set()
        except SnorkyError as error:
            self.error = error
            self._changed.set()


@dataclass
class Place:
    """Two nodes; ann's client is connected to the first one, through a proxy."""

    nodes: list[NodeProcess]
    publisher: Publisher
    proxy: FaultProxy
    readers: list[Reader] = field(default_factory=list)
    published: int = 0

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[Client]:
        token = SIGNER.connection_token("ann")
        options = {"backoff_base_s": 0.05, "backoff_max_s": 0.3, **options}
        async with Client(f"ws://127.0.0.1:{self.proxy.port}/ws", token=token, **options) as client:
            yield client

    async def publish(self, count: int = 5) -> None:
        for _ in range(count):
            await self.publisher.publish("orders:7", self.published)
            self.published += 1

    def read(self, subscription: Subscription) -> Reader:
        self.readers.append(Reader(subscription))
        return self.readers[-1]

    async def order(self, service: str, command: str, **params: Any) -> None:
        """Call the backend's service at the node to which ann is not connected."""
        transport = SnorkyHTTPTransport(f"http://127.0.0.1:{self.nodes[1].private_port}/backend", key=KEY)
        async with AsyncSnorkyBackend(transport) as backend:
            await backend.call(service, command, **params)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with RedisProcess.running(tmp_path) as redis:
        env = {**SETTINGS, "SNORKY_REDIS_URL": redis.url}
        async with NodeProcess.running(env) as first, NodeProcess.running(env) as second:
            async with FaultProxy("127.0.0.1", first.public_port) as proxy, Publisher(redis.url) as publisher:
                place = Place([first, second], publisher, proxy)
                yield place
                for reader in place.readers:
                    reader.task.cancel()
                await asyncio.gather(*(reader.task for reader in place.readers), return_exceptions=True)


async def test_token_is_refreshed_before_the_end_and_again_after_a_reconnect(place: Place) -> None:
    tokens = Tokens(lifetime_s=3)
    async with place.client() as client:
        reader = place.read(await client.subscribe("orders:7", recover=True, token=tokens).ready())
        for step in range(16):
            await place.publish(1)
            await asyncio.sleep(0.5)
            if step == 8:
                place.proxy.redirect(place.nodes[1].public_port)
                place.proxy.cut()
        await reader.until(lambda: len(reader.numbers) == 16)
    assert reader.numbers == list(range(16)) and reader.was_whole
    assert 3 <= len(tokens.ids) <= 8
    assert len([event for event in reader.events if isinstance(event, Recovered)]) == 1, "only for the cut"


async def test_client_without_a_valid_token_is_refused(place: Place) -> None:
    foreign = Signer(hmac_secret="another secret of thirty-two bytes!")
    wrong = [
        ("not_authorized", None),
        ("not_authorized", lambda _channel: None),
        ("invalid_token", SIGNER.subscription_token("bob", "orders:7")),
        ("invalid_token", lambda channel: foreign.subscription_token("ann", channel)),
        ("not_authorized", SIGNER.subscription_token("ann", "orders:7", ops=["history"])),
    ]
    async with place.client() as client, asyncio.timeout(DEADLINE_S):
        for code, token in wrong:
            with pytest.raises(SnorkyError) as caught:
                await client.subscribe("orders:7", recover=True, token=token).ready()
            assert caught.value.code == code, token


async def test_subscription_that_expires_is_made_again_and_loses_nothing(place: Place) -> None:
    tokens = Tokens(lifetime_s=5)
    async with place.client() as client:
        reader = place.read(await client.subscribe("orders:7", recover=True, token=tokens).ready())
        fixed = SIGNER.subscription_token("ann", "orders:7", expires_in_s=5)
        async with place.client() as other:
            ending = place.read(await other.subscribe("orders:7", recover=True, token=fixed).ready())
            tokens.refused = OSError("the backend is down")
            await place.publish(5)
            await ending.until(lambda: len(ending.numbers) == 5)
            await ending.until(lambda: ending.error is not None)
            await place.publish(5)
            tokens.refused = None
            await reader.until(lambda: len(reader.numbers) == 10)
        assert ending.error is not None and ending.error.code == "expired" and ending.numbers == list(range(5))
        assert reader.numbers == list(range(10)) == [event.data for event in reader.events]


async def test_token_that_expires_while_its_node_stands_still(place: Place) -> None:
    tokens = Tokens(lifetime_s=5)
    fixed = SIGNER.subscription_token("ann", "orders:7", expires_in_s=5)
    options = {"ping_interval_s": 30.0, "call_timeout_s": 30.0}  # it stays connected to the node
    async with place.client(**options) as client, place.client(**options) as other:
        reader = place.read(await client.subscribe("orders:7", recover=True, token=tokens).ready())
        ending = place.read(await other.subscribe("orders:7", recover=True, token=fixed).ready())
        await place.publish(5)
        await ending.until(lambda: len(ending.numbers) == 5)
        place.nodes[0].freeze()
        await asyncio.sleep(6)
        await place.publish(5)  # after the end of both tokens
        place.nodes[0].thaw()
        await ending.until(lambda: ending.error is not None)
        await reader.until(lambda: len(reader.numbers) == 10)
        await place.publish(5)
        await reader.until(lambda: len(reader.numbers) == 15)
    assert ending.error is not None and ending.error.code == "expired"
    assert ending.numbers == list(range(5)), "no message after the end, none lost before it"
    assert reader.numbers == list(range(15)) and reader.was_whole


async def test_client_leaves_a_node_that_stands_still_with_a_new_token(place: Place) -> None:
    tokens = Tokens(lifetime_s=2)
    async with place.client(ping_interval_s=0.5, connect_timeout_s=2.0) as client:
        reader = place.read(await client.subscribe("orders:7", recover=True, token=tokens).ready())
        await place.publish(5)
        place.nodes[0].freeze()
        place.proxy.redirect(place.nodes[1].public_port)
        await asyncio.sleep(3)
        await place.publish(5)
        await reader.until(lambda: len(reader.numbers) == 10)
        place.nodes[0].thaw()
        await place.publish(5)
        await reader.until(lambda: len(reader.numbers) == 15)
    assert reader.numbers == list(range(15)) and reader.was_whole and len(tokens.ids) >= 2


async def test_revoked_token_ends_the_subscription_and_no_other(place: Place) -> None:
    tokens, others = Tokens(lifetime_s=60), Tokens(lifetime_s=60)
    async with place.client() as client:
        reader = place.read(await client.subscribe("orders:7", recover=True, token=tokens).ready())
        other = place.read(await client.subscribe("orders:8", recover=True, token=others).ready())
        await place.publish(5)
        await place.order("auth_backend", "revokeToken", jti=tokens.ids[0])
        await reader.until(lambda: reader.error is not None)
        await place.publish(5)
        place.proxy.cut()
        await place.publisher.publish("orders:8", "fence")
        await other.until(lambda: other.numbers == ["fence"])
        assert reader.error is not None and reader.error.code == "revoked" and str(reader.error) == "Revoked"
        assert reader.numbers == list(range(5)) and len(tokens.ids) == 1
        with pytest.raises(SnorkyError) as caught:
            revoked = SIGNER.subscription_token("ann", "orders:7", token_id=tokens.ids[0])
            await client.subscribe("orders:7", token=revoked).ready()
        assert caught.value.code == "revoked"


@pytest.mark.parametrize("has_token", [True, False])
async def test_subscription_that_the_backend_ends_is_not_made_again(place: Place, has_token: bool) -> None:
    channel = "orders:7" if has_token else "free"
    tokens = Tokens(lifetime_s=60)
    async with place.client() as client:
        reader = place.read(await client.subscribe(channel, token=tokens if has_token else None).ready())
        await place.publisher.publish(channel, "before")
        await reader.until(lambda: bool(reader.numbers))
        await place.order("control", "unsubscribe", identity="ann", channel=channel, reason="You have left")
        await reader.until(lambda: reader.error is not None)
        place.proxy.cut()
        async with asyncio.timeout(DEADLINE_S):
            await client.subscribe("orders:8", token=Tokens(lifetime_s=60)).ready()  # on the next connection
        await place.publisher.publish(channel, "after")
        with pytest.raises(SnorkyError, match="Not subscribed"):
            await client.call("pubsub", "unsubscribe", channel=channel)
    assert reader.error is not None and (reader.error.code, str(reader.error)) == ("unsubscribed", "You have left")
    assert reader.numbers == ["before"] and len(tokens.ids) == int(has_token)


async def test_slow_reader_gets_all_that_its_token_permits(place: Place) -> None:
    tokens = Tokens(lifetime_s=2)
    async with place.client(events_max=20) as client:
        subscription = await client.subscribe("orders:7", recover=True, token=tokens).ready()
        batch = [Publication("orders:7", number) for number in range(900)]
        await place.publisher.publish_many(batch)
        numbers = []
        async with asyncio.timeout(DEADLINE_S):
            while len(numbers) < 900:
                event = await anext(subscription)
                assert isinstance(event, Message), event
                numbers.append(event.data)
                if len(numbers) == 100:
                    await asyncio.sleep(2.5)  # its tokens expire and are refreshed meanwhile
    assert numbers == list(range(900))
