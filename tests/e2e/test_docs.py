"""The documents are correct: their programs run, and their conversations have the documented result."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes.nodes import GATEWAY, NodeProcess, RedisProcess, clean_environment
from tests.support.processes.tools import ROOT
from tests.support.scenarios.conversation import Block, blocks_of, converse

DOCS = ROOT / "docs"
pytestmark = pytest.mark.needs("redis-server")


async def hold(page: str, tmp_path: Path) -> list[Block]:
    """Run all conversations of a page; those with programs or settings of their own have a node of their own."""
    blocks = blocks_of(DOCS / page, "wire")
    async with RedisProcess.running(tmp_path) as redis:
        env = {"SNORKY_REDIS_URL": redis.url}
        plain = [block for block in blocks if not block.settings and block.program is None]
        if plain:
            async with NodeProcess.running(env) as shared:
                for block in plain:
                    await converse(block, shared, redis.port)
        for block in blocks:
            if block not in plain:
                argv = (*GATEWAY, "serve") if block.program is None else (sys.executable, str(ROOT / block.program))
                async with NodeProcess.running({**env, **block.settings}, argv=argv) as own:
                    await converse(block, own, redis.port)
    return blocks


async def test_conversations_of_the_protocol_page_are_correct(tmp_path: Path) -> None:
    assert len(await hold("protocol.md", tmp_path)) >= 13


async def test_conversations_of_the_guide_are_correct(tmp_path: Path) -> None:
    blocks = await hold("guide.md", tmp_path)
    assert [block.program for block in blocks] == [
        f"examples/{path}.py"
        for path in ("echo/server", "rpc/server", "pubsub_backend/server", "chat/server", "todo/serve_gateway")
    ]


def named(block: Block) -> str:
    """Return the file's name, from the first line."""
    match = re.match(r"# (\w+\.\w+)\n", block.text)
    assert match is not None, f"{block.where}: the first line of a program names its file"
    return match[1]


async def test_programs_of_the_services_page_run_and_answer_as_documented(tmp_path: Path) -> None:
    """Every program is written to its file; later blocks use the program, or the settings, before them."""
    env = {"PYTHONPATH": str(tmp_path)}
    ran: dict[str, int] = {}
    started: tuple[str, ...] = ()
    async with RedisProcess.running(tmp_path) as redis:
        env["SNORKY_REDIS_URL"] = redis.url
        for block in blocks_of(DOCS / "services.md", "python", "toml", "wire"):
            if block.language == "wire":
                assert started, block.where
                async with NodeProcess.running(env, argv=started, cwd=tmp_path) as node:
                    await converse(block, node, redis.port)
                ran[started[-1]] = ran.get(started[-1], 0) + 1
                continue
            path = tmp_path / named(block)
            path.write_text(block.text)
            if block.language == "toml":
                started = (*GATEWAY, "serve", "--config", path.name)
            elif "run(" in block.text:
                started = (sys.executable, path.name)
    programs = {named(block) for block in blocks_of(DOCS / "services.md", "python")}
    assert set(ran) == {"echo.py", "bids.py", "desks.py", "rooms.py", "snorky.toml"}
    assert programs - set(ran) == {"orders.py", "test_bids.py"}, "a program that is never run"


async def test_own_test_of_the_services_page_is_green_and_can_be_red(tmp_path: Path) -> None:
    sources = {named(block): block.text for block in blocks_of(DOCS / "services.md", "python")}
    (tmp_path / "test_bids.py").write_text(sources["test_bids.py"])
    environment = clean_environment()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
        "-W",
        "error",
        "test_bids.py",
    ]
    outcomes = []
    for amount in ("amount < 5", "amount < 50"):
        (tmp_path / "bids.py").write_text(sources["bids.py"].replace("amount < 5", amount))
        run = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        outcomes.append((run.returncode, run.stdout[-2000:]))
    assert outcomes[0][0] == 0, outcomes[0][1]
    assert "2 passed" in outcomes[0][1]
    assert outcomes[1][0] == 1, outcomes[1][1]
