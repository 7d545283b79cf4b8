"""Exchange: the subscriptions of one node; how they begin, what they are shown, and how they end.

Rules:
- A node hears a model from before the first of its subscriptions reads history until after the last has ended.
- Who joins is known to the dealers at once and shown nothing live until it has read history; from then on what is
  behind the last offset that it was shown. Between the two there is no await.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

import msgspec
import structlog

from gateway import CloseCode, Connection, ConnectionClosed, History, Position, Publication, Service
from services.datasync.dealing import Dealers
from services.datasync.deltas import Delta, read_delta
from services.datasync.feed import Feed
from services.datasync.filters import key_of
from services.datasync.subscriptions import Grant, Subscription, SubscriptionItem
from services.rpc import RPCError

__all__ = ["Exchange", "NoSuchSubscription"]

CHUNK: Final = 100  # deltas of history between two looks at what the client has taken
PACE_S: Final = 0.005
SLOW_S: Final = 10.0  # a client that takes nothing of its history for so long is a slow consumer

_log = structlog.get_logger("snorky.datasync")


class NoSuchSubscription(RPCError):
    """There is no such token, or what it would replay from is gone."""

    def __init__(self) -> None:
        super().__init__("No such subscription", "no_such_subscription")


class Exchange:
    """Between feeds and clients. service: whose topics these are, and whose name is in the envelopes."""

    def __init__(self, service: Service, dealers: Dealers, history: History) -> None:
        self._service = service
        self._history = history
        self._dealers = dealers
        self._feeds: dict[str, Feed] = {}
        self._subscriptions: dict[str, set[Subscription]] = {}  # by model

    async def acquire(self, connection: Connection, grant: Grant) -> Subscription:
        """Begin a subscription: on return all since its positions was sent, and what comes will be.

        Raises NoSuchSubscription, BrokerUnavailable, ConnectionClosed; nothing is left behind.
        """
        subscription = Subscription(connection)
        for written in grant.items:
            dealer = self._dealers.get(written["dealer"])
            if dealer is None:
                raise NoSuchSubscription  # this node has other dealers than the one that authorized
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
        """End a subscription, also one that is about to begin. Idempotent."""
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
        """Send what was missed, no faster than the client takes it; returns where it ends."""
        for at, publication in enumerate(missed):
            if at % CHUNK == 0:
                await _pace(subscription.connection)
            self._show_missed(subscription.items[model], model, publication)
        return missed[-1].position if missed else None

    # -- what is shown -----------------------------------------------------------------------------------------------

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
        """Send a delta to the clients of items: encoded once for all that see it alike."""
        alike: dict[Any, tuple[dict[str, Any], list[Connection]]] = {}
        for item in items:
            if item.subscription is not None:
                tag = key_of(item.extra) if item.extra else None
                alike.setdefault(tag, (item.extra, []))[1].append(item.subscription.connection)
        for extra, connections in alike.values():
            self._service.send_to_all(connections, {"type": "delta", "delta": {**delta.value, **extra}})

    def _lose(self, model: str) -> None:
        """Let those go who were shown something of a model, and now something is missing."""
        _log.warning("continuity lost", model=model[:100])
        for subscription in tuple(self._subscriptions.get(model, ())):
            if subscription.is_live:
                subscription.connection.close(CloseCode.RESYNC, "Resync")


async def _pace(connection: Connection) -> None:
    """Wait until a client has taken most of what was sent. Raises ConnectionClosed."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + SLOW_S
    while connection.pending_bytes > connection.outbox_max_bytes // 4 and not connection.is_closed:
        if loop.time() > until_s:
            connection.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
        await asyncio.sleep(PACE_S)  # a wire tells nobody when it is empty
    if connection.is_closed:
        raise ConnectionClosed


def _read(model: str, publication: Publication) -> Delta | None:
    """Read a delta; None = it is none, which is not for clients to see."""
    try:
        delta = read_delta(msgspec.json.decode(publication.payload))
        if delta.model == model:
            return delta
    except (RPCError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    _log.warning("not a delta of its model", model=model[:100])
    return None
