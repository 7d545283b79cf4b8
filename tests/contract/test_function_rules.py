"""Which rules of channels the function library applies: those of the nodes that run."""

import asyncio
import random
from typing import Any

import hiredis
import pytest
from redis.exceptions import ResponseError

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.contracts.history import History
from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.history.function_library import Functions
from snorky.gateway.redis.keys import rules_key
from snorky.gateway.redis.target import target_from_url
from tests.support.fakes.brokers import PREFIX
from tests.support.processes.tools import eventually
from tests.support.scenarios.functions import (
    HISTORY,
    NAME,
    RULES,
    fcall,
    functions_of,
    keeper_of,
    until_loaded,
)
from tests.support.servers.redis_servers import RedisServer


async def test_the_first_matching_rule_decides_what_is_stored(redis: RedisServer) -> None:
    client = redis.client()
    expected = {"kept:": 4, "kept:few-x": 4, "a:few--x": 2, "a:fewx": 2, "a:few": 0, "bare": 0, "other": 0, "": 0}
    async with keeper_of(redis):
        await until_loaded(client)
        for name, kept in expected.items():
            key = f"{PREFIX}:{{pubsub:{name}}}"
            replies = [await fcall(client, key, str(number)) for number in range(4)]
            assert await client.xlen(f"{key}:history") == kept, name
            assert all(bool(reply) is bool(kept) for reply in replies), name
    await client.aclose()


@pytest.mark.parametrize("seed", range(3))
async def test_rules_match_in_redis_as_they_do_in_a_node(redis: RedisServer, seed: int) -> None:
    chance = random.Random(seed)
    patterns = ["".join(chance.choices("ab*é", k=chance.randint(1, 5))) for _ in range(12)]
    rules = Rules([ChannelRule(pattern, history=number + 1) for number, pattern in enumerate(patterns)])
    client = redis.client()
    async with keeper_of(redis, rules):
        await until_loaded(client)
        for number in range(80):
            name = "".join(chance.choices("abé{}\n\0%.", weights=[9, 9, 5, 1, 1, 1, 1, 1, 1], k=number % 6))
            key = f"{PREFIX}:{{pubsub:{name}}}"
            history = rules.find(name).history
            for _ in range(history + 2):
                await fcall(client, key, "1")
            assert await client.xlen(f"{key}:history") == history, (patterns, name)
    await client.aclose()


@pytest.mark.parametrize("seed", range(3))
async def test_placeholders_match_in_redis_as_they_do_in_a_node(redis: RedisServer, seed: int) -> None:
    chance = random.Random(seed)
    rules: list[ChannelRule] = []
    while len(rules) < 12:
        match = "".join(chance.choices(["a", "é:", "*", ".", "{identity}", "{claims.x}"], k=chance.randint(1, 6)))
        rule = ChannelRule(match, history=len(rules) + 1)
        if not rule.problems() and rule.pattern.sources:
            rules.append(rule)
    client = redis.client()
    async with keeper_of(redis, Rules(rules)):
        await until_loaded(client)
        hits = 0
        for number in range(120):
            name = "".join(chance.choices("aé:./%", weights=[9, 5, 5, 3, 1, 1], k=number % 7))
            key = f"{PREFIX}:{{pubsub:{name}}}"
            history = Rules(rules).find(name).history
            hits += history > 0
            for _ in range(history + 2):
                await fcall(client, key, "1")
            assert await client.xlen(f"{key}:history") == history, ([rule.match for rule in rules], name)
        assert hits > 10
    await client.aclose()


async def test_two_prefixes_share_one_redis_each_with_its_rules(redis: RedisServer) -> None:
    client = redis.client()
    async with keeper_of(redis), keeper_of(redis, Rules([ChannelRule("*", history=1)]), "other.one"):
        await until_loaded(client)
        await until_loaded(client, "other.one")
        for _ in range(3):
            await fcall(client, NAME, "1")
            await fcall(client, "other.one:{pubsub:kept:a}", "1")
            assert await fcall(client, f"{PREFIX}:{{pubsub:x}}", "1") == ""
            assert await fcall(client, "other.one:{pubsub:x}", "1") != ""
        assert await client.xlen(NAME + ":history") == 3
        assert await client.xlen("other.one:{pubsub:kept:a}:history") == 1
    await client.aclose()


