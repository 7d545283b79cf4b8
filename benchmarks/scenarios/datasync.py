"""`python -m benchmarks.scenarios.datasync`: cost of a delta that matches 10 of 10,000 filter subscriptions of a node.

A delta's field values select the filters that it may match. Filters without an equality are evaluated one by one, but
each once, however many subscriptions have it. Figures: benchmarks/README.md.
"""

import asyncio
import statistics
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import msgspec

from snorky.gateway import Node, ServiceRegistry
from snorky.gateway.protocol.publication import Position, Publication
from snorky.gateway.testing.broker import LoopbackBroker
from snorky.services.datasync import DataSyncService, Delta, FilterDealer, SubscriptionItem
from snorky.services.datasync.subscriptions import Subscription
from tests.support.fakes.fake_wire import JSON as DIALECT
from tests.support.fakes.fake_wire import FakeTransport

__all__: list[str] = []

SUBSCRIPTIONS = 10_000
MATCHING = 10
REPETITIONS = 7


class Tasks(FilterDealer):
    model = "Task"


class NullWire(FakeTransport):
    """A wire that discards everything."""

    def write(self, data: bytes) -> None:
        """Drop it."""


def room_of(number: int) -> Any:
    """An equality that every subscription has, 10 of them the same, and a condition that must be evaluated."""
    return ["and", ["==", "room.id", number // MATCHING], ["or", ["<", "level", number % MATCHING + 2], [">", "n", -1]]]


def threshold_of(number: int) -> Any:
    """No equality, and all different; 10 match."""
    return [">=", "level", number - MATCHING + 2]


def same_threshold(_number: int) -> Any:
    """No equality, and all the same; none matches."""
    return [">=", "level", 5]


DELTA = Delta("insert", "Task", new={"n": 1, "level": 1, "room": {"id": 0, "name": "kitchen"}, "title": "x" * 60})


def cost_us(deal: Callable[[], object], passes: int) -> float:
    """Median of repetitions: microseconds a delta."""
    deal()
    figures = []
    for _ in range(REPETITIONS):
        began_ns = perf_counter_ns()
        for _ in range(passes):
            deal()
        figures.append((perf_counter_ns() - began_ns) / 1000 / passes)
    return statistics.median(figures)


def dealer_of(count: int, query_of: Callable[[int], Any]) -> Tasks:
    """A dealer with that many subscriptions."""
    dealer = Tasks()
    for number in range(count):
        dealer.add_subscription_item(SubscriptionItem(None, "Tasks", query_of(number)))
    return dealer


def matched(dealer: Tasks) -> int:
    """How many items get the delta."""
    return sum(len(items) for _, items in dealer.deal(DELTA))


def touch_all(dealer: Tasks) -> Callable[[], int]:
    """Evaluate every filter, as without an index."""
    groups = list(dealer._groups.values())
    return lambda: sum(group.filter.matches(DELTA.new) for group in groups)


async def delivery(count: int) -> tuple[Callable[[], object], int]:
    """The whole path from a publication to the wires of that many clients, each with one subscription."""
    service = DataSyncService(dealers=[Tasks])
    registry = ServiceRegistry([service])
    node = Node(LoopbackBroker())
    node.attach(registry)
    dealer = service.dealers.get("Tasks")
    assert dealer is not None
    for number in range(count):
        connection = node.new_connection(NullWire(), DIALECT)
        item = SubscriptionItem(Subscription(connection), "Tasks", room_of(number))
        item.after = 0
        dealer.add_subscription_item(item)
    publication = Publication(msgspec.json.encode(DELTA.value), Position("e", 1, "t"), "t0")
    return (lambda: service._exchange._deliver("Task", publication)), matched(dealer)  # type: ignore[arg-type]


def main() -> None:
    """Print the table."""
    print(f"a delta that matches {MATCHING} subscriptions, microseconds on one core, median of {REPETITIONS}")
    few, many = dealer_of(MATCHING, room_of), dealer_of(SUBSCRIPTIONS, room_of)
    rows: list[tuple[str, int, float]] = []
    for name, dealer in ((f"{MATCHING} filters", few), (f"{SUBSCRIPTIONS:,} filters", many)):
        rows.append((f"find: {name}", matched(dealer), cost_us(lambda dealer=dealer: matched(dealer), 2000)))  # type: ignore[misc]
    every = touch_all(many)
    rows.append((f"find: {SUBSCRIPTIONS:,} filters, no index", every(), cost_us(every, 5)))
    for name, query_of, passes in (("none alike", threshold_of, 5), ("all alike", same_threshold, 500)):
        dealer = dealer_of(SUBSCRIPTIONS, query_of)
        name = f"find: {SUBSCRIPTIONS:,} filters without ==, {name}"
        rows.append((name, matched(dealer), cost_us(lambda dealer=dealer: matched(dealer), passes)))  # type: ignore[misc]
    for count in (MATCHING, SUBSCRIPTIONS):
        deliver, found = asyncio.run(delivery(count))
        rows.append((f"publication to wires: {count:,} clients", found, cost_us(deliver, 1000)))
    for name, found, figure_us in rows:
        print(f"{name:<52}{found:>8} match{figure_us:>12.1f} us")


if __name__ == "__main__":
    main()
