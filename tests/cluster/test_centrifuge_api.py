"""Centrifugo's server API on the private port, by `cent`, the library of its makers, and by requests of our own."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import cent
import pytest

from tests.support.clients.centrifuge import connected
from tests.support.scenarios.protocol_nodes import Nodes, token_of

KEY = "a-key-of-a-backend-0123456789abcdef"
RULES = [
    {"match": "room", "history": 10, "presence": True, "allow_subscribe": "anyone"},
    {"match": "*", "history": 0, "allow_subscribe": "anyone"},
]
ENV = {
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(RULES),
    "SNORKY_BACKEND__CONTROL__CLASS": "snorky.services.control:ControlBackend",
    "SNORKY_BACKEND__PUBSUB_BACKEND__CLASS": "snorky.services.pubsub:PubSubBackend",
    "SNORKY_PRIVATE__API_KEY": KEY,
}


@pytest.fixture
async def url(nodes: Nodes) -> str:
    return await nodes.start(**ENV)


@pytest.fixture
async def api(nodes: Nodes, url: str) -> AsyncIterator[cent.AsyncClient]:
    client = cent.AsyncClient(f"{nodes.gateways[0].private_urls[0]}/api", api_key=KEY)
    try:
        yield client
    finally:
        await client.close()


async def posted(nodes: Nodes, method: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Post by hand; returns the status and the decoded body."""
    address = f"{nodes.gateways[0].private_urls[0]}/api/{method}"
    data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    async with aiohttp.ClientSession() as http, http.post(address, data=data, headers=headers) as response:
        text = await response.text()
        return response.status, json.loads(text) if response.content_type == "application/json" else text


async def test_publications_and_history(nodes: Nodes, url: str, api: cent.AsyncClient) -> None:
    async with connected(url) as client:
        await client.call("subscribe", channel="room")
        for number in range(1, 4):
            result = await api.publish(
                cent.PublishRequest(channel="room", data={"n": number}, idempotency_key=f"{number}")
            )
            assert result.offset == number and result.epoch
        again = await api.publish(cent.PublishRequest(channel="room", data={"n": 3}, idempotency_key="3"))
        assert again.offset == 3, "an idempotency key"
        assert [(await client.push("room", "pub"))["data"] for _ in range(3)] == [{"n": 1}, {"n": 2}, {"n": 3}]
        page = await api.history(cent.HistoryRequest(channel="room", limit=2))
        assert ([each.data["n"] for each in page.publications], page.offset) == ([1, 2], 3)
        since = cent.StreamPosition(offset=2, epoch=page.epoch)
        page = await api.history(cent.HistoryRequest(channel="room", limit=-1, since=since))
        assert [each.offset for each in page.publications] == [3]
        page = await api.history(cent.HistoryRequest(channel="room", limit=1, reverse=True))
        assert [each.offset for each in page.publications] == [3]
        await api.history_remove(cent.HistoryRemoveRequest(channel="room"))
        page = await api.history(cent.HistoryRequest(channel="room", limit=5))
        assert (page.publications, page.offset) == ([], 3)
        _, body = await posted(nodes, "publish", {"channel": "room", "data": None}, **{"X-API-Key": KEY})
        assert body["result"]["offset"] == 4
        assert await client.push("room", "pub") == {"data": None, "offset": 4}
        found = await api.broadcast(cent.BroadcastRequest(channels=["room", "plain"], data=5))
        assert [each.result.offset for each in found.responses if each.result] == [5, 0]


async def test_presence_channels_and_nodes(nodes: Nodes, url: str, api: cent.AsyncClient) -> None:
    other_url = await nodes.start(**ENV)
    async with connected(url, token_of("ann")) as first, connected(other_url, token_of("ann")) as second:
        for client in (first, second):
            await client.call("subscribe", channel="room")
        await second.call("subscribe", channel="plain")
        present = (await api.presence(cent.PresenceRequest(channel="room"))).presence
        assert [each.user for each in present.values()] == ["ann", "ann"]
        stats = await api.presence_stats(cent.PresenceStatsRequest(channel="room"))
        assert (stats.num_clients, stats.num_users) == (2, 1)
        channels = (await api.channels(cent.ChannelsRequest(pattern="r*"))).channels
        assert {name: each.num_clients for name, each in channels.items()} == {"room": 2}
        assert set((await api.channels(cent.ChannelsRequest())).channels) == {"room", "plain"}
        found = (await api.info(cent.InfoRequest())).nodes
        assert sorted(each.num_clients for each in found) == [1, 1] and found[0].version


