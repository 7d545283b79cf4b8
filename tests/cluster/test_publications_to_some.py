"""Publications for some of the subscribers of a channel with a history: all others stay complete and in order."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from snorky.gateway import Position, Selector
from snorky.gateway.node import Node
from snorky.services.pubsub import PubSubService
from tests.support.clients.any_protocol import AnyClient, opened
from tests.support.scenarios.protocol_nodes import NEWS, Nodes, token_of

COUNT = 30


def service_of(node: Node) -> PubSubService:
    service = node.find_service("pubsub")
    assert isinstance(service, PubSubService)
    return service


def id_of(node: Node, identity: str) -> str:
    """Return the id of the connection that an identity has on a node."""
    (found,) = [each.id for each in node.connections if each.identity == identity]
    return found


async def numbers(client: AnyClient, count: int) -> list[tuple[Any, int | None]]:
    """Return the next messages, each with its offset, if the client receives one."""
    found = []
    for _ in range(count):
        event = await client.event()
        assert event.kind == "message", event
        found.append((event.value, None if event.place is None else int(event.place.split(":")[1])))
    return found


@pytest.mark.parametrize("kind", ["json", "msgpack", "centrifuge", "pusher"])
async def test_all_but_the_excluded_connection_receive_it_and_positions_continue(nodes: Nodes, kind: str) -> None:
    urls = [await nodes.start(), await nodes.start()]
    async with AsyncExitStack() as stack:
        excluded, other, far = [
            await stack.enter_async_context(opened(kind, url, NEWS, token=token_of(identity)))
            for url, identity in ((urls[0], "ann"), (urls[0], "bob"), (urls[1], "ann"))
        ]
        await nodes.until_subscribed(3)
        node = nodes.gateways[1].node
        to = Selector(not_connection=id_of(nodes.gateways[0].node, "ann"))
        published = [
            service_of(node).published(NEWS, number, to=None if number % 3 else to) for number in range(1, COUNT + 1)
        ]
        positions = await asyncio.gather(*published)
        assert [each.offset for each in positions] == list(range(1, COUNT + 1))
        has_offsets = kind != "pusher"
        expected = [(number, number if has_offsets else None) for number in range(1, COUNT + 1)]
        assert await numbers(other, COUNT) == expected
        assert await numbers(far, COUNT) == expected, "another connection of the same identity is not excluded"
        remaining = [each for each in expected if each[0] % 3]
        assert await numbers(excluded, len(remaining)) == remaining
        await service_of(node).published(NEWS, "fence")
        assert (await excluded.event()).value == "fence"


async def test_history_has_it_for_all_and_the_excluded_client_recovers(nodes: Nodes) -> None:
    url = await nodes.start()
    node = nodes.gateways[0].node
    async with opened("json", url, NEWS, token=token_of("ann")) as client:
        await service_of(node).published(NEWS, "first")
        assert await client.message() == "first"
        to = Selector(not_connection=id_of(node, "ann"))
        hidden = await service_of(node).published(NEWS, "hidden", to=to)
        assert isinstance(hidden, Position) and hidden.offset == 2
        await service_of(node).published(NEWS, "last")
        assert await client.message() == "last"
        assert client.place is not None and client.place.split(":")[1] == "3"
    await service_of(node).published(NEWS, "missed")
    async with opened("json", url, NEWS, since=client.place, token=token_of("ann")) as again:
        assert await again.message() == "missed", "nothing is missing before it"
    found, _ = await node.channels.history_store.recent(f"pubsub:{NEWS}", 10)
    assert [each.payload for each in found] == [b'"first"', b'"hidden"', b'"last"', b'"missed"']
