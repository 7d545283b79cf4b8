"""A Pusher client without a WebSocket: requests as those of pusher-js, each to the next node.

    async with connected_xhr("xhr_streaming", urls) as (client, socket):
        assert await client.subscribe("private-a") == {}

`client` is the one of WebSockets; `socket` makes the requests.
"""

import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from itertools import count
from typing import Final, cast

import aiohttp

from tests.support.clients.pusher import DEADLINE_S, KEY, SECRET, PusherClient

__all__ = ["KINDS", "RESPONSE_MAX_CHARS", "XHRSocket", "connected_xhr", "dialled_xhr"]

KINDS: Final = ("xhr_streaming", "xhr")
QUERY: Final = "protocol=7&client=js&version=8.4.0"
RESPONSE_MAX_CHARS: Final = 256 * 1024  # that pusher-js reads of one response
_serials = count(1)


class XHRSocket:
    """Takes the place of a WebSocket. responses: the receiving ones so far. heartbeats, pongs: the server's frames.

    It is as strict as pusher-js: a stream that ends early is an error, and one that is long enough is not read further.
    """

    def __init__(
        self, http: aiohttp.ClientSession, kind: str, urls: Sequence[str], *, key: str = KEY, query: str = QUERY
    ) -> None:
        self.session = f"{next(_serials):03d}/abcdefgh"
        self.is_open = False
        self.close_code: int | None = None
        self.responses = self.heartbeats = self.pongs = 0
        self._reason = ""
        self._http, self._kind, self._urls, self._key, self._query = http, kind, urls, key, query
        self._requests = 0
        self._response: aiohttp.ClientResponse | None = None
        self._chars = 0  # of the present response
        self._texts: deque[str] = deque()

    def url(self, name: str, *, query: str = "", at: int | None = None, session: str | None = None) -> str:
        """Make the URL of the next request."""
        self._requests += 1
        base = self._urls[(self._requests if at is None else at) % len(self._urls)]
        path = f"/pusher/app/{self._key}/{session or self.session}/{name}"
        return f"{base}{path}?{query + '&' if query else ''}t=1700000000000&n={self._requests}"

    async def post(self, body: str, *, at: int | None = None, session: str | None = None) -> int:
        """Send the body of an `xhr_send`; returns the status."""
        headers = {"Content-Type": "application/json"}
        url = self.url("xhr_send", at=at, session=session)
        async with self._http.post(url, data=BytesIO(body.encode()), headers=headers) as response:
            await response.read()
            return response.status

    # -- what PusherClient needs of a WebSocket --------------------------------------------------------------------

    async def send_json(self, value: object) -> None:
        """Send an event."""
        await self.send_str(json.dumps(value))

    async def send_str(self, text: str) -> None:
        """Send a message."""
        assert await self.post(json.dumps([text])) == 204

    async def receive(self) -> aiohttp.WSMessage:
        """Wait for the next message, or the end."""
        while not self._texts and self.close_code is None:
            await self._take(await self._line())
        if self._texts:
            return aiohttp.WSMessage(aiohttp.WSMsgType.TEXT, self._texts.popleft(), None)
        return aiohttp.WSMessage(aiohttp.WSMsgType.CLOSE, self.close_code, self._reason)

    def abort(self) -> None:
        """Abort the present response, as pusher-js does to disconnect."""
        response, self._response = self._response, None
        if response is not None:
            response.close()

    # -- receiving -------------------------------------------------------------------------------------------------

    async def _line(self) -> str:
        """Read a line; "" = the response has ended."""
        try:
            if self._response is None:
                headers = {"Content-Type": "application/json"}
                self._response = await self._http.post(self.url(self._kind, query=self._query), headers=headers)
                self.responses, self._chars = self.responses + 1, 0
            status = self._response.status
            line = "" if status != 200 else (await self._response.content.readline()).decode()
        except aiohttp.ClientError:
            status, line = 0, ""
        self._chars += len(line.encode("utf-16-le")) // 2
        if self._chars > RESPONSE_MAX_CHARS or (not line and status == 200 and self._kind == "xhr"):
            self.abort()
        elif not line:
            self._end(1006, f"Connection interrupted ({status})")
        return line.rstrip("\n")

    async def _take(self, line: str) -> None:
        kind, rest = line[:1], line[1:]
        if kind == "o" and self.is_open:
            self._end(1006, "Server lost session")
        elif kind == "o":
            self.is_open = True
        elif kind == "h":
            self.heartbeats += 1
            if self._kind == "xhr_streaming" and self.is_open:
                assert await self.post("[]") == 204
        elif kind == "a":
            texts = json.loads(rest)
            self.pongs += not texts
            self._texts += texts
        elif kind == "c":
            self._end(*json.loads(rest))

    def _end(self, code: int, reason: str) -> None:
        self.abort()
        self.close_code, self._reason = code, reason


@asynccontextmanager
async def dialled_xhr(
    kind: str, urls: Sequence[str], *, key: str = KEY, query: str = QUERY, **headers: str
) -> AsyncIterator[tuple[PusherClient, XHRSocket]]:
    """Make a client, and wait for nothing. urls: of nodes, "http://HOST:PORT"."""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=DEADLINE_S)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=connector, headers=headers, read_bufsize=1 << 20
    ) as http:
        socket = XHRSocket(http, kind, urls, key=key, query=query)
        try:
            yield PusherClient(cast(aiohttp.ClientWebSocketResponse, socket), key, SECRET), socket
        finally:
            socket.abort()


@asynccontextmanager
async def connected_xhr(
    kind: str, urls: Sequence[str], **headers: str
) -> AsyncIterator[tuple[PusherClient, XHRSocket]]:
    """Open a connection, and wait for its `socket_id`."""
    async with dialled_xhr(kind, urls, **headers) as (client, socket):
        client.socket_id = (await client.data("pusher:connection_established"))["socket_id"]
        yield client, socket
