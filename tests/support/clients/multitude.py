"""Very many clients of one node, and witnesses on other nodes that count the notifications about them.

    multitude = Multitude(stage, 0)
    await multitude.come()                     # 10,000 chat members, names and cursors, on 625 connections
    witness = await Witness.come(stage, 1)     # in all rooms and documents
    await witness.until(lambda: ...)

Memberships can be computed, so all notifications can be checked against them.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Self

import aiohttp

from tests.support.processes.deadline import Deadline
from tests.support.scenarios.node_stage import NodeStage
from tests.support.scenarios.tokens import hmac_token

__all__ = ["DOCUMENTS", "EACH", "MEMBERS", "ROOMS", "Caller", "Heard", "Multitude", "Witness", "names_of", "rooms_of"]

CONNECTIONS = 625
EACH = 16  # rooms, names and cursors of each connection; no client may have more cursors
MEMBERS = CONNECTIONS * EACH  # 10,000
ROOMS = [f"room {number}" for number in range(MEMBERS // 5)]
DOCUMENTS = [f"document {number}" for number in range(CONNECTIONS // 5)]
DEADLINE_S = 30.0
AT_ONCE = 50  # concurrent connects: a listening socket has a backlog
TOKEN_TTL_S = 900.0

Heard = tuple[str, str, Any]  # event, room or document, identity


class Caller:
    """A WebSocket client that sends calls and receives notifications. closed: its close code, once it has ended."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, identity: str) -> None:
        self.identity = identity
        self.closed: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._socket = socket
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def come(cls, stage: NodeStage, node: int, identity: str) -> Self:
        """Connect to a node with a token."""
        token = hmac_token(identity, exp=time.time() + TOKEN_TTL_S)
        return cls(await stage.socket(node, token=token), identity)

    async def call(self, service: str, command: str, *, within_s: float = DEADLINE_S, **params: Any) -> Any:
        """Call; returns the message of the answer. Raises ConnectionError: there was none."""
        self._number += 1
        number = self._number
        message = {"command": command, "params": params, "callId": number}
        answer = self._calls[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_str(json.dumps({"service": service, "message": message}))
        try:
            async with asyncio.timeout(within_s):
                return await answer
        except TimeoutError:
            raise AssertionError(f"{self.identity}: no answer to {command} {params} within {within_s} s") from None

    async def ask(self, service: str, command: str, **params: Any) -> Any:
        """Call; returns the data of the answer. Raises AssertionError: it is an error."""
        answer = await self.call(service, command, **params)
        assert answer["type"] == "response", f"{self.identity}: {command} {params}: {answer}"
        return answer["data"]

    def hear(self, message: Any) -> None:
        """Handle a notification."""

    async def go(self) -> None:
        """Disconnect."""
        await self._socket.close()
        await self._reader

    async def _read(self) -> None:
        is_listening = type(self).hear is not Caller.hear
        async for frame in self._socket:
            if is_listening or '"callId"' in frame.data:  # most notifications to the ten thousand are never read
                message = json.loads(frame.data)["message"]
                if "callId" in message:
                    self._calls.pop(message["callId"]).set_result(message)
                else:
                    self.hear(message)
        self.closed.set_result(self._socket.close_code)
        for call in self._calls.values():
            if not call.done():
                call.set_exception(ConnectionError(f"closed with {self._socket.close_code}"))
                call.exception()  # read once: the caller may have timed out


def rooms_of(number: int) -> list[str]:
    """Return the rooms of a member; each room has five members."""
    return [ROOMS[(number * EACH + at) % len(ROOMS)] for at in range(EACH)]


def document_of(number: int) -> str:
    """Return the document of a member; each document has five."""
    return DOCUMENTS[number // 5]


def names_of(number: int) -> list[str]:
    """Return the names of a member."""
    return [f"name {number} {at}" for at in range(EACH)]


def cursor_of(handle: int, number: int, at: int, document: str) -> dict[str, Any]:
    """Return what other clients see of a member's cursor."""
    return {
        "publicHandle": handle,
        "document": document,
        "position": at,
        "status": None,
        "owner": f"member {number}",
    }


class Multitude:
    """The clients of one node. cursors: by public handle."""

    def __init__(self, stage: NodeStage, node: int) -> None:
        self.callers: dict[int, Caller] = {}
        self.cursors: dict[int, dict[str, Any]] = {}
        self._stage = stage
        self._node = node
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def come(self, numbers: Iterable[int] = range(CONNECTIONS)) -> None:
        """Connect members, join, and register their names and cursors."""
        async with asyncio.TaskGroup() as group:
            for number in numbers:
                group.create_task(self._come(number))

    async def _come(self, number: int) -> None:
        async with self._gate:
            caller = await Caller.come(self._stage, self._node, f"member {number}")
            self.callers[number] = caller
            document = document_of(number)
            calls: list[Awaitable[Any]] = [caller.ask("chat", "join", channel=room) for room in rooms_of(number)]
            calls += [caller.ask("messaging", "registerParticipant", name=name) for name in names_of(number)]
            calls.append(caller.ask("cursors", "join", document=document))
            calls += [
                caller.ask("cursors", "createCursor", privateHandle=at, document=document, position=at, status=None)
                for at in range(EACH)
            ]
            answers = await asyncio.gather(*calls)
        for at, handle in enumerate(answers[-EACH:]):
            self.cursors[handle] = cursor_of(handle, number, at, document)

    def forget(self, number: int) -> None:
        """Handle the end of a member."""
        del self.callers[number]
        owner = f"member {number}"
        self.cursors = {handle: each for handle, each in self.cursors.items() if each["owner"] != owner}

    @property
    def names(self) -> set[str]:
        """Everything that they hold."""
        return {name for number in self.callers for name in names_of(number)}

    def told(self, chat: str, cursors: str, numbers: Collection[int] = range(CONNECTIONS)) -> dict[Heard, int]:
        """Notifications to a witness if each entry has this event once. chat: "left". cursors: "cursorRemoved"."""
        owners = {f"member {number}" for number in numbers}
        places = [(chat, room, f"member {number}") for number in numbers for room in rooms_of(number)]
        shown = [
            (cursors, each["document"], handle) for handle, each in self.cursors.items() if each["owner"] in owners
        ]
        return dict.fromkeys(places + shown, 1)

    @property
    def members(self) -> Mapping[str, set[str]]:
        """Members of each room."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for number in self.callers:
            for room in rooms_of(number):
                found[room].add(f"member {number}")
        return found


class Witness(Caller):
    """A client in all rooms and documents that records their notifications of members and cursors, in order."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, identity: str) -> None:
        super().__init__(socket, identity)
        self.heard: list[Heard] = []  # joins and leaves, without those of lookers
        self.messages: list[Any] = []  # all other notifications

    async def enter(self) -> None:
        """Register a name, and join everything."""
        await self.ask("messaging", "registerParticipant", name=self.identity)
        await asyncio.gather(*(self.ask("chat", "join", channel=room) for room in ROOMS))
        await asyncio.gather(*(self.ask("cursors", "join", document=document) for document in DOCUMENTS))

    def hear(self, message: Any) -> None:
        match message["type"]:
            case "presence" if not message["from"].startswith("looker"):
                self.heard.append((message["status"], message["channel"], message["from"]))
            case "cursorAdded" | "cursorRemoved" as kind:
                self.heard.append((kind, message["cursor"]["document"], message["cursor"]["publicHandle"]))
            case "message" | "cursorUpdated":
                self.messages.append(message)

    async def until(self, claim: Callable[[], object], deadline: Deadline, *, what: str) -> None:
        """Wait until its notifications make a condition true. Raises AssertionError."""
        while not claim():
            assert not self.closed.done(), f"{self.identity} was closed with {self.closed.result()}"
            assert deadline.left_s > 0, f"too late: {what}; {len(self.heard)} heard, at last {self.heard[-3:]}"
            await asyncio.sleep(0.02)  # ten thousand notices come at once: checking after each is too slow
