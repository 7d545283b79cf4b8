"""ChatService: rooms with members who know of each other, wherever they are connected.

Notifications, all with a "channel" and a "timestamp" (ISO 8601, with offset):
    {"type": "message", "from": IDENTITY, "body": BODY}                 to all members, the sender included
    {"type": "presence", "from": IDENTITY, "status": "joined"|"left"}   to the other members
    {"type": "read"}                                                    to the same identity's other connections

Rules:
- A member is an identity: it joins with its first connection and leaves with its last, in the whole cluster,
  and the others are told once.
- A connection that joined receives everything sent after its reply, and nothing in front of it: the list of members
  and what comes behind it are the whole truth.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from gateway import BrokerUnavailable, Member, ReplyTooLarge, Selector
from services.rpc import Fitted, Request, RPCError, RPCService, acknowledged, is_allowed, rpc_command

__all__ = ["ChatService"]


def _now() -> datetime:
    return datetime.now(UTC)


class ChatService(RPCService):
    """Chat rooms. clock: tells the time of day, with its zone.

    Override `can_join` to say who may be where; it may be a plain method or a coroutine.
    """

    def __init__(self, name: str = "chat", *, clock: Callable[[], datetime] = _now) -> None:
        super().__init__(name)
        self._clock = clock

    def can_join(self, request: Request, channel: Any) -> bool | Awaitable[bool]:
        """Say whether this client may join this room; any that has an identity unless overridden."""
        return True

    @rpc_command
    async def join(self, request: Request, channel: Any) -> Fitted:
        """Become a member; tells who is one, oneself included."""
        request.demand_identity()
        if self.topics.is_subscribed(request.connection, channel):
            raise RPCError("Already joined", "already_joined")
        if not await is_allowed(self.can_join(request, channel)):
            raise RPCError("Not authorized", "not_authorized")
        async with self.topics.joining(request.connection, channel):
            entered = await self.rosters.enter(request.connection, channel)
            try:
                reply = self.fitted(request, {"members": sorted({member.identity for member in entered.members})})
                self.topics.knows(request.connection, channel, entered.version)
                return reply
            except ReplyTooLarge:
                with suppress(BrokerUnavailable):  # then it is done as soon as it can be
                    await self.rosters.leave(request.connection, channel)
                raise

    @rpc_command
    async def leave(self, request: Request, channel: Any) -> None:
        """Be a member no more."""
        self._demand_joined(request, channel)
        self.topics.unsubscribe(request.connection, channel)
        await self.rosters.leave(request.connection, channel)

    @rpc_command(name="send")
    def send_message(self, request: Request, channel: Any, body: Any) -> Awaitable[None]:
        """Say something to all members; answered when Redis has it."""
        identity = self._demand_joined(request, channel)
        message = {"type": "message", "from": identity, "body": body, **self._place(channel)}
        return acknowledged(self.topics.publish(channel, message))

    @rpc_command
    def read(self, request: Request, channel: Any) -> Awaitable[None]:
        """Let one's other connections know that one has read the room."""
        others = Selector(only_identity=request.demand_identity(), not_connection=request.connection.id)
        message = {"type": "read", **self._place(channel)}
        return acknowledged(self.topics.publish(channel, message, to=others))

    def roster_notice(
        self, channel: Any, member: Member, *, has_joined: bool, is_identity: bool
    ) -> tuple[Any, Selector] | None:
        """Tell the others, when it was an identity's first or last connection."""
        if not is_identity:
            return None
        status = "joined" if has_joined else "left"
        notice = {"type": "presence", "from": member.identity, "status": status, **self._place(channel)}
        return notice, Selector(not_identity=member.identity)

    def _demand_joined(self, request: Request, channel: Any) -> str:
        identity = request.demand_identity()
        if not self.topics.is_subscribed(request.connection, channel):
            raise RPCError("Not joined", "not_joined")
        return identity

    def _place(self, channel: Any) -> dict[str, Any]:
        return {"channel": channel, "timestamp": self._clock().isoformat()}
