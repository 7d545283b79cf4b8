"""Event streams: tickets, origins of pages, several channels, the end of streams, limits."""

import asyncio
import json
from collections.abc import AsyncIterator
from time import monotonic

import aiohttp
import pytest

from snorky.client import AsyncSnorkyBackend, SnorkyHTTPTransport
from snorky.client.aio import Publisher
from snorky.client.control import AsyncControl
from snorky.client.tokens import Signer
from tests.support.clients.any_protocol import DEADLINE_S, Refused, opened
from tests.support.processes.tools import eventually
from tests.support.scenarios.protocol_nodes import CHANNEL, Nodes, token_of
from tests.support.scenarios.tokens import SECRET

ORIGIN = "https://app.example.org"
OTHER = {"Origin": "https://evil.example.org"}


@pytest.fixture
async def url(nodes: Nodes) -> str:
    return await nodes.start(SNORKY_PUBLIC__ALLOWED_ORIGINS=json.dumps([ORIGIN]))


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE_S)) as session:
        yield session


async def no_connections(nodes: Nodes) -> None:
    """Wait until nothing of the clients is left on the nodes."""

    async def none() -> bool:
        counts = [each.node.counts for each in nodes.gateways]
        return all(each["connections"] == each["subscriptions"] == 0 for each in counts)

    await eventually(none, within_s=DEADLINE_S, what="no connections")


# -- tickets ----------------------------------------------------------------------------------------------------------


async def ticket_for(http: aiohttp.ClientSession, url: str, token: str) -> str:
    headers = {"Authorization": f"Bearer {token}"}
    async with http.post(f"{url}/sse/ticket", headers=headers) as response:
        assert (response.status, response.headers["Cache-Control"]) == (200, "no-store")
        body = await response.json()
    assert body["expiresInS"] == 30 and token not in body["ticket"]
    return str(body["ticket"])


async def test_ticket_opens_one_stream_on_any_node(nodes: Nodes, url: str, http: aiohttp.ClientSession) -> None:
    other = await nodes.start()
    ticket = await ticket_for(http, url, token_of("ann"))
    async with http.get(f"{other}/sse?channel=own:ann&ticket={ticket}") as response:
        assert response.status == 200
        assert [each.identity for gateway in nodes.gateways for each in gateway.node.connections] == ["ann"]
    async with http.get(f"{url}/sse?channel=own:ann&ticket={ticket}") as again:
        assert (again.status, await again.text()) == (
            401,
            "The ticket is used or has expired: request another one\n",
        )


async def test_ticket_of_a_revoked_token_opens_nothing(nodes: Nodes, url: str, http: aiohttp.ClientSession) -> None:
    ticket = await ticket_for(http, url, token_of("ann"))
    await nodes.gateways[0].node.auth.revoke("ann")
    async with http.get(f"{url}/sse?channel=own:ann&ticket={ticket}") as response:
        assert response.status == 401
    await no_connections(nodes)


