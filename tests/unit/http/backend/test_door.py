"""`/backend` behaves the same at a node and at a supervisor; browsers are refused where there is no key."""

import gzip
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import snorky.gateway.http.backend.door as module
from snorky.gateway.config.settings import ApiKey, Private
from snorky.gateway.http.app import BACKEND_MAX_BYTES, private_app
from snorky.gateway.http.serving.listen import listen
from snorky.gateway.http.serving.site import Site
from snorky.gateway.http.workers.app import WorkerDoor, workers_app
from snorky.gateway.http.workers.metrics import Totals
from tests.support.clients.raw_ws import RawClient, Response
from tests.support.scenarios.site import RunningSite, on_both_loops, running_site

KEY = "a-key-of-the-backend-of-32-bytes"
ECHO = json.dumps({"service": "echo_backend", "message": 5}).encode()


class Doors:
    """A node's private port, and that of a supervisor with this node as its worker."""

    def __init__(self, site: RunningSite, supervisor: tuple[str, int]) -> None:
        self._site = site
        self._addresses = {"node": site.private_address, "workers": supervisor}

    async def open(self, name: str) -> RawClient:
        client = await RawClient.open(*self._addresses[name])
        self._site.clients.append(client)
        return client

    async def ask(self, head: str, body: bytes = b"", *, ends: bool = False) -> dict[str, Response]:
        """Send one request to both. ends: the connection must be closed after the answer."""
        answers = {}
        for name in self._addresses:
            client = await self.open(name)
            await client.send(head.encode("latin-1") + b"\r\n" + body)
            answers[name] = await client.response()
            if ends:
                await client.until_end()
            client.close()
        return answers


@asynccontextmanager
async def both_doors(private: Private | None = None) -> AsyncIterator[Doors]:
    private = private or Private()
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as directory:
        async with running_site(private=private) as site:
            path = Path(directory) / "worker"
            worker = Site(private_app(site.node, site.node._registries[1], private), header_timeout_s=75.0)
            await worker.start_unix(path)
            door = WorkerDoor("worker-1.1", path)
            supervisor = Site(workers_app(lambda: [door], 1, Totals(), private), header_timeout_s=75.0)
            sockets = listen("127.0.0.1", 0)
            await supervisor.start(sockets)
            try:
                yield Doors(site, sockets[0].getsockname()[:2])
            finally:
                await supervisor.stop()
                await door.close()
                await worker.stop()


def post(*fields: str, size: int | None = None) -> str:
    lines = ["POST /backend HTTP/1.1", *fields]
    if not any(field.startswith("Host:") for field in fields):
        lines.append("Host: localhost")
    if size is not None:
        lines.append(f"Content-Length: {size}")
    return "".join(f"{line}\r\n" for line in lines)


def like(answers: dict[str, Response], status: int) -> bytes:
    """Check that both have this status, JSON, and the same body; return the body."""
    node, workers = answers["node"], answers["workers"]
    assert (node.status, workers.status) == (status, status), answers
    assert node.headers["content-type"] == workers.headers["content-type"] == "application/json"
    assert node.body == workers.body
    return node.body


@on_both_loops
async def test_a_body_is_taken_plain_packed_and_in_pieces() -> None:
    packed = gzip.compress(ECHO)
    async with both_doors() as doors:
        assert like(await doors.ask(post(size=len(ECHO)), ECHO), 200) == ECHO.replace(b" ", b"")
        answers = await doors.ask(post("Content-Encoding: gzip", size=len(packed)), packed)
        assert like(answers, 200) == ECHO.replace(b" ", b"")
        pieces = b"%x\r\n%s\r\n0\r\n\r\n" % (len(ECHO), ECHO)
        answers = await doors.ask(post("Transfer-Encoding: chunked", "Expect: 100-continue"), pieces)
        assert {answer.status for answer in answers.values()} == {100} or like(answers, 200)


@on_both_loops
async def test_a_body_that_is_broken_too_large_or_no_envelope_is_refused_alike() -> None:
    bomb = gzip.compress(b" " * (BACKEND_MAX_BYTES + 1))
    async with both_doors() as doors:
        like(await doors.ask(post("Content-Encoding: gzip", size=7), b"no gzip"), 400)
        like(await doors.ask(post(size=1), b"{"), 400)
        like(await doors.ask(post(size=2), b"{}"), 400)
        body = b'{"service":"nobody","message":1}'
        like(await doors.ask(post(size=len(body)), body), 404)
        like(await doors.ask(post("Content-Encoding: gzip", size=len(bomb)), bomb), 413)
        assert b"too_large" in like(
            await doors.ask(post(size=BACKEND_MAX_BYTES + 1), b" " * (BACKEND_MAX_BYTES + 1)), 413
        )


