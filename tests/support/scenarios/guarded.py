"""Services with hooks that allow only values that begin with the caller's identity; and one that fails."""

from typing import Any

from snorky.services.chat import ChatService
from snorky.services.cursors import CursorsService
from snorky.services.messaging import MessagingService
from snorky.services.pubsub import PubSubService
from snorky.services.rpc import Request, RPCService, rpc_command

__all__ = ["Broken", "GuardedChat", "GuardedCursors", "GuardedMessaging", "GuardedPubSub"]


def _is_own(request: Request, name: Any) -> bool:
    return request.identity is not None and str(name).startswith(request.identity)


class GuardedPubSub(PubSubService):
    """Plain hooks."""

    def can_subscribe(self, request: Request, channel: Any) -> bool:
        return _is_own(request, channel)

    def can_publish(self, request: Request, channel: Any, message: Any) -> bool:
        return _is_own(request, channel)


class GuardedChat(ChatService):
    """A hook that is a coroutine."""

    async def can_join(self, request: Request, channel: Any) -> bool:
        return _is_own(request, channel)


class GuardedCursors(CursorsService):
    """A plain hook."""

    def can_join(self, request: Request, document: Any) -> bool:
        return _is_own(request, document)


class GuardedMessaging(MessagingService):
    """A hook that is a coroutine."""

    async def is_name_allowed(self, request: Request, name: Any) -> bool:
        return _is_own(request, name)


class Broken(RPCService):
    """Its commands raise errors that no client may see."""

    @rpc_command
    def fail(self, request: Request) -> None:
        raise RuntimeError("a secret of the service")

    @rpc_command
    async def fail_later(self, request: Request) -> None:
        raise RuntimeError("a secret of the service")

    @rpc_command
    def work(self, request: Request) -> str:
        return "done"
