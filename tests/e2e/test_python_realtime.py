"""snorky.client.aio.Client on real nodes: with any faults of nodes and connections, nothing is lost or duplicated."""

import asyncio
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from snorky.client import Publication, SnorkyError
from snorky.client.aio import Client, Message, Publisher, Recovered
from snorky.client.errors import ConnectionEnded
from tests.support.clients.numbers import publishing
from tests.support.clients.python_crowd import running_python_crowd
from tests.support.processes.fleet import SECRET, running_fleet
from tests.support.processes.proxy import FaultProxy
from tests.support.scenarios.tokens import TOKENS_AND_OPEN_PUBSUB

pytestmark = pytest.mark.needs("redis-server", "nginx")

CLIENTS = 60


async def test_killed_node_costs_its_clients_nothing(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=3) as fleet, running_python_crowd(fleet.url, count=CLIENTS) as clients:
        async with publishing(fleet.redis.url, clients) as numbers:
            fleet.nodes[0].kill()
            await fleet.nodes[0].wait()
            await numbers.more(100)


async def test_permanent_errors_are_raised_at_once(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=1) as fleet:
        where = f"127.0.0.1:{fleet.nodes[0].public_port}"
        origin = {"connect_options": {"origin": "https://evil.example"}}
        cases: list[tuple[str, dict[str, Any], int | None, str]] = [
            (f"ws://{where}/wrong", {}, 404, "HTTP 404: Not Found"),
            (f"ws://{where}/ws", origin, 403, "Origin not allowed"),
            (f"wss://{where}/ws", {}, None, "no TLS"),
        ]
        for url, options, status, reason in cases:
            async with asyncio.timeout(20), Client(url, **options) as client:
                with pytest.raises(ConnectionEnded, match=reason) as caught:
                    await client.subscribe("news").ready()
            assert caught.value.status == status


async def test_clients_leave_a_draining_node_without_losing_messages(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=3) as fleet, running_python_crowd(fleet.url, count=CLIENTS) as clients:
        async with publishing(fleet.redis.url, clients) as numbers:
            fleet.nodes[0].terminate()
            assert await fleet.nodes[0].wait() == 0
            await numbers.more(50)


async def test_connections_that_are_cut_again_and_again_cost_nothing(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=1) as fleet:
        async with FaultProxy("127.0.0.1", fleet.nodes[0].public_port) as proxy:
            async with running_python_crowd(f"ws://127.0.0.1:{proxy.port}/ws", count=CLIENTS) as clients:
                async with publishing(fleet.redis.url, clients) as numbers:
                    for number in range(5):
                        proxy.cut()
                        await numbers.more(40)
                        if number < 2:  # later cuts may also hit clients that are still connecting
                            await proxy.until_connected((number + 2) * CLIENTS)
            assert proxy.connections >= 3 * CLIENTS


async def test_publishes_of_a_client_with_a_token_are_taken_once_over_cut_connections(tmp_path: Path) -> None:
    def token() -> str:
        now_s = time.time()
        return jwt.encode({"sub": "ann", "iat": now_s, "exp": now_s + 60}, SECRET, "HS256")

    env = TOKENS_AND_OPEN_PUBSUB
    async with running_fleet(tmp_path, nodes=1, env=env) as fleet:
        async with FaultProxy("127.0.0.1", fleet.nodes[0].public_port) as proxy:
            options: dict[str, Any] = {"token": token, "backoff_base_s": 0.05, "backoff_max_s": 0.2}
            async with Client(f"ws://127.0.0.1:{proxy.port}/ws", **options) as client:
                async with client.subscribe("kept:mine", recover=True) as mine:
                    proxy.delay_s = 0.02  # so that messages are in flight when it is cut
                    for first in range(0, 600, 150):
                        batch = range(first, first + 150)
                        publishes = [asyncio.ensure_future(client.publish("kept:mine", n)) for n in batch]
                        await asyncio.wait(publishes, timeout=0.05)
                        proxy.cut()
                        await asyncio.gather(*publishes)
                    heard = []
                    async with asyncio.timeout(20):
                        while len(heard) < 600:
                            event = await anext(mine)
                            if isinstance(event, Message):
                                heard.append(event.data)
                            else:
                                assert isinstance(event, Recovered) and event.is_recovered
                    assert sorted(heard) == list(range(600))
                    assert proxy.connections > 2


