"""Permissions of the services by their rules. tests/e2e/test_permissions.py has every word on a real node."""

from typing import Any

import pytest

from snorky.gateway import Auth, Node, Service, ServiceRegistry, WebSocketHandler
from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.metrics import Metrics
from snorky.gateway.testing.broker import LoopbackBroker
from snorky.services.chat import ChatService
from snorky.services.cursors import CursorsService
from snorky.services.datasync import DataSyncService
from snorky.services.messaging import MessagingService
from snorky.services.pubsub import PubSubService
from snorky.services.rpc import Request
from tests.support.fakes.memory_cluster import town
from tests.support.scenarios.datasync_stage import ALL, DEALERS, Stage

REFUSED = "Error: Not authorized"


def authenticating(metrics: Metrics) -> Authenticator:
    return Authenticator(metrics=metrics, auth=Auth(hmac_secret=b"only its presence counts here......"))


STANDARD: list[tuple[Service, str, dict[str, Any], str]] = [
    (PubSubService(), "subscribe", {"channel": "c"}, REFUSED),
    (PubSubService(), "publish", {"channel": "c", "message": 1}, REFUSED),
    (PubSubService(), "history", {"channel": "c"}, REFUSED),
    (PubSubService(), "presence", {"channel": "c"}, REFUSED),
    (PubSubService(), "presenceStats", {"channel": "c"}, REFUSED),
    (ChatService(), "join", {"channel": "c"}, REFUSED),
    (CursorsService(), "join", {"document": "c"}, REFUSED),
    (MessagingService(), "registerParticipant", {"name": "c"}, "Error: Name not allowed"),
]


@pytest.mark.parametrize(("standard", "command", "params", "refusal"), STANDARD, ids=lambda each: str(each)[:30])
async def test_without_rules_a_node_that_authenticates_is_closed(
    standard: Service, command: str, params: dict[str, Any], refusal: str
) -> None:
    async with town(1, lambda: [type(standard)(standard.name)], auth=authenticating) as nodes:  # type: ignore[call-arg]
        assert await nodes.client(0, "ann").ask(standard.name, command, **params) == refusal
    opened = {"unmatched": "open"}
    async with town(1, lambda: [type(standard)(standard.name, **opened)], auth=authenticating) as nodes:  # type: ignore[call-arg,arg-type]
        answer = await nodes.client(0, "ann").ask(standard.name, command, **params)
        assert answer != refusal or command in ("history", "presence", "presenceStats"), "which need options"


async def test_a_client_registers_its_own_identity_as_a_name() -> None:
    async with town(1, lambda: [MessagingService()], auth=authenticating) as nodes:
        ann, seven, mail = nodes.client(0, "ann"), nodes.client(0, "~7"), nodes.client(0, "eve@example.org")
        assert await mail.ask("messaging", "registerParticipant", name="eve@example.org") is None
        assert await mail.ask("messaging", "registerParticipant", name="eve@example") == "Error: Name not allowed"
        assert await seven.ask("messaging", "registerParticipant", name="~7") == "Error: Name not allowed"
        assert await ann.ask("messaging", "registerParticipant", name="ann") is None
        assert await ann.ask("messaging", "registerParticipant", name="bob") == "Error: Name not allowed"
        assert await seven.ask("messaging", "registerParticipant", name="7") == "Error: Name not allowed"
        assert await seven.ask("messaging", "registerParticipant", name=7) is None
        access = nodes.registries[0]["messaging"].access
        assert access is not None
        assert next(access.sentences()) == "{identity}: register owner or token", "which `snorky check` shows"


async def test_names_can_have_a_pattern() -> None:
    async with town(1, lambda: [MessagingService(names="user:{identity}")]) as nodes:
        ann = nodes.client(0, "ann")
        assert await ann.ask("messaging", "registerParticipant", name="user:ann") is None
        assert await ann.ask("messaging", "registerParticipant", name="user:bob") == "Error: Name not allowed"


