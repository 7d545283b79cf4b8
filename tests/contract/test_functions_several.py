"""One FCALL with several payloads: positions, idempotency keys and refusals of each publication."""

from itertools import pairwise
from typing import Any

import pytest
from redis.exceptions import ResponseError

from snorky.client import Publication
from snorky.client.aio import Publisher
from snorky.gateway.protocol.publication import Position, read_publication
from tests.support.fakes.brokers import PREFIX, open_broker
from tests.support.scenarios.functions import HISTORY, NAME, fcall, keeper_of, until_loaded
from tests.support.servers.redis_servers import RedisServer

KEY = "pubsub:kept:a"


async def several(client: Any, name: str, *arguments: str | bytes) -> list[str]:
    """Call the function with payloads that are each followed by a key; '' = none."""
    answers = await client.execute_command("FCALL", "snorky_publish", 1, name, *arguments)
    return [answer.decode() for answer in answers]


async def test_several_payloads_get_consecutive_positions_and_are_heard_in_order(server: Any) -> None:
    client = server.client()
    async with open_broker(server.url) as (broker, recorder), keeper_of(server) as keeper:
        await until_loaded(client)
        begun = await keeper.position(KEY)
        await broker.subscribe(KEY)
        first = Position.parse(await fcall(client, NAME, "1"))
        answers = [Position.parse(each) for each in await several(client, NAME, "2", "", "3", "k3", "4", "")]
        last = await keeper.publish(KEY, b"5", HISTORY)
        positions = [first, *answers, last]
        assert [position.offset for position in positions] == [1, 2, 3, 4, 5]
        assert len({position.tag for position in positions}) == 5
        await recorder.until(lambda: len(recorder.of(KEY)) == 5)
        heard = [read_publication(data) for data in recorder.of(KEY)]
        assert [each.position or each.hint for each in heard] == positions
        kept = await keeper.read(KEY, begun)
        assert kept is not None and [each.payload for each in kept] == [b"%d" % number for number in range(1, 6)]
        assert [each.position for each in kept] == positions
        assert all(later.previous_tag == earlier.position.tag for earlier, later in pairwise(kept) if earlier.position)
    await client.aclose()


async def test_each_payload_has_a_key_of_its_own(server: Any) -> None:
    """Those whose key was used are not published again; the others are."""
    client = server.client()
    async with keeper_of(server) as keeper:
        await until_loaded(client)
        alone = await fcall(client, NAME, "1", "a}b%")
        (first, second, third) = await several(client, NAME, "1", "a}b%", "2", "b", "3", "")
        assert first == alone
        assert [Position.parse(each).offset for each in (second, third)] == [2, 3]
        again = await several(client, NAME, "4", "c", "2", "b", "1", "a}b%")
        assert again[1:] == [second, first]
        assert Position.parse(again[0]).offset == 4
        assert await several(client, NAME, "4", "c", "2", "b") == [again[0], second], "nothing is new"
        assert await fcall(client, NAME, "4", "c") == again[0]
        assert str(await keeper.publish(KEY, b"2", HISTORY, once="backend b")) == second
        assert await client.xlen(NAME + ":history") == 4
        assert 290_000 < await client.pttl(NAME + ":once:given backend b") <= 300_000
    await client.aclose()


async def test_a_key_that_a_call_has_twice_publishes_once(server: Any) -> None:
    client = server.client()
    async with keeper_of(server):
        await until_loaded(client)
        answers = await several(client, NAME, "1", "a", "2", "", "1", "a", "3", "b", "1", "a")
        assert [Position.parse(each).offset for each in answers] == [1, 2, 1, 3, 1]
        assert answers[0] == answers[2] == answers[4]
        assert await several(client, NAME, "1", "d", "1", "d") == [await fcall(client, NAME, "1", "d")] * 2
        assert await client.xlen(NAME + ":history") == 4
    await client.aclose()


async def test_without_a_history_each_is_delivered_once_per_key(server: Any) -> None:
    client = server.client()
    async with open_broker(server.url) as (broker, recorder), keeper_of(server):
        await until_loaded(client)
        await broker.subscribe("pubsub:bare")
        name = f"{PREFIX}:{{pubsub:bare}}"
        assert await several(client, name, "1", "", "2", "b", "3", "c") == [""] * 3
        assert await several(client, name, "2", "b", "4", "d", "3", "c") == [""] * 3
        assert await fcall(client, name, "4", "d") == ""
        assert await fcall(client, name, "5") == ""
        await recorder.until(lambda: b"5" in recorder.of("pubsub:bare"))
        assert recorder.of("pubsub:bare") == [b"1", b"2", b"3", b"4", b"5"]
    await client.aclose()