@on_both_loops
async def test_a_body_that_never_arrives_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_TIMEOUT_S", 0.05)
    async with both_doors() as doors:
        assert b"timeout" in like(await doors.ask(post(size=10), b"{", ends=True), 408)


@on_both_loops
async def test_a_key_is_checked_before_the_body() -> None:
    async with both_doors(Private(api_key=ApiKey.parse(KEY))) as doors:
        for field in ("X-Backend-Key: wrong", "X-Other: none"):
            # the body never comes, or is too large: the answer does not wait for either
            answers = await doors.ask(post(field, size=BACKEND_MAX_BYTES * 2), b"{", ends=True)
            assert b"unauthorized" in like(answers, 401)
        like(await doors.ask(post(f"X-Backend-Key: {KEY}", size=len(ECHO)), ECHO), 200)
        like(await doors.ask(post(f"X-Backend-Key: {KEY}", "Host: any.example", size=len(ECHO)), ECHO), 200)


@on_both_loops
async def test_a_key_of_certain_services_opens_no_other_one() -> None:
    key = replace(ApiKey.parse(KEY), services=frozenset(["echo_backend"]))
    publish = json.dumps({"service": "pubsub_backend", "message": 5}).encode()
    async with both_doors(Private(api_keys={"jobs": key})) as doors:
        like(await doors.ask(post(f"X-Backend-Key: {KEY}", size=len(ECHO)), ECHO), 200)
        answers = await doors.ask(post(f"X-Backend-Key: {KEY}", size=len(publish)), publish)
        assert b"not_authorized" in like(answers, 403)


@on_both_loops
@pytest.mark.parametrize(
    "fields",
    [
        ["Origin: https://evil.example"],
        ["Origin: null"],
        ["Sec-Fetch-Site: cross-site"],
        ["Sec-Fetch-Site: same-origin"],  # of a page whose host name resolves to loopback (DNS rebinding)
        ["Host: evil.example"],
        ["Host: evil.example:8003"],
        ["Host: 127.0.0.1.evil.example"],
        ["Host: localhost.evil.example"],
        ["Host: [::1"],
        ["Host: "],
    ],
)
async def test_without_a_key_no_page_gets_anything_from_the_private_port(fields: list[str]) -> None:
    async with both_doors() as doors:
        answers = await doors.ask(post(*fields, size=len(ECHO)), ECHO, ends=True)
        assert b"forbidden" in like(answers, 403)
        for path in ("/healthz", "/readyz", "/metrics"):
            if fields[0].startswith("Host"):
                continue
            head = "".join(f"{line}\r\n" for line in (f"GET {path} HTTP/1.1", *fields, "Host: localhost"))
            assert b"forbidden" in like(await doors.ask(head, ends=True), 403)


@on_both_loops
@pytest.mark.parametrize("host", ["readyz", "gateway:8003"])
async def test_without_a_key_balancers_and_prometheus_ask_by_the_names_of_services(host: str) -> None:
    async with both_doors() as doors:
        answers = await doors.ask(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n")
        for answer in answers.values():
            assert answer.status == 200


@on_both_loops
@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8003", "127.0.0.1:8003", "[::1]:8003", "10.0.0.7:8003", "gateway:8003"]
)
async def test_without_a_key_loopback_names_and_addresses_are_answered(host: str) -> None:
    async with both_doors() as doors:
        like(await doors.ask(post(f"Host: {host}", "Sec-Fetch-Site: none", size=len(ECHO)), ECHO), 200)


@on_both_loops
async def test_a_supervisor_counts_its_own_refusals() -> None:
    async with both_doors() as doors:
        await doors.ask(post("Origin: null", size=len(ECHO)), ECHO)
        client = await doors.open("workers")
        await client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        text = (await client.response()).body.decode()
        # one of the node, one of the supervisor
        assert 'snorky_refusals_total{door="backend",reason="origin"} 2.0' in text
        assert text.count("snorky_build_info{") == 1
