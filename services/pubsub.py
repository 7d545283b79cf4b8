"""PubSubService: clients publish to channels and subscribe to them. PubSubBackend: the backend publishes too.

A channel is any JSON entity; two are the same if their canonical forms are equal. It is there as soon as
somebody uses it. Notification: {"type": "message", "channel": C, "message": M}; the publisher gets its own message
if it is subscribed.
"""

import asyncio
import inspect
from collections.abc import Awaitable
from typing import Any

from gateway import PAYLOAD
from services.rpc import Request, RPCError, RPCService, acknowledged, rpc_command

__all__ = ["PubSubBackend", "PubSubService"]


class PubSubService(RPCService):
    """Channels for clients. Override `can_subscribe` and `can_publish` to say who may do what.

    Both may be plain methods or coroutines.
    """

    aliases = {"join": "subscribe", "leave": "unsubscribe"}  # noqa: RUF012 - never changed

    def __init__(self, name: str = "pubsub") -> None:
        super().__init__(name)

    def can_subscribe(self, request: Request, channel: Any) -> bool | Awaitable[bool]:
        """Say whether this client may hear this channel; anybody unless overridden."""
        return True

    def can_publish(self, request: Request, channel: Any, message: Any) -> bool | Awaitable[bool]:
        """Say whether this client may publish this message; anybody unless overridden."""
        return True

    def notification(self, channel: Any) -> Any:
        """Shape what subscribers receive."""
        return {"type": "message", "channel": channel, "message": PAYLOAD}

    @rpc_command
    async def subscribe(self, request: Request, channel: Any) -> None:
        """Hear a channel from now on."""
        await _demand(self.can_subscribe(request, channel))
        await self.topics.subscribe(request.connection, channel)

    @rpc_command
    def unsubscribe(self, request: Request, channel: Any) -> None:
        """Hear it no more."""
        self.topics.unsubscribe(request.connection, channel)

    @rpc_command
    def publish(self, request: Request, channel: Any, message: Any) -> Awaitable[None]:
        """Publish a message; answered when Redis has it."""
        verdict = self.can_publish(request, channel, message)
        if inspect.isawaitable(verdict):
            return self._publish_when(verdict, channel, message)
        _check(verdict)  # at once: so a client's burst goes out as one pipeline
        return acknowledged(self.topics.publish(channel, message))

    async def _publish_when(self, verdict: Awaitable[bool], channel: Any, message: Any) -> Any:
        _check(await verdict)
        return acknowledged(self.topics.publish(channel, message))


class PubSubBackend(RPCService):
    """Lets the backend publish, always. frontend: the name of the PubSubService whose clients hear it."""

    def __init__(self, name: str = "pubsub_backend", frontend: str | PubSubService = "pubsub") -> None:
        super().__init__(name)
        self._frontend = frontend if isinstance(frontend, str) else frontend.name

    @rpc_command
    def publish(self, request: Request, channel: Any, message: Any) -> "asyncio.Future[None]":
        """Publish a message; answered when Redis has it."""
        return acknowledged(self.cluster.publish(self._frontend, channel, message))


def _check(verdict: object) -> None:
    if not verdict:  # also None, of a hook that said nothing
        raise RPCError("Not authorized", "not_authorized")


async def _demand(verdict: bool | Awaitable[bool]) -> None:
    _check(await verdict if inspect.isawaitable(verdict) else verdict)
