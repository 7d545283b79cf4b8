"""A real Prometheus reads three nodes with the shipped configuration, and the amount of data stays small."""

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.processes.nodes import NodeProcess, Process, RedisProcess
from tests.support.processes.tools import ROOT, eventually, free_port, program

pytestmark = [pytest.mark.needs("redis-server"), pytest.mark.needs("promtool", "prometheus")]

DEPLOY = ROOT / "deploy"
NODES = 3
CHANNELS = 5_000
SERIES_MAX = 500


@asynccontextmanager
async def running_nodes(
    directory: Path, count: int, env: dict[str, str] | None = None
) -> AsyncIterator[list[NodeProcess]]:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(directory))
        nodes = [NodeProcess({"SNORKY_REDIS_URL": redis.url, **(env or {})}) for _ in range(count)]
        for node in nodes:
            stack.push_async_callback(node.close)
        for node in nodes:
            await node.wait_ready()

        async def all_ready() -> bool:
            return [await node.status("/readyz") for node in nodes] == [200] * count

        await eventually(all_ready, within_s=10, what="all nodes are ready")
        yield nodes


class Prometheus:
    """A running Prometheus; `ask` is its HTTP API."""

    def __init__(self, process: Process, port: int, session: aiohttp.ClientSession) -> None:
        self.process = process
        self._base = f"http://127.0.0.1:{port}"
        self._session = session

    async def ask(self, path: str, **params: str) -> Any:
        assert self.process.is_running, self.process.log
        try:
            async with self._session.get(self._base + path, params=params) as response:
                return (await response.json())["data"] if response.status == 200 else None
        except aiohttp.ClientError:
            return None  # it is still starting

    async def query(self, expression: str) -> dict[str, float]:
        """Evaluate now; the values by instance."""
        data = await self.ask("/api/v1/query", query=expression)
        return {each["metric"].get("instance", ""): float(each["value"][1]) for each in data["result"]} if data else {}


@asynccontextmanager
async def running_prometheus(directory: Path, targets: list[str]) -> AsyncIterator[Prometheus]:
    """Run Prometheus as shipped, but with these targets for node-1 to node-3, and with a look each second."""
    port = free_port()
    text = (DEPLOY / "prometheus.yml").read_text(encoding="utf-8")
    for name, interval in (("scrape_interval", "1s"), ("scrape_timeout", "1s"), ("evaluation_interval", "1s")):
        text, count = re.subn(rf"^  {name}: .*$", f"  {name}: {interval}", text, flags=re.MULTILINE)
        assert count == 1, name
    shipped = [f"node-{number}:8003" for number in range(1, NODES + 1)] + ["127.0.0.1:9090"]
    for name, target in zip(shipped, [*targets, f"127.0.0.1:{port}"], strict=True):
        assert text.count(f'"{name}"') == 1, name
        text = text.replace(f'"{name}"', f'"{target}"')
    config = directory / "prometheus.yml"
    config.write_text(text, encoding="utf-8")
    (directory / "alerts.yml").write_bytes((DEPLOY / "alerts.yml").read_bytes())
    argv = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    async with aiohttp.ClientSession() as session:
        process = Process(argv, cwd=directory, ready="Server is ready to receive web requests")
        try:
            await process.wait_ready()
            yield Prometheus(process, port, session)
        finally:
            await process.close()


async def exposition(node: NodeProcess) -> str:
    status, text = await node.ask("/metrics", timeout_s=10.0)
    assert status == 200
    return text


async def promtool_check_metrics(text: str) -> tuple[int, str]:
    result = await asyncio.to_thread(
        subprocess.run,
        [program("promtool"), "check", "metrics"],
        input=text,
        text=True,
        capture_output=True,
        timeout=120,
    )
    return result.returncode, result.stdout + result.stderr


