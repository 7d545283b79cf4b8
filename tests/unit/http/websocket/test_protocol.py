"""WebSocket connections end to end over sockets: allowed behaviour of clients, and the reaction to violations."""

import asyncio
import gc
import json
import socket

import msgpack
import pytest

from snorky.gateway.config.settings import Limits, Public
from snorky.gateway.connection.connection import Connection
from snorky.gateway.http.websocket.protocol import WebSocketProtocol
from tests.support.clients.raw_ws import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    close_payload,
    deflated,
    frame,
    handshake_head,
)
from tests.support.scenarios.echoes import assert_echoes, echo
from tests.support.scenarios.site import RunningSite, gone, on_both_loops, on_both_paths, running_site, until

# -- what works ------------------------------------------------------------------------------------------------


@on_both_loops
async def test_messages_are_answered_in_their_order_however_they_are_cut() -> None:
    async with running_site() as site:
        client = await site.client()
        stream = b"".join(echo(number) for number in range(100))
        for start in range(0, len(stream), 37):
            await client.send(stream[start : start + 37])
        assert [(await client.message())["message"] for _ in range(100)] == list(range(100))
        assert site.sample("messages_received_total", transport="websocket") == 100


@on_both_loops
async def test_msgpack_clients_speak_binary() -> None:
    async with running_site() as site:
        client = await site.client({"Sec-WebSocket-Protocol": "snorky.msgpack"})
        await client.send(frame(BINARY, msgpack.packb({"service": "echo", "message": [1, "é"]})))
        opcode, payload = await client.receive()
        assert opcode == BINARY
        assert msgpack.unpackb(payload) == {"service": "echo", "message": [1, "é"]}


async def test_rule_of_a_channel_turns_compression_off() -> None:
    rules = [{"match": "secret", "compression": False}]
    async with running_site(public=Public(compression=True), channels=rules) as site:
        client = await site.client({"Sec-WebSocket-Extensions": "permessage-deflate"})
        for channel in ("news", "secret"):
            await client.call("subscribe", channel=channel)
            site.bring(b'"%s"' % (b"x" * 1000), channel)
            assert (await client.message())["message"]["channel"] == channel
            assert client.was_compressed is (channel == "news")


@on_both_loops
async def test_compressed_clients_are_read_and_written() -> None:
    async with running_site(public=Public(compression=True)) as site:
        client = await site.client({"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"})
        value = "x" * 5000
        await client.send(frame(TEXT, deflated(json.dumps({"service": "echo", "message": value}).encode()), rsv=4))
        assert (await client.message())["message"] == value
        await client.send(frame(TEXT, deflated(bytes(10**7)), rsv=4))
        assert await client.closed() == 1009


@on_both_paths
async def test_publications_reach_every_kind_of_client() -> None:
    async with running_site(public=Public(compression=True)) as site:
        plain = await site.subscriber()
        packed = await site.client({"Sec-WebSocket-Extensions": "permessage-deflate"})
        await packed.call("subscribe", channel="news")
        text = json.dumps("x" * 500).encode()
        site.bring(text)
        expected = {"service": "pubsub", "message": {"type": "message", "channel": "news", "message": "x" * 500}}
        assert await plain.message() == await packed.message() == expected


@on_both_loops
async def test_a_ping_is_answered_with_its_payload_between_fragments_too() -> None:
    async with running_site() as site:
        client = await site.client()
        data = json.dumps({"service": "echo", "message": "whole"}).encode()
        await client.send(frame(TEXT, data[:5], fin=False) + frame(PING, b"x" * 125))
        assert await client.receive() == (PONG, b"x" * 125)
        await client.send(frame(CONTINUATION, data[5:]) + frame(PONG, b"unasked"))
        assert await client.message() == {"service": "echo", "message": "whole"}


@on_both_loops
async def test_a_parser_lives_only_in_the_middle_of_something() -> None:
    async with running_site() as site:
        client = await site.client()
        protocol = site.connection._wire
        await client.send(echo(1)[:4])
        await until(lambda: protocol._parser is not None)  # type: ignore[attr-defined]
        await client.send(echo(1)[4:])
        assert await client.message() == {"service": "echo", "message": 1}
        assert protocol._parser is None  # type: ignore[attr-defined]


# -- bad input -------------------------------------------------------------------------------------------------

