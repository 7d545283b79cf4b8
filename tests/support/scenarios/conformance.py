"""Scenarios of clients against the gateway: requests, replies, and the notifications that other clients receive.

    @scenario(ann="ann", bob="bob")
    def bob_comes() -> Iterator[Step]:
        yield ok("ann", "chat.join", {"members": ["ann"]}, channel="room")
        yield ok("bob", "chat.join", {"members": ["ann", "bob"]}, {"ann": [presence("bob", "joined")]}, channel="room")

Rules:
- A step ends when its reply and all expected notifications have come, and then a fence through Redis. Anything else
  that comes is an error.
- A reply and the notifications of its call are compared separately, because their order is not defined; each in order.
- A stage distributes the clients over its nodes in turn. Nothing here knows the number of nodes or how clients connect.
- Each error text has its code (`error_codes`), and each scenario the `house` (the setup) that it runs in.
"""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol

from tests.support.scenarios.error_codes import CODES
from tests.support.scenarios.matchers import ANY, SECONDS, TIME, Handle, is_same

__all__ = [
    "ANY",
    "DEADLINE_S",
    "NOTHING",
    "SECONDS",
    "STRANGER",
    "TIME",
    "Actor",
    "Garbled",
    "Handle",
    "Scenario",
    "Stage",
    "Step",
    "closing",
    "goes",
    "no",
    "ok",
    "perform",
    "posts",
    "says",
    "scenario",
    "waits",
]

DEADLINE_S = 30.0  # of a loaded machine
FENCE = "fence"  # a channel of pubsub
STRANGER: Final = "\0"  # in place of an identity: a client without one that may not even subscribe to the fence
_MARKS = itertools.count()
NOTHING: Final = object()  # means "no value"; null is a value


@dataclass(frozen=True)
class Garbled:
    """An invalid message, as text, and as bytes for clients that use MessagePack."""

    text: str
    packed: bytes


@dataclass(frozen=True)
class Step:
    """One action, and its expected results.

    A request; with `said`, any value or bytes, answered by these envelopes; with `posted`, an HTTP request to the
    backend's port; with none of them the disconnect of a client; without a client, notifications without a cause here.
    """

    who: str
    command: str  # SERVICE.COMMAND
    params: Mapping[str, Any]
    reply: Any = None
    error: str | None = None
    brings: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    closes: Mapping[str, int] = field(default_factory=dict)  # client and close code
    said: Any = NOTHING
    answers: Sequence[Any] = ()
    posted: bytes | None = None
    headers: Mapping[str, str] | None = None
    status: int = 200


def ok(
    who: str, command: str, reply: Any = None, brings: Mapping[str, Sequence[Any]] | None = None, /, **params: Any
) -> Step:
    """A request that succeeds. brings: notifications, by their receivers."""
    return Step(who, command, params, reply, None, brings or {})


def no(who: str, command: str, error: str, /, **params: Any) -> Step:
    """A request that is refused with this text and causes no notification."""
    return Step(who, command, params, None, error)


def says(who: str, value: Any, /, *answers: Any, brings: Mapping[str, Sequence[Any]] | None = None) -> Step:
    """A value, envelope or not, or something Garbled; answered by these envelopes."""
    return Step(who, "", {}, brings=brings or {}, said=value, answers=answers)


