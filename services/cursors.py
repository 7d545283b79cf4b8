"""CursorsService: clients share their cursors (position and status) in a document, on any node.

Notifications, to the document's other clients:
    {"type": "cursorAdded" | "cursorUpdated", "cursor": {publicHandle, document, position, status, owner}}
    {"type": "cursorRemoved", "cursor": {publicHandle, document}}

Rules:
- A client names its own cursors by private handles, any JSON entities that it chooses; other clients see a public
  handle, a number that is unique within the document. owner: the client's identity.
- A cursor is one entry of the document's roster, named by its public handle: it is removed when its client disconnects.
- The cursors in the reply to `join` plus the later notifications are complete, as in `services.chat`.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Iterable
from typing import Any

from snorky.gateway import (
    Access,
    Connection,
    Grant,
    LimitExceeded,
    Member,
    Rules,
    Selector,
    Unmatched,
    channel_name,
    json_size,
)
from snorky.services.access_rules import JoinRule
from snorky.services.cursor_notices import Cursor, notice_of, view_of
from snorky.services.granting import granted
from snorky.services.requests import demand_allowed
from snorky.services.rpc import Fitted, Request, RPCError, RPCService, rpc_command

__all__ = ["CursorsService"]

_HANDLE_BITS = 53  # exact in a JavaScript number; among 10,000 cursors the chance of a collision is 1 in 180 million


class CursorsService(RPCService):
    """Cursors in documents. cursors_per_client: maximum over all documents.

    cursor_max_bytes: of a cursor's position and status together, as JSON. documents: rules for joining, as JoinRule or
    as tables of the settings. unmatched: "open" or "closed", for documents that no rule matches; None = open unless the
    node authenticates clients. Override `can_join` to restrict it further; it may be a plain method or a coroutine.
    """

    hook_operations = ("subscribe",)
    reloadable_options = ("documents", "unmatched")

    def __init__(
        self,
        name: str = "cursors",
        *,
        cursors_per_client: int = 16,
        cursor_max_bytes: int = 4096,
        documents: Iterable[JoinRule | dict[str, Any]] = (),
        unmatched: Unmatched | None = None,
    ) -> None:
        super().__init__(name)
        self.access = Access(name, Rules.read(documents, JoinRule("*"), "documents"), unmatched)
        self._cursor_max_bytes, self._cursors_per_client = cursor_max_bytes, cursors_per_client

    def can_join(self, request: Request, document: Any) -> bool | Awaitable[bool]:
        """Return whether a client with an identity, whom the rules permit it, may join. Unless overridden, it may."""
        return True

    @rpc_command
    async def join(self, request: Request, document: Any, token: Any = None) -> Fitted:
        """Subscribe to a document's cursors; replies {"cursors": [...]}, the present ones.

        token: a subscription token, which may permit it; the subscription ends with it.
        """
        request.demand_identity()
        async with granted(self, request, document, token) as grant:
            self.demand(request, "join", document, grant)
            return await self._join(request, document, grant)

    async def _join(self, request: Request, document: Any, grant: Grant | None) -> Fitted:
        if self.topics.is_subscribed(request.connection, document):
            raise RPCError("Already joined", "already_joined")
        await demand_allowed(self.can_join(request, document))
        await self.ask_backend("subscribe", request.connection, document)
        self.demand_still(request, "join", document, grant)
        async with self.topics.atomic_subscribe(request.connection, document):
            census = await self.rosters.census(document)
            cursors = [view_of(document, each.entry, each.identity, each.data) for each in census.members]
            reply = self.fitted(request, {"cursors": cursors})
            self.topics.knows(request.connection, document, census.version)
            return reply

    @rpc_command
    async def leave(self, request: Request, document: Any) -> None:
        """Unsubscribe from a document's cursors, and remove the caller's own cursors from it."""
        self._demand_joined(request, document)
        self.topics.unsubscribe(request.connection, document)
        entries = [cursor.entry for cursor in self._take_own(request.connection, document)]
        await asyncio.gather(*(self.rosters.leave(request.connection, document, entry=entry) for entry in entries))

    @rpc_command(name="createCursor")
    async def create_cursor(
        self, request: Request, privateHandle: Any, document: Any, position: Any, status: Any
    ) -> int:
        """Create a cursor in a document that the client has joined; replies its public handle."""
        self._demand_joined(request, document)
        own, name = self._own(request.connection), channel_name(privateHandle)
        if name in own:
            raise RPCError("Reused handle", "reused_handle")
        if len(own) >= self._cursors_per_client:
            raise RPCError("Too many cursors", "too_many_cursors")
        cursor = Cursor(document, secrets.randbits(_HANDLE_BITS), position, status)
        self._demand_small(cursor.data)
        own[name] = cursor
        try:
            await self.rosters.enter(
                request.connection, document, entry=cursor.entry, data=cursor.data, lists_members=False
            )
        except BaseException:
            own.pop(name, None)
            raise
        if own.get(name) is not cursor:  # the client left the document meanwhile
            raise RPCError("Not joined", "not_joined")
        return cursor.handle

    @rpc_command(name="updateCursor")
    async def update_cursor(self, request: Request, privateHandle: Any, newData: dict[str, Any]) -> None:
        """Move a cursor or change its status. newData: {"position"?, "status"?}; other fields are ignored."""
        cursor = self._find(request, privateHandle)
        if not isinstance(newData, dict):
            raise RPCError("Invalid params", "invalid_params")
        position, status = newData.get("position", cursor.position), newData.get("status", cursor.status)
        self._demand_small({"position": position, "status": status})
        before = cursor.position, cursor.status
        cursor.position, cursor.status = position, status
        shown = view_of(cursor.document, cursor.entry, request.identity, cursor.data)
        notice = notice_of("cursorUpdated", shown, request.connection.id)
        try:
            await self.rosters.update(
                request.connection, cursor.document, entry=cursor.entry, data=cursor.data, notice=notice
            )
        except LimitExceeded:
            cursor.position, cursor.status = before
            raise

    @rpc_command(name="removeCursor")
    async def remove_cursor(self, request: Request, privateHandle: Any) -> None:
        """Remove a cursor."""
        cursor = self._find(request, privateHandle)
        del self._own(request.connection)[channel_name(privateHandle)]
        await self.rosters.leave(request.connection, cursor.document, entry=cursor.entry)

    def roster_notice(
        self, channel: Any, member: Member, *, has_joined: bool, is_identity: bool
    ) -> tuple[Any, Selector]:
        """Build the `cursorAdded` or `cursorRemoved` notification to the document's other clients."""
        if has_joined:
            shown = view_of(channel, member.entry, member.identity, member.data)
            return notice_of("cursorAdded", shown, member.owner.connection_id)
        cursor = {"publicHandle": int(member.entry), "document": channel}
        return notice_of("cursorRemoved", cursor, member.owner.connection_id)

    def roster_update(self, channel: Any, member: Member) -> tuple[Any, Selector]:
        """Build the `cursorUpdated` notification to the document's other clients."""
        shown = view_of(channel, member.entry, member.identity, member.data)
        return notice_of("cursorUpdated", shown, member.owner.connection_id)

    def cut_subscription(self, connection: Connection, channel: Any) -> bool:
        """As `Service.cut_subscription`; the client's cursors in the document are removed."""
        self._take_own(connection, channel)
        return super().cut_subscription(connection, channel)

    def _take_own(self, connection: Connection, document: Any) -> list[Cursor]:
        own, name = self._own(connection), channel_name(document)
        handles = [handle for handle, cursor in own.items() if channel_name(cursor.document) == name]
        return [own.pop(handle) for handle in handles]

    def _demand_joined(self, request: Request, document: Any) -> None:
        request.demand_identity()
        if not self.topics.is_subscribed(request.connection, document):
            raise RPCError("Not joined", "not_joined")

    def _demand_small(self, data: dict[str, Any]) -> None:
        if json_size(data) > self._cursor_max_bytes:
            raise RPCError(f"A cursor takes at most {self._cursor_max_bytes} bytes", "too_large")

    def _find(self, request: Request, handle: Any) -> Cursor:
        request.demand_identity()
        cursor = self._own(request.connection).get(channel_name(handle))
        if cursor is None:
            raise RPCError("No such cursor", "no_such_cursor")
        return cursor

    def _own(self, connection: Connection) -> dict[str, Cursor]:
        own: dict[str, Cursor] = connection.data.setdefault(self.name, {})
        return own
