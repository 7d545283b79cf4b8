"""A Centrifuge client with the interface of the actors in `transports.py`: scenarios send it Snorky's envelopes.

actor = await centrifuge_actor("centrifuge-protobuf", http, "http://127.0.0.1:8002")
await actor.log_in("ann")
await actor.send({"service": "pubsub", "message": {"command": "subscribe", "params": {...}, "callId": "a"}})
await actor.until(lambda: actor.inbox)      # [{"message": {"type": "response", "callId": "a", "data": {...}}}]
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp

from tests.support.clients.protocols.base import DEADLINE_S
from tests.support.clients.protocols.centrifuge import CentrifugeClient, CentrifugeProtobufClient
from tests.support.scenarios.tokens import hmac_token

__all__ = ["CentrifugeActor", "centrifuge_actor"]

_METHODS: Final = {"presenceStats": "presence_stats"}  # of commands of pubsub that have another name
_CODES: Final = {101: "not_authenticated", 103: "not_authorized", 104: "unknown_service"}
_OF_SERVICES: Final = {"Name not allowed": "name_not_allowed"}  # by the text of error 400: a service's own code


class CentrifugeActor(CentrifugeClient):
    """Sends envelopes as commands, and keeps each reply as an envelope."""

    inbox: list[Any]
    _calls: list[Any]  # by the id of the command less 1: its `callId`

    async def start(self) -> None:
        """Open the WebSocket."""
        self.inbox, self._calls = [], []
        await self._connect()

    async def log_in(self, identity: str | None, **claims: Any) -> None:
        """Send `connect`, with a token for an identity."""
        await self._command({"connect": {} if identity is None else {"token": hmac_token(identity, **claims)}}, None)
        await self.until(lambda: self.inbox)
        assert self.inbox.pop()["message"]["type"] == "response"

    async def send(self, envelope: Any) -> None:
        """Send a call."""
        message = envelope["message"]
        await self._command(_translated(envelope["service"], message["command"], message["params"]), message["callId"])

    async def until(self, claim: Callable[[], object]) -> None:
        """Read until the inbox makes the condition true. Raises Ended."""
        async with asyncio.timeout(DEADLINE_S):
            while not claim():
                for reply in await self._replies():
                    if "id" in reply:
                        self.inbox.append({"message": self._answer(reply)})

    async def _command(self, command: Mapping[str, Any], call_id: Any) -> None:
        self._calls.append(call_id)
        await self._send({"id": len(self._calls), **command})

    def _answer(self, reply: Mapping[str, Any]) -> Any:
        call_id = self._calls[reply["id"] - 1]
        error = reply.get("error")
        if error is None:
            return {"type": "response", "callId": call_id, "data": reply}
        code = _CODES.get(error["code"]) or _OF_SERVICES.get(error["message"], str(error["code"]))
        return {"type": "error", "callId": call_id, "code": code, "message": error["message"]}


class _ProtobufActor(CentrifugeActor, CentrifugeProtobufClient):
    """The same in Protocol Buffers."""


async def centrifuge_actor(
    kind: str, http: aiohttp.ClientSession, url: str, headers: Mapping[str, str]
) -> CentrifugeActor:
    """Open a WebSocket. kind: "centrifuge" or "centrifuge-protobuf". url: of the node, "http://HOST:PORT"."""
    made = {"centrifuge": CentrifugeActor, "centrifuge-protobuf": _ProtobufActor}[kind]
    actor = made(http, url, "", since=None, headers=headers)
    await actor.start()
    return actor


def _translated(service: str, command: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the command of Centrifuge for one of Snorky's."""
    if service != "pubsub":
        return {"rpc": {"method": f"{service}.{command}", "data": params}}
    renamed = {("data" if name == "message" else name): value for name, value in params.items()}
    return {_METHODS.get(command, command): renamed}
