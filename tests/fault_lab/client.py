"""LabClient: a small client that speaks the protocol, records what it receives, and resumes from its position.

It subscribes to each channel with `recover` and its last position. It records duplicates too: the checker looks at
connections, not at what a library would filter. A resident also has an identity, sits in a chat room, holds a name,
and records presence notices.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgpack

from snorky.gateway.protocol.publication import Position
from tests.fault_lab.journal import Dropped, Gap, Journal, Received, Subscribed
from tests.support.scenarios.tokens import hmac_token

__all__ = ["ROOM", "LabClient", "Notice"]

ROOM = "lab-room"
FIRST_DELAY_MAX_S = 0.2  # full jitter under a bound that doubles, as in our client libraries
DELAY_MAX_S = 2.0  # our libraries wait up to 30 s; a fault here is shorter
HANDSHAKE_TIMEOUT_S = 5.0
RETRY_S = 0.2  # after an error without retryAfterMs
TOKEN_LIFETIME_S = 86_400


@dataclass(frozen=True, slots=True)
class Notice:
    """Somebody joined or left the room."""

    at_s: float
    identity: str
    status: str


class LabClient:
    """One client. where: returns the URL of the next attempt. identity: makes it a resident."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        where: Callable[[], str],
        name: str,
        channels: Sequence[str],
        *,
        rng: random.Random,
        is_recovering: bool,
        speaks_msgpack: bool = False,
        identity: str | None = None,
        comes_back: bool = True,
    ) -> None:
        self.name = name
        self.identity = identity
        self.channels = tuple(channels)
        self.journals = {channel: Journal(name, channel) for channel in channels}
        self.highest = dict.fromkeys(channels, -1)  # highest number received
        self.notices: list[Notice] = []
        self.errors: list[str] = []
        self.ends: list[str] = []  # channels whose subscription the backend ended; it is made again
        self.begun: list[str] = []  # channels that the backend has subscribed it to
        self.handshakes_s: list[float] = []
        self.drops = 0
        self._session = session
        self._where = where
        self._rng = rng
        self._is_recovering = is_recovering
        self._speaks_msgpack = speaks_msgpack
        self._comes_back = comes_back
        self._positions: dict[str, Position | None] = dict.fromkeys(channels)
        self._calls: dict[int, tuple[str, str, dict[str, Any]]] = {}
        self._serial = 0
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._retries: set[asyncio.TimerHandle] = set()
        self._confirmed: set[str] = set()
        self._may_connect = asyncio.Event()
        self._may_connect.set()

    @property
    def is_connected(self) -> bool:
        return self._socket is not None

    @property
    def is_subscribed(self) -> bool:
        """Connected, with every subscription, join and name confirmed."""
        return self._socket is not None and len(self._confirmed) == len(self.channels) + 2 * (self.identity is not None)

    def mark(self) -> None:
        """Start new journals; subscriptions and positions continue."""
        now_s = time.monotonic()
        for channel, journal in self.journals.items():
            journal.entries = []
            if channel in self._confirmed or self._positions[channel] is not None:
                journal.entries.append(Subscribed(now_s, self._positions[channel], True))
        self.notices.clear()
        self.errors.clear()
        self.handshakes_s.clear()
        self.drops = 0

    async def run(self) -> None:
        """Run until cancelled; if `comes_back` is false, until the connection ends."""
        attempt = 0
        try:
            while True:
                await self._may_connect.wait()
                code: int | None = None
                try:
                    async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                        socket = await self._connect()
                    attempt = 0
                    try:
                        code = await self._converse(socket)
                    finally:
                        self._socket = None
                        socket._response.close()
                    self._on_drop(code)
                    if not self._comes_back:
                        return
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    self.errors.append(str(getattr(error, "status", repr(error))))  # a repr shows the token
                await asyncio.sleep(self._rng.uniform(0, min(DELAY_MAX_S, FIRST_DELAY_MAX_S * 2**attempt)))
                attempt += 1
        finally:
            self._forget_calls()

    def hang_up(self) -> None:
        """Break the connection; the client reconnects by itself."""
        if self._socket is not None:
            self._socket._response.close()

    def go_away(self) -> None:
        """Break the connection and stay away until `come_back`."""
        self._may_connect.clear()
        self.hang_up()

    def come_back(self) -> None:
        """Reconnect, resuming from the last positions."""
        self._may_connect.set()

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        headers = {}
        if self.identity is not None:
            headers["Authorization"] = f"Bearer {hmac_token(self.identity, exp=time.time() + TOKEN_LIFETIME_S)}"
        protocols = ("snorky.msgpack",) if self._speaks_msgpack else ()
        url = self._where()
        return await self._session.ws_connect(url, protocols=protocols, headers=headers, max_msg_size=0, heartbeat=None)

    async def _converse(self, socket: aiohttp.ClientWebSocketResponse) -> int | None:
        self.handshakes_s.append(time.monotonic())
        self._socket = socket
        for channel in self.channels:
            self._subscribe(channel)
        if self.identity is not None:
            self._call("chat", "join", {"channel": ROOM})
            self._call("messaging", "registerParticipant", {"name": self.identity})
        async for frame in socket:
            if frame.type is aiohttp.WSMsgType.TEXT:
                self._on_message(json.loads(frame.data))
            elif frame.type is aiohttp.WSMsgType.BINARY:
                self._on_message(msgpack.unpackb(frame.data))
        return socket.close_code

    def _on_drop(self, code: int | None) -> None:
        self.drops += 1
        now_s = time.monotonic()
        for channel in self._confirmed & set(self.channels):
            self.journals[channel].entries.append(Dropped(now_s, code))
        self._confirmed.clear()
        self._forget_calls()

    def _forget_calls(self) -> None:
        self._calls.clear()
        for handle in self._retries:
            handle.cancel()
        self._retries.clear()

    # -- calls -------------------------------------------------------------------------------------------------

    def _subscribe(self, channel: str) -> None:
        params: dict[str, Any] = {"channel": channel}
        if self._is_recovering:
            position = self._positions[channel]
            params["recover"] = True if position is None else str(position)
        self._call("pubsub", "subscribe", params)

    def _call(self, service: str, command: str, params: dict[str, Any]) -> None:
        if self._socket is None or self._socket.closed:
            return
        self._serial += 1
        self._calls[self._serial] = (service, command, params)
        envelope = {"service": service, "message": {"command": command, "params": params, "callId": self._serial}}
        data = msgpack.packb(envelope) if self._speaks_msgpack else json.dumps(envelope).encode()
        kind = aiohttp.WSMsgType.BINARY if self._speaks_msgpack else aiohttp.WSMsgType.TEXT
        task = asyncio.ensure_future(self._socket.send_frame(data, kind))
        task.add_done_callback(_ignore_broken_line)

    def _on_message(self, envelope: dict[str, Any]) -> None:
        service, message = envelope["service"], envelope["message"]
        kind = message.get("type")
        if kind == "message" and service == "pubsub":
            position = Position.parse(message["position"]) if "position" in message else None
            self._receive(message["channel"], message["message"]["n"], position)
        elif kind == "response":
            self._on_response(message)
        elif kind == "error":
            self._on_error(message)
        elif kind == "gap":
            self._positions[message["channel"]] = position = Position.parse(message["position"])
            self.journals[message["channel"]].entries.append(Gap(time.monotonic(), position))
        elif kind == "subscribed":
            self.begun.append(message["channel"])
        elif kind == "unsubscribed":
            self.ends.append(message["channel"])
            self._confirmed.discard(message["channel"])
            self._subscribe(message["channel"])
        elif kind == "presence":
            self.notices.append(Notice(time.monotonic(), message["from"], message["status"]))

    def _receive(self, channel: str, number: int, position: Position | None, *, is_replayed: bool = False) -> None:
        self.journals[channel].entries.append(Received(time.monotonic(), number, position, is_replayed))
        self.highest[channel] = max(number, self.highest[channel])
        if position is not None:
            self._positions[channel] = position

    def _on_response(self, message: dict[str, Any]) -> None:
        service, command, params = self._calls.pop(message["callId"])
        if service != "pubsub":
            self._confirmed.add(f"{service}.{command}")
            return
        channel = params["channel"]
        self._confirmed.add(channel)
        data = message["data"] or {"position": None, "recovered": False, "messages": []}
        position = Position.parse(data["position"]) if data["position"] is not None else None
        journal = self.journals[channel]
        journal.entries.append(Subscribed(time.monotonic(), position, data["recovered"]))
        for one in data["messages"]:
            self._receive(channel, one["message"]["n"], Position.parse(one["position"]), is_replayed=True)
        if position is not None:
            self._positions[channel] = position

    def _on_error(self, message: dict[str, Any]) -> None:
        self.errors.append(message["message"])
        call = self._calls.pop(message["callId"], None)
        if call is None:
            return
        service, command, params = call
        if message["message"] == "Already joined":  # retry of a join whose answer was an "unavailable" error
            self._confirmed.add(f"{service}.{command}")
            return
        wait_s = message.get("retryAfterMs", RETRY_S * 1000) / 1000
        loop = asyncio.get_running_loop()
        wait_s *= self._rng.uniform(0.5, 1.5)
        if service == "pubsub":
            self._retries.add(loop.call_later(wait_s, self._subscribe, params["channel"]))
        else:
            self._retries.add(loop.call_later(wait_s, self._call, service, command, params))


def _ignore_broken_line(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and isinstance(task.exception(), ConnectionError | aiohttp.ClientError | None):
        return  # the reader handles the end of the connection
