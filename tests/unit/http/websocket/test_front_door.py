"""FrontDoor: usual handshakes never reach aiohttp; all else does, with the bytes, the verdict and the time left."""

import asyncio
import itertools
import re

import pytest
from aiohttp import web

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.config.settings import Limits, Public
from snorky.gateway.connection.pace import PORTION
from snorky.gateway.http.websocket.front_door import EARLY_MAX_BYTES, FrontDoor
from snorky.gateway.http.websocket.handshake import HandshakeRefused
from tests.support.clients.raw_ws import CLOSE, PONG, TEXT, RawClient, close_payload, frame, handshake_head
from tests.support.scenarios.site import RunningSite, gone, on_both_loops, running_site, until


def echoed(number: int) -> bytes:
    return frame(TEXT, b'{"service":"echo","message":%d}' % number)


def door_of(site: RunningSite) -> FrontDoor:
    door = site.site._door
    assert door is not None
    return door


def requests_of(site: RunningSite) -> int:
    """How many requests aiohttp has served."""
    server = site.site._runner.server
    assert server is not None
    return server.requests_count


class Decision:
    """Authentication that lasts until it is released, or raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.begun = 0
        self.release = asyncio.Event()

        async def ask(*_args: object) -> None:
            self.begun += 1
            await self.release.wait()
            if error is not None:
                raise error

        monkeypatch.setattr(Authenticator, "ask_to_connect", ask)
        monkeypatch.setattr(Authenticator, "asks_backend", True)


@on_both_loops
async def test_a_handshake_is_answered_without_aiohttp() -> None:
    async with running_site(public=Public(allowed_origins=("https://app.example.org",), compression=True)) as site:
        client = await site.client(
            {"Origin": "https://app.example.org", "Sec-WebSocket-Extensions": "permessage-deflate"}
        )
        assert site.connection.dialect.has_deflate
        await client.send(echoed(1))
        assert await client.message() == {"service": "echo", "message": 1}
        assert requests_of(site) == 0 and door_of(site).connections == 0


@on_both_loops
async def test_a_handshake_in_two_reads_is_answered_by_aiohttp() -> None:
    head = handshake_head()
    async with running_site() as site:
        client = await site.open()
        await client.send(head[:20])
        await until(lambda: door_of(site).connections == 0 and site.site._runner.server.connections)  # type: ignore[union-attr]
        await client.send(head[20:] + echoed(1))
        assert (await client.response()).status == 101
        assert await client.message() == {"service": "echo", "message": 1}
        assert requests_of(site) == 1


@on_both_loops
async def test_an_identify_hook_sees_the_request_of_aiohttp() -> None:
    seen: list[web.Request] = []

    async def identify(request: web.Request) -> str:
        seen.append(request)
        return request.cookies["session"]

    async with running_site(identify=identify) as site:
        await site.client({"Cookie": "session=ann"})
        assert site.connection.identity == "ann" and requests_of(site) == len(seen) == 1
        seen.clear()


async def answers_to(changes: list[dict[str, str | None]]) -> list[tuple[bytes, dict[str, float]]]:
    """Responses to handshakes with these headers, without their dates, each with the counted metrics."""
    found = []
    for each in changes:
        async with running_site(limits=Limits(connections_per_ip=1, handshakes_per_s_per_ip=0.001)) as site:
            holder = await site.client() if "X-Full" in each else None
            client = await site.open()
            await client.send(handshake_head(each) + echoed(1))
            response = re.sub(rb"Date: [^\r]+", b"Date:", await client.until_end())
            counted = {
                f"{sample.name} {sorted(sample.labels.items())}": sample.value
                for family in site.node.metrics.registry.collect()
                for sample in family.samples
                if re.match(r"snorky_(handshakes|limit_hits|refusals|connections_opened)", sample.name)
            }
            buckets = site.handler.endpoint.admission._knocks._buckets
            found.append(
                (response, counted | {"attempts": sum(each.burst - round(each.tokens) for each in buckets.values())})
            )
            assert holder is None or not holder.is_ended
    return found


@on_both_loops
async def test_refusals_are_the_same_on_both_ways_and_counted_once() -> None:
    cases: list[dict[str, str | None]] = [
        {"Origin": "https://evil.example"},
        {"Sec-WebSocket-Key": "short"},
        {"Sec-WebSocket-Version": "8"},
        {"Connection": "keep-alive"},
        {"X-Full": "yes"},
    ]
    direct = await answers_to(cases)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("snorky.gateway.http.websocket.front_door.read_head", lambda _data, _path: None)
        assert await answers_to(cases) == direct
    assert [response[9:12] for response, _ in direct] == [b"403", b"400", b"426", b"400", b"429"]


@on_both_loops
async def test_a_draining_node_refuses(each_door: None) -> None:
    async with running_site() as site:
        site.node.is_draining = True
        response = await (await site.open()).handshake()
        assert (response.status, response.headers["retry-after"]) == (503, "5")


@on_both_loops
async def test_a_silent_connection_is_closed_and_one_that_begins_a_request_late_gets_no_more_time() -> None:
    async with running_site(limits=Limits(request_header_timeout_s=0.3)) as site:
        silent, late = await site.open(), await site.open()
        door = door_of(site)
        await until(lambda: len(door._waiting) == 2)
        arrival = list(door._waiting)[-1]
        due_s = door._waiting[arrival] = door._waiting[arrival] - 0.1  # as if it had waited before
        await late.send(b"GET /ws HT")
        server = site.site._runner.server
        assert server is not None
        await until(lambda: server.connections)
        assert server.connections[0]._next_keepalive_close_time == due_s
        assert await silent.until_end() == await late.until_end() == b""
        assert door.connections == 0
        client = await site.client()
        await (await site.open()).until_end()
        await client.send(echoed(1))
        assert await client.message() == {"service": "echo", "message": 1}, "a WebSocket has no such deadline"


@on_both_loops
async def test_messages_sent_before_the_decision_are_delivered_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    decision = Decision(monkeypatch)
    large = frame(TEXT, b'{"service":"echo","message":"%s"}' % (b"x" * 60_000))
    async with running_site(limits=Limits(messages_burst=10_000)) as site:
        client = await site.open()
        sending = asyncio.ensure_future(client.send(handshake_head() + echoed(1) + large * 20 + echoed(2)))
        await until(lambda: decision.begun)
        (arrival,) = door_of(site)._deciding
        await until(lambda: not arrival.transport.is_reading())
        assert EARLY_MAX_BYTES <= len(arrival._data) <= EARLY_MAX_BYTES + 2 * 262_144, "nothing bounds it"
        decision.release.set()
        assert (await client.response()).status == 101
        assert await client.message() == {"service": "echo", "message": 1}
        for _ in range(20):
            assert len((await client.message())["message"]) == 60_000
        assert await client.message() == {"service": "echo", "message": 2}
        await sending


@on_both_loops
async def test_a_refusal_after_a_wait_is_answered_by_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    decision = Decision(monkeypatch, HandshakeRefused(503, "hook_failed", "Later"))
    async with running_site() as site:
        client = await site.open()
        sending = asyncio.ensure_future(client.send(handshake_head() + b"x" * 2 * EARLY_MAX_BYTES))
        await until(lambda: decision.begun and not next(iter(door_of(site)._deciding)).transport.is_reading())
        decision.release.set()
        response = await client.response()
        assert (response.status, response.body) == (503, b"Later\n")
        assert site.sample("handshakes_rejected_total", reason="hook_failed") == 1
        assert decision.begun == 1, "it is decided once"
        sending.cancel()


@on_both_loops
async def test_a_fault_of_ours_is_answered_with_500(monkeypatch: pytest.MonkeyPatch) -> None:
    decision = Decision(monkeypatch, RuntimeError("ours"))
    decision.release.set()
    async with running_site(is_strict=False) as site:
        assert (await (await site.open()).handshake()).status == 500
        await gone(site)
        assert site.admitted == (0, {})


@on_both_loops
async def test_a_client_that_leaves_while_it_is_decided_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    decision = Decision(monkeypatch)
    async with running_site() as site:
        for at in range(2):
            client = await site.open()
            await client.send(handshake_head())
            await until(lambda at=at: decision.begun == at + 1)
            client.reset()
        await until(lambda: not site.handler.endpoint.gate._networks)
        decision.release.set()
        await until(lambda: site.admitted == (0, {}) and door_of(site).connections == 0)


@on_both_loops
async def test_the_end_of_a_site_ends_what_waits_at_its_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snorky.gateway.http.serving.site.SHUTDOWN_S", 0.1)
    decision = Decision(monkeypatch)
    async with running_site() as site:
        silent, asking = await site.open(), await site.open()
        await asking.send(handshake_head())
        await until(lambda: decision.begun and door_of(site).connections == 2)
        await site.site.stop()
        assert await silent.until_end() == await asking.until_end() == b""
        await until(lambda: door_of(site).connections == 0 and site.admitted == (0, {}))


@on_both_loops
async def test_a_decision_in_progress_is_finished_when_a_site_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    decision = Decision(monkeypatch)
    async with running_site() as site:
        client = await site.open()
        await client.send(handshake_head())
        await until(lambda: decision.begun)
        stopping = asyncio.ensure_future(site.site.stop())
        await until(lambda: not door_of(site)._waiting)
        decision.release.set()
        assert (await client.response()).status == 101
        await stopping
        await client.send(echoed(1))
        assert await client.message() == {"service": "echo", "message": 1}


@on_both_loops
async def test_frames_that_come_with_the_handshake_are_answered(each_door: None) -> None:
    async with running_site() as site:
        client: RawClient = await site.client(early=echoed(1) + frame(0x9, b"end") + frame(CLOSE, close_payload(1000)))
        assert await client.message() == {"service": "echo", "message": 1}
        assert await client.receive() == (PONG, b"end")
        assert await client.closed() == 1000


@on_both_loops
async def test_a_wait_that_nothing_announces_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    decision = Decision(monkeypatch)
    monkeypatch.setattr(Authenticator, "asks_backend", False)
    async with running_site(is_strict=False) as site:
        client = await site.open()
        await client.send(handshake_head())
        assert await client.until_end() == b""
        assert decision.begun and site.admitted == (0, {}) and site.faults


@on_both_loops
async def test_tokens_are_verified_in_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys may have to be fetched first."""
    monkeypatch.setattr(Authenticator, "takes_tokens", True)
    async with running_site() as site:
        assert site.handler.may_wait
        await site.client()


@on_both_loops
async def test_handshakes_in_portions() -> None:
    """All that had come were answered in one iteration of the loop, and delayed the messages of other clients."""
    async with running_site() as site:
        clients = [await site.open() for _ in range(4 * PORTION)]
        for client in clients:
            client.sock.sendall(handshake_head())
        counts = [0]
        while counts[-1] < len(clients):
            await asyncio.sleep(0)
            counts.append(site.node.counts["connections"])
        assert max(after - before for before, after in itertools.pairwise(counts)) <= PORTION


@on_both_loops
async def test_a_site_that_stops_answers_the_handshakes_in_the_line() -> None:
    async with running_site() as site:
        clients = [await site.open() for _ in range(3 * PORTION)]
        await until(lambda: door_of(site).connections == len(clients))
        for client in clients:
            client.sock.sendall(handshake_head())
        await until(lambda: len(door_of(site)._pace) > 0)
        await site.site.stop()
        for client in clients:
            assert (await client.response()).status == 101
