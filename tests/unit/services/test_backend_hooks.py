"""[hooks.subscribe] and [hooks.publish]: what services ask the backend, after which checks, and what clients see."""

import asyncio
import time
from typing import Any

import pytest

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.auth.tokens import Verifier
from snorky.gateway.contracts.hooks import Answer, Operation, Question
from snorky.gateway.errors import HookRefused, HookUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.testing import CallFailed, MemoryClient, memory_cluster
from snorky.services.chat import ChatService
from snorky.services.cursors import CursorsService
from snorky.services.messaging import MessagingService
from snorky.services.pubsub import PubSubService
from snorky.services.rpc import Request, RPCService, rpc_command
from tests.support.scenarios.logins import AUTH, FIXED
from tests.support.scenarios.tokens import hmac_token


class Hooks:
    """A double: records the questions; `error` is raised instead of an answer."""

    def __init__(self, *asked: tuple[Operation, str]) -> None:
        self.asked = asked or (("subscribe", "pubsub"), ("publish", "pubsub"))
        self.questions: list[Question] = []
        self.error: Exception | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def asks(self, operation: Operation, service: str = "") -> bool:
        return (operation, service) in self.asked

    async def ask(self, question: Question) -> Answer:
        self.questions.append(question)
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return Answer()


def services() -> list[Any]:
    rules = [{"match": "kept", "history": 10, "presence": True}, {"match": "shut", "allow_subscribe": "nobody"}]
    return [PubSubService(channels=rules), ChatService(), CursorsService(), MessagingService()]


async def outcome(client: MemoryClient, service: str, command: str, **params: Any) -> str:
    """Call; return "ok" or the error's code."""
    try:
        await client.call(service, command, **params)
    except CallFailed as error:
        return error.code
    return "ok"


READS = ("subscribe", "history", "presence", "presenceStats")


async def test_backend_is_asked_who_wants_what_on_any_node() -> None:
    hooks = Hooks()
    async with memory_cluster(2, services, hooks=hooks) as cluster:
        ann, anonymous = await cluster.connect(0, "ann"), await cluster.connect(1)
        await ann.call("pubsub", "subscribe", channel={"b": 1, "a": 2})
        await anonymous.call("pubsub", "publish", channel="news", message={"title": "Hello"})
        common = {"claims": {}, "service": "pubsub"}
        assert hooks.questions == [
            Question(
                operation="subscribe",
                identity="ann",
                address=ann.connection.remote_ip,
                channel={"b": 1, "a": 2},
                **common,  # type: ignore[arg-type]
            ),
            Question(
                operation="publish",
                identity=None,
                address=anonymous.connection.remote_ip,
                channel="news",
                message={"title": "Hello"},
                **common,  # type: ignore[arg-type]
            ),
        ]


@pytest.mark.parametrize(
    ("error", "code"), [(HookRefused(), "not_authorized"), (HookUnavailable("hook_failed"), "unavailable")]
)
async def test_without_a_yes_nothing_is_done(error: Exception, code: str) -> None:
    hooks = Hooks()
    async with memory_cluster(2, services, hooks=hooks) as cluster:
        watcher, client = await cluster.connect(0, "watcher"), await cluster.connect(1, "ann")
        await watcher.call("pubsub", "subscribe", channel="kept")
        hooks.error = error
        for command in READS:
            assert await outcome(client, "pubsub", command, channel="kept") == code
        assert await outcome(client, "pubsub", "publish", channel="kept", message=1) == code
        assert client.connection.channels in (set(), ())
        hooks.error = None
        await client.call("pubsub", "publish", channel="kept", message="fence")
        assert (await watcher.next_message())["message"] == "fence"
        found = await client.call("pubsub", "presence", channel="kept")
        assert found["members"] == ["watcher"]


async def test_what_reads_a_channel_asks_as_subscribe() -> None:
    hooks = Hooks()
    async with memory_cluster(1, services, hooks=hooks) as cluster:
        client = await cluster.connect()
        for command in READS:
            assert await outcome(client, "pubsub", command, channel="kept") == "ok"
        assert [question.operation for question in hooks.questions] == ["subscribe"] * 4


async def test_later_token_of_a_subscription_is_asked_about_too() -> None:
    def auth(metrics: Metrics) -> Authenticator:
        return Authenticator(Verifier(FIXED, AUTH), metrics=metrics, auth=AUTH)

    hooks = Hooks()
    rules = [{"match": "orders", "allow_subscribe": "token"}]
    async with memory_cluster(1, lambda: [PubSubService(channels=rules)], hooks=hooks, auth=auth) as cluster:
        client = await cluster.connect(0, "ann")
        params = {"channel": "orders", "token": hmac_token("ann", channel="orders", exp=time.time() + 60)}
        await client.call("pubsub", "subscribe", **params)
        await client.call("pubsub", "refreshSubscription", **params)
        assert [question.operation for question in hooks.questions] == ["subscribe"] * 2
        hooks.error = HookRefused()
        assert await outcome(client, "pubsub", "refreshSubscription", **params) == "not_authorized"
        assert client.connection.channels == {"pubsub:orders"}, "the present token remains"


