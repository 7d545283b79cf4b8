"""A client like our libraries: subscribes, records what it receives, and reconnects when a connection ends.

    async with clients(url, 300, channels=["news"]) as crowd:
        await crowd.subscribed(within_s=20)
        ...
        await crowd.received(marker, within_s=10)

It waits after a failed attempt as clients/js does: full jitter under a bound that doubles. It cannot recover
history.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

__all__ = ["Client", "Crowd", "clients"]

_FIRST_DELAY_MAX_S = (
    0.2  # a client waits up to this before the first attempt, so that a node's clients do not all come at once
)
_DELAY_MAX_S = 2.0  # our libraries wait up to 30 s; tests have less time
_HANDSHAKE_TIMEOUT_S = 5.0


class Client:
    """One client. `drops`: connections that ended unintentionally. `messages`: payloads per channel, in order."""

    def __init__(self, session: aiohttp.ClientSession, url: str, channels: Sequence[str], number: int) -> None:
        self.number = number
        self.drops = 0
        self.close_codes: list[int | None] = []
        self.failed_attempts = 0
        self.messages: dict[str, list[Any]] = {channel: [] for channel in channels}
        self._session = session
        self._url = url
        self._channels = tuple(channels)
        self._changed = asyncio.Condition()
        self.is_subscribed = False

    async def run(self) -> None:
        """Run until cancelled."""
        attempt = 0
        while True:
            try:
                async with self._session.ws_connect(self._url, max_msg_size=0, heartbeat=None) as socket:
                    attempt = 0
                    await self._converse(socket)
                    self.close_codes.append(socket.close_code)
            except (aiohttp.ClientError, TimeoutError, OSError):
                self.failed_attempts += 1
            if self.is_subscribed:
                self.drops += 1
            await self._set_subscribed(False)
            bound_s = min(_DELAY_MAX_S, _FIRST_DELAY_MAX_S * 2**attempt)
            attempt += 1
            await asyncio.sleep(random.uniform(0, bound_s))

    async def _converse(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        for number, channel in enumerate(self._channels):
            call = {"command": "subscribe", "params": {"channel": channel}, "callId": number}
            await socket.send_str(json.dumps({"service": "pubsub", "message": call}))
        answered = 0
        async for frame in socket:
            if frame.type is not aiohttp.WSMsgType.TEXT:
                continue
            envelope = json.loads(frame.data)
            message = envelope["message"]
            if envelope["service"] != "pubsub":
                continue
            if message["type"] == "message":
                async with self._changed:
                    self.messages[message["channel"]].append(message["message"])
                    self._changed.notify_all()
            elif message["type"] == "response":
                answered += 1
                if answered == len(self._channels):
                    await self._set_subscribed(True)
            elif message["type"] == "error":
                return  # refused for now: retry later, as a client would

    async def _set_subscribed(self, value: bool) -> None:
        async with self._changed:
            self.is_subscribed = value
            self._changed.notify_all()

    async def wait_subscribed(self) -> None:
        """Wait until it is connected and all its subscriptions are confirmed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.is_subscribed)

    async def wait_received(self, message: Any) -> None:
        """Wait until a message has come, on any channel."""
        async with self._changed:
            await self._changed.wait_for(lambda: any(message in seen for seen in self.messages.values()))


class Crowd:
    """Many clients. Every wait has a deadline, and its error lists the late ones."""

    def __init__(self, members: Sequence[Client]) -> None:
        self.members = members

    @property
    def drops(self) -> int:
        return sum(client.drops for client in self.members)

    async def subscribed(self, *, within_s: float) -> None:
        """Wait until all are connected and subscribed."""
        try:
            async with asyncio.timeout(within_s):
                for client in self.members:
                    await client.wait_subscribed()
        except TimeoutError:
            late = [client.number for client in self.members if not client.is_subscribed]
            raise AssertionError(f"{len(late)} clients not subscribed within {within_s} s: {late[:20]}") from None

    async def received(self, message: Any, *, within_s: float) -> None:
        """Wait until all have received this message."""
        try:
            async with asyncio.timeout(within_s):
                for client in self.members:
                    await client.wait_received(message)
        except TimeoutError:
            late = [
                client.number
                for client in self.members
                if not any(message in seen for seen in client.messages.values())
            ]
            raise AssertionError(f"{len(late)} clients without {message!r} in {within_s} s: {late[:20]}") from None


@asynccontextmanager
async def clients(url: str, count: int, *, channels: Sequence[str]) -> AsyncIterator[Crowd]:
    """Run `count` clients until the block ends."""
    timeout = aiohttp.ClientTimeout(total=None, connect=_HANDSHAKE_TIMEOUT_S, sock_read=None)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        crowd = Crowd([Client(session, url, channels, number) for number in range(count)])
        tasks = [asyncio.create_task(client.run()) for client in crowd.members]
        try:
            yield crowd
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
