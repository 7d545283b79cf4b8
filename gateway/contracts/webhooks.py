"""What nodes have in common for the webhooks of an app: which facts are true anywhere, and the queue of events.

`snorky.gateway.redis.webhooks` implements it.

Rules:
- A *fact* is a text: `o CHANNEL`, the channel has a subscriber; `m CHANNEL USER`, the user is on it. A node claims the
  facts that are true for its connections, and releases them. A fact begins for the cluster with the first node that
  claims it. It ends 3 s after the last node has released it, unless a node claims it again before.
- Beginnings and ends are queued by the script that sees them, so each is queued once, and their order is that of Redis.
- A node has a lease of 8 s for its facts. A node whose lease stays expired for 3 s is fenced: another node releases its
  facts, and it must claim again under a new owner's id.
- A *number* is how many subscribers a channel has. Each node reports its own, under the same lease, and Redis adds them
  up. When a node has reported, or a dead node is released, Redis tells all nodes the sum, and queues an event: at most
  once a second for each channel, and once in 5 s above 100 subscribers. The last sum always follows.
- One node is the *sender*, until it resigns, is fenced, or says no more that it may send: it sends the events of the
  queue, in order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

__all__ = ["CountedClient", "Exchanged", "QueuedEvent", "WebhookLog", "WebhookReports"]


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What an exchange returned. waiting: events in the queue. dropped: of this exchange, because the queue is full.

    status: "ok"; "fenced": nothing was applied, and this node owns nothing; "lost": nothing was applied, and Redis has
    not the state that the last exchange left. has_more: more is to be done now. numbers: channels, and how many
    subscribers they have on all nodes, oldest first: what is new since the previous exchange.
    """

    status: Literal["ok", "fenced", "lost"]
    waiting: int = 0
    dropped: int = 0
    has_more: bool = False
    numbers: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True, slots=True)
class QueuedEvent:
    """An event of the queue. event: `+FACT`, `-FACT`, `#NUMBER CHANNEL`, or a JSON object.

    time_ms: by the clock of Redis.
    """

    id: str
    event: bytes
    time_ms: int
    age_s: float


class WebhookLog(Protocol):
    """The facts and the queue of one app, for one node. A method that waits for Redis may raise BrokerUnavailable."""

    def start(self, on_up: Callable[[], None]) -> None:
        """Begin to connect; returns at once. on_up: called for each new connection to Redis; must not block."""

    async def stop(self) -> None:
        """Close the connection. Idempotent."""

    @property
    def is_sender(self) -> bool:
        """True while this node surely is the sender."""

    async def exchange(self, changes: Sequence[bytes], *, is_reset: bool = False) -> Exchanged:
        """Renew the lease and record changes: `+FACT`, `-FACT`, `=FACT` (claim without an event), or a JSON object.

        `#NUMBER CHANNEL`: this many subscribers are on this node; the sum is sent again even if it is the same. `!`:
        this node may send.

        After BrokerUnavailable the caller must repeat the exchange with the same changes: they are applied once.
        is_reset: continue after "lost".
        """

    async def held(self) -> list[str]:
        """List the facts that this node has claimed, as Redis knows them; `n CHANNEL` for those with a number."""

    async def head(self, events_max: int) -> list[QueuedEvent]:
        """Read the oldest events of the queue."""

    async def sent(self, last_id: str) -> int:
        """Remove events up to this one; returns how many are left. "": the queue seems to be empty."""

    async def resign(self) -> None:
        """Give up the lease and the sender's role. Facts that are still claimed are released by another node."""


class CountedClient(Protocol):
    """A client of this node that counts as a subscriber."""

    def tell_number(self, channel: str, event: bytes) -> None:
        """Send an event about the number of a channel's subscribers, if it is still one of them; never waits."""


class WebhookReports(Protocol):
    """Receives the events of a node's connections that webhooks report."""

    def wants(self, app_id: str, name: str) -> bool:
        """Return True if an app has a webhook for events of this name."""

    def report(self, app_id: str, event: dict[str, Any]) -> None:
        """Send an event; never waits. event: with its `name`."""

    def count(self, app_id: str, channel: str, client: CountedClient, *, is_subscribed: bool) -> None:
        """Note that a client is subscribed to a channel, or is not any more; never waits. Idempotent."""
