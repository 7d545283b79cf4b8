"""Nodes that tests fork instead of starting a program: they are processes of their own in every respect."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.processes.fork_server import SERVERS, ForkedProcess, ForkServers
from tests.support.processes.nodes import GATEWAY, clean_environment
from tests.support.processes.tools import ROOT, eventually

START_WITHIN_S = 20.0
VERSION = [*GATEWAY, "--version"]


@pytest.fixture
async def servers() -> AsyncIterator[ForkServers]:
    made = ForkServers(GATEWAY, clean_environment(), ROOT)

    async def are_ready() -> bool:
        return made.are_ready

    try:
        await eventually(are_ready, within_s=START_WITHIN_S, what="the servers have imported the gateway")
        yield made
    finally:
        made.close()


def run(servers: ForkServers, *arguments: str, cwd: Path = ROOT, **env: str) -> tuple[int, str]:
    """Run a command that ends; returns its exit code and output."""
    process = servers.fork([*GATEWAY, *arguments], clean_environment(env), cwd)
    assert process is not None
    with process.stdout as output:
        said = output.read()
    return process.wait(START_WITHIN_S), said


def parent(process: ForkedProcess) -> int:
    """Return the id of its parent: field 4 of proc(5)."""
    return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_forked_process_has_its_own_arguments_output_and_exit_code(servers: ForkServers) -> None:
    code, said = run(servers, "--version")
    assert (code, said.split()[0]) == (0, "snorky")
    code, said = run(servers, "serve", "--port", "none")
    assert code == 2
    assert "--port" in said


async def test_forked_process_has_its_own_folder_and_environment(servers: ForkServers, tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text("[public]\nport = 'a'\n", encoding="utf-8")
    code, said = run(servers, "serve", "--config", "wrong.toml", cwd=tmp_path)
    assert (code, "port" in said) == (1, True), said
    code, said = run(servers, "serve", SNORKY_PUBLIC__PORT="b", cwd=tmp_path)
    assert (code, "SNORKY_PUBLIC__PORT" in said) == (1, True), said


async def test_consecutive_nodes_have_different_parents_and_thus_hash_seeds(servers: ForkServers) -> None:
    forked = [servers.fork([*GATEWAY, "serve"], clean_environment(), ROOT) for _ in range(SERVERS)]
    processes = [process for process in forked if process is not None]
    assert len({parent(process) for process in processes}) == SERVERS
    for process in processes:
        process.send_signal(signal.SIGKILL)
        assert process.wait(START_WITHIN_S) == -signal.SIGKILL
        process.stdout.close()


async def test_program_that_needs_its_own_interpreter_is_not_forked(servers: ForkServers) -> None:
    for name in ("PYTHONPATH", "LD_PRELOAD", "MALLOC_ARENA_MAX"):
        assert servers.fork(VERSION, clean_environment({name: "/elsewhere"}), ROOT) is None
    assert servers.fork(["snorky", "--version"], clean_environment(), ROOT) is None


async def test_forked_nodes_end_with_their_server(servers: ForkServers) -> None:
    process = servers.fork([*GATEWAY, "serve"], clean_environment(), ROOT)
    assert process is not None
    servers.close()
    assert process.wait(START_WITHIN_S) == -signal.SIGKILL
    process.stdout.close()
