"""One channel, clients of each kind on each of three nodes: all receive all messages, once, and in one order."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from yarl import URL

from tests.support.clients.any_protocol import AnyClient, opened
from tests.support.clients.pusher import KEY, SECRET
from tests.support.clients.pusher_api import target_of
from tests.support.processes.nodes import NodeProcess
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import RedisServer
from tests.support.servers.shared import SharedServers

CHANNEL: Final = "room"
KINDS: Final = ("json", "msgpack", "centrifuge", "centrifuge-protobuf", "pusher", "sse", "raw")
SILENT: Final = ("sse",)  # kinds that cannot publish
NODES: Final = 3
MESSAGES: Final = 10_000
END: Final = MESSAGES  # is published last: nothing comes between the others and it
DEADLINE_S: Final = 240.0
RULES: Final = [{"match": CHANNEL, "history": MESSAGES, "allow_subscribe": "anyone", "allow_publish": "anyone"}]
ENV: Final = {
    "SNORKY_SERVICES__PUBSUB__CLASS": "snorky.services.pubsub:PubSubService",
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(RULES),
    "SNORKY_PUBLIC__PUSHER_APPS__SHOP__KEY": KEY,
    "SNORKY_PUBLIC__PUSHER_APPS__SHOP__SECRET": SECRET,
    "SNORKY_LIMITS__MESSAGES_PER_S": "10000",
    "SNORKY_LIMITS__MESSAGES_BURST": "10000",
}


class Participant:
    """A client, and the numbers that it has received. own: those that it is to publish."""

    def __init__(self, kind: str, client: AnyClient) -> None:
        self.kind = kind
        self.received: list[int] = []
        self.own: Sequence[int] = ()
        self._client = client

    async def take_part(self) -> None:
        """Publish the own numbers, each when the one before has come back; receive until all have come."""
        for number in self.own:
            await self.publish(number)
            while not self.received or self.received[-1] != number:
                await self.receive()
        while len(self.received) < MESSAGES:
            await self.receive()

    async def publish(self, number: int) -> None:
        """Publish a number; by Pusher's HTTP API as an event, whose data is a text."""
        if self.kind != "pusher":
            assert await self._client.publish(number) is None
            return
        body = json.dumps({"name": "message", "data": str(number), "channel": CHANNEL}).encode()
        target = target_of("POST", "/events", body, app="/apps/shop", auth={"auth_key": KEY}, secret=SECRET)
        async with self._client.http.post(URL(self._client.url + target, encoded=True), data=body) as response:
            assert (response.status, await response.json()) == (200, {})

    async def receive(self) -> None:
        """Wait for the next message."""
        self.received.append(number_in(await self._client.message()))


def number_in(message: Any) -> int:
    """Return the number in a message. For clients of other protocols an event of Pusher is an object."""
    if isinstance(message, dict):
        assert message["event"] == "message", message
        message = int(message["data"])
    assert type(message) is int, message
    return message


@asynccontextmanager
async def cluster(redis_url: str) -> AsyncIterator[list[NodeProcess]]:
    """Run the nodes."""
    async with AsyncExitStack() as stack:
        env = {**ENV, "SNORKY_REDIS_URL": redis_url}
        yield [await stack.enter_async_context(NodeProcess.running(env)) for _ in range(NODES)]


async def until_subscribed(nodes: Sequence[NodeProcess]) -> None:
    """Wait until all clients are subscribed: a plain WebSocket is not notified of it."""
    for node in nodes:

        async def is_so(node: NodeProcess = node) -> bool:
            return await node.metric("snorky_subscriptions") == len(KINDS)

        await eventually(is_so, within_s=DEADLINE_S, what="all clients are subscribed")


async def test_clients_of_every_kind_receive_all_messages_once_in_one_order(shared: SharedServers) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(DEADLINE_S))
        redis = await stack.enter_async_context(shared.lend("valkey"))
        assert isinstance(redis, RedisServer)
        nodes = await stack.enter_async_context(cluster(redis.url))
        crowd = [
            Participant(
                kind, await stack.enter_async_context(opened(kind, f"http://127.0.0.1:{node.public_port}", CHANNEL))
            )
            for node in nodes
            for kind in KINDS
        ]
        await until_subscribed(nodes)
        publishers = [each for each in crowd if each.kind not in SILENT]
        for turn, each in enumerate(publishers):
            each.own = range(turn, MESSAGES, len(publishers))
        async with asyncio.TaskGroup() as group:
            for each in crowd:
                group.create_task(each.take_part())
        await crowd[0].publish(END)
        for each in crowd:
            await each.receive()
        order = crowd[0].received
        assert sorted(order) == list(range(MESSAGES + 1)) and order[-1] == END
        assert [each.kind for each in crowd if each.received != order] == []
