"""Subscription tokens: what they permit, to whom, and until when."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from snorky.gateway import Access, Rules, Service
from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.auth.tokens import Verifier
from snorky.gateway.contracts.revocations import Kind, LocalRevocations
from snorky.gateway.metrics import Metrics
from snorky.services.auth import AuthService
from snorky.services.chat import ChatService
from snorky.services.cursors import CursorsService
from snorky.services.pubsub import PubSubService
from snorky.services.rpc import Request
from tests.support.fakes.fake_wire import settle, until
from tests.support.fakes.memory_cluster import Town, town
from tests.support.scenarios.logins import AUTH, FIXED
from tests.support.scenarios.subscription_tokens import is_granted, publish, received, subscribe, token
from tests.support.scenarios.tokens import claims, forged, hmac_token

RULES = [
    {"match": "orders:*", "allow_subscribe": "token", "history": 10, "presence": True, "allow_history": "token"},
    {"match": "free:*", "allow_subscribe": "anyone", "allow_publish": "token"},
    {"match": "secret", "allow_subscribe": "nobody"},
]
ROOMS = [{"match": "*", "allow_join": "token"}]
REFUSED = "Error: Not authorized"
HS256 = {"alg": "HS256", "typ": "JWT"}


def services() -> list[Service]:
    return [
        AuthService(),
        PubSubService(channels=RULES),
        ChatService(rooms=ROOMS),
        CursorsService(documents=ROOMS),
    ]


class Slow(LocalRevocations):
    """Revocations whose look-ups wait for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def find(self, identity: str, token_id: str | None) -> list[Any]:
        found = await super().find(identity, token_id)
        await self.gate.wait()
        return found


@pytest.fixture
async def revocations() -> Slow:
    return Slow()


@pytest.fixture
async def nodes(revocations: Slow) -> AsyncIterator[Town]:
    def auth(metrics: Metrics) -> Authenticator:
        return Authenticator(Verifier(FIXED, AUTH), metrics=metrics, auth=AUTH, revocations=revocations)

    async with town(2, services, auth=auth) as built:
        yield built
        for node in built.nodes:
            assert not len(node.auth.grants) or node.connections


async def test_a_token_permits_its_channel_to_its_client(nodes: Town) -> None:
    ann = nodes.client(0, "ann")
    assert await subscribe(ann) == REFUSED
    assert is_granted(await subscribe(ann, token=token()))
    await publish(nodes, 1)
    await ann.notified(1)
    assert (await ann.ask("pubsub", "history", channel="orders:7"))["messages"]
    assert await ann.ask("pubsub", "presence", channel="orders:7") == {"members": ["ann"]}
    assert await ann.ask("pubsub", "history", channel="orders:8") == REFUSED


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda: token("orders:8"), "Invalid token"),
        (lambda: token(["orders:7"]), "Invalid token"),
        (lambda: token(identity="bob"), "Invalid token"),
        (lambda: token(identity=None), "Invalid token"),
        (lambda: token(service="chat"), "Invalid token"),
        (lambda: token(service=7), "Invalid token"),
        (lambda: token(ops="subscribe"), "Invalid token"),
        (lambda: token(ops=[1]), "Invalid token"),
        (lambda: token("x" * 300), "Invalid token"),
        (lambda: hmac_token("ann"), "Invalid token"),  # a connection token
        (lambda: token(secret="another secret of thirty-two bytes!"), "Invalid token"),
        (lambda: token(within_s=-60), "Subscription token expired"),
        (lambda: token(within_s=10**9), "Invalid token"),
        (lambda: "", "Invalid token"),
        (lambda: 7, "Invalid params"),
        (lambda: {"a": 1}, "Invalid params"),
        (lambda: token(ops=["history"]), "Not authorized"),
        (lambda: token(ops=[]), "Not authorized"),
    ],
)
async def test_another_token_permits_nothing(nodes: Town, wrong: Callable[[], Any], text: str) -> None:
    ann = nodes.client(0, "ann")
    assert await subscribe(ann, token=wrong()) == f"Error: {text}"
    assert not ann.connection.channels and not len(nodes.nodes[0].auth.grants)
    assert not ann.connection.is_closed, "the client may ask its backend for another one"
    assert await subscribe(ann) == REFUSED


async def test_a_token_opens_nothing_that_the_rule_does_not_leave_to_tokens(nodes: Town) -> None:
    ann = nodes.client(0, "ann")
    assert await subscribe(ann, "secret", token=token("secret")) == REFUSED
    assert await subscribe(ann, "unmatched", token=token("unmatched")) == REFUSED


