"""ControlBackend: parameters, replies, the audit log and the counter of control calls."""

from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway import Service, ServiceRegistry
from snorky.gateway.contracts import subscriptions as contract
from snorky.gateway.sdk import control as sdk
from snorky.services.chat import ChatService
from snorky.services.control import ControlBackend
from snorky.services.cursors import CursorsService
from snorky.services.pubsub import PubSubService
from tests.support.fakes.fake_wire import settle
from tests.support.fakes.memory_cluster import Resident, Town, town


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sdk, "ANSWER_S", 0.2)
    yield


def services() -> list[Service]:
    return [PubSubService(), ChatService(), CursorsService()]


def backend(nodes: Town, number: int = 0) -> Resident:
    private = ServiceRegistry([ControlBackend()])
    nodes.nodes[number].attach(private)
    return Resident(nodes.nodes[number], private, None)


def audited(logs: list[Any]) -> list[dict[str, Any]]:
    dropped = ("event", "log_level")
    return [{k: v for k, v in each.items() if k not in dropped} for each in logs if each["event"] == "control"]


def counted(nodes: Town, command: str, outcome: str) -> float:
    labels = {"command": command, "outcome": outcome}
    return nodes.nodes[0].metrics.registry.get_sample_value("snorky_control_calls_total", labels) or 0.0


async def test_reply_names_the_nodes_and_their_connections() -> None:
    async with town(3, services) as nodes:
        private = backend(nodes)
        clients = [nodes.client(number, "ann") for number in (0, 2, 2)]
        assert await private.ask("control", "disconnect", identity="ann") == {
            "nodes": [
                {"node": "n0", "connections": 1},
                {"node": "n1", "connections": 0},
                {"node": "n2", "connections": 2},
            ],
            "missing": [],
            "connections": 3,
        }
        assert [client.wire.closes for client in clients] == [[(4500, "Disconnected")]] * 3


async def test_node_that_does_not_answer_is_missing_and_obeys_later() -> None:
    async with town(2, services) as nodes:
        private, client = backend(nodes), nodes.client(1, "ann")
        with capture_logs() as logs, nodes.orders_delayed(1):
            reply = await private.ask("control", "disconnect", identity="ann", reconnect=True, reason="Moved")
            assert reply == {"nodes": [{"node": "n0", "connections": 0}], "missing": ["n1"], "connections": 0}
        await settle()
        assert client.wire.closes == [(4000, "Moved")]
        assert audited(logs) == [
            {
                "by": "none", "command": "disconnect", "outcome": "incomplete", "identity": "ann",
                "connections": 0, "nodes": 1, "missing": "n1",
            }
        ]  # fmt: skip
        assert counted(nodes, "disconnect", "incomplete") == 1


async def test_subscriptions_end_by_identity_connection_and_channel_of_any_service() -> None:
    async with town(1, services) as nodes:
        private, ann, bob = backend(nodes), nodes.client(0, "ann"), nodes.client(0, "bob")
        for client in (ann, bob):
            for channel in ("news", {"b": 1, "a": [2]}, None):
                assert await client.ask("pubsub", "subscribe", channel=channel) is None
            await client.ask("chat", "join", channel="lobby")
            await client.ask("cursors", "join", document="d")

        async def reached(**params: Any) -> Any:
            return (await private.ask("control", "unsubscribe", **params))["connections"]

        assert await reached(channel={"a": [2], "b": 1}) == 2
        assert await reached(identity="ann", channel=None) == 1, "null is a channel"
        assert await reached(connection=bob.connection.id, service="chat", channel="lobby") == 1
        assert await reached(identity="ann", service="cursors") == 1
        assert await reached(identity="ann", reason="Your subscription has ended") == 1
        assert await reached(identity="ann") == 0
        assert [(each["channel"], each["reason"]) for each in ann.notifications if each["type"] == "unsubscribed"] == [
            ({"a": [2], "b": 1}, "Unsubscribed by the backend"),
            (None, "Unsubscribed by the backend"),
            ("d", "Unsubscribed by the backend"),
            ("news", "Your subscription has ended"),
        ]
        assert ann.connection.channels == {"chat:lobby"}
        assert len(bob.connection.channels) == 3


async def test_clients_are_subscribed_by_identity_connection_and_channel() -> None:
    async with town(2, services) as nodes:
        private, ann, bob = backend(nodes), nodes.client(0, "ann"), nodes.client(1, "bob")

        async def reached(channel: Any, **params: Any) -> Any:
            return (await private.ask("control", "subscribe", channel=channel, **params))["connections"]

        with capture_logs() as logs:
            assert await reached({"b": 1, "a": [2]}, identity="ann") == 1
            assert await reached(None, connection=bob.connection.id, expiresInS=60, recover=None) == 1
            assert await reached("x", onChannel=None) == 1
            assert await reached("x", onChannel="nobody") == 0
        nothing = {"position": None, "recovered": False, "messages": []}
        assert ann.notifications == [{"type": "subscribed", "channel": {"b": 1, "a": [2]}, **nothing}]
        (first, second) = bob.notifications
        assert first["expiresInS"] in (59, 60)
        assert (first["channel"], set(first)) == (None, {"type", "channel", "expiresInS"})
        assert second == {"type": "subscribed", "channel": "x", **nothing}
        assert audited(logs)[0] == {
            "by": "none", "command": "subscribe", "outcome": "ok", "service": "pubsub", "identity": "ann",
            "target": '~{"a":[2],"b":1}', "connections": 1, "nodes": 2,
        }  # fmt: skip
        assert counted(nodes, "subscribe", "ok") == 4