@pytest.mark.parametrize("token", [None, "nonsense", Signer(hmac_secret=SECRET[::-1]).connection_token("ann")])
async def test_ticket_needs_a_good_token(url: str, http: aiohttp.ClientSession, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with http.post(f"{url}/sse/ticket", headers=headers) as response:
        assert response.status == 401


async def test_token_of_another_service_is_no_ticket(nodes: Nodes, url: str, http: aiohttp.ClientSession) -> None:
    stored = await nodes.gateways[0].node.ownership.directory.put_token({"items": []}, 30)
    async with http.get(f"{url}/sse?channel=plain&ticket={stored}") as response:
        assert response.status == 401


# -- pages ------------------------------------------------------------------------------------------------------------


async def test_pages_of_allowed_origins_may_read_and_others_may_not(url: str, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{url}/sse?channel=plain", headers={"Origin": ORIGIN}) as response:
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert response.headers["Access-Control-Allow-Credentials"] == "true"
    async with http.get(f"{url}/sse?channel=plain", headers=OTHER) as response:
        assert response.status == 403
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    async with http.options(f"{url}/sse/ticket", headers=preflight) as response:
        assert (response.status, response.headers["Access-Control-Allow-Headers"]) == (204, "Authorization")
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    async with http.options(f"{url}/sse/ticket", headers={**preflight, **OTHER}) as response:
        assert response.status == 403
    async with http.get(f"{url}/sse?channel=plain", headers={"Sec-Fetch-Site": "cross-site"}) as response:
        assert response.status == 403


# -- several channels -------------------------------------------------------------------------------------------------


async def test_stream_of_several_channels_recovers_each_from_its_own_position(nodes: Nodes, url: str) -> None:
    names = ["kept:a", "plain", "kept:b"]
    query = "&".join(f"channel={each}" for each in names)
    async with Publisher(nodes.redis_url) as publisher, aiohttp.ClientSession() as http:
        for name in names:
            await publisher.publish(name, "before")
        async with http.get(f"{url}/sse?{query}") as response:
            await until_subscribed(response, 3)
            for number in range(3):
                for name in names:
                    await publisher.publish(name, number)
            seen, last_id = await read(response, 9)
        assert sorted(seen) == sorted((name, number) for name in names for number in range(3))
        assert [each == "-" for each in last_id.split(",")] == [False, True, False]
        await publisher.publish("kept:a", "missed a")
        for number in range(100):
            await publisher.publish("kept:b", f"missed b {number}")
        async with http.get(f"{url}/sse?{query}", headers={"Last-Event-ID": last_id}) as response:
            missed, _ = await read(response, 101)
        assert [value for name, value in missed if name == "kept:a"] == ["missed a"]
        assert [value for name, value in missed if name == "kept:b"] == [f"missed b {number}" for number in range(100)]


async def line_of(response: aiohttp.ClientResponse) -> bytes:
    line = await response.content.readline()
    assert line, "the stream has ended"
    return line


async def until_subscribed(response: aiohttp.ClientResponse, count: int) -> None:
    """Read a stream until this many channels are subscribed. A node counts them earlier, before Redis confirms."""
    async with asyncio.timeout(DEADLINE_S):
        while count:
            count -= (await line_of(response)) == b"event: subscribed\n"
        while await line_of(response) != b"\n":
            pass


async def read(response: aiohttp.ClientResponse, count: int) -> tuple[list[tuple[str, object]], str]:
    """Read messages of a stream; returns them with their channels, and the last id."""
    seen: list[tuple[str, object]] = []
    name, last_id = "", ""
    async with asyncio.timeout(DEADLINE_S):
        while len(seen) < count:
            field, _, value = (await line_of(response)).decode().rstrip("\n").partition(": ")
            if field == "id":
                last_id = value
            elif field == "event":
                name = value
            elif field == "data" and not name:
                data = json.loads(value)
                seen.append((data["channel"], data["message"]))
            elif not field:
                name = ""
    return seen, last_id


async def test_stream_without_a_permitted_channel_is_refused(
    nodes: Nodes, url: str, http: aiohttp.ClientSession
) -> None:
    async with http.get(f"{url}/sse?channel=closed&channel=own:ann") as response:
        assert (response.status, await response.text()) == (403, "not_authorized: Not authorized\n")
    await no_connections(nodes)


# -- ends -------------------------------------------------------------------------------------------------------------


async def test_stream_ends_with_its_token(nodes: Nodes, url: str) -> None:
    token = Signer(hmac_secret=SECRET).connection_token("ann", expires_in_s=2)
    node = await nodes.start(SNORKY_AUTH__LEEWAY_S="0")
    async with opened("sse", node, "own:ann", token=token) as client:
        assert (await client.ended()).startswith("4501")
    await no_connections(nodes)


async def test_stream_ends_when_its_only_channel_does(nodes: Nodes, url: str) -> None:
    async with opened("sse", url, CHANNEL) as client, opened("sse-several", url, CHANNEL) as several:
        node = nodes.gateways[0].node
        service = nodes.gateways[0].public["pubsub"]
        for connection in node.connections:
            assert service.end_subscription(connection, CHANNEL, "unsubscribed", "by the backend")
        assert await client.ended() == "unsubscribed: by the backend 1000 unsubscribed: by the backend"
        event = await several.event()
        assert event.value == {"channel": CHANNEL, "code": "unsubscribed", "reason": "by the backend"}
        assert [each.channels for each in node.connections] == [{"pubsub:unused"}]


async def test_backend_does_not_subscribe_streams_to_further_channels(nodes: Nodes, url: str) -> None:
    async with (
        opened("sse", url, "own:ann", token=token_of("ann")),
        opened("raw", url, "own:ann", token=token_of("ann")),
        opened("json", url, "own:ann", token=token_of("ann")) as own,
    ):
        await nodes.until_subscribed(3)
        transport = SnorkyHTTPTransport(f"{nodes.gateways[0].private_urls[0]}/backend")
        async with AsyncSnorkyBackend(transport) as backend:
            assert (await AsyncControl(backend).subscribe("plain", identity="ann")).connections == 1
        assert (await own.event()).kind == "subscribed"
        await nodes.until_subscribed(4)


async def test_silent_stream_gets_comments(nodes: Nodes, http: aiohttp.ClientSession) -> None:
    url = await nodes.start(SNORKY_PUBLIC__PING_INTERVAL_S="0.5")
    async with http.get(f"{url}/sse?channel=plain") as response:
        comments = 0
        async with asyncio.timeout(DEADLINE_S):
            while comments < 3:
                comments += (await line_of(response)) == b":\n"


# -- limits -----------------------------------------------------------------------------------------------------------


async def test_streams_count_as_connections_until_they_end(nodes: Nodes) -> None:
    url = await nodes.start(SNORKY_LIMITS__CONNECTIONS_PER_IP="2")
    for _ in range(3):
        async with opened("sse", url, CHANNEL), opened("sse", url, CHANNEL):
            with pytest.raises(Refused, match="429"):
                async with opened("sse", url, CHANNEL):
                    pass
        await no_connections(nodes)


async def test_client_that_goes_away_leaves_nothing(nodes: Nodes, url: str) -> None:
    for _ in range(20):
        async with opened("sse", url, CHANNEL):
            pass
    await no_connections(nodes)
    assert (
        nodes.gateways[0].node.metrics.registry.get_sample_value(
            "snorky_connections", {"transport": "sse", "encoding": "json"}
        )
        == 0
    )


async def test_client_that_goes_away_silently_leaves_within_seconds(nodes: Nodes, url: str) -> None:
    """A page that is closed: the client sends nothing more, and the node has nothing to send."""
    async with opened("sse", url, CHANNEL):
        await nodes.until_subscribed(1)
        began_s = monotonic()
    await no_connections(nodes)
    assert monotonic() - began_s < 5


# -- recoveries -------------------------------------------------------------------------------------------------------


async def test_large_recoveries_of_several_channels_are_all_delivered(nodes: Nodes) -> None:
    """Together they are larger than the queue of one client. It begins to read late."""
    url = await nodes.start(SNORKY_LIMITS__OUTBOX_MAX_BYTES="500000", SNORKY_LIMITS__SEND_BUFFER_BYTES="16384")
    names = [f"kept:{letter}" for letter in "abcdefghij"]
    query = "&".join(f"channel={each}" for each in names)
    async with Publisher(nodes.redis_url) as publisher, aiohttp.ClientSession() as http:
        for name in names:
            await publisher.publish(name, "before")
        async with http.get(f"{url}/sse?{query}") as response:
            await until_subscribed(response, len(names))
            for name in names:
                await publisher.publish(name, "seen")
            _, last_id = await read(response, len(names))
        for name in names:
            for number in range(170):
                await publisher.publish(name, {"number": number, "filler": "x" * 2000})
        async with http.get(f"{url}/sse?{query}", headers={"Last-Event-ID": last_id}) as response:
            assert response.status == 200
            await asyncio.sleep(0.5)
            missed, _ = await read(response, 170 * len(names))
    for name in names:
        assert [value["number"] for where, value in missed if where == name] == list(range(170))  # type: ignore[index]


async def test_stream_begins_if_one_channel_is_permitted(nodes: Nodes, url: str, http: aiohttp.ClientSession) -> None:
    async with Publisher(nodes.redis_url) as publisher:
        async with http.get(f"{url}/sse?channel=closed&channel=plain&channel=own:ann") as response:
            assert response.status == 200
            events: list[str] = []
            async with asyncio.timeout(DEADLINE_S):
                while "event: subscribed\n" not in events:
                    events.append((await line_of(response)).decode())
            await publisher.publish("plain", "hello")
            async with asyncio.timeout(DEADLINE_S):
                while not any("hello" in each for each in events) or sum('"code"' in each for each in events) < 2:
                    events.append((await line_of(response)).decode())
    refused = [json.loads(each.removeprefix("data: ")) for each in events if '"code"' in each]
    assert [(each["channel"], each["code"]) for each in refused] == [
        ("closed", "not_authorized"),
        ("own:ann", "not_authorized"),
    ]


async def test_small_queue_delays_the_next_channel_and_does_not_forget_it(nodes: Nodes) -> None:
    url = await nodes.start(SNORKY_LIMITS__OUTBOX_MAX_BYTES="131072")
    async with Publisher(nodes.redis_url) as publisher, aiohttp.ClientSession() as http:
        for name in ("kept:a", "kept:b"):
            await publisher.publish(name, "before")
        async with http.get(f"{url}/sse?channel=kept:a&channel=kept:b") as response:
            await until_subscribed(response, 2)
            await publisher.publish("kept:a", "seen")
            await publisher.publish("kept:b", "seen")
            _, last_id = await read(response, 2)
        for number in range(20):
            await publisher.publish("kept:a", {"number": number, "filler": "x" * 2500})
        await publisher.publish("kept:b", "missed")
        async with http.get(f"{url}/sse?channel=kept:a&channel=kept:b", headers={"Last-Event-ID": last_id}) as response:
            missed, _ = await read(response, 21)
        assert missed[-1] == ("kept:b", "missed")


async def test_channel_that_is_full_does_not_end_the_stream(
    nodes: Nodes, url: str, http: aiohttp.ClientSession
) -> None:
    async with Publisher(nodes.redis_url) as publisher, opened("json", url, "full"):
        async with http.get(f"{url}/sse?channel=full&channel=plain") as response:
            lines: list[str] = []
            async with asyncio.timeout(DEADLINE_S):
                while not {"event: subscribed\n", "event: unsubscribed\n"} <= {*lines} or lines[-1] != "\n":
                    lines.append((await line_of(response)).decode())
            await publisher.publish("plain", "still here")
            assert (await read(response, 1))[0] == [("plain", "still here")]


async def test_client_that_leaves_while_it_is_subscribed_is_not_counted(nodes: Nodes) -> None:
    url = await nodes.start(SNORKY_SERVICES__PUBSUB__CLASS="tests.support.scenarios.protocol_nodes:Hesitating")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.5)) as http:
        with pytest.raises(TimeoutError):
            async with http.get(f"{url}/sse?channel=plain"):
                pass
    left_s = monotonic()
    await no_connections(nodes)
    assert monotonic() - left_s < 5


