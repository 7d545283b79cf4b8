"""Clients that do not read, do not answer pings, or are not read for a while."""

import asyncio
import sys
from dataclasses import replace
from typing import Any

from snorky.gateway.config.settings import Limits, Public
from snorky.gateway.http.websocket.peer_progress import read_sent
from snorky.gateway.http.websocket.protocol import HIGH_WATER_BYTES
from tests.support.clients.raw_ws import (
    PING,
    PONG,
    TEXT,
    frame,
)
from tests.support.scenarios.echoes import assert_echoes, echo
from tests.support.scenarios.site import on_both_loops, on_both_paths, running_site, until

FAST_PINGS = Public(ping_interval_s=0.25)


SMALL = Limits(outbox_max_bytes=200_000, send_buffer_bytes=16_384)  # a slow consumer is detected soon


# -- slow consumers --------------------------------------------------------------------------------------------


@on_both_paths
async def test_a_slow_consumer_is_closed_and_its_memory_returned_and_the_others_get_everything() -> None:
    async with running_site(limits=SMALL) as site:
        slow = await site.subscriber(receive_buffer_bytes=4096)
        connection = site.connection
        healthy = await site.subscriber()
        payload = b'"' + b"x" * 1000 + b'"'
        count = 0
        while not connection.is_closed:
            site.bring(payload)
            count += 1
            assert len((await healthy.message())["message"]["message"]) == 1000
            assert count < 2000, "2 MB are buffered for a client that does not read"
        held_bytes = connection._outbox_bytes + connection._wire.buffered_bytes()
        assert held_bytes <= SMALL.outbox_max_bytes + 2000
        assert connection._outbox is None, "the queue here is dropped at once"
        await until(lambda: site.node.counts["connections"] == 1, within_s=2.0)
        assert site.sample("slow_consumers_closed_total") == 1
        assert site.sample("connections_closed_total", code="4008") == 1
        site.bring(b"1")
        assert (await healthy.message())["message"]["message"] == 1
        slow.close()


@on_both_paths
async def test_frames_are_shared_and_freed_with_the_connection() -> None:
    async with running_site(limits=SMALL) as site:
        clients = [await site.client(receive_buffer_bytes=4096) for _ in range(5)]
        connections = list(site.node.connections)
        data = b"\x82\x7e\x10\x00" + bytes(4096)
        references = sys.getrefcount(data)
        while not all(each.is_closed for each in connections):
            for each in connections:
                each.write(data)
        await until(lambda: site.node.counts["connections"] == 0, within_s=2.0)
        await until(lambda: sys.getrefcount(data) == references)
        for client in clients:
            client.close()


@on_both_paths
async def test_client_that_reads_again_in_time_gets_everything_in_order() -> None:
    async with running_site(limits=Limits(send_buffer_bytes=16_384)) as site:
        client = await site.subscriber(receive_buffer_bytes=4096)
        connection = site.connection
        count = 0
        while connection._outbox_bytes < 300_000:
            site.bring(b'[%d,"%s"]' % (count, b"x" * 1000))
            count += 1
        for number in range(count):
            assert (await client.message())["message"]["message"][0] == number
        assert connection._outbox is None and not connection.is_closed
        site.bring(b'"end"')
        assert (await client.message())["message"]["message"] == "end"


@on_both_paths
async def test_a_small_bound_counts_the_transports_buffer() -> None:
    limits = Limits(outbox_max_bytes=8192, message_max_bytes=4096, send_buffer_bytes=4096)
    async with running_site(limits=limits) as site:
        client = await site.client(receive_buffer_bytes=2048)
        connection = site.connection
        written = 0
        while not connection.is_closed:
            connection.write(b"\x82\x7e\x04\x00" + bytes(1024))
            written += 1028
            assert written < HIGH_WATER_BYTES, "the bound is the transport's, not the one that was set"
        client.close()


@on_both_loops
async def test_a_ping_flood_from_one_that_does_not_read_is_bounded() -> None:
    async with running_site(limits=replace(SMALL, frames_per_s=100_000)) as site:
        client = await site.client(receive_buffer_bytes=4096)
        connection = site.connection
        sending = asyncio.ensure_future(client.send(frame(PING, b"x" * 125) * 50_000))
        await until(lambda: connection._wire._is_full)  # type: ignore[attr-defined]
        await asyncio.sleep(0.5)
        assert not sending.done() and connection.pending_bytes < 2 * SMALL.outbox_max_bytes
        for _ in range(50_000):
            assert await client.receive() == (PONG, b"x" * 125)
        await sending
        assert not connection.is_closed


