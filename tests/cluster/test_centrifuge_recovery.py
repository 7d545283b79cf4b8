"""Centrifuge clients: recovery, gaps, the order of reply and pushes, history, presence."""

import asyncio
from typing import Any

import pytest

from snorky.client.aio import Publisher
from tests.support.clients.any_protocol import DEADLINE_S
from tests.support.clients.centrifuge import CentrifugeClient, CommandFailed, connected
from tests.support.processes.tools import eventually
from tests.support.scenarios.centrifuge_nodes import ENV, TOLD, token
from tests.support.scenarios.losses import losing
from tests.support.scenarios.protocol_nodes import CHANNEL, Nodes, token_of


@pytest.fixture
async def url(nodes: Nodes) -> str:
    return await nodes.start(**ENV)


# -- recovery, history ------------------------------------------------------------------------------------------------


async def missed(client: CentrifugeClient, url: str, **recover: Any) -> Any:
    async with connected(url) as again:
        return await again.call("subscribe", recover=True, **recover)


async def test_recovery_by_epoch_and_offset_or_by_offset_alone(nodes: Nodes, url: str) -> None:
    async with connected(url) as client:
        begun = await client.call("subscribe", channel="short")
        assert (begun["recoverable"], begun["positioned"], begun["offset"]) == (True, True, 0)
        for number in range(1, 5):
            await client.call("publish", channel="short", data=number)
        kept = [(3, 3), (4, 4)]
        for epoch in (begun["epoch"], ""):
            found = await missed(client, url, channel="short", offset=2, epoch=epoch)
            assert (found["recovered"], found["was_recovering"]) == (True, True)
            assert ([(each["data"], each["offset"]) for each in found["publications"]], found["offset"]) == (kept, 2)
        lost = {"recovered": False, "was_recovering": True, "offset": 4, "publications": None}
        for offset, epoch in ((1, begun["epoch"]), (5, begun["epoch"]), (3, "another")):
            found = await missed(client, url, channel="short", offset=offset, epoch=epoch)
            assert {name: found.get(name) for name in lost} == lost
        async with connected(url) as again:
            asked = {"channel": "short", "recover": True, "epoch": begun["epoch"]}
            with pytest.raises(CommandFailed) as failed:
                await again.call("subscribe", **asked, offset=1, flag=2)
            assert failed.value.code == 112
            assert (await again.call("subscribe", **asked, offset=2, flag=2))["recovered"], "it was not subscribed"


async def test_nothing_was_missed_on_a_channel_that_nobody_has_used(url: str) -> None:
    """Its history began only with the first subscriber: one that came before it got `unrecoverable position`."""
    async with connected(url) as client:
        found = await client.call("subscribe", channel=CHANNEL, recover=True, epoch="", offset=0, flag=2)
        assert (found["recovered"], found["offset"], found.get("publications") or None) == (True, 0, None)
        await client.call("publish", channel=CHANNEL, data="first")
        assert (await client.push(CHANNEL, "pub"))["offset"] == 1


async def lose(nodes: Nodes, channel: str) -> None:
    """Let the first node miss a publication that the history no longer has."""
    node = nodes.gateways[0].node
    async with Publisher(nodes.redis_url) as publisher:
        async with losing(node, channel):
            await publisher.publish(channel, "lost")
        await node.channels.remove_history("pubsub", channel)
        await publisher.publish(channel, "kept")


async def test_subscription_ends_at_a_gap_and_the_next_one_says_so(nodes: Nodes, url: str) -> None:
    async with connected(url) as client:
        begun = await client.call("subscribe", channel=CHANNEL)
        await client.call("publish", channel=CHANNEL, data="first")
        await client.push(CHANNEL, "pub")
        await lose(nodes, CHANNEL)
        assert (await client.push(CHANNEL, "unsubscribe"))["code"] == 2500
        await client.call("publish", channel=CHANNEL, data="behind the gap")
        await nodes.until_subscribed(0)
        assert client.news == [], "a later message would hide the gap"
        again = await client.call("subscribe", channel=CHANNEL, recover=True, epoch=begun["epoch"], offset=1)
        assert (again["recovered"], again["offset"]) == (False, 4)
        await client.call("publish", channel=CHANNEL, data="after it")
        later = await client.push(CHANNEL, "pub")
        assert (later["data"], later["offset"]) == ("after it", 5)


async def test_connection_ends_at_a_gap_of_a_subscription_by_the_server(nodes: Nodes, url: str) -> None:
    async with connected(url, token("ann", channels=[CHANNEL])) as client, connected(url) as other:
        await other.call("publish", channel=CHANNEL, data="first")
        await client.push(CHANNEL, "pub")
        await lose(nodes, CHANNEL)
        assert (await client.ended())[0] == 3010
        assert client.news == []


