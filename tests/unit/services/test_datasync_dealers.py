"""Dealers of DataSync: what each subscription sees of a change."""

from collections.abc import Iterable
from typing import Any

import pytest

from snorky.services.datasync import BroadcastDealer, Dealer, Delta, FilterDealer, SimpleDealer, SubscriptionItem
from snorky.services.datasync.deltas import read_delta
from snorky.services.rpc import RPCError

RED = {"id": 1, "name": "Alice", "color": "red"}
BLUE = {"id": 1, "name": "Alice", "color": "blue"}


class PlayersWithColor(SimpleDealer):
    name = "players_with_color"
    model = "Player"

    def get_key_for_model(self, model: Any) -> Any:
        return model["color"]


class AnyPlayer(BroadcastDealer):
    model = "Player"


class Players(FilterDealer):
    model = "Player"


class Handmade(Dealer):
    """A dealer that a user wrote for the original: it has no `concerns`."""

    model = "Player"

    def __init__(self) -> None:
        self.items: set[SubscriptionItem] = set()

    def add_subscription_item(self, item: SubscriptionItem) -> None:
        self.items.add(item)

    def remove_subscription_item(self, item: SubscriptionItem) -> None:
        self.items.remove(item)

    def get_subscription_items_for_model(self, model: Any) -> Iterable[SubscriptionItem]:
        return (item for item in self.items if model["color"] == item.query)


def item_of(query: Any) -> SubscriptionItem:
    return SubscriptionItem(None, "any", query)


RED_ONLY = [(PlayersWithColor, "red"), (Players, ["==", "color", "red"]), (Handmade, "red")]


@pytest.mark.parametrize(("dealer_class", "query"), RED_ONLY)
@pytest.mark.parametrize(
    ("delta", "shown"),
    [
        (Delta("insert", "Player", new=RED), Delta("insert", "Player", new=RED)),
        (Delta("insert", "Player", new=BLUE), None),
        (Delta("delete", "Player", old=RED), Delta("delete", "Player", old=RED)),
        (Delta("delete", "Player", old=BLUE), None),
        (Delta("update", "Player", new=RED, old=BLUE), Delta("insert", "Player", new=RED)),
        (Delta("update", "Player", new=BLUE, old=RED), Delta("delete", "Player", old=RED)),
        (Delta("update", "Player", new=RED, old=RED), Delta("update", "Player", new=RED, old=RED)),
        (Delta("update", "Player", new=BLUE, old=BLUE), None),
    ],
)
def test_an_update_into_sight_is_an_insert_and_out_of_it_a_delete(
    dealer_class: type[Dealer], query: Any, delta: Delta, shown: Delta | None
) -> None:
    dealer, item, other = dealer_class(), item_of(query), item_of(["==", "color", "none"])
    dealer.add_subscription_item(item)
    dealer.add_subscription_item(other)
    assert dealer.show(item, delta) == shown
    assert list(dealer.deal(delta)) == ([] if shown is None else [(shown, {item})])
    dealer.remove_subscription_item(item)
    assert list(dealer.deal(delta)) == []


def test_all_get_all_of_a_broadcast() -> None:
    dealer, items = AnyPlayer(), {item_of(None), item_of(1)}
    for item in items:
        dealer.add_subscription_item(item)
    update = Delta("update", "Player", new=RED, old=BLUE)
    assert list(dealer.deal(update)) == [(update, items)]
    assert all(dealer.show(item, update) == update for item in items)


@pytest.mark.parametrize("key", [None, True, 1, "1", ["a", {"b": [1]}], {"a": [], "b": None}])
def test_a_key_may_be_any_entity(key: Any) -> None:
    dealer, item, other = PlayersWithColor(), item_of(key), item_of("other")
    dealer.add_subscription_item(item)
    dealer.add_subscription_item(other)
    assert set(dealer.get_subscription_items_for_model({"color": key})) == {item}
    dealer.remove_subscription_item(item)
    assert not set(dealer.get_subscription_items_for_model({"color": key}))


@pytest.mark.parametrize("dealer_class", [PlayersWithColor, Handmade])
def test_a_dealer_that_fails_matches_no_subscription(dealer_class: type[Dealer]) -> None:
    dealer, item = dealer_class(), item_of("red")
    dealer.add_subscription_item(item)
    assert list(dealer.deal(Delta("insert", "Player", new=None))) == []
    assert dealer.show(item, Delta("insert", "Player", new={"no": "color"})) is None
    # the side that is known counts
    update = Delta("update", "Player", new=RED, old={})
    assert list(dealer.deal(update)) == [(Delta("insert", "Player", new=RED), {item})]


def test_it_is_called_by_its_class_unless_named() -> None:
    assert (PlayersWithColor().name, AnyPlayer().name) == ("players_with_color", "AnyPlayer")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "Invalid params"),
        ({}, "Missing field"),
        ({"type": "insert"}, "Missing field"),
        ({"model": "Player"}, "Missing field"),
        ({"type": "insert", "model": "Player"}, "Missing field"),
        ({"type": "delete", "model": "Player", "newData": 1}, "Missing field"),
        ({"type": "update", "model": "Player", "newData": 1}, "Missing field"),
        ({"type": "update", "model": "Player", "oldData": 1}, "Missing field"),
        ({"type": "insert", "model": {}, "data": 1}, "model must be string"),
        ({"type": "upsert", "model": "Player", "data": 1}, "Invalid delta type"),
        ({"type": [], "model": "Player", "data": 1}, "Invalid delta type"),
    ],
)
def test_an_invalid_delta_is_refused_with_the_protocols_text(value: Any, text: str) -> None:
    with pytest.raises(RPCError) as refusal:
        read_delta(value)
    assert str(refusal.value) == text


@pytest.mark.parametrize(
    "value",
    [
        {"type": "insert", "model": "Player", "data": None},
        {"type": "delete", "model": "Player", "data": RED},
        {"type": "update", "model": "Player", "newData": RED, "oldData": BLUE},
    ],
)
def test_a_delta_is_written_as_it_was_read(value: Any) -> None:
    assert read_delta(value).value == value