async def test_a_client_without_an_identity_needs_a_token_without_one(nodes: Town) -> None:
    nobody = nodes.client(0)
    assert await subscribe(nobody, token=token()) == "Error: Invalid token"
    assert is_granted(await subscribe(nobody, token=token(identity=None)))


async def test_a_token_permits_to_publish_while_its_subscription_lasts(nodes: Town) -> None:
    ann = nodes.client(0, "ann")
    publishing = token("free:a", ops=["subscribe", "publish"])
    assert await ann.ask("pubsub", "publish", channel="free:a", message=1) == REFUSED
    assert is_granted(await subscribe(ann, "free:a", token=publishing))
    assert await ann.ask("pubsub", "publish", channel="free:a", message=1) is None
    assert await ann.ask("pubsub", "publish", channel="free:b", message=1) == REFUSED
    await ann.ask("pubsub", "unsubscribe", channel="free:a")
    assert await ann.ask("pubsub", "publish", channel="free:a", message=1) == REFUSED


async def test_the_subscription_ends_with_its_token(nodes: Town) -> None:
    ann = nodes.client(0, "ann")
    assert is_granted(await subscribe(ann, token=token(within_s=1.3)))
    await publish(nodes, 1)
    await until(lambda: not ann.connection.channels)
    await publish(nodes, 2)
    await settle()
    end = {"type": "unsubscribed", "channel": "orders:7", "code": "expired", "reason": "Token expired"}
    assert [ann.notifications[0]["message"], ann.notifications[1:]] == [1, [end]]
    assert await subscribe(ann) == REFUSED
    await until(lambda: not nodes.cluster.rosters.get("pubsub:orders:7"))
    assert is_granted(await subscribe(ann, token=token()))


async def test_an_anonymous_grant_does_not_outlive_its_connection(nodes: Town) -> None:
    ann = nodes.client(0, "ann")
    assert is_granted(await subscribe(ann, token=token()))
    assert len(nodes.nodes[0].auth.grants) == 1
    ann.leave()
    assert len(nodes.nodes[0].auth.grants) == 0


async def test_a_refreshed_subscription_loses_nothing(nodes: Town) -> None:
    ann = nodes.client(0, "ann")
    assert is_granted(await subscribe(ann, token=token(within_s=1.4)))
    for number in range(3):
        await publish(nodes, number)
        answer = await ann.ask("pubsub", "refreshSubscription", channel="orders:7", token=token(within_s=60))
        assert is_granted(answer)
    await asyncio.sleep(2.0)
    await publish(nodes, 3)
    await ann.notified(4)
    assert received(ann) == [0, 1, 2, 3]
    assert len(nodes.nodes[0].auth.grants) == 1


async def test_a_refused_refresh_leaves_the_present_token(nodes: Town) -> None:
    ann = nodes.client(0, "ann")
    assert await ann.ask("pubsub", "refreshSubscription", channel="orders:7", token=token()) == "Error: Not subscribed"
    assert is_granted(await subscribe(ann, token=token(within_s=1.6)))
    for wrong, text in (
        (token("orders:8"), "Invalid token"),
        (token(within_s=-60), "Subscription token expired"),
        (token(ops=["history"]), "Not authorized"),
        (None, "Invalid params"),
    ):
        answer = await ann.ask("pubsub", "refreshSubscription", channel="orders:7", token=wrong)
        assert answer == f"Error: {text}"
    assert await subscribe(ann, token=token()) == "Error: Already subscribed"
    await until(lambda: received(ann) == ["unsubscribed"])


async def test_revocation_of_the_token_ends_the_subscription_alone(nodes: Town) -> None:
    ann = nodes.client(0, "ann")
    assert is_granted(await subscribe(ann, token=token(jti="t-1")))
    assert is_granted(await subscribe(ann, "orders:8", token=token("orders:8", jti="t-2")))
    await nodes.nodes[1].auth.revoke_token("t-1")
    await until(lambda: received(ann) == ["unsubscribed"])
    assert ann.notifications[0]["code"] == "revoked" and ann.connection.channels == {"pubsub:orders:8"}
    assert await subscribe(ann, token=token(jti="t-1")) == "Error: Revoked"


async def test_revocation_of_the_identity_ends_tokens_issued_before_it(nodes: Town) -> None:
    early = token(iat=time.time() - 60)
    await nodes.nodes[1].auth.revoke("ann")
    ann = nodes.client(0, "ann")
    assert await subscribe(ann, token=early) == "Error: Revoked"
    assert is_granted(await subscribe(ann, token=token(iat=time.time())))


