"""Ownership: what this node's connections own in the cluster; releases it when they end.

Rules:
- An entry is recorded here before the request to Redis, until Redis has confirmed its removal: so a node
  that registers again after a fence or a loss registers everything that its clients believe to own.
- If a connection ends during a request to Redis, its entries and names are released at once, and again after the
  response.
- A failed release is retried until it succeeds, unless the connection has acquired the entry again: while this node
  lives, no reaper does it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Final, Literal

import structlog

from snorky.gateway.connection.connection import Connection
from snorky.gateway.contracts.directory import Directory, Entered, Member, Owner
from snorky.gateway.errors import BrokerUnavailable, CloseCode, ConnectionClosed, LimitExceeded
from snorky.gateway.presence.roster_view import change_in
from snorky.gateway.protocol.codec import canonical, channel_of, decode_json, encode_json, json_size
from snorky.gateway.protocol.identities import stated_identity
from snorky.gateway.protocol.publication import Selector, write_addressed, write_change
from snorky.gateway.protocol.splicing import Shared
from snorky.gateway.shared_reads import SharedReads

__all__ = ["Notice", "Ownership", "encode_notice"]

RETRY_S: Final = 0.5  # between attempts to release while Redis does not respond
BATCH: Final = 64  # concurrent releases: when a load balancer dies, 10,000 connections end at once
STOP_S: Final = 5.0  # time for pending releases when the node stops
ENTRY_MAX_BYTES: Final = 65_536  # of an entry's name and data; services have their own, lower limits
LISTING_REST: Final = 4.0  # pause after listing names, in multiples of its duration: it takes at most 1/5 of the time

Notice = tuple[Any, Selector]
OnMember = Callable[[str, Member, bool], None]  # roster, a member of this node, True = it is there, False = it is not
NoticeOf = Callable[[str, Any, Member, bool, bool], Notice | None]  # service, channel, member, has_joined, is_identity

_log = structlog.get_logger("snorky.ownership")


def encode_notice(notice: Notice | None) -> bytes | None:
    """Make the publication of a notice: its payload with the selector of its receivers."""
    return None if notice is None else write_addressed(encode_json(notice[0]), notice[1])


def _demand_small(entry: str, data: Any) -> None:
    if data is not None and len(entry.encode()) + json_size(data) > ENTRY_MAX_BYTES:
        raise LimitExceeded("entry_max_bytes", f"An entry takes at most {ENTRY_MAX_BYTES} bytes", code="too_large")


class _OwnedState:
    """What one connection owns."""

    __slots__ = ("connection", "members", "names")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.members: dict[tuple[str, str], Member] = {}  # by roster and entry
        self.names: set[tuple[str, str]] = set()  # names key, name


class Ownership:
    """Records what local connections own, and provides it to the directory (as its LocalState).

    notice_of: makes the notice when a member joins or leaves. is_here: returns True for a connection of this node for
    which `forget` will be called. on_member: called when one of its members has entered or leaves; must not block.
    """

    def __init__(
        self, node_id: str, directory: Directory, notice_of: NoticeOf, is_here: Callable[[Connection], bool]
    ) -> None:
        self.directory = directory
        self._is_here = is_here
        self._node_id = node_id
        self._notice_of = notice_of
        self.on_member: OnMember | None = None
        self._owned: dict[int, _OwnedState] = {}
        self.lists_of_names: SharedReads[Shared] = SharedReads(self._list_names, name="names", rest=LISTING_REST)
        self._pending_releases: deque[Callable[[], Awaitable[object]]] = deque()  # at most one per owned entry
        self._release_task: asyncio.Task[None] | None = None
        self._is_stopped = False

    async def start(self) -> None:
        """Begin to acquire and renew the lease; returns at once."""
        await self.directory.start(self)

    async def stop(self) -> None:
        """Try pending releases once more, then release the lease."""
        self._is_stopped = True
        await self.lists_of_names.stop()
        task = self._release_task
        if task is not None:
            await asyncio.wait((task,), timeout=STOP_S)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.directory.stop()

    # -- for services ----------------------------------------------------------------------------------------

    async def enter(
        self,
        connection: Connection,
        roster: str,
        *,
        entry: str,
        data: Any,
        identity: str | None = None,
        lists_members: bool = True,
    ) -> Entered:
        """See Rosters.enter."""
        _demand_small(entry, data)
        owned = self._of(connection)
        identity = identity or stated_identity(connection.identity) or connection.id
        owner = Owner(self._node_id, self.directory.incarnation, connection.serial)
        known = owned.members.get((roster, entry))
        owned.members[roster, entry] = Member(identity, owner, entry, data)
        try:
            entered = await self.directory.enter(
                roster, connection.serial, identity, entry=entry, data=data, lists_members=lists_members
            )
        except LimitExceeded:  # nothing was done
            if known is None:
                owned.members.pop((roster, entry), None)
            else:
                owned.members[roster, entry] = known
            raise
        except BaseException:
            if known is None:  # Redis may have executed it: undo
                owned.members.pop((roster, entry), None)
                self._schedule_release(lambda: self._leave_again(connection.serial, roster, entry))
            raise
        finally:
            self._recheck(connection)
        if connection.is_closed:
            raise ConnectionClosed
        member = owned.members.get((roster, entry))
        if member is None:  # it left meanwhile, and Redis may have done that first
            self._schedule_release(lambda: self._leave_again(connection.serial, roster, entry))
        elif self.on_member is not None:
            if known is not None and known.identity != member.identity:
                self.on_member(roster, known, False)
            self.on_member(roster, member, True)
        return entered

    async def update(
        self, connection: Connection, roster: str, *, entry: str, data: Any, notice: Notice | None
    ) -> bool:
        """See Rosters.update."""
        _demand_small(entry, data)
        members = self._of(connection).members
        known = members.get((roster, entry))
        if known is None:
            return False
        members[roster, entry] = member = Member(known.identity, known.owner, entry, data)
        encoded = encode_notice(notice)
        changed = None if encoded is None else write_change(encoded, change_in("=", member, is_identity=False))
        # False = Redis has lost the entry: it will be registered again shortly, with this data
        try:
            await self.directory.update(roster, connection.serial, entry=entry, data=data, notice=changed)
        except LimitExceeded:
            if members.get((roster, entry)) is member:
                members[roster, entry] = known
            raise
        return True

    async def leave(self, connection: Connection, roster: str, *, entry: str) -> bool:
        """See Rosters.leave."""
        owned = self._owned.get(connection.serial)
        if owned is None or (member := owned.members.pop((roster, entry), None)) is None:
            return False
        self._gone({(roster, entry): member})
        try:
            await self.directory.leave(roster, connection.serial, entry=entry)
        except BaseException:
            self._schedule_release(lambda: self._leave_again(connection.serial, roster, entry))
            raise
        return True

    def leave_soon(self, connection: Connection, roster: str) -> None:
        """See Rosters.leave_soon."""
        owned = self._owned.get(connection.serial)
        if owned is None:
            return
        for key in [key for key in owned.members if key[0] == roster]:
            self._gone({key: owned.members.pop(key)})
            self._schedule_release(partial(self._leave_again, connection.serial, *key))

    def admit_direct(self, connection: Connection) -> None:
        """Let direct messages reach a connection that owns nothing. Raises ConnectionClosed."""
        self._of(connection)

    async def claim(self, connection: Connection, names: str, name: str, *, may_take_over: bool = True) -> bool:
        """See Names.claim. may_take_over: take the name from another connection of the same identity."""
        identity = stated_identity(connection.identity) if may_take_over else None
        owned = self._of(connection)
        is_new = (names, name) not in owned.names
        owned.names.add((names, name))
        try:
            is_ours = await self.directory.claim(names, name, connection.serial, identity)
        except BaseException:
            if is_new:
                owned.names.discard((names, name))
                self._schedule_release(lambda: self._release_again(connection.serial, names, name))
            raise
        else:
            if not is_ours:  # also if it owned the name before: another connection has it now
                owned.names.discard((names, name))
        finally:
            self._recheck(connection)
        if connection.is_closed:
            raise ConnectionClosed
        return is_ours

    async def release(self, connection: Connection, names: str, name: str) -> bool:
        """See Names.release."""
        owned = self._owned.get(connection.serial)
        if owned is None or (names, name) not in owned.names:
            return False
        owned.names.discard((names, name))
        try:
            return await self.directory.release(names, name, connection.serial)
        except BaseException:
            self._schedule_release(lambda: self._release_again(connection.serial, names, name))
            raise

    def names_of(self, connection: Connection) -> Collection[tuple[str, str]]:
        """Return the names that a connection owns or is acquiring, as (names key, name)."""
        owned = self._owned.get(connection.serial)
        return () if owned is None else owned.names

    def holds(self, connection: Connection, names: str, name: str) -> bool:
        """True if a connection owns a name, or is acquiring it. Raises BrokerUnavailable: it may have lost it."""
        if (names, name) not in self.names_of(connection):
            return False
        if not self.directory.is_sure(names):
            raise BrokerUnavailable("names may have been lost")
        return True

    def forget(self, connection: Connection) -> None:
        """Release what a closed connection owned."""
        if (owned := self._owned.pop(connection.serial, None)) is not None:
            self._gone(owned.members)
            self._schedule_release(lambda: self.directory.disowned(connection.serial))

    async def _list_names(self, names: str) -> Shared:
        found = await self.directory.list_names(names)
        return Shared(sorted(map(channel_of, found), key=canonical))

    # -- LocalState: called by the directory ---------------------------------------------------------------------

    def local_members(self) -> Iterable[tuple[str, Member]]:
        """Return all roster entries of local connections."""
        return [(roster, member) for each in self._owned.values() for (roster, _), member in each.members.items()]

    def local_names(self) -> Iterable[tuple[str, str, int, str | None]]:
        """Return all names that local connections own."""
        return [
            (names, name, serial, each.connection.identity)
            for serial, each in self._owned.items()
            for names, name in each.names
        ]

    def notice(self, roster: str, member: Member, *, has_joined: bool, is_identity: bool) -> bytes | None:
        """Make the notice for a member, as the roster's service defines it; None = send nothing."""
        service, _, name = roster.partition(":")
        kind: Literal["+", "-"] = "+" if has_joined else "-"
        try:
            encoded = encode_notice(self._notice_of(service, channel_of(name), member, has_joined, is_identity))
            return None if encoded is None else write_change(encoded, change_in(kind, member, is_identity=is_identity))
        except Exception:  # an error of a service, or an unknown roster: joining and leaving must still succeed
            _log.exception("no notice", service=service)
            return None

    def on_lost_name(self, names: str, name: str, serial: int) -> None:
        """Close a connection that lost a name to another one: its client must reconnect and resync."""
        owned = self._owned.get(serial)
        if owned is not None and (names, name) in owned.names:  # else it has just released the name
            owned.names.discard((names, name))
            owned.connection.close(CloseCode.RESYNC, "Name lost")

    def on_direct(self, serial: int, message: bytes) -> bool:
        """Deliver a direct message to a local connection; False = it has gone, or delivery failed."""
        owned = self._owned.get(serial)
        if owned is None or owned.connection.is_closed:
            return False
        try:
            return owned.connection.deliver(decode_json(message))
        except Exception:  # a broken transport, or an invalid message: the reader of Redis must continue
            _log.exception("direct message failed", connection=owned.connection.id)
            return False

    # -- inner -------------------------------------------------------------------------------------------------

    def _of(self, connection: Connection) -> _OwnedState:
        if connection.is_closed or not self._is_here(connection):
            raise ConnectionClosed  # or a backend's request: `forget` would never release what it owns
        owned = self._owned.get(connection.serial)
        if owned is None:
            owned = self._owned[connection.serial] = _OwnedState(connection)
        return owned

    async def _leave_again(self, serial: int, roster: str, entry: str) -> None:
        owned = self._owned.get(serial)
        if owned is None or (roster, entry) not in owned.members:
            await self.directory.leave(roster, serial, entry=entry)

    async def _release_again(self, serial: int, names: str, name: str) -> None:
        owned = self._owned.get(serial)
        if owned is None or (names, name) not in owned.names:
            await self.directory.release(names, name, serial)

    def _recheck(self, connection: Connection) -> None:
        """Release again if the connection ended during the request to Redis."""
        if connection.is_closed:
            if (owned := self._owned.pop(connection.serial, None)) is not None:
                self._gone(owned.members)
            self._schedule_release(lambda: self.directory.disowned(connection.serial))

    def _gone(self, members: Mapping[tuple[str, str], Member]) -> None:
        """Call `on_member` for members that are not there any more."""
        if self.on_member is not None:
            for (roster, _), member in members.items():
                self.on_member(roster, member, False)

    def _schedule_release(self, give_back: Callable[[], Awaitable[object]]) -> None:
        self._pending_releases.append(give_back)
        if self._release_task is None and not self._is_stopped:  # after the lease is released, other nodes reap
            self._release_task = asyncio.get_running_loop().create_task(self._give_back(), name="giving back")

    async def _give_back(self) -> None:
        """Run the pending releases in concurrent batches: they do not depend on each other."""
        try:
            while self._pending_releases:
                batch = [self._pending_releases.popleft() for _ in range(min(BATCH, len(self._pending_releases)))]
                is_done = await asyncio.gather(*map(self._attempt, batch))
                failed = [each for each, done in zip(batch, is_done, strict=True) if not done]
                if failed:
                    self._pending_releases.extendleft(reversed(failed))
                    if self._is_stopped:  # other nodes reap
                        return
                    await asyncio.sleep(RETRY_S)
        finally:
            self._release_task = None

    @staticmethod
    async def _attempt(give_back: Callable[[], Awaitable[object]]) -> bool:
        """Run one release; False = retry."""
        try:
            await give_back()
        except BrokerUnavailable:
            return False
        except Exception:  # the top of a task: one failed release must not stop the others
            _log.exception("giving back failed")
        return True
