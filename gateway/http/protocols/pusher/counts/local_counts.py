"""LocalCounts: which clients of this node are subscribed to which channels of one app. Pure: no I/O, no clock.

Rules:
- A change is the number of subscribers on this node, not a difference; it may repeat one that Redis knows.
- A channel whose subscribers have changed is reported even if their number is the same: new ones must receive it.
- At most CHANNELS_MAX channels; subscribers of further ones are not counted, and receive no number.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from snorky.gateway.contracts.webhooks import CountedClient
from snorky.gateway.http.protocols.pusher.names import is_channel, kind_of

__all__ = ["CHANNELS_MAX", "COUNTS_MAX", "LocalCounts", "is_count", "is_counted"]

CHANNELS_MAX: Final = 50_000  # 30 MB with names of 200 characters and a subscriber each; 60 MB in Redis
COUNTS_MAX: Final = 100  # of one exchange: about 5 ms in Redis
_FACT: Final = "n "


def is_counted(channel: str) -> bool:
    """Return True if subscribers of this channel are counted: not of presence channels, nor of those of users."""
    kind = kind_of(channel)
    return not kind.is_presence and kind.user is None and is_channel(channel)


def is_count(fact: str) -> bool:
    """Return True for the fact that a channel has a number. See `WebhookLog.held`."""
    return fact.startswith(_FACT)


class LocalCounts:
    """The subscribers of the channels of one app on one node. channels_max: of those that are counted."""

    def __init__(self, *, channels_max: int = CHANNELS_MAX) -> None:
        self._channels_max = channels_max
        self._clients: dict[str, set[CountedClient]] = {}
        self._known: set[str] = set()  # channels of which Redis may have a number of this node
        # channels to report, in the order of their changes; a dict would search its removed entries each time
        self._changed: OrderedDict[str, None] = OrderedDict()

    def add(self, channel: str, client: CountedClient) -> bool:
        """Note that a client is subscribed; False: it is not counted, because there are too many channels."""
        clients = self._clients.get(channel)
        if clients is None:
            if len(self._clients) >= self._channels_max:
                return False
            clients = self._clients[channel] = set()
        clients.add(client)
        self._changed.setdefault(channel)
        return True

    def discard(self, channel: str, client: CountedClient) -> None:
        """Note that a client is not subscribed any more."""
        clients = self._clients.get(channel, set())
        if client not in clients:
            return
        clients.discard(client)
        if clients or channel in self._known:
            self._changed.setdefault(channel)
        else:
            self._changed.pop(channel, None)  # Redis need not know that it has been there
        if not clients:
            del self._clients[channel]

    def has_clients(self, channel: str) -> bool:
        """True if a client is counted on a channel."""
        return channel in self._clients

    def clients(self, channel: str) -> tuple[CountedClient, ...]:
        """Return the clients that are counted on a channel."""
        return tuple(self._clients.get(channel, ()))

    def take(self, count: int) -> list[bytes]:
        """Take changes that Redis does not know yet. Call `confirm`, or `renew` if they were not applied."""
        found: list[bytes] = []
        while self._changed and len(found) < count:
            channel, _ = self._changed.popitem(last=False)
            number = len(self._clients.get(channel, ()))
            if number:
                self._known.add(channel)
            found.append(f"#{number} {channel}".encode())
        return found

    def confirm(self, changes: Iterable[bytes]) -> None:
        """Note that Redis has applied changes that were taken."""
        for change in changes:
            if change.startswith(b"#0 "):
                self._known.discard(change[3:].decode())

    def renew(self, held: Iterable[str]) -> None:
        """Begin again with the facts that this node has claimed, as Redis knows them: report all numbers."""
        self._known = {fact.removeprefix(_FACT) for fact in held if is_count(fact)}
        self._changed = OrderedDict.fromkeys([*sorted(self._known - self._clients.keys()), *self._clients])

    @property
    def has_changes(self) -> bool:
        """True if there may be something to take."""
        return bool(self._changed)
