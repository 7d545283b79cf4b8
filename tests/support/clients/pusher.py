"""A Pusher client of a test: it sends events as they are, and keeps each event that arrives in the order of arrival.

    async with connected(url) as client:
        assert await client.subscribe("private-a") == {}
        assert await client.event("shipped", "private-a") == {"event": "shipped", "channel": "private-a", "data": "1"}

`subscribe` and `sign_in` sign as the app's backend would; `KEY` and `SECRET` are those of the app in `protocol_nodes`.
"""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp

__all__ = [
    "KEY",
    "SECRET",
    "PusherClient",
    "SubscriptionFailed",
    "connected",
    "dialled",
    "member",
    "signed",
    "watchlist_events_in",
]

DEADLINE_S: Final = 30.0
KEY: Final = "shop-key"
SECRET: Final = "8d2a5c1f07b94e63a1d8c2f4956be370"
SUCCEEDED: Final = "pusher_internal:subscription_succeeded"


class SubscriptionFailed(Exception):
    """A subscription is refused. status: of the refusal. data: the whole refusal."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(f"{data['status']} {data['error']}")
        self.data = data
        self.status = data["status"]


class PusherClient:
    """One connection. heard: what has arrived and was not asked for yet. end: close code and reason, once it ended."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, key: str, secret: str) -> None:
        self.heard: list[dict[str, Any]] = []
        self.end: tuple[int | None, str] | None = None
        self.socket_id = ""
        self._socket = socket
        self._key, self._secret = key, secret

    # -- events of the client ------------------------------------------------------------------------------------

    async def send(self, event: str, data: Any = None, channel: str | None = None) -> None:
        """Send an event."""
        fields = {"event": event, "data": data, **({} if channel is None else {"channel": channel})}
        await self._socket.send_json(fields)

    async def send_text(self, text: str) -> None:
        """Send a frame as it is."""
        await self._socket.send_str(text)

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary frame."""
        await self._socket.send_bytes(data)

    async def ask(self, channel: str, channel_data: str | None = None, *, auth: str | None = None) -> None:
        """Send `pusher:subscribe`, signed unless `auth` or the kind of channel says otherwise."""
        wanted: dict[str, Any] = {"channel": channel}
        if channel_data is not None:
            wanted["channel_data"] = channel_data
        if auth is None and channel.startswith(("private-", "presence-")):
            auth = self.auth(channel, channel_data)
        await self.send("pusher:subscribe", wanted | ({} if auth is None else {"auth": auth}))

    async def subscribe(self, channel: str, channel_data: str | None = None, *, auth: str | None = None) -> Any:
        """Subscribe to a channel; returns the data of the success. Raises SubscriptionFailed."""
        await self.ask(channel, channel_data, auth=auth)
        return await self.subscribed(channel)

    async def subscribed(self, channel: str) -> Any:
        """Wait until a channel is subscribed; returns the data of the success. Raises SubscriptionFailed."""
        names = (SUCCEEDED, "pusher:subscription_error")
        found = await self._take(lambda each: each["event"] in names and each.get("channel") == channel)
        data = json.loads(found["data"])
        if found["event"] != SUCCEEDED:
            raise SubscriptionFailed(data)
        return data

    async def unsubscribe(self, channel: str) -> None:
        """Send `pusher:unsubscribe`, which has no answer."""
        await self.send("pusher:unsubscribe", {"channel": channel})

    async def sign_in(self, user: Any, *, auth: str | None = None) -> None:
        """Send `pusher:signin`. user: `user_data`, as an object or as a text."""
        text = user if isinstance(user, str) else json.dumps(user)
        auth = self.auth(f":user::{text}") if auth is None else auth
        await self.send("pusher:signin", {"user_data": text, "auth": auth})

    async def signed_in(self, user: Any) -> None:
        """Sign in, and wait for the answer."""
        await self.sign_in(user)
        await self.event("pusher:signin_success")

    def auth(self, what: str, channel_data: str | None = None) -> str:
        """Sign a channel for this connection, as the app's backend does."""
        text = f"{self.socket_id}:{what}" + ("" if channel_data is None else f":{channel_data}")
        return signed(text, self._key, self._secret)

    # -- events of the server ------------------------------------------------------------------------------------

    async def event(self, name: str, channel: str | None = None) -> dict[str, Any]:
        """Wait for an event of this name, on a channel if one is given."""
        return await self._take(
            lambda each: each["event"] == name and (channel is None or each.get("channel") == channel)
        )

    async def data(self, name: str, channel: str | None = None) -> Any:
        """Wait for an event of this name; returns its data, decoded."""
        return json.loads((await self.event(name, channel))["data"])

    async def fence(self) -> list[dict[str, Any]]:
        """Wait until the server has taken all events so far; returns what arrived before, and was not asked for."""
        await self.send("pusher:ping", {})
        await self.event("pusher:pong")
        return self.heard

    async def ended(self) -> tuple[int | None, str]:
        """Wait for the end; returns close code and reason."""
        async with asyncio.timeout(DEADLINE_S):
            while self.end is None:
                await self._hear()
        return self.end

    async def _take(self, is_wanted: Any) -> dict[str, Any]:
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
            self.heard.append(json.loads(frame.data))
        else:
            self.end = self._socket.close_code, frame.extra or ""


def signed(text: str, key: str = KEY, secret: str = SECRET) -> str:
    """Sign a text as the backend of an app does: KEY:HEX."""
    return f"{key}:{hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()}"


def member(user_id: Any, **info: Any) -> str:
    """Make the `channel_data` of a member of a presence channel. info: its `user_info`; without any, it has none."""
    return json.dumps({"user_id": user_id, **({"user_info": info} if info else {})})


@asynccontextmanager
async def dialled(url: str, path: str = f"/app/{KEY}?protocol=7", **headers: str) -> AsyncIterator[PusherClient]:
    """Open a WebSocket and wait for nothing. url: of a node, "http://HOST:PORT"."""
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}{path}", headers=headers) as socket:
        yield PusherClient(socket, KEY, SECRET)


@asynccontextmanager
async def connected(url: str, key: str = KEY, secret: str = SECRET, **headers: str) -> AsyncIterator[PusherClient]:
    """Open a connection, and wait for its `socket_id`."""
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{url}/app/{key}?protocol=7&client=js&version=8.4.0", headers=headers) as socket,
    ):
        client = PusherClient(socket, key, secret)
        client.socket_id = (await client.data("pusher:connection_established"))["socket_id"]
        yield client


def watchlist_events_in(event: bytes) -> dict[str, list[str]]:
    """Return the ids of users in a watchlist event, by what they are now."""
    found = json.loads(event)
    assert found.keys() == {"event", "data"} and found["event"] == "pusher_internal:watchlist_events"
    events = json.loads(found["data"])["events"]
    assert all(each["user_ids"] for each in events)
    return {each["name"]: each["user_ids"] for each in events}
