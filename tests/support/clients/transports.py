"""Clients of each transport and encoding, on a stage of node processes; SockJS requests go from node to node.

stage = TransportStage(node_stage, ["xhr-streaming", "msgpack"])    # clients take turns
await perform(stage, scenario)
"""

import asyncio
import io
import itertools
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import aiohttp
import msgpack  # type: ignore[import-untyped]  # ships no annotations

from tests.support.clients.any_protocol import CENTRIFUGE
from tests.support.clients.centrifuge_actor import centrifuge_actor
from tests.support.processes.tools import eventually
from tests.support.scenarios.conformance import Garbled
from tests.support.scenarios.node_stage import NodeStage
from tests.support.scenarios.tokens import hmac_token

__all__ = ["TRANSPORTS", "TransportStage"]

_RECEIVE = {"xhr-streaming": "xhr_streaming", "xhr-polling": "xhr"}
TRANSPORTS = ("json", "msgpack", "sockjs-websocket", *_RECEIVE)
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_DEADLINE_S = 30.0  # of a loaded machine
_PROBE = aiohttp.ClientTimeout(total=0.5)
_TOO_LARGE = "x" * 70_000  # larger than the limit of a message


class _Actor:
    """A client that records everything it receives."""

    encoding = "json"

    def __init__(self) -> None:
        self.inbox: list[Any] = []
        self.close_code: int | None = None
        self._came = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def log_in(self, identity: str | None, **claims: Any) -> None:
        """Authenticate, unless the identity is None. claims: further ones of the token."""
        if identity is None:
            return
        request = {"command": "authenticate", "params": {"token": hmac_token(identity, **claims)}, "callId": "who"}
        await self.send({"service": "auth", "message": request})
        await self.until(lambda: self.inbox)
        assert self.inbox[0]["message"]["data"]["identity"] == identity, self.inbox

    async def send(self, envelope: Any) -> None:
        """Send an envelope."""
        raise NotImplementedError

    async def until(self, claim: Callable[[], object]) -> None:
        """Wait until the inbox makes the condition true."""
        async with self._came:
            await self._came.wait_for(claim)

    async def dismiss(self) -> None:
        """Disconnect the fastest way."""
        await self.close()

    async def _read(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    async def _take(self, envelopes: Sequence[Any], close_code: int | None = None) -> None:
        async with self._came:
            self.inbox += envelopes
            if close_code is not None and self.close_code is None:
                self.close_code = close_code
            self._came.notify_all()

    async def _take_frame(self, frame: str) -> None:
        """Decode a frame of SockJS."""
        if frame[0] == "a":
            await self._take([json.loads(message) for message in json.loads(frame[1:])])
        elif frame[0] == "c":
            await self._take([], json.loads(frame[1:])[0])
        else:
            assert frame in ("o", "h"), frame


class _SocketActor(_Actor):
    """By our WebSocket: JSON in text frames."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        super().__init__()

    async def send(self, envelope: Any) -> None:
        await self._socket.send_str(_text(envelope))

    async def close(self) -> None:
        """Disconnect, as clients do."""
        await self._socket.close()
        await self._reader

    async def _read(self) -> None:
        async for frame in self._socket:
            await self._on_frame(frame.data)
        await self._take([], self._socket.close_code)

    async def _on_frame(self, data: Any) -> None:
        await self._take([json.loads(data)])


class _PackedActor(_SocketActor):
    """The same in MessagePack."""

    encoding = "msgpack"

    async def send(self, envelope: Any) -> None:
        await self._socket.send_bytes(envelope.packed if isinstance(envelope, Garbled) else msgpack.packb(envelope))

    async def _on_frame(self, data: Any) -> None:
        await self._take([msgpack.unpackb(data)])


class _SockJSSocketActor(_SocketActor):
    """By a SockJS WebSocket."""

    async def send(self, envelope: Any) -> None:
        await self._socket.send_str(json.dumps([_text(envelope)]))

    async def _on_frame(self, data: Any) -> None:
        await self._take_frame(data)


class _RequestActor(_Actor):
    """By one HTTP request after another. urls: of the session, on each node; `receive`: xhr or xhr_streaming."""

    def __init__(
        self, http: aiohttp.ClientSession, urls: Sequence[str], receive: str, headers: Mapping[str, str]
    ) -> None:
        self._http = http
        self._headers = headers
        self._turn = itertools.cycle(urls)
        self._receive = receive
        self.is_open = asyncio.Event()
        super().__init__()

    async def send(self, envelope: Any) -> None:
        await self._send(_text(envelope))

    async def close(self) -> None:
        """Cut the receiver, as sockjs-client does; poll until the node has noticed, so that it buffers nothing."""
        if not self._reader.done():
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            await eventually(self._is_over, within_s=_DEADLINE_S, what="the node has ended the session")

    async def dismiss(self) -> None:
        """Be closed for a message that is too large: at once, unlike by a cut."""
        if not self._reader.done():
            status, text = await self._post(_TOO_LARGE)
            # 404: the node has closed the session, and the reader is about to learn it
            assert status in (204, 404), (status, text)
        await self._reader

    async def _send(self, text: str) -> None:
        status, answer = await self._post(text)
        assert status == 204, (status, answer)

    async def _post(self, text: str) -> tuple[int, str]:
        async with self._http.post(
            f"{next(self._turn)}/xhr_send", data=json.dumps([text]), headers=self._headers
        ) as response:
            return response.status, await response.text()

    async def _is_over(self) -> bool:
        try:
            async with self._http.post(f"{next(self._turn)}/xhr", timeout=_PROBE, headers=self._headers) as response:
                return (await response.text()).startswith("c[1002")
        except TimeoutError:  # it was between two receivers, and had this one, which is cut now
            return False

    async def _read(self) -> None:
        while self.close_code is None:
            async with self._http.post(f"{next(self._turn)}/{self._receive}", headers=self._headers) as response:
                assert response.status == 200, await response.text()
                async for line in response.content:
                    if frame := line.decode().rstrip("\n").lstrip("h"):  # a stream begins with many h
                        await self._take_frame(frame)
                        self.is_open.set()


class TransportStage:
    """A stage whose clients use the transports in turn. nodes: its nodes; api_key: for the backend's port."""

    def __init__(self, nodes: NodeStage, transports: Sequence[str], api_key: str | None) -> None:
        self._nodes = nodes
        self._turn = itertools.cycle(transports)
        self._key = {} if api_key is None else {"X-Backend-Key": api_key}

    async def client(self, number: int, identity: str | None, **claims: Any) -> Any:
        """Connect to the next node in turn, and authenticate. claims: further ones of its token."""
        actor = await self._connect(number, next(self._turn))
        await actor.log_in(identity, **claims)
        return actor

    async def bearer(self, number: int, token: str) -> Any:
        """Connect to the next node in turn, with a token in the handshake, which may refuse it."""
        return await self._connect(number, next(self._turn), {"Authorization": f"Bearer {token}"})

    async def backend(self, number: int, envelope: Any) -> Any:
        """Send to the private port of the next node in turn."""
        status, answer = await self.post(number, json.dumps(envelope).encode(), None)
        assert status == 200, answer
        return answer

    async def post(self, number: int, body: bytes, headers: Mapping[str, str] | None) -> tuple[int, Any]:
        """Send any HTTP request to the backend's port."""
        nodes = self._nodes.nodes
        url = f"http://127.0.0.1:{nodes[number % len(nodes)].private_port}/backend"
        sent = self._key if headers is None else headers
        async with self._nodes.session.post(url, data=io.BytesIO(body), headers=sent) as response:
            return response.status, await response.json()

    async def _connect(self, number: int, transport: str, headers: Mapping[str, str] = NO_HEADERS) -> Any:
        nodes, http = self._nodes.nodes, self._nodes.session
        at = number % len(nodes)
        if transport in ("json", "msgpack"):
            socket = await http.ws_connect(nodes[at].websocket_url, protocols=[f"snorky.{transport}"], headers=headers)
            return (_PackedActor if transport == "msgpack" else _SocketActor)(socket)
        if transport in CENTRIFUGE:
            return await centrifuge_actor(transport, http, f"http://127.0.0.1:{nodes[at].public_port}", headers)
        path = f"sockjs/0/{uuid.uuid4().hex}"
        urls = [f"http://127.0.0.1:{node.public_port}/{path}" for node in (*nodes[at:], *nodes[:at])]
        if transport == "sockjs-websocket":
            return _SockJSSocketActor(await http.ws_connect(f"{urls[0]}/websocket", headers=headers))
        actor = _RequestActor(http, urls, _RECEIVE[transport], headers)
        async with asyncio.timeout(_DEADLINE_S):
            await actor.is_open.wait()
        return actor


def _text(envelope: Any) -> str:
    return envelope.text if isinstance(envelope, Garbled) else json.dumps(envelope)
