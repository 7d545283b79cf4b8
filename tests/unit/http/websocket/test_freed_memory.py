"""A connection that has ended is freed at once, without the garbage collector, which examines all connections."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snorky.gateway.connection.connection import Connection
from snorky.gateway.http.websocket.protocol import WebSocketProtocol
from tests.support.scenarios.site import RunningSite, on_both_loops, running_site, until

CLIENTS = 5


Kept = Callable[[], int]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """Return a function that counts the connections and protocols made since; the collector is off."""
    gc.collect()
    earlier = {id(each): each for each in _all()}  # of other tests
    gc.disable()
    yield lambda: sum(id(each) not in earlier for each in _all())
    gc.enable()


def _all() -> list[Any]:
    return [each for each in gc.get_objects() if type(each) in (Connection, WebSocketProtocol)]


async def has_ended(site: RunningSite, kept: Kept) -> None:
    await until(lambda: not site.node.counts["connections"], "the node notices that they have gone")
    site.echo.opened.clear()
    site.echo.closed.clear()
    await until(lambda: not kept(), "their objects are freed")


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_a_client_that_goes_is_freed(kept: Kept) -> None:
    async with running_site() as site:
        for _ in range(CLIENTS):
            await site.subscriber()
        assert kept() == 2 * CLIENTS
        for client in site.clients:
            client.reset()
        await has_ended(site, kept)


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_a_client_that_is_closed_is_freed(kept: Kept) -> None:
    async with running_site() as site:
        clients = [await site.subscriber() for _ in range(CLIENTS)]
        for connection in list(site.node.connections):
            connection.close(4000)
        del connection
        for client in clients:
            assert await client.closed() == 4000
            client.close()
        await has_ended(site, kept)
