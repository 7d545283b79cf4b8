"""Admission: which address counts behind proxies, and how many connections one address may have."""

import ipaddress
import math
from typing import Any

import pytest
from multidict import CIMultiDict

from snorky.gateway.config.settings import Limits, Public
from snorky.gateway.http.websocket.admission import Admission
from snorky.gateway.http.websocket.handshake import HandshakeRefused
from snorky.gateway.metrics import Metrics
from tests.support.clients.raw_ws import CLOSE, close_payload, frame, handshake_head
from tests.support.scenarios.site import on_both_loops, running_site, until

PROXIES = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "fd00::/8", "127.0.0.1/32")))


class Request:
    def __init__(self, remote: str | None, *forwarded: str) -> None:
        self.remote = remote
        self.headers: CIMultiDict[str] = CIMultiDict()
        for line in forwarded:
            self.headers.add("X-Forwarded-For", line)


def admission(limits: Limits | None = None, proxies: Any = PROXIES) -> Admission:
    return Admission(limits or Limits(), proxies, Metrics())


@pytest.mark.parametrize(
    ("remote", "forwarded", "expected"),
    [
        ("203.0.113.5", [], "203.0.113.5"),
        # a peer that is no trusted proxy may write anything
        ("203.0.113.5", ["198.51.100.1"], "203.0.113.5"),
        ("203.0.113.5", ["10.0.0.1"], "203.0.113.5"),
        # behind one proxy, behind two
        ("10.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["203.0.113.5, 10.0.0.2"], "203.0.113.5"),
        ("10.0.0.1", ["203.0.113.5", "10.0.0.2"], "203.0.113.5"),
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
        # what the client itself wrote is further left
        ("10.0.0.1", ["198.51.100.1, 203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["10.0.0.9, 203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["127.0.0.1", "203.0.113.5", "10.0.0.2"], "203.0.113.5"),
        ("10.0.0.1", ["spoofed, 203.0.113.5 , 10.0.0.3"], "203.0.113.5"),
        # a proxy that sends nothing, or nothing useful
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["", " , ,"], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["unknown"], "unknown"),
        ("10.0.0.1", ["203.0.113.5, unknown"], "unknown"),
        # some proxies add the port: then each connection would count as its own address
        ("10.0.0.1", ["203.0.113.5:51234"], "203.0.113.5"),
        ("10.0.0.1", ["203.0.113.5, 10.0.0.2:443"], "203.0.113.5"),
        ("10.0.0.1", ["[2001:db8::7]:51234"], "2001:db8::7"),
        ("10.0.0.1", ["[2001:db8::7]"], "2001:db8::7"),
        (None, [], ""),
    ],
)
def test_the_client_is_the_right_most_address_that_is_no_trusted_proxy_s(
    remote: str | None, forwarded: list[str], expected: str
) -> None:
    request: Any = Request(remote, *forwarded)
    assert admission().client_ip(request) == expected


def test_forwarded_headers_are_ignored_without_a_trusted_proxy() -> None:
    request: Any = Request("127.0.0.1", "203.0.113.5")
    assert admission(proxies=()).client_ip(request) == "127.0.0.1"


def test_each_address_has_its_limit_and_the_node_its_own() -> None:
    gate = admission(Limits(connections=3, connections_per_ip=2))
    for _ in range(2):
        gate.enter("a")
    with pytest.raises(HandshakeRefused) as caught:
        gate.enter("a")
    assert (caught.value.status, caught.value.reason) == (429, "connections_per_ip")
    gate.enter("b")
    with pytest.raises(HandshakeRefused) as caught:
        gate.enter("c")
    assert (caught.value.status, caught.value.reason) == (503, "connections")
    gate.leave("a")
    gate.enter("c")
    for ip in "abc":
        gate.leave(ip)
    assert (gate._total, dict(gate._per_ip)) == (0, {}), "addresses without connections use no memory"


def test_refused_connections_are_not_counted() -> None:
    gate = admission(Limits(connections=0, connections_per_ip=1))
    gate.enter("a")
    for _ in range(100):
        with pytest.raises(HandshakeRefused):
            gate.enter("a")
    gate.leave("a")
    assert (gate._total, dict(gate._per_ip)) == (0, {})


def test_the_addresses_of_one_ipv6_network_are_one_client_s() -> None:
    gate = admission(Limits(connections_per_ip=2))
    gate.enter("2001:db8:1:2::1")
    gate.enter("2001:db8:1:2:ffff::9%eth0")
    with pytest.raises(HandshakeRefused):
        gate.enter("2001:db8:1:2::3")
    gate.enter("2001:db8:1:3::1")
    for ip in ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9%eth0", "2001:db8:1:3::1"):
        gate.leave(ip)
    assert (gate._total, dict(gate._per_ip)) == (0, {})


def test_an_ipv4_address_is_one_client_s_however_it_is_written() -> None:
    gate = admission(Limits(connections_per_ip=1))
    gate.enter("::ffff:203.0.113.5")
    gate.enter("::ffff:203.0.113.6")
    with pytest.raises(HandshakeRefused):
        gate.enter("203.0.113.5")


def test_the_limit_is_among_the_metrics() -> None:
    metrics = Metrics()
    for limits, told in ((Limits(connections=7), 7.0), (Limits(connections=0), math.inf)):
        Admission(limits, (), metrics)
        assert metrics.registry.get_sample_value("snorky_connections_limit") == told


def test_zero_is_no_limit() -> None:
    gate = admission(Limits(connections=0, connections_per_ip=0))
    for _ in range(10_000):
        gate.enter("a")


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_too_many_connections_are_refused_with_a_status_and_accepted_later() -> None:
    async with running_site(limits=Limits(connections_per_ip=2)) as site:
        clients = [await site.client() for _ in range(2)]
        refused = await site.open()
        response = await refused.handshake()
        assert response.status == 429 and response.headers["retry-after"] == "5"
        assert site.sample("limit_hits_total", limit="connections_per_ip") == 1
        assert site.sample("handshakes_rejected_total", reason="connections_per_ip") == 1
        assert site.admitted == (2, {"127.0.0.1": 2})
        clients[0].reset()
        await until(lambda: site.admitted == (1, {"127.0.0.1": 1}))
        await site.client()


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_a_full_node_refuses_with_its_reason() -> None:
    async with running_site(limits=Limits(connections=1)) as site:
        await site.client()
        response = await (await site.open()).handshake()
        assert response.status == 503 and response.headers["retry-after"] == "5"


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_counts_return_to_zero_however_connections_end() -> None:
    async with running_site(limits=Limits(connections_per_ip=50)) as site:
        for number in range(60):
            client = await site.open()
            early = [b"", frame(CLOSE, close_payload(1000)), b"\xff\xff\xff"][number % 3]
            await client.send(handshake_head() + early)
            if number % 2:
                client.reset()
            else:
                await client.response()
                client.close()
            if number % 10 == 9:
                await until(lambda: site.admitted == (0, {}))
        await until(lambda: site.admitted == (0, {}))


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_connections_through_a_trusted_proxy_count_for_their_clients() -> None:
    public = Public(trusted_proxies=PROXIES)
    async with running_site(public=public, limits=Limits(connections_per_ip=1)) as site:
        await site.client({"X-Forwarded-For": "203.0.113.5"})
        await site.client({"X-Forwarded-For": "203.0.113.5, 203.0.113.6"})
        assert site.admitted == (2, {"203.0.113.5": 1, "203.0.113.6": 1})
        assert site.connection.remote_ip == "203.0.113.6"
        response = await (await site.open()).handshake({"X-Forwarded-For": "1.2.3.4, 203.0.113.5"})
        assert response.status == 429