class Picky(PubSubService):
    """Its hooks allow `ann` alone, and count."""

    asked = 0

    def can_subscribe(self, request: Request, channel: Any) -> bool:
        type(self).asked += 1
        return request.identity == "ann"

    async def can_publish(self, request: Request, channel: Any, message: Any) -> bool:
        type(self).asked += 1
        return request.identity == "ann"


async def test_both_the_rule_and_the_hook_must_permit_it() -> None:
    rules = [{"match": "open"}, {"match": "user:{identity}", "allow_publish": "owner"}]
    async with town(1, lambda: [Picky("pubsub", channels=rules)]) as nodes:
        ann, bob = nodes.client(0, "ann"), nodes.client(0, "bob")
        assert await bob.ask("pubsub", "subscribe", channel="open") == REFUSED
        assert await bob.ask("pubsub", "publish", channel="user:bob", message=1) == REFUSED
        assert await ann.ask("pubsub", "subscribe", channel="user:ann") is None
        assert await ann.ask("pubsub", "publish", channel="user:ann", message=1) is None
        asked = Picky.asked
        assert await ann.ask("pubsub", "subscribe", channel="user:bob") == REFUSED
        assert await ann.ask("pubsub", "publish", channel="user:bob", message=1) == REFUSED
        assert Picky.asked == asked, "what a rule forbids costs no question"


async def test_a_grant_of_one_identity_is_nobody_elses() -> None:
    async with town(2, lambda: [DataSyncService(dealers=DEALERS)]) as nodes:
        stage = Stage(nodes)
        for identity, acquirer, expected in (("ann", "bob", REFUSED), ("ann", None, REFUSED), (7, "~7", None)):
            token = await stage.ask(0, "authorizeSubscription", items=[ALL], identity=identity)
            client = nodes.client(1, acquirer)
            assert await client.ask("datasync", "acquireSubscription", token=token) == expected
            if expected == REFUSED:
                owner = nodes.client(0, identity)
                answer = await owner.ask("datasync", "acquireSubscription", token=token)
                assert answer is None, "the refused client has not consumed it"
        for wrong in ("", True, ["ann"], "x" * 300):
            answer = await stage.ask(0, "authorizeSubscription", items=[ALL], identity=wrong)
            assert answer == "Error: Invalid params"


async def test_models_have_rules() -> None:
    rules = [{"match": "Task", "allow_acquire": "authenticated"}]
    async with town(1, lambda: [DataSyncService(dealers=DEALERS, models=rules, unmatched="closed")]) as nodes:
        stage = Stage(nodes)
        players = {"dealer": "players_with_color", "query": "red"}
        for item, identity, expected in ((ALL, None, REFUSED), (ALL, "ann", None), (players, "ann", REFUSED)):
            token = await stage.ask(0, "authorizeSubscription", items=[item])
            client = nodes.client(0, identity)
            assert await client.ask("datasync", "acquireSubscription", token=token) == expected


@pytest.mark.parametrize("is_attached_first", [True, False])
async def test_a_handler_with_a_hook_closes_what_has_no_rule(is_attached_first: bool) -> None:
    async def identify(request: Any) -> str | None:
        return "ann"

    node, registry = Node(LoopbackBroker()), ServiceRegistry([PubSubService()])
    if is_attached_first:
        node.attach(registry)
        WebSocketHandler(registry, identify_hook=identify)
    else:
        WebSocketHandler(registry, identify_hook=identify)
        node.attach(registry)
    service = registry["pubsub"]
    assert service.access is not None and not service.access.opened()


def test_a_registry_that_requires_an_identity_is_closed_too() -> None:
    node, registry = Node(LoopbackBroker()), ServiceRegistry([PubSubService()], requires_identity=True)
    node.attach(registry)
    access = registry["pubsub"].access
    assert access is not None and not access.opened()
