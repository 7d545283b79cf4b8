"""Clients of the Centrifuge protocol: JSON and Protocol Buffers."""

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any, Final

from centrifuge.protocol import client_pb2  # type: ignore[import-untyped]  # ships no annotations
from google.protobuf import json_format
from google.protobuf.internal import decoder, encoder

from tests.support.clients.protocols.base import DEADLINE_S, Event, Refused, SocketClient

__all__ = ["CentrifugeClient", "CentrifugeProtobufClient"]

_ERRORS: Final[Mapping[int, str]] = {103: "not_authorized", 107: "invalid_params", 111: "rate_limited"}


class CentrifugeClient(SocketClient):
    """Centrifuge, JSON."""

    path = "/connection/websocket"

    async def open(self) -> None:
        self.headers, token = {}, self.headers.get("Authorization", "").removeprefix("Bearer ")
        await self._connect()
        self._waiting: list[Event] = []
        await self._call("connect", {"token": token})
        wanted: dict[str, Any] = {"channel": self.channel}
        if self.since is not None:
            epoch, _, offset = self.since.partition(":")
            wanted |= {"recover": True, "epoch": epoch, "offset": int(offset)}
        found = await self._call("subscribe", wanted)
        self._epoch = found.get("epoch", "")
        self.place = self._at(found)
        if self.since is not None and not found.get("recovered"):
            self._waiting.append(Event("gap", None, self.place))
        self._waiting += [Event("message", each["data"], self._at(each)) for each in found.get("publications", ())]

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
                        raise Refused(_ERRORS.get(reply["error"]["code"], str(reply["error"])))
                    return reply.get(method, {})

    async def _next(self) -> Event:
        while not self._waiting:
            for reply in await self._replies():
                self._waiting += self._events(reply)
        return self._waiting.pop(0)

    def _events(self, reply: Any) -> list[Event]:
        push = reply.get("push", {})
        if "pub" in push:
            return [Event("message", push["pub"]["data"], self._at(push["pub"]))]
        if "unsubscribe" in push:
            return [Event("unsubscribed", push["unsubscribe"])]
        return []

    def _at(self, found: Any) -> str | None:
        return f"{self._epoch}:{found.get('offset', 0)}" if self._epoch else None

    async def _send(self, command: Any) -> None:
        await self._socket.send_str(json.dumps(command))

    async def _replies(self) -> list[Any]:
        return [json.loads(line) for line in (await self._data()).split("\n")]


class CentrifugeProtobufClient(CentrifugeClient):
    """Centrifuge, Protocol Buffers, encoded by the library of its makers."""

    protocols = ("centrifuge-protobuf",)

    async def _send(self, command: Any) -> None:
        written = client_pb2.Command()
        (method,) = command.keys() - {"id"}
        params = dict(command[method])
        if "data" in params:
            params["data"] = base64.b64encode(json.dumps(params["data"]).encode()).decode()
        json_format.ParseDict({"id": command["id"], method: params}, written)
        size: bytes = encoder._VarintBytes(written.ByteSize())  # type: ignore[attr-defined]
        await self._socket.send_bytes(size + written.SerializeToString())

    async def _replies(self) -> list[Any]:
        data, at, found = await self._data(), 0, []
        while at < len(data):
            size, at = decoder._DecodeVarint(data, at)  # type: ignore[attr-defined]
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
