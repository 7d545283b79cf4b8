"""ControlViews: pages of nodes, connections, channels and members; history; the audit of each call."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway import Service, ServiceRegistry
from snorky.gateway.sdk import control as sdk
from snorky.services.chat import ChatService
from snorky.services.control import ControlBackend
from snorky.services.pubsub import PubSubService
from tests.support.fakes.memory_cluster import Resident, Town, town

RULES = [{"match": "room:*", "presence": True, "history": 10}]


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "ANSWER_S", 0.2)


def services() -> list[Service]:
    return [PubSubService(channels=RULES), ChatService()]


def backend(nodes: Town, number: int = 0) -> Resident:
    private = ServiceRegistry([ControlBackend()])
    nodes.nodes[number].attach(private)
    return Resident(nodes.nodes[number], private, None)


async def pages(private: Resident, command: str, name: str, **params: Any) -> list[list[Any]]:
    """Ask for pages until the last one."""
    found: list[list[Any]] = []
    after: dict[str, Any] = {}
    while True:
        page = await private.ask("control", command, **params, **after)
        assert page.get("missing", []) == []
        found.append(page[name])
        if page["next"] is None:
            return found
        after = {"after": page["next"]}


async def test_connections_of_an_identity_are_listed_in_pages() -> None:
    async with town(3, services) as nodes:
        private = backend(nodes, 1)
        clients = [nodes.client(number, "ann") for number in (0, 0, 2, 0, 2)]
        nodes.client(0, "bob"), nodes.client(1)
        await clients[0].ask("pubsub", "subscribe", channel="news")
        (one,) = await pages(private, "connections", "connections", identity="ann")
        wanted = sorted((client.connection.id for client in clients), key=lambda each: (each[:2], int(each[3:])))
        assert [each["connection"] for each in one] == wanted
        assert one[0] == {
            "connection": clients[0].connection.id,
            "address": "",
            "transport": "websocket",
            "encoding": "json",
            "channels": 1,
        }
        for limit in (1, 2, 3, 5):
            several = await pages(private, "connections", "connections", identity="ann", limit=limit)
            assert [each["connection"] for page in several for each in page] == wanted
            assert all(len(page) <= limit for page in several)
        assert await pages(private, "connections", "connections", identity="nobody") == [[]]


async def test_pages_order_connections_by_number_not_by_text() -> None:
    async with town(1, services) as nodes:
        private = backend(nodes)
        clients = [nodes.client(0, "ann") for _ in range(25)]
        found = await pages(private, "connections", "connections", identity="ann", limit=4)
        assert [each["connection"] for page in found for each in page] == [each.connection.id for each in clients]


async def test_channels_that_match_are_listed_with_their_subscribers() -> None:
    async with town(2, services) as nodes:
        private = backend(nodes)
        a, b = nodes.client(0, "ann"), nodes.client(1, "bob")
        for channel in ("shop:1", "shop:2", {"a": 1}, "other"):
            await a.ask("pubsub", "subscribe", channel=channel)
        for channel in ("shop:2", "shop:3"):
            await b.ask("pubsub", "subscribe", channel=channel)
        await a.ask("chat", "join", channel="shop:9")
        shops = [
            {"channel": "shop:1", "subscribers": 1},
            {"channel": "shop:2", "subscribers": 2},
            {"channel": "shop:3", "subscribers": 1},
        ]
        assert await pages(private, "channels", "channels", pattern="shop:*") == [shops]
        assert await pages(private, "channels", "channels", pattern="shop:*", limit=1) == [[each] for each in shops]
        assert await pages(private, "channels", "channels", pattern="*2") == [shops[1:2]]
        everything = await pages(private, "channels", "channels", limit=2)
        assert [each for page in everything for each in page] == [
            {"channel": "other", "subscribers": 1},
            *shops,
            {"channel": {"a": 1}, "subscribers": 1},
        ]
        rooms = await pages(private, "channels", "channels", service="chat")
        assert rooms == [[{"channel": "shop:9", "subscribers": 1}]]


async def test_nodes_are_listed_with_their_state_and_missing_ones_are_named() -> None:
    async with town(3, services) as nodes:
        private = backend(nodes)
        await nodes.client(1).ask("pubsub", "subscribe", channel="news")
        (one,) = await pages(private, "nodes", "nodes")
        assert [(each["node"], each["connections"], each["channels"]) for each in one] == [
            ("n0", 1, 0),
            ("n1", 1, 1),
            ("n2", 0, 0),
        ]
        assert one[0]["isDraining"] is False and one[0]["version"]
        assert [[each["node"] for each in page] for page in await pages(private, "nodes", "nodes", limit=2)] == [
            ["n0", "n1"],
            ["n2"],
        ]
        with nodes.orders_delayed(2), capture_logs() as logs:
            page = await private.ask("control", "nodes")
        assert ([each["node"] for each in page["nodes"]], page["missing"]) == (["n0", "n1"], ["n2"])
        assert [each["outcome"] for each in logs if each["event"] == "control"] == ["incomplete"]


async def test_members_of_a_channel_are_listed_in_pages() -> None:
    async with town(2, services) as nodes:
        private = backend(nodes)
        names = [f"user {number:02}" for number in range(7)]
        for number, name in enumerate((*names, names[0])):
            await nodes.client(number, name).ask("pubsub", "subscribe", channel="room:1")
        assert await pages(private, "presence", "members", channel="room:1") == [names]
        found = await pages(private, "presence", "members", channel="room:1", limit=3)
        assert found == [names[:3], names[3:6], names[6:]]
        assert await pages(private, "presence", "members", channel="room:2") == [[]]


async def test_history_of_a_channel_is_read_as_clients_do() -> None:
    async with town(2, services) as nodes:
        private, client = backend(nodes), nodes.client(1)
        for number in range(4):
            await client.ask("pubsub", "publish", channel="room:1", message=number)
        found = await private.ask("control", "history", channel="room:1", limit=2)
        assert [each["message"] for each in found["messages"]] == [2, 3]
        first = await private.ask("control", "history", channel="room:1", limit=4)
        since = first["messages"][0]["position"]
        rest = await private.ask("control", "history", channel="room:1", since=since, limit=2)
        assert ([each["message"] for each in rest["messages"]], rest["recovered"]) == ([1, 2], True)
        assert await private.ask("control", "history", channel="bare") == {
            "position": None,
            "recovered": False,
            "messages": [],
        }


async def test_history_of_a_channel_is_removed_without_a_gap_for_subscribers() -> None:
    async with town(2, services) as nodes:
        private, client = backend(nodes), nodes.client(1)
        await client.ask("pubsub", "subscribe", channel="room:1", recover=True)
        for number in range(3):
            await client.ask("pubsub", "publish", channel="room:1", message=number)
        await client.notified(3)
        with capture_logs() as logs:
            assert await private.ask("control", "historyRemove", channel="room:1") is None
        assert [each["channel"] for each in logs if each["event"] == "control"] == ["room:1"]
        assert (await private.ask("control", "history", channel="room:1"))["messages"] == []
        await client.ask("pubsub", "publish", channel="room:1", message=3)
        await client.notified(4)
        assert [each["message"] for each in client.notifications] == [0, 1, 2, 3], "no gap"
        late = nodes.client(0)
        since = client.notifications[0]["position"]
        assert (await late.ask("pubsub", "subscribe", channel="room:1", recover=since))["recovered"] is False
        last = nodes.client(0)
        since = client.notifications[2]["position"]
        reply = await last.ask("pubsub", "subscribe", channel="room:1", recover=since)
        assert (reply["recovered"], [each["message"] for each in reply["messages"]]) == (True, [3])


@pytest.mark.parametrize(
    ("command", "params"),
    [
        ("nodes", {"limit": 0}),
        ("nodes", {"limit": 201}),
        ("nodes", {"limit": True}),
        ("nodes", {"after": 5}),
        ("nodes", {"after": ""}),
        ("connections", {"identity": ""}),
        ("connections", {}),
        ("connections", {"identity": "ann", "after": "no id"}),
        ("connections", {"identity": "ann", "after": "n0.x"}),
        ("channels", {"pattern": 5}),
        ("channels", {"pattern": "x" * 513}),
        ("channels", {"pattern": "{nonsense}"}),
        ("presence", {"channel": "x", "limit": "1"}),
        ("history", {"channel": "x", "since": "?"}),
        ("history", {"channel": "x", "limit": 1000}),
    ],
)
async def test_bad_parameters_are_refused_and_audited_once(command: str, params: Any) -> None:
    async with town(1, services) as nodes:
        private = backend(nodes)
        with capture_logs() as logs:
            assert await private.ask("control", command, **params) == "Error: Invalid params"
        assert [each["outcome"] for each in logs if each["event"] == "control"] == ["invalid_params"]


@pytest.mark.parametrize("command", ["channels", "presence", "history", "historyRemove"])
async def test_unknown_service_is_refused(command: str) -> None:
    async with town(1, services) as nodes:
        params = {} if command == "channels" else {"channel": "x"}
        answer = await backend(nodes).ask("control", command, service="none", **params)
        assert answer == "Error: There is no such service"


async def test_every_look_is_audited_with_whom_it_was_about() -> None:
    async with town(1, services) as nodes:
        private = backend(nodes)
        with capture_logs() as logs:
            await private.ask("control", "connections", identity="ann")
            await private.ask("control", "channels", pattern="a*")
            await private.ask("control", "presence", channel=["a", 1])
            await private.ask("control", "history", channel="room:1")
            with nodes.redis_unavailable():
                await private.ask("control", "nodes")
        dropped = ("event", "log_level", "by")
        told = [{k: v for k, v in each.items() if k not in dropped} for each in logs if each["event"] == "control"]
        assert told == [
            {"command": "connections", "outcome": "ok", "identity": "ann", "entries": 0},
            {"command": "channels", "outcome": "ok", "service": "pubsub", "pattern": "a*", "entries": 0},
            {"command": "presence", "outcome": "ok", "service": "pubsub", "channel": '~["a",1]', "members": 0},
            {"command": "history", "outcome": "ok", "service": "pubsub", "channel": "room:1", "messages": 0},
            {"command": "nodes", "outcome": "unavailable"},
        ]
