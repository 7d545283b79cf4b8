"""Bodies of SockJS: read only for existing sessions, with a deadline, and within a limit per address."""

import gzip
import json

import pytest

import snorky.gateway.http.serving.bodies as module
from tests.support.clients.raw_ws import RawClient
from tests.support.scenarios.site import on_both_loops, until
from tests.support.scenarios.sockjs_site import SockJSSite, sockjs_site

each_size = pytest.mark.parametrize("nodes", [1, 3])
each_way = pytest.mark.parametrize("way", ["xhr_send", "jsonp_send"])
ECHO = json.dumps([json.dumps({"service": "echo", "message": 1})]).encode()


async def begin(site: SockJSSite, way: str, session_id: str, *fields: str, at: int = -1) -> RawClient:
    """Send the head of a request, and nothing of its body."""
    client = await RawClient.open("127.0.0.1", int(site.hosts[at].url.rpartition(":")[2]))
    head = [f"POST /sockjs/000/{session_id}/{way} HTTP/1.1", "Host: 127.0.0.1", *fields, "", ""]
    await client.send("\r\n".join(head).encode())
    return client


def reserved(site: SockJSSite) -> int:
    return sum(sum(host.sockjs._bodies._reserved.values()) for host in site.hosts)


@each_size
@each_way
@on_both_loops
async def test_a_body_for_an_unknown_session_is_not_read(way: str, nodes: int) -> None:
    async with sockjs_site(nodes) as site:
        async with await begin(site, way, "nobody", "Content-Length: 1000000") as client:
            assert (await client.response()).status == 404  # no byte of the body was sent
            client.end()
            assert await client.until_end() == b""


@each_size
@each_way
@on_both_loops
async def test_a_body_that_never_arrives_is_408(way: str, nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_TIMEOUT_S", 0.05)
    async with sockjs_site(nodes) as site:
        caller = site.client()
        await caller.open()
        async with await begin(site, way, caller.session_id, "Content-Length: 1000000") as client:
            await client.send(b"[")
            assert (await client.response()).status == 408
            client.end()
            assert await client.until_end() == b""
        assert reserved(site) == 0


@each_size
@on_both_loops
async def test_a_session_that_ends_while_its_body_arrives_accepts_nothing(nodes: int) -> None:
    async with sockjs_site(nodes) as site:
        caller = site.client()
        assert await caller.post("xhr", at=0) == (200, "o\n")
        async with await begin(site, "xhr_send", caller.session_id, f"Content-Length: {len(ECHO)}") as client:
            await until(lambda: reserved(site) == len(ECHO))
            site.hosts[0].sockjs._sessions.abort_all()
            await until(lambda: not any(site.cluster.names.values()))
            assert await caller.post("xhr", at=0) == (200, "o\n")  # a new one, under the same id
            if nodes > 1:
                site.hosts[0].sockjs._sessions.abort_all()
            await client.send(ECHO)
            assert (await client.response()).status == 404
        assert site.seen == []


@on_both_loops
async def test_one_address_has_a_bound_of_bytes_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ADDRESS_MAX_BYTES", module.BODY_MAX_BYTES + len(ECHO) - 1)
    async with sockjs_site() as site:
        caller = site.client()
        await caller.open()
        packed = gzip.compress(ECHO)
        held = ("Content-Encoding: gzip", f"Content-Length: {len(packed)}")
        for fields in (("Content-Length: 1048576",), ("Transfer-Encoding: chunked",), held):
            async with await begin(site, "xhr_send", caller.session_id, *fields) as client:
                await until(lambda: reserved(site) == module.BODY_MAX_BYTES)
                assert (await caller.post("xhr_send", ECHO))[0] == 429
                client.reset()
            await until(lambda: reserved(site) == 0)
        assert site.total("limit_hits_total", limit="body_bytes_per_ip") == 3
        assert (await caller.post("xhr_send", ECHO))[0] == 204
        assert (await caller.post("xhr_send", b"x"))[0] == 500
        assert reserved(site) == 0
