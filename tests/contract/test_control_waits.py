"""How a node waits for control orders: what ends the wait, and what happens if it cannot wait."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway.contracts.control import encode_order
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis import control, parts
from snorky.gateway.redis.backend import parts_of
from snorky.gateway.redis.connection import reconnect
from snorky.gateway.redis.connection.resp import RespConnection, dial
from snorky.gateway.redis.control import ANSWER_S, PAUSE_S, WAIT_S, RedisControlLog
from snorky.gateway.redis.multi.hashing import targets_of
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

    return (await eventually(find, within_s=30, what="nodes wait"))[0]


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
        began_s = time.monotonic()
        await asyncio.sleep(2 * WAIT_S)
        stats = await redis.info("commandstats")
        assert 1 <= stats["cmdstat_xread"]["calls"] <= 1 + (time.monotonic() - began_s) / WAIT_S
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


async def test_a_wait_over_a_connection_that_took_long_to_make_is_not_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow_dial(*target: Any, **options: Any) -> RespConnection:
        wire = await dial(*target, **options)
        await asyncio.sleep(3 * ANSWER_S)
        return wire

    async with start_server("redis", tmp_path) as server, logs(server.url) as make, server.client() as redis:
        begin(make())
        lost = await waiting(redis)
        monkeypatch.setattr(reconnect, "dial", slow_dial)
        await redis.execute_command("CLIENT", "KILL", "ID", lost)
        made = await waiting(redis)
        await asyncio.sleep(WAIT_S)  # then the deadline of a wait that was sent before has passed
        assert await waiting(redis) == made


async def test_a_node_reads_where_it_waits(tmp_path: Path) -> None:
    """After a failover one of its connections may still be at the former primary."""
    async with start_server("redis", tmp_path) as former, start_server("redis", tmp_path) as server:
        at = [
            parts_of(target, prefix="test", node_id="n", metrics=Metrics())
            for url in (former.url, server.url)
            for target in targets_of(url)
        ]
        timeouts_s = (2.0, WAIT_S + ANSWER_S)
        links = [each.commands("control", timeout_s) for each, timeout_s in zip(at, timeouts_s, strict=True)]
        log = RedisControlLog(*links, prefix="test", node_id="n")
        async with logs(server.url) as make:
            seen, other = begin(log), make()
            begin(other)
            try:
                await other.add(order("here"))
                await seen.told("here")
                await other.add(order("next"))
                await seen.told("next")
            finally:
                await log.stop()


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_each_order_is_read_once(kind: str, tmp_path: Path) -> None:
    """Some servers report the two streams one after the other."""
    async with RedisServer(kind, tmp_path) as server, logs(server.url) as make, server.client() as redis:
        log = make()
        seen = begin(log)
        await ready(log, seen)
        await waiting(redis)
        await redis.config_resetstat()
        for number in range(5):
            await log.add(order(f"o{number}"))
            await seen.told(f"o{number}")
            await asyncio.sleep(2 * PAUSE_S)  # absence over time is tested
            await waiting(redis)
        stats = await redis.info("commandstats")
        in_scripts = stats["cmdstat_evalsha"]["calls"]  # `order.lua` reads the stream too
        assert stats["cmdstat_xrange"]["calls"] - in_scripts == 5


async def test_orders_in_quick_succession_are_read_together_and_sent_once(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, logs(server.url) as make, server.client() as redis:
        log = make()
        seen = begin(log)
        await ready(log, seen)
        await waiting(redis)
        await redis.config_resetstat()
        before = (await redis.info("stats"))["total_net_output_bytes"]
        began_s, reason = time.monotonic(), "x" * 1000
        for number in range(40):
            await log.add(order(f"o{number}", identity="ann", reason=reason))
            await asyncio.sleep(0.01)  # each comes alone
        await seen.told("o39")
        took_s = time.monotonic() - began_s
        reads = (await redis.info("commandstats"))["cmdstat_xrange"]["calls"] - 40  # `order.lua` reads the stream too
        sent = (await redis.info("stats"))["total_net_output_bytes"] - before
        assert reads <= 10 * took_s + 2
        assert sent < 65 * len(reason)


async def test_a_node_that_may_not_wait_also_logs_that_redis_does_not_answer(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path) as server, server.client() as redis:
        await redis.execute_command("ACL", "SETUSER", "node", "on", ">secret", "~*", "&*", "+@all", "-xread")
        with capture_logs() as logged:

            def texts() -> list[str]:
                return [each["error"] for each in logged if each["event"].startswith("control orders not read")]

            async def has_logged(count: int) -> bool:
                return len(texts()) >= count

            async with logs(server.url.replace("redis://", "redis://node:secret@")) as make:
                begin(make())
                await eventually(lambda: has_logged(1), within_s=30, what="the missing right")
                await server.stop()
                await eventually(lambda: has_logged(2), within_s=30, what="that Redis is away")
        assert "xread" in texts()[0] and "xread" not in texts()[1]
