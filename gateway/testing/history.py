"""A HistoryStore within one process, for tests of the layers above it. Passes the contract suite; no network, no time.

    archive = Archive(on_publish)                  # on_publish(key, publication): pass it to the brokers
    node_a, node_b = MemoryHistory(archive), MemoryHistory(archive)

Scriptable: `archive.is_failing` (every call raises BrokerUnavailable), `archive.flush()` (all is lost),
`archive.before_read` (runs before a read), `archive.lateness` (of the answer to a read, in loop iterations).
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.contracts.history import History, Order
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.protocol.publication import MARK, Position, Publication, Selector, rest_of_header

__all__ = ["Archive", "MemoryHistory", "write_sequenced"]


def write_sequenced(publication: Publication, to: Selector | None = None) -> bytes:
    """Encode a publication with a position as the script does."""
    header = f"1 {publication.position} {publication.previous_tag} j".encode()
    return MARK + header + rest_of_header(publication.attributes, to) + b"\n" + publication.payload


def _offset(publication: Publication) -> int:
    return -1 if publication.position is None else publication.position.offset


@dataclass
class _Shelf:
    position: Position
    entries: list[tuple[float, Publication]] = field(default_factory=list)  # time of publication, loop time


class Archive:
    """State that keepers share."""

    def __init__(self, on_publish: Callable[[str, bytes], object] | None = None) -> None:
        self.is_failing = False
        self.before_read: Callable[[], object] = lambda: None
        self.lateness: Callable[[], int] = lambda: 1
        self._on_publish = on_publish
        self.lost: dict[str, int] = {}
        self._shelves: dict[str, _Shelf] = {}
        self._once: dict[tuple[str, str], Position] = {}
        self._bare: set[tuple[str, str]] = set()  # idempotency keys of publications that are not stored

    def flush(self) -> None:
        """Lose everything."""
        self._shelves.clear()
        self._once.clear()
        self._bare.clear()

    def has(self, key: str) -> bool:
        """True if a channel has a history."""
        return key in self._shelves

    def shelf(self, key: str) -> _Shelf:
        """Return a channel's history, created if there is none."""
        if key not in self._shelves:
            self._shelves[key] = _Shelf(Position(secrets.token_hex(4), 0, secrets.token_hex(4)))
        return self._shelves[key]

    def publish(
        self,
        key: str,
        payload: bytes,
        history: History,
        once: str | None,
        to: Selector | None = None,
        attributes: bytes = b"",
    ) -> Position:
        """Publish, and store within these bounds."""
        if once is not None and (key, once) in self._once:
            return self._once[key, once]
        shelf, now_s = self.shelf(key), asyncio.get_running_loop().time()
        before = shelf.position
        shelf.position = Position(before.epoch, before.offset + 1, secrets.token_hex(4))
        publication = Publication(payload, shelf.position, before.tag, attributes=attributes)
        shelf.entries.append((now_s, publication))
        shelf.entries = [each for each in shelf.entries if each[0] > now_s - history.ttl_s][-history.size :]
        if once is not None:
            self._once[key, once] = shelf.position
        if self._on_publish is not None:
            self._on_publish(key, write_sequenced(publication, to))
        return shelf.position

    def publish_once(self, key: str, payload: bytes, once: str) -> None:
        """Publish without storing."""
        if (key, once) not in self._bare:
            self._bare.add((key, once))
            if self._on_publish is not None:
                self._on_publish(key, payload)

    def recent(self, key: str, limit: int, since: Position | None) -> tuple[list[Publication], Position]:
        """Read the history, or its first entries after a position."""
        shelf = self.shelf(key)
        behind = None if since is None else self.read(key, since)
        if behind is not None:
            return behind[:limit], shelf.position
        return [publication for _, publication in shelf.entries][-limit:], shelf.position

    def page(self, key: str, limit: int, order: Order, beyond: int | None = None) -> tuple[list[Publication], Position]:
        """Read the history in an order, from an offset on."""
        shelf = self.shelf(key)
        found = [publication for _, publication in shelf.entries]
        if order == "newest":
            return [each for each in found[::-1] if beyond is None or _offset(each) < beyond][:limit], shelf.position
        return [each for each in found if beyond is None or _offset(each) > beyond][:limit], shelf.position

    def locate(self, key: str, epoch: str, offset: int) -> Position | None:
        """Find the tag of a position."""
        shelf = self._shelves.get(key)
        if shelf is None or epoch not in ("", shelf.position.epoch):
            return None
        if offset == shelf.position.offset:
            return shelf.position
        tags = [each.previous_tag for _, each in shelf.entries if _offset(each) == offset + 1]
        return Position(shelf.position.epoch, offset, tags[0] or "") if tags else None

    def read(self, key: str, since: Position, max_entries: int = 0, max_bytes: int = 0) -> list[Publication] | None:
        """Read the entries after a position."""
        shelf = self._shelves.get(key)
        if shelf is None or shelf.position.epoch != since.epoch or shelf.position.offset < since.offset:
            return None
        if shelf.position.offset == since.offset:
            return [] if shelf.position == since else None
        found: list[Publication] = []
        for _, publication in shelf.entries:
            if publication.position is not None and publication.position.offset == since.offset + 1 + len(found):
                found.append(publication)
        if not found or found[0].previous_tag != since.tag:
            return None
        is_too_much = 0 < max_entries < len(found) or 0 < max_bytes < sum(each.size for each in found)
        return None if is_too_much else found


