"""Requests of Pusher's HTTP API: their signatures, their permitted size and speed, and answers without Redis."""

import asyncio
import gzip
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

import snorky.gateway.http.serving.bodies as bodies
from snorky.gateway.http.backend import key_brake
from tests.support.clients.pusher import connected
from tests.support.clients.pusher_api import API_KEY, API_SECRET, APP, BESIDE_SHOP, called, post_head, target_of
from tests.support.clients.raw_ws import RawClient
from tests.support.processes.nodes import RedisProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.protocol_nodes import Nodes

OTHER = "another-key"
ENV = BESIDE_SHOP | {
    "SNORKY_PUBLIC__PUSHER_APPS__OTHER__KEY": OTHER,
    "SNORKY_PUBLIC__PUSHER_APPS__OTHER__SERVICE": "pubsub",
    "SNORKY_PUBLIC__PUSHER_APPS__OTHER__SECRET": hashlib.sha256(b"the secret of another app").hexdigest(),
}
BODY = {"name": "a", "data": "1", "channel": "news"}
DATA = json.dumps(BODY).encode()
MD5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()


@pytest.fixture
async def url(nodes: Nodes) -> str:
    return await nodes.start(**ENV)


def refusals(nodes: Nodes, reason: str) -> float:
    registry = nodes.gateways[0].node.metrics.registry
    return registry.get_sample_value("snorky_refusals_total", {"door": "pusher", "reason": reason}) or 0


def requests(nodes: Nodes) -> dict[tuple[str, str], float]:
    """Return the counted requests by app and outcome."""
    (family,) = nodes.gateways[0].node.metrics.pusher_requests.collect()
    return {(each.labels["app"], each.labels["outcome"]): each.value for each in family.samples}


def now(offset_s: float = 0.0) -> str:
    return f"{time.time() + offset_s:.0f}"


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"secret": "f" * 64}, "signature"),
        ({"auth": {"auth_key": None}}, "signature"),
        ({"auth": {"auth_key": OTHER}}, "signature"),
        ({"auth": {"auth_version": "2.0"}}, "signature"),
        ({"signed_path": f"/apps/{APP}/batch_events"}, "signature"),
        ({"query": {"info": "a&b"}}, "signature"),
        ({"query": {"INFO": "a", "info": "a"}}, "signature"),
        ({"app": "/apps/other"}, "signature"),
        ({"app": "/apps/nothing"}, "unknown_app"),
        ({"app": "/apps/8"}, "unknown_app"),
        ({"auth": {"auth_timestamp": None}}, "timestamp"),
        ({"auth": {"auth_timestamp": "soon"}}, "timestamp"),
        ({"auth": {"auth_timestamp": "٣"}}, "timestamp"),
        ({"auth": {"auth_timestamp": "9" * 400}}, "timestamp"),
        ({"auth": {"auth_timestamp": now(-86_400)}}, "timestamp"),  # of the collection of the tests, which is earlier
        ({"auth": {"auth_timestamp": now(86_400)}}, "timestamp"),
        ({"auth": {"body_md5": None}}, "body_md5"),
        ({"auth": {"body_md5": ""}}, "body_md5"),
        ({"auth": {"body_md5": MD5.upper()}}, "body_md5"),
        ({"auth": {"body_md5": "0" * 32}}, "body_md5"),
    ],
)
async def test_request_that_is_not_signed_rightly_is_refused(
    nodes: Nodes, url: str, about: dict[str, Any], reason: str
) -> None:
    status, text = await called(url, "POST", "/events", BODY, **about)
    assert status == (404 if reason == "unknown_app" else 401) and isinstance(text, str)
    assert refusals(nodes, reason) == 1
    assert requests(nodes) == ({(APP, "refused"): 1} if reason == "body_md5" else {})