async def test_a_channel_keeps_the_most_that_any_node_promises(redis: RedisServer) -> None:
    client = redis.client()
    one = {"pubsub": Rules([ChannelRule("kept:*", history=5, history_ttl_s=600)])}
    two = {"pubsub": Rules([ChannelRule("kept:b", history=2), ChannelRule("kept:*", history=9, history_ttl_s=60)])}
    async with functions_of(redis, one) as first, functions_of(redis, two) as second, functions_of(redis, {}) as stray:
        for each in (first, second, stray, first, second):
            await each.ensure()
        for _ in range(12):
            await fcall(client, NAME, "1")
            await fcall(client, f"{PREFIX}:{{pubsub:kept:b}}", "1")
        assert await client.xlen(f"{NAME}:history") == 9
        assert await client.xlen(f"{PREFIX}:{{pubsub:kept:b}}:history") == 5
        assert await client.pttl(f"{NAME}:history") > 590_000, "the longest time"
        for each in (first, second, stray):
            assert each.promised("pubsub", "kept:a", None) == History(600.0, 9)
            assert each.promised("pubsub", "other", None) is None
            assert each.promised("chat", "kept:a", None) is None
            assert each.has_other_rules
    await client.aclose()


async def test_a_stray_node_cannot_weaken_the_others_rules(redis: RedisServer) -> None:
    client = redis.client()
    async with keeper_of(redis):
        await until_loaded(client)
    async with functions_of(redis, {}) as alone:  # all other clients have disconnected, as while a deployment restarts
        await alone.ensure()
        assert await fcall(client, NAME, "1") != ""
        assert alone.promised("pubsub", "kept:a", None) == HISTORY
    await client.aclose()


async def test_rules_belong_to_a_prefix_and_a_database(redis: RedisServer) -> None:
    other_url = f"{redis.url.rstrip('/').removesuffix('/0')}/3"
    client, other = redis.client(), client_of(target_from_url(other_url))
    async with keeper_of(redis):
        await until_loaded(client)
        with pytest.raises(ResponseError, match="no node with this prefix"):
            await fcall(other, NAME, "1")
        async with (
            functions_of(redis, {}, url=other_url) as there,
            functions_of(redis, {}, "other") as beside,
        ):
            await there.ensure()
            await beside.ensure()
            assert not there.has_other_rules and not beside.has_other_rules
            assert await fcall(other, NAME, "1") == ""
            assert await fcall(client, "other:{pubsub:kept:a}", "1") == ""
            assert await fcall(client, NAME, "1") != ""
    await other.aclose()
    await client.aclose()


async def test_rules_of_stopped_nodes_end_after_a_grace_period_with_others_running(redis: RedisServer) -> None:
    client = redis.client()
    async with (
        functions_of(redis, {"pubsub": RULES}, grace_s=3.0) as gone,
        functions_of(redis, {}, grace_s=3.0) as left,
    ):
        await gone.ensure()
        await left.ensure()
        assert await fcall(client, NAME, "1") != ""
        async with asyncio.timeout(30.0):
            while left.has_other_rules:
                await left.ensure()
                await asyncio.sleep(0.05)
        assert await fcall(client, NAME, "1") == ""
    await client.aclose()


async def test_time_without_any_node_ends_no_rules(redis: RedisServer) -> None:
    client = redis.client()
    async with functions_of(redis, {"pubsub": RULES}) as functions, functions_of(redis, {}) as stray:
        await functions.ensure()
        lines = rules_key(PREFIX) + b":lines"
        counted, last = (int(part) for part in (await client.hget(lines, ":clock")).split())
        week_ago_ms = last - 7 * 86_400_000
        await client.hset(lines, ":clock", f"{counted} {week_ago_ms}")
        await stray.ensure()
        assert await fcall(client, NAME, "1") != ""
    await client.aclose()


