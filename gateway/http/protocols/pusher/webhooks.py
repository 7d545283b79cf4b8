"""What one node has to say for an app's webhooks, and the requests with its events. Pure: no I/O, no clock.

    {"time_ms": 1327078148132, "events": [{"name": "channel_occupied", "channel": "news"}]}

Rules:
- `LocalFacts` knows which facts are true for this node's connections, and which of them it has claimed. What it sends
  is the difference, so a lost request or a fence needs no other repair than to compare again.
- A report (`client_event`, `cache_miss`) waits in this node until Redis has it; beyond a bound it is dropped.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from snorky.gateway.config.pusher import COUNT_EVENT, PusherApp
from snorky.gateway.contracts.webhooks import QueuedEvent
from snorky.gateway.http.protocols.pusher.signatures import sign

__all__ = [
    "LocalFacts",
    "Reports",
    "batch_of",
    "body_of",
    "changes_wanted",
    "fact_of_channel",
    "fact_of_member",
    "headers_of",
]

CHANGES_MAX: Final = 500  # of one exchange
REPORTS_MAX: Final = 1_000  # that wait for Redis, in one node
REPORTS_MAX_BYTES: Final = 1_048_576
BATCH_MAX: Final = 100  # events of one request
BATCH_MAX_BYTES: Final = 262_144

_NAMES: Final = {"+o": "channel_occupied", "-o": "channel_vacated", "+m": "member_added", "-m": "member_removed"}


def fact_of_channel(channel: str) -> str:
    """Return the fact that a channel has a subscriber."""
    return f"o {channel}"


def fact_of_member(channel: str, user: str) -> str:
    """Return the fact that a user is on a channel. channel: without blanks."""
    return f"m {channel} {user}"


def changes_wanted(app: PusherApp) -> list[str]:
    """Return the changes of facts that make an event for an app: "+o", ... See RedisWebhookLog."""
    found = [change for change, name in _NAMES.items() if name in app.webhook_events]
    if app.subscription_counts:
        found += ["=n", "#n"] if COUNT_EVENT in app.webhook_events else ["=n"]
    return found


class LocalFacts:
    """The facts of one app on one node."""

    def __init__(self) -> None:
        self._true: set[str] = set()
        self._claimed: set[str] = set()
        # facts to compare, in the order of their changes; a dict would search its removed entries each time
        self._changed: OrderedDict[str, None] = OrderedDict()

    def set(self, fact: str, *, is_true: bool) -> None:
        """Note whether a fact is true now."""
        if is_true == (fact in self._true):
            return
        if is_true:
            self._true.add(fact)
        else:
            self._true.discard(fact)
        self._changed.pop(fact, None)  # it comes after what has changed before
        self._changed[fact] = None

    def take(self, count: int = CHANGES_MAX) -> list[bytes]:
        """Take changes that Redis does not know yet. Call `confirm`, or `renew` if they were not applied."""
        found: list[bytes] = []
        while self._changed and len(found) < count:
            fact, _ = self._changed.popitem(last=False)
            if (is_true := fact in self._true) != (fact in self._claimed):
                found.append(f"{'+' if is_true else '-'}{fact}".encode())
        return found

    def confirm(self, changes: Iterable[bytes]) -> None:
        """Note that Redis has applied changes that were taken."""
        for change in changes:
            fact = change[1:].decode()
            if change[:1] == b"-":
                self._claimed.discard(fact)
            else:
                self._claimed.add(fact)

    def renew(self, held: Iterable[str]) -> None:
        """Begin again with the facts that this node has claimed, as Redis knows them."""
        self._claimed = set(held)
        begun = sorted(self._true - self._claimed, key=_channels_first)
        self._changed = OrderedDict.fromkeys([*sorted(self._claimed - self._true), *begun])

    def claimed(self) -> list[str]:
        """List the facts that this node has claimed, as it knows them."""
        return sorted(self._claimed, key=_channels_first)

    @property
    def has_changes(self) -> bool:
        """True if there may be something to take."""
        return bool(self._changed)


def _channels_first(fact: str) -> tuple[bool, str]:
    return fact[:1] != "o", fact


class Reports:
    """Events of clients that wait for Redis: encoded, in order, bounded."""

    def __init__(self, *, most: int = REPORTS_MAX, max_bytes: int = REPORTS_MAX_BYTES) -> None:
        self._most = most
        self._max_bytes = max_bytes
        self._waiting: deque[bytes] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, event: dict[str, Any]) -> bool:
        """Add an event; False: there is no place for it."""
        data = msgspec.json.encode(event)
        if len(self._waiting) >= self._most or self._bytes + len(data) > self._max_bytes:
            return False
        self._waiting.append(data)
        self._bytes += len(data)
        return True

    def first(self, count: int) -> list[bytes]:
        """Return the oldest events, at most BATCH_MAX_BYTES of them, but always one."""
        found: list[bytes] = []
        size = 0
        for each in self._waiting:
            size += len(each)
            if len(found) >= count or (found and size > BATCH_MAX_BYTES):
                break
            found.append(each)
        return found

    def remove(self, count: int) -> None:
        """Remove the oldest events: Redis has them."""
        for _ in range(count):
            self._bytes -= len(self._waiting.popleft())


def batch_of(events: Sequence[QueuedEvent]) -> list[QueuedEvent]:
    """Return the first of these events, as many as one request takes."""
    found: list[QueuedEvent] = []
    size = 0
    for each in events[:BATCH_MAX]:
        size += len(each.event)
        if found and size > BATCH_MAX_BYTES:
            break
        found.append(each)
    return found


def body_of(batch: Sequence[QueuedEvent], time_ms: int) -> bytes:
    """Encode a request. time_ms: of its first attempt; libraries of backends refuse what is older than 5 minutes."""
    return b'{"time_ms":%d,"events":[%b]}' % (time_ms, b",".join(filter(None, map(_encoded, batch))))


def headers_of(app: PusherApp, body: bytes) -> dict[str, str]:
    """Return the headers of a request."""
    return {
        "Content-Type": "application/json",
        "X-Pusher-Key": app.key,
        "X-Pusher-Signature": sign(app, body.decode()),
    }


def _encoded(queued: QueuedEvent) -> bytes:
    event = queued.event
    if event[:1] == b"{":
        return event
    if event[:1] == b"#":
        number, _, counted = event[1:].decode().partition(" ")
        return msgspec.json.encode({"name": COUNT_EVENT, "channel": counted, COUNT_EVENT: int(number)})
    name = _NAMES.get(event[:2].decode(errors="replace"))
    if name is None:
        return b""  # of a newer node: it must not stop what follows
    channel, about = event[3:].decode(), dict[str, str]()
    if event[1:2] == b"m":  # names of presence channels have no blank; those of users' channels may have some
        channel, _, about["user_id"] = channel.partition(" ")
    return msgspec.json.encode({"name": name, "channel": channel, **about})
