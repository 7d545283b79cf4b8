"""The protocol's control by the backend as scenarios: every command, text and notification."""

from collections.abc import Iterator
from typing import Any

from tests.support.scenarios.conformance import ANY, Scenario, Step, closing, no, ok, scenario

__all__ = ["CONTROL_SCENARIOS"]


def reached(connections: int) -> dict[str, Any]:
    return {"nodes": ANY, "missing": [], "connections": connections}


def ended(channel: Any, reason: str = "Unsubscribed by the backend") -> dict[str, Any]:
    return {"type": "unsubscribed", "channel": channel, "code": "unsubscribed", "reason": reason}


@scenario(ann="control-ann", ann2="control-ann", bob=None)
def control_unsubscribes() -> Iterator[Step]:
    for who in ("ann", "ann2", "bob"):
        yield ok(who, "pubsub.subscribe", channel="shop")
        yield ok(who, "pubsub.subscribe", channel=None)
    one = {"ann": [ended("shop", "Gone")], "ann2": [ended("shop", "Gone")]}
    params = {"identity": "control-ann", "channel": "shop", "reason": "Gone"}
    yield ok("backend", "control.unsubscribe", reached(2), one, **params)
    yield ok("backend", "control.unsubscribe", reached(0), **params)
    rest = {who: [ended(None)] for who in ("ann", "ann2", "bob")}
    yield ok("backend", "control.unsubscribe", reached(3), rest, channel=None)
    yield ok("ann", "pubsub.subscribe", channel="shop")
    both = {who: [{"type": "message", "channel": "shop", "message": 1}] for who in ("ann", "bob")}
    yield ok("ann2", "pubsub.publish", None, both, channel="shop", message=1)


@scenario(ann="control-ann", ann2="control-ann", bob="control-bob", eve=None)
def control_disconnects() -> Iterator[Step]:
    yield closing(ok("backend", "control.disconnect", reached(2), identity="control-ann"), ann=4500, ann2=4500)
    yield ok("bob", "pubsub.subscribe", channel="shop")
    params = {"channel": "shop", "reconnect": True, "reason": "Moved"}
    yield closing(ok("backend", "control.disconnect", reached(1), **params), bob=4000)
    yield ok("backend", "control.disconnect", reached(0), connection="no-such-node.1")


@scenario(ann="control-ann", ann2="control-ann", bob=None)
def control_subscribes() -> Iterator[Step]:
    nothing = {"position": None, "recovered": False, "messages": []}
    begun = {"type": "subscribed", "channel": "control-orders", **nothing}
    both = {"ann": [begun], "ann2": [begun]}
    params = {"channel": "control-orders", "identity": "control-ann"}
    yield ok("backend", "control.subscribe", reached(2), both, **params)
    yield ok("backend", "control.subscribe", reached(2), **params)
    plain = {who: [{"type": "subscribed", "channel": None}] for who in ("ann", "ann2")}
    yield ok("backend", "control.subscribe", reached(2), plain, channel=None, onChannel="control-orders", recover=False)
    yield ok("ann", "pubsub.subscribe", nothing, channel="control-orders", recover=True, serverSide=True)
    yield no("bob", "pubsub.subscribe", "Not subscribed", channel="control-orders", serverSide=True)
    hear = {who: [{"type": "message", "channel": "control-orders", "message": 1}] for who in ("ann", "ann2")}
    yield ok("bob", "pubsub.publish", None, hear, channel="control-orders", message=1)
    yield ok("backend", "control.refresh", reached(2), identity="control-ann", claims={"shops": [7]})
    yield ok("backend", "control.refresh", reached(0), identity="control-none", expiresInS=60)
    for channel in ("control-orders", None):  # without a channel, the fences would end too
        over = {who: [ended(channel)] for who in ("ann", "ann2")}
        yield ok("backend", "control.unsubscribe", reached(2), over, identity="control-ann", channel=channel)
    yield no("backend", "control.subscribe", "Invalid params", channel=1, identity=1.5)
    yield no("backend", "control.refresh", "Invalid params", identity="control-ann", claims=7)
    text = "This service takes no subscriptions of the backend"
    yield no("backend", "control.subscribe", text, channel=1, identity="control-ann", service="chat")


@scenario(ann="control-ann", bob=None)
def control_looks() -> Iterator[Step]:
    empty = {"missing": [], "next": None}
    yield ok("ann", "pubsub.subscribe", channel="control-shop")
    connection = {"connection": ANY, "address": ANY, "transport": ANY, "encoding": ANY, "channels": 2}
    found = {"connections": [connection], **empty}
    yield ok("backend", "control.connections", found, identity="control-ann")
    yield ok("backend", "control.connections", {"connections": [], **empty}, identity="control-none")
    channels = [{"channel": "control-shop", "subscribers": 1}]
    yield ok("backend", "control.channels", {"channels": channels, **empty}, pattern="control-*")
    yield ok("backend", "control.nodes", {"nodes": ANY, **empty}, limit=200)
    yield ok("backend", "control.presence", {"members": [], "next": None}, channel="control-shop")
    nothing = {"position": None, "recovered": False, "messages": []}
    yield ok("backend", "control.history", nothing, channel="control-shop")
    yield ok("backend", "control.historyRemove", channel="control-shop")
    for command, wrong in (("nodes", {"limit": 0}), ("connections", {"identity": 1.5}), ("channels", {"after": 1})):
        yield no("backend", f"control.{command}", "Invalid params", **wrong)
    for command, wrong in (("presence", {"limit": 0}), ("history", {"since": "?"})):
        yield no("backend", f"control.{command}", "Invalid params", channel="control-shop", **wrong)


@scenario()
def control_params() -> Iterator[Step]:
    nobody = "Name an identity, a connection or a channel"
    for command in ("disconnect", "unsubscribe"):
        yield no("backend", f"control.{command}", nobody)
        values: list[Any] = [5.5, True, "", "x" * 256, ["ann"]]
        for value in values:
            yield no("backend", f"control.{command}", "Invalid params", identity=value)
            yield no("backend", f"control.{command}", "Invalid params", connection=value)
        yield no("backend", f"control.{command}", "Invalid params", identity="ann", reason="x" * 124)
        yield no("backend", f"control.{command}", "There is no such service", channel="x", service="none")
    yield no("backend", "control.disconnect", "Invalid params", identity="ann", reconnect=1)
    yield no("backend", "control.nonsense", "Unknown command")


CONTROL_SCENARIOS: tuple[Scenario, ...] = tuple(each for each in list(globals().values()) if isinstance(each, Scenario))
