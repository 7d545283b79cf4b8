"""The client of `centrifuge.py` in Protocol Buffers, by the library of Centrifugo's makers."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from centrifuge.protocol import client_pb2  # type: ignore[import-untyped]  # ships no annotations
from google.protobuf import json_format
from google.protobuf.internal import decoder, encoder

from tests.support.clients.centrifuge import CentrifugeClient

__all__ = ["ProtobufClient", "connected_by_protobuf"]


class ProtobufClient(CentrifugeClient):
    """The same client in Protocol Buffers, by the library of Centrifugo's makers."""

    async def send(self, *commands: Any) -> None:
        data = b""
        for each in commands:
            if "data" in each.get("publish", ()):  # bytes, in this library's JSON
                payload = json.dumps(each["publish"]["data"]).encode()
                each = {**each, "publish": {**each["publish"], "data": base64.b64encode(payload).decode()}}
            written = json_format.ParseDict(each, client_pb2.Command()).SerializeToString()
            data += encoder._VarintBytes(len(written)) + written  # type: ignore[attr-defined]
        await self._socket.send_bytes(data)

    async def _hear(self) -> None:
        frame = await self._socket.receive()
        assert frame.type is aiohttp.WSMsgType.BINARY, frame
        at = 0
        while at < len(frame.data):
            size, at = decoder._DecodeVarint(frame.data, at)  # type: ignore[attr-defined]
            self.heard.append(_plain(client_pb2.Reply.FromString(frame.data[at : at + size])))
            at += size


def _plain(message: Any) -> Any:
    """Return a message as an object as in the JSON form."""
    found: dict[str, Any] = {"user": ""} if message.DESCRIPTOR.name == "ClientInfo" else {}
    for field, value in message.ListFields():
        if field.type == field.TYPE_BYTES:
            found[field.name] = json.loads(value)
        elif field.type != field.TYPE_MESSAGE:
            found[field.name] = value
        elif field.message_type.GetOptions().map_entry:
            found[field.name] = {key: each if isinstance(each, str) else _plain(each) for key, each in value.items()}
        else:
            found[field.name] = _plain(value) if hasattr(value, "ListFields") else list(map(_plain, value))
    return found


@asynccontextmanager
async def connected_by_protobuf(url: str, token: str = "") -> AsyncIterator[CentrifugeClient]:
    """As `connected`."""
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(f"{url}/connection/websocket?format=protobuf") as socket:
            client = ProtobufClient(socket)
            await client.call("connect", token=token)
            yield client
