"""One client of each protocol and transport, with one way to use it: what all of them must do alike.

    async with opened("sse", site, "news") as client:
        assert await client.message() == {"title": "Hello"}

A client is subscribed when `opened` has returned. `ended` waits for its end, and returns the codes and reasons.
"""

import asyncio
import base64
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
import msgpack  # type: ignore[import-untyped]  # ships no annotations
from centrifuge.protocol import client_pb2  # type: ignore[import-untyped]  # likewise
from google.protobuf import json_format
from google.protobuf.internal import decoder, encoder

__all__ = ["CENTRIFUGE", "MAY_PUBLISH", "MAY_RECOVER", "PROTOCOLS", "AnyClient", "Ended", "Refused", "opened"]

DEADLINE_S: Final = 30.0
CENTRIFUGE: Final = ("centrifuge", "centrifuge-protobuf")
PROTOCOLS: Final = ("json", "msgpack", "sockjs", "raw", "raw-text", "sse", "sse-several", *CENTRIFUGE)
MAY_PUBLISH: Final = ("json", "msgpack", "sockjs", "raw", "raw-text", *CENTRIFUGE)
MAY_RECOVER: Final = ("json", "msgpack", "sockjs", "sse", "sse-several", *CENTRIFUGE)
UNUSED: Final = "unused"  # the second channel of "sse-several"


_NOTICES: Final = ("gap", "unsubscribed", "subscribed", "error")


class Refused(Exception):
    """The node refuses the subscription. Its text has the code of the error."""


class Ended(Exception):
    """The connection has ended. Its text has the close code and the reason."""


@dataclass(frozen=True, slots=True)
class _Event:
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

    async def event(self) -> _Event:
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
    async def _next(self) -> _Event:
        """Wait for the next event. Raises Ended."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    async def publish(self, message: Any) -> str | None:
        """Publish to the channel; returns the code of the refusal, None = accepted. Not for all protocols."""
        raise NotImplementedError


class _SocketClient(AnyClient):
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


class _SnorkyClient(_SocketClient):
    """Snorky's own protocol in JSON."""

    async def open(self) -> None:
        await self._connect()
        self._waiting: list[_Event] = []
        reply = await self._call("subscribe", channel=self.channel, recover=self.since or True)
        if reply["type"] == "error":
            raise Refused(f"{reply['code']}: {reply['message']}")
        data = reply["data"]
        if self.since is not None and not data["recovered"]:
            self._waiting.append(_Event("gap", None, data["position"]))
        self._waiting += [_Event("message", each["message"], each["position"]) for each in data["messages"]]
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

    async def _next(self) -> _Event:
        while not self._waiting:
            self._waiting += self._events((await self._envelope())["message"])
        return self._waiting.pop(0)

    def _events(self, message: Any) -> list[_Event]:
        if message["type"] == "message":
            return [_Event("message", message["message"], message.get("position"))]
        return [_Event(message["type"], message)] if message["type"] in _NOTICES else []

    async def _send(self, envelope: Any) -> None:
        await self._socket.send_str(json.dumps(envelope))

    async def _envelope(self) -> Any:
        return json.loads(await self._data())


class _PackedClient(_SnorkyClient):
    protocols = ("snorky.msgpack",)

    async def _send(self, envelope: Any) -> None:
        await self._socket.send_bytes(msgpack.packb(envelope))

    async def _envelope(self) -> Any:
        return msgpack.unpackb(await self._data())


class _SockJSClient(_SnorkyClient):
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


class _RawClient(_SocketClient):
    """A plain WebSocket. It is not notified when it is subscribed: see `until_heard`."""

    options = ""

    async def open(self) -> None:
        self.path = f"/raw?{urlencode({'channel': self.channel})}{self.options}"
        await self._connect()

    async def publish(self, message: Any) -> str | None:
        await self._socket.send_str(self._text(message))
        return None

    async def _next(self) -> _Event:
        return _Event("message", self._value(await self._data()))

    def _text(self, message: Any) -> str:
        return json.dumps(message)

    def _value(self, frame: str) -> Any:
        return json.loads(frame)


class _TextClient(_RawClient):
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


class _StreamClient(AnyClient):
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

    async def _next(self) -> _Event:
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

    def _event(self, kind: str, data: Any) -> _Event | None:
        if kind == "subscribed":
            self._subscriptions += 1
            if self._subscriptions == 1 + len(self.channels_beside):
                self._has_subscribed.set()
            return None
        if kind == "close":
            raise Ended(f"{data['code']} {data['reason']}")
        return _Event(kind, self._message(data) if kind == "message" else data)

    def _message(self, data: Any) -> Any:
        return data

    async def close(self) -> None:
        self._response.close()


class _SeveralClient(_StreamClient):
    """Server-sent events of several channels."""

    channels_beside = (UNUSED,)

    def _message(self, data: Any) -> Any:
        assert data["channel"] == self.channel, data
        return data["message"]


