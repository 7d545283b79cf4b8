"""Clients of protocols without commands: plain WebSockets and server-sent events."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp

from tests.support.clients.protocols.base import DEADLINE_S, AnyClient, Ended, Event, Refused, SocketClient

__all__ = ["RawClient", "SeveralClient", "StreamClient", "TextClient"]

UNUSED: Final = "unused"  # the second channel of SeveralClient


class RawClient(SocketClient):
    """A plain WebSocket. It is not notified when it is subscribed: see `until_heard`."""

    options = ""

    async def open(self) -> None:
        self.path = f"/raw?{urlencode({'channel': self.channel})}{self.options}"
        await self._connect()

    async def publish(self, message: Any) -> str | None:
        await self._socket.send_str(self._text(message))
        return None

    async def _next(self) -> Event:
        return Event("message", self._value(await self._data()))

    def _text(self, message: Any) -> str:
        return json.dumps(message)

    def _value(self, frame: str) -> Any:
        return json.loads(frame)


class TextClient(RawClient):
    """A plain WebSocket with text. These tests publish objects, which it receives as JSON."""

    options = "&format=text"

    async def publish(self, message: Any) -> str | None:
        await self._socket.send_str(message)
        return None

    def _value(self, frame: str) -> Any:
        try:
            return json.loads(frame)
        except ValueError:
            return frame


class StreamClient(AnyClient):
    """Server-sent events."""

    channels_beside: Sequence[str] = ()
    _response: aiohttp.ClientResponse

    async def subscribed(self) -> None:
        reading = asyncio.create_task(self._next())
        async with asyncio.timeout(DEADLINE_S):
            await self._has_subscribed.wait()
        reading.cancel()

    async def open(self) -> None:
        self._subscriptions, self._has_subscribed = 0, asyncio.Event()
        query = urlencode([("channel", each) for each in (self.channel, *self.channels_beside)])
        headers = {**self.headers, **({} if self.since is None else {"Last-Event-ID": self.since})}
        self._response = await self.http.get(f"{self.url}/sse?{query}", headers=headers)
        if self._response.status != 200:
            raise Refused(f"{self._response.status} {await self._response.text()}")

    async def _next(self) -> Event:
        fields: dict[str, str] = {}
        while True:
            line = (await self._response.content.readline()).decode()
            if not line:
                raise Ended("the stream has ended")
            name, _, value = line.rstrip("\n").partition(": ")
            if name:
                fields[name] = value
                continue
            self.place = fields.get("id", self.place)
            if "data" in fields:
                if (event := self._event(fields.get("event", "message"), json.loads(fields["data"]))) is not None:
                    return event
            fields = {}

    def _event(self, kind: str, data: Any) -> Event | None:
        if kind == "subscribed":
            self._subscriptions += 1
            if self._subscriptions == 1 + len(self.channels_beside):
                self._has_subscribed.set()
            return None
        if kind == "close":
            raise Ended(f"{data['code']} {data['reason']}")
        return Event(kind, self._message(data) if kind == "message" else data)

    def _message(self, data: Any) -> Any:
        return data

    async def close(self) -> None:
        self._response.close()


class SeveralClient(StreamClient):
    """Server-sent events of several channels."""

    channels_beside = (UNUSED,)

    def _message(self, data: Any) -> Any:
        assert data["channel"] == self.channel, data
        return data["message"]