async def test_full_store_and_too_many_claims_are_refused_and_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "STORED_MAX", 1)
    async with town(1, services) as nodes:
        private, ann = backend(nodes), nodes.client(0, "ann")
        await private.ask("control", "subscribe", channel="a", identity="ann")
        with capture_logs() as logs:
            answer = await private.ask("control", "subscribe", channel="b", identity="ann")
            assert answer.startswith("Error: At most")
            answer = await private.ask("control", "refresh", identity="ann", claims={"x": "y" * 3000})
            assert answer == "Error: An order takes at most 2048 bytes"
        assert [each["outcome"] for each in audited(logs)] == ["limit_exceeded", "too_large"]
        assert ann.connection.channels == {"pubsub:a"}


@pytest.mark.parametrize("identity", ["~7", 7])
async def test_integer_identity_is_named_as_integer_or_text(identity: Any) -> None:
    async with town(1, services) as nodes:
        private, client = backend(nodes), nodes.client(0, "~7")
        assert (await private.ask("control", "disconnect", identity=identity))["connections"] == 1
        assert client.wire.closes


@pytest.mark.parametrize(
    ("command", "params", "text"),
    [
        ("disconnect", {}, "Name an identity, a connection or a channel"),
        ("unsubscribe", {"service": "pubsub"}, "Name an identity, a connection or a channel"),
        ("disconnect", {"identity": ""}, "Invalid params"),
        ("disconnect", {"identity": ["ann"]}, "Invalid params"),
        ("disconnect", {"identity": True}, "Invalid params"),
        ("disconnect", {"identity": "x" * 256}, "Invalid params"),
        ("disconnect", {"identity": "ann", "reconnect": 1}, "Invalid params"),
        ("disconnect", {"identity": "ann", "reason": "x" * 124}, "Invalid params"),
        ("disconnect", {"identity": "ann", "reason": ""}, "Invalid params"),
        ("disconnect", {"identity": "ann", "reason": "a\nb"}, "Invalid params"),
        ("disconnect", {"identity": "ann", "other": 1}, "Invalid params"),
        ("disconnect", {"connection": 5}, "Invalid params"),
        ("unsubscribe", {"connection": "x" * 256}, "Invalid params"),
        ("unsubscribe", {"channel": "x" * 256}, None),
        ("unsubscribe", {"channel": "x", "service": "nothing"}, "There is no such service"),
        ("disconnect", {"channel": "x", "service": 5}, "There is no such service"),
        ("dance", {"identity": "ann"}, "Unknown command"),
        ("subscribe", {"identity": "ann"}, "Invalid params"),
        ("subscribe", {"channel": "x"}, "Name an identity, a connection or a channel"),
        ("subscribe", {"channel": "x" * 256, "identity": "ann"}, None),
        ("subscribe", {"channel": "x", "onChannel": "x" * 256}, None),
        ("subscribe", {"channel": "x", "identity": "ann", "recover": 7}, "Invalid params"),
        ("subscribe", {"channel": "x", "identity": "ann", "expiresInS": 0}, "Invalid params"),
        ("subscribe", {"channel": "x", "identity": "ann", "expiresInS": True}, "Invalid params"),
        ("subscribe", {"channel": "x", "identity": "ann", "expiresInS": 1e12}, "Invalid params"),
        (
            "subscribe",
            {"channel": "x", "identity": "ann", "service": "chat"},
            "This service takes no subscriptions of the backend",
        ),
        ("refresh", {}, "Name an identity, a connection or a channel"),
        ("refresh", {"identity": "ann", "claims": [1]}, "Invalid params"),
        ("refresh", {"identity": "ann", "expiresInS": "1"}, "Invalid params"),
    ],
)
async def test_bad_parameters_are_refused_and_audited(command: str, params: Any, text: str | None) -> None:
    async with town(1, services) as nodes:
        private, client = backend(nodes), nodes.client(0, "ann")
        with capture_logs() as logs:
            answer = await private.ask("control", command, **params)
        assert answer.startswith("Error: ") and (text is None or answer == f"Error: {text}")
        assert not client.wire.closes and not nodes.orders.orders
        (line,) = audited(logs)
        outcome = {"dance": "unknown_command"}.get(command, "invalid_channel" if text is None else "invalid_params")
        label = "unknown" if command == "dance" else command
        assert line == {"by": "none", "command": label, "outcome": outcome}
        assert counted(nodes, label, outcome) == 1


async def test_call_without_redis_is_audited_too() -> None:
    async with town(1, services) as nodes:
        private = backend(nodes)
        with capture_logs() as logs, nodes.redis_unavailable():
            assert await private.ask("control", "unsubscribe", channel="news") == "Error: Temporarily unavailable"
        (line,) = audited(logs)
        assert (line["outcome"], line["channel"]) == ("unavailable", "news")
        assert counted(nodes, "unsubscribe", "unavailable") == 1
