"""Sessions of SockJS, by the rules of its protocol (0.3.3): on one node, and with every request on another one."""

import asyncio
import json

import pytest
from aiohttp import web

from snorky.gateway.config.settings import Limits
from snorky.gateway.errors import Revoked
from snorky.gateway.http.sockjs.session import Timing
from tests.support.scenarios.site import on_both_loops, until
from tests.support.scenarios.sockjs_calls import connection_of, echo, send, values_of
from tests.support.scenarios.sockjs_site import QUICK, SockJSSite, frames_of, sockjs_site

each_size = pytest.mark.parametrize("nodes", [1, 3])


ENDLESS = Timing(response_max_bytes=1 << 30, beat_s=QUICK.beat_s)


def beat(site: SockJSSite) -> None:
    """Let all sessions check the clock now."""
    for host in site.hosts:
        for session in tuple(host.sockjs._sessions._sessions.values()):
            session.beat()


@each_size
@on_both_loops
async def test_polls_return_messages_in_order(nodes: int) -> None:
    async with sockjs_site(nodes) as site:
        client = site.client()
        await client.open()
        assert site.connections == 1
        await send(client, 1, "é\u2028😀", {"a": None})
        await send(client, 2)
        assert values_of((await client.post("xhr"))[1]) == [1, "é\u2028😀", {"a": None}, 2]
        poll = asyncio.create_task(client.post("xhr"))
        await send(client, 3)
        assert await poll == (200, 'a["{\\"service\\":\\"echo\\",\\"message\\":3}"]\n')
        assert site.total("messages_received_total", transport="sockjs") == 5
        assert site.total("connections", transport="sockjs", encoding="json") == 1


@each_size
@on_both_loops
async def test_a_stream_ends_at_its_limit_and_the_next_one_continues(nodes: int) -> None:
    async with sockjs_site(nodes) as site:
        client = site.client()
        await client.open()
        async with client.stream() as stream:  # of three nodes: not the session's
            for number in range(0, 150, 10):
                await send(client, *range(number, number + 10))
            first = await frames_of(stream)
            assert 4096 <= sum(map(len, first)) < 4096 + 600
        lines = "\n".join([*first, ""])
        while len(values_of(lines)) < 150:
            lines += (await client.post("xhr"))[1]
        assert values_of(lines) == list(range(150))


@each_size
@on_both_loops
async def test_a_second_receiver_is_turned_away_and_the_first_stays(nodes: int) -> None:
    async with sockjs_site(nodes) as site:
        client = site.client()
        await client.open()
        async with client.stream() as stream:  # of three nodes: not the session's
            assert await client.post("xhr") == (200, 'c[2010,"Another connection still open"]\n')
            assert await client.post("xhr") == (200, 'c[2010,"Another connection still open"]\n')
            await send(client, "still here")
            assert values_of((await stream.content.readline()).decode()) == ["still here"]


@each_size
@pytest.mark.parametrize("name", ["xhr", "xhr_streaming"])
@on_both_loops
async def test_a_receiver_that_is_cut_ends_the_session(name: str, nodes: int) -> None:
    async with sockjs_site(nodes) as site:
        client = site.client()
        await client.open()
        if name == "xhr":
            poll = asyncio.create_task(client.post("xhr"))
            await until(lambda: connection_of(site)._wire._drain is not None)
            poll.cancel()
        else:
            async with client.stream() as stream:
                await until(lambda: connection_of(site)._wire._drain is not None)
                assert stream.status == 200
        await until(lambda: connection_of(site).is_closed, "the node notices", within_s=30)
        assert site.closed == 0  # it may reconnect and get the reason
        assert await client.post("xhr") == (200, 'c[1002,"Connection interrupted"]\n')
        await until(lambda: site.closed == 1)


@each_size
@on_both_loops
async def test_a_closed_session_returns_its_reason_until_the_delay_is_over(nodes: int) -> None:
    async with sockjs_site(nodes) as site:
        client = site.client()
        await client.open()
        connection_of(site).close(3000, "Go away!")
        for _ in range(2):
            assert await client.post("xhr", at=0) == (200, 'c[3000,"Go away!"]\n')
            site.clock.advance(4.9 / 2)
            beat(site)
        assert site.total("connections_closed_total", code="other") == 1
        site.clock.advance(0.2)
        await until(lambda: site.is_empty)
        assert await client.post("xhr") == (200, "o\n")  # the id is free again


