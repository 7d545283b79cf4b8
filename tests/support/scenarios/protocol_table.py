"""The protocol's pubsub, chat, messaging and cursors as scenarios: every command, text and notification."""

from collections.abc import Iterator
from typing import Any

from tests.support.scenarios.conformance import TIME, Handle, Scenario, Step, closing, goes, no, ok, scenario

__all__ = ["SCENARIOS"]

ENTITY = {"room": [1, None, "é"], "a": 1.5}
SAME_ENTITY = {"a": 1.5, "room": [1.0, None, "é"]}
NOT_AUTHENTICATED = "Not authenticated"


# -- pubsub -----------------------------------------------------------------------------------------------------------


def published(message: Any, channel: Any = "news") -> dict[str, Any]:
    return {"type": "message", "channel": channel, "message": message}


@scenario(ann=None, bob="bob", eve=None)
def pubsub() -> Iterator[Step]:
    yield ok("ann", "pubsub.publish", channel="news", message="no subscribers")
    yield ok("ann", "pubsub.subscribe", channel="news")
    yield no("ann", "pubsub.subscribe", "Already subscribed", channel="news")
    yield no("ann", "pubsub.join", "Already subscribed", channel="news")
    yield ok("bob", "pubsub.publish", None, {"ann": [published({"x": [1]})]}, channel="news", message={"x": [1]})
    yield ok("bob", "pubsub.join", channel="news")
    both = {"ann": [published(None)], "bob": [published(None)]}
    yield ok("bob", "pubsub.publish", None, both, channel="news", message=None)
    yield ok("bob", "pubsub.relay", None, {"ann": [published(4)]}, channel="news", message=4)
    yield no("eve", "pubsub.unsubscribe", "Not subscribed", channel="news")
    yield no("eve", "pubsub.leave", "Not subscribed", channel="news")
    yield ok("ann", "pubsub.unsubscribe", channel="news")
    yield no("ann", "pubsub.unsubscribe", "Not subscribed", channel="news")
    yield ok("ann", "pubsub.publish", None, {"bob": [published(2)]}, channel="news", message=2)
    yield ok("bob", "pubsub.leave", channel="news")
    yield ok("ann", "pubsub.publish", channel="news", message=3)


@scenario(ann=None, bob=None, eve=None)
def pubsub_channels_are_entities() -> Iterator[Step]:
    yield ok("ann", "pubsub.subscribe", channel=ENTITY)
    yield no("ann", "pubsub.subscribe", "Already subscribed", channel=SAME_ENTITY)
    yield ok("bob", "pubsub.publish", None, {"ann": [published(1, ENTITY)]}, channel=SAME_ENTITY, message=1)
    channels: list[Any] = [1, True, "1", None, "null", [], ""]
    for channel in channels:
        yield ok("eve", "pubsub.subscribe", channel=channel)
        yield ok("bob", "pubsub.publish", None, {"eve": [published("x", channel)]}, channel=channel, message="x")
        yield ok("eve", "pubsub.unsubscribe", channel=channel)


@scenario(ann=None, bob=None)
def pubsub_backend() -> Iterator[Step]:
    yield ok("ann", "pubsub.subscribe", channel="news")
    yield ok("bob", "pubsub.subscribe", channel="news")
    both = {"ann": [published({"from": "backend"})], "bob": [published({"from": "backend"})]}
    yield ok("backend", "pubsub_backend.publish", None, both, channel="news", message={"from": "backend"})
    yield no("backend", "pubsub_backend.publish", "Invalid params", channel="news")
    yield no("backend", "pubsub_backend.subscribe", "Unknown command", channel="news")


