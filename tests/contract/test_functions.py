"""The library `snorky` in Redis: the effects of one FCALL by any client, and how nodes keep it loaded."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis as BlockingRedis
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

import snorky.gateway.redis
from snorky.gateway.config.channel_rules import ChannelRule, Rules
from snorky.gateway.contracts.history import History
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.publication import Position, read_publication
from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.connection.commands import CommandPipeline
from snorky.gateway.redis.connection.scripts import Scripts
from snorky.gateway.redis.directory.heartbeat import INTERVAL_S
from snorky.gateway.redis.history.function_library import LOOK_S, Functions
from snorky.gateway.redis.history.library_text import FORMAT, Found, judge, write_library
from snorky.gateway.redis.history.store import RedisHistory
from snorky.gateway.redis.keys import doubt_key, rules_key
from snorky.gateway.redis.target import target_from_url
from tests.support.fakes.brokers import PREFIX, open_broker
from tests.support.fakes.histories import history_on
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import REAL_KINDS, FakeRedisServer, RedisServer, start_server

RULES = Rules([ChannelRule("kept:*", history=100), ChannelRule("*:few*x", history=2), ChannelRule("bare*")])
HISTORY = History(300.0, 100)
NAME = f"{PREFIX}:{{pubsub:kept:a}}"
FUNCTION = (Path(snorky.gateway.redis.__file__).parent / "history/lua/library/snorky_publish.lua").read_text()


@pytest.fixture(params=REAL_KINDS)
async def redis(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(request.param, tmp_path) as server:
        yield server


@asynccontextmanager
async def keeper_of(
    server: RedisServer | FakeRedisServer, rules: Rules = RULES, prefix: str = PREFIX, *, url: str = ""
) -> AsyncIterator[RedisHistory]:
    """Run RedisHistory; starts when the functions are loaded, where there are any."""
    keeper = history_on(target_from_url(url or server.url), prefix=prefix)
    keeper.set_rules("pubsub", rules)
    keeper.set_rules("chat", Rules())
    await keeper.start()
    try:
        yield keeper
    finally:
        await keeper.stop()


@asynccontextmanager
async def functions_of(
    server: RedisServer,
    rules: Mapping[str, Rules],
    prefix: str = PREFIX,
    *,
    url: str = "",
    metrics: Metrics | None = None,
    **options: Any,
) -> AsyncIterator[Functions]:
    """Run the functions of a node; nothing is loaded until `ensure` or the next check."""
    commander = CommandPipeline(
        target_from_url(url or server.url),
        role="history",
        client_name="test",
        metrics=Metrics(),
        timeout_s=5.0,
        dial_timeout_s=2.0,
    )
    functions = Functions(commander, Scripts(commander), prefix=prefix, metrics=metrics or Metrics(), **options)
    for service, each in rules.items():
        functions.set_rules(service, each)
    commander.start()
    try:
        yield functions
    finally:
        await functions.stop()
        await commander.stop()


async def until_loaded(client: Any, prefix: str = PREFIX) -> str:
    """Wait until a prefix's rules and the library are in Redis; returns the library."""
    async with asyncio.timeout(5.0):
        while judge(library := await library_of(client) or None) is not Found.OURS or not await client.exists(  # noqa: ASYNC110 - another task loads
            rules_key(prefix)
        ):
            await asyncio.sleep(0.01)
    return library or ""


async def library_of(client: Any) -> str:
    found = await client.execute_command("FUNCTION", "LIST", "LIBRARYNAME", "snorky", "WITHCODE")
    if not found:
        return ""
    fields = found[0] if isinstance(found[0], list) else [part for pair in found[0].items() for part in pair]
    named = {bytes(name): value for name, value in zip(fields[::2], fields[1::2], strict=True)}
    return bytes(named[b"library_code"]).decode()


async def fcall(client: Any, name: str | bytes, *arguments: str | bytes) -> str:
    return str((await client.execute_command("FCALL", "snorky_publish", 1, name, *arguments)).decode())


async def test_one_fcall_keeps_and_publishes_as_a_node_does(redis: RedisServer) -> None:
    client = redis.client()
    async with open_broker(redis.url) as (broker, recorder), keeper_of(redis) as keeper:
        await until_loaded(client)
        begun = await keeper.position("pubsub:kept:a")
        await broker.subscribe("pubsub:kept:a")
        first = Position.parse(await fcall(client, NAME, '{"any":"JSON"}'))
        second = await keeper.publish("pubsub:kept:a", b"2", HISTORY)
        third = Position.parse(await fcall(client, NAME, "3"))
        assert [first.offset, second.offset, third.offset] == [1, 2, 3]
        await recorder.until(lambda: len(recorder.of("pubsub:kept:a")) == 3)
        heard = [read_publication(data) for data in recorder.of("pubsub:kept:a")]
        assert [each.position or each.hint for each in heard] == [first, second, third]
        assert [each.position for each in heard] == [None, second, None]  # any client may send what the function sends
        kept = await keeper.read("pubsub:kept:a", begun)
        assert kept is not None and [each.payload for each in kept] == [each.payload for each in heard]
        assert [each.payload for each in heard] == [b'{"any":"JSON"}', b"2", b"3"]
        assert await client.pttl(NAME + ":history") > 290_000
    await client.aclose()


