"""Three nodes, each behind a proxy to the one Redis, with guests whom the backend gives orders about."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.support.processes.nodes import GATEWAY, NodeProcess
from tests.support.processes.proxy import FaultProxy
from tests.support.processes.tools import eventually
from tests.support.scenarios.tokens import SECRET, hmac_token
from tests.support.servers.redis_servers import RedisServer

__all__ = ["CHANNEL", "IDENTITY", "NODES", "NOTICE", "Guest", "House", "house"]

NODES: Final = 3
WITHIN_S: Final = 1.0  # the documented limit of the reply
LATE_S: Final = 0.5  # of this process, which reads for all guests
BACK_WITHIN_S: Final = 5.0
IDENTITY: Final = "ann"
CHANNEL: Final = "shop"
KEY: Final = "of-the-test-of-control-orders"
NOTICE: Final = {"type": "unsubscribed", "channel": CHANNEL, "code": "unsubscribed", "reason": "Gone"}
SETTINGS: Final = f"""
[public]
drain_grace_s = 2.0
[private.api_keys]
shop = "{KEY}"
[auth]
hmac_secret = "{SECRET}"
[limits]
connections_per_ip = 0
handshakes_per_s_per_ip = 0
rate_factor_per_ip = 0
rate_factor_per_identity = 0
[services.pubsub]
class = "snorky.services.pubsub:PubSubService"
unmatched = "open"
"""


class Guest:
    """One connection. notices: of ended subscriptions. begun: of server-side ones. heard: numbers published on the
    channel."""

    def __init__(self, node: int, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.node = node
        self.notices: list[Any] = []
        self.begun: list[Any] = []
        self.heard: list[int] = []
        self.is_subscribed = False
        self._socket = socket
        self.task = asyncio.create_task(self._read())

    @property
    def close_code(self) -> int | None:
        return self._socket.close_code

    async def subscribe(self) -> None:
        call = {"command": "subscribe", "params": {"channel": CHANNEL}, "callId": 1}
        await self._socket.send_json({"service": "pubsub", "message": call})

    def hang_up(self) -> None:
        self._socket._response.close()

    async def _read(self) -> None:
        async for frame in self._socket:
            message = json.loads(frame.data)["message"]
            if message["type"] == "unsubscribed":
                self.notices.append(message)
                self.is_subscribed = False
            elif message["type"] == "subscribed":
                self.begun.append(message)
                self.is_subscribed = True
            elif message["type"] == "message":
                self.heard.append(message["message"])
            elif message["type"] == "response":
                self.is_subscribed = True


class House:
    """Three nodes, each behind a proxy to the one Redis, with guests."""

    def __init__(self, redis: RedisServer, session: aiohttp.ClientSession) -> None:
        self.redis = redis
        self.session = session
        self.proxies: list[FaultProxy] = []
        self.nodes: list[NodeProcess] = []
        self.guests: list[Guest] = []
        self.took_s = 0.0  # by the last order
        self._fences = 0

    async def join(self, count: int, nodes: Iterable[int], *, subscribes: bool = True) -> list[Guest]:
        """Connect guests to these nodes in turn, and subscribe them unless the backend shall do it."""
        places = list(nodes)
        token = hmac_token(IDENTITY, exp=time.time() + 600)
        headers = {"Authorization": f"Bearer {token}"}

        async def enter(number: int) -> Guest:
            node = places[number % len(places)]
            guest = Guest(node, await self.session.ws_connect(self.nodes[node].websocket_url, headers=headers))
            if subscribes:
                await guest.subscribe()
            return guest

        joined = await asyncio.gather(*(enter(number) for number in range(count)))
        self.guests += joined
        if subscribes:
            await self.until(lambda: all(guest.is_subscribed for guest in joined), "guests are subscribed")
        return joined

    async def dismiss(self) -> None:
        """Disconnect all guests."""
        for guest in self.guests:
            guest.task.cancel()
        await asyncio.gather(*(guest.task for guest in self.guests), return_exceptions=True)
        for guest in self.guests:
            guest.hang_up()

    async def until(self, condition: Any, what: str, within_s: float = 30.0) -> None:
        async def holds() -> bool:
            return bool(condition())

        await eventually(holds, within_s=within_s, what=what)

    async def call(self, command: str, *, by: int = 0, service: str = "control", **params: Any) -> dict[str, Any]:
        """Call the backend's port of a node; returns the reply's message."""
        url = f"http://127.0.0.1:{self.nodes[by].private_port}/backend"
        body = {"service": service, "message": {"command": command, "params": params}}
        async with self.session.post(url, json=body, headers={"X-Backend-Key": KEY}) as response:
            answer: dict[str, Any] = (await response.json())["message"]
            return answer

    async def order(self, command: str = "unsubscribe", *, by: int = 0, **params: Any) -> dict[str, Any]:
        """Give an order on the identity; returns the reply, which must come in time."""
        began_s = time.monotonic()
        reason = {} if command in ("subscribe", "refresh") else {"reason": "Gone"}
        answer = await self.call(command, by=by, identity=IDENTITY, **reason, **params)
        took_s = self.took_s = time.monotonic() - began_s
        assert answer["type"] == "response", answer
        assert took_s <= WITHIN_S + LATE_S, f"the reply took {took_s:.2f} s"
        data: dict[str, Any] = answer["data"]
        return data

    def on(self, *nodes: int) -> list[Guest]:
        return [guest for guest in self.guests if guest.node in nodes]

    async def all_notified_once(self, guests: list[Guest]) -> None:
        """Let these guests subscribe again; another order or notice would end that subscription."""
        await self.until(lambda: all(guest.notices for guest in guests), "guests are notified", BACK_WITHIN_S)
        for guest in guests:
            await guest.subscribe()
        await self.until(lambda: all(guest.is_subscribed for guest in guests), "guests are subscribed again")
        await asyncio.sleep(1.0)  # four reads of the orders by each node
        await self.all_hear(guests)
        assert [guest.notices for guest in guests] == [[NOTICE]] * len(guests)

    async def all_hear(self, guests: list[Guest]) -> None:
        """Publish a number, and wait until these guests have it."""
        self._fences += 1
        fence = self._fences
        answer = await self.call("publish", service="pubsub_backend", channel=CHANNEL, message=fence)
        assert answer["type"] == "response", answer
        await self.until(lambda: all(fence in guest.heard for guest in guests), "guests hear the fence")

    async def ids(self) -> list[str]:
        """Return the ids of the nodes, in the order of `nodes`, by an order on a connection of each."""
        found = []
        for node in range(NODES):
            (guest,) = await self.join(1, [node])
            reply = await self.order("disconnect")
            assert reply["connections"] == 1 and reply["missing"] == [], reply
            found += [each["node"] for each in reply["nodes"] if each["connections"]]
            self.guests.remove(guest)
        assert len(set(found)) == NODES
        return found


@asynccontextmanager
async def house(directory: Path) -> AsyncIterator[House]:
    config = directory / "snorky.toml"
    config.write_text(SETTINGS)
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer("redis", directory))
        connector = aiohttp.TCPConnector(limit=0)
        built = House(redis, await stack.enter_async_context(aiohttp.ClientSession(connector=connector)))
        for _ in range(NODES):
            proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", redis.port))
            argv = (*GATEWAY, "serve", "--config", str(config))
            node = await stack.enter_async_context(NodeProcess.running({"SNORKY_REDIS_URL": proxy.url}, argv=argv))
            built.proxies.append(proxy)
            built.nodes.append(node)
        for node in built.nodes:
            await eventually(lambda node=node: is_ready(node), within_s=10, what="node is ready")
        stack.push_async_callback(built.dismiss)
        yield built


async def is_ready(node: NodeProcess) -> bool:
    return await node.status("/readyz", timeout_s=1.0) == 200