@pytest.mark.parametrize("recover", [{}, {"recover": True}])
async def test_second_subscription_is_refused(url: str, recover: Any) -> None:
    async with connected(url, token("ann", channels=["by-token:a"])) as client:
        await client.call("subscribe", channel=CHANNEL)
        for channel in (CHANNEL, "by-token:a"):
            with pytest.raises(CommandFailed) as failed:
                await client.call("subscribe", channel=channel, **recover)
            assert failed.value.code == 105


async def test_reply_comes_before_what_its_channel_receives(nodes: Nodes, url: str) -> None:
    broker = nodes.gateways[0].node._broker
    subscribe = broker.subscribe
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def slowly(key: str) -> None:
        await subscribe(key)
        has_begun.set()
        await may_end.wait()

    async with connected(url) as client, connected(url) as other:
        await other.call("subscribe", channel="busy")
        broker.subscribe = slowly  # type: ignore[method-assign]
        await client.send({"id": 5, "subscribe": {"channel": "busy"}})
        async with asyncio.timeout(DEADLINE_S):
            await has_begun.wait()
        await other.call("publish", channel="busy", data="meanwhile")
        await other.push("busy", "pub")
        may_end.set()
        seen: list[Any] = []
        while len(seen) < 2:
            await client._hear()
            seen, client.heard = [*seen, *filter(None, client.heard)], []  # without pings
        assert seen[0].get("id") == 5 and seen[1]["push"]["pub"]["data"] == "meanwhile", seen


async def test_history_is_paged_in_both_directions(url: str) -> None:
    async with connected(url) as client:
        for number in range(1, 8):
            await client.call("publish", channel=CHANNEL, data={"number": number})

        async def page(**asked: Any) -> list[int]:
            found = await client.call("history", channel=CHANNEL, **asked)
            assert found["offset"] == 7 and found["epoch"]
            return [each["offset"] for each in found["publications"]]

        epoch = (await client.call("history", channel=CHANNEL))["epoch"]
        assert await page() == []
        assert await page(limit=-1) == [1, 2, 3, 4, 5, 6, 7]
        assert await page(limit=2) == [1, 2]
        assert await page(limit=2, since={"epoch": epoch, "offset": 2}) == [3, 4]
        assert await page(limit=2, reverse=True) == [7, 6]
        assert await page(limit=3, reverse=True, since={"epoch": epoch, "offset": 3}) == [2, 1]
        assert await page(limit=3, reverse=True, since={}) == []
        with pytest.raises(CommandFailed) as failed:
            await page(limit=1, since={"epoch": "another", "offset": 1})
        assert failed.value.code == 112


# -- presence ---------------------------------------------------------------------------------------------------------


async def test_presence_and_joins_are_of_connections_on_all_nodes(nodes: Nodes, url: str) -> None:
    other_url = await nodes.start(**ENV)
    async with connected(url, token_of("ann")) as first, connected(other_url, token_of("ann")) as second:
        await first.call("subscribe", channel=TOLD)
        own = (await first.push(TOLD, "join"))["info"]
        await second.call("subscribe", channel=TOLD)
        assert (await second.push(TOLD, "join"))["info"]["client"] != own["client"]
        joined = (await first.push(TOLD, "join"))["info"]
        assert joined["user"] == own["user"] == "ann"
        async with connected(other_url) as third:
            await third.call("subscribe", channel=TOLD)
            anonymous = (await first.push(TOLD, "join"))["info"]
            assert anonymous["user"] == ""
            assert (await second.push(TOLD, "join"))["info"] == anonymous
            present = (await first.call("presence", channel=TOLD))["presence"]
            assert present == {each["client"]: each for each in (own, joined, anonymous)}
            stats = await first.call("presence_stats", channel=TOLD)
            assert stats == {"num_clients": 3, "num_users": 2}
        assert (await first.push(TOLD, "leave"))["info"]["client"] == anonymous["client"]
        await second.call("unsubscribe", channel=TOLD)
        assert (await first.push(TOLD, "leave"))["info"]["client"] == joined["client"]
        await first.call("ping")
        assert not [each for each in (*first.heard, *second.heard) if "join" in each.get("push", {})]


async def test_joins_that_a_node_missed_are_told_by_connection(nodes: Nodes, url: str) -> None:
    other_url = await nodes.start(**ENV)
    async with connected(url, token_of("ann")) as first, connected(other_url, token_of("ann")) as second:
        await first.call("subscribe", channel=TOLD)
        await first.push(TOLD, "join")
        node = nodes.gateways[0].node

        async def is_counted() -> bool:
            assert node._roster_sync is not None
            return node._roster_sync._followed[f"pubsub:{TOLD}"].version is not None

        await eventually(is_counted, within_s=DEADLINE_S, what="the node knows the members")
        async with losing(node, TOLD):
            await second.call("subscribe", channel=TOLD)
        node.on_interrupted()
        assert (await first.push(TOLD, "join"))["info"]["user"] == "ann"
