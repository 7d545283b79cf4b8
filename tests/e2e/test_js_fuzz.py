"""clients/js on a real node: any value that a program sends arrives equal or is refused at once."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.clients.js_crowd import JS
from tests.support.processes.fleet import running_fleet
from tests.support.processes.tools import program

pytestmark = [
    pytest.mark.needs("redis-server", "nginx", "node"),
    pytest.mark.skipif(not (JS / "node_modules" / "ws").exists(), reason="needs ws: npm --prefix clients/js ci"),
]

VALUES = 2_000
WITHIN_S = 120.0
LIMITS = {"SNORKY_LIMITS__MESSAGES_PER_S": "100000", "SNORKY_LIMITS__MESSAGES_BURST": "100000"}


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_value_arrives_equal_or_is_refused_at_once_and_never_costs_the_connection(
    tmp_path: Path, encoding: str
) -> None:
    async with running_fleet(tmp_path, nodes=1, env=LIMITS) as fleet:
        process = await asyncio.create_subprocess_exec(
            program("node"),
            str(JS / "support" / "fuzz.js"),
            f"ws://127.0.0.1:{fleet.nodes[0].public_port}/ws",
            str(VALUES),
            "7",
            encoding,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(WITHIN_S):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    report = json.loads(output)
    assert (report["faults"], report["opens"], report["sameConnection"]) == ([], 1, True)
    assert report["arrived"] + report["refused"] == VALUES
    assert VALUES // 10 < report["refused"] < VALUES // 2
