"""Pusher's clients without a WebSocket, each request to the next of two nodes: events, ends, pages, limits."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from snorky.client.aio import Publisher
from snorky.gateway.errors import CloseCode
from snorky.gateway.http.protocols.pusher import xhr
from snorky.gateway.http.protocols.pusher.codes import close_code_of
from tests.support.clients.pusher import KEY, connected, member
from tests.support.clients.pusher_xhr import KINDS, QUERY, connected_xhr, dialled_xhr
from tests.support.processes.nodes import NodeProcess, RedisProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.protocol_nodes import ENV, Nodes, token_of

DEADLINE_S = 30.0
ORIGIN = "https://app.example.org"
TEXT = 'é\u2028\u200d😀"\\ \x7f€'

each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice sooner that a client has gone."""
    monkeypatch.setattr(xhr, "TIMING", replace(xhr.TIMING, disconnect_delay_s=2.0, beat_s=0.1))


@pytest.fixture
async def urls(nodes: Nodes) -> list[str]:
    return [await nodes.start(SNORKY_PUBLIC__ALLOWED_ORIGINS=json.dumps([ORIGIN])) for _ in range(2)]


async def publish(nodes: Nodes, channel: str, *data: Any) -> None:
    async with Publisher(nodes.redis_url) as publisher:
        for each in data:
            await publisher.publish(channel, {"event": "shipped", "data": json.dumps(each)})


def sample(nodes: Nodes, name: str, **labels: str) -> float:
    found = [each.node.metrics.registry.get_sample_value(f"snorky_{name}", labels) for each in nodes.gateways]
    return sum(value or 0 for value in found)


# -- events -----------------------------------------------------------------------------------------------------------


@each_kind
async def test_events_of_a_channel_arrive_in_order(nodes: Nodes, urls: list[str], kind: str) -> None:
    async with connected_xhr(kind, urls) as (client, _):
        assert await client.subscribe("orders") == {}
        sent = [[number, TEXT] for number in range(200)]
        await publish(nodes, "orders", *sent)
        heard = [await client.event("shipped", "orders") for _ in sent]
        assert [json.loads(each["data"]) for each in heard] == sent
        assert sample(nodes, "connections", transport="pusher-xhr", encoding="json") == 1
        await client.unsubscribe("orders")
        assert await client.fence() == []
        assert sample(nodes, "messages_received_total", transport="pusher-xhr") == 3
    await nodes.until_subscribed(0)


@each_kind
async def test_client_events_go_both_ways(urls: list[str], kind: str) -> None:
    async with connected_xhr(kind, urls) as (client, _), connected(urls[0]) as other:
        for each in (client, other):
            await each.subscribe("private-room")
        for number in range(9):
            await client.send("client-typing", {"number": number}, "private-room")
            assert await other.data("client-typing", "private-room") == {"number": number}
        await other.send("client-typing", TEXT, "private-room")
        assert (await client.event("client-typing"))["data"] == TEXT
        assert await client.fence() == [], "and none of its own"


@each_kind
async def test_presence_channel_has_such_members(urls: list[str], kind: str) -> None:
    async with connected(urls[1]) as other:
        await other.subscribe("presence-room", member("bob"))
        async with connected_xhr(kind, urls) as (client, _):
            found = await client.subscribe("presence-room", member("ann", name="Ann"))
            assert sorted(found["presence"].pop("ids")) == ["ann", "bob"]
            assert found == {"presence": {"count": 2, "hash": {"ann": {"name": "Ann"}, "bob": None}}}
            added = await other.data("pusher_internal:member_added")
            assert added == {"user_id": "ann", "user_info": {"name": "Ann"}}
        assert await other.data("pusher_internal:member_removed") == {"user_id": "ann"}


