"""Nodes that load the function library, and a client that calls it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import snorky.gateway.redis
from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.contracts.history import History
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.connection.commands import CommandPipeline
from snorky.gateway.redis.connection.scripts import Scripts
from snorky.gateway.redis.history.function_library import Functions
from snorky.gateway.redis.history.library_text import Found, judge
from snorky.gateway.redis.history.store import RedisHistory
from snorky.gateway.redis.keys import rules_key
from snorky.gateway.redis.target import target_from_url
from tests.support.fakes.brokers import PREFIX
from tests.support.fakes.histories import history_on
from tests.support.servers.redis_servers import FakeRedisServer, RedisServer

RULES = Rules([ChannelRule("kept:*", history=100), ChannelRule("*:few*x", history=2), ChannelRule("bare*")])


HISTORY = History(300.0, 100)


NAME = f"{PREFIX}:{{pubsub:kept:a}}"


FUNCTION = (Path(snorky.gateway.redis.__file__).parent / "history/lua/library/snorky_publish.lua").read_text()


@asynccontextmanager
async def keeper_of(
    server: RedisServer | FakeRedisServer, rules: Rules = RULES, prefix: str = PREFIX, *, url: str = ""
) -> AsyncIterator[RedisHistory]:
    """Run RedisHistory; loads the functions soon."""
    keeper = history_on(target_from_url(url or server.url), prefix=prefix)
    keeper.set_rules("pubsub", rules)
    keeper.set_rules("chat", Rules())
    await keeper.start()
    try:
        yield keeper
    finally:
        await keeper.stop()


@asynccontextmanager
async def functions_of(
    server: RedisServer,
    rules: Mapping[str, Rules],
    prefix: str = PREFIX,
    *,
    url: str = "",
    metrics: Metrics | None = None,
    **options: Any,
) -> AsyncIterator[Functions]:
    """Run the functions of a node; nothing is loaded until `ensure` or the next check."""
    commander = CommandPipeline(
        target_from_url(url or server.url),
        role="history",
        client_name="test",
        metrics=Metrics(),
        timeout_s=5.0,
        dial_timeout_s=2.0,
    )
    functions = Functions(commander, Scripts(commander), prefix=prefix, metrics=metrics or Metrics(), **options)
    for service, each in rules.items():
        functions.set_rules(service, each)
    commander.start()
    try:
        yield functions
    finally:
        await functions.stop()
        await commander.stop()


async def until_loaded(client: Any, prefix: str = PREFIX) -> str:
    """Wait until a prefix's rules and the library are in Redis; returns the library."""
    async with asyncio.timeout(30.0):
        while judge(library := await library_of(client) or None) is not Found.OURS or not await client.exists(  # noqa: ASYNC110 - another task loads
            rules_key(prefix)
        ):
            await asyncio.sleep(0.01)
    return library or ""


async def library_of(client: Any) -> str:
    found = await client.execute_command("FUNCTION", "LIST", "LIBRARYNAME", "snorky", "WITHCODE")
    if not found:
        return ""
    fields = found[0] if isinstance(found[0], list) else [part for pair in found[0].items() for part in pair]
    named = {bytes(name): value for name, value in zip(fields[::2], fields[1::2], strict=True)}
    return bytes(named[b"library_code"]).decode()


async def fcall(client: Any, name: str | bytes, *arguments: str | bytes) -> str:
    return str((await client.execute_command("FCALL", "snorky_publish", 1, name, *arguments)).decode())