@each_size
@pytest.mark.parametrize("name", ["xhr", "xhr_streaming"])
@on_both_loops
async def test_messages_before_the_close_arrive_before_it(name: str, nodes: int) -> None:
    async with sockjs_site(nodes) as site:
        client = site.client()
        await client.open()
        await send(client, 1, 2)
        connection_of(site).close(4501, "Bad token")
        if name == "xhr":
            assert values_of((await client.post("xhr"))[1]) == [1, 2]
            assert await client.post("xhr") == (200, 'c[4501,"Bad token"]\n')
        else:
            async with client.stream() as stream:
                said, end = await frames_of(stream)
                assert (values_of(said), end) == ([1, 2], 'c[4501,"Bad token"]')


@each_size
@on_both_loops
async def test_session_without_a_new_request_is_ended(nodes: int) -> None:
    async with sockjs_site(nodes) as site:
        client = site.client()
        await client.open()
        site.clock.advance(4.9)
        beat(site)
        assert site.connections == 1
        site.clock.advance(0.2)
        await until(lambda: site.is_empty)
        assert site.closed == 1
        assert site.total("connections_closed_total", code="1006") == 1
        assert await client.post("xhr_send", echo(1)) == (404, "")


@each_size
@on_both_loops
async def test_silence_is_broken_by_heartbeats(nodes: int) -> None:
    async with sockjs_site(nodes) as site:
        client = site.client()
        await client.open()
        poll = asyncio.create_task(client.post("xhr"))
        await until(lambda: connection_of(site)._wire._drain is not None)
        site.clock.advance(24.9)
        beat(site)
        await send(client, "before")  # had there been a heartbeat, the poll would have returned it
        assert values_of((await poll)[1]) == ["before"]
        async with client.stream() as stream:
            await until(lambda: connection_of(site)._wire._drain is not None)
            for _ in range(2):
                site.clock.advance(25.0)
                assert await stream.content.readline() == b"h\n"


@each_size
@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ("", 500, "Payload expected."),
        ("x", 500, "Broken JSON encoding."),
        ("[", 500, "Broken JSON encoding."),
        ('"text"', 500, "Broken JSON encoding."),
        ("[1]", 500, "Broken JSON encoding."),
        ('["\\ud800"]', 500, "Broken JSON encoding."),
        (b'["\xff"]', 500, "Broken JSON encoding."),
        ("[" * 100_000, 500, "Broken JSON encoding."),
        ("[]", 204, ""),
    ],
)
@on_both_loops
async def test_anything_but_an_array_of_strings_is_refused(
    body: str | bytes, status: int, text: str, nodes: int
) -> None:
    async with sockjs_site(nodes) as site:
        client = site.client()
        await client.open()
        for _ in range(nodes):
            assert await client.post("xhr_send", body) == (status, text)
        await send(client, "still here")
        assert values_of((await client.post("xhr"))[1]) == ["still here"]


@each_size
@on_both_loops
async def test_bad_messages_are_answered_as_on_any_wire(nodes: int) -> None:
    async with sockjs_site(nodes, limits=Limits(message_max_bytes=1000, outbox_max_bytes=100_000)) as site:
        client = site.client()
        await client.open()
        assert await client.post("xhr_send", '["no envelope"]') == (204, "")
        (frame,) = (await client.post("xhr"))[1].splitlines()
        assert json.loads(json.loads(frame[1:])[0])["message"]["type"] == "error"
        assert await client.post("xhr_send", echo("x" * 1000)) == (204, "")
        assert await client.post("xhr") == (200, 'c[1009,"Message larger than 1000 bytes"]\n')


@each_size
@on_both_loops
async def test_requests_for_an_unknown_session_are_refused(nodes: int) -> None:
    async with sockjs_site(nodes) as site:
        client = site.client()
        assert await client.post("xhr_send", echo(1)) == (404, "")
        assert await client.post("jsonp_send", echo(1)) == (404, "")
        assert site.connections == 0


@each_size
@on_both_loops
async def test_the_queue_of_a_slow_client_is_bounded(nodes: int) -> None:
    async with sockjs_site(nodes, limits=Limits(outbox_max_bytes=70_000, message_max_bytes=60_000)) as site:
        client = site.client()
        await client.open()
        connection = connection_of(site)
        for _ in range(3):
            connection.send({"service": "echo", "message": "x" * 30_000})
        assert connection.is_closed
        assert await client.post("xhr") == (200, 'c[4008,"Slow consumer"]\n')
        assert site.total("slow_consumers_closed_total") == 1


