"""SpreadHistory: the histories of channels in several independent Redis, each of which has a share of the channels."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.contracts.history import History, Order
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.protocol.publication import Position, Publication, Selector
from snorky.gateway.redis.history.store import RedisHistory
from snorky.gateway.redis.multi.hashing import Spread

__all__ = ["SpreadHistory"]


class SpreadHistory:
    """Implements `snorky.gateway.contracts.history.HistoryStore`. histories: one for each Redis, of the same node."""

    def __init__(self, histories: Spread[RedisHistory]) -> None:
        self._histories = histories

    def set_rules(self, service: str, rules: Rules[ChannelRule]) -> None:
        for history_store in self._histories:
            history_store.set_rules(service, rules)

    @property
    def has_other_rules(self) -> bool:
        return any(history_store.has_other_rules for history_store in self._histories)

    def promised(self, service: str, name: str, own: History | None) -> History | None:
        return self._histories.of(f"{service}:{name}").promised(service, name, own)

    async def start(self) -> None:
        for history_store in self._histories:
            await history_store.start()

    async def stop(self) -> None:
        await asyncio.gather(*(history_store.stop() for history_store in self._histories))

    def publish(
        self,
        key: str,
        payload: bytes,
        history: History,
        *,
        once: str | None = None,
        to: Selector | None = None,
        attributes: bytes = b"",
    ) -> "asyncio.Future[Position]":
        return self._histories.of(key).publish(key, payload, history, once=once, to=to, attributes=attributes)

    def publish_once(self, key: str, payload: bytes, once: str) -> "asyncio.Future[None]":
        return self._histories.of(key).publish_once(key, payload, once)

    async def read(
        self, key: str, since: Position, *, max_entries: int = 0, max_bytes: int = 0, is_away: bool = False
    ) -> list[Publication] | None:
        return await self._histories.of(key).read(
            key, since, max_entries=max_entries, max_bytes=max_bytes, is_away=is_away
        )

    async def recent(self, key: str, limit: int, since: Position | None = None) -> tuple[list[Publication], Position]:
        return await self._histories.of(key).recent(key, limit, since)

    async def page(
        self, key: str, limit: int, *, order: Order, beyond: int | None = None
    ) -> tuple[list[Publication], Position]:
        return await self._histories.of(key).page(key, limit, order=order, beyond=beyond)

    async def locate(self, key: str, epoch: str, offset: int) -> Position | None:
        return await self._histories.of(key).locate(key, epoch, offset)

    async def position(self, key: str) -> Position:
        return await self._histories.of(key).position(key)

    async def remove(self, key: str) -> None:
        await self._histories.of(key).remove(key)

    async def note_lost(self, key: str) -> None:
        await self._histories.of(key).note_lost(key)

    async def positions(self, keys: Iterable[str]) -> dict[str, Position]:
        """See HistoryStore; omits channels of an unavailable Redis. Raises BrokerUnavailable: all are unavailable."""
        shares: defaultdict[RedisHistory, list[str]] = defaultdict(list)
        for key in keys:
            shares[self._histories.of(key)].append(key)
        answers = await asyncio.gather(
            *(history_store.positions(share) for history_store, share in shares.items()), return_exceptions=True
        )
        found: dict[str, Position] = {}
        problems: list[BaseException] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                problems.append(answer)
            else:
                found |= answer
        for problem in problems:
            if len(problems) == len(answers) or not isinstance(problem, BrokerUnavailable):
                raise problem
        return found
