"""Pub/sub: channels for clients, and a way to publish for the backend. The public names."""

from services.pubsub.backend import PubSubBackend
from services.pubsub.service import PubSubService

__all__ = ["PubSubBackend", "PubSubService"]
