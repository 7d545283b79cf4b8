"""Nodes of this gateway in one process, each with its whole Redis side, and clients without sockets.

    python -m benchmarks.servers.growth_nodes REDIS_URL

A node here is what `running_node` makes: everything of a node but its HTTP sites. Only the node of `serve` has them.
Limits that would only stop the benchmark are raised; nothing else differs.
"""

import asyncio
import gc
import os
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from statistics import median
from time import perf_counter, process_time
from typing import Final
from urllib.parse import urlsplit

import uvloop

from benchmarks.servers.commands import answer, obey
from benchmarks.support.loop_watch import LoopWatch
from benchmarks.support.message import PREFIX, compact
from snorky.gateway.config.settings import Limits, Private, Public, Settings
from snorky.gateway.logs import configure_logs
from snorky.gateway.node import Node
from snorky.gateway.protocol.codec import Encoding
from snorky.gateway.protocol.ws_frames import dialect_for
from snorky.gateway.runtime.gateway import Gateway
from snorky.gateway.runtime.node import running_node
from snorky.gateway.sdk.registry import ServiceRegistry
from snorky.services.pubsub import PubSubService

__all__: list[str] = []

RULES: Final = (
    {"match": "watched*", "presence": True, "join_leave": True},
    {"match": "roster*", "presence": True},
)
FEW, CROWD, WATCHED = "roster-few", "roster-crowd", "watched"
AT_ONCE: Final = 10_000  # members that enter at once
FEW_MEMBERS: Final = 100
TRIES: Final = 5
BOUNDLESS: Final = 1 << 30
_JSON: Final = dialect_for(Encoding.JSON)


class Client:
    """A client without a socket, with one call at a time: what the node writes is counted and discarded."""

    transport_name = "websocket"

    def __init__(self, node: Node, registry: ServiceRegistry) -> None:
        self._node = node
        self._registry = registry
        self._reply: asyncio.Future[None] | None = None
        self.connection = node.new_connection(self, _JSON)
        node.connect(self.connection, registry)

    async def call(self, command: str, channel: str) -> None:
        """Send a command about a channel, again while the node is unavailable. Raises RuntimeError: another error."""
        message = {"command": command, "params": {"channel": channel}, "callId": 1}
        for wait_s in range(1, TRIES):
            self._reply = asyncio.get_running_loop().create_future()
            self._registry.receive(self.connection, compact({"service": "pubsub", "message": message}))
            try:
                return await self._reply
            except RuntimeError as error:
                if "unavailable" not in str(error):
                    raise
            await asyncio.sleep(wait_s)
        raise RuntimeError(f"unavailable {TRIES} times: {command} {channel}")

    def leave(self) -> None:
        """Close the connection, as a client does that leaves."""
        self._node.disconnect(self.connection, 1000)

    def write(self, data: bytes) -> None:
        """See Transport. A reply ends the call."""
        if b'"callId":1' in data and self._reply is not None and not self._reply.done():
            if b'"type":"error"' in data and b'"Too many members"' not in data:
                self._reply.set_exception(RuntimeError(data[:300]))
            else:
                self._reply.set_result(None)

    def buffered_bytes(self) -> int:
        """See Transport."""
        return 0

    def pause_reading(self) -> None:
        """See Transport."""

    def resume_reading(self) -> None:
        """See Transport."""

    def close(self, code: int, reason: str) -> None:
        """See Transport."""
        asyncio.get_running_loop().call_soon(self._node.disconnect, self.connection, code)


