"""Publishing to pub/sub channels: by clients, within the rules, and by the backend."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from snorky.gateway import (
    Access,
    ChannelRule,
    Connection,
    Selector,
    Verbatim,
    attributes_by,
    channel_name,
    history_of,
    write_attributes,
)
from snorky.services.pubsub.history import HistoryCommands
from snorky.services.pubsub.parameters import once_of, tags_of
from snorky.services.requests import check_allowed, demand_allowed
from snorky.services.rpc import Request, acknowledged, rpc_command

__all__ = ["PublishCommands"]


class PublishCommands(HistoryCommands):
    """The commands `publish` and `relay` of a PubSubService."""

    access: Access[ChannelRule]

    def can_publish(self, request: Request, channel: Any, message: Any) -> bool | Awaitable[bool]:
        """Return whether a client that the channel's rule permits may publish. Unless overridden, it may."""
        return True

    @rpc_command
    def publish(self, request: Request, channel: Any, message: Any, key: Any = None) -> Awaitable[Any]:
        """Publish a message; replies once Redis has it. key: idempotency key; a repetition within 300 s is ignored."""
        once = once_of(key, request.connection)
        asking = self._demand_publish(request, channel, message, once)
        if asking is not None:
            return _then(asking, partial(self.publish_from_backend, channel, message, once, by=request.connection))
        # without an await, so a client's burst becomes one Redis pipeline
        return self.publish_from_backend(channel, message, once, by=request.connection)

    @rpc_command
    def relay(self, request: Request, channel: Any, message: Any) -> Awaitable[Any]:
        """Send a message to the other subscribers; it is not stored, so clients may miss it. Permitted as publish."""
        others = Selector(not_connection=request.connection.id)
        asking = self._demand_publish(request, channel, message, None)
        if asking is not None:
            return _then(asking, lambda: acknowledged(self.topics.publish(channel, message, to=others)))
        return acknowledged(self.topics.publish(channel, message, to=others))

    def publish_from_backend(
        self, channel: Any, message: Any, once: str | None = None, *, by: Connection | None = None
    ) -> Awaitable[None]:
        """Publish a message, without rules and hooks. once: idempotency key. by: the client whose quota it uses."""
        return acknowledged(self.published(channel, message, once, by=by))

    def published(
        self,
        channel: Any,
        message: Any,
        once: str | None = None,
        *,
        by: Connection | None = None,
        to: Selector | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> "asyncio.Future[Any]":
        """As `publish_from_backend`; the result is that of `Topics.publish`. to: send it only to these subscribers.

        tags: for clients of protocols that have them; not with `by`. Raises RPCError: they are no texts, or too large.
        """
        attributes = b""
        if tags:
            attributes = write_attributes(tags=tags_of(dict(tags)))
        elif by is not None and by.frontend is not None:
            attributes = attributes_by(by.frontend, channel)
        history = self.topics.promised(channel, history_of(self._rule(channel)))
        if history is not None:
            return self.topics.publish(
                channel, message, history=history, once=once, by=by, to=to, attributes=attributes
            )
        if once is not None:
            return self.topics.publish(channel, message, once=once, by=by, attributes=attributes)
        return self.topics.publish(channel, message, to=to, attributes=attributes)

    def _demand_publish(
        self, request: Request, channel: Any, message: Any, once: str | None
    ) -> Awaitable[object] | None:
        """Check whether a client may publish; returns what else decides it and takes a while. Raises RPCError."""
        rule = self._rule(channel)
        if not self.access.is_open(rule, "publish"):  # most are: spare the rest
            self.demand(request, "publish", channel)
        check_allowed(once is None or rule.client_keys)
        if rule.publishes_per_s or rule.message_max_bytes or self.topics.limits_publishers:
            self.topics.check_publisher(request.connection, channel, message, rule)
        value = message.value if isinstance(message, Verbatim) else message
        verdict = self.can_publish(request, channel, value)
        if inspect.isawaitable(verdict) or "publish" in self.asks_backend:
            return self._ask_publish(verdict, request.connection, channel, value)
        check_allowed(verdict)
        return None

    async def _ask_publish(self, verdict: bool | Awaitable[bool], client: Connection, channel: Any, value: Any) -> None:
        await demand_allowed(verdict)
        await self.ask_backend("publish", client, channel, value)

    def _rule(self, channel: Any) -> ChannelRule:
        """Find a channel's rule. Raises InvalidChannel."""
        rules = self.access.rules
        return rules.find(channel_name(channel) if rules else "")


async def _then(asking: Awaitable[object], send: Callable[[], Awaitable[None]]) -> Any:
    """Send once it is permitted; the result is what the reply waits for."""
    await asking
    return send()
