"""A gateway on a real socket, controlled by a test: it keeps history, cuts, closes, moves, and checks tokens."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response

__all__ = ["RealtimeServer"]


class RealtimeServer:
    """One service, pubsub; every channel keeps a history."""

    def __init__(self) -> None:
        self.port = 0
        self.connections: list[ServerConnection] = []  # all since the start
        self.channels: dict[ServerConnection, dict[str, bool]] = {}
        self.histories: dict[str, list[Any]] = {}
        self.handshakes: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.good_tokens: set[str] | None = None
        self.answers: Iterator[tuple[int, str, dict[str, str]]] = iter(())  # HTTP responses that refuse handshakes
        self.refused = 0
        self.lifetime_s: float | None = None  # of subscription tokens; None = channels need none
        self.arrived = asyncio.Condition()

    @classmethod
    @asynccontextmanager
    async def running(cls, port: int = 0) -> Any:
        """Serve until the block ends."""
        server = cls()
        async with serve(
            server._serve,
            "127.0.0.1",
            port,
            subprotocols=["snorky.json"],
            process_request=server._judge,
            ping_interval=None,
            close_timeout=1,
        ) as listening:
            server.port = listening.sockets[0].getsockname()[1]
            yield server

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def live(self) -> list[ServerConnection]:
        return list(self.channels)

    def cut(self) -> None:
        """Abort all connections, like a crash."""
        for connection in self.live:
            connection.transport.abort()

    async def until(self, is_true: Any) -> None:
        """Wait until a condition is true; it is checked after every event."""
        async with asyncio.timeout(30.0), self.arrived:
            await self.arrived.wait_for(is_true)

    async def publish(self, channel: str, message: Any) -> None:
        """Publish as a backend does."""
        self.histories.setdefault(channel, []).append(message)
        for connection, channels in list(self.channels.items()):
            if channel in channels:
                entry = self._entry(channel, len(self.histories[channel]))
                fields = entry if channels[channel] else {"message": message}
                await self.say(connection, "pubsub", {"type": "message", "channel": channel, **fields})

    async def say(self, connection: ServerConnection, service: str, message: Any) -> None:
        """Send to one connection."""
        try:
            await connection.send(json.dumps({"service": service, "message": message}))
        except ConnectionClosed:
            pass

    def _entry(self, channel: str, offset: int) -> dict[str, Any]:
        return {"message": self.histories[channel][offset - 1], "offset": offset, "position": f"e:{offset}:t{offset}"}

    def _judge(self, connection: ServerConnection, _request: Any) -> Response | None:
        answer = next(self.answers, None)
        if answer is None:
            return None
        status, text, headers = answer
        self.refused += 1
        response = connection.respond(HTTPStatus(status), text)
        response.headers.update(headers)
        return response

    async def _serve(self, connection: ServerConnection) -> None:
        headers = connection.request.headers if connection.request else {}
        offered = headers.get("Sec-WebSocket-Protocol", "")
        self.handshakes.append({"authorization": headers.get("Authorization"), "protocols": offered})
        self.connections.append(connection)
        bearer = str(headers.get("Authorization", "")).removeprefix("Bearer ")
        if self.good_tokens is not None and bearer not in self.good_tokens:
            await connection.close(4501, "bad token")
            return
        self.channels[connection] = {}
        try:
            await self._note()
            async for text in connection:
                envelope = json.loads(text)
                await self._act(connection, envelope["service"], envelope["message"])
        except ConnectionClosed:
            pass
        finally:
            del self.channels[connection]
            await self._note()

    async def _note(self) -> None:
        async with self.arrived:
            self.arrived.notify_all()

    async def _act(self, connection: ServerConnection, service: str, message: dict[str, Any]) -> None:
        self.requests.append(message)
        params, data = message["params"], None
        match message["command"]:
            case "subscribe":
                data = self._subscribe(connection, **params)
            case "refreshSubscription":
                data = {"expiresInS": self.lifetime_s}
            case "unsubscribe":
                self.channels[connection].pop(params["channel"], None)
            case "publish":
                await self.publish(params["channel"], params["message"])
            case "echo":
                data = params
            case "fail":
                answer = {"type": "error", "callId": message["callId"], "message": "No", "code": "refused"}
                await self.say(connection, service, answer)
                return
        await self.say(connection, service, {"type": "response", "callId": message["callId"], "data": data})
        await self._note()

    def _subscribe(
        self, connection: ServerConnection, channel: str, recover: Any = None, token: str | None = None
    ) -> Any:
        data = self._recover(connection, channel, recover)
        return data if self.lifetime_s is None else {**(data or {}), "expiresInS": self.lifetime_s}

    def _recover(self, connection: ServerConnection, channel: str, recover: Any) -> Any:
        self.channels[connection][channel] = recover is not None
        if recover is None:
            return None
        top = len(self.histories.setdefault(channel, []))
        since = top if recover is True else int(recover.split(":")[1])
        messages = [self._entry(channel, offset) for offset in range(since + 1, top + 1)]
        return {"position": f"e:{top}:t{top}", "recovered": True, "messages": messages}