@each_kind
async def test_user_signs_in_and_gets_personal_events(nodes: Nodes, urls: list[str], kind: str) -> None:
    async with connected_xhr(kind, urls) as (client, _):
        await client.signed_in({"id": "ann"})
        await client.subscribe("#server-to-user-ann")
        await publish(nodes, "#server-to-user-ann", 7)
        assert await client.data("shipped") == 7


async def test_stream_ends_with_the_frame_that_makes_the_client_end_it(nodes: Nodes, urls: list[str]) -> None:
    async with connected_xhr("xhr_streaming", urls) as (client, socket):
        await client.subscribe("orders")
        sent = [[number, TEXT * (number * 37 % 400)] for number in range(1_000)]
        publishing = asyncio.create_task(publish(nodes, "orders", *sent))
        assert [await client.data("shipped") for _ in sent] == sent
        await publishing
        assert socket.responses >= 5
        assert await client.fence() == []


# -- ends -------------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize(
    ("key", "query", "code"),
    [("unknown", QUERY, 4001), (KEY, "", 4008), (KEY, "protocol=4", 4007), (KEY, "protocol=x", 4007)],
)
async def test_client_without_an_app_or_protocol_is_told_so_in_one_response(
    nodes: Nodes, urls: list[str], kind: str, key: str, query: str, code: int
) -> None:
    async with dialled_xhr(kind, urls, key=key, query=query) as (client, socket):
        assert (await client.ended())[0] == code
        assert socket.is_open, "else pusher-js ignores the code"
        assert socket.responses == 1, "the next request would reach a node that does not know the session"
        assert sample(nodes, "connections_opened_total", transport="pusher-xhr") == 0


@each_kind
async def test_end_is_a_close_code_of_the_protocol(nodes: Nodes, urls: list[str], kind: str) -> None:
    async with connected_xhr(kind, urls) as (client, _):
        await client.signed_in({"id": "ann"})
        await nodes.gateways[0].node.control.give(
            "disconnect", identity="ann", code=int(CloseCode.DISCONNECTED), reason=""
        )
        assert (await client.ended())[0] == 4009
    async with connected_xhr(kind, urls) as (client, _):
        await client.send_text(json.dumps({"event": "client-a", "channel": "a", "data": "x" * 70_000}))
        assert (await client.ended())[0] == 1009


@each_kind
async def test_node_that_drains_sends_its_clients_away(nodes: Nodes, urls: list[str], kind: str) -> None:
    async with connected_xhr(kind, urls) as (client, _):
        (owner,) = [gateway for gateway in nodes.gateways if gateway.node.counts["connections"]]
        end, _ = await asyncio.gather(client.ended(), owner.drain())  # it polls all the time, as pusher-js does
        assert end[0] == 4200
    await asyncio.gather(*(gateway.drain() for gateway in nodes.gateways))
    async with dialled_xhr(kind, urls) as (client, _):
        assert await client.ended() == (1006, "Connection interrupted (503)")


async def test_refused_token_ends_the_session_for_good(urls: list[str]) -> None:
    for kind in KINDS:
        async with dialled_xhr(kind, urls, Authorization="Bearer nonsense") as (client, socket):
            assert (await client.ended())[0] == 4009
            assert socket.is_open


async def test_client_that_does_not_read_is_closed(nodes: Nodes) -> None:
    limits = {"SNORKY_LIMITS__OUTBOX_MAX_BYTES": "200000", "SNORKY_LIMITS__SEND_BUFFER_BYTES": "16384"}
    urls = [await nodes.start(**limits) for _ in range(2)]
    slow = [gateway.node.metrics.slow_consumers_closed for gateway in nodes.gateways]
    async with connected_xhr("xhr_streaming", urls) as (client, socket):
        await client.subscribe("orders")
        assert socket._response is not None and socket._response.connection is not None
        transport = socket._response.connection.transport
        assert transport is not None
        transport.pause_reading()  # type: ignore[attr-defined]
        await publish(nodes, "orders", *["x" * 8_000] * 100)
        async with asyncio.timeout(DEADLINE_S):
            while sum(each._value.get() for each in slow) == 0:
                await publish(nodes, "orders", *["x" * 8_000] * 10)
        await nodes.until_subscribed(0)