class MemoryHistory:
    """One node's view."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def set_rules(self, service: str, rules: Rules[ChannelRule]) -> None:
        """Nothing to do: all publishers here are nodes."""

    async def start(self) -> None:
        """Nothing to connect to."""

    async def stop(self) -> None:
        """Nothing to end."""

    def publish(
        self,
        key: str,
        payload: bytes,
        history: History,
        *,
        once: str | None = None,
        to: Selector | None = None,
        attributes: bytes = b"",
    ) -> asyncio.Future[Position]:
        future: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        if self._archive.is_failing:
            future.set_exception(BrokerUnavailable(key))
            future.exception()
        else:
            future.set_result(self._archive.publish(key, payload, history, once, to, attributes))
        return future

    def publish_once(self, key: str, payload: bytes, once: str) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._archive.is_failing:
            future.set_exception(BrokerUnavailable(key))
            future.exception()
        else:
            self._archive.publish_once(key, payload, once)
            future.set_result(None)
        return future

    async def read(
        self, key: str, since: Position, *, max_entries: int = 0, max_bytes: int = 0, is_away: bool = False
    ) -> list[Publication] | None:
        await self._travel()
        self._archive.before_read()
        found = self._archive.read(key, since, max_entries, max_bytes)
        if is_away and since.offset <= self._archive.lost.get(key, -1):
            found = None
        for _ in range(self._archive.lateness()):
            await self._travel()
        return found

    async def recent(self, key: str, limit: int, since: Position | None = None) -> tuple[list[Publication], Position]:
        await self._travel()
        return self._archive.recent(key, limit, since)

    async def page(
        self, key: str, limit: int, *, order: Order, beyond: int | None = None
    ) -> tuple[list[Publication], Position]:
        await self._travel()
        return self._archive.page(key, limit, order, beyond)

    async def locate(self, key: str, epoch: str, offset: int) -> Position | None:
        await self._travel()
        return self._archive.locate(key, epoch, offset)

    @property
    def has_other_rules(self) -> bool:
        return False

    def promised(self, service: str, name: str, own: History | None) -> History | None:
        return own

    async def remove(self, key: str) -> None:
        await self._travel()
        if self._archive.has(key):
            self._archive.shelf(key).entries.clear()

    async def note_lost(self, key: str) -> None:
        await self._travel()
        if self._archive.has(key):
            self._archive.lost[key] = self._archive.shelf(key).position.offset

    async def positions(self, keys: Iterable[str]) -> dict[str, Position]:
        await self._travel()
        return {key: self._archive.shelf(key).position for key in keys if self._archive.has(key)}

    async def position(self, key: str) -> Position:
        await self._travel()
        return self._archive.shelf(key).position

    async def _travel(self) -> None:
        await asyncio.sleep(0)  # other tasks run meanwhile, as with Redis
        if self._archive.is_failing:
            raise BrokerUnavailable("memory")
