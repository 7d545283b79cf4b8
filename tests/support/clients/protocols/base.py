"""AnyClient: the base of the clients of each protocol and transport. See `any_protocol.py`."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

__all__ = ["DEADLINE_S", "AnyClient", "Ended", "Event", "Refused", "SocketClient"]

DEADLINE_S: Final = 30.0


class Refused(Exception):
    """The node refuses the subscription. Its text has the code of the error."""


class Ended(Exception):
    """The connection has ended. Its text has the close code and the reason."""


@dataclass(frozen=True, slots=True)
class Event:
    """kind: "message", "gap" or "unsubscribed". value: the message, or the notice. place: for `since`, if known."""

    kind: str
    value: Any
    place: str | None = None


class AnyClient(ABC):
    """A client of one channel. place: where it would recover. http, url, headers: for its connection."""

    def __init__(
        self, http: aiohttp.ClientSession, url: str, channel: str, *, since: str | None, headers: Mapping[str, str]
    ) -> None:
        self.http, self.url, self.channel, self.since, self.headers = http, url, channel, since, headers
        self.place = since

    async def message(self) -> Any:
        """Wait for the next message. Raises AssertionError: something else came; Ended."""
        event = await self.event()
        assert event.kind == "message", event
        return event.value

    async def event(self) -> Event:
        """Wait for the next event. Raises Ended."""
        async with asyncio.timeout(DEADLINE_S):
            event = await self._next()
        self.place = event.place or self.place
        return event

    async def ended(self) -> str:
        """Wait for the end; returns the codes and reasons that the client received."""
        told = []
        try:
            while True:
                event = await self.event()
                if event.kind == "unsubscribed":
                    told.append(f"{event.value['code']}: {event.value['reason']}")
        except Ended as end:
            return " ".join([*told, str(end)])

    async def subscribed(self) -> None:
        """Wait until the client knows from where it would recover: when `opened` has returned, unless overridden."""
        assert self.place is not None

    @abstractmethod
    async def open(self) -> None:
        """Connect and subscribe. Raises Refused."""

    @abstractmethod
    async def _next(self) -> Event:
        """Wait for the next event. Raises Ended."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    async def publish(self, message: Any) -> str | None:
        """Publish to the channel; returns the code of the refusal, None = accepted. Not for all protocols."""
        raise NotImplementedError


class SocketClient(AnyClient):
    """A client on a WebSocket."""

    path = "/ws"
    protocols: Sequence[str] = ()
    _socket: aiohttp.ClientWebSocketResponse

    async def _connect(self) -> None:
        try:
            self._socket = await self.http.ws_connect(
                f"{self.url}{self.path}", protocols=self.protocols, headers=self.headers
            )
        except aiohttp.WSServerHandshakeError as error:
            raise Refused(f"{error.status}") from error

    async def _data(self) -> Any:
        frame = await self._socket.receive()
        if frame.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            return frame.data
        raise Ended(f"{self._socket.close_code} {frame.extra}")

    async def close(self) -> None:
        await self._socket.close()
