"""How a node waits for control orders: what ends the wait, and what happens if it cannot wait."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from snorky.gateway.contracts.control import encode_order
from snorky.gateway.redis import control, parts
from snorky.gateway.redis.control import WAIT_S
from tests.contract.test_control import ORDERS, begin, logs, order, ready
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import REAL_KINDS, AnyServer, RedisServer, start_server


def wait_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the end of a wait cause no read."""
    monkeypatch.setattr(control, "WAIT_S", 3600.0)
    monkeypatch.setattr(parts, "WAIT_S", 3600.0)


async def waiting(redis: Any, *, count: int = 1) -> str:
    """Return the id of the connection that waits for orders, when so many do."""

    async def find() -> list[str]:
        found = [each["id"] for each in await redis.client_list() if "b" in each["flags"]]
        return found if len(found) == count else []

    return (await eventually(find, within_s=5, what="nodes wait"))[0]


async def xadd(server: AnyServer, number: int, order_id: str) -> None:
    """Store an order without an announcement, as nodes of the previous version do."""
    data = encode_order(order(order_id))
    async with server.client() as redis:
        await redis.xadd(ORDERS, {"id": order_id, "at": int(time.time() * 1000), "order": data}, id=f"{number}-0")


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_a_node_without_orders_sends_less_than_one_command_a_second(kind: str, tmp_path: Path) -> None:
    async with RedisServer(kind, tmp_path) as server, logs(server.url) as make, server.client() as redis:
        log = make()
        await ready(log, begin(log))
        await waiting(redis)
        await redis.config_resetstat()
        await asyncio.sleep(2 * WAIT_S)
        stats = await redis.info("commandstats")
        assert 1 <= stats["cmdstat_xread"]["calls"] <= 3
        assert "cmdstat_xrange" not in stats


async def test_an_order_without_an_announcement_reaches_a_node_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_long(monkeypatch)
    async with start_server("redis", tmp_path) as server, logs(server.url) as make, server.client() as redis:
        log = make()
        seen = begin(log)
        await ready(log, seen)
        await waiting(redis)
        await xadd(server, 2, "unannounced")
        await seen.told("unannounced")


async def test_an_order_in_a_list_that_began_again_reaches_a_node_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list expires after a day without an order; then the numbers begin again."""
    wait_long(monkeypatch)
    async with start_server("redis", tmp_path) as server, logs(server.url) as make, server.client() as redis:
        log = make()
        seen = begin(log)
        for number in range(3):
            await log.add(order(f"o{number}"))
        await seen.told("o2")
        for kept in (["test:{nodes}::orders:announced"], []):
            await waiting(redis)
            for key in {"test:{nodes}::orders", "test:{nodes}::orders:announced"} - set(kept):
                await redis.delete(key)
            await log.add(order(f"again {len(kept)}"))
            await seen.told(f"again {len(kept)}")
        assert seen.missed == 0


async def test_an_order_whose_announcement_was_lost_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REPAIR_S", 0.3)
    monkeypatch.setattr(control, "WAIT_S", 0.1)
    async with start_server("redis", tmp_path) as server, logs(server.url) as make, server.client() as redis:
        log = make()
        seen = begin(log)
        for number in range(3):
            await log.add(order(f"o{number}"))
        await seen.told("o2")
        await waiting(redis)
        await redis.delete(ORDERS)
        await xadd(server, 1, "lost")
        await seen.told("lost")


async def test_an_order_that_was_given_while_the_wait_was_cut_off_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_long(monkeypatch)
    async with start_server("redis", tmp_path) as server, logs(server.url) as make, server.client() as redis:
        log = make()
        seen = begin(log)
        await log.add(order("before"))
        await ready(log, seen)
        for number in range(3):
            await redis.execute_command("CLIENT", "KILL", "ID", await waiting(redis))
            await redis.delete(ORDERS)  # so the wait that begins again would end by nothing but a read
            await xadd(server, 1, f"cut {number}")
            await seen.told(f"cut {number}")


async def test_without_the_right_to_wait_a_node_reads_often(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, server.client() as redis:
        await redis.execute_command("ACL", "SETUSER", "node", "on", ">secret", "~*", "&*", "+@all", "-xread")
        async with logs(server.url.replace("redis://", "redis://node:secret@")) as make:
            a, b = make("a"), make("b")
            seen_a, seen_b = begin(a), begin(b)
            await ready(a, seen_a)
            for number in range(3):
                await a.add(order(f"o{number}"))
                await seen_b.told(f"o{number}")
            await redis.execute_command("ACL", "SETUSER", "node", "+@all")
            await waiting(redis, count=2)