@pytest.mark.parametrize("is_revoked", [True, False])
async def test_a_token_that_ends_while_it_is_checked_permits_nothing(
    nodes: Town, revocations: Slow, is_revoked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = nodes.client(0, "ann")
    asked: list[Any] = []
    monkeypatch.setattr(PubSubService, "can_subscribe", lambda _service, _request, channel: asked.append(channel))
    revocations.gate.clear()
    asking = asyncio.create_task(subscribe(ann, token=token(jti="t-1", within_s=60 if is_revoked else 1.3)))
    await settle()
    if is_revoked:
        await revocations.add(Kind.TOKEN, "t-1")
    else:
        await asyncio.sleep(1.8)
    revocations.gate.set()
    assert await asking == ("Error: Revoked" if is_revoked else "Error: Subscription token expired")
    assert not ann.connection.channels and not ann.notifications and not len(nodes.nodes[0].auth.grants)
    assert not asked, "the subscription did not begin"


class Hooked(PubSubService):
    """Its hook waits for `gate` while a client subscribes."""

    gate: asyncio.Event

    async def can_subscribe(self, request: Request, channel: Any) -> bool:
        await self.gate.wait()
        return True


async def test_a_token_that_is_revoked_while_its_client_subscribes_or_refreshes_permits_nothing() -> None:
    def auth(metrics: Metrics) -> Authenticator:
        return Authenticator(Verifier(FIXED, AUTH), metrics=metrics, auth=AUTH, revocations=LocalRevocations())

    Hooked.gate = asyncio.Event()
    async with town(1, lambda: [Hooked("pubsub", channels=RULES)], auth=auth) as nodes:
        ann = nodes.client(0, "ann")
        asking = asyncio.create_task(subscribe(ann, token=token(jti="t-1")))
        await settle()
        assert len(nodes.nodes[0].auth.grants) == 0 and not asking.done()
        await nodes.nodes[0].auth.revoke_token("t-1")
        Hooked.gate.set()
        assert await asking == "Error: Revoked"
        assert not ann.connection.channels and not ann.notifications

        assert is_granted(await subscribe(ann, token=token(jti="t-2")))
        Hooked.gate.clear()
        refresh = ann.ask("pubsub", "refreshSubscription", channel="orders:7", token=token(jti="t-3"))
        asking = asyncio.create_task(refresh)
        await settle()
        await nodes.nodes[0].auth.revoke_token("t-3")
        Hooked.gate.set()
        assert await asking == "Error: Revoked"
        assert ann.connection.channels == {"pubsub:orders:7"}, "with its present token"


async def test_nothing_follows_the_end_after_the_loop_was_stalled(nodes: Town) -> None:
    ann = nodes.client(0, "ann")
    assert is_granted(await subscribe(ann, token=token(within_s=1.2)))
    time.sleep(2.2)  # noqa: ASYNC251 - the node stands still, as by SIGSTOP, until long after the end
    nodes.nodes[0]._fanout.deliver({"pubsub:orders:7": [b"1"]})  # the first thing that it reads
    assert received(ann) == ["unsubscribed"]


async def test_rooms_and_documents_have_tokens_too(nodes: Town) -> None:
    ann = nodes.client(0, "ann")
    room = token("lobby", service="chat", ops=["join"], within_s=1.5)
    assert await ann.ask("chat", "join", channel="lobby") == REFUSED
    assert await ann.ask("chat", "join", channel="lobby", token=token("lobby", ops=["join"])) == "Error: Invalid token"
    assert await ann.ask("chat", "join", channel="lobby", token=room) == {"members": ["ann"]}
    document = token("d", service="cursors", ops=["join"], within_s=1.5)
    assert await ann.ask("cursors", "join", document="d", token=document) == {"cursors": []}
    handle = await ann.ask("cursors", "createCursor", privateHandle=1, document="d", position=0, status=0)
    assert isinstance(handle, int)
    await until(lambda: received(ann) == ["unsubscribed"] * 2)
    assert not ann.connection.channels
    removed = await ann.ask("cursors", "removeCursor", privateHandle=1)
    assert removed == "Error: No such cursor"
    await until(lambda: not any(nodes.cluster.rosters.values()))


async def test_rights_are_looked_at_again_when_the_connections_token_is_refreshed(nodes: Town) -> None:
    ann = nodes.client(0)
    every = {"orders:*": ["subscribe"], "free:*": ["subscribe"]}
    await ann.ask("auth", "authenticate", token=hmac_token("ann", channels=every))
    assert await subscribe(ann, "orders:7") is None
    assert await subscribe(ann, "orders:8") is None
    assert is_granted(await subscribe(ann, "orders:9", token=token("orders:9")))
    assert await subscribe(ann, "free:a") is None
    await ann.ask("auth", "refresh", token=hmac_token("ann", channels={"orders:8": ["subscribe"]}))
    await until(lambda: received(ann) == ["unsubscribed"])
    end = {"type": "unsubscribed", "channel": "orders:7", "code": "not_authorized", "reason": "No longer permitted"}
    assert ann.notifications == [end]
    assert ann.connection.channels == {"pubsub:orders:8", "pubsub:orders:9", "pubsub:free:a"}


async def test_a_recovery_with_a_token_says_when_it_expires(nodes: Town) -> None:
    ann, bob = nodes.client(0, "ann"), nodes.client(0, "bob")
    first = await subscribe(ann, token=token(), recover=True)
    assert first["recovered"] is True and 0 < first["expiresInS"] <= 60
    await publish(nodes, 1)
    later = await subscribe(bob, token=token(identity="bob"), recover=first["position"])
    assert [each["message"] for each in later["messages"]] == [1] and 0 < later["expiresInS"] <= 60


async def test_authenticating_again_is_a_refresh_of_rights_too(nodes: Town) -> None:
    ann = nodes.client(0)
    await ann.ask("auth", "authenticate", token=hmac_token("ann", channels={"orders:*": ["subscribe"]}))
    assert await subscribe(ann) is None
    await ann.ask("auth", "authenticate", token=hmac_token("ann"))
    assert received(ann) == ["unsubscribed"] and not ann.connection.channels


async def test_a_refresh_with_a_token_that_is_revoked_meanwhile_leaves_the_subscription(
    nodes: Town, revocations: Slow
) -> None:
    ann = nodes.client(0, "ann")
    assert is_granted(await subscribe(ann, token=token(jti="t-1")))
    revocations.gate.clear()
    refreshing = asyncio.create_task(
        ann.ask("pubsub", "refreshSubscription", channel="orders:7", token=token(jti="t-2"))
    )
    await settle()
    await revocations.add(Kind.TOKEN, "t-2")
    revocations.gate.set()
    assert await refreshing == "Error: Revoked"
    assert ann.connection.channels == {"pubsub:orders:7"} and len(nodes.nodes[0].auth.grants) == 1


async def test_a_service_that_fails_to_end_a_subscription_keeps_no_other_from_ending(
    nodes: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise RuntimeError("a service's error")

    clients = [nodes.client(0, name) for name in ("ann", "bob", "cat")]
    for client in clients:
        own = token(identity=client.connection.identity, within_s=1.3, jti=client.connection.identity)
        assert is_granted(await subscribe(client, token=own))
    monkeypatch.setattr(nodes.registries[0]["pubsub"], "cut_subscription", fail)
    await until(lambda: all(client.connection.is_closed for client in clients))
    assert not len(nodes.nodes[0].auth.grants)


async def test_the_channel_null_can_have_a_token(nodes: Town) -> None:
    rules = [{"match": "~null", "allow_subscribe": "token"}]
    service = nodes.registries[0]["pubsub"]
    service.access = Access("pubsub", Rules.read(rules))
    ann = nodes.client(0, "ann")
    assert is_granted(await subscribe(ann, None, token=forged(HS256, {**claims("ann"), "channel": None})))
    assert await subscribe(ann, None, token=hmac_token("ann")) == "Error: Invalid token"


async def test_an_id_that_cannot_be_revoked_is_refused(nodes: Town) -> None:
    ann = nodes.client(0, "ann")
    assert await subscribe(ann, token=token(jti="x" * 256)) == "Error: Invalid token"
    assert is_granted(await subscribe(ann, token=token(jti="x" * 255)))


async def test_a_cursor_made_while_the_right_ends_does_not_remain(nodes: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = nodes.client(0, "ann")
    document = token("d", service="cursors", ops=["join"], jti="t-1")
    assert await ann.ask("cursors", "join", document="d", token=document) == {"cursors": []}
    gate, directory = asyncio.Event(), nodes.nodes[0].ownership.directory
    enter = directory.enter

    async def late(*args: Any, **options: Any) -> Any:
        await gate.wait()
        return await enter(*args, **options)

    monkeypatch.setattr(directory, "enter", late)
    params = {"privateHandle": 1, "document": "d", "position": 0, "status": 0}
    making = asyncio.create_task(ann.ask("cursors", "createCursor", **params))
    await settle()
    await nodes.nodes[0].auth.revoke_token("t-1")
    await until(lambda: received(ann) == ["unsubscribed"])
    await settle()
    gate.set()
    assert await making == "Error: Not joined"
    await until(lambda: not any(nodes.cluster.rosters.values()))
