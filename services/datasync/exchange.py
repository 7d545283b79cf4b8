"""Exchange: the subscriptions of one node: it starts them, sends them deltas and ends them.

Rules:
- A node listens to a model's topic from before its first subscription reads history until after its last one ends.
- The items of a new subscription are added to their dealers at once, but get no live deltas until the subscription has
  read history. From then on they get live deltas whose offset is above the last one sent. No `await` separates the end
  of the replay from this switch.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

import msgspec
import structlog

from snorky.gateway import CloseCode, Connection, ConnectionClosed, History, Position, Publication, Service
from snorky.services.datasync.dealing import Dealers
from snorky.services.datasync.deltas import Delta, read_delta
from snorky.services.datasync.feed import Feed
from snorky.services.datasync.filters import key_of
from snorky.services.datasync.subscriptions import Grant, Subscription, SubscriptionItem
from snorky.services.rpc import RPCError

__all__ = ["Exchange", "NoSuchSubscription"]

CHUNK: Final = 100  # deltas of history to send before checking the client's outbox again
PACE_S: Final = 0.005
SLOW_S: Final = 10.0  # a client whose outbox stays too full for this time is a slow consumer

_log = structlog.get_logger("snorky.datasync")


class NoSuchSubscription(RPCError):
    """The token is unknown, or the history to replay from is gone."""

    def __init__(self) -> None:
        super().__init__("No such subscription", "no_such_subscription")


class Exchange:
    """Passes deltas from feeds to subscriptions. service: owns the topics; its name is in the envelopes."""

    def __init__(self, service: Service, dealers: Dealers, history: History) -> None:
        self._service = service
        self._history = history
        self._dealers = dealers
        self._feeds: dict[str, Feed] = {}
        self._subscriptions: dict[str, set[Subscription]] = {}  # by model

    async def acquire(self, connection: Connection, grant: Grant) -> Subscription:
        """Start a subscription. On return all deltas since the grant's positions were sent, and later ones will be.

        Raises NoSuchSubscription, BrokerUnavailable, ConnectionClosed; then the subscription is removed again.
        """
        subscription = Subscription(connection)
        for written in grant.items:
            dealer = self._dealers.get(written["dealer"])
            if dealer is None:
                raise NoSuchSubscription  # this node's dealers differ from those of the node that authorized
            extra = {"tag": written["tag"]} if "tag" in written else None
            item = SubscriptionItem(subscription, dealer.name, written["query"], extra)
            subscription.items.setdefault(dealer.model, []).append(item)
        try:
            for model in subscription.items:
                await self._join(subscription, model, grant.positions[model])
            if connection.is_closed:
                raise ConnectionClosed
        except BaseException:
            self.leave(subscription)
            raise
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """End a subscription, also one that is still starting. Idempotent."""
        models, subscription.models = subscription.models, []
        for model in models:
            for item in subscription.items[model]:
                dealer = self._dealers.get(item.dealer_name)
                if item.is_dealt and dealer is not None:
                    item.is_dealt = False
                    dealer.remove_subscription_item(item)
            self._subscriptions[model].discard(subscription)
            if not self._subscriptions[model]:
                del self._subscriptions[model]
                self._feeds.pop(model).close()

    async def _join(self, subscription: Subscription, model: str, since: Position) -> None:
        feed = self._feeds.get(model)
        if feed is None:
            feed = self._feeds[model] = Feed(
                self._service.topics,
                model,
                history=self._history,
                deliver=lambda publication: self._deliver(model, publication),
                lose=lambda: self._lose(model),
            )
        self._subscriptions.setdefault(model, set()).add(subscription)
        subscription.models.append(model)
        await feed.open()
        items = subscription.items[model]
        for item in items:
            dealer = self._dealers.get(item.dealer_name)
            if dealer is not None:
                dealer.add_subscription_item(item)
                item.is_dealt = True
        with feed.joining():
            newer: list[Publication] | None = None
            while newer is None:
                missed = await feed.read(since)
                if missed is None:
                    raise NoSuchSubscription
                since = await self._replay(subscription, model, missed) or since
                newer = feed.newer(since)
            for publication in newer:
                self._show_missed(items, model, publication)
                since = publication.position or since
            for item in items:
                item.after = since.offset

    async def _replay(self, subscription: Subscription, model: str, missed: list[Publication]) -> Position | None:
        """Send missed deltas, no faster than the client reads them; return the last one's position."""
        for at, publication in enumerate(missed):
            if at % CHUNK == 0:
                await _pace(subscription.connection)
            self._show_missed(subscription.items[model], model, publication)
        return missed[-1].position if missed else None

    # -- sending -----------------------------------------------------------------------------------------------------

    def _show_missed(self, items: Iterable[SubscriptionItem], model: str, publication: Publication) -> None:
        delta = _read(model, publication)
        for item in items:
            dealer = self._dealers.get(item.dealer_name)
            shown = None if delta is None or dealer is None else dealer.show(item, delta)
            if shown is not None:
                self._send([item], shown)

    def _deliver(self, model: str, publication: Publication) -> None:
        delta = _read(model, publication)
        if delta is None or publication.position is None:
            return
        offset = publication.position.offset
        for dealer in self._dealers.of_model(model):
            for shown, items in dealer.deal(delta):
                self._send([item for item in items if item.after < offset], shown)

    def _send(self, items: Iterable[SubscriptionItem], delta: Delta) -> None:
        """Send a delta to the clients of items; encoded once for all items with the same tag."""
        alike: dict[Any, tuple[dict[str, Any], list[Connection]]] = {}
        for item in items:
            if item.subscription is not None:
                tag = key_of(item.extra) if item.extra else None
                alike.setdefault(tag, (item.extra, []))[1].append(item.subscription.connection)
        for extra, connections in alike.values():
            self._service.send_to_all(connections, {"type": "delta", "delta": {**delta.value, **extra}})

    def _lose(self, model: str) -> None:
        """Close the connections that get live deltas of a model: at least one delta is missing."""
        _log.warning("continuity lost", model=model[:100])
        for subscription in tuple(self._subscriptions.get(model, ())):
            if subscription.is_live:
                subscription.connection.close(CloseCode.RESYNC, "Resync")


async def _pace(connection: Connection) -> None:
    """Wait until a client's outbox is at most a quarter full. Raises ConnectionClosed."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + SLOW_S
    while connection.pending_bytes > connection.outbox_max_bytes // 4 and not connection.is_closed:
        if loop.time() > until_s:
            connection.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
        await asyncio.sleep(PACE_S)  # no event signals that the outbox has drained
    if connection.is_closed:
        raise ConnectionClosed


def _read(model: str, publication: Publication) -> Delta | None:
    """Parse a publication as a delta of a model; None = it is not one, and is not sent to clients."""
    try:
        delta = read_delta(msgspec.json.decode(publication.payload))
        if delta.model == model:
            return delta
    except (RPCError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    _log.warning("not a delta of its model", model=model[:100])
    return None
