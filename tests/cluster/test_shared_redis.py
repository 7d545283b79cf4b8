"""Several deployments, versions and mistakes on one Redis: acknowledged messages are stored, or a gap is reported."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tests.support.processes.nodes import GATEWAY, NodeProcess, Process, RedisProcess
from tests.support.processes.tools import eventually

pytestmark = pytest.mark.needs("redis-server")

RULES = """
[services.pubsub]
class = "snorky.services.pubsub:PubSubService"
[[services.pubsub.channels]]
match = "kept:*"
history = {size}
"""
NAME = "snorky:{pubsub:kept:1}"
OLDER = "#!lua name=snorky\n-- format 1\nredis.register_function('snorky_publish', function() return '' end)\n"
FOREIGN = OLDER.replace("-- format 1\n", "")
PACE_S = 0.03  # a client that resumes gets 300 at most; more are a gap
RULES_KEY = "snorky:{nodes}::rules"


@dataclass
class Town:
    """One Redis and two nodes with the rule; a publisher without a node."""

    redis: RedisProcess
    client: Redis
    nodes: list[NodeProcess]
    folder: Path
    acknowledged: list[int] = field(default_factory=list)
    unkept: int = 0
    refused: set[str] = field(default_factory=set)

    async def publish_until(self, stopped: asyncio.Event) -> None:
        """Publish numbers in order, each retried until the function answers."""
        number = 0
        while not stopped.is_set():
            number += 1
            while True:
                try:
                    answer = await self.client.execute_command("FCALL", "snorky_publish", 1, NAME, number, f"k{number}")
                except ResponseError as error:
                    self.refused.add(str(error))
                    await asyncio.sleep(0.01)
                    continue
                break
            self.acknowledged.append(number)
            self.unkept += answer == b""
            await asyncio.sleep(PACE_S)

    async def library(self) -> str:
        return str(await self.client.execute_command("FUNCTION", "LIST", "LIBRARYNAME", "snorky", "WITHCODE"))

    @asynccontextmanager
    async def stray(self, *, size: int = 0, **env: str) -> AsyncIterator[NodeProcess]:
        """Run another node on this Redis; size: of its rule, 0 = it has no configuration."""
        argv = [*GATEWAY, "serve"]
        if size:
            config = self.folder / f"stray-{size}.toml"
            config.write_text(RULES.format(size=size))
            argv += ["--config", str(config)]
        async with NodeProcess.running({"SNORKY_REDIS_URL": self.redis.url, **env}, argv=argv) as node:

            async def is_ready() -> bool:
                return await node.status("/readyz") == 200 and "channel rules merged" in node.log

            await eventually(is_ready, within_s=30, what="the stray node has registered")
            yield node

    async def check(self, *, size: int = 10_000) -> tuple[int, str]:
        config = self.folder / f"check-{size}.toml"
        config.write_text(RULES.format(size=size))
        env = {"SNORKY_REDIS_URL": self.redis.url, "SNORKY_LIMITS__CONNECTIONS": "10", "COLUMNS": "1000"}
        process = Process([*GATEWAY, "check", "--config", str(config)], env=env)
        try:
            return await process.wait(), process.log
        finally:
            await process.close()


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    config = tmp_path / "snorky.toml"
    config.write_text(RULES.format(size=1_000_000))
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(tmp_path))
        argv = [*GATEWAY, "serve", "--config", str(config)]
        env = {"SNORKY_REDIS_URL": redis.url}
        nodes = [await stack.enter_async_context(NodeProcess.running(env, argv=argv)) for _ in range(2)]
        client = await stack.enter_async_context(Redis.from_url(redis.url))
        built = Town(redis, client, nodes, tmp_path)

        async def is_ready() -> bool:
            return await client.exists(RULES_KEY) == 1 and "-- body" in await built.library()

        await eventually(is_ready, within_s=30, what="rules and library are in Redis")
        yield built


async def come_back(node: NodeProcess, since: Any) -> dict[str, Any]:
    """Subscribe with a position, or for the first time (True), and return the reply."""
    async with aiohttp.ClientSession() as session, session.ws_connect(node.websocket_url) as socket:
        params = {"channel": "kept:1", "recover": since}
        message = {"command": "subscribe", "params": params, "callId": 1}
        await socket.send_json({"service": "pubsub", "message": message})
        async with asyncio.timeout(30.0):
            while True:
                reply = (await socket.receive_json())["message"]
                if reply.get("callId") == 1:
                    return dict(reply["data"])


async def happen(what: str, town: Town) -> None:
    """Make a change in this Redis, and wait until it has taken effect."""
    run = town.client.execute_command
    if what == "stray without rules":
        async with town.stray():
            pass
    elif what == "stray in another database":
        async with town.stray(SNORKY_REDIS_URL=town.redis.url.removesuffix("/0") + "/3"):
            pass
    elif what == "stray with another prefix":
        async with town.stray(SNORKY_PREFIX="other"):
            pass
    elif what == "stray with older rules":
        async with town.stray(size=1):
            pass
    elif what == "flush":
        await run("FUNCTION", "FLUSH")
    elif what == "delete":
        await run("FUNCTION", "DELETE", "snorky")
    elif what == "older library":
        await run("FUNCTION", "LOAD", "REPLACE", OLDER)
    elif what == "restored dump":
        ours = await run("FUNCTION", "DUMP")
        await run("FUNCTION", "LOAD", "REPLACE", OLDER)
        older = await run("FUNCTION", "DUMP")
        await run("FUNCTION", "RESTORE", ours, "FLUSH")
        await run("FUNCTION", "RESTORE", older, "FLUSH")


EVENTS = [
    "stray without rules",
    "stray in another database",
    "stray with another prefix",
    "stray with older rules",
    "flush",
    "delete",
    "older library",
    "restored dump",
]
REPLACED = EVENTS[4:]  # until the repair the history is unknown: one gap a channel


@pytest.mark.parametrize("what", EVENTS)
async def test_nothing_that_was_acknowledged_is_lost_in_silence(town: Town, what: str) -> None:
    since = (await come_back(town.nodes[0], True))["position"]
    stopped = asyncio.Event()
    publishing = asyncio.create_task(town.publish_until(stopped))
    await happen(what, town)

    async def is_sound() -> bool:
        return "-- body" in await town.library()

    await eventually(is_sound, within_s=30, what="a node has loaded the library again")
    before = len(town.acknowledged)

    async def goes_on() -> bool:
        return len(town.acknowledged) > before + 5

    await eventually(goes_on, within_s=30, what="publications are accepted")
    stopped.set()
    await publishing

    async def is_told() -> bool:  # nodes notice a foreign library at their next look
        reply = await come_back(town.nodes[1], since)
        return not reply["recovered"] or not town.unkept

    await eventually(is_told, within_s=30, what="a client that was away gets a gap")
    reply = await come_back(town.nodes[1], since)
    if town.unkept:
        assert what in ("older library", "restored dump") and not reply["recovered"]
    elif reply["recovered"]:
        assert [each["message"] for each in reply["messages"]] == town.acknowledged
    else:
        assert len(town.acknowledged) > 300 or what in REPLACED, "more than is replayed at once"
        kept = [int(fields[b"d"]) for _, fields in await town.client.xrange(f"{NAME}:history")]
        assert kept == town.acknowledged
    assert all("unction not found" in each for each in town.refused), town.refused
    if what in REPLACED:
        repairs = [await node.metric("snorky_redis_library_repairs_total") for node in town.nodes]
        assert sum(repairs) >= 1

        async def is_logged() -> bool:
            return any("functions repaired" in node.log for node in town.nodes)

        await eventually(is_logged, within_s=30, what="the repair is logged")


@pytest.mark.parametrize(
    "what", ["older library", "foreign library", "restored dump", "restored by hand", "flushed after", "repaired"]
)
async def test_a_client_that_resumes_right_after_a_foreign_publication_gets_a_gap(town: Town, what: str) -> None:
    run = town.client.execute_command
    unkept = 0
    for number in range(20):
        node = town.nodes[number % 2]
        since = (await come_back(node, True))["position"]
        ours = await run("FUNCTION", "DUMP")
        if what == "restored dump":
            await happen(what, town)
        else:
            await run("FUNCTION", "LOAD", "REPLACE", FOREIGN if what == "foreign library" else OLDER)
        is_kept = await run("FCALL", "snorky_publish", 1, NAME, number) != b""
        if what == "restored by hand":
            await run("FUNCTION", "RESTORE", ours, "FLUSH")
        elif what == "flushed after":
            await run("FUNCTION", "FLUSH")
        elif what == "repaired":
            await come_back(town.nodes[1 - number % 2], since)  # a node checks it, or the other one with its look

            async def is_repaired() -> bool:
                return "-- body" in await town.library()

            await eventually(is_repaired, within_s=30, what="a node has loaded the library again")
        reply = await come_back(node, since)
        unkept += not is_kept
        assert is_kept or not reply["recovered"], number
        if is_kept and reply["recovered"]:
            assert [each["message"] for each in reply["messages"]] == [number]
    assert unkept >= 10, "nodes were faster nearly each time"


async def test_publications_of_a_stray_node_are_stored_by_the_others_rules(town: Town) -> None:
    async with (
        town.stray() as stray,
        aiohttp.ClientSession() as session,
        session.ws_connect(stray.websocket_url) as socket,
    ):
        message = {"command": "publish", "params": {"channel": "kept:1", "message": 7}, "callId": 1}
        await socket.send_json({"service": "pubsub", "message": message})
        async with asyncio.timeout(30.0):
            assert (await socket.receive_json())["message"]["type"] == "response"
    assert [fields[b"d"] for _, fields in await town.client.xrange(f"{NAME}:history")] == [b"7"]


async def test_nodes_of_an_incompatible_version_are_logged_counted_and_found_by_check(town: Town) -> None:
    await town.client.sadd("snorky:{nodes}", "old")
    await town.client.set("snorky:{nodes}:old", '{"version": "0.0.9"}', px=60_000)

    async def is_seen() -> bool:
        seen = [await node.metric("snorky_nodes_incompatible") for node in town.nodes]
        return seen == [1, 1] and all("nodes of an incompatible version" in node.log for node in town.nodes)

    await eventually(is_seen, within_s=30, what="both nodes have seen and logged it")
    for node in town.nodes:
        assert node.log.count("nodes of an incompatible version") == 1
    code, text = await town.check()
    assert code == 1 and "do not understand each other: old (1)" in text, text


async def test_check_ends_with_1_while_the_library_is_not_the_nodes(town: Town) -> None:
    async def is_sound() -> bool:
        return (await town.check())[0] == 0

    for command, said in (("LOAD", "is older"), ("FLUSH", "is missing")):
        await eventually(is_sound, within_s=30, what="the nodes have repaired it")
        for node in town.nodes:
            node.freeze()  # otherwise they repair it; for one check only, or they count as dead
        try:
            await town.client.execute_command("FUNCTION", command, *(["REPLACE", OLDER] if command == "LOAD" else []))
            code, text = await town.check()
            assert code == 1 and f"the function library in Redis {said}" in text, text
        finally:
            for node in town.nodes:
                node.thaw()
    await eventually(is_sound, within_s=30, what="the nodes have repaired it")
    code, text = await town.check(size=5)
    assert code == 0 and "the nodes promise other channel rules" in text
