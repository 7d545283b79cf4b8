"""SIGHUP on real nodes: a changed file takes effect, ends what it no longer permits, and leaves other clients alone."""

import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.cluster.test_workers import children
from tests.support.processes.nodes import GATEWAY, NodeProcess, RedisProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.tokens import SECRET, hmac_token

pytestmark = pytest.mark.needs("redis-server")

OWNERS = '[[services.pubsub.channels]]\nmatch = "shop:{claims.shops}"\n'
FENCE = '[[services.pubsub.channels]]\nmatch = "fence"\n'
OTHERS = '[[services.pubsub.channels]]\nmatch = "shop:*"\nallow_subscribe = "nobody"\n'
END = {"type": "unsubscribed", "channel": "shop:7", "code": "not_authorized", "reason": "No longer permitted"}
WITHIN_S = 30.0


@dataclass
class Nodes:
    """Nodes with one file and one Redis."""

    processes: list[NodeProcess]
    path: Path
    session: aiohttp.ClientSession

    def write(self, *rules: str, more: str = "") -> None:
        """Replace the file."""
        text = f'{more}\n[auth]\nhmac_secret = "{SECRET}"\n[services.pubsub]\n'
        text += 'class = "snorky.services.pubsub:PubSubService"\n'
        self.path.write_text(text + "".join(rules))

    def hang_up(self) -> None:
        for process in self.processes:
            process.signal(signal.SIGHUP)

    async def client(self, number: int, *channels: str, **claims: Any) -> aiohttp.ClientWebSocketResponse:
        """Connect to a node, and subscribe."""
        headers = {"Authorization": f"Bearer {hmac_token('ann', **claims)}"}
        socket = await self.session.ws_connect(self.processes[number].websocket_url, headers=headers)
        for channel in channels:
            assert await ask(socket, "subscribe", channel=channel) == "ok"
        return socket

    async def publish(self, channel: str, message: Any) -> None:
        body = {"command": "publish", "params": {"channel": channel, "message": message}}
        url = f"http://127.0.0.1:{self.processes[-1].private_port}/backend"
        async with self.session.post(url, json={"service": "pubsub_backend", "message": body}) as response:
            assert response.status == 200, await response.text()

    async def reloads(self, outcome: str) -> float:
        """Sum the nodes' reloads."""
        name = f'snorky_settings_reloads_total{{outcome="{outcome}"}} '
        texts = [(await process.ask("/metrics", timeout_s=10.0))[1] for process in self.processes]
        lines = [line for text in texts for line in text.splitlines() if line.startswith(name)]
        return sum(float(line.removeprefix(name)) for line in lines)

    async def until_reloaded(self, count: int, outcome: str = "applied") -> None:
        async def are_enough() -> bool:
            return await self.reloads(outcome) >= count

        await eventually(are_enough, within_s=WITHIN_S, what=f"{count} reloads: {outcome}")


async def ask(socket: aiohttp.ClientWebSocketResponse, command: str, **params: Any) -> str:
    """Call; return "ok" or the error's code."""
    await socket.send_json({"service": "pubsub", "message": {"command": command, "params": params, "callId": 1}})
    reply = (await socket.receive_json(timeout=30))["message"]
    assert reply["type"] in ("response", "error"), reply
    return str(reply.get("code", "ok"))


async def heard(socket: aiohttp.ClientWebSocketResponse) -> Any:
    return (await socket.receive_json(timeout=30))["message"]


async def lines_with(process: NodeProcess, text: str) -> list[str]:
    """Wait until a node's log has lines with a text, which may come later than what they tell; returns them."""

    async def found() -> list[str]:
        return [line for line in process.log.splitlines() if text in line]

    return await eventually(found, within_s=WITHIN_S, what=f"a line with {text!r}")


def said(channel: str, message: Any) -> dict[str, Any]:
    return {"type": "message", "channel": channel, "message": message}


