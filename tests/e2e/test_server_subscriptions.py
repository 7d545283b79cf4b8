"""Server-side subscriptions of both clients on three nodes: recovered after kill -9, and ended by the backend."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from snorky.client import AsyncSnorkyBackend, SnorkyError, SnorkyHTTPTransport
from snorky.client.aio import Client, Message, Publisher, Recovered, Subscription
from snorky.client.control import AsyncControl
from snorky.client.errors import ConnectionEnded
from snorky.client.tokens import Signer
from tests.support.clients.js_crowd import JS
from tests.support.clients.js_tokens import JsTokens, running_js_tokens
from tests.support.processes.fleet import SECRET, Fleet, running_fleet
from tests.support.processes.nodes import NodeProcess
from tests.support.processes.tools import eventually, program
from tests.support.scenarios.pages import code_block

pytestmark = [
    pytest.mark.needs("redis-server", "nginx", "node"),
    pytest.mark.skipif(not (JS / "node_modules" / "ws").exists(), reason="needs ws: npm --prefix clients/js ci"),
]

KEY = "the-key-of-the-backend-in-these-tests"
CHANNEL = "orders:7"
RULES = [{"match": "orders:*", "history": 5000, "allow_subscribe": "nobody"}]
DEADLINE_S = 30.0


class Listener(Protocol):
    """The events of one client. begun: number of subscriptions that began. ends: the codes of their ends."""

    @property
    def begun(self) -> int: ...

    @property
    def numbers(self) -> list[Any]: ...

    @property
    def recoveries(self) -> int: ...

    @property
    def is_whole(self) -> bool: ...

    @property
    def ends(self) -> list[str]: ...


class PythonListener:
    def __init__(self) -> None:
        self.begun = 0
        self.ends: list[str] = []
        self._events: list[Any] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def on_subscribed(self, subscription: Subscription) -> None:
        self.begun += 1
        self._tasks.add(asyncio.create_task(self._read(subscription)))

    async def _read(self, subscription: Subscription) -> None:
        try:
            async for event in subscription:
                self._events.append(event)
        except SnorkyError as error:
            self.ends.append(error.code)
        except ConnectionEnded:
            pass

    @property
    def numbers(self) -> list[Any]:
        return [each.data for each in self._events if isinstance(each, Message)]

    @property
    def recoveries(self) -> int:
        return sum(isinstance(each, Recovered) for each in self._events)

    @property
    def is_whole(self) -> bool:
        others = [each for each in self._events if not isinstance(each, Message)]
        return all(isinstance(each, Recovered) and each.is_recovered for each in others)


class JsListener:
    def __init__(self, client: JsTokens) -> None:
        self._client = client

    @property
    def begun(self) -> int:
        return len(self._client.of("subscribed", CHANNEL))

    @property
    def numbers(self) -> list[Any]:
        return self._client.heard(CHANNEL)

    @property
    def recoveries(self) -> int:
        return len(self._client.of("recovered", CHANNEL))

    @property
    def is_whole(self) -> bool:
        return not self._client.of("gap")

    @property
    def ends(self) -> list[str]:
        return [each["code"] for each in self._client.of("unsubscribed", CHANNEL)]


@asynccontextmanager
async def running_client(kind: str, url: str) -> AsyncIterator[Listener]:
    """Run a client of ann."""
    if kind == "js":
        async with running_js_tokens(url, SECRET) as client:
            yield JsListener(client)
        return
    listener, token = PythonListener(), Signer(hmac_secret=SECRET).connection_token("ann")
    options: dict[str, Any] = {"backoff_base_s": 0.05, "backoff_max_s": 0.5, "on_subscribed": listener.on_subscribed}
    async with Client(url, token=token, **options) as python:
        await python.call("gateway", "info")
        yield listener


async def until(condition: Callable[[], object], what: str) -> None:
    async def holds() -> bool:
        return bool(condition())

    await eventually(holds, within_s=DEADLINE_S, what=what)


@asynccontextmanager
async def control(node: NodeProcess) -> AsyncIterator[AsyncControl]:
    transport = SnorkyHTTPTransport(f"http://127.0.0.1:{node.private_port}/backend", key=KEY)
    async with AsyncSnorkyBackend(transport) as backend:
        yield AsyncControl(backend)


async def its_node(fleet: Fleet) -> tuple[NodeProcess, NodeProcess]:
    """Return the node of the only client, and another one."""
    nodes = sorted([(await node.metric("snorky_connections"), node.pid, node) for node in fleet.nodes])
    return nodes[-1][-1], nodes[0][-1]


@pytest.mark.parametrize("kind", ["python", "js"])
async def test_client_recovers_after_its_node_was_killed_and_is_ended_also_while_it_is_away(
    tmp_path: Path, kind: str
) -> None:
    env = {
        "SNORKY_AUTH__HMAC_SECRET": SECRET,
        "SNORKY_PRIVATE__API_KEY": KEY,
        "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(RULES),
    }
    async with running_fleet(tmp_path, nodes=3, env=env) as fleet, running_client(kind, fleet.url) as client:
        mine, other = await its_node(fleet)
        async with control(other) as backend, Publisher(fleet.redis.url) as publisher:
            reached = await backend.subscribe(CHANNEL, identity="ann")
            assert (reached.connections, reached.missing) == (1, ())
            await until(lambda: client.begun, "the subscription has begun")
            for number in range(400):
                if number == 100:
                    mine.kill()
                await publisher.publish(CHANNEL, number)
                await asyncio.sleep(0.005)
            await until(lambda: len(client.numbers) >= 400, "all numbers have arrived")
            assert client.numbers == list(range(400)) and client.is_whole
            assert (client.begun, client.recoveries, client.ends) == (1, 1, [])
            await backend.disconnect(identity="ann", reconnect=True)
            await until(lambda: client.recoveries >= 2, "the client is back")
            assert (await backend.unsubscribe(identity="ann", channel=CHANNEL)).connections == 1
            await until(lambda: client.ends, "the subscription has ended")
            await backend.subscribe(CHANNEL, identity="ann")
            await until(lambda: client.begun == 2, "another one has begun")
            await backend.disconnect(identity="ann", reconnect=True)
            await backend.unsubscribe(identity="ann")
            await until(lambda: len(client.ends) == 2, "it learns of the end")
            assert client.ends[0] == "unsubscribed" and client.ends[1] in ("unsubscribed", "not_subscribed")
            await publisher.publish(CHANNEL, "after the end")
            await backend.subscribe(CHANNEL, identity="ann")
            await until(lambda: client.begun == 3, "a fence")
            assert client.numbers == list(range(400))


async def test_readme_example_of_the_javascript_client_works(tmp_path: Path) -> None:
    env = {
        "SNORKY_AUTH__HMAC_SECRET": SECRET,
        "SNORKY_PRIVATE__API_KEY": KEY,
        "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(RULES),
    }
    block = code_block(JS / "README.md", "js", containing='client.on("subscribed"')
    async with running_fleet(tmp_path, nodes=1, env=env) as fleet:
        token = Signer(hmac_secret=SECRET).connection_token("ann")
        here = {
            '"./snorky.js"': json.dumps(str(JS / "src" / "snorky.js")),
            '"wss://example.org/ws"': f"{json.dumps(fleet.url)}, {{ token: {json.dumps(token)} }}",
        }
        for there_it_says, here_it_is in here.items():
            assert there_it_says in block
            block = block.replace(there_it_says, here_it_is)
        (tmp_path / "readme.mjs").write_text(f"""
            import {{ WebSocket }} from {json.dumps(str(JS / "node_modules" / "ws" / "wrapper.mjs"))};
            globalThis.WebSocket ??= WebSocket;
            {block}
            client.on("open", () => console.log("open"));
            client.on("subscribed", (subscription) => subscription.on("unsubscribed", () => client.close()));
        """)
        process = await asyncio.create_subprocess_exec(
            program("node"), str(tmp_path / "readme.mjs"), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        async with (
            asyncio.timeout(DEADLINE_S),
            control(fleet.nodes[0]) as backend,
            Publisher(fleet.redis.url) as publisher,
        ):
            assert await process.stdout.readline() == b"open\n"
            assert (await backend.subscribe(CHANNEL, identity="ann")).connections == 1
            await publisher.publish(CHANNEL, {"state": "paid"})
            assert await process.stdout.readline() == b"orders:7 { state: 'paid' }\n"
            assert (await backend.unsubscribe(identity="ann", channel=CHANNEL)).connections == 1
            output, _ = await process.communicate()
        assert (process.returncode, output.decode()) == (0, "unsubscribed\n")