@scenario(ann="ann", bob="bob")
def pubsub_hooks() -> Iterator[Step]:
    yield no("ann", "guarded_pubsub.subscribe", "Not authorized", channel="bob's")
    yield no("ann", "guarded_pubsub.publish", "Not authorized", channel="bob's", message=1)
    yield ok("ann", "guarded_pubsub.subscribe", channel="ann's")
    yield no("bob", "guarded_pubsub.publish", "Not authorized", channel="ann's", message=1)
    brings = {"ann": [published(1, "ann's")]}
    yield ok("ann", "guarded_pubsub.publish", None, brings, channel="ann's", message=1)


# -- chat -------------------------------------------------------------------------------------------------------------


def presence(identity: str, status: str, channel: Any = "room") -> dict[str, Any]:
    return {"type": "presence", "from": identity, "channel": channel, "status": status, "timestamp": TIME}


def said(identity: str, body: Any, channel: Any = "room") -> dict[str, Any]:
    return {"type": "message", "from": identity, "channel": channel, "body": body, "timestamp": TIME}


@scenario(ann="ann", bob="bob", ann2="ann", ann3="ann", carol="carol", eve="eve")
def chat() -> Iterator[Step]:
    yield no("ann", "chat.send", "Not joined", channel="room", body=1)
    yield no("ann", "chat.leave", "Not joined", channel="room")
    yield ok("ann", "chat.join", {"members": ["ann"]}, channel="room")
    yield no("ann", "chat.join", "Already joined", channel="room")
    joined = {"ann": [presence("bob", "joined")]}
    yield ok("bob", "chat.join", {"members": ["ann", "bob"]}, joined, channel="room")
    yield ok("ann2", "chat.join", {"members": ["ann", "bob"]}, channel="room")
    yield ok("ann3", "chat.join", {"members": ["ann", "bob"]}, channel="room")
    joined = {who: [presence("carol", "joined")] for who in ("ann", "ann2", "ann3", "bob")}
    yield ok("carol", "chat.join", {"members": ["ann", "bob", "carol"]}, joined, channel="room")
    heard = {who: [said("bob", {"x": [True]})] for who in ("ann", "ann2", "ann3", "bob", "carol")}
    yield ok("bob", "chat.send", None, heard, channel="room", body={"x": [True]})
    yield no("eve", "chat.send", "Not joined", channel="room", body=1)
    read = {"type": "read", "channel": "room", "timestamp": TIME}
    yield ok("ann", "chat.read", None, {"ann2": [read], "ann3": [read]}, channel="room")
    yield ok("bob", "chat.read", channel="room")
    yield ok("ann", "chat.leave", channel="room")
    yield no("ann", "chat.leave", "Not joined", channel="room")
    yield no("ann", "chat.send", "Not joined", channel="room", body=1)
    yield goes("ann2")
    left = {"bob": [presence("ann", "left")], "carol": [presence("ann", "left")]}
    yield goes("ann3", left)
    yield ok("bob", "chat.leave", None, {"carol": [presence("bob", "left")]}, channel="room")
    back = {"carol": [presence("ann", "joined")]}
    yield ok("ann", "chat.join", {"members": ["ann", "carol"]}, back, channel="room")


@scenario(ann="ann", bob="bob")
def chat_rooms_are_entities_and_apart() -> Iterator[Step]:
    yield ok("ann", "chat.join", {"members": ["ann"]}, channel=ENTITY)
    yield no("ann", "chat.join", "Already joined", channel=SAME_ENTITY)
    yield ok("ann", "chat.join", {"members": ["ann"]}, channel=1)
    joined = {"ann": [presence("bob", "joined", ENTITY)]}
    yield ok("bob", "chat.join", {"members": ["ann", "bob"]}, joined, channel=SAME_ENTITY)
    heard = {"ann": [said("bob", None, ENTITY)], "bob": [said("bob", None, ENTITY)]}
    yield ok("bob", "chat.send", None, heard, channel=ENTITY, body=None)
    yield no("bob", "chat.send", "Not joined", channel=1, body=None)


