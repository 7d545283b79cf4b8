"""Another library in Redis is repaired, and publications made meanwhile are reported as a gap."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis import Redis as BlockingRedis

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.publication import Position
from snorky.gateway.redis.directory.lease import Timings
from snorky.gateway.redis.history.function_library import LOOK_S
from snorky.gateway.redis.history.library_text import FORMAT, Found, judge, write_library
from snorky.gateway.redis.keys import doubt_key
from tests.support.fakes.brokers import PREFIX
from tests.support.processes.tools import eventually
from tests.support.scenarios.functions import (
    FUNCTION,
    HISTORY,
    NAME,
    RULES,
    fcall,
    functions_of,
    keeper_of,
    library_of,
    until_loaded,
)
from tests.support.servers.redis_servers import RedisServer

OLDER = "#!lua name=snorky\n-- format 1\nredis.register_function('snorky_publish', function() return '' end)\n"


FOREIGN = OLDER.replace("-- format 1\n", "")


def repairs(metrics: Metrics, reason: str) -> float:
    return metrics.registry.get_sample_value("snorky_redis_library_repairs_total", {"reason": reason}) or 0.0


@pytest.mark.parametrize("shape", ["flush", "delete", "older", "foreign", "edited", "dump"])
async def test_a_library_that_is_not_ours_is_repaired_and_counted(redis: RedisServer, shape: str) -> None:
    client, metrics = redis.client(), Metrics()
    async with functions_of(redis, {"pubsub": RULES}, metrics=metrics, look_s=0.05) as functions:
        functions.start()
        ours = await until_loaded(client)
        run = client.execute_command
        if shape == "flush":
            await run("FUNCTION", "FLUSH")
        elif shape == "delete":
            await run("FUNCTION", "DELETE", "snorky")
        elif shape == "edited":
            await run("FUNCTION", "LOAD", "REPLACE", ours.replace("local NONE = {'0', '0'}", "local NONE = {'1', '0'}"))
        elif shape == "dump":
            await run("FUNCTION", "LOAD", "REPLACE", OLDER)
            dump = await run("FUNCTION", "DUMP")
            await run("FUNCTION", "RESTORE", dump, "FLUSH")
        else:
            await run("FUNCTION", "LOAD", "REPLACE", OLDER if shape == "older" else FOREIGN)
        reason = {"flush": "missing", "delete": "missing", "older": "older", "dump": "older"}.get(shape, "foreign")
        async with asyncio.timeout(30.0):
            while not repairs(metrics, reason):  # noqa: ASYNC110 - another task repairs
                await asyncio.sleep(0.01)
        assert await fcall(client, NAME, "1") != ""
    await client.aclose()


@pytest.mark.parametrize("library", ["older", "foreign"])
async def test_unstored_publications_invalidate_positions_of_channels_without_followers(
    redis: RedisServer, library: str
) -> None:
    client = redis.client()
    async with keeper_of(redis) as keeper, keeper_of(redis) as other:
        await until_loaded(client)
        before = Position.parse(await fcall(client, NAME, "1"))
        for _ in range(20):
            text = OLDER if library == "older" else FOREIGN
            await client.execute_command("FUNCTION", "LOAD", "REPLACE", text)
            if await fcall(client, NAME, "2") == "":  # otherwise a node was faster
                break
        else:
            pytest.fail("nodes replaced it each time before it was called")
        await until_loaded(client)

        async def is_refused() -> bool:
            return await other.read("pubsub:kept:a", before, is_away=True) is None

        async def are_later_ones_good() -> bool:  # a mark is received twice: before the library is replaced, and after
            after = Position.parse(await fcall(client, NAME, "3"))
            last = Position.parse(await fcall(client, NAME, "4"))
            found = [await each.read("pubsub:kept:a", after, is_away=True) for each in (keeper, other)]
            return all(each is not None and each[-1].position == last for each in found)

        await eventually(is_refused, within_s=30, what="the other node has seen the mark")
        await eventually(are_later_ones_good, within_s=30, what="positions after the repair are valid")
        assert await keeper.read("pubsub:kept:a", before, is_away=True) is None
    await client.aclose()


async def test_a_library_that_was_edited_before_a_node_started_is_a_gap(redis: RedisServer) -> None:
    client = redis.client()
    async with functions_of(redis, {"pubsub": RULES}) as former:
        await former.ensure()
    edited = (await library_of(client)).replace("local NONE = {'0', '0'}", "local NONE = {'1', '0'}")
    await client.execute_command("FUNCTION", "LOAD", "REPLACE", edited)
    async with functions_of(redis, {"pubsub": RULES}) as functions:
        assert await functions.ensure()
        assert functions.doubt != b""
    assert judge(await library_of(client)) is Found.OURS
    await client.aclose()


@pytest.mark.parametrize("prefix", [PREFIX, "other"])
@pytest.mark.parametrize("library", ["older", "foreign"])
async def test_a_client_that_resumes_just_after_another_nodes_repair_gets_a_gap(
    redis: RedisServer, library: str, prefix: str
) -> None:
    client, key = redis.client(), "pubsub:kept:a"
    async with (
        functions_of(redis, {"pubsub": RULES}, prefix) as repairing,
        functions_of(redis, {"pubsub": RULES}) as promising,
        keeper_of(redis) as keeper,
    ):
        await promising.ensure()
        await repairing.ensure()
        before = await keeper.publish(key, b"1", HISTORY)
        assert await keeper.read(key, before, is_away=True) == []
        await client.execute_command("FUNCTION", "LOAD", "REPLACE", OLDER if library == "older" else FOREIGN)
        await fcall(client, NAME, "2")
        await repairing.ensure()
        assert judge(await library_of(client)) is Found.OURS
        assert await keeper.read(key, before, is_away=True) is None
        after = await keeper.publish(key, b"3", HISTORY)
        for _ in range(2):
            assert await keeper.read(key, after, is_away=True) == [], "once a channel"
    await client.aclose()


async def test_recent_ignores_a_position_ended_by_a_foreign_publication(redis: RedisServer) -> None:
    client, key = redis.client(), "pubsub:kept:a"
    async with keeper_of(redis) as keeper:
        await until_loaded(client)
        before = await keeper.publish(key, b"1", HISTORY)
        second = await keeper.publish(key, b"2", HISTORY)
        found, _ = await keeper.recent(key, 10, before)
        assert [each.position for each in found] == [second]
        kept = [b"1", b"2"]
        for _ in range(20):
            await client.execute_command("FUNCTION", "LOAD", "REPLACE", OLDER)
            if await fcall(client, NAME, "3") == "":
                break
            kept.append(b"3")  # the node was faster
        else:
            pytest.fail("the node replaced it each time before it was called")
        found, _ = await keeper.recent(key, 10, before)
        assert [each.payload for each in found] == kept, "as if there were no position"
    await client.aclose()


async def test_nodes_that_load_the_library_at_once_end_no_positions(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rolling upgrade: each node that starts loads its own text once, and clients reconnect to all of them."""
    client, key = redis.client(), "pubsub:kept:a"
    async with keeper_of(redis) as keeper, AsyncExitStack() as stack:
        await until_loaded(client)
        before = await keeper.publish(key, b"1", HISTORY)
        for fix in range(3):
            monkeypatch.setattr("snorky.gateway.redis.history.library_text._FUNCTION", f"{FUNCTION}-- fix {fix}\n")
            nodes = [await stack.enter_async_context(functions_of(redis, {"pubsub": RULES})) for _ in range(4)]
            await asyncio.gather(*(node.ensure() for node in nodes))
            assert await keeper.read(key, before, is_away=True) == []
            assert [node.doubt for node in nodes] == [b""] * 4
    await client.aclose()


