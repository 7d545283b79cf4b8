"""A Centrifuge client of a test: it sends commands as they are, and keeps each reply and push in the order of arrival.

async with connected(url, token) as client:
    assert await client.call("subscribe", channel="news") == {...}
    assert await client.push("news", "pub") == {"data": 1}
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp

__all__ = ["CentrifugeClient", "CommandFailed", "connected", "dialled"]

DEADLINE_S: Final = 30.0


class CommandFailed(Exception):
    """The reply to a command is an error. code: of it."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['code']} {error['message']}")
        self.code = error["code"]
        self.is_temporary = error.get("temporary", False)


class CentrifugeClient:
    """One connection. heard: what has arrived and was not asked for yet. end: close code and reason, once it ended."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.heard: list[Any] = []
        self.end: tuple[int | None, str] | None = None
        self._socket = socket
        self._last_id = 0

    async def send(self, *commands: Any) -> None:
        """Send commands in one frame."""
        await self._socket.send_str("\n".join(map(json.dumps, commands)))

    async def send_text(self, text: str) -> None:
        """Send a frame as it is."""
        await self._socket.send_str(text)

    async def call(self, method: str, /, **params: Any) -> Any:
        """Send a command; returns its result. Raises CommandFailed."""
        self._last_id += 1
        await self.send({"id": self._last_id, method: params})
        reply = await self.reply(self._last_id)
        if "error" in reply:
            raise CommandFailed(reply["error"])
        return reply[method]

    async def reply(self, number: int) -> Any:
        """Wait for the reply with this id."""
        return await self._take(lambda each: each.get("id") == number)

    async def push(self, channel: str, kind: str) -> Any:
        """Wait for the next push of a kind to a channel."""
        found = await self._take(lambda each: kind in each.get("push", {}) and each["push"]["channel"] == channel)
        return found["push"][kind]

    async def ended(self) -> tuple[int | None, str]:
        """Wait for the end; returns close code and reason."""
        async with asyncio.timeout(DEADLINE_S):
            while self.end is None:
                await self._hear()
        return self.end

    @property
    def news(self) -> list[Any]:
        """What has arrived and was not asked for yet, without pings."""
        return [each for each in self.heard if each]

    async def ping(self) -> None:
        """Wait for a ping of the node."""
        await self._take(lambda each: each == {})

    async def _take(self, is_wanted: Any) -> Any:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for at, each in enumerate(self.heard):
                    if is_wanted(each):
                        return self.heard.pop(at)
                assert self.end is None, (self.end, self.heard)
                await self._hear()

    async def _hear(self) -> None:
        frame = await self._socket.receive()
        if frame.type is aiohttp.WSMsgType.TEXT:
            self.heard += [json.loads(line) for line in frame.data.split("\n")]
        else:
            self.end = self._socket.close_code, frame.extra or ""


@asynccontextmanager
async def dialled(url: str, **headers: str) -> AsyncIterator[CentrifugeClient]:
    """Open a WebSocket, without a command. url: of a node, "http://HOST:PORT"."""
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(f"{url}/connection/websocket", headers=headers) as socket:
            yield CentrifugeClient(socket)


@asynccontextmanager
async def connected(url: str, token: str = "") -> AsyncIterator[CentrifugeClient]:
    """Open a connection and send `connect`."""
    async with dialled(url) as client:
        await client.call("connect", **({"token": token} if token else {}))
        yield client