FAULTS = {
    "unmasked": (1002, frame(TEXT, b"Hello", masked=False)),
    "RSV2": (1002, frame(TEXT, b"Hello", rsv=2)),
    "compressed without having been negotiated": (1002, frame(TEXT, deflated(b"Hello"), rsv=4)),
    "unknown opcode": (1002, frame(0x3, b"")),
    "control frame too long": (1002, frame(PING, b"x" * 126)),
    "length not minimal": (1002, frame(TEXT, b"x", length_bytes=8)),
    "nothing to continue": (1002, frame(CONTINUATION, b"x")),
    "HTTP": (1002, b"GET / HTTP/1.1\r\n\r\n"),
    "zeros": (1002, bytes(100_000)),
    "binary for JSON": (1003, frame(BINARY, b"Hello")),
    "fragmented binary for JSON": (1003, frame(BINARY, b"Hel", fin=False) + frame(CONTINUATION, b"lo")),
    "invalid UTF-8": (1007, frame(TEXT, b"\xff\xfe")),
    "surrogate": (1007, frame(TEXT, b'"\xed\xa0\x80"')),
    "64 KiB and a byte": (1009, frame(TEXT, b"x" * 65_537)),
    "declared 2^63": (1009, frame(TEXT, b"", length=2**63)),
    "64 KiB and a byte in fragments": (1009, frame(TEXT, b"x" * 65_536, fin=False) + frame(CONTINUATION, b"x")),
}


@on_both_loops
@pytest.mark.parametrize("name", FAULTS)
async def test_bad_frames_end_the_connection_with_their_code(name: str) -> None:
    code, data = FAULTS[name]
    async with running_site() as site:
        other = await site.subscriber()
        client = await site.client()
        await client.send(echo(1) + data)
        assert await client.message() == {"service": "echo", "message": 1}
        assert await client.closed() == code
        await until(lambda: site.node.counts["connections"] == 1)
        assert site.sample("connections_closed_total", code=str(code)) == 1
        assert site.sample("client_errors_total", code="protocol_fault") == 1
        await assert_echoes(other)


@on_both_loops
async def test_after_a_fault_the_client_sees_the_end_at_once_and_needs_not_answer() -> None:
    """RFC 6455 7.1.7: we read nothing more, so its answer cannot be awaited."""
    async with running_site() as site:
        client = await site.client()
        await client.send(frame(TEXT, b"\xff"))
        assert (await client.receive())[1][:2] == close_payload(1007)
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        assert await client.until_end() == b""
        assert loop.time() - started_s < 1.4, "not only at the deadline of a close"
        client.close()
        await until(lambda: site.node.counts["connections"] == 0)


@on_both_loops
async def test_bytes_after_a_fault_are_discarded_unread() -> None:
    async with running_site() as site:
        client = await site.client()
        await client.send(frame(TEXT, b"\xff"))
        await client.send(echo("no") + frame(PING, b"no") + bytes(200_000))
        assert await client.closed() == 1007
        assert site.echo.seen == []


@on_both_loops
async def test_text_is_refused_where_msgpack_was_agreed() -> None:
    async with running_site() as site:
        client = await site.client({"Sec-WebSocket-Protocol": "snorky.msgpack"})
        await client.send(frame(TEXT, b"{}"))
        assert await client.closed() == 1003


@on_both_loops
async def test_bad_messages_are_answered_and_too_many_of_them_end_the_connection() -> None:
    async with running_site(limits=Limits(client_errors_per_minute=5)) as site:
        client = await site.client()
        for data, service in (
            (b"{", "gateway"),
            (b"[]", "gateway"),
            (b'{"service":"echo"}', "echo"),
            (b'{"service":"nobody","message":{"callId":7}}', "nobody"),
            (b'{"service":"echo","message":NaN}', "gateway"),
        ):
            await client.send(frame(TEXT, data))
            reply = await client.message()
            assert reply["service"] == service
            assert reply["message"]["type"] == "error"
            assert reply["message"]["callId"] == (7 if service == "nobody" else None)
        await assert_echoes(client)
        await client.send(frame(TEXT, b"{"))
        assert await client.closed() == 4509


@on_both_loops
async def test_too_many_messages_get_a_retry_time_and_then_a_close() -> None:
    async with running_site(limits=Limits(messages_per_s=0.1, messages_burst=2)) as site:
        client = await site.client()
        for call_id in range(2):
            assert (await client.call("publish", call_id, channel="a", message=1))["type"] == "response"
        reply = await client.call("publish", 2, channel="a", message=1)
        assert reply["code"] == "rate_limited" and reply["callId"] == 2
        assert 9_000 < reply["retryAfterMs"] <= 10_000
        refused = 1
        await client.send(echo(1) * 100)
        while (frame_ := await client.receive())[0] == TEXT:
            assert json.loads(frame_[1])["message"]["code"] == "rate_limited"
            refused += 1
        assert frame_[1][:2] == close_payload(4510)
        assert 2 < refused < 100
        assert len(site.broker.published) == 2
        assert site.sample("limit_hits_total", limit="messages_per_s") == refused + 1
        client.close()