def posts(
    body: Any,
    status: int,
    answer: Any,
    brings: Mapping[str, Sequence[Any]] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
) -> Step:
    """A backend's HTTP request. body: bytes, or a value to send as JSON. headers: instead of the right key."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Step("backend", "", {}, answer, brings=brings or {}, posted=data, headers=headers, status=status)


def closing(step: Step, **closes: int) -> Step:
    """Let a step end clients, with these close codes."""
    return replace(step, closes=closes)


def goes(who: str, brings: Mapping[str, Sequence[Any]] | None = None) -> Step:
    """A client that disconnects."""
    return Step(who, "", {}, brings=brings or {})


def waits(brings: Mapping[str, Sequence[Any]] | None = None, /, **closes: int) -> Step:
    """No client acts; clients are notified or closed."""
    return Step("", "", {}, brings=brings or {}, closes=closes)


@dataclass(frozen=True)
class Scenario:
    """Clients with their identities, and steps: generated for every run, because handles remember their value.

    house: "open"; "required", where clients must authenticate; "keyless", which verifies no tokens. is_apart: shares no
    name with another scenario, so that both may run at the same time.
    """

    name: str
    clients: Mapping[str, str | None]
    steps: Callable[[], Iterator[Step]]
    house: str = "open"
    is_apart: bool = False


def scenario(
    house: str = "open", *, is_apart: bool = False, **clients: str | None
) -> Callable[[Callable[[], Iterator[Step]]], Scenario]:
    """Make a scenario of a generator of steps."""
    return lambda steps: Scenario(steps.__name__, clients, steps, house, is_apart)


class Actor(Protocol):
    """One client. inbox: all received envelopes, in order. close_code: from the node's close.

    encoding: "json" or "msgpack".
    """

    @property
    def encoding(self) -> str: ...

    @property
    def inbox(self) -> Sequence[Any]: ...

    @property
    def close_code(self) -> int | None: ...

    async def send(self, envelope: Any) -> None:
        """Send a value, or something Garbled."""

    async def until(self, claim: Callable[[], object]) -> None:
        """Wait until the inbox makes the condition true."""

    async def close(self) -> None:
        """Disconnect as clients do."""

    async def dismiss(self) -> None:
        """Disconnect the fastest way."""


class Stage(Protocol):
    """Nodes on which scenarios run."""

    async def client(self, number: int, identity: str | None) -> Actor:
        """Connect one more client."""

    async def backend(self, number: int, envelope: Any) -> Any:
        """Send a backend's request to the private port; returns the envelope of the answer."""

    async def post(self, number: int, body: bytes, headers: Mapping[str, str] | None) -> tuple[int, Any]:
        """Send any HTTP request to the backend's port; returns status and answer. headers: None = the right key."""


