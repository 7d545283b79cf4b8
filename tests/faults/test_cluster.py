"""A Redis Cluster: slots move, primaries die; channels receive again, in order, within five seconds."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hiredis import ReplyError

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.contracts.history import History
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.publication import Position, read_publication
from snorky.gateway.redis import RedisHistory
from snorky.gateway.redis.cluster.broker import ClusterBroker
from snorky.gateway.redis.cluster.slots import slot_of
from snorky.gateway.redis.connection.resp import ConnectionLost, ask, command, dial
from snorky.gateway.redis.history.function_library import LOOK_S
from snorky.gateway.redis.keys import channel_name
from snorky.gateway.redis.target import target_from_url
from tests.support.fakes.brokers import PREFIX, Recorder, broker_of, hears
from tests.support.fakes.histories import history_on
from tests.support.processes.nodes import GATEWAY, NodeProcess, Process
from tests.support.processes.tools import eventually
from tests.support.servers.clusters import ClusterLab
from tests.support.servers.redis_servers import REAL_KINDS

pytestmark = pytest.mark.needs("redis-server")

OPERATIONS = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
HEALED_S = 5.0
FOREIGN_LIBRARY = "#!lua name=snorky\nredis.register_function('snorky_publish', function() return '' end)\n"
HOUR = History(3600.0)


@pytest.fixture(params=["redis"])
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ClusterLab]:
    async with asyncio.timeout(90.0), ClusterLab(request.param, tmp_path, replicas=1) as running:
        yield running


@asynccontextmanager
async def cluster_broker(lab: ClusterLab, **options: Any) -> AsyncIterator[tuple[ClusterBroker, Recorder]]:
    broker: Any = broker_of(lab.url, node_id="node-1", metrics=Metrics(), **options)
    recorder = Recorder()
    await broker.start(recorder)
    try:
        await hears(broker)
        yield broker, recorder
    finally:
        await broker.stop()


def keys_on(lab: ClusterLab, at: int, count: int = 1) -> list[str]:
    """Find keys whose channels lie on a primary, by the initial slot map."""
    found = [f"pubsub:{number}" for number in range(count * 20)]
    return [key for key in found if slot_of(channel_name(PREFIX, key)) * lab.primaries // 16_384 == at][:count]


@asynccontextmanager
async def functions(lab: ClusterLab, *, look_s: float = LOOK_S) -> AsyncIterator[RedisHistory]:
    """Run RedisHistory with the library `snorky_publish` loaded; every channel has a history.

    look_s: between two checks of the library.
    """
    keeper = history_on(target_from_url(lab.url))
    keeper.functions._look_s = look_s
    keeper.set_rules("pubsub", Rules([ChannelRule("*", history=100)]))

    async def are_loaded() -> bool:
        return all([await lab.ask(at, "FUNCTION", "LIST") for at in range(lab.primaries)])

    await keeper.start()
    try:
        await eventually(are_loaded, within_s=5, what="the function is loaded")
        yield keeper
    finally:
        await keeper.stop()


async def test_channels_of_all_shards_are_received(lab: ClusterLab) -> None:
    async with cluster_broker(lab) as (broker, heard):
        keys = [keys_on(lab, at)[0] for at in range(3)]
        for key in keys:
            await broker.subscribe(key)
            assert await broker.publish(key, b"1") == 1
        await heard.until(lambda: all(heard.of(key) == [b"1"] for key in keys))
        for at, key in enumerate(keys):
            assert await lab.ask(at, "SPUBLISH", channel_name(PREFIX, key), "2") == 1, "any client, by SPUBLISH"
        await heard.until(lambda: all(heard.of(key) == [b"1", b"2"] for key in keys))
        broker.unsubscribe(keys[0])
        assert not broker.is_subscribed(keys[0]) and broker.is_subscribed(keys[1])


@pytest.mark.parametrize("lab", REAL_KINDS, indirect=True)
async def test_a_slot_that_moves_takes_its_channels_along_in_order(lab: ClusterLab) -> None:
    async with cluster_broker(lab) as (broker, heard):
        (key,), (other,) = keys_on(lab, 0), keys_on(lab, 1)
        for each in (key, other):
            await broker.subscribe(each)
        slot = slot_of(channel_name(PREFIX, key))
        answers: list[asyncio.Future[int]] = []
        is_done = asyncio.Event()

        async def publish() -> None:
            number = 0
            while not is_done.is_set():
                number += 1
                answers.append(broker.publish(key, b"%d" % number))
                await asyncio.sleep(0.001)  # some hundred per second

        publishing = asyncio.create_task(publish())
        await heard.until(lambda: len(heard.of(key)) > 50)
        await lab.move_slot(slot, 0, 1)
        began = asyncio.get_running_loop().time()
        while not broker.is_subscribed(key) or broker.is_redis_unverified:
            await asyncio.sleep(0.005)  # properties cannot be awaited
            assert asyncio.get_running_loop().time() - began < HEALED_S
        count = len(heard.of(key))
        await heard.until(lambda: len(heard.of(key)) > count + 50)
        is_done.set()
        await publishing
        assert all(await asyncio.gather(*answers[-50:]))
        await heard.until(lambda: heard.of(key)[-1:] == [b"%d" % len(answers)])
        numbers = [int(payload) for payload in heard.of(key)]
        assert numbers == sorted(set(numbers)), "in order, each once"
        assert heard.interruptions >= 1, "messages in between may be lost, and that is reported"
        assert await lab.ask(1, "PUBSUB", "SHARDNUMSUB", channel_name(PREFIX, key)) == [channel_name(PREFIX, key), 1]
        assert await broker.publish(other, b"stayed") == 1


@pytest.mark.parametrize("lab", REAL_KINDS, indirect=True)
async def test_a_replica_replaces_a_primary_that_dies(lab: ClusterLab) -> None:
    async with cluster_broker(lab, publish_timeout_s=1.0) as (broker, heard):
        (key,), (other,) = keys_on(lab, 0), keys_on(lab, 1)
        for each in (key, other):
            await broker.subscribe(each)
        lab.servers[0].kill()
        await hears(broker, False)
        await lab.until_primary(3)
        assert await hears(broker, within_s=HEALED_S) < HEALED_S
        async with asyncio.timeout(HEALED_S):
            while True:
                try:
                    assert await broker.publish(key, b"after") == 1
                    break
                except BrokerUnavailable:
                    await asyncio.sleep(0.02)
        await heard.until(lambda: b"after" in heard.of(key))
        assert heard.interruptions >= 1
        assert await lab.ask(3, "PUBSUB", "SHARDNUMSUB", channel_name(PREFIX, key)) == [channel_name(PREFIX, key), 1]


async def test_a_shard_whose_canary_moved_gets_another_canary(lab: ClusterLab) -> None:
    async with cluster_broker(lab) as (broker, _):
        canaries = [name.decode() for name in await lab.ask(0, "PUBSUB", "SHARDCHANNELS")]
        slot = slot_of(canaries[0].encode())
        await lab.move_slot(slot, 0, 1)

        async def has_another() -> bool:  # the loss itself can be over before a poll sees it
            now = [name.decode() for name in await lab.ask(0, "PUBSUB", "SHARDCHANNELS")]
            return bool(now) and now != canaries

        await eventually(has_another, within_s=HEALED_S, what="another canary")
        await hears(broker, within_s=HEALED_S)


async def test_stored_publications_arrive_once_and_in_order_during_a_slot_move(lab: ClusterLab) -> None:
    (key,) = keys_on(lab, 0)
    keeper = history_on(target_from_url(lab.url))
    await keeper.start()
    try:
        begun = await keeper.position(key)
        answers: list[asyncio.Future[Position]] = []
        is_done = asyncio.Event()

        async def publish() -> None:
            while not is_done.is_set():
                answers.append(keeper.publish(key, b"%d" % (len(answers) + 1), HOUR))
                await asyncio.sleep(0.001)  # some hundred per second

        async def keeper_has(count: int) -> None:
            async def is_reached() -> bool:
                return len(answers) >= count and answers[count - 1].done()

            await eventually(is_reached, within_s=HEALED_S, what=f"{count} are stored")

        publishing = asyncio.create_task(publish())
        await keeper_has(100)
        await lab.move_slot(slot_of(channel_name(PREFIX, key)), 0, 1)
        await keeper_has(len(answers) + 100)
        is_done.set()
        await publishing
        positions = await asyncio.gather(*answers)
        assert [each.offset for each in positions] == list(range(1, len(answers) + 1)), "in the order of the calls"
        found = await keeper.read(key, begun)
        assert found is not None
        assert [int(each.payload) for each in found] == list(range(1, len(answers) + 1))
        assert await lab.ask(1, "XLEN", f"{PREFIX}:{{{key}}}:history") == len(answers)
    finally:
        await keeper.stop()


@pytest.mark.parametrize("first", ["read", "position", "publish", "recent"])
async def test_a_slot_that_moves_takes_its_epochs_along(lab: ClusterLab, first: str) -> None:
    """Another server has another run id, but data from a live shard is not an older copy."""
    (key,) = keys_on(lab, 0)
    keeper = history_on(target_from_url(lab.url))
    await keeper.start()
    try:
        begun = await keeper.position(key)
        await keeper.publish(key, b"1", HOUR)
        for other in (1, 2):  # the run id of each shard must be known first
            await keeper.publish(keys_on(lab, other)[0], b"1", HOUR)
        await lab.move_slot(slot_of(channel_name(PREFIX, key)), 0, 1)
        if first == "position":
            assert (await keeper.position(key)).epoch == begun.epoch
        elif first == "publish":
            assert (await keeper.publish(key, b"2", HOUR)).epoch == begun.epoch
        elif first == "recent":
            assert (await keeper.recent(key, 1))[1].epoch == begun.epoch
        found = await keeper.read(key, begun)
        assert found is not None and found[0].payload == b"1"
    finally:
        await keeper.stop()


@pytest.mark.parametrize("lab", REAL_KINDS, indirect=True)
async def test_a_foreign_library_on_one_primary_is_a_gap_for_clients_that_resume_at_once(lab: ClusterLab) -> None:
    keys = [keys_on(lab, at)[0] for at in range(3)]
    name, foreign = channel_name(PREFIX, keys[0]), FOREIGN_LIBRARY
    async with functions(lab, look_s=3600.0) as keeper:  # else a check may repair the library before it is called
        before = [await keeper.publish(key, b"1", HOUR) for key in keys]
        assert [await keeper.read(*each, is_away=True) for each in zip(keys, before, strict=True)] == [[], [], []]
        await lab.ask(0, "FUNCTION", "LOAD", "REPLACE", foreign)
        assert await lab.ask(0, "FCALL", "snorky_publish", 1, name, "2") == ""
        assert await keeper.read(keys[0], before[0], is_away=True) is None
        for at in range(3):
            assert "-- body" in str(await lab.ask(at, "FUNCTION", "LIST", "WITHCODE"))
        after = [await keeper.publish(key, b"3", HOUR) for key in keys]
        for each in zip(keys, after, strict=True):
            # each channel has one gap, as none knows which of them lost a message
            await keeper.read(*each, is_away=True)
        after = [await keeper.publish(key, b"4", HOUR) for key in keys]
        await lab.move_slot(slot_of(name), 0, 1)
        assert [await keeper.read(*each, is_away=True) for each in zip(keys, after, strict=True)] == [[], [], []]


@pytest.mark.parametrize("lab", REAL_KINDS, indirect=True)
async def test_a_publisher_sent_on_while_a_slot_moves_begins_no_second_history(lab: ClusterLab) -> None:
    name = channel_name(PREFIX, keys_on(lab, 0)[0])
    slot, call = slot_of(name), ("FCALL", "snorky_publish", 1, name, "{}")
    async with functions(lab):
        first = Position.parse(await lab.ask(0, *call, "first"))
        await lab.open_slot(slot, 0, 1)
        several = (*call, "third", "{}", "first", "{}", "")
        for words in (call, (*call, "first"), (*call, "second"), several):
            with pytest.raises(ReplyError, match=r"^ASK "):
                await lab.ask(0, *words)
            with pytest.raises(ReplyError, match=r"^TRYAGAIN "):
                await lab.ask(1, *words, is_sent_on=True)
        await lab.migrate(0, 1, name + b":position", name + b":history")
        with pytest.raises(ReplyError, match=r"^TRYAGAIN "):
            # this subscriber does not know yet that the slot was taken
            await lab.ask(1, *call, "first", is_sent_on=True)
        await lab.move_slot(slot, 0, 1)
        assert Position.parse(await lab.ask(1, *call, "first")) == first
        second = Position.parse(await lab.ask(1, *call, "second"))
        assert (second.epoch, second.offset) == (first.epoch, 2)
        answers = [Position.parse(each.decode()) for each in await lab.ask(1, *several)]
        assert [answer.offset for answer in answers] == [3, 1, 4]
        assert answers[1] == first


async def test_the_rights_that_operations_lists_are_enough_to_publish_by_the_function(lab: ClusterLab) -> None:
    listed = re.search(r"^    resetchannels (&PREFIX:\{pubsub:\* .*?)\n\n", OPERATIONS, re.MULTILINE | re.DOTALL)
    besides = re.search(r"publishes\s+by\s+`FCALL`\s+needs\s+`([^`]+)`", OPERATIONS)
    assert listed is not None and besides is not None
    rights = f"{listed[1]} {besides[1]}".replace("PREFIX", PREFIX).split()
    name = channel_name(PREFIX, keys_on(lab, 0)[0])

    async def publish() -> Any:
        target = target_from_url(lab.servers[0].url.replace("redis://", "redis://job:secret@"))
        wire = await dial(target, name="job", timeout_s=5.0)
        call = (b"FCALL", b"snorky_publish", b"1", name, b"{}", b"once")
        answer, several = await ask(wire, command(*call), command(*call, b"{}", b""))
        wire.close(ConnectionLost("asked"))
        await wire.wait_closed()
        assert isinstance(several, ReplyError) or several[0] == answer
        return answer if isinstance(several, list) else several

    async with functions(lab):
        for word in besides[1].split():
            await lab.ask(
                0, "ACL", "SETUSER", "job", "reset", "on", ">secret", *(each for each in rights if each != word)
            )
            assert isinstance(await publish(), ReplyError), f"{word} is asked for"
        await lab.ask(0, "ACL", "SETUSER", "job", "reset", "on", ">secret", *rights)
        assert Position.parse((await publish()).decode()).offset == 1


async def test_stored_publications_survive_their_primary(lab: ClusterLab) -> None:
    (key,) = keys_on(lab, 0)
    keeper = history_on(target_from_url(lab.url))
    await keeper.start()
    try:
        begun = await keeper.position(key)
        for number in (1, 2):
            await keeper.publish(key, b"%d" % number, HOUR)
        assert await lab.ask(0, "WAIT", 1, 10_000) == 1
        lab.servers[0].kill()
        await lab.until_primary(3)
        async with asyncio.timeout(HEALED_S):
            while True:
                try:
                    await keeper.publish(key, b"3", HOUR)
                    break
                except BrokerUnavailable:
                    await asyncio.sleep(0.02)
        found, top = await keeper.recent(key, 10)
        assert [each.payload for each in found] == [b"1", b"2", b"3"]
        # it cannot be verified that its replica had everything, so clients that resume from before must resynchronize
        assert await keeper.read(key, begun) is None and top.epoch != begun.epoch
    finally:
        await keeper.stop()


async def test_a_node_process_serves_a_cluster_and_publishers_find_the_slot(lab: ClusterLab) -> None:
    env = {"SNORKY_REDIS_URL": lab.url}
    channels = [key.removeprefix("pubsub:") for at in range(3) for key in keys_on(lab, at)]
    async with NodeProcess.running(env) as node:
        watching = Process(
            [*GATEWAY, "subscribe", "--count", "3", "--url", node.websocket_url, *channels],
            ready=f"subscribed to .*{channels[-1]}",
        )
        try:
            await watching.wait_ready()
            for channel in channels:
                publishing = Process([*GATEWAY, "publish", channel, "1"], env=env)
                assert await publishing.wait() == 0 and "1 node received it" in publishing.log
                await publishing.close()
            assert await watching.wait() == 0
        finally:
            await watching.close()
        checking = Process([*GATEWAY, "check"], env=env)
        assert await checking.wait() == 0, checking.log
        await checking.close()
        assert "3 primaries, 16384 of 16384 slots" in checking.log


async def test_stored_publications_arrive_with_their_positions(lab: ClusterLab) -> None:
    (key,) = keys_on(lab, 2)
    keeper = history_on(target_from_url(lab.url))
    async with cluster_broker(lab) as (broker, heard):
        await keeper.start()
        try:
            await broker.subscribe(key)
            position = await keeper.publish(key, b"1", HOUR)
            await heard.until(lambda: heard.of(key))
            publication = read_publication(heard.of(key)[0])
            assert (publication.payload, publication.position) == (b"1", position)
        finally:
            await keeper.stop()