@each_kind
async def test_gap_lets_the_client_come_back_at_once(nodes: Nodes, urls: list[str], kind: str) -> None:
    async with connected_xhr(kind, urls) as (client, socket):
        (connection,) = [each for gateway in nodes.gateways for each in gateway.node.connections]
        asking = asyncio.create_task(client.event("never"))

        async def is_asking() -> bool:
            return connection._wire._drain is not None  # type: ignore[attr-defined]

        await eventually(is_asking, within_s=DEADLINE_S, what="the client receives")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        socket.abort()

        async def is_over() -> bool:
            return connection.is_closed

        await eventually(is_over, within_s=DEADLINE_S, what="the node notices")
        assert (await client.ended())[0] == 4200, "after 1002 pusher-js gives up this transport"


@pytest.mark.needs("redis-server")
@each_kind
async def test_client_of_a_lost_node_is_told_so_and_comes_back(redis: RedisProcess, kind: str) -> None:
    processes = [NodeProcess({**ENV, "SNORKY_REDIS_URL": redis.url}) for _ in range(2)]
    try:
        for process in processes:
            await process.wait_ready(60.0)
        urls = [f"http://127.0.0.1:{process.public_port}" for process in processes]
        async with connected(urls[0]) as other, connected_xhr(kind, urls) as (client, _):
            await other.subscribe("presence-room", member("bob"))
            await client.subscribe("presence-room", member("ann"))
            await other.event("pusher_internal:member_added")
            processes[1].kill()  # it got the first request
            assert (await client.ended())[0] == 1006
            async with connected_xhr(kind, urls[:1]) as (client, _):
                found = await client.subscribe("presence-room", member("ann"))
                assert sorted(found["presence"]["ids"]) == ["ann", "bob"]
                await other.send("client-typing", 7, "presence-room")
                assert await client.data("client-typing") == 7
    finally:
        for process in processes:
            await process.close()


# -- pages and sessions -----------------------------------------------------------------------------------------------


