"""clients/js in Node on real nodes: with any faults of nodes and connections, each message comes once and in order."""

import asyncio
import json
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import jwt
import pytest
from redis.asyncio import Redis

from snorky.client import PublishError
from snorky.client.aio import Publisher
from tests.support.clients.js_crowd import JS, running_js_crowd
from tests.support.clients.numbers import CHANNELS, DEADLINE_S, publishing
from tests.support.processes.fleet import SECRET, running_fleet
from tests.support.processes.proxy import FaultProxy
from tests.support.processes.tools import eventually, program
from tests.support.scenarios.pages import code_block
from tests.support.scenarios.tokens import TOKENS_AND_OPEN_PUBSUB

pytestmark = [
    pytest.mark.needs("redis-server", "nginx", "node"),
    pytest.mark.skipif(not (JS / "node_modules" / "ws").exists(), reason="needs ws: npm --prefix clients/js ci"),
]

CLIENTS = 60


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_connections_that_are_cut_again_and_again_cost_nothing(tmp_path: Path, encoding: str) -> None:
    async with running_fleet(tmp_path, nodes=1) as fleet:
        async with FaultProxy("127.0.0.1", fleet.nodes[0].public_port) as proxy:
            url = f"ws://127.0.0.1:{proxy.port}/ws"
            async with running_js_crowd(url, count=CLIENTS, encoding=encoding) as clients:
                async with publishing(fleet.redis.url, clients) as numbers:
                    for number in range(5):
                        proxy.cut()
                        await numbers.more(40)
                        if number < 2:  # later cuts may also hit clients that are still connecting
                            await proxy.until_connected((number + 2) * CLIENTS)
                assert proxy.connections >= 3 * CLIENTS


async def test_killed_node_costs_its_clients_nothing(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=3) as fleet, running_js_crowd(fleet.url, count=CLIENTS) as clients:
        async with publishing(fleet.redis.url, clients) as numbers:
            fleet.nodes[0].kill()
            await fleet.nodes[0].wait()
            await numbers.more(100)
        assert {close["code"] for close in clients.closes} == {1006}


async def test_drained_node_is_left_before_it_closes_anybody(tmp_path: Path) -> None:
    env = {"SNORKY_PUBLIC__DRAIN_GRACE_S": "8"}  # each client has 2 s of it to move
    async with (
        running_fleet(tmp_path, nodes=3, env=env) as fleet,
        running_js_crowd(fleet.url, count=CLIENTS) as clients,
    ):
        async with publishing(fleet.redis.url, clients) as numbers:
            leaving = int(await fleet.nodes[0].metric("snorky_connections"))
            fleet.nodes[0].terminate()
            assert await fleet.nodes[0].wait() == 0
            await numbers.more(50)
        report = await clients.report()
        assert leaving > 0
        assert (report["moves"], report["opens"]) == (leaving, CLIENTS + leaving)
        assert clients.closes == []


async def test_publications_of_a_known_client_are_taken_once_over_cut_connections(tmp_path: Path) -> None:
    now_s = time.time()
    token = jwt.encode({"sub": "ann", "iat": now_s, "exp": now_s + 300}, SECRET, "HS256")
    count = 600
    async with running_fleet(tmp_path, nodes=1, env=TOKENS_AND_OPEN_PUBSUB) as fleet:
        async with FaultProxy("127.0.0.1", fleet.nodes[0].public_port) as proxy:
            url = f"ws://127.0.0.1:{proxy.port}/ws"
            async with running_js_crowd(url, count=1, token=token) as clients:
                proxy.delay_s = 0.02  # so that messages are in flight when it is cut
                for first in range(0, count, 150):
                    published = asyncio.ensure_future(
                        clients.ask({"publish": ["kept:0", first, first + 150]}, "published")
                    )
                    await asyncio.wait([published], timeout=0.05)
                    proxy.cut()
                    assert (await published)["outcomes"] == {"done": 150}

                async def have_heard() -> list[int]:
                    heard: list[int] = (await clients.report())["heard"][0]
                    return heard if len(heard) >= count else []

                heard = await eventually(have_heard, within_s=DEADLINE_S, what="every publication was delivered")
                assert Counter(heard) == Counter(range(count))
            assert proxy.connections > 2


