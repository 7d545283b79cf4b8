"""Newest: in an outbox, replaces a message by a newer one about the same subject. Pure.

A replaced message leaves an empty place, so that the places of the others stay; they are removed once they are more
than half. So the outbox has at most about twice as many places as messages, and a replacement takes constant time.
Subjects above SUBJECTS_MAX are not remembered: their messages are queued like any other.
"""

from typing import Final

__all__ = ["SUBJECTS_MAX", "Newest"]

SUBJECTS_MAX: Final = 1000  # about 150 KB


class Newest:
    """The places of messages in one outbox, by their subjects."""

    __slots__ = ("_empty", "_places")

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._empty = 0

    def put(self, outbox: list[bytes], subject: bytes, message: bytes) -> int:
        """Append a message, in place of the one with this subject; returns the size of that one, 0 = there is none."""
        place, removed = self._places.get(subject), 0
        if place is not None:
            removed, outbox[place] = len(outbox[place]), b""
            self._empty += 1
        if place is not None or len(self._places) < SUBJECTS_MAX:
            self._places[subject] = len(outbox)
        outbox.append(message)
        if self._empty > len(outbox) // 2:
            self._compact(outbox)
        return removed

    def _compact(self, outbox: list[bytes]) -> None:
        subjects = {place: subject for subject, place in self._places.items()}
        kept = [(subjects.get(place), message) for place, message in enumerate(outbox) if message]
        outbox[:] = [message for _, message in kept]
        self._places = {subject: place for place, (subject, _) in enumerate(kept) if subject is not None}
        self._empty = 0
