"""Refusals: each is counted and, at most once a second per kind, logged."""

import json
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.auth.tokens import FixedKey, Key, Verifier
from snorky.gateway.config.auth import Auth
from snorky.gateway.config.settings import Public
from snorky.gateway.connection.refusals import Refusals
from snorky.gateway.metrics import Metrics
from snorky.services.pubsub import PubSubService
from snorky.services.rpc import Request
from tests.support.clients.raw_ws import RawClient
from tests.support.scenarios.site import RunningSite, on_both_loops, running_site
from tests.support.scenarios.tokens import SECRET, hmac_token

ORIGIN = {"Origin": "https://app.example"}


def authenticator(metrics: Metrics) -> Authenticator:
    return Authenticator(Verifier(FixedKey(Key("HS256", SECRET.encode()))), metrics=metrics, auth=Auth())


def refused(lines: list[Any]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == "refused"]


def test_log_lines_are_bounded_and_count_the_suppressed_ones() -> None:
    now_s, metrics = 0.0, Metrics()
    refusals = Refusals(metrics, clock=lambda: now_s)
    with capture_logs() as lines:
        for _ in range(1000):
            refusals.note("token", "expired", address="192.0.2.1", identity=None)
        refusals.note("token", "signature", address="192.0.2.1")
        now_s = 1.0
        refusals.note("token", "expired", address="192.0.2.1")
    assert [(line["reason"], line["unlogged"]) for line in lines] == [
        ("expired", 0),
        ("signature", 0),
        ("expired", 999),
    ]
    assert metrics.registry.get_sample_value("snorky_refusals_total", {"door": "token", "reason": "expired"}) == 1001
    assert "identity" not in lines[0]


@on_both_loops
async def test_a_refused_origin_leaves_a_line_and_a_count() -> None:
    async with running_site(public=Public(allowed_origins=("https://other.example",))) as site:
        with capture_logs() as lines:
            client = await site.open()
            response = await client.handshake({"Host": "gateway.example", **ORIGIN})
        assert response.status == 403
        assert site.sample("refusals_total", door="handshake", reason="origin") == 1
    (line,) = refused(lines)
    assert (line["door"], line["origin"], line["address"]) == ("handshake", ORIGIN["Origin"], "127.0.0.1")


@on_both_loops
@pytest.mark.parametrize(
    ("reason", "make"),
    [
        ("signature", lambda: hmac_token(secret="another" * 8)),
        ("expired", lambda: hmac_token(exp=time.time() - 60)),
        ("malformed", lambda: "no-token"),
    ],
)
async def test_a_bad_token_of_a_handshake_leaves_a_line_without_the_token(reason: str, make: Any) -> None:
    async with running_site(auth=authenticator) as site:
        token = make()
        with capture_logs() as lines:
            client = await site.client({"Authorization": f"Bearer {token}"})
            assert await client.closed() == 4501
        assert site.sample("refusals_total", door="token", reason=reason) == 1
    (line,) = refused(lines)
    assert line["reason"] == reason and line["address"] == "127.0.0.1"
    assert token not in str(lines)


@on_both_loops
async def test_a_bad_token_that_comes_later_leaves_a_line() -> None:
    async with running_site(auth=authenticator) as site:
        client = await site.client()
        with capture_logs() as lines:
            token = hmac_token(pad="x" * 8192)
            await client.call("authenticate", service="auth", token=token)
            assert await client.closed() == 4501
        assert site.sample("refusals_total", door="token", reason="too_long") == 1
    assert [line["reason"] for line in refused(lines)] == ["too_long"]
    assert token not in str(lines)


@on_both_loops
async def test_a_header_that_is_too_long_leaves_a_line() -> None:
    async with running_site(auth=authenticator) as site:
        with capture_logs() as lines:
            client = await site.open()
            await client.send(b"GET /ws HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"x" * 20_000 + b"\r\n\r\n")
            assert (await client.response()).status == 400
        assert site.sample("refusals_total", door="http", reason="too_long") == 1
    assert [(line["door"], line["reason"]) for line in refused(lines)] == [("http", "too_long")]


class Closed(PubSubService):
    def can_subscribe(self, request: Request, channel: Any) -> bool:
        return False


@on_both_loops
async def test_a_refused_subscription_leaves_a_line_with_the_identity() -> None:
    async with running_site(auth=authenticator) as site:
        site.public.register(Closed("closed"))
        client = await site.client({"Authorization": f"Bearer {hmac_token()}"})
        with capture_logs() as lines:
            reply = await client.call("subscribe", service="closed", channel="secret plans")
        assert reply["code"] == "not_authorized"
        assert site.sample("refusals_total", door="command", reason="not_authorized") == 1
    (line,) = refused(lines)
    assert (line["identity"], line["service"], line["command"]) == ("alice", "closed", "subscribe")
    assert "secret plans" not in str(lines)


@on_both_loops
async def test_an_anonymous_client_where_an_identity_is_required_leaves_a_line() -> None:
    async with running_site(auth=authenticator, requires_identity=True) as site:
        client = await site.client()
        with capture_logs() as lines:
            reply = await client.call("subscribe", channel="news")
        assert reply["code"] == "not_authenticated"
    assert [(line["door"], line["reason"]) for line in refused(lines)] == [("command", "not_authenticated")]


@on_both_loops
async def test_a_page_at_the_backends_door_leaves_a_line() -> None:
    async with running_site() as site:
        with capture_logs() as lines:
            assert await _posted(site) == 403
        assert site.sample("refusals_total", door="backend", reason="origin") == 1
    assert refused(lines)[0]["origin"] == ORIGIN["Origin"]


async def _posted(site: RunningSite) -> int:
    client = await RawClient.open(*site.private_address)
    site.clients.append(client)
    body = json.dumps({}).encode()
    head = f"POST /backend HTTP/1.1\r\nHost: a\r\nOrigin: {ORIGIN['Origin']}\r\nContent-Length: {len(body)}\r\n\r\n"
    await client.send(head.encode() + body)
    return (await client.response()).status


@pytest.mark.parametrize(
    ("origin", "written"),
    [
        ("https://app.example:8443", "https://app.example:8443"),
        ("null", "null"),
        ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh"),
        (f"https://{hmac_token()}", "malformed"),  # a client that is no browser may send anything
        (f"https://{'a' * 300}", "malformed"),
    ],
)
def test_an_origin_that_no_browser_writes_is_not_written_down(origin: str, written: str) -> None:
    with capture_logs() as lines:
        Refusals(Metrics()).note("handshake", "origin", origin=origin)
    assert [line["origin"] for line in refused(lines)] == [written]
