"""Pub/sub: channels for clients, and a way to publish for the backend. The public names."""

from snorky.services.pubsub.backend import PubSubBackend
from snorky.services.pubsub.service import PubSubService

__all__ = ["PubSubBackend", "PubSubService"]
