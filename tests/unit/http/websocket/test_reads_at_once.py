"""Many clients that each send one small message at the same moment: the loop serves others in between."""

import asyncio
import json
import time
from typing import Any

from snorky.gateway.http.websocket.turns import AT_ONCE_S, SHARE_S
from tests.support.clients.raw_ws import CLOSE, TEXT, RawClient, frame
from tests.support.scenarios.site import RunningSite, on_both_loops, running_site, until

CLIENTS = 60
TAKES_S = AT_ONCE_S / 2  # a message
MOST = round((2 * AT_ONCE_S + SHARE_S) / TAKES_S) + 2  # messages in an iteration: each limit may be exceeded by one


def message(value: Any) -> bytes:
    return frame(TEXT, json.dumps({"service": "echo", "message": value}).encode())


def make_slow(site: RunningSite) -> list[int]:
    """Make each message take its time; returns, for each, the iteration of the loop that processed it."""
    iterations, receive = [0], site.echo.on_message
    found: list[int] = []

    def count() -> None:
        iterations[0] += 1
        asyncio.get_running_loop().call_soon(count)

    def on_message(connection: Any, value: Any) -> Any:
        found.append(iterations[0])
        end_s = time.perf_counter() + TAKES_S
        while time.perf_counter() < end_s:
            pass
        return receive(connection, value)

    site.echo.on_message = on_message  # type: ignore[method-assign]
    count()
    return found


def send_now(client: RawClient, data: bytes) -> None:
    """Send without the loop, which the test blocks."""
    assert client.sock.send(data) == len(data)


@on_both_loops
async def test_each_of_many_clients_gets_its_answer() -> None:
    async with running_site() as site:
        clients = [await site.client() for _ in range(CLIENTS)]
        found = make_slow(site)
        for number, client in enumerate(clients):
            send_now(client, message(number))
        for number, client in enumerate(clients):
            assert (await client.message())["message"] == number
        assert len(found) == CLIENTS
        assert max(map(found.count, found)) <= MOST, "an iteration processed too many"
        await until(lambda: site.sample("queued_clients") == 0, "no client waits any more")


@on_both_loops
async def test_messages_that_follow_while_the_first_waits_keep_their_order() -> None:
    """The second comes in a read of its own, or a part of it does."""
    async with running_site() as site:
        clients = [await site.client() for _ in range(CLIENTS)]
        make_slow(site)
        for client in clients:
            send_now(client, message("first"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second = message("second") + message("third")
        for number, client in enumerate(clients):
            send_now(client, second[: 5 + number % 20])
        await asyncio.sleep(0)
        for number, client in enumerate(clients):
            send_now(client, second[5 + number % 20 :])
        for client in clients:
            assert [(await client.message())["message"] for _ in range(3)] == ["first", "second", "third"]
        await until(lambda: site.sample("queued_clients") == 0, "no client waits any more")


@on_both_loops
async def test_a_message_is_processed_though_its_client_goes_at_once() -> None:
    async with running_site() as site:
        clients = [await site.client() for _ in range(CLIENTS)]
        make_slow(site)
        for number, client in enumerate(clients):
            send_now(client, message(number))
            if number % 3 == 0:
                client.end()
            elif number % 3 == 1:
                send_now(client, frame(CLOSE, (1000).to_bytes(2, "big")))
        await until(lambda: len(site.echo.seen) == CLIENTS, "each message is processed")
        assert sorted(site.echo.seen) == list(range(CLIENTS))


@on_both_loops
async def test_a_client_that_resets_its_connection_leaves_nothing() -> None:
    async with running_site() as site:
        clients = [await site.client() for _ in range(CLIENTS)]
        make_slow(site)
        for number, client in enumerate(clients):
            send_now(client, message(number))
        await asyncio.sleep(0)
        for client in clients[::2]:
            client.reset()
        for number, client in enumerate(clients):
            if number % 2:
                assert (await client.message())["message"] == number
        await until(lambda: site.node.counts["connections"] == CLIENTS // 2, "the node notices the resets")


@on_both_loops
async def test_a_client_that_does_not_read_is_bounded_while_it_waits() -> None:
    """Its first message waits; of what follows, the node reads no more than one read."""
    async with running_site() as site:
        clients = [await site.client() for _ in range(CLIENTS)]
        make_slow(site)
        for client in clients:
            send_now(client, message("first"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        sent, piece = 0, message("x" * 60_000)
        while sent < 4 * len(piece):
            try:
                sent += clients[-1].sock.send((piece * 4)[sent:])
            except BlockingIOError:
                pass
            waiting = [each._wire._work for each in site.node.connections]  # type: ignore[attr-defined]
            assert all(len(each) <= 300_000 for each in waiting if isinstance(each, bytes))
            await asyncio.sleep(0)
        assert (await clients[-1].message())["message"] == "first"
        for _ in range(4):
            assert len((await clients[-1].message())["message"]) == 60_000
