"""The table by the token, for Centrifuge's clients: JSON and Protocol Buffers.

in the handshake         the header of the WebSocket, then `connect` without a token
in `authenticate`        `connect`
in `subscribe`           `subscribe`
in `join`                `rpc`, for rooms and documents
"""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from tests.support.clients.centrifuge_actor import CentrifugeActor
from tests.support.clients.protocols.base import DEADLINE_S, Ended
from tests.support.clients.protocols.centrifuge import CentrifugeProtobufClient
from tests.support.clients.transports import NO_HEADERS, TransportStage
from tests.support.processes.tools import eventually
from tests.support.scenarios.node_stage import NodeStage
from tests.support.scenarios.permission_tables import send
from tests.support.scenarios.permission_trials import (
    EXPIRED,
    HANDSHAKE,
    LOGIN,
    NONE_REQUIRED,
    PLACES,
    SUBSCRIBE,
    SUBSCRIBED,
    WITHIN_S,
    Trial,
    closed,
    within,
)
from tests.support.scenarios.tokens import hmac_token

__all__ = ["CentrifugeTrial", "in_centrifuge", "try_required_of_centrifuge"]

CLOSES: Final = {"4501": "3500", "4502": "3502", "4503": "3503"}
NOT_JOINED: Final = "`400 Not joined`"  # clients get no push of other services: a later command has this error
Use = tuple[str, Mapping[str, Any], str]  # command, its parameters, one more that may be any number
USES: Final[Mapping[str, Use]] = {  # what needs a room or document
    "chat": ("send", {}, "body"),
    "cursors": ("createCursor", {"privateHandle": 1, "status": "here"}, "position"),
}
WORDS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {  # column, word: what a client receives
    (LOGIN, "`already_authenticated`"): ("3500",),
    (SUBSCRIBE, "`token_expired`"): ("`109`",),
    (SUBSCRIBE, "`invalid_token`"): ("`103`",),
    (SUBSCRIBE, "`revoked`"): ("`103`",),
    (SUBSCRIBE, "`not_authorized`"): ("`103`",),
    (SUBSCRIBE, "`not_authenticated`"): ("3500", "3501"),  # `connect` is refused; no other command comes first
    (SUBSCRIBED, "`expired`"): ("`2501`", NOT_JOINED),
    (SUBSCRIBED, "`revoked`"): ("`2000`", NOT_JOINED),
}


def in_centrifuge(row: str, column: str, text: str) -> tuple[str, ...]:
    """Translate a cell to what Centrifuge's clients receive: close codes, and codes of errors and of `unsubscribe`."""
    if text == "yes":
        return (text,)
    if text == "4501" and row == EXPIRED:
        return ("`109`", "3005") if column == LOGIN else ("3005",)
    return (CLOSES[text],) if text in CLOSES else WORDS[column, text]


class _Actor(CentrifugeActor):
    """Keeps publications and ends of subscriptions too, and the protocol's own codes. close_code: None = it is open."""

    close_code: int | None = None

    async def connect(self, token: str | None = None) -> None:
        """Send `connect`, and do not wait."""
        await self._command({"connect": {} if token is None else {"token": token}}, "connect")

    async def until(self, claim: Callable[[], object]) -> None:
        """Read until the client's state makes the condition true. Raises AssertionError: the connection has ended."""
        async with asyncio.timeout(DEADLINE_S):
            while not claim():
                assert self.close_code is None, (self.close_code, self.inbox)
                try:
                    replies = await self._replies()
                except Ended:
                    self.close_code = self._socket.close_code
                    continue
                self.inbox += [{"message": found} for each in replies if (found := self._message(each)) is not None]

    def _message(self, reply: Any) -> Any:
        """Return the message of a reply or push; None = it is of no interest."""
        push = reply.get("push", {})
        if "pub" in push:
            return {"type": "message", "message": push["pub"]["data"]}
        if "unsubscribe" in push:
            return {"type": "unsubscribed", "code": str(push["unsubscribe"]["code"])}
        return self._answer(reply) if "id" in reply else None

    def _answer(self, reply: Mapping[str, Any]) -> Any:
        call_id = self._calls[reply["id"] - 1]
        error = reply.get("error")
        if error is None:
            return {"type": "response", "callId": call_id, "data": reply}
        code = str(error["code"])
        return {"type": "error", "callId": call_id, "code": f"400 {error['message']}" if code == "400" else code}