async def test_a_foreign_library_between_the_check_and_the_load_is_a_gap(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, key = redis.client(), "pubsub:kept:a"
    async with functions_of(redis, {"pubsub": RULES}) as former:
        await former.ensure()
    async with functions_of(redis, {"pubsub": RULES}) as later, keeper_of(redis) as keeper:
        before = await keeper.publish(key, b"1", HISTORY)
        assert await keeper.read(key, before, is_away=True) == []

        def write(*arguments: Any, **options: Any) -> str:
            with BlockingRedis.from_url(redis.url) as other:
                other.execute_command("FUNCTION", "LOAD", "REPLACE", FOREIGN)
                other.execute_command("FCALL", "snorky_publish", 1, NAME, "2")
            monkeypatch.undo()
            return write_library(*arguments, **options)

        monkeypatch.setattr("snorky.gateway.redis.history.library_text._FUNCTION", FUNCTION + "-- fixed\n")
        monkeypatch.setattr("snorky.gateway.redis.history.libraries.write_library", write)
        assert await later.ensure()
        assert judge(await library_of(client)) in (Found.OURS, Found.SIBLING)
        assert later.doubt != b""
        assert await keeper.read(key, before, is_away=True) is None
    await client.aclose()


async def test_a_node_without_the_right_to_list_functions_still_recovers(redis: RedisServer) -> None:
    client, key = redis.client(), "pubsub:kept:a"
    rights = {
        "none": "-function -fcall_ro",
        "no look": "-fcall_ro",
        "no load": "-function",
    }
    for name, less in rights.items():
        await client.execute_command("FUNCTION", "FLUSH")
        await client.execute_command(
            "ACL", "SETUSER", "poor", "reset", "on", "nopass", "~*", "&*", "+@all", *less.split()
        )
        async with keeper_of(redis, url=redis.url.replace("redis://", "redis://poor:x@")) as keeper:
            before = await keeper.publish(key, b"1", HISTORY)
            second = await keeper.publish(key, b"2", HISTORY)
            found = await keeper.read(key, before, is_away=True)
            assert found is not None and [each.position for each in found] == [second], name
    await client.aclose()


async def test_a_recovery_asks_once_which_library_is_there(redis: RedisServer) -> None:
    client, key = redis.client(), "pubsub:kept:a"
    async with keeper_of(redis) as keeper:
        await until_loaded(client)
        before = await keeper.publish(key, b"1", HISTORY)
        await keeper.read(key, before, is_away=True)

        async def calls() -> dict[str, int]:
            stats = await client.info("commandstats")
            return {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("fcall_ro", "function|load")}

        began_s, first = time.monotonic(), await calls()
        for _ in range(10):
            assert await keeper.read(key, before, is_away=True) == []
        second = await calls()
        looks = second["fcall_ro"] - first["fcall_ro"] - 10
        own = 1 + (time.monotonic() - began_s) / LOOK_S  # the node's own checks
        assert 0 <= looks <= own and second["function|load"] == first["function|load"]
    await client.aclose()


async def test_library_that_has_not_changed_is_only_asked_for(redis: RedisServer) -> None:
    client = redis.client()
    async with functions_of(redis, {"pubsub": RULES}) as functions:
        assert await functions.ensure()

        async def listings() -> int:
            return int((await client.info("commandstats")).get("cmdstat_function|list", {}).get("calls", 0))

        before = await listings()
        for _ in range(3):
            assert not await functions.ensure()
        assert await listings() == before
        functions.set_rules("chat", RULES)
        assert not await functions.ensure()
        assert await listings() == before + 1, "other rules may have to be in the library"
        await client.execute_command("FUNCTION", "LOAD", "REPLACE", FOREIGN)
        assert await functions.ensure()
    await client.aclose()


async def test_doubt_that_was_not_written_is_written_later(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    client = redis.client()
    async with functions_of(redis, {"pubsub": RULES}) as functions:
        await functions.ensure()
        await client.execute_command("FUNCTION", "LOAD", "REPLACE", FOREIGN)

        async def fail() -> None:
            raise BrokerUnavailable("lost")

        with monkeypatch.context() as patched:
            patched.setattr(functions, "_tell_doubt", fail)
            with pytest.raises(BrokerUnavailable):
                await functions.ensure()
        await functions.ensure()
        assert await client.get(doubt_key(PREFIX)) == functions.doubt != b""
    await client.aclose()


@pytest.mark.parametrize("present", ["before", "sibling"])
async def test_an_upgrade_is_no_repair_and_ends_no_positions(
    redis: RedisServer, present: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, metrics = redis.client(), Metrics()
    async with functions_of(redis, {"pubsub": RULES}) as former:
        await former.ensure()
    with monkeypatch.context() as patched:
        patched.setattr("snorky.gateway.redis.history.library_text._FUNCTION", f"{FUNCTION}-- not yet fixed\n")
        text = write_library(None)
        if present == "before":
            patched.setattr(
                "snorky.gateway.redis.history.library_text._FUNCTION", FUNCTION.partition("-- Which loading")[0]
            )
            text = write_library(None).replace(f"-- format {FORMAT}\n", f"-- format {FORMAT - 1}\n")
        await client.execute_command("FUNCTION", "LOAD", "REPLACE", text)
    async with functions_of(redis, {"pubsub": RULES}, metrics=metrics) as functions:
        assert await functions.ensure()
        assert functions.doubt == b""
    assert [repairs(metrics, reason) for reason in ("missing", "older", "foreign")] == [0, 0, 0]
    assert judge(await library_of(client)) is Found.OURS
    await client.aclose()


async def test_doubts_of_nodes_of_the_previous_version_outlive_the_upgrade(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, key = redis.client(), "pubsub:kept:a"
    with monkeypatch.context() as patched:
        patched.setattr(
            "snorky.gateway.redis.history.library_text._FUNCTION", FUNCTION.partition("-- Which loading")[0]
        )
        text = write_library(None).replace(f"-- format {FORMAT}\n", f"-- format {FORMAT - 1}\n")
    await client.execute_command("FUNCTION", "LOAD", text)
    await client.set(doubt_key(PREFIX), b"0123456789abcdef", px=60_000)
    async with keeper_of(redis) as keeper:
        before = await keeper.publish(key, b"1", HISTORY)
        assert await keeper.read(key, before, is_away=True) is None
        after = await keeper.publish(key, b"2", HISTORY)
        assert await keeper.read(key, after, is_away=True) == []
    await client.aclose()


def test_a_node_checks_the_library_as_often_as_it_renews_its_lease() -> None:
    assert LOOK_S <= Timings().renew_s


async def test_the_first_load_into_an_empty_redis_is_no_repair(redis: RedisServer) -> None:
    metrics = Metrics()
    async with functions_of(redis, {"pubsub": RULES}, metrics=metrics) as functions:
        assert await functions.ensure()
        assert not await functions.ensure()
    assert [repairs(metrics, reason) for reason in ("missing", "older", "foreign")] == [0, 0, 0]


async def test_nodes_of_one_format_with_different_texts_do_not_replace_each_other_indefinitely(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = redis.client()
    async with functions_of(redis, {"pubsub": RULES}) as one, functions_of(redis, {"pubsub": RULES}) as other:
        await one.ensure()
        with monkeypatch.context() as patched:
            patched.setattr("snorky.gateway.redis.history.library_text._FUNCTION", FUNCTION + "-- fixed\n")
            assert await other.ensure(), "at its start it loads its own"
        assert judge(await library_of(client)) is Found.SIBLING
        assert not await one.ensure(), "and is kept afterwards"
        assert await fcall(client, NAME, "1") != ""
    await client.aclose()


async def test_a_library_of_a_later_format_is_kept_and_reported(redis: RedisServer) -> None:
    client, metrics = redis.client(), Metrics()
    later = write_library(None).replace(f"-- format {FORMAT}\n", f"-- format {FORMAT + 1}\n")
    await client.execute_command("FUNCTION", "LOAD", later)
    async with functions_of(redis, {"pubsub": RULES}, metrics=metrics, look_s=0.05) as functions:
        with pytest.raises(ValueError, match="later version"):
            await functions.ensure()
        functions.start()
        async with asyncio.timeout(30.0):
            while not metrics.registry.get_sample_value("snorky_redis_library_unusable"):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
    assert await library_of(client) == later
    await client.aclose()
