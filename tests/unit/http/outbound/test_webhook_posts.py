"""Requests of webhooks to a real backend on loopback: only its own 2xx counts, and only in time."""

import asyncio
import time

import pytest
from aiohttp import web

from snorky.gateway.http.outbound.webhook_posts import webhook_posts
from tests.support.servers.hook_backend import HookBackend

BODY = b'{"time_ms":1,"events":[]}'


async def test_request_has_its_body_and_headers_as_they_are() -> None:
    async with HookBackend() as backend, webhook_posts() as post:
        assert await post(backend.url, BODY, {"X-Pusher-Key": "k", "Content-Type": "application/json"}) is None
        (request,) = backend.requests
        assert (request.method, backend.bodies) == ("POST", [BODY])
        assert (request.headers["X-Pusher-Key"], request.content_type) == ("k", "application/json")


@pytest.mark.parametrize("status", [200, 204, 299])
async def test_any_2xx_accepts(status: int) -> None:
    async with HookBackend() as backend, webhook_posts() as post:
        backend.status = status
        assert await post(backend.url, BODY, {}) is None


@pytest.mark.parametrize("status", [301, 307, 400, 410, 500, 503])
async def test_any_other_status_is_a_failure_and_no_redirect_is_followed(status: int) -> None:
    async with HookBackend() as backend, webhook_posts() as post:
        backend.status, backend.headers = status, {"Location": f"{backend.url}/elsewhere"}
        assert await post(backend.url, BODY, {}) == f"status {status}"
        assert len(backend.requests) == 1


async def test_backend_that_does_not_answer_fails_in_time() -> None:
    async with HookBackend() as backend, webhook_posts(timeout_s=0.2) as post:
        backend.may_answer.clear()
        began_s = time.monotonic()
        assert await post(backend.url, BODY, {}) == "TimeoutError"
        assert time.monotonic() - began_s < 5
        backend.may_answer.set()
        await backend.stop()
        assert await post(backend.url, BODY, {}) == "ClientConnectorError"


async def test_endless_answer_is_not_read() -> None:
    async with HookBackend() as backend, webhook_posts(timeout_s=5) as post:
        has_ended = asyncio.Event()

        async def stream(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                while True:
                    await response.write(b"x" * 65_536)
            finally:
                has_ended.set()

        backend.respond = stream
        assert await post(backend.url, BODY, {}) is None
        async with asyncio.timeout(30.0):
            await has_ended.wait()  # the connection was closed


async def test_no_proxy_of_the_environment_gets_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    async with HookBackend() as proxy, HookBackend() as backend:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/hook"))
        monkeypatch.delenv("no_proxy", raising=False)
        async with webhook_posts() as post:
            assert await post(backend.url, BODY, {}) is None
        assert (len(backend.requests), proxy.requests) == (1, [])
