"""Subscription tokens of clients/js on real nodes: renewal, refusal, expiry and revocation.

No message is delivered after the end of a subscription, and none before it is lost or repeated.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import jwt
import pytest
from aiohttp import web

from snorky.client.aio import Publisher
from tests.support.clients.js_crowd import JS
from tests.support.clients.js_tokens import JsTokens, running_js_tokens
from tests.support.clients.numbers import DEADLINE_S
from tests.support.processes.fleet import SECRET, Fleet, running_fleet
from tests.support.processes.nodes import NodeProcess
from tests.support.processes.tools import program
from tests.support.scenarios.pages import code_block

pytestmark = [
    pytest.mark.needs("redis-server", "nginx", "node"),
    pytest.mark.skipif(not (JS / "node_modules" / "ws").exists(), reason="needs ws: npm --prefix clients/js ci"),
]

CHANNEL = "orders:7"
RULES = [{"match": "orders:*", "history": 5000, "allow_subscribe": "token"}]


@asynccontextmanager
async def running_nodes(directory: Path) -> AsyncIterator[Fleet]:
    env = {
        "SNORKY_AUTH__HMAC_SECRET": SECRET,
        "SNORKY_AUTH__LEEWAY_S": "0",
        "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(RULES),
    }
    async with running_fleet(directory, nodes=3, env=env) as fleet:
        yield fleet


class Numbers:
    """Publishes 0, 1, 2, ... to the channel, until `end`."""

    def __init__(self, fleet: Fleet) -> None:
        self.count = 0
        self._redis_url = fleet.redis.url
        self._is_over = False
        self._running = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        async with Publisher(self._redis_url, timeout_s=DEADLINE_S) as publisher:
            while not self._is_over:
                await publisher.publish(CHANNEL, self.count)
                self.count += 1
                await asyncio.sleep(0.005)

    async def end(self) -> None:
        """Stop; Redis has accepted all numbers below `count`."""
        self._is_over = True
        await self._running


async def all_heard(client: JsTokens, numbers: Numbers) -> None:
    """Wait for every number. Raises AssertionError: one is missing, repeated or out of order."""
    await numbers.end()
    await client.wait_for("message", CHANNEL, count=numbers.count - client.heard(CHANNEL)[0])
    heard = client.heard(CHANNEL)
    assert heard == list(range(heard[0], numbers.count))


async def revoke_token(node: NodeProcess, token_id: str) -> None:
    request = {"service": "auth_backend", "message": {"command": "revokeToken", "params": {"jti": token_id}}}
    async with aiohttp.ClientSession() as session:
        async with session.post(f"http://127.0.0.1:{node.private_port}/backend", json=request) as response:
            assert (await response.json())["message"]["type"] == "response"


async def its_node(fleet: Fleet) -> tuple[NodeProcess, NodeProcess]:
    """Return the node of the only client, and another one."""
    nodes = sorted([(await node.metric("snorky_connections"), node.pid, node) for node in fleet.nodes])
    assert [connections for connections, *_ in nodes] == [0, 0, 1]
    return nodes[2][-1], nodes[0][-1]


async def test_tokens_are_renewed_in_time_and_asked_for_again_on_another_node(tmp_path: Path) -> None:
    async with running_nodes(tmp_path) as fleet, running_js_tokens(fleet.url, SECRET) as client:
        client.subscribe(CHANNEL, 3)
        await client.wait_for("ready", CHANNEL)
        numbers = Numbers(fleet)
        await client.wait_for("token", CHANNEL, count=4)  # so the first two have expired
        assert not client.of("unsubscribed") and not client.of("recovered") and not client.of("error")
        assert len(client.of("open")) == 1
        mine, _ = await its_node(fleet)
        mine.kill()
        await client.wait_for("recovered", CHANNEL)
        asked = len(client.of("token", CHANNEL))
        assert asked >= 5 and len(client.of("open")) == 2
        await client.wait_for("token", CHANNEL, count=asked + 2)
        await all_heard(client, numbers)
        assert len(client.of("recovered")) == 1 and not client.of("gap") and not client.of("unsubscribed")
        assert await client.close() == 0, "no timer keeps the process alive"


async def test_what_expires_while_the_function_fails_is_recovered_later(tmp_path: Path) -> None:
    async with running_nodes(tmp_path) as fleet, running_js_tokens(fleet.url, SECRET) as client:
        client.subscribe(CHANNEL, 4, "throw", "hang", "throw", 60)  # it expires while the third call hangs
        await client.wait_for("ready", CHANNEL)
        numbers = Numbers(fleet)
        await client.wait_for("recovered", CHANNEL)
        await all_heard(client, numbers)
        assert [each["code"] for each in client.of("error", CHANNEL)] == ["token"] * 2
        assert not client.of("gap") and not client.of("unsubscribed") and len(client.of("open")) == 1
        assert await client.close() == 0


async def test_refusals_have_their_reason_and_other_channels_do_not_wait(tmp_path: Path) -> None:
    async with running_nodes(tmp_path) as fleet, running_js_tokens(fleet.url, SECRET) as client:
        client.subscribe("orders:hang", "hang")
        client.subscribe("orders:other", "other")
        client.subscribe("orders:null", "null")
        client.subscribe("orders:old", -60, -60, 60)
        for channel, code in {"orders:other": "invalid_token", "orders:null": "not_authorized"}.items():
            assert (await client.wait_for("refused", channel))["code"] == code
            assert [each["code"] for each in client.of("error", channel)] == [code]
        await client.wait_for("ready", "orders:old")
        assert len(client.of("token", "orders:old")) == 3
        assert (await client.wait_for("error", "orders:hang"))["code"] == "token"
        assert len(client.of("open")) == 1
        assert await client.close() == 0, "a function that never answers does not keep the process alive"


async def test_revoked_token_ends_the_subscription_alone_and_for_good(tmp_path: Path) -> None:
    async with running_nodes(tmp_path) as fleet, running_js_tokens(fleet.url, SECRET) as client:
        client.subscribe(CHANNEL, 60)
        client.subscribe("orders:8", 60)
        await client.wait_for("ready", CHANNEL)
        await client.wait_for("ready", "orders:8")
        numbers = Numbers(fleet)
        await client.wait_for("message", CHANNEL, count=20)
        mine, other = await its_node(fleet)
        await revoke_token(other, client.of("token", CHANNEL)[0]["id"])
        ended = await client.wait_for("unsubscribed", CHANNEL)
        assert (ended["code"], ended["reason"]) == ("revoked", "Revoked")
        at = client.events.index(ended)
        mine.kill()
        await client.wait_for("recovered", "orders:8")
        await numbers.end()
        async with Publisher(fleet.redis.url) as publisher:
            await publisher.publish("orders:8", "fence")
        await client.wait_for("message", "orders:8")
        assert not [
            each
            for each in client.events[at + 1 :]
            if each["event"] in ("message", "token") and each["channel"] == CHANNEL
        ]
        heard = client.heard(CHANNEL)
        assert heard == list(range(heard[0], heard[0] + len(heard))), "none before the end was lost"
        assert [each["code"] for each in client.of("error")] == ["revoked"]
        assert await client.close() == 0


async def test_readme_example_with_tokens_works(tmp_path: Path) -> None:
    def token(**claims: object) -> str:
        now_s = time.time()
        return jwt.encode({"sub": "ann", "iat": now_s, "exp": now_s + 60, **claims}, SECRET, "HS256")

    async def give(request: web.Request) -> web.Response:
        return web.Response(text=token(channel=request.query["channel"], jti="t1"))

    block = code_block(JS / "README.md", "js", containing="{ token, recover: true }")
    app = web.Application()
    app.add_routes([web.get("/token", give)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with running_nodes(tmp_path) as fleet:
            here = {
                '"./snorky.js"': json.dumps(str(JS / "src" / "snorky.js")),
                "wss://example.org/ws": fleet.url,
                'fetch("/token").then((response) => response.text())': json.dumps(token()),
                "`/token?": f"`http://127.0.0.1:{runner.addresses[0][1]}/token?",
            }
            for there_it_says, here_it_is in here.items():
                assert there_it_says in block
                block = block.replace(there_it_says, here_it_is)
            (tmp_path / "readme.mjs").write_text(f"""
                import {{ WebSocket }} from {json.dumps(str(JS / "node_modules" / "ws" / "wrapper.mjs"))};
                globalThis.WebSocket ??= WebSocket;
                {block}
                await orders.ready;
                console.log("ready");
                client.on("error", () => client.close());
            """)
            process = await asyncio.create_subprocess_exec(
                program("node"), str(tmp_path / "readme.mjs"), stdout=asyncio.subprocess.PIPE
            )
            assert process.stdout is not None
            async with asyncio.timeout(DEADLINE_S), Publisher(fleet.redis.url) as publisher:
                assert await process.stdout.readline() == b"ready\n"
                await publisher.publish(CHANNEL, {"state": "paid"})
                assert await process.stdout.readline() == b"{ state: 'paid' }\n"
                await revoke_token(fleet.nodes[0], "t1")
                output, _ = await process.communicate()
            assert (process.returncode, output.decode()) == (0, "revoked Revoked\n")
    finally:
        await runner.cleanup()