class Nodes:
    """The nodes of this process, and what their clients do. Each public method is a command."""

    def __init__(self, redis_url: str, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._settings = Settings(
            redis_url=redis_url,
            prefix=PREFIX,
            public=Public(port=0, ping_interval_s=3600.0),
            private=Private(port=0),
            limits=Limits(
                connections=0,
                connections_per_ip=0,
                channels_per_connection=BOUNDLESS,
                handshakes_per_s_per_ip=0.0,
                messages_per_s=1e9,
                messages_burst=BOUNDLESS,
                rate_factor_per_ip=0.0,
                roster_max_bytes=BOUNDLESS,
                stored_bytes_per_identity=0,
                stored_bytes_per_ip=0,
            ),
        )
        self._nodes: list[tuple[Node, ServiceRegistry]] = []
        self._clients: list[Client] = []  # they stay
        self._channels = 0
        self._watch = LoopWatch()

    @property
    def commands(self) -> dict[str, Callable[..., object]]:
        """The commands by their names."""
        return {
            name: getattr(self, name)
            for name in (
                "nodes",
                "watchers",
                "arrivals",
                "channels",
                "members",
                "joins",
                "presence",
                "serve",
                "crowd",
                "watch",
            )
        }

    def _new_client(self, place: int) -> Client:
        return Client(*self._nodes[place])

    # -- many nodes ----------------------------------------------------------------------------------------------

    async def nodes(self, count: int) -> None:
        """Start nodes until there are so many. Answers when all receive what is published through Redis."""
        began_s = perf_counter()
        registries = [
            ServiceRegistry([PubSubService(channels=[dict(each) for each in RULES])])
            for _ in range(len(self._nodes), count)
        ]
        contexts = [running_node(registry, settings=self._settings) for registry in registries]
        nodes = await asyncio.gather(*map(self._stack.enter_async_context, contexts))
        self._nodes += zip(nodes, registries, strict=True)
        while not all(node.is_ready for node, _ in self._nodes):  # noqa: ASYNC110 - only once, during startup
            await asyncio.sleep(0.01)
        _freeze()
        answer(nodes=len(self._nodes), took_s=perf_counter() - began_s)

    async def watchers(self) -> None:
        """Give each node without clients one, which is a member of WATCHED and is notified of each join there."""
        for place, (node, _) in enumerate(self._nodes):
            if not node.counts["connections"]:
                self._clients.append(client := self._new_client(place))
                await client.call("subscribe", WATCHED)
        answer(clients=len(self._clients))

    async def arrivals(self, count: int, per_s: int) -> None:
        """Let so many clients of the first node join WATCHED and leave it again, evenly."""
        for _ in range(count):
            client = self._new_client(0)
            await client.call("subscribe", WATCHED)
            await client.call("unsubscribe", WATCHED)
            client.leave()
            await asyncio.sleep(1 / per_s)
        answer(arrivals=count)

    # -- many channels -------------------------------------------------------------------------------------------

    async def channels(self, count: int, per_connection: int) -> None:
        """Subscribe connections of the first node to so many more channels, each to others."""
        cpu_s = process_time()

        async def subscribe(client: Client, start: int, end: int) -> None:
            for number in range(start, end):
                await client.call("subscribe", f"channel-{number:07}")

        end = self._channels + count
        starts = range(self._channels, end, per_connection)
        clients = [self._new_client(0) for _ in starts]
        self._clients += clients
        await asyncio.gather(
            *(
                subscribe(client, start, min(start + per_connection, end))
                for client, start in zip(clients, starts, strict=True)
            )
        )
        self._channels = end
        answer(channels=self._nodes[0][0].counts["channels"], cpu_s=process_time() - cpu_s)

    # -- large rosters -------------------------------------------------------------------------------------------

    async def members(self, count: int) -> None:
        """Let clients of the first node enter two rosters: FEW_MEMBERS that of FEW, so many that of CROWD."""
        await self._enter(0, FEW, FEW_MEMBERS)
        await self._enter(0, CROWD, count)
        answer(members=count)

    async def crowd(self, count: int) -> None:
        """Let so many clients without sockets, of the last node, subscribe to CROWD."""
        await self._enter(len(self._nodes) - 1, CROWD, count)
        answer(clients=count)

    async def _enter(self, place: int, channel: str, count: int) -> None:
        for start in range(0, count, AT_ONCE):
            clients = [self._new_client(place) for _ in range(start, min(start + AT_ONCE, count))]
            await asyncio.gather(*(client.call("subscribe", channel) for client in clients))
            self._clients += clients

    async def joins(self, is_crowd: int, count: int) -> None:
        """Let so many clients of the last node join a roster, one after another, and leave it.

        Answers with wall_ms of a join, the median, and node_us: CPU of this process for a join with its leave.
        """
        channel = CROWD if is_crowd else FEW
        took_s = []
        cpu_s = process_time()
        for _ in range(count):
            client = self._new_client(len(self._nodes) - 1)
            began_s = perf_counter()
            await client.call("subscribe", channel)
            took_s.append(perf_counter() - began_s)
            await client.call("unsubscribe", channel)
            client.leave()
        answer(wall_ms=median(took_s) * 1e3, node_us=(process_time() - cpu_s) / count * 1e6)

    async def presence(self, is_crowd: int) -> None:
        """Let a client of the last node request the list of a roster, and then the numbers. Answers with the times."""
        channel, client = CROWD if is_crowd else FEW, self._new_client(len(self._nodes) - 1)
        began_s = perf_counter()
        await client.call("presence", channel)
        listed_s = perf_counter()
        await client.call("presenceStats", channel)
        answer(list_ms=(listed_s - began_s) * 1e3, stats_ms=(perf_counter() - listed_s) * 1e3)
        client.leave()

    # -- one large channel ---------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Start a node with its sites. It becomes the last one."""
        registry = ServiceRegistry([PubSubService(channels=[dict(each) for each in RULES])])
        gateway = await self._stack.enter_async_context(Gateway(self._settings, public=registry))
        await gateway.until_ready(10)
        self._nodes.append((gateway.node, registry))
        _freeze()
        answer(port=urlsplit(gateway.public_urls[0]).port or 0)

    async def watch(self, is_on: int) -> None:
        """Answer with the longest steps of the loop since the last call. is_on: watch on; 0 = stop."""
        watch = self._watch
        watch.stop()
        answer(cpu_ms=watch.cpu_ms, wall_ms=watch.wall_ms, gc_ms=watch.gc_ms, connections=self._connections())
        if is_on:
            watch.start()

    def _connections(self) -> int:
        return sum(node.counts["connections"] for node, _ in self._nodes)


def _freeze() -> None:
    """Do what `snorky serve` does once its node is ready."""
    gc.collect()
    gc.freeze()


async def run(redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        await obey(Nodes(redis_url, stack).commands)  # type: ignore[arg-type]  # all are coroutine functions
        os._exit(0)  # do not wait until a million channels are given up one by one


def main() -> None:
    configure_logs()  # to stderr: stdout is for answers
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(sys.argv[1]))


if __name__ == "__main__":
    main()
