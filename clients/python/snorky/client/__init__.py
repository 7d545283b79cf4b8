"""Call a Snorky gateway from Python: publish, authorize subscriptions, call its private services.

from snorky.client import SnorkyBackend, SnorkyError, SnorkyHTTPTransport

backend = SnorkyBackend(SnorkyHTTPTransport("http://127.0.0.1:8003/backend", key="swordfish"))
backend.call("pubsub_backend", "publish", channel="news", message={"title": "Hello"})

This needs no other package. `Publisher` publishes through Redis (snorky-client[redis]). `snorky.client.aio` has the
same for asyncio, and a client that subscribes to channels (snorky-client[realtime]). `snorky.client.tokens` makes the
tokens of clients (snorky-client[tokens]). `snorky.client.django` publishes changes of Django models
(snorky-client[django]).
"""

from snorky.client.aio import AsyncSnorkyBackend
from snorky.client.backend import Call, Reply, SnorkyBackend
from snorky.client.errors import HistoryNotKept, PublishError, PublishManyError, SnorkyError, TransportError
from snorky.client.http.transport import SnorkyHTTPTransport, Transport
from snorky.client.position import Position
from snorky.client.publication import Publication
from snorky.client.receipt import Receipt
from snorky.client.redis.publisher import Publisher

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
