"""The protocol's channels with rules as scenarios: recovery, keys, history, presence, notices.

Channels are new in every run, because their state persists.
"""

import itertools
import os
from collections.abc import Iterator
from typing import Any

from snorky.gateway import Position
from tests.support.scenarios.conformance import Scenario, Step, goes, no, ok, scenario

__all__ = ["HISTORY_SCENARIOS", "RULES"]

OPEN = {"allow_subscribe": "anyone", "allow_publish": "anyone"}  # also to clients without an identity
RULES: list[dict[str, Any]] = [
    {**OPEN, "match": "kept:*", "history": 100},
    {**OPEN, "match": "short:*", "history": 2},
    {**OPEN, "match": "told:*", "presence": True, "join_leave": True},
    {**OPEN, "match": "quiet:*", "allow_publish": "nobody"},
]

_numbers = itertools.count()


class Place:
    """Equals one position: the first with its offset that it is compared with. `str` gives it, for recovery."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self._text = f"0:{offset}:0"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str) or Position.parse(other).offset != self.offset:
            return False
        if self._text == f"0:{self.offset}:0":
            self._text = other
        return self._text == other

    __hash__ = None  # type: ignore[assignment]  # never a key

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"PLACE({self._text})"


class AnyConnections:
    """Equals the reply with the connections of these identities, whatever their ids."""

    def __init__(self, *identities: str) -> None:
        self.identities = sorted(identities)

    def __eq__(self, other: object) -> bool:
        found: Any = other
        connections = found.get("connections", ()) if isinstance(found, dict) else ()
        ids = {each["connection"] for each in connections}
        return sorted(each["identity"] for each in connections) == self.identities and len(ids) == len(connections)

    __hash__ = None  # type: ignore[assignment]  # never a key


def new(kind: str) -> str:
    return f"{kind}:{os.getpid()}:{next(_numbers)}"


def plain(channel: str, message: Any) -> dict[str, Any]:
    return {"type": "message", "channel": channel, "message": message}


def placed(channel: str, message: Any, place: Place) -> dict[str, Any]:
    return {**plain(channel, message), "offset": place.offset, "position": place}


def kept(message: Any, place: Place) -> dict[str, Any]:
    return {"message": message, "offset": place.offset, "position": place}


def told(place: Place | None, *messages: dict[str, Any], recovered: bool = True) -> dict[str, Any]:
    return {"position": place, "recovered": recovered, "messages": list(messages)}


@scenario(is_apart=True, ann="ann", bob="bob", eve=None)
def recovery() -> Iterator[Step]:
    channel, places = new("kept"), [Place(offset) for offset in range(5)]
    yield ok("ann", "pubsub.subscribe", told(places[0]), channel=channel, recover=True)
    yield no("ann", "pubsub.subscribe", "Already subscribed", channel=channel, recover=str(places[0]))
    yield ok("bob", "pubsub.subscribe", channel=channel)
    both: dict[str, Any] = {"ann": [placed(channel, {"a": 1}, places[1])], "bob": [plain(channel, {"a": 1})]}
    yield ok("eve", "pubsub.publish", None, both, channel=channel, message={"a": 1})
    yield ok("ann", "pubsub.unsubscribe", channel=channel)
    for number in (2, 3):
        yield ok("eve", "pubsub.publish", None, {"bob": [plain(channel, number)]}, channel=channel, message=number)
    missed = [kept(number, places[number]) for number in (2, 3)]
    yield ok("ann", "pubsub.subscribe", told(places[3], *missed), channel=channel, recover=str(places[1]))
    yield ok("ann", "pubsub.unsubscribe", channel=channel)
    for partial in (without_tag(places[1]), ":1"):
        yield ok("ann", "pubsub.subscribe", told(places[3], *missed), channel=channel, recover=partial)
        yield ok("ann", "pubsub.unsubscribe", channel=channel)
    lost = told(places[3], recovered=False)
    yield ok("ann", "pubsub.subscribe", lost, channel=channel, recover="another:1")
    yield ok("ann", "pubsub.unsubscribe", channel=channel)
    yield ok("ann", "pubsub.subscribe", told(places[3]), channel=channel, recover=without_tag(places[3]))
    both = {"ann": [placed(channel, None, places[4])], "bob": [plain(channel, None)]}
    yield ok("backend", "pubsub_backend.publish", None, both, channel=channel, message=None)
    again = told(places[4], *missed, kept(None, places[4]))
    yield ok("eve", "pubsub.subscribe", again, channel=channel, recover=str(places[1]))
    for wrong in (5, "", "a:b", "a:-1:c", "a:1:b:c", ["a:1:b"]):
        yield no("bob", "pubsub.subscribe", "Invalid params", channel="other", recover=wrong)


def without_tag(place: Place) -> str:
    return str(place).rpartition(":")[0]


@scenario(is_apart=True, ann=None, bob=None)
def recovery_of_what_is_gone() -> Iterator[Step]:
    channel, places = new("short"), [Place(offset) for offset in range(5)]
    yield ok("ann", "pubsub.subscribe", told(places[0]), channel=channel, recover=True)
    for number in range(1, 5):
        brings = {"ann": [placed(channel, number, places[number])]}
        yield ok("bob", "pubsub.publish", None, brings, channel=channel, message=number)
    yield ok("ann", "pubsub.unsubscribe", channel=channel)
    yield ok("ann", "pubsub.subscribe", told(places[4], recovered=False), channel=channel, recover=str(places[1]))
    yield ok("ann", "pubsub.unsubscribe", channel=channel)
    strange = f"{str(places[3]).rpartition(':')[0]}:another"
    yield ok("ann", "pubsub.subscribe", told(places[4], recovered=False), channel=channel, recover=strange)
    yield ok("ann", "pubsub.unsubscribe", channel=channel)
    yield ok("ann", "pubsub.subscribe", told(places[4], recovered=False), channel=channel, recover=":1")
    yield ok("bob", "pubsub.subscribe", told(None, recovered=False), channel=new("plain"), recover=True)


@scenario(is_apart=True, ann="ann", bob="bob")
def idempotency_keys() -> Iterator[Step]:
    channel, places = new("kept"), [Place(offset) for offset in range(5)]
    yield ok("ann", "pubsub.subscribe", told(places[0]), channel=channel, recover=True)
    first = {"ann": [placed(channel, 1, places[1])]}
    yield ok("ann", "pubsub.publish", None, first, channel=channel, message=1, key="k")
    yield ok("ann", "pubsub.publish", channel=channel, message=2, key="k")  # was published once
    second = {"ann": [placed(channel, 3, places[2])]}
    yield ok("bob", "pubsub.publish", None, second, channel=channel, message=3, key="k")  # of another client
    third = {"ann": [placed(channel, 4, places[3])]}
    yield ok("backend", "pubsub_backend.publish", None, third, channel=channel, message=4, key="k")
    yield ok("backend", "pubsub_backend.publish", channel=channel, message=5, key="k")
    for wrong in ("", 7, "x" * 256):
        yield no("ann", "pubsub.publish", "Invalid params", channel=channel, message=6, key=wrong)


@scenario(is_apart=True, ann=None, bob=None)
def history() -> Iterator[Step]:
    channel, places = new("kept"), [Place(offset) for offset in range(5)]
    yield ok("bob", "pubsub.history", told(places[0]), channel=channel)
    for number in range(1, 5):
        yield ok("bob", "pubsub.publish", channel=channel, message=number)
    all_kept = [kept(number, places[number]) for number in range(1, 5)]
    yield ok("ann", "pubsub.history", told(places[4], *all_kept), channel=channel)
    yield ok("ann", "pubsub.history", told(places[4], *all_kept[2:]), channel=channel, limit=2)
    yield ok("ann", "pubsub.history", told(places[4], *all_kept[1:]), channel=channel, since=str(places[1]))
    yield ok("ann", "pubsub.history", told(places[4], all_kept[1]), channel=channel, since=str(places[1]), limit=1)
    yield no("ann", "pubsub.history", "Not authorized", channel=new("plain"))
    for wrong in (0, 301, "7", True):
        yield no("ann", "pubsub.history", "Invalid params", channel=channel, limit=wrong)
    yield no("ann", "pubsub.history", "Invalid params", channel=channel, order="first")


@scenario(is_apart=True, ann=None, bob=None)
def pages_of_a_history() -> Iterator[Step]:
    channel, places = new("kept"), [Place(offset) for offset in range(5)]
    for number in range(1, 5):
        yield ok("bob", "pubsub.publish", channel=channel, message=number)
    found = [kept(number, places[number]) for number in range(1, 5)]

    def page(*messages: dict[str, Any]) -> dict[str, Any]:
        return {"position": places[4], "messages": list(messages)}

    yield ok("ann", "pubsub.history", page(*found[:2]), channel=channel, limit=2, order="oldest")
    yield ok("ann", "pubsub.history", page(*found[2:]), channel=channel, since=str(places[2]), order="oldest")
    yield ok("ann", "pubsub.history", page(*found[:1:-1]), channel=channel, limit=2, order="newest")
    yield ok("ann", "pubsub.history", page(*found[1::-1]), channel=channel, since=":3", order="newest")
    yield ok("ann", "pubsub.history", page(), channel=channel, limit=0, order="newest")
    lost = "Position is of an earlier history"
    yield no("ann", "pubsub.history", lost, channel=channel, since="another:3", order="newest")


@scenario(is_apart=True, ann="ann", ann2="ann", bob="bob", eve="eve")
def presence_and_notices() -> Iterator[Step]:
    channel = new("told")

    def notice(kind: str, identity: str) -> dict[str, Any]:
        return {"type": kind, "channel": channel, "identity": identity}

    yield ok("ann", "pubsub.subscribe", channel=channel)
    yield no("ann", "pubsub.subscribe", "Already subscribed", channel=channel)
    yield ok("bob", "pubsub.subscribe", None, {"ann": [notice("joined", "bob")]}, channel=channel)
    yield ok("ann2", "pubsub.subscribe", channel=channel)  # she was present
    yield ok("eve", "pubsub.presence", {"members": ["ann", "bob"]}, channel=channel)
    yield ok("eve", "pubsub.presence", AnyConnections("ann", "ann", "bob"), channel=channel, connections=True)
    yield no("eve", "pubsub.presence", "Invalid params", channel=channel, connections=1)
    yield ok("eve", "pubsub.presenceStats", {"members": 2, "connections": 3}, channel=channel)
    yield goes("ann")
    yield ok("ann2", "pubsub.unsubscribe", None, {"bob": [notice("left", "ann")]}, channel=channel)
    yield ok("bob", "pubsub.presence", {"members": ["bob"]}, channel=channel)
    yield no("bob", "pubsub.presence", "Not authorized", channel=new("plain"))
    yield no("bob", "pubsub.presenceStats", "Not authorized", channel=new("plain"))


@scenario(is_apart=True, ann=None)
def channels_that_only_the_backend_publishes_to() -> Iterator[Step]:
    channel = new("quiet")
    yield ok("ann", "pubsub.subscribe", channel=channel)
    yield no("ann", "pubsub.publish", "Not authorized", channel=channel, message=1)
    yield ok("backend", "pubsub_backend.publish", None, {"ann": [plain(channel, 2)]}, channel=channel, message=2)


HISTORY_SCENARIOS: tuple[Scenario, ...] = (
    recovery,
    recovery_of_what_is_gone,
    idempotency_keys,
    history,
    pages_of_a_history,
    presence_and_notices,
    channels_that_only_the_backend_publishes_to,
)