@each_size
@on_both_loops
async def test_a_stream_that_is_not_read_is_bounded(nodes: int) -> None:
    limits = Limits(outbox_max_bytes=300_000)
    async with sockjs_site(nodes, limits=limits, timing=ENDLESS) as site:
        client = site.client()
        await client.open()
        async with client.stream() as stream:  # of three nodes: not the session's
            assert stream.status == 200
            await until(lambda: connection_of(site)._wire._drain is not None)
            connection = connection_of(site)
            written = 0
            while not connection.is_closed:
                connection.send({"service": "echo", "message": "x" * 10_000})
                written += 10_000
                assert written < 20_000_000
                await asyncio.sleep(0)
            assert site.total("slow_consumers_closed_total") == 1


@each_size
@on_both_loops
async def test_a_stream_that_is_read_continues_beyond_the_limit_of_unread_bytes(nodes: int) -> None:
    async with sockjs_site(nodes, timing=ENDLESS) as site:
        client = site.client()
        await client.open()
        async with client.stream() as stream:  # of three nodes: not the session's
            assert stream.status == 200
            await until(lambda: connection_of(site)._wire._drain is not None)
            for number in range(40):
                connection_of(site).send({"service": "echo", "message": [number, "x" * 10_000]})
            lines = ""
            while len(values_of(lines)) < 40:
                lines += (await stream.content.readuntil(b"\n")).decode()
            assert [value[0] for value in values_of(lines)] == list(range(40))


@each_size
@on_both_loops
async def test_a_busy_service_slows_its_sender(nodes: int) -> None:
    async with sockjs_site(nodes, limits=Limits(messages_burst=1000, messages_per_s=1000)) as site:
        client = site.client()
        async with client.stream() as stream:
            assert await stream.content.readline() == b"o\n"
            sending = asyncio.create_task(client.post("xhr_send", echo("hold", *range(100))))
            await until(lambda: site.seen == ["hold"])
            await until(lambda: not connection_of(site)._wire._may_read.is_set())
            assert await client.post("xhr_send", "") == (
                500,
                "Payload expected.",
            )  # one loop iteration, in which it might continue
            (inbox,) = [inbox for host in site.hosts for inbox in host.handler.endpoint.registry._inboxes.values()]
            assert len(inbox._envelopes) == 64 and not sending.done()
            for host in site.hosts:
                host.echo.release.set()
            assert await sending == (204, "")
            await until(lambda: site.seen == ["hold", *range(100)])


@on_both_loops
async def test_limits_count_sessions() -> None:
    async with sockjs_site(1, limits=Limits(connections_per_ip=2), timing=QUICK) as site:
        for _ in range(2):
            await site.client().open()
        assert (await site.client().post("xhr"))[0] == 429
        assert site.total("handshakes_rejected_total", reason="connections_per_ip") == 1


async def by_cookie(request: web.Request) -> str | None:
    who = request.cookies.get("who")
    if who == "broken":
        raise RuntimeError("the operator's own fault")
    if who == "revoked":
        raise Revoked
    return who


@each_size
@on_both_loops
async def test_identity_is_determined_when_a_session_opens(nodes: int) -> None:
    async with sockjs_site(nodes, identify=by_cookie) as site:
        client = site.client(headers={"Cookie": "who=ann"})
        await client.open()
        assert connection_of(site).identity == "ann"
        await send(client, 1)
        assert values_of((await client.post("xhr"))[1]) == [1]
        connection_of(site).close(1000)
        await client.post("xhr")
        await site.client().open()  # no owner is known
        assert connection_of(site).identity is None


@each_size
@on_both_loops
async def test_bad_token_gives_a_close_code_and_reaches_no_service(nodes: int) -> None:
    async with sockjs_site(nodes, identify=by_cookie) as site:
        client = site.client(headers={"Cookie": "who=revoked"})
        status, text = await client.post("xhr")
        assert (status, text[:7]) == (200, "c[4503,")
        assert [host.echo.opened for host in site.hosts] == [[]] * nodes
        assert site.total("handshakes_rejected_total", reason="token") == 1
        assert (await site.client(headers={"Cookie": "who=broken"}).post("xhr"))[0] == 503
