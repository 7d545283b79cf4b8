"""AcceptGate: plain HTTP is counted when it is accepted; some descriptors are reserved."""

import asyncio
import subprocess
import sys

import pytest
import structlog

from snorky.gateway.config.settings import Limits, Public
from snorky.gateway.http.serving.accept_gate import HTTP_PER_CONNECTION, Descriptors
from tests.support.clients.raw_ws import TEXT, RawClient, frame, handshake_head
from tests.support.scenarios.site import RunningSite, on_both_loops, running_site, until

IDLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def keep_alive(site: RunningSite) -> tuple[RawClient, int]:
    """Open a connection, send one request and keep it open."""
    client = await site.open()
    await client.send(IDLE)
    return client, (await client.response()).status


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_plain_http_connections_of_one_address_have_a_limit() -> None:
    """600 keep-alive connections were accepted at connections_per_ip = 5."""
    async with running_site(limits=Limits(connections_per_ip=5)) as site:
        found = [await keep_alive(site) for _ in range(5 * HTTP_PER_CONNECTION)]
        assert [status for _, status in found] == [404] * len(found)
        refused, status = await keep_alive(site)
        assert status == 429
        assert await refused.until_end() == b""
        assert site.sample("limit_hits_total", limit="connections_per_ip") == 1
        found[0][0].close()
        gate = site.handler.endpoint.gate
        await until(lambda: sum(gate._per_network.values()) == 5 * HTTP_PER_CONNECTION - 1)
        assert (await keep_alive(site))[1] == 404


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_a_connection_that_never_asks_is_counted_too() -> None:
    async with running_site(limits=Limits(connections_per_ip=1)) as site:
        for _ in range(HTTP_PER_CONNECTION):
            await site.open()
        gate = site.handler.endpoint.gate
        await until(lambda: sum(gate._per_network.values()) == HTTP_PER_CONNECTION)
        assert (await (await site.open()).response()).status == 429


@on_both_loops
async def test_connections_are_refused_no_longer_than_the_figure_is_new() -> None:
    """What waited may have gone without an answer: no request would then end the refusals."""
    async with running_site() as site:
        site.handler.endpoint.gate.refuse_new(10.0, for_s=0.3)
        assert (await keep_alive(site))[1] == 503
        await asyncio.sleep(0.4)  # the time itself is tested
        assert (await keep_alive(site))[1] == 404


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_nothing_that_a_refused_connection_sends_counts() -> None:
    """uvloop may read what it sent with its first packet before it is closed."""
    async with running_site(limits=Limits(connections_per_ip=1)) as site:
        for _ in range(HTTP_PER_CONNECTION):
            await site.open()
        await until(lambda: sum(site.handler.endpoint.gate._per_network.values()) == HTTP_PER_CONNECTION)
        for _ in range(20):
            client = await site.open()
            await client.send(handshake_head() + frame(TEXT, b'{"service": "echo", "message": 7}'))
            answer = await client.until_end()
            assert answer.startswith(b"HTTP/1.1 429") and b" 101 " not in answer
        assert site.sample("connections_opened_total") == 0
        assert site.sample("limit_hits_total", limit="connections_per_ip") == 20


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_a_websocket_is_no_plain_connection_any_more() -> None:
    async with running_site(limits=Limits(connections_per_ip=5)) as site:
        clients = [await site.client() for _ in range(5)]
        gate = site.handler.endpoint.gate
        await until(lambda: gate.websockets == 5 and not gate._per_network)
        sixth = await site.open()
        assert (await sixth.handshake()).status == 429  # by Admission, which reports more
        for client in clients:
            client.reset()
        await until(lambda: gate.websockets == 0)


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_a_trusted_proxy_has_only_the_bound_of_the_whole() -> None:
    public = Public(trusted_proxies=Public.__dataclass_fields__["trusted_proxies"].metadata["parse"](["127.0.0.1"]))
    async with running_site(limits=Limits(connections_per_ip=1, connections=3), public=public) as site:
        found = [await keep_alive(site) for _ in range(3 * HTTP_PER_CONNECTION)]
        assert [status for _, status in found] == [404] * len(found)
        assert (await keep_alive(site))[1] == 503
        assert site.sample("limit_hits_total", limit="connections") == 1


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_a_connection_beyond_the_descriptors_is_answered_counted_and_logged_once() -> None:
    async with running_site() as site:
        gate = site.handler.endpoint.gate
        gate._descriptors.capacity = 3
        await site.client()
        await keep_alive(site)
        await keep_alive(site)
        with structlog.testing.capture_logs() as events:
            for _ in range(20):
                client, status = await keep_alive(site)
                assert status == 503
                assert await client.until_end() == b""
        assert site.sample("limit_hits_total", limit="descriptors") == 20
        told = [each for each in events if each["event"] == "connections refused"]
        assert [(each["limit"], each["log_level"]) for each in told] == [("descriptors", "warning")]


def test_a_small_limit_of_open_files_lowers_the_limit_of_connections_and_warns() -> None:
    descriptors = Descriptors(64, 22)
    assert (descriptors.reserve, descriptors.capacity) == (16, 26)
    with structlog.testing.capture_logs() as events:
        assert descriptors.bounded(50_000) == 23
        assert descriptors.bounded(10) == 10
        assert descriptors.bounded(0) == 0
    (warning,) = events
    assert (warning["used_instead"], warning["descriptors"], warning["log_level"]) == (23, 64, "warning")
    assert "ulimit -n" in warning["remedy"]


def test_the_reserve_grows_with_the_limit_of_open_files() -> None:
    for limit, reserve in ((64, 16), (1_024, 256), (65_536, 1_024), (1 << 20, 1_024)):
        descriptors = Descriptors(limit, 30)
        assert (descriptors.reserve, descriptors.capacity) == (reserve, limit - reserve - 30)
    assert Descriptors(65_536, 30).bounded(50_000) == 50_000


def test_descriptors_of_this_process_are_counted() -> None:
    now = Descriptors.now()
    assert 0 < now.capacity < now.limit


TABLE = """
import os, resource
from snorky.gateway.http.serving import accept_gate

accept_gate.ROOM_MAX = 3_000
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
def tell():
    lines = open("/proc/self/status").read().splitlines()
    print(*(line.split()[1] for line in lines if line.startswith("FDSize:")), len(os.listdir("/proc/self/fd")))

tell()
for limit, connections in ((64, 1), (900, 50_000), (1 << 30, 500), (1 << 30, 0), (1 << 30, 50_000)):
    accept_gate.Descriptors(limit, 20).make_room(connections)
    tell()
"""


def test_room_for_descriptors_is_made_in_advance_and_is_bounded() -> None:
    lines = subprocess.run([sys.executable, "-c", TABLE], check=True, capture_output=True, text=True).stdout.split()
    begun, *sizes = map(int, lines[::2])  # a process begins with the size that its parent's descriptors need
    assert begun < 4_096
    assert sizes == [max(begun, size) for size in (64, 1_024, 2_048, 4_096, 4_096)]  # the kernel doubles it
    assert len(set(lines[1::2])) == 1, "a descriptor is still open"


@on_both_loops
async def test_a_site_makes_room_before_its_first_client(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(Descriptors, "make_room", lambda _self, connections: made.append(connections))
    async with running_site(limits=Limits(connections=77)):
        assert made == [77]
