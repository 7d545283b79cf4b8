"""What every protocol must do: subscribe, order, recovery, permissions, limits, drain, slow clients, bad input.

Two nodes in this process and a real server. A new protocol is a client in `tests.support.clients.any_protocol`.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from snorky.client.aio import Publisher
from snorky.client.tokens import Signer
from tests.support.clients.any_protocol import (
    CENTRIFUGE,
    DEADLINE_S,
    MAY_PUBLISH,
    MAY_RECOVER,
    PROTOCOLS,
    AnyClient,
    Ended,
    Refused,
    opened,
)
from tests.support.clients.pusher import KEY
from tests.support.processes.tools import eventually
from tests.support.scenarios.protocol_nodes import NEWS, Nodes, subscriptions_of, token_of, until_heard
from tests.support.scenarios.tokens import SECRET

_OWN = ("json", "msgpack", "sockjs")

# the close codes of other protocols, for Snorky's
_CENTRIFUGE_CODES = {"1001": "3001", "4501": "3500", "4503": "3503"}
_CODES = {**dict.fromkeys(CENTRIFUGE, _CENTRIFUGE_CODES), "pusher": {"1001": "4200", "4501": "4009", "4503": "4009"}}

each_protocol = pytest.mark.parametrize("kind", PROTOCOLS)


@pytest.fixture
async def url(nodes: Nodes) -> str:
    return await nodes.start()


@pytest.fixture
async def publisher(nodes: Nodes, url: str) -> AsyncIterator[Publisher]:
    async with Publisher(nodes.redis_url) as publisher:
        yield publisher


def code_of(kind: str, code: str) -> str:
    """Return the close code that a client of a protocol gets."""
    return _CODES[kind][code] if kind in _CODES else code


async def messages(client: AnyClient, count: int) -> list[Any]:
    return [await client.message() for _ in range(count)]


# -- subscribe, publish, order ----------------------------------------------------------------------------------------


@each_protocol
@pytest.mark.parametrize("channel", [NEWS, "plain"])
async def test_subscriber_receives_all_publications_in_order(
    nodes: Nodes, url: str, publisher: Publisher, kind: str, channel: str
) -> None:
    async with opened(kind, url, channel) as client:
        await until_heard(client, publisher)
        sent = [{"number": number, "text": "line\nbreak € 😀"} for number in range(200)]
        for each in sent:
            await publisher.publish(channel, each)
        assert await messages(client, 200) == sent


@each_protocol
async def test_json_with_line_breaks_is_one_message(nodes: Nodes, url: str, publisher: Publisher, kind: str) -> None:
    async with opened(kind, url, "plain") as client:
        await until_heard(client, publisher)
        node = nodes.gateways[0].node
        node.on_publications({"pubsub:plain": [b'{\r\n  "a":\n\n [1,\r2]\n}', b'"fence"']})
        assert [await client.message(), await client.message()] == [{"a": [1, 2]}, "fence"]


@pytest.mark.parametrize("kind", MAY_PUBLISH)
async def test_publications_of_a_client_reach_all_protocols_in_one_order(nodes: Nodes, url: str, kind: str) -> None:
    other_url = await nodes.start()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(opened(each, at, NEWS))
            for each, at in zip(PROTOCOLS, [url, other_url] * len(PROTOCOLS), strict=False)
        ]
        async with Publisher(nodes.redis_url) as publisher, opened(kind, other_url, NEWS) as client:
            for each_client in (*clients, client):
                await until_heard(each_client, publisher)
            sent = [f"number {number}" for number in range(50)]
            for each in sent:
                assert await client.publish(each) is None
            for each_client in (*clients, client):
                numbers: list[Any] = []
                while len(numbers) < 50:
                    numbers += [found for found in [await each_client.message()] if found.startswith("number")]
                assert numbers == sent


# -- recovery ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAY_RECOVER)
async def test_client_that_was_away_gets_what_it_missed_once_on_another_node(
    nodes: Nodes, url: str, publisher: Publisher, kind: str
) -> None:
    other_url = await nodes.start()
    async with opened(kind, url, NEWS) as client:
        await publisher.publish(NEWS, 0)
        assert await client.message() == 0
    for number in range(1, 250):
        await publisher.publish(NEWS, {"number": number, "filler": "x" * 500})
    async with opened(kind, other_url, NEWS, since=client.place) as again:
        await publisher.publish(NEWS, {"number": 250})
        assert [each["number"] for each in await messages(again, 250)] == list(range(1, 251))


@pytest.mark.parametrize("kind", MAY_RECOVER)
async def test_client_that_heard_nothing_recovers_from_where_it_began(
    nodes: Nodes, url: str, publisher: Publisher, kind: str
) -> None:
    async with opened(kind, url, NEWS) as client:
        await client.subscribed()
    await publisher.publish(NEWS, "missed")
    async with opened(kind, url, NEWS, since=client.place) as again:
        assert await again.message() == "missed"


@pytest.mark.parametrize("kind", MAY_RECOVER)
async def test_client_whose_position_is_lost_is_told_so(
    nodes: Nodes, url: str, publisher: Publisher, kind: str
) -> None:
    async with opened(kind, url, NEWS) as client:
        await publisher.publish(NEWS, 0)
        await client.message()
    lost = client.place or ""
    await publisher.publish(NEWS, 1)
    await nodes.gateways[0].node.channels.remove_history("pubsub", NEWS)
    async with opened(kind, url, NEWS, since=lost) as again:
        assert (await again.event()).kind == "gap"
        await publisher.publish(NEWS, 2)
        assert await again.message() == 2


# -- permissions ------------------------------------------------------------------------------------------------------


@each_protocol
async def test_subscription_that_no_rule_permits_is_refused(url: str, kind: str) -> None:
    for channel in ("closed", "own.ann"):
        if kind.startswith("raw"):
            async with opened(kind, url, channel) as client:
                assert (await client.ended()).startswith("1008 not_authorized")
        elif kind == "sse-several":  # its other channel is permitted
            async with opened(kind, url, channel) as client:
                assert (await client.event()).value["code"] == "not_authorized"
        else:
            with pytest.raises(Refused, match="not_authorized"):
                async with opened(kind, url, channel):
                    pass


@each_protocol
async def test_owner_is_admitted_by_its_token(nodes: Nodes, url: str, publisher: Publisher, kind: str) -> None:
    async with opened(kind, url, "own.ann", token=token_of("ann")) as client:
        await until_heard(client, publisher)
        await publisher.publish("own.ann", "for ann")
        assert await client.message() == "for ann"


@pytest.mark.parametrize("kind", MAY_PUBLISH)
async def test_publication_that_no_rule_permits_is_refused(nodes: Nodes, url: str, kind: str) -> None:
    async with opened(kind, url, "readonly") as client:
        await nodes.until_subscribed(1)
        refusal = await client.publish("no")
        if kind.startswith("raw"):
            assert (await client.ended()).startswith("1008 not_authorized")
        else:
            assert refusal == "not_authorized"


@each_protocol
async def test_token_that_is_not_accepted_is_refused(url: str, kind: str) -> None:
    token = Signer(hmac_secret=SECRET[::-1]).connection_token("ann")
    try:
        async with opened(kind, url, NEWS, token=token) as client:
            assert (await client.ended()).startswith("4501")
    except (Refused, Ended) as error:
        assert "401" in str(error) or code_of(kind, "4501") in str(error)


@each_protocol
async def test_revoked_client_is_ended(nodes: Nodes, url: str, kind: str) -> None:
    async with opened(kind, url, "own.ann", token=token_of("ann")) as client:
        await nodes.until_subscribed(subscriptions_of(kind))
        await nodes.gateways[0].node.auth.revoke("ann")
        assert code_of(kind, "4503") in await client.ended()


# -- drain, slow clients, limits, bad input ---------------------------------------------------------------------------


@each_protocol
async def test_drain_ends_each_client(nodes: Nodes, url: str, kind: str) -> None:
    async with opened(kind, url, NEWS) as client:
        await nodes.until_subscribed(subscriptions_of(kind))
        draining = asyncio.create_task(nodes.gateways[0].drain())
        assert code_of(kind, "1001") in await client.ended()
        await draining
    try:
        async with opened(kind, url, NEWS) as client:
            raise AssertionError("a draining node accepts no client")
    except (Refused, Ended) as error:
        assert "503" in str(error)


@pytest.mark.parametrize("kind", [each for each in PROTOCOLS if each not in _OWN])  # theirs: test_slow_clients.py
async def test_client_that_does_not_read_is_closed_and_others_are_not(
    nodes: Nodes, publisher: Publisher, kind: str
) -> None:
    url = await nodes.start(SNORKY_LIMITS__OUTBOX_MAX_BYTES="200000", SNORKY_LIMITS__SEND_BUFFER_BYTES="16384")
    slow = nodes.gateways[-1].node.metrics.slow_consumers_closed
    path, lines, frames = head_of(kind)
    async with opened(kind, url, NEWS) as reader:
        await until_heard(reader, publisher)
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode() + frames)
            await nodes.until_subscribed(subscriptions_of(kind) * 2)
            for number in range(300):
                await publisher.publish(NEWS, {"number": number, "filler": "x" * 4000})
                assert (await reader.message())["number"] == number

            async def is_closed() -> bool:
                return bool(slow._value.get() == 1)

            await eventually(is_closed, within_s=DEADLINE_S, what="the slow client is closed")
            closed_s = monotonic()
            await nodes.until_subscribed(subscriptions_of(kind))
            assert monotonic() - closed_s < 5, "it leaves although it reads nothing"


def head_of(kind: str) -> tuple[str, str, bytes]:
    """Return the path and the header fields of a request by hand, and the frames that follow it."""
    if kind.startswith("sse"):
        beside = "&channel=unused" if kind == "sse-several" else ""
        return f"/sse?channel={NEWS}{beside}", "", b""
    lines = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    lines += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    if kind == "pusher":
        event = b'{"event":"pusher:subscribe","data":{"channel":"%b"}}' % NEWS.encode()
        return f"/app/{KEY}?protocol=7", lines, bytes((0x81, 0x80 | len(event), 0, 0, 0, 0)) + event
    if kind == "centrifuge":
        commands = b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"%b"}}' % NEWS.encode()
        return "/connection/websocket", lines, bytes((0x81, 0x80 | len(commands), 0, 0, 0, 0)) + commands
    if kind == "centrifuge-protobuf":
        commands = bytes((4, 8, 1, 34, 0, 6 + len(NEWS), 8, 2, 42, 2 + len(NEWS), 10, len(NEWS)))
        commands += NEWS.encode()
        frame = bytes((0x82, 0x80 | len(commands), 0, 0, 0, 0)) + commands
        return "/connection/websocket?format=protobuf", lines, frame
    form = "&format=text" if kind == "raw-text" else ""
    return f"/raw?channel={NEWS}{form}", lines, b""


@pytest.mark.parametrize("kind", ["raw", "raw-text"])
async def test_plain_websocket_that_sends_too_much_is_told_so(nodes: Nodes, kind: str) -> None:
    url = await nodes.start(SNORKY_LIMITS__MESSAGES_PER_S="5", SNORKY_LIMITS__MESSAGES_BURST="5")
    async with opened(kind, url, NEWS) as client:
        for number in range(20):
            await client.publish(str(number))
        assert (await client.ended()).startswith("4000 rate_limited")


async def test_plain_websocket_that_sends_no_json_is_told_so(url: str) -> None:
    async with opened("raw", url, NEWS) as client, opened("raw-text", url, NEWS) as text:
        await client._socket.send_str("{no json")  # type: ignore[attr-defined]
        assert (await client.ended()).startswith("1008 invalid_message: Malformed JSON")
        await text.publish("{no json")
        assert await text.message() == "{no json"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/raw", 400),
        ("/raw?channel=", 400),
        ("/raw?channel=a&channel=b", 400),
        ("/raw?channel=a&format=xml", 400),
        ("/raw?channel=a&subscribe=maybe", 400),
        ("/raw?channel=a&chanel=b", 400),
        ("/raw?channel=a", 426),
        ("/sse", 400),
        ("/sse?channel=", 400),
        ("/sse?channel=a&channel=a", 400),
        ("/sse?" + "&".join(f"channel={each}" for each in range(11)), 400),
        ("/sse?channel=a&lastEventID=1:2:3,4:5:6", 400),
        ("/sse?channel=a&lastEventID=x%0Adata:1:y", 400),
        ("/sse?channel=kept:a&lastEventID=nonsense", 400),
        ("/sse?channel=" + "x" * 300, 400),
        ("/sse?channel=a&service=nothing", 404),
        ("/sse?channel=a&service=auth", 404),
        ("/sse?channel=a&ticket=wrong", 401),
        ("/sse?channel=a&ticket=%00%ff", 401),
        ("/sse?channel=a&token=x", 400),
    ],
)
async def test_request_that_makes_no_sense_gets_a_status_and_a_sentence(url: str, path: str, status: int) -> None:
    timeout = aiohttp.ClientTimeout(total=10)  # a stream that is accepted does not end
    async with aiohttp.ClientSession(timeout=timeout) as http, http.get(f"{url}{path}") as response:
        text = await response.text()
    assert (response.status, len(text.splitlines())) == (status, 1) and len(text) > 10, text
