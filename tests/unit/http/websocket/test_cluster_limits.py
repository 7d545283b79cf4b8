"""Limits over all nodes for new clients: handshakes, logins by a message, SockJS sessions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from snorky.gateway.config.limits import ClusterLimits
from snorky.gateway.contracts.limits import LocalLimitStore, SharedUnits
from snorky.gateway.contracts.revocations import Kind, LocalRevocations
from tests.support.scenarios.logins import authenticator, bearer
from tests.support.scenarios.site import RunningSite, gone, running_site, until
from tests.support.scenarios.sockjs_site import sockjs_site
from tests.support.scenarios.tokens import hmac_token

pytestmark = pytest.mark.usefixtures("each_door")

TWO = ClusterLimits(connections_per_identity=2)
REFUSED = (429, "Too many connections of this identity\n")


def token(identity: str = "ann") -> dict[str, str | None]:
    return bearer(hmac_token(identity))


async def attempt(site: RunningSite, headers: dict[str, str | None] | None = None) -> tuple[int, str]:
    response = await (await site.open()).handshake(headers)
    return response.status, response.body.decode()


@asynccontextmanager
async def sites(limits: ClusterLimits, units: SharedUnits, **others: Any) -> AsyncIterator[list[RunningSite]]:
    """Run two nodes that count together; at the end nothing is counted."""
    options = {"auth": authenticator(), "cluster_limits": limits, **others}
    async with (
        running_site(limit_store=LocalLimitStore(units, "a"), **options) as a,
        running_site(limit_store=LocalLimitStore(units, "b"), **options) as b,
    ):
        yield [a, b]
        for site in (a, b):
            await gone(site)
        assert not any(units.by_node.values()), "units are counted for clients that have gone"


async def test_an_identity_is_limited_over_both_nodes() -> None:
    async with sites(TWO, SharedUnits()) as (a, b):
        first = await a.client(token())
        await b.client(token())
        assert await attempt(a, token()) == await attempt(b, token()) == REFUSED
        assert (await attempt(a, token("bob")))[0] == 101
        assert (await attempt(a))[0] == 101, "without an identity there is nothing to count"
        for site in (a, b):
            assert site.sample("limit_hits_total", limit="cluster_connections_per_identity") == 1
            assert site.sample("handshakes_rejected_total", reason="cluster_connections") == 1
        first.close()
        await until(lambda: a.node.counts["connections"] == 2)
        assert (await attempt(b, token()))[0] == 101


async def test_an_address_is_limited_over_both_nodes() -> None:
    async with sites(ClusterLimits(connections_per_ip=2), SharedUnits()) as (a, b):
        await a.client()
        await b.client(token())
        assert await attempt(b) == (429, "Too many connections from this address\n")
        assert await attempt(a, token("bob")) == (429, "Too many connections from this address\n")


async def test_a_refused_identity_does_not_use_up_its_address() -> None:
    units = SharedUnits()
    async with sites(ClusterLimits(connections_per_ip=3, connections_per_identity=1), units) as (a, _):
        await a.client(token())
        for _ in range(5):
            assert await attempt(a, token()) == REFUSED
        assert units.total("cluster_connections_per_ip", "127.0.0.1") == 1
        assert (await attempt(a))[0] == 101


async def test_a_login_by_a_message_counts() -> None:
    async with sites(TWO, SharedUnits()) as (a, b):
        clients = [await a.client(), await b.client(), await b.client()]
        answers = [await each.call("authenticate", service="auth", token=hmac_token("ann")) for each in clients]
        assert [each["type"] for each in answers] == ["response", "response", "error"]
        assert answers[2]["code"] == "limit_exceeded"
        assert b.connection.identity is None
        again = await clients[0].call("refresh", service="auth", token=hmac_token("ann"))
        assert again["type"] == "response", "the same identity counts once for a connection"
        clients[1].close()
        await until(lambda: b.node.counts["connections"] == 1)
        answer = await clients[2].call("authenticate", service="auth", token=hmac_token("ann"))
        assert answer["type"] == "response"


async def test_without_redis_present_clients_stay_and_new_ones_are_refused() -> None:
    units = SharedUnits()
    async with sites(TWO, units) as (a, _):
        present = await a.client(token())
        units.is_failing = True
        assert await attempt(a, token()) == (503, "Limits cannot be checked for the moment\n")
        assert (await attempt(a))[0] == 101, "clients without an identity are not concerned"
        await present.say({"service": "echo", "message": "here"})
        assert (await present.message())["message"] == "here"
        assert units.total("cluster_connections_per_identity", "ann") == 1


async def test_the_newest_connections_are_closed_if_other_nodes_took_their_units() -> None:
    async with sites(ClusterLimits(connections_per_identity=4), SharedUnits()) as (a, _):
        clients = [await a.client(token()) for _ in range(4)]
        other = await a.client(token("bob"))
        a.node.cluster_limits.counts.on_lost("cluster_connections_per_identity", "ann", 2)
        for client in clients[2:]:
            assert await client.closed() == 4000
        for client in (*clients[:2], other):
            await client.say({"service": "echo", "message": "here"})
            assert (await client.message())["message"] == "here"


async def test_a_client_that_is_refused_after_it_was_counted_counts_no_more() -> None:
    units, revocations = SharedUnits(), LocalRevocations()
    options = {"auth": authenticator(revocations=revocations), "cluster_limits": TWO}

    class Revoking(LocalLimitStore):
        async def take(self, limit: str, name: str, count: int, maximum: int) -> bool:
            is_granted = await super().take(limit, name, count, maximum)
            await revocations.add(Kind.IDENTITY, name)
            return is_granted

    async with running_site(limit_store=Revoking(units, "a"), **options) as site:
        client = await site.client(token())
        assert await client.closed() == 4503
        await until(lambda: not any(units.by_node.values()))


@pytest.mark.parametrize("name", ["xhr", "xhr_streaming"])
async def test_sockjs_sessions_count(name: str) -> None:
    async def identify(_request: web.Request) -> str:
        return "ann"

    async with sockjs_site(2, identify=identify, cluster_limits=TWO) as site:
        callers = [site.client() for _ in range(3)]
        opened = [await caller.post("xhr", at=number % 2) for number, caller in enumerate(callers)]
        assert opened[:2] == [(200, "o\n")] * 2
        assert opened[2] == REFUSED
        status, _ = await site.client().post(name, at=0)
        assert status == 429
