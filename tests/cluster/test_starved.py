"""A node that lacks a resource of the machine: its stderr is not read, or it has too few descriptors."""

import asyncio
import fcntl
import os
import signal
import subprocess
from pathlib import Path

import aiohttp

from tests.cluster.test_start_stop import DEADLINE_S, DRAIN_GRACE_S, Situation, started, until_ready, watch
from tests.support.processes.nodes import GATEWAY, clean_environment
from tests.support.processes.tools import ROOT, eventually, free_port

_F_SETPIPE_SZ = 1031


async def test_a_node_runs_and_stops_while_its_stderr_is_not_read() -> None:
    """A pipe of 4 KiB, full from the beginning, no reader: the node starts, serves, drains and ends."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, _F_SETPIPE_SZ, 4096)
    public, private = free_port(), free_port()
    env = {
        "SNORKY_PUBLIC__PORT": str(public),
        "SNORKY_PRIVATE__PORT": str(private),
        "SNORKY_PUBLIC__DRAIN_GRACE_S": DRAIN_GRACE_S,
    }
    filled = os.write(writing, b"x" * 4096)
    process = subprocess.Popen(  # noqa: ASYNC220 - takes a millisecond, once
        [*GATEWAY, "serve"], env=clean_environment(env), cwd=ROOT, stderr=writing
    )
    os.close(writing)
    try:
        assert filled == 4096
        await until_ready(process, private)
        async with aiohttp.ClientSession() as session:
            socket = await session.ws_connect(f"ws://127.0.0.1:{public}/ws")
            await socket.send_json(
                {"service": "pubsub", "message": {"command": "subscribe", "params": {"channel": "a"}}}
            )
            assert (await socket.receive_json(timeout=30))["message"]["type"] == "response"
            process.terminate()
            assert (await asyncio.wait_for(watch(socket), DEADLINE_S)) == "moving 1001"
        assert await asyncio.to_thread(process.wait, DEADLINE_S) == 0
        assert os.read(reading, 65_536).count(b"x") >= 4096
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(DEADLINE_S)
        os.close(reading)


async def test_more_clients_than_descriptors_leave_the_private_port_alone(tmp_path: Path) -> None:
    """`ulimit -n 64` and 70 clients: health and metrics were reset too, and nothing was logged or counted."""
    row = Situation("flood", command="ulimit -n 64; exec SERVE 2>LOG")
    async with started(row, tmp_path) as process:
        await process.until_ready()
        sockets = []
        try:
            for _ in range(70):
                reader, writer = await asyncio.open_connection("127.0.0.1", process.public_port)
                sockets.append((reader, writer))
            text = ""
            async with aiohttp.ClientSession() as session:
                for _ in range(20):
                    for path in ("/healthz", "/readyz", "/metrics"):
                        url = f"http://127.0.0.1:{process.private_port}{path}"
                        async with session.get(url, headers={"Connection": "close"}) as response:
                            assert response.status == 200
                            text = await response.text()
            refused = next(line for line in text.splitlines() if 'limit_hits_total{limit="descriptors"}' in line)
            assert float(refused.split()[1]) >= 10
            limit = next(line for line in text.splitlines() if line.startswith("snorky_connections_limit "))
            assert float(limit.split()[1]) < 48

            async def is_logged() -> bool:
                return "connections refused" in process.log

            await eventually(is_logged, within_s=DEADLINE_S, what="the refusals are logged")
        finally:
            for _, writer in sockets:
                writer.close()
        os.kill(process.process.pid, signal.SIGTERM)
        assert await process.code() == 0
        assert "Traceback" not in process.log
