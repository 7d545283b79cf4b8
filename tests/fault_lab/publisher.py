"""A process that publishes numbered messages and prints what was acknowledged.

    python -m tests.fault_lab.publisher JSON-OF-ORDER

Half of the channels are published to through Redis, half by POST /backend to any node. The next number of a channel
starts when the last one has ended. Through Redis a number is retried with its key until it is acknowledged; a POST is
tried once and may be uncertain.

On stdin: `pause` (each channel ends with an acknowledged number, its fence; then prints `paused`), `resume`. On
stdout, a JSON array a line: ["acked", channel, number, started, ended, position or null, attempts],
["uncertain", channel, number, started, ended, error, is not kept], ["paused", {channel: number}].

A channel with history must store what is published: an empty position is an error, as with `require_history`.
"""

import asyncio
import json
import os
import random
import sys
import time
from typing import Any

import aiohttp
import msgspec
import uvloop

from snorky.gateway.protocol.codec import channel_name
from tests.fault_lab.source import RedisSource

__all__ = ["POSTS_AT_ONCE", "Order"]

RETRY_MAX_S = 0.5
POSTS_AT_ONCE = 8  # to one node
TIMEOUT_S = 8.0  # longer than a node's own deadline, so that the node answers first


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to publish, and where."""

    redis_url: str
    prefix: str
    backends: list[str]  # URLs of POST /backend
    api_key: str
    channels: list[str]
    rate_per_s: float
    keeps_history: bool
    seed: int


class Publisher:
    """Publishes until its input ends."""

    def __init__(self, order: Order, source: RedisSource, session: aiohttp.ClientSession) -> None:
        self._order = order
        self._source = source
        self._session = session
        self._rng = random.Random(order.seed)
        self._run = f"{os.getpid():x}"
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._fences: dict[str, int] = {}
        self._owes_fence: set[str] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            channels = [
                group.create_task(self._publish_channel(channel, index % 2 == 0))
                for index, channel in enumerate(self._order.channels)
            ]
            await self._obey()
            for task in channels:
                task.cancel()

    async def _obey(self) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := (await reader.readline()).strip():
            if line == b"pause":
                self._fences = {}
                self._owes_fence = set(self._order.channels)
                self._resumed.clear()
            elif line == b"resume":
                self._resumed.set()

    async def _publish_channel(self, channel: str, is_through_redis: bool) -> None:
        interval_s = len(self._order.channels) / self._order.rate_per_s
        number = 0
        publish = self._through_redis if is_through_redis else self._through_backend
        due_s = time.monotonic() + self._rng.uniform(0, interval_s)
        while True:
            is_fence = not self._resumed.is_set()
            if is_fence and channel not in self._owes_fence:
                await self._resumed.wait()
                is_fence = False
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            # catches up with at most one second of backlog, not with the whole fault
            due_s = max(due_s, time.monotonic() - 1) + interval_s
            is_acked = await publish(channel, number)
            if is_fence and is_acked and not self._resumed.is_set():
                self._fences[channel] = number
                self._owes_fence.discard(channel)
                if not self._owes_fence:
                    _say("paused", self._fences)
            number += 1

    async def _through_redis(self, channel: str, number: int) -> bool:
        started_s = time.monotonic()
        attempts, wait_s = 0, 0.02
        payload = json.dumps({"n": number}).encode()
        key = f"{self._run}:{number}"
        name = f"{self._order.prefix}:{{pubsub:{channel_name(channel)}}}"
        while True:
            attempts += 1
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    position = await self._source.publish(name, payload, key)
            except Exception as error:
                if not self._order.keeps_history:  # a plain PUBLISH has no key, so it cannot be retried
                    _say("uncertain", channel, number, started_s, time.monotonic(), repr(error))
                    return False
                await asyncio.sleep(self._rng.uniform(0, wait_s))
                wait_s = min(RETRY_MAX_S, wait_s * 2)
                continue
            if not position and self._order.keeps_history:
                _say("uncertain", channel, number, started_s, time.monotonic(), "not kept", True)
                return False
            _say("acked", channel, number, started_s, time.monotonic(), position, attempts)
            return True

    async def _through_backend(self, channel: str, number: int) -> bool:
        started_s = time.monotonic()
        message = {"command": "publish", "params": {"channel": channel, "message": {"n": number}}, "callId": 1}
        envelope = {"service": "pubsub_backend", "message": message}
        try:
            async with asyncio.timeout(TIMEOUT_S):
                error = await self._post(self._rng.choice(self._order.backends), envelope)
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            error = repr(problem)
        ended_s = time.monotonic()
        if error is None:
            _say("acked", channel, number, started_s, ended_s, None, 1)
            return True
        _say("uncertain", channel, number, started_s, ended_s, error)
        await asyncio.sleep(self._rng.uniform(0, RETRY_MAX_S))
        return False

    async def _post(self, url: str, envelope: dict[str, Any]) -> str | None:
        async with self._session.post(url, json=envelope, headers={"X-Backend-Key": self._order.api_key}) as response:
            if response.status != 200:
                return f"HTTP {response.status}"
            message = (await response.json())["message"]
            return None if message["type"] == "response" else str(message["message"])


def _say(*words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


async def main(order: Order) -> None:
    """Publish until stdin ends."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, limit_per_host=POSTS_AT_ONCE)) as session:
        source = RedisSource(order.redis_url, keeps_history=order.keeps_history)
        try:
            await Publisher(order, source, session).run()
        finally:
            await source.close()


if __name__ == "__main__":
    uvloop.run(main(msgspec.json.decode(sys.argv[1], type=Order)))