@scenario(nobody=None, ann="ann", other=None)
def chat_needs_an_identity() -> Iterator[Step]:
    yield ok("ann", "chat.join", {"members": ["ann"]}, channel="room")
    for who in ("nobody", "other"):
        yield no(who, "chat.join", NOT_AUTHENTICATED, channel="room")
        yield no(who, "chat.leave", NOT_AUTHENTICATED, channel="room")
        yield no(who, "chat.send", NOT_AUTHENTICATED, channel="room", body=1)
        yield no(who, "chat.read", NOT_AUTHENTICATED, channel="room")


@scenario(ann="ann", bob="bob")
def chat_hooks() -> Iterator[Step]:
    yield ok("ann", "guarded_chat.join", {"members": ["ann"]}, channel="ann's")
    yield no("bob", "guarded_chat.join", "Not authorized", channel="ann's")
    yield no("bob", "guarded_chat.send", "Not joined", channel="ann's", body=1)
    yield ok("ann", "guarded_chat.send", None, {"ann": [said("ann", 1, "ann's")]}, channel="ann's", body=1)


# -- messaging --------------------------------------------------------------------------------------------------------


def letter(sender: Any, dest: Any, body: Any) -> dict[str, Any]:
    return {"type": "message", "sender": sender, "dest": dest, "body": body}


@scenario(ann=None, bob="bob", eve=None)
def messaging() -> Iterator[Step]:
    yield ok("ann", "messaging.listParticipants", [])
    yield ok("ann", "messaging.registerParticipant", name="ann")
    yield no("ann", "messaging.registerParticipant", "Name already registered", name="ann")
    yield no("eve", "messaging.registerParticipant", "Name already registered", name="ann")
    yield ok("bob", "messaging.registerParticipant", name=ENTITY)
    yield no("eve", "messaging.registerParticipant", "Name already registered", name=SAME_ENTITY)
    yield ok("bob", "messaging.registerParticipant", name="Bob")
    yield ok("bob", "messaging.registerParticipant", name=7)
    yield ok("eve", "messaging.listParticipants", ["Bob", "ann", 7, ENTITY])
    brings = {"bob": [letter("ann", SAME_ENTITY, {"x": 1})]}
    yield ok("ann", "messaging.send", None, brings, sender="ann", dest=SAME_ENTITY, body={"x": 1})
    yield ok("bob", "messaging.send", None, {"ann": [letter(7, "ann", 0)]}, sender=7, dest="ann", body=0)
    yield ok("bob", "messaging.send", None, {"bob": [letter(7, "Bob", 0)]}, sender=7, dest="Bob", body=0)
    yield no("eve", "messaging.send", "Invalid sender", sender="ann", dest="Bob", body=1)
    yield no("eve", "messaging.send", "Invalid sender", sender="eve", dest="Bob", body=1)
    yield no("ann", "messaging.send", "Unknown destination", sender="ann", dest="eve", body=1)
    yield no("eve", "messaging.unregisterParticipant", "Invalid participant", name="ann")
    yield no("eve", "messaging.unregisterParticipant", "Unknown participant", name="eve")
    yield ok("bob", "messaging.unregisterParticipant", name=7)
    yield no("bob", "messaging.unregisterParticipant", "Unknown participant", name=7)
    yield no("bob", "messaging.send", "Invalid sender", sender=7, dest="ann", body=1)
    yield no("ann", "messaging.send", "Unknown destination", sender="ann", dest=7, body=1)
    yield ok("eve", "messaging.registerParticipant", name=7)
    yield ok("ann", "messaging.send", None, {"eve": [letter("ann", 7, "hi")]}, sender="ann", dest=7, body="hi")
    yield ok("eve", "messaging.listParticipants", ["Bob", "ann", 7, ENTITY])


