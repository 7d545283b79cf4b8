"""History: the interface to retained publications.

`snorky.gateway.redis.history.store` implements it; one test suite checks it.

Rules:
- Retained publications have positions, EPOCH:OFFSET:TAG. Offsets increase by one; whenever offsets restart, the epoch
  changes; the tag is random per entry, so that an offset that was used twice (after a failover to a
  lagging replica) is not mistaken for the same entry.
- A retained publication is also published to the channel's subscribers, in the same order, with its position.
- The bytes read per entry are limited: an entry that is too large is returned as a tombstone.
- Reading after a position works while its own entry or the next one is retained; otherwise reading returns None.
- A channel's state (epoch, offset, tag) is kept a day longer than its entries, counted from the last publication,
  position request or comparison: so the next message of a quiet channel does not look like a gap.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.protocol.publication import Position, Publication, Selector

__all__ = ["History", "HistoryStore", "Order", "Recovery", "history_of"]

Order = Literal["newest", "oldest"]  # which entry comes first


@dataclass(frozen=True, slots=True)
class History:
    """Retention of a channel: size entries (0 = any number), each for at least ttl_s seconds."""

    ttl_s: float
    size: int = 0


def history_of(rule: ChannelRule) -> History | None:
    """Return the retention that a rule sets; None = no history."""
    return History(rule.history_ttl_s, rule.history) if rule.history else None


@dataclass(frozen=True, slots=True)
class Recovery:
    """The result of a client's recovery of a channel.

    position: its live notifications continue after it. is_recovered: publications are all that it missed up to there,
    in order, their payloads checked (a tombstone's is `null`); False: some are no longer available, and it is empty.
    """

    position: Position
    is_recovered: bool
    publications: list[Publication]


class HistoryStore(Protocol):
    """Publishes to channels with a history, and reads it. Keys come from `codec.channel_key`."""

    def set_rules(self, service: str, rules: Rules[ChannelRule]) -> None:
        """Store the rules of a service in Redis, for publishers that use no node.

        They may change later: until all nodes have the new ones, and an hour longer, `promised` knows the old ones too.
        """

    @property
    def has_other_rules(self) -> bool:
        """True if `promised` may return more than `own`: another node has different rules."""

    def promised(self, service: str, name: str, own: History | None) -> History | None:
        """Return a channel's retention by the rules of all living nodes: at least `own`, from this node's rule.

        name: from `codec.channel_name`.
        """

    async def start(self) -> None:
        """Begin to connect; returns at once."""

    async def stop(self) -> None:
        """Close all connections; pending calls fail. Idempotent."""

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
        """Queue one JSON publication; this node's publications keep the order of the calls, also after a reconnect.

        to: send it only to these subscribers; it is stored for all. attributes: of it, as written by `attributes.py`;
        stored with it. once: an idempotency key of this channel; a second publication with it gets the same result and
        is not published. The future may raise BrokerUnavailable within `publish_timeout_s`: the message may have been
        published. The caller may ignore the future.
        """

    def publish_once(self, key: str, payload: bytes, once: str) -> asyncio.Future[None]:
        """Queue one publication to a channel without a history, with an idempotency key: published only once.

        payload: JSON, or the result of `write_described`.
        It may overtake other publications of this node. The future: as for `publish`.
        """

    async def read(
        self, key: str, since: Position, *, max_entries: int = 0, max_bytes: int = 0, is_away: bool = False
    ) -> list[Publication] | None:
        """Read all publications after a position, in order; None = not all are available.

        is_away: the reader did not receive the channel since, so None also if a publication was not retained.
        max_entries, max_bytes (of payloads): None also if there are more; 0 = no limit. Payloads are not checked.
        Raises BrokerUnavailable.
        """

    async def recent(self, key: str, limit: int, since: Position | None = None) -> tuple[list[Publication], Position]:
        """Read the latest retained publications, at most `limit`, in order; and the channel's present position.

        If they are large, fewer are returned, but at least one. since: only those after it, the oldest first; ignored
        if the channel cannot be read from there. Payloads are not checked. Raises BrokerUnavailable.
        """

    async def page(
        self, key: str, limit: int, *, order: Order, beyond: int | None = None
    ) -> tuple[list[Publication], Position]:
        """Read at most `limit` retained publications in an order; and the channel's present position.

        beyond: the offset that the first one follows in this order; None = begin at the end. If they are large, fewer
        are returned, but at least one. Payloads are not checked. Raises BrokerUnavailable.
        """

    async def locate(self, key: str, epoch: str, offset: int) -> Position | None:
        """Find the position of which only epoch and offset are known; None = the channel cannot be read from there.

        epoch: "" = the present one. Raises BrokerUnavailable.
        """

    async def position(self, key: str) -> Position:
        """Return a channel's present position; starts a history if there is none. Raises BrokerUnavailable."""

    async def note_lost(self, key: str) -> None:
        """Record that a publication was not retained: no position up to now can be recovered from any more.

        Raises BrokerUnavailable.
        """

    async def remove(self, key: str) -> None:
        """Remove a channel's retained publications. Raises BrokerUnavailable: it is not known whether they are removed.

        Its position stays: subscribers notice nothing, and a client that has missed none of them can still recover.
        """

    async def positions(self, keys: Iterable[str]) -> dict[str, Position]:
        """Return the positions of those channels that have a history; starts none. Raises BrokerUnavailable.

        The call also keeps their state from expiring, so a node that tracks a channel calls it now and then.
        """
