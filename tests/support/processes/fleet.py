"""Fleet: a Redis, nodes with history on channels `kept:*`, and the shipped nginx in front if there are several."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.support.processes.balancer import Backend, running_nginx
from tests.support.processes.nodes import GATEWAY, NodeProcess, RedisProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.tokens import SECRET

__all__ = ["SECRET", "Fleet", "running_fleet"]

READY_WITHIN_S = 20.0
CONFIG = """
[services.pubsub]
class = "snorky.services.pubsub:PubSubService"
[[services.pubsub.channels]]
match = "kept:*"
history = 5000
allow_publish = "anyone"
[services.chat]
class = "snorky.services.chat:ChatService"
[services.auth]
class = "snorky.services.auth:AuthService"
"""


class Fleet:
    """A deployment that real clients connect to, at `url`. Made by `running_fleet`."""

    def __init__(self, redis: RedisProcess, config: Path, env: Mapping[str, str]) -> None:
        self.redis = redis
        self.nodes: list[NodeProcess] = []
        self.url = ""
        self._argv = (*GATEWAY, "serve", "--config", str(config))
        self._env = {
            "SNORKY_REDIS_URL": redis.url,
            "SNORKY_PUBLIC__TRUSTED_PROXIES": '["127.0.0.1/32"]',
            "SNORKY_PUBLIC__DRAIN_GRACE_S": "3",
            "SNORKY_LIMITS__CONNECTIONS_PER_IP": "0",
            **env,
        }

    def new_node(self, ports: Mapping[str, str] | None = None) -> NodeProcess:
        """Make a node that is not part of the fleet yet; the caller must call `wait_ready` and `close`."""
        return NodeProcess({**self._env, **(ports or {})}, argv=self._argv)

    async def replace(self, index: int) -> None:
        """Start another node on the ports of one that has ended, or is ending; return when all are ready."""
        old = self.nodes[index]
        assert await old.wait() == 0, old.log
        await old.close()
        ports = {"SNORKY_PUBLIC__PORT": str(old.public_port), "SNORKY_PRIVATE__PORT": str(old.private_port)}
        self.nodes[index] = self.new_node(ports)
        await self.nodes[index].wait_ready()
        await self.ready()

    async def ready(self) -> None:
        """Wait until all nodes are ready."""

        async def all_ready() -> bool:
            return {await node.status("/readyz") for node in self.nodes} == {200}

        await eventually(all_ready, within_s=READY_WITHIN_S, what="all nodes are ready")

    async def metric(self, name: str) -> float:
        """Sum a metric over the running nodes."""
        return sum([await node.metric(name) for node in self.nodes if node.is_running])


@asynccontextmanager
async def running_fleet(directory: Path, *, nodes: int, env: Mapping[str, str] | None = None) -> AsyncIterator[Fleet]:
    """Run one until the block ends; all nodes are ready. env: further settings."""
    config = directory / "snorky.toml"
    config.write_text(CONFIG, encoding="utf-8")
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(directory))
        fleet = Fleet(redis, config, env or {})
        stack.push_async_callback(_close, fleet)
        fleet.nodes += [fleet.new_node() for _ in range(nodes)]
        await asyncio.gather(*(node.wait_ready() for node in fleet.nodes))
        await fleet.ready()
        fleet.url = fleet.nodes[0].websocket_url
        if nodes > 1:
            backends = [Backend(node.public_port, node.private_port) for node in fleet.nodes]
            fleet.url = (await stack.enter_async_context(running_nginx(directory, backends))).websocket_url
        yield fleet


async def _close(fleet: Fleet) -> None:
    for node in fleet.nodes:
        await node.close()
