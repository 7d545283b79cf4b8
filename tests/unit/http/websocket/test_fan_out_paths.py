"""Publications to many clients over sockets, with the extension module and without: order, slow clients, closing."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from snorky.gateway.config.settings import Limits
from snorky.gateway.errors import CloseCode
from tests.support.clients.raw_ws import CLOSE, TEXT, RawClient, frame
from tests.support.scenarios.echoes import echo
from tests.support.scenarios.site import on_both_paths, running_site

SMALL = Limits(outbox_max_bytes=200_000, send_buffer_bytes=16_384)
PADDING = "x" * 3_000


async def texts(client: RawClient) -> list[Any]:
    """Read until the close frame: the values of all messages, and the close code."""
    found: list[Any] = []
    while True:
        opcode, payload = await client.receive()
        if opcode == CLOSE:
            return [*found, int.from_bytes(payload[:2], "big")]
        assert opcode == TEXT
        found.append(value_of(json.loads(payload)))


def value_of(envelope: Mapping[str, Any]) -> Any:
    message = envelope["message"]
    value = message if envelope["service"] == "echo" else message["message"]
    return value[0] if isinstance(value, list) else value


@on_both_paths
async def test_path_is_known_to_metrics_and_connections() -> None:
    async with running_site() as site:
        clients = [await site.subscriber() for _ in range(3)]
        path = site.node.direct_sender.path
        assert site.sample("fanout_path_info", path=path) == 1
        assert all(each.direct is None for each in site.node.connections), "it costs memory: not before a delivery"
        for number in range(2):
            site.bring(b"%d" % number)
        assert all((each.direct is None) == (path == "python") for each in site.node.connections)
        for client in clients:
            assert [value_of(await client.message()) for _ in range(2)] == [0, 1]


@on_both_paths
async def test_replies_and_publications_keep_their_order_for_clients_that_read_slowly() -> None:
    """Some bytes wait in the socket, some in the transport, some in the outbox; a publication must overtake none."""
    async with running_site(limits=Limits(send_buffer_bytes=4_096)) as site:
        clients = [await site.subscriber(receive_buffer_bytes=2_048) for _ in range(3)]
        quick = [await site.subscriber() for _ in range(7)]
        for number in range(0, 120, 3):
            site.bring(json.dumps([number, PADDING]).encode())
            for client in (*clients, *quick):
                await client.send(echo(number + 1))
            for client in quick:
                assert [value_of(await client.message()) for _ in range(2)] == [number, number + 1]
            site.bring(json.dumps([number + 2, PADDING]).encode())
            for client in quick:
                assert value_of(await client.message()) == number + 2
        assert any(each._outbox_bytes for each in site.node.connections), "no client was slow"
        for client in clients:
            got = [value_of(await client.message()) for _ in range(120)]
            assert [each for each in got if each % 3 != 1] == [each for each in range(120) if each % 3 != 1]
            assert [each for each in got if each % 3 == 1] == list(range(1, 120, 3))


@on_both_paths
async def test_one_slow_consumer_among_many_gets_whole_messages_and_is_closed() -> None:
    async with running_site(limits=SMALL) as site:
        slow = await site.subscriber(receive_buffer_bytes=4_096)
        connection = site.connection
        healthy = [await site.subscriber() for _ in range(12)]
        count = 0
        while not connection.is_closed:
            site.bring(json.dumps([count, PADDING]).encode())
            count += 1
            assert [value_of(await each.message()) for each in healthy] == [count - 1] * 12
            assert count < 1_000
        assert site.sample("slow_consumers_closed_total") == 1
        *got, code = await texts(slow)
        assert code == CloseCode.SLOW_CONSUMER
        assert got == list(range(len(got))) and 0 < len(got) < count
        site.bring(json.dumps([count, PADDING]).encode())
        assert [value_of(await each.message()) for each in healthy] == [count] * 12


@on_both_paths
async def test_client_that_is_closed_between_publications_gets_its_close_frame_last() -> None:
    async with running_site() as site:
        closed, *others = [await site.subscriber() for _ in range(12)]
        first = next(site.node.connections)
        for number in range(3):
            site.bring(b"%d" % number)
        first.close(CloseCode.GOING_AWAY, "Going away")
        site.bring(b"3")
        assert await texts(closed) == [0, 1, 2, CloseCode.GOING_AWAY]
        for each in others:
            assert [value_of(await each.message()) for _ in range(4)] == [0, 1, 2, 3]


@on_both_paths
async def test_descriptors_of_closed_clients_are_never_written_to() -> None:
    """New clients get the descriptors of those that have gone, and are in no channel."""
    async with running_site() as site:
        staying = [await site.subscriber() for _ in range(3)]
        for number in range(10):
            leaving = [await site.subscriber() for _ in range(3)]
            for client in leaving:
                client.reset()
            newcomers = [asyncio.ensure_future(site.client()) for _ in range(3)]
            while not all(each.done() for each in newcomers):
                site.bring(b'"not for newcomers"')
                await asyncio.sleep(0)
            site.bring(b"%d" % number)
            for client in staying:
                while value_of(await client.message()) != number:
                    pass
            for each in newcomers:
                client = each.result()
                await client.send(echo(number))
                assert (await client.message())["message"] == number
                await client.send(frame(CLOSE, CloseCode.OK.to_bytes(2, "big")))
                assert await client.closed() == CloseCode.OK
