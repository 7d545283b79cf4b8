"""Limits for one client or one address: frames, bytes, connections, and messages that never end."""

import asyncio
import json
from typing import Any

import pytest

from snorky.gateway.config.settings import Limits, Public
from snorky.gateway.connection.inbox import MAX_MESSAGES
from snorky.gateway.http.websocket import turns
from snorky.gateway.http.websocket.timer_wheel import TimerWheel
from tests.support.clients.raw_ws import CLOSE, CONTINUATION, PING, PONG, TEXT, RawClient, close_payload, frame
from tests.support.scenarios.site import RunningSite, on_both_loops, running_site, until
from tests.support.scenarios.sockjs_site import sockjs_site

FEW_FRAMES = Limits(frames_per_s=1.0)  # ten at once
BEGIN = frame(TEXT, b"", fin=False)
ECHO = json.dumps({"service": "echo", "message": 1}).encode()


def echo(size: int = 0) -> bytes:
    return frame(TEXT, json.dumps({"service": "echo", "message": "x" * size}).encode())


def hold() -> bytes:
    return frame(TEXT, json.dumps({"service": "echo", "message": "hold"}).encode())


async def send_each(client: RawClient, calls: list[bytes]) -> None:
    for call in calls:
        await client.send(call)
        await asyncio.sleep(0.001)  # so that it is read by itself


@on_both_loops
@pytest.mark.parametrize(
    "flood",
    [
        frame(PING, b"x"),
        frame(PONG, b"x"),
        BEGIN + frame(CONTINUATION, b"", fin=False),
        BEGIN + frame(CONTINUATION, ECHO),
    ],
    ids=["pings", "pongs", "a message never finished", "messages in pieces"],
)
async def test_frames_that_are_no_whole_message_end_the_connection(flood: bytes) -> None:
    is_endless = flood.startswith(BEGIN) and ECHO not in flood and len(flood) < 20
    for glue in (True, False):
        async with running_site(limits=FEW_FRAMES) as site:
            client = await site.client()
            pieces = [flood, *[flood.removeprefix(BEGIN) if is_endless else flood] * 40]
            try:
                for piece in [b"".join(pieces)] if glue else pieces:
                    await client.send(piece)
            except ConnectionError:
                pass  # cut while it sent
            assert await client.closed() == 4510
            assert site.sample("limit_hits_total", limit="frames_per_s") == 1
            assert site.sample("refusals_total", door="limit", reason="frames_per_s") == 1


@on_both_loops
async def test_pongs_that_were_asked_for_are_free() -> None:
    async with running_site(limits=Limits(frames_per_s=0.001), public=Public(ping_interval_s=0.25)) as site:
        client = await site.client()
        client.sees_pings = True
        for _ in range(6):
            assert await client.receive() == (PING, b"")
            await client.send(frame(PONG))
        await client.send(echo())
        while (received := await client.receive())[0] == PING:
            pass
        assert received[0] == TEXT
        assert site.sample("limit_hits_total", limit="frames_per_s") == 0


@on_both_loops
async def test_bytes_after_our_close_frame_count_too() -> None:
    async with running_site(limits=FEW_FRAMES) as site:
        client = await site.client()
        site.connection.close(4000)
        await client.send(echo() * 30)
        await until(lambda: site.sample("limit_hits_total", limit="frames_per_s") == 1)
        assert await client.closed() == 4000


@on_both_loops
async def test_bytes_are_limited_as_well_as_messages() -> None:
    async with running_site(limits=Limits(bytes_per_s=100.0, bytes_burst=65_536)) as site:
        client = await site.client()
        await client.send(echo(60_000))
        assert (await client.message())["message"][0] == "x"
        await client.send(echo(20_000))
        refused = (await client.message())["message"]
        assert refused["code"] == "rate_limited" and refused["retryAfterMs"] > 60_000
        assert site.sample("limit_hits_total", limit="bytes_per_s") == 1


