"""The order `refresh`: rules and hooks are asked again, with new claims if it has some."""

import asyncio
import time
from typing import Any

import pytest

from snorky.gateway import Connection, Service
from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.contracts.hooks import Answer, Operation, Question
from snorky.gateway.errors import HookRefused, HookUnavailable
from snorky.gateway.metrics import Metrics
from snorky.services.pubsub import PubSubService
from snorky.services.rpc import Request, RPCError
from tests.support.fakes.fake_wire import settle
from tests.support.fakes.memory_cluster import Resident, Town, town

RULES = [
    {"match": "shop:{claims.shops}", "allow_subscribe": "owner"},
    {"match": "room:*", "allow_subscribe": "anyone"},
    {"match": "closed:*", "allow_subscribe": "nobody"},
]


class Hooks:
    """A double. refused: operations, or channels, that it refuses. error: raised for these instead."""

    def __init__(self) -> None:
        self.refused: set[Any] = set()
        self.error: Exception = HookRefused()
        self.questions: list[Question] = []

    def asks(self, operation: Operation, service: str = "") -> bool:
        return operation in ("connect", "subscribe")

    async def ask(self, question: Question) -> Answer:
        self.questions.append(question)
        await asyncio.sleep(0)
        if question.operation in self.refused or question.channel in self.refused:
            raise self.error
        return Answer()


class Guarded(PubSubService):
    """refused: channels that `can_subscribe` refuses, by False or an error."""

    refused: Any = {}  # noqa: RUF012 - replaced by tests

    async def can_subscribe(self, request: Request, channel: Any) -> bool:
        if isinstance(found := self.refused.get(channel, True), Exception):
            raise found
        return bool(found)


def services() -> list[Service]:
    return [Guarded(channels=RULES)]


async def joined(nodes: Town, *channels: str, identity: str | None = "ann", **claims: Any) -> Resident:
    client = nodes.client(0, identity)
    client.connection.claims = claims
    for channel in channels:
        assert await client.ask("pubsub", "subscribe", channel=channel) is None
    return client


async def refresh(nodes: Town, **options: Any) -> int:
    return (await nodes.nodes[0].control.give("refresh", **({"identity": "ann"} | options))).connections


def ended(client: Resident) -> list[tuple[str, str]]:
    return [(each["channel"], each["code"]) for each in client.notifications if each["type"] == "unsubscribed"]


async def test_new_claims_end_what_the_rules_do_not_permit_with_them() -> None:
    async with town(1, services) as nodes:
        ann = await joined(nodes, "shop:1", "shop:2", "room:1", shops=["1", "2"])
        assert await refresh(nodes) == 1 and ended(ann) == []
        assert await refresh(nodes, claims={"shops": ["2", "3"]}) == 1
        assert ended(ann) == [("shop:1", "not_authorized")]
        assert await ann.ask("pubsub", "subscribe", channel="shop:3") is None


async def test_backend_is_asked_again_about_each_subscription_but_not_about_its_own() -> None:
    hooks = Hooks()
    async with town(1, services, hooks=hooks) as nodes:
        ann = await joined(nodes, "room:1", "room:2")
        await nodes.nodes[0].control.give("subscribe", service="pubsub", target="closed:1", identity="ann")
        hooks.questions.clear()
        hooks.refused = {"room:2", "closed:1"}
        assert await refresh(nodes, claims={"x": 1}) == 1
        assert ended(ann) == [("room:2", "not_authorized")]
        asked = sorted((each.operation, str(each.channel), each.is_fresh) for each in hooks.questions)
        assert asked == [("connect", "None", True), ("subscribe", "room:1", True), ("subscribe", "room:2", True)]
        assert all(each.claims == {"x": 1} for each in hooks.questions)


async def test_connection_that_the_backend_refuses_is_closed() -> None:
    hooks = Hooks()
    async with town(1, services, hooks=hooks) as nodes:
        ann = await joined(nodes, "room:1")
        hooks.refused = {"connect"}
        assert await refresh(nodes) == 1
        assert ann.wire.closes == [(4500, "No longer permitted")]


async def test_without_a_usable_answer_everything_stays() -> None:
    hooks = Hooks()
    async with town(1, services, hooks=hooks) as nodes:
        ann = await joined(nodes, "room:1")
        hooks.refused, hooks.error = {"connect", "room:1"}, HookUnavailable("hook_failed")
        assert await refresh(nodes) == 1
        assert (ended(ann), ann.wire.closes) == ([], [])


@pytest.mark.parametrize(("verdict", "is_kept"), [(False, False), (RPCError("No", "no"), False), (True, True)])
async def test_hook_of_the_service_is_asked_again(verdict: Any, is_kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with town(1, services) as nodes:
        ann = await joined(nodes, "room:1")
        monkeypatch.setattr(Guarded, "refused", {"room:1": verdict})
        assert await refresh(nodes) == 1
        assert ended(ann) == ([] if is_kept else [("room:1", "not_authorized")])


async def test_connection_is_closed_if_a_hook_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async with town(1, services) as nodes:
        ann = await joined(nodes, "room:1")
        monkeypatch.setattr(Guarded, "refused", {"room:1": ZeroDivisionError()})
        await refresh(nodes)
        assert ann.wire.closes == [(1011, "Internal error")]


async def test_connection_gets_another_expiry_and_keeps_its_claims() -> None:
    def auth(metrics: Metrics) -> Authenticator:
        return Authenticator(metrics=metrics, clock=time.time)

    async with town(1, services, auth=auth) as nodes:
        ann = await joined(nodes, shops=["1"])
        assert await refresh(nodes, expires_in_s=100.0) == 1
        session = nodes.nodes[0].auth._sessions.of(ann.connection)
        assert session is not None and 99 < session.who.expires_at_s - time.time() <= 100
        assert ann.connection.claims == {"shops": ["1"]}
        assert await refresh(nodes, claims={"a": 1}) == 1
        session = nodes.nodes[0].auth._sessions.of(ann.connection)
        assert session is not None and 99 < session.who.expires_at_s - time.time() <= 100
        ann.leave()
        assert len(nodes.nodes[0].auth._sessions) == 0


async def test_anonymous_connection_has_no_claims_and_is_not_reached_by_an_order_that_gives_some() -> None:
    async with town(1, services) as nodes:
        client = await joined(nodes, "room:1", identity=None)
        where = {"identity": None, "channel": "room:1", "service": "pubsub"}
        assert await refresh(nodes, **where) == 1
        assert await refresh(nodes, **where, claims={"a": 1}) == 0
        assert client.connection.claims == {}


async def test_connection_that_ends_while_the_backend_is_asked_is_left_alone() -> None:
    hooks = Hooks()
    async with town(1, services, hooks=hooks) as nodes:
        ann = await joined(nodes, "room:1", "room:2")
        asked: list[Connection] = []

        async def leave(question: Question) -> Answer:
            asked.append(ann.connection)
            ann.leave()
            raise HookRefused

        hooks.ask = leave  # type: ignore[method-assign]
        await refresh(nodes)
        await settle()
        assert len(asked) == 1 and ended(ann) == []
