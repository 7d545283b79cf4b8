"""Dealers: they decide which subscriptions get which deltas of a model.

    class PlayersWithColor(SimpleDealer):
        model = "Player"

        def get_key_for_model(self, model):
            return model["color"]

A dealer holds the subscription items of its own node only. If it raises for a model (a field is missing), the error is
logged and no subscription gets that delta from it.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import structlog

from snorky.services.datasync.deltas import Delta
from snorky.services.datasync.filters import MISSING, Filter, Path, compile_filter, field_of, key_of
from snorky.services.datasync.subscriptions import SubscriptionItem

__all__ = ["BroadcastDealer", "Dealer", "FilterDealer", "SimpleDealer"]

_log = structlog.get_logger("snorky.datasync")


class Dealer(ABC):
    """Finds the subscription items that match a model's data. model: the name of the model this dealer is for."""

    model: str

    @property
    def name(self) -> str:
        """The name by which subscriptions refer to this dealer: the class name unless overridden."""
        return type(self).__name__

    @abstractmethod
    def add_subscription_item(self, item: SubscriptionItem) -> None:
        """Add an item. Raises BadQuery."""

    @abstractmethod
    def remove_subscription_item(self, item: SubscriptionItem) -> None:
        """Remove an item that was added."""

    @abstractmethod
    def get_subscription_items_for_model(self, model: Any) -> Iterable[SubscriptionItem]:
        """Return the items that match a model's data; called twice for an update, with the old and the new data."""

    def check_query(self, query: Any) -> None:  # noqa: B027 - an optional hook
        """Check a query when a subscription is authorized. Raises BadQuery: this dealer cannot use it."""

    def concerns(self, item: SubscriptionItem, model: Any) -> bool:
        """Return whether a model's data matches an item that was added."""
        return item in self.get_subscription_items_for_model(model)

    def deal(self, delta: Delta) -> Iterator[tuple[Delta, set[SubscriptionItem]]]:
        """Yield what to send for a delta: the delta as its recipients see it, and those recipients."""
        new = set() if delta.kind == "delete" else self._items(delta.new)
        old = set() if delta.kind == "insert" else self._items(delta.old)
        for items, is_new, is_old in ((new & old, True, True), (new - old, True, False), (old - new, False, True)):
            shown = delta.shown(is_new, is_old)
            if items and shown is not None:
                yield shown, items

    def show(self, item: SubscriptionItem, delta: Delta) -> Delta | None:
        """Return the delta as one item sees it; None if it does not match."""
        is_new = delta.kind != "delete" and self._concerns(item, delta.new)
        return delta.shown(is_new, delta.kind != "insert" and self._concerns(item, delta.old))

    def _items(self, model: Any) -> set[SubscriptionItem]:
        try:
            return set(self.get_subscription_items_for_model(model))
        except Exception as error:  # the application's method, called with the backend's data
            _log.warning("dealer failed", dealer=self.name, error=repr(error)[:300])
            return set()

    def _concerns(self, item: SubscriptionItem, model: Any) -> bool:
        try:
            return self.concerns(item, model)
        except Exception as error:  # as above
            _log.warning("dealer failed", dealer=self.name, error=repr(error)[:300])
            return False


class BroadcastDealer(Dealer):
    """Every item gets every delta; queries are ignored."""

    def __init__(self) -> None:
        self._items_held: set[SubscriptionItem] = set()

    def add_subscription_item(self, item: SubscriptionItem) -> None:
        self._items_held.add(item)

    def remove_subscription_item(self, item: SubscriptionItem) -> None:
        self._items_held.discard(item)

    def get_subscription_items_for_model(self, model: Any) -> Iterable[SubscriptionItem]:
        return self._items_held

    def concerns(self, item: SubscriptionItem, model: Any) -> bool:
        return True


class SimpleDealer(Dealer):
    """An item gets the deltas of models whose key equals its query. Define `get_key_for_model`."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, set[SubscriptionItem]] = {}

    @abstractmethod
    def get_key_for_model(self, model: Any) -> Any:
        """Return a model's key, any JSON entity; usually the value of a field."""

    def add_subscription_item(self, item: SubscriptionItem) -> None:
        self._by_key.setdefault(key_of(item.query), set()).add(item)

    def remove_subscription_item(self, item: SubscriptionItem) -> None:
        key = key_of(item.query)
        items = self._by_key.get(key, set())
        items.discard(item)
        if not items:
            self._by_key.pop(key, None)

    def get_subscription_items_for_model(self, model: Any) -> Iterable[SubscriptionItem]:
        return self._by_key.get(key_of(self.get_key_for_model(model)), ())

    def concerns(self, item: SubscriptionItem, model: Any) -> bool:
        return key_of(item.query) == key_of(self.get_key_for_model(model))


class _Group:
    """The items that have the same filter."""

    __slots__ = ("filter", "items")

    def __init__(self, compiled: Filter) -> None:
        self.filter = compiled
        self.items: set[SubscriptionItem] = set()


class FilterDealer(Dealer):
    """An item gets the deltas of models that match its query, an expression of `services.datasync.filters`.

    Filters are indexed by their equality comparisons, so a delta is compared only with filters that may match.
    """

    def __init__(self) -> None:
        self._groups: dict[Hashable, _Group] = {}  # by query
        self._by_field: dict[Path, dict[Hashable, set[_Group]]] = {}
        self._unanchored: set[_Group] = set()

    def check_query(self, query: Any) -> None:
        compile_filter(query)

    def add_subscription_item(self, item: SubscriptionItem) -> None:
        key = key_of(item.query)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(compile_filter(item.query))
            if group.filter.anchors is None:
                self._unanchored.add(group)
            for path, value in group.filter.anchors or ():
                self._by_field.setdefault(path, {}).setdefault(value, set()).add(group)
        group.items.add(item)

    def remove_subscription_item(self, item: SubscriptionItem) -> None:
        key = key_of(item.query)
        group = self._groups.get(key)
        if group is None:
            return
        group.items.discard(item)
        if group.items:
            return
        del self._groups[key]
        self._unanchored.discard(group)
        for path, value in group.filter.anchors or ():
            by_value = self._by_field[path]
            by_value[value].discard(group)
            if not by_value[value]:
                del by_value[value]
            if not by_value:
                del self._by_field[path]

    def get_subscription_items_for_model(self, model: Any) -> Iterable[SubscriptionItem]:
        found: set[SubscriptionItem] = set()
        for group in self._unanchored:
            if group.filter.matches(model):
                found |= group.items
        for path, by_value in self._by_field.items():
            value = field_of(model, path)
            if value is not MISSING:
                for group in by_value.get(key_of(value), ()):
                    if group.filter.is_exact or group.filter.matches(model):
                        found |= group.items
        return found

    def concerns(self, item: SubscriptionItem, model: Any) -> bool:
        return self._groups[key_of(item.query)].filter.matches(model)
