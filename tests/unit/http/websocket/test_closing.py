"""The end of a WebSocket connection, by either side."""

import asyncio

import pytest

from snorky.gateway.config.settings import Limits
from tests.support.clients.raw_ws import (
    CLOSE,
    PING,
    RawClient,
    close_payload,
    frame,
)
from tests.support.scenarios.echoes import echo
from tests.support.scenarios.site import on_both_loops, running_site, until

# -- the end ---------------------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        (b"", 1000),
        (close_payload(1000), 1000),
        (close_payload(1001, b"going"), 1001),
        (close_payload(3000), 3000),
        (close_payload(4999), 4999),
        (close_payload(1005), 1002),
        (close_payload(999), 1002),
        (close_payload(5000), 1002),
        (b"\x03", 1002),
        (close_payload(1000, b"\xff"), 1007),
    ],
)
async def test_a_close_frame_is_answered_and_the_server_closes_first(payload: bytes, answer: int) -> None:
    async with running_site() as site:
        client = await site.client()
        await client.send(frame(CLOSE, payload))
        opcode, reply = await client.receive()
        assert opcode == CLOSE and int.from_bytes(reply[:2], "big") == answer
        assert await client.until_end() == b""  # RFC 6455 7.1.1: and not after a timeout
        client.close()
        await until(lambda: site.node.counts["connections"] == 0)
        label = {1000: "1000", 1001: "1001", 1002: "1002", 1007: "1007"}.get(answer, "other")
        label = "1005" if payload == b"" else label
        assert site.sample("connections_closed_total", code=label) == 1


@on_both_loops
async def test_messages_after_a_close_frame_are_ignored() -> None:
    async with running_site() as site:
        client = await site.client()
        await client.send(echo(1) + frame(CLOSE, close_payload(1000)) + echo(2) + b"\xff\xff")
        assert await client.message() == {"service": "echo", "message": 1}
        assert await client.closed() == 1000
        assert site.echo.seen == [1]
        assert site.sample("client_errors_total", code="protocol_fault") == 0


@on_both_loops
async def test_a_close_by_the_server_waits_for_the_answer_and_then_closes() -> None:
    async with running_site() as site:
        client = await site.client()
        connection = site.connection
        connection.close(4501, "Bad token")
        connection.close(1000)  # the first one counts
        assert await client.receive() == (CLOSE, close_payload(4501, b"Bad token"))
        await client.send(echo("too late") + frame(PING, b"too late"))
        await client.send(frame(CLOSE, close_payload(4501)))
        assert await client.until_end() == b""
        assert site.echo.seen == []
        assert site.sample("messages_received_total", transport="websocket") == 0
        await until(lambda: site.node.counts["connections"] == 0)
        assert site.sample("connections_closed_total", code="4501") == 1


@on_both_loops
async def test_client_that_does_not_answer_a_close_frame_is_cut() -> None:
    async with running_site() as site:
        client = await site.client()
        site.connection.close(1001)
        started_s = asyncio.get_running_loop().time()
        assert (await client.receive())[0] == CLOSE
        assert await client.until_end() == b""
        assert asyncio.get_running_loop().time() - started_s < 2.5
        await until(lambda: site.node.counts["connections"] == 0)


@on_both_loops
async def test_a_client_that_ends_without_a_close_frame_is_removed() -> None:
    async with running_site() as site:
        for end in (RawClient.close, RawClient.reset, RawClient.end):
            client = await site.subscriber()
            end(client)
            await until(lambda: site.node.counts == {"connections": 0, "subscriptions": 0, "channels": 0})
        assert site.sample("connections_closed_total", code="1006") == 3
        assert len(site.echo.closed) == 3


@on_both_loops
async def test_a_client_that_ends_and_does_not_read_cannot_stay() -> None:
    """The client closed its side, ours stays open while bytes are queued for it: that has a deadline too."""
    async with running_site(limits=Limits(send_buffer_bytes=16_384)) as site:
        client = await site.subscriber(receive_buffer_bytes=4096)
        for _ in range(20):
            site.connection.write(b"\x82\x7e\x40\x00" + bytes(16_384))
        client.end()
        await until(lambda: site.node.counts["connections"] == 0, within_s=30)