class Play:
    """A scenario in progress."""

    def __init__(self, stage: Stage, played: Scenario) -> None:
        self._stage = stage
        self._scenario = played
        self._actors: dict[str, Actor] = {}
        self._calls = 0
        self._strangers = {who for who, identity in played.clients.items() if identity == STRANGER}
        self._heard: dict[str, int] = {}

    async def run(self) -> None:
        """Run it to the end. Raises AssertionError."""
        for number, (who, identity) in enumerate(self._scenario.clients.items()):
            self._actors[who] = await self._stage.client(number, None if who in self._strangers else identity)
            self._heard[who] = 0
            if who not in self._strangers:
                await self._ask(who, "pubsub", "subscribe", {"channel": FENCE})
        try:
            for step in self._scenario.steps():
                await self._play(step)
        finally:
            await asyncio.gather(*(actor.dismiss() for actor in self._actors.values()))

    async def _play(self, step: Step) -> None:
        if step.command:
            await self._request(step)
        elif step.said is not NOTHING:
            await self._say(step)
        elif step.posted is not None:
            self._calls += 1
            status, answer = await self._stage.post(self._calls, step.posted, step.headers)
            assert status == step.status and is_same(step.reply, answer), f"{step}: {status} {answer}"
        elif step.who:
            await self._actors.pop(step.who).close()
        for who, code in step.closes.items():
            await self._wait(who, partial(getattr, self._actors[who], "close_code"), step)
            actor = self._actors.pop(who)
            assert actor.close_code == code, f"{step}: {who} was closed with {actor.close_code}"
            await actor.dismiss()
        for who, expected in step.brings.items():
            wanted = self._heard[who] + len(expected)
            await self._wait(who, partial(self._has_heard, who, wanted), step)
        await self._fence()
        for who in self._actors:
            heard = self._notifications(who)[self._heard[who] :]
            expected = list(step.brings.get(who, ()))
            messages = [each["message"] for each in heard]
            assert is_same(expected, messages), f"{step}:\n{who} heard {messages}\ninstead of {expected}"
            services = {each["service"] for each in heard}
            own = step.command.partition(".")[0].removesuffix("_backend")
            own = "pubsub" if own in ("auth", "control") else own  # the end of a subscription
            assert not step.command or services <= {own}, heard
            self._heard[who] += len(heard)

    async def _request(self, step: Step) -> None:
        service, command = step.command.split(".")
        answer = await self._ask(step.who, service, command, step.params)
        if step.error is None:
            assert is_same({"type": "response", "data": step.reply}, answer), f"{step}: replied {answer}"
        else:
            expected = {"type": "error", "message": step.error, "code": CODES[step.error]}
            assert answer == expected, f"{step}: replied {answer}"

    async def _say(self, step: Step) -> None:
        actor, before = self._actors[step.who], len(self._replies(step.who))
        await actor.send(step.said)
        await self._wait(step.who, lambda: len(self._replies(step.who)) >= before + len(step.answers), step)
        answers = self._replies(step.who)[before:]
        assert is_same([_as_read(each, actor.encoding) for each in step.answers], answers), f"{step}: replied {answers}"

    async def _ask(self, who: str, service: str, command: str, params: Mapping[str, Any]) -> Any:
        self._calls += 1
        call_id = self._calls
        envelope = {"service": service, "message": {"command": command, "params": dict(params), "callId": call_id}}
        if who == "backend":
            answer = await self._stage.backend(call_id, envelope)
        else:
            await self._actors[who].send(envelope)
            await self._wait(who, lambda: self._answers(who, call_id), envelope)
            (answer,) = self._answers(who, call_id)
        assert answer["service"] == service, answer
        assert answer["message"].pop("callId") == call_id
        return answer["message"]

    async def _fence(self) -> None:
        fenced = {who: actor for who, actor in self._actors.items() if who not in self._strangers}
        if not fenced:
            return
        mark = {"type": "message", "channel": FENCE, "message": next(_MARKS)}  # unique to this run
        await self._ask(next(iter(fenced)), "pubsub", "publish", {"channel": FENCE, "message": mark["message"]})
        for who, actor in fenced.items():
            await self._wait(who, partial(_is_in, actor, {"service": "pubsub", "message": mark}), "fence")

    async def _wait(self, who: str, claim: Callable[[], object], what: object) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._actors[who].until(claim)
        except TimeoutError:
            raise AssertionError(f"{what}: {who} has only {self._actors[who].inbox[-5:]}") from None

    def _answers(self, who: str, call_id: int) -> list[Any]:
        return [each for each in self._replies(who) if is_same(call_id, each["message"].get("callId"))]

    def _replies(self, who: str) -> list[Any]:
        return [each for each in self._actors[who].inbox if each["message"]["type"] in ("response", "error")]

    def _has_heard(self, who: str, count: int) -> bool:
        return len(self._notifications(who)) >= count

    def _notifications(self, who: str) -> list[Any]:
        return [
            each
            for each in self._actors[who].inbox
            if each["message"]["type"] not in ("response", "error") and each["message"].get("channel") != FENCE
        ]


async def perform(stage: Stage, played: Scenario) -> None:
    """Run a scenario. Raises AssertionError: it went differently."""
    await Play(stage, played).run()


def _is_in(actor: Actor, envelope: Any) -> bool:
    return envelope in actor.inbox


def _as_read(answer: Any, encoding: str) -> Any:
    """Return the expectation for a client of this encoding; {"json": ..., "msgpack": ...} has one for each."""
    if isinstance(answer, dict):
        if answer.keys() == {"json", "msgpack"}:
            return answer[encoding]
        return {key: _as_read(value, encoding) for key, value in answer.items()}
    return answer
