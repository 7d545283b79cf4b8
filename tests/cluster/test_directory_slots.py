"""Every script touches one slot only: the directory runs on a server in cluster mode, which refuses others."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from snorky.gateway.contracts.directory import Owner
from tests.support.fakes.directories import PATIENT, RedisTestCluster
from tests.support.processes.tools import eventually, free_port
from tests.support.servers.redis_servers import REAL_KINDS, RedisServer

ROOM = "chat:room"
NAMES = "messaging:names"


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_each_script_stays_in_one_slot_and_survives_a_script_flush(kind: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        conf = ["cluster-enabled yes", f"cluster-port {free_port()}"]  # else 10,000 above its own, which may be taken
        server = await stack.enter_async_context(RedisServer(kind, tmp_path, conf=conf))
        client = server.client()
        stack.push_async_callback(client.aclose)
        # all slots are its own, so only CROSSSLOT errors remain
        await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

        async def is_up() -> bool:
            return b"cluster_state:ok" in bytes(await client.execute_command("CLUSTER", "INFO"))

        await eventually(is_up, within_s=30, what="the cluster of one")
        cluster = RedisTestCluster(server, stack, PATIENT)
        await cluster.listen(ROOM)
        a, b = await cluster.node("a"), await cluster.node("b")
        for _ in range(2):
            assert await a.enter(ROOM, 1, "alice", data=1)
            assert await a.directory.update(ROOM, 1, data=2)
            assert not await b.enter(ROOM, 1, "alice")
            assert await b.leave(ROOM, 1) and await a.leave(ROOM, 1)
            assert await a.claim(NAMES, "desk", 1, "alice") and await b.claim(NAMES, "desk", 1, "alice")
            assert await b.directory.release(NAMES, "desk", 1)
            await client.script_flush()
        assert await a.directory.take_token(await b.directory.put_token([1], 60), "me") == [1]
        assert await a.enter(ROOM, 2, "bob")
        assert await b.directory.send(Owner("a", a.directory.incarnation, 2), b"hello")
        await cluster.until(lambda: cluster.heard(ROOM)[-1:] == [b"joined bob"])
        await cluster.crash(a)
        await cluster.until(lambda: cluster.heard(ROOM)[-1:] == [b"left bob"])
        owned = await asyncio.wait_for(client.keys("*"), 30.0)
        assert all(b"{" in key for key in owned)
