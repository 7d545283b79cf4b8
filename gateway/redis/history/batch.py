"""Batch: publications of one channel that one call of the script `publish` publishes.

Rules:
- The call is executed once or not at all, so all publications of a batch have the same outcome.
- They get consecutive positions, in the order of the calls of `append`. Their tags begin with 8 random digits that the
  node sends for each, and all end with the same 8 digits, which the answer has.
- The whole batch has one idempotency key. A publication with a key of its caller is never part of a batch.
"""

import asyncio
import copy
from dataclasses import dataclass
from typing import Final

from snorky.gateway.contracts.history import History
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.protocol.publication import Position
from snorky.gateway.redis.connection.pipeline import fail

__all__ = ["BATCH_MAX", "BATCH_MAX_BYTES", "Batch", "Entry"]

BATCH_MAX: Final = 64  # publications; Redis executes nothing else meanwhile
BATCH_MAX_BYTES: Final = 262_144
_ENTRY_BYTES: Final = 64  # of memory, in addition to the payload


@dataclass(frozen=True, slots=True)
class Entry:
    """One publication. rest: of its header, after the position."""

    future: "asyncio.Future[Position]"
    payload: bytes
    rest: bytes

    @property
    def size(self) -> int:
        """The bytes that it counts for."""
        return len(self.payload) + len(self.rest) + _ENTRY_BYTES


class Batch(asyncio.Future[str]):
    """The request of a batch, as `Pipeline` sees it: its result is the answer. key: the channel. history: its own."""

    def __init__(self, key: str, history: History) -> None:
        super().__init__()
        self.key = key
        self.history = history
        self.entries: list[Entry] = []
        self.size = 0
        self.heads = ""  # of the tags, in the call that was built last

    @property
    def publications(self) -> list[tuple[bytes, bytes]]:
        """The payload and the rest of the header of each."""
        return [(entry.payload, entry.rest) for entry in self.entries]

    def takes(self, entry: Entry, history: History) -> bool:
        """True if there is room for one more publication with this history."""
        has_room = len(self.entries) < BATCH_MAX and self.size + entry.size <= BATCH_MAX_BYTES
        return has_room and history == self.history

    def drop_cancelled(self) -> bool:
        """Remove publications that were cancelled; returns True if there were any."""
        wanted = [entry for entry in self.entries if not entry.future.done()]
        is_changed = len(wanted) < len(self.entries)
        self.entries = wanted
        return is_changed

    def spread(self, answer: str) -> None:
        """Tell each publication its position. answer: the position of the last one. Raises ValueError."""
        last = Position.parse(answer)
        heads = [self.heads[at : at + 8] for at in range(0, len(self.heads), 8)]
        if len(heads) != len(self.entries) or last.tag[:-8] != heads[-1]:
            raise ValueError("not the positions of this batch")
        self.set_result(answer)
        tail, first = last.tag[-8:], last.offset - len(heads) + 1
        for offset, (entry, head) in enumerate(zip(self.entries, heads, strict=True), first):
            if not entry.future.done():
                entry.future.set_result(Position(last.epoch, offset, head + tail))

    def set_exception(self, error: type | BaseException) -> None:
        """Fail each publication at once: in a Cluster they are sent again in the order in which they fail."""
        super().set_exception(error)
        if isinstance(error, BrokerUnavailable):
            for entry in self.entries:
                fail(entry.future, copy.copy(error))
