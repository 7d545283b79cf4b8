"""Clients of Snorky's own protocol: JSON, MessagePack, SockJS."""

import asyncio
import json
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]  # ships no annotations

from tests.support.clients.protocols.base import DEADLINE_S, Ended, Event, Refused, SocketClient

__all__ = ["PackedClient", "SnorkyClient", "SockJSClient"]

_NOTICES: Final = ("gap", "unsubscribed", "subscribed", "error")


class SnorkyClient(SocketClient):
    """Snorky's own protocol in JSON."""

    async def open(self) -> None:
        await self._connect()
        self._waiting: list[Event] = []
        reply = await self._call("subscribe", channel=self.channel, recover=self.since or True)
        if reply["type"] == "error":
            raise Refused(f"{reply['code']}: {reply['message']}")
        data = reply["data"]
        if self.since is not None and not data["recovered"]:
            self._waiting.append(Event("gap", None, data["position"]))
        self._waiting += [Event("message", each["message"], each["position"]) for each in data["messages"]]
        self.place = data["position"]

    async def publish(self, message: Any) -> str | None:
        reply = await self._call("publish", channel=self.channel, message=message)
        return str(reply["code"]) if reply["type"] == "error" else None

    async def _call(self, command: str, **params: Any) -> Any:
        await self._send({"service": "pubsub", "message": {"command": command, "params": params, "callId": command}})
        async with asyncio.timeout(DEADLINE_S):
            while True:
                message = (await self._envelope())["message"]
                if message.get("callId") == command:
                    return message
                self._waiting += self._events(message)

    async def _next(self) -> Event:
        while not self._waiting:
            self._waiting += self._events((await self._envelope())["message"])
        return self._waiting.pop(0)

    def _events(self, message: Any) -> list[Event]:
        if message["type"] == "message":
            return [Event("message", message["message"], message.get("position"))]
        return [Event(message["type"], message)] if message["type"] in _NOTICES else []

    async def _send(self, envelope: Any) -> None:
        await self._socket.send_str(json.dumps(envelope))

    async def _envelope(self) -> Any:
        return json.loads(await self._data())


class PackedClient(SnorkyClient):
    """Snorky's own protocol in MessagePack."""

    protocols = ("snorky.msgpack",)

    async def _send(self, envelope: Any) -> None:
        await self._socket.send_bytes(msgpack.packb(envelope))

    async def _envelope(self) -> Any:
        return msgpack.unpackb(await self._data())


class SockJSClient(SnorkyClient):
    """Snorky's own protocol in SockJS' framing, on a WebSocket."""

    path = "/sockjs/000/session/websocket"

    async def _connect(self) -> None:
        await super()._connect()
        self._frames: list[Any] = []

    async def _send(self, envelope: Any) -> None:
        await self._socket.send_str(json.dumps([json.dumps(envelope)]))

    async def _envelope(self) -> Any:
        while not self._frames:
            frame = await self._data()
            if frame[0] == "c":
                raise Ended(frame[1:])
            self._frames += [json.loads(each) for each in json.loads(frame[1:])] if frame[0] == "a" else []
        return self._frames.pop(0)
