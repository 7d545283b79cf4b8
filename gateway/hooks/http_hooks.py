"""HttpHooks: the hooks of the settings. Implements `snorky.gateway.contracts.hooks.Hooks`.

A request's body has everything that the backend may decide by:

    {"operation", "identity", "claims", "address", "node"} and for subscriptions and publications "service", "channel",
    for publications also "message" if the settings say so
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from snorky.gateway.config.hooks import Hooks as HookSettings
from snorky.gateway.config.hooks import PublishHook, SubscribeHook
from snorky.gateway.contracts.hooks import Answer, Operation, Question
from snorky.gateway.hooks.asker import Asker, Post
from snorky.gateway.metrics import Metrics

__all__ = ["HttpHooks"]


class HttpHooks:
    """The hooks of one node. node_id: of the node, for the backend's logs. post: see `Asker`."""

    def __init__(self, settings: HookSettings, post: Post, metrics: Metrics, *, node_id: str) -> None:
        self._settings = settings
        self._node_id = node_id
        self._askers: Mapping[str, Asker] = {
            operation: Asker(operation, hook, post, metrics) for operation, hook in settings.written.items()
        }
        self._services: dict[str, tuple[str, ...]] = {"connect": ("",)}
        for operation, hook in settings.written.items():
            if isinstance(hook, SubscribeHook):
                self._services[operation] = hook.services

    def asks(self, operation: Operation, service: str = "") -> bool:
        """Return True if the backend is to be asked."""
        return operation in self._askers and service in self._services[operation]

    async def ask(self, question: Question) -> Answer:
        """Ask the backend. Raises HookRefused, HookUnavailable."""
        asker = self._askers[question.operation]
        try:
            body = self._body(question)
        except (ValueError, OverflowError, RecursionError, TypeError) as error:  # a token's claims may be any JSON
            # refused also with on_failure = "open": the backend did not fail
            raise asker.count_unaskable(type(error).__name__) from None
        return await asker.ask(question, body)

    async def stop(self) -> None:
        """Cancel all requests. Idempotent."""
        await asyncio.gather(*(asker.stop() for asker in self._askers.values()))

    def _body(self, question: Question) -> bytes:
        body: dict[str, Any] = {
            "operation": question.operation,
            "identity": question.identity,
            "claims": dict(question.claims),
            "address": question.address,
            "node": self._node_id,
        }
        if question.operation != "connect":
            body["service"], body["channel"] = question.service, question.channel
        publish: PublishHook = self._settings.publish
        if question.operation == "publish" and publish.with_message:
            body["message"] = question.message
        return msgspec.json.encode(body)
