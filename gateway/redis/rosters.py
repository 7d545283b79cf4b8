"""Rosters: who is in what, in Redis. A hash of entries and a hash of counts, in the slot of the roster's channel.

When ten thousand enter one roster at once, each wants the list of all: 10^8 members. So those that ask while a list is
under way share the next one, and what was read once is not read again.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import structlog

from gateway.codec import encode_json
from gateway.directory import Census, Member
from gateway.redis.estate import Notices, Place, field_of, read_value
from gateway.redis.names import channel_name, counts_key, roster_key
from gateway.redis.scripting import Call, Scripts
from gateway.redis.wire import command

__all__ = ["Rosters"]

ANOTHERS = -1  # enter.lua
READ_MAX = 65_536  # members that are kept read; 20 MB at most

_Order = tuple[str, str, str, int, str]

_log = structlog.get_logger("snorky.redis")


class Rosters:
    """Enters, updates and lists. What is entered is indexed and checked by who calls it."""

    def __init__(self, scripts: Scripts, *, prefix: str, notices: Notices) -> None:
        self._scripts = scripts
        self._prefix = prefix
        self._notices = notices
        self._read: Callable[[bytes, bytes], tuple[_Order, Member]] = lru_cache(READ_MAX)(_read)
        self._lists: dict[str, asyncio.Task[list[Member]]] = {}  # under way
        self._next_lists: dict[str, asyncio.Task[list[Member]]] = {}  # begin when those have ended

    def entering(self, roster: str, member: Member, *, is_quiet: bool = False) -> Call:
        """Make the call that enters a member. is_quiet: nothing is told."""
        notices = [
            b"" if is_quiet else self._notices(roster, member, has_joined=True, is_identity=is_first) or b""
            for is_first in (True, False)
        ]
        arguments = [
            channel_name(self._prefix, roster),
            f"{member.owner} {member.entry}".encode(),
            member.identity.encode(),
            encode_json(member.data),
            *notices,
            b"%d" % is_quiet,
        ]
        return Call("enter", self._keys(roster), arguments)

    async def stop(self) -> None:
        """End what is under way. Idempotent."""
        tasks = [*self._lists.values(), *self._next_lists.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def update(self, roster: str, owner: str, place: Place, *, data: Any, notice: bytes | None) -> bool:
        """Replace an entry's data; False = there is no such entry. Raises BrokerUnavailable."""
        arguments = [
            channel_name(self._prefix, roster),
            field_of(owner, place),
            encode_json(data),
            notice or b"",
        ]
        (was_there,) = await self._scripts.run(Call("update", self._keys(roster), arguments))
        return bool(was_there == 1)

    async def members(self, roster: str) -> list[Member]:
        """List a roster, as it is now or later. Raises BrokerUnavailable."""
        task = self._next_lists.get(roster)
        if task is None:
            before = self._lists.get(roster)
            task = asyncio.get_running_loop().create_task(self._list(roster, before), name="redis-roster")
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # who waited may have gone
            (self._lists if before is None else self._next_lists)[roster] = task
        return list(await asyncio.shield(task))

    async def _list(self, roster: str, before: "asyncio.Task[list[Member]] | None") -> list[Member]:
        if before is not None:
            await asyncio.wait((before,))
            self._lists[roster] = self._next_lists.pop(roster)  # from here on it is too late to share it
        try:
            (flat,) = await self._scripts.run(command(b"HGETALL", roster_key(self._prefix, roster)))
            return self._members(flat)
        finally:
            if self._lists.get(roster) is asyncio.current_task():
                del self._lists[roster]

    async def versions(self, rosters: Sequence[str]) -> list[int]:
        """See Directory."""
        asked = [command(b"HGET", counts_key(self._prefix, roster), b"v") for roster in rosters]
        return [int(answer or 0) for answer in await self._scripts.run(*asked, in_order=False)] if asked else []

    async def census(self, roster: str) -> Census:
        """See Directory."""
        ((version, flat),) = await self._scripts.run(Call("census", self._keys(roster), ()))
        return Census(int(version), self._members(flat))

    def _keys(self, roster: str) -> list[bytes]:
        return [roster_key(self._prefix, roster), counts_key(self._prefix, roster)]

    def _members(self, flat: Sequence[bytes]) -> list[Member]:
        found: list[tuple[_Order, Member]] = []
        for field, value in zip(flat[::2], flat[1::2], strict=True):
            try:
                # only what has no data is shared: of data a caller might think that it is his own
                found.append((self._read if value.endswith(b"null") else _read)(field, value))
            except (ValueError, msgspec.DecodeError) as error:
                _log.warning("entry of a roster is not readable", error=str(error))
        found.sort()  # no two are of one place, so members are never compared
        return [member for _, member in found]


def _read(field: bytes, value: bytes) -> tuple[_Order, Member]:
    member = read_value(field, value)
    owner = member.owner
    return (member.identity, owner.node_id, owner.incarnation, owner.serial, member.entry), member
