"""Rosters: who is in what, in Redis. A hash of entries and a hash of counts, in the slot of the roster's channel.

Rules:
- A roster has at most so many bytes, in the whole cluster: what would make it larger is refused. What a node enters
  again, because Redis or others may have lost it, is never refused.
- A small roster is read by one script, a large one in pages (HSCAN): a reply of any size would keep Redis and all that
  wait on this connection. If the roster changed while its pages were read, it is read again, TRIES times at most.
- When ten thousand enter one roster at once, each wants the list of all: 10^8 members. So those that ask while a list
  is under way share the next one, and what was read once is not read again.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
import structlog

from gateway.codec import encode_json
from gateway.directory import Census, Member
from gateway.errors import LimitExceeded
from gateway.redis.estate import Notices, Place, field_of, read_value
from gateway.redis.names import counts_key, node_channel_name, roster_key
from gateway.redis.scripting import Call, Scripts
from gateway.redis.wire import command
from gateway.shared_reads import SharedReads

__all__ = ["Rosters"]

ANOTHERS = -1  # enter.lua
TOO_LARGE = -2
AT_ONCE_BYTES: Final = 2 << 20  # Redis does nothing else for 5 ms
AT_ONCE_ENTRIES: Final = 20_000
PAGE: Final = 100  # entries; of 64 KiB each at most, so that a page stays below what a connection takes
TRIES: Final = 5
WEIGH_EVERY_S: Final = 10
READ_MAX = 65_536  # members that are kept read; 20 MB at most

_Order = tuple[str, str, str, int, str]

_log = structlog.get_logger("snorky.redis")


class Rosters:
    """Enters, updates and lists. What is entered is indexed and checked by who calls it. max_bytes: of one; 0 = any.

    on_full: is told of a roster that somebody was refused by.
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
        self._censuses: SharedReads[Census] = SharedReads(self.census, name="redis-roster")

    def entering(self, roster: str, member: Member, *, is_again: bool = False, is_quiet: bool = False) -> Call:
        """Make the call that enters a member. is_again: of any size. is_quiet: nothing is told."""
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
        """End what is under way. Idempotent."""
        await self._censuses.stop()

    async def update(self, roster: str, owner: str, place: Place, *, data: Any, notice: bytes | None) -> bool:
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
        """Have the bytes of a roster counted again, before somebody is refused; False = that was done just now."""
        (is_new,) = await self._scripts.run(Call("weigh", self._keys(roster), [b"%d" % WEIGH_EVERY_S]))
        return bool(is_new == 1)

    def full(self, roster: str) -> LimitExceeded:
        """Make the error of whoever would make a roster too large."""
        self._on_full(roster)
        text = f"Full: its members and their data take {int(self._max_bytes)} bytes already"
        return LimitExceeded("roster_max_bytes", text)

    async def members(self, roster: str) -> list[Member]:
        """List a roster, as it is now or later. Raises BrokerUnavailable."""
        return list((await self.listed(roster)).members)

    async def listed(self, roster: str) -> Census:
        """List it with its version, for all that ask at this time: they share the members. Raises BrokerUnavailable."""
        return await self._censuses.get(roster)

    async def versions(self, rosters: Sequence[str]) -> list[int]:
        """See Directory."""
        asked = [command(b"HGET", counts_key(self._prefix, roster), b"v") for roster in rosters]
        return [int(answer or 0) for answer in await self._scripts.run(*asked, in_order=False)] if asked else []

    async def census(self, roster: str) -> Census:
        """See Directory."""
        arguments = [b"%d" % AT_ONCE_BYTES, b"%d" % AT_ONCE_ENTRIES]
        for _ in range(TRIES):
            ((version, *state, found, run),) = await self._scripts.run(Call("census", self._keys(roster), arguments))
            if not isinstance(found, int):
                return Census(int(version), self._members(found), run.decode())
            pages = await self._pages(roster)
            (now,) = await self._scripts.run(command(b"HMGET", counts_key(self._prefix, roster), b"v", b"c"))
            if [each or b"" for each in now] == state:
                break
        # else it changes all the time: what changed behind this version is told by notices, at worst twice
        return Census(int(version), self._members(pages), run.decode())

    async def _pages(self, roster: str) -> list[bytes]:
        found: dict[bytes, bytes] = {}  # an entry may come twice
        cursor = b"0"
        while True:
            scan = command(b"HSCAN", roster_key(self._prefix, roster), cursor, b"COUNT", b"%d" % PAGE)
            ((cursor, flat),) = await self._scripts.run(scan)
            found.update(zip(flat[::2], flat[1::2], strict=True))
            if cursor == b"0":
                return [word for entry in found.items() for word in entry]

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
