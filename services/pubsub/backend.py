"""PubSubBackend: the backend publishes to the channels of a PubSubService."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from snorky.gateway import Position, write_attributes
from snorky.services.pubsub.parameters import check_flag, once_of, tags_of
from snorky.services.pubsub.service import PubSubService
from snorky.services.rpc import Request, RPCService, acknowledged, rpc_command

__all__ = ["PubSubBackend"]


class PubSubBackend(RPCService):
    """Command `publish` for the backend, always allowed. service: the name of the PubSubService whose clients receive.

    That service's channel rules decide what is kept, those of other nodes that run it included.
    """

    def __init__(self, name: str = "pubsub_backend", service: str | PubSubService = "pubsub") -> None:
        super().__init__(name)
        self._service = service if isinstance(service, str) else service.name

    @rpc_command
    def publish(
        self,
        request: Request,
        channel: Any,
        message: Any,
        key: Any = None,
        withPosition: Any = False,
        tags: Any = None,
    ) -> Awaitable[Any]:
        """Publish a message; replies once Redis has it. key: idempotency key; a repetition within 300 s is ignored.

        withPosition: reply {"position"}; null = the channel has no history. tags: for clients of protocols that have
        them: an object of texts.
        """
        check_flag(withPosition)
        published = self._published(channel, message, once_of(key), tags_of(tags))
        return _positioned(published) if withPosition else acknowledged(published)

    def _published(
        self, channel: Any, message: Any, once: str | None, tags: dict[str, str] | None
    ) -> "asyncio.Future[Any]":
        service = self.cluster.find_service(self._service)
        if isinstance(service, PubSubService):
            return service.published(channel, message, once, tags=tags)
        channels, attributes = self.cluster.channels, write_attributes(tags=tags)
        history = channels.promised(self._service, channel, None)
        if history is not None:
            return channels.publish_kept(self._service, channel, message, history, once=once, attributes=attributes)
        if once is not None:
            return channels.publish_once(self._service, channel, message, once, attributes=attributes)
        return channels.publish(self._service, channel, message, attributes=attributes)


async def _positioned(published: "asyncio.Future[Any]") -> dict[str, str | None]:
    result = await published
    return {"position": str(result) if isinstance(result, Position) else None}
