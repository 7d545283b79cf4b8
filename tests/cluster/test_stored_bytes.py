"""Clients and the memory of a real Redis: how much they can fill, and how quotas count it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from snorky.gateway.config.settings import Limits, Settings
from snorky.gateway.connection.storage_quotas import CHANNEL_BYTES, ENTRY_BYTES
from snorky.gateway.http.health import ops_routes
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.admin.inspect import inspect_redis
from snorky.gateway.redis.multi.hashing import targets_of
from snorky.gateway.redis.write_watch import WriteWatch
from snorky.gateway.runtime.node import running_node
from snorky.gateway.sdk.registry import ServiceRegistry
from snorky.services.chat import ChatService
from snorky.services.messaging import MessagingService
from snorky.services.pubsub import PubSubService
from tests.support.fakes.fake_wire import JSON, FakeTransport
from tests.support.processes.tools import eventually
from tests.support.scenarios.site import until
from tests.support.servers.redis_servers import RedisServer

RULES = [{"match": "kept:*", "history": 1000}, {"match": "room:*", "presence": True}]
FAST = {"messages_per_s": 1e6, "messages_burst": 10_000_000, "frames_per_s": 1e6}


class Visitor:
    """An anonymous client of one node, from an address of its own choice."""

    def __init__(self, node: Any, registry: ServiceRegistry, ip: str) -> None:
        self._registry = registry
        self.wire = FakeTransport()
        self.connection = node.new_connection(self.wire, JSON, remote_ip=ip)
        node.connect(self.connection, registry)

    def call(self, command: str, *, service: str = "pubsub", **params: Any) -> None:
        message = {"command": command, "params": params, "callId": 1}
        self._registry.receive(self.connection, json.dumps({"service": service, "message": message}).encode())

    async def replies(self, count: int) -> list[Any]:
        await until(lambda: len(self.wire.writes) >= count or self.wire.closes, within_s=30.0)
        return [json.loads(line)["message"] for line in self.wire.writes]


async def fill(client: "Redis") -> None:
    """Fill Redis until it refuses a write."""
    with pytest.raises(ResponseError, match="maxmemory"):
        for number in range(1_000):
            await client.set(f"filler:{number}", b"x" * 100_000)
    with pytest.raises(ResponseError, match="maxmemory"):
        for number in range(100_000):
            await client.set(f"filler:small:{number}", b"x" * 1_000)


async def ready(http: "TestClient[Any, Any]", status: int, prepare: Callable[[], Awaitable[None]] | None = None) -> Any:
    """Poll /readyz until it has this answer. prepare: called before each request."""
    async with asyncio.timeout(30):
        while True:
            if prepare is not None:
                await prepare()
            async with http.get("/readyz") as response:
                if response.status == status:
                    return await response.json()
            await asyncio.sleep(0.05)


async def used_memory(url: str) -> int:
    async with Redis.from_url(url) as client:
        info = await client.info("memory")
        return int(info["used_memory_dataset"]) + int(info["used_memory_overhead"]) - int(info["mem_clients_normal"])


async def flood(visitors: list[Visitor], calls: Any, count: int) -> list[Any]:
    """Let each client send that many calls, in steps that a node can handle. Returns all replies."""
    for start in range(0, count, 100):
        for visitor in visitors:
            for number in range(start, start + 100):
                calls(visitor, number)
        for visitor in visitors:
            await visitor.replies(start + 100)
    return [reply for visitor in visitors for reply in await visitor.replies(count)]


@pytest.mark.parametrize("kind", ["keys", "keys of new channels", "history", "histories", "places"])
async def test_quotas_count_at_least_the_bytes_that_redis_uses(kind: str, tmp_path: Path) -> None:
    limits = Limits(**FAST, stored_bytes_per_ip=1 << 40, channels_per_connection=10_000)  # type: ignore[arg-type]
    registry = ServiceRegistry([PubSubService(channels=RULES)])

    def call(visitor: Visitor, number: int) -> None:
        if kind == "keys":
            visitor.call("publish", channel="a", message=1, key=f"{number:0>200}")
        elif kind == "keys of new channels":
            visitor.call("publish", channel=f"a{number}", message=1, key="k")
        elif kind == "history":
            visitor.call("publish", channel="kept:a", message="x" * 200)
        elif kind == "histories":
            visitor.call("publish", channel=f"kept:{number}", message=1)
        else:
            visitor.call("subscribe", channel=f"room:{number}")

    async with RedisServer("redis", tmp_path) as server:
        async with running_node(registry, settings=Settings(redis_url=server.url, limits=limits)) as node:
            await until(lambda: node.is_ready)
            visitor = Visitor(node, registry, "192.0.2.1")
            await flood([visitor], call, 100)  # scripts, indexes
            bucket = node.quotas._quotas["stored_bytes_per_ip", "192.0.2.1"].bucket
            bucket._per_s = 0.0  # quotas do not recover with time here
            before, before_tokens = await used_memory(server.url), bucket.tokens
            another = Visitor(node, registry, "192.0.2.1")
            replies = await flood([another], lambda who, number: call(who, number + 1000), 2000)
            assert {reply["type"] for reply in replies} == {"response"}, replies[:3]
            taken, counted = await used_memory(server.url) - before, before_tokens - bucket.tokens
            node.disconnect(visitor.connection, 1000)
            node.disconnect(another.connection, 1000)
    print(kind, taken / 2000, counted / 2000)
    assert taken <= counted


async def test_names_and_places_count(tmp_path: Path) -> None:
    registry = ServiceRegistry([PubSubService(channels=RULES), MessagingService()])
    limits = Limits(stored_bytes_per_ip=2 * ENTRY_BYTES)
    async with RedisServer("redis", tmp_path) as server:
        async with running_node(registry, settings=Settings(redis_url=server.url, limits=limits)) as node:
            await until(lambda: node.is_ready)
            visitor = Visitor(node, registry, "192.0.2.1")
            visitor.call("registerParticipant", service="messaging", name="desk")
            visitor.call("subscribe", channel="room:a")
            await visitor.replies(2)
            visitor.call("registerParticipant", service="messaging", name="lamp")
            visitor.call("subscribe", channel="room:b")
            replies = await visitor.replies(4)
            assert [reply.get("code") for reply in replies] == [None, None, "rate_limited", "rate_limited"]
            assert replies[2]["retryAfterMs"] > 100_000
            assert node.counts["subscriptions"] == 1
            node.disconnect(visitor.connection, 1000)


@pytest.mark.parametrize("what", ["name", "place", "key", "message"])
async def test_quota_of_writes_refused_by_redis_is_returned(tmp_path: Path, what: str) -> None:
    registry = ServiceRegistry([PubSubService(channels=RULES), MessagingService()])
    size = ENTRY_BYTES + (CHANNEL_BYTES if what == "message" else 0)

    def call(visitor: Visitor) -> None:
        if what == "name":
            visitor.call("registerParticipant", service="messaging", name="desk")
        elif what == "place":
            visitor.call("subscribe", channel="room:a")
        elif what == "key":
            visitor.call("publish", channel="a", message=1, key="k" * 255)
        else:
            visitor.call("publish", channel="kept:a", message="x" * 800)

    async with RedisServer("redis", tmp_path) as server, Redis.from_url(server.url) as client:
        settings = Settings(redis_url=server.url, limits=Limits(stored_bytes_per_ip=size))
        async with running_node(registry, settings=settings) as node:
            await until(lambda: node.is_ready)
            visitor, other = Visitor(node, registry, "192.0.2.1"), Visitor(node, registry, "192.0.2.2")
            call(other)  # scripts and leases
            other.call("unregisterParticipant" if what == "name" else "unsubscribe", service="messaging")
            await other.replies(2)
            node.disconnect(other.connection, 1000)
            await client.config_set("maxmemory", "1")
            for count in range(1, 6):
                call(visitor)
                assert (await visitor.replies(count))[-1]["code"] == "unavailable"
            await client.config_set("maxmemory", "0")

            async def takes() -> bool:
                call(visitor)
                reply = (await visitor.replies(len(visitor.wire.writes) + 1))[-1]
                assert reply.get("code") != "rate_limited"
                return bool(reply["type"] == "response")

            await eventually(takes, within_s=30, what="Redis takes it")
            node.disconnect(visitor.connection, 1000)


async def test_quota_of_a_name_with_another_owner_is_returned(tmp_path: Path) -> None:
    registry = ServiceRegistry([MessagingService()])
    limits = Limits(stored_bytes_per_ip=ENTRY_BYTES)
    async with RedisServer("redis", tmp_path) as server:
        async with running_node(registry, settings=Settings(redis_url=server.url, limits=limits)) as node:
            await until(lambda: node.is_ready)
            owner, visitor = Visitor(node, registry, "192.0.2.1"), Visitor(node, registry, "192.0.2.2")
            owner.call("registerParticipant", service="messaging", name="desk")
            await owner.replies(1)
            for name in ("desk", "desk", "lamp"):
                visitor.call("registerParticipant", service="messaging", name=name)
                await visitor.replies(1)
            replies = await visitor.replies(3)
            assert [reply.get("code") == "rate_limited" for reply in replies] == [False] * 3
            assert [reply["type"] for reply in replies] == ["error", "error", "response"]
            for each in (owner, visitor):
                node.disconnect(each.connection, 1000)


async def test_anonymous_clients_of_an_address_do_not_fill_redis(tmp_path: Path) -> None:
    """43 connections filled 32 MB in 2.8 s, after which no client could store anything."""
    registry = ServiceRegistry([PubSubService(channels=RULES), ChatService()])
    async with RedisServer("redis", tmp_path, conf=["maxmemory 32mb", "maxmemory-policy noeviction"]) as server:
        settings = Settings(redis_url=server.url, limits=Limits(**FAST))  # type: ignore[arg-type]
        async with running_node(registry, settings=settings) as node:
            await until(lambda: node.is_ready)
            crowd = [Visitor(node, registry, "192.0.2.1") for _ in range(43)]
            replies = await flood(
                crowd, lambda who, number: who.call("publish", channel="a", message=1, key=f"{number:0>250}"), 1000
            )
            codes = {reply.get("code") for reply in replies}
            assert codes == {None, "rate_limited"}
            stored = sum(reply["type"] == "response" for reply in replies)
            assert 1_000 < stored < 10_000
            sample = node.metrics.registry.get_sample_value
            assert sample("snorky_limit_hits_total", {"limit": "stored_bytes_per_ip"}) == len(replies) - stored
            other = Visitor(node, registry, "192.0.2.2")
            other.call("publish", channel="a", message=1, key="k")
            other.call("publish", channel="kept:a", message=1)
            other.call("subscribe", channel="room:a")
            assert [reply["type"] for reply in await other.replies(3)] == ["response"] * 3
            crowd[0].call("publish", channel="a", message=1)  # calls that store nothing still work
            assert (await crowd[0].replies(1001))[-1]["type"] == "response"
            for visitor in (*crowd, other):
                node.disconnect(visitor.connection, 1000)
            await asyncio.sleep(0)


async def test_a_full_redis_makes_nodes_unready_with_a_sentence_until_it_has_room(tmp_path: Path) -> None:
    registry = ServiceRegistry([PubSubService(channels=RULES)])
    async with RedisServer("redis", tmp_path, conf=["maxmemory 32mb", "maxmemory-policy noeviction"]) as server:
        async with Redis.from_url(server.url) as client:
            async with running_node(registry, settings=Settings(redis_url=server.url)) as node:
                app = web.Application()
                app.add_routes(ops_routes(node))
                async with TestClient(TestServer(app)) as http:
                    assert (await ready(http, 200))["reasons"] == []
                    await fill(client)

                    async def almost_full() -> None:
                        """Leave space for small writes, however large the buffers are at the moment."""
                        used = (await client.info("memory"))["used_memory"]
                        await client.config_set("maxmemory", int(used / 0.99))

                    body = await ready(http, 503, almost_full)
                    assert body["reasons"] == ["redis_full"] and "raise maxmemory" in body["advice"]
                    sample = node.metrics.registry.get_sample_value
                    assert sample("snorky_redis_full") == 1
                    assert 0.9 < (sample("snorky_redis_memory_used_ratio") or 0) < 1.1
                    report = await inspect_redis(targets_of(server.url).first, "snorky")
                    assert any("% of its maxmemory" in problem for problem in report.problems), report
                    await client.config_set("maxmemory", "64mb")
                    assert (await ready(http, 200))["reasons"] == []
                    assert sample("snorky_redis_full") == 0


@pytest.mark.parametrize("missing", ["replica", "+eval", "+evalsha", "+script|load", "+time", "+info", "+set"])
async def test_a_redis_that_refuses_writes_makes_nodes_unready(missing: str, tmp_path: Path) -> None:
    """PUBLISH works throughout."""
    registry = ServiceRegistry([PubSubService(channels=RULES)])
    async with RedisServer("redis", tmp_path) as server, Redis.from_url(server.url) as client:
        await client.execute_command("ACL", "SETUSER", "node", "on", ">secret", "~*", "&*", "+@all")
        url = server.url.replace("redis://", "redis://node:secret@")

        async def take() -> None:
            if missing == "replica":
                await client.config_set("min-replicas-to-write", 1)
            else:
                await client.execute_command("ACL", "SETUSER", "node", missing.replace("+", "-"))

        async def give_back() -> None:
            if missing == "replica":
                await client.config_set("min-replicas-to-write", 0)
            else:
                await client.execute_command("ACL", "SETUSER", "node", "+@all")

        async with running_node(registry, settings=Settings(redis_url=url)) as node:
            app = web.Application()
            app.add_routes(ops_routes(node))
            async with TestClient(TestServer(app)) as http:
                assert (await ready(http, 200))["reasons"] == []
                body = await ready(http, 503, take)
                assert body["reasons"] == ["redis_refuses"] and "snorky check" in body["advice"]
                assert node.metrics.registry.get_sample_value("snorky_redis_refusing") == 1
                assert (await ready(http, 200, give_back))["reasons"] == []


async def test_a_refused_write_is_enough_where_info_is_not_permitted(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path, conf=["maxmemory 32mb", "maxmemory-policy noeviction"]) as server:
        async with Redis.from_url(server.url) as client:
            await client.acl_setuser(
                "node", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all"], commands=["-info"]
            )
            url = server.url.replace("redis://", "redis://node:pw@")
            watch = WriteWatch(tuple(targets_of(url)), prefix="snorky", node_id="n", metrics=Metrics())
            async with watch:
                await until(lambda: watch._servers)
                await fill(client)
                await client.config_set("maxmemory", "20mb")
                await until(lambda: watch.is_full, within_s=30)
                assert watch._metrics.registry.get_sample_value("snorky_redis_memory_used_ratio") == 0
                await client.flushall()
                await until(lambda: not watch.is_full, within_s=30)


async def test_check_reports_the_memory_settings_of_redis(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path) as server, Redis.from_url(server.url) as client:
        target = targets_of(server.url).first

        async def found() -> tuple[str, str]:
            report = await inspect_redis(target, "snorky")
            return " ".join(report.problems), " ".join(report.notes)

        problems, notes = await found()
        assert not problems and "no maxmemory" in notes
        await client.config_set("maxmemory-policy", "allkeys-lru")
        problems, notes = await found()
        assert not problems and "maxmemory-policy allkeys-lru): set noeviction" in notes
        await client.config_set("maxmemory", "100mb")
        problems, notes = await found()
        assert "maxmemory-policy allkeys-lru): set noeviction" in problems and not notes
        await client.config_set("maxmemory-policy", "noeviction")
        assert await found() == ("", "")
