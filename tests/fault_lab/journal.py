"""The records of a run: acknowledged publications, and what each client received on each channel.

A message is identified by its channel and its number. Numbers of a channel are published one after another, so the
order of numbers is the order of acknowledgements.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from snorky.gateway.protocol.publication import Position

__all__ = ["Acked", "Dropped", "Entry", "Gap", "Journal", "Received", "Subscribed", "Uncertain"]


@dataclass(frozen=True, slots=True)
class Acked:
    """A publication that was acknowledged. position: from the acknowledgement, None if it has none."""

    channel: str
    number: int
    started_s: float
    acked_s: float
    position: Position | None = None
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Uncertain:
    """A publish that ended with an error: it happened once or never. is_unkept: delivered but not stored."""

    channel: str
    number: int
    started_s: float
    ended_s: float
    error: str
    is_unkept: bool = False


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A subscription was confirmed. is_recovered: everything since the requested position follows."""

    at_s: float
    position: Position | None
    is_recovered: bool


@dataclass(frozen=True, slots=True)
class Received:
    """One message, live or replayed."""

    at_s: float
    number: int
    position: Position | None = None
    is_replayed: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """The client was notified that messages up to `position` can be missing."""

    at_s: float
    position: Position


@dataclass(frozen=True, slots=True)
class Dropped:
    """The connection ended. code: of the close frame, None if there was none."""

    at_s: float
    code: int | None


Entry = Subscribed | Received | Gap | Dropped


@dataclass(slots=True)
class Journal:
    """What one client received on one channel, in order."""

    client: str
    channel: str
    entries: list[Entry] = field(default_factory=list)

    def received(self) -> Sequence[Received]:
        """Its messages."""
        return [entry for entry in self.entries if isinstance(entry, Received)]