@scenario(ann="ann", bob="bob")
def messaging_hooks() -> Iterator[Step]:
    yield no("ann", "guarded_messaging.registerParticipant", "Name not allowed", name="bob")
    yield ok("ann", "guarded_messaging.registerParticipant", name="ann")
    yield no("bob", "guarded_messaging.registerParticipant", "Name not allowed", name="ann")
    yield ok("bob", "guarded_messaging.listParticipants", ["ann"])


@scenario(ann=None, bob="bob", eve=None, bob2="bob")
def messaging_takeover() -> Iterator[Step]:
    yield ok("ann", "messaging.registerParticipant", name="ann")
    yield ok("bob", "messaging.registerParticipant", name="bob")
    yield no("eve", "messaging.registerParticipant", "Name already registered", name="bob")
    yield closing(ok("bob2", "messaging.registerParticipant", name="bob"), bob=4010)
    yield ok("ann", "messaging.send", None, {"bob2": [letter("ann", "bob", 1)]}, sender="ann", dest="bob", body=1)
    yield ok("eve", "messaging.listParticipants", ["ann", "bob"])


# -- cursors ----------------------------------------------------------------------------------------------------------


def cursor(handle: Handle, owner: str, position: Any, status: Any, document: Any = "doc") -> dict[str, Any]:
    return {"publicHandle": handle, "document": document, "position": position, "status": status, "owner": owner}


def removed(handle: Handle, document: Any = "doc") -> dict[str, Any]:
    return {"type": "cursorRemoved", "cursor": {"publicHandle": handle, "document": document}}


def create(who: str, private: Any, handle: Any, heard_by: tuple[str, ...], owner: str, document: Any = "doc") -> Step:
    """Make a cursor at 0 with status "s"."""
    added = {"type": "cursorAdded", "cursor": cursor(handle, owner, 0, "s", document)}
    brings = {each: [added] for each in heard_by}
    params = {"privateHandle": private, "document": document, "position": 0, "status": "s"}
    return ok(who, "cursors.createCursor", handle, brings, **params)


@scenario(ann="ann", bob="bob", ann2="ann", eve="eve")
def cursors() -> Iterator[Step]:
    handles: set[int] = set()
    first, second, third = Handle(handles), Handle(handles), Handle(handles)
    new = {"privateHandle": 1, "document": "doc", "position": 0, "status": "s"}
    yield no("ann", "cursors.createCursor", "Not joined", **new)
    yield no("ann", "cursors.leave", "Not joined", document="doc")
    for who in ("ann", "bob", "ann2"):
        yield ok(who, "cursors.join", {"cursors": []}, document="doc")
    yield no("ann", "cursors.join", "Already joined", document="doc")
    yield create("ann", 1, first, ("bob", "ann2"), "ann")
    yield no("ann", "cursors.createCursor", "Reused handle", **new)
    yield create("bob", 1, second, ("ann", "ann2"), "bob")
    updated = {"type": "cursorUpdated", "cursor": cursor(first, "ann", {"line": 2}, "s")}
    brings = {"bob": [updated], "ann2": [updated]}
    moved = {"privateHandle": 1, "newData": {"position": {"line": 2}}}
    yield ok("ann", "cursors.updateCursor", None, brings, **moved)
    updated = {"type": "cursorUpdated", "cursor": cursor(first, "ann", {"line": 2}, None)}
    brings = {"bob": [updated], "ann2": [updated]}
    yield ok("ann", "cursors.updateCursor", None, brings, privateHandle=1, newData={"status": None, "color": "red"})
    yield no("ann", "cursors.updateCursor", "No such cursor", privateHandle=2, newData={})
    yield no("ann2", "cursors.updateCursor", "No such cursor", privateHandle=1, newData={})
    yield no("ann", "cursors.removeCursor", "No such cursor", privateHandle=2)
    yield ok("ann", "cursors.removeCursor", None, {"bob": [removed(first)], "ann2": [removed(first)]}, privateHandle=1)
    yield no("ann", "cursors.removeCursor", "No such cursor", privateHandle=1)
    yield ok("eve", "cursors.join", {"cursors": [cursor(second, "bob", 0, "s")]}, document="doc")
    yield create("ann", 1, third, ("bob", "ann2", "eve"), "ann")
    gone = {who: [removed(second)] for who in ("ann", "ann2", "eve")}
    yield ok("bob", "cursors.leave", None, gone, document="doc")
    yield no("bob", "cursors.removeCursor", "No such cursor", privateHandle=1)
    yield goes("ann", {"ann2": [removed(third)], "eve": [removed(third)]})
    yield ok("bob", "cursors.join", {"cursors": []}, document="doc")