async def test_subscribe_unsubscribe_refresh_disconnect(nodes: Nodes, url: str, api: cent.AsyncClient) -> None:
    async with connected(url, token_of("ann")) as client, connected(url, token_of("ann")) as kept:
        await api.publish(cent.PublishRequest(channel="room", data=1))
        since = cent.StreamPosition(offset=0, epoch="")
        await api.subscribe(cent.SubscribeRequest(user="ann", channel="room", recover_since=since))
        for each in (client, kept):
            await each.push("room", "subscribe")
            assert (await each.push("room", "pub"))["data"] == 1
        await api.unsubscribe(cent.UnsubscribeRequest(user="ann", channel="room"))
        assert (await client.push("room", "unsubscribe"))["code"] == 2000
        await api.refresh(cent.RefreshRequest(user="ann", expire_at=int(time.time()) + 600))
        (one,) = [each for each in nodes.gateways[0].node.connections if each.id.endswith(".2")]
        told = cent.Disconnect(code=3503, reason="enough")
        await api.disconnect(cent.DisconnectRequest(user="ann", whitelist=[one.id], disconnect=told))
        assert await client.ended() == (3503, "enough")
        await kept.call("ping")
        await api.refresh(cent.RefreshRequest(user="ann", expired=True))
        assert (await kept.ended())[0] == 3011


async def test_batch(nodes: Nodes, url: str, api: cent.AsyncClient) -> None:
    requests = [
        cent.PublishRequest(channel="room", data=1),
        cent.PublishRequest(channel="room", data=2),
        cent.HistoryRequest(channel="room", limit=10),
    ]
    replies = (await api.batch(cent.BatchRequest(requests=requests))).replies
    assert [each.offset for each in replies] == [1, 2, 2]
    status, body = await posted(
        nodes, "batch", {"commands": [{"nothing": {}}, {"publish": {}}, 7]}, **{"X-API-Key": KEY}
    )
    assert status == 200 and [each["error"]["code"] for each in body["replies"]] == [104, 107, 107]


@pytest.mark.parametrize(
    ("method", "body", "status", "code"),
    [
        ("publish", {"channel": "room"}, 200, 107),
        ("publish", {"data": 1}, 200, 107),
        ("publish", {"channel": "room", "b64data": "!"}, 200, 107),
        ("publish", {"channel": "x" * 300, "data": 1}, 200, 107),
        ("broadcast", {"channels": "room", "data": 1}, 200, 107),
        ("history", {"channel": "plain"}, 200, 108),
        ("history", {"channel": "room", "since": {"epoch": "another", "offset": 1}}, 200, 112),
        ("history", {"channel": "room", "limit": "1"}, 200, 107),
        ("subscribe", {"channel": "room"}, 200, 107),
        ("disconnect", {}, 200, 107),
        ("refresh", {"user": "ann", "expire_at": "soon"}, 200, 107),
        ("presence", {}, 200, 107),
        ("channels", {"pattern": 7}, 200, 107),
        ("nothing", {}, 404, None),
        ("publish", b"no json", 400, None),
        ("publish", [], 200, 107),
    ],
)
async def test_request_that_makes_no_sense(
    nodes: Nodes, url: str, method: str, body: Any, status: int, code: int | None
) -> None:
    got, reply = await posted(nodes, method, body, **{"X-API-Key": KEY})
    assert got == status
    if code is not None:
        assert reply["error"]["code"] == code, reply
        got, _ = await posted(nodes, method, body, **{"X-API-Key": KEY, "X-Centrifugo-Error-Mode": "transport"})
        assert got == {112: 416}.get(code, 400)


async def test_only_a_key_opens_it(nodes: Nodes, url: str) -> None:
    body = {"channel": "room", "data": 1}
    for headers in (
        {},
        {"X-API-Key": "wrong"},
        {"Authorization": f"Bearer {KEY}"},
        {"X-API-Key": "wrong", "Authorization": f"apikey {KEY}"},
    ):
        assert (await posted(nodes, "publish", body, **headers))[0] == 401, headers
    for headers in ({"X-API-Key": KEY}, {"Authorization": f"apikey {KEY}"}):
        assert (await posted(nodes, "publish", body, **headers))[0] == 200
    assert (await posted(nodes, f"publish?api_key={KEY}", body))[0] == 200


async def test_key_of_one_service_opens_no_other(nodes: Nodes) -> None:
    keys = {"jobs": {"key": KEY, "services": ["pubsub_backend"]}}
    env = {name: value for name, value in ENV.items() if name != "SNORKY_PRIVATE__API_KEY"}
    await nodes.start(**env, SNORKY_PRIVATE__API_KEYS=json.dumps(keys))
    assert (await posted(nodes, "publish", {"channel": "room", "data": 1}, **{"X-API-Key": KEY}))[1]["result"][
        "offset"
    ] == 1
    assert (await posted(nodes, "info", **{"X-API-Key": KEY}))[1]["error"]["code"] == 103
