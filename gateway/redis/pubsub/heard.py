"""Heard: a channel to which a node is subscribed in Redis, and the grouping of received payloads by channel.

Rules:
- A channel has one or two Redis names. Only nodes publish on the last one. If there are two, publishers may use the
  first: there, headers that only nodes may send (`publication.py`) are rejected, and a position becomes a hint.
- The payloads of both names are delivered together, in the order in which Redis sent them.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from snorky.gateway.protocol.publication import MARK, as_hint

__all__ = ["FindChannel", "HeardChannel", "by_channel"]


class HeardChannel:
    """One channel: whether the node wants the subscription, and its state in Redis."""

    __slots__ = ("confirmation", "is_asked", "is_confirmed", "is_held", "key", "waiters")

    def __init__(self, key: str) -> None:
        self.key = key
        self.is_held = False
        self.waiters = 0
        self.is_asked = False  # SUBSCRIBE was sent on the present connection
        self.is_confirmed = False  # and confirmed
        self.confirmation: asyncio.Future[None] | None = None  # shared by all waiting callers

    @property
    def is_wanted(self) -> bool:
        return self.is_held or self.waiters > 0

    def settle(self, error: Exception | None) -> None:
        """Complete the confirmation of all waiting callers. error: None = confirmed."""
        future, self.confirmation = self.confirmation, None
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
            future.exception()  # mark it as retrieved: the waiting callers may have been cancelled


# By a Redis name: its channel, and True if only nodes publish on this name; None = it is not subscribed.
FindChannel = Callable[[bytes], tuple[HeardChannel, bool] | None]


def by_channel(
    payloads: Mapping[bytes, list[bytes]],
    names: Sequence[bytes],
    find: FindChannel,
    on_forged: Callable[[HeardChannel], None],
) -> Mapping[HeardChannel, list[bytes]]:
    """Group the payloads of one read by channel, in order. payloads: by Redis name. names: of each payload, in order.

    on_forged: called for each rejected payload. In nearly all reads only one name of a channel occurs and no payload
    has a header: then no work is done per payload.
    """
    read: dict[HeardChannel, list[bytes]] = {}
    for name, each in payloads.items():
        found = find(name)
        if found is None:
            continue  # it was unsubscribed
        channel, is_of_nodes = found
        if channel in read or (not is_of_nodes and max(each) >= MARK):  # some payload may have a header
            return _one_by_one(payloads, names, find, on_forged)
        read[channel] = each
    return read


def _one_by_one(
    payloads: Mapping[bytes, list[bytes]],
    names: Sequence[bytes],
    find: FindChannel,
    on_forged: Callable[[HeardChannel], None],
) -> Mapping[HeardChannel, list[bytes]]:
    """Group the payloads like `by_channel`, but check each one."""
    read: defaultdict[HeardChannel, list[bytes]] = defaultdict(list)
    rests = {name: iter(each) for name, each in payloads.items()}
    for name in names:
        data = next(rests[name])
        found = find(name)
        if found is None:
            continue
        channel, is_of_nodes = found
        if data[:1] != MARK or is_of_nodes:
            read[channel].append(data)
        elif (hint := as_hint(data)) is not None:
            read[channel].append(hint)
        else:
            on_forged(channel)
    return read