@on_both_loops
async def test_a_service_that_fails_affects_no_other() -> None:
    async with running_site(is_strict=False) as site:
        client, other = await site.client(), await site.client()
        await client.send(echo("raise"))
        assert (await client.message())["message"]["message"] == "Internal error"
        await assert_echoes(client)
        await assert_echoes(other)
        assert site.faults == []


# -- sockets ---------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_partial_head_is_cut_in_time() -> None:
    async with running_site(limits=Limits(request_header_timeout_s=0.3)) as site:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        heads = [b"", b"G", handshake_head()[:-2], b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET"]
        clients = [await site.open() for _ in heads]
        for client, data in zip(clients, heads, strict=True):
            await client.send(data)
        for client in clients:
            await client.until_end()
        assert 0.25 < loop.time() - started_s < 2.0


@on_both_loops
async def test_a_head_that_drips_is_cut_in_time() -> None:
    """Sending a byte does not extend anything: the whole head has one deadline."""
    async with running_site(limits=Limits(request_header_timeout_s=0.3)) as site:
        loop = asyncio.get_running_loop()
        client = await site.open()
        started_s = loop.time()
        reading = asyncio.ensure_future(client.until_end())
        for byte in handshake_head()[:-4]:
            try:
                await client.send(bytes((byte,)))
            except ConnectionError:
                break
            await asyncio.wait([reading], timeout=0.02)
            if reading.done():
                break
        assert await reading == b""
        assert loop.time() - started_s < 1.5


@on_both_loops
async def test_send_buffers_are_inherited_by_connections() -> None:
    async with running_site(limits=Limits(send_buffer_bytes=20_000)) as site:
        await site.client()
        sock = site.connection._wire._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 20_000  # Linux doubles it


@on_both_loops
async def test_an_empty_host_is_both_families_on_one_port() -> None:
    async with running_site(host="") as site:
        families = {address for address, _ in site.addresses}
        assert "127.0.0.1" in families and len({port for _, port in site.addresses}) == 1
        for family in range(len(site.addresses)):
            client = await site.open(family=family)
            assert (await client.handshake()).status == 101
            await assert_echoes(client)
        assert len(site.addresses) == (2 if socket.has_ipv6 else 1)


@on_both_paths
async def test_a_reset_during_a_pass_raises_nothing_and_costs_the_others_nothing() -> None:
    async with running_site() as site:
        clients = [await site.subscriber() for _ in range(20)]
        for number in range(10):
            for doomed in clients[:2]:
                doomed.reset()
            del clients[:2]
            for _ in range(3):  # before the loop has seen the resets
                site.bring(b"%d" % number)
            for client in clients:
                for _ in range(3):
                    assert (await client.message())["message"]["message"] == number
            await until(lambda: site.node.counts["connections"] == len(clients))
        await until(lambda: site.node.counts == {"connections": 0, "subscriptions": 0, "channels": 0})


@on_both_paths
async def test_a_connection_that_is_lost_may_still_be_used_by_services() -> None:
    """They hold connections across awaits: no use of a closed one raises."""
    async with running_site() as site:
        client = await site.client()
        connection = site.connection
        client.reset()
        connection.write(b"\x81\x01x")
        await gone(site)
        assert connection.is_closed
        connection.write(b"\x81\x01x")
        connection.send({"service": "echo", "message": 1})
        connection.close(1000)
        connection.pause()
        connection.resume()
        connection.pause_reading()
        connection.resume_reading()


@on_both_loops
async def test_connecting_and_leaving_2000_times_leaves_nothing() -> None:
    def ours() -> int:
        gc.collect()
        return sum(isinstance(each, Connection | WebSocketProtocol) for each in gc.get_objects())

    async def cycle(site: RunningSite, times: int) -> None:
        for number in range(times):
            client = await site.open()
            await client.send(handshake_head() + echo(number))
            await client.response()
            await client.message()
            if number % 2:
                client.reset()
            else:
                await client.send(frame(CLOSE, close_payload(1000)))
                assert await client.closed() == 1000
                client.close()
            site.clients.clear()
            site.echo.seen.clear()
        await until(lambda: site.node.counts["connections"] == 0)
        site.echo.opened.clear()
        site.echo.closed.clear()

    limits = Limits(connections=10, connections_per_ip=10, handshakes_per_s_per_ip=0)
    async with running_site(limits=limits) as site:
        await cycle(site, 100)  # caches are not counted
        before_ours, before = ours(), len(gc.get_objects())
        await cycle(site, 2000)
        site.assert_empty()
        assert ours() == before_ours
        assert len(gc.get_objects()) - before < 200
