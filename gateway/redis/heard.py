"""Heard: one channel that a node hears from Redis, and what one read brings for it.

Rules:
- A channel has one or two Redis names. Nodes alone publish on the last. The first of two is open to publishers: what
  only nodes may say (`publication.py`) is refused there, and a position becomes a hint.
- What comes on either name is handed out together, in the order in which Redis sent it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from gateway.publication import MARK, as_hint

__all__ = ["HeardChannel", "by_channel"]


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


def by_channel(
    payloads: Mapping[bytes, list[bytes]],
    names: Sequence[bytes],
    channels: Mapping[bytes, HeardChannel],
    on_forged: Callable[[HeardChannel], None],
) -> Mapping[HeardChannel, list[bytes]]:
    """Give what one read brought, by channel, in order; payloads: by Redis name; names: of all of them, in order.

    In nearly all reads only one name of a channel occurs, and nothing is a hint: then nothing is done per payload.
    """
    read: dict[HeardChannel, list[bytes]] = {}
    for name, each in payloads.items():
        channel = channels.get(name)
        if channel is None:
            continue  # it was given up
        if channel in read or (name != channel.names[-1] and max(each) >= MARK):  # one begins with it, or a greater one
            return _one_by_one(payloads, names, channels, on_forged)
        read[channel] = each
    return read


def _one_by_one(
    payloads: Mapping[bytes, list[bytes]],
    names: Sequence[bytes],
    channels: Mapping[bytes, HeardChannel],
    on_forged: Callable[[HeardChannel], None],
) -> Mapping[HeardChannel, list[bytes]]:
    """Do the same with a look at each payload."""
    read: defaultdict[HeardChannel, list[bytes]] = defaultdict(list)
    rests = {name: iter(each) for name, each in payloads.items()}
    for name in names:
        data = next(rests[name])
        channel = channels.get(name)
        if channel is None:
            continue
        if data[:1] != MARK or name == channel.names[-1]:
            read[channel].append(data)
        elif (hint := as_hint(data)) is not None:
            read[channel].append(hint)
        else:
            on_forged(channel)
    return read
