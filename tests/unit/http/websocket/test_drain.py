"""Draining: a notice, then 1001, spread over the grace period; no new connections."""

import asyncio
import json

from snorky.gateway.config.settings import Limits
from snorky.gateway.http.websocket import drain as module
from snorky.gateway.http.websocket.drain import drain
from tests.support.clients.raw_ws import CLOSE, TEXT, RawClient, close_payload, frame
from tests.support.scenarios.site import on_both_loops, running_site, until


async def leave(client: RawClient) -> tuple[float, float, int]:
    """Be a client that is sent away; returns the times of notice and close, and the announced time in ms."""
    loop = asyncio.get_running_loop()
    opcode, payload = await client.receive()
    noticed_s = loop.time()
    notice = json.loads(payload)
    assert opcode == TEXT and notice["service"] == "gateway" and notice["message"]["type"] == "moving"
    assert await client.receive() == (CLOSE, close_payload(1001, b"Going away"))
    closed_s = loop.time()
    await client.send(frame(CLOSE, close_payload(1001)))
    assert await client.until_end() == b""
    client.close()
    return noticed_s, closed_s, notice["message"]["graceMs"]


@on_both_loops
async def test_clients_are_notified_then_closed_in_turn_within_the_grace_period() -> None:
    async with running_site(limits=Limits(connections_per_ip=0)) as site:
        clients = [await site.client() for _ in range(40)]
        leaving = [asyncio.ensure_future(leave(client)) for client in clients]
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        await drain(site.node, 1.0)
        took_s = loop.time() - started_s
        times = [await each for each in leaving]
        assert took_s < 1.0 + module.GONE_TIMEOUT_S, "the drain waited for a client"
        assert {grace_ms for _, _, grace_ms in times} == {250}
        for noticed_s, closed_s, _ in times:
            assert closed_s - noticed_s >= 0.25 - module.PACE_S, "a client has time to open its next connection"
        notices = sorted(noticed_s for noticed_s, _, _ in times)
        assert notices[-1] - notices[0] > 0.4, "too many at once"
        assert len({round((noticed_s - started_s) / module.PACE_S) for noticed_s in notices}) >= 6
        assert site.sample("connections_closed_total", code="1001") == 40
        assert site.sample("draining") == 1


@on_both_loops
async def test_new_connections_are_refused_from_the_start_of_the_drain() -> None:
    async with running_site() as site:
        client = await site.client()
        draining = asyncio.ensure_future(drain(site.node, 0.2))
        await until(lambda: site.node.is_draining)
        response = await (await site.open()).handshake()
        assert response.status == 503 and response.headers["retry-after"] == "5"
        assert site.sample("handshakes_rejected_total", reason="draining") == 1
        assert not site.node.is_ready
        private = await RawClient.open(*site.private_address)
        await private.send(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await private.response()).status == 503
        private.close()
        await leave(client)
        await draining


@on_both_loops
async def test_clients_that_left_or_do_not_read_delay_no_other() -> None:
    async with running_site() as site:
        clients = [await site.client() for _ in range(6)]
        draining = asyncio.ensure_future(drain(site.node, 0.4))
        clients[0].reset()
        clients[1].close()
        # [2] never answers the close frame, [3] never even reads: the wheel closes their connections
        leaving = [asyncio.ensure_future(leave(each)) for each in clients[4:]]
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        await asyncio.gather(*leaving)
        await draining
        assert loop.time() - started_s < 0.4 + module.GONE_TIMEOUT_S + 0.5
        await until(lambda: site.node.counts["connections"] == 0)


@on_both_loops
async def test_messages_are_served_until_the_end() -> None:
    async with running_site() as site:
        client = await site.client()
        draining = asyncio.ensure_future(drain(site.node, 0.4))
        assert (await client.message())["message"]["type"] == "moving"
        await client.send(frame(TEXT, b'{"service":"echo","message":1}'))
        assert await client.message() == {"service": "echo", "message": 1}
        assert await client.closed() == 1001
        await draining


@on_both_loops
async def test_no_grace_and_no_clients_end_at_once() -> None:
    async with running_site() as site:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        await drain(site.node, 0.0)
        assert loop.time() - started_s < 0.2
    async with running_site() as site:
        clients = [await site.client() for _ in range(3)]
        leaving = [asyncio.ensure_future(leave(client)) for client in clients]
        await drain(site.node, 0.0)
        assert {grace_ms for _, _, grace_ms in [await each for each in leaving]} == {0}


@on_both_loops
async def test_a_drain_visits_each_connection_only_a_few_times() -> None:
    """50,000 connections: with work that grows with their square a node would never finish draining."""

    class Connection:
        is_closed = False
        looks = 0

        def send(self, _value: object) -> None:
            pass

        def close(self, _code: int, _reason: str) -> None:
            node.left.discard(self)

        def __getattribute__(self, name: str) -> object:
            if name in ("is_closed", "send", "close"):
                Connection.looks += 1
            return object.__getattribute__(self, name)

    class Node:
        def begin_drain(self) -> None:
            pass

        def __init__(self) -> None:
            self.left: set[object] = {Connection() for _ in range(20_000)}

        @property
        def connections(self) -> object:
            return iter(tuple(self.left))

    node = Node()
    await drain(node, 0.5)  # type: ignore[arg-type]
    assert Connection.looks == 3 * 20_000 and not node.left