def series(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


async def test_prometheus_sees_three_nodes_up_and_evaluates_every_rule(tmp_path: Path) -> None:
    async with running_nodes(tmp_path, NODES) as nodes:
        targets = [f"127.0.0.1:{node.private_port}" for node in nodes]
        async with running_prometheus(tmp_path, targets) as prometheus:

            async def all_up() -> bool:
                return await prometheus.query('up{job="snorky"}') == dict.fromkeys(targets, 1.0)

            await eventually(all_up, within_s=30, what="up is 1 for each node")

            async def states() -> list[tuple[str, str, str]]:
                data = await prometheus.ask("/api/v1/rules") or {"groups": []}
                return [
                    (rule["name"], rule["health"], rule["state"]) for each in data["groups"] for rule in each["rules"]
                ]

            async def all_quiet() -> bool:
                found = await states()
                return bool(found) and {each[1:] for each in found} == {("ok", "inactive")}

            await eventually(
                all_quiet, within_s=40, what="every rule was evaluated, and a healthy cluster has no alerts"
            )

            nodes[0].kill()
            await nodes[0].wait()

            async def one_down() -> bool:
                return await prometheus.query('up{job="snorky"} == 0') == {targets[0]: 0.0}

            await eventually(one_down, within_s=30, what="up is 0 for the killed node")


async def test_promtool_finds_nothing_to_complain_of_in_the_metrics_of_a_node(tmp_path: Path) -> None:
    async with running_nodes(tmp_path, 1) as (node,):
        async with aiohttp.ClientSession() as session, session.ws_connect(node.websocket_url) as socket:
            await socket.send_json(
                {"service": "pubsub", "message": {"command": "subscribe", "params": {"channel": "a"}}}
            )
            await socket.receive()
            await socket.send_json({"service": "pubsub", "message": {"command": "nonsense"}})
            await socket.receive()
            assert await promtool_check_metrics(await exposition(node)) == (0, "")


async def test_every_series_of_an_alert_exists_on_a_node(tmp_path: Path) -> None:
    text = (DEPLOY / "alerts.yml").read_text(encoding="utf-8")
    used = set(
        re.findall(
            r"\b(?:snorky|process)_[a-z0-9_]+\b",
            " ".join(re.findall(r"expr: (?:\|\n)?((?:.*\n)+?)\s+(?:for|labels):", text)),
        )
    )
    assert len(used) >= 10
    async with running_nodes(tmp_path, 1) as (node,):
        exposed = await exposition(node)
    # a labelled series appears with its first value, its name from the start
    names = set(re.findall(r"^# TYPE (\S+)", exposed, re.MULTILINE))
    assert {name for name in used if name not in names and name.removesuffix("_bucket") not in names} == set()


async def test_thousands_of_channels_make_no_series(tmp_path: Path) -> None:
    limits = {
        "SNORKY_LIMITS__CHANNELS_PER_CONNECTION": str(CHANNELS),
        "SNORKY_LIMITS__MESSAGES_PER_S": "1e6",
        "SNORKY_LIMITS__MESSAGES_BURST": "1000000",
        "SNORKY_LIMITS__OUTBOX_MAX_BYTES": str(64 * 1024 * 1024),
    }
    async with running_nodes(tmp_path, 1, limits) as (node,):
        before = len(series(await exposition(node)))
        async with aiohttp.ClientSession() as session, session.ws_connect(node.websocket_url, max_msg_size=0) as socket:

            async def ask() -> None:
                for number in range(CHANNELS):
                    call = {"command": "subscribe", "params": {"channel": f"channel-{number}"}, "callId": number}
                    await socket.send_str(json.dumps({"service": "pubsub", "message": call}))

            async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
                tasks.create_task(ask())
                for _ in range(CHANNELS):
                    message = (await socket.receive_json())["message"]
                    assert message["type"] == "response", message
            text = await exposition(node)
            assert await node.metric("snorky_channels") == CHANNELS
            assert len(series(text)) <= SERIES_MAX
            assert len(series(text)) - before <= 50, (
                "metrics that do not depend on the channels exist from the first call on"
            )
            assert "channel-" not in text
            assert await promtool_check_metrics(text) == (0, "")


async def test_commands_channels_and_services_that_a_client_makes_up_make_no_series(tmp_path: Path) -> None:
    limits = {
        "SNORKY_LIMITS__MESSAGES_PER_S": "1e6",
        "SNORKY_LIMITS__MESSAGES_BURST": "1000000",
        "SNORKY_LIMITS__CLIENT_ERRORS_PER_MINUTE": "1000000",
    }
    async with running_nodes(tmp_path, 1, limits) as (node,):
        async with aiohttp.ClientSession() as session, session.ws_connect(node.websocket_url) as socket:
            for number in range(1_000):
                call = {"command": f"invented-{number}", "params": {}, "callId": number}
                await socket.send_json({"service": "pubsub", "message": call})
                await socket.receive()
                await socket.send_json({"service": f"invented-{number}", "message": {}})
                await socket.receive()
            text = await exposition(node)
    assert "invented" not in text
    assert len(series(text)) <= SERIES_MAX
