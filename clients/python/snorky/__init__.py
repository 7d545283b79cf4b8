"""Call a Snorky gateway from Python: publish, authorize subscriptions, call its private services.

from snorky import SnorkyBackend, SnorkyError, SnorkyHTTPTransport

backend = SnorkyBackend(SnorkyHTTPTransport("http://127.0.0.1:8003/backend", key="swordfish"))
backend.call("pubsub_backend", "publish", channel="news", message={"title": "Hello"})

This needs no other package. `Publisher` publishes through Redis (snorky-client[redis]). `snorky.aio` has the same for
asyncio, and a client that subscribes to channels (snorky-client[realtime]). `snorky.django` publishes changes of Django
models (snorky-client[django]).
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
