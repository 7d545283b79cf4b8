"""A stage of node processes on one Redis, where scenarios of tests.support.scenarios.conformance run.

    async with node_stage(tmp_path, 3) as stage:
        await perform(stage, scenario)
        await stage.is_clean()           # nothing of it is left in Redis

Clients authenticate with a token, to the service `auth`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from redis.asyncio import Redis

from tests.support.processes.nodes import NodeProcess, RedisProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.tokens import SECRET, hmac_token

__all__ = ["NodeStage", "SocketActor", "node_stage"]

PUBLIC = {
    "pubsub": "snorky.services.pubsub:PubSubService",
    "auth": "snorky.services.auth:AuthService",
    "chat": "snorky.services.chat:ChatService",
    "messaging": "snorky.services.messaging:MessagingService",
    "cursors": "snorky.services.cursors:CursorsService",
    "guarded_pubsub": "tests.support.scenarios.guarded:GuardedPubSub",
    "guarded_chat": "tests.support.scenarios.guarded:GuardedChat",
    "guarded_messaging": "tests.support.scenarios.guarded:GuardedMessaging",
    "guarded_cursors": "tests.support.scenarios.guarded:GuardedCursors",
}
LOG_END = 3_000  # characters of a node's log, in the message of a failure
OWNED = ("*:roster", "*{names *", "*{owned:*")  # state of connections in Redis


class SocketActor:
    """A WebSocket client that records everything it receives."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.inbox: list[Any] = []
        self._socket = socket
        self._came = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    @property
    def close_code(self) -> int | None:
        return self._socket.close_code

    async def send(self, envelope: Any) -> None:
        await self._socket.send_str(json.dumps(envelope))

    async def until(self, claim: Callable[[], object]) -> None:
        """Wait until the inbox makes the condition true."""
        async with self._came:
            await self._came.wait_for(claim)

    async def ask(self, service: str, command: str, **params: Any) -> Any:
        """Send a request; returns the message of the answer."""
        call_id = f"{command} {len(self.inbox)}"
        await self.send({"service": service, "message": {"command": command, "params": params, "callId": call_id}})
        await self.until(lambda: self._answers(call_id))
        return self._answers(call_id)[0]

    async def close(self) -> None:
        """Disconnect, as clients do."""
        await self._socket.close()
        await self._reader

    def _answers(self, call_id: str) -> list[Any]:
        return [each["message"] for each in self.inbox if each["message"].get("callId") == call_id]

    async def _read(self) -> None:
        async for frame in self._socket:
            async with self._came:
                self.inbox.append(json.loads(frame.data))
                self._came.notify_all()
        async with self._came:
            self._came.notify_all()


class NodeStage:
    """Nodes on one Redis, and an HTTP session to reach them."""

    def __init__(self, nodes: Sequence[NodeProcess], redis: RedisProcess, session: aiohttp.ClientSession) -> None:
        self.nodes = nodes
        self.redis = redis
        self.session = session

    async def socket(self, number: int, *, token: str | None = None) -> aiohttp.ClientWebSocketResponse:
        """Connect to the next node in turn."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return await self.session.ws_connect(self.nodes[number % len(self.nodes)].websocket_url, headers=headers)

    async def client(self, number: int, identity: str | None) -> SocketActor:
        """Connect to the next node in turn, and authenticate."""
        actor = SocketActor(await self.socket(number))
        if identity is not None:
            answer = await actor.ask("auth", "authenticate", token=hmac_token(identity))
            assert answer["data"]["identity"] == identity, answer
        return actor

    async def backend(self, number: int, envelope: Any) -> Any:
        """Send to the private port of the next node in turn."""
        node = self.nodes[number % len(self.nodes)]
        async with self.session.post(f"http://127.0.0.1:{node.private_port}/backend", json=envelope) as response:
            return await response.json()

    async def is_clean(self, *, within_s: float = 30.0) -> None:
        """Wait until no connection owns anything in Redis. Raises AssertionError: something is left."""
        async with Redis.from_url(self.redis.url) as redis:
            left: list[Any] = []

            async def is_gone() -> bool:
                left[:] = [key for pattern in OWNED for key in await redis.keys(pattern)]
                return not left

            try:
                await eventually(is_gone, within_s=within_s, what="nothing is left in Redis")
            except AssertionError as error:
                raise AssertionError(f"{error}: {left}") from None


@asynccontextmanager
async def node_stage(directory: Path, count: int, *, env: Mapping[str, str] | None = None) -> AsyncIterator[NodeStage]:
    """Run a Redis and nodes until the block ends."""
    lines = ["[limits]", "messages_per_s = 10000.0", "messages_burst = 100000", "client_errors_per_minute = 100000"]
    for name, class_name in PUBLIC.items():
        lines += [f"[services.{name}]", f'class = "{class_name}"']
        if name != "auth":
            lines.append('unmatched = "open"')  # a scenario that is about rules sets others by its environment
    config = directory / "conformance.toml"
    await asyncio.to_thread(config.write_text, "\n".join(lines))
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(directory))
        settings = {"SNORKY_CONFIG": str(config), "SNORKY_REDIS_URL": redis.url, "SNORKY_AUTH__HMAC_SECRET": SECRET}
        nodes = [NodeProcess({**settings, **(env or {})}) for _ in range(count)]
        for node in nodes:
            stack.push_async_callback(node.close)
        for node in nodes:
            await node.wait_ready()
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        try:
            yield NodeStage(nodes, redis, session)
        except AssertionError as error:
            for node in nodes:
                error.add_note(f"the log of the node on port {node.public_port} ends with:\n{node.log[-LOG_END:]}")
            raise
