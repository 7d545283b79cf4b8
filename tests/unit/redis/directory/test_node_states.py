"""Node states: nodes are listed while they renew their leases and not after."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway.metrics import Metrics
from snorky.gateway.redis import EmbeddedServer, RedisTarget
from snorky.gateway.redis.admin.nodes import read_nodes
from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.directory.node_states import NodeState
from snorky.gateway.redis.directory.versions import OLDEST, WIRE, Versions, foreign_nodes
from snorky.gateway.redis.directory.versions import said as versions_said
from snorky.gateway.redis.keys import claim_key, node_key, nodes_key
from snorky.gateway.redis.target import target_from_url
from tests.support.fakes.leases import reporting
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import RedisServer, require

PREFIX = "test"


@pytest.fixture
async def target() -> AsyncIterator[RedisTarget]:
    async with EmbeddedServer(programs=[Path(require("redis"))], with_fake=False) as server:
        yield target_from_url(server.url)


@pytest.fixture
async def client(target: RedisTarget) -> AsyncIterator[Any]:
    client = client_of(target)
    yield client
    await client.aclose()


async def seen(client: Any) -> list[str]:
    return [node.node_id for node in await read_nodes(client, PREFIX)]


async def test_nodes_are_listed_while_they_renew_and_removed_when_they_stop(target: RedisTarget, client: Any) -> None:
    count = 0

    def state() -> dict[str, object]:
        nonlocal count
        count += 1
        return {"beats": count}

    async def both() -> bool:
        return await seen(client) == ["a", "b"]

    async with reporting(target, "b", state):
        async with reporting(target, "a", dict):
            await eventually(both, within_s=30, what="both nodes")
        assert await seen(client) == ["b"]

        async def later() -> bool:
            return (await read_nodes(client, PREFIX))[0].state["beats"] > 3

        await eventually(later, within_s=30, what="it continues")
    assert await seen(client) == []
    assert await client.keys("*") == []


async def test_a_node_that_died_is_not_listed_and_its_id_removed(target: RedisTarget, client: Any) -> None:
    await client.sadd(nodes_key(PREFIX), "dead")
    assert await seen(client) == []
    assert await client.exists(nodes_key(PREFIX)) == 0


async def test_a_state_expires_with_its_lease(target: RedisTarget, client: Any) -> None:
    async with reporting(target, "a", dict, renew_s=60.0):

        async def there() -> bool:
            return await seen(client) == ["a"]

        await eventually(there, within_s=30, what="the first renewal")
        assert 0 < await client.pttl(node_key(PREFIX, "a")) <= 8_000


@pytest.mark.parametrize("state", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
async def test_a_state_that_is_not_readable_hides_no_other(target: RedisTarget, client: Any, state: bytes) -> None:
    await client.sadd(nodes_key(PREFIX), "bad", "good")
    await client.set(node_key(PREFIX, "bad"), state)
    await client.set(node_key(PREFIX, "good"), b'{"x":1}')
    assert await seen(client) == ["good"]


async def test_a_state_that_fails_costs_neither_the_lease_nor_the_next_state(target: RedisTarget, client: Any) -> None:
    calls = iter([ValueError("not now"), {"x": object()}, {"ok": True}])

    def state() -> dict[str, object]:
        answer = next(calls, {"ok": True})
        if isinstance(answer, Exception):
            raise answer
        return answer

    with capture_logs() as logs:
        async with reporting(target, "a", state, renew_s=0.02) as lease:

            async def there() -> bool:
                return await seen(client) == ["a"]

            await eventually(there, within_s=30, what="a state after the failures")
            assert lease.renewals >= 3
    assert [log["event"] for log in logs if "node state" in log["event"]] == [
        "node state not written",
        "node state is written again",
    ]


async def test_a_user_without_the_rights_for_states_keeps_the_lease(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path) as server:
        admin = server.client()
        await admin.execute_command(
            "ACL", "SETUSER", "node", "on", ">pw", "~*", "&*", "+@all", "-sadd", "-set", "-srem"
        )
        target = target_from_url(server.url.replace("redis://", "redis://node:pw@"))
        with capture_logs() as logs:
            async with reporting(target, "a", dict) as lease:
                await eventually(lambda: asyncio.sleep(0, lease.renewals > 3), within_s=30, what="renewals")
        assert [log["log_level"] for log in logs if log["event"] == "node state not written"] == ["warning"]
        assert await admin.keys("*") == []
        await admin.aclose()


async def test_a_fenced_node_is_listed_again_with_its_next_renewal(target: RedisTarget, client: Any) -> None:
    async with reporting(target, "a", dict) as lease:
        await lease.until_first()
        former = lease.owner
        await client.set(claim_key(PREFIX, former), b"b")

        async def there() -> bool:
            return lease.owner != former and await seen(client) == ["a"]

        await eventually(there, within_s=30, what="another incarnation that is listed")


async def test_nodes_of_the_former_version_and_of_this_one_see_each_other(target: RedisTarget, client: Any) -> None:
    """The former version wrote states by SADD and SET, apart from the lease, and read them by SMEMBERS and MGET."""
    await client.sadd(nodes_key(PREFIX), "former", "dead")
    await client.set(node_key(PREFIX, "former"), b'{"connections":7}', px=8_000)
    told: list[list[str]] = []
    async with reporting(
        target, "new", lambda: {"connections": 3}, on_nodes=lambda nodes: told.append([each.node_id for each in nodes])
    ):
        await eventually(lambda: asyncio.sleep(0, told), within_s=30, what="a read of all nodes")
        assert told[0] == ["former", "new"]
        assert await client.smembers(nodes_key(PREFIX)) == {b"former", b"new"}
        assert await client.mget(node_key(PREFIX, "new")) == [b'{"connections":3}']
        assert await seen(client) == ["former", "new"]


async def test_without_redis_it_neither_fails_nor_delays_the_stop() -> None:
    nowhere = target_from_url("redis://127.0.0.1:1/0")
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with reporting(nowhere, "a", dict, renew_s=0.2):
        await asyncio.sleep(0)
    assert loop.time() - began < 2.0


def state_of(node_id: str, **said: object) -> NodeState:
    return NodeState(node_id, said)


@pytest.mark.parametrize(
    ("said", "fits"),
    [
        ({"wire": WIRE, "wire_oldest": OLDEST}, True),
        ({"wire": WIRE + 1, "wire_oldest": WIRE}, True),  # the next release
        ({"wire": OLDEST, "wire_oldest": OLDEST - 1}, True),
        ({"wire": WIRE + 2, "wire_oldest": WIRE + 1}, False),
        ({"wire": OLDEST - 1, "wire_oldest": OLDEST - 1}, False),
        ({}, False),  # from before nodes announced versions
        ({"wire": "2", "wire_oldest": True}, False),
    ],
)
def test_versions_fit_if_each_reads_what_the_other_writes(said: dict[str, object], fits: bool) -> None:
    assert (foreign_nodes([state_of("a", **said)]) == {}) is fits


async def test_a_node_of_a_version_that_does_not_fit_is_logged_once_and_shown(target: RedisTarget, client: Any) -> None:
    metrics = Metrics()
    versions = Versions(metrics)

    def shown() -> float | None:
        return metrics.registry.get_sample_value("snorky_nodes_incompatible")

    with capture_logs() as logs:
        async with contextlib.AsyncExitStack() as stack:
            new = reporting(target, "new", versions_said, on_nodes=versions.see, renew_s=0.02)
            await stack.enter_async_context(new)
            async with reporting(target, "old", dict):
                await eventually(lambda: asyncio.sleep(0, shown() == 1), within_s=30, what="the old node is seen")
                versions.see(await read_nodes(client, PREFIX))
            await eventually(lambda: asyncio.sleep(0, shown() == 0), within_s=30, what="it is removed")
    events = [log for log in logs if "incompatible version" in log["event"]]
    assert [log["log_level"] for log in events] == ["warning", "info"]
    assert events[0]["nodes"] == {"old": 1}
