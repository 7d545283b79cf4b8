"""`snorky serve --workers`: several processes behind one port, managed by a supervisor."""

import os
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.support.processes.nodes import GATEWAY, NodeProcess, Process
from tests.support.processes.tools import eventually

WORKERS = (*GATEWAY, "serve", "--workers", "2")


def children(pid: int) -> dict[int, str]:
    """Return the workers of a supervisor: pid and command line."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue
    return {child: command for child, command in found.items() if "--supervisor" in command}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
async def gateway():
    async with NodeProcess.running(argv=WORKERS) as process:
        yield process


async def node_ids(gateway: NodeProcess, connections: int) -> set[str]:
    """Connect that many times; returns which nodes answered."""
    ids = set()
    async with aiohttp.ClientSession() as session:
        for _ in range(connections):
            async with session.ws_connect(gateway.websocket_url) as socket:
                await socket.send_json({"service": "gateway", "message": {"command": "info"}})
                ids.add((await socket.receive_json(timeout=30))["message"]["data"]["node"])
    return ids


async def test_workers_share_the_port_and_each_other_s_publications(gateway):
    assert len(await node_ids(gateway, 40)) == 2
    async with aiohttp.ClientSession() as session:
        sockets = [await session.ws_connect(gateway.websocket_url) for _ in range(10)]
        for socket in sockets:
            message = {"command": "subscribe", "params": {"channel": "news"}}
            await socket.send_json({"service": "pubsub", "message": message})
            assert (await socket.receive_json(timeout=30))["message"]["type"] == "response"
        envelope = {
            "service": "pubsub_backend",
            "message": {"command": "publish", "params": {"channel": "news", "message": 7}},
        }
        async with session.post(f"http://127.0.0.1:{gateway.private_port}/backend", json=envelope) as response:
            assert response.status == 200, await response.text()
        for socket in sockets:
            assert (await socket.receive_json(timeout=30))["message"]["message"] == 7

        async def are_counted() -> bool:  # those that have left are not, when their node has noticed it
            return await gateway.metric("snorky_connections") == 10

        await eventually(are_counted, within_s=30, what="10 connections")
        assert await gateway.metric("snorky_deliveries_total") == 10
        for socket in sockets:
            await socket.close()


async def test_killed_worker_is_started_again_and_its_counts_are_kept(gateway):
    await node_ids(gateway, 20)
    opened = await gateway.metric("snorky_connections_opened_total")
    assert opened == 20
    victim = min(children(gateway.pid))
    os.kill(victim, signal.SIGKILL)

    async def is_replaced() -> bool:
        now = children(gateway.pid)
        return victim not in now and len(now) == 2 and await gateway.status("/readyz") == 200

    await eventually(is_replaced, within_s=30, what="a new worker is ready")
    assert await gateway.metric("snorky_connections_opened_total") == opened
    assert "worker ended" in gateway.log


async def test_readiness_is_that_of_all(gateway):
    assert await gateway.status("/readyz") == 200
    frozen = min(children(gateway.pid))
    os.kill(frozen, signal.SIGSTOP)
    try:
        status, text = await gateway.ask("/readyz", timeout_s=30)
        assert status == 503
        assert "no answer" in text
        assert await gateway.status("/healthz", timeout_s=30) == 200
    finally:
        os.kill(frozen, signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_drains_all_workers_and_ends_them(gateway, number):
    workers = children(gateway.pid)
    assert len(workers) == 2
    gateway.signal(number)
    assert await gateway.wait() == 0, gateway.log
    assert not any(map(is_alive, workers))
    assert gateway.log.count('"event": "draining"') == 2


async def test_workers_end_with_a_killed_supervisor(gateway):
    workers = children(gateway.pid)
    gateway.kill()
    await gateway.wait()

    async def are_gone() -> bool:
        return not any(map(is_alive, workers))

    await eventually(are_gone, within_s=30, what="the workers ended")


async def test_port_of_another_gateway_is_not_shared_by_accident(gateway):
    other = Process(WORKERS, env={"SNORKY_PUBLIC__PORT": str(gateway.public_port), "SNORKY_PRIVATE__PORT": "0"})
    assert await other.wait() == 1
    await other.close()
    assert "cannot listen on" in other.log


async def test_worker_that_cannot_start_ends_the_supervisor():
    env = {
        "SNORKY_PRIVATE__PORT": "0",
        "SNORKY_PUBLIC__PORT": "0",
        "SNORKY_REDIS_URL": "redis://127.0.0.1:1/0?nonsense=1",
    }
    broken = Process(WORKERS, env=env)
    try:
        assert await broken.wait() == 1
    finally:
        await broken.close()
    assert "before any worker was ready" in broken.log
    assert "redis_url: an option is unknown" in broken.log