@on_both_loops
async def test_reconnecting_gives_no_new_burst() -> None:
    limits = Limits(messages_per_s=0.001, messages_burst=5, rate_factor_per_ip=3)
    async with running_site(limits=limits) as site:
        for _ in range(10):
            client = await site.client()
            await client.send(echo() * 5)
            for _ in range(5):
                await client.message()
            client.close()
        assert len(site.echo.seen) == 15
        assert site.sample("limit_hits_total", limit="messages_per_ip") == 35


async def knocked(site: RunningSite, headers: dict[str, str | None] | None = None) -> int:
    client = await site.open()
    response = await client.handshake(headers)
    client.close()
    return response.status


@on_both_loops
async def test_an_address_that_connects_too_often_gets_429_with_a_time() -> None:
    proxies = Public.__dataclass_fields__["trusted_proxies"].metadata["parse"](["127.0.0.1"])
    limits = Limits(connections_per_ip=10, handshakes_per_s_per_ip=0.001)
    async with running_site(limits=limits, public=Public(trusted_proxies=proxies)) as site:
        ann: dict[str, str | None] = {"X-Forwarded-For": "192.0.2.1"}
        bad_key: dict[str, str | None] = {**ann, "Sec-WebSocket-Key": "x"}
        assert [await knocked(site, bad_key) for _ in range(20)] == [400] * 20  # refused messages count too
        assert await knocked(site, ann) == 429
        assert await knocked(site, {"X-Forwarded-For": "192.0.2.2"}) == 101
        assert site.sample("limit_hits_total", limit="handshakes_per_ip") == 1
        assert site.sample("handshakes_rejected_total", reason="handshakes_per_ip") == 1
        await until(lambda: site.node.counts["connections"] == 0)


@on_both_loops
async def test_sockjs_sessions_count_as_connections_that_begin_and_polls_do_not() -> None:
    async with sockjs_site(limits=Limits(connections_per_ip=1_000, handshakes_per_s_per_ip=0.001)) as site:
        client = site.client()
        await client.open()
        knocks = site.hosts[0].handler.endpoint.admission._knocks
        (bucket,) = knocks._buckets.values()
        before = bucket.tokens
        for _ in range(5):
            assert (await client.post("xhr_send", "[]"))[0] == 204
        bucket.tokens = 0.0
        assert (await site.client().post("xhr"))[0] == 429
        assert before > 1990


@on_both_loops
async def test_requests_that_bring_no_message_end_a_sockjs_session() -> None:
    async with sockjs_site(limits=FEW_FRAMES) as site:
        client = site.client()
        await client.open()
        for _ in range(11):
            assert (await client.post("xhr_send", "[]"))[0] == 204
        assert (await client.post("xhr"))[1].startswith("c[4510,")


@on_both_loops
async def test_a_message_that_never_ends_ends_its_connection() -> None:
    async with running_site(limits=Limits(message_timeout_s=0.3, frames_per_s=1000.0)) as site:
        for beginning in (b"\x81", frame(TEXT, b"{", fin=False), echo(100)[:-1], echo() + BEGIN):
            client = await site.client()
            await client.send(beginning)
            while (received := await client.receive())[0] == TEXT:
                pass
            assert received == (CLOSE, close_payload(1008, b"A message took longer than 0.3 s"))
            client.close()
        assert site.sample("limit_hits_total", limit="message_timeout_s") == 4


@on_both_loops
async def test_pings_in_between_do_not_make_a_message_younger(monkeypatch: pytest.MonkeyPatch) -> None:
    expected: list[object] = []
    expect = TimerWheel.expect

    def noted(wheel: TimerWheel, *arguments: Any) -> None:
        expected.append(arguments[0])
        expect(wheel, *arguments)

    monkeypatch.setattr(TimerWheel, "expect", noted)
    async with running_site() as site:
        client = await site.client()
        await client.send(BEGIN)
        await until(lambda: len(expected) == 1)
        for _ in range(5):
            await client.send(frame(PING) + frame(CONTINUATION, b"", fin=False))
            assert await client.receive() == (PONG, b"")
        assert len(expected) == 1
        await client.send(frame(CONTINUATION, ECHO) + BEGIN)  # another client
        assert (await client.message())["message"] == 1
        await until(lambda: len(expected) == 2)
        await client.send(frame(CONTINUATION, ECHO))
        assert (await client.message())["message"] == 1
        assert not site.handler.endpoint.wheel._expected


