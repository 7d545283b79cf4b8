"""Hooks of pub/sub, and its backend."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway import ServiceRegistry
from snorky.services.pubsub import PubSubBackend, PubSubService
from snorky.services.rpc import Request
from tests.support.fakes.fake_wire import Client, House, house, settle, until
from tests.support.scenarios.pubsub_calls import NULL, ask, call, error, notifications

# -- hooks ------------------------------------------------------------------------------------------------------


def _plain(verdict: Any) -> Callable[..., Any]:
    return lambda self, request, *rest: verdict


def _async(verdict: Any) -> Callable[..., Any]:
    async def hook(self: PubSubService, request: Request, *rest: Any) -> Any:
        await asyncio.sleep(0)
        return verdict

    return hook


def _future(verdict: Any) -> Callable[..., Any]:
    def hook(self: PubSubService, request: Request, *rest: Any) -> Awaitable[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, verdict)
        return future

    return hook


@pytest.mark.parametrize("kind", [_plain, _async, _future])
@pytest.mark.parametrize("verdict", [True, False, None, 1, 0, "alice", ""])
async def test_hooks_decide_by_truthiness_whether_plain_or_async(kind: Callable[..., Any], verdict: Any) -> None:
    hooked = type("Hooked", (PubSubService,), {"can_publish": kind(verdict), "can_subscribe": kind(verdict)})
    async with house(hooked("pubsub")) as built:
        client = built.client()
        expected = NULL if verdict else error("Not authorized", "not_authorized")
        with capture_logs() as logs:
            assert await ask(client, "subscribe", channel="news") == expected
            assert await ask(client, "join", channel="other") == expected
            assert await ask(client, "publish", channel="news", message=1) == expected
        assert {log["event"] for log in logs} == (set() if verdict else {"refused"})
        assert bool(built.broker.published) is bool(verdict) is bool(client.connection.channels)


async def test_hooks_get_the_arguments_of_the_action() -> None:
    asked: list[Any] = []

    class Asking(PubSubService):
        def can_subscribe(self, request: Request, channel: Any) -> bool:
            asked.append((request.connection.id, channel))
            return True

        def can_publish(self, request: Request, channel: Any, message: Any) -> bool:
            asked.append((request.connection.id, channel, message))
            return True

    async with house(Asking()) as built:
        client = built.client()
        client.send_bytes(
            b'{"service":"pubsub","message":{"command":"subscribe","params":{"channel":"no","channel":"yes"}}}'
        )
        await until(lambda: client.messages)
        await ask(client, "publish", channel="yes", message={"x": 1})
        assert asked == [(client.connection.id, "yes"), (client.connection.id, "yes", {"x": 1})]
        assert client.connection.channels == {"pubsub:yes"}


@pytest.mark.parametrize("command", ["subscribe", "publish"])
async def test_hook_that_fails_allows_nothing(command: str) -> None:
    class Failing(PubSubService):
        def can_subscribe(self, request: Request, channel: Any) -> bool:
            raise RuntimeError("secret")

        def can_publish(self, request: Request, channel: Any, message: Any) -> bool:
            raise RuntimeError("secret")

    async with house(Failing()) as built:
        client = built.client()
        params: dict[str, Any] = {"channel": "news"} | ({"message": 1} if command == "publish" else {})
        with capture_logs() as logs:
            assert await ask(client, command, **params) == error("Internal error", "internal")
        assert len(logs) == 1
        assert built.broker.published == []
        assert not client.connection.channels


async def test_client_that_leaves_while_its_subscribe_is_authorized_is_not_subscribed() -> None:
    gate: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    class Slow(PubSubService):
        def can_subscribe(self, request: Request, channel: Any) -> Awaitable[bool]:
            return gate

    async with house(Slow()) as built:
        client = built.client()
        call(client, "subscribe", channel="news")
        await settle()
        client.leave()
        await settle()
        assert gate.cancelled()
        assert built.node.counts == {"connections": 0, "subscriptions": 0, "channels": 0}


# -- the backend ------------------------------------------------------------------------------------------------


def with_backend(built: House, *services: PubSubBackend) -> Client:
    """Connect to a private registry of the node."""
    private = ServiceRegistry(services)
    built.node.attach(private)
    return Client(built.node, private)


async def test_backend_publishes_to_clients_whatever_they_may() -> None:
    hooked = type("Closed", (PubSubService,), {"can_publish": _plain(False)})
    async with house(hooked("pubsub")) as built:
        backend, client = with_backend(built, PubSubBackend()), built.client()
        await ask(client, "subscribe", channel=["a"])
        assert await ask(backend, "publish", "pubsub_backend", channel=["a"], message={"x": 1}) == NULL
        await until(lambda: notifications(client))
        assert client.envelopes[-1] == {
            "service": "pubsub",
            "message": {"type": "message", "channel": ["a"], "message": {"x": 1}},
        }


async def test_backend_publishes_as_the_frontend_that_it_was_made_for() -> None:
    news, other = PubSubService("news"), PubSubService("other")
    async with house(news, other) as built:
        backend = with_backend(built, PubSubBackend("one", "news"), PubSubBackend("two", other))
        await ask(backend, "publish", "one", channel=1, message=1)
        await ask(backend, "publish", "two", channel=1, message=2)
        assert built.broker.published == [("news:~1", b"1"), ("other:~1", b"2")]


@pytest.mark.parametrize("command", ["subscribe", "join", "unsubscribe", "nope"])
async def test_backend_only_publishes(command: str) -> None:
    async with house(PubSubService()) as built:
        backend = with_backend(built, PubSubBackend())
        answer = await ask(backend, command, "pubsub_backend", channel=1)
        assert answer == error("Unknown command", "unknown_command")


async def test_backend_gets_errors() -> None:
    async with house(PubSubService()) as built:
        backend = with_backend(built, PubSubBackend())
        params = {"channel": "x" * 300, "message": 1}
        assert (await ask(backend, "publish", "pubsub_backend", **params))["code"] == "invalid_channel"
        assert (await ask(backend, "publish", "pubsub_backend", channel=1))["code"] == "invalid_params"
        built.broker.is_failing = True
        answer = await ask(backend, "publish", "pubsub_backend", channel=1, message=1)
        assert answer["code"] == "unavailable"
