"""History stores of every kind, filled with numbers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from snorky.gateway.config.rules.channel_rules import Rules
from snorky.gateway.contracts.history import History, HistoryStore
from snorky.gateway.protocol.publication import Position, Publication
from snorky.gateway.redis.history.store import RedisHistory
from snorky.gateway.redis.target import target_from_url
from tests.support.fakes.histories import history_on
from tests.support.servers.redis_servers import FakeRedisServer, RedisServer

KEY = "datasync:Task"


HOUR = History(ttl_s=3600.0)


Server = RedisServer | FakeRedisServer


@asynccontextmanager
async def keeper_of(url: str, *, rules: Rules | None = None, **options: Any) -> AsyncIterator[RedisHistory]:
    keeper = history_on(target_from_url(url), **options)
    if rules is not None:
        keeper.set_rules("datasync", rules)
    await keeper.start()
    try:
        yield keeper
    finally:
        await keeper.stop()


def payloads(publications: list[Publication] | None) -> list[bytes]:
    assert publications is not None, "gone"
    return [publication.payload for publication in publications]


async def fill(keeper: HistoryStore, count: int, history: History = HOUR, *, first: int = 1) -> list[Position]:
    futures = [keeper.publish(KEY, b"%d" % number, history) for number in range(first, first + count)]
    return await asyncio.gather(*futures)


async def until(condition: Callable[[], Awaitable[object]], *, within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - Redis's own time passes
            await asyncio.sleep(0.01)
