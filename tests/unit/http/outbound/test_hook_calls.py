"""Requests of HTTP hooks to a real backend on loopback: signed, and answered only by this backend."""

import asyncio
import hashlib
import hmac
import re
import ssl
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from snorky.gateway.config.hooks import Hook, Hooks, PublishHook, SubscribeHook
from snorky.gateway.contracts.hooks import Question
from snorky.gateway.errors import HookRefused, HookUnavailable
from snorky.gateway.hooks.answers import ANSWER_MAX_BYTES
from snorky.gateway.hooks.http_hooks import HttpHooks
from snorky.gateway.http.outbound.hook_calls import http_hooks
from snorky.gateway.metrics import Metrics
from tests.support.scenarios.site import on_both_loops
from tests.support.scenarios.tokens import SECRET
from tests.support.servers.hook_backend import HookBackend

CONNECT = Question(operation="connect", identity="ann", claims={"sub": "ann", "shops": [1]}, address="192.0.2.1")
SUBSCRIBE = replace(CONNECT, operation="subscribe", service="pubsub", channel={"a": 1})
PUBLISH = replace(SUBSCRIBE, operation="publish", message={"title": "secret"})


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate, which no client trusts, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1)
    )
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(signed.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"


@asynccontextmanager
async def asking(settings: Hooks) -> AsyncIterator[HttpHooks]:
    async with http_hooks(settings, Metrics(), node_id="n0") as hooks:
        assert hooks is not None
        yield hooks


def connect_to(url: str, **others: Any) -> Hooks:
    return Hooks(secret=SECRET.encode(), connect=Hook(url=url, **others))


async def outcome(hooks: HttpHooks, question: Question = CONNECT) -> str:
    try:
        await hooks.ask(question)
    except HookRefused:
        return "refused"
    except HookUnavailable as error:
        return error.reason
    return "allowed"


async def test_without_urls_there_are_no_hooks() -> None:
    async with http_hooks(Hooks(), Metrics(), node_id="n0") as hooks:
        assert hooks is None


@on_both_loops
async def test_request_says_who_wants_what_from_where() -> None:
    async with HookBackend() as backend:
        settings = Hooks(
            connect=Hook(url=backend.url),
            subscribe=SubscribeHook(url=backend.url),
            publish=PublishHook(url=backend.url),
        )
        async with asking(settings) as hooks:
            for question in (CONNECT, SUBSCRIBE, PUBLISH):
                assert await outcome(hooks, question) == "allowed"
        who = {"identity": "ann", "claims": {"sub": "ann", "shops": [1]}, "address": "192.0.2.1", "node": "n0"}
        where = {"service": "pubsub", "channel": {"a": 1}}
        assert backend.questions == [
            {"operation": "connect", **who},
            {"operation": "subscribe", **who, **where},
            {"operation": "publish", **who, **where},
        ]
        assert {request.method for request in backend.requests} == {"POST"}
        assert {request.content_type for request in backend.requests} == {"application/json"}
        backend.questions.clear()
        async with asking(Hooks(publish=PublishHook(url=backend.url, with_message=True))) as hooks:
            assert await outcome(hooks, PUBLISH) == "allowed"
        assert backend.questions == [{"operation": "publish", **who, **where, "message": {"title": "secret"}}]


@pytest.mark.parametrize(
    "other",
    [{"identity": "bob"}, {"identity": None}, {"claims": {}}, {"address": "192.0.2.8"}, {"channel": "b"}],
    ids=lambda other: next(iter(other)),
)
async def test_cached_answer_is_used_for_equal_questions_only(other: dict[str, Any]) -> None:
    async with HookBackend() as backend:
        settings = Hooks(subscribe=SubscribeHook(url=backend.url, cache_s=60))
        async with asking(settings) as hooks:
            for _ in range(2):
                assert await outcome(hooks, SUBSCRIBE) == "allowed"
            backend.answer = {"allow": False}
            assert await outcome(hooks, replace(SUBSCRIBE, **other)) == "refused"
            assert await outcome(hooks, SUBSCRIBE) == "allowed"
            assert len(backend.questions) == 2


async def test_hooks_say_what_they_ask() -> None:
    settings = Hooks(connect=Hook(url="http://127.0.0.1/"), subscribe=SubscribeHook(url="http://127.0.0.1/"))
    async with asking(settings) as hooks:
        assert hooks.asks("connect") and hooks.asks("subscribe", "pubsub")
        assert not hooks.asks("subscribe", "chat") and not hooks.asks("publish", "pubsub")


async def test_each_request_is_signed_with_the_secret_and_the_time() -> None:
    async with HookBackend() as backend, asking(connect_to(backend.url)) as hooks:
        await hooks.ask(CONNECT)
        header = backend.requests[0].headers["X-Snorky-Signature"]
        found = re.fullmatch(r"t=(\d+),v1=([0-9a-f]{64})", header)
        assert found is not None
        assert abs(time.time() - int(found[1])) < 60
        signed = f"{found[1]}.".encode() + backend.bodies[0]
        assert found[2] == hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()


async def test_without_a_secret_nothing_claims_to_be_signed() -> None:
    async with HookBackend() as backend, asking(Hooks(connect=Hook(url=backend.url))) as hooks:
        await hooks.ask(CONNECT)
        assert "X-Snorky-Signature" not in backend.requests[0].headers


async def test_redirects_are_not_followed() -> None:
    async with HookBackend() as other, HookBackend() as backend, asking(connect_to(backend.url)) as hooks:
        for status in (301, 302, 303, 307, 308):
            backend.status, backend.headers = status, {"Location": other.url}
            assert await outcome(hooks) == "hook_failed"
        assert other.requests == []


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with HookBackend() as proxy, HookBackend() as backend:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        async with asking(connect_to(backend.url)) as hooks:
            assert await outcome(hooks) == "allowed"
        assert (len(proxy.requests), len(backend.requests)) == (0, 1)


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_answers_are_bounded_in_bytes(is_chunked: bool) -> None:
    async with HookBackend() as backend, asking(connect_to(backend.url)) as hooks:
        answer = b'{"allow": true}'

        async def respond(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            if is_chunked:
                response.enable_chunked_encoding()
            else:
                response.content_length = len(answer)
            await response.prepare(request)
            for at in range(0, len(answer), 5_000):
                await response.write(answer[at : at + 5_000])
            return response

        backend.respond = respond
        answer = answer.ljust(ANSWER_MAX_BYTES)
        assert await outcome(hooks) == "allowed"
        answer = answer.ljust(ANSWER_MAX_BYTES + 1)
        assert await outcome(hooks) == "hook_failed"


async def test_endless_answer_ends_with_the_bound() -> None:
    async with HookBackend() as backend, asking(connect_to(backend.url, timeout_s=30)) as hooks:

        async def respond(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b" " * 4_096)

        backend.respond = respond
        assert await outcome(hooks) == "hook_failed"


async def test_compressed_answers_are_not_unpacked() -> None:
    async with HookBackend() as backend, asking(connect_to(backend.url)) as hooks:
        backend.headers = {"Content-Encoding": "deflate"}
        for size in (20, 1 << 24):
            backend.answer = zlib.compress(b'{"allow": true}'.ljust(size))
            assert await outcome(hooks) == "hook_failed"
        assert backend.requests[0].headers["Accept-Encoding"] == "identity"


async def test_backend_that_closed_an_idle_connection_is_asked_again() -> None:
    async with HookBackend() as backend, asking(connect_to(backend.url)) as hooks:
        used: list[object] = []

        async def respond(request: web.Request) -> web.Response:
            assert request.transport is not None
            if request.transport in used:  # as if it had closed it while the request was on its way
                request.transport.abort()
            used.append(request.transport)
            return web.json_response({"allow": True})

        backend.respond = respond
        for number in range(3):
            assert await outcome(hooks, replace(CONNECT, identity=str(number))) == "allowed"
        assert len(backend.requests) == 5
        await backend.stop()
        await backend.start()
        assert await outcome(hooks) == "allowed"


async def test_backend_that_always_cuts_the_connection_is_asked_twice() -> None:
    async with HookBackend() as backend, asking(connect_to(backend.url)) as hooks:

        async def respond(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        backend.respond = respond
        assert await outcome(hooks) == "hook_failed"
        assert len(backend.requests) == 2


async def test_backend_that_is_down_or_unknown_or_speaks_something_else_is_a_failure() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        for url in ("http://127.0.0.1:1/", "http://no-such-name.invalid/", f"http://127.0.0.1:{port}/"):
            async with asking(connect_to(url)) as hooks:
                assert await outcome(hooks) == "hook_failed", url


async def test_certificate_of_the_backend_is_verified(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with server, asking(connect_to(f"https://localhost:{port}/")) as hooks:
        assert await outcome(hooks) == "hook_failed"


async def test_claims_that_are_no_json_refuse_the_client_also_where_failures_are_open() -> None:
    async with HookBackend() as backend, asking(connect_to(backend.url, on_failure="open")) as hooks:
        for claims in ({"a": "\ud800"}, {"\ud800": 1}):
            assert await outcome(hooks, replace(CONNECT, claims=claims)) == "hook_failed"
        assert backend.requests == []


async def test_slow_backend_is_given_up_and_its_connection_closed() -> None:
    async with HookBackend() as backend, asking(connect_to(backend.url, timeout_s=0.1)) as hooks:
        backend.may_answer.clear()
        assert await outcome(hooks) == "hook_failed"
        backend.may_answer.set()
        assert await outcome(hooks) == "allowed"