@scenario(ann="ann", bob="bob")
def cursors_are_sixteen_a_client() -> Iterator[Step]:
    handles: dict[Any, set[int]] = {"doc": set(), "other": set()}
    for document in ("doc", "other"):
        yield ok("ann", "cursors.join", {"cursors": []}, document=document)
        yield ok("bob", "cursors.join", {"cursors": []}, document=document)
    made = []
    for number in range(16):
        document = ("doc", "other")[number % 2]
        made.append(Handle(handles[document]))
        yield create("ann", [number], made[-1], ("bob",), "ann", document)
    more = {"privateHandle": 16, "document": "doc", "position": 0, "status": "s"}
    yield no("ann", "cursors.createCursor", "Too many cursors", **more)
    yield ok("ann", "cursors.removeCursor", None, {"bob": [removed(made[0])]}, privateHandle=[0])
    yield create("ann", 16, Handle(handles["doc"]), ("bob",), "ann")


@scenario(nobody=None)
def cursors_need_an_identity() -> Iterator[Step]:
    yield no("nobody", "cursors.join", NOT_AUTHENTICATED, document="doc")
    yield no("nobody", "cursors.leave", NOT_AUTHENTICATED, document="doc")
    new = {"privateHandle": 1, "document": "doc", "position": 0, "status": "s"}
    yield no("nobody", "cursors.createCursor", NOT_AUTHENTICATED, **new)
    yield no("nobody", "cursors.updateCursor", NOT_AUTHENTICATED, privateHandle=1, newData={})
    yield no("nobody", "cursors.removeCursor", NOT_AUTHENTICATED, privateHandle=1)


@scenario(ann="ann", bob="bob")
def cursors_hooks() -> Iterator[Step]:
    yield ok("ann", "guarded_cursors.join", {"cursors": []}, document="ann's")
    yield no("bob", "guarded_cursors.join", "Not authorized", document="ann's")


# -- all of them ------------------------------------------------------------------------------------------------------


@scenario(ann="ann", bob="bob", eve=None)
def what_is_no_command_and_params_that_do_not_fit() -> Iterator[Step]:
    commands = {
        "pubsub": ("subscribe", "unsubscribe", "publish"),
        "chat": ("join", "leave", "send", "read"),
        "messaging": ("registerParticipant", "unregisterParticipant", "send"),
        "cursors": ("join", "leave", "createCursor", "updateCursor", "removeCursor"),
    }
    for service, names in commands.items():
        yield no("bob", f"{service}.nonsense", "Unknown command")
        yield no("bob", f"{service}.on_message", "Unknown command")
        for name in names:
            yield no("ann", f"{service}.{name}", "Invalid params")
            yield no("eve", f"{service}.{name}", "Invalid params", wrong=1)
    yield no("ann", "messaging.listParticipants", "Invalid params", wrong=1)
    yield ok("ann", "cursors.join", {"cursors": []}, document="doc")
    new = {"privateHandle": 1, "document": "doc", "position": 0, "status": "s"}
    yield ok("ann", "cursors.createCursor", Handle(set()), **new)
    yield no("ann", "cursors.updateCursor", "Invalid params", privateHandle=1, newData=5)


SCENARIOS: tuple[Scenario, ...] = tuple(each for each in list(globals().values()) if isinstance(each, Scenario))
