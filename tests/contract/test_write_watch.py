"""The probe of writes: one command in each interval, on every supported server."""

from dataclasses import replace
from pathlib import Path

import pytest

from snorky.gateway.metrics import Metrics
from snorky.gateway.redis import RedisTarget, write_watch
from snorky.gateway.redis.multi.hashing import targets_of
from snorky.gateway.redis.write_watch import WriteWatch
from tests.support.processes.tools import eventually
from tests.support.scenarios.site import until
from tests.support.servers.redis_servers import KINDS, REAL_KINDS, AnyServer, RedisServer, start_server

PROBE = "snorky:{nodes}:n:probe"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_watch, "INTERVAL_S", 0.05)


def watching(url: str) -> WriteWatch:
    return WriteWatch(tuple(targets_of(url)), prefix="snorky", node_id="n", metrics=Metrics())


async def probed(server: AnyServer) -> None:
    """Wait for another probe: it writes the key again."""
    async with server.client() as client:
        await client.delete(PROBE)
        await eventually(lambda: client.exists(PROBE), within_s=30, what="another probe")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_takes_writes_is_neither_full_nor_refusing(kind: str, tmp_path: Path) -> None:
    async with start_server(kind, tmp_path) as server, watching(server.url) as watch:
        await probed(server)
        await probed(server)
        assert not watch.is_full and not watch.refusal


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_a_probe_is_one_command(kind: str, tmp_path: Path) -> None:
    async with RedisServer(kind, tmp_path) as server, watching(server.url), server.client() as client:
        await probed(server)
        await client.config_resetstat()
        for _ in range(5):
            await probed(server)
        stats = await client.info("commandstats")
        assert stats["cmdstat_evalsha"]["calls"] >= 5
        assert not {"cmdstat_eval", "cmdstat_script|load"} & stats.keys(), "the script is known"
        assert stats["cmdstat_info"]["calls"] <= stats["cmdstat_evalsha"]["calls"] + 1, "INFO runs in the script"
        await client.script_flush()
        await probed(server)
        assert (await client.info("commandstats"))["cmdstat_eval"]["calls"] == 1


@pytest.mark.parametrize("missing", ["eval", "script|load", "evalsha", "set", "time", "info"])
@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_a_missing_right_is_a_refusal_until_it_is_granted(kind: str, missing: str, tmp_path: Path) -> None:
    async with RedisServer(kind, tmp_path) as server, server.client() as client:
        await client.execute_command("ACL", "SETUSER", "node", "on", ">secret", "~*", "&*", "+@all")
        async with watching(server.url.replace("redis://", "redis://node:secret@")) as watch:
            await probed(server)
            await client.execute_command("ACL", "SETUSER", "node", f"-{missing}")
            await until(lambda: watch.refusal)
            await client.execute_command("ACL", "SETUSER", "node", "+@all")
            await until(lambda: not watch.refusal)


class Route:
    """Always finds the same server, like a Sentinel that does not know yet that it became a replica."""

    addresses = "nowhere"

    def __init__(self, server: RedisTarget) -> None:
        self._server = server

    async def find(self, *, max_age_s: float = 0.0) -> RedisTarget:
        return self._server


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_a_probe_looks_for_the_primary_again_when_its_server_became_a_replica(kind: str, tmp_path: Path) -> None:
    async with RedisServer(kind, tmp_path) as server, server.client() as client:
        (plain,) = targets_of(server.url)
        moving = replace(plain, route=Route(plain))

        async def probes() -> list[str]:
            return [each["id"] for each in await client.client_list() if each["name"] == "snorky:n:watch"]

        async with WriteWatch((moving,), prefix="snorky", node_id="n", metrics=Metrics()) as watch:
            await probed(server)
            (first,) = await probes()

            async def dialled_again() -> bool:
                return first not in await probes()

            await client.execute_command("REPLICAOF", "127.0.0.1", "1")
            await eventually(dialled_again, within_s=30, what="another connection")
            await until(lambda: watch.refusal.partition(": ")[2].startswith("READONLY"))
