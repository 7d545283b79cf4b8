"""What is written down of a run: what was acknowledged, and what each client was given on each channel.

A message is known by its channel and its number; numbers of a channel are published one after another, so the order
of numbers is the order of acknowledgements.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.publication import Position

__all__ = ["Acked", "Dropped", "Entry", "Gap", "Journal", "Received", "Subscribed", "Uncertain"]


@dataclass(frozen=True, slots=True)
class Acked:
    """A publication that was acknowledged. position: as the acknowledgement told it, None if it does not tell."""

    channel: str
    number: int
    started_s: float
    acked_s: float
    position: Position | None = None
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Uncertain:
    """A publication that ended with an error: it happened once or never. is_unkept: it was sent, and is not kept."""

    channel: str
    number: int
    started_s: float
    ended_s: float
    error: str
    is_unkept: bool = False


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A subscription was confirmed. is_recovered: all since the position that was asked for follows."""

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
    """The client was told that what lies before `position` can be missing."""

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
    """What one client saw on one channel, in order."""

    client: str
    channel: str
    entries: list[Entry] = field(default_factory=list)

    def received(self) -> Sequence[Received]:
        """The messages among it."""
        return [entry for entry in self.entries if isinstance(entry, Received)]