async def ridden(functions: Functions) -> None:
    """Renew a lease once, as far as the functions see it."""
    call = functions.ride()
    assert call is not None
    (answer,) = await functions._scripts.run(call)
    functions.on_ridden(call, answer)


async def times_registered(client: Any) -> int:
    """Count the registrations: each counts the time of the rules."""
    return int((await client.info("commandstats"))["cmdstat_hset"]["calls"])


async def test_rules_that_a_renewal_registers_cost_no_command_of_their_own(redis: RedisServer) -> None:
    client = redis.client()
    async with functions_of(redis, {"pubsub": RULES}, look_s=1.0) as functions:
        assert functions.ride() is None, "services may set rules until the start"
        functions.start()
        await until_loaded(client)
        before = await times_registered(client)
        rides = 0
        async with asyncio.timeout(30.0):
            while rides < 40:
                await ridden(functions)
                rides += 1
                await asyncio.sleep(0.1)  # it looks at the library four times meanwhile
        assert await times_registered(client) <= before + rides + 1
        own = before + rides + 2
        await eventually(lambda: more_registered(client, own), within_s=30, what="it registers by itself")
    await client.aclose()


async def more_registered(client: Any, count: int) -> bool:
    return await times_registered(client) >= count


async def test_a_ride_from_before_new_rules_or_a_new_connection_does_not_count(redis: RedisServer) -> None:
    client = redis.client()
    async with functions_of(redis, {"pubsub": RULES}, look_s=3600.0) as functions:
        functions.start()
        await functions.ensure()
        call = functions.ride()
        assert call is not None
        functions.set_rules("pubsub", Rules([ChannelRule("new:*", history=7)]))
        functions.on_ridden(call, b"")
        await eventually(lambda: has_rule(client, "new:"), within_s=30, what="the new rules are registered")
        call = functions.ride()
        assert call is not None
        await client.flushall()
        functions._on_up()
        functions.on_ridden(call, b"")
        await eventually(lambda: has_rule(client, "new:"), within_s=30, what="the rules are registered again")
    await client.aclose()


async def has_rule(client: Any, text: str) -> bool:
    return text in (await client.get(rules_key(PREFIX)) or b"").decode()


async def test_rules_of_other_nodes_arrive_with_a_renewal(redis: RedisServer) -> None:
    async with functions_of(redis, {"pubsub": RULES}, look_s=3600.0) as one:
        one._task = asyncio.create_task(asyncio.sleep(3600))  # it looks only when it is asked to
        await one.ensure()
        async with functions_of(redis, {"pubsub": Rules([ChannelRule("other:*", history=9)])}) as other:
            await other.ensure()
        assert one.promised("pubsub", "other:1", None) is None
        late, former = one.ride(), one._tables.text
        await ridden(one)
        promised = History(ChannelRule("other:*", history=9).history_ttl_s, 9)
        assert one.promised("pubsub", "other:1", None) == promised
        assert late is not None
        one.on_ridden(late, former.encode())
        assert one.promised("pubsub", "other:1", None) == promised, "an older answer changes nothing"


async def test_a_ride_that_failed_does_not_count(redis: RedisServer) -> None:
    client = redis.client()
    async with functions_of(redis, {"pubsub": RULES}, look_s=0.1) as functions:
        functions.start()
        await functions.ensure()
        before = await times_registered(client)
        for _ in range(5):
            call = functions.ride()
            assert call is not None
            functions.on_ridden(call, hiredis.ReplyError("ERR"))
            await eventually(lambda: more_registered(client, before + 1), within_s=30, what="it registers by itself")  # noqa: B023
            before = await times_registered(client)
    await client.aclose()