async def test_anonymous_publishers_share_idempotency_keys(redis: RedisServer) -> None:
    client = redis.client()
    async with keeper_of(redis) as keeper:
        await until_loaded(client)
        first = await fcall(client, NAME, "1", "order 7")
        assert await fcall(client, NAME, "1", "order 7") == first
        assert str(await keeper.publish("pubsub:kept:a", b"1", HISTORY, once="backend order 7")) == first
        assert Position.parse(await fcall(client, NAME, "1", "order 8")).offset == 2
        assert await client.xlen(NAME + ":history") == 2
    await client.aclose()


async def test_an_idempotency_key_cannot_collide_with_another_channels_state(redis: RedisServer) -> None:
    client = redis.client()
    looks = "x}:position 100% %7D"
    async with keeper_of(redis) as keeper:
        await until_loaded(client)
        first = await fcall(client, NAME, "1", looks)
        assert str(await keeper.publish("pubsub:kept:a", b"1", HISTORY, once=f"backend {looks}")) == first
        plain = await fcall(client, NAME, "2", "x}:position")
        assert Position.parse(plain).offset == 2
        assert await fcall(client, NAME, "2", "x}:position") == plain
        # the channel whose state that key would be
        other = f"{PREFIX}:{{pubsub:kept:a}}:once:given backend x}}"
        assert Position.parse(await fcall(client, other, "1")).offset == 1
    await client.aclose()


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


async def test_without_a_history_it_is_delivered_and_once_per_key(redis: RedisServer) -> None:
    client = redis.client()
    async with open_broker(redis.url) as (broker, recorder), keeper_of(redis):
        await until_loaded(client)
        await broker.subscribe("pubsub:bare")
        name = f"{PREFIX}:{{pubsub:bare}}"
        assert [
            await fcall(client, name, payload, *once) for payload, *once in (["1"], ["2", "3"], ["2", "3"], ["4"])
        ] == [""] * 4
        await recorder.until(lambda: b"4" in recorder.of("pubsub:bare"))
        assert recorder.of("pubsub:bare") == [b"1", b"2", b"4"]
        assert [key for key in await client.keys("*") if b":once:" not in key and b"nodes" not in key] == []
    await client.aclose()


REFUSED: list[tuple[str | bytes, list[str | bytes], str]] = [
    (NAME, ["not JSON"], "no JSON"),
    (NAME, [""], "no JSON"),
    (NAME, ["{"], "no JSON"),
    (NAME, ["1 2"], "no JSON"),
    (NAME, ["[" * 5000 + "]" * 5000], "no JSON"),
    (NAME, [b"\xc11 e:1:t t j\n1"], "no JSON"),
    (NAME, ["1", ""], "1 to 255 bytes"),
    (NAME, ["1", "k" * 256], "1 to 255 bytes"),
    (NAME, ["1", "2", "3"], "takes one key"),
    (NAME, [], "takes one key"),
    ("pubsub:kept:a", ["1"], "PREFIX:{SERVICE:CHANNEL}"),
    (f"{PREFIX}:{{pubsub:kept:a", ["1"], "PREFIX:{SERVICE:CHANNEL}"),
    (f"{PREFIX}:{{pubsub}}", ["1"], "PREFIX:{SERVICE:CHANNEL}"),
    (f"{PREFIX}:{{Pub Sub:a}}", ["1"], "PREFIX:{SERVICE:CHANNEL}"),
    (f"{PREFIX}:{{pubsub:{'x' * 257}}}", ["1"], "PREFIX:{SERVICE:CHANNEL}"),
    ("other:{pubsub:kept:a}", ["1"], "no node with this prefix"),
]


@pytest.mark.parametrize(("name", "arguments", "why"), REFUSED)
async def test_malformed_calls_are_refused_and_leave_no_state(
    tmp_path: Path, name: str | bytes, arguments: list[str | bytes], why: str
) -> None:
    async with RedisServer("redis", tmp_path) as server, keeper_of(server):
        client = server.client()
        await until_loaded(client)
        with pytest.raises(ResponseError, match="snorky_publish: .*" + why):
            await fcall(client, name, *arguments)
        assert await client.keys("*pubsub*") == []
        await client.aclose()


