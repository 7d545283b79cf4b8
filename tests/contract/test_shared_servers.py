"""Servers that tests use one after another: each test finds its server as if it had just been started."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import shared
from tests.support.servers.clusters import ClusterLab
from tests.support.servers.redis_servers import RedisServer
from tests.support.servers.shared import SharedServers

FUNCTION = "#!lua name=left\nredis.register_function('left', function() return '' end)\n"


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a server that is to be used again answer late."""
    monkeypatch.setattr(shared, "ANSWER_WITHIN_S", 30.0)


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[SharedServers]:
    opened = SharedServers(tmp_path)
    yield opened
    await opened.close()


async def pid_of_next(servers: SharedServers) -> int:
    async with servers.lend("valkey") as server:
        assert isinstance(server, RedisServer)
        async with server.client() as client:
            assert await client.ping()
        return server.pid


@pytest.mark.usefixtures("patient")
async def test_what_a_test_leaves_is_removed_and_the_server_goes_on(servers: SharedServers) -> None:
    async with servers.lend("valkey") as server:
        assert isinstance(server, RedisServer)
        pid, left = server.pid, server.client()
        await left.set("key", 1)
        await left.execute_command("FUNCTION", "LOAD", FUNCTION)
        sha = await left.script_load("return 1")
        await left.save()
        await left.select(3)
        await left.set("key", 1)
    async with servers.lend("valkey") as server:
        assert isinstance(server, RedisServer) and server.pid == pid
        async with server.client() as client:
            assert await client.info("keyspace") == {} and not server.dump.exists()
            assert await client.function_list() == [] and await client.script_exists(sha) == [False]
            assert len(await client.client_list()) == 1, "connections are closed"
            assert "cmdstat_set" not in await client.info("commandstats")
    await left.aclose()


async def test_two_tests_at_once_have_different_servers(servers: SharedServers) -> None:
    async with servers.lend("valkey") as one, servers.lend("valkey") as other:
        assert one.url != other.url


async def configure(server: RedisServer) -> None:
    async with server.client() as client:
        await client.config_set("maxmemory", "10mb")


async def add_user(server: RedisServer) -> None:
    async with server.client() as client:
        await client.acl_setuser("somebody", enabled=True, nopass=True)


async def pause(server: RedisServer) -> None:
    async with server.client() as client:
        await client.client_pause(60_000)


async def kill(server: RedisServer) -> None:
    server.kill()


async def freeze(server: RedisServer) -> None:
    server.freeze()


@pytest.mark.parametrize("change", [configure, add_user, pause, kill, freeze, RedisServer.stop])
async def test_a_server_that_a_test_has_changed_is_not_used_again(
    servers: SharedServers, change: Callable[[RedisServer], Awaitable[Any]]
) -> None:
    async with servers.lend("valkey") as server:
        assert isinstance(server, RedisServer)
        pid = server.pid
        await change(server)
    assert await pid_of_next(servers) != pid


@pytest.mark.usefixtures("patient")
async def test_a_server_whose_test_failed_is_used_again_if_it_is_as_it_was(servers: SharedServers) -> None:
    pid = await pid_of_next(servers)
    with pytest.raises(ZeroDivisionError):
        async with servers.lend("valkey"):
            raise ZeroDivisionError
    assert await pid_of_next(servers) == pid


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("kind", ["cluster"])
async def test_a_cluster_is_used_again_unless_slots_have_moved(servers: SharedServers, kind: str) -> None:
    urls = []
    for does_move in (False, True, False):
        async with servers.lend(kind) as lab:
            assert isinstance(lab, ClusterLab)
            urls.append(lab.url)
            assert await lab.ask(0, "SET", "{3560}", 1, "NX") == "OK"  # in slot 0
            if does_move:
                await lab.move_slot(0, 0, 1)
    assert urls[0] == urls[1] != urls[2]
