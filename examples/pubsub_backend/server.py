"""Pub/sub where clients may subscribe, and only the backend may publish.

    export SNORKY_PRIVATE__API_KEY=$(openssl rand -hex 32)    # the same in both shells
    .venv/bin/python examples/pubsub_backend/server.py
    .venv/bin/python examples/talk.py '{"service": "pubsub", "message":
        {"command": "subscribe", "params": {"channel": "news"}, "callId": 1}}'
    .venv/bin/python examples/pubsub_backend/publish.py news '{"title": "Hello"}'

Two registries: the public one for clients, on port 8002; the private one for the backend, on port 8003.
"""

from typing import Any

from snorky.gateway import ServiceRegistry, run
from snorky.services.pubsub import PubSubBackend, PubSubService
from snorky.services.rpc import Request


class PrivatePubSub(PubSubService):
    def can_publish(self, request: Request, channel: Any, message: Any) -> bool:
        return False


if __name__ == "__main__":
    pubsub = PrivatePubSub("pubsub")
    run(
        public=ServiceRegistry([pubsub]),
        private=ServiceRegistry([PubSubBackend("pubsub_backend", pubsub)]),
    )