@asynccontextmanager
async def nodes(tmp_path: Path, count: int, arguments: Sequence[str] = ()) -> AsyncIterator[Nodes]:
    """Run nodes that permit owners their shop, and anyone with an identity the channel `fence`."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(tmp_path))
        session = aiohttp.ClientSession()
        built = Nodes([], tmp_path / "snorky.toml", session)
        built.write(OWNERS, FENCE)
        env = {"SNORKY_REDIS_URL": redis.url, "SNORKY_PUBLIC__DRAIN_GRACE_S": "0"}
        argv = (*GATEWAY, "serve", "--config", str(built.path), *arguments)
        for _ in range(count):
            built.processes.append(await stack.enter_async_context(NodeProcess.running(env, argv=argv)))
        try:
            yield built
        finally:
            await session.close()  # workers whose supervisor is killed drain first
            print(*(process.log for process in built.processes), sep="\n")


async def test_a_removed_rule_ends_its_subscriptions_on_both_nodes(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as built:
        ann = [await built.client(number, "shop:7", "fence", shops=[7]) for number in (0, 1)]
        other = await built.client(0, "fence")
        built.write(OTHERS, FENCE)
        built.hang_up()
        for socket in ann:
            assert await heard(socket) == END
        await built.until_reloaded(2)
        await built.publish("shop:7", "secret")
        await built.publish("fence", 1)
        for socket in (*ann, other):
            assert await heard(socket) == said("fence", 1)
        assert await ask(ann[0], "subscribe", channel="shop:7") == "not_authorized"
        anonymous = await built.session.ws_connect(built.processes[0].websocket_url)
        assert await ask(anonymous, "subscribe", channel="fence") == "not_authorized"  # still for identities only
        # permitted again, on the same connection
        built.write(OWNERS, FENCE)
        built.hang_up()
        await built.until_reloaded(4)
        assert await ask(ann[0], "subscribe", channel="shop:7") == "ok"
        await built.publish("shop:7", "hello")
        assert await heard(ann[0]) == said("shop:7", "hello")


async def test_a_broken_file_changes_nothing_and_is_reported(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as built:
        ann = await built.client(0, "shop:7", "fence", shops=[7])
        built.write(OTHERS, FENCE.replace("match", "mach"), more="[public]\nprot = 9000\n")
        built.hang_up()
        await built.until_reloaded(1, "failed")
        (process,) = built.processes
        (line,) = await lines_with(process, "settings not reloaded")
        assert "[public] prot: unknown setting; did you mean [public] port?" in line and SECRET not in line
        await built.publish("shop:7", 1)
        assert await heard(ann) == said("shop:7", 1)
        # an error that only the service finds
        built.write(OTHERS, FENCE.replace("match", "mach"))
        built.hang_up()
        await built.until_reloaded(2, "failed")
        assert await lines_with(process, "[services.pubsub] channels, rule 2: unknown key 'mach'; did you mean match?")
        await built.publish("shop:7", 2)
        assert await heard(ann) == said("shop:7", 2)
        built.path.unlink()
        built.hang_up()
        await built.until_reloaded(3, "failed")
        built.write(OTHERS, FENCE)
        built.hang_up()
        assert await heard(ann) == END
        await built.until_reloaded(1)
        assert await built.reloads("applied") == 1


async def test_other_settings_are_named_and_keep_their_values(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as built:
        built.write(OWNERS, FENCE, more="[limits]\nconnections = 1\n[public]\nping_interval_s = 7\n")
        built.hang_up()
        await built.until_reloaded(1)
        (line,) = await lines_with(built.processes[0], "need a restart")
        assert "[public] ping_interval_s, [limits] connections" in line
        for _ in range(2):
            await built.client(0)


async def test_all_workers_apply_the_file(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1, ["--workers", "2"]) as built:
        clients = [await built.client(0, "shop:7", shops=[7]) for _ in range(20)]
        built.write(OTHERS, FENCE)
        built.hang_up()
        for socket in clients:
            assert await heard(socket) == END
        await built.until_reloaded(2)


async def test_a_worker_that_starts_meanwhile_has_the_new_rules_too(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1, ["--workers", "2"]) as built:
        (supervisor,) = built.processes
        before = children(supervisor.pid)
        os.kill(min(before), signal.SIGKILL)

        async def is_starting() -> bool:
            return len(set(children(supervisor.pid)) - set(before)) == 1

        await eventually(is_starting, within_s=WITHIN_S, what="another worker")
        built.write(OTHERS, FENCE)
        built.hang_up()

        async def are_both_ready() -> bool:
            return await supervisor.status("/readyz") == 200

        await eventually(are_both_ready, within_s=WITHIN_S, what="both workers are ready")
        await built.until_reloaded(2)  # also the one that started: it may have read the file before
        for _ in range(20):
            socket = await built.client(0, shops=[7])
            assert await ask(socket, "subscribe", channel="shop:7") == "not_authorized"
        assert supervisor.log.count("worker ended") == 1
