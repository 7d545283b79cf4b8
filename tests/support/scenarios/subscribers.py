"""A subscriber of a scripted Redis."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.connection.timeouts import RedisTimeouts
from snorky.gateway.redis.pubsub.names import NamesOfKeys
from snorky.gateway.redis.pubsub.subscriber import Subscriber
from snorky.gateway.redis.target import target_from_url
from tests.support.servers.scripted_redis import Command, ScriptedRedis, confirmation

CANARY = b"canary"


class OneName:
    """Each key is its only name."""

    def of(self, key: str) -> tuple[bytes, ...]:
        return (key.encode(),)

    def read(self, name: bytes) -> tuple[str, bool] | None:
        return name.decode(), True


class Heard:
    """Calls of a subscriber's listener."""

    def __init__(self) -> None:
        self.batches: list[dict[str, list[bytes]]] = []
        self.canaries: asyncio.Queue[bytes] = asyncio.Queue()
        self.whole: asyncio.Queue[bool] = asyncio.Queue()
        self.lost: asyncio.Queue[None] = asyncio.Queue()
        self.batch_came = asyncio.Event()

    def on_batch(self, batch: Mapping[str, Sequence[bytes]]) -> None:
        self.batches.append({key: list(payloads) for key, payloads in batch.items()})
        self.batch_came.set()


@asynccontextmanager
async def subscriber(
    redis: ScriptedRedis,
    *,
    linger_s: float = 0.0,
    confirm_timeout_s: float = 5.0,
    dial_timeout_s: float = 2.0,
    names: NamesOfKeys = OneName(),  # noqa: B008 - it has no state
    metrics: Metrics | None = None,
) -> AsyncIterator[tuple[Subscriber, Heard]]:
    heard = Heard()
    instance = Subscriber(
        target_from_url(redis.url),
        client_name="test",
        names=names,
        canary_name=CANARY,
        on_batch=heard.on_batch,
        on_canary=lambda payloads: [heard.canaries.put_nowait(payload) for payload in payloads],
        on_whole=heard.whole.put_nowait,
        on_lost=lambda: heard.lost.put_nowait(None),
        metrics=metrics or Metrics(),
        timeouts=RedisTimeouts(confirm_timeout_s=confirm_timeout_s, linger_s=linger_s, dial_timeout_s=dial_timeout_s),
    )
    instance.start()
    try:
        async with asyncio.timeout(30.0):  # an answer that never comes must fail a test, not hang it
            yield instance, heard
    finally:
        await instance.stop()


async def within(awaitable: "asyncio.Future[bool] | asyncio.Queue[bool]") -> bool:
    return await asyncio.wait_for(awaitable.get() if isinstance(awaitable, asyncio.Queue) else awaitable, 30.0)


async def stand(redis: ScriptedRedis, heard: Heard) -> None:
    """Complete its subscriptions."""
    assert await redis.next(b"SUBSCRIBE") == (b"SUBSCRIBE", CANARY)
    redis.send(confirmation(b"subscribe", CANARY))
    await within(heard.whole)


def confirm(command: Command) -> bytes | None:
    return confirmation(command[0].lower(), command[1])
