"""What channels keep, for who comes late. `gateway.redis.history` fulfils it; one contract suite proves it.

Rules:
- Publications that are kept have positions, EPOCH:OFFSET:TAG. Offsets count by one; the epoch is another whenever
  they begin anew; the tag is random per entry, so that an offset that was used twice (after the failover to a
  lagging replica) is not mistaken for the same entry.
- What is kept is also published to the channel's subscribers, in the same order, with its position.
- What is read of an entry is bounded: an entry that is too large is read as a tombstone in its place.
- A position can be read from while its own entry or the one behind it is kept; else that is said, never hidden.
- A channel's state (epoch, offset, tag) outlives what it keeps by a day, counted from the last time anybody published,
  asked for its position, or compared it: so the next message of a quiet channel is no false gap.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from gateway.publication import Position, Publication
from gateway.rules import ChannelRule, Rules

__all__ = ["History", "Keeper", "Recovery", "history_of"]


@dataclass(frozen=True, slots=True)
class History:
    """How much a channel keeps: size entries (0 = any number), each for ttl_s seconds, at least."""

    ttl_s: float
    size: int = 0


def history_of(rule: ChannelRule) -> History | None:
    """Tell what the channels of a rule keep; None = nothing."""
    return History(rule.history_ttl_s, rule.history) if rule.history else None


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a client that comes back to a channel is told.

    position: where its live notifications go on. is_recovered: publications are all that it missed up to there, in
    order, their payloads checked (a tombstone's is `null`); else some can no longer be had, and there are none.
    """

    position: Position
    is_recovered: bool
    publications: list[Publication]


class Keeper(Protocol):
    """Publishes to channels that keep a history, and reads it. Keys are made by `codec.channel_key`."""

    def set_rules(self, service: str, rules: Rules) -> None:
        """Learn what a service's channels keep, for those who publish without a node. Before `start`."""

    @property
    def has_other_rules(self) -> bool:
        """True if `promised` may tell more than `own`: another node has other rules."""

    def promised(self, service: str, name: str, own: History | None) -> History | None:
        """Tell what a channel keeps by the rules of all living nodes: at least `own`, what this node's rule says.

        name: by `codec.channel_name`.
        """

    async def start(self) -> None:
        """Begin to connect; returns at once."""

    async def stop(self) -> None:
        """End all connections; what is pending fails. Idempotent."""

    def publish(
        self, key: str, payload: bytes, history: History, *, once: str | None = None
    ) -> asyncio.Future[Position]:
        """Queue one publication, JSON; its order among this node's own is that of the calls, also over a reconnect.

        once: an idempotency key of this channel; a second publication under it is answered as the first, and not
        published. The future: BrokerUnavailable within `publish_timeout_s`; it may have been published. It may be
        ignored.
        """

    def publish_once(self, key: str, payload: bytes, once: str) -> asyncio.Future[None]:
        """Queue one publication, JSON, to a channel that keeps nothing; a second one under its key is not published.

        Its order among this node's others is not that of the calls. The future: as of `publish`.
        """

    async def read(
        self, key: str, since: Position, *, max_entries: int = 0, max_bytes: int = 0, is_away: bool = False
    ) -> list[Publication] | None:
        """Read all that was published behind a position, in order; None = it can no longer be had, or never could.

        is_away: the reader has not heard the channel since, so None also if something was published that is not kept.
        max_entries, max_bytes (of payloads): None also if it is more than that; 0 = any. Payloads are not checked.
        Raises BrokerUnavailable.
        """

    async def recent(self, key: str, limit: int, since: Position | None = None) -> tuple[list[Publication], Position]:
        """Read the last publications that are kept, limit at most, in order; and tell where the channel stands.

        Of large ones there may be fewer, but one at least. since: only those behind it, then the first of them; as if
        not given where it cannot be read from. Payloads are not checked. Raises BrokerUnavailable.
        """

    async def position(self, key: str) -> Position:
        """Tell where a channel stands; its history begins here if it has none. Raises BrokerUnavailable."""

    async def note_lost(self, key: str) -> None:
        """Note that a channel's publication was not kept: no position up to now can be read from any more.

        Raises BrokerUnavailable.
        """

    async def positions(self, keys: Iterable[str]) -> dict[str, Position]:
        """Tell where channels stand, those that have a history; none begins. Raises BrokerUnavailable.

        Keeps their states from expiring: who follows a channel compares now and then.
        """
