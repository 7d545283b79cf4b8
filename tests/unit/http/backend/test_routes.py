"""The backend's port over HTTP: keys, statuses, batches, limits."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

import snorky.gateway.http.backend.door as door_module
import snorky.gateway.http.backend.routes as module
from snorky.gateway.config.settings import ApiKey, Private
from snorky.gateway.http.app import BACKEND_MAX_BYTES
from snorky.gateway.http.backend.key_brake import WAIT_MAX_S
from tests.support.clients.raw_ws import RawClient, Response
from tests.support.scenarios.site import Echo, RunningSite, on_both_loops, running_site, until

KEY = "a-key-of-the-backend"
PUBLISH = {
    "service": "pubsub_backend",
    "message": {"command": "publish", "params": {"channel": "news", "message": 1}, "callId": 7},
}


def request_bytes(body: bytes, headers: dict[str, str] | None = None, *, method: str = "POST") -> bytes:
    fields = {"Host": "127.0.0.1:8003", "Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} /backend HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


async def open_private(site: RunningSite) -> RawClient:
    client = await RawClient.open(*site.private_address)
    site.clients.append(client)
    return client


async def post(site: RunningSite, body: Any, headers: dict[str, str] | None = None, **others: Any) -> Response:
    """Post bytes, or a value as JSON."""
    client = await open_private(site)
    await client.send(request_bytes(body if isinstance(body, bytes) else json.dumps(body).encode(), headers, **others))
    response = await client.response()
    client.close()
    if others.get("method", "POST") == "POST":
        assert response.headers["content-type"] == "application/json", response
    return response


def error_of(response: Response) -> dict[str, Any]:
    envelope = json.loads(response.body)
    assert envelope["message"]["type"] == "error" and envelope["message"]["callId"] is None
    return {"service": envelope["service"], **envelope["message"]}


@on_both_loops
async def test_a_call_is_answered_with_its_reply_and_reaches_subscribers() -> None:
    async with running_site() as site:
        subscriber = await site.subscriber()
        response = await post(site, PUBLISH)
        assert response.status == 200
        assert json.loads(response.body) == {
            "service": "pubsub_backend",
            "message": {"type": "response", "data": None, "callId": 7},
        }
        assert (await subscriber.message())["message"]["message"] == 1
        assert site.sample("messages_received_total", transport="backend") == 1


@on_both_loops
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Backend-Key": ""},
        {"X-Backend-Key": KEY[:-1]},
        {"X-Backend-Key": KEY.upper()},
        {"X-Backend-Key": KEY + "\xe9"},
        {"X-Backend-Key": "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")},
        {"Authorization": f"Bearer {KEY}"},
    ],
)
async def test_a_wrong_or_missing_key_is_401_whatever_the_body_is(headers: dict[str, str]) -> None:
    async with running_site(private=Private(api_key=ApiKey.parse(KEY))) as site:
        for body in (PUBLISH, b"{"):
            response = await post(site, body, headers)
            assert response.status == 401 and error_of(response)["code"] == "unauthorized"
        assert site.broker.published == []


@on_both_loops
async def test_the_right_key_opens() -> None:
    async with running_site(private=Private(api_key=ApiKey.parse(KEY))) as site:
        assert (await post(site, PUBLISH, {"X-Backend-Key": KEY})).status == 200
        # a browser with the key: its preflight request (CORS) is not answered
        assert (await post(site, PUBLISH, {"X-Backend-Key": KEY, "Origin": "https://a.example"})).status == 200


@on_both_loops
async def test_wrong_keys_are_counted_logged_and_slowed_while_a_right_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []

    async def sleep(delay_s: float) -> None:
        waited.append(delay_s)

    async with running_site(private=Private(api_key=ApiKey.parse(KEY))) as site:
        monkeypatch.setattr(door_module.asyncio, "sleep", sleep)
        with capture_logs() as lines:
            statuses = [(await post(site, PUBLISH, {"X-Backend-Key": f"wrong {n}"})).status for n in range(60)]
        assert set(statuses) == {401, 429} and statuses[:10] == [401] * 10
        assert waited[:10] == [0.0] * 10 and 0.0 < waited[12] <= max(waited) <= WAIT_MAX_S
        assert (await post(site, PUBLISH, {"X-Backend-Key": KEY})).status == 200
        assert len(waited) == statuses.count(401)
        assert site.sample("refusals_total", door="backend", reason="wrong_key") == 60
        assert site.sample("limit_hits_total", limit="wrong_keys") == statuses.count(429)
        assert site.sample("backend_requests_total", key="api_key") == 1
    refused = [line for line in lines if line["event"] == "refused"]
    assert 1 <= len(refused) < 60
    assert refused[0]["reason"] == "wrong_key" and refused[0]["address"] == "127.0.0.1"
    assert "wrong 0" not in str(lines)


@on_both_loops
async def test_several_keys_open_and_are_counted_by_name() -> None:
    keys = {name: ApiKey.parse(f"{KEY} of {name}") for name in ("web", "jobs")}
    async with running_site(private=Private(api_keys=keys)) as site:
        for name in keys:
            assert (await post(site, PUBLISH, {"X-Backend-Key": f"{KEY} of {name}"})).status == 200
            assert site.sample("backend_requests_total", key=name) == 1
        assert (await post(site, PUBLISH, {"X-Backend-Key": KEY})).status == 401


LIMITED = Private(
    api_keys={
        "web": ApiKey.parse(f"{KEY} of web"),
        "jobs": replace(ApiKey.parse(f"{KEY} of jobs"), services=frozenset(["pubsub_backend"])),
    }
)
CONTROL = {"service": "control", "message": {"command": "disconnect", "params": {"identity": "ann"}, "callId": 9}}


@on_both_loops
async def test_a_key_of_certain_services_opens_no_other_one() -> None:
    async with running_site(private=LIMITED) as site:
        jobs = {"X-Backend-Key": f"{KEY} of jobs"}
        assert (await post(site, PUBLISH, jobs)).status == 200
        for service in ("control", "auth_backend", "nobody"):  # nor does it tell which ones exist
            response = await post(site, {**CONTROL, "service": service}, jobs)
            assert response.status == 403
            assert json.loads(response.body) == {
                "service": service,
                "message": {"type": "error", "callId": 9, "message": "Not authorized", "code": "not_authorized"},
            }
        replies = json.loads((await post(site, [PUBLISH, CONTROL, PUBLISH], jobs)).body)
        assert [reply["message"].get("code") for reply in replies] == [None, "not_authorized", None]
        assert len(site.broker.published) == 3
        web = {"X-Backend-Key": f"{KEY} of web"}
        assert (await post(site, {**CONTROL, "service": "nobody"}, web)).status == 404


@on_both_loops
async def test_calls_that_a_key_does_not_permit_are_counted_logged_and_audited() -> None:
    async with running_site(private=LIMITED) as site:
        jobs = {"X-Backend-Key": f"{KEY} of jobs"}
        invented = {"service": "control", "message": {"command": "invented", "params": {}}}
        with capture_logs() as lines:
            replies = json.loads((await post(site, [CONTROL] * 20 + [invented], jobs)).body)
            assert (await post(site, {"service": "secret-text", "message": {}}, jobs)).status == 403
        assert {reply["message"]["code"] for reply in replies} == {"not_authorized"}
        assert site.sample("refusals_total", door="backend", reason="not_authorized") == 22
        assert site.sample("control_calls_total", command="disconnect", outcome="not_authorized") == 20
        assert site.sample("control_calls_total", command="unknown", outcome="not_authorized") == 1
    refused = [line for line in lines if line["event"] == "refused"]
    assert 1 <= len(refused) < 20
    told = {"door": "backend", "reason": "not_authorized", "key": "jobs", "service": "control", "address": "127.0.0.1"}
    assert told.items() <= refused[0].items()
    audited = [line for line in lines if line["event"] == "control"]
    assert len(audited) == 21
    assert {"by": "jobs", "command": "disconnect", "outcome": "not_authorized"}.items() <= audited[0].items()
    assert "invented" not in str(lines) and "secret-text" not in str(lines)


@on_both_loops
async def test_without_a_key_no_page_may_post() -> None:
    """Without a key the port is open on loopback: a web page opened on this machine can reach that."""
    async with running_site() as site:
        for origin in ("https://evil.example", "null", "http://127.0.0.1:8003"):
            response = await post(site, PUBLISH, {"Origin": origin, "Content-Type": "text/plain"})
            assert response.status == 403 and error_of(response)["code"] == "forbidden"
        assert site.broker.published == []


@on_both_loops
@pytest.mark.parametrize(
    ("body", "status", "service", "code"),
    [
        (b"", 400, "gateway", "invalid_message"),
        (b"{", 400, "gateway", "invalid_message"),
        (b"\xff", 400, "gateway", "invalid_message"),
        (b'{"service":"echo_backend","message":NaN}', 400, "gateway", "invalid_message"),
        (b'{"service":"echo_backend","message":1e999}', 400, "gateway", "invalid_message"),
        (b'{"service":"echo_backend","message":"\\ud800"}', 400, "gateway", "invalid_message"),
        (b'{"service":"echo_backend","message":' + b"[" * 100 + b"]" * 100 + b"}", 400, "gateway", "invalid_message"),
        (b"[" * 100_000, 400, "gateway", "invalid_message"),
        (b"1", 400, "gateway", "invalid_envelope"),
        (b"{}", 400, "gateway", "invalid_envelope"),
        (b'{"service":"echo_backend"}', 400, "echo_backend", "invalid_envelope"),
        (b'{"service":"Echo!","message":1}', 400, "gateway", "invalid_envelope"),
        (b'{"service":"nobody","message":1}', 404, "nobody", "unknown_service"),
        # a public service is not available there
        (b'{"service":"pubsub","message":1}', 404, "pubsub", "unknown_service"),
    ],
)
async def test_malformed_requests_have_their_status(body: bytes, status: int, service: str, code: str) -> None:
    async with running_site() as site:
        response = await post(site, body)
        error = error_of(response)
        assert (response.status, error["service"], error["code"]) == (status, service, code)


async def test_call_id_that_fills_a_whole_message_is_answered_with_it() -> None:
    call_id = [0] * 9_990
    async with running_site() as site:
        response = await post(site, {"service": "nobody", "message": {"callId": call_id}})
        assert (response.status, json.loads(response.body)["message"]["callId"]) == (404, call_id)


@on_both_loops
@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"command": "nothing", "params": {}, "callId": 1}, "Unknown command"),
        ({"command": "publish", "params": {"channel": "x"}, "callId": 1}, "Invalid params"),
        ({"command": "publish", "params": {"channel": "x" * 256, "message": 1}, "callId": 1}, None),
    ],
)
async def test_an_error_of_a_command_is_200(message: Any, text: str | None) -> None:
    async with running_site() as site:
        response = await post(site, {"service": "pubsub_backend", "message": message})
        reply = json.loads(response.body)["message"]
        assert response.status == 200 and reply["type"] == "error" and reply["callId"] == 1
        assert text is None or reply["message"] == text


@on_both_loops
async def test_a_service_that_fails_gives_an_internal_error_without_details() -> None:
    async with running_site(is_strict=False) as site:
        response = await post(site, {"service": "echo_backend", "message": "raise"})
        assert response.status == 200 and error_of(response)["message"] == "Internal error"
        assert b"own fault" not in response.body


@on_both_loops
async def test_no_reply_in_time_is_504(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPLY_TIMEOUT_S", 0.05)
    async with running_site() as site:
        response = await post(site, {"service": "echo_backend", "message": "hold"})
        assert response.status == 504 and error_of(response)["code"] == "no_reply"
        batch = await post(site, [{"service": "echo_backend", "message": each} for each in ("hold", 1)])
        first, second = json.loads(batch.body)
        assert batch.status == 200 and first["message"]["code"] == "no_reply" and second["message"] == 1


# -- batches ---------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_batch_is_answered_element_by_element_in_order() -> None:
    async with running_site() as site:
        batch: list[Any] = [
            {"service": "echo_backend", "message": 0},
            {"service": "nobody", "message": 1},
            7,
            [{"service": "echo_backend", "message": "nested"}],
            {"service": "echo_backend"},
            {"service": "pubsub_backend", "message": {"command": "nothing", "params": {}, "callId": "c"}},
            {"service": "echo_backend", "message": 6},
        ]
        response = await post(site, batch)
        assert response.status == 200
        replies = json.loads(response.body)
        assert len(replies) == len(batch)
        assert [replies[0], replies[6]] == [batch[0], batch[6]]
        codes = [reply["message"]["code"] for reply in replies[1:5]]
        assert codes == ["unknown_service", "invalid_envelope", "invalid_envelope", "invalid_envelope"]
        assert replies[5]["message"]["callId"] == "c"
        assert json.loads((await post(site, [])).body) == []


@on_both_loops
async def test_a_batch_publishes_in_its_order() -> None:
    async with running_site() as site:
        subscriber = await site.subscriber()
        params = [{"channel": "news", "message": number} for number in range(200)]
        batch = [{"service": "pubsub_backend", "message": {"command": "publish", "params": each}} for each in params]
        replies = json.loads((await post(site, batch)).body)
        assert replies == [{"service": "pubsub_backend", "message": {"type": "response", "data": None}}] * 200
        assert [(await subscriber.message())["message"]["message"] for _ in range(200)] == list(range(200))


@on_both_loops
async def test_a_batch_has_a_largest_size() -> None:
    async with running_site() as site:
        batch: list[Any] = [PUBLISH] * module.BATCH_MAX
        assert len(json.loads((await post(site, batch)).body)) == module.BATCH_MAX
        response = await post(site, [*batch, batch[0]])
        assert response.status == 400 and str(module.BATCH_MAX) in error_of(response)["message"]


# -- limits ----------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_body_that_is_too_large_is_413_and_was_not_read_to_its_end() -> None:
    async with running_site() as site:
        response = await post(site, b'"' + b"x" * BACKEND_MAX_BYTES + b'"')
        assert response.status == 413 and error_of(response)["code"] == "too_large"
        client = await open_private(site)
        await client.send(b"POST /backend HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        sending = asyncio.ensure_future(client.send(b"10000\r\n" + b"x" * 65_536 + b"\r\n"))
        while client.sock.fileno() >= 0 and not client.received:
            await sending
            sending = asyncio.ensure_future(client.send(b"10000\r\n" + b"x" * 65_536 + b"\r\n"))
            reading = asyncio.ensure_future(client._read())
            await asyncio.wait([reading], timeout=0.01)
            if not reading.done():
                reading.cancel()
        assert (await client.response()).status == 413
        await asyncio.wait([sending])
        sending.exception()


@on_both_loops
async def test_a_body_that_does_not_arrive_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "BODY_TIMEOUT_S", 0.05)
    async with running_site() as site:
        client = await open_private(site)
        await client.send(request_bytes(b"{}")[:-1])
        response = await client.response()
        assert response.status == 408 and error_of(response)["code"] == "timeout"
        await client.until_end()


@on_both_loops
async def test_a_body_that_is_broken_is_400_and_no_fault_of_ours() -> None:
    async with running_site() as site:
        for head, body in (
            ("Transfer-Encoding: chunked", b"zz\r\n"),
            ("Content-Encoding: gzip\r\nContent-Length: 7", b"no gzip"),
        ):
            client = await open_private(site)
            await client.send(f"POST /backend HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode() + body)
            assert (await client.response()).status == 400


@on_both_loops
async def test_a_backend_that_disconnects_midway_has_no_effect() -> None:
    async with running_site() as site:
        for cut in (10, len(request_bytes(b"{}")) - 1, 10_000):
            client = await open_private(site)
            await client.send(request_bytes(json.dumps(PUBLISH).encode())[:cut])
            client.reset()
        waiting = await open_private(site)
        await waiting.send(request_bytes(b'{"service":"echo_backend","message":"hold"}'))
        echo = next(each for each in site.node._registries[1] if isinstance(each, Echo))
        await until(lambda: echo.seen)
        waiting.reset()
        echo.release.set()
        server = site.private_site._runner.server
        assert server is not None
        await until(lambda: not server.connections)


@on_both_loops
async def test_a_request_leaves_no_connection_and_no_subscription() -> None:
    async with running_site() as site:
        for _ in range(20):
            await post(site, PUBLISH)
        assert site.node.counts == {"connections": 0, "subscriptions": 0, "channels": 0}
        assert site.admitted == (0, {})


@on_both_loops
async def test_other_methods_are_refused_and_ops_answer() -> None:
    async with running_site() as site:
        assert (await post(site, b"", method="GET")).status == 405
        for path, status in (("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/ws", 404)):
            client = await open_private(site)
            await client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert (await client.response()).status == status
        site.broker.is_redis_unverified = True
        client = await open_private(site)
        await client.send(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        response = await client.response()
        assert response.status == 503 and json.loads(response.body)["reasons"] == ["redis_unverified"]