async def test_only_pages_of_allowed_origins_connect(urls: list[str]) -> None:
    async with aiohttp.ClientSession() as http:
        for origin, status in ((ORIGIN, 204), ("https://evil.example.org", 403)):
            headers = {"Origin": origin}
            for name in (*KINDS, "xhr_send"):
                url = f"{urls[0]}/pusher/app/{KEY}/1/of-{name}/{name}?{QUERY}"
                async with http.options(url, headers=headers) as response:
                    assert response.status == status
                    assert (response.headers.get("Access-Control-Allow-Origin") == origin) is (status == 204)
                    assert (response.headers.get("Access-Control-Allow-Headers") is not None) is (status == 204)
                async with http.post(url, data="[]", headers=headers) as response:
                    allowed = 404 if name == "xhr_send" else 200
                    assert response.status == (allowed if status == 204 else 403)
                    assert (response.headers.get("Access-Control-Allow-Origin") == origin) is (status == 204)
                    response.close()
        async with http.post(url, headers={"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}) as response:
            assert response.status == 403, "a form of another page"


@each_kind
async def test_session_is_known_by_key_number_and_name(nodes: Nodes, urls: list[str], kind: str) -> None:
    async with connected_xhr(kind, urls, Authorization=f"Bearer {token_of('ann')}") as (client, socket):
        number, name = socket.session.split("/")
        for at in (0, 1):
            for wrong in (f"{number}/other", f"9{number}/{name}"):
                assert await socket.post("[]", at=at, session=wrong) == 404
            async with aiohttp.ClientSession() as http:
                path = f"{socket.session}/xhr_send"
                for url in (f"/pusher/app/unknown/{path}", f"/sockjs/{path}", f"/pusher/app/{KEY}/{path}"):
                    async with http.post(urls[at] + url, data="[]") as response:
                        assert response.status == 404, "also with its own URL, but without its token"
        assert await client.fence() == []


@each_kind
async def test_sessions_of_sockjs_on_the_same_nodes_are_others(urls: list[str], kind: str) -> None:
    subscribe = {"service": "pubsub", "message": {"command": "subscribe", "params": {"channel": "orders"}, "callId": 1}}
    async with aiohttp.ClientSession() as http, connected_xhr(kind, urls) as (client, _):
        for at, name, body, answer in (
            (0, "xhr", "", "o\n"),
            (1, "xhr_send", json.dumps([json.dumps(subscribe)]), ""),
            (1, "xhr", "", 'a["{\\"service\\":\\"pubsub\\",'),
        ):
            assert await client.fence() == [], "its next requests are forwarded, as this one"
            async with http.post(f"{urls[at]}/sockjs/000/session/{name}", data=body) as response:
                assert (await response.text()).startswith(answer)
                assert response.status == (204 if name == "xhr_send" else 200)
        assert await client.fence() == []


@each_kind
async def test_guesses_of_sessions_are_limited(urls: list[str], kind: str) -> None:
    async with connected_xhr(kind, urls) as (client, socket):
        seen = set()
        for number in range(40):
            seen.add(await socket.post("[]", at=0, session=f"7/guess{number}"))
        assert seen == {404, 429}
        assert await client.fence() == []


# -- pings, limits ----------------------------------------------------------------------------------------------------


@each_kind
async def test_empty_request_is_a_ping(urls: list[str], kind: str) -> None:
    async with connected_xhr(kind, urls) as (client, socket):
        listening = asyncio.create_task(client.event("never"))

        async def has_heard() -> bool:
            assert await socket.post("[]") == 204
            return socket.pongs >= 3

        await eventually(has_heard, within_s=DEADLINE_S, what="pongs")
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_heartbeats_are_answered_once(monkeypatch: pytest.MonkeyPatch, nodes: Nodes) -> None:
    monkeypatch.setattr(xhr, "TIMING", replace(xhr.TIMING, heartbeat_s=0.2, beat_s=0.1))
    urls = [await nodes.start() for _ in range(2)]
    async with connected_xhr("xhr_streaming", urls) as (client, socket):
        listening = asyncio.create_task(client.event("never"))

        async def has_heard() -> bool:
            return socket.heartbeats >= 5

        await eventually(has_heard, within_s=DEADLINE_S, what="heartbeats")
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        assert socket.pongs <= socket.heartbeats, "an answer to each pong would never end"


@each_kind
async def test_requests_without_an_event_are_limited(nodes: Nodes, kind: str) -> None:
    urls = [await nodes.start(SNORKY_LIMITS__FRAMES_PER_S="1") for _ in range(2)]
    async with connected_xhr(kind, urls) as (client, socket):
        for _ in range(20):
            await socket.post("[]")
        assert (await client.ended())[0] == close_code_of(CloseCode.LIMIT)


@each_kind
async def test_clients_of_an_address_are_limited(nodes: Nodes, kind: str) -> None:
    urls = [await nodes.start(SNORKY_LIMITS__CONNECTIONS_PER_IP="1")]
    async with connected_xhr(kind, urls) as (client, _):
        async with dialled_xhr(kind, urls) as (other, _):
            assert await other.ended() == (1006, "Connection interrupted (429)")
        assert await client.fence() == []


async def test_body_that_is_no_list_of_texts_is_refused(urls: list[str]) -> None:
    async with connected_xhr("xhr_streaming", urls) as (client, socket):
        for at in (0, 1):
            for body in ("", "{}", "[1]", '["\\ud800"]', "["):
                assert await socket.post(body, at=at) == 500
            assert await socket.post("[" + " " * (1 << 20) + "]", at=at) == 413
        assert await client.fence() == []