# -- dead peers ------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_half_open_client_is_cut_and_one_that_answers_stays() -> None:
    async with running_site(public=FAST_PINGS) as site:
        deaf = await site.client()
        alive = await site.client()
        alive.sees_pings = True
        while site.node.counts["connections"] == 2:
            opcode, payload = await alive.receive()
            assert (opcode, payload) == (PING, b"")
            await alive.send(frame(PONG, payload))
        assert site.sample("ping_timeouts_total") == 1
        assert await deaf.closed() is None  # reset: no peer is left to read a close frame
        await assert_echoes(alive)


@on_both_loops
async def test_a_client_on_a_slow_link_is_not_closed_while_it_keeps_reading() -> None:
    """The ping is queued after 500 KB of replies, which this client reads within several rounds of pings."""
    async with running_site(public=FAST_PINGS, limits=Limits(send_buffer_bytes=16_384)) as site:
        client = await site.client(receive_buffer_bytes=8_192)
        value = "x" * 50_000
        await client.send(b"".join(echo(value) for _ in range(10)))
        taken = bytearray()
        while len(taken) < 10 * len(value):
            taken += await client.take(4_000)
            await asyncio.sleep(0.01)  # speed of the link, 400 KB/s at most
        assert site.node.counts["connections"] == 1
        assert site.sample("ping_timeouts_total") == 0


@on_both_loops
async def test_a_silent_client_is_pinged_again_so_that_its_dead_line_shows() -> None:
    """Its system accepted 50 KB, so its application has time. Only an unacknowledged ping shows that the link died."""
    async with running_site(public=Public(ping_interval_s=2.0)) as site:
        client = await site.client()
        await assert_echoes(client)
        client.sees_pings = True
        protocol: Any = site.connection._wire
        protocol._endpoint.wheel.remove(protocol)  # the test triggers the rounds itself
        protocol.beat()
        site.connection.write(frame(TEXT, b"x" * 50_000, masked=False))
        for _ in range(2):
            await until(lambda: not read_sent(protocol._transport).has_unacked)  # type: ignore[union-attr]
            protocol.beat()
        opcodes = [(await client.receive())[0] for _ in range(4)]
        assert opcodes == [PING, TEXT, PING, PING]
        assert site.sample("ping_timeouts_total") == 0


@on_both_loops
async def test_one_whom_we_do_not_read_is_not_taken_for_dead() -> None:
    """Its pongs are in the socket, after messages that a busy service has no time for."""
    async with running_site(public=FAST_PINGS, limits=Limits(messages_burst=10_000)) as site:
        client = await site.client()
        client.sees_pings = True
        await client.send(echo("hold") + b"".join(echo(number) for number in range(200)))
        for _ in range(6):  # rounds of pings, answered and not read
            assert await client.receive() == (PING, b"")
            await client.send(frame(PONG))
        assert site.node.counts["connections"] == 1
        site.echo.release.set()
        assert [(await client.message())["message"] for _ in range(201)] == ["hold", *range(200)]
        await assert_echoes(client)


@on_both_loops
async def test_reading_pauses_while_too_many_messages_wait_and_resumes_afterwards() -> None:
    async with running_site(limits=Limits(messages_burst=100_000, messages_per_s=100_000)) as site:
        client = await site.client()
        await client.send(echo("hold"))
        await until(lambda: site.echo.seen)
        sending = asyncio.ensure_future(client.send(b"".join(echo([number] * 200) for number in range(500))))
        transport = site.connection._wire._transport  # type: ignore[attr-defined]
        await until(lambda: not transport.is_reading())
        assert site.echo.seen == ["hold"]
        site.echo.release.set()
        assert (await client.message())["message"] == "hold"
        for number in range(500):
            assert (await client.message())["message"][0] == number
        await sending
        await until(transport.is_reading)  # in a later turn


@on_both_loops
async def test_a_client_whose_reading_is_paused_can_be_closed() -> None:
    async with running_site(limits=Limits(messages_burst=10_000)) as site:
        client = await site.client()
        await client.send(echo("hold") + b"".join(echo(number) for number in range(200)))
        connection = site.connection
        await until(lambda: not connection._wire._transport.is_reading())  # type: ignore[attr-defined]
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        connection.close(1001)
        assert await client.closed() == 1001
        assert loop.time() - started_s < 1.4, "its answer was not read"
        await until(lambda: site.node.counts["connections"] == 0)