async def test_rules_and_python_hooks_come_first() -> None:
    class Guarded(PubSubService):
        def can_subscribe(self, request: Request, channel: Any) -> bool:
            return channel != "no"

        async def can_publish(self, request: Request, channel: Any, message: Any) -> bool:
            return channel != "no"

    hooks = Hooks()
    rules = [{"match": "shut", "allow_subscribe": "nobody", "allow_publish": "nobody"}]
    async with memory_cluster(1, lambda: [Guarded(channels=rules)], hooks=hooks) as cluster:
        client = await cluster.connect()
        for channel in ("shut", "no"):
            assert await outcome(client, "pubsub", "subscribe", channel=channel) == "not_authorized"
            assert await outcome(client, "pubsub", "publish", channel=channel, message=1) == "not_authorized"
        assert hooks.questions == []
        assert await outcome(client, "pubsub", "publish", channel="yes", message=1) == "ok"
        assert len(hooks.questions) == 1


async def test_publications_of_a_client_keep_their_order_while_the_backend_is_asked() -> None:
    hooks = Hooks()
    async with memory_cluster(2, services, hooks=hooks) as cluster:
        watcher, client = await cluster.connect(0), await cluster.connect(1)
        await watcher.call("pubsub", "subscribe", channel="news")
        hooks.may_answer.clear()
        calls = [client.start_call("pubsub", "publish", channel="news", message=number) for number in range(5)]
        await cluster.settle()
        assert watcher.unread == []
        hooks.may_answer.set()
        for call in calls:
            assert (await client.reply_to(call))["type"] == "response"
        assert [(await watcher.next_message())["message"] for _ in calls] == [0, 1, 2, 3, 4]


async def test_client_that_leaves_while_the_backend_is_asked_is_not_subscribed() -> None:
    hooks = Hooks()
    async with memory_cluster(1, services, hooks=hooks) as cluster:
        client = await cluster.connect(0, "ann")
        hooks.may_answer.clear()
        client.start_call("pubsub", "subscribe", channel="kept")
        await cluster.settle()
        client.disconnect()
        hooks.may_answer.set()
        await cluster.settle()
        assert cluster.nodes[0].counts["subscriptions"] == 0
        other = await cluster.connect(0)
        assert await other.call("pubsub", "presenceStats", channel="kept") == {"members": 0, "connections": 0}


@pytest.mark.parametrize(
    ("service", "command", "params", "error"),
    [
        ("chat", "join", {"channel": "room"}, "not_authorized"),
        ("cursors", "join", {"document": "room"}, "not_authorized"),
        ("messaging", "registerParticipant", {"name": "room"}, "name_not_allowed"),
    ],
    ids=["chat", "cursors", "messaging"],
)
async def test_rooms_documents_and_names_ask_only_if_they_are_named(
    service: str, command: str, params: dict[str, Any], error: str
) -> None:
    for hooks, expected in ((Hooks(), "ok"), (Hooks(("subscribe", service)), error)):
        hooks.error = HookRefused()
        async with memory_cluster(1, services, hooks=hooks) as cluster:
            client = await cluster.connect(0, "ann")
            assert await outcome(client, service, command, **params) == expected
            assert [(each.service, each.channel) for each in hooks.questions] == (
                [] if expected == "ok" else [(service, "room")]
            )


async def test_backends_publish_without_being_asked() -> None:
    hooks = Hooks()
    hooks.error = HookRefused()
    async with memory_cluster(1, services, hooks=hooks) as cluster:
        found = cluster.nodes[0].find_service("pubsub")
        assert isinstance(found, PubSubService)
        await found.publish_from_backend("news", 1)
        assert hooks.questions == []


async def test_without_hooks_a_burst_of_publications_needs_no_await() -> None:
    async with memory_cluster(1, services) as cluster:
        client = await cluster.connect()
        found = cluster.nodes[0].find_service("pubsub")
        assert isinstance(found, PubSubService)
        request = Request(client.connection, "pubsub", "publish", 1, 0.0)
        assert isinstance(found.publish(request, "news", 1), asyncio.Future)


async def test_own_service_asks_as_documented() -> None:
    class Desk(RPCService):
        hook_operations = ("subscribe",)

        @rpc_command
        async def sit(self, request: Request, desk: Any) -> str:
            await self.ask_backend("subscribe", request.connection, desk)
            return "seated"

    for asked, expected in ((("subscribe", "pubsub"), "ok"), (("subscribe", "desks"), "not_authorized")):
        hooks = Hooks(asked)  # type: ignore[arg-type]
        hooks.error = HookRefused()
        async with memory_cluster(1, lambda: [Desk("desks")], hooks=hooks) as cluster:
            client = await cluster.connect()
            assert await outcome(client, "desks", "sit", desk=7) == expected
