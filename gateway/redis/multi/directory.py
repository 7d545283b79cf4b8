"""SpreadDirectory: the directory on several independent Redis, each with its own leases.

Rules:
- Each roster, each service's names and each token are in one Redis. A node has a lease and an incarnation in every one.
- An incarnation begins with the tag of its Redis, so direct messages to an Owner are sent through the right Redis.
- A new token is drawn again until its Redis is one that this node receives from, so that tokens can still be issued
  while one Redis is unavailable.
"""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from snorky.gateway.contracts.directory import Entered, LocalState, Member, Owner, RosterSize, RosterSnapshot
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.directory.directory import RedisDirectory
from snorky.gateway.redis.directory.tokens import new_token
from snorky.gateway.redis.multi.hashing import Spread

__all__ = ["SpreadDirectory", "tag_of"]

DRAWS_MAX = 100


def tag_of(identity: str) -> str:
    """Make the prefix of incarnations in one Redis: short, and different for each Redis of a deployment."""
    return hashlib.blake2b(identity.encode(), digest_size=4).hexdigest() + "-"


class _Share:
    """A LocalState for the members and names of one Redis."""

    def __init__(self, whole: LocalState, directory: RedisDirectory, spread: Spread[RedisDirectory]) -> None:
        self._whole = whole
        self._directory = directory
        self._spread = spread
        self.notice = whole.notice
        self.on_lost_name = whole.on_lost_name
        self.on_direct = whole.on_direct

    def local_members(self) -> Iterable[tuple[str, Member]]:
        return [each for each in self._whole.local_members() if self._spread.of(each[0]) is self._directory]

    def local_names(self) -> Iterable[tuple[str, str, int, str | None]]:
        return [each for each in self._whole.local_names() if self._spread.of(each[0]) is self._directory]


class SpreadDirectory:
    """Implements `contracts.directory.Directory`. directories: of one node, one for each Redis, made with its tag."""

    def __init__(self, directories: Spread[RedisDirectory]) -> None:
        self._directories = directories
        self._by_tag = {tag_of(identity): directory for identity, directory in directories.items()}

    @property
    def incarnation(self) -> str:
        """This node's current incarnation in the first Redis; for another Redis see `of`."""
        return self._directories.first.incarnation

    def of(self, key: str) -> RedisDirectory:
        """Return the directory of the Redis that has a roster, or the names of a service."""
        return self._directories.of(key)

    async def start(self, asserter: LocalState) -> None:
        for directory in self._directories:
            await directory.start(_Share(asserter, directory, self._directories))

    async def stop(self) -> None:
        await asyncio.gather(*(directory.stop() for directory in self._directories))

    def is_sure(self, names: str) -> bool:
        return self.of(names).is_sure(names)

    async def enter(
        self,
        roster: str,
        serial: int,
        identity: str,
        *,
        entry: str = "",
        data: Any = None,
        lists_members: bool = True,
    ) -> Entered:
        directory = self.of(roster)
        return await directory.enter(roster, serial, identity, entry=entry, data=data, lists_members=lists_members)

    async def update(
        self, roster: str, serial: int, *, entry: str = "", data: Any, notice: bytes | None = None
    ) -> bool:
        return await self.of(roster).update(roster, serial, entry=entry, data=data, notice=notice)

    async def leave(self, roster: str, serial: int, *, entry: str = "") -> bool:
        return await self.of(roster).leave(roster, serial, entry=entry)

    async def members(self, roster: str) -> list[Member]:
        return await self.of(roster).members(roster)

    async def listed(self, roster: str) -> RosterSnapshot:
        return await self.of(roster).listed(roster)

    async def versions(self, rosters: Sequence[str]) -> list[int | None]:
        """See Directory; None for rosters whose Redis is unavailable."""
        shares: defaultdict[RedisDirectory, list[str]] = defaultdict(list)
        for roster in rosters:
            shares[self.of(roster)].append(roster)
        told: dict[str, int | None] = dict.fromkeys(rosters)

        async def ask(directory: RedisDirectory, share: list[str]) -> None:
            with suppress(BrokerUnavailable):
                told.update(zip(share, await directory.versions(share), strict=True))

        await asyncio.gather(*(ask(directory, share) for directory, share in shares.items()))
        return [told[roster] for roster in rosters]

    async def identity_counts(self, rosters: Sequence[str]) -> list[int]:
        shares: defaultdict[RedisDirectory, list[str]] = defaultdict(list)
        for roster in rosters:
            shares[self.of(roster)].append(roster)
        counts = await asyncio.gather(*(directory.identity_counts(share) for directory, share in shares.items()))
        found = {
            roster: count
            for share, each in zip(shares.values(), counts, strict=True)
            for roster, count in zip(share, each, strict=True)
        }
        return [found[roster] for roster in rosters]

    async def size(self, roster: str) -> RosterSize:
        return await self.of(roster).size(roster)

    async def census(self, roster: str) -> RosterSnapshot:
        return await self.of(roster).census(roster)

    async def claim(self, names: str, name: str, serial: int, identity: str | None = None) -> bool:
        return await self.of(names).claim(names, name, serial, identity)

    async def release(self, names: str, name: str, serial: int) -> bool:
        return await self.of(names).release(names, name, serial)

    async def find(self, names: str, name: str) -> Owner | None:
        return await self.of(names).find(names, name)

    async def list_names(self, names: str) -> list[str]:
        return await self.of(names).list_names(names)

    async def disowned(self, serial: int) -> None:
        """See Directory; holdings in an unavailable Redis are released when it is available again."""
        await asyncio.gather(*(directory.disowned(serial) for directory in self._directories))

    async def send(self, owner: Owner, message: bytes) -> bool:
        tag, dash, _ = owner.incarnation.partition("-")
        # no tag: the owner's node still uses a single Redis, which is the first one if further ones were added
        return await self._by_tag.get(tag + dash, self._directories.first).send(owner, message)

    async def put_token(self, value: Any, ttl_s: float) -> str:
        for _ in range(DRAWS_MAX):
            token = new_token()
            directory = self._directories.of(_token_key(token))
            if directory.is_heard:
                break
        return await directory.put_token(value, ttl_s, token=token)

    async def read_token(self, token: str) -> Any | None:
        return await self._directories.of(_token_key(token)).read_token(token)

    async def take_token(self, token: str, taker: str) -> Any | None:
        return await self._directories.of(_token_key(token)).take_token(token, taker)


def _token_key(token: str) -> str:
    return f"token {token}"
