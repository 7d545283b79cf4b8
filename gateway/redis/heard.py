"""Heard: one channel that a node hears from Redis, and what one read brings for it.

Rules:
- A channel has one or two Redis names. Nodes alone publish on the last. The first of two is open to publishers: what
  only nodes may say (`publication.py`) is refused there, and a position becomes a hint.
- What comes on either name is handed out together, in the order in which Redis sent it.
"""

import asyncio
from collections.abc import Callable, Mapping

from gateway.publication import MARK, as_hint

__all__ = ["HeardChannel", "Read"]


class HeardChannel:
    """One channel: what is wanted, and how far Redis has followed."""

    __slots__ = ("confirmation", "is_asked", "is_confirmed", "is_held", "key", "names", "waiters")

    def __init__(self, key: str, names: tuple[bytes, ...]) -> None:
        self.key = key
        self.names = names
        self.is_held = False
        self.waiters = 0
        self.is_asked = False  # SUBSCRIBE is sent, on the present wire
        self.is_confirmed = False  # and answered
        self.confirmation: asyncio.Future[None] | None = None  # shared by who waits

    @property
    def is_wanted(self) -> bool:
        return self.is_held or self.waiters > 0

    def settle(self, error: Exception | None) -> None:
        """Wake who waits."""
        future, self.confirmation = self.confirmation, None
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
            future.exception()  # the waiter may be gone; then nobody is owed this


class Read(dict[bytes, Callable[[bytes], None]]):
    """One read: what takes the next payload of a Redis name. In nearly all only one of a channel's names occurs.

    Then nothing is done per payload but to append it, and the list is looked through at once, by its greatest.
    """

    def __init__(self, by_name: Mapping[bytes, HeardChannel], on_forged: Callable[[HeardChannel], None]) -> None:
        self._batch: dict[HeardChannel, list[bytes]] = {}
        self._unchecked: dict[HeardChannel, list[bytes]] = {}  # of these: all from the name that is open to publishers
        self._by_name = by_name
        self._on_forged = on_forged

    def __missing__(self, name: bytes) -> Callable[[bytes], None]:
        channel = self._by_name.get(name)
        if channel is None:
            take: Callable[[bytes], None] = _ignore
        else:
            is_open, is_first = name != channel.names[-1], channel not in self._batch
            payloads = self._batch.setdefault(channel, [])  # the same for both names: their order is kept
            take = self._checking(channel, payloads) if is_open and not is_first else payloads.append
            if is_open and is_first:
                self._unchecked[channel] = payloads
            elif not is_first and not is_open:
                self._check(channel)
                self[channel.names[0]] = self._checking(channel, payloads)
        self[name] = take
        return take

    def batch(self) -> Mapping[HeardChannel, list[bytes]]:
        """Give what was taken, by channel, in order."""
        for channel, payloads in tuple(self._unchecked.items()):
            if max(payloads) >= MARK:  # at least one begins with that byte, or a greater one
                self._check(channel)
        return self._batch

    def _check(self, channel: HeardChannel) -> None:
        payloads = self._unchecked.pop(channel)
        taken = payloads[:]
        payloads.clear()
        take = self._checking(channel, payloads)
        for data in taken:
            take(data)

    def _checking(self, channel: HeardChannel, payloads: list[bytes]) -> Callable[[bytes], None]:
        """Make what takes from a name that is open to publishers."""

        def take(data: bytes) -> None:
            if data[:1] != MARK:
                payloads.append(data)
            elif (hint := as_hint(data)) is not None:
                payloads.append(hint)
            else:
                self._on_forged(channel)

        return take


def _ignore(data: bytes) -> None:
    """Take what comes for a channel that was given up."""
