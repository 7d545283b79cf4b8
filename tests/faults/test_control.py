"""Orders of the backend to three nodes while one of them is paused, killed, cut off or drained: obeyed once, by all.

Each node reaches Redis through a proxy of its own, so that one of them can be cut off.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from tests.support.processes.nodes import GATEWAY, NodeProcess
from tests.support.processes.proxy import FaultProxy
from tests.support.processes.tools import eventually
from tests.support.scenarios.tokens import SECRET, hmac_token
from tests.support.servers.redis_servers import RedisServer

pytestmark = pytest.mark.needs("redis-server")

NODES: Final = 3
GUESTS: Final = 1_000  # connections of one identity, over all nodes
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
    """One connection. notices: of ended subscriptions. heard: numbers published on the channel."""

    def __init__(self, node: int, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.node = node
        self.notices: list[Any] = []
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
        self._fences = 0

    async def join(self, count: int, nodes: Iterable[int]) -> list[Guest]:
        """Connect guests to these nodes in turn, and subscribe them."""
        places = list(nodes)
        token = hmac_token(IDENTITY, exp=time.time() + 600)
        headers = {"Authorization": f"Bearer {token}"}

        async def enter(number: int) -> Guest:
            node = places[number % len(places)]
            guest = Guest(node, await self.session.ws_connect(self.nodes[node].websocket_url, headers=headers))
            await guest.subscribe()
            return guest

        joined = await asyncio.gather(*(enter(number) for number in range(count)))
        self.guests += joined
        await self.until(lambda: all(guest.is_subscribed for guest in joined), "guests are subscribed")
        return joined

    async def dismiss(self) -> None:
        """Disconnect all guests."""
        for guest in self.guests:
            guest.task.cancel()
        await asyncio.gather(*(guest.task for guest in self.guests), return_exceptions=True)
        for guest in self.guests:
            guest.hang_up()

    async def until(self, condition: Any, what: str, within_s: float = 10.0) -> None:
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
        answer = await self.call(command, by=by, identity=IDENTITY, reason="Gone", **params)
        took_s = time.monotonic() - began_s
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


async def test_a_thousand_connections_on_three_nodes_are_reached_within_a_second(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ids = await built.ids()
        await built.join(GUESTS, range(NODES))
        reply = await built.order(channel=CHANNEL, by=1)
        shares = {node: len(built.on(at)) for at, node in enumerate(ids)}
        assert {each["node"]: each["connections"] for each in reply["nodes"]} == shares
        assert (reply["missing"], reply["connections"]) == ([], GUESTS)
        await built.all_notified_once(built.guests)
        reply = await built.order("disconnect", by=2)
        assert (reply["missing"], reply["connections"]) == ([], GUESTS)
        await built.until(lambda: all(guest.close_code == 4500 for guest in built.guests), "guests are closed")
        lines = [line for line in built.nodes[1].log.splitlines() if '"snorky.audit"' in line]
        (line,) = [json.loads(line) for line in lines if '"unsubscribe"' in line]
        told = {"by": "shop", "identity": IDENTITY, "channel": CHANNEL, "outcome": "ok", "connections": GUESTS}
        assert told.items() <= line.items()
        assert await built.nodes[1].metric("snorky_control_calls_total") == 1


async def test_a_paused_node_is_named_and_obeys_when_it_is_back(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ids = await built.ids()
        await built.join(60, range(NODES))
        built.nodes[2].freeze()
        reply = await built.order()
        assert (reply["missing"], reply["connections"]) == ([ids[2]], 40)
        reply = await built.order()  # a second one meanwhile
        assert (reply["missing"], reply["connections"]) == ([ids[2]], 0)
        assert not any(guest.notices for guest in built.on(2))
        built.nodes[2].thaw()
        await built.all_notified_once(built.guests)
        assert (await built.order())["missing"] == []


async def test_a_killed_node_is_named_until_it_is_cleaned_up_and_its_successor_obeys_only_new_orders(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as built:
        ids = await built.ids()
        await built.join(60, range(NODES))
        built.nodes[2].kill()
        reply = await built.order()
        assert (reply["missing"], reply["connections"]) == ([ids[2]], 40)
        await built.until(lambda: all(guest.close_code for guest in built.on(2)), "its guests see the end")
        await built.nodes[2].close()
        argv, env = built.nodes[2].argv, {"SNORKY_REDIS_URL": built.proxies[2].url}
        async with NodeProcess.running(env, argv=argv) as successor:
            built.nodes[2] = successor
            newcomers = await built.join(10, [2])
            await built.all_notified_once(built.on(0, 1))
            await built.all_hear(newcomers)
            assert not any(guest.notices for guest in newcomers)

            async def is_forgotten() -> bool:
                return (await built.order("disconnect", connection="x.1"))["missing"] == []

            await eventually(is_forgotten, within_s=20, what="the dead node is not expected any more")
            assert (await built.order())["connections"] == 50


async def test_nodes_whose_pubsub_connections_are_killed_obey_in_time(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        await built.join(60, range(NODES))
        async with built.redis.client() as redis:

            async def are_connected() -> bool:
                return len(await redis.client_list(_type="pubsub")) >= NODES

            for command, connections in (("disconnect", 0), ("unsubscribe", 60)):
                await eventually(are_connected, within_s=10, what="every node is subscribed in Redis")
                assert await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= NODES
                reply = await built.order(command, **({} if connections else {"connection": "x.1"}))
                assert (reply["missing"], reply["connections"]) == ([], connections)
        await built.all_notified_once(built.guests)


async def test_nodes_whose_connections_to_redis_are_all_cut_obey(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        await built.join(60, range(NODES))
        for proxy in built.proxies[1:]:
            proxy.cut()
        reply = await built.order()
        late = 20 * len(reply["missing"])
        assert reply["connections"] == 60 - late
        await built.all_notified_once(built.guests)


async def test_a_node_with_half_open_connections_is_named_and_obeys_when_it_is_back(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ids = await built.ids()
        await built.join(60, range(NODES))
        built.proxies[2].swallow()
        reply = await built.order()
        assert (reply["missing"], reply["connections"]) == ([ids[2]], 40)
        answer = await built.call("unsubscribe", by=2, identity=IDENTITY)
        assert answer["code"] == "unavailable", "the node that is cut off cannot give orders"
        built.proxies[2].heal()
        await built.all_notified_once(built.guests)


async def test_a_node_that_drains_obeys_until_its_end(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        ids = await built.ids()
        await built.join(60, range(NODES))
        built.nodes[2].terminate()
        reply = await built.order()
        assert reply["missing"] == []
        open_ = [guest for guest in built.on(2) if not guest.close_code]
        await built.until(lambda: all(guest.notices or guest.close_code for guest in open_), "they are notified")
        assert reply["connections"] >= 40
        await built.all_notified_once(built.on(0, 1))
        assert await built.nodes[2].wait(20.0) == 0
        reply = await built.order()
        assert reply["missing"] == [] and ids[2] not in [each["node"] for each in reply["nodes"]]
