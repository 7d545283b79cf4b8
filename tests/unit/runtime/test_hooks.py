"""A node with hooks: it starts only if they would be asked, and keeps revocations as long as their answers."""

from collections.abc import Iterator
from typing import Any

import pytest

from snorky.gateway.config.hooks import Hook, Hooks, PublishHook, SubscribeHook
from snorky.gateway.config.settings import Auth, Settings
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.runtime import node as runtime
from snorky.gateway.runtime.node import running_node
from snorky.gateway.sdk.registry import ServiceRegistry
from snorky.gateway.testing.broker import LoopbackBroker
from snorky.services.auth import AuthService
from snorky.services.chat import ChatService
from snorky.services.pubsub import PubSubService

URL = "http://127.0.0.1:1/"


def registry() -> ServiceRegistry:
    return ServiceRegistry([PubSubService("news"), ChatService(), AuthService()])


async def start(hooks: Hooks) -> None:
    async with running_node(registry(), settings=Settings(hooks=hooks), broker=LoopbackBroker()) as node:
        assert node.hooks is not None
        for operation, hook in hooks.written.items():
            for name in hook.services if isinstance(hook, SubscribeHook) else ():
                service = node.find_service(name)
                assert service is not None and operation in service.asks_backend


def wrong() -> Iterator[tuple[Hooks, str]]:
    yield Hooks(subscribe=SubscribeHook(url=URL)), "[hooks.subscribe] services: pubsub is not among the services"
    yield (
        Hooks(subscribe=SubscribeHook(url=URL, services=("auth",))),
        "[hooks.subscribe] services: auth asks no backend for that; write names of these: chat, news",
    )
    yield (
        Hooks(publish=PublishHook(url=URL, services=("news", "chat"))),
        "[hooks.publish] services: chat asks no backend for that; write names of these: news",
    )


@pytest.mark.parametrize(("hooks", "problem"), list(wrong()))
async def test_service_that_would_not_ask_is_an_error(hooks: Hooks, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await start(hooks)
    assert problem in str(caught.value)


async def test_node_starts_with_services_that_ask() -> None:
    await start(
        Hooks(
            connect=Hook(url=URL),
            subscribe=SubscribeHook(url=URL, services=("news", "chat")),
            publish=PublishHook(url=URL, services=("news",)),
        )
    )


def test_revocations_are_kept_as_long_as_a_cached_answer_may_admit_a_client() -> None:
    class Topology:
        def revocations(self, *, keep_s: float) -> Any:
            return keep_s

    auth = Auth(token_max_lifetime_s=60.0, leeway_s=5.0)
    settings = Settings(auth=auth, hooks=Hooks(connect=Hook(url=URL, cache_s=600.0)))
    topology: Any = Topology()
    kept: Any = runtime._revocations(topology, settings)
    assert kept == 610.0
    kept = runtime._revocations(topology, Settings(auth=auth))
    assert kept == 70.0
