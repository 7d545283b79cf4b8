"""A client of Pusher's protocol that subscribes to a public channel."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

from tests.support.clients.protocols.base import DEADLINE_S, Event, Refused, SocketClient
from tests.support.clients.pusher import KEY

__all__ = ["PusherChannelClient"]

_CODES: Final[Mapping[int, str]] = {401: "not_authorized", 413: "limit_exceeded"}  # by the status of a refusal


class PusherChannelClient(SocketClient):
    """Pusher's protocol. A message that is no event of its own arrives as an event `message`."""

    path = f"/app/{KEY}?protocol=7"

    async def open(self) -> None:
        await self._connect()
        await self._until("pusher:connection_established")
        await self._socket.send_json({"event": "pusher:subscribe", "data": {"channel": self.channel}})
        await self._until("pusher_internal:subscription_succeeded")

    async def _until(self, name: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while (event := json.loads(await self._data()))["event"] != name:
                if event["event"] == "pusher:subscription_error":
                    refusal = json.loads(event["data"])
                    raise Refused(f"{_CODES.get(refusal['status'], refusal['status'])}: {refusal['error']}")

    async def _next(self) -> Event:
        while True:
            event = json.loads(await self._data())
            if event["event"] == "message":
                return Event("message", _value(event["data"]))
            if event["event"] == "pusher:subscription_error":
                refusal = json.loads(event["data"])
                return Event("unsubscribed", {"code": refusal["status"], "reason": refusal["error"]})


def _value(data: str) -> Any:
    """Return the message of an event: texts arrive unchanged, other values as JSON."""
    try:
        return json.loads(data)
    except ValueError:
        return data
