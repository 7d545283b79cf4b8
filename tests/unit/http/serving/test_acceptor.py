"""Acceptor: connections come no faster than their requests; some wait, and if they would wait long, are refused."""

import asyncio
import socket
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from snorky.gateway.config.settings import Limits
from snorky.gateway.http.serving.listen import listen
from tests.support.clients.raw_ws import handshake_head
from tests.support.scenarios.site import on_both_loops, running_site, until

IDLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def knock(address: tuple[str, int], count: int, request: bytes) -> list[socket.socket]:
    """Connect so many clients and send a request of each, while the loop stands still."""
    clients = [socket.create_connection(address, 10) for _ in range(count)]
    for client in clients:
        client.sendall(request)
    return clients


@on_both_loops
async def test_a_loop_with_few_iterations_accepts_several_connections_in_each() -> None:
    """libuv accepts one for each handle: a node whose iterations took 10 ms accepted 100 connections a second."""
    async with running_site() as site:
        gate = site.handler.endpoint.gate
        clients = knock(site.addresses[0], 64, IDLE)
        iterations = 0
        while len(gate._networks) < len(clients) and iterations < 100:
            await asyncio.sleep(0)
            iterations += 1
        for client in clients:
            client.close()
        assert iterations <= 24


@on_both_loops
async def test_connections_that_wait_to_be_accepted_when_a_site_stops_are_answered() -> None:
    async with running_site() as site:
        clients = knock(site.addresses[0], 40, IDLE)
        stopping = asyncio.create_task(site.site.stop())
        for client in clients:
            client.settimeout(10)
            assert (await asyncio.to_thread(client.recv, 1024)).startswith(b"HTTP/1.1 404")
            client.close()
        await stopping


@on_both_loops
async def test_a_site_that_stops_with_clients_on_both_families_listens_no_more() -> None:
    async with running_site(host="", limits=Limits(connections_per_ip=0)) as site:
        clients = [each for address in site.addresses for each in knock(address, 300, IDLE)]
        await site.site.stop()
        for client in clients:
            client.settimeout(10)
            assert (await asyncio.to_thread(client.recv, 1024)).startswith(b"HTTP/1.1 404")
            client.close()
        for address in site.addresses:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, 10)


@on_both_loops
async def test_connections_are_read_as_fast_as_their_requests_come() -> None:
    async with running_site(limits=Limits(connections_per_ip=0)) as site:
        waiting = site.site._door._waiting  # type: ignore[union-attr]
        clients = knock(site.addresses[0], 400, b"")
        counts = [0]
        while counts[-1] < len(clients):
            await asyncio.sleep(0.005)
            counts.append(len(waiting))
        assert len({*counts}) > 3, "those that send no request delay the others a little, and not forever"
        for client in clients:
            client.close()


@on_both_loops
async def test_clients_that_would_wait_long_learn_when_to_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("snorky.gateway.http.serving.acceptor.MEASURE_S", 0.02)
    monkeypatch.setattr("snorky.gateway.http.serving.acceptor.WAIT_MAX_S", 0.2)
    async with running_site(limits=Limits(connections_per_ip=0), is_strict=False) as site:
        accept = site.handler.accept

        async def slowly(*args: Any) -> Any:
            time.sleep(0.005)  # noqa: ASYNC251 - the event loop is busy
            return await accept(*args)

        site.handler.accept = slowly  # type: ignore[method-assign]
        clients = knock(site.addresses[0], 300, handshake_head())
        await until(lambda: site.handler.endpoint.gate.wait_s > 0)
        clients += knock(site.addresses[0], 50, handshake_head())
        answers = await asyncio.gather(*(asyncio.to_thread(client.recv, 300) for client in clients))
        for client in clients:
            client.close()
        statuses = Counter(answer[9:12] for answer in answers)
        assert set(statuses) == {b"101", b"503"}
        waits_s = [int(answer.partition(b"Retry-After: ")[2].split()[0]) for answer in answers if b" 503 " in answer]
        assert all(0 < each <= 20 for each in waits_s)
        assert site.sample("limit_hits_total", limit="backlog") == statuses[b"503"]
        await site.client()  # no client waits any more


@on_both_loops
async def test_a_standstill_is_no_measure_of_how_long_others_wait() -> None:
    async with running_site(limits=Limits(connections_per_ip=0)) as site:
        door = site.site._door
        assert door is not None
        clients = knock(site.addresses[0], 300, handshake_head())
        while len(door._pace) < 50:  # noqa: ASYNC110 - a portion in each iteration
            await asyncio.sleep(0)
        clients += knock(site.addresses[0], 300, handshake_head())
        time.sleep(1.5)  # noqa: ASYNC251 - the whole process stands still
        answers = await asyncio.gather(*(asyncio.to_thread(client.recv, 300) for client in clients))
        assert {answer[9:12] for answer in answers} == {b"101"}
        for client in clients:
            client.close()


def test_the_backlog_holds_thousands_of_clients() -> None:
    """When a node dies, its clients come to the others at once."""
    (bound,) = listen("127.0.0.1", 0)
    with bound:
        info = bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        (backlog,) = struct.unpack_from("=I", info, 28)  # tcpi_sacked: of a listening socket, its backlog
        assert backlog == min(4096, int(Path("/proc/sys/net/core/somaxconn").read_text()))