async def test_out_of_memory_refuses_before_anything_is_stored(redis: RedisServer) -> None:
    client = redis.client()
    async with keeper_of(redis):
        await until_loaded(client)
        first = Position.parse(await fcall(client, NAME, "1"))
        await client.config_set("maxmemory", "1")
        with pytest.raises(ResponseError, match="maxmemory"):
            await fcall(client, NAME, "2", "key")
        await client.config_set("maxmemory", "0")
        assert Position.parse(await fcall(client, NAME, "2", "key")).offset == first.offset + 1
    await client.aclose()


async def test_epochs_and_tags_are_others_after_every_start_of_the_server(redis: RedisServer) -> None:
    epochs, tags = set(), set()
    async with keeper_of(redis):
        for _ in range(4):
            client = redis.client()
            await until_loaded(client)
            positions = [Position.parse(await fcall(client, NAME, "1")) for _ in range(3)]
            epochs |= {position.epoch for position in positions}
            tags |= {position.tag for position in positions}
            await client.aclose()
            await redis.restart()
    assert (len(epochs), len(tags)) == (4, 12)


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
        functions_of(redis, {"pubsub": RULES}, grace_s=0.2) as gone,
        functions_of(redis, {}, grace_s=0.2) as left,
    ):
        await gone.ensure()
        await left.ensure()
        assert await fcall(client, NAME, "1") != ""
        async with asyncio.timeout(5.0):
            while left.has_other_rules:
                await left.ensure()
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
        async with asyncio.timeout(5.0):
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

        await eventually(is_refused, within_s=10, what="the other node has seen the mark")
        await eventually(are_later_ones_good, within_s=10, what="positions after the repair are valid")
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
        await client.execute_command("FUNCTION", "LOAD", "REPLACE", OLDER)
        await fcall(client, NAME, "3")
        found, _ = await keeper.recent(key, 10, before)
        assert [each.payload for each in found] == [b"1", b"2"], "as if there were no position"
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

        first = await calls()
        for _ in range(10):
            assert await keeper.read(key, before, is_away=True) == []
        second = await calls()
        looks = second["fcall_ro"] - first["fcall_ro"] - 10
        assert looks in (0, 2) and second["function|load"] == first["function|load"]  # 2: a heartbeat of the node
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


def test_a_node_checks_the_library_again_within_a_heartbeat() -> None:
    assert LOOK_S <= INTERVAL_S


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
        async with asyncio.timeout(5.0):
            while not metrics.registry.get_sample_value("snorky_redis_library_unusable"):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
    assert await library_of(client) == later
    await client.aclose()


async def test_a_user_that_cannot_read_the_rules_gets_the_missing_grant(redis: RedisServer) -> None:
    client = redis.client()
    async with keeper_of(redis):
        await until_loaded(client)
        rights = f"on nopass ~{PREFIX}:{{pubsub:* &* +@all"
        await client.execute_command("ACL", "SETUSER", "job", *rights.split())
        job = client_of(target_from_url(redis.url.replace("redis://", "redis://job:x@")))
        with pytest.raises(ResponseError, match=r"cannot read the channel rules: give the Redis user .*::rules"):
            await fcall(job, NAME, "1")
        assert await client.keys("*pubsub*") == []
        await client.execute_command("ACL", "SETUSER", "job", f"%R~{PREFIX}:{{nodes}}::rules")
        assert await fcall(job, NAME, "1") != ""
        await job.aclose()
    await client.aclose()


async def test_unstored_publications_end_earlier_positions_of_absent_clients(redis: RedisServer) -> None:
    async with keeper_of(redis) as keeper:
        first = await keeper.publish("pubsub:kept:a", b"1", HISTORY)
        second = await keeper.publish("pubsub:kept:a", b"2", HISTORY)
        await keeper.note_lost("pubsub:kept:a")
        await keeper.note_lost("pubsub:kept:never")
        assert await keeper.read("pubsub:kept:a", first, is_away=True) is None
        assert await keeper.read("pubsub:kept:a", second, is_away=True) is None
        assert await keeper.read("pubsub:kept:a", second) == [], "a node at the top has received it"
        assert await keeper.read("pubsub:kept:a", first) is None
        third = await keeper.publish("pubsub:kept:a", b"3", HISTORY)
        fourth = await keeper.publish("pubsub:kept:a", b"4", HISTORY)
        found = await keeper.read("pubsub:kept:a", third, is_away=True)
        assert found is not None and [each.position for each in found] == [fourth]
        assert await keeper.positions(["pubsub:kept:never"]) == {}


async def test_a_server_without_functions_is_reported_once_and_still_works(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with start_server("fakeredis", tmp_path) as server, keeper_of(server) as keeper:
            for number in range(5):
                assert (await keeper.publish("pubsub:kept:a", b"1", HISTORY)).offset == number + 1
                assert (await keeper.position("pubsub:kept:a")).offset == number + 1
    assert [log["event"] for log in logs].count("snorky_publish is not loaded") == 1
    assert [log["role"] for log in logs if log["event"] == "redis connection lost"] == ["sequencer"]  # of the shebang