@on_both_loops
async def test_a_message_that_we_do_not_read_has_time() -> None:
    async with running_site(limits=Limits(message_timeout_s=0.2, messages_burst=10_000)) as site:
        client = await site.client()
        await client.send(hold() + echo() * 64 + echo()[:-1])
        transport = site.connection._wire._transport  # type: ignore[attr-defined]
        await until(lambda: not transport.is_reading())
        await asyncio.sleep(0.5)  # it would have expired
        site.echo.release.set()
        for _ in range(65):
            await client.message()
        await client.send(echo()[-1:])
        await client.message()
        assert not site.handler.endpoint.wheel._expected


@on_both_loops
async def test_a_read_of_many_messages_yields_to_other_clients() -> None:
    async with running_site(limits=Limits(messages_burst=10_000)) as site:
        many, other = await site.client(), await site.client()
        await many.send(echo() * 3_000)
        await many.message()
        await other.send(echo())
        await other.message()
        assert site.sample("messages_received_total", transport="websocket") < 3_001
        for _ in range(2_999):
            await many.message()


@on_both_loops
async def test_messages_wait_while_services_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TURN_S", "SHARE_S"):
        monkeypatch.setattr(turns, name, 1.0)  # no turn ends for want of time
    async with running_site(limits=Limits(messages_burst=10_000)) as site:
        client = await site.client()
        await client.send(hold() + echo() * 2_000)
        await until(lambda: site.connection._wire._is_paused)  # type: ignore[attr-defined]
        for _ in range(20):
            await asyncio.sleep(0)
        assert site.sample("messages_received_total", transport="websocket") <= 1 + MAX_MESSAGES
        site.echo.release.set()
        for _ in range(2_001):
            await client.message()


@on_both_loops
@pytest.mark.parametrize("glue", [True, False])
async def test_clients_that_do_not_read_replies_are_not_read(glue: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TURN_S", "SHARE_S"):
        monkeypatch.setattr(turns, name, 1.0)  # no turn ends for want of time
    limits = Limits(send_buffer_bytes=16_384, messages_burst=10_000)
    async with running_site(limits=limits) as site:
        client = await site.client(receive_buffer_bytes=4_096)
        call = echo(3_000)
        sending = asyncio.ensure_future(client.send(call * 400) if glue else send_each(client, [call] * 400))
        await until(lambda: site.connection._wire._is_full)  # type: ignore[attr-defined]
        await asyncio.sleep(0.3)
        assert site.connection.pending_bytes <= 65_536 + 2 * len(call)
        assert site.sample("messages_received_total", transport="websocket") < 100
        assert site.sample("unread_clients") == 1
        for _ in range(400):
            await client.message()
        await sending
        assert site.sample("unread_clients") == site.sample("queued_clients") == 0
        assert site.node.counts["connections"] == 1


@on_both_loops
async def test_a_dead_line_shows_though_its_client_is_not_read() -> None:
    """Its system acknowledges nothing any more: it is closed within two ping rounds, whatever is queued for it."""
    async with running_site(public=Public(ping_interval_s=0.25)) as site:
        client = await site.client(receive_buffer_bytes=4_096)
        protocol: Any = site.connection._wire
        sending = asyncio.ensure_future(client.send(echo(30_000) * 10))
        await until(lambda: protocol._is_full)
        protocol._acked_bytes = 1 << 40  # the acknowledged amount is not exceeded again
        await until(lambda: site.node.counts["connections"] == 0)
        sending.cancel()
        assert site.sample("ping_timeouts_total") == 1
        assert site.sample("unread_clients") == 0