async def test_a_call_keeps_as_many_as_the_rule_says(server: Any) -> None:
    client = server.client()
    async with keeper_of(server):
        await until_loaded(client)
        name = f"{PREFIX}:{{pubsub:a:fewx}}"  # its rule keeps two
        answers = await several(client, name, "1", "", "2", "", "3", "", "4", "")
        assert [Position.parse(each).offset for each in answers] == [1, 2, 3, 4]
        assert [entry_id for entry_id, _ in await client.xrange(name + ":history")] == [b"3-0", b"4-0"]
    await client.aclose()


async def test_a_call_has_at_most_64_payloads_and_1_mib_of_them(server: Any) -> None:
    client = server.client()
    async with keeper_of(server):
        await until_loaded(client)
        full = [word for number in range(64) for word in (str(number), f"k{number}")]
        assert [Position.parse(each).offset for each in await several(client, NAME, *full)] == list(range(1, 65))
        with pytest.raises(ResponseError, match=r"takes one key, .* up to 64 payloads"):
            await several(client, NAME, *full, "64", "k64")
        half = '"' + "x" * (524_288 - 2) + '"'
        assert len(await several(client, NAME, half, "", half, "")) == 2
        with pytest.raises(ResponseError, match=r"the payloads of a call have 1048577 bytes, .*publication 3 of the"):
            await several(client, NAME, half, "", half, "", "1", "")
        assert await client.xlen(NAME + ":history") == 66
    await client.aclose()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["1", "a", "2"], "takes one key"),
        (["1", "a", "{", "b"], r"the payload is no JSON \(publication 2 of the call\)"),
        (["1", "a", b"\xc11 e:1:t t j\n1", "b"], "no JSON"),
        (["1", "k" * 256, "2", "b"], r"1 to 255 bytes \(publication 1 of the call\)"),
    ],
)
async def test_one_malformed_publication_refuses_the_whole_call(
    server: Any, arguments: list[str | bytes], why: str
) -> None:
    client = server.client()
    async with keeper_of(server):
        await until_loaded(client)
        with pytest.raises(ResponseError, match="snorky_publish: .*" + why):
            await several(client, NAME, *arguments)
        assert await client.keys("*pubsub*") == []
        assert Position.parse(await fcall(client, NAME, "1", "a")).offset == 1
    await client.aclose()


async def test_out_of_memory_refuses_the_whole_call(redis: RedisServer) -> None:
    client = redis.client()
    async with keeper_of(redis):
        await until_loaded(client)
        await fcall(client, NAME, "1")
        await client.config_set("maxmemory", "1")
        with pytest.raises(ResponseError, match="maxmemory"):
            await several(client, NAME, "2", "b", "3", "c")
        await client.config_set("maxmemory", "0")
        answers = await several(client, NAME, "2", "b", "3", "c")
        assert [Position.parse(each).offset for each in answers] == [2, 3]
    await client.aclose()


async def test_publisher_meets_the_library_of_an_earlier_version(redis: RedisServer) -> None:
    """During a rolling upgrade an earlier node may have loaded its library, whose function takes one payload."""
    client = redis.client()
    async with keeper_of(redis) as keeper:
        library = await until_loaded(client)
        begun = await keeper.position(KEY)
    several_begin = "  local count = #args > 2 and #args / 2 or 1\n"
    refusal = "refuse('takes one key, a payload, and perhaps an idempotency key')"
    refusing = f"  if #args > 2 then\n    return {refusal}\n  end\n"
    assert library.count(several_begin) == 1
    earlier = library.replace(several_begin, refusing + several_begin)
    await client.execute_command("FUNCTION", "LOAD", "REPLACE", earlier)
    async with Publisher(redis.url, prefix=PREFIX) as publisher:
        receipts = await publisher.publish_many(Publication("kept:a", number, key=f"k{number}") for number in range(5))
        await client.execute_command("FUNCTION", "LOAD", "REPLACE", library)
        again = await publisher.publish_many(Publication("kept:a", number, key=f"k{number}") for number in range(7))
    positions = [str(receipt.position) for receipt in again]
    assert [str(receipt.position) for receipt in receipts] == positions[:5], "keys are the same in both versions"
    async with keeper_of(redis) as keeper:
        kept = await keeper.read(KEY, begun)
        assert kept is not None and [each.payload for each in kept] == [b"%d" % number for number in range(7)]
        assert [str(each.position) for each in kept] == positions
    await client.aclose()
