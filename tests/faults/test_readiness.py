"""Readiness reports the state of Redis, liveness does not: no node is restarted because Redis is unavailable."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.support.clients.ws_client import clients
from tests.support.processes.nodes import NodeProcess, RedisProcess
from tests.support.processes.tools import eventually

pytestmark = pytest.mark.needs("redis-server")

DETECTED_WITHIN_S = 6.0
HEALED_WITHIN_S = 3.0


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisProcess]:
    async with RedisProcess.running(tmp_path) as process:
        yield process


@pytest.fixture
async def node(redis: RedisProcess) -> AsyncIterator[NodeProcess]:
    async with NodeProcess.running({"SNORKY_REDIS_URL": redis.url}) as process:
        await until_ready(process, 200, within_s=5)
        yield process


async def until_ready(node: NodeProcess, status: int, *, within_s: float) -> None:
    async def answers() -> bool:
        return await node.status("/readyz", timeout_s=1.0) == status

    await eventually(answers, within_s=within_s, what=f"/readyz is {status}\n{node.log}")


class Watch:
    """Asks /healthz as a kubelet does, throughout; `answers` is every status that it got."""

    def __init__(self, node: NodeProcess) -> None:
        self.answers: list[int] = []
        self._node = node
        self._task = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        while True:
            self.answers.append(await self._node.status("/healthz", timeout_s=1.0))
            await asyncio.sleep(0.2)  # the interval of the probes, not a wait for anything

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_a_frozen_redis_turns_readiness_off_and_back_on_and_liveness_stays(
    redis: RedisProcess, node: NodeProcess
) -> None:
    watch = Watch(node)
    redis.freeze()
    try:
        await until_ready(node, 503, within_s=DETECTED_WITHIN_S)
        assert json.loads((await node.ask("/readyz"))[1])["reasons"] == ["redis_unverified"]
        assert await node.metric("snorky_redis_delivery_unverified") == 1
    finally:
        redis.thaw()
    await until_ready(node, 200, within_s=HEALED_WITHIN_S)
    assert await node.metric("snorky_redis_delivery_unverified") == 0
    assert await node.metric("snorky_redis_delivery_unverified_seconds_total") > 0
    await watch.stop()
    assert len(watch.answers) >= 3
    assert set(watch.answers) == {200}


async def test_a_killed_redis_turns_readiness_off_until_another_takes_its_place(
    redis: RedisProcess, node: NodeProcess, tmp_path: Path
) -> None:
    watch = Watch(node)
    redis.kill()
    await redis.wait()
    await until_ready(node, 503, within_s=DETECTED_WITHIN_S)
    async with RedisProcess.running(tmp_path, port=redis.port):
        await until_ready(node, 200, within_s=HEALED_WITHIN_S)
    await watch.stop()
    assert set(watch.answers) == {200}


async def test_clients_stay_connected_while_redis_is_frozen_and_receive_later_messages(
    redis: RedisProcess, node: NodeProcess
) -> None:
    async with clients(node.websocket_url, 20, channels=["news"]) as crowd:
        await crowd.subscribed(within_s=10)
        redis.freeze()
        try:
            await until_ready(node, 503, within_s=DETECTED_WITHIN_S)
        finally:
            redis.thaw()
        await until_ready(node, 200, within_s=HEALED_WITHIN_S)
        async with Redis(port=redis.port) as publisher:
            await publisher.publish("snorky:{pubsub:news}", b'{"after": true}')
        await crowd.received({"after": True}, within_s=5)
        assert crowd.drops == 0


async def test_a_node_that_starts_without_redis_is_alive_not_ready_and_becomes_ready(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path)
    port = redis.port
    await redis.wait_ready()
    await redis.close()
    async with NodeProcess.running({"SNORKY_REDIS_URL": f"redis://127.0.0.1:{port}/0"}) as node:
        assert await node.status("/readyz") == 503
        assert await node.status("/healthz") == 200
        async with RedisProcess.running(tmp_path, port=port):
            await until_ready(node, 200, within_s=HEALED_WITHIN_S)
