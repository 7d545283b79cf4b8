"""Pusher's HTTP API over two nodes, by requests made by hand: events, counts, users. The requests as such: see
test_pusher_api_requests.py; the library of its makers: test_pusher_api_library.py."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from yarl import URL

import snorky.gateway.http.protocols.pusher.surveys as surveys
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.http.protocols.pusher.surveys import Surveys
from snorky.gateway.sdk.control import Control
from tests.support.clients.pusher import PusherClient, connected, member
from tests.support.clients.pusher_api import API_KEY, API_SECRET, BESIDE_SHOP, called, target_of
from tests.support.scenarios.protocol_nodes import Nodes

RULES = [
    {"match": "cache-*", "history": 1, "history_ttl_s": 60, "allow_subscribe": "anyone"},
    {"match": "*", "allow_subscribe": "anyone"},
]
ENV = BESIDE_SHOP | {"SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(RULES)}
ROOM = "presence-room"
NAMES = "private-Az09_-=@,.;x"  # all characters that a channel's name may have
ODD_USERS = ["ann@example.com", "a/b c", "ü;é", "50%", "a%2Fb", "#ann?", "~x", "x" * 255]


@dataclass
class Site:
    """Two nodes. urls: of their public ports."""

    nodes: Nodes
    urls: tuple[str, str]

    async def call(self, method: str, path: str, body: Any = None, *, node: int = 0, **about: Any) -> tuple[int, Any]:
        """Send a request to a node."""
        return await called(self.urls[node], method, path, body, **about)

    def client(self, node: int) -> Any:
        """Open a client of the app on a node."""
        return connected(self.urls[node], API_KEY, API_SECRET)

    def sample(self, name: str, **labels: str) -> float:
        """Read a metric of the first node."""
        return self.nodes.gateways[0].node.metrics.registry.get_sample_value(name, labels) or 0


@pytest.fixture
async def site(nodes: Nodes) -> Site:
    return Site(nodes, (await nodes.start(**ENV), await nodes.start(**ENV)))


def event(name: str, channel: str, data: str) -> dict[str, Any]:
    return {"event": name, "channel": channel, "data": data}


async def signed_in(client: PusherClient, user: str) -> None:
    await client.signed_in({"id": user})


@pytest.mark.parametrize("channel", ["news", NAMES, "private-encrypted-a", ROOM, "cache-news"])
async def test_event_reaches_the_clients_of_all_nodes_with_the_very_data(site: Site, channel: str) -> None:
    data = '{"nonce":"bm9u","ciphertext":"Y2lwaA=="} \\ud83d \u00e9\u0000'
    async with site.client(0) as one, site.client(1) as other:
        for client in (one, other):
            await client.subscribe(channel, member("ann") if channel == ROOM else None)
        assert await site.call("POST", "/events", {"name": "App\\Shipped", "data": data, "channel": channel}) == (
            200,
            {},
        )
        for client in (one, other):
            assert await client.event("App\\Shipped") == event("App\\Shipped", channel, data)


async def test_event_goes_to_each_channel_that_it_names(site: Site) -> None:
    names = [f"news-{number}" for number in range(100)]
    async with site.client(1) as client:
        for name in names:
            await client.subscribe(name)
        body = {"name": "a", "data": "1", "channels": names}
        assert await site.call("POST", "/events", body) == (200, {})
        assert [await client.event("a") for _ in names] == [event("a", name, "1") for name in names]
        status, text = await site.call("POST", "/events", body | {"channels": [*names, "more"]})
        assert (status, text) == (400, "channels must be a list of 1 to 100 names")
        assert await client.fence() == []


@pytest.mark.parametrize("channel", ["news", "cache-news"])
async def test_sender_of_an_event_does_not_get_it(site: Site, channel: str) -> None:
    async with site.client(0) as sender, site.client(0) as near, site.client(1) as far:
        for client in (sender, near, far):
            await client.subscribe(channel)
        for number in range(3):
            body = {"name": "a", "data": f"{number}", "channel": channel}
            body |= {"socket_id": sender.socket_id} if number != 1 else {}
            assert (await site.call("POST", "/events", body, node=number % 2))[0] == 200
            for client in (near, far):
                assert (await client.event("a"))["data"] == f"{number}"
        assert await sender.event("a") == event("a", channel, "1")
        assert [each for each in await sender.fence() if each["event"] == "a"] == []
        async with site.client(1) as late:
            await late.subscribe(channel)
            kept = [each["data"] for each in await late.fence() if each["event"] == "a"]
            assert kept == (["2"] if channel == "cache-news" else [])


async def test_batch_publishes_in_order_and_answers_what_each_event_asks(site: Site) -> None:
    async with site.client(0) as one, site.client(1) as other:
        for client in (one, other):
            await client.subscribe(ROOM, member("ann"))
        await other.subscribe("news")
        batch: list[dict[str, Any]] = [{"name": "a", "data": f"{n}", "channel": "news"} for n in range(10)]
        batch[3] |= {"channel": ROOM, "info": "user_count", "socket_id": one.socket_id}
        batch[4] |= {"info": "subscription_count,user_count"}
        status, answer = await site.call("POST", "/batch_events", {"batch": batch})
        counted = {3: {"user_count": 1}, 4: {"subscription_count": 1}}
        assert (status, answer) == (200, {"batch": [counted.get(n, {}) for n in range(10)]})
        assert (await other.event("a", ROOM))["data"] == "3"
        assert [(await other.event("a", "news"))["data"] for _ in range(9)] == ["0", "1", "2", *"456789"]
        assert [each for each in await one.fence() if each["event"] == "a"] == []
        assert await site.call("POST", "/batch_events", {"batch": batch[:1]}) == (200, {})
        status, text = await site.call("POST", "/batch_events", {"batch": [*batch, batch[0]]})
        assert (status, text) == (400, "batch must be a list of 1 to 10 events")


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"name": ""}, 400),
        ({"data": {}}, 400),
        ({"channel": "a:b"}, 400),
        ({"channel": "#server-to-user-" + "ü" * 200}, 400),
        ({"data": "x" * 65_537}, 413),
        (None, 400),
    ],
)
async def test_no_event_of_a_batch_is_published_if_one_is_refused(
    site: Site, wrong: dict[str, Any] | None, status: int
) -> None:
    right = {"name": "a", "data": "1", "channel": "news"}
    async with site.client(0) as client:
        await client.subscribe("news")
        batch = [right, None if wrong is None else right | wrong]
        assert (await site.call("POST", "/batch_events", {"batch": batch}))[0] == status
        assert (await site.call("POST", "/events", right | {"data": "fence"}))[0] == 200
        assert (await client.event("a"))["data"] == "fence"


async def test_counts_are_those_of_all_nodes_and_a_user_counts_once(site: Site) -> None:
    async with site.client(0) as one, site.client(1) as two, site.client(1) as three:
        for client, user in ((one, "ann"), (two, "ann"), (three, "bob")):
            await client.subscribe(ROOM, member(user, n=1))
        await three.subscribe("news")
        both = {"info": "user_count,subscription_count"}
        body = {"name": "a", "data": "1", "channels": [ROOM, "news", "empty"], **both}
        counts = {ROOM: {"user_count": 2, "subscription_count": 3}, "news": {"subscription_count": 1}}
        empty = {"subscription_count": 0}
        assert await site.call("POST", "/events", body) == (200, {"channels": counts | {"empty": empty}})
        assert await site.call("GET", f"/channels/{ROOM}", query=both) == (200, {"occupied": True, **counts[ROOM]})
        assert await site.call("GET", "/channels/news") == (200, {"occupied": True})
        assert await site.call("GET", "/channels/presence-none", query=both) == (
            200,
            {"occupied": False, "user_count": 0, "subscription_count": 0},
        )
        assert await site.call("GET", f"/channels/{ROOM}/users", node=1) == (
            200,
            {"users": [{"id": "ann"}, {"id": "bob"}]},
        )
        assert await site.call("GET", "/channels/presence-none/users") == (200, {"users": []})
        query = {"info": "user_count,subscription_count", "filter_by_prefix": "presence-"}
        assert await site.call("GET", "/channels", query=query) == (200, {"channels": {ROOM: counts[ROOM]}})


async def test_occupied_channels_are_listed_by_prefix_and_page_by_page(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveys, "CHANNELS_MAX", 2)
    names = [f"a-{number}" for number in range(7)]
    async with site.client(0) as one, site.client(1) as other:
        for number, name in enumerate([*names, "b-1", NAMES]):
            await (one, other)[number % 2].subscribe(name)
        await other.subscribe("a-0")
        assert await site.call("GET", "/channels", query={"filter_by_prefix": "a-"}) == (
            200,
            {"channels": {name: {} for name in names}},
        )
        query = {"filter_by_prefix": NAMES[:12], "info": "subscription_count"}
        assert await site.call("GET", "/channels", query=query) == (
            200,
            {"channels": {NAMES: {"subscription_count": 1}}},
        )
        assert set((await site.call("GET", "/channels"))[1]["channels"]) == {*names, "b-1", NAMES}
        await other.unsubscribe("a-1")
        await other.fence()
        assert "a-1" not in (await site.call("GET", "/channels"))[1]["channels"]
        monkeypatch.setattr(surveys, "LIST_MAX", 4)
        assert (await site.call("GET", "/channels"))[0] == 400


async def test_channels_of_other_protocols_that_pusher_cannot_name_are_not_listed(site: Site) -> None:
    async with site.client(0) as client:
        await client.subscribe("news")
        connection = next(iter(site.nodes.gateways[0].node.connections))
        service: Any = site.nodes.gateways[0].node.find_service("pubsub")
        for name in ("kept:news", "x" * 250, 7, {"a": 1}):
            await service.topics.subscribe(connection, name)
        assert await site.call("GET", "/channels") == (200, {"channels": {"news": {}}})


async def test_kept_event_of_a_cache_channel_is_in_its_description(site: Site) -> None:
    query = {"info": "cache"}
    assert await site.call("GET", "/channels/cache-a", query=query) == (200, {"occupied": False, "cache": None})
    body = {"name": "price", "data": '{"n":1}', "channel": "cache-a"}
    assert await site.call("POST", "/events", body) == (200, {})
    cache = {"event": "price", "data": '{"n":1}'}
    assert await site.call("GET", "/channels/cache-a", query=query, node=1) == (
        200,
        {"occupied": False, "cache": cache},
    )
    assert (await site.call("GET", "/channels/news", query=query))[0] == 400


@pytest.mark.parametrize("user", ODD_USERS)
@pytest.mark.parametrize("app", ["/apps/7", ""])
async def test_connections_of_a_user_are_terminated_on_all_nodes(site: Site, user: str, app: str) -> None:
    async with site.client(0) as one, site.client(1) as two, site.client(1) as other, site.client(0) as nobody:
        for client, name in ((one, user), (two, user), (other, "somebody else")):
            await signed_in(client, name)
        path = f"/users/{user}/terminate_connections"
        quoted = "".join(f"%{byte:02X}" for byte in user.encode())  # as a careful library sends it
        sent = path.replace(user, quoted)
        assert await site.call("POST", sent, {}, app=app, signed_path=app + path) == (200, {})
        for client in (one, two):
            assert await client.ended() == (4009, "Terminated by the backend")
        for client in (other, nobody):
            await client.fence()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/events", b"", 400),
        ("POST", "/events", b"{", 400),
        ("POST", "/events", [], 400),
        ("POST", "/events", {}, 400),
        ("POST", "/events", {"name": "a", "data": "1"}, 400),
        ("POST", "/events", {"name": "a", "data": "1", "channels": []}, 400),
        ("POST", "/events", {"name": "a", "data": "1", "channels": "news"}, 400),
        ("POST", "/events", {"name": "a", "data": "1", "channels": None, "channel": "news"}, 400),
        ("POST", "/events", {"name": "a", "data": "1", "channels": ["news", 7]}, 400),
        ("POST", "/events", {"name": "a", "data": "1", "channel": "x" * 201}, 400),
        ("POST", "/events", {"name": "a", "data": "1", "channel": "#server-to-user-"}, 400),
        ("POST", "/events", {"name": "a" * 201, "data": "1", "channel": "news"}, 400),
        ("POST", "/events", {"name": 1, "data": "1", "channel": "news"}, 400),
        ("POST", "/events", {"name": "pusher:error", "data": "1", "channel": "news"}, 400),
        ("POST", "/events", {"name": "pusher_internal:member_added", "data": "1", "channel": "news"}, 400),
        ("POST", "/events", {"name": "a", "data": None, "channel": "news"}, 400),
        ("POST", "/events", {"name": "\ud800", "data": "1", "channel": "news"}, 400),
        ("POST", "/events", {"name": "a", "data": "\ud800", "channel": "news"}, 400),
        ("POST", "/events", {"name": "a", "data": "1", "channel": "news", "socket_id": "1"}, 400),
        ("POST", "/events", {"name": "a", "data": "1", "channel": "news", "socket_id": 1.5}, 400),
        ("POST", "/events", {"name": "a", "data": "é" * 32_769, "channel": "news"}, 413),
        ("POST", "/events", b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", 400),
        ("POST", "/batch_events", {"batch": []}, 400),
        ("POST", "/batch_events", {"batch": {"name": "a"}}, 400),
        ("POST", "/batch_events", {"name": "a", "data": "1", "channel": "news"}, 400),
        ("POST", "/events", {"name": "a", "data": "1", "channels": ["news", "#server-to-user-" + "ü" * 200]}, 400),
        ("GET", "/channels?filter_by_prefix=#server-to-user-{a", None, 400),
        ("GET", "/channels?filter_by_prefix=#server-to-user-*", None, 400),
        ("GET", "/channels?filter_by_prefix=a:b", None, 400),
        ("GET", "/channels?info=user_count", None, 400),
        ("GET", "/channels?info=user_count&filter_by_prefix=private-", None, 400),
        ("GET", "/channels/a:b", None, 400),
        ("GET", "/channels/news?info=user_count", None, 400),
        ("GET", "/channels/news/users", None, 400),
        ("POST", f"/users/{'x' * 256}/terminate_connections", {}, 400),
        ("POST", "/users/a%00b/terminate_connections", {}, 400),
        ("POST", "/nothing", {}, 404),
        ("GET", "/events", None, 405),
    ],
)
async def test_malformed_request_is_refused(site: Site, method: str, path: str, body: Any, status: int) -> None:
    path, _, query = path.partition("?")
    pairs = dict(each.split("=") for each in query.split("&")) if query else {}
    signed = "/apps/7" + path.replace("%00", "\0")
    found, text = await site.call(method, path, body, query=pairs, signed_path=signed)
    assert found == status and isinstance(text, str)
    outcome = {400: "malformed", 413: "too_large"}.get(status)
    if outcome is not None:
        assert site.sample("snorky_pusher_requests_total", app="7", outcome=outcome) == 1


async def test_values_at_their_limits_are_accepted(site: Site) -> None:
    body = {"name": "a" * 200, "data": "é" * 32_768, "channel": "x" * 200}
    assert await site.call("POST", "/events", body) == (200, {})
    assert site.sample("snorky_pusher_requests_total", app="7", outcome="ok") == 1


async def test_event_that_is_published_is_no_failure_although_its_counts_are_missing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(_surveys: Surveys, _service: str, _channels: Any) -> dict[str, int]:
        raise BrokerUnavailable("control order")

    monkeypatch.setattr(Surveys, "subscribers", unavailable)
    event = {"name": "e", "data": "1", "channel": "a", "info": "subscription_count"}
    assert await site.call("POST", "/events", event) == (200, {"channels": {"a": {}}})
    assert await site.call("POST", "/batch_events", {"batch": [event]}) == (200, {"batch": [{}]})
    status, _ = await site.call("GET", "/channels/a")
    assert status == 503


async def test_event_that_some_channels_did_not_get_is_answered_with_503(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    service: Any = site.nodes.gateways[0].node.find_service("pubsub")
    right = service.published

    def published(channel: Any, *about: Any, **more: Any) -> asyncio.Future[Any]:
        if channel != "lost":
            return right(channel, *about, **more)  # type: ignore[no-any-return]
        failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        failed.set_exception(BrokerUnavailable("publish"))
        return failed

    monkeypatch.setattr(service, "published", published)
    async with site.client(1) as client:
        for channel in ("a", "b"):
            await client.subscribe(channel)
        status, text = await site.call("POST", "/events", {"name": "x", "data": "1", "channels": ["a", "lost", "b"]})
        assert (status, text) == (503, "Temporarily unavailable: try again")
        assert [(await client.event("x"))["channel"] for _ in "ab"] == ["a", "b"]
    assert site.sample("snorky_pusher_requests_total", app="7", outcome="unavailable") == 1


async def test_counts_of_many_channels_take_few_questions_and_read_no_roster(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    right = Control.look

    async def look(control: Control, what: Any, **about: Any) -> Any:
        asked.append(about)
        return await right(control, what, **about)

    async def listed(*_: Any) -> Any:
        raise AssertionError("the roster is read")

    names = [f"presence-{number}" for number in range(100)]
    async with site.client(0) as client:
        for name in names[:3]:
            await client.subscribe(name, member("ann"))
        monkeypatch.setattr(Control, "look", look)
        monkeypatch.setattr(type(site.nodes.gateways[0].node.ownership.directory), "listed", listed)
        body = {"name": "a", "data": "1", "channels": names, "info": "user_count,subscription_count"}
        status, answer = await site.call("POST", "/events", body)
        assert status == 200 and len(asked) <= 2, asked
        none, one = ({"user_count": count, "subscription_count": count} for count in (0, 1))
        assert answer == {"channels": {name: one if name in names[:3] else none for name in names}}
        del asked[:]
        found = await asyncio.gather(*(site.call("GET", f"/channels/{name}") for name in names))
        assert [each[1]["occupied"] for each in found] == [name in names[:3] for name in names]
        assert len(asked) <= 10, "requests at the same time share questions"


async def test_answer_without_facts_is_exactly_an_empty_object(site: Site) -> None:
    for path, body in (
        ("/events", {"name": "a", "data": "1", "channel": "news"}),
        ("/batch_events", {"batch": [{"name": "a", "data": "1", "channel": "news"}]}),
        ("/users/ann/terminate_connections", {}),
    ):
        data = json.dumps(body).encode()
        address = URL(site.urls[0] + target_of("POST", path, data), encoded=True)
        async with aiohttp.ClientSession() as http, http.post(address, data=data) as response:
            assert (response.status, await response.read(), response.content_type) == (200, b"{}", "application/json")
