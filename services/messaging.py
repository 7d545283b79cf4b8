"""MessagingService: participants with unique names send each other messages, wherever they are.

Notification: {"type": "message", "sender": NAME, "dest": NAME, "body": BODY}. A name is any JSON entity, unique in the
whole cluster; a client may have several. `send` is answered when the destination's node has taken the message.
A client with an identity that registers a name which its own identity holds takes it over: it is back after
a crash, and the connection before it may not know yet that it is dead.
"""

from collections.abc import Awaitable
from typing import Any

from services.rpc import Request, RPCError, RPCService, is_allowed, rpc_command

__all__ = ["MessagingService"]


class MessagingService(RPCService):
    """Names and messages between them. Override `is_name_allowed` to say who may be called what."""

    def __init__(self, name: str = "messaging") -> None:
        super().__init__(name)

    def is_name_allowed(self, request: Request, name: Any) -> bool | Awaitable[bool]:
        """Say whether this client may have this name; any unless overridden. A plain method or a coroutine."""
        return True

    @rpc_command(name="registerParticipant")
    async def register_participant(self, request: Request, name: Any) -> None:
        """Take a name."""
        if not await is_allowed(self.is_name_allowed(request, name)):
            raise RPCError("Name not allowed", "name_not_allowed")
        if self._is_own(request, name) or not await self.names.claim(request.connection, name):
            raise RPCError("Name already registered", "name_already_registered")
        self._own(request)[channel_name(name)] = name

    @rpc_command(name="unregisterParticipant")
    async def unregister_participant(self, request: Request, name: Any) -> None:
        """Give a name back."""
        if not self._is_own(request, name):
            known = await self.names.find(name)
            raise RPCError("Invalid participant" if known else "Unknown participant", "invalid_participant")
        await self.names.release(request.connection, name)

    @rpc_command(name="listParticipants")
    async def list_participants(self, request: Request) -> list[Any]:
        """List all names, in the order of their canonical forms."""
        return await self.names.list()
