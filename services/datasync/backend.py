"""DataSyncBackend: the backend authorizes subscriptions and publishes deltas.

Error texts that backends match on: `authorizeSubscription`: `dealer should be a dealer name`, `No such dealer`,
`Missing field 'dealer'`; `publishDeltas`: `Missing field`, `Invalid delta type`, `model must be string`.
"""

import asyncio
from typing import Any

from snorky.gateway import ConfigurationError, channel_name, identity_name
from snorky.services.datasync.deltas import read_delta
from snorky.services.datasync.service import DataSyncService
from snorky.services.datasync.subscriptions import TOKEN_TTL_S, Grant
from snorky.services.rpc import Request, RPCError, RPCService, acknowledged, rpc_command

__all__ = ["DataSyncBackend"]


class DataSyncBackend(RPCService):
    """Commands `authorizeSubscription` and `publishDeltas`. service: the DataSyncService, or its name on this node."""

    def __init__(self, name: str = "datasync_backend", service: str | DataSyncService = "datasync") -> None:
        super().__init__(name)
        self._service = service

    @property
    def service(self) -> DataSyncService:
        """The service whose clients get the deltas. Raises ConfigurationError: this node does not run it."""
        name = self._service
        found = self.cluster.find_service(name) if isinstance(name, str) else name
        if not isinstance(found, DataSyncService):
            raise ConfigurationError(f"{self!r}: this node has no DataSyncService called {name!r}")
        return found

    @rpc_command(name="authorizeSubscription")
    async def authorize_subscription(self, request: Request, items: Any, identity: Any = None) -> str:
        """Authorize a subscription; replies its token, valid for 120 s. items: [{dealer, query, tag?}].

        identity: the only one that may acquire it; None = any client that has the token.
        """
        if not isinstance(items, list):
            raise RPCError("Invalid params", "invalid_params")
        owner = None if identity is None else _identity(identity)
        models = {self._model_of(item): None for item in items}  # without duplicates, in order
        topics = self.service.topics
        positions = await asyncio.gather(*(topics.position(model) for model in models))
        grant = Grant(items, dict(zip(models, positions, strict=True)), owner)
        return await self.tokens.put(grant.value, ttl_s=TOKEN_TTL_S)

    @rpc_command(name="publishDeltas")
    def publish_deltas(self, request: Request, deltas: Any) -> "asyncio.Future[None]":
        """Publish deltas in the given order; replies once Redis has all of them."""
        if not isinstance(deltas, list):
            raise RPCError("Invalid params", "invalid_params")
        read = [read_delta(delta) for delta in deltas]  # check all before publishing any
        for delta in read:
            channel_name(delta.model)
        service = self.service
        topics, history = service.topics, service.history
        return acknowledged(
            asyncio.gather(*(topics.publish(delta.model, delta.value, history=history) for delta in read))
        )

    def _model_of(self, item: Any) -> str:
        """Check an item; return the model of its dealer."""
        if not isinstance(item, dict):
            raise RPCError("Invalid params", "invalid_params")
        for field in ("dealer", "query"):
            if field not in item:
                raise RPCError(f"Missing field '{field}'", "missing_field")
        if not isinstance(item["dealer"], str):
            raise RPCError("dealer should be a dealer name", "invalid_dealer")
        dealer = self.service.dealers.get(item["dealer"])
        if dealer is None:
            raise RPCError("No such dealer", "no_such_dealer")
        dealer.check_query(item["query"])
        return dealer.model


def _identity(identity: Any) -> str:
    try:
        return identity_name(identity)
    except ValueError:
        raise RPCError("Invalid params", "invalid_params") from None
