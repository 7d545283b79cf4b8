"""Centrifuge clients: `info` and `tags` of publications, on all nodes, live, recovered and listed."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import cent
import pytest

from snorky.client.aio import Publisher
from tests.support.clients.any_protocol import opened
from tests.support.clients.centrifuge import CommandFailed, connected, dialled
from tests.support.clients.centrifuge_protobuf import connected_by_protobuf
from tests.support.scenarios.attribute_nodes import (
    ANN,
    ENV,
    KEPT,
    PLAIN,
    TAGS,
    Connect,
    backend_api,
    called,
    each_form,
)
from tests.support.scenarios.centrifuge_nodes import token
from tests.support.scenarios.protocol_nodes import Nodes, until_heard
from tests.support.servers.hook_backend import HookBackend
from tests.support.servers.shared import SharedServers

each_channel = pytest.mark.parametrize("channel", [KEPT, PLAIN])


@pytest.fixture
async def urls(nodes: Nodes) -> list[str]:
    return [await nodes.start(**ENV) for _ in range(3)]


@pytest.fixture
async def api(nodes: Nodes, urls: list[str]) -> AsyncIterator[cent.AsyncClient]:
    async with backend_api(nodes) as client:
        yield client


def place_of(result: Any) -> dict[str, Any]:
    """Return what a client sends to recover from the position in a result."""
    return {"recover": True, "epoch": result["epoch"], "offset": result.get("offset", 0)}


# -- info -------------------------------------------------------------------------------------------------------------


@each_form
@each_channel
async def test_clients_on_all_nodes_get_the_info_of_the_publisher(
    nodes: Nodes, urls: list[str], connect: Connect, channel: str
) -> None:
    async with AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(each(url, ""))
            for url in urls
            for each in (connected, connected_by_protobuf)
        ]
        for each in readers:
            await each.call("subscribe", channel=channel)
        ann = await stack.enter_async_context(connect(urls[1], token("ann", info=ANN)))
        nobody = await stack.enter_async_context(connect(urls[2], ""))
        infos = []
        for client, user, claims in ((ann, "ann", {"conn_info": ANN}), (nobody, "", {})):
            await client.call("publish", channel=channel, data={"by": user})
            infos = [(await each.push(channel, "pub"))["info"] for each in readers]
            own = infos[0]["client"]
            assert infos == [{"user": user, "client": own, **claims}] * len(readers)
            assert any(each.node_id == own.rpartition(".")[0] for each in (gateway.node for gateway in nodes.gateways))
        assert len(infos) == 6


@each_form
async def test_recovery_and_histories_have_info_and_tags(
    nodes: Nodes, urls: list[str], api: cent.AsyncClient, connect: Connect
) -> None:
    async with connect(urls[0], "") as reader, connect(urls[1], token("ann", info=ANN)) as ann:
        place = place_of(await reader.call("subscribe", channel=KEPT))
        await ann.call("publish", channel=KEPT, data=1)
        info = (await reader.push(KEPT, "pub"))["info"]
        assert info == {"user": "ann", "client": info["client"], "conn_info": ANN}
        await api.publish(cent.PublishRequest(channel=KEPT, data=2, tags=TAGS))
        await api.publish(cent.PublishRequest(channel=KEPT, data=3))
        expected = [
            {"data": 1, "offset": 1, "info": info},
            {"data": 2, "offset": 2, "tags": TAGS},
            {"data": 3, "offset": 3},
        ]
        assert [await reader.push(KEPT, "pub") for _ in range(2)] == expected[1:]
        history = await ann.call("history", channel=KEPT, limit=-1)
        assert history["publications"] == expected
        reverse = await ann.call("history", channel=KEPT, limit=2, reverse=True)
        assert reverse["publications"] == expected[:0:-1]
    async with connect(urls[2], "") as again:
        found = await again.call("subscribe", channel=KEPT, **place)
        assert (found["recovered"], found["publications"]) == (True, expected)
    page = (await called(nodes, "history", channel=KEPT, limit=-1))["result"]["publications"]
    assert page == expected
    listed = (await api.history(cent.HistoryRequest(channel=KEPT, limit=2))).publications
    assert [each.tags for each in listed] == [None, TAGS]
    assert listed[0].info is not None and (listed[0].info.user, listed[0].info.conn_info) == ("ann", ANN)
    batch = await called(nodes, "batch", commands=[{"history": {"channel": KEPT, "limit": 1}}])
    assert batch["replies"][0]["history"]["publications"] == expected[:1]


@each_form
async def test_recovery_that_is_longer_than_a_reply_has_them_too(urls: list[str], connect: Connect) -> None:
    """What does not fit into the reply follows it as pushes."""
    info = "x" * 4_000
    async with connect(urls[0], "") as reader, connect(urls[1], token("ann", info=info)) as ann:
        place = place_of(await reader.call("subscribe", channel=KEPT))
        for number in range(50):
            await ann.call("publish", channel=KEPT, data=number)
    async with connect(urls[2], "") as again:
        found = (await again.call("subscribe", channel=KEPT, **place))["publications"]
        assert 5 < len(found) < 10, "the bytes of the infos count"
        found += [await again.push(KEPT, "pub") for _ in range(50 - len(found))]
        assert [each["data"] for each in found] == list(range(50))
        assert {each["info"]["conn_info"] for each in found} == {info}


async def test_recovery_of_subscriptions_by_the_server_has_them(urls: list[str], api: cent.AsyncClient) -> None:
    by_server = token("bob", channels=[KEPT])
    async with dialled(urls[0]) as bob:
        place = place_of((await bob.call("connect", token=by_server))["subs"][KEPT])
        await api.publish(cent.PublishRequest(channel=KEPT, data=1, tags=TAGS))
        assert (await bob.push(KEPT, "pub"))["tags"] == TAGS
    async with dialled(urls[1]) as bob:
        told = await bob.call("connect", token=by_server, subs={KEPT: place})
        assert told["subs"][KEPT]["publications"] == [{"data": 1, "offset": 1, "tags": TAGS}]


async def test_reply_to_connect_counts_their_bytes(nodes: Nodes, urls: list[str]) -> None:
    by_server = token("bob", channels=["kept.a", "kept.b"])
    async with dialled(urls[0]) as bob, connected(urls[1], token("ann", info="x" * 4_000)) as ann:
        subs = {name: place_of(sub) for name, sub in (await bob.call("connect", token=by_server))["subs"].items()}
        for channel in subs:
            for _ in range(7):
                await ann.call("publish", channel=channel, data=1)
    url = await nodes.start(**ENV, SNORKY_LIMITS__OUTBOX_MAX_BYTES="100000")
    async with dialled(url) as bob:
        told = (await bob.call("connect", token=by_server, subs=subs))["subs"]
        assert sorted(each.get("recovered", False) for each in told.values()) == [False, True]


async def test_info_follows_a_later_token(urls: list[str]) -> None:
    async with connected(urls[0]) as reader, connected(urls[1], token("ann", info={"v": 1})) as ann:
        await reader.call("subscribe", channel=PLAIN)
        for claims in ({"info": {"v": 1}}, {"info": {"v": 2}}, {}, {"info": 0}):
            await ann.call("refresh", token=token("ann", **claims))
            await ann.call("publish", channel=PLAIN, data=1)
            info = (await reader.push(PLAIN, "pub"))["info"]
            assert info.get("conn_info", "none") == claims.get("info", "none")


async def test_info_that_is_too_large_or_too_deep_is_left_out(urls: list[str]) -> None:
    deep: Any = 1
    for _ in range(28):
        deep = [deep]
    async with connected(urls[0]) as reader:
        await reader.call("subscribe", channel=KEPT)
        for info in ("x" * 4_500, deep):
            async with connected(urls[1], token("ann", info=info)) as ann:
                await ann.call("publish", channel=KEPT, data=1)
                assert (await reader.push(KEPT, "pub"))["info"].keys() == {"user", "client"}
                assert (await ann.call("history", channel=KEPT, limit=-1))["publications"]


async def test_publication_that_a_hook_permits_has_the_info(nodes: Nodes) -> None:
    async with HookBackend({"allow": True}) as backend:
        url = await nodes.start(**ENV, SNORKY_HOOKS__PUBLISH__URL=backend.url)
        async with connected(url, token("ann", info=ANN)) as ann:
            await ann.call("subscribe", channel=KEPT)
            await ann.call("publish", channel=KEPT, data=1)
            assert (await ann.push(KEPT, "pub"))["info"]["conn_info"] == ANN


@pytest.mark.parametrize("kind", ["http_stream", "sse"])
async def test_clients_without_a_websocket_get_them(urls: list[str], api: cent.AsyncClient, kind: str) -> None:
    commands: list[Any] = [{"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": KEPT}}]
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{urls[1]}/connection/{kind}", data="\n".join(map(json.dumps, commands))) as stream:
            found: Any = {}
            while "push" not in found:
                line = (await stream.content.readline()).decode().strip().removeprefix("data: ")
                found = json.loads(line or "{}")
                if found.get("id") == 2:
                    await api.publish(cent.PublishRequest(channel=KEPT, data=1, tags=TAGS))
            assert found["push"]["pub"] == {"data": 1, "offset": 1, "tags": TAGS}


@each_channel
async def test_publications_keep_their_order(urls: list[str], api: cent.AsyncClient, channel: str) -> None:
    """Publications with and without attributes come by different channels of Redis if there is no history."""
    async with connected(urls[0]) as reader, connected(urls[1], token("ann", info=ANN)) as ann:
        await reader.call("subscribe", channel=channel)
        for number in range(0, 60, 2):
            await ann.call("publish", channel=channel, data=number)
            await api.publish(cent.PublishRequest(channel=channel, data=number + 1))
        found = [await reader.push(channel, "pub") for _ in range(60)]
        assert [each["data"] for each in found] == list(range(60))
        assert ["info" in each for each in found] == [True, False] * 30


@each_channel
@pytest.mark.parametrize("kind", ["json", "msgpack", "sse", "raw", "pusher"])
async def test_clients_of_other_protocols_notice_nothing(
    nodes: Nodes, urls: list[str], api: cent.AsyncClient, kind: str, channel: str
) -> None:
    async with (
        opened(kind, urls[0], channel) as other,
        connected(urls[1], token("ann", info=ANN)) as ann,
        Publisher(nodes.redis_url) as publisher,
    ):
        await until_heard(other, publisher)
        await ann.call("publish", channel=channel, data={"n": 1})
        await api.publish(cent.PublishRequest(channel=channel, data={"n": 2}, tags=TAGS))
        assert [await other.message(), await other.message()] == [{"n": 1}, {"n": 2}]


async def test_replies_to_clients_of_snorkys_own_protocol_have_none(urls: list[str], api: cent.AsyncClient) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{urls[0]}/ws") as socket:

        async def asked(command: str, **params: Any) -> Any:
            message = {"command": command, "params": {"channel": KEPT, **params}, "callId": 1}
            await socket.send_json({"service": "pubsub", "message": message})
            return (await socket.receive_json())["message"]["data"]

        begun = await asked("subscribe", recover=True)
        await asked("unsubscribe")
        await api.publish(cent.PublishRequest(channel=KEPT, data=1, tags=TAGS))
        for reply in (
            await asked("subscribe", recover=begun["position"]),
            await asked("history"),
            await asked("history", order="newest"),
        ):
            assert [set(each) for each in reply["messages"]] == [{"message", "offset", "position"}]


# -- tags -------------------------------------------------------------------------------------------------------------


@each_form
@each_channel
async def test_tags_of_the_server_reach_clients_on_all_nodes(
    urls: list[str], api: cent.AsyncClient, connect: Connect, channel: str
) -> None:
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(connect(url, "")) for url in urls]
        for each in readers:
            await each.call("subscribe", channel=channel)
        data = base64.b64encode(b"1").decode()
        for key in (None, "once"):
            for _ in range(2):
                await api.publish(
                    cent.PublishRequest(channel=channel, data=None, b64data=data, tags=TAGS, idempotency_key=key)
                )
        await api.broadcast(cent.BroadcastRequest(channels=[channel, "plain.other"], data=2, tags={"a": "b"}))
        for each in readers:
            found = [await each.push(channel, "pub") for _ in range(4)]
            assert [(pub["data"], pub["tags"]) for pub in found] == [(1, TAGS)] * 3 + [(2, {"a": "b"})]


@pytest.mark.parametrize(
    ("tags", "is_accepted"),
    [
        (None, True),
        ({}, True),
        ({"a": "x" * (1_024 - len('{"a":""}'))}, True),
        ({"a": "x" * (1_025 - len('{"a":""}'))}, False),
        ({"€" * 340: ""}, False),
        ({"a": 1}, False),
        ({"a": None}, False),
        ({"a": {"b": "c"}}, False),
        ([], False),
        ("a", False),
    ],
    ids=lambda each: str(each)[:12],
)
async def test_tags_are_texts_within_a_bound(nodes: Nodes, urls: list[str], tags: Any, is_accepted: bool) -> None:
    async with connected(urls[1]) as reader:
        await reader.call("subscribe", channel=KEPT)
        reply = await called(nodes, "publish", channel=KEPT, data=1, tags=tags)
        broadcast = (await called(nodes, "broadcast", channels=[KEPT], data=2, tags=tags))["result"]["responses"][0]
        if is_accepted:
            assert "result" in reply and "result" in broadcast
            assert (await reader.push(KEPT, "pub")).get("tags", {}) == (tags or {})
        else:
            assert reply["error"]["code"] == broadcast["error"]["code"] == 107
            assert not (await called(nodes, "history", channel=KEPT, limit=-1))["result"]["publications"]


async def test_stored_bytes_count_the_info(nodes: Nodes) -> None:
    url = await nodes.start(**ENV, SNORKY_LIMITS__STORED_BYTES_PER_IDENTITY="40000")
    async with connected(url, token("ann")) as ann, connected(url, token("bob", info="x" * 4_000)) as bob:
        for _ in range(20):
            await ann.call("publish", channel=KEPT, data=1)
        with pytest.raises(CommandFailed, match="111"):
            for _ in range(20):
                await bob.call("publish", channel=KEPT, data=1)


async def test_a_redis_cluster_carries_them(shared: SharedServers) -> None:
    async with shared.lend("cluster") as server, AsyncExitStack() as stack:
        nodes = Nodes(server.url, stack)
        urls = [await nodes.start(**ENV) for _ in range(2)]
        for channel in (*(f"kept.{number}" for number in range(4)), *(f"plain.{number}" for number in range(4))):
            async with connected(urls[0]) as reader, connected(urls[1], token("ann", info=ANN)) as ann:
                begun = await reader.call("subscribe", channel=channel)
                await ann.call("publish", channel=channel, data=1)
                for key in (None, "once", "once"):
                    reply = await called(nodes, "publish", channel=channel, data=2, tags=TAGS, idempotency_key=key)
                    assert "result" in reply
                await called(nodes, "publish", channel=channel, data=3)
                found = [await reader.push(channel, "pub") for _ in range(4)]
                assert [(each["data"], each.get("tags")) for each in found] == [
                    (1, None),
                    (2, TAGS),
                    (2, TAGS),
                    (3, None),
                ]
                assert ["info" in each for each in found] == [True, False, False, False]
            if channel.startswith("kept"):
                async with connected(urls[1]) as again:
                    recovered = await again.call("subscribe", channel=channel, **place_of(begun))
                    assert recovered["publications"] == found
