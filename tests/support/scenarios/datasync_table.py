"""The protocol's DataSync as scenarios: every command, text and notification, with tests.support.scenarios.dealers."""

from collections.abc import Iterator
from typing import Any

from tests.support.scenarios.conformance import Scenario, Step, no, ok, scenario

__all__ = ["DATASYNC_SCENARIOS"]

NO_SUCH = "No such subscription"


class Token:
    """Equals a token, and stores it."""

    value = ""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str) or len(other) != 32:
            return False
        self.value = other
        return True

    __hash__ = None  # type: ignore[assignment]  # never a key


def authorize(token: Token, *items: Any) -> Step:
    return ok("backend", "datasync_backend.authorizeSubscription", token, items=list(items))


def publish(brings: Any, *deltas: Any) -> Step:
    return ok("backend", "datasync_backend.publishDeltas", None, brings, deltas=list(deltas))


def told(delta: Any, **tag: Any) -> dict[str, Any]:
    return {"type": "delta", "delta": {**delta, **tag}}


def insert(data: Any, model: str = "Player") -> dict[str, Any]:
    return {"type": "insert", "model": model, "data": data}


def delete(data: Any) -> dict[str, Any]:
    return {"type": "delete", "model": "Player", "data": data}


def update(new: Any, old: Any) -> dict[str, Any]:
    return {"type": "update", "model": "Player", "newData": new, "oldData": old}


RED = {"id": 1, "color": "red"}
BLUE = {"id": 1, "color": "blue"}
RED_ONES = {"dealer": "players_with_color", "query": "red"}


@scenario(ann=None, bob=None, eve=None)
def datasync_deltas_and_what_they_are_to_whom() -> Iterator[Step]:
    red, filtered = Token(), Token()
    yield authorize(red, RED_ONES)
    yield authorize(filtered, {"dealer": "Players", "query": ["not", ["==", "color", "red"]], "tag": ["others"]})
    yield publish({}, insert(RED), insert(BLUE))
    missed = {"ann": [told(insert(RED))]}
    yield ok("ann", "datasync.acquireSubscription", None, missed, token=red.value)
    others = {"tag": ["others"]}
    missed = {"bob": [told(insert(BLUE), **others)]}
    yield ok("bob", "datasync.acquireSubscription", None, missed, token=filtered.value)
    brings = {"ann": [told(delete(RED))], "bob": [told(insert(BLUE), **others)]}
    yield publish(brings, update(BLUE, RED))
    brings = {"ann": [told(insert(RED))], "bob": [told(delete(BLUE), **others)]}
    yield publish(brings, update(RED, BLUE))
    named = {**RED, "name": "Alice"}
    yield publish({"ann": [told(update(named, RED))]}, update(named, RED))
    yield publish({"ann": [told(delete(named)), told(insert(RED))]}, delete(named), insert(RED))
    yield ok("ann", "datasync.cancelSubscription", token=red.value)
    yield publish({}, insert(RED))


@scenario(ann=None, bob=None)
def datasync_tokens() -> Iterator[Step]:
    token = Token()
    for command in ("datasync.acquireSubscription", "datasync.cancelSubscription"):
        yield no("ann", command, "token must be string", token=5)
        yield no("ann", command, NO_SUCH, token="foo")
        yield no("ann", command, NO_SUCH, token="f" * 32)
        yield no("ann", command, "Invalid params")
    yield authorize(token, RED_ONES)
    yield no("ann", "datasync.cancelSubscription", NO_SUCH, token=token.value)
    yield ok("ann", "datasync.acquireSubscription", token=token.value)
    yield no("bob", "datasync.acquireSubscription", NO_SUCH, token=token.value)
    yield no("bob", "datasync.cancelSubscription", NO_SUCH, token=token.value)
    yield publish({"ann": [told(insert(RED))]}, insert(RED))
    yield ok("ann", "datasync.cancelSubscription", token=token.value)
    yield no("ann", "datasync.cancelSubscription", NO_SUCH, token=token.value)
    yield no("ann", "datasync.nonsense", "Unknown command")


@scenario()
def datasync_backend() -> Iterator[Step]:
    for items, text in (
        ([{"dealer": {}, "query": 1}], "dealer should be a dealer name"),
        ([{"dealer": "whatever", "query": 1}], "No such dealer"),
        ([{"query": 1}], "Missing field 'dealer'"),
        ([RED_ONES, {"query": 1}], "Missing field 'dealer'"),
        ([{"dealer": "Players"}], "Missing field 'query'"),
        ([RED_ONES, {"dealer": "Players", "query": ["~", "color", "red"]}], "Invalid query"),
        (5, "Invalid params"),
    ):
        yield no("backend", "datasync_backend.authorizeSubscription", text, items=items)
    for deltas, text in (
        ([{"type": "insert", "model": "Player"}], "Missing field"),
        ([{"type": "update", "model": "Player", "newData": 1}], "Missing field"),
        ([{"type": "insert", "data": 1}], "Missing field"),
        ([insert(1), {"type": "replace", "model": "Player", "data": 1}], "Invalid delta type"),
        ([insert(1) | {"model": 5}], "model must be string"),
        (5, "Invalid params"),
    ):
        yield no("backend", "datasync_backend.publishDeltas", text, deltas=deltas)
    yield publish({})
    yield no("backend", "datasync_backend.publishDeltas", "Invalid params")
    yield no("backend", "datasync_backend.nonsense", "Unknown command")


DATASYNC_SCENARIOS: tuple[Scenario, ...] = tuple(
    each for each in list(globals().values()) if isinstance(each, Scenario)
)
