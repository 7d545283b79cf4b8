"""Call a Snorky gateway from Python: publish, authorize subscriptions, whatever its private services offer.

from snorky import SnorkyBackend, SnorkyError, SnorkyHTTPTransport

backend = SnorkyBackend(SnorkyHTTPTransport("http://127.0.0.1:8003/backend", key="swordfish"))
backend.call("pubsub_backend", "publish", channel="news", message={"title": "Hello"})

Needs Python alone. `AsyncSnorkyBackend` is the same for asyncio, `snorky.django` connects Django's models.
"""

from snorky.aio import AsyncSnorkyBackend
from snorky.backend import Call, Reply, SnorkyBackend
from snorky.errors import SnorkyError, TransportError
from snorky.transport import SnorkyHTTPTransport, Transport

__all__ = [
    "AsyncSnorkyBackend",
    "Call",
    "Reply",
    "SnorkyBackend",
    "SnorkyError",
    "SnorkyHTTPTransport",
    "Transport",
    "TransportError",
]
