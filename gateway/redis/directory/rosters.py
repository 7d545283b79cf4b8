"""Rosters: lists of the members of channels, in Redis. Each has a hash of entries and a hash of counts, in one slot.

Rules:
- A roster has a maximum size in bytes, in the whole cluster; entries that would exceed it are rejected. An entry that a
  node registers again, because Redis or other nodes may have lost it, is never rejected.
- A small roster is read by one script, a large one in pages (HSCAN): a very large reply would block Redis and the other
  commands of this connection. If the roster changes while its pages are read, it is read again, at most TRIES times.
- When ten thousand clients enter one roster at once, each one needs the whole list: 10^8 members. So callers that ask
  while a read is running share the next read, and decoded members are cached.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import lru_cache
from heapq import merge
from typing import Any, Final

import msgspec
import structlog

from snorky.gateway.contracts.directory import Member, RosterSize, RosterSnapshot
from snorky.gateway.errors import LimitExceeded
from snorky.gateway.protocol.codec import encode_json
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.directory.owned_index import Notices, RosterEntry, field_of, read_value
from snorky.gateway.redis.keys import counts_key, node_channel_name, roster_key
from snorky.gateway.shared_reads import SharedReads

__all__ = ["Rosters"]

ANOTHERS = -1  # results of enter.lua
TOO_LARGE = -2
AT_ONCE_BYTES: Final = 2 << 20  # blocks Redis for 5 ms
AT_ONCE_ENTRIES: Final = 20_000
PAGE: Final = 100  # entries of at most 64 KiB each, so a page is below the reply limit of a connection
TRIES: Final = 5
SLICE: Final = 200  # members decoded in one step of the event loop: 2 ms
_OTHER_COUNTS: Final = (b"b", b"c", b"v", b"w")  # fields of the hash of counts that are for the whole roster
WEIGH_EVERY_S: Final = 10
READ_MAX = 65_536  # decoded members in the cache; at most 20 MB

_Order = tuple[str, str, str, int, str]

_log = structlog.get_logger("snorky.redis")


class Rosters:
    """Enters, updates and lists rosters. The caller must index what it enters, and check its lease afterwards.

    max_bytes: maximum size of a roster; 0 = no limit. on_full: called with a roster that has rejected an entry.
    """

    def __init__(
        self,
        scripts: Scripts,
        *,
        prefix: str,
        notices: Notices,
        max_bytes: int = 0,
        on_full: Callable[[str], object] = lambda _roster: None,
    ) -> None:
        self._scripts = scripts
        self._prefix = prefix
        self._notices = notices
        self._read: Callable[[bytes, bytes], tuple[_Order, Member]] = lru_cache(READ_MAX)(_read)
        self._max_bytes = b"%d" % max_bytes
        self._on_full = on_full
        self._censuses: SharedReads[RosterSnapshot] = SharedReads(self.census, name="redis-roster")

    def entering(self, roster: str, member: Member, *, is_again: bool = False, is_quiet: bool = False) -> Call:
        """Build the call that enters a member. is_again: ignore the size limit. is_quiet: publish no notice."""
        notices = [
            b"" if is_quiet else self._notices(roster, member, has_joined=True, is_identity=is_first) or b""
            for is_first in (True, False)
        ]
        arguments = [
            node_channel_name(self._prefix, roster),
            f"{member.owner} {member.entry}".encode(),
            member.identity.encode(),
            encode_json(member.data),
            *notices,
            b"%d" % is_quiet,
            b"0" if is_again else self._max_bytes,
        ]
        return Call("enter", self._keys(roster), arguments)

    async def stop(self) -> None:
        """Cancel running reads. Idempotent."""
        await self._censuses.stop()

    async def update(self, roster: str, owner: str, place: RosterEntry, *, data: Any, notice: bytes | None) -> bool:
        """Replace an entry's data; False = there is no such entry. Raises BrokerUnavailable, LimitExceeded."""
        arguments = [
            node_channel_name(self._prefix, roster),
            field_of(owner, place),
            encode_json(data),
            notice or b"",
            self._max_bytes,
        ]
        call = Call("update", self._keys(roster), arguments)
        (was_there,) = await self._scripts.run(call)
        if was_there == TOO_LARGE and await self.weigh(roster):
            (was_there,) = await self._scripts.run(call)
        if was_there == TOO_LARGE:
            raise self.full(roster)
        return bool(was_there == 1)

    async def weigh(self, roster: str) -> bool:
        """Recount the bytes of a roster, before an entry is rejected; False = it was recounted recently."""
        (is_new,) = await self._scripts.run(Call("weigh", self._keys(roster), [b"%d" % WEIGH_EVERY_S]))
        return bool(is_new == 1)

    def full(self, roster: str) -> LimitExceeded:
        """Call on_full, and make the error for an entry that would make a roster too large."""
        self._on_full(roster)
        text = f"Full: its members and their data take {int(self._max_bytes)} bytes already"
        return LimitExceeded("roster_max_bytes", text)

    async def members(self, roster: str) -> list[Member]:
        """List a roster, at the time of the call or later. Raises BrokerUnavailable."""
        return list((await self.listed(roster)).members)

    async def listed(self, roster: str) -> RosterSnapshot:
        """List a roster with its version; concurrent callers share one result. Raises BrokerUnavailable."""
        return await self._censuses.get(roster)

    async def versions(self, rosters: Sequence[str]) -> list[int]:
        """See Directory."""
        asked = [command(b"HGET", counts_key(self._prefix, roster), b"v") for roster in rosters]
        return [int(answer or 0) for answer in await self._scripts.run(*asked, in_order=False)] if asked else []

    async def identity_counts(self, rosters: Sequence[str]) -> list[int]:
        """See Directory. The hash of counts has a field for each identity, and others."""
        asked = []
        for key in (counts_key(self._prefix, roster) for roster in rosters):
            asked += [command(b"HLEN", key), command(b"HMGET", key, *_OTHER_COUNTS)]
        answers = await self._scripts.run(*asked, in_order=False) if asked else []
        pairs = zip(answers[::2], answers[1::2], strict=True)
        return [max(0, size - sum(each is not None for each in others)) for size, others in pairs]

    async def size(self, roster: str) -> RosterSize:
        """See Directory."""
        entries_key, counts = self._keys(roster)
        entries, fields, others = await self._scripts.run(
            command(b"HLEN", entries_key), command(b"HLEN", counts), command(b"HMGET", counts, *_OTHER_COUNTS)
        )
        return RosterSize(entries, max(0, fields - sum(each is not None for each in others)))

    async def census(self, roster: str) -> RosterSnapshot:
        """See Directory."""
        arguments = [b"%d" % AT_ONCE_BYTES, b"%d" % AT_ONCE_ENTRIES]
        for _ in range(TRIES):
            ((version, *state, found, run),) = await self._scripts.run(Call("census", self._keys(roster), arguments))
            if not isinstance(found, int):
                return RosterSnapshot(int(version), await self._members(found), run.decode())
            pages = await self._pages(roster)
            (now,) = await self._scripts.run(command(b"HMGET", counts_key(self._prefix, roster), b"v", b"c"))
            if [each or b"" for each in now] == state:
                break
        # otherwise it changes all the time: notices report the changes after this version, some perhaps twice
        return RosterSnapshot(int(version), await self._members(pages), run.decode())

    async def _pages(self, roster: str) -> list[bytes]:
        found: dict[bytes, bytes] = {}  # HSCAN may return an entry twice
        cursor = b"0"
        while True:
            scan = command(b"HSCAN", roster_key(self._prefix, roster), cursor, b"COUNT", b"%d" % PAGE)
            ((cursor, flat),) = await self._scripts.run(scan)
            found.update(zip(flat[::2], flat[1::2], strict=True))
            if cursor == b"0":
                return [word for entry in found.items() for word in entry]

    def _keys(self, roster: str) -> list[bytes]:
        return [roster_key(self._prefix, roster), counts_key(self._prefix, roster)]

    async def _members(self, flat: Sequence[bytes]) -> list[Member]:
        """Decode entries and sort them, SLICE at a time: 20,000 at once would block the event loop for 100 ms."""
        slices: list[list[tuple[_Order, Member]]] = []
        for start in range(0, len(flat), 2 * SLICE):
            if start:
                await asyncio.sleep(0)
            slices.append(self._decoded(flat[start : start + 2 * SLICE]))
        if len(slices) == 1:
            return [member for _, member in slices[0]]
        members: list[Member] = []
        for _, member in merge(*slices):
            members.append(member)
            if not len(members) % SLICE:
                await asyncio.sleep(0)
        return members

    def _decoded(self, flat: Sequence[bytes]) -> list[tuple[_Order, Member]]:
        found: list[tuple[_Order, Member]] = []
        for field, value in zip(flat[::2], flat[1::2], strict=True):
            try:
                # cache only members without data: callers may change the data that they get
                found.append((self._read if value.endswith(b"null") else _read)(field, value))
            except (ValueError, msgspec.DecodeError) as error:
                _log.warning("entry of a roster is not readable", error=str(error))
        found.sort()  # all sort keys differ, so members are never compared
        return found


def _read(field: bytes, value: bytes) -> tuple[_Order, Member]:
    member = read_value(field, value)
    owner = member.owner
    return (member.identity, owner.node_id, owner.incarnation, owner.serial, member.entry), member