@pytest.mark.parametrize("offset_s", [-590, 590])
async def test_request_is_valid_for_ten_minutes_and_can_be_repeated_within_them(url: str, offset_s: float) -> None:
    auth = {"auth_timestamp": now(offset_s)}
    for _ in range(2):
        assert await called(url, "POST", "/events", BODY, auth=auth) == (200, {})


@pytest.mark.parametrize(
    ("method", "path", "body", "about"),
    [
        ("POST", "/events", DATA, {"auth": {"auth_version": None}}),
        ("POST", "/events", DATA, {"auth": {"Auth_Version": "1.0", "auth_version": None}}),
        ("POST", "/users/ann/terminate_connections", b"", {}),
        ("GET", "/channels", b"", {"auth": {"body_md5": hashlib.md5(b"").hexdigest()}}),
        ("GET", "/channels", b"", {"query": {"Filter_By_Prefix": "a=;,@.b"}}),
        ("GET", "/channels/a%2Cb", b"", {"signed_path": f"/apps/{APP}/channels/a,b"}),
    ],
)
async def test_request_is_signed_as_it_is_decoded(
    url: str, method: str, path: str, body: bytes, about: dict[str, Any]
) -> None:
    assert (await called(url, method, path, body, **about))[0] == 200


async def test_query_means_what_was_signed_and_nothing_else(url: str) -> None:
    """The text that is signed has no escapes: parameters could hide in the value of another one, or under a name in
    other letters."""
    stated = {"filter_by_prefix": "secret-", "info": "subscription_count"}
    target = target_of("GET", "/channels", query=stated)
    assert await called(url, "GET", "/channels", query=stated) == (200, {"channels": {}})
    for changed in (
        target.replace("&filter_by_prefix=", "%26filter_by_prefix%3D"),
        target.replace("&info=", "&info=x&info="),
        target.replace("filter_by_prefix=", "filter_by_prefiX%3D="),
    ):
        assert changed != target
        async with await RawClient.open("127.0.0.1", int(url.rpartition(":")[2])) as client:
            await client.send(f"GET {changed} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await client.response()).status == 401, changed
    async with connected(url, API_KEY, API_SECRET) as ours:
        await ours.subscribe("news")
        upper = target.replace("filter_by_prefix=", "FILTER_BY_PREFIX=")
        async with await RawClient.open("127.0.0.1", int(url.rpartition(":")[2])) as client:
            await client.send(f"GET {upper} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert json.loads((await client.response()).body) == {"channels": {}}, "the prefix counts"


async def test_wrong_signatures_are_answered_slower_and_a_right_one_at_once(
    nodes: Nodes, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_brake, "WAIT_MAX_S", 1.0)
    began_s = time.monotonic()
    wrong = [
        asyncio.create_task(called(url, "POST", "/events", BODY, **about))
        for about in 20 * ({"secret": "f" * 64}, {"app": "/apps/nothing"})
    ]
    assert await called(url, "POST", "/events", BODY) == (200, {})
    assert time.monotonic() - began_s < 1.0
    statuses = [status for status, _ in await asyncio.gather(*wrong)]
    assert set(statuses) == {401, 404, 429} and statuses.count(429) > 20
    assert time.monotonic() - began_s >= 0.9, "two requests waited"
    assert refusals(nodes, "signature") == refusals(nodes, "unknown_app") == 20
    limits = nodes.gateways[0].node.metrics.registry
    assert limits.get_sample_value("snorky_limit_hits_total", {"limit": "wrong_keys"}) == statuses.count(429)


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_body_that_is_too_large_is_refused_and_the_connection_closed(
    nodes: Nodes, url: str, is_chunked: bool
) -> None:
    body = b" " * ((1 << 20) + 1)
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body
    async with await RawClient.open("127.0.0.1", int(url.rpartition(":")[2])) as client:
        await client.send(post_head(target_of("POST", "/events", body), None if is_chunked else len(body)) + sent)
        response = await client.response()
        assert (response.status, response.headers["connection"]) == (413, "close")
        assert await client.until_end() == b""
    assert requests(nodes) == {(APP, "too_large"): 1}


async def test_body_is_bounded_when_it_is_unpacked(nodes: Nodes, url: str) -> None:
    body = b" " * (64 << 20)
    packed = gzip.compress(body, 1)
    assert len(packed) < 1 << 20
    async with await RawClient.open("127.0.0.1", int(url.rpartition(":")[2])) as client:
        head = post_head(target_of("POST", "/events", body), len(packed), "Content-Encoding: gzip")
        await client.send(head + packed)
        assert (await client.response()).status == 413
    assert requests(nodes) == {(APP, "too_large"): 1}


async def test_body_of_a_refused_request_is_not_waited_for(url: str) -> None:
    for about in ({"secret": "f" * 64}, {"app": "/apps/nothing"}, {"auth": {"auth_timestamp": "1"}}):
        async with await RawClient.open("127.0.0.1", int(url.rpartition(":")[2])) as client:
            await client.send(post_head(target_of("POST", "/events", DATA, **about), len(DATA)))
            response = await client.response()
            assert (response.status in (401, 404), response.headers["connection"]) == (True, "close")


async def test_body_that_arrives_too_slowly_is_refused(nodes: Nodes, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.2)
    async with await RawClient.open("127.0.0.1", int(url.rpartition(":")[2])) as client:
        await client.send(post_head(target_of("POST", "/events", DATA), len(DATA)) + DATA[:5])
        response = await client.response()
        assert (response.status, response.headers["connection"]) == (408, "close")
    assert requests(nodes) == {(APP, "timeout"): 1}


async def test_sender_that_goes_while_its_body_is_read_is_no_fault_of_the_node(
    nodes: Nodes, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with await RawClient.open("127.0.0.1", int(url.rpartition(":")[2])) as client:
        await client.send(post_head(target_of("POST", "/events", DATA), len(DATA)) + DATA[:5])
        assert await called(url, "POST", "/events", BODY) == (200, {}), "the node has begun with the first one"
        client.reset()

    async def is_counted() -> bool:
        return requests(nodes).get((APP, "malformed")) == 1

    await eventually(is_counted, within_s=30, what="the request has ended")
    assert "request failed" not in capsys.readouterr().out


async def test_fault_of_the_node_is_answered_counted_and_logged_once(
    nodes: Nodes, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service: Any = nodes.gateways[0].node.find_service("pubsub")

    def published(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(service, "published", published)
    capsys.readouterr()
    assert await called(url, "POST", "/events", BODY) == (500, "Internal error")
    assert capsys.readouterr().out.count("ZeroDivisionError: a bug") == 1
    assert requests(nodes) == {(APP, "internal_error"): 1}


@pytest.fixture
async def server(tmp_path: Path) -> Any:
    async with RedisProcess.running(tmp_path) as started:
        yield started


async def test_without_redis_requests_are_answered_in_time_and_later_ones_succeed(
    nodes: Nodes, server: RedisProcess
) -> None:
    url = await nodes.start(**ENV, SNORKY_REDIS_URL=server.url)
    presence = {"info": "user_count,subscription_count"}
    server.freeze()
    began_s = time.monotonic()
    found = await asyncio.gather(
        called(url, "POST", "/events", BODY),
        called(url, "POST", "/events", BODY | {"channel": "cache-a"}),
        called(url, "POST", "/batch_events", {"batch": [BODY]}),
        called(url, "GET", "/channels"),
        called(url, "GET", "/channels/presence-a", query=presence),
        called(url, "GET", "/channels/presence-a/users"),
        called(url, "POST", "/users/ann/terminate_connections", {}),
    )
    took_s = time.monotonic() - began_s
    server.thaw()
    assert [status for status, _ in found] == [503] * 7, found
    assert took_s < 8.0

    async def is_back() -> bool:
        return (await called(url, "POST", "/events", BODY))[0] == 200

    await eventually(is_back, within_s=30, what="events are published again")
    assert requests(nodes)[APP, "unavailable"] >= 7
