"""Sessions whose requests reach several nodes: found, made once, and ended when a node stops."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from snorky.gateway.errors import CloseCode
from tests.support.scenarios.site import on_both_loops, until
from tests.support.scenarios.sockjs_calls import connection_of, echo, send, values_of
from tests.support.scenarios.sockjs_site import SockJSCaller, SockJSSite, frames_of, sockjs_site


@on_both_loops
async def test_a_session_is_known_to_all_nodes_at_once() -> None:
    async with sockjs_site(3) as site:
        clients = [site.client() for _ in range(30)]
        await asyncio.gather(*(client.open() for client in clients))
        assert site.connections == 30
        held = [name for names in site.cluster.names.values() for name in names]
        assert sorted(held) == sorted(client.session_id for client in clients)
        await asyncio.gather(*(send(client, client.session_id) for client in clients))
        polls = await asyncio.gather(*(client.post("xhr") for client in clients))
        assert [values_of(text) for _, text in polls] == [[client.session_id] for client in clients]


@pytest.mark.parametrize("headers", [{}, {"Cookie": "who=ann"}], ids=["anonymous", "authenticated"])
@pytest.mark.parametrize("nodes", [1, 3])
@on_both_loops
async def test_a_race_for_one_id_makes_one_session(nodes: int, headers: dict[str, str]) -> None:
    async with sockjs_site(nodes, identify=by_cookie) as site:
        meet_in_claim(site, 3)
        client = site.client(headers=headers)
        polls = [asyncio.create_task(client.post("xhr", at=at % nodes)) for at in range(3)]
        await until(lambda: sum(poll.done() for poll in polls) == 2)  # else a late one finds the session ended
        assert site.connections == 1
        connection_of(site).close(4000, "over")
        texts = [text for _, text in await asyncio.gather(*polls)]
        assert sorted(texts) == ['c[2010,"Another connection still open"]\n', 'c[4000,"over"]\n', "o\n"]


@pytest.mark.parametrize("name", ["xhr", "xhr_streaming"])
@on_both_loops
async def test_all_that_was_queued_reaches_a_receiver_on_another_node(name: str) -> None:
    sent = [[number, 'é"\\' * 6_000] for number in range(14)]
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        for each in sent:
            await send_at(client, each, at=0)
        assert connection_of(site).pending_bytes > 600_000  # as JSON, more than the nodes may publish at once
        if name == "xhr":
            assert values_of((await client.post("xhr", at=1))[1]) == sent
        else:
            async with client.stream(at=1) as stream:
                assert values_of("\n".join(await frames_of(stream))) == sent


@on_both_loops
async def test_an_ended_session_does_not_hide_its_ids_next_session() -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        connection_of(site).close(4000, "over")
        assert await client.post("xhr", at=1) == (200, 'c[4000,"over"]\n')  # it has been notified: the id is free
        await until(lambda: not any(site.cluster.names.values()))
        assert await client.post("xhr", at=0) == (200, 'c[4000,"over"]\n')
        site.cluster.is_failing = True
        assert await client.post("xhr", at=0) == (200, 'c[4000,"over"]\n')
        site.cluster.is_failing = False
        assert await client.post("xhr", at=1) == (200, "o\n")
        await send_at(client, "next", at=0)
        assert values_of((await client.post("xhr", at=0))[1]) == ["next"]


@on_both_loops
async def test_a_node_that_drains_makes_no_session_and_ends_its_own() -> None:
    async with sockjs_site(2) as site:
        first, second = site.client(), site.client()
        assert await first.post("xhr", at=0) == (200, "o\n")
        site.hosts[0].node.is_draining = True
        assert (await second.post("xhr", at=0))[0] == 503
        assert (await first.post("xhr_send", echo(1), at=1))[0] == 204
        connection_of(site).close(CloseCode.GOING_AWAY, "Going away")
        assert values_of((await first.post("xhr", at=1))[1]) == [1]
        assert await first.post("xhr", at=1) == (200, 'c[1001,"Going away"]\n')


@on_both_loops
async def test_a_stopping_node_lets_receivers_of_other_nodes_sessions_retry() -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        async with client.stream(at=1) as stream:
            await until(lambda: connection_of(site)._wire._drain is not None)
            await site.hosts[1].sockjs.end()
            assert await frames_of(stream) == ["h"]
        await send(client, "kept")
        assert values_of((await client.post("xhr", at=0))[1]) == ["kept"]


@on_both_loops
async def test_a_receiver_that_reaches_a_stopping_node_ends_regularly() -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        await site.hosts[1].sockjs.end()  # such a request was accepted before, and its session was looked up meanwhile
        assert await client.post("xhr", at=1) == (200, "h\n")
        async with client.stream(at=1) as stream:
            assert await frames_of(stream) == ["h"]
        await send_at(client, "kept", at=0)
        assert values_of((await client.post("xhr", at=0))[1]) == ["kept"]


@on_both_loops
async def test_requests_are_not_answered_while_the_owner_is_unknown() -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        site.cluster.is_failing = True
        status, text = await client.post("xhr_send", echo(1), at=1)
        assert (status, text) == (503, "Sessions cannot be found for the moment\n")
        assert (await site.client().post("xhr", at=1))[0] == 503
        assert (await client.post("xhr_send", echo(1), at=0))[0] == 204  # its own node needs no other
        site.cluster.is_failing = False


@on_both_loops
async def test_a_frame_lost_between_nodes_ends_the_session() -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        async with client.stream(at=1) as stream:
            await until(lambda: connection_of(site)._wire._drain is not None)
            site.hosts[1].broker.subscribed.clear()  # receives nothing
            await send_at(client, "lost", at=0)
            await until(lambda: site.hosts[0].node.counts["connections"] == 1)
            await asyncio.sleep(0)
            site.hosts[1].broker.subscribed.add("sockjs peer:n1")
            await send_at(client, "after", at=0)
            assert await frames_of(stream) == []
        assert await client.post("xhr", at=0) == (200, 'c[1002,"Connection interrupted"]\n')


async def send_at(client: SockJSCaller, value: Any, at: int) -> None:
    assert await client.post("xhr_send", echo(value), at=at) == (204, "")


async def by_cookie(request: web.Request) -> str | None:
    return request.cookies.get("who")


def meet_in_claim(site: SockJSSite, count: int) -> None:
    """Hold the claims of names until there are `count`: none of their requests has found another one's session."""
    barrier = asyncio.Barrier(count)
    for host in site.hosts:
        directory = host.node.ownership.directory

        async def claim(*args: Any, claim_now: Any = directory.claim) -> bool:
            await barrier.wait()
            return bool(await claim_now(*args))

        directory.claim = claim  # type: ignore[method-assign]
