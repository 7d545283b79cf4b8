"""DataSyncService: clients acquire subscriptions by tokens, on any node, and get the deltas that match them.

Notification: {"type": "delta", "delta": DELTA}, with the item's "tag" in the delta if it has one.

Rules:
- A node listens to a model's topic while one of its own clients subscribes to that model, and sends the deltas to its
  own clients only.
- A client that acquires a subscription first gets the deltas published since the token was authorized: from history,
  as fast as the client reads them, then those that arrived meanwhile. Then it gets live deltas. Offsets decide where
  each part begins, so no delta is lost or sent twice.
- Where continuity is lost (Redis lost deltas, or too many were missed), the connection is closed with 4010: the client
  reconnects and reads the database again. The protocol of 2016 has no message for this.
"""

from collections.abc import Iterable
from typing import Any, Final

from snorky.gateway import Access, BrokerUnavailable, ConfigurationError, Connection, History, Rules, Unmatched
from snorky.services.access_rules import ModelRule
from snorky.services.datasync.dealers import Dealer
from snorky.services.datasync.dealing import Dealers
from snorky.services.datasync.exchange import Exchange, NoSuchSubscription
from snorky.services.datasync.subscriptions import TOKEN_TTL_S, Grant, Holdings
from snorky.services.requests import check_allowed
from snorky.services.rpc import Request, RPCError, RPCService, rpc_command

__all__ = ["DataSyncService"]

TOKEN_MAX: Final = 255  # characters; ours have 32


class DataSyncService(RPCService):
    """Sends deltas to the clients that subscribe to them. dealers: classes, instances, or "module:Class".

    history_ttl_s: how long deltas can be replayed; above the 120 s for which a token is valid. history_size: how many
    deltas of one model can be replayed, so that a busy model does not fill Redis. models: rules for acquiring
    subscriptions, as ModelRule or as tables of the settings. Without a rule every client may that has a
    token of `authorizeSubscription`, because the backend has permitted it; unmatched = "closed" forbids that.
    """

    reloadable_options = ("models", "unmatched")

    def __init__(
        self,
        name: str = "datasync",
        dealers: Iterable[Dealer | type[Dealer] | str] = (),
        *,
        history_ttl_s: float = 180.0,
        history_size: int = 100_000,
        models: Iterable[ModelRule | dict[str, Any]] = (),
        unmatched: Unmatched = "open",
    ) -> None:
        super().__init__(name)
        if history_ttl_s <= TOKEN_TTL_S:
            raise ConfigurationError(f"history_ttl_s: must be above {TOKEN_TTL_S:g}, for which a token is valid")
        self.access = Access(name, Rules.read(models, ModelRule("*"), "models"), unmatched)
        self.history = History(history_ttl_s, history_size)
        self.dealers = Dealers(dealers)
        self._exchange = Exchange(self, self.dealers, self.history)

    def register_dealer(self, dealer: Dealer | type[Dealer]) -> Dealer:
        """Add a dealer; returns the instance. Raises ConfigurationError."""
        return self.dealers.register(dealer)

    def unregister_dealer(self, dealer: Dealer) -> None:
        """Remove a dealer. Only before clients connect."""
        self.dealers.unregister(dealer)

    @rpc_command(name="acquireSubscription")
    async def acquire_subscription(self, request: Request, token: Any) -> None:
        """Start the subscription of a token; sends its deltas from the moment of authorization on."""
        _demand_text(token)
        holdings = self._holdings(request.connection)
        found = await self.tokens.read(token)
        if found is not None:  # a client that may not have it must not consume it
            self._demand_acquire(request, Grant.read(found))
        taker = holdings.attempt(token)
        try:
            value = await self.tokens.take(token, taker=taker)
            if value is None:
                raise NoSuchSubscription
            grant = Grant.read(value)
            self._demand_acquire(request, grant)
            subscription = await self._exchange.acquire(request.connection, grant)
        except BrokerUnavailable:  # the token may already be consumed: keep the taker, so this client may retry
            raise
        except BaseException:
            holdings.attempts.pop(token, None)
            raise
        holdings.attempts.pop(token, None)
        holdings.subscriptions[token] = subscription

    @rpc_command(name="cancelSubscription")
    def cancel_subscription(self, request: Request, token: Any) -> None:
        """End a subscription that this client acquired."""
        _demand_text(token)
        subscription = self._holdings(request.connection).subscriptions.pop(token, None)
        if subscription is None:
            raise NoSuchSubscription
        self._exchange.leave(subscription)

    def on_disconnect(self, connection: Connection) -> None:
        """End all subscriptions of a client."""
        holdings: Holdings | None = connection.data.pop(self.name, None)
        for subscription in [] if holdings is None else list(holdings.subscriptions.values()):
            self._exchange.leave(subscription)

    def _demand_acquire(self, request: Request, grant: Grant) -> None:
        check_allowed(grant.identity is None or grant.identity == request.identity)
        for model in grant.positions:
            self.demand(request, "acquire", model)

    def _holdings(self, connection: Connection) -> Holdings:
        holdings: Holdings = connection.data.setdefault(self.name, Holdings())
        return holdings


def _demand_text(token: Any) -> None:
    if not isinstance(token, str):
        raise RPCError("token must be string", "invalid_token")
    if len(token) > TOKEN_MAX:
        raise NoSuchSubscription
