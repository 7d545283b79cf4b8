"""Call a Snorky gateway from Python: publish, authorize subscriptions, whatever its private services offer.

from snorky import SnorkyBackend, SnorkyError, SnorkyHTTPTransport

backend = SnorkyBackend(SnorkyHTTPTransport("http://127.0.0.1:8003/backend", key="swordfish"))
backend.call("pubsub_backend", "publish", channel="news", message={"title": "Hello"})

Needs Python alone. `Publisher` publishes through Redis (snorky-client[redis]); `snorky.aio` has the same for asyncio
and a client that hears channels (snorky-client[realtime]); `snorky.django` connects Django's models.
"""

from snorky.aio import AsyncSnorkyBackend
from snorky.backend import Call, Reply, SnorkyBackend
from snorky.errors import HistoryNotKept, PublishError, PublishManyError, SnorkyError, TransportError
from snorky.position import Position
from snorky.publication import Publication, Receipt
from snorky.publisher import Publisher
from snorky.transport import SnorkyHTTPTransport, Transport

__all__ = [
    "AsyncSnorkyBackend",
    "Call",
    "HistoryNotKept",
    "Position",
    "Publication",
    "PublishError",
    "PublishManyError",
    "Publisher",
    "Receipt",
    "Reply",
    "SnorkyBackend",
    "SnorkyError",
    "SnorkyHTTPTransport",
    "Transport",
    "TransportError",
]