async def test_messages_lost_by_redis_are_a_gap_and_delivery_continues(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=1) as fleet, running_js_crowd(fleet.url, count=CHANNELS) as clients:
        async with Publisher(fleet.redis.url) as publisher:
            await publisher.publish("kept:0", "before")
            async with Redis.from_url(fleet.redis.url) as redis:
                await redis.flushall()

            async def is_taken() -> bool:
                with suppress(PublishError):  # refused until a node has restored the channel rules
                    await publisher.publish("kept:0", "after", key="after")
                    return True
                return False

            await eventually(is_taken, within_s=DEADLINE_S, what="the nodes have restored their rules")

            async def is_told() -> bool:
                report = await clients.report()
                return report["heard"][0][-1:] == ["after"] and bool(report["gaps"])

            await eventually(is_told, within_s=DEADLINE_S, what="the gap is reported, and later messages arrive")
        assert clients.closes == []


async def test_token_is_replaced_before_it_expires_and_the_connection_stays(tmp_path: Path) -> None:
    env = {**TOKENS_AND_OPEN_PUBSUB, "SNORKY_AUTH__LEEWAY_S": "0"}
    async with running_fleet(tmp_path, nodes=1, env=env) as fleet:
        async with running_js_crowd(fleet.url, count=1, token=f"hs256:{SECRET}:3") as clients:
            while clients.tokens < 4:  # so the first two have expired
                await clients.event("token")
            published = await clients.ask({"publish": ["kept:0", 0, 1]}, "published")
            assert published["outcomes"] == {"done": 1}
            assert (await clients.report())["opens"] == 1
        assert clients.closes == []


async def test_readme_of_the_client_works_unchanged(tmp_path: Path) -> None:
    token = jwt.encode({"sub": "ann", "iat": time.time(), "exp": time.time() + 60}, SECRET, "HS256")
    block = code_block(JS / "README.md", "js", containing="my_command")
    async with running_fleet(tmp_path, nodes=1, env=TOKENS_AND_OPEN_PUBSUB) as fleet:
        here = {
            '"./snorky.js"': json.dumps(str(JS / "src" / "snorky.js")),
            "wss://example.org/ws": fleet.url,
            'fetch("/token").then((response) => response.text())': json.dumps(token),
            '"my_service", "my_command"': '"gateway", "info"',
            "{ a: 1 }": "{}",
            '"news"': '"kept:news"',
            "news.close();": "await heard; news.close();",
        }
        for there_it_says, here_it_is in here.items():
            assert there_it_says in block
            block = block.replace(there_it_says, here_it_is)
        program_text = f"""
            import {{ WebSocket }} from {json.dumps(str(JS / "node_modules" / "ws" / "wrapper.mjs"))};
            globalThis.WebSocket ??= WebSocket;
            const log = console.log;
            const heard = new Promise((resolve) => (console.log = (...words) => resolve(log(...words))));
            {block}
            client.close();
        """
        (tmp_path / "readme.mjs").write_text(program_text)
        process = await asyncio.create_subprocess_exec(
            program("node"), str(tmp_path / "readme.mjs"), stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(DEADLINE_S):
            output, _ = await process.communicate()
        assert (process.returncode, output.decode()) == (0, "{ headline: '...' } 1\n")


async def test_bad_token_is_the_end_of_a_client(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=1, env=TOKENS_AND_OPEN_PUBSUB) as fleet:
        with pytest.raises(AssertionError, match="ended"):
            async with running_js_crowd(fleet.url, count=1, token="made-up"):
                raise RuntimeError("it was let in")
