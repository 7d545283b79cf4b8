"""Publications are read from Redis between the callbacks of clients, in one iteration of the event loop too."""

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from snorky.gateway.connection.pace import PORTION
from snorky.gateway.delivery import interleaved_reads
from snorky.gateway.delivery.interleaved_reads import InterleavedReads
from snorky.gateway.http.protocols.centrifuge.websocket import CentrifugeWebSocket
from snorky.gateway.http.protocols.pusher.websocket import PusherWebSocket
from snorky.gateway.http.protocols.raw.websocket import RawWebSocket
from snorky.gateway.http.sockjs.websocket import SockJSWebSocket
from snorky.gateway.http.websocket.protocol import WebSocketProtocol
from tests.support.clients.raw_ws import TEXT, RawClient, frame, handshake_head
from tests.support.scenarios.site import RunningSite, gone, on_both_loops, running_site, until

CLIENTS = 4
CALL = frame(TEXT, b'{"service":"echo","message":1}')


class Order:
    """The order of reads and of what clients do. All of it is slow enough for a read to be due before the next."""

    def __init__(self, site: RunningSite) -> None:
        self.seen: list[str] = []
        site.node.interleaved_reads = InterleavedReads(lambda: self.seen.append("read"))

    def noted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a method."""

        def noting(*args: Any, **options: Any) -> Any:
            self.seen.append(name)
            time.sleep(2 * interleaved_reads.PERIOD_S)
            return method(*args, **options)

        return noting


async def clients_of(site: RunningSite) -> list[RawClient]:
    return [await site.client() for _ in range(CLIENTS)]


@on_both_loops
async def test_a_read_comes_before_each_slow_message(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_site() as site:
        clients = await clients_of(site)
        order = Order(site)
        monkeypatch.setattr(site.echo, "on_message", order.noted("message", site.echo.on_message))
        await asyncio.gather(*(each.send(CALL) for each in clients))
        await until(lambda: order.seen.count("message") == CLIENTS)
        assert order.seen == ["read", "message"] * CLIENTS


@on_both_loops
async def test_a_read_comes_before_each_client_that_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_site() as site:
        await clients_of(site)
        order = Order(site)
        monkeypatch.setattr(site.node, "disconnect", order.noted("lost", site.node.disconnect))
        await gone(site)
        assert order.seen == ["read", "lost"] * CLIENTS


@on_both_loops
async def test_a_read_comes_before_each_accepted_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_site() as site:
        order, gate = Order(site), site.handler.endpoint.gate
        monkeypatch.setattr(gate, "enter", order.noted("accepted", gate.enter))
        clients = [await site.open() for _ in range(CLIENTS)]
        await until(lambda: order.seen.count("accepted") == len(clients))
        assert order.seen == ["read", "accepted"] * CLIENTS


@on_both_loops
async def test_a_read_comes_before_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_site() as site:
        clients = [await site.open() for _ in range(CLIENTS)]
        await until(lambda: len(site.site._door._waiting) == CLIENTS)  # type: ignore[union-attr]
        order = Order(site)
        monkeypatch.setattr(site.site._door, "decide", order.noted("request", lambda _arrival: None))
        await asyncio.gather(*(each.send(handshake_head()) for each in clients))
        await until(lambda: order.seen.count("request") == CLIENTS)
        assert order.seen == ["read", "request"] * CLIENTS


@on_both_loops
async def test_a_read_comes_before_each_handshake_that_has_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_site() as site:
        order = Order(site)
        monkeypatch.setattr(site.handler, "accept", order.noted("handshake", site.handler.accept))
        clients = [await site.open() for _ in range(3 * PORTION)]
        await asyncio.gather(*(each.send(handshake_head()) for each in clients))
        for each in clients:
            assert (await each.response()).status == 101
        assert order.seen.count("handshake") == len(clients)
        assert ("handshake", "handshake") not in pairwise(order.seen)


@pytest.mark.parametrize("kind", [CentrifugeWebSocket, PusherWebSocket, RawWebSocket, SockJSWebSocket])
def test_clients_of_all_protocols_are_whole_while_publications_are_read(kind: type[WebSocketProtocol]) -> None:
    """A client that has released a part of itself must not receive anything."""
    for name in ("connection_lost", "data_received"):
        assert getattr(kind, name) is getattr(WebSocketProtocol, name), "override `release` or `_on_frame`"


def test_reads_are_a_period_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, reads = 10.0, 0

    def count() -> None:
        nonlocal reads
        reads += 1

    monkeypatch.setattr(interleaved_reads, "perf_counter", lambda: now_s)
    each = InterleavedReads(count)
    for _ in range(100):
        each.tick()
    assert reads == 1
    now_s += interleaved_reads.PERIOD_S
    each.tick()
    assert reads == 2


def test_clients_have_their_time_after_a_long_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each of 1,000 clients in one iteration would wait for a whole delivery more."""
    now_s, reads = 10.0, 0

    def deliver() -> None:
        nonlocal now_s, reads
        now_s += 0.003
        reads += 1

    monkeypatch.setattr(interleaved_reads, "perf_counter", lambda: now_s)
    each = InterleavedReads(deliver)
    begun_s, clients_s = now_s, 0.0
    for _ in range(1_000):
        each.tick()
        now_s += 0.000_05
        clients_s += 0.000_05
    assert reads == 5 and now_s - begun_s <= 1.25 * clients_s + 0.003