class _CentrifugeClient(_SocketClient):
    """Centrifuge, JSON."""

    path = "/connection/websocket"

    async def open(self) -> None:
        self.headers, token = {}, self.headers.get("Authorization", "").removeprefix("Bearer ")
        await self._connect()
        self._waiting: list[_Event] = []
        await self._call("connect", {"token": token})
        wanted: dict[str, Any] = {"channel": self.channel}
        if self.since is not None:
            epoch, _, offset = self.since.partition(":")
            wanted |= {"recover": True, "epoch": epoch, "offset": int(offset)}
        found = await self._call("subscribe", wanted)
        self._epoch = found.get("epoch", "")
        self.place = self._at(found)
        if self.since is not None and not found.get("recovered"):
            self._waiting.append(_Event("gap", None, self.place))
        self._waiting += [_Event("message", each["data"], self._at(each)) for each in found.get("publications", ())]

    async def publish(self, message: Any) -> str | None:
        try:
            await self._call("publish", {"channel": self.channel, "data": message})
        except Refused as refusal:
            return str(refusal)
        return None

    async def _call(self, method: str, params: dict[str, Any]) -> Any:
        await self._send({"id": 7, method: params})
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for reply in await self._replies():
                    if reply.get("id") != 7:
                        self._waiting += self._events(reply)
                        continue
                    if "error" in reply:
                        raise Refused(_CENTRIFUGE_ERRORS.get(reply["error"]["code"], str(reply["error"])))
                    return reply.get(method, {})

    async def _next(self) -> _Event:
        while not self._waiting:
            for reply in await self._replies():
                self._waiting += self._events(reply)
        return self._waiting.pop(0)

    def _events(self, reply: Any) -> list[_Event]:
        push = reply.get("push", {})
        if "pub" in push:
            return [_Event("message", push["pub"]["data"], self._at(push["pub"]))]
        if "unsubscribe" in push:
            return [_Event("unsubscribed", push["unsubscribe"])]
        return []

    def _at(self, found: Any) -> str | None:
        return f"{self._epoch}:{found.get('offset', 0)}" if self._epoch else None

    async def _send(self, command: Any) -> None:
        await self._socket.send_str(json.dumps(command))

    async def _replies(self) -> list[Any]:
        return [json.loads(line) for line in (await self._data()).split("\n")]


class _CentrifugeProtobufClient(_CentrifugeClient):
    """Centrifuge, Protocol Buffers, encoded by the library of its makers."""

    protocols = ("centrifuge-protobuf",)

    async def _send(self, command: Any) -> None:
        written = client_pb2.Command()
        (method,) = command.keys() - {"id"}
        params = dict(command[method])
        if "data" in params:
            params["data"] = base64.b64encode(json.dumps(params["data"]).encode()).decode()
        json_format.ParseDict({"id": command["id"], method: params}, written)
        await self._socket.send_bytes(encoder._VarintBytes(written.ByteSize()) + written.SerializeToString())

    async def _replies(self) -> list[Any]:
        data, at, found = await self._data(), 0, []
        while at < len(data):
            size, at = decoder._DecodeVarint(data, at)
            reply = client_pb2.Reply.FromString(data[at : at + size])
            at += size
            found.append(_readable(json_format.MessageToDict(reply, preserving_proto_field_name=True)))
        return found


def _readable(value: Any) -> Any:
    """Decode the payloads and numbers of a reply, which this library writes as base64 and as texts."""
    if isinstance(value, list):
        return [_readable(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {name: _readable(each) for name, each in value.items()}
    if isinstance(found.get("data"), str):
        found["data"] = json.loads(base64.b64decode(found["data"]))
    return found | ({"offset": int(found["offset"])} if "offset" in found else {})


_CENTRIFUGE_ERRORS: Final = {103: "not_authorized", 107: "invalid_params", 111: "rate_limited"}
_KINDS: Final[Mapping[str, type[AnyClient]]] = {
    "json": _SnorkyClient,
    "msgpack": _PackedClient,
    "sockjs": _SockJSClient,
    "raw": _RawClient,
    "raw-text": _TextClient,
    "sse": _StreamClient,
    "sse-several": _SeveralClient,
    "centrifuge": _CentrifugeClient,
    "centrifuge-protobuf": _CentrifugeProtobufClient,
}


@asynccontextmanager
async def opened(
    kind: str, url: str, channel: str, *, since: str | None = None, token: str | None = None
) -> AsyncIterator[AnyClient]:
    """Open a client. url: of a node, "http://HOST:PORT". Raises Refused."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    timeout = aiohttp.ClientTimeout(total=None, connect=DEADLINE_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        client = _KINDS[kind](http, url, channel, since=since, headers=headers)
        await client.open()
        try:
            yield client
        finally:
            await client.close()