# -- temporary refusals -----------------------------------------------------------------------------------------------


async def test_event_source_is_asked_to_come_back_and_others_get_the_status(nodes: Nodes) -> None:
    url = await nodes.start(SNORKY_LIMITS__CONNECTIONS_PER_IP="1")
    accepts = {"Accept": "text/event-stream"}
    async with opened("sse", url, CHANNEL), aiohttp.ClientSession() as http:
        async with http.get(f"{url}/sse?channel=plain") as response:
            assert response.status == 429
        async with http.get(f"{url}/sse?channel=plain", headers=accepts) as response:
            text = await response.text()
            assert (response.status, response.content_type) == (200, "text/event-stream")
            assert text.startswith("retry: ") and 'event: close\ndata: {"code":429' in text
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{url}/sse?channel=", headers=accepts) as response:
            assert response.status == 400
        nodes.gateways[-1].node.is_draining = True
        async with http.get(f"{url}/sse?channel=plain", headers=accepts) as response:
            assert response.status == 200 and "event: close" in await response.text()
    proxied = await nodes.start(SNORKY_PUBLIC__TRUSTED_PROXIES='["127.0.0.1/32"]')
    nodes.gateways[-1].node.is_draining = True
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{proxied}/sse?channel=plain", headers=accepts) as response:
            assert response.status == 503, "a load balancer tries another node"
