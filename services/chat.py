"""ChatService: chat rooms whose members see each other join, leave and write, on any node.

Notifications, all with a "channel" and a "timestamp" (ISO 8601, with offset):
    {"type": "message", "from": IDENTITY, "body": BODY}                 to all members, the sender included
    {"type": "presence", "from": IDENTITY, "status": "joined"|"left"}   to the other members
    {"type": "read"}                                                    to the same identity's other connections

Rules:
- A member is an identity, cluster-wide: it joins with its first connection and leaves with its last. The other
  members get one `presence` notification for each.
- A connection receives the room's notifications only after its reply to `join`. The member list in that reply plus
  the later notifications are complete: nothing is missing and nothing is counted twice.
"""

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from snorky.gateway import Access, BrokerUnavailable, Grant, Member, ReplyTooLarge, Rules, Selector, Unmatched
from snorky.services.access_rules import JoinRule
from snorky.services.granting import granted
from snorky.services.requests import demand_allowed
from snorky.services.rpc import Fitted, Request, RPCError, RPCService, acknowledged, rpc_command

__all__ = ["ChatService"]


def _now() -> datetime:
    return datetime.now(UTC)


class ChatService(RPCService):
    """Chat rooms. clock: returns the current time, timezone-aware.

    rooms: rules for joining, as JoinRule or as tables of the settings. unmatched: "open" or "closed",
    for rooms that no rule matches; None = open unless the node authenticates clients. Override `can_join` to restrict
    it further; it may be a plain method or a coroutine.
    """

    hook_operations = ("subscribe",)
    reloadable_options = ("rooms", "unmatched")

    def __init__(
        self,
        name: str = "chat",
        *,
        clock: Callable[[], datetime] = _now,
        rooms: Iterable[JoinRule | dict[str, Any]] = (),
        unmatched: Unmatched | None = None,
    ) -> None:
        super().__init__(name)
        self._clock = clock
        self.access = Access(name, Rules.read(rooms, JoinRule("*"), "rooms"), unmatched)

    def can_join(self, request: Request, channel: Any) -> bool | Awaitable[bool]:
        """Return whether a client with an identity, whom the rules permit it, may join. Unless overridden, it may."""
        return True

    @rpc_command
    async def join(self, request: Request, channel: Any, token: Any = None) -> Fitted:
        """Join a room; replies {"members": [IDENTITY...]}, sorted, with the caller's identity.

        token: a subscription token, which may permit it; the membership ends with it.
        """
        request.demand_identity()
        async with granted(self, request, channel, token) as grant:
            self.demand(request, "join", channel, grant)
            return await self._join(request, channel, grant)

    async def _join(self, request: Request, channel: Any, grant: Grant | None) -> Fitted:
        if self.topics.is_subscribed(request.connection, channel):
            raise RPCError("Already joined", "already_joined")
        await demand_allowed(self.can_join(request, channel))
        await self.ask_backend("subscribe", request.connection, channel)
        self.demand_still(request, "join", channel, grant)
        async with self.topics.atomic_subscribe(request.connection, channel):
            entered = await self.rosters.enter(request.connection, channel)
            try:
                reply = self.fitted(request, {"members": sorted({member.identity for member in entered.members})})
                self.topics.knows(request.connection, channel, entered.version)
                return reply
            except ReplyTooLarge:
                with suppress(BrokerUnavailable):  # then the node retries the removal
                    await self.rosters.leave(request.connection, channel)
                raise

    @rpc_command
    async def leave(self, request: Request, channel: Any) -> None:
        """Leave a room."""
        self._demand_joined(request, channel)
        self.topics.unsubscribe(request.connection, channel)
        await self.rosters.leave(request.connection, channel)

    @rpc_command(name="send")
    def send_message(self, request: Request, channel: Any, body: Any) -> Awaitable[None]:
        """Send a message to all members; replies once Redis has it."""
        identity = self._demand_joined(request, channel)
        message = {"type": "message", "from": identity, "body": body, **self._place(channel)}
        return acknowledged(self.topics.publish(channel, message))

    @rpc_command
    def read(self, request: Request, channel: Any) -> Awaitable[None]:
        """Notify the caller's other connections that it has read the room."""
        others = Selector(only_identity=request.demand_identity(), not_connection=request.connection.id)
        message = {"type": "read", **self._place(channel)}
        return acknowledged(self.topics.publish(channel, message, to=others))

    def roster_notice(
        self, channel: Any, member: Member, *, has_joined: bool, is_identity: bool
    ) -> tuple[Any, Selector] | None:
        """Build the `presence` notification to the other members, for an identity's first and last connection."""
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
