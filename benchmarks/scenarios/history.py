"""`python -m benchmarks.scenarios.history`: cost of a history, and of recovery. One node, one Redis, loopback.

Publishing: 100 bytes of payload to one channel and to 100, pipelined, with and without a history in turn; medians.
First no client is subscribed, then one Redis client that counts as a second node.
Memory: the growth of Redis for each. Recovery: 1,000 clients request at once the 20 messages that they missed; each is
timed from the first request of all to its own answer. Figures: benchmarks/README.md.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter, process_time
from typing import Any

import structlog

from benchmarks.servers.redis_server import RedisServer, request
from benchmarks.support.machine import describe
from snorky.gateway import ChannelRule, Connection, History, Node, ServiceRegistry, Settings
from snorky.gateway.protocol.codec import decode_json, encode_json
from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.keys import channel_name, node_channel_name
from snorky.gateway.redis.target import target_from_url
from snorky.gateway.runtime.node import running_node
from snorky.services.pubsub import PubSubService
from tests.support.fakes.fake_wire import JSON, UNLIMITED, FakeTransport

__all__: list[str] = []

CHANNELS = 50
MESSAGES = 20_000
REPETITIONS = 5
WINDOW = 1_000  # publications in flight
CLIENTS = 1_000
MISSED = 20  # messages of each channel
PAYLOAD = "x" * 98  # and two quotation marks
KEPT = History(3600.0, 10_000)


class Back(FakeTransport):
    """A client's wire that records when its answer came. begun_s: when the first of all requests was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.answered_s = 0.0
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def write(self, data: bytes) -> None:
        """Record the first write."""
        if not self.answer.done():
            self.answered_s = perf_counter()
            self.answer.set_result(decode_json(data))


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one publication. node_us, redis_us: of CPU."""

    rate: float
    node_us: float
    redis_us: float


async def pipelined(redis: Any, publish: Callable[[int], Awaitable[object]]) -> Cost:
    """Publish all messages."""
    begun_s, cpu_s, redis_cpu_s = perf_counter(), process_time(), await redis_cpu(redis)
    for first in range(0, MESSAGES, WINDOW):
        await asyncio.gather(*(publish(number) for number in range(first, first + WINDOW)))
    rate = MESSAGES / (perf_counter() - begun_s)
    node_s, redis_s = process_time() - cpu_s, await redis_cpu(redis) - redis_cpu_s
    return Cost(rate, node_s / MESSAGES * 1e6, redis_s / MESSAGES * 1e6)


async def compare(redis: Any, topics: Any, channels: int, *, heard: bool) -> None:
    """Print the cost with and without a history, and the medians of the ratios of each repetition. heard: by a node."""
    pairs = []
    for _ in range(REPETITIONS):
        bare = await pipelined(redis, lambda number: topics.publish(f"bare:{number % channels}", PAYLOAD))
        kept = await pipelined(redis, lambda number: topics.publish(f"kept:{number % channels}", PAYLOAD, history=KEPT))
        pairs.append((bare, kept))
    what = f"{channels:>4} channels{', heard' if heard else ''}"
    for label, costs in (("without a history", [bare for bare, _ in pairs]), ("with one", [kept for _, kept in pairs])):
        rate = median(cost.rate for cost in costs)
        each = [f"{median(getattr(cost, name) for cost in costs):.1f} us" for name in ("node_us", "redis_us")]
        print(f"{what}, {label:<18} {rate:>8,.0f} a second; CPU of each: node {each[0]}, Redis {each[1]}")
    rates = median(kept.rate / bare.rate for bare, kept in pairs)
    costs_of_redis = median(kept.redis_us / bare.redis_us for bare, kept in pairs)
    print(f"{what}, ratios: {rates:.2f} of the rate, {costs_of_redis:.1f} times the CPU of Redis")


@asynccontextmanager
async def listening(server: RedisServer, channels: int) -> AsyncIterator[None]:
    """Subscribe to the channels as a node does, and read what comes without looking at it."""
    names = [channel_name("snorky", f"pubsub:bare:{at}") for at in range(channels)]
    names += [node_channel_name("snorky", f"pubsub:kept:{at}") for at in range(channels)]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 20)
    writer.write(request(b"SUBSCRIBE", *names))
    await reader.readuntil(b":%d\r\n" % len(names))

    async def read() -> None:
        while await reader.read(1 << 20):
            pass

    reading = asyncio.get_running_loop().create_task(read())
    try:
        yield
    finally:
        writer.close()
        await reading


async def redis_cpu(redis: Any) -> float:
    """Seconds of CPU that Redis has used."""
    info = await redis.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


async def used_bytes(redis: Any) -> int:
    """What Redis has allocated for data."""
    return int((await redis.info("memory"))["used_memory_dataset"])


def ask(node: Node, registry: ServiceRegistry, number: int, positions: list[str]) -> tuple[Connection, Back]:
    """Let a client request its missed messages."""
    wire = Back()
    connection = node.new_connection(wire, JSON)
    node.connect(connection, registry)
    params = {"channel": f"kept:{number % CHANNELS}", "recover": positions[number % CHANNELS]}
    message = {"command": "subscribe", "params": params, "callId": 1}
    registry.receive(connection, encode_json({"service": "pubsub", "message": message}))
    return connection, wire


async def measure(server: RedisServer) -> None:
    """Print all figures."""
    url = server.url
    registry = ServiceRegistry([PubSubService(channels=[ChannelRule("kept:*", history=10_000, history_ttl_s=3600.0)])])
    redis: Any = client_of(target_from_url(url), timeout_s=10.0)
    async with running_node(registry, settings=Settings(redis_url=url, limits=UNLIMITED)) as node:
        while not node.is_ready:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        topics = registry["pubsub"].topics
        for channels in (1, 100):
            await compare(redis, topics, channels, heard=False)
        for channels in (1, 100):
            async with listening(server, channels):
                await compare(redis, topics, channels, heard=True)
        await redis.flushdb()
        before = await used_bytes(redis)
        await pipelined(redis, lambda number: topics.publish(f"kept:{number % CHANNELS}", PAYLOAD, history=KEPT))
        streams: list[Any] = [await redis.memory_usage(name, samples=0) for name in await redis.keys("*:history")]
        print(f"memory of a message         {sum(streams) / MESSAGES:>10,.0f} bytes in its stream")
        print(f"  and for its first 30 s    {(await used_bytes(redis) - before) / MESSAGES:>10,.0f} bytes in all")
        positions = [str(await topics.position(f"kept:{number}")) for number in range(CHANNELS)]
        for number in range(MISSED * CHANNELS):
            await topics.publish(f"kept:{number % CHANNELS}", PAYLOAD, history=KEPT)
        for label in ("an empty channel", "a channel in use"):
            begun_s, cpu_s = perf_counter(), process_time()
            clients = [ask(node, registry, number, positions) for number in range(CLIENTS)]
            answers = await asyncio.gather(*(wire.answer for _, wire in clients))
            cpu_s = process_time() - cpu_s
            assert all(len(each["message"]["data"]["messages"]) == MISSED for each in answers)
            took_ms = sorted((wire.answered_s - begun_s) * 1000 for _, wire in clients)
            p50, p99 = took_ms[CLIENTS // 2], took_ms[CLIENTS * 99 // 100]
            print(
                f"{CLIENTS:,} back at once to {label}: {CLIENTS / took_ms[-1] * 1000:,.0f} recoveries a second,", end=""
            )
            print(f" p50 {p50:,.0f} ms, p99 {p99:,.0f} ms, {cpu_s / CLIENTS * 1e6:,.0f} us of CPU each")
            if label == "an empty channel":
                for connection, _ in clients[CHANNELS:]:
                    node.disconnect(connection, 1000)
        for connection in node.connections:
            node.disconnect(connection, 1000)
    await redis.aclose()


def main() -> None:
    """Run it with a Redis of its own."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(*describe(), sep="\n")
    with RedisServer() as server:
        asyncio.run(measure(server))


if __name__ == "__main__":
    main()
