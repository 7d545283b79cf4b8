"""What publishers do whose server does not answer, answers twice, or is full."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.protocol.publication import Position, read_publication
from snorky.gateway.redis.connection.timeouts import RedisTimeouts
from tests.support.fakes.brokers import PREFIX, open_broker
from tests.support.processes.proxy import FaultProxy
from tests.support.scenarios.histories import HOUR, KEY, fill, keeper_of, payloads, until
from tests.support.servers.redis_servers import REAL_KINDS, RedisServer, start_server


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_unanswered_publications_are_sent_again_and_stored_once(kind: str, tmp_path: Path) -> None:
    """Connections are killed repeatedly during 3,000 publications: each is delivered once, in order."""
    async with start_server(kind, tmp_path) as server, keeper_of(server.url) as keeper:
        client = server.client()
        begun = await keeper.position(KEY)
        futures: list[asyncio.Future[Position]] = []
        for number in range(3000):
            futures.append(keeper.publish(KEY, b"%d" % number, HOUR))
            if number % 100 == 50:
                await asyncio.wait(futures[-2:], timeout=0.001)
                await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        positions = await asyncio.gather(*futures)
        assert [position.offset for position in positions] == list(range(1, 3001))
        assert payloads(await keeper.read(KEY, begun)) == [b"%d" % number for number in range(3000)]
        await client.aclose()


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_a_proxy_that_swallows_replies_makes_nothing_twice(kind: str, tmp_path: Path) -> None:
    async with start_server(kind, tmp_path) as server, FaultProxy("127.0.0.1", server.port) as proxy:
        async with keeper_of(proxy.url) as keeper, keeper_of(server.url) as direct:
            begun = await direct.position(KEY)
            await fill(keeper, 1)
            proxy.lose_replies()
            future = keeper.publish(KEY, b"2", HOUR)

            async def is_stored() -> bool:
                return (await direct.position(KEY)).offset == 2

            await until(is_stored)
            assert not future.done()
            proxy.heal()
            proxy.cut()
            assert (await future).offset == 2
            await fill(keeper, 1, first=3)
            assert payloads(await direct.read(KEY, begun)) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_ten_thousand_retried_through_a_proxy_that_drops_replies_are_ten_thousand(
    kind: str, tmp_path: Path
) -> None:
    """Each is retried under its key until it is answered, while replies are lost and connections cut."""
    async with start_server(kind, tmp_path) as server, FaultProxy("127.0.0.1", server.port) as proxy:
        async with (
            keeper_of(proxy.url, timeouts=RedisTimeouts(publish_timeout_s=0.5)) as keeper,
            keeper_of(server.url) as direct,
        ):
            client = server.client()
            begun = await direct.position(KEY)
            numbers = iter(range(10_000))
            answers: dict[int, Position] = {}

            async def publisher() -> None:
                for number in numbers:
                    while number not in answers:
                        with suppress(BrokerUnavailable):
                            answers[number] = await keeper.publish(KEY, b"%d" % number, HOUR, once=f"key {number}")

            async def more_are_stored(count: int) -> None:
                goal = (await direct.position(KEY)).offset + count

                async def is_reached() -> bool:
                    return (await direct.position(KEY)).offset >= goal

                await until(is_reached)

            async def saboteur() -> None:
                while True:
                    await more_are_stored(200)
                    before = proxy.lost_bytes
                    proxy.lose_replies()
                    await until(lambda before=before: asyncio.sleep(0, proxy.lost_bytes > before))  # of a batch
                    proxy.heal()
                    proxy.cut()

            async with asyncio.TaskGroup() as tasks:  # if the saboteur fails, all end: only it heals the proxy
                sabotage = tasks.create_task(saboteur())
                for publishing in [tasks.create_task(publisher()) for _ in range(200)]:
                    await publishing
                sabotage.cancel()
            assert await client.xlen(f"{PREFIX}:{{{KEY}}}:history") == 10_000
            stored = await direct.read(KEY, begun)
            assert stored is not None
            found = {int(each.payload): each.position for each in stored}
            assert [number for number in range(10_000) if found.get(number) != answers[number]] == []
            assert proxy.connections > 10
            await client.aclose()


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_out_of_memory_refuses_before_anything_is_stored_or_sent(kind: str, tmp_path: Path) -> None:
    async with start_server(kind, tmp_path) as server, open_broker(server.url) as (broker, recorder):
        async with keeper_of(server.url) as keeper:
            client = server.client()
            await broker.subscribe(KEY)
            (first,) = await fill(keeper, 1)
            await client.config_set("maxmemory", "1")
            with pytest.raises(BrokerUnavailable) as refusal:
                await keeper.publish(KEY, b"2", HOUR)
            assert "OOM" in refusal.value.what
            with pytest.raises(BrokerUnavailable):  # a channel that does not exist yet: the script starts differently
                await keeper.publish("datasync:Other", b"2", HOUR)
            assert await client.keys("*Other*") == []
            await client.config_set("maxmemory", "0")
            assert await keeper.position(KEY) == first
            await fill(keeper, 1, first=3)
            await recorder.until(lambda: len(recorder.of(KEY)) == 2)
            assert [read_publication(data).payload for data in recorder.of(KEY)] == [b"1", b"3"]
            await client.aclose()


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_calls_without_an_answer_fail_by_their_deadline(kind: str, tmp_path: Path) -> None:
    async with (
        RedisServer(kind, tmp_path) as server,
        keeper_of(server.url, timeouts=RedisTimeouts(publish_timeout_s=0.5)) as keeper,
    ):

        async def is_published() -> bool:
            with suppress(BrokerUnavailable):  # the timeout is short
                await keeper.publish(KEY, b"1", HOUR)
                return True
            return False

        await until(is_published)
        server.freeze()
        futures = [keeper.publish(KEY, b"2", HOUR) for _ in range(3)]
        done, _ = await asyncio.wait(futures, timeout=3.0)
        server.thaw()
        assert len(done) == 3
        assert all(isinstance(future.exception(), BrokerUnavailable) for future in futures)
        await until(is_published)
