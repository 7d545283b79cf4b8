"""The library `snorky` in Redis: the effects of one FCALL by any client, and how nodes keep it loaded."""

from pathlib import Path

import pytest
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from snorky.gateway.protocol.publication import Position, read_publication
from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.target import target_from_url
from tests.support.fakes.brokers import PREFIX, open_broker
from tests.support.scenarios.functions import HISTORY, NAME, fcall, keeper_of, until_loaded
from tests.support.servers.redis_servers import RedisServer, start_server


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


async def test_the_embedded_imitation_takes_scripts_and_functions_as_they_are(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with start_server("fakeredis", tmp_path) as server, keeper_of(server) as keeper:
            client = server.client()
            await until_loaded(client)
            before = await keeper.publish("pubsub:kept:a", b"1", HISTORY)
            after = Position.parse(await fcall(client, NAME, "2"))
            assert (before.epoch, before.offset, after.epoch, after.offset) == (after.epoch, 1, before.epoch, 2)
            found = await keeper.read("pubsub:kept:a", before, is_away=True)
            assert found is not None and [each.position for each in found] == [after]
            await client.aclose()
    assert [log for log in logs if log["log_level"] not in ("debug", "info")] == []