class _ProtobufActor(_Actor, CentrifugeProtobufClient):
    """The same in Protocol Buffers."""


class CentrifugeStage(TransportStage):
    """Connects clients of one kind: "centrifuge" or "centrifuge-protobuf"."""

    async def bearer(self, number: int, token: str) -> Any:
        """Connect with a token in the header."""
        actor = await self.dialled(token)
        await actor.connect()
        await actor.until(lambda: actor.inbox or actor.close_code is not None)
        if actor.inbox and actor.inbox[0]["message"]["type"] == "response":  # what follows are replies to others
            actor.inbox.pop(0)
        return actor

    async def dialled(self, token: str | None = None) -> _Actor:
        """Open a WebSocket, and send nothing. token: in its header."""
        headers = NO_HEADERS if token is None else {"Authorization": f"Bearer {token}"}
        actor: _Actor = await self._connect(0, next(self._turn), headers)
        return actor

    async def _connect(self, number: int, transport: str, headers: Mapping[str, str] = NO_HEADERS) -> Any:
        made = {"centrifuge": _Actor, "centrifuge-protobuf": _ProtobufActor}[transport]
        url = f"http://127.0.0.1:{self._nodes.nodes[number].public_port}"
        actor = made(self._nodes.session, url, "", since=None, headers=headers)
        await actor.start()
        return actor


class CentrifugeTrial(Trial):
    """Clients of Centrifuge's protocol."""

    stage: CentrifugeStage

    def __init__(self, nodes: NodeStage, kind: str) -> None:
        super().__init__(CentrifugeStage(nodes, [kind], None), kind)

    async def _authenticate(self, row: str, token: str, before: str | None) -> None:
        actor = await self.stage.dialled(None if before is None else hmac_token(before))
        await actor.connect(token)
        await within(actor, lambda: actor.close_code is not None or actor.inbox)
        for each in actor.inbox:
            self.note(row, LOGIN, "yes" if each["message"]["type"] == "response" else f"`{each['message']['code']}`")
        if not actor.inbox or actor.inbox[0]["message"]["type"] != "response":
            self.note(row, LOGIN, await closed(actor))
        await actor.close()

    async def _unsubscribed(self, service: str, actor: _Actor) -> str:
        """As in `Trial`. Rooms and documents: the code of the error of commands that need them."""
        if service == "pubsub":
            return await super()._unsubscribed(service, actor)
        command, params, name = USES[service]
        numbers = itertools.count()  # calls of one client must differ

        async def end() -> str | None:
            before = len(actor.inbox)
            with suppress(ConnectionError):  # it closes
                await send(actor, service, command, **{PLACES[service][1]: self.channel, name: next(numbers)}, **params)
            await within(actor, lambda: actor.close_code is not None or len(actor.inbox) > before)
            if actor.close_code is not None:
                return str(actor.close_code)
            code = f"`{actor.inbox[-1]['message'].get('code')}`"
            return code if code == NOT_JOINED else None

        found = await eventually(end, within_s=WITHIN_S, what=f"the subscription of {service} has ended")
        return str(found)


async def try_required_of_centrifuge(trial: CentrifugeTrial) -> None:
    """Fill in the row of a node that requires an identity."""
    silent, nameless = await trial.stage.dialled(), await trial.stage.dialled()
    await nameless.connect()
    trial.note(NONE_REQUIRED, SUBSCRIBE, await closed(nameless))
    for service, (command, name) in PLACES.items():
        actor = await trial.stage.dialled()
        await send(actor, service, command, **{name: trial.channel})
        trial.note(NONE_REQUIRED, SUBSCRIBE, await closed(actor))
        assert actor.inbox == []
    trial.note(NONE_REQUIRED, HANDSHAKE, await closed(silent))
