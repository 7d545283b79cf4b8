"""Reading Redis pub/sub and publishing: messages per CPU-second of this gateway's code and of redis-py's.

    python -m benchmarks.scenarios.subscriber [--messages 400000] [--loop asyncio]

One Redis of its own, a publisher process that keeps it busy, and one reader at a time in this process, whose CPU is
measured by the OS. All variants in one run; compare only figures of one run.
"""

import argparse
import asyncio
import multiprocessing
import socket
import time
from collections.abc import Callable, Mapping, Sequence

import structlog
import uvloop

from benchmarks.servers.redis_server import RedisServer, request
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis import RedisBroker, channel_name
from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.connection.timeouts import RedisTimeouts
from snorky.gateway.redis.target import target_from_url

KEYS = [f"pubsub:channel-{number}" for number in range(10)]
PAYLOAD = b"x" * 100
PREFIX = "bench"
PIPELINE = 10_000


class Counter:
    """A listener that counts."""

    def __init__(self, goal: int) -> None:
        self.count = 0
        self.batches = 0
        self.done = asyncio.Event()
        self._goal = goal

    def on_publications(self, batch: Mapping[str, Sequence[bytes]]) -> None:
        self.batches += 1
        self.count += sum(map(len, batch.values()))
        if self.count >= self._goal:
            self.done.set()

    def on_interrupted(self) -> None:
        raise RuntimeError("Redis cut the connection: the figures mean nothing")


def flood(port: int, messages: int) -> None:
    """Publish as fast as Redis accepts it. Runs in a process of its own."""
    block = b"".join(request(b"PUBLISH", channel_name(PREFIX, KEYS[i % len(KEYS)]), PAYLOAD) for i in range(PIPELINE))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(messages // PIPELINE):
            connection.sendall(block)
            answers = 0
            while answers < PIPELINE:
                answers += connection.recv(1 << 20).count(b"\n")


async def measured(port: int, messages: int, done: Callable[[], "asyncio.Future[object]"]) -> tuple[float, float]:
    """Messages per CPU-second and per second while the flood runs."""
    process = multiprocessing.get_context("spawn").Process(target=flood, args=(port, messages))
    process.start()
    began_cpu_s, began_s = time.process_time(), time.perf_counter()
    await asyncio.wait_for(done(), 120)
    cpu_s, wall_s = time.process_time() - began_cpu_s, time.perf_counter() - began_s
    await asyncio.to_thread(process.join)
    return messages / cpu_s, messages / wall_s


async def our_subscriber(redis: RedisServer, messages: int) -> tuple[float, float]:
    broker = RedisBroker(target_from_url(redis.url), prefix=PREFIX, node_id="bench", metrics=Metrics())
    counter = Counter(messages)
    await broker.start(counter)
    for key in KEYS:
        await broker.subscribe(key)
    result = await measured(redis.port, messages, lambda: asyncio.ensure_future(counter.done.wait()))
    await broker.stop()
    return result


async def library_subscriber(redis: RedisServer, messages: int) -> tuple[float, float]:
    client = client_of(target_from_url(redis.url))
    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(*(channel_name(PREFIX, key) for key in KEYS))

        async def read() -> None:
            count = 0
            while count < messages:
                if await pubsub.get_message(ignore_subscribe_messages=True, timeout=5) is not None:
                    count += 1

        result = await measured(redis.port, messages, lambda: asyncio.ensure_future(read()))
    await client.aclose()
    return result


async def our_publisher(redis: RedisServer, messages: int) -> tuple[float, float]:
    broker = RedisBroker(target_from_url(redis.url), prefix=PREFIX, node_id="bench", metrics=Metrics())
    await broker.start(Counter(1))
    await broker.publish(KEYS[0], PAYLOAD)
    began_cpu_s, began_s = time.process_time(), time.perf_counter()
    for _ in range(messages // PIPELINE):
        futures = [broker.publish(KEYS[i % len(KEYS)], PAYLOAD) for i in range(PIPELINE)]
        await futures[-1]  # answered in order: the last one is the last
    cpu_s, wall_s = time.process_time() - began_cpu_s, time.perf_counter() - began_s
    await broker.stop()
    return messages / cpu_s, messages / wall_s


async def library_publisher(redis: RedisServer, messages: int) -> tuple[float, float]:
    client = client_of(target_from_url(redis.url))
    names = [channel_name(PREFIX, key) for key in KEYS]
    began_cpu_s, began_s = time.process_time(), time.perf_counter()
    for _ in range(messages // PIPELINE):
        async with client.pipeline(transaction=False) as pipe:
            for i in range(PIPELINE):
                pipe.publish(names[i % len(names)], PAYLOAD)
            await pipe.execute()
    cpu_s, wall_s = time.process_time() - began_cpu_s, time.perf_counter() - began_s
    await client.aclose()
    return messages / cpu_s, messages / wall_s


async def whole_again(redis: RedisServer, channels: int) -> float:
    """Seconds from the loss of the subscriber's connection until all channels are confirmed again."""

    class Interrupted(Counter):
        def on_interrupted(self) -> None:
            self.done.set()

    metrics, listener = Metrics(), Interrupted(1)
    target = target_from_url(redis.url)
    broker = RedisBroker(
        target, prefix=PREFIX, node_id="bench", metrics=metrics, timeouts=RedisTimeouts(confirm_timeout_s=120.0)
    )
    await broker.start(listener)
    for start in range(0, channels, 1_000):
        await asyncio.gather(*(broker.subscribe(f"pubsub:{start + number}") for number in range(1_000)))
    client = client_of(target)
    began_s = time.perf_counter()
    await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await asyncio.wait_for(listener.done.wait(), 120)
    took_s = time.perf_counter() - began_s
    await client.aclose()
    await broker.stop()
    return took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=400_000)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))  # errors only
    run = uvloop.run if arguments.loop == "uvloop" else asyncio.run
    print(f"{arguments.messages} messages of {len(PAYLOAD)} bytes, {len(KEYS)} channels, {arguments.loop}")
    print(f"{'':26}{'per CPU-second':>16}{'per second':>14}")
    with RedisServer() as redis:
        with socket.create_connection(("127.0.0.1", redis.port)) as connection:
            # a slow reader must be slow here, not cut off
            connection.sendall(request(b"CONFIG", b"SET", b"client-output-buffer-limit", b"pubsub 0 0 0"))
            connection.recv(100)
        for name, variant, share in (
            ("subscribe, this gateway", our_subscriber, 1),
            ("subscribe, redis-py", library_subscriber, 10),
            ("publish, this gateway", our_publisher, 1),
            ("publish, redis-py pipeline", library_publisher, 4),
        ):
            messages = max(PIPELINE, arguments.messages // share // PIPELINE * PIPELINE)
            per_cpu_s, per_s = run(variant(redis, messages))
            print(f"{name:26}{per_cpu_s:16,.0f}{per_s:14,.0f}")
        print(f"100,000 channels are whole {run(whole_again(redis, 100_000)):.2f} s after the connection was lost")


if __name__ == "__main__":
    main()