async def test_refused_calls_have_the_gateways_reason(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=1, env=TOKENS_AND_OPEN_PUBSUB) as fleet:
        async with Client(fleet.url) as client:
            with pytest.raises(SnorkyError) as refused:
                await client.call("chat", "join", channel="lobby")
            assert refused.value.code == "not_authenticated"
            info = await client.call("gateway", "info")
            assert info["encoding"] == "json"
        for bearer in ("header", "subprotocol"):
            async with Client(fleet.url, token="made.up.token", bearer=bearer) as client:  # type: ignore[arg-type]
                with pytest.raises(ConnectionEnded, match="4501"):
                    async with asyncio.timeout(30.0), client.subscribe("news") as news:
                        await anext(news)


async def test_burst_that_is_larger_than_any_buffer_is_read_to_its_end(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=1) as fleet, Publisher(fleet.redis.url) as publisher:
        async with Client(fleet.url, events_max=100) as client, client.subscribe("kept:b", recover=True) as burst:
            numbers = range(4_000)
            publishing = asyncio.ensure_future(publisher.publish_many(Publication("kept:b", n) for n in numbers))
            async with asyncio.timeout(30):
                heard = [await anext(burst) for _ in numbers]
            assert [event.data for event in heard if isinstance(event, Message)] == list(numbers)
            await publishing


async def test_client_on_a_slow_link_recovers_in_one_attempt(tmp_path: Path) -> None:
    """Receiving all missed messages takes longer than its timeouts for an answer and for a ping."""
    count, size, bytes_per_s, timeout_s = 280, 1_100, 60_000, 3.0
    assert count * size / bytes_per_s > 1.5 * timeout_s
    async with running_fleet(tmp_path, nodes=1) as fleet, Publisher(fleet.redis.url) as publisher:
        first = await publisher.publish("kept:a", "first")
        numbers = range(count)
        await publisher.publish_many(Publication("kept:a", f"{number:0{size}}") for number in numbers)
        async with FaultProxy("127.0.0.1", fleet.nodes[0].public_port) as proxy:
            proxy.bytes_per_s = bytes_per_s
            options = {"call_timeout_s": timeout_s, "ping_interval_s": 1.0}
            async with Client(f"ws://127.0.0.1:{proxy.port}/ws", **options) as client:
                async with asyncio.timeout(60), client.subscribe("kept:a", recover=str(first.position)) as late:
                    heard = [await anext(late) for _ in numbers]
                    await publisher.publish("kept:a", "live")
                    live = await anext(late)
            assert [int(event.data) for event in heard if isinstance(event, Message)] == list(numbers)
            assert isinstance(live, Message) and live.data == "live"
            assert proxy.connections == 1


async def test_gateway_that_vanished_is_noticed_by_its_silence(tmp_path: Path) -> None:
    env = {"SNORKY_PUBLIC__PING_INTERVAL_S": "120"}  # or it notices itself, and ends the connection
    async with running_fleet(tmp_path, nodes=1, env=env) as fleet, Publisher(fleet.redis.url) as publisher:
        async with FaultProxy("127.0.0.1", fleet.nodes[0].public_port) as proxy:
            url = f"ws://127.0.0.1:{proxy.port}/ws"
            async with Client(url, ping_interval_s=0.5) as client, client.subscribe("kept:a", recover=True) as kept:
                await kept.ready()
                proxy.swallow()
                proxy.heal()  # for new connections: the existing one receives nothing, and no close
                await publisher.publish("kept:a", 1)
                async with asyncio.timeout(20):
                    heard = [await anext(kept), await anext(kept)]
            assert isinstance(heard[0], Recovered) and heard[0].is_recovered
            assert isinstance(heard[1], Message) and heard[1].data == 1
            assert proxy.connections == 2


async def test_lost_history_is_reported(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=1) as fleet, Publisher(fleet.redis.url) as publisher:
        first = await publisher.publish("kept:a", 1)
        await publisher.publish("kept:a", 2)
        position = str(first.position)
        async with Client(fleet.url) as client, client.subscribe("kept:a", recover=position) as still_there:
            assert (await anext(still_there)) == Message("kept:a", 2, 2, still_there.position)
        async with Client(fleet.url) as client:
            async with client.subscribe("kept:a", recover="0:1:0") as gone:
                event = await anext(gone)
                assert isinstance(event, Recovered) and not event.is_recovered
                await publisher.publish("kept:a", 3)
                assert (await anext(gone)) == Message("kept:a", 3, 3, gone.position)
