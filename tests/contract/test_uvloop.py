"""The loop that nodes run on: results of the other tests on asyncio's own loop hold on uvloop too."""

import asyncio
from pathlib import Path

import uvloop

from tests.support.fakes.brokers import hears, open_broker
from tests.support.processes.proxy import FaultProxy
from tests.support.servers.redis_servers import RedisServer

NEWS = "pubsub:news"


def test_publish_pause_loss_and_half_open_are_the_same_on_uvloop(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            RedisServer("redis", tmp_path) as server,
            FaultProxy("127.0.0.1", server.port) as proxy,
            open_broker(proxy.url, silence_s=0.3, deadline_s=2.0) as (broker, heard),
        ):
            await broker.subscribe(NEWS)
            sent = [b"%d" % number for number in range(10_000)]
            assert await asyncio.gather(*(broker.publish(NEWS, each) for each in sent)) == [1] * len(sent)
            await heard.until(lambda: heard.of(NEWS) == sent)
            broker.pause()
            assert await broker.publish(NEWS, b"paused") == 1
            broker.resume()
            await heard.until(lambda: heard.of(NEWS)[-1] == b"paused")
            for _ in range(3):
                before = heard.interruptions
                proxy.cut()
                await heard.until(lambda before=before: heard.interruptions > before)  # type: ignore[misc]
                await hears(broker)
            proxy.swallow()
            await hears(broker, False)
            proxy.heal()
            await hears(broker)
            assert await broker.publish(NEWS, b"healed") == 1
            await heard.until(lambda: heard.of(NEWS)[-1] == b"healed")

    uvloop.run(scenario())


async def test_a_server_on_a_unix_socket_is_spoken_to(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with RedisServer("redis", tmp_path, conf=[f"unixsocket {path}"]):
        async with open_broker(f"unix://{path}?db=3") as (broker, heard):
            await broker.subscribe(NEWS)
            assert await broker.publish(NEWS, b"1") == 1
            await heard.until(lambda: heard.of(NEWS) == [b"1"])
