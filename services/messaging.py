"""MessagingService: participants with unique names send each other messages, wherever they are.

Notification: {"type": "message", "sender": NAME, "dest": NAME, "body": BODY}.

Rules:
- A name is any JSON entity, unique in the whole cluster; a client may have several, and loses them when it goes.
- `send` is answered when the destination's node has taken the message.
- A client with an identity that registers a name which its own identity holds takes it over: it is back after a
  crash, and the connection before it, which may not know yet that it is dead, is closed (4010).
"""

from collections.abc import Awaitable
from typing import Any

from gateway import Compound, LimitExceeded
from services.rpc import Request, RPCError, RPCService, is_allowed, rpc_command

__all__ = ["MessagingService"]

_ATTEMPTS = 3  # a name may be somebody else's by the time that its owner turns out to have gone


class MessagingService(RPCService):
    """Names and messages between them. names_per_client: at most; a name costs memory on the node and in Redis.

    Override `is_name_allowed` to say who may be called what; it may be a plain method or a coroutine.
    """

    def __init__(self, name: str = "messaging", *, names_per_client: int = 100) -> None:
        super().__init__(name)
        self._names_per_client = names_per_client

    def is_name_allowed(self, request: Request, name: Any) -> bool | Awaitable[bool]:
        """Say whether this client may have this name; any unless overridden."""
        return True

    @rpc_command(name="registerParticipant")
    async def register_participant(self, request: Request, name: Any) -> None:
        """Take a name."""
        if not await is_allowed(self.is_name_allowed(request, name)):
            raise RPCError("Name not allowed", "name_not_allowed")
        if self.names.is_held(request.connection, name):
            raise RPCError("Name already registered", "name_already_registered")
        if self.names.count(request.connection) >= self._names_per_client:
            raise LimitExceeded("names_per_client", "Too many names")
        if not await self.names.claim(request.connection, name):
            raise RPCError("Name already registered", "name_already_registered")

    @rpc_command(name="unregisterParticipant")
    async def unregister_participant(self, request: Request, name: Any) -> None:
        """Give a name back."""
        if await self.names.release(request.connection, name):
            return
        if await self.names.find(name) is None:
            raise RPCError("Unknown participant", "unknown_participant")
        raise RPCError("Invalid participant", "invalid_participant")

    @rpc_command(name="listParticipants")
    async def list_participants(self, request: Request) -> Compound:
        """List all names, in the order of their canonical forms."""
        reply = Compound()
        reply.value = reply.share(await self.names.listed())
        return reply

    @rpc_command(name="send")
    async def send_message(self, request: Request, sender: Any, dest: Any, body: Any) -> None:
        """Send a message from a name of one's own to any name."""
        self._demand_held(request, sender)
        message = {"type": "message", "sender": sender, "dest": dest, "body": body}
        gone = None
        for _ in range(_ATTEMPTS):
            owner = await self.names.find(dest)
            if owner is None or owner == gone:
                break
            self._demand_held(request, sender)  # it may have been lost while Redis was asked
            if await self.direct.send(owner, message):
                return
            gone = owner
        raise RPCError("Unknown destination", "unknown_destination")

    def _demand_held(self, request: Request, sender: Any) -> None:
        if not self.names.is_held(request.connection, sender):
            raise RPCError("Invalid sender", "invalid_sender")
