"""The events of a subscription, in order: messages, and notices of missing messages."""

from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Event", "Gap", "Message", "Recovered"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a channel. offset, position: set if the channel keeps a history and `recover` was given.

    position: the text to recover from: `subscribe(channel, recover=position)`. is_tombstone: the published message was
    invalid; `data` is None instead.
    """

    channel: Any
    data: Any
    offset: int | None = None
    position: str | None = None
    is_tombstone: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages are missing before the next event; fetch the state again. position: where delivery continues.

    is_overflow: this client dropped them, because the program did not read them in time.
    """

    channel: Any
    position: str | None = None
    is_overflow: bool = False


@dataclass(frozen=True, slots=True)
class Recovered:
    """The connection was lost and restored. is_recovered: all missed messages follow; False = some are lost.

    position: where delivery continues; None = the channel keeps no history.
    """

    channel: Any
    is_recovered: bool
    position: str | None = None


Event: TypeAlias = Message | Gap | Recovered
