"""What a subscription tells, in order: messages, and honest words where messages are missing."""

from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Event", "Gap", "Message", "Recovered"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a channel. offset, position: where the channel keeps history, and recovery was asked for.

    position: text to come back with: `subscribe(channel, recover=position)`. is_tombstone: what was published was not
    fit for anybody; None stands in its place.
    """

    channel: Any
    data: Any
    offset: int | None = None
    position: str | None = None
    is_tombstone: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages are missing before what comes next; fetch the state anew. position: where it goes on.

    is_overflow: they were dropped here, because nobody took them in time.
    """

    channel: Any
    position: str | None = None
    is_overflow: bool = False


@dataclass(frozen=True, slots=True)
class Recovered:
    """The connection was lost and is back. is_recovered: every message of between follows; False = some are gone.

    position: where it goes on. None = the channel keeps no history.
    """

    channel: Any
    is_recovered: bool
    position: str | None = None


Event: TypeAlias = Message | Gap | Recovered
