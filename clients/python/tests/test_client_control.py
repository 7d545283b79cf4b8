"""Control and AsyncControl: the calls that they send, and the results that they return for replies."""

import asyncio
from typing import Any

import pytest
from scripted_server import reply

from snorky.client import AsyncSnorkyBackend, SnorkyBackend, SnorkyError, TransportError
from snorky.client.control import AsyncControl, Control, Page, Reached

ANSWER = {
    "nodes": [{"node": "n1", "connections": 2}, {"node": "n2", "connections": 0}],
    "missing": ["n3"],
    "connections": 2,
}
CALLS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "disconnect",
        {"identity": 7},
        {"identity": 7, "service": "pubsub", "reconnect": False},
    ),
    (
        "disconnect",
        {"connection": "n1.2", "reconnect": True, "reason": "Moved"},
        {"connection": "n1.2", "service": "pubsub", "reconnect": True, "reason": "Moved"},
    ),
    (
        "unsubscribe",
        {"identity": "ann", "channel": None, "service": "chat"},
        {"identity": "ann", "channel": None, "service": "chat"},
    ),
    ("unsubscribe", {"channel": ["room", 5]}, {"channel": ["room", 5], "service": "pubsub"}),
    (
        "subscribe",
        {"channel": None, "identity": "ann"},
        {"channel": None, "identity": "ann", "service": "pubsub", "recover": True},
    ),
    (
        "subscribe",
        {"channel": "a", "on_channel": None, "connection": "n1.2", "recover": "e:1:t", "expires_in_s": 60},
        {
            "channel": "a",
            "onChannel": None,
            "connection": "n1.2",
            "service": "pubsub",
            "recover": "e:1:t",
            "expiresInS": 60,
        },
    ),
    ("refresh", {"identity": 7}, {"identity": 7, "service": "pubsub"}),
    (
        "refresh",
        {"channel": "a", "claims": {"shops": [7]}, "expires_in_s": 1.5},
        {"channel": "a", "service": "pubsub", "claims": {"shops": [7]}, "expiresInS": 1.5},
    ),
]


class Recorder:
    """A transport that returns one response."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.sent: list[Any] = []

    def send(self, message: Any, *, json: Any = None, retry: bool = False) -> Any:
        self.sent.append((message, retry))
        return self.answer


@pytest.mark.parametrize(("command", "given", "params"), CALLS)
@pytest.mark.parametrize("is_async", [False, True])
def test_call_sends_what_was_given_and_returns_who_was_reached(
    command: str, given: dict[str, Any], params: dict[str, Any], is_async: bool
) -> None:
    transport = Recorder(reply(ANSWER))

    async def run() -> Reached:
        async with AsyncSnorkyBackend(transport) as backend:
            found: Reached = await getattr(AsyncControl(backend), command)(**given)
            return found

    if is_async:
        reached = asyncio.run(run())
    else:
        reached = getattr(Control(SnorkyBackend(transport)), command)(**given)
    assert transport.sent == [({"service": "control", "message": {"command": command, "params": params}}, False)]
    assert reached == Reached({"n1": 2, "n2": 0}, ("n3",))
    assert reached.connections == 2


def test_refusal_is_raised() -> None:
    refusal = {
        "service": "control",
        "message": {"type": "error", "message": "Invalid params", "code": "invalid_params"},
    }
    with pytest.raises(SnorkyError, match="Invalid params"):
        Control(SnorkyBackend(Recorder(refusal))).disconnect()


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"nodes": {}, "missing": []},
        {"nodes": [], "missing": [1]},
        {"nodes": [1], "missing": []},
        {"nodes": [{"node": "n1", "connections": -1}], "missing": []},
        {"nodes": [{"node": 1, "connections": 1}], "missing": []},
    ],
)
def test_reply_of_another_form_is_an_error(data: Any) -> None:
    with pytest.raises(TransportError) as caught:
        Control(SnorkyBackend(Recorder(reply(data)))).unsubscribe(identity="ann")
    assert caught.value.may_have_happened


LOOKS: list[tuple[str, tuple[Any, ...], dict[str, Any], dict[str, Any], str]] = [
    ("nodes", (), {}, {"limit": 100}, "nodes"),
    ("connections", (7,), {"after": "n1.2"}, {"identity": 7, "limit": 100, "after": "n1.2"}, "connections"),
    ("channels", (), {"limit": 5}, {"pattern": "*", "service": "pubsub", "limit": 5}, "channels"),
    ("channels", ("a*",), {"service": "chat"}, {"pattern": "a*", "service": "chat", "limit": 100}, "channels"),
    ("presence", (None,), {}, {"channel": None, "service": "pubsub", "limit": 100}, "members"),
]


@pytest.mark.parametrize(("command", "given", "options", "params", "name"), LOOKS)
@pytest.mark.parametrize("is_async", [False, True])
def test_question_sends_what_was_given_and_returns_a_page(
    command: str, given: tuple[Any, ...], options: dict[str, Any], params: dict[str, Any], name: str, is_async: bool
) -> None:
    transport = Recorder(reply({name: [{"x": 1}], "missing": ["n2"], "next": "more"}))

    async def run() -> Page:
        async with AsyncSnorkyBackend(transport) as backend:
            found: Page = await getattr(AsyncControl(backend), command)(*given, **options)
            return found

    if is_async:
        page = asyncio.run(run())
    else:
        page = getattr(Control(SnorkyBackend(transport)), command)(*given, **options)
    assert transport.sent == [({"service": "control", "message": {"command": command, "params": params}}, False)]
    assert page == Page([{"x": 1}], ("n2",), "more")


@pytest.mark.parametrize(
    "data", [None, {}, {"nodes": 1, "next": None}, {"nodes": [], "missing": 1}, {"nodes": [], "next": 1}]
)
def test_page_of_another_form_is_an_error(data: Any) -> None:
    with pytest.raises(TransportError):
        Control(SnorkyBackend(Recorder(reply(data)))).nodes()


def test_last_page_has_no_next_one_and_presence_needs_no_missing() -> None:
    transport = Recorder(reply({"members": ["ann"], "next": None}))
    assert Control(SnorkyBackend(transport)).presence("room") == Page(["ann"], (), None)


def test_history_is_removed() -> None:
    transport, again = Recorder(reply(None)), Recorder(reply(None))

    async def run() -> None:
        async with AsyncSnorkyBackend(again) as backend:
            await AsyncControl(backend).history_remove(["room", 5], service="shop")

    Control(SnorkyBackend(transport)).history_remove("news")
    asyncio.run(run())
    sent = [each.sent[0][0]["message"] for each in (transport, again)]
    assert [message["command"] for message in sent] == ["historyRemove"] * 2
    assert [message["params"] for message in sent] == [
        {"channel": "news", "service": "pubsub"},
        {"channel": ["room", 5], "service": "shop"},
    ]
